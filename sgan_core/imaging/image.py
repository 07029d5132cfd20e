"""What an image is once it has been read: an array with where it sits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sgan_core.cohort import Intensity
from sgan_core.imaging.grid import Grid


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan: voxels and their place in the patient."""

    array: np.ndarray  # (I, J, K)
    grid: Grid
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Picture:
    """A 2-D image as stored, without a place in the patient."""

    array: np.ndarray  # (C, H, W), C in {1, 3}
    warnings: tuple[str, ...] = ()


def in_units(image: Volume | Picture, intensity: Intensity) -> Volume | Picture:
    """Give an 8-bit picture the units of a fixed intensity range: 0 shows ``low`` and 255 shows ``high``.

    Volumes, pictures of more bits and percentile rules are returned unchanged.
    """
    if (
        isinstance(image, Volume)
        or image.array.dtype != np.uint8
        or intensity.low is None
        or intensity.high is None
    ):
        return image
    span = np.float32(intensity.high - intensity.low)
    return Picture(image.array * (span / np.float32(255)) + np.float32(intensity.low), image.warnings)
