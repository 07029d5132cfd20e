"""The test host keeps its promises: what tests of the Slicer module rely on, checked without that module.

Run a second time with SLICER_BASE_PYTHON=<Slicer source>/Base/Python/slicer, the same tests go over Slicer's own base
classes and parameterNodeWrapper.
"""

from __future__ import annotations

import gc
import logging
import pathlib
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest

pytest.importorskip("PySide6")
slicer = pytest.importorskip("slicer")
sys.path.insert(0, str(Path(__file__).parent))
standin = pytest.importorskip("standin")

import ctk  # noqa: E402
import qt  # noqa: E402
import vtk  # noqa: E402
from slicer.parameterNodeWrapper import (  # noqa: E402
    Choice,
    Default,
    Maximum,
    Minimum,
    WithinRange,
    parameterNodeWrapper,
)

MODULE = """
import pathlib
from typing import Annotated

import qt
import slicer
import vtk
from slicer import vtkMRMLScalarVolumeNode
from slicer.i18n import tr as _, translate
from slicer.parameterNodeWrapper import Choice, Default, WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import *
from slicer.util import VTKObservationMixin


class Tiny(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("Tiny module")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]


@parameterNodeWrapper
class TinyParameterNode:
    inputVolume: vtkMRMLScalarVolumeNode
    device: Annotated[str, Choice(["auto", "cuda", "cpu"])] = "auto"
    steps: Annotated[int, WithinRange(1, 2000)] = 200
    threshold: Annotated[float, Default(0.5), WithinRange(0.0, 1.0)]
    fast: bool
    model: pathlib.Path


class TinyWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.calls = []

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        self.uiWidget = slicer.util.loadUI(self.resourcePath("UI/Tiny.ui"))
        self.layout.addWidget(self.uiWidget)
        self.ui = slicer.util.childWidgetVariables(self.uiWidget)
        self.uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = TinyLogic()
        self.ui.applyButton.connect("clicked(bool)", self.onApply)
        self.parameters = TinyParameterNode(self.logic.getParameterNode())
        self.guiTag = self.parameters.connectGui(self.ui)

    def enter(self):
        self.calls.append("enter")

    def cleanup(self):
        self.calls.append("cleanup")
        self.removeObservers()

    def onApply(self, checked):
        with slicer.util.tryWithErrorDisplay("It failed.", waitCursor=True):
            raise ValueError("no liver here")


class TinyLogic(ScriptedLoadableModuleLogic):
    pass


class TinyTest(ScriptedLoadableModuleTest):
    def test_one(self):
        slicer.tinyTestRan = True
"""

UI = """<?xml version="1.0" encoding="UTF-8"?>
<ui version="4.0">
 <class>Tiny</class>
 <widget class="qMRMLWidget" name="Tiny">
  <layout class="QVBoxLayout" name="verticalLayout">
   <item><widget class="ctkCollapsibleButton" name="inputsButton">
    <property name="text"><string>Inputs</string></property>
    <property name="collapsed"><bool>true</bool></property>
    <layout class="QVBoxLayout" name="inner">
     <item><widget class="qMRMLNodeComboBox" name="inputSelector">
      <property name="nodeTypes"><stringlist><string>vtkMRMLScalarVolumeNode</string></stringlist></property>
      <property name="showChildNodeTypes"><bool>false</bool></property>
      <property name="showHidden"><bool>false</bool></property>
      <property name="addEnabled"><bool>false</bool></property>
      <property name="removeEnabled"><bool>false</bool></property>
      <property name="renameEnabled"><bool>true</bool></property>
      <property name="noneEnabled"><bool>true</bool></property>
      <property name="noneDisplay"><string>(choose a volume)</string></property>
      <property name="SlicerParameterName" stdset="0"><string>inputVolume</string></property>
     </widget></item>
     <item><widget class="qMRMLNodeComboBox" name="forgottenSelector">
      <property name="nodeTypes"><stringlist><string>vtkMRMLScalarVolumeNode</string></stringlist></property>
     </widget></item>
     <item><widget class="ctkPathLineEdit" name="modelEdit">
      <property name="filters">
       <set>ctkPathLineEdit::Dirs|ctkPathLineEdit::Executable|ctkPathLineEdit::Readable</set>
      </property>
      <property name="SlicerParameterName" stdset="0"><string>model</string></property>
     </widget></item>
    </layout>
   </widget></item>
   <item><widget class="QTabWidget" name="tabs">
    <widget class="QWidget" name="firstTab">
     <attribute name="title"><string>First</string></attribute>
     <layout class="QVBoxLayout" name="tabLayout">
      <item><widget class="QComboBox" name="deviceBox">
       <property name="SlicerParameterName" stdset="0"><string>device</string></property>
      </widget></item>
      <item><widget class="QSpinBox" name="stepsBox">
       <property name="SlicerParameterName" stdset="0"><string>steps</string></property>
      </widget></item>
      <item><widget class="QDoubleSpinBox" name="thresholdBox">
       <property name="SlicerParameterName" stdset="0"><string>threshold</string></property>
      </widget></item>
      <item><widget class="QCheckBox" name="fastBox">
       <property name="text"><string>Fast</string></property>
       <property name="SlicerParameterName" stdset="0"><string>fast</string></property>
      </widget></item>
     </layout>
    </widget>
   </widget></item>
   <item><widget class="QTableWidget" name="table">
    <property name="rowCount"><number>2</number></property>
   </widget></item>
   <item><widget class="QProgressBar" name="progressBar"/></item>
   <item><widget class="QSlider" name="slider"/></item>
   <item><widget class="QListWidget" name="list"/></item>
   <item><widget class="QToolButton" name="menuButton"/></item>
   <item><widget class="qMRMLSegmentationShow3DButton" name="show3DButton"/></item>
   <item><widget class="QPushButton" name="applyButton">
    <property name="text"><string>Apply</string></property>
   </widget></item>
   <item><widget class="QLabel" name="statusLabel"/></item>
  </layout>
 </widget>
 <connections>
  <connection>
   <sender>Tiny</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
   <receiver>inputSelector</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot>
  </connection>
  <connection>
   <sender>fastBox</sender><signal>toggled(bool)</signal>
   <receiver>slider</receiver><slot>setEnabled(bool)</slot>
  </connection>
 </connections>
</ui>
"""


