"""The cross-modal table: the generator's methods beside U-Nets, on patients that training never saw.

    python benchmarks/cross_modal.py --model phantom-ct-liver --train phantom --test phantom --output results/phantom
    python benchmarks/cross_modal.py --model runs/lits/bundle --train lits --output results/liver \\
        --test CT=lits:validation T1-in=chaos:test:chaos-mr-1,chaos-mr-37

Writes OUTPUT.json, where the rows of other methods and seeds stay, and OUTPUT.md. The U-Nets learn from the labelled
patients of the bundle in the cohort of --train, at its size. Scores are per patient, all slices of a patient
together, on the native grid. ``ceiling`` is the truth brought to model size and back: the most that a method can
reach at this size. Phantom test patients: odd seeds are of a family of liver shapes that training does not draw.

A second table says what a method labels where nothing is: the area on slices whose truth is empty (FP), and the
volume of pieces that lie on one slice alone (isolated): flicker, beside the tips of the organ itself, which the row of
the ceiling has too. Pictures have no millimetres: "–". Rows stored before these were measured show "–" until run again.

Methods: ceiling; unet, unet_intensity (the same under random looks); student; encoder ("Ours-NO"); the reconstruction
terms of sgan-segment, each as inversion alone ("paper" is "Ours"); fusion: the mean of student and inversion; standard:
what sgan-segment gives, which for volumes also lets neighbouring slices agree.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nibabel.orientations import io_orientation
from scipy import ndimage
from torch import nn

from sgan_core.bundle import MANIFEST, Bundle, load_bundle
from sgan_core.cli import app
from sgan_core.cli.progress import Progress
from sgan_core.cohort import Cohort, load_cohort
from sgan_core.device import choose_device, describe
from sgan_core.errors import InputError
from sgan_core.evaluation.baselines import unet
from sgan_core.evaluation.cases import slices_for_model
from sgan_core.evaluation.tables import (
    MethodRow,
    Table,
    json_text,
    markdown,
    method_table,
    number,
    print_table,
    table_json,
    write_text,
)
from sgan_core.imaging.grid import Grid
from sgan_core.imaging.slices import SliceStack, enlarged, labels_to_model, to_volume
from sgan_core.labelling import RECONSTRUCTIONS, SegmentConfig, label_slices, smooth_through_plane
from sgan_core.metrics.per_patient import NAN, Evaluation, mean_without_nan
from sgan_core.networks.segmenter import predict
from sgan_core.phantom import DOMAINS, phantom_cohort
from sgan_core.training.data import slices_of_model

INVERSIONS = tuple(f"inversion_{name}" for name in RECONSTRUCTIONS if name != "auto")
METHODS = ("ceiling", *unet.METHODS, "student", "encoder", *INVERSIONS, "fusion", "standard")
OVERLAP = ("dice", "jaccard")
STRAY = {"false_positive_mm2": "FP, mm² a slice", "isolated_ml": "isolated, mL"}  # as stored, as shown


@dataclass(frozen=True, eq=False)
class Patient:
    """One patient's slices, which may lie in several files."""

    name: str
    stacks: tuple[SliceStack, ...]
    truths: tuple[np.ndarray, ...]  # classes, on each file's own grid
    foreign: str | None  # why intensities cannot mean what they meant in training

    @property
    def images(self) -> np.ndarray:
        """All slices, (N, C, S, S)."""
        return np.concatenate([stack.images for stack in self.stacks])


