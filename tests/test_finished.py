"""A batch that is started again: what is kept, what is computed again, what a run cut short leaves."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from sgan_core import batch
from sgan_core import finished as finished_module
from sgan_core.batch import BatchConfig, run_batch
from sgan_core.errors import Cancelled, InputError
from sgan_core.files import FINISHED, sha256
from sgan_core.finished import input_hash
from sgan_core.imaging.readers import files_of
from sgan_core.imaging.writers import write_volume
from sgan_core.inputs import Input, find_inputs
from sgan_core.labelling import SegmentConfig

BatchRun = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def run(batch_bundle: Any, batch_scans: list[Path], tmp_path: Path) -> BatchRun:
    """Run a batch of three scans, or of other paths, into "out" and give the cases of its record."""

    def call(
        *paths: Path, config: BatchConfig | None = None, output: str = "out", **settings: Any
    ) -> list[dict[str, Any]]:
        inputs = find_inputs(paths or batch_scans).inputs
        config = config or BatchConfig()
        run_batch(inputs, batch_bundle, tmp_path / output, config, options={}, **settings)
        return json.loads((tmp_path / output / "run.json").read_text(encoding="utf-8"))["cases"]

    return call


@pytest.fixture
def computed(batch_scans: list[Path], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images that were segmented, in order."""
    found: list[str] = []
    for reader in ("read_image", "read_series"):
        read = getattr(batch, reader)

        def noted(source: Any, *, read: Any = read, **settings: Any) -> Any:
            found.append(Path(source).name if isinstance(source, Path) else source.uid)
            return read(source, **settings)

        monkeypatch.setattr(batch, reader, noted)
    return found


def without_skipped(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in case.items() if key != "skipped"} for case in cases]


def test_finished_cases_are_kept(run: BatchRun, computed: list[str], tmp_path: Path) -> None:
    first = run()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*_seg.nii.gz")}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    told: list[dict[str, Any]] = []
    second = run(on_case=told.append)
    assert computed == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    assert [case["skipped"] for case in first + second] == [False] * 3 + [True] * 3
    assert without_skipped(first) == without_skipped(second)
    assert told == second
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert (tmp_path / "out" / "report.html").read_text(encoding="utf-8") == page


def test_hash_is_that_of_the_file(run: BatchRun, batch_scans: list[Path]) -> None:
    assert [case["input_hash"] for case in run()] == [sha256(path) for path in batch_scans]


