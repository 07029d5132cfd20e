"""Ranking, selective risk, reliability and intervals, against counts made by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import mannwhitneyu

from sgan_core.metrics import failure


def map_of(*rows: str) -> np.ndarray:
    """A label map from digits, one text a row."""
    return np.array([[int(value) for value in row] for row in rows], np.uint8)


def test_slice_dice_counts_both_empty_as_right_and_a_hallucination_as_wrong() -> None:
    empty, organ, shifted = map_of("0000"), map_of("0110"), map_of("0011")
    predicted = np.stack([empty, organ, empty, organ])
    truth = np.stack([empty, empty, organ, shifted])
    np.testing.assert_allclose(failure.slice_dice(predicted, truth), [1, 0, 0, 0.5])


def test_slice_dice_of_several_labels_needs_the_same_label() -> None:
    assert failure.slice_dice(map_of("1122")[None], map_of("1111")[None]).item() == 0.5


def test_area_on_empty_slices_leaves_the_others_out() -> None:
    predicted = np.stack([map_of("0110"), map_of("1111"), map_of("0000")])
    truth = np.stack([map_of("0000"), map_of("1110"), map_of("0000")])
    assert failure.empty_slice_area_mm2(predicted, truth, 2.5) == (2.5, 2)
    assert failure.empty_slice_area_mm2(predicted, truth, np.array([1.0, 9.0, 9.0])) == (1.0, 2)
    area, slices = failure.empty_slice_area_mm2(predicted[1:2], truth[1:2], 1.0)
    assert np.isnan(area)
    assert slices == 0


@given(
    arrays(float, 12, elements=st.sampled_from([0.0, 0.5, 1.0, 2.0])),
    arrays(bool, 12).filter(lambda failed: 0 < failed.sum() < 12),
)
def test_auc_counts_pairs(score: np.ndarray, failed: np.ndarray) -> None:
    pairs = list(itertools.product(score[failed], score[~failed]))
    wins = sum((bad > good) + 0.5 * (bad == good) for bad, good in pairs) / len(pairs)
    assert failure.auc(score, failed) == pytest.approx(wins)
    u = mannwhitneyu(score[failed], score[~failed]).statistic
    assert failure.auc(score, failed) == pytest.approx(u / len(pairs))


def test_auc_without_failures_is_not_defined() -> None:
    assert np.isnan(failure.auc(np.array([0.1, 0.2]), np.array([False, False])))


def test_risk_coverage_area_by_hand() -> None:
    risk = np.array([0.0, 0.3, 0.9])
    # Means of the first 1, 2 and 3 slices: 0, 0.15, 0.4.
    assert failure.risk_coverage_area(np.array([1.0, 2.0, 3.0]), risk) == pytest.approx(0.55 / 3)
    # The other way round: 0.9, 0.6, 0.4.
    assert failure.risk_coverage_area(np.array([3.0, 2.0, 1.0]), risk) == pytest.approx(1.9 / 3)


def test_risk_coverage_area_does_not_depend_on_the_order_of_equal_scores() -> None:
    score, risk = np.array([1.0, 1.0, 2.0]), np.array([0.8, 0.0, 0.6])
    turned = failure.risk_coverage_area(score[[1, 0, 2]], risk[[1, 0, 2]])
    # The two equal ones have the risk 0.4 each: 0.4, 0.4, 1.4 / 3.
    assert failure.risk_coverage_area(score, risk) == pytest.approx((0.8 + 1.4 / 3) / 3)
    assert turned == pytest.approx(failure.risk_coverage_area(score, risk))


def test_a_score_that_says_nothing_has_the_mean_risk() -> None:
    risk = np.random.default_rng(0).random(50)
    assert failure.risk_coverage_area(np.zeros(50), risk) == pytest.approx(risk.mean())


def test_reliability_bins_and_their_error() -> None:
    probability = np.array([0.1, 0.1, 0.9, 1.0])
    bins = failure.reliability(probability, np.array([False, True, True, True]), bins=2)
    assert [(b.low, b.high, b.slices) for b in bins] == [(0, 0.5, 2), (0.5, 1, 2)]
    np.testing.assert_allclose([(b.predicted, b.observed) for b in bins], [(0.1, 0.5), (0.95, 1)])
    assert failure.calibration_error(bins) == pytest.approx((2 * 0.4 + 2 * 0.05) / 4)


def test_probabilities_that_are_shares_have_no_calibration_error() -> None:
    random = np.random.default_rng(0)
    probability = random.random(20_000)
    bins = failure.reliability(probability, random.random(20_000) < probability)
    assert failure.calibration_error(bins) < 0.015


def test_bootstrap_draws_whole_patients() -> None:
    patients = ["a", "a", "a", "b"]
    seen = set()

    def figures(index: np.ndarray) -> dict[str, float]:
        seen.add(tuple(np.bincount(index, minlength=4)))
        return {"slices": float(len(index))}

    found = failure.patient_bootstrap(figures, patients, draws=200)
    assert seen == {(2, 2, 2, 0), (1, 1, 1, 1), (0, 0, 0, 2)}
    assert found == {"slices": (2.0, 6.0)}


def test_bootstrap_interval_of_a_mean_is_that_of_the_normal_law() -> None:
    values = np.random.default_rng(1).normal(size=200)
    patients = [str(number) for number in range(200)]
    low, high = failure.patient_bootstrap(lambda i: {"mean": float(values[i].mean())}, patients)["mean"]
    half = 1.96 * values.std() / np.sqrt(200)
    np.testing.assert_allclose([low, high], [values.mean() - half, values.mean() + half], atol=0.03)


def test_bootstrap_leaves_out_draws_without_a_figure() -> None:
    failed = np.array([True, False])
    found = failure.patient_bootstrap(
        lambda i: {"auc": failure.auc(np.array([2.0, 1.0])[i], failed[i])}, ["a", "b"], draws=50
    )
    assert found["auc"] == (1.0, 1.0)
