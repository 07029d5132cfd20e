"""benchmarks/gpu_table.py and gpu.sh: they run, adapt to the memory, and say what is missing."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


def _load_benchmark():
    """It is a script, not a package."""
    spec = importlib.util.spec_from_file_location("gpu_table", FOLDER / "gpu_table.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


benchmark = _load_benchmark()


def test_the_table_is_printed(toy_config, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "preset", lambda name, **_: toy_config())
    counts = {"size": 32, "batch": 4, "steps": 2, "slices": 3, "iterations": 2}
    assert benchmark.main(["--device=cpu", *(f"--{name}={count}" for name, count in counts.items())]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "random weights" in lines[0]
    for name in ("official", "paper"):
        (row,) = (line for line in lines if f"GAN step, `{name}`, batch of 4" in line)
        assert float(re.search(r"([\d.e+]+) images/s", row)[1]) > 0
    for name in ("paper", "small"):
        assert any(f"3 slices inverted, `{name}`, 2 steps, 3 at once" in line for line in lines)


def test_a_batch_that_does_not_fit_is_halved(toy_config, monkeypatch):
    tried = []

    def step(config, device, steps):
        tried.append(config.gan.batch)
        if config.gan.batch > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"batch": config.gan.batch}

    monkeypatch.setattr(benchmark, "_gan_step", step)
    assert benchmark.gan_step(toy_config(), torch.device("cpu"), 16, 1) == {"batch": 4}
    assert tried == [16, 8, 4]


def test_other_errors_are_not_taken_for_it(toy_config, monkeypatch):
    def step(config, device, steps):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(benchmark, "_gan_step", step)
    with pytest.raises(RuntimeError, match="shapes differ"):
        benchmark.gan_step(toy_config(), torch.device("cpu"), 16, 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one here")
@pytest.mark.skipif(os.name == "nt", reason="a bash script")
def test_the_script_says_that_there_is_no_gpu():
    environment = os.environ | {"PYTHON": sys.executable}
    found = subprocess.run([FOLDER / "gpu.sh"], env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "finds no CUDA GPU" in found.stderr
