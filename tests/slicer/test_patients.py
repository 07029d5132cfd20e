"""Never one patient's result under another's name: whatever is pressed, in whatever order, during a run.

The engine is in this process here and ends when the test says so, so that everything can happen in between.
"""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_worker as engine
import numpy as np
import pytest
import slicer
import vtk
from helpers import MODULE, make_volume, voxels
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import standin
from SemanticGANSlicerLib import importer, process, volumes
from SemanticGANSlicerLib import logic as logic_module


class Engine:
    """In the place of ``process.Worker``: segments when ``finish`` is called."""

    running: Engine | None = None

    def __init__(self, on_event: Callable[..., None], on_finished: Callable[..., None], **_more: Any) -> None:
        self._on_event, self._on_finished = on_event, on_finished
        self._ended = False

    def start(self, _program: str, arguments: list[str]) -> None:
        Engine.running = self
        place = arguments.index("--output")
        self._source, self._output = Path(str(arguments[place - 1])), Path(str(arguments[place + 1]))
        self._on_event({"event": "start", "model": "fake", "device": "none", "labels": engine.LABELS})

    def isRunning(self) -> bool:
        return not self._ended

    def cancel(self) -> None:
        self._end(process.Outcome(process.CANCELLED))

    def abandon(self) -> None:
        self._ended, Engine.running = True, None

    def finish(self) -> None:
        """The result is there; it is read between events."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "say", lambda **event: self._on_event(event))
            engine.segment(self._source, self._output, reconstructs=False)
        self._end(process.Outcome(process.DONE))

    def _end(self, outcome: process.Outcome) -> None:
        if not self._ended:
            self._ended, Engine.running = True, None
            self._on_finished(outcome)


@pytest.fixture(autouse=True)
def engine_in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logic_module.process, "Worker", Engine)
    yield
    Engine.running = None


SHAPE = (4, 8, 8)


def patient(number: int, name: str) -> Any:
    """A volume with a bright place that no other patient has; the geometry is the same."""
    array = np.full(SHAPE, -1000, np.int16)
    array[1:3, number : number + 2, 2:6] = 60
    return make_volume(array, name)


def press_apply(panel: Any) -> None:
    """Up to the run of the engine: the volume is written between events."""
    panel.ui.applyButton.click()
    standin.pump(lambda: Engine.running is not None or not panel.logic.isRunning())


def let_finish(panel: Any) -> None:
    """Up to the result in the scene."""
    assert Engine.running is not None
    Engine.running.finish()
    standin.pump(lambda: not panel.logic.isRunning())


def segmentations() -> list[Any]:
    return list(slicer.util.getNodesByClass("vtkMRMLSegmentationNode"))


def computed_from(segmentation: Any, patients: list[Any]) -> Any:
    """The patient whose bright place the segmentation shows; None when nothing was drawn into it."""
    if not segmentation.GetSegmentation().GetNumberOfSegments():
        return None
    mask = voxels(segmentation, 0, patients[0])
    (found,) = [one for one in patients if (mask == (slicer.util.arrayFromVolume(one) > 0)).all()]
    return found


def questions() -> list[str]:
    return [message.text for message in slicer.app.messages if message.kind == "confirmOkCancel"]


# --- single stories ---------------------------------------------------------------------------------


def test_another_patient_is_chosen_during_the_run(panel: Any) -> None:
    first, second = patient(0, "Anna"), patient(3, "Berta")
    panel.ui.inputSelector.setCurrentNode(first)
    press_apply(panel)
    panel.ui.inputSelector.setCurrentNode(second)
    slicer.util.setSliceViewerLayers(background=second)
    let_finish(panel)
    (segmentation,) = segmentations()
    assert segmentation.GetName() == "Anna segmentation"
    assert volumes.drawnOn(segmentation) is first
    assert panel._parameterNode.outputSegmentation is None  # the next run is Berta's
    assert panel._parameterNode.inputVolume is second
    assert volumes.volumeInView() is second  # who looks at Berta goes on looking at her
    press_apply(panel)
    let_finish(panel)
    assert sorted(node.GetName() for node in segmentations()) == ["Anna segmentation", "Berta segmentation"]
    assert computed_from(segmentation, [first, second]) is first


def test_the_result_of_the_patient_that_is_still_chosen_is_chosen_too(panel: Any) -> None:
    first, _second = patient(0, "Anna"), patient(3, "Berta")
    panel.ui.inputSelector.setCurrentNode(first)
    press_apply(panel)
    let_finish(panel)
    assert panel._parameterNode.outputSegmentation is segmentations()[0]
    assert panel.ui.outputSelector.currentNode() is segmentations()[0]


def test_segmentation_of_another_patient_is_asked_about_by_name(panel: Any) -> None:
    first, second = patient(0, "Anna"), patient(3, "Berta")
    panel.ui.inputSelector.setCurrentNode(first)
    press_apply(panel)
    let_finish(panel)
    (segmentation,) = segmentations()
    panel.ui.inputSelector.setCurrentNode(second)
    panel.ui.outputSelector.setCurrentNode(segmentation)
    slicer.app.answers = [False, True]
    press_apply(panel)
    (question,) = questions()
    assert "Anna segmentation is a segmentation of Anna." in question
    assert "segment Berta into it" in question
    assert not panel.logic.isRunning()
    assert computed_from(segmentation, [first, second]) is first
    press_apply(panel)
    let_finish(panel)
    assert volumes.drawnOn(segmentation) is second
    assert computed_from(segmentation, [first, second]) is second


def test_segmentation_of_an_unknown_volume_is_asked_about(panel: Any) -> None:
    only = patient(0, "Anna")
    panel.ui.inputSelector.setCurrentNode(only)
    foreign = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "from a file")
    panel.ui.outputSelector.setCurrentNode(foreign)
    press_apply(panel)  # empty: nothing can be lost or mistaken
    assert not questions()
    Engine.running.cancel()  # type: ignore[union-attr]
    foreign.GetSegmentation().AddEmptySegment("drawn elsewhere")
    slicer.app.answers = [False]
    press_apply(panel)
    assert "It is not known which volume from a file belongs to." in questions()[0]
    assert not panel.logic.isRunning()


def test_two_volumes_of_one_name_the_selector_counts(panel: Any) -> None:
    """On Qt 6 a selector does not tell when the choice goes to a node of the same name."""
    first, second = patient(0, "CT"), patient(3, "CT")
    panel.ui.inputSelector.setCurrentNode(first)
    press_apply(panel)
    let_finish(panel)
    (of_first,) = segmentations()
    panel.ui.inputSelector.setCurrentNode(second)
    assert panel._parameterNode.inputVolume is first  # no signal came: the trap
    press_apply(panel)
    let_finish(panel)
    assert not questions()
    of_second = next(node for node in segmentations() if node is not of_first)
    for segmentation, volume in ((of_first, first), (of_second, second)):
        assert volumes.drawnOn(segmentation) is volume
        assert computed_from(segmentation, [first, second]) is volume
    assert panel._parameterNode.inputVolume is second
    assert second.GetID() in panel.ui.resultCollapsibleButton.text  # the name alone would not tell
    assert second.GetID() in panel.ui.applyButton.toolTip


def choose_by_hand(selector: Any, node: Any) -> None:
    """As a person does in the list: the selector says so even when the names are the same."""
    selector.setCurrentNode(node)
    box = selector.comboBox()
    box.activated.emit(box.currentIndex)


def test_a_namesake_chosen_by_hand_is_followed_at_once(panel: Any) -> None:
    first, second = patient(0, "CT"), patient(3, "CT")
    for volume in (first, second):
        choose_by_hand(panel.ui.inputSelector, volume)
        press_apply(panel)
        let_finish(panel)
    of_first, of_second = segmentations()
    of_second.SetName(of_first.GetName())
    box = panel.ui.resultCollapsibleButton
    assert (box.text, box.enabled) == (f"Result: CT ({second.GetID()})", True)
    choose_by_hand(panel.ui.inputSelector, first)
    assert panel._parameterNode.inputVolume is first
    assert panel._parameterNode.outputSegmentation is None
    assert not box.enabled
    for segmentation, volume in ((of_first, first), (of_second, second), (of_first, first)):
        choose_by_hand(panel.ui.outputSelector, segmentation)
        assert panel._parameterNode.outputSegmentation is segmentation
        assert volume.GetID() in box.text
        assert box.enabled is (volume is first)


def test_two_volumes_of_one_name_chosen_during_the_run(panel: Any) -> None:
    first, second = patient(0, "CT"), patient(3, "CT")
    panel.ui.inputSelector.setCurrentNode(first)
    press_apply(panel)
    panel.ui.inputSelector.setCurrentNode(second)  # without a signal
    let_finish(panel)
    assert panel._parameterNode.outputSegmentation is None
    press_apply(panel)
    let_finish(panel)
    assert {volumes.drawnOn(node) for node in segmentations()} == {first, second}


def test_a_target_given_to_another_volume_during_the_run_is_left_alone(panel: Any) -> None:
    """In the Segment Editor, for example."""
    first, second = patient(0, "Anna"), patient(3, "Berta")
    panel.ui.inputSelector.setCurrentNode(first)
    press_apply(panel)
    let_finish(panel)
    (target,) = segmentations()
    for moment in ("while it is computed", "while it is read"):
        target.SetReferenceImageGeometryParameterFromVolumeNode(first)
        press_apply(panel)
        assert Engine.running is not None
        if moment == "while it is read":
            Engine.running.finish()
            target.SetReferenceImageGeometryParameterFromVolumeNode(second)
            standin.pump(lambda: not panel.logic.isRunning())
        else:
            target.SetReferenceImageGeometryParameterFromVolumeNode(second)
            let_finish(panel)
        assert volumes.drawnOn(target) is second
        new = panel._parameterNode.outputSegmentation
        assert new is not target
        assert volumes.drawnOn(new) is first
        panel.ui.outputSelector.setCurrentNode(target)


def put_under_a_transform(node: Any) -> None:
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "registration")
    node.SetAndObserveTransformNodeID(transform.GetID())


@pytest.mark.parametrize("moment", ["while it is computed", "while it is read"])
@pytest.mark.parametrize("how", ["moved", "under a transform"])
def test_a_volume_that_moves_during_the_run_gets_no_result_elsewhere(
    panel: Any, how: str, moment: str
) -> None:
    volume = patient(0, "Anna")
    panel.ui.inputSelector.setCurrentNode(volume)
    press_apply(panel)
    assert Engine.running is not None
    if moment == "while it is read":
        Engine.running.finish()
        for _ in range(3):
            standin.pump(lambda: True)
        assert panel.logic.isRunning()
    if how == "moved":
        volume.SetOrigin(0.0, 0.0, 100.0)
    else:
        put_under_a_transform(volume)
    if moment == "while it is computed":
        Engine.running.finish()
    standin.pump(lambda: not panel.logic.isRunning())
    assert not segmentations()
    assert "The geometry of Anna was changed during the run" in slicer.app.messages[0].text


def test_a_target_that_is_put_under_a_transform_during_the_run_is_left_alone(panel: Any) -> None:
    volume = patient(0, "Anna")
    panel.ui.inputSelector.setCurrentNode(volume)
    press_apply(panel)
    let_finish(panel)
    (target,) = segmentations()
    press_apply(panel)
    put_under_a_transform(target)
    let_finish(panel)
    assert panel._parameterNode.outputSegmentation is not target
    assert len(segmentations()) == 2


def test_surfaces_are_no_place_for_masks(panel: Any) -> None:
    """As those of a file .stl: of a mask beside them only an empty surface would stay."""
    volume = patient(0, "Anna")
    panel.ui.inputSelector.setCurrentNode(volume)
    target = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "from stl")
    target.GetSegmentation().SetSourceRepresentationName("Closed surface")
    target.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    panel.ui.outputSelector.setCurrentNode(target)
    press_apply(panel)  # nothing is in it yet
    let_finish(panel)
    assert computed_from(target, [volume]) is volume
    panel.ui.undoButton.click()
    sphere = vtk.vtkSphereSource()
    sphere.Update()
    target.GetSegmentation().SetSourceRepresentationName("Closed surface")
    target.AddSegmentFromClosedSurfaceRepresentation(sphere.GetOutput(), "by hand", [1, 0, 0])
    panel.ui.outputSelector.setCurrentNode(target)
    press_apply(panel)
    assert not panel.logic.isRunning()
    assert "from stl consists of surfaces" in slicer.app.messages[-1].text


def test_a_target_without_display_is_seen_in_3d(panel: Any) -> None:
    """One that a script made."""
    volume = patient(0, "Anna")
    panel.ui.inputSelector.setCurrentNode(volume)
    target = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "made by a script")
    assert target.GetDisplayNode() is None
    panel.ui.outputSelector.setCurrentNode(target)
    panel._parameterNode.show3D = True
    press_apply(panel)
    let_finish(panel)
    assert panel._parameterNode.outputSegmentation is target
    assert target.GetDisplayNode().GetPreferredDisplayRepresentationName3D() == "Closed surface"
    assert panel.ui.applyButton.enabled


def test_a_region_of_the_patient_before_is_told_with_the_result(panel: Any) -> None:
    """The box may be folded away; mL of a part look like those of the organ."""
    first, second = patient(0, "Anna"), patient(3, "Berta")
    panel.ui.inputSelector.setCurrentNode(first)
    panel.ui.regionCheckBox.setChecked(True)
    panel.ui.regionFromSpinBox.setValue(47.5)
    panel.ui.regionToSpinBox.setValue(41.0)
    panel.ui.inputSelector.setCurrentNode(second)
    press_apply(panel)
    let_finish(panel)
    words = "Only the region from S 41 mm to S 47.5 mm was segmented"
    assert words in panel.ui.noticesLabel.text
    panel.ui.outputSelector.setCurrentNode(None)
    panel._result.forget()
    panel.ui.outputSelector.setCurrentNode(segmentations()[0])
    assert words in panel.ui.noticesLabel.text  # it is remembered with the segmentation


def test_the_frame_that_was_shown_at_the_start_names_the_result(
    panel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = patient(0, "perfusion")
    panel.ui.inputSelector.setCurrentNode(volume)
    monkeypatch.setattr(volumes, "frameName", lambda node: " (time 2 s)")
    press_apply(panel)
    monkeypatch.setattr(volumes, "frameName", lambda node: " (time 7 s)")  # the user scrolls on
    let_finish(panel)
    assert segmentations()[0].GetName() == "perfusion (time 2 s) segmentation"


def test_a_segmentation_of_another_frame_is_left_alone(panel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The volume is one node for all frames of its sequence."""
    volume = patient(0, "perfusion")
    panel.ui.inputSelector.setCurrentNode(volume)
    for frame, count in (("2", 1), ("2", 1), ("7", 2), ("7", 2)):
        monkeypatch.setattr(volumes, "frameName", lambda node, frame=frame: f" (time {frame} s)")
        press_apply(panel)
        let_finish(panel)
        assert len(segmentations()) == count
        assert panel._parameterNode.outputSegmentation.GetName() == f"perfusion (time {frame} s) segmentation"
    panel.ui.outputSelector.setCurrentNode(segmentations()[0])
    press_apply(panel)
    let_finish(panel)
    assert [node.GetName() for node in segmentations()].count("perfusion (time 2 s) segmentation") == 1
    assert len(segmentations()) == 3
    panel.ui.undoButton.click()
    assert len(segmentations()) == 2


