"""Segmentation of one image: intensities, starts, stopping, trust, volumes."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import label as label_components
from scipy.ndimage import zoom

from sgan_core import segment as segment_module
from sgan_core.bundle import Bundle
from sgan_core.cohort import Case, Cohort, Intensity
from sgan_core.errors import Cancelled, InputError
from sgan_core.imaging.grid import Grid
from sgan_core.imaging.image import Picture, Volume
from sgan_core.imaging.readers import read_image
from sgan_core.imaging.slices import labels_to_model, slice_centres_mm, to_model, to_volume
from sgan_core.labelling import SegmentConfig, label_slices, smooth_through_plane
from sgan_core.networks.segmenter import make_student
from sgan_core.segment import choose_intensity, label_volumes, part_of, segment_volume
from sgan_core.training.data import slices_of_model
from sgan_core.trust import FEATURES, Anatomy, Calibration, Regression, deep_answers

HU = Intensity(-160.0, 240.0, "HU")


@pytest.fixture(scope="module")
def bundle(untrained: Bundle) -> Bundle:
    """An untrained CT model without a student."""
    return untrained


@pytest.fixture(scope="module")
def taught(bundle: Bundle) -> Bundle:
    """The same with an untrained student."""
    return replace(bundle, student=make_student(bundle.config).eval())


def scan(slices: int = 5, seed: int = 0) -> Volume:
    """CT (20, 18, slices) in HU: a bright block in air; 2 x 2 x 5 mm."""
    array = np.random.default_rng(seed).normal(-900, 30, (20, 18, slices)).astype(np.float32)
    array[4:15, 5:14] += 950
    return Volume(array, Grid(array.shape, np.diag([-2.0, -2.0, 5.0, 1.0])), ("read with care",))


# --- intensities -----------------------------------------------------------------------------------


def volume_of(*values: float) -> Volume:
    return Volume(np.array(values, np.float32).reshape(-1, 1, 1), scan().grid)


@pytest.mark.parametrize(
    ("image", "rule", "foreign"),
    [
        (volume_of(-1000, 40), HU, False),
        (volume_of(-150, 40), HU, True),
        (volume_of(0, 900), HU, True),
        (volume_of(0, 900), Intensity(percentiles=(0.5, 99.5)), False),
        (Picture(np.array([[[0, 255]]], np.uint8)), HU, False),
        (Picture(np.array([[[0, 4000]]], np.uint16)), HU, True),
        (Picture(np.array([[[0, 255]]], np.uint8)), Intensity(0.0, 255.0), False),
    ],
)
def test_images_that_cannot_be_in_hu_are_scaled_by_percentiles(
    image: Volume | Picture, rule: Intensity, foreign: bool
) -> None:
    chosen, warning = choose_intensity(image, rule)
    assert (chosen.percentiles == (1.0, 99.0), warning is not None) == (foreign, foreign)
    assert foreign or chosen is rule


def test_warnings_of_the_reader_come_before_our_own(bundle: Bundle) -> None:
    image = scan()
    mri = Volume(np.abs(image.array), image.grid, image.warnings)
    first, second = segment_volume(mri, bundle, SegmentConfig("fast")).warnings[:2]
    assert first == "read with care"
    assert "another modality" in second


@pytest.mark.parametrize(
    ("modality", "intensity"),
    [
        ("mr", Intensity(percentiles=(0.5, 99.5), bias_correction=True)),
        ("xray", Intensity(percentiles=(0.5, 99.5), central=0.7, equalise=True)),
        ("ct", HU),
    ],
)
@pytest.mark.parametrize("framing", [{}, {"squash": True}, {"body": True}])
def test_segmentation_sees_the_slices_that_training_saw(
    bundle: Bundle, tmp_path: Path, modality: str, intensity: Intensity, framing: dict[str, bool]
) -> None:
    rows, columns = np.indices((70, 90))
    distance = np.hypot(rows - 40, columns - 40)
    pixels = np.where(distance < 25, 60 + rows + 30 * distance // 20 % 97, 0)
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "a.png")
    case = Case("a", "a", str(tmp_path / "a.png"), empty=True)
    cohort = Cohort("a", modality, intensity, bundle.config.labels, (case,))
    plain = replace(bundle.config, modality=modality, intensity=intensity, body=False)
    config = replace(plain, **framing)
    trained = slices_of_model(cohort, config, tmp_path / "cache")
    unframed = slices_of_model(cohort, plain, tmp_path / "cache")
    assert np.array_equal(trained.images, unframed.images) is (not framing)
    found = segment_volume(
        read_image(tmp_path / "a.png"), replace(bundle, config=config), SegmentConfig("fast")
    )
    np.testing.assert_array_equal(found.stack.images.astype(np.float16), trained.images)
    assert found.labels.shape == (70, 90)


# --- what comes out --------------------------------------------------------------------------------


def test_shapes_and_ranges(bundle: Bundle) -> None:
    found = segment_volume(scan(), bundle)
    assert (found.labels.shape, found.labels.dtype) == ((20, 18, 5), np.uint8)
    assert found.reconstructions is not None
    assert found.slice_errors is not None
    assert found.reconstructions.shape == (5, 1, 32, 32)
    assert found.label_probs.shape == (5, 3, 32, 32)
    np.testing.assert_allclose(found.label_probs.sum(axis=1, dtype=np.float32), 1, atol=2e-3)
    assert found.slice_errors.shape == (5,)
    assert found.error == pytest.approx(np.sqrt((found.slice_errors**2).mean()))
    assert (found.method, found.steps) == ("inversion", 3)


def test_neighbouring_slices_are_smoothed_before_they_are_labelled(bundle: Bundle) -> None:
    fast = SegmentConfig("fast")
    found = segment_volume(scan(), bundle, fast)
    alone = label_slices(found.stack.images, bundle, fast)
    for probs, unsmoothed in (
        (found.label_probs, alone.label_probs),
        (found.inverted_probs, alone.inverted_probs),
    ):
        np.testing.assert_array_equal(probs, smooth_through_plane(unsmoothed))
        assert np.abs(probs - unsmoothed).max() > 0.001  # an untrained model's slices hardly differ
    np.testing.assert_array_equal(found.labels, to_volume(found.label_probs, found.stack))


def test_batches_change_nothing(bundle: Bundle) -> None:
    """In double precision: inverting an untrained generator multiplies a rounding error by thousands a step."""
    networks = {
        name: deepcopy(getattr(bundle, name)).double() for name in ("generator", "encoder", "perceptual")
    }
    doubled = replace(bundle, inverter=replace(bundle.require_inverter(), **networks))
    images = to_model(scan(), size=bundle.config.generator.size, intensity=HU).images.astype(np.float64)
    together, apart = (label_slices(images, doubled, SegmentConfig(batch=size)) for size in (16, 2))
    assert together.steps > 1
    np.testing.assert_allclose(together.reconstructions, apart.reconstructions, atol=2e-3)


def test_inversion_explains_better_than_the_encoder(bundle: Bundle) -> None:
    encoder = segment_volume(scan(), bundle, SegmentConfig("fast"))
    inversion = segment_volume(scan(), bundle, SegmentConfig(steps=30))
    assert inversion.error is not None
    assert encoder.error is not None
    assert inversion.error < encoder.error


# --- a region --------------------------------------------------------------------------------------

# The slices of ``scan`` lie at 0, 5, 10, 15, 20 mm.


@pytest.mark.parametrize(
    ("region", "numbers"),
    [
        ((5.0, 15.0), [2, 3, 4]),
        ((15.0, 5.0), [2, 3, 4]),
        ((5.0004, 14.9996), [2, 3, 4]),  # as rounded to the precision of run.json
        ((5.1, 14.9), [3]),
        ((-400.0, 0.0), [1]),
        ((-400.0, 400.0), [1, 2, 3, 4, 5]),
    ],
)
def test_region_takes_the_slices_between_two_heights(
    bundle: Bundle, region: tuple[float, float], numbers: list[int]
) -> None:
    found = segment_volume(scan(), bundle, SegmentConfig("fast", region=region))
    assert found.stack.first_slice == numbers[0]
    assert len(found.slice_errors) == len(found.label_probs) == len(numbers)
    np.testing.assert_allclose(slice_centres_mm(found.stack)[:, 2], 5.0 * (np.array(numbers) - 1))


def test_labels_outside_a_region_are_background(bundle: Bundle) -> None:
    labels = segment_volume(scan(), bundle, SegmentConfig("fast", region=(5.0, 10.0))).labels
    assert labels.shape == (20, 18, 5)
    assert labels[..., 1:3].any(axis=(0, 1)).all()  # the untrained model labels something everywhere
    assert not labels[..., [0, 3, 4]].any()


def test_black_and_white_are_those_of_the_whole_image(bundle: Bundle) -> None:
    image = scan()
    image.array[..., 4] *= 3  # only there so bright and so dark
    foreign = Volume(np.abs(image.array), image.grid)  # so that percentiles decide
    whole, part = (
        segment_volume(foreign, bundle, SegmentConfig("fast", region=region)).stack
        for region in (None, (0.0, 10.0))
    )
    assert (part.low, part.high) == (whole.low, whole.high)
    np.testing.assert_array_equal(part.images, whole.images[:3])


def test_region_without_a_slice_is_refused_with_what_there_is(bundle: Bundle) -> None:
    with pytest.raises(InputError, match=r"--region 21,90: no slice lies there.* from 0.0 to 20.0 mm"):
        segment_volume(scan(), bundle, SegmentConfig("fast", region=(21.0, 90.0)))
    with pytest.raises(InputError, match="a picture has no place"):
        segment_volume(
            Picture(np.eye(32, dtype=np.uint8)[None]), bundle, SegmentConfig("fast", region=(0.0, 1.0))
        )


# --- the largest component -------------------------------------------------------------------------


def cube() -> Volume:
    """Eight slices of the model's size."""
    return Volume(scan(8).array[:16, :16].repeat(2, 0).repeat(2, 1), Grid((32, 32, 8), np.eye(4)))


