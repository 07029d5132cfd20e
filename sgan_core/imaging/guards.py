"""What every reader guards against: headers that announce more than there is, images that show nothing."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from sgan_core.errors import InputError
from sgan_core.imaging.grid import Grid

# Longest side of a scan in mm: from a specimen to a body with its table. Beyond, its unit of length is wrong.
_SMALLEST_MM, _LARGEST_MM = 2.0, 5000.0
_LARGEST_DEFLATION = 1100  # a gzip stream cannot unpack to more times its size (zlib's limit is 1032)


class BoundedReader(io.BufferedReader):
    """A file that never makes room for more than it can hold: how much is read at a time stands in its header.

    A stream's ``read(n)`` takes n bytes of memory first, and n may be damaged.
    """

    def __init__(self, path: Path) -> None:
        packed = path.name.lower().endswith(".gz")
        self.limit = path.stat().st_size * (_LARGEST_DEFLATION if packed else 1)
        super().__init__(gzip.GzipFile(path) if packed else io.FileIO(path))

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(self.limit if size is None or size < 0 else min(size, self.limit))


def refuse_constant(array: np.ndarray, path: Path) -> None:
    """Raise InputError naming the file when every value of an image is the same."""
    if array.min() == array.max():
        raise InputError(
            f"{path}: every value is {array.flat[0]:g}; there is nothing to segment. Export the image again."
        )


def require_file(path: Path) -> None:
    """Raise InputError unless the path is a file that holds something."""
    if not path.exists():
        raise InputError(f"{path}: no such file. Check the path.")
    if path.is_dir():
        raise InputError(f"{path}: a folder, not an image file. Name one file inside it.")
    if not path.is_file():
        raise InputError(f"{path}: a pipe or device, not an image file.")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty (0 bytes). Copy or export it again.")


def damaged(path: Path, kind: str, error: Exception) -> InputError:
    """What a reader's failure means for the owner of the file."""
    if isinstance(error, PermissionError):
        return InputError(f"{path}: not allowed to read the file. Change its permissions.")
    reasons = [line.strip() for line in str(error).splitlines() if line.strip()]
    # "Reason: No such file or directory" is what ITK adds to any failure of MetaIO; the file has been opened.
    reason = f" ({reasons[-1][:160]})" if reasons and not reasons[-1].startswith("Reason: ") else ""
    return InputError(f"{path}: truncated, damaged or not a {kind} file{reason}. Copy or export it again.")


def scalar_shape(shape: tuple[int, ...], path: Path) -> tuple[int, int, int]:
    """(I, J, K) of a file's shape: axes of length 1 added or taken off at the end. Raises InputError otherwise."""
    shortest = min(shape, default=0)
    if shortest < 1:
        raise InputError(
            f"{path}: the image has an axis of length {shortest} ({times(shape)}); it holds no voxel."
        )
    if any(size != 1 for size in shape[3:]):
        raise InputError(
            f"{path}: {len(shape)}-D ({times(shape)}); one 3-D volume is needed. "
            "Export a single phase, echo or time point."
        )
    first, second, third = (*shape, 1, 1, 1)[:3]
    return first, second, third


def impossible_size(grid: Grid) -> str:
    """What is odd about the size of a scan, or ``""``: no body is 190 m or 0.4 mm long."""
    longest = float(np.max(grid.spacing_mm * grid.shape))
    if _SMALLEST_MM <= longest <= _LARGEST_MM or not np.isfinite(longest):
        return ""
    spacing = times(f"{step:.4g}" for step in grid.spacing_mm)
    return f"voxels of {spacing} mm make a scan of {longest:.4g} mm"


def times(numbers: Iterable[object]) -> str:
    """Sizes as they are written: ``5 x 4 x 3``."""
    return " x ".join(map(str, numbers))
