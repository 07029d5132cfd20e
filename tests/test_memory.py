"""A very large scan is segmented within the memory of a plain computer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sgan_core.phantom import make_case

LIMIT_MB = 3000  # of the 4 GB that a plain computer has to spare
SHAPE = (512, 512, 1000)  # int16: 524 MB

# Reports the largest resident size of the command as the operating system saw it. Not ru_maxrss: a program started by
# a larger one inherits that one's.
RUN = """
import json, re, sys
from sgan_core.cli.segment import main
code = main(sys.argv[1:])
peak_kb = re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]
print(json.dumps({"code": code, "peak_mb": int(peak_kb) / 1024}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is of Linux")
def test_thousand_slices_fit_into_memory(tmp_path: Path) -> None:
    small = make_case(3, "ct").image  # values of a patient, drawn out to the size
    scan = np.empty(SHAPE, np.int16)
    rows, columns, levels = (
        np.arange(size) * have // size for size, have in zip(SHAPE, small.array.shape, strict=True)
    )
    for k, level in enumerate(levels):
        scan[..., k] = small.array[rows[:, None], columns[None], level]
    affine = small.grid.affine @ np.diag([*(np.array(small.array.shape) / SHAPE), 1.0])
    nib.save(nib.Nifti1Image(scan, affine), tmp_path / "large.nii")
    del scan
    arguments = ["large.nii", "--model", "phantom-ct-liver", "--output", "out", "--quality", "fast"]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    print(f"peak {result['peak_mb']:.0f} MB for {' x '.join(map(str, SHAPE))}")
    assert result["code"] == 0, done.stderr
    assert result["peak_mb"] < LIMIT_MB
    segmented = nib.load(tmp_path / "out" / "large_seg.nii.gz")
    assert segmented.shape == SHAPE
    assert np.allclose(segmented.affine, affine)