# A patient to label probabilities (N, K, S, S). Only the ceiling looks at the truth.
Method = Callable[[Patient], np.ndarray]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns the exit code."""
    p = app.Parser("cross_modal", description=__doc__ or "")
    add = p.add_argument
    add("--model", required=True, metavar="BUNDLE", help="a trained model")
    add("--train", required=True, metavar="SRC", help="its training cohort: a prepared folder, or phantom")
    add(
        "--test",
        required=True,
        nargs="+",
        metavar="TEST",
        help="NAME=FOLDER:SPLIT[:PATIENT,PATIENT...], or phantom",
    )
    add("--output", required=True, type=Path, metavar="STEM", help="STEM.json and STEM.md are written")
    add("--methods", nargs="+", choices=METHODS, default=METHODS, help="default: all")
    add("--patients", type=int, default=30, metavar="N", help="phantom test patients a domain (default 30)")
    add("--steps", type=int, metavar="N", help="of inversion, for each slice (default: the model's)")
    add("--unet-steps", type=int, default=unet.UnetConfig.steps, metavar="N", help="default: %(default)s")
    add("--seed", type=int, default=0, help="of the U-Nets (default 0)")
    add("--cache", type=Path, metavar="DIR", help="keeps prepared training slices (default: not kept)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: auto")
    return app.run(make_table, p, argv)


def weights_hash(bundle: Bundle) -> str:
    """What the masks depend on: calibrating trust anew leaves the rows of a model as they are."""
    files = json.loads((bundle.folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    weights = [files[path] for path in sorted(files) if path.startswith("models/")]
    return hashlib.sha256("".join(weights).encode()).hexdigest()


def make_table(args: argparse.Namespace) -> None:
    """Score the asked methods one by one; both files are written after each."""
    if args.patients < 1:
        raise InputError(f"--patients {args.patients}: give at least 1.")
    bundle = load_bundle(args.model, choose_device(args.device))
    tests = dict(test for source in args.test for test in test_cases(source, args.patients))
    for cohort in tests.values():
        require_same_classes(cohort, bundle)
    file = args.output.with_suffix(".json")
    counts = ", ".join(f"{domain} {len(names(cohort))}" for domain, cohort in tests.items())
    head = {"scale": f"{bundle.config.student_size} px, patients: {counts}", "model": weights_hash(bundle)}
    rows = stored_rows(file, head)
    say(f"{bundle.name}, {head['scale']}, {describe(bundle.device)}")
    for name in args.methods:
        began = time.monotonic()
        method = prepared(name, bundle, args)
        if method is None:
            say(f"{name}: the model has none")
            continue
        new = [
            row
            for domain, cohort in tests.items()
            for row in score(name, method, domain, cohort, bundle, args)
        ]
        replaced = {_key(row) for row in new}
        rows = sorted([row for row in rows if _key(row) not in replaced] + new, key=_place)
        write_text(file, json_text(table_json("cross_modal", head["scale"], rows) | head))
        write_text(args.output.with_suffix(".md"), text(rows, bundle))
        means = ", ".join(f"{row.domain} {row.mean:.3f}" for row in new if row.metric == "dice")
        say(f"{name}: DICE {means} ({time.monotonic() - began:.0f} s)")
    for table in main_tables(rows):
        print_table(table)
    if unmeasured := without_stray(rows):
        say(f"stored without false positives and isolated pieces, run again to add them: {unmeasured}")
    say(f"{file} is written, with a table of the same name in Markdown")


def say(line: str) -> None:
    """Progress goes to stderr: stdout is for the table."""
    print(line, file=sys.stderr, flush=True)


# --- patients --------------------------------------------------------------------------------------


def test_cases(source: str, patients: int) -> Iterator[tuple[str, Cohort]]:
    """The cohorts behind an argument of --test with the names of their domains, reduced to the cases to score."""
    if source == "phantom":
        for domain in DOMAINS:
            cohort = phantom_cohort(patients=0, labelled=0, validation=0, test=patients, domain=domain)
            yield domain, cohort
        return
    name, _, where = source.rpartition("=")
    path, split, chosen = [*where.split(":", 2), "", ""][:3]
    cohort, wanted = load_cohort(path), set(filter(None, chosen.split(",")))
    cases = tuple(
        case
        for case in cohort.cases
        if case.split == (split or "test")
        and (case.label or case.empty)
        and (not wanted or case.patient in wanted)
    )
    if not cases:
        raise InputError(f"{source}: no labelled case of that split. Give another, e.g. {path}:validation.")
    yield name or cohort.name, replace(cohort, cases=cases)


def require_same_classes(cohort: Cohort, bundle: Bundle) -> None:
    """Raises InputError when the classes of a cohort do not mean to the model what they mean to the cohort."""
    theirs, ours = (
        [(one.value, one.name) for one in labels] for labels in (cohort.labels, bundle.config.labels)
    )
    if theirs != ours:
        shown, drawn = (", ".join(f"{value} {name}" for value, name in classes) for classes in (theirs, ours))
        raise InputError(
            f"cohort {cohort.name} labels {shown}, the model {bundle.name} draws {drawn}. Prepare the data set with "
            "the model's classes, e.g. btcv-abdomen or btcv-liver."
        )


def names(cohort: Cohort) -> list[str]:
    """The patients, in order."""
    return list(dict.fromkeys(case.patient for case in cohort.cases))


def read_patients(cohort: Cohort, bundle: Bundle) -> Iterator[Patient]:
    """Each patient's slices as ``segment_volume`` sees them: every method gets the same input."""
    for name in names(cohort):
        cases = [case for case in cohort.cases if case.patient == name]
        stacks, truths, foreign = zip(
            *(slices_for_model(case, cohort, bundle.config) for case in cases), strict=True
        )
        yield Patient(name, stacks, truths, foreign[0])


