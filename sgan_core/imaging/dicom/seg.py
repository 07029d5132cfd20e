"""Label maps as DICOM Segmentation objects on the slices of their source series.

BINARY segmentations of the Segmentation IOD (DICOM PS3.3 A.51), by highdicom.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom import Dataset
from pydicom.config import RAISE
from pydicom.datadict import dictionary_VM, tag_for_keyword
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code as SrCode
from pydicom.uid import (
    UID,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    generate_uid,
)
from pydicom.valuerep import DA, TM, DSfloat, validate_value

from sgan_core import __version__
from sgan_core.cohort import Label
from sgan_core.errors import InputError
from sgan_core.imaging.grid import Grid, ras_from_lps
from sgan_core.imaging.image import Volume
from sgan_core.imaging.terminology import PRIVATE_SCHEME, header_text, label_codes
from sgan_core.imaging.writers import writing

PRODUCT = "SemanticGAN"
UTF8 = "ISO_IR 192"  # the Specific Character Set
# How far a slice of the source may lie from the grid's, in voxels along each axis, and still be that slice:
# more than rounded positions, far less than a slice that was interpolated.
SLICE_TOLERANCE_VOXELS = 0.1
_EVEN_BITS = 16  # of an even number of bytes
_PARALLEL = 1e-3  # direction cosines of one series differ by rounding only
_MOST_SLICES = 10_000  # of a file to read; more is a damaged header

# Type 2 attributes (PS3.3 C.7.1.1, C.7.2.1): present, maybe empty. Anonymisers remove some.
_PATIENT_AND_STUDY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
)
_REQUIRED = ("SOPClassUID", "SOPInstanceUID", "Rows", "Columns")
_FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
# All that is needed of the files but one; patient and study are taken from that one.
_OF_EACH: list[Any] = [
    tag_for_keyword(keyword)
    for keyword in (
        *_REQUIRED,
        *_FUNCTIONAL_GROUPS,
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "FrameOfReferenceUID",
        "NumberOfFrames",
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
    )
]
_ORIENTATION = "ImageOrientationPatient"
_FAR_AWAY_MM = 1e6  # where no slice of a patient lies


def write_dicom_seg(
    path: str | Path,
    labelmap: np.ndarray,
    grid: Grid,
    labels: Sequence[Label],
    source_files: Sequence[str | Path],
    *,
    frames: Sequence[tuple[int, int]] = (),
    description: str = "",
    model_name: str = "",
    seed: int | None = None,
) -> None:
    """Write a label map as a DICOM Segmentation (BINARY, one segment a label) that refers to its source.

    labelmap: (I, J, K) integers, 0 is background, others are values of ``labels``; i counts columns and j
    rows of the source's slices. grid: where it lies. labels: in the order of the segments 1, 2, ...; one
    that the label map lacks is listed all the same. source_files: the DICOM files of the source series in
    any order, or one multi-frame file; only headers are read. frames: of them, those of the segmented
    volume, as (index in source_files, frame in that file from 0); empty: all.
    description: of the series, at most 64 characters count. model_name: what drew the labels; seed: with
    which seed. Both are told as the algorithm's.

    Sources may be of any SOP Class, also a maker's own. Slices find their source by position
    (``SLICE_TOLERANCE_VOXELS``), take over its exact position and refer to its SOP instance. When the grid has
    slices that the source has not (interpolated ones), or is wider (a straightened gantry), every frame gets the
    grid's own position and the file refers to the series as a whole. A single image without positions (an X-ray) is
    referred to by its pixels, and the result says no pixel size. Frames without any pixel of their label are left out,
    except in the first and the last slice, which tell a reader the extent (an empty label map is a valid
    file), and where more frames make the pixels of even length, see ``_mark_empty``.
    Patient and study attributes are the source's (text becomes UTF-8), invalid values left out; a missing study,
    series or frame of reference gets a UID from a hash of the source's. UIDs of the result
    come from a hash of all arguments and the source's UIDs: the same result has the same UIDs.
    The file appears whole or not at all. Raises InputError: a source file that is not readable DICOM, files
    of several series, slices of another size, a series without positions, oblique voxel axes, a folder that
    cannot be written.
    """
    if labelmap.shape != grid.shape:
        raise ValueError(f"label map {labelmap.shape} and grid {grid.shape} differ in shape")
    with _quiet():
        source = _read_source(source_files, frames)
        _refuse_smaller(grid, source)
        numbers = _segment_numbers(labelmap, labels)
        facts = (description, model_name, seed)
        segmentation = _segmentation(numbers, grid, labels, source, *facts)
        with writing(path, ".dcm") as partial:
            segmentation.save_as(partial, enforce_file_format=True)


def check_dicom_seg(
    grid: Grid,
    labels: Sequence[Label],
    source_files: Sequence[str | Path],
    *,
    frames: Sequence[tuple[int, int]] = (),
    description: str = "",
    model_name: str = "",
    seed: int | None = None,
) -> None:
    """Raise what ``write_dicom_seg`` would raise for any label map on this grid, before there is one.

    Arguments as there. All headers are read, all slices find their place; then an empty segmentation of the outer
    slices, of one pixel each, is made in memory and read back by highdicom.
    """
    with _quiet():
        source = _read_source(source_files, frames)
        _refuse_smaller(grid, source)
        empty = np.zeros((grid.shape[2], 1, 1), np.uint8)
        segmentation = _segmentation(empty, grid, labels, source, description, model_name, seed, dry=True)
        with _describable(source), io.BytesIO() as file:
            segmentation.save_as(file, enforce_file_format=True)
            file.seek(0)
            hd.seg.segread(file)


def _refuse_smaller(grid: Grid, source: _Source) -> None:
    rows, columns = source.size
    if (
        grid.shape[0] < columns
        or grid.shape[1] < rows
        or (not source.is_placed and grid.shape[:2] != (columns, rows))
    ):
        raise InputError(
            f"{source.folder}: the label map has {grid.shape[0]} x {grid.shape[1]} pixels a slice, "
            f"the DICOM series {columns} x {rows}. Give the series that was segmented."
        )


@contextmanager
def _describable(source: _Source) -> Iterator[None]:
    """Headers that highdicom cannot take make it raise errors of many types: InputError for all of them."""
    try:
        yield
    except (
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        IndexError,
        OverflowError,
        RuntimeError,
    ) as error:
        # The library's message may quote the header, so it stays inside.
        raise InputError(
            f"{source.folder}: a DICOM segmentation cannot refer to this series ({type(error).__name__}: a "
            "header entry that it needs is missing or invalid). Use --format nifti."
        ) from None


def read_dicom_seg(path: str | Path) -> Volume | np.ndarray:
    """Read a DICOM Segmentation as one label map, whose values are the segment numbers.

    Returns a Volume of uint8 (I, J, K), i along the rows' direction (columns), j down the rows, k along
    their cross product, from the first to the last slice that has a frame; or uint8 (H, W) for a
    segmentation of one image without positions. BINARY and LABELMAP types, of any maker.
    Raises InputError: missing or damaged file, no segmentation, fractional values, overlapping segments,
    slices not parallel or not evenly spaced, numbers beyond 255.
    """
    path = Path(path)
    with _quiet(), _readable(path, "DICOM segmentation"):
        segmentation = hd.seg.segread(path)
        if segmentation.SegmentationType == "FRACTIONAL":
            raise InputError(
                f"{path}: fractional values (probabilities); whole labels are needed. "
                "Export a binary segmentation."
            )
        places = [_place(segmentation, index) for index in range(segmentation.NumberOfFrames)]
        if not any(places) and len(places) <= len(segmentation.SegmentSequence):  # a frame a segment
            plane = np.zeros((segmentation.Rows, segmentation.Columns), np.uint8)
            for index in range(len(places)):
                _paint(plane, segmentation, index, path)
            return plane
        slices, grid = _grid_of(segmentation, places, path)
        array = np.zeros(grid.shape, np.uint8, order="F")
        for index, k in enumerate(slices):
            _paint(array[:, :, k].T, segmentation, index, path)
    return Volume(array, grid)


def read_dicom_seg_labels(path: str | Path) -> tuple[Label, ...]:
    """The segments of a DICOM Segmentation: number, name, colour (grey when it has none), SNOMED CT code.

    Raises InputError: missing or damaged file, no segmentation, numbers beyond 255.
    """
    path = Path(path)
    labels = []
    with _quiet(), _readable(path, "DICOM segmentation"):
        for segment in hd.seg.segread(path).SegmentSequence:
            number = int(segment.SegmentNumber)
            if not number:  # the background of a LABELMAP segmentation
                continue
            if number > 255:
                raise _too_many(path)
            kind = segment.SegmentedPropertyTypeCodeSequence[0]
            colour = segment.get("RecommendedDisplayCIELabValue")
            rgb = (128, 128, 128)
            if colour is not None:
                rgb = hd.color.CIELabColor.from_dicom_value(colour).to_rgb(clip=True)
            code = kind.value if kind.scheme_designator == "SCT" else ""
            labels.append(Label(number, str(segment.SegmentLabel), rgb, code))
    return tuple(labels)


# --- the source series ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where a slice lies in the patient: LPS, mm."""

    position: np.ndarray  # (3,), centre of the first pixel
    orientation: np.ndarray  # (6,), cosines along a row, then down a column
    spacing: np.ndarray  # (2,), between rows, between columns


