"""Organs of one piece: what is kept of a mask, and which labels are such organs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.transforms import KeepLargestConnectedComponent

from sgan_core.cohort import Label
from sgan_core.pieces import in_one_piece, largest_pieces, lost

LUNG, HEART = Label(1, "lung", (1, 2, 3)), Label(2, "heart", (3, 2, 1))
MAPS = st.one_of(
    hnp.arrays(
        np.uint8, hnp.array_shapes(min_dims=dims, max_dims=dims, max_side=7), elements=st.integers(0, 2)
    )
    for dims in (2, 3)
)


@given(MAPS)
def test_monai_keeps_as_much(labels: np.ndarray) -> None:
    kept = largest_pieces(labels, [1, 2])
    theirs = np.asarray(KeepLargestConnectedComponent(is_onehot=False)(labels[None].copy()))[0]
    for value in (1, 2):  # of two largest ones of a size either may be taken
        assert (kept == value).sum() == (theirs == value).sum()
    assert ((kept == labels) | (kept == 0)).all()
    np.testing.assert_array_equal(largest_pieces(kept, [1, 2]), kept)
    np.testing.assert_array_equal(largest_pieces(labels, []), labels)
    np.testing.assert_array_equal(largest_pieces(labels, [2]) == 1, labels == 1)  # not asked for


def test_what_is_lost() -> None:
    labels = np.array([[1, 1, 1, 0, 1], [0, 0, 0, 0, 0], [2, 2, 0, 2, 2]], np.uint8)
    kept = largest_pieces(labels, [1, 2])
    np.testing.assert_array_equal(kept, [[1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [2, 2, 0, 0, 0]])
    assert (lost(labels, kept, 1), lost(labels, kept, 2), lost(labels, kept, 3)) == (0.25, 0.5, 0.0)
    assert labels[0, 4] == 1  # the caller's own is kept


def one(width: int = 0, value: int = 1) -> np.ndarray:
    """A volume whose label has 40 pixels in one piece, and ``width`` apart from it."""
    case = np.zeros((3, 8, 12), np.uint8)
    case[1, 1:5, 1:11] = value
    case[1, 7, :width] = value
    return case


def test_labels_in_one_piece_are_told_by_name() -> None:
    case = one() + one(4, 2)[:, ::-1]  # 40 of 44 pixels of the heart are in its largest piece
    case[case > 2] = 0
    assert in_one_piece([case] * 3, [LUNG, HEART]) == ["lung"]


@pytest.mark.parametrize(("apart", "whole"), [(2, True), (3, False)])  # of 42 and 43: 95 % is nearly all
def test_a_fleck_is_no_piece(apart: int, whole: bool) -> None:
    assert bool(in_one_piece([one(apart)] * 3, [LUNG])) is whole


def test_one_case_in_a_hundred_may_be_otherwise() -> None:
    assert in_one_piece([one()] * 99 + [one(8)], [LUNG]) == ["lung"]
    assert in_one_piece([one()] * 98 + [one(8)] * 2, [LUNG]) == []


def test_few_cases_tell_nothing() -> None:
    assert in_one_piece([one(), one(), np.zeros((3, 8, 12), np.uint8)], [LUNG]) == []
    assert in_one_piece([one()] * 3, [LUNG, HEART]) == ["lung"]


def test_slices_of_a_volume_belong_together_and_pictures_do_not() -> None:
    """A horseshoe is two pieces in its upper slice."""
    horseshoe = np.zeros((2, 6, 6), np.uint8)
    horseshoe[0, 1:5, 1:5] = 1
    horseshoe[1, 1:5, 1:2] = horseshoe[1, 1:5, 4:5] = 1
    assert in_one_piece([horseshoe] * 3, [LUNG]) == ["lung"]
    assert in_one_piece([horseshoe[1:]] * 3, [LUNG]) == []