@pytest.fixture
def scene() -> Iterator[Any]:
    """A new scene, nothing recorded."""
    standin.reset()
    yield standin.new_scene()
    standin.reset()


@pytest.fixture
def module_path(tmp_path: Path) -> Path:
    """The files of a small module."""
    (tmp_path / "Resources" / "UI").mkdir(parents=True)
    (tmp_path / "Resources" / "UI" / "Tiny.ui").write_text(UI)
    path = tmp_path / "Tiny.py"
    path.write_text(textwrap.dedent(MODULE))
    return path


@pytest.fixture
def panel(scene: Any, module_path: Path) -> Iterator[Any]:
    """The panel of the small module."""
    _, widget, _ = standin.load_module(module_path)
    yield widget
    if hasattr(slicer.modules, "TinyWidget"):
        standin.unload(widget)


def volume(name: str = "CT", kind: str = "vtkMRMLScalarVolumeNode") -> Any:
    return slicer.mrmlScene.AddNewNodeByClass(kind, name)


def rows(selector: Any) -> list[str]:
    box = selector.comboBox()
    return [box.itemText(row) for row in range(box.count)]


def selector(scene: Any, **properties: Any) -> Any:
    """A node chooser without action rows."""
    widget = slicer.qMRMLNodeComboBox()
    widget.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    for name, value in ({"addEnabled": False, "removeEnabled": False} | properties).items():
        setattr(widget, name, value)
    widget.setMRMLScene(scene)
    return widget


# --- which Slicer this is ---


def test_genuine_mode_takes_slicers_own_files() -> None:
    import slicer.i18n
    import slicer.parameterNodeWrapper
    import slicer.ScriptedLoadableModule

    sources = (slicer.ScriptedLoadableModule, slicer.parameterNodeWrapper)
    if standin.GENUINE:
        assert all(Path(module.__file__).is_relative_to(standin.GENUINE) for module in sources)
    else:
        assert all(Path(module.__file__).parent.name == "standin" for module in sources)


def test_util_and_scene_are_slicer_cores(scene: Any) -> None:
    assert Path(slicer.util.__file__).parent == Path(slicer.__file__).parent
    assert isinstance(scene, vtk.vtkObject)
    assert slicer.mrmlScene is scene
    assert slicer.app.mrmlScene() is scene


# --- PythonQt's manners ---


def test_qt_properties_are_read_and_written_as_attributes() -> None:
    label, button, box, spin = qt.QLabel("one"), qt.QPushButton(), qt.QComboBox(), qt.QSpinBox()
    assert label.text == "one"
    label.text = "two"
    assert qt.QLabel.property(label, "text") == "two"
    button.enabled = False
    assert not button.isEnabled()
    button.toolTip = "why"
    assert button.toolTip == "why"
    box.addItems(["a", "b"])
    box.currentText = "b"
    assert (box.currentText, box.currentIndex, box.count) == ("b", 1, 2)
    spin.maximum = 500
    spin.value = 300
    assert spin.value == 300
    label.name = "title"
    assert label.objectName == "title"


def test_connect_by_signature_passes_the_arguments_it_names() -> None:
    got: list[Any] = []
    button = qt.QPushButton()
    button.checkable = True

    def without(*values: Any) -> None:
        got.append(("without", values))

    button.connect("clicked()", without)
    button.connect("toggled(bool)", lambda *values: got.append(("with", values)))
    button.click()
    assert got == [("with", (True,)), ("without", ())]
    assert button.disconnect("clicked()", without)
    got.clear()
    button.click()
    assert got == [("with", (False,))]


def test_single_shot_timer_still_is_a_function() -> None:
    fired: list[bool] = []
    qt.QTimer.singleShot(1, lambda: fired.append(True))
    standin.pump(lambda: fired, 2)


