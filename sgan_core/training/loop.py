"""The loop around every stage: limits, checkpoints, resume, log, stop."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from sgan_core.errors import InputError
from sgan_core.files import replacing
from sgan_core.training.parallel import average_value, rank, world_size
from sgan_core.training.schedule import Schedule

_LOOK_EVERY_S = 1.0  # for the file that asks to stop: the disk may be on a network


class Trainer(Protocol):
    """What a stage offers to the loop."""

    name: str
    schedule: Schedule  # whose time the loop keeps

    @property
    def images(self) -> int:
        """Real images seen so far."""

    def step(self) -> dict[str, float]:
        """One iteration; returns its losses."""

    def state_dict(self) -> dict[str, Any]:
        """The whole state, for exact resume."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict``."""


class StopSignal:
    """Becomes true on SIGINT, or on SIGTERM where it exists, so that the loop saves and ends.

    file: becomes true as well when there is such a file, for who cannot send signals. Raises InputError when there
    is one at the start.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.asked, self.file = False, file
        self._looked = -math.inf
        try:
            is_there = file is not None and file.exists()
        except OSError as error:
            raise InputError(f"--stop-file {file}: {error.strerror}. Choose another file.") from error
        if is_there:
            raise InputError(
                f"--stop-file {file}: is there already, so training would end at once. Delete it first."
            )

    def __bool__(self) -> bool:
        now = time.monotonic()
        if not self.asked and self.file is not None and now - self._looked >= _LOOK_EVERY_S:
            self._looked = now
            self.asked = os.path.exists(self.file)  # a disk that does not answer for a while ends no training
        return self.asked

    def _ask(self, _number: int, _frame: object) -> None:
        self.asked = True

    @contextmanager
    def listening(self) -> Iterator[StopSignal]:
        """Catch the signals inside the block."""
        numbers = [signal.SIGINT, signal.SIGTERM]
        before = {number: signal.signal(number, self._ask) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass
class RunLog:
    """One JSON object a line in ``log.jsonl``; TensorBoard too when it is installed; rank 0 only."""

    folder: Path
    tell: Callable[..., None] = lambda **line: None  # what is written, to whom else it is to be told
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._board = None
        if rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                return
            self._board = SummaryWriter(str(self.folder / "tensorboard"))

    def write(self, stage: str, images: int, values: dict[str, float]) -> None:
        """Append a line with the stage, the images seen, the seconds of this call and the values."""
        if rank():
            return
        seconds = round(time.monotonic() - self.started, 1)
        line: dict[str, Any] = {"stage": stage, "images": images, "seconds": seconds}
        # JSON has no NaN: a figure that does not exist (no validation patients) is null.
        line |= {k: float(f"{v:.6g}") if math.isfinite(v) else None for k, v in values.items()}
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.tell(**line)
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{stage}/{name}", value, images)


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint under a temporary name, flush it to the disk, rename it: no half-written file remains."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part, part.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; only tensors and plain values, never code.

    Raises InputError when the file is missing or damaged.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint. Give the folder that sgan-train wrote as --output.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"{path}: not a readable checkpoint ({error}). Delete it to start this stage anew."
        ) from error


@dataclass(frozen=True)
class Limits:
    """When a call of the loop ends, and how often it saves and evaluates."""

    max_images: int
    deadline: float | None = None  # time.monotonic() at which the stage's time is used up
    checkpoint_seconds: float = 180.0
    evaluate_images: int = 20_000
    log_images: int = 1_600


def fit(
    trainer: Trainer,
    checkpoint: Path,
    limits: Limits,
    log: RunLog,
    *,
    evaluate: Callable[[], dict[str, float]] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[int, int, str], None] = lambda done, total, message: None,
) -> str:
    """Run a stage until its images, its time or the user ends it; returns "done", "time" or "stopped".

    The state is saved at the end whatever the reason, and every ``checkpoint_seconds`` before.
    """
    saved = began = time.monotonic()
    first, logged = trainer.images, trainer.images
    earlier = trainer.schedule.seconds
    sums: dict[str, list[float]] = {}
    reason = "done"
    _keep_time(trainer.schedule, earlier, began, limits)
    while trainer.images < limits.max_images:
        before = trainer.images
        for name, value in trainer.step().items():
            sums.setdefault(name, []).append(value)
        _keep_time(trainer.schedule, earlier, began, limits)
        now = time.monotonic()
        if trainer.images - logged >= limits.log_images:
            means = {name: sum(values) / len(values) for name, values in sums.items()}
            rate = (trainer.images - first) / (now - began)
            log.write(trainer.name, trainer.images, means | {"images_per_s": rate})
            sums, logged = {}, trainer.images
        if (
            evaluate is not None
            and before // limits.evaluate_images < trainer.images // limits.evaluate_images
        ):
            log.write(trainer.name, trainer.images, evaluate())
        on_progress(
            trainer.images, limits.max_images, _progress_text(trainer.images - first, now - began, sums)
        )
        if now - saved > limits.checkpoint_seconds:
            _save(trainer, checkpoint)
            saved = time.monotonic()
        reason = _agree(_why_stop(should_stop, limits, now))
        if reason != "done":
            break
    _save(trainer, checkpoint)
    return reason


def _keep_time(schedule: Schedule, earlier: float, began: float, limits: Limits) -> None:
    """Tell a stage its time: ``earlier`` seconds in former calls, and since ``began`` in this one."""
    schedule.seconds = earlier + time.monotonic() - began
    if limits.deadline is not None:
        share = schedule.seconds / max(earlier + limits.deadline - began, 1e-6)
        # The processes' clocks differ, their rates must not.
        schedule.time_share = float(average_value(torch.tensor(min(1.0, share), dtype=torch.float64)))


def _why_stop(should_stop: Callable[[], bool], limits: Limits, now: float) -> str:
    if should_stop():
        return "stopped"
    return "time" if limits.deadline is not None and now > limits.deadline else "done"


def _agree(reason: str) -> str:
    """All processes of a run stop at the same step, or one would wait for gradients for ever."""
    if world_size() == 1:
        return reason
    codes = ["done", "time", "stopped"]
    worst = float(average_value(torch.tensor([float(codes.index(reason) > 0)])))
    if worst == 0:
        return "done"
    stopped = float(average_value(torch.tensor([float(reason == "stopped")])))
    return "stopped" if stopped else "time"


def _save(trainer: Trainer, checkpoint: Path) -> None:
    if rank() == 0:
        save_checkpoint(trainer.state_dict(), checkpoint)


_SHOWN = ("image_g", "image_d", "pair_d", "perceptual", "mse", "dice", "loss", "generated")


def _progress_text(images: int, seconds: float, sums: dict[str, list[float]]) -> str:
    rate = images / max(seconds, 1e-6)
    shown = [name for name in _SHOWN if sums.get(name)]
    losses = " ".join(f"{name} {sums[name][-1]:.3f}" for name in shown)
    return f"{rate:.1f} images/s {losses}"
