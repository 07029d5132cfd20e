"""Agreement of label maps with a reference, per patient.

Conventions, the same wherever this project prints a number:

* *Per patient*: all slices and volumes of a patient are pooled before dividing, as the paper reports. A mean
  over slices would let the many slices without the organ decide.
* DICE, Jaccard and NSD are NaN only when both masks are empty, and 0 when one of them is.
* HD95 and ASSD need two surfaces: NaN when a mask is empty. RAVD needs a reference: NaN when it is empty.
* A mean leaves NaN out; how many were left out stands beside it (:func:`mean_without_nan`).
* Surfaces, as in MONAI: the voxels of a mask with a face neighbour outside it (beyond the image is outside),
  one voxel one vote, Euclidean distance between voxel centres in mm. HD95 is the larger of the two directed
  95th percentiles; ASSD averages the distances of both directions together; NSD is the share of both surfaces
  within a tolerance (2 mm unless said otherwise). An axis of one voxel is dropped: a single slice has an
  outline, not two faces. On the CHAOS challenge's published example this ASSD is 0.713 mm, theirs 0.734 mm.
* Pictures without voxel spacing have no millimetres: HD95, ASSD, NSD and volume error are NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np

NSD_TOLERANCE_MM = 2.0
NAN = float("nan")


@dataclass(frozen=True)
class Scores:
    """How well one label of one patient agrees with the reference. NaN where a figure is not defined."""

    dice: float  # 0..1
    jaccard: float  # 0..1
    hd95_mm: float
    assd_mm: float
    nsd: float  # 0..1
    ravd_percent: float  # >= 0: |predicted - reference| / reference
    volume_error_ml: float  # predicted - reference: above 0 is too large

    def as_dict(self) -> dict[str, float]:
        """The figures by name, in the order of the table."""
        return {name: getattr(self, name) for name in METRICS}


METRICS: tuple[str, ...] = tuple(field.name for field in fields(Scores))


@dataclass(frozen=True)
class PatientScores:
    """The :class:`Scores` of one label of one patient."""

    patient: str
    label: int
    cases: int  # volumes or slices pooled
    scores: Scores


def dice_from_counts(overlap: float, predicted: float, reference: float) -> float:
    """2 |A and B| / (|A| + |B|) in [0, 1] from voxel counts; NaN when both masks are empty."""
    total = predicted + reference
    return 2.0 * overlap / total if total > 0 else NAN


def jaccard_from_counts(overlap: float, predicted: float, reference: float) -> float:
    """|A and B| / |A or B| in [0, 1] from voxel counts; NaN when both masks are empty."""
    union = predicted + reference - overlap
    return overlap / union if union > 0 else NAN


def mean_without_nan(values: Iterable[float]) -> tuple[float, int]:
    """Mean of the values that are not NaN (NaN if there are none), and how many are NaN."""
    given = list(values)
    defined = [value for value in given if not math.isnan(value)]
    mean = sum(defined) / len(defined) if defined else NAN
    return mean, len(given) - len(defined)


def surface_distances_mm(
    prediction: np.ndarray, reference: np.ndarray, spacing_mm: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Distance from every surface voxel of one mask to the other mask's surface.

    prediction, reference: bool (H, W) or (I, J, K); spacing_mm: one number an axis.
    Returns (from the prediction, from the reference), float arrays in mm. If one mask is empty its array is
    empty and the other's distances are infinite.
    """
    from monai.metrics.utils import get_mask_edges, get_surface_distance

    kept = [axis for axis, size in enumerate(prediction.shape) if size > 1] or [0]
    spacing = [float(spacing_mm[axis]) for axis in kept]
    shape = [prediction.shape[axis] for axis in kept]
    edges = get_mask_edges(*_cropped(prediction.reshape(shape), reference.reshape(shape)), crop=False)
    if not (edges[0].any() and edges[1].any()):
        return np.full(np.count_nonzero(edges[0]), np.inf), np.full(np.count_nonzero(edges[1]), np.inf)
    from_prediction = get_surface_distance(edges[0], edges[1], spacing=spacing)
    from_reference = get_surface_distance(edges[1], edges[0], spacing=spacing)
    return np.asarray(from_prediction), np.asarray(from_reference)


