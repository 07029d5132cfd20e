"""A trained model as a MONAI bundle: a folder that holds everything that segmentation needs, offline."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from sgan_core import __version__
from sgan_core.bundle_text import abilities, inference_config, licence_text, metadata, readme
from sgan_core.config import TrainConfig
from sgan_core.curvature import Curvature
from sgan_core.errors import InputError
from sgan_core.files import sha256
from sgan_core.known_models import (
    AGAIN,
    MANIFEST,
    SCHEMA,
    SETTINGS,
    find_bundle,
    inside,
    read_json,
    read_settings,
)
from sgan_core.networks.discriminators import ImageDiscriminator
from sgan_core.networks.encoder import Encoder
from sgan_core.networks.generator import Generator
from sgan_core.networks.perceptual import Perceptual, make_perceptual
from sgan_core.networks.segmenter import make_student
from sgan_core.pieces import ONE_PIECE
from sgan_core.trust import calibrations, why_uncalibrated

METADATA = "configs/metadata.json"
# For users of MONAI. It holds expressions that MONAI runs as code: our own commands never read it.
INFERENCE = "configs/inference.json"
GENERATOR = "models/generator.safetensors"
ENCODER = "models/encoder.safetensors"
PERCEPTUAL = "models/perceptual.safetensors"
STUDENT = "models/student.safetensors"  # not in every model
CURVATURE = "models/curvature.safetensors"  # not in every model
# To go on training; segmenting needs neither. Not in every model.
IMAGE_D = "models/image_discriminator.safetensors"
PAIR_D = "models/pair_discriminator.safetensors"
CARD = "docs/card.md"  # what whoever trained it wrote about it, if anything
_INVERTER = (GENERATOR, ENCODER, PERCEPTUAL)  # none of them in a student alone
_EVERY_WEIGHT = {*_INVERTER, STUDENT, CURVATURE}
_OF_INVERTER = (
    "trust",
    "gan_",
    "encoder_",
    "validation_",
)  # how facts begin that a student alone has no use for


@dataclass(frozen=True, eq=False)
class Inverter:
    """The generative part of a model: draws an image with its label, and finds the latent of a given image."""

    generator: Generator
    encoder: Encoder
    perceptual: Perceptual
    curvature: Curvature | None  # of the generator


@dataclass(frozen=True, eq=False)
class Bundle:
    """A trained model, ready to segment: networks in evaluation mode, frozen, float32, on ``device``.

    A student alone segments; it cannot reconstruct an image nor judge its mask. What does asks for ``generator``,
    ``encoder``, ``perceptual`` or ``curvature``, which then raise InputError, or for ``require_inverter`` first.
    """

    folder: Path
    name: str
    hash: str  # SHA-256 of the manifest, hexadecimal
    config: TrainConfig
    facts: dict[str, Any]  # tool version, cohort, images seen, validation figures ...
    inverter: Inverter | None  # None: a student alone
    student: nn.Module | None  # (B, C, S, S) -> logits (B, K, S, S)
    device: torch.device

    def require_inverter(self) -> Inverter:
        """The generative part. Raises InputError saying how to get one when the model is a student alone."""
        if self.inverter is None:
            raise InputError(
                f"{self.name}: this model is a student alone: it segments, but cannot reconstruct, sample or judge. "
                "Use the whole model if there is one, or train the later stages with sgan-train --resume."
            )
        return self.inverter

    @property
    def one_piece(self) -> tuple[int, ...]:
        """Values of the labels that were one connected piece in the patients it learned from (``pieces``)."""
        named = self.facts.get(ONE_PIECE)
        named = named if isinstance(named, list) else []
        return tuple(label.value for label in self.config.labels if label.name in named)

    @property
    def generator(self) -> Generator:
        """Draws image and label from a latent."""
        return self.require_inverter().generator

    @property
    def encoder(self) -> Encoder:
        """Guesses the latent of an image."""
        return self.require_inverter().encoder

    @property
    def perceptual(self) -> Perceptual:
        """Compares what is drawn with the image."""
        return self.require_inverter().perceptual

    @property
    def curvature(self) -> Curvature | None:
        """Of the generator, for inversion; not in every model."""
        return self.require_inverter().curvature


# --- writing ---------------------------------------------------------------------------------------


def save_bundle(
    folder: str | Path,
    *,
    name: str,
    config: TrainConfig,
    generator: nn.Module | None = None,
    encoder: nn.Module | None = None,
    perceptual: Perceptual | None = None,
    student: nn.Module | None = None,
    curvature: Curvature | None = None,
    image_d: nn.Module | None = None,
    pair_d: nn.Module | None = None,
    facts: dict[str, Any],
    half: bool = True,
) -> Path:
    """Write a bundle folder, in place of an older bundle there. Returns the folder.

    generator, encoder and perceptual: all three, or none for a student alone. image_d and pair_d, D_r and D_m, let
    a training begin with the model. It is written under a temporary
    name beside ``folder``, then renamed: half a bundle is never there. facts: plain data about the training;
    "licence" and "version" (of the model) are put into the metadata, numbers that are not finite are left out.
    half: store the weights in half precision, halving the files.
    The same arguments and versions give the same files and so the same hash.
    Raises InputError when ``folder`` holds something that is not a bundle, or weights are not finite.
    """
    parts = {GENERATOR: generator, ENCODER: encoder, PERCEPTUAL: perceptual}
    parts |= {STUDENT: student, CURVATURE: curvature, IMAGE_D: image_d, PAIR_D: pair_d}
    networks = {path: part for path, part in parts.items() if part is not None}
    if missing := [path for path in _needed(networks) if path not in networks]:
        raise ValueError(f"a model with {', '.join(networks) or 'nothing'} needs {missing[0]} too")
    if perceptual is not None and perceptual.name != config.perceptual:
        raise ValueError(f"perceptual term {perceptual.name!r}, the config says {config.perceptual!r}")
    weights = {path: _weights(network, path, half=half) for path, network in networks.items()}
    return _write(Path(folder), name, config, facts, weights)


def save_with_facts(
    folder: str | Path,
    bundle: Bundle,
    facts: dict[str, Any],
    *,
    name: str | None = None,
    card: str | None = None,
    student_only: bool = False,
) -> Path:
    """Write a bundle again with other facts, its weights bit for bit as they are; as ``save_bundle``.

    name: another one. card: Markdown of whoever trained it, for its readme; left out, the bundle's own is kept.
    student_only: without the generator and what belongs to it, facts included. Raises InputError when there is no
    student.
    """
    if student_only and bundle.student is None:
        raise InputError(f"{bundle.name}: has no student, which is what would be left of it.")
    weights = {
        path: (bundle.folder / path).read_bytes()
        for path in _manifest(bundle.folder)
        if path == STUDENT or (path.endswith(".safetensors") and not student_only)
    }
    if student_only:
        facts = {key: value for key, value in facts.items() if not key.startswith(_OF_INVERTER)}
    if card is None and (bundle.folder / CARD).is_file():
        card = (bundle.folder / CARD).read_text(encoding="utf-8")
    return _write(Path(folder), name or bundle.name, bundle.config, facts, weights, card)


def _write(
    folder: Path,
    name: str,
    config: TrainConfig,
    facts: dict[str, Any],
    weights: dict[str, bytes],
    card: str | None = None,
) -> Path:
    require_replaceable(folder)
    facts = _finite({"tool_version": __version__, **facts, "seed": config.seed})
    files = dict(weights)
    inverts = GENERATOR in weights
    settings = {"schema": SCHEMA, "name": name, "student_alone": not inverts}  # the last for the panel
    files[SETTINGS] = _json(settings | {"config": config.to_dict(), "facts": facts})
    files[METADATA] = _json(metadata(name, config, facts, inverts=inverts))
    files[INFERENCE] = _json(inference_config())
    if card is not None:
        files[CARD] = card.encode()
    files["docs/README.md"] = readme(name, config, facts, inverts=inverts, card=card or "").encode()
    files["LICENSE"] = licence_text(facts).encode()
    hashes = {path: hashlib.sha256(content).hexdigest() for path, content in sorted(files.items())}
    files[MANIFEST] = _json({"schema": SCHEMA, "files": hashes})
    _replace_folder(folder, files)
    return folder


def _needed(present: Iterable[str]) -> tuple[str, ...]:
    """The weights without which a model with those that are ``present`` is damaged."""
    return (STUDENT,) if set(present) & _EVERY_WEIGHT == {STUDENT} else _INVERTER


def require_replaceable(folder: Path) -> None:
    """Raise InputError when ``folder`` holds something that is not a bundle."""
    model = folder.is_dir() and ((folder / SETTINGS).is_file() or not any(folder.iterdir()))
    if folder.exists() and not model:
        raise InputError(f"{folder}: holds something that is not a model. Choose another folder.")


def _weights(network: nn.Module, path: str, *, half: bool) -> bytes:
    tensors = {}
    for key, tensor in network.state_dict().items():
        # Training at a grown resolution leaves D_r a second input layer, which its features do not pass.
        if "from_half." not in key:
            tensors[key] = _stored(tensor, path, half=half)
    return to_safetensors(tensors)


def _stored(tensor: Tensor, path: str, *, half: bool) -> Tensor:
    """A copy for the file, in half precision where its numbers allow that."""
    copy = tensor.detach().cpu().contiguous().clone()
    if not copy.is_floating_point():
        return copy
    if not copy.isfinite().all():
        raise InputError(
            f"{path}: weights are NaN or infinite, the training failed. Use an earlier checkpoint."
        )
    small = copy.half()
    return small if half and small.isfinite().all() else copy.float()


def _finite(value: Any) -> Any:
    """Plain data without the numbers that JSON cannot hold (NaN: a figure that was not measured)."""
    if isinstance(value, dict):
        kept = {str(key): _finite(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if not _not_finite(item)}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value if not _not_finite(item)]
    return value


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _replace_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Write the files to a folder beside, then let it take the place of ``folder``."""
    folder = folder.absolute()
    partial, old = (folder.with_name(f".{folder.name}.{word}") for word in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    try:
        for path, content in files.items():
            (partial / path).parent.mkdir(parents=True, exist_ok=True)
            (partial / path).write_bytes(content)
        # A folder that is not empty cannot be replaced in one step on any system.
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        try:
            partial.rename(folder)
        except BaseException:
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


# --- reading ---------------------------------------------------------------------------------------


def load_bundle(reference: str | Path, device: str | torch.device = "cpu") -> Bundle:
    """Load a model: a folder, a .zip or the name of a bundled model.

    The hashes of the settings and weights are checked first. Draws no random numbers of the caller.
    Raises InputError naming the file that is missing, damaged or of a newer version.
    """
    folder = find_bundle(reference)
    hashes = _manifest(folder)
    weights = {*_needed(hashes), *(_EVERY_WEIGHT & hashes.keys())}
    for path in (SETTINGS, *sorted(weights)):
        if problem := _problem(folder, path, hashes.get(path)):
            raise InputError(f"{problem} {AGAIN}")
    settings = read_settings(folder)
    config: TrainConfig = settings["config"]
    device = torch.device(device)
    inverter = student = None
    with torch.random.fork_rng(devices=[]):  # for start values that are overwritten at once
        if GENERATOR in weights:
            inverter = _load_inverter(folder, config, curved=CURVATURE in weights)
        if STUDENT in weights:
            student = make_student(config)
            _load_weights(student, folder / STUDENT)
    of_inverter = vars(inverter).values() if inverter else ()
    for network in (*of_inverter, student):
        if network is not None:
            network.to(device).eval().requires_grad_(False)
    name, facts = settings["name"], settings["facts"]
    return Bundle(folder, name, bundle_hash(folder), config, facts, inverter, student, device)


def stored_weights(reference: str | Path) -> dict[str, dict[str, Tensor]]:
    """The weights of every network of a model, in float32, by their file in it.

    Raises InputError as ``load_bundle``.
    """
    folder = find_bundle(reference)
    found = {}
    for path, content in _manifest(folder).items():
        if path.endswith(".safetensors"):
            if problem := _problem(folder, path, content):
                raise InputError(f"{problem} {AGAIN}")
            try:
                tensors = load_file(folder / path)
            except SafetensorError as error:
                raise InputError(f"{folder / path}: damaged ({error}). {AGAIN}") from error
            if not all(t.isfinite().all() for t in tensors.values() if t.is_floating_point()):
                raise InputError(f"{folder / path}: weights are NaN or infinite. {AGAIN}")
            found[path] = {key: t.float() if t.is_floating_point() else t for key, t in tensors.items()}
    return found


def _load_inverter(folder: Path, config: TrainConfig, *, curved: bool) -> Inverter:
    generator, encoder, judge = _networks(config)
    perceptual = make_perceptual(config.perceptual, weights=folder / PERCEPTUAL, image_discriminator=judge)
    curvature = Curvature(generator.num_ws, config.generator.w_dim) if curved else None
    _load_weights(generator, folder / GENERATOR)
    _load_weights(encoder, folder / ENCODER)
    if curvature is not None:
        _load_weights(curvature, folder / CURVATURE)
    return Inverter(generator, encoder, perceptual, curvature)


def _networks(config: TrainConfig) -> tuple[Generator, Encoder, ImageDiscriminator | None]:
    """Untrained networks of a config; D_r where the perceptual term needs it."""
    size, channels = config.generator.size, config.generator.image_channels
    generator = Generator(config.generator)
    encoder = Encoder(
        config.encoder,
        size=size,
        image_channels=channels,
        num_ws=config.generator.num_ws,
        w_dim=config.generator.w_dim,
    )
    judge = None
    if config.perceptual == "discriminator":
        judge = ImageDiscriminator(config.image_discriminator, image_channels=channels)
    return generator, encoder, judge


def _load_weights(network: nn.Module, path: Path) -> None:
    try:
        network.load_state_dict(load_file(path))  # half precision becomes the network's float32
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"{path}: does not fit {SETTINGS} ({reason}). Export the model again.") from error


