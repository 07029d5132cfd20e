"""One self-contained web page per run: what was segmented, how well the generator explains it.

Pictures are inlined, outlines are vector graphics, nothing is loaded from the network and nothing runs (no
scripts): the page can be mailed, archived and printed.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib import colormaps
from PIL import Image
from skimage.measure import find_contours

from sgan_core import __version__
from sgan_core.cohort import Label
from sgan_core.evaluation.tables import UNDEFINED, ScoreRow, mean_text, number, write_text
from sgan_core.metrics.per_patient import dice_from_counts, mean_without_nan

MAX_SLICES = 8
CASES_ON_A_PAGE = 100
DIFFERENCE_FULL_SCALE = (
    0.5  # |image - reconstruction| shown as the brightest colour; intensities span 2 (-1..1)
)
_MAX_PIXELS = 384  # larger slices are drawn smaller, so that a report stays mailable
_DIFFERENCE_COLOURS = (colormaps["magma"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


@dataclass(frozen=True)
class LabelVolume:
    """One line of a case's label table."""

    label: Label
    voxels: int
    volume_ml: float | None = None  # None: the voxel size is unknown (pictures)


@dataclass(frozen=True)
class DrawnLine:
    """A measured line on the first slice, through points (x, y) in its pixels, corners at whole numbers."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, eq=False)
class ReportCase:
    """What the page shows of one case: arrays on the model's slices, as seen by a radiologist."""

    name: str
    domain: str
    images: np.ndarray  # (N, H, W), (N, 1, H, W) or (N, 3, H, W) in [-1, 1]
    labels: np.ndarray  # (N, H, W) label values, the segmentation
    label_table: Sequence[LabelVolume]
    reconstructions: np.ndarray | None = None  # as images, or smaller by a whole factor: a generator's size
    truth: np.ndarray | None = None  # (N, H, W) label values
    facts: Mapping[str, str] = field(
        default_factory=dict
    )  # shown in the case's header, e.g. {"seconds": "12.3"}
    scores: Mapping[str, float] = field(default_factory=dict)  # DICE by method
    warnings: Sequence[str] = ()
    first_slice: int = 1  # number of the first of these slices in its volume
    lines: Sequence[DrawnLine] = ()
    notes: Sequence[str] = ()  # how to read the facts

    def __post_init__(self) -> None:
        count, height, width = self.labels.shape
        if not count:
            raise ValueError(f"{self.name}: no slice to show")
        if self.images.shape[-2:] != (height, width) or len(self.images) != count:
            raise ValueError(f"{self.name}: images {self.images.shape} do not fit labels {self.labels.shape}")
        drawn = self.reconstructions
        if drawn is not None and not (len(drawn) == count and self._fits(drawn)):
            raise ValueError(
                f"{self.name}: reconstructions {drawn.shape} do not fit labels {self.labels.shape}"
            )
        if self.truth is not None and self.truth.shape != self.labels.shape:
            raise ValueError(f"{self.name}: truth {self.truth.shape} does not fit labels {self.labels.shape}")

    @property
    def is_picture(self) -> bool:
        """Whether this is no volume: one slice without a size in the patient."""
        return len(self.labels) == 1 and not any(entry.volume_ml is not None for entry in self.label_table)

    def _fits(self, pictures: np.ndarray) -> bool:
        """Whether pictures are of the labels' size, or smaller by a whole factor."""
        (height, width), (rows, columns) = self.labels.shape[1:], pictures.shape[-2:]
        return height % rows == 0 and width * rows == height * columns


@dataclass(frozen=True)
class Section:
    """A case whose part of the page is in a file, as ``render_case`` made it."""

    name: str
    identity: str
    file: Path
    has_reconstruction: bool


def write_report(
    path: str | Path,
    title: str,
    cases: Sequence[ReportCase],
    *,
    facts: Mapping[str, str],
    scores_table: Sequence[ScoreRow] = (),
) -> None:
    """Write the page of a run, whole or not at all.

    facts: shown at the top (model, bundle hash, device, seed, seconds ...).
    scores_table: DICE of every patient, domain and method; left out when no truth is known.
    Raises OSError when the file cannot be written.
    """
    write_text(path, render_report(title, cases, facts=facts, scores_table=scores_table))


