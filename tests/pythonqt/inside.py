"""Runs the checks inside the host program, where PythonQt is: ``host PYTHON inside.py [arguments of pytest]``."""

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent

if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    # The conftest.py of the engine's tests is not for here: it imports PyTorch, which Slicer's process never does.
    # Nor pytest's memory of what was logged: it keeps exceptions, and with them what the checks want to see freed.
    plugins = ["-p", "no:cacheprovider", "-p", "no:logging"]
    fixed = ["--confcutdir", str(HERE), *plugins, str(HERE / "check_panel.py")]
    code = int(pytest.main([*fixed, *sys.argv[1:]]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # Python and Qt would each take down what the other still holds
