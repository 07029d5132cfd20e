"""The encoder: published size, shapes for every image size, the start at the mean w."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sgan_core.config import EncoderConfig
from sgan_core.networks.encoder import Encoder

TINY = EncoderConfig(
    trunk="resnet18",
    width=8,
    fpn_channels=16,
    head="light",
    norm="group",
    stem_stride=False,
    from_mean_w=True,
)
TINY_TOWER = EncoderConfig(trunk="resnet18", width=8, fpn_channels=16)


def build(config: EncoderConfig, *, size: int = 64, image_channels: int = 1, w_dim: int = 24) -> Encoder:
    torch.manual_seed(0)
    num_ws = 2 * (size.bit_length() - 1) - 2
    return Encoder(config, size=size, image_channels=image_channels, num_ws=num_ws, w_dim=w_dim)


def images(size: int = 64, channels: int = 1, count: int = 2) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def million_parameters(module: nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


def test_official_encoder_has_the_size_of_the_authors_code():
    with torch.device("meta"):
        encoder = Encoder(EncoderConfig(), size=256, image_channels=3, num_ws=14, w_dim=512)
    assert million_parameters(encoder.trunk) == pytest.approx(23.508032, abs=1e-9)  # ResNet-50 without fc
    assert million_parameters(encoder) == pytest.approx(210.9, abs=0.1)


def test_light_heads_cost_what_their_docstring_says():
    with torch.device("meta"):
        config = EncoderConfig(head="light")
        encoder = Encoder(config, size=256, image_channels=3, num_ws=14, w_dim=512)
    assert million_parameters(encoder.heads) == pytest.approx(65.8, abs=0.05)


@pytest.mark.parametrize("size", [32, 64, 128, 256, 512])
@pytest.mark.parametrize("config", [TINY, TINY_TOWER], ids=["light", "tower"])
def test_every_style_layer_gets_a_w(config, size):
    encoder = build(config, size=size).eval()
    with torch.no_grad():
        w_plus = encoder(images(size))
    assert w_plus.shape == (2, 2 * (size.bit_length() - 1) - 2, 24)
    assert torch.isfinite(w_plus).all()


@pytest.mark.parametrize("trunk", ["resnet18", "resnet50"])
@pytest.mark.parametrize("stem_stride", [True, False])
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("head", ["tower", "light"])
def test_every_combination_of_settings_works_with_colour(trunk, stem_stride, norm, head):
    config = EncoderConfig(
        trunk=trunk, width=8, fpn_channels=8, head=head, norm=norm, stem_stride=stem_stride
    )
    assert build(config, size=32, image_channels=3)(images(32, channels=3)).shape == (2, 8, 24)


def test_coarse_styles_read_p4_and_fine_ones_p2():
    encoder = build(TINY_TOWER, size=256).eval()
    sides: list[tuple[int, int]] = []

    def note(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        sides.append((inputs[0].shape[-1], output.shape[1]))

    for head in encoder.heads:
        head.register_forward_hook(note)
    with torch.no_grad():
        encoder(images(256))
    assert sides == [(16, 3), (32, 4), (64, 7)]  # (side of the map, styles)


def test_group_norm_replaces_every_batch_norm():
    kinds = {type(module) for module in build(TINY).modules()}
    assert nn.GroupNorm in kinds
    assert nn.BatchNorm2d not in kinds


def test_group_norm_keeps_the_samples_of_a_batch_apart():
    encoder = build(TINY).train()
    batch = images(count=3)
    torch.testing.assert_close(encoder(batch)[1:2], encoder(batch[1:2]), rtol=1e-4, atol=1e-5)


def test_start_is_near_the_mean_w():
    encoder = build(TINY)
    mean_w = torch.linspace(-2, 2, 24)
    encoder.mean_w.copy_(mean_w)
    offset = encoder(images(count=4)) - mean_w
    assert 0.02 < offset.std().item() < 0.3
    assert "mean_w" in encoder.state_dict()


def test_absolute_w_has_unit_scale_and_no_mean():
    encoder = build(TINY_TOWER, size=128).eval()
    assert 0.3 < encoder(images(128, count=4)).std().item() < 3.0
    assert "mean_w" not in encoder.state_dict()


def test_light_head_knows_where_things_are():
    encoder = build(TINY).eval()
    left, right = torch.full((1, 1, 64, 64), -1.0), torch.full((1, 1, 64, 64), -1.0)
    left[..., 24:40, 8:24] = 1.0
    right[..., 24:40, 40:56] = 1.0
    mirrored = encoder(left) - encoder(right)
    assert mirrored.abs().mean() > 0.1 * (encoder(left) - encoder.mean_w).abs().mean()


def test_every_parameter_learns():
    for config in (TINY, TINY_TOWER):
        encoder = build(config)
        encoder(images()).square().sum().backward()
        without = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
        # c5 of a 64 px image with a strided stem has 2 x 2 pixels: nothing is cut off
        assert without == []


def test_a_few_steps_learn_to_tell_positions():
    encoder = build(TINY, size=32, w_dim=8)
    optimiser = torch.optim.Adam(encoder.parameters(), lr=3e-3)
    rng = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(60):
        position = torch.randint(4, 20, (8, 2), generator=rng)
        batch = torch.full((8, 1, 32, 32), -1.0)
        for image, (row, column) in zip(batch, position.tolist(), strict=True):
            image[:, row : row + 8, column : column + 8] = 1.0
        target = (position.float() - 12) / 8  # (8, 2)
        loss = (encoder(batch)[:, :, :2] - target[:, None]).square().mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert sum(losses[-10:]) < 0.3 * sum(losses[:10])


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"takes images .*64, 64.* got \(2, 1, 32, 32\)"):
        build(TINY)(images(32))


@pytest.mark.parametrize(
    ("size", "num_ws", "message"), [(48, 10, "power of two"), (16, 6, "size"), (32, 7, "num_ws")]
)
def test_impossible_sizes_are_refused(size, num_ws, message):
    with pytest.raises(ValueError, match=message):
        Encoder(TINY, size=size, image_channels=1, num_ws=num_ws, w_dim=8)
