"""What a DICOM file says about its images, pixels left alone.

Only the attributes named in ``_WANTED`` are kept: names, identifiers and dates of patients never get into
memory that a message could be made from.
"""

from __future__ import annotations

import hashlib
import logging
import struct
import warnings
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
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
from sgan_core.imaging.dicom.attributes import named
from sgan_core.imaging.dicom.attributes import numbers as _numbers
from sgan_core.imaging.dicom.attributes import optional_number as _optional_number
from sgan_core.imaging.dicom.attributes import text as _text
from sgan_core.imaging.dicom.codestreams import Codestream, first_codestream
from sgan_core.imaging.dicom.traits import KEYWORDS, traits_of
from sgan_core.imaging.dicom.values import (
    ModalityLut,
    Padding,
    find_modality_lut,
    find_padding,
    find_rescale,
    first_numbers,
    picture_doubts,
    shape_doubt,
)
from sgan_core.imaging.guards import BoundedReader

# Blank slices compress to a few hundred bytes; what claims to unpack to more than this is a damaged header.
_LARGEST_COMPRESSION = 4096
_SMALLEST_LIMIT = 1 << 20

_PIXEL_DATA = 0x7FE00010
# One of them in a file.
_PIXEL_TAGS = {
    0x7FE00008: "Float Pixel Data (7FE0,0008)",
    0x7FE00009: "Double Float Pixel Data (7FE0,0009)",
    _PIXEL_DATA: "Pixel Data (7FE0,0010)",
}
_UNDEFINED = 0xFFFFFFFF

# What is read, by what it decides. docs/data.md says of each of GEOMETRY and VALUES what is done with it.
IDENTITY = (
    "SOPClassUID SOPInstanceUID Modality StudyInstanceUID SeriesInstanceUID SeriesDescription SeriesNumber "
    "InstanceNumber EchoTime PatientID PatientName PatientBirthDate"
)
GEOMETRY = (
    "SliceThickness SpacingBetweenSlices ImagePositionPatient ImageOrientationPatient PixelSpacing "
    "ImagerPixelSpacing PixelAspectRatio PatientOrientation GantryDetectorTilt NumberOfFrames Rows Columns "
    "SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence PixelMeasuresSequence "
    "PlaneOrientationSequence PlanePositionSequence"
)
VALUES = (
    "SamplesPerPixel PhotometricInterpretation PlanarConfiguration BitsAllocated BitsStored HighBit "
    "PixelRepresentation RescaleIntercept RescaleSlope RescaleType PixelValueTransformationSequence "
    "ModalityLUTSequence RealWorldValueMappingSequence PixelPaddingValue PixelPaddingRangeLimit "
    "PresentationLUTShape PixelPresentation ExtendedOffsetTable ExtendedOffsetTableLengths "
    "RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor "
    "BluePaletteColorLookupTableDescriptor RedPaletteColorLookupTableData GreenPaletteColorLookupTableData "
    "BluePaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData "
    "SegmentedGreenPaletteColorLookupTableData SegmentedBluePaletteColorLookupTableData"
)
_WANTED = f"{IDENTITY} {GEOMETRY} {VALUES}"
# How many images there should be.
ANNOUNCED = (
    "ImagesInAcquisition",
    "NumberOfSlices",
    "NumberOfSeriesRelatedInstances",
    "NumberOfTemporalPositions",
    "InConcatenationTotalNumber",
)
_TAGS: list[Any] = [tag_for_keyword(keyword) for keyword in (*_WANTED.split(), *KEYWORDS, *ANNOUNCED)]

# Photometric interpretations
GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
PALETTE = "PALETTE COLOR"
UNUSUAL = ("HSV", "ARGB", "CMYK", "YBR_PARTIAL_422", "YBR_PARTIAL_420")


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
    unsaid: tuple[str, ...] = ()  # of Rescale Slope and Rescale Intercept, which the header does not say
    notes: tuple[str, ...] = ()  # what was read otherwise than expected
    doubts: tuple[str, ...] = ()  # why values or places may be wrong
    traits: Mapping[str, Hashable] = field(default_factory=dict)  # what may tell it from others in its place