# --- methods ---------------------------------------------------------------------------------------


def prepared(name: str, bundle: Bundle, args: argparse.Namespace) -> Method | None:
    """The method of a name, trained when it needs that; None when the model lacks it."""
    if name == "ceiling":
        return lambda patient: ceiling(patient, bundle)
    if name in unet.METHODS:
        net = trained_unet(name, bundle, args)
        return lambda patient: predict(net, patient.images)
    if name == "student":
        return None if bundle.student is None else lambda patient: predict(bundle.student, patient.images)  # type: ignore[arg-type]
    if name == "fusion":
        return lambda patient: fused(patient, bundle, args.steps)
    # The mask of standard is that of fast: what differs is how well it is checked.
    config = {"encoder": SegmentConfig(encoder_only=True), "standard": SegmentConfig("fast")}.get(name)
    if config is None:
        config = SegmentConfig(reconstruction=name.removeprefix("inversion_"), steps=args.steps)

    def labelled(patient: Patient) -> np.ndarray:
        found = label_slices(patient.images, bundle, config, foreign=patient.foreign).label_probs
        if name != "standard":
            return found
        ends = np.cumsum([len(stack.images) for stack in patient.stacks])
        parts = zip(np.split(found, ends[:-1]), patient.stacks, strict=True)
        return np.concatenate(
            [smooth_through_plane(p) if stack.grid is not None else p for p, stack in parts]
        )

    return labelled


def fused(patient: Patient, bundle: Bundle, steps: int | None) -> np.ndarray:
    """The mean of the student's and inversion's probabilities."""
    found = label_slices(patient.images, bundle, SegmentConfig(steps=steps), foreign=patient.foreign)
    student = found.inverted_probs if found.student_probs is None else found.student_probs
    inverted = enlarged(torch.from_numpy(found.inverted_probs).float(), student.shape[-1]).numpy()
    return (student.astype(np.float32) + inverted) / 2


def ceiling(patient: Patient, bundle: Bundle) -> np.ndarray:
    """The truth brought to model size, as probabilities of 0 and 1."""
    small = np.concatenate(
        [labels_to_model(*pair[::-1]) for pair in zip(patient.stacks, patient.truths, strict=True)]
    )
    classes = np.arange(bundle.config.generator.num_classes)
    return (small[:, None] == classes[:, None, None]).astype(np.float32)


def trained_unet(name: str, bundle: Bundle, args: argparse.Namespace) -> nn.Module:
    """A U-Net trained on the patients whose labels the bundle has seen."""
    labelled, generator = bundle.config.labelled, bundle.config.generator
    cohort = phantom_cohort(labelled=labelled) if args.train == "phantom" else load_cohort(args.train)
    require_same_classes(cohort, bundle)
    known = tuple(
        case for case in cohort.cases if case.label or case.empty
    )  # the unlabelled are of no use to it
    config = unet.UnetConfig(steps=args.unet_steps, appearance=unet.METHODS[name], seed=args.seed)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary, Progress() as progress:
        folder = args.cache or Path(temporary)
        store = slices_of_model(replace(cohort, cases=known), bundle.config, folder)
        return unet.train_unet(
            store,
            config,
            labelled=labelled,
            num_classes=generator.num_classes,
            device=bundle.device,
            on_progress=progress,
        )


