"""Inversion beside the authors' procedure on the same slices: seconds, loss and DICE."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sgan_core.benchmark.authors_inversion import AUTHORS, invert_as_authors
from sgan_core.bundle import Bundle
from sgan_core.cohort import Cohort
from sgan_core.config import InversionConfig, TrainConfig, preset
from sgan_core.device import describe
from sgan_core.errors import InputError
from sgan_core.inversion import Inversion, invert, joined
from sgan_core.networks.encoder import Encoder
from sgan_core.networks.generator import Generator
from sgan_core.networks.perceptual import Perceptual
from sgan_core.phantom import phantom_cohort
from sgan_core.reconstruction import PaperReconstruction
from sgan_core.training.data import slices_of_model
from sgan_core.training.evaluate import mean_dice, spread
from sgan_core.training.workers import available_cores

_IDLE_LOAD = 0.5  # more runnable processes than that before the start, and the machine had other work
_LEAST_LABEL = 0.015  # share of a slice
_SAME_DICE = 0.01  # a difference that a handful of slices cannot show

OnProgress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class SpeedPlan:
    """What is measured: ``ours`` beside the reference, which runs as the authors do but for its number of steps."""

    ours: InversionConfig
    reference: InversionConfig = field(default_factory=lambda: AUTHORS)
    slices: int = 8
    repeats: int = 1

    def __post_init__(self) -> None:
        for name, least in (("slices", 2), ("repeats", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}, expected at least {least}")
        for name, config in (("steps", self.ours), ("reference-steps", self.reference)):
            if config.steps < 1:
                raise InputError(f"{name} is {config.steps}, expected at least 1")


@dataclass(frozen=True, eq=False)
class Slices:
    """Labelled slices at model size."""

    source: str
    images: Tensor  # (N, C, S, S) in [-1, 1]
    labels: np.ndarray  # (N, S, S) classes
    patients: list[str]


def phantom_slices(config: TrainConfig, folder: Path, count: int, *, split: str = "validation") -> Slices:
    """``count`` slices of phantom CT patients that no training has seen. folder: for the prepared slices."""
    cohort = phantom_cohort(test=8)
    patients = min(count, 8)
    cases = [case for case in cohort.cases if case.split == split][:patients]
    return cohort_slices(replace(cohort, cases=tuple(cases)), config, folder, count, split=split)


def cohort_slices(
    cohort: Cohort, config: TrainConfig, folder: Path, count: int, *, split: str = "validation"
) -> Slices:
    """``count`` slices that hold a label, spread evenly over the labelled patients of a split."""
    cases = tuple(case for case in cohort.cases if case.split == split and case.label is not None)
    if not cases:
        raise InputError(
            f"cohort {cohort.name}: no labelled patients in its split {split!r}; DICE needs some"
        )
    cohort = replace(cohort, cases=cases)
    store = slices_of_model(cohort, config, folder, size=config.generator.size, processes=1)
    # On smaller ones a few pixels would decide DICE.
    positions = np.flatnonzero((store.labels > 0).mean(axis=(1, 2)) > _LEAST_LABEL)
    chosen = spread(positions, count)
    if len(chosen) < 2:
        raise InputError(f"cohort {cohort.name}: {len(chosen)} slices with a label; give at least 2")
    source = f"{cohort.name}, {split}"
    return Slices(source, store.image_batch(chosen), np.asarray(store.labels[chosen]), store.patients(chosen))


# --- trained models: measured as they are used


def measure_inversion(
    bundle: Bundle,
    slices: Slices,
    plan: SpeedPlan,
    on_progress: OnProgress = lambda done, total, message: None,
) -> dict[str, Any]:
    """Seconds, loss (perceptual + 0.1 MSE, median over slices) and DICE of both procedures, as plain data.

    They take turns: ours on all slices before each half of the reference's, so that a change in the machine's
    load meets both. ``seconds_per_slice`` are medians over the turns, ``ratio`` is the reference's by ours.
    """
    load = _load()
    target = slices.images.to(bundle.device)
    ours, reference = _Runs(bundle.device), _Runs(bundle.device)
    halves = target.tensor_split(2)
    networks = (bundle.generator, bundle.encoder, bundle.perceptual)
    steps = plan.reference.steps
    total = plan.repeats * len(target) * steps
    done = 0
    for _ in range(plan.repeats):
        found = []
        for half in halves:
            ours_found = ours(partial(_ours, bundle, target, plan.ours), len(target))

            def on_step(step: int, done: int = done) -> bool:
                on_progress(done + step, total, "the authors' procedure")
                return True

            run = partial(invert_as_authors, half, *networks, plan.reference, on_step=on_step)
            found.append(reference(run, len(half)))
            done += len(half) * steps
    on_progress(total, total, "done")
    figures = {
        "reference": _quality(torch.cat([part.w_plus for part in found]), bundle, slices, plan.reference),
        "ours": _quality(ours_found.w_plus, bundle, slices, plan.ours),
    }
    for name, runs in (("reference", reference), ("ours", ours)):
        figures[name] = runs.figures() | figures[name]
    return {
        "size": bundle.config.generator.size,
        "slices": len(target),
        "model": bundle.name,
        "source": slices.source,
        "calculated": False,
        **_machine(bundle.device, load),
        "repeats": plan.repeats,
        "settings": {"reference": asdict(plan.reference), "ours": asdict(plan.ours)},
        **figures,
        "ratio": _rounded(figures["reference"]["seconds_per_slice"] / figures["ours"]["seconds_per_slice"]),
        "cpu_ratio": _rounded(
            figures["reference"]["cpu_seconds_per_slice"] / figures["ours"]["cpu_seconds_per_slice"]
        ),
    }


def complaints(found: dict[str, Any]) -> list[str]:
    """In which figures ours is worse than the reference, in words; none: at least as good in all."""
    reference, ours = found["reference"], found["ours"]
    said = [
        f"{name} {ours[key]:.4g} is HIGHER than the reference's {reference[key]:.4g}"
        for name, key in (("loss", "loss"), ("perceptual distance", "perceptual"), ("MSE", "mse"))
        if ours.get(key) is not None and ours[key] > reference[key]
    ]
    if ours.get("dice") is not None and ours["dice"] < reference["dice"] - _SAME_DICE:
        said.append(f"DICE {ours['dice']:.3f} is LOWER than the reference's {reference['dice']:.3f}")
    return said


class _Runs:
    """Times of one procedure."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.steps = 0

    def __call__(self, run: Callable[[], Inversion], slices: int) -> Inversion:
        wall, cpu = time.perf_counter(), time.process_time()
        found = run()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.wall.append((time.perf_counter() - wall) / slices)
        self.cpu.append((time.process_time() - cpu) / slices)
        self.steps = found.steps
        return found

    def figures(self) -> dict[str, Any]:
        return {
            "seconds_per_slice": _rounded(statistics.median(self.wall)),
            "cpu_seconds_per_slice": _rounded(statistics.median(self.cpu)),
            "seconds": [_rounded(value) for value in self.wall],
            "steps": self.steps,
        }