@dataclass(frozen=True)
class _Source:
    """The headers of a series and the slices that they hold."""

    folder: Path  # what messages name
    headers: list[Dataset]  # one a file; the first with all that it says, the others with ``_OF_EACH``
    places: list[_Place | None]  # one a frame of interest
    numbers: list[int]  # of these among all frames of all headers, from 0
    classes: dict[str, str]  # SOP Class UID by SOP Instance UID

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.headers[0].Rows), int(self.headers[0].Columns)

    @property
    def is_placed(self) -> bool:
        return bool(self.places) and None not in self.places


def _read_source(files: Sequence[str | Path], frames: Sequence[tuple[int, int]] = ()) -> _Source:
    if not files:
        raise InputError("no DICOM file to refer to; give the files of the series that was segmented.")
    paths = [Path(file) for file in files]
    folder = paths[0].parent if len(paths) > 1 else paths[0]
    wanted: dict[int, list[int]] = {}  # of a file, its frames
    for file, frame in frames:
        wanted.setdefault(file, []).append(frame)
    used = [(path, wanted.get(n, [])) for n, path in enumerate(paths) if n in wanted or not wanted]
    by_uid: dict[str, tuple[Dataset, Path, list[int]]] = {}
    for path, own in used:
        header = _read_header(path, None if len(used) == 1 else _OF_EACH)
        by_uid.setdefault(str(header.SOPInstanceUID), (header, path, own))
    with _readable(folder, "DICOM series"):
        headers = [header for header, _, _ in by_uid.values()]
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Rows", "Columns"):
            if len({header.get(keyword) for header in headers}) > 1:
                raise InputError(
                    f"{folder}: the DICOM files belong to several series or differ in size ({keyword} differs). "
                    "Give the files of one series."
                )
        if len(headers) > 1 and max(map(_frame_count, headers)) > 1:
            raise InputError(
                f"{folder}: {len(headers)} multi-frame files in one volume, which a DICOM segmentation cannot refer to "
                "here. Use --format nifti, or export the volume as one file."
            )
        # The order of the files on the disk must not show in the result; highdicom is fast in that of the slices.
        first_places = {uid: _place(header, 0) for uid, (header, _, _) in by_uid.items()}
        order = sorted(by_uid, key=lambda uid: (_height_mm(first_places[uid]), uid))
        headers = [by_uid[uid][0] for uid in order]
        if len(used) > 1:
            headers[0] = _read_header(by_uid[order[0]][1])
        numbers, places = list(range(len(headers))), [first_places[uid] for uid in order]
        if len(headers) == 1:
            numbers = sorted(set(by_uid[order[0]][2])) or list(range(_frame_count(headers[0])))
            places = [_place(headers[0], frame) for frame in numbers]
        classes = {str(header.SOPInstanceUID): str(header.SOPClassUID) for header in headers}
        source = _Source(folder, headers, places, numbers, classes)
        _mend(source)
    return source


