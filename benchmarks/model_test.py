"""How good is a model on pictures and patients that it never saw? Every case through the door of sgan-segment.

    python benchmarks/model_test.py --model chest-xray-thorax --labels lung=1,2 \
        --test JSRT=runs/data/jsrt-test:all Montgomery=runs/data/montgomery:all --output benchmarks/results/chest

Per patient, pooled over the patient's files, on each image's own grid: DICE, Jaccard, and for volumes with millimetres
HD95 and NSD (slices that come as pictures are a volume without millimetres); what the model said of its mask (ok or
review). STEM.json has every patient, STEM.md the means, the share of patients below 0.9 (DICE) and 0.5 (Jaccard) and
the worst. `--labels lung=1,2`: the model's classes 1 and 2
are what the tests call lung; other labels go by their name.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sgan_core.bundle import Bundle, load_bundle
from sgan_core.cli import app
from sgan_core.cli.progress import Progress
from sgan_core.cohort import Case, Cohort, Intensity, load_cohort
from sgan_core.config import TrainConfig
from sgan_core.device import choose_device
from sgan_core.errors import InputError
from sgan_core.evaluation.cases import read_for_model
from sgan_core.evaluation.tables import Table, json_text, markdown, number, print_table, write_text
from sgan_core.imaging.grid import Grid
from sgan_core.imaging.image import Picture, Volume
from sgan_core.imaging.intensity import luminance
from sgan_core.imaging.slices import labels_to_model
from sgan_core.labelling import QUALITIES, SegmentConfig
from sgan_core.metrics.per_patient import Evaluation, dice_from_counts, mean_without_nan
from sgan_core.segment import segment_volume
from sgan_core.sheets import colours_of, outline, write_sheet

POOR_DICE, POOR_JACCARD = 0.9, 0.5
FURTHEST = 2  # numbers between neighbouring slices of a volume that comes as pictures
METRICS = ("dice", "jaccard", "hd95_mm", "nsd")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns the exit code."""
    p = app.Parser("model_test", description=__doc__ or "")
    add = p.add_argument
    add("--model", required=True, metavar="BUNDLE", help="a trained model")
    add("--test", nargs="+", required=True, metavar="TEST", help="NAME=FOLDER:SPLIT, SPLIT may be all")
    add("--labels", nargs="*", default=[], metavar="NAME=1,2", help="classes that are a label of the tests")
    add("--quality", choices=QUALITIES, default="fast", help="the mask is the same (default fast)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: auto")
    add(
        "--sheet", type=Path, metavar="PNG", help="pictures of the first test: truth above, the model's below"
    )
    add("--output", required=True, type=Path, metavar="STEM", help="STEM.json and STEM.md are written")
    return app.run(make_table, p, argv)


def make_table(args: argparse.Namespace) -> None:
    """Score the model on one test after the other; both files are written after each."""
    bundle = load_bundle(args.model, choose_device(args.device))
    merged = dict(merged_label(text) for text in args.labels)
    stored: dict[str, Any] = {"model": bundle.name, "hash": bundle.hash, "quality": args.quality, "tests": {}}
    for source in args.test:
        name, cohort = test_cohort(source)
        seen: list[Seen] = []
        stored["tests"][name] = scored(bundle, cohort, merged, args.quality, name, seen)
        if args.sheet and len(stored["tests"]) == 1:
            write_pictures(args.sheet, seen, cohort)
        write_text(args.output.with_suffix(".json"), json_text(stored))
        write_text(args.output.with_suffix(".md"), markdown(table(stored["tests"])))
    print_table(table(stored["tests"]))


def merged_label(text: str) -> tuple[str, tuple[int, ...]]:
    """NAME=1,2 -> the label of the tests and the model's classes that are it."""
    name, _, values = text.partition("=")
    try:
        return name, tuple(int(value) for value in values.split(","))
    except ValueError:
        raise InputError(f"--labels {text}: not NAME=1,2") from None


def test_cohort(source: str) -> tuple[str, Cohort]:
    """NAME=FOLDER:SPLIT -> the name and the labelled cases of that split; "all" is every case."""
    name, _, where = source.partition("=")
    path, _, split = where.rpartition(":")
    cohort = load_cohort(path)
    cases = tuple(case for case in cohort.cases if case.labelled and split in (case.split, "all"))
    if not cases:
        raise InputError(f"--test {source}: no labelled case of that split. Give another, e.g. {path}:all.")
    return name, replace(cohort, cases=cases)


def scans(cohort: Cohort) -> list[list[Case]]:
    """The cases one by one, but neighbouring slices of a volume that come as pictures together."""
    places = {case.id: place_of(case) for case in cohort.cases}
    distance = dict.fromkeys((place[0] for place in places.values() if place), FURTHEST)
    for one, two in itertools.pairwise(sorted(place for place in places.values() if place)):
        if one[0] == two[0]:
            distance[one[0]] = min(two[1] - one[1], distance[one[0]])
    grouped: list[list[Case]] = []
    for case in sorted(cohort.cases, key=lambda case: places[case.id] or (case.id, 0)):
        place, before = places[case.id], places[grouped[-1][-1].id] if grouped else None
        if place and before and (place[0], place[1] - distance.get(place[0], 0)) == before:
            grouped[-1].append(case)
        else:
            grouped.append([case])
    return grouped


def place_of(case: Case) -> tuple[str, int] | None:
    """The volume and number of a slice; None for what is no slice."""
    found = re.fullmatch(r"(.*)_slice_(\d+)", case.id)
    return (found[1], int(found[2])) if found else None


