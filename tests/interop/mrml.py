"""Opens files as 3D Slicer does: by its own readers, from the package slicer-core."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from tools import Opened
from vtk.util.numpy_support import vtk_to_numpy

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Segment:
    """A segment as 3D Slicer shows it."""

    name: str
    rgb: np.ndarray  # (3,), 0 to 255
    value: int  # in the file
    terminology: str  # the entry as text
    kind: tuple[str, str, str]  # scheme, code and meaning of its type, as 3D Slicer parses the entry
    category: tuple[str, str, str]
    opened: Opened
    volume_ml: float


class Slicer:
    """A scene with the logics that load files."""

    def __init__(self) -> None:
        self.scene, self.application = slicer.vtkMRMLScene(), slicer.vtkSlicerApplicationLogic()
        self.application.SetMRMLScene(self.scene)
        self._colours = self._logic("Colors", slicer.vtkSlicerColorLogic())  # volumes get theirs from it
        self._segmentations = self._logic("Segmentations", slicer.vtkSlicerSegmentationsModuleLogic())
        self._volumes = self._logic("Volumes", slicer.vtkSlicerVolumesLogic())
        self._terminologies = slicer.vtkSlicerTerminologiesModuleLogic()

    def _logic(self, name: str, logic: Any) -> Any:
        logic.SetMRMLApplicationLogic(self.application)
        logic.SetMRMLScene(self.scene)
        self.application.SetModuleLogic(name, logic)
        return logic

    def segmentation(self, path: Path) -> Any:
        """The vtkMRMLSegmentationNode of a file, as by "Add data"."""
        node = self._segmentations.LoadSegmentationFromFile(str(path), True)
        assert node is not None, f"3D Slicer does not load {path.name}"
        return node

    def segments(self, path: Path) -> list[Segment]:
        """The segments of a file, in its order."""
        node = self.segmentation(path)
        segmentation = node.GetSegmentation()
        ids = [segmentation.GetNthSegmentID(index) for index in range(segmentation.GetNumberOfSegments())]
        return [self._segment(node, segmentation.GetSegment(one), one) for one in ids]

    def _segment(self, node: Any, segment: Any, segment_id: str) -> Segment:
        image = slicer.vtkOrientedImageData()
        assert node.GetBinaryLabelmapRepresentation(segment_id, image)  # its mask alone, as modules get it
        text, entry = vtk.reference(""), slicer.vtkSlicerTerminologyEntry()
        assert segment.GetTag(segment.GetTerminologyEntryTagName(), text)
        assert self._terminologies.DeserializeTerminologyEntry(str(text), entry)
        return Segment(
            segment.GetName(),
            np.array(segment.GetColor()) * 255,
            segment.GetLabelValue(),
            str(text),
            _code(entry.GetTypeObject()),
            _code(entry.GetCategoryObject()),
            opened_by_slicer(image),
            _volume_ml(image),
        )

    def reference_geometry(self, path: Path) -> Opened:
        """The voxels on which segments that are edited or added in 3D Slicer are drawn."""
        segmentation, image = self.segmentation(path).GetSegmentation(), slicer.vtkOrientedImageData()
        geometry = segmentation.GetConversionParameter("Reference image geometry")
        assert slicer.vtkSegmentationConverter.DeserializeImageGeometry(geometry, image, True, 1, 1)
        return opened_by_slicer(image)

    def volume(self, path: Path, *, as_labels: bool) -> Opened:
        """A file loaded as a volume."""
        node = self._volumes.AddArchetypeVolume(str(path), path.name, int(as_labels))
        assert node is not None, f"3D Slicer does not load {path.name}"
        assert node.IsA("vtkMRMLLabelMapVolumeNode") == as_labels
        to_ras = vtk.vtkMatrix4x4()
        node.GetIJKToRASMatrix(to_ras)
        return Opened(_values(node.GetImageData()), _RAS_TO_LPS @ _array(to_ras))


def opened_by_slicer(image: Any) -> Opened:
    """A vtkOrientedImageData, which counts in RAS and from the beginning of its extent."""
    to_world = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(to_world)
    affine = _RAS_TO_LPS @ _array(to_world)
    affine[:3, 3] += affine[:3, :3] @ image.GetExtent()[::2]
    return Opened(_values(image), affine)


def _volume_ml(image: Any) -> float:
    """As Segment Statistics computes it from a label map: voxels by vtkImageAccumulate, times their spacings."""
    threshold, accumulate = vtk.vtkImageThreshold(), vtk.vtkImageAccumulate()
    threshold.SetInputData(image)
    threshold.ThresholdByLower(0)
    threshold.SetInValue(0)
    threshold.SetOutValue(1)
    accumulate.SetInputConnection(threshold.GetOutputPort())
    accumulate.IgnoreZeroOn()
    accumulate.Update()
    return float(accumulate.GetVoxelCount() * np.prod(image.GetSpacing()) / 1000)


def _code(term: Any) -> tuple[str, str, str]:
    return term.GetCodingSchemeDesignator(), term.GetCodeValue(), term.GetCodeMeaning()


def _array(matrix: Any) -> np.ndarray:
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def _values(image: Any) -> np.ndarray:
    """(I, J, K) of a vtkImageData."""
    flat = vtk_to_numpy(image.GetPointData().GetScalars())
    return flat.reshape(image.GetDimensions()[::-1]).transpose()