def _cropped(prediction: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both masks cut to their common bounding box, with a margin of one voxel of background all around."""
    union = prediction | reference
    if not union.any():
        return prediction, reference
    box = []
    for axis in range(union.ndim):
        other = tuple(a for a in range(union.ndim) if a != axis)
        occupied = np.flatnonzero(union.any(axis=other))
        box.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    return np.pad(prediction[tuple(box)], 1), np.pad(reference[tuple(box)], 1)


@dataclass
class _Pool:
    """What is added up over the cases of one patient, for one label."""

    cases: int = 0
    overlap: int = 0
    predicted: int = 0
    reference: int = 0
    predicted_ml: float = 0.0  # NaN as soon as one case has no spacing
    reference_ml: float = 0.0
    from_prediction: list[np.ndarray] = field(default_factory=list)  # surface distances in mm
    from_reference: list[np.ndarray] = field(default_factory=list)

    def add(self, prediction: np.ndarray, reference: np.ndarray, voxel_ml: float) -> None:
        predicted, wanted = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
        self.cases += 1
        self.overlap += int(np.count_nonzero(prediction & reference))
        self.predicted += predicted
        self.reference += wanted
        self.predicted_ml += predicted * voxel_ml
        self.reference_ml += wanted * voxel_ml

    def add_surfaces(
        self, prediction: np.ndarray, reference: np.ndarray, spacing_mm: Sequence[float] | None
    ) -> None:
        if spacing_mm is None:  # one case without millimetres leaves the patient without them
            distances = np.full(1, np.nan), np.full(1, np.nan)
        else:
            distances = surface_distances_mm(prediction, reference, spacing_mm)
        self.from_prediction.append(distances[0])
        self.from_reference.append(distances[1])

    def scores(self, tolerance_mm: float) -> Scores:
        counts = self.overlap, self.predicted, self.reference
        hd95, assd, nsd = self._surface_scores(tolerance_mm)
        error_ml = self.predicted_ml - self.reference_ml
        # Volumes when the spacing is known, as the cases of a patient may differ in voxel size; else counts.
        wanted = self.reference if math.isnan(error_ml) else self.reference_ml
        error = self.predicted - self.reference if math.isnan(error_ml) else error_ml
        ravd = 100.0 * abs(error) / wanted if self.reference else NAN
        dice, jaccard = dice_from_counts(*counts), jaccard_from_counts(*counts)
        return Scores(dice, jaccard, hd95, assd, nsd, ravd, error_ml)

    def _surface_scores(self, tolerance_mm: float) -> tuple[float, float, float]:
        """HD95 (mm), ASSD (mm) and NSD of the pooled surfaces."""
        if not self.from_prediction:
            return NAN, NAN, NAN
        directed = np.concatenate(self.from_prediction), np.concatenate(self.from_reference)
        both = np.concatenate(directed)
        if both.size == 0 or np.isnan(both).any():
            return NAN, NAN, NAN
        nsd = float(np.mean(both <= tolerance_mm))
        if np.isinf(both).any():  # somewhere a surface has no counterpart to be near or far from
            return NAN, NAN, nsd
        hd95 = max(float(np.quantile(distances, 0.95)) for distances in directed)
        return hd95, float(np.mean(both)), nsd


class Evaluation:
    """Accumulates the cases of a cohort; gives scores per patient and label.

    labels: values to score, background (0) left out. surfaces=False skips the figures that need surface
    distances (they are NaN then) and is many times faster: for watching training.
    """

    def __init__(
        self,
        labels: Iterable[int] = (1,),
        *,
        nsd_tolerance_mm: float = NSD_TOLERANCE_MM,
        surfaces: bool = True,
    ) -> None:
        self.labels = tuple(sorted({int(value) for value in labels} - {0}))
        self.nsd_tolerance_mm = nsd_tolerance_mm
        self.surfaces = surfaces
        self._pools: dict[str, dict[int, _Pool]] = {}

    def add(
        self,
        patient: str,
        prediction: np.ndarray,
        reference: np.ndarray,
        *,
        spacing_mm: Sequence[float] | None = None,
        voxel_ml: float | None = None,
    ) -> None:
        """Pool one case (a slice or a volume) with the patient's others.

        prediction, reference: integer label maps of one shape, (H, W) or (I, J, K).
        spacing_mm: distance between voxel centres along each axis, or None when unknown (pictures).
        voxel_ml: volume of a voxel; left out it is the product of three spacings (a sheared grid has less).
        Raises ValueError if the shapes differ or the spacing does not fit them.
        """
        if prediction.shape != reference.shape:
            raise ValueError(f"prediction {prediction.shape} and reference {reference.shape} differ in shape")
        if spacing_mm is not None and len(spacing_mm) != prediction.ndim:
            raise ValueError(f"{len(spacing_mm)} spacings for an array of {prediction.ndim} axes")
        if voxel_ml is None:
            voxel_ml = NAN
            if spacing_mm is not None and len(spacing_mm) == 3:
                voxel_ml = math.prod(float(step) for step in spacing_mm) / 1000.0
        pools = self._pools.setdefault(patient, {value: _Pool() for value in self.labels})
        for value, pool in pools.items():
            masks = prediction == value, reference == value
            pool.add(*masks, voxel_ml)
            if self.surfaces:
                pool.add_surfaces(*masks, spacing_mm)

    def results(self) -> list[PatientScores]:
        """Scores by patient and label, patients in the order they were first added."""
        return [
            PatientScores(patient, value, pool.cases, pool.scores(self.nsd_tolerance_mm))
            for patient, pools in self._pools.items()
            for value, pool in pools.items()
        ]


def mean_iou(results: Iterable[PatientScores]) -> dict[str, float]:
    """mIoU per patient: Jaccard averaged over the labels, background left out.

    Labels that neither map holds (NaN) do not count; a patient without any label is NaN.
    """
    by_patient: dict[str, list[float]] = {}
    for result in results:
        by_patient.setdefault(result.patient, []).append(result.scores.jaccard)
    return {patient: mean_without_nan(values)[0] for patient, values in by_patient.items()}


def label_scores(
    prediction: np.ndarray,
    reference: np.ndarray,
    *,
    label: int = 1,
    spacing_mm: Sequence[float] | None = None,
    nsd_tolerance_mm: float = NSD_TOLERANCE_MM,
) -> Scores:
    """All scores of one label in one pair of label maps, (H, W) or (I, J, K). See :meth:`Evaluation.add`."""
    evaluation = Evaluation([label], nsd_tolerance_mm=nsd_tolerance_mm)
    evaluation.add("", prediction, reference, spacing_mm=spacing_mm)
    return evaluation.results()[0].scores


def per_patient_dice(
    cases: Iterable[tuple[str, np.ndarray, np.ndarray]], *, label: int = 1
) -> Mapping[str, float]:
    """DICE of each patient, all their cases pooled. cases: (patient, prediction, reference) label maps."""
    evaluation = Evaluation([label], surfaces=False)
    for patient, prediction, reference in cases:
        evaluation.add(patient, prediction, reference)
    return {result.patient: result.scores.dice for result in evaluation.results()}
