"""The StyleGAN2 layers against independent references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.signal
import torch
import torch.nn.functional as F
from torch import Tensor

from sgan_core.networks.stylegan2 import (
    EqualConv2d,
    EqualLinear,
    Head,
    ModulatedConv2d,
    StyledConv,
    blur,
    downsample2,
    minibatch_std,
    upsample2,
)

TAPS = np.array([1.0, 3.0, 3.0, 1.0]) / 8.0


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _upfirdn(plane: np.ndarray, *, up: int, gain: float = 1.0) -> np.ndarray:
    """The whole response of the separable filter, borders included (scipy)."""
    taps = TAPS * gain
    return scipy.signal.upfirdn(taps, scipy.signal.upfirdn(taps, plane, up=up, axis=0), up=up, axis=1)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (5, 7), (8, 8)])
def test_upsampling_equals_scipy_up_to_the_borders(shape):
    x = _random(2, 3, *shape)
    found = upsample2(x).numpy()
    # A sample i spreads over 2i-1 .. 2i+2: the full response without its first and last row and column.
    for b in range(2):
        for c in range(3):
            expected = _upfirdn(x[b, c].numpy(), up=2, gain=2.0)[1:-1, 1:-1]
            np.testing.assert_allclose(found[b, c], expected, atol=1e-12)


@pytest.mark.parametrize("side", [2, 4, 8, 14])
def test_downsampling_equals_scipy_up_to_the_borders(side):
    x = _random(2, 3, side, side)
    found = downsample2(x).numpy()
    for b in range(2):
        for c in range(3):
            expected = _upfirdn(x[b, c].numpy(), up=1)[2::2, 2::2][: side // 2, : side // 2]
            np.testing.assert_allclose(found[b, c], expected, atol=1e-12)


def test_blur_with_uneven_padding_equals_scipy():
    x = _random(1, 1, 6, 6)
    expected = _upfirdn(x[0, 0].numpy(), up=1)[1:-2, 1:-2]  # 2 before, 1 after: the size stays
    np.testing.assert_allclose(blur(x, pad=(2, 1))[0, 0].numpy(), expected, atol=1e-12)


def test_resampling_keeps_a_constant_away_from_the_borders():
    x = torch.full((1, 1, 8, 8), 0.7)
    torch.testing.assert_close(upsample2(x)[..., 1:-1, 1:-1], torch.full((1, 1, 14, 14), 0.7))
    torch.testing.assert_close(downsample2(x)[..., 1:-1, 1:-1], torch.full((1, 1, 2, 2), 0.7))


def test_downsampling_is_the_adjoint_of_upsampling():
    x, y = _random(1, 1, 4, 4), _random(1, 1, 8, 8, seed=1)
    assert float((upsample2(x) * y).sum()) == pytest.approx(4.0 * float((x * downsample2(y)).sum()))


def grouped_modulated_conv(layer: ModulatedConv2d, x: Tensor, w: Tensor) -> Tensor:
    """StyleGAN2's own form: one weight for each sample, as a grouped convolution over the whole batch."""
    batch, in_ch, height, width = x.shape
    styles = F.linear(w, layer.affine.weight / math.sqrt(w.shape[1]), layer.affine.bias)
    fan_in = in_ch * layer.kernel**2
    weight = layer.weight[None] / math.sqrt(fan_in) * styles[:, None, :, None, None]  # (B, out, in, k, k)
    if layer.demodulate:
        weight = weight / (weight.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8).sqrt()
    out_ch = weight.shape[1]
    x = x.reshape(1, batch * in_ch, height, width)
    if layer.up:
        kernel = weight.transpose(1, 2).reshape(batch * in_ch, out_ch, layer.kernel, layer.kernel)
        x = F.conv_transpose2d(x, kernel, stride=2, groups=batch)
        taps = torch.as_tensor(np.outer(TAPS, TAPS) * 4.0, dtype=x.dtype).expand(batch * out_ch, 1, 4, 4)
        x = F.conv2d(x, taps, padding=1, groups=batch * out_ch)
    else:
        kernel = weight.reshape(batch * out_ch, in_ch, layer.kernel, layer.kernel)
        x = F.conv2d(x, kernel, padding=layer.kernel // 2, groups=batch)
    return x.reshape(batch, out_ch, *x.shape[2:])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("kernel", "up"), [(3, False), (3, True), (1, False)])
