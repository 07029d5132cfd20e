"""The table of trust: how well the report finds wrong masks and foreign inputs, beside simpler scores.

    python benchmarks/trust_table.py --model runs/phantom64/bundle --output results

Phantom patients that neither training nor the choice of features has seen, as they are, in other looks and
corrupted; some corruptions are of kinds that no calibration has seen, among them photographs of scikit-image.
The calibration is the bundle's, or fitted on the phantom's validation patients. The mask is the student's or
the encoder's. Writes OUTPUT/trust.json and OUTPUT/trust.md. Intervals: 95 %, patients drawn anew.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sgan_core.appearance import shift_appearance
from sgan_core.bundle import Bundle, load_bundle
from sgan_core.cli import app
from sgan_core.device import choose_device, describe
from sgan_core.errors import InputError
from sgan_core.evaluation.tables import Table, json_text, markdown, number, print_table, write_text
from sgan_core.imaging.image import Picture
from sgan_core.imaging.readers import read_image
from sgan_core.imaging.slices import labels_to_model, reduced, to_model
from sgan_core.labelling import QUALITIES, answers
from sgan_core.looks import AppearanceConfig
from sgan_core.metrics import failure
from sgan_core.networks.segmenter import label_probs
from sgan_core.phantom import DOMAINS, LIVER, make_case, phantom_cohort
from sgan_core.segment import choose_intensity
from sgan_core.training import calibrate
from sgan_core.training.calibrate import Shown
from sgan_core.training.data import rng, slices_of_model
from sgan_core.trust import Anatomy, Calibration, judge, kept, moved, stored_calibration

FIRST_SEED = 700_000  # far from training and validation, not among the test patients either
PHOTOGRAPHS = ("astronaut", "camera", "coins", "chelsea", "coffee", "rocket", "brick", "grass", "page")
PLAIN = ("clean", "appearance", "family")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns the exit code."""
    p = app.Parser("trust_table", description=__doc__ or "")
    p.add_argument(
        "--model", required=True, metavar="BUNDLE", help="a bundle of the phantom's liver with a student"
    )
    p.add_argument("--output", required=True, type=Path, metavar="DIR", help="for trust.json and trust.md")
    p.add_argument("--patients", type=int, default=8, metavar="N", help="default: %(default)s")
    p.add_argument("--slices", type=int, default=8, metavar="N", help="of a patient and look (default 8)")
    p.add_argument("--first-seed", type=int, default=FIRST_SEED, metavar="N", help="default: %(default)s")
    p.add_argument("--domain", choices=DOMAINS, default="ct", help="of the patients (default ct)")
    p.add_argument("--quality", choices=QUALITIES, default="standard", help="default: standard")
    p.add_argument(
        "--method", choices=("student", "encoder"), default="student", help="whose mask (default: student)"
    )
    p.add_argument("--pictures", type=Path, metavar="DIR", help="other foreign pictures, e.g. chest X-rays")
    p.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: auto")
    return app.run(
        lambda args: make_table(args, load_bundle(args.model, choose_device(args.device))), p, argv
    )


def make_table(args: argparse.Namespace, bundle: Bundle) -> None:
    """Calibrate if needed, measure, write both files."""
    if args.patients < 2 or args.slices < 1:
        raise InputError("give at least 2 --patients and 1 of their --slices.")
    if bundle.student is None:
        raise InputError(f"{args.model}: has no student. Train it again, all stages.")
    if args.method == "encoder" and args.quality != "fast":
        raise InputError("--method encoder goes with --quality fast: its mask is the same at any quality.")
    say(f"{bundle.name}, {args.quality}, {args.method}, {describe(bundle.device)}")

    def segment(images: np.ndarray, anatomy: Anatomy) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return answers(images, bundle, args.quality, anatomy)

    calibration, fit = calibrated(bundle, segment, args.quality, args.method)
    say(f"calibration: {fit or 'the bundle'}")
    shown = inputs(args, bundle)
    began = time.monotonic()
    measured = calibrate.measure(shown, segment, calibration.anatomy)[args.method]
    seconds = (time.monotonic() - began) / len(shown)
    say(f"{len(shown)} slices, {seconds:.2f} s a slice")
    found = figures(shown, measured, calibration, baselines(shown, bundle))
    head = {
        "model": bundle.hash,
        "quality": args.quality,
        "method": args.method,
        "domain": args.domain,
        "patients": args.patients,
        "slices": len(shown),
        "validation": fit,
    }
    tables = as_tables(found)
    write_text(args.output / "trust.json", json_text(head | found))
    cases = f"{args.patients} phantom patients, {args.domain}"
    words = f"Model `{bundle.name}` ({bundle.hash[:12]}), {args.quality}, {args.method}, {cases}."
    write_text(args.output / "trust.md", "\n".join([f"{words}\n", *map(markdown, tables)]))
    for table in tables:
        print_table(table)


