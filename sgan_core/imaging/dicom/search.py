"""The DICOM images below a path, and what lies beside them.

Nothing is left out in silence: a file that looks like a slice and cannot be read means a scan that is not whole.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sgan_core.errors import InputError
from sgan_core.files import is_partial
from sgan_core.imaging.decoder_messages import heard
from sgan_core.imaging.dicom.headers import (
    Header,
    Other,
    Slice,
    is_readable_dicom,
    read_header,
    series_uid,
    starts_as_dicom,
)
from sgan_core.imaging.dicom.stacks import SAME_POSITION_MM, Part, Series, distance_mm, normal, split, usual

_SUFFIXES = (".dcm", ".dicom", ".ima")
_SKIPPED_FOLDERS = (".git", "__MACOSX")  # of git-annex and of macOS: second copies of what is beside them
_MOST_NAMED = 3  # files that a message names


@dataclass(frozen=True)
class LeftOut:
    """A file that is no part of any series found."""

    path: Path
    reason: str  # a sentence's end, e.g. "is empty"
    series_uid: str = ""  # that it belongs to, where its header says so
    is_slice: bool = True  # whether it looks like one; else an object that is no image


@dataclass(frozen=True)
class Found:
    """What a search has found."""

    series: list[Series]
    left_out: list[LeftOut]


def is_dicom(path: str | Path) -> bool:
    """Whether a file is DICOM by its content: the mark ``DICM`` after 128 bytes, or a bare data set.

    Reads the first bytes only, a little more for a file without the mark. False for folders, missing files.
    """
    try:
        return starts_as_dicom(Path(path))
    except OSError:
        return False


def find_series(path: str | Path) -> list[Series]:
    """The series of images in a file, or in a folder and its subfolders, sorted by series number.

    One DICOM series becomes several entries where its images cannot be one stack (``stacks.split``). Pictures (no
    position, or colour) are one entry a file. A DICOMDIR is not followed; links to files are, links to folders not.
    What is no image (reports, segmentations, plans) is left out, with a warning on each series. A file that looks
    like a slice and cannot be read is a problem of the series that it belongs to, or lies beside: reading that one
    raises InputError. Localizers and secondary captures beside a scan are ``aside``. ``doubts`` say where a series
    itself tells that it is not whole.
    Raises InputError naming the file: missing, not readable or damaged, with nothing else beside it.
    """
    found = search(path)
    unreadable = [one for one in found.left_out if one.is_slice]
    if unreadable and not found.series:
        raise InputError(_whole_sentence(unreadable))
    return found.series


def search(path: str | Path) -> Found:
    """As ``find_series``, with what was left out; a folder may hold nothing but that.

    Raises InputError: missing path, a file that is damaged, a folder that may not be read.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder. Check the path.")
    with heard() as said:
        found = _search(path)
    return replace(found, series=[said.told(one, path.name) for one in found.series])


def _search(path: Path) -> Found:
    groups: dict[tuple[str, ...], list[Slice]] = {}
    left_out: list[LeftOut] = []
    plain: list[Path] = []  # files that are not DICOM
    for file, fault in _files(path):
        if fault:
            left_out.append(LeftOut(file, fault, is_slice=fault != _LINKED_FOLDER))
            continue
        try:
            header = read_header(file) if is_readable_dicom(file) else None
        except InputError as error:
            if not path.is_dir():
                raise
            left_out.append(LeftOut(file, _reason(file, error), series_uid(file)))
            continue
        if header is None:
            plain.append(file)
        elif isinstance(header, Other):
            left_out.append(LeftOut(file, header.kind, is_slice=False))
        else:
            for frame in range(len(header.planes)):
                one = Slice(header, frame)
                groups.setdefault(_group_key(one), []).append(one)
    neighbours = _shapes(one.header.path for group in groups.values() for one in group)
    left_out = [
        one for one in left_out if one.reason != _NO_FILE or _looks_like_a_slice(one.path, neighbours)
    ]
    if path.is_dir():
        left_out += [LeftOut(file, _why(file)) for file in plain if _looks_like_a_slice(file, neighbours)]
    series = [one for group in groups.values() for one in _entries(group)]
    series = [_judged(one, left_out) for one in _set_aside(series, groups)]
    return Found(sorted(series, key=lambda one: (one.number is None, one.number or 0)), left_out)


# --- files -----------------------------------------------------------------------------------------

_NO_FILE = "is no file that can be read (a pipe or a device)"
_LINKED_FOLDER = "link to a folder, which is not followed"


def _files(path: Path) -> Iterator[tuple[Path, str]]:
    """The file itself, or the files below a folder in order of their names, each with what keeps it from reading.

    Links to regular files are followed, as git-annex makes them; links to anything else are not.
    """
    if not path.is_dir():
        yield path, ""
        return

    def refuse(error: OSError) -> None:
        raise InputError(
            f"{error.filename}: cannot read the folder ({error.strerror}). Check its permissions."
        )

    for parent, folders, names in os.walk(path, onerror=refuse):  # does not go into linked folders
        folders[:] = sorted(folder for folder in folders if folder not in _SKIPPED_FOLDERS)
        linked = [folder for folder in folders if os.path.islink(os.path.join(parent, folder))]
        for name in sorted([*names, *linked]):
            file = Path(parent, name)
            if is_partial(name):
                continue
            if name in linked:
                yield file, _LINKED_FOLDER
                continue
            try:
                mode = file.stat().st_mode
            except OSError:
                yield file, "is a link to a file that is not here (of git-annex? get its content first)"
                continue
            yield file, "" if stat.S_ISREG(mode) else _NO_FILE


