"""Slices from files to batches, and the random order that training sees them in."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from sgan_core.cohort import Case, Cohort, Intensity, Label
from sgan_core.errors import InputError
from sgan_core.imaging.readers import read_image
from sgan_core.phantom import phantom_cohort
from sgan_core.terms import Source
from sgan_core.training import data, parallel, records
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


def test_a_squashed_cohort_has_other_slices_without_padding(tmp_path):
    pixels = np.full((SIDE, 2 * SIDE), 255, np.uint8)
    pixels[0, 0] = 0
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    cohort = _cohort(Case("wide", "p", str(tmp_path / "wide.png"), empty=True))
    padded = _open(cohort, tmp_path)
    squashed = _open(replace(cohort, squash=True), tmp_path)
    assert (padded.images[0, 0, 0] == -1).all()
    assert (squashed.images[0, 0, 1:] == 1).all()


def test_corrected_images_are_other_slices(tmp_path):
    case = _write_case(tmp_path, "a_0", empty=True, rank=0)
    plain = replace(_cohort(case), modality="xray", intensity=Intensity(percentiles=(0.5, 99.5)))
    equalised = replace(plain, intensity=replace(plain.intensity, equalise=True))
    assert not np.array_equal(_open(plain, tmp_path).images, _open(equalised, tmp_path).images)


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
def test_a_wrong_label_is_refused(tmp_path, label, words):
    case = _write_case(tmp_path, "a_0", label=label, rank=0)
    with pytest.raises(InputError, match=words) as caught:
        read_case(case, _cohort(case))
    assert "a_0-label.png" in str(caught.value)
    with pytest.raises(InputError, match=words):
        _open(_cohort(case, _write_case(tmp_path, "b_0")), tmp_path)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["lock"]  # no slices, nothing half done


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


def test_errors_without_a_file_get_one(tmp_path, monkeypatch):
    def refuse(*_, **__) -> None:
        raise InputError("every value is 0")

    monkeypatch.setattr(data, "to_model", refuse)
    case = _write_case(tmp_path, "a_0")
    with pytest.raises(InputError) as caught:
        _open(_cohort(case), tmp_path)
    assert str(caught.value) == f"{case.image}: every value is 0"


def test_a_disk_that_is_too_small_is_noticed_first(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 9000))
    monkeypatch.setattr(data, "read_case", lambda *_: pytest.fail("began"))
    with pytest.raises(InputError, match=r"need about 9.22e-06 GB more, 9e-06 GB are free") as caught:
        _open(cohort, tmp_path)  # 3 slices of 32 x 32 pixels of 2 bytes, and a byte for the label
    assert str(tmp_path / "cache") in str(caught.value)
    assert not any("unfinished" in path.name for path in (tmp_path / "cache").iterdir())


def test_a_disk_that_is_too_small_for_volumes_is_noticed_after_the_first(tmp_path, monkeypatch):
    free = shutil._ntuple_diskusage(10**9, 10**9, 5 * 3 * 32**2)  # five slices
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    cohort = phantom_cohort(patients=2, labelled=1, validation=0)
    seen = []
    with pytest.raises(InputError, match="GB are free"):
        _open(cohort, tmp_path, on_progress=lambda done, *_: seen.append(done))
    assert seen == []  # refused before the second volume was read


# --- going on after an interruption


class Interrupted(NamedTuple):
    """A preparation that stopped after four of six cases, and the bytes of one that did not."""

    cohort: Cohort
    folder: Path
    slices: bytes


class Stop(Exception):
    pass


def _stop_after(number: int) -> Callable[[int, int, str], None]:
    def on_progress(done: int, total: int, message: str) -> None:
        if done == number:
            raise Stop

    return on_progress


def _bytes(store: SliceStore) -> bytes:
    """As the file holds them: image and label of a slice, then of the next."""
    slices = zip(store.images, store.labels, strict=True)
    return b"".join(image.tobytes() + label.tobytes() for image, label in slices)


def _contents(folder: Path) -> bytes:
    (items,) = folder.glob("*/items")
    return items.read_bytes()


@pytest.fixture
def six(tmp_path: Path) -> Cohort:
    """Four different pictures, two of them labelled, and two volumes of three slices."""
    cases = []
    for number in range(4):
        label = _organ() if number < 2 else None
        cases.append(_write_case(tmp_path, f"{number}_0", label=label, rank=number if number < 2 else None))
        pixels = np.full((SIDE, SIDE), 50 * number, np.uint8)
        pixels[number] = 255
        Image.fromarray(pixels).save(cases[-1].image)
    for number in range(2):
        voxels = np.random.default_rng(number).integers(-200, 300, (8, 9, 3), dtype=np.int16)
        nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 2.0, 5.0, 1.0])), tmp_path / f"scan{number}.nii.gz")
        cases.append(Case(f"v{number}", f"v{number}", str(tmp_path / f"scan{number}.nii.gz")))
    return _cohort(*cases)


@pytest.fixture
def interrupted(six: Cohort, tmp_path: Path) -> Interrupted:
    whole = open_store(six, tmp_path / "whole", size=32, channels=1)
    with pytest.raises(Stop):
        _open(six, tmp_path, on_progress=_stop_after(4))
    return Interrupted(six, tmp_path / "cache", _bytes(whole))


def _reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the cases that are read from now on."""
    ids: list[str] = []

    def read(case: Case, cohort: Cohort):
        ids.append(case.id)
        return read_case(case, cohort)

    monkeypatch.setattr(data, "read_case", read)
    return ids


