"""The end of stdin interrupts the work, and nothing else."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import pytest

from sgan_core.cli import app
from sgan_core.cli.cancel import cancelled_at_eof


@pytest.fixture
def caller(monkeypatch: pytest.MonkeyPatch) -> Iterator[BinaryIO]:
    """The other end of stdin."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as stdin, os.fdopen(writing, "wb") as stream:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield stream


def not_called() -> None:
    raise AssertionError


def outcome(work: object) -> int:
    """The exit code of a command that does some work while the end of stdin is watched."""

    def command(options: argparse.Namespace) -> None:
        with cancelled_at_eof(not_called):
            work()

    return app.run(command, app.Parser("sgan-test"), [])


@contextmanager
def no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def test_end_of_stdin_interrupts(caller: BinaryIO) -> None:
    def work() -> None:
        caller.close()
        began = time.monotonic()
        while time.monotonic() - began < 10.0:
            pass

    began = time.monotonic()
    with no_thread_is_left():
        assert outcome(work) == app.CANCELLED
    assert time.monotonic() - began < 1.0


def test_input_that_goes_on_does_not_interrupt(caller: BinaryIO) -> None:
    def work() -> None:
        for _ in range(5):
            caller.write(b"still here\n")
            caller.flush()
            time.sleep(0.1)

    with no_thread_is_left():
        assert outcome(work) == app.DONE


def test_what_comes_after_the_command_is_not_interrupted(caller: BinaryIO) -> None:
    with no_thread_is_left():
        assert outcome(lambda: None) == app.DONE
    caller.close()
    time.sleep(0.3)  # three looks of a watcher, had it stayed


def test_input_after_the_command_is_left_to_others(caller: BinaryIO) -> None:
    assert outcome(lambda: None) == app.DONE
    caller.write(b"for others\n")
    caller.flush()
    time.sleep(0.3)
    assert sys.stdin.readline() == "for others\n"


def test_what_an_interrupted_import_raises_is_a_cancellation(caller: BinaryIO) -> None:
    def work() -> None:
        caller.close()
        try:
            time.sleep(0.5)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None

    assert outcome(work) == app.CANCELLED


def test_own_errors_stay_errors(caller: BinaryIO) -> None:
    def work() -> None:
        raise ImportError("no such module")

    assert outcome(work) == app.INTERNAL_ERROR


STUBBORN = """
import sys, time
from sgan_core.cli import app
from sgan_core.cli.cancel import cancelled_at_eof

def command(options):
    with cancelled_at_eof(lambda: print("cleared up", flush=True)):
        while True:
            try:
                print("ready", flush=True)
                while True:  # inside, or the interruption may fall between two rounds
                    time.sleep(0.01)
            except KeyboardInterrupt:
                print("interrupted", flush=True)

app.run(command, app.Parser("sgan-test"), [])
"""


def test_process_that_goes_on_is_ended_after_a_moment() -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", STUBBORN], text=True, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        process.stdin.close()
        began = time.monotonic()
        assert process.stdout.read().splitlines() == ["interrupted", "ready", "cleared up"]
        assert process.wait() == app.CANCELLED
        assert 1.2 < time.monotonic() - began < 2.0
