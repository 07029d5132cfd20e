"""DICOM files to series of images, and a series to a volume or a picture.

Headers are read first and pixels later, slice by slice.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from scipy import ndimage

from sgan_core.errors import InputError
from sgan_core.imaging.decoder_messages import heard
from sgan_core.imaging.dicom.attributes import EXPORT_AGAIN, LARGEST_VALUE, named
from sgan_core.imaging.dicom.headers import (
    COLOUR,
    GREY,
    PALETTE,
    UNUSUAL,
    Header,
    Other,
    Plane,
    Slice,
    read_header,
)
from sgan_core.imaging.dicom.palettes import palette_rgb
from sgan_core.imaging.dicom.pixels import (
    AIR_HU,
    is_whole,
    keeps_units,
    says_hu,
    stored_frames,
    value_frames,
)
from sgan_core.imaging.dicom.stacks import (
    DIRECTION_TOLERANCE,
    SAME_POSITION_MM,
    Series,
    difference,
    distance_mm,
    normal,
    usual,
)
from sgan_core.imaging.grid import Grid, ras_from_lps
from sgan_core.imaging.guards import impossible_size, refuse_constant
from sgan_core.imaging.image import Picture, Volume

# Tolerances. Positions are decimal strings that scanners round, often to 0.01 mm.
_STEP_TOLERANCE = 0.01  # of the slice distance: how far a slice may be from where a regular grid has it ...
_ROUNDING_MM = 0.02  # ... or this much, where that is less than a tenth of the slice distance
_SIDEWAYS_MM = 0.05  # how far slices may lie beside the line along the normal
_TILT_DEGREES = 0.5  # of the gantry, from which slices are out of line
# What is below water becomes more than the second of these when its sign is lost; metal on an extended scale stays
# below the first, and nothing lies between.
_WRAPPED_HU = (31_000, 60_000)
_AIR_BELOW_HU = -500.0  # a scan in HU holds air, around the patient if nowhere else
_MISSING = 1.5  # slice distances from which a gap is a missing slice rather than an uneven one


# --- choosing --------------------------------------------------------------------------------------


def series_table(found: Sequence[Series]) -> list[tuple[str, str, str, str, str]]:
    """Rows of text, the header first: series, description, modality, slices, spacing in mm.

    The first column is what ``choose_series`` takes: the series number, with ``.1``, ``.2`` where several
    entries have one number (0 where there is none).
    """
    rows = [("series", "description", "modality", "slices", "spacing in mm")]
    for label, series in zip(_labels(found), found, strict=True):
        spacing = " x ".join(f"{mm:.4g}" for mm in series.spacing_mm) if series.spacing_mm else "none"
        rows.append((label, series.description or "-", series.modality or "-", str(series.slices), spacing))
    return rows


def choose_series(found: Sequence[Series], wanted: str | None, source: str | Path) -> Series:
    """One of the series found in ``source``.

    wanted: what the first column of ``series_table`` shows, a series number, a UID, or a description (upper
    and lower case alike). None: the only one.
    Raises InputError with the table of series: several and none wanted, unknown, or ambiguous; or nothing
    was found.
    """
    offered = [one for one in found if not one.aside] or list(found)
    if not found:
        kind = "a folder without DICOM images" if Path(source).is_dir() else "not a DICOM image"
        raise InputError(f"{source}: {kind}. Name an image file, or a folder with DICOM images.")
    if wanted is None:
        if len(offered) == 1:
            beside = Counter(one.aside for one in found if one.aside and one is not offered[0])
            listed = ", ".join(f"{count} x {kind}" for kind, count in sorted(beside.items()))
            said = (f"left out beside it, to be named with --series: {listed}.",) if listed else ()
            return replace(offered[0], warnings=(*offered[0].warnings, *said))
        raise InputError(
            f"{source}: {len(found)} series of images; say which one with --series:",
            details=_table_text(found),
        )
    wanted = wanted.strip()
    labelled = [series for label, series in zip(_labels(found), found, strict=True) if label == wanted]
    matching = labelled or [series for series in found if _is_called(series, wanted)]
    if len(matching) != 1:
        problem = "more than one series is" if matching else "no series is"
        raise InputError(
            f"{source}: {problem} called {wanted!r}. Choose by the first column with --series:",
            details=_table_text(found),
        )
    return matching[0]


def _is_called(series: Series, wanted: str) -> bool:
    description, wanted = series.description.casefold(), wanted.casefold()
    return (
        wanted in (str(series.number), series.uid)
        or bool(wanted)
        and (description == wanted or description.startswith(f"{wanted} ("))
    )


def _labels(found: Sequence[Series]) -> list[str]:
    """Names that differ, one for each series."""
    numbers = [series.number or 0 for series in found]
    seen: dict[int, int] = {}
    labels = []
    for number in numbers:
        seen[number] = seen.get(number, 0) + 1
        labels.append(f"{number}.{seen[number]}" if numbers.count(number) > 1 else str(number))
    return labels


def _table_text(found: Sequence[Series]) -> str:
    rows = series_table(found)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


# --- reading a series ------------------------------------------------------------------------------


def read_series(series: Series, *, resample_gaps: bool = False) -> Volume | Picture:
    """Read the pixels of a series.

    Returns a Volume (I, J, K), rescaled with each slice's slope and intercept (HU for CT): int16 or int32
    where no slope or fraction asks for float32. Its grid is right-angled and regular; slices are ordered by
    their positions, and the third spacing is their distance, whatever Slice Thickness says. A grey image
    without position becomes a Picture (1, H, W) in its own type, a colour image (3, H, W) uint8 RGB.
    MONOCHROME1 is turned round so that more is brighter, except in CT, where HU stay HU.

    resample_gaps: interpolate uneven gaps linearly onto the usual slice distance, and shift the slices of a
    tilted gantry onto a right-angled grid; float32, what was done is in ``Volume.warnings``.
    Raises InputError: damaged or unsupported pixels, sizes that do not fit the file, missing or uneven
    slices, gantry tilt, different images at one position, mixed orientations or sizes, no pixel spacing, no
    position in a CT, MR or PET series, every value the same.
    """
    if series.problem:
        raise InputError(series.problem)
    with heard() as said:
        image = _read(series, resample_gaps)
        if isinstance(image, Volume) and (odd := impossible_size(image.grid)):
            image = replace(image, doubts=(*image.doubts, f"{odd}; are its lengths in mm?"))
    return said.told(image, _place(series).name)


def _read(series: Series, resample_gaps: bool) -> Volume | Picture:
    slices = _slices_of(series)
    for one in {one.header.path: one for one in slices}.values():
        _refuse_unsupported(one.header)
    if slices[0].is_placed:
        volume = _read_volume(slices, _place(series), resample_gaps)
        refuse_constant(volume.array, _place(series))
        return replace(
            volume,
            warnings=(*series.warnings, *volume.warnings),
            doubts=(*series.doubts, *volume.doubts),
        )
    picture = _read_picture(slices)
    refuse_constant(picture.array, slices[0].header.path)
    return replace(
        picture, warnings=(*series.warnings, *picture.warnings), doubts=(*series.doubts, *picture.doubts)
    )


def _slices_of(series: Series) -> list[Slice]:
    headers = [read_header(file) for file in series.files]
    frames = series.frames or tuple((number, 0) for number in range(len(headers)))
    slices = []
    for number, frame in frames:
        header = headers[number]
        if isinstance(header, Other) or frame >= len(header.planes):
            raise InputError(f"{series.files[number]}: the file has changed since it was found. Try again.")
        slices.append(Slice(header, frame))
    return slices


def _place(series: Series) -> Path:
    """What messages call the series: its file, or the folder of its files."""
    if len(series.files) == 1:
        return series.files[0]
    return Path(os.path.commonpath([file.parent for file in series.files]))


def _refuse_unsupported(header: Header) -> None:
    if "MOSAIC" in header.image_type:
        raise InputError(
            f"{header.path}: a mosaic, all slices of a volume tiled in one image. Convert the series with dcm2niix, or "
            "export it as enhanced MR."
        )
    known = (*GREY, PALETTE) if header.samples == 1 else COLOUR
    if header.photometric not in known or header.bits_allocated not in (8, 16, 32):
        # A damaged header has anything here: only the standard's own words are repeated.
        words = (*GREY, *COLOUR, PALETTE, *UNUSUAL)
        kind = header.photometric if header.photometric in words else "an unknown colour space"
        raise InputError(
            f"{header.path}: pixels of {header.bits_allocated} bits, {header.samples} samples, {kind} cannot be "
            "read. Export the image as grey values or RGB."
        )
    for plane in header.planes:
        largest = abs(plane.slope) * 2.0**header.bits_stored + abs(plane.intercept)
        if plane.slope == 0.0 or largest > LARGEST_VALUE:
            raise InputError(f"{header.path}: the rescale slope or intercept makes no sense. {EXPORT_AGAIN}")


# --- pictures --------------------------------------------------------------------------------------


def _read_picture(slices: list[Slice]) -> Picture:
    one, path = slices[0], slices[0].header.path
    header = one.header
    if header.is_scan:
        raise InputError(
            f"{path}: no Image Position or Image Orientation (Patient), so its slices have no order. {EXPORT_AGAIN}"
        )
    if header.frames > 1:
        raise InputError(
            f"{path}: {header.frames} frames without positions (a clip?); one image is needed. "
            "Export a single frame."
        )
    notes = _sentences([one], "notes", path)
    doubts = (
        *_sentences([one], "doubts", path),
        *(f"{path.name}: {doubt}" for doubt in header.picture_doubts),
    )
    if header.is_colour:
        pixels, said = _rgb(next(stored_frames([one])), header)
        return Picture(pixels, (*notes, *(f"{path.name}: {note}" for note in said)), doubts)
    values, padded, doubt = next(value_frames([one]))
    doubts += (f"{path.name}: {doubt}",) if doubt else ()
    notes += _padding_note([one], 0 if padded is None else int(np.count_nonzero(padded)), values.size, path)
    return Picture(
        _compact(values, one)[None], notes, doubts, padded=None if padded is None else padded[None]
    )


def _compact(values: np.ndarray, one: Slice) -> np.ndarray:
    """The values in a small type that holds them."""
    header = one.header
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    unscaled = not header.signed and (one.plane.slope, one.plane.intercept) == (1.0, 0.0)
    if unscaled and header.bits_stored <= 16 and header.lut is None:
        return values.astype(np.uint8 if header.bits_stored <= 8 else np.uint16)
    return values.astype(_wide_enough(np.dtype(np.int16), values))


def _rgb(pixels: np.ndarray, header: Header) -> tuple[np.ndarray, tuple[str, ...]]:
    """(3, H, W) uint8 of decoded pixels, (H, W, 3) or (H, W) indices into a palette; what is to be said."""
    notes: tuple[str, ...] = ()
    if header.palette is None:
        pixels = (pixels >> max(header.bits_stored - 8, 0)).astype(np.uint8)
    else:
        little = header.syntax.is_little_endian
        pixels, notes = palette_rgb(pixels, header.palette, header.path, little=little)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)), notes


# --- volumes ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Stack:
    """Parallel slices of one size, ascending along their normal. LPS mm."""

    slices: list[Slice]
    axes: np.ndarray  # (3, 3), unit vectors in columns: along a row, along a column, normal
    pixel_mm: tuple[float, float]  # between columns, between rows
    offsets_mm: np.ndarray  # (N, 3): from the first slice's position, along the axes
    place: Path  # what messages call it

    @property
    def distances_mm(self) -> np.ndarray:
        return self.offsets_mm[:, 2]

    @property
    def step_mm(self) -> float:
        """The usual distance of slices."""
        gaps = np.diff(self.distances_mm)
        return usual(gaps) if gaps.size else 0.0

    @property
    def sideways_mm(self) -> float:
        return float(np.linalg.norm(self.offsets_mm[:, :2], axis=1).max())

    def grid(self, shape: tuple[int, int, int], step_mm: float, corner: tuple[int, int] = (0, 0)) -> Grid:
        """The grid (I, J, K); corner: its first pixel, counted from that of the first slice."""
        spacing_mm = np.array([*self.pixel_mm, step_mm])
        affine_lps = np.eye(4)
        affine_lps[:3, :3] = self.axes * spacing_mm
        first = np.array([*corner, 0.0]) * spacing_mm
        affine_lps[:3, 3] = self.slices[0].plane.position_mm + self.axes @ first
        return Grid(shape, ras_from_lps(affine_lps))


def _read_volume(slices: list[Slice], place: Path, resample_gaps: bool) -> Volume:
    stack, notes = _without_copies(_stack(slices, place))
    _refuse_partial_rescale(stack.slices, place)
    notes += _remarks(stack)
    if len(stack.slices) == 1:
        step_mm = stack.slices[0].plane.thickness_mm
        if step_mm is None:
            raise InputError(
                f"{place}: a single slice that says no thickness, so its size is unknown. "
                "Export the whole series, or the slice as a picture."
            )
        notes += (f"{place.name}: a single slice; its thickness of {step_mm:g} mm is taken as spacing.",)
        return _filled(stack, step_mm, notes)
    fault = _fault(stack)
    if not fault:
        return _filled(stack, float(stack.distances_mm[-1]) / (len(stack.slices) - 1), notes)
    if not resample_gaps:
        raise InputError(f"{place}: {fault}")
    return _resampled(stack, notes)


def _stack(slices: list[Slice], place: Path) -> _Stack:
    first = slices[0]
    for one in slices:
        if not one.is_placed:
            raise InputError(f"{one.header.path}: no position among slices that have one. {EXPORT_AGAIN}")
        if mixed := difference(first, one):
            raise InputError(
                f"{place}: mixed {mixed} in one series; they are no volume. "
                "Name a folder with one stack of slices, or choose one with --series."
            )
    axes, pixel_mm = _axes(first.plane, place), first.plane.spacing_mm
    if pixel_mm is None or min(pixel_mm) <= 0:
        raise InputError(f"{place}: no usable Pixel Spacing, so the pixels have no size. {EXPORT_AGAIN}")
    slices = sorted(slices, key=distance_mm)
    positions_mm = np.array([one.plane.position_mm for one in slices])
    return _Stack(slices, axes, pixel_mm, (positions_mm - positions_mm[0]) @ axes, place)


def _axes(plane: Plane, place: Path) -> np.ndarray:
    """(3, 3): the directions made exactly unit and right-angled; their decimals are rounded."""
    cosines = np.stack([plane.row, plane.column])
    if np.abs(cosines @ cosines.T - np.eye(2)).max() > DIRECTION_TOLERANCE:
        raise InputError(
            f"{place}: Image Orientation (Patient) does not hold two unit vectors at right angles. {EXPORT_AGAIN}"
        )
    row = cosines[0] / np.linalg.norm(cosines[0])
    column = cosines[1] - row * (row @ cosines[1])
    column /= np.linalg.norm(column)
    return np.stack([row, column, np.cross(row, column)], axis=1)


def _without_copies(stack: _Stack) -> tuple[_Stack, tuple[str, ...]]:
    """One slice for each position; a second one must be an exact copy."""
    new = np.diff(stack.distances_mm, prepend=-np.inf) > SAME_POSITION_MM
    if new.all():
        return stack, ()
    for index in np.flatnonzero(~new):
        beside_mm = np.abs(stack.offsets_mm[index] - stack.offsets_mm[index - 1]).max()
        pair = stack.slices[index - 1 : index + 1]
        first, second = (next(value_frames([one])).values for one in pair)
        if beside_mm > SAME_POSITION_MM or not np.array_equal(first, second):
            raise InputError(
                f"{stack.place}: two different images at {_where(pair[0])} ({pair[0].header.path.name} and "
                f"{pair[1].header.path.name}); two phases or time points in one series? Keep one of them."
            )
    copies = int(np.count_nonzero(~new))
    slices = [one for one, is_new in zip(stack.slices, new, strict=True) if is_new]
    kept = _Stack(slices, stack.axes, stack.pixel_mm, stack.offsets_mm[new], stack.place)
    return kept, (f"{stack.place.name}: {copies} of {len(new)} images are exact copies; left out.",)


def _remarks(stack: _Stack) -> tuple[str, ...]:
    name, remarks = stack.place.name, []
    times = {round(one.plane.echo_time_ms, 2) for one in stack.slices if one.plane.echo_time_ms is not None}
    if len(times) > 1:
        remarks.append(f"{name}: echo times of {min(times):g} to {max(times):g} ms in one stack of slices.")
    if any(keeps_units(one.header) for one in stack.slices):
        remarks.append(f"{name}: MONOCHROME1 is about display; HU are kept as they are.")
    tilts = {abs(one.header.tilt_degrees or 0.0) for one in stack.slices}
    if (
        min(tilts) > _TILT_DEGREES
        and stack.sideways_mm <= _SIDEWAYS_MM
        and np.abs(stack.axes[:, 2]).max() > 0.9999
    ):
        remarks.append(
            f"{name}: {named('GantryDetectorTilt')} is {max(tilts):g} degrees, the positions show none; they count."
        )
    return (*remarks, *_sentences(stack.slices, "notes", stack.place))


def _sentences(slices: Sequence[Slice], kind: str, place: Path) -> tuple[str, ...]:
    """The notes or doubts of headers and planes, each once."""
    counts: dict[str, int] = {}
    for one in slices:
        for sentence in dict.fromkeys((*getattr(one.header, kind), *getattr(one.plane, kind))):
            counts[sentence] = counts.get(sentence, 0) + 1
    return tuple(
        f"{place.name}: {sentence}" + (f" ({count} of {len(slices)} images)" if count < len(slices) else "")
        for sentence, count in counts.items()
    )


def _refuse_partial_rescale(slices: Sequence[Slice], place: Path) -> None:
    """Raise InputError where some slices say a rescale and others do not: beside 40 HU would stand 1064.

    Which of the two is right is not known: the others may hold HU already, or have lost the attribute.
    """
    for keyword, plain in (("RescaleIntercept", 0.0), ("RescaleSlope", 1.0)):
        said = [one.plane for one in slices if keyword not in one.plane.unsaid]
        values = {plane.intercept if keyword == "RescaleIntercept" else plane.slope for plane in said}
        if len(said) < len(slices) and values - {plain}:
            _refuse_missing(keyword, len(slices) - len(said), len(slices), place)
    without_lut = sum(one.header.lut is None for one in slices)
    if 0 < without_lut < len(slices):
        _refuse_missing("ModalityLUTSequence", without_lut, len(slices), place)


def _refuse_missing(keyword: str, missing: int, count: int, place: Path) -> NoReturn:
    raise InputError(
        f"{place}: {named(keyword)} is missing in {missing} of {count} images, so their values are unknown. "
        f"{EXPORT_AGAIN}"
    )


def _doubts(stack: _Stack, array: np.ndarray, found: set[str]) -> tuple[str, ...]:
    """Why the values of a volume may not be what they seem; found: what frames say."""
    doubts = _sentences(stack.slices, "doubts", stack.place)
    doubts += tuple(f"{stack.place.name}: {doubt}" for doubt in sorted(found - {""}))
    of_ct = [one for one in stack.slices if one.header.modality == "CT"]
    if of_ct and not all(says_hu(one) for one in of_ct) and array.min() > _AIR_BELOW_HU:
        missing = f"{named('RescaleIntercept')} is missing, and no value is as low as air"
        doubts += (f"{stack.place.name}: {missing}: probably stored values, not HU.",)
    elif of_ct and _is_wrapped(array):
        doubts += (
            f"{stack.place.name}: values up to {array.max():g} HU; signed values may be read as unsigned.",
        )
    return doubts


def _is_wrapped(array: np.ndarray) -> bool:
    """Whether values (I, J, K) in HU have a part so far above the rest that it must have been negative."""
    low, high = _WRAPPED_HU
    if array.max() <= high:
        return False
    planes = (array[:, :, k] for k in range(array.shape[2]))  # one at a time: comparing takes memory
    return not any(((plane > low) & (plane <= high)).any() for plane in planes)


def _padding_note(slices: Sequence[Slice], padded: int, count: int, place: Path) -> tuple[str, ...]:
    if not padded:
        return ()
    if padded == count:
        raise InputError(
            f"{place}: every pixel is padding ({named('PixelPaddingValue')}); there is nothing to segment. "
            "Export the image again."
        )
    value = f"air ({AIR_HU} HU)" if says_hu(slices[0]) else "the lowest value"
    share = f"{100.0 * padded / count:.2g} %"
    return (
        f"{place.name}: {share} of the pixels are padding ({named('PixelPaddingValue')}); set to {value}.",
    )


def _tolerance_mm(step_mm: float) -> float:
    return max(_STEP_TOLERANCE * step_mm, min(_ROUNDING_MM, 0.1 * step_mm))


def _fault(stack: _Stack) -> str:
    """What is wrong with the positions of two or more slices; empty for a regular, right-angled stack."""
    distances, step = stack.distances_mm, stack.step_mm
    gaps = np.diff(distances)
    if stack.sideways_mm > _SIDEWAYS_MM:
        return (
            f"the slices lie up to {stack.sideways_mm:.1f} mm beside the line along their normal, over "
            f"{distances[-1]:.1f} mm (gantry tilt?). Pass --resample-gaps to straighten them."
        )
    regular = np.linspace(0.0, distances[-1], len(distances))
    if max(np.abs(distances - regular).max(), np.abs(gaps - step).max()) <= _tolerance_mm(step):
        return ""
    worst = int(np.abs(gaps - step).argmax())
    what = "slices look missing" if gaps[worst] > _MISSING * step else "the slices are uneven"
    return (
        f"{_mm(gaps[worst])} mm between slices {worst + 1} and {worst + 2} ({_where(stack.slices[worst])}), "
        f"elsewhere {_mm(step)} mm; {what}. Export the whole series again, or pass --resample-gaps."
    )


def _where(one: Slice) -> str:
    """The position along the axis that the normal is nearest to, e.g. ``z = -103.5 mm``."""
    axis = int(np.abs(normal(one.plane)).argmax())
    return f"{'xyz'[axis]} = {_mm(one.plane.position_mm[axis])} mm"


def _mm(value: float) -> str:
    """At least one decimal, three where they are needed."""
    short, long = f"{value:.1f}", f"{value:.3f}".rstrip("0")
    return short if len(long) <= len(short) else long


def _filled(stack: _Stack, step_mm: float, notes: tuple[str, ...]) -> Volume:
    """The slices as they are."""
    header = stack.slices[0].header
    whole = all(is_whole(one.plane) for one in stack.slices)
    shape = (len(stack.slices), header.rows, header.columns)
    array = _empty(shape, np.int16 if whole else np.float32, stack.place)  # (K, J, I)
    padded: np.ndarray | None = None  # (K, J, I)
    found: set[str] = set()
    for k, frame in enumerate(value_frames(stack.slices)):
        # Most scans fit int16; widening on the way keeps them at half the memory of what their bits allow.
        if (wide := _wide_enough(array.dtype, frame.values)) != array.dtype:
            array = array.astype(wide)
        array[k] = frame.values
        found.add(frame.doubt)
        if frame.padded is not None:
            padded = np.zeros(shape, bool) if padded is None else padded
            padded[k] = frame.padded
    if padded is not None:
        count = int(np.count_nonzero(padded))
        notes += _padding_note(stack.slices, count, padded.size, stack.place)
        if all(says_hu(one) for one in stack.slices):
            padded = None  # air like the air around the patient, and HU have a fixed range
        else:
            array[padded] = array.min(where=~padded, initial=array.max())
            padded = padded.transpose(2, 1, 0)
    array = array.transpose(2, 1, 0)  # (K, J, I) -> (I, J, K)
    grid = stack.grid((shape[2], shape[1], shape[0]), step_mm)
    return Volume(array, grid, notes, _doubts(stack, array, found), padded)


def _resampled(stack: _Stack, notes: tuple[str, ...]) -> Volume:
    """The slices shifted and interpolated linearly onto a regular grid, float32."""
    header, name, step_mm = stack.slices[0].header, stack.place.name, stack.step_mm
    count = round(stack.distances_mm[-1] / step_mm) + 1
    straighten = stack.sideways_mm > _SIDEWAYS_MM
    # (N, 2) in pixels: along a row (i), along a column (j)
    shifts = stack.offsets_mm[:, :2] / stack.pixel_mm if straighten else np.zeros((len(stack.slices), 2))
    shifts = shifts.round(4)  # a whole pixel stays whole
    corner = np.floor(shifts.min(axis=0))
    wider = np.ceil(shifts.max(axis=0)) - corner
    if count > 2 * len(stack.slices) or (wider > (header.columns, header.rows)).any():
        raise InputError(
            f"{stack.place}: the gaps are too large to interpolate: most of the volume would be made up. "
            "Export the whole series again."
        )
    shape = (count, header.rows + int(wider[1]), header.columns + int(wider[0]))
    array = _empty(shape, np.float32, stack.place)  # (K, J, I)
    found: set[str] = set()
    frames = _shifted(stack, shifts - corner, shape[1:], found)
    # The slices on either side of each target: distances[upper - 1] < target <= distances[upper].
    upper, above = 0, next(frames)
    below, between = above, 0
    for k in range(count):
        target_mm = k * step_mm
        while upper < len(stack.slices) - 1 and stack.distances_mm[upper] < target_mm - SAME_POSITION_MM:
            upper, below, above = upper + 1, above, next(frames)
        gap_mm = stack.distances_mm[upper] - stack.distances_mm[max(upper - 1, 0)]
        part = 1.0 - max(stack.distances_mm[upper] - target_mm, 0.0) / gap_mm if gap_mm else 1.0
        near = min(part, 1.0 - part) * gap_mm <= _tolerance_mm(step_mm)
        between += not near
        weight = np.float32(round(part) if near else part)
        array[k] = weight * above + (1 - weight) * below
    if straighten:
        notes += (f"{name}: slices up to {stack.sideways_mm:.1f} mm out of line are shifted (gantry tilt).",)
    if between:
        largest_mm = np.diff(stack.distances_mm).max()
        notes += (f"{name}: {between} of {count} slices are interpolated (gaps up to {largest_mm:.1f} mm).",)
    grid = stack.grid((shape[2], shape[1], shape[0]), step_mm, (int(corner[0]), int(corner[1])))
    return Volume(
        array.transpose(2, 1, 0), grid, notes, _doubts(stack, array, found)
    )  # (K, J, I) -> (I, J, K)


def _shifted(
    stack: _Stack, shifts: np.ndarray, shape: tuple[int, ...], found: set[str]
) -> Iterator[np.ndarray]:
    """Each slice (J, I) moved by ``shifts`` (N, 2) pixels (i, j) inside a wider one; air around it.

    found: gets the doubts of the slices.
    """
    air = None
    for (frame, _, doubt), (right, down) in zip(value_frames(stack.slices), shifts, strict=True):
        found.add(doubt)
        air = np.float32(frame.min()) if air is None else air
        wider = np.full(shape, air, np.float32)
        wider[: frame.shape[0], : frame.shape[1]] = frame
        moved = bool(right or down)
        yield ndimage.shift(wider, (down, right), order=1, cval=float(air)) if moved else wider


def _empty(shape: tuple[int, int, int], dtype: Any, place: Path) -> np.ndarray:
    try:
        return np.empty(shape, dtype)
    except (MemoryError, ValueError):
        size = " x ".join(map(str, shape[::-1]))
        raise InputError(f"{place}: no memory for {size} voxels. Crop the scan.") from None


def _wide_enough(dtype: np.dtype, frame: np.ndarray) -> np.dtype:
    """The narrowest of ``dtype``, int32 and float32 that holds the values."""
    if dtype.kind == "f" or frame.dtype.kind == "f":
        return np.dtype(np.float32)
    lowest, highest = int(frame.min()), int(frame.max())
    for wider in (dtype, np.dtype(np.int32)):
        if np.iinfo(wider).min <= lowest and highest <= np.iinfo(wider).max:
            return wider
    return np.dtype(np.float32)
