"""What data sets of skin lesions have in common: one class, its masks, the lesions of HAM10000."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from sgan_core.cohort import SPLITS, Case, Cohort, Intensity
from sgan_core.errors import InputError
from sgan_core.imaging.readers import read_labels
from sgan_datasets.anatomy import named_label
from sgan_datasets.layout import find_folder, read_csv, read_mask
from sgan_datasets.source import Problem

LESION = named_label(1, "skin lesion")
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")

# Which images show one lesion: of the HAM10000 release (Harvard Dataverse hands it out as .tab or as .csv), or
# of the ISIC 2018 challenge, Task 3, whose training images are the same.
LESION_TABLES = (
    "HAM10000_metadata.csv",
    "HAM10000_metadata.tab",
    "HAM10000_metadata",
    "ISIC2018_Task3_Training_LesionGroupings.csv",
)


def lesion_cohort(name: str, cases: Iterable[Case]) -> Cohort:
    """A cohort of pictures (0 to 255) in which the skin lesion is labelled."""
    return Cohort(name, "dermoscopy", Intensity(low=0.0, high=255.0), (LESION,), tuple(cases))


def read_lesion(case: Case) -> np.ndarray:
    """1 where a case's mask is brighter than 127, else 0: (H, W) uint8, of the mask file's size.

    The threshold is for masks whose edges have become grey. Raises InputError: missing or damaged file, or
    a mask without a bright pixel that holds darker ones all the same.
    """
    assert case.label is not None
    lesion = read_mask(case.label)
    if not lesion.any() and (highest := int(np.max(read_labels(case.label, values=None)))):  # type: ignore[arg-type]
        raise InputError(
            f"{case.label}: the brightest pixel is {highest}; the lesion is white (255) in masks of this data "
            "set. Get the original file again."
        )
    return lesion.astype(np.uint8)


def home_of(root: Path, folders: Sequence[str]) -> Path:
    """The folder that holds a data set's folders: root, or what is above it when root is one of them."""
    here = Path(os.path.abspath(root))
    return here.parent if here.name.lower() in {folder.lower() for folder in folders} else here


def find_unpacked(home: Path, folder: str) -> Path | None:
    """A folder of an archive, also when it was unpacked into a folder of its own name."""
    return find_folder(home, (f"{folder}/{folder}", folder))


def read_lesions(home: Path) -> dict[str, str] | None:
    """The lesion ("HAM_0001234") of each image ("ISIC_0031234"), from the first of ``LESION_TABLES`` there.

    None without a table. Raises InputError: a table that cannot be read or lacks a column.
    """
    table = next((home / name for name in LESION_TABLES if (home / name).is_file()), None)
    if table is None:
        return None
    image = "image" if "LesionGroupings" in table.name else "image_id"
    rows = _read_tab(table) if table.suffix == ".tab" else read_csv(table, (image, "lesion_id"))
    return {row[image]: row["lesion_id"] for row in rows if row["lesion_id"]}


def _read_tab(table: Path) -> list[dict[str, str]]:
    try:
        rows = list(csv.DictReader(table.read_text(encoding="utf-8-sig").splitlines(), delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error):
        raise InputError(f"{table}: cannot be read as a table. Get the original file again.") from None
    if not rows or not {"image_id", "lesion_id"} <= rows[0].keys():
        raise InputError(f"{table}: no columns image_id and lesion_id. Get the original file again.")
    return [{name: value or "" for name, value in row.items() if name} for row in rows]


def unknown_lesions(images: Mapping[str, Path]) -> list[Problem]:
    """The problem of HAM10000 images without any of ``LESION_TABLES``."""
    if not images:
        return []
    return [
        Problem(
            "missing",
            f"{next(iter(images.values())).parent}: none of {', '.join(LESION_TABLES)} lies beside this folder; "
            "each image counts as a patient, though several can show one lesion.",
        )
    ]


def without_repeated(cases: Sequence[Case]) -> tuple[list[Case], list[Problem]]:
    """Each id once, in the split farthest from training, and a problem for each case left out."""
    kept: dict[str, Case] = {}
    problems = []
    for case in sorted(cases, key=lambda case: SPLITS.index(case.split), reverse=True):
        first = kept.setdefault(case.id, case)
        if first is not case:
            kind = "duplicate" if first.split == case.split else "leak"
            problems.append(Problem(kind, f"{case.image}: the same image as {first.image}, which is kept."))
    return [case for case in cases if kept[case.id] is case], problems
