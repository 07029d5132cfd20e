"""Stand-in for Slicer's IO manager: volumes, segmentations and scenes through the real logics and storage nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import slicer

# Bits of vtkSlicerVolumesLogic::LoadingOptions, by the property's name in slicer.util.loadVolume.
_VOLUME_OPTIONS = {
    "labelmap": 1,
    "center": 2,
    "singleFile": 4,
    "autoWindowLevel": 8,
    "discardOrientation": 16,
}


class IOManager:
    """What slicer.util.loadVolume, loadSegmentation and saveNode need of qSlicerCoreIOManager."""

    def fileType(self, filename: str) -> str:
        """By the ending of the name."""
        return "SegmentationFile" if ".seg." in Path(filename).name else "VolumeFile"

    def loadNodes(
        self, filetype: str, properties: dict[str, Any], loaded: Any, _messages: Any = None
    ) -> bool:
        """Read a file; the node goes into the vtkCollection ``loaded``."""
        readers = {"VolumeFile": self._load_volume, "SegmentationFile": self._load_segmentation}
        node = readers[filetype](properties["fileName"], properties)
        if node is not None:
            loaded.AddItem(node)
        return node is not None

    def fileWriterFileType(self, _node: Any) -> str:
        """The storage node knows."""
        return "NodeFile"

    def saveNodes(self, _filetype: str, properties: dict[str, Any], _messages: Any = None) -> bool:
        """Write a node with its storage node."""
        node = slicer.mrmlScene.GetNodeByID(properties["nodeID"])
        if node.GetStorageNode() is None:
            node.AddDefaultStorageNode()
        storage = node.GetStorageNode()
        storage.SetFileName(str(properties["fileName"]))
        return bool(storage.WriteData(node))

    @staticmethod
    def _load_volume(path: str, properties: dict[str, Any]) -> Any:
        options = sum(bit for name, bit in _VOLUME_OPTIONS.items() if properties.get(name))
        name = properties.get("name") or slicer.app.mrmlScene().GenerateUniqueName(_node_name(path))
        node = slicer.modules.volumes.logic().AddArchetypeVolume(path, name, options)
        if node is not None and properties.get("show", True):
            logic = slicer.app.applicationLogic()
            logic.GetSelectionNode().SetActiveVolumeID(node.GetID())
            logic.PropagateVolumeSelection(0)
        return node

    @staticmethod
    def _load_segmentation(path: str, properties: dict[str, Any]) -> Any:
        opacities = bool(properties.get("autoOpacities", True))
        logic = slicer.modules.segmentations.logic()
        return logic.LoadSegmentationFromFile(path, opacities, properties.get("name") or _node_name(path))


def _node_name(path: str) -> str:
    """``case.nii.gz`` and ``case.seg.nrrd`` -> ``case``."""
    name = Path(path).name
    for ending in (".seg.nrrd", ".seg.nhdr", ".nii.gz"):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return Path(path).stem


def read_mrb(path: str | Path) -> Any:
    """Read a scene bundle into ``slicer.mrmlScene`` (which it clears), as File / Add Data does."""
    messages = slicer.vtkMRMLMessageCollection()
    if not slicer.mrmlScene.ReadFromMRB(str(path), True, messages):
        raise RuntimeError(f"Failed to read {path}: {messages.GetAllMessagesAsString()}")
    return slicer.mrmlScene
