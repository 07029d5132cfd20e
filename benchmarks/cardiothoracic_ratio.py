"""Which definition of the cardiothoracic ratio is that of the published figures of Wingspan.

    python benchmarks/cardiothoracic_ratio.py WINGSPAN --output benchmarks/results/cardiothoracic_ratio.json
    python benchmarks/cardiothoracic_ratio.py WINGSPAN --run out/run.json

Compares ratios with ctr_ground_truth.csv: measured on the annotators' own masks in several ways, or with --run those
that sgan-segment measured on a model's masks of the data set's pictures. Difference: measured - published; limits of
agreement: its mean ± 1.96 standard deviations (Bland and Altman, Lancet 1986;327:307).
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sgan_core.cardiothoracic import cardiothoracic_ratio
from sgan_core.cli import app
from sgan_core.errors import InputError
from sgan_core.evaluation.tables import Table, json_text, markdown, write_text
from sgan_datasets.wingspan import read_thorax, scan_thorax

Masks = tuple[np.ndarray, np.ndarray, np.ndarray]  # left lung, right lung, heart; (H, W) bool

PUBLISHED = "ctr_ground_truth.csv"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns the exit code."""
    p = app.Parser("cardiothoracic_ratio", description=__doc__ or "")
    p.add_argument("wingspan", type=Path, metavar="WINGSPAN", help="the data set's folder")
    p.add_argument("--run", type=Path, metavar="RUN_JSON", help="of sgan-segment on the data set's pictures")
    p.add_argument("--output", type=Path, metavar="FILE", help="also write the figures as JSON")
    return app.run(compare, p, argv)


def compare(args: argparse.Namespace) -> None:
    """Measure, print and write."""
    published = read_published(args.wingspan)
    measured = measured_by_model(args.run) if args.run else measured_by_annotators(args.wingspan, published)
    rows = {name: agreement(ratios, published) for name, ratios in measured.items()}
    if args.output:
        write_text(args.output, json_text({"published": len(published), "rows": rows}))
    print(markdown(table(rows)), end="")


def read_published(wingspan: Path) -> dict[str, float]:
    """The published ratio of each picture by its name without the ending. Raises InputError."""
    files = [folder / PUBLISHED for folder in (wingspan, wingspan / "wingspan")]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise InputError(f"{wingspan}: no {PUBLISHED} in it. Give the folder of the data set Wingspan.")
    with file.open(encoding="utf-8", newline="") as lines:
        return {Path(row["id"]).stem: float(row["ctr"]) for row in csv.DictReader(lines)}


# --- measured ----------------------------------------------------------------------------------------


def measured_by_annotators(wingspan: Path, wanted: Mapping[str, float]) -> dict[str, dict[str, float | None]]:
    """Ratios by definition and picture on the masks of the data set. None: undefined."""
    cohort = scan_thorax(wingspan).cohort
    ratios: dict[str, dict[str, float | None]] = {}
    for case in cohort.cases:
        name = Path(case.image).stem
        if name not in wanted or not case.labelled:
            continue
        labelmap = read_thorax(case)
        ours = cardiothoracic_ratio(labelmap, cohort.labels).ratio
        ratios.setdefault("widths of heart and lungs, wherever (sgan-segment)", {})[name] = ours
        masks = tuple(labelmap == label.value for label in cohort.labels)
        for definition, ratio in OTHERS.items():
            ratios.setdefault(definition, {})[name] = ratio(masks)
    return ratios


def measured_by_model(run: Path) -> dict[str, dict[str, float | None]]:
    """Ratios by picture in a run.json. Raises InputError."""
    try:
        cases = json.loads(run.read_text(encoding="utf-8"))["cases"]
        found = {case["case"]: case["cardiothoracic_ratio"] for case in cases if case["status"] == "done"}
        ratios = {name: record["ratio"] for name, record in found.items() if record is not None}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{run}: not a run.json with cardiothoracic ratios ({error}).") from error
    return {f"masks of {run}": ratios}


def widths_by_row(mask: np.ndarray) -> np.ndarray:
    """From the first to the last pixel of each row, (H,); 0 where there is none."""
    reach = mask.shape[1] - mask.argmax(axis=1) - mask[:, ::-1].argmax(axis=1)
    return np.where(mask.any(axis=1), reach, 0)


def width(mask: np.ndarray) -> int:
    """From the first to the last column of a mask."""
    columns = np.flatnonzero(mask.any(axis=0))
    return int(columns[-1] - columns[0] + 1)


def over_widest_row(masks: Masks) -> float:
    """The thorax in one row, where it is widest."""
    left, right, heart = masks
    return width(heart) / float(widths_by_row(left | right).max())


def both_in_one_row(masks: Masks) -> float:
    """The heart, too, in the one row where it is widest."""
    left, right, heart = masks
    return float(widths_by_row(heart).max() / widths_by_row(left | right).max())


def over_dome_row(masks: Masks) -> float:
    """The thorax in the row of the right dome of the diaphragm: the right lung's lower edge, where it is highest.

    The outer quarters of the lung's columns, with the costophrenic angle and the hilum, are left out.
    """
    left, right, heart = masks
    columns = np.flatnonzero(right.any(axis=0))
    inner = columns[len(columns) // 4 : len(columns) - len(columns) // 4]
    lower_edge = right.shape[0] - 1 - right[::-1, inner].argmax(axis=0)
    return width(heart) / float(widths_by_row(left | right)[lower_edge.min()])


OTHERS: dict[str, Callable[[Any], float]] = {
    "thorax in its widest row": over_widest_row,
    "heart and thorax each in its widest row": both_in_one_row,
    "thorax at the right dome of the diaphragm": over_dome_row,
}


# --- compared ----------------------------------------------------------------------------------------


def agreement(measured: Mapping[str, float | None], published: Mapping[str, float]) -> dict[str, Any]:
    """Of the pictures that have both ratios. Raises InputError where fewer than two have."""
    pairs = [(ratio, published[name]) for name, ratio in measured.items() if name in published]
    difference = np.array([ours - theirs for ours, theirs in pairs if ours is not None])
    if len(difference) < 2:
        raise InputError(f"{len(difference)} pictures have a measured and a published ratio; 2 are needed.")
    bias, spread = difference.mean(), difference.std(ddof=1)
    figures = {
        "mean_absolute_difference": np.abs(difference).mean(),
        "largest_difference": np.abs(difference).max(),
        "bias": bias,
        "limits_of_agreement": bias + np.array([-1.96, 1.96]) * spread,
    }
    return {
        "count": len(difference),
        "undefined": len(pairs) - len(difference),
        **{name: np.round(figure, 6).tolist() for name, figure in figures.items()},
    }


def table(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """The figures for people."""
    header = ("widths", "n", "undefined", "mean absolute", "largest", "bias", "limits of agreement")
    lines = []
    for name, row in rows.items():
        low, high = row["limits_of_agreement"]
        figures = (f"{row['mean_absolute_difference']:.4f}", f"{row['largest_difference']:.3f}")
        counts = (str(row["count"]), str(row["undefined"]))
        lines.append((name, *counts, *figures, f"{row['bias']:+.4f}", f"{low:+.3f} to {high:+.3f}"))
    return Table("", header, tuple(lines))


if __name__ == "__main__":
    sys.exit(main())
