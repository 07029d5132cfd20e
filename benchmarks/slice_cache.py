"""Our slice store beside what libraries offer: MONAI's PersistentDataset and CacheDataset, and an .npy file.

    python benchmarks/slice_cache.py --output benchmarks/results/slice_cache.json

All prepare the same slices by the same function and read the same random batches, in turns in one process:

    ours          training/data.py: a file that grows case by case, an index that vouches for it
    persistent    monai.data.PersistentDataset, an item a case, filled by torch's DataLoader
    cache         monai.data.CacheDataset, an item a case, in memory, filled by threads
    npy           numpy's open_memmap, filled by a ProcessPoolExecutor; is told how many slices a case has

Data: PNG pictures of 512 x 512 (``sgan-benchmark loader`` makes the same), a case each, and phantom patients
as NIfTI files, many slices a case. Rates are medians over the repeats; preparation counts from the first
finished case on, as processes need seconds to start. Memory is what the process holds beyond mapped files
(Linux' RssAnon) after a pass over all slices, less what it held before the store was opened.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, PersistentDataset
from monai.transforms import Transform
from numpy.lib.format import open_memmap
from torch import Tensor
from torch.utils.data import DataLoader

from sgan_core.benchmark.throughput import make_pictures
from sgan_core.cohort import Case, Cohort
from sgan_core.evaluation.tables import Table, json_text, print_table, write_text
from sgan_core.training import data
from sgan_core.training.data import Order, open_store
from sgan_datasets.phantom import prepare_phantom

Read = Callable[[np.ndarray], tuple[Tensor, Tensor]]  # positions -> images float32, labels int64
BATCH = 16


class Ours:
    """The store that training uses."""

    def __init__(self, cohort: Cohort, folder: Path, size: int, counts: Sequence[int]) -> None:
        self.cohort, self.folder, self.size = cohort, folder, size

    def prepare(self, processes: int, on_case: Callable[..., object]) -> None:
        """Fill the folder."""
        self._open(processes=processes, on_progress=on_case)

    def opened(self) -> Read:
        """How slices are read; preparation is over."""
        store = self._open()
        return lambda index: (store.image_batch(index), store.label_batch(index))

    def _open(self, **settings: Any) -> data.SliceStore:
        return open_store(self.cohort, self.folder, size=self.size, channels=1, **settings)


class Slices(Transform):
    """A case's slices as MONAI wants its transforms: the same function as ours."""

    def __init__(self, cohort: Cohort, size: int) -> None:
        self.stack = partial(data._stack, recipe=data._Recipe(cohort, size, 1, cohort.intensity))

    def __call__(self, case: Case) -> dict[str, np.ndarray]:
        slices = self.stack(case)
        return {"images": slices["image"], "labels": slices["label"]}


class Persistent(Ours):
    """One file of tensors a case."""

    def __init__(self, cohort: Cohort, folder: Path, size: int, counts: Sequence[int]) -> None:
        self.counts = counts
        self.dataset = PersistentDataset(cohort.cases, Slices(cohort, size), folder, hash_func=_hash)

    def prepare(self, processes: int, on_case: Callable[..., object]) -> None:
        """Read every case once."""
        several = {"num_workers": processes, "multiprocessing_context": "spawn"} if processes > 1 else {}
        for _ in DataLoader(self.dataset, batch_size=None, **several):
            on_case()

    def opened(self) -> Read:
        """Each slice of a batch opens its case."""
        starts = np.cumsum([0, *self.counts])

        def read(index: np.ndarray) -> tuple[Tensor, Tensor]:
            cases = np.searchsorted(starts, index, side="right") - 1
            found = [
                (item["images"][place], item["labels"][place])
                for item, place in zip(
                    map(self.dataset.__getitem__, cases), index - starts[cases], strict=True
                )
            ]
            images, labels = (
                torch.stack([torch.as_tensor(x) for x in part]) for part in zip(*found, strict=True)
            )
            return images.float(), labels.long()

        return read


def _hash(case: Case) -> bytes:
    """MONAI's own is of the item alone: a label that was corrected would not be noticed."""
    return data._case_key(case).encode()


class InMemory(Persistent):
    """All cases in memory, made anew by every process that starts."""

    def __init__(self, cohort: Cohort, folder: Path, size: int, counts: Sequence[int]) -> None:
        self.cohort, self.size, self.counts = cohort, size, counts

    def prepare(self, processes: int, on_case: Callable[..., object]) -> None:
        """Threads; the progress is MONAI's own, so that the start counts too."""
        on_case()
        self.dataset = CacheDataset(
            self.cohort.cases, Slices(self.cohort, self.size), num_workers=processes, progress=False
        )
        on_case()