def test_python_widget_may_have_its_own_size_hint() -> None:
    class Wide(qt.QWidget):
        def sizeHint(self) -> Any:
            return super().sizeHint().expandedTo(qt.QSize(321, 10))

    widget = Wide()
    widget.adjustSize()
    assert widget.width == 321


def test_a_label_shows_letters() -> None:
    """Without fonts Qt draws nothing, or the same box for every letter."""
    images = []
    for text in ("iiii", "WWWW"):
        label = qt.QLabel(text)
        label.resize(80, 30)
        image = label.grab().toImage()
        images.append(sum(image.pixelColor(x, y).lightness() < 100 for x in range(80) for y in range(30)))
    assert 0 < images[0] < 0.7 * images[1]


# --- the .ui file ---


def test_ui_file_gives_widgets_with_their_properties(panel: Any) -> None:
    ui = panel.ui
    assert type(ui.inputSelector) is slicer.qMRMLNodeComboBox
    assert type(ui.modelEdit) is ctk.ctkPathLineEdit
    assert type(ui.deviceBox) is qt.QComboBox
    assert ui.modelEdit.filters == (
        ctk.ctkPathLineEdit.Dirs | ctk.ctkPathLineEdit.Executable | ctk.ctkPathLineEdit.Readable
    )
    assert ui.inputSelector.nodeTypes == ("vtkMRMLScalarVolumeNode",)
    assert ui.inputSelector.renameEnabled
    assert not ui.inputSelector.showChildNodeTypes
    assert ui.inputsButton.text == "Inputs"
    assert ui.tabs.count == 1
    assert ui.table.rowCount == 2


def test_ui_connections_are_made_and_only_those(panel: Any) -> None:
    assert panel.ui.inputSelector.mrmlScene() is slicer.mrmlScene
    assert panel.ui.forgottenSelector.mrmlScene() is None  # not connected in the file
    assert not panel.ui.forgottenSelector.enabled
    panel.ui.fastBox.setChecked(True)
    panel.ui.fastBox.setChecked(False)
    assert not panel.ui.slider.enabled


