"""Random changes of how tissues look, which leave the anatomy where it is.

A segmenter that has seen every tissue in every brightness must go by shape, so it may read a modality it was
never trained on (random intensity curves: Zhou et al. 2022, Dual-Normalization).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sgan_core.errors import InputError

CURVE_POINTS = (5, 8)  # fewest and most random values that a curve passes near
_TABLE = 256  # entries of a curve as a look-up table over [-1, 1]
_SMOOTHING = 17  # table entries, odd: corners of a curve are rounded over 7 % of the range
_BIAS_NODES = 4  # random values along a side of the bias field
_BLUR_RADIUS = 3  # pixels


@dataclass(frozen=True)
class AppearanceConfig:
    """How often and how far images change. Shares are probabilities for each image."""

    curve: float = 0.8  # share of images whose intensities pass through a random curve
    monotone: float = 0.5  # share of curves that rise; the others go up and down
    dark_air: float = 0.9  # share of curves that leave air (-1) at -1
    bias: float = 0.5  # share of images with a bias field
    bias_log: float = 0.4  # brightness is multiplied by exp(-bias_log) .. exp(bias_log)
    noise: float = 0.5  # share of images with noise
    noise_std: float = 0.12  # largest standard deviation; the range of an image is 2
    blur: float = 0.3  # share of images that are blurred
    blur_px: float = 1.0  # largest standard deviation of the blur, pixels

    def __post_init__(self) -> None:
        for name in ("curve", "monotone", "dark_air", "bias", "noise", "blur"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"appearance: {name} is {getattr(self, name)}, expected a share from 0 to 1")
        for name in ("bias_log", "noise_std", "blur_px"):
            if getattr(self, name) < 0.0:
                raise InputError(f"appearance: {name} is {getattr(self, name)}, expected 0 or more")


def shift_appearance(image: Tensor, rng: torch.Generator, config: AppearanceConfig | None = None) -> Tensor:
    """Give each image of a batch another look: intensity curve, blur, bias field, noise.

    image: (B, C, H, W) in [-1, 1]; the channels of an image share curve and bias field. rng: a CPU generator,
    the only source of randomness. Returns the same shape, in [-1, 1].
    """
    config = config or AppearanceConfig()
    batch, _, height, width = image.shape
    curves = random_curves(batch, rng, config).to(image)
    fields = bias_fields(batch, (height, width), rng, config).to(image)
    chosen = _chosen(batch, config.curve, rng).to(image.device)[:, None, None, None]
    blur_px = torch.rand(batch, generator=rng) * config.blur_px * _chosen(batch, config.blur, rng)
    noise_std = torch.rand(batch, generator=rng) * config.noise_std * _chosen(batch, config.noise, rng)
    noise = torch.randn(image.shape, generator=rng) * noise_std[:, None, None, None]

    changed = torch.where(chosen, apply_curves(image, curves), image)
    changed = _blurred(changed, blur_px.to(image))
    changed = (changed + 1.0) * fields - 1.0  # multiplies brightness, so air stays dark
    return (changed + noise.to(image)).clamp(-1.0, 1.0)


def random_curves(count: int, rng: torch.Generator, config: AppearanceConfig) -> Tensor:
    """Smooth curves over [-1, 1] as tables of evenly spaced values, (count, 256) in [-1, 1].

    Each passes near 5 to 8 random values, sorted for a rising curve.
    """
    fewest, most = CURVE_POINTS
    points = torch.randint(fewest, most + 1, (count, 1), generator=rng)
    values = torch.rand(count, most, generator=rng) * 2.0 - 1.0
    spare = torch.arange(most) >= points
    rising = values.masked_fill(spare, torch.inf).sort(dim=1).values  # unused places last, where nobody looks
    values = torch.where(_chosen(count, config.monotone, rng)[:, None], rising, values)
    dark = _chosen(count, config.dark_air, rng)
    values[:, 0] = torch.where(dark, -1.0, values[:, 0])

    position = torch.linspace(0.0, 1.0, _TABLE) * (points - 1)  # (count, 256)
    below = position.long().minimum(points - 2)
    step = position - below
    table = values.gather(1, below) * (1.0 - step) + values.gather(1, below + 1) * step
    margin = _SMOOTHING // 2
    padded = F.pad(table[:, None], (margin, margin), mode="replicate")
    smooth = F.avg_pool1d(padded, _SMOOTHING, stride=1)[:, 0]  # keeps order: a rising curve stays rising
    smooth[:, 0] = torch.where(dark, -1.0, smooth[:, 0])
    return smooth.clamp(-1.0, 1.0)


def apply_curves(image: Tensor, curves: Tensor) -> Tensor:
    """Look up every intensity of image (B, C, H, W) in [-1, 1] in its curve (B, 256), linearly in between."""
    last = curves.shape[1] - 1
    position = (image.flatten(1).clamp(-1.0, 1.0) + 1.0) * (last / 2)  # (B, C * H * W)
    below = position.long().clamp(max=last - 1)
    step = position - below
    found = curves.gather(1, below) * (1.0 - step) + curves.gather(1, below + 1) * step
    return found.view_as(image)


def bias_fields(count: int, shape: tuple[int, int], rng: torch.Generator, config: AppearanceConfig) -> Tensor:
    """Slowly varying factors (count, 1, H, W) in exp(-bias_log) .. exp(bias_log); 1 without bias."""
    nodes = torch.rand(count, 1, _BIAS_NODES, _BIAS_NODES, generator=rng) * 2.0 - 1.0
    field = F.interpolate(nodes, size=shape, mode="bicubic", align_corners=True).clamp(-1.0, 1.0)
    biased = _chosen(count, config.bias, rng)[:, None, None, None]
    return torch.exp(field * config.bias_log * biased)


def _chosen(count: int, share: float, rng: torch.Generator) -> Tensor:
    """(count,) bool, True with probability ``share``."""
    return torch.rand(count, generator=rng) < share


def _blurred(image: Tensor, sigma_px: Tensor) -> Tensor:
    """Gaussian blur of (B, C, H, W) with each image's own standard deviation (B,); 0 leaves it as it is."""
    batch, channels, height, width = image.shape
    offset = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (offset / sigma_px.clamp(min=1e-3)[:, None]).square())
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)  # (B * C, 7)
    planes = image.reshape(1, batch * channels, height, width)  # one group a plane
    planes = F.pad(planes, (_BLUR_RADIUS,) * 4, mode="replicate")
    planes = F.conv2d(planes, kernel[:, None, None, :], groups=batch * channels)
    planes = F.conv2d(planes, kernel[:, None, :, None], groups=batch * channels)
    return planes.view_as(image)
