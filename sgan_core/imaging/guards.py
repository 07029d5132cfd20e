"""What every reader guards against: headers that announce more than there is, images that show nothing."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np

from sgan_core.errors import InputError

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
