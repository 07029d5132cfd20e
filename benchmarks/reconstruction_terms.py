"""Which reconstruction term finds the label in images whose intensities mean something else.

    python benchmarks/reconstruction_terms.py --model phantom-ct-liver --cache DIR
    python benchmarks/reconstruction_terms.py --model phantom-ct-liver --cache DIR --terms mind --domains t1_in

Slices of the phantom's validation patients, with and without liver, in five domains: ``ct`` (as trained), ``shifted``
(the same slices, each patient under a random intensity curve, often not monotone, with bias field, noise and
blur), ``t1_in`` and ``t1_out`` (the same anatomy in MRI), ``t1_in_posed`` (moved and scaled so that the body's
box is that of CT). A term is scored by DICE per patient at model size after inversion with the model's own
optimiser. The start is, for each slice, the best under the term of the encoder's answers to the slice, to its
negative and to the slice with the histogram of CT.

Rows NAME+guide:W add W times (cross-entropy + Dice loss) between the generated label and that of a second
segmenter, a U-Net trained on the labelled patients under random appearance; NAME+truth:1 puts the true label
in its place: how well the generator can express it. +pull:W replaces the weight of the distance from the start.

Writes the output after every row, keeps what it already holds (``--again`` redoes it), prints a Markdown
table. A row in a domain takes half a minute to two on a busy core.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgan_core.appearance import shift_appearance
from sgan_core.bundle import Bundle, load_bundle
from sgan_core.cli import app
from sgan_core.config import InversionConfig, StudentTrainConfig
from sgan_core.evaluation.baselines import unet
from sgan_core.evaluation.tables import write_text
from sgan_core.inversion import invert
from sgan_core.looks import AppearanceConfig
from sgan_core.networks.generator import Generator, Pair
from sgan_core.networks.perceptual import Perceptual
from sgan_core.networks.segmenter import make_segmenter
from sgan_core.phantom import phantom_cohort
from sgan_core.reconstruction import (
    CURVE_KNOTS,
    IntensityMapReconstruction,
    MindReconstruction,
    PaperReconstruction,
    Reconstruction,
    Weighted,
    fit_curve,
    gaussian_blur,
    hat_functions,
    roughness,
)
from sgan_core.training.data import SliceStore, rng, slices_of_model
from sgan_core.training.evaluate import mean_dice

RESULTS = Path(__file__).parent / "results" / "reconstruction_terms.json"
DOMAINS = ("ct", "shifted", "t1_in", "t1_out", "t1_in_posed")

# --- the terms that are not in the package


class _Term:
    """Keeps the target as it is."""

    def aim(self, target: Tensor) -> None:
        self.target = target

    def keep(self, rows: Tensor) -> None:
        self.target = self.target[rows]


class Squared(_Term):
    """Mean squared error alone."""

    def terms(self, image: Tensor) -> dict[str, Tensor]:
        return {"mse": (image - self.target).square().mean(dim=(1, 2, 3))}


class PooledIntensityMap(_Term):
    """The intensity map with one curve for the whole batch, so only for slices of one patient."""

    def terms(self, image: Tensor) -> dict[str, Tensor]:
        basis = hat_functions(image, CURVE_KNOTS)  # (B, C, H, W, knots)
        mean = self.target.mean()
        with torch.no_grad():
            curve = fit_curve(basis.flatten(0, 3), (self.target - mean).flatten())  # (knots,)
        squared = (basis @ curve + mean - self.target).square().mean(dim=(1, 2, 3))
        return {"intensity_map": (squared + roughness(curve)) / (self.target.var(unbiased=False) + 1e-3)}


class InverseIntensityMap(_Term):
    """The share of the generated image that no curve over the target's intensities explains."""

    def terms(self, image: Tensor) -> dict[str, Tensor]:
        basis = hat_functions(self.target.flatten(1), CURVE_KNOTS)  # (B, C * H * W, knots)
        values = image.flatten(1)
        values = values - values.mean(dim=1, keepdim=True)
        with torch.no_grad():
            curve = fit_curve(basis, values)
        squared = ((basis @ curve[..., None])[..., 0] - values).square().mean(dim=1)
        return {"inverse_map": (squared + roughness(curve)) / (values.square().mean(dim=1) + 1e-3)}


