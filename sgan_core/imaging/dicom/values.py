"""What a header says of the meaning of its stored values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydicom.dataset import Dataset

from sgan_core.errors import InputError
from sgan_core.imaging.dicom.attributes import EXPORT_AGAIN, named, numbers, text, words

# What a rescale of CT may give and still be HU (PS3.3 C.11.1.1.2): US is "unspecified", as older scanners write.
_HU_TYPES = ("", "HU", "HU_MOD", "US")
_HU_UNIT = "[hnsf'U]"  # UCUM


class Rescale(NamedTuple):
    """From stored values to the unit, of one frame."""

    slope: float
    intercept: float
    unsaid: tuple[str, ...] = ()  # which of the two the header does not say
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class ModalityLut:
    """Modality LUT Sequence (PS3.3 C.11.1)."""

    first: int  # the stored value of the first entry
    entries: np.ndarray  # (N,) int64

    @property
    def highest(self) -> int:
        """The end of the range that its entries are drawn from, all bits set."""
        return (1 << int(self.entries.max()).bit_length()) - 1

    def apply(self, stored: np.ndarray) -> np.ndarray:
        """Values outside the table get its first or last entry."""
        return self.entries[np.clip(stored.astype(np.int64) - self.first, 0, len(self.entries) - 1)]


@dataclass(frozen=True)
class Padding:
    """Stored values that are no part of the image (PS3.3 C.7.5.1.1.2), both ends included."""

    low: int
    high: int


def find_rescale(
    sources: Sequence[Dataset], mappings: Sequence[Dataset], modality: str, path: Path
) -> Rescale:
    """The rescale of a frame.

    sources: the data sets it may stand in, the nearest first. mappings: items of Real World Value Mapping.
    Raises InputError when an attribute holds no number.
    """
    said = {
        keyword: first_numbers(sources, keyword, 1, path) for keyword in ("RescaleSlope", "RescaleIntercept")
    }
    unsaid = tuple(keyword for keyword, found in said.items() if found is None)
    if len(unsaid) == 2 and mappings:
        return _real_world(mappings, modality, path)
    doubts: tuple[str, ...] = ()
    kind = next((found for source in sources if (found := text(source, "RescaleType"))), "")
    if modality == "CT" and kind not in _HU_TYPES and not unsaid:
        doubts = (f"{named('RescaleType')} is not HU; its values are taken as HU.",)
    slope, intercept = said["RescaleSlope"] or (1.0,), said["RescaleIntercept"] or (0.0,)
    notes = tuple(f"no {named(keyword)}; the usual value is taken." for keyword in unsaid)
    return Rescale(slope[0], intercept[0], unsaid, notes if len(unsaid) == 1 else (), doubts)


def first_numbers(
    sources: Sequence[Dataset], keyword: str, count: int, path: Path
) -> tuple[float, ...] | None:
    """Of the first data set that says them."""
    return next((found for source in sources if (found := numbers(source, keyword, count, path))), None)


def _real_world(mappings: Sequence[Dataset], modality: str, path: Path) -> Rescale:
    """Real World Value Mapping (PS3.3 C.7.6.16.2.11), where it is all there is and one line."""
    name, unsaid = named("RealWorldValueMappingSequence"), ("RescaleSlope", "RescaleIntercept")
    slope, intercept = (
        numbers(mappings[0], f"RealWorldValue{part}", 1, path) for part in ("Slope", "Intercept")
    )
    units = mappings[0].get("MeasurementUnitsCodeSequence")
    is_hu = bool(units) and text(units[0], "CodeValue") == _HU_UNIT
    if len(mappings) > 1 or slope is None or intercept is None or (modality == "CT" and not is_hu):
        return Rescale(
            1.0, 0.0, unsaid, (), (f"no rescale, and a {name} that is not applied: stored values.",)
        )
    return Rescale(slope[0], intercept[0], (), (f"no rescale; the {name} is applied.",))


def find_modality_lut(dataset: Dataset, path: Path, *, signed: bool, little: bool) -> ModalityLut | None:
    """The first item of Modality LUT Sequence; None without. Raises InputError when it is damaged.

    signed: whether stored values are. little: the byte order of the file.
    """
    items = dataset.get("ModalityLUTSequence")
    if not items:
        return None
    described = numbers(items[0], "LUTDescriptor", 3, path)
    if described is None:
        raise InputError(f"{path}: a {named('ModalityLUTSequence')} without descriptor. {EXPORT_AGAIN}")
    count, first = (int(described[0]) & 0xFFFF) or 1 << 16, _as_stored(int(described[1]), 16, signed)
    return ModalityLut(first, np.array(words(items[0], "LUTData", count, path, little=little), np.int64))


def find_padding(dataset: Dataset, path: Path, *, allocated: int, bits: int, signed: bool) -> Padding | None:
    """Pixel Padding Value to Pixel Padding Range Limit; None without.

    Both are read as the stored values are, whatever their value representation: writers mix US and SS up.
    allocated, bits, signed: of the stored values.
    """
    ends = []
    for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        if (found := numbers(dataset, keyword, 1, path)) is not None:
            end = _as_stored(int(found[0]), max(allocated, 16), signed)
            ends.append(end - (1 << bits) if signed and 1 << (bits - 1) <= end < 1 << bits else end)
    if not ends or "PixelPaddingValue" not in dataset:
        return None
    return Padding(min(ends), max(ends))


def _as_stored(value: int, bits: int, signed: bool) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if signed and value >= 1 << (bits - 1) else value


def shape_doubt(dataset: Dataset, photometric: str) -> str:
    """Presentation LUT Shape says again what the photometric interpretation says (PS3.3 C.7.6.1, C.8.11.3).

    It turns nothing round a second time. Where the two contradict each other the photometric interpretation
    counts, as in most readers.
    """
    expected = {"MONOCHROME1": "INVERSE", "MONOCHROME2": "IDENTITY"}
    shape = text(dataset, "PresentationLUTShape")
    if shape not in expected.values() or expected.get(photometric, shape) == shape:
        return ""
    return f"{named('PresentationLUTShape')} {shape} contradicts {photometric}, which counts: black may be white."


def picture_doubts(dataset: Dataset, path: Path) -> tuple[str, ...]:
    """Of an image without a place in the patient: pixels that are not square, an X-ray seen from behind.

    Pictures have no millimetres (Pixel Aspect Ratio, PS3.3 C.7.6.3.1.7), and are read as they are stored
    (Patient Orientation, C.7.6.1.1.1).
    """
    doubts = []
    for keyword in ("PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing"):
        sides = numbers(dataset, keyword, 2, path)  # of a pixel: its height first
        if sides and min(sides) > 0:
            if abs(sides[0] / sides[1] - 1.0) > 0.01:
                ratio = f"{sides[0] / sides[1]:.3g} times as high as wide"
                doubts.append(f"{named(keyword)}: pixels {ratio} are taken as square.")
            break
    row, column = ([*_directions(dataset), "", ""])[:2]
    if _is_radiograph(dataset) and (row.startswith("R") or column.startswith("H")):
        what = "mirrored" if row.startswith("R") else "upside down"
        doubts.append(f"{named('PatientOrientation')}: the picture is stored {what}, and read so.")
    return tuple(doubts)


def _directions(dataset: Dataset) -> list[str]:
    return text(dataset, "PatientOrientation").strip("[]").replace("'", "").replace(" ", "").split(",")


def _is_radiograph(dataset: Dataset) -> bool:
    return text(dataset, "Modality") in ("CR", "DX", "DR", "RG")
