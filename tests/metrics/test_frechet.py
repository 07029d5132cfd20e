"""The Frechet distance: closed forms for Gaussians, behaviour on images."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import skimage.data
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sgan_core.metrics.frechet import FeatureStatistics, frechet_distance, pooled_features


def flat(images: Tensor) -> Tensor:
    return images.flatten(1)


def covariance(rng: np.random.Generator, dimensions: int) -> np.ndarray:
    root = rng.normal(size=(dimensions, 2 * dimensions))
    return root @ root.T / dimensions


def crops(count: int, seed: int) -> Tensor:
    """Random pieces of photographs that scikit-image carries: (count, 3, 64, 64) in [-1, 1]."""
    rng = np.random.default_rng(seed)
    photographs = [skimage.data.chelsea(), skimage.data.coffee(), skimage.data.astronaut()]
    pieces = []
    for _ in range(count):
        photograph = photographs[rng.integers(len(photographs))]
        row, column = (rng.integers(side - 64) for side in photograph.shape[:2])
        pieces.append(photograph[row : row + 64, column : column + 64])
    return torch.as_tensor(np.stack(pieces)).permute(0, 3, 1, 2) / 127.5 - 1  # (N, H, W, C) -> (N, C, H, W)


def statistics_of(images: Tensor, extract: object, batch: int = 16) -> FeatureStatistics:
    statistics = FeatureStatistics(extract)  # type: ignore[arg-type]
    for part in images.split(batch):
        statistics.update(part)
    return statistics


def test_distance_of_gaussians_on_a_line_has_its_closed_form():
    found = frechet_distance(np.array([1.0]), np.array([[4.0]]), np.array([3.0]), np.array([[9.0]]))
    assert found == pytest.approx((1 - 3) ** 2 + (2 - 3) ** 2)


def test_distance_with_diagonal_covariances_has_its_closed_form():
    a, b = np.array([1.0, 4.0, 0.0]), np.array([9.0, 1.0, 16.0])
    found = frechet_distance(np.zeros(3), np.diag(a), np.ones(3), np.diag(b))
    assert found == pytest.approx(3 + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_distance_agrees_with_scipys_matrix_root_and_is_symmetric(seed, dimensions):
    rng = np.random.default_rng(seed)
    one = rng.normal(size=dimensions), covariance(rng, dimensions)
    two = rng.normal(size=dimensions), covariance(rng, dimensions)
    root = scipy.linalg.sqrtm(one[1] @ two[1]).real
    expected = np.sum((one[0] - two[0]) ** 2) + np.trace(one[1] + two[1] - 2 * root)
    assert frechet_distance(*one, *two) == pytest.approx(expected, rel=1e-6, abs=1e-8)
    assert frechet_distance(*two, *one) == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_statistics_of_another_size_are_refused():
    with pytest.raises(ValueError, match="3 features"):
        frechet_distance(np.zeros(3), np.eye(3), np.zeros(2), np.eye(2))


def test_statistics_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(np.zeros(2), np.eye(2), np.array([0.0, np.nan]), np.eye(2))


@pytest.mark.parametrize("batch", [1, 7, 40])
def test_streamed_statistics_equal_those_of_all_images_at_once(batch):
    # float32 rounding would show: the mean is 1000 times the deviation
    images = 1000 + torch.randn(40, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    found = statistics_of(images, flat, batch)
    features = images.flatten(1).double().numpy()
    assert found.count == 40
    np.testing.assert_allclose(found.mean, features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(features.T), rtol=1e-9)


def test_an_empty_batch_changes_nothing():
    statistics = statistics_of(torch.randn(5, 1, 2, 2), flat)
    before = statistics.covariance
    statistics.update(torch.zeros(0, 1, 2, 2))
    assert statistics.count == 5
    np.testing.assert_array_equal(statistics.covariance, before)


def test_a_single_image_has_no_covariance():
    with pytest.raises(ValueError, match="at least 2 images"):
        _ = statistics_of(torch.zeros(1, 1, 2, 2), flat).covariance


@pytest.fixture(scope="module")
def reference() -> FeatureStatistics:
    return statistics_of(crops(80, seed=0), pooled_features())


def test_the_same_images_have_no_distance_whatever_the_batches(reference):
    again = statistics_of(crops(80, seed=0), pooled_features(), batch=9)
    assert reference.distance(again) < 1e-4 * np.trace(reference.covariance)


def test_noise_moves_images_away_the_more_the_stronger(reference):
    images = crops(80, seed=1)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    noisy = [(images + level * noise).clamp(-1, 1) for level in (0.0, 0.1, 0.3)]
    distances = [reference.distance(statistics_of(each, pooled_features())) for each in noisy]
    assert distances == sorted(distances)
    assert distances[-1] > 1.5 * distances[0]


def test_blur_moves_images_away_the_more_the_stronger(reference):
    images = crops(80, seed=1)
    blurred = [F.interpolate(F.avg_pool2d(images, n), size=(64, 64), mode="bilinear") for n in (1, 2, 4)]
    distances = [reference.distance(statistics_of(each, pooled_features())) for each in blurred]
    assert distances == sorted(distances)
    assert distances[-1] > 1.5 * distances[0]
