"""How far to trust a mask: is the input foreign to the model, and is the mask wrong?

The two questions are kept apart: a foreign picture can have a right (empty) mask, a familiar one a wrong mask.
Both are answered for each slice by a logistic regression on the same few features, fitted on slices that were
made to fail (``training.calibrate``). None of the features looks at the true mask.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import dacite
import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import expit
from torch import Tensor, nn

from sgan_core.appearance import apply_curves, random_curves
from sgan_core.errors import InputError
from sgan_core.imaging.slices import reduced
from sgan_core.inversion import Inversion
from sgan_core.looks import AppearanceConfig
from sgan_core.networks.segmenter import label_probs

# Feature: what is said when it is what makes slices suspicious. Every feature rises with suspicion.
FEATURES = {
    "methods": "the two methods disagree",
    "brightness": "the student's mask changes when brightness is altered",
    "nudge": "the student's mask changes when the image is moved or disturbed a little",
    "search": "the model's picture had to be forced far from its first guess",
    "anatomy": "the anatomy is unlike that of the training images",
}
_CURVES_SEED, _CURVES = 7, 6  # the same changes of brightness for every image
_NOISE_SEED = 8
_DIRECTIONS = 16  # of the student's answers, of 512
_NOISE = (0.05, 0.1)  # standard deviations, model units
_LEAST_DICE = 0.8  # of the model itself in validation, to be trusted at all
_LEAST_RIGHT = 0.8  # expected share of right masks in a case that is "ok"
_MOST_LISTED = (
    0.1  # share of slices to look at in a case that is "ok"; clean validation phantoms have up to 0.06
)
_SUSPICIOUS = 0.5  # probability from which on a slice is listed


# --- what is looked at -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Anatomy:
    """Where training images lie among the student's deepest answers: a mean and the main directions from it.

    The student has seen every tissue in every brightness, so these answers say what is shown, not how bright.
    What leaves the plane of the main directions is foreign (reconstruction error of principal components).
    """

    mean: np.ndarray  # (D,)
    axes: np.ndarray  # (k, D), orthonormal

    @staticmethod
    def of(answers: np.ndarray, directions: int = _DIRECTIONS) -> Anatomy:
        """Fit to the answers (N, D) of ``deep_answers`` to training images."""
        mean = answers.mean(axis=0)
        _, _, axes = np.linalg.svd(answers - mean, full_matrices=False)
        # As it will be stored, so that a calibration is fitted with the very numbers that are used later.
        return Anatomy(_half(mean), _half(axes[:directions]))

    def log_distance(self, answers: np.ndarray) -> np.ndarray:
        """Log mean squared distance (N,) of answers (N, D) from the plane."""
        apart = answers.astype(np.float64) - self.mean
        outside = apart - (apart @ self.axes.T) @ self.axes
        return np.log(np.square(outside).mean(axis=1) + 1e-6)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: shape and half-precision numbers in base64, the mean first."""
        rows = np.vstack([self.mean, self.axes]).astype("<f2")
        return {"shape": list(rows.shape), "float16": base64.b64encode(rows.tobytes()).decode()}

    @staticmethod
    def from_dict(values: Any) -> Anatomy:
        """Read back what ``to_dict`` wrote. Raises InputError when it is damaged."""
        try:
            content = base64.b64decode(values["float16"], validate=True)
            rows = np.frombuffer(content, "<f2").reshape(values["shape"]).astype(np.float64)
        except (TypeError, ValueError, KeyError) as error:
            raise InputError(f"trust: the anatomy is damaged ({error}). Export the model again.") from error
        if rows.ndim != 2 or len(rows) < 2 or not np.isfinite(rows).all():
            raise InputError("trust: the anatomy is damaged. Export the model again.")
        return Anatomy(rows[0], rows[1:])


def _half(numbers: np.ndarray) -> np.ndarray:
    return numbers.astype("<f2").astype(np.float64)


