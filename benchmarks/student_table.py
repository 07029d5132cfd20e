"""What should teach the student? Labelled slices alone, its own answers to unlabelled ones, or generated pairs.

    python benchmarks/student_table.py --run runs/liver --data prepared --output results/student_liver
    python benchmarks/student_table.py --run runs/phantom --data phantom --output results/student_phantom

--run is a training run whose generator draws the pairs. Every variant sees as many images; each is trained with
every seed. Figures: per-patient DICE on the validation patients at model size, of the slices as they are, in looks
that training never draws (the same for all), and in such looks while also moved, scaled and turned. OUTPUT.json
keeps finished trainings, so a run that was stopped goes on; OUTPUT.md is the table.
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

from sgan_core.appearance import AppearanceConfig, shift_appearance
from sgan_core.cli import app
from sgan_core.cli.progress import Progress
from sgan_core.cohort import load_cohort
from sgan_core.config import AugmentConfig, StudentTrainConfig, TrainConfig
from sgan_core.evaluation.tables import Table, json_text, markdown, print_table, write_text
from sgan_core.networks.generator import Generator
from sgan_core.networks.segmenter import predict
from sgan_core.phantom import phantom_cohort
from sgan_core.training import augment
from sgan_core.training.data import UNLABELLED, SliceStore, open_store, rng
from sgan_core.training.evaluate import mean_dice
from sgan_core.training.gan import one_hot
from sgan_core.training.run import Run, read_config, trained_generator
from sgan_core.training.student import StudentTrainer

VARIANTS = ("labelled", "selftrained", "generated")
FIGURES = {"clean": "as they are", "looks": "other looks", "moved": "other looks, moved"}
_POSE = AugmentConfig(contrast=0.0, shift=0.1, scale=0.25, rotation_deg=10.0)
_SURE = 0.9  # mean probability of a mask from which on self-training learns from it


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
    generator, facts = trained_generator(Run(args.run, torch.device("cpu")), config)
    cohort = phantom_cohort(labelled=config.labelled) if args.data == "phantom" else load_cohort(args.data)
    cohort = replace(cohort, squash=config.squash)
    size, channels = config.generator.size, config.generator.image_channels
    store = open_store(cohort, args.cache, size=size, channels=channels, intensity=config.intensity)
    file = args.output.with_suffix(".json")
    head = {"size": size, "images": args.images, "gan_images": facts["images"]}
    stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    rows: list[dict[str, Any]] = stored.get("rows", []) if {k: stored.get(k) for k in head} == head else []
    tests = test_sets(store, config.generator.num_classes)
    for seed in args.seeds:
        for variant in args.variants:
            if any(row["variant"] == variant and row["seed"] == seed for row in rows):
                continue
            with Progress() as progress:
                net = trained(variant, seed, store, generator, config, args.images, progress)
            found = {name: dice(net, *test) for name, test in tests.items()}
            rows.append({"variant": variant, "seed": seed, **found})
            write_text(file, json_text(head | {"rows": rows}))
            write_text(args.output.with_suffix(".md"), markdown(table(rows, head)))
            print(f"{variant}, seed {seed}: {found}", file=sys.stderr, flush=True)
    print_table(table(rows, head))


def trained(
    variant: str,
    seed: int,
    store: SliceStore,
    generator: Generator,
    config: TrainConfig,
    images: int,
    progress: Progress,
) -> nn.Module:
    """The moving average of a student of that variant."""
    share = StudentTrainConfig.generated_share if variant == "generated" else 0.0
    student = replace(config.student_train, max_images=images, ramp_images=images // 2, generated_share=share)
    labelled = config.labelled
    if variant == "selftrained":
        teacher = trained("labelled", seed, store, generator, config, images, progress)
        store, labelled = with_own_answers(store, teacher, labelled)
    trainer = StudentTrainer(
        student,
        store,
        torch.device("cpu"),
        generator if share else None,
        labelled=labelled,
        num_classes=config.generator.num_classes,
        seed=seed,
    )
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
    probs = predict(net, store.images[asked].astype(np.float32))
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


def test_sets(
    store: SliceStore, num_classes: int
) -> dict[str, tuple[np.ndarray, np.ndarray, list[str], int]]:
    """For each figure: images, true labels, patients, number of classes."""
    index = store.slices_of(split="validation", with_label=True)
    clean, patients = store.image_batch(index), store.patients(index)
    truth = store.label_batch(index)
    always = AppearanceConfig(curve=1.0)
    drawn = augment.draw(len(index), 1.0, _POSE, rng(0, 0, "student-table-pose"))
    moved, label = augment.warp(clean, *drawn, one_hot(truth, num_classes))
    assert label is not None
    images = {
        "clean": clean,
        "looks": shift_appearance(clean, rng(0, 0, "student-table-looks"), always),
        "moved": shift_appearance(moved, rng(1, 0, "student-table-looks"), always),
    }
    truths = {"clean": truth, "looks": truth, "moved": label.argmax(dim=1)}
    return {
        name: (image.numpy(), truths[name].numpy().astype(np.uint8), patients, num_classes)
        for name, image in images.items()
    }


def dice(
    net: nn.Module, images: np.ndarray, truth: np.ndarray, patients: list[str], num_classes: int
) -> float:
    """Per-patient DICE at model size, the mean over patients and labels."""
    return mean_dice(predict(net, images).argmax(axis=1).astype(np.uint8), truth, patients, num_classes)


def table(rows: Sequence[dict[str, Any]], head: dict[str, Any]) -> Table:
    """Variants down, figures across: mean and standard deviation over seeds."""
    lines = []
    for variant in VARIANTS:
        found = [row for row in rows if row["variant"] == variant]
        if found:
            cells = [[row[name] for row in found] for name in FIGURES]
            texts = [f"{np.mean(cell):.3f} ± {np.std(cell):.3f}" for cell in cells]
            lines.append((variant, str(len(found)), *texts))
    title = (
        f"Students, {head['size']} px, {head['images']:,} images each, GAN of {head['gan_images']:,} images"
    )
    return Table(title, ("taught by", "seeds", *FIGURES.values()), tuple(lines))


if __name__ == "__main__":
    raise SystemExit(main())
