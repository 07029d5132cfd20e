"""FASSEG frontal02 (V2): frontal face photographs with coloured part masks.

Colours, layout and terms: the description that comes with the set. Its skin holds the neck and the ears, and
its hair the eyebrows, so these classes have other names than those of CelebAMask-HQ. Which pictures show one
person is not published, though persons recur, also across the folders Train and Test; five photographs were
found in both, pixel for pixel. Tested with 44 real pictures, four of them in the original BMP format.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sgan_core.cohort import Case
from sgan_core.errors import InputError
from sgan_core.imaging.readers import read_picture
from sgan_datasets.anatomy import named_label
from sgan_datasets.faces import face_cohort
from sgan_datasets.layout import absolute, files_of, find_folder, missing_pairs, require_folder, safe_id
from sgan_datasets.source import About, DataSet, Problem, Scan

NAME = "fasseg"
HOMES = ("V2", "FASSEG-repository/V2", "FASSEG-repository-master/V2", ".")
_ENDINGS = (".bmp", ".png", ".jpg", ".jpeg")

COLOURS = (  # of value 0, 1, ...
    (255, 0, 0),
    (255, 255, 0),
    (0, 255, 255),
    (0, 0, 255),
    (0, 255, 0),
    (127, 0, 0),
)
LABELS = tuple(
    named_label(value, name)
    for value, name in enumerate(("skin with ears and neck", "nose", "eyes", "mouth", "hair and eyebrows"), 1)
)
# The same photograph in Test as in Train. There are more of the same persons, in other photographs.
_SAME = {
    "fasseg-test-13": "fasseg-train-17",
    "fasseg-test-17": "fasseg-train-16",
    "fasseg-test-20": "fasseg-train-18",
    "fasseg-test-23": "fasseg-train-19",
    "fasseg-test-44": "fasseg-train-20",
}
_NEAR = 30  # of 255: what JPEG or rounding makes of a colour
_LEAST_NEAR = 0.5  # share of pixels that have one of the colours; 0.98 in the set, the rest are blended edges


def scan(root: Path) -> Scan:
    """The pictures of both folders, all in train: the same persons are in both, so no split is offered.

    Raises InputError when neither folder holds a picture.
    """
    parts = {"train": "Train", "test": "Test"}
    some = require_folder(root, [f"{home}/{part}_RGB" for home in HOMES for part in parts.values()], NAME)
    cases: list[Case] = []
    problems: list[Problem] = []
    for part, folder in parts.items():
        pictures = find_folder(some.parent, (f"{folder}_RGB",))
        masks = find_folder(some.parent, (f"{folder}_Labels",))
        images, labels = (files_of(found, _ENDINGS) if found else {} for found in (pictures, masks))
        if masks:
            problems += missing_pairs(images, labels)
        cases += [
            Case(
                id=(case_id := f"{NAME}-{part}-{safe_id(name)}"),
                patient=_SAME.get(case_id, case_id),
                image=absolute(image),
                label=absolute(labels[name]) if name in labels else None,
                domain=NAME,
            )
            for name, image in images.items()
        ]
    if not cases:
        raise InputError(f"{some}: no picture in it. Unpack the archive {NAME} again.")
    return Scan(face_cohort(NAME, LABELS, cases), tuple(problems))


def read_colours(case: Case) -> np.ndarray:
    """Classes 0 .. 5 of a case's coloured mask: (H, W) uint8, each pixel the nearest of the six colours.

    Raises InputError: missing or damaged file, or a picture in other colours.
    """
    assert case.label is not None
    picture = read_picture(case.label).array.astype(np.int32)  # (3, H, W), or (1, H, W) of a grey file
    colours = np.array(COLOURS)[:, :, None, None]  # (6, 3, 1, 1)
    distances = np.stack([((picture - colour) ** 2).sum(axis=0) for colour in colours])  # (6, H, W), squared
    if np.mean(distances.min(axis=0) <= _NEAR**2) < _LEAST_NEAR:
        raise InputError(
            f"{case.label}: not a mask in the six colours of FASSEG. Get the original file again."
        )
    return distances.argmin(axis=0).astype(np.uint8)


DATA_SETS: tuple[DataSet, ...] = (
    DataSet(
        About(
            name=NAME,
            modality="face",
            what="frontal face photographs with exact masks of their parts (frontal02)",
            size="70 images, 512 pixels high",
            source="https://github.com/massimomauro/FASSEG-repository",
            licence="none stated; the authors ask to be cited. Faces of the MIT-CBCL and FEI sets, whose terms hold",
            get="download the repository; its folder V2 is enough",
            citation="Khan, Mauro, Leonardi, Multi-class semantic segmentation of faces, ICIP 2015",
            layout="V2/{Train,Test}_RGB/K.bmp and V2/{Train,Test}_Labels/K.bmp. Labels are six colours with blended "
            "edges. Train and Test share persons, so both are in train here and no official split is offered; "
            "who is who is not published, and each picture counts as a patient, but for five photographs that are in "
            "both folders: a split by chance can put a person on both sides.",
        ),
        scan,
        read_label=read_colours,
    ),
)
