"""Frechet distance between two sets of images: how far generated images are from real ones as a whole.

The distance of Heusel et al. (NeurIPS 2017) on pooled features of EfficientNet-Lite0 instead of Inception,
so that nothing is downloaded. The figures are not comparable with published FIDs, only with each other.

Training of the GAN optimises none of these features, so the figure is honest there. The encoder and the
inversion do optimise the first blocks of the same network (their perceptual term): never rank reconstructions
by it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sgan_core.networks.perceptual import EfficientNetLite0, load_lite0

FeatureExtractor = Callable[[Tensor], Tensor]


def pooled_features(device: torch.device | str = "cpu") -> FeatureExtractor:
    """The default features: what EfficientNet-Lite0's classifier reads.

    Returns a function from images (B, 1 or 3, H, W) in [-1, 1] on ``device`` to features (B, 1280).
    Raises InputError when the weights are not installed.
    """
    return load_lite0(EfficientNetLite0()).to(device).pooled


class FeatureStatistics:
    """Mean and covariance of the features of a set of images, fed in batches.

    Few images make every distance too large by an amount that depends on their number (400 against 400 CT
    slices of 64 px: 48, where slight noise gives 200); below 1280 images the covariance lacks rank, too.
    Compare only figures taken with the same number of images on both sides.
    """

    def __init__(self, extract: FeatureExtractor) -> None:
        """extract: images (B, C, H, W) -> features (B, D), see ``pooled_features``."""
        self._extract = extract
        self.count = 0
        self._mean = np.zeros(0)
        self._scatter = np.zeros((0, 0))  # sum of outer products of deviations from the mean

    @torch.no_grad()
    def update(self, images: Tensor) -> None:
        """Add a batch. images: (B, C, H, W) in [-1, 1], on the device of the extractor."""
        if len(images) == 0:
            return
        features = self._extract(images).double().cpu().numpy()  # (B, D)
        if self.count == 0:
            dimensions = features.shape[1]
            self._mean, self._scatter = np.zeros(dimensions), np.zeros((dimensions, dimensions))
        # Two sets merged by their means (Chan et al., 1983): sums of squares would cancel.
        batch_mean = features.mean(0)
        deviations = features - batch_mean
        step = batch_mean - self._mean
        total = self.count + len(features)
        self._scatter += deviations.T @ deviations + np.outer(step, step) * (
            self.count * len(features) / total
        )
        self._mean = self._mean + step * (len(features) / total)
        self.count = total

    @property
    def mean(self) -> np.ndarray:
        """(D,) float64."""
        return self._mean

    @property
    def covariance(self) -> np.ndarray:
        """(D, D) float64, unbiased. Raises ValueError below two images."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {self.count}")
        return self._scatter / (self.count - 1)

    def distance(self, other: FeatureStatistics) -> float:
        """Frechet distance to another set: 0 for the same images, larger is worse."""
        return frechet_distance(self.mean, self.covariance, other.mean, other.covariance)


def frechet_distance(
    mean_1: np.ndarray, covariance_1: np.ndarray, mean_2: np.ndarray, covariance_2: np.ndarray
) -> float:
    """Squared Frechet (2-Wasserstein) distance between two Gaussians, >= 0.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), means (D,), covariances (D, D) symmetric.
    Raises ValueError for other shapes or values that are not finite.
    """
    dimensions = len(mean_1)
    for mean, covariance in ((mean_1, covariance_1), (mean_2, covariance_2)):
        if mean.shape != (dimensions,) or covariance.shape != (dimensions, dimensions):
            raise ValueError(
                f"statistics of {dimensions} features and of shapes {mean.shape}, {covariance.shape}"
            )
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise ValueError("the statistics contain values that are not finite")
    # C1 C2 has the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric: no complex square root as with
    # scipy.linalg.sqrtm, and rank-deficient covariances do no harm.
    values, vectors = np.linalg.eigh(covariance_1)
    root_1 = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.linalg.eigvalsh(root_1 @ covariance_2 @ root_1)
    trace = np.trace(covariance_1) + np.trace(covariance_2) - 2 * np.sqrt(cross.clip(min=0)).sum()
    return max(
        0.0, float(np.sum((mean_1 - mean_2) ** 2) + trace)
    )  # rounding can leave a tiny negative number
