"""What should teach the student? Labelled slices alone, its own answers to unlabelled ones, or generated pairs.

    python benchmarks/student_table.py --run runs/liver --data prepared --cache slices --output results/student
    python benchmarks/student_table.py --run runs/phantom --data phantom --cache slices --output results/phantom

--run gives the settings; its generator draws the pairs. "plain" is taught by labelled slices in looks in which fat
is as black as air; "fat" tells them apart; "labelled" also sees pictures without the organ and is the student of
the package. The others are that with more pairs. Every variant sees as many images; each is trained with every
seed. Figures, on the validation patients at model size: per-patient DICE of the slices as they are, in looks that
training never draws (the same for all), in such looks while also moved, scaled and turned, and with fat always
told from air; and the falsely labelled share of slices without the organ, as they are and in those looks, of slices
corrupted as no training does, and of photographs. OUTPUT.json keeps finished trainings, so a run that was stopped
goes on; OUTPUT.md is the table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sgan_core.appearance import shift_appearance
from sgan_core.cli import app
from sgan_core.cli.progress import Progress
from sgan_core.cohort import load_cohort
from sgan_core.config import AugmentConfig, TrainConfig
from sgan_core.errors import InputError
from sgan_core.evaluation.tables import Table, json_text, markdown, print_table, write_text
from sgan_core.imaging.image import Picture
from sgan_core.imaging.slices import to_model
from sgan_core.looks import AppearanceConfig
from sgan_core.networks.generator import Generator
from sgan_core.networks.segmenter import label_probs, predict
from sgan_core.phantom import phantom_cohort
from sgan_core.training import augment, calibrate
from sgan_core.training.data import UNLABELLED, SliceStore, rng, slices_of_model
from sgan_core.training.evaluate import mean_dice
from sgan_core.training.gan import one_hot
from sgan_core.training.losses import overlap_share
from sgan_core.training.run import Run, read_config, trained_generator
from sgan_core.training.student import StudentTrainer

VARIANTS = ("plain", "fat", "labelled", "selftrained", "generated")
DICE = {"clean": "as they are", "looks": "other looks", "moved": "other looks, moved", "fat": "fat lit"}
FALSE = {
    "empty": "false %, no organ",
    "empty_looks": "the same, other looks",
    "corrupted": "false %, corrupted",
    "patterns": "patterns",
    "photographs": "photographs",
}
PHOTOGRAPHS = ("astronaut", "camera", "coins", "chelsea", "coffee", "rocket", "brick", "grass", "page")
_POSE = AugmentConfig(contrast=0.0, shift=0.1, scale=0.25, rotation_deg=10.0)
_SURE = 0.9  # mean probability of a mask from which on self-training learns from it
_GENERATED = 0.25  # of a batch; pairs that the student does not agree with are left out
_AGREEMENT = 0.8  # DICE of the generated label and the student's own

Test = tuple[np.ndarray, np.ndarray]  # images (N, C, S, S), true labels (N, S, S)


class Generated(StudentTrainer):
    """A part of each batch is drawn by a generator, as far as the student believes its labels."""

    def __init__(self, *args: Any, generator: Generator, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.generator = generator

    @torch.no_grad()
    def pairs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Labelled slices, some of them replaced by generated pairs; these come slowly, over half of the images."""
        image, hot = super().pairs()
        ramp = min(1.0, 2 * self.images / self.config.max_images)
        count = int(_GENERATED * ramp * self.config.batch)
        if not count:
            return image, hot
        numbers = rng(self.seed, self.step_number, "student-pairs")
        pair = self.generator(torch.randn(2 * count, self.generator.config.z_dim, generator=numbers))
        drawn, label = pair.image.clamp(-1.0, 1.0), one_hot(pair.labels(), self.num_classes)
        seen = one_hot(label_probs(self.average, drawn).argmax(dim=1), self.num_classes)
        kept = torch.nonzero(overlap_share(label, seen) >= _AGREEMENT)[:, 0][:count]
        return torch.cat([image[len(kept) :], drawn[kept]]), torch.cat([hot[len(kept) :], label[kept]])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns the exit code."""
    p = app.Parser("student_table", description=__doc__ or "")
    add = p.add_argument
    add("--run", required=True, type=Path, metavar="DIR", help="a training run with a finished GAN stage")
    add("--data", required=True, metavar="SRC", help="its cohort: a prepared folder, or phantom")
    add("--output", required=True, type=Path, metavar="STEM", help="STEM.json and STEM.md are written")
    add("--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help="default: all")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    add("--images", type=int, default=40_000, metavar="N", help="seen by each student (default 40000)")
    add("--cache", type=Path, required=True, metavar="DIR", help="keeps prepared slices")
    return app.run(make_table, p, argv)


def make_table(args: argparse.Namespace) -> None:
    """Train what is missing in the table."""
    config = read_config(args.run / "config.yaml")
    generator, drawn_by = None, None
    if "generated" in args.variants:
        if config.student_size != config.generator.size:
            raise InputError("--variants generated: needs a run whose student has the generator's size.")
        generator, facts = trained_generator(Run(args.run, torch.device("cpu")), config)
        drawn_by = facts["images"]
    cohort = phantom_cohort(labelled=config.labelled) if args.data == "phantom" else load_cohort(args.data)
    size = config.student_size
    store = slices_of_model(cohort, config, args.cache)
    file = args.output.with_suffix(".json")
    head = {"size": size, "images": args.images, "figures": [*DICE, *FALSE]}
    stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    rows: list[dict[str, Any]] = stored.get("rows", []) if {k: stored.get(k) for k in head} == head else []
    tests = Tests(store, config)
    for seed in args.seeds:
        for variant in args.variants:
            gan = drawn_by if variant == "generated" else None
            if any((row["variant"], row["seed"], row["gan_images"]) == (variant, seed, gan) for row in rows):
                continue
            with Progress() as progress:
                net = trained(variant, seed, store, generator, config, args.images, progress)
            found = tests(net)
            rows.append({"variant": variant, "seed": seed, "gan_images": gan, **found})
            write_text(file, json_text(head | {"rows": rows}))
            write_text(args.output.with_suffix(".md"), markdown(table(rows, head)))
            print(f"{variant}, seed {seed}: {found}", file=sys.stderr, flush=True)
    print_table(table(rows, head))


def trained(
    variant: str,
    seed: int,
    store: SliceStore,
    generator: Generator | None,
    config: TrainConfig,
    images: int,
    progress: Progress,
) -> nn.Module:
    """The moving average of a student of that variant."""
    student = replace(config.student_train, max_images=images)
    if variant in ("plain", "fat"):
        student = replace(student, negative_share=0.0)
    if variant == "plain":  # fat is as black as air
        student = replace(student, looks=replace(student.looks, fat=0.0))
    labelled = config.labelled
    if variant == "selftrained":
        teacher = trained("labelled", seed, store, generator, config, images, progress)
        store, labelled = with_own_answers(store, teacher, labelled)
    given = (student, store, torch.device("cpu"))
    settings: dict[str, Any] = {
        "labelled": labelled,
        "num_classes": config.generator.num_classes,
        "seed": seed,
    }
    if variant == "generated":
        assert generator is not None
        trainer: StudentTrainer = Generated(*given, generator=generator, **settings)
    else:
        trainer = StudentTrainer(*given, **settings)
    while trainer.images < images:
        trainer.step()
        progress(trainer.images, images, f"{variant}, seed {seed}")
    return trainer.average


def with_own_answers(store: SliceStore, net: nn.Module, labelled: int) -> tuple[SliceStore, int]:
    """The store with a network's answers as labels of the unlabelled training slices that it is sure of.

    Returns it with the number of patients that have labels now.
    """
    known = store.labelled(labelled)
    train = store.slices_of(split="train")
    asked = np.setdiff1d(train, known)
    probs = predict(net, store.image_batch(asked).numpy())
    answers = probs.argmax(axis=1).astype(np.uint8)
    area = (answers > 0).sum(axis=(1, 2))
    certainty = (probs.max(axis=1) * (answers > 0)).sum(axis=(1, 2)) / np.maximum(1, area)
    sure = (area == 0) | (certainty >= _SURE)
    labels = np.full_like(store.labels, UNLABELLED)
    labels[known] = store.labels[known]
    labels[asked[sure]] = answers[sure]
    # A case a slice, so that slices it is not sure of stay out.
    learns = set(known.tolist()) | set(asked[sure].tolist())
    cases, ranks = [], dict[str, int]()
    for n, position in enumerate(store.case):
        case = store.cohort.cases[position]
        rank = ranks.setdefault(case.patient, len(ranks)) if n in learns else None
        label = case.image if n in learns else case.label if case.split != "train" else None
        cases.append(replace(case, label=label, empty=False, labelled_rank=rank))
    cohort = replace(store.cohort, cases=tuple(cases))
    return SliceStore(store.images, labels, np.arange(len(cases)), cohort), len(ranks)


class Tests:
    """What every student is shown: slices of the validation patients, corrupted ones, photographs."""

    def __init__(self, store: SliceStore, config: TrainConfig) -> None:
        index = store.slices_of(split="validation", with_label=True)
        self.num_classes, self.patients = config.generator.num_classes, store.patients(index)
        clean, truth = store.image_batch(index), store.label_batch(index)
        strong = AppearanceConfig(fat=0.0, curve=1.0)
        drawn = augment.draw(len(index), 1.0, _POSE, rng(0, 0, "student-table-pose"))
        moved, label = augment.warp(clean, *drawn, one_hot(truth, self.num_classes))
        assert label is not None
        true = truth.numpy().astype(np.uint8)
        looks = shift_appearance(clean, rng(0, 0, "student-table-looks"), strong).numpy()
        moved = shift_appearance(moved, rng(1, 0, "student-table-looks"), strong)
        lit = shift_appearance(clean, rng(0, 0, "student-table-fat"), replace(strong, fat=1.0))
        empty = ~(true > 0).any(axis=(1, 2))
        self.sets: dict[str, Test] = {
            "clean": (clean.numpy(), true),
            "looks": (looks, true),
            "moved": (moved.numpy(), label.argmax(dim=1).numpy().astype(np.uint8)),
            "fat": (lit.numpy(), true),
            "empty": (clean.numpy()[empty], true[empty]),
            "empty_looks": (looks[empty], true[empty]),
            "corrupted": corrupted(clean.numpy(), true, calibrate.CORRUPTIONS),
            "patterns": corrupted(clean.numpy(), true, (calibrate.pattern,)),
            "photographs": photographs(config),
        }

    def __call__(self, net: nn.Module) -> dict[str, float]:
        """DICE as the mean over patients and labels; the falsely labelled share of a picture in per cent."""
        found = {}
        for name, (images, truth) in self.sets.items():
            mask = predict(net, images).argmax(axis=1).astype(np.uint8)
            if name in DICE:
                found[name] = mean_dice(mask, truth, self.patients, self.num_classes)
            else:
                found[name] = (
                    100.0 * float(((mask > 0) & (truth == 0)).mean()) if len(truth) else float("nan")
                )
        return found


def corrupted(images: np.ndarray, truth: np.ndarray, kinds: Sequence[calibrate.Corruption]) -> Test:
    """Every third slice, each severely corrupted in all of these ways."""
    random = np.random.default_rng(0)
    pairs = [
        corrupt(images[k], truth[k], random.uniform(*calibrate.SEVERE), random)
        for corrupt in kinds
        for k in range(0, len(images), 3)
    ]
    changed, labels = (np.stack(side) for side in zip(*pairs, strict=True))
    return changed.clip(-1.0, 1.0).astype(np.float32), labels


def photographs(config: TrainConfig) -> Test:
    """Pictures that come with scikit-image, their brightness by percentiles; nothing in them is labelled."""
    from skimage import data

    size, channels = config.student_size, config.generator.image_channels
    intensity = replace(config.intensity, low=None, high=None, unit="", percentiles=(1.0, 99.0))
    arrays = [np.atleast_3d(getattr(data, name)())[..., :3] for name in PHOTOGRAPHS]
    pictures = [Picture(np.ascontiguousarray(array.transpose(2, 0, 1))) for array in arrays]
    images = [
        to_model(one, size=size, intensity=intensity, channels=channels, body=config.body).images
        for one in pictures
    ]
    return np.concatenate(images), np.zeros((len(images), size, size), np.uint8)


def table(rows: Sequence[dict[str, Any]], head: dict[str, Any]) -> Table:
    """Variants down, figures across: mean and standard deviation over seeds."""
    lines = []
    for variant, gan in dict.fromkeys((row["variant"], row["gan_images"]) for row in rows):
        found = [row for row in rows if (row["variant"], row["gan_images"]) == (variant, gan)]
        digits = dict.fromkeys(DICE, 3) | dict.fromkeys(FALSE, 2)
        cells = {name: [row[name] for row in found] for name in digits}
        texts = [f"{np.mean(cells[name]):.{n}f} ± {np.std(cells[name]):.{n}f}" for name, n in digits.items()]
        lines.append(
            (variant if gan is None else f"{variant}, GAN of {gan:,} images", str(len(found)), *texts)
        )
    title = f"Students, {head['size']} px, {head['images']:,} images each"
    return Table(title, ("taught by", "seeds", *DICE.values(), *FALSE.values()), tuple(lines))


if __name__ == "__main__":
    raise SystemExit(main())
