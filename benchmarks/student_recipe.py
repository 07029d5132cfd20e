"""Which settings make the student generalise? One training for each arm and seed, scored on test cohorts.

    python benchmarks/student_recipe.py --modality ct --train runs/data/lits --images 48000 --seeds 0 1 \
        --arm 'base={}' --arm 'gamma={"looks": {"gamma": 0.5, "gamma_log": [-1.0, 1.2]}}' \
        --test T1=runs/data/chaos:test --cache slices --output benchmarks/results/student_looks_ct

An arm is a name and a JSON table of changes to the preset's student_train. Every arm sees as many images of the same
labelled patients. Choose by "validation" (patients of the training set at the student's size, as they are) and
"shifted" (in other looks, the same for all arms: those of the first arm), of X-rays also "framed" (by a collimator);
the test cohorts are only reported:
per-patient DICE on each image's own grid, the mean over labels, of every patient. OUTPUT.json keeps finished
trainings, so a run that was stopped goes on; OUTPUT.md is the table. `--labels lung=1,2` scores classes 1 and 2 of
the model as the test cohorts' label lung.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from model_test import as_the_tests_call_it, asked_classes, merged_label, scans, test_cohort
from student_ideas import IDEAS
from torch import nn

from sgan_core.cli import app
from sgan_core.cli.progress import Progress
from sgan_core.cohort import Case, Cohort, labelled_patients, load_cohort
from sgan_core.config import TrainConfig, merge, preset
from sgan_core.errors import InputError
from sgan_core.evaluation.cases import slices_for_model
from sgan_core.evaluation.tables import Table, json_text, markdown, print_table, write_text
from sgan_core.imaging.slices import to_volume
from sgan_core.labelling import smooth_through_plane
from sgan_core.metrics.per_patient import Evaluation, mean_without_nan
from sgan_core.networks.segmenter import predict
from sgan_core.pieces import largest_pieces
from sgan_core.training.data import SliceStore, rng, slices_of_model
from sgan_core.training.evaluate import StudentWatch, mean_dice
from sgan_core.training.gan import one_hot
from sgan_core.training.student import framed, frames

LOW = 0.9  # DICE of a patient that counts as poor


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns the exit code."""
    p = app.Parser("student_recipe", description=__doc__ or "")
    add = p.add_argument
    add("--modality", required=True, choices=("ct", "mr", "xray", "dermoscopy", "face"), help="kind of image")
    add("--train", required=True, metavar="FOLDER", help="a prepared cohort")
    add("--labelled", type=int, default=8, metavar="N", help="labelled patients (default 8)")
    add("--preset", choices=("tiny", "small", "paper"), default="tiny", help="default: tiny")
    add("--student-size", type=int, metavar="PX", help="default: the preset's")
    add("--images", type=int, default=48_000, metavar="N", help="seen by each student (default 48000)")
    add("--seeds", nargs="+", type=int, default=[0, 1], help="default: 0 1")
    add("--arm", action="append", required=True, metavar="NAME=JSON", help="changes to student_train")
    add("--test", nargs="*", default=[], metavar="TEST", help="NAME=FOLDER:SPLIT, SPLIT may be all")
    add("--rest", metavar="NAME", help="a test more: the labelled training patients beyond --labelled")
    add("--labels", nargs="*", default=[], metavar="NAME=1,2", help="classes that are a label of the tests")
    add(
        "--one-piece", nargs="*", default=[], metavar="LABEL", help="of the tests: their largest piece counts"
    )
    add("--no-body", action="store_true", help="of scans: air beside the body is not cut off")
    add("--cache", type=Path, required=True, metavar="DIR", help="keeps prepared slices")
    add("--output", required=True, type=Path, metavar="STEM", help="STEM.json and STEM.md are written")
    return app.run(make_table, p, argv)


