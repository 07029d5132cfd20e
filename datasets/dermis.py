"""DermIS and DermQuest: photographs of lesions, as the Waterloo VIP lab released them for skin cancer detection.

These are photographs of the skin without a dermatoscope; they share the dermoscopy preset (RGB, 0 to 255).
Folder and file names are those that programs which read the set use. Not verified, as the lab's page could
not be read: its address, the number of images, the terms, the paper to cite, and whether ``*_contour.png`` is
the filled lesion (as those programs take it) or its outline; both are read. Tested with made-up files only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from scipy import ndimage

from sgan_core.cohort import Case
from sgan_core.errors import InputError
from sgan_datasets.dermoscopy import lesion_cohort, read_lesion, without_repeated
from sgan_datasets.layout import absolute, files_of, missing_pairs, picture_shape, resize_nearest
from sgan_datasets.source import About, DataSet, Problem, Scan

DIAGNOSES = ("melanoma", "notmelanoma")
_LINE = 100  # area / (largest distance to the edge)^2: a disc has 3, an ellipse of 10 to 1 has 31
_GAP = 8  # pixels that an outline may miss on either side


def _scan(root: Path, *, name: str) -> Scan:
    cases: list[Case] = []
    problems: list[Problem] = []
    for diagnosis, folder in _folders(root, name):
        images, contours = files_of(folder, ("_orig.jpg",)), files_of(folder, ("_contour.png",))
        problems += missing_pairs(images, contours)
        cases += [
            Case(
                id=f"{name}-{diagnosis}-{stem}",
                patient=f"{name}-{diagnosis}-{stem}",
                image=absolute(image),
                label=absolute(contours[stem]) if stem in contours else None,
                domain=name,
            )
            for stem, image in images.items()
        ]
    if not cases:
        raise InputError(
            f"{root}: not the data set {name}, no melanoma/{name}/*_orig.jpg or notmelanoma/{name}/*_orig.jpg is "
            "below it. Give the folder that the archives were unpacked into."
        )
    kept, repeated = without_repeated(cases)
    return Scan(lesion_cohort(name, kept), (*problems, *repeated))


def _folders(root: Path, name: str) -> Iterator[tuple[str, Path]]:
    """The folders DIAGNOSIS/NAME below root, wherever the archives put them; case differs among them."""
    for parent, folders, _ in os.walk(os.path.abspath(root)):
        folders.sort()
        here = Path(parent)
        if here.name.lower() == name and here.parent.name.lower() in DIAGNOSES:
            yield here.parent.name.lower(), here


def read_contour(case: Case) -> np.ndarray:
    """1 inside a case's contour, else 0: (H, W) uint8 of the image's shape.

    A mask that is already filled stays as it is (bright is lesion); an outline is filled. Raises InputError:
    missing or damaged file, or an outline that does not close.
    """
    drawn = read_lesion(case).astype(bool)
    try:
        lesion = _filled(drawn)
    except ValueError:
        raise InputError(
            f"{case.label}: an outline that does not close. Get the original file again."
        ) from None
    return resize_nearest(lesion.astype(np.uint8), picture_shape(case.image))


def _filled(drawn: np.ndarray) -> np.ndarray:
    """The area (H, W) bool that is drawn or outlined. Raises ValueError when an outline does not close."""
    if not _is_line(drawn):
        return drawn
    filled = ndimage.binary_fill_holes(drawn)
    if _is_line(filled):
        disc = np.hypot(*np.mgrid[-_GAP : _GAP + 1, -_GAP : _GAP + 1]) <= _GAP
        wide = ndimage.binary_dilation(
            np.pad(drawn, 2 * _GAP), disc
        )  # padded: the frame must not eat it below
        filled = ndimage.binary_erosion(ndimage.binary_fill_holes(wide), disc)
        filled = filled[2 * _GAP : -2 * _GAP, 2 * _GAP : -2 * _GAP]
    if _is_line(filled):
        raise ValueError
    return filled


def _is_line(drawn: np.ndarray) -> bool:
    """Whether what is drawn is thin for its area."""
    # Padded: the frame of the picture is an edge too.
    depth = float(ndimage.distance_transform_edt(np.pad(drawn, 1)).max())
    return bool(depth > 0 and np.count_nonzero(drawn) / depth**2 > _LINE)


def _data_set(name: str, site: str) -> DataSet:
    return DataSet(
        About(
            name=name,
            modality="dermoscopy",
            what=f"photographs of melanomas and other lesions from {site}, with lesion contours",
            size="about 206 photographs in dermis and dermquest together, not verified",
            source="https://uwaterloo.ca/vision-image-processing-lab/research-demos/skin-cancer-detection",
            licence=f"not verified; the photographs come from {site}, whose terms hold",
            get="download both archives (Skin Image Data Set-1 and -2) from the lab's page",
            citation="Glaister, Wong, Clausi, Segmentation of skin lesions from digital images using joint "
            "statistical texture distinctiveness, IEEE Trans. Biomed. Eng. 61, 2014",
            layout=f"Skin Image Data Set-1/skin_data/melanoma/{name}/NAME_orig.jpg and NAME_contour.png, "
            f"Skin Image Data Set-2/skin_data/notmelanoma/{name}/...; upper and lower case differ (dermIS). The "
            "diagnosis is part of the case id. No patient ids: each picture counts as a patient. No official "
            "split.",
        ),
        partial(_scan, name=name),
        read_label=read_contour,
    )


DATA_SETS: tuple[DataSet, ...] = (_data_set("dermis", "dermis.net"), _data_set("dermquest", "dermquest.com"))
