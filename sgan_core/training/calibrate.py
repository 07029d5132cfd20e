"""Calibrates the trust report: slices that fail on purpose, and the two logistic regressions fitted to them.

Slices of validation patients are shown as they are, in looks that no training draws, and corrupted, mildly and
severely. So it is known which masks come out wrong, and which inputs are foreign.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter, rotate
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor, nn

from sgan_core.appearance import AppearanceConfig, apply_curves, shift_appearance
from sgan_core.cohort import MODALITIES
from sgan_core.imaging.slices import AIR
from sgan_core.inversion import Inversion
from sgan_core.metrics import failure
from sgan_core.training.data import SliceStore, rng
from sgan_core.training.evaluate import spread
from sgan_core.trust import FEATURES, Anatomy, Calibration, Regression, deep_answers, features

SLICES = 320  # shown in all
MILD, SEVERE = (0.15, 0.5), (0.8, 1.0)  # ranges of grades; what is severe is foreign
_TRAINING_SLICES = 300  # that say where training anatomy lies
_LEAST = 24  # validation slices; fewer say nothing about so many weights
_RIDGES = (0.3, 1.0, 3.0, 10.0)  # strengths of the penalty on the weights that are tried
_BIAS_RIDGE = 0.01  # keeps the bias finite when nothing fails

# target (N, C, S, S), all of one kind -> final_probs, student_probs (N, K, S, S) and the unguided inversion
SegmentSlices = Callable[[Tensor], tuple[Tensor, Tensor, Inversion]]
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
    field = gaussian_filter(random.normal(size=label.shape), random.uniform(1.5, 6.0))
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


def show(store: SliceStore, *, count: int = SLICES, seed: int = 0) -> Shown:
    """About ``count`` slices of the labelled validation patients, the same for the same seed.

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
    strong = AppearanceConfig(curve=1.0)
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
    return store.labels[index], store.patients(index)


def _part(kind: str, images: np.ndarray, labels: np.ndarray, patients: list[str], foreign: float) -> Shown:
    count = len(images)
    clipped = images.clip(-1.0, 1.0).astype(np.float32)
    return Shown(clipped, labels, tuple(patients), (kind,) * count, np.full(count, foreign))


# --- the fit ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Measured:
    """What the model made of shown slices."""

    features: np.ndarray  # (N, F) in the order of ``trust.FEATURES``
    slice_dice: np.ndarray  # (N,) of the delivered mask, see ``failure.slice_dice``
    masks: np.ndarray  # (N, S, S) uint8

    @property
    def wrong(self) -> np.ndarray:
        """(N,) bool: masks that count as wrong."""
        return self.slice_dice < failure.FAILED_DICE


def measure(
    shown: Shown,
    segment_slices: SegmentSlices,
    *,
    student: nn.Module,
    encoder: nn.Module,
    anatomy: Anatomy,
    batch: int = 16,
) -> Measured:
    """Segment the slices, up to ``batch`` of one kind at a time, and take the features and the truth of each."""
    device = next(encoder.parameters()).device
    found, masks = [], []
    for index in _batches(shown.kinds, batch):
        target = torch.from_numpy(shown.images[index]).to(device)
        final_probs, student_probs, inversion = segment_slices(target)
        found.append(
            features(target, student_probs, inversion, student=student, encoder=encoder, anatomy=anatomy)
        )
        masks.append(final_probs.argmax(dim=1).cpu().numpy().astype(np.uint8))
    predicted = np.concatenate(masks)
    return Measured(np.concatenate(found), failure.slice_dice(predicted, shown.labels), predicted)


def _batches(kinds: Sequence[str], most: int) -> Iterator[np.ndarray]:
    """Positions in order, ``most`` at a time and never of two kinds: what is decided by case sees one kind."""
    ends = [k for k in range(1, len(kinds)) if kinds[k] != kinds[k - 1]]
    for run in np.split(np.arange(len(kinds)), ends):
        yield from (run[first : first + most] for first in range(0, len(run), most))


def calibrate(
    store: SliceStore,
    segment_slices: SegmentSlices,
    *,
    student: nn.Module,
    encoder: nn.Module,
    slices: int = SLICES,
    seed: int = 0,
    batch: int = 16,
) -> tuple[Calibration, dict[str, float]] | None:
    """Fit the trust report of a model to its labelled validation patients; None with too few slices of them.

    segment_slices: what segments for users, with the same quality: a calibration holds for one quality. Both
    networks are in evaluation mode on the device that is to be used. Also returns figures of patients left out
    of the fit: ``auc_wrong``, ``auc_foreign``, ``calibration_error`` (NaN with one patient) and how many
    slices and patients there were. The same arguments give the same result.
    """
    if len(store.slices_of(split="validation", with_label=True)) < _LEAST:
        return None
    shown = show(store, count=slices, seed=seed)
    anatomy = training_anatomy(store, student, device=next(encoder.parameters()).device, seed=seed)
    measured = measure(shown, segment_slices, student=student, encoder=encoder, anatomy=anatomy, batch=batch)
    # An empty mask of a mere pattern is right: to learn from it would be to trust masks of what looks strange.
    wrong = np.where(shown.anatomical, measured.wrong, np.nan)
    return fit(measured.features, wrong, shown.foreign, shown.patients, anatomy)


def training_anatomy(
    store: SliceStore, student: nn.Module, *, device: torch.device, seed: int = 0
) -> Anatomy:
    """What the student makes of training slices, labelled or not, as they are and in two other looks."""
    images = store.image_batch(spread(store.slices_of(split="train"), _TRAINING_SLICES))
    strong = AppearanceConfig(curve=1.0)
    looks = [shift_appearance(images, rng(seed, number, "trust-anatomy"), strong) for number in range(2)]
    answers = [deep_answers(student, look.to(device)) for look in (images, *looks)]
    return Anatomy.of(np.concatenate(answers))


def fit(
    found: np.ndarray,
    wrong: np.ndarray,
    foreign: np.ndarray,
    patients: Sequence[str],
    anatomy: Anatomy,
) -> tuple[Calibration, dict[str, float]]:
    """Both regressions on features (N, F), with figures as ``calibrate`` returns them.

    wrong, foreign: (N,) 0, 1 or NaN (not used); anatomy: what the features were taken with. The
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
