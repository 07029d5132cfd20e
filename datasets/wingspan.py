"""Wingspan: chest X-rays of several devices with masks of the lungs and the heart.

``wingspan`` has the one class of the other chest X-ray sets, lung; ``wingspan-thorax`` tells the lungs apart and
adds the heart.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from sgan_core.cohort import Case
from sgan_core.imaging.readers import PICTURE_SUFFIXES
from sgan_datasets.anatomy import named_label
from sgan_datasets.chest_xray import at_size_of, both_sides, lung_scan, read_lungs
from sgan_datasets.layout import (
    absolute,
    files_of,
    missing_pairs,
    picture_shape,
    read_union,
    require_folder,
    safe_id,
)
from sgan_datasets.source import About, DataSet, Problem, Scan

NAME, THORAX = "wingspan", "wingspan-thorax"
PARTS = ("left_lung", "right_lung", "heart")  # folders of masks; class 1, 2, 3 of wingspan-thorax

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
  mask/heart/<same name>.png        wingspan-thorax only
  ctr_ground_truth.csv              cardiothoracic ratios, for benchmarks/cardiothoracic_ratio.py
Left and right are the patient's. The lung leaves out the heart. The first numbers of the UID tell the
maker of the device and become the domain.""",
)
ABOUT_THORAX = replace(
    ABOUT,
    name=THORAX,
    what="the same with three classes: left lung, right lung, heart",
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


def scan_thorax(root: Path) -> Scan:
    """As ``scan``, with the left lung, the right lung and the heart. Raises InputError."""
    lungs = scan(root)
    problems = list(lungs.problems)
    cases = []
    for case in lungs.cohort.cases:
        heart = _mask(case, "heart") if case.labelled else None
        if heart is not None and not heart.is_file():
            problems.append(Problem("missing", f"{heart}: no mask of the heart."))
            case = replace(case, label=None)
        cases.append(case)
    labels = tuple(named_label(value, part.replace("_", " ")) for value, part in enumerate(PARTS, start=1))
    cohort = replace(lungs.cohort, name=THORAX, labels=labels, cases=tuple(cases))
    return Scan(cohort, tuple(problems))


def read_thorax(case: Case) -> np.ndarray:
    """Left lung 1, right lung 2, heart 3, (H, W) uint8 of the image's size; a pixel of two masks is the later one's.

    Raises InputError: missing or damaged file, another aspect ratio.
    """
    labels = np.zeros(picture_shape(case.image), np.uint8)
    for value, part in enumerate(PARTS, start=1):
        file = _mask(case, part)
        labels[at_size_of(case, read_union([file]), file) > 0] = value
    return labels


def _mask(case: Case, part: str) -> Path:
    """The mask of a part of a labelled case, whose label is that of the left lung."""
    left = Path(case.label or "")
    return left.parent.with_name(part) / left.name


def _maker(uid: str) -> str:
    """The part of a DICOM UID that stands for an organisation: 1.2.COUNTRY.ORGANISATION, else three numbers."""
    numbers = uid.split(".")
    return ".".join(numbers[: 4 if numbers[:2] == ["1", "2"] else 3])


DATA_SETS = (
    DataSet(ABOUT, scan, read_label=read_lungs),
    DataSet(ABOUT_THORAX, scan_thorax, read_label=read_thorax),
)
