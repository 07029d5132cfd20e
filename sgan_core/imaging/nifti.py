"""NIfTI files to voxels with their place in the patient.

Of the header (NIfTI-1.1, nifti1.h; NIfTI-2 alike) counts: dim, datatype, scl_slope and scl_inter, xyzt_units,
pixdim, qform and sform. The sform is used, else the qform; where they contradict each other or pixdim, the rules
of ``_orientation`` decide. Times, slice order, display range, intent and texts do not change a voxel or its place.
"""

from __future__ import annotations

import logging
import math
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti2 import Nifti2Header, Nifti2PairHeader
from nibabel.quaternions import quat2mat
from nibabel.spatialimages import HeaderDataError

from sgan_core.errors import InputError
from sgan_core.imaging.endings import PAIR_SUFFIXES, image_suffix
from sgan_core.imaging.grid import Grid, corner_distance_mm
from sgan_core.imaging.guards import (
    BoundedReader,
    damaged,
    impossible_size,
    require_file,
    scalar_shape,
    times,
)
from sgan_core.imaging.image import Volume

# What nibabel raises on garbage, beside its own errors.
_ERRORS = (ImageFileError, HeaderDataError, OSError, EOFError, zlib.error, ArithmeticError, ValueError)
_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # a unit of xyzt_units; 0, unknown, is mm to every reader
_UNIT_NAMES = {1: "metres", 3: "micrometres"}
_LONG_QUATERNION = 1e-3  # b2 + c2 + d2 - 1 of numbers rounded to four digits; float32 alone gives 1e-7
_SPACING_TOLERANCE = 0.01  # between the sform's columns and pixdim
_SMALLEST_SLOPE = 1e-20  # ITK takes less for no scaling
_QUIET = logging.Logger("nibabel", logging.CRITICAL + 1)  # its remarks about mended fields go to stderr


def load_nifti(path: Path) -> Volume:
    """Voxels (I, J, K) as stored, float32 where the header scales them, on their grid in mm.

    Either file of a pair may be named. Raises InputError: damaged, colour or 4-D file, a header that contradicts
    itself so that no reading is sure.
    """
    header_file, voxel_file = nifti_files(path)
    try:
        with BoundedReader(header_file) as stream:
            header, raw = _header(header_file, stream)
        shape = scalar_shape(header.get_data_shape(), path)
        warnings, dtype = _scaling(raw, path)
        with BoundedReader(voxel_file) as stream:
            voxels = ArrayProxy(stream, header, mmap=False)
            if voxels.offset + math.prod(shape) * voxels.dtype.itemsize > stream.limit:
                raise ImageFileError(f"{times(shape)} voxels are announced, the file holds fewer")
            array = np.asanyarray(voxels, dtype=dtype)
            stream.seek(voxels.offset + array.size * voxels.dtype.itemsize)
            longer = bool(stream.read(1))
    except _ERRORS as error:
        raise damaged(path, "NIfTI", error) from error
    except MemoryError as error:
        raise InputError(f"{path}: no memory for its voxels. Crop the scan.") from error
    affine, remarks, doubts = _orientation(raw, shape, path)
    if longer:
        doubts += (
            f"{path.name}: the file goes on behind its last voxel; it may hold more than its header says.",
        )
    grid = Grid(shape, affine)
    unit = int(raw["xyzt_units"]) & 7
    if unit in _UNIT_NAMES:
        if odd := impossible_size(grid):
            raise InputError(
                f"{path}: xyzt_units says {_UNIT_NAMES[unit]}, but then {odd}. Set its unit of length right (2 is mm)."
            )
        warnings += (f"{path.name}: lengths in {_UNIT_NAMES[unit]} (xyzt_units) were converted to mm.",)
    elif unit not in _MM:
        warnings += (f"{path.name}: xyzt_units {unit} is no unit of length; lengths are taken for mm.",)
    return Volume(array.reshape(shape, order="A"), grid, warnings + remarks, doubts)


def nifti_files(path: Path) -> tuple[Path, Path]:
    """The file of the header and that of the voxels: the same one, or two. Raises InputError when one is missing."""
    suffix = image_suffix(path)
    first = next((h for h, v in PAIR_SUFFIXES.items() if suffix in (h, v)), None)
    if first is None:
        return path, path
    pair = [_beside(path, path.name[: -len(suffix)] + part) for part in (first, PAIR_SUFFIXES[first])]
    for file in pair:
        if not file.exists():
            raise InputError(
                f"{path}: {file.name} is missing beside it; header (.hdr) and voxels (.img) are two files."
            )
        require_file(file)
    return pair[0], pair[1]


def _beside(path: Path, name: str) -> Path:
    """The file of that name in the path's folder, also in capitals."""
    exact = path.with_name(name)
    if exact.exists() or not path.parent.is_dir():
        return exact
    return next((file for file in path.parent.iterdir() if file.name.lower() == name.lower()), exact)


