"""Stage 1: the gradient stop, the schedule, growing, exact resume, and that it learns."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgan_core.config import PairDiscriminatorConfig, TrainConfig, preset
from sgan_core.networks.discriminators import PairDiscriminator
from sgan_core.networks.stylegan2 import downsample2, upsample2
from sgan_core.training import augment
from sgan_core.training import gan as gan_module
from sgan_core.training.data import Order
from sgan_core.training.gan import GanTrainer, one_hot, pair_discriminator_step, pair_label, pair_r1_step
from sgan_core.training.loop import load_checkpoint, save_checkpoint
from sgan_core.training.student import StudentTrainer

CPU = torch.device("cpu")
ALL_ON: dict[str, Any] = {
    "path_every": 3,
    "path_from": 0.0,
    "r1_every": 4,
    "pair_r1": 0.05,
    "mismatch_weight": 0.25,
    "pair_label_blur": True,
    "pair_ramp_images": 40,
    "augment": {"adaptive": True, "adapt_kimg": 0.1, "pair_strength": 0.5, "image_strength": 0.2},
}
Make = Callable[..., Any]


@pytest.fixture
def trainer(toy_config: Make, disc_store: Make) -> Callable[..., GanTrainer]:
    """A toy trainer on discs; keyword arguments change its config."""

    def make(*, grown: bool = False, **changes: Any) -> GanTrainer:
        config = toy_config(**changes)
        return GanTrainer(config, disc_store(size=config.generator.size), CPU, grown=grown)

    return make


def _flat(state: Any, name: str = "") -> dict[str, Any]:
    """A nested state as one table."""
    if isinstance(state, dict):
        parts = [_flat(value, f"{name}/{key}") for key, value in state.items()]
        return {key: value for part in parts for key, value in part.items()}
    if isinstance(state, list | tuple):
        return _flat(dict(enumerate(state)), name)
    return {name: state}


def _assert_same_state(first: dict[str, Any], second: dict[str, Any]) -> None:
    a, b = _flat(first), _flat(second)
    assert a.keys() == b.keys()
    differing = [
        key
        for key, value in a.items()
        if not (torch.equal(value, b[key]) if isinstance(value, Tensor) else value == b[key])
    ]
    assert not differing


# --- the gradient stop (docs/method.md section 2)


def _pair_gradients(trainer: GanTrainer, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Largest gradient of the D_m term alone for every parameter of G, on the trainer's own code path."""
    whole_step = gan_module.generator_step

    def pair_terms_only(*args: Any, **settings: Any) -> dict[str, Tensor]:
        found = whole_step(*args, **settings)
        del found["image_g"]
        return found

    def backward_only(_optimizer: object, net: nn.Module, loss: Tensor) -> None:
        net.zero_grad(set_to_none=True)
        loss.backward()

    monkeypatch.setattr(gan_module, "generator_step", pair_terms_only)
    monkeypatch.setattr(gan_module, "_descend", backward_only)
    image, label = torch.zeros(4, 1, 32, 32), one_hot(torch.zeros(4, 32, 32, dtype=torch.int64), 2)
    trainer._generator(image, label)
    return {
        name: 0.0 if parameter.grad is None else float(parameter.grad.abs().max())
        for name, parameter in trainer.generator.named_parameters()
    }


