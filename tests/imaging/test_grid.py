"""Grid: spacing, corners, the LPS flip, affines that cannot place a voxel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine, voxel_sizes
from scipy.spatial.transform import Rotation

from sgan_core.imaging.grid import Grid, corner_distance_mm, ras_from_lps


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Any rotation, mirrored or not, with spacings of 0.1 to 10 mm."""
    affine = np.eye(4)
    quaternion = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).normal(size=4)
    rotation = Rotation.from_quat(quaternion).as_matrix()
    spacing = draw(st.tuples(*[st.floats(0.1, 10.0)] * 3))
    affine[:3, :3] = rotation @ np.diag(spacing) * draw(st.sampled_from([1.0, -1.0]))
    affine[:3, 3] = draw(st.tuples(*[st.floats(-500.0, 500.0)] * 3))
    return affine


@settings(deadline=None, max_examples=30)
@given(affines())
def test_spacing_survives_lps_ras(affine: np.ndarray) -> None:
    flipped = Grid((2, 3, 4), ras_from_lps(affine))
    np.testing.assert_allclose(flipped.spacing_mm, Grid((2, 3, 4), affine).spacing_mm)
    np.testing.assert_allclose(flipped.spacing_mm, voxel_sizes(affine))  # nibabel's


@settings(deadline=None, max_examples=30)
@given(affines())
def test_lps_flip_is_its_own_inverse(affine: np.ndarray) -> None:
    np.testing.assert_array_equal(ras_from_lps(ras_from_lps(affine)), affine)


def test_lps_flip_of_an_oblique_affine_as_written_down() -> None:
    """R is -L and A is -P; S and the array axes stay."""
    lps = [[0.6, -0.8, 0.1, -10.0], [0.8, 0.6, 0.2, 20.0], [0.3, 0.4, 2.0, 30.0], [0.0, 0.0, 0.0, 1.0]]
    ras = [[-0.6, 0.8, -0.1, 10.0], [-0.8, -0.6, -0.2, -20.0], [0.3, 0.4, 2.0, 30.0], [0.0, 0.0, 0.0, 1.0]]
    np.testing.assert_array_equal(ras_from_lps(np.array(lps)), ras)


@settings(deadline=None, max_examples=30)
@given(affines())
def test_corners_are_where_nibabel_puts_them(affine: np.ndarray) -> None:
    corners = Grid((5, 1, 7), affine).corners_mm
    np.testing.assert_allclose(corners[0], apply_affine(affine, (0, 0, 0)), atol=1e-9)
    np.testing.assert_allclose(corners[-1], apply_affine(affine, (4, 0, 6)), atol=1e-9)
    assert corners.shape == (8, 3)


@settings(deadline=None, max_examples=30)
@given(affines())
def test_rotated_grids_are_not_singular(affine: np.ndarray) -> None:
    grid = Grid((2, 2, 2), affine)
    assert not grid.is_singular
    np.testing.assert_allclose(grid.voxel_ml, np.prod(grid.spacing_mm) / 1000.0)


def test_corner_distance_of_a_shift_is_its_length() -> None:
    shifted = np.eye(4)
    shifted[:3, 3] = (3.0, 0.0, 4.0)
    assert corner_distance_mm(Grid((9, 9, 9), np.eye(4)), Grid((9, 9, 9), shifted)) == pytest.approx(5.0)


def test_corner_distance_grows_with_the_lever_of_a_spacing_error() -> None:
    stretched = np.diag([1.0, 1.0, 1.01, 1.0])
    assert corner_distance_mm(Grid((9, 9, 101), np.eye(4)), Grid((9, 9, 101), stretched)) == pytest.approx(
        1.0
    )


@pytest.mark.parametrize(
    "linear",
    [
        pytest.param(np.zeros((3, 3)), id="zero"),
        pytest.param(np.diag([1.0, 0.0, 1.0]), id="zero spacing"),
        pytest.param(np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), id="equal axes"),
        pytest.param(np.full((3, 3), np.nan), id="NaN"),
    ],
)
def test_singular_affine_is_recognised(linear: np.ndarray) -> None:
    affine = np.eye(4)
    affine[:3, :3] = linear
    assert Grid((2, 2, 2), affine).is_singular
