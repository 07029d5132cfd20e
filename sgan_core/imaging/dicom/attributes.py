"""Single attributes of DICOM data sets as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydicom.datadict import dictionary_description, tag_for_keyword
from pydicom.dataset import Dataset

from sgan_core.errors import InputError

LARGEST_VALUE = 1e30  # far beyond any unit, well within float32
EXPORT_AGAIN = "Export the series again."


def named(keyword: str) -> str:
    """``Rescale Slope (0028,1053)``."""
    tag = tag_for_keyword(keyword) or 0
    return f"{dictionary_description(keyword)} ({tag >> 16:04X},{tag & 0xFFFF:04X})"


def numbers(dataset: Dataset, keyword: str, count: int, path: Path) -> tuple[float, ...] | None:
    """The attribute's values; None when it is absent or empty. InputError when they are no such numbers."""
    if keyword not in dataset:
        return None
    try:
        value = dataset[keyword].value
        if value is None or value == "" or (isinstance(value, Sequence) and not len(value)):
            return None
        found = tuple(float(part) for part in (value if isinstance(value, Sequence) else [value]))
        if len(found) >= count and all(abs(number) < LARGEST_VALUE for number in found):
            return found[:count]
    except Exception:  # noqa: BLE001  pydicom raises nearly anything on garbage
        pass
    raise InputError(f"{path}: the DICOM attribute {keyword} does not hold {count} number(s). {EXPORT_AGAIN}")


def optional_number(dataset: Dataset, keyword: str) -> float | None:
    """The attribute's first value; None when it is absent, empty or no number."""
    try:
        found = numbers(dataset, keyword, 1, Path())
    except InputError:
        return None
    return found[0] if found else None


def text(dataset: Dataset, keyword: str) -> str:
    """The attribute as one printable line; empty when it is absent or cannot be read."""
    try:
        value = dataset.get(keyword)
    except Exception:  # noqa: BLE001  see numbers
        return ""
    line = "" if value is None else str(value)
    return "".join(c if c.isprintable() else " " for c in line)[:64].strip()


def words(dataset: Dataset, keyword: str, count: int, path: Path, *, little: bool) -> list[int]:
    """``count`` unsigned entries of a lookup table, 8 or 16 bits each, as its length says (PS3.5 A.3: OW in words).

    little: the byte order of the file. Raises InputError when there are fewer.
    """
    try:
        element = dataset[keyword]
        value = element.value
        if isinstance(value, bytes):
            content = value if little or element.VR == "OB" else swapped(value)
            if len(content) >= 2 * count:
                return [content[2 * n] | content[2 * n + 1] << 8 for n in range(count)]
            found = list(content)
        else:
            found = [int(part) & 0xFFFF for part in (value if isinstance(value, Sequence) else [value])]
        if len(found) >= count:
            return found[:count]
    except Exception:  # noqa: BLE001  see numbers
        pass
    raise InputError(f"{path}: the lookup table {keyword} does not hold {count} entries. {EXPORT_AGAIN}")


def swapped(content: bytes) -> bytes:
    """Words of two bytes in the other byte order."""
    content += b"\0" * (len(content) % 2)
    turned = bytearray(content)
    turned[0::2], turned[1::2] = content[1::2], content[0::2]
    return bytes(turned)