@pytest.mark.parametrize("stop", [Cancelled("stopped"), KeyboardInterrupt(), RuntimeError("ours")])
def test_stopped_batch_goes_on_where_it_was(
    stop: BaseException, run: BatchRun, computed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = batch.read_image

    def stopped(path: Path) -> Any:
        if path.name.startswith("b"):
            raise stop
        return read(path)

    with monkeypatch.context() as patched:
        patched.setattr(batch, "read_image", stopped)
        with pytest.raises(type(stop)):
            run()
    del computed[:]
    cases = run()
    assert computed == ["b.nii.gz", "c.nii.gz"]
    assert [case["case"] for case in cases] == ["a", "b", "c"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["a", "b", "c"]


def test_failed_case_is_tried_again(
    run: BatchRun, computed: list[str], batch_scans: list[Path], tmp_path: Path
) -> None:
    whole = batch_scans[1].read_bytes()
    batch_scans[1].write_bytes(whole[: len(whole) // 2])
    assert [case["status"] for case in run()] == ["done", "failed", "done"]
    del computed[:]
    batch_scans[1].write_bytes(whole)
    assert [case["status"] for case in run()] == ["done", "done", "done"]
    assert computed == ["b.nii.gz"]


DEFAULT = BatchConfig()


@pytest.mark.parametrize(
    "config",
    [
        replace(DEFAULT, segment=SegmentConfig(quality="careful")),
        replace(DEFAULT, segment=SegmentConfig(steps=3)),
        replace(DEFAULT, segment=SegmentConfig(reconstruction="mind")),
        replace(DEFAULT, segment=SegmentConfig(encoder_only=True)),
        replace(DEFAULT, segment=SegmentConfig(region=(-100.0, 100.0))),
        replace(DEFAULT, segment=SegmentConfig(largest_component=True)),
        replace(DEFAULT, format="nrrd"),
        replace(DEFAULT, resample_gaps=True),
        replace(DEFAULT, probabilities=True),
        replace(DEFAULT, save_reconstruction=True),
    ],
)
def test_other_options_are_other_results(config: BatchConfig, run: BatchRun, computed: list[str]) -> None:
    run()
    assert [case["skipped"] for case in run(config=config)] == [False] * 3
    assert [case["skipped"] for case in run(config=config)] == [True] * 3
    assert len(computed) == 6


def test_how_many_slices_go_together_makes_no_other_result(run: BatchRun, computed: list[str]) -> None:
    run()
    run(config=replace(DEFAULT, segment=SegmentConfig(batch=1)))
    assert len(computed) == 3


@pytest.mark.parametrize("changed", ["model", "version"])
def test_another_model_or_version_computes_again(
    changed: str, run: BatchRun, computed: list[str], batch_bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    if changed == "model":
        batch_bundle.hash = "1" * 64
    else:
        monkeypatch.setattr(batch, "__version__", "99")
    run()
    assert len(computed) == 6


def test_redo_computes_again(run: BatchRun, computed: list[str]) -> None:
    run()
    assert [case["skipped"] for case in run(redo=True)] == [False] * 3
    assert len(computed) == 6


def test_another_image_of_the_same_name_is_another_case(
    run: BatchRun, computed: list[str], batch_scans: list[Path], tmp_path: Path
) -> None:
    """Another patient's scan in the place of the first must never get the first one's mask."""
    run()
    volume = batch.read_image(batch_scans[0])
    write_volume(batch_scans[0], volume.array + 1, volume.grid)
    del computed[:]
    cases = run()
    assert computed == ["a.nii.gz"]
    assert [case["skipped"] for case in cases] == [False, True, True]


def test_results_of_a_case_that_was_cut_short_are_nobodys(
    run: BatchRun,
    computed: list[str],
    batch_scans: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed between another patient's mask and its note: the first patient's scan, back again, must not get it."""
    run()
    first = batch_scans[0].read_bytes()
    volume = batch.read_image(batch_scans[0])
    write_volume(batch_scans[0], volume.array + 1, volume.grid)
    with monkeypatch.context() as patched:

        def killed(*_: Any) -> None:
            raise KeyboardInterrupt

        patched.setattr(finished_module.Finished, "add", killed)
        with pytest.raises(KeyboardInterrupt):
            run()
    batch_scans[0].write_bytes(first)
    del computed[:]
    assert [case["skipped"] for case in run()] == [False, True, True]
    assert computed == ["a.nii.gz"]


def test_no_results_of_another_patient_stay_under_the_name(
    run: BatchRun, batch_scans: list[Path], tmp_path: Path
) -> None:
    run(batch_scans[0], config=replace(DEFAULT, save_reconstruction=True, probabilities=True))
    assert (tmp_path / "out" / "a_recon.nii.gz").is_file()
    volume = batch.read_image(batch_scans[0])
    write_volume(batch_scans[0], volume.array + 1, volume.grid)
    run(batch_scans[0])
    assert {path.name for path in (tmp_path / "out").glob("a_*")} == {"a_seg.nii.gz"}


def test_a_correction_by_hand_is_moved_aside_not_lost(run: BatchRun, tmp_path: Path) -> None:
    run()
    mask = tmp_path / "out" / "a_seg.nii.gz"
    sitk.WriteImage(sitk.ReadImage(str(mask)) * 0, str(mask))
    corrected = mask.read_bytes()
    first, second, _ = run(config=replace(DEFAULT, probabilities=True))
    assert (tmp_path / "out" / "a_seg.nii.gz.before").read_bytes() == corrected
    assert any("is now a_seg.nii.gz.before" in warning for warning in first["warnings"])
    assert second["warnings"] == []


def test_what_a_killed_run_wrote_is_taken_for_no_image(
    run: BatchRun, batch_scans: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the label map and the note, with the results beside the scans."""

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(finished_module.Finished, "add", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, output=".", config=replace(DEFAULT, save_reconstruction=True, probabilities=True))
    assert (tmp_path / "a_recon.nii.gz").is_file()
    assert [one.name for one in find_inputs([tmp_path]).inputs] == ["a", "b", "c"]


def test_batch_in_which_everything_fails_is_recorded(
    run: BatchRun, batch_scans: list[Path], tmp_path: Path
) -> None:
    for path in batch_scans:
        path.write_bytes(b"damaged")
    assert [case["status"] for case in run()] == ["failed"] * 3
    assert not (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize("spoil", [b"", b"\xff", b"<script>"])
def test_spoilt_part_of_the_report_is_made_again(
    spoil: bytes, run: BatchRun, computed: list[str], tmp_path: Path
) -> None:
    run()
    (tmp_path / "out" / FINISHED / "a.html").write_bytes(spoil)
    run()
    assert computed == ["a.nii.gz", "b.nii.gz", "c.nii.gz", "a.nii.gz"]
    assert "<script" not in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_truncated_mask_is_lost(run: BatchRun, computed: list[str], tmp_path: Path) -> None:
    run()
    mask = tmp_path / "out" / "a_seg.nii.gz"
    mask.write_bytes(mask.read_bytes()[:-20])
    assert [case["skipped"] for case in run()] == [False, True, True]


@pytest.mark.parametrize(
    "change",
    [
        {"warnings": None},
        {"warnings": "none"},
        {"output": 3},
        {"labels": [{"name": "x"}]},
        {"case": "../../../evil"},
        {"case": "b"},
        {"trust": {}},
    ],
)
def test_odd_note_is_none(change: dict[str, Any], run: BatchRun, computed: list[str], tmp_path: Path) -> None:
    run()
    note = tmp_path / "out" / FINISHED / "a.json"
    stored = json.loads(note.read_text(encoding="utf-8"))
    stored["case"] |= change
    note.write_text(json.dumps(stored), encoding="utf-8")
    cases = run()
    assert [(case["case"], case["skipped"]) for case in cases] == [("a", False), ("b", True), ("c", True)]


@pytest.mark.parametrize("figure", ["soft_dice_confidence", "cardiothoracic_ratio"])
def test_note_of_an_earlier_version_lacks_a_figure_and_is_none(
    figure: str, run: BatchRun, computed: list[str], tmp_path: Path
) -> None:
    run()
    note = tmp_path / "out" / FINISHED / "a.json"
    stored = json.loads(note.read_text(encoding="utf-8"))
    del stored["case"][figure]
    note.write_text(json.dumps(stored), encoding="utf-8")
    assert [case["skipped"] for case in run()] == [False, True, True]


@pytest.mark.parametrize("kind", ["file", "link"])
def test_notes_have_a_folder_of_their_own(kind: str, run: BatchRun, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    if kind == "file":
        (tmp_path / "out" / FINISHED).touch()
    else:
        (tmp_path / "out" / FINISHED).symlink_to(tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        run()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders on this system")
def test_pipe_is_not_waited_for(run: BatchRun, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match="a pipe or device"):
        run(tmp_path / "pipe.png")


def test_image_that_changes_meanwhile_is_not_finished(
    run: BatchRun, batch_scans: list[Path], computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hashed as one patient's, read as another's."""
    segment, read = batch.segment_volume, batch.read_image

    def exchanged(*arguments: Any, **settings: Any) -> Any:
        volume = read(batch_scans[0])
        write_volume(batch_scans[0], volume.array + 1, volume.grid)
        return segment(*arguments, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(batch, "segment_volume", exchanged)
        (case,) = run(batch_scans[0])
    assert case["input_hash"] is None
    assert "changed while it was segmented" in case["warnings"][-1]
    assert [one["skipped"] for one in run(batch_scans[0])] == [False]


def test_image_that_vanishes_meanwhile_costs_no_result(
    run: BatchRun, batch_scans: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = batch.segment_volume

    def removed(*arguments: Any, **settings: Any) -> Any:
        batch_scans[0].unlink(missing_ok=True)
        return segment(*arguments, **settings)

    monkeypatch.setattr(batch, "segment_volume", removed)
    first, second, third = run()
    assert Path(first["output"]).is_file()
    assert "changed while it was segmented" in first["warnings"][-1]
    assert second["warnings"] == third["warnings"] == []


def test_the_same_image_elsewhere_is_the_same_case(
    run: BatchRun, computed: list[str], batch_scans: list[Path], tmp_path: Path
) -> None:
    run()
    (tmp_path / "moved").mkdir()
    shutil.move(batch_scans[0], tmp_path / "moved")
    shutil.move(tmp_path / "out", tmp_path / "results")
    (case,) = run(tmp_path / "moved", output="results")
    assert len(computed) == 3
    assert case["input"] == str(tmp_path / "moved" / "a.nii.gz")
    assert case["output"] == str(tmp_path / "results" / "a_seg.nii.gz")


RESULTS = ("a_seg.nii.gz", "a_recon.nii.gz", "a_liver_prob.nii.gz")


@pytest.mark.parametrize(
    ("lost", "how"),
    [*((name, how) for name in RESULTS for how in ("gone", "empty")), (f"{FINISHED}/a.html", "gone")],
)
def test_lost_result_is_computed_again(
    lost: str, how: str, run: BatchRun, computed: list[str], tmp_path: Path
) -> None:
    config = replace(DEFAULT, save_reconstruction=True, probabilities=True)
    run(config=config)
    file = tmp_path / "out" / lost
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(b"")
    del computed[:]
    assert [case["skipped"] for case in run(config=config)] == [False, True, True]
    assert file.stat().st_size > 0


def test_mask_that_was_corrected_by_hand_is_kept_and_said(
    run: BatchRun, computed: list[str], tmp_path: Path
) -> None:
    run()
    mask = tmp_path / "out" / "a_seg.nii.gz"
    corrected = sitk.ReadImage(str(mask)) * 0
    sitk.WriteImage(corrected, str(mask))
    cases = run()
    assert len(computed) == 3
    assert not sitk.GetArrayFromImage(sitk.ReadImage(str(mask))).any()
    assert cases[0]["warnings"] == [
        "a_seg.nii.gz was changed since it was written and is kept; the figures are of what was written. "
        "--redo computes the case again"
    ]
    assert cases[1]["warnings"] == []
    assert [case["warnings"] for case in run()] == [case["warnings"] for case in cases]  # not said twice
    run(redo=True)
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(mask))).all()


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"[1]",
        b"\xff",
        b"[" * 100_000,
        b"{}",
        b'{"case": 3, "made_by": 1, "results": [], "section": 0}',
        b'{"case": {}, "results": {}}',
    ],
)
def test_damaged_note_is_none(note: bytes, run: BatchRun, computed: list[str], tmp_path: Path) -> None:
    run()
    (tmp_path / "out" / FINISHED / "a.json").write_bytes(note)
    del computed[:]
    assert [case["status"] for case in run()] == ["done"] * 3
    assert computed == ["a.nii.gz"]


def test_note_cannot_lead_out_of_the_folder(run: BatchRun, tmp_path: Path) -> None:
    run()
    note = tmp_path / "out" / FINISHED / "a.json"
    stored = json.loads(note.read_text(encoding="utf-8"))
    stored["case"]["output"] = "../../elsewhere/a_seg.nii.gz"
    note.write_text(json.dumps(stored))
    assert run()[0]["output"] == str(tmp_path / "out" / "a_seg.nii.gz")


def test_without_a_report_no_part_of_one_is_kept(run: BatchRun, computed: list[str], tmp_path: Path) -> None:
    run(config=replace(DEFAULT, report=False))
    assert not list((tmp_path / "out" / FINISHED).glob("*.html"))
    run()
    assert len(computed) == 6  # a report needs the pictures
    assert (tmp_path / "out" / "report.html").is_file()


# --- what is hashed --------------------------------------------------------------------------------


def test_dicom_series_of_another_patient_is_another_case(
    run: BatchRun, computed: list[str], write_dicom_scan: Callable[[Path], Path], tmp_path: Path
) -> None:
    """The voxels are the same, but a DICOM segmentation carries the patient's name."""
    scan = write_dicom_scan(tmp_path / "scan")
    run(scan, config=replace(DEFAULT, format="dicom-seg"))
    run(scan, config=replace(DEFAULT, format="dicom-seg"))
    assert len(computed) == 1
    for file in scan.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.PatientName = "Other^One"
        dataset.save_as(file)
    (case,) = run(scan, config=replace(DEFAULT, format="dicom-seg"))
    assert len(computed) == 2
    assert str(pydicom.dcmread(case["output"]).PatientName) == "Other^One"


def test_doubt_about_a_series_is_part_of_its_hash(
    write_dicom_scan: Callable[[Path], Path], tmp_path: Path
) -> None:
    """A scan whose last slice vanished beside the others is the same files with another sentence."""
    (one,) = find_inputs([write_dicom_scan(tmp_path / "scan")]).inputs
    (series,) = one.found
    hashes = {input_hash(one, each) for each in (series, replace(series, doubts=("may be incomplete",)))}
    assert len(hashes) == 2


@pytest.mark.parametrize("name", ["x.mhd", "x.nhdr", "x.hdr"])
def test_both_files_of_a_pair_count(name: str, tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    sitk.WriteImage(image, str(tmp_path / name))
    files = files_of(tmp_path / name)
    assert files is not None
    assert {file.name for file in files} == {path.name for path in tmp_path.iterdir()}
    assert len(files) == 2
    one = Input("x", tmp_path / name)
    before = input_hash(one, None)
    files[1].write_bytes(files[1].read_bytes()[::-1])
    assert input_hash(one, None) != before


def test_half_of_a_pair_is_said(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 5), np.int16)), str(tmp_path / "x.hdr"))
    (tmp_path / "x.img").unlink()
    with pytest.raises(InputError, match=r"x\.img is missing"):
        input_hash(Input("x", tmp_path / "x.hdr"), None)


@pytest.mark.parametrize("named", ["LIST\nx0.raw\nx1.raw", "x%d.raw 0 1 1", "gone.raw"])
def test_files_that_a_header_does_not_name_plainly_are_never_taken_for_the_same(
    named: str, tmp_path: Path
) -> None:
    for index in range(2):
        (tmp_path / f"x{index}.raw").write_bytes(bytes(20))
    (tmp_path / "x.mhd").write_text(
        f"ObjectType = Image\nNDims = 3\nDimSize = 5 4 2\nElementType = MET_UCHAR\nElementDataFile = {named}\n"
    )
    assert input_hash(Input("x", tmp_path / "x.mhd"), None) is None


def test_case_without_a_hash_is_computed_again(
    run: BatchRun, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "input_hash", lambda one, series: None)
    run()
    run()
    assert len(computed) == 6


def test_results_are_on_the_disk_before_they_are_noted(
    run: BatchRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    write, keep = finished_module.write_text, finished_module.keep
    monkeypatch.setattr(finished_module, "keep", lambda path: (order.append(path.name), keep(path)))
    monkeypatch.setattr(
        finished_module, "write_text", lambda path, text: (order.append(path.name), write(path, text))
    )
    run()
    assert order[:5] == ["a.json", "a.html", "a.html", "a_seg.nii.gz", "a.json"]