def _height_mm(place: _Place | None) -> float:
    """How far along its normal a slice lies; 0 where it has no place."""
    if place is None:
        return 0.0
    return float(place.position @ np.cross(place.orientation[:3], place.orientation[3:]))


def _frame_count(header: Dataset) -> int:
    return max(int(header.get("NumberOfFrames") or 1), 1)


def _read_header(path: Path, tags: list[Any] | None = None) -> Dataset:
    """What stands before the pixels; tags: no more than these."""
    with _readable(path, "DICOM file"):
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
        missing = [keyword for keyword in _REQUIRED if not header.get(keyword)]
        no_class = not missing and not UID(str(header.SOPClassUID)).is_valid
    if missing or no_class:
        fault = "its SOPClassUID is none" if no_class else f"{missing[0]} is missing"
        raise InputError(
            f"{path}: no image that a DICOM segmentation can refer to ({fault}). Use --format nifti, or export the "
            "series again."
        )
    return header


def _place(header: Dataset, index: int) -> _Place | None:
    """The place of a frame; None when the header does not tell it."""
    entries = (
        ("PlanePositionSequence", "ImagePositionPatient", 3),
        ("PlaneOrientationSequence", "ImageOrientationPatient", 6),
        ("PixelMeasuresSequence", "PixelSpacing", 2),
    )
    found = []
    for sequence, keyword, count in entries:
        try:
            numbers = np.array(_find(header, index, sequence, keyword), float)
        except (TypeError, ValueError):
            return None
        if numbers.shape != (count,) or not np.isfinite(numbers).all():
            return None
        found.append(numbers)
    return _Place(*found)


def _find(header: Dataset, index: int, sequence: str, keyword: str) -> Any:
    """A frame's attribute: from its functional groups, else the shared ones, else the header itself."""
    frames = header.get("PerFrameFunctionalGroupsSequence") or []
    own = [frames[index]] if index < len(frames) else []
    for group in (*own, *(header.get("SharedFunctionalGroupsSequence") or [])):
        for item in group.get(sequence) or []:
            if item.get(keyword) is not None:
                return item.get(keyword)
    return header.get(keyword)