def _ours(bundle: Bundle, target: Tensor, config: InversionConfig) -> Inversion:
    encoder, perceptual = bundle.encoder, bundle.perceptual
    parts = [
        invert(
            part,
            bundle.generator,
            encoder,
            PaperReconstruction(perceptual, config),
            config,
            curvature=bundle.curvature,
        )
        for part in target.split(config.batch)
    ]
    return joined(parts)


@torch.no_grad()
def _quality(w_plus: Tensor, bundle: Bundle, slices: Slices, config: InversionConfig) -> dict[str, float]:
    """Medians over the slices, computed by the same code for both; DICE is per patient, the mean over patients."""
    pair = bundle.generator.synthesis(w_plus)
    target = slices.images.to(bundle.device)
    perceptual = bundle.perceptual(pair.image, target)
    mse = (pair.image - target).square().mean(dim=(1, 2, 3))
    loss = AUTHORS.perceptual_weight * perceptual + AUTHORS.mse_weight * mse
    classes = bundle.config.generator.num_classes
    labels = pair.labels().cpu().numpy().astype(np.uint8)
    return {
        "loss": _rounded(loss.median().item()),
        "perceptual": _rounded(perceptual.median().item()),
        "mse": _rounded(mse.median().item()),
        "loss_mean": _rounded(loss.mean().item()),
        "dice": _rounded(mean_dice(labels, slices.labels, slices.patients, classes)),
    }


