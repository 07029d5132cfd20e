"""sgan-segment: what it writes, what it says, how it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from scipy.ndimage import label as components

from sgan_core import __version__, bundle
from sgan_core.cli.progress import Progress
from sgan_core.cli.segment import main
from sgan_core.errors import Cancelled, InputError

WriteScan = Callable[..., Path]
Leftovers = Callable[[Path], list[str]]
Output = pytest.CaptureFixture[str]


def files(folder: Path) -> set[str]:
    """What a listing shows: the notes of finished cases lie in a hidden folder."""
    return {path.name for path in folder.iterdir() if path.name != ".finished"}


def record(output: Path) -> dict[str, Any]:
    return json.loads((output / "run.json").read_text(encoding="utf-8"))


def assert_same_grid(written: Path, scan: Path) -> None:
    """By SimpleITK: size, origin, spacing, direction."""
    ours, input_ = (sitk.ReadImage(str(path)) for path in (written, scan))
    assert ours.GetSize() == input_.GetSize()
    np.testing.assert_allclose(ours.GetOrigin(), input_.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(ours.GetSpacing(), input_.GetSpacing(), atol=1e-5)
    np.testing.assert_allclose(ours.GetDirection(), input_.GetDirection(), atol=1e-5)


# --- files -----------------------------------------------------------------------------------------


def test_label_volume_lies_on_its_scan(tiny_bundle: Path, write_scan: WriteScan, tmp_path: Path) -> None:
    scan, output = write_scan(tmp_path / "scan.nii.gz"), tmp_path / "out"
    assert main([str(scan), "--model", str(tiny_bundle), "--output", str(output)]) == 0
    assert files(output) == {"scan_seg.nii.gz", "run.json", "report.html"}
    ours, input_ = nib.load(output / "scan_seg.nii.gz"), nib.load(scan)
    assert ours.shape == input_.shape
    np.testing.assert_allclose(ours.affine, input_.affine, atol=1e-5)
    assert ours.get_data_dtype() == np.uint8
    assert_same_grid(output / "scan_seg.nii.gz", scan)


def test_run_json_holds_what_machines_need(tiny_bundle: Path, write_scan: WriteScan, tmp_path: Path) -> None:
    scan, output = write_scan(tmp_path / "scan.nii.gz"), tmp_path / "out"
    assert main([str(scan), "--model", str(tiny_bundle), "--output", str(output), "--steps", "3"]) == 0
    run = record(output)
    assert {
        "schema",
        "tool_version",
        "bundle",
        "device",
        "seed",
        "options",
        "left_out",
        "cases",
    } == run.keys()
    assert run["tool_version"] == __version__
    assert run["bundle"]["name"] == "tiny-ct-liver"
    assert len(run["bundle"]["hash"]) == 64
    assert run["options"]["steps"] == 3
    (case,) = run["cases"]
    assert (case["status"], case["method"], case["steps"]) == ("done", "inversion", 3)
    assert not [text for text in case["warnings"] if "reaches the" not in text]
    assert (case["input"], case["output"]) == (str(scan), str(output / "scan_seg.nii.gz"))
    assert case["grid"]["shape"] == [23, 17, 5]
    spacing_mm = nib.affines.voxel_sizes(nib.load(scan).affine)
    np.testing.assert_allclose(case["grid"]["spacing_mm"], spacing_mm, atol=1e-5)
    voxels = int((np.asarray(nib.load(output / "scan_seg.nii.gz").dataobj) == 1).sum())
    voxel_ml = abs(np.linalg.det(nib.load(scan).affine[:3, :3])) / 1000
    (label,) = case["labels"]
    assert (label["name"], label["value"], label["voxels"]) == ("liver", 1, voxels)
    assert label["volume_ml"] == pytest.approx(voxels * voxel_ml)
    assert len(case["reconstruction_error"]["slices"]) == 5
    assert case["reconstruction_error"]["case"] > 0
    assert case["trust"].keys() == {"status", "score", "reason", "wrong", "foreign", "slices"}
    assert (case["first_slice"], case["reconstruction_output"]) == (1, None)
    centre = nib.affines.apply_affine(nib.load(scan).affine, [[11, 8, k] for k in range(5)])
    np.testing.assert_allclose(case["slice_centres_mm"], centre, atol=6e-4)
    assert case["seconds"] > 0


def test_nrrd_carries_segments(tiny_bundle: Path, write_scan: WriteScan, tmp_path: Path) -> None:
    scan, output = write_scan(tmp_path / "scan.nii.gz"), tmp_path / "out"
    options = ["--model", str(tiny_bundle), "--output", str(output), "--format", "nrrd", "--no-report"]
    assert main([str(scan), *options]) == 0
    assert files(output) == {"scan_seg.seg.nrrd", "run.json"}
    assert_same_grid(output / "scan_seg.seg.nrrd", scan)
    assert sitk.ReadImage(str(output / "scan_seg.seg.nrrd")).GetMetaData("Segment0_Name") == "liver"


def test_probabilities_lie_on_the_scan(tiny_bundle: Path, write_scan: WriteScan, tmp_path: Path) -> None:
    scan, output = write_scan(tmp_path / "scan.nii.gz"), tmp_path / "out"
    assert main([str(scan), "--model", str(tiny_bundle), "--output", str(output), "--probabilities"]) == 0
    assert_same_grid(output / "scan_liver_prob.nii.gz", scan)
    probability = np.asarray(nib.load(output / "scan_liver_prob.nii.gz").dataobj)
    assert probability.min() >= 0
    assert probability.max() <= 1
    labels = np.asarray(nib.load(output / "scan_seg.nii.gz").dataobj)
    clear = abs(probability - 0.5) > 1e-3
    np.testing.assert_array_equal((probability > 0.5)[clear], (labels == 1)[clear])


def test_picture_gets_a_mask_of_its_size(tiny_bundle: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (41, 29, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    output = tmp_path / "out"
    options = ["--model", str(tiny_bundle), "--output", str(output), "--probabilities"]
    assert main([str(tmp_path / "photo.png"), *options]) == 0
    assert files(output) == {"photo_seg.png", "photo_liver_prob.png", "run.json", "report.html"}
    mask = Image.open(output / "photo_seg.png")
    assert (mask.size, mask.mode) == ((29, 41), "P")
    assert set(np.unique(mask)) <= {0, 1}
    assert Image.open(output / "photo_liver_prob.png").size == (29, 41)
    (case,) = record(output)["cases"]
    assert case["grid"] == {"shape": [41, 29], "spacing_mm": None}
    assert case["labels"][0]["volume_ml"] is None


def test_real_ct_keeps_its_grid(tiny_bundle: Path, shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "CHAOS" / "Train_Sets" / "CT" / "3" / "DICOM_anon"
    if not folder.is_dir():
        pytest.skip("CHAOS CT 3 is not among the shared data")
    # Every fourth slice: SimpleITK scales the spacing itself.
    series = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    scan, output = tmp_path / "ct3.nii.gz", tmp_path / "out"
    sitk.WriteImage(sitk.Cast(series[::2, ::2, ::4], sitk.sitkInt16), str(scan))
    options = ["--model", str(tiny_bundle), "--output", str(output), "--encoder-only"]
    assert main([str(scan), *options]) == 0
    ours, input_ = nib.load(output / "ct3_seg.nii.gz"), nib.load(scan)
    assert ours.shape == input_.shape
    np.testing.assert_allclose(ours.affine, input_.affine, atol=1e-4)
    assert_same_grid(output / "ct3_seg.nii.gz", scan)
    assert not [
        text for text in record(output)["cases"][0]["warnings"] if "reaches the" not in text
    ]  # real HU


def test_zipped_model(tiny_bundle: Path, write_scan: WriteScan, tmp_path: Path) -> None:
    model = shutil.make_archive(str(tmp_path / "model"), "zip", tiny_bundle)
    scan = write_scan(tmp_path / "scan.nii.gz")
    assert main([str(scan), "--model", model, "--output", str(tmp_path / "out")]) == 0


# --- parts of the image and of the mask ------------------------------------------------------------


@pytest.mark.parametrize("written", [["--region", "-12,{}"], ["--region=-12,{}"], ["--region", "{},-12"]])
def test_region_of_a_scan(
    written: list[str], tiny_bundle: Path, write_scan: WriteScan, tmp_path: Path
) -> None:
    scan, output = write_scan(tmp_path / "scan.nii.gz"), tmp_path / "out"
    heights = nib.affines.apply_affine(nib.load(scan).affine, [[11, 8, k] for k in range(5)])[:, 2]
    region = [part.format(f"{heights[2] + 0.1:.1f}") for part in written]
    options = ["--model", str(tiny_bundle), "--output", str(output), *region]
    assert main([str(scan), *options]) == 0
    (case,) = record(output)["cases"]
    assert case["first_slice"] == 1
    np.testing.assert_allclose(np.array(case["slice_centres_mm"])[:, 2], heights[:3], atol=6e-4)
    assert len(case["reconstruction_error"]["slices"]) == 3
    labels = np.asarray(nib.load(output / "scan_seg.nii.gz").dataobj)
    assert labels.shape == (23, 17, 5)
    assert labels[..., :3].any()
    assert not labels[..., 3:].any()
    assert sorted(record(output)["options"]["region"]) == sorted([-12.0, round(heights[2] + 0.1, 1)])


@pytest.mark.parametrize("region", ["1", "a,b", "1,2,3", ""])
def test_region_that_is_none(region: str, tmp_path: Path, capsys: Output) -> None:
    assert main(["scan.nii.gz", "--model", "any", "--output", str(tmp_path), "--region", region]) == 2
    assert "is not FROM,TO in mm, e.g. -120,40" in capsys.readouterr().err


def test_region_beside_the_scan(
    tiny_bundle: Path, write_scan: WriteScan, tmp_path: Path, capsys: Output
) -> None:
    scan, output = write_scan(tmp_path / "scan.nii.gz"), tmp_path / "out"
    options = ["--model", str(tiny_bundle), "--output", str(output), "--region", "-900,-800"]
    assert main([str(scan), *options]) == 2
    assert "--region -900,-800: no slice lies there" in capsys.readouterr().err
    assert not output.exists()


def test_figures_are_those_of_the_mask_that_was_written(
    tiny_bundle: Path, write_scan: WriteScan, tmp_path: Path
) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz")
    voxels = {}
    for option in ("--no-report", "--largest-component"):
        output = tmp_path / option
        assert main([str(scan), "--model", str(tiny_bundle), "--output", str(output), option]) == 0
        labels = np.asarray(nib.load(output / "scan_seg.nii.gz").dataobj)
        (label,) = record(output)["cases"][0]["labels"]
        voxels[option] = label["voxels"], components(labels == 1, np.ones((3, 3, 3)))[1]
        assert label["voxels"] == (labels == 1).sum()
    assert voxels["--no-report"][1] > 1
    assert voxels["--largest-component"][1] == 1
    assert voxels["--largest-component"][0] < voxels["--no-report"][0]


def test_reconstruction_lies_on_the_scan(tiny_bundle: Path, write_scan: WriteScan, tmp_path: Path) -> None:
    scan, output = write_scan(tmp_path / "scan.nii.gz"), tmp_path / "out"
    options = ["--model", str(tiny_bundle), "--output", str(output), "--save-reconstruction"]
    assert main([str(scan), *options]) == 0
    assert_same_grid(output / "scan_recon.nii.gz", scan)
    assert nib.load(output / "scan_recon.nii.gz").get_data_dtype() == np.int16
    assert record(output)["cases"][0]["reconstruction_output"] == str(output / "scan_recon.nii.gz")


# --- quality ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", [["--encoder-only"], ["--quality", "fast"]])
def test_encoder_alone(option: list[str], tiny_bundle: Path, write_scan: WriteScan, tmp_path: Path) -> None:
    scan, output = write_scan(tmp_path / "scan.nii.gz"), tmp_path / "out"
    assert main([str(scan), "--model", str(tiny_bundle), "--output", str(output), *option]) == 0
    (case,) = record(output)["cases"]
    assert (case["method"], case["steps"]) == ("encoder", 0)


def test_careful_is_never_worse_and_counts_to_its_end(
    tiny_bundle: Path, write_scan: WriteScan, tmp_path: Path, capsys: Output
) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz")
    errors = {}
    for quality in ("standard", "careful"):
        output = tmp_path / quality
        options = ["--output", str(output), "--quality", quality, "--batch", "2", "--json-progress"]
        assert main([str(scan), "--model", str(tiny_bundle), *options]) == 0
        (case,) = record(output)["cases"]
        errors[quality] = (case["steps"], case["reconstruction_error"]["case"])
        steps = [event for event in events(capsys.readouterr().out) if event["event"] == "progress"]
        done = [event["done"] for event in steps]
        assert done == sorted(done)
        assert done[-1] == steps[-1]["total"]
    assert errors["standard"][0] == 4
    assert errors["careful"][0] == 10  # 2.5 times
    assert errors["careful"][1] <= errors["standard"][1] + 0.05


def test_same_input_twice_gives_the_same_labels(
    tiny_bundle: Path, write_scan: WriteScan, tmp_path: Path
) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz")
    maps = []
    for output in (tmp_path / "first", tmp_path / "second"):
        assert main([str(scan), "--model", str(tiny_bundle), "--output", str(output), "--no-report"]) == 0
        maps.append(np.asarray(nib.load(output / "scan_seg.nii.gz").dataobj))
    np.testing.assert_array_equal(*maps)
    assert len(np.unique(maps[0])) == 2  # or the test would compare nothing


# --- batches ---------------------------------------------------------------------------------------


@pytest.fixture
def folder_with_a_broken_scan(write_scan: WriteScan, tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    write_scan(folder / "a.nii.gz", seed=1)
    (folder / "b.nii.gz").write_text("not a scan")
    write_scan(folder / "c.nii.gz", seed=2, shape=(9, 8, 3))
    (folder / "readme.txt").write_text("not an image")
    return folder


def test_broken_scan_does_not_stop_the_others(
    tiny_bundle: Path, folder_with_a_broken_scan: Path, tmp_path: Path, capsys: Output
) -> None:
    output = tmp_path / "out"
    options = ["--model", str(tiny_bundle), "--output", str(output)]
    assert main([str(folder_with_a_broken_scan), *options]) == 1
    assert files(output) == {"a_seg.nii.gz", "c_seg.nii.gz", "run.json", "report.html"}
    cases = {case["case"]: case for case in record(output)["cases"]}
    assert [case["status"] for case in cases.values()] == ["done", "failed", "done"]
    assert "truncated, damaged or not a NIfTI file" in cases["b"]["error"]
    printed = capsys.readouterr()
    assert printed.err.count("b.nii.gz: truncated") == 1
    assert "Traceback" not in printed.err
    assert "failed" in printed.out


def events(stdout: str) -> list[dict[str, Any]]:
    """Every line of stdout is a JSON object."""
    return [json.loads(line) for line in stdout.splitlines()]


def test_json_progress_of_a_batch(
    tiny_bundle: Path, folder_with_a_broken_scan: Path, tmp_path: Path, capsys: Output
) -> None:
    options = ["--model", str(tiny_bundle), "--output", str(tmp_path / "out"), "--json-progress"]
    assert main([str(folder_with_a_broken_scan), *options]) == 1
    told = events(capsys.readouterr().out)
    assert told[0] == {"event": "hello", "pid": os.getpid(), "tool_version": __version__}
    assert told[1]["event"] == "start"
    assert told[1]["labels"] == [
        {
            "name": "liver",
            "value": 1,
            "rgb": [200, 90, 60],
            "code": "10200004",
            "terminology": "Segmentation category and type - 3D Slicer General Anatomy list"
            "~SCT^123037004^Anatomical Structure~SCT^10200004^liver~^^~Anatomic codes - DICOM master list~^^~^^",
        }
    ]
    assert told[-1] == {"event": "done", "output": str(tmp_path / "out"), "failed": 1}
    cases = [event for event in told if event["event"] == "case"]
    assert [(case["case"], case["status"]) for case in cases] == [
        ("a", "done"),
        ("b", "failed"),
        ("c", "done"),
    ]
    steps = [event for event in told if event["event"] == "progress"]
    assert {step["total"] for step in steps} == {steps[0]["total"]}
    assert all(step.keys() == {"event", "done", "total", "message", "eta_s"} for step in steps)
    done = [step["done"] for step in steps]
    assert done == sorted(done)
    assert done[-1] == steps[0]["total"]


def test_error_is_an_event_too(tiny_bundle: Path, tmp_path: Path, capsys: Output) -> None:
    options = ["--model", str(tiny_bundle), "--output", str(tmp_path / "out"), "--json-progress"]
    assert main([str(tmp_path / "missing.nii.gz"), *options]) == 2
    printed = capsys.readouterr()
    hello, error = events(printed.out)
    assert hello["event"] == "hello"
    assert error.keys() == {"event", "message", "details", "code"}
    assert (error["event"], error["code"], error["details"]) == ("error", 2, "")
    assert "missing.nii.gz: no such file" in error["message"]
    assert printed.err == f"sgan-segment: error: {error['message']}\n"


@pytest.mark.parametrize(
    ("raised", "code", "message", "details"),
    [
        (
            InputError("choose one:\n with --series", details="1 a\n2 b"),
            2,
            "choose one: with --series",
            "1 a\n2 b",
        ),
        (RuntimeError("shapes\ndiffer"), 70, "RuntimeError: shapes differ (an error of ours", ""),
        (OSError(28, "No space left", "/out"), 2, "/out: No space left. Free some space", ""),
        (Cancelled("stopped; nothing was written"), 3, "cancelled", ""),
        (KeyboardInterrupt(), 3, "cancelled", ""),
    ],
)
def test_programs_are_told_what_people_are_told(
    raised: BaseException,
    code: int,
    message: str,
    details: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Output,
) -> None:
    def fail(*_: Any) -> None:
        raise raised

    monkeypatch.setattr(bundle, "load_bundle", fail)
    (tmp_path / "scan.nii.gz").touch()
    options = ["--model", "any", "--output", str(tmp_path / "out"), "--json-progress"]
    assert main([str(tmp_path / "scan.nii.gz"), *options]) == code
    printed = capsys.readouterr()
    error = events(printed.out)[-1]
    assert (error["event"], error["code"], error["details"]) == ("error", code, details)
    assert error["message"].startswith(message)
    first, *rest = printed.err.splitlines()
    assert error["message"] in first
    assert "\n".join(rest) == details


def test_hello_comes_before_anything_heavy(tmp_path: Path) -> None:
    """The first line is there although torch cannot be imported at all."""
    script = (
        "import sys; sys.modules['torch'] = None; from sgan_core.cli.segment import main; sys.exit(main())"
    )
    options = [str(tmp_path), "--model", "any", "--output", str(tmp_path / "out"), "--json-progress"]
    done = subprocess.run(
        [sys.executable, "-c", script, *options], capture_output=True, text=True, check=False
    )
    hello, error = events(done.stdout)
    assert hello["event"] == "hello"
    assert (error["event"], error["code"], done.returncode) == ("error", 70, 70)


def test_two_inputs_of_one_name_are_refused(
    tiny_bundle: Path, write_scan: WriteScan, tmp_path: Path, capsys: Output
) -> None:
    scans = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        scans.append(str(write_scan(folder / "scan.nii.gz")))
    assert main([*scans, "--model", str(tiny_bundle), "--output", str(tmp_path / "out")]) == 2
    assert "two inputs are named 'scan'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- a student alone -------------------------------------------------------------------------------


def test_a_student_says_what_it_expects_of_its_mask(
    student_bundle: Path, tiny_bundle: Path, write_scan: WriteScan, tmp_path: Path, capsys: Output
) -> None:
    """In run.json and the event, by the probabilities that are written; none without a student."""
    scan, output = str(write_scan(tmp_path / "scan.nii.gz", shape=(32, 32, 5))), tmp_path / "out"
    options = ["--output", str(output), "--quality", "fast", "--probabilities", "--json-progress"]
    assert main([scan, "--model", str(student_bundle), *options]) == 0
    (event,) = [one for one in events(capsys.readouterr().out) if one["event"] == "case"]
    (case,) = json.loads((output / "run.json").read_text(encoding="utf-8"))["cases"]
    assert event["soft_dice_confidence"] == case["soft_dice_confidence"]
    probs = np.asarray(nib.load(case["probability_outputs"][0]).dataobj)
    mask = np.asarray(nib.load(output / "scan_seg.nii.gz").dataobj) > 0
    expected = 2 * probs[mask].sum() / (mask.sum() + probs.sum())
    assert expected > 0.1
    assert case["soft_dice_confidence"] == pytest.approx(expected, abs=0.03)  # the scan is no square of 32 px
    assert main([scan, "--model", str(tiny_bundle), *options]) == 0
    (event,) = [one for one in events(capsys.readouterr().out) if one["event"] == "case"]
    assert event["soft_dice_confidence"] is None


@pytest.mark.parametrize("quality", ["fast", "standard", "careful"])
def test_a_student_alone_segments_for_review(
    quality: str, student_bundle: Path, write_scan: WriteScan, tmp_path: Path, capsys: Output
) -> None:
    output = tmp_path / "out"
    options = ["--model", str(student_bundle), "--output", str(output), "--quality", quality, "--steps", "0"]
    assert main([str(write_scan(tmp_path / "scan.nii.gz")), *options]) == 0
    (case,) = json.loads((output / "run.json").read_text(encoding="utf-8"))["cases"]
    assert (case["method"], case["steps"], case["trust"]["status"]) == ("student", 0, "review")
    assert "student alone" in case["trust"]["reason"]
    for name in ("reconstruction", "reconstruction_error", "reconstruction_output"):
        assert case[name] is None
    report = (output / "report.html").read_text(encoding="utf-8")
    for word in ("Reconstruction", "Inversion", "Difference", "worst", "difference 0"):
        assert word not in report.split("</style>")[1]
    assert report.count("<figcaption>Segmentation") == 5
    assert "student alone" in report


@pytest.mark.parametrize(
    "option",
    [["--encoder-only"], ["--reconstruction", "mind"], ["--steps", "3"], ["--save-reconstruction"]],
)
def test_a_student_alone_refuses_what_it_cannot_before_any_work(
    option: list[str], student_bundle: Path, write_scan: WriteScan, tmp_path: Path, capsys: Output
) -> None:
    scans = [str(write_scan(tmp_path / f"{name}.nii.gz")) for name in "ab"]
    options = ["--model", str(student_bundle), "--output", str(tmp_path / "out"), *option]
    assert main([*scans, *options]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "tiny-student: this model is a student alone" in error
    assert "train the later stages with sgan-train --resume" in error
    assert not (tmp_path / "out").exists()


# --- terms of use ----------------------------------------------------------------------------------

RESTRICTION = "research only, not for commercial use"


def test_a_restriction_is_told_wherever_results_are_seen(
    restricted_bundle: Path, write_scan: WriteScan, tmp_path: Path, capsys: Output
) -> None:
    scan, output = write_scan(tmp_path / "scan.nii.gz"), tmp_path / "out"
    options = ["--model", str(restricted_bundle), "--output", str(output)]
    assert main([str(scan), *options]) == 0
    notice = f"{RESTRICTION} (licence of the weights: CC BY-NC-SA 4.0)"
    assert capsys.readouterr().err.splitlines().count(f"Terms of use of tiny-student: {notice}") == 1
    told = json.loads((output / "run.json").read_text())["bundle"]
    assert (told["restriction"], told["licence"]) == (RESTRICTION, "CC BY-NC-SA 4.0")
    report = (output / "report.html").read_text(encoding="utf-8")
    assert report.index(notice) < report.index("tiny-student")  # at the top
    assert main([str(scan), *options, "--redo", "--json-progress"]) == 0
    start = json.loads(capsys.readouterr().out.splitlines()[1])
    assert (start["event"], start["restriction"]) == ("start", notice)


def test_a_model_without_restriction_tells_nothing_new(
    student_bundle: Path, write_scan: WriteScan, tmp_path: Path, capsys: Output
) -> None:
    scan, output = write_scan(tmp_path / "scan.nii.gz"), tmp_path / "out"
    options = ["--model", str(student_bundle), "--output", str(output), "--json-progress"]
    assert main([str(scan), *options]) == 0
    out, err = capsys.readouterr()
    assert set(json.loads((output / "run.json").read_text())["bundle"]) == {"name", "hash"}
    for text in (out, err, (output / "report.html").read_text(encoding="utf-8")):
        assert "Terms of use" not in text
        assert "restriction" not in text


# --- cancelling ------------------------------------------------------------------------------------


def when_case_is_reached(monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[[], None]) -> None:
    """Do something once the progress of the case ``name`` shows its second step."""
    show = Progress.__call__

    def spy(self: Progress, done: int, total: int, message: str) -> None:
        show(self, done, total, message)
        if message.startswith(name) and "step 1 of" in message:
            act()

    monkeypatch.setattr(Progress, "__call__", spy)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C interrupts, also where the tests were started in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.skipif(os.name == "nt", reason="Windows has no signal that reaches a handler in this process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_keeps_finished_cases(
    number: signal.Signals,
    tiny_bundle: Path,
    folder_with_a_broken_scan: Path,
    tmp_path: Path,
    leftovers: Leftovers,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Output,
) -> None:
    when_case_is_reached(monkeypatch, "c ", lambda: os.kill(os.getpid(), number))
    output = tmp_path / "out"
    options = ["--model", str(tiny_bundle), "--output", str(output), "--json-progress"]
    assert main([str(folder_with_a_broken_scan), *options]) == 3
    assert (output / "a_seg.nii.gz").is_file()
    assert not (output / "c_seg.nii.gz").exists()
    assert leftovers(output) == []
    assert [case["case"] for case in record(output)["cases"]] == ["a", "b"]
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith("sgan-segment: cancelled:")
    last = events(printed.out)[-1]
    assert (last["event"], last["message"], last["code"]) == ("error", "cancelled", 3)


def test_end_of_stdin_cancels(
    tiny_bundle: Path,
    folder_with_a_broken_scan: Path,
    tmp_path: Path,
    leftovers: Leftovers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading, writing = os.pipe()
    output = tmp_path / "out"
    with os.fdopen(reading) as stdin, os.fdopen(writing, "wb") as caller:
        monkeypatch.setattr(sys, "stdin", stdin)
        when_case_is_reached(monkeypatch, "c ", caller.close)
        options = ["--model", str(tiny_bundle), "--output", str(output), "--cancel-on-eof"]
        # So many steps that the watcher is sure to see the end before the last.
        assert main([str(folder_with_a_broken_scan), *options, "--steps", "100"]) == 3
    assert (output / "a_seg.nii.gz").is_file()
    assert not (output / "c_seg.nii.gz").exists()
    assert [case["case"] for case in record(output)["cases"]] == ["a", "b"]
    assert leftovers(output) == []


@pytest.mark.parametrize(
    ("event", "seconds"),
    [("hello", 0.0), ("hello", 0.5), ("hello", 1.5), ("start", 0.0), ("progress", 0.0), ("progress", 0.5)],
)
def test_end_of_stdin_ends_the_process_at_every_moment(
    event: str, seconds: float, tiny_bundle: Path, write_scan: WriteScan, tmp_path: Path
) -> None:
    """At once after the first line, while torch is imported, and later while slices are inverted."""
    scan, output = write_scan(tmp_path / "scan.nii.gz"), tmp_path / "out"
    command = [sys.executable, "-m", "sgan_core.cli.segment", str(scan), "--model", str(tiny_bundle)]
    command += ["--output", str(output), "--steps", "1000000", "--json-progress", "--cancel-on-eof"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        while json.loads(process.stdout.readline())["event"] != event:
            pass
        time.sleep(seconds)
        process.stdin.close()
        began = time.monotonic()
        last = events(process.stdout.read())[-1]
        assert process.wait() == 3
        assert time.monotonic() - began < 2.0
        assert process.stderr.read().splitlines()[-1].startswith("sgan-segment: cancelled:")
    assert (last["event"], last["message"], last["code"]) == ("error", "cancelled", 3)
    assert list(tmp_path.iterdir()) == [scan]


def test_process_that_cannot_be_interrupted_is_ended(
    tiny_bundle: Path, write_scan: WriteScan, tmp_path: Path
) -> None:
    """As when a library writes a file without looking up: nothing half-written stays, nor the folder."""
    scan, output = write_scan(tmp_path / "scan.nii.gz"), tmp_path / "out"
    command = [
        sys.executable,
        "-c",
        WRITES_FOREVER,
        str(scan),
        "--model",
        str(tiny_bundle),
        "--quality",
        "fast",
    ]
    command += ["--output", str(output), "--save-reconstruction", "--format", "nrrd", "--cancel-on-eof"]
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == "writing\n"
        assert len(files(output)) == 2  # the reconstruction, and what is being written
        process.stdin.close()
        began = time.monotonic()
        assert process.wait() == 3
        assert time.monotonic() - began < 2.0
    assert list(tmp_path.iterdir()) == [scan]


WRITES_FOREVER = """
import pathlib, SimpleITK, sys, time
from sgan_core.cli.segment import main

