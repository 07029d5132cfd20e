"""sgan-evaluate from files to table; the exit codes that every command shares."""

from __future__ import annotations

import argparse
import csv
import io
import json
import logging
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from sgan_core import __version__
from sgan_core.cli import app
from sgan_core.cli.evaluate import main
from sgan_core.errors import Cancelled, InputError

AFFINE = np.diag([2.0, 2.0, 2.5, 1.0])  # 0.01 mL a voxel


def box(start: int, stop: int, value: int = 1) -> np.ndarray:
    labels = np.zeros((12, 10, 8), np.uint8)
    labels[start:stop, 2:7, 2:6] = value
    return labels


def save(path: Path, labels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(labels).save(path)
    else:
        nib.save(nib.Nifti1Image(labels, affine), path)
    return path


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    predictions, reference = tmp_path / "predictions", tmp_path / "reference"
    save(predictions / "p1_seg.nii.gz", box(2, 6))
    save(reference / "p1.nii.gz", box(2, 7))
    save(predictions / "sub" / "p2.nii", box(3, 8))
    save(reference / "sub" / "p2.nii.gz", box(3, 8))
    return predictions, reference


def call(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


def one_error_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("sgan-evaluate: error: ")
    return lines[0]


# --- scores ----------------------------------------------------------------------------------------


def test_folders_are_paired_scored_and_written(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*folders, "--output", tmp_path / "out" / "scores.json") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = [line.split() for line in captured.out.splitlines()]
    # Boxes of 4 and 5 x 5 x 4: 6 of 68 and 20 of 82 surface voxels lie 2 mm off, 52 mm / 150 = 0.35.
    assert ["p1", "1", "0.889", "0.800", "2.00", "0.35", "1.000", "20.00", "-0.20"] in lines
    assert ["sub/p2", "1", "1.000", "1.000", "0.00", "0.00", "1.000", "0.00", "0.00"] in lines
    payload = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert [row["patient"] for row in payload["rows"]] == ["p1", "sub/p2"]
    assert payload["rows"][0]["dice"] == pytest.approx(8 / 9)
    assert payload["mean"]["1"]["dice"] == pytest.approx((8 / 9 + 1) / 2)
    assert payload["nsd_tolerance_mm"] == 2.0


def test_files_of_a_patient_are_pooled(folders: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "scores.csv"
    assert call(*folders, "--patient", "(p)[0-9]", "--output", output) == 0
    (row,) = csv.DictReader(output.read_text().splitlines())
    assert (row["patient"], row["cases"]) == ("p", "2")
    assert float(row["dice"]) == pytest.approx(2 * 9 / (9 + 10))


def test_two_files_are_a_pair_whatever_their_names(folders: tuple[Path, Path]) -> None:
    assert call(folders[0] / "p1_seg.nii.gz", folders[1] / "sub" / "p2.nii.gz") == 0


def test_undefined_figures_are_counted_beside_the_mean(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in folders:
        save(folder / "empty.nii.gz", box(0, 0))
    assert call(*folders, "--output", tmp_path / "scores.json") == 0
    mean = next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("mean"))
    assert "0.944 (1 NaN)" in mean
    payload = json.loads((tmp_path / "scores.json").read_text())
    assert payload["rows"][0]["dice"] is None
    assert payload["nan"]["1"]["dice"] == 1


def test_several_labels_have_rows_of_their_own_and_a_mean_iou(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = box(2, 4) + box(5, 9, value=2)
    save(tmp_path / "a.nii.gz", both)
    assert call(tmp_path / "a.nii.gz", tmp_path / "a.nii.gz") == 0
    assert "mIoU without background 1.000" in capsys.readouterr().out


def test_png_slices_of_the_chaos_example_give_the_published_dice(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """DICE 0.978, RAVD 0.665 % (emrekavur/CHAOS-evaluation), from 0/63 grey masks against one-bit masks."""
    predictions, reference = tmp_path / "predictions", tmp_path / "reference"
    predictions.mkdir()
    reference.mkdir()
    chaos = shared / "data/CHAOS"
    for k, path in enumerate(sorted((chaos / "evaluation_example/CT_3_Segmentation").glob("*.png"))):
        shutil.copy(path, predictions / f"ct3_{k:03d}_seg.png")
    for k, path in enumerate(sorted((chaos / "Train_Sets/CT/3/Ground").glob("*.png"))):
        shutil.copy(path, reference / f"ct3_{k:03d}.png")
    assert call(predictions, reference, "--patient", "^ct3") == 0
    captured = capsys.readouterr()
    assert "taken for the same label" in captured.err
    row = next(line.split() for line in captured.out.splitlines() if line.split()[:1] == ["ct3"])
    assert row == ["ct3", "1", "0.978", "0.958", "–", "–", "–", "0.66", "–"]


def test_chaos_example_on_its_scan_gives_the_published_scores(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """DICE 0.978, RAVD 0.665 % and ASSD 0.734 mm (emrekavur/CHAOS-evaluation). Our ASSD is 0.713 mm: surfaces
    are voxels that touch the outside with a face."""
    chaos, file = shared / "data/CHAOS", tmp_path / "scores.json"
    patient = chaos / "Train_Sets/CT/3"
    folders = chaos / "evaluation_example/CT_3_Segmentation", patient / "Ground"
    assert call(*folders, "--dicom", patient / "DICOM_anon", "--output", file) == 0
    (row,) = json.loads(file.read_text(encoding="utf-8"))["rows"]
    assert row["dice"] == pytest.approx(0.978, abs=5e-4)
    assert row["ravd_percent"] == pytest.approx(0.665, abs=5e-4)
    assert row["assd_mm"] == pytest.approx(0.734, rel=0.05)
    assert call(patient / "Ground", tmp_path, "--dicom", patient / "DICOM_anon") == 2
    assert "0 masks for 78 slices" in capsys.readouterr().err


# --- labels and grids that differ by name only -----------------------------------------------------


def test_other_label_values_are_an_error_with_a_hint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "a" / "p.nii.gz", box(2, 6, value=2))
    save(tmp_path / "b" / "p.nii.gz", box(2, 6))
    assert call(tmp_path / "a", tmp_path / "b") == 2
    assert (
        "2 only in predictions, 1 only in references. If they mean the same, add --map 2=1"
        in one_error_line(capsys)
    )
    assert call(tmp_path / "a", tmp_path / "b", "--map", "2=1", "--output", tmp_path / "out.json") == 0
    payload = json.loads((tmp_path / "out.json").read_text())
    assert [(row["label"], row["dice"]) for row in payload["rows"]] == [(1, 1.0)]
    assert payload["map"] == {"2": 1}
    assert call(tmp_path / "a", tmp_path / "b", "--map", "2=2") == 0  # they are different


def test_one_wrong_label_of_several_is_an_error_over_all_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A case may lack a label; the whole set of predictions does not."""
    save(tmp_path / "a" / "p.nii.gz", box(2, 4))
    save(tmp_path / "a" / "q.nii.gz", box(2, 4) + box(5, 8, value=3))
    save(tmp_path / "b" / "p.nii.gz", box(2, 4) + box(5, 8, value=2))
    save(tmp_path / "b" / "q.nii.gz", box(5, 8, value=2))
    assert call(tmp_path / "a", tmp_path / "b") == 2
    assert "--map 3=2" in one_error_line(capsys)
    save(tmp_path / "a" / "q.nii.gz", box(5, 8, value=2))
    assert call(tmp_path / "a", tmp_path / "b") == 0


def test_map_exchanges_joins_and_drops_labels(tmp_path: Path) -> None:
    save(tmp_path / "a.nii.gz", box(2, 4, value=2) + box(5, 8) + box(9, 10, value=3) + box(10, 11, value=7))
    save(tmp_path / "b.nii.gz", box(2, 4) + box(5, 8, value=2) + box(9, 10, value=1))
    output = tmp_path / "scores.csv"
    maps = ("--map", "1=2,2=1", "--map", "3=1", "--map", " 7 = 0")
    assert call(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz", *maps, "--output", output) == 0
    rows = list(csv.DictReader(output.read_text().splitlines()))
    assert [(row["label"], float(row["dice"])) for row in rows] == [("1", 1.0), ("2", 1.0)]


def test_label_that_no_reference_holds_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "a.nii.gz", box(2, 4) + box(5, 8, value=2))
    save(tmp_path / "b.nii.gz", box(2, 4))
    assert call(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz") == 0
    assert "no reference holds the label 2 of the predictions" in capsys.readouterr().err
    assert call(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz", "--map", "2=0") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("empty", ["predictions", "reference"])
def test_one_side_without_foreground_is_fine(
    tmp_path: Path, empty: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for side in ("predictions", "reference"):
        save(tmp_path / side / "p.nii.gz", box(2, 2 if side == empty else 6))
    assert call(tmp_path / "predictions", tmp_path / "reference") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "0.000" in captured.out


@pytest.mark.parametrize("white", ["grey", "bits", "palette"])
def test_black_and_white_pictures_name_no_label(
    tmp_path: Path, white: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = box(2, 6)[:, :, 3]
    save(tmp_path / "a.png", mask * 2)
    picture = Image.fromarray(mask * 255)
    {"grey": picture, "bits": picture.convert("1"), "palette": picture.quantize(2)}[white].save(
        tmp_path / "b.png"
    )
    assert call(tmp_path / "a.png", tmp_path / "b.png") == 0
    captured = capsys.readouterr()
    assert "taken for the same label" in captured.err
    assert "1.000" in captured.out
    save(tmp_path / "b.png", mask)
    assert call(tmp_path / "a.png", tmp_path / "b.png") == 2


def test_prediction_in_another_order_of_axes_is_brought_into_the_references(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    affine = AFFINE + np.array([[0, 0, 0, 30.0], [0, 0, 0, -70], [0, 0, 0, 9], [0, 0, 0, 0]])
    save(tmp_path / "truth.nii.gz", box(2, 7), affine)
    stored = nib.load(save(tmp_path / "same.nii.gz", box(2, 7), affine))
    turn = nib.orientations.axcodes2ornt("LSP")
    nib.save(stored.as_reoriented(turn), tmp_path / "turned.nii.gz")
    assert call(tmp_path / "turned.nii.gz", tmp_path / "truth.nii.gz") == 0
    assert "1.000" in capsys.readouterr().out
    rounded = affine.copy()
    rounded[0, 1] = 2e-4
    save(tmp_path / "rounded.nii.gz", box(2, 7), rounded)
    assert call(tmp_path / "rounded.nii.gz", tmp_path / "truth.nii.gz") == 0


def test_pair_of_files_is_one_label_map(tmp_path: Path) -> None:
    for side in ("a", "b"):
        (tmp_path / side).mkdir()
        nib.save(nib.Nifti1Pair(box(2, 6), AFFINE), tmp_path / side / "p.hdr")
    assert call(tmp_path / "a", tmp_path / "b") == 0


# --- wrong input -----------------------------------------------------------------------------------


def test_unpaired_files_are_named_and_the_rest_is_scored(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    save(folders[0] / "lonely_seg.nii.gz", box(1, 3))
    save(folders[1] / "forgotten.nii.gz", box(1, 3))
    assert call(*folders) == 0
    captured = capsys.readouterr()
    assert "lonely_seg.nii.gz: no reference" in captured.err
    assert "forgotten.nii.gz: no prediction" in captured.err
    assert "p1" in captured.out


def test_no_pair_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "a" / "x.nii.gz", box(1, 3))
    save(tmp_path / "b" / "y.nii.gz", box(1, 3))
    assert call(tmp_path / "a", tmp_path / "b") == 2
    assert "No file in" in capsys.readouterr().err


def test_two_predictions_for_one_reference(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    save(folders[0] / "p1.nii.gz", box(2, 6))
    assert call(*folders) == 2
    assert "both belong to" in one_error_line(capsys)


SHIFTED = AFFINE + np.array([[0, 0, 0, 0.5], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
WRONG: dict[str, tuple[Callable[[Path], object], tuple[str, ...], str]] = {
    "missing": (lambda p: None, ("nowhere", "reference"), "nowhere: no such file or folder"),
    "file and folder": (
        lambda p: None,
        ("predictions/p1_seg.nii.gz", "reference"),
        "two files or two folders",
    ),
    "shape": (
        lambda p: save(p / "predictions/p1_seg.nii.gz", box(2, 6)[:-1]),
        ("predictions", "reference"),
        "differ in shape: 11 x 10 x 8 against 12 x 10 x 8",
    ),
    "position": (
        lambda p: save(p / "predictions/p1_seg.nii.gz", box(2, 6), SHIFTED),
        ("predictions", "reference"),
        "lie 0.5 mm apart",
    ),
    "damaged": (
        lambda p: (p / "predictions/p1_seg.nii.gz").write_text("no image"),
        ("predictions", "reference"),
        "p1_seg.nii.gz",
    ),
    "expression": (
        lambda p: None,
        ("predictions", "reference", "--patient", "("),
        "not a regular expression",
    ),
    "no match": (lambda p: None, ("predictions", "reference", "--patient", "zz"), "finds no patient in 'p1'"),
    "ending": (
        lambda p: None,
        ("predictions", "reference", "--output", "x.txt"),
        "must end in .json or .csv",
    ),
    "output": (
        lambda p: None,
        ("predictions", "reference", "--output", "reference/p1.nii.gz/x.csv"),
        "p1.nii.gz",
    ),
    **{
        f"map {text}": (lambda p: None, ("predictions", "reference", "--map", text), "--map")
        for text in ("2", "2=", "0=1", "2=256", "-1=1", "2=1;3=1", "a=b", "2=1,2=3")
    },
    "option": (lambda p: None, ("predictions", "reference", "--shape"), "--shape"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_exit_2(
    case: str,
    folders: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepare, arguments, expected = WRONG[case]
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


def test_all_empty_masks_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "empty.nii.gz", box(0, 0))
    assert call(path, path) == 2
    assert "every voxel is 0" in one_error_line(capsys)


def test_interrupted_write_is_reported_and_leaves_nothing(
    folders: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "scores.json")

    monkeypatch.setattr("sgan_core.files.os.replace", full)
    assert call(*folders, "--output", tmp_path / "out" / "scores.json") == 2
    assert "scores.json: No space left on device" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


# --- the frame of all commands ---------------------------------------------------------------------


def run(outcome: Callable[[argparse.Namespace], int | None], *arguments: str) -> int:
    return app.run(outcome, app.Parser("sgan-xyz"), list(arguments))


def raising(error: BaseException) -> Callable[[argparse.Namespace], int | None]:
    def main(options: argparse.Namespace) -> int | None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("scan.nii: broken.\nExport it again."), 2, "error: scan.nii: broken. Export it again."),
        (Cancelled("2 of 3 cases kept"), 3, "cancelled: 2 of 3 cases kept"),
        (KeyboardInterrupt(), 3, "cancelled: stopped; what was finished is kept"),
        (PermissionError(13, "Permission denied", "/out"), 2, "error: /out: Permission denied. Free some"),
        (
            ZeroDivisionError("division by zero"),
            70,
            "error: ZeroDivisionError: division by zero (an error of",
        ),
    ],
)
def test_errors_become_exit_codes_and_one_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(raising(error)) == code
    captured = capsys.readouterr()
    assert captured.err.startswith(f"sgan-xyz: {line}")
    assert captured.err.count("\n") == 1


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(ValueError("inner")), "--debug") == 70
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--debug", "list"], ["list", "--debug"], ["list"]])
def test_debug_works_before_and_after_a_subcommand(arguments: list[str]) -> None:
    parser = app.Parser("sgan-xyz")
    parser.add_subparsers(required=True).add_parser("list")
    seen: list[bool] = []
    assert app.run(lambda options: seen.append(options.debug), parser, arguments) == 0
    assert seen == ["--debug" in arguments]


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1)])
def test_the_commands_own_code_is_kept(returned: int | None, code: int) -> None:
    assert run(lambda _: returned) == code


def test_log_goes_to_stderr_and_handlers_do_not_pile_up(capsys: pytest.CaptureFixture[str]) -> None:
    handlers = list(logging.getLogger().handlers)

    def talk(_: argparse.Namespace) -> None:
        logging.getLogger("sgan_core.somewhere").info("No CUDA device: running on CPU")
        logging.getLogger("sgan_core.somewhere").warning("100 % odd")
        logging.getLogger("other").info("chatter")

    assert run(talk) == 0
    captured = capsys.readouterr()
    assert captured.err == "No CUDA device: running on CPU\nsgan-xyz: warning: 100 % odd\n"
    assert captured.out == ""
    assert logging.getLogger().handlers == handlers


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM ends a Windows process at once")
def test_sigterm_cancels(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert run(lambda _: signal.raise_signal(signal.SIGTERM)) == 3
    assert signal.getsignal(signal.SIGTERM) is before


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(AssertionError()), "--version") == 0
    assert capsys.readouterr().out == f"sgan-xyz {__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from sgan_core.cli.evaluate import main; code = main(['--help']);"
        "assert not {'torch', 'monai', 'numpy', 'nibabel'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout


def test_console_that_lacks_a_letter_costs_no_scores(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in folders:
        (file,) = folder.glob("p1*")
        file.rename(file.with_name(file.name.replace("p1", "患者")))
    buffer = io.BytesIO()
    console = io.TextIOWrapper(buffer, encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", console)
    assert main([*map(str, folders), "--output", str(tmp_path / "scores.json")]) == 0
    console.flush()
    assert b"\\u60a3" in buffer.getvalue()
    assert (tmp_path / "scores.json").exists()
