"""Appearance changes: in range, seeded, and of the kinds they promise."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgan_core.appearance import (
    AppearanceConfig,
    apply_curves,
    bias_fields,
    random_curves,
    shift_appearance,
)
from sgan_core.errors import InputError

ALWAYS = AppearanceConfig(curve=1.0, bias=1.0, noise=1.0, blur=1.0)
NEVER = AppearanceConfig(curve=0.0, bias=0.0, noise=0.0, blur=0.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(batch: int = 6, channels: int = 1, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.rand(batch, channels, height, width, generator=seeded(99)) * 2 - 1


def rises(curves: torch.Tensor) -> torch.Tensor:
    return (curves.diff(dim=1) >= -1e-6).all(dim=1)


@settings(deadline=None, max_examples=25)
@given(
    batch=st.integers(1, 5),
    channels=st.sampled_from([1, 3]),
    height=st.integers(4, 40),
    width=st.integers(4, 40),
    seed=st.integers(0, 10_000),
)
def test_result_keeps_shape_and_range(batch: int, channels: int, height: int, width: int, seed: int) -> None:
    image = images(batch, channels, height, width)
    changed = shift_appearance(image, seeded(seed), ALWAYS)
    assert changed.shape == image.shape
    assert changed.dtype == image.dtype
    assert torch.isfinite(changed).all()
    assert changed.abs().max() <= 1.0


def test_same_generator_state_gives_the_same_images_and_input_is_kept() -> None:
    image = images()
    before = image.clone()
    first, again = (shift_appearance(image, seeded(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, shift_appearance(image, seeded(4)))
    assert torch.equal(image, before)


def test_nothing_changes_when_every_share_is_zero() -> None:
    image = images()
    torch.testing.assert_close(shift_appearance(image, seeded(), NEVER), image)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_share_of_rising_curves(share: float) -> None:
    curves = random_curves(2000, seeded(1), AppearanceConfig(monotone=share))
    assert curves.abs().max() <= 1.0
    # Of 5 free random values with a dark start, 1 in 24 happens to rise.
    assert rises(curves).float().mean().item() == pytest.approx(share + (1 - share) * 0.015, abs=0.04)


def test_curves_are_smooth_and_use_the_range() -> None:
    curves = random_curves(500, seeded(2), AppearanceConfig(dark_air=0.0))
    bend = curves.diff(dim=1).diff(dim=1).abs()
    assert bend.max() < 0.02  # corners of up to 0.13 a step are spread over 17 steps
    spread = curves.amax(dim=1) - curves.amin(dim=1)
    assert spread.median() > 0.8


@pytest.mark.parametrize("share", [0.0, 0.9, 1.0])
def test_air_mostly_stays_dark(share: float) -> None:
    curves = random_curves(2000, seeded(3), AppearanceConfig(dark_air=share))
    assert (curves[:, 0] == -1.0).float().mean().item() == pytest.approx(share, abs=0.03)


def test_identity_curve_is_identity_and_curves_hit_their_own_image() -> None:
    image = images(2)
    ramp = torch.linspace(-1, 1, 256).expand(2, -1)
    torch.testing.assert_close(apply_curves(image, ramp), image)
    mixed = apply_curves(image, torch.stack([ramp[0], -ramp[0]]))
    torch.testing.assert_close(mixed, torch.stack([image[0], -image[1]]))


def test_bias_field_is_smooth_and_within_its_limits() -> None:
    config = replace(ALWAYS, bias_log=0.4)
    fields = bias_fields(200, (64, 64), seeded(5), config)
    assert fields.shape == (200, 1, 64, 64)
    assert fields.min() >= math.exp(-0.4) - 1e-5
    assert fields.max() <= math.exp(0.4) + 1e-5
    assert fields.diff(dim=-1).abs().max() < 0.12
    assert (fields.amax(dim=(1, 2, 3)) > 1.05 * fields.amin(dim=(1, 2, 3))).all()
    assert torch.equal(bias_fields(3, (8, 8), seeded(), NEVER), torch.ones(3, 1, 8, 8))


def test_bias_leaves_air_dark() -> None:
    air = torch.full((4, 1, 16, 16), -1.0)
    changed = shift_appearance(air, seeded(6), replace(NEVER, bias=1.0, bias_log=1.0))
    torch.testing.assert_close(changed, air)


def test_blur_keeps_the_mean_and_lowers_contrast() -> None:
    board = torch.tensor([[-0.5, 0.5], [0.5, -0.5]]).repeat(16, 16).expand(8, 1, 32, 32)
    changed = shift_appearance(board, seeded(7), replace(NEVER, blur=1.0, blur_px=2.0))
    torch.testing.assert_close(changed.mean(), board.mean(), atol=1e-2, rtol=0)
    assert (changed.std(dim=(1, 2, 3)) < board.std(dim=(1, 2, 3))).float().mean() > 0.7


def test_noise_has_the_asked_strength() -> None:
    grey = torch.zeros(400, 1, 16, 16)
    changed = shift_appearance(grey, seeded(8), replace(NEVER, noise=1.0, noise_std=0.2))
    std = changed.std(dim=(1, 2, 3))
    assert std.max() < 0.23
    assert std.mean().item() == pytest.approx(0.1, abs=0.01)  # uniform from 0 to the largest


@pytest.mark.parametrize("wrong", [{"curve": 1.5}, {"dark_air": -0.1}, {"noise_std": -1.0}])
def test_settings_that_cannot_work_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        AppearanceConfig(**wrong)
