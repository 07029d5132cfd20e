"""sgan-benchmark: figures of the loader as a table and as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sgan_core.benchmark.throughput import first_cases, make_pictures
from sgan_core.cli.benchmark import main
from sgan_core.cohort import load_cohort
from sgan_core.training import data
from sgan_core.training.data import open_store

FAST = ("--size", "32", "--batch", "4", "--step-batch", "2", "--repeats", "1", "--processes", "1")


def _run(capsys: pytest.CaptureFixture[str], output: Path, *options: str) -> tuple[dict[str, Any], str]:
    assert main(["loader", "--output", str(output), "--device", "cpu", *FAST, *options]) == 0
    return json.loads(output.read_text(encoding="utf-8")), capsys.readouterr().out


def test_figures_of_generated_pictures(tmp_path, capsys, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    found, printed = _run(capsys, tmp_path / "deep" / "loader.json", "--images", "10")
    assert (found["size"], found["batch"], found["slices"], found["channels"]) == (32, 4, 10, 1)
    assert found["prepare"]["one"]["images_per_s"] > 0
    assert found["train_step"]["preset"] == "tiny"
    assert found["train_step"]["images_per_s"] == pytest.approx(2 / found["train_step"]["seconds"], rel=0.01)
    share = 2 * found["train_step"]["images_per_s"] / found["read"]["warm_images_per_s"]
    assert found["ratio"] == pytest.approx(share, rel=0.01)
    assert 0 < found["ratio"] < 1
    assert isinstance(found["busy"], bool)
    assert "| training step, tiny, 2 images |" in printed
    assert "processes |" not in printed
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_cohort_of_ones_own(disc_cohort, tmp_path, capsys):
    found, printed = _run(capsys, tmp_path / "loader.json", "--data", str(disc_cohort), "--images", "12")
    assert (found["cohort"], found["slices"]) == ("discs", 12)
    assert printed.startswith("**Loader, 32 px,")


def test_labelled_cases_come_first(disc_cohort):
    few = first_cases(load_cohort(disc_cohort), 3)
    assert [case.labelled for case in few.cases] == [True] * 3


def test_generated_pictures_are_a_cohort_to_train_on(tmp_path):
    cohort = make_pictures(tmp_path / "a", 9)
    store = open_store(cohort, tmp_path / "cache", size=64, channels=1)
    assert store.labelled(8).tolist() == list(range(8))
    assert set(store.labels[0].ravel().tolist()) == {0, 1}
    assert (store.labels[8] == data.UNLABELLED).all()
    again = open_store(make_pictures(tmp_path / "b", 9), tmp_path / "cache2", size=64, channels=1)
    assert (store.images == again.images).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--images", "1"), "--images 1"),
        (("--size", "48"), "size is 48"),
        (("--processes", "0"), "processes is 0"),
        (("--step-batch", "1"), "step_batch is 1"),
        (("--data", "nowhere"), "nowhere"),
    ],
)
def test_wrong_options_are_one_line(tmp_path, capsys, options, words):
    output = tmp_path / "loader.json"
    assert main(["loader", "--output", str(output), *FAST, "--images", "4", *options]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert words in lines[-1]
    assert lines[-1].startswith("sgan-benchmark: error: ")
    assert not output.exists()


@pytest.mark.parametrize("options", [("--help",), ("loader", "--help")])
def test_help_imports_nothing_heavy(options):
    check = (
        f"import sys; from sgan_core.cli.benchmark import main; code = main({list(options)}); "
        "heavy = {'torch', 'numpy', 'monai', 'PIL'} & set(sys.modules); print(heavy, file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "set()")
    assert "examples:" in done.stdout


# --- inversion

FEW = ("--slices", "4", "--steps", "3", "--reference-steps", "2", "--device", "cpu")


def test_inversion_beside_the_authors_procedure(tiny_bundle, disc_cohort, tmp_path, capsys):
    output = tmp_path / "deep" / "inversion.json"
    options = ("--model", str(tiny_bundle), "--data", str(disc_cohort), *FEW)
    assert main(["inversion", "--output", str(output), *options]) == 0
    found = json.loads(output.read_text(encoding="utf-8"))
    printed = capsys.readouterr().out
    assert (found["size"], found["slices"], found["model"]) == (32, 4, "tiny-ct-liver")
    reference, ours = found["reference"], found["ours"]
    assert (reference["steps"], ours["steps"]) == (2, 3)
    for part in (reference, ours):
        assert part["seconds_per_slice"] > 0
        assert part["loss"] > 0
        assert part["dice"] is None or 0 <= part["dice"] <= 1
    expected = reference["seconds_per_slice"] / ours["seconds_per_slice"]
    assert found["ratio"] == pytest.approx(expected, rel=0.01)
    assert (len(ours["seconds"]), len(reference["seconds"])) == (2, 2)  # in turns
    assert found["calculated"] is False
    assert isinstance(found["busy"], bool)
    assert "| seconds a slice |" in printed
    assert "Ratio of seconds a slice, measured:" in printed
    worse = ours["loss"] > reference["loss"]
    assert ("loss" in printed.split("measured:")[1] and "HIGHER" in printed) or not worse


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--slices", "1"), "slices is 1"),
        (("--steps", "0"), "steps is 0"),
        (("--size", "64"), "--preset"),
        (("--split", "test"), "no labelled patients"),
        (("--model", "nowhere"), "nowhere"),
    ],
)
def test_wrong_options_of_inversion_are_one_line(tiny_bundle, disc_cohort, tmp_path, capsys, options, words):
    given = ("--model", str(tiny_bundle), "--data", str(disc_cohort), *FEW, *options)
    assert main(["inversion", "--output", str(tmp_path / "x.json"), *given]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert words in lines[-1]
    assert lines[-1].startswith("sgan-benchmark: error: ")


@pytest.mark.parametrize("option", [[], ["--preset", "tiny"]])
def test_a_student_alone_has_no_inversion_to_measure(option, student_bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sgan_core.benchmark.inversion.phantom_slices", lambda *_, **__: pytest.fail("late"))
    options = [
        "--model",
        str(student_bundle),
        "--output",
        str(tmp_path / "found.json"),
        "--device",
        "cpu",
        *option,
    ]
    assert main(["inversion", *options]) == 2
    assert "this model is a student alone" in capsys.readouterr().err
