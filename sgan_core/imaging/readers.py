"""Image and label files to arrays with their grid."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Collection
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from PIL import Image, ImageOps

from sgan_core.errors import InputError
from sgan_core.imaging.dicom import choose_series, find_series, is_dicom, read_series
from sgan_core.imaging.grid import Grid, corner_distance_mm, ras_from_lps
from sgan_core.imaging.guards import BoundedReader, refuse_constant
from sgan_core.imaging.image import Picture, Volume

NIFTI_SUFFIXES = (".nii.gz", ".nii")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
VOLUME_SUFFIXES = NIFTI_SUFFIXES + ITK_SUFFIXES
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")  # usual, not needed: DICOM is known by its content

# Header entries of two files of one scan differ by float32 rounding; a shift that matters is far larger.
GRID_TOLERANCE_MM = 1e-3
_INTEGER_TOLERANCE = 1e-3  # label values after scl_slope in float32
# What nibabel raises on garbage, beside its own errors.
_NIFTI_ERRORS = (ImageFileError, HeaderDataError, OSError, EOFError, zlib.error, ArithmeticError, ValueError)


def image_suffix(path: str | Path) -> str:
    """The supported ending of a file name in lower case, e.g. ``.nii.gz``; ``""`` when it has none."""
    name = Path(path).name.lower()
    known = VOLUME_SUFFIXES + PICTURE_SUFFIXES + DICOM_SUFFIXES
    return next((suffix for suffix in known if name.endswith(suffix)), "")


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
            _require_file(path)
        if suffix in DICOM_SUFFIXES or path.is_dir() or is_dicom(path):
            return read_series(choose_series(find_series(path), None, path))
    return read_picture(path) if _checked_suffix(path) in PICTURE_SUFFIXES else read_volume(path)


def read_volume(path: str | Path) -> Volume:
    """Read a scalar 3-D image: NIfTI, NRRD or MetaImage.

    Returns array (I, J, K) in stored units (HU for CT) with its grid: integers as stored when the header
    asks for no scaling, float32 otherwise. A 2-D file becomes one slice; trailing axes of length 1 go.
    NaN and infinite voxels become the lowest finite value (air), with a warning in ``Volume.warnings``.
    Raises InputError: missing, damaged, colour or 4-D file, empty axis, singular affine, no finite voxel,
    constant image.
    """
    path = Path(path)
    array, grid, warnings = _load_volume(path)
    array, replaced = _replace_not_finite(array, path)
    refuse_constant(array, path)
    return Volume(array, grid, (*warnings, *replaced))


def read_picture(path: str | Path) -> Picture:
    """Read a 2-D picture: PNG, JPEG, BMP, TIFF or GIF, turned upright as its EXIF entry says.

    Returns array (C, H, W): C is 1 for grey (uint8, uint16, int32 or float32 as stored; 1-bit becomes
    0 and 255) and 3 for colour (uint8 RGB; palettes are resolved, transparent pixels blend into black).
    Raises InputError: missing or damaged file, no finite pixel, constant picture.
    """
    path = Path(path)
    picture, warnings = _load_picture(path)
    array = _grey_or_rgb(picture)
    array, replaced = _replace_not_finite(array, path)
    refuse_constant(array, path)
    return Picture(array, (*warnings, *replaced))


def read_labels(path: str | Path, *, values: Collection[int] | None) -> Volume | np.ndarray:
    """Read a label map: a Volume of uint8 (I, J, K), or uint8 (H, W) from a picture.

    ``values`` are the label values that may occur beside background 0; None allows any from 0 to 255.
    Pictures: a palette file's indices are its labels, and where one label is known a black-and-white
    mask (0 and 255 only) means that label.
    Raises InputError: as ``read_image`` (but one constant value is fine: no label), colour pictures,
    values that are not whole numbers, or not in ``values``.
    """
    path = Path(path)
    if _checked_suffix(path) in PICTURE_SUFFIXES:
        picture, _ = _load_picture(path)
        return _checked_labels(_label_pixels(picture, path, values), path, values)
    array, grid, warnings = _load_volume(path)
    return Volume(_checked_labels(array, path, values), grid, warnings)


def require_same_grid(
    labels: Volume | np.ndarray, image: Volume | Picture, *, label_path: str | Path, image_path: str | Path
) -> None:
    """Refuse a label map that does not lie on its image voxel for voxel.

    Compares shapes, then for volumes the corners in the patient (tolerance ``GRID_TOLERANCE_MM``).
    Raises InputError naming both files and the difference, in voxels or mm.
    """
    image_shape = image.array.shape if isinstance(image, Volume) else image.array.shape[1:]
    label_shape = labels.array.shape if isinstance(labels, Volume) else labels.shape
    pair = f"label {Path(label_path).name} and image {Path(image_path).name}"
    if label_shape != image_shape:
        raise InputError(
            f"{pair} differ in shape: {_times(label_shape)} against {_times(image_shape)}. "
            "Resample the label onto the image, or pair the right files."
        )
    if isinstance(labels, Volume) and isinstance(image, Volume):
        distance_mm = corner_distance_mm(labels.grid, image.grid)
        if not distance_mm <= GRID_TOLERANCE_MM:
            raise InputError(
                f"{pair} lie {distance_mm:.4g} mm apart (allowed: {GRID_TOLERANCE_MM:g} mm). "
                "Resample the label onto the image, or pair the right files."
            )


# --- volumes ---------------------------------------------------------------------------------------


def _load_volume(path: Path) -> tuple[np.ndarray, Grid, tuple[str, ...]]:
    suffix = _checked_suffix(path)
    if suffix not in VOLUME_SUFFIXES:
        kind = "DICOM" if suffix in DICOM_SUFFIXES else "a 2-D picture"
        raise InputError(f"{path}: a volume is needed ({', '.join(VOLUME_SUFFIXES)}), this is {kind}.")
    _require_file(path)
    if suffix in NIFTI_SUFFIXES:
        array, affine, warnings = _load_nifti(path)
    else:
        array, affine, warnings = _load_itk(path)
    grid = Grid((array.shape[0], array.shape[1], array.shape[2]), affine)
    if grid.is_singular:
        raise InputError(
            f"{path}: the affine in the header is singular, so voxels have no place in the patient. "
            "Convert the scan again from its DICOM series."
        )
    return _compact(array, path), grid, warnings


def _load_nifti(path: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    try:
        with BoundedReader(path) as stream:
            image = _nifti_image(path, stream)
            shape = _scalar_shape(image.shape, path)
            scaling = (getattr(image.dataobj, "slope", 1.0), getattr(image.dataobj, "inter", 0.0))
            dtype = None if scaling == (1.0, 0.0) else np.float32  # None: as stored, no copy in float64
            offset = getattr(image.dataobj, "offset", 0)
            announced = offset + math.prod(shape) * image.header.get_data_dtype().itemsize
            if announced > stream.limit:
                raise ImageFileError(f"{_times(shape)} voxels are announced, the file holds fewer")
            array = np.asanyarray(image.dataobj, dtype=dtype)
    except _NIFTI_ERRORS as error:
        raise _damaged(path, "NIfTI", error) from error
    except MemoryError as error:
        raise InputError(f"{path}: no memory for its voxels. Crop the scan.") from error
    affine = np.asarray(image.affine, dtype=np.float64)
    return array.reshape(shape, order="A"), affine, _nifti_warnings(image, path, shape)


def _nifti_image(path: Path, stream: BoundedReader) -> nib.Nifti1Image:
    """The image, its voxels still in the file."""
    kind = next((kind for kind in (nib.Nifti1Image, nib.Nifti2Image) if kind.path_maybe_image(path)[0]), None)
    if kind is None:
        raise InputError(
            f"{path}: truncated, damaged or not a NIfTI file. Copy or export it again, or convert it to .nii.gz."
        )
    # No memory map: it would keep the file open (Windows) and fault on a truncated file.
    image = kind.from_file_map({"image": nib.FileHolder(fileobj=stream)}, mmap=False)
    if image.header.get_data_dtype().fields is not None:
        raise InputError(f"{path}: a colour volume; one value a voxel is needed. Convert it to grey values.")
    return image


def _nifti_warnings(image: nib.Nifti1Image, path: Path, shape: tuple[int, int, int]) -> tuple[str, ...]:
    sform, sform_code = image.get_sform(coded=True)
    qform, qform_code = image.get_qform(coded=True)
    if not sform_code and not qform_code:
        return (f"{path.name}: the header holds no orientation; left and right are a guess.",)
    if sform_code and qform_code and qform is not None:
        distance_mm = corner_distance_mm(Grid(shape, sform), Grid(shape, qform))
        if distance_mm > 1.0:
            return (f"{path.name}: sform and qform differ by {distance_mm:.1f} mm; the sform is used.",)
    return ()


def _load_itk(path: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise _damaged(path, "NRRD or MetaImage", error) from error
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(
            f"{path}: {image.GetNumberOfComponentsPerPixel()} values a voxel; one is needed. "
            "Export a single channel (a segmentation without overlapping segments)."
        )
    array = sitk.GetArrayFromImage(image).transpose()  # (..., K, J, I) -> (I, J, K, ...)
    shape = _scalar_shape(array.shape, path)
    axes = min(image.GetDimension(), 3)
    direction = np.array(image.GetDirection()).reshape(image.GetDimension(), -1)
    affine_lps = np.eye(4)
    affine_lps[:axes, :axes] = direction[:axes, :axes] * image.GetSpacing()[:axes]
    affine_lps[:axes, 3] = image.GetOrigin()[:axes]
    return array.reshape(shape, order="A"), ras_from_lps(affine_lps), ()


def _scalar_shape(shape: tuple[int, ...], path: Path) -> tuple[int, int, int]:
    """(I, J, K) of a file's shape: axes of length 1 added or taken off at the end."""
    shortest = min(shape, default=0)
    if shortest < 1:
        raise InputError(
            f"{path}: the image has an axis of length {shortest} ({_times(shape)}); it holds no voxel."
        )
    if any(size != 1 for size in shape[3:]):
        raise InputError(
            f"{path}: {len(shape)}-D ({_times(shape)}); one 3-D volume is needed. "
            "Export a single phase, echo or time point."
        )
    first, second, third = (*shape, 1, 1, 1)[:3]
    return first, second, third


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