def render_report(
    title: str,
    cases: Sequence[ReportCase],
    *,
    facts: Mapping[str, str],
    scores_table: Sequence[ScoreRow] = (),
) -> str:
    """The page as HTML text; see :func:`write_report`."""
    numbered = [(str(number), case) for number, case in enumerate(cases, 1)]
    return _page(
        title,
        facts,
        cases=[(_anchor(number), case.name) for number, case in numbered],
        sections=(render_case(case, number) for number, case in numbered),
        scores=_score_view(scores_table),
        has_truth=any(case.truth is not None for case in cases),
        has_reconstruction=any(case.reconstructions is not None for case in cases),
    )


def write_pages(folder: Path, title: str, sections: Sequence[Section], *, facts: Mapping[str, str]) -> None:
    """Write report.html, report-2.html ... of a batch, ``CASES_ON_A_PAGE`` cases each, every one whole or not at all.

    Only one page's sections are in memory at a time. Pages that an earlier, larger batch left go.
    Raises OSError when a file cannot be read or written.
    """
    parts = [sections[first : first + CASES_ON_A_PAGE] for first in range(0, len(sections), CASES_ON_A_PAGE)]
    names = ["report.html", *(f"report-{number}.html" for number in range(2, len(parts) + 1))]
    pages = [
        (name, f"{first + 1} to {first + len(part)}")
        for name, part, first in zip(names, parts, range(0, len(sections), CASES_ON_A_PAGE), strict=True)
    ]
    for name, part in zip(names, parts, strict=True):
        page = _page(
            title,
            facts,
            cases=[(_anchor(one.identity), one.name) for one in part],
            sections=(one.file.read_text(encoding="utf-8") for one in part),
            pages=pages,
            has_reconstruction=any(one.has_reconstruction for one in part),
        )
        write_text(folder / name, page)
    number = len(parts) + 1
    while number > 1 and (left := folder / f"report-{number}.html").is_file():
        left.unlink()
        number += 1


def render_case(case: ReportCase, identity: str) -> str:
    """A case's part of the page as HTML. identity: letters and digits that no other case of the page has."""
    macros: Any = _environment().get_template("report_case.html.j2").module
    return str(macros.case_section(_case_view(case, identity)))


def _page(
    title: str,
    facts: Mapping[str, str],
    *,
    cases: Sequence[tuple[str, str]],
    sections: Iterable[str],
    scores: dict[str, Any] | None = None,
    pages: Sequence[tuple[str, str]] = (),
    has_truth: bool = False,
    has_reconstruction: bool = False,
) -> str:
    """A page as HTML. cases: (anchor, name); pages: (file, which cases) of all pages; sections: rendered cases."""
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=title,
            facts=facts,
            cases=cases,
            sections=sections,
            scores=scores,
            pages=pages,
            has_truth=has_truth,
            has_reconstruction=has_reconstruction,
            version=__version__,
            scale_css=_colour_scale_css(),
            full_scale=f"{DIFFERENCE_FULL_SCALE / 2:.0%}",
        )
    )


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # names come from the users' files
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _anchor(identity: str) -> str:
    return f"case-{identity}"


# --- which slices ----------------------------------------------------------------------------------


def choose_slices(labels: np.ndarray, errors: np.ndarray | None, *, limit: int = MAX_SLICES) -> list[int]:
    """Slices worth looking at, ascending: evenly over those with a label, and the worst reconstructed one.

    labels: (N, H, W); errors: (N,) reconstruction errors, or None. Without any label: evenly over all slices.
    """
    candidates = np.flatnonzero(labels.any(axis=(1, 2)))
    if candidates.size == 0:
        candidates = np.arange(len(labels))
    worst = [] if errors is None else [_worst(errors)]
    count = min(limit - len(worst), candidates.size)
    # The middle of each of `count` equal parts: the very first and last labelled slices show little.
    places = (np.arange(count) + 0.5) * candidates.size / max(count, 1)
    return sorted({*candidates[places.astype(int)].tolist(), *worst})


