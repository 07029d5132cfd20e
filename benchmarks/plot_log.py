"""Draw the curves of a training run: python benchmarks/plot_log.py RUN/log.jsonl docs/curves.png."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PANELS = (
    ("gan", ("image_d", "image_g", "pair_d", "pair_g"), "stage 1: losses"),
    ("gan", ("frechet",), "stage 1: Frechet distance (EfficientNet-Lite0, 500 images)"),
    ("gan", ("label_agreement", "projection_dice", "empty_share", "empty_share_data"), "stage 1: labels"),
    ("encoder", ("perceptual", "mse", "ce", "dice", "latent"), "stage 2: losses"),
    ("encoder", ("validation_dice",), "stage 2: encoder-only DICE, validation patients"),
    ("student", ("student_dice", "student_shifted_dice"), "stage 3: DICE, validation patients"),
)


def curve(lines: list[dict], stage: str, name: str) -> tuple[list[float], list[float]]:
    """Thousands of images and values of one figure; a gap where a stage began anew."""
    x: list[float] = []
    y: list[float] = []
    for line in lines:
        if line["stage"] != stage or line.get(name) is None:
            continue
        if x and line["images"] / 1000 < x[-1]:
            x.append(x[-1])
            y.append(float("nan"))
        x.append(line["images"] / 1000)
        y.append(line[name])
    return x, y


def main(log: Path, picture: Path) -> None:
    """Read the log, write the picture."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    figure, axes = plt.subplots(1, len(PANELS), figsize=(4.2 * len(PANELS), 3.4), layout="constrained")
    for axis, (stage, names, title) in zip(axes, PANELS, strict=True):
        for name in names:
            x, y = curve(lines, stage, name)
            axis.plot(x, y, label=name, marker="o" if len(x) < 20 else "", linewidth=1.2, markersize=3)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("thousand images")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
