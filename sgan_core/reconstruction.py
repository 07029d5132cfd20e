"""What inversion minimises: terms that say how well a generated image explains the target."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from sgan_core.config import InversionConfig
from sgan_core.networks.perceptual import Perceptual


class Reconstruction(Protocol):
    """How well an image explains its target; ``aim`` computes once what depends on the target alone."""

    def aim(self, target: Tensor) -> None:
        """Set the target, (B, C, H, W) in [-1, 1]."""

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the slices: ``rows`` (B,) bool."""

    def terms(self, image: Tensor) -> dict[str, Tensor]:
        """Weighted terms for each slice, (B,), of an image (B, C, H, W)."""


class PaperReconstruction:
    """Eq. 7: perceptual distance + lambda_3 * mean squared error."""

    def __init__(self, perceptual: Perceptual, config: InversionConfig) -> None:
        self.perceptual, self.config = perceptual, config

    def aim(self, target: Tensor) -> None:
        """Keep the target and its features; they do not change from step to step."""
        self.target = target
        with torch.no_grad():
            self.features = self.perceptual.features(target)

    def keep(self, rows: Tensor) -> None:
        """Forget the target and features of the other slices."""
        self.target, self.features = self.target[rows], [part[rows] for part in self.features]

    def terms(self, image: Tensor) -> dict[str, Tensor]:
        """Perceptual distance and MSE for each slice, (B,), weighted."""
        distance = self.perceptual.distance(self.perceptual.features(image), self.features)
        squared = (image - self.target).square().mean(dim=(1, 2, 3))
        return {
            "perceptual": self.config.perceptual_weight * distance,
            "mse": self.config.mse_weight * squared,
        }
