"""An image in, its label map with a report of how far to trust it out: what every front door calls."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from sgan_core.bundle import Bundle
from sgan_core.cohort import Intensity
from sgan_core.config import SCANS
from sgan_core.errors import Cancelled, InputError
from sgan_core.imaging.image import Picture, Volume
from sgan_core.imaging.intensity import NO_AIR_HU, in_units
from sgan_core.imaging.slices import (
    SliceStack,
    enlarged,
    labels_to_model,
    native_slices,
    reduced,
    slice_centres_mm,
    to_model,
    to_volume,
    window_of,
)
from sgan_core.labelling import (
    Chosen,
    Labelling,
    OnProgress,
    SegmentConfig,
    label_slices,
    smooth_through_plane,
)
from sgan_core.metrics.failure import FAILED_DICE, slice_dice
from sgan_core.pieces import largest_pieces, lost
from sgan_core.trust import (
    Calibration,
    Trust,
    in_words,
    judge,
    not_judged,
    soft_dice_confidence,
    stored_calibration,
    why_uncalibrated,
)

_FOREIGN_PERCENTILES = Intensity(percentiles=(1.0, 99.0))
_SLICES = 32  # enlarged together
_TRACE = 0.02  # of a label's pixels: less is told to nobody
_REGION_TOLERANCE_MM = 1e-3  # run.json gives the centres of slices with this precision


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The label map of one image with what led to it. N: the slices of the region, or all.

    S: the student's size where the mask is the student's, the generator's for all that comes of it.
    None: what comes of a generator, of a model that is a student alone.
    """

    labels: np.ndarray  # uint8, the input's shape: (I, J, K) or (H, W)
    stack: SliceStack  # the model's input
    reconstructions: np.ndarray | None  # (N, C, S, S) float32, in the brightness of the input
    label_probs: np.ndarray  # (N, K, S, S) float16
    inverted_probs: np.ndarray | None  # the generator's own, by inversion or encoder; as label_probs
    slice_errors: np.ndarray | None  # (N,) root mean square of the reconstruction's error, range 2
    trust: Trust
    method: str  # what made the mask: "student" | "inversion" | "encoder"
    reconstruction: Chosen | None  # the objective of inversion, and why
    steps: int  # of inversion
    seconds: float
    warnings: tuple[str, ...]
    soft_dice_confidence: float | None = None  # of the student's mask; None: no student, or nothing found
    in_part: bool = False  # whether of some labels only the largest piece was kept

    @property
    def error(self) -> float | None:
        """Root mean squared error over all slices, model units."""
        return None if self.slice_errors is None else float(np.sqrt(np.square(self.slice_errors).mean()))

    @property
    def model_labels(self) -> np.ndarray:
        """The label map on the stack's slices, (N, S, S) uint8."""
        if self.in_part:  # the probabilities still hold the other pieces
            return labels_to_model(self.labels, self.stack)
        size = self.stack.images.shape[-1]
        parts = torch.from_numpy(self.label_probs).split(_SLICES)  # (n, K, S, S) -> (n, S, S)
        return np.concatenate([enlarged(p.float(), size).argmax(dim=1).numpy() for p in parts]).astype(
            np.uint8
        )


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image on the model's slices."""

    image: Volume | Picture  # in the units of the intensity rule
    stack: SliceStack  # the model's input
    warning: str | None  # why its intensities cannot mean what they meant in training, if they cannot
    began: float  # when work on it began, by time.monotonic


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
    if intensity.unit != "HU" or shows_the_range or image.array.min() < NO_AIR_HU:
        return intensity, None
    return _FOREIGN_PERCENTILES, (
        f"no voxel is below {NO_AIR_HU}: not CT in Hounsfield units, so the model was trained on another "
        "modality; intensities were scaled by percentiles"
    )


