"""Features of trust on pictures whose answer is known, calibrations as plain data, what a judgement says."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.layers.simplelayers import SkipConnection
from torch import Tensor, nn

from sgan_core.errors import InputError
from sgan_core.inversion import Inversion
from sgan_core.networks.segmenter import make_segmenter
from sgan_core.trust import (
    FEATURES,
    Anatomy,
    Calibration,
    Regression,
    deep_answers,
    features,
    judge,
    kept,
    moved,
    not_judged,
    soft_dice_confidence,
    soft_overlap,
    stored_calibration,
    why_uncalibrated,
)

SIZE = 32
NAMES = list(FEATURES)


class Threshold(nn.Module):
    """A student that labels what is brighter than a level: it falls for any change of brightness."""

    def __init__(self, level: float = 0.0) -> None:
        super().__init__()
        self.level = level
        self.deep = SkipConnection(nn.AvgPool2d(4))

    def forward(self, image: Tensor) -> Tensor:
        self.deep.submodule(image)
        organ = 50.0 * (image[:, :1] - self.level)
        return torch.cat([-organ, organ], dim=1)


class Smooth(Threshold):
    """The same of the mean of 5 x 5 pixels, so that a pixel's label depends on its neighbours."""

    def forward(self, image: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(image, (2,) * 4, mode="replicate")
        return super().forward(torch.nn.functional.avg_pool2d(padded, 5, stride=1))


class Steady(nn.Module):
    """A student that answers with the same label, whatever the image."""

    def __init__(self, label: Tensor) -> None:
        super().__init__()
        self.label = label
        self.deep = SkipConnection(nn.AvgPool2d(4))

    def forward(self, image: Tensor) -> Tensor:
        self.deep.submodule(image)
        return one_hot(self.label.expand(len(image), -1, -1)) * 20.0


class Encoder(nn.Module):
    """Answers with w_plus of zeros."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.zeros(len(image), 4, 8)


def disc(column: float = 16.0, radius: float = 7.0) -> Tensor:
    """A label map (1, S, S) with a disc."""
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    return (torch.hypot(rows - 16.0, columns - column) < radius).long()[None]


def one_hot(label: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(label, 2).movedim(-1, 1).float()


def picture(label: Tensor, organ: float = 0.6, ground: float = -0.7) -> Tensor:
    return torch.where(label > 0, organ, ground)[:, None]


ANATOMY = Anatomy(np.zeros(4), np.eye(4)[:1])  # of the mean brightness of each quarter


def found(
    *,
    target: Tensor,
    student: nn.Module,
    drawn: Tensor,
    image: Tensor | None = None,
    moved: float = 0.0,
) -> dict[str, float]:
    """Features by name of one slice. drawn: the inversion's label map; image: its picture, else the target."""
    w_plus = torch.full((1, 4, 8), moved)
    inversion = Inversion(w_plus, target if image is None else image, one_hot(drawn), torch.zeros(1), 1)
    student_probs = student(target).softmax(dim=1)
    row = features(target, student_probs, inversion, student=student, encoder=Encoder(), anatomy=ANATOMY)
    assert row.shape == (1, len(FEATURES))
    return dict(zip(FEATURES, row[0].tolist(), strict=True))


def test_soft_overlap_of_hard_masks_is_dice_but_for_one_pixel() -> None:
    first, second = disc(), disc(column=20.0)
    both, total = (first * second).sum().item(), (first.sum() + second.sum()).item()
    assert soft_overlap(one_hot(first), one_hot(second)).item() == pytest.approx((2 * both + 1) / (total + 1))


def test_soft_overlap_of_probabilities_squares_them() -> None:
    """Milletari et al. 2016, by hand: two pixels of foreground 0.5, 0.2 against 0.8, 0."""
    first, second = (
        torch.tensor([[[[1 - a, 1 - b]], [[a, b]]]]) for a, b in ((0.5, 0.2), (0.8, 0.0))
    )  # (1, 2, 1, 2)
    expected = (2 * 0.5 * 0.8 + 1) / (0.5**2 + 0.2**2 + 0.8**2 + 1)
    assert soft_overlap(first, second).item() == pytest.approx(expected)


def test_soft_overlap_of_empty_masks_is_full_and_labels_must_agree() -> None:
    empty, ones, twos = (
        torch.nn.functional.one_hot(torch.full((1, 8, 8), k), 3).movedim(-1, 1) for k in range(3)
    )
    assert soft_overlap(empty, empty).item() == 1.0
    assert soft_overlap(empty, ones).item() < 0.02
    assert soft_overlap(ones, twos).item() < 0.02


def test_methods_that_disagree_are_noticed() -> None:
    target, student = picture(disc()), Threshold()
    same = found(target=target, student=student, drawn=disc())
    other = found(target=target, student=student, drawn=disc(column=23.0))
    assert same["methods"] == pytest.approx(np.log(0.02), abs=0.01)
    overlap = soft_overlap(one_hot(disc()), one_hot(disc(column=23.0))).item()
    assert other["methods"] == pytest.approx(np.log(1.02 - overlap), abs=0.01)


def test_a_student_that_goes_by_brightness_is_noticed() -> None:
    target = picture(disc())
    steady = found(target=target, student=Steady(disc()), drawn=disc())
    fickle = found(target=target, student=Threshold(), drawn=disc())
    assert steady["brightness"] == pytest.approx(np.log(0.02), abs=1e-4)
    assert fickle["brightness"] > steady["brightness"] + 1.0
    assert fickle == found(target=target, student=Threshold(), drawn=disc())  # the same changes again


def test_a_mask_that_stays_behind_when_the_image_moves_is_noticed() -> None:
    target = picture(disc())
    follows = found(target=target, student=Threshold(), drawn=disc())
    stays = found(target=target, student=Steady(disc()), drawn=disc())
    assert follows["nudge"] == pytest.approx(np.log(0.02), abs=1e-4)
    moved = [(torch.roll(disc(), way, (1, 2)), disc()) for way in ((1, 0), (-1, 0), (0, 1), (0, -1))]
    dice = [2.0 * (a * b).sum().item() / (a.sum() + b.sum()).item() for a, b in moved]
    assert stays["nudge"] == pytest.approx(
        np.log(1.02 - (sum(dice) + 2.0) / 6), abs=1e-4
    )  # noise changes nothing


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_bright_border_does_not_come_in_on_the_other_side(turns: int) -> None:
    """An X-ray whose one side shows a shoulder, its other side air: moved, there is still air."""
    target = torch.full((1, 1, SIZE, SIZE), -0.7)
    target[..., : SIZE // 4, :] = 0.6
    target = torch.rot90(target, turns, dims=(2, 3))
    label = (target[:, 0] > 0).long()
    nudge = found(target=target, student=Smooth(0.2), drawn=label)["nudge"]
    assert nudge == pytest.approx(np.log(0.02), abs=1e-4)


def test_what_a_move_leaves_in_sight_is_where_it_was() -> None:
    image = torch.arange(30.0).view(1, 1, 5, 6)
    for rows, columns in ((2, 0), (-2, 0), (0, 1), (0, -1), (1, -2)):
        shown = kept(moved(image, rows, columns), -rows, -columns)
        assert torch.equal(shown, kept(image, rows, columns))
        assert shown.shape == (1, 1, 5 - abs(rows), 6 - abs(columns))
    assert torch.equal(moved(image, 2, 0)[..., :2, :], image[..., :1, :].expand(-1, -1, 2, -1))


def test_noise_counts_too() -> None:
    ground = torch.full((1, 1, SIZE, SIZE), -0.03)  # just below the level of the student
    assert found(target=ground, student=Threshold(), drawn=torch.zeros_like(disc()))["nudge"] > np.log(0.3)


def test_features_of_a_slice_do_not_depend_on_the_batch() -> None:
    target = torch.cat([picture(disc(column=column)) for column in (10.0, 16.0, 22.0)])
    student, anatomy = Threshold(), ANATOMY
    inversion = Inversion(torch.ones(3, 4, 8), target, one_hot(disc().expand(3, -1, -1)), torch.zeros(3), 1)
    networks = {"student": student, "encoder": Encoder(), "anatomy": anatomy}
    together = features(target, student(target).softmax(dim=1), inversion, **networks)
    second = Inversion(
        *(part[1:2] for part in (inversion.w_plus, target, inversion.label_probs, inversion.loss)), 1
    )
    alone = features(target[1:2], student(target[1:2]).softmax(dim=1), second, **networks)
    np.testing.assert_allclose(together[1], alone[0], rtol=1e-5)


def test_a_constant_image_has_finite_features() -> None:
    target = torch.full((1, 1, SIZE, SIZE), -1.0)
    values = found(target=target, student=Threshold(), drawn=torch.zeros_like(disc()), image=target)
    assert np.isfinite(list(values.values())).all()


def test_a_search_that_goes_far_is_noticed() -> None:
    given = {"target": picture(disc()), "student": Steady(disc()), "drawn": disc()}
    assert found(moved=0.0, **given)["search"] == pytest.approx(np.log(1e-6))
    assert found(moved=2.0, **given)["search"] == pytest.approx(np.log(4.0), abs=1e-4)


def test_anatomy_is_measured_from_the_plane_of_training_answers() -> None:
    random = np.random.default_rng(0)
    plane = random.normal(size=(200, 2)) @ random.normal(size=(2, 6)) + 5.0
    anatomy = Anatomy.of(plane, directions=2)
    off = np.linalg.svd(anatomy.axes)[2][-1]  # a unit vector at right angles to the plane
    near, far = anatomy.log_distance(plane + 0.01 * off), anatomy.log_distance(plane + 3.0 * off)
    np.testing.assert_allclose(far, np.log(9.0 / 6.0), atol=0.02)
    assert near.max() < -5.0


def test_deep_answers_are_of_the_deepest_level_in_quarters() -> None:
    student = make_segmenter((4, 6, 8), image_channels=1, num_classes=2).eval()
    images = torch.rand(70, 1, SIZE, SIZE)  # more than one batch
    answers = deep_answers(student, images)
    assert answers.shape == (70, 4 * 8)
    np.testing.assert_allclose(deep_answers(student, images[66:]), answers[66:], atol=1e-5)
    image = picture(disc(column=6.0))
    quarters = deep_answers(Steady(disc()), image)[0]  # means of brightness
    upper, lower = image[0, 0].split(SIZE // 2)
    expected = [part.mean() for row in (upper, lower) for part in row.split(SIZE // 2, dim=1)]
    np.testing.assert_allclose(quarters, expected, atol=1e-6)


def test_without_the_anatomy_there_is_no_judgement() -> None:
    target, student = picture(disc()), Threshold()
    inversion = Inversion(torch.zeros(1, 4, 8), target, one_hot(disc()), torch.zeros(1), 0)
    row = features(target, student(target).softmax(dim=1), inversion, student=student, encoder=Encoder())
    assert np.isnan(row[0, NAMES.index("anatomy")])
    with pytest.raises(ValueError, match="anatomy"):
        judge(row, CALIBRATION, validation_dice=0.9)


# --- calibration and judgement -----------------------------------------------------------------------


def calibration(**wrong: float) -> Calibration:
    """Features as they are; ``wrong`` are weights of the first regression, foreign follows "search" alone."""
    count = len(NAMES)
    return Calibration(
        features=tuple(NAMES),
        centre=(0.0,) * count,
        scale=(1.0,) * count,
        wrong=Regression(tuple(wrong.get(name, 0.0) for name in NAMES), -3.0),
        foreign=Regression(tuple(6.0 * (name == "search") for name in NAMES), -3.0),
        anatomy=ANATOMY,
    )


def rows(count: int, **values: dict[int, float]) -> np.ndarray:
    """Features of ``count`` slices, 0 but for values[feature][slice]."""
    table = np.zeros((count, len(NAMES)))
    for name, entries in values.items():
        for number, value in entries.items():
            table[number, NAMES.index(name)] = value
    return table


CALIBRATION = calibration(methods=6.0, brightness=6.0)


def test_a_calibration_survives_json() -> None:
    again = Calibration.from_dict(json.loads(json.dumps(CALIBRATION.to_dict())))
    assert again.to_dict() == CALIBRATION.to_dict()
    np.testing.assert_array_equal(again.anatomy.axes, ANATOMY.axes)


@pytest.mark.parametrize(
    "change",
    [
        {"features": ["methods"]},
        {"features": ["magic"] * len(NAMES)},
        {"scale": [0.0] * len(NAMES)},
        {"centre": [float("nan")] * len(NAMES)},
        {"wrong": {"weights": [1.0], "bias": 0.0}},
        {"wrong": "none"},
        {"wrong": {"weights": [-1.0] * len(NAMES), "bias": 0.0}},
        {"bias": 3.0},
        {"anatomy": {"shape": [2, 4], "float16": "AAAA"}},
        {"anatomy": {"shape": [2, 4], "float16": "?"}},
        {"anatomy": {}},
    ],
)
def test_a_damaged_calibration_is_an_input_error(change: dict) -> None:
    values = json.loads(json.dumps(CALIBRATION.to_dict())) | change
    with pytest.raises(InputError, match="trust"):
        Calibration.from_dict(values)


def test_a_calibration_that_is_no_table_is_an_input_error() -> None:
    for values in (None, [], 3):
        with pytest.raises(InputError, match="trust"):
            Calibration.from_dict(values)


def test_each_quality_and_method_has_a_calibration_of_its_own() -> None:
    facts = json.loads(json.dumps({"trust": {"student": {"standard": CALIBRATION.to_dict()}, "encoder": {}}}))
    stored = stored_calibration(facts, "standard", "student")
    assert stored is not None
    assert stored.to_dict() == CALIBRATION.to_dict()
    for way in (("fast", "student"), ("standard", "encoder"), ("standard", "inversion")):
        assert stored_calibration(facts, *way) is None
    assert why_uncalibrated(facts) == "trust is not calibrated for this way of segmenting"


@pytest.mark.parametrize("facts", [{}, {"trust": {}}])
def test_a_model_may_carry_no_calibration(facts: dict) -> None:
    assert stored_calibration(facts, "standard", "student") is None
    assert why_uncalibrated(facts) == "the model carries no calibration of trust"


def test_the_table_of_an_older_version_counts_as_none() -> None:
    facts = json.loads(json.dumps({"trust": {"standard": CALIBRATION.to_dict()}}))
    assert stored_calibration(facts, "standard", "student") is None
    assert "older version" in why_uncalibrated(facts)


@pytest.mark.parametrize("table", [3, ["student"], {"student": 3}, {"student": {"standard": 3}}])
def test_a_damaged_table_is_an_input_error(table: Any) -> None:
    with pytest.raises(InputError, match="trust"):
        stored_calibration({"trust": table}, "standard", "student")


def test_a_calibration_may_use_some_of_the_features() -> None:
    few = Calibration(("search",), (1.0,), (2.0,), Regression((1.0,), 0.0), Regression((0.0,), 0.0), ANATOMY)
    wrong, foreign = few.probabilities(rows(2, search={1: 5.0}))
    np.testing.assert_allclose(wrong, [1 / (1 + np.exp(0.5)), 1 / (1 + np.exp(-2.0))])
    np.testing.assert_allclose(foreign, 0.5)


def test_a_sound_case_is_ok() -> None:
    trust = judge(rows(10), CALIBRATION, validation_dice=0.9)
    assert trust.status == "ok"
    assert trust.score == pytest.approx(1 - 1 / (1 + np.exp(3.0)), abs=1e-3)
    assert trust.slices == ()
    json.dumps(asdict(trust))


def test_few_doubtful_slices_are_listed_though_the_case_is_ok() -> None:
    trust = judge(rows(20, methods={4: 1.0, 5: 1.0}), CALIBRATION, validation_dice=0.9)
    assert trust.status == "ok"
    assert trust.slices == (5, 6)
    assert trust.reason.endswith("look at slices 5-6")


def test_a_slice_is_listed_from_a_probability_of_one_half_on() -> None:
    found = rows(40, methods={2: 0.49, 7: 0.51}, search={20: 0.49, 31: 0.51})  # the log odds are 6 x - 3
    trust = judge(found, CALIBRATION, validation_dice=0.9)
    assert trust.slices == (8, 32)
    assert trust.wrong[7] == pytest.approx(1 / (1 + np.exp(-0.06)), abs=1e-3)


def test_slices_of_a_region_have_the_numbers_of_their_volume() -> None:
    few, many = rows(20, methods={4: 1.0, 5: 1.0}), rows(9, methods=dict.fromkeys(range(1, 8), 1.0))
    foreign = rows(2, search={0: 1.0, 1: 1.0})
    trusts = [
        judge(found, CALIBRATION, validation_dice=0.9, first_slice=101) for found in (few, many, foreign)
    ]
    assert [trust.slices for trust in trusts] == [(105, 106), tuple(range(102, 109)), (101, 102)]
    for trust, where in zip(trusts, ("slices 105-106", "slices: 102-108", "slices: 101-102"), strict=True):
        assert trust.reason.endswith(where)


@pytest.mark.parametrize(("doubtful", "status"), [(4, "ok"), (5, "review")])
def test_more_than_a_tenth_to_look_at_is_reviewed(doubtful: int, status: str) -> None:
    trust = judge(rows(40, methods=dict.fromkeys(range(doubtful), 1.0)), CALIBRATION, validation_dice=0.9)
    assert trust.status == status
    assert trust.score > 0.8
    assert len(trust.slices) == doubtful
    assert ("5 of 40 slices are doubtful: the two methods disagree" in trust.reason) == (status == "review")


def test_many_wrong_masks_are_reviewed_with_the_reason_and_the_slices() -> None:
    found = rows(39, methods=dict.fromkeys([1, *range(11, 18)], 1.0), brightness={30: 1.0})
    trust = judge(found, CALIBRATION, validation_dice=0.9)
    assert trust.status == "review"
    assert "the two methods disagree on 8 of 39 slices: 2, 12-18" in trust.reason
    assert "the student's mask changes when brightness is altered on 1 of 39 slices: 31" in trust.reason
    assert trust.slices == (2, *range(12, 19), 31)


def test_a_foreign_picture_is_reviewed_though_its_mask_may_be_right() -> None:
    trust = judge(rows(1, search={0: 1.0}), CALIBRATION, validation_dice=0.9)
    assert trust.status == "review"
    assert trust.score > 0.9
    assert "foreign" in trust.reason
    assert FEATURES["search"] in trust.reason


def test_doubt_without_a_suspicious_slice_still_gives_a_reason() -> None:
    doubtful = replace(CALIBRATION, wrong=replace(CALIBRATION.wrong, bias=-1.0))
    trust = judge(rows(4), doubtful, validation_dice=0.9)
    assert trust.status == "review"
    assert trust.slices == ()
    assert "on 4 of 4 slices: 1-4" in trust.reason


def test_nothing_is_ok_without_a_judgement_or_with_a_poor_model() -> None:
    without = not_judged("nobody looked")
    assert (without.status, without.score) == ("review", 0.0)
    assert without.reason == "nobody looked; check the mask"
    poor = judge(rows(3), CALIBRATION, validation_dice=0.79)
    assert poor.status == "review"
    assert "0.79" in poor.reason
    for unknown in (float("nan"), 7.0, -1.0):
        trust = judge(rows(3), CALIBRATION, validation_dice=unknown)
        assert trust.status == "review"
        assert "nobody knows how well the model did" in trust.reason


# --- what a mask expects of itself -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # p of label 1 in four pixels: the mask is where it is above 1/2
        ([0.9, 0.8, 0.4, 0.0], None, 2 * (0.9 + 0.8) / (2 + 2.1)),
        ([1.0, 1.0, 0.0, 0.0], None, 1.0),
        ([0.4, 0.3, 0.0, 0.0], None, 0.0),  # nothing is drawn, something may be there
        ([0.0, 0.0, 0.0, 0.0], None, None),
        # Two labels: the mean; one of which there is nothing does not count.
        ([0.9, 0.2, 0.0, 0.0], [0.0, 0.7, 0.6, 0.0], (2 * 0.9 / (1 + 1.1) + 2 * 1.3 / (2 + 1.3)) / 2),
        ([0.9, 0.2, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], 2 * 0.9 / (1 + 1.1)),
    ],
)
def test_soft_dice_confidence_is_the_closed_form(
    first: list[float], second: list[float] | None, expected: float | None
) -> None:
    labels = np.array([first] if second is None else [first, second])
    probs = np.concatenate([1.0 - labels.sum(axis=0, keepdims=True), labels])  # (K, 4)
    found = soft_dice_confidence(probs.reshape(1, -1, 2, 2))
    assert found == (None if expected is None else pytest.approx(expected))
    # A case is pooled over its slices, as DICE is.
    twice = np.repeat(probs.reshape(1, -1, 2, 2), 2, axis=0)
    assert soft_dice_confidence(twice) == (None if expected is None else pytest.approx(expected))


def test_soft_dice_confidence_adds_up_many_half_precision_voxels() -> None:
    """Half precision ends at 65,504, a scan has millions of voxels."""
    probs = np.full((2, 2, 512, 512), 0.25, np.float16)
    probs[:, 1] = 0.75
    assert soft_dice_confidence(probs) == pytest.approx(2 * 0.75 / 1.75)
