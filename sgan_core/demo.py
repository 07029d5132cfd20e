"""The tour: phantom patients that the bundled model never saw, segmented and scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sgan_core.batch import prepare_folder, report_case
from sgan_core.bundle import Bundle
from sgan_core.device import describe
from sgan_core.errors import InputError
from sgan_core.evaluation.tables import ScoreRow, json_text, scores_json, write_text
from sgan_core.imaging.slices import labels_to_model, to_volume
from sgan_core.imaging.writers import write_labels, write_volume
from sgan_core.labelling import OnProgress, SegmentConfig
from sgan_core.metrics.per_patient import label_scores
from sgan_core.phantom import DOMAINS, LIVER, TEST_SEEDS, PhantomCase, make_case
from sgan_core.report import ReportCase, write_report
from sgan_core.segment import part_of, segment_volume

ORGAN = "liver"


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
    """Make ``patients`` in CT and T1 MRI (in and out of phase), segment and score them, report.

    Writes volumes/, references/, segmentations/, scores.json and report.html to ``output``.
    Raises InputError for a model that knows no liver or is a student alone, and a folder that cannot be written.
    """
    organ = _organ_value(bundle)
    bundle.require_inverter()
    for folder in (output, *(output / name for name in ("volumes", "references", "segmentations"))):
        prepare_folder(folder)
    cases = [(TEST_SEEDS + number, domain) for number in range(patients) for domain in DOMAINS]
    rows: list[ScoreRow] = []
    sections: list[ReportCase] = []
    for number, (seed, domain) in enumerate(cases):
        of_case = part_of(on_progress, number, len(cases), f"phantom-{seed} {domain}, ")
        scored, section = _run_case(bundle, output, organ, seed, domain, of_case, should_stop)
        rows += scored
        sections.append(section)
    write_text(output / "scores.json", json_text(scores_json(rows)))
    facts = {
        "Model": f"{bundle.name} ({bundle.hash[:12]}), trained on {bundle.config.modality.upper()} only",
        "Images seen in training": f"{bundle.facts.get('gan_images', 0):,}",
        "Labelled patients in training": str(bundle.config.labelled),
        "Device": describe(bundle.device),
    }
    write_report(output / "report.html", "SemanticGAN demo", sections, facts=facts, scores_table=rows)
    return Demo(output / "report.html", rows)


def _organ_value(bundle: Bundle) -> int:
    """The label value of the organ that the demo scores."""
    for label in bundle.config.labels:
        if label.name == ORGAN:
            return label.value
    known = ", ".join(label.name for label in bundle.config.labels) or "none"
    raise InputError(
        f"{bundle.name}: the demo needs a model with the label {ORGAN!r}; this one has: {known}."
    )


def _run_case(
    bundle: Bundle,
    output: Path,
    organ: int,
    seed: int,
    domain: str,
    on_progress: OnProgress,
    should_stop: Callable[[], bool],
) -> tuple[list[ScoreRow], ReportCase]:
    """One patient in one domain by every method; files, scores and the report's section of the last method."""
    patient, name = f"phantom-{seed}", f"phantom-{seed}_{domain}"
    phantom = make_case(seed, domain)
    truth = ((phantom.labels == LIVER) * organ).astype(np.uint8)
    _write_case(output, name, phantom, truth, bundle)
    first = segment_volume(phantom.image, bundle, SegmentConfig(encoder_only=True), should_stop=should_stop)
    found = segment_volume(phantom.image, bundle, on_progress=on_progress, should_stop=should_stop)
    masks = {"encoder": first.labels}
    if found.inverted_probs is not None:
        masks["inversion"] = to_volume(found.inverted_probs, found.stack)
    if bundle.student is not None:
        masks["student"] = found.labels
    scores = {method: label_scores(mask, truth, label=organ) for method, mask in masks.items()}
    rows = [ScoreRow(name, patient, domain, method, ORGAN, s.dice, s.jaccard) for method, s in scores.items()]
    labels = bundle.config.labels
    write_labels(output / "segmentations" / f"{name}_seg.nii.gz", found.labels, phantom.image.grid, labels)
    dice = {row.method: row.dice for row in rows}
    truth_slices = labels_to_model(truth, found.stack)
    return rows, report_case(found, bundle, name, domain=domain, truth=truth_slices, scores=dice)


def _write_case(output: Path, name: str, phantom: PhantomCase, truth: np.ndarray, bundle: Bundle) -> None:
    grid = phantom.image.grid
    write_volume(output / "volumes" / f"{name}.nii.gz", phantom.image.array, grid)
    write_labels(output / "references" / f"{name}.nii.gz", truth, grid, bundle.config.labels)
