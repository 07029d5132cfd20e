"""A batch that is killed and started again, through the console."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest


def killed_after(cases: int, command: list[str]) -> None:
    """Start sgan-segment and end it with SIGKILL once it has told of so many cases."""
    process = subprocess.Popen([*command, "--json-progress"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = 0
    for line in process.stdout:
        told += json.loads(line)["event"] == "case"
        if told == cases:
            process.kill()
            break
    process.stdout.close()
    assert process.wait(60) == -signal.SIGKILL


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL on Windows")
def test_killed_batch_goes_on_and_takes_no_result_for_an_image(
    tiny_bundle: Path, write_scan: Callable[..., Path], tmp_path: Path
) -> None:
    """The worst place for results: the folder of the scans."""
    for name in "abcd":
        write_scan(tmp_path / f"{name}.nii.gz")
    command = [sys.executable, "-m", "sgan_core.cli.segment", str(tmp_path), "--model", str(tiny_bundle)]
    command += ["--output", str(tmp_path), "--quality", "fast", "--device", "cpu", "--probabilities"]
    killed_after(2, command)
    assert not (tmp_path / "run.json").exists()
    began = time.time_ns()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    cases = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["cases"]
    assert [case["case"] for case in cases] == ["a", "b", "c", "d"]
    assert [case["skipped"] for case in cases][:2] == [True, True]
    assert (
        (tmp_path / "a_seg.nii.gz").stat().st_mtime_ns
        < began
        < (tmp_path / "d_seg.nii.gz").stat().st_mtime_ns
    )
    assert re.search(r"kept .*--redo computes", done.stderr)