def _load_picture(path: Path) -> tuple[Image.Image, tuple[str, ...]]:
    if _checked_suffix(path) not in PICTURE_SUFFIXES:
        raise InputError(f"{path}: a picture is needed ({', '.join(PICTURE_SUFFIXES)}).")
    _require_file(path)
    try:
        with Image.open(path) as opened:
            pages = getattr(opened, "n_frames", 1)
            upright = ImageOps.exif_transpose(opened)  # a loaded copy
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: {error} Save a smaller picture.") from error
    except (OSError, EOFError, SyntaxError, ValueError, struct.error, zlib.error) as error:
        raise _damaged(path, "picture", error) from error
    return upright, (f"{path.name}: holds {pages} pages; the first is used.",) if pages > 1 else ()


def _grey_or_rgb(picture: Image.Image) -> np.ndarray:
    """(C, H, W) of a picture in any PIL mode."""
    if picture.mode == "1":
        return np.asarray(picture.convert("L"))[None]
    if picture.mode == "L" or picture.mode[0] in "IF":
        pixels = np.asarray(picture)
        return pixels.astype(pixels.dtype.newbyteorder("="))[None]
    if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        picture = Image.new("RGB", rgba.size)
        picture.paste(rgba, mask=rgba.getchannel("A"))
    # (H, W, 3) -> (3, H, W)
    return np.ascontiguousarray(np.asarray(picture.convert("RGB")).transpose(2, 0, 1))