def test_corrections_by_hand_are_replaced_only_after_a_question(panel: Any) -> None:
    volume = patient(0, "Anna")
    panel.ui.inputSelector.setCurrentNode(volume)
    press_apply(panel)
    let_finish(panel)
    (target,) = segmentations()
    press_apply(panel)  # untouched: nobody is asked
    let_finish(panel)
    assert not questions()
    segment_id = target.GetSegmentation().GetNthSegmentID(0)
    by_hand = np.zeros(SHAPE, np.uint8)
    by_hand[1, 2:5, 2:5] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(by_hand, target, segment_id, volume)
    standin.pump(lambda: bool(importer.corrected(target)))
    slicer.app.answers = [False, True]
    press_apply(panel)
    assert "Anna segmentation was corrected by hand: bright." in questions()[0]
    assert not panel.logic.isRunning()
    assert (voxels(target, 0, volume) == by_hand).all()
    press_apply(panel)
    let_finish(panel)
    assert computed_from(target, [volume]) is volume
    assert not importer.corrected(target)
    panel.ui.undoButton.click()
    assert (voxels(target, 0, volume) == by_hand).all()
    assert importer.corrected(target) == ["bright"]


def test_who_reviews_another_patient_is_not_disturbed_by_a_result(panel: Any) -> None:
    first, second = patient(0, "Anna"), patient(3, "Berta")
    box = panel.ui.resultCollapsibleButton
    for volume in (second, first):
        panel.ui.inputSelector.setCurrentNode(volume)
        press_apply(panel)
        let_finish(panel)
    press_apply(panel)
    panel.ui.inputSelector.setCurrentNode(second)
    of_second = segmentations()[0]
    panel.ui.outputSelector.setCurrentNode(of_second)
    assert (box.text, box.enabled) == ("Result of an earlier run: Berta", True)
    let_finish(panel)
    assert (box.text, box.enabled) == ("Result of an earlier run: Berta", True)
    assert panel._result.result.segmentation is of_second
    panel.ui.inputSelector.setCurrentNode(first)
    panel.ui.outputSelector.setCurrentNode(segmentations()[1])
    assert (box.text, box.enabled) == ("Result: Anna", True)
    assert panel.ui.undoButton.enabled


