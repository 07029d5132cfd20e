"""What is to be segmented among files and folders, and what is left out."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgan_core.errors import InputError
from sgan_core.files import FINISHED
from sgan_core.imaging.dicom import Series, find_series, is_dicom
from sgan_core.imaging.dicom.search import Found, LeftOut, search
from sgan_core.imaging.readers import PICTURE_SUFFIXES, VOLUME_SUFFIXES, image_suffix

_LARGEST_RECORD = 256 << 20  # bytes of a run.json that is looked into
_RESULT_ENDINGS = ("_seg", "_seg.seg", "_recon", "_prob")


@dataclass(frozen=True)
class Input:
    """One image to segment: a file, or what was found in a DICOM folder."""

    name: str  # what its results are called
    path: Path
    found: tuple[Series, ...] = ()  # DICOM series, one of which is wanted
    problem: str = ""  # why it cannot be read, when the search has seen that already


@dataclass(frozen=True)
class Inputs:
    """What a search has found."""

    inputs: list[Input]
    left_out: list[LeftOut]


def find_inputs(paths: Sequence[Path]) -> Inputs:
    """The images among files and folders.

    A folder holds image files (not recursive, sorted by name), or is a DICOM folder, or holds DICOM folders:
    one study below it, in whatever folders, is one input; several studies in folders of their own are one
    input a folder, and DICOM pictures (X-rays, photographs) one input a file. What looks like an image and cannot be
    read is an input that fails, or a problem of the series that it belongs to.
    Left out are in a folder: results of an earlier run that a run.json beside them lists; ``X_seg.*`` beside ``X``;
    names that end like a copy in progress; DICOM objects that are no images. Named one by one files are taken.
    Raises InputError for a missing path, for a folder without an image and for two inputs of one name.
    """
    found: list[Input] = []
    left_out: list[LeftOut] = []
    for path in paths:
        if path.is_dir():
            inside, beside = _inside(path)
            if not inside:
                known = ", ".join(VOLUME_SUFFIXES + PICTURE_SUFFIXES)
                raise InputError(f"{path}: no image in this folder. Supported are DICOM, {known}.")
            found += inside
            left_out += beside
        elif not path.exists():
            raise InputError(f"{path}: no such file or folder. Check the path.")
        elif is_dicom(path):
            found.append(Input(case_name(path), path, tuple(find_series(path))))
        else:
            found.append(Input(case_name(path), path))
    # As file systems compare names that know no capitals (Windows, macOS) or other spellings of an accent (macOS).
    names = Counter(unicodedata.normalize("NFC", one.name).casefold() for one in found)
    for one in found:
        if names[unicodedata.normalize("NFC", one.name).casefold()] > 1:
            raise InputError(
                f"two inputs are named {one.name!r}: one result would overwrite the other. Rename one."
            )
    return Inputs(found, left_out)


def case_name(path: Path) -> str:
    """The file's name without its (double) suffix."""
    return path.name[: len(path.name) - len(image_suffix(path))] or path.name


# --- image files of a folder -----------------------------------------------------------------------


def _inside(folder: Path) -> tuple[list[Input], list[LeftOut]]:
    results = own_results(folder)
    inputs, left_out = [], []
    files = sorted(file for file in folder.iterdir() if not file.is_dir() and not file.name.startswith("."))
    cases = {case_name(file) for file in files if _is_image(file)}
    for file in files:
        if file.name in results:
            left_out.append(
                LeftOut(file, "is a result of an earlier run, by the run.json beside it", is_slice=False)
            )
        elif _is_image(file):
            case = case_name(file)
            original = case.removesuffix(".seg").removesuffix("_seg")
            if original != case and original in cases:
                left_out.append(LeftOut(file, f"is named as the segmentation of {original}", is_slice=False))
            elif not file.exists():
                left_out.append(LeftOut(file, "is a link to a file that is not here"))
                inputs.append(
                    Input(case, file, problem=f"{file}: a link to a file that is not here. Get it first.")
                )
            else:
                inputs.append(Input(case, file))
        elif _is_image(file.with_suffix("")) and not is_dicom(file):
            left_out.append(
                LeftOut(file, f"is an image by its name but for the ending {file.suffix}", is_slice=False)
            )
    dicom, beside = _dicom_inputs(folder, {one.path for one in inputs})
    known = {one.path for one in left_out}
    return inputs + dicom, left_out + [one for one in beside if one.path not in known]


