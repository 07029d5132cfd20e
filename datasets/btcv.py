"""BTCV: abdominal CT with 13 organs ("Beyond the Cranial Vault", MICCAI 2015), as volumes or as slices of them.

``btcv`` has all organs; ``btcv-abdomen`` the four that CHAOS labels in MRI, in its order, so that a model of CT can
be tested on ``chaos-t2``; ``btcv-liver`` the one class of LiTS.

The names of folders and the values of the labels are those of the programs that read the archive (nnU-Net's
converter, MONAI's tutorial). Not verified: the archive itself and the terms on its page; the project's tests use
small made-up volumes in these layouts. The slices were checked on the files of 24 patients: masks follow each other
without a gap, and fat, bile, muscle and liver have a grey of 22, 94, 114 and 141, which is -90, 22, 54 and 96 HU in a
window of -125 to 275 HU (bile of -13 HU in one of -160 to 240 HU cannot be). Of 14 patients the number of slices is
known from the lists of another project (TransUNet): here it is one more each, which is how they got their numbers.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from sgan_core.cohort import Case, Cohort, Intensity
from sgan_core.errors import InputError
from sgan_core.imaging.image import Volume
from sgan_core.imaging.readers import read_labels
from sgan_datasets.anatomy import named_label
from sgan_datasets.chaos import ORGANS as CHAOS_ORGANS
from sgan_datasets.layout import absolute, files_of, find_folder
from sgan_datasets.lits import SOFT_TISSUE
from sgan_datasets.picture_slices import slice_cases
from sgan_datasets.source import About, DataSet, Problem, Scan

ORGANS = (  # class 1, 2, ... of btcv, as the label files have it
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "portal and splenic vein",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
)
WINDOW_OF_SLICES = Intensity(low=-125.0, high=275.0, unit="HU")
TEST_VOLUMES = range(61, 81)

_ROOTS = ("", "RawData/", "Abdomen/RawData/", "RawData/RawData/", "Task017_AbdominalOrganSegmentation/")
_IMAGES = ("Training/img", "Testing/img", "Test/img", "img", "imagesTr", "imagesTs")
_LABELS = ("Training/label", "label", "labelsTr")
_IMAGE_STEM = re.compile(r"img(\d+)|ABD_(\d+)_0000", re.IGNORECASE)
_LABEL_STEM = re.compile(r"label(\d+)|ABD_(\d+)", re.IGNORECASE)
_SLICE_STEM = re.compile(r"btcv-([0-2]?\d)_slice_(\d+)")

ABOUT = About(
    name="btcv",
    modality="ct",
    what="abdominal CT volumes in the portal venous phase, with 13 organs",
    size="30 labelled volumes for training, 20 for testing whose labels are not published; 512 x 512, 85 to 198 slices",
    source="https://www.synapse.org/#!Synapse:syn3193805/wiki/217789",
    licence="Synapse's terms, for registered users who accept them; their wording was not verified",
    get="register at the page; RawData.zip of the folder Abdomen, unpacked",
    citation=(
        "Landman, Xu, Iglesias, Styner, Langerak, Klein: Multi-Atlas Labeling Beyond the Cranial Vault - Workshop "
        "and Challenge. MICCAI 2015. doi:10.7303/syn3193805"
    ),
    layout="""\
