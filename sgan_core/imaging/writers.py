"""Arrays with their grid to files, all or nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from PIL import Image

from sgan_core.cohort import Label
from sgan_core.errors import InputError
from sgan_core.files import replacing
from sgan_core.imaging.endings import (
    ITK_SUFFIXES,
    NIFTI_SUFFIXES,
    PAIR_SUFFIXES,
    VOLUME_SUFFIXES,
    image_suffix,
)
from sgan_core.imaging.grid import Grid, ras_from_lps
from sgan_core.imaging.terminology import slicer_terminology

_SCANNER = 1  # NIFTI_XFORM_SCANNER_ANAT


def write_labels(path: str | Path, labelmap: np.ndarray, grid: Grid, labels: Sequence[Label] = ()) -> None:
    """Write a label map (I, J, K), values 0 to 255, as uint8 on its grid.

    NIfTI gets the label intent, and names and colours as a JSON comment. NRRD (best named ``.seg.nrrd``)
    gets the segment table that 3D Slicer shows, with the codes of ``label_codes``. The file appears whole or
    not at all. Raises InputError naming the folder when it cannot be written, or for an unknown ending.
    """
    labelmap = _as_uint8(labelmap)
    if _volume_suffix(path) in NIFTI_SUFFIXES:
        image = _nifti(labelmap, grid)
        image.header.set_intent("label")
        if labels:
            table = [{"value": label.value, "name": label.name, "rgb": label.rgb} for label in labels]
            comment = json.dumps({"labels": table})
            image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", comment.encode("utf-8")))
        _save_nifti(path, image)
    else:
        segmentation = _itk(labelmap, grid)
        for key, value in _segment_table(grid, labels).items():
            segmentation.SetMetaData(key, value)
        _save_itk(path, segmentation)


def write_volume(path: str | Path, array: np.ndarray, grid: Grid) -> None:
    """Write a scalar volume (I, J, K) on its grid, in its own type (64-bit becomes 32-bit, bool uint8).

    The file appears whole or not at all. Raises InputError as ``write_labels``.
    """
    narrow = {"float64": np.float32, "float16": np.float32, "int64": np.int32, "bool": np.uint8}
    array = array.astype(narrow.get(array.dtype.name, array.dtype), copy=False)
    if _volume_suffix(path) in NIFTI_SUFFIXES:
        _save_nifti(path, _nifti(array, grid))
    else:
        _save_itk(path, _itk(array, grid))


def write_mask_png(path: str | Path, labelmap: np.ndarray, labels: Sequence[Label] = ()) -> None:
    """Write a label map (H, W), values 0 to 255, as PNG whose pixels are the label values.

    With ``labels`` it is a palette PNG: the same values, shown in the labels' colours; else 8-bit grey.
    The file appears whole or not at all. Raises InputError naming the folder when it cannot be written.
    """
    picture = Image.fromarray(_as_uint8(labelmap))
    if labels:
        palette = np.zeros((256, 3), np.uint8)
        for label in labels:
            palette[label.value] = label.rgb
        picture.putpalette(palette.tobytes(), "RGB")  # grey becomes palette, the pixel values stay
    with writing(path, ".png") as partial:
        picture.save(partial)


def write_picture(path: str | Path, pixels: np.ndarray) -> None:
    """Write a picture (C, H, W) as PNG: grey (C = 1) uint8 or uint16, colour (C = 3) uint8.

    The values are stored as they are. The file appears whole or not at all. Raises InputError naming the
    folder when it cannot be written.
    """
    grey = len(pixels) == 1
    kinds = {1: (np.uint8, np.uint16), 3: (np.uint8,)}.get(len(pixels), ())
    if pixels.ndim != 3 or pixels.dtype not in kinds:
        raise ValueError(f"a picture of shape {pixels.shape} and type {pixels.dtype} does not fit into a PNG")
    # (1, H, W) -> (H, W); (3, H, W) -> (H, W, 3)
    picture = Image.fromarray(pixels[0] if grey else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    with writing(path, ".png") as partial:
        picture.save(partial)


def _as_uint8(labelmap: np.ndarray) -> np.ndarray:
    if labelmap.dtype == np.uint8:
        return labelmap
    as_uint8 = labelmap.astype(np.uint8)
    if not np.array_equal(as_uint8, labelmap):
        raise ValueError("label values must be whole numbers from 0 to 255")
    return as_uint8


def _volume_suffix(path: str | Path) -> str:
    suffix = image_suffix(path)
    if suffix not in VOLUME_SUFFIXES or suffix in PAIR_SUFFIXES:
        raise InputError(f"{path}: cannot write a volume of this kind; use {', '.join(VOLUME_SUFFIXES)}.")
    return suffix


def _nifti(array: np.ndarray, grid: Grid) -> nib.Nifti1Image:
    image = nib.Nifti1Image(array, grid.affine)
    # Both forms, as readers disagree on which to prefer. A qform holds no shear: there the sform is exact.
    image.set_sform(grid.affine, code=_SCANNER)
    image.set_qform(grid.affine, code=_SCANNER)
    image.header.set_xyzt_units("mm")
    return image


def _itk(array: np.ndarray, grid: Grid) -> sitk.Image:
    affine_lps = ras_from_lps(grid.affine)
    # (I, J, K) -> (K, J, I), the order of ITK's arrays
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose()))
    image.SetSpacing(grid.spacing_mm.tolist())
    image.SetDirection((affine_lps[:3, :3] / grid.spacing_mm).ravel().tolist())
    image.SetOrigin(affine_lps[:3, 3].tolist())
    return image


def _segment_table(grid: Grid, labels: Sequence[Label]) -> dict[str, str]:
    """3D Slicer's description of a segmentation: one layer, one segment a label, listed even when absent.

    Fields as in the developer guide of 3D Slicer, "Segmentation labelmap file format (.seg.nrrd)".
    """
    if not labels:
        return {}
    extent = " ".join(f"0 {size - 1}" for size in grid.shape)
    table = {
        "Segmentation_SourceRepresentation": "Binary labelmap",
        "Segmentation_MasterRepresentation": "Binary labelmap",  # the older name of the same
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_ConversionParameters": _reference_geometry(grid),
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    for index, label in enumerate(labels):
        segment = {
            "ID": f"Segment_{label.value}",
            "Name": " ".join(label.name.split()),  # a line break would end the header's line
            "NameAutoGenerated": "0",
            "Color": " ".join(f"{channel / 255:.6f}" for channel in label.rgb),
            "ColorAutoGenerated": "0",
            "LabelValue": str(label.value),
            "Layer": "0",
            # The whole image: some versions of 3D Slicer crop every segment of a layer to the first's extent.
            "Extent": extent,
            "Tags": f"TerminologyEntry:{slicer_terminology(label)}|",
        }
        table |= {f"Segment{index}_{key}": value for key, value in segment.items()}
    return table


def _reference_geometry(grid: Grid) -> str:
    """The grid that segments edited or added in 3D Slicer are drawn on: RAS matrix by rows, then extent."""
    extent = [number for size in grid.shape for number in (0, size - 1)]
    numbers = [float(value) for value in grid.affine.ravel()] + extent
    geometry = "".join(f"{number!r};" for number in numbers)
    return f"Reference image geometry|{geometry}|Geometry of the segmented image.&"


def _save_nifti(path: str | Path, image: nib.Nifti1Image) -> None:
    with writing(path, image_suffix(path)) as partial:
        nib.save(image, partial)


def _save_itk(path: str | Path, image: sitk.Image) -> None:
    suffix = image_suffix(path)
    if suffix not in (".nrrd", ".mha"):
        raise InputError(f"{path}: {suffix} spreads over two files; use .nrrd or .mha.")
    with writing(path, suffix) as partial:
        sitk.WriteImage(image, str(partial), useCompression=True)


@contextmanager
def writing(path: str | Path, suffix: str) -> Iterator[Path]:
    """``files.replacing`` whose failure is the user's to mend: InputError naming the folder and the reason."""
    path = Path(path)
    try:
        with replacing(path, suffix) as partial:
            yield partial
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and suffix not in ITK_SUFFIXES:
            raise
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[-1]
        raise InputError(
            f"{path.parent}: cannot write {path.name} there ({reason}). "
            "Free some space or choose another output folder."
        ) from error
