"""What users get wrong, through the commands: one line, the right exit code, nothing half-written."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from sgan_core.cli import demo, sample, segment, train

Command = Callable[[list[str]], int]
WriteScan = Callable[..., Path]
Leftovers = Callable[[Path], list[str]]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must end with exit code 2; returns its one line of error."""

    def run(main: Command, *arguments: str | Path) -> str:
        code = main([str(argument) for argument in arguments])
        errors = [
            line for line in capsys.readouterr().err.splitlines() if ": error: " in line or "Trace" in line
        ]
        assert (code, len(errors)) == (2, 1), errors
        return errors[0]

    return run


Refused = Callable[..., str]


def no_files(folder: Path) -> bool:
    return not [path for path in folder.rglob("*") if path.is_file()]


# --- images ----------------------------------------------------------------------------------------


def text_file(path: Path, write_scan: WriteScan) -> None:
    path.write_text("patient;age\n1;50\n")


def text_in_gzip(path: Path, write_scan: WriteScan) -> None:
    path.write_bytes(gzip.compress(b"patient;age\n1;50\n"))


def truncated(path: Path, write_scan: WriteScan) -> None:
    content = write_scan(path, shape=(40, 40, 20)).read_bytes()
    path.write_bytes(content[: len(content) // 2])


def four_dimensional(path: Path, write_scan: WriteScan) -> None:
    write_scan(path, shape=(9, 8, 3, 2))


def only_nan_and_infinite(path: Path, write_scan: WriteScan) -> None:
    write_scan(path, change=lambda array: np.where(array > 0, np.nan, np.inf))


def zero_size_axis(path: Path, write_scan: WriteScan) -> None:
    nib.save(nib.Nifti1Image(np.zeros((9, 0, 3), np.int16), np.eye(4)), path)


def constant(path: Path, write_scan: WriteScan) -> None:
    write_scan(path, change=lambda array: np.full_like(array, -1000.0))


def singular_affine(path: Path, write_scan: WriteScan) -> None:
    image = nib.load(write_scan(path))
    header = image.header.copy()
    header.set_sform(np.diag([1.0, 1.0, 0.0, 1.0]), code=1)
    header.set_qform(None, code=0)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, header), path)


def missing(path: Path, write_scan: WriteScan) -> None:
    return


BAD_SCANS = [
    (missing, "no such file"),
    (text_file, "not a NIfTI file"),
    (text_in_gzip, "not a NIfTI file"),
    (truncated, "truncated"),
    (four_dimensional, "4-D (9 x 8 x 3 x 2)"),
    (only_nan_and_infinite, "every value is NaN or infinite"),
    (zero_size_axis, "axis of length 0"),
    (constant, "every value is -1000"),
    (singular_affine, "affine in the header is singular"),
]


@pytest.mark.parametrize(("damage", "reason"), BAD_SCANS, ids=[damage.__name__ for damage, _ in BAD_SCANS])
def test_bad_scan(
    damage: Callable[[Path, WriteScan], None],
    reason: str,
    tiny_bundle: Path,
    write_scan: WriteScan,
    tmp_path: Path,
    refused: Refused,
) -> None:
    scan, output = tmp_path / "scan.nii.gz", tmp_path / "out"
    damage(scan, write_scan)
    message = refused(segment.main, scan, "--model", tiny_bundle, "--output", output)
    assert "scan.nii.gz" in message
    assert reason in message
    assert not output.exists()


def test_earlier_results_survive_a_bad_scan(
    tiny_bundle: Path, write_scan: WriteScan, tmp_path: Path, refused: Refused
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "run.json").write_text("of an earlier run")
    truncated(tmp_path / "scan.nii.gz", write_scan)
    refused(segment.main, tmp_path / "scan.nii.gz", "--model", tiny_bundle, "--output", output)
    assert [(path.name, path.read_text()) for path in output.iterdir()] == [("run.json", "of an earlier run")]


def test_folder_without_an_image(tiny_bundle: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "scans").mkdir()
    message = refused(segment.main, tmp_path / "scans", "--model", tiny_bundle, "--output", tmp_path / "out")
    assert "no image in this folder" in message