def _mend(source: _Source) -> None:
    """Bring headers into the form that highdicom takes: nothing needed missing, nothing invalid."""
    headers = source.headers
    first = headers[0]  # patient and study are taken from this one
    count = _frame_count(first)
    _drop_invalid(first)
    first.SpecificCharacterSet = UTF8  # all text is decoded by now; the source's may be unknown
    for keyword in _PATIENT_AND_STUDY:
        if keyword not in first:
            setattr(first, keyword, None)
    if first.PatientSex not in ("M", "F", "O"):
        first.PatientSex = None
    if first.get("LossyImageCompression") not in ("00", "01"):
        first.LossyImageCompression = "00"
    entropy = sorted(str(header.SOPInstanceUID) for header in headers)
    for header in headers:
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
            if not header.get(keyword):
                setattr(header, keyword, generate_uid(entropy_srcs=[keyword, *entropy]))
    if source.is_placed:
        # Anonymisers drop it, though every scan needs one; highdicom insists. Other results get the same one.
        reference = first.get("FrameOfReferenceUID") or generate_uid(
            entropy_srcs=[str(first.SeriesInstanceUID)]
        )
        for header in headers:
            header.FrameOfReferenceUID = reference
        if count > 1 or (len(headers) == 1 and any(keyword in first for keyword in _FUNCTIONAL_GROUPS)):
            _write_groups(first, source, count)
            first.SOPClassUID = EnhancedCTImageStorage
            return
        if "SliceThickness" not in first:
            first.SliceThickness = _find(first, 0, "PixelMeasuresSequence", "SliceThickness")
        for header, place in zip(headers, source.places, strict=True):
            _write_place(header, place, source.places[0])
    else:
        # highdicom takes a frame of reference for a place in the patient, and cannot read back a pixel spacing
        # without a thickness: the result has the image's pixels.
        for keyword in ("FrameOfReferenceUID", "PixelSpacing"):
            if keyword in first:
                delattr(first, keyword)
    # highdicom refuses classes that it does not know, and wants functional groups of all that may have several
    # frames. It needs no more of the class than how places are told; ``_name_classes`` puts the source's own back.
    for header in headers:
        header.SOPClassUID = SecondaryCaptureImageStorage
        for keyword in (*_FUNCTIONAL_GROUPS, "NumberOfFrames"):
            if keyword in header:
                delattr(header, keyword)


def _write_place(header: Dataset, place: _Place | None, first: _Place | None) -> None:
    assert place is not None
    assert first is not None
    # Cosines of one series may differ in the last digit, which is the same orientation.
    alike = np.allclose(place.orientation, first.orientation, atol=_PARALLEL)
    header.ImagePositionPatient = _decimals(place.position)
    header.ImageOrientationPatient = _decimals((first if alike else place).orientation)
    header.PixelSpacing = _decimals(place.spacing)


def _write_groups(header: Dataset, source: _Source, count: int) -> None:
    """Functional groups of a multi-frame header anew, wherever it says its places (PS3.3 C.7.6.16)."""
    first = source.places[0]
    assert first is not None
    thickness = _find(header, source.numbers[0], "PixelMeasuresSequence", "SliceThickness")
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = _decimals(first.spacing)
    measures.SliceThickness = _decimals([thickness])[0] if thickness else None
    orientation.ImageOrientationPatient = _decimals(first.orientation)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    # A frame is found by its place: those of another volume in the file are out of the way.
    positions = {
        number: place.position for number, place in zip(source.numbers, source.places, strict=True) if place
    }
    groups = []
    for number in range(count):
        group, place = Dataset(), Dataset()
        place.ImagePositionPatient = _decimals(positions.get(number, np.full(3, _FAR_AWAY_MM + number)))
        group.PlanePositionSequence = [place]
        groups.append(group)
    header.NumberOfFrames = count
    header.SharedFunctionalGroupsSequence, header.PerFrameFunctionalGroupsSequence = [shared], groups


def _decimals(values: Iterable[float]) -> list[DSfloat]:
    return [DSfloat(float(value), auto_format=True) for value in values]


def _drop_invalid(dataset: Dataset) -> None:
    """Decode the text that is copied into the result; delete what is no valid value of its kind."""
    for tag in list(dataset.keys()):
        try:
            element = dataset[tag]
            if element.keyword in _FUNCTIONAL_GROUPS:
                continue  # written anew where they are used
            if element.VR == "SQ":
                for item in element.value:
                    _drop_invalid(item)
            elif element.VR != "UI":
                if element.VM > 1 and dictionary_VM(tag) == "1":
                    raise ValueError("several values instead of one")
                if element.VR not in ("IS", "DS"):  # numbers by now
                    validate_value(element.VR, element.value, RAISE)
                if element.VR == "PN":
                    element.value = str(element.value)
                elif element.VR in ("DA", "TM") and element.VM == 1 and element.value:
                    (DA if element.VR == "DA" else TM)(element.value)
        except Exception:  # whatever a broken value makes pydicom raise
            del dataset[tag]


