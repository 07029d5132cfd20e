"""Labelled scans as files to train on: segmentations of the scene, pairs of files, and scans without labels.

What is written has names that tell nobody's: patient1, patient2 ... Writing is a generator that yields between pieces
of some milliseconds, see ``process.Steps``.
"""

import os
import re
import shutil
import tempfile
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util import numpy_support

from . import review, volumes

IMAGES, LABELS, PATIENT = "images/*", "labels/*", r"images/(patient\d+)"  # of the folder that is written
BACKGROUND = "background"  # name of label values that are not to be learned
MARKER = ".semanticgan-training"  # a file in the folder of every run: what lies there is ours

_TICKED = "SemanticGAN.Labelled"  # attribute of the segmentations to learn from
_SLAB_VOXELS = 1 << 20  # of a label map, made between two events
_COPIED_BYTES = 4 << 20
_BINARY = "Binary labelmap"
# A file that is an image on its own. Headers whose voxels lie in another file cannot be given another name.
# What may lie in a folder that is emptied: our files, and those that systems leave everywhere.
_OURS = re.compile(
    r"((images|labels)/patient\d+(_\d+)?|\.writing[^/]*/[^/]+)(\.[A-Za-z.]+)?|(.*/)?(\.[^/]+|Thumbs\.db|desktop\.ini)"
)
_DRAWN_IN_SLICER = ".seg.nrrd"  # a segmentation, never a scan
_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Request:
    """What is to be learned from.

    labels: (value, name) of the classes; segmentations: nodes; pairs: a folder, with globs for its images and label
    files and an expression that finds the patient in the path of an image ("": each is one); unlabelled: a folder.
    "" stands for no folder.
    """

    modality: str
    labels: tuple
    segmentations: tuple = ()
    pairs: str = ""
    images: str = IMAGES
    labelFiles: str = LABELS
    patient: str = ""
    unlabelled: str = ""


@dataclass(frozen=True)
class Written:
    """names: what each file is, as the user knows it, by its new name; leftOut: files that are no image."""

    names: dict
    leftOut: tuple


@dataclass(frozen=True)
class _Scan:
    """One image to be written. name: the user's; image, label: nodes, or paths; patient: equal for one person."""

    name: str
    image: object
    label: object
    patient: object


# --- what there is


def candidates():
    """(segmentation, its volume or None) of the scene."""
    found = []
    for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
        if not node.GetHideFromEditors():
            found.append((node, sourceVolume(node)))
    return found


def sourceVolume(segmentation):
    """The volume that a segmentation was drawn on, None when it is not known or gone."""
    volume = segmentation.GetNodeReference(segmentation.GetReferenceImageGeometryReferenceRole())
    return volume if volume is not None and volume.IsA("vtkMRMLVolumeNode") else None


def segmentNames(segmentation):
    inside = segmentation.GetSegmentation()
    return [inside.GetNthSegment(index).GetName() for index in range(inside.GetNumberOfSegments())]


def isTicked(segmentation):
    return segmentation.GetAttribute(_TICKED) == "1"


def tick(segmentation, on=True):
    """Choose a segmentation to learn from; it is kept with the scene."""
    if on != isTicked(segmentation):
        segmentation.SetAttribute(_TICKED, "1" if on else None)


def fileOf(volume):
    """The file that a volume was loaded from, "" when there is none."""
    storage = volume.GetStorageNode()
    return os.path.abspath(storage.GetFileName()) if storage is not None and storage.GetFileName() else ""


# --- what is asked for


