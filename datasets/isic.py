"""ISIC challenges 2016, 2017 and 2018: lesion segmentation (Part 1, Task 1).

Folder names as in the official archives. Counts: challenge pages (2016; 2017 training), arXiv:1710.05006 and
the released lists. The pages of 2017 write ``_Segmentation``, the files of 2017 are called ``_segmentation``;
either is taken. Not verified against the organisers' own text: the licences of 2016 and 2018 (listed by
others), and that the lesion names of ``ISIC2018_Task3_Training_LesionGroupings.csv`` are those of
``HAM10000_metadata``. Tested with real images in all three layouts; superpixels, metadata tables, masks of
the 2018 test part and lesion groupings with made-up files only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sgan_core.cohort import Case
from sgan_core.errors import InputError
from sgan_datasets.dermoscopy import (
    IMAGE_ENDINGS,
    find_unpacked,
    home_of,
    lesion_cohort,
    read_lesion,
    read_lesions,
    unknown_lesions,
    without_repeated,
)
from sgan_datasets.layout import absolute, files_of, missing_pairs, require_folder
from sgan_datasets.source import About, DataSet, Problem, Scan

# The archive's own names: one image has one name in all challenges. Superpixels and tables are no image.
_IMAGE_ID = re.compile(r"ISIC_\d{7}")


@dataclass(frozen=True)
class Part:
    """A part of a challenge: the folder of its images and, if there are any, of its masks."""

    split: str
    images: str
    masks: str | None = None


PARTS_2016 = (
    Part("train", "ISBI2016_ISIC_Part1_Training_Data", "ISBI2016_ISIC_Part1_Training_GroundTruth"),
    Part("test", "ISBI2016_ISIC_Part1_Test_Data", "ISBI2016_ISIC_Part1_Test_GroundTruth"),
)
PARTS_2017 = (
    Part("train", "ISIC-2017_Training_Data", "ISIC-2017_Training_Part1_GroundTruth"),
    Part("validation", "ISIC-2017_Validation_Data", "ISIC-2017_Validation_Part1_GroundTruth"),
    Part("test", "ISIC-2017_Test_v2_Data", "ISIC-2017_Test_v2_Part1_GroundTruth"),
)
PARTS_2018 = (
    Part("train", "ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"),
    Part("validation", "ISIC2018_Task1-2_Validation_Input", "ISIC2018_Task1_Validation_GroundTruth"),
    Part("test", "ISIC2018_Task1-2_Test_Input", "ISIC2018_Task1_Test_GroundTruth"),
)
TASK3 = Part("train", "ISIC2018_Task3_Training_Input")  # HAM10000, unlabelled here


def isic_images(folder: Path) -> dict[str, Path]:
    """The images in a folder whose names are ids of the ISIC archive."""
    return {name: path for name, path in files_of(folder, IMAGE_ENDINGS).items() if _IMAGE_ID.fullmatch(name)}


def isic_cases(
    name: str, split: str, images: Mapping[str, Path], masks: Mapping[str, Path], lesions: Mapping[str, str]
) -> list[Case]:
    """A case for each image; id is the archive's, patient the lesion where it is known, else the image."""
    return [
        Case(
            id=image_id,
            patient=lesions.get(image_id, image_id),
            image=absolute(image),
            label=absolute(masks[image_id]) if image_id in masks else None,
            split=split,
            domain=name,
        )
        for image_id, image in images.items()
    ]


def _scan(root: Path, *, name: str, parts: tuple[Part, ...]) -> Scan:
    home = home_of(root, [folder for part in parts for folder in (part.images, part.masks) if folder])
    some = require_folder(home, [part.images for part in parts], name)
    lesions = read_lesions(home) if TASK3 in parts else {}
    cases: list[Case] = []
    problems: list[Problem] = []
    for part in parts:
        folder = find_unpacked(home, part.images)
        images = isic_images(folder) if folder else {}
        mask_folder = find_unpacked(home, part.masks) if part.masks else None
        masks = files_of(mask_folder, ("_segmentation.png",)) if mask_folder else {}
        cases += isic_cases(name, part.split, images, masks, lesions or {})
        if mask_folder:
            problems += missing_pairs(images, masks)
        if part is TASK3 and lesions is None:
            problems += unknown_lesions(images)
    if not cases:
        raise InputError(
            f"{some}: no image is called ISIC_ and seven digits. Unpack the archive {name} again."
        )
    kept, repeated = without_repeated(cases)
    return Scan(lesion_cohort(name, kept), (*problems, *repeated))