def test_impossible_connection_is_told(scene: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "wrong.ui"
    path.write_text(UI.replace("<receiver>inputSelector<", "<receiver>inputSelektor<"))
    with caplog.at_level(logging.WARNING):
        slicer.util.loadUI(str(path))
    assert "inputSelektor" in caplog.text


def test_menu_of_a_tool_button(panel: Any) -> None:
    got: list[bool] = []
    menu = qt.QMenu(panel.ui.menuButton)
    action = menu.addAction("Do it")
    action.triggered.connect(lambda: got.append(True))
    panel.ui.menuButton.setMenu(menu)
    action.trigger()
    assert got == [True]
    assert action.text == "Do it"


# --- qMRMLNodeComboBox ---


def test_node_chooser_follows_the_scene(scene: Any) -> None:
    widget = selector(scene, noneEnabled=True, noneDisplay="(none yet)")
    assert rows(widget) == ["(none yet)"]
    first, second = volume("A"), volume("B")
    assert rows(widget) == ["(none yet)", "A", "B"]
    assert widget.currentNode() is None
    second.SetName("renamed")
    assert rows(widget) == ["(none yet)", "A", "renamed"]
    widget.setCurrentNode(second)
    scene.RemoveNode(first)
    assert rows(widget) == ["(none yet)", "renamed"]
    assert widget.currentNode() is second
    assert widget.currentNodeID == second.GetID()
    scene.Clear(0)
    assert rows(widget) == ["(none yet)"]
    assert widget.currentNode() is None


def test_node_chooser_tells_each_change_once(scene: Any) -> None:
    widget = selector(scene, noneEnabled=True)
    got: list[Any] = []
    chosen: list[bool] = []
    widget.currentNodeChanged.connect(got.append)
    widget.connect("currentNodeChanged(bool)", chosen.append)
    node = volume()
    assert got == []
    widget.setCurrentNode(node)
    widget.setCurrentNode(node)
    assert got == [node]
    widget.setCurrentNode(None)
    assert got == [node, None]
    assert chosen == [True, False]
    widget.currentNodeID = node.GetID()
    scene.RemoveNode(node)
    assert got == [node, None, node, None]


def test_node_chooser_without_none_or_actions_takes_the_first_arrival(scene: Any) -> None:
    widget = selector(scene)
    first = volume("A")
    assert widget.currentNode() is first
    volume("B")
    assert widget.currentNode() is first


def test_node_chooser_takes_nothing_by_itself_otherwise(scene: Any) -> None:
    """Slicer's test_slicer_parameter_node_wrapper_guis.py: "should not auto add"."""
    with_actions = selector(scene, addEnabled=True)
    volume("A")
    late, got = selector(None), []
    late.currentNodeChanged.connect(got.append)
    late.setMRMLScene(scene)  # comes after the node
    assert with_actions.currentNode() is None
    assert late.currentNode() is None
    assert rows(late) == ["A"]
    assert got == []


def test_node_chooser_hides_hidden_nodes(scene: Any) -> None:
    hidden = slicer.vtkMRMLScalarVolumeNode()
    hidden.SetName("hidden")
    hidden.SetHideFromEditors(True)
    scene.AddNode(hidden)
    assert rows(selector(scene)) == []
    assert rows(selector(scene, showHidden=True)) == ["hidden"]


@pytest.mark.parametrize(("children", "expected"), [(True, ["CT", "map"]), (False, ["CT"])])
def test_node_chooser_child_types(scene: Any, children: bool, expected: list[str]) -> None:
    widget = selector(scene, showChildNodeTypes=children)
    volume("CT")
    volume("map", "vtkMRMLLabelMapVolumeNode")
    volume("seg", "vtkMRMLSegmentationNode")
    assert rows(widget) == expected


def test_node_chooser_creates_a_node(scene: Any) -> None:
    widget = selector(scene, addEnabled=True, nodeTypes=["vtkMRMLSegmentationNode"])
    create = next(row for row, text in enumerate(rows(widget)) if text.startswith("Create new"))
    widget.comboBox().activated.emit(create)
    assert widget.currentNode().GetClassName() == "vtkMRMLSegmentationNode"
    assert standin.leaves(scene)[0][0] == "vtkMRMLSegmentationNode"


def test_node_chooser_keeps_the_request_until_there_is_a_scene(scene: Any) -> None:
    node = volume()
    widget = slicer.qMRMLNodeComboBox()
    widget.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    widget.setCurrentNode(node)
    assert not widget.enabled
    widget.setMRMLScene(scene)
    assert widget.currentNode() is node
    assert widget.enabled


def test_deleted_node_chooser_does_not_disturb_the_scene(scene: Any) -> None:
    widget = selector(scene)
    widget.deleteLater()
    qt.QCoreApplication.sendPostedEvents(None, qt.QEvent.DeferredDelete)
    volume()  # an observer of a dead widget would raise here


# --- other widgets ---


def test_collapsed_box_hides_its_contents(panel: Any) -> None:
    box, inside = panel.ui.inputsButton, panel.ui.modelEdit
    assert box.collapsed  # in the .ui file, before it had contents
    assert not inside.isVisibleTo(box)
    box.collapsed = False
    assert inside.isVisibleTo(box)
    inside.setVisible(False)
    box.setCollapsed(True)
    inside.setVisible(True)
    assert not inside.isVisibleTo(box)
    box.setCollapsed(False)
    assert inside.isVisibleTo(box)


def test_box_remembers_what_the_module_hid(panel: Any) -> None:
    box, inside = panel.ui.inputsButton, panel.ui.modelEdit
    box.collapsed = False
    inside.setVisible(False)
    box.collapsed = True
    box.collapsed = False
    assert not inside.isVisibleTo(box)


def test_path_edit_tells_a_new_path_once() -> None:
    edit, got = ctk.ctkPathLineEdit(), []
    edit.currentPathChanged.connect(got.append)
    edit.setCurrentPath("/data/model.zip")
    edit.currentPath = "/data/model.zip"
    assert edit.currentPath == "/data/model.zip"
    assert got == ["/data/model.zip"]


def segmentation(scene: Any) -> Any:
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "seg")
    node.CreateDefaultDisplayNodes()
    image = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    array = np.zeros((8, 9, 10), np.uint8)
    array[2:6, 2:6, 2:6] = 1
    slicer.util.updateVolumeFromArray(image, array)
    slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode(image, node)
    scene.RemoveNode(image)
    return node


def test_show_3d_button_makes_and_removes_the_surface(scene: Any) -> None:
    button, node = slicer.qMRMLSegmentationShow3DButton(), segmentation(scene)
    assert not button.enabled
    button.setSegmentationNode(node)
    assert button.enabled
    button.click()
    assert node.GetSegmentation().ContainsRepresentation("Closed surface")
    button.click()
    assert not node.GetSegmentation().ContainsRepresentation("Closed surface")
    button.setSegmentationNode(None)
    assert not button.enabled


# --- slicer.app and slicer.util ---


def test_settings_live_in_a_file_and_can_be_reset(scene: Any) -> None:
    settings = slicer.app.userSettings()
    settings.setValue("SemanticGAN/model", "/a/b")
    settings.sync()
    assert "model" in Path(settings.fileName()).read_text()
    assert not Path(settings.fileName()).is_relative_to(Path.home() / ".config")
    assert qt.QSettings().value("SemanticGAN/model") == "/a/b"
    assert slicer.util.settingsValue("SemanticGAN/model", "none") == "/a/b"
    standin.reset()
    assert slicer.app.settings().value("SemanticGAN/model") is None
    assert slicer.util.settingsValue("SemanticGAN/model", "none") == "none"


def test_dialogs_are_recorded(scene: Any) -> None:
    slicer.util.errorDisplay("broken", detailedText="line 3")
    slicer.util.warningDisplay("odd")
    slicer.util.infoDisplay("done")
    assert slicer.app.messages == [
        ("error", "broken", "line 3"),
        ("warning", "odd", None),
        ("info", "done", None),
    ]


