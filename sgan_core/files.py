"""Files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FINISHED = ".finished"  # the folder of results that has a note for each finished case

# What is incomplete at this moment, for a process that must end at once: see ``remove_unfinished``.
_unfinished: set[Path] = set()


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
    _unfinished.add(partial)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        _remove(partial)
        _unfinished.discard(partial)


def is_partial(name: str) -> bool:
    """Whether a file is called as ``replacing`` calls one that is being written, which a killed process leaves."""
    return re.match(r"\.[0-9a-f]{16}\.part", name) is not None


@contextmanager
def all_or_none() -> Iterator[Callable[[Path], None]]:
    """Files that are complete only together: those told to the function it gives vanish when the block fails."""
    told: list[Path] = []

    def tell(path: Path) -> None:
        told.append(path)
        _unfinished.add(path)

    try:
        yield tell
    except BaseException:
        for path in told:
            _remove(path)
        raise
    finally:
        _unfinished.difference_update(told)


@contextmanager
def unfinished(path: Path) -> Iterator[None]:
    """A file that is of no use when the process ends within the block."""
    _unfinished.add(path)
    try:
        yield
    finally:
        _unfinished.discard(path)


def remove_unfinished() -> None:
    """Remove what the blocks above would remove if they failed now: for a process that ends without unwinding."""
    for path in list(_unfinished):
        _remove(path)


def _remove(path: Path) -> None:
    with suppress(OSError):  # the folder itself may be unusable; that error is already on its way
        path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def keep(path: Path) -> None:
    """Return only when a file's content is on the disk, so that a power cut cannot take it. Raises OSError."""
    handle = os.open(path, os.O_RDWR)  # Windows flushes only what may be written
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