def test_finished_cases_are_not_read_again(interrupted, tmp_path, monkeypatch):
    reads, seen = _reads(monkeypatch), []
    store = _open(interrupted.cohort, tmp_path, on_progress=lambda done, *_: seen.append(done))
    assert reads == [case.id for case in interrupted.cohort.cases[4:]]
    assert seen == [4, 5, 6]
    assert _bytes(store) == _contents(interrupted.folder) == interrupted.slices
    assert not list(interrupted.folder.glob("unfinished*"))


def test_stopping_again_and_again_loses_nothing(six, interrupted, tmp_path):
    shutil.rmtree(interrupted.folder)
    for number in (1, 2, 3, 5):
        with pytest.raises(Stop):
            _open(six, tmp_path, on_progress=_stop_after(number))
    assert _bytes(_open(six, tmp_path)) == interrupted.slices


def test_damaged_slices_are_made_again(interrupted, tmp_path, monkeypatch):
    (items,) = interrupted.folder.glob("unfinished*/items")
    with items.open("r+b") as file:
        file.seek(2 * 3 * 32**2 + 100)  # in the third case
        file.write(b"\0\0")
    reads = _reads(monkeypatch)
    store = _open(interrupted.cohort, tmp_path)
    assert reads == [case.id for case in interrupted.cohort.cases[2:]]
    assert _bytes(store) == interrupted.slices


def test_slices_of_a_file_that_changed_are_made_again(interrupted, tmp_path, monkeypatch):
    path = Path(interrupted.cohort.cases[1].image)
    os.utime(path, ns=(1, 1))
    reads = _reads(monkeypatch)
    _open(interrupted.cohort, tmp_path)
    assert reads == [case.id for case in interrupted.cohort.cases[1:]]


def test_leaving_a_bad_case_out_keeps_those_before_it(tmp_path, monkeypatch):
    good = [_write_case(tmp_path, f"{number}_0") for number in range(3)]
    bad = _write_case(tmp_path, "bad_0")
    Path(bad.image).write_bytes(b"no picture")
    with pytest.raises(InputError, match="bad_0.png"):
        _open(_cohort(*good[:2], bad, good[2]), tmp_path)
    reads = _reads(monkeypatch)
    assert len(_open(_cohort(*good), tmp_path).images) == 3
    assert reads == ["2_0"]


def test_another_size_does_not_take_over(interrupted, tmp_path, monkeypatch):
    reads = _reads(monkeypatch)
    open_store(interrupted.cohort, interrupted.folder, size=64, channels=1)
    assert len(reads) == 6


def test_each_size_and_number_of_channels_has_slices_of_its_own(cohort, tmp_path):
    for size, channels in ((32, 1), (64, 1), (32, 3), (32, 1)):
        store = open_store(cohort, tmp_path / "cache", size=size, channels=channels)
        assert store.images.shape == (3, channels, size, size)


