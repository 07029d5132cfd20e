"""How well a score finds the failures: ranking, selective risk, reliability, intervals over patients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from sgan_core.metrics.per_patient import NAN

FAILED_DICE = 0.7  # a slice below is called wrong
_AXES = (1, 2)  # rows and columns of a slice


def slice_dice(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """DICE of each slice (N,), 0..1, the labels pooled. predicted, truth: integer label maps (N, H, W).

    Unlike DICE per patient it is never NaN: a slice that is empty in both counts as right (1), a mask in a
    slice without an organ, or none where there is one, as wrong (0).
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"prediction {predicted.shape} and truth {truth.shape} differ in shape")
    overlap = ((predicted == truth) & (truth > 0)).sum(axis=_AXES)
    total = (predicted > 0).sum(axis=_AXES) + (truth > 0).sum(axis=_AXES)
    return np.where(total > 0, 2.0 * overlap / np.maximum(total, 1), 1.0)


def empty_slice_area_mm2(
    predicted: np.ndarray, truth: np.ndarray, pixel_mm2: float | np.ndarray
) -> tuple[float, int]:
    """Mean falsely labelled area (mm2) of the slices without an organ, and how many slices those are.

    predicted, truth: integer label maps (N, H, W); pixel_mm2: area of a pixel, one number or one a slice
    (N,). NaN and 0 when every slice holds an organ. An empty slice should have an empty mask: 0 is best.
    """
    empty = ~(truth > 0).any(axis=_AXES)
    if not empty.any():
        return NAN, 0
    area = (predicted > 0).sum(axis=_AXES) * np.asarray(pixel_mm2, dtype=float)
    return float(area[empty].mean()), int(empty.sum())


def auc(score: np.ndarray, failed: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a failure scores higher than a success, ties counting half.

    score: (N,), higher is more suspicious; failed: (N,) bool. NaN unless there are both, or when a score is
    NaN. Mann-Whitney's U.
    """
    failed = np.asarray(failed, dtype=bool)
    bad, good = int(failed.sum()), int((~failed).sum())
    if not bad or not good:
        return NAN
    ranks = rankdata(score)
    return float((ranks[failed].sum() - bad * (bad + 1) / 2) / (bad * good))


def risk_coverage_area(score: np.ndarray, risk: np.ndarray) -> float:
    """Area under the risk-coverage curve (Geifman and El-Yaniv 2017): lower is better.

    score: (N,), higher is more suspicious; risk: (N,), e.g. 1 - slice DICE. The mean, over k = 1..N, of the
    mean risk of the k least suspicious; of equal scores each has the risk that is the mean of theirs, so
    their order does not matter. A score that says nothing gives about the mean risk. NaN without slices.
    """
    if not len(risk):
        return NAN
    _, group = np.unique(score, return_inverse=True)  # groups in rising order of score
    mean = np.bincount(group, weights=risk) / np.bincount(group)
    kept = np.sort(group)
    return float(np.mean(np.cumsum(mean[kept]) / np.arange(1, len(risk) + 1)))


@dataclass(frozen=True)
class ReliabilityBin:
    """Slices whose predicted probability lies in one range."""

    low: float
    high: float
    slices: int
    predicted: float  # mean predicted probability
    observed: float  # share of failures


def reliability(probability: np.ndarray, failed: np.ndarray, bins: int = 5) -> list[ReliabilityBin]:
    """Predicted against observed shares in ranges of equal width over 0..1; ranges without slices are left out.

    Slices whose probability is NaN do not count.
    """
    known = ~np.isnan(probability)
    probability, failed = np.asarray(probability)[known], np.asarray(failed)[known]
    number = np.minimum((probability * bins).astype(int), bins - 1)
    found = []
    for k in range(bins):
        inside = number == k
        if inside.any():
            predicted, observed = float(probability[inside].mean()), float(np.mean(failed[inside]))
            found.append(ReliabilityBin(k / bins, (k + 1) / bins, int(inside.sum()), predicted, observed))
    return found


def calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Expected calibration error, 0..1: |predicted - observed| averaged over all slices. NaN without bins."""
    total = sum(b.slices for b in bins)
    return sum(b.slices * abs(b.predicted - b.observed) for b in bins) / total if total else NAN


def patient_bootstrap(
    figures: Callable[[np.ndarray], Mapping[str, float]],
    patients: Sequence[str],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of some figures when patients are drawn anew with replacement.

    figures(index) gives the figures of the slices at ``index``, in which a patient's slices occur as often as
    the patient was drawn: slices of one patient resemble each other, so they are never drawn one by one.
    Draws where a figure is NaN do not count for it; NaN bounds if none is left.
    """
    names = np.asarray(patients)
    slices = [np.flatnonzero(names == patient) for patient in dict.fromkeys(patients)]
    random = np.random.default_rng(seed)
    found: dict[str, list[float]] = {}
    for _ in range(draws):
        chosen = random.integers(len(slices), size=len(slices))
        for name, value in figures(np.concatenate([slices[k] for k in chosen])).items():
            found.setdefault(name, []).append(value)
    return {name: _interval([v for v in values if not math.isnan(v)]) for name, values in found.items()}


def _interval(values: list[float]) -> tuple[float, float]:
    if not values:
        return NAN, NAN
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)