@dataclass(frozen=True, eq=False)
class Seen:
    """A picture with both masks at the model's size."""

    dice: float  # of all labels together
    image: np.ndarray  # (C, S, S) in [-1, 1]
    truth: np.ndarray  # (S, S)
    drawn: np.ndarray  # (S, S)


def scored(
    bundle: Bundle,
    cohort: Cohort,
    merged: dict[str, tuple[int, ...]],
    quality: str,
    name: str,
    seen: list[Seen] | None = None,
) -> dict[str, Any]:
    """By patient: the figures of each label by name, and what the model said of its masks.

    seen: gets the pictures (not the slices of volumes).
    """
    asked = asked_classes(bundle.config, cohort, merged)
    called = {label.value: label.name for label in cohort.labels}
    evaluation, status = Evaluation(asked), dict[str, list[str]]()
    with Progress() as progress:
        for done, cases in enumerate(together := scans(cohort)):
            progress(done, len(together), name)
            patient = cases[0].patient
            image, truth, intensity = _read(cases, cohort, bundle.config)
            known = replace(bundle, config=replace(bundle.config, intensity=intensity))
            found = segment_volume(image, known, SegmentConfig(quality))
            drawn = as_the_tests_call_it(found.labels, asked)
            measured = isinstance(image, Volume) and len(cases) == 1
            spacing = image.grid.spacing_mm.tolist() if measured else None
            evaluation.add(patient, drawn, truth, spacing_mm=spacing)
            status.setdefault(patient, []).append(found.trust.status)
            if seen is not None and not isinstance(image, Volume):
                right = ((drawn == truth) & (truth > 0)).sum()
                dice = dice_from_counts(right, (drawn > 0).sum(), (truth > 0).sum())
                masks = (labels_to_model(mask, found.stack)[0] for mask in (truth, drawn))
                seen.append(Seen(dice, found.stack.images[0], *masks))
    patients: dict[str, Any] = {patient: {"trust": said, "labels": {}} for patient, said in status.items()}
    for one in evaluation.results():
        figures = {
            metric: round(value, 5) for metric, value in one.scores.as_dict().items() if metric in METRICS
        }
        patients[one.patient]["labels"][called[one.label]] = figures
    return patients


def _read(
    cases: Sequence[Case], cohort: Cohort, config: TrainConfig
) -> tuple[Volume | Picture, np.ndarray, Intensity]:
    """Image, true classes and intensity rule of a case; slices of a volume become one, of unknown voxel size."""
    read = [read_for_model(case, cohort, config)[:3] for case in cases]
    if len(read) == 1:
        return read[0]
    array, truth = (  # seen as slices are shown: the patient's right at the left, the front above, feet first
        np.stack([one.T for one in slices], axis=2)
        for slices in ([luminance(image.array)[0] for image, _, _ in read], [truth for _, truth, _ in read])
    )
    return Volume(array, Grid(array.shape, np.diag([-1.0, -1.0, 1.0, 1.0]))), truth, read[0][2]


def write_pictures(path: Path, seen: list[Seen], cohort: Cohort, each: int = 6) -> None:
    """The worst, then the best: truth above, the model's mask below."""
    ranked = sorted(seen, key=lambda one: one.dice)
    colours = colours_of(cohort.labels)
    rows = []
    for part in (ranked[:each], ranked[-each:]):
        rows += [
            [outline(one.image, mask, colours, scale=1) for one, mask in zip(part, masks, strict=True)]
            for masks in ([one.truth for one in part], [one.drawn for one in part])
        ]
    write_sheet(path, rows)


def asked_classes(
    config: TrainConfig, cohort: Cohort, merged: dict[str, tuple[int, ...]]
) -> dict[int, tuple[int, ...]]:
    """A cohort's label value -> the model's classes that are it: ``merged``, or the label of the same name."""
    classes = {label.name: (label.value,) for label in config.labels} | merged
    asked = {label.value: classes[label.name] for label in cohort.labels if label.name in classes}
    if not asked:
        raise InputError(f"{cohort.name}: none of its labels is one of the model's; give --labels.")
    return asked


def as_the_tests_call_it(labels: np.ndarray, asked: dict[int, tuple[int, ...]]) -> np.ndarray:
    """A model's label map in the values of a cohort; classes that nobody asked for are background."""
    drawn = np.zeros_like(labels)
    for value, own in asked.items():
        drawn[np.isin(labels, own)] = value
    return drawn


def table(tests: dict[str, Any]) -> Table:
    """A line for each test and label."""
    lines = []
    for test, patients in tests.items():
        names = dict.fromkeys(name for one in patients.values() for name in one["labels"])
        for name in names:
            found = [one["labels"][name] for one in patients.values()]
            dice, jaccard = ([one[metric] for one in found] for metric in ("dice", "jaccard"))
            hd95 = mean_without_nan([one["hd95_mm"] for one in found])[0]
            sent = np.mean(["review" in one["trust"] for one in patients.values()])
            cells = [
                number(mean_without_nan(dice)[0]),
                number(mean_without_nan(jaccard)[0]),
                f"{np.mean([value < POOR_DICE for value in dice]):.0%}",
                f"{np.mean([value < POOR_JACCARD for value in jaccard]):.0%}",
                number(float(np.nanmin(dice))),
                number(hd95, 1),
                f"{sent:.0%}",
            ]
            lines.append((test, name, str(len(found)), *cells))
    header = (
        "test",
        "label",
        "patients",
        "DICE",
        "Jaccard",
        f"DICE < {POOR_DICE}",
        f"Jaccard < {POOR_JACCARD}",
    )
    return Table("Patients no training saw", (*header, "worst DICE", "HD95 mm", "to review"), tuple(lines), 2)


if __name__ == "__main__":
    sys.exit(main())
