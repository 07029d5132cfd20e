"""Runs the engine beside Slicer: a child process that is watched by Qt's event loop, so the window never waits."""

import json
import logging
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass

import qt
from slicer.i18n import tr as _

DONE, CANCELLED, FAILED = "done", "cancelled", "failed"

# The worker ends by itself when its input ends, within 1.5 s; what is left then is killed.
_PATIENCE_MSEC = 1600
_LONGEST_LINE = 1 << 20  # bytes; a longer "line" is no message of ours
_KEPT_OUTPUT = 4000  # bytes of other output, to show when the worker fails
_TASKKILL_SECONDS = 5.0
_NO_WINDOW = 0x08000000  # CREATE_NO_WINDOW of Windows, which subprocess has a name for only there
_KILLED = 137  # 128 + SIGKILL: what a launcher answers when the system killed what it had launched


@dataclass(frozen=True)
class Outcome:
    """How a worker ended: status is DONE, CANCELLED or FAILED; message for the user; details to unfold."""

    status: str
    message: str = ""
    details: str = ""


class Worker:
    """One run of a program that prints JSON objects, a line each, such as ``sgan-segment --json-progress``.

    onEvent(event: dict) gets each object; onFinished(outcome: Outcome) is called exactly once, after the last event.
    Lines that are not JSON are kept for the error message. plain: for a program of another kind, such as pip: its
    lines are events {"event": "line", "text": ...}, and it succeeded when its exit code is 0. What it says beside that,
    such as warnings of libraries, goes to onText(text: str), as it comes.
    """

    def __init__(self, onEvent, onFinished, plain=False, patienceMsec=_PATIENCE_MSEC, onText=None):
        self._onEvent, self._onFinished, self._plain = onEvent, onFinished, plain
        self._onText = onText
        self._cancelled = self._ended = False
        self._line, self._other = b"", b""
        self._error = None  # the worker's own last word
        self._done = False
        self._process = qt.QProcess()
        self._process.readyReadStandardOutput.connect(self._readOutput)
        self._process.readyReadStandardError.connect(self._readErrors)
        self._process.finished.connect(self._processFinished)
        self._process.errorOccurred.connect(self._processFailed)
        self._deadline = qt.QTimer()
        self._deadline.setSingleShot(True)
        self._deadline.setInterval(patienceMsec)
        self._deadline.timeout.connect(self.kill)

    def start(self, program, arguments):
        """Start ``program`` with ``arguments``; returns at once."""
        environment = qt.QProcessEnvironment.systemEnvironment()
        environment.insert("PYTHONUTF8", "1")  # file names and messages, whatever the system's code page is
        environment.insert("PYTHONSAFEPATH", "1")  # no modules from the folder that Slicer was started in
        self._process.setProcessEnvironment(environment)
        self._process.start(program, [str(argument) for argument in arguments])

    def isRunning(self):
        return not self._ended

    def pid(self):
        """Process id of what was started: in Slicer the launcher PythonSlicer, whose child is the worker. 0: none."""
        return 0 if self._ended else int(self._process.processId())

    def cancel(self):
        """Ask the worker to end by closing its input; it is killed when it does not. Returns at once."""
        if self._ended or self._cancelled:
            return
        self._cancelled = True
        self._process.closeWriteChannel()
        self._deadline.start()

    def kill(self):
        """End the worker with everything that it has started, now."""
        if not self._ended:
            self._cancelled = True
            killTree(self.pid())
            self._process.kill()

    def abandon(self):
        """End the worker now and tell nobody: the scene or the application goes away. Waits a moment for its end."""
        if not self._ended:
            self.kill()
            self._ended = True
            self._process.waitForFinished(1000)
            self._letGo()

    def _letGo(self):
        """Hold nothing any more, nor be held.

        PythonQt keeps a method that is connected for as long as the sender lives, and with it the volume of the run.
        Senders go with the next event, not at once: one of them may be waiting for its own signal to return.
        """
        self._deadline.stop()
        self._onEvent = self._onFinished = self._onText = None
        for sender in (self._process, self._deadline):
            sender.deleteLater()

    # --- what the process says

    def _readOutput(self):
        *lines, self._line = (self._line + _bytes(self._process.readAllStandardOutput())).split(b"\n")
        if len(self._line) > _LONGEST_LINE:
            self._keep(self._line)
            self._line = b""
        for line in lines:
            self._take(line.strip())

    def _take(self, line):
        if self._plain:
            self._keep(line + b"\n")
            self._tell({"event": "line", "text": line.decode("utf-8", "replace")})
            return
        try:
            event = json.loads(line) if line.startswith(b"{") else None
        except ValueError:
            event = None
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            self._keep(line + b"\n")
            return
        if event["event"] == "error":
            self._error = event
        elif event["event"] == "done":
            self._done = True
        self._tell(event)

    def _tell(self, event):
        if self._cancelled:
            return
        try:
            self._onEvent(event)
        except (
            Exception
        ) as error:  # an event without what belongs to it; the end of the run must be told all the same
            logging.exception("SemanticGAN")
            message = _("The engine said something unexpected ({event}: {reason}). Are its versions mixed?")
            self._error = {
                "message": message.format(
                    event=event["event"], reason=f"{type(error).__name__} {error}".strip()
                )
            }

    def _readErrors(self):
        output = _bytes(self._process.readAllStandardError())
        self._keep(output)
        if self._onText is not None and output:
            self._onText(output.decode("utf-8", "replace"))

    def _keep(self, output):
        self._other = (self._other + output)[-_KEPT_OUTPUT:]

    # --- how the process ends

    def _processFailed(self, *unused):
        # Other errors are followed by ``finished``.
        if self._process.error() == qt.QProcess.FailedToStart:
            self._finish(Outcome(FAILED, _("The worker could not be started."), self._process.program()))

    def _processFinished(self, *unused):
        self._readOutput()
        self._readErrors()
        if self._line:
            self._take(self._line.strip())
        self._finish(self._outcome())

    def _outcome(self):
        crashed = self._process.exitStatus() == qt.QProcess.CrashExit
        code = self._process.exitCode()
        details = self._other.decode("utf-8", "replace").strip()
        if self._cancelled:
            return Outcome(CANCELLED)
        if self._error and not crashed:
            more = self._error.get("details") or ""
            return Outcome(
                FAILED, str(self._error.get("message", "")), "\n\n".join(filter(None, (more, details)))
            )
        if crashed or code == _KILLED:
            message = _(
                "The worker was ended by the system, as happens when memory runs out. Close other "
                'programs, segment a region, or choose the quality "fast".'
            )
            return Outcome(FAILED, message, details)
        if self._done or (
            self._plain and code == 0
        ):  # also with code 1: some inputs of a batch failed, each with its own reason
            return Outcome(DONE, details=details)
        return Outcome(
            FAILED, _("The worker ended without a result (exit code {code}).").format(code=code), details
        )

    def _finish(self, outcome):
        if self._ended:
            return
        self._ended = True
        if outcome.status == FAILED:
            logging.error("SemanticGAN worker: %s", outcome.message)
        onFinished = self._onFinished
        self._letGo()
        onFinished(outcome)


