"""Calibrates the trust report: slices that fail on purpose, and the two logistic regressions fitted to them.

Slices of validation patients are shown as they are, in looks that no training draws, and corrupted, mildly and
severely. So it is known which masks come out wrong, and which inputs are foreign.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter, rotate
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor, nn

from sgan_core.appearance import always, apply_curves, shift_appearance
from sgan_core.bundle import Bundle
from sgan_core.cohort import MODALITIES, Cohort
from sgan_core.errors import InputError
from sgan_core.imaging.slices import AIR, reduced_labels
from sgan_core.labelling import QUALITIES, OnProgress, answers
from sgan_core.looks import AppearanceConfig
from sgan_core.metrics import failure
from sgan_core.training.data import CACHE_FOLDER, SliceStore, rng, slices_of_model
from sgan_core.training.evaluate import spread
from sgan_core.trust import FEATURES, Anatomy, Calibration, Regression, deep_answers

# Shown in all. With half as many the phantom model's AUC for wrong masks at "careful" fell from 0.90 to 0.77.
SLICES = 320
MILD, SEVERE = (0.15, 0.5), (0.8, 1.0)  # ranges of grades; what is severe is foreign
_TRAINING_SLICES = 300  # that say where training anatomy lies
LEAST_SLICES = 24  # of labelled validation patients; fewer say nothing about so many weights
_RIDGES = (0.3, 1.0, 3.0, 10.0)  # strengths of the penalty on the weights that are tried
_BIAS_RIDGE = 0.01  # keeps the bias finite when nothing fails

# images (N, C, S, S), all of one kind, and the anatomy -> features (N, F), and masks (N, S, S) uint8 by method
SegmentSlices = Callable[[np.ndarray, Anatomy], tuple[np.ndarray, dict[str, np.ndarray]]]
Pair = tuple[np.ndarray, np.ndarray]  # image (C, S, S) in about [-1, 1], label (S, S)
Corruption = Callable[[np.ndarray, np.ndarray, float, np.random.Generator], Pair]


@dataclass(frozen=True, eq=False)
class Shown:
    """Slices that are shown to the model, with what is known about them."""

    images: np.ndarray  # (N, C, S, S) float32 in [-1, 1]
    labels: np.ndarray  # (N, S, S) uint8; empty where a picture holds no anatomy
    patients: tuple[str, ...]
    kinds: tuple[str, ...]  # "clean", "appearance", "family" or the name of a corruption
    foreign: np.ndarray  # (N,) float: 1 foreign, 0 not, NaN a matter of opinion (mild corruption)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def anatomical(self) -> np.ndarray:
        """(N,) bool: pictures of a body, of whose organ a mask can be right or wrong."""
        return ~(np.isin(self.kinds, _NO_ANATOMY) & (self.foreign == 1.0))


# --- slices that fail on purpose: image, label, grade 0..1 -> both changed, not clipped -------------


def noisy(image: np.ndarray, label: np.ndarray, grade: float, random: np.random.Generator) -> Pair:
    """Noise with a standard deviation of up to 0.8 of the range's half."""
    return image + grade * 0.8 * random.normal(size=image.shape), label


def cut_off(image: np.ndarray, label: np.ndarray, grade: float, random: np.random.Generator) -> Pair:
    """Up to half of the picture is missing on one side; the truth is what can still be seen."""
    image, label = image.copy(), label.copy()
    turns, rows = int(random.integers(4)), round(grade * label.shape[0] / 2)
    np.rot90(image, turns, axes=(1, 2))[:, :rows] = AIR  # a view: it writes through
    np.rot90(label, turns)[:rows] = 0
    return image, label


def turned(image: np.ndarray, label: np.ndarray, grade: float, random: np.random.Generator) -> Pair:
    """Turned by up to 180 degrees, to either side."""
    degrees = grade * random.uniform(60.0, 180.0) * random.choice([-1, 1])
    image = rotate(image, degrees, axes=(1, 2), reshape=False, order=1, cval=AIR)
    return image, rotate(label, degrees, reshape=False, order=0)