def _header(path: Path, stream: BoundedReader) -> tuple[nib.Nifti1Header, np.ndarray]:
    """The header, mended where nibabel can, and its fields as they stand in the file."""
    paired = image_suffix(path) in PAIR_SUFFIXES
    start = stream.read(Nifti2Header.sizeof_hdr)
    kinds = (nib.nifti1.Nifti1PairHeader, Nifti2PairHeader) if paired else (nib.Nifti1Header, Nifti2Header)
    kind = next((kind for kind in kinds if kind.may_contain_header(start)), None)
    if kind is None and paired and nib.AnalyzeHeader.may_contain_header(start):
        raise InputError(
            f"{path}: Analyze 7.5, which does not say where left and right are. Convert the scan again from its "
            "DICOM series, as NIfTI."
        )
    if kind is None:
        raise InputError(
            f"{path}: truncated, damaged or not a NIfTI file. Copy or export it again, or convert it to .nii.gz."
        )
    header = kind(start[: kind.sizeof_hdr], check=False)  # extensions stay unread
    raw = header.structarr.copy()
    header.check_fix(logger=_QUIET, error_level=40)
    if (header["magic"].item()[:2] == b"ni") is not paired:
        raise InputError(
            f"{path}: its header says that the voxels are in {'this' if paired else 'another'} file. "
            "Convert it to .nii.gz."
        )
    if not paired and raw["vox_offset"].item() < kind.sizeof_hdr + 4:  # nibabel and ITK take it as it is
        raise InputError(
            f"{path}: its voxels begin within the header (vox_offset {raw['vox_offset'].item():g}). Convert it again."
        )
    if raw["bitpix"].item() != 8 * header.get_data_dtype().itemsize:
        raise InputError(
            f"{path}: voxels of {raw['bitpix'].item()} bits by bitpix, of {8 * header.get_data_dtype().itemsize} by "
            "datatype. Convert it again."
        )
    if header.get_data_dtype().fields is not None:
        raise InputError(f"{path}: a colour volume; one value a voxel is needed. Convert it to grey values.")
    if header.get_data_dtype().kind == "c":
        raise InputError(f"{path}: complex voxels; real numbers are needed. Export the magnitude.")
    return header, raw


def _scaling(raw: np.ndarray, path: Path) -> tuple[tuple[str, ...], type[np.float32] | None]:
    """Warnings, and the type of the scaled voxels; None: as stored. A slope of 0 or NaN means no scaling."""
    slope, inter = float(raw["scl_slope"]), float(raw["scl_inter"])
    tiny = 0 < abs(slope) < _SMALLEST_SLOPE
    if tiny or math.isinf(slope) or (math.isfinite(slope) and slope and not math.isfinite(inter)):
        raise InputError(
            f"{path}: scl_slope {slope:g} and scl_inter {inter:g} give no values. Convert it again."
        )
    if not slope or math.isnan(slope):
        ignored = math.isfinite(inter) and inter != 0
        text = f"{path.name}: scl_slope is {slope:g}, so scl_inter {inter:g} is not added."
        return ((text,) if ignored else ()), None
    return (), None if (slope, inter) == (1.0, 0.0) else np.float32


# --- where the voxels are --------------------------------------------------------------------------


