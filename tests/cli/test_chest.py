"""From a made-up chest X-ray to its cardiothoracic ratio, by a student that learns here and the installed command."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sgan_core.bundle import load_bundle, save_bundle
from sgan_core.cli.segment import main
from sgan_core.cohort import Label
from sgan_core.config import preset
from sgan_core.networks.segmenter import make_student

SIZE, PICTURE = 32, (120, 160)  # of the model; rows and columns of the picture
LABELS = (
    Label(1, "left lung", (197, 165, 145), "44029006"),
    Label(2, "right lung", (197, 165, 145), "3341006"),
    Label(3, "heart", (206, 110, 84), "80891009"),
)
GREYS = np.array(
    [230, 20, 90, 160]
)  # of the background and each label: no anatomy is needed to tell them apart


def chest(
    shape: tuple[int, int], heart: tuple[float, float], *, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(pixels, labels): lungs from 15 % to 85 % of the width, the heart between the two given parts of it."""
    rows, columns = (np.indices(shape) + 0.5) / np.reshape(shape, (2, 1, 1))
    labels = np.zeros(shape, np.uint8)
    lungs = (rows > 0.15) & (rows < 0.85)
    labels[lungs & (columns > 0.15) & (columns < 0.45)] = 2
    labels[lungs & (columns > 0.55) & (columns < 0.85)] = 1
    labels[(rows > 0.5) & (rows < 0.75) & (columns > heart[0]) & (columns < heart[1])] = 3
    pixels = GREYS[labels] + rng.normal(0, 3, shape)
    return pixels.clip(0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def chest_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a student alone that has learned such chests, at 32 px."""
    config = preset("tiny", modality="xray", num_classes=4, size=SIZE, student_size=SIZE)
    config = dataclasses.replace(
        config,
        student_train=dataclasses.replace(config.student_train, channels=(8, 16)),
        labels=LABELS,
        squash=True,
    )
    student, rng = make_student(config), np.random.default_rng(0)
    optimiser = torch.optim.Adam(student.parameters(), lr=1e-2)
    for _ in range(150):
        hearts = zip(rng.uniform(0.25, 0.45, 8), rng.uniform(0.55, 0.75, 8), strict=True)
        pixels, labels = zip(*(chest((SIZE, SIZE), heart, rng=rng) for heart in hearts), strict=True)
        images = torch.from_numpy(np.stack(pixels)[:, None].astype(np.float32) / 127.5 - 1)
        loss = torch.nn.functional.cross_entropy(student(images), torch.from_numpy(np.stack(labels)).long())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    folder = tmp_path_factory.mktemp("models") / "bundle"
    return save_bundle(folder, name="chest", config=config, student=student, facts={"student_dice": 0.95})


def test_ratio_of_a_picture(chest_student: Path, tmp_path: Path) -> None:
    heart = 0.3, 0.65
    pixels, _ = chest(PICTURE, heart, rng=np.random.default_rng(1))
    Image.fromarray(pixels).save(tmp_path / "1.2.3.png")
    command = shutil.which("sgan-segment", path=Path(sys.executable).parent)  # beside the Python of the tests
    assert command, "sgan-segment is not installed"
    options = [tmp_path / "1.2.3.png", "--model", chest_student, "--output", tmp_path / "out"]
    done = subprocess.run([command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (case,) = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))["cases"]
    found = case["cardiothoracic_ratio"]
    assert case["case"] == "1.2.3"
    assert (found["reason"], found["trust"], case["warnings"]) == (None, "review", [])
    assert found["ratio"] == pytest.approx((heart[1] - heart[0]) / 0.7, abs=1.5 / (0.7 * SIZE))

    mask = np.asarray(Image.open(tmp_path / "out" / "1.2.3_seg.png"))
    widths = {}
    for name, labels in (("heart", [3]), ("thorax", [1, 2])):
        columns = np.flatnonzero(np.isin(mask, labels).any(axis=0))
        assert (found[name]["left"], found[name]["right"]) == (columns[0], columns[-1] + 1)
        widths[name] = columns[-1] + 1 - columns[0]
    assert found["ratio"] == round(widths["heart"] / widths["thorax"], 4)

    shown = f"{found['ratio']:.2f} (trust: review)"
    rows = [line for line in done.stdout.splitlines() if "1.2.3" in line]
    assert len(rows) == 3
    assert all(line.rstrip().endswith(shown) for line in rows)
    assert "cardiothoracic ratio" in done.stdout
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert f"<dd>{shown}</dd>" in report
    for name, width in (("heart", found["heart"]), ("thorax", found["thorax"])):
        (path,) = re.findall(rf'd="M([^"]*)"><title>width of the {name}<', report)
        ends = [float(point.split()[0]) for point in (path.split("L")[0], path.split("L")[-1])]
        expected = [width[side] * SIZE / PICTURE[1] for side in ("left", "right")]
        assert ends == pytest.approx(expected, abs=1e-3)


def test_a_picture_cut_at_the_chest_is_warned_of(
    chest_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels, _ = chest(PICTURE, (0.35, 0.6), rng=np.random.default_rng(1))
    Image.fromarray(pixels[:, 40:]).save(tmp_path / "cut.png")
    options = ["--model", str(chest_student), "--output", str(tmp_path / "out")]
    assert main([str(tmp_path / "cut.png"), *options]) == 0
    (case,) = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))["cases"]
    assert case["cardiothoracic_ratio"]["ratio"] is None
    (warning,) = case["warnings"]
    assert warning == (
        "no cardiothoracic ratio: the right lung reaches the left border of the picture, so the thorax is cut off"
    )
    said = capsys.readouterr()
    assert warning in " ".join(said.err.split())
    rows = [line for line in said.out.splitlines() if "cut" in line]
    assert len(rows) == 3
    assert all(line.rstrip().endswith("none") for line in rows)


def test_a_slice_of_ct_has_no_ratio(chest_student: Path, tmp_path: Path) -> None:
    """Lungs side by side and the heart between them are what an axial slice shows too."""
    whole = load_bundle(chest_student)
    config = dataclasses.replace(whole.config, modality="ct")
    save_bundle(tmp_path / "ct", name="ct", config=config, student=whole.student, facts={})
    pixels, _ = chest(PICTURE, (0.3, 0.65), rng=np.random.default_rng(1))
    Image.fromarray(pixels).save(tmp_path / "slice.png")
    options = ["--model", str(tmp_path / "ct"), "--output", str(tmp_path / "out")]
    assert main([str(tmp_path / "slice.png"), *options]) == 0
    (case,) = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))["cases"]
    assert case["cardiothoracic_ratio"] is None


def test_tables_of_other_models_have_no_such_column(
    student_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels, _ = chest(PICTURE, (0.35, 0.6), rng=np.random.default_rng(1))
    Image.fromarray(pixels).save(tmp_path / "x.png")
    options = ["--model", str(student_bundle), "--output", str(tmp_path / "out")]
    assert main([str(tmp_path / "x.png"), *options]) == 0
    said = capsys.readouterr().out
    assert "x_seg.png" in said
    assert "cardiothoracic" not in said
