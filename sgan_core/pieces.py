"""Organs that are one connected piece: which labels are, by the labels of training, and what of a mask is left then.

nnU-Net keeps the largest piece where its validation gains by it (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z);
here the true labels say whether there is one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
from scipy import ndimage

from sgan_core.cohort import Label

ONE_PIECE = "one_piece"  # in a model's facts: names of labels
_WHOLE = 0.95  # of a label's pixels in its largest piece: nearly all; annotators leave flecks
_NEARLY_ALL = 0.99  # of the cases


def largest_pieces(labels: np.ndarray, values: Collection[int]) -> np.ndarray:
    """Keep the largest connected piece of some labels of a map (I, J, K) or (H, W) uint8; corners connect too.

    Of pieces of the same size the first. A box around the label is numbered in 32 bits, whatever the scan's size.
    """
    kept = labels.copy()
    for value in values:
        mask = labels == value
        (box,) = ndimage.find_objects(mask.view(np.uint8)) or (None,)
        if box is None:
            continue
        numbered, count = ndimage.label(mask[box], structure=np.ones((3,) * labels.ndim))
        if count > 1:
            sizes = np.zeros(count + 1, np.int64)
            for plane in numbered:  # bincount would make 64 bits of all at once
                sizes += np.bincount(plane.ravel(), minlength=count + 1)
            kept[box][mask[box] & (numbered != sizes[1:].argmax() + 1)] = 0
    return kept


def lost(whole: np.ndarray, kept: np.ndarray, value: int) -> float:
    """The share of a label's pixels that are gone; 0 for a label that was nowhere."""
    before = np.count_nonzero(whole == value)
    return 1.0 - np.count_nonzero(kept == value) / before if before else 0.0


def in_one_piece(cases: Iterable[np.ndarray], labels: Iterable[Label]) -> list[str]:
    """The names of the labels that are one piece in nearly every case that has them.

    cases: true label maps, (N, H, W) of a volume or (1, H, W) of a picture; fewer than three cases tell nothing.
    """
    labels = tuple(labels)
    wholes: dict[int, list[bool]] = {label.value: [] for label in labels}
    for case in cases:
        case = case[0] if len(case) == 1 else case
        present = [value for value in wholes if (case == value).any()]
        if present:
            kept = largest_pieces(case, present)
            for value in present:
                wholes[value].append(lost(case, kept, value) <= 1.0 - _WHOLE)
    return [
        label.name
        for label in labels
        if len(wholes[label.value]) >= 3 and np.mean(wholes[label.value]) >= _NEARLY_ALL
    ]