def say(line: str) -> None:
    """Progress goes to stderr: stdout is for the table."""
    print(line, file=sys.stderr, flush=True)


# --- what is segmented -----------------------------------------------------------------------------


def calibrated(
    bundle: Bundle, segment: calibrate.SegmentSlices, quality: str, method: str
) -> tuple[Calibration, dict[str, float]]:
    """The bundle's calibration, or one fitted on the phantom's validation patients with its figures."""
    stored = stored_calibration(bundle.facts, quality, method)
    if stored is not None:
        return stored, {}
    cohort = phantom_cohort(labelled=bundle.config.labelled)
    cases = tuple(case for case in cohort.cases if case.labelled)  # enough to know the anatomy
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        store = slices_of_model(replace(cohort, cases=cases), bundle.config, Path(folder))
        assert bundle.student is not None
        anatomy = calibrate.training_anatomy(store, bundle.student, device=bundle.device)
        return calibrate.calibrate(calibrate.show(store), segment, anatomy)[method]


def inputs(args: argparse.Namespace, bundle: Bundle) -> Shown:
    """All slices of the table: clean, in other looks, corrupted in known and in new ways, and pictures."""
    clean = patients_slices(args, bundle)
    parts = [clean]
    images = torch.from_numpy(clean.images)
    looks = {
        "appearance": shift_appearance(images, rng(0, 0, "trust-table"), AppearanceConfig(curve=1.0)),
        "family": calibrate.look_family(images, rng(0, 1, "trust-table")),
    }
    for kind, look in looks.items():
        parts.append(replace(clean, images=look.numpy(), kinds=(kind,) * len(clean)))
    random = np.random.default_rng(args.first_seed)
    some = np.arange(len(clean))[:: max(1, args.slices // 3)]
    for corrupt in (*calibrate.CORRUPTIONS, quarter_turn, upside_down, streaks):
        pairs = [
            corrupt(clean.images[k], clean.labels[k], random.uniform(*calibrate.SEVERE), random) for k in some
        ]
        corrupted, labels = (np.stack(side) for side in zip(*pairs, strict=True))
        parts.append(foreign(corrupt.__name__, corrupted, labels, [clean.patients[k] for k in some]))
    for kind, pictures in (
        ("photograph", photographs(bundle)),
        ("picture", folder_pictures(args.pictures, bundle)),
    ):
        if len(pictures):
            chosen = pictures[np.arange(len(some)) % len(pictures)]
            empty = np.zeros((len(some), *chosen.shape[2:]), np.uint8)
            parts.append(foreign(kind, chosen, empty, [clean.patients[k] for k in some]))
    return calibrate.join(parts)


def patients_slices(args: argparse.Namespace, bundle: Bundle) -> Shown:
    """Slices of the patients at equal distances, from the lowest to the highest, empty ones too."""
    config, images, labels, patients = bundle.config, [], [], []
    for seed in range(args.first_seed, args.first_seed + args.patients):
        case = make_case(seed, args.domain)
        intensity, _ = choose_intensity(case.image, config.intensity)
        stack = to_model(
            case.image, size=config.student_size, intensity=intensity, squash=config.squash, body=config.body
        )
        chosen = np.linspace(0, len(stack.images) - 1, args.slices + 2).round().astype(int)[1:-1]
        images.append(stack.images[chosen])
        labels.append(labels_to_model((case.labels == LIVER).astype(np.uint8), stack)[chosen])
        patients += [str(seed)] * len(chosen)
    count = len(patients)
    return Shown(
        np.concatenate(images), np.concatenate(labels), tuple(patients), ("clean",) * count, np.zeros(count)
    )


def foreign(kind: str, images: np.ndarray, labels: np.ndarray, patients: list[str]) -> Shown:
    """A part of foreign slices. Pictures are booked on the patients in turn, for the intervals."""
    count = len(images)
    clipped = images.clip(-1.0, 1.0).astype(np.float32)
    return Shown(clipped, labels, tuple(patients), (kind,) * count, np.ones(count))


# Kinds that no calibration has seen; signature of ``calibrate.Corruption``.


def quarter_turn(
    image: np.ndarray, label: np.ndarray, grade: float, random: np.random.Generator
) -> calibrate.Pair:
    """Turned by exactly 90 degrees."""
    return np.rot90(image, axes=(1, 2)), np.rot90(label)


def upside_down(
    image: np.ndarray, label: np.ndarray, grade: float, random: np.random.Generator
) -> calibrate.Pair:
    """Mirrored from front to back."""
    return image[:, ::-1], label[::-1]


def streaks(
    image: np.ndarray, label: np.ndarray, grade: float, random: np.random.Generator
) -> calibrate.Pair:
    """Bright and dark rays from two pieces of metal."""
    size = label.shape[0]
    rows, columns = np.mgrid[:size, :size]
    image = image.copy()
    for _ in range(2):
        row, column = random.uniform(0.3, 0.7, 2) * size
        angle, distance = np.arctan2(rows - row, columns - column), np.hypot(rows - row, columns - column)
        rays = sum(np.cos(n * angle + random.uniform(0, 2 * np.pi)) for n in random.integers(4, 18, 4))
        image += grade * rays / (1.0 + distance / (0.28 * size))
        image[:, distance < 0.04 * size] = 1.0
    return image, label


def photographs(bundle: Bundle) -> np.ndarray:
    """Pictures (N, C, S, S) that come with scikit-image."""
    from skimage import data

    arrays = [np.atleast_3d(getattr(data, name)())[..., :3] for name in PHOTOGRAPHS]
    return as_slices([Picture(np.ascontiguousarray(array.transpose(2, 0, 1))) for array in arrays], bundle)


def folder_pictures(folder: Path | None, bundle: Bundle, most: int = 24) -> np.ndarray:
    """Up to ``most`` pictures of a folder."""
    if folder is None:
        return np.empty(0)
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not files:
        raise InputError(f"{folder}: no .png or .jpg in it. Give a folder of pictures.")
    chosen = files[:: max(1, len(files) // most)][:most]
    return as_slices([image for image in map(read_image, chosen) if isinstance(image, Picture)], bundle)


def as_slices(pictures: Sequence[Picture], bundle: Bundle) -> np.ndarray:
    """Pictures at model size, their brightness by percentiles."""
    size, channels = bundle.config.student_size, bundle.config.generator.image_channels
    intensity = replace(bundle.config.intensity, low=None, high=None, unit="", percentiles=(1.0, 99.0))
    body = bundle.config.body
    stacks = [
        to_model(picture, size=size, intensity=intensity, channels=channels, body=body)
        for picture in pictures
    ]
    return np.concatenate([stack.images for stack in stacks])


# --- what is compared ------------------------------------------------------------------------------


def baselines(shown: Shown, bundle: Bundle) -> dict[str, np.ndarray]:
    """Simpler scores (N,), higher is more suspicious; two from the student, as any U-Net can give them."""
    assert bundle.student is not None
    images = torch.from_numpy(shown.images).to(bundle.device)
    probs = label_probs(bundle.student, images)
    mask = probs.argmax(dim=1).cpu()
    entropy = -(probs * probs.clamp(min=1e-9).log()).sum(dim=1).mean(dim=(1, 2))
    agreement = []
    step = images.shape[-1] // 32
    for rows, columns in ((step, 0), (-step, 0), (0, step), (0, -step)):
        answer = label_probs(bundle.student, moved(images, rows, columns)).argmax(dim=1).cpu()
        both = kept(answer, -rows, -columns), kept(mask, rows, columns)
        agreement.append(failure.slice_dice(*(part.numpy() for part in both)))
    small = reduced(images, bundle.config.generator.size)
    with torch.no_grad():
        drawn = torch.cat(
            [bundle.generator.synthesis(bundle.encoder(part)).image for part in small.split(32)]
        )
    return {
        "small area": -(mask > 0).sum(dim=(1, 2)).numpy().astype(float),
        "entropy": entropy.cpu().numpy().astype(float),
        "shifted copies disagree": 1.0 - np.mean(agreement, axis=0),
        "reconstruction error": (drawn - small).square().mean(dim=(1, 2, 3)).sqrt().cpu().numpy(),
    }


def figures(
    shown: Shown, measured: calibrate.Measured, calibration: Calibration, simple: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """All that the tables show."""
    p_wrong, p_foreign = calibration.probabilities(measured.features)
    kinds, risk, is_foreign = np.array(shown.kinds), 1.0 - measured.slice_dice, shown.foreign > 0.5
    plain = np.isin(kinds, PLAIN)
    scores = {"trust": p_wrong} | dict(simple)
    wanted: dict[str, Callable[[np.ndarray], float]] = {}
    for name, score in scores.items():
        suspicion = p_foreign if name == "trust" else score
        wanted |= {
            f"{name}/auc_wrong": lambda i, s=score: failure.auc(s[i], measured.wrong[i]),
            f"{name}/auc_wrong_plain": lambda i, s=score: failure.auc(
                s[i][plain[i]], measured.wrong[i][plain[i]]
            ),
            f"{name}/risk_area": lambda i, s=score: failure.risk_coverage_area(s[i], risk[i]),
            f"{name}/auc_foreign": lambda i, s=suspicion: failure.auc(s[i], is_foreign[i]),
            f"{name}/auc_foreign_clean": lambda i, s=suspicion: foreign_auc(
                s[i], is_foreign[i], kinds[i] == "clean"
            ),
        }

    def every(index: np.ndarray) -> dict[str, float]:
        return {name: figure(index) for name, figure in wanted.items()}

    values = every(np.arange(len(shown)))
    intervals = failure.patient_bootstrap(every, shown.patients, draws=200)
    by_kind, patients = {}, np.array(shown.patients)
    for kind in dict.fromkeys(shown.kinds):
        own = kinds == kind
        cases = [
            judge(
                measured.features[own & (patients == patient)],
                calibration,
                validation_dice=1.0,  # the model's own figure would hide what the slices say
            )
            for patient in dict.fromkeys(shown.patients)
        ]
        area, empty = failure.empty_slice_area_mm2(measured.masks[own], shown.labels[own], 1.0)
        by_kind[kind] = {
            "slices": int(own.sum()),
            "slice_dice": float(measured.slice_dice[own].mean()),
            "wrong": float(measured.wrong[own].mean()),
            "predicted_wrong": float(p_wrong[own].mean()),
            "foreign_share": float((p_foreign[own] >= 0.5).mean()),
            "auc_foreign_clean": foreign_auc(p_foreign, own & (kind != "clean"), kinds == "clean"),
            "cases_reviewed": float(np.mean([case.status == "review" for case in cases])),
            "pixels_on_empty_slices": area,
            "empty_slices": empty,
        }
    bins = failure.reliability(p_wrong, measured.wrong)
    return {
        "figures": {name: {"value": value, "interval": intervals[name]} for name, value in values.items()},
        "kinds": by_kind,
        "reliability": [asdict(part) for part in bins],
        "calibration_error": failure.calibration_error(bins),
        "calibration_error_plain": failure.calibration_error(
            failure.reliability(p_wrong[plain], measured.wrong[plain])
        ),
    }


def foreign_auc(score: np.ndarray, is_foreign: np.ndarray, is_clean: np.ndarray) -> float:
    """AUC of foreign against clean slices only."""
    either = is_foreign | is_clean
    return failure.auc(score[either], is_foreign[either])


SCORE_COLUMNS = {  # figure: heading
    "auc_wrong": "AUC wrong mask",
    "auc_wrong_plain": "the same, not corrupted",
    "risk_area": "risk-coverage area",
    "auc_foreign": "AUC foreign",
    "auc_foreign_clean": "the same, against clean",
}
KIND_COLUMNS = {
    "slice_dice": "slice DICE",
    "wrong": "wrong",
    "predicted_wrong": "predicted",
    "foreign_share": "called foreign",
    "auc_foreign_clean": "AUC against clean",
    "cases_reviewed": "cases to review",
}


def as_tables(found: Mapping[str, Any]) -> list[Table]:
    """Scores side by side, then kinds of input, then reliability."""
    names = dict.fromkeys(name.split("/")[0] for name in found["figures"])
    scores = tuple(
        (name, *(with_interval(found["figures"][f"{name}/{column}"]) for column in SCORE_COLUMNS))
        for name in names
    )
    kinds = tuple(
        (kind, str(entry["slices"]), *(number(entry[column], 2) for column in KIND_COLUMNS))
        for kind, entry in found["kinds"].items()
    )
    bins = tuple(
        (
            f"{part['low']:.1f} to {part['high']:.1f}",
            str(part["slices"]),
            number(part["predicted"], 2),
            number(part["observed"], 2),
        )
        for part in found["reliability"]
    )
    error = number(found["calibration_error"], 3)
    return [
        Table(
            "Wrong masks (slice DICE below 0.7) and foreign slices",
            ("score", *SCORE_COLUMNS.values()),
            scores,
        ),
        Table("Kinds of input (shares)", ("input", "slices", *KIND_COLUMNS.values()), kinds),
        Table(
            f"Probability of a wrong mask (calibration error {error})",
            ("predicted", "slices", "mean", "observed"),
            bins,
        ),
    ]


def with_interval(entry: Mapping[str, Any]) -> str:
    """A value with its interval, e.g. ``0.91 (0.85 to 0.95)``."""
    low, high = entry["interval"]
    return f"{number(entry['value'], 2)} ({number(low, 2)} to {number(high, 2)})"


if __name__ == "__main__":
    raise SystemExit(main())
