"""The two judges: D_r for images, D_m for image + label pairs (docs/method.md section 1)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from sgan_core.config import ImageDiscriminatorConfig, PairDiscriminatorConfig
from sgan_core.networks.stylegan2 import EqualConv2d, EqualLinear, downsample2, minibatch_std


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, the second halves the size, beside a strided 1x1 shortcut."""

    def __init__(self, in_ch: int, out_ch: int) -> None:
        super().__init__()
        self.conv1 = EqualConv2d(in_ch, in_ch, 3)
        self.conv2 = EqualConv2d(in_ch, out_ch, 3, down=True)
        self.skip = EqualConv2d(in_ch, out_ch, 1, down=True, bias=False, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_ch, H, W) -> (B, out_ch, H/2, W/2)."""
        return (self.conv2(self.conv1(x)) + self.skip(x)) / math.sqrt(2.0)


class ImageDiscriminator(nn.Module):
    """D_r(x): StyleGAN2's residual discriminator with minibatch standard deviation.

    ``grown`` adds the input layer of the next lower resolution, from which ``fade`` leads over to the new block.
    """

    def __init__(self, config: ImageDiscriminatorConfig, *, image_channels: int, grown: bool = False) -> None:
        super().__init__()
        widths, size = config.channels, max(config.channels)
        self.std_group = config.std_group
        self.from_image = EqualConv2d(image_channels, widths[size], 1)
        resolutions = sorted((side for side in widths if side > 4), reverse=True)
        self.blocks = nn.ModuleDict(
            {str(side): ResidualBlock(widths[side], widths[side // 2]) for side in resolutions}
        )
        self.final_conv = EqualConv2d(widths[4] + 1, widths[4], 3)
        self.final = nn.Sequential(
            EqualLinear(widths[4] * 16, widths[4], act=True), EqualLinear(widths[4], 1)
        )
        self.from_half = EqualConv2d(image_channels, widths[size // 2], 1) if grown else None

    def features(self, x: Tensor, *, fade: float = 1.0) -> list[Tensor]:
        """The output of every resolution, finest first. x: (B, C, H, W) in [-1, 1]."""
        half = x
        x = self.from_image(x)
        outputs: list[Tensor] = []
        for block in self.blocks.values():
            x = block(x)
            if not outputs and fade < 1.0 and self.from_half is not None:
                x = fade * x + (1.0 - fade) * self.from_half(downsample2(half))
            outputs.append(x)
        return outputs

    def forward(self, x: Tensor, *, fade: float = 1.0) -> Tensor:
        """x: (B, C, H, W) in [-1, 1] -> logits (B, 1); positive means real."""
        x = minibatch_std(self.features(x, fade=fade)[-1].float(), self.std_group)
        return self.final(self.final_conv(x).flatten(1))


class PatchDiscriminator(nn.Module):
    """One scale of D_m: 4x4 convolutions, the last layers without stride (pix2pixHD)."""

    def __init__(self, config: PairDiscriminatorConfig, in_channels: int) -> None:
        super().__init__()
        widths = [min(config.base_channels * 2**layer, 512) for layer in range(config.layers + 1)]
        instance = config.norm == "spectral_instance"
        # The authors normalise the inner layers only; without instance norm every layer needs its bound.
        outer = nn.Identity() if instance else spectral_norm
        layers: list[nn.Module] = [self._layer(outer(_conv(in_channels, widths[0], 2)))]
        for index, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
            stride = 2 if index < config.layers - 1 else 1
            conv = spectral_norm(_conv(a, b, stride, bias=not instance))
            layers.append(self._layer(conv, nn.InstanceNorm2d(b) if instance else None))
        layers.append(outer(_conv(widths[-1], 1, 1)))
        self.layers = nn.ModuleList(layers)

    @staticmethod
    def _layer(conv: nn.Module, norm: nn.Module | None = None) -> nn.Module:
        return nn.Sequential(conv, *([norm] if norm else []), nn.LeakyReLU(0.2))

    def forward(self, pair: Tensor) -> list[Tensor]:
        """(B, C + K, H, W) -> the output of every layer; the last is the map of logits (B, 1, h, w)."""
        outputs = [pair]
        for layer in self.layers:
            outputs.append(layer(outputs[-1]))
        return outputs[1:]


def _conv(in_ch: int, out_ch: int, stride: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(in_ch, out_ch, 4, stride=stride, padding=2, bias=bias)


class PairDiscriminator(nn.Module):
    """D_m(x, y): the same patch discriminator design on an image pyramid of the concatenated pair."""

    def __init__(self, config: PairDiscriminatorConfig, *, image_channels: int, num_classes: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            PatchDiscriminator(config, image_channels + num_classes) for _ in range(config.scales)
        )

    def forward(self, image: Tensor, label: Tensor) -> list[list[Tensor]]:
        """image: (B, C, H, W), label: (B, K, H, W), both about [-1, 1] -> per scale the outputs of all layers."""
        pair = torch.cat([image, label], dim=1)
        outputs = []
        for index, scale in enumerate(self.scales):
            if index:
                pair = F.avg_pool2d(pair, 3, stride=2, padding=1, count_include_pad=False)
            outputs.append(scale(pair))
        return outputs
