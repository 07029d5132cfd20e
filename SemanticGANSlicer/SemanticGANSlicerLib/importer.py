"""The engine's results as nodes of the scene.

What takes long is a generator that yields between pieces of some milliseconds, see ``process.Steps``. The scene is
changed in one go at its end, so whoever stops earlier leaves the scene as it was.
"""

import gzip
import html
import json
import os
import shutil
import struct
import weakref
import zlib
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util import numpy_support

from . import process, review
from .volumes import addNode, checkGrid, drawnOn, grid, ijkToRas, isPicture, isStillOf, removeNode, uniqueName

_CHUNK_VOXELS = 1 << 20  # looked at between two events
_NIFTI_HEADER = 352  # bytes, with the four that say whether an extension follows
_TERMINOLOGY = "SemanticGAN"  # name of our context, and of its file
_MARK = "SemanticGAN"  # tag of the segments that we made: a run may replace them, and no others
_DRAWN = "SemanticGAN.mask"  # tag: what the model drew, see ``_fingerprint``
# Tags that Slicer's DICOM export writes as Segment Algorithm Type (0062,0008) and Name (0062,0009); it needs both,
# and calls everything MANUAL that has none.
_ALGORITHM_TYPE, _ALGORITHM_NAME = "DICOM.SegmentAlgorithmType", "DICOM.SegmentAlgorithmName"
_LONGEST_NAME = 64  # characters of a DICOM text of value representation LO


