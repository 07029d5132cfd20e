"""What is watched while training: how real the images are, how right the labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import label as connected_components
from torch import Tensor, nn

from sgan_core.appearance import always, shift_appearance
from sgan_core.config import TrainConfig
from sgan_core.looks import AppearanceConfig
from sgan_core.metrics.frechet import FeatureStatistics, pooled_features
from sgan_core.metrics.per_patient import mean_without_nan, per_patient_dice
from sgan_core.networks.generator import Generator
from sgan_core.networks.segmenter import predict
from sgan_core.sheets import colours_of, outline, write_sheet
from sgan_core.training.data import UNLABELLED, SliceStore, rng

FRECHET_IMAGES = 500  # a fixed number on both sides: the figure depends on it
_BATCH = 32
_SHEET_COLUMNS = 12


def spread(positions: np.ndarray, count: int) -> np.ndarray:
    """At most ``count`` of the positions, evenly spread over their order."""
    if len(positions) <= count:
        return positions
    return positions[np.linspace(0, len(positions) - 1, count).round().astype(int)]


def draw_samples(
    generator: Generator, count: int, device: torch.device, seed: int = 0
) -> tuple[Tensor, np.ndarray]:
    """``count`` generated images (N, C, H, W) with labels (N, H, W), untruncated."""
    z = torch.randn(count, generator.config.z_dim, generator=torch.Generator().manual_seed(seed))
    images, labels = [], []
    with torch.no_grad():
        for part in z.split(_BATCH):
            pair = generator(part.to(device))
            images.append(pair.image.float().cpu())
            labels.append(pair.labels().cpu().numpy().astype(np.uint8))
    return torch.cat(images), np.concatenate(labels)


def mean_dice(predicted: np.ndarray, truth: np.ndarray, patients: list[str], num_classes: int) -> float:
    """Per-patient DICE at model size, the mean over patients and labels. predicted, truth: (N, H, W)."""
    values: list[float] = []
    for value in range(1, num_classes):
        cases = [
            (patient, p[None] == value, t[None] == value)
            for patient, p, t in zip(patients, predicted, truth, strict=True)
        ]
        values += list(
            per_patient_dice((name, p.astype(np.uint8), t.astype(np.uint8)) for name, p, t in cases).values()
        )
    return mean_without_nan(values)[0]


class GanWatch:
    """How real generated images are, how well their labels fit them, and the label prior.

    judge: a segmenter in evaluation mode that learned from the labelled slices alone. It reads the generated
    images, so that label quality is known without an inversion, whose failures would hide it.
    """

    def __init__(
        self, config: TrainConfig, store: SliceStore, device: torch.device, samples: Path, judge: nn.Module
    ) -> None:
        self.config, self.device, self.samples, self.judge = config, device, samples, judge
        real = spread(store.slices_of(split="train"), FRECHET_IMAGES)
        self.extract = pooled_features(device)
        self.real = FeatureStatistics(self.extract)
        for part in np.array_split(real, max(1, len(real) // _BATCH)):
            self.real.update(store.image_batch(part).to(device))
        pool = store.labelled(config.labelled)
        parts = np.array_split(pool, max(1, len(pool) // FRECHET_IMAGES))
        empty = torch.cat([(store.label_batch(part) == 0).all(dim=2).all(dim=1) for part in parts])
        self.data_empty = float(empty.float().mean())

    def __call__(self, generator: Generator, images_seen: int) -> dict[str, float]:
        """Figures of a generator: ``frechet``, ``label_agreement``, shares of empty masks, mask components."""
        images, labels = draw_samples(generator, max(2, self.real.count), self.device)
        fake = FeatureStatistics(self.extract)
        for part in images.split(_BATCH):
            fake.update(part.to(self.device))
        found = {
            "frechet": fake.distance(self.real),
            "empty_share": float((labels == 0).all(axis=(1, 2)).mean()),
            "empty_share_data": self.data_empty,
            "components": _components(labels),
            "label_agreement": self._agreement(images, labels),
        }
        colours = colours_of(self.config.labels)
        pictures = [
            outline(i, y, colours, scale=2) for i, y in zip(images[:48].numpy(), labels[:48], strict=True)
        ]
        write_sheet(
            self.samples / f"gan_{images_seen:08d}.png", [pictures[k : k + 8] for k in range(0, 48, 8)]
        )
        return found

    def _agreement(self, images: Tensor, labels: np.ndarray) -> float:
        """DICE of generated labels and the judge's, all samples pooled, the mean over classes."""
        seen = predict(self.judge, images.clamp(-1.0, 1.0).numpy()).argmax(axis=1)
        values = []
        for value in range(1, self.config.generator.num_classes):
            drawn, found = labels == value, seen == value
            total = drawn.sum() + found.sum()
            values.append(2.0 * (drawn & found).sum() / total if total else 0.0)
        return float(np.mean(values))


def _components(labels: np.ndarray) -> float:
    """Mean number of connected parts of the masks that are not empty; an organ's slice has one, seldom two."""
    counts = [connected_components(mask)[1] for mask in labels > 0 if mask.any()]
    return float(np.mean(counts)) if counts else 0.0


