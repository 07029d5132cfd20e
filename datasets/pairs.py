"""The image and the label of a case, however the data set keeps them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from sgan_core.cohort import Case, Cohort
from sgan_core.imaging.image import Picture, Volume
from sgan_core.imaging.readers import PICTURE_SUFFIXES, image_suffix, read_image, read_labels
from sgan_datasets.source import DataSet

OnProgress = Callable[[int, int, str], object]
_T = TypeVar("_T")


def read_case_image(data_set: DataSet, case: Case) -> Volume | Picture:
    """The image as stored. Raises InputError when it cannot be read."""
    return data_set.read_image(case) if data_set.read_image else read_image(case.image)


def read_case_label(
    data_set: DataSet, case: Case, cohort: Cohort, remarks: list[str] | None = None
) -> Volume | np.ndarray | None:
    """The stored label values, (I, J, K) or (H, W) uint8; None without a label file. remarks: as ``read_labels``.

    Raises InputError for a file that cannot be read and for values that the data set does not know.
    """
    if case.label is None:
        return None
    return (
        data_set.read_label(case)
        if data_set.read_label
        else read_labels(case.label, values=cohort.stored_values, remarks=remarks)
    )


def for_each_case(
    cases: Sequence[Case], work: Callable[[Case], _T], on_progress: OnProgress | None, message: str
) -> Iterator[_T]:
    """``work`` of every case, in order; pictures by several threads, as decoding them leaves Python free."""
    pictures = all(image_suffix(case.image) in PICTURE_SUFFIXES for case in cases[:1])
    threads = min(4, os.cpu_count() or 1) if pictures else 1  # volumes fill the memory
    pool = ThreadPoolExecutor(threads)
    try:
        # Few cases at a time: their results must not pile up, and Ctrl-C must not wait for thousands.
        for first in range(0, len(cases), 8 * threads):
            for offset, result in enumerate(pool.map(work, cases[first : first + 8 * threads]), 1):
                if on_progress:
                    on_progress(first + offset, len(cases), message)
                yield result
    finally:
        pool.shutdown(cancel_futures=True)


def looks_inverted(covered: Sequence[float], modality: str) -> bool:
    """Whether masks, given as the share of each image that is labelled, seem to label the background.

    Most of those with any label cover more than half: no organ or lesion does, a face does.
    """
    labelled = [share for share in covered if share > 0]
    return modality != "face" and 2 * sum(share > 0.5 for share in labelled) > len(labelled)
