"""Where the time of inversion goes: by number of slices, by resolution, by part, and beside the machine's peak.

    python benchmarks/inversion_scaling.py --output scaling.json --figure scaling.png

Random weights of the presets ``tiny`` (64 px) and ``small`` (128 px), images of noise: the time of a step does
not depend on what an image shows. FLOP are counted by PyTorch while a step runs (a multiplication and an addition
are two); the peak is that of a 3x3 convolution of 128 channels at 64 x 64.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from sgan_core.cli import app
from sgan_core.config import TrainConfig, preset
from sgan_core.evaluation.tables import Table, json_text, markdown, write_text
from sgan_core.inversion import invert
from sgan_core.networks.encoder import Encoder
from sgan_core.networks.generator import Generator
from sgan_core.networks.perceptual import Perceptual, make_perceptual
from sgan_core.reconstruction import PaperReconstruction

STEPS = 3  # timed; seconds a slice are those of the preset's steps
PRESETS = {64: "tiny", 128: "small"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns the exit code."""
    p = app.Parser("inversion_scaling", description=__doc__ or "")
    p.add_argument("--output", required=True, type=Path, metavar="FILE.json")
    p.add_argument("--figure", type=Path, metavar="FILE.png")
    p.add_argument("--slices", type=int, nargs="+", default=[1, 8, 64], metavar="N", help="default: 1 8 64")
    p.add_argument("--repeats", type=int, default=3, metavar="N", help="figures are medians (default 3)")
    return app.run(measure, p, argv)


def measure(args: argparse.Namespace) -> None:
    """Measure and write the figures, print them as a table."""
    load = os.getloadavg()[0]
    peak = peak_gflops(args.repeats)
    perceptual = make_perceptual("efficientnet-lite0")
    sizes = [
        at_size(size, name, perceptual, args.slices, args.repeats, peak) for size, name in PRESETS.items()
    ]
    found = {
        "threads": torch.get_num_threads(),
        "load_average_before": round(load, 2),
        "busy": load > 0.5,
        "peak_gflops": round(peak, 1),
        "repeats": args.repeats,
        "sizes": sizes,
    }
    write_text(args.output, json_text(found))
    if args.figure:
        draw(found, args.figure)
    sys.stdout.write(markdown(table(found)))


def at_size(
    size: int, name: str, perceptual: Perceptual, counts: list[int], repeats: int, peak: float
) -> dict[str, Any]:
    """Milliseconds of a step and slice for each number of slices, with the parts at one full batch."""
    config = preset(name, modality="ct", num_classes=2, size=size)
    torch.manual_seed(0)
    generator = Generator(config.generator).eval().requires_grad_(False)
    encoder = _encoder(config)
    batch = config.inversion.batch
    images = torch.rand(max(*counts, batch), 1, size, size) * 2.0 - 1.0

    def step_ms(count: int) -> float:
        """Whole inversion of ``count`` slices in batches, one run less a shorter one."""
        short, long = (cpu_seconds(partial(run, count, steps), repeats) for steps in (1, 1 + STEPS))
        return 1000 * (long - short) / STEPS / count

    def run(count: int, steps: int) -> None:
        settings = replace(config.inversion, steps=steps, tolerance=0.0)
        for part in images[:count].split(batch):
            invert(part, generator, encoder, PaperReconstruction(perceptual, settings), settings)

    by_count = {count: step_ms(count) for count in counts}
    parts, flop = profile(images[:batch], generator, encoder, perceptual, repeats)
    full = parts["generator"] + parts["perceptual"]
    return {
        "size": size,
        "preset": name,
        "batch": batch,
        "steps": config.inversion.steps,
        "step_ms_by_slices": {str(count): _rounded(value) for count, value in by_count.items()},
        "seconds_per_slice": {
            str(count): _rounded(value * config.inversion.steps / 1000) for count, value in by_count.items()
        },
        "parts_ms": {part: _rounded(value) for part, value in parts.items()}
        | {"rest": _rounded(max(0.0, by_count.get(batch, by_count[max(counts)]) - full))},
        "gflop_per_step": {part: _rounded(value) for part, value in flop.items()},
        "times_the_bound": _rounded(full / 1000 * peak / (flop["generator"] + flop["perceptual"])),
    }


