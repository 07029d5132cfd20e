"""How a model labels a stack of slices: the student's answer, checked by inversion, or inversion alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from sgan_core.bundle import Bundle
from sgan_core.config import InversionConfig
from sgan_core.errors import InputError
from sgan_core.imaging.slices import reduced
from sgan_core.inversion import Inversion, fitting_batch, invert
from sgan_core.networks.segmenter import label_probs
from sgan_core.reconstruction import (
    RECONSTRUCTIONS,
    Reconstruction,
    make_reconstruction,
    recoloured,
    unexplained_shares,
)
from sgan_core.trust import Anatomy, features

OnProgress = Callable[[int, int, str], None]  # done, total, message
QUALITIES = ("fast", "standard", "careful")
AUTO = "auto"

FOREIGN_RECONSTRUCTION = "map-mind"  # for brightness that means something else, see docs/results.md
_SAME_BRIGHTNESS = 1.4  # phantom CT validation patients: 1.1 to 1.3; their T1 images 1.5 to 1.9

# Through-plane smoothing: standard deviation of a Gaussian in slices. In slices, not mm: what flickers is each
# slice's own error, whatever the distance. From 0.82 on a slice cannot outvote its two neighbours (docs/results.md).
_THROUGH_PLANE = 0.85


@dataclass(frozen=True)
class SegmentConfig:
    """How to segment.

    quality: fast (one pass of student and encoder), standard (inversion too), careful (a second start from the
    mean w, 2.5 times the steps). steps: replaces the quality's number. reconstruction: the objective of
    inversion. With "auto" it is decided case by case, and the mask is the student's where the model has one,
    inversion being its judge; any name in ``RECONSTRUCTIONS`` gives the mask of inversion alone, as in the paper.
    encoder_only: the encoder's mask, the paper's "Ours-NO". region: only slices whose centre lies between these
    two, in mm towards the head (the S of RAS). largest_component: of each label only the largest connected piece;
    None: of the labels that were one piece in the patients that the model learned from.
    """

    quality: str = "standard"
    steps: int | None = None
    reconstruction: str = AUTO
    batch: int | None = None  # slices optimised together; the bundle's value when left out
    encoder_only: bool = False
    region: tuple[float, float] | None = None
    largest_component: bool | None = None

    def __post_init__(self) -> None:
        if self.quality not in QUALITIES:
            raise InputError(f"quality is {self.quality!r}, expected one of {', '.join(QUALITIES)}")
        if self.reconstruction not in (AUTO, *RECONSTRUCTIONS):
            known = ", ".join((AUTO, *RECONSTRUCTIONS))
            raise InputError(f"reconstruction is {self.reconstruction!r}, expected one of {known}")
        if self.steps is not None and self.steps < 0:
            raise InputError(f"steps is {self.steps}, expected 0 or more")
        if self.batch is not None and self.batch < 1:
            raise InputError(f"batch is {self.batch}, expected 1 or more")
        if self.region is not None and not all(map(math.isfinite, self.region)):
            raise InputError(f"region is {self.region}, expected two numbers in mm")

    @property
    def needs_inverter(self) -> bool:
        """Whether it asks for what a student alone cannot do."""
        return self.encoder_only or self.reconstruction != AUTO or bool(self.steps)

    def asks(self, bundle: Bundle) -> bool:
        """Whether the mask is to be the student's."""
        return bundle.student is not None and self.reconstruction == AUTO and not self.encoder_only

    def one_piece(self, bundle: Bundle) -> tuple[int, ...]:
        """Values of the labels of which only the largest piece is kept."""
        if self.largest_component is None:
            return bundle.one_piece
        return tuple(label.value for label in bundle.config.labels) if self.largest_component else ()

    def inversion(self, bundle: Bundle) -> InversionConfig:
        """The model's settings of inversion with what this config changes."""
        stored = bundle.config.inversion
        factor = {"fast": 0.0, "standard": 1.0, "careful": 2.5}[self.quality]
        steps = int(factor * (stored.check_steps if self.asks(bundle) else stored.steps))
        steps = steps if self.steps is None else self.steps
        return replace(stored, steps=0 if self.encoder_only else steps, batch=self.batch or stored.batch)

    def calibrated_as(self, bundle: Bundle) -> tuple[str, str] | None:
        """Quality and method whose calibration of trust holds for this way of segmenting; None: no one's does."""
        if self.asks(bundle):
            return (self.quality, "student") if self.steps is None else None
        # Calibrating the masks of inversion would take hours on a CPU; the encoder's are the same at any quality.
        return None if self.inversion(bundle).steps else ("fast", "encoder")


