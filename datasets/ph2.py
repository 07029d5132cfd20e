"""PH2: dermoscopic images of melanocytic lesions from Matosinhos.

Counts and size: the paper's abstract and the description of the set repeated by Dataset Ninja. Layout:
as programs that read the set describe it; that masks are 1-bit BMP, one of them RGB, is from such reports.
The terms on the project's page could not be read. Tested with made-up files only.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from sgan_core.cohort import Case
from sgan_core.errors import InputError
from sgan_core.names import natural
from sgan_datasets.dermoscopy import lesion_cohort, read_lesion
from sgan_datasets.layout import absolute, find_folder, missing_pairs, require_folder
from sgan_datasets.source import About, DataSet, Problem, Scan

NAME = "ph2"
# Blanks of the official name are often replaced when the set is passed on.
FOLDERS = tuple(
    parent + name
    for parent in ("", "PH2Dataset/")
    for name in ("PH2 Dataset images", "PH2_Dataset_images", "PH2 Images")
)
_LESION = re.compile(r"IMD\d+")


def scan(root: Path) -> Scan:
    """The image of each IMDnnn folder with its mask; a picture is a patient, and all are in train.

    Raises InputError when no IMDnnn folder holds an image.
    """
    here = Path(os.path.abspath(root))
    folder = here if _names(here) else require_folder(here, FOLDERS, NAME)
    names = _names(folder)
    images = _files(folder, names, "{0}_Dermoscopic_Image", "{0}.bmp")
    masks = _files(folder, names, "{0}_lesion", "{0}_lesion.bmp")
    if not images:
        raise InputError(
            f"{folder}: no IMDnnn/IMDnnn_Dermoscopic_Image/IMDnnn.bmp in it. Unpack the archive {NAME} again."
        )
    bare = [
        Problem("missing", f"{folder / n}: no image and no mask.") for n in names if n not in images | masks
    ]
    cases = [
        Case(
            id=f"{NAME}-{name}",
            patient=f"{NAME}-{name}",
            image=absolute(image),
            label=absolute(masks[name]) if name in masks else None,
            domain=NAME,
        )
        for name, image in images.items()
    ]
    return Scan(lesion_cohort(NAME, cases), (*missing_pairs(images, masks), *bare))


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted((name for name in os.listdir(folder) if _LESION.fullmatch(name)), key=natural)


def _files(folder: Path, names: list[str], inner: str, file: str) -> dict[str, Path]:
    """The file of each lesion in one of its inner folders, where it is there."""
    found = {name: find_folder(folder / name, (inner.format(name),)) for name in names}
    files = {name: path / file.format(name) for name, path in found.items() if path}
    return {name: path for name, path in files.items() if path.is_file()}


DATA_SETS: tuple[DataSet, ...] = (
    DataSet(
        About(
            name=NAME,
            modality="dermoscopy",
            what="dermoscopic images of nevi and melanomas from Hospital Pedro Hispano, with lesion masks",
            size="200 images (80 common nevi, 80 atypical nevi, 40 melanomas), about 768 x 560",
            source="http://www.fc.up.pt/addi/",
            licence="for research and benchmarking, says the paper's abstract; the terms on the page were not seen",
            get="ask for the download on the project's page",
            citation="Mendonca, Ferreira, Marques, Marcal, Rozeira, PH2 - a dermoscopic image database for "
            "research and benchmarking, EMBC 2013",
            layout="PH2Dataset/PH2 Dataset images/IMDnnn/IMDnnn_Dermoscopic_Image/IMDnnn.bmp (24-bit BMP of "
            "several sizes) and IMDnnn/IMDnnn_lesion/IMDnnn_lesion.bmp (1-bit BMP, one is RGB); the colour "
            "regions in IMDnnn/IMDnnn_roi are not used. No patient ids: each picture counts as a patient. No "
            "official split.",
        ),
        scan,
        read_label=read_lesion,
    ),
)
