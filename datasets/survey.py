"""What a cohort's images and labels hold, case by case, and what looks wrong before training on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import nibabel as nib
import numpy as np

from sgan_core.cohort import SPLITS, Case, Cohort
from sgan_core.errors import InputError
from sgan_core.imaging.image import Picture, Volume
from sgan_core.imaging.intensity import NO_AIR_HU
from sgan_core.imaging.readers import read_image, read_labels, require_same_grid
from sgan_datasets.check import digest, repeated_images
from sgan_datasets.pairs import OnProgress, for_each_case, read_case_image, read_case_label
from sgan_datasets.source import DataSet

_SAMPLE = 1_000_000  # voxels for percentiles
_LEAST_SHOWN = 0.01  # of the voxels: with fewer between black and white there is hardly anything to see


@dataclass(frozen=True)
class Finding:
    """Something to look at. error: training would refuse the case, or learn nothing from it."""

    severity: str  # "error" | "warning"
    text: str


@dataclass(frozen=True)
class CaseFacts:
    """What a case holds. None: it cannot be read, or (orientation, spacing) is a picture."""

    name: str
    file: str
    labelled: bool
    split: str
    patient: str
    orientation: str | None = None  # where the axes of the array lead to, e.g. "LPS"
    spacing_mm: tuple[float, ...] | None = None  # along these axes
    size: tuple[int, ...] | None = None  # voxels along these axes; columns and rows of a picture
    intensity: dict[str, float] | None = None  # min, p1, p50, p99, max, as stored
    label_voxels: dict[str, int] | None = None  # of each class; None: unlabelled
    problems: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Survey:
    """Of all cases; ``problems`` are those of the whole set."""

    cases: tuple[CaseFacts, ...]
    problems: tuple[Finding, ...]


def survey(
    cohort: Cohort, data_set: DataSet | None = None, *, on_progress: OnProgress | None = None
) -> Survey:
    """Open every image and label of a cohort. data_set: whose files they are, if they are a published one's.

    Errors: files that cannot be read, images of one value, labels that do not lie on their image. Warnings: CT that
    cannot be in HU, MR that looks like it, images that the intensity range leaves black or white, volumes whose label
    file is empty, what readers doubt, orientations other than most cases', the same image twice.
    """
    seen = list(
        for_each_case(
            cohort.cases, lambda case: _look(case, cohort, data_set), on_progress, "reading images, labels"
        )
    )
    facts = _compared([case for case, _ in seen])
    found = [
        Finding("warning", one.text)
        for one in repeated_images(zip(cohort.cases, (d for _, d in seen), strict=True))
    ]
    return Survey(tuple(facts), (*_of_the_set(facts), *found))


def to_table(cohort: Cohort, found: Survey, *, file: str | None, more: Sequence[str] = ()) -> dict[str, Any]:
    """A survey for JSON. file: the cohort's, if it was written; more: warnings of the whole set."""
    splits = {}
    for split in SPLITS:
        cases = cohort.select(split)
        if cases:
            labelled = [case for case in cases if case.labelled]
            splits[split] = {
                "labelled": len(labelled),
                "unlabelled": len(cases) - len(labelled),
                "labelled_patients": len({case.patient for case in labelled}),
            }
    problems = (*found.problems, *(Finding("warning", text) for text in more))
    return {
        "cohort": file,
        "splits": splits,
        "cases": [asdict(case) for case in found.cases],
        "problems": [asdict(problem) for problem in problems],
    }