@dataclass(frozen=True, eq=False)
class Header:
    """What one file says about its image."""

    path: Path
    sop_class: str  # by name
    uid: str
    study_uid: str
    patient: str  # a hash of id, name and birth date, which are not kept
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
    pixel_vr: str  # of Pixel Data: OB or OW
    lut: ModalityLut | None
    padding: Padding | None
    codestream: Codestream | None  # of the first frame, where it is compressed
    tilt_degrees: float | None  # Gantry/Detector Tilt
    notes: tuple[str, ...]  # as of a plane
    doubts: tuple[str, ...]
    picture_doubts: tuple[str, ...]  # which count where it is no slice of a volume
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
    pixels: list[tuple[int, int, int, str]] = []
    with quiet(path), BoundedReader(path) as stream:

        def at_pixels(tag: int, vr: str | None, length: int) -> bool:
            if tag in _PIXEL_TAGS:
                pixels.append((int(tag), stream.tell(), length, vr or "OW"))
            return tag in _PIXEL_TAGS

        _refuse_deflated(stream, path)
        dataset = read_partial(stream, at_pixels, force=True, specific_tags=_TAGS)
        sop_class = UID(_text(dataset, "SOPClassUID") or _text(dataset.file_meta, "MediaStorageSOPClassUID"))
        if other := _other(dataset, sop_class):
            return other
        tag, offset, length, vr = pixels[0] if pixels else (0, 0, 0, "OW")
        if sop_class.name == sop_class != "" and not pixels and "Rows" not in dataset:
            return Other("private object")
        if tag and tag != _PIXEL_DATA:
            raise InputError(
                f"{path}: its values are in {_PIXEL_TAGS[tag]}, which is not read. Export the image as integers."
            )
        if not tag:
            raise damaged(path)
        stream.seek(offset)
        codestream = first_codestream(stream, _syntax(dataset))
        header = _header(path, dataset, sop_class.name, offset, vr, codestream)
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


def _header(
    path: Path,
    dataset: Dataset,
    sop_class: str,
    pixel_offset: int,
    pixel_vr: str,
    codestream: Codestream | None,
) -> Header:
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
    signed = count("PixelRepresentation", 0)
    if not sizes_fit or min(rows, columns) < 1 or signed not in (0, 1):
        raise damaged(path)
    syntax = _syntax(dataset)
    lut = None
    if samples == 1 and photometric != PALETTE:
        lut = find_modality_lut(dataset, path, signed=signed == 1, little=syntax.is_little_endian)
    padding = find_padding(dataset, path, allocated=bits_allocated, bits=bits_stored, signed=signed == 1)
    notes, doubts = _said(dataset, path, samples, photometric, lut)
    if codestream is not None:
        notes, doubts = _contradictions(codestream, bits_stored, signed == 1, notes, doubts)
    tables = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    return Header(
        path=path,
        sop_class=sop_class,
        uid=_text(dataset, "SeriesInstanceUID"),
        study_uid=_text(dataset, "StudyInstanceUID"),
        patient=_patient(dataset),
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
        signed=signed == 1,
        syntax=syntax,
        pixel_offset=pixel_offset,
        offsets=tables if all(isinstance(table, bytes) for table in tables) else None,
        palette=dataset if photometric == PALETTE else None,
        planes=_planes(dataset, frames, path, lut),
        pixel_vr=pixel_vr,
        lut=lut,
        padding=padding if samples == 1 and photometric != PALETTE else None,
        codestream=codestream,
        tilt_degrees=_optional_number(dataset, "GantryDetectorTilt"),
        notes=notes,
        doubts=doubts,
        picture_doubts=picture_doubts(dataset, path),
        sop_uid=_text(dataset, "SOPInstanceUID"),
        instance=_optional_whole(dataset, "InstanceNumber"),
        image_type=_image_type(dataset),
        announced={
            keyword: number
            for keyword in ANNOUNCED
            if (number := _optional_whole(dataset, keyword)) is not None
        },
    )


