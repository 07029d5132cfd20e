"""A folder of inputs: which files, which names, what stays when something goes wrong."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from PIL import Image

from sgan_core import batch
from sgan_core import inputs as inputs_module
from sgan_core.batch import BatchConfig, prepare_folder, run_batch
from sgan_core.cohort import Label
from sgan_core.errors import Cancelled, InputError
from sgan_core.imaging.grid import Grid
from sgan_core.imaging.image import Volume
from sgan_core.imaging.writers import write_volume
from sgan_core.inputs import Input, case_name
from sgan_core.segment import Segmentation

# --- inputs ----------------------------------------------------------------------------------------


def test_folder_means_its_images_in_order(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "a.PNG", "c.mha", ".hidden.nii", "notes.txt", "labels.json"):
        (tmp_path / name).touch()
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "d.nii.gz").touch()
    assert [one.path.name for one in find_inputs([tmp_path])] == ["a.PNG", "b.nii.gz", "c.mha"]


@pytest.mark.parametrize("name", ["a_seg.nii.gz", "a_seg.seg.nrrd", "a_seg.png"])
def test_a_segmentation_beside_its_image_is_left_out_and_said(name: str, tmp_path: Path) -> None:
    for file in ("a.nii.gz", name):
        (tmp_path / file).touch()
    found = inputs_module.find_inputs([tmp_path])
    assert [one.path.name for one in found.inputs] == ["a.nii.gz"]
    assert [(one.path.name, "segmentation of a" in one.reason) for one in found.left_out] == [(name, True)]
    assert [one.path for one in find_inputs([tmp_path / name])] == [tmp_path / name]


RECORD = {
    "cases": [
        {
            "case": "a",
            "output": "elsewhere/a_seg.nii.gz",
            "reconstruction_output": None,
            "probability_outputs": ["elsewhere/a_liver_prob.nii.gz"],
        }
    ]
}


def test_results_are_known_by_the_record_beside_them_not_by_name(tmp_path: Path) -> None:
    results = ["a_liver_prob.nii.gz", "a_seg.nii.gz"]
    scans = ["a.nii.gz", "a_thin_recon.nii.gz", "b_prob.nii.gz", "c_seg.nii.gz"]
    for name in (*results, *scans):
        (tmp_path / name).touch()
    (tmp_path / "run.json").write_text(json.dumps(RECORD))
    found = inputs_module.find_inputs([tmp_path])
    assert [one.path.name for one in found.inputs] == scans
    assert [one.path.name for one in found.left_out] == results
    (tmp_path / "run.json").unlink()
    assert "a_liver_prob" in [one.name for one in find_inputs([tmp_path])]


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"[1, 2]",
        b"[" * 100_000,
        b"\xff",
        json.dumps({"cases": [{"case": "p", "output": "patient.nii"}]}).encode(),
        json.dumps({"cases": [{"case": 3, "output": ["x"]}, None]}).encode(),
        json.dumps({"cases": [{"case": "", "output": "patient.nii"}]}).encode(),
    ],
)
def test_a_foreign_or_damaged_record_hides_no_image(record: bytes, tmp_path: Path) -> None:
    (tmp_path / "patient.nii").touch()
    (tmp_path / "run.json").write_bytes(record)
    assert [one.name for one in find_inputs([tmp_path])] == ["patient"]


def test_names_of_unfinished_copies_and_dead_links_are_said(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz.part", "c.nrrd.crdownload", "notes.txt", "d.nii.bz2"):
        (tmp_path / name).touch()
    found = inputs_module.find_inputs([tmp_path])
    assert [one.path.name for one in found.left_out] == ["b.nii.gz.part", "c.nrrd.crdownload", "d.nii.bz2"]
    if hasattr(os, "symlink"):
        (tmp_path / "e.nii").symlink_to(tmp_path / "gone.nii")
        assert "link to a file that is not here" in find_inputs([tmp_path])[-1].problem


def test_named_files_keep_their_order(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("b.nii", "a.nii")]
    for path in paths:
        path.touch()
    assert [one.path for one in find_inputs(paths)] == paths


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


def test_two_inputs_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("a.nii", "a.png"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match="two inputs are named 'a'"):
        find_inputs([tmp_path])


def test_names_that_some_disks_take_for_one_are_refused(tmp_path: Path) -> None:
    for folder, name in (("1", "Scan.nii"), ("2", "scan.nii")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).touch()
    with pytest.raises(InputError, match="two inputs are named"):
        find_inputs([tmp_path / "1" / "Scan.nii", tmp_path / "2" / "scan.nii"])


def test_a_dead_link_is_one_input(dicom_files: Any, tmp_path: Path) -> None:
    dicom_files.save(
        tmp_path / "x.dcm", dicom_files.image(np.arange(30, dtype=np.uint16).reshape(5, 6), "DX")
    )
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere.png")
    assert sorted(one.name for one in find_inputs([tmp_path])) == ["broken", "x"]


# --- DICOM folders ---------------------------------------------------------------------------------


def find_inputs(paths: Sequence[Path]) -> list[Input]:
    return inputs_module.find_inputs(paths).inputs


def write_series(files: Any, folder: Path, *, study: str = "1", series: str = "1", number: int = 1) -> Path:
    random = np.random.default_rng(int(study) * 100 + int(series))
    array = random.integers(-1000, 400, (6, 5, 4)).astype(np.int16)
    facts = {
        "StudyInstanceUID": f"1.2.{study}",
        "SeriesInstanceUID": f"1.2.{study}.{series}",
        "SeriesNumber": number,
        "SeriesDescription": f"phase {series}",
    }
    return files.save_all(folder, files.stack(array, **facts))


def summary(path: Path) -> list[tuple[str, str, int]]:
    return [(one.name, one.path.name, len(one.found)) for one in find_inputs([path])]


def test_folder_of_slices_is_one_input(dicom_files: Any, tmp_path: Path) -> None:
    write_series(dicom_files, tmp_path / "scan" / "DICOM")
    assert summary(tmp_path / "scan" / "DICOM") == [("DICOM", "DICOM", 1)]
    assert summary(tmp_path / "scan") == [("scan", "scan", 1)]


def test_one_study_is_one_input_however_its_series_lie(dicom_files: Any, tmp_path: Path) -> None:
    for series in ("1", "2"):
        write_series(dicom_files, tmp_path / "study" / series, series=series, number=int(series))
        write_series(dicom_files, tmp_path / "mixed", series=series, number=int(series))
    assert summary(tmp_path / "study") == [("study", "study", 2)]
    # Written over each other by name, one series is left of them.
    assert summary(tmp_path / "mixed") == [("mixed", "mixed", 1)]


def test_studies_in_folders_of_their_own_are_a_batch(dicom_files: Any, tmp_path: Path) -> None:
    for study in ("1", "2"):
        write_series(dicom_files, tmp_path / f"patient{study}" / "deep", study=study)
    (tmp_path / "scan.nii.gz").touch()
    assert summary(tmp_path) == [
        ("scan", "scan.nii.gz", 0),
        ("patient1", "patient1", 1),
        ("patient2", "patient2", 1),
    ]


def test_pictures_are_a_batch(dicom_files: Any, tmp_path: Path) -> None:
    for name in ("a.dcm", "b.dcm"):
        dicom_files.save(tmp_path / name, dicom_files.image(np.eye(8, dtype=np.uint16), "DX"))
    assert summary(tmp_path) == [("a", "a.dcm", 1), ("b", "b.dcm", 1)]
    assert summary(tmp_path / "b.dcm") == [("b", "b.dcm", 1)]


def test_damaged_study_does_not_stop_the_others(
    dicom_files: Any, bundle: Any, scans: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "studies"
    for study in ("1", "2"):
        write_series(dicom_files, folder / study, study=study)
    damaged = folder / "1" / "0000"
    damaged.write_bytes(damaged.read_bytes()[:700])
    result = run_batch(find_inputs([folder]), bundle, tmp_path / "out", BatchConfig(), options={})
    assert [case["status"] for case in result.record["cases"]] == ["failed", "done"]
    assert str(damaged) in result.record["cases"][0]["error"]
    with pytest.raises(InputError, match="0000"):
        run_batch(find_inputs([folder / "1"]), bundle, tmp_path / "other", BatchConfig(), options={})


def test_damaged_picture_of_a_flat_folder_fails_alone(
    dicom_files: Any, bundle: Any, scans: list[Path], tmp_path: Path
) -> None:
    for number in range(3):
        image = dicom_files.image(
            np.random.default_rng(number).integers(0, 4000, (64, 64)).astype(np.uint16), "DX"
        )
        image.SeriesInstanceUID = f"1.2.{number}"
        dicom_files.save(tmp_path / "in" / f"{number}.dcm", image)
    for damaged in (content[:-900] for content in [(tmp_path / "in" / "1.dcm").read_bytes()]):
        (tmp_path / "in" / "1.dcm").write_bytes(damaged)
    (tmp_path / "in" / "3.dcm").write_bytes(b"")
    result = run_batch(find_inputs([tmp_path / "in"]), bundle, tmp_path / "out", BatchConfig(), options={})
    assert {case["case"]: case["status"] for case in result.record["cases"]} == {
        "0": "done",
        "2": "done",
        "1": "failed",
        "3": "failed",
    }
    assert result.failed == 2


def test_patient_whose_files_are_all_empty_fails_beside_the_others(dicom_files: Any, tmp_path: Path) -> None:
    write_series(dicom_files, tmp_path / "studies" / "1")
    (tmp_path / "studies" / "2").mkdir()
    for number in range(4):
        (tmp_path / "studies" / "2" / f"{number}.dcm").touch()
    whole, empty = find_inputs([tmp_path / "studies"])
    assert (whole.name, whole.problem, empty.name) == ("1", "", "2")
    assert "is empty (4 such files)" in empty.problem


def test_series_is_chosen_or_asked_for(
    dicom_files: Any, bundle: Any, scans: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sgan_core.cli.segment import main as segment

    for series in ("1", "2"):
        write_series(dicom_files, tmp_path / "study" / series, series=series, number=int(series))
    inputs = find_inputs([tmp_path / "study"])
    with pytest.raises(InputError, match="--series"):
        run_batch(inputs, bundle, tmp_path / "out", BatchConfig(), options={})
    asking = [str(tmp_path / "study"), "--model", "phantom-ct-liver", "--output", str(tmp_path / "out")]
    assert segment([*asking, "--quality", "fast"]) == 2
    lines = capsys.readouterr().err.splitlines()
    place = next(n for n, line in enumerate(lines) if line.endswith("say which one with --series:"))
    assert [line.split()[:3] for line in lines[place + 1 :]] == [
        ["series", "description", "modality"],
        ["1", "phase", "1"],
        ["2", "phase", "2"],
    ]
    for wanted in ("2", "phase 2", "1.2.1.2"):
        result = run_batch(inputs, bundle, tmp_path / "out", BatchConfig(series=wanted), options={})
        assert result.failed == 0


def test_dicom_segmentation_of_other_files_is_refused(bundle: Any, scans: list[Path], tmp_path: Path) -> None:
    config = BatchConfig(format="dicom-seg")
    with pytest.raises(InputError, match="not DICOM"):
        run_batch(find_inputs(scans[:1]), bundle, tmp_path / "out", config, options={})
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("scans")
@pytest.mark.parametrize(
    ("use", "told"),
    [({}, "SemanticGAN segmentation"), ({"restriction": "not for sale"}, "SemanticGAN: not for sale")],
)
def test_a_restriction_goes_with_a_dicom_segmentation(
    dicom_files: Any, bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: dict, told: str
) -> None:
    """Into a PACS, where no run.json follows it."""
    monkeypatch.setattr(bundle, "facts", {**bundle.facts, "use": use})
    inputs = find_inputs([write_series(dicom_files, tmp_path / "scan")])
    config = BatchConfig(format="dicom-seg", report=False)
    result = run_batch(inputs, bundle, tmp_path / "out", config, options={})
    header = pydicom.dcmread(result.record["cases"][0]["output"])
    assert (header.ContentDescription, header.SeriesDescription) == (told, told)


def test_all_formats_hold_the_same_voxels(
    dicom_files: Any, bundle: Any, scans: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sgan_core.cli.evaluate import main as evaluate
    from sgan_core.imaging.dicom.seg import read_dicom_seg
    from sgan_core.imaging.grid import corner_distance_mm

    inputs = find_inputs([write_series(dicom_files, tmp_path / "scan")])
    written = {}
    for name in ("nifti", "nrrd", "dicom-seg"):
        config = BatchConfig(format=name, report=False)
        result = run_batch(inputs, bundle, tmp_path / name, config, options={})
        written[name] = Path(result.record["cases"][0]["output"])
    assert written["dicom-seg"].name == "scan_seg.dcm"
    from_dicom = read_dicom_seg(written["dicom-seg"])
    assert isinstance(from_dicom, Volume)
    for name in ("nifti", "nrrd"):
        other = sitk.ReadImage(str(written[name]))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(other).T, from_dicom.array)
        ours = nib.load(written["nifti"]).affine
        assert corner_distance_mm(Grid(from_dicom.array.shape, ours), from_dicom.grid) < 1e-3
    assert evaluate([str(written["dicom-seg"]), str(written["nifti"])]) == 0
    scores = next(line.split() for line in capsys.readouterr().out.splitlines() if "scan" in line)
    assert scores[2:4] == ["1.000", "1.000"]


def test_mended_gap_has_a_place_in_the_dicom_segmentation(
    dicom_files: Any, bundle: Any, scans: list[Path], tmp_path: Path
) -> None:
    from sgan_core.imaging.dicom.seg import read_dicom_seg

    array = np.random.default_rng(0).integers(-1000, 400, (6, 5, 6)).astype(np.int16)
    slices = dicom_files.stack(array)
    copy = dicom_files.stack(array)[1]  # the same slice exported twice
    dicom_files.save_all(tmp_path / "scan", [*(slices[k] for k in (0, 1, 2, 4, 5)), copy])
    inputs = find_inputs([tmp_path / "scan"])
    with pytest.raises(InputError, match="--resample-gaps"):
        run_batch(inputs, bundle, tmp_path / "out", BatchConfig(format="dicom-seg"), options={})
    config = BatchConfig(format="dicom-seg", resample_gaps=True)
    case = run_batch(inputs, bundle, tmp_path / "out", config, options={}).record["cases"][0]
    written = read_dicom_seg(case["output"])
    assert isinstance(written, Volume)
    assert written.array.shape == (6, 5, 6)
    np.testing.assert_allclose(written.grid.spacing_mm, (0.7, 0.8, 2.0), atol=1e-6)


@pytest.mark.parametrize("modality", ["DX", "XC"])
def test_dicom_picture_gets_a_dicom_segmentation(
    modality: str, dicom_files: Any, bundle: Any, scans: list[Path], tmp_path: Path
) -> None:
    from sgan_core.imaging.dicom.seg import read_dicom_seg

    shape = (7, 9) if modality == "DX" else (7, 9, 3)
    pixels = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    dicom_files.save(tmp_path / "pictures" / "a.dcm", dicom_files.image(pixels, modality))
    config = BatchConfig(format="dicom-seg")
    inputs = find_inputs([tmp_path / "pictures"])
    case = run_batch(inputs, bundle, tmp_path / "out", config, options={}).record["cases"][0]
    np.testing.assert_array_equal(read_dicom_seg(case["output"]), np.full((7, 9), 2))


def test_what_no_dicom_segmentation_can_say_is_refused_before_the_work(
    dicom_files: Any, bundle: Any, scans: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = dicom_files.stack(np.random.default_rng(0).integers(0, 900, (6, 5, 4)).astype(np.int16))
    for image in images:
        image.SOPInstanceUID = ""
    dicom_files.write(tmp_path / "scan", images)
    monkeypatch.setattr(batch, "segment_volume", lambda *_, **__: pytest.fail("it was segmented"))
    with pytest.raises(InputError, match="--format nifti"):
        run_batch(
            find_inputs([tmp_path / "scan"]),
            bundle,
            tmp_path / "out",
            BatchConfig(format="dicom-seg"),
            options={},
        )


@pytest.mark.parametrize(("modality", "kept"), [("CT", "scan_seg.nii.gz"), ("DX", "0000_seg.png")])
def test_mask_that_fails_as_dicom_is_kept(
    modality: str,
    kept: str,
    dicom_files: Any,
    bundle: Any,
    scans: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sgan_core.imaging.dicom import seg

    def fails(*_: Any, **__: Any) -> None:
        raise InputError("a reason.")

    monkeypatch.setattr(seg, "write_dicom_seg", fails)
    if modality == "CT":
        write_series(dicom_files, tmp_path / "scan")
    else:
        pixels = np.arange(63, dtype=np.uint16).reshape(7, 9)
        dicom_files.save_all(tmp_path / "scan", [dicom_files.image(pixels, modality)])
    config = BatchConfig(format="dicom-seg", report=False)
    with pytest.raises(InputError, match=f"a reason. The label map is kept as .*{kept}"):
        run_batch(find_inputs([tmp_path / "scan"]), bundle, tmp_path / "out", config, options={})
    assert [file.name for file in (tmp_path / "out").iterdir()] == [kept]


@pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode elsewhere")
def test_name_that_is_not_utf_8_costs_nothing(bundle: Any, scans: list[Path], tmp_path: Path) -> None:
    odd = scans[0].with_name(os.fsdecode(b"M\xfcller.nii.gz"))
    scans[0].rename(odd)
    run_batch(find_inputs([odd]), bundle, tmp_path / "out", BatchConfig(), options={})
    (case,) = cases(tmp_path / "out")
    assert Path(case["output"]).exists()
    assert "M\\udcfcller" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_slice_exported_twice_does_not_disturb_the_dicom_segmentation(
    dicom_files: Any, bundle: Any, scans: list[Path], tmp_path: Path
) -> None:
    from sgan_core.imaging.dicom.seg import read_dicom_seg

    array = np.random.default_rng(0).integers(-1000, 400, (6, 5, 4)).astype(np.int16)
    dicom_files.save_all(tmp_path / "scan", [*dicom_files.stack(array), dicom_files.stack(array)[1]])
    config = BatchConfig(format="dicom-seg")
    result = run_batch(find_inputs([tmp_path / "scan"]), bundle, tmp_path / "out", config, options={})
    written = read_dicom_seg(result.record["cases"][0]["output"])
    assert isinstance(written, Volume)
    assert written.array.shape == (6, 5, 4)


def test_nobody_is_named(
    dicom_files: Any,
    bundle: Any,
    scans: list[Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    """Name, id and birth date of a patient stay in the DICOM files, where they belong."""
    inputs = find_inputs([write_series(dicom_files, tmp_path / "scan")])
    with caplog.at_level("DEBUG"):
        run_batch(inputs, bundle, tmp_path / "out", BatchConfig(format="dicom-seg"), options={})
    told = caplog.text + "".join(str(warning.message) for warning in recwarn)
    for file in (path for path in (tmp_path / "out").rglob("*") if path.is_file()):
        told += file.name + ("" if file.suffix == ".dcm" else file.read_text(encoding="utf-8"))
    for secret in ("SECRET", "19010203"):
        assert secret not in told
        assert secret.encode() in (tmp_path / "scan" / "0000").read_bytes()


# --- folders ---------------------------------------------------------------------------------------


def test_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    for _ in range(2):
        prepare_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write there"):
        prepare_folder(tmp_path / "file" / "out")


# --- a run, with a stand-in for the model ----------------------------------------------------------


@pytest.fixture
def bundle(batch_bundle: Any) -> Any:
    return batch_bundle


@pytest.fixture
def scans(batch_scans: list[Path]) -> list[Path]:
    return batch_scans


def cases(output: Path) -> list[dict[str, Any]]:
    return json.loads((output / "run.json").read_text(encoding="utf-8"))["cases"]


def test_label_names_become_file_names(bundle: Any, scans: list[Path], tmp_path: Path) -> None:
    config = BatchConfig(probabilities=True, report=False)
    result = run_batch(find_inputs(scans[:1]), bundle, tmp_path / "out", config, options={})
    assert result.failed == 0
    assert names(tmp_path / "out") == {
        "a_seg.nii.gz",
        "a_liver_prob.nii.gz",
        "a_left-kidney-cyst_prob.nii.gz",
        "run.json",
    }


def test_label_names_without_latin_letters_do_not_meet(
    bundle: Any, scans: list[Path], tmp_path: Path
) -> None:
    bundle.config.labels = (Label(1, "肝脏", (200, 90, 60)), Label(2, "脾脏", (90, 90, 200)))
    config = BatchConfig(probabilities=True, report=False)
    run_batch(find_inputs(scans[:1]), bundle, tmp_path / "out", config, options={})
    assert {"a_1_prob.nii.gz", "a_2_prob.nii.gz"} <= names(tmp_path / "out")


# --- reconstructions -------------------------------------------------------------------------------


@pytest.mark.parametrize(("format", "ending"), [("nifti", "nii.gz"), ("nrrd", "nrrd")])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_reconstruction_has_grid_units_and_type_of_its_image(
    format: str, ending: str, dtype: type, bundle: Any, scans: list[Path], tmp_path: Path
) -> None:
    grid = Grid((8, 6, 3), np.diag([-2.0, -2.0, 5.0, 1.0]))
    array = np.broadcast_to([-300.0, 17.4, 101.0], grid.shape).astype(
        dtype
    )  # even slices: nothing to resample
    write_volume(tmp_path / "x.nii.gz", array, grid)
    config = BatchConfig(format=format, save_reconstruction=True, report=False)
    result = run_batch(find_inputs([tmp_path / "x.nii.gz"]), bundle, tmp_path / "out", config, options={})
    (case,) = result.record["cases"]
    written = tmp_path / "out" / f"x_recon.{ending}"
    assert case["reconstruction_output"] == str(written)
    ours, scan = (sitk.ReadImage(str(path)) for path in (written, tmp_path / "x.nii.gz"))
    for facts in ("GetSize", "GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(ours, facts)(), getattr(scan, facts)(), atol=1e-5)
    values = sitk.GetArrayFromImage(ours).T
    assert values.dtype == dtype
    # The stand-in reconstructs the image itself: in HU, between black and white.
    np.testing.assert_allclose(values, array.clip(-160, 240), atol=1e-3)


def test_reconstruction_of_a_picture_has_8_bits(bundle: Any, scans: list[Path], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 4000, (21, 32), dtype=np.uint16)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    config = BatchConfig(save_reconstruction=True, report=False)
    result = run_batch(find_inputs([tmp_path / "p.png"]), bundle, tmp_path / "out", config, options={})
    (case,) = result.record["cases"]
    assert case["reconstruction_output"] == str(tmp_path / "out" / "p_recon.png")
    shown = np.asarray(Image.open(tmp_path / "out" / "p_recon.png"))
    assert (shown.shape, shown.dtype) == ((21, 32), np.uint8)
    expected = (pixels.clip(0, 240).astype(float) + 160) / 400 * 255
    np.testing.assert_allclose(shown, expected, atol=1.0)


def test_no_reconstruction_unless_asked_for(bundle: Any, scans: list[Path], tmp_path: Path) -> None:
    result = run_batch(find_inputs(scans[:1]), bundle, tmp_path / "out", BatchConfig(), options={})
    assert result.record["cases"][0]["reconstruction_output"] is None
    assert names(tmp_path / "out") == {"a_seg.nii.gz", "run.json", "report.html"}


@pytest.mark.parametrize("error", [InputError("disk is full"), KeyboardInterrupt()])
def test_case_without_its_label_map_leaves_nothing(
    error: BaseException, bundle: Any, scans: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(batch, "write_labels", fail)
    config = BatchConfig(save_reconstruction=True, probabilities=True)
    with pytest.raises(type(error)):
        run_batch(find_inputs(scans[:1]), bundle, tmp_path / "out", config, options={})
    assert not (tmp_path / "out").exists()


# --- where the slices are --------------------------------------------------------------------------


def test_slices_of_a_region_are_placed_in_the_patient(
    bundle: Any, scans: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = batch.segment_volume

    def upper_two(image: Volume, *arguments: Any, **settings: Any) -> Segmentation:
        found = segment(image, *arguments, **settings)
        stack, probs = found.stack.part(slice(1, 3)), found.label_probs[1:]
        facts = {"label_probs": probs, "reconstructions": stack.images, "slice_errors": np.zeros(2)}
        return replace(found, stack=stack, **facts)

    monkeypatch.setattr(batch, "segment_volume", upper_two)
    config = BatchConfig(probabilities=True, save_reconstruction=True)
    (case,) = run_batch(find_inputs(scans[:1]), bundle, tmp_path / "out", config, options={}).record["cases"]
    assert case["first_slice"] == 2
    assert case["slice_centres_mm"] == [[-7.0, -5.0, 5.0], [-7.0, -5.0, 10.0]]
    assert len(case["reconstruction_error"]["slices"]) == 2
    assert "<b>Slice 3</b>" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<b>Slice 1</b>" not in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    probability, reconstruction = (
        np.asarray(nib.load(tmp_path / "out" / f"a_{name}.nii.gz").dataobj)
        for name in ("left-kidney-cyst_prob", "recon")
    )
    np.testing.assert_array_equal(probability[..., 0], 0.0)  # outside the region nothing is probable
    np.testing.assert_array_equal(probability[..., 1:], 1.0)
    np.testing.assert_array_equal(reconstruction[..., 0], -160.0)


def test_picture_is_nowhere(bundle: Any, scans: list[Path], tmp_path: Path) -> None:
    Image.fromarray(np.eye(20, dtype=np.uint8) * 200).save(tmp_path / "p.png")
    inputs = find_inputs([tmp_path / "p.png"])
    (case,) = run_batch(inputs, bundle, tmp_path / "out", BatchConfig(), options={}).record["cases"]
    assert (case["first_slice"], case["slice_centres_mm"]) == (1, None)


def names(output: Path) -> set[str]:
    """What a listing of a folder of results shows."""
    return {path.name for path in output.iterdir() if not path.name.startswith(".")}


# --- memory ----------------------------------------------------------------------------------------


def running_out(error: Exception, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory runs out while the case ``name`` is segmented."""
    read = batch.read_image
    being_read: list[Path] = []

    def noted(path: Path) -> Any:
        being_read.append(path)
        return read(path)

    segment = batch.segment_volume

    def allocate(*arguments: Any, **settings: Any) -> Segmentation:
        if being_read[-1].name.startswith(name):
            raise error
        return segment(*arguments, **settings)

    monkeypatch.setattr(batch, "read_image", noted)
    monkeypatch.setattr(batch, "segment_volume", allocate)