def _orientation(
    raw: np.ndarray, shape: tuple[int, int, int], path: Path
) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """The affine in mm, warnings and doubts.

    * Neither form: the axes run left, anterior, superior as in nibabel, a guess.
    * pixdim is the voxel size, so the columns of the sform must have that length (of a sheared scan: that distance).
      Where they do not: a sform of unit columns was never filled in, one that maps to a template (code 2 and more)
      scales, and the qform is used; a pixdim of ones was never filled in, and the sform is used; else refused.
    * Forms that point into other directions (more than 45 degrees): the sform is used, in doubt.
    """
    mm = _MM.get(int(raw["xyzt_units"]) & 7, 1.0)
    codes = {name: int(raw[f"{name}_code"]) for name in ("sform", "qform")}
    for name, code in codes.items():
        if not 0 <= code <= 5:
            raise InputError(
                f"{path}: {name}_code {code} is unknown; its header is damaged. Convert it again."
            )
    spacing_mm = _spacing(raw) * mm
    sform = np.vstack([raw["srow_x"], raw["srow_y"], raw["srow_z"], (0, 0, 0, 1)]).astype(float)
    sform[:3] *= mm
    qform = _qform(raw, spacing_mm, mm) if codes["qform"] else None
    if not codes["sform"] and qform is None:
        doubt = f"{path.name}: the header holds no orientation; left and right are a guess."
        return _base_affine(spacing_mm, shape), (), (doubt,)
    if not codes["sform"]:
        if isinstance(qform, str):
            raise InputError(
                f"{path}: {qform}, and there is no sform. Convert the scan again from its DICOM series."
            )
        return np.asarray(qform), (), ()
    if Grid(shape, sform).is_singular:
        return sform, (), ()  # refused for every kind of file alike
    warnings: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    if not _has_spacing(sform, spacing_mm, int(raw["dim"][0])):
        columns = np.linalg.norm(sform[:3, :3], axis=0)
        sizes = f"voxels of {_sizes(columns)} mm in the sform, {_sizes(spacing_mm)} mm in pixdim"
        unfilled = np.allclose(columns, mm, rtol=1e-3)
        if (unfilled or codes["sform"] > 1) and isinstance(qform, np.ndarray):
            text = f"{path.name}: {sizes}; the qform is used."
            return qform, (text,), (text,) if unfilled else ()
        if not np.allclose(spacing_mm, mm, rtol=1e-3):
            raise InputError(f"{path}: {sizes}. Convert the scan again from its DICOM series.")
        doubts = (f"{path.name}: {sizes}; the sform is used.",)
    if isinstance(qform, str):
        return sform, (f"{path.name}: {qform}; the sform is used.",), doubts
    if qform is not None:
        distance_mm = corner_distance_mm(Grid(shape, sform), Grid(shape, qform))
        if distance_mm > 1.0:
            warnings = (f"{path.name}: sform and qform differ by {distance_mm:.1f} mm; the sform is used.",)
        if _degrees_apart(sform, qform) > 45.0:
            doubts += (
                f"{path.name}: sform and qform point in different directions; left and right may be exchanged.",
            )
    return sform, warnings, doubts


def _spacing(raw: np.ndarray) -> np.ndarray:
    """|pixdim| of the three axes; 1 for an axis that the image does not have."""
    spacing = np.abs(np.asarray(raw["pixdim"][1:4], dtype=float))
    return np.where((spacing == 0) & (np.arange(3) >= int(raw["dim"][0])), 1.0, spacing)


def _qform(raw: np.ndarray, spacing_mm: np.ndarray, mm: float) -> np.ndarray | str:
    """The affine of the qform, or why it has none.

    Readers disagree about a negative pixdim (a flip to some) and a qfac below 0 other than -1.
    """
    bcd = np.array([raw["quatern_b"], raw["quatern_c"], raw["quatern_d"]], dtype=float)
    qfac = float(raw["pixdim"][0]) or 1.0
    square = float(bcd @ bcd)
    if not square - 1.0 <= _LONG_QUATERNION:
        return f"the quaternion of the qform is no rotation (b2 + c2 + d2 = {square:.4g})"
    if not (qfac > 0 or qfac == -1):
        return f"pixdim[0] of the qform is {qfac:g}, not 1 or -1"
    if not (np.isfinite(spacing_mm) & (spacing_mm > 0) & (np.asarray(raw["pixdim"][1:4]) >= 0)).all():
        return f"pixdim {_sizes(raw['pixdim'][1:4])} is no voxel size for the qform"
    a = math.sqrt(max(0.0, 1.0 - square))
    affine = np.eye(4)
    affine[:3, :3] = quat2mat((a, *bcd)) @ np.diag(spacing_mm * (1.0, 1.0, math.copysign(1.0, qfac)))
    affine[:3, 3] = [float(raw[f"qoffset_{axis}"]) * mm for axis in "xyz"]
    return affine


def _base_affine(spacing_mm: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """As nibabel's get_base_affine: centred, the first axis runs to the left."""
    steps = spacing_mm * (-1.0, 1.0, 1.0)
    affine = np.diag([*steps, 1.0])
    affine[:3, 3] = -steps * (np.array(shape) - 1) / 2.0
    return affine


def _has_spacing(sform: np.ndarray, spacing_mm: np.ndarray, axes: int) -> bool:
    """Whether the sform has the voxel size of pixdim, where pixdim holds one."""
    columns = sform[:3, :3]
    given = np.isfinite(spacing_mm) & (spacing_mm > 0) & (np.arange(3) < axes)
    heights = 1.0 / np.linalg.norm(np.linalg.inv(columns), axis=1)  # from plane to plane: less if sheared
    fits = [
        np.isclose(size, spacing_mm, rtol=_SPACING_TOLERANCE, atol=0.0)
        for size in (np.linalg.norm(columns, axis=0), heights)
    ]
    return bool((fits[0] | fits[1] | ~given).all())


def _degrees_apart(first: np.ndarray, second: np.ndarray) -> float:
    """The largest angle between equal voxel axes of two affines."""
    axes = [affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0) for affine in (first, second)]
    return float(np.degrees(np.arccos(np.clip((axes[0] * axes[1]).sum(axis=0), -1.0, 1.0))).max())


def _sizes(numbers: np.ndarray) -> str:
    return times(f"{number:.4g}" for number in numbers)
