"""What the chest X-ray sets share: one class, the lung, whose masks may lie in several files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from sgan_core.cohort import MODALITIES, Case, Cohort
from sgan_core.errors import InputError
from sgan_datasets.anatomy import named_label
from sgan_datasets.layout import picture_shape, read_union, resize_nearest
from sgan_datasets.source import Problem, Scan

LUNG = named_label(1, "lung")
INTENSITY = MODALITIES["xray"]["intensity"]

_SAME_ASPECT = 0.02  # rounding of the sides when a picture was scaled down


def lung_scan(name: str, cases: Iterable[Case], problems: Sequence[Problem], *, squash: bool = False) -> Scan:
    """A scan with the class lung. squash: the pictures were released stretched to a square."""
    return Scan(Cohort(name, "xray", INTENSITY, (LUNG,), tuple(cases), squash=squash), tuple(problems))


def both_sides(left: Mapping[str, Path], right: Mapping[str, Path]) -> tuple[dict[str, Path], list[Problem]]:
    """Left masks, by name, whose right mask is there as well; a problem for each mask that stands alone."""
    problems = [
        Problem("missing", f"{left[name]}: no mask of the right lung.") for name in left.keys() - right
    ]
    problems += [
        Problem("missing", f"{right[name]}: no mask of the left lung.") for name in right.keys() - left
    ]
    pairs = {name: path for name, path in left.items() if name in right}
    return pairs, sorted(problems, key=lambda problem: problem.text)


def read_lungs(case: Case) -> np.ndarray:
    """Both lungs of a case as class 1, (H, W) uint8 of the image's size.

    A mask in a folder named after the left side is joined with that of the right side beside it. Masks may
    have grey edges and another resolution than the image. Raises InputError: missing or damaged file,
    another aspect ratio.
    """
    return lungs_at(case, picture_shape(case.image))


def lungs_at(case: Case, shape: tuple[int, int]) -> np.ndarray:
    """As ``read_lungs``, for an image of the size (H, W)."""
    if case.label is None:
        raise ValueError(f"{case.id} has no label")
    lungs = read_union(_sides(Path(case.label)), value=LUNG.value)
    return at_size_of(case, lungs, Path(case.label), shape)


def at_size_of(case: Case, mask: np.ndarray, file: Path, shape: tuple[int, int] | None = None) -> np.ndarray:
    """A mask (h, w) at the size (H, W) of the case's image, or ``shape``; file: the mask's, for the message.

    Raises InputError when both have another aspect ratio.
    """
    shape = shape or picture_shape(case.image)
    height, width = mask.shape
    if abs(height * shape[1] - width * shape[0]) > _SAME_ASPECT * height * shape[1]:
        raise InputError(
            f"{file}: {width} x {height} pixels, the image {Path(case.image).name} is "
            f"{shape[1]} x {shape[0]}; they are not the same picture. Get the original files again."
        )
    return resize_nearest(mask, shape)


def _sides(label: Path) -> list[Path]:
    folder = label.parent
    if "left" not in folder.name.lower():
        return [label]
    right = folder.name.replace("left", "right").replace("Left", "Right").replace("LEFT", "RIGHT")
    return [label, folder.with_name(right) / label.name]
