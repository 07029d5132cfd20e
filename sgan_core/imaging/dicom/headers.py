"""What a DICOM file says about its images, pixels left alone.

Only the attributes named in ``_WANTED`` are kept: names, identifiers and dates of patients never get into
memory that a message could be made from.
"""

from __future__ import annotations

import logging
import struct
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import config as pydicom_config
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset, read_partial, read_preamble
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from sgan_core.errors import InputError
from sgan_core.imaging.dicom.traits import KEYWORDS, traits_of
from sgan_core.imaging.guards import BoundedReader

# Blank slices compress to a few hundred bytes; what claims to unpack to more than this is a damaged header.
_LARGEST_COMPRESSION = 4096
_SMALLEST_LIMIT = 1 << 20
LARGEST_VALUE = 1e30  # far beyond any unit, well within float32

_PIXEL_DATA = 0x7FE00010
_PIXEL_TAGS = (0x7FE00008, 0x7FE00009, _PIXEL_DATA)  # float, double, integer: one of them in a file
_UNDEFINED = 0xFFFFFFFF

_WANTED = (
    "SOPClassUID SOPInstanceUID Modality StudyInstanceUID SeriesInstanceUID SeriesDescription SeriesNumber "
    "InstanceNumber EchoTime "
    "SliceThickness SpacingBetweenSlices ImagePositionPatient ImageOrientationPatient PixelSpacing "
    "SamplesPerPixel PhotometricInterpretation PlanarConfiguration NumberOfFrames Rows Columns BitsAllocated "
    "BitsStored HighBit PixelRepresentation RescaleIntercept RescaleSlope ExtendedOffsetTable "
    "ExtendedOffsetTableLengths SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence "
    "RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor "
    "BluePaletteColorLookupTableDescriptor RedPaletteColorLookupTableData GreenPaletteColorLookupTableData "
    "BluePaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData "
    "SegmentedGreenPaletteColorLookupTableData SegmentedBluePaletteColorLookupTableData"
)
# How many images there should be.
ANNOUNCED = (
    "ImagesInAcquisition",
    "NumberOfSlices",
    "NumberOfSeriesRelatedInstances",
    "NumberOfTemporalPositions",
)
_TAGS: list[Any] = [tag_for_keyword(keyword) for keyword in (*_WANTED.split(), *KEYWORDS, *ANNOUNCED)]

# Photometric interpretations
GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
PALETTE = "PALETTE COLOR"
UNUSUAL = ("HSV", "ARGB", "CMYK", "YBR_PARTIAL_422", "YBR_PARTIAL_420")

EXPORT_AGAIN = "Export the series again."


@dataclass(frozen=True)
class Plane:
    """Where one frame lies, in DICOM's LPS mm, and what its values mean. NaN: the header does not say."""

    position_mm: np.ndarray  # (3,), centre of the first pixel (Image Position (Patient))
    row: np.ndarray  # (3,), from one column to the next (Image Orientation (Patient))
    column: np.ndarray  # (3,), from one row to the next
    spacing_mm: tuple[float, float] | None  # between columns, between rows
    thickness_mm: float | None
    echo_time_ms: float | None
    slope: float
    intercept: float
    traits: Mapping[str, Hashable] = field(default_factory=dict)  # what may tell it from others in its place


@dataclass(frozen=True, eq=False)
class Header:
    """What one file says about its image."""

    path: Path
    sop_class: str  # by name
    uid: str
    study_uid: str
    number: int | None
    description: str
    modality: str
    rows: int
    columns: int
    frames: int
    samples: int
    photometric: str
    planar: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    syntax: UID
    pixel_offset: int  # of the value of Pixel Data in the file
    offsets: tuple[bytes, bytes] | None  # Extended Offset Table with its lengths
    palette: Dataset | None
    planes: tuple[Plane, ...]  # one a frame, or a single one
    sop_uid: str
    instance: int | None  # Instance Number
    image_type: tuple[str, ...]  # Image Type, upper case
    announced: Mapping[str, int]  # of ANNOUNCED, those that are there

    @property
    def is_colour(self) -> bool:
        return self.samples != 1 or self.photometric == PALETTE

    @property
    def is_scan(self) -> bool:
        """Whether it is of a kind whose slices make a volume, so that a missing position is a fault."""
        kinds = ("CT Image Storage", "MR Image Storage", "PET Image Storage", "Positron Emission")
        return not self.is_colour and any(kind in self.sop_class for kind in kinds)