def profile(
    images: torch.Tensor, generator: Generator, encoder: Encoder, perceptual: Perceptual, repeats: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Milliseconds and GFLOP of a slice: forward and backward pass where inversion needs both."""
    start = generator.broadcast(generator.mean_w[None]).expand(len(images), -1, -1)
    with torch.no_grad():
        features = perceptual.features(images)

    def generate() -> None:
        w_plus = start.clone().requires_grad_(True)
        generator.synthesis(w_plus).image.sum().backward()

    def compare() -> None:
        image = images.clone().requires_grad_(True)
        perceptual.distance(perceptual.features(image), features).sum().backward()

    def encode() -> None:
        with torch.no_grad():
            encoder(images)

    parts = {"generator": generate, "perceptual": compare, "encoder": encode}
    times = {part: 1000 * cpu_seconds(run, repeats) / len(images) for part, run in parts.items()}
    return times, {part: gflop(run) / len(images) for part, run in parts.items()}


def cpu_seconds(run: Callable[[], None], repeats: int) -> float:
    """Median CPU time: other work on the machine counts less than in wall time."""
    run()
    times = []
    for _ in range(repeats):
        began = time.process_time()
        run()
        times.append(time.process_time() - began)
    return statistics.median(times)


def gflop(run: Callable[[], None]) -> float:
    """What PyTorch counts: convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


def peak_gflops(repeats: int) -> float:
    """A big 3x3 convolution."""
    x, weight = torch.randn(8, 128, 64, 64), torch.randn(128, 128, 3, 3)
    seconds = cpu_seconds(lambda: F.conv2d(x, weight, padding=1), repeats)
    return 2 * 8 * 128 * 128 * 9 * 64 * 64 / seconds / 1e9


def _encoder(config: TrainConfig) -> Encoder:
    generator = config.generator
    sizes = {"size": generator.size, "image_channels": 1, "num_ws": generator.num_ws}
    return Encoder(config.encoder, w_dim=generator.w_dim, **sizes).eval().requires_grad_(False)


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def table(found: dict[str, Any]) -> Table:
    """Sizes across, figures down."""
    sizes = found["sizes"]
    rows = [
        (f"ms a step and slice, {count} slices", *(f"{one['step_ms_by_slices'][count]:g}" for one in sizes))
        for count in sizes[0]["step_ms_by_slices"]
    ]
    rows += [
        (f"ms: {part}", *(f"{one['parts_ms'][part]:g}" for one in sizes)) for part in sizes[0]["parts_ms"]
    ]
    rows += [
        (f"GFLOP: {part}", *(f"{one['gflop_per_step'][part]:g}" for one in sizes))
        for part in sizes[0]["gflop_per_step"]
    ]
    rows.append(("times the bound", *(f"{one['times_the_bound']:g}" for one in sizes)))
    busy = ", busy with other work" if found["busy"] else ""
    title = f"A step of inversion, {found['threads']} thread(s), peak {found['peak_gflops']} GFLOP/s{busy}"
    return Table(title, ("figure", *(f"{one['size']} px" for one in sizes)), tuple(rows))


def draw(found: dict[str, Any], file: Path) -> None:
    """Time by number of slices, and the parts of a step."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for one in found["sizes"]:
        counts = [int(count) for count in one["seconds_per_slice"]]
        label = f"{one['size']} px, {one['steps']} steps"
        left.plot(counts, list(one["seconds_per_slice"].values()), "o-", label=label)
    left.set(xlabel="slices", ylabel="CPU seconds a slice", xscale="log", ylim=(0, None))
    left.set_xticks(counts, [str(count) for count in counts])
    left.minorticks_off()
    left.legend(frameon=False)
    names = [part for part in found["sizes"][0]["parts_ms"] if part != "encoder"]
    labels = [f"{one['size']} px" for one in found["sizes"]]
    base = [0.0] * len(labels)
    for part in names:
        values = [one["parts_ms"][part] for one in found["sizes"]]
        right.bar(labels, values, bottom=base, label=part, width=0.6)
        base = [a + b for a, b in zip(base, values, strict=True)]
    right.set(ylabel="ms a step and slice")
    right.legend(frameon=False)
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    raise SystemExit(main())
