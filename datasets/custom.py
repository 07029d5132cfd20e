"""One's own folder of pictures or volumes as a cohort."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sgan_core.cohort import (
    MODALITIES,
    Case,
    Cohort,
    Intensity,
    Label,
    check_corrections,
    rank_labelled,
    validate,
)
from sgan_core.errors import InputError
from sgan_core.imaging.decoder_messages import SAID
from sgan_core.imaging.endings import PAIR_SUFFIXES, PICTURE_SUFFIXES, image_suffix
from sgan_core.imaging.image import Volume
from sgan_core.imaging.intensity import CT_WINDOWS_HU
from sgan_core.imaging.readers import read_labels
from sgan_core.names import natural
from sgan_datasets.anatomy import named_label
from sgan_datasets.pairs import looks_inverted
from sgan_datasets.patients import merge_patients, split_patients
from sgan_datasets.source import About

ABOUT = About(
    name="custom",
    modality="any",
    what="your own folder of pictures (PNG, JPEG, ...) or volumes (NIfTI, NRRD)",
    size="any",
    source="your files",
    licence="yours",
)

CT_WINDOW = "abdomen"
BACKGROUND = "background"


@dataclass(frozen=True)
class LabelRule:
    """Stored values of the label files that mean one class; the name "background" ignores them."""

    stored_values: tuple[int, ...]
    name: str


@dataclass(frozen=True)
class Pair:
    """An image file of one's folder and its label file, if there is one. Paths relative to it, with "/"."""

    image: str
    label: str | None


@dataclass(frozen=True)
class Prepared:
    """A cohort, with what its owner should know about the files."""

    cohort: Cohort
    warnings: tuple[str, ...]


def prepare_custom(
    folder: str | Path,
    *,
    images: str,
    labels: str | None = None,
    patient: str,
    modality: str,
    name: str = "",
    intensity_range: tuple[float, float] | None = None,
    window: str | None = None,
    corrections: Sequence[str] = (),
    squash: bool = False,
    missing_label_is_empty: bool = False,
    same_patient: Sequence[Sequence[str]] = (),
    validation: Sequence[str] | None = None,
    label_rules: Sequence[LabelRule] = (),
    seed: int = 0,
    on_progress: Callable[[int, int, str], object] | None = None,
) -> Prepared:
    """Make a cohort of the images below a folder.

    images, labels: globs relative to the folder (``*``, ``?``, ``[..]``, ``**/``); an image and a label
    belong together when their wildcards match the same text.
    patient: regular expression searched in an image's path relative to the folder; its first group, or
    the whole match, is the patient.
    intensity_range: in HU for ct (default ``CT_WINDOW``); other modalities use percentiles without it.
    window: for ct instead of intensity_range, a name in ``CT_WINDOWS_HU``.
    corrections: of each image before that, names in ``sgan_core.cohort.CORRECTIONS``.
    squash: the pictures were released squashed to a square; every image is to be seen that way.
    missing_label_is_empty: an image without a label file holds no label, instead of being unlabelled.
    same_patient: groups of names that are one person, who is then called "A+B+C".
    validation: patients; None draws a fifth of the labelled ones when there are five or more.
    label_rules: default: each value found becomes a class label_1, label_2, ...
    on_progress(done, total, message) is called for each label file read.

    Every label file is read once to learn its values. Raises InputError: a glob or expression that is wrong
    or finds nothing, a window that is unknown or not for this modality, labels that match no image,
    unreadable label files, values without a rule, unknown patients, and whatever ``sgan_core.cohort.validate`` refuses.
    """
    root = Path(folder)
    intensity = _intensity(modality, intensity_range, window)
    switched_on: dict[str, Any] = dict.fromkeys(corrections, True)
    intensity = replace(intensity, **switched_on)
    check_corrections(intensity, modality, source=str(root))
    pairs, warnings = find_pairs(root, images=images, labels=labels)
    alias = merge_patients(_patients([pair.image for pair in pairs], patient), same_patient)
    ignored_values = [v for rule in label_rules if rule.name == BACKGROUND for v in rule.stored_values]
    label_files = [pair.label for pair in pairs if pair.label]
    found, covered, remarks = _label_values(root, label_files, ignored_values, on_progress)
    damaged = [remark for remark in remarks if SAID in remark]
    warnings += _some(damaged, "label files made their decoder complain")
    warnings += _some([one for one in remarks if one not in damaged], "label files have grey edges")
    if looks_inverted(covered, modality):
        warnings.append(
            f"the labels of {labels} cover more than half of most images. Are black and white exchanged?"
        )
    if not found:
        reason = (
            f"the files of --labels {labels} hold nothing but 0" if labels else "--labels GLOB is missing"
        )
        raise InputError(f"{root}: no labelled case, {reason}. Training needs at least one.")
    classes, ignored = _classes(found, label_rules)
    identifiers = _identifiers([pair.image for pair in pairs])
    cases = [
        Case(
            id=identifier,
            patient=alias[_patient_of(pair.image, patient)],
            image=_absolute(root, pair.image),
            label=_absolute(root, pair.label) if pair.label else None,
            empty=pair.label is None and missing_label_is_empty,
            domain=modality,
        )
        for pair, identifier in zip(pairs, identifiers, strict=True)
    ]
    if missing_label_is_empty:
        warnings += _warn_of_all_empty(cases)
    guessed = modality == "ct" and intensity_range is None and window is None
    if guessed and image_suffix(pairs[0].image) in PICTURE_SUFFIXES:
        warnings.append(
            f"the pictures are taken to show {intensity.low:g} to {intensity.high:g} HU (black to white); "
            "say --intensity-range LOW,HIGH or --window NAME if they show another window."
        )
    split, more = split_patients(cases, validation, alias, seed)
    cohort = Cohort(
        name=name or root.resolve().name,
        modality=modality,
        intensity=intensity,
        labels=classes,
        cases=rank_labelled(split, seed=seed),
        ignored_values=ignored,
        squash=squash,
    )
    validate(cohort, source=str(root))
    return Prepared(cohort, (*warnings, *more))