def _said(
    dataset: Dataset, path: Path, samples: int, photometric: str, lut: ModalityLut | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Notes and doubts about the values of one file."""
    notes, doubts = [], []
    modality = _text(dataset, "Modality")
    if not _text(dataset, "PixelRepresentation"):
        doubts.append(f"no {named('PixelRepresentation')}; values are taken as unsigned.")
    elif samples == 3 and _optional_whole(dataset, "PixelRepresentation") == 1:
        doubts.append(
            f"{named('PixelRepresentation')} says signed; colours have no sign and are read as unsigned."
        )
    if not _text(dataset, "BitsStored"):
        doubts.append(f"no {named('BitsStored')}; all bits are taken as stored.")
    if not _text(dataset, "SamplesPerPixel"):
        doubts.append(f"no {named('SamplesPerPixel')}; the image is taken as grey.")
    if samples == 3 and "PlanarConfiguration" not in dataset and not _syntax(dataset).is_encapsulated:
        doubts.append(f"no {named('PlanarConfiguration')}; colours are taken pixel by pixel.")
    if modality != "CT" and (doubt := shape_doubt(dataset, photometric)):
        doubts.append(doubt)
    bits, high_bit = _optional_whole(dataset, "BitsStored"), _optional_whole(dataset, "HighBit")
    if bits is not None and high_bit is not None and high_bit != bits - 1:
        doubts.append(
            f"{named('HighBit')} is {high_bit} with {bits} bits stored; readers differ in which bits they take."
        )
    if photometric in GREY and _text(dataset, "PixelPresentation") in ("COLOR", "MIXED"):
        doubts.append(f"{named('PixelPresentation')}: part of it is shown in colour; it is read as grey.")
    if lut is not None:
        notes.append(f"the {named('ModalityLUTSequence')} is applied.")
        if "RescaleSlope" in dataset or "RescaleIntercept" in dataset:
            notes.append("it excludes the rescale that is there too (PS3.3 C.11.1).")
        if modality == "CT" and _text(dataset.ModalityLUTSequence[0], "ModalityLUTType") != "HU":
            doubts.append(f"the {named('ModalityLUTSequence')} does not say HU; its values are taken as HU.")
    return tuple(notes), tuple(doubts)


def _contradictions(
    codestream: Codestream, bits: int, signed: bool, notes: tuple[str, ...], doubts: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the header says otherwise than the compressed pixels."""
    if codestream.signed is not None and codestream.signed != signed:
        kind = "signed" if codestream.signed else "unsigned"
        says = f"{named('PixelRepresentation')} says otherwise than the compressed pixels, which are {kind}"
        notes = (*notes, f"{says}; their bits are read as it says (two's complement).")
    if codestream.bits < bits and signed and not codestream.signed:
        says = f"{named('BitsStored')} says {bits}, the compressed pixels have {codestream.bits} bits and no sign"
        doubts = (*doubts, f"{says}; values may be wrong.")
    return notes, doubts


def _patient(dataset: Dataset) -> str:
    said = [_text(dataset, keyword) for keyword in ("PatientID", "PatientName", "PatientBirthDate")]
    return hashlib.sha256("\\".join(said).encode("utf-8", "backslashreplace")).hexdigest()[:16]


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
        if fits and length >= max(
            2 * claimed, claimed + 2
        ):  # an even length is due; less than an image more may be padding
            size = f"{header.columns} x {header.rows} x {header.frames}"
            raise InputError(
                f"{header.path}: {size} pixels are announced, the file holds {length // claimed} times as many. "
                "Export it again."
            )
    if not fits:
        size = f"{header.columns} x {header.rows} x {header.frames}"
        raise InputError(
            f"{header.path}: truncated or damaged: {size} pixels are announced, the file holds fewer. "
            "Copy or export it again."
        )


def _planes(dataset: Dataset, frames: int, path: Path, lut: ModalityLut | None) -> tuple[Plane, ...]:
    """One plane a frame of an enhanced (multi-frame) object; a single one otherwise."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    if per_frame and len(per_frame) != frames:
        raise damaged(path)
    enhanced = bool(per_frame or shared)
    return tuple(
        _plane(_Places((item, *shared[:1]), dataset, enhanced), frames, path, lut)
        for item in per_frame or [Dataset()]
    )


@dataclass(frozen=True)
class _Places:
    """Where the attributes of a frame may stand, the nearest first."""

    groups: tuple[Dataset, ...]  # its functional groups, those shared by all frames
    top: Dataset
    enhanced: bool

    def of(self, sequence: str) -> list[Dataset]:
        """The data sets for the attributes of a functional group: its macros, then the top level."""
        macros = [holder.get(sequence) for holder in (*self.groups, self.top)]
        return [*(macro[0] for macro in macros if macro), self.top]

    def mappings(self) -> list[Dataset]:
        name = "RealWorldValueMappingSequence"
        return next((list(found) for holder in (*self.groups, self.top) if (found := holder.get(name))), [])

    def notes(self, path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What the top level of an enhanced object says that belongs into its groups: notes, and doubts."""
        if not self.enhanced:
            return (), ()
        used, contradicting = [], []
        for sequence, keyword, count in _GROUPED:
            top = _numbers(self.top, keyword, count, path)
            if top is None:
                continue
            grouped = first_numbers(self.of(sequence)[:-1], keyword, count, path)
            if grouped is None:
                used.append(named(keyword))
            elif not np.allclose(grouped, top):
                contradicting.append(named(keyword))
        notes = (f"taken from the top level, not in the functional groups: {', '.join(used)}.",)
        doubts = (f"the functional groups count, the top level contradicts: {', '.join(contradicting)}.",)
        return notes if used else (), doubts if contradicting else ()


_GROUPED = (
    ("PixelMeasuresSequence", "PixelSpacing", 2),
    ("PixelMeasuresSequence", "SliceThickness", 1),
    ("PlaneOrientationSequence", "ImageOrientationPatient", 6),
    ("PixelValueTransformationSequence", "RescaleSlope", 1),
    ("PixelValueTransformationSequence", "RescaleIntercept", 1),
)


def _plane(places: _Places, frames: int, path: Path, lut: ModalityLut | None) -> Plane:
    measures, echo = places.of("PixelMeasuresSequence"), places.of("MREchoSequence")
    positions = places.of("PlanePositionSequence")
    if places.enhanced and frames > 1:
        positions = positions[:-1]  # one position is not that of every frame
    unknown = (np.nan,) * 6
    orientation = first_numbers(places.of("PlaneOrientationSequence"), "ImageOrientationPatient", 6, path)
    orientation = orientation or unknown
    position = first_numbers(positions, "ImagePositionPatient", 3, path) or unknown[:3]
    spacing = first_numbers(measures, "PixelSpacing", 2, path)
    values = places.of("PixelValueTransformationSequence")
    rescale = find_rescale(values, places.mappings(), _text(places.top, "Modality"), path)
    thicknesses = (
        _optional_number(source, name)
        for name in ("SpacingBetweenSlices", "SliceThickness")
        for source in measures
    )
    times = [_optional_number(source, name) for source in echo for name in ("EffectiveEchoTime", "EchoTime")]
    notes, doubts = places.notes(path)
    return Plane(
        position_mm=np.array(position),
        row=np.array(orientation[:3]),
        column=np.array(orientation[3:]),
        spacing_mm=None if spacing is None else (spacing[1], spacing[0]),  # stored: between rows first
        thickness_mm=next((abs(mm) for mm in thicknesses if mm), None),
        echo_time_ms=next((time for time in times if time is not None), None),
        slope=rescale.slope if lut is None else 1.0,
        intercept=rescale.intercept if lut is None else 0.0,
        unsaid=rescale.unsaid if lut is None else (),
        notes=(*notes, *rescale.notes) if lut is None else notes,
        doubts=(*doubts, *rescale.doubts) if lut is None else doubts,
        traits=traits_of(lambda sequence: (places.of(sequence)[:-1] or [Dataset()])[0], places.top),
    )


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
