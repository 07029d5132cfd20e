"""The panel on real PythonQt and real ctk widgets: what the stand-ins of ``tests/slicer`` cannot show.

Runs inside the host program only (``make check-pythonqt``), so its name is not that of a test. The engine is real where
a check says so; elsewhere ``tests/slicer/fake_worker.py`` plays its part in a process of its own.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from slicer_over_pythonqt import MODULE, ROOT  # first: it makes the others what they are in Slicer

# isort: split
import qt
import slicer

import standin

sys.path.insert(0, str(MODULE.parent))

from SemanticGANSlicerLib import dialogs, install, process, volumes  # noqa: E402
from SemanticGANSlicerLib import logic as logic_module  # noqa: E402

FAKE_WORKER = ROOT / "tests" / "slicer" / "fake_worker.py"
PICTURES = Path(os.environ["PYTHONQT_SHOTS"])


@pytest.fixture(autouse=True)
def scene() -> Iterator[Any]:
    """A new, empty scene; errors in slots and observers, which PythonQt only prints, fail the check."""
    standin.reset()
    yield standin.new_scene()
    uncaught, slicer.app.uncaught = slicer.app.uncaught, []
    assert not uncaught


@pytest.fixture
def panel() -> Iterator[Any]:
    """The module's panel, as in Slicer after it was opened."""
    _module, widget, _meta = standin.load_module(MODULE)
    widget.parent.resize(500, 1500)  # Slicer's scroll area gives it the height that it wants
    widget.parent.show()
    yield widget
    standin.unload(widget)


@pytest.fixture
def logic() -> Iterator[Any]:
    """The module's logic without a panel."""
    logic = logic_module.SemanticGANSlicerLogic()
    yield logic
    logic.close()


