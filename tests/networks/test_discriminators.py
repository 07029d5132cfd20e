"""The judges' shapes, published size, fading and normalisation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sgan_core.config import ImageDiscriminatorConfig, PairDiscriminatorConfig, preset
from sgan_core.networks.discriminators import ImageDiscriminator, PairDiscriminator
from sgan_core.networks.stylegan2 import downsample2


def _image_discriminator(size: int, *, image_channels: int = 1, grown: bool = False) -> ImageDiscriminator:
    widths = {2**power: 4 for power in range(2, size.bit_length())}
    torch.manual_seed(0)
    return ImageDiscriminator(ImageDiscriminatorConfig(widths, 2), image_channels=image_channels, grown=grown)


def test_official_pair_discriminator_has_the_published_size():
    config = preset("official", modality="face", num_classes=8).pair_discriminator
    discriminator = PairDiscriminator(config, image_channels=3, num_classes=8)
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == 8_316_099


@pytest.mark.parametrize("size", [32, 64, 128, 256, 512])
@pytest.mark.parametrize("image_channels", [1, 3])
def test_image_discriminator_judges_every_size(size, image_channels):
    discriminator = _image_discriminator(size, image_channels=image_channels)
    assert discriminator(torch.randn(2, image_channels, size, size)).shape == (2, 1)
    sides = [
        feature.shape[-1] for feature in discriminator.features(torch.randn(1, image_channels, size, size))
    ]
    assert sides == [size // 2**power for power in range(1, len(sides) + 1)]
    assert sides[-1] == 4


def test_fade_zero_gives_the_answer_of_the_lower_resolution():
    small, grown = _image_discriminator(32), _image_discriminator(64, grown=True)
    state = small.state_dict()
    for part in ("weight", "bias"):
        state[f"from_half.{part}"] = state.pop(f"from_image.{part}")
    missing, unexpected = grown.load_state_dict(state, strict=False)
    assert not unexpected
    assert {name.split(".")[0] for name in missing} == {"from_image", "blocks"}
    image = torch.randn(4, 1, 64, 64)
    lower = small(downsample2(image))
    torch.testing.assert_close(grown(image, fade=0.0), lower)
    assert not torch.allclose(grown(image, fade=0.5), lower)


def test_fade_one_does_not_use_the_old_input_layer():
    grown = _image_discriminator(32, grown=True)
    image = torch.randn(2, 1, 32, 32)
    before = grown(image)
    with torch.no_grad():
        grown.from_half.weight.add_(1.0)
    assert torch.equal(before, grown(image))
    assert not torch.allclose(before, grown(image, fade=0.9))


def test_image_discriminator_sees_the_spread_of_its_group():
    discriminator = _image_discriminator(32)
    image = torch.randn(1, 1, 32, 32)
    alone = discriminator(image.expand(2, -1, -1, -1))[0]
    beside_another = discriminator(torch.cat([image, torch.randn(1, 1, 32, 32)]))[0]
    assert not torch.allclose(alone, beside_another)


@pytest.mark.parametrize("norm", ["spectral", "spectral_instance"])
@pytest.mark.parametrize("image_channels", [1, 3])
def test_pair_discriminator_judges_patches_at_every_scale(norm, image_channels):
    config = PairDiscriminatorConfig(scales=2, layers=3, base_channels=4, norm=norm)
    discriminator = PairDiscriminator(config, image_channels=image_channels, num_classes=3)
    outputs = discriminator(torch.randn(2, image_channels, 64, 64), torch.randn(2, 3, 64, 64))
    assert [len(layers) for layers in outputs] == [5, 5]
    assert all(layers[-1].shape[:2] == (2, 1) for layers in outputs)
    assert outputs[0][-1].shape[-1] > outputs[1][-1].shape[-1]


def test_pair_discriminator_needs_both_image_and_label():
    config = PairDiscriminatorConfig(scales=1, layers=2, base_channels=4, norm="spectral")
    discriminator = PairDiscriminator(config, image_channels=1, num_classes=2)
    image, label = torch.randn(1, 1, 32, 32), torch.randn(1, 2, 32, 32)
    logits = discriminator(image, label)[0][-1]
    assert not torch.allclose(logits, discriminator(image + 0.5, label)[0][-1])
    assert not torch.allclose(logits, discriminator(image, label + 0.5)[0][-1])


@pytest.mark.parametrize(("norm", "erased"), [("spectral_instance", True), ("spectral", False)])
def test_only_instance_norm_erases_the_strength_of_its_input(norm, erased):
    """Why the own presets do without it: it hides how much of the image a label covers."""
    config = PairDiscriminatorConfig(scales=1, layers=2, base_channels=8, norm=norm)
    inner = PairDiscriminator(config, image_channels=1, num_classes=2).eval().scales[0].layers[1]
    x = torch.randn(1, 8, 32, 32)
    assert torch.allclose(inner(x), inner(3.0 * x), atol=1e-2) == erased


def test_spectral_norm_bounds_every_layer_where_there_is_no_instance_norm():
    def bounded(norm: str) -> list[bool]:
        config = PairDiscriminatorConfig(scales=1, layers=3, base_channels=4, norm=norm)
        discriminator = PairDiscriminator(config, image_channels=1, num_classes=2)
        return [hasattr(m, "parametrizations") for m in discriminator.modules() if isinstance(m, nn.Conv2d)]

    assert bounded("spectral") == [True] * 5
    assert bounded("spectral_instance") == [False, True, True, True, False]