def parseLabels(text):
    """((value, name), ...) of "liver, tumour" or "255=liver". Raises ValueError."""
    labels, value = [], 0
    for part in filter(None, (part.strip() for part in text.split(","))):
        number, equals, name = part.partition("=")
        if equals and not (number.strip().isdecimal() and name.strip()):
            raise ValueError(_("{part} is not a label. Write a name, or value=name.").format(part=part))
        value, name = (int(number), name.strip()) if equals else (value + 1, part)
        if not 1 <= value <= 255:
            raise ValueError(_("{part}: the values of labels are 1 to 255.").format(part=part))
        labels.append((value, name))
    if not any(name != BACKGROUND for _value, name in labels):
        raise ValueError(_("Name the segments that the model is to learn, e.g. liver."))
    for column, word in ((0, _("value")), (1, _("name"))):
        seen = [label[column] for label in labels if label[1] != BACKGROUND or column == 0]
        if len(set(seen)) < len(seen):
            raise ValueError(_("Two labels have the same {word}.").format(word=word))
    return tuple(labels)


def checkRequest(request):
    """Raise ValueError, saying what to do, for what cannot be written."""
    if not request.segmentations and not request.pairs:
        raise ValueError(_("Tick a segmentation, or choose a folder of pairs."))
    for folder in filter(None, (request.pairs, request.unlabelled)):
        if not os.path.isdir(folder):
            raise ValueError(_("{folder} is no folder.").format(folder=folder))
        if _runAround(folder):
            raise ValueError(
                _(
                    "{folder} belongs to a training: what lies there is made anew by each check. Choose a folder of "
                    "your own scans."
                ).format(folder=folder)
            )
    drawnOn = [sourceVolume(node) for node in request.segmentations]
    for node, volume in zip(request.segmentations, drawnOn, strict=True):
        _checkSegmentation(node, volume, request.labels)
        if drawnOn.count(volume) > 1:
            raise ValueError(
                _("Two of the ticked segmentations are of {volume}. Untick one.").format(
                    volume=volumes.uniqueName(volume)
                )
            )


def _checkSegmentation(node, volume, labels):
    name = volumes.uniqueName(node)
    if volume is None:
        raise ValueError(
            _("{name} does not know its volume. Choose it as source volume in the Segment Editor.").format(
                name=name
            )
        )
    volumes.checkVolume(volume)
    drawnFor = review.volume(node)
    if drawnFor is not None and drawnFor is not volume or len({*map(_patientItem, (node, volume))} - {0}) > 1:
        raise ValueError(
            _(
                "{name} is of another patient than {volume}, which it is to be learned with. Choose its own volume as "
                "source volume in the Segment Editor, or untick it."
            ).format(name=name, volume=volumes.uniqueName(volume))
        )
    for one in (node, volume):
        if one.GetParentTransformNode() is not None:
            raise ValueError(
                _("{name} is under a transform. Harden the transform first (module Transforms).").format(
                    name=volumes.uniqueName(one)
                )
            )
    if not node.GetSegmentation().ContainsRepresentation(_BINARY):
        raise ValueError(
            _("{name} holds no binary label map. Make one in the module Segmentations.").format(name=name)
        )
    there = segmentNames(node)
    for _value, wanted in labels:
        if wanted != BACKGROUND and there.count(wanted) != 1:
            raise ValueError(
                _(
                    "{name} has {n} segments called {segment}, one is needed. Rename its segments, or add an "
                    "empty one where the patient has none of it."
                ).format(name=name, n=there.count(wanted) or _("no"), segment=wanted)
            )


# --- what is written


def claimFolder(folder):
    """Make the folder of a run, in which files are replaced. Raises ValueError for one that holds anything else."""
    marker = os.path.join(folder, MARKER)
    if os.path.isfile(marker):
        return
    if os.path.lexists(folder) and any(not name.startswith(".") for name in os.listdir(folder)):
        raise ValueError(
            _(
                "{folder} holds files that are not of a training, and training replaces files. Choose a new or an "
                "empty folder as folder of the run."
            ).format(folder=folder)
        )
    os.makedirs(folder, exist_ok=True)
    with open(marker, "w", encoding="utf-8"):
        pass


def _runAround(folder):
    """The folder of a run that a folder is, or lies in; "" when there is none."""
    folder = os.path.realpath(folder)
    while not os.path.isfile(os.path.join(folder, MARKER)):
        parent = os.path.dirname(folder)
        if parent == folder:
            return ""
        folder = parent
    return folder


