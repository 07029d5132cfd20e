"""A data set's folder as a cohort to train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sgan_core.cohort import Case, Cohort, rank_labelled, validate
from sgan_core.errors import InputError
from sgan_core.imaging.image import Picture, Volume
from sgan_core.imaging.writers import write_labels, write_mask_png, write_picture, write_volume
from sgan_datasets.pairs import OnProgress, for_each_case, read_case_image, read_case_label
from sgan_datasets.patients import merge_patients, split_patients
from sgan_datasets.source import DataSet, Problem


@dataclass(frozen=True)
class Prepared:
    """A cohort, with what its owner should know about the files."""

    cohort: Cohort
    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]


def prepare(
    data_set: DataSet,
    root: str | Path,
    folder: str | Path,
    *,
    split: str | None = None,
    test_domains: Sequence[str] = (),
    validation: Sequence[str] | None = None,
    same_patient: Sequence[Sequence[str]] = (),
    corrections: Sequence[str] = (),
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Prepared:
    """Make the cohort of a data set; it is not saved yet.

    Files that the usual readers know stay where they are. Others (raw pixels, masks in colours or in several
    files) are written to ``folder/images`` and ``folder/labels`` as PNG or NIfTI whose values are classes.
    split: puts every case there, e.g. "test". Otherwise official splits are kept; without official
    validation patients a fifth of the labelled training patients, drawn by the seed, validates.
    test_domains: domains (devices, hospitals) whose cases all go to "test", so that a model can be asked what it
    makes of a device that it never saw.
    same_patient: groups of names that are one person. corrections: fields of ``Intensity`` to turn on.
    Raises InputError: not this data set, unknown patients, files that cannot be read or written.
    """
    scan = data_set.scan(Path(root))
    cohort = scan.cohort
    alias = merge_patients({case.patient for case in cohort.cases}, same_patient)
    cases = tuple(replace(case, patient=alias[case.patient]) for case in cohort.cases)
    warnings: list[str] = []
    if split is not None:
        cases = tuple(replace(case, split=split) for case in cases)
    cases = _kept_for_test(cases, test_domains)
    if split is None and (validation is not None or all(case.split != "validation" for case in cases)):
        cases, warnings = split_patients(cases, validation, alias, seed)
    intensity = replace(cohort.intensity, **dict.fromkeys(corrections, True))
    cohort = replace(
        cohort,
        intensity=intensity,
        cases=rank_labelled(cases, seed=seed),
        sources=(data_set.about.as_source(),),
    )
    validate(cohort, source=str(root))
    return Prepared(_convert(data_set, cohort, Path(folder), on_progress), scan.problems, tuple(warnings))


def _kept_for_test(cases: tuple[Case, ...], domains: Sequence[str]) -> tuple[Case, ...]:
    """Raises InputError for a domain that no case has, with those that there are."""
    known = sorted({case.domain for case in cases if case.domain})
    for domain in domains:
        if domain not in known:
            raise InputError(
                f"--test-domain: {domain!r} is not among the domains found ({', '.join(known) or 'none'})."
            )
    return tuple(replace(case, split="test") if case.domain in domains else case for case in cases)


def _convert(data_set: DataSet, cohort: Cohort, folder: Path, on_progress: OnProgress | None) -> Cohort:
    """The cohort with files that the usual readers know."""
    if data_set.read_image is None and data_set.read_label is None:
        return cohort
    try:
        for part in ("images", "labels"):
            (folder / part).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror}). Choose another output folder."
        ) from None

    def convert(case: Case) -> Case:
        if data_set.read_image is not None:
            stem = folder.resolve() / "images" / case.id
            case_image = _write_image(read_case_image(data_set, case), stem)
        else:
            case_image = case.image
        if data_set.read_label is None or (label := read_case_label(data_set, case, cohort)) is None:
            return replace(case, image=case_image)
        return replace(
            case, image=case_image, label=_write_label(label, folder.resolve() / "labels" / case.id, cohort)
        )

    cases = tuple(for_each_case(cohort.cases, convert, on_progress, "converting"))
    if data_set.read_label is None:
        return replace(cohort, cases=cases)
    # What was written holds classes.
    labels = tuple(replace(label, stored_values=()) for label in cohort.labels)
    return replace(cohort, cases=cases, labels=labels, ignored_values=())


def _write_image(image: Volume | Picture, stem: Path) -> str:
    if isinstance(image, Volume):
        target = stem.with_name(f"{stem.name}.nii.gz")
        write_volume(target, image.array, image.grid)
    else:
        target = stem.with_name(f"{stem.name}.png")
        write_picture(target, image.array)
    return str(target)


def _write_label(label: Volume | np.ndarray, stem: Path, cohort: Cohort) -> str:
    if isinstance(label, Volume):
        target = stem.with_name(f"{stem.name}.nii.gz")
        write_labels(target, label.array, label.grid, cohort.labels)
    else:
        target = stem.with_name(f"{stem.name}.png")
        write_mask_png(target, label, cohort.labels)
    return str(target)
