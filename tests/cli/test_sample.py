"""sgan-sample: pairs of pictures that agree with the model that drew them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sgan_core.bundle import load_bundle
from sgan_core.cli.sample import main


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_pairs_and_sheet(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    assert main(["--model", str(tiny_bundle), "-n", "35", "--output", str(output)]) == 0
    names = [f"sample_{number:05d}.png" for number in range(35)]  # more than one batch of 32
    for folder in ("images", "labels"):
        assert sorted(path.name for path in (output / folder).iterdir()) == names
    assert capsys.readouterr().out.strip() == str(output / "sheet.png")
    assert pixels(output / "sheet.png").shape[:2] == (5 * 98 - 2, 8 * 98 - 2)  # 96 px a pair, 2 between


def test_pictures_hold_what_the_generator_drew(tiny_bundle: Path, tmp_path: Path) -> None:
    assert main(["--model", str(tiny_bundle), "-n", "2", "--output", str(tmp_path), "--seed", "5"]) == 0
    generator = load_bundle(tiny_bundle).generator
    z = torch.randn(2, generator.config.z_dim, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        pair = generator(z)
    image, labels = pair.image[1, 0].numpy(), pair.labels()[1].numpy()
    shown = pixels(tmp_path / "images" / "sample_00001.png") / 127.5 - 1
    np.testing.assert_allclose(shown, image.clip(-1, 1), atol=1 / 255 + 1e-6)
    np.testing.assert_array_equal(pixels(tmp_path / "labels" / "sample_00001.png"), labels)


def test_seed_decides(tiny_bundle: Path, tmp_path: Path) -> None:
    first = {}
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        options = ["-n", "1", "--output", str(tmp_path / name), "--seed", seed]
        assert main(["--model", str(tiny_bundle), *options]) == 0
        first[name] = pixels(tmp_path / name / "images" / "sample_00000.png")
    np.testing.assert_array_equal(first["a"], first["b"])
    assert (first["a"] != first["c"]).any()


def test_truncation_to_zero_draws_the_mean(tiny_bundle: Path, tmp_path: Path) -> None:
    assert main(["--model", str(tiny_bundle), "-n", "2", "--output", str(tmp_path), "--truncation", "0"]) == 0
    pictures = [pixels(tmp_path / "images" / f"sample_0000{number}.png") for number in (0, 1)]
    np.testing.assert_array_equal(*pictures)


@pytest.mark.parametrize("option", [["-n", "0"], ["--truncation", "-1"], ["--truncation", "nan"]])
def test_wrong_option(
    option: list[str], tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", str(tiny_bundle), "--output", str(tmp_path / "out"), *option]) == 2
    assert option[0] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_student_alone_draws_nothing(
    student_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", str(student_bundle), "--output", str(tmp_path / "out")]) == 2
    assert "this model is a student alone" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