# --- writing ----------------------------------------------------------------------------------------


def _segment_numbers(labelmap: np.ndarray, labels: Sequence[Label]) -> np.ndarray:
    """(I, J, K) label values -> (K, J, I) segment numbers, uint8: the order of DICOM's frames, rows, columns."""
    if not labels:
        raise ValueError("a segmentation needs at least one label")
    number_of = np.full(256, 255, np.uint8)
    number_of[0] = 0
    for number, label in enumerate(labels, start=1):
        number_of[label.value] = number
    frames = np.empty(labelmap.shape[::-1], np.uint8)
    for k in range(len(frames)):  # slice by slice: an index array takes eight times its size
        frames[k] = number_of[labelmap[:, :, k].T]
    if frames.max(initial=0) > len(labels):
        raise ValueError("the label map holds values that no label has")
    return frames


def _uids(frames: np.ndarray, grid: Grid, facts: Sequence[object], source: _Source) -> dict[str, str]:
    entropy = sorted(source.classes)
    entropy += [repr(facts), repr(grid.affine.tolist()), __version__, hashlib.sha256(frames.data).hexdigest()]
    names = ("series", "instance", "dimensions")
    return {name: generate_uid(entropy_srcs=[*entropy, name]) for name in names}


def _algorithm(model_name: str, seed: int | None) -> hd.AlgorithmIdentificationSequence:
    return hd.AlgorithmIdentificationSequence(
        name=header_text(f"{PRODUCT} {model_name}"),
        family=codes.DCM.ArtificialIntelligence,
        version=__version__,
        source=PRODUCT,
        parameters=None if seed is None else {"seed": str(seed)},
    )


def _segmentation(
    frames: np.ndarray,
    grid: Grid,
    labels: Sequence[Label],
    source: _Source,
    description: str,
    model_name: str,
    seed: int | None,
    *,
    dry: bool = False,
) -> hd.seg.Segmentation:
    """frames: (K, J, I) segment numbers; dry: (K, 1, 1), to try it, whatever the size of the slices."""
    text = header_text(description) or f"{PRODUCT} segmentation"
    algorithm = _algorithm(model_name, seed)
    uids = _uids(frames, grid, [*labels, text, model_name, seed], source)
    with _describable(source):
        geometry = _geometry(grid, source)
        if dry:
            source, frames = _outer(source, frames, geometry)
        return _filled(frames, grid, labels, source, uids, text, algorithm, geometry)


def _filled(
    frames: np.ndarray,
    grid: Grid,
    labels: Sequence[Label],
    source: _Source,
    uids: dict[str, str],
    text: str,
    algorithm: hd.AlgorithmIdentificationSequence,
    geometry: dict[str, Any],
) -> hd.seg.Segmentation:
    positions = geometry.get("plane_positions")
    if positions and "pixel_measures" not in geometry and _are_those_of(source.headers, positions):
        # Else highdicom looks for each of them in all images: 4 s for 1,000 slices, growing with the square.
        geometry = {}
    marked = _mark_empty(frames)
    segmentation = hd.seg.Segmentation(
        source_images=source.headers,
        pixel_array=frames,
        segmentation_type="BINARY",
        segment_descriptions=[
            _description(number, label, algorithm) for number, label in enumerate(labels, start=1)
        ],
        series_instance_uid=uids["series"],
        series_number=_series_number(source.headers[0]),
        sop_instance_uid=uids["instance"],
        instance_number=1,
        manufacturer=PRODUCT,
        manufacturer_model_name=algorithm[0].AlgorithmName,
        software_versions=__version__,
        device_serial_number=__version__,  # type 1 in the IOD; a program has none of its own
        content_label="SEGMENTATION",
        content_description=text,
        series_description=text,
        coding_schemes=_coding_schemes(labels),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **geometry,
    )
    _clear_first_pixels(segmentation, [positions[k] if positions else None for k in marked])
    _name_classes(segmentation, source)
    _set_dimensions_uid(segmentation, uids["dimensions"])
    # UTF-8: names of labels, whatever the source is written in. highdicom has no argument for it before 0.28, and 3D
    # Slicer brings 0.27 along.
    segmentation.SpecificCharacterSet = UTF8
    segmentation.ContentCreatorName = None  # type 2: no person made it
    if not positions:  # type 2C of the General Image module where positions do not tell it
        segmentation.PatientOrientation = source.headers[0].get("PatientOrientation")
    if positions:
        # The source's entry is missing or wrong in many a series; the positions are right. Without it highdicom takes
        # a single slice for 1 mm thick.
        measures = segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        measures.SpacingBetweenSlices = DSfloat(_slice_step_mm(grid), auto_format=True)
    return segmentation


