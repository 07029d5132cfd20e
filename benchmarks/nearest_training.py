"""Does a generator draw its training patients again? How near samples come to training images, and held-out images.

    python benchmarks/nearest_training.py --model phantom-ct-liver --data phantom --output benchmarks/results/nearest \
        --picture docs/nearest.png

For each sample, and each image of patients that were kept out of training (validation, test), the nearest training
image: by pixels (root mean square of intensities in [-1, 1]) and by features (distance of what EfficientNet-Lite0's
classifier reads). Who copies comes nearer than people do who were never seen:

- closer: how often a sample is nearer to training than a held-out image is (the area under the curve, 0.5 is no
  difference; Meehan et al., AISTATS 2020). Smooth samples come near by pixels too, without copying anyone.
- ratio: distance to the nearest training image over that to the nearest of another patient, the smallest of 100.
  A copy has nearly 0, whatever is drawn smoothly has not.

STEM.json has the figures. The picture: the eight nearest samples, below each its training image, then the same for
held-out images.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

from sgan_core.bundle import load_bundle
from sgan_core.cli import app
from sgan_core.cohort import Cohort, load_cohort
from sgan_core.device import choose_device
from sgan_core.errors import InputError
from sgan_core.evaluation.tables import json_text, write_text
from sgan_core.metrics.frechet import pooled_features
from sgan_core.phantom import phantom_cohort
from sgan_core.sheets import outline, write_sheet
from sgan_core.training.data import CACHE_FOLDER, SliceStore, slices_of_model
from sgan_core.training.evaluate import draw_samples, spread

SHOWN = 8
_BATCH = 256


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns the exit code."""
    p = app.Parser("nearest_training", description=__doc__ or "")
    add = p.add_argument
    add("--model", required=True, metavar="BUNDLE", help="a model with a generator")
    add("--data", required=True, metavar="SRC", help="the cohort it learned from, or 'phantom'")
    add("--samples", type=int, default=512, metavar="N", help="and held-out images, at most (default 512)")
    add("--cache", type=Path, metavar="DIR", help="keeps prepared slices")
    add("--seed", type=int, default=0, help="default 0")
    add("--picture", type=Path, metavar="PNG", help="the nearest pairs")
    add("--output", required=True, type=Path, metavar="STEM", help="STEM.json is written")
    return app.run(measure, p, argv)


def measure(args: argparse.Namespace) -> None:
    """Measure and write."""
    bundle = load_bundle(args.model, choose_device("cpu"))
    config, cohort = bundle.config, _cohort(args.data)
    folder = args.cache or args.output.parent / CACHE_FOLDER
    store = slices_of_model(cohort, config, folder, size=config.generator.size)
    training = store.slices_of(split="train")
    held_out = np.concatenate([store.slices_of(split=split) for split in ("validation", "test")])
    if len(set(store.patients(training))) < 2 or not len(held_out):
        raise InputError(f"{args.data}: images of two training patients and held-out ones are needed.")
    held_out = spread(held_out, args.samples)
    samples, _ = draw_samples(bundle.generator, len(held_out), torch.device("cpu"), args.seed)
    parts = {"samples": samples.clamp(-1.0, 1.0), "held out": store.image_batch(held_out)}
    found: dict[str, Any] = {
        "model": bundle.name,
        "hash": bundle.hash,
        "data": cohort.name,
        "seed": args.seed,
    }
    found |= {"training": len(training), "each": len(held_out)}
    spaces: dict[str, Callable[[Tensor], Tensor]] = {
        "pixels": lambda images: images.flatten(1) / images[0].numel() ** 0.5,
        "features": pooled_features(torch.device("cpu")),
    }
    patients = np.array(store.patients(training))
    for space, described in spaces.items():
        library = _described(described, lambda part: store.image_batch(training[part]), len(training))
        nearest = {
            name: Nearest(
                _described(described, lambda part, i=images: i[part], len(images)), library, patients
            )
            for name, images in parts.items()
        }
        found[space] = compared(nearest["samples"], nearest["held out"])
        if args.picture and space == "features":
            write_sheet(args.picture, _rows(nearest, parts, store, training))
    write_text(args.output.with_suffix(".json"), json_text(found))
    sys.stdout.write(json_text(found))


def _cohort(source: str) -> Cohort:
    return phantom_cohort() if source == "phantom" else load_cohort(source)


class Nearest:
    """The nearest training image of each image.

    distance: (N,); where: (N,) its position; ratio: (N,) of that distance to the nearest image of another patient's.
    """

    def __init__(self, images: Tensor, library: Tensor, patients: np.ndarray) -> None:
        distances = torch.cdist(images, library).numpy()  # (N, M)
        self.where = distances.argmin(axis=1)
        self.distance = distances[np.arange(len(distances)), self.where]
        other = np.where(patients[None] == patients[self.where][:, None], np.inf, distances).min(axis=1)
        self.ratio = self.distance / np.maximum(other, 1e-12)


def compared(samples: Nearest, held_out: Nearest) -> dict[str, float]:
    """The figures of one kind of distance, see above."""
    closer = mannwhitneyu(held_out.distance, samples.distance).statistic
    figures = {"closer": closer / (len(samples.distance) * len(held_out.distance))}
    for name, one in (("samples", samples), ("held out", held_out)):
        figures[f"{name} median"] = float(np.median(one.distance))
        figures[f"{name} nearest"] = float(one.distance.min())
        figures[f"{name} ratio, 1st of 100"] = float(np.percentile(one.ratio, 1))
    return {name: round(float(value), 4) for name, value in figures.items()}


def _described(
    described: Callable[[Tensor], Tensor], images: Callable[[np.ndarray], Tensor], count: int
) -> Tensor:
    parts = np.array_split(np.arange(count), -(-count // _BATCH))
    with torch.no_grad():
        return torch.cat([described(images(part)).float() for part in parts])


def _rows(
    nearest: dict[str, Nearest], parts: dict[str, Tensor], store: SliceStore, training: np.ndarray
) -> list[list[np.ndarray]]:
    rows = []
    for name, one in nearest.items():
        closest = one.distance.argsort()[:SHOWN]
        rows += [parts[name][closest], store.image_batch(training[one.where[closest]])]
    unmarked = np.zeros((store.size, store.size), np.uint8)
    return [[outline(image.numpy(), unmarked, {}, scale=2) for image in row] for row in rows]


if __name__ == "__main__":
    raise SystemExit(main())
