"""JSRT: chest X-rays on film of the Japanese Society of Radiological Technology, with the masks of SCR.

Format of the pictures as described by JSRT; that high values are dark film, so that they must be turned over, is
what the programs of others agree on. Layout of the masks as those programs read it. Not checked against the
archives: tested with made-up files only.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from sgan_core.cohort import Case
from sgan_core.errors import InputError
from sgan_core.imaging.image import Picture
from sgan_core.imaging.readers import PICTURE_SUFFIXES, read_picture
from sgan_datasets.chest_xray import both_sides, lung_scan, lungs_at, read_lungs
from sgan_datasets.layout import absolute, files_of, find_folder, missing_pairs
from sgan_datasets.source import About, DataSet, Problem, Scan

NAME = "jsrt"
RAW_SHAPE = (2048, 2048)  # no header
RAW_MAXIMUM = 4095  # 12 bits

ABOUT = About(
    name=NAME,
    modality="xray",
    what="247 frontal chest X-rays, 154 of them with a lung nodule; masks of lungs, heart and clavicles (SCR)",
    size="247 pictures, 2048 x 2048, 12 bit, 2 GB; masks 1024 x 1024",
    source="http://db.jsrt.or.jp/eng.php",
    licence="pictures: JSRT asks users to register (its terms were not seen); masks: SCR states free for research "
    "and education, no redistribution, no commercial use, with acknowledgement and citation",
    get="Register with JSRT and download All247images. Masks: scratch from "
    "https://www.isi.uu.nl/Research/Databases/SCR/. Unpack both into one folder.",
    citation="Shiraishi et al.: Development of a digital image database for chest radiographs with and without a "
    "lung nodule. AJR 174, 2000. van Ginneken, Stegmann, Loog: Segmentation of anatomical structures in chest "
    "radiographs using supervised methods. Medical Image Analysis 10(1), 2006.",
    layout="""\
JSRT/
  All247images/JPCLN001.IMG ...             154 with nodule; raw, 16 bit big-endian, no header
  All247images/JPCNN001.IMG ...             93 without; also in Nodule154images/ and NonNodule93images/
  scratch/fold1/masks/left lung/<name>.gif  each fold holds a part of the pictures
  scratch/fold1/masks/right lung/<name>.gif
  scratch/fold2/masks/...
Raw values grow with the blackness of the film: they are turned over (4095 - value), so that the lungs are dark as
in other X-rays. Re-releases as PNG are read as they are and must show dark lungs. The lung leaves out heart,
mediastinum and what lies below the diaphragm. Each picture counts as a patient. left_lung for "left lung",
and masks/ without folds, can be read as well.""",
)

_IMAGE_NAME = re.compile(r"JPC[LN]N\d{3}")
_IMAGE_FOLDERS = (
    "All247images",
    "All247images/All247images",
    "Nodule154images",
    "NonNodule93images",
    "images",
    ".",
)
_MASK_FOLDERS = tuple(
    f"{base}{fold}masks/{{side}}{space}lung"
    for base in ("", "scratch/", "scr/", "scr/scratch/")
    for fold in ("fold1/", "fold2/", "")
    for space in (" ", "_")
)


def scan(root: Path) -> Scan:
    """Raises InputError when the folder is not this data set."""
    images = _images(root)
    masks, problems = both_sides(_masks(root, "left"), _masks(root, "right"))
    if masks:
        problems += missing_pairs(images, masks)
    else:
        problems.append(
            Problem("missing", f"{root}: no scratch/fold1/masks/left lung; all count as unlabelled.")
        )
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
    return lung_scan(NAME, cases, problems)


def read_radiograph(case: Case) -> Picture:
    """The picture with dark lungs: (1, H, W), uint16 in 0 .. 4095 from raw files, else as stored.

    Raises InputError: missing file, raw file of another size, blank picture.
    """
    path = Path(case.image)
    return read_picture(path) if not _is_raw(path) else Picture(_read_raw(path)[None])


def read_label(case: Case) -> np.ndarray:
    """Both lungs as class 1, (H, W) uint8 of the image's size, twice that of the masks for raw files."""
    return lungs_at(case, RAW_SHAPE) if _is_raw(Path(case.image)) else read_lungs(case)


def _images(root: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for candidate in _IMAGE_FOLDERS:
        if folder := find_folder(root, (candidate,)):
            # Raw files go first: they hold all grey values.
            found = files_of(folder, PICTURE_SUFFIXES) | files_of(folder, (".img",)) | found
    images = {name: found[name] for name in sorted(found) if _IMAGE_NAME.fullmatch(name)}
    if not images:
        raise InputError(
            f"{root}: not the data set {NAME}, no picture such as All247images/JPCLN001.IMG below it. "
            "Give the folder that holds All247images and scratch."
        )
    return images


def _masks(root: Path, side: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for candidate in _MASK_FOLDERS:
        if folder := find_folder(root, (candidate.format(side=side),)):
            found = files_of(folder, PICTURE_SUFFIXES) | found
    return found


def _is_raw(path: Path) -> bool:
    return path.suffix.lower() == ".img"


def _read_raw(path: Path) -> np.ndarray:
    try:
        stored = np.fromfile(path, dtype=">u2")
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Check the path.") from None
    if size != 2 * RAW_SHAPE[0] * RAW_SHAPE[1]:
        raise InputError(
            f"{path}: {size} bytes, {2 * RAW_SHAPE[0] * RAW_SHAPE[1]} are needed (2048 x 2048 x 16 bit). "
            "Get the original file again."
        )
    if stored.min() == stored.max():
        raise InputError(
            f"{path}: every value is {stored[0]}; there is nothing to segment. Get the file again."
        )
    return (RAW_MAXIMUM - np.minimum(stored, RAW_MAXIMUM)).astype(np.uint16).reshape(RAW_SHAPE)


DATA_SETS = (DataSet(ABOUT, scan, read_radiograph, read_label),)
