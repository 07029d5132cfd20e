"""Pictures of what a generator draws: images with their labels as an outline, in a grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import binary_erosion, zoom

from sgan_core.cohort import Label
from sgan_core.files import replacing

_DEFAULT_RGB = (221, 130, 101)


def outline(
    image: np.ndarray, labels: np.ndarray, colours: dict[int, tuple[int, int, int]], scale: int = 3
) -> np.ndarray:
    """One picture (C, H, W) in [-1, 1], enlarged, with the outline of each label (H, W): (sH, sW, 3) uint8."""
    grey = np.repeat(image, 3, axis=0) if len(image) == 1 else image
    big = np.stack(
        [zoom(channel, scale, order=1, grid_mode=True, mode="nearest") for channel in grey], axis=-1
    )
    rgb = ((np.clip(big, -1, 1) + 1) * 127.5).astype(np.uint8)
    large = labels.repeat(scale, axis=0).repeat(scale, axis=1)
    for value in np.unique(labels[labels > 0]):
        mask = large == value
        rgb[mask & ~binary_erosion(mask, iterations=1)] = colours.get(int(value), _DEFAULT_RGB)
    return rgb


def colours_of(labels: tuple[Label, ...]) -> dict[int, tuple[int, int, int]]:
    """Label value -> RGB."""
    return {label.value: label.rgb for label in labels}


def write_sheet(path: Path, rows: list[list[np.ndarray]], gap: int = 2) -> None:
    """Write pictures (h, w, 3) uint8 of one size as a PNG grid, row by row; a short last row is allowed."""
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    sheet = np.full((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3), 24, np.uint8)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            top, left = r * (height + gap), c * (width + gap)
            sheet[top : top + height, left : left + width] = picture
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, ".png") as part:
        Image.fromarray(sheet).save(part)
