"""Cases of every cohort come to a model in its own units."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from sgan_core.bundle import Bundle
from sgan_core.cohort import Case, Cohort, Intensity, Label
from sgan_core.config import TrainConfig, preset
from sgan_core.evaluation.cases import read_for_model, slices_for_model
from sgan_core.imaging.grid import Grid
from sgan_core.imaging.image import Volume
from sgan_core.segment import SegmentConfig, prepare

LIVER = Label(1, "liver", (200, 90, 60))
GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


def model() -> TrainConfig:
    return replace(
        preset("tiny", modality="ct", num_classes=2, size=32), intensity=Intensity(-40.0, 160.0, "HU")
    )


def cohort_of(folder: Path, intensity: Intensity, **case: bool) -> Cohort:
    Image.fromarray(GREY).save(folder / "a.png")
    one = Case("a", "a", str(folder / "a.png"), split="test", **({"empty": True} | case))
    return Cohort("a", "ct", intensity, (LIVER,), (one,))


@pytest.mark.parametrize(
    ("intensity", "low", "high"),
    [
        (Intensity(-125.0, 275.0, "HU"), -125.0, 275.0),  # the cohort knows what its pictures show
        (Intensity(percentiles=(0.5, 99.5)), -40.0, 160.0),  # MRI: black to white is the model's range
    ],
)
def test_pictures_come_in_the_models_units(
    tmp_path: Path, intensity: Intensity, low: float, high: float
) -> None:
    cohort = cohort_of(tmp_path, intensity)
    image, truth, rule, foreign = read_for_model(cohort.cases[0], cohort, model())
    assert not truth.any()
    np.testing.assert_allclose(image.array[0], low + GREY / 255.0 * (high - low), atol=1e-3)
    assert (rule.low, rule.high, rule.unit, foreign) == (-40.0, 160.0, "", None)
    stack, _, _ = slices_for_model(cohort.cases[0], cohort, model())
    assert stack.images.shape == (1, 1, 64, 64)  # the student's
    assert (stack.low, stack.high) == (-40.0, 160.0)


@pytest.mark.parametrize("window", [(-160.0, 240.0), (-40.0, 160.0)])
def test_a_model_is_tested_on_the_slices_that_sgan_segment_shows_it(
    tmp_path: Path, untrained: Bundle, window: tuple[float, float]
) -> None:
    """Muscle in fat in air: the same cut to the body, though the rule names no unit here."""
    rows, columns = np.indices((100, 100)) - 50
    distance = np.hypot(rows, columns)
    hu = np.select([distance < 20, distance < 35], [60, -90], -1000).astype(np.int16)
    image = Volume(np.repeat(hu[:, :, None], 4, axis=2), Grid((100, 100, 4), np.diag([-2.0, -2.0, 5.0, 1.0])))
    nib.save(nib.Nifti1Image(image.array, image.grid.affine), tmp_path / "a.nii.gz")
    case = Case("a", "a", str(tmp_path / "a.nii.gz"), split="test", empty=True)
    cohort = Cohort("a", "ct", Intensity(*window, "HU"), untrained.config.labels, (case,))
    config = replace(untrained.config, intensity=cohort.intensity, body=True)
    stack, _, _ = slices_for_model(case, cohort, config)
    shown = prepare(image, replace(untrained, config=config), SegmentConfig("fast")).stack
    np.testing.assert_array_equal(stack.images, shown.images)
    assert (stack.images[0, 0] > -0.5).mean() > 0.4  # the muscle fills the square


def test_a_case_without_a_label_is_our_mistake(tmp_path: Path) -> None:
    cohort = cohort_of(tmp_path, Intensity(-40.0, 160.0, "HU"), empty=False)
    with pytest.raises(ValueError, match="a has no label"):
        read_for_model(cohort.cases[0], cohort, model())
