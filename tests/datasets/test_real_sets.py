"""Every real data set at hand: checked, prepared and read as training reads it, through the command."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from sgan_core.cli.data import main
from sgan_core.cohort import load_cohort, require_files
from sgan_core.training.data import read_case

# name, folder, kinds of problems that it is known to have: how many
SETS = [
    ("wingspan", "Wingspan", {}),
    ("wingspan-thorax", "Wingspan", {}),
    ("covid-chestxray", "covid-chestxray-dataset", {}),
    ("cxr14", "CXR14", {}),
    ("isic2016", "ISIC2016_fullres", {}),
    # Three photographs are in two parts under two names.
    ("isic2017", "ISIC2017", {"leak": 3}),
    ("isic2017", "ISIC2017_fullres", {}),
    ("isic2018", "ISIC2018", {"missing": 1}),  # no table of lesions beside the Task 3 images
    ("isic2018", "ISIC2018_fullres", {}),
    ("ham10000", "HAM10000_fullres", {"missing": 1}),
    ("chaos-ct", "CHAOS", {}),
    ("chaos-mr", "CHAOS", {"missing": 1}),  # the out-of-phase slice is not there
    ("chaos-t2", "CHAOS_T2", {}),
    ("btcv", "BTCV", {}),
    ("btcv-abdomen", "BTCV", {}),
    ("lits-slices", "LiTS", {}),
    ("lits-slices", "LiTS/gray128", {}),
    ("lits-slices", "LiTS/gray256", {}),
    ("metfaces", "MetFaces_teaser", {}),
    ("fasseg", "FASSEG", {"duplicate": 5}),  # in the source's Train and Test parts
]


@pytest.mark.parametrize(("name", "folder", "known"), SETS, ids=[f"{s[0]}-{s[1]}" for s in SETS])
def test_real_set(
    name: str,
    folder: str,
    known: dict[str, int],
    shared: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = shared / "data" / folder
    assert main(["check", name, str(root)]) == (1 if known else 0)
    output = capsys.readouterr().out
    assert {kind: int(count) for kind, count in re.findall(r"^([a-z]+): (\d+)$", output, re.M)} == known
    assert main(["prepare", name, str(root), "--output", str(tmp_path)]) == 0
    cohort = load_cohort(tmp_path)
    require_files(cohort)
    for case in (cohort.cases[0], cohort.cases[-1]):
        image, labels = read_case(case, cohort)
        assert (labels is not None) == case.labelled
        if labels is not None:
            assert set(np.unique(labels)) <= {0, *(label.value for label in cohort.labels)}
            assert labels.shape == image.array.shape[-labels.ndim :]