# --- what slices depend on


def test_splits_and_ranks_change_no_slice(cohort, tmp_path, monkeypatch):
    _open(cohort, tmp_path)
    reads = _reads(monkeypatch)
    changed = [
        replace(case, id=f"x{n}", patient=f"y{n}", split="test") for n, case in enumerate(cohort.cases)
    ]
    assert _open(replace(cohort, cases=tuple(changed)), tmp_path).slices_of(split="test").tolist() == [
        0,
        1,
        2,
    ]
    assert reads == []


def test_where_images_come_from_changes_no_slice_and_is_known_to_training(cohort, tmp_path, monkeypatch):
    _open(cohort, tmp_path)
    reads = _reads(monkeypatch)
    source = Source("lits", "non-commercial")
    assert _open(replace(cohort, sources=(source,)), tmp_path).cohort.sources == (source,)
    assert reads == []


@pytest.mark.parametrize(
    "change",
    [{"squash": True}, {"labels": (replace(LIVER, stored_values=(100,)),), "ignored_values": (200,)}],
)
def test_what_changes_slices_prepares_them_again(cohort, tmp_path, monkeypatch, change):
    _open(cohort, tmp_path)
    reads = _reads(monkeypatch)
    _open(replace(cohort, **change), tmp_path)
    assert len(reads) == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda series: (series / "2.dcm").write_bytes(b"12"),
        lambda series: (series / "1.dcm").unlink(),
        lambda series: (series / "4.dcm").write_bytes(b"1"),
        lambda series: os.utime(series / "3.dcm", ns=(7, 7)),
        lambda series: (series / "deeper").mkdir() or (series / "deeper" / "5.dcm").write_bytes(b"1"),
    ],
    ids=["size", "removed", "added", "time", "below"],
)
def test_a_folder_of_files_is_known_by_all_of_them(tmp_path, change):
    series = tmp_path / "series"
    series.mkdir()
    for number in (1, 2, 3):
        (series / f"{number}.dcm").write_bytes(b"1")
        os.utime(series / f"{number}.dcm", ns=(5, 5))
    case = Case("a", "a", str(series), str(series))
    before = data._case_key(case)
    assert data._case_key(case) == before
    change(series)
    assert data._case_key(case) != before


def test_a_folder_as_image_is_prepared(cohort, tmp_path, monkeypatch):
    series = tmp_path / "series"
    series.mkdir()
    shutil.copy(cohort.cases[0].image, series / "slice.png")
    monkeypatch.setattr(data, "read_image", lambda path: read_image(next(Path(path).iterdir())))
    store = _open(_cohort(Case("a", "a", str(series))), tmp_path)
    assert len(store.images) == 1


# --- several processes


def test_other_processes_give_the_same_bytes_and_errors(six, tmp_path):
    """The pool is expensive to start, so one run shows it all: six good cases, and a seventh that is none."""
    bad = Case("bad", "bad", str(tmp_path / "bad.png"))
    Path(bad.image).write_bytes(b"no picture")
    alone = open_store(six, tmp_path / "alone", size=32, channels=1, processes=1)
    seen = []
    with pytest.raises(InputError) as caught:
        _open(
            replace(six, cases=(*six.cases, bad)),
            tmp_path,
            processes=2,
            on_progress=lambda done, *_: seen.append(done),
        )
    assert str(caught.value).startswith(bad.image)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.__cause__ is None  # the other process's traceback
    assert seen == [1, 2, 3, 4, 5, 6]
    assert _contents(tmp_path / "cache") == _bytes(alone)


def _pool(monkeypatch: pytest.MonkeyPatch, *, dies_after: int | None = None) -> list[int]:
    """Replace the processes; returns the number of items that they are given, call by call."""
    calls: list[int] = []

    def in_order(function, items, *, processes) -> Iterator:
        calls.append(len(items))
        for number, item in enumerate(items):
            if number == dies_after:
                raise BrokenProcessPool
            yield function(item)

    monkeypatch.setattr(data, "in_order", in_order)
    monkeypatch.setattr(data, "available_cores", lambda: 2)
    return calls


