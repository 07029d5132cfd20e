"""The encoder E: a feature pyramid that reads one w for every style layer from an image.

Paper section 3.2; the split of the styles over the pyramid is that of pSp (Richardson et al., CVPR 2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from sgan_core.config import EncoderConfig

COARSE_STYLES = 3  # read p4
MEDIUM_STYLES = 4  # read p3; every style after these reads p2
LIGHT_CELLS = 4  # the light head looks at 4 x 4 places of the image
OFFSET_STD = 0.1  # of the offset from the mean w before training

NormLayer = Callable[[int], nn.Module]

TRUNKS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}


def _group_norm(channels: int) -> nn.Module:
    """At most 32 groups (Wu and He, 2018), fewer where 32 does not divide the channels."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


NORMS: dict[str, NormLayer] = {"batch": nn.BatchNorm2d, "group": _group_norm}


def _conv(in_width: int, out_width: int, kernel: int, *, stride: int = 1, gain: float = 1.0) -> nn.Conv2d:
    """A padded, biased convolution. The start values keep the variance; gain sqrt(2) makes up for a ReLU."""
    conv = nn.Conv2d(in_width, out_width, kernel, stride=stride, padding=kernel // 2)
    nn.init.normal_(conv.weight, std=gain / math.sqrt(in_width * kernel**2))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _stage(
    block: type[BasicBlock] | type[Bottleneck],
    in_channels: int,
    planes: int,
    depth: int,
    *,
    stride: int,
    norm: NormLayer,
) -> nn.Sequential:
    """``depth`` residual blocks; the first one changes resolution and width."""
    out_channels = planes * block.expansion
    shortcut = None
    if stride != 1 or in_channels != out_channels:
        projection = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
        shortcut = nn.Sequential(projection, norm(out_channels))
    blocks = [block(in_channels, planes, stride, shortcut, norm_layer=norm)]
    blocks += [block(out_channels, planes, norm_layer=norm) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)


class Trunk(nn.Module):
    """ResNet without its classifier, from random start values: image -> c2, c3, c4, c5."""

    def __init__(self, config: EncoderConfig, *, image_channels: int) -> None:
        super().__init__()
        block, depths = TRUNKS[config.trunk]
        norm = NORMS[config.norm]
        width = config.width
        if config.stem_stride:
            conv = nn.Conv2d(image_channels, width, 7, stride=2, padding=3, bias=False)
            pool: list[nn.Module] = [nn.MaxPool2d(3, stride=2, padding=1)]
        else:  # a 7x7 kernel only makes sense where it is thinned out by its stride
            conv, pool = nn.Conv2d(image_channels, width, 3, padding=1, bias=False), []
        self.stem = nn.Sequential(conv, norm(width), nn.ReLU(inplace=True), *pool)
        self.stages = nn.ModuleList()
        self.channels: list[int] = []  # of c2, c3, c4, c5
        in_channels = width
        for index, depth in enumerate(depths):
            planes = width * 2**index
            stride = 1 if index == 0 else 2
            self.stages.append(_stage(block, in_channels, planes, depth, stride=stride, norm=norm))
            in_channels = planes * block.expansion
            self.channels.append(in_channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        pyramid = []
        for stage in self.stages:
            x = stage(x)
            pyramid.append(x)
        return pyramid


class FeaturePyramid(nn.Module):
    """Top-down pathway (Lin et al., CVPR 2017): c2..c5 -> p4, p3, p2, all ``channels`` wide."""

    def __init__(self, trunk_channels: list[int], channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(_conv(width, channels, 1) for width in trunk_channels)  # c2..c5
        self.smooths = nn.ModuleList(_conv(channels, channels, 3) for _ in range(3))  # p4, p3, p2

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        c2, c3, c4, c5 = (lateral(c) for lateral, c in zip(self.laterals, features, strict=True))
        top = c5
        pyramid = []
        for c, smooth in zip((c4, c3, c2), self.smooths, strict=True):
            top = c + F.interpolate(top, size=c.shape[-2:], mode="nearest")
            pyramid.append(smooth(top))
        return pyramid


class Tower(nn.Module):
    """Map to style: stride-2 convolutions down to one pixel, then a linear layer. One for each style.

    The heads dominate the official encoder: 178.3 of its 210.9 million parameters are here.
    """

    def __init__(self, side: int, channels: int, w_dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(int(math.log2(side))):
            layers += [_conv(channels, channels, 3, stride=2, gain=math.sqrt(2)), nn.LeakyReLU(0.01)]
        self.convs = nn.Sequential(*layers)
        self.linear = nn.Linear(channels, w_dim)

    def forward(self, p: Tensor) -> Tensor:
        return self.linear(self.convs(p).flatten(1))  # (B, C, 1, 1) -> (B, w_dim)


class TowerHeads(nn.Module):
    """The tower heads of one pyramid level."""

    def __init__(self, side: int, channels: int, w_dim: int, styles: int) -> None:
        super().__init__()
        self.towers = nn.ModuleList(Tower(side, channels, w_dim) for _ in range(styles))

    def forward(self, p: Tensor) -> Tensor:
        return torch.stack([tower(p) for tower in self.towers], dim=1)  # (B, styles, w_dim)


class LightHeads(nn.Module):
    """Map to all styles of one pyramid level: coarse pooling, one 3x3 convolution, a linear layer a style.

    Pooling stops at 4 x 4 places, not at one: where an organ lies has to survive. Cost at 14 styles, 256 px
    and 512 channels: 65.8 million parameters instead of 178.3 for the towers, and nearly no arithmetic, as
    everything happens on 8 x 8 or fewer places. What it gives up is detail: the fine styles see p2 averaged
    over an eighth of the image side.
    """

    def __init__(self, side: int, channels: int, w_dim: int, styles: int) -> None:
        super().__init__()
        cells = min(side, 2 * LIGHT_CELLS)
        stride = 2 if cells > LIGHT_CELLS else 1
        # Sides are powers of two, so plain average pooling (deterministic on a GPU) reaches the grid exactly.
        self.pool = nn.Sequential(nn.LeakyReLU(0.2), nn.AvgPool2d(side // cells))
        self.conv = nn.Sequential(
            _conv(channels, channels, 3, stride=stride, gain=math.sqrt(2)), nn.LeakyReLU(0.2)
        )
        places = (cells // stride) ** 2
        self.linear = nn.Linear(channels * places, styles * w_dim)
        self.styles = styles

    def forward(self, p: Tensor) -> Tensor:
        features = self.conv(self.pool(p)).flatten(1)  # (B, C, 4, 4) -> (B, 16 C)
        w = self.linear(features)  # (B, styles * w_dim)
        return w.unflatten(1, (self.styles, -1))  # (B, styles, w_dim)


class Encoder(nn.Module):
    """E(x) -> w_plus: ResNet trunk, feature pyramid, heads. Starts at random: nothing is downloaded.

    size: side of the square images, a power of two. num_ws: styles of the generator, 2 * log2(size) - 2.
    The first 3 styles read p4, the next 4 p3, the others p2.

    With ``from_mean_w`` the network predicts an offset from the buffer ``mean_w`` (w_dim,): fill it with the
    generator's mean w before training. The offset starts with a standard deviation of about 0.1, so the first
    reconstruction is close to the generator's mean image. The buffer exists only then.
    """

    mean_w: Tensor

    def __init__(
        self, config: EncoderConfig, *, size: int, image_channels: int, num_ws: int, w_dim: int
    ) -> None:
        super().__init__()
        if size < 32 or size & (size - 1):
            raise ValueError(f"size is {size}, expected a power of two from 32")
        if num_ws <= COARSE_STYLES + MEDIUM_STYLES:
            raise ValueError(f"num_ws is {num_ws}, expected at least {COARSE_STYLES + MEDIUM_STYLES + 1}")
        self.config = config
        self.image_shape = (image_channels, size, size)
        self.trunk = Trunk(config, image_channels=image_channels)
        self.pyramid = FeaturePyramid(self.trunk.channels, config.fpn_channels)
        stride = 4 if config.stem_stride else 1  # of p2
        sides = [size // (stride * factor) for factor in (4, 2, 1)]
        styles = [COARSE_STYLES, MEDIUM_STYLES, num_ws - COARSE_STYLES - MEDIUM_STYLES]
        heads = TowerHeads if config.head == "tower" else LightHeads
        self.heads = nn.ModuleList(
            heads(side, config.fpn_channels, w_dim, count) for side, count in zip(sides, styles, strict=True)
        )
        if config.from_mean_w:
            self.register_buffer("mean_w", torch.zeros(w_dim))
        self._start_heads()

    def _start_heads(self) -> None:
        """Outputs of unit scale, as w has; small ones where they are offsets from the mean w."""
        scale = OFFSET_STD if self.config.from_mean_w else 1.0
        for module in self.heads.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=scale / math.sqrt(module.in_features))
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Read the styles of images.

        x: (B, C, size, size) in [-1, 1]. Returns w_plus (B, num_ws, w_dim).
        Raises ValueError for images of another size or channel count: the heads are built for one size.
        """
        if tuple(x.shape[1:]) != self.image_shape:
            raise ValueError(f"the encoder takes images (B, {self.image_shape}), got {tuple(x.shape)}")
        levels = self.pyramid(self.trunk(x))
        w_plus = torch.cat([head(p) for head, p in zip(self.heads, levels, strict=True)], dim=1)
        return w_plus + self.mean_w if self.config.from_mean_w else w_plus
