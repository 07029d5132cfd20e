"""--help of every command: at once, with examples."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

COMMANDS = ("benchmark", "segment", "train", "demo", "sample", "evaluate", "data", "bundle", "info")
HEAVY = ("torch", "numpy", "monai", "nibabel", "SimpleITK", "matplotlib")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command: str) -> None:
    check = (
        f"import sys; from sgan_core.cli.{command} import main; code = main(['--help']); "
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"
    assert f"sgan-{command}" in done.stdout
    assert "examples:" in done.stdout


def test_help_answers_within_a_second() -> None:
    def seconds() -> float:
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "sgan_core.cli.train", "--help"], capture_output=True, check=True
        )
        return time.perf_counter() - began

    assert min(seconds() for _ in range(3)) < 1.0  # the best of three: other programs run here too


@pytest.mark.parametrize("command", COMMANDS)
def test_version(command: str) -> None:
    check = f"import sys; from sgan_core.cli.{command} import main; sys.exit(main(['--version']))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[0]) == (0, f"sgan-{command}")


@pytest.mark.parametrize(
    ("asked", "looks"),
    [({}, "1000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"), ({"GOMP_SPINCOUNT": "7"}, "7")],
)
def test_threads_let_go_of_the_core_unless_the_user_says_how_to_wait(
    asked: dict[str, str], looks: str
) -> None:
    check = (
        "import os, sys; from sgan_core.cli.segment import main; main(['--version']); "
        "print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"  # which would have read it too early
    )
    mine = {
        name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    }
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=False, env=mine | asked
    )
    assert done.stdout.splitlines()[-1] == f"{looks} False"
