"""What data sets of faces have in common: pictures, and the parts of a face."""

from __future__ import annotations

from collections.abc import Iterable

from sgan_core.cohort import Case, Cohort, Intensity, Label
from sgan_datasets.anatomy import named_label

# The face classes of CelebAMask-HQ with left and right joined; nose, eyes and mouth mean the same in other sets.
FACE_PARTS = tuple(
    named_label(value, name)
    for value, name in enumerate(("skin", "nose", "eyes", "mouth", "hair", "eyebrows", "ears"), 1)
)


def face_cohort(name: str, labels: tuple[Label, ...], cases: Iterable[Case]) -> Cohort:
    """A cohort of pictures (0 to 255) of faces."""
    return Cohort(name, "face", Intensity(low=0.0, high=255.0), labels, tuple(cases))