def writeSource(request, folder, onProgress=lambda done, total, name: None):
    """Write what a request asks for below ``folder``, which is emptied; a generator that returns ``Written``.

    It is emptied only when all in it was written here. There are images/patient1.nrrd ... with labels/patient1.nrrd ...
    Files are linked, or copied where the system cannot link. Raises ValueError, OSError.
    """
    checkRequest(request)
    yield from _empty(folder)
    for one in ("images", "labels"):
        os.makedirs(os.path.join(folder, one))
    making = tempfile.mkdtemp(prefix=".writing-", dir=folder)
    scans, leftOut = yield from _scans(request)
    names = {}
    for number, (stem, scan) in enumerate(_numbered(scans)):
        if not os.path.isdir(making):  # gone with all else: what comes now would mix with its files
            raise ValueError(_("Another check has begun in {folder}.").format(folder=folder))
        onProgress(number, len(scans), scan.name)
        if isinstance(scan.image, str):
            yield from _link(scan.image, making, os.path.join(folder, "images", stem + _ending(scan.image)))
            if scan.label:
                yield from _link(
                    scan.label, making, os.path.join(folder, "labels", stem + _ending(scan.label))
                )
        else:
            yield from _writeScan(scan, request.labels, folder, making, stem)
        names[stem] = scan.name
    shutil.rmtree(making)
    return Written(names, tuple(leftOut))


def _empty(folder):
    """Remove what an earlier check wrote. Raises ValueError when there is anything else."""
    ours, foreign = [], [folder] if os.path.islink(folder) else []
    for parent, folders, files in [] if foreign else os.walk(folder):
        for name in files + [one for one in folders if os.path.islink(os.path.join(parent, one))]:
            path = os.path.join(parent, name)
            isOurs = _OURS.fullmatch(os.path.relpath(path, folder).replace(os.sep, "/"))
            (ours if isOurs and name in files else foreign).append(path)
        yield
    if foreign:
        raise ValueError(
            _(
                "{path} is not of an earlier check, and {folder} is made anew by each. Move it elsewhere, or choose "
                "another folder of the run."
            ).format(path=foreign[0], folder=folder)
        )
    for path in ours:  # never cut short: it may be a link to the user's own file
        os.remove(path)
        yield
    shutil.rmtree(folder, ignore_errors=True)


def _scans(request):
    """([_Scan], files that are left out) of a request; a generator."""
    scans = [
        _Scan(volumes.uniqueName(volume), volume, node, _person(volume))
        for node in request.segmentations
        for volume in [sourceVolume(node)]
    ]
    leftOut, taken = [], {_identity(path) for path in map(fileOf, (scan.image for scan in scans)) if path}
    if request.pairs:
        pairs, more = yield from _findPairs(request)
        leftOut += more
        scans += [scan for scan in pairs if _identity(scan.image) not in taken]
        # A label file is no scan to learn from, wherever else it is found.
        taken |= {_identity(path) for scan in pairs for path in (scan.image, scan.label) if path}
    if request.unlabelled:
        for file in (yield from _walk(request.unlabelled)):
            path = os.path.abspath(os.path.join(request.unlabelled, file))
            if not _isImage(path) or path.lower().endswith(_DRAWN_IN_SLICER):
                leftOut.append(file)
            elif _identity(path) not in taken:
                taken.add(_identity(path))
                scans.append(_Scan(file, path, None, path))
    return scans, leftOut


def _identity(path):
    """Equal for one file under several names, links or spellings."""
    try:
        status = os.stat(path)
    except OSError:
        return os.path.abspath(path)
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.normcase(os.path.realpath(path))


def _isImage(path):
    """Whether a file can be an image: by its name, and a file, not a link to nowhere or a device."""
    return bool(_ending(path)) and os.path.isfile(path)