@torch.no_grad()
def deep_answers(student: nn.Module, images: Tensor) -> np.ndarray:
    """What the student's deepest level says in each quarter of images (N, C, S, S): (N, 4 * channels) float32."""
    from monai.networks.layers.simplelayers import SkipConnection

    deepest = [part for part in student.modules() if isinstance(part, SkipConnection)][-1].submodule
    found: list[Tensor] = []
    hook = deepest.register_forward_hook(lambda module, given, answer: found.append(answer))
    try:
        label_probs(student, images)  # in its batches
    finally:
        hook.remove()
    return torch.cat([F.adaptive_avg_pool2d(part.float(), 2).flatten(1) for part in found]).cpu().numpy()


@torch.no_grad()
def features(
    target: Tensor,
    student_probs: Tensor,
    inversion: Inversion,
    *,
    student: nn.Module,
    encoder: nn.Module,
    anatomy: Anatomy | None = None,
) -> np.ndarray:
    """All features of N slices, (N, F) float64 in the order of ``FEATURES``; each rises with suspicion.

    target: (N, C, S, S) in [-1, 1]; student_probs: (N, K, S, S), the student's answer to it; inversion: of the
    same slices at the generator's size, where the two are compared; not guided by the student, started at the
    encoder's answer (without steps it is that answer, and "search" says nothing). student: a U-Net that gives logits;
    both networks are in evaluation mode.
    anatomy: the calibration's; left out, the feature is NaN, and the result of no use to one. Costs 13 passes
    of the student and one of the encoder. They serve the masks of both: what shakes the one misleads the other,
    and how far is what a calibration for each of the two says.

    * methods: log (1.02 - soft DICE) of student and inversion;
    * brightness: the same of the student's answers before and after fixed random intensity curves, their mean;
    * nudge: the same, hard DICE, of the image moved by a thirty-second of its side, or with a little noise;
    * search: log mean squared distance between w_plus and the encoder's answer;
    * anatomy: how far the student's deepest answers are from those to training images, see ``Anatomy``.
    """
    answers = [label_probs(student, look) for look in _looks(target)]
    steady = torch.stack([soft_overlap(answer, student_probs) for answer in answers]).mean(dim=0)
    still = torch.stack(_nudged(student, target, student_probs.argmax(dim=1))).mean(dim=0)
    size = inversion.label_probs.shape[-1]
    searched = (inversion.w_plus - encoder(reduced(target, size))).square().mean(dim=(1, 2))
    far = np.full(len(target), np.nan)
    if anatomy is not None:
        far = anatomy.log_distance(deep_answers(student, target))
    found = {
        "methods": _log_gap(soft_overlap(reduced(student_probs, size), inversion.label_probs)),
        "brightness": _log_gap(steady),
        "nudge": _log_gap(still),
        "search": (searched + 1e-6).log(),
        "anatomy": torch.from_numpy(far),
    }
    return torch.stack([found[name].double().cpu() for name in FEATURES], dim=1).numpy()


def soft_dice_confidence(label_probs: np.ndarray) -> float | None:
    """The DICE that a mask can expect by the probabilities it was drawn from, the mean of the labels.

    Borges et al., Soft Dice Confidence, arXiv 2402.10665: 2 sum of p in the mask / (size of the mask + sum of p). It
    needs no calibration, and believes a network that is sure of what is wrong. A label of which there is nothing
    anywhere does not count; None when that is so for all. label_probs: (N, K, S, S) of a case, channel 0 is background.
    """
    masks = label_probs.argmax(axis=1)
    found = []
    for value in range(1, label_probs.shape[1]):
        probs, mask = label_probs[:, value], masks == value
        total = mask.sum() + probs.sum(dtype=np.float64)
        if total:
            found.append(2.0 * probs[mask].sum(dtype=np.float64) / total)
    return float(np.mean(found)) if found else None


