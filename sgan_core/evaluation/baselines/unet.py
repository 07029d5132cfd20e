"""The reference segmenter: MONAI's 2-D U-Net on the labelled slices alone.

Method ``unet`` sees the slices with geometric augmentation only, ``unet_intensity`` also with random
intensity curves, bias field, noise and blur (``appearance``). The student learns beyond that under a random gamma,
to tell fat from air, and from pictures without the organ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sgan_core.config import StudentTrainConfig
from sgan_core.errors import InputError
from sgan_core.looks import AppearanceConfig
from sgan_core.training.data import SliceStore
from sgan_core.training.evaluate import StudentWatch
from sgan_core.training.student import StudentTrainer

METHODS = {"unet": False, "unet_intensity": True}  # method: with changes of appearance?

_EVALUATIONS = 10  # validations during a training


@dataclass(frozen=True)
class UnetConfig:
    """One training of the U-Net; network, geometry and averaging are those of the student."""

    steps: int = 5000
    batch: int = 16
    lr: float = 1e-3  # Adam, cosine decay to a hundredth
    appearance: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise InputError(f"U-Net: {self.steps} steps of {self.batch} slices, expected at least 1 of each")


def train_unet(
    store: SliceStore,
    config: UnetConfig,
    *,
    labelled: int,
    num_classes: int,
    device: torch.device | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> nn.Module:
    """Train on all slices of the first ``labelled`` labelled patients; returns the network in eval mode.

    Ten times during training it is scored on the store's validation patients, and the best network is kept
    (the last without validation patients). The score is DICE per patient at model size; with ``appearance``
    on slices whose appearance is shifted by draws that training never sees, the same at each validation.
    So nothing but the training domain decides. When ``should_stop`` says so the best so far is returned.
    The same store, config and number of threads give the same network. Raises InputError when no slice is
    labelled.
    """
    taught = StudentTrainConfig(
        batch=config.batch,
        max_images=config.steps * config.batch,
        lr=config.lr,
        appearance=config.appearance,
        looks=AppearanceConfig(fat=0.0),
        negative_share=0.0,
    )
    trainer = StudentTrainer(
        taught,
        store,
        device or torch.device("cpu"),
        labelled=labelled,
        num_classes=num_classes,
        seed=config.seed,
    )
    watch = StudentWatch(store, num_classes, AppearanceConfig() if config.appearance else None)
    figure = "student_shifted_dice" if config.appearance else "student_dice"
    every = max(1, math.ceil(config.steps / _EVALUATIONS))
    best, kept = math.nan, dict[str, Tensor]()
    for done in range(1, config.steps + 1):
        if should_stop is not None and should_stop():
            break
        trainer.step()
        if done % every == 0 or done == config.steps:
            dice = watch(trainer.average)[figure]
            if not math.isnan(dice) and not dice <= best:
                best = dice
                kept = {name: value.clone() for name, value in trainer.average.state_dict().items()}
        if on_progress is not None:
            words = "not yet validated" if math.isnan(best) else f"best validation DICE {best:.3f}"
            on_progress(done, config.steps, f"U-Net, {words}")
    if kept:
        trainer.average.load_state_dict(kept)
    return trainer.average