def overturned(image: np.ndarray, label: np.ndarray, grade: float, random: np.random.Generator) -> Pair:
    """Upside down, mirrored, or a quarter or half turn, when severe; nobody would call a mild one by this name."""
    if grade < SEVERE[0]:
        return image, label
    turns = int(random.integers(5))
    if turns > 2:  # rows or columns in reverse
        axis = turns - 3
        return np.flip(image, axis + 1).copy(), np.flip(label, axis).copy()
    return np.rot90(image, turns + 1, axes=(1, 2)).copy(), np.rot90(label, turns + 1).copy()


def shuffled(image: np.ndarray, label: np.ndarray, grade: float, random: np.random.Generator) -> Pair:
    """Some of 4 x 4 blocks, at grade 1 all of them, change places. The label's blocks go with them."""
    blocks, count = 4, round(16 * grade)
    chosen = random.permutation(blocks**2)[:count]
    place = np.arange(blocks**2)
    place[chosen] = np.roll(chosen, 1)  # none of the chosen stays where it was
    return _rearranged(image, place, blocks), _rearranged(label[None], place, blocks)[0]


def _rearranged(image: np.ndarray, place: np.ndarray, blocks: int) -> np.ndarray:
    """Block k of the result is block place[k] of image (C, S, S)."""
    channels, size = image.shape[:2]
    side = size // blocks
    tiles = image.reshape(channels, blocks, side, blocks, side).swapaxes(2, 3)  # (C, row, column, side, side)
    tiles = tiles.reshape(channels, -1, side, side)[:, place]
    return tiles.reshape(channels, blocks, blocks, side, side).swapaxes(2, 3).reshape(image.shape)


def pattern(image: np.ndarray, label: np.ndarray, grade: float, random: np.random.Generator) -> Pair:
    """Smooth random shapes laid over the picture; when severe they stand alone, without any anatomy."""
    unit = label.shape[0] / 64
    field = gaussian_filter(random.normal(size=label.shape), random.uniform(1.5, 6.0) * unit)
    field = np.clip(field / (2.0 * field.std()), -1.0, 1.0)
    if grade >= SEVERE[0]:
        return np.broadcast_to(field, image.shape), np.zeros_like(label)
    return (1.0 - grade) * image + grade * field, label


CORRUPTIONS: tuple[Corruption, ...] = (noisy, cut_off, turned, overturned, shuffled, pattern)
_ORIENTED = (turned, overturned)  # foreign only where sides have a meaning
_NO_ANATOMY = ("shuffled", "pattern")  # severe ones


def look_family(images: Tensor, numbers: torch.Generator) -> Tensor:
    """A family of looks that training never draws: negatives, gamma, waves, and curves of many points.

    images: (N, C, S, S) in [-1, 1]; numbers: the only source of randomness. Returns the same shape and range.
    """
    grey = torch.linspace(-1.0, 1.0, 256)
    looks = []
    for number in range(len(images)):
        random = torch.rand(12, generator=numbers) * 2.0 - 1.0
        gamma = ((grey + 1.0) / 2.0).pow(torch.exp(1.2 * random[0])) * 2.0 - 1.0
        wave = torch.sin((2.75 + 1.25 * random[0]) * grey + torch.pi * random[1])
        many = F.interpolate(random[None, None], size=256, mode="linear", align_corners=True)[0, 0]
        looks.append((-grey, gamma, wave, many)[number % 4])
    return apply_curves(images, torch.stack(looks).to(images.device)) if looks else images


