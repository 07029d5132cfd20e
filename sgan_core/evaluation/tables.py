"""Scores as tables: for the console, Markdown, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from sgan_core.files import replacing
from sgan_core.metrics.per_patient import mean_without_nan

UNDEFINED = "–"  # how NaN is shown


@dataclass(frozen=True)
class ScoreRow:
    """One line of ``scores.json``: a patient's score for one label, by one method."""

    case: str
    patient: str
    domain: str
    method: str
    label: str
    dice: float
    jaccard: float


@dataclass(frozen=True)
class MethodRow:
    """One line of a table of the paper: a method trained once, tested on the patients of one domain."""

    method: str
    labelled: int  # labelled patients in training
    seed: int
    domain: str
    metric: str  # "dice" | "jaccard" | "miou"
    patients: Mapping[str, float]

    @property
    def mean(self) -> float:
        """Mean over the patients, NaN left out."""
        return mean_without_nan(self.patients.values())[0]


@dataclass(frozen=True)
class Table:
    """Text in rows and columns. Columns from ``numbers_from`` on hold numbers and are set to the right."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers_from: int = 1


def number(value: float, digits: int = 3) -> str:
    """A figure as text with a fixed number of digits; NaN is a dash."""
    return UNDEFINED if math.isnan(value) else f"{value:.{digits}f}"


def mean_text(values: Iterable[float], digits: int = 3) -> str:
    """A mean as text with the count of NaN it leaves out, e.g. ``0.912 (1 NaN)``."""
    mean, left_out = mean_without_nan(values)
    return number(mean, digits) + (f" ({left_out} NaN)" if left_out else "")


# --- the demo's and the trainer's scores -----------------------------------------------------------


def mean_dice(rows: Iterable[ScoreRow]) -> dict[str, dict[str, float]]:
    """Mean DICE by domain, then method, over patients and labels; NaN left out."""
    return {
        domain: {method: mean_without_nan(values)[0] for method, values in by_method.items()}
        for domain, by_method in _dice_by_domain(rows).items()
    }


def scores_json(rows: Sequence[ScoreRow]) -> dict[str, Any]:
    """What ``scores.json`` holds: the rows, the mean DICE and how many NaN each mean leaves out."""
    left_out = {
        domain: {method: mean_without_nan(values)[1] for method, values in by_method.items()}
        for domain, by_method in _dice_by_domain(rows).items()
    }
    return {"rows": [asdict(row) for row in rows], "mean_dice": mean_dice(rows), "nan_dice": left_out}


def dice_table(rows: Sequence[ScoreRow], title: str = "DICE per patient") -> Table:
    """Patients down, methods across, grouped by domain with its mean."""
    methods = list(dict.fromkeys(row.method for row in rows))
    several_labels = len({row.label for row in rows}) > 1
    body: list[tuple[str, ...]] = []
    for domain, by_method in _dice_by_domain(rows).items():
        by_patient: dict[tuple[str, str], dict[str, float]] = {}
        for row in rows:
            if row.domain == domain:
                by_patient.setdefault((row.patient, row.label), {})[row.method] = row.dice
        for (patient, label), dice in by_patient.items():
            name = f"{patient} {label}" if several_labels else patient
            body.append((domain, name, *(number(dice.get(method, math.nan)) for method in methods)))
        body.append((domain, "mean", *(mean_text(by_method.get(method, ())) for method in methods)))
    return Table(title, ("domain", "patient", *methods), tuple(body), numbers_from=2)


def _dice_by_domain(rows: Iterable[ScoreRow]) -> dict[str, dict[str, list[float]]]:
    groups: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        groups.setdefault(row.domain, {}).setdefault(row.method, []).append(row.dice)
    return groups


# --- the paper's tables ----------------------------------------------------------------------------


def table_json(table: str, scale: str, rows: Iterable[MethodRow]) -> dict[str, Any]:
    """A table of the paper as data. scale says how much smaller than the paper the run was, e.g. "tiny"."""
    return {"table": table, "scale": scale, "rows": [asdict(row) | {"mean": row.mean} for row in rows]}


def method_table(title: str, rows: Sequence[MethodRow]) -> Table:
    """Method and labelled count down, domains across; mean ± standard deviation where there are seeds."""
    domains = list(dict.fromkeys((row.domain, row.metric) for row in rows))
    body = []
    for method, labelled in dict.fromkeys((row.method, row.labelled) for row in rows):
        cells = []
        for domain in domains:
            chosen = (method, labelled, *domain)
            means = [r.mean for r in rows if (r.method, r.labelled, r.domain, r.metric) == chosen]
            spread = f" ± {statistics.stdev(means):.3f}" if len(means) > 1 else ""
            cells.append(mean_text(means) + spread)
        body.append((method, str(labelled), *cells))
    header = ("method", "labelled", *(f"{domain} {metric}".strip() for domain, metric in domains))
    return Table(title, header, tuple(body))


# --- output ----------------------------------------------------------------------------------------


def markdown(table: Table) -> str:
    """The table in Markdown, its title in bold above it."""
    marks = ["---" if column < table.numbers_from else "---:" for column in range(len(table.header))]
    lines = [table.header, marks, *table.rows]
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"**{table.title}**\n\n{text}\n" if table.title else text + "\n"


def print_table(table: Table, file: TextIO | None = None, *, wrap_at: int | None = None) -> None:
    """Print the table to a stream, standard output if left out. Lines are never cut, even when piped.

    wrap_at: long texts go on in a next line once the table is as wide as this, or as the terminal if wider.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console(file=file, markup=False, highlight=False, emoji=False)
    drawn = RichTable(title=table.title or None, box=box.SIMPLE_HEAD, title_justify="left")
    for column, name in enumerate(table.header):
        drawn.add_column(
            name, justify="left" if column < table.numbers_from else "right", no_wrap=not wrap_at
        )
    for line in table.rows:
        drawn.add_row(*line, end_section=bool(wrap_at), style="bold" if "mean" in line[:2] else None)
    widest = console.measure(drawn, options=console.options.update(width=10_000)).maximum
    console.width = max(console.width, wrap_at or widest)
    console.print(drawn)


def json_text(payload: Any) -> str:
    """JSON for people and machines: indented, NaN and infinity as null."""
    return json.dumps(_without_nan(payload), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal keys as CSV with a header line; NaN is an empty field."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: "" if value is None else value for key, value in _without_nan(row).items()})
    return stream.getvalue()


def write_text(path: str | Path, text: str) -> None:
    """Write a text file (UTF-8) whole or not at all, making its folder when needed. Raises OSError.

    Bytes of a file name that are not UTF-8 (surrogates in Python) become escapes, which JSON reads back.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