def soft_overlap(first: Tensor, second: Tensor) -> Tensor:
    """Soft DICE (N,) of label probabilities (N, K, S, S), the labels pooled; near 1 when both are empty.

    Milletari et al. 2016, one pixel added to both sums so that specks of a few pixels do not decide.
    """
    a, b = first[:, 1:].flatten(1).float(), second[:, 1:].flatten(1).float()
    both, total = (a * b).sum(dim=1), a.square().sum(dim=1) + b.square().sum(dim=1)
    return (2.0 * both + 1.0) / (total + 1.0)


def _log_gap(overlap: Tensor) -> Tensor:
    # A logarithm: between 0.99 and 0.95 there is as much of a difference as between 0.8 and 0.4.
    return (1.02 - overlap).log()


def _looks(target: Tensor) -> list[Tensor]:
    """The target in some fixed other brightnesses."""
    numbers = torch.Generator().manual_seed(_CURVES_SEED)
    curves = random_curves(_CURVES, numbers, AppearanceConfig()).to(target)
    return [apply_curves(target, curve.expand(len(target), -1)) for curve in curves]


def _nudged(student: nn.Module, target: Tensor, mask: Tensor) -> list[Tensor]:
    """DICE (N,) of the student's mask (N, S, S) and its masks of the target moved to each side and with noise."""
    reach = max(1, target.shape[-1] // 32)
    overlaps = []
    for rows, columns in ((reach, 0), (-reach, 0), (0, reach), (0, -reach)):
        answer = label_probs(student, moved(target, rows, columns)).argmax(dim=1)
        # Only what both pictures show: of the rim that comes in nobody knows the truth.
        overlaps.append(_overlap(kept(answer, -rows, -columns), kept(mask, rows, columns)))
    numbers = torch.Generator().manual_seed(_NOISE_SEED)
    for std in _NOISE:  # the same noise for every slice, so that a batch does not matter
        noise = std * torch.randn(target.shape[1:], generator=numbers)
        overlaps.append(_overlap(label_probs(student, target + noise.to(target)).argmax(dim=1), mask))
    return overlaps


def moved(image: Tensor, rows: int, columns: int) -> Tensor:
    """Pictures (N, C, H, W) moved down and to the right by some pixels; the border is repeated where it came from."""
    height, width = image.shape[-2:]
    reach = max(abs(rows), abs(columns))
    padded = F.pad(image, (reach,) * 4, mode="replicate")  # not rolled: the other side is another place
    return padded[..., reach - rows : reach - rows + height, reach - columns : reach - columns + width]


def kept(picture: Tensor, rows: int, columns: int) -> Tensor:
    """The part of pictures (..., H, W) that stays in sight when they are ``moved`` by rows and columns."""
    height, width = picture.shape[-2:]
    inside = slice(max(0, -rows), height - max(0, rows)), slice(max(0, -columns), width - max(0, columns))
    return picture[..., inside[0], inside[1]]


def _overlap(first: Tensor, second: Tensor) -> Tensor:
    """DICE (N,) of label maps (N, S, S), the labels pooled; two empty maps agree (1)."""
    both = ((first == second) & (first > 0)).sum(dim=(1, 2))
    total = (first > 0).sum(dim=(1, 2)) + (second > 0).sum(dim=(1, 2))
    return torch.where(total > 0, 2.0 * both / total.clamp(min=1), 1.0)


# --- what is made of it ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Regression:
    """A logistic regression on standardised features."""

    weights: tuple[float, ...]  # one a feature, none below 0: more disagreement never earns trust
    bias: float


_READING = dacite.Config(strict=True, cast=[tuple, float], type_hooks={Anatomy: Anatomy.from_dict})


@dataclass(frozen=True, eq=False)
class Calibration:
    """From features to probabilities; fitted at the end of training, kept in the bundle's facts.

    It holds for the quality and the method that it was fitted with, see ``stored_calibration``.
    """

    features: tuple[str, ...]  # names, in the order of the numbers below
    centre: tuple[float, ...]
    scale: tuple[float, ...]  # above 0
    wrong: Regression  # slice DICE below 0.7
    foreign: Regression  # not the anatomy of the training data, or too damaged to be
    anatomy: Anatomy

    def __post_init__(self) -> None:
        if unknown := [name for name in self.features if name not in FEATURES]:
            raise InputError(f"trust: feature {unknown[0]!r} is unknown, expected {', '.join(FEATURES)}")
        numbers = (self.centre, self.scale, self.wrong.weights, self.foreign.weights)
        if not self.features or any(len(row) != len(self.features) for row in numbers):
            raise InputError(f"trust: {len(self.features)} features, but not as many numbers for each")
        flat = [*(value for row in numbers for value in row), self.wrong.bias, self.foreign.bias]
        if not np.isfinite(flat).all() or min(self.scale) <= 0.0:
            raise InputError("trust: numbers must be finite and scales above 0")
        if min(self.wrong.weights + self.foreign.weights) < 0.0:
            raise InputError("trust: a weight is below 0")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"anatomy": self.anatomy.to_dict()}

    @staticmethod
    def from_dict(values: Any) -> Calibration:
        """Read back what ``to_dict`` wrote. Raises InputError when something is missing, wrong or unknown."""
        try:
            return dacite.from_dict(Calibration, values, config=_READING)
        except (dacite.DaciteError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"trust: not a calibration ({error}). Export the model again.") from error

    def standardised(self, found: np.ndarray) -> np.ndarray:
        """Features (N, F), in the order of ``FEATURES``, as multiples of the scale from the centre: (N, own F)."""
        order = list(FEATURES)
        chosen = found[:, [order.index(name) for name in self.features]]
        if np.isnan(chosen).any():
            raise ValueError("features with NaN: were they taken without the calibration's anatomy?")
        return (chosen - np.array(self.centre)) / np.array(self.scale)

    def probabilities(self, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features (N, F) -> (N,) each: that the mask is wrong, that the slice is foreign."""
        x = self.standardised(found)
        wrong, foreign = (expit(x @ np.array(r.weights) + r.bias) for r in (self.wrong, self.foreign))
        return wrong, foreign


def stored_calibration(facts: Mapping[str, Any], quality: str, method: str) -> Calibration | None:
    """The calibration in a bundle's facts for masks of a method at a quality; None when the model has none.

    ``facts["trust"]`` is a table {method: {quality: calibration}}. Raises InputError when it is damaged.
    """
    own = calibrations(facts).get(method, {})
    return Calibration.from_dict(own[quality]) if quality in own else None


def calibrations(facts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The table {method: {quality: calibration as plain data}} of a bundle's facts; empty when there is none.

    That of an older version, which did not say for whose mask, counts as none. Raises InputError when damaged.
    """
    table = facts.get("trust", {})
    if not isinstance(table, Mapping) or not all(isinstance(part, Mapping) for part in table.values()):
        raise InputError(
            f"trust: expected tables of calibrations, found {str(table)[:60]}. sgan-bundle calibrate makes them anew."
        )
    return {} if _is_older(table) else dict(table)


def _is_older(table: Mapping[str, Any]) -> bool:
    """Whether a table is {quality: calibration}, fitted to the student's masks whoever made the mask."""
    return any("features" in part for part in table.values())


def why_uncalibrated(facts: Mapping[str, Any]) -> str:
    """What is said where ``stored_calibration`` has found none."""
    if _is_older(facts.get("trust", {})):
        return (
            "the model's trust was calibrated by an older version, not for this way of segmenting "
            "(sgan-bundle calibrate does it anew)"
        )
    if not facts.get("trust"):
        return "the model carries no calibration of trust"
    return "trust is not calibrated for this way of segmenting"


@dataclass(frozen=True)
class Trust:
    """Whether the mask of a case may be used as it is, and where to look. Slices are counted from 1.

    score: the expected share of slices whose mask is right, 0 to 1: the mean of 1 - ``wrong``. Right means DICE
    of at least 0.7, or empty where there is no organ. The probabilities are calibrated on clean, shifted and
    corrupted validation slices together; on images like those of training alone they err on the side of doubt.
    """

    status: str  # "ok" | "review"
    score: float
    reason: str
    wrong: tuple[float, ...] = ()  # probability of a wrong mask, one a slice
    foreign: tuple[float, ...] = ()  # probability that the slice is foreign to the model
    slices: tuple[int, ...] = ()  # to look at, also in a case that is "ok"


def not_judged(why: str) -> Trust:
    """What is said of a mask that nothing can judge."""
    return Trust("review", 0.0, f"{why}; check the mask")


def judge(
    found: np.ndarray, calibration: Calibration, *, validation_dice: float, first_slice: int = 1
) -> Trust:
    """Judge a case by the features (N, F) of its slices, see ``features``.

    calibration: for the way it was segmented. validation_dice: of the model on its own validation patients, NaN
    when unknown; unknown or below 0.8 nothing is "ok". A case is "ok" when it does not look foreign, 80 % of its
    slices or more are expected to be right, and no more than a tenth are to be looked at. first_slice: the number
    of the first slice in its volume, from where all that is said counts.
    """
    wrong, foreign = calibration.probabilities(found)
    score = float(1.0 - wrong.mean())
    listed = np.flatnonzero((wrong >= _SUSPICIOUS) | (foreign >= _SUSPICIOUS))
    details = (_rounded(wrong), _rounded(foreign), tuple(int(k) + first_slice for k in listed))
    if not _LEAST_DICE <= validation_dice <= 1.0:
        reason = f"the model itself reached only DICE {validation_dice:.2f} on its validation patients"
        if not 0.0 <= validation_dice <= 1.0:
            reason = "nobody knows how well the model did on its validation patients"
        return Trust("review", score, f"{reason}; check the mask", *details)
    x = calibration.standardised(found)
    if foreign.mean() >= _SUSPICIOUS:
        why = _why(calibration, calibration.foreign, x, foreign, first_slice)
        return Trust("review", score, f"the image looks foreign to the model: {why}", *details)
    if score < _LEAST_RIGHT:
        why = _why(calibration, calibration.wrong, x, wrong, first_slice)
        return Trust(
            "review", score, f"only {score:.0%} of the slices are expected to be right: {why}", *details
        )
    if len(listed) > _MOST_LISTED * len(found):
        why = _why(calibration, calibration.wrong, x, np.maximum(wrong, foreign), first_slice)
        return Trust("review", score, f"{len(listed)} of {len(found)} slices are doubtful: {why}", *details)
    look = f"; look at slices {in_words(listed + first_slice)}" if len(listed) else ""
    return Trust("ok", score, f"{score:.0%} of the slices are expected to be right{look}", *details)


def _rounded(probabilities: np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(value), 3) for value in probabilities)