# --- images that are worth a warning ---------------------------------------------------------------


def warnings_of(output: Path) -> str:
    (case,) = json.loads((output / "run.json").read_text(encoding="utf-8"))["cases"]
    assert case["status"] == "done"
    return " ".join(case["warnings"])


def test_some_nan_voxels_are_replaced_with_a_warning(
    tiny_bundle: Path, write_scan: WriteScan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoil(array: np.ndarray) -> np.ndarray:
        array[3, 4, 1], array[5, 6, 2] = np.nan, -np.inf
        return array

    scan, output = write_scan(tmp_path / "scan.nii.gz", change=spoil), tmp_path / "out"
    assert segment.main([str(scan), "--model", str(tiny_bundle), "--output", str(output)]) == 0
    assert "2 values (0.1 %) are NaN or infinite" in warnings_of(output)
    assert "warning: scan: scan.nii.gz: 2 values" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["volume", "picture"])
def test_other_modality_is_a_warning(
    kind: str, tiny_bundle: Path, write_scan: WriteScan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "volume":
        image = write_scan(tmp_path / "mri.nii.gz", change=lambda array: np.abs(array))
    else:
        image = tmp_path / "mri.png"
        pixels = np.random.default_rng(0).integers(100, 9000, (30, 20), dtype=np.uint16)
        Image.fromarray(pixels).save(image)
    output = tmp_path / "out"
    assert segment.main([str(image), "--model", str(tiny_bundle), "--output", str(output)]) == 0
    assert "trained on another modality" in warnings_of(output)
    assert "warning" in capsys.readouterr().err


# --- models ----------------------------------------------------------------------------------------


@pytest.fixture
def damaged_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "model"))


def run_model(command: str, model: str | Path, scan: Path, output: Path) -> tuple[Command, list[str | Path]]:
    rest: list[str | Path] = ["--model", model, "--output", output]
    mains: dict[str, Command] = {"segment": segment.main, "sample": sample.main, "demo": demo.main}
    return mains[command], [scan, *rest] if command == "segment" else rest


@pytest.mark.parametrize("command", ["segment", "sample", "demo"])
def test_model_without_weights(
    command: str, damaged_bundle: Path, write_scan: WriteScan, tmp_path: Path, refused: Refused
) -> None:
    (damaged_bundle / "models" / "generator.safetensors").unlink()
    output = tmp_path / "out"
    main, arguments = run_model(command, damaged_bundle, write_scan(tmp_path / "scan.nii.gz"), output)
    assert "generator.safetensors: missing" in refused(main, *arguments)
    assert not output.exists()


@pytest.mark.parametrize("command", ["segment", "sample", "demo"])
def test_model_with_corrupted_weights(
    command: str, damaged_bundle: Path, write_scan: WriteScan, tmp_path: Path, refused: Refused
) -> None:
    weights = damaged_bundle / "models" / "encoder.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    output = tmp_path / "out"
    main, arguments = run_model(command, damaged_bundle, write_scan(tmp_path / "scan.nii.gz"), output)
    assert "encoder.safetensors: damaged or changed" in refused(main, *arguments)
    assert not output.exists()


def test_folder_that_is_no_model(write_scan: WriteScan, tmp_path: Path, refused: Refused) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz")
    (tmp_path / "empty").mkdir()
    message = refused(segment.main, scan, "--model", tmp_path / "empty", "--output", tmp_path / "out")
    assert "not a model" in message


def test_unknown_model_name(write_scan: WriteScan, tmp_path: Path, refused: Refused) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz")
    message = refused(segment.main, scan, "--model", "phantom-ct-livre", "--output", tmp_path / "out")
    assert "phantom-ct-livre: no such model" in message


