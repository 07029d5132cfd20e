"""A folder of inputs: which files, which names, what stays when something goes wrong."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sgan_core import batch
from sgan_core.batch import BatchConfig, case_name, find_inputs, prepare_folder, run_batch
from sgan_core.cohort import Intensity, Label
from sgan_core.errors import Cancelled, InputError
from sgan_core.imaging.grid import Grid
from sgan_core.imaging.image import Volume
from sgan_core.imaging.slices import to_model
from sgan_core.imaging.writers import write_volume
from sgan_core.segment import Segmentation, Trust

GRID = Grid((8, 6, 3), np.diag([-2.0, -2.0, 5.0, 1.0]))


# --- inputs ----------------------------------------------------------------------------------------


def test_folder_means_its_images_in_order(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "a.PNG", "c.mha", ".hidden.nii", "notes.txt", "labels.json"):
        (tmp_path / name).touch()
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "d.nii.gz").touch()
    assert [path.name for path in find_inputs([tmp_path])] == ["a.PNG", "b.nii.gz", "c.mha"]


@pytest.mark.parametrize("name", ["a_seg.nii.gz", "a_seg.seg.nrrd", "a_seg.png"])
def test_results_of_an_earlier_run_are_no_inputs_of_a_folder(name: str, tmp_path: Path) -> None:
    for file in ("a.nii.gz", name):
        (tmp_path / file).touch()
    assert [path.name for path in find_inputs([tmp_path])] == ["a.nii.gz"]
    assert find_inputs([tmp_path / name]) == [tmp_path / name]


def test_named_files_keep_their_order(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("b.nii", "a.nii")]
    for path in paths:
        path.touch()
    assert find_inputs(paths) == paths


@pytest.mark.parametrize("name", ["missing.nii.gz", "empty"])
def test_nothing_to_segment(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=name):
        find_inputs([tmp_path / name])


@pytest.mark.parametrize(
    ("name", "case"),
    [("scan.nii.gz", "scan"), ("a.b.nii", "a.b"), ("X.NII.GZ", "X"), ("p.png", "p"), ("odd.xyz", "odd.xyz")],
)
def test_case_is_the_name_without_its_ending(name: str, case: str) -> None:
    assert case_name(Path("folder") / name) == case


# --- folders ---------------------------------------------------------------------------------------


def test_folder_is_made_once(tmp_path: Path) -> None:
    assert prepare_folder(tmp_path / "a" / "b") is True
    assert prepare_folder(tmp_path / "a" / "b") is False
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write there"):
        prepare_folder(tmp_path / "file" / "out")


# --- a run, with a stand-in for the model ----------------------------------------------------------


@pytest.fixture
def bundle() -> Any:
    labels = (Label(1, "liver", (200, 90, 60)), Label(2, "left kidney / cyst", (90, 90, 200)))
    return SimpleNamespace(
        name="model",
        hash="0" * 64,
        device=SimpleNamespace(type="cpu"),
        config=SimpleNamespace(seed=0, labels=labels),
    )


def stand_in(image: Volume, bundle: Any, config: Any, **_: Any) -> Segmentation:
    """Every voxel is a left kidney."""
    stack = to_model(image, size=32, intensity=Intensity(-160.0, 240.0, "HU"))
    probs = np.zeros((len(stack.images), 3, 32, 32), np.float16)
    probs[:, 2] = 1
    labels = np.full(image.array.shape, 2, np.uint8)
    errors = np.zeros(len(stack.images))
    trust = Trust("ok", 1.0, "made up")
    return Segmentation(labels, stack, stack.images, probs, errors, trust, "encoder", 0, 0.1, ())


@pytest.fixture
def scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setattr(batch, "segment_volume", stand_in)
    array = np.random.default_rng(0).normal(0, 300, GRID.shape).astype(np.float32)
    paths = [tmp_path / f"{name}.nii.gz" for name in "abc"]
    for path in paths:
        write_volume(path, array, GRID)
    return paths


def cases(output: Path) -> list[dict[str, Any]]:
    return json.loads((output / "run.json").read_text(encoding="utf-8"))["cases"]


def test_label_names_become_file_names(bundle: Any, scans: list[Path], tmp_path: Path) -> None:
    config = BatchConfig(probabilities=True, report=False)
    result = run_batch(scans[:1], bundle, tmp_path / "out", config, options={})
    assert result.failed == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "a_seg.nii.gz",
        "a_liver_prob.nii.gz",
        "a_left-kidney-cyst_prob.nii.gz",
        "run.json",
    }


def failing_at(name: str, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    read = batch.read_image

    def read_or_fail(path: Path) -> Any:
        if path.name.startswith(name):
            raise error
        return read(path)

    monkeypatch.setattr(batch, "read_image", read_or_fail)


@pytest.mark.parametrize("error", [Cancelled("stopped"), KeyboardInterrupt(), RuntimeError("ours")])
def test_finished_cases_are_recorded_when_the_run_breaks_off(
    error: BaseException, bundle: Any, scans: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_at("b", error, monkeypatch)
    with pytest.raises(type(error)):
        run_batch(scans, bundle, tmp_path / "out", BatchConfig(), options={})
    assert [case["case"] for case in cases(tmp_path / "out")] == ["a"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a_seg.nii.gz", "run.json", "report.html"}


def test_bad_input_is_recorded_and_told(
    bundle: Any, scans: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_at("b", InputError("b is bad"), monkeypatch)
    told: list[dict[str, Any]] = []
    result = run_batch(scans, bundle, tmp_path / "out", BatchConfig(), options={}, on_case=told.append)
    assert result.failed == 1
    assert [case["status"] for case in told] == ["done", "failed", "done"]
    assert told == cases(tmp_path / "out") == result.record["cases"]
    assert (told[1]["error"], told[1]["output"]) == ("b is bad", None)


def test_single_bad_input_leaves_no_folder(
    bundle: Any, scans: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_at("b", InputError("b is bad"), monkeypatch)
    with pytest.raises(InputError, match="b is bad"):
        run_batch(scans[1:2], bundle, tmp_path / "out", BatchConfig(), options={})
    assert not (tmp_path / "out").exists()