def _with_what_it_shows(picture: Picture, intensity: Intensity) -> Picture:
    """With a warning where its grey is only believed to show a model's range."""
    low, high = intensity.low, intensity.high
    if intensity.unit != "HU" or picture.array.dtype != np.uint8 or low is None or high is None:
        return picture
    shown = (
        f"a picture has no Hounsfield units: black was taken for {low:g} and white for {high:g}, as the model learned; "
        "where it shows another window its mask is wrong"
    )
    return replace(picture, warnings=(*picture.warnings, shown))


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
    InputError for an image that cannot be brought to the model, or that has no slice in the config's region, and
    for what a student alone cannot do.
    """
    config = config or SegmentConfig()
    if config.needs_inverter:
        bundle.require_inverter()

    def report(done: int, total: int, message: str) -> None:
        if should_stop():
            raise Cancelled("stopped; nothing was written for this case")
        on_progress(done, total, message)

    prepared = prepare(image, bundle, config)
    return finish(prepared, label(prepared, bundle, config, on_progress=report), bundle, config)


def prepare(image: Volume | Picture, bundle: Bundle, config: SegmentConfig) -> Prepared:
    """Bring an image to the model. Raises InputError as ``segment_volume``."""
    began = time.monotonic()
    intensity, warning = choose_intensity(image, bundle.config.intensity)
    if isinstance(image, Picture):
        image = _with_what_it_shows(image, bundle.config.intensity)
    image = in_units(image, intensity)
    stack = to_model(
        image,
        size=bundle.config.student_size,
        intensity=intensity,
        channels=bundle.config.generator.image_channels,
        squash=bundle.config.squash,
        body=bundle.config.body,
    )
    if config.region is not None:  # cut only now: black and white are those of the whole image
        stack = _inside(stack, config.region)
    return Prepared(image, stack, warning, began)


def label(
    prepared: Prepared,
    bundle: Bundle,
    config: SegmentConfig,
    *,
    on_progress: OnProgress = lambda done, total, message: None,
) -> Labelling:
    """What the model says about each slice by itself, as ``label_slices``."""
    calibration = _calibration(bundle, config)
    anatomy = calibration.anatomy if calibration else None
    images, foreign = prepared.stack.images, prepared.warning
    return label_slices(images, bundle, config, foreign=foreign, anatomy=anatomy, on_progress=on_progress)


def finish(prepared: Prepared, found: Labelling, bundle: Bundle, config: SegmentConfig) -> Segmentation:
    """The label map on the image's own grid, with the trust in it."""
    image, stack, warning = prepared.image, prepared.stack, prepared.warning
    probs, inverted, errors = found.label_probs, found.inverted_probs, None
    if isinstance(image, Volume):
        probs = smooth_through_plane(probs)
        inverted = None if inverted is None else smooth_through_plane(inverted)
    if found.reconstructions is not None:
        small = reduced(torch.from_numpy(stack.images), found.reconstructions.shape[-1]).numpy()
        errors = np.array([_rmse(*pair) for pair in zip(found.reconstructions, small, strict=True)])
    # The student's, even where another mask is asked for; as they are drawn from, which for its own is done.
    taught = probs if found.method == "student" else found.student_probs
    if taught is not None and taught is not probs and isinstance(image, Volume):
        taught = smooth_through_plane(taught)
    labels = to_volume(probs, stack)
    trust = _judged(found, _calibration(bundle, config), bundle, stack.first_slice)
    if image.doubts:
        trust = replace(trust, status="review", reason="; ".join(filter(None, (*image.doubts, trust.reason))))
    apart: list[str] = []
    if values := _kept_whole(image, bundle, config):
        whole, labels = labels, largest_pieces(labels, values)
        if apart := _left_out(whole, labels, bundle):
            trust = _judged_in_part(trust, whole, labels, stack)
    return Segmentation(
        labels=labels,
        stack=stack,
        reconstructions=found.reconstructions,
        label_probs=probs,
        inverted_probs=inverted,
        slice_errors=errors,
        trust=trust,
        method=found.method,
        reconstruction=found.chosen,
        steps=found.steps,
        seconds=time.monotonic() - prepared.began,
        warnings=(
            *image.doubts,
            *image.warnings,
            *((warning,) if warning else ()),
            *apart,
            *_cut_off(labels, stack, bundle),
            *_beside(labels, stack, bundle),
        ),
        soft_dice_confidence=None if taught is None else soft_dice_confidence(taught),
        in_part=bool(values),
    )


def _kept_whole(image: Volume | Picture, bundle: Bundle, config: SegmentConfig) -> tuple[int, ...]:
    """Labels of which only the largest piece is kept: an organ of one piece may be several in one slice of a scan."""
    if config.largest_component is None and isinstance(image, Picture) and bundle.config.modality in SCANS:
        return ()
    return config.one_piece(bundle)


def _calibration(bundle: Bundle, config: SegmentConfig) -> Calibration | None:
    way = config.calibrated_as(bundle)
    return stored_calibration(bundle.facts, *way) if way else None


