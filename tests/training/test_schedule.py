"""The progress of a stage by images and by time, over several calls."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from sgan_core.training.loop import Limits, RunLog, fit, load_checkpoint
from sgan_core.training.schedule import Schedule

HOUR = 3600.0


@pytest.mark.parametrize(
    ("images", "time_share", "progress"),
    [(0, 0.0, 0.0), (250, 0.0, 0.25), (250, 0.5, 0.5), (750, 0.5, 0.75), (2000, 0.0, 1.0), (0, 1.0, 1.0)],
)
def test_progress_is_the_larger_share(images, time_share, progress):
    assert Schedule(1000, time_share=time_share).progress(images) == progress


def test_the_rate_decays_to_a_hundredth():
    rates = [Schedule(1000).cosine(0.01, images) for images in (0, 500, 1000, 2000)]
    assert rates == pytest.approx([0.01, 0.01 * (0.01 + 0.99 / 2), 0.0001, 0.0001])


class Timed:
    """A stage whose steps take a minute each; its state is what a checkpoint holds."""

    name = "timed"

    def __init__(self, clock: list[float]) -> None:
        self.clock, self.steps, self.schedule = clock, 0, Schedule(10**9)
        self.rates: list[float] = []

    @property
    def images(self) -> int:
        return self.steps

    def step(self) -> dict[str, float]:
        self.rates.append(self.schedule.cosine(1.0, self.images))
        self.steps += 1
        self.clock[0] += 60.0
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "seconds": self.schedule.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.schedule.seconds = state["steps"], state["seconds"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def _call(folder: Path, clock: list[float], seconds: float | None, *, stop_after: int | None = None) -> Timed:
    """A call of the stage that may last so long; it resumes from the folder's checkpoint."""
    stage = Timed(clock)
    file = folder / "timed.pt"
    if file.exists():
        stage.load_state_dict(load_checkpoint(file))
    first = stage.steps
    deadline = None if seconds is None else clock[0] + seconds
    fit(
        stage,
        file,
        Limits(10**9, deadline),
        RunLog(folder),
        should_stop=lambda: stop_after is not None and stage.steps - first >= stop_after,
    )
    return stage


def test_with_a_time_limit_the_rate_is_down_when_the_time_is_up(tmp_path, clock):
    rates = _call(tmp_path, clock, HOUR).rates
    assert rates[0] == 1.0
    assert rates[30] == pytest.approx(0.01 + 0.99 / 2)
    assert rates[59] == pytest.approx(0.01, abs=0.001)


def test_an_interrupted_hour_goes_on_as_one(tmp_path, clock):
    """30 minutes, a pause, and a resume with the other 30: the rates of an hour in one go."""
    whole = _call(tmp_path / "whole", clock, HOUR).rates
    first = _call(tmp_path / "halves", clock, HOUR, stop_after=30).rates
    clock[0] += 100 * HOUR
    second = _call(tmp_path / "halves", clock, HOUR / 2).rates
    assert len(first) == 30
    assert first + second == pytest.approx(whole)


def test_another_hour_after_a_finished_one_begins_at_half_time(tmp_path, clock):
    _call(tmp_path, clock, HOUR)
    rates = _call(tmp_path, clock, HOUR).rates
    assert rates[0] == pytest.approx(0.01 + 0.99 / 2, abs=0.02)
    assert rates[-1] == pytest.approx(0.01, abs=0.001)


def test_without_a_time_limit_only_images_count(tmp_path, clock):
    assert _call(tmp_path, clock, None, stop_after=50).rates == pytest.approx([1.0] * 50)
