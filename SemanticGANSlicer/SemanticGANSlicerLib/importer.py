"""Volumes to files the engine reads, and its results to nodes of the scene.

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

_CHUNK_BYTES = 4 << 20  # written between two events
_CHUNK_VOXELS = 1 << 20  # looked at between two events
_NIFTI_HEADER = 352  # bytes, with the four that say whether an extension follows
_NRRD_TYPES = {
    "i1": "int8",
    "u1": "uint8",
    "i2": "int16",
    "u2": "uint16",
    "i4": "int32",
    "u4": "uint32",
    "f4": "float",
    "f8": "double",
}
_TERMINOLOGY = "SemanticGAN"  # name of our context, and of its file
_MARK = "SemanticGAN"  # tag of the segments that we made: a run may replace them, and no others


# --- out of the scene ------------------------------------------------------------------------------


def checkVolume(volume):
    """Raise ValueError, saying why and what to do, for a node that cannot be segmented."""
    if volume is None:
        raise ValueError(_("Select a volume."))
    name = volume.GetName()
    if volume.IsA("vtkMRMLLabelMapVolumeNode"):
        raise ValueError(_("{name} is a label map. Select the image that it was drawn on.").format(name=name))
    image = volume.GetImageData()
    if image is None or not image.GetNumberOfPoints():
        raise ValueError(_("{name} holds no image. Load it again.").format(name=name))
    components, slices = image.GetNumberOfScalarComponents(), image.GetDimensions()[2]
    if components == 1:
        if np.dtype(slicer.util.arrayFromVolume(volume).dtype).str[1:] not in _NRRD_TYPES:
            raise ValueError(
                _("{name} holds 64-bit integers. Cast it with the module Cast Scalar Volume.").format(
                    name=name
                )
            )
        return
    if components != 3:
        raise ValueError(
            _(
                "{name} holds {n} values a voxel. Only grey volumes and colour pictures can be segmented; "
                "extract one component with the module Vector to Scalar Volume."
            ).format(name=name, n=components)
        )
    if slices != 1:
        raise ValueError(
            _(
                "{name} is a colour volume of {n} slices. Colour works for single pictures; make a grey "
                "volume with the module Vector to Scalar Volume."
            ).format(name=name, n=slices)
        )


def volumeInView():
    """The image that the slice views show, else the first of the scene; None when there is none."""
    views = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    shown = [slicer.mrmlScene.GetNodeByID(view.GetBackgroundVolumeID() or "") for view in views]
    images = (
        "vtkMRMLScalarVolumeNode",
        "vtkMRMLVectorVolumeNode",
    )  # not label maps, which are scalar volumes too
    for node in [*shown, *slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")]:
        if node is not None and node.GetClassName() in images:
            return node
    return None


def isPicture(volume):
    """Whether a volume is a colour picture, which the engine reads as PNG."""
    return volume.GetImageData().GetNumberOfScalarComponents() == 3


def inputName(volume):
    """The name of the file that ``writeInput`` writes."""
    return "input.png" if isPicture(volume) else "input.nrrd"


def writeInput(volume, folder):
    """Write a volume for the engine, piece by piece (a generator); returns the path.

    Its own array and geometry count: a parent transform must be dealt with before. Raises OSError when the folder
    cannot be written, ValueError as ``checkVolume``.
    """
    checkVolume(volume)
    path, array = os.path.join(folder, inputName(volume)), slicer.util.arrayFromVolume(volume)
    if isPicture(volume):
        pixels = array[0]  # (1, J, I, 3) -> (J, I, 3)
        if pixels.dtype != np.uint8:
            low, high = float(pixels.min()), float(pixels.max())
            pixels = ((pixels - low) * (255.0 / max(high - low, 1e-6))).round().astype(np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=True), path)
        return path
    content = memoryview(np.ascontiguousarray(array)).cast("B")
    with open(path, "wb") as file:
        file.write(_nrrdHeader(array, ijkToRas(volume)).encode("ascii"))
        for start in range(0, len(content), _CHUNK_BYTES):
            file.write(content[start : start + _CHUNK_BYTES])
            yield
    return path


def removeInput(path):
    """Remove what ``writeInput`` wrote, piece by piece (a generator): a large file takes the system a while."""
    size = os.path.getsize(path)
    while size > _CHUNK_BYTES:
        size -= _CHUNK_BYTES
        os.truncate(path, size)
        yield
    os.remove(path)


def ijkToRas(volume):
    """(4, 4): voxel (i, j, k) to RAS mm, without parent transforms."""
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def _nrrdHeader(array, affine):
    """Header of a raw NRRD file of a (K, J, I) array (teem.sourceforge.net/nrrd/format.html).

    Slicer's own writer writes all at once, which takes seconds for a large scan.
    """
    vectors = ["({!r},{!r},{!r})".format(*map(float, affine[:3, column])) for column in range(4)]
    order = "big" if array.dtype.str[0] == ">" else "little"
    lines = [
        "NRRD0004",
        f"type: {_NRRD_TYPES[array.dtype.str[1:]]}",
        "dimension: 3",
        "space: right-anterior-superior",
        "sizes: {} {} {}".format(*array.shape[::-1]),
        f"space directions: {' '.join(vectors[:3])}",
        f"space origin: {vectors[3]}",
        "kinds: domain domain domain",
        f"endian: {order}",
        "encoding: raw",
    ]
    return "\n".join(lines) + "\n\n"


def hardenedCopy(volume):
    """A copy of a volume in the scene with its parent transforms applied to it."""
    copy = addNode(volume.GetClassName(), _("{name} transformed").format(name=volume.GetName()))
    copy.CopyContent(volume)
    copy.CreateDefaultDisplayNodes()
    copy.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    copy.HardenTransform()
    return copy


def addNode(className, name):
    """A new node in the scene; its name gets a number when another node has it already."""
    scene = slicer.mrmlScene
    taken = scene.GetFirstNodeByName(name) is not None
    return scene.AddNewNodeByClass(className, scene.GenerateUniqueName(name) if taken else name)


def removeNode(node):
    """Remove a node with the display and storage nodes that only serve it, which the scene would keep."""
    display = [node.GetNthDisplayNode(index) for index in range(node.GetNumberOfDisplayNodes())]
    storage = [node.GetNthStorageNode(index) for index in range(node.GetNumberOfStorageNodes())]
    for one in [node, *display, *storage]:
        if one is not None:
            slicer.mrmlScene.RemoveNode(one)


def frameName(volume):
    """ " (time 3 s)" for a volume that shows a frame of a sequence, else ""; the frame that is shown is segmented."""
    browser = slicer.modules.sequences.logic().GetFirstBrowserNodeForProxyNode(volume)
    if browser is None:
        return ""
    sequence = browser.GetMasterSequenceNode()
    value = sequence.GetNthIndexValue(browser.GetSelectedItemNumber())
    return f" ({sequence.GetIndexName()} {value} {sequence.GetIndexUnit()})".replace(" )", ")")


def slicePositions(volume):
    """S (mm, RAS) of the centres of the slices that a model sees, ascending.

    These lie across the axis of the volume that is closest to the patient's, as the engine cuts them.
    """
    affine, shape = ijkToRas(volume), slicer.util.arrayFromVolume(volume).shape[2::-1]  # (I, J, K)
    axis = int(np.argmax(np.abs(affine[2, :3] / np.linalg.norm(affine[:3, :3], axis=0))))
    centre = (np.array(shape) - 1) / 2.0
    positions = []
    for index in (0, shape[axis] - 1):
        centre[axis] = index
        positions.append(float(affine[2, :3] @ centre + affine[2, 3]))
    return np.linspace(min(positions), max(positions), shape[axis])


# --- into the scene --------------------------------------------------------------------------------


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
    for segmentId in _ourSegments(segmentation):
        segmentation.RemoveSegment(segmentId)
    segmentIds = [_addSegment(segmentation, label, piece, volume) for label, piece in pieces]
    if segmentation.ContainsRepresentation("Closed surface"):  # shown in 3D before: show the new shape
        target.CreateClosedSurfaceRepresentation()
    if new:  # a person may have put the other elsewhere
        _placeBeside(target, volume)
    undo.done()
    return Result(target, volume, case, labels, segmentIds, undo)


def _ourSegments(segmentation):
    ids = [segmentation.GetNthSegmentID(index) for index in range(segmentation.GetNumberOfSegments())]
    return [one for one in ids if segmentation.GetSegment(one).HasTag(_MARK)]


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