def score(
    name: str, method: Method, domain: str, cohort: Cohort, bundle: Bundle, args: argparse.Namespace
) -> list[MethodRow]:
    """OVERLAP and STRAY of each patient of a domain, the mean over labels: a row for each metric.

    A label that a patient lacks and the method does not draw has no DICE: the mean is that of the others.
    """
    labelled = 0 if name == "ceiling" else bundle.config.labelled
    seed = {"ceiling": 0}.get(name, args.seed if name in unet.METHODS else bundle.config.seed)
    values = [label.value for label in bundle.config.labels]
    evaluation = Evaluation(values, surfaces=False)
    found: dict[str, dict[str, float]] = {metric: {} for metric in (*OVERLAP, *STRAY)}
    count = len(names(cohort))
    with Progress() as progress:
        for done, patient in enumerate(read_patients(cohort, bundle)):
            progress(done, count, f"{name}, {domain}")
            labelmaps = native_labels(method(patient), patient)
            for labelmap, truth in zip(labelmaps, patient.truths, strict=True):
                evaluation.add(patient.name, labelmap, truth)
            areas = [false_positive_mm2(labelmaps, patient, value) for value in values]
            volumes = [isolated_ml(labelmaps, patient, value) for value in values]
            for metric, figures in zip(STRAY, (areas, volumes), strict=True):
                found[metric][patient.name] = mean_without_nan(figures)[0]
    for metric in OVERLAP:
        by_label: dict[str, list[float]] = {}
        for result in evaluation.results():
            by_label.setdefault(result.patient, []).append(getattr(result.scores, metric))
        found[metric] = {patient: mean_without_nan(figures)[0] for patient, figures in by_label.items()}
    return [MethodRow(name, labelled, seed, domain, metric, patients) for metric, patients in found.items()]


def native_labels(probs: np.ndarray, patient: Patient) -> list[np.ndarray]:
    """Probabilities (N, K, S, S) of all slices of a patient as the label map of each file, on its own grid."""
    ends = np.cumsum([len(stack.images) for stack in patient.stacks])
    parts = np.split(probs, ends[:-1])
    return [to_volume(*pair) for pair in zip(parts, patient.stacks, strict=True)]


# --- what is labelled where nothing is ---------------------------------------------------------------


def slice_axis(grid: Grid) -> int:
    """The array axis along which ``to_model`` cuts slices: the one nearest to feet-head."""
    return io_orientation(grid.affine)[:, 0].tolist().index(2)


def false_positive_mm2(labelmaps: Sequence[np.ndarray], patient: Patient, label: int) -> float:
    """Area of a label on the patient's slices whose truth has none of it: mm2 a slice, their mean.

    labelmaps: classes on each file's own grid. Pictures, without millimetres, are left out. NaN without such
    slices.
    """
    areas: list[float] = []
    for labelmap, truth, stack in zip(labelmaps, patient.truths, patient.stacks, strict=True):
        if stack.grid is None:
            continue
        axis = slice_axis(stack.grid)
        plane = tuple(other for other in range(3) if other != axis)
        empty = ~(truth == label).any(axis=plane)
        pixel_mm2 = math.prod(stack.grid.spacing_mm[list(plane)].tolist())
        areas += (pixel_mm2 * np.count_nonzero(labelmap == label, axis=plane)[empty]).tolist()
    return mean_without_nan(areas)[0]


def isolated_ml(labelmaps: Sequence[np.ndarray], patient: Patient, label: int) -> float:
    """Volume in mL of a label's pieces that lie on one slice alone, over all volumes of the patient.

    A piece is what hangs together by voxel faces (6-connected) in 3-D. labelmaps: classes on each file's own
    grid. NaN without a volume of more than one slice: only neighbours can tell.
    """
    volumes = []
    for labelmap, stack in zip(labelmaps, patient.stacks, strict=True):
        if stack.grid is None or len(stack.images) == 1:
            continue
        pieces, _ = ndimage.label(labelmap == label)  # by default 6-connected
        axis = slice_axis(stack.grid)
        voxels = 0
        for piece, box in enumerate(ndimage.find_objects(pieces), start=1):
            if box[axis].stop - box[axis].start == 1:
                voxels += int(np.count_nonzero(pieces[box] == piece))
        volumes.append(voxels * stack.grid.voxel_ml)
    return float(sum(volumes)) if volumes else NAN


# --- files -----------------------------------------------------------------------------------------