@dataclass
class Result:
    """A finished run: what the panel shows of it.

    segmentation, volume: the nodes; case: the engine's record of the run (volumes, trust ...); labels: of its "start"
    event, with a segment each in segmentIds; undo: takes the run's change of the scene back, None when that is over;
    folder: the run's files, to be deleted with ``discard``.
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
        if self.undo is not None:
            self.undo.forget()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def doubtfulSlices(self):
        """(number from 1, (R, A, S) mm) of the slices to look at."""
        if "doubtful" in self.case:  # as the scene remembers it
            return self.case["doubtful"]
        centres, first = self.case.get("slice_centres_mm"), self.case.get("first_slice") or 1
        if not centres:
            return []
        return [(number, tuple(centres[number - first])) for number in self.case["trust"]["slices"]]


def readCase(folder):
    """The engine's record of the only case in a folder of results, with the name of the model as "model".

    Raises ValueError when there is none.
    """
    try:
        with open(os.path.join(folder, "run.json"), encoding="utf-8") as file:
            record = json.load(file)
        (case,) = record["cases"]
        case["model"] = record["bundle"]["name"]
        if case["status"] != "done":
            raise ValueError(case.get("error"))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(_("The result could not be read: {reason}").format(reason=error)) from error
    return case


def storedResult(node):
    """The ``Result`` of the run that drew a segmentation, as the scene remembers it, or None.

    There is no undo and no file of the run any more; volume is None when it is not in the scene.
    """
    run = review.load(node)
    if run is None:
        return None
    watchEdits(node)
    case, labels, segmentIds = run
    return Result(node, drawnOn(node), case, labels, segmentIds, None)


def importResult(case, labels, volume, target=None, frame="", standardNames=False, show3D=False):
    """Bring a result into the scene, piece by piece (a generator); returns a ``Result``.

    labels: of the engine's "start" event. target: the segmentation to update: segments that an earlier run made are
    replaced, all others stay as they are. None makes a new one, named after the volume and ``frame``; so does a target
    that is removed, transformed or becomes another volume's while the result is read. standardNames: segments are
    called as their codes are, not as the model calls them; show3D: with surfaces. Raises ValueError when the file does
    not fit.
    """
    belongedTo, before = drawnOn(target) if target is not None else None, grid(volume)
    if standardNames:
        labels = _withStandardNames(labels)
    labelmap = yield from _readLabels(case["output"], volume)
    pieces = []
    for label in labels:
        piece = yield from _cropped(labelmap, label["value"])
        pieces.append((label, piece))
    checkGrid(volume, before)
    if target is not None and not isStillOf(target, belongedTo):
        target = None
    return _changeScene(case, pieces, labels, volume, target, frame, show3D)


def _readLabels(path, volume):
    """The label map (K, J, I) uint8 of a volume, on the volume's own voxels; a generator.

    NIfTI is read by hand, as libraries unpack all at once, which takes long for a large scan.
    """
    try:
        return (yield from _unpacked(path, slicer.util.arrayFromVolume(volume).shape[:3]))
    except (
        OSError,
        EOFError,
        zlib.error,
        struct.error,
    ) as error:  # cut short: gzip has a word for each place
        raise ValueError(
            _(
                "The result of {name} in {folder} is incomplete ({reason}), as happens when the disk is full. Free "
                "some space there, or choose another temporary folder (Edit > Application Settings > Modules), "
                "and apply again."
            ).format(
                name=uniqueName(volume),
                folder=os.path.dirname(path),
                reason=getattr(error, "strerror", None) or str(error) or _("it ends too early"),
            )
        ) from error


def _unpacked(path, shape):
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
                raise EOFError
            yield
        file.read(1)  # to the end, where gzip compares the checksum
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


def _changeScene(case, pieces, labels, volume, target, frame, show3D):
    if volume.GetScene() is None:
        raise ValueError(_("The volume was removed from the scene; there is nothing to put the result on."))
    new = target is None
    if new:
        name = _("{name} segmentation").format(name=volume.GetName() + frame)
        target = addNode("vtkMRMLSegmentationNode", name)
    undo = Undo(target, new)
    target.CreateDefaultDisplayNodes()  # one that a script or a selector made has none
    if not target.GetSegmentation().GetNumberOfSegments():
        target.GetSegmentation().SetSourceRepresentationName("Binary labelmap")
    # With it comes the reference to the source volume, which DICOM export needs.
    target.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    segmentation = target.GetSegmentation()
    shown3D = segmentation.ContainsRepresentation("Closed surface")  # it goes with the last segment
    for segmentId in _ourSegments(segmentation):
        segmentation.RemoveSegment(segmentId)
    algorithm = _algorithmName(case.get("model", ""))
    segmentIds = [_addSegment(segmentation, label, piece, volume, algorithm) for label, piece in pieces]
    if shown3D or show3D:
        target.CreateClosedSurfaceRepresentation()
    if show3D:
        target.GetDisplayNode().SetPreferredDisplayRepresentationName3D("Closed surface")
    if new:  # a person may have put the other elsewhere
        _placeBeside(target, volume)
    undo.done()
    watchEdits(target)
    result = Result(target, volume, case, labels, segmentIds, undo)
    review.store(target, volume, case, labels, segmentIds, result.doubtfulSlices(), frame)
    return result


def _ourSegments(segmentation):
    ids = [segmentation.GetNthSegmentID(index) for index in range(segmentation.GetNumberOfSegments())]
    return [one for one in ids if segmentation.GetSegment(one).HasTag(_MARK)]


def _algorithmName(model):
    """Name of what drew the segments; DICOM takes no control characters and no backslash there."""
    name = "".join(character for character in f"SemanticGAN {model}" if character.isprintable())
    return name.replace("\\", " ").strip()[:_LONGEST_NAME].strip()


def corrected(node):
    """Names of the segments that a run would replace although a person has corrected them, see ``watchEdits``."""
    ours = [node.GetSegmentation().GetSegment(one) for one in _ourSegments(node.GetSegmentation())]
    return [segment.GetName() for segment in ours if _tag(segment, _ALGORITHM_TYPE) == "SEMIAUTOMATIC"]


def handOver(result):
    """Make the segments of a result the user's own: no later run replaces them."""
    result.discard()
    for segmentId in result.segmentIds:
        result.segmentation.GetSegmentation().GetSegment(segmentId).RemoveTag(_MARK)


def _addSegment(segmentation, label, piece, volume, algorithm):
    mask, first = piece
    segment = slicer.vtkSegment()
    segment.SetName(label["name"])
    segment.SetColor(*recommendedColour(label))
    segment.SetTag(segment.GetTerminologyEntryTagName(), label.get("terminology", ""))
    segment.SetTag(_MARK, str(label["value"]))
    segment.SetTag(_ALGORITHM_TYPE, "AUTOMATIC")
    segment.SetTag(_ALGORITHM_NAME, algorithm)
    segment.SetTag(_DRAWN, _fingerprint(mask, first))
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


# --- what a person edited ---


def watchEdits(node):
    """From now on, segments that a person changes count as SEMIAUTOMATIC; those changed before do at once.

    DICOM (PS3.3 C.8.20.2): AUTOMATIC is a calculated segment, SEMIAUTOMATIC one calculated with the user's assistance.
    Name, colour and place in the list are no part of it: what counts are the voxels, compared with those drawn by the
    model. The check goes on between events, as a mask may be large.
    """
    segmentation = node.GetSegmentation()
    if segmentation not in _watched:
        _watched[segmentation] = {}
        for event in (segmentation.SourceRepresentationModified, segmentation.SegmentModified):
            segmentation.AddObserver(event, _onMasksModified)
    _onMasksModified(segmentation)


