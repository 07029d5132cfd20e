"""The bundled model on phantoms it never saw: right masks, nothing where nothing is, doubt where doubt is due."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from sgan_core.bundle import Bundle, load_bundle
from sgan_core.imaging.image import Volume
from sgan_core.imaging.slices import to_model
from sgan_core.inversion import invert
from sgan_core.labelling import SegmentConfig
from sgan_core.metrics.failure import empty_slice_area_mm2
from sgan_core.phantom import LIVER, PhantomCase, make_case
from sgan_core.reconstruction import PaperReconstruction
from sgan_core.segment import Segmentation, segment_volume
from sgan_core.trust import calibrations, stored_calibration

SEED = 710_000  # not of training, validation, test or the tables
FAST = SegmentConfig("fast")


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle("phantom-ct-liver")


@pytest.fixture(scope="module")
def scan() -> PhantomCase:
    return make_case(SEED, "ct")


def dice(found: Segmentation, case: PhantomCase) -> float:
    mask, truth = found.labels > 0, case.labels == LIVER
    return float(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))


def test_its_own_modality_is_segmented_and_trusted(bundle: Bundle, scan: PhantomCase) -> None:
    found = segment_volume(scan.image, bundle, FAST)
    assert dice(found, scan) > 0.88
    assert found.trust.status == "ok"
    assert found.reconstruction.name == "paper"
    assert len(found.trust.wrong) == scan.image.array.shape[2]


def test_every_way_of_segmenting_that_gets_a_figure_is_calibrated(bundle: Bundle) -> None:
    ways = {method: list(part) for method, part in calibrations(bundle.facts).items()}
    assert ways == {"student": ["fast", "standard", "careful"], "encoder": ["fast"]}
    for method, qualities in ways.items():
        for quality in qualities:
            assert stored_calibration(bundle.facts, quality, method) is not None
            assert bundle.facts[f"trust_{method}_{quality}_auc_wrong"] > 0.85
            assert bundle.facts[f"trust_{method}_{quality}_calibration_error"] < 0.1


@pytest.mark.parametrize("domain", ["t1_in", "t1_out"])
def test_mri_is_segmented_by_a_model_that_never_saw_any(bundle: Bundle, domain: str) -> None:
    case = make_case(SEED, domain)
    found = segment_volume(case.image, bundle, FAST)
    assert dice(found, case) > 0.85
    assert found.reconstruction.name == "map-mind"


def test_slices_without_the_organ_stay_empty(bundle: Bundle, scan: PhantomCase) -> None:
    truth = scan.labels == LIVER
    empty = ~truth.any(axis=(0, 1))
    assert empty.sum() >= 5
    found = segment_volume(scan.image, bundle, FAST)
    pixel_mm2 = float(np.prod(scan.image.grid.spacing_mm[:2]))
    slices = (np.moveaxis(part, 2, 0).astype(np.uint8) for part in (found.labels, truth))
    area_mm2, count = empty_slice_area_mm2(*slices, pixel_mm2=pixel_mm2)
    assert count == empty.sum()
    assert area_mm2 < 100.0  # a fleck of 1 cm
    air = Volume(np.full_like(scan.image.array, -1000), scan.image.grid)
    assert not segment_volume(air, bundle, FAST).labels.any()


def ellipse(mm: np.ndarray, centre: tuple[float, float], radii: tuple[float, float]) -> np.ndarray:
    return sum(((at - c) / r) ** 2 for at, c, r in zip(mm, centre, radii, strict=True)) < 1


def head(mm: np.ndarray) -> np.ndarray:
    """HU of a slice through the brain; ``mm``: coordinates (2, I, J) from the centre."""
    slice_ = np.full(mm.shape[1:], -1000.0)
    for radii, hu in (((80, 100), 40), ((74, 94), 900), ((67, 87), 35)):
        slice_[ellipse(mm, (0, 0), radii)] = hu
    for side in (-1, 1):
        slice_[ellipse(mm, (10 * side, 5), (5, 22))] = 8  # ventricles
    return slice_


def pelvis(mm: np.ndarray) -> np.ndarray:
    """The same through the hips."""
    slice_ = np.full(mm.shape[1:], -1000.0)
    slice_[ellipse(mm, (0, 0), (175, 110))] = -100
    slice_[ellipse(mm, (0, 0), (160, 95))] = 55
    slice_[ellipse(mm, (0, 10), (95, 65))] = -90
    slice_[ellipse(mm, (0, -15), (40, 30))] = 5  # bladder
    slice_[ellipse(mm, (0, 45), (22, 18))] = 30  # rectum
    for side in (-1, 1):
        slice_[ellipse(mm, (110 * side, 10), (26, 26))] = 600  # heads of the femurs
    return slice_


@pytest.mark.parametrize(("draw", "most_mm2"), [(head, 0.0), (pelvis, 400.0)])  # a fleck of 2 cm at the hip
def test_parts_of_the_body_it_never_saw_get_next_to_no_mask(
    bundle: Bundle, scan: PhantomCase, draw: Callable[[np.ndarray], np.ndarray], most_mm2: float
) -> None:
    shape, spacing = scan.image.array.shape, scan.image.grid.spacing_mm
    mm = np.indices(shape[:2], dtype=float)
    mm = (mm - (np.array(shape[:2]) / 2)[:, None, None]) * np.array(spacing[:2])[:, None, None]
    noise = np.random.default_rng(0).normal(0, 10, shape)
    other = Volume((draw(mm)[..., None] + noise).astype(np.float32), scan.image.grid)
    found = segment_volume(other, bundle, FAST)
    area_mm2 = found.labels.sum() / shape[2] * float(np.prod(spacing[:2]))
    assert area_mm2 <= most_mm2
    assert found.trust.status == "review"


def noisy(ct: np.ndarray) -> np.ndarray:
    return ct + np.random.default_rng(0).normal(0, 600, ct.shape)  # half as much is still segmented rightly


def half(ct: np.ndarray) -> np.ndarray:
    ct = ct.copy()
    ct[: len(ct) // 2] = -1000
    return ct


def turned(ct: np.ndarray) -> np.ndarray:
    return np.rot90(ct).copy()


def streaks(ct: np.ndarray) -> np.ndarray:
    """Bright and dark rays from a point, as metal draws them."""
    i, j = np.indices(ct.shape[:2]) - 64.0
    rays = 900 * np.sin(24 * np.arctan2(j, i)) * np.exp(-np.hypot(i, j) / 60)
    return ct + rays[..., None]


def shuffled(ct: np.ndarray) -> np.ndarray:
    """Anatomy in pieces: quarters of rows and columns change places."""
    blocks = np.concatenate([ct[32 * k : 32 * k + 32] for k in (2, 0, 3, 1)])
    return np.concatenate([blocks[:, 32 * k : 32 * k + 32] for k in (1, 3, 0, 2)], axis=1)


@pytest.mark.parametrize("spoil", [noisy, half, turned, streaks, shuffled])
def test_what_is_spoilt_is_to_be_reviewed(
    bundle: Bundle, scan: PhantomCase, spoil: Callable[[np.ndarray], np.ndarray]
) -> None:
    array = spoil(scan.image.array.astype(np.float32)).astype(np.float32)
    trust = segment_volume(Volume(array, scan.image.grid), bundle, FAST).trust
    assert trust.status == "review"
    assert "slices" in trust.reason


def test_curvature_spares_inversion_steps(bundle: Bundle, scan: PhantomCase) -> None:
    target = torch.from_numpy(
        to_model(scan.image, size=64, intensity=bundle.config.intensity).images[10:30:5]
    )
    config = replace(bundle.config.inversion, steps=20)
    networks = (bundle.generator, bundle.encoder, PaperReconstruction(bundle.perceptual, config))
    blind = invert(target, *networks, config)
    knowing = invert(target, *networks, config, curvature=bundle.curvature)
    assert (knowing.loss < 0.95 * blind.loss).all()


def test_the_reason_of_another_objective_is_told(bundle: Bundle, scan: PhantomCase) -> None:
    """CT whose numbers are not in HU: the units give it away."""
    shifted = Volume((scan.image.array + 1100).clip(0), scan.image.grid)
    found = segment_volume(shifted, bundle, FAST)
    assert "Hounsfield" in found.reconstruction.reason


def test_soft_dice_confidence_falls_with_the_dice_of_spoilt_scans(bundle: Bundle) -> None:
    """What decides which scan is worth a label: CT with more and more noise, by a student alone."""
    alone = replace(bundle, inverter=None)
    confidences, dices = [], []
    for number, noise_hu in enumerate((0.0, 100.0, 200.0, 400.0, 800.0) * 2):
        case = make_case(SEED + number // 5, "ct")
        noise = np.random.default_rng(number).normal(0.0, noise_hu, case.image.array.shape)
        found = segment_volume(Volume(case.image.array + noise, case.image.grid), alone, FAST)
        assert found.soft_dice_confidence is not None
        confidences.append(found.soft_dice_confidence)
        dices.append(dice(found, case))
    assert spearmanr(confidences, dices).statistic > 0.8
    assert max(dices) > 0.9
    assert min(dices) < 0.6
    assert confidences[0] == pytest.approx(dices[0], abs=0.05)