def _why(
    calibration: Calibration,
    regression: Regression,
    x: np.ndarray,
    probability: np.ndarray,
    first_slice: int,
    most: int = 2,
) -> str:
    """What makes the suspicious slices suspicious, the most frequent reasons first, with the slices.

    x: standardised features (N, F) of slices whose numbers begin at ``first_slice``. A slice counts for the
    feature that adds most to its log odds.
    """
    suspicious = np.flatnonzero(probability >= _SUSPICIOUS)
    if not len(suspicious):  # many slices, each a little doubtful
        suspicious = np.arange(len(probability))
    leading = (x[suspicious] * np.array(regression.weights)).argmax(axis=1)
    reasons = []
    for feature in np.argsort(-np.bincount(leading, minlength=len(calibration.features)), kind="stable")[
        :most
    ]:
        slices = suspicious[leading == feature]
        if len(slices):
            words = FEATURES[calibration.features[feature]]
            count = f"{len(slices)} of {len(x)} slices" if len(x) > 1 else "the only slice"
            where = f": {in_words(slices + first_slice)}" if len(x) > 1 else ""
            reasons.append(f"{words} on {count}{where}")
    return "; ".join(reasons)


def in_words(numbers: np.ndarray, most: int = 6) -> str:
    """Rising numbers in words, e.g. ``3, 12-18``."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    words = [f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return ", ".join(words[:most]) + (" and more" if len(words) > most else "")
