"""What inversion minimises: terms that say how well a generated image explains the target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sgan_core.config import InversionConfig
from sgan_core.errors import InputError
from sgan_core.networks.perceptual import Perceptual

CURVE_KNOTS = 7  # of an intensity curve: free to rise and fall three times, too stiff to draw an organ
_CURVE_BEND = 1e-3  # weight of the curve's squared second differences against the mean squared error
_CURVE_SIZE = 1e-4  # the same of its squared values: knots that no pixel is near would be undetermined
_LEAST_VARIANCE = 1e-3  # an empty slice has none; the range of an image is 2
MIND_DILATIONS = (1, 2)  # pixels from a pixel to the patches that are compared
MIND_PATCH_PX = 0.8  # standard deviation of a patch's Gaussian weights


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
            "perceptual": self.config.perceptual_weight * distance,  # LPIPS in Eq. 7
            "mse": self.config.mse_weight * squared,  # times lambda_3 in Eq. 7
        }


class IntensityMapReconstruction:
    """The share of the target that no curve over the generated intensities explains: for another modality.

    Each step draws the best curve from generated to target intensity through the pixels of a slice (least
    squares, ``CURVE_KNOTS`` straight pieces, lightly held from bending), so a tissue may have any brightness as
    long as it is one. What is left, over the target's variance, is one minus the correlation ratio of Roche et
    al. (MICCAI 1998): 0 where the target is a function of the image, about 1 where the two have nothing in
    common. The curve is a constant of the gradient: at its optimum it contributes none. A channel is
    explained by the same channel.
    """

    def aim(self, target: Tensor) -> None:
        """Keep the target, its mean and its variance."""
        values = target.flatten(2)  # (B, C, H * W)
        self.mean = values.mean(dim=2, keepdim=True)
        self.values = values - self.mean
        self.variance = self.values.square().mean(dim=2)  # (B, C)

    def keep(self, rows: Tensor) -> None:
        """Forget the other slices."""
        self.mean, self.values, self.variance = self.mean[rows], self.values[rows], self.variance[rows]

    def terms(self, image: Tensor) -> dict[str, Tensor]:
        """The unexplained share for each slice, (B,), the mean over channels."""
        basis = hat_functions(image.flatten(2), CURVE_KNOTS)  # (B, C, H * W, knots)
        with torch.no_grad():
            curve = fit_curve(basis, self.values)  # (B, C, knots)
        explained = (basis @ curve[..., None])[..., 0]
        squared = (explained - self.values).square().mean(dim=2)
        unexplained = squared + roughness(curve)  # what the curve minimises, so its own gradient is zero
        return {"intensity_map": (unexplained / (self.variance + _LEAST_VARIANCE)).mean(dim=1)}


class MindReconstruction:
    """Squared differences of self-similarity contexts: for another modality.

    Modality independent neighbourhood descriptors (MIND-SSC; Heinrich et al., MICCAI 2013), here in the plane: how
    alike are the patches above, right, below and left of a pixel, each to the next. Edges and texture decide,
    whatever the brightness on either side of an edge. Colours are averaged to grey.
    """

    def aim(self, target: Tensor) -> None:
        """Keep the target's descriptors."""
        self.descriptors = [self_similarities(target, dilation) for dilation in MIND_DILATIONS]

    def keep(self, rows: Tensor) -> None:
        """Forget the other slices."""
        self.descriptors = [part[rows] for part in self.descriptors]

    def terms(self, image: Tensor) -> dict[str, Tensor]:
        """Mean squared difference of the descriptors for each slice, (B,), the sum over dilations."""
        pairs = zip(MIND_DILATIONS, self.descriptors, strict=True)
        differences = [(self_similarities(image, d) - part).square().mean(dim=(1, 2, 3)) for d, part in pairs]
        return {"mind": torch.stack(differences).sum(dim=0)}


def self_similarities(image: Tensor, dilation: int) -> Tensor:
    """Four self-similarities of each pixel, (B, C, H, W) -> (B, 4, H, W) in (0, 1].

    exp(-D / V): D the squared difference of two of the four patches ``dilation`` pixels away, less the smallest
    of the pixel's four, V their mean.
    """
    height, width = image.shape[-2:]
    padded = F.pad(image.mean(dim=1, keepdim=True), (dilation,) * 4, mode="replicate")
    corners = ((0, 1), (1, 2), (2, 1), (1, 0))  # (row, column) of above, right, below, left, in dilations
    around = [padded[..., y * dilation :, x * dilation :][..., :height, :width] for y, x in corners]
    pairs = zip(around, around[1:] + around[:1], strict=True)
    distance = gaussian_blur(torch.cat([(a - b).square() for a, b in pairs], dim=1), sigma_px=MIND_PATCH_PX)
    distance = distance - distance.amin(dim=1, keepdim=True)
    variance = distance.mean(dim=1, keepdim=True)
    # Bounded as in the paper, or flat regions would be all noise; a constant slice must not divide by zero.
    typical = variance.mean(dim=(2, 3), keepdim=True).detach() + 1e-8
    return torch.exp(-distance / variance.maximum(1e-3 * typical).minimum(1e3 * typical))