def _outer(source: _Source, frames: np.ndarray, geometry: dict[str, Any]) -> tuple[_Source, np.ndarray]:
    """The outer slices of source, frames and geometry, of one pixel each, with all that highdicom may refuse.

    Headers that were mended differ in position and instance alone, but for those that are turned against the first.
    """
    kept = sorted({0, len(frames) - 1})
    if "plane_positions" in geometry:
        geometry["plane_positions"] = [geometry["plane_positions"][k] for k in kept]
    first, last = source.headers[0], source.headers[-1]
    turned = (h for h in source.headers if h.get(_ORIENTATION) != first.get(_ORIENTATION))
    headers = list({id(header): header for header in (first, *itertools.islice(turned, 1), last)}.values())
    for header in headers:
        header.Rows = header.Columns = 1
    return replace(source, headers=headers), frames[kept]


def _are_those_of(headers: Sequence[Dataset], positions: Sequence[hd.PlanePositionSequence]) -> bool:
    """Whether the slices of the label map are those of all files, in their order."""
    return len(headers) == len(positions) and all(
        header.get("ImagePositionPatient") == place[0].ImagePositionPatient
        for header, place in zip(headers, positions, strict=True)
    )


def _description(
    number: int, label: Label, algorithm: hd.AlgorithmIdentificationSequence
) -> hd.seg.SegmentDescription:
    category, kind = (SrCode(code.value, code.scheme, code.meaning) for code in label_codes(label))
    description = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=kind.meaning,
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        display_color=hd.color.CIELabColor.from_rgb(*label.rgb),
    )
    if not kind.meaning.isascii():
        # Items have the character set of the file unless they say their own (PS3.5 7.5.3). dcmjs, which web viewers
        # read with, forgets that of the file (0.52.0, ReadBufferStream.more).
        for item in (description, *description.SegmentedPropertyTypeCodeSequence):
            item.SpecificCharacterSet = UTF8
    return description


def _coding_schemes(labels: Sequence[Label]) -> list[CodingSchemeIdentificationItem] | None:
    """Our own scheme, when a label is named by it (PS3.3 C.12.1: required for private schemes' names)."""
    if all(label_codes(label)[1].scheme != PRIVATE_SCHEME for label in labels):
        return None
    name = f"Labels of {PRODUCT} without a SNOMED CT code"
    return [CodingSchemeIdentificationItem(PRIVATE_SCHEME, name=name, responsible_organization=PRODUCT)]


def _series_number(header: Dataset) -> int:
    """100 more than the source's, so that viewers list the result after the images."""
    try:
        number = 100 + max(0, int(header.get("SeriesNumber") or 0))
    except (TypeError, ValueError, OverflowError):
        return 100
    return number if number < 2**31 else 100  # the range of IS


def _geometry(grid: Grid, source: _Source) -> dict[str, Any]:
    """highdicom's arguments for where the slices lie; none for an image without positions."""
    places = [place for place in source.places if place is not None]
    if len(places) < len(source.places):
        if len(source.places) == 1 and grid.shape[2] == 1:
            return {}
        raise InputError(
            f"{source.folder}: the series holds no slice positions. Use --format nifti, or PNG for single pictures, "
            "or export the series again with its positions."
        )
    header = source.headers[0]
    groups = header.get("SharedFunctionalGroupsSequence")
    measures = groups[0].PixelMeasuresSequence[0] if groups else header
    if not measures.get("SliceThickness"):
        measures.SliceThickness = DSfloat(_slice_step_mm(grid), auto_format=True)
    same_size = grid.shape[1::-1] == source.size
    found = _source_of_slices(grid, places, *source.size) if same_size else None
    if found is not None:
        return {"plane_positions": [hd.PlanePositionSequence("PATIENT", p.position.tolist()) for p in found]}
    affine_lps = ras_from_lps(grid.affine)
    axes = affine_lps[:3, :2] / grid.spacing_mm[:2]
    if abs(axes[:, 0] @ axes[:, 1]) > _PARALLEL:
        raise InputError(
            f"{source.folder}: rows and columns of the label map are not at right angles, which DICOM cannot "
            "describe. Use --format nifti."
        )
    positions = [affine_lps[:3, 3] + k * affine_lps[:3, 2] for k in range(grid.shape[2])]
    step_mm = _slice_step_mm(grid)
    return {
        "plane_positions": [hd.PlanePositionSequence("PATIENT", p.tolist()) for p in positions],
        "plane_orientation": hd.PlaneOrientationSequence("PATIENT", axes.T.ravel().tolist()),
        # PixelSpacing: between rows, then between columns
        "pixel_measures": hd.PixelMeasuresSequence(grid.spacing_mm[[1, 0]].tolist(), step_mm, step_mm),
    }


