"""The tour: phantom patients that the bundled model never saw, segmented and scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sgan_core.batch import report_case
from sgan_core.bundle import Bundle
from sgan_core.device import describe
from sgan_core.evaluation.metrics import label_scores
from sgan_core.evaluation.tables import ScoreRow, json_text, scores_json, write_text
from sgan_core.imaging.grid import Grid
from sgan_core.imaging.slices import labels_to_model
from sgan_core.imaging.writers import write_labels, write_volume
from sgan_core.phantom import DOMAINS, LIVER, TEST_SEEDS, make_case
from sgan_core.report import ReportCase, write_report
from sgan_core.segment import OnProgress, SegmentConfig, segment_volume

METHODS = {"encoder": SegmentConfig(quality="fast"), "inversion": SegmentConfig(quality="standard")}


@dataclass(frozen=True)
class Demo:
    """Where the demo wrote, with its scores."""

    report: Path
    rows: list[ScoreRow]


def run_demo(
    bundle: Bundle,
    output: Path,
    *,
    patients: int = 2,
    on_progress: OnProgress = lambda done, total, message: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Demo:
    """Make ``patients`` in CT and T1 MRI (in and out of phase), segment them by both methods, score, report.

    Writes volumes/, references/, segmentations/ (of inversion), scores.json and report.html to ``output``.
    """
    cases = [(TEST_SEEDS + number, domain) for number in range(patients) for domain in DOMAINS]
    rows: list[ScoreRow] = []
    sections: list[ReportCase] = []
    for number, (seed, domain) in enumerate(cases):
        patient, name = f"phantom-{seed}", f"phantom-{seed}_{domain}"
        phantom = make_case(seed, domain)
        grid = phantom.image.grid
        truth = (phantom.labels == LIVER).astype(np.uint8)
        _write(output, name, phantom.image.array, truth, bundle, grid)
        dice: dict[str, float] = {}
        for which, (method, config) in enumerate(METHODS.items()):

            def progress(done: int, total: int, message: str, base: int = 2 * number + which, name: str = name) -> None:
                on_progress(base * total + done, 2 * len(cases) * total, f"{name}, {message}")

            found = segment_volume(phantom.image, bundle, config, on_progress=progress, should_stop=should_stop)
            scores = label_scores(found.labels, truth)
            dice[method] = scores.dice
            rows.append(ScoreRow(name, patient, domain, method, "liver", scores.dice, scores.jaccard))
        write_labels(output / "segmentations" / f"{name}_seg.nii.gz", found.labels, grid, bundle.config.labels)
        sections.append(
            report_case(found, bundle, name, domain=domain, truth=labels_to_model(truth, found.stack), scores=dice)
        )
    write_text(output / "scores.json", json_text(scores_json(rows)))
    facts = {
        "Model": f"{bundle.name} ({bundle.hash[:12]}), trained on CT only",
        "Images seen in training": f"{bundle.facts.get('gan_images', 0):,}",
        "Labelled patients in training": str(bundle.config.labelled),
        "Device": describe(bundle.device),
    }
    write_report(output / "report.html", "SemanticGAN demo", sections, facts=facts, scores_table=rows)
    return Demo(output / "report.html", rows)


def _write(output: Path, name: str, image: np.ndarray, truth: np.ndarray, bundle: Bundle, grid: Grid) -> None:
    for folder in ("volumes", "references", "segmentations"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    write_volume(output / "volumes" / f"{name}.nii.gz", image, grid)
    write_labels(output / "references" / f"{name}.nii.gz", truth, grid, bundle.config.labels)
