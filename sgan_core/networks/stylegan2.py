"""The layers of StyleGAN2 (Karras et al., CVPR 2020) in plain PyTorch operations."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FIR = (1.0, 3.0, 3.0, 1.0)  # binomial low-pass of StyleGAN2's up- and down-sampling


def fir_kernel(channels: int, gain: float, like: Tensor) -> Tensor:
    """The separable [1,3,3,1] filter as a depthwise kernel, (channels, 1, 4, 4), summing to ``gain``."""
    taps = torch.tensor(FIR, dtype=like.dtype, device=like.device)
    kernel = torch.outer(taps, taps)
    return (kernel * (gain / kernel.sum())).expand(channels, 1, 4, 4)


def blur(x: Tensor, *, pad: tuple[int, int], gain: float = 1.0, stride: int = 1) -> Tensor:
    """Low-pass (B, C, H, W) with zero padding ``pad`` = (before, after) on both axes."""
    channels = x.shape[1]
    padding = pad[0] if pad[0] == pad[1] else 0
    if not padding:
        x = F.pad(x, (pad[0], pad[1], pad[0], pad[1]))
    return F.conv2d(x, fir_kernel(channels, gain, x), stride=stride, padding=padding, groups=channels)


def upsample2(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 2H, 2W): zeros between the samples, then the FIR filter with gain 4."""
    channels = x.shape[1]
    return F.conv_transpose2d(x, fir_kernel(channels, 4.0, x), stride=2, padding=1, groups=channels)


def downsample2(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, H/2, W/2): the FIR filter, then every second sample."""
    return blur(x, pad=(1, 1), stride=2)


class EqualLinear(nn.Module):
    """Linear layer with equalised learning rate (Karras et al. 2018): weights are scaled at run time."""

    def __init__(
        self, in_dim: int, out_dim: int, *, lr_mul: float = 1.0, bias: float = 0.0, act: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_dim, in_dim) / lr_mul)
        self.bias = nn.Parameter(torch.full((out_dim,), float(bias) / lr_mul))
        self.scale = lr_mul / math.sqrt(in_dim)
        self.lr_mul = lr_mul
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_dim) -> (..., out_dim)."""
        x = F.linear(x, self.weight * self.scale, self.bias * self.lr_mul)
        return leaky_relu(x) if self.act else x


def leaky_relu(x: Tensor) -> Tensor:
    """LeakyReLU 0.2 with gain sqrt(2), which keeps the variance."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2.0)


class EqualConv2d(nn.Module):
    """Convolution with equalised learning rate; ``down`` blurs, then strides."""

    def __init__(
        self, in_ch: int, out_ch: int, kernel: int, *, down: bool = False, bias: bool = True, act: bool = True
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_ch, in_ch, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_ch)) if bias else None
        self.scale = 1.0 / math.sqrt(in_ch * kernel * kernel)
        self.kernel, self.down, self.act = kernel, down, act

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_ch, H, W) -> (B, out_ch, H, W), or half the size when ``down``."""
        weight = self.weight * self.scale
        if self.down and self.kernel == 1:
            x = F.conv2d(downsample2(x), weight, self.bias)  # strided 1x1: filter only the samples that stay
        elif self.down:
            x = F.conv2d(blur(x, pad=(2, 2)), weight, self.bias, stride=2)
        else:
            x = F.conv2d(x, weight, self.bias, padding=self.kernel // 2)
        return leaky_relu(x) if self.act else x


class ModulatedConv2d(nn.Module):
    """Convolution whose input channels are scaled by a style, optionally demodulated and x2 up-sampled.

    The styles scale the input and the demodulation scales the output, so that one weight serves the whole
    batch: equal to StyleGAN2's per-sample weights (``grouped_modulated_conv``), and faster on a CPU.
    """

    def __init__(
        self, in_ch: int, out_ch: int, kernel: int, w_dim: int, *, demodulate: bool = True, up: bool = False
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_ch, in_ch, kernel, kernel))
        self.affine = EqualLinear(w_dim, in_ch, bias=1.0)
        self.scale = 1.0 / math.sqrt(in_ch * kernel * kernel)
        self.kernel, self.demodulate, self.up = kernel, demodulate, up

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """x: (B, in_ch, H, W), w: (B, w_dim) -> (B, out_ch, H, W), or twice the size when ``up``."""
        styles = self.affine(w)  # (B, in_ch)
        weight = self.weight * self.scale
        x = x * styles[:, :, None, None]
        if self.up:
            x = blur(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2), pad=(1, 1), gain=4.0)
        else:
            x = F.conv2d(x, weight, padding=self.kernel // 2)
        if self.demodulate:
            # (B, in) x (in, out): sum over input channels and taps of (weight * style)^2
            energy = styles.square() @ weight.square().sum(dim=(2, 3)).t()
            x = x * torch.rsqrt(energy + 1e-8)[:, :, None, None]
        return x


class StyledConv(nn.Module):
    """Modulated 3x3 convolution, optional noise, bias, LeakyReLU."""

    def __init__(self, in_ch: int, out_ch: int, w_dim: int, *, up: bool = False, noise: bool = True) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(in_ch, out_ch, 3, w_dim, up=up)
        self.bias = nn.Parameter(torch.zeros(out_ch))
        self.noise_strength = nn.Parameter(torch.zeros(1)) if noise else None

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        """x: (B, in_ch, H, W), w: (B, w_dim), noise: (1 or B, 1, H', W') or None -> (B, out_ch, H', W')."""
        x = self.conv(x, w)
        if self.noise_strength is not None and noise is not None:
            x = x + self.noise_strength * noise
        return leaky_relu(x + self.bias[None, :, None, None])


class Head(nn.Module):
    """1x1 modulated convolution without demodulation: ``to_image`` or ``to_label``."""

    def __init__(self, in_ch: int, out_ch: int, w_dim: int) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(in_ch, out_ch, 1, w_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(out_ch))

    def forward(self, x: Tensor, w: Tensor, skip: Tensor | None) -> Tensor:
        """x: (B, in_ch, H, W), w: (B, w_dim), skip: (B, out_ch, H/2, W/2) -> (B, out_ch, H, W)."""
        x = self.conv(x, w) + self.bias[None, :, None, None]
        return x if skip is None else x + upsample2(skip)


def minibatch_std(x: Tensor, group: int) -> Tensor:
    """Append one channel: the mean standard deviation over groups of ``group`` consecutive samples.

    x: (B, C, H, W) -> (B, C + 1, H, W). Consecutive (not interleaved as in the authors' code), so that the
    groups of a batch split over processes equal those of the joint batch.
    """
    batch, _, height, width = x.shape
    group = math.gcd(batch, group)
    grouped = x.reshape(batch // group, group, -1)  # (G, g, C*H*W)
    std = (grouped.var(dim=1, unbiased=False) + 1e-8).sqrt().mean(dim=1)  # (G,)
    channel = std.repeat_interleave(group)[:, None, None, None].expand(batch, 1, height, width)
    return torch.cat([x, channel], dim=1)
