"""The table of phantom results: the generator beside U-Nets, on test patients that training never saw.

    python benchmarks/phantom_table.py --model runs/phantom64/bundle --output results
    python benchmarks/phantom_table.py --model runs/phantom64/bundle --output results --methods unet --seed 1

Writes OUTPUT/phantom.json, where the rows of other methods and seeds stay, and OUTPUT/phantom.md. The U-Nets
learn from the labelled phantom CT patients of the bundle, at its size. Scores are of the liver, all slices of
a patient together, on the native grid. ``ceiling`` is the truth brought to model size and back: the most that
a method can reach at this size. Odd test seeds are of a family of liver shapes that training does not draw.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sgan_core.bundle import Bundle, load_bundle
from sgan_core.cli import app
from sgan_core.cli.progress import Progress
from sgan_core.device import choose_device, describe
from sgan_core.errors import InputError
from sgan_core.evaluation.baselines import unet
from sgan_core.evaluation.metrics import Evaluation
from sgan_core.evaluation.tables import (
    MethodRow,
    json_text,
    markdown,
    method_table,
    print_table,
    table_json,
    write_text,
)
from sgan_core.imaging.image import Volume
from sgan_core.imaging.slices import SliceStack, labels_to_model, to_model, to_volume
from sgan_core.networks.segmenter import predict
from sgan_core.phantom import DOMAINS, LIVER, TEST_SEEDS, make_case, phantom_cohort
from sgan_core.segment import SegmentConfig, choose_intensity, segment_volume
from sgan_core.training.data import open_store

GENERATIVE = {"encoder": "fast", "inversion": "standard"}  # method: quality
METHODS = ("ceiling", *unet.METHODS, *GENERATIVE)

# Image and true liver (I, J, K) to a label map (I, J, K). Only the ceiling looks at the truth.
Method = Callable[[Volume, np.ndarray], np.ndarray]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns the exit code."""
    p = app.Parser("phantom_table", description=__doc__ or "")
    p.add_argument("--model", required=True, metavar="BUNDLE", help="a bundle trained on the phantom's liver")
    p.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="for phantom.json and phantom.md"
    )
    p.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="default: all")
    p.add_argument("--patients", type=int, default=8, metavar="N", help="test patients a domain (default 8)")
    p.add_argument("--steps", type=int, metavar="N", help="of inversion (default: the bundle's)")
    p.add_argument(
        "--unet-steps", type=int, default=unet.UnetConfig.steps, metavar="N", help="default: %(default)s"
    )
    p.add_argument("--seed", type=int, default=0, help="of the U-Nets (default 0)")
    p.add_argument(
        "--cache", type=Path, metavar="DIR", help="keeps prepared training slices (default: not kept)"
    )
    p.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: auto")
    return app.run(make_table, p, argv)


def make_table(args: argparse.Namespace) -> None:
    """Score the asked methods one by one; both files are written after each."""
    if args.patients < 1:
        raise InputError(f"--patients {args.patients}: give at least 1.")
    bundle = load_bundle(args.model, choose_device(args.device))
    if [label.name for label in bundle.config.labels] != ["liver"]:
        raise InputError(f"{args.model}: not a model of the phantom's liver. Give one that is trained on it.")
    file = args.output / "phantom.json"
    head = {
        "scale": f"{bundle.config.generator.size} px, {args.patients} patients a domain",
        "model": bundle.hash,
    }
    rows = stored_rows(file, head)
    say(f"{bundle.name}, {head['scale']}, {describe(bundle.device)}")
    for name in args.methods:
        began = time.monotonic()
        new = score(name, prepared(name, bundle, args), bundle, args)
        replaced = {_key(row) for row in new}
        rows = sorted([row for row in rows if _key(row) not in replaced] + new, key=_place)
        write_text(file, json_text(table_json("phantom", head["scale"], rows) | head))
        write_text(args.output / "phantom.md", text(rows, bundle))
        means = ", ".join(f"{row.domain} {row.mean:.3f}" for row in new if row.metric == "dice")
        say(f"{name}: DICE {means} ({time.monotonic() - began:.0f} s)")
    print_table(method_table("", rows))
    say(f"{file} and phantom.md beside it are written")


def say(line: str) -> None:
    """Progress goes to stderr: stdout is for the table."""
    print(line, file=sys.stderr, flush=True)


# --- methods ---------------------------------------------------------------------------------------


def prepared(name: str, bundle: Bundle, args: argparse.Namespace) -> Method:
    """The method of a name, trained when it needs that."""
    if name == "ceiling":
        return lambda image, liver: ceiling(liver, model_slices(image, bundle))
    if name in GENERATIVE:
        config = SegmentConfig(quality=GENERATIVE[name], steps=args.steps if name == "inversion" else None)
        return lambda image, liver: segment_volume(image, bundle, config).labels
    net = trained_unet(name, bundle, args)

    def segment(image: Volume, liver: np.ndarray) -> np.ndarray:
        stack = model_slices(image, bundle)
        return to_volume(predict(net, stack.images), stack)

    return segment


