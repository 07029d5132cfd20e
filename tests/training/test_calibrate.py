"""Slices that fail on purpose, and the fit that learns from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.networks.layers.simplelayers import SkipConnection
from scipy.optimize import approx_fprime
from scipy.special import expit
from torch import Tensor, nn

from sgan_core.bundle import Bundle
from sgan_core.config import InversionConfig
from sgan_core.inversion import Inversion
from sgan_core.networks.segmenter import make_student
from sgan_core.training import calibrate
from sgan_core.training.data import SliceStore
from sgan_core.trust import FEATURES, Anatomy, Calibration, calibrations, features, judge, stored_calibration

SIZE = 32
ANATOMY = Anatomy(np.zeros(4), np.eye(4)[:1])


@pytest.fixture
def store(disc_store: Callable[..., SliceStore]) -> SliceStore:
    """Four validation patients with labels, two training patients."""
    made = disc_store(patients=6, slices=8, labelled=6)
    cases = tuple(
        replace(case, split="validation", labelled_rank=None) if number >= 2 else case
        for number, case in enumerate(made.cohort.cases)
    )
    return replace(made, cohort=replace(made.cohort, cases=cases))


def one(grade: float, corrupt: calibrate.Corruption, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A corrupted ramp whose right half is the organ."""
    image = np.tile(np.linspace(-0.5, 0.9, SIZE, dtype=np.float32), (1, SIZE, 1))
    label = (image[0] > 0.2).astype(np.uint8)
    return corrupt(image, label, grade, np.random.default_rng(seed))


@pytest.mark.parametrize("corrupt", calibrate.CORRUPTIONS)
def test_severe_corruption_changes_more_than_mild(corrupt: calibrate.Corruption) -> None:
    plain, label = one(0.0, lambda image, label, grade, random: (image, label))
    change = [np.abs(one(grade, corrupt)[0] - plain).mean() for grade in (0.2, 1.0)]
    assert change[0] < change[1]
    assert (change[0] == 0) == (corrupt is calibrate.overturned)  # there is no mild one
    assert one(0.2, corrupt)[1].shape == label.shape


def test_truth_moves_with_the_picture() -> None:
    for corrupt in (calibrate.turned, calibrate.overturned, calibrate.shuffled, calibrate.cut_off):
        image, label = one(1.0, corrupt)
        inside = image[0][label > 0]
        assert len(inside)
        assert (inside > 0.1).mean() > 0.95  # still the bright half
    assert not one(1.0, calibrate.pattern)[1].any()


def test_half_of_the_picture_is_missing_at_most() -> None:
    image, _ = one(1.0, calibrate.cut_off)
    assert (image == -1.0).mean() == 0.5


def test_all_blocks_change_places() -> None:
    image, _ = one(1.0, calibrate.shuffled)
    plain, _ = one(0.0, calibrate.shuffled)
    np.testing.assert_array_equal(np.sort(image.ravel()), np.sort(plain.ravel()))
    assert one(0.0, calibrate.cut_off)[0] == pytest.approx(plain)


def test_shown_slices_are_bounded_deterministic_and_of_validation_patients(store: SliceStore) -> None:
    shown, again, other = (calibrate.show(store, count=96, seed=seed) for seed in (0, 0, 1))
    assert len(shown) == 96
    np.testing.assert_array_equal(shown.images, again.images)
    assert not np.array_equal(shown.images, other.images)
    assert set(shown.patients) == {"p2", "p3", "p4", "p5"}
    assert np.abs(shown.images).max() <= 1.0
    kinds = np.array(shown.kinds)
    assert (kinds == "clean").sum() == 24
    assert set(kinds) == {"clean", "appearance", "family", *(c.__name__ for c in calibrate.CORRUPTIONS)}
    assert (shown.foreign[np.isin(kinds, ["clean", "appearance", "family"])] == 0).all()
    assert np.isnan(shown.foreign).sum() == (shown.foreign == 1).sum() == 24


def test_looks_of_the_family_leave_anatomy_where_it_is() -> None:
    images = torch.linspace(-1, 1, SIZE)[None, None, None].expand(8, 1, SIZE, SIZE)
    looks = calibrate.look_family(images, torch.Generator().manual_seed(0))
    assert looks.abs().max() <= 1.0
    assert (looks == looks[:, :, :1]).all()  # every row got the same curve
    torch.testing.assert_close(looks[0], -images[0])


# --- the fit ---------------------------------------------------------------------------------------


