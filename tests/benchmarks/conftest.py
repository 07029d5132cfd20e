"""The benchmarks, for their tests."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="package")
def benchmark_script() -> Iterator[Callable[[str], ModuleType]]:
    """A benchmark by its name. They are scripts, not a package, and import each other as neighbours."""
    folder = str(Path(__file__).parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    yield importlib.import_module
    sys.path.remove(folder)
