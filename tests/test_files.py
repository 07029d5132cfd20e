"""A file is replaced whole or not at all, and nothing else stays in its folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sgan_core.files import all_or_none, remove_unfinished, replacing


def test_new_content_takes_the_place_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")
    with replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", ["", ".nii.gz", ".png"])
def test_temporary_name_is_hidden_beside_the_target_with_the_ending_last(tmp_path: Path, suffix: str) -> None:
    with replacing(tmp_path / "result", suffix) as partial:
        assert partial.parent == tmp_path
        assert partial.name.startswith(".")
        assert partial.name.endswith(suffix)
        assert "result" not in partial.name  # its name may be as long as the file system allows
        partial.touch()


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "result"
    with replacing(path) as first, replacing(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # the outer block ends last
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_failure_keeps_the_old_file_and_leaves_no_other(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "result"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_failed_rename_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(13, "in use")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError), replacing(tmp_path / "result") as partial:
        partial.write_text("new")
    assert list(tmp_path.iterdir()) == []


def test_missing_folder_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="gone"), replacing(tmp_path / "gone" / "result") as partial:
        partial.write_text("new")


def test_a_name_as_long_as_the_file_system_allows_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 251 + ".txt")
    with replacing(path, ".txt") as partial:
        partial.write_text("new")
    assert path.read_text() == "new"


# --- several files ---------------------------------------------------------------------------------


def write(path: Path) -> Path:
    with replacing(path) as partial:
        partial.write_text("new")
    return path


def test_files_that_belong_together_stay_together(tmp_path: Path) -> None:
    with all_or_none() as together:
        for name in ("a", "b"):
            together(write(tmp_path / name))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_files_that_belong_together_vanish_together(tmp_path: Path, error: type[BaseException]) -> None:
    write(tmp_path / "other")

    def write_some() -> None:
        with all_or_none() as together:
            together(write(tmp_path / "a"))
            raise error

    with pytest.raises(error):
        write_some()
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_process_that_ends_at_once_can_clear_up(tmp_path: Path) -> None:
    write(tmp_path / "other")
    with all_or_none() as together:
        together(write(tmp_path / "a"))
    with all_or_none() as together, replacing(tmp_path / "c") as partial:
        together(write(tmp_path / "b"))
        partial.write_text("half")
        remove_unfinished()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "other"]
        partial.write_text("whole")
    remove_unfinished()  # nothing is unfinished any more
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c", "other"]
