"""Appearance changes: in range, seeded, and of the kinds they promise."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from sgan_core.appearance import (
    always,
    apply_curves,
    apply_looks,
    bias_fields,
    draw_looks,
    inside_body,
    light_fat,
    random_curves,
    shift_appearance,
    wide_regions,
)
from sgan_core.errors import InputError
from sgan_core.looks import LOOKS, AppearanceConfig

ALWAYS = AppearanceConfig(fat=1.0, curve=1.0, bias=1.0, noise=1.0, blur=1.0)
NEVER = AppearanceConfig(fat=0.0, curve=0.0, bias=0.0, noise=0.0, blur=0.0)
FAT = replace(NEVER, fat=1.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(batch: int = 6, channels: int = 1, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.rand(batch, channels, height, width, generator=seeded(99)) * 2 - 1


def patient(
    batch: int = 8, channels: int = 1, size: int = 64
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Skin of a pixel around fat around muscle, with an organ and a lung in it; images and where what lies."""
    place = torch.arange(size) - (size - 1) / 2
    distance = torch.hypot(place[:, None], place[None])
    lung = torch.hypot(place[:, None], place[None] - 8) < 7
    parts = {
        "air": distance > 26.5,
        "skin": (distance > 25) & (distance <= 26.5),
        "fat": (distance > 21) & (distance <= 25),
        "muscle": (distance <= 21) & ~lung,
        "lung": lung,
    }
    grey = {"air": -1.0, "skin": -0.6, "fat": -1.0, "muscle": 0.1, "lung": -1.0}
    image = sum(mask * grey[name] for name, mask in parts.items())
    return image.expand(batch, channels, size, size).clone(), parts


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


def test_inside_is_what_has_body_on_all_four_sides() -> None:
    """A frame with a gap of one pixel holds its inside; air beside, above and below it is outside."""
    frame = torch.full((1, 1, 40, 40), -1.0)
    frame[..., 8:32, 6:36] = 0.0
    frame[..., 9:31, 7:35] = -1.0
    frame[..., 8, 20] = -1.0
    inside = torch.zeros(40, 40, dtype=torch.bool)
    inside[8:32, 6:36] = True
    assert torch.equal(inside_body(frame)[0, 0], inside)
    assert torch.equal(inside_body(frame.mT)[0, 0], inside.T)
    assert not inside_body(torch.full((1, 1, 40, 40), -1.0)).any()
    frame[..., 6:36] = torch.where(torch.arange(40)[:, None] > 30, frame[..., 6:36], -1.0)  # the floor alone
    assert not inside_body(frame)[..., :31, :].any()


def test_wide_regions_are_those_that_hold_a_square() -> None:
    mask = torch.zeros(1, 1, 40, 40, dtype=torch.bool)
    mask[..., 2:6, 2:38] = True  # 4 pixels high
    mask[..., 15:30, 10:25] = True
    wide = wide_regions(mask, 6)
    assert not wide[..., 2:6, :].any()
    assert wide[..., 15:30, 10:25].all()


@pytest.mark.parametrize("channels", [1, 3])
def test_fat_lights_up_and_air_outside_stays_dark(channels: int) -> None:
    image, parts = patient(batch=40, channels=channels)
    changed = light_fat(image, seeded(11), replace(FAT, gas=0.0))
    assert (changed[..., parts["air"]] == -1.0).all()
    assert (changed[..., parts["lung"]] == -1.0).all()
    fat = changed[..., parts["fat"]].mean(dim=(1, 2))
    assert fat.min() > -0.5
    assert fat.std() > 0.1  # each image has its own
    assert changed.max() <= 1.0


def test_fat_outshines_muscle_in_most_images_but_not_in_all() -> None:
    """Its brightness is 0.3 to 2 times the most that muscle (here at 0.1, so 0.55) can have."""
    image, parts = patient(batch=400)
    changed = light_fat(image, seeded(16), replace(FAT, gas=0.0))[:, 0]
    brighter = (
        changed[:, parts["fat"]].median(dim=1).values > changed[:, parts["muscle"]].median(dim=1).values
    )
    assert brighter.float().mean().item() == pytest.approx((2.0 - 0.55) / 1.7, abs=0.06)