def test_questions_are_answered_from_the_queue(scene: Any) -> None:
    slicer.app.answers = [False, True]
    assert slicer.util.confirmOkCancelDisplay("first?") is False
    assert slicer.util.confirmYesNoDisplay("second?") is True
    slicer.app.default_answer = False
    assert slicer.util.confirmOkCancelDisplay("third?") is False
    assert [message.kind for message in slicer.app.messages] == [
        "confirmOkCancel",
        "confirmYesNo",
        "confirmOkCancel",
    ]


def test_in_testing_mode_nobody_is_asked(scene: Any) -> None:
    slicer.app.commandOptions().testingEnabled = True
    slicer.app.answers = [False]
    assert slicer.app.testingEnabled()
    assert slicer.util.confirmOkCancelDisplay("sure?") is True
    assert slicer.app.answers == [False]


def test_startup_calls_back(scene: Any) -> None:
    got: list[bool] = []
    slicer.app.connect("startupCompleted()", lambda: got.append(True))
    assert got == []
    slicer.app.startup()
    assert got == [True]


def test_application_has_places_and_no_window(scene: Any) -> None:
    for place in (slicer.app.temporaryPath, slicer.app.cachePath, slicer.app.slicerHome):
        assert Path(place).is_dir()
    assert slicer.app.applicationVersion.startswith("5.")
    assert slicer.app.layoutManager() is None
    assert slicer.util.mainWindow() is None
    slicer.util.selectModule("Data")
    assert slicer.app.selected_modules == ["Data"]
    slicer.app.setOverrideCursor(qt.Qt.WaitCursor)
    assert qt.QApplication.overrideCursor() is not None
    slicer.app.restoreOverrideCursor()
    assert qt.QApplication.overrideCursor() is None


def test_translation_can_be_set(scene: Any, module_path: Path) -> None:
    slicer.app.translations = {"Tiny module": "Kleines Modul"}
    _, widget, meta = standin.load_module(module_path)
    standin.unload(widget)
    assert meta.title == "Kleines Modul"
    assert meta.categories == ["Segmentation"]


def test_sample_data_is_recorded_as_in_slicer(scene: Any) -> None:
    from SampleData import SampleDataLogic

    seen: list[Any] = []
    SampleDataLogic.registerCustomSampleDataCategory("SemanticGAN", title="Semantic GAN")
    description = {
        "category": "SemanticGAN",
        "sampleName": "SemanticGANPhantom",
        "uris": "https://example.org/phantom.nrrd",
        "fileNames": "phantom.nrrd",
        "nodeNames": "Phantom",
        "loadFileType": "VolumeFile",
        "customDownloader": seen.append,
    }
    SampleDataLogic.registerCustomSampleDataSource(**description)
    SampleDataLogic.registerCustomSampleDataSource(**description)
    (source,) = slicer.modules.sampleDataSources["SemanticGAN"]
    assert (source.uris, source.nodeNames, source.loadFileTypes) == (
        ["https://example.org/phantom.nrrd"],
        ["Phantom"],
        ["VolumeFile"],
    )
    assert SampleDataLogic.categoryTitle("SemanticGAN") == "Semantic GAN"
    standin.press_sample("SemanticGANPhantom")
    assert seen == [source]
    with pytest.raises(TypeError):
        SampleDataLogic.registerCustomSampleDataSource(**description, sampleDescription="not in Slicer 5.13")
    standin.reset()
    assert SampleDataLogic.sampleDataSourcesByCategory() == {}


# --- scene ---


def test_new_scene_has_the_nodes_of_a_started_slicer(scene: Any) -> None:
    for name, orientation in (("Red", "Axial"), ("Green", "Coronal"), ("Yellow", "Sagittal")):
        node = scene.GetSingletonNode(name, "vtkMRMLSliceNode")
        assert (node.GetLayoutName(), node.GetOrientation()) == (name, orientation)
        composite = slicer.app.applicationLogic().GetSliceLogic(node).GetSliceCompositeNode()
        assert composite.GetLayoutName() == name
    assert scene.GetNumberOfNodesByClass("vtkMRMLSliceCompositeNode") == 3
    assert scene.GetNumberOfNodesByClass("vtkMRMLSelectionNode") == 1
    assert standin.leaves(scene) == []


def test_selection_reaches_the_slice_views(scene: Any) -> None:
    node = volume()
    logic = slicer.app.applicationLogic()
    logic.GetSelectionNode().SetActiveVolumeID(node.GetID())
    logic.PropagateVolumeSelection(0)
    composites = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    assert {composite.GetBackgroundVolumeID() for composite in composites} == {node.GetID()}


def test_leaves_are_what_a_module_left_behind(scene: Any) -> None:
    volume("b")
    volume("a")
    assert standin.leaves(scene) == [("vtkMRMLScalarVolumeNode", "a"), ("vtkMRMLScalarVolumeNode", "b")]
    scene.Clear(0)
    assert standin.leaves(scene) == []


