"""LiTS as pictures: slices of some LiTS volumes as JPEG, and grey pictures made of them.

Somebody's conversion of LiTS, not a release of its organisers: every second slice, three windows of it in the
three channels of a colour JPEG. Checked on the files: a volume's slices with a mask file follow each other
without a gap, so a slice outside them holds no liver. Not verified: the HU range of the windows.
"""

from __future__ import annotations

import re
from pathlib import Path

from sgan_core.cohort import Case, Cohort, Intensity
from sgan_core.errors import InputError
from sgan_core.imaging.image import Picture
from sgan_core.imaging.readers import read_picture
from sgan_datasets import lits
from sgan_datasets.layout import absolute, files_of, find_folder, without
from sgan_datasets.picture_slices import lost_masks
from sgan_datasets.source import About, DataSet, Problem, Scan

NAME = "lits-slices"
WINDOW = Intensity(low=-40.0, high=160.0, unit="HU")
ONE_PERSON = (7, 8, 9, 10)  # look like follow-up scans of one person
VALIDATION = (3, 12, 35, 48)  # this project's own choice, so that scores stay comparable

_SOFT_TISSUE_CHANNEL = 1
_STEM = re.compile(r"volume-(\d+)_slice_(\d+)")
# The folder of pictures, and what the folder of their masks is called.
_FOLDERS = {"train_images": "train_masks", "images": "masks"}

ABOUT = About(
    name=NAME,
    modality="ct",
    what="slices of 22 LiTS volumes as pictures, with liver and tumour masks",
    size="132 slices of 512 x 512, or 824 of 256 x 256, or all 3614 of 128 x 128 pixels",
    source="https://competitions.codalab.org/competitions/17094",
    licence=f"that of LiTS: {lits.ABOUT.licence}",
    get="a conversion of LiTS that others made; volumes in HU are better, see lits and msd-liver",
    citation=lits.ABOUT.citation,
    layout="""\
train_images/volume-N_slice_S.jpg, train_masks/volume-N_slice_S_mask.png (512 x 512, colour)
gray256/images/, gray256/masks/ and gray128/images/, gray128/masks/ (same names, grey)
The root is the parent (train_images, else gray256, else gray128 is used) or any of these folders.
Masks: 0 background, 1 liver, 2 tumour; both 1 and 2 become liver. S is the slice of the LiTS volume.
Quirks: the three channels of a colour JPEG are three windows of one slice; only the second is used, soft tissue
of about -40 to 160 HU (not verified; JPEG mixes the channels slightly). A slice without mask file holds no liver
and counts as empty, unless the volume has masks both before and after it, or none at all: then its mask is
missing. There is no spacing.
Patients: volumes 7, 8, 9 and 10 look like one person, lits-7+8+9+10; the others are lits-N. Patients 3, 12, 35
and 48 validate: this project's choice, LiTS has no such split.""",
)


def scan(root: Path) -> Scan:
    """Slices and masks by name, split by patient.

    Raises InputError when no folder with volume-N_slice_S.jpg is found.
    """
    folder = _pictures_folder(Path(absolute(root)))
    masks_folder = find_folder(folder.parent, (_FOLDERS[folder.name.lower()],))
    images = {stem: path for stem, path in files_of(folder, (".jpg",)).items() if _STEM.fullmatch(stem)}
    if not images:
        raise InputError(
            f"{folder}: not the data set {NAME}, no volume-N_slice_S.jpg was found in it. "
            "Give the folder that holds train_images, gray256 or gray128."
        )
    masks = files_of(masks_folder, ("_mask.png",)) if masks_folder else {}
    places = {stem: _numbers(stem) for stem in images}
    lost = lost_masks(places.values(), {place for stem, place in places.items() if stem in masks})
    cases = tuple(
        _case(stem, path, masks.get(stem), lost=places[stem] in lost) for stem, path in images.items()
    )
    problems = [
        Problem("missing", f"{path}: no mask belongs to it.")
        for stem, path in images.items()
        if places[stem] in lost
    ]
    problems += without(masks, images, "image")
    return Scan(Cohort(NAME, "ct", WINDOW, (lits.LIVER,), cases), tuple(problems))


def read_image(case: Case) -> Picture:
    """The soft-tissue window of a slice: (1, H, W) uint8. Raises InputError as ``read_picture``."""
    picture = read_picture(case.image)
    if picture.array.shape[0] == 1:
        return picture
    return Picture(
        picture.array[_SOFT_TISSUE_CHANNEL : _SOFT_TISSUE_CHANNEL + 1], picture.warnings, picture.doubts
    )


def _pictures_folder(root: Path) -> Path:
    if root.name.lower() in (*_FOLDERS, *_FOLDERS.values()) and find_folder(root.parent, (*_FOLDERS,)):
        root = root.parent
    candidates = (*_FOLDERS, "gray256/images", "gray128/images")
    folder = find_folder(root, candidates)
    if folder is None:
        raise InputError(
            f"{root}: not the data set {NAME}, the folder {' or '.join(candidates)} is missing. "
            "Give the folder that holds it."
        )
    return folder


def _case(stem: str, image: Path, mask: Path | None, *, lost: bool) -> Case:
    volume, position = _numbers(stem)
    person = "+".join(map(str, ONE_PERSON)) if volume in ONE_PERSON else volume
    return Case(
        id=f"lits-{volume}_slice_{position}",
        patient=f"lits-{person}",
        image=absolute(image),
        label=absolute(mask) if mask else None,
        empty=mask is None and not lost,
        split="validation" if volume in VALIDATION else "train",
        domain="ct",
    )


def _numbers(stem: str) -> tuple[int, int]:
    """Volume and slice of a name such as volume-12_slice_40."""
    match = _STEM.fullmatch(stem)
    if match is None:
        raise ValueError(stem)
    return int(match[1]), int(match[2])


DATA_SETS = (DataSet(ABOUT, scan, read_image=read_image),)
