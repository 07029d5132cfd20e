"""The phantom is an abdomen: where its organs lie, what they look like, and that a seed decides all of it."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion

from sgan_core.errors import InputError
from sgan_core.phantom import (
    DOMAINS,
    LABELS,
    LIVER,
    TEST_SEEDS,
    PhantomCase,
    make_case,
    phantom_cohort,
    read_phantom,
)

SEEDS = (0, 1, 2, 3, 4, 5)
VALUES = {label.name: label.value for label in LABELS}


@cache
def case_of(seed: int, domain: str) -> PhantomCase:
    return make_case(seed, domain)


def liver_ml(case: PhantomCase) -> float:
    return float((case.labels == LIVER).sum()) * case.image.grid.voxel_ml


def centre_mm(case: PhantomCase, label: int) -> np.ndarray:
    """World position of the middle of an organ, (3,) RAS mm."""
    voxel = np.argwhere(case.labels == label).mean(0)
    affine = case.image.grid.affine
    return np.asarray(affine[:3, :3] @ voxel + affine[:3, 3])


def reach_mm(case: PhantomCase, label: int, *, axis: int) -> np.ndarray:
    """Lowest and highest world coordinate of an organ along a world axis, (2,) mm."""
    affine = case.image.grid.affine
    points = np.argwhere(case.labels == label) @ affine[:3, :3].T + affine[:3, 3]
    return np.array([points[:, axis].min(), points[:, axis].max()])


@pytest.mark.parametrize("domain", DOMAINS)
def test_same_seed_gives_the_same_voxels(domain: str) -> None:
    np.random.seed(1)  # noqa: NPY002 - global state must not matter
    again, first = make_case(7, domain), case_of(7, domain)
    np.testing.assert_array_equal(first.image.array, again.image.array)
    np.testing.assert_array_equal(first.labels, again.labels)
    np.testing.assert_array_equal(first.image.grid.affine, again.image.grid.affine)


@pytest.mark.parametrize("domain", DOMAINS)
def test_stored_types_and_shapes(domain: str) -> None:
    case = case_of(0, domain)
    assert case.image.array.dtype == np.int16
    assert case.labels.dtype == np.uint8
    assert case.image.array.shape == case.labels.shape == case.image.grid.shape
    assert {0, *VALUES.values()} >= set(np.unique(case.labels))


def test_every_organ_is_there() -> None:
    present = np.unique(case_of(0, "ct").labels)
    assert set(VALUES.values()) <= set(present)


@pytest.mark.parametrize("seed", SEEDS)
def test_anatomy_is_the_same_in_every_domain(seed: int) -> None:
    ct, t1_in = case_of(seed, "ct"), case_of(seed, "t1_in")
    assert liver_ml(t1_in) == pytest.approx(liver_ml(ct), rel=0.05)
    # The way from liver to spleen does not depend on where the patient lies in the scanner.
    way_ct = centre_mm(ct, VALUES["spleen"]) - centre_mm(ct, LIVER)
    way_mr = centre_mm(t1_in, VALUES["spleen"]) - centre_mm(t1_in, LIVER)
    np.testing.assert_allclose(way_mr, way_ct, atol=6.0)


def test_both_echoes_share_grid_and_labels() -> None:
    in_phase, out_phase = case_of(1, "t1_in"), case_of(1, "t1_out")
    np.testing.assert_array_equal(in_phase.image.grid.affine, out_phase.image.grid.affine)
    np.testing.assert_array_equal(in_phase.labels, out_phase.labels)


def test_ct_and_mri_are_positioned_differently() -> None:
    ct, t1_in = case_of(1, "ct").image.grid, case_of(1, "t1_in").image.grid
    assert not np.allclose(ct.spacing_mm, t1_in.spacing_mm)
    assert np.linalg.norm(ct.affine[:3, 3] - t1_in.affine[:3, 3]) > 1.0


def test_no_two_patients_are_alike() -> None:
    livers = [liver_ml(case_of(seed, "ct")) for seed in SEEDS]
    assert len(set(np.round(livers))) == len(SEEDS)
    assert min(livers) > 500
    assert max(livers) < 3000


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("domain", ["ct", "t1_in"])
def test_organs_lie_on_their_side(seed: int, domain: str) -> None:
    case = case_of(seed, domain)
    aorta, liver = centre_mm(case, VALUES["aorta"]), centre_mm(case, LIVER)
    spleen, cava = centre_mm(case, VALUES["spleen"]), centre_mm(case, VALUES["inferior vena cava"])
    right, left = centre_mm(case, VALUES["right kidney"]), centre_mm(case, VALUES["left kidney"])
    # World x grows to the patient's right, y to the front, z to the head.
    assert liver[0] > aorta[0] > spleen[0]
    assert cava[0] > aorta[0]
    assert right[0] > aorta[0] > left[0]
    assert liver[1] > right[1]
    assert liver[2] > right[2]


@pytest.mark.parametrize("seed", range(10, 18))
def test_liver_attenuation_is_that_of_liver(seed: int) -> None:
    case = case_of(seed, "ct")
    liver = binary_erosion(case.labels == LIVER)
    assert 40 < case.image.array[liver].mean() < 160
    corner = case.image.array[:3, :3].mean()
    assert corner < -900  # air around the patient


@pytest.mark.parametrize("seed", SEEDS)
def test_liver_outshines_spleen_on_t1(seed: int) -> None:
    case = case_of(seed, "t1_in")
    means = [
        case.image.array[binary_erosion(case.labels == value)].mean() for value in (LIVER, VALUES["spleen"])
    ]
    assert means[0] > means[1]


@pytest.mark.parametrize("seed", SEEDS)
def test_out_of_phase_has_dark_borders_between_water_and_fat(seed: int) -> None:
    in_phase, out_phase = case_of(seed, "t1_in"), case_of(seed, "t1_out")
    kidney = np.isin(in_phase.labels, [VALUES["left kidney"], VALUES["right kidney"]])
    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[:, 1, 1] = in_plane[1, :, 1] = True
    free = ~binary_dilation(np.isin(in_phase.labels, [LIVER, VALUES["spleen"]]), in_plane, iterations=5)
    inside = binary_erosion(kidney, in_plane, iterations=2) & free
    edge = binary_dilation(kidney, in_plane) & ~binary_erosion(kidney, in_plane) & free
    outside = binary_dilation(kidney, in_plane, iterations=4) & ~binary_dilation(
        kidney, in_plane, iterations=2
    )
    fat = outside & free & (in_phase.image.array > 1.3 * in_phase.image.array[inside].mean())
    darkest = np.percentile(out_phase.image.array[edge], 25)
    assert darkest < 0.7 * out_phase.image.array[inside].mean()
    assert darkest < 0.7 * out_phase.image.array[fat].mean()
    # In phase, water and fat add up: the same border is no darker than the kidney.
    assert np.percentile(in_phase.image.array[edge], 25) > 0.8 * in_phase.image.array[inside].mean()


@pytest.mark.parametrize("domain", ["t1_in", "t1_out"])
def test_magnitude_noise_is_rician(domain: str) -> None:
    array = case_of(2, domain).image.array
    assert array.min() >= 0
    corner = np.concatenate([array[:6, :6].ravel(), array[-6:, :6].ravel()]).astype(float)
    # Without signal Rician is Rayleigh: mean / standard deviation = sqrt(pi / (4 - pi)) = 1.91.
    assert corner.mean() / corner.std() == pytest.approx(1.91, abs=0.15)


def test_a_realistic_share_of_slices_has_no_liver() -> None:
    shares = [1 - (case_of(seed, "ct").labels == LIVER).any((0, 1)).mean() for seed in range(10, 18)]
    assert 0.3 < np.mean(shares) < 0.55
    assert min(shares) > 0.2
    assert max(shares) < 0.6


@pytest.mark.parametrize("seed", SEEDS)
def test_liver_is_smooth_from_slice_to_slice(seed: int) -> None:
    slices = (case_of(seed, "ct").labels == LIVER).transpose(2, 0, 1)  # (I, J, K) -> (K, I, J)
    pairs = zip(slices[:-1], slices[1:], strict=True)
    dice = [2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs if a.any() and b.any()]
    # The mean holds the dome and the tip, where the area changes quickly; the median does not.
    assert np.mean(dice) > 0.6
    assert np.median(dice) > 0.85


def test_mri_is_oblique_and_stays_a_rotation() -> None:
    grid = case_of(3, "t1_in").image.grid
    directions = grid.affine[:3, :3] / grid.spacing_mm
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-9)
    off_axis = np.abs(directions[~np.eye(3, dtype=bool)])
    assert 0.002 < off_axis.max() < 0.2


def test_array_axes_may_run_either_way() -> None:
    signs = {
        tuple(np.sign(np.diag(case_of(s, "ct").image.grid.affine)[:3])) for s in (*SEEDS, *range(10, 18))
    }
    assert len(signs) > 2


def test_held_out_family_has_a_longer_liver_than_training() -> None:
    def spread(seed: int) -> tuple[float, float]:
        case = case_of(seed, "ct")
        across, along = reach_mm(case, LIVER, axis=0), reach_mm(case, LIVER, axis=2)
        return float(np.ptp(across)), float(np.ptp(along))

    training = np.array([spread(seed) for seed in range(10, 18)])
    held_out = np.array([spread(TEST_SEEDS + n) for n in range(1, 17, 2)])
    # Each such liver is long to the left or long to the feet.
    beyond = (held_out > np.median(training, axis=0)).any(1)
    assert beyond.mean() > 0.8
    assert held_out[:, 1].max() > training[:, 1].max()


def test_demo_cohort_lists_disjoint_patients() -> None:
    cohort = phantom_cohort(patients=20, labelled=4, validation=3, test=2)
    by_split = {
        split: [c for c in cohort.cases if c.split == split] for split in ("train", "validation", "test")
    }
    assert [len(cases) for cases in by_split.values()] == [20, 3, 2]
    assert len({case.patient for case in cohort.cases}) == 25
    labelled = [case for case in by_split["train"] if case.label is not None]
    assert [case.labelled_rank for case in labelled] == [0, 1, 2, 3]
    assert all(case.label == case.image for case in labelled + by_split["validation"] + by_split["test"])
    assert by_split["test"][0].image == f"phantom:ct:{TEST_SEEDS}"
    assert [label.name for label in cohort.labels] == ["liver"]
    assert (cohort.intensity.low, cohort.intensity.high, cohort.intensity.unit) == (-160, 240, "HU")


def test_more_labels_than_patients_are_refused() -> None:
    with pytest.raises(InputError, match="at most 4"):
        phantom_cohort(patients=4, labelled=5)


def test_reference_reads_the_case_it_names() -> None:
    np.testing.assert_array_equal(read_phantom("phantom:ct:7").image.array, case_of(7, "ct").image.array)


@pytest.mark.parametrize(
    "reference", ["phantom:ct", "phantom:ct:-1", "phantom:ct:x", "ct:1", "phantom:pet:1", ""]
)
def test_malformed_reference_is_reported(reference: str) -> None:
    with pytest.raises(InputError):
        read_phantom(reference)
