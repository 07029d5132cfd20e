"""The tests of what other tools make of our files need those tools, an environment of its own: ``make test-interop``.

With SGAN_REQUIRE_INTEROP=1 a tool that is missing fails its tests; else they are skipped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
pytest.register_assert_rewrite("archive", "mrml", "tools")

from sources import MADE, PICTURES, VOLUMES, Source, chaos_ct  # noqa: E402
from tools import require_package  # noqa: E402


@pytest.fixture(scope="session")
def slicer() -> Any:
    """What loads files in 3D Slicer."""
    require_package("slicer_core", "slicer-core")
    from mrml import Slicer

    return Slicer()


@pytest.fixture(scope="session")
def made(
    tmp_path_factory: pytest.TempPathFactory, dicom_files: Any, request: pytest.FixtureRequest
) -> Callable[[str], Source]:
    """The series of a name and our files for it, made once. Nobody changes them."""
    known: dict[str, Source] = {}

    def find(name: str) -> Source:
        if name not in known:
            folder = tmp_path_factory.mktemp(name)
            if name == "chaos":
                real = chaos_ct(folder, request.getfixturevalue("shared"))
                if real is None:
                    pytest.skip("CHAOS CT 3 is not in the shared data")
                known[name] = real
            else:
                known[name] = MADE[name](folder, dicom_files)
        return known[name]

    return find


@pytest.fixture(params=VOLUMES)
def volume(made: Callable[[str], Source], request: pytest.FixtureRequest) -> Source:
    """Each series with a place in the patient."""
    return made(request.param)


@pytest.fixture(params=(*VOLUMES, "nifti"))
def labelled(made: Callable[[str], Source], request: pytest.FixtureRequest) -> Source:
    """Each volume, DICOM or not."""
    return made(request.param)


@pytest.fixture(params=PICTURES)
def picture(made: Callable[[str], Source], request: pytest.FixtureRequest) -> Source:
    """Each image without one."""
    return made(request.param)


@pytest.fixture(params=(*VOLUMES, *PICTURES))
def source(made: Callable[[str], Source], request: pytest.FixtureRequest) -> Source:
    """Each of them."""
    return made(request.param)
