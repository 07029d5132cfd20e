"""NRRD and MetaImage files to voxels with their place in the patient, by SimpleITK.

ITK reads no unit of length, takes a missing orientation for LPS and a missing voxel size for 1 mm: the header is
asked for these (NRRD: teem.sourceforge.net/nrrd/format.html; MetaImage: itk.org/Wiki/MetaIO/Documentation).
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import SimpleITK as sitk

from sgan_core.errors import InputError
from sgan_core.imaging.endings import image_suffix
from sgan_core.imaging.grid import Grid, ras_from_lps
from sgan_core.imaging.guards import damaged, impossible_size, scalar_shape
from sgan_core.imaging.image import Volume

_MM = {
    **dict.fromkeys(("", "mm", "millimeter", "millimetre", "?", "???"), 1.0),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 10.0),
    **dict.fromkeys(("m", "meter", "metre"), 1000.0),
    **dict.fromkeys(("um", "\u00b5m", "\u03bcm", "micron", "micrometer", "micrometre"), 0.001),
}
_PATIENT_SPACES = re.compile(
    r"(ras|las|lps|(right|left)-anterior-superior|left-posterior-superior)(-time|t)?"
)
_NO_ORIGIN = "the header holds no origin; where the scan lies in the patient is a guess."
_NUMBER = r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*"
_VECTORS = re.compile(rf"(\s*\({_NUMBER}(,{_NUMBER})*\))*\s*")
_UNIT_LENGTH = 1e-3  # of the columns of a TransformMatrix
_LONGEST_HEADER = 10_000  # lines
_CHUNK = 1 << 20  # bytes


def load_itk(path: Path) -> Volume:
    """Voxels (I, J, K) as stored on their grid in mm.

    Raises InputError: damaged, colour or 4-D file, a unit that is no length, a header that asks for what ITK ignores.
    """
    header = _header(path)
    if image_suffix(path) in (".mha", ".mhd"):
        _refuse_unsure_voxels(path, header)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise damaged(path, "NRRD or MetaImage", error) from error
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(
            f"{path}: {image.GetNumberOfComponentsPerPixel()} values a voxel; one is needed. "
            "Export a single channel (a segmentation without overlapping segments)."
        )
    array = sitk.GetArrayFromImage(image).transpose()  # (..., K, J, I) -> (I, J, K, ...)
    shape = scalar_shape(array.shape, path)
    axes = min(image.GetDimension(), 3)
    direction = np.array(image.GetDirection()).reshape(image.GetDimension(), -1)
    affine_lps = np.eye(4)
    affine_lps[:axes, :axes] = direction[:axes, :axes] * image.GetSpacing()[:axes]
    affine_lps[:axes, 3] = image.GetOrigin()[:axes]
    of_kind = _nrrd_facts if image_suffix(path) in (".nrrd", ".nhdr") else _metaimage_facts
    unit, doubts = of_kind(header, direction[:axes, :axes], path)
    _refuse_other_length(path, header, array.nbytes)
    _check_compressed(path, header, array.nbytes)
    mm = _in_mm(unit, path)
    affine_lps[:axes] *= mm
    grid = Grid(shape, ras_from_lps(affine_lps))
    warnings: tuple[str, ...] = ()
    if mm != 1.0:
        if odd := impossible_size(grid):
            raise InputError(
                f"{path}: lengths are not in mm by its header, but then {odd}. Set the unit right."
            )
        warnings = (f"{path.name}: lengths in units of {mm:g} mm by its header were converted to mm.",)
    return Volume(array.reshape(shape, order="A"), grid, warnings, tuple(f"{path.name}: {d}" for d in doubts))


def itk_files(path: Path) -> tuple[Path, ...] | None:
    """The header's file and that of the voxels, where it is another; None where the header names no single file."""
    header = _header(path)
    named = header.get("elementdatafile") or header.get("data file") or header.get("datafile") or ""
    if named.lower() in ("", "local"):
        return (path,)
    file = path.parent / named
    return (path, file) if file.is_file() else None


