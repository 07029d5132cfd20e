"""Beginning with the weights of a run or of a model: what is read, what is taken over, what starts anew."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sgan_core.bundle import IMAGE_D, STUDENT, Bundle, load_bundle, save_bundle, stored_weights
from sgan_core.cohort import Intensity
from sgan_core.config import TrainConfig
from sgan_core.errors import InputError
from sgan_core.files import sha256
from sgan_core.known_models import MANIFEST
from sgan_core.networks.discriminators import ImageDiscriminator, PairDiscriminator
from sgan_core.networks.segmenter import make_student
from sgan_core.training.gan import GanTrainer
from sgan_core.training.loop import load_checkpoint, save_checkpoint
from sgan_core.training.origin import adopt, adopt_student, read_origin, take_over
from sgan_core.training.run import _is_smaller

CPU = torch.device("cpu")


@pytest.fixture
def model(untrained: Bundle, tmp_path: Path) -> tuple[Path, dict[str, nn.Module]]:
    """A whole model with both discriminators, and its networks."""
    config = untrained.config
    channels, classes = config.generator.image_channels, config.generator.num_classes
    networks: dict[str, nn.Module] = {
        "generator": untrained.generator,
        "encoder": untrained.encoder,
        "perceptual": untrained.perceptual,
        "student": make_student(config),
        "image_d": ImageDiscriminator(config.image_discriminator, image_channels=channels),
        "pair_d": PairDiscriminator(config.pair_discriminator, image_channels=channels, num_classes=classes),
    }
    folder: Any = save_bundle(tmp_path / "model", name="model", config=config, facts={}, **networks)  # type: ignore[arg-type]
    return folder, networks


def close(found: Any, network: nn.Module) -> bool:
    """As a model stores it: in half precision."""
    own = network.state_dict()
    return found.keys() == own.keys() and all(
        torch.allclose(found[key].float(), own[key].float(), atol=1e-3, rtol=1e-3) for key in own
    )


def test_a_model_gives_all_its_networks(model: tuple[Path, dict[str, nn.Module]]) -> None:
    folder, networks = model
    origin = read_origin(folder)
    assert origin.gan is not None
    assert close(origin.gan["ema"], networks["generator"])
    assert close(origin.gan["image_d"], networks["image_d"])
    assert close(origin.gan["pair_d"], networks["pair_d"])
    assert origin.encoder is not None
    assert close(origin.encoder, networks["encoder"])
    assert origin.student is not None
    assert close(origin.student, networks["student"])
    assert all(t.dtype in (torch.float32, torch.int64) for t in origin.gan["ema"].values())


def test_segmenting_does_not_load_discriminators_but_a_damaged_one_is_found(
    model: tuple[Path, dict[str, nn.Module]],
) -> None:
    folder, _ = model
    (folder / IMAGE_D).write_bytes(b"damaged")
    assert load_bundle(folder).inverter is not None
    with pytest.raises(InputError, match="image_discriminator"):
        stored_weights(folder)


def test_a_model_without_discriminators_says_so(untrained: Bundle, tmp_path: Path, caplog: Any) -> None:
    parts = {name: getattr(untrained, name) for name in ("generator", "encoder", "perceptual")}
    folder = save_bundle(tmp_path / "old", name="old", config=untrained.config, facts={}, **parts)
    with caplog.at_level(logging.WARNING):
        origin = read_origin(folder)
    assert "without discriminators" in caplog.text
    assert origin.gan is not None
    assert set(origin.gan) == {"ema"}
    assert origin.student is None


def test_a_student_alone_has_no_gan(untrained: Bundle, tmp_path: Path) -> None:
    student = make_student(untrained.config)
    folder = save_bundle(tmp_path / "alone", name="a", config=untrained.config, facts={}, student=student)
    origin = read_origin(folder)
    assert (origin.gan, origin.encoder) == (None, None)
    assert origin.student is not None
    assert close(origin.student, student)


def test_a_run_gives_its_checkpoints(tmp_path: Path) -> None:
    weights = {"a": torch.ones(2)}
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match="trained nothing yet"):
        read_origin(tmp_path)
    save_checkpoint({"student": weights, "images": 3}, tmp_path / "checkpoints" / "student_best.pt")
    save_checkpoint({"ema": weights, "image_d": weights}, tmp_path / "checkpoints" / "gan.pt")
    origin = read_origin(tmp_path)
    assert origin.student is not None
    assert torch.equal(origin.student["a"], weights["a"])
    assert origin.gan is not None
    assert origin.gan.keys() == {"ema", "image_d"}
    assert origin.encoder is None


def test_neither_run_nor_model(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        read_origin(tmp_path)
    with pytest.raises(InputError, match="no such model"):
        read_origin(tmp_path / "nothing")


def test_a_run_adopts_a_whole_model_that_means_the_same(
    model: tuple[Path, dict[str, nn.Module]], tmp_path: Path
) -> None:
    folder, networks = model
    origin = read_origin(folder)
    assert origin.config is not None
    adopt(origin, origin.config, tmp_path)
    gan, encoder = (load_checkpoint(tmp_path / name) for name in ("gan_best.pt", "encoder_best.pt"))
    assert close(gan["generator"], networks["generator"])
    assert close(gan["pair_d"], networks["pair_d"])
    assert close(encoder["encoder"], networks["encoder"])
    before = (tmp_path / "gan_best.pt").read_bytes()
    adopt(replace(origin, facts={"gan_images": 5}), origin.config, tmp_path)  # what is there stays
    assert (tmp_path / "gan_best.pt").read_bytes() == before


def test_a_model_with_other_discriminators_and_hostile_facts_is_adopted_without_them(
    model: tuple[Path, dict[str, nn.Module]], tmp_path: Path, caplog: Any
) -> None:
    """They would end the training in an error when its model is written, hours later."""
    origin = read_origin(model[0])
    assert origin.config is not None
    facts = {"gan_images": "many", "encoder_images": 10**400, "gan_figures": [1], "validation_dice": "best"}
    other = replace(
        origin.config, pair_discriminator=replace(origin.config.pair_discriminator, base_channels=3)
    )
    adopt(replace(origin, facts=facts), replace(other, perceptual="efficientnet-lite0"), tmp_path / "a")
    gan, encoder = (load_checkpoint(tmp_path / "a" / name) for name in ("gan_best.pt", "encoder_best.pt"))
    assert (gan["images"], gan["figures"], "pair_d" in gan) == (0, {}, False)
    assert (encoder["images"], encoder["quality"], encoder["figures"]) == (0, -1.0, {})
    with caplog.at_level(logging.WARNING):  # its perceptual term needs D_r
        adopt(origin, other, tmp_path / "b")
    assert not list(tmp_path.glob("b/*.pt"))
    assert "has none until it is trained" in caplog.text


def test_weights_of_nan_are_refused_before_they_teach(model: tuple[Path, dict[str, nn.Module]]) -> None:
    folder, networks = model
    weights = {
        key: torch.full_like(t.float(), torch.nan) for key, t in networks["student"].state_dict().items()
    }
    save_file(weights, folder / STUDENT)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest["files"][STUDENT] = sha256(folder / STUDENT)
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(InputError, match="student.safetensors: weights are NaN or infinite"):
        read_origin(folder)


def test_a_run_without_a_student_adopts_that_of_a_model(
    model: tuple[Path, dict[str, nn.Module]], tmp_path: Path
) -> None:
    folder, networks = model
    origin = read_origin(folder)
    config = origin.config
    assert config is not None
    figures = {"student_dice": 0.75, "student_shifted_dice": 0.5, "validation_dice": 0.25}
    facts = figures | {"student_images": 48, "cohort": "another\ncohort"}
    adopt_student(replace(origin, facts=facts), config, tmp_path)
    taught = load_checkpoint(tmp_path / "student_best.pt")
    assert close(taught["student"], networks["student"])
    assert (taught["images"], taught["quality"], taught["of"]) == (48, -1.0, "model, another cohort")
    assert taught["figures"] == {"student_dice": 0.75, "student_shifted_dice": 0.5}
    before = (tmp_path / "student_best.pt").read_bytes()
    adopt_student(replace(origin, facts={"student_images": 5}), config, tmp_path)  # what is there stays
    assert (tmp_path / "student_best.pt").read_bytes() == before


MEANING = ("labels", "intensity", "squash", "body", "modality")


def with_another(what: str, config: TrainConfig) -> TrainConfig:
    """A config whose networks mean something else, or do not fit."""
    student = config.student_train
    changes: dict[str, dict[str, Any]] = {
        "labels": {"labels": tuple(replace(label, name="another organ") for label in config.labels)},
        "intensity": {"intensity": Intensity(low=-500.0, high=100.0, unit="HU")},
        "squash": {"squash": not config.squash},
        "body": {"body": not config.body},
        "modality": {"modality": "mr"},
        "generator": {"generator": replace(config.generator, w_dim=2 * config.generator.w_dim)},
        "channels": {"student_train": replace(student, channels=(*student.channels[:-1], 9))},
        "network": {"student_train": replace(student, network="nnunet")},
        "size": {"student_train": replace(student, size=2 * config.student_size)},
    }
    return replace(config, **changes[what])


@pytest.mark.parametrize("change", [*MEANING, "generator"])
def test_a_generator_that_means_something_else_is_not_adopted(
    model: tuple[Path, dict[str, nn.Module]], tmp_path: Path, caplog: Any, change: str
) -> None:
    """It would judge the masks of another organ."""
    origin = read_origin(model[0])
    assert origin.config is not None
    with caplog.at_level(logging.WARNING):
        adopt(origin, with_another(change, origin.config), tmp_path)
    assert not list(tmp_path.glob("*.pt"))
    assert "has none until it is trained" in caplog.text


@pytest.mark.parametrize("change", [*MEANING, "channels", "network", "size"])
def test_a_student_that_means_something_else_is_not_adopted(
    model: tuple[Path, dict[str, nn.Module]], tmp_path: Path, caplog: Any, change: str
) -> None:
    origin = read_origin(model[0])
    assert origin.config is not None
    with caplog.at_level(logging.WARNING):
        adopt_student(origin, with_another(change, origin.config), tmp_path)
    assert not list(tmp_path.glob("*.pt"))
    assert "its student has other" in caplog.text


def test_the_gan_goes_on_with_what_the_model_drew(
    toy_config: Callable[..., TrainConfig], disc_store: Callable[..., Any], tmp_path: Path
) -> None:
    """Generator and both discriminators answer as the first trainer's, but for half precision; the average too."""
    first = GanTrainer(toy_config(), disc_store(), CPU)
    for _ in range(3):
        first.step()
    config = first.config
    stored = {"generator": first.ema, "image_d": first.image_d, "pair_d": first.pair_d}
    state = {
        name: {key: t.half().float() for key, t in net.state_dict().items()} for name, net in stored.items()
    }
    second = GanTrainer(replace(config, seed=9), disc_store(), CPU)
    fresh = second.init_from(
        {"ema": state["generator"], "image_d": state["image_d"], "pair_d": state["pair_d"]}
    )
    assert fresh == []
    z, image = torch.randn(4, 8), torch.randn(4, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(second.ema(z).image, first.ema(z).image, atol=2e-3, rtol=1e-2)
        torch.testing.assert_close(second.image_d(image), first.image_d(image), atol=5e-3, rtol=2e-2)
    assert not _is_smaller({"ema": state["generator"]}, config)


def test_only_a_smaller_generator_is_faded_in(toy_config: Callable[..., TrainConfig]) -> None:
    channels = {4: 8, 8: 8, 16: 8, 32: 8, 64: 8}
    large = toy_config(
        generator={"size": 64, "channels": channels},
        image_discriminator={"channels": channels},
        gan={"fade_images": 10},
    )
    small = {"ema": {"synthesis.blocks.32.conv": torch.ones(1)}}
    same = {"ema": {"synthesis.blocks.64.conv": torch.ones(1)}}
    assert _is_smaller(small, large)
    assert not _is_smaller(same, large)
    assert not _is_smaller(small, replace(large, gan=replace(large.gan, fade_images=0)))


def test_weights_that_do_not_fit_start_anew_and_that_is_said(caplog: Any) -> None:
    first, second = nn.Linear(3, 2), nn.Linear(3, 4)
    before = second.weight.clone()
    with caplog.at_level(logging.WARNING):
        take_over(second, first.state_dict(), "the model")
    assert "the model: 2 of 2 weights start anew" in caplog.text
    assert torch.equal(second.weight, before)
    caplog.clear()
    third = nn.Linear(3, 2)
    with caplog.at_level(logging.WARNING):
        take_over(third, first.state_dict(), "the model")
    assert not caplog.text
    assert torch.equal(third.weight, first.weight)