@pytest.mark.parametrize(
    "name", ["segmentations", "volumes", "terminologies", "subjecthierarchy", "sequences", "colors", "units"]
)
def test_logics_work_on_the_scene(scene: Any, name: str) -> None:
    assert getattr(slicer.modules, name).logic().GetMRMLScene() is scene


def test_subject_hierarchy_has_items_for_data(scene: Any) -> None:
    hierarchy_of = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode
    image, segments = volume(), volume("seg", "vtkMRMLSegmentationNode")
    hierarchy = hierarchy_of(scene)
    assert hierarchy.GetItemByDataNode(image)
    assert hierarchy.GetItemName(hierarchy.GetItemByDataNode(segments)) == "seg"
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(segments), hierarchy.GetItemByDataNode(image))
    scene.RemoveNode(segments)
    assert hierarchy.GetNumberOfItems() == 1
    scene.Clear(0)
    assert hierarchy_of(scene).GetNumberOfItems() == 0
    assert hierarchy_of(scene).GetItemByDataNode(volume())


def test_terminology_knows_liver_and_spleen(scene: Any) -> None:
    logic = slicer.modules.terminologies.logic()
    assert logic.IsTerminologyContextLoaded(standin.TERMINOLOGY)
    colours = {}
    category = slicer.vtkSlicerTerminologyCategory()
    logic.GetNthCategoryInTerminology(standin.TERMINOLOGY, 0, category)
    assert (category.GetCodeValue(), category.GetCodeMeaning()) == ("123037004", "Anatomical Structure")
    for index in range(logic.GetNumberOfTypesInTerminologyCategory(standin.TERMINOLOGY, category)):
        kind = slicer.vtkSlicerTerminologyType()
        logic.GetNthTypeInTerminologyCategory(standin.TERMINOLOGY, category, index, kind)
        colours[kind.GetCodeValue()] = tuple(kind.GetRecommendedDisplayRGBValue())
    assert colours == {"10200004": (221, 130, 101), "78961009": (157, 108, 162)}


def test_segments_come_back_as_arrays(scene: Any) -> None:
    node, image = segmentation(scene), volume()
    slicer.util.updateVolumeFromArray(image, np.zeros((8, 9, 10), np.int16))
    segment = node.GetSegmentation().GetNthSegmentID(0)
    array = slicer.util.arrayFromSegmentBinaryLabelmap(node, segment, image)
    assert (array.shape, array.sum()) == ((8, 9, 10), 4**3)


def test_files_are_read_and_written(scene: Any, tmp_path: Path) -> None:
    image, segments = volume(), segmentation(scene)
    array = np.arange(8 * 9 * 10, dtype=np.int16).reshape(8, 9, 10)
    slicer.util.updateVolumeFromArray(image, array)
    for node, name in ((image, "case.nii.gz"), (segments, "case.seg.nrrd")):
        assert slicer.util.saveNode(node, str(tmp_path / name))
    again = slicer.util.loadVolume(tmp_path / "case.nii.gz", {"name": "again"})
    assert (again.GetName(), again.GetImageData().GetDimensions()) == ("again", (10, 9, 8))
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(again), array)
    assert (
        slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")[0].GetBackgroundVolumeID() == again.GetID()
    )
    loaded = slicer.util.loadSegmentation(tmp_path / "case.seg.nrrd")
    assert loaded.GetSegmentation().GetNumberOfSegments() == 1
    with pytest.raises(RuntimeError):
        slicer.util.loadVolume(tmp_path / "missing.nii.gz")