def with_probabilities(monkeypatch: pytest.MonkeyPatch, labels: np.ndarray, bundle: Bundle) -> None:
    """Let the model answer with given labels (N, S, S)."""

    def answer(images: np.ndarray, *arguments: Any, **settings: Any) -> Any:
        probs = np.moveaxis(np.eye(3, dtype=np.float16)[labels], -1, 1)  # (N, S, S, K) -> (N, K, S, S)
        return replace(label_slices(images, *arguments, **settings), label_probs=probs)

    label_slices = segment_module.label_slices
    monkeypatch.setattr(segment_module, "label_slices", answer)


def test_largest_component_of_each_label_is_kept_in_three_dimensions(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = np.zeros((8, 32, 32), np.int64)
    labels[:4, 4:9, 4:9] = 1
    labels[5:, 12:20, 12:20] = 1  # the largest
    labels[:2, 22:31, 22:31] = 1  # larger in its slices, not in the volume
    labels[:, 25:28, 2:5] = 2  # another label is another matter
    labels[2:5, 2:4, 25:30] = 2
    with_probabilities(monkeypatch, labels, bundle)
    plain, reduced = (
        segment_volume(cube(), bundle, SegmentConfig("fast", largest_component=keep))
        for keep in (False, True)
    )
    for value, pieces in ((1, 3), (2, 2)):
        numbered, count = label_components(plain.labels == value)
        assert count == pieces
        largest = np.bincount(numbered.ravel())[1:].argmax() + 1
        np.testing.assert_array_equal(reduced.labels == value, numbered == largest)
    assert [one.voxels for one in label_volumes(reduced, bundle)] == [
        np.count_nonzero(reduced.labels == value) for value in (1, 2)
    ]
    # What the report draws is what is written: the generator's probabilities at the size of the stack.
    probs = plain.label_probs.astype(np.float32)  # (N, K, 32, 32)
    larger = zoom(probs, (1, 1, 2, 2), order=1, mode="nearest", grid_mode=True)
    np.testing.assert_array_equal(plain.model_labels, larger.argmax(axis=1))
    np.testing.assert_array_equal(reduced.model_labels, labels_to_model(reduced.labels, reduced.stack))
    assert reduced.model_labels.max() == 2
    assert not np.array_equal(reduced.model_labels, plain.model_labels)


def test_what_was_one_piece_in_training_is_one_piece_unless_asked_otherwise(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = np.zeros((8, 32, 32), np.int64)
    for value, row in ((1, 2), (2, 20)):  # each 160 pixels in one piece, 40 in another
        labels[:, row : row + 4, 4:9] = value
        labels[:2, row : row + 4, 20:25] = value
    with_probabilities(monkeypatch, labels, bundle)
    first, second = (label.name for label in bundle.config.labels)
    model = replace(bundle, facts={"one_piece": [first, "kidney", 3]})  # facts come from anywhere

    def found(keep: bool | None) -> tuple[list[int], list[str]]:
        one = segment_volume(cube(), model, SegmentConfig("fast", largest_component=keep))
        pieces = [label_components(one.labels == value)[1] for value in (1, 2)]
        return pieces, [warning for warning in one.warnings if "lay apart" in warning]

    said = "{}: 20% of the mask lay apart from its largest piece and was left out; --no-largest-component keeps all"
    assert found(None) == ([1, 2], [said.format(first)])
    assert found(True) == ([1, 1], [said.format(first), said.format(second)])
    assert found(False) == ([2, 2], [])
    model = replace(bundle, facts={"one_piece": first})  # no list
    assert found(None) == ([2, 2], [])


def test_a_trace_left_out_changes_nothing_that_is_said(
    taught: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"trust": {"student": {"fast": calibration(taught, -9.0)}}, "student_dice": 0.9}
    model = replace(taught, facts=facts | {"one_piece": [taught.config.labels[0].name]})
    labels = np.zeros((8, 32, 32), np.int64)
    labels[:5, 4:18, 4:18] = 1
    labels[7, 28:30, 28:30] = 1  # below a hundredth of it, and all that its slice has
    with_probabilities(monkeypatch, labels, model)
    found = segment_volume(cube(), model, SegmentConfig("fast"))
    assert label_components(found.labels == 1)[1] == 1
    assert found.trust.status == "ok"
    assert not [warning for warning in found.warnings if "apart" in warning]


def test_largest_component_of_a_picture(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.zeros((1, 32, 32), np.int64)
    labels[0, :4, :4], labels[0, 10:20, 10:20] = 1, 1
    with_probabilities(monkeypatch, labels, bundle)
    pixels = np.random.default_rng(0).integers(0, 255, (1, 32, 32), dtype=np.uint8)
    found = segment_volume(Picture(pixels), bundle, SegmentConfig("fast", largest_component=True))
    assert (found.labels.shape, found.labels.dtype, found.labels.sum()) == ((32, 32), np.uint8, 100)


@pytest.mark.parametrize(("modality", "pixels"), [("ct", 116), ("mr", 116), ("xray", 100)])
def test_an_organ_of_one_piece_may_be_two_in_one_slice(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, modality: str, pixels: int
) -> None:
    """A picture of a CT is a slice of the organ; an X-ray shows it whole."""
    labels = np.zeros((1, 32, 32), np.int64)
    labels[0, :4, :4], labels[0, 10:20, 10:20] = 1, 1
    with_probabilities(monkeypatch, labels, bundle)
    config = replace(bundle.config, modality=modality)
    model = replace(bundle, config=config, facts={"one_piece": [bundle.config.labels[0].name]})
    picture = Picture(np.random.default_rng(0).integers(0, 255, (1, 32, 32), dtype=np.uint8))
    assert segment_volume(picture, model, SegmentConfig("fast")).labels.sum() == pixels
    assert segment_volume(picture, model, SegmentConfig("fast", largest_component=True)).labels.sum() == 100


def test_what_the_grey_of_a_picture_was_taken_for_is_told(bundle: Bundle) -> None:
    """In another window the mask is wrong, and nothing else would say so."""
    grey = np.random.default_rng(0).integers(0, 255, (1, 32, 32), dtype=np.uint8)
    window = Intensity(low=-40.0, high=160.0, unit="HU")
    model = replace(bundle, config=replace(bundle.config, intensity=window))

    def told(image: Volume | Picture, model: Bundle) -> bool:
        warnings = segment_volume(image, model, SegmentConfig("fast")).warnings
        return any("black was taken for -40 and white for 160" in warning for warning in warnings)

    assert told(Picture(grey), model)
    assert not told(Picture(grey.astype(np.int16) * 10 - 1000), model)  # has units of its own
    assert not told(cube(), model)
    units = replace(bundle, config=replace(bundle.config, intensity=replace(window, unit="")))
    assert not told(Picture(grey), units)


# --- progress, stopping ----------------------------------------------------------------------------


@pytest.mark.parametrize("quality", ["fast", "standard", "careful"])
def test_progress_rises_to_its_total(quality: str, bundle: Bundle) -> None:
    seen: list[tuple[int, int, str]] = []
    config = SegmentConfig(quality, batch=2)
    segment_volume(scan(), bundle, config, on_progress=lambda *progress: seen.append(progress))
    done = [number for number, _, _ in seen]
    totals = {total for _, total, _ in seen}
    assert done == sorted(done)
    assert totals == {done[-1]}
    assert "slice 1 to 2 of 5" in seen[0][2]


def test_stop_is_heard_between_steps(bundle: Bundle) -> None:
    seen: list[int] = []
    with pytest.raises(Cancelled):
        segment_volume(
            scan(),
            bundle,
            SegmentConfig(steps=100),
            on_progress=lambda done, total, message: seen.append(done),
            should_stop=lambda: len(seen) > 3,
        )
    assert len(seen) == 4


def test_part_of_the_whole() -> None:
    seen: list[tuple[int, int, str]] = []
    report = part_of(lambda *progress: seen.append(progress), 1, 4, "second: ")
    report(0, 7, "begins")
    report(7, 7, "ends")
    assert seen == [(1000, 4000, "second: begins"), (2000, 4000, "second: ends")]


# --- trust, volumes --------------------------------------------------------------------------------


def test_without_a_second_opinion_nothing_is_trusted(bundle: Bundle) -> None:
    trust = segment_volume(scan(), bundle, SegmentConfig("fast")).trust
    assert (trust.status, trust.score) == ("review", 0.0)
    assert "no student" in trust.reason


def test_a_student_alone_segments_and_says_that_it_cannot_judge(taught: Bundle) -> None:
    facts = {"student_dice": 0.95}
    found = segment_volume(scan(), replace(taught, inverter=None, facts=facts))
    whole = segment_volume(scan(), replace(taught, facts=facts))
    np.testing.assert_array_equal(found.labels, whole.labels)
    assert (found.method, found.steps, found.reconstruction) == ("student", 0, None)
    assert (found.inverted_probs, found.reconstructions, found.slice_errors, found.error) == (None,) * 4
    assert (found.trust.status, found.trust.wrong) == ("review", ())
    assert found.trust.reason == (
        "the model is a student alone, without a generator that could judge its mask; check the mask"
    )


def calibration(taught: Bundle, log_odds: float) -> dict[str, Any]:
    """Plain data of one that finds every mask wrong with the same odds."""
    same = Regression((0.0,) * len(FEATURES), log_odds)
    zeros, ones = (0.0,) * len(FEATURES), (1.0,) * len(FEATURES)
    assert taught.student is not None
    anatomy = Anatomy.of(deep_answers(taught.student, torch.rand(40, 1, 32, 32)))
    return Calibration(tuple(FEATURES), zeros, ones, same, same, anatomy).to_dict()


@pytest.mark.parametrize(
    ("quality", "figure", "status"),
    [("fast", 0.9, "ok"), ("fast", 0.7, "review"), ("standard", 0.9, "review")],
)
def test_trust_is_judged_with_the_calibration_of_the_quality(
    taught: Bundle, quality: str, figure: float, status: str
) -> None:
    """A calibration that finds nothing wrong, of fast only; the mask is the student's, so its figure counts."""
    nothing = calibration(taught, -9.0)
    facts = {"trust": {"student": {"fast": nothing}}, "student_dice": figure, "validation_dice": 0.1}
    trust = segment_volume(scan(), replace(taught, facts=facts), SegmentConfig(quality)).trust
    assert trust.status == status
    assert ("not calibrated for this way of segmenting" in trust.reason) == (quality == "standard")
    assert ("DICE 0.70" in trust.reason) == (figure == 0.7)


def test_an_image_in_doubt_is_for_review_whatever_its_mask_looks_like(taught: Bundle) -> None:
    facts = {"trust": {"student": {"fast": calibration(taught, -9.0)}}, "student_dice": 0.9}
    model = replace(taught, facts=facts)
    plain = segment_volume(scan(), model, SegmentConfig("fast"))
    doubted = segment_volume(replace(scan(), doubts=("half a scan",)), model, SegmentConfig("fast"))
    assert (plain.trust.status, doubted.trust.status) == ("ok", "review")
    assert doubted.trust.reason.startswith("half a scan; ")
    assert doubted.trust.score == plain.trust.score
    assert doubted.warnings[:2] == ("half a scan", "read with care")


@pytest.mark.parametrize(
    ("rows", "upside_down", "said"),
    [
        (slice(1, 7), False, None),
        (slice(0, 3), False, "lowest"),
        (slice(0, 3), True, "lowest"),
        (slice(6, 8), False, "highest"),
        (slice(0, 8), False, "lowest and the highest"),
    ],
)
def test_a_label_that_reaches_an_outer_slice_is_said(
    rows: slice, upside_down: bool, said: str | None, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = np.zeros((8, 32, 32), np.int64)
    labels[rows, 4:9, 4:9] = 2
    with_probabilities(monkeypatch, labels, bundle)
    image = cube()
    if upside_down:  # the file's last slice is the lowest
        image = replace(image, grid=Grid(image.grid.shape, image.grid.affine @ np.diag([1, 1, -1, 1])))
    found = [
        warning
        for warning in segment_volume(image, bundle, SegmentConfig("fast")).warnings
        if "reaches" in warning
    ]
    name = bundle.config.labels[1].name
    assert found == (
        [f"{name} reaches the {said} slice; what may lie beyond is not in its volume"] if said else []
    )


@pytest.mark.parametrize(
    ("rows", "columns", "said"),
    [
        (slice(10, 14), slice(10, 14), False),
        (slice(10, 14), slice(0, 4), True),
        (slice(10, 14), slice(28, 32), True),
        (slice(0, 4), slice(10, 14), True),
        (slice(28, 32), slice(10, 14), False),  # there the image ends
    ],
)
def test_a_label_at_the_edge_of_what_was_taken_for_the_body_is_said(
    rows: slice, columns: slice, said: bool, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.full((64, 64, 8), -1000, np.int16)  # x to the left, y to the back, feet to head
    array[20:44, 40:64] = 60
    image = Volume(array, Grid(array.shape, np.diag([-1.0, -1.0, 1.0, 1.0])))
    labels = np.zeros((8, 32, 32), np.int64)
    labels[2:5, rows, columns] = 2
    with_probabilities(monkeypatch, labels, bundle)
    name = bundle.config.labels[1].name
    words = f"{name}: the mask reaches the edge of the part of the image that was taken for the body"
    for body in (True, False):
        one = replace(bundle, config=replace(bundle.config, body=body))
        found = segment_volume(image, one, SegmentConfig("fast")).warnings
        assert any(warning.startswith(words) for warning in found) is (said and body)


@pytest.mark.parametrize(
    ("config", "score"),
    [
        (SegmentConfig("fast"), 0.9),
        (SegmentConfig("careful"), 0.7),
        (SegmentConfig("standard", encoder_only=True), 0.5),
        (SegmentConfig("fast", reconstruction="paper"), 0.5),  # no steps: the encoder's mask
        (SegmentConfig("standard", reconstruction="paper"), None),
        (SegmentConfig("fast", steps=2), None),
    ],
)
def test_no_figure_is_printed_for_a_mask_that_it_was_not_made_for(
    taught: Bundle, config: SegmentConfig, score: float | None
) -> None:
    odds = {share: calibration(taught, float(np.log((1 - share) / share))) for share in (0.9, 0.8, 0.7, 0.5)}
    table = {
        "student": {"fast": odds[0.9], "standard": odds[0.8], "careful": odds[0.7]},
        "encoder": {"fast": odds[0.5]},
    }
    facts = {"trust": table, "student_dice": 0.9, "validation_dice": 0.9}
    trust = segment_volume(scan(), replace(taught, facts=facts), config).trust
    if score is None:
        assert (trust.status, trust.wrong) == ("review", ())
        assert trust.reason == "trust is not calibrated for this way of segmenting; check the mask"
    else:
        assert trust.score == pytest.approx(score)
        assert len(trust.wrong) == 5


@pytest.mark.parametrize("figure", [None, [1], "0.9", True])
def test_a_figure_that_is_no_number_is_refused(taught: Bundle, figure: Any) -> None:
    facts = {"trust": {"student": {"fast": calibration(taught, -9.0)}}, "student_dice": figure}
    with pytest.raises(InputError, match="student_dice is .*not a number"):
        segment_volume(scan(), replace(taught, facts=facts), SegmentConfig("fast"))


def test_the_largest_piece_is_not_trusted_where_it_is_another_mask(
    taught: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What trust was calibrated for is the whole mask; without a second piece three slices are empty."""
    facts = {"trust": {"student": {"fast": calibration(taught, -9.0)}}, "student_dice": 0.9}
    labels = np.zeros((8, 32, 32), np.int64)
    labels[:4, 4:14, 4:14] = 1
    model = replace(taught, facts=facts)
    reasons = []
    for second in (labels[:0], labels[5:]):
        second[..., 20:25, 20:25] = 1
        with monkeypatch.context() as patch:
            with_probabilities(patch, labels, model)
            reasons.append(segment_volume(cube(), model, SegmentConfig("fast", largest_component=True)).trust)
    assert [trust.status for trust in reasons] == ["ok", "review"]
    assert "took much of the mask away in slices 6-8, and trust is not calibrated" in reasons[1].reason


def test_calibrations_of_an_older_version_are_not_used(taught: Bundle) -> None:
    """They said which quality, not whose mask."""
    facts = {"trust": {"fast": calibration(taught, -9.0)}, "student_dice": 0.9, "validation_dice": 0.9}
    for config in (SegmentConfig("fast"), SegmentConfig(encoder_only=True)):
        trust = segment_volume(scan(), replace(taught, facts=facts), config).trust
        assert (trust.status, trust.wrong) == ("review", ())
        assert "calibrated by an older version" in trust.reason
        assert "sgan-bundle calibrate" in trust.reason


def test_slices_to_look_at_are_counted_in_the_whole_volume(taught: Bundle) -> None:
    """A calibration that finds everything wrong."""
    facts = {"trust": {"student": {"fast": calibration(taught, 9.0)}}, "student_dice": 0.9}
    config = SegmentConfig("fast", region=(10.0, 15.0))
    trust = segment_volume(scan(), replace(taught, facts=facts), config).trust
    assert trust.slices == (3, 4)
    assert trust.reason.endswith("slices: 3-4")
    assert len(trust.wrong) == 2


def test_volumes_are_voxels_times_their_size(bundle: Bundle) -> None:
    labels = np.zeros((20, 18, 5), np.uint8)
    labels[:3, 0, 0], labels[4, 4, :2] = 1, 2
    found: Any = SimpleNamespace(labels=labels, stack=SimpleNamespace(grid=scan().grid))
    liver, spleen = label_volumes(found, bundle)
    assert (liver.name, liver.value, liver.voxels, liver.volume_ml) == ("liver", 1, 3, pytest.approx(0.06))
    assert (spleen.name, spleen.value, spleen.voxels) == ("spleen", 2, 2)


def test_picture_has_no_millilitres(bundle: Bundle) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (1, 30, 21), dtype=np.uint8)
    found = segment_volume(Picture(pixels), bundle, SegmentConfig("fast"))
    assert found.labels.shape == (30, 21)
    assert [volume.volume_ml for volume in label_volumes(found, bundle)] == [None, None]


# --- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"quality": "best"}, "quality is 'best'"),
        ({"reconstruction": "mine"}, "reconstruction is 'mine'"),
        ({"steps": -1}, "steps is -1"),
        ({"batch": 0}, "batch is 0"),
        ({"region": (0.0, float("nan"))}, "region is"),
        ({"region": (float("-inf"), 0.0)}, "region is"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        SegmentConfig(**settings)
