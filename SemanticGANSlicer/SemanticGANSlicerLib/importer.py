"""The engine's results as nodes of the scene.

What takes long is a generator that yields between pieces of some milliseconds, see ``process.Steps``. The scene is
changed in one go at its end, so whoever stops earlier leaves the scene as it was.
"""

import gzip
import json
import os
import shutil
import struct
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util import numpy_support

from .volumes import addNode, frameName, ijkToRas, isPicture, removeNode

_CHUNK_VOXELS = 1 << 20  # looked at between two events
_NIFTI_HEADER = 352  # bytes, with the four that say whether an extension follows
_TERMINOLOGY = "SemanticGAN"  # name of our context, and of its file
_MARK = "SemanticGAN"  # tag of the segments that we made: a run may replace them, and no others


@dataclass
class Result:
    """A finished run: what the panel shows of it.

    segmentation, volume: the nodes; case: the engine's record of the run (volumes, trust ...); labels: of its "start"
    event, with a segment each in segmentIds; undo: takes the run's change of the scene back; folder: the run's files,
    to be deleted with ``discard``.
    """

    segmentation: object
    volume: object
    case: dict
    labels: list
    segmentIds: list
    undo: object
    folder: str = ""

    def discard(self):
        """Forget what was kept for looking at the result. The scene stays as it is."""
        self.undo.forget()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def doubtfulSlices(self):
        """(number from 1, (R, A, S) mm) of the slices to look at."""
        centres, first = self.case.get("slice_centres_mm"), self.case.get("first_slice") or 1
        if not centres:
            return []
        return [(number, tuple(centres[number - first])) for number in self.case["trust"]["slices"]]


def readCase(folder):
    """The engine's record of the only case in a folder of results. Raises ValueError when there is none."""
    try:
        with open(os.path.join(folder, "run.json"), encoding="utf-8") as file:
            (case,) = json.load(file)["cases"]
        if case["status"] != "done":
            raise ValueError(case.get("error"))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(_("The result could not be read: {reason}").format(reason=error)) from error
    return case


def importResult(case, labels, volume, target=None):
    """Bring a result into the scene, piece by piece (a generator); returns a ``Result``.

    labels: of the engine's "start" event. target: the segmentation to update: segments that an earlier run made are
    replaced, all others stay as they are; None makes a new one. Raises ValueError when the file does not fit.
    """
    labelmap = yield from _readLabels(case["output"], volume)
    pieces = []
    for label in labels:
        piece = yield from _cropped(labelmap, label["value"])
        pieces.append((label, piece))
    return _changeScene(case, pieces, labels, volume, target)


def _readLabels(path, volume):
    """The label map (K, J, I) uint8 of a volume, on the volume's own voxels; a generator.

    NIfTI is read by hand, as libraries unpack all at once, which takes long for a large scan.
    """
    shape = slicer.util.arrayFromVolume(volume).shape[:3]
    if path.endswith(".png"):
        from PIL import Image  # Slicer brings it along; VTK and ITK would turn the palette into colours

        with Image.open(path) as picture:
            labelmap = np.asarray(picture, np.uint8)[None]
        _checkShape(labelmap.shape, shape)
        return labelmap
    with gzip.open(path) as file:
        header = file.read(_NIFTI_HEADER)
        _checkShape(struct.unpack_from("<3h", header, 42)[::-1], shape)  # field dim
        file.read(int(struct.unpack_from("<f", header, 108)[0]) - _NIFTI_HEADER)  # up to vox_offset
        labelmap = np.zeros(shape, np.uint8)
        for rows in _slabs(labelmap):
            piece = memoryview(labelmap[rows]).cast("B")
            if file.readinto(piece) < len(piece):
                raise ValueError(_("The result is incomplete. Was the disk full?"))
            yield
    return labelmap


def _checkShape(found, expected):
    if tuple(found) != tuple(expected):
        raise ValueError(
            _(
                "The result has {found} voxels, the volume {expected}. Was the volume changed during the run?"
            ).format(found=tuple(found)[::-1], expected=tuple(expected)[::-1])
        )