def _label_pixels(picture: Image.Image, path: Path, values: Collection[int] | None) -> np.ndarray:
    """(H, W) label values of a picture: palette indices, grey values, or equal colour channels."""
    if picture.mode == "1":
        white = next(iter(values)) if values and len(values) == 1 else 1
        return np.asarray(picture).astype(np.uint8) * np.uint8(white)
    pixels = np.asarray(picture)
    if pixels.ndim == 3:
        alpha = picture.mode in ("LA", "PA", "RGBA")
        channels = pixels[..., :-1] if alpha else pixels
        if (channels != channels[..., :1]).any():
            raise InputError(
                f"{path}: a colour picture; label values are needed. "
                "Save the label map as grey or palette PNG whose pixels are the label values."
            )
        pixels = channels[..., 0]
    foreground = set(values or ()) - {0}
    if picture.mode != "P" and len(foreground) == 1 and 255 not in foreground:
        levels = np.unique(pixels)
        if levels[-1] == 255 and set(levels.tolist()) <= {0, 255}:
            return (pixels == 255) * np.uint8(foreground.pop())
    return pixels


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


# --- checks ----------------------------------------------------------------------------------------


def _checked_suffix(path: str | Path) -> str:
    suffix = image_suffix(path)
    if not suffix:
        known = "DICOM, " + ", ".join(VOLUME_SUFFIXES + PICTURE_SUFFIXES)
        raise InputError(f"{path}: unknown kind of file; supported are {known}.")
    return suffix


def _require_file(path: Path) -> None:
    if not path.exists():
        raise InputError(f"{path}: no such file. Check the path.")
    if not path.is_file():
        raise InputError(f"{path}: a folder, not an image file. Name one file inside it.")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty (0 bytes). Copy or export it again.")


def _damaged(path: Path, kind: str, error: Exception) -> InputError:
    if isinstance(error, PermissionError):
        return InputError(f"{path}: not allowed to read the file. Change its permissions.")
    reasons = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = f" ({reasons[-1][:160]})" if reasons else ""
    return InputError(f"{path}: truncated, damaged or not a {kind} file{reason}. Copy or export it again.")


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


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
