"""NIH: lung masks for 100 X-rays of ChestX-ray14, made for XLSor.

The folder of the pictures is the one that the authors' program reads; the names of the masks and the table
that tells which picture of ChestX-ray14 each one is are as documented in the work of Rosnati et al. that
uses them. Not checked against the archive: tested with made-up files only.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sgan_core.cohort import Case
from sgan_core.imaging.readers import PICTURE_SUFFIXES
from sgan_datasets import cxr14
from sgan_datasets.chest_xray import lung_scan, read_lungs
from sgan_datasets.layout import absolute, files_of, missing_pairs, read_csv, require_folder, safe_id
from sgan_datasets.source import About, DataSet, Problem, Scan

NAME = "nih"
TABLE = "correspondence_with_chestXray8"

ABOUT = About(
    name=NAME,
    modality="xray",
    what="100 chest X-rays of ChestX-ray14, many abnormal, with lung masks",
    size="100 pictures and masks",
    source="https://github.com/rsummers11/CADLab/tree/master/Lung_Segmentation_XLSor",
    licence="stated for the program only (MIT, Youbao Tang); for the pictures that of ChestX-ray14 (see cxr14)",
    get="The data link on that page leads to a Box folder; take NIH out of it. The table "
    f"{TABLE}.csv comes from Rosnati, Roschewitz, Glocker: Robust semi-supervised segmentation with timestep "
    "ensembling diffusion models (2023); lay it into the same folder, so that patients are known.",
    citation="Tang, Tang, Xiao, Summers: XLSor: a robust and accurate lung segmentor on chest X-rays using "
    "criss-cross attention and customized radiorealistic abnormalities generation. MIDL 2019.",
    layout=f"""\
NIH/
  images/NIH_0001.png                    or under the name that ChestX-ray14 has for it
  masks/NIH_0001_mask.png
  {TABLE}.csv     columns NIH, ChestX-ray14; optional
Several pictures are of one patient, which the names do not tell: without the table each counts as a patient
of its own, and nothing keeps the same person from being among the patients of cxr14.""",
)


def scan(root: Path) -> Scan:
    """Raises InputError when the folder is not this data set."""
    folder = require_folder(root, ("images", "NIH/images", "data/NIH/images"), NAME)
    base = folder.parent
    images = files_of(folder, PICTURE_SUFFIXES)
    mask_folder = require_folder(base, ("masks",), NAME)
    masks = files_of(mask_folder, [f"_mask{ending}" for ending in PICTURE_SUFFIXES] + list(PICTURE_SUFFIXES))
    original, problems = _originals(base, images)
    cases = []
    for name, image in images.items():
        known = original.get(name)
        own = safe_id(f"{NAME}-{name}")
        cases.append(
            Case(
                id=f"{cxr14.NAME}-{known}" if known else own,
                patient=cxr14.patient_of(known) if known else own,
                image=absolute(image),
                label=absolute(masks[name]) if name in masks else None,
                domain=NAME,
            )
        )
    return lung_scan(NAME, cases, [*problems, *missing_pairs(images, masks)])


def _originals(base: Path, images: Iterable[str]) -> tuple[dict[str, str], list[Problem]]:
    """The picture of ChestX-ray14 that each one is, without ending, as far as it is known."""
    table = files_of(base, (".csv",)).get(TABLE)
    rows = read_csv(table, ("NIH", "ChestX-ray14")) if table else []
    known = {Path(row["NIH"]).stem: Path(row["ChestX-ray14"]).stem for row in rows}
    known = {name: known.get(name, name) for name in images}
    known = {name: original for name, original in known.items() if cxr14.IMAGE_NAME.fullmatch(original)}
    unknown = [name for name in images if name not in known]
    if not unknown:
        return known, []
    text = (
        f"{base}: the patient of {len(unknown)} pictures is not known, e.g. {unknown[0]}; lay {TABLE}.csv there. "
        "Until then each counts as a patient of its own, who may be in cxr14 as well."
    )
    return known, [Problem("leak", text)]


DATA_SETS = (DataSet(ABOUT, scan, read_label=read_lungs),)
