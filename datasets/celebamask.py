"""CelebAMask-HQ: face photographs with a mask file for each part.

Terms, counts, the 19 classes and their order: the README files of the set's own repository. The paper of
SemanticGAN (CVPR 2021) has 8 classes with background. Here they are the seven face classes left when left and
right, and both lips and the mouth between them, are joined: skin, nose, eyes, mouth, hair, eyebrows, ears.
Glasses, hat, earring, necklace, neck and cloth are background. Not verified: that the paper's classes are
these, that there are 15 folders of 2000 images, and that CelebA-HQ-to-CelebA-mapping.txt has the columns idx,
orig_idx and orig_file. Tested with made-up files only.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from sgan_core.cohort import SPLITS, Case
from sgan_core.errors import InputError
from sgan_datasets.faces import FACE_PARTS, face_cohort
from sgan_datasets.layout import (
    absolute,
    files_of,
    find_folder,
    missing_pairs,
    natural,
    picture_shape,
    read_mask,
    require_folder,
    resize_nearest,
)
from sgan_datasets.source import About, DataSet, Problem, Scan

NAME = "celebamask"
IMAGE_FOLDERS = ("CelebA-HQ-img", "CelebAMask-HQ/CelebA-HQ-img")
MASK_FOLDER = "CelebAMask-HQ-mask-anno"
MAPPING = "CelebA-HQ-to-CelebA-mapping.txt"
PARTITION = "list_eval_partition.txt"  # of CelebA: 0 training, 1 validation, 2 test

# Part files in the set's own order of classes, in which a later part covers an earlier one, and their class
# here. Accessories, neck and cloth stay background, also where they cover the face.
PARTS = {
    "skin": "skin",
    "nose": "nose",
    "eye_g": "",
    "l_eye": "eyes",
    "r_eye": "eyes",
    "l_brow": "eyebrows",
    "r_brow": "eyebrows",
    "l_ear": "ears",
    "r_ear": "ears",
    "mouth": "mouth",
    "u_lip": "mouth",
    "l_lip": "mouth",
    "hair": "hair",
    "hat": "",
    "ear_r": "",
    "neck_l": "",
    "neck": "",
    "cloth": "",
}
_VALUES = {label.name: label.value for label in FACE_PARTS}
_PART_FILE = re.compile(rf"(\d+)_({'|'.join(PARTS)})")


def scan(root: Path) -> Scan:
    """Each image with the first of its part files as label; splits are CelebA's where its lists are there.

    Raises InputError when there is no image, or when a list cannot be read.
    """
    folder = require_folder(root, IMAGE_FOLDERS, NAME)
    home = folder.parent
    images = {name: path for name, path in files_of(folder, (".jpg",)).items() if name.isdecimal()}
    if not images:
        raise InputError(
            f"{folder}: no image is called by a number, such as 0.jpg. Unpack the archive again."
        )
    mask_folder = find_folder(home, (MASK_FOLDER,))
    masks = _part_files(mask_folder) if mask_folder else {}
    problems = missing_pairs(images, masks) if mask_folder else []
    splits = _splits(home)
    cases = [
        Case(
            id=f"{NAME}-{int(name):05d}",
            patient=f"{NAME}-{int(name):05d}",
            image=absolute(image),
            label=absolute(masks[name]) if name in masks else None,
            split="train" if splits is None else splits.get(int(name), "train"),
            domain=NAME,
        )
        for name, image in images.items()
    ]
    if splits is not None:
        problems += [
            Problem("missing", f"{images[name]}: not in {MAPPING} or {PARTITION}; it is in train.")
            for name in images
            if int(name) not in splits
        ]
    return Scan(face_cohort(NAME, FACE_PARTS, cases), tuple(problems))


def _part_files(folder: Path) -> dict[str, Path]:
    """The first part file of each image number, skin before others."""
    order = {part: n for n, part in enumerate(PARTS)}
    found: dict[str, list[tuple[int, Path]]] = defaultdict(list)
    for inner in sorted(os.listdir(folder), key=natural):
        for name, path in files_of(folder / inner, (".png",)).items():
            if match := _PART_FILE.fullmatch(name):
                found[str(int(match[1]))].append((order[match[2]], path))
    return {number: min(files)[1] for number, files in found.items()}


def _splits(home: Path) -> dict[int, str] | None:
    """The split of each image number in CelebA; None when one of the two lists is not there."""
    mapping, partition = (
        next((p for p in (home / name, home.parent / name) if p.is_file()), None)
        for name in (MAPPING, PARTITION)
    )
    if mapping is None or partition is None:
        return None
    try:
        split_of = {_number(row[0]): SPLITS[int(row[1])] for row in _rows(partition)}
    except (IndexError, ValueError):
        raise InputError(
            f"{partition}: each line is a CelebA file and 0, 1 or 2. Get the file again."
        ) from None
    try:
        celeba_of = {int(row[0]): _number(row[2]) for row in _rows(mapping) if row[0].isdecimal()}
    except (IndexError, ValueError):
        raise InputError(
            f"{mapping}: each line is idx, orig_idx and orig_file. Get the file again."
        ) from None
    return {number: split_of[celeba] for number, celeba in celeba_of.items() if celeba in split_of}


def _rows(path: Path) -> list[list[str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{path}: cannot be read as text. Get the file again.") from None
    return [line.split() for line in lines if line.strip()]


def _number(file: str) -> int:
    """119614 of 119614.jpg; some lists pad it with zeros."""
    return int(file.split(".", 1)[0])


def read_parts(case: Case) -> np.ndarray:
    """Classes 0 .. 7 of a case from its part files: (H, W) uint8 of the image's shape.

    The part files are half the image's size. Raises InputError: a damaged file, or parts that differ in size.
    """
    assert case.label is not None
    first = Path(case.label)
    number = first.name.split("_", 1)[0]
    labels: np.ndarray | None = None
    for part, name in PARTS.items():
        path = first.with_name(f"{number}_{part}{first.suffix}")
        if not path.is_file():
            continue
        mask = read_mask(path)
        if labels is None:
            labels = np.zeros(mask.shape, np.uint8)
        if mask.shape != labels.shape:
            raise InputError(
                f"{path}: differs in size from the parts beside it. Get the original files again."
            )
        labels[mask] = _VALUES.get(name, 0)
    if labels is None:
        raise InputError(f"{first}: no such file. Check the path.")
    return resize_nearest(labels, picture_shape(case.image))


DATA_SETS: tuple[DataSet, ...] = (
    DataSet(
        About(
            name=NAME,
            modality="face",
            what="face photographs with masks of their parts, joined to seven classes",
            size="30000 images, 1024 x 1024; masks 512 x 512",
            source="https://github.com/switchablenorms/CelebAMask-HQ",
            licence="non-commercial research only, no copying or passing on of images or what is made from them, "
            "says the set's own agreement",
            get="download CelebAMask-HQ from the set's page; list_eval_partition.txt is part of CelebA",
            citation="Lee, Liu, Wu, Luo, MaskGAN: towards diverse and interactive facial image manipulation, CVPR "
            "2020, arXiv:1907.11922; Liu et al., Deep learning face attributes in the wild, ICCV 2015",
            layout="CelebAMask-HQ/CelebA-HQ-img/N.jpg, CelebAMask-HQ-mask-anno/{0..14}/NNNNN_PART.png (only the "
            "parts to be seen), CelebA-HQ-to-CelebA-mapping.txt. Put CelebA's list_eval_partition.txt beside them "
            "for its train, validation and test parts; without it all images are in train. Persons recur and "
            "their names are not in the set: each picture counts as a patient.",
        ),
        scan,
        read_label=read_parts,
    ),
)