def model_slices(image: Volume, bundle: Bundle) -> SliceStack:
    """The slices as ``segment_volume`` sees them: every method gets the same input."""
    generator = bundle.config.generator
    intensity, _ = choose_intensity(image, bundle.config.intensity)
    return to_model(
        image,
        size=generator.size,
        intensity=intensity,
        channels=generator.image_channels,
        squash=bundle.config.squash,
    )


def ceiling(liver: np.ndarray, stack: SliceStack) -> np.ndarray:
    """The truth, (I, J, K) of 0 and 1, brought to model size and back."""
    small = labels_to_model(liver, stack)
    return to_volume(np.stack([small == 0, small == 1], axis=1).astype(np.float32), stack)


def trained_unet(name: str, bundle: Bundle, args: argparse.Namespace) -> Any:
    """A U-Net trained on the phantom patients whose labels the bundle has seen."""
    labelled, generator = bundle.config.labelled, bundle.config.generator
    cohort = phantom_cohort(labelled=labelled)
    known = tuple(case for case in cohort.cases if case.labelled)  # the unlabelled are of no use to it
    trained = bundle.config
    cohort = replace(cohort, cases=known, intensity=trained.intensity, squash=trained.squash)
    config = unet.UnetConfig(steps=args.unet_steps, appearance=unet.METHODS[name], seed=args.seed)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary, Progress() as progress:
        folder = args.cache or Path(temporary)
        store = open_store(cohort, folder, size=generator.size, channels=generator.image_channels)
        return unet.train_unet(
            store,
            config,
            labelled=labelled,
            num_classes=generator.num_classes,
            device=bundle.device,
            on_progress=progress,
        )


def score(name: str, method: Method, bundle: Bundle, args: argparse.Namespace) -> list[MethodRow]:
    """DICE and Jaccard of the liver of each test patient: a row for each domain and metric."""
    labelled = 0 if name == "ceiling" else bundle.config.labelled
    seed = {"ceiling": 0}.get(name, args.seed if name in unet.METHODS else bundle.config.seed)
    rows = []
    with Progress() as progress:
        for which, domain in enumerate(DOMAINS):
            evaluation = Evaluation([LIVER], surfaces=False)
            for number in range(args.patients):
                progress(which * args.patients + number, len(DOMAINS) * args.patients, f"{name}, {domain}")
                case = make_case(TEST_SEEDS + number, domain)
                liver = (case.labels == LIVER).astype(np.uint8)
                evaluation.add(f"phantom-{TEST_SEEDS + number}", method(case.image, liver), liver)
            scores = {result.patient: result.scores for result in evaluation.results()}
            for metric in ("dice", "jaccard"):
                patients = {patient: getattr(found, metric) for patient, found in scores.items()}
                rows.append(MethodRow(name, labelled, seed, domain, metric, patients))
    return rows


# --- files -----------------------------------------------------------------------------------------


def stored_rows(file: Path, head: dict[str, str]) -> list[MethodRow]:
    """Rows that may stand beside new ones: of the same scale, the generator's of the same model."""
    if not file.exists():
        return []
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        rows = [_row(entry) for entry in stored["rows"]]
        scale, model = stored["scale"], stored["model"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: not a table of this benchmark. Choose another --output.") from error
    kept = [
        row
        for row in rows
        if scale == head["scale"] and (model == head["model"] or row.method not in GENERATIVE)
    ]
    if len(kept) < len(rows):
        say(f"{file}: {len(rows) - len(kept)} rows of another model or scale are left out")
    return kept


def _row(entry: dict[str, Any]) -> MethodRow:
    values = {name: value for name, value in entry.items() if name != "mean"}
    patients = {name: math.nan if value is None else value for name, value in values.pop("patients").items()}
    return MethodRow(**values, patients=patients)


def _key(row: MethodRow) -> tuple[str, int, int, str, str]:
    return row.method, row.labelled, row.seed, row.domain, row.metric


def _place(row: MethodRow) -> tuple[int, int, int, str, int]:
    return METHODS.index(row.method), row.labelled, row.seed, row.metric, DOMAINS.index(row.domain)


def text(rows: Sequence[MethodRow], bundle: Bundle) -> str:
    """The Markdown file: all patients, then DICE by family of liver shapes."""
    images = bundle.facts.get("gan_images")
    seen = f", GAN trained on {images:,} images" if images else ""
    families = [family for row in rows if row.metric == "dice" for family in _by_family(row)]
    tables = [method_table("Liver, mean over test patients", rows)]
    if all(family.patients for family in families):
        tables.append(method_table("DICE by family of liver shapes", families))
    model = f"Model `{bundle.name}` ({bundle.hash[:12]}), {bundle.config.generator.size} px{seen}."
    return "\n".join([f"{model} `labelled` counts patients.\n", *(markdown(table) for table in tables)])


def _by_family(row: MethodRow) -> list[MethodRow]:
    parts = []
    for odd, family in enumerate(("training family", "held-out family")):
        patients = {
            name: dice for name, dice in row.patients.items() if int(name.rsplit("-", 1)[1]) % 2 == odd
        }
        parts.append(replace(row, domain=f"{row.domain}, {family}", patients=patients))
    return parts


if __name__ == "__main__":
    raise SystemExit(main())
