"""LiTS: CT volumes with liver and liver tumours (Liver Tumor Segmentation benchmark, 2017).

Counts are those of the organisers' paper (Bilic et al.), the names of folders those of its training archives
as other projects that read them document them. Not verified: the archives themselves and the terms on the
organisers' page. The project's tests use small made-up files in this layout.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from sgan_core.cohort import Case, Cohort, Intensity
from sgan_core.errors import InputError
from sgan_core.names import natural
from sgan_datasets.anatomy import named_label
from sgan_datasets.layout import absolute, missing_pairs
from sgan_datasets.source import About, DataSet, Problem, Scan

NAME = "lits"
SOFT_TISSUE = Intensity(low=-160.0, high=240.0, unit="HU")
# 2 is tumour; it lies inside the liver and belongs to it here.
LIVER = named_label(1, "liver", stored_values=(1, 2))

_FILE = re.compile(r"(volume|segmentation|test-volume)-(\d+)\.nii(?:\.gz)?", re.IGNORECASE)

ABOUT = About(
    name=NAME,
    modality="ct",
    what="abdominal CT volumes with liver and liver tumours",
    size="131 labelled volumes for training, 70 for testing whose labels are not published",
    source="https://competitions.codalab.org/competitions/17094",
    licence=(
        "non-commercial; the organisers' own terms were not verified. Others state CC BY-NC-ND 4.0 (eva, in its "
        "documentation of LiTS) or CC BY-NC-SA 4.0 (CADS data card)"
    ),
    get=(
        "register at the page; Training_Batch1.zip and Training_Batch2.zip (about 15 GB), and the test volumes; "
        "unpack them into one folder"
    ),
    citation=(
        "Bilic et al.: The Liver Tumor Segmentation Benchmark (LiTS). Medical Image Analysis 84, 102680, 2023. "
        "doi:10.1016/j.media.2022.102680"
    ),
    layout="""\
Training Batch 1/volume-0.nii, segmentation-0.nii, ... (0 to 27)
Training Batch 2/volume-28.nii, segmentation-28.nii, ... (28 to 130)
test-volume-0.nii, ... (0 to 69), without labels
Found in any folder below the root, also as .nii.gz. Labels: 0 background, 1 liver, 2 tumour; both 1 and 2
become liver.
Quirks: the headers of volumes 28 to 47 hold a unit affine, so their voxels look like 1 mm cubes (reported to
the organisers in 2021: issue 14 of their repository PatrickChrist/LITS-CHALLENGE, unanswered). Scans are
stored in different orientations; the affine of each file is taken at its word and nothing is flipped.
Patients: the organisers publish no list, so each volume counts as one, called lits-N; the test volumes are
of other patients (paper). Not stated by them: volumes 7, 8, 9 and 10 look like one person (keep them in one
split), and 28 to 47 are reported to be 3D-IRCADb (28 to 44 and 46 to 48 by another report): do not add that
data set as new patients, nor msd-liver, which holds these volumes as well.""",
)


def scan(root: Path) -> Scan:
    """Volumes and labels by their numbers, in any folder below root.

    Raises InputError when there is no volume-N.nii and no test-volume-N.nii.
    """
    found, problems = _find(root)
    volumes, labels = found["volume"], found["segmentation"]
    if not volumes and not found["test-volume"]:
        raise InputError(
            f"{root}: not the data set {NAME}, no volume-N.nii or volume-N.nii.gz was found in it. "
            "Give the folder that the training batches were unpacked to."
        )
    cases = [
        Case(
            id=f"lits-{number}",
            patient=f"lits-{number}",
            image=absolute(path),
            label=absolute(labels[number]) if number in labels else None,
            domain="ct",
        )
        for number, path in volumes.items()
    ]
    cases += [
        Case(
            id=f"lits-test-{number}",
            patient=f"lits-test-{number}",
            image=absolute(path),
            split="test",
            domain="ct",
        )
        for number, path in found["test-volume"].items()
    ]
    problems += missing_pairs(volumes, labels)
    return Scan(Cohort(NAME, "ct", SOFT_TISSUE, (LIVER,), tuple(cases)), tuple(problems))


def _find(root: Path) -> tuple[dict[str, dict[str, Path]], list[Problem]]:
    """Kind of file -> number -> path, in the order of numbers; a problem for each that is there twice."""
    found: dict[str, dict[str, Path]] = {"volume": {}, "segmentation": {}, "test-volume": {}}
    problems = []
    for path in sorted(_walk(root), key=lambda path: natural(path.name)):
        match = _FILE.fullmatch(path.name)
        if not match:
            continue
        known = found[match[1].lower()].setdefault(str(int(match[2])), path)
        if known is not path:
            problems.append(Problem("duplicate", f"{path}: left out, as {known} has the same name."))
    return found, problems


def _walk(root: Path) -> Iterator[Path]:
    if not root.is_dir():
        raise InputError(f"{root}: no such folder. Give the folder of the unpacked data set {NAME}.")
    for parent, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent) / name for name in sorted(files) if not name.startswith("."))


DATA_SETS = (DataSet(ABOUT, scan),)
