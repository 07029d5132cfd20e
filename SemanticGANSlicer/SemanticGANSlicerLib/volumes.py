"""Volumes of the scene as the engine's input.

Writing is a generator that yields between pieces of some milliseconds, see ``process.Steps``.
"""

import os

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from slicer.i18n import tr as _

_CHUNK_BYTES = 4 << 20  # written between two events
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


def checkVolume(volume):
    """Raise ValueError, saying why and what to do, for a node that cannot be segmented."""
    if volume is None:
        raise ValueError(_("Select a volume."))
    name = uniqueName(volume)
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
        file.write(nrrdHeader(array.dtype, array.shape, ijkToRas(volume)))
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


def nrrdHeader(dtype, shape, affine):
    """Header (bytes) of a raw NRRD file of a (K, J, I) array (teem.sourceforge.net/nrrd/format.html).

    Slicer's own writer writes all at once, which takes seconds for a large scan.
    """
    vectors = ["({!r},{!r},{!r})".format(*map(float, affine[:3, column])) for column in range(4)]
    order = "big" if dtype.str[0] == ">" else "little"
    lines = [
        "NRRD0004",
        f"type: {_NRRD_TYPES[dtype.str[1:]]}",
        "dimension: 3",
        "space: right-anterior-superior",
        "sizes: {} {} {}".format(*shape[::-1]),
        f"space directions: {' '.join(vectors[:3])}",
        f"space origin: {vectors[3]}",
        "kinds: domain domain domain",
        f"endian: {order}",
        "encoding: raw",
    ]
    return ("\n".join(lines) + "\n\n").encode("ascii")


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


def drawnOn(segmentation):
    """The volume whose geometry a segmentation has, which is the one that it segments; None when it has none."""
    return segmentation.GetNodeReference(segmentation.GetReferenceImageGeometryReferenceRole())


def takesMasks(segmentation):
    """Whether masks can be added to a segmentation: what is not its source representation is lost."""
    inside = segmentation.GetSegmentation()
    return not inside.GetNumberOfSegments() or inside.GetSourceRepresentationName() == "Binary labelmap"


def isStillOf(segmentation, volume):
    """Whether a segmentation is in the scene, under no transform, and drawn on a volume (None: on none)."""
    return (
        segmentation.GetScene() is not None
        and drawnOn(segmentation) is volume
        and not segmentation.GetTransformNodeID()
    )


def uniqueName(node):
    """The name of a node, with its id when another node of its kind in the scene is called the same."""
    name = node.GetName()
    namesakes = [one for one in slicer.util.getNodesByClass(node.GetClassName()) if one.GetName() == name]
    return f"{name} ({node.GetID()})" if len(namesakes) > 1 else name


def grid(volume):
    """What must stay the same for a label map to fit: ((K, J, I), IJK to RAS in mm as 16 numbers, transform)."""
    shape = slicer.util.arrayFromVolume(volume).shape[:3] if volume.GetImageData() is not None else ()
    return shape, tuple(ijkToRas(volume).ravel().tolist()), volume.GetTransformNodeID()


def checkGrid(volume, before):
    """Raise ValueError when a volume has another ``grid`` than before: it was moved, cut or put under a transform."""
    if grid(volume) != before:
        raise ValueError(
            _(
                "The geometry of {name} was changed during the run, so its result would lie elsewhere. Apply again."
            ).format(name=uniqueName(volume))
        )


_DICOM_MODALITIES = {
    "CT": "ct",
    "MR": "mr",
    "CR": "xray",
    "DX": "xray",
    "XC": "dermoscopy",
    "ES": "dermoscopy",
}
_LOOKED_AT = 1 << 16  # voxels, spread over the volume
_AIR_HU = -300.0  # darker than any tissue; MR and PET have nothing below 0


def modality(volume):
    """(modality, certain): what a volume shows, as a model names it: "ct", "mr", "xray", "dermoscopy" or "".

    certain: a DICOM header says so, which the subject hierarchy keeps; else it is the look of the volume. "" when
    neither tells: the look does not tell MR from PET or from CT without air.
    """
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    item = hierarchy.GetItemByDataNode(volume) if hierarchy is not None else 0
    header = hierarchy.GetItemAttribute(item, "DICOM.Modality") if item else ""
    if header:
        return _DICOM_MODALITIES.get(header, header), True
    if volume.GetImageData() is None or not volume.GetImageData().GetNumberOfPoints():
        return "", False
    if isPicture(volume):
        return "dermoscopy", False
    array = slicer.util.arrayFromVolume(volume)
    if array.shape[0] == 1:
        return "xray", False
    few = array.reshape(-1)[:: max(1, array.size // _LOOKED_AT)]
    if float(few.min()) <= _AIR_HU:
        return "ct", False
    return ("mr", False) if float(few.min()) >= 0.0 else ("", False)


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