def show(
    store: SliceStore, *, looks: AppearanceConfig | None = None, count: int = SLICES, seed: int = 0
) -> Shown:
    """About ``count`` slices of the labelled validation patients, the same for the same seed. looks: the training's.

    A quarter is clean, a quarter in other looks, and each corruption has an equal share of the rest, half of it
    mild. Slices are drawn at random, empty ones as often as they occur.
    """
    positions = store.slices_of(split="validation", with_label=True)
    if not len(positions):
        raise ValueError("no labelled validation slices")
    random = np.random.default_rng([seed, 1])
    drawn = _endless(positions, random)
    sides = not MODALITIES[store.cohort.modality]["flip"]
    corruptions = [corrupt for corrupt in CORRUPTIONS if sides or corrupt not in _ORIENTED]
    each = max(1, count // (4 * len(corruptions)))  # slices of a corruption and grade
    plain = {"clean": count // 4, "appearance": count // 8, "family": count // 8}
    index = {kind: np.array([next(drawn) for _ in range(number)], int) for kind, number in plain.items()}
    images = {kind: store.image_batch(found) for kind, found in index.items()}
    strong = always(looks or AppearanceConfig())
    images["appearance"] = shift_appearance(images["appearance"], rng(seed, 0, "trust-appearance"), strong)
    images["family"] = look_family(images["family"], rng(seed, 0, "trust-family"))
    parts = [_part(kind, images[kind].numpy(), *_truth(store, found), 0.0) for kind, found in index.items()]
    for corrupt in corruptions:
        for (low, high), foreign in ((MILD, np.nan), (SEVERE, 1.0)):
            found = np.array([next(drawn) for _ in range(each)])
            labels, patients = _truth(store, found)
            pairs = [
                corrupt(image, label, random.uniform(low, high), random)
                for image, label in zip(store.image_batch(found).numpy(), labels, strict=True)
            ]
            changed, moved = (np.stack(side) for side in zip(*pairs, strict=True))
            parts.append(_part(corrupt.__name__, changed, moved, patients, foreign))
    return join(parts)


def join(parts: Sequence[Shown]) -> Shown:
    """Several sets of slices as one."""
    return Shown(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.labels for part in parts]),
        tuple(patient for part in parts for patient in part.patients),
        tuple(kind for part in parts for kind in part.kinds),
        np.concatenate([part.foreign for part in parts]),
    )


def _endless(positions: np.ndarray, random: np.random.Generator) -> Iterator[int]:
    while True:
        yield from random.permutation(positions)


def _truth(store: SliceStore, index: np.ndarray) -> tuple[np.ndarray, list[str]]:
    return store.label_batch(index).numpy().astype(np.uint8), store.patients(index)


def _part(kind: str, images: np.ndarray, labels: np.ndarray, patients: list[str], foreign: float) -> Shown:
    count = len(images)
    clipped = images.clip(-1.0, 1.0).astype(np.float32)
    return Shown(clipped, labels, tuple(patients), (kind,) * count, np.full(count, foreign))


# --- the fit ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Measured:
    """What one method of the model made of shown slices."""

    features: np.ndarray  # (N, F) in the order of ``trust.FEATURES``
    slice_dice: np.ndarray  # (N,) of the method's masks, see ``failure.slice_dice``
    masks: np.ndarray  # (N, S, S) uint8, at the generator's size

    @property
    def wrong(self) -> np.ndarray:
        """(N,) bool: masks that count as wrong."""
        return self.slice_dice < failure.FAILED_DICE


def measure(
    shown: Shown, segment_slices: SegmentSlices, anatomy: Anatomy, *, batch: int = 16
) -> dict[str, Measured]:
    """Segment the slices, up to ``batch`` of one kind at a time; by method, the features and truth of each slice."""
    parts = [segment_slices(shown.images[index], anatomy) for index in _batches(shown.kinds, batch)]
    found = np.concatenate([features for features, _ in parts])
    masks = {method: np.concatenate([part[method] for _, part in parts]) for method in parts[0][1]}
    return {
        method: Measured(found, failure.slice_dice(mask, _labels_at(shown, mask.shape[-1])), mask)
        for method, mask in masks.items()
    }


def _labels_at(shown: Shown, size: int) -> np.ndarray:
    """The truth of shown slices (N, size, size) uint8."""
    return reduced_labels(torch.from_numpy(shown.labels), size).numpy()


def _batches(kinds: Sequence[str], most: int) -> Iterator[np.ndarray]:
    """Positions in order, ``most`` at a time and never of two kinds: what is decided by case sees one kind."""
    ends = [k for k in range(1, len(kinds)) if kinds[k] != kinds[k - 1]]
    for run in np.split(np.arange(len(kinds)), ends):
        yield from (run[first : first + most] for first in range(0, len(run), most))


