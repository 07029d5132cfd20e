"""COVID-19 image data collection: chest X-rays of many hospitals, with lung masks from two sources.

Masks are read in the form that accompanies the collection's images here: the folder of V7 masks as
TorchXRayVision publishes it, and masks of General Blockchain assembled to one picture an image.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from sgan_core.cohort import Case
from sgan_core.imaging.readers import PICTURE_SUFFIXES, image_suffix
from sgan_datasets.chest_xray import lung_scan, read_lungs
from sgan_datasets.layout import (
    absolute,
    files_of,
    find_folder,
    read_csv,
    require_file,
    require_folder,
    safe_id,
    without,
)
from sgan_datasets.source import About, DataSet, Problem, Scan

NAME = "covid-chestxray"
PREFIX = "covid"

ABOUT = About(
    name=NAME,
    modality="xray",
    what="frontal chest X-rays, mostly of COVID-19 and other pneumonia, some with lung masks",
    size="several hundred pictures, most of them X-rays; two sets of lung masks for a part of them",
    source="https://github.com/ieee8023/covid-chestxray-dataset",
    licence="each picture its own, named in metadata.csv by the collection (many CC BY-NC-SA, some none); masks "
    "of V7 CC BY 4.0, of General Blockchain CC BY 4.0, each stated by its repository",
    get="Clone or download the repository. V7 masks: semantic_masks_v7labs_lungs.zip of TorchXRayVision "
    "(github.com/mlmed/torchxrayvision), unpacked beside the folder images.",
    citation="Cohen, Morrison, Dao: COVID-19 image data collection. arXiv:2003.11597, 2020.",
    layout="""\
covid-chestxray-dataset/
  metadata.csv                                  patientid, view, modality, folder, filename, license, ...
  images/<filename>
  semantic_masks_v7labs_lungs/<filename>        0 background, 127 "Ignore" (devices, marks), 255 lung
  masks_generalblockchain_lungs/<stem>.png      both lungs joined, 0 and 255; optional
The V7 mask is used where there is one, else General Blockchain's. THE LUNG OF V7 INCLUDES THE PART BEHIND THE
HEART, unlike the masks of the other chest X-ray sets: expect a lower DICE across conventions.
V7 masks are PNG also where the name ends in .jpg. Lateral views and CT are left out. Patients have several
pictures. Colour pictures occur; they count as grey.""",
)


def scan(root: Path) -> Scan:
    """Raises InputError when the folder is not this data set."""
    table = require_file(root, ("metadata.csv", "covid-chestxray-dataset/metadata.csv"), NAME)
    base = table.parent
    rows = read_csv(table, ("patientid", "filename", "view", "modality", "folder"))
    images = _pictures(require_folder(base, ("images",), NAME))
    masks, problems = _masks(base, images)
    problems += without(images, {row["filename"] for row in rows}, f"row of {table.name}")
    frontal = [row for row in rows if _is_frontal_xray(row)]
    stems = Counter(Path(row["filename"]).stem for row in frontal)
    cases = []
    for row in frontal:
        name = row["filename"]
        if name not in images:
            problems.append(Problem("missing", f"{table}: {name} is listed, but not in the folder images."))
            continue
        stem = Path(name).stem
        cases.append(
            Case(
                id=safe_id(f"{PREFIX}-{stem if stems[stem] == 1 else name}"),
                patient=f"{PREFIX}-{row['patientid'] or stem}",
                image=absolute(images[name]),
                label=absolute(masks[name]) if name in masks else None,
                domain=NAME,
            )
        )
    return lung_scan(NAME, cases, problems)


def _is_frontal_xray(row: dict[str, str]) -> bool:
    return row["modality"] == "X-ray" and row["folder"] == "images" and row["view"].startswith(("PA", "AP"))


def _pictures(folder: Path) -> dict[str, Path]:
    """Pictures by their whole file name."""
    return {name: path for name, path in files_of(folder, ("",)).items() if image_suffix(name)}


def _masks(base: Path, images: dict[str, Path]) -> tuple[dict[str, Path], list[Problem]]:
    """The mask of each image that has one, by the image's file name; a problem for each mask without image."""
    masks: dict[str, Path] = {}
    problems = []
    if other := find_folder(base, ("masks_generalblockchain_lungs",)):
        files = files_of(other, PICTURE_SUFFIXES)
        problems += without(files, {Path(name).stem for name in images}, "image")
        masks |= {name: files[Path(name).stem] for name in images if Path(name).stem in files}
    if v7 := find_folder(base, ("semantic_masks_v7labs_lungs",)):
        files = _pictures(v7)
        problems += without(files, images, "image")
        masks |= {name: path for name, path in files.items() if name in images}
    return masks, problems


DATA_SETS = (DataSet(ABOUT, scan, read_label=read_lungs),)
