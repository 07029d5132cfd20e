"""A run's own decisions: which generator is kept, and who judges."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sgan_core.training import evaluate
from sgan_core.training import run as run_module
from sgan_core.training.encoder import fingerprint
from sgan_core.training.loop import load_checkpoint
from sgan_core.training.run import LABEL_TIE, Run, _BestGenerator, _label_judge, train


def _offer(file: Path, agreement: float, frechet: float, number: int, judge: str = "one") -> None:
    """Each offer by a process of its own, as after --resume; the generator's one weight is its number."""
    generator = nn.Linear(1, 1, bias=False)
    nn.init.constant_(generator.weight, float(number))
    _BestGenerator(file, judge).offer(
        generator, 16 * number, {"label_agreement": agreement, "frechet": frechet}
    )


def _kept(file: Path) -> int:
    state = load_checkpoint(file)
    assert float(state["generator"]["weight"]) == state["images"] / 16
    return int(state["generator"]["weight"])


def test_ties_do_not_walk_away_from_the_best_labels(tmp_path):
    """Thirty generators, each a tie with the one before and more real: their labels end at 0.33."""
    file = tmp_path / "gan_best.pt"
    agreements = [0.90 - 0.0196 * number for number in range(30)]
    for number, agreement in enumerate(agreements):
        _offer(file, agreement, 100.0 - number, number)
    assert agreements[-1] == pytest.approx(0.33, abs=0.01)
    assert _kept(file) == 1  # the only tie with the highest


OFFERS = {
    "more real wins a tie": ([(0.80, 50.0), (0.79, 40.0)], 1),
    "less real does not": ([(0.80, 50.0), (0.81, 60.0)], 0),
    "better labels win": ([(0.80, 50.0), (0.83, 90.0)], 1),
    "worse labels lose": ([(0.80, 50.0), (0.77, 10.0)], 0),
    # The second is not kept, but its labels are the highest; against them the third is no tie.
    "a highest that is not kept counts": ([(0.80, 50.0), (0.815, 60.0), (0.785, 40.0)], 0),
    "who falls out of the tie is replaced": ([(0.80, 50.0), (0.815, 60.0), (0.825, 70.0)], 2),
    "without labels realism decides": ([(0.0, 50.0), (0.0, 40.0), (0.0, 45.0)], 1),
}


@pytest.mark.parametrize(("offers", "kept"), OFFERS.values(), ids=OFFERS.keys())
def test_which_generator_is_kept(tmp_path, offers, kept):
    for number, (agreement, frechet) in enumerate(offers):
        _offer(tmp_path / "gan_best.pt", agreement, frechet, number)
    assert _kept(tmp_path / "gan_best.pt") == kept


def test_a_run_of_an_earlier_version_goes_on(tmp_path):
    """Its file has no highest agreement: that of the generator in it counts."""
    file = tmp_path / "gan_best.pt"
    _offer(file, 0.8, 50.0, 0)
    state = load_checkpoint(file)
    del state["highest"], state["judge"]
    torch.save(state, file)
    _offer(file, 0.8 - 1.5 * LABEL_TIE, 10.0, 1)
    assert _kept(file) == 0


def test_figures_of_another_judge_are_forgotten(tmp_path):
    """A judge that was taught further sees other agreements; what the young one said does not compare."""
    file = tmp_path / "gan_best.pt"
    _offer(file, 0.9, 10.0, 0, judge="young")
    _offer(file, 0.5, 50.0, 1, judge="taught")
    assert _kept(file) == 1
    _offer(file, 0.4, 10.0, 2, judge="taught")
    assert _kept(file) == 1