def _look(case: Case, cohort: Cohort, data_set: DataSet | None) -> tuple[CaseFacts, bytes]:
    """The facts of a case by itself, and the digest of its pixels."""
    facts = CaseFacts(case.id, case.image, case.labelled, case.split, case.patient)
    try:
        image = read_case_image(data_set, case) if data_set else read_image(case.image)
    except InputError as error:
        return replace(facts, problems=(Finding("error", str(error)),)), b""
    array = image.array
    sample = array.ravel(order="K")[:: max(1, array.size // _SAMPLE)]
    figures = (array.min(), *np.percentile(sample, (1, 50, 99)), array.max())
    intensity = dict(
        zip(("min", "p1", "p50", "p99", "max"), (float(f"{v:.6g}") for v in figures), strict=True)
    )
    if isinstance(image, Volume):
        facts = replace(
            facts,
            orientation="".join(map(str, nib.aff2axcodes(image.grid.affine))),
            spacing_mm=tuple(round(float(mm), 4) for mm in image.grid.spacing_mm),
            size=tuple(array.shape),
        )
    else:
        facts = replace(facts, size=tuple(array.shape[:0:-1]))
    problems = [Finding("warning", doubt) for doubt in image.doubts]
    problems += _odd_intensities(image, sample, intensity, cohort)
    voxels, wrong = _label_facts(case, cohort, data_set, image)
    facts = replace(facts, intensity=intensity, label_voxels=voxels, problems=(*problems, *wrong))
    return facts, digest(image)


def _odd_intensities(
    image: Volume | Picture, sample: np.ndarray, found: dict[str, float], cohort: Cohort
) -> list[Finding]:
    low, high = cohort.intensity.low, cohort.intensity.high
    if isinstance(image, Picture) and image.array.dtype == np.uint8:  # taken to show the range
        return []
    if cohort.intensity.unit == "HU" and found["min"] >= NO_AIR_HU:
        return [Finding("warning", f"no voxel is below {NO_AIR_HU}: not CT in Hounsfield units")]
    if cohort.modality == "mr" and found["min"] < NO_AIR_HU:
        return [Finding("warning", f"voxels down to {found['min']:g}: MR has none below 0, this may be CT")]
    if low is not None and high is not None:
        shown = float(np.mean((sample > low) & (sample < high)))
        if shown < _LEAST_SHOWN:
            text = f"{shown:.1%} of the voxels lie between {low:g} and {high:g}"
            return [Finding("warning", f"{text}, the rest is black or white to the model")]
    return []


def _label_facts(
    case: Case, cohort: Cohort, data_set: DataSet | None, image: Volume | Picture
) -> tuple[dict[str, int] | None, list[Finding]]:
    """Voxels of each class, and what is wrong with the label file."""
    if case.label is None:
        return ({label.name: 0 for label in cohort.labels} if case.empty else None), []
    try:
        label = (
            read_case_label(data_set, case, cohort)
            if data_set
            else read_labels(case.label, values=cohort.stored_values)
        )
        assert label is not None
        label = require_same_grid(label, image, label_path=case.label, image_path=case.image)
    except InputError as error:
        return None, [Finding("error", str(error))]
    counts = np.zeros(256, np.int64)
    for plane in (
        label.array if isinstance(label, Volume) else label
    ):  # bincount makes 64-bit integers of all it gets
        counts += np.bincount(plane.ravel(), minlength=256)
    voxels = {one.name: int(counts[list(one.stored)].sum()) for one in cohort.labels}
    if isinstance(image, Volume) and not any(voxels.values()):
        return voxels, [Finding("warning", "the label file holds no voxel of any class")]
    return voxels, []


def _compared(cases: Sequence[CaseFacts]) -> list[CaseFacts]:
    """The cases, those that lie otherwise than most with a word about it."""
    usual = _usual_orientation(cases)
    return [
        case
        if case.orientation in (None, usual)
        else replace(
            case,
            problems=(
                *case.problems,
                Finding(
                    "warning",
                    f"axes lead to {case.orientation}, those of most cases to {usual}. Training turns them alike by "
                    "their headers: look whether this one's is right",
                ),
            ),
        )
        for case in cases
    ]


def _usual_orientation(cases: Sequence[CaseFacts]) -> str | None:
    counts = Counter(case.orientation for case in cases if case.orientation)
    return counts.most_common(1)[0][0] if counts else None


def _of_the_set(cases: Sequence[CaseFacts]) -> list[Finding]:
    counts = Counter(case.orientation for case in cases if case.orientation)
    if len(counts) < 2:
        return []
    shown = ", ".join(f"{name} ({count})" for name, count in counts.most_common())
    return [Finding("warning", f"orientations differ: {shown}")]
