"""Labelled scans as files to train on: segmentations of the scene, pairs of files, and scans without labels.

What is written has names that tell nobody's: patient1, patient2 ... Writing is a generator that yields between pieces
of some milliseconds, see ``process.Steps``.
"""

import os
import re
import shutil
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util import numpy_support

from . import volumes

IMAGES, LABELS, PATIENT = "images/*", "labels/*", r"images/(patient\d+)"  # of the folder that is written
BACKGROUND = "background"  # name of label values that are not to be learned

_TICKED = "SemanticGAN.Labelled"  # attribute of the segmentations to learn from
_SLAB_VOXELS = 1 << 20  # of a label map, made between two events
_COPIED_BYTES = 4 << 20
_BINARY = "Binary labelmap"
# A file that is an image on its own. Headers whose voxels lie in another file cannot be given another name.
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
    drawnOn = [sourceVolume(node) for node in request.segmentations]
    for node, volume in zip(request.segmentations, drawnOn, strict=True):
        _checkSegmentation(node, volume, request.labels)
        if drawnOn.count(volume) > 1:
            raise ValueError(
                _("Two of the ticked segmentations are of {volume}. Untick one.").format(
                    volume=volume.GetName()
                )
            )


def _checkSegmentation(node, volume, labels):
    name = node.GetName()
    if volume is None:
        raise ValueError(
            _("{name} does not know its volume. Choose it as source volume in the Segment Editor.").format(
                name=name
            )
        )
    volumes.checkVolume(volume)
    for one in (node, volume):
        if one.GetParentTransformNode() is not None:
            raise ValueError(
                _("{name} is under a transform. Harden the transform first (module Transforms).").format(
                    name=one.GetName()
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


def writeSource(request, folder, onProgress=lambda done, total, name: None):
    """Write what a request asks for below ``folder``, which is emptied; a generator that returns ``Written``.

    There are images/patient1.nrrd ... with labels/patient1.nrrd ... Files are linked, or copied where the system
    cannot link. Raises ValueError, OSError.
    """
    checkRequest(request)
    yield from _empty(folder)
    making = os.path.join(folder, ".writing")
    for one in ("images", "labels", ".writing"):
        os.makedirs(os.path.join(folder, one))
    scans, leftOut = yield from _scans(request)
    names = {}
    for number, (stem, scan) in enumerate(_numbered(scans)):
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
    for parent, _folders, files in os.walk(folder):
        for file in files:  # never cut short: it may be a link to the user's own file
            os.remove(os.path.join(parent, file))
            yield
    shutil.rmtree(folder, ignore_errors=True)


def _scans(request):
    """([_Scan], files that are left out) of a request; a generator."""
    scans = [
        _Scan(volume.GetName(), volume, node, _person(volume))
        for node in request.segmentations
        for volume in [sourceVolume(node)]
    ]
    leftOut, taken = [], {fileOf(scan.image) for scan in scans}
    if request.pairs:
        pairs, more = yield from _findPairs(request)
        leftOut += more
        scans += [scan for scan in pairs if os.path.abspath(scan.image) not in taken]
        taken |= {os.path.abspath(scan.image) for scan in pairs}
    if request.unlabelled:
        for file in (yield from _walk(request.unlabelled)):
            path = os.path.abspath(os.path.join(request.unlabelled, file))
            if not _ending(file):
                leftOut.append(file)
            elif path not in taken:
                scans.append(_Scan(file, path, None, path))
    return scans, leftOut


def _person(volume):
    """The patient of a volume in the subject hierarchy, else the volume itself: one person is in one split only."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    level = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMLevelPatient()
    item = hierarchy.GetItemByDataNode(volume) if hierarchy is not None else 0
    patient = hierarchy.GetItemAncestorAtLevel(item, level) if item else 0
    return ("item", patient) if patient else volume.GetID()


def _findPairs(request):
    images, labels = (_pattern(glob) for glob in (request.images, request.labelFiles))
    scans, labelOf, imageAt, leftOut = [], {}, {}, []
    for file in (yield from _walk(request.pairs)):
        for pattern, found in ((labels, labelOf), (images, imageAt)):
            match = pattern.fullmatch(file)
            if match and _ending(file):
                *parts, last = match.groups() or ("",)
                ending = _ending(file)
                found[(*parts, last[: -len(ending)] if last.lower().endswith(ending) else last)] = file
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
    if match is None:
        raise ValueError(_("{text} finds no patient in {file}.").format(text=expression, file=file))
    return match[1] if match.re.groups else match[0]


def _walk(folder):
    """Files below a folder, relative to it with "/", in order, hidden ones left out; a generator."""
    found = []
    for parent, folders, files in os.walk(folder):
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
            link(os.path.abspath(path), target)
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
            piece[array == segment.GetLabelValue()] = value
        yield piece


def _segmentCalled(inside, name):
    every = [inside.GetNthSegment(index) for index in range(inside.GetNumberOfSegments())]
    return next(segment for segment in every if segment.GetName() == name)
