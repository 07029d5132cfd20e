"""A file that grows record by record and survives its writer's end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sgan_core.errors import InputError
from sgan_core.training.records import alone, append_to, item_counts, written

BYTES = 3
KEYS = ("a", "b", "c")
CONTENTS = [b"AAA", b"BBBbbb", b"CCC"]  # b has two items


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """All three records."""
    with append_to(tmp_path, BYTES) as records:
        assert [records.append(key, content) for key, content in zip(KEYS, CONTENTS, strict=True)] == [
            1,
            2,
            1,
        ]
    return tmp_path


def _resumed(folder: Path, keys: tuple[str, ...] = KEYS) -> list[int]:
    with append_to(folder, BYTES) as records:
        counts = records.resume(keys)
        for key, content in list(zip(keys, CONTENTS, strict=False))[len(counts) :]:
            records.append(key, content)
    assert (folder / "items").read_bytes() == b"AAABBBbbbCCC"
    assert item_counts(folder, BYTES, len(keys)) == [1, 2, 1]
    return counts


def test_whole_records_are_taken_over(folder):
    assert _resumed(folder) == [1, 2, 1]
    assert written(folder) == 3


@pytest.mark.parametrize(("name", "size"), [("items", 10), ("items", 9), ("records", -1), ("records", -5)])
def test_a_record_cut_short_is_written_again(folder, name, size):
    file = folder / name
    os.truncate(file, size if size > 0 else file.stat().st_size + size)
    assert _resumed(folder) == [1, 2]


def test_bytes_without_their_line_are_cut_off(folder):
    with (folder / "items").open("ab") as file:
        file.write(b"half")
    assert _resumed(folder) == [1, 2, 1]


def test_changed_bytes_are_written_again(folder):
    with (folder / "items").open("r+b") as file:
        file.seek(4)
        file.write(b"x")
    assert _resumed(folder) == [1]


@pytest.mark.parametrize("line", [b"b 2\n", b"b two 00000000\n", b"\xff\xfe\n", b"\n"])
def test_a_line_that_makes_no_sense_ends_what_is_taken_over(folder, line):
    lines = (folder / "records").read_bytes().splitlines(keepends=True)
    (folder / "records").write_bytes(lines[0] + line + lines[2])
    assert _resumed(folder) == [1]


def test_another_key_ends_what_is_taken_over(folder):
    assert _resumed(folder, ("a", "other", "c")) == [1]


def test_nothing_is_taken_over_from_an_empty_folder(tmp_path):
    assert written(tmp_path) == 0
    assert _resumed(tmp_path) == []


@pytest.mark.parametrize("name", ["items", "records"])
@pytest.mark.parametrize("change", [lambda file: os.truncate(file, 1), os.unlink], ids=["cut", "gone"])
def test_a_damaged_finished_folder_is_an_input_error(folder, name, change):
    change(folder / name)
    with pytest.raises(InputError, match="damaged. Delete this folder") as caught:
        item_counts(folder, BYTES, 3)
    assert str(folder) in str(caught.value)


def test_one_at_a_time(tmp_path):
    class Waiting(Exception):
        pass

    def refuse() -> None:
        raise Waiting

    with alone(tmp_path, refuse), pytest.raises(Waiting), alone(tmp_path, refuse):
        pass
    with alone(tmp_path, refuse):
        pass
