"""The mean of two students' weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sgan_core.bundle import Bundle, load_bundle, save_bundle
from sgan_core.networks.segmenter import make_segmenter, make_student


@pytest.fixture
def script(benchmark_script: Any) -> Any:
    return benchmark_script("mean_of_weights")


def alone(untrained: Bundle, folder: Path, seed: int, **facts: Any) -> str:
    config = untrained.config
    student = make_segmenter(
        config.student_train.channels,
        image_channels=config.generator.image_channels,
        num_classes=config.generator.num_classes,
        seed=seed,
    )
    save_bundle(folder, name=f"student {seed}", config=config, facts=facts, student=student)
    return str(folder)


def test_weights_lie_between_the_two_and_the_words_are_the_seconds(
    script: Any, untrained: Bundle, tmp_path: Path
) -> None:
    terms = {"licence": "CC BY-NC-SA 4.0", "restriction": "research only", "student_dice": 0.9}
    first = alone(untrained, tmp_path / "a", 1)
    second = alone(untrained, tmp_path / "b", 2, one_piece=["liver"], **terms)
    assert script.main([first, second, "--share", "0.25", "--output", str(tmp_path / "mean")]) == 0
    found, one, other = (load_bundle(path) for path in (tmp_path / "mean", first, second))
    for name, value in found.student.state_dict().items():
        expected = 0.75 * one.student.state_dict()[name] + 0.25 * other.student.state_dict()[name]
        assert torch.allclose(value, expected, atol=2e-3), name  # float16 in the file
    assert (found.name, found.facts["restriction"]) == ("student 2", "research only")
    assert found.facts["mean_of"] == [one.hash, other.hash]
    assert "student_dice" not in found.facts  # of other weights


def test_models_that_have_no_mean_are_refused(
    script: Any, untrained: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = alone(untrained, tmp_path / "a", 1)
    parts = {name: getattr(untrained, name) for name in ("generator", "encoder", "perceptual")}
    whole = tmp_path / "whole"
    save_bundle(
        whole,
        name="whole",
        config=untrained.config,
        facts={},
        student=make_student(untrained.config),
        **parts,
    )
    out = tmp_path / "mean"
    assert script.main([first, str(whole), "--output", str(out)]) == 2
    assert "not a student alone" in capsys.readouterr().err
    assert not out.exists()