RawData/Training/img/img0001.nii.gz, RawData/Training/label/label0001.nii.gz (1 to 10 and 21 to 40)
RawData/Testing/img/img0061.nii.gz (61 to 80), without labels
imagesTr/img0001.nii.gz, labelsTr/label0001.nii.gz, imagesTs/img0061.nii.gz: the same, as MONAI's tutorial wants them
imagesTr/ABD_001_0000.nii.gz, labelsTr/ABD_001.nii.gz, imagesTs/ABD_061_0000.nii.gz: the same, of nnU-Net (Task017)
images/btcv-PP_slice_KKK.jpg, masks/btcv-PP_slice_KKK.png: slices that others saved as 8-bit pictures
The root is the folder of these or a folder around them, as the archive unpacks; of the slices also images or masks.
Labels: 1 spleen, 2 right kidney, 3 left kidney, 4 gallbladder, 5 esophagus, 6 liver, 7 stomach, 8 aorta,
9 inferior vena cava, 10 portal and splenic vein, 11 pancreas, 12 right adrenal gland, 13 left adrenal gland.
btcv-abdomen makes 1 liver, 2 right kidney, 3 left kidney, 4 spleen of them (as chaos-t2), btcv-liver 1 liver; the
other organs become background there.
Quirks: a slice without mask file holds no organ and counts as empty, unless the patient has masks both before and
after it, or none at all: then its mask is missing. The slices show -125 to 275 HU (by the grey of fat, bile and
muscle) and have no spacing; KKK rises from the feet to the head. The topmost slice of each patient is black padding
and is left out. Some patients lack a gallbladder or a kidney.
Patients: one a volume, btcv-NNNN of imgNNNN. PP of the slices counts the 30 labelled volumes from 0: 00 is btcv-0001,
09 btcv-0010, 10 btcv-0021, 29 btcv-0040, so that slices and volume of one person never part. No official
validation patients.""",
)
_ABDOMEN = replace(
    ABOUT,
    name="btcv-abdomen",
    what="the same with the four organs of chaos-t2: liver, right kidney, left kidney, spleen",
)
_LIVER = replace(ABOUT, name="btcv-liver", what="the same with the liver alone, as lits and chaos-ct have it")


def scan(root: Path, about: About = ABOUT, organs: tuple[str, ...] = ORGANS) -> Scan:
    """Volumes and labels by their numbers, else slices and masks by theirs.

    organs: what becomes a class, in this order. Raises InputError when root holds neither.
    """
    cases, problems = _volumes(root)
    intensity = SOFT_TISSUE
    if not cases:
        intensity = WINDOW_OF_SLICES
        cases, problems = slice_cases(root, _SLICE_STEM, _person, domain="ct", unmasked_is_empty=True)
    if not cases:
        raise InputError(
            f"{root}: not the data set {about.name}, neither Training/img/imgNNNN.nii.gz nor "
            "images/btcv-PP_slice_KKK.jpg was found. Give the folder RawData, or the one that holds images."
        )
    labels = tuple(named_label(value, organ) for value, organ in enumerate(organs, start=1))
    return Scan(Cohort(about.name, "ct", intensity, labels, tuple(cases)), tuple(problems))


def read_organs(case: Case, organs: tuple[str, ...]) -> Volume | np.ndarray:
    """Some organs as classes 1, 2, ... in their order, the others as background: uint8 (I, J, K) or (H, W).

    Raises InputError: a file that cannot be read, or that holds values other than 0 to 13.
    """
    stored = read_labels(case.label or "", values=range(1, len(ORGANS) + 1))
    classes = np.zeros(len(ORGANS) + 1, np.uint8)
    for value, organ in enumerate(organs, start=1):
        classes[ORGANS.index(organ) + 1] = value
    if isinstance(stored, Volume):
        return replace(stored, array=classes[stored.array])
    return classes[stored]


def _person(volume: int) -> str:
    """The patient whose slices have this number: the labelled volumes 0001 to 0010, 0021 to 0040 counted from 0."""
    return f"btcv-{volume + 1 if volume < 10 else volume + 11:04d}"


def _volumes(root: Path) -> tuple[list[Case], list[Problem]]:
    """A case for each volume, in the order of their numbers."""
    images, problems = _by_number(root, _IMAGES, _IMAGE_STEM)
    labels, problems_of_labels = _by_number(root, _LABELS, _LABEL_STEM)
    cases = [
        Case(
            id=f"btcv-{number:04d}",
            patient=f"btcv-{number:04d}",
            image=absolute(path),
            label=absolute(labels[number]) if number in labels else None,
            split="test" if number in TEST_VOLUMES else "train",
            domain="ct",
        )
        for number, path in sorted(images.items())
    ]
    problems += problems_of_labels
    problems += [
        Problem("missing", f"{path}: no label belongs to it.")
        for number, path in sorted(images.items())
        if number not in labels and number not in TEST_VOLUMES
    ]
    problems += [
        Problem("missing", f"{path}: no image belongs to it.")
        for number, path in sorted(labels.items())
        if number not in images
    ]
    return cases, problems


def _by_number(
    root: Path, folders: tuple[str, ...], stem: re.Pattern[str]
) -> tuple[dict[int, Path], list[Problem]]:
    """Files by the number of their volume; a problem for each that is there twice or called otherwise."""
    found: dict[int, Path] = {}
    problems = []
    for folder in (find_folder(root, (above + inner,)) for above in _ROOTS for inner in folders):
        for name, path in (files_of(folder, (".nii.gz", ".nii")) if folder else {}).items():
            match = stem.fullmatch(name)
            if match is None:
                problems.append(Problem("layout", f"{path}: left out, its name has no number of a volume."))
                continue
            known = found.setdefault(int(match[1] or match[2]), path)
            if known is not path:
                problems.append(Problem("duplicate", f"{path}: left out, as {known} is the same volume."))
    return found, problems


DATA_SETS = (
    DataSet(ABOUT, scan),
    *(
        DataSet(
            about, partial(scan, about=about, organs=organs), read_label=partial(read_organs, organs=organs)
        )
        for about, organs in ((_ABDOMEN, CHAOS_ORGANS), (_LIVER, ("liver",)))
    ),
)
