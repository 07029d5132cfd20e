"""Events of progress at a pace that a file can bear, and that tells a living process from a dead one."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from sgan_core.cli import progress as module
from sgan_core.cli.progress import Progress

Output = pytest.CaptureFixture[str]


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def events(capsys: Output) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_at_most_one_a_second(clock: Clock, capsys: Output) -> None:
    with Progress(as_json=True, paced=True) as progress:
        for step in range(100):
            progress(step, 100, "steps")
            clock.now += 0.1
    assert [event["done"] for event in events(capsys)] == list(range(0, 100, 10))


def test_without_pace_every_one(clock: Clock, capsys: Output) -> None:
    with Progress(as_json=True) as progress:
        for step in range(100):
            progress(step, 100, "steps")
    assert len(events(capsys)) == 100


def test_the_last_one_comes_again_while_nothing_happens(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setattr(module, "_AT_MOST_EVERY_S", 0.01)
    monkeypatch.setattr(module, "_AT_LEAST_EVERY_S", 0.05)
    sent, twice = 0, threading.Event()
    send = Progress._send

    def counted(self: Progress, now: float) -> None:
        nonlocal sent
        send(self, now)
        sent += 1
        if sent == 3:
            twice.set()

    monkeypatch.setattr(Progress, "_send", counted)
    with Progress(as_json=True, paced=True) as progress:
        progress(3, 8, "a long evaluation")
        assert twice.wait(60)
    told = events(capsys)
    assert {(event["done"], event["message"]) for event in told} == {(3, "a long evaluation")}
    assert len(told) >= 3
    assert not progress._heart.is_alive()


def test_stages_are_named_and_counted_by_themselves(clock: Clock, capsys: Output) -> None:
    """A stage that is resumed in its middle does not count what was done before as speed."""
    with Progress(as_json=True) as progress:
        progress.stage("student")
        clock.now += 60.0  # slow to begin
        progress(500, 1000, "student")
        clock.now += 2.0
        progress(510, 1000, "student")
        progress.stage("gan")
        progress(600, 1000, "gan")
    told = [(event["stage"], event["done"], event["total"], event["eta_s"]) for event in events(capsys)]
    assert told == [
        ("student", 0, 0, None),
        ("student", 500, 1000, None),
        ("student", 510, 1000, 98.0),
        ("gan", 0, 0, None),
        ("gan", 600, 1000, None),
    ]


def test_time_left_ends_with_the_stages_time(clock: Clock, capsys: Output) -> None:
    with Progress(as_json=True) as progress:
        progress.stage("student", clock.now + 30.0)
        progress(0, 1000, "student")
        clock.now += 20.0
        progress(10, 1000, "student")  # 1980 s by its speed
        progress(990, 1000, "student")  # 0.2 s by its speed
        clock.now += 20.0
        progress(991, 1000, "student")
    assert [event["eta_s"] for event in events(capsys)[1:]] == [30.0, 10.0, 0.2, 0.0]


def test_a_terminal_sees_no_stages(capsys: Output) -> None:
    with Progress() as progress:
        progress.stage("student")
        progress(1, 2, "student")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")