@dataclass(frozen=True)
class Chosen:
    """The objective of inversion for a case, and why."""

    name: str  # in RECONSTRUCTIONS
    reason: str


@dataclass(frozen=True, eq=False)
class Labelling:
    """What a model says about N slices. Probabilities are (N, K, S, S) float16, channel 0 is background.

    S is the student's size for its own, the generator's for what comes of that.
    None: what comes of a generator, of a model that is a student alone.
    """

    label_probs: np.ndarray  # the answer
    inverted_probs: np.ndarray | None  # of the generator, by inversion or (0 steps) the encoder
    student_probs: np.ndarray | None  # None: the model has no student
    reconstructions: np.ndarray | None  # (N, C, S, S) float32 in about [-1, 1], brightness as in the slices
    features: np.ndarray | None  # (N, F) of ``trust.features``; None without a student or anatomy
    chosen: Chosen | None
    method: str  # what gave the answer: "student" | "inversion" | "encoder"
    steps: int  # of inversion


def label_slices(
    images: np.ndarray,
    bundle: Bundle,
    config: SegmentConfig | None = None,
    *,
    foreign: str | None = None,
    anatomy: Anatomy | None = None,
    on_progress: OnProgress = lambda done, total, message: None,
) -> Labelling:
    """Label slices (N, C, S, S) float32 in [-1, 1] of one case, S the student's size; the generator sees averages.

    foreign: why the intensities cannot mean what they meant in training, if they cannot. anatomy: of a
    calibration of trust, whose features are then taken. on_progress counts optimisation steps of single slices;
    what it raises stops the work. Raises InputError when a student alone is asked for more than it can.
    """
    config = config or SegmentConfig()
    if bundle.inverter is None and not config.needs_inverter:
        return _labelled_by_student(images, bundle, config, on_progress)
    settings = config.inversion(bundle)
    starts = 2 if config.quality == "careful" and settings.steps else 1
    generator = bundle.config.generator
    count, steps = len(images), starts * settings.steps
    total = count * max(1, steps)
    small = reduced(torch.from_numpy(images), generator.size).numpy()
    chosen = choose_reconstruction(config, small, bundle, foreign=foreign)
    reconstruction = make_reconstruction(chosen.name, bundle.perceptual, settings)
    batch = settings.batch
    if config.batch is None and count:
        one = torch.from_numpy(small[:1]).to(bundle.device)
        batch = fitting_batch(one, bundle.generator, reconstruction, settings)

    # Filled batch by batch: parts that are joined at the end would double the memory of a large scan.
    reconstructions = np.empty_like(small)
    inverted = np.empty((count, generator.num_classes, *small.shape[2:]), np.float16)
    taught = None
    if bundle.student is not None:
        taught = np.empty((count, generator.num_classes, *images.shape[2:]), np.float16)
    found: list[np.ndarray] = []
    furthest = 0  # of all steps: a batch that does not fit into memory begins anew in halves
    for first in range(0, count, batch):
        rows = slice(first, min(first + batch, count))
        target = torch.from_numpy(small[rows]).to(bundle.device)

        def on_step(step: int, rows: slice = rows) -> None:
            nonlocal furthest
            message = f"slice {rows.start + 1} to {rows.stop} of {count}"
            done = rows.start * max(1, steps) + (rows.stop - rows.start) * step
            furthest = max(furthest, done)
            on_progress(furthest, total, f"{message}, step {step} of {steps}" if steps else message)

        on_step(0)
        part = _best_of_starts(target, bundle, reconstruction, settings, starts, on_step)
        shown = part.image if chosen.name == "paper" else recoloured(part.image, target)
        reconstructions[rows] = shown.float().cpu().numpy()
        inverted[rows] = part.label_probs.half().cpu().numpy()
        if bundle.student is not None and taught is not None:
            whole = torch.from_numpy(images[rows]).to(bundle.device)
            answer = label_probs(bundle.student, whole)
            taught[rows] = answer.half().cpu().numpy()
            if anatomy is not None:
                networks = {"student": bundle.student, "encoder": bundle.encoder}
                found.append(features(whole, answer, part, anatomy=anatomy, **networks))
    on_progress(total, total, "labelling")
    asks = config.asks(bundle)
    inverting = "inversion" if settings.steps else "encoder"
    return Labelling(
        label_probs=taught if asks and taught is not None else inverted,
        inverted_probs=inverted,
        student_probs=taught,
        reconstructions=reconstructions,
        features=np.concatenate(found) if found else None,
        chosen=chosen,
        method="student" if asks else inverting,
        steps=settings.steps,
    )