def _bytes(array):
    return bytes(array.data())


class Steps:
    """Runs a generator piece by piece between events, so that the window answers in the meantime.

    onFinished(result, error): what the generator returned, or the exception that it raised.
    """

    def __init__(self, generator, onFinished):
        self._generator, self._onFinished = generator, onFinished
        self._timer = qt.QTimer()
        self._timer.setInterval(0)
        self._timer.timeout.connect(self._next)
        self._timer.start()

    def stop(self):
        """Go no further; onFinished is not called."""
        if self._generator is not None:
            generator = self._generator
            self._letGo()
            generator.close()

    def _next(self):
        try:
            next(self._generator)
        except StopIteration as end:
            self._end(end.value, None)
        except Exception as error:
            logging.exception("SemanticGAN")
            self._end(None, error)

    def _end(self, result, error):
        onFinished = self._onFinished
        self._letGo()
        onFinished(result, error)

    def _letGo(self):
        """As of ``Worker``: what the generator holds is a volume."""
        self._timer.stop()
        self._timer.deleteLater()
        self._generator = self._onFinished = None


# --- ending a tree of processes ---


def killTree(pid):
    """Kill a process and all that it started. On Windows through taskkill, as there are no signals."""
    if pid <= 0:  # it never started
        return
    if os.name == "nt":
        # Waited for: the tree is found through the launcher, which is killed next.
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                ["taskkill", "/PID", str(pid), "/T", "/F"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=_TASKKILL_SECONDS,
                creationflags=_NO_WINDOW,
                check=False,
            )
        return
    for one in _withDescendants(pid):
        # It may have ended by itself, and its number belong to somebody else by now.
        with suppress(ProcessLookupError, PermissionError):
            os.kill(one, signal.SIGKILL)


def _withDescendants(pid):
    """A process and all below it, the youngest first. ps is on every Linux and macOS."""
    table = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=False
    ).stdout
    children = {}
    for line in table.splitlines():
        child, parent = map(int, line.split())
        children.setdefault(parent, []).append(child)
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        found.append(one)
        waiting += children.get(one, [])
    return found[::-1]


_UNTIL_EOF = os.path.join(os.path.dirname(os.path.abspath(__file__)), "until_eof.py")


def untilEof(arguments):
    """Arguments for Python that run ``arguments`` in a child which ends when its input ends, as on ``cancel``."""
    return [_UNTIL_EOF, *arguments]


def pythonProgram():
    """Slicer's Python. Raises RuntimeError when there is none.

    In Slicer this is PythonSlicer, which its start puts on the PATH; ``sys.executable`` is Slicer itself there.
    """
    from shutil import which

    found = which("PythonSlicer")
    if found:
        return found
    if "python" in os.path.basename(sys.executable).lower():
        return sys.executable  # Slicer's modules in a plain Python
    raise RuntimeError(_("PythonSlicer was not found beside Slicer. Please install Slicer again."))