# --- places to write -------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["segment", "sample", "demo"])
def test_file_where_the_output_folder_should_be(
    command: str, tiny_bundle: Path, write_scan: WriteScan, tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "out").write_text("mine")
    scan = write_scan(tmp_path / "scan.nii.gz")
    main, arguments = run_model(command, tiny_bundle, scan, tmp_path / "out")
    message = refused(main, *arguments)
    assert "cannot write there" in message
    assert "Choose another --output" in message
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("command", ["segment", "sample", "demo"])
def test_output_folder_not_writable_is_found_out_before_the_work(
    command: str,
    tiny_bundle: Path,
    write_scan: WriteScan,
    tmp_path: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(**_: Any) -> NoReturn:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    (tmp_path / "out").mkdir()
    main, arguments = run_model(command, tiny_bundle, write_scan(tmp_path / "scan.nii.gz"), tmp_path / "out")
    assert "Permission denied" in refused(main, *arguments)
    assert no_files(tmp_path / "out")


def full_disk(*_: Any, **__: Any) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("command", ["segment", "sample", "demo"])
def test_disk_full_when_a_finished_file_is_put_in_place(
    command: str,
    tiny_bundle: Path,
    write_scan: WriteScan,
    tmp_path: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scan, output = write_scan(tmp_path / "scan.nii.gz"), tmp_path / "out"
    main, arguments = run_model(command, tiny_bundle, scan, output)
    monkeypatch.setattr(Path, "replace", full_disk)
    monkeypatch.setattr(os, "replace", full_disk)
    assert "No space left on device" in refused(main, *arguments)
    assert no_files(output)


def test_disk_full_while_a_label_volume_is_written(
    tiny_bundle: Path,
    write_scan: WriteScan,
    tmp_path: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def half(image: nib.Nifti1Image, path: Path) -> NoReturn:
        path.write_bytes(b"half")
        full_disk()

    scan, output = write_scan(tmp_path / "scan.nii.gz"), tmp_path / "out"
    monkeypatch.setattr(nib, "save", half)
    message = refused(segment.main, scan, "--model", tiny_bundle, "--output", output)
    assert "cannot write scan_seg.nii.gz" in message
    assert "No space left on device" in message
    assert not output.exists()


# --- training --------------------------------------------------------------------------------------


@pytest.fixture
def own_cohort(disc_cohort: Path, tmp_path: Path) -> Path:
    """A cohort to damage."""
    return Path(shutil.copytree(disc_cohort, tmp_path / "cohort"))


def training(cohort: Path, settings: Path, output: Path, *more: str) -> list[str]:
    options = ["--modality", "ct", "--data", str(cohort), "--output", str(output), "--config", str(settings)]
    return [*options, "--max-images", "4", *more]


def edit_cases(cohort: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = cohort / "cohort.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    for case in content["cases"]:
        change(case)
    file.write_text(json.dumps(content), encoding="utf-8")


def test_label_with_unknown_values(
    own_cohort: Path, toy_settings: Path, tmp_path: Path, refused: Refused, leftovers: Leftovers
) -> None:
    Image.fromarray(np.full((32, 32), 7, np.uint8)).save(own_cohort / "p1_2_label.png")
    message = refused(train.main, *training(own_cohort, toy_settings, tmp_path / "run"))
    assert "p1_2_label.png: unknown label value 7" in message
    assert leftovers(tmp_path / "run") == []
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_label_of_another_shape(
    own_cohort: Path, toy_settings: Path, tmp_path: Path, refused: Refused, leftovers: Leftovers
) -> None:
    Image.fromarray(np.zeros((16, 32), np.uint8)).save(own_cohort / "p1_2_label.png")
    message = refused(train.main, *training(own_cohort, toy_settings, tmp_path / "run"))
    assert "p1_2_label.png" in message
    assert "differ in shape: 16 x 32 against 32 x 32" in message
    assert leftovers(tmp_path / "run") == []


@pytest.mark.parametrize("key", ["image", "label"])
def test_cohort_cannot_make_us_show_other_files(
    key: str, own_cohort: Path, toy_settings: Path, tmp_path: Path, refused: Refused
) -> None:
    """A path may lead out of the folder, where data lie; what is there is read as an image or not at all."""
    for name in ("secret.txt", "secret.png"):
        (tmp_path / name).write_text("password: swordfish", encoding="utf-8")
        edit_cases(own_cohort, lambda case, name=name: case.update({key: case[key] and f"../{name}"}))
        message = refused(train.main, *training(own_cohort, toy_settings, tmp_path / "run"))
        assert name in message
        assert "swordfish" not in message


def test_no_labelled_case(own_cohort: Path, toy_settings: Path, tmp_path: Path, refused: Refused) -> None:
    edit_cases(own_cohort, lambda case: case.update(label=None, labelled_rank=None))
    message = refused(train.main, *training(own_cohort, toy_settings, tmp_path / "run"))
    assert "no labelled case" in message
    assert not (tmp_path / "run").exists()


def test_labels_only_in_validation(
    own_cohort: Path, toy_settings: Path, tmp_path: Path, refused: Refused
) -> None:
    def unlabel(case: dict[str, Any]) -> None:
        if case["split"] == "train":
            case.update(label=None, labelled_rank=None)

    edit_cases(own_cohort, unlabel)
    message = refused(train.main, *training(own_cohort, toy_settings, tmp_path / "run"))
    assert "no labelled case in the split train" in message


def test_one_patient_in_two_splits(
    own_cohort: Path, toy_settings: Path, tmp_path: Path, refused: Refused
) -> None:
    edit_cases(own_cohort, lambda case: case.update(split="test") if case["id"] == "p4_1" else None)
    message = refused(train.main, *training(own_cohort, toy_settings, tmp_path / "run"))
    assert "patient p4 is in train and in test" in message
    assert not (tmp_path / "run").exists()


def test_more_labelled_patients_than_there_are(
    disc_cohort: Path, toy_settings: Path, tmp_path: Path, refused: Refused
) -> None:
    options = training(disc_cohort, toy_settings, tmp_path / "run", "--labelled", "5")
    assert "5 labelled patients asked for, the split train has 2" in refused(train.main, *options)


def test_missing_cohort(toy_settings: Path, tmp_path: Path, refused: Refused) -> None:
    message = refused(train.main, *training(tmp_path / "nowhere", toy_settings, tmp_path / "run"))
    assert "nowhere" in message


def test_training_into_a_file(
    disc_cohort: Path, toy_settings: Path, tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "run").write_text("mine")
    message = refused(train.main, *training(disc_cohort, toy_settings, tmp_path / "run"))
    assert "Choose another --output" in message


def test_disk_full_at_a_checkpoint(
    disc_cohort: Path,
    toy_settings: Path,
    tmp_path: Path,
    refused: Refused,
    leftovers: Leftovers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "fsync", full_disk)
    message = refused(train.main, *training(disc_cohort, toy_settings, tmp_path / "run"))
    assert "No space left on device" in message
    assert leftovers(tmp_path / "run") == []


# --- devices ---------------------------------------------------------------------------------------


def test_cuda_asked_for_and_absent(
    tiny_bundle: Path,
    write_scan: WriteScan,
    disc_cohort: Path,
    toy_settings: Path,
    tmp_path: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    scan, output = write_scan(tmp_path / "scan.nii.gz"), tmp_path / "out"
    calls = [run_model(command, tiny_bundle, scan, output) for command in ("segment", "sample", "demo")]
    calls.append((train.main, list(training(disc_cohort, toy_settings, output))))
    for main, arguments in calls:
        assert "finds no CUDA GPU here" in refused(main, *arguments, "--device", "cuda")
        assert not output.exists()


# --- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        (["--steps", "-1"], "steps is -1"),
        (["--batch", "0"], "batch is 0"),
        (["--quality", "best"], "--quality"),
    ],
)
def test_wrong_segment_option(
    option: list[str], reason: str, tiny_bundle: Path, write_scan: WriteScan, tmp_path: Path, refused: Refused
) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz")
    arguments = [scan, "--model", tiny_bundle, "--output", tmp_path / "out", *option]
    assert reason in refused(segment.main, *arguments)
    assert not (tmp_path / "out").exists()
