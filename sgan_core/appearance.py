"""Random changes of how tissues look, which leave the anatomy where it is.

A segmenter that has seen every tissue in every brightness must go by shape, so it may read a modality it was
never trained on (random intensity curves: Zhou et al. 2022, Dual-Normalization).
"""

from __future__ import annotations

from collections.abc import Callable
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
_BODY = -0.9  # brighter is body
_BLACK, _DARK = -0.8, -0.65  # darker is as black as air; darker is fat or gas, if the window shows fat at all
_CLIPPED = -0.85, 0.35  # a window clips fat where more than this share of what is dark and thin is that black
_TISSUE = 0.0  # soft tissue is at least as bright, where fat takes part of a pixel
_FAT = (0.3, 2.0)  # brightness of fat, the brightest other tissue being 1; on T1 it is far above
_THICK = 10  # lung and bowel gas are wider than a tenth of the picture


@dataclass(frozen=True)
class AppearanceConfig:
    """How often and how far images change. Shares are probabilities for each image."""

    fat: float = 0.3  # share of images in which fat is told from air, see ``light_fat``
    gas: float = 0.25  # share of those in which wide dark regions, mostly lung and bowel gas, change as well
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
        for name in ("fat", "gas", "curve", "monotone", "dark_air", "bias", "noise", "blur"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"appearance: {name} is {getattr(self, name)}, expected a share from 0 to 1")
        for name in ("bias_log", "noise_std", "blur_px"):
            if getattr(self, name) < 0.0:
                raise InputError(f"appearance: {name} is {getattr(self, name)}, expected 0 or more")


@dataclass(frozen=True, eq=False)
class Looks:
    """What the looks of B images are made of, drawn for all of them at once; CPU tensors."""

    fat: FatLooks
    curves: Tensor  # (B, 256)
    curved: Tensor  # (B,) bool: whether the curve is used
    blur_px: Tensor  # (B,)
    fields: Tensor  # (B, 1, H, W), factors of brightness
    noise: Tensor  # (B, C, H, W)

    def part(self, of: Callable[[Tensor], Tensor]) -> Looks:
        """The looks of some of the images: ``of`` takes the rows of a tensor (B, ...)."""
        fat = FatLooks(*(of(rows) for rows in vars(self.fat).values()))
        return Looks(fat, *(of(rows) for name, rows in vars(self).items() if name != "fat"))


@dataclass(frozen=True, eq=False)
class FatLooks:
    """Of which images fat is told from air, and how bright fat and gas are then; all (B,)."""

    chosen: Tensor  # bool
    fat: Tensor
    gas: Tensor  # 0 leaves it black


def draw_looks(
    shape: tuple[int, int, int, int], rng: torch.Generator, config: AppearanceConfig | None = None
) -> Looks:
    """Draw looks for a batch of a shape (B, C, H, W). rng: a CPU generator, the only source of randomness."""
    config = config or AppearanceConfig()
    batch, _, height, width = shape
    curves = random_curves(batch, rng, config)
    fields = bias_fields(batch, (height, width), rng, config)
    curved = _chosen(batch, config.curve, rng)
    blur_px = torch.rand(batch, generator=rng) * config.blur_px * _chosen(batch, config.blur, rng)
    noise_std = torch.rand(batch, generator=rng) * config.noise_std * _chosen(batch, config.noise, rng)
    noise = torch.randn(shape, generator=rng) * noise_std[:, None, None, None]
    return Looks(_draw_fat(batch, rng, config), curves, curved, blur_px, fields, noise)


def apply_looks(image: Tensor, looks: Looks) -> Tensor:
    """Give each image of a batch (B, C, H, W) in [-1, 1] its look; the channels share curve and bias field.

    Returns the same shape, in [-1, 1].
    """
    changed = _lit(image, looks.fat)
    curved = looks.curved.to(image.device)[:, None, None, None]
    changed = torch.where(curved, apply_curves(changed, looks.curves.to(image)), changed)
    changed = _blurred(changed, looks.blur_px.to(image))
    changed = (changed + 1.0) * looks.fields.to(image) - 1.0  # multiplies brightness, so air stays dark
    return (changed + looks.noise.to(image)).clamp(-1.0, 1.0)


def shift_appearance(image: Tensor, rng: torch.Generator, config: AppearanceConfig | None = None) -> Tensor:
    """Give each image of a batch another look: grey of fat, intensity curve, blur, bias field, noise.

    image: (B, C, H, W) in [-1, 1]. rng: a CPU generator, the only source of randomness. Returns the same shape,
    in [-1, 1].
    """
    batch, channels, height, width = image.shape
    return apply_looks(image, draw_looks((batch, channels, height, width), rng, config))