def make_ct(name: str = "CT") -> Any:
    """A bright box in air, (K, J, I) = (12, 32, 40), 0.8 x 0.9 x 2.5 mm."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    node.SetSpacing(0.8, 0.9, 2.5)
    array = np.full((12, 32, 40), -1000, np.int16)
    array[3:9, 8:24, 10:30] = 60
    slicer.util.updateVolumeFromArray(node, array)
    node.CreateDefaultDisplayNodes()
    return node


@pytest.fixture
def ct() -> Any:
    return make_ct()


def play(owner: Any, mode: str) -> None:
    """Let a logic or panel run ``fake_worker.py MODE`` in place of the engine."""
    getattr(owner, "logic", owner).workerArguments = [str(FAKE_WORKER), mode]


def wait(panel: Any, seconds: float = 60) -> None:
    standin.pump(lambda: not panel.logic.isRunning() and panel._maker is None, seconds)


def apply(panel: Any, mode: str, seconds: float = 60) -> None:
    play(panel, mode)
    panel.ui.applyButton.click()
    wait(panel, seconds)


def errors() -> list[str]:
    return [message.text for message in slicer.app.messages if message.kind == "error"]


def cells(table: Any) -> list[list[str]]:
    return [
        [table.item(row, column).text() for column in range(table.columnCount)]
        for row in range(table.rowCount)
    ]


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not waited for is dead."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


# --- the ground ------------------------------------------------------------------------------------


def test_this_is_pythonqt(panel: Any) -> None:
    assert "PySide6" not in sys.modules
    assert type(qt.QLabel).__name__ == "PythonQtClassWrapper"
    assert type(panel.ui.optionsCollapsibleButton) is sys.modules["ctk"].ctkCollapsibleButton
    assert slicer.ScriptedLoadableModule.__file__.startswith(os.environ["SLICER_BASE_PYTHON"])


def test_panel_opens(ct: Any, panel: Any) -> None:
    ui = panel.ui
    assert slicer.modules.semanticganslicer.title == "Segment with SemanticGAN"
    assert (ui.inputSelector.sceneCount(), ui.outputSelector.sceneCount()) == (1, 1)  # by the .ui file
    assert tuple(ui.outputSelector.nodeTypes) == ("vtkMRMLSegmentationNode",)
    assert ui.modelComboBox.currentText == "phantom-ct-liver"
    assert [ui.deviceComboBox.currentText, ui.qualityComboBox.currentText] == ["auto", "standard"]
    assert ui.installFrame.isHidden()
    assert not ui.cancelButton.enabled
    assert panel._parameterNode.inputVolume is ct  # the first of the scene
    assert ui.inputSelector.currentNode() is ct
    assert ui.applyButton.enabled
    slicer.mrmlScene.RemoveNode(ct)
    assert ui.inputSelector.currentNode() is None
    assert not ui.applyButton.enabled
    actions = [action.text for action in ui.openModelButton.menu().actions()]
    assert actions[:2] == ["Folder...", "Zip file..."]


def test_parameters_and_widgets_follow_each_other(panel: Any) -> None:
    ui, p = panel.ui, panel._parameterNode
    ui.qualityComboBox.setCurrentText("careful")
    ui.piecesComboBox.setCurrentText("all")
    assert (p.quality, p.pieces) == ("careful", "all")
    p.quality, p.pieces = "fast", "largest"
    assert (ui.qualityComboBox.currentText, ui.piecesComboBox.currentText) == ("fast", "largest")


def test_leaving_and_entering_adds_no_observers(ct: Any, panel: Any) -> None:
    before = len(panel.Observations)
    for _ in range(20):
        standin.exit_module(panel)
        standin.enter_module(panel)
    assert len(panel.Observations) == before
    assert panel.ui.inputSelector.currentNode() is ct


def test_device_is_told_by_the_engine(panel: Any) -> None:
    panel.ui.optionsCollapsibleButton.collapsed = False
    standin.pump(lambda: "looking" not in panel.ui.deviceFoundLabel.text, 120)
    assert panel.ui.deviceFoundLabel.text.startswith("auto: C")  # CPU or CUDA


# --- a run -----------------------------------------------------------------------------------------


def test_apply_shows_progress_then_the_result(ct: Any, panel: Any) -> None:
    ui = panel.ui
    play(panel, "listens")
    ui.applyButton.click()
    assert (ui.applyButton.enabled, ui.cancelButton.enabled, ui.batchRunButton.enabled) == (
        False,
        True,
        False,
    )
    standin.pump(lambda: ui.progressBar.maximum == 4)
    assert (ui.progressBar.value, ui.progressBar.isHidden()) == (1, False)
    assert ui.statusLabel.text == "Slice 1 to 2 of 12, step 3 of 30, about 75 s left"
    ui.cancelButton.click()
    wait(panel, 5)
    apply(panel, "good")
    assert not errors()
    node = panel._parameterNode.outputSegmentation
    assert node.GetName() == "CT segmentation"
    assert ui.outputSelector.currentNode() is node
    segment_id = node.GetSegmentation().GetNthSegmentID(0)
    np.testing.assert_array_equal(
        slicer.util.arrayFromSegmentBinaryLabelmap(node, segment_id, ct), slicer.util.arrayFromVolume(ct) > 0
    )
    assert not ui.resultCollapsibleButton.isHidden()
    assert "Please review" in ui.trustLabel.text
    count = 6 * 16 * 20
    assert [row[:3] for row in cells(ui.volumeTable)] == [
        ["bright", f"{count * 1.8 / 1000:.1f}", f"{count:,}"],
        ["absent", "0.0", "0"],
    ]
    assert ui.progressBar.isHidden()
    assert (ui.applyButton.enabled, ui.cancelButton.enabled) == (True, False)


def test_result_widgets(ct: Any, panel: Any) -> None:
    apply(panel, "good")
    ui = panel.ui
    ui.doubtfulList.setCurrentRow(1)
    ui.doubtfulList.itemClicked.emit(ui.doubtfulList.item(1))  # slice 4 counted from 1
    red = slicer.mrmlScene.GetSingletonNode("Red", "vtkMRMLSliceNode")
    assert red.GetSliceToRAS().GetElement(2, 3) == pytest.approx(3 * 2.5)
    ui.reconstructionCheckBox.click()
    ui.fadeSlider.value = 80
    for view in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        assert view.GetForegroundVolumeID()
        assert view.GetForegroundOpacity() == pytest.approx(0.8)
    ui.reconstructionCheckBox.click()
    assert not ui.fadeSlider.enabled
    ui.editButton.click()
    assert slicer.app.selected_modules == ["SegmentEditor"]
    ui.undoButton.click()
    assert panel._parameterNode.outputSegmentation is None
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0
    assert ui.resultCollapsibleButton.isHidden()
    assert not errors()


def test_region_is_proposed_and_taken_from_the_view(ct: Any, panel: Any) -> None:
    ui, p = panel.ui, panel._parameterNode
    ui.regionCheckBox.click()
    assert (p.regionFrom, p.regionTo) == (pytest.approx(0.0, abs=0.06), pytest.approx(27.5, abs=0.06))
    slicer.mrmlScene.GetSingletonNode("Red", "vtkMRMLSliceNode").JumpSlice(0.0, 0.0, 7.5)
    ui.regionFromHereButton.click()
    assert panel._options().region == (pytest.approx(7.5), pytest.approx(27.5))


def test_cancel_of_a_worker_that_listens(ct: Any, panel: Any) -> None:
    before = standin.leaves(slicer.mrmlScene)
    play(panel, "listens")
    panel.ui.applyButton.click()
    standin.pump(lambda: "Slice 1 to 2" in panel.ui.statusLabel.text)
    panel.ui.cancelButton.click()
    wait(panel, 2)
    assert panel.ui.statusLabel.text == "Cancelled; the scene is as it was."
    assert standin.leaves(slicer.mrmlScene) == before
    assert not slicer.app.messages


def start_deaf(panel: Any) -> tuple[int, int]:
    """Begin a run that does not listen; the pids of the worker and of its child."""
    play(panel, "deaf")
    started: list[dict[str, Any]] = []
    panel.ui.applyButton.click()
    standin.pump(lambda: panel.logic._run._worker is not None)
    worker = panel.logic._run._worker
    tell = worker._onEvent
    worker._onEvent = lambda event: (started.append(event), tell(event))
    standin.pump(lambda: any("child" in event for event in started), 20)
    hello, start = (next(e for e in started if e["event"] == name) for name in ("hello", "start"))
    return hello["pid"], start["child"]


def test_cancel_of_a_worker_that_is_deaf(ct: Any, panel: Any) -> None:
    """The launcher, the worker and the worker's child all end, within two seconds."""
    pids = start_deaf(panel)
    start = time.monotonic()
    panel.ui.cancelButton.click()
    wait(panel, 10)
    assert time.monotonic() - start < 3
    assert panel.ui.statusLabel.text == "Cancelled; the scene is as it was."
    standin.pump(lambda: not any(is_alive(pid) for pid in pids), 2)


