"""Montgomery County: chest X-rays of a tuberculosis screening programme, with lung masks.

Layout as described in the read-me of the release; not checked against the archive: tested with made-up files
only.
"""

from __future__ import annotations

import re
from pathlib import Path

from sgan_core.cohort import Case
from sgan_core.errors import InputError
from sgan_datasets.chest_xray import both_sides, lung_scan, read_lungs
from sgan_datasets.layout import absolute, files_of, missing_pairs, require_folder
from sgan_datasets.source import About, DataSet, Scan

NAME = "montgomery"

ABOUT = About(
    name=NAME,
    modality="xray",
    what="138 frontal chest X-rays, 58 of them with tuberculosis, with lung masks",
    size="138 pictures, 4020 x 4892 or 4892 x 4020 PNG",
    source="https://lhncbc.nlm.nih.gov/LHC-downloads/downloads.html#tuberculosis-image-data-sets",
    licence="available to the research community; the read-me of the release asks not to share it outside one's "
    "group, to name the National Library of Medicine (NIH, Bethesda) as the source and to cite two papers",
    get="Download NLM-MontgomeryCXRSet.zip from the page and unpack it.",
    citation="Candemir et al.: Lung segmentation in chest radiographs using anatomical atlases with nonrigid "
    "registration. IEEE TMI 33(2), 2014. Jaeger et al.: Automatic tuberculosis screening using chest "
    "radiographs. IEEE TMI 33(2), 2014.",
    layout="""\
MontgomerySet/
  CXR_png/MCUCXR_<number>_<0 normal, 1 abnormal>.png
  ManualMask/leftMask/<same name>.png
  ManualMask/rightMask/<same name>.png
  ClinicalReadings/<same name>.txt          not used
The lung leaves out the part behind the heart. Each number counts as a patient. Re-releases that join both sides
in masks/<same name>.png, beside CXR_png, can be read as well.""",
)

_IMAGE_NAME = re.compile(r"(MCUCXR_\d+)_[01]")
_FOLDERS = (
    "MontgomerySet/CXR_png",
    "CXR_png",
    "NLM-MontgomeryCXRSet/MontgomerySet/CXR_png",
    "Montgomery-County-CXR-Set/MontgomerySet/CXR_png",
    "Lung Segmentation/CXR_png",
)


def scan(root: Path) -> Scan:
    """Raises InputError when the folder is not this data set."""
    folder = require_folder(root, _FOLDERS, NAME)
    base = folder.parent
    images = _of_this_set(files_of(folder, (".png",)))
    if not images:
        raise InputError(f"{folder}: not the data set {NAME}, no picture such as MCUCXR_0001_0.png.")
    masks, problems = both_sides(
        files_of(base / "ManualMask" / "leftMask", (".png",)),
        files_of(base / "ManualMask" / "rightMask", (".png",)),
    )
    masks = _of_this_set(files_of(base / "masks", (".png",))) | masks
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
    return lung_scan(NAME, cases, [*problems, *missing_pairs(images, masks)])


def _of_this_set(files: dict[str, Path]) -> dict[str, Path]:
    """Some re-releases mix it with the set of Shenzhen."""
    return {name: path for name, path in files.items() if _IMAGE_NAME.fullmatch(name)}


DATA_SETS = (DataSet(ABOUT, scan, read_label=read_lungs),)
