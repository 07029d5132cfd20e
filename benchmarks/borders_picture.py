"""How smooth the borders of masks are on a CT of 512 x 512 pixels: one picture, a model in each column.

    python benchmarks/borders_picture.py docs/borders.png phantom-ct-liver runs/phantom128/bundle

A phantom patient that no training saw, painted on a grid four times as fine in the plane, and the quarter of the
largest cross-section that holds the liver's edge: the truth first, then each model's mask, all on the CT's own grid.
Prints DICE of the patient, and how long the mask's outlines are, against the truth's (stairs and dents are longer).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from skimage.measure import perimeter

from sgan_core.bundle import load_bundle
from sgan_core.imaging.grid import Grid
from sgan_core.imaging.image import Volume
from sgan_core.imaging.slices import native_slices, to_model
from sgan_core.metrics.per_patient import dice_from_counts
from sgan_core.phantom import LIVER, TEST_SEEDS
from sgan_core.phantom.anatomy import CT, draw_anatomy, stream
from sgan_core.phantom.painting import Canvas, paint_patient
from sgan_core.phantom.physics import ct_grid, ct_image, ct_tissues
from sgan_core.segment import SegmentConfig, segment_volume
from sgan_core.sheets import colours_of, outline, write_sheet

FINER = 4
CROP = 200  # pixels


def fine_ct(seed: int) -> tuple[Volume, np.ndarray]:
    """The CT of a phantom patient at 512 x 512 pixels a slice, and its labels."""
    anatomy, rng = draw_anatomy(seed), stream(seed, CT)
    coarse, shift = ct_grid(anatomy, rng)
    step = np.diag([1.0 / FINER, 1.0 / FINER, 1.0, 1.0])
    step[:2, 3] = 0.5 / FINER - 0.5  # the outer borders of the voxels stay
    rows, columns, slices = coarse.shape
    grid = Grid((rows * FINER, columns * FINER, slices), coarse.affine @ step)
    canvas = Canvas(anatomy, grid, shift, ct_tissues(rng), rng)
    paint_patient(canvas, anatomy)
    return Volume(ct_image(canvas, rng), grid), canvas.labels()


def main() -> None:
    """Segment the patient with every model and write the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("picture", type=Path, help="PNG to write")
    parser.add_argument("models", nargs="+", help="as for sgan-segment --model")
    options = parser.parse_args()
    image, labels = fine_ct(TEST_SEEDS)
    truth = (labels == LIVER).astype(np.uint8)
    shown = []
    for name in options.models:
        bundle = load_bundle(name)
        drawn = segment_volume(image, bundle, SegmentConfig("fast")).labels
        native = to_model(
            image, size=image.array.shape[0], intensity=bundle.config.intensity, channels=1, squash=False
        )
        slices, true = native_slices(drawn, native), native_slices(truth, native)
        dice = dice_from_counts((drawn & truth).sum(), drawn.sum(), truth.sum())
        length = np.mean(
            [perimeter(m) / perimeter(t) for m, t in zip(slices, true, strict=True) if t.sum() > 500]
        )
        print(f"{name}: student of {bundle.config.student_size} px, DICE {dice:.3f}, outline x {length:.2f}")
        largest = int(true.sum(axis=(1, 2)).argmax())
        row, column = (int(place.max()) for place in np.nonzero(true[largest]))
        window = (slice(max(0, row - CROP), row + 8), slice(max(0, column - CROP), column + 8))
        colours = colours_of(bundle.config.labels)
        panels = [
            outline(native.images[largest][(slice(None), *window)], m[largest][window], colours)
            for m in (true, slices)
        ]
        shown += panels if not shown else panels[1:]
    write_sheet(options.picture, [shown])


if __name__ == "__main__":
    main()
