"""Draw the README's picture: python benchmarks/readme_picture.py docs/demo.png.

One phantom patient that training never saw, as CT and as T1-weighted MRI: image with the true outline above,
the generator's reconstruction with the label it drew below.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from sgan_core.bundle import load_bundle
from sgan_core.imaging.slices import labels_to_model
from sgan_core.phantom import LIVER, TEST_SEEDS, make_case
from sgan_core.segment import segment_volume
from sgan_core.sheets import colours_of, outline, write_sheet
from sgan_core.training.evaluate import spread

SLICES = 4  # of each domain


def main(picture: Path, model: str = "phantom-ct-liver") -> None:
    """Segment the patient in both domains and write the sheet."""
    bundle = load_bundle(model)
    colours = colours_of(bundle.config.labels)
    rows: list[list[np.ndarray]] = [[], []]
    for domain in ("ct", "t1_in"):
        phantom = make_case(TEST_SEEDS, domain)
        found = segment_volume(phantom.image, bundle)
        truth = labels_to_model((phantom.labels == LIVER).astype(np.uint8), found.stack)
        drawn = found.inverted_probs.argmax(axis=1).astype(np.uint8)
        for index in spread(np.flatnonzero(truth.any(axis=(1, 2))), SLICES + 2)[1:-1]:
            rows[0].append(outline(found.stack.images[index], truth[index], colours))
            rows[1].append(outline(found.reconstructions[index], drawn[index], colours))
    write_sheet(picture, rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