def trust_facts(
    bundle: Bundle,
    store: SliceStore,
    *,
    on_progress: OnProgress = lambda done, total, message: None,
) -> dict[str, Any]:
    """Facts that calibrate trust in a finished model, for each quality and method that has one.

    bundle: with a student; store: of the cohort's slices at the student's size. ``trust`` is the table that
    ``trust.stored_calibration`` reads, empty with fewer than 24 slices of labelled validation patients; beside it
    stand the figures of ``fit``. What on_progress raises stops the work. The same arguments give the same result.
    """
    facts: dict[str, Any] = {"trust": {}, "trust_cohort": store.cohort.name}
    if bundle.student is None:
        raise ValueError("the model has no student")
    if len(store.slices_of(split="validation", with_label=True)) < LEAST_SLICES:
        return facts
    seed = bundle.config.seed
    looks = bundle.config.student_train.looks
    anatomy = training_anatomy(store, bundle.student, looks=looks, device=bundle.device, seed=seed)
    done, total = 0, SLICES * len(QUALITIES)
    for quality in QUALITIES:

        def segment_slices(
            images: np.ndarray, anatomy: Anatomy, quality: str = quality
        ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
            nonlocal done
            on_progress(done, total, "calibrating trust")
            done += len(images)
            return answers(images, bundle, quality, anatomy)

        found = calibrate(show(store, looks=looks, count=SLICES, seed=seed), segment_slices, anatomy)
        for method, (calibration, figures) in found.items():
            facts["trust"].setdefault(method, {})[quality] = calibration.to_dict()
            facts |= {f"trust_{method}_{quality}_{name}": value for name, value in figures.items()}
    on_progress(total, total, "calibrating trust")
    return facts


def trust_facts_of(
    bundle: Bundle, cohort: Cohort, *, on_progress: OnProgress = lambda done, total, message: None
) -> dict[str, Any]:
    """``trust_facts`` with the slices of a cohort, prepared as in training.

    Where the cohort or the model's training run has a folder of prepared slices, they are taken from there.
    Raises InputError when the cohort has other labels than the model, or too few validation slices with labels.
    """
    config = bundle.config
    if {label.value for label in config.labels} != {label.value for label in cohort.labels}:
        names = ["/".join(one.name for one in labels) or "none" for labels in (config.labels, cohort.labels)]
        raise InputError(f"{bundle.name} draws {names[0]}, the cohort {cohort.name} has {names[1]}.")
    caches = [place / CACHE_FOLDER for place in (cohort.root, bundle.folder.parent) if place]
    with tempfile.TemporaryDirectory(prefix="sgan-slices-", ignore_cleanup_errors=True) as folder:
        cache = next((cache for cache in caches if cache.is_dir()), Path(folder))
        store = slices_of_model(cohort, config, cache, on_progress=on_progress)
        facts = trust_facts(bundle, store, on_progress=on_progress)
    if not facts["trust"]:
        raise InputError(
            f"cohort {cohort.name}: fewer than {LEAST_SLICES} slices of labelled validation patients. Put more "
            "labelled patients into the split validation."
        )
    return facts


def calibrate(
    shown: Shown, segment_slices: SegmentSlices, anatomy: Anatomy, *, batch: int = 16
) -> dict[str, tuple[Calibration, dict[str, float]]]:
    """Fit the trust report to what a model makes of shown slices, by method; with figures, see ``fit``.

    segment_slices: what segments for users, at the quality that is to be calibrated.
    """
    found = {}
    for method, measured in measure(shown, segment_slices, anatomy, batch=batch).items():
        # An empty mask of a mere pattern is right: to learn from it would be to trust masks of what looks strange.
        wrong = np.where(shown.anatomical, measured.wrong, np.nan)
        found[method] = fit(measured.features, wrong, shown.foreign, shown.patients, anatomy)
    return found


def training_anatomy(
    store: SliceStore,
    student: nn.Module,
    *,
    looks: AppearanceConfig | None = None,
    device: torch.device,
    seed: int = 0,
) -> Anatomy:
    """What the student makes of training slices, labelled or not, as they are and in two other looks."""
    images = store.image_batch(spread(store.slices_of(split="train"), _TRAINING_SLICES))
    strong = always(looks or AppearanceConfig())
    others = [shift_appearance(images, rng(seed, number, "trust-anatomy"), strong) for number in range(2)]
    answers = [deep_answers(student, look.to(device)) for look in (images, *others)]
    return Anatomy.of(np.concatenate(answers))


def fit(
    found: np.ndarray,
    wrong: np.ndarray,
    foreign: np.ndarray,
    patients: Sequence[str],
    anatomy: Anatomy,
) -> tuple[Calibration, dict[str, float]]:
    """Both regressions on features (N, F), with figures of patients left out of the fit.

    Figures: ``auc_wrong``, ``auc_foreign``, ``calibration_error`` (NaN with one patient), and how many slices and
    patients there were. wrong, foreign: (N,) 0, 1 or NaN (not used); anatomy: what the features were taken with. The
    strength of the penalty is the one whose regressions, each fitted without a patient, predict that patient
    best.
    """
    names = np.asarray(patients)
    centre, scale = found.mean(axis=0), found.std(axis=0)
    scale = np.where(scale > 1e-6, scale, 1.0)  # a feature that says nothing, as "search" without steps
    x = (found - centre) / scale

    def regression(answer: np.ndarray) -> tuple[Regression, np.ndarray, np.ndarray]:
        known = ~np.isnan(answer)
        truth = answer[known] > 0.5
        return *_regression(x[known], truth, names[known]), truth

    for_wrong, left_wrong, is_wrong = regression(wrong)
    for_foreign, left_foreign, is_foreign = regression(foreign)
    calibration = Calibration(
        tuple(FEATURES),
        tuple(centre.tolist()),
        tuple(scale.tolist()),
        for_wrong,
        for_foreign,
        anatomy,
    )
    figures = {
        "auc_wrong": failure.auc(left_wrong, is_wrong),
        "auc_foreign": failure.auc(left_foreign, is_foreign),
        "calibration_error": failure.calibration_error(failure.reliability(left_wrong, is_wrong)),
        "slices": float(len(x)),
        "patients": float(len(set(patients))),
    }
    return calibration, figures


def _regression(x: np.ndarray, y: np.ndarray, patients: np.ndarray) -> tuple[Regression, np.ndarray]:
    """The regression of y (N,) bool on x (N, F), and each slice's probability without its patient, (N,).

    With one patient there is nobody to leave out: a middling penalty, and NaN.
    """
    if len(np.unique(patients)) < 2:
        return _fit_logistic(x, y, 1.0), np.full(len(y), np.nan)
    left_out = {ridge: _left_out(x, y, patients, ridge) for ridge in _RIDGES}
    best = min(_RIDGES, key=lambda ridge: _log_loss(left_out[ridge], y))
    return _fit_logistic(x, y, best), left_out[best]


def _left_out(x: np.ndarray, y: np.ndarray, patients: np.ndarray, ridge: float) -> np.ndarray:
    """Probabilities (N,), each patient's by the regression on all the others."""
    probability = np.full(len(y), np.nan)
    for patient in np.unique(patients):
        rest = patients != patient
        regression = _fit_logistic(x[rest], y[rest], ridge)
        probability[~rest] = expit(x[~rest] @ np.array(regression.weights) + regression.bias)
    return probability


def _log_loss(probability: np.ndarray, y: np.ndarray) -> float:
    clipped = probability.clip(1e-6, 1.0 - 1e-6)
    return float(-np.log(np.where(y, clipped, 1.0 - clipped)).mean())


def _fit_logistic(x: np.ndarray, y: np.ndarray, ridge: float) -> Regression:
    """Logistic regression of y (N,) bool on standardised x (N, F): log loss + ridge / 2 * |weights|^2.

    Weights are not below 0: every feature is made to rise with suspicion, and what a few patients say
    against that is chance.
    """
    pull = np.full(x.shape[1] + 1, ridge)
    pull[-1] = _BIAS_RIDGE
    columns = np.column_stack([x, np.ones(len(x))])

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        z = columns @ values
        value = (np.logaddexp(0.0, z) - y * z).sum() + 0.5 * (pull * values**2).sum()
        return float(value), columns.T @ (expit(z) - y) + pull * values

    bounds = [(0.0, None)] * x.shape[1] + [(None, None)]
    values = minimize(loss, np.zeros(len(pull)), jac=True, method="L-BFGS-B", bounds=bounds).x
    return Regression(tuple(values[:-1].tolist()), float(values[-1]))
