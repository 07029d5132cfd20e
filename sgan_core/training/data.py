"""The slices of a cohort at model size, kept in one file on disk that training maps into memory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sgan_core.cohort import BUILT_IN, Case, Cohort, Intensity, labelled_patients
from sgan_core.errors import InputError
from sgan_core.imaging.image import Picture, Volume, in_units
from sgan_core.imaging.readers import read_image, read_labels, require_same_grid
from sgan_core.imaging.slices import labels_to_model, to_model
from sgan_core.phantom import read_phantom

UNLABELLED = 255  # label value of a slice whose label is not known


@dataclass(frozen=True, eq=False)
class SliceStore:
    """Slices at model size: images (N, C, S, S) float16 in [-1, 1], labels (N, S, S) uint8."""

    images: np.ndarray
    labels: np.ndarray
    case: np.ndarray  # (N,) position of the slice's case in the cohort
    cohort: Cohort

    def slices_of(
        self, *, split: str, patients: set[str] | None = None, with_label: bool = False
    ) -> np.ndarray:
        """Positions of the slices of a split, in order; optionally of some patients or with a known label."""
        cases = self.cohort.cases
        keep = np.array(
            [c.split == split and (patients is None or c.patient in patients) for c in cases], dtype=bool
        )
        chosen = keep[self.case]
        if with_label:
            chosen &= np.array([c.label is not None or c.empty for c in cases], dtype=bool)[self.case]
        return np.flatnonzero(chosen)

    def labelled(self, patients: int) -> np.ndarray:
        """All slices, empty ones too, of the first ``patients`` labelled training patients.

        Slices without the organ stay in: leaving them out teaches D_m that every image has a liver.
        """
        return self.slices_of(
            split="train", patients=labelled_patients(self.cohort, patients), with_label=True
        )

    def image_batch(self, index: np.ndarray) -> Tensor:
        """(B, C, S, S) float32 in [-1, 1]."""
        return torch.from_numpy(self.images[index].astype(np.float32))

    def label_batch(self, index: np.ndarray) -> Tensor:
        """(B, S, S) int64."""
        return torch.from_numpy(self.labels[index].astype(np.int64))

    def patients(self, index: np.ndarray) -> list[str]:
        """The patient of each slice."""
        return [self.cohort.cases[position].patient for position in self.case[index]]


def read_case(case: Case, cohort: Cohort) -> tuple[Volume | Picture, np.ndarray | None]:
    """Image and classes (0..K-1, None: not known) of a case; 8-bit pictures are given the cohort's units.

    Raises InputError for files that cannot be read, unknown label values and labels of another shape.
    """
    if case.image.startswith(BUILT_IN):
        phantom = read_phantom(case.image)
        return phantom.image, _to_classes(phantom.labels, cohort) if case.label else None
    image = in_units(read_image(case.image), cohort.intensity)
    shape = image.array.shape if isinstance(image, Volume) else image.array.shape[1:]
    if case.label is None:
        return image, np.zeros(shape, np.uint8) if case.empty else None
    stored = read_labels(case.label, values=cohort.stored_values)
    require_same_grid(stored, image, label_path=case.label, image_path=case.image)
    return image, _to_classes(stored.array if isinstance(stored, Volume) else stored, cohort)


def _to_classes(stored: np.ndarray, cohort: Cohort) -> np.ndarray:
    """Values of label files -> classes; values that no label claims are background."""
    table = np.zeros(256, np.uint8)
    for label in cohort.labels:
        table[list(label.stored)] = label.value
    return table[stored]


def _fingerprint(cohort: Cohort, size: int, channels: int, intensity: Intensity) -> str:
    cases = [asdict(case) | {"files": _versions(case)} for case in cohort.cases]
    facts = {"cases": cases, "labels": [asdict(x) for x in cohort.labels], "size": size, "channels": channels}
    facts["intensity"] = [asdict(cohort.intensity), asdict(intensity)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _versions(case: Case) -> list[tuple[int, int]]:
    """Size and time of the case's files, so that a corrected label is not overlooked."""
    files = [Path(path) for path in (case.image, case.label) if path and not path.startswith(BUILT_IN)]
    return [(file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]


def open_store(
    cohort: Cohort,
    folder: Path,
    *,
    size: int,
    channels: int,
    intensity: Intensity | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> SliceStore:
    """Map the cohort's slices into memory; made on the first call, found again on the next.

    Raises InputError for a case that cannot be read or holds a label of another shape.
    """
    intensity = intensity or cohort.intensity
    name = _fingerprint(cohort, size, channels, intensity)
    index_file = folder / f"{name}.json"
    images_file, labels_file = folder / f"{name}.images", folder / f"{name}.labels"
    if not index_file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        counts = []
        parts = [path.with_name(path.name + f".{os.getpid()}.part") for path in (images_file, labels_file)]
        try:
            with parts[0].open("wb") as images, parts[1].open("wb") as labels:
                for done, (stack_images, stack_labels) in enumerate(
                    _stacks(cohort, size, channels, intensity)
                ):
                    images.write(np.ascontiguousarray(stack_images, np.float16).tobytes())
                    labels.write(np.ascontiguousarray(stack_labels, np.uint8).tobytes())
                    counts.append(len(stack_images))
                    if on_progress:
                        on_progress(done + 1, len(cohort.cases), "preparing slices")
            os.replace(parts[0], images_file)
            os.replace(parts[1], labels_file)
        finally:
            for part in parts:
                part.unlink(missing_ok=True)
        index_part = index_file.with_suffix(f".{os.getpid()}.part")
        index_part.write_text(json.dumps({"slices": counts}))
        os.replace(index_part, index_file)
    counts = json.loads(index_file.read_text())["slices"]
    total = int(sum(counts))
    images_map = np.memmap(images_file, np.float16, mode="r", shape=(total, channels, size, size))
    labels_map = np.memmap(labels_file, np.uint8, mode="r", shape=(total, size, size))
    return SliceStore(images_map, labels_map, np.repeat(np.arange(len(counts)), counts), cohort)


def _stacks(
    cohort: Cohort, size: int, channels: int, intensity: Intensity
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for case in cohort.cases:
        image, labels = read_case(case, cohort)
        stack = to_model(image, size=size, intensity=intensity, channels=channels)
        if labels is None:
            model_labels = np.full((len(stack.images), size, size), UNLABELLED, np.uint8)
        else:
            model_labels = labels_to_model(labels, stack)
        yield stack.images, model_labels


def rng(seed: int, step: int, stream: str) -> torch.Generator:
    """The random numbers of one step: a function of seed, step and purpose, so nothing has to be saved."""
    digest = hashlib.sha256(f"{seed}/{step}/{stream}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


class Order:
    """Endless seeded order over ``positions``: each pass is a new permutation, a function of seed and pass."""

    def __init__(self, positions: np.ndarray, seed: int) -> None:
        if not len(positions):
            raise InputError("no slices to train on: check the cohort's splits and labels")
        self.positions, self.seed = positions, seed
        self._pass = -1
        self._permuted = positions

    def batch(self, start: int, size: int) -> np.ndarray:
        """Positions number ``start`` to ``start + size`` of the order."""
        chosen = []
        for number in range(start, start + size):
            which, offset = divmod(number, len(self.positions))
            if which != self._pass:
                self._pass = which
                self._permuted = np.random.default_rng([self.seed, which]).permutation(self.positions)
            chosen.append(self._permuted[offset])
        return np.array(chosen)