def gaussian_blur(image: Tensor, *, sigma_px: float) -> Tensor:
    """Blur (B, C, H, W) in the plane; pixels beyond the border are those of the border."""
    radius = int(3 * sigma_px + 0.5)
    offset = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-0.5 * (offset / sigma_px).square())
    kernel = kernel / kernel.sum()
    planes = F.pad(image.flatten(0, 1)[:, None], (radius,) * 4, mode="replicate")  # (B * C, 1, ...)
    planes = F.conv2d(F.conv2d(planes, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    return planes.view_as(image)


def hat_functions(intensity: Tensor, knots: int) -> Tensor:
    """The share of each of ``knots`` even-spaced knots over [-1, 1] in each intensity: (...) -> (..., knots).

    Linear interpolation between knot values is the product with them. Intensities beyond are clipped.
    """
    position = (intensity.clamp(-1.0, 1.0) + 1.0) * ((knots - 1) / 2)
    at = torch.arange(knots, dtype=intensity.dtype, device=intensity.device)
    return (1.0 - (position[..., None] - at).abs()).clamp(min=0.0)


@torch.no_grad()
def recoloured(image: Tensor, target: Tensor) -> Tensor:
    """The image in the target's brightness, to be shown or subtracted: each slice and channel through its curve.

    Both (B, C, H, W); the result is in about [-1, 1].
    """
    values = target.flatten(2)  # (B, C, H * W)
    mean = values.mean(dim=2, keepdim=True)
    basis = hat_functions(image.flatten(2), CURVE_KNOTS)
    curve = fit_curve(basis, values - mean)
    return ((basis @ curve[..., None])[..., 0] + mean).view_as(image)


def unexplained_shares(image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Share of the target's variance that the image leaves unexplained, as it is and through its best curve.

    Both (B, C, H, W); returns (B,) twice. About equal where brightness means the same in both.
    """
    curve = IntensityMapReconstruction()
    curve.aim(target)
    squared = (image - target).square().flatten(2).mean(dim=2)
    plain = (squared / (curve.variance + _LEAST_VARIANCE)).mean(dim=1)
    return plain, curve.terms(image)["intensity_map"]


def fit_curve(basis: Tensor, values: Tensor) -> Tensor:
    """Knot values of the curves nearest to ``values``: (..., N, knots), (..., N) -> (..., knots).

    They minimise the mean squared error + ``roughness``.
    """
    count, knots = basis.shape[-2:]
    gram = basis.mT @ basis / count + _stiffness(basis, knots)
    return torch.linalg.solve(gram, basis.mT @ values[..., None] / count)[..., 0]


def roughness(curve: Tensor) -> Tensor:
    """The small price of a curve's bending and size: (..., knots) -> (...)."""
    return ((curve @ _stiffness(curve, curve.shape[-1])) * curve).sum(dim=-1)


def _stiffness(like: Tensor, knots: int) -> Tensor:
    """``roughness`` as a quadratic form, (knots, knots)."""
    eye = torch.eye(knots, dtype=like.dtype, device=like.device)
    bend = eye.diff(n=2, dim=0)  # (knots - 2, knots)
    return _CURVE_BEND * bend.mT @ bend + _CURVE_SIZE * eye


class Weighted:
    """A sum of reconstructions with weights."""

    def __init__(self, *parts: tuple[float, Reconstruction]) -> None:
        self.parts = parts

    def aim(self, target: Tensor) -> None:
        """Set the target of every part."""
        for _, part in self.parts:
            part.aim(target)

    def keep(self, rows: Tensor) -> None:
        """Forget the other slices in every part."""
        for _, part in self.parts:
            part.keep(rows)

    def terms(self, image: Tensor) -> dict[str, Tensor]:
        """The terms of all parts, weighted; their names differ."""
        return {name: w * value for w, part in self.parts for name, value in part.terms(image).items()}


Build = Callable[[Perceptual, InversionConfig], Reconstruction]

RECONSTRUCTIONS: dict[str, Build] = {
    "paper": PaperReconstruction,
    "mind": lambda perceptual, config: MindReconstruction(),
    "map-mind": lambda perceptual, config: Weighted(
        (1.0, IntensityMapReconstruction()), (0.5, MindReconstruction())
    ),
}


def make_reconstruction(name: str, perceptual: Perceptual, config: InversionConfig) -> Reconstruction:
    """The objective of a name in ``RECONSTRUCTIONS``. Raises InputError for an unknown one."""
    if name not in RECONSTRUCTIONS:
        raise InputError(f"reconstruction is {name!r}, expected one of {', '.join(RECONSTRUCTIONS)}")
    return RECONSTRUCTIONS[name](perceptual, config)