@dataclass(frozen=True, eq=False)
class Slice:
    """One frame of one file."""

    header: Header
    frame: int

    @property
    def plane(self) -> Plane:
        return self.header.planes[self.frame if len(self.header.planes) > 1 else 0]

    @property
    def is_placed(self) -> bool:
        located = np.isfinite([self.plane.position_mm, self.plane.row, self.plane.column]).all()
        header = self.header
        return bool(located) and not header.is_colour and len(header.planes) == header.frames


def is_readable_dicom(path: Path) -> bool:
    """As ``starts_as_dicom``. Raises InputError for a file that may not be read."""
    try:
        return starts_as_dicom(path)
    except OSError as error:
        raise InputError(f"{path}: cannot read the file ({error.strerror}). Check its permissions.") from None


def starts_as_dicom(path: Path) -> bool:
    """Whether the first bytes are DICOM's. Raises OSError."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(132)
    if head[128:] == b"DICM":
        return True
    # A bare data set starts with a short element of group 8, or of group 2 where only the mark is missing.
    if len(head) < 132 or head[0] not in (2, 8) or head[1] or head[3]:
        return False
    explicit = head[4:6] in (b"UL", b"UI", b"CS", b"OB", b"DA", b"TM", b"SH")
    if not explicit and struct.unpack("<I", head[4:8])[0] > 256:
        return False
    try:
        with quiet(path), BoundedReader(path) as stream:
            dataset = read_partial(
                stream, lambda tag, vr, length: tag >= 0x00090000, force=True, specific_tags=_TAGS[:1]
            )
            return UID(str(dataset.get("SOPClassUID") or "")).is_valid
    except InputError:
        return False


@dataclass(frozen=True)
class Other:
    """A DICOM object that is no image."""

    kind: str  # in words


# By class or modality, whatever else they hold: some have pixels, and classes younger than pydicom's list no name.
_NO_IMAGE_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.66": "registration, segmentation or surface",
    "1.2.840.10008.5.1.4.1.1.11": "presentation state",
    "1.2.840.10008.5.1.4.1.1.88": "report",
    "1.2.840.10008.5.1.4.1.1.104": "document",
    "1.2.840.10008.5.1.4.1.1.9": "waveform",
    "1.2.840.10008.5.1.4.1.1.30": "parametric map",
}
_NO_IMAGE_MODALITIES = {
    "SEG": "segmentation",
    "SR": "report",
    "PR": "presentation state",
    "KO": "selection of images",
    "RTSTRUCT": "radiotherapy structures",
    "RTDOSE": "radiotherapy dose",
    "RTPLAN": "radiotherapy plan",
    "RTRECORD": "radiotherapy record",
    "RTSEGANN": "radiotherapy annotation",
    "REG": "registration",
    "FID": "fiducials",
    "PLAN": "plan",
    "DOC": "document",
    "M3D": "model",
    "ECG": "waveform",
    "AU": "sound",
    "SMR": "stereometric relationship",
    "LEN": "lens",
}


def _other(dataset: Dataset, sop_class: UID) -> Other | None:
    """What it is where it is no image by its class or modality."""
    if sop_class.name != sop_class and "Image Storage" not in sop_class.name:
        return Other(sop_class.name.removesuffix(" Storage").lower())
    for root, kind in _NO_IMAGE_CLASSES.items():
        if sop_class == root or sop_class.startswith(f"{root}."):
            return Other(kind)
    if (modality := _text(dataset, "Modality").upper()) in _NO_IMAGE_MODALITIES:
        return Other(_NO_IMAGE_MODALITIES[modality])
    return None


def read_header(path: Path) -> Header | Other:
    """What a DICOM file says about its image, or what it holds instead.

    Raises InputError when the file is damaged, or its sizes do not fit its pixels.
    """
    pixels: list[tuple[int, int, int]] = []
    with quiet(path), BoundedReader(path) as stream:

        def at_pixels(tag: int, _vr: str | None, length: int) -> bool:
            if tag in _PIXEL_TAGS:
                pixels.append((int(tag), stream.tell(), length))
            return tag in _PIXEL_TAGS

        _refuse_deflated(stream, path)
        dataset = read_partial(stream, at_pixels, force=True, specific_tags=_TAGS)
        sop_class = UID(_text(dataset, "SOPClassUID") or _text(dataset.file_meta, "MediaStorageSOPClassUID"))
        if other := _other(dataset, sop_class):
            return other
        tag, offset, length = pixels[0] if pixels else (0, 0, 0)
        if sop_class.name == sop_class != "" and not pixels and "Rows" not in dataset:
            return Other("private object")
        if tag != _PIXEL_DATA:
            raise damaged(path)
        header = _header(path, dataset, sop_class.name, offset)
        _refuse_impossible_size(header, length, stream.limit)
        return header


def series_uid(path: Path) -> str:
    """The series that a file belongs to, also a damaged one; empty where it does not say."""
    try:
        with quiet(path), BoundedReader(path) as stream:
            tags: list[Any] = [tag_for_keyword("SeriesInstanceUID")]
            dataset = read_partial(
                stream, lambda tag, vr, length: tag > tags[0], force=True, specific_tags=tags
            )
            return _text(dataset, "SeriesInstanceUID")
    except (InputError, OSError):
        return ""


def _refuse_deflated(stream: BoundedReader, path: Path) -> None:
    """Before pydicom unpacks it, of whatever size, in memory."""
    read_preamble(stream, force=True)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    stream.seek(0)
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        raise InputError(f"{path}: a deflated file. Convert it to Explicit VR Little Endian.")


def _header(path: Path, dataset: Dataset, sop_class: str, pixel_offset: int) -> Header:
    def count(keyword: str, default: int | None = None) -> int:
        number = _numbers(dataset, keyword, 1, path)
        if number is None and default is not None:
            return default
        if number is None or not number[0].is_integer():
            raise damaged(path)
        return int(number[0])

    frames = max(count("NumberOfFrames", 1), 1)
    bits_allocated = count("BitsAllocated")
    bits_stored = count("BitsStored", bits_allocated)
    high_bit = count("HighBit", bits_stored - 1)
    samples, photometric = count("SamplesPerPixel", 1), _text(dataset, "PhotometricInterpretation")
    sizes_fit = 1 <= bits_stored <= high_bit + 1 <= bits_allocated and samples in (1, 3)
    rows, columns = count("Rows"), count("Columns")
    if not sizes_fit or min(rows, columns) < 1:
        raise damaged(path)
    tables = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    return Header(
        path=path,
        sop_class=sop_class,
        uid=_text(dataset, "SeriesInstanceUID"),
        study_uid=_text(dataset, "StudyInstanceUID"),
        number=_optional_whole(dataset, "SeriesNumber"),
        description=_text(dataset, "SeriesDescription"),
        modality=_text(dataset, "Modality"),
        rows=rows,
        columns=columns,
        frames=frames,
        samples=samples,
        photometric=photometric,
        planar=count("PlanarConfiguration", 0),
        bits_allocated=bits_allocated,
        bits_stored=bits_stored,
        high_bit=high_bit,
        signed=count("PixelRepresentation", 0) == 1,
        syntax=_syntax(dataset),
        pixel_offset=pixel_offset,
        offsets=tables if all(isinstance(table, bytes) for table in tables) else None,
        palette=dataset if photometric == PALETTE else None,
        planes=_planes(dataset, frames, path),
        sop_uid=_text(dataset, "SOPInstanceUID"),
        instance=_optional_whole(dataset, "InstanceNumber"),
        image_type=_image_type(dataset),
        announced={
            keyword: number
            for keyword in ANNOUNCED
            if (number := _optional_whole(dataset, keyword)) is not None
        },
    )


def _syntax(dataset: Dataset) -> UID:
    if named := _text(dataset.file_meta, "TransferSyntaxUID"):
        return UID(named)
    implicit, little = dataset.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _refuse_impossible_size(header: Header, length: int, file_size: int) -> None:
    """Compare what the header claims with what the file holds, before anything of that size is made."""
    bits = header.rows * header.columns * header.samples * header.bits_allocated * header.frames
    if header.photometric == "YBR_FULL_422" and not header.syntax.is_encapsulated:
        bits = bits * 2 // 3
    claimed = -(-bits // 8)
    if header.syntax.is_encapsulated:
        fits = length == _UNDEFINED and claimed <= max(_LARGEST_COMPRESSION * file_size, _SMALLEST_LIMIT)
    else:
        fits = length != _UNDEFINED and claimed <= length and header.pixel_offset + claimed <= file_size
    if not fits:
        size = f"{header.columns} x {header.rows} x {header.frames}"
        raise InputError(
            f"{header.path}: truncated or damaged: {size} pixels are announced, the file holds fewer. "
            "Copy or export it again."
        )


def _planes(dataset: Dataset, frames: int, path: Path) -> tuple[Plane, ...]:
    """One plane a frame of an enhanced (multi-frame) object; a single one otherwise."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    if not per_frame and not shared:
        traits = traits_of(lambda sequence: Dataset(), dataset)
        return (replace(_plane(lambda sequence: dataset, path), traits=traits),)
    if per_frame and len(per_frame) != frames:
        raise damaged(path)

    def finder(item: Dataset) -> Callable[[str], Dataset]:
        def find(sequence: str) -> Dataset:
            macros = (holder.get(sequence) for holder in (item, *shared[:1]))
            return next((macro[0] for macro in macros if macro), Dataset())

        return find

    finders = [finder(item) for item in per_frame or [Dataset()]]
    return tuple(replace(_plane(find, path), traits=traits_of(find, dataset)) for find in finders)


