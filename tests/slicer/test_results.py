"""What a person does with a result: compare, review with interruptions, take the figures and the report along, undo."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qt
import slicer
from helpers import make_volume, voxels

import standin
from SemanticGANSlicerLib import results, review, volumes

FakeWorker = Callable[..., None]


@pytest.fixture
def shown(panel: Any, ct: Any, fake_worker: FakeWorker) -> Any:
    """The panel with a result on the volume "CT": slices 1, 4, 7 and 10 are to be looked at."""
    fake_worker(panel, "good")
    apply(panel)
    return panel


def apply(panel: Any) -> None:
    panel.ui.applyButton.click()
    standin.pump(lambda: not panel.logic.isRunning(), 60)


def errors() -> list[str]:
    return [message.text for message in slicer.app.messages if message.kind == "error"]


def visible(widget: Any) -> bool:
    """Whether a widget would be seen if the panel were."""
    return not widget.isHidden()


def views() -> dict[str, Any]:
    """The nodes of the slice views by name."""
    return {view.GetLayoutName(): view for view in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")}


# --- notices ---------------------------------------------------------------------------------------


def test_notices_of_the_engine_stand_above_the_result(shown: Any) -> None:
    ui = shown.ui
    assert visible(ui.noticesLabel)
    assert "a warning" in ui.noticesLabel.text
    layout = ui.resultCollapsibleButton.layout()
    assert layout.indexOf(ui.noticesLabel) == 0
    assert "warning" not in ui.statusLabel.text


def test_a_result_without_notices_has_no_box(shown: Any) -> None:
    shown._result.result.case["warnings"] = ["the scan may be incomplete: <50> of 100"]
    shown._result._display(shown._result.result)
    assert "the scan may be incomplete: &lt;50&gt; of 100" in shown.ui.noticesLabel.text
    shown._result.result.case["warnings"] = []
    shown._result._display(shown._result.result)
    assert not visible(shown.ui.noticesLabel)


# --- compare ---------------------------------------------------------------------------------------


def test_compare_gives_each_view_its_foreground_back(shown: Any, ct: Any) -> None:
    pet = make_volume(np.arange(60, dtype=np.int16).reshape(3, 4, 5), "PET")
    dose = make_volume(np.arange(60, dtype=np.int16).reshape(3, 4, 5), "dose")
    before = {"Red": (pet.GetID(), 0.3), "Green": (dose.GetID(), 0.9), "Yellow": (None, 0.0)}
    for name, (volume_id, opacity) in before.items():
        views()[name].SetForegroundVolumeID(volume_id)
        views()[name].SetForegroundOpacity(opacity)
    for _ in range(2):  # the second time, too
        shown.ui.reconstructionCheckBox.setChecked(True)
        shown.ui.fadeSlider.setValue(80)
        assert {view.GetForegroundOpacity() for view in views().values()} == {0.8}
        shown.ui.reconstructionCheckBox.setChecked(False)
        after = {
            name: (view.GetForegroundVolumeID(), view.GetForegroundOpacity())
            for name, view in views().items()
        }
        assert after == before


def test_compare_leaves_alone_what_was_chosen_meanwhile(shown: Any) -> None:
    pet = make_volume(np.arange(60, dtype=np.int16).reshape(3, 4, 5), "PET")
    dose = make_volume(np.arange(60, dtype=np.int16).reshape(3, 4, 5), "dose")
    slicer.util.setSliceViewerLayers(foreground=pet, foregroundOpacity=0.4)
    shown.ui.reconstructionCheckBox.setChecked(True)
    views()["Green"].SetForegroundVolumeID(dose.GetID())
    shown.ui.fadeSlider.setValue(10)
    assert views()["Green"].GetForegroundOpacity() == 0.5  # as the comparison began with
    slicer.mrmlScene.RemoveNode(pet)
    shown.ui.reconstructionCheckBox.setChecked(False)
    assert views()["Green"].GetForegroundVolumeID() == dose.GetID()
    assert not views()["Red"].GetForegroundVolumeID()  # what it had is gone


def test_the_next_result_ends_the_comparison(shown: Any) -> None:
    pet = make_volume(np.arange(60, dtype=np.int16).reshape(3, 4, 5), "PET")
    slicer.util.setSliceViewerLayers(foreground=pet, foregroundOpacity=0.4)
    shown.ui.reconstructionCheckBox.setChecked(True)
    apply(shown)
    assert {view.GetForegroundVolumeID() for view in views().values()} == {pet.GetID()}
    assert not shown.ui.reconstructionCheckBox.checked


# --- undo ------------------------------------------------------------------------------------------


@pytest.fixture
def on_a_copy(panel: Any, ct: Any, fake_worker: FakeWorker) -> Any:
    """A result that is shown, on a hardened copy of a volume; the copy."""
    fake_worker(panel, "good")
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "registration")
    ct.SetAndObserveTransformNodeID(transform.GetID())
    copy, results = volumes.hardenedCopy(ct), []
    panel.logic.segment(copy, panel._options(), onFinished=lambda outcome, result: results.append(result))
    standin.pump(lambda: results, 60)
    panel._result.show(results[0], copyOf=ct)
    panel.ui.inputSelector.setCurrentNode(copy)
    return copy


def test_undo_removes_the_copy_that_was_made_for_the_run(panel: Any, on_a_copy: Any) -> None:
    panel.ui.undoButton.click()
    assert on_a_copy.GetScene() is None
    assert panel.ui.inputSelector.currentNode().GetName() == "CT"  # what was chosen before
    names = [node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")]
    assert names == ["CT"]


def test_undo_keeps_a_copy_that_another_segmentation_was_drawn_on(panel: Any, on_a_copy: Any) -> None:
    mine = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    mine.SetReferenceImageGeometryParameterFromVolumeNode(on_a_copy)
    panel.ui.undoButton.click()
    assert on_a_copy.GetScene() is not None
    assert [node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode")] == ["mine"]


def test_undo_of_an_update_brings_the_former_review_back(shown: Any) -> None:
    node = shown._parameterNode.outputSegmentation
    shown.ui.doubtfulList.item(1).setCheckState(qt.Qt.Checked)
    before = review.memory(node)
    apply(shown)
    assert shown._parameterNode.outputSegmentation is node
    assert review.checked(node) == set()
    shown.ui.undoButton.click()
    assert review.memory(node) == before
    assert review.checked(node) == {4}


# --- figures ---------------------------------------------------------------------------------------


def test_table_is_copied_for_a_spreadsheet(shown: Any, ct: Any) -> None:
    shown.ui.copyTableButton.click()
    count = int((slicer.util.arrayFromVolume(ct) > 0).sum())
    lines = [line.split("\t") for line in slicer.app.clipboard().text().splitlines()]
    assert lines == [
        ["Image", "Segment", "Volume (mL)", "Voxels", "SNOMED CT"],
        ["CT", "bright", f"{count * 1.8 / 1000:.3f}", str(count), ""],
        ["CT", "absent", "0.000", "0", ""],
    ]
    assert shown.ui.statusLabel.text == "The volumes of CT are on the clipboard."


def test_table_comes_into_the_scene(shown: Any, ct: Any) -> None:
    shown.ui.addTableButton.click()
    (node,) = slicer.util.getNodesByClass("vtkMRMLTableNode")
    assert node.GetName() == "CT volumes"
    table, count = node.GetTable(), int((slicer.util.arrayFromVolume(ct) > 0).sum())
    columns = {
        table.GetColumnName(column): [table.GetValue(row, column).ToString() for row in range(2)]
        for column in range(table.GetNumberOfColumns())
    }
    assert columns["Image"] == ["CT", "CT"]
    assert columns["Segment"] == ["bright", "absent"]
    assert columns["Voxels"] == [str(count), "0"]
    assert float(columns["Volume (mL)"][0]) == pytest.approx(count * 1.8 / 1000)
    assert node.GetNodeReference("segmentation") is shown._parameterNode.outputSegmentation
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    items = [hierarchy.GetItemByDataNode(one) for one in (node, ct)]
    assert hierarchy.GetItemParent(items[0]) == hierarchy.GetItemParent(items[1])


def test_figures_of_one_of_two_volumes_of_one_name_carry_its_id(shown: Any, ct: Any) -> None:
    make_volume(np.zeros((2, 4, 5), np.int16), "CT")
    shown.ui.copyTableButton.click()
    assert f"CT ({ct.GetID()})\tbright" in slicer.app.clipboard().text()
    shown.ui.addTableButton.click()
    (node,) = slicer.util.getNodesByClass("vtkMRMLTableNode")
    assert node.GetName() == f"CT ({ct.GetID()}) volumes"


# --- the cardiothoracic ratio ----------------------------------------------------------------------


def test_cardiothoracic_ratio_stands_below_the_volumes_with_its_trust(
    panel: Any, ct: Any, fake_worker: FakeWorker, tmp_path: Path
) -> None:
    fake_worker(panel, "chest")
    apply(panel)
    ui, text = panel.ui, "Cardiothoracic ratio 0.46 (please review)"
    layout = ui.resultCollapsibleButton.layout()
    assert layout.indexOf(ui.ratioLabel) == layout.indexOf(ui.volumeTable) + 1
    assert (ui.ratioLabel.text, visible(ui.ratioLabel)) == (text, True)
    assert slicer.mrmlScene.WriteToMRB(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear(0)
    standin.read_mrb(tmp_path / "scene.mrb")
    standin.enter_module(panel)
    assert (ui.ratioLabel.text, visible(ui.ratioLabel)) == (text, True)


def test_a_model_of_something_else_has_no_cardiothoracic_ratio(shown: Any) -> None:
    assert not visible(shown.ui.ratioLabel)
    case = shown._result.result.case
    case["cardiothoracic_ratio"] = {"ratio": None, "reason": "no heart was found", "trust": "ok"}
    shown._result._display(shown._result.result)  # a notice says why
    assert not visible(shown.ui.ratioLabel)
    case["cardiothoracic_ratio"] = {"ratio": 0.5, "trust": "ok"}
    shown._result._display(shown._result.result)
    assert shown.ui.ratioLabel.text == "Cardiothoracic ratio 0.50 (looks right)"
    assert visible(shown.ui.ratioLabel)


# --- report ----------------------------------------------------------------------------------------


def test_report_is_opened_and_saved_under_the_name_of_the_volume(
    shown: Any, ct: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(qt.QDesktopServices, "openUrl", lambda url: opened.append(url.toLocalFile()))
    ct.SetName("Größe <2>/a")
    shown.ui.openReportButton.click()
    assert Path(opened[0]).read_text(encoding="utf-8") == "<h1>Segmentation</h1><h2>Größe &lt;2&gt;/a</h2>"
    asked: list[str] = []

    def choose(parent: Any, title: str, name: str, kinds: str) -> str:
        asked.append(name)
        return str(tmp_path / "kept.html")

    monkeypatch.setattr(qt.QFileDialog, "getSaveFileName", choose)
    shown.ui.saveReportButton.click()
    assert asked == ["Größe _2__a report.html"]
    assert "Größe &lt;2&gt;/a" in (tmp_path / "kept.html").read_text(encoding="utf-8")
    assert str(tmp_path / "kept.html") in shown.ui.statusLabel.text
    monkeypatch.setattr(qt.QFileDialog, "getSaveFileName", lambda *unused: "")  # the person left the dialog
    shown.ui.saveReportButton.click()
    monkeypatch.setattr(qt.QFileDialog, "getSaveFileName", lambda *unused: str(tmp_path / "none" / "a.html"))
    assert not errors()
    shown.ui.saveReportButton.click()
    (text,) = errors()
    assert text.startswith(f"The report of Größe <2>/a cannot be saved in {tmp_path / 'none'} (No such file")
    assert "choose another folder" in text


def test_report_on_a_full_disk_leaves_no_half_of_it(
    shown: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept.html"
    kept.write_text("an earlier one", encoding="utf-8")

    def replace(source: str, target: str) -> None:
        assert Path(source).parent == tmp_path  # beside it, where the half of a page is
        raise OSError(errno.ENOSPC, "No space left on device", target)

    monkeypatch.setattr(results.os, "replace", replace)
    monkeypatch.setattr(qt.QFileDialog, "getSaveFileName", lambda *unused: str(kept))
    shown.ui.saveReportButton.click()
    assert [path.name for path in tmp_path.iterdir()] == ["kept.html"]
    assert kept.read_text(encoding="utf-8") == "an earlier one"
    assert f"in {tmp_path} (No space left on device). Free some space there" in errors()[0]


def test_report_of_the_engine_carries_the_name_of_the_volume(panel: Any) -> None:
    """The real one, whose page has the place that the name is put in."""
    from SemanticGANSlicerLib import importer

    array = np.full((4, 32, 32), -1000, np.int16)
    array[:, 8:24, 8:24] = 60
    panel.ui.inputSelector.setCurrentNode(make_volume(array, "patient 7", turned=False))
    panel.ui.qualityComboBox.setCurrentText("fast")
    apply(panel)
    assert not slicer.app.messages
    page = Path(importer.report(panel._result.result)).read_text(encoding="utf-8")
    assert page.count("<h2>patient 7</h2>") == 1
    assert ">input<" not in page
    assert "liver" in page


# --- slices to look at -----------------------------------------------------------------------------


def position_s() -> float:
    view = slicer.mrmlScene.GetSingletonNode("Red", "vtkMRMLSliceNode")
    to_ras = slicer.util.arrayFromVTKMatrix(view.GetSliceToRAS())
    return float(to_ras[:3, 2] @ to_ras[:3, 3])


def ticks(panel: Any) -> list[bool]:
    listed = panel.ui.doubtfulList
    return [listed.item(row).checkState() == qt.Qt.Checked for row in range(listed.count)]


def test_next_and_previous_slice_by_the_keyboard(shown: Any) -> None:
    ui, places = shown.ui, [place for _number, place in shown._result.result.doubtfulSlices()]
    keys = [
        button.shortcut.toString()
        for button in (ui.previousSliceButton, ui.nextSliceButton, ui.checkedSliceButton)
    ]
    assert keys == ["Alt+PgUp", "Alt+PgDown", "Alt+Return"]
    rows = []
    for button in [ui.nextSliceButton] * 5 + [ui.previousSliceButton] * 2:
        button.click()
        rows.append(ui.doubtfulList.currentRow)
        assert position_s() == pytest.approx(places[rows[-1]][2], abs=0.01)
    assert rows == [0, 1, 2, 3, 3, 2, 1]
    ui.doubtfulList.setCurrentRow(3)  # as the arrow keys do
    assert position_s() == pytest.approx(places[3][2], abs=0.01)


def test_checked_slices_are_counted_and_the_next_open_one_comes(shown: Any) -> None:
    ui, node = shown.ui, shown._parameterNode.outputSegmentation
    assert ui.doubtfulLabel.text == "Slices to look at, 4 of 4 left:"
    ui.checkedSliceButton.click()  # nothing is chosen yet: to the first
    assert (ui.doubtfulList.currentRow, ticks(shown)) == (0, [False] * 4)
    ui.doubtfulList.item(1).setCheckState(qt.Qt.Checked)  # by the mouse
    ui.checkedSliceButton.click()
    assert (ui.doubtfulList.currentRow, ticks(shown)) == (2, [True, True, False, False])
    assert review.checked(node) == {1, 4}
    assert ui.doubtfulLabel.text == "Slices to look at, 2 of 4 left:"
    ui.doubtfulList.item(1).setCheckState(qt.Qt.Unchecked)
    assert review.checked(node) == {1}
    ui.doubtfulList.setCurrentRow(3)
    for row in (1, 2, 2):  # on from the start, and stays at the end
        ui.checkedSliceButton.click()
        assert ui.doubtfulList.currentRow == row
    assert ticks(shown) == [True] * 4
    assert ui.doubtfulLabel.text == "Slices to look at, all checked:"


def test_ticks_are_no_edit_of_the_segmentation(shown: Any) -> None:
    shown.ui.doubtfulList.item(1).setCheckState(qt.Qt.Checked)
    assert not shown._result.result.undo.edited


def test_review_is_taken_up_again_in_another_sitting(shown: Any, ct: Any, tmp_path: Path) -> None:
    """The scene is saved as .mrb, Slicer closed, and the scene opened by another panel."""
    ui = shown.ui
    ui.doubtfulList.item(0).setCheckState(qt.Qt.Checked)
    ui.doubtfulList.item(2).setCheckState(qt.Qt.Checked)
    texts = (ui.trustLabel.text, ui.noticesLabel.text)
    table = [[ui.volumeTable.item(row, column).text() for column in range(4)] for row in range(2)]
    assert slicer.mrmlScene.WriteToMRB(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear(0)
    assert not visible(ui.resultCollapsibleButton)
    standin.read_mrb(tmp_path / "scene.mrb")
    standin.enter_module(shown)
    assert visible(ui.resultCollapsibleButton)
    assert ticks(shown) == [True, False, True, False]
    assert ui.doubtfulLabel.text == "Slices to look at, 2 of 4 left:"
    assert (ui.trustLabel.text, ui.noticesLabel.text) == texts
    assert [[ui.volumeTable.item(row, column).text() for column in range(4)] for row in range(2)] == table
    assert shown._result.result.volume is slicer.util.getNode("CT")
    for widget in (ui.undoButton, ui.reconstructionCheckBox, ui.openReportButton, ui.saveReportButton):
        assert not widget.enabled
    assert "Run again" in ui.reconstructionCheckBox.toolTip
    ui.doubtfulList.setCurrentRow(0)
    ui.checkedSliceButton.click()
    assert ui.doubtfulList.currentRow == 1
    ui.checkedSliceButton.click()
    node = shown._parameterNode.outputSegmentation
    assert review.checked(node) == {1, 4, 7}
    ui.undoButton.click()  # greyed out
    assert node.GetScene() is not None


def test_what_is_remembered_of_one_patient_is_not_shown_for_another(shown: Any, ct: Any) -> None:
    """The Segment Editor may give a segmentation to another volume: its trust and mL stay those of the first."""
    node, other = shown._parameterNode.outputSegmentation, make_volume(np.zeros((3, 4, 5), np.int16), "other")
    assert review.load(node) is not None
    node.SetReferenceImageGeometryParameterFromVolumeNode(other)
    assert review.load(node) is None
    shown._result.forget()
    shown.ui.inputSelector.setCurrentNode(other)
    shown.ui.outputSelector.setCurrentNode(node)
    assert not visible(shown.ui.resultCollapsibleButton)
    node.SetReferenceImageGeometryParameterFromVolumeNode(ct)
    assert review.load(node) is not None


def test_another_segmentation_is_reviewed_and_the_last_run_come_back_to(
    shown: Any, ct: Any, fake_worker: FakeWorker
) -> None:
    ui, first = shown.ui, shown._parameterNode.outputSegmentation
    ui.doubtfulList.item(3).setCheckState(qt.Qt.Checked)
    ui.outputSelector.setCurrentNode(None)
    apply(shown)
    second = shown._parameterNode.outputSegmentation
    assert second is not first
    assert ticks(shown) == [False] * 4
    ui.outputSelector.setCurrentNode(first)
    assert ticks(shown) == [False, False, False, True]
    assert ui.resultCollapsibleButton.text == "Result of an earlier run: CT"
    assert not ui.undoButton.enabled
    ui.outputSelector.setCurrentNode(second)
    assert ui.resultCollapsibleButton.text == "Result: CT"
    assert ui.undoButton.enabled
    ui.reconstructionCheckBox.setChecked(True)  # its files are still there
    assert not errors()
    ui.undoButton.click()
    assert second.GetScene() is None
    np.testing.assert_array_equal(voxels(first, 0, ct), slicer.util.arrayFromVolume(ct) > 0)


@pytest.mark.parametrize("change", [None, "", "{", "[]", '{"case": {}}', "no labels", "not numbers"])
def test_a_memory_that_is_not_ours_shows_nothing(shown: Any, change: str | None) -> None:
    node = shown._parameterNode.outputSegmentation
    written = json.loads(node.GetAttribute("SemanticGAN.run"))
    if change == "no labels":
        change = json.dumps(written | {"labels": []})
    elif change == "not numbers":
        written["case"]["doubtful"] = [["one", [1, 2, 3]]]
        change = json.dumps(written)
    node.SetAttribute("SemanticGAN.run", change)
    shown._result.forget()
    shown.ui.outputSelector.setCurrentNode(None)
    shown.ui.outputSelector.setCurrentNode(node)
    assert shown._result.result is None
    assert not visible(shown.ui.resultCollapsibleButton)


def test_a_removed_segment_stays_in_the_table_of_what_the_model_drew(shown: Any) -> None:
    node = shown._parameterNode.outputSegmentation
    node.GetSegmentation().RemoveSegment(shown._result.result.segmentIds[1])
    shown.ui.copyTableButton.click()
    assert "CT\tabsent\t0.000" in slicer.app.clipboard().text()


# --- options ---------------------------------------------------------------------------------------


def test_options_of_segments_reach_the_result(panel: Any, ct: Any, fake_worker: FakeWorker) -> None:
    fake_worker(panel, "good")
    panel.ui.show3DCheckBox.setChecked(True)
    panel.ui.standardNamesCheckBox.setChecked(True)
    assert panel._parameterNode.show3D
    assert panel._options().standardNames
    apply(panel)
    segmentation = panel._parameterNode.outputSegmentation.GetSegmentation()
    assert segmentation.ContainsRepresentation("Closed surface")
    assert panel.ui.show3DButton.checked