def _worst(errors: np.ndarray) -> int:
    return int(np.argmax(np.nan_to_num(errors, nan=-1.0)))


def reconstruction_errors(case: ReportCase) -> np.ndarray | None:
    """Mean absolute difference of image and reconstruction per slice, (N,) in 0..2; None without one."""
    if case.reconstructions is None:
        return None
    reconstructions = _with_channels(case.reconstructions)
    difference = np.abs(_averaged(_with_channels(case.images), reconstructions) - reconstructions)
    errors: np.ndarray = difference.mean(axis=(1, 2, 3))
    return errors


# --- what the template needs -----------------------------------------------------------------------


def _case_view(case: ReportCase, identity: str) -> dict[str, Any]:
    errors = reconstruction_errors(case)
    chosen = choose_slices(case.labels, errors)
    worst = None if errors is None else _worst(errors)
    return {
        "id": _anchor(identity),
        "name": case.name,
        "domain": case.domain,
        "facts": case.facts,
        "warnings": case.warnings,
        "notes": case.notes,
        "scores": [(method, number(dice)) for method, dice in case.scores.items()],
        "labels": [_label_view(entry) for entry in case.label_table],
        "slices": [_slice_view(case, n, errors, worst, f"i{identity}-{n}") for n in chosen],
        "picture": case.is_picture,
        "shown": len(chosen),
        "total": len(case.labels),
        "has_reconstruction": case.reconstructions is not None,
    }


def _label_view(entry: LabelVolume) -> dict[str, str]:
    known = entry.volume_ml is not None
    return {
        "name": entry.label.name,
        "colour": _css_colour(entry.label),
        "volume": f"{entry.volume_ml:,.1f} mL" if known else UNDEFINED,
        "voxels": f"{entry.voxels:,}",
    }


def _slice_view(
    case: ReportCase, n: int, errors: np.ndarray | None, worst: int | None, identity: str
) -> dict[str, Any]:
    height, width = case.labels.shape[1:]
    labels = [entry.label for entry in case.label_table]
    view: dict[str, Any] = {
        "id": identity,
        "place": "Picture" if case.is_picture else f"Slice {case.first_slice + n}",
        "width": width,
        "height": height,
        "image": _data_uri(_to_bytes(_with_channels(case.images)[n])),
        "masks": _label_paths(case.labels[n], labels),
        "lines": [(line.name, _svg_path(line.points)) for line in case.lines] if n == 0 else [],
        "notes": [],
        "worst": n == worst,
    }
    if case.truth is not None:
        view["truth"] = _label_paths(case.truth[n], labels)
        wrong = case.labels[n] != case.truth[n]
        view["too_much"] = _outline(wrong & (case.labels[n] > 0))
        view["missed"] = _outline(wrong & (case.truth[n] > 0))
        view["notes"].append(f"slice DICE {number(_slice_dice(case.labels[n], case.truth[n]), 2)}")
    if case.reconstructions is not None and errors is not None:
        reconstructions = _with_channels(case.reconstructions)[n]
        images = _averaged(_with_channels(case.images)[n], reconstructions)  # what the generator was shown
        view["reconstruction"] = _data_uri(_to_bytes(reconstructions))
        view["difference"] = _data_uri(_difference_colours(images, reconstructions))
        view["notes"].append(f"reconstruction error {errors[n] / 2:.1%}")
    return view


