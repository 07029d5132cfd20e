"""Colours of palette images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_color_lut
from pydicom.uid import ExplicitVRLittleEndian

from sgan_core.errors import InputError
from sgan_core.imaging.dicom.attributes import EXPORT_AGAIN, numbers, swapped, words

_COLOURS = ("Red", "Green", "Blue")


def palette_rgb(
    indices: np.ndarray, dataset: Dataset, path: Path, *, little: bool
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(H, W, 3) uint8 of (H, W) indices, and what is to be said of it (PS3.3 C.7.6.3.1.5, C.7.9.2).

    dataset: with the palette's attributes. little: the byte order of the file. Indices outside the table get
    its first or last colour. Entries are of 8 bits where none is larger, whatever the descriptor says.
    Raises InputError: no palette, or a damaged one.
    """
    entries, first, bits = _descriptor(dataset, path)
    segmented = "RedPaletteColorLookupTableData" not in dataset
    if segmented:
        tables = _expanded(dataset, entries, bits, path, little=little)  # (entries, 3)
    else:
        keywords = [f"{colour}PaletteColorLookupTableData" for colour in _COLOURS]
        tables = np.array([words(dataset, keyword, entries, path, little=little) for keyword in keywords]).T
    deep = int(tables.max()) > 0xFF
    table = (tables >> (8 if deep else 0)).astype(np.uint8)
    if first > max(int(indices.max()), (1 << 15) - 1):
        first -= 1 << 16  # written unsigned
    notes: tuple[str, ...] = ()
    if deep != (bits > 8):
        notes = (
            f"the palette says {bits} bits an entry, its entries have {16 if deep else 8}; these count.",
        )
    return table[np.clip(indices.astype(np.int64) - first, 0, entries - 1)], notes


def _descriptor(dataset: Dataset, path: Path) -> tuple[int, int, int]:
    """Number of entries, the index of the first, bits of an entry."""
    found = numbers(dataset, "RedPaletteColorLookupTableDescriptor", 3, path)
    if found is None:
        raise InputError(f"{path}: palette colours without a palette. {EXPORT_AGAIN}")
    return (int(found[0]) & 0xFFFF) or 1 << 16, int(found[1]), int(found[2]) & 0xFFFF


def _expanded(dataset: Dataset, entries: int, bits: int, path: Path, *, little: bool) -> np.ndarray:
    """(entries, 3) of a segmented palette, expanded by pydicom."""
    plain = Dataset()
    plain.file_meta = FileMetaDataset()
    plain.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    try:
        for colour in _COLOURS:
            keyword = f"Segmented{colour}PaletteColorLookupTableData"
            element = dataset[keyword]
            content = element.value if little or element.VR == "OB" else swapped(element.value)
            plain.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [entries & 0xFFFF, 0, bits])
            plain.add_new(keyword, "OW", content)
        if bits == 8 and entries > 256:
            raise ValueError("pydicom counts these indices in 8 bits")
        return np.asarray(apply_color_lut(np.arange(entries), plain))[:, :3].astype(np.int64)
    except Exception:  # noqa: BLE001  pydicom raises nearly anything on garbage
        raise InputError(f"{path}: the segmented palette cannot be expanded. {EXPORT_AGAIN}") from None
