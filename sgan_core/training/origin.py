"""Weights to begin a training with: those of a run, often at half the size, or of a finished model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sgan_core.bundle import ENCODER, GENERATOR, IMAGE_D, PAIR_D, STUDENT, stored_weights
from sgan_core.errors import InputError
from sgan_core.training.loop import load_checkpoint

logger = logging.getLogger(__name__)

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Origin:
    """What a run may begin with; None: there is none."""

    name: str
    gan: dict[str, Any] | None  # for ``GanTrainer.init_from``: "ema", "image_d", "pair_d"
    encoder: Weights | None
    student: Weights | None


def read_origin(reference: Path) -> Origin:
    """The weights of a run's folder or of a model (folder, .zip or name).

    Raises InputError when it is neither, or damaged.
    """
    checkpoints = reference / "checkpoints"
    if checkpoints.is_dir():
        gan, encoder, student = (
            load_checkpoint(file) if (file := checkpoints / name).exists() else None
            for name in ("gan.pt", "encoder_best.pt", "student_best.pt")
        )
        if gan is None and student is None:
            raise InputError(f"{reference}: this run has trained nothing yet. Give another --init-from.")
        return Origin(str(reference), gan, encoder and encoder["encoder"], student and student["student"])
    weights = stored_weights(reference)
    parts = {"ema": GENERATOR, "image_d": IMAGE_D, "pair_d": PAIR_D}
    gan = {name: weights[path] for name, path in parts.items() if path in weights}
    if gan and len(gan) < len(parts):
        logger.warning(
            "%s: without discriminators, so they start anew; its generator may get worse first.", reference
        )
    return Origin(str(reference), gan or None, weights.get(ENCODER), weights.get(STUDENT))


def take_over(network: nn.Module, weights: Weights, what: str) -> None:
    """Load all weights that fit, and say when some do not: other labels, channels or widths."""
    own = network.state_dict()
    fits = {key: value for key, value in weights.items() if key in own and own[key].shape == value.shape}
    network.load_state_dict(fits, strict=False)
    if len(fits) < len(own):
        logger.warning(
            "%s: %d of %d weights start anew, the others do not fit.", what, len(own) - len(fits), len(own)
        )