class PerceptualIntensityMap(_Term):
    """The paper's perceptual distance, to the generated image after its intensity curve."""

    def __init__(self, perceptual: Perceptual) -> None:
        self.perceptual = perceptual

    def aim(self, target: Tensor) -> None:
        super().aim(target)
        with torch.no_grad():
            self.features = self.perceptual.features(target)

    def keep(self, rows: Tensor) -> None:
        super().keep(rows)
        self.features = [part[rows] for part in self.features]

    def terms(self, image: Tensor) -> dict[str, Tensor]:
        basis = hat_functions(image.flatten(1), CURVE_KNOTS)
        mean = self.target.mean(dim=(1, 2, 3), keepdim=True)
        with torch.no_grad():
            curve = fit_curve(basis, (self.target - mean).flatten(1))
        mapped = (basis @ curve[..., None])[..., 0].view_as(image) + mean
        return {"perceptual": self.perceptual.distance(self.perceptual.features(mapped), self.features)}


class LocalCorrelation(_Term):
    """One minus the squared normalised cross-correlation in a Gaussian window, averaged over the image."""

    sigma, floor = 2.0, 1e-3

    def terms(self, image: Tensor) -> dict[str, Tensor]:
        def local(x: Tensor) -> Tensor:
            return gaussian_blur(x, sigma_px=self.sigma)

        mean, target_mean = local(image), local(self.target)
        variance = (local(image * image) - mean * mean).clamp(min=0.0) + self.floor
        target_variance = (local(self.target * self.target) - target_mean**2).clamp(min=0.0) + self.floor
        covariance = local(image * self.target) - mean * target_mean
        return {"lncc": (1.0 - covariance.square() / (variance * target_variance)).mean(dim=(1, 2, 3))}


