"""The generator's shapes, published size, noise, truncation and style mixing."""

from __future__ import annotations

import pytest
import torch

from sgan_core.config import GeneratorConfig, preset
from sgan_core.networks.generator import Generator


def _config(
    size: int = 32, *, image_channels: int = 1, num_classes: int = 3, noise: bool = False
) -> GeneratorConfig:
    widths = {2**power: 4 for power in range(2, size.bit_length())}
    return GeneratorConfig(
        size=size,
        image_channels=image_channels,
        num_classes=num_classes,
        z_dim=6,
        w_dim=5,
        mapping_layers=2,
        channels=widths,
        noise=noise,
    )


def _generator(**settings) -> Generator:
    torch.manual_seed(0)
    generator = Generator(_config(**settings))
    if generator.config.noise:
        for name, parameter in generator.named_parameters():
            if name.endswith("noise_strength"):
                parameter.data.fill_(0.5)
    return generator.requires_grad_(False)


def test_official_preset_has_the_published_size():
    config = preset("official", modality="face", num_classes=8).generator
    with torch.device("meta"):
        generator = Generator(config)
    assert sum(parameter.numel() for parameter in generator.parameters()) == 31_568_218
    assert generator.num_ws == 14


@pytest.mark.parametrize("size", [32, 64, 128, 256, 512])
@pytest.mark.parametrize("image_channels", [1, 3])
def test_every_size_draws_an_image_with_its_label(size, image_channels):
    generator = _generator(size=size, image_channels=image_channels, noise=True)
    with torch.no_grad():
        pair = generator(torch.randn(2, 6))
    assert pair.image.shape == (2, image_channels, size, size)
    assert pair.label_logits.shape == (2, 3, size, size)
    assert pair.labels().shape == (2, size, size)
    assert generator.num_ws == 2 * (size.bit_length() - 1) - 2


def test_every_style_reaches_the_result():
    generator = _generator(size=64)
    w_plus = torch.randn(1, generator.num_ws, 5, requires_grad=True)
    pair = generator.synthesis(w_plus)
    for output in pair:
        (gradient,) = torch.autograd.grad(output.square().sum(), w_plus, retain_graph=True)
        assert (gradient.abs().sum(dim=2) > 0).all()


def test_styles_act_at_their_own_resolution():
    """A style of a late layer cannot change what a coarser layer drew."""
    generator = _generator(size=32)
    seen = []
    hook = generator.synthesis.blocks["8"].conv.register_forward_hook(lambda *call: seen.append(call[2]))
    first = torch.randn(1, generator.num_ws, 5)
    later = first.clone()
    later[:, 3:] += 1.0
    generator.synthesis(first)
    generator.synthesis(later)
    hook.remove()
    assert torch.equal(*seen)


def test_mapping_ignores_the_length_of_z():
    generator = _generator()
    z = torch.randn(4, 6)
    torch.testing.assert_close(generator.mapping(z), generator.mapping(10.0 * z))


def test_samples_of_a_batch_do_not_influence_each_other():
    generator = _generator().double()
    w_plus = torch.randn(3, generator.num_ws, 5, dtype=torch.float64)
    together = generator.synthesis(w_plus)
    alone = generator.synthesis(w_plus[1:2])
    torch.testing.assert_close(together.image[1:2], alone.image)
    torch.testing.assert_close(together.label_logits[1:2], alone.label_logits)


# --- noise


def test_constant_noise_repeats_and_random_noise_follows_its_seed():
    generator = _generator(noise=True)
    w_plus = torch.randn(2, generator.num_ws, 5)

    def draw(noise, seed=None):
        rng = None if seed is None else torch.Generator().manual_seed(seed)
        return generator.synthesis(w_plus, noise=noise, rng=rng).image

    assert torch.equal(draw("const"), draw("const"))
    assert torch.equal(draw("random", 1), draw("random", 1))
    assert not torch.allclose(draw("random", 1), draw("random", 2))
    assert not torch.allclose(draw("random", 1), draw("const"))
    assert not torch.allclose(draw("none"), draw("const"))


def test_random_noise_differs_between_the_samples_of_a_batch_and_constant_noise_does_not():
    generator = _generator(noise=True)
    w_plus = torch.randn(1, generator.num_ws, 5).expand(2, -1, -1)
    random = generator.synthesis(w_plus, noise="random", rng=torch.Generator().manual_seed(0)).image
    constant = generator.synthesis(w_plus, noise="const").image
    assert not torch.allclose(random[0], random[1])
    torch.testing.assert_close(constant[0], constant[1])


def test_a_list_of_noise_maps_is_used_as_given():
    generator = _generator(noise=True)
    w_plus = torch.randn(2, generator.num_ws, 5)
    sides = generator.synthesis.noise_resolutions()
    assert sides == [4, 8, 8, 16, 16, 32, 32]
    stored = [generator.synthesis.get_buffer(f"noise_{index}") for index in range(len(sides))]
    zeros = [torch.zeros(1, 1, side, side) for side in sides]
    found = generator.synthesis(w_plus, noise=stored).image
    assert torch.equal(found, generator.synthesis(w_plus, noise="const").image)
    found = generator.synthesis(w_plus, noise=zeros).image
    torch.testing.assert_close(found, generator.synthesis(w_plus, noise="none").image)


def test_a_generator_without_noise_ignores_the_request():
    generator = _generator(noise=False)
    w_plus = torch.randn(1, generator.num_ws, 5)
    assert torch.equal(
        generator.synthesis(w_plus, noise="random").image, generator.synthesis(w_plus, noise="none").image
    )
    assert not any("noise" in name for name in generator.state_dict())


# --- truncation and style mixing


def test_truncation_leads_from_the_sample_to_the_mean():
    generator = _generator()
    generator.update_mean_w(samples=512)
    w = generator.mapping(torch.randn(3, 6))
    torch.testing.assert_close(generator.truncate(w, 1.0), w)
    torch.testing.assert_close(generator.truncate(w, 0.0), generator.mean_w.expand(3, -1))
    torch.testing.assert_close(generator.truncate(w, 0.5), (w + generator.mean_w) / 2)
    at_mean = generator(torch.randn(2, 6), truncation=0.0).image
    torch.testing.assert_close(at_mean[0], at_mean[1])


def test_mean_w_is_the_mean_of_mapped_latents_and_repeats():
    generator = _generator()
    generator.update_mean_w(samples=4096, seed=1)
    first = generator.mean_w.clone()
    generator.update_mean_w(samples=4096, seed=1)
    assert torch.equal(first, generator.mean_w)
    other = generator.mapping(torch.randn(20_000, 6)).mean(dim=0)
    torch.testing.assert_close(first, other, atol=0.05, rtol=0.0)


def test_mixing_takes_the_coarse_styles_from_the_first_latent():
    generator = _generator()
    first, second = torch.randn(3, 5), torch.randn(3, 5)
    mixed = generator.mix(first, second, torch.tensor([0, 2, generator.num_ws]))
    assert torch.equal(mixed[0], generator.broadcast(second)[0])
    assert torch.equal(mixed[1, :2], generator.broadcast(first)[1, :2])
    assert torch.equal(mixed[1, 2:], generator.broadcast(second)[1, 2:])
    assert torch.equal(mixed[2], generator.broadcast(first)[2])
