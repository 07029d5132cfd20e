"""Inversion in W+ (Eq. 7-8) on images that the generator itself can draw."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgan_core import inversion
from sgan_core.config import EncoderConfig, GeneratorConfig, InversionConfig
from sgan_core.inversion import (
    Lbfgs,
    bytes_of_slice,
    fitting_batch,
    invert,
    learning_rate,
    out_of_memory,
    planned_batch,
    saved_bytes,
)
from sgan_core.networks.encoder import Encoder
from sgan_core.networks.generator import Generator
from sgan_core.networks.perceptual import Perceptual, make_perceptual
from sgan_core.reconstruction import RECONSTRUCTIONS, PaperReconstruction, make_reconstruction

CONFIG = InversionConfig(steps=12, lr=0.05)


class Coarse(Perceptual):
    """Stands for a perceptual network: the image at two sizes. Counts how often it looks."""

    def __init__(self) -> None:
        super().__init__("coarse")
        self.looks = 0

    def features(self, x: Tensor) -> list[Tensor]:
        self.looks += 1
        return [x, F.avg_pool2d(x, 4)]


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(0)
    widths = {4: 8, 8: 8, 16: 8, 32: 8}
    config = GeneratorConfig(32, 1, 3, z_dim=8, w_dim=8, mapping_layers=2, channels=widths, noise=False)
    generator = Generator(config).double()
    generator.update_mean_w(samples=256)
    return generator.eval()


@pytest.fixture
def encoder(generator: Generator) -> Encoder:
    torch.manual_seed(1)
    config = EncoderConfig("resnet18", 8, 16, "light", "group", stem_stride=False, from_mean_w=True)
    encoder = Encoder(config, size=32, image_channels=1, num_ws=generator.num_ws, w_dim=8).double()
    encoder.mean_w.copy_(generator.mean_w)
    return encoder.eval()


@pytest.fixture
def target(generator: Generator) -> Tensor:
    """Three images that the generator can draw."""
    z = torch.randn(3, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        return generator(z).image


def _paper(config: InversionConfig = CONFIG) -> PaperReconstruction:
    return PaperReconstruction(Coarse(), config)


def _objective(image: Tensor, target: Tensor, config: InversionConfig = CONFIG) -> Tensor:
    """Eq. 7 for each slice, written out for the stand-in features."""
    distance = sum(
        (a - b).square().sum(1).mean((1, 2))
        for a, b in ((image, target), (F.avg_pool2d(image, 4), F.avg_pool2d(target, 4)))
    )
    return config.perceptual_weight * distance + config.mse_weight * (image - target).square().mean((1, 2, 3))


# --- what it reaches


def test_optimisation_lowers_the_loss_of_every_slice(generator, encoder, target):
    start = invert(target, generator, encoder, _paper(), replace(CONFIG, steps=0))
    found = invert(target, generator, encoder, _paper(), replace(CONFIG, steps=60))
    assert (found.loss < 0.3 * start.loss).all()
    assert found.steps == 60


def test_it_also_starts_from_the_mean_w(generator, target):
    start = invert(target, generator, None, _paper(), replace(CONFIG, steps=0))
    assert torch.equal(start.w_plus, generator.broadcast(generator.mean_w[None]).expand(3, -1, -1))
    found = invert(target, generator, None, _paper(), replace(CONFIG, steps=30))
    assert (found.loss < 0.5 * start.loss).all()


def test_result_belongs_together(generator, encoder, target):
    """Image, label and loss are those of the returned code."""
    found = invert(target, generator, encoder, _paper(), CONFIG)
    with torch.no_grad():
        pair = generator.synthesis(found.w_plus)
    torch.testing.assert_close(found.image, pair.image)
    torch.testing.assert_close(found.label_probs, pair.label_logits.softmax(dim=1))
    torch.testing.assert_close(found.loss, _objective(found.image, target))
    torch.testing.assert_close(found.label_probs.sum(dim=1), torch.ones(3, 32, 32, dtype=torch.float64))
    assert not found.w_plus.requires_grad


def test_steps_zero_is_the_encoders_answer(generator, encoder, target):
    found = invert(target, generator, encoder, _paper(), replace(CONFIG, steps=0))
    with torch.no_grad():
        torch.testing.assert_close(found.w_plus, encoder(target))
    assert found.steps == 0


def test_the_best_iterate_of_each_slice_is_kept(generator, encoder, target):
    """A rate that is far too large: later steps are worse, each slice at its own time."""
    seen: list[Tensor] = []
    wild = replace(CONFIG, lr=3.0, steps=15)

    def watch(_step: int, terms: dict[str, Tensor]) -> bool:
        seen.append(sum(terms.values()))
        return True

    found = invert(target, generator, encoder, _paper(), wild, on_step=watch)
    losses = torch.stack(seen)
    assert (found.loss <= losses[0]).all()
    assert (found.loss <= losses.min(dim=0).values).all()
    torch.testing.assert_close(found.loss, _objective(found.image, target))
    assert (losses[-1] > found.loss).any()  # the last one was not the best


def test_a_batch_gives_each_slice_its_own_result(generator, encoder, target):
    together = invert(target, generator, encoder, _paper(), CONFIG)
    for index in range(3):
        alone = invert(target[index : index + 1], generator, encoder, _paper(), CONFIG)
        torch.testing.assert_close(together.w_plus[index], alone.w_plus[0], atol=1e-4, rtol=0.0)
        torch.testing.assert_close(together.label_probs[index], alone.label_probs[0], atol=1e-4, rtol=0.0)


def test_the_generator_is_left_as_it_was(generator, encoder, target):
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    invert(target, generator, encoder, _paper(), CONFIG)
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    assert all(p.grad is None for p in generator.parameters())


def test_a_generator_with_noise_gives_the_same_answer_twice(target):
    torch.manual_seed(0)
    widths = {4: 8, 8: 8, 16: 8, 32: 8}
    noisy = Generator(GeneratorConfig(32, 1, 3, 8, 8, 2, widths, noise=True)).double()
    first, second = (invert(target, noisy, None, _paper(), replace(CONFIG, steps=3)) for _ in range(2))
    assert torch.equal(first.w_plus, second.w_plus)
    assert torch.equal(first.label_probs, second.label_probs)


# --- progress and stop


def test_on_step_sees_every_step_and_the_terms_of_each_slice(generator, encoder, target):
    seen = []
    invert(target, generator, encoder, _paper(), CONFIG, on_step=lambda *news: seen.append(news) or True)
    assert [step for step, _ in seen] == list(range(CONFIG.steps))
    for _, terms in seen:
        assert set(terms) == {"perceptual", "mse"}
        assert all(term.shape == (3,) and not term.requires_grad for term in terms.values())


def test_on_step_false_stops_with_the_best_so_far(generator, encoder, target):
    found = invert(target, generator, encoder, _paper(), CONFIG, on_step=lambda step, _: step < 4)
    full = invert(target, generator, encoder, _paper(), replace(CONFIG, steps=0))
    assert found.steps == 4
    assert (found.loss <= full.loss).all()
    torch.testing.assert_close(found.loss, _objective(found.image, target))


def test_on_step_false_at_once_returns_the_start(generator, encoder, target):
    found = invert(target, generator, encoder, _paper(), CONFIG, on_step=lambda *_: False)
    start = invert(target, generator, encoder, _paper(), replace(CONFIG, steps=0))
    assert torch.equal(found.w_plus, start.w_plus)


# --- the objective


def test_features_of_the_target_are_computed_once(generator, encoder, target):
    paper = _paper()
    invert(target, generator, encoder, paper, CONFIG)
    assert paper.perceptual.looks == 1 + CONFIG.steps + 1


def test_paper_reconstruction_is_weighted_eq_7(target):
    config = replace(CONFIG, perceptual_weight=2.0, mse_weight=0.3)
    paper = _paper(config)
    paper.aim(target)
    image = target.flip(0)
    torch.testing.assert_close(sum(paper.terms(image).values()), _objective(image, target, config))
    assert all(float(term.abs().max()) == 0.0 for term in paper.terms(target).values())


class Blind:
    """A reconstruction that likes every image: only the encoder term is left."""

    def aim(self, target: Tensor) -> None:
        self.target = target

    def terms(self, image: Tensor) -> dict[str, Tensor]:
        return {"nothing": 0.0 * image.square().mean(dim=(1, 2, 3))}


class Reader(nn.Module):
    """An encoder that answers with a learned constant plus the mean of the image."""

    def __init__(self, num_ws: int, w_dim: int) -> None:
        super().__init__()
        self.answer = nn.Parameter(torch.zeros(num_ws, w_dim, dtype=torch.float64))
        self.with_gradient = 0

    def forward(self, x: Tensor) -> Tensor:
        found = self.answer[None] + x.mean(dim=(1, 2, 3))[:, None, None]
        self.with_gradient += found.requires_grad
        return found


def _codes_of_encoder_term(generator: Generator, target: Tensor, reader: Reader) -> Tensor:
    """Where the encoder term alone drives w_plus in five steps."""
    codes: list[Tensor] = []
    hook = generator.synthesis.register_forward_pre_hook(
        lambda _module, args: codes.append(args[0].detach().clone())
    )
    invert(target, generator, reader, Blind(), replace(CONFIG, steps=5, encoder_weight=1.0))
    hook.remove()
    return torch.stack(codes[:6])


def test_the_encoders_answer_is_a_constant_of_each_step(generator, target):
    """The gradient of |w - a|^2 with a held: the path of Adam on exactly that, worked out here."""
    reader = Reader(generator.num_ws, 8)
    with torch.no_grad():
        reader.answer.normal_(generator=torch.Generator().manual_seed(3))
    found = _codes_of_encoder_term(generator, target, reader)
    assert reader.answer.grad is None
    assert reader.with_gradient == 0

    w = found[0].clone()
    first, second = torch.zeros_like(w), torch.zeros_like(w)
    settings = replace(CONFIG, steps=5)
    for step in range(5):
        with torch.no_grad():
            answer = reader(generator.synthesis(w).image)
        gradient = 2.0 * (w - answer) / w[0].numel()
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient.square()
        rate = learning_rate(step, settings)
        w = w - rate * (first / (1 - 0.9 ** (step + 1))) / (
            (second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
        )
        torch.testing.assert_close(found[step + 1], w)


def test_without_the_stop_gradient_would_flow_through_the_encoder(generator, target, monkeypatch):
    held, flowing = (Reader(generator.num_ws, 8) for _ in range(2))
    before = _codes_of_encoder_term(generator, target, held)
    monkeypatch.setattr(inversion.torch, "no_grad", nullcontext)
    after = _codes_of_encoder_term(generator, target, flowing)
    assert flowing.with_gradient > 0
    assert not torch.allclose(before, after)


def test_encoder_weight_zero_does_not_ask_the_encoder_again(generator, target):
    asked = []
    reader = Reader(generator.num_ws, 8)
    reader.register_forward_hook(lambda *_: asked.append(1))
    invert(target, generator, reader, _paper(), replace(CONFIG, encoder_weight=0.0))
    assert len(asked) == 1


def test_another_objective_can_be_plugged_in(generator, target):
    class Brightness:
        """Only the mean brightness has to fit."""

        def aim(self, target: Tensor) -> None:
            self.mean = target.mean(dim=(1, 2, 3))

        def terms(self, image: Tensor) -> dict[str, Tensor]:
            return {"brightness": (image.mean(dim=(1, 2, 3)) - self.mean).square()}

    start = invert(target, generator, None, Brightness(), replace(CONFIG, steps=0))
    found = invert(target, generator, None, Brightness(), replace(CONFIG, steps=20))
    assert (found.loss < 0.1 * start.loss + 1e-6).all()


def test_it_works_with_the_default_perceptual_network(generator, target):
    perceptual = make_perceptual("efficientnet-lite0")
    config = replace(CONFIG, steps=3)
    plain = generator.float()
    start = invert(
        target[:1].float(), plain, None, PaperReconstruction(perceptual, config), replace(config, steps=0)
    )
    found = invert(target[:1].float(), plain, None, PaperReconstruction(perceptual, config), config)
    assert (found.loss < start.loss).all()


# --- L-BFGS

LBFGS = replace(CONFIG, optimizer="lbfgs", steps=25)


def _minimised(function, start: Tensor, steps: int, inverse=None) -> list[Tensor]:
    """Where L-BFGS looks: (steps + 1) codes."""
    optimizer = Lbfgs(inverse)
    codes = [start]
    for _ in range(steps):
        code = codes[-1].clone().requires_grad_(True)
        loss = function(code)
        (gradient,) = torch.autograd.grad(loss.sum(), code)
        codes.append(optimizer.next(code.detach(), loss.detach(), gradient))
    return codes


def test_a_step_that_failed_is_tried_again_shorter() -> None:
    """Where the gradient did not change, nothing is learned from the failure but that the step was too long."""
    optimizer = Lbfgs()
    start, gradient = torch.zeros(2, 2, 3), torch.ones(2, 2, 3)
    first = optimizer.next(start, torch.tensor([1.0, 1.0]), gradient)
    second = optimizer.next(first, torch.tensor([9.0, 0.5]), gradient)  # the first slice got worse
    torch.testing.assert_close(second[0], 0.3 * first[0])
    assert (second[1] - first[1]).norm() > 0.9 * first[1].norm()  # the other one goes on from where it is
    third = optimizer.next(second, torch.tensor([9.0, 0.4]), gradient)
    torch.testing.assert_close(third[0], 0.09 * first[0])


@pytest.fixture
def quadratics() -> tuple[Tensor, Tensor]:
    """Curvatures (4, 2, 6) from 1 to 1e3, and minima: four slices with 12 numbers."""
    rng = torch.Generator().manual_seed(4)
    return 10 ** (3 * torch.rand(4, 2, 6, generator=rng, dtype=torch.float64)), torch.randn(
        4, 2, 6, generator=rng, dtype=torch.float64
    )


def test_lbfgs_finds_the_minimum_of_quadratics(quadratics):
    curvature, minimum = quadratics
    codes = _minimised(lambda w: (curvature * (w - minimum).square()).sum((1, 2)), 0 * minimum, 60)
    torch.testing.assert_close(codes[-1], minimum, atol=1e-4, rtol=0.0)


def test_with_the_curvature_known_lbfgs_goes_straight_to_the_minimum(quadratics):
    curvature, minimum = quadratics[0][:1], quadratics[1][:1]
    codes = _minimised(
        lambda w: (curvature * (w - minimum).square()).sum((1, 2)), 0 * minimum, 2, lambda v: v / curvature
    )
    torch.testing.assert_close(codes[2], minimum)  # the first step has a fixed length and learns the scale


def test_lbfgs_survives_what_is_not_a_number(quadratics):
    """A move into a forbidden place is taken back and tried shorter."""
    minimum = quadratics[1]

    def function(w: Tensor) -> Tensor:
        distance = (w - minimum).square().sum((1, 2))
        return torch.where(distance > distance.detach().new_tensor(60.0), torch.nan, distance)

    codes = _minimised(function, 0 * minimum, 30)
    torch.testing.assert_close(codes[-1], minimum, atol=1e-6, rtol=0.0)


def test_lbfgs_reaches_a_lower_loss_than_adam(generator, encoder, target):
    adam = invert(target, generator, encoder, _paper(), replace(CONFIG, steps=25))
    lbfgs = invert(target, generator, encoder, _paper(), LBFGS)
    assert (lbfgs.loss < adam.loss).all()


def test_lbfgs_gives_each_slice_its_own_result(generator, encoder, target):
    together = invert(target, generator, encoder, _paper(), LBFGS)
    for index in range(3):
        alone = invert(target[index : index + 1], generator, encoder, _paper(), LBFGS)
        torch.testing.assert_close(together.w_plus[index], alone.w_plus[0], atol=1e-4, rtol=0.0)


def test_start_weight_holds_the_code_near_the_encoders_answer(generator, encoder, target):
    """The stronger the nearer; none is felt without an encoder."""
    with torch.no_grad():
        start = encoder(target)
    moved = [
        (invert(target, generator, encoder, _paper(), replace(LBFGS, start_weight=weight)).w_plus - start)
        .square()
        .mean()
        for weight in (0.0, 0.1, 10.0)
    ]
    assert moved[0] > moved[1] > 2.0 * moved[2]
    free, pulled = (
        invert(target, generator, None, _paper(), replace(LBFGS, start_weight=weight)).w_plus
        for weight in (0.0, 1.0)
    )
    torch.testing.assert_close(free, pulled, rtol=0.0, atol=0.0)


# --- slices that leave

STOPPING = replace(LBFGS, steps=60, tolerance=0.2, patience=5)


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_a_slice_that_left_has_the_result_it_has_alone(generator, encoder, target, optimizer):
    """Slices leave at different times; compaction mixes nothing up."""
    config = replace(STOPPING, optimizer=optimizer)
    counts: list[int] = []

    def watch(_step: int, terms: dict[str, Tensor]) -> bool:
        counts.append(len(terms["mse"]))
        return True

    together = invert(target, generator, encoder, _paper(), config, on_step=watch)
    assert counts[0] == 3
    assert counts[-1] < 3
    assert together.steps < 60
    alone = [invert(target[i : i + 1], generator, encoder, _paper(), config) for i in range(3)]
    assert together.steps == max(one.steps for one in alone)
    assert len({one.steps for one in alone}) > 1
    for index, one in enumerate(alone):
        torch.testing.assert_close(together.w_plus[index], one.w_plus[0], atol=1e-4, rtol=0.0)
        torch.testing.assert_close(together.loss[index], one.loss[0], atol=1e-5, rtol=0.0)


def test_a_slice_that_left_keeps_its_best(generator, encoder, target):
    found = invert(target, generator, encoder, _paper(), STOPPING)
    torch.testing.assert_close(found.loss, _objective(found.image, target))
    start = invert(target, generator, encoder, _paper(), replace(CONFIG, steps=0))
    assert (found.loss < start.loss).all()


def test_without_tolerance_nobody_leaves(generator, encoder, target):
    found = invert(target, generator, encoder, _paper(), replace(STOPPING, tolerance=0.0))
    assert found.steps == 60


# --- memory


class Small(PaperReconstruction):
    """A machine whose memory holds two slices."""

    said = "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory"

    def aim(self, target: Tensor) -> None:
        self.slices = len(target)
        super().aim(target)

    def terms(self, image: Tensor) -> dict[str, Tensor]:
        if self.slices > 2:
            raise RuntimeError(self.said)
        return super().terms(image)


def test_a_batch_that_does_not_fit_is_halved(generator, encoder, target):
    whole = invert(target, generator, encoder, _paper(), CONFIG)
    halved = invert(target, generator, encoder, Small(Coarse(), CONFIG), CONFIG)
    assert halved.steps == whole.steps
    for name in ("w_plus", "image", "label_probs", "loss"):
        torch.testing.assert_close(getattr(halved, name), getattr(whole, name), atol=1e-5, rtol=1e-5)


def test_one_slice_that_does_not_fit_is_an_error(generator, target, monkeypatch):
    def full(image: Tensor) -> dict[str, Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    paper = _paper()
    monkeypatch.setattr(paper, "terms", full)
    with pytest.raises(torch.OutOfMemoryError):
        invert(target, generator, None, paper, CONFIG)


def test_other_errors_are_not_taken_for_a_full_memory(generator, target, monkeypatch):
    calls = []

    def broken(image: Tensor) -> dict[str, Tensor]:
        calls.append(1)
        raise RuntimeError("shapes do not match")

    paper = _paper()
    monkeypatch.setattr(paper, "terms", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        invert(target, generator, None, paper, CONFIG)
    assert calls == [1]
    assert not out_of_memory(RuntimeError("shapes do not match"))
    assert out_of_memory(RuntimeError("not enough memory: you tried to allocate 5 bytes"))


def test_memory_of_a_slice_does_not_count_what_slices_share(generator, target):
    """Twice the slices keep twice as much more; the weights are far larger than one feature map here."""
    found = bytes_of_slice(target[:1], generator, _paper())
    # Double precision. At least the feature maps of the 32 px layers: 8 channels, two layers.
    assert 2 * 8 * 32 * 32 * 8 < found < 40 * 8 * 32 * 32 * 8
    # What slices share, the weights, is not a slice's own: four keep one's share three times over.
    kept = {count: _kept(target[:1].expand(count, -1, -1, -1), generator) for count in (1, 4)}
    assert kept[4] - kept[1] == pytest.approx(3 * found, rel=0.02)
    assert kept[1] > 1.02 * found
    assert planned_batch(100 * found, found) == 30
    assert planned_batch(0, found) == 1
    assert planned_batch(10**15, found) == 512


def _kept(slices: Tensor, generator: Generator) -> int:
    """Bytes that a step of these slices keeps for its backward pass."""
    reconstruction = _paper()
    reconstruction.aim(slices)
    code = (
        generator.broadcast(generator.mean_w[None]).expand(len(slices), -1, -1).clone().requires_grad_(True)
    )
    return saved_bytes(lambda: sum(reconstruction.terms(generator.synthesis(code).image).values()).sum())


def test_on_a_cpu_the_batch_is_the_configs(generator, target):
    assert fitting_batch(target, generator, _paper(), replace(CONFIG, batch=7)) == 7


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_planned_batch_fits(generator, target):
    device = torch.device("cuda")
    on_gpu, slices = generator.to(device), target.to(device)
    count = fitting_batch(slices, on_gpu, _paper(), CONFIG)
    assert 1 <= count <= 512
    invert(slices[:1].expand(count, -1, -1, -1), on_gpu, None, _paper(), replace(CONFIG, steps=1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", RECONSTRUCTIONS)
@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_a_gpu_finds_what_the_cpu_finds(generator, encoder, target, optimizer, name):
    """In float64: ten steps blow the rounding of float32 up to per cents of the loss."""
    config = replace(CONFIG, steps=10, optimizer=optimizer, start_weight=0.03)

    def found(device: torch.device) -> Tensor:
        nets = [net.to(device) for net in (generator, encoder)]
        reconstruction = make_reconstruction(name, Coarse(), config)
        return invert(target.to(device), *nets, reconstruction, config).loss.cpu()

    torch.testing.assert_close(found(torch.device("cuda")), found(torch.device("cpu")), rtol=0.01, atol=0.0)


# --- the rate


def test_rate_ramps_up_holds_and_ramps_down():
    config = InversionConfig(steps=100, lr=0.1, ramp_up=0.05, ramp_down=0.25)
    rates = [learning_rate(step, config) for step in range(101)]
    assert rates[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert rates[5:76] == pytest.approx([0.1] * 71)
    expected = [0.1 * (0.5 - 0.5 * math.cos(math.pi * (100 - step) / 25)) for step in range(75, 101)]
    assert rates[75:] == pytest.approx(expected, abs=1e-7)
    assert rates[100] == pytest.approx(0.0, abs=1e-7)


def test_rate_without_ramps_is_constant():
    config = InversionConfig(steps=10, lr=0.1, ramp_up=0.0, ramp_down=0.0)
    assert [learning_rate(step, config) for step in range(10)] == pytest.approx([0.1] * 10)