def bundle_hash(folder: Path) -> str:
    """The identity of a bundle: SHA-256 of its manifest, hexadecimal."""
    return sha256(folder / MANIFEST)


def describe(reference: str | Path) -> dict[str, Any]:
    """What a model is, as plain data: name, hash, folder, bytes, modality, size_px, labels, can, facts, config.

    Reads the settings only. Raises InputError as ``load_bundle``.
    """
    folder = find_bundle(reference)
    settings = read_settings(folder)
    config: TrainConfig = settings["config"]
    hashes = _manifest(folder)
    files = [folder / path for path in hashes]
    facts = dict(settings["facts"])
    can = abilities(inverts=GENERATOR in hashes, judges=bool(calibrations(facts)))
    if "trust" in facts:  # long rows of numbers
        facts["trust"] = _calibrated(facts)
    return {
        "name": settings["name"],
        "hash": bundle_hash(folder),
        "folder": str(folder),
        "bytes": sum(file.stat().st_size for file in files if file.is_file()),
        "modality": config.modality,
        "size_px": config.student_size,
        "generator_size_px": config.generator.size,
        "labels": [{"value": label.value, "name": label.name} for label in config.labels],
        "can": can,
        "facts": facts,
        "config": config.to_dict(),
    }


def _calibrated(facts: dict[str, Any]) -> str:
    """For which masks trust is calibrated, in words."""
    table = calibrations(facts)
    ways = [f"the {method} at {', '.join(qualities)}" for method, qualities in table.items()]
    return f"calibrated for the masks of {' and of '.join(ways)}" if ways else why_uncalibrated(facts)


