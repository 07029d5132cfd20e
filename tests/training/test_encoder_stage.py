"""Stage 2: the encoder's losses, its frozen generator, exact resume, and that it learns."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sgan_core.config import TrainConfig
from sgan_core.errors import InputError
from sgan_core.networks.generator import Generator
from sgan_core.networks.perceptual import Perceptual
from sgan_core.training.data import SliceStore
from sgan_core.training.encoder import EncoderTrainer, label_losses, make_encoder
from sgan_core.training.gan import one_hot
from sgan_core.training.loop import load_checkpoint, save_checkpoint

CPU = torch.device("cpu")


class Coarse(Perceptual):
    """Stands for a perceptual network: the image at two sizes."""

    def __init__(self) -> None:
        super().__init__("coarse")

    def raw_features(self, x: Tensor) -> list[Tensor]:
        return [torch.cat([torch.ones_like(y), y], dim=1) for y in (x, F.avg_pool2d(x, 4))]


@pytest.fixture
def stage(
    toy_config: Callable[..., TrainConfig], disc_store: Callable[..., SliceStore]
) -> Callable[..., EncoderTrainer]:
    """An encoder stage over an untrained generator that draws visibly different images."""

    def make(**changes: Any) -> EncoderTrainer:
        config = toy_config(
            encoder_train={"batch": 6, "max_images": 6_000, "latent_weight": 0.5, "perceptual_weight": 1.0}
            | changes
        )
        torch.manual_seed(5)
        generator = Generator(config.generator)
        generator.update_mean_w(samples=256)
        return EncoderTrainer(config, disc_store(), CPU, generator, Coarse())

    return make


def test_resume_is_exact(stage, tmp_path):
    """20 steps equal 10, a checkpoint, and 10 of a new trainer, bit for bit."""
    whole, first, second = stage(), stage(), stage()
    losses = [whole.step() for _ in range(20)]
    for _ in range(10):
        first.step()
    save_checkpoint(first.state_dict(), tmp_path / "encoder.pt")
    second.load_state_dict(load_checkpoint(tmp_path / "encoder.pt"))
    assert [second.step() for _ in range(10)] == losses[10:]
    a, b = whole.encoder.state_dict(), second.encoder.state_dict()
    assert all(torch.equal(value, b[name]) for name, value in a.items())
    first_moments, second_moments = (x.optimizer.state_dict()["state"] for x in (whole, second))
    assert all(
        torch.equal(first_moments[n]["exp_avg_sq"], second_moments[n]["exp_avg_sq"]) for n in first_moments
    )


def test_the_generator_stays_frozen(stage):
    trainer = stage()
    before = copy.deepcopy(trainer.generator.state_dict())
    for _ in range(3):
        trainer.step()
    after = trainer.generator.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any(p.requires_grad or p.grad is not None for p in trainer.generator.parameters())


def test_learning_lowers_the_losses(stage):
    trainer = stage(batch=12, lr=2e-3)
    found = [trainer.step() for _ in range(80)]
    mean = {name: ([], []) for name in found[0]}
    for part, steps in enumerate((found[:10], found[-10:])):
        for name, parts in mean.items():
            parts[part].append(float(np.mean([step[name] for step in steps])))
    totals = [sum(parts[index][0] for parts in mean.values()) for index in (0, 1)]
    assert totals[1] < 0.8 * totals[0]
    assert mean["latent"][1] < mean["latent"][0]


def test_every_term_is_there_and_weighted(stage):
    plain, heavy = stage(), stage(perceptual_weight=3.0, mse_weight=5.0, ce_weight=7.0, dice_weight=9.0)
    first, second = plain.step(), heavy.step()
    base = plain.train
    for name, factor in {
        "perceptual": 3.0 / base.perceptual_weight,
        "mse": 5.0 / base.mse_weight,
        "ce": 7.0 / base.ce_weight,
        "dice": 9.0 / base.dice_weight,
        "latent": 1.0,
    }.items():
        assert second[name] == pytest.approx(factor * first[name], rel=1e-4), name


def test_without_synthetic_pairs_there_is_no_latent_term(stage):
    assert "latent" not in stage(latent_weight=0.0).step()


def test_label_losses_closed_form(toy_config):
    """Cross-entropy at temperature 0.5 and Dice at temperature 2 of two pixels, worked out by hand."""
    weights = {"ce_temperature": 0.5, "dice_temperature": 2.0, "ce_weight": 2.0, "dice_weight": 3.0}
    config = toy_config(encoder_train=weights)
    logits = torch.tensor([[0.0, 1.0], [0.0, 0.0]]).reshape(
        1, 2, 1, 2
    )  # foreground: 0 and 0, background: 0 and 1
    hot = one_hot(torch.tensor([[[1, 0]]]), 2)
    found = label_losses(logits, hot, config)
    entropy = (math.log(2.0) + math.log(1.0 + math.exp(-2.0))) / 2
    outside = 1.0 / (1.0 + math.exp(0.5))  # probability of foreground at the second pixel
    dice = 1.0 - (2 * 0.5 + 1) / (0.5 + outside + 1 + 1)
    assert float(found["ce"]) == pytest.approx(2.0 * entropy)
    assert float(found["dice"]) == pytest.approx(3.0 * dice)


def test_a_perfect_encoder_has_no_loss(stage):
    """Images drawn by the generator, an encoder that knows their w: only the labels' uncertainty is left."""
    trainer = stage()
    w_true, pair = trainer._synthetic()

    class Oracle(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return w_true.repeat(len(x) // len(w_true), 1, 1)

    trainer.encoder = Oracle()
    found = trainer._losses(pair.image, one_hot(pair.labels(), 2))
    assert float(found["perceptual"]) == pytest.approx(0.0, abs=1e-6)
    assert float(found["mse"]) == pytest.approx(0.0, abs=1e-6)
    assert float(found["latent"]) == pytest.approx(0.0, abs=1e-6)


def test_only_the_labelled_half_has_label_losses(stage):
    """Labels of the other half are not known (255) and are never asked for."""
    trainer = stage()
    seen: list[np.ndarray] = []
    read = trainer.store.label_batch
    object.__setattr__(trainer.store, "label_batch", lambda index: seen.append(index) or read(index))
    for _ in range(4):
        trainer.step()
    index = np.concatenate(seen)
    assert set(trainer.store.case[index]) <= {0, 1}
    assert len(index) == 4 * 3


def test_the_rate_follows_images_or_time_whichever_is_further(stage):
    trainer = stage(lr=0.01)  # 1,000 steps
    rates = []
    for step, time_share in ((0, 0.0), (500, 0.0), (250, 0.5), (999, 0.0)):
        trainer.step_number, trainer.schedule.time_share = step, time_share
        trainer.step()
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    half = 0.01 * (0.01 + 0.99 / 2)
    assert rates == pytest.approx([0.01, half, half, 0.0001], rel=1e-3)


def test_the_same_generator_on_another_processor_is_not_another_one(stage):
    """There the mean w comes out with other last bits; the encoder goes on where it was."""
    old, new = stage(), stage()
    new.generator.mean_w.mul_(1.0 + 1e-6)
    moved = EncoderTrainer(new.config, new.store, CPU, new.generator, Coarse())
    for _ in range(3):
        old.step()
    moved.load_state_dict(old.state_dict())
    assert moved.images == old.images > 0
    assert torch.equal(moved.encoder.mean_w, old.encoder.mean_w)


def test_an_encoder_of_another_generator_begins_anew_around_its_mean_w(stage):
    """Stage 1 went on: the weights are a start, but what they are offsets from is the mean w of today's generator."""
    old, new = stage(), stage()
    with torch.no_grad():
        new.generator.mapping.layers[0].weight.mul_(1.5)
    new.generator.update_mean_w(samples=256)
    new = EncoderTrainer(new.config, new.store, CPU, new.generator, Coarse())
    for _ in range(3):
        old.step()
    assert not torch.equal(old.encoder.mean_w, new.generator.mean_w)
    new.load_state_dict(old.state_dict())
    assert new.images == 0
    assert torch.equal(new.encoder.mean_w, new.generator.mean_w)
    assert all(
        torch.equal(a, b) for a, b in zip(old.encoder.parameters(), new.encoder.parameters(), strict=True)
    )


def test_the_first_reconstruction_is_near_the_mean_image(toy_config):
    mean_w = torch.randn(8)
    encoder = make_encoder(toy_config(), mean_w).eval()
    with torch.no_grad():
        offset = encoder(torch.randn(4, 1, 32, 32)) - mean_w
    assert float(offset.std()) < 0.5


def test_encoders_of_one_seed_are_equal_and_global_randomness_is_left_alone(toy_config):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first, second = (make_encoder(toy_config(), torch.zeros(8)) for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_the_encoder_sees_other_looks_of_the_same_images(stage, monkeypatch):
    """With every look changed to its negative, the encoder sees negatives, and the losses the images as they were."""
    monkeypatch.setattr("sgan_core.training.encoder.apply_looks", lambda image, looks: -image)
    seen: list[Tensor] = []
    wanted: list[Tensor] = []
    trainer = stage(appearance_share=1.0)
    encode, compare = trainer.encoder.forward, trainer.perceptual.forward
    monkeypatch.setattr(trainer.encoder, "forward", lambda image: seen.append(image) or encode(image))
    monkeypatch.setattr(trainer.perceptual, "forward", lambda a, b: wanted.append(b) or compare(a, b))
    trainer.step()
    assert torch.equal(seen[0][: len(wanted[0])], -wanted[0])


def test_appearance_is_left_alone_unless_asked(stage, monkeypatch):
    monkeypatch.setattr("sgan_core.training.encoder.apply_looks", lambda *_: pytest.fail("changed"))
    stage().step()
    with pytest.raises(InputError, match="appearance_share"):
        stage(appearance_share=1.5)
