"""The worker process: events, ends, cancellation of a whole tree, bad output."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import FAKE_WORKER, is_alive

import standin
from SemanticGANSlicerLib import process


class Run:
    """A worker of ``fake_worker.py`` with what it said."""

    def __init__(self, mode: str, tmp_path: Path, **options: Any) -> None:
        self.events: list[dict[str, Any]] = []
        self.outcomes: list[process.Outcome] = []
        self.worker = process.Worker(self.events.append, self.outcomes.append, **options)
        arguments = [FAKE_WORKER, mode, tmp_path / "no file", "--output", tmp_path / "out"]
        self.worker.start(sys.executable, arguments)

    def heard(self, name: str) -> dict[str, Any] | None:
        return next((event for event in self.events if event["event"] == name), None)

    def outcome(self, seconds: float = 20) -> process.Outcome:
        standin.pump(lambda: self.outcomes, seconds)
        for _ in range(5):
            standin.pump(lambda: True)
        assert len(self.outcomes) == 1  # exactly once
        assert not self.worker.isRunning()
        return self.outcomes[0]


def test_error_of_the_worker_is_the_message(tmp_path: Path) -> None:
    outcome = Run("error", tmp_path).outcome()
    assert (outcome.status, outcome.message) == (process.FAILED, "scan.nii: broken. Mend it.")
    assert "line one" in outcome.details
    assert "a warning on the way" in outcome.details


def test_traceback_without_an_error_event_is_kept(tmp_path: Path) -> None:
    outcome = Run("internal", tmp_path).outcome()
    assert outcome.status == process.FAILED
    assert "70" in outcome.message
    assert "our fault" in outcome.details


def test_killed_worker_speaks_of_memory(tmp_path: Path) -> None:
    outcome = Run("killed", tmp_path).outcome()
    assert outcome.status == process.FAILED
    assert "memory" in outcome.message


def test_kill_through_a_launcher_speaks_of_memory() -> None:
    """PythonSlicer, a launcher, answers 137 when what it launched was killed."""
    outcomes: list[process.Outcome] = []
    worker = process.Worker(lambda event: None, outcomes.append)
    worker.start(sys.executable, ["-c", "raise SystemExit(137)"])
    standin.pump(lambda: outcomes, 20)
    assert "memory" in outcomes[0].message


def test_missing_program_is_told(tmp_path: Path) -> None:
    outcomes: list[process.Outcome] = []
    worker = process.Worker(lambda event: None, outcomes.append)
    worker.start(str(tmp_path / "no such program"), [])
    standin.pump(lambda: outcomes)
    assert outcomes[0].status == process.FAILED
    assert "could not be started" in outcomes[0].message
    assert "no such program" in outcomes[0].details


def test_garbage_is_no_event_and_no_result(tmp_path: Path) -> None:
    run = Run("garbage", tmp_path)
    outcome = run.outcome()
    assert outcome.status == process.FAILED
    assert "without a result" in outcome.message
    assert [event["event"] for event in run.events] == ["hello", "start", "progress"]
    assert 0 < len(outcome.details) <= 4000


def test_an_event_that_cannot_be_understood_ends_in_an_error_not_in_silence() -> None:
    """A "start" without its labels, of another version: there would be a result without segments."""
    outcomes: list[process.Outcome] = []
    worker = process.Worker(lambda event: event["labels"], outcomes.append)
    said = '{"event": "start"}\\n{"event": "done", "labels": []}'
    worker.start(sys.executable, ["-c", f"print('{said}')"])
    standin.pump(lambda: outcomes, 20)
    assert outcomes[0].status == process.FAILED
    assert "something unexpected (start: KeyError 'labels')" in outcomes[0].message


def test_silence_is_no_result(tmp_path: Path) -> None:
    assert Run("silent", tmp_path).outcome().status == process.FAILED


def test_cancel_closes_the_input_and_waits(tmp_path: Path) -> None:
    run = Run("listens", tmp_path)
    standin.pump(lambda: run.heard("progress"))
    began = time.monotonic()
    run.worker.cancel()
    assert run.outcome().status == process.CANCELLED
    assert time.monotonic() - began < 1.5  # by itself, before it would be killed
    assert run.heard("error") is None  # nothing is told after a cancellation


def test_cancel_kills_what_does_not_listen_with_its_children(tmp_path: Path) -> None:
    run = Run("deaf", tmp_path)
    standin.pump(lambda: run.heard("start"))
    pids = [run.worker.pid(), run.heard("start")["child"]]
    assert all(is_alive(pid) for pid in pids)
    began = time.monotonic()
    run.worker.cancel()
    assert run.outcome().status == process.CANCELLED
    assert time.monotonic() - began < 2.0
    standin.pump(lambda: not any(is_alive(pid) for pid in pids), 2)


def test_abandoned_worker_says_nothing_more(tmp_path: Path) -> None:
    run = Run("deaf", tmp_path)
    standin.pump(lambda: run.heard("start"))
    pids = [run.worker.pid(), run.heard("start")["child"]]
    run.worker.abandon()
    assert not run.worker.isRunning()
    standin.pump(lambda: not any(is_alive(pid) for pid in pids), 2)
    assert not run.outcomes


def test_kill_is_immediate(tmp_path: Path) -> None:
    run = Run("deaf", tmp_path)
    standin.pump(lambda: run.heard("start"))
    began = time.monotonic()
    run.worker.kill()
    assert run.outcome().status == process.CANCELLED
    assert time.monotonic() - began < 1.0


def test_worker_ends_when_its_parent_dies(tmp_path: Path) -> None:
    """--cancel-on-eof: the pipe is closed by the system when Slicer dies."""
    read, write = os.pipe()
    command = [sys.executable, "-m", "sgan_core.cli.segment", str(tmp_path), "--model", "phantom-ct-liver"]
    command += ["--output", str(tmp_path / "out"), "--json-progress", "--cancel-on-eof"]
    child = subprocess.Popen(command, stdin=read, stdout=subprocess.PIPE)
    os.close(read)
    assert child.stdout is not None
    assert json.loads(child.stdout.readline())["event"] == "hello"
    began = time.monotonic()
    os.close(write)  # as when the other end is gone
    assert child.wait(10) == 3
    assert time.monotonic() - began < 2.5
    child.stdout.close()


def test_plain_programs_are_heard_line_by_line() -> None:
    lines: list[str] = []
    outcomes: list[process.Outcome] = []
    worker = process.Worker(lambda event: lines.append(event["text"]), outcomes.append, plain=True)
    worker.start(sys.executable, ["-c", "print('one'); print('{\"event\": \"two\"}'); print('Ü', end='')"])
    standin.pump(lambda: outcomes, 20)
    assert lines == ["one", '{"event": "two"}', "Ü"]
    assert outcomes[0].status == process.DONE


def test_plain_program_that_fails() -> None:
    outcomes: list[process.Outcome] = []
    worker = process.Worker(lambda event: None, outcomes.append, plain=True)
    worker.start(sys.executable, ["-c", "print('cause'); raise SystemExit(1)"])
    standin.pump(lambda: outcomes, 20)
    assert outcomes[0].status == process.FAILED
    assert "cause" in outcomes[0].details


def test_paths_with_spaces_and_other_letters_arrive(tmp_path: Path) -> None:
    odd = str(tmp_path / "Größe \u533b\u9662 'quoted' \"twice\" %PATH% & $HOME")
    lines: list[str] = []
    outcomes: list[process.Outcome] = []
    worker = process.Worker(lambda event: lines.append(event["text"]), outcomes.append, plain=True)
    worker.start(sys.executable, ["-c", "import sys; print(sys.argv[1])", odd])
    standin.pump(lambda: outcomes, 20)
    assert lines == [odd]


def test_modules_of_the_current_folder_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.version_info < (3, 11):
        pytest.skip("PYTHONSAFEPATH came with Python 3.11; Slicer 5.13 has 3.12")
    (tmp_path / "this.py").write_text("print('planted')")
    monkeypatch.chdir(tmp_path)
    lines: list[str] = []
    outcomes: list[process.Outcome] = []
    worker = process.Worker(lambda event: lines.append(event["text"]), outcomes.append, plain=True)
    worker.start(sys.executable, ["-m", "this"])
    standin.pump(lambda: outcomes, 20)
    assert "planted" not in lines
    assert "The Zen of Python, by Tim Peters" in lines


def test_windows_waits_for_taskkill_before_the_launcher_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No Windows here: what would be run is looked at. taskkill finds the tree through the living launcher."""
    run = Run("deaf", tmp_path)
    standin.pump(lambda: run.heard("start"))
    pids = [run.worker.pid(), run.heard("start")["child"]]
    ran: list[Any] = []

    def taskkill(command: list[str], **options: Any) -> None:
        time.sleep(0.1)
        launcher_lives = os.path.exists(f"/proc/{pids[0]}/stat")  # no pathlib here: it believes os.name
        if launcher_lives:
            with open(f"/proc/{pids[0]}/stat") as file:
                launcher_lives = file.read().rsplit(")", 1)[1].split()[0] != "Z"
        ran.append((command, options["timeout"], options["creationflags"], launcher_lives))
        if len(ran) == 2:
            raise subprocess.TimeoutExpired(command, 5)

    with monkeypatch.context() as windows:
        windows.setattr(process.os, "name", "nt")
        windows.setattr(process.subprocess, "run", taskkill)
        run.worker.kill()
    assert run.outcome().status == process.CANCELLED
    with monkeypatch.context() as windows:
        windows.setattr(process.os, "name", "nt")
        windows.setattr(process.subprocess, "run", taskkill)
        process.killTree(4711)  # a taskkill that hangs is not waited for longer, and is no error
        process.killTree(0)  # never started
    assert not is_alive(pids[0])  # by Qt, after taskkill
    os.kill(pids[1], signal.SIGKILL)  # the work of the real taskkill
    create_no_window = 0x08000000
    assert ran == [
        (["taskkill", "/PID", str(pids[0]), "/T", "/F"], 5.0, create_no_window, True),
        (["taskkill", "/PID", "4711", "/T", "/F"], 5.0, create_no_window, False),
    ]


