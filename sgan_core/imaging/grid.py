"""Where voxels sit in the patient: pure geometry in RAS+ millimetres."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

# Part of the spacing product that the voxel volume may lose to shear before the axes count as one plane.
_SINGULAR = 1e-4

# Headers of one scan written by two programs differ by rounded directions, 1e-4 of 500 voxels. A convention that
# differs (corner or centre of a voxel) shifts by half a voxel.
SAME_VOXELS = 0.1
SAME_MM = 0.5


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of a volume sit in the patient. World is RAS+, millimetres."""

    shape: tuple[int, int, int]  # (I, J, K)
    affine: np.ndarray  # (4, 4): (i, j, k, 1) -> (x, y, z, 1), voxel centres

    @property
    def spacing_mm(self) -> np.ndarray:
        """Distance between voxel centres along each array axis, (3,) in mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    @property
    def is_singular(self) -> bool:
        """True when the affine cannot place voxels: not finite, a zero spacing, or axes in one plane."""
        if not np.isfinite(self.affine).all():
            return True
        box_mm3 = float(np.prod(self.spacing_mm))
        return box_mm3 == 0.0 or 1000.0 * self.voxel_ml < _SINGULAR * box_mm3

    @property
    def corners_mm(self) -> np.ndarray:
        """World positions of the eight corner voxels' centres, (8, 3) in mm."""
        last = [size - 1 for size in self.shape]
        corners = np.array(list(itertools.product(*((0, end) for end in last))), dtype=float)
        return corners @ self.affine[:3, :3].T + self.affine[:3, 3]


def corner_distance_mm(first: Grid, second: Grid) -> float:
    """How far apart two grids of one shape are: the largest distance between equal corner voxels, in mm.

    Corners, not matrix entries: a small rotation matters by what it moves, and everything inside moves less.
    """
    return float(np.linalg.norm(first.corners_mm - second.corners_mm, axis=1).max())


def largest_offset(grid: Grid, onto: Grid) -> tuple[float, float]:
    """How far the corners of a grid lie from those of another of its shape, along the axes of the other.

    Returns the largest offset in voxels and the largest in mm.
    """
    ijk = (grid.corners_mm - onto.affine[:3, 3]) @ np.linalg.inv(onto.affine[:3, :3]).T
    offset = np.abs(ijk - Grid(onto.shape, np.eye(4)).corners_mm).max(axis=0)  # (3,) voxels
    return float(offset.max()), float((offset * onto.spacing_mm).max())


def same_place(grid: Grid, onto: Grid) -> bool:
    """Whether two grids of one shape are one: within ``SAME_VOXELS`` along each axis, ``SAME_MM`` at most."""
    voxels, mm = largest_offset(grid, onto)
    return voxels <= SAME_VOXELS and mm <= SAME_MM


def ras_from_lps(affine_lps: np.ndarray) -> np.ndarray:
    """Flip the first two world axes. Its own inverse."""
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_lps
