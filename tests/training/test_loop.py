"""The loop's limits, its log, and checkpoints that survive anything."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import sgan_core
from sgan_core.errors import InputError
from sgan_core.training import loop
from sgan_core.training.loop import Limits, RunLog, StopSignal, fit, load_checkpoint, save_checkpoint
from sgan_core.training.schedule import Schedule


class Counting:
    """A stage that only counts: 10 images a step."""

    name = "counting"

    def __init__(self) -> None:
        self.steps, self.schedule = 0, Schedule(10**9)

    @property
    def images(self) -> int:
        return 10 * self.steps

    def step(self) -> dict[str, float]:
        self.steps += 1
        return {"loss": 1.0 / self.steps, "image_g": float(self.steps)}

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "weight": torch.full((3,), float(self.steps))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / "counting.pt"


def _lines(folder: Path) -> list[dict[str, Any]]:
    def no_nan(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=no_nan) for line in lines]


# --- limits


def test_ends_at_the_image_limit_with_a_checkpoint(tmp_path, checkpoint):
    trainer = Counting()
    assert fit(trainer, checkpoint, Limits(max_images=45), RunLog(tmp_path)) == "done"
    assert trainer.images == 50
    assert load_checkpoint(checkpoint)["steps"] == 5


def test_goes_on_where_the_checkpoint_stopped(tmp_path, checkpoint):
    fit(Counting(), checkpoint, Limits(max_images=50), RunLog(tmp_path))
    again = Counting()
    again.load_state_dict(load_checkpoint(checkpoint))
    fit(again, checkpoint, Limits(max_images=80), RunLog(tmp_path))
    assert load_checkpoint(checkpoint)["steps"] == 8


def test_a_finished_stage_takes_no_further_step(tmp_path, checkpoint):
    trainer = Counting()
    trainer.steps = 9
    assert fit(trainer, checkpoint, Limits(max_images=90), RunLog(tmp_path)) == "done"
    assert trainer.steps == 9
    assert checkpoint.is_file()


def test_ends_at_the_deadline_with_a_checkpoint(tmp_path, checkpoint):
    trainer = Counting()
    limits = Limits(max_images=10_000, deadline=time.monotonic() - 1.0)
    assert fit(trainer, checkpoint, limits, RunLog(tmp_path)) == "time"
    assert trainer.steps == 1
    assert load_checkpoint(checkpoint)["steps"] == 1


def test_ends_when_asked_with_a_checkpoint(tmp_path, checkpoint):
    trainer = Counting()
    found = fit(
        trainer,
        checkpoint,
        Limits(max_images=10_000),
        RunLog(tmp_path),
        should_stop=lambda: trainer.steps >= 4,
    )
    assert found == "stopped"
    assert load_checkpoint(checkpoint)["steps"] == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_loop_and_saves(tmp_path, checkpoint, number):
    trainer, stop = Counting(), StopSignal()
    before = signal.getsignal(number)

    def press(done: int, _total: int, _message: str) -> None:
        if done == 30:
            os.kill(os.getpid(), number)

    with stop.listening():
        found = fit(
            trainer,
            checkpoint,
            Limits(max_images=10_000),
            RunLog(tmp_path),
            should_stop=lambda: bool(stop),
            on_progress=press,
        )
    assert found == "stopped"
    assert load_checkpoint(checkpoint)["steps"] == 3
    assert signal.getsignal(number) is before


def test_saves_in_between(tmp_path, checkpoint, monkeypatch):
    saved = []
    monkeypatch.setattr(loop, "save_checkpoint", lambda state, _path: saved.append(state["steps"]))
    fit(Counting(), checkpoint, Limits(max_images=30, checkpoint_seconds=-1.0), RunLog(tmp_path))
    assert saved == [1, 2, 3, 3]


# --- log


def test_log_holds_the_mean_losses_and_the_speed(tmp_path, checkpoint):
    fit(Counting(), checkpoint, Limits(max_images=60, log_images=30), RunLog(tmp_path))
    lines = _lines(tmp_path)
    assert [line["images"] for line in lines] == [30, 60]
    assert {line["stage"] for line in lines} == {"counting"}
    assert lines[0]["image_g"] == 2.0
    assert lines[1]["image_g"] == 5.0
    assert lines[0]["images_per_s"] > 0


def test_evaluation_happens_each_time_its_images_are_reached(tmp_path, checkpoint):
    trainer = Counting()
    limits = Limits(max_images=100, evaluate_images=25, log_images=10**6)
    fit(trainer, checkpoint, limits, RunLog(tmp_path), evaluate=lambda: {"quality": float(trainer.images)})
    assert [line["quality"] for line in _lines(tmp_path)] == [30.0, 50.0, 80.0, 100.0]


def test_log_stays_json_when_a_figure_does_not_exist(tmp_path):
    log = RunLog(tmp_path)
    log.write("gan", 100, {"dice": float("nan"), "loss": float("inf"), "frechet": 1.23456789})
    assert _lines(tmp_path)[0] | {"seconds": 0} == {
        "stage": "gan",
        "images": 100,
        "seconds": 0,
        "dice": None,
        "loss": None,
        "frechet": 1.23457,
    }


def test_log_of_a_resumed_run_is_appended(tmp_path):
    for images in (10, 20):
        RunLog(tmp_path).write("gan", images, {"loss": 1.0})
    assert [line["images"] for line in _lines(tmp_path)] == [10, 20]


def test_progress_names_speed_and_losses(tmp_path, checkpoint):
    seen = []
    fit(
        Counting(),
        checkpoint,
        Limits(max_images=20),
        RunLog(tmp_path),
        on_progress=lambda *news: seen.append(news),
    )
    assert [(done, total) for done, total, _ in seen] == [(10, 20), (20, 20)]
    assert "images/s" in seen[-1][2]
    assert "image_g 2.000" in seen[-1][2]


# --- checkpoints


def test_checkpoint_round_trip(tmp_path):
    state = {"weight": torch.randn(4), "step": 3, "strength": 0.25, "grown": False, "nested": {"a": [1, 2.5]}}
    save_checkpoint(state, tmp_path / "new" / "x.pt")
    found = load_checkpoint(tmp_path / "new" / "x.pt")
    assert torch.equal(found.pop("weight"), state.pop("weight"))
    assert found == state
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["x.pt"]


def test_a_failed_save_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    save_checkpoint({"step": 1}, path)

    def disk_full(_state: object, file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint({"step": 2}, path)
    monkeypatch.undo()
    assert load_checkpoint(path) == {"step": 1}


def test_a_missing_checkpoint_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "x.pt")


def _truncated() -> bytes:
    return b"PK\x03\x04" + b"\x00" * 200


@pytest.mark.parametrize("content", [b"", b"not a checkpoint\n", _truncated()], ids=["empty", "text", "cut"])
def test_a_damaged_checkpoint_is_an_input_error(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.pt.*not a readable checkpoint"):
        load_checkpoint(tmp_path / "x.pt")


class Harmful:
    """Would write a file when unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_a_checkpoint_never_runs_code(tmp_path):
    torch.save({"weight": Harmful(tmp_path / "harm")}, tmp_path / "x.pt")
    with pytest.raises(InputError):
        load_checkpoint(tmp_path / "x.pt")
    assert not (tmp_path / "harm").exists()


SAVER = """
import sys
from pathlib import Path
import torch
from sgan_core.training.loop import save_checkpoint
number = 0
while True:
    state = {"number": number, "weight": torch.full((2_000_000,), float(number))}
    print("saving", number, flush=True)
    save_checkpoint(state, Path(sys.argv[1]))
    number += 1
"""


def test_kill_at_any_moment_leaves_a_loadable_checkpoint(tmp_path):
    root = str(Path(sgan_core.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    for saves in (1, 4):
        path = tmp_path / f"{saves}.pt"
        command = [sys.executable, "-c", SAVER, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
            assert process.stdout is not None
            for _ in range(saves + 1):
                assert process.stdout.readline().startswith("saving")
            process.kill()  # in the middle of save number `saves`
        state = load_checkpoint(path)
        assert state["number"] >= saves - 1
        assert torch.equal(state["weight"], torch.full((2_000_000,), float(state["number"])))