def test_python_of_slicer_is_found_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert process.pythonProgram() == sys.executable
    launcher = tmp_path / "PythonSlicer"
    launcher.write_text("#!/bin/sh\n")
    launcher.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert process.pythonProgram() == str(launcher)


def test_slicer_itself_is_not_taken_for_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.sys, "executable", "/opt/Slicer/bin/SlicerApp-real")
    with pytest.raises(RuntimeError, match="PythonSlicer was not found"):
        process.pythonProgram()


def test_steps_let_events_in_between() -> None:
    seen: list[str] = []

    def pieces() -> Any:
        for number in range(3):
            seen.append(f"piece {number}")
            yield
        return "result"

    timer = process.qt.QTimer()
    timer.setInterval(0)
    timer.timeout.connect(lambda: seen.append("event"))
    timer.start()
    answers: list[tuple[Any, Any]] = []
    steps = process.Steps(pieces(), lambda result, error: answers.append((result, error)))
    standin.pump(lambda: answers)
    timer.stop()
    assert answers == [("result", None)]
    assert "event" in seen[seen.index("piece 0") : seen.index("piece 2")]
    del steps


def test_steps_report_what_is_raised() -> None:
    def pieces() -> Any:
        yield
        raise OSError("disk full")

    answers: list[tuple[Any, Any]] = []
    steps = process.Steps(pieces(), lambda result, error: answers.append((result, error)))
    standin.pump(lambda: answers)
    assert answers[0][0] is None
    assert str(answers[0][1]) == "disk full"
    del steps