# --- untrained networks of a preset: seconds of a step times the steps that a trained model needs


def calculate_inversion(
    name: str,
    size: int,
    plan: SpeedPlan,
    device: torch.device,
    perceptual: Perceptual,
    *,
    timed_steps: int = 2,
) -> dict[str, Any]:
    """The ratio at a preset's width, where there are no weights: measured seconds a step times ``plan``'s steps.

    Networks have random weights, images are noise. Loss and DICE have no meaning here and are None. The steps
    are those at which both reach the same loss on the bundled model: that they carry over is an assumption.
    """
    load = _load()
    config = preset(name, modality="ct", num_classes=2, size=size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = Generator(config.generator).eval().to(device)
        encoder = _encoder(config).eval().to(device)
        target = torch.rand(plan.slices, config.generator.image_channels, size, size).to(device) * 2.0 - 1.0
    encoder.requires_grad_(False)
    reference = _step_seconds(
        lambda steps: invert_as_authors(
            target[:1], generator, encoder, perceptual, replace(plan.reference, steps=steps)
        ),
        timed_steps,
        device,
    )
    settings = replace(plan.ours, tolerance=0.0)
    ours = _step_seconds(
        lambda steps: invert(
            target,
            generator,
            encoder,
            PaperReconstruction(perceptual, settings),
            replace(settings, steps=steps),
        ),
        timed_steps,
        device,
    )
    figures: dict[str, dict[str, Any]] = {
        key: {
            "seconds_per_step": _rounded(seconds),
            "steps": config_.steps,
            "seconds_per_slice": _rounded(seconds * config_.steps),
            "loss": None,
            "dice": None,
        }
        for key, seconds, config_ in (
            ("reference", reference, plan.reference),
            ("ours", ours / len(target), plan.ours),
        )
    }
    return {
        "size": size,
        "slices": len(target),
        "model": f"{name}, random weights",
        "source": "noise",
        "calculated": True,
        **_machine(device, load),
        "timed_steps": timed_steps,
        "settings": {"reference": asdict(plan.reference), "ours": asdict(plan.ours)},
        **figures,
        "ratio": _rounded(figures["reference"]["seconds_per_slice"] / figures["ours"]["seconds_per_slice"]),
    }


def _encoder(config: TrainConfig) -> nn.Module:
    generator = config.generator
    return Encoder(
        config.encoder,
        size=generator.size,
        image_channels=generator.image_channels,
        num_ws=generator.num_ws,
        w_dim=generator.w_dim,
    )


def _step_seconds(run: Callable[[int], Inversion], steps: int, device: torch.device) -> float:
    """Seconds of one more step: a run of 1 + ``steps`` less a run of 1, after a first one that warms up."""
    times = []
    for count in (1, 1, 1 + steps):
        began = time.perf_counter()
        run(count)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return max(times[2] - times[1], 1e-6) / steps


def _load() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")


def _machine(device: torch.device, load: float) -> dict[str, Any]:
    return {
        "device": describe(device),
        "threads": torch.get_num_threads(),
        "cores": available_cores(),
        "load_average_before": round(load, 2),
        "busy": load > _IDLE_LOAD,
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def table_rows(found: dict[str, Any]) -> Sequence[tuple[str, str, str]]:
    """Figure, the authors' procedure, ours."""
    reference, ours = found["reference"], found["ours"]
    digits = {"loss": 4, "perceptual": 4, "mse": 5, "dice": 3}
    rows = [
        ("seconds a slice", *(f"{part['seconds_per_slice']:.3g}" for part in (reference, ours))),
        ("steps", *(str(part["steps"]) for part in (reference, ours))),
    ]
    if "seconds_per_step" in ours:
        rows.append(("seconds a step", *(f"{part['seconds_per_step']:.3g}" for part in (reference, ours))))
    for key, places in digits.items():
        if ours.get(key) is not None:
            rows.append((key, *(f"{part[key]:.{places}f}" for part in (reference, ours))))
    return [(row[0], row[1], row[2]) for row in rows]