def _header(path: Path) -> dict[str, str]:
    """The entries of the header, names in lower case."""
    separator = "=" if image_suffix(path) in (".mha", ".mhd") else ":"
    entries: dict[str, str] = {}
    with path.open("rb") as stream:
        for _ in range(_LONGEST_HEADER):
            line = stream.readline(65536)
            try:
                text = line.decode("utf-8").strip()
            except UnicodeDecodeError:
                text = line.decode("latin-1").strip()
            name, found, value = text.partition(separator)
            if found and not (separator == ":" and value.startswith("=")):  # key:=value is a note
                entries.setdefault(name.strip().lower(), value.strip())
            if not line or (separator == ":" and not text) or "elementdatafile" in entries:
                break
    return entries


def _in_mm(unit: str, path: Path) -> float:
    name = unit.strip().lower()
    mm = _MM.get(name.removesuffix("s") if len(name) > 2 else name)
    if mm is None:
        raise InputError(f"{path}: its unit of length is none of mm, cm, m, um. Export it again in mm.")
    return mm


def _nrrd_facts(header: dict[str, str], direction: np.ndarray, path: Path) -> tuple[str, list[str]]:
    """Unit of length and doubts. ``measurement frame`` turns vectors, of which there are none here."""
    named = header.get("space units") or header.get("units", "")
    units = {unit for unit in re.findall(r'"([^"]*)"', named) if unit} or {""}
    if len({_in_mm(unit, path) for unit in units}) > 1:
        raise InputError(f"{path}: its axes have different units of length. Export it again in mm.")
    if not _VECTORS.fullmatch(header.get("space origin", "")) or not _VECTORS.fullmatch(
        re.sub(r"\bnone\b", "", header.get("space directions", ""))
    ):
        raise InputError(
            f"{path}: its space origin or space directions are no vectors of numbers. Export it again."
        )
    if "nan" in header.get("spacings", "").lower():
        raise InputError(f"{path}: its header leaves the spacing of an axis open (NaN). Export it again.")
    sizes, kinds = header.get("sizes", "").split(), header.get("kinds", "").lower().split()
    if any(kind == "time" and size != "1" for size, kind in zip(sizes, kinds, strict=False)):
        raise InputError(
            f"{path}: one of its axes is time by its header (kinds). Export a single time point."
        )
    if len(direction) < 3:
        return units.pop(), []
    doubts = []
    if "space origin" not in header:
        doubts.append(_NO_ORIGIN)
    given = header.get("space directions", "").count("(")
    if not given or not _PATIENT_SPACES.fullmatch(header.get("space", "").lower()):
        doubts.append("the header holds no orientation; left and right are a guess.")
    if given < len(direction) and "spacings" not in header:
        doubts.append("the header holds no voxel size; 1 mm is a guess.")
    return units.pop(), doubts


def _refuse_other_length(path: Path, header: dict[str, str], size: int) -> None:
    """Raise InputError where plain voxels are more than the ``size`` bytes announced: ITK takes the first of them."""
    nrrd = image_suffix(path) in (".nrrd", ".nhdr")
    files = itk_files(path)
    plain = (
        header.get("encoding", "").lower() == "raw"
        if nrrd
        else header.get("binarydata", "true").lower() != "false"
        and header.get("compresseddata", "false").lower() == "false"
    )
    skip = _whole(header.get("byte skip" if nrrd else "headersize", "0"))
    if not plain or files is None or skip < 0 or header.get("line skip", "0") != "0":
        return
    with files[-1].open("rb") as stream:
        if len(files) == 1:
            _pass_header(stream)
        found = files[-1].stat().st_size - stream.tell() - skip
    if found > size:
        raise InputError(
            f"{files[-1]}: {size} bytes of voxels are announced, the file holds {found}. Export it again."
        )


def _refuse_unsure_voxels(path: Path, header: dict[str, str]) -> None:
    """Raise InputError where MetaIO fills a part of the voxels with whatever is in memory, or guesses.

    That is a list or pattern of fewer files than slices, and compressed voxels in the file itself without a size.
    """
    if itk_files(path) is None:
        raise InputError(
            f"{path}: its ElementDataFile is a list, a pattern or a file that is not here. Save the volume as one file."
        )
    packed = header.get("compresseddata", "false").lower()
    if packed not in ("true", "false"):
        raise InputError(f"{path}: CompressedData is {packed!r}, neither True nor False. Export it again.")
    if (
        packed == "true"
        and len(itk_files(path) or ()) == 1
        and _whole(header.get("compresseddatasize", "0")) <= 0
    ):
        raise InputError(f"{path}: compressed voxels without a CompressedDataSize. Export it again.")