def test_stopped_steps_go_no_further() -> None:
    seen: list[int] = []

    def pieces() -> Any:
        for number in itertools.count():
            seen.append(number)
            yield

    steps = process.Steps(pieces(), lambda result, error: pytest.fail("called after the stop"))
    standin.pump(lambda: len(seen) > 2)
    steps.stop()
    count = len(seen)
    end = time.monotonic() + 0.1
    standin.pump(lambda: time.monotonic() > end)
    assert len(seen) == count


# --- ending with the input -------------------------------------------------------------------------

FAMILY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
if "deaf" in sys.argv:
    import signal
    signal.signal(signal.SIGINT, signal.SIG_IGN)
time.sleep(60)
"""


@pytest.mark.parametrize("manner", ["listens", "deaf"])
@pytest.mark.parametrize("end", ["input", "SIGTERM"])
def test_what_runs_until_eof_ends_with_its_children(manner: str, end: str) -> None:
    command = [sys.executable, *process.untilEof(["-c", FAMILY, manner])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as watcher:
        assert watcher.stdin is not None
        assert watcher.stdout is not None
        pids = [int(watcher.stdout.readline()), *process._withDescendants(watcher.pid)]
        assert len(set(pids)) == 3
        began = time.monotonic()
        if end == "input":
            watcher.stdin.close()
        else:
            watcher.terminate()
        assert watcher.wait(5) == 3
        assert time.monotonic() - began < 1.6  # the patience of Worker.cancel
        standin.pump(lambda: not any(map(is_alive, pids)), 2)


@pytest.mark.parametrize("code", [0, 7])
def test_what_runs_until_eof_keeps_output_and_exit_code(code: int) -> None:
    inside = f"import sys; print('out'); print('err', file=sys.stderr); sys.exit({code})"
    command = [sys.executable, *process.untilEof(["-c", inside])]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as watcher:
        assert watcher.wait(20) == code  # although its input is still open
        assert watcher.stdout is not None
        assert watcher.stderr is not None
        assert (watcher.stdout.read(), watcher.stderr.read()) == ("out\n", "err\n")