def _person(volume):
    """The patient of a volume in the subject hierarchy, else the volume itself: one person is in one split only."""
    patient = _patientItem(volume)
    return ("item", patient) if patient else volume.GetID()


def _patientItem(node):
    """The patient that a node belongs to in the subject hierarchy, 0 when that is not known."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    level = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMLevelPatient()
    item = hierarchy.GetItemByDataNode(node) if hierarchy is not None else 0
    return hierarchy.GetItemAncestorAtLevel(item, level) if item else 0


def _findPairs(request):
    images, labels = (_pattern(glob) for glob in (request.images, request.labelFiles))
    scans, labelOf, imageAt, leftOut = [], {}, {}, []
    for file in (yield from _walk(request.pairs)):
        for pattern, found in ((labels, labelOf), (images, imageAt)):
            match = pattern.fullmatch(file)
            if match and _isImage(os.path.join(request.pairs, file)):
                *parts, last = match.groups() or ("",)
                ending = _ending(file)
                key = (*parts, last[: -len(ending)] if last.lower().endswith(ending) else last)
                if key in found:
                    raise ValueError(
                        _(
                            "{first} and {second} are called alike, so it is not clear which image belongs to which "
                            "label. Write {images} and {labels} so that they find one of them."
                        ).format(
                            first=found[key], second=file, images=request.images, labels=request.labelFiles
                        )
                    )
                found[key] = file
                break
            if match:
                leftOut.append(file)
                break
    if not any(parts in imageAt for parts in labelOf):
        raise ValueError(
            _("{folder}: no image {images} has a label {labels}. Write the two so that they agree.").format(
                folder=request.pairs, images=request.images, labels=request.labelFiles
            )
        )
    for parts, file in imageAt.items():
        label = labelOf.get(parts)
        path = os.path.join(request.pairs, file)
        scans.append(
            _Scan(
                file,
                path,
                os.path.join(request.pairs, label) if label else None,
                _patientIn(file, request.patient),
            )
        )
    return scans, leftOut


def _pattern(glob):
    """A glob as regular expression with a group for each * and **/."""
    parts = re.split(r"(\*\*/|\*)", glob.strip().replace("\\", "/"))
    groups = {"**/": "((?:[^/]+/)*)", "*": "([^/]*)"}
    return re.compile("".join(groups.get(part) or re.escape(part) for part in parts))


def _patientIn(file, expression):
    if not expression.strip():
        return file
    try:
        match = re.search(expression.strip(), file)
    except re.error as error:
        raise ValueError(
            _("{text} is no regular expression ({reason}).").format(text=expression, reason=error)
        ) from error
    patient = match and (match[1] if match.re.groups else match[0])
    if not patient:  # an empty one would make all of these one person
        raise ValueError(_("{text} finds no patient in {file}.").format(text=expression, file=file))
    return patient


def _walk(folder):
    """Files below a folder, relative to it with "/", in order; a generator.

    Hidden ones are left out, and folders of trainings, which hold copies and results.
    """
    found = []
    for parent, folders, files in os.walk(folder):
        if MARKER in files:
            folders.clear()
            continue
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        relative = os.path.relpath(parent, folder).replace(os.sep, "/")
        found += [
            file if relative == "." else f"{relative}/{file}" for file in files if not file.startswith(".")
        ]
        yield
    return sorted(found, key=lambda file: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", file)])


def _ending(path):
    return next((ending for ending in _ENDINGS if path.lower().endswith(ending)), "")


def _numbered(scans):
    """(name without ending, scan): patient1, or patient1_1, patient1_2 for several of one patient."""
    patients = list(dict.fromkeys(scan.patient for scan in scans))
    of = {patient: [scan for scan in scans if scan.patient == patient] for patient in patients}
    for number, patient in enumerate(patients, 1):
        for place, scan in enumerate(of[patient], 1):
            yield f"patient{number}" + (f"_{place}" if len(of[patient]) > 1 else ""), scan


def _link(path, making, target):
    """Give a file another name in our folder; a generator."""
    for link in (os.link, os.symlink):
        try:
            link(
                os.path.realpath(path), target
            )  # a link that names its file relatively leads nowhere from here
            return
        except OSError:
            continue  # another disk; no right to link
    copy = os.path.join(making, os.path.basename(target))
    with open(path, "rb") as source, open(copy, "wb") as file:
        while piece := source.read(_COPIED_BYTES):
            file.write(piece)
            yield
    os.replace(copy, target)


def _writeScan(scan, labels, folder, making, stem):
    """An image and its segmentation, under their names only when both are whole; a generator."""
    image = yield from volumes.writeInput(scan.image, making)
    ending = os.path.splitext(image)[1]
    labelmap = os.path.join(making, "labels" + ending)
    wanted = [(value, name) for value, name in labels if name != BACKGROUND]
    if ending == ".png":
        pieces = [piece for piece in _labelPieces(scan.label, scan.image, wanted)]
        sitk.WriteImage(sitk.GetImageFromArray(pieces[0][0]), labelmap)
    else:
        shape = slicer.util.arrayFromVolume(scan.image).shape
        with open(labelmap, "wb") as file:
            file.write(volumes.nrrdHeader(np.dtype(np.uint8), shape, volumes.ijkToRas(scan.image)))
            for piece in _labelPieces(scan.label, scan.image, wanted):
                file.write(piece.tobytes())
                yield
    os.replace(labelmap, os.path.join(folder, "labels", stem + ending))
    os.replace(image, os.path.join(folder, "images", stem + ending))


def _labelPieces(segmentation, volume, labels):
    """The label map (uint8) on the voxels of the volume, some slices (k, J, I) at a time."""
    slices, rows, columns = slicer.util.arrayFromVolume(volume).shape[:3]
    step = max(1, _SLAB_VOXELS // (rows * columns))
    inside = segmentation.GetSegmentation()
    chosen = [(value, _segmentCalled(inside, name)) for value, name in labels]
    missed = dict(chosen)
    where = slicer.vtkOrientedImageData()
    where.SetImageToWorldMatrix(slicer.util.vtkMatrixFromArray(volumes.ijkToRas(volume)))
    for first in range(0, slices, step):
        last = min(slices, first + step)
        piece = np.zeros((last - first, rows, columns), np.uint8)
        where.SetExtent(0, columns - 1, 0, rows - 1, first, last - 1)
        where.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
        for value, segment in chosen:
            drawn = segment.GetRepresentation(_BINARY)
            if drawn is None or drawn.IsEmpty():
                continue
            onVolume = slicer.vtkOrientedImageData()
            resample = slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage
            if not resample(drawn, where, onVolume, False, False):
                raise ValueError(
                    _("{name} cannot be brought onto the voxels of {volume}.").format(
                        name=segment.GetName(), volume=volume.GetName()
                    )
                )
            array = numpy_support.vtk_to_numpy(onVolume.GetPointData().GetScalars()).reshape(piece.shape)
            inSegment = array == segment.GetLabelValue()
            piece[inSegment] = value
            if value in missed and inSegment.any():
                del missed[value]
        yield piece
    for segment in filter(_isDrawn, missed.values()):  # else its patient is learned to have none of it
        raise ValueError(
            _("The segment {name} lies outside of {volume}. Is it another patient's?").format(
                name=segment.GetName(), volume=volume.GetName()
            )
        )


def _isDrawn(segment):
    """Whether a segment has a voxel."""
    drawn = segment.GetRepresentation(_BINARY)
    if drawn is None or drawn.IsEmpty():
        return False
    scalars = numpy_support.vtk_to_numpy(drawn.GetPointData().GetScalars())
    return bool((scalars == segment.GetLabelValue()).any())


def _segmentCalled(inside, name):
    every = [inside.GetNthSegment(index) for index in range(inside.GetNumberOfSegments())]
    return next(segment for segment in every if segment.GetName() == name)
