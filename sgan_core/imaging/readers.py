"""Image and label files to arrays with their grid."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL.Image import Image

from sgan_core.errors import InputError
from sgan_core.imaging.dicom import choose_series, find_series, is_dicom, read_series
from sgan_core.imaging.endings import (
    DICOM_SUFFIXES,
    ITK_SUFFIXES,
    NIFTI_SUFFIXES,
    PICTURE_SUFFIXES,
    VOLUME_SUFFIXES,
    VOXEL_SUFFIXES,
    image_suffix,
)
from sgan_core.imaging.grid import SAME_MM, SAME_VOXELS, Grid, corner_distance_mm, same_place
from sgan_core.imaging.guards import impossible_size, refuse_constant, require_file, times
from sgan_core.imaging.image import Picture, Volume
from sgan_core.imaging.itk_files import itk_files, load_itk
from sgan_core.imaging.nifti import load_nifti, nifti_files
from sgan_core.imaging.pictures import grey_or_rgb, label_pixels, open_picture

__all__ = [
    "DICOM_SUFFIXES",
    "ITK_SUFFIXES",
    "NIFTI_SUFFIXES",
    "PICTURE_SUFFIXES",
    "VOLUME_SUFFIXES",
    "files_of",
    "image_suffix",
    "read_image",
    "read_labels",
    "read_picture",
    "read_volume",
    "require_same_grid",
]

_INTEGER_TOLERANCE = 1e-3  # label values after scl_slope in float32


def read_image(path: str | Path) -> Volume | Picture:
    """Read a volume or a picture, whichever the file name says; DICOM files also without an ending.

    A folder is read as the one DICOM series in it and its subfolders; a DICOM file is read alone.
    Raises InputError as ``read_volume``, ``read_picture`` and ``dicom.read_series`` do, when a folder holds
    no DICOM series or several, or when the name has no supported ending.
    """
    path = Path(path)
    suffix = image_suffix(path)
    if path.is_dir() or suffix in DICOM_SUFFIXES or not suffix:
        if suffix in DICOM_SUFFIXES and not path.is_dir():
            require_file(path)
        if suffix in DICOM_SUFFIXES or path.is_dir() or is_dicom(path):
            return read_series(choose_series(find_series(path), None, path))
    return read_picture(path) if _checked_suffix(path) in PICTURE_SUFFIXES else read_volume(path)


def files_of(path: Path) -> tuple[Path, ...] | None:
    """The files that an image file is read from: itself, and where its header leaves the voxels to another, that.

    None when the header names its files in a way of its own (a list, a pattern). Raises InputError for a missing half.
    """
    suffix = image_suffix(path)
    if suffix in NIFTI_SUFFIXES + VOXEL_SUFFIXES:
        return tuple(dict.fromkeys(nifti_files(path)))
    return itk_files(path) if suffix in ITK_SUFFIXES else (path,)


def read_volume(path: str | Path) -> Volume:
    """Read a scalar 3-D image: NIfTI, NRRD or MetaImage.

    Returns array (I, J, K) in stored units (HU for CT) with its grid: integers as stored when the header
    asks for no scaling, float32 otherwise. A 2-D file becomes one slice; trailing axes of length 1 go.
    NaN and infinite voxels become the lowest finite value (air), with a warning in ``Volume.warnings``.
    Raises InputError: missing, damaged, colour or 4-D file, empty axis, singular affine, no finite voxel,
    constant image.
    """
    path = Path(path)
    volume = _load_volume(path)
    array, replaced = _replace_not_finite(volume.array, path)
    refuse_constant(array, path)
    return replace(volume, array=array, warnings=(*volume.warnings, *replaced))


def read_picture(path: str | Path) -> Picture:
    """Read a 2-D picture: PNG, JPEG, BMP, TIFF or GIF, turned upright as its EXIF entry says.

    Returns array (C, H, W): C is 1 for grey (uint8, uint16, int32 or float32 as stored; 1-bit becomes
    0 and 255) and 3 for colour (uint8 RGB; palettes are resolved, transparent pixels blend into black).
    Raises InputError: missing or damaged file, no finite pixel, constant picture.
    """
    path = Path(path)
    picture, warnings = _load_picture(path)
    array = grey_or_rgb(picture)
    array, replaced = _replace_not_finite(array, path)
    refuse_constant(array, path)
    return Picture(array, (*warnings, *replaced))


def read_labels(
    path: str | Path, *, values: Collection[int] | None, remarks: list[str] | None = None
) -> Volume | np.ndarray:
    """Read a label map: a Volume of uint8 (I, J, K), or uint8 (H, W) from a picture.

    ``values`` are the label values that may occur beside background 0; None allows any from 0 to 255.
    ``remarks`` gets a sentence for what the owner of a picture should know (grey edges).
    Pictures: a palette file's indices are its labels, and where one label is known a black-and-white
    mask means that label; what else counts stands in ``pictures.label_pixels``.
    Raises InputError: as ``read_image`` (but one constant value is fine: no label), colour pictures,
    values that are not whole numbers, or not in ``values``.
    """
    path = Path(path)
    if _checked_suffix(path) in PICTURE_SUFFIXES:
        picture, _ = _load_picture(path)
        return _checked_labels(label_pixels(picture, path, values, remarks), path, values)
    volume = _load_volume(path)
    return replace(volume, array=_checked_labels(volume.array, path, values))


def require_same_grid(
    labels: Volume | np.ndarray, image: Volume | Picture, *, label_path: str | Path, image_path: str | Path
) -> Volume | np.ndarray:
    """The label map, voxel for voxel on its image: in the image's order of axes where it was stored in another.

    Compares shapes, then for volumes the corners in the patient (``grid.same_place``).
    Raises InputError naming both files and the difference, in voxels or mm.
    """
    names = f"label {Path(label_path).name} and image {Path(image_path).name}"
    return on_grid_of(labels, image, names, "Resample the label onto the image, or pair the right files.")


def on_grid_of(
    labels: Volume | np.ndarray, image: Volume | Picture | np.ndarray, names: str, mend: str
) -> Volume | np.ndarray:
    """As ``require_same_grid``, for a pair called ``names``; ``mend`` says what to do about a difference."""
    shape = image.array.shape[1:] if isinstance(image, Picture) else _array(image).shape
    if isinstance(labels, Volume) and isinstance(image, Volume):
        labels = _in_order_of(labels, image.grid)
    found = _array(labels).shape
    if found != shape:
        raise InputError(f"{names} differ in shape: {times(found)} against {times(shape)}. {mend}")
    if isinstance(labels, Volume) and isinstance(image, Volume) and not same_place(labels.grid, image.grid):
        raise InputError(
            f"{names} lie {corner_distance_mm(labels.grid, image.grid):.4g} mm apart "
            f"(allowed: {SAME_VOXELS:g} voxel, {SAME_MM:g} mm). {mend}"
        )
    return labels


def _array(labels: Volume | np.ndarray) -> np.ndarray:
    return labels.array if isinstance(labels, Volume) else labels


def _in_order_of(labels: Volume, grid: Grid) -> Volume:
    """The label map with its axes exchanged and turned as those of the grid run; no voxel moves in the patient."""
    turn = nib.io_orientation(np.linalg.inv(grid.affine) @ labels.grid.affine)
    if np.array_equal(turn, [[0, 1], [1, 1], [2, 1]]):
        return labels
    array = np.ascontiguousarray(nib.apply_orientation(labels.array, turn))
    affine = labels.grid.affine @ nib.orientations.inv_ornt_aff(turn, labels.array.shape)
    return replace(labels, array=array, grid=Grid((array.shape[0], array.shape[1], array.shape[2]), affine))


# --- volumes ---------------------------------------------------------------------------------------


def _load_volume(path: Path) -> Volume:
    suffix = _checked_suffix(path)
    if suffix not in VOLUME_SUFFIXES + VOXEL_SUFFIXES:
        kind = "DICOM" if suffix in DICOM_SUFFIXES else "a 2-D picture"
        raise InputError(f"{path}: a volume is needed ({', '.join(VOLUME_SUFFIXES)}), this is {kind}.")
    require_file(path)
    volume = load_itk(path) if suffix in ITK_SUFFIXES else load_nifti(path)
    if volume.grid.is_singular:
        raise InputError(
            f"{path}: the affine in the header is singular, so voxels have no place in the patient. "
            "Convert the scan again from its DICOM series."
        )
    doubts = volume.doubts
    if odd := impossible_size(volume.grid):
        doubts += (f"{path.name}: {odd}; is its unit of length mm?",)
    return replace(volume, array=_compact(volume.array, path), doubts=doubts)


def _compact(array: np.ndarray, path: Path) -> np.ndarray:
    """Native byte order and at most 32 bits a voxel: no file needs more, and memory is what runs out."""
    if array.dtype.kind not in "biuf":
        raise InputError(f"{path}: voxels of type {array.dtype}; real numbers are needed.")
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.kind == "f":
        return array.astype(np.float32, copy=False)
    if array.dtype.itemsize == 8 or array.dtype == np.uint32:
        fits = array.min() >= np.iinfo(np.int32).min and array.max() <= np.iinfo(np.int32).max
        return array.astype(np.int32 if fits else np.float32)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


# --- pictures --------------------------------------------------------------------------------------


def _load_picture(path: Path) -> tuple[Image, tuple[str, ...]]:
    if _checked_suffix(path) not in PICTURE_SUFFIXES:
        raise InputError(f"{path}: a picture is needed ({', '.join(PICTURE_SUFFIXES)}).")
    require_file(path)
    return open_picture(path)


# --- checks ----------------------------------------------------------------------------------------


def _checked_labels(array: np.ndarray, path: Path, values: Collection[int] | None) -> np.ndarray:
    """The array as uint8 once every value is known."""
    if array.dtype.kind == "f":
        whole = np.round(array)
        with np.errstate(invalid="ignore"):
            fits = np.abs(array - whole) <= _INTEGER_TOLERANCE
        if not fits.all():
            example = array[~fits][0]
            raise InputError(
                f"{path}: a label map needs whole numbers, {example:g} found. "
                "Is this the image, or a probability map?"
            )
        array = whole
    found = [int(value) for value in np.unique(array)]
    allowed = set(range(256)) if values is None else {0, *values}
    unknown = [value for value in found if value not in allowed]
    if unknown:
        known = "0 to 255" if values is None else ", ".join(map(str, sorted(allowed)))
        listed = ", ".join(map(str, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
        raise InputError(
            f"{path}: unknown label value {listed}; known are {known}. "
            "Relabel the file, or add the label to the cohort."
        )
    return array.astype(np.uint8)


def _checked_suffix(path: str | Path) -> str:
    suffix = image_suffix(path)
    if not suffix:
        known = "DICOM, " + ", ".join(VOLUME_SUFFIXES + PICTURE_SUFFIXES)
        raise InputError(f"{path}: unknown kind of file; supported are {known}.")
    return suffix


def _replace_not_finite(array: np.ndarray, path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    if array.dtype.kind != "f":
        return array, ()
    finite = np.isfinite(array)
    missing = array.size - int(np.count_nonzero(finite))
    if not missing:
        return array, ()
    if missing == array.size:
        raise InputError(f"{path}: every value is NaN or infinite; there is nothing to segment.")
    lowest = array.min(where=finite, initial=np.inf)
    warning = (
        f"{path.name}: {missing} values ({100.0 * missing / array.size:.2g} %) are NaN or infinite; "
        f"replaced by the lowest value, {lowest:g}."
    )
    return np.where(finite, array, lowest), (warning,)