def encoder_quality(
    config: TrainConfig, store: SliceStore, device: torch.device, encoder: nn.Module, generator: Generator
) -> dict[str, float]:
    """Encoder-only quality on the validation patients at model size ("Ours-NO" of the paper's tables).

    ``validation_dice``: per-patient DICE (NaN without labelled validation patients); ``validation_rmse_p95``:
    95th percentile of the slices' root mean squared reconstruction error, of training slices when there are no others.
    """
    validation = store.slices_of(split="validation", with_label=True)
    positions = validation if len(validation) else spread(store.slices_of(split="train"), FRECHET_IMAGES)
    predicted, errors = [], []
    encoder.eval()
    with torch.no_grad():
        for part in np.array_split(positions, max(1, len(positions) // _BATCH)):
            target = store.image_batch(part).to(device)
            pair = generator.synthesis(encoder(target))
            predicted.append(pair.labels().cpu().numpy())
            errors.append((pair.image - target).square().mean(dim=(1, 2, 3)).sqrt().cpu().numpy())
    found = {
        "validation_rmse_p95": float(np.percentile(np.concatenate(errors), 95)),
        "validation_dice": float("nan"),
    }
    if len(validation):
        truth, patients = store.label_batch(validation).numpy(), store.patients(validation)
        classes = config.generator.num_classes
        found["validation_dice"] = mean_dice(np.concatenate(predicted), truth, patients, classes)
    return found


class StudentWatch:
    """Per-patient DICE of a segmenter on the validation patients at model size.

    ``student_dice``: the slices as they are; ``student_shifted_dice``: in other looks, drawn once and the same each
    time, so that nothing but the training domain decides. NaN without labelled validation patients.
    looks: the training's, or None for no such figure.
    """

    def __init__(self, store: SliceStore, num_classes: int, looks: AppearanceConfig | None) -> None:
        index = store.slices_of(split="validation", with_label=True)
        self.num_classes = num_classes
        self.truth, self.patients = store.label_batch(index).numpy(), store.patients(index)
        images = store.image_batch(index)
        self.images = {"student_dice": images.numpy()}
        if looks is not None and len(index):
            shifted = shift_appearance(images, rng(0, 0, "student-validation"), always(looks))
            self.images["student_shifted_dice"] = shifted.numpy()

    def __call__(self, net: nn.Module) -> dict[str, float]:
        """The figures of a network in evaluation mode."""
        if not len(self.truth):
            return dict.fromkeys(("student_dice", "student_shifted_dice"), float("nan"))
        found = {}
        for name, images in self.images.items():
            predicted = predict(net, images).argmax(axis=1).astype(np.uint8)
            found[name] = mean_dice(predicted, self.truth, self.patients, self.num_classes)
        return found


def write_segmentations(path: Path, config: TrainConfig, store: SliceStore, segmenter: nn.Module) -> None:
    """A sheet of slices: with what is known of the truth above, with a segmenter's answer below.

    Of validation patients; without labelled ones of unlabelled training slices, which say more than learned ones.
    """
    positions = store.slices_of(split="validation", with_label=True)
    if not len(positions):
        every = store.slices_of(split="train")
        unseen = np.setdiff1d(every, store.slices_of(split="train", with_label=True))
        positions = unseen if len(unseen) else every
    positions = spread(positions, _SHEET_COLUMNS)
    images = store.image_batch(positions).numpy()
    colours = colours_of(config.labels)
    answers = predict(segmenter, images).argmax(axis=1).astype(np.uint8)
    known = _known(store, positions)
    rows = [
        [outline(i, y, colours, scale=2) for i, y in zip(images, row, strict=True)]
        for row in (known, answers)
    ]
    write_sheet(path, rows)


def _known(store: SliceStore, positions: np.ndarray) -> np.ndarray:
    """The labels (N, S, S) uint8 of slices, empty where they are not known."""
    labels = store.label_batch(positions).numpy()
    return np.where(labels == UNLABELLED, 0, labels).astype(np.uint8)


def write_reconstructions(
    path: Path,
    config: TrainConfig,
    store: SliceStore,
    device: torch.device,
    encode: Callable[[Tensor], Tensor],
    generator: Generator,
) -> None:
    """A sheet of validation slices: image with truth above, reconstruction with predicted label below."""
    positions = spread(store.slices_of(split="validation", with_label=True), _SHEET_COLUMNS)
    if not len(positions):
        positions = spread(store.slices_of(split="train"), _SHEET_COLUMNS)
    target = store.image_batch(positions)
    with torch.no_grad():
        pair = generator.synthesis(encode(target.to(device)))
    colours = colours_of(config.labels)
    known = _known(store, positions)
    above = [outline(i, y, colours, scale=2) for i, y in zip(target.numpy(), known, strict=True)]
    drawn = zip(pair.image.float().cpu().numpy(), pair.labels().cpu().numpy().astype(np.uint8), strict=True)
    write_sheet(path, [above, [outline(i, y, colours, scale=2) for i, y in drawn]])