def test_lung_and_fat_have_greys_of_their_own() -> None:
    image, parts = patient(batch=400)
    changed = light_fat(image, seeded(12), replace(FAT, gas=0.25))[:, 0]
    lung, fat = changed[:, parts["lung"]].median(dim=1).values, changed[:, parts["fat"]].median(dim=1).values
    lit = lung > -0.99
    assert lit.float().mean().item() == pytest.approx(0.25, abs=0.07)
    assert (lung - fat)[lit].abs().mean() > 0.1


def test_half_a_pixel_of_fat_is_lit_half() -> None:
    """Muscle at 0 and fat at -1 share the pixels between them, so these lie halfway before and after."""
    image = torch.zeros(20, 1, 40, 40)
    image[..., 18:22, 10:30] = -1.0
    image[..., 17, 10:30] = -0.5
    changed = light_fat(image, seeded(13), FAT)[:, 0]
    assert (changed[:, 20, 20] > -0.5).all()
    torch.testing.assert_close(changed[:, 17, 20], (changed[:, 20, 20] + changed[:, 5, 5]) / 2)


def test_share_of_images_with_lit_fat_and_pictures_without_black_are_kept() -> None:
    image, _ = patient(batch=1000, size=64)
    changed = (light_fat(image, seeded(14), replace(NEVER, fat=0.3)) != image).flatten(1).any(dim=1)
    assert changed.float().mean().item() == pytest.approx(0.3, abs=0.05)
    skin = images(channels=3).abs() * 0.5 - 0.2
    torch.testing.assert_close(light_fat(skin, seeded(15), FAT), skin)


def test_a_window_that_shows_fat_leaves_it_as_it_is() -> None:
    """Noisy fat at -0.75, as between -160 and 240 HU; now and then a pixel of it is as black as air."""
    image, parts = patient()
    noise = torch.randn(image.shape, generator=seeded(17)) * 0.06
    wider = torch.where(parts["fat"], (-0.75 + noise).clamp(min=-1.0), image)
    assert (wider[..., parts["fat"]] < -0.8).float().mean() > 0.1
    assert torch.equal(light_fat(wider, seeded(18), FAT), wider)


def test_looks_without_fat_are_drawn_as_before_it_was_there() -> None:
    """The draws of fat come last, so all others stay the same when its share changes."""
    image = torch.rand(4, 1, 32, 32, generator=seeded(1)) * 0.5  # nothing black
    one, other = (shift_appearance(image, seeded(2), AppearanceConfig(fat=share)) for share in (0.0, 1.0))
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    "wrong", [{"fat": 2.0}, {"gas": -1.0}, {"curve": 1.5}, {"dark_air": -0.1}, {"noise_std": -1.0}]
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        AppearanceConfig(**wrong)


# --- the looks of X-rays and photographs -----------------------------------------------------------


def test_gamma_raises_brightness_to_a_power_in_its_range() -> None:
    image = images(400)
    config = replace(NEVER, gamma=0.5, gamma_log=(-1.0, 1.2))
    looks = draw_looks(tuple(image.shape), seeded(), config)
    changed = apply_looks(image, looks)
    torch.testing.assert_close((changed + 1) / 2, ((image + 1) / 2) ** looks.power[:, None, None, None])
    log = looks.power.log()
    assert (log == 0.0).float().mean().item() == pytest.approx(0.5, abs=0.08)
    assert -1.0 <= log.min() < -0.9
    assert 1.1 < log.max() <= 1.2


def test_contrast_is_about_the_middle_grey_with_an_offset() -> None:
    image = images(400)
    config = replace(NEVER, contrast=0.5, contrast_factor=(0.6, 1.1), offset=0.2)
    looks = draw_looks(tuple(image.shape), seeded(), config)
    factor, offset = looks.contrast.unbind(dim=1)
    wanted = (image * factor[:, None, None, None] + offset[:, None, None, None]).clamp(-1, 1)
    torch.testing.assert_close(apply_looks(image, looks), wanted)
    kept = (factor == 1.0) & (offset == 0.0)
    assert kept.float().mean().item() == pytest.approx(0.5, abs=0.08)
    assert 0.6 <= factor.min() < 0.65
    assert 1.05 < factor.max() <= 1.1
    assert 0.17 < offset.abs().max() <= 0.2


def test_white_changes_by_channel_and_only_in_brightness() -> None:
    image = images(200, channels=3) * 0.3 - 0.4  # stays below white
    looks = draw_looks(tuple(image.shape), seeded(), replace(NEVER, colour=1.0, colour_log=0.25))
    factors = (apply_looks(image, looks) + 1) / (image + 1)  # (B, 3, H, W)
    flat = factors.flatten(2)
    torch.testing.assert_close(flat.amax(dim=2), flat.amin(dim=2))
    log = flat[..., 0].log()
    assert 0.22 < log.abs().max() <= 0.25 + 1e-4
    assert (log.amax(dim=1) - log.amin(dim=1)).median() > 0.1  # the channels differ


