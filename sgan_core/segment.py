"""An image in, its label map with a report of how far to trust it out: what every front door calls."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sgan_core.bundle import Bundle
from sgan_core.cohort import Intensity
from sgan_core.config import InversionConfig
from sgan_core.errors import Cancelled, InputError
from sgan_core.imaging.image import Picture, Volume
from sgan_core.imaging.intensity import in_units
from sgan_core.imaging.slices import SliceStack, to_model, to_volume
from sgan_core.inversion import Inversion, invert
from sgan_core.reconstruction import PaperReconstruction

OnProgress = Callable[[int, int, str], None]  # done, total, message
QUALITIES = ("fast", "standard", "careful")
RECONSTRUCTIONS = ("auto", "paper")

_POOR_DICE = 0.8
_NO_AIR_HU = -200  # a CT of a patient holds air, far below this
_FOREIGN_PERCENTILES = Intensity(percentiles=(1.0, 99.0))


@dataclass(frozen=True)
class SegmentConfig:
    """How to segment.

    quality: fast (encoder alone, the paper's "Ours-NO"), standard (inversion), careful (a second start from
    the mean w, 2.5 times the steps). steps: replaces the quality's number. reconstruction: the objective of
    inversion; "auto" is the bundle's choice, at present always the paper's.
    """

    quality: str = "standard"
    steps: int | None = None
    reconstruction: str = "auto"
    batch: int | None = None  # slices optimised together; the bundle's value when left out

    def __post_init__(self) -> None:
        if self.quality not in QUALITIES:
            raise InputError(f"quality is {self.quality!r}, expected one of {', '.join(QUALITIES)}")
        if self.reconstruction not in RECONSTRUCTIONS:
            known = ", ".join(RECONSTRUCTIONS)
            raise InputError(f"reconstruction is {self.reconstruction!r}, expected one of {known}")
        if self.steps is not None and self.steps < 0:
            raise InputError(f"steps is {self.steps}, expected 0 or more")
        if self.batch is not None and self.batch < 1:
            raise InputError(f"batch is {self.batch}, expected 1 or more")


@dataclass(frozen=True)
class Trust:
    """Whether the model could explain the image."""

    status: str  # "ok" | "review"
    score: float  # share of slices explained as well as the training anatomy was, 0 to 1
    reason: str


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The label map of one image with what led to it."""

    labels: np.ndarray  # uint8, the input's shape: (I, J, K) or (H, W)
    stack: SliceStack  # the model's input
    reconstructions: np.ndarray  # (N, C, S, S) float32
    label_probs: np.ndarray  # (N, K, S, S) float16
    slice_errors: np.ndarray  # (N,) root mean squared error of the reconstruction, model units (range 2)
    trust: Trust
    method: str  # "encoder" | "inversion"
    steps: int
    seconds: float
    warnings: tuple[str, ...]

    @property
    def error(self) -> float:
        """Root mean squared error over all slices, model units."""
        return float(np.sqrt(np.square(self.slice_errors).mean()))