def test_a_judge_cut_short_is_taught_further(toy_config, disc_store, tmp_path, monkeypatch):
    """A first call with hardly any time must not leave its judge to the whole run."""
    store, config = disc_store(), toy_config(student_train={"batch": 4, "max_images": 80, "channels": [4, 8]})
    where = Run(tmp_path, torch.device("cpu"))
    clock = iter(float(second) for second in range(10**6))  # a step takes a second or two
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    young = fingerprint(_label_judge(where, config, store, 50.0))
    taught = load_checkpoint(tmp_path / "checkpoints" / "judge.pt")["step"]
    assert 0 < taught < 20
    grown = _label_judge(where, config, store, None)
    assert load_checkpoint(tmp_path / "checkpoints" / "judge.pt")["step"] == 20
    assert fingerprint(grown) != young
    alone = _label_judge(Run(tmp_path / "other", torch.device("cpu")), config, store, None)
    assert sum(float(p.abs().sum()) for p in alone.parameters()) == pytest.approx(
        sum(float(p.abs().sum()) for p in grown.parameters()), rel=0.05
    )
    assert fingerprint(_label_judge(where, config, store, None)) == fingerprint(
        grown
    )  # once taught, it stays


def test_time_begins_with_the_slices_at_hand(toy_config, disc_store, tmp_path, monkeypatch):
    """Preparing them takes an hour here; a minute of training is a minute all the same."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    store, deadlines = disc_store(), []

    def prepared(*_: object, **__: object) -> object:
        now[0] += 3600.0
        return store

    monkeypatch.setattr(run_module, "slices_of_model", prepared)
    monkeypatch.setattr(run_module, "_train_student", lambda *given: deadlines.append(given[-1] - now[0]))
    train(
        Run(tmp_path, torch.device("cpu"), max_minutes=1.0), toy_config(), store.cohort, stages=("student",)
    )
    assert deadlines == [60.0]


@pytest.mark.parametrize(
    ("empty", "modality", "stage", "told"),
    [
        (0.0, "ct", "student", True),
        (1 / 60, "mr", "student", True),
        (0.25, "ct", "student", False),
        (0.0, "xray", "student", False),
        (0.0, "ct", "gan", False),
    ],
)
def test_scans_without_a_slice_beyond_the_organ_are_told(
    toy_config, disc_store, tmp_path, monkeypatch, caplog, empty, modality, stage, told
):
    """Every X-ray of a chest has lungs; a CT goes on where the liver ends."""
    store = disc_store(empty=0.0, slices=30)
    store.labels[: round(empty * 60)] = 0  # of 60 labelled slices
    monkeypatch.setattr(run_module, "slices_of_model", lambda *_, **__: store)
    for name in ("_train_student", "_train_gan"):
        monkeypatch.setattr(run_module, name, lambda *_: None)
    config = replace(toy_config(), modality=modality)
    train(Run(tmp_path, torch.device("cpu")), config, store.cohort, stages=(stage,))
    assert ("labelled slices hold no label" in caplog.text) == told


@pytest.mark.parametrize(
    ("labelled", "split", "shown", "known"),
    [
        (2, "train", {"p2", "p3"}, 0),  # what is learned says little of what was not
        (4, "train", {"p0", "p1", "p2", "p3"}, 1),
        (4, "validation", {"p3"}, 1),
    ],
)
def test_the_students_picture_shows_what_it_did_not_learn(
    toy_config, disc_store, tmp_path, monkeypatch, labelled, split, shown, known
):
    store = disc_store(labelled=labelled, empty=0.0)
    *others, last = store.cohort.cases
    last = replace(last, split=split, labelled_rank=None if split == "validation" else last.labelled_rank)
    store = replace(store, cohort=replace(store.cohort, cases=(*others, last)))
    rows = []
    monkeypatch.setattr(evaluate, "outline", lambda image, labels, colours, scale: (image, labels))
    monkeypatch.setattr(evaluate, "write_sheet", lambda path, found: rows.extend(found))
    segmenter = nn.Conv2d(1, 2, 1)
    evaluate.write_segmentations(tmp_path / "sheet.png", toy_config(), store, segmenter)
    above, below = rows
    patients = set()
    for (image, truth), (same, answer) in zip(above, below, strict=True):
        np.testing.assert_array_equal(image, same)
        (position,) = np.flatnonzero((store.images.astype(np.float32) == image).all(axis=(1, 2, 3)))
        patients |= set(store.patients(np.array([position])))
        assert truth.max() == known
        assert answer.max() <= 1
    assert patients == shown