def _slabs(labelmap):
    """Runs of slices of a (K, J, I) array that are looked at between two events."""
    step = max(1, _CHUNK_VOXELS // max(1, labelmap[0].size))
    return [slice(first, first + step) for first in range(0, len(labelmap), step)]


def _cropped(labelmap, value):
    """(mask (k, j, i) uint8, first voxel (K, J, I)) of a label, (None, None) when absent; a generator."""
    found, rows, columns = [], np.zeros(labelmap.shape[1], bool), np.zeros(labelmap.shape[2], bool)
    for slab in _slabs(labelmap):
        mask = labelmap[slab] == value
        found += [slab.start + int(k) for k in np.flatnonzero(mask.any(axis=(1, 2)))]
        rows |= mask.any(axis=(0, 2))
        columns |= mask.any(axis=(0, 1))
        yield
    if not found:
        return None, None
    box = [(found[0], found[-1] + 1)]
    box += [
        (int(places[0]), int(places[-1]) + 1) for places in (np.flatnonzero(rows), np.flatnonzero(columns))
    ]
    mask = np.empty([last - first for first, last in box], np.uint8)
    inside = labelmap[tuple(slice(*side) for side in box)]
    for slab in _slabs(mask):
        mask[slab] = inside[slab] == value
        yield
    return mask, [first for first, _last in box]


def _changeScene(case, pieces, labels, volume, target):
    if volume.GetScene() is None:
        raise ValueError(_("The volume was removed from the scene; there is nothing to put the result on."))
    new = target is None
    if new:
        name = _("{name} segmentation").format(name=volume.GetName() + frameName(volume))
        target = addNode("vtkMRMLSegmentationNode", name)
        target.CreateDefaultDisplayNodes()
        target.GetSegmentation().SetSourceRepresentationName("Binary labelmap")
    undo = Undo(target, new)
    # With it comes the reference to the source volume, which DICOM export needs.
    target.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    segmentation = target.GetSegmentation()
    shown3D = segmentation.ContainsRepresentation("Closed surface")  # it goes with the last segment
    for segmentId in _ourSegments(segmentation):
        segmentation.RemoveSegment(segmentId)
    segmentIds = [_addSegment(segmentation, label, piece, volume) for label, piece in pieces]
    if shown3D:
        target.CreateClosedSurfaceRepresentation()
    if new:  # a person may have put the other elsewhere
        _placeBeside(target, volume)
    undo.done()
    return Result(target, volume, case, labels, segmentIds, undo)


def _ourSegments(segmentation):
    ids = [segmentation.GetNthSegmentID(index) for index in range(segmentation.GetNumberOfSegments())]
    return [one for one in ids if segmentation.GetSegment(one).HasTag(_MARK)]


def handOver(result):
    """Make the segments of a result the user's own: no later run replaces them."""
    result.discard()
    for segmentId in result.segmentIds:
        result.segmentation.GetSegmentation().GetSegment(segmentId).RemoveTag(_MARK)


def _addSegment(segmentation, label, piece, volume):
    mask, first = piece
    segment = slicer.vtkSegment()
    segment.SetName(label["name"])
    segment.SetColor(*recommendedColour(label))
    segment.SetTag(segment.GetTerminologyEntryTagName(), label.get("terminology", ""))
    segment.SetTag(_MARK, str(label["value"]))
    image = slicer.vtkOrientedImageData()
    image.SetImageToWorldMatrix(slicer.util.vtkMatrixFromArray(ijkToRas(volume)))
    if mask is None:  # absent: an empty segment, ready to be drawn into
        image.SetExtent(0, -1, 0, -1, 0, -1)
        image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    else:
        # (k, j, i) -> extent (i, i, j, j, k, k)
        extent = [
            end
            for start, size in zip(first[::-1], mask.shape[::-1], strict=True)
            for end in (start, start + size - 1)
        ]
        image.SetExtent(*extent)
        image.GetPointData().SetScalars(numpy_support.numpy_to_vtk(mask.ravel(), deep=True))
    segment.AddRepresentation("Binary labelmap", image)
    segmentId = segmentation.GenerateUniqueSegmentID(f"{_MARK}_{label['value']}")
    segmentation.AddSegment(segment, segmentId)
    return segmentId


def loadTerminology():
    """Make Slicer know the codes of the labels that models are trained on here, beside its own terminologies."""
    logic = slicer.modules.terminologies.logic()
    if not logic.IsTerminologyContextLoaded(_TERMINOLOGY):
        resources = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "Resources")
        logic.LoadTerminologyFromFile(os.path.join(resources, f"{_TERMINOLOGY}.term.json"))