def verify_bundle(folder: Path) -> list[str]:
    """Everything that is wrong with a bundle folder, a sentence each; empty when it is sound.

    Checks every file against its hash, looks for files that the manifest does not know beside the weights and
    configurations (MONAI would run some of them), and loads the model.
    """
    try:
        hashes = _manifest(folder)
    except InputError as error:
        return [str(error)]
    paths = sorted({*hashes, SETTINGS, METADATA, INFERENCE, *_needed(hashes)})
    problems = [problem for path in paths if (problem := _problem(folder, path, hashes.get(path)))]
    known = {*paths, MANIFEST}
    for part in ("configs", "models"):
        found = {path.relative_to(folder).as_posix() for path in (folder / part).rglob("*") if path.is_file()}
        problems += [f"{folder / path}: does not belong to the model." for path in sorted(found - known)]
    if not problems:
        try:
            load_bundle(folder)
        except InputError as error:
            problems.append(str(error))
    return problems


def _manifest(folder: Path) -> dict[str, str]:
    """Path inside the bundle -> SHA-256, hexadecimal."""
    table = read_json(folder / MANIFEST)
    hashes = table.get("files")
    if not isinstance(hashes, dict) or not all(isinstance(value, str) for value in hashes.values()):
        raise InputError(f"{folder / MANIFEST}: lists no files. {AGAIN}")
    if wrong := [path for path in hashes if not inside(path)]:
        raise InputError(f"{folder / MANIFEST}: {wrong[0]!r} leads out of the model. Do not use this model.")
    return hashes


def _problem(folder: Path, path: str, expected: str | None) -> str | None:
    file = folder / path
    if not file.is_file():
        return f"{file}: missing."
    if expected is None:
        return f"{file}: not in the model's list of files."
    if sha256(file) != expected:
        return f"{file}: damaged or changed, its SHA-256 is not the one in {MANIFEST}."
    return None