@pytest.mark.parametrize(
    "mode", ["error", "internal", "killed", "silent", "garbage", "garbage-then-done", "wrong-size"]
)
def test_fault_of_the_worker(ct: Any, panel: Any, mode: str) -> None:
    before = standin.leaves(slicer.mrmlScene)
    apply(panel, mode)
    if mode == "garbage-then-done":
        assert not errors()
        return
    (text,) = errors()
    assert text.startswith("The segmentation of CT failed.")
    assert panel.ui.statusLabel.text == "Failed; the scene is as it was."
    assert standin.leaves(slicer.mrmlScene) == before
    assert panel.ui.applyButton.enabled


def test_missing_program_is_told(ct: Any, panel: Any) -> None:
    panel.logic.python = lambda: "/nonexistent/PythonSlicer"
    apply(panel, "good")
    assert "could not be started" in errors()[0]
    assert panel.ui.applyButton.enabled


def test_scene_closed_in_mid_run(ct: Any, panel: Any) -> None:
    pids = start_deaf(panel)
    slicer.mrmlScene.Clear(0)
    assert not panel.logic.isRunning()
    standin.pump(lambda: not any(is_alive(pid) for pid in pids), 2)
    assert not slicer.app.messages
    panel._parameterNode.inputVolume = make_ct("next")
    apply(panel, "good")
    assert panel._parameterNode.outputSegmentation.GetName() == "next segmentation"


def test_module_unloaded_in_mid_run(ct: Any) -> None:
    _module, widget, _meta = standin.load_module(MODULE)
    pids = start_deaf(widget)
    standin.unload(widget)
    standin.pump(lambda: not any(is_alive(pid) for pid in pids), 2)


# --- models, samples, the real engine --------------------------------------------------------------


def test_model_is_opened_and_remembered(panel: Any, tmp_path: Path) -> None:
    bundle = tmp_path / "my liver Größe"
    shutil.copytree(ROOT / "sgan_core" / "models" / "phantom-ct-liver", bundle)
    panel._openModel(str(bundle))
    assert panel._options().model == str(bundle)
    assert json.loads(slicer.app.userSettings().value("SemanticGAN/Models", "[]")) == [str(bundle)]
    panel.ui.modelComboBox.setCurrentIndex(panel.ui.modelComboBox.findText("phantom-ct-liver"))
    assert panel._options().model == "phantom-ct-liver"
    panel._openModel(str(tmp_path))
    assert "is not a model of SemanticGAN" in errors()[0]


