"""The tab Batch: a folder of files by the real engine, and what a person sees of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import slicer

import standin


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two small CTs and a damaged file."""
    source = tmp_path / "Bilder Größe"
    source.mkdir()
    for name in ("a", "b"):
        array = np.full((32, 32, 3), -1000, np.int16)
        array[8:24, 8:24] = 60
        nib.save(nib.Nifti1Image(array, np.diag([-2.0, -2.0, 5.0, 1.0])), source / f"{name}.nii.gz")
    (source / "broken.nii.gz").write_bytes(b"no image")
    return source


def run(panel: Any, source: Path, output: Path) -> None:
    panel.ui.batchInputPathLineEdit.setCurrentPath(str(source))
    panel.ui.batchOutputPathLineEdit.setCurrentPath(str(output))
    panel.ui.qualityComboBox.setCurrentText("fast")
    assert panel.ui.batchRunButton.enabled
    panel.ui.batchRunButton.click()


def cells(panel: Any) -> list[list[str]]:
    table = panel.ui.batchTable
    return [[table.item(row, column).text() for column in range(5)] for row in range(table.rowCount)]


def test_folder_is_segmented_and_listed(panel: Any, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "Ergebnisse 1"
    before = standin.leaves(slicer.mrmlScene)
    run(panel, folder, output)
    assert not panel.ui.applyButton.enabled
    assert not panel.ui.cancelButton.enabled  # the tab has its own
    assert panel.ui.batchCancelButton.enabled
    standin.pump(lambda: not panel.logic.isRunning(), 120)
    rows = cells(panel)
    assert [(row[0], row[4]) for row in rows] == [
        ("a", "a_seg.nii.gz"),
        ("b", "b_seg.nii.gz"),
        ("broken", ""),
    ]
    assert rows[2][1] == "failed"
    recorded = json.loads((output / "run.json").read_text(encoding="utf-8"))["cases"]
    for row, case in zip(rows[:2], recorded[:2], strict=True):
        assert row[1] == case["trust"]["status"]
        assert row[2] == f"liver {case['labels'][0]['volume_ml']:.1f}"
        assert Path(case["output"]).is_file()
    assert panel.ui.batchTable.item(2, 0).toolTip() == recorded[2]["error"]
    assert panel.ui.batchStatusLabel.text == "2 segmented, 1 failed."
    assert standin.leaves(slicer.mrmlScene) == before
    assert panel.ui.batchReportButton.enabled
    assert panel.ui.batchFolderButton.enabled
    assert panel.ui.batchRunButton.enabled
    assert not slicer.app.messages


def test_cancel_keeps_what_is_finished(panel: Any, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(panel, folder, output)
    standin.pump(lambda: panel.ui.batchTable.rowCount, 120)
    panel.ui.batchCancelButton.click()
    standin.pump(lambda: not panel.logic.isRunning(), 5)
    assert panel.ui.batchStatusLabel.text in (
        "Cancelled; 1 finished cases are kept.",
        "Cancelled; 2 finished cases are kept.",
        "2 segmented, 1 failed.",  # the run was faster
    )
    assert (output / "a_seg.nii.gz").is_file()
    hidden = {path.name for path in output.iterdir() if path.name.startswith(".")}
    assert hidden == {".finished"}  # nothing half-written


def test_run_needs_both_folders(panel: Any, folder: Path, tmp_path: Path) -> None:
    assert not panel.ui.batchRunButton.enabled
    panel.ui.batchInputPathLineEdit.setCurrentPath(str(tmp_path / "none"))
    panel.ui.batchOutputPathLineEdit.setCurrentPath(str(tmp_path))
    panel.ui.batchRunButton.click()
    assert "folder with the images" in slicer.app.messages[-1].text
    assert not panel.logic.isRunning()


def test_folder_without_images_is_told(panel: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    run(panel, tmp_path / "empty", tmp_path / "out")
    standin.pump(lambda: not panel.logic.isRunning(), 60)
    assert "no image in this folder" in slicer.app.messages[-1].text
    assert panel.ui.batchStatusLabel.text.startswith("Failed")
    assert not (tmp_path / "out").exists()


def test_model_and_options_are_named(panel: Any) -> None:
    panel.ui.qualityComboBox.setCurrentText("careful")
    assert panel.ui.batchModelLabel.text == "Model phantom-ct-liver, quality careful, as in the tab Segment"