def _score_view(rows: Sequence[ScoreRow]) -> dict[str, Any] | None:
    """Mean DICE by domain and method with a bar each, and every patient's figure."""
    if not rows:
        return None
    methods = list(dict.fromkeys(row.method for row in rows))
    domains = []
    for domain in dict.fromkeys(row.domain for row in rows):
        bars = []
        for method in methods:
            values = [row.dice for row in rows if (row.domain, row.method) == (domain, method)]
            mean, _ = mean_without_nan(values)
            percent = 0.0 if math.isnan(mean) else 100.0 * mean
            bars.append({"method": method, "text": mean_text(values), "percent": f"{percent:.1f}"})
        patients = len({row.patient for row in rows if row.domain == domain})
        domains.append({"name": domain, "bars": bars, "patients": patients})
    figures = [
        (row.domain, row.patient, row.method, row.label, number(row.dice), number(row.jaccard))
        for row in rows
    ]
    return {"domains": domains, "rows": figures}


def _slice_dice(labels: np.ndarray, truth: np.ndarray) -> float:
    """Share of foreground that carries the right label, in one slice."""
    masks = (labels == truth) & (truth > 0), labels, truth
    overlap, segmented, wanted = (int(np.count_nonzero(mask)) for mask in masks)
    return dice_from_counts(overlap, segmented, wanted)


# --- pictures --------------------------------------------------------------------------------------


def _with_channels(images: np.ndarray) -> np.ndarray:
    """(N, H, W) -> (N, 1, H, W); with channels as it is."""
    return images[:, None] if images.ndim == 3 else images


def _averaged(images: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Area averages of images (..., H, W) float at the smaller size of ``like``."""
    (height, width), (rows, columns) = images.shape[-2:], like.shape[-2:]
    if (height, width) == (rows, columns):
        return images
    parts = images.reshape(*images.shape[:-2], rows, height // rows, columns, width // columns)
    averages: np.ndarray = parts.astype(np.float32).mean(axis=(-3, -1))
    return averages


def _to_bytes(image: np.ndarray) -> np.ndarray:
    """(C, H, W) in [-1, 1] -> uint8 (H, W) or (H, W, 3)."""
    levels = np.clip((np.nan_to_num(image.astype(np.float32), nan=-1.0) + 1) * 127.5, 0, 255)
    pixels = levels.round().astype(np.uint8).transpose(1, 2, 0)  # (C, H, W) -> (H, W, C)
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def _difference_colours(image: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
    """|image - reconstruction| averaged over channels, as colours, uint8 (H, W, 3)."""
    difference = np.abs(image.astype(np.float32) - reconstruction).mean(axis=0)
    scaled = np.clip(np.nan_to_num(difference) / DIFFERENCE_FULL_SCALE, 0, 1)
    colours: np.ndarray = _DIFFERENCE_COLOURS[(scaled * 255).round().astype(int)]
    return colours


def _data_uri(pixels: np.ndarray) -> str:
    picture = Image.fromarray(pixels)
    picture.thumbnail((_MAX_PIXELS, _MAX_PIXELS), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _label_paths(labelmap: np.ndarray, labels: Sequence[Label]) -> list[dict[str, str]]:
    """Outlines of the labels of one slice with name and colour, labels that are absent left out."""
    paths = [
        {"name": label.name, "colour": _css_colour(label), "path": _outline(labelmap == label.value)}
        for label in labels
    ]
    return [entry for entry in paths if entry["path"]]


def _outline(mask: np.ndarray) -> str:
    """SVG path around a mask (H, W), in pixels; holes by the even-odd rule. Empty mask: ``""``."""
    parts = []
    # Padded, so that outlines close at the picture's edge.
    for contour in find_contours(np.pad(mask.astype(np.float32), 1), 0.5):
        # (row, column) of padded pixel centres -> (x, y) with pixel corners at whole numbers
        parts.append(_svg_path(contour[:-1, ::-1] - 0.5) + "Z")
    return "".join(parts)


def _svg_path(points: Iterable[Iterable[float]]) -> str:
    """An open SVG path through points (x, y)."""
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)


def _css_colour(label: Label) -> str:
    red, green, blue = label.rgb
    return f"rgb({int(red)} {int(green)} {int(blue)})"


def _colour_scale_css() -> str:
    stops = [_DIFFERENCE_COLOURS[position] for position in (0, 64, 128, 192, 255)]
    return ", ".join("rgb({} {} {})".format(*stop) for stop in stops)