def made_up(count: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Features of which the first decides what is wrong and the last what is foreign."""
    random = np.random.default_rng(seed)
    x = random.normal(5.0, 2.0, (count, len(FEATURES)))
    wrong = random.random(count) < expit(2.0 * (x[:, 0] - 6.0))
    foreign = (random.random(count) < expit(1.5 * (x[:, -1] - 5.0))).astype(float)
    foreign[::7] = np.nan
    return x, wrong, foreign, [f"p{number % 8}" for number in range(count)]


def test_fit_finds_what_decides_and_is_calibrated() -> None:
    calibration, figures = calibrate.fit(*made_up(2000), ANATOMY)
    weights = np.array(calibration.wrong.weights) / np.array(calibration.scale)
    assert weights[0] == pytest.approx(2.0, rel=0.15)
    assert np.abs(weights[1:]).max() < 0.15
    assert np.abs(calibration.foreign.weights).argmax() == len(FEATURES) - 1
    assert figures["auc_wrong"] > 0.9
    assert figures["calibration_error"] < 0.03
    assert figures["patients"] == 8
    x, wrong, _, _ = made_up(2000, seed=1)
    assert calibration.probabilities(x)[0].mean() == pytest.approx(wrong.mean(), abs=0.03)


def test_figures_are_of_patients_that_were_left_out() -> None:
    x, wrong, foreign, _ = made_up(40)
    patients = [f"p{number}" for number in range(40)]
    wrong[:] = np.random.default_rng(9).random(40) < 0.5  # nothing to learn: fitted slices would look good
    assert calibrate.fit(x, wrong, foreign, patients, ANATOMY)[1]["auc_wrong"] < 0.65


def test_slices_of_which_a_mask_cannot_be_wrong_do_not_teach_what_is() -> None:
    x, wrong, foreign, patients = made_up()
    asked = np.where(np.arange(len(x)) % 3 == 0, np.nan, wrong)
    some = calibrate.fit(x, asked, foreign, patients, ANATOMY)[0]
    misled = calibrate.fit(x, np.where(np.isnan(asked), 1.0 - wrong, wrong), foreign, patients, ANATOMY)[0]
    rest = ~np.isnan(asked)
    scaled = (x - x.mean(axis=0)) / x.std(axis=0)
    assert some.wrong == calibrate._regression(scaled[rest], wrong[rest], np.array(patients)[rest])[0]
    assert misled.wrong != some.wrong
    assert some.foreign == misled.foreign


def test_one_patient_gives_a_calibration_without_figures() -> None:
    x, wrong, foreign, _ = made_up(60)
    calibration, figures = calibrate.fit(x, wrong, foreign, ["p"] * 60, ANATOMY)
    assert isinstance(calibration, Calibration)
    assert np.isnan([figures["auc_wrong"], figures["auc_foreign"], figures["calibration_error"]]).all()


def test_a_model_that_never_fails_gets_finite_small_probabilities() -> None:
    x, wrong, foreign, patients = made_up(80)
    calibration, figures = calibrate.fit(x, np.zeros_like(wrong), foreign, patients, ANATOMY)
    assert calibration.probabilities(x)[0].max() < 0.05
    assert np.isnan(figures["auc_wrong"])


def test_logistic_regression_is_at_a_minimum() -> None:
    x, wrong, _, _ = made_up(100)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    found = calibrate._fit_logistic(x, wrong, 2.0)
    values = np.array([*found.weights, found.bias])

    def loss(values: np.ndarray) -> float:
        z = x @ values[:-1] + values[-1]
        return (
            np.logaddexp(0, np.where(wrong, -z, z)).sum()
            + np.square(values[:-1]).sum()
            + 0.005 * values[-1] ** 2
        )

    slope = approx_fprime(values, loss)
    free = (values > 0) | (np.arange(len(values)) == len(values) - 1)  # the bias may be below 0
    assert np.abs(slope[free]).max() < 0.02
    assert (slope[~free] > 0).all()  # the loss would only fall below 0


# --- all of it on a toy ----------------------------------------------------------------------------


class Disc(nn.Module):
    """Labels bright pixels: right for discs, wrong for most of what is corrupted."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = SkipConnection(nn.AvgPool2d(4))

    def forward(self, image: Tensor) -> Tensor:
        self.deep.submodule(image)
        organ = 30.0 * image[:, :1]
        return torch.cat([-organ, organ], dim=1)


class Means(nn.Module):
    """An "encoder" whose w_plus are means of 4 x 4 blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, image: Tensor) -> Tensor:
        return self.gain * torch.nn.functional.avg_pool2d(image, SIZE // 4).flatten(2)


def segment_slices(images: np.ndarray, anatomy: Anatomy) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The student's mask; the "inversion" draws what stands out from the border in two shades."""
    target = torch.from_numpy(images)
    student_probs = Disc()(target).softmax(dim=1)
    smooth = torch.nn.functional.avg_pool2d(target, 3, 1, 1)
    ground = target[:, :, 0].mean(dim=2)[:, :, None, None]
    organ = ((smooth - ground).abs() > 0.5).float()
    shade = (target * organ).sum(dim=(2, 3), keepdim=True) / organ.sum(dim=(2, 3), keepdim=True).clamp(
        min=1.0
    )
    drawn = torch.where(organ > 0, shade, ground)
    label_probs = torch.cat([1.0 - organ, organ], dim=1)
    inversion = Inversion(Means()(drawn).detach(), drawn, label_probs, torch.zeros(len(target)), 1)
    found = features(target, student_probs, inversion, student=Disc(), encoder=Means(), anatomy=anatomy)
    probs = {"student": student_probs, "encoder": label_probs}
    return found, {method: part.argmax(dim=1).numpy() for method, part in probs.items()}


def test_calibrating_a_toy_segmenter(store: SliceStore) -> None:
    anatomy = calibrate.training_anatomy(store, Disc(), device=torch.device("cpu"))
    shown = calibrate.show(store, count=96)
    found = calibrate.calibrate(shown, segment_slices, anatomy, batch=32)
    calibration, figures = found["student"]
    assert (figures["slices"], figures["patients"]) == (96, 4)
    assert figures["auc_wrong"] > 0.8
    assert figures["auc_foreign"] > 0.8
    again = calibrate.calibrate(shown, segment_slices, anatomy, batch=32)["student"]
    assert (again[0].to_dict(), again[1]) == (calibration.to_dict(), figures)

    shown = calibrate.show(store, count=96, seed=1)
    measured = calibrate.measure(shown, segment_slices, anatomy, batch=32)["student"]
    by_kind = {
        kind: judge(measured.features[np.array(shown.kinds) == kind], calibration, validation_dice=0.95)
        for kind in set(shown.kinds)
    }
    assert by_kind["clean"].score > 0.8
    assert by_kind["pattern"].status == by_kind["family"].status == "review"


def test_what_is_wrong_is_learned_from_the_mask_that_is_delivered(store: SliceStore) -> None:
    """The same features; a method whose masks are all right is never doubted as much as one that always fails."""
    anatomy = calibrate.training_anatomy(store, Disc(), device=torch.device("cpu"))
    shown = calibrate.show(store, count=96)
    given = iter(shown.labels)

    def segment(images: np.ndarray, anatomy: Anatomy) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        truth = np.stack([next(given) for _ in images])
        return segment_slices(images, anatomy)[0], {"student": truth, "encoder": 1 - truth}

    found = calibrate.calibrate(shown, segment, anatomy)
    rows = calibrate.measure(shown, segment_slices, anatomy)["student"].features
    right, wrong = (found[method][0].probabilities(rows)[0] for method in ("student", "encoder"))
    assert right.max() < 0.1
    assert wrong.min() > 0.9
    assert found["student"][0].foreign == found["encoder"][0].foreign


def test_slices_are_segmented_in_batches(store: SliceStore) -> None:
    batches: list[int] = []

    def counting(images: np.ndarray, anatomy: Anatomy) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        batches.append(len(images))
        return segment_slices(images, anatomy)

    found = calibrate.measure(calibrate.show(store, count=96), counting, ANATOMY, batch=16)
    assert batches == [16, 8, 12, 12, *[8] * 6]  # never of two kinds
    assert list(found) == ["student", "encoder"]
    for measured in found.values():
        assert measured.masks.shape == (96, SIZE, SIZE)
        np.testing.assert_array_equal(measured.wrong, measured.slice_dice < 0.7)
    assert found["student"].features is found["encoder"].features


def with_student(model: Bundle) -> Bundle:
    """An untrained model with a narrow untrained student and as few steps as can be."""
    config = replace(
        model.config,
        student_train=replace(model.config.student_train, channels=(4, 8)),
        inversion=InversionConfig(steps=1, check_steps=1),
    )
    return replace(model, config=config, student=make_student(config).eval())


def test_every_way_of_segmenting_that_gets_a_figure_is_calibrated(
    untrained: Bundle, store: SliceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "SLICES", 48)
    seen: list[tuple[int, int]] = []
    bundle = with_student(untrained)
    facts = calibrate.trust_facts(
        bundle, store, on_progress=lambda done, total, message: seen.append((done, total))
    )
    table = calibrations(json.loads(json.dumps(facts)))
    assert {method: list(part) for method, part in table.items()} == {
        "student": ["fast", "standard", "careful"],
        "encoder": ["fast"],
    }
    ways = [(method, quality) for method, part in table.items() for quality in part]
    assert all(stored_calibration(facts, quality, method) for method, quality in ways)
    counts = {(m, q): facts[f"trust_{m}_{q}_slices"] for m, q in ways}
    assert counts == dict.fromkeys(ways, 48.0)
    assert facts["trust_cohort"] == store.cohort.name
    assert seen == sorted(seen)
    assert seen[-1] == (144, 144)


def test_too_few_validation_slices_give_no_calibration(
    untrained: Bundle, disc_store: Callable[..., SliceStore]
) -> None:
    assert calibrate.trust_facts(with_student(untrained), disc_store())["trust"] == {}


def test_where_sides_have_no_meaning_nothing_is_turned(store: SliceStore) -> None:
    skin = replace(store, cohort=replace(store.cohort, modality="dermoscopy"))
    kinds = set(calibrate.show(skin, count=96).kinds)
    assert kinds.isdisjoint({"turned", "overturned"})
    assert {"noisy", "cut_off", "shuffled", "pattern"} < kinds
