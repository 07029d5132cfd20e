"""A file that grows record by record, so that a writer who was stopped can go on where it ended."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from sgan_core.errors import InputError

ITEMS = "items"  # the file with the items of all records
_INDEX = "records"  # the file with a line "key items checksum" for each record


@dataclass(frozen=True)
class Records:
    """The two files of a folder, opened by ``append_to``.

    A record adds some items of ``item_bytes`` bytes to the one, then a line to the index that vouches for
    them: what a stopped or killed writer leaves half done is found and cut off by ``resume``.
    """

    items: BinaryIO
    index: BinaryIO
    item_bytes: int

    def resume(self, keys: Sequence[str]) -> list[int]:
        """The number of items of each leading record that is whole and has the wanted key; the rest is cut off."""
        self.items.seek(0)
        self.index.seek(0)
        counts: list[int] = []
        end = 0
        for key, line in zip(keys, self.index, strict=False):
            count = _count(line)
            if line != _line(key, count, self.items.read(count * self.item_bytes)):
                break
            counts.append(count)
            end += len(line)
        self.index.truncate(end)
        self.items.truncate(sum(counts) * self.item_bytes)
        return counts

    def append(self, key: str, content: bytes) -> int:
        """Add a record. Returns its number of items."""
        count = len(content) // self.item_bytes
        self.items.write(content)
        self.items.flush()  # before its line
        self.index.write(_line(key, count, content))
        self.index.flush()
        return count


@contextmanager
def append_to(folder: Path, item_bytes: int) -> Iterator[Records]:
    """Open the records of a folder, new ones where it is empty."""
    with (folder / ITEMS).open("a+b") as items, (folder / _INDEX).open("a+b") as index:
        yield Records(items, index, item_bytes)


def _line(key: str, count: int, content: bytes) -> bytes:
    return f"{key} {count} {zlib.crc32(content):08x}\n".encode()


def _count(line: bytes) -> int:
    """The number of items that a line of the index tells of; 0 for half a line."""
    fields = line.split()
    return int(fields[1]) if len(fields) == 3 and fields[1].isdigit() else 0


def item_counts(folder: Path, item_bytes: int, records: int) -> list[int]:
    """The number of items of each record in a finished folder.

    Only sizes are looked at. Raises InputError when the file has not the size that the index tells.
    """
    items, index = folder / ITEMS, folder / _INDEX
    counts = [_count(line) for line in index.read_bytes().splitlines()] if index.is_file() else []
    size = items.stat().st_size if items.is_file() else -1
    if len(counts) != records or size != sum(counts) * item_bytes:
        raise InputError(f"{folder}: damaged. Delete this folder, and it is made again.")
    return counts


def written(folder: Path) -> int:
    """How many records a writer, perhaps another process, has finished."""
    try:
        return (folder / _INDEX).read_bytes().count(b"\n")
    except OSError:  # not begun yet, or just renamed
        return 0


@contextmanager
def alone(folder: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Let one process at a time into the block; the system frees the lock of one that dies.

    on_wait is called about once a second while another process is in. Raises InputError where the file
    system has no locks.
    """
    lock = FileLock(folder / "lock")
    while not lock.is_locked:
        try:
            lock.acquire(timeout=1.0, poll_interval=0.1)
        except Timeout:
            on_wait()
        except NotImplementedError:
            raise InputError(
                f"{folder}: this disk cannot lock files. Choose a folder on a local one."
            ) from None
    try:
        yield
    finally:
        lock.release()