class Npy(Ours):
    """One array, whose rows the processes write themselves; a flag a case that is finished."""

    def __init__(self, cohort: Cohort, folder: Path, size: int, counts: Sequence[int]) -> None:
        super().__init__(cohort, folder, size, counts)
        self.starts = np.cumsum([0, *counts])

    def prepare(self, processes: int, on_case: Callable[..., object]) -> None:
        """Fill the arrays in whatever order the processes finish."""
        self.folder.mkdir()
        total, size = int(self.starts[-1]), self.size
        open_memmap(self.folder / "images.npy", "w+", np.float16, (total, 1, size, size))
        open_memmap(self.folder / "labels.npy", "w+", np.uint8, (total, size, size))
        done = open_memmap(self.folder / "done.npy", "w+", bool, (len(self.cohort.cases),))
        fill = partial(_fill, self.folder, Slices(self.cohort, size))
        jobs = list(zip(self.cohort.cases, self.starts.tolist(), strict=False))
        if processes == 1:
            for number, job in enumerate(jobs):
                fill(*job)
                done[number] = True
                on_case()
            return
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            futures = {pool.submit(fill, *job): number for number, job in enumerate(jobs)}
            for future in as_completed(futures):
                future.result()
                done[futures[future]] = True
                on_case()

    def opened(self) -> Read:
        """As ours."""
        images, labels = (
            np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in ("images", "labels")
        )
        return lambda index: (
            torch.from_numpy(images[index].astype(np.float32)),
            torch.from_numpy(labels[index].astype(np.int64)),
        )


def _fill(folder: Path, slices: Slices, case: Case, start: int) -> None:
    for name, part in slices(case).items():
        open_memmap(folder / f"{name}.npy", "r+")[start : start + len(part)] = part


STORES = {"ours": Ours, "persistent": Persistent, "cache": InMemory, "npy": Npy}


def measure(
    cohort: Cohort, folder: Path, size: int, processes: Sequence[int], repeats: int
) -> dict[str, dict[str, Any]]:
    """Median rates (images/s), MB of memory and number of files of each store."""
    store = open_store(cohort, folder / "counts", size=size, channels=1, processes=1)
    counts = np.bincount(store.case, minlength=len(cohort.cases)).tolist()
    expected = (
        store.image_batch(np.arange(len(store.images))),
        store.label_batch(np.arange(len(store.images))),
    )
    found: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in STORES}
    for repeat in range(repeats):
        for number in processes:
            for name, kind in STORES.items():
                at = folder / f"{name}-{repeat}-{number}"
                anonymous = anonymous_mb()
                made = kind(cohort, at, size, counts)
                times = [time.perf_counter()]
                made.prepare(number, lambda *_, times=times: times.append(time.perf_counter()))
                finished = sum(counts) * (1.0 if kind is InMemory else 1.0 - 1.0 / len(counts))
                found[name][f"prepare_{number}"].append(finished / (times[-1] - times[1]))
                if kind is not InMemory:  # which tells no first case
                    found[name][f"start_{number}_s"].append(times[1] - times[0])
                read = made.opened()
                if not repeat:
                    _require_equal(read, expected)
                found[name]["read"].append(_read_rate(read, sum(counts), repeat))
                found[name]["memory_mb"].append(anonymous_mb() - anonymous)
                if at.exists():
                    found[name]["files"].append(sum(file.is_file() for file in at.rglob("*")))
                    shutil.rmtree(at)
                del made, read
    return {
        name: {key: float(f"{statistics.median(values):.4g}") for key, values in of_store.items()}
        for name, of_store in found.items()
    }


def anonymous_mb() -> float:
    """Memory of this process that no file holds."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1e3


def _require_equal(read: Read, expected: tuple[Tensor, Tensor]) -> None:
    for start in range(0, len(expected[0]), BATCH):
        index = np.arange(start, min(start + BATCH, len(expected[0])))
        for ours, theirs in zip(expected, read(index), strict=True):
            if not torch.equal(ours[index], theirs):
                raise SystemExit("the stores hold different slices")


def _read_rate(read: Read, slices: int, seed: int) -> float:
    """Images a second in random batches: two seconds, or one pass where that takes longer."""
    order = Order(np.arange(slices), seed)
    began, batches = time.perf_counter(), 0
    while time.perf_counter() - began < 2.0 or batches * BATCH < slices:
        read(order.batch(batches * BATCH, BATCH))
        batches += 1
    return batches * BATCH / (time.perf_counter() - began)


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--pictures", type=int, default=240)
    parser.add_argument("--patients", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        cohorts = {
            "pictures": make_pictures(Path(folder, "png"), options.pictures),
            "volumes": prepare_phantom(
                Path(folder, "nifti"), patients=options.patients, labelled=2, validation=1
            ),
        }
        for kind, cohort in cohorts.items():
            for size in options.sizes:
                stores = measure(
                    cohort, Path(folder, f"{kind}{size}"), size, options.processes, options.repeats
                )
                results.append({"data": kind, "cases": len(cohort.cases), "size": size, "stores": stores})
    columns = results[0]["stores"]["ours"]
    rows = [
        (of["data"], str(of["size"]), name, *(str(figures.get(column, "")) for column in columns))
        for of in results
        for name, figures in of["stores"].items()
    ]
    print_table(Table("slice stores", ("data", "px", "store", *columns), tuple(rows), numbers_from=3))
    facts = {"batch": BATCH, "repeats": options.repeats, "cores": os.cpu_count(), "results": results}
    write_text(options.output, json_text(facts))


if __name__ == "__main__":
    main()
