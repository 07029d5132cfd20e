"""Slices from files to batches, and the random order that training sees them in."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from sgan_core.cohort import Case, Cohort, Intensity, Label
from sgan_core.errors import InputError
from sgan_core.phantom import phantom_cohort
from sgan_core.training import data
from sgan_core.training.data import UNLABELLED, Order, SliceStore, open_store, read_case, rng

HU = Intensity(-160.0, 240.0, "HU")
LIVER = Label(1, "liver", (221, 130, 101), stored_values=(200,))
SIDE = 40


def _write_case(
    folder: Path, name: str, *, label: np.ndarray | None = None, empty: bool = False, rank: int | None = None
) -> Case:
    """A grey picture whose left half is 102 (0 HU) and right half 255, with a black corner."""
    pixels = np.full((SIDE, SIDE), 102, np.uint8)
    pixels[:, SIDE // 2 :] = 255
    pixels[:4, :4] = 0
    Image.fromarray(pixels).save(folder / f"{name}.png")
    if label is not None:
        Image.fromarray(label.astype(np.uint8)).save(folder / f"{name}-label.png")
    return Case(
        id=name,
        patient=name.split("_")[0],
        image=str(folder / f"{name}.png"),
        label=None if label is None else str(folder / f"{name}-label.png"),
        empty=empty,
        labelled_rank=rank,
    )


def _organ(value: int = 200, *, side: int = SIDE) -> np.ndarray:
    label = np.zeros((side, side), np.uint8)
    label[:, side // 2 :] = value
    return label


def _cohort(*cases: Case, intensity: Intensity = HU) -> Cohort:
    return Cohort("pictures", "ct", intensity, (LIVER,), cases)


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    """One labelled patient with an organ slice and an empty one, and an unlabelled patient."""
    return _cohort(
        _write_case(tmp_path, "a_0", label=_organ(), rank=0),
        _write_case(tmp_path, "a_1", empty=True, rank=0),
        _write_case(tmp_path, "b_0"),
    )


def _open(cohort: Cohort, tmp_path: Path, **settings) -> SliceStore:
    return open_store(cohort, tmp_path / "cache", size=32, channels=1, **settings)


# --- slices of a cohort


def test_store_holds_images_labels_and_their_cases(cohort, tmp_path):
    store = _open(cohort, tmp_path)
    assert store.images.shape == (3, 1, 32, 32)
    assert store.images.dtype == np.float16
    assert store.case.tolist() == [0, 1, 2]
    assert set(np.unique(store.labels[0])) == {0, 1}  # stored 200 is class 1
    assert (store.labels[0][:, 18:] == 1).all()
    assert (store.labels[1] == 0).all()  # known to be empty
    assert (store.labels[2] == UNLABELLED).all()
    assert store.patients(np.array([2, 0])) == ["b", "a"]


def test_eight_bit_pictures_are_spread_over_the_hu_range(cohort, tmp_path):
    """Value 0 shows -160 HU (-1), 102 shows 0 HU (-0.2), 255 shows 240 HU (1)."""
    image = _open(cohort, tmp_path).image_batch(np.array([0]))[0, 0]
    assert image.dtype == torch.float32
    torch.testing.assert_close(image[16, 4], torch.tensor(-0.2), atol=2e-3, rtol=0.0)
    torch.testing.assert_close(image[16, 28], torch.tensor(1.0), atol=2e-3, rtol=0.0)
    torch.testing.assert_close(image[0, 0], torch.tensor(-1.0), atol=2e-3, rtol=0.0)


def test_three_channels_repeat_a_grey_picture(cohort, tmp_path):
    store = open_store(cohort, tmp_path / "cache", size=32, channels=3)
    assert store.images.shape == (3, 3, 32, 32)
    assert np.array_equal(store.images[:, 0], store.images[:, 2])


def test_label_batch_has_integers_for_the_losses(cohort, tmp_path):
    labels = _open(cohort, tmp_path).label_batch(np.array([0, 1]))
    assert labels.dtype == torch.int64
    assert labels.shape == (2, 32, 32)


def test_phantom_volumes_become_many_slices_of_one_case(tmp_path):
    cohort = phantom_cohort(patients=2, labelled=1, validation=0)
    store = open_store(cohort, tmp_path, size=32, channels=1)
    assert set(store.case) == {0, 1}
    labelled = store.labelled(1)
    assert set(store.case[labelled]) == {0}
    assert 0.05 < store.labels[labelled].any(axis=(1, 2)).mean() <= 1.0
    assert set(np.unique(store.labels[labelled])) == {0, 1}  # the liver only, of all organs
    assert (store.labels[store.case == 1] == UNLABELLED).all()


def test_volumes_in_hu_are_not_taken_for_eight_bit_pictures(tmp_path):
    voxels = np.full((8, 8, 2), 40, np.int16)
    voxels[:4] = -160
    nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 2.0, 5.0, 1.0])), tmp_path / "scan.nii.gz")
    case = Case("scan", "p", str(tmp_path / "scan.nii.gz"))
    store = _open(_cohort(case), tmp_path)
    assert sorted({round(float(value), 2) for value in np.unique(store.images)})[0] == -1.0
    assert float(store.images.max()) == pytest.approx(0.0, abs=1e-3)  # 40 HU is the middle of -160 .. 240


# --- keeping the slices


def test_second_opening_reads_no_case(cohort, tmp_path, monkeypatch):
    first = _open(cohort, tmp_path)
    monkeypatch.setattr(data, "read_case", lambda *_: pytest.fail("read again"))
    second = _open(cohort, tmp_path)
    assert np.array_equal(first.images, second.images)
    assert np.array_equal(first.labels, second.labels)


def test_another_intensity_rule_gives_other_slices(cohort, tmp_path):
    first = _open(cohort, tmp_path)
    second = _open(cohort, tmp_path, intensity=Intensity(-160.0, 640.0, "HU"))
    assert float(first.images[0].max()) == 1.0
    assert float(second.images[0].max()) == pytest.approx(0.0, abs=2e-3)


def test_a_corrected_label_is_not_overlooked(cohort, tmp_path):
    _open(cohort, tmp_path)
    path = Path(cohort.cases[0].label)
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(path)
    os.utime(path, ns=(path.stat().st_mtime_ns + 10, path.stat().st_mtime_ns + 10))
    assert not _open(cohort, tmp_path).labels[0].any()


def test_progress_counts_cases(cohort, tmp_path):
    seen = []
    _open(cohort, tmp_path, on_progress=lambda done, total, _: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


# --- bad input


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (_organ(side=SIDE // 2), "differ in shape"),
        (np.where(_organ() > 0, 77, 200), "77"),
    ],
    ids=["other shape", "unknown value"],
)
def test_a_wrong_label_is_refused_and_leaves_nothing_behind(tmp_path, label, words):
    case = _write_case(tmp_path, "a_0", label=label, rank=0)
    with pytest.raises(InputError, match=words) as caught:
        read_case(case, _cohort(case))
    assert "a_0-label.png" in str(caught.value)
    good = _write_case(tmp_path, "b_0")
    with pytest.raises(InputError):
        _open(_cohort(good, case), tmp_path)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_missing_image_is_named(tmp_path):
    case = Case("a", "a", str(tmp_path / "gone.png"))
    with pytest.raises(InputError, match=r"gone\.png"):
        _open(_cohort(case), tmp_path)


def test_ignored_values_are_background(tmp_path):
    case = _write_case(tmp_path, "a_0", label=np.where(_organ() > 0, 63, 200), rank=0)
    cohort = Cohort("pictures", "ct", HU, (LIVER,), (case,), ignored_values=(63,))
    labels = read_case(case, cohort)[1]
    assert (labels[:, SIDE // 2 :] == 0).all()
    assert (labels[:, : SIDE // 2] == 1).all()


# --- which slices train


def test_labelled_pool_keeps_the_empty_slices(disc_store):
    """Without them D_m learns that every image has an organ."""
    store = disc_store(patients=6, slices=20, labelled=4, empty=0.6)
    for count in (1, 2, 4):
        pool = store.labelled(count)
        assert pool.tolist() == np.flatnonzero(store.case < count).tolist()  # all slices, each once
        share_empty = 1.0 - store.labels[pool].any(axis=(1, 2)).mean()
        assert 0.3 < share_empty < 0.9


def test_labelled_pools_are_nested_and_bounded(disc_store):
    store = disc_store(labelled=2)
    assert set(store.labelled(1)) < set(store.labelled(2))
    with pytest.raises(InputError, match="3 labelled patients"):
        store.labelled(3)


def test_slices_of_other_splits_stay_out(tmp_path):
    validation = Case("v", "v", _write_case(tmp_path, "v_0").image, empty=True, split="validation")
    train = _write_case(tmp_path, "a_0", label=_organ(), rank=0)
    unlabelled = _write_case(tmp_path, "b_0")
    store = _open(_cohort(validation, train, unlabelled), tmp_path)
    assert store.slices_of(split="train").tolist() == [1, 2]
    assert store.slices_of(split="train", with_label=True).tolist() == [1]
    assert store.slices_of(split="validation").tolist() == [0]
    assert store.slices_of(split="train", patients={"b"}).tolist() == [2]
    assert store.labelled(1).tolist() == [1]


# --- random numbers and order


def test_random_numbers_are_a_function_of_seed_step_and_purpose():
    def draw(*key) -> list[float]:
        return torch.rand(4, generator=rng(*key)).tolist()

    assert draw(1, 2, "d") == draw(1, 2, "d")
    keys = [(1, 2, "d"), (2, 2, "d"), (1, 3, "d"), (1, 2, "g"), (1, 2, "d/noise"), (12, 2, "d"), (1, 22, "d")]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)


def test_random_numbers_are_the_same_on_every_machine():
    """The first 7 bytes of `printf 0/0/d | sha256sum`, whatever Python's own hash seed is."""
    assert rng(0, 0, "d").initial_seed() == int.from_bytes(bytes.fromhex("1661d3bac3e106"), "little")


@pytest.mark.parametrize("batch", [1, 3, 4, 7, 25])
def test_every_pass_of_the_order_is_a_permutation(batch):
    positions = np.arange(100, 110)
    order = Order(positions, seed=5)
    drawn = np.concatenate([order.batch(start, batch) for start in range(0, 25 * batch, batch)])
    passes = drawn[: len(drawn) // 10 * 10].reshape(-1, 10)
    assert all(sorted(one) == positions.tolist() for one in passes)
    assert len({tuple(one) for one in passes}) == len(passes)


def test_the_order_continues_from_any_point():
    positions = np.arange(10)
    order = Order(positions, seed=5)
    drawn = np.concatenate([order.batch(start, 4) for start in range(0, 40, 4)])
    assert Order(positions, seed=5).batch(22, 9).tolist() == drawn[22:31].tolist()
    assert Order(positions, seed=6).batch(0, 10).tolist() != drawn[:10].tolist()


def test_nothing_to_train_on_is_an_input_error():
    with pytest.raises(InputError, match="no slices"):
        Order(np.array([], np.int64), seed=0)
