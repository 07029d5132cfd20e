"""The panel as a person uses it, over stand-in widgets, real Qt and a real scene. Never inside Slicer."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
from helpers import MODULE, ROOT, make_volume, voxels

import standin
from SemanticGANSlicerLib import models, volumes

FakeWorker = Callable[..., None]


def wait(panel: Any, seconds: float = 120) -> None:
    standin.pump(lambda: not panel.logic.isRunning() and panel._maker is None, seconds)


def apply(panel: Any, seconds: float = 120) -> None:
    panel.ui.applyButton.click()
    wait(panel, seconds)


def errors() -> list[str]:
    return [message.text for message in slicer.app.messages if message.kind == "error"]


def shown(widget: Any) -> bool:
    """Whether a widget would be seen if the panel were."""
    return not widget.isHidden()


# --- before a run ----------------------------------------------------------------------------------


def test_module_says_what_it_is(panel: Any) -> None:
    meta = slicer.modules.semanticganslicer
    assert meta.title == "Segment with SemanticGAN"
    assert meta.categories == ["Segmentation"]
    for words in ("Research use only", "docs/slicer.md"):
        assert words in meta.helpText
    assert "CVPR 2021" in meta.acknowledgementText


def test_nothing_can_be_applied_without_a_volume(panel: Any) -> None:
    assert not panel.ui.applyButton.enabled
    assert "Select a volume" in panel.ui.applyButton.toolTip
    assert not panel.ui.cancelButton.enabled
    assert not shown(panel.ui.resultCollapsibleButton)
    assert not shown(panel.ui.installFrame)


def test_defaults_are_right_and_folded_away(panel: Any) -> None:
    ui = panel.ui
    assert ui.optionsCollapsibleButton.collapsed
    boxes = (ui.deviceComboBox, ui.qualityComboBox, ui.reconstructionComboBox, ui.piecesComboBox)
    assert [box.currentText for box in boxes] == ["auto", "standard", "auto", "auto"]
    assert not ui.regionCheckBox.checked
    assert ui.outputSelector.currentNode() is None
    assert ui.modelComboBox.currentText == "phantom-ct-liver"
    assert "Apache-2.0" in ui.modelDetailsLabel.text


def test_volume_in_the_scene_is_taken(ct: Any, panel: Any) -> None:
    assert panel._parameterNode.inputVolume is ct
    assert panel.ui.inputSelector.currentNode() is ct
    assert panel.ui.applyButton.enabled


def test_volume_in_view_is_taken_before_others(ct: Any) -> None:
    make_volume(np.zeros((2, 4, 5), np.uint8), "mask", "vtkMRMLLabelMapVolumeNode")
    seen = make_volume(np.zeros((2, 4, 5), np.int16), "seen")
    slicer.util.setSliceViewerLayers(background=seen)
    _module, panel, _meta = standin.load_module(MODULE)
    assert panel._parameterNode.inputVolume is seen
    standin.unload(panel)


def test_label_maps_are_not_taken(scene: Any) -> None:
    make_volume(np.zeros((2, 4, 5), np.uint8), "mask", "vtkMRMLLabelMapVolumeNode")
    assert volumes.volumeInView() is None
    image = make_volume(np.zeros((2, 4, 5), np.int16), "image")
    assert volumes.volumeInView() is image


def test_colour_pictures_and_only_images_can_be_chosen(panel: Any) -> None:
    photo = make_volume(np.zeros((1, 4, 5, 3), np.uint8), "photo", "vtkMRMLVectorVolumeNode")
    make_volume(np.zeros((2, 4, 5), np.uint8), "mask", "vtkMRMLLabelMapVolumeNode")
    panel.ui.inputSelector.setCurrentNode(photo)
    assert panel._parameterNode.inputVolume is photo
    box = panel.ui.inputSelector
    assert [box.nodeFromIndex(index).GetName() for index in range(box.nodeCount())] == ["photo"]


def test_parameters_and_widgets_follow_each_other(panel: Any, ct: Any) -> None:
    ui, p = panel.ui, panel.logic.getParameterNode()
    ui.qualityComboBox.setCurrentText("careful")
    ui.deviceComboBox.setCurrentText("cpu")
    ui.piecesComboBox.setCurrentText("all")
    assert (p.quality, p.device, p.pieces) == ("careful", "cpu", "all")
    p.quality, p.pieces = "fast", "largest"
    assert (ui.qualityComboBox.currentText, ui.piecesComboBox.currentText) == ("fast", "largest")
    with pytest.raises(ValueError, match="slow"):
        p.quality = "slow"


def test_parameters_outlive_the_panel(ct: Any) -> None:
    _module, panel, _meta = standin.load_module(MODULE)
    panel.ui.qualityComboBox.setCurrentText("fast")
    panel.ui.batchInputPathLineEdit.setCurrentPath("/data/Größe")
    standin.exit_module(panel)
    standin.enter_module(panel)
    assert panel.ui.qualityComboBox.currentText == "fast"
    standin.unload(panel)
    _module, again, _meta = standin.load_module(MODULE)
    assert again.ui.qualityComboBox.currentText == "fast"
    assert again.ui.batchInputPathLineEdit.currentPath == "/data/Größe"
    standin.unload(again)


def test_region_starts_with_the_whole_volume(panel: Any, ct: Any) -> None:
    ui = panel.ui
    assert not ui.regionFromSpinBox.enabled
    ui.regionCheckBox.setChecked(True)
    assert ui.regionFromSpinBox.enabled
    positions = volumes.slicePositions(ct)
    assert panel._parameterNode.regionFrom == pytest.approx(positions[0], abs=0.06)
    assert panel._parameterNode.regionTo == pytest.approx(positions[-1], abs=0.06)
    red = slicer.mrmlScene.GetSingletonNode("Red", "vtkMRMLSliceNode")
    red.JumpSlice(0.0, 0.0, 43.5)
    ui.regionFromHereButton.click()
    assert panel._options().region[0] == pytest.approx(43.5)
    ui.regionCheckBox.setChecked(False)
    assert panel._options().region is None


def test_model_is_opened_remembered_and_chosen(panel: Any, tmp_path: Path) -> None:
    import shutil

    bundle = tmp_path / "runs" / "my liver Größe" / "bundle"
    shutil.copytree(ROOT / "sgan_core" / "models" / "phantom-ct-liver", bundle)
    panel._openModel(str(bundle.parent))  # the folder that training wrote to
    assert panel._options().model == str(bundle)
    assert panel._parameterNode.model == str(bundle)
    assert str(bundle) in panel.ui.modelComboBox.currentText
    panel.ui.modelComboBox.setCurrentIndex(panel.ui.modelComboBox.findText("phantom-ct-liver"))
    assert panel._options().model == "phantom-ct-liver"
    panel._listModels()  # as at the next start
    assert panel.ui.modelComboBox.count == len(models.knownModels()) + 1


def test_a_student_alone_has_no_reconstruction_to_choose(panel: Any, ct: Any, tmp_path: Path) -> None:
    import json
    import shutil

    ui, bundle = panel.ui, tmp_path / "bundle"
    shutil.copytree(ROOT / "sgan_core" / "models" / "phantom-ct-liver" / "configs", bundle / "configs")
    file = bundle / "configs" / "semanticgan.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"student_alone": True}))
    usual = ui.reconstructionComboBox.toolTip
    ui.reconstructionComboBox.setCurrentText("paper")
    panel._openModel(str(bundle))
    assert not ui.reconstructionComboBox.enabled
    assert "student alone" in ui.reconstructionComboBox.toolTip
    assert "cannot reconstruct nor judge" in ui.modelDetailsLabel.text
    assert panel._options().studentAlone
    ui.modelComboBox.setCurrentIndex(ui.modelComboBox.findText("phantom-ct-liver"))
    assert ui.reconstructionComboBox.enabled
    assert ui.reconstructionComboBox.toolTip == usual
    assert not panel._options().studentAlone


def test_what_is_no_model_is_explained_and_not_remembered(panel: Any, tmp_path: Path) -> None:
    panel._openModel(str(tmp_path))
    assert "is not a model of SemanticGAN" in errors()[0]
    assert panel.ui.modelComboBox.count == len(models.knownModels())
    panel._openModel("")  # the person left the dialog
    assert len(errors()) == 1


def test_model_of_another_computer_is_told(panel: Any, ct: Any) -> None:
    panel._parameterNode.model = "/elsewhere/liver"
    assert "/elsewhere/liver is not on this computer" in panel.ui.modelDetailsLabel.text


def test_device_is_told_when_the_options_are_opened(panel: Any) -> None:
    assert not shown(panel.ui.deviceFoundLabel)
    panel.ui.optionsCollapsibleButton.collapsed = False
    assert shown(panel.ui.deviceFoundLabel)
    standin.pump(lambda: "looking" not in panel.ui.deviceFoundLabel.text, 60)
    assert panel.ui.deviceFoundLabel.text.startswith("auto: ")
    assert "did not answer" not in panel.ui.deviceFoundLabel.text


def test_a_model_that_was_trained_on_something_else_is_told_in_words(panel: Any, ct: Any) -> None:
    hint = panel.ui.hintLabel
    assert not shown(hint)  # the volume holds air of CT, the model is of CT
    mr = make_volume(np.random.default_rng(0).integers(0, 900, (6, 8, 8)).astype(np.int16), "T1")
    panel.ui.inputSelector.setCurrentNode(mr)
    assert shown(hint)
    assert hint.text.startswith("T1 looks like MR; the model was trained on CT.")
    assert panel.ui.applyButton.enabled  # it may be tried
    header = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    header.SetItemAttribute(
        header.GetItemByDataNode(mr), "DICOM.Modality", "CT"
    )  # calibrated to positive values
    panel._updateButtons()
    assert not shown(hint)
    header.SetItemAttribute(header.GetItemByDataNode(ct), "DICOM.Modality", "PT")
    panel.ui.inputSelector.setCurrentNode(ct)
    assert hint.text.startswith("CT is PT, as its DICOM header says; the model was trained on CT.")
    film = make_volume(np.zeros((1, 8, 8), np.uint16), "chest")
    panel.ui.inputSelector.setCurrentNode(film)
    assert hint.text.startswith("chest looks like X-ray")


@pytest.mark.parametrize(
    ("darkest", "slices", "expected"),
    [(-1024, 5, "ct"), (-300, 5, "ct"), (-299, 5, ""), (0, 5, "mr"), (-1024, 1, "xray")],
)
def test_look_of_a_volume(scene: Any, darkest: int, slices: int, expected: str) -> None:
    array = np.full((slices, 8, 8), 100, np.int16)
    array[0, 0, 0] = darkest
    assert volumes.modality(make_volume(array)) == (expected, False)


# --- a run -----------------------------------------------------------------------------------------


def test_apply_shows_progress_then_the_result(panel: Any, ct: Any, fake_worker: FakeWorker) -> None:
    fake_worker(panel, "listens")
    ui = panel.ui
    ui.applyButton.click()
    assert not ui.applyButton.enabled
    assert ui.cancelButton.enabled
    assert not ui.batchRunButton.enabled
    standin.pump(lambda: ui.progressBar.maximum == 4)
    assert (ui.progressBar.value, shown(ui.progressBar)) == (1, True)
    assert ui.statusLabel.text == "Slice 1 to 2 of 12, step 3 of 30, about 75 s left"
    ui.cancelButton.click()
    wait(panel)
    assert ui.statusLabel.text == "Cancelled; the scene is as it was."
    assert ui.applyButton.enabled
    assert not shown(ui.progressBar)
    fake_worker(panel, "good")
    apply(panel)
    assert not errors()
    node = panel._parameterNode.outputSegmentation
    assert node.GetName() == "CT segmentation"
    np.testing.assert_array_equal(voxels(node, 0, ct), slicer.util.arrayFromVolume(ct) > 0)
    assert shown(ui.resultCollapsibleButton)
    assert re.search(r"Done in \d+ s: CT segmentation", ui.statusLabel.text)
    assert "a warning" in ui.noticesLabel.text
    assert "Please review" in ui.trustLabel.text
    assert "made up &lt;by a test&gt;" in ui.trustLabel.text
    table = [[ui.volumeTable.item(row, column).text() for column in range(3)] for row in range(2)]
    count = int((slicer.util.arrayFromVolume(ct) > 0).sum())
    assert table == [["bright", f"{count * 1.8 / 1000:.1f}", f"{count:,}"], ["absent", "0.0", "0"]]
    assert ui.applyButton.enabled
    assert not ui.cancelButton.enabled


def test_click_on_a_doubtful_slice_goes_there(panel: Any, ct: Any, fake_worker: FakeWorker) -> None:
    fake_worker(panel, "good")
    apply(panel)
    listed = panel.ui.doubtfulList
    assert [listed.item(row).text()[:9] for row in range(listed.count)] == [
        "Slice 1, ",
        "Slice 4, ",
        "Slice 7, ",
        "Slice 10,",
    ]
    listed.setCurrentRow(2)
    listed.itemClicked.emit(listed.item(2))
    centre = volumes.ijkToRas(ct) @ [19.5, 15.5, 6.0, 1.0]  # slice 7 counted from 1
    for name in ("Red", "Green", "Yellow"):
        view = slicer.mrmlScene.GetSingletonNode(name, "vtkMRMLSliceNode")
        to_ras = slicer.util.arrayFromVTKMatrix(view.GetSliceToRAS())
        normal = to_ras[:3, 2]
        assert normal @ to_ras[:3, 3] == pytest.approx(normal @ centre[:3], abs=0.01)


def test_reconstruction_fades_over_the_image(panel: Any, ct: Any, fake_worker: FakeWorker) -> None:
    fake_worker(panel, "good")
    apply(panel)
    ui = panel.ui
    assert not ui.fadeSlider.enabled
    before = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")
    ui.reconstructionCheckBox.setChecked(True)
    ui.fadeSlider.setValue(80)
    (node,) = [
        n
        for n in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
        if n.GetName() == "CT reconstruction"
    ]
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(node), slicer.util.arrayFromVolume(ct) + 7)
    for view in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        assert (view.GetBackgroundVolumeID(), view.GetForegroundVolumeID()) == (ct.GetID(), node.GetID())
        assert view.GetForegroundOpacity() == pytest.approx(0.8)
    ui.reconstructionCheckBox.setChecked(False)
    assert not slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")[0].GetForegroundVolumeID()
    ui.reconstructionCheckBox.setChecked(True)  # not added twice
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == before + 1


def test_a_result_without_a_reconstruction_has_none_to_compare(
    panel: Any, ct: Any, fake_worker: FakeWorker
) -> None:
    box = panel.ui.reconstructionCheckBox
    usual = box.toolTip
    fake_worker(panel, "student-alone")
    apply(panel)
    assert not box.enabled
    assert "student alone" in box.toolTip
    fake_worker(panel, "good")
    apply(panel)
    assert box.enabled
    assert box.toolTip == usual


def test_reconstruction_of_a_removed_volume_is_explained(
    panel: Any, ct: Any, fake_worker: FakeWorker
) -> None:
    fake_worker(panel, "good")
    apply(panel)
    slicer.mrmlScene.RemoveNode(ct)
    panel.ui.reconstructionCheckBox.setChecked(True)
    assert "nothing to compare with" in errors()[0]
    assert not panel.ui.reconstructionCheckBox.checked
    assert not panel.ui.fadeSlider.enabled


def test_run_again_updates_or_makes_a_new_one(panel: Any, ct: Any, fake_worker: FakeWorker) -> None:
    fake_worker(panel, "good")
    apply(panel)
    first = panel._parameterNode.outputSegmentation
    apply(panel)
    assert panel._parameterNode.outputSegmentation is first
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 1
    panel.ui.outputSelector.setCurrentNode(None)  # "Create new segmentation"
    apply(panel)
    second = panel._parameterNode.outputSegmentation
    assert second is not first
    assert second.GetName() == "CT segmentation_1"


def test_another_volume_does_not_overwrite_the_segmentation_of_the_first(
    panel: Any, ct: Any, fake_worker: FakeWorker
) -> None:
    fake_worker(panel, "good")
    apply(panel)
    first = panel._parameterNode.outputSegmentation
    other = make_volume(np.arange(60, dtype=np.int16).reshape(3, 4, 5), "other")
    panel.ui.inputSelector.setCurrentNode(other)
    assert panel.ui.outputSelector.currentNode() is None  # "Create new segmentation"
    panel.ui.inputSelector.setCurrentNode(ct)
    panel.ui.outputSelector.setCurrentNode(first)  # back, by hand
    assert panel._parameterNode.outputSegmentation is first
    panel.ui.inputSelector.setCurrentNode(other)
    apply(panel)
    assert panel._parameterNode.outputSegmentation is not first
    np.testing.assert_array_equal(voxels(first, 0, ct), slicer.util.arrayFromVolume(ct) > 0)


def test_undo(panel: Any, ct: Any, fake_worker: FakeWorker) -> None:
    fake_worker(panel, "good")
    before = standin.leaves(slicer.mrmlScene)
    apply(panel)
    panel.ui.undoButton.click()
    assert standin.leaves(slicer.mrmlScene) == before
    assert not shown(panel.ui.resultCollapsibleButton)
    assert panel._parameterNode.outputSegmentation is None
    assert not slicer.app.messages


def test_undo_of_an_update_on_another_volume_gives_the_first_its_segmentation_back(
    panel: Any, ct: Any, fake_worker: FakeWorker
) -> None:
    fake_worker(panel, "good")
    apply(panel)
    node = panel._parameterNode.outputSegmentation
    role = node.GetReferenceImageGeometryReferenceRole()
    other = make_volume(np.arange(-30, 30, dtype=np.int16).reshape(3, 4, 5), "other")
    panel.ui.inputSelector.setCurrentNode(other)
    panel.ui.outputSelector.setCurrentNode(node)  # updated by hand
    apply(panel)
    assert panel._parameterNode.outputSegmentation is node
    assert node.GetNodeReference(role) is other
    panel.ui.undoButton.click()
    assert node.GetNodeReference(role) is ct  # DICOM export and the Segment Editor go by it
    np.testing.assert_array_equal(voxels(node, 0, ct), slicer.util.arrayFromVolume(ct) > 0)


def test_undo_asks_before_it_takes_edits_away(panel: Any, ct: Any, fake_worker: FakeWorker) -> None:
    fake_worker(panel, "good")
    apply(panel)
    node = panel._parameterNode.outputSegmentation
    node.GetSegmentation().AddEmptySegment("mine")
    slicer.app.answers = [False, True]
    panel.ui.undoButton.click()
    assert node.GetSegmentation().GetSegment("mine") is not None
    panel.ui.undoButton.click()
    assert node.GetScene() is None
    assert [message.kind for message in slicer.app.messages] == ["confirmOkCancel"] * 2


def test_segment_editor_opens_with_segmentation_and_volume(
    panel: Any, ct: Any, fake_worker: FakeWorker
) -> None:
    fake_worker(panel, "good")
    apply(panel)
    for _ in range(2):  # twice: one node only
        panel.ui.editButton.click()
    (editor,) = slicer.util.getNodesByClass("vtkMRMLSegmentEditorNode")
    assert editor.GetSingletonTag() == "SegmentEditor"
    assert editor.GetSegmentationNode() is panel._parameterNode.outputSegmentation
    assert editor.GetSourceVolumeNode() is ct
    assert slicer.app.selected_modules == ["SegmentEditor", "SegmentEditor"]


@pytest.mark.parametrize("mode", ["error", "killed", "garbage", "silent", "wrong-size"])
def test_failure_is_told_once_and_the_panel_is_usable_again(
    panel: Any, ct: Any, fake_worker: FakeWorker, mode: str
) -> None:
    fake_worker(panel, mode)
    before = standin.leaves(slicer.mrmlScene)
    apply(panel)
    (text,) = errors()
    assert text.startswith("The segmentation of CT failed.")
    assert panel.ui.statusLabel.text == "Failed; the scene is as it was."
    assert standin.leaves(slicer.mrmlScene) == before
    fake_worker(panel, "good")
    apply(panel)
    assert len(errors()) == 1
    assert panel._parameterNode.outputSegmentation is not None


def test_log_says_what_the_engine_says(panel: Any, ct: Any, fake_worker: FakeWorker) -> None:
    log = panel.ui.logText
    assert panel.ui.logCollapsibleButton.collapsed
    fake_worker(panel, "error")
    apply(panel)
    fake_worker(panel, "good")
    apply(panel)
    lines = log.plainText.splitlines()
    assert all(len(line.split(" ", 1)[0]) == 8 for line in lines)  # the time of day
    said = [line.split(" ", 1)[1] for line in lines]
    assert said.index("CT, model phantom-ct-liver") < said.index("Segmenting with fake on none")
    for line in ("a warning on the way", "scan.nii: broken. Mend it.", "done", "a warning"):
        assert line in said
    assert not any("step 3 of 30" in line for line in said)  # steps of the optimisation would fill it


def test_errors_name_the_volume_and_not_a_file_that_nobody_knows(
    panel: Any, ct: Any, fake_worker: FakeWorker
) -> None:
    fake_worker(panel, "names-its-file")
    apply(panel)
    (text,) = errors()
    assert text == "The segmentation of CT failed.\n\nCT: too dark."


def test_full_disk_is_told_with_its_folder_and_what_to_do(
    panel: Any, ct: Any, fake_worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def full(volume: Any, folder: str) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")
        yield

    def no_folder(**options: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    fake_worker(panel, "good")
    for place, name, instead in ((volumes, "writeInput", full), (tempfile, "mkdtemp", no_folder)):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, instead)
            apply(panel)
        text = errors()[-1]
        assert f"The disk is full: {slicer.app.temporaryPath} needs room" in text
        assert "Free some space" in text
        assert panel.ui.applyButton.enabled


def test_done_counts_from_apply(
    panel: Any, ct: Any, fake_worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from SemanticGANSlicerLib import widget

    class Clock:
        strftime = staticmethod(time.strftime)
        now = 100.0

        @classmethod
        def monotonic(cls) -> float:
            return cls.now

    monkeypatch.setattr(widget, "time", Clock)
    fake_worker(panel, "good")
    panel.ui.applyButton.click()
    Clock.now = 172.0  # writing the volume, starting Python and loading the model are waited for, too
    wait(panel)
    assert panel.ui.statusLabel.text.startswith("Done in 72 s: CT segmentation")


def test_cancel_of_a_run(panel: Any, ct: Any, fake_worker: FakeWorker) -> None:
    fake_worker(panel, "listens")
    before = standin.leaves(slicer.mrmlScene)
    panel.ui.applyButton.click()
    standin.pump(lambda: "Slice 1 to 2" in panel.ui.statusLabel.text)
    assert panel.ui.cancelButton.enabled
    panel.ui.cancelButton.click()
    assert panel.ui.statusLabel.text == "Cancelling..."
    wait(panel, 5)
    assert panel.ui.statusLabel.text == "Cancelled; the scene is as it was."
    assert standin.leaves(slicer.mrmlScene) == before
    assert (panel.ui.applyButton.enabled, panel.ui.cancelButton.enabled) == (True, False)
    assert not slicer.app.messages


def run_folders() -> list[str]:
    """What runs keep on the disk, for the reconstruction."""
    return [path.name for path in Path(slicer.app.temporaryPath).iterdir() if path.name.startswith("sgan-")]


def test_files_of_a_run_are_kept_as_long_as_its_result_is_shown(
    panel: Any, ct: Any, fake_worker: FakeWorker
) -> None:
    fake_worker(panel, "good")
    apply(panel)
    first = run_folders()
    apply(panel)
    second = run_folders()
    assert len(first) == len(second) == 1
    assert first != second
    panel.ui.undoButton.click()
    assert run_folders() == []
    apply(panel)
    slicer.mrmlScene.Clear(0)
    assert run_folders() == []


def test_failed_run_keeps_the_former_result_at_hand(panel: Any, ct: Any, fake_worker: FakeWorker) -> None:
    fake_worker(panel, "good")
    apply(panel)
    fake_worker(panel, "error")
    apply(panel)
    assert shown(panel.ui.resultCollapsibleButton)
    panel.ui.reconstructionCheckBox.setChecked(True)  # its files are still there
    assert len(errors()) == 1


def test_wrong_volume_is_explained(panel: Any) -> None:
    empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "nothing")
    panel.ui.inputSelector.setCurrentNode(empty)
    panel.ui.regionCheckBox.setChecked(True)  # no positions to propose
    panel.ui.applyButton.click()
    assert "nothing holds no image" in errors()[0]
    assert not panel.logic.isRunning()
    assert panel.ui.applyButton.enabled


def test_transformed_volume_is_segmented_as_a_hardened_copy_or_not(
    panel: Any, ct: Any, fake_worker: FakeWorker
) -> None:
    fake_worker(panel, "good")
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "registration")
    ct.SetAndObserveTransformNodeID(transform.GetID())
    before = standin.leaves(slicer.mrmlScene)
    slicer.app.answers = [False]
    panel.ui.applyButton.click()
    assert not panel.logic.isRunning()
    assert standin.leaves(slicer.mrmlScene) == before
    assert "under the transform registration" in slicer.app.messages[0].text
    for mode in ("error", "good"):
        fake_worker(panel, mode)
        apply(panel)
        names = [node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")]
        if mode == "error":  # the copy is gone again
            assert standin.leaves(slicer.mrmlScene) == before
        else:
            assert names == ["CT", "CT transformed"]
    node = panel._parameterNode.outputSegmentation
    assert node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole()).GetName() == "CT transformed"
    assert panel._parameterNode.inputVolume.GetName() == "CT transformed"  # the next run needs no other copy


# --- closing ---------------------------------------------------------------------------------------


def test_scene_closed_during_a_run(panel: Any, ct: Any, fake_worker: FakeWorker) -> None:
    fake_worker(panel, "deaf")
    panel.ui.applyButton.click()
    standin.pump(lambda: "Segmenting with" in panel.ui.statusLabel.text)
    began = time.monotonic()
    slicer.mrmlScene.Clear(0)
    assert time.monotonic() - began < 2
    assert not panel.logic.isRunning()
    assert not panel.ui.applyButton.enabled
    assert not errors()
    make_volume(np.arange(60, dtype=np.int16).reshape(3, 4, 5), "again")
    panel.ui.inputSelector.setCurrentNode(slicer.util.getNode("again"))
    fake_worker(panel, "good")
    apply(panel)
    assert panel._parameterNode.outputSegmentation.GetName() == "again segmentation"


def test_scene_closed_with_a_result(panel: Any, ct: Any, fake_worker: FakeWorker) -> None:
    fake_worker(panel, "good")
    apply(panel)
    slicer.mrmlScene.Clear(0)
    assert not shown(panel.ui.resultCollapsibleButton)
    assert not errors()


def test_slicer_closed_during_a_run(ct: Any, fake_worker: FakeWorker) -> None:
    _module, panel, _meta = standin.load_module(MODULE)
    fake_worker(panel, "deaf")
    panel.ui.applyButton.click()
    standin.pump(lambda: "Segmenting with" in panel.ui.statusLabel.text)
    pid = panel.logic._run._worker.pid()
    began = time.monotonic()
    standin.unload(panel)
    assert time.monotonic() - began < 2
    standin.pump(
        lambda: not Path(f"/proc/{pid}").exists() or b"Z" in Path(f"/proc/{pid}/stat").read_bytes(), 2
    )


def test_run_goes_on_while_another_module_is_shown(panel: Any, ct: Any, fake_worker: FakeWorker) -> None:
    fake_worker(panel, "good")
    panel.ui.applyButton.click()
    standin.exit_module(panel)
    wait(panel)
    standin.enter_module(panel)
    assert panel.ui.outputSelector.currentNode().GetName() == "CT segmentation"
    assert shown(panel.ui.resultCollapsibleButton)


# --- samples ---------------------------------------------------------------------------------------


def test_sample_in_one_click_then_from_the_cache(panel: Any) -> None:
    panel.ui.sampleMrButton.click()
    assert not panel.ui.sampleCtButton.enabled
    assert panel.ui.cancelButton.enabled
    wait(panel)
    node = panel._parameterNode.inputVolume
    assert node.GetName() == "SemanticGANPhantomMR"
    assert "Press Apply" in panel.ui.statusLabel.text
    from sgan_core.phantom import TEST_SEEDS, make_case

    expected = make_case(TEST_SEEDS, "t1_in")  # a patient that no model was trained on
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(node), expected.image.array.transpose())
    np.testing.assert_allclose(volumes.ijkToRas(node), expected.image.grid.affine, atol=1e-3)
    began = time.monotonic()
    panel.ui.sampleMrButton.click()
    wait(panel)
    assert time.monotonic() - began < 1  # loaded, not made
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 2


def test_sample_can_be_cancelled(panel: Any) -> None:
    for file in Path(slicer.app.cachePath).rglob("*.nii.gz"):
        file.unlink()
    panel.ui.sampleCtButton.click()
    panel.ui.cancelButton.click()
    wait(panel, 5)
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 0
    assert panel.ui.sampleCtButton.enabled
    assert not list(Path(slicer.app.cachePath).rglob("*.making"))
    assert panel.ui.statusLabel.text == "Cancelled; the scene is as it was."
    assert not slicer.app.messages


def test_scene_closed_while_a_sample_is_made(panel: Any) -> None:
    for file in Path(slicer.app.cachePath).rglob("*.nii.gz"):
        file.unlink()
    panel.ui.sampleCtButton.click()
    slicer.mrmlScene.Clear(0)
    assert panel._maker is None
    end = time.monotonic() + 1
    standin.pump(lambda: time.monotonic() > end)  # nothing comes after
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 0
    assert not list(Path(slicer.app.cachePath).rglob("*.making"))
    assert not slicer.app.messages


def test_samples_are_registered_with_sample_data(panel: Any) -> None:
    slicer.app.startup()
    standin.press_sample("SemanticGANPhantomCT")
    (node,) = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
    assert node.GetName() == "SemanticGANPhantomCT"
    assert node.GetDisplayNode().GetWindow() == 400


# --- the rules of the house ------------------------------------------------------------------------


def test_the_window_never_imports_torch(tmp_path: Path) -> None:
    """A whole fast run in a process of its own: tests/conftest.py imports torch into this one."""
    code = """
