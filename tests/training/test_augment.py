"""The random transforms before the discriminators."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sgan_core.config import AugmentConfig, preset
from sgan_core.training import augment

STILL = torch.tensor([[1.0, 0.0]])  # contrast: factor 1, offset 0


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _blob(row: float, column: float, side: int = 32, width: float = 3.0) -> Tensor:
    """A Gaussian blob in [0, 1], (1, 1, S, S)."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * width**2))[None, None]


def _pair(blob: Tensor) -> tuple[Tensor, Tensor]:
    """An image with a bright blob in air, and the label of that blob."""
    return 2.0 * blob - 1.0, torch.cat([1.0 - blob, blob], dim=1)


def _centre(blob: Tensor) -> tuple[float, float]:
    weight = blob / blob.sum()
    places = torch.arange(blob.shape[-1], dtype=blob.dtype)
    return float((weight.sum(dim=1) * places).sum()), float((weight.sum(dim=0) * places).sum())


def test_strength_zero_changes_nothing():
    theta, contrast = augment.draw(8, 0.0, AugmentConfig(flip=True), _rng())
    image, label = _pair(_blob(12, 18).expand(8, -1, -1, -1))
    moved, label_moved = augment.warp(image, theta, contrast, label)
    torch.testing.assert_close(moved, image, atol=1e-5, rtol=0.0)
    torch.testing.assert_close(label_moved, label, atol=1e-5, rtol=0.0)


@pytest.mark.parametrize(("fill", "inside"), [("air", -1.0), ("border", 0.4)])
def test_what_comes_in_from_outside(fill, inside):
    """A grey picture that is an organ all over, moved right by half its side."""
    image, label = torch.full((1, 1, 8, 8), 0.4), torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).expand(1, 2, 8, 8)
    theta = torch.tensor([[[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]]])
    moved, label_moved = augment.warp(image, theta, STILL, label, fill=fill)
    torch.testing.assert_close(moved[..., 4:], torch.full((1, 1, 8, 4), 0.4))
    torch.testing.assert_close(moved[..., :3], torch.full((1, 1, 8, 3), inside))
    organ = float(fill == "border")
    torch.testing.assert_close(label_moved[:, 1, :, :3], torch.full((1, 8, 3), organ))
    torch.testing.assert_close(label_moved.sum(dim=1), torch.ones(1, 8, 8))


@pytest.mark.parametrize("name", ["tiny", "small", "paper", "official"])
@pytest.mark.parametrize(
    ("modality", "fill"),
    [("ct", "air"), ("mr", "air"), ("xray", "border"), ("dermoscopy", "border"), ("face", "border")],
)
def test_each_modality_is_filled_with_what_lies_around_it(name, modality, fill):
    config = preset(name, modality=modality, num_classes=2)
    assert (config.gan.augment.fill, config.student_train.geometry.fill) == (fill, fill)


def test_each_part_is_applied_with_the_given_probability():
    theta, contrast = augment.draw(4000, 0.3, AugmentConfig(), _rng())
    parts = {
        "rotation": theta[:, 0, 1] != 0.0,
        "shift": theta[:, 0, 2] != 0.0,
        "contrast": contrast[:, 0] != 1.0,
        "brightness": contrast[:, 1] != 0.0,
    }
    for name, applied in parts.items():
        assert float(applied.float().mean()) == pytest.approx(0.3, abs=0.04), name


def test_transforms_stay_within_their_settings():
    config = AugmentConfig(shift=0.1, scale=0.2, rotation_deg=10.0, contrast=0.15)
    theta, contrast = augment.draw(2000, 1.0, config, _rng())
    scale = theta[:, :, :2].det().sqrt()
    angle = torch.rad2deg(torch.atan2(theta[:, 1, 0], theta[:, 0, 0]))
    assert float(scale.log().abs().max()) == pytest.approx(0.2, rel=0.05)
    assert float(angle.abs().max()) == pytest.approx(10.0, rel=0.05)
    assert float(theta[:, :, 2].abs().max()) == pytest.approx(2 * 0.1, rel=0.05)  # grid units: the side is 2
    assert float(contrast[:, 0].log().abs().max()) == pytest.approx(0.15, rel=0.05)


