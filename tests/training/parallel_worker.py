"""One process of two, for test_parallel: makes every stage, and notes what is seen of it step by step."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import dacite
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from sgan_core.cohort import Cohort
from sgan_core.config import TrainConfig
from sgan_core.networks.generator import Generator
from sgan_core.networks.perceptual import Perceptual
from sgan_core.training.data import SliceStore
from sgan_core.training.encoder import EncoderTrainer
from sgan_core.training.gan import GanTrainer
from sgan_core.training.loop import Limits, RunLog, fit
from sgan_core.training.student import StudentTrainer

CPU = torch.device("cpu")
NETWORKS = {"gan": ("generator", "image_d", "pair_d"), "encoder": ("encoder",), "student": ("net",)}


class Coarse(Perceptual):
    """Stands for a perceptual network: the image at two sizes."""

    def __init__(self) -> None:
        super().__init__("coarse")

    def raw_features(self, x: Tensor) -> list[Tensor]:
        """As the base class wants them."""
        return [torch.cat([torch.ones_like(y), y], dim=1) for y in (x, F.avg_pool2d(x, 4))]


def make(stage: str, config: TrainConfig, store: SliceStore) -> Any:
    """The trainer of a stage, the same in every process."""
    if stage == "gan":
        return GanTrainer(config, store, CPU)
    if stage == "student":
        known = {"labelled": 2, "num_classes": 2, "seed": config.seed, "amp": config.amp}
        return StudentTrainer(config.student_train, store, CPU, **known)
    torch.manual_seed(0)
    generator = Generator(config.generator)
    generator.update_mean_w(samples=64)
    trainer = EncoderTrainer(config, store, CPU, generator, Coarse())
    # In single precision some gradients are zero but for rounding, and Adam makes whole steps of them: on processors
    # without AVX512 weights then differ by more than a fault would change.
    trainer.encoder.double()
    trainer.encoder.register_forward_pre_hook(lambda network, given: (given[0].double(),))
    return trainer


def watch(trainer: Any, steps: int) -> list[dict[str, Any]]:
    """Gradients, weights and losses after each step."""
    parameters = {
        f"{name}.{key}": value
        for name in NETWORKS[trainer.name]
        for key, value in getattr(trainer, name).named_parameters()
    }
    seen = []
    for _ in range(steps):
        line: dict[str, Any] = {"losses": trainer.step()}
        line["gradients"] = {
            n: value.grad.clone() for n, value in parameters.items() if value.grad is not None
        }
        line["weights"] = {name: value.detach().clone() for name, value in parameters.items()}
        if trainer.name == "gan":
            line |= {"strength": trainer.strength, "path_mean": float(trainer.path_mean)}
        seen.append(line)
    return seen


def main(folder: Path, rank: int) -> None:
    """Train with the other process; what was seen is saved under the number of this one."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    job = json.loads((folder / "job.json").read_text())
    arrays = np.load(folder / "slices.npz")
    cohort = dacite.from_dict(Cohort, job["cohort"], dacite.Config(cast=[tuple]))
    store = SliceStore(arrays["images"], arrays["labels"], arrays["case"], cohort)
    for stage in ("encoder", "student", "gan"):
        trainer = make(stage, TrainConfig.from_dict(job["config"]), store)
        torch.save(watch(trainer, job["steps"]), folder / f"{stage}-rank{rank}.pt")

    # Only one of them is asked to stop; both have to.
    limits = Limits(max_images=10**9, log_images=16)
    asked = (lambda: trainer.step_number >= job["steps"] + 2) if rank == 1 else (lambda: False)
    reason = fit(trainer, folder / f"fit{rank}.pt", limits, RunLog(folder / f"log{rank}"), should_stop=asked)
    (folder / f"reason{rank}").write_text(f"{reason} {trainer.step_number}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
