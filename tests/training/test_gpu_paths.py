"""What a GPU does, checked without one: where tensors are, their types, and what bfloat16 costs in accuracy.

On the pretended device tensors have a shape, a type and a place but no values, so one that was left on the CPU
or has the wrong type fails as it would on a GPU. bfloat16 is computed for real, by the CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sgan_core.config import AugmentConfig, InversionConfig, StudentTrainConfig, TrainConfig
from sgan_core.curvature import Curvature, measure_curvature
from sgan_core.inversion import invert
from sgan_core.networks import stylegan2
from sgan_core.networks.discriminators import ImageDiscriminator
from sgan_core.networks.generator import Generator
from sgan_core.networks.perceptual import Perceptual, make_perceptual
from sgan_core.reconstruction import RECONSTRUCTIONS, make_reconstruction
from sgan_core.training import augment, losses, parallel
from sgan_core.training.encoder import EncoderTrainer, make_encoder
from sgan_core.training.gan import GanTrainer, one_hot
from sgan_core.training.loop import Trainer
from sgan_core.training.student import StudentTrainer

CPU = torch.device("cpu")
OURS: dict[str, Any] = {
    "gan": {
        "mismatch_weight": 0.25,
        "pair_label_blur": True,
        "pair_r1": 0.01,
        "augment": {"adaptive": True, "pair_strength": 0.5, "image_strength": 0.4},
    }
}
AUTHORS: dict[str, Any] = {
    "generator": {"noise": True},
    "pair_discriminator": {"norm": "spectral_instance", "encoding": "official"},
    "gan": {"pair_loss": "hinge", "feature_matching": 2.0, "pair_r1": 0.01},
}
Make = Callable[[torch.device], Trainer]


class _RealOnCpu(TorchDispatchMode):
    """Inside a FakeTensorMode: what concerns the CPU alone is computed, so that data have values."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        wanted = torch.device(kwargs.get("device") or "cpu")
        pretended = any(isinstance(x, FakeTensor) for x in tree_leaves((args, kwargs)))
        if func is torch.ops.aten.convolution.default and args[0].dtype != args[1].dtype:
            raise RuntimeError("convolution: input and weight differ in dtype")  # FakeTensorMode lets it pass
        if pretended or wanted.type == self.device.type:
            return func(*args, **kwargs)
        with no_dispatch():
            return func(*args, **kwargs)


@pytest.fixture(params=["meta", "cuda"])
def absent(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """A device that is not there. Nothing else of PyTorch can stand for all of a GPU without its driver:

    "meta" knows backward passes and optimisers but no autocast; "cuda" has the autocast rules of CUDA, and
    gradients are made up there.
    """
    device = torch.device(request.param)
    # Losses are read, and asked whether they are better: any answer will do, there are no values.
    monkeypatch.setattr(FakeTensor, "__float__", lambda self: 0.5, raising=False)
    monkeypatch.setattr(FakeTensor, "__bool__", lambda self: True, raising=False)
    if device.type == "cuda":
        monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
        monkeypatch.setattr(torch.autograd, "grad", _made_up_gradients)
        monkeypatch.setattr(Tensor, "backward", lambda loss: None)
    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()), _RealOnCpu(device):
        yield device


def _made_up_gradients(outputs: Any, inputs: Any, *_: Any, **__: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x) for x in (inputs if isinstance(inputs, (tuple, list)) else (inputs,)))


def judge(config: TrainConfig) -> Perceptual:
    """A perceptual term without downloads, of the right size."""
    channels = config.generator.image_channels
    net = ImageDiscriminator(config.image_discriminator, image_channels=channels)
    return make_perceptual("discriminator", image_discriminator=net)