_SHARED_IDS = (
    "The challenges share images: most ids of 2016 and 2017 are also in 2018, partly with another mask and in "
    "another part. An image has the same case id and patient in all of them, so use one of them, or let no id "
    "be in two splits."
)
_NO_PATIENTS = "No patient ids are published; each image counts as a patient."

ISIC2016 = DataSet(
    About(
        name="isic2016",
        modality="dermoscopy",
        what="dermoscopic images with lesion masks, ISIC challenge at ISBI 2016, Part 1",
        size="900 training and 379 test images",
        source="https://challenge.isic-archive.com/data/#2016",
        licence="CC-0, says the ISIC 2018 challenge site of the two challenges before it",
        get="download the Part 1 training and test data and ground truth from the challenge's data page",
        citation="Gutman et al., Skin lesion analysis toward melanoma detection, arXiv:1605.01397, 2016",
        layout="ISBI2016_ISIC_Part1_{Training,Test}_Data/ISIC_nnnnnnn.jpg and "
        "ISBI2016_ISIC_Part1_{Training,Test}_GroundTruth/ISIC_nnnnnnn_Segmentation.png (capital S). "
        f"{_NO_PATIENTS} {_SHARED_IDS}",
    ),
    partial(_scan, name="isic2016", parts=PARTS_2016),
    read_label=read_lesion,
)
ISIC2017 = DataSet(
    About(
        name="isic2017",
        modality="dermoscopy",
        what="dermoscopic images with lesion masks, ISIC challenge at ISBI 2017, Part 1",
        size="2000 training, 150 validation and 600 test images",
        source="https://challenge.isic-archive.com/data/#2017",
        licence="CC-0, says the ISIC 2018 challenge site of the two challenges before it",
        get="download the data and Part 1 ground truth of all parts from the challenge's data page",
        citation="Codella et al., Skin lesion analysis toward melanoma detection, ISBI 2018, arXiv:1710.05006",
        layout="ISIC-2017_{Training,Validation,Test_v2}_Data/ISIC_nnnnnnn.jpg and "
        "ISIC-2017_{Training,Validation,Test_v2}_Part1_GroundTruth/ISIC_nnnnnnn_segmentation.png. The data "
        f"folders also hold ISIC_nnnnnnn_superpixels.png and a metadata table, which are not used. "
        f"{_NO_PATIENTS} {_SHARED_IDS}",
    ),
    partial(_scan, name="isic2017", parts=PARTS_2017),
    read_label=read_lesion,
)
ISIC2018 = DataSet(
    About(
        name="isic2018",
        modality="dermoscopy",
        what="dermoscopic images with lesion masks, ISIC challenge 2018, Task 1; those of Task 3 unlabelled",
        size="2594 training, 100 validation and 1000 test images; 10015 more of Task 3 (HAM10000)",
        source="https://challenge.isic-archive.com/data/#2018",
        licence="CC BY-NC 4.0, as Dataset Ninja lists it; the organisers' own text was not seen. Task 3 images: "
        "see ham10000",
        get="download Task 1-2 input, Task 1 ground truth and, as unlabelled images, Task 3 training input with "
        "its lesion groupings from the challenge's data page",
        citation="Codella et al., Skin lesion analysis toward melanoma detection 2018, arXiv:1902.03368; "
        "Tschandl et al., The HAM10000 dataset, Sci. Data 5:180161, 2018",
        layout="ISIC2018_Task1-2_{Training,Validation,Test}_Input/ISIC_nnnnnnn.jpg, "
        "ISIC2018_Task1_{Training,Validation,Test}_GroundTruth/ISIC_nnnnnnn_segmentation.png (the test part may "
        "have none), ISIC2018_Task3_Training_Input/ISIC_nnnnnnn.jpg. Task 3 images show some lesions several "
        "times: the lesion is the patient when ISIC2018_Task3_Training_LesionGroupings.csv or "
        f"HAM10000_metadata.csv lies beside the folders, as in ham10000. {_NO_PATIENTS} {_SHARED_IDS}",
    ),
    partial(_scan, name="isic2018", parts=(*PARTS_2018, TASK3)),
    read_label=read_lesion,
)

DATA_SETS: tuple[DataSet, ...] = (ISIC2016, ISIC2017, ISIC2018)
