"""Toy settings and toy slices for the tests of training: discs at 32 px, networks a few channels wide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sgan_core.cohort import Case, Cohort, Intensity, Label
from sgan_core.config import TrainConfig, from_dict, merge
from sgan_core.training.data import UNLABELLED, SliceStore

SIZE = 32
CHANNELS = {4: 8, 8: 8, 16: 8, 32: 8}
TOY: dict[str, Any] = {
    "generator": {
        "size": SIZE,
        "image_channels": 1,
        "num_classes": 2,
        "z_dim": 8,
        "w_dim": 8,
        "mapping_layers": 2,
        "channels": CHANNELS,
        "noise": False,
    },
    "image_discriminator": {"channels": CHANNELS, "std_group": 2},
    "pair_discriminator": {
        "scales": 2,
        "layers": 2,
        "base_channels": 8,
        "norm": "spectral",
        "encoding": "softmax",
    },
    "encoder": {
        "trunk": "resnet18",
        "width": 8,
        "fpn_channels": 16,
        "head": "light",
        "norm": "group",
        "stem_stride": False,
        "from_mean_w": True,
    },
    "gan": {"batch": 4, "max_images": 4_000, "pair_loss": "logistic", "image_r1": 0.1, "pair_r1": 0.0},
    "labelled": 2,
    "seed": 3,
}


@pytest.fixture
def toy_config() -> Callable[..., TrainConfig]:
    """Toy settings; keyword arguments are laid over them, table by table."""

    def make(**changes: Any) -> TrainConfig:
        return from_dict(TrainConfig, merge(merge(TrainConfig().to_dict(), TOY), changes))

    return make


def discs(count: int, *, size: int, seed: int, empty: float) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 1, S, S) of a bright disc with a soft edge on a dark ground, and the labels (N, S, S).

    empty: the probability of an image without a disc.
    """
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size] + 0.5
    images = np.full((count, 1, size, size), -0.8, np.float16)
    labels = np.zeros((count, size, size), np.uint8)
    for image, label in zip(images, labels, strict=True):
        if random.random() >= empty:
            centre_row, centre_column = random.uniform(0.35, 0.65, 2) * size
            radius = random.uniform(0.15, 0.28) * size
            depth = radius - np.hypot(rows - centre_row, columns - centre_column)
            image[0] = 0.8 * np.clip(depth / 2.0, -1.0, 1.0)
            label[depth > 0] = 1
    return images, labels


@pytest.fixture
def disc_store() -> Callable[..., SliceStore]:
    """Slices in memory: ``patients`` of ``slices`` slices each, the first ``labelled`` patients with labels."""

    def make(
        *, patients: int = 4, slices: int = 6, labelled: int = 2, size: int = SIZE, empty: float = 0.25
    ) -> SliceStore:
        images, labels = discs(patients * slices, size=size, seed=0, empty=empty)
        case = np.repeat(np.arange(patients), slices)
        labels[case >= labelled] = UNLABELLED
        cases = tuple(
            Case(
                id=f"p{number}",
                patient=f"p{number}",
                image=f"p{number}.nii.gz",
                label=f"p{number}-label.nii.gz" if number < labelled else None,
                labelled_rank=number if number < labelled else None,
            )
            for number in range(patients)
        )
        labels_known = (Label(1, "disc", (255, 0, 0)),)
        return SliceStore(
            images, labels, case, Cohort("discs", "ct", Intensity(-160.0, 240.0), labels_known, cases)
        )

    return make