_watched = (
    weakref.WeakKeyDictionary()
)  # segmentation -> {segment id: time of the mask that was found unedited}
_checks = {}  # segmentation -> [the check that goes on, whether it was modified again meanwhile]


def _onMasksModified(segmentation, event=""):
    if segmentation in _checks:
        _checks[segmentation][1] = True
        return
    steps = _markEdited(segmentation, _watched.setdefault(segmentation, {}))
    _checks[segmentation] = [process.Steps(steps, lambda *unused: _onChecked(segmentation)), False]


def _onChecked(segmentation):
    if _checks.pop(segmentation)[1]:
        _onMasksModified(segmentation)


def _markEdited(segmentation, unedited):
    """Mark the segments whose voxels are not the model's any more; a generator."""
    yield
    for segmentId in _ourSegments(segmentation):
        segment = segmentation.GetSegment(segmentId)
        if segment is None or _tag(segment, _ALGORITHM_TYPE) != "AUTOMATIC" or not segment.HasTag(_DRAWN):
            continue
        image = segment.GetRepresentation("Binary labelmap")
        time = image.GetMTime() if image is not None else 0
        if unedited.get(segmentId) == time:
            continue
        if _tag(segment, _DRAWN) == (yield from _drawnNow(segment)):
            unedited[segmentId] = time
        else:
            segment.SetTag(_ALGORITHM_TYPE, "SEMIAUTOMATIC")


def _drawnNow(segment):
    """The fingerprint of a segment's voxels; a generator."""
    image = segment.GetRepresentation("Binary labelmap")
    if image is None or not image.GetNumberOfPoints() or image.GetPointData().GetScalars() is None:
        return _fingerprint(None, None)
    extent = image.GetExtent()  # (i, i, j, j, k, k)
    shape = [extent[axis + 1] - extent[axis] + 1 for axis in (4, 2, 0)]
    labelmap = numpy_support.vtk_to_numpy(image.GetPointData().GetScalars()).reshape(shape)
    mask, first = yield from _cropped(labelmap, segment.GetLabelValue())
    if mask is not None:
        first = [start + extent[axis] for start, axis in zip(first, (4, 2, 0), strict=True)]
    return _fingerprint(mask, first)


def _fingerprint(mask, first):
    """What a cropped mask (k, j, i) uint8 whose first voxel is ``first`` (K, J, I) is known by again; None: absent."""
    if mask is None:
        return "empty"
    return f"{zlib.crc32(np.ascontiguousarray(mask)):08x} {tuple(map(int, first))} {mask.shape}"


def _tag(segment, name):
    value = vtk.mutable("")
    return str(value) if segment.GetTag(name, value) else ""


# --- words and colours ---


def loadTerminology():
    """Make Slicer know the codes of the labels that models are trained on here, beside its own terminologies."""
    logic = slicer.modules.terminologies.logic()
    if not logic.IsTerminologyContextLoaded(_TERMINOLOGY):
        resources = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "Resources")
        logic.LoadTerminologyFromFile(os.path.join(resources, f"{_TERMINOLOGY}.term.json"))


def _withStandardNames(labels):
    """Labels under the names that the loaded terminologies have for their codes, such as "Liver".

    A name that is not unique stays the model's, and so does that of a code that no terminology knows.
    """
    logic, names = slicer.modules.terminologies.logic(), []
    for label in labels:
        entry, name = slicer.vtkSlicerTerminologyEntry(), ""
        if logic.DeserializeTerminologyEntry(label.get("terminology", ""), entry):
            logic.UpdateEntryFromLoadedTerminologies(entry, [], [])
            name = entry.GetTypeObject().GetCodeMeaning()
        names.append(name)
    return [
        {**label, "name": name if name and names.count(name) == 1 else label["name"]}
        for label, name in zip(labels, names, strict=True)
    ]


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


def hasReport(result):
    """Whether the page of a run is still there."""
    return bool(result.folder) and os.path.isfile(_page(result))


def report(result):
    """The page of a run, under the name of its volume in place of that of the file that was segmented; its path."""
    with open(_page(result), encoding="utf-8") as file:
        page = file.read()
    title = "<h2>{}</h2>".format
    name = uniqueName(result.volume or result.segmentation)
    page = page.replace(title(html.escape(result.case["case"])), title(html.escape(name)), 1)
    path = os.path.join(result.folder, "report.html")
    with open(path, "w", encoding="utf-8") as file:
        file.write(page)
    return path


def _page(result):
    return os.path.join(os.path.dirname(result.case["output"]), "report.html")


