"""What a machine does at the paper's size, as a table for docs/performance.md: a GAN step, and inversion.

    python benchmarks/gpu_table.py                                                  on a GPU, a few minutes
    python benchmarks/gpu_table.py --device cpu --size 32 --batch 2 --steps 1 --slices 2 --iterations 2

Weights are random and images are noise: the time of a step does not depend on what an image shows. Inversion takes
every step of its preset for every slice, which a trained model need not. benchmarks/gpu.sh runs this on a GPU.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from sgan_core.cli import app
from sgan_core.cohort import Case, Cohort
from sgan_core.config import TrainConfig, preset
from sgan_core.device import DEVICES, choose_device, describe
from sgan_core.evaluation.tables import Table, markdown
from sgan_core.inversion import fitting_batch, invert, out_of_memory
from sgan_core.networks.encoder import Encoder
from sgan_core.networks.generator import Generator
from sgan_core.networks.perceptual import Perceptual, make_perceptual
from sgan_core.reconstruction import PaperReconstruction
from sgan_core.training.data import SliceStore
from sgan_core.training.gan import GanTrainer

TRAINED = ("official", "paper")
INVERTED = ("paper", "small")  # Adam with a pass of the encoder in every step; L-BFGS without


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns the exit code."""
    p = app.Parser("gpu_table", description=__doc__ or "")
    p.add_argument("--device", choices=DEVICES, default="cuda", help="default: cuda")
    p.add_argument("--size", type=int, default=256, metavar="PX", help="default: 256")
    p.add_argument("--batch", type=int, metavar="N", help="of a GAN step (default: the preset's)")
    p.add_argument(
        "--steps",
        type=int,
        default=16,
        metavar="N",
        help="timed; 16 hold every penalty at its rate (default 16)",
    )
    p.add_argument("--slices", type=int, default=100, metavar="N", help="to invert (default 100)")
    p.add_argument("--iterations", type=int, metavar="N", help="of inversion (default: the preset's)")
    return app.run(measure, p, argv)


def measure(args: Any) -> None:
    """Measure everything and print the table."""
    device = choose_device(args.device)
    perceptual = make_perceptual("efficientnet-lite0").to(device)
    configs = {
        name: preset(name, modality="ct", num_classes=2, size=args.size) for name in (*TRAINED, *INVERTED)
    }
    steps = {name: gan_step(configs[name], device, args.batch, args.steps) for name in TRAINED}
    found = {
        name: inversion(configs[name], device, perceptual, args.slices, args.iterations) for name in INVERTED
    }
    sys.stdout.write(markdown(table(device, args, steps, found)))


# --- the GAN


def gan_step(config: TrainConfig, device: torch.device, batch: int | None, steps: int) -> dict[str, float]:
    """Images/s and peak memory of training; the batch is halved until it fits into memory."""
    batch = batch or config.gan.batch
    while True:
        try:
            return _gan_step(replace(config, gan=replace(config.gan, batch=batch)), device, steps)
        except RuntimeError as error:
            if batch == 2 or not out_of_memory(error):
                raise
        batch //= 2  # out here the failed attempt's memory is free


def _gan_step(config: TrainConfig, device: torch.device, steps: int) -> dict[str, float]:
    batch = config.gan.batch
    trainer = GanTrainer(replace(config, labelled=1), _noise(config, 2 * batch), device)

    def run() -> None:
        for _ in range(steps):
            trainer.step()

    trainer.step()  # with every penalty, and the choice of algorithms
    trainer.step()
    seconds, memory = timed(run, device)
    return {"batch": batch, "images_per_s": steps * batch / seconds, "memory_gb": memory}


def _noise(config: TrainConfig, count: int) -> SliceStore:
    size, channels = config.generator.size, config.generator.image_channels
    random = np.random.default_rng(0)
    images = random.uniform(-1, 1, (count, channels, size, size)).astype(np.float16)
    labels = random.integers(0, config.generator.num_classes, (count, size, size), dtype=np.uint8)
    case = Case(id="noise", patient="noise", image="noise", label="noise", labelled_rank=0)
    cohort = Cohort("noise", config.modality, config.intensity, config.labels, (case,))
    return SliceStore(images, labels, np.zeros(count, int), cohort)


# --- inversion


def inversion(
    config: TrainConfig, device: torch.device, perceptual: Perceptual, slices: int, iterations: int | None
) -> dict[str, float]:
    """Seconds and peak memory of inverting slices, as many at once as fit."""
    settings = replace(config.inversion, tolerance=0.0, steps=iterations or config.inversion.steps)
    generator, encoder = (net.to(device).eval() for net in _networks(config))
    shape = (slices, config.generator.image_channels, config.generator.size, config.generator.size)
    target = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device) * 2.0 - 1.0
    reconstruction = PaperReconstruction(perceptual, settings)
    batch = fitting_batch(target, generator, reconstruction, settings)

    def run() -> None:
        for part in target.split(batch):
            invert(part, generator, encoder, reconstruction, settings)

    invert(target[:batch], generator, encoder, reconstruction, replace(settings, steps=2))  # warms up
    seconds, memory = timed(run, device)
    return {
        "seconds": seconds,
        "at_once": min(batch, slices),
        "steps": settings.steps,
        "memory_gb": memory,
    }


def _networks(config: TrainConfig) -> tuple[Generator, nn.Module]:
    sizes = config.generator
    torch.manual_seed(0)
    generator = Generator(sizes)
    generator.update_mean_w(256)
    encoder = Encoder(
        config.encoder,
        size=sizes.size,
        image_channels=sizes.image_channels,
        num_ws=sizes.num_ws,
        w_dim=sizes.w_dim,
    )
    return generator, encoder


def timed(run: Callable[[], None], device: torch.device) -> tuple[float, float]:
    """Seconds, and the peak of a GPU's memory in GB; NaN elsewhere."""
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    run()
    if gpu:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - began
    return seconds, torch.cuda.max_memory_allocated(device) / 1e9 if gpu else float("nan")


def table(
    device: torch.device, args: Any, steps: dict[str, dict[str, float]], found: dict[str, dict[str, float]]
) -> Table:
    """The figures, with what they were measured on in the title."""
    title = f"{describe(device)}, PyTorch {torch.__version__}, {args.size} px, 1 channel, random weights"
    rows = [
        *(
            (
                f"GAN step, `{name}`, batch of {part['batch']}",
                f"{part['images_per_s']:.3g} images/s",
                _gb(part),
            )
            for name, part in steps.items()
        ),
        *(
            (
                f"{args.slices} slices inverted, `{name}`, {part['steps']} steps, {part['at_once']} at once",
                f"{part['seconds']:.3g} s",
                _gb(part),
            )
            for name, part in found.items()
        ),
    ]
    return Table(title, ("", "time", "peak memory"), tuple(rows))


def _gb(part: dict[str, float]) -> str:
    memory = part["memory_gb"]
    return "–" if memory != memory else f"{memory:.1f} GB"


if __name__ == "__main__":
    raise SystemExit(main())
