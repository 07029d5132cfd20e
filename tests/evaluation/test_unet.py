"""The reference U-Net learns, repeats itself, and is chosen on validation patients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sgan_core.cohort import Case, Cohort, Intensity, Label
from sgan_core.errors import InputError
from sgan_core.evaluation.baselines.unet import UnetConfig, train_unet
from sgan_core.networks.segmenter import predict
from sgan_core.training.data import SliceStore
from sgan_core.training.evaluate import mean_dice

SIZE = 32


def discs(*, train: int = 4, validation: int = 2, per_patient: int = 6, channels: int = 1) -> SliceStore:
    """Bright discs on a darker noisy ground; the last slice of every patient is empty."""
    rng = np.random.default_rng(0)
    splits = ["train"] * train + ["validation"] * validation
    cases = tuple(
        Case(f"c{n}", f"p{n}", f"c{n}.nii.gz", f"c{n}_seg.nii.gz", split=split, labelled_rank=n)
        for n, split in enumerate(splits)
    )
    label = Label(1, "disc", (255, 0, 0))
    cohort = Cohort("discs", "ct", Intensity(low=-1, high=1), (label,), cases)
    count = len(cases) * per_patient
    rows, columns = np.mgrid[:SIZE, :SIZE]
    centre = rng.uniform(10, 22, (count, 2, 1, 1))
    radius = rng.uniform(4, 8, (count, 1, 1))
    labels = np.hypot(rows - centre[:, 0], columns - centre[:, 1]) < radius
    labels[per_patient - 1 :: per_patient] = False
    images = np.where(labels, 0.4, -0.4) + rng.normal(0, 0.1, labels.shape)
    images = np.repeat(images[:, None], channels, axis=1).clip(-1, 1)
    position = np.repeat(np.arange(len(cases)), per_patient)
    return SliceStore(images.astype(np.float16), labels.astype(np.uint8), position, cohort)


def validation_dice(net: torch.nn.Module, store: SliceStore) -> float:
    index = store.slices_of(split="validation")
    predicted = predict(net, store.images[index].astype(np.float32)).argmax(axis=1)
    return mean_dice(predicted.astype(np.uint8), store.labels[index], store.patients(index), 2)


@pytest.mark.parametrize(("appearance", "dice"), [(False, 0.95), (True, 0.8)])
def test_learns_discs_in_a_few_dozen_steps(appearance: bool, dice: float) -> None:
    store = discs()
    config = UnetConfig(steps=80, batch=8, lr=0.01, appearance=appearance)
    assert validation_dice(train_unet(store, config, labelled=4, num_classes=2), store) > dice


def test_changed_appearance_teaches_to_read_inverted_contrast() -> None:
    store = discs()
    inverted = SliceStore(-store.images, store.labels, store.case, store.cohort)
    plain, shifted = (
        train_unet(store, UnetConfig(80, 8, 0.01, appearance=appearance), labelled=4, num_classes=2)
        for appearance in (False, True)
    )
    assert validation_dice(shifted, inverted) > validation_dice(plain, inverted) + 0.2


def test_same_seed_gives_the_same_network_and_another_seed_another() -> None:
    store = discs()

    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(np.random.default_rng().integers(1000))  # global randomness must not matter
        config = UnetConfig(steps=6, batch=4, appearance=True, seed=seed)
        net = train_unet(store, config, labelled=2, num_classes=2)
        return torch.nn.utils.parameters_to_vector(net.parameters())

    first = weights(0)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


def test_global_randomness_is_left_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    train_unet(discs(), UnetConfig(steps=1, batch=4, appearance=True), labelled=1, num_classes=2)
    assert torch.equal(torch.rand(3), wanted)


def test_the_best_validated_network_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.2, 0.9, 0.3, 0.1])
    seen = []

    def remember(predicted: np.ndarray, *_: object) -> float:
        seen.append(predicted.copy())
        return next(scores)

    monkeypatch.setattr("sgan_core.training.evaluate.mean_dice", remember)
    monkeypatch.setattr("sgan_core.evaluation.baselines.unet._EVALUATIONS", 4)
    store = discs()
    net = train_unet(store, UnetConfig(steps=8, batch=4, lr=0.02), labelled=4, num_classes=2)
    index = store.slices_of(split="validation")
    predicted = predict(net, store.images[index].astype(np.float32)).argmax(axis=1)
    np.testing.assert_array_equal(predicted, seen[1])
    assert not np.array_equal(seen[1], seen[3])


def test_only_labelled_patients_asked_for_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    store = discs()
    seen: set[int] = set()
    read = SliceStore.label_batch

    def spy(self: SliceStore, index: np.ndarray) -> torch.Tensor:
        seen.update(index.tolist())
        return read(self, index)

    monkeypatch.setattr(SliceStore, "label_batch", spy)
    train_unet(store, UnetConfig(steps=8, batch=8), labelled=2, num_classes=2)
    judged = store.slices_of(split="validation", with_label=True)
    assert seen == {*store.labelled(2).tolist(), *judged.tolist()}
    assert set(judged.tolist()).isdisjoint(store.labelled(2).tolist())


def test_progress_is_reported_and_stopping_keeps_a_network() -> None:
    calls: list[tuple[int, int, str]] = []
    net = train_unet(
        discs(),
        UnetConfig(steps=50, batch=4),
        labelled=2,
        num_classes=2,
        on_progress=lambda *call: calls.append(call),
        should_stop=lambda: len(calls) >= 7,
    )
    assert [done for done, _, _ in calls] == list(range(1, 8))
    assert "not yet" in calls[0][2]
    assert "DICE 0." in calls[-1][2]
    assert not net.training


def test_colour_images_and_no_validation_patients() -> None:
    store = discs(validation=0, channels=3)
    net = train_unet(store, UnetConfig(steps=2, batch=4, appearance=True), labelled=4, num_classes=2)
    probs = predict(net, store.images[:5].astype(np.float32))
    assert probs.shape == (5, 2, SIZE, SIZE)
    assert probs.dtype == np.float32
    np.testing.assert_allclose(probs.sum(axis=1), 1.0, atol=1e-5)


def test_nothing_labelled_is_refused() -> None:
    with pytest.raises(InputError):
        train_unet(discs(), UnetConfig(steps=1), labelled=0, num_classes=2)
    with pytest.raises(InputError, match="0 steps"):
        UnetConfig(steps=0)