def _check_compressed(path: Path, header: dict[str, str], size: int) -> None:
    """Raise InputError unless compressed voxels unpack to ``size`` bytes with the right checksum.

    ITK takes what it gets: damaged streams become other voxels, and gzip that is none is taken as it is.
    """
    gzipped = header.get("encoding", "").lower() in ("gzip", "gz")
    files = itk_files(path)
    if not (gzipped or header.get("compresseddata", "").lower() == "true") or files is None:
        return
    unpack, found = zlib.decompressobj(zlib.MAX_WBITS | 32), 0  # 32: zlib or gzip
    with files[-1].open("rb") as stream:
        if len(files) == 1:
            _pass_header(stream)
        for _ in range(_whole(header.get("line skip", "0"))):
            stream.readline()
        stored = files[-1].stat().st_size - stream.tell()
        if _whole(header.get("compresseddatasize", str(stored))) != stored:
            raise InputError(
                f"{path}: {stored} bytes of compressed voxels, {header['compresseddatasize']} by CompressedDataSize. "
                "Copy or export it again."
            )
        try:
            while not unpack.eof and (packed := stream.read(_CHUNK)):
                found += len(unpack.decompress(packed, _CHUNK))
                while unpack.unconsumed_tail and not unpack.eof:
                    found += len(unpack.decompress(unpack.unconsumed_tail, _CHUNK))
        except zlib.error as error:
            raise damaged(files[-1], "NRRD or MetaImage", error) from error
    skipped = max(_whole(header.get("byte skip", "0")), 0)
    if not unpack.eof or found != size + skipped:
        raise InputError(
            f"{files[-1]}: its compressed voxels are {found} bytes, {size} are announced. Copy or export it again."
        )


def _pass_header(stream: BinaryIO) -> None:
    """Go to the first byte behind the header of an NRRD (an empty line) or MetaImage (ElementDataFile) file."""
    while line := stream.readline(65536).strip():
        if line.lower().replace(b" ", b"").startswith(b"elementdatafile="):
            return


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return 0


def _metaimage_facts(header: dict[str, str], direction: np.ndarray, path: Path) -> tuple[str, list[str]]:
    """Unit of length and doubts. CenterOfRotation does not move the image."""
    for name, neutral in (
        ("elementtointensityfunctionslope", 1.0),
        ("elementtointensityfunctionoffset", 0.0),
    ):
        if name in header and _number(header[name]) != neutral:
            raise InputError(
                f"{path}: its header asks for a scaling of the values, which no reader does. Scale them."
            )
    if (np.abs(np.linalg.norm(direction, axis=0) - 1.0) > _UNIT_LENGTH).any():
        raise InputError(
            f"{path}: the rows of its TransformMatrix are not of length 1, so voxels have no sure size."
        )
    if len(direction) < 3:
        return header.get("distanceunits", ""), []
    doubts = []
    if not header.keys() & {"transformmatrix", "rotation", "orientation"}:
        doubts.append("the header holds no orientation; left and right are a guess.")
    elif not _names_the_axes(header.get("anatomicalorientation", ""), direction):
        doubts.append("AnatomicalOrientation and TransformMatrix contradict each other; the matrix is used.")
    if not header.keys() & {"offset", "position", "origin"}:
        doubts.append(_NO_ORIGIN)
    if not header.keys() & {"elementspacing", "elementsize"}:
        doubts.append("the header holds no voxel size; 1 mm is a guess.")
    return header.get("distanceunits", ""), doubts


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _names_the_axes(code: str, direction_lps: np.ndarray) -> bool:
    """Whether a code like RAI fits the axes: what they come from (as ITK writes) or go to (as MetaIO says)."""
    code = code.upper()
    if len(code) != 3 or not set(code) <= set("RLAPIS"):
        return True  # not given
    codes = []
    for letters in (("RL", "AP", "IS"), ("LR", "PA", "SI")):
        world = np.abs(direction_lps).argmax(axis=0)
        forward = direction_lps[world, range(3)] > 0
        codes.append("".join(letters[w][0 if up else 1] for w, up in zip(world, forward, strict=True)))
    return code in codes
