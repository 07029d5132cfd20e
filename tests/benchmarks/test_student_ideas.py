"""Ideas beside how the student is taught: each changes what it says it changes, and can be trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sgan_core.cohort import Case, Cohort, Intensity, Label
from sgan_core.config import StudentTrainConfig
from sgan_core.training.data import SliceStore
from sgan_core.training.student import StudentTrainer

SIZE, PATIENTS, SLICES = 64, 3, 5
PLAIN = StudentTrainConfig(channels=(4, 8, 16, 32, 64), batch=4, max_images=64, growth={}, negative_share=0.0)


@pytest.fixture(scope="module")
def ideas(benchmark_script: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_script("student_ideas")


@pytest.fixture(scope="module")
def store() -> SliceStore:
    """Volumes of slices that come as pictures, every second number; a disc in all but the first slice of each."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    count = PATIENTS * SLICES
    labels = np.zeros((count, SIZE, SIZE), np.uint8)
    for number in range(count):
        if number % SLICES:
            labels[number] = (rows - 30) ** 2 + (columns - 20 - 4 * (number % SLICES)) ** 2 < 100
    images = np.where(labels > 0, 0.5, -0.2) + random.normal(0, 0.05, labels.shape)
    cases = tuple(
        Case(
            id=f"p{number // SLICES}_slice_{2 * (number % SLICES)}",
            patient=f"p{number // SLICES}",
            image=f"{number}.png",
            label=f"{number}_label.png",
            labelled_rank=number // SLICES,
        )
        for number in range(count)
    )
    cohort = Cohort("slices", "ct", Intensity(0.0, 255.0), (Label(1, "disc", (9, 9, 9)),), cases)
    return SliceStore(images[:, None].astype(np.float16), labels, np.arange(count), cohort)


def trainer(ideas: ModuleType, name: str, store: SliceStore, **config: Any) -> Any:
    settings = replace(PLAIN, **config)
    return ideas.IDEAS[name](settings, store, torch.device("cpu"), labelled=2, num_classes=2, seed=0)


def changed(ideas: ModuleType, name: str, store: SliceStore) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels before and after an idea."""
    student = trainer(ideas, name, store)
    index = np.array([1, 2, 3, 4])
    image = store.image_batch(index)
    label = torch.nn.functional.one_hot(store.label_batch(index), 2).permute(0, 3, 1, 2).float()
    return image, label, *student.before_looks(image, label, torch.Generator().manual_seed(3))


NAMES = (
    "organ curve", "field curve", "region curve", "randconv", "fourier", "low resolution", "elastic", "balanced",
    "mean teacher", "three slices", "full resolution", "two units",
    "dynunet, deep supervision", "plain unet",
)  # fmt: skip


def test_every_idea_is_tried(ideas: ModuleType) -> None:
    assert set(ideas.IDEAS) == {"", *NAMES}
    assert ideas.IDEAS[""] is ideas.Idea


@pytest.mark.parametrize("name", NAMES)
def test_an_idea_learns_and_answers(ideas: ModuleType, store: SliceStore, name: str) -> None:
    """Other steps than the student's, all of them finite; the network answers slices of one channel."""
    student, plain = trainer(ideas, name, store), trainer(ideas, "", store)
    losses = [student.step()["loss"] for _ in range(8)]
    assert np.isfinite(losses).all()
    assert losses != [plain.step()["loss"] for _ in range(8)]
    answer = student.segmenter(store.image_batch(np.arange(SLICES)))
    assert answer.shape == (SLICES, 2, SIZE, SIZE)


def test_without_an_idea_it_is_the_student(ideas: ModuleType, store: SliceStore) -> None:
    own = StudentTrainer(PLAIN, store, torch.device("cpu"), labelled=2, num_classes=2, seed=0)
    student = trainer(ideas, "", store)
    assert [student.step() for _ in range(3)] == [own.step() for _ in range(3)]


