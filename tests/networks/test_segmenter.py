"""The student's networks: MONAI's own layers, each stored once, and what they cost."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from monai.networks.nets import DynUNet
from safetensors.torch import load_file, save_file

from sgan_core.config import NETWORKS
from sgan_core.networks import segmenter
from sgan_core.networks.segmenter import make_segmenter

CHANNELS = (4, 6, 8, 10)


def make(network: str, seed: int = 0) -> torch.nn.Module:
    return make_segmenter(CHANNELS, image_channels=3, num_classes=5, network=network, seed=seed)


def test_every_network_of_the_config_can_be_made() -> None:
    assert set(segmenter._NETWORKS) == set(NETWORKS)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("size", [16, 40])
def test_logits_have_the_size_of_the_images(network: str, size: int) -> None:
    """The same size, any multiple of 2 to the number of steps down, and each image by itself."""
    net = make(network).eval()
    images = torch.randn(2, 3, size, size)
    logits = net(images)
    assert logits.shape == (2, 5, size, size)
    torch.testing.assert_close(net(images[:1]), logits[:1], atol=1e-5, rtol=1e-4)
    assert torch.equal(net.train()(images), logits)  # instance norm: the same in training and use


@pytest.mark.parametrize("network", NETWORKS)
def test_a_seed_gives_the_same_weights_and_leaves_the_callers_random_numbers(network: str) -> None:
    torch.manual_seed(5)
    first = make(network, seed=1).state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)
    second, other = make(network, seed=1).state_dict(), make(network, seed=2).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_nnunet_is_monais_dynunet_with_each_weight_once() -> None:
    net = make("nnunet", seed=7)
    torch.manual_seed(7)
    dynunet = DynUNet(2, 3, 5, (3,) * 4, (1, 2, 2, 2), (2,) * 3, filters=CHANNELS)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(net(images), dynunet(images))
    weights = sum(parameter.numel() for parameter in dynunet.parameters())
    assert sum(tensor.numel() for tensor in net.state_dict().values()) == weights
    assert sum(tensor.numel() for tensor in dynunet.state_dict().values()) > 1.9 * weights  # what is avoided


@pytest.mark.parametrize("network", NETWORKS)
def test_weights_come_back_from_a_file_and_all_of_them_learn(network: str, tmp_path: Path) -> None:
    net = make(network)
    before = copy.deepcopy(net)
    images = torch.randn(2, 3, 32, 32)
    net(images).square().mean().backward()
    # A bias before an instance norm is subtracted again: no gradient but noise.
    learns = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.abs().max() > 1e-7}
    assert {name for name, p in net.named_parameters() if p.ndim == 4} <= learns
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    other = make(network, seed=9)
    assert not torch.allclose(other(images), net(images), atol=1e-3)
    other.load_state_dict(load_file(tmp_path / "net.safetensors"))
    assert torch.equal(other(images), before(images))
