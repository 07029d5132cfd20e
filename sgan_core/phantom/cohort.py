"""Phantom patients as cases: one scan of one seed, or a cohort of them."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from sgan_core.cohort import Case, Cohort, Intensity
from sgan_core.errors import InputError
from sgan_core.imaging.image import Volume
from sgan_core.phantom.anatomy import (
    CT,
    LABELS,
    LIVER,
    MR,
    NOISE_IN,
    NOISE_OUT,
    TEST_SEEDS,
    draw_anatomy,
    stream,
)
from sgan_core.phantom.painting import Canvas, paint_patient, paint_table
from sgan_core.phantom.physics import ct_grid, ct_image, ct_tissues, draw_mr, mr_grid, mr_image

DOMAINS = ("ct", "t1_in", "t1_out")


@dataclass(frozen=True, eq=False)
class PhantomCase:
    """One scan of one phantom patient and the truth about it."""

    image: Volume  # int16: HU, or arbitrary units >= 0 for MRI
    labels: np.ndarray  # (I, J, K) uint8 on the image's grid: 0 background, 1 liver, else as in LABELS


def make_case(seed: int, domain: str) -> PhantomCase:
    """Scan phantom patient ``seed`` in ``domain``, one of DOMAINS.

    The same seed is the same anatomy in every domain; CT and MRI each have their own grid and positioning,
    the two MRI echoes share theirs. The same arguments give the same voxels. Raises InputError for an unknown
    domain or a negative seed.
    """
    if domain not in DOMAINS:
        raise InputError(f"phantom domain {domain!r} is unknown; choose one of {', '.join(DOMAINS)}.")
    if seed < 0:
        raise InputError(f"phantom seed {seed} is negative; use 0 or more.")
    anatomy = draw_anatomy(seed)
    rng = stream(seed, CT if domain == "ct" else MR)
    if domain == "ct":
        grid, shift = ct_grid(anatomy, rng)
        canvas = Canvas(anatomy, grid, shift, ct_tissues(rng), rng)
        paint_patient(canvas, anatomy)
        if rng.random() < 0.6:
            paint_table(canvas, anatomy, rng)
        array = ct_image(canvas, rng)
    else:
        grid, shift = mr_grid(anatomy, rng)
        field = draw_mr(rng, out_of_phase=domain == "t1_out")
        canvas = Canvas(anatomy, grid, shift, field.tissues, rng)
        paint_patient(canvas, anatomy)
        noise = stream(seed, NOISE_OUT if domain == "t1_out" else NOISE_IN)
        array = mr_image(canvas, field, rng, noise)
    return PhantomCase(Volume(array, grid), canvas.labels())


def read_phantom(reference: str) -> PhantomCase:
    """Make the case that ``phantom:DOMAIN:SEED`` names. Raises InputError when the reference is malformed."""
    match = re.fullmatch(r"phantom:([a-z0-9_]+):(\d{1,18})", reference)
    if match is None:
        raise InputError(f"{reference}: not a phantom; write phantom:DOMAIN:SEED, e.g. phantom:ct:7.")
    return make_case(int(match[2]), match[1])


def phantom_cohort(
    *, patients: int = 400, labelled: int = 8, validation: int = 8, test: int = 0, domain: str = "ct"
) -> Cohort:
    """List phantom patients as a cohort: ``patients`` for training, then ``validation``, then ``test`` ones.

    The first ``labelled`` training patients, and all validation and test patients, have labels. A label
    reference names the full label map: keep value 1 (the liver) of it. Training seeds start at 0, validation
    seeds follow, test seeds start at TEST_SEEDS. Raises InputError when ``labelled`` exceeds ``patients``.
    """
    if domain not in DOMAINS:
        raise InputError(f"phantom domain {domain!r} is unknown; choose one of {', '.join(DOMAINS)}.")
    if not 0 <= labelled <= patients:
        raise InputError(f"{labelled} labelled of {patients} phantom patients; ask for at most {patients}.")
    seeds = [(seed, "train") for seed in range(patients)]
    seeds += [(patients + n, "validation") for n in range(validation)]
    seeds += [(TEST_SEEDS + n, "test") for n in range(test)]
    if domain == "ct":
        modality, intensity = "ct", Intensity(low=-160.0, high=240.0, unit="HU")
    else:
        modality, intensity = "mr", Intensity(percentiles=(1.0, 99.0))
    return Cohort(
        name="phantom",
        modality=modality,
        intensity=intensity,
        labels=tuple(label for label in LABELS if label.value == LIVER),
        cases=tuple(_cohort_case(seed, split, domain, labelled) for seed, split in seeds),
    )


def _cohort_case(seed: int, split: str, domain: str, labelled: int) -> Case:
    reference = f"phantom:{domain}:{seed}"
    has_label = split != "train" or seed < labelled
    return Case(
        id=f"phantom-{seed:07d}-{domain}",
        patient=f"phantom-{seed:07d}",
        image=reference,
        label=reference if has_label else None,
        split=split,
        domain=domain,
        labelled_rank=seed if split == "train" and has_label else None,
    )
