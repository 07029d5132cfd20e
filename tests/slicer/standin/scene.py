"""Makes a MRML scene as Slicer has it after its start: real nodes, real logics, a few terms of anatomy."""

from __future__ import annotations

import atexit
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import slicer
import vtk

TERMINOLOGY = "Segmentation category and type - 3D Slicer General Anatomy list"
_SCHEMAS = "https://raw.githubusercontent.com/qiicr/dcmqi/master/doc/schemas/"
_SLICES = (("Red", "R", "Axial"), ("Green", "G", "Coronal"), ("Yellow", "Y", "Sagittal"))
_LOGICS = {
    "Colors": slicer.vtkSlicerColorLogic,
    "Segmentations": slicer.vtkSlicerSegmentationsModuleLogic,
    "Sequences": slicer.vtkSlicerSequencesLogic,
    "SubjectHierarchy": slicer.vtkSlicerSubjectHierarchyModuleLogic,
    "Terminologies": slicer.vtkSlicerTerminologiesModuleLogic,
    "Units": slicer.vtkSlicerUnitsLogic,
    "Volumes": slicer.vtkSlicerVolumesLogic,
}
# In Slicer a plugin decides; these classes have one.
_IN_SUBJECT_HIERARCHY = (
    "vtkMRMLVolumeNode",
    "vtkMRMLSegmentationNode",
    "vtkMRMLTransformNode",
    "vtkMRMLModelNode",
    "vtkMRMLMarkupsNode",
    "vtkMRMLTableNode",
    "vtkMRMLTextNode",
    "vtkMRMLSequenceBrowserNode",
    "vtkMRMLSequenceNode",
)


def new_scene() -> Any:
    """A fresh scene, from now on ``slicer.mrmlScene``, with fresh logics in ``slicer.modules``."""
    _let_go()
    scene = slicer.vtkMRMLScene()
    application_logic = slicer.vtkSlicerApplicationLogic()
    _give_folders(application_logic)
    application_logic.SetMRMLScene(scene)
    _give_cache(scene)
    logics = {name: _make_logic(name, cls, scene, application_logic) for name, cls in _LOGICS.items()}
    slicer.mrmlScene = scene
    for name, logic in logics.items():
        module = SimpleNamespace(name=name, logic=lambda logic=logic: logic)
        setattr(slicer.modules, name.lower(), module)
    slicer.modules.application_logic = application_logic
    slicer.modules.slice_logics = _add_slices(scene, application_logic)
    _add_crosshair(scene)
    _keep_subject_hierarchy(scene)
    slicer.modules.default_nodes = Counter(_names(scene))
    return scene


def leaves(scene: Any | None = None) -> list[tuple[str, str]]:
    """(class, name) of the nodes that the scene did not have when it was new, sorted."""
    scene = slicer.mrmlScene if scene is None else scene
    return sorted((Counter(_names(scene)) - slicer.modules.default_nodes).elements())


def _names(scene: Any) -> list[tuple[str, str]]:
    nodes = (scene.GetNthNode(index) for index in range(scene.GetNumberOfNodes()))
    return [(node.GetClassName(), node.GetName() or "") for node in nodes]


def _give_folders(application_logic: Any) -> None:
    """Where the colour logic looks for colour files; it complains without."""
    application_logic.SetHomeDirectory(slicer.app.slicerHome)
    application_logic.SetShareDirectory("share")
    Path(slicer.app.slicerHome, "share", "ColorFiles").mkdir(parents=True, exist_ok=True)


def _give_cache(scene: Any) -> None:
    """Where scene bundles are unpacked."""
    manager = slicer.vtkCacheManager()
    manager.SetRemoteCacheDirectory(slicer.app.cachePath)
    manager.SetMRMLScene(scene)
    scene.SetCacheManager(manager)
    data_io = slicer.vtkDataIOManager()
    data_io.SetCacheManager(manager)
    scene.SetDataIOManager(data_io)


def _make_logic(name: str, cls: type, scene: Any, application_logic: Any) -> Any:
    logic = cls()
    logic.SetMRMLApplicationLogic(application_logic)
    if name == "Terminologies":
        logic.SetModuleShareDirectory(str(_write_terminologies(Path(slicer.app.slicerHome))))
    logic.SetMRMLScene(scene)  # the terminologies are read here
    application_logic.SetModuleLogic(name, logic)
    return logic


def _add_slices(scene: Any, application_logic: Any) -> list[Any]:
    """The slice views' nodes and logics. In Slicer the layout makes them."""
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene)
    logics = []
    collection = vtk.vtkCollection()
    for name, label, orientation in _SLICES:
        node = scene.CreateNodeByClass("vtkMRMLSliceNode")  # with the orientation presets of the scene
        node.UnRegister(None)
        node.SetSingletonTag(name)
        node.SetName(name)
        node.SetLayoutName(name)
        node.SetLayoutLabel(label)
        node = scene.AddNode(node)
        node.SetOrientation(orientation)
        logic = slicer.vtkMRMLSliceLogic()
        logic.SetMRMLApplicationLogic(application_logic)
        logic.SetSliceNode(node)  # before the scene: the nodes that it adds are named after it
        logic.SetMRMLScene(scene)
        collection.AddItem(logic)
        logics.append(logic)
    application_logic.SetSliceLogics(collection)
    return logics