def write(image, path, **options):
    open(path, "w").write("half")
    beside = [file.name for file in pathlib.Path(path).parent.iterdir()]
    if len(set(beside) - {".finished"}) < 2:
        return
    print("writing", flush=True)
    while True:
        try:
            time.sleep(0.01)
        except KeyboardInterrupt:
            pass

SimpleITK.WriteImage = write
sys.exit(main())
"""


@pytest.mark.skipif(os.name == "nt", reason="terminate() on Windows lets a process do nothing more")
def test_terminated_process_leaves_nothing(tiny_bundle: Path, write_scan: WriteScan, tmp_path: Path) -> None:
    scan, output = write_scan(tmp_path / "scan.nii.gz"), tmp_path / "out"
    command = [sys.executable, "-m", "sgan_core.cli.segment", str(scan), "--model", str(tiny_bundle)]
    command += ["--output", str(output), "--steps", "1000000", "--json-progress"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)["event"] == "progress":
                process.terminate()
                break
        process.stdout.read()
        assert process.wait() == 3
    assert not output.exists()


def test_console_entry(tiny_bundle: Path, write_scan: WriteScan, tmp_path: Path) -> None:
    scan, output = write_scan(tmp_path / "scan.nii.gz"), tmp_path / "out"
    command = [sys.executable, "-m", "sgan_core.cli.segment", str(scan), "--model", str(tiny_bundle)]
    done = subprocess.run(
        [*command, "--output", str(output)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert "liver" in done.stdout
    assert "tiny-ct-liver on" in done.stderr
    assert files(output) == {"scan_seg.nii.gz", "run.json", "report.html"}


@pytest.mark.skipif(sys.platform == "win32", reason="os.nice is POSIX")
def test_low_priority_lets_others_go_first(tmp_path: Path) -> None:
    code = "import os, sys; from sgan_core.cli import segment; segment.main(sys.argv[1:]); print(os.nice(0))"
    options = [str(tmp_path / "absent"), "--model", "m", "--output", str(tmp_path / "out")]
    before = os.nice(0)
    for more, expected in ([], before), (["--low-priority"], before + 10):
        run = subprocess.run(
            [sys.executable, "-c", code, *options, *more], capture_output=True, text=True, check=False
        )
        assert int(run.stdout) == min(19, expected)
