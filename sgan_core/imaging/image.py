"""What an image is once it has been read: an array with where it sits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sgan_core.imaging.grid import Grid


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan: voxels and their place in the patient."""

    array: np.ndarray  # (I, J, K)
    grid: Grid
    warnings: tuple[str, ...] = ()
    doubts: tuple[
        str, ...
    ] = ()  # why it may not be what it seems: its mask is for review, whatever it looks like
    padded: np.ndarray | None = None  # (I, J, K) bool: voxels that do not count for black and white


@dataclass(frozen=True, eq=False)
class Picture:
    """A 2-D image as stored, without a place in the patient."""

    array: np.ndarray  # (C, H, W), C in {1, 3}
    warnings: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()  # as of a Volume
    padded: np.ndarray | None = None  # (1, H, W), as of a Volume