@pytest.fixture
def stages(toy_config, disc_store) -> dict[str, Make]:
    """What makes the trainer of each stage, with all that a step can contain.

    At a tenth of the rates: at the full ones, changing the start weights by no more than bfloat16 rounds moves
    losses after twenty steps by up to 34 %, in float32 too.
    """
    encoder = {"batch": 6, "lr": 1e-4, "latent_weight": 0.5, "appearance_share": 0.5}
    student = StudentTrainConfig(channels=(4, 8), batch=8, lr=1e-4, negative_share=0.5)

    def gan(changes: dict[str, Any]) -> Make:
        rates = dict.fromkeys(("generator_lr", "image_lr", "pair_lr"), 2e-4)
        config = toy_config(**changes | {"gan": changes["gan"] | rates})
        return lambda device: GanTrainer(config, disc_store(), device)

    def encoder_stage(device: torch.device) -> EncoderTrainer:
        config = toy_config(encoder_train=encoder)
        torch.manual_seed(5)
        generator = Generator(config.generator)
        generator.update_mean_w(samples=256)
        return EncoderTrainer(config, disc_store(), device, generator, judge(config))

    def student_stage(device: torch.device) -> StudentTrainer:
        return StudentTrainer(student, disc_store(), device, labelled=2, num_classes=2, seed=3)

    return {
        "gan, ours": gan(OURS),
        "gan, the authors'": gan(AUTHORS),
        "encoder": encoder_stage,
        "student": student_stage,
    }


STAGES = ("gan, ours", "gan, the authors'", "encoder", "student")

# --- places and types


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_of_a_stage_stays_on_its_device(stages, absent, stage):
    """Two steps: the first with the lazy penalties, in float32, and one without."""
    trainer = stages[stage](absent)
    for _ in range(2):
        trainer.step()
    state = [x for x in tree_leaves(trainer.state_dict()) if isinstance(x, Tensor) and x.ndim]
    assert {(x.device.type, x.dtype) for x in state} == {(absent.type, torch.float32)}


@pytest.mark.parametrize("stage", STAGES)
def test_a_tensor_left_on_the_cpu_is_found(stages, absent, stage, monkeypatch):
    """The test above, tested."""
    for module in ("gan", "encoder", "student"):
        monkeypatch.setattr(
            f"sgan_core.training.{module}.one_hot", lambda *args, **kwargs: one_hot(*args, **kwargs).cpu()
        )
    trainer = stages[stage](absent)
    with pytest.raises(RuntimeError, match="same device"):
        trainer.step()


@pytest.mark.parametrize("absent", ["meta"], indirect=True)
def test_a_clash_of_types_is_found(stages, absent, monkeypatch):
    kernel = stylegan2.fir_kernel
    monkeypatch.setattr(stylegan2, "fir_kernel", lambda *args: kernel(*args).half())
    trainer = stages["gan, ours"](absent)
    with pytest.raises(RuntimeError, match="differ in dtype"):
        trainer.step()


@pytest.mark.parametrize("absent", ["cuda"], indirect=True)
def test_what_autocast_refuses_is_found(stages, absent, monkeypatch):
    """CUDA's rules are in force: this loss is one of those that they forbid."""
    monkeypatch.setattr(
        losses, "generator_loss", lambda x, kind: F.binary_cross_entropy(x.sigmoid(), torch.ones_like(x))
    )
    trainer = stages["gan, ours"](absent)
    with pytest.raises(RuntimeError, match="unsafe to autocast"):
        trainer.step()


@pytest.fixture
def networks(toy_config) -> Callable[..., tuple[Any, ...]]:
    def make(device: torch.device) -> tuple[Any, ...]:
        config = toy_config()
        generator = Generator(config.generator).eval()
        encoder = make_encoder(config, generator.mean_w).eval()
        return tuple(net.to(device) for net in (generator, encoder, judge(config)))

    return make


