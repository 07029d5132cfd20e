"""Task03_Liver of the Medical Segmentation Decathlon: the LiTS volumes in the Decathlon's layout.

The paper of LiTS says that the Decathlon's liver task is its data; the licence is the one that the Decathlon
states for all its tasks. Not verified: the archive itself and the wording of its dataset.json. The project's
tests use small made-up files in this layout.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from sgan_core.cohort import Case, Cohort
from sgan_core.errors import InputError
from sgan_datasets.layout import absolute, files_of, missing_pairs, require_folder
from sgan_datasets.lits import LIVER, SOFT_TISSUE
from sgan_datasets.source import About, DataSet, Problem, Scan

NAME = "msd-liver"
_ENDINGS = (".nii.gz", ".nii")
_STEM = re.compile(r"liver_(\d+)")

ABOUT = About(
    name=NAME,
    modality="ct",
    what="abdominal CT volumes with liver and liver tumours: LiTS, as Task03_Liver of the Decathlon",
    size="131 labelled volumes for training, 70 for testing whose labels are not published",
    source="http://medicaldecathlon.com",
    licence="CC BY-SA 4.0, as the Decathlon states for all its data (LiTS itself is non-commercial)",
    get="Task03_Liver.tar from the page, unpacked",
    citation=(
        "Antonelli et al.: The Medical Segmentation Decathlon. Nature Communications 13, 4128, 2022. "
        "doi:10.1038/s41467-022-30695-9; and the paper of LiTS"
    ),
    layout="""\
Task03_Liver/dataset.json
Task03_Liver/imagesTr/liver_N.nii.gz, labelsTr/liver_N.nii.gz (0 to 130)
Task03_Liver/imagesTs/liver_N.nii.gz, without labels
Labels: 0 background, 1 liver, 2 cancer; both 1 and 2 become liver.
Quirks: files that begin with "._" (left by macOS in the archive) are no images and are skipped.
These are the volumes of LiTS: never add lits, lits-slices or 3D-IRCADb as other patients. What is said there
of volumes 7 to 10 and 28 to 47 holds here as far as the numbers agree, which is not verified. Patients are
called msd-liver-N; no list of them is published, so each volume counts as one.""",
)


def scan(root: Path) -> Scan:
    """Volumes and labels of the folder Task03_Liver, compared with what its dataset.json lists.

    Raises InputError: no imagesTr with liver_N.nii.gz, or a dataset.json that cannot be read.
    """
    images_folder = require_folder(
        root, ("imagesTr", "Task03_Liver/imagesTr", "Task03_Liver/Task03_Liver/imagesTr"), NAME
    )
    folder = images_folder.parent
    images = _liver(files_of(images_folder, _ENDINGS))
    if not images:
        raise InputError(
            f"{images_folder}: not the data set {NAME}, no liver_N.nii.gz was found in it. "
            "Give the folder Task03_Liver."
        )
    labels = _liver(files_of(folder / "labelsTr", _ENDINGS))
    tests = _liver(files_of(folder / "imagesTs", _ENDINGS))
    cases = [_case(stem, path, labels.get(stem), "train") for stem, path in images.items()]
    cases += [_case(stem, path, None, "test") for stem, path in tests.items() if stem not in images]
    problems = missing_pairs(images, labels) + _not_there(folder, images.keys() | tests.keys())
    problems += [
        Problem("leak", f"{tests[stem]}: left out, as imagesTr holds {stem} as well.")
        for stem in tests
        if stem in images
    ]
    return Scan(Cohort(NAME, "ct", SOFT_TISSUE, (LIVER,), tuple(cases)), tuple(problems))


def _liver(files: dict[str, Path]) -> dict[str, Path]:
    return {stem: path for stem, path in files.items() if _STEM.fullmatch(stem)}


def _case(stem: str, image: Path, label: Path | None, split: str) -> Case:
    name = stem.replace("liver_", "msd-liver-")
    return Case(
        id=name,
        patient=name,
        image=absolute(image),
        label=absolute(label) if label else None,
        split=split,
        domain="ct",
    )


def _not_there(folder: Path, stems: set[str]) -> list[Problem]:
    """A problem for each image that dataset.json lists and the folders lack, or for a missing dataset.json."""
    file = folder / "dataset.json"
    if not file.is_file():
        return [Problem("missing", f"{file}: no such file; whether all volumes are there is unknown.")]
    listed = _listed(file)
    return [
        Problem("missing", f"{folder / entry}: listed in dataset.json, but not there.")
        for entry in listed
        if re.sub(r"\.nii(\.gz)?$", "", Path(entry).name) not in stems
    ]


def _listed(file: Path) -> list[str]:
    """The images that dataset.json lists, relative to its folder."""
    try:
        entry: Any = json.loads(file.read_text(encoding="utf-8"))
        training = [pair["image"] for pair in entry["training"]]
        images = [str(image) for image in (*training, *entry["test"])]
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file}: not the dataset.json of {NAME} ({type(error).__name__}: {error}). Unpack the archive again."
        ) from None
    return images


DATA_SETS = (DataSet(ABOUT, scan),)
