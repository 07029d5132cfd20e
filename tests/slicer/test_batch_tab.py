"""The tab Batch: a folder of files by the real engine, and what a person sees of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import qt
import slicer
from helpers import make_volume, voxels

import standin
from SemanticGANSlicerLib import review


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
    panel.ui.batchTable.cellDoubleClicked.emit(2, 0)  # the damaged one
    (message,) = slicer.app.messages
    assert message.kind == "error"
    assert message.text == f"broken was not segmented.\n\n{recorded[2]['error']}"


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


# --- volumes of the scene --------------------------------------------------------------------------


def choose(panel: Any, *nodes: Any) -> None:
    panel.ui.batchSourceComboBox.setCurrentIndex(1)
    listed = panel.ui.batchVolumeList
    for row in range(listed.count):
        wanted = listed.item(row).data(qt.Qt.UserRole) in [node.GetID() for node in nodes]
        listed.item(row).setCheckState(qt.Qt.Checked if wanted else qt.Qt.Unchecked)


@pytest.fixture
def three() -> list[Any]:
    """Volumes "CT", "CT" and "MR" that differ."""
    array = np.arange(-200, 160, dtype=np.int16).reshape(6, 6, 10)
    nodes = [make_volume(array + offset, name) for name, offset in (("CT", 0), ("CT", 90), ("MR", -90))]
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "Patient 7")
    study = hierarchy.CreateStudyItem(patient, "follow-up")
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(nodes[1]), study)
    return nodes


def own(volume: Any) -> Any:
    """The one segmentation of a volume."""
    role = slicer.vtkMRMLSegmentationNode().GetReferenceImageGeometryReferenceRole()
    found = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    (node,) = [node for node in found if node.GetNodeReference(role) is volume]
    return node


def drawn(volume: Any) -> Any:
    return slicer.util.arrayFromVolume(volume) > 0


def test_the_tab_shows_what_its_source_needs(panel: Any) -> None:
    ui = panel.ui
    of_folder = [ui.batchInputPathLineEdit, ui.batchOutputPathLineEdit, ui.batchFormatComboBox]
    assert [widget.isHidden() for widget in [*of_folder, ui.batchVolumeList]] == [False] * 3 + [True]
    assert ui.batchRunButton.text == "Segment the folder"
    ui.batchSourceComboBox.setCurrentIndex(1)
    assert [widget.isHidden() for widget in [*of_folder, ui.batchVolumeList]] == [True] * 3 + [False]
    assert ui.batchRunButton.text == "Segment the volumes"
    assert not ui.batchRunButton.enabled


def test_volumes_are_listed_so_that_they_can_be_told_apart(panel: Any, three: list[Any]) -> None:
    make_volume(np.zeros((2, 4, 5), np.uint8), "mask", "vtkMRMLLabelMapVolumeNode")
    panel.ui.batchSourceComboBox.setCurrentIndex(1)
    listed = panel.ui.batchVolumeList
    texts = [listed.item(row).text() for row in range(listed.count)]
    assert texts == [f"CT ({three[0].GetID()})", f"CT ({three[1].GetID()})", "MR"]
    assert listed.item(1).toolTip() == "Patient 7 / follow-up / CT"
    listed.item(2).setCheckState(qt.Qt.Checked)
    assert panel.ui.batchRunButton.enabled
    make_volume(np.zeros((1, 4, 5, 3), np.uint8), "photo", "vtkMRMLVectorVolumeNode")
    assert [listed.item(row).text() for row in (2, 3)] == ["MR", "photo"]
    assert [listed.item(row).checkState() == qt.Qt.Checked for row in range(4)] == [False, False, True, False]


def test_cardiothoracic_ratios_stand_in_the_list(
    panel: Any, three: list[Any], fake_worker: Callable[..., None]
) -> None:
    fake_worker(panel, "chest")
    choose(panel, three[2])
    panel.ui.batchRunButton.click()
    standin.pump(lambda: panel.ui.batchStatusLabel.text == "1 segmented, 0 failed.", 60)
    (row,) = cells(panel)
    assert row[2].startswith("bright ")
    assert row[2].endswith(", Cardiothoracic ratio 0.46 (please review)")


def test_volumes_are_segmented_one_by_one_each_into_its_own(
    panel: Any, three: list[Any], fake_worker: Callable[..., None]
) -> None:
    fake_worker(panel, "good")
    ui, first, second = panel.ui, three[0], three[1]
    choose(panel, *three)
    ui.batchRunButton.click()
    assert ui.batchCancelButton.enabled
    for widget in (ui.applyButton, ui.batchRunButton, ui.batchVolumeList):
        assert not widget.enabled
    names = [f"CT ({first.GetID()})", f"CT ({second.GetID()})", "MR"]
    standin.pump(lambda: ui.batchStatusLabel.text.startswith(f"{names[1]} (2 of 3): "), 60)
    first.SetName("renamed")
    standin.pump(lambda: ui.batchStatusLabel.text == "3 segmented, 0 failed.", 60)
    assert not slicer.app.messages
    rows = cells(panel)
    assert [row[0] for row in rows] == names
    assert [row[1] for row in rows] == ["review"] * 3
    for volume, row in zip(three, rows, strict=True):
        node = own(volume)
        np.testing.assert_array_equal(voxels(node, 0, volume), drawn(volume))
        assert row[2].startswith(f"bright {drawn(volume).sum() * 1.8 / 1000:.1f}")
        assert row[4].startswith(node.GetName())
        assert review.load(node) is not None
    assert "made up" in ui.batchTable.item(0, 0).toolTip()
    assert "a warning" in ui.batchTable.item(0, 0).toolTip()
    for button in (ui.batchReportButton, ui.batchFolderButton):
        assert not button.enabled
    assert ui.batchRunButton.enabled
    left = [one for one in Path(slicer.app.temporaryPath).iterdir() if one.name.startswith("sgan-")]
    assert not left


def test_double_click_shows_the_volume_and_its_review(
    panel: Any, three: list[Any], fake_worker: Callable[..., None]
) -> None:
    fake_worker(panel, "good")
    choose(panel, three[1], three[2])
    panel.ui.batchRunButton.click()
    standin.pump(lambda: not panel.logic.isRunning(), 60)
    panel.ui.batchTable.cellDoubleClicked.emit(0, 2)
    (shown,) = {
        view.GetBackgroundVolumeID() for view in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    }
    assert shown == three[1].GetID()
    assert panel._parameterNode.inputVolume is three[1]
    assert panel._parameterNode.outputSegmentation is own(three[1])
    assert panel._result.result.volume is three[1]
    assert panel.ui.doubtfulLabel.text == "Slices to look at, 2 of 2 left:"
    slicer.mrmlScene.RemoveNode(own(three[2]))
    panel.ui.batchTable.cellDoubleClicked.emit(1, 0)
    assert slicer.app.messages[-1].text == "MR is not in the scene any more."


def let_workers(panel: Any, fake_worker: Callable[..., None], modes: dict[str, str]) -> None:
    """Give each volume a worker of its own kind, by its name; "good" otherwise."""
    segment = panel.logic.segment

    def with_mode(volume: Any, *arguments: Any, **keywords: Any) -> None:
        fake_worker(panel, modes.get(volume.GetName(), "good"))
        segment(volume, *arguments, **keywords)

    panel.logic.segment = with_mode


def test_one_volume_that_fails_does_not_stop_the_others(
    panel: Any, three: list[Any], fake_worker: Callable[..., None]
) -> None:
    """Under a transform; removed meanwhile; its worker fails."""
    let_workers(panel, fake_worker, {"MR": "error"})
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "registration")
    three[0].SetAndObserveTransformNodeID(transform.GetID())
    gone = make_volume(np.arange(60, dtype=np.int16).reshape(3, 4, 5), "gone")
    last = make_volume(np.arange(-30, 30, dtype=np.int16).reshape(3, 4, 5), "last")
    choose(panel, *three, gone, last)
    panel.ui.batchRunButton.click()
    slicer.mrmlScene.RemoveNode(gone)
    standin.pump(lambda: not panel.logic.isRunning(), 60)
    rows = cells(panel)
    assert [(row[0], row[1]) for row in rows] == [
        (f"CT ({three[0].GetID()})", "failed"),
        (f"CT ({three[1].GetID()})", "review"),
        ("MR", "failed"),
        ("gone", "failed"),
        ("last", "review"),
    ]
    assert panel.ui.batchStatusLabel.text == "2 segmented, 3 failed."
    assert not slicer.app.messages
    for row, words in ((0, "under a transform"), (2, "broken. Mend it."), (3, "removed from the scene")):
        panel.ui.batchTable.cellDoubleClicked.emit(row, 1)
        assert slicer.app.messages[-1].kind == "error"
        assert words in slicer.app.messages[-1].text
        assert rows[row][0] in slicer.app.messages[-1].text
    np.testing.assert_array_equal(voxels(own(last), 0, last), drawn(last))


def test_cancel_stops_the_volumes_that_wait(
    panel: Any, three: list[Any], fake_worker: Callable[..., None]
) -> None:
    let_workers(panel, fake_worker, {"MR": "listens"})
    choose(panel, three[0], three[2], make_volume(np.arange(60, dtype=np.int16).reshape(3, 4, 5), "last"))
    panel.ui.batchRunButton.click()
    standin.pump(lambda: "(2 of 3): slice 1 to 2" in panel.ui.batchStatusLabel.text, 60)
    panel.ui.batchCancelButton.click()
    standin.pump(lambda: not panel.logic.isRunning(), 5)
    assert panel.ui.batchStatusLabel.text == "Cancelled; 1 finished cases are kept."
    assert len(cells(panel)) == 1
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 1
    assert panel.ui.batchRunButton.enabled
    assert panel.ui.applyButton.enabled


def test_scene_closed_while_volumes_wait(
    panel: Any, three: list[Any], fake_worker: Callable[..., None]
) -> None:
    fake_worker(panel, "listens")
    choose(panel, *three)
    panel.ui.batchRunButton.click()
    standin.pump(lambda: "slice 1 to 2" in panel.ui.batchStatusLabel.text, 60)
    slicer.mrmlScene.Clear(0)
    assert not panel.logic.isRunning()
    assert panel._batch._waiting == []
    assert panel.ui.batchVolumeList.count == 0
    assert panel.ui.batchProgressBar.isHidden()
    assert panel.ui.batchStatusLabel.text == "Cancelled: the scene was closed."
    assert not slicer.app.messages


def test_rows_and_ticks_do_not_pass_to_the_volumes_of_the_next_scene(
    panel: Any, three: list[Any], fake_worker: Callable[..., None]
) -> None:
    """Its nodes have the ids that those of the former scene had."""
    fake_worker(panel, "good")
    choose(panel, three[0])
    panel.ui.batchRunButton.click()
    standin.pump(lambda: not panel.logic.isRunning(), 60)
    assert len(cells(panel)) == 1
    ids = [node.GetID() for node in three]
    standin.exit_module(panel)  # the person opens a scene in another module
    slicer.mrmlScene.Clear(0)
    others = [make_volume(np.zeros((2, 4, 5), np.int16), f"Berta {number}") for number in range(3)]
    assert [node.GetID() for node in others] == ids
    standin.enter_module(panel)
    assert panel._batch._chosenVolumes() == []
    assert panel.ui.batchTable.rowCount == 0
    assert not panel.ui.batchRunButton.enabled


def test_a_ticked_volume_that_has_gone_is_not_waited_for(
    panel: Any, three: list[Any], fake_worker: Callable[..., None]
) -> None:
    fake_worker(panel, "good")
    choose(panel, *three)
    slicer.mrmlScene.RemoveNode(three[1])
    three[2].SetName("MR 1/2")
    panel.ui.batchRunButton.click()
    standin.pump(lambda: not panel.logic.isRunning(), 60)
    assert [(row[0], row[4]) for row in cells(panel)] == [
        ("CT", "CT segmentation"),
        ("MR 1/2", "MR 1/2 segmentation"),
    ]
    assert not slicer.app.messages


def test_model_and_options_are_named(panel: Any) -> None:
    panel.ui.qualityComboBox.setCurrentText("careful")
    assert panel.ui.batchModelLabel.text == "Model phantom-ct-liver, quality careful, as in the tab Segment"
