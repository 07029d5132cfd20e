"""Weights to begin a training with: those of a run, often at half the size, or of a finished model."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sgan_core.bundle import ENCODER, GENERATOR, IMAGE_D, PAIR_D, STUDENT, describe, stored_weights
from sgan_core.config import TrainConfig
from sgan_core.errors import InputError
from sgan_core.files import replacing
from sgan_core.known_models import SCHEMA, SETTINGS, read_json, read_settings
from sgan_core.networks.discriminators import ImageDiscriminator, PairDiscriminator
from sgan_core.networks.generator import Generator
from sgan_core.networks.segmenter import make_student
from sgan_core.terms import Terms, one_line, terms_of
from sgan_core.training.encoder import fingerprint, make_encoder
from sgan_core.training.loop import load_checkpoint, save_checkpoint

logger = logging.getLogger(__name__)

Weights = Mapping[str, Tensor]
_STUDENT_FIGURES = ("student_dice", "student_shifted_dice")  # of training.evaluate.StudentWatch
TERMS = "terms.json"  # in a run's folder: of its data, and of the weights that it began with


@dataclass(frozen=True)
class Origin:
    """What a run may begin with; None: there is none."""

    name: str
    gan: dict[str, Any] | None  # for ``GanTrainer.init_from``: "ema", "image_d", "pair_d"
    encoder: Weights | None
    student: Weights | None
    facts: Mapping[str, Any]  # terms of use; of a model also images seen, figures
    config: TrainConfig | None  # of a model


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
        facts = _facts_of_run(reference)
        return Origin(
            str(reference), gan, encoder and encoder["encoder"], student and student["student"], facts, None
        )
    weights = stored_weights(reference)
    parts = {"ema": GENERATOR, "image_d": IMAGE_D, "pair_d": PAIR_D}
    gan = {name: weights[path] for name, path in parts.items() if path in weights}
    if gan and len(gan) < len(parts):
        logger.warning(
            "%s: without discriminators, so they start anew; its generator may get worse first.", reference
        )
    about = describe(reference)
    config = TrainConfig.from_dict(about["config"])
    return Origin(
        str(reference), gan or None, weights.get(ENCODER), weights.get(STUDENT), about["facts"], config
    )


def _facts_of_run(folder: Path) -> dict[str, Any]:
    """The terms of a run's weights, as facts; those of its model for a run of an earlier version, if it has one."""
    if (folder / TERMS).is_file():
        return terms_of_run(folder).facts()
    model = folder / "bundle"
    return read_settings(model)["facts"] if (model / SETTINGS).is_file() else {}


def keep_terms(folder: Path, data: Terms, origin: Origin | None) -> None:
    """Write down on what terms a run's weights may be used: ``data`` of its cohort, and those of all its origins.

    Goes on with what is there: a run that is resumed need not be told again what it began with.
    """
    first = None if origin is None else terms_of(origin.facts)
    if (before := _first_terms(folder)) is not None:
        first = before if first is None else first.after(before)
    table = {"schema": SCHEMA, "data": data.facts()} | ({} if first is None else {"first": first.facts()})
    with replacing(folder / TERMS) as part:
        part.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def terms_of_run(folder: Path) -> Terms:
    """What ``keep_terms`` wrote, in one. Raises InputError for a damaged file."""
    data, first = terms_of(_stored_terms(folder, "data") or {}), _first_terms(folder)
    return data if first is None else data.after(first)


def _first_terms(folder: Path) -> Terms | None:
    stored = _stored_terms(folder, "first") if (folder / TERMS).is_file() else None
    return None if stored is None else terms_of(stored)


def _stored_terms(folder: Path, part: str) -> dict[str, Any] | None:
    file = folder / TERMS
    found = read_json(file).get(part)
    if not isinstance(found, dict | None):
        raise InputError(f"{file}: damaged, {part!r} is no table. Choose another --output.")
    return found