def test_sample_and_apply_on_the_real_engine(panel: Any) -> None:
    ui = panel.ui
    ui.sampleCtButton.click()
    assert not ui.applyButton.enabled
    wait(panel, 300)
    assert panel._parameterNode.inputVolume.GetName() == "SemanticGANPhantomCT"
    ui.qualityComboBox.setCurrentText("fast")
    ui.applyButton.click()
    wait(panel, 300)
    assert not errors()
    ((name, millilitres, *_rest),) = cells(ui.volumeTable)
    assert name == "liver"
    assert 500 < float(millilitres) < 3000
    save_pictures(panel, "run")


def test_batch_on_the_real_engine(panel: Any, tmp_path: Path) -> None:
    source, output, ui = tmp_path / "Bilder Größe", tmp_path / "out", panel.ui
    source.mkdir()
    array = np.full((3, 32, 32), -1000, np.int16)
    array[:, 8:24, 8:24] = 60
    for name in ("a", "b"):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((2.0, 2.0, 5.0))
        sitk.WriteImage(image, str(source / f"{name}.nii.gz"))
    (source / "broken.nii.gz").write_bytes(b"no image")
    ui.batchInputPathLineEdit.setCurrentPath(str(source))
    ui.batchOutputPathLineEdit.setCurrentPath(str(output))
    assert panel._parameterNode.batchInput == str(source)
    ui.qualityComboBox.setCurrentText("fast")
    ui.batchRunButton.click()
    assert ui.batchCancelButton.enabled
    wait(panel, 300)
    assert ui.batchStatusLabel.text == "2 segmented, 1 failed."
    assert [(row[0], row[4]) for row in cells(ui.batchTable)] == [
        ("a", "a_seg.nii.gz"),
        ("b", "b_seg.nii.gz"),
        ("broken", ""),
    ]
    assert ui.batchTable.item(2, 0).toolTip()
    assert ui.batchReportButton.enabled
    ui.batchTable.cellDoubleClicked.emit(0, 0)
    assert [node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode")] == ["a_seg"]
    save_pictures(panel, "batch")


# --- the installation ------------------------------------------------------------------------------


def in_dialog(dialog: Any, *acts: tuple[Callable[[], bool], Callable[[], None]]) -> bool:
    """Show a dialog and act in it: each act is (when, what), the next after the one before. Returns run()'s answer."""
    waiting, end = list(acts), time.monotonic() + 60

    def look() -> None:
        if waiting and waiting[0][0]():
            waiting.pop(0)[1]()
        if time.monotonic() > end:
            dialog.close()

    timer = qt.QTimer()
    timer.setInterval(20)
    timer.timeout.connect(look)
    timer.start()
    answer = dialog.run()
    timer.stop()
    timer.timeout.disconnect(look)
    assert not waiting, "the dialog was closed before everything was done in it"
    return answer


def test_dialog_shows_the_cause_of_a_failure(tmp_path: Path) -> None:
    dialog = dialogs.InstallDialog(install.Plan(("sgan-no-such-package",), "", False), lambda: sys.executable)
    seen: dict[str, Any] = {}

    def look() -> None:
        seen.update(text=dialog.text.text, log=dialog.log.plainText, button=dialog.closeButton.text)
        save_picture(dialog.window, "install-failed")
        dialog.close()

    save_picture(dialog.window, "install")
    answer = in_dialog(
        dialog,
        (lambda: dialog.window.visible, lambda: dialog.installFromFolder(str(tmp_path))),
        (lambda: dialog.onlineButton.enabled, look),
    )
    assert answer is False
    assert "failed" in seen["text"]
    assert "sgan-no-such-package" in seen["log"]
    assert seen["button"] == "Close"


def test_closing_the_dialog_stops_pip(tmp_path: Path) -> None:
    dialog = dialogs.InstallDialog(install.Plan(("sgan-no-such-package",), "", False), lambda: sys.executable)
    workers: list[Any] = []

    def begin() -> None:
        dialog.installFromFolder(str(tmp_path))
        workers.append(dialog._installer._worker)

    assert in_dialog(dialog, (lambda: dialog.window.visible, begin), (lambda: True, dialog.close)) is False
    standin.pump(lambda: not workers[0].isRunning(), 5)


# --- nothing is kept -------------------------------------------------------------------------------

_KEPT = (process.Worker, process.Steps, logic_module._Run)


def turn() -> None:
    """Let a real event loop run for a moment, as Slicer's always does: Qt deletes what waits for it only there."""
    loop, timer = qt.QEventLoop(), qt.QTimer()
    timer.setSingleShot(True)
    timer.timeout.connect(loop.quit)
    timer.start(50)
    loop.exec_()


def survivors() -> Counter[str]:
    """Workers, steps and runs that are still there."""
    turn()
    gc.collect()
    return Counter(type(one).__name__ for one in gc.get_objects() if isinstance(one, _KEPT))


def watch(node: Any, gone: list[str]) -> None:
    """Note when a volume's node, and its voxels, are really freed."""
    node.AddObserver("DeleteEvent", lambda *unused: gone.append("node"))
    node.GetImageData().AddObserver("DeleteEvent", lambda *unused: gone.append("voxels"))


@pytest.fixture
def nothing_before() -> Counter[str]:
    """What earlier checks left behind is not counted."""
    return survivors()


RUNS = 6


def run_and_remove(logic: Any, mode: str, gone: list[str]) -> None:
    """Segment a volume of its own, then remove the volume and the result from the scene."""
    node = make_ct()
    watch(node, gone)
    ends: list[Any] = []

    def progress(done: int, total: int, message: str, left: float | None) -> None:
        if total and mode == "listens":
            logic.cancel()

    def finished(outcome: Any, result: Any) -> None:
        ends.append(outcome)
        if result is not None:
            volumes.removeNode(result.segmentation)
            result.discard()

    play(logic, mode)
    logic.segment(node, logic_module.Options(model="x"), onProgress=progress, onFinished=finished)
    standin.pump(lambda: ends, 60)
    volumes.removeNode(node)


def begin_and_abandon(logic: Any, gone: list[str]) -> None:
    """Let the scene go while a worker is at work."""
    node = make_ct()
    watch(node, gone)
    heard: list[str] = []
    play(logic, "deaf")
    logic.segment(
        node, logic_module.Options(model="x"), onProgress=lambda *progress: heard.append(progress[2])
    )
    standin.pump(lambda: any("Segmenting with" in text for text in heard), 20)
    volumes.removeNode(node)
    logic.close()


@pytest.mark.parametrize("mode", ["good", "error", "listens", "wrong-size", "abandoned"])
def test_runs_leave_no_worker_and_no_volume(logic: Any, mode: str, nothing_before: Counter[str]) -> None:
    gone: list[str] = []
    for _ in range(RUNS):
        if mode == "abandoned":
            begin_and_abandon(logic, gone)
        else:
            run_and_remove(logic, mode, gone)
    assert survivors() - nothing_before == Counter()
    assert Counter(gone) == {"node": RUNS, "voxels": RUNS}


def test_panel_keeps_no_volume_after_the_scene_is_closed(panel: Any, nothing_before: Counter[str]) -> None:
    gone: list[str] = []
    for number in range(RUNS):
        node = make_ct(f"CT {number}")
        watch(node, gone)
        panel.ui.inputSelector.setCurrentNode(node)
        apply(panel, "good")
        panel.ui.reconstructionCheckBox.click()
        del node
    slicer.mrmlScene.Clear(0)
    slicer.util.setSliceViewerLayers(
        background=make_ct("next")
    )  # MRML's slice logic holds what it showed last
    assert survivors() - nothing_before == Counter()
    assert Counter(gone) == {"node": RUNS, "voxels": RUNS}


def test_unloaded_panel_is_freed(ct: Any) -> None:
    _module, widget, meta = standin.load_module(MODULE)
    apply(widget, "good")
    parts = [weakref.ref(widget), weakref.ref(widget.logic)]
    standin.unload(widget)
    meta.widget = None  # the stand-in's own; Slicer lists the module among its self tests for ever
    del widget
    turn()
    gc.collect()
    assert [type(part()).__name__ for part in parts] == ["NoneType"] * 2


# --- pictures --------------------------------------------------------------------------------------


def save_picture(widget: Any, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    path = PICTURES / f"{name}.png"
    assert widget.grab().save(str(path))
    assert path.stat().st_size > 1000


def save_pictures(panel: Any, name: str) -> None:
    """Every tab, to be looked at."""
    (tabs,) = panel.parent.findChildren(qt.QTabWidget)
    shown = tabs.currentIndex
    for index in range(tabs.count):
        tabs.setCurrentIndex(index)
        standin.pump(lambda: True)
        save_picture(panel.parent, f"{name}-{index + 1}-{tabs.tabText(index).lower()}")
    tabs.setCurrentIndex(shown)


def test_pictures_of_every_tab(ct: Any, panel: Any) -> None:
    save_pictures(panel, "start")
    apply(panel, "good")
    panel.ui.optionsCollapsibleButton.collapsed = False
    save_pictures(panel, "result")


def test_slicers_process_never_imported_torch() -> None:
    assert "torch" not in sys.modules