@pytest.mark.parametrize("absent", ["meta"], indirect=True)  # without autocast "cuda" has nothing to add
@pytest.mark.parametrize("name", RECONSTRUCTIONS)
@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_inversion_stays_on_its_device(networks, absent, optimizer, name):
    generator, encoder, perceptual = networks(absent)
    config = InversionConfig(steps=10, optimizer=optimizer, start_weight=0.03, tolerance=0.005, patience=2)
    curvature = Curvature(generator.num_ws, generator.config.w_dim).to(absent)
    target = torch.zeros(3, 1, 32, 32).to(absent)
    reconstruction = make_reconstruction(name, perceptual, config)
    found = invert(target, generator, encoder, reconstruction, config, curvature=curvature)
    assert found.steps == 10
    for part in (found.w_plus, found.image, found.label_probs, found.loss):
        assert (part.device.type, part.dtype) == (absent.type, torch.float32)


@pytest.mark.parametrize("absent", ["meta"], indirect=True)
def test_curvature_is_measured_on_the_generators_device(networks, absent):
    generator, _, perceptual = networks(absent)
    found = measure_curvature(generator, perceptual, mse_weight=0.1, samples=64, seed=0)
    assert {part.device.type for part in (found.directions, found.values)} == {absent.type}


# --- bfloat16


no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
gpu = pytest.param("cuda", marks=[pytest.mark.gpu, no_gpu])


@pytest.fixture
def bfloat16_on(monkeypatch) -> Callable[..., None]:
    """From now on these kinds of device compute in bfloat16, and no others."""
    monkeypatch.setattr(parallel, "has_bfloat16", lambda: False)  # whatever this CPU has
    return lambda *kinds: monkeypatch.setattr(parallel, "AMP_DEVICES", kinds)


@pytest.mark.parametrize("kind", ["cpu", gpu])
@pytest.mark.parametrize("stage", STAGES)
def test_losses_in_bfloat16_are_those_in_float32(stages, bfloat16_on, stage, kind):
    """Of the second step, the first without penalties, and at the end of twenty.

    Penalties that are due in few steps are compared at the same weights, not after other steps.
    """

    def steps() -> tuple[Any, list[Any], list[dict[str, float]]]:
        trainer, states, losses = stages[stage](torch.device(kind)), [], []
        for _ in range(20):
            states.append(copy.deepcopy(trainer.state_dict()))
            losses.append(trainer.step())
        return trainer, states, losses

    bfloat16_on()
    _, states, full = steps()
    bfloat16_on(kind)
    trainer, _, half = steps()
    assert half[1] != full[1]
    for name in full[0].keys() - {"certainty", "augment"}:  # an average of signs, a setting
        if name in full[1]:
            assert half[1][name] == pytest.approx(full[1][name], rel=0.05), name
        if all(name in step for step in full):
            ends = [np.mean([step[name] for step in part[-5:]]) for part in (full, half)]
            assert ends[1] == pytest.approx(ends[0], rel=0.05), name
            continue
        last = max(at for at, step in enumerate(full) if name in step)
        trainer.load_state_dict(states[last])
        assert trainer.step()[name] == pytest.approx(full[last][name], rel=0.05), name


def test_augmentation_moves_pixels_in_float32(bfloat16_on):
    """Coordinates in bfloat16 are off by up to a quarter of a pixel at 256 px."""
    image = torch.rand(2, 1, 256, 256, generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0
    drawn = augment.draw(2, 1.0, AugmentConfig(), torch.Generator().manual_seed(1))
    expected, _ = augment.warp(image, *drawn)
    bfloat16_on("cpu")
    with parallel.autocast(CPU, enabled=True):
        found, _ = augment.warp(image, *drawn)
    assert torch.equal(found, expected)


# --- a GPU that is there


@pytest.fixture
def exact(bfloat16_on) -> Iterator[None]:
    """float32 as a CPU computes it: no bfloat16, no TensorFloat-32 (matrix products have none by default)."""
    bfloat16_on()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.mark.parametrize("kind", [gpu])
@pytest.mark.parametrize("stage", STAGES)
def test_a_step_on_a_gpu_is_that_on_the_cpu(stages, exact, stage, kind):
    """The first step with the lazy penalties, and the next, which sees the weights that the first one left."""
    there, here = stages[stage](torch.device(kind)), stages[stage](CPU)
    for _ in range(2):
        assert there.step() == pytest.approx(here.step(), rel=2e-3)
