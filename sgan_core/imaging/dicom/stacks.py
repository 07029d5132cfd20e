"""The volumes within one series: which slices lie on one another, and which only look so.

A series may hold several volumes: echoes, phases of contrast, time points, water and fat, b-values. Positions decide.
Slices of one size, direction and spacing are one volume unless

- a place occurs twice with images that are no copies of each other, or
- two sets of slices interleave: along the normal they take turns, where parts of one scan follow each other.

Then they come apart by the first attributes of ``traits.TRAITS`` that leave every place once. Two sets that interleave
without meeting, told apart by nothing but the number or pass of the acquisition, may also be one scan that took every
second slice first, as MR does: of MR they are one volume where the header's own distance of slices is that of
the whole. Nothing is merged in doubt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from sgan_core.imaging.dicom.headers import Header, Plane, Slice
from sgan_core.imaging.dicom.traits import CLOCKS, TRAITS, Trait, in_words, same_traits

SAME_POSITION_MM = 1e-3  # nearer slices lie in one place; positions are decimals that scanners round
DIRECTION_TOLERANCE = 1e-3  # of the direction cosines: length 1, right angles, equality within a stack
_SPACING_TOLERANCE = 1e-4  # relative, of the pixel spacing within a stack
_UNEVEN = 0.1  # of the usual distance: more is no even stack
_FEW = 4  # sets of slices that interleave are few; more are numbers that change from slice to slice

_PASS = Trait("pass", "pass {:g}", (), many=True)


@dataclass(frozen=True)
class Series:
    """One series of images found on disk; only headers were read."""

    uid: str
    study_uid: str
    number: int | None
    description: str
    modality: str  # "CT", "MR", "DX", ...
    files: tuple[Path, ...]  # of a volume: along the slice normal, as the slices; of a picture: one
    slices: int
    rows: int
    columns: int
    spacing_mm: tuple[float, float, float] | None  # along (i, j, k); None for pictures
    echo_time_ms: float | None = None  # set when one DICOM series was split by echo
    # Where each slice is, ascending along the normal: (index in files, frame in that file).
    frames: tuple[tuple[int, int], ...] = field(default=(), repr=False)
    warnings: tuple[str, ...] = ()  # what the search has to say of it
    doubts: tuple[str, ...] = ()  # why it may not be the whole scan, or not one scan
    problem: str = ""  # why it must not be read at all
    aside: str = ""  # what it is, where it is no scan and others are: "localizer", "secondary capture"


@dataclass(frozen=True, eq=False)
class Part:
    """Slices that make one volume, ascending along their normal, and what tells them from the others."""

    slices: list[Slice]
    words: str = ""
    echo_time_ms: float | None = None
    doubts: tuple[str, ...] = ()


def split(group: Sequence[Slice]) -> list[Part]:
    """The volumes in the placed slices of one series; what sets one apart from the others is its words."""
    stacks: list[list[Slice]] = []
    # Whatever the files are called and wherever they lie.
    for one in sorted(group, key=lambda one: (one.header.instance or 0, one.header.sop_uid, one.frame)):
        fitting = next((stack for stack in stacks if not difference(stack[0], one, traits=True)), None)
        if fitting is None:
            stacks.append([one])
        else:
            fitting.append(one)
    parts = []
    for stack in stacks:
        apart = _apart(stack, stacks)
        for part in _volumes(sorted(stack, key=distance_mm)):
            words = ", ".join(filter(None, (*apart, part.words)))
            parts.append(Part(part.slices, words, part.echo_time_ms, part.doubts))
    names = [part.words for part in parts]
    return [
        part
        if names.count(part.words) == 1
        else Part(part.slices, f"{part.words}, part {number}".lstrip(", "), part.echo_time_ms, part.doubts)
        for number, part in enumerate(parts, start=1)
    ]


# --- what cannot be one stack ---


def difference(first: Slice, second: Slice, *, traits: bool = False) -> str:
    """Why two placed slices cannot be in one stack; empty when they can.

    traits: also what is not to be seen, the stack's number and the frame of reference.
    """
    ours, theirs = first.plane, second.plane
    sizes = [_size_name(one.header) for one in (first, second)]
    if sizes[0] != sizes[1]:
        return f"sizes ({sizes[0]} and {sizes[1]})"
    our_mm, their_mm = (plane.spacing_mm or (0.0, 0.0) for plane in (ours, theirs))
    if not np.allclose(our_mm, their_mm, rtol=_SPACING_TOLERANCE, atol=0.0):
        return "pixel spacings"
    directions = [np.concatenate([plane.row, plane.column]) for plane in (ours, theirs)]
    if np.abs(directions[0] - directions[1]).max() > DIRECTION_TOLERANCE:
        return f"orientations ({_plane_name(ours)} and {_plane_name(theirs)})"
    if traits and not same_traits(ours.traits, theirs.traits):
        return "stacks or frames of reference"
    return ""


def _apart(stack: list[Slice], stacks: list[list[Slice]]) -> list[str]:
    """What tells a stack from the others of its series, in words."""
    ways = [[_plane_name(one[0].plane) for one in stacks], [_size_name(one[0].header) for one in stacks]]
    for trait in TRAITS:
        if trait.apart:
            values = list(dict.fromkeys(one[0].plane.traits.get(trait.name) for one in stacks))
            ways.append([in_words(trait, one[0].plane.traits.get(trait.name), values) for one in stacks])
    number = stacks.index(stack)
    return [names[number] for names in ways if len(set(names)) > 1]


# --- volumes in one place ---


def _volumes(stack: list[Slice]) -> list[Part]:
    """The volumes of slices that could be one by size and direction. stack: ascending."""
    unique, copies = _without_twins(stack)
    distances = np.array([distance_mm(one) for one in unique])
    places = np.cumsum(np.diff(distances, prepend=-np.inf) > SAME_POSITION_MM)
    if len(set(places.tolist())) < len(places):
        chosen = _telling(unique, places)
        parts = _by_traits(unique, chosen) if chosen else _by_clock(unique, places)
    else:
        parts = _interleaved(unique, distances)
    for twin, copy in copies:  # the reader compares them with their originals
        next(part.slices for part in parts if twin in part.slices).append(copy)
    return [Part(sorted(p.slices, key=distance_mm), p.words, p.echo_time_ms, p.doubts) for p in parts]


def _without_twins(stack: list[Slice]) -> tuple[list[Slice], list[tuple[Slice, Slice]]]:
    """The slices without second copies of one SOP instance, and these with the one that they repeat."""
    seen: dict[tuple[str, int], Slice] = {}
    copies = []
    unique = []
    for one in stack:
        key = (one.header.sop_uid, one.frame)
        if one.header.sop_uid and key in seen:
            copies.append((seen[key], one))
        else:
            seen[key] = one
            unique.append(one)
    return unique, copies


def _telling(slices: list[Slice], places: np.ndarray) -> list[Trait]:
    """The fewest traits that leave every place once in each of few volumes; empty when there are none."""
    most = max(Counter(places.tolist()).values())
    chosen: list[Trait] = []

    def repeats(traits: list[Trait]) -> tuple[int, int]:
        """Images too many, and volumes."""
        keys = [_key(one, traits) for one in slices]
        once = len(set(zip(keys, places.tolist(), strict=True)))
        return len(slices) - once, len(set(keys))

    while repeats(chosen)[0]:
        options = [trait for trait in TRAITS if trait not in chosen]
        ways = [(*repeats([*chosen, trait]), order) for order, trait in enumerate(options)]
        fitting = [way for way in ways if way[1] <= 2 * most and way[0] < repeats(chosen)[0]]
        if not fitting:
            return []
        chosen.append(options[min(fitting)[2]])
    for trait in list(chosen):  # what a later one made needless
        fewer = [other for other in chosen if other != trait]
        if not repeats(fewer)[0]:
            chosen = fewer
    return sorted(chosen, key=TRAITS.index)


def _by_clock(slices: list[Slice], places: np.ndarray) -> list[Part]:
    """The n-th image of each place by time is of the n-th volume, where each place has as many; else all in one."""
    counts = set(Counter(places.tolist()).values())
    count = max(counts)
    if len(counts) > 1 or count == len(slices):
        return [Part(slices)]
    for number, (name, _) in enumerate(CLOCKS):
        times = [one.plane.traits.get(f"clock {number}") for one in slices]
        if not all(isinstance(time, int | float) for time in times):
            continue
        found: list[list[Slice]] = [[] for _ in range(count)]
        certain = True
        for place in np.unique(places):
            here = np.flatnonzero(places == place)
            order = sorted(here.tolist(), key=lambda index: times[index])  # type: ignore[arg-type, return-value]
            certain &= len({times[index] for index in order}) == count
            for volume, index in zip(found, order, strict=True):
                volume.append(slices[index])
        if certain:
            return [Part(volume, f"{name} {n} of {count}") for n, volume in enumerate(found, start=1)]
    return [Part(slices)]


def _interleaved(slices: list[Slice], distances: np.ndarray) -> list[Part]:
    """Sets of slices that take turns along the normal, apart; all in one where there are none."""
    for trait in (*TRAITS, _PASS):
        values = _passes(slices) if trait is _PASS else [one.plane.traits.get(trait.name) for one in slices]
        sets = [np.flatnonzero([value == other for other in values]) for value in dict.fromkeys(values)]
        turns = 1 + sum(first != second for first, second in pairwise(values))
        if not 1 < len(sets) <= _FEW or turns == len(sets) or max(map(len, sets)) < 3:
            continue
        if not all(_is_even(distances[part]) for part in sets):
            continue
        if trait.many and _is_one_scan(slices, distances, sets):
            continue
        if trait is _PASS:
            return [Part([slices[k] for k in part], f"pass {n}") for n, part in enumerate(sets, start=1)]
        return _by_traits(slices, [trait])
    return [Part(slices)]


def _is_even(distances: np.ndarray) -> bool:
    gaps = np.diff(distances)
    return not gaps.size or float(np.abs(gaps - np.median(gaps)).max()) <= _UNEVEN * float(np.median(gaps))


def _is_one_scan(slices: list[Slice], distances: np.ndarray, sets: list[np.ndarray]) -> bool:
    """Whether slices that take turns are one MR scan: even together, at the distance that the header names."""
    header, declared_mm = slices[0].header, slices[0].plane.thickness_mm
    if header.modality != "MR" or declared_mm is None or not _is_even(distances):
        return False
    together = float(np.median(np.diff(distances)))
    alone = float(np.median(np.diff(distances[max(sets, key=len)])))
    return abs(declared_mm - together) < abs(declared_mm - alone)


def _passes(slices: list[Slice]) -> list[Hashable]:
    """For each slice, in which run through the scan its instance number lies; all in one without such numbers."""
    numbers = [one.header.instance for one in slices]
    if None in numbers:
        return [1] * len(slices)
    if len(set(numbers)) < len(numbers):
        often = Counter(numbers)[numbers[0]]
        together = [set(numbers[first : first + often]) for first in range(0, len(numbers), often)]
        alike = often > 1 and len(numbers) % often == 0 and all(len(one) == 1 for one in together)
        # Each number as often, and next to its equals: so many sets that are numbered alike take turns.
        return [index % often if alike else 1 for index in range(len(slices))]
    order = sorted(range(len(slices)), key=lambda index: numbers[index] or 0)
    runs: list[Hashable] = [1] * len(slices)
    run, direction = 1, 0
    for before, index in pairwise(order):
        step = 1 if index > before else -1
        if direction and step != direction:
            run, direction = run + 1, 0  # where it starts anew, the next step tells where it goes
        else:
            direction = step
        runs[index] = run
    return runs


def _by_traits(slices: list[Slice], traits: list[Trait]) -> list[Part]:
    """The slices by the values of traits, in the order of these."""
    volumes: dict[tuple[Hashable, ...], list[Slice]] = {}
    for one in slices:
        volumes.setdefault(_key(one, traits), []).append(one)
    keys = sorted(volumes, key=lambda key: [(value is not None, str(type(value)), value) for value in key])
    values = [list(dict.fromkeys(key[column] for key in keys)) for column in range(len(traits))]
    parts = []
    longest = max(map(len, volumes.values()))
    for key in keys:
        named = [in_words(*one) for one in zip(traits, key, values, strict=True)]
        echo = next((v for t, v in zip(traits, key, strict=True) if t.name == "echo"), None)
        doubts: tuple[str, ...] = ()
        if len(volumes[key]) < longest and any(
            trait.name in ("echo", "kind", "component", "time point", "b-value") for trait in traits
        ):
            doubts = (
                f"the scan may be incomplete: {len(volumes[key])} slices, other volumes of its series have {longest}",
            )
        parts.append(Part(volumes[key], ", ".join(named), echo if isinstance(echo, float) else None, doubts))
    return parts


def _key(one: Slice, traits: Sequence[Trait]) -> tuple[Hashable, ...]:
    return tuple(one.plane.traits.get(trait.name) for trait in traits)


# --- geometry ---


def distance_mm(one: Slice) -> float:
    """How far along the slice normal a placed slice lies."""
    return float(np.dot(one.plane.position_mm, normal(one.plane)))


def normal(plane: Plane) -> np.ndarray:
    """(3,); rows times columns, as ITK has it, so that the array axes (i, j, k) are right-handed in LPS."""
    return np.cross(plane.row, plane.column)


def usual(gaps_mm: np.ndarray) -> float:
    """The lower median: of two gaps, a missing slice makes the larger one."""
    return float(np.sort(gaps_mm)[(len(gaps_mm) - 1) // 2])


def _plane_name(plane: Plane) -> str:
    return ("sagittal", "coronal", "axial")[int(np.abs(normal(plane)).argmax())]


def _size_name(header: Header) -> str:
    return f"{header.columns} x {header.rows}"
