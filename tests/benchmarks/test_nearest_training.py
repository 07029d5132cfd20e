"""Whether a generator draws its training images again: a copier is found out, who draws anew is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from sgan_core.bundle import load_bundle
from sgan_core.phantom import phantom_cohort


@pytest.fixture(scope="module")
def script(benchmark_script: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_script("nearest_training")


LIBRARY = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
PATIENTS = np.arange(200) // 10


def points(seed: int) -> torch.Tensor:
    return torch.randn(100, 16, generator=torch.Generator().manual_seed(seed))


def test_copies_of_training_images_are_found_out(script: ModuleType) -> None:
    """Also where they are noisy; images of the same patient do not hide it."""
    noise = 0.01 * points(1)
    copied = script.Nearest(LIBRARY[:100] + noise, LIBRARY, PATIENTS)
    found = script.compared(copied, script.Nearest(points(2), LIBRARY, PATIENTS))
    np.testing.assert_array_equal(copied.where, np.arange(100))
    assert found["closer"] == 1.0
    assert found["samples ratio, 1st of 100"] < 0.05
    assert found["held out ratio, 1st of 100"] > 0.5


def test_images_drawn_anew_are_as_far_away_as_held_out_ones(script: ModuleType) -> None:
    found = script.compared(*(script.Nearest(points(seed), LIBRARY, PATIENTS) for seed in (3, 4)))
    assert found["closer"] == pytest.approx(0.5, abs=0.1)
    assert min(found[f"{name} ratio, 1st of 100"] for name in ("samples", "held out")) > 0.6


def test_distances_and_ratios_are_those_of_their_names(script: ModuleType) -> None:
    library = torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 0.0]])
    one = script.Nearest(torch.tensor([[0.25, 0.0]]), library, np.array(["a", "a", "b"]))
    assert one.distance.tolist() == [0.25]
    assert one.ratio.tolist() == pytest.approx([0.25 / 4.75])  # the second image is of the same patient


def test_the_bundled_generator(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        script, "phantom_cohort", lambda: phantom_cohort(patients=3, labelled=1, validation=1)
    )
    asked = [
        "--model",
        "phantom-ct-liver",
        "--data",
        "phantom",
        "--samples",
        "12",
        "--output",
        str(tmp_path / "n"),
    ]
    assert script.main([*asked, "--picture", str(tmp_path / "n.png")]) == 0
    found = json.loads((tmp_path / "n.json").read_text(encoding="utf-8"))
    assert json.loads(capsys.readouterr().out) == found
    assert found["each"] == 12
    assert found["training"] > 60
    assert 0.0 < found["pixels"]["held out nearest"] < found["pixels"]["samples median"] < 1.0
    assert (tmp_path / "n.png").is_file()

    assert found["hash"] == load_bundle("phantom-ct-liver").hash

    monkeypatch.setattr(
        script, "phantom_cohort", lambda: phantom_cohort(patients=3, labelled=1, validation=0)
    )
    assert script.main(asked) == 2
    assert "and held-out ones are needed" in capsys.readouterr().err
