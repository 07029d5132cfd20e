"""Random changes of how tissues look, which leave the anatomy where it is.

A segmenter that has seen every tissue in every brightness must go by shape, so it may read a modality it was
never trained on (random intensity curves: Zhou et al. 2022, Dual-Normalization). Where all images are of one
modality (X-rays, skin), gentler looks do: those of other devices (``sgan_core.config.LOOKS``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sgan_core.looks import AppearanceConfig

CURVE_POINTS = (5, 8)  # fewest and most random values that a curve passes near
_TABLE = 256  # entries of a curve as a look-up table over [-1, 1]
_SMOOTHING = 17  # table entries, odd: corners of a curve are rounded over 7 % of the range
_BIAS_NODES = 4  # random values along a side of the bias field
_BLUR_REACH = 3  # to either side of a pixel, sixty-fourths of the side
_UNIT = 64  # the lengths of looks are in parts of the side
_HAIRS = 8  # most on a picture
_HAIR = 0.008, 0.02  # half width, parts of the side
_BODY = -0.9  # brighter is body
_BLACK, _DARK = -0.8, -0.65  # darker is as black as air; darker is fat or gas, if the window shows fat at all
_CLIPPED = -0.85, 0.35  # a window clips fat where more than this share of what is dark and thin is that black
_TISSUE = 0.0  # soft tissue is at least as bright, where fat takes part of a pixel
_FAT = (0.3, 2.0)  # brightness of fat, the brightest other tissue being 1; on T1 it is far above
_THICK = 10  # lung and bowel gas are wider than a tenth of the picture


@dataclass(frozen=True, eq=False)
class Looks:
    """What the looks of B images are made of, drawn for all of them at once; CPU tensors."""

    fat: FatLooks
    curves: Tensor  # (B, 256)
    curved: Tensor  # (B,) bool: whether the curve is used
    blur_px: Tensor  # (B,)
    fields: Tensor  # (B, C, H, W) or (B, 1, H, W), factors of brightness
    noise: Tensor  # (B, C, H, W)
    contrast: Tensor  # (B, 2): factor about the middle grey, and offset
    hair: Tensor  # (B, 2, H, W): how much of a pixel it covers, and its brightness
    power: Tensor  # (B,) of brightness, 1 leaves it as it is

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
    batch, channels, height, width = shape
    curves = random_curves(batch, rng, config)
    fields = bias_fields(batch, (height, width), rng, config)
    curved = _chosen(batch, config.curve, rng)
    blur_px = torch.rand(batch, generator=rng) * config.blur_px * _chosen(batch, config.blur, rng)
    noise_std = torch.rand(batch, generator=rng) * config.noise_std * _chosen(batch, config.noise, rng)
    noise = torch.randn(shape, generator=rng) * noise_std[:, None, None, None]
    fat = _draw_fat(batch, rng, config)
    if config.colour:
        white = (torch.rand(batch, channels, generator=rng) * 2.0 - 1.0) * config.colour_log
        fields = fields * (white * _chosen(batch, config.colour, rng)[:, None]).exp()[:, :, None, None]
    if config.vignette:
        fields = fields * _vignettes(batch, (height, width), _chosen(batch, config.vignette, rng), rng)
    contrast = torch.ones(batch, 2) * torch.tensor([1.0, 0.0])
    if config.contrast:
        low, high = config.contrast_factor
        factor = torch.rand(batch, generator=rng) * (high - low) + low
        offset = (torch.rand(batch, generator=rng) * 2.0 - 1.0) * config.offset
        drawn = torch.stack([factor, offset], dim=1)
        contrast = torch.where(_chosen(batch, config.contrast, rng)[:, None], drawn, contrast)
    hair = torch.zeros(batch, 2, 1, 1)
    if config.hair:
        hair = _hairs(batch, (height, width), _chosen(batch, config.hair, rng), rng)
    low, high = config.gamma_log
    power = torch.exp(torch.rand(batch, generator=rng) * (high - low) + low)
    power = torch.where(_chosen(batch, config.gamma, rng), power, 1.0)
    return Looks(fat, curves, curved, blur_px * (width / _UNIT), fields, noise, contrast, hair, power)


def always(config: AppearanceConfig) -> AppearanceConfig:
    """The same looks, in which every image has other intensities; how else it changes is left to chance."""
    return replace(
        config,
        curve=float(config.curve > 0.0),
        contrast=float(config.contrast > 0.0),
        gamma=float(config.gamma > 0.0),
    )


def apply_looks(image: Tensor, looks: Looks) -> Tensor:
    """Give each image of a batch (B, C, H, W) in [-1, 1] its look; the channels share the curve.

    Returns the same shape, in [-1, 1].
    """
    changed = _lit(image, looks.fat)
    curved = looks.curved.to(image.device)[:, None, None, None]
    if looks.curved.any():
        changed = torch.where(curved, apply_curves(changed, looks.curves.to(image)), changed)
    factor, offset = looks.contrast.to(image)[:, :, None, None, None].unbind(dim=1)  # (B, 1, 1, 1)
    changed = _blurred(changed * factor + offset, looks.blur_px.to(image))
    changed = (changed + 1.0) * looks.fields.to(image) - 1.0  # multiplies brightness, so air stays dark
    cover, grey = looks.hair.to(image).split(1, dim=1)
    changed = (changed + cover * (grey - changed) + looks.noise.to(image)).clamp(-1.0, 1.0)
    if (looks.power != 1.0).any():
        changed = ((changed + 1.0) / 2.0).pow(_each(looks.power, image)) * 2.0 - 1.0
    return changed


def shift_appearance(image: Tensor, rng: torch.Generator, config: AppearanceConfig | None = None) -> Tensor:
    """Give each image of a batch another look: ``draw_looks`` and ``apply_looks``.

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
    rows = torch.nonzero(looks.chosen).flatten()
    if not len(rows):
        return image
    lit = image.clone()
    lit[rows.to(image.device)] = _all_lit(lit[rows.to(image.device)], looks.fat[rows], looks.gas[rows])
    return lit


