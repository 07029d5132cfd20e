"""Runs checks inside the host program, where PythonQt is: ``host PYTHON inside.py FOLDER [arguments of pytest]``.

FOLDER: the one of the checks, whose conftest.py counts. That of all tests is not for here: it imports PyTorch, which
Slicer's own process never does.
"""

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent

if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    import slicer_over_pythonqt  # noqa: F401  (from here on qt, ctk, slicer and standin are there)

    folder, *arguments = sys.argv[1:]
    # pytest's memory of what was logged keeps exceptions, and with them what the checks want to see freed.
    fixed = ["--confcutdir", folder, "-p", "no:cacheprovider", "-p", "no:logging"]
    code = int(pytest.main([*fixed, *arguments]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # Python and Qt would each take down what the other still holds