def _slice_step_mm(grid: Grid) -> float:
    """Distance of neighbouring slices along their normal; less than the third spacing under gantry tilt."""
    normal = np.cross(grid.affine[:3, 0], grid.affine[:3, 1])
    return float(abs(grid.affine[:3, 2] @ normal) / np.linalg.norm(normal))


def _source_of_slices(grid: Grid, places: Sequence[_Place], rows: int, columns: int) -> list[_Place] | None:
    """For each slice of the grid the source's at its place; None when one has none.

    Corners are compared in the grid's voxels: (i, j) must be the source's own columns and rows.
    """
    voxel_of = np.linalg.inv(ras_from_lps(grid.affine))  # (4, 4): LPS mm -> (i, j, k)
    corners = np.array(list(itertools.product((0, columns - 1), (0, rows - 1))), float)  # (4, 2)
    found: dict[int, tuple[float, int]] = {}
    for index, place in enumerate(places):
        steps = (
            place.orientation.reshape(2, 3) * place.spacing[::-1, None]
        )  # mm from column to column, row to row
        voxels = (corners @ steps + place.position) @ voxel_of[:3, :3].T + voxel_of[:3, 3]  # (4, 3)
        k = round(voxels[:, 2].mean())
        error = float(np.abs(voxels - np.column_stack([corners, np.full(4, k)])).max())
        if error <= SLICE_TOLERANCE_VOXELS:
            found[k] = min(found.get(k, (error, index)), (error, index))
    if any(k not in found for k in range(grid.shape[2])):
        return None
    return [places[found[k][1]] for k in range(grid.shape[2])]


def _mark_empty(frames: np.ndarray) -> list[int]:
    """Give the first label a pixel in slices that have none at all but are to have a frame; returns these slices.

    The outer slices, which tell a reader the extent. And where the bits of all frames would need a byte more to be of
    even length (PS3.5 8.1.1), as many others as make them even by themselves: Cornerstone (5.14; OHIF) does not expect
    that byte, refuses such files or shifts the mask.

    highdicom (0.27.0 and 0.28.2 tried) leaves out all empty frames or none. With ``omit_empty_frames=False``
    every label has a frame in every slice that is given, also where only others are: 1118 instead of 521
    frames and twice the bytes for the 13 organs of a BTCV patient. It has no choice by frame, so these
    slices are kept by a pixel that is cleared in the result.
    """
    empty = [k for k, plane in enumerate(frames) if not plane.any()]
    marked = [k for k in empty if k in (0, len(frames) - 1)]
    together = _EVEN_BITS // math.gcd(frames[0].size, _EVEN_BITS)  # frames that are of even length
    if together > 1:
        count = len(marked) + sum(np.count_nonzero(np.bincount(plane.ravel())[1:]) for plane in frames)
        others = [k for k in empty if k not in marked]
        marked += others[: -count % together] if len(others) >= -count % together else []
    frames[marked, 0, 0] = 1
    return marked


def _clear_first_pixels(
    segmentation: hd.seg.Segmentation, places: Sequence[hd.PlanePositionSequence | None]
) -> None:
    """Take away the pixels of ``_mark_empty`` in the slices at these places. None: in the only slice."""
    groups = segmentation.PerFrameFunctionalGroupsSequence
    pixels = bytearray(segmentation.PixelData)
    for place in places:
        index = 0  # of the frame of segment 1
        if place is not None:
            found = np.array([group.PlanePositionSequence[0].ImagePositionPatient for group in groups], float)
            wanted = np.array(place[0].ImagePositionPatient, float)
            # Frames are sorted by segment, so that the first one at this place is the first segment's.
            index = int(np.abs(found - wanted).max(axis=1).argmin())
        # PS3.5 8.2 and annex D: pixels of one bit follow each other without gaps, the first in the lowest bit.
        byte, bit = divmod(index * segmentation.Rows * segmentation.Columns, 8)
        pixels[byte] &= ~(1 << bit) & 0xFF
    segmentation.PixelData = bytes(pixels)


def _name_classes(segmentation: hd.seg.Segmentation, source: _Source) -> None:
    """Say of every image that is referred to which SOP Class it really has."""
    holders = list(segmentation.get("SourceImageSequence") or [])
    for series in segmentation.ReferencedSeriesSequence:
        holders += series.ReferencedInstanceSequence
    for groups in segmentation.PerFrameFunctionalGroupsSequence:
        for derivation in groups.get("DerivationImageSequence") or []:
            holders += derivation.SourceImageSequence
    for item in holders:
        item.ReferencedSOPClassUID = source.classes[item.ReferencedSOPInstanceUID]