# --- images and their labels ---


def find_pairs(folder: Path, *, images: str, labels: str | None) -> tuple[list[Pair], list[str]]:
    """Images below a folder, each with its label file, in natural order; warnings about labels left over.

    Files that match both globs are labels. Raises InputError: no such folder, globs that find nothing or
    whose wildcards differ in number, labels none of which belongs to an image.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder. Give the folder that the globs are relative to.")
    files = sorted(_walk(folder), key=natural)
    if labels is None:
        return [Pair(image, None) for image in _matches(files, images, folder, "--images")], []
    if _wildcards(images) != _wildcards(labels):
        raise InputError(
            f"--images {images} has {_wildcards(images)} wildcards, --labels {labels} has "
            f"{_wildcards(labels)}; the same number is needed, for their parts to be compared."
        )
    label_at = _matches(files, labels, folder, "--labels")
    label_files = set(label_at)
    image_at = _matches([f for f in files if f not in label_files], images, folder, "--images")
    label_of = {parts: label for label, parts in label_at.items()}
    pairs = [Pair(image, label_of.get(parts)) for image, parts in image_at.items()]
    orphans = sorted(label_files - {pair.label for pair in pairs if pair.label}, key=natural)
    if len(orphans) == len(label_files):
        image, parts = next(iter(image_at.items()))
        raise InputError(
            f"{folder}: no label belongs to an image. {image} has the wildcard parts {_quoted(parts)}, "
            f"{orphans[0]} has {_quoted(label_at[orphans[0]])}; write the globs so that they agree."
        )
    if orphans:
        return pairs, [f"{len(orphans)} label files have no image, e.g. {orphans[0]}; they are left out."]
    return pairs, []


def _walk(folder: Path) -> Iterable[str]:
    """Files below a folder, hidden ones left out, as paths relative to it; each linked folder once."""
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        relative = Path(parent).relative_to(folder)
        yield from ((relative / file).as_posix() for file in files if not file.startswith("."))


_TOKEN = re.compile(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]")


def _wildcards(glob: str) -> int:
    return len(_TOKEN.findall(glob))


def _glob_pattern(glob: str) -> re.Pattern[str]:
    """The glob as a regular expression with one group a wildcard."""
    patterns = {"**/": "((?:[^/]+/)*)", "**": "(.*)", "*": "([^/]*)", "?": "([^/])"}
    text, position = "", 0
    for token in _TOKEN.finditer(glob):
        text += re.escape(glob[position : token.start()])
        text += patterns.get(token[0]) or f"({token[0].replace('[!', '[^')})"
        position = token.end()
    return re.compile(text + re.escape(glob[position:]))


def _matches(files: Iterable[str], glob: str, folder: Path, option: str) -> dict[str, tuple[str, ...]]:
    """Files that match, with what each wildcard matched."""
    try:
        pattern = _glob_pattern(glob.replace("\\", "/").removeprefix("./"))
    except re.error as error:
        raise InputError(f"{option} {glob}: not a usable glob ({error}).") from None
    found = {file: match.groups() for file in files if (match := pattern.fullmatch(file))}
    for header in [file for file in found if image_suffix(file) in PAIR_SUFFIXES]:  # two files are one image
        suffix = image_suffix(header)
        found.pop(header[: -len(suffix)] + PAIR_SUFFIXES[suffix], None)
    if not found:
        raise InputError(
            f"{option} {glob}: matches no file below {folder}. The glob is relative to that folder; "
            "put it in quotes, so that the shell leaves it alone."
        )
    if unknown := [file for file in found if not image_suffix(file)]:
        raise InputError(
            f"{option} {glob}: matches {unknown[0]}, which is no kind of image that can be read."
        )
    return found


def _identifiers(images: Sequence[str]) -> list[str]:
    """Short names that differ, fit for file names: the stem, or the path where stems repeat."""
    stems = [path[: -len(image_suffix(path))] for path in images]
    short = [stem.rsplit("/", 1)[-1] for stem in stems]
    return short if len(set(short)) == len(short) else [stem.replace("/", "__") for stem in stems]


def _absolute(root: Path, relative: str) -> str:
    return os.path.abspath(root / relative)


def _quoted(parts: Iterable[str]) -> str:
    return ", ".join(repr(part) for part in parts) or "none"


# --- patients ---


def _patient_of(image: str, expression: str) -> str:
    try:
        match = re.search(expression, image)
    except re.error as error:
        raise InputError(f"--patient {expression}: not a regular expression ({error}).") from None
    name = match and (match[1] if match.re.groups else match[0])
    if not name:
        raise InputError(
            f"--patient {expression}: finds no patient in {image}. The expression is searched in the path "
            r"relative to the folder; e.g. 'volume-(\d+)_' finds 12 in images/volume-12_slice_3.png."
        )
    return name


def _patients(images: Iterable[str], expression: str) -> set[str]:
    return {_patient_of(image, expression) for image in images}


def _warn_of_all_empty(cases: Sequence[Case]) -> list[str]:
    with_file = {case.patient for case in cases if case.label is not None}
    bare = sorted({case.patient for case in cases} - with_file, key=natural)
    if not bare:
        return []
    return [
        f"{len(bare)} patients have no label file at all and count as empty, e.g. {bare[0]}; "
        "leave --missing-label-is-empty out if they were never labelled."
    ]


# --- intensities, labels ---


def _intensity(modality: str, limits: tuple[float, float] | None, window: str | None) -> Intensity:
    if window is not None and modality != "ct":
        raise InputError(f"--window {window}: windows are in HU, for ct, not for {modality}. Leave it out.")
    if window is not None and limits is not None:
        raise InputError("--window and --intensity-range say the same thing; give one of them.")
    if window is not None and window not in CT_WINDOWS_HU:
        raise InputError(f"--window {window}: unknown; choose one of {', '.join(CT_WINDOWS_HU)}.")
    if modality != "ct" and limits is None:
        default: Intensity = MODALITIES[modality]["intensity"]
        return default
    low, high = limits or CT_WINDOWS_HU[window or CT_WINDOW]
    return Intensity(low=low, high=high, unit="HU" if modality == "ct" else "")


def _label_values(
    root: Path,
    labels: Sequence[str],
    ignored_values: Sequence[int],
    on_progress: Callable[[int, int, str], object] | None,
) -> tuple[dict[int, str], list[float], list[str]]:
    """Values other than 0 in the label files, each with the first file that holds it; the share of each file that is
    labelled; what is odd about files."""
    found: dict[int, str] = {}
    covered: list[float] = []
    remarks: list[str] = []
    for done, label in enumerate(labels, 1):
        stored = read_labels(root / label, values=None, remarks=remarks)
        array = stored.array if isinstance(stored, Volume) else stored
        occurs = np.zeros(256, bool)  # far less memory than np.unique or np.bincount on a large volume
        occurs[array] = True
        for value in np.flatnonzero(occurs):
            found.setdefault(int(value), label)
        foreground = ~np.isin(np.arange(256), [0, *ignored_values])
        covered.append(np.count_nonzero(foreground[array]) / array.size)
        if on_progress:
            on_progress(done, len(labels), "reading labels")
    found.pop(0, None)
    return dict(sorted(found.items())), covered, remarks


def _some(remarks: Sequence[str], what: str) -> list[str]:
    return [f"{len(remarks)} {what}, e.g. {remarks[0]}"] if remarks else []


def _classes(found: dict[int, str], rules: Sequence[LabelRule]) -> tuple[tuple[Label, ...], tuple[int, ...]]:
    """Labels of the cohort, and the values that count as background."""
    if not rules:
        return tuple(named_label(n, f"label_{n}", (value,)) for n, value in enumerate(found, 1)), ()
    ignored = tuple(v for rule in rules if rule.name == BACKGROUND for v in rule.stored_values if v)
    wanted = [rule for rule in rules if rule.name != BACKGROUND]
    known = {value for rule in rules for value in rule.stored_values}
    for value, file in found.items():
        if value not in known:
            raise InputError(
                f"{file}: holds the value {value}, which no --label names. Add --label {value}=NAME, "
                f"or --label {value}={BACKGROUND} to ignore it."
            )
    for rule in wanted:
        if not set(rule.stored_values) & found.keys():
            stored = ",".join(map(str, rule.stored_values))
            raise InputError(
                f"--label {stored}={rule.name}: no label file holds that value; "
                f"found are {', '.join(map(str, found))}."
            )
    return tuple(named_label(n, rule.name, rule.stored_values) for n, rule in enumerate(wanted, 1)), ignored
