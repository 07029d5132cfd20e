"""ChestX-ray14 of the NIH Clinical Center: many frontal chest X-rays without masks.

The names of the archives, tables and lists are those that the official release is known by; tested with a part
of the pictures and of the table, and with made-up files for the lists and for the folders of the archives.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from sgan_core.cohort import Case
from sgan_core.errors import InputError
from sgan_datasets.chest_xray import lung_scan
from sgan_datasets.layout import absolute, files_of, find_folder, read_csv
from sgan_datasets.source import About, DataSet, Problem, Scan

NAME = "cxr14"
IMAGE_NAME = re.compile(r"(\d{8})_(\d{3})")  # patient, follow-up

ABOUT = About(
    name=NAME,
    modality="xray",
    what="112,120 frontal chest X-rays of 30,805 patients, without masks",
    size="112,120 pictures, 1024 x 1024 PNG, more than 40 GB",
    source="https://nihcc.app.box.com/v/ChestXray-NIHCC",
    licence="no restrictions on use, with a link to the source, the citation, and NIH Clinical Center named as "
    "the provider; as stated by Google Cloud's page of the data set",
    get="Download images_001 to images_012, Data_Entry_2017, train_val_list.txt and test_list.txt from the page "
    "and unpack the archives into one folder. Some of the archives are enough.",
    citation="Wang, Peng, Lu, Lu, Bagheri, Summers: ChestX-ray8: hospital-scale chest X-ray database and "
    "benchmarks on weakly-supervised classification and localization of common thorax diseases. CVPR 2017.",
    layout="""\
CXR14/
  images_001/images/<patient>_<follow-up>.png ... images_012/images/, or all of them in images/
  Data_Entry_2017.csv, or Data_Entry_2017_v2020.csv     Image Index, Patient ID, findings, view, ...
  train_val_list.txt, test_list.txt                     official splits, by patient
The patient is the first eight digits. Some pictures have colour or alpha channels; they count as grey.""",
)


def scan(root: Path) -> Scan:
    """Raises InputError when the folder is not this data set."""
    images, strange = _images(root)
    table, problems = _table(root)
    listed = {Path(row["Image Index"]).stem: row["Patient ID"] for row in table}
    if table:
        problems += _summary(
            "missing", "rows without picture", [name for name in listed if name not in images]
        )
        problems += _summary(
            "missing", "pictures without row", [name for name in images if name not in listed]
        )
        wrong = [name for name, patient in listed.items() if patient.zfill(8) != name[:8]]
        problems += _summary("value", "rows whose Patient ID is not that of the name", wrong)
    problems += _summary("layout", "pictures not named <patient>_<follow-up>, left out", strange)
    tested, leaks = _test_patients(root)
    cases = [
        Case(
            id=f"{NAME}-{name}",
            patient=patient_of(name),
            image=absolute(path),
            split="test" if patient_of(name) in tested else "train",
            domain=NAME,
        )
        for name, path in images.items()
    ]
    return lung_scan(NAME, cases, [*problems, *leaks])


def patient_of(name: str) -> str:
    """The patient of a picture's name without ending, as every set with pictures of ChestX-ray14 calls them."""
    return f"{NAME}-{name[:8]}"


def _images(root: Path) -> tuple[dict[str, Path], list[str]]:
    """Pictures by name, in the order of names, and the names that are no pictures of this set."""
    folders = ["images", *(f"images_{number:03d}" for number in range(1, 13))]
    found: dict[str, Path] = {}
    for folder in (*folders, *(f"{folder}/images" for folder in folders), "."):
        if below := find_folder(root, (folder,)):
            found = {**files_of(below, (".png",)), **found}
    images = {name: found[name] for name in sorted(found) if IMAGE_NAME.fullmatch(name)}
    if not images:
        raise InputError(
            f"{root}: not the data set {NAME}, no picture such as images_001/images/00000001_000.png or "
            "images/00000001_000.png below it. Give the folder that holds them."
        )
    return images, [name for name in sorted(found) if name not in images]


def _table(root: Path) -> tuple[list[dict[str, str]], list[Problem]]:
    tables = [path for name, path in files_of(root, (".csv",)).items() if name.startswith("Data_Entry_2017")]
    if not tables:
        return [], [Problem("missing", f"{root}: no Data_Entry_2017.csv; patients are told from file names.")]
    return read_csv(tables[0], ("Image Index", "Patient ID")), []


def _test_patients(root: Path) -> tuple[set[str], list[Problem]]:
    """Patients of the official test list."""
    test, train = (_patients(root / name) for name in ("test_list.txt", "train_val_list.txt"))
    return test, _summary("leak", "patients in both official lists, kept in test", sorted(test & train))


def _patients(list_file: Path) -> set[str]:
    try:
        lines = list_file.read_text(encoding="utf-8-sig").split()
    except FileNotFoundError:
        return set()
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{list_file}: cannot be read as text. Get the original file again.") from None
    return {patient_of(name) for name in lines if IMAGE_NAME.match(name)}


def _summary(kind: str, what: str, names: Sequence[str]) -> list[Problem]:
    """One problem for all: a part of the set is often all that is wanted."""
    return [Problem(kind, f"{len(names)} {what}, e.g. {names[0]}.")] if names else []


DATA_SETS = (DataSet(ABOUT, scan),)