def _plane(group: Callable[[str], Dataset], path: Path) -> Plane:
    """group: the data set that holds the attributes of a functional group, by the group's keyword."""
    measures, echo = group("PixelMeasuresSequence"), group("MREchoSequence")
    unknown = (np.nan,) * 6
    orientation = _numbers(group("PlaneOrientationSequence"), "ImageOrientationPatient", 6, path) or unknown
    position = _numbers(group("PlanePositionSequence"), "ImagePositionPatient", 3, path) or unknown[:3]
    spacing = _numbers(measures, "PixelSpacing", 2, path)
    values = group("PixelValueTransformationSequence")
    slope, intercept = (_numbers(values, f"Rescale{name}", 1, path) for name in ("Slope", "Intercept"))
    thicknesses = [_optional_number(measures, name) for name in ("SpacingBetweenSlices", "SliceThickness")]
    times = [_optional_number(echo, name) for name in ("EffectiveEchoTime", "EchoTime")]
    return Plane(
        position_mm=np.array(position),
        row=np.array(orientation[:3]),
        column=np.array(orientation[3:]),
        spacing_mm=None if spacing is None else (spacing[1], spacing[0]),  # stored: between rows first
        thickness_mm=next((abs(mm) for mm in thicknesses if mm), None),
        echo_time_ms=next((time for time in times if time is not None), None),
        slope=1.0 if slope is None else slope[0],
        intercept=0.0 if intercept is None else intercept[0],
    )