def test_a_short_preparation_starts_no_process(six, tmp_path, monkeypatch):
    calls = _pool(monkeypatch)
    _open(six, tmp_path)
    assert sum(calls) == 0


def test_a_long_preparation_does(six, interrupted, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_TRIAL_SECONDS", 0.0)
    monkeypatch.setattr(data, "_LONG_SECONDS", 0.0)
    calls = _pool(monkeypatch)
    store = open_store(six, tmp_path / "long", size=32, channels=1)
    assert calls == [5]  # the first case showed how long it takes
    assert _bytes(store) == interrupted.slices


def test_without_its_processes_the_preparation_goes_on(six, interrupted, tmp_path, monkeypatch, caplog):
    calls = _pool(monkeypatch, dies_after=2)
    with caplog.at_level(logging.WARNING):
        store = open_store(six, tmp_path / "broken", size=32, channels=1, processes=2)
    assert calls == [6]
    assert "going on with one" in caplog.text
    assert _bytes(store) == interrupted.slices


def test_a_second_run_waits_and_can_be_stopped(interrupted, tmp_path):
    told = []

    def on_progress(done: int, total: int, message: str) -> None:
        told.append((done, total))
        raise Stop

    with records.alone(interrupted.folder, lambda: None), pytest.raises(Stop):
        _open(interrupted.cohort, tmp_path, on_progress=on_progress)
    assert told == [(4, 6)]  # what the other one has done


def test_slices_made_while_waiting_are_taken(cohort, tmp_path, monkeypatch):
    """As the second process of torchrun does."""
    alone = records.alone

    def made_meanwhile(folder, on_wait):
        monkeypatch.setattr(records, "alone", alone)
        _open(cohort, tmp_path)
        monkeypatch.setattr(data, "read_case", lambda *_: pytest.fail("read again"))
        return alone(folder, on_wait)

    monkeypatch.setattr(records, "alone", made_meanwhile)
    assert len(_open(cohort, tmp_path).images) == 3


def test_a_damaged_store_is_an_input_error(cohort, tmp_path):
    _open(cohort, tmp_path)
    (items,) = (tmp_path / "cache").glob("*/items")
    os.truncate(items, 100)
    with pytest.raises(InputError, match="damaged"):
        _open(cohort, tmp_path)


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


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("slices", [64, 100, 7])
def test_processes_together_see_what_one_sees(monkeypatch, processes, slices):
    """Each takes its part of every joint batch: no image twice in a pass, whatever the number of slices."""
    positions, batch, steps = np.arange(slices) + 1000, 16, 30
    alone = [Order(positions, seed=5).batch(step * batch, batch) for step in range(steps)]
    monkeypatch.setattr(parallel, "world_size", lambda: processes)
    parts = []
    for rank in range(processes):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        order = Order(positions, seed=5)  # each process has its own
        parts.append([parallel.share(order.batch(step * batch, batch)) for step in range(steps)])
    together = [np.concatenate(of_step) for of_step in zip(*parts, strict=True)]
    assert np.array_equal(alone, together)
    drawn = np.concatenate(together)
    for start in range(0, len(drawn) - slices + 1, slices):
        assert sorted(drawn[start : start + slices]) == positions.tolist()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_resumed_run_goes_on_in_the_order(monkeypatch, processes):
    """Batches follow from the number of the step alone, also when it continues with fewer processes."""
    positions, batch = np.arange(50), 8
    order = Order(positions, seed=5)
    whole = np.concatenate([order.batch(step * batch, batch) for step in range(20)])
    monkeypatch.setattr(parallel, "world_size", lambda: processes)
    again = [Order(positions, seed=5) for _ in range(processes)]
    resumed = []
    for step in range(11, 20):
        for rank, order in enumerate(again):
            monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
            resumed.append(parallel.share(order.batch(step * batch, batch)))
    assert np.array_equal(np.concatenate(resumed), whole[11 * batch :])


def test_nothing_to_train_on_is_an_input_error():
    with pytest.raises(InputError, match="no slices"):
        Order(np.array([], np.int64), seed=0)
