"""The cases that a model is tested on, as a model wants them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sgan_core.cohort import Case, Cohort, Intensity
from sgan_core.config import TrainConfig
from sgan_core.imaging.image import Picture, Volume
from sgan_core.imaging.intensity import in_units
from sgan_core.imaging.slices import SliceStack, to_model
from sgan_core.segment import choose_intensity
from sgan_core.training.data import read_case


def read_for_model(
    case: Case, cohort: Cohort, config: TrainConfig
) -> tuple[Volume | Picture, np.ndarray, Intensity, str | None]:
    """A labelled case: image, true classes, the rule that makes [-1, 1] of the image, and why that is not the model's.

    Where the cohort knows Hounsfield units they are believed; else it is what sgan-segment makes of the file, for
    whom an 8-bit picture shows the model's range. The rule names no unit, so that nobody doubts it again.
    Raises InputError as ``read_case``, ValueError for a case without a label.
    """
    image, truth = read_case(case, cohort)
    if truth is None:
        raise ValueError(f"{case.id} has no label")
    if cohort.intensity.unit == config.intensity.unit == "HU":
        return image, truth, replace(config.intensity, unit=""), None
    intensity, foreign = choose_intensity(image, config.intensity)
    return in_units(image, intensity), truth, replace(intensity, unit=""), foreign


def slices_for_model(
    case: Case, cohort: Cohort, config: TrainConfig
) -> tuple[SliceStack, np.ndarray, str | None]:
    """The same as slices of the student's size, with the true classes on the image's own grid."""
    image, truth, intensity, foreign = read_for_model(case, cohort, config)
    stack = to_model(
        image,
        size=config.student_size,
        intensity=intensity,
        channels=config.generator.image_channels,
        squash=config.squash,
        body=config.body,
    )
    return stack, truth, foreign