OUT_OF_MEMORY = (
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    torch.OutOfMemoryError("CUDA out of memory"),
)


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_scan_that_does_not_fit_into_memory_does_not_stop_the_others(
    error: Exception, bundle: Any, scans: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running_out(error, "b", monkeypatch)
    result = run_batch(find_inputs(scans), bundle, tmp_path / "out", BatchConfig(), options={})
    assert [case["status"] for case in result.record["cases"]] == ["done", "failed", "done"]
    said = result.record["cases"][1]["error"]
    assert said.startswith(f"{scans[1]}: not enough memory on CPU")
    assert "Try --batch 1, --region for a part of the scan, or close other programs." in said


def test_on_a_gpu_the_cpu_is_offered(
    bundle: Any, scans: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running_out(OUT_OF_MEMORY[2], "a", monkeypatch)
    bundle.device = SimpleNamespace(type="mps")
    with pytest.raises(InputError, match=r"a\.nii\.gz: not enough memory on Apple GPU.*--device cpu"):
        run_batch(find_inputs(scans[:1]), bundle, tmp_path / "out", BatchConfig(), options={})
    assert not (tmp_path / "out").exists()


def test_other_errors_stay_ours(
    bundle: Any, scans: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running_out(RuntimeError("shapes differ"), "a", monkeypatch)
    with pytest.raises(RuntimeError, match="shapes differ"):
        run_batch(find_inputs(scans[:1]), bundle, tmp_path / "out", BatchConfig(), options={})


# --- what breaks off a run -------------------------------------------------------------------------


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
        run_batch(find_inputs(scans), bundle, tmp_path / "out", BatchConfig(), options={})
    assert [case["case"] for case in cases(tmp_path / "out")] == ["a"]
    assert names(tmp_path / "out") == {"a_seg.nii.gz", "run.json", "report.html"}


def test_bad_input_is_recorded_and_told(
    bundle: Any, scans: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_at("b", InputError("b is bad"), monkeypatch)
    told: list[dict[str, Any]] = []
    result = run_batch(
        find_inputs(scans), bundle, tmp_path / "out", BatchConfig(), options={}, on_case=told.append
    )
    assert result.failed == 1
    assert [case["status"] for case in told] == ["done", "failed", "done"]
    assert told == cases(tmp_path / "out") == result.record["cases"]
    assert (told[1]["error"], told[1]["output"]) == ("b is bad", None)


def test_single_bad_input_leaves_no_folder(
    bundle: Any, scans: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_at("b", InputError("b is bad"), monkeypatch)
    with pytest.raises(InputError, match="b is bad"):
        run_batch(find_inputs(scans[1:2]), bundle, tmp_path / "out", BatchConfig(), options={})
    assert not (tmp_path / "out").exists()