def stored_rows(file: Path, head: dict[str, str]) -> list[MethodRow]:
    """Rows that may stand beside new ones: of the same patients, the generator's of the same model."""
    if not file.exists():
        return []
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        rows = [_row(entry) for entry in stored["rows"]]
        scale, model = stored["scale"], stored["model"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: not a table of this benchmark. Choose another --output.") from error
    independent = (*unet.METHODS, "ceiling")
    kept = [
        row
        for row in rows
        if scale == head["scale"]
        and row.method in METHODS
        and (model == head["model"] or row.method in independent)
    ]
    if len(kept) < len(rows):
        say(f"{file}: {len(rows) - len(kept)} rows of another model or other patients are left out")
    return kept


def _row(entry: dict[str, Any]) -> MethodRow:
    values = {name: value for name, value in entry.items() if name != "mean"}
    patients = {name: math.nan if value is None else value for name, value in values.pop("patients").items()}
    return MethodRow(**values, patients=patients)


def _key(row: MethodRow) -> tuple[str, int, int, str, str]:
    return row.method, row.labelled, row.seed, row.domain, row.metric


def _place(row: MethodRow) -> tuple[int, int, int, str]:
    return METHODS.index(row.method), row.labelled, row.seed, row.metric


def without_stray(rows: Sequence[MethodRow]) -> str:
    """The methods (seed) of rows from before STRAY was measured, as text."""
    keys = {_key(row) for row in rows}
    lacking = [
        f"{row.method} ({row.seed})"
        for row in rows
        if row.metric == "dice" and any((*_key(row)[:-1], metric) not in keys for metric in STRAY)
    ]
    return ", ".join(dict.fromkeys(lacking))


def main_tables(rows: Sequence[MethodRow]) -> list[Table]:
    """Overlap with the truth, then what is labelled where nothing is."""
    overlap = [row for row in rows if row.metric in OVERLAP]
    return [method_table("Mean over test patients", overlap), stray_table(rows)]


def stray_table(rows: Sequence[MethodRow]) -> Table:
    """STRAY, as means over the patients that have it (their number stands in the header) and over seeds."""
    columns = [(domain, metric) for domain in dict.fromkeys(row.domain for row in rows) for metric in STRAY]
    header, cells = ["method", "labelled"], []
    for domain, metric in columns:
        chosen = [row for row in rows if (row.domain, row.metric) == (domain, metric)]
        patients = max((sum(not math.isnan(v) for v in row.patients.values()) for row in chosen), default=0)
        header.append(f"{domain} {STRAY[metric]} (n = {patients})")
        cells.append(chosen)
    body = []
    for key in dict.fromkeys((row.method, row.labelled) for row in rows):
        means = [[row.mean for row in chosen if (row.method, row.labelled) == key] for chosen in cells]
        body.append((key[0], str(key[1]), *(number(mean_without_nan(seeds)[0], 2) for seeds in means)))
    return Table("Labelled where nothing is, mean over test patients", tuple(header), tuple(body))


def text(rows: Sequence[MethodRow], bundle: Bundle) -> str:
    """The Markdown file: all patients, then DICE by family of liver shapes for the phantom."""
    images = bundle.facts.get("gan_images")
    seen = f", GAN trained on {images:,} images" if images else ""
    tables = main_tables(rows)
    if any(row.domain in DOMAINS for row in rows):
        dice = [row for row in rows if row.metric == "dice" and row.domain in DOMAINS]
        tables.append(
            method_table("DICE by family of liver shapes", [f for row in dice for f in _by_family(row)])
        )
    model = f"Model `{bundle.name}` ({weights_hash(bundle)[:12]}), {bundle.config.student_size} px{seen}."
    return "\n".join([f"{model} `labelled` counts patients.\n", *(markdown(table) for table in tables)])


def _by_family(row: MethodRow) -> list[MethodRow]:
    parts = []
    for odd, family in enumerate(("training family", "held-out family")):
        patients = {
            name: dice for name, dice in row.patients.items() if int(name.rsplit("-", 1)[1]) % 2 == odd
        }
        if patients:
            parts.append(replace(row, domain=f"{row.domain}, {family}", patients=patients))
    return parts


if __name__ == "__main__":
    raise SystemExit(main())