def test_no_flip_unless_asked_for():
    without, _ = augment.draw(500, 1.0, AugmentConfig(flip=False), _rng())
    with_flip, _ = augment.draw(500, 1.0, AugmentConfig(flip=True), _rng())
    assert (without[:, :, :2].det() > 0).all()
    assert float((with_flip[:, :, :2].det() < 0).float().mean()) == pytest.approx(0.5, abs=0.1)


def test_a_flip_is_left_right():
    config = AugmentConfig(flip=True, shift=0.0, scale=0.0, rotation_deg=0.0, contrast=0.0)
    theta, contrast = augment.draw(20, 1.0, config, _rng())
    flipped = theta[:, 0, 0] < 0
    assert flipped.any()
    image = _pair(_blob(10, 20))[0].expand(20, -1, -1, -1)
    moved = augment.warp(image, theta, contrast)[0]
    expected = torch.where(flipped[:, None, None, None], image.flip(-1), image)
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=0.0)


def test_the_same_seed_draws_the_same_and_another_seed_does_not():
    first, again, other = (augment.draw(8, 0.7, AugmentConfig(), _rng(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_image_and_label_move_together():
    columns = range(8, 24)
    image, label = _pair(torch.cat([_blob(12, column) for column in columns]))
    theta, _ = augment.draw(16, 1.0, AugmentConfig(flip=True), _rng())
    moved, label_moved = augment.warp(image, theta, STILL.expand(16, -1), label)
    assert label_moved is not None
    torch.testing.assert_close((moved + 1.0) / 2.0, label_moved[:, 1:], atol=1e-5, rtol=0.0)
    for blob, column in zip(label_moved[:, 1], columns, strict=True):  # and it did move
        row, moved_column = _centre(blob)
        assert abs(row - 12) + abs(moved_column - column) > 0.1


def test_shift_moves_by_the_drawn_fraction_of_the_side():
    theta = torch.tensor([[[1.0, 0.0, 2 * 0.125], [0.0, 1.0, 0.0]]])
    moved, _ = augment.warp(_pair(_blob(16, 20))[0], theta, STILL)
    row, column = _centre((moved[0, 0] + 1.0) / 2.0)
    assert (row, column) == (pytest.approx(16, abs=0.05), pytest.approx(20 - 0.125 * 32, abs=0.05))


def test_outside_is_air_and_background():
    theta = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]])  # half the image comes from outside
    image, label = torch.full((1, 1, 32, 32), 0.5), torch.zeros(1, 3, 32, 32)
    label[:, 2] = 1.0
    moved, label_moved = augment.warp(image, theta, STILL, label)
    assert label_moved is not None
    assert torch.equal(moved[..., 17:], torch.full((1, 1, 32, 15), -1.0))
    assert torch.equal(label_moved[:, 0, :, 17:], torch.ones(1, 32, 15))
    torch.testing.assert_close(label_moved[:, 2, :, :15], torch.ones(1, 32, 15))


def test_label_probs_still_sum_to_one():
    label = torch.softmax(torch.randn(16, 4, 32, 32), dim=1)
    theta, contrast = augment.draw(16, 1.0, AugmentConfig(), _rng())
    moved = augment.warp(torch.zeros(16, 1, 32, 32), theta, contrast, label)[1]
    assert moved is not None
    torch.testing.assert_close(moved.sum(dim=1), torch.ones(16, 32, 32))
    assert float(moved.min()) >= -1e-5


def test_contrast_changes_the_image_and_never_the_label():
    image, label = _pair(_blob(16, 16))
    still = torch.eye(2, 3)[None]
    moved, label_moved = augment.warp(image, still, torch.tensor([[1.2, 0.1]]), label)
    torch.testing.assert_close(moved, 1.2 * image + 0.1, atol=1e-5, rtol=0.0)
    torch.testing.assert_close(label_moved, label, atol=1e-5, rtol=0.0)


def test_gradients_pass_through_to_image_and_label():
    image, label = _pair(_blob(16, 16))
    image.requires_grad_()
    label.requires_grad_()
    theta, contrast = augment.draw(1, 1.0, AugmentConfig(), _rng())
    moved, label_moved = augment.warp(image, theta, contrast, label)
    gradients = torch.autograd.grad(moved.sum() + label_moved[:, 1].sum(), [image, label])
    assert all(bool(gradient.abs().sum() > 0) for gradient in gradients)