SETTINGS = {
    "plain": {},
    "augmented": {"augment": {"pair_strength": 1.0, "image_strength": 0.5}, "pair_label_blur": True},
    "feature matching": {"feature_matching": 2.0},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_pair_term_gives_no_gradient_to_the_image_branch(trainer, monkeypatch, settings):
    found = _pair_gradients(trainer(gan={"path_weight": 0.0} | settings), monkeypatch)
    image_branch = {name: size for name, size in found.items() if "to_image" in name}
    assert len(image_branch) == 4 * 4  # weight, affine weight, affine bias, bias at 4, 8, 16, 32 px
    assert set(image_branch.values()) == {0.0}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_pair_term_teaches_styles_mapping_and_label_branch(trainer, monkeypatch, settings):
    found = _pair_gradients(trainer(gan={"path_weight": 0.0} | settings), monkeypatch)
    others = {name: size for name, size in found.items() if "to_image" not in name}
    assert any("to_label" in name for name in others)
    assert any("mapping" in name for name in others)
    assert [name for name, size in others.items() if size == 0.0] == []


def test_without_the_detach_the_pair_term_would_reach_the_image_branch(trainer, monkeypatch):
    monkeypatch.setattr(Tensor, "detach", lambda self: self)
    found = _pair_gradients(trainer(gan={"path_weight": 0.0}), monkeypatch)
    assert max(size for name, size in found.items() if "to_image" in name) > 0.0


def test_image_term_leaves_the_label_branch_alone(trainer, monkeypatch):
    player = trainer(gan={"path_weight": 0.0, "pair_weight": 0.0})
    found = _pair_gradients_of_image(player, monkeypatch)
    assert all((size == 0.0) == ("to_label" in name) for name, size in found.items())


def _pair_gradients_of_image(trainer: GanTrainer, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    monkeypatch.setattr(gan_module, "_descend", lambda _optimizer, _net, loss: loss.backward())
    trainer._generator(torch.zeros(4, 1, 32, 32), torch.zeros(4, 2, 32, 32))
    parameters = trainer.generator.named_parameters()
    return {name: 0.0 if p.grad is None else float(p.grad.abs().max()) for name, p in parameters}


def test_discriminators_keep_still_while_the_generator_learns(trainer):
    player = trainer(gan={"path_weight": 0.0})
    before = {name: p.clone() for name, p in player.pair_d.named_parameters()}
    before |= {name: p.clone() for name, p in player.image_d.named_parameters()}
    player._generator(torch.zeros(4, 1, 32, 32), torch.zeros(4, 2, 32, 32))
    after = dict(player.pair_d.named_parameters()) | dict(player.image_d.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(p.requires_grad for p in after.values())


# --- what D_m sees


def test_one_hot_and_its_official_encoding():
    labels = torch.tensor([[[0, 1], [2, 0]]])
    hot = one_hot(labels, 3)
    assert hot.shape == (1, 3, 2, 2)
    assert torch.equal(hot.argmax(dim=1), labels)
    assert torch.equal(one_hot(labels, 3, encoding="official"), 2 * hot - 1)


def test_pair_label_blurs_real_and_generated_labels_alike_and_keeps_their_sum():
    label = torch.softmax(torch.randn(2, 3, 8, 8), dim=1)
    seen = pair_label(label, encoding="softmax", blur=True)
    torch.testing.assert_close(((seen + 1) / 2).sum(dim=1), torch.ones(2, 8, 8))
    # 1 2 1 / 4 in both directions, away from the border
    plane = label[0, 0]
    weights = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16
    assert float((seen[0, 0, 3, 4] + 1) / 2) == pytest.approx(float((plane[2:5, 3:6] * weights).sum()))
    torch.testing.assert_close(pair_label(label, encoding="softmax", blur=False), 2 * label - 1)
    torch.testing.assert_close(pair_label(label, encoding="official", blur=False), label)


def test_mismatched_pairs_count_only_where_the_labels_differ(trainer, monkeypatch):
    player = trainer(gan={"mismatch_weight": 0.5})
    seen: dict[str, Any] = {}
    step = gan_module.pair_discriminator_step
    monkeypatch.setattr(
        gan_module, "pair_discriminator_step", lambda *args, **rest: seen.update(rest) or step(*args, **rest)
    )
    player.step()
    index = player.pair_order.batch(0, 4)
    labels = player.store.labels[index]
    for weight, own, other in zip(seen["mismatch_weight"], labels, np.roll(labels, 1, axis=0), strict=True):
        overlap, total = (own * other).sum(), own.sum() + other.sum(dtype=np.int64)
        expected = 0.5 * (1.0 - (2 * overlap / total if total else 1.0))
        assert float(weight) == pytest.approx(expected, abs=1e-6)


# --- how large the lazy regularisers are: each weighs for the steps that it stands for


class Linear(nn.Module):
    """D_r with one weight a pixel: its R1 is the squared norm of the weights, whatever the images."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1.0, 1.0, 32 * 32).reshape(1, 32, 32))

    def forward(self, image: Tensor, fade: float = 1.0) -> Tensor:
        return (image * self.weight).sum(dim=(1, 2, 3))


RATE = 1e-4  # of plain descent: a step changes a weight by RATE times its gradient


def test_r1_of_the_image_discriminator_weighs_for_its_interval(trainer):
    """gamma/2 |w|^2 and its gradient gamma w, times 8 steps."""
    found, weights = [], []
    for gamma in (0.0, 2.0):
        player = trainer(gan={"image_r1": gamma, "r1_every": 8})
        player.image_d = Linear()
        player.image_optimizer = torch.optim.SGD(player.image_d.parameters(), lr=RATE)
        found.append(player.step())
        weights.append(player.image_d.weight.detach())
    start = Linear().weight.detach()
    assert found[1]["image_r1"] == pytest.approx(8 * 2.0 / 2 * float(start.square().sum()), rel=0.01)
    torch.testing.assert_close((weights[0] - weights[1]) / RATE, 8 * 2.0 * start, rtol=0.01, atol=0.02)


def test_path_penalty_weighs_for_its_interval(trainer, monkeypatch):
    """Lengths of 3 plus the sum of G's constant, which is 0 at the start: (3 - mean)^2 and twice its root."""
    found, constants = [], []
    for weight in (0.0, 2.0):
        player = trainer(gan={"path_weight": weight, "path_every": 4})
        constant = player.generator.synthesis.const
        constant.data -= constant.data.mean()
        monkeypatch.setattr(
            gan_module.losses,
            "path_lengths",
            lambda image, w_plus, direction, constant=constant: (3.0 + constant.sum()).expand(len(image)),
        )
        player.g_optimizer = torch.optim.SGD(player.generator.parameters(), lr=RATE)
        monkeypatch.setattr(gan_module, "_set_rate", lambda *_: None)
        found.append(player.step())
        constants.append(constant.detach())
    gap = 3.0 - 0.01 * 3.0  # the running mean was 0
    assert found[1]["path"] == pytest.approx(2.0 * 4 * gap**2, rel=0.01)
    pull = (constants[0] - constants[1]) / RATE
    torch.testing.assert_close(pull, torch.full_like(pull, 2.0 * 4 * 2 * gap), rtol=0.02, atol=0.0)


# --- schedule


def test_lazy_regularisers_act_in_their_steps_only(trainer):
    player = trainer(gan={"r1_every": 4, "path_every": 3, "pair_r1": 0.1})
    names = [set(player.step()) for _ in range(7)]
    assert [step for step, found in enumerate(names) if "image_r1" in found] == [0, 4]
    assert [step for step, found in enumerate(names) if "pair_r1" in found] == [0, 4]
    assert [step for step, found in enumerate(names) if "path" in found] == [0, 3, 6]


def test_path_length_starts_late_when_asked(trainer):
    player = trainer(gan={"path_every": 1, "path_from": 0.5, "max_images": 24})
    assert ["path" in player.step() for _ in range(6)] == [False] * 3 + [True] * 3
    assert float(player.path_mean) > 0.0


def test_path_length_also_starts_late_by_time(trainer):
    """A run with a time limit sees fewer images than it might; at half of its time half is over."""
    player = trainer(gan={"path_every": 1, "path_from": 0.5})
    assert "path" not in player.step()
    player.schedule.time_share = 0.5
    assert "path" in player.step()


def test_pair_weight_is_ramped(trainer):
    player = trainer(
        gan={"pair_ramp_images": 16, "pair_weight": 0.5, "path_weight": 0.0, "pair_loss": "hinge"}
    )
    image, label = torch.zeros(4, 1, 32, 32), torch.zeros(4, 2, 32, 32)
    assert float(player._generator(image, label)["pair_g"]) == 0.0
    player.step_number = 100
    assert float(player._generator(image, label)["pair_g"]) != 0.0


def test_learning_rates_are_corrected_for_lazy_regularisation(trainer):
    """The authors' 0.0016 and 0.00188, with betas 0 and 0.99^c."""
    gan = preset("official", modality="face", num_classes=8).gan
    player = trainer(gan={"path_every": gan.path_every, "r1_every": gan.r1_every, "pair_r1": gan.pair_r1})
    rates = [o.param_groups[0] for o in (player.g_optimizer, player.image_optimizer, player.pair_optimizer)]
    assert [group["lr"] for group in rates] == pytest.approx([0.0016, 0.00188235, 0.00188235], rel=1e-4)
    assert [group["betas"][0] for group in rates] == [0.0, 0.0, 0.0]
    assert [group["betas"][1] for group in rates] == pytest.approx([0.99**0.8] + [0.99 ** (16 / 17)] * 2)


def test_each_regulariser_has_a_step_of_its_own_and_the_rate_allows_for_it(trainer, monkeypatch):
    """The authors' counts in 16 iterations: 20 steps of G, 17 of each discriminator; together they go as far as 16."""
    gan = preset("official", modality="face", num_classes=8).gan
    player = trainer(gan={"path_every": gan.path_every, "r1_every": gan.r1_every, "pair_r1": gan.pair_r1})
    optimizers = {"g": player.g_optimizer, "image": player.image_optimizer, "pair": player.pair_optimizer}
    rates: dict[str, list[float]] = {name: [] for name in optimizers}
    decays: dict[str, list[float]] = {name: [] for name in optimizers}
    for name, optimizer in optimizers.items():

        def counted(optimizer=optimizer, name=name, step=optimizer.step):
            rates[name].append(optimizer.param_groups[0]["lr"])
            decays[name].append(optimizer.param_groups[0]["betas"][1])
            step()

        monkeypatch.setattr(optimizer, "step", counted)
    for _ in range(16):
        player.step()
    assert {name: len(found) for name, found in rates.items()} == {"g": 20, "image": 17, "pair": 17}
    assert [sum(found) for found in rates.values()] == pytest.approx([16 * 0.002] * 3)
    assert [math.prod(found) for found in decays.values()] == pytest.approx([0.99**16] * 3)


def test_until_path_length_starts_the_generator_has_its_full_rate(trainer):
    player = trainer(gan={"path_every": 4, "path_from": 0.5, "max_images": 24})
    found = []
    for _ in range(6):
        player.step()
        found.append(player.g_optimizer.param_groups[0]["lr"])
    assert found == pytest.approx([0.002] * 3 + [0.0016] * 3)


def _pairs_at(size: int) -> tuple[Tensor, Tensor]:
    """The same two pairs at any size: a smooth field, and where it is positive, in the official encoding."""
    field = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    image = F.interpolate(field, size=(size, size), mode="bicubic").clamp(-1.0, 1.0)
    return image, one_hot((image[:, 0] > 0).long(), 2, encoding="official")


@pytest.mark.parametrize("name", ["official", "small"])
def test_r1_of_pairs_hardly_depends_on_the_size_of_the_image(name):
    """Of the sum of the patches it would grow 25 times from 64 to 256 px; measured: it falls to a quarter."""
    penalties = []
    for size in (64, 256):
        torch.manual_seed(0)
        config = preset(name, modality="ct", num_classes=2).pair_discriminator
        discriminator = PairDiscriminator(config, image_channels=1, num_classes=2)
        found = pair_r1_step(discriminator, _pairs_at(size), gamma=2.0, every=1)
        penalties.append(float(found["pair_r1"].detach()))
    assert 1 / 8 < penalties[1] / penalties[0] < 8


class _Linear(nn.Module):
    """A pair discriminator of two scales whose logits are a factor times each pixel: gradients in closed form."""

    def forward(self, image: Tensor, label: Tensor) -> list[list[Tensor]]:
        image = image + 0.0 * label.sum(dim=1, keepdim=True)  # the label has a gradient too: none
        return [[2.0 * image], [6.0 * image]]


@pytest.mark.parametrize("batch", [1, 4])
def test_r1_of_pairs_is_that_of_each_samples_mean_over_patches_at_each_scale(batch):
    """The mean of N logits changes with each pixel by factor / N: |gradient|^2 = factor^2 / N, of 4 and 36 the mean."""
    real = torch.randn(batch, 1, 8, 8), torch.randn(batch, 2, 8, 8)
    found = pair_r1_step(_Linear(), real, gamma=10.0, every=16)
    assert float(found["pair_r1"].detach()) == pytest.approx(10.0 / 2 * 16 * (4.0 + 36.0) / 2 / 64)


def test_the_loss_of_pairs_has_its_weight(trainer, monkeypatch):
    """The authors' code halves it; penalties and mismatched pairs have weights of their own."""
    whole, half = (
        trainer(gan=ALL_ON | {"pair_d_weight": weight}).step() for weight in (1.0, 0.5)
    )  # before any weights part
    assert half["pair_d"] == pytest.approx(0.5 * whole["pair_d"])
    assert half["mismatch"] == pytest.approx(whole["mismatch"])


def test_pairs_are_told_apart_under_the_full_r1(disc_store):
    """Real pairs of disc and label against discs with others' labels; gamma is the 10 of the large presets."""
    store = disc_store(patients=2, slices=100, labelled=2, empty=0.0)
    torch.manual_seed(0)
    config = PairDiscriminatorConfig(scales=2, base_channels=16, norm="spectral", encoding="softmax")
    discriminator = PairDiscriminator(config, image_channels=1, num_classes=2)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=0.002, betas=(0.0, 0.99))

    def descend(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def pairs(index: np.ndarray) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        image = store.image_batch(index)
        label = pair_label(one_hot(store.label_batch(index), 2), encoding="softmax", blur=True)
        return (image, label), (image, label.roll(1, dims=0))

    order = Order(np.arange(120), seed=0)
    for step in range(96):
        real, fake = pairs(order.batch(8 * step, 8))
        descend(pair_discriminator_step(discriminator, real, fake, kind="logistic")["pair_d"])
        if step % 16 == 0:
            descend(pair_r1_step(discriminator, real, gamma=10.0, every=16)["pair_r1"])
    with torch.no_grad():
        answers = [
            torch.stack([scale[-1].mean(dim=(1, 2, 3)) for scale in discriminator(*pair)]).mean(dim=0)
            for pair in pairs(np.arange(120, 200))
        ]
    area = (answers[0][:, None] > answers[1][None]).float().mean()  # under the ROC curve
    assert float(area) > 0.95


def test_average_of_weights_has_the_stated_half_life(trainer):
    player = trainer(gan={"batch": 16, "ema_half_life_images": 160.0})
    player.step_number = 10_000  # long after the start
    for average, current in zip(player.ema.parameters(), player.generator.parameters(), strict=True):
        average.zero_()
        current.data.fill_(1.0)
    for _ in range(10):  # 160 images
        player._update_ema()
    assert all(bool(torch.allclose(p, torch.full_like(p, 0.5))) for p in player.ema.parameters())


@pytest.mark.parametrize(
    ("images", "half_life"), [(0, 1.0), (400, 20.0), (800, 40.0), (19_600, 980.0), (80_000, 1000.0)]
)
def test_half_life_of_the_average_grows_with_the_images_seen(trainer, images, half_life):
    """A twentieth of the images seen, up to the stated one: as of StyleGAN2's ramp."""
    player = trainer(gan={"batch": 4, "ema_half_life_images": 1000.0})
    player.step_number = images // 4
    for average, current in zip(player.ema.parameters(), player.generator.parameters(), strict=True):
        average.zero_()
        current.data.fill_(1.0)
    player._update_ema()
    expected = 1.0 - 0.5 ** (4 / half_life)
    for average in player.ema.parameters():
        torch.testing.assert_close(average, torch.full_like(average, expected), rtol=1e-4, atol=1e-7)


def test_average_follows_quickly_at_the_start(trainer):
    player = trainer()
    player.step()
    for average, current in zip(player.ema.parameters(), player.generator.parameters(), strict=True):
        torch.testing.assert_close(average, current, atol=1e-2, rtol=0.1)


def test_augmentation_strength_follows_the_certainty_of_the_image_discriminator(trainer):
    player = trainer(
        gan={"augment": {"adaptive": True, "adapt_kimg": 0.04, "target": 0.6, "image_max": 0.25}}
    )
    player._adapt(torch.tensor(0.9))
    assert player.strength == pytest.approx(0.1)
    player._adapt(torch.tensor(0.2))
    assert player.strength == pytest.approx(0.0)
    player._adapt(torch.tensor(0.2))
    assert player.strength == 0.0
    for _ in range(5):
        player._adapt(torch.tensor(1.0))
    assert player.strength == 0.25


def test_both_discriminators_and_the_student_see_the_fill_of_the_config(toy_config, disc_store, monkeypatch):
    fills = []
    warp = augment.warp
    monkeypatch.setattr(augment, "warp", lambda *a, fill, **k: fills.append(fill) or warp(*a, fill=fill, **k))
    strong = {"image_strength": 1.0, "pair_strength": 1.0, "fill": "border"}
    config = toy_config(gan={"augment": strong}, student_train={"geometry": {"fill": "border"}})
    GanTrainer(config, disc_store(), CPU).step()
    assert len(fills) == 6  # real, generated, and generated again for G; images and pairs
    StudentTrainer(config.student_train, disc_store(), CPU, labelled=2, num_classes=2, seed=0).step()
    assert fills == ["border"] * 7


def test_latents_mix_styles_as_often_as_asked(trainer):
    never, always = trainer(gan={"style_mixing": 0.0}), trainer(gan={"style_mixing": 1.0})
    w_plus = never._latents("g", 64)
    assert torch.equal(w_plus, w_plus[:, :1].expand_as(w_plus))
    changes = (always._latents("g", 64).diff(dim=1).abs().sum(dim=2) > 0).sum(dim=1)
    assert changes.tolist() == [1] * 64  # exactly one crossover in every sample


def test_latents_depend_on_step_and_purpose(trainer):
    player = trainer()
    first = player._latents("g", 4)
    assert torch.equal(first, player._latents("g", 4))
    assert not torch.equal(first, player._latents("d", 4))
    player.step_number += 1
    assert not torch.equal(first, player._latents("g", 4))


def test_noise_depends_on_step_and_purpose(trainer):
    player = trainer(generator={"noise": True})
    for name, parameter in player.generator.named_parameters():
        if name.endswith("noise_strength"):
            parameter.data.fill_(1.0)
    w_plus = player._latents("g", 2)
    first = player._synthesise(w_plus, "g", 2).image
    assert torch.equal(first, player._synthesise(w_plus, "g", 2).image)
    assert not torch.equal(first, player._synthesise(w_plus, "d", 2).image)
    player.step_number += 1
    assert not torch.equal(first, player._synthesise(w_plus, "g", 2).image)


@pytest.mark.parametrize("changes", [{"noise": True}, {"image_channels": 3, "num_classes": 4}])
def test_other_shapes_train_too(toy_config, disc_store, changes):
    config = toy_config(generator=changes, gan=ALL_ON)
    store = disc_store()
    if config.generator.image_channels == 3:
        store = type(store)(np.repeat(store.images, 3, axis=1), store.labels, store.case, store.cohort)
    player = GanTrainer(config, store, CPU)
    found = [player.step() for _ in range(2)]
    assert all(math.isfinite(value) for step in found for value in step.values())


def test_official_encoding_trains(trainer):
    """Raw logits against one-hot in {-1, 1}, hinge loss, feature matching."""
    official = {"encoding": "official", "norm": "spectral_instance"}
    settings = {"pair_loss": "hinge", "feature_matching": 2.0, "pair_r1": 10.0, "r1_every": 2}
    player = trainer(pair_discriminator=official, gan=settings)
    found = [player.step() for _ in range(3)]
    assert all(math.isfinite(value) for step in found for value in step.values())
    assert found[0]["matching"] > 0


# --- growing


@pytest.fixture
def smaller_and_grown(trainer) -> tuple[GanTrainer, GanTrainer, list[str]]:
    """A 32 px player after a few steps, and a 64 px player that starts from it."""
    small = trainer()
    for _ in range(3):
        small.step()
    widths = {4: 8, 8: 8, 16: 8, 32: 8, 64: 4}
    large = trainer(
        grown=True,
        generator={"size": 64, "channels": widths},
        image_discriminator={"channels": widths},
        gan={"fade_images": 40},
    )
    return small, large, large.init_from(small.state_dict())


def test_grown_generator_starts_with_the_smaller_image_upsampled(smaller_and_grown):
    small, large, _ = smaller_and_grown
    z = torch.randn(3, 8)
    with torch.no_grad():
        before, after, average = small.ema(z), large.generator(z), large.ema(z)
    for pair in (after, average):
        assert torch.equal(pair.image, upsample2(before.image))
        assert torch.equal(pair.label_logits, upsample2(before.label_logits))


def test_grown_image_discriminator_starts_with_the_smaller_answer(smaller_and_grown):
    small, large, _ = smaller_and_grown
    assert large.fade == 0.0
    image = torch.randn(4, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(large.image_d(image, fade=0.0), small.image_d(downsample2(image)))


def test_only_the_new_resolution_starts_anew(smaller_and_grown):
    _, large, fresh = smaller_and_grown
    assert {name for name in fresh if name.startswith("pair_d")} == set()
    assert all("blocks.64." in name or "image_d.from_image" in name for name in fresh)
    first = [p.clone() for p in large.generator.synthesis.blocks["64"].parameters()]
    for _ in range(3):
        large.step()
    assert large.fade == pytest.approx(3 * 4 / 40)
    changed = [
        not torch.equal(a, b)
        for a, b in zip(first, large.generator.synthesis.blocks["64"].parameters(), strict=True)
    ]
    assert sum(changed) > len(changed) / 2  # zero heads do not block learning


def test_start_from_a_model_of_the_same_size_keeps_its_image(trainer):
    first = trainer()
    first.step()
    second = trainer(image_discriminator={"channels": {4: 8, 8: 8, 16: 8, 32: 4}})
    fresh = second.init_from(first.state_dict())
    assert all(name.startswith("image_d") for name in fresh)
    z = torch.randn(2, 8)
    with torch.no_grad():
        assert torch.equal(first.ema(z).image, second.generator(z).image)


def test_start_from_a_model_of_other_labels_keeps_its_image(trainer, toy_config, disc_store):
    first = trainer()
    first.step()
    second = GanTrainer(toy_config(generator={"num_classes": 3}), disc_store(), CPU)
    second.init_from(first.state_dict())
    z = torch.randn(2, 8)
    with torch.no_grad():
        assert torch.equal(first.ema(z).image, second.generator(z).image)


# --- resume


@pytest.mark.parametrize("noise", [False, True])
def test_resume_is_exact(trainer, tmp_path, noise):
    """20 steps equal 10, a checkpoint, and 10 of a new trainer, bit for bit."""
    settings = {"gan": ALL_ON, "generator": {"noise": noise}}
    whole, first, second = (trainer(**settings) for _ in range(3))
    losses = [whole.step() for _ in range(20)]
    for _ in range(10):
        first.step()
    save_checkpoint(first.state_dict(), tmp_path / "gan.pt")
    second.load_state_dict(load_checkpoint(tmp_path / "gan.pt"))
    assert [second.step() for _ in range(10)] == losses[10:]
    _assert_same_state(whole.state_dict(), second.state_dict())
    assert second.strength != ALL_ON["augment"]["image_strength"]  # the adaptive state did move
    assert float(second.path_mean) != 0.0


def test_resume_of_a_grown_model_goes_on_fading(smaller_and_grown, trainer, tmp_path):
    _, large, _ = smaller_and_grown
    large.step()
    save_checkpoint(large.state_dict(), tmp_path / "gan.pt")
    state = load_checkpoint(tmp_path / "gan.pt")
    again = GanTrainer(large.config, large.store, CPU, grown=state["grown"])
    again.load_state_dict(state)
    assert again.fade == large.fade == 0.1
    assert again.step() == large.step()


def test_two_trainers_of_one_seed_are_equal_and_global_randomness_is_left_alone(trainer):
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    first = trainer()
    first.step()
    assert torch.equal(torch.rand(1), expected)
    second = trainer()
    second.step()
    _assert_same_state(first.state_dict(), second.state_dict())


# --- learning is tested by learning


def _statistics(image: Tensor) -> Tensor:
    """Coarse brightness of images (B, 1, 32, 32): 16 places and the share of bright pixels, (B, 17)."""
    places = nn.functional.avg_pool2d(image, 8).flatten(1)
    return torch.cat([places, 4.0 * (image > 0).float().mean(dim=(1, 2, 3))[:, None]], dim=1)


def _gap(generated: Tensor, real: Tensor) -> float:
    """Squared distance of mean and standard deviation of the coarse statistics (a diagonal Frechet distance)."""
    a, b = _statistics(generated), _statistics(real)
    return float((a.mean(0) - b.mean(0)).square().sum() + (a.std(0) - b.std(0)).square().sum())


def _overlap(image: Tensor, labels: Tensor) -> float:
    """DICE, pooled over the samples, of what is bright and what is labelled."""
    bright, found = image[:, 0] > 0, labels > 0
    return 2.0 * float((bright & found).sum()) / max(1.0, float(bright.sum() + found.sum()))


def _judge(player: GanTrainer) -> tuple[float, float, float]:
    """The gap to the real images, the overlap of discs and labels, and that with the labels of other discs."""
    z = torch.randn(128, player.config.generator.z_dim, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        pair = player.ema(z)
    real = player.store.image_batch(np.arange(len(player.store.images)))
    labels = pair.labels()
    return _gap(pair.image, real), _overlap(pair.image, labels), _overlap(pair.image, labels.roll(1, dims=0))


@pytest.fixture
def learner(toy_config: Callable[..., TrainConfig], disc_store: Make) -> GanTrainer:
    """Sixteen channels everywhere; strong R1, so that 200 steps go one way only."""
    widths = {4: 16, 8: 16, 16: 16, 32: 16}
    rates = {"generator_lr": 0.003, "image_lr": 0.003, "pair_lr": 0.001}
    regularisers = {"image_r1": 2.0, "r1_every": 4, "path_weight": 0.0, "ema_half_life_images": 300.0}
    config = toy_config(
        seed=0,
        generator={"channels": widths, "z_dim": 16, "w_dim": 16},
        image_discriminator={"channels": widths, "std_group": 4},
        pair_discriminator={"base_channels": 12},
        gan={"batch": 16, "pair_label_blur": True} | rates | regularisers,
    )
    return GanTrainer(config, disc_store(patients=8, slices=32, labelled=3, empty=0.0), CPU)


@pytest.mark.slow
def test_training_draws_discs_with_their_labels(learner):
    gap_before, overlap_before, by_chance_before = _judge(learner)
    for _ in range(200):
        learner.step()
    gap, overlap, by_chance = _judge(learner)
    assert gap < 0.1 * gap_before
    assert overlap > overlap_before
    assert overlap > 0.7
    # The labels follow their own discs, not just the place where discs usually are.
    assert overlap - by_chance > 0.1 > overlap_before - by_chance_before
