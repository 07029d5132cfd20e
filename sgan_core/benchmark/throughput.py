"""How fast slices are prepared and read, measured beside the training step that uses them."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sgan_core.cohort import Case, Cohort, Intensity, Label, rank_labelled
from sgan_core.config import TrainConfig, preset
from sgan_core.device import describe
from sgan_core.errors import InputError
from sgan_core.training.data import Order, SliceStore, open_store
from sgan_core.training.gan import GanTrainer
from sgan_core.training.workers import available_cores

PICTURE_SIDE = 512  # pixels of a generated picture
_LABELLED = 8  # of the generated pictures
_IDLE_LOAD = 0.5  # more runnable processes than that before the start, and the machine had other work


@dataclass(frozen=True)
class LoaderPlan:
    """What is measured. ``step_batch`` images make a training step, ``batch`` images are read at a time."""

    size: int = 256
    batch: int = 16
    preset: str = "paper"
    step_batch: int = 4
    steps: int = 2
    processes: int = 1
    repeats: int = 3

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("step_batch", 2), ("steps", 1), ("processes", 1), ("repeats", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}, expected at least {least}")


def make_pictures(folder: Path, count: int, *, seed: int = 0) -> Cohort:
    """Write ``count`` grey PNG pictures of a bright ellipse in noise, the first few with its mask.

    They cost as much to read as X-rays of 512 x 512 pixels: the noise keeps PNG from compressing well.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:PICTURE_SIDE, :PICTURE_SIDE] / PICTURE_SIDE - 0.5
    cases = []
    for number in range(count):
        width, height = random.uniform(0.15, 0.4, 2)
        inside = (rows / height) ** 2 + (columns / width) ** 2 < 1.0
        pixels = np.where(inside, 170, 60) + random.normal(0.0, 8.0, inside.shape)
        image, label = folder / f"{number}.png", folder / f"{number}_mask.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(image)
        if number < _LABELLED:
            Image.fromarray(inside.astype(np.uint8)).save(label)
        cases.append(Case(f"{number}", f"{number}", str(image), str(label) if number < _LABELLED else None))
    labels = (Label(1, "ellipse", (200, 90, 60)),)
    return Cohort("pictures", "xray", Intensity(percentiles=(0.5, 99.5)), labels, rank_labelled(cases))


def first_cases(cohort: Cohort, count: int) -> Cohort:
    """``count`` cases of a cohort, labelled ones first, because a training step needs some."""
    cases = sorted(cohort.cases, key=lambda case: case.labelled_rank is None)
    return replace(cohort, cases=tuple(cases[:count]))