def make_table(args: argparse.Namespace) -> None:
    """Train what is missing in the table."""
    cohort = load_cohort(args.train)
    arms = dict(_arm(text) for text in args.arm)
    merged = dict(merged_label(text) for text in args.labels)
    configs = {name: _config(args, cohort, changes) for name, changes in arms.items()}
    first = next(iter(configs.values()))
    known = tuple(case for case in cohort.cases if case.labelled)
    store = slices_of_model(replace(cohort, cases=known), first, args.cache)
    watch = StudentWatch(store, first.generator.num_classes, first.student_train.looks)
    tests = dict(test_cohort(source) for source in args.test)
    if args.rest in tests:
        raise InputError(f"--rest {args.rest}: a --test has that name.")
    if args.rest:
        tests[args.rest] = _rest(cohort, args.labelled)
    file = args.output.with_suffix(".json")
    head = {
        "train": cohort.name,
        "modality": args.modality,
        "preset": args.preset,
        "labels": args.labels,
        "looks": asdict(first.student_train.looks),  # of "shifted"
        "labelled": args.labelled,
        "images": args.images,
        "size": first.student_size,
        "body": first.body,
        "one_piece": args.one_piece,
        "tests": {name: len({case.patient for case in test.cases}) for name, test in tests.items()},
    }
    head = json.loads(json_text(head))  # as it is stored
    stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    rows: list[dict[str, Any]] = stored.get("rows", []) if {k: stored.get(k) for k in head} == head else []
    for seed in args.seeds:
        for name, config in configs.items():
            if any((row["arm"], row["seed"], row["changes"]) == (name, seed, arms[name]) for row in rows):
                continue
            began = time.process_time()
            with Progress() as progress:
                net = _trained(name, config, arms[name].get("idea", ""), store, seed, progress)
            seconds = round(time.process_time() - began)
            row: dict[str, Any] = {"arm": name, "seed": seed, "changes": arms[name], "cpu_s": seconds}
            row |= watch(net)
            if args.modality == "xray":
                row["framed_dice"] = framed_dice(net, store, configs[name].generator.num_classes)
            row["tests"] = {
                test: dict(scores(net, config, one, merged, _values(one, args.one_piece)))
                for test, one in tests.items()
            }
            rows.append(row)
            write_text(file, json_text(head | {"rows": rows}))
            write_text(args.output.with_suffix(".md"), markdown(table(rows)))
            print(f"{name}, seed {seed}: {_means(row)}", file=sys.stderr, flush=True)
    print_table(table(rows))


def _rest(cohort: Cohort, labelled: int) -> Cohort:
    """The labelled training patients that no student is taught by."""
    taught = labelled_patients(cohort, labelled)
    cases = [c for c in cohort.cases if c.split == "train" and c.labelled and c.patient not in taught]
    if not cases:
        raise InputError(f"--rest: {cohort.name} has no labelled training patient beyond {labelled}.")
    return replace(cohort, cases=tuple(cases))


def _values(cohort: Cohort, names: Sequence[str]) -> list[int]:
    return [label.value for label in cohort.labels if label.name in names]


def _arm(text: str) -> tuple[str, dict[str, Any]]:
    name, _, changes = text.partition("=")
    try:
        values = json.loads(changes)
    except ValueError as error:
        raise InputError(f"--arm {text}: not NAME=JSON ({error})") from error
    return name, values


def _config(args: argparse.Namespace, cohort: Cohort, changes: dict[str, Any]) -> TrainConfig:
    classes = 1 + max(label.value for label in cohort.labels)
    base = preset(args.preset, modality=args.modality, num_classes=classes, student_size=args.student_size)
    own = {
        "labels": [asdict(label) for label in cohort.labels],
        "intensity": asdict(cohort.intensity),
        "squash": cohort.squash,
        "body": base.body and not args.no_body,
        "labelled": args.labelled,
        "student_train": merge(
            {"max_images": args.images}, {k: v for k, v in changes.items() if k != "idea"}
        ),
    }
    return TrainConfig.from_dict(merge(base.to_dict(), own))


def _trained(
    name: str, config: TrainConfig, idea: str, store: SliceStore, seed: int, progress: Progress
) -> nn.Module:
    trainer = IDEAS[idea](
        config.student_train,
        store,
        torch.device("cpu"),
        labelled=config.labelled,
        num_classes=config.generator.num_classes,
        seed=seed,
    )
    while trainer.images < config.student_train.max_images:
        trainer.step()
        progress(trainer.images, config.student_train.max_images, f"{name}, seed {seed}")
    return trainer.segmenter