def recommendedColour(label):
    """Colour (0 to 1) of a label: what Slicer's terminology recommends for its code, else the model's own."""
    logic, entry, rgb = slicer.modules.terminologies.logic(), slicer.vtkSlicerTerminologyEntry(), label["rgb"]
    if logic.DeserializeTerminologyEntry(label.get("terminology", ""), entry):
        kind = entry.GetTypeObject()
        kind.SetRecommendedDisplayRGBValue(*rgb)  # stays when no loaded terminology knows the code
        logic.UpdateEntryFromLoadedTerminologies(entry, [], [])
        rgb = kind.GetRecommendedDisplayRGBValue()
    return tuple(channel / 255.0 for channel in rgb)


def addReconstruction(result):
    """Add what the generator explained of the image as a volume beside it; returns the node.

    Raises ValueError when the file cannot be read.
    """
    path, volume = result.case.get("reconstruction_output") or "", result.volume
    if volume.GetScene() is None:
        raise ValueError(_("The volume was removed from the scene; there is nothing to compare with."))
    try:
        image = sitk.ReadImage(path)
    except RuntimeError as error:
        raise ValueError(_("The reconstruction is not there any more. Run again to see it.")) from error
    array = sitk.GetArrayFromImage(image)
    if path.endswith(".png"):
        array = array[None]  # (J, I[, 3]) -> (1, J, I[, 3])
    name = _("{name} reconstruction").format(name=volume.GetName())
    node = addNode(volume.GetClassName(), name)
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(ijkToRas(volume)))
    slicer.util.updateVolumeFromArray(node, array)
    node.CreateDefaultDisplayNodes()
    shown, original = node.GetDisplayNode(), volume.GetDisplayNode()
    if shown is not None and original is not None and not isPicture(volume):
        shown.SetAutoWindowLevel(False)
        shown.SetWindowLevel(original.GetWindow(), original.GetLevel())
    _placeBeside(node, volume)
    return node


def _placeBeside(node, volume):
    """Put a node into the folder or study of the volume in the subject hierarchy."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    if hierarchy is None:
        return
    ours, theirs = hierarchy.GetItemByDataNode(node), hierarchy.GetItemByDataNode(volume)
    if ours and theirs:
        hierarchy.SetItemParent(ours, hierarchy.GetItemParent(theirs))


class Undo:
    """Takes a run's change of a segmentation back: removes a new node, restores an updated one.

    Made before the change. ``edited`` says whether the user changed the segmentation after it.
    """

    def __init__(self, node, new):
        self.node, self.new, self.edited = node, new, False
        self._volumeRole = node.GetReferenceImageGeometryReferenceRole()
        self._observed, self._tags = None, []
        if not new:
            self._segmentation = slicer.vtkSegmentation()
            self._segmentation.DeepCopy(node.GetSegmentation())
            self._volumeId = node.GetNodeReferenceID(self._volumeRole)

    def done(self):
        """The change is complete: what is modified from here on is the user's work."""
        self._observed = self.node.GetSegmentation()
        events = ("SegmentAdded", "SegmentRemoved", "SegmentModified", "SourceRepresentationModified")
        self._tags = [
            self._observed.AddObserver(getattr(self._observed, name), self._onEdited) for name in events
        ]

    def forget(self):
        """Watch the segmentation no more."""
        for tag in self._tags:
            self._observed.RemoveObserver(tag)
        self._tags = []

    def _onEdited(self, *unused):
        self.edited = True

    def restore(self):
        """Bring the scene back to where it was before the run."""
        self.forget()
        if self.node.GetScene() is None:  # the user deleted it
            return
        if self.new:
            removeNode(self.node)
            return
        self.node.GetSegmentation().DeepCopy(self._segmentation)
        self.node.SetNodeReferenceID(self._volumeRole, self._volumeId)
