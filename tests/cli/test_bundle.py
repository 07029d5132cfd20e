"""sgan-bundle: what it prints and how it ends."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sgan_core.bundle import save_bundle
from sgan_core.cli.bundle import main
from sgan_core.cohort import Label
from sgan_core.config import EncoderConfig, ImageDiscriminatorConfig, preset
from sgan_core.networks.discriminators import ImageDiscriminator
from sgan_core.networks.encoder import Encoder
from sgan_core.networks.generator import Generator
from sgan_core.networks.perceptual import make_perceptual


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained model."""
    torch.manual_seed(0)
    channels = {4: 8, 8: 8, 16: 8, 32: 8}
    config = preset("tiny", modality="ct", num_classes=2, size=32)
    config = dataclasses.replace(
        config,
        generator=dataclasses.replace(config.generator, channels=channels, w_dim=8, z_dim=8),
        image_discriminator=ImageDiscriminatorConfig(channels=channels),
        encoder=EncoderConfig("resnet18", 8, 8, "light", "group", stem_stride=False),
        perceptual="discriminator",
        labels=(Label(1, "liver", (200, 90, 60), "10200004"),),
    )
    judge = ImageDiscriminator(config.image_discriminator, image_channels=1)
    return save_bundle(
        tmp_path_factory.mktemp("models") / "bundle",
        name="liver-model",
        config=config,
        generator=Generator(config.generator),
        encoder=Encoder(config.encoder, size=32, image_channels=1, num_ws=config.generator.num_ws, w_dim=8),
        perceptual=make_perceptual("discriminator", image_discriminator=judge),
        facts={"cohort": "phantom", "gan_images": 4321, "gan_figures": {"frechet": 12.345678}},
    )


def test_info_tells_what_the_model_is(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(bundle)]) == 0
    shown = capsys.readouterr().out
    for part in ("liver-model", "1 liver", "phantom", "Gan images", "4321", "Gan figures frechet", "12.35"):
        assert part in shown


def test_info_as_json(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(bundle), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["name"] == "liver-model"
    assert described["facts"]["gan_images"] == 4321
    assert len(described["hash"]) == 64


def test_whole_model_verifies(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(bundle)]) == 0
    assert "whole" in capsys.readouterr().out


def test_zip_of_a_model_verifies(bundle: Path, tmp_path: Path) -> None:
    assert main(["verify", shutil.make_archive(str(tmp_path / "model"), "zip", bundle)]) == 0


def test_damaged_model_fails_with_every_reason(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    (copy / "models" / "encoder.safetensors").unlink()
    (copy / "models" / "generator.safetensors").write_bytes(b"oops")
    assert main(["verify", str(copy)]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "encoder.safetensors: missing" in errors
    assert "generator.safetensors: damaged" in errors


@pytest.mark.parametrize("action", ["info", "verify"])
def test_unknown_model_is_wrong_input(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([action, "no-such-model"]) == 2
    assert "no-such-model: no such model" in capsys.readouterr().err


def test_help_needs_no_torch() -> None:
    check = (
        "from sgan_core.cli.bundle import main; main(['--help']); "
        "import sys; sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "sgan-bundle info phantom-ct-liver" in done.stdout