def volumeRows(result):
    """(segment, volume in mL or None, voxels, SNOMED CT code) of each label, as the model drew it."""
    found = {volume["value"]: volume for volume in result.case["labels"]}
    segmentation, rows = result.segmentation.GetSegmentation(), []
    for label, segmentId in zip(result.labels, result.segmentIds, strict=True):
        segment, volume = segmentation.GetSegment(segmentId), found[label["value"]]
        name = segment.GetName() if segment is not None else label["name"]
        rows.append((name, volume["volume_ml"], volume["voxels"], label.get("code", "")))
    return rows


def ratioText(case):
    """The cardiothoracic ratio that the engine measured on a chest X-ray, never without a word of trust; "": none."""
    found = case.get("cardiothoracic_ratio") or {}
    if found.get("ratio") is None:  # another model, or a notice says why
        return ""
    verdict = _("looks right") if found.get("trust") == "ok" else _("please review")
    return _("Cardiothoracic ratio {ratio:.2f} ({verdict})").format(ratio=found["ratio"], verdict=verdict)


def addTable(result):
    """Add the table of a run to the scene, beside its volume; returns the node."""
    image = uniqueName(result.volume or result.segmentation)
    node = addNode("vtkMRMLTableNode", _("{name} volumes").format(name=image))
    rows = volumeRows(result)
    columns = (
        (vtk.vtkStringArray, _("Image"), [image] * len(rows)),
        (vtk.vtkStringArray, _("Segment"), [row[0] for row in rows]),
        (vtk.vtkDoubleArray, _("Volume (mL)"), [float("nan") if row[1] is None else row[1] for row in rows]),
        (vtk.vtkLongLongArray, _("Voxels"), [row[2] for row in rows]),
        (vtk.vtkStringArray, _("SNOMED CT"), [row[3] for row in rows]),
    )
    for kind, name, values in columns:
        column = kind()
        column.SetName(name)
        for value in values:
            column.InsertNextValue(value)
        node.AddColumn(column)
    node.SetNodeReferenceID("segmentation", result.segmentation.GetID())
    if result.volume is not None:
        _placeBeside(node, result.volume)
    return node


def _placeBeside(node, volume):
    """Put a node into the folder or study of the volume in the subject hierarchy."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    if hierarchy is None:
        return
    ours, theirs = hierarchy.GetItemByDataNode(node), hierarchy.GetItemByDataNode(volume)
    if ours and theirs:
        hierarchy.SetItemParent(ours, hierarchy.GetItemParent(theirs))


def openInSegmentEditor(segmentation, volume):
    """Go to the Segment Editor with both chosen: its node is the editor's own, as its selectParameterNode makes it."""
    editor = slicer.mrmlScene.GetSingletonNode("SegmentEditor", "vtkMRMLSegmentEditorNode")
    if editor is None:
        editor = slicer.vtkMRMLSegmentEditorNode()
        editor.SetSingletonTag("SegmentEditor")
        editor = slicer.mrmlScene.AddNode(editor)
    editor.SetAndObserveSegmentationNode(segmentation)
    if volume is not None:
        editor.SetAndObserveSourceVolumeNode(volume)
    slicer.util.selectModule("SegmentEditor")


class Undo:
    """Takes a run's change of a segmentation back: removes a new node, restores an updated one.

    Made before the change. ``edited`` says whether the user changed the segmentation after it. copy: a copy of a
    volume that was made for the run; it goes, too, unless another segmentation was drawn on it.
    """

    def __init__(self, node, new):
        self.node, self.new, self.edited, self.copy = node, new, False, None
        self._volumeRole = node.GetReferenceImageGeometryReferenceRole()
        self._observed, self._tags = None, []
        if not new:
            self._segmentation = slicer.vtkSegmentation()
            self._segmentation.DeepCopy(node.GetSegmentation())
            self._volumeId = node.GetNodeReferenceID(self._volumeRole)
            self._memory = review.memory(node)

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
        self._restoreNode()
        copy, self.copy = self.copy, None
        if copy is not None and copy.GetScene() is not None and not _segmentationsOf(copy):
            removeNode(copy)

    def _restoreNode(self):
        if self.node.GetScene() is None:  # the user deleted it
            return
        if self.new:
            removeNode(self.node)
            return
        self.node.GetSegmentation().DeepCopy(self._segmentation)
        self.node.SetNodeReferenceID(self._volumeRole, self._volumeId)
        review.remember(self.node, self._memory)


def _segmentationsOf(volume):
    return [
        node for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode") if drawnOn(node) is volume
    ]