def measure_loader(
    cohort: Cohort,
    folder: Path,
    plan: LoaderPlan,
    device: torch.device,
    on_progress: Callable[[int, int, str], None] = lambda done, total, message: None,
) -> dict[str, Any]:
    """Images a second of preparation and of random batches, and the seconds of a GAN step, as plain data.

    folder: an empty one for the prepared slices. Rates are medians over ``plan.repeats``. ``ratio`` is the
    time of reading what a step needs by the time of the step; the page cache is warm, or cold for
    ``ratio_cold`` (None where the system cannot empty it for a file).
    """
    if len(cohort.cases) < 2:
        raise InputError(f"cohort {cohort.name}: one case only; a rate needs at least 2")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    config = _config(cohort, plan)
    stages = iter(enumerate(("preparing, one process", "preparing, all", "reading", "training step", "done")))

    def next_stage() -> None:
        done, message = next(stages)
        on_progress(done, 4, message)

    next_stage()
    one = _prepare_rate(cohort, folder / "one", config, 1, plan.repeats)
    next_stage()
    everything = one
    if plan.processes > 1:
        everything = _prepare_rate(cohort, folder / "all", config, plan.processes, plan.repeats)
    next_stage()

    def opened() -> SliceStore:
        return _open(cohort, folder / "one" / "0", config)

    slices = len(opened().images)
    warm = statistics.median(_read_rates(opened(), plan.batch, plan.repeats))
    cold = _cold_read_rate(opened, plan.batch, plan.repeats)
    next_stage()
    seconds = _step_seconds(config, opened(), device, plan.steps)
    next_stage()
    # D_r's images and D_m's are two batches.
    reads = 2 * plan.step_batch / seconds
    return {
        "size": plan.size,
        "batch": plan.batch,
        "cores": available_cores(),
        "device": describe(device),
        "load_average_before": round(load, 2),
        "busy": load > _IDLE_LOAD,
        "cohort": cohort.name,
        "slices": slices,
        "channels": config.generator.image_channels,
        "bytes_per_slice": (2 * config.generator.image_channels + 1) * plan.size**2,
        "repeats": plan.repeats,
        "prepare": {"one": one, "all": everything},
        "read": {"warm_images_per_s": _rounded(warm), "cold_images_per_s": cold and _rounded(cold)},
        "train_step": {
            "preset": plan.preset,
            "batch": plan.step_batch,
            "seconds": _rounded(seconds),
            "images_per_s": _rounded(plan.step_batch / seconds),
        },
        "ratio": _rounded(reads / warm),
        "ratio_cold": cold and _rounded(reads / cold),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _config(cohort: Cohort, plan: LoaderPlan) -> TrainConfig:
    classes = 1 + len(cohort.labels)
    config = preset(plan.preset, modality=cohort.modality, num_classes=classes, size=plan.size)
    gan = replace(config.gan, batch=plan.step_batch)
    return replace(config, gan=gan, labels=cohort.labels, intensity=cohort.intensity, labelled=1)


def _open(cohort: Cohort, folder: Path, config: TrainConfig, **settings: Any) -> SliceStore:
    generator = config.generator
    return open_store(cohort, folder, size=generator.size, channels=generator.image_channels, **settings)


def _prepare_rate(
    cohort: Cohort, folder: Path, config: TrainConfig, processes: int, repeats: int
) -> dict[str, float]:
    """Slices a second once all processes run, and the seconds until the first case was there."""
    rates, starts = [], []
    for repeat in range(repeats):
        times = [time.perf_counter()]
        store = _open(
            cohort,
            folder / str(repeat),
            config,
            processes=processes,
            on_progress=lambda *_, times=times: times.append(time.perf_counter()),
        )
        cases = len(cohort.cases)
        rates.append((cases - 1) / (times[-1] - times[1]) * len(store.images) / cases)
        starts.append(times[1] - times[0])
    return {
        "processes": processes,
        "images_per_s": _rounded(statistics.median(rates)),
        "start_s": _rounded(statistics.median(starts)),
    }


def _read_rates(store: SliceStore, batch: int, repeats: int) -> Iterator[float]:
    """Images a second, with their labels, of one pass in random order; the first one of all is not counted."""
    order = Order(np.arange(len(store.images)), seed=0)
    batches = max(1, len(store.images) // batch)
    for repeat in range(repeats + 1):
        began = time.perf_counter()
        _read(store, order, repeat * batches, batches, batch)
        if repeat:
            yield batches * batch / (time.perf_counter() - began)


def _read(store: SliceStore, order: Order, first: int, batches: int, batch: int) -> None:
    for number in range(first, first + batches):
        index = order.batch(number * batch, batch)
        store.image_batch(index), store.label_batch(index)


def _cold_read_rate(opened: Callable[[], SliceStore], batch: int, repeats: int) -> float | None:
    """As ``_read_rates``, with the files on the disk only."""
    if not hasattr(os, "posix_fadvise"):
        return None
    rates = []
    for repeat in range(repeats):
        store = opened()
        files = {
            str(array.filename) for array in (store.images, store.labels) if isinstance(array, np.memmap)
        }
        del store  # mapped pages stay
        for file in files:
            _forget(file)
        store = opened()
        order = Order(np.arange(len(store.images)), seed=repeat)
        batches = max(1, len(store.images) // batch)
        began = time.perf_counter()
        _read(store, order, 0, batches, batch)
        rates.append(batches * batch / (time.perf_counter() - began))
    return statistics.median(rates)


def _forget(file: str) -> None:
    """Drop a file's pages from the system's cache."""
    with open(file, "rb+") as opened:
        os.fsync(opened.fileno())  # pages that are not yet written are not dropped
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _step_seconds(config: TrainConfig, store: SliceStore, device: torch.device, steps: int) -> float:
    """Median of a GAN step without the lazy penalties: the shortest there is, so loading looks its worst."""
    trainer = GanTrainer(config, store, device)
    times = []
    for _ in range(steps + 1):  # the first, with R1 and path length, also warms up
        began = time.perf_counter()
        trainer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])
