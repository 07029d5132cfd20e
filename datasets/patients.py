"""Who is who, and who is kept for validation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sgan_core.cohort import Case, assign_splits
from sgan_core.errors import InputError
from sgan_core.names import natural

VALIDATION_SHARE = 0.2
LEAST_FOR_VALIDATION = 5  # labelled patients; with fewer, every one is needed for training


def merge_patients(names: set[str], groups: Sequence[Sequence[str]]) -> dict[str, str]:
    """Each name found -> the patient's name in the cohort: "A+B+C" for a group of names that are one person.

    Raises InputError for a name that was not found or is in two groups.
    """
    alias = {name: name for name in names}
    named = Counter(name for group in groups for name in set(group))
    for name, times in named.items():
        if name not in names:
            raise InputError(
                f"--same-patient: {name!r} is not among the {len(names)} patients found "
                f"({', '.join(sorted(names, key=natural)[:8])}, ...)."
            )
        if times > 1:
            raise InputError(f"--same-patient: {name!r} is in two groups; write them as one.")
    for group in groups:
        alias.update(dict.fromkeys(group, "+".join(dict.fromkeys(group))))
    return alias


def split_patients(
    cases: Sequence[Case], validation: Sequence[str] | None, alias: dict[str, str], seed: int
) -> tuple[tuple[Case, ...], list[str]]:
    """Cases divided between train and validation, and warnings.

    validation: names of patients; None draws a fifth of the labelled ones when there are five or more.
    """
    if validation is not None:
        return assign_splits(cases, validation={alias.get(name, name) for name in validation}, seed=seed), []
    labelled = {case.patient for case in cases if case.labelled}
    if len(labelled) >= LEAST_FOR_VALIDATION:
        return assign_splits(cases, validation=VALIDATION_SHARE, seed=seed), []
    undivided = assign_splits(cases, validation=0.0)
    if not labelled:
        return undivided, []
    return undivided, [
        f"{len(labelled)} labelled patients are too few to keep some for validation; all are in train."
    ]
