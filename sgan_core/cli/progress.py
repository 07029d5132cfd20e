"""Progress on the terminal: a bar for people, lines for log files, JSON for programs."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO

from sgan_core import __version__
from sgan_core.cli import app
from sgan_core.errors import Cancelled

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 30.0
# Of paced events
_AT_MOST_EVERY_S = 1.0
_AT_LEAST_EVERY_S = 10.0
_BELOW_NORMAL_PRIORITY_CLASS = 0x4000  # of Windows


def add_program_options(parser: argparse.ArgumentParser) -> None:
    """The options of commands that other programs start, for ``telling``."""
    add = parser.add_argument
    add("--json-progress", action="store_true", help="one JSON object a line on stdout, for programs")
    add("--low-priority", action="store_true", help="let other programs have the processor first")


@contextmanager
def telling(args: argparse.Namespace, *, paced: bool = False) -> Iterator[Progress]:
    """The progress of a command that has ``add_program_options``: the event hello, and error when the block fails."""
    if args.low_priority:
        step_back()
    with Progress(as_json=args.json_progress, paced=paced) as progress:
        progress.event("hello", pid=os.getpid(), tool_version=__version__)
        try:
            yield progress
        except (Exception, KeyboardInterrupt) as error:
            ended = app.failure(error, debug=args.debug)
            message = f"cancelled: {ended.message}" if isinstance(error, Cancelled) else ended.message
            if isinstance(error, KeyboardInterrupt):
                message = "cancelled"
            progress.event("error", message=message, details=ended.details, code=ended.code)
            raise


def step_back() -> None:
    """Let other programs have the processor first: without it the windows of who started us stutter."""
    if sys.platform == "win32":
        import ctypes

        kernel = ctypes.windll.kernel32
        kernel.SetPriorityClass(kernel.GetCurrentProcess(), _BELOW_NORMAL_PRIORITY_CLASS)
    else:
        os.nice(10)


class Progress:
    """Receives ``on_progress(done, total, message)``; use as a context manager.

    A bar with time left on a terminal (stderr), else a line now and then. With ``as_json`` one object a line
    on stdout instead, as in "--json-progress". When nobody reads it any more, or the disk behind it is full, the work
    goes on in silence.

    paced: for events that fill a file over hours. At most one of progress a second; and when there was none for ten,
    the last one again, so that who reads the file knows that the process lives.
    """

    def __init__(self, *, as_json: bool = False, paced: bool = False, stream: TextIO | None = None) -> None:
        self.as_json, self.paced = as_json, paced
        self.stream: TextIO | None = stream or sys.stderr
        self._bar: Any = None
        self._task: Any = None
        self._last = self._began = time.monotonic()
        self._first: tuple[int, str] | None = None
        self._unheard = False
        self._stage: str | None = None
        self._ends: float | None = None
        self._lock = threading.RLock()  # of what follows, and of stdout
        self._latest: tuple[int, int, str] | None = None
        self._sent = -math.inf
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Progress:
        if not self.as_json and self.stream is not None and self.stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}", markup=False),  # file names may hold brackets
            )
            self._bar = Bar(*columns, console=Console(file=self.stream), transient=True)
            self._bar.start()
        if self.as_json and self.paced:
            self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._over.set()
        if self._heart.is_alive():
            self._heart.join()

    def stage(self, name: str, ends: float | None = None) -> None:
        """A part of the work begins, with a count of its own. ends: time.monotonic() at which its time is up."""
        self._stage, self._ends = name, ends
        if self.as_json:
            self(0, 0, "starting")
        self._first = None  # to begin is no speed

    def event(self, name: str, **facts: Any) -> None:
        """Send an event of the JSON protocol; without ``as_json`` nothing."""
        if self.as_json:
            with self._lock:
                self._write(sys.stdout, json.dumps({"event": name, **facts}) + "\n")

    def __call__(self, done: int, total: int, message: str) -> None:
        """Show that ``done`` of ``total`` is reached; a total of 0 is not known."""
        now = time.monotonic()
        if self.as_json:
            with self._lock:
                self._latest = done, total, message
                self._count(done, message, now)
                if not self.paced or now - self._sent >= _AT_MOST_EVERY_S:
                    self._send(now)
            return
        self._count(done, message, now)
        left = self._left(done, total, now)
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task(message, total=total)
            self._bar.update(self._task, completed=done, total=total, description=message)
        elif now - self._last > _SECONDS_BETWEEN_LINES or done == total:
            eta = f", about {math.ceil(left / 60)} min left" if left else ""
            self._write(self.stream, f"{done}/{total} {message}{eta}\n")
            self._last = now

    def _count(self, done: int, message: str, now: float) -> None:
        if self._first is None or done < self._first[0]:
            self._first, self._began = (done, message), now

    def _send(self, now: float) -> None:
        assert self._latest is not None
        done, total, message = self._latest
        stage = {} if self._stage is None else {"stage": self._stage}
        left = self._left(done, total, now)
        self.event("progress", **stage, done=done, total=total, message=message, eta_s=left)
        self._sent = now

    def _beat(self) -> None:
        while not self._over.wait(_AT_MOST_EVERY_S):
            with self._lock:
                now = time.monotonic()
                if self._latest is not None and now - self._sent >= _AT_LEAST_EVERY_S:
                    self._send(now)

    def _write(self, stream: TextIO | None, text: str) -> None:
        if self._unheard or stream is None:  # None: started with the stream closed, or without a console
            return
        try:
            stream.write(text)
            stream.flush()
        except OSError as error:
            self._unheard = True
            log.warning("cannot tell of the progress any more (%s); the work goes on", error.strerror)

    def _left(self, done: int, total: int, now: float) -> float | None:
        assert self._first is not None
        progress = done - self._first[0]
        by_count = (now - self._began) / progress * (total - done) if progress and total else math.inf
        by_time = math.inf if self._ends is None else max(0.0, self._ends - now)
        left = min(by_count, by_time)
        return round(left, 1) if math.isfinite(left) else None