def _labelled_by_student(
    images: np.ndarray, bundle: Bundle, config: SegmentConfig, on_progress: OnProgress
) -> Labelling:
    """What a student alone says about slices (N, C, S, S)."""
    assert bundle.student is not None
    count, batch = len(images), config.batch or bundle.config.inversion.batch
    found = np.empty((count, bundle.config.generator.num_classes, *images.shape[2:]), np.float16)
    for first in range(0, count, batch):
        rows = slice(first, min(first + batch, count))
        on_progress(first, count, f"slice {first + 1} to {rows.stop} of {count}")
        target = torch.from_numpy(images[rows]).to(bundle.device)
        found[rows] = label_probs(bundle.student, target).half().cpu().numpy()
    on_progress(count, count, "labelling")
    return Labelling(
        label_probs=found,
        inverted_probs=None,
        student_probs=found,
        reconstructions=None,
        features=None,
        chosen=None,
        method="student",
        steps=0,
    )


def answers(
    images: np.ndarray, bundle: Bundle, quality: str, anatomy: Anatomy
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What trust is calibrated on: the features (N, F) of slices, and the masks by method at the generator's size.

    images: as for ``label_slices``, of one kind, as those of a case are; the very same is done to them. Raises
    ValueError without a student and a generator.
    """
    found = label_slices(images, bundle, SegmentConfig(quality), anatomy=anatomy)
    if found.features is None or found.student_probs is None or found.inverted_probs is None:
        raise ValueError("the model has no student, or no generator")
    probs = {"student": found.student_probs}
    if not found.steps:
        probs["encoder"] = found.inverted_probs
    size = bundle.config.generator.size
    small = {method: reduced(torch.from_numpy(part).float(), size) for method, part in probs.items()}
    return found.features, {method: p.argmax(dim=1).numpy().astype(np.uint8) for method, p in small.items()}


def choose_reconstruction(
    config: SegmentConfig, images: np.ndarray, bundle: Bundle, *, foreign: str | None
) -> Chosen:
    """Decide on the objective for slices (N, C, S, S) of one case.

    The paper's terms compare intensities, so these must mean what they meant in training: be in the right units,
    and the encoder's first guess must explain the image about as well as it is as through a free curve.
    """
    if config.reconstruction != AUTO:
        return Chosen(config.reconstruction, "asked for")
    if foreign:
        return Chosen(FOREIGN_RECONSTRUCTION, foreign)
    ratio = _brightness_ratio(images, bundle)
    if ratio > _SAME_BRIGHTNESS:
        times = f"a free curve explains the first guess {ratio:.1f} times better"
        return Chosen(FOREIGN_RECONSTRUCTION, f"tissues have other brightness than in training: {times}")
    return Chosen("paper", "brightness means what it meant in training: a free curve explains hardly more")


@torch.no_grad()
def _brightness_ratio(images: np.ndarray, bundle: Bundle) -> float:
    """How many times more a free brightness curve explains of the encoder's first guess than brightness as it is."""
    plain = curved = 0.0
    for part in torch.from_numpy(images).split(bundle.config.inversion.batch):
        target = part.to(bundle.device)
        guess = bundle.generator.synthesis(bundle.encoder(target)).image
        shares = unexplained_shares(guess, target)
        plain, curved = plain + float(shares[0].sum()), curved + float(shares[1].sum())
    return plain / max(curved, 1e-6)


def _best_of_starts(
    target: Tensor,
    bundle: Bundle,
    reconstruction: Reconstruction,
    settings: InversionConfig,
    starts: int,
    on_step: Callable[[int], None],
) -> Inversion:
    """Inversion from the encoder's answer; with 2 starts also from the mean w, each slice's better one of both.

    on_step(step) counts through both.
    """

    def counted_from(base: int) -> Callable[[int, dict[str, Tensor]], bool]:
        def report(step: int, terms: dict[str, Tensor]) -> bool:
            on_step(base + step)
            return True

        return report

    report = counted_from(0)
    from_start = partial(invert, target, bundle.generator, curvature=bundle.curvature)
    first = from_start(bundle.encoder, reconstruction, settings, on_step=report)
    if starts == 1:
        return first
    report = counted_from(settings.steps)
    second = from_start(None, reconstruction, settings, on_step=report)
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


def smooth_through_plane(probabilities: np.ndarray) -> np.ndarray:
    """Let neighbouring slices of a volume agree: probabilities (N, K, S, S) blurred along N, the same dtype.

    Slices are labelled one by one, so a slice may differ from both its neighbours by chance alone.
    """
    smooth = np.empty_like(probabilities)
    for channel in range(probabilities.shape[1]):  # one at a time: the filter works in float32
        part = probabilities[:, channel].astype(np.float32)
        smooth[:, channel] = gaussian_filter1d(part, _THROUGH_PLANE, axis=0, mode="nearest")
    return smooth