def _inside(stack: SliceStack, region: tuple[float, float]) -> SliceStack:
    """The slices whose centre lies between two heights, in mm towards the head.

    Raises InputError, with the heights that there are, when there is none.
    """
    if stack.grid is None:
        raise InputError("--region: a picture has no place in the patient. Leave the option out.")
    heights = slice_centres_mm(stack)[:, 2]
    low, high = min(region) - _REGION_TOLERANCE_MM, max(region) + _REGION_TOLERANCE_MM
    inside = np.flatnonzero((heights >= low) & (heights <= high))
    if not len(inside):
        raise InputError(
            f"--region {region[0]:g},{region[1]:g}: no slice lies there; those of this image lie from "
            f"{heights.min():.1f} to {heights.max():.1f} mm. Choose a region that meets them."
        )
    # Heights change evenly from slice to slice, so those inside are neighbours.
    return stack.part(slice(int(inside[0]), int(inside[-1]) + 1))


def _left_out(whole: np.ndarray, kept: np.ndarray, bundle: Bundle) -> list[str]:
    """A sentence for each label of which more than a trace lay apart from its largest piece."""
    shares = {label.name: lost(whole, kept, label.value) for label in bundle.config.labels}
    return [
        f"{name}: {share:.0%} of the mask lay apart from its largest piece and was left out; "
        "--no-largest-component keeps all"
        for name, share in shares.items()
        if share > _TRACE
    ]


def _judged(found: Labelling, calibration: Calibration | None, bundle: Bundle, first_slice: int) -> Trust:
    """Trust in the mask of a case."""
    if bundle.inverter is None:
        return not_judged("the model is a student alone, without a generator that could judge its mask")
    if bundle.student is None:
        return not_judged("the model has no student for a second opinion")
    if found.features is None or calibration is None:
        return not_judged(why_uncalibrated(bundle.facts))
    figure = "student_dice" if found.method == "student" else "validation_dice"
    dice = bundle.facts.get(figure, np.nan)
    if isinstance(dice, bool) or not isinstance(dice, int | float):
        raise InputError(f"{bundle.name}: its {figure} is {dice!r}, not a number. Export the model again.")
    return judge(found.features, calibration, validation_dice=float(dice), first_slice=first_slice)


def _judged_in_part(trust: Trust, whole: np.ndarray, kept: np.ndarray, stack: SliceStack) -> Trust:
    """Trust in what is ``kept`` of a label map: that in the ``whole`` while every slice is nearly the same."""
    dice = slice_dice(labels_to_model(kept, stack), labels_to_model(whole, stack))
    changed = np.flatnonzero(dice < FAILED_DICE) + stack.first_slice
    if not len(changed):
        return trust
    return not_judged(
        f"keeping the largest piece took much of the mask away in slices {in_words(changed)}, and trust is not "
        "calibrated for what is left"
    )


def _beside(labels: np.ndarray, stack: SliceStack, bundle: Bundle) -> list[str]:
    """A sentence for each label that reaches the edge of what the model sees, where the image goes on."""
    slices, (rows, columns) = native_slices(labels, stack), window_of(stack)  # (N, H, W)
    edges = [
        np.take(slices, at, axis)
        for axis, part in ((1, rows), (2, columns))
        for at, end in ((part.start, 0), (part.stop - 1, slices.shape[axis] - 1))
        if at != end
    ]
    return [
        f"{label.name}: the mask reaches the edge of the part of the image that was taken for the body; the organ may "
        "go on beside it. Check there"
        for label in bundle.config.labels
        if any((edge == label.value).any() for edge in edges)
    ]


def _cut_off(labels: np.ndarray, stack: SliceStack, bundle: Bundle) -> list[str]:
    """A sentence for each label of a volume that reaches an outer slice, where the scan may end within the organ."""
    if stack.grid is None or len(stack.images) < 2:
        return []
    slices = native_slices(labels, stack)  # (N, H, W), feet to head
    said = []
    for label in bundle.config.labels:
        ends = [
            name
            for name, plane in (("lowest", slices[0]), ("highest", slices[-1]))
            if (plane == label.value).any()
        ]
        if ends:
            where = " and the ".join(ends)
            said.append(f"{label.name} reaches the {where} slice; what may lie beyond is not in its volume")
    return said


def _rmse(reconstruction: np.ndarray, image: np.ndarray) -> float:
    return float(np.sqrt(np.square(reconstruction - image).mean()))


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