def _shapes(files: Iterator[Path]) -> dict[Path, set[str]]:
    """How files are named, by folder."""
    shapes: dict[Path, set[str]] = {}
    for file in files:
        shapes.setdefault(file.parent, set()).add(_shape(file.name))
    return shapes


def _shape(name: str) -> str:
    """A name without its numbers: slices of one series have the same."""
    return re.sub(r"\d+(\.\d+)*", "#", name.lower())


def _looks_like_a_slice(file: Path, neighbours: dict[Path, set[str]]) -> bool:
    """By its name, or as those beside it; also behind an ending that a copy in progress or a packer adds."""
    if file.name.startswith("._"):  # what macOS notes about a file of that name
        return False
    beside = neighbours.get(file.parent, set())
    if beside and re.fullmatch(r"(?=.*\d)[^.]+", file.name) and _is_empty(file):
        return True  # names of slices need not resemble each other; those of marks (COMPLETE) have no digits
    names = (file.name.lower(), file.name.lower().rpartition(".")[0])
    return any(name.endswith(_SUFFIXES) or bool(name) and _shape(name) in beside for name in names)


def _is_empty(file: Path) -> bool:
    try:
        found = file.stat()
        return stat.S_ISREG(found.st_mode) and found.st_size == 0
    except OSError:
        return False


def _why(file: Path) -> str:
    if file.stat().st_size == 0:
        return "is empty"
    return "is no DICOM file, or its beginning is missing"


def _reason(file: Path, error: InputError) -> str:
    return str(error).removeprefix(f"{file}: ").partition(". Copy")[0].rstrip(".")


def _whole_sentence(files: Sequence[LeftOut]) -> str:
    first = files[0]
    if len(files) == 1:
        return f"{first.path}: {first.reason}. Copy or export it again."
    return f"{first.path}: {first.reason}; {len(files)} files cannot be read. Copy or export them again."


# --- series ----------------------------------------------------------------------------------------


def _group_key(one: Slice) -> tuple[str, ...]:
    header = one.header
    # Without a UID, files of one folder are all that can be said to belong together.
    series = (header.patient, header.study_uid, header.uid, "" if header.uid else str(header.path.parent))
    if one.is_placed:
        return (*series, "placed")
    return (*series, "unplaced") if header.is_scan else (*series, str(header.path))


def _entries(group: list[Slice]) -> list[Series]:
    if not group[0].is_placed:
        return [_series(Part(group))]
    parts = split(group)
    doubts = _incomplete(group, parts)
    return [_series(part, (*part.doubts, *doubts)) for part in parts]


def _series(part: Part, doubts: tuple[str, ...] = ()) -> Series:
    slices = part.slices
    header = slices[0].header
    files = tuple(dict.fromkeys(one.header.path for one in slices))
    index = {file: number for number, file in enumerate(files)}
    return Series(
        uid=header.uid,
        study_uid=header.study_uid,
        number=header.number,
        description=f"{header.description} ({part.words})".strip() if part.words else header.description,
        modality=header.modality,
        files=files,
        slices=max(len(slices), header.frames if len(header.planes) == 1 else 1),
        rows=header.rows,
        columns=header.columns,
        spacing_mm=_spacing_mm(slices) if slices[0].is_placed else None,
        echo_time_ms=part.echo_time_ms,
        frames=tuple((index[one.header.path], one.frame) for one in slices),
        doubts=doubts,
        aside=_no_scan(header),
    )


def _spacing_mm(slices: list[Slice]) -> tuple[float, float, float] | None:
    plane = slices[0].plane
    gaps = np.diff([distance_mm(one) for one in slices])
    gaps = gaps[gaps > SAME_POSITION_MM]
    step = usual(gaps) if gaps.size else plane.thickness_mm
    return None if plane.spacing_mm is None or step is None else (*plane.spacing_mm, step)


def _no_scan(header: Header) -> str:
    """What an image is that is taken to plan or to document a scan; empty for a scan."""
    if "LOCALIZER" in header.image_type[2:3]:
        return "localizer"
    if "Secondary Capture" in header.sop_class:
        return "secondary capture"
    return ""


def _set_aside(series: list[Series], groups: dict[tuple[str, ...], list[Slice]]) -> list[Series]:
    """Where a scan is found, what only plans or documents it is said beside it; alone it is an image as any."""
    scans = {
        slices[0].header.uid
        for slices in groups.values()
        if slices[0].is_placed
        and slices[0].header.is_scan
        and not all(_no_scan(one.header) for one in slices)
    }
    if not scans:
        return [replace(one, aside="") for one in series]
    return series