def test_scene_bundle_comes_back(scene: Any, tmp_path: Path) -> None:
    image = volume()
    slicer.util.updateVolumeFromArray(image, np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    assert scene.WriteToMRB(str(tmp_path / "scene.mrb"))
    standin.new_scene()
    read = standin.read_mrb(tmp_path / "scene.mrb")
    assert [kind for kind, _ in standin.leaves(read)] == [
        "vtkMRMLScalarVolumeNode",
        "vtkMRMLVolumeArchetypeStorageNode",
    ]
    np.testing.assert_array_equal(
        slicer.util.arrayFromVolume(slicer.util.getNode("CT")).ravel(), np.arange(24)
    )


def test_old_scene_is_let_go() -> None:
    """Otherwise the volumes of all tests stay in memory."""
    died: list[bool] = []
    standin.new_scene().AddObserver(vtk.vtkCommand.DeleteEvent, lambda *_: died.append(True))
    volume()
    standin.new_scene()
    gc.collect()
    assert died


# --- loading a module ---


def test_module_is_loaded_as_slicer_does(scene: Any, module_path: Path) -> None:
    module, widget, meta = standin.load_module(module_path)
    assert meta.title == "Tiny module"
    assert slicer.util.modulePath("Tiny") == str(module_path)
    assert isinstance(slicer.modules.TinyInstance, module.Tiny)
    assert slicer.modules.TinyWidget is widget
    assert widget.parent.isEntered
    assert widget.calls == ["enter"]
    assert not widget.developerMode
    assert Path(widget.resourcePath("UI/Tiny.ui")).is_file()
    assert type(widget.parent) is slicer.qMRMLWidget
    standin.unload(widget)
    assert widget.calls == ["enter", "cleanup"]
    assert not hasattr(slicer.modules, "TinyWidget")


def test_unload_deletes_the_panel(panel: Any) -> None:
    label = panel.ui.statusLabel
    standin.unload(panel)
    with pytest.raises(RuntimeError):
        label.setText("gone")


def test_another_file_of_the_same_name_is_another_module(
    scene: Any, module_path: Path, tmp_path: Path
) -> None:
    first, widget, _ = standin.load_module(module_path)
    standin.unload(widget)
    other = tmp_path / "other"
    (other / "Resources" / "UI").mkdir(parents=True)
    (other / "Resources" / "UI" / "Tiny.ui").write_text(UI)
    (other / "Tiny.py").write_text(MODULE)
    second, widget, _ = standin.load_module(other / "Tiny.py")
    standin.unload(widget)
    assert first is not second
    assert second.__file__ == str(other / "Tiny.py")


def test_module_tests_can_be_run(panel: Any) -> None:
    slicer.tinyTestRan = False
    slicer.modules.TinyInstance.runTest()
    assert slicer.tinyTestRan


def test_error_in_a_slot_is_shown_and_the_cursor_restored(panel: Any) -> None:
    panel.ui.applyButton.click()
    (message,) = slicer.app.messages
    assert message.kind == "error"
    assert "no liver here" in message.text
    assert "Traceback" in message.detailedText
    assert qt.QApplication.overrideCursor() is None


def test_error_that_nobody_catches_is_kept(scene: Any, capsys: pytest.CaptureFixture) -> None:
    button = qt.QPushButton()
    button.clicked.connect(lambda: 1 / 0)
    button.click()
    observed = vtk.vtkObject()
    observed.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: [][1])
    observed.Modified()
    assert [type(error) for error in slicer.app.uncaught] == [ZeroDivisionError, IndexError]


def test_logic_has_one_parameter_node(panel: Any) -> None:
    node = panel.logic.getParameterNode()
    assert (node.GetSingletonTag(), node.GetAttribute("ModuleName")) == ("Tiny", "Tiny")
    assert panel.logic.getParameterNode() is node
    slicer.mrmlScene.Clear(0)
    assert panel.logic.getParameterNode().GetAttribute("ModuleName") == "Tiny"


# --- parameterNodeWrapper ---


def parameter_class() -> Any:
    @parameterNodeWrapper
    class Parameters:
        image: slicer.vtkMRMLScalarVolumeNode
        anything: slicer.vtkMRMLScalarVolumeNode | slicer.vtkMRMLSegmentationNode | None
        name: str = "start"
        count: Annotated[int, Minimum(1), Maximum(9), Default(3)]
        ratio: Annotated[float, WithinRange(0.0, 1.0)]
        device: Annotated[str, Choice(["auto", "cpu"])] = "auto"
        fast: bool
        folder: pathlib.Path

    return Parameters


def parameter_node(scene: Any) -> Any:
    return scene.AddNewNodeByClass("vtkMRMLScriptedModuleNode")


def test_parameters_start_with_defaults_that_are_in_the_node(scene: Any) -> None:
    node = parameter_node(scene)
    parameters = parameter_class()(node)
    assert (parameters.image, parameters.name, parameters.count) == (None, "start", 3)
    assert (parameters.ratio, parameters.device, parameters.fast) == (0, "auto", False)
    assert parameters.folder == pathlib.Path()
    assert node.GetParameter("count") == "3"
    assert node.HasParameter("image")


def test_parameters_survive_in_the_node(scene: Any) -> None:
    node, image = parameter_node(scene), volume()
    parameters = parameter_class()(node)
    parameters.image, parameters.name, parameters.count, parameters.ratio = image, "x", 7, 0.25
    parameters.fast, parameters.folder, parameters.device = True, pathlib.Path("/a/b"), "cpu"
    parameters.anything = segments = volume("seg", "vtkMRMLSegmentationNode")
    again = parameter_class()(node)
    assert (again.image, again.name, again.count, again.ratio) == (image, "x", 7, 0.25)
    assert (again.fast, again.folder, again.device, again.anything) == (
        True,
        pathlib.Path("/a/b"),
        "cpu",
        segments,
    )
    scene.RemoveNode(image)
    assert again.image is None


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("count", 0, ValueError),
        ("count", 10, ValueError),
        ("count", 2.5, TypeError),
        ("ratio", 1.5, ValueError),
        ("device", "tpu", ValueError),
        ("name", None, ValueError),
        ("folder", "/a/b", TypeError),
        ("fast", 1, TypeError),
    ],
)
def test_wrong_value_is_refused_and_not_stored(scene: Any, name: str, value: Any, error: type) -> None:
    parameters = parameter_class()(parameter_node(scene))
    before = getattr(parameters, name)
    with pytest.raises(error):
        setattr(parameters, name, value)
    assert getattr(parameters, name) == before