def _numbers(dataset: Dataset, keyword: str, count: int, path: Path) -> tuple[float, ...] | None:
    """The attribute's values; None when it is absent or empty. InputError when they are no such numbers."""
    if keyword not in dataset:
        return None
    try:
        value = dataset[keyword].value
        if value is None or value == "":
            return None
        numbers = tuple(float(part) for part in (value if isinstance(value, Sequence) else [value]))
        if len(numbers) >= count and all(abs(number) < LARGEST_VALUE for number in numbers):
            return numbers[:count]
    except Exception:  # noqa: BLE001  pydicom raises nearly anything on garbage
        pass
    raise InputError(f"{path}: the DICOM attribute {keyword} does not hold {count} number(s). {EXPORT_AGAIN}")


def _optional_number(dataset: Dataset, keyword: str) -> float | None:
    try:
        numbers = _numbers(dataset, keyword, 1, Path())
    except InputError:
        return None
    return numbers[0] if numbers else None


def _optional_whole(dataset: Dataset, keyword: str) -> int | None:
    number = _optional_number(dataset, keyword)
    return None if number is None else int(number)


def _image_type(dataset: Dataset) -> tuple[str, ...]:
    try:
        value = dataset.get("ImageType")
    except Exception:  # noqa: BLE001  see _numbers
        return ()
    words = [value] if isinstance(value, str) else list(value or [])
    return tuple(str(word).strip().upper() for word in words)


def _text(dataset: Dataset, keyword: str) -> str:
    """The attribute as one printable line; empty when it is absent or cannot be read."""
    try:
        value = dataset.get(keyword)
    except Exception:  # noqa: BLE001  see _numbers
        return ""
    text = "" if value is None else str(value)
    return "".join(c if c.isprintable() else " " for c in text)[:64].strip()


# --- pydicom on files from anywhere ---


@contextmanager
def quiet(path: Path) -> Iterator[None]:
    """pydicom without validation of values, warnings and log; what it raises becomes InputError.

    Its messages quote values, which may be a patient's. On damaged files it raises nearly any exception.
    """
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with pydicom_config.disable_value_validation(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InputError:
        raise
    except PermissionError:
        raise InputError(f"{path}: not allowed to read the file. Change its permissions.") from None
    except Exception:  # noqa: BLE001
        raise damaged(path) from None
    finally:
        logger.setLevel(level)


def damaged(path: Path) -> InputError:
    """What to say of a file that breaks off or contradicts itself."""
    return InputError(f"{path}: truncated or damaged DICOM file. Copy or export it again.")
