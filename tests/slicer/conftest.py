"""The tests of the Slicer module need slicer-core, an environment of its own: ``make test-slicer``."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

if find_spec("slicer_core") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    from helpers import ct, fake_worker, logic, panel, scene  # noqa: F401  (fixtures)