def test_wrong_node_type_is_refused(scene: Any) -> None:
    parameters = parameter_class()(parameter_node(scene))
    with pytest.raises(TypeError):
        parameters.image = volume("seg", "vtkMRMLSegmentationNode")


def test_connected_panel_takes_the_values_of_the_node(scene: Any, module_path: Path) -> None:
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode")
    image = volume()
    module, widget, _ = standin.load_module(module_path)
    parameters = module.TinyParameterNode(node)
    parameters.inputVolume, parameters.device, parameters.steps = image, "cpu", 77
    parameters.threshold, parameters.fast, parameters.model = 0.75, True, pathlib.Path("/m")
    widget.parameters.disconnectGui(widget.guiTag)
    parameters.connectGui(widget.ui)
    ui = widget.ui
    assert ui.inputSelector.currentNode() is image
    assert (ui.deviceBox.currentText, ui.deviceBox.count) == ("cpu", 3)
    assert (ui.stepsBox.value, ui.stepsBox.minimum, ui.stepsBox.maximum) == (77, 1, 2000)
    assert (ui.thresholdBox.value, ui.fastBox.checked, ui.modelEdit.currentPath) == (0.75, True, "/m")
    assert (parameters.device, parameters.steps) == ("cpu", 77)
    standin.unload(widget)


def test_panel_and_node_follow_each_other(panel: Any) -> None:
    ui, parameters, image = panel.ui, panel.parameters, volume()
    ui.inputSelector.setCurrentNode(image)
    ui.deviceBox.setCurrentText("cuda")
    ui.stepsBox.value = 12
    ui.thresholdBox.setValue(0.25)
    ui.fastBox.click()
    ui.modelEdit.setCurrentPath("/models/a")
    assert (parameters.inputVolume, parameters.device, parameters.steps) == (image, "cuda", 12)
    assert (parameters.threshold, parameters.fast, parameters.model) == (
        0.25,
        True,
        pathlib.Path("/models/a"),
    )
    parameters.inputVolume, parameters.device, parameters.steps = None, "auto", 5
    parameters.threshold, parameters.fast, parameters.model = 1.0, False, pathlib.Path("/b")
    assert ui.inputSelector.currentNode() is None
    assert (ui.deviceBox.currentText, ui.stepsBox.value) == ("auto", 5)
    assert (ui.thresholdBox.value, ui.fastBox.checked, ui.modelEdit.currentPath) == (1.0, False, "/b")


def test_disconnected_panel_and_node_go_their_ways(panel: Any) -> None:
    panel.parameters.disconnectGui(panel.guiTag)
    panel.ui.stepsBox.value = 9
    assert panel.parameters.steps == 200
    panel.parameters.steps = 55
    assert panel.ui.stepsBox.value == 9


@pytest.mark.skipif(
    standin.GENUINE is not None, reason="Slicer's own has more observers, and its own test of this"
)
def test_disconnecting_leaves_no_observer(scene: Any) -> None:
    parameters = parameter_class()(parameter_node(scene))
    tag = parameters.connectParametersToGui({"fast": qt.QCheckBox()})
    assert parameters.parameterNode.HasObserver(vtk.vtkCommand.ModifiedEvent)
    parameters.disconnectGui(tag)
    assert not parameters.parameterNode.HasObserver(vtk.vtkCommand.ModifiedEvent)


def test_only_exact_widget_types_are_bound(scene: Any) -> None:
    class OtherCheckBox(qt.QCheckBox):
        pass

    parameters = parameter_class()(parameter_node(scene))
    with pytest.raises(RuntimeError, match="GUI connector"):
        parameters.connectParametersToGui({"fast": OtherCheckBox()})
    with pytest.raises(RuntimeError, match="Choice"):
        parameters.connectParametersToGui({"name": qt.QComboBox()})
    with pytest.raises(ValueError, match="nothing"):
        parameters.connectParametersToGui({"nothing": qt.QCheckBox()})


def test_node_tells_of_changed_parameters(panel: Any) -> None:
    got: list[int] = []
    panel.addObserver(
        panel.parameters, vtk.vtkCommand.ModifiedEvent, lambda *_: got.append(panel.parameters.steps)
    )
    panel.parameters.steps = 31
    assert got == [31]


# --- event loop ---


def test_pump_waits_and_gives_up() -> None:
    done: list[bool] = []
    qt.QTimer.singleShot(30, lambda: done.append(True))
    standin.pump(lambda: done, 2)
    with pytest.raises(AssertionError):
        standin.pump(lambda: False, 0.05)


def test_probe_sees_a_freeze() -> None:
    with standin.EventLoopProbe() as probe:
        qt.QTimer.singleShot(20, lambda: time.sleep(0.3))
        end = time.monotonic() + 0.6
        standin.pump(lambda: time.monotonic() > end, 2)
    assert probe.max_gap_ms > 290
    assert probe.ticks > 10


def test_probe_sees_that_nothing_ever_ran() -> None:
    with standin.EventLoopProbe() as probe:
        time.sleep(0.1)
    assert probe.max_gap_ms >= 99
    assert probe.ticks == 0
