"""The built-in phantom patients as files, to try every command without any data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sgan_core.cohort import Cohort, validate
from sgan_core.errors import InputError
from sgan_core.imaging.writers import write_labels, write_volume
from sgan_core.phantom import LABELS, phantom_cohort, read_phantom
from sgan_datasets.source import About

ABOUT = About(
    name="phantom",
    modality="ct, mr",
    what="procedural abdomens made on the spot: CT and T1 in-phase / out-of-phase MRI with true labels",
    size="any number of patients",
    source="part of this package",
    licence="Apache-2.0",
)


def prepare_phantom(
    folder: str | Path,
    *,
    patients: int = 16,
    labelled: int = 8,
    validation: int = 4,
    test: int = 0,
    domain: str = "ct",
    on_progress: Callable[[int, int, str], object] | None = None,
) -> Cohort:
    """Write phantom patients, ``images/ID.nii.gz`` and ``labels/ID.nii.gz`` below a folder.

    Returns their cohort, which is not saved yet.
    patients: how many to train with, of them ``labelled`` with a label file; validation, test: how many
    more, all labelled. domain: ct, t1_in or t1_out. Label files hold every organ; the cohort's class is
    the liver, the other organs are its ignored values.
    Raises InputError: unknown domain, more labelled than patients, none labelled at all, folder not writable.
    """
    root = Path(folder).resolve()
    built_in = phantom_cohort(
        patients=patients, labelled=labelled, validation=validation, test=test, domain=domain
    )
    validate(built_in, source="phantom")
    try:
        for part in ("images", "labels"):
            (root / part).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{root}: cannot be written ({error.strerror}). Choose another output folder."
        ) from None
    used = {label.value for label in built_in.labels}
    cases = []
    for done, case in enumerate(built_in.cases, 1):
        phantom = read_phantom(case.image)
        image, label = root / "images" / f"{case.id}.nii.gz", root / "labels" / f"{case.id}.nii.gz"
        write_volume(image, phantom.image.array, phantom.image.grid)
        if case.label is not None:
            write_labels(label, phantom.labels, phantom.image.grid, LABELS)
        cases.append(replace(case, image=str(image), label=str(label) if case.label else None))
        if on_progress:
            on_progress(done, len(built_in.cases), "making phantom patients")
    others = tuple(label.value for label in LABELS if label.value not in used)
    return replace(built_in, cases=tuple(cases), ignored_values=others, sources=(ABOUT.as_source(),))
