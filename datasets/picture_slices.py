"""Volumes that others saved as pictures of their slices: which picture is whose, and which mask is missing."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from itertools import takewhile
from pathlib import Path

from PIL import Image

from sgan_core.cohort import Case
from sgan_datasets.layout import absolute, files_of, find_folder
from sgan_datasets.source import Problem

Place = tuple[int, int]  # number of the volume, number of the slice in it

_IMAGES, _MASKS = "images", "masks"


def slice_cases(
    root: Path,
    stem: re.Pattern[str],
    patient_of: Callable[[int], str],
    *,
    domain: str,
    split: str = "train",
    unmasked_is_empty: bool,
) -> tuple[list[Case], list[Problem]]:
    """A case for each images/STEM.jpg below root, with its mask masks/STEM.png; root may be one of these folders.

    stem: group 1 is the number of the volume, group 2 that of the slice. patient_of: who a volume is of.
    unmasked_is_empty: a slice without a mask file holds no organ, except for ``lost_masks``; else its mask is
    missing. Slices of one grey at the end of a volume, which was padded there, are left out with their masks.
    Returns no case and no problem when there is no such picture.
    """
    root = Path(absolute(root))
    if root.name.lower() in (_IMAGES, _MASKS) and find_folder(root, (_IMAGES,)) is None:
        root = root.parent
    images, problems = _by_place(root, _IMAGES, ".jpg", stem)
    if not images:
        return [], []
    masks, problems_of_masks = _by_place(root, _MASKS, ".png", stem)
    padding = _padding(images, masks)
    lost = (lost_masks(images, masks) if unmasked_is_empty else images.keys() - masks.keys()) - padding
    cases = []
    for place, path in sorted(images.items()):
        if place in padding:
            continue
        patient = patient_of(place[0])
        prefix = patient if domain == "ct" else f"{patient}_{domain}"
        case = Case(
            id=f"{prefix}_slice_{place[1]}",
            patient=patient,
            image=absolute(path),
            label=absolute(masks[place]) if place in masks else None,
            empty=place not in masks and place not in lost,
            split=split,
            domain=domain,
        )
        cases.append(case)
    problems += problems_of_masks
    problems += [Problem("missing", f"{images[place]}: no mask belongs to it.") for place in sorted(lost)]
    problems += [
        Problem("missing", f"{path}: no image belongs to it.")
        for place, path in masks.items()
        if place not in images
    ]
    return cases, problems


def lost_masks(slices: Collection[Place], masked: Collection[Place]) -> set[Place]:
    """Slices without mask that may well hold an organ: between two masks, or in a volume without any.

    A volume's masks follow each other, as organs do; outside of them there is none.
    """
    positions = defaultdict(list)
    for volume, position in masked:
        positions[volume].append(position)
    return {
        (volume, position)
        for volume, position in slices
        if (volume, position) not in masked
        and (volume not in positions or min(positions[volume]) < position < max(positions[volume]))
    }


def _padding(images: Mapping[Place, Path], masks: Mapping[Place, Path]) -> set[Place]:
    """Slices at the ends of each volume whose image, and mask if there is one, have one value."""
    volumes = defaultdict(list)
    for place in sorted(images):
        volumes[place[0]].append(place)
    padding: set[Place] = set()
    for places in volumes.values():
        for from_an_end in (places, places[::-1]):
            padding.update(
                takewhile(
                    lambda place: all(_blank(f[place]) for f in (images, masks) if place in f), from_an_end
                )
            )
    return padding


def _blank(path: Path) -> bool:
    """Whether a picture has one value; one that cannot be read has not, so that a check speaks of it."""
    try:
        with Image.open(path) as picture:
            low, high = picture.convert("L").getextrema()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
    return bool(low == high)


def _by_place(
    root: Path, name: str, ending: str, stem: re.Pattern[str]
) -> tuple[dict[Place, Path], list[Problem]]:
    """The pictures of a folder below root; a problem for each that is there twice or called otherwise."""
    folder = find_folder(root, (name,))
    found: dict[Place, Path] = {}
    problems = []
    for file_stem, path in (files_of(folder, (ending,)) if folder else {}).items():
        match = stem.fullmatch(file_stem)
        if match is None:
            text = f"{path}: left out, its name says no patient and slice of this data set."
            problems.append(Problem("layout", text))
            continue
        known = found.setdefault((int(match[1]), int(match[2])), path)
        if known is not path:
            problems.append(Problem("duplicate", f"{path}: left out, as {known} is the same slice."))
    return found, problems