def adopt(origin: Origin, config: TrainConfig, checkpoints: Path) -> None:
    """Make a model's generator and encoder those of a run that has none yet, where they mean the same.

    So a student trained from a whole model becomes a whole model again. A stage that is trained replaces them. With
    other labels or intensities the generator would judge masks of another organ: then the run has none.
    """
    there = any((checkpoints / name).exists() for name in ("gan.pt", "gan_best.pt", "encoder_best.pt"))
    if there or origin.gan is None or origin.encoder is None or origin.config is None:
        return
    generator = Generator(config.generator)
    encoder = make_encoder(config, generator.mean_w)
    same = _meaning(origin.config) == _meaning(config)
    discriminators = _fitting_discriminators(origin.gan, config)
    judges = config.perceptual != "discriminator" or "image_d" in discriminators
    if not (same and judges and _fits(generator, origin.gan["ema"]) and _fits(encoder, origin.encoder)):
        logger.warning(
            "%s: its generator has other labels, intensities, framing (body, squash) or sizes, so the model has none "
            "until it is trained.",
            origin.name,
        )
        return
    generator.load_state_dict(origin.gan["ema"])
    facts = origin.facts
    kept = {"generator": generator.state_dict(), "images": _images(facts, "gan_images")}
    figures = {"figures": _figures(facts.get("gan_figures")), "judge": origin.name}  # of a judge that is gone
    save_checkpoint(kept | figures | discriminators, checkpoints / "gan_best.pt")
    known = _figures(facts)
    found = {name: known[name] for name in ("validation_dice", "validation_rmse_p95") if name in known}
    state = {
        "encoder": dict(origin.encoder),
        "images": _images(facts, "encoder_images"),
        "quality": found.get("validation_dice", -1.0),
        "generator": fingerprint(generator),
        "figures": found,
    }
    save_checkpoint(state, checkpoints / "encoder_best.pt")


def adopt_student(origin: Origin, config: TrainConfig, checkpoints: Path) -> None:
    """Make a model's student that of a run that has none and trains none, where it means the same.

    So a student that ships alone becomes a whole model by the training of a generator and an encoder.
    """
    there = any((checkpoints / name).exists() for name in ("student.pt", "student_best.pt"))
    if there or origin.student is None or origin.config is None:
        return
    same = _meaning(origin.config) == _meaning(config) and origin.config.student_size == config.student_size
    if not (same and _fits(make_student(config), origin.student)):
        logger.warning(
            "%s: its student has other labels, intensities, framing (body, squash) or sizes, so the model has none "
            "until it is trained.",
            origin.name,
        )
        return
    logger.info("%s: its student is kept as it is, no other is trained.", origin.name)
    known = _figures(origin.facts)
    state = {
        "of": one_line(f"{Path(origin.name).name}, {origin.facts.get('cohort', '')}".rstrip(", ")),
        "student": dict(origin.student),
        "images": _images(origin.facts, "student_images"),
        "quality": -1.0,  # its figures are of other patients
        "figures": {name: value for name, value in known.items() if name in _STUDENT_FIGURES},
    }
    save_checkpoint(state, checkpoints / "student_best.pt")


def _meaning(config: TrainConfig) -> tuple[Any, ...]:
    """What a model's images and labels mean."""
    labels = [(label.value, label.name.casefold()) for label in config.labels]
    return config.modality, labels, config.intensity, config.squash, config.body


def _fitting_discriminators(gan: Mapping[str, Any], config: TrainConfig) -> dict[str, Any]:
    """Both discriminators of a model where both are as a run's own; else none."""
    channels, classes = config.generator.image_channels, config.generator.num_classes
    own = {
        "image_d": ImageDiscriminator(config.image_discriminator, image_channels=channels),
        "pair_d": PairDiscriminator(config.pair_discriminator, image_channels=channels, num_classes=classes),
    }
    fit = all(name in gan and _fits(network, gan[name]) for name, network in own.items())
    return {name: gan[name] for name in own} if fit else {}


def _figures(facts: Any) -> dict[str, float]:
    """Those of a model's facts that are finite numbers: they come from anywhere."""
    known = facts.items() if isinstance(facts, Mapping) else ()
    return {
        name: value
        for name, value in known
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12
    }


def _images(facts: Mapping[str, Any], name: str) -> int:
    return int(_figures(facts).get(name, 0))


def _fits(network: nn.Module, weights: Weights) -> bool:
    own = network.state_dict()
    return own.keys() == weights.keys() and all(own[key].shape == weights[key].shape for key in own)


def take_over(network: nn.Module, weights: Weights, what: str) -> None:
    """Load all weights that fit, and say when some do not: other labels, channels or widths."""
    own = network.state_dict()
    fits = {key: value for key, value in weights.items() if key in own and own[key].shape == value.shape}
    network.load_state_dict(fits, strict=False)
    if len(fits) < len(own):
        logger.warning(
            "%s: %d of %d weights start anew, the others do not fit.", what, len(own) - len(fits), len(own)
        )
