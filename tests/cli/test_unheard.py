"""Whoever reads what we print may leave, and the disk behind a redirection may be full: no result is lost by it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

WriteScan = Callable[..., Path]
ON_POSIX = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


@pytest.fixture
def command(tiny_bundle: Path, write_scan: WriteScan, tmp_path: Path) -> list[str]:
    """A batch of two scans and a damaged one."""
    (tmp_path / "in").mkdir()
    for name in "ab":
        write_scan(tmp_path / "in" / f"{name}.nii.gz")
    (tmp_path / "in" / "c.nii.gz").write_bytes(b"damaged")
    options = ["--output", str(tmp_path / "out"), "--quality", "fast", "--device", "cpu"]
    start = [sys.executable, "-m", "sgan_core.cli.segment", str(tmp_path / "in")]
    return [*start, "--model", str(tiny_bundle), *options]


def statuses(tmp_path: Path) -> list[str]:
    record = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    return [case["status"] for case in record["cases"]]


@ON_POSIX
@pytest.mark.parametrize("options", [[], ["--json-progress"]])
def test_full_disk_behind_stdout(options: list[str], command: list[str], tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*command, *options], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, statuses(tmp_path)) == (1, ["done", "done", "failed"])
    (said,) = [line for line in done.stderr.splitlines() if "No space left" in line]
    assert said.startswith("sgan-segment: warning: cannot ")
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@ON_POSIX
def test_full_disk_behind_stderr(command: list[str], tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, text=True, check=False)
    assert (done.returncode, statuses(tmp_path)) == (1, ["done", "done", "failed"])
    assert "a_seg.nii.gz" in done.stdout


@pytest.mark.parametrize("options", [[], ["--json-progress"]])
def test_reader_that_left(options: list[str], command: list[str], tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*command, *options], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (done.returncode, statuses(tmp_path)) == (1, ["done", "done", "failed"])
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="a shell of POSIX closes the stream")
@pytest.mark.parametrize(("closed", "options"), [("1", ["--json-progress"]), ("2", [])])
def test_closed_stream(closed: str, options: list[str], command: list[str], tmp_path: Path) -> None:
    shell = ["/bin/sh", "-c", f'"$@" {closed}>&-', "sh"]
    done = subprocess.run([*shell, *command, *options], capture_output=True, text=True, check=False)
    assert (done.returncode, statuses(tmp_path)) == (1, ["done", "done", "failed"])
    assert "Traceback" not in done.stderr


@ON_POSIX
def test_what_is_only_printed_and_cannot_be_is_an_error() -> None:
    with Path("/dev/full").open("w") as full:
        start = [sys.executable, "-m", "sgan_core.cli.info"]
        done = subprocess.run([*start, "--json"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("sgan-info: error: No space left on device")
    assert len(done.stderr.splitlines()) == 1