@pytest.mark.parametrize(
    "name", ["organ curve", "field curve", "region curve", "randconv", "fourier", "low resolution"]
)
def test_what_changes_brightness_leaves_the_labels(ideas: ModuleType, store: SliceStore, name: str) -> None:
    image, label, after, same = changed(ideas, name, store)
    torch.testing.assert_close(same, label)
    assert after.shape == image.shape
    assert after.abs().max() <= 1.0
    assert (after - image).abs().mean() > 0.005


def test_the_organs_curve_ends_near_its_border(ideas: ModuleType, store: SliceStore) -> None:
    image, label, after, _ = changed(ideas, "organ curve", store)
    near = torch.nn.functional.max_pool2d(label[:, 1:], 9, 1, 4) > 0
    torch.testing.assert_close(after[~near], image[~near])
    assert (after - image).abs()[label[:, 1:] > 0].mean() > 0.02


def test_elastic_moves_image_and_label_together(ideas: ModuleType, store: SliceStore) -> None:
    _, label, _, _ = changed(ideas, "elastic", store)
    student = trainer(ideas, "elastic", store)
    moved, same = student.before_looks(label[:, 1:] * 2.0 - 1.0, label, torch.Generator().manual_seed(3))
    torch.testing.assert_close((moved + 1.0) / 2.0, same[:, 1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(same.sum(dim=1), torch.ones_like(same[:, 0]))
    assert (same - label).abs().mean() > 0.005


def test_an_image_mixed_with_its_own_amplitudes_is_itself(
    ideas: ModuleType, store: SliceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = trainer(ideas, "fourier", store)
    monkeypatch.setattr(student.order, "positions", np.array([7]))
    image = store.image_batch(np.array([7, 7]))
    after, _ = student.before_looks(image, image, torch.Generator().manual_seed(0))
    torch.testing.assert_close(after, image, atol=1e-5, rtol=0)


def test_every_second_slice_has_an_organ(ideas: ModuleType, store: SliceStore) -> None:
    index = trainer(ideas, "balanced", store).order.batch(0, 8)
    assert [bool(store.labels[one].any()) for one in index] == [True] * 4 + [False] * 4


def test_neighbours_are_of_the_same_volume(ideas: ModuleType, store: SliceStore) -> None:
    above, below = ideas.neighbours(store)
    assert above[:6].tolist() == [1, 2, 3, 4, 4, 6]
    assert below[:6].tolist() == [0, 0, 1, 2, 3, 5]


def test_a_volume_is_answered_with_its_neighbours(ideas: ModuleType, store: SliceStore) -> None:
    """In training and in use the channels are the slice above, the slice, the slice below."""
    student = trainer(ideas, "three slices", store)
    seen: list[Tensor] = []
    volume = store.image_batch(np.arange(SLICES))
    ideas._Stack(lambda images: seen.append(images)).forward(volume)
    above, below = ideas.neighbours(store)
    torch.testing.assert_close(seen[0][1:4, 0], volume[above[1:4], 0])
    torch.testing.assert_close(seen[0][:, 1], volume[:, 0])
    torch.testing.assert_close(seen[0][1:4, 2], volume[below[1:4], 0])
    image, _ = student.pairs()
    index = student.order.batch(0, 4)
    for channels, position in zip(image, index, strict=True):
        around = store.image_batch(np.array([above[position], position, below[position]]))[:, 0]
        alone = around[1].expand(3, -1, -1)
        assert torch.equal(channels, around) or torch.equal(channels, alone)


def test_the_teachers_slices_are_those_without_labels(
    ideas: ModuleType, store: SliceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the third patient, from a quarter of the training on."""
    student, asked = trainer(ideas, "mean teacher", store), []
    own, batch, seen = student._unlabelled, SliceStore.image_batch, []
    monkeypatch.setattr(student, "_unlabelled", lambda: asked.append(student.images) or own())
    for _ in range(8):
        student.step()
    assert asked == [16, 20, 24, 28]
    monkeypatch.setattr(SliceStore, "image_batch", lambda one, index: seen.extend(index) or batch(one, index))
    image, answer = own()
    assert set(seen) <= set(range(2 * SLICES, 3 * SLICES))
    assert image.shape == (4, 1, SIZE, SIZE)
    torch.testing.assert_close(answer.sum(dim=1), torch.ones(4, SIZE, SIZE))