def _all_lit(image: Tensor, fat: Tensor, gas: Tensor) -> Tensor:
    """Fat and gas of images (B, C, H, W) at these levels (B,) of brightness; images whose window shows fat stay."""
    mean = image.mean(dim=1, keepdim=True)
    inside = inside_body(mean)
    black = (mean < _BLACK) & inside
    wide = wide_regions(black, image.shape[-1] // _THICK)
    near = (_grown(black.float(), 1) > 0.5) & inside
    chosen = _clips_fat(mean, inside & ~wide)
    # A pixel beside fat is fat by as much as it is darker than the tissue beside it: no dark line is left between.
    tissue = _grown(mean, 1).clamp(min=_TISSUE)
    fraction = (tissue - mean) / (tissue + 1.0) * near
    level = torch.where(wide, _each(gas, image), _each(fat, image))
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
    if not (sigma_px > 0.0).any():
        return image
    batch, channels, height, width = image.shape
    reach = math.ceil(_BLUR_REACH * width / _UNIT)
    offset = torch.arange(-reach, reach + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (offset / sigma_px.clamp(min=1e-3)[:, None]).square())
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)  # (B * C, taps)
    planes = image.reshape(1, batch * channels, height, width)  # one group a plane
    planes = F.pad(planes, (reach,) * 4, mode="replicate")
    planes = F.conv2d(planes, kernel[:, None, None, :], groups=batch * channels)
    planes = F.conv2d(planes, kernel[:, None, :, None], groups=batch * channels)
    return planes.view_as(image)


def _vignettes(count: int, shape: tuple[int, int], chosen: Tensor, rng: torch.Generator) -> Tensor:
    """Factors (count, 1, H, W): near 0 outside a round field of view where ``chosen`` (count,), elsewhere 1."""
    row, column = places(shape)
    centre = (torch.rand(count, 2, 1, 1, generator=rng) - 0.5) * 0.3
    radius = torch.rand(count, 1, 1, generator=rng) * 0.6 + 0.9
    soft = torch.rand(count, 1, 1, generator=rng) * 0.25 + 0.02
    distance = ((row - centre[:, 0]).square() + (column - centre[:, 1]).square()).sqrt()
    inside = ((radius - distance) / soft).clamp(0.0, 1.0)
    return torch.where(chosen[:, None, None], inside, 1.0)[:, None]


def _hairs(count: int, shape: tuple[int, int], chosen: Tensor, rng: torch.Generator) -> Tensor:
    """Bent dark or light lines where ``chosen`` (count,): cover from 0 to 1 and brightness, (count, 2, H, W)."""
    row, column = places(shape)
    hairs = torch.zeros(count, 2, *shape)
    for one in torch.nonzero(chosen).flatten().tolist():
        grey = torch.rand((), generator=rng) * 0.6 - 1.0
        for _ in range(int(torch.randint(1, _HAIRS + 1, (), generator=rng))):
            angle, place, bend, wide = torch.rand(4, generator=rng)
            along = column * torch.cos(angle * torch.pi) + row * torch.sin(angle * torch.pi)
            across = row * torch.cos(angle * torch.pi) - column * torch.sin(angle * torch.pi)
            middle = (place * 2.0 - 1.0) + (bend - 0.5) * along.square()
            half = 2.0 * (_HAIR[0] + wide * (_HAIR[1] - _HAIR[0]))  # the side is 2
            cover = (1.5 - (across - middle).abs() / half).clamp(0.0, 1.0)
            hairs[one, 0] = torch.maximum(hairs[one, 0], cover)
        hairs[one, 1] = grey
    return hairs


def places(shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Row (H, 1) and column (1, W) of the pixels of a picture, from -1 to 1."""
    height, width = shape
    return torch.linspace(-1.0, 1.0, height)[:, None], torch.linspace(-1.0, 1.0, width)[None]