def _add_crosshair(scene: Any) -> None:
    """In Slicer the views make it; reading a scene would add it."""
    crosshair = slicer.vtkMRMLCrosshairNode()
    crosshair.SetSingletonTag("default")
    crosshair.SetName("Crosshair")
    scene.AddNode(crosshair)


def _keep_subject_hierarchy(scene: Any) -> None:
    """Give data nodes an item and take it away again, as qSlicerSubjectHierarchyPluginLogic does.

    A stand-in: without its plugins; a segmentation has no items for its segments here.
    A scene that dies says that it is closed and does not survive being given a node then, so the observers end
    before it (``_let_go``), and they are plain functions: a closure over the scene would keep it alive.
    """
    _resolve_hierarchy(scene)
    for event, callback in (
        (scene.NodeAddedEvent, _on_node_added),
        (scene.NodeAboutToBeRemovedEvent, _on_node_about_to_be_removed),
        (scene.EndImportEvent, _on_imported),
        (scene.EndCloseEvent, _resolve_hierarchy),
    ):
        _observers.append((scene, scene.AddObserver(event, callback)))


_observers: list[tuple[Any, int]] = []


@atexit.register
def _let_go() -> None:
    """Leave the scene there was."""
    for scene, tag in _observers:
        scene.RemoveObserver(tag)
    _observers.clear()


def _resolve_hierarchy(scene: Any, _event: str = "") -> Any:
    """The scene's one subject hierarchy, made when closing has removed it."""
    return slicer.vtkMRMLSubjectHierarchyNode.ResolveSubjectHierarchy(scene)


def _add_to_hierarchy(scene: Any, node: Any) -> None:
    if node.GetHideFromEditors() or not any(node.IsA(kind) for kind in _IN_SUBJECT_HIERARCHY):
        return
    hierarchy = _resolve_hierarchy(scene)
    if not hierarchy.GetItemByDataNode(node):
        hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)


def _on_node_added(scene: Any, _event: str, node: Any) -> None:
    if not scene.IsImporting():
        _add_to_hierarchy(scene, node)


def _on_node_about_to_be_removed(scene: Any, _event: str, node: Any) -> None:
    if scene.IsClosing() or node.IsA("vtkMRMLSubjectHierarchyNode"):
        return
    hierarchy = scene.GetSubjectHierarchyNode()
    item = hierarchy.GetItemByDataNode(node) if hierarchy is not None else 0
    if item:
        hierarchy.RemoveItem(item, False, False)


def _on_imported(scene: Any, _event: str) -> None:
    for index in range(scene.GetNumberOfNodes()):
        _add_to_hierarchy(scene, scene.GetNthNode(index))


_on_node_added.CallDataType = _on_node_about_to_be_removed.CallDataType = vtk.VTK_OBJECT


# --- terminologies ---


def _code(value: str, meaning: str, **more: Any) -> dict[str, Any]:
    return {"CodingSchemeDesignator": "SCT", "CodeValue": value, "CodeMeaning": meaning, **more}


def _write_terminologies(folder: Path) -> Path:
    """The three files that Slicer's terminology logic reads at its start, with two organs."""
    anatomy = _code(
        "123037004",
        "Anatomical Structure",
        showAnatomy="false",
        Type=[
            _code("10200004", "Liver", recommendedDisplayRGBValue=[221, 130, 101])
            | {"3dSlicerLabel": "liver"},
            _code("78961009", "Spleen", recommendedDisplayRGBValue=[157, 108, 162])
            | {"3dSlicerLabel": "spleen"},
        ],
    )
    for file, context in (
        ("SlicerGeneralAnatomy", TERMINOLOGY),
        ("DICOM-Master", "Segmentation category and type - DICOM master list"),
    ):
        content = {
            "SegmentationCategoryTypeContextName": context,
            "@schema": _SCHEMAS + "segment-context-schema.json#",
            "SegmentationCodes": {"Category": [anatomy]},
        }
        (folder / f"SegmentationCategoryTypeModifier-{file}.term.json").write_text(json.dumps(content))
    regions = {
        "AnatomicContextName": "Anatomic codes - DICOM master list",
        "@schema": _SCHEMAS + "anatomic-context-schema.json#",
        "AnatomicCodes": {"AnatomicRegion": [_code("818981001", "Abdomen")]},
    }
    (folder / "AnatomicRegionAndModifier-DICOM-Master.term.json").write_text(json.dumps(regions))
    return folder
