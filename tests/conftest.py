"""What every test may use: the shared real data, when it is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real medical images, ``SGAN_SHARED`` (default ``../shared``)."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("SGAN_SHARED", default))
    if not folder.is_dir():
        if "SGAN_SHARED" in os.environ:
            pytest.fail(f"SGAN_SHARED={folder} is not a folder")
        pytest.skip("real test data not found; set SGAN_SHARED")
    return folder.resolve()