def test_a_vignette_darkens_corners_and_leaves_the_middle() -> None:
    image = torch.zeros(200, 3, 64, 64)
    changed = apply_looks(image, draw_looks(tuple(image.shape), seeded(), replace(NEVER, vignette=1.0)))
    torch.testing.assert_close(changed[..., 24:40, 24:40], image[..., 24:40, 24:40])
    corners = changed[..., [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners <= 0.0).all()
    assert (corners.amin(dim=(1, 2)) < -0.9).float().mean() > 0.5


def test_hairs_are_thin_dark_and_not_everywhere() -> None:
    image = torch.full((100, 3, 128, 128), 0.5)
    changed = apply_looks(image, draw_looks(tuple(image.shape), seeded(), replace(NEVER, hair=1.0)))
    covered = (changed < 0.45).all(dim=1).float().mean(dim=(1, 2))  # share of the picture
    assert covered.median() > 0.01
    assert covered.max() < 0.35
    assert changed.amin() < -0.5
    assert torch.equal(changed.amax(dim=1), changed.amin(dim=1))  # grey, so all channels alike


@pytest.mark.parametrize("size", [64, 128, 256])
def test_blur_is_a_share_of_the_side(size: int) -> None:
    """Against scipy's, whose widths are pixels; borders, which differ, are left out."""
    image = torch.rand(1, 1, size, size, generator=seeded(5)) * 2 - 1
    looks = draw_looks((1, 1, size, size), seeded(1), replace(NEVER, blur=1.0))
    sigma_px = float(looks.blur_px)
    assert 0.5 * size / 64 < sigma_px <= size / 64
    reference = gaussian_filter(image[0, 0].numpy(), sigma_px, truncate=4.0)
    edge = size // 8
    found = apply_looks(image, looks)[0, 0].numpy()
    inside = np.s_[edge:-edge, edge:-edge]
    np.testing.assert_allclose(found[inside], reference[inside], atol=0.02)
    assert np.abs(image[0, 0].numpy()[inside] - reference[inside]).max() > 0.1


@pytest.mark.parametrize("modality", sorted(LOOKS))
def test_looks_of_every_modality_are_in_range_and_seeded(modality: str) -> None:
    image = images(16, channels=3 if modality in ("dermoscopy", "face") else 1)
    first, again = (shift_appearance(image, seeded(3), LOOKS[modality]) for _ in range(2))
    assert torch.equal(first, again)
    assert first.abs().max() <= 1.0
    assert (first - image).abs().mean() > 0.05
    half = slice(0, 8)
    looks = draw_looks(tuple(image.shape), seeded(3), LOOKS[modality])
    part = apply_looks(image[half], looks.part(lambda rows: rows[half]))
    torch.testing.assert_close(part, first[half])


@pytest.mark.parametrize("modality", ["xray", "dermoscopy", "face"])
def test_gentle_looks_keep_what_is_brighter(modality: str) -> None:
    """No device turns an X-ray or a photograph into its negative: order along a ramp stays, noise apart."""
    gentle = replace(LOOKS[modality], noise=0.0, bias=0.0, hair=0.0, vignette=0.0, blur=0.0)
    channels = 1 if modality == "xray" else 3
    ramp = torch.linspace(-1, 1, 64).expand(200, channels, 64, 64)
    assert (shift_appearance(ramp, seeded(), gentle).diff(dim=-1) >= -1e-5).all()
    wild = shift_appearance(ramp, seeded(), replace(AppearanceConfig(), noise=0.0, bias=0.0, blur=0.0))
    assert (wild.diff(dim=-1) < -1e-3).flatten(1).any(dim=1).float().mean() > 0.2  # CT's are not like that


def test_always_changes_intensities_of_every_image_by_the_same_kinds() -> None:
    assert always(AppearanceConfig()) == AppearanceConfig(curve=1.0)
    gentle = always(LOOKS["xray"])
    assert (gentle.curve, gentle.contrast, gentle.gamma) == (0.0, 1.0, 1.0)
    assert (gentle.bias, gentle.noise) == (LOOKS["xray"].bias, LOOKS["xray"].noise)
