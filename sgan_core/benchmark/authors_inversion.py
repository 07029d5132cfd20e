"""Inversion as the paper's authors run it, to be measured against: one slice at a time, nothing saved.

Written from the paper's description (Li et al., CVPR 2021, Eq. 7-8) and that of StyleGAN2 (Karras et al., CVPR
2020). Same weights as ``sgan_core.inversion``, same image to rounding. What makes it slow, on purpose:

* every sample has weights of its own, in a grouped convolution; the FIR filters insert zeros, pad and convolve
  in full, one channel at a time;
* the target's perceptual features are computed anew in every step;
* gradients of all weights, of the generator and of the perceptual network, are computed and thrown away; the
  encoder's answer is computed with a graph, then detached;
* 200 steps of Adam for every slice, noise maps optimised too, and the last iterate is kept, not the best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgan_core.config import InversionConfig
from sgan_core.inversion import Inversion, joined, learning_rate
from sgan_core.networks.generator import Block, Generator, Pair
from sgan_core.networks.perceptual import Perceptual
from sgan_core.networks.stylegan2 import FIR, Head, ModulatedConv2d, StyledConv, leaky_relu

AUTHORS = InversionConfig()  # 200 steps of rate 0.1, ramps 5 % and 25 %, lambda_2 1e-3, lambda_3 0.1
NOISE_WEIGHT = 1e2  # of StyleGAN2's noise regulariser
_SMALLEST_NOISE = 8  # pixels; the regulariser halves maps down to this side

OnStep = Callable[[int], bool]


# --- the generator, operation by operation


def upfirdn2d(x: Tensor, *, up: int, pad: tuple[int, int], gain: float) -> Tensor:
    """Zeros between the samples, zero padding, then the whole FIR filter on every place.

    x: (B, C, H, W); ``pad`` = (before, after) on both axes; the filter sums to ``gain``.
    """
    batch, channels, height, width = x.shape
    planes = x.reshape(-1, 1, height, 1, width, 1)
    planes = F.pad(planes, (0, up - 1, 0, 0, 0, up - 1))  # a sample, then up - 1 zeros
    planes = planes.reshape(-1, 1, height * up, width * up)
    planes = F.pad(planes, (pad[0], pad[1], pad[0], pad[1]))
    taps = x.new_tensor(FIR)
    kernel = torch.outer(taps, taps)
    kernel = torch.flip(kernel * (gain / kernel.sum()), (0, 1))
    out = F.conv2d(planes, kernel[None, None])
    return out.reshape(batch, channels, out.shape[-2], out.shape[-1])


def _modulated(layer: ModulatedConv2d, x: Tensor, w: Tensor) -> Tensor:
    """StyleGAN2's fused form: modulate and demodulate the weights of each sample, then convolve in groups."""
    batch, in_channels, height, side = x.shape
    out_channels = layer.weight.shape[0]
    styles = layer.affine(w)  # (B, in)
    weight = layer.scale * layer.weight[None] * styles[:, None, :, None, None]  # (B, out, in, k, k)
    if layer.demodulate:
        energy = weight.square().sum(dim=(2, 3, 4), keepdim=True)
        weight = weight * torch.rsqrt(energy + 1e-8)
    x = x.reshape(1, batch * in_channels, height, side)
    if layer.up:
        weight = weight.transpose(1, 2).reshape(batch * in_channels, out_channels, layer.kernel, layer.kernel)
        x = F.conv_transpose2d(x, weight, stride=2, groups=batch)
        x = x.reshape(batch, out_channels, *x.shape[-2:])
        return upfirdn2d(x, up=1, pad=(1, 1), gain=4.0)
    weight = weight.reshape(batch * out_channels, in_channels, layer.kernel, layer.kernel)
    x = F.conv2d(x, weight, padding=layer.kernel // 2, groups=batch)
    return x.reshape(batch, out_channels, height, side)


def _styled(layer: StyledConv, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
    x = _modulated(layer.conv, x, w)
    if layer.noise_strength is not None and noise is not None:
        x = x + layer.noise_strength * noise
    return leaky_relu(x + layer.bias[None, :, None, None])


def _head(layer: Head, x: Tensor, w: Tensor, skip: Tensor | None) -> Tensor:
    x = _modulated(layer.conv, x, w) + layer.bias[None, :, None, None]
    return x if skip is None else x + upfirdn2d(skip, up=2, pad=(2, 1), gain=4.0)


def synthesis(generator: Generator, w_plus: Tensor, noise: list[Tensor]) -> Pair:
    """The image and label of w_plus (B, num_ws, w_dim), as ``generator.synthesis`` computes them.

    noise: a map (1, 1, H, W) for each styled convolution; empty for a generator without noise.
    """
    maps = iter(noise)
    x = generator.synthesis.const.expand(len(w_plus), -1, -1, -1)
    image = label_logits = None
    index = 0
    for block in generator.synthesis.blocks.values():
        assert isinstance(block, Block)
        if block.up is not None:
            x = _styled(block.up, x, w_plus[:, index], next(maps, None))
            index += 1
        x = _styled(block.conv, x, w_plus[:, index], next(maps, None))
        index += 1
        image = _head(block.to_image, x, w_plus[:, index], image)
        label_logits = _head(block.to_label, x, w_plus[:, index], label_logits)
    assert image is not None
    assert label_logits is not None
    return Pair(image, label_logits)


# --- the optimisation


def noise_regulariser(noise: list[Tensor]) -> Tensor:
    """How much noise maps look like an image: neighbours' correlations at all scales (StyleGAN2, appendix D)."""
    total = torch.zeros(())
    for level in noise:
        while True:
            right = (level * level.roll(1, dims=3)).mean().square()
            total = total + right + (level * level.roll(1, dims=2)).mean().square()
            if level.shape[-1] <= _SMALLEST_NOISE:
                break
            level = F.avg_pool2d(level, 2)
    return total


def objective(
    target: Tensor,
    image: Tensor,
    w_plus: Tensor,
    encoder: nn.Module,
    perceptual: Perceptual,
    config: InversionConfig,
) -> Tensor:
    """Eq. 7, a number: everything is computed again in every step."""
    distance = perceptual(image, target).sum()
    squared = (image - target).square().mean()
    answer = encoder(image).detach()
    return (
        config.perceptual_weight * distance
        + config.mse_weight * squared
        + config.encoder_weight * (w_plus - answer).square().mean()
    )


def invert_as_authors(
    target: Tensor,
    generator: Generator,
    encoder: nn.Module,
    perceptual: Perceptual,
    config: InversionConfig = AUTHORS,
    *,
    on_step: OnStep = lambda step: True,
) -> Inversion:
    """Invert slices (N, C, H, W) in [-1, 1] one after the other. ``loss`` is without the encoder term.

    on_step(step) counts through all slices; False gives up the present slice where it is.
    """
    found = []
    with _trainable(generator, encoder, perceptual):
        for number in range(len(target)):

            def report(step: int, base: int = number * config.steps) -> bool:
                return on_step(base + step)

            one = target[number : number + 1]
            found.append(_one(one, generator, encoder, perceptual, config, report))
    return joined(found)


@contextmanager
def _trainable(*modules: nn.Module) -> Iterator[None]:
    """Compute gradients of all weights, as if they were wanted."""
    weights = [weight for module in modules for weight in module.parameters()]
    before = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight, flag in zip(weights, before, strict=True):
            weight.requires_grad_(flag)
            weight.grad = None


def _one(
    target: Tensor,
    generator: Generator,
    encoder: nn.Module,
    perceptual: Perceptual,
    config: InversionConfig,
    on_step: OnStep,
) -> Inversion:
    with torch.no_grad():
        w_plus = encoder(target)
    w_plus = w_plus.clone().requires_grad_(True)
    noise = []
    if generator.config.noise:
        count = len(generator.synthesis.noise_resolutions())
        noise = [generator.synthesis.get_buffer(f"noise_{n}").clone() for n in range(count)]
    for level in noise:
        level.requires_grad_(True)
    optimizer = torch.optim.Adam([w_plus, *noise], lr=config.lr)
    for step in range(config.steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, config)
        image = synthesis(generator, w_plus, noise).image
        loss = objective(target, image, w_plus, encoder, perceptual, config)
        if noise:
            loss = loss + NOISE_WEIGHT * noise_regulariser(noise).to(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not on_step(step):
            break
    with torch.no_grad():
        pair = synthesis(generator, w_plus, noise)
        squared = (pair.image - target).square().mean(dim=(1, 2, 3))
        loss = config.perceptual_weight * perceptual(pair.image, target) + config.mse_weight * squared
    return Inversion(w_plus.detach(), pair.image, pair.label_logits.softmax(dim=1), loss, config.steps)