def light_fat(image: Tensor, rng: torch.Generator, config: AppearanceConfig) -> Tensor:
    """Give what is black inside the body a random brightness, thin and wide regions each its own.

    A soft tissue window clips fat (about -100 HU) to the black of air, while fat is the brightest tissue of T1
    MRI: no curve of intensities can make the one of the other. Thin black regions are fat, between organs and
    under the skin; wide ones are mostly gas, black in every modality, so few of them change. Air around the
    body stays as it is, and so does an image whose window shows fat as dark grey. Where fat outshines the
    rest, the rest gets darker, as in a picture scaled by its brightest pixels. image: (B, C, H, W) in [-1, 1];
    returns the same.
    """
    return _lit(image, _draw_fat(len(image), rng, config))


def _draw_fat(batch: int, rng: torch.Generator, config: AppearanceConfig) -> FatLooks:
    chosen = _chosen(batch, config.fat, rng)
    fat, gas = torch.rand(2, batch, generator=rng) * (_FAT[1] - _FAT[0]) + _FAT[0]
    return FatLooks(chosen, fat, gas * _chosen(batch, config.gas, rng))


def _lit(image: Tensor, looks: FatLooks) -> Tensor:
    mean = image.mean(dim=1, keepdim=True)
    inside = inside_body(mean)
    black = (mean < _BLACK) & inside
    wide = wide_regions(black, image.shape[-1] // _THICK)
    near = (_grown(black.float(), 1) > 0.5) & inside
    chosen = looks.chosen.to(image.device) & _clips_fat(mean, inside & ~wide)
    # A pixel beside fat is fat by as much as it is darker than the tissue beside it: no dark line is left between.
    tissue = _grown(mean, 1).clamp(min=_TISSUE)
    fraction = (tissue - mean) / (tissue + 1.0) * near
    level = torch.where(wide, _each(looks.gas, image), _each(looks.fat, image))
    lit = (image + 1.0) + 2.0 * level * fraction  # brightness: 0 is air
    lit = lit * (2.0 / lit.amax(dim=(1, 2, 3), keepdim=True).clamp(min=2.0)) - 1.0
    return torch.where(_each(chosen, image) > 0, lit, image)


def _clips_fat(image: Tensor, where: Tensor) -> Tensor:
    """Whether fat is black, not dark grey as in a wider window: image and mask where (B, 1, H, W) -> (B,) bool."""
    level, share = _CLIPPED
    dark = where & (image < _DARK)
    return (dark & (image < level)).sum(dim=(1, 2, 3)) > share * dark.sum(dim=(1, 2, 3))


def _each(values: Tensor, image: Tensor) -> Tensor:
    """A value for each image (B,) as (B, 1, 1, 1)."""
    return values.to(image)[:, None, None, None]


def inside_body(image: Tensor) -> Tensor:
    """Whether body lies to the left and right of a pixel and above and below it: image (B, 1, H, W) -> bool."""
    body = (image > _BODY).float()
    body = _eroded(_grown(body, 1), 1)  # a gap of a pixel in thin skin must not let the air in
    inside = torch.ones_like(body, dtype=torch.bool)
    for dim in (2, 3):
        before = body.cumsum(dim)  # body pixels up to here
        after = before.narrow(dim, -1, 1) - before + body
        inside &= (before > 0.5) & (after > 0.5)
    return inside & wide_regions(inside, image.shape[-1] // _THICK)  # the gap above a table is flat


def wide_regions(mask: Tensor, width: int) -> Tensor:
    """Where a square of about ``width`` pixels fits into mask (B, 1, H, W) bool, and half as far around it."""
    radius = width // 2
    core = _grown(
        _eroded(mask.float(), radius), 2 * radius
    )  # beyond the opening: corners belong to the region
    return core > 0.5


def _grown(mask: Tensor, radius: int) -> Tensor:
    """The largest value in a square of 2 * radius + 1 pixels."""
    rows = F.max_pool2d(
        mask, (2 * radius + 1, 1), stride=1, padding=(radius, 0)
    )  # a side at a time is faster
    return F.max_pool2d(rows, (1, 2 * radius + 1), stride=1, padding=(0, radius))


def _eroded(mask: Tensor, radius: int) -> Tensor:
    """The smallest value in a square of 2 * radius + 1 pixels, of those inside the picture."""
    return -_grown(-mask, radius)


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