def test_the_result_names_its_volume_and_greys_out_for_another(panel: Any) -> None:
    first, second = patient(0, "Anna"), patient(3, "Berta")
    box = panel.ui.resultCollapsibleButton
    panel.ui.inputSelector.setCurrentNode(first)
    press_apply(panel)
    let_finish(panel)
    assert (box.text, box.enabled) == ("Result: Anna", True)
    panel.ui.inputSelector.setCurrentNode(second)
    assert (box.text, box.enabled) == ("Result: Anna", False)
    panel.ui.inputSelector.setCurrentNode(first)
    assert box.enabled
    press_apply(panel)
    assert Engine.running is not None
    Engine.running.cancel()
    assert box.text == "Result of an earlier run: Anna"
    press_apply(panel)
    let_finish(panel)
    assert box.text == "Result: Anna"


def test_who_is_elsewhere_is_told_and_not_moved(panel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    alerted: list[Any] = []
    window = object()
    monkeypatch.setattr(slicer.util, "mainWindow", lambda verbose=True: window)
    monkeypatch.setattr(slicer.util, "showStatusMessage", lambda text, duration=0: told.append(text))
    monkeypatch.setattr(process.qt.QApplication, "alert", staticmethod(alerted.append))
    first, second = patient(0, "Anna"), patient(3, "Berta")
    panel.ui.inputSelector.setCurrentNode(first)
    press_apply(panel)
    let_finish(panel)
    assert told == []  # it is seen
    press_apply(panel)
    standin.exit_module(panel)
    slicer.util.setSliceViewerLayers(background=second)
    let_finish(panel)
    assert told == ["Anna is segmented."]
    assert alerted == [window]
    assert volumes.volumeInView() is second
    standin.enter_module(panel)
    assert panel.ui.outputSelector.currentNode() is segmentations()[0]
    slicer.util.setSliceViewerLayers(background=first)
    press_apply(panel)
    slicer.util.setSliceViewerLayers(background=second)  # looked at, though not chosen
    let_finish(panel)
    assert volumes.volumeInView() is second


# --- while a dialog is open ---------------------------------------------------------------------------


def test_report_that_is_saved_is_that_of_the_patient_for_whom_it_was_asked(
    panel: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events go on while a dialog is open: another run ends, or the scene is closed."""
    for file, what in (("a.html", "another run ends"), ("b.html", "the scene is closed")):
        slicer.mrmlScene.Clear(0)
        first, second = patient(0, "Anna"), patient(3, "Berta")
        panel.ui.inputSelector.setCurrentNode(first)
        press_apply(panel)
        let_finish(panel)
        panel.ui.inputSelector.setCurrentNode(second)
        press_apply(panel)
        panel.ui.inputSelector.setCurrentNode(first)  # back to the result that is there

        def choose(*_unused: Any, file: str = file, what: str = what) -> str:
            if what == "another run ends":
                let_finish(panel)
            else:
                slicer.mrmlScene.Clear(0)
            return str(tmp_path / file)

        monkeypatch.setattr(process.qt.QFileDialog, "getSaveFileName", choose)
        panel.ui.saveReportButton.click()
        assert "<h2>Anna</h2>" in (tmp_path / file).read_text(encoding="utf-8")
    assert not [message for message in slicer.app.messages if message.kind == "error"]


def test_undo_asked_about_while_another_result_comes_undoes_nothing(
    panel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for what in ("another run ends", "the scene is closed"):
        first, second = patient(0, "Anna"), patient(3, "Berta")
        panel.ui.inputSelector.setCurrentNode(first)
        press_apply(panel)
        let_finish(panel)
        of_first = panel._parameterNode.outputSegmentation
        of_first.GetSegmentation().AddEmptySegment("by hand")
        panel.ui.inputSelector.setCurrentNode(second)
        press_apply(panel)
        panel.ui.inputSelector.setCurrentNode(first)  # back to the result that is there

        def answer(*_unused: Any, what: str = what, **_more: Any) -> bool:
            if what == "another run ends":
                let_finish(panel)
            else:
                slicer.mrmlScene.Clear(0)
            return True

        monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", answer)
        panel.ui.undoButton.click()
        assert "Nothing was undone" in panel.ui.statusLabel.text
        if what == "another run ends":
            assert of_first.GetScene() is not None
            assert of_first.GetSegmentation().GetNumberOfSegments() == 3
            assert panel.ui.resultCollapsibleButton.text == "Result: Berta"
            panel.ui.inputSelector.setCurrentNode(second)
            assert panel.ui.undoButton.enabled


def test_volume_that_goes_while_a_question_is_open(panel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not segmented for minutes to be told so at the end, nor is a copy of it left."""
    for case in ("its transform", "its target"):
        slicer.mrmlScene.Clear(0)
        slicer.app.messages.clear()
        volume = patient(0, "Anna")
        panel.ui.inputSelector.setCurrentNode(volume)
        if case == "its transform":
            put_under_a_transform(volume)
        else:
            other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "foreign")
            other.GetSegmentation().AddEmptySegment("drawn elsewhere")
            panel.ui.outputSelector.setCurrentNode(other)

        def answer(*_unused: Any, volume: Any = volume, **_more: Any) -> bool:
            slicer.mrmlScene.RemoveNode(volume)
            return True

        monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", answer)
        press_apply(panel)
        assert not panel.logic.isRunning()
        assert "Anna was removed from the scene." in slicer.app.messages[-1].text
        assert not slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
        assert panel.ui.progressBar.isHidden()


# --- every order ------------------------------------------------------------------------------------


def test_every_order_of_six_acts(panel: Any) -> None:
    """Apply on Anna, choose Berta, the result comes, cancel, close the scene, rename: all 720 orders."""
    made = 0
    for order in itertools.permutations(("apply", "select", "finish", "cancel", "close", "rename")):
        slicer.mrmlScene.Clear(0)
        slicer.app.messages.clear()
        first, second = patient(0, "CT"), patient(3, "CT")
        panel.initializeParameterNode()
        panel.ui.inputSelector.setCurrentNode(first)
        for act in order:
            if act == "apply" and panel.ui.applyButton.enabled:
                press_apply(panel)
            elif act == "select":
                panel.ui.inputSelector.setCurrentNode(second)
            elif act == "finish" and Engine.running is not None:
                let_finish(panel)
                made += 1
            elif act == "cancel" and panel.ui.cancelButton.enabled:
                panel.ui.cancelButton.click()
            elif act == "rename":
                first.SetName("Anna")
            elif act == "close":
                slicer.mrmlScene.Clear(0)
                first, second = patient(1, "CT"), patient(4, "CT")
                panel.ui.inputSelector.setCurrentNode(first)
            for segmentation in segmentations():
                owner = volumes.drawnOn(segmentation)
                assert computed_from(segmentation, [first, second]) is owner, order
                chosen = panel._parameterNode.outputSegmentation
                shown = panel.ui.inputSelector.currentNode()
                assert (
                    chosen is not segmentation or shown is owner or panel._parameterNode.inputVolume is owner
                ), order
        assert not questions(), order
        standin.pump(lambda: not panel.logic.isRunning() or Engine.running is not None)
        panel.logic.close()
    assert made == 180  # a quarter: apply before finish, with no cancel or close in between


class Hands(RuleBasedStateMachine):
    """Three patients and everything that can be pressed, in any order."""

    numbers = st.integers(0, 2)

    @initialize(names=st.lists(st.sampled_from(["CT", "CT", "MR"]), min_size=3, max_size=3))
    def open(self, names: list[str]) -> None:
        standin.reset()
        standin.new_scene()
        Engine.running = None
        self.panel = standin.load_module(MODULE)[1]
        self.by_hand: Any = None  # the target that was chosen by hand
        self.owners: dict[str, Any] = {}
        self._load(names)

    def _load(self, names: list[str]) -> None:
        self.patients = [patient(2 * number, name) for number, name in enumerate(names)]
        self.panel.ui.inputSelector.setCurrentNode(self.patients[0])

    @rule(number=numbers)
    def select(self, number: int) -> None:
        self.panel.ui.inputSelector.setCurrentNode(self.patients[number])

    @rule(number=st.integers(-1, 4))
    def choose_target(self, number: int) -> None:
        found = segmentations()
        self.by_hand = found[number % len(found)] if found and number >= 0 else None
        self.panel.ui.outputSelector.setCurrentNode(self.by_hand)

    @rule(yes=st.booleans())
    def apply(self, yes: bool) -> None:
        slicer.app.answers, slicer.app.messages[:] = [yes], []
        if self.panel.ui.applyButton.enabled:
            press_apply(self.panel)
        self.agreed = yes and bool(questions())

    @precondition(lambda self: Engine.running is not None)
    @rule()
    def finish(self) -> None:
        let_finish(self.panel)

    @precondition(lambda self: Engine.running is not None)
    @rule()
    def the_engine_ends_and_the_result_is_being_read(self) -> None:
        assert Engine.running is not None
        Engine.running.finish()

    @rule()
    def events_go_on(self) -> None:
        for _ in range(3):
            standin.pump(lambda: True)

    @rule()
    def cancel(self) -> None:
        if self.panel.ui.cancelButton.enabled:
            self.panel.ui.cancelButton.click()

    @rule(number=numbers, name=st.sampled_from(["CT", "MR", "CT segmentation"]))
    def rename(self, number: int, name: str) -> None:
        self.patients[number].SetName(name)

    @rule()
    def leave(self) -> None:
        standin.exit_module(self.panel)
        standin.enter_module(self.panel)

    @rule()
    def undo(self) -> None:
        if self.panel.ui.undoButton.enabled and not self.panel.ui.resultCollapsibleButton.isHidden():
            slicer.app.answers = [True]
            self.panel.ui.undoButton.click()
            self.owners = {node.GetID(): volumes.drawnOn(node) for node in segmentations()}

    @rule()
    def close(self) -> None:
        slicer.mrmlScene.Clear(0)
        self.owners.clear()
        self._load(["CT", "CT", "CT"])

    @invariant()
    def every_segmentation_shows_the_volume_that_it_belongs_to(self) -> None:
        for node in segmentations():
            owner = volumes.drawnOn(node)
            assert computed_from(node, self.patients) is owner
            if self.owners.get(node.GetID(), owner) is not owner:
                assert self.agreed, "a segmentation went to another patient unasked"
            self.owners[node.GetID()] = owner

    @invariant()
    def the_result_box_speaks_of_the_chosen_volume(self) -> None:
        result, box = self.panel._result.result, self.panel.ui.resultCollapsibleButton
        if result is not None:
            assert volumes.uniqueName(result.volume) in box.text or result.volume.GetName() not in box.text
            assert (
                volumes.drawnOn(result.segmentation) is result.volume
                or result.segmentation.GetScene() is None
            )

    @invariant()
    def the_target_is_the_patients_own_or_was_chosen_by_hand(self) -> None:
        parameters = self.panel._parameterNode
        target = parameters.outputSegmentation if parameters is not None else None
        if target is not None and target is not self.by_hand:
            assert volumes.drawnOn(target) is parameters.inputVolume

    def teardown(self) -> None:
        uncaught, slicer.app.uncaught = slicer.app.uncaught, []
        if hasattr(self, "panel"):
            standin.unload(self.panel)
        Engine.running = None
        assert not uncaught


def test_any_order_of_anything() -> None:
    run_state_machine_as_test(
        Hands,
        settings=settings(
            max_examples=60,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
            derandomize=True,
        ),
    )


# --- what is left behind ----------------------------------------------------------------------------


def test_a_run_leaves_neither_worker_nor_volume_behind(
    panel: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Signals keep what is connected to them, here as in PythonQt (``standin.pythonqt.Signal``)."""
    monkeypatch.undo()  # the real worker
    panel.logic.workerArguments = [str(Path(engine.__file__)), "good"]
    left: list[weakref.ref[Any]] = []
    gone: list[str] = []
    for kind in (process.Worker, process.Steps, logic_module._VolumeRun):
        monkeypatch.setattr(kind, "__init__", _remembered(kind.__init__, left))
    for number in range(6):
        volume = patient(0, f"patient {number}")
        volume.AddObserver("DeleteEvent", lambda caller, event: gone.append(event))
        panel.ui.inputSelector.setCurrentNode(volume)
        panel.ui.applyButton.click()
        if number == 4:  # a run that is cancelled leaves nothing, either
            panel.ui.cancelButton.click()
        standin.pump(lambda: not panel.logic.isRunning(), 60)
        if number == 5:
            panel._result.forget()
        slicer.mrmlScene.RemoveNode(volume)
        del volume
    rounds = itertools.count()
    standin.pump(lambda: next(rounds) > 2)
    gc.collect()
    assert len(left) >= 6 * 2
    assert [reference() for reference in left if reference() is not None] == []
    assert len(gone) == 6


def _remembered(init: Callable[..., None], left: list[weakref.ref[Any]]) -> Callable[..., None]:
    def remember(made: Any, *arguments: Any, **options: Any) -> None:
        left.append(weakref.ref(made))
        init(made, *arguments, **options)

    return remember
