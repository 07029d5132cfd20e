"""Shenzhen Hospital: chest X-rays with and without tuberculosis, and lung masks that others drew for most.

Layout as commonly described for the release and for the masks; not checked against the archives: tested with
made-up files only.
"""

from __future__ import annotations

import re
from pathlib import Path

from sgan_core.cohort import Case
from sgan_core.errors import InputError
from sgan_datasets.chest_xray import lung_scan, read_lungs
from sgan_datasets.layout import absolute, files_of, find_folder, require_folder, without
from sgan_datasets.source import About, DataSet, Problem, Scan

NAME = "shenzhen"

ABOUT = About(
    name=NAME,
    modality="xray",
    what="662 frontal chest X-rays, 336 of them with tuberculosis; 566 with lung masks",
    size="662 pictures of about 3000 x 3000, PNG",
    source="https://lhncbc.nlm.nih.gov/LHC-downloads/downloads.html#tuberculosis-image-data-sets",
    licence="pictures: available to the research community, says the National Library of Medicine; masks: CC "
    "BY-NC-SA 4.0 by their authors, as others report it (their page was not seen)",
    get="Download ChinaSet_AllFiles.zip from the page, and the masks from "
    "https://www.kaggle.com/datasets/yoctoman/shcxr-lung-mask; unpack the masks beside CXR_png.",
    citation="Jaeger et al.: Two public chest X-ray datasets for computer-aided screening of pulmonary diseases. "
    "Quantitative Imaging in Medicine and Surgery 4(6), 2014. Masks: Stirenko et al.: Chest X-ray analysis of "
    "tuberculosis by deep learning with segmentation and augmentation. ELNANO 2018.",
    layout="""\
ChinaSet_AllFiles/
  CXR_png/CHNCXR_<number>_<0 normal, 1 abnormal>.png
  mask/<same name>_mask.png                 not all pictures have one; mask/mask/ and masks/ are found as well
  ClinicalReadings/<same name>.txt          not used
The lung leaves out the heart. Each number counts as a patient.""",
)

_IMAGE_NAME = re.compile(r"(CHNCXR_\d+)_[01]")
_FOLDERS = (
    "ChinaSet_AllFiles/CXR_png",
    "CXR_png",
    "ChinaSet_AllFiles/ChinaSet_AllFiles/CXR_png",
    "Shenzhen-Hospital-CXR-Set/CXR_png",
    "Lung Segmentation/CXR_png",
)


def scan(root: Path) -> Scan:
    """Raises InputError when the folder is not this data set."""
    folder = require_folder(root, _FOLDERS, NAME)
    images = {name: path for name, path in files_of(folder, (".png",)).items() if _IMAGE_NAME.fullmatch(name)}
    if not images:
        raise InputError(f"{folder}: not the data set {NAME}, no picture such as CHNCXR_0001_0.png.")
    masks, problems = _masks(root, folder.parent)
    cases = [
        Case(
            id=f"{NAME}-{name}",
            patient=f"{NAME}-{name.rsplit('_', 1)[0]}",
            image=absolute(image),
            label=absolute(masks[name]) if name in masks else None,
            domain=NAME,
        )
        for name, image in images.items()
    ]
    return lung_scan(NAME, cases, [*problems, *without(masks, images, "image")])


def _masks(root: Path, base: Path) -> tuple[dict[str, Path], list[Problem]]:
    """Masks by the name of their picture; they come in an archive of their own."""
    candidates = ("mask/mask", "mask", "masks")
    folder = find_folder(base, candidates) or find_folder(root, candidates)
    if folder is None:
        return {}, [Problem("missing", f"{base}: no folder mask; all pictures count as unlabelled.")]
    return files_of(folder, ("_mask.png",)), []


DATA_SETS = (DataSet(ABOUT, scan, read_label=read_lungs),)
