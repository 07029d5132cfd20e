"""Several processes that work through a list, in order."""

from __future__ import annotations

import math
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch

import sgan_core
from sgan_core.training.workers import available_cores, in_order


def test_results_come_in_the_order_of_their_items():
    seconds = [0.2] + [0.0] * 11  # the first is the last to be ready
    assert list(in_order(time.sleep, seconds, processes=2)) == [None] * 12
    assert list(in_order(math.sqrt, range(20), processes=2)) == [math.sqrt(n) for n in range(20)]
    assert multiprocessing.active_children() == []


def test_items_are_taken_only_when_there_is_room_for_their_results():
    taken = []
    results = in_order(math.sqrt, (taken.append(n) or n for n in range(100)), processes=2)
    for _ in range(10):
        next(results)
    results.close()
    assert len(taken) <= 10 + 3 * 2


def test_closing_ends_the_processes_at_once():
    results = in_order(time.sleep, [0, 60, 60, 60], processes=2)
    next(results)
    began = time.monotonic()
    results.close()
    assert time.monotonic() - began < 10
    assert multiprocessing.active_children() == []


def test_an_error_is_raised_at_its_turn():
    results = in_order(math.sqrt, [4, -1, 9], processes=2)
    assert next(results) == 2
    with pytest.raises(ValueError, match="math domain|nonnegative"):
        next(results)
    assert multiprocessing.active_children() == []


def test_a_process_that_dies_is_noticed():
    with pytest.raises(BrokenProcessPool):
        list(in_order(os._exit, [1], processes=2))


def test_processes_have_one_thread_each_and_leave_our_settings_alone(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", raising=False)
    names = ["OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"]
    assert list(in_order(os.getenv, names, processes=1)) == ["1", "1"]
    assert list(in_order(_threads_of_torch, [None], processes=1)) == [1]
    assert [os.getenv(name) for name in names] == ["7", None]


def _threads_of_torch(_: None) -> int:
    return torch.get_num_threads()


def test_a_script_without_guard_is_not_run_again_by_each_process(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import math\n"
        "from sgan_core.training.workers import in_order\n"
        "print('began', flush=True)\n"
        "print(list(in_order(math.sqrt, [4, 9, 16], processes=2)))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(sgan_core.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, str(script)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.stdout.splitlines(), done.stderr) == (["began", "[2.0, 3.0, 4.0]"], "")


def test_cores_of_this_process():
    assert 1 <= available_cores() <= (os.cpu_count() or 1)