class GradientField(_Term):
    """Normalised gradient fields (Haber and Modersitzki 2006): edges in the same places, whatever their sign."""

    def terms(self, image: Tensor) -> dict[str, Tensor]:
        (a, a_squared), (b, b_squared) = self._gradient(image), self._gradient(self.target)
        aligned = (a * b).sum(dim=1).square() / (a_squared * b_squared)
        return {"ngf": (1.0 - aligned).mean(dim=(1, 2))}

    def _gradient(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Central differences (B, 2, H, W) and squared length (B, H, W), raised where there is only noise."""
        padded = F.pad(image, (1,) * 4, mode="replicate")
        rows = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
        columns = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
        gradient = torch.cat([rows, columns], dim=1)
        squared = gradient.square().sum(dim=1)
        edge = (squared.detach() + 1e-12).sqrt().mean(dim=(1, 2), keepdim=True)
        return gradient, squared + edge.square() + 1e-6


class MutualInformation(_Term):
    """Two minus normalised mutual information (Studholme et al. 1999), 16 bins with linear Parzen windows."""

    bins = 16

    def terms(self, image: Tensor) -> dict[str, Tensor]:
        a, b = (hat_functions(x.flatten(1), self.bins) for x in (image, self.target))  # (B, N, bins)
        joint = a.mT @ b / a.shape[1]

        def entropy(shares: Tensor) -> Tensor:
            return -(shares * (shares + 1e-8).log()).flatten(1).sum(dim=1)

        separate = entropy(joint.sum(dim=2)) + entropy(joint.sum(dim=1))
        return {"mutual_information": 2.0 - separate / (entropy(joint) + 1e-6)}


class Nothing(_Term):
    """No term: what the guide does alone."""

    def terms(self, image: Tensor) -> dict[str, Tensor]:
        return {"nothing": 0.0 * image.mean(dim=(1, 2, 3))}


Build = Callable[[Perceptual, InversionConfig], Reconstruction]

TERMS: dict[str, Build] = {
    "paper": PaperReconstruction,
    "mse": lambda p, c: Squared(),
    "intensity-map": lambda p, c: IntensityMapReconstruction(),
    "map-per-volume": lambda p, c: PooledIntensityMap(),
    "map-inverse": lambda p, c: InverseIntensityMap(),
    "map-both": lambda p, c: Weighted((0.5, IntensityMapReconstruction()), (0.5, InverseIntensityMap())),
    "map-perceptual": lambda p, c: Weighted(
        (1.0, IntensityMapReconstruction()), (1.0, PerceptualIntensityMap(p))
    ),
    "map-mind": lambda p, c: Weighted((1.0, IntensityMapReconstruction()), (0.5, MindReconstruction())),
    "mind-map": lambda p, c: Weighted((1.0, MindReconstruction()), (0.2, IntensityMapReconstruction())),
    "mind": lambda p, c: MindReconstruction(),
    "lncc": lambda p, c: LocalCorrelation(),
    "ngf": lambda p, c: GradientField(),
    "mi": lambda p, c: MutualInformation(),
    "nothing": lambda p, c: Nothing(),
}
ROWS = (
    *("paper", "mse", "intensity-map", "map-per-volume", "map-inverse", "map-both", "map-perceptual"),
    *("map-mind", "mind-map", "mind", "lncc", "ngf", "mi"),
    *("intensity-map+guide:0.3", "intensity-map+guide:1", "nothing+guide:1", "intensity-map+truth:1"),
    *("intensity-map+pull:0.1", "map-mind+pull:0.1", "mind+guide:0.3"),
)


# --- labels that guide


class WithLabels(nn.Module):
    """A generator whose images carry the label logits as further channels, so that a term can see them."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator
        self.mean_w, self.broadcast, self.num_ws = generator.mean_w, generator.broadcast, generator.num_ws

    def synthesis(self, w_plus: Tensor) -> Pair:
        image, label_logits = self.generator.synthesis(w_plus)
        return Pair(torch.cat([image, label_logits], dim=1), label_logits)


class Guided:
    """A term, and the agreement of the generated label with given label probabilities (B, K, H, W)."""

    def __init__(self, term: Reconstruction, label_probs: Tensor, weight: float, channels: int) -> None:
        self.term, self.label_probs, self.weight, self.channels = term, label_probs, weight, channels

    def aim(self, target: Tensor) -> None:
        self.term.aim(target)

    def keep(self, rows: Tensor) -> None:
        self.term.keep(rows)
        self.label_probs = self.label_probs[rows]

    def terms(self, image: Tensor) -> dict[str, Tensor]:
        found = self.term.terms(image[:, : self.channels])
        if self.weight:
            found["guide"] = self.weight * disagreement(image[:, self.channels :], self.label_probs)
        return found


def disagreement(label_logits: Tensor, label_probs: Tensor) -> Tensor:
    """Cross-entropy + Dice loss of each slice, both (B, K, H, W) -> (B,)."""
    cross_entropy = -(label_probs * label_logits.log_softmax(dim=1)).sum(dim=1).mean(dim=(1, 2))
    found, given = label_logits.softmax(dim=1)[:, 1:], label_probs[:, 1:]
    overlap, total = (found * given).sum(dim=(2, 3)), (found + given).sum(dim=(2, 3))
    return cross_entropy + (1.0 - (2.0 * overlap + 1.0) / (total + 1.0)).mean(dim=1)


# --- the slices


class Slices(NamedTuple):
    """Slices of one domain."""

    images: Tensor  # (N, 1, S, S)
    labels: np.ndarray  # (N, S, S)
    patients: list[str]


def all_slices(bundle: Bundle, cache: Path, per_patient: int) -> tuple[dict[str, Slices], SliceStore]:
    """The domains' slices, and the labelled CT of the training patients for the second segmenter."""
    stores = {domain: _store(bundle, domain, cache) for domain in ("ct", "t1_in", "t1_out")}
    found = {domain: _spread(store, per_patient) for domain, store in stores.items()}
    ct = found["ct"]
    volumes = ct.images.unflatten(0, (-1, per_patient))[
        :, :, 0
    ]  # slices as channels: a patient has one curve
    looks = AppearanceConfig(fat=0.0, curve=1.0)  # fat is looked for in one slice, not in several as channels
    changed = shift_appearance(volumes, rng(0, 0, "reconstruction-validation"), looks)
    found["shifted"] = Slices(changed.reshape_as(ct.images), ct.labels, ct.patients)
    found["t1_in_posed"] = posed(found["t1_in"], like=ct)
    return found, stores["ct"]


def _store(bundle: Bundle, domain: str, cache: Path) -> SliceStore:
    cohort = phantom_cohort(labelled=bundle.config.labelled, domain=domain)
    wanted = [
        case
        for case in cohort.cases
        if case.split == "validation" or (domain == "ct" and case.label is not None)
    ]
    config = bundle.config
    return slices_of_model(
        replace(cohort, cases=tuple(wanted)), config, cache, size=config.generator.size, processes=1
    )


def _spread(store: SliceStore, per_patient: int) -> Slices:
    """Slices of every validation patient, evenly spread over its length."""
    positions = store.slices_of(split="validation")
    patients = np.array(store.patients(positions))
    chosen = []
    for patient in np.unique(patients):
        own = positions[patients == patient]
        chosen.append(own[(np.linspace(0.12, 0.88, per_patient) * (len(own) - 1)).round().astype(int)])
    index = np.concatenate(chosen)
    return Slices(store.image_batch(index), store.labels[index], store.patients(index))


def posed(slices: Slices, like: Slices) -> Slices:
    """Shift and scale each patient's slices so that the body's box has the mean centre and width of ``like``'s."""
    wanted = np.mean(list(body_boxes(like).values()), axis=0)
    boxes = body_boxes(slices)
    size = slices.images.shape[-1]
    images, labels = [], []
    for image, label, patient in zip(slices.images, slices.labels, slices.patients, strict=True):
        row, column, width = boxes[patient]
        scale = float(width / wanted[2])  # of a step on the new grid, in steps of the old one
        shift = [
            (at - size / 2) * 2 / size - scale * (to - size / 2) * 2 / size
            for at, to in ((column, wanted[1]), (row, wanted[0]))
        ]
        matrix = torch.tensor([[[scale, 0.0, shift[0]], [0.0, scale, shift[1]]]], dtype=torch.float32)
        grid = F.affine_grid(matrix, [1, 1, size, size], align_corners=False)
        images.append(F.grid_sample(image[None] + 1.0, grid, align_corners=False) - 1.0)
        share = torch.from_numpy((label == 1).astype(np.float32))[None, None]
        labels.append(F.grid_sample(share, grid, align_corners=False)[0, 0].numpy() > 0.5)
    return Slices(torch.cat(images), np.stack(labels).astype(np.uint8), slices.patients)


def body_boxes(slices: Slices) -> dict[str, np.ndarray]:
    """Centre (row, column) and width of each patient's body, pixels, the median over its slices."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for image, patient in zip(slices.images[:, 0].numpy(), slices.patients, strict=True):
        body = image > -0.8
        rows, columns = (np.flatnonzero(body.mean(axis=axis) > 0.1) for axis in (1, 0))
        box = ((rows[0] + rows[-1] + 1) / 2, (columns[0] + columns[-1] + 1) / 2, columns[-1] - columns[0] + 1)
        found.setdefault(patient, []).append(box)
    return {patient: np.median(boxes, axis=0) for patient, boxes in found.items()}


# --- one row


class _Answers(nn.Module):
    """An encoder that gives the chosen start first, then its own answers: to images without labels."""

    def __init__(self, encoder: nn.Module, start: Tensor, channels: int) -> None:
        super().__init__()
        self.encoder, self.channels = encoder, channels
        self.start: Tensor | None = start

    def forward(self, image: Tensor) -> Tensor:
        if self.start is not None:
            start, self.start = self.start, None
            return start
        return self.encoder(image[:, : self.channels])


def starts(encoder: nn.Module, images: Tensor, ct: Tensor) -> list[Tensor]:
    """Answers of the encoder to the slices, their negatives with dark air, and with the histogram of CT."""
    negative = torch.where(images < -0.9, images, -images)
    grey = ct.flatten().sort().values
    rank = images.flatten(1).argsort(dim=1).argsort(dim=1).double() / (images[0].numel() - 1)
    matched = grey[(rank * (len(grey) - 1)).long()].view_as(images)
    with torch.no_grad():
        return [encoder(x) for x in (images, negative, matched)]


def best_start(
    candidates: list[Tensor], generator: WithLabels, term: Reconstruction, target: Tensor
) -> Tensor:
    """Of each slice's candidates (B, num_ws, w_dim) the one with the smallest terms."""
    term.aim(target)
    with torch.no_grad():
        losses = [sum(term.terms(generator.synthesis(w).image).values()) for w in candidates]
    choice = torch.stack(losses).argmin(dim=0)  # (B,)
    return torch.stack(candidates)[choice, torch.arange(len(target))]


def run_row(
    row: str, slices: Slices, ct: Tensor, bundle: Bundle, student: nn.Module, steps: int
) -> dict[str, Any]:
    """Invert the slices patient by patient under the term named ``row``; DICE and the image term's value."""
    name, *extras = row.split("+")
    weights = {kind: float(weight) for kind, _, weight in (extra.partition(":") for extra in extras)}
    generator = WithLabels(bundle.generator)
    pull = weights.get("pull", bundle.config.inversion.start_weight)
    config = replace(bundle.config.inversion, steps=steps, start_weight=pull)
    with torch.no_grad():
        guides = student(slices.images).softmax(dim=1)
    if "truth" in weights:
        guides = (
            F.one_hot(torch.from_numpy(slices.labels).long(), guides.shape[1]).permute(0, 3, 1, 2).float()
        )
    began = time.monotonic()
    patients = np.array(slices.patients)
    groups = [np.flatnonzero(patients == p) for p in np.unique(patients)]
    if name != "map-per-volume":  # slices are independent: one batch is faster
        groups = [np.arange(len(patients))]
    predicted = np.zeros_like(slices.labels)
    started = np.zeros_like(slices.labels)
    losses = np.zeros(len(patients))
    for group in groups:
        target = slices.images[group]
        image_term = TERMS[name](bundle.perceptual, config)
        term = Guided(
            image_term, guides[group], weights.get("guide", weights.get("truth", 0.0)), target.shape[1]
        )
        first = best_start(starts(bundle.encoder, target, ct), generator, term, target)
        encoder = _Answers(bundle.encoder, first, target.shape[1])
        found = invert(target, generator, encoder, term, config, curvature=bundle.curvature)  # type: ignore[arg-type]
        with torch.no_grad():
            started[group] = bundle.generator.synthesis(first).labels().numpy()
            image_term.aim(target)
            value = sum(image_term.terms(bundle.generator.synthesis(found.w_plus).image).values())
        predicted[group] = found.label_probs.argmax(dim=1).numpy()
        losses[group] = value.numpy()
    classes = bundle.config.generator.num_classes

    def dice(labels: np.ndarray) -> float:
        return round(mean_dice(labels, slices.labels, slices.patients, classes), 4)

    return {
        "start_dice": dice(started),
        "dice": dice(predicted),
        "student_dice": dice(guides.argmax(dim=1).numpy().astype(np.uint8)),
        "image_term": round(float(losses.mean()), 4),
        "seconds_a_slice": round((time.monotonic() - began) / len(patients), 2),
    }


# --- the table


def compare(args: argparse.Namespace) -> None:
    """Score rows in domains, keeping what the output already holds."""
    bundle = load_bundle(args.model)
    student_file = None if args.cache is None else args.cache / f"student-{args.student_steps}.pt"
    with tempfile.TemporaryDirectory() as scratch:
        slices, labelled = all_slices(bundle, args.cache or Path(scratch), args.per_patient)
        student = second_segmenter(labelled, bundle, args.student_steps, student_file)
    settings = {
        "model": bundle.name,
        "steps": args.steps,
        "slices_a_domain": len(slices["ct"].patients),
        "student_steps": args.student_steps,
    }
    table: dict[str, Any] = {"settings": settings, "rows": {}}
    if args.output.exists():
        stored = json.loads(args.output.read_text(encoding="utf-8"))
        if stored["settings"] == settings:
            table = stored
    for domain in args.domains:
        for row in args.terms:
            done = table["rows"].setdefault(row, {})
            if domain in done and not args.again:
                continue
            done[domain] = run_row(row, slices[domain], slices["ct"].images, bundle, student, args.steps)
            print(f"{domain} {row}: {done[domain]}", file=sys.stderr, flush=True)
            write_text(args.output, json.dumps(table, indent=1) + "\n")
    print(markdown(table))


def second_segmenter(store: SliceStore, bundle: Bundle, steps: int, file: Path | None) -> nn.Module:
    """A U-Net taught by the labelled patients under random appearance; its weights are kept in ``file``."""
    config = unet.UnetConfig(steps=steps, appearance=True)
    classes = bundle.config.generator.num_classes
    if file is not None and file.exists():
        widths = StudentTrainConfig().channels
        net = make_segmenter(widths, image_channels=1, num_classes=classes, seed=config.seed)
        net.load_state_dict(torch.load(file, weights_only=True))
        return net.eval()
    net = unet.train_unet(store, config, labelled=bundle.config.labelled, num_classes=classes)
    if file is not None:
        torch.save(net.state_dict(), file)
    return net


def markdown(table: dict[str, Any]) -> str:
    """DICE of every row in every domain, the start's in brackets."""
    lines = [f"| term | {' | '.join(DOMAINS)} |", "| --- |" + " ---: |" * len(DOMAINS)]
    for row, found in table["rows"].items():
        cells = [
            f"{found[d]['dice']:.3f} ({found[d]['start_dice']:.3f})" if d in found else "" for d in DOMAINS
        ]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns the exit code."""
    p = app.Parser("reconstruction_terms", description=__doc__ or "")
    p.add_argument("--model", required=True, metavar="BUNDLE", help="trained on the phantom's liver in CT")
    p.add_argument("--output", type=Path, default=RESULTS, metavar="FILE", help="default: %(default)s")
    p.add_argument("--terms", nargs="+", default=list(ROWS), metavar="ROW", help="default: all")
    p.add_argument("--domains", nargs="+", choices=DOMAINS, default=list(DOMAINS), help="default: all")
    p.add_argument("--per-patient", type=int, default=2, metavar="N", help="slices a patient (default 2)")
    p.add_argument("--steps", type=int, default=40, help="of inversion (default 40)")
    p.add_argument("--student-steps", type=int, default=1500, help="of the second segmenter (default 1500)")
    p.add_argument("--cache", type=Path, metavar="DIR", help="keeps slices and U-Net (default: not kept)")
    p.add_argument("--again", action="store_true", help="redo rows that the output holds")
    return app.run(compare, p, argv)


if __name__ == "__main__":
    raise SystemExit(main())
