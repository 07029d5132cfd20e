"""The authors' procedure does what ours does, only slower; the measurement says so."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sgan_core.benchmark import authors_inversion
from sgan_core.benchmark.authors_inversion import AUTHORS, invert_as_authors, noise_regulariser, objective
from sgan_core.benchmark.inversion import SpeedPlan, complaints
from sgan_core.cli.benchmark import main
from sgan_core.config import EncoderConfig, GeneratorConfig, InversionConfig
from sgan_core.errors import InputError
from sgan_core.inversion import invert
from sgan_core.networks.encoder import Encoder
from sgan_core.networks.generator import Generator
from sgan_core.networks.perceptual import Perceptual, make_perceptual
from sgan_core.reconstruction import PaperReconstruction

WIDTHS = {4: 8, 8: 8, 16: 8, 32: 8}


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "noise"])
def generator(request) -> Generator:
    torch.manual_seed(0)
    config = GeneratorConfig(32, 1, 3, 8, 8, 2, WIDTHS, noise=request.param)
    generator = Generator(config)
    for name, weight in generator.named_parameters():
        if name.endswith("noise_strength"):
            torch.nn.init.constant_(weight, 0.3)
    return generator.double().eval()


@pytest.fixture(scope="module")
def encoder(generator: Generator) -> Encoder:
    torch.manual_seed(1)
    config = EncoderConfig("resnet18", 8, 8, "light", "group", stem_stride=False)
    return Encoder(config, size=32, image_channels=1, num_ws=generator.num_ws, w_dim=8).double().eval()


@pytest.fixture(scope="module")
def perceptual() -> Perceptual:
    return make_perceptual("efficientnet-lite0").double()


@pytest.fixture(scope="module")
def target() -> Tensor:
    rng = torch.Generator().manual_seed(2)
    return torch.rand(2, 1, 32, 32, generator=rng, dtype=torch.float64) * 2.0 - 1.0


def _noise(generator: Generator) -> list[Tensor]:
    if not generator.config.noise:
        return []
    return [generator.synthesis.get_buffer(f"noise_{n}") for n in range(7)]


def test_its_generator_gives_our_image_and_label(generator):
    rng = torch.Generator().manual_seed(3)
    w_plus = torch.randn(3, generator.num_ws, 8, generator=rng, dtype=torch.float64)
    with torch.no_grad():
        expected = generator.synthesis(w_plus)
        found = authors_inversion.synthesis(generator, w_plus, _noise(generator))
    torch.testing.assert_close(found.image, expected.image, atol=1e-4, rtol=0.0)
    torch.testing.assert_close(found.label_logits, expected.label_logits, atol=1e-4, rtol=0.0)


def test_its_first_loss_and_gradient_are_ours(generator, encoder, perceptual, target):
    one = target[:1]
    with torch.no_grad():
        start = encoder(one)
    w_plus = start.clone().requires_grad_(True)
    image = authors_inversion.synthesis(generator, w_plus, _noise(generator)).image
    loss = objective(one, image, w_plus, encoder, perceptual, AUTHORS)
    (gradient,) = torch.autograd.grad(loss, w_plus)

    paper = PaperReconstruction(perceptual, AUTHORS)
    paper.aim(one)
    code = start.clone().requires_grad_(True)
    ours_image = generator.synthesis(code).image
    answer = encoder(ours_image).detach()
    ours = sum(paper.terms(ours_image).values()).sum() + 1e-3 * (code - answer).square().mean()
    (expected,) = torch.autograd.grad(ours, code)
    torch.testing.assert_close(loss, ours, atol=1e-4, rtol=0.0)
    torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=0.0)


def test_without_noise_its_steps_are_those_of_our_adam(encoder, perceptual, target, generator):
    if generator.config.noise:
        pytest.skip("the authors optimise the noise too")
    config = InversionConfig(steps=4)
    theirs = invert_as_authors(target, generator, encoder, perceptual, config)
    codes: list[Tensor] = []
    hook = generator.synthesis.register_forward_pre_hook(lambda _m, args: codes.append(args[0].detach()))
    invert(target, generator, encoder, PaperReconstruction(perceptual, config), config)
    hook.remove()
    torch.testing.assert_close(theirs.w_plus, codes[4], atol=2e-3, rtol=0.0)  # the last iterate


def test_all_is_left_as_it_was(generator, encoder, perceptual, target):
    generator.requires_grad_(False)
    noise = [level.clone() for level in _noise(generator)]
    invert_as_authors(target[:1], generator, encoder, perceptual, InversionConfig(steps=2))
    assert not any(weight.requires_grad for weight in generator.parameters())
    assert all(weight.requires_grad for weight in encoder.parameters())
    assert all(w.grad is None for module in (generator, encoder) for w in module.parameters())
    assert all(torch.equal(a, b) for a, b in zip(noise, _noise(generator), strict=True))


def test_noise_regulariser_likes_noise():
    rng = torch.Generator().manual_seed(5)
    white = torch.randn(1, 1, 32, 32, generator=rng)
    smooth = torch.ones(1, 1, 32, 32)
    assert noise_regulariser([white]) < 0.05
    # Two products of one at 32, 16 and 8 px.
    assert noise_regulariser([smooth]) == pytest.approx(6.0)


def test_worse_figures_are_named():
    reference = {"loss": 0.3, "perceptual": 0.29, "mse": 0.01, "dice": 0.9}
    assert complaints({"reference": reference, "ours": reference}) == []
    worse = {"loss": 0.31, "perceptual": 0.28, "mse": 0.02, "dice": 0.8}
    said = complaints({"reference": reference, "ours": worse})
    assert [line.split()[0] for line in said] == ["loss", "MSE", "DICE"]


@pytest.mark.parametrize("change", [{"slices": 1}, {"repeats": 0}, {"ours": InversionConfig(steps=0)}])
def test_plans_that_measure_nothing_are_refused(change):
    with pytest.raises(InputError):
        replace(SpeedPlan(ours=InversionConfig()), **change)


def test_networks_without_weights_give_a_calculated_ratio(tmp_path, capsys):
    output = tmp_path / "calculated.json"
    options = ("--preset", "tiny", "--size", "32", "--slices", "2", "--steps", "7", "--device", "cpu")
    assert main(["inversion", "--output", str(output), *options]) == 0
    found = json.loads(output.read_text(encoding="utf-8"))
    assert found["calculated"] is True
    reference, ours = found["reference"], found["ours"]
    assert (reference["steps"], ours["steps"]) == (200, 7)
    assert ours["seconds_per_slice"] == pytest.approx(7 * ours["seconds_per_step"], rel=0.01)
    assert found["ratio"] == pytest.approx(
        reference["seconds_per_slice"] / ours["seconds_per_slice"], rel=0.01
    )
    assert ours["loss"] is None
    assert "CALCULATED" in capsys.readouterr().out
