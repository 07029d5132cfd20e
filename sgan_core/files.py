"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: str | Path, suffix: str = "") -> Iterator[Path]:
    """A temporary name beside ``path`` that takes its place when the block succeeds, and vanishes otherwise.

    The block writes the temporary file; an older file at ``path`` stays as it is until the new one is whole.
    suffix: how the temporary name ends, e.g. ``.nii.gz``, for writers that choose the format by it.
    The folder must exist. Raises OSError when the file cannot be put in place, and whatever the block raises.
    """
    path = Path(path)
    # Beside the target, as a rename is atomic only within one file system. Hidden, so that no listing takes
    # it for a result; random, so that two processes that write one file do not meet.
    partial = path.parent / f".{secrets.token_hex(8)}.part{suffix}"
    try:
        yield partial
        os.replace(partial, path)
    finally:
        with suppress(OSError):  # the folder itself may be unusable; that error is already on its way
            partial.unlink(missing_ok=True)
