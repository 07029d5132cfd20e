"""Whether the files of a data set are all there and say what they should."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sgan_core.cohort import Case, Cohort
from sgan_core.errors import InputError
from sgan_core.imaging.decoder_messages import SAID
from sgan_core.imaging.image import Picture, Volume
from sgan_core.imaging.readers import require_same_grid
from sgan_datasets.pairs import OnProgress, for_each_case, looks_inverted, read_case_image, read_case_label
from sgan_datasets.source import DataSet, Problem


@dataclass(frozen=True)
class Checked:
    """What a check found."""

    cohort: Cohort
    problems: tuple[Problem, ...]
    label_values: dict[int, int]  # stored value: number of label maps that hold it
    sizes: dict[tuple[int, ...], int]  # (H, W) or (I, J, K): number of images
    remarks: tuple[str, ...] = ()  # what is no fault, such as masks with grey edges


@dataclass(frozen=True)
class _Facts:
    """Of one case; one that cannot be read has no shape."""

    problems: list[Problem]
    digest: bytes = b""
    shape: tuple[int, ...] = ()
    values: tuple[int, ...] = ()
    covered: float = 0.0  # labelled part of the image
    remarks: tuple[str, ...] = ()


def check(data_set: DataSet, root: str | Path, *, on_progress: OnProgress | None = None) -> Checked:
    """Open every image and label of a data set's folder.

    Problems: missing pairs, files that cannot be read, labels of another size than their image, unexpected
    label values, the same image under two names, patients or images in two splits, masks that seem inverted.
    Raises InputError when the folder is not this data set.
    """
    scan = data_set.scan(Path(root))
    cohort = scan.cohort
    facts = list(
        for_each_case(
            cohort.cases, lambda case: _examine(data_set, case, cohort), on_progress, "reading images, labels"
        )
    )
    problems = [*scan.problems, *(problem for fact in facts for problem in fact.problems)]
    problems += _patient_leaks(cohort.cases)
    problems += repeated_images(zip(cohort.cases, (fact.digest for fact in facts), strict=True))
    values: dict[int, int] = defaultdict(int)
    sizes: dict[tuple[int, ...], int] = defaultdict(int)
    for fact in facts:
        for value in fact.values:
            values[value] += 1
        if fact.shape:
            sizes[fact.shape] += 1
    if looks_inverted([fact.covered for fact in facts], cohort.modality):
        text = "the labels cover more than half of most images. Are black and white exchanged?"
        problems.append(Problem("inverted?", text))
    remarks = tuple(remark for fact in facts for remark in fact.remarks)
    return Checked(
        cohort, tuple(problems), dict(sorted(values.items())), dict(sorted(sizes.items())), remarks
    )


def _examine(data_set: DataSet, case: Case, cohort: Cohort) -> _Facts:
    try:
        image = read_case_image(data_set, case)
    except InputError as error:
        return _Facts([Problem("unreadable", str(error))])
    shape = image.array.shape if isinstance(image, Volume) else image.array.shape[1:]
    pixels = digest(image)
    remarks = [doubt for doubt in image.doubts if SAID in doubt]
    try:
        label = read_case_label(data_set, case, cohort, remarks)
    except InputError as error:
        kind = "value" if "unknown label value" in str(error) else "unreadable"
        return _Facts([Problem(kind, str(error))], pixels, shape)
    if label is None:
        return _Facts([], pixels, shape, remarks=tuple(remarks))
    problems = []
    try:
        require_same_grid(label, image, label_path=case.label or "", image_path=case.image)
    except InputError as error:
        problems.append(Problem("size", f"{case.id}: {error}"))
    array = label.array if isinstance(label, Volume) else label
    values, counts = np.unique(array, return_counts=True)
    background = np.isin(values, [0, *cohort.ignored_values])
    covered = float(counts[~background].sum()) / array.size
    return _Facts(problems, pixels, shape, tuple(int(value) for value in values), covered, tuple(remarks))


def digest(image: Volume | Picture) -> bytes:
    """Of the pixels: the same picture saved twice counts as the same."""
    return hashlib.blake2b(np.ascontiguousarray(image.array).data, digest_size=16).digest()


def _patient_leaks(cases: Iterable[Case]) -> list[Problem]:
    splits: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        splits[case.patient].add(case.split)
    return [
        Problem("leak", f"patient {patient} is in {' and in '.join(sorted(found))}")
        for patient, found in splits.items()
        if len(found) > 1
    ]


def repeated_images(digests: Iterable[tuple[Case, bytes]]) -> list[Problem]:
    """Cases of the same ``digest``; an empty one is not known."""
    groups: dict[bytes, list[Case]] = defaultdict(list)
    for case, digest in digests:
        if digest:
            groups[digest].append(case)
    problems = []
    for same in groups.values():
        if len(same) < 2:
            continue
        names = ", ".join(case.id for case in same)
        splits = sorted({case.split for case in same})
        if len(splits) > 1:
            problems.append(Problem("leak", f"the same image in {' and in '.join(splits)}: {names}"))
        else:
            problems.append(Problem("duplicate", f"the same image: {names}"))
    return problems
