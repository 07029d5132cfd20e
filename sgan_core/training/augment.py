"""Random transforms before the discriminators, drawn for each sample of the joint batch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sgan_core.config import AugmentConfig
from sgan_core.training.parallel import full_precision


def draw(batch: int, strength: float, config: AugmentConfig, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Transforms for ``batch`` samples; each part is applied with probability ``strength``.

    Returns theta (batch, 2, 3) for ``affine_grid`` and contrast (batch, 2): factor and offset.
    """

    def part(spread: float) -> Tensor:
        value = (torch.rand(batch, generator=rng) * 2 - 1) * spread
        return value * (torch.rand(batch, generator=rng) < strength)

    angle = part(math.radians(config.rotation_deg))
    scale = torch.exp(part(config.scale))
    shift = torch.stack([part(2 * config.shift), part(2 * config.shift)], dim=1)  # grid units: the side is 2
    flip = (
        torch.where(torch.rand(batch, generator=rng) < 0.5 * strength, -1.0, 1.0)
        if config.flip
        else torch.ones(batch)
    )
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    rows = torch.stack([torch.stack([cos * flip, -sin], dim=1), torch.stack([sin * flip, cos], dim=1)], dim=1)
    theta = torch.cat([rows, shift[:, :, None]], dim=2)  # (batch, 2, 3)
    contrast = torch.stack([torch.exp(part(config.contrast)), part(config.contrast)], dim=1)
    return theta, contrast


def warp(
    image: Tensor, theta: Tensor, contrast: Tensor, label_probs: Tensor | None = None, *, fill: str = "air"
) -> tuple[Tensor, Tensor | None]:
    """Apply drawn transforms; image and label move together.

    image: (B, C, H, W) in [-1, 1]; label_probs: (B, K, H, W) summing to 1, or None. fill: outside is "air" (-1)
    and background, or the "border" goes on: the outermost pixels of image and label are repeated.
    """
    channels = image.shape[1]
    # Zero padding is right for image + 1 (air) and for the foreground; background is the rest.
    stacked = image + 1.0 if label_probs is None else torch.cat([image + 1.0, label_probs[:, 1:]], dim=1)
    with full_precision(image.device):  # bfloat16 would move the pixels of 256 by up to a quarter of one
        grid = F.affine_grid(theta.to(image), [*image.shape], align_corners=False)
    outside = {"air": "zeros", "border": "border"}[fill]
    stacked = F.grid_sample(stacked, grid, mode="bilinear", padding_mode=outside, align_corners=False)
    factor, offset = contrast.to(image)[:, :, None, None, None].unbind(dim=1)  # (B, 1, 1, 1)
    moved = (stacked[:, :channels] - 1.0) * factor + offset
    if label_probs is None:
        return moved, None
    foreground = stacked[:, channels:]
    return moved, torch.cat([1.0 - foreground.sum(dim=1, keepdim=True), foreground], dim=1)
