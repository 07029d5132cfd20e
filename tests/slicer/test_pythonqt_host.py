"""``make check-pythonqt`` is optional and slow; what would break it in silence is seen here."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from helpers import HERE, ROOT

CHECKS = HERE.parent / "pythonqt"


def custom_widgets() -> set[str]:
    """The classes that the .ui files need beyond Qt's own."""
    files = (ROOT / "SemanticGANSlicer" / "Resources" / "UI").glob("*.ui")
    return {
        element.text or ""
        for file in files
        for element in ElementTree.parse(file).getroot().iterfind("customwidgets/customwidget/class")
    }


def test_host_can_make_every_widget_of_the_ui_files() -> None:
    known = re.findall(r'\{"(\w+)", make<', (CHECKS / "host" / "main.cpp").read_text())
    assert custom_widgets() <= set(known)
    assert len(custom_widgets()) >= 5


def test_tests_that_run_there_too_exist() -> None:
    (listed,) = re.findall(r"^SHARED = \((.*?)\)", (CHECKS / "run.py").read_text(), re.MULTILINE | re.DOTALL)
    names = re.findall(r'"([\w.]+)"', listed)
    assert names
    assert [name for name in names if not Path(HERE, name).is_file()] == []