import sys
sys.path[:0] = sys.argv[1:3]
import standin, slicer, numpy as np
standin.new_scene()
from conftest_free import box
panel = standin.load_module(sys.argv[3])[1]
node = box()
panel.ui.inputSelector.setCurrentNode(node)
panel.ui.qualityComboBox.setCurrentText("fast")
panel.ui.applyButton.click()
standin.pump(lambda: not panel.logic.isRunning(), 120)
assert panel._result.result is not None, slicer.app.messages
panel.ui.reconstructionCheckBox.setChecked(True)
bad = sorted({name.split(".")[0] for name in sys.modules} & {"torch", "monai", "sgan_core", "sgan_datasets"})
standin.unload(panel)
sys.exit(f"imported: {bad}" if bad else 0)
"""
    (tmp_path / "conftest_free.py").write_text(
        "import numpy as np, slicer\n"
        "def box():\n"
        "    node = slicer.mrmlScene.AddNewNodeByClass('vtkMRMLScalarVolumeNode', 'box')\n"
        "    array = np.full((4, 32, 32), -1000, np.int16); array[:, 8:24, 8:24] = 60\n"
        "    slicer.util.updateVolumeFromArray(node, array)\n"
        "    return node\n"
    )
    arguments = [str(ROOT / "tests" / "slicer"), str(tmp_path), str(MODULE)]
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]


def test_strings_are_translated(ct: Any) -> None:
    slicer.app.translations["Segment {name}."] = "{name} segmentieren."
    _module, panel, _meta = standin.load_module(MODULE)
    assert panel.ui.applyButton.toolTip == "CT segmentieren."
    standin.unload(panel)


def test_self_test_of_the_module(panel: Any) -> None:
    """The file that Slicer's test driver runs."""
    import importlib.util
    import unittest

    file = ROOT / "SemanticGANSlicer" / "Testing" / "Python" / "SemanticGANSlicerSelfTest.py"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result = unittest.TestResult()
    unittest.TestLoader().loadTestsFromModule(module).run(result)
    assert result.testsRun == 1
    assert result.wasSuccessful(), result.errors + result.failures
