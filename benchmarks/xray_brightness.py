"""How much the brightness of lungs differs between X-rays, by the way their intensities are scaled.

    python benchmarks/xray_brightness.py wingspan=DIR covid-chestxray=DIR

Prints, in a range of 2 (black -1, white 1): the standard deviation over pictures of the mean inside the lung mask
(less is better: the same tissue looks the same) and the mean over pictures of the standard deviation inside it
(contrast, more is better).
"""

from __future__ import annotations

import sys

import numpy as np

from sgan_core.cohort import Intensity
from sgan_core.imaging.readers import read_picture
from sgan_core.imaging.slices import labels_to_model, to_model
from sgan_datasets import data_set
from sgan_datasets.pairs import read_case_label

RULES = {
    "whole picture": {},
    "central 80 %": {"central": 0.8},
    "central 70 %": {"central": 0.7},
    "central 60 %": {"central": 0.6},
    "central 70 %, CLAHE": {"central": 0.7, "equalise": True},
}


def main() -> None:
    """Measure the sets named on the command line."""
    print("| set | percentiles of | spread of means | contrast |\n| --- | --- | ---: | ---: |")
    for name, folder in (argument.split("=", 1) for argument in sys.argv[1:]):
        source = data_set(name)
        cohort = source.load(folder)
        cases = [case for case in cohort.cases if case.label is not None]
        for rule, settings in RULES.items():
            intensity = Intensity(percentiles=(0.5, 99.5), **settings)
            means, contrasts = [], []
            for case in cases:
                stack = to_model(
                    read_picture(case.image), size=128, intensity=intensity, squash=cohort.squash
                )
                lungs = labels_to_model(np.asarray(read_case_label(source, case, cohort)), stack)[0] == 1
                inside = stack.images[0, 0][lungs]
                means.append(inside.mean())
                contrasts.append(inside.std())
            print(f"| {name} ({len(cases)}) | {rule} | {np.std(means):.3f} | {np.mean(contrasts):.3f} |")


if __name__ == "__main__":
    main()
