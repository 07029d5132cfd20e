"""Masks kept as one picture a slice, laid on the slices of their DICOM series."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sgan_core.errors import InputError
from sgan_core.imaging.dicom import Series, read_series
from sgan_core.imaging.grid import Grid
from sgan_core.imaging.image import Picture, Volume
from sgan_core.imaging.readers import PICTURE_SUFFIXES, image_suffix, read_labels
from sgan_core.names import natural


def series_grid(series: Series) -> Grid:
    """Where the slices of a series lie. Raises InputError for pictures and damaged series."""
    image = read_series(series)
    if isinstance(image, Picture):
        raise InputError(f"{series.files[0]}: a picture without a position in the patient; a scan is needed.")
    return image.grid


def read_mask_slices(folder: str | Path, series: Series, grid: Grid) -> Volume:
    """The pictures of a folder as a label map (I, J, K) uint8 on the grid of a series.

    Raises InputError: unreadable pictures, another number or size than the slices have.
    """
    folder = Path(folder)
    files = [path for path in folder.iterdir() if image_suffix(path) in PICTURE_SUFFIXES]
    files.sort(key=lambda path: natural(path.name))
    masks = []
    for path in files:
        mask = read_labels(path, values=None)
        if isinstance(mask, Volume) or mask.shape != (grid.shape[1], grid.shape[0]):
            raise InputError(
                f"{path}: not of the size of the slices, {grid.shape[1]} x {grid.shape[0]}. "
                "Are the masks of another scan?"
            )
        masks.append(mask)
    return stack_masks(masks, series, grid, folder)


def stack_masks(masks: Sequence[np.ndarray], series: Series, grid: Grid, folder: Path) -> Volume:
    """Masks (rows, columns) uint8, in the order of their names, as a volume (I, J, K) on a series' grid.

    The n-th mask belongs to the n-th slice by file name, which need not be the n-th along the patient.
    Raises InputError when their number differs from that of the slices.
    """
    slices = series.files
    if not len(masks) == len(slices) == grid.shape[2]:
        raise InputError(
            f"{folder}: {len(masks)} masks for {len(slices)} slices, of which the volume has {grid.shape[2]}. "
            "Get the original files again."
        )
    array = np.zeros(grid.shape, np.uint8)
    by_name = sorted(range(len(slices)), key=lambda k: natural(slices[k].name))
    for mask, k in zip(masks, by_name, strict=True):
        array[:, :, k] = mask.T  # (row, column) -> (i, j): i runs along the rows of a DICOM slice, j down
    return Volume(array, grid)