def _set_dimensions_uid(segmentation: hd.seg.Segmentation, uid: str) -> None:
    for item in (*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid


# --- reading ----------------------------------------------------------------------------------------


def _grid_of(
    segmentation: hd.seg.Segmentation, found: Sequence[_Place | None], path: Path
) -> tuple[list[int], Grid]:
    """The slice index of every frame, and the grid that the slices form."""
    places = [place for place in found if place is not None]
    if not places or len(places) < len(found):
        raise InputError(f"{path}: some of its frames have no position. Export the segmentation again.")
    orientation, spacing = places[0].orientation, places[0].spacing
    if any(np.abs(place.orientation - orientation).max() > _PARALLEL for place in places):
        raise InputError(f"{path}: its slices are not parallel. Export one orientation.")
    positions = np.array([place.position for place in places])  # (F, 3)
    normal = np.cross(orientation[:3], orientation[3:])
    heights = positions @ normal
    order = np.argsort(heights)
    lowest, highest = positions[order[0]], positions[order[-1]]
    slices = _slice_indices(heights - heights[order[0]], _declared_step_mm(segmentation))
    if slices is None:
        raise InputError(
            f"{path}: its slices are not evenly spaced, so that they form no volume. "
            "Resample the segmentation onto an even grid."
        )
    last = int(slices.max())
    # Gantry tilt shifts slices against each other: the step is from position to position.
    step = (highest - lowest) / last if last else normal * (_declared_step_mm(segmentation) or 1.0)
    affine_lps = np.eye(4)
    affine_lps[:3, 0] = orientation[:3] * spacing[1]
    affine_lps[:3, 1] = orientation[3:] * spacing[0]
    affine_lps[:3, 2] = step
    affine_lps[:3, 3] = lowest
    grid = Grid((int(segmentation.Columns), int(segmentation.Rows), last + 1), ras_from_lps(affine_lps))
    if grid.is_singular:
        raise InputError(f"{path}: its geometry is singular. Export the segmentation again.")
    return slices.tolist(), grid


def _declared_step_mm(segmentation: hd.seg.Segmentation) -> float:
    """Distance of slices as the header has it; 0 where it has none."""
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for item in list(segmentation.get(groups) or [])[:1]:
            for measures in item.get("PixelMeasuresSequence") or []:
                for keyword in ("SpacingBetweenSlices", "SliceThickness"):
                    if measures.get(keyword):
                        return abs(float(measures.get(keyword)))
    return 0.0


def _slice_indices(heights_mm: np.ndarray, declared_mm: float) -> np.ndarray | None:
    """Whole slice indices of heights above the lowest slice; None when no even step fits.

    Frames are left out where they are empty, so that the step may be smaller than any distance found: the
    declared one is tried first.
    """
    top = heights_mm.max()
    gaps = np.diff(np.unique(heights_mm.round(4)))
    if not gaps.size:
        return np.zeros(len(heights_mm), int)
    for step in (declared_mm, gaps.min()):
        if step <= 0 or not 1 <= round(top / step) < _MOST_SLICES:
            continue
        exact = heights_mm / (top / round(top / step))
        if np.abs(exact - exact.round()).max() <= SLICE_TOLERANCE_VOXELS:
            return exact.round().astype(int)
    return None


def _paint(plane: np.ndarray, segmentation: hd.seg.Segmentation, index: int, path: Path) -> None:
    """Add a frame to its slice, plane (rows, columns)."""
    values = segmentation.get_stored_frame(index + 1)
    if segmentation.SegmentationType != "LABELMAP":
        number = _find(segmentation, index, "SegmentIdentificationSequence", "ReferencedSegmentNumber")
        values = (values > 0) * np.uint16(number)
    if values.max() > 255:
        raise _too_many(path)
    mask = values > 0
    if plane[mask].any():
        raise InputError(
            f"{path}: segments overlap, so that they form no single label map. "
            "Export them one by one, or without overlap."
        )
    plane[mask] = values[mask]


def _too_many(path: Path) -> InputError:
    return InputError(f"{path}: segment numbers beyond 255; a label map holds 255. Export fewer segments.")


@contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    """Damaged headers make pydicom and highdicom raise errors of many types: InputError for all of them.

    Their messages stay inside, as they quote the header.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file. Check the path.") from None
    except Exception as error:
        reason = type(error).__name__
        raise InputError(f"{path}: not a readable {kind} ({reason}). Copy or export it again.") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' warnings in: they quote the header, with it the patient's name."""
    loggers = [logging.getLogger(name) for name in ("highdicom", "pydicom")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
