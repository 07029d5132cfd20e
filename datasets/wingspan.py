"""Wingspan: chest X-rays of several devices with masks of the lungs and the heart."""

from __future__ import annotations

from pathlib import Path

from sgan_core.cohort import Case
from sgan_core.imaging.readers import PICTURE_SUFFIXES
from sgan_datasets.chest_xray import both_sides, lung_scan, read_lungs
from sgan_datasets.layout import absolute, files_of, missing_pairs, require_folder, safe_id
from sgan_datasets.source import About, DataSet, Scan

NAME = "wingspan"

ABOUT = About(
    name=NAME,
    modality="xray",
    what="175 frontal chest X-rays of 175 patients from several devices, with lung and heart masks",
    size="175 pictures, 512 x 512, 8 bit, about 40 MB",
    source="https://github.com/eveningdong/cardiothoracic_ratio_estimation_dataset",
    licence="MIT (Copyright 2020 Nanqing Dong), stated by the authors in the repository",
    get="Clone or download the repository; the data are in its folder wingspan.",
    citation="Dong, Kampffmeyer, Liang, Wang, Dai, Xing: Unsupervised domain adaptation for automatic "
    "estimation of cardiothoracic ratio. MICCAI 2018. Dong, Xu, Liang, Jiang, Dai, Xing: Neural architecture "
    "search for adversarial medical image segmentation. MICCAI 2019.",
    layout="""\
wingspan/
  png/<DICOM UID>.png               one a patient, squashed to a square
  mask/left_lung/<same name>.png    grey edges: lung is what is brighter than 127
  mask/right_lung/<same name>.png
  mask/heart/<same name>.png        not used
  ctr_ground_truth.csv              cardiothoracic ratios, not used
Left and right are the patient's. The lung leaves out the heart. The first numbers of the UID tell the
maker of the device and become the domain.""",
)


def scan(root: Path) -> Scan:
    """Raises InputError when the folder is not this data set."""
    folder = require_folder(root, ("png", "wingspan/png"), NAME)
    mask_folder = require_folder(folder.parent, ("mask",), NAME)
    images = files_of(folder, PICTURE_SUFFIXES)
    masks, problems = both_sides(
        files_of(mask_folder / "left_lung", PICTURE_SUFFIXES),
        files_of(mask_folder / "right_lung", PICTURE_SUFFIXES),
    )
    cases = [
        Case(
            id=safe_id(f"{NAME}-{uid}"),
            patient=f"{NAME}-{uid}",
            image=absolute(image),
            label=absolute(masks[uid]) if uid in masks else None,
            domain=f"{NAME}-{_maker(uid)}",
        )
        for uid, image in images.items()
    ]
    return lung_scan(NAME, cases, [*problems, *missing_pairs(images, masks)], squash=True)


def _maker(uid: str) -> str:
    """The part of a DICOM UID that stands for an organisation: 1.2.COUNTRY.ORGANISATION, else three numbers."""
    numbers = uid.split(".")
    return ".".join(numbers[: 4 if numbers[:2] == ["1", "2"] else 3])


DATA_SETS = (DataSet(ABOUT, scan, read_label=read_lungs),)
