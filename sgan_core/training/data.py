"""The slices of a cohort at model size, kept in one file on disk that training maps into memory.

Why not a library's (benchmarks/slice_cache.py, docs/performance.md): random batches come from MONAI's
PersistentDataset at 2 to 27 % of our rate, and one cut file in it stops every later run; its CacheDataset
holds all slices in memory and is made anew by each process. An array of numpy's open_memmap reads as fast as
ours, but wants the number of slices before the first scan is read, and does not know which of them are whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import stat
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgan_core.cohort import BUILT_IN, Case, Cohort, Intensity, labelled_patients
from sgan_core.config import TrainConfig
from sgan_core.errors import InputError
from sgan_core.imaging.image import Picture, Volume
from sgan_core.imaging.intensity import in_units
from sgan_core.imaging.readers import read_image, read_labels, require_same_grid
from sgan_core.imaging.slices import BODY_RULE, labels_to_model, reduced, reduced_labels, to_model
from sgan_core.phantom import read_phantom
from sgan_core.training import records
from sgan_core.training.workers import available_cores, in_order

log = logging.getLogger(__name__)

CACHE_FOLDER = "cache"  # of prepared slices, in a cohort's or a run's folder
UNLABELLED = 255  # label value of a slice whose label is not known


@dataclass(frozen=True, eq=False)
class SliceStore:
    """Slices as prepared: images (N, C, P, P) float16 in [-1, 1], labels (N, P, P) uint8; batches have ``size`` S."""

    images: np.ndarray
    labels: np.ndarray
    case: np.ndarray  # (N,) position of the slice's case in the cohort
    cohort: Cohort
    factor: int = 1  # P / S: a batch holds the averages of so many pixels a side

    @property
    def size(self) -> int:
        """Pixels along a side of the slices in a batch."""
        return self.images.shape[-1] // self.factor

    def at(self, size: int) -> SliceStore:
        """The same slices, whose batches have another size. Raises ValueError where it does not divide P."""
        factor, left = divmod(self.images.shape[-1], size)
        if left:
            raise ValueError(f"slices of {self.images.shape[-1]} px cannot be averaged to {size}")
        return replace(self, factor=factor)

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
        """(B, C, S, S) float32 in [-1, 1]: area averages where S is smaller than prepared."""
        return reduced(torch.from_numpy(self.images[index].astype(np.float32)), self.size)

    def label_batch(self, index: np.ndarray) -> Tensor:
        """(B, S, S) int64: the label with the largest share of a pixel where S is smaller than prepared."""
        return reduced_labels(torch.from_numpy(self.labels[index].astype(np.int64)), self.size)

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
    stored = require_same_grid(stored, image, label_path=case.label, image_path=case.image)
    return image, _to_classes(stored.array if isinstance(stored, Volume) else stored, cohort)


def _to_classes(stored: np.ndarray, cohort: Cohort) -> np.ndarray:
    """Values of label files -> classes; values that no label claims are background."""
    table = np.zeros(256, np.uint8)
    for label in cohort.labels:
        table[list(label.stored)] = label.value
    return table[stored]


# --- the slices on disk: a folder named after all that they depend on

_WITHOUT_SLICES = ("name", "root", "sources")  # of a cohort; no pixel depends on them
_ABOUT_PEOPLE = ("id", "patient", "split", "domain", "labelled_rank")  # of a case; no pixel depends on them
_TRIAL_SECONDS, _LONG_SECONDS = 3.0, 30.0  # other processes need some seconds to start


@dataclass(frozen=True)
class _Recipe:
    """What the slices of all cases have in common."""

    cohort: Cohort  # without its cases: it travels to other processes
    size: int
    channels: int
    intensity: Intensity
    body: bool

    @property
    def slice_type(self) -> np.dtype:
        """A slice in the file."""
        return np.dtype(
            [("image", "<f2", (self.channels, self.size, self.size)), ("label", "u1", (self.size, self.size))]
        )


def open_store(
    cohort: Cohort,
    folder: Path,
    *,
    size: int,
    channels: int,
    intensity: Intensity | None = None,
    body: bool = False,
    processes: int | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> SliceStore:
    """Map the cohort's slices into memory; made on the first call, found again on the next.

    Long preparations use a process for each core, or ``processes`` of them; the bytes are the same. A call
    that failed or was stopped leaves its finished cases in ``folder``, and the next one goes on from there.
    Of several calls at the same time (torchrun) one prepares and the others wait for it.
    Raises InputError for a case that cannot be read or holds a label of another shape, and when the slices
    do not fit on the disk. Whatever ``on_progress`` raises stops the preparation.
    """
    recipe = _Recipe(replace(cohort, cases=()), size, channels, intensity or cohort.intensity, body)
    keys = [_case_key(case) for case in cohort.cases]
    store = folder / _digest(_settings(recipe), *keys)
    if not store.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f"unfinished-{_digest(_settings(recipe), cohort.name)}"

        def tell(done: int) -> None:
            if on_progress:
                on_progress(done, len(keys), "preparing slices")

        with records.alone(folder, lambda: tell(records.written(unfinished))):
            if not store.is_dir():  # it may have been made while we waited
                _prepare(unfinished, cohort.cases, keys, recipe, processes, tell)
                os.replace(unfinished, store)
    counts = records.item_counts(store, recipe.slice_type.itemsize, len(keys))
    slices = np.memmap(store / records.ITEMS, recipe.slice_type, mode="r")
    return SliceStore(slices["image"], slices["label"], np.repeat(np.arange(len(counts)), counts), cohort)


def slices_of_model(
    cohort: Cohort, config: TrainConfig, folder: Path, *, size: int | None = None, **settings: Any
) -> SliceStore:
    """``open_store``, the slices as models of this config see them.

    size: of the student where it is left out. settings: ``processes`` and ``on_progress`` of ``open_store``.
    """
    return open_store(
        replace(cohort, squash=config.squash),
        folder,
        size=size or config.student_size,
        channels=config.generator.image_channels,
        intensity=config.intensity,
        body=config.body,
        **settings,
    )


def _settings(recipe: _Recipe) -> str:
    cohort = {name: value for name, value in asdict(recipe.cohort).items() if name not in _WITHOUT_SLICES}
    facts = [
        cohort,
        recipe.slice_type.descr,
        asdict(recipe.intensity),
        *([f"body {BODY_RULE}"] if recipe.body else []),
    ]
    return json.dumps(facts, sort_keys=True)


def _case_key(case: Case) -> str:
    facts = {name: value for name, value in vars(case).items() if name not in _ABOUT_PEOPLE}
    return _digest(json.dumps([facts, _versions(case.image), _versions(case.label)]))


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _versions(path: str | None) -> list[tuple[int, int]]:
    """Size and time of a file, or of each file in a folder, so that a corrected label is not overlooked."""
    if path is None or path.startswith(BUILT_IN):
        return []
    try:
        found = os.stat(path)
    except OSError:  # the reader will say it better
        return []
    if not stat.S_ISDIR(found.st_mode):
        return [(found.st_size, found.st_mtime_ns)]
    files = sorted(os.path.join(at, name) for at, _, names in os.walk(path) for name in names)
    return [(state.st_size, state.st_mtime_ns) for state in map(os.stat, files)]


def _prepare(
    folder: Path,
    cases: Sequence[Case],
    keys: Sequence[str],
    recipe: _Recipe,
    processes: int | None,
    tell: Callable[[int], None],
) -> None:
    """Fill ``folder`` with the slices of all cases, beginning with the first case that is not there yet."""
    folder.mkdir(exist_ok=True)
    counts: list[int] = []  # slices of each finished case
    try:
        with records.append_to(folder, recipe.slice_type.itemsize) as finished:
            counts += finished.resume(keys)
            if counts:
                tell(len(counts))
            _require_space(folder, counts, len(cases), recipe)
            with closing(_stacks(cases[len(counts) :], recipe, processes)) as stacks:
                for slices in stacks:
                    counts.append(finished.append(keys[len(counts)], slices.tobytes()))
                    if len(counts).bit_count() == 1:  # 1, 2, 4, 8, ...: when the mean can have changed much
                        _require_space(folder, counts, len(cases), recipe)
                    tell(len(counts))
    finally:
        if not counts:
            shutil.rmtree(folder, ignore_errors=True)


def _require_space(folder: Path, counts: Sequence[int], cases: int, recipe: _Recipe) -> None:
    """Refuse to begin what cannot end; cases to come are taken to have as many slices as those before."""
    slices_each = sum(counts) / len(counts) if counts else 1.0
    needed = (cases - len(counts)) * slices_each * recipe.slice_type.itemsize
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{folder.parent}: the prepared slices need about {needed / 1e9:.3g} GB more, {free / 1e9:.3g} GB "
            "are free. Free some space, or choose a folder on another disk."
        )


def _stacks(
    cases: Sequence[Case], recipe: _Recipe, processes: int | None
) -> Generator[np.ndarray, None, None]:
    """The slices of each case, in order; by other processes too as soon as that promises to save time."""
    prepare = partial(_stack, recipe=recipe)
    most = processes or available_cores()
    if multiprocessing.current_process().daemon:  # which may have no children
        most = 1
    began = time.monotonic()
    done = 0
    while done < len(cases) and (most == 1 or (processes is None and not _is_long(began, done, len(cases)))):
        yield prepare(cases[done])
        done += 1
    try:
        with closing(in_order(prepare, cases[done:], processes=most)) as stacks:
            for stack in stacks:
                yield stack
                done += 1
    except InputError as error:
        raise InputError(str(error)) from None  # without the other process's traceback
    except BrokenProcessPool:
        log.warning("A process that prepared slices ended unexpectedly (memory?); going on with one.")
        yield from map(prepare, cases[done:])


def _is_long(began: float, done: int, cases: int) -> bool:
    """Whether the rest, at the pace so far, takes much longer than processes need to start."""
    seconds = time.monotonic() - began
    return done > 0 and seconds > _TRIAL_SECONDS and seconds / done * (cases - done) > _LONG_SECONDS


def _stack(case: Case, recipe: _Recipe) -> np.ndarray:
    """The slices of one case: (N,) of ``recipe.slice_type``. Raises InputError naming a file."""
    try:
        image, labels = read_case(case, recipe.cohort)
        stack = to_model(
            image,
            size=recipe.size,
            intensity=recipe.intensity,
            channels=recipe.channels,
            squash=recipe.cohort.squash,
            body=recipe.body,
        )
    except InputError as error:
        names = [Path(path).name for path in (case.image, case.label) if path]
        named = any(name in str(error) for name in names)
        raise InputError(str(error) if named else f"{case.image}: {error}") from None
    slices = np.empty(len(stack.images), recipe.slice_type)
    slices["image"] = stack.images
    slices["label"] = UNLABELLED if labels is None else labels_to_model(labels, stack)
    return slices


# --- random numbers and order


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