def part_of(on_progress: OnProgress, number: int, count: int, prefix: str = "") -> OnProgress:
    """Turn the progress of part ``number`` of ``count`` equal ones into that of the whole, in thousandths a part."""

    def report(done: int, total: int, message: str) -> None:
        on_progress(1000 * number + 1000 * done // total, 1000 * count, prefix + message)

    return report


def choose_intensity(image: Volume | Picture, intensity: Intensity) -> tuple[Intensity, str | None]:
    """The model's intensity rule, or percentiles with a warning for an image that cannot be in Hounsfield units.

    8-bit pictures are taken to show the model's range, as everywhere.
    """
    shows_the_range = isinstance(image, Picture) and image.array.dtype == np.uint8
    if intensity.unit != "HU" or shows_the_range or image.array.min() < _NO_AIR_HU:
        return intensity, None
    return _FOREIGN_PERCENTILES, (
        f"no voxel is below {_NO_AIR_HU}: not CT in Hounsfield units, so the model was trained on another "
        "modality; intensities were scaled by percentiles"
    )


def segment_volume(
    image: Volume | Picture,
    bundle: Bundle,
    config: SegmentConfig | None = None,
    *,
    on_progress: OnProgress = lambda done, total, message: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Segmentation:
    """Segment an image with a trained model.

    on_progress counts optimisation steps of single slices. Raises Cancelled when ``should_stop`` says so,
    InputError for an image that cannot be brought to the model.
    """
    config = config or SegmentConfig()
    began = time.monotonic()
    generator = bundle.config.generator
    intensity, warning = choose_intensity(image, bundle.config.intensity)
    image = in_units(image, intensity)
    stack = to_model(
        image,
        size=generator.size,
        intensity=intensity,
        channels=generator.image_channels,
        squash=bundle.config.squash,
    )
    inversion = _inversion_config(bundle.config.inversion, config)
    starts = 2 if config.quality == "careful" else 1
    steps = starts * inversion.steps  # of one slice
    count, total = len(stack.images), len(stack.images) * max(1, steps)
    # Filled batch by batch: parts that are joined at the end would double the memory of a large scan.
    reconstructions = np.empty_like(stack.images)
    label_probs = np.empty((count, generator.num_classes, generator.size, generator.size), np.float16)
    for first in range(0, count, inversion.batch):
        target = torch.from_numpy(stack.images[first : first + inversion.batch]).to(bundle.device)

        def on_step(step: int, first: int = first, batch: int = len(target)) -> None:
            if should_stop():
                raise Cancelled("stopped; nothing was written for this case")
            done = first * max(1, steps) + batch * step
            message = f"slice {first + 1} to {first + batch} of {count}"
            on_progress(done, total, f"{message}, step {step} of {steps}" if steps else message)

        on_step(0)
        part = _best_of_starts(target, bundle, inversion, starts, on_step)
        reconstructions[first : first + len(target)] = part.image.float().cpu().numpy()
        label_probs[first : first + len(target)] = part.label_probs.half().cpu().numpy()
    on_progress(total, total, "labelling")
    errors = np.array([_rmse(*pair) for pair in zip(reconstructions, stack.images, strict=True)])
    return Segmentation(
        labels=to_volume(label_probs, stack),
        stack=stack,
        reconstructions=reconstructions,
        label_probs=label_probs,
        slice_errors=errors,
        trust=judge(errors, bundle),
        method="inversion" if inversion.steps else "encoder",
        steps=inversion.steps,
        seconds=time.monotonic() - began,
        warnings=image.warnings + ((warning,) if warning else ()),
    )


def _rmse(reconstruction: np.ndarray, image: np.ndarray) -> float:
    return float(np.sqrt(np.square(reconstruction - image).mean()))


def _inversion_config(stored: InversionConfig, config: SegmentConfig) -> InversionConfig:
    steps = {"fast": 0, "standard": stored.steps, "careful": int(2.5 * stored.steps)}[config.quality]
    steps = steps if config.steps is None else config.steps
    return replace(stored, steps=steps, batch=config.batch or stored.batch)


def _best_of_starts(
    target: Tensor,
    bundle: Bundle,
    inversion: InversionConfig,
    starts: int,
    on_step: Callable[[int], None],
) -> Inversion:
    """Inversion from the encoder's answer; with 2 starts also from the mean w, each slice's better one of both.

    on_step(step) counts through both.
    """
    reconstruction = PaperReconstruction(bundle.perceptual, inversion)

    def counted_from(base: int) -> Callable[[int, dict[str, Tensor]], bool]:
        def report(step: int, terms: dict[str, Tensor]) -> bool:
            on_step(base + step)
            return True

        return report

    report = counted_from(0)
    first = invert(target, bundle.generator, bundle.encoder, reconstruction, inversion, on_step=report)
    if starts == 1 or not inversion.steps:
        return first
    report = counted_from(inversion.steps)
    second = invert(target, bundle.generator, None, reconstruction, inversion, on_step=report)
    better = second.loss < first.loss  # (B,)

    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(better.view(-1, *[1] * (a.dim() - 1)), b, a)

    return Inversion(
        w_plus=pick(first.w_plus, second.w_plus),
        image=pick(first.image, second.image),
        label_probs=pick(first.label_probs, second.label_probs),
        loss=pick(first.loss, second.loss),
        steps=first.steps,
    )


def judge(slice_errors: np.ndarray, bundle: Bundle) -> Trust:
    """Compare the reconstruction errors (N,) with those of the validation slices in training.

    A simple first rule: a slice counts as explained when its error is not above the 95th percentile that
    the encoder alone reached on validation slices. That limit is lenient for a poor model, so one whose own
    validation DICE was below ``_POOR_DICE`` is never "ok".
    """
    limit = float(bundle.facts.get("validation_rmse_p95", np.inf))
    explained = float((slice_errors <= limit).mean())
    if not np.isfinite(limit):
        return Trust("review", explained, "the model carries no validation errors to compare with")
    dice = float(bundle.facts.get("validation_dice", np.nan))  # absent without validation patients
    if dice < _POOR_DICE:
        reason = f"the model itself reached only DICE {dice:.2f} on its validation patients; check the mask"
        return Trust("review", explained, reason)
    if explained >= 0.8:
        return Trust("ok", explained, f"{explained:.0%} of the slices are explained as well as in validation")
    reason = f"only {explained:.0%} of the slices are explained as well as in validation; check the mask"
    return Trust("review", explained, reason)


@dataclass(frozen=True)
class LabelVolume:
    """How much of a label there is."""

    name: str
    value: int
    voxels: int
    volume_ml: float | None  # None for a picture, which has no size in the patient


def label_volumes(segmentation: Segmentation, bundle: Bundle) -> list[LabelVolume]:
    """Voxels and millilitres of every label of the model, in the label map."""
    counts = np.zeros(256, np.int64)
    for plane in segmentation.labels:  # one at a time: bincount makes 64-bit integers of what it counts
        counts += np.bincount(plane.ravel(), minlength=256)
    grid = segmentation.stack.grid
    volumes = []
    for label in bundle.config.labels:
        voxels = int(counts[label.value])
        volume_ml = None if grid is None else voxels * grid.voxel_ml
        volumes.append(LabelVolume(label.name, label.value, voxels, volume_ml))
    return volumes