def _judged(one: Series, left_out: Sequence[LeftOut]) -> Series:
    """A series with what the files that were left out mean for it."""
    folders = {file.parent for file in one.files}
    objects = Counter(other.reason for other in left_out if not other.is_slice)
    warnings = one.warnings
    if objects:
        listed = ", ".join(f"{count} x {kind}" for kind, count in sorted(objects.items()))
        warnings = (*warnings, f"left out, as they are no images: {listed}.")
    unreadable = [other for other in left_out if other.is_slice]
    own = [
        other
        for other in unreadable
        # A header may be cut within its UID.
        if (one.uid.startswith(other.series_uid) if other.series_uid else other.path.parent in folders)
    ]
    if one.spacing_mm is not None and own:
        more = f" ({_named(own[1:])})" if own[1:] else ""
        problem = (
            f"{own[0].path}: {own[0].reason}. {len(own)} of {len(own) + one.slices} files of this series cannot be "
            f"read{more}, so that a part of the scan would be missing. Copy or export it again, or remove what cannot "
            "be read to segment the rest."
        )
        return replace(one, warnings=warnings, problem=problem)
    if unreadable:
        what = f"{len(unreadable)} files" if len(unreadable) > 1 else "a file"
        warnings = (*warnings, f"{what} in the folder cannot be read: {_named(unreadable)}.")
    return replace(one, warnings=warnings)


def _named(files: Sequence[LeftOut]) -> str:
    more = ", ..." if len(files) > _MOST_NAMED else ""
    return "; ".join(f"{one.path.name} {one.reason}" for one in files[:_MOST_NAMED]) + more


# --- is it whole? ----------------------------------------------------------------------------------


def _incomplete(group: list[Slice], parts: Sequence[Part]) -> tuple[str, ...]:
    """Why the slices of one series may be less than was taken, by what the series says of itself."""
    header = group[0].header
    found = len({(one.header.sop_uid or one.header.path, one.frame) for one in group})
    doubts = []
    for keyword, what in (
        ("NumberOfSlices", "slices"),
        ("ImagesInAcquisition", "images in the acquisition"),
        ("NumberOfSeriesRelatedInstances", "images in the series"),
    ):
        announced = max(one.header.announced.get(keyword, 0) for one in group)
        if len(header.planes) == 1 and found < announced < 100 * found:
            doubts.append(
                f"the scan may be incomplete: its header names {announced} {what}, {found} are here"
            )
            break
    whole = max(one.header.announced.get("InConcatenationTotalNumber", 0) for one in group)
    files = len({one.header.path for one in group})
    if files < whole:
        doubts.append(f"the scan may be incomplete: it was divided into {whole} files, {files} are here")
    times = max(one.header.announced.get("NumberOfTemporalPositions", 0) for one in group)
    here = {one.plane.traits.get("time point") for one in group}
    if len(parts) > 1 and None not in here and len(here) < times:
        doubts.append(
            f"the scan may be incomplete: its header names {times} time points, {len(here)} are here"
        )
    if len(parts) == 1 and not doubts and (end := _missing_end(parts[0].slices)):
        doubts.append(end)
    if not doubts and len(parts) == 1 and (every := _every_other(parts[0].slices)):
        doubts.append(every)
    return tuple(doubts)


def _every_other(slices: list[Slice]) -> str:
    """What instance numbers with equal gaps say where slices lie as many times farther apart than the header says."""
    numbers = [one.header.instance for one in slices]
    declared_mm = slices[0].plane.thickness_mm
    if len(slices) < 3 or len(slices[0].header.planes) > 1 or None in numbers or not declared_mm:
        return ""
    steps = {abs(int(step)) for step in np.diff(np.array(numbers, int))}
    step = steps.pop()
    apart_mm = usual(np.diff([distance_mm(one) for one in slices]))
    if steps or step < 2 or abs(apart_mm - step * declared_mm) > 0.1 * declared_mm:
        return ""
    return f"the scan may be incomplete: only one of every {step} images is here, by number and distance"


def _missing_end(slices: list[Slice]) -> str:
    """What instance numbers say that begin late, where they rise or fall along the stack by equal steps."""
    numbers = [one.header.instance for one in slices]
    if len(slices) < 3 or len(slices[0].header.planes) > 1 or any(number is None for number in numbers):
        return ""
    steps = set(np.diff(np.array(numbers, int)).tolist())
    step = steps.pop()
    first = min(number for number in numbers if number is not None)
    missing = (first - 1) // abs(step) if step else 0
    # Whole stacks before it are other phases of one series; far more than there are is a numbering of its own.
    if steps or not 0 < missing < 2 * len(slices) or missing % len(slices) == 0:
        return ""
    plane = slices[0].plane
    axis = int(np.abs(normal(plane)).argmax())
    rising = normal(plane)[2] > 0  # towards the head, from the first slice to the last
    end = "first" if axis != 2 else "lower" if rising == (step > 0) else "upper"
    return f"the scan may be incomplete at the {end} end: its images are numbered from {first} on"