@pytest.mark.parametrize("demodulate", [True, False])
def test_modulated_conv_equals_the_grouped_form_in_value_and_gradient(kernel, up, demodulate, dtype):
    torch.manual_seed(0)
    layer = ModulatedConv2d(6, 5, kernel, 7, demodulate=demodulate, up=up).to(dtype)
    with torch.no_grad():
        layer.affine.bias.add_(torch.randn(6))  # styles of both signs, also near zero
    x, w = _random(3, 6, 8, 8).to(dtype).requires_grad_(), _random(3, 7, seed=1).to(dtype).requires_grad_()
    inputs = [x, w, *layer.parameters()]
    found, expected = layer(x, w), grouped_modulated_conv(layer, x, w)
    assert found.shape == (3, 5, 16, 16) if up else (3, 5, 8, 8)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    direction = _random(*found.shape, seed=2).to(dtype)
    gradients = [torch.autograd.grad((y * direction).sum(), inputs) for y in (found, expected)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def test_demodulation_gives_unit_energy_whatever_the_style():
    torch.manual_seed(0)
    layer = ModulatedConv2d(32, 16, 3, 4).requires_grad_(False)
    x = torch.randn(64, 32, 8, 8)
    quiet, loud = layer(x, torch.zeros(64, 4)), layer(x, 30.0 * torch.randn(64, 4))
    assert float(quiet[..., 1:-1, 1:-1].std()) == pytest.approx(1.0, abs=0.05)
    assert float(loud[..., 1:-1, 1:-1].std()) == pytest.approx(1.0, abs=0.05)


def test_up_path_is_zero_insertion_then_convolution_then_filter():
    torch.manual_seed(0)
    layer = ModulatedConv2d(2, 1, 3, 4, demodulate=False, up=True).double()
    x, w = _random(1, 2, 5, 5), _random(1, 4, seed=1)
    styles = layer.affine(w)[0].detach().numpy()
    kernels = layer.weight[0].detach().numpy() * layer.scale  # (2, 3, 3)
    total = np.zeros((10, 10))
    for c in range(2):
        inserted = np.zeros((9, 9))
        inserted[::2, ::2] = x[0, c].numpy() * styles[c]
        convolved = scipy.signal.convolve2d(inserted, kernels[c], mode="full")  # (11, 11)
        total += scipy.signal.convolve2d(convolved, 4.0 * np.outer(TAPS, TAPS), mode="full")[2:-2, 2:-2]
    np.testing.assert_allclose(layer(x, w)[0, 0].detach().numpy(), total, atol=1e-12)


def test_up_and_down_paths_keep_the_centre_of_the_image():
    """No half-pixel drift: a symmetric kernel leaves a symmetric image symmetric."""
    x = _random(1, 1, 8, 8)
    x = x + x.flip(-1)
    up = ModulatedConv2d(1, 1, 3, 4, up=True).double()
    down = EqualConv2d(1, 1, 3, down=True, bias=False).double()
    with torch.no_grad():
        for layer in (up, down):
            layer.weight.copy_(layer.weight + layer.weight.flip(-1))
    for y in (up(x, torch.zeros(1, 4).double()), down(x)):
        torch.testing.assert_close(y, y.flip(-1))


def test_down_path_is_filter_then_strided_convolution():
    layer = EqualConv2d(1, 1, 3, down=True, bias=False, act=False).double()
    x = _random(1, 1, 8, 8)
    filtered = _upfirdn(x[0, 0].numpy(), up=1)[1:-1, 1:-1]  # (9, 9): padded by 2
    kernel = layer.weight[0, 0].detach().numpy() / 3.0
    expected = scipy.signal.correlate2d(filtered, kernel, mode="valid")[::2, ::2]
    np.testing.assert_allclose(layer(x)[0, 0].detach().numpy(), expected, atol=1e-12)


def test_strided_shortcut_equals_convolution_then_downsampling():
    layer = EqualConv2d(3, 2, 1, down=True, bias=False, act=False).double()
    x = _random(1, 3, 8, 8)
    torch.testing.assert_close(layer(x), downsample2(F.conv2d(x, layer.weight / math.sqrt(3.0))))


def test_equalised_linear_starts_the_same_and_learns_slower_with_a_multiplier():
    torch.manual_seed(0)
    plain, slow = EqualLinear(64, 64, bias=1.0), EqualLinear(64, 64, lr_mul=0.01, bias=1.0)
    x = torch.randn(256, 64)
    for layer in (plain, slow):
        assert float(layer(x).detach().mean()) == pytest.approx(1.0, abs=0.1)
        assert float(layer(x).detach().std()) == pytest.approx(1.0, abs=0.1)
    for layer in (plain, slow):
        layer(x).square().mean().backward()
    assert float(slow.weight.grad.norm() / plain.weight.grad.norm()) == pytest.approx(0.01, rel=0.2)


def test_noise_enters_scaled_by_its_learned_strength():
    layer = StyledConv(3, 4, 5, noise=True)
    x, w, noise = torch.randn(2, 3, 8, 8), torch.randn(2, 5), torch.randn(2, 1, 8, 8)
    assert torch.equal(layer(x, w, noise), layer(x, w, None))  # the strength starts at zero
    with torch.no_grad():
        layer.noise_strength.fill_(0.5)
    expected = F.leaky_relu(layer.conv(x, w) + 0.5 * noise, 0.2) * math.sqrt(2.0)
    torch.testing.assert_close(layer(x, w, noise), expected)


def test_head_adds_the_upsampled_skip():
    head = Head(4, 2, 5)
    x, w, skip = torch.randn(1, 4, 8, 8), torch.randn(1, 5), torch.randn(1, 2, 4, 4)
    torch.testing.assert_close(head(x, w, skip) - head(x, w, None), upsample2(skip))


def test_minibatch_std_closed_form():
    # Two groups of two: values 1 and 3 everywhere have deviation 1; equal values have none.
    x = torch.tensor([1.0, 3.0, 5.0, 5.0])[:, None, None, None].expand(4, 2, 3, 3)
    y = minibatch_std(x, 2)
    assert y.shape == (4, 3, 3, 3)
    torch.testing.assert_close(y[:, :2], x)
    torch.testing.assert_close(y[:2, 2], torch.ones(2, 3, 3))
    torch.testing.assert_close(y[2:, 2], torch.full((2, 3, 3), 1e-4))  # sqrt(1e-8)


def test_minibatch_std_of_half_a_batch_equals_that_of_the_joint_batch():
    x = torch.randn(8, 3, 4, 4)
    torch.testing.assert_close(minibatch_std(x, 2)[4:], minibatch_std(x[4:], 2))


def test_minibatch_std_takes_a_smaller_group_when_the_batch_does_not_divide():
    assert minibatch_std(torch.randn(6, 3, 4, 4), 4).shape == (6, 4, 4, 4)
    assert minibatch_std(torch.randn(1, 3, 4, 4), 4).shape == (1, 4, 4, 4)