def _is_image(path: Path) -> bool:
    return image_suffix(path) in VOLUME_SUFFIXES + PICTURE_SUFFIXES


def own_results(folder: Path) -> set[str]:
    """The names of files in a folder that its run.json lists as results of its cases, or the notes of a run cut short.

    Only names that a case's results can have count: a foreign or damaged record hides no image.
    """
    names: set[str] = set()
    for record in (folder / "run.json", *(folder / FINISHED).glob("*.json")):
        try:
            if not record.is_file() or record.stat().st_size > _LARGEST_RECORD:
                continue
            stored = json.loads(record.read_text(encoding="utf-8"))
            cases = stored["cases"] if record.parent == folder else [stored["case"]]
            names |= {name for case in cases for name in _results_of(case)}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
    return names


def _results_of(case: dict[str, Any]) -> set[str]:
    outputs = [
        case.get("output"),
        case.get("reconstruction_output"),
        *(case.get("probability_outputs") or []),
    ]
    names = {Path(output).name for output in outputs if isinstance(output, str)}
    name = case["case"]
    return {
        one for one in names if one.startswith(f"{name}_") and case_name(Path(one)).endswith(_RESULT_ENDINGS)
    }


# --- DICOM -----------------------------------------------------------------------------------------


def _dicom_inputs(folder: Path, others: Set[Path]) -> tuple[list[Input], list[LeftOut]]:
    """The DICOM images of a folder, and what lies beside them. others: files that are inputs by their names."""
    found = search(folder)
    found = Found(found.series, [one for one in found.left_out if one.path not in others])
    # What makes a series that is found unreadable is told with it.
    lost = [one for one in found.left_out if one.is_slice and not any(_spoils(one, s) for s in found.series)]
    if found.series and all(_is_picture(one) for one in found.series):
        inputs = [Input(case_name(one.files[0]), one.files[0], (one,)) for one in found.series]
        return inputs + [_failing(case_name(one.path), one.path, [one]) for one in lost], found.left_out
    inside: dict[Path, list[Series]] = {}
    for series in found.series:
        inside.setdefault(_top_folder(series.files[0], folder), []).append(series)
    without: dict[Path, list[LeftOut]] = {}
    for one in lost:
        without.setdefault(_top_folder(one.path, folder), []).append(one)
    failing = {
        top: files for top, files in without.items() if top not in inside and (top != folder or not inside)
    }
    if not failing and (folder in inside or len({one.study_uid for one in found.series}) < 2):
        whole = [Input(folder.resolve().name, folder, tuple(found.series))] if found.series else []
        return whole, found.left_out
    inputs = [Input(_name(child), child, tuple(inside[child])) for child in sorted(inside)]
    return inputs + [_failing(_name(top), top, failing[top]) for top in sorted(failing)], found.left_out


def _name(folder: Path) -> str:
    return folder.resolve().name


def _spoils(one: LeftOut, series: Series) -> bool:
    """Whether a file is why a series cannot be read."""
    same = (
        one.series_uid == series.uid
        if one.series_uid
        else one.path.parent in {f.parent for f in series.files}
    )
    return bool(series.problem) and same


def _failing(name: str, path: Path, files: Sequence[LeftOut]) -> Input:
    first = files[0]
    more = f" ({len(files)} such files)" if len(files) > 1 else ""
    return Input(name, path, problem=f"{first.path}: {first.reason}{more}. Copy or export it again.")


def _is_picture(series: Series) -> bool:
    return series.slices == 1 and series.spacing_mm is None


def _top_folder(file: Path, folder: Path) -> Path:
    """The folder directly inside ``folder`` that holds the file, or ``folder`` itself."""
    below = file.relative_to(folder).parts
    return folder / below[0] if len(below) > 1 else folder
