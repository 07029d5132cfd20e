"""Files that grow record by record, so that a writer who was stopped can go on where it ended."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from sgan_core.errors import InputError

_INDEX = "records"  # the file with a line "key items checksum" for each record


class Records:
    """Files of one folder that grow together; use as a context manager.

    A record adds some items to each file, of a fixed number of bytes an item, then a line to the index that
    vouches for them: what a stopped or killed writer leaves half done is found and cut off by ``resume``.
    """

    def __init__(self, folder: Path, item_bytes: Mapping[str, int]) -> None:
        """item_bytes: name of each file and the size of its items."""
        self.item_bytes = tuple(item_bytes.values())
        self._opened = ExitStack()
        with ExitStack() as opening:
            self._files = [opening.enter_context((folder / name).open("a+b")) for name in item_bytes]
            self._index = opening.enter_context((folder / _INDEX).open("a+b"))
            self._opened = opening.pop_all()

    def __enter__(self) -> Records:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._opened.close()

    def resume(self, keys: Sequence[str]) -> list[int]:
        """The number of items of each leading record that is whole and has the wanted key; the rest is cut off."""
        for file in (*self._files, self._index):
            file.seek(0)
        counts: list[int] = []
        end = 0
        for key, line in zip(keys, self._index, strict=False):
            count = _items(line)
            contents = [
                file.read(count * size) for file, size in zip(self._files, self.item_bytes, strict=True)
            ]
            if line != _line(key, count, contents):
                break
            counts.append(count)
            end += len(line)
        self._index.truncate(end)
        for file, size in zip(self._files, self.item_bytes, strict=True):
            file.truncate(sum(counts) * size)
        return counts

    def append(self, key: str, contents: Sequence[bytes]) -> int:
        """Add a record: its bytes for each file. Returns the number of items."""
        count = len(contents[0]) // self.item_bytes[0]
        line = _line(key, count, contents)
        for file, content in zip((*self._files, self._index), (*contents, line), strict=True):
            file.write(content)
            file.flush()  # in this order: the line comes last
        return count


def _line(key: str, count: int, contents: Sequence[bytes]) -> bytes:
    check = 0
    for content in contents:
        check = zlib.crc32(content, check)
    return f"{key} {count} {check:08x}\n".encode()


def _items(line: bytes) -> int:
    """The number of items that a line of the index tells of; 0 for half a line."""
    fields = line.split()
    return int(fields[1]) if len(fields) == 3 and fields[1].isdigit() else 0


def item_counts(folder: Path, item_bytes: Mapping[str, int], records: int) -> list[int]:
    """The number of items of each record in a finished folder.

    Only sizes are looked at. Raises InputError when a file has not the size that the index tells.
    """
    index = folder / _INDEX
    counts = [_items(line) for line in index.read_bytes().splitlines()] if index.is_file() else []
    files = [folder / name for name in item_bytes]
    sizes = [file.stat().st_size if file.is_file() else -1 for file in files]
    if len(counts) != records or sizes != [sum(counts) * size for size in item_bytes.values()]:
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
    while True:
        try:
            lock.acquire(timeout=1.0, poll_interval=0.1)
            break
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
