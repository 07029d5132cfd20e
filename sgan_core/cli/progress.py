"""Progress on the terminal: a bar for people, lines for log files, JSON for programs."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from types import TracebackType
from typing import Any, TextIO

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Receives ``on_progress(done, total, message)``; use as a context manager.

    A bar with time left on a terminal (stderr), else a line now and then. With ``as_json`` one object a line
    on stdout instead, as in "--json-progress". When nobody reads it any more, or the disk behind it is full, the work
    goes on in silence.
    """

    def __init__(self, *, as_json: bool = False, stream: TextIO | None = None) -> None:
        self.as_json = as_json
        self.stream: TextIO | None = stream or sys.stderr
        self._bar: Any = None
        self._task: Any = None
        self._last = self._began = time.monotonic()
        self._first: tuple[int, str] | None = None
        self._unheard = False

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
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def event(self, name: str, **facts: Any) -> None:
        """Send an event of the JSON protocol; without ``as_json`` nothing."""
        if self.as_json:
            self._write(sys.stdout, json.dumps({"event": name, **facts}) + "\n")

    def __call__(self, done: int, total: int, message: str) -> None:
        """Show that ``done`` of ``total`` is reached."""
        now = time.monotonic()
        if self._first is None or done < self._first[0]:
            self._first, self._began = (done, message), now
        left = self._left(done, total, now)
        if self.as_json:
            self.event("progress", done=done, total=total, message=message, eta_s=left)
        elif self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task(message, total=total)
            self._bar.update(self._task, completed=done, total=total, description=message)
        elif now - self._last > _SECONDS_BETWEEN_LINES or done == total:
            eta = f", about {math.ceil(left / 60)} min left" if left else ""
            self._write(self.stream, f"{done}/{total} {message}{eta}\n")
            self._last = now

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
        return round((now - self._began) / progress * (total - done), 1) if progress else None