def framed_dice(net: nn.Module, store: SliceStore, classes: int) -> float:
    """Per-patient DICE of the validation pictures at the student's size, each in a collimator's frame."""
    index = store.slices_of(split="validation", with_label=True)
    truth = one_hot(store.label_batch(index), classes)
    seen = frames(len(index), store.size, 1.0, rng(0, 0, "framed-validation"))
    images, label = framed(store.image_batch(index), truth, seen)
    drawn, true = (part.argmax(1).astype(np.uint8) for part in (predict(net, images.numpy()), label.numpy()))
    return mean_dice(drawn, true, store.patients(index), classes)


def scores(
    net: nn.Module,
    config: TrainConfig,
    cohort: Cohort,
    merged: dict[str, tuple[int, ...]],
    one_piece: Sequence[int] = (),
) -> Iterator[tuple[str, dict[str, float]]]:
    """Each patient's DICE by label name, on the images' own grids.

    merged: which classes of the model are a label of the cohort; for others the model's label of the same name.
    one_piece: the cohort's labels of which only the largest piece counts.
    """
    asked = asked_classes(config, cohort, merged)
    evaluation = Evaluation(asked, surfaces=False)
    for cases in scans(cohort):
        labels, truth = segmented(net, config, cases, cohort)
        drawn = as_the_tests_call_it(labels, asked)
        evaluation.add(cases[0].patient, largest_pieces(drawn, [v for v in asked if v in one_piece]), truth)
    by_patient: dict[str, dict[str, float]] = {}
    called = {label.value: label.name for label in cohort.labels}
    for one in evaluation.results():
        by_patient.setdefault(one.patient, {})[called[one.label]] = one.scores.dice
    yield from by_patient.items()


def segmented(
    net: nn.Module, config: TrainConfig, cases: Sequence[Case], cohort: Cohort
) -> tuple[np.ndarray, np.ndarray]:
    """The label map of a volume, a picture or the slices (N, H, W) of a volume, as a student's, and the truth."""
    found = [slices_for_model(case, cohort, config) for case in cases]
    probs = predict(net, np.concatenate([stack.images for stack, _, _ in found]))
    if len(cases) > 1 or found[0][0].grid is not None:
        probs = smooth_through_plane(probs)
    if len(cases) == 1:
        return to_volume(probs, found[0][0]), found[0][1]
    labels = [to_volume(probs[k : k + 1], stack) for k, (stack, _, _) in enumerate(found)]
    return np.stack(labels), np.stack([truth for _, truth, _ in found])


def _means(row: dict[str, Any]) -> dict[str, float]:
    """The figures of one training: the mean over patients (of the mean over labels), and what is poor."""
    found = {"validation": row["student_dice"]}
    if row["student_shifted_dice"] is not None:  # not measured under the looks of the table
        found["shifted"] = row["student_shifted_dice"]
    if "framed_dice" in row:
        found["framed"] = row["framed_dice"]
    for test, patients in row["tests"].items():
        values = [mean_without_nan(labels.values())[0] for labels in patients.values()]
        found[test] = mean_without_nan(values)[0]
        found[f"{test} below {LOW}"] = float(np.mean([value < LOW for value in values]))
        found[f"{test} worst"] = float(np.nanmin(values))
    return {name: round(value, 4) for name, value in found.items()}


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Arms down, figures across: mean and half the range over seeds."""
    columns = list(dict.fromkeys(name for row in rows for name in _means(row)))
    lines = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        means = [_means(row) for row in rows if row["arm"] == arm]
        cells = []
        for name in columns:
            values = [found[name] for found in means if name in found]
            spread = (max(values) - min(values)) / 2
            cells.append(f"{np.mean(values):.3f} ± {spread:.3f}" if len(values) > 1 else f"{values[0]:.3f}")
        lines.append([arm, str(len(means)), *cells])
    return Table("Students", ("arm", "seeds", *columns), tuple(map(tuple, lines)))


if __name__ == "__main__":
    raise SystemExit(main())
