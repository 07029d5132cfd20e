"""Several cohorts as one: labelled pictures of one source with unlabelled ones of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sgan_core.cohort import SPLITS, Case, Cohort, Label, rank_labelled, validate
from sgan_core.errors import InputError
from sgan_core.terms import joined_sources


def merge_cohorts(cohorts: Sequence[Cohort], *, name: str, seed: int = 0) -> tuple[Cohort, tuple[str, ...]]:
    """Join cohorts that show the same classes in the same kind of image. Returns cohort and warnings.

    A case that two of them hold counts once: the labelled one, else the earlier. A patient who is in several
    splits is taken to the strictest (test, validation, train), so that nothing tested was trained on.
    Raises InputError when modality, intensities or classes differ, or one id names two patients.
    """
    first = cohorts[0]
    for cohort in cohorts[1:]:
        for what in ("modality", "intensity"):
            ours, theirs = getattr(first, what), getattr(cohort, what)
            if ours != theirs:
                raise InputError(
                    f"cohorts {first.name} and {cohort.name} differ in {what}: {ours} against {theirs}. "
                    "Prepare both alike."
                )
    cases, repeated = _unite(cohorts)
    cases, moved = _strictest(cases, cohorts)
    ignored = {value for cohort in cohorts for value in cohort.ignored_values}
    merged = Cohort(
        name=name,
        modality=first.modality,
        intensity=first.intensity,
        labels=_common_labels(cohorts),
        cases=rank_labelled(cases, seed=seed),
        ignored_values=tuple(sorted(ignored)),
        squash=any(cohort.squash for cohort in cohorts),
        sources=joined_sources(cohort.sources for cohort in cohorts),
    )
    validate(merged, source=name)
    warnings = []
    if merged.squash and not all(cohort.squash for cohort in cohorts):
        squashed = ", ".join(cohort.name for cohort in cohorts if cohort.squash)
        warnings.append(f"{squashed} was released squashed to a square; all images will be seen that way.")
    if repeated:
        warnings.append(f"{repeated} cases are in several cohorts; each counts once.")
    if moved:
        warnings.append(f"{moved} patients are in several splits; they went to the strictest of them.")
    return merged, tuple(warnings)


def _unite(cohorts: Sequence[Cohort]) -> tuple[list[Case], int]:
    by_id: dict[str, Case] = {}
    repeated = 0
    for case in (case for cohort in cohorts for case in cohort.cases):
        known = by_id.setdefault(case.id, case)
        if known is case:
            continue
        if known.patient != case.patient:
            raise InputError(
                f"the id {case.id!r} belongs to patient {known.patient} in one cohort and to {case.patient} "
                "in another. Prepare one of them anew with other names."
            )
        repeated += 1
        if case.labelled and not known.labelled:
            by_id[case.id] = case
    return list(by_id.values()), repeated


def _strictest(cases: Sequence[Case], cohorts: Sequence[Cohort]) -> tuple[list[Case], int]:
    """The cases, each in the strictest split that any cohort has its patient in, and how many patients that moved."""
    split_of: dict[str, str] = {}
    moved = set()
    # Of all cohorts: a case that two of them hold may be tested in the one and trained on in the other.
    for case in (case for cohort in cohorts for case in cohort.cases):
        known = split_of.setdefault(case.patient, case.split)
        if known != case.split:
            moved.add(case.patient)
            split_of[case.patient] = max(known, case.split, key=SPLITS.index)
    return [replace(case, split=split_of[case.patient]) for case in cases], len(moved)


def _common_labels(cohorts: Sequence[Cohort]) -> tuple[Label, ...]:
    labelled = [cohort for cohort in cohorts if any(case.labelled for case in cohort.cases)] or [cohorts[0]]
    first = labelled[0]
    names = [label.name for label in first.labels]
    for cohort in labelled[1:]:
        if [label.name for label in cohort.labels] != names:
            others = [label.name for label in cohort.labels]
            raise InputError(
                f"cohorts {first.name} and {cohort.name} label different things: {', '.join(names)} against "
                f"{', '.join(others)}. Prepare them with the same --label names."
            )
    merged = []
    for label in first.labels:
        stored = {value for cohort in labelled for value in cohort.labels[label.value - 1].stored}
        kept = () if stored == {label.value} else tuple(sorted(stored))
        merged.append(replace(label, stored_values=kept))
    return tuple(merged)
