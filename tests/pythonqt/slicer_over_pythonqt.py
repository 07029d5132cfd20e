"""Makes ``qt``, ``ctk`` and ``slicer`` what they are in Slicer, over the PythonQt of the host program.

Real here: PythonQt and Qt, ctk's widgets, MRML with its logics and ``slicer.util`` (package slicer-core), Slicer's own
``ScriptedLoadableModule``, ``parameterNodeWrapper`` and ``i18n`` (environment variable SLICER_BASE_PYTHON).
Stand-ins: the qMRML widgets (``host/widgets.h``), and, from ``tests/slicer/standin``, ``slicer.app``, the dialogs of
``slicer.util``, the subject hierarchy's plugins, SampleData.

Importing this module installs it into the process, once and for good; it then is ``import standin`` over PythonQt.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from pathlib import Path
from typing import Any

import PythonQt
import PythonQt.private  # noqa: F401  (some classes are only there)
import slicer
import slicer.util
from PythonQt import QtCore, QtGui, QtUiTools, ctkwidgets, slicerwidgets

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "SemanticGANSlicer" / "SemanticGANSlicer.py"

# Only their names: parameterNodeWrapper asks for the exact types of widgets.
_CTK_NAMES = (
    "ctkCheckablePushButton",
    "ctkCheckBox",
    "ctkCollapsibleGroupBox",
    "ctkColorPickerButton",
    "ctkDirectoryButton",
    "ctkDoubleRangeSlider",
    "ctkDoubleSlider",
    "ctkDoubleSpinBox",
    "ctkRangeWidget",
    "ctkSliderWidget",
)
_QMRML_NAMES = ("qMRMLRangeWidget", "qMRMLSliderWidget", "qMRMLSpinBox")


def _make_qt() -> types.ModuleType:
    """As ctk's qt/__init__.py: all classes in one module."""
    qt = types.ModuleType("qt")
    for source in (QtCore, QtGui, QtUiTools):
        qt.__dict__.update({name: getattr(source, name) for name in dir(source) if not name.startswith("__")})
    return qt


def _give_names(module: Any) -> None:
    """``name`` for ``objectName``, as Slicer's PythonQt (a fork) has it; childWidgetVariables asks for it.

    Each class on its own: to Python, PythonQt's classes do not inherit from each other.
    """
    name = property(lambda self: self.objectName, lambda self, value: self.setObjectName(value))
    for cls in vars(module).values():
        if isinstance(cls, type) and hasattr(cls, "objectName"):
            cls.name = name


def _make_ctk() -> types.ModuleType:
    ctk = types.ModuleType("ctk")
    ctk.__dict__.update(
        {name: getattr(ctkwidgets, name) for name in dir(ctkwidgets) if name.startswith("ctk")}
    )
    ctk.__dict__.update({name: type(name, (), {}) for name in _CTK_NAMES})
    return ctk


def _single_shot(milliseconds: int, function: Any) -> None:
    """As slicerqt.py replaces QTimer.singleShot, which is a property, too."""
    timer = sys.modules["qt"].QTimer(_parent_of_timers)
    timer.setSingleShot(True)
    timer.connect("timeout()", function)
    timer.start(milliseconds)


def _install() -> None:
    qt = sys.modules["qt"] = _make_qt()
    sys.modules["ctk"] = _make_ctk()
    for module in (qt, ctkwidgets, slicerwidgets):
        _give_names(module)
    qt.QTimer.singleShot = staticmethod(_single_shot)
    for name in dir(slicerwidgets):
        if name.startswith("qMRML"):
            setattr(slicer, name, getattr(slicerwidgets, name))
    for name in _QMRML_NAMES:
        setattr(slicer, name, type(name, (), {}))
    slicer.modules, slicer.moduleNames = types.SimpleNamespace(), types.SimpleNamespace()
    slicer.__path__.append(os.environ["SLICER_BASE_PYTHON"])
    _borrow_the_application(qt)


def _borrow_the_application(qt: types.ModuleType) -> None:
    """The parts of ``standin`` that know nothing of PySide6's manners, without its __init__, which installs them."""
    standin = types.ModuleType("standin")
    standin.__path__ = [str(ROOT / "tests" / "slicer" / "standin")]
    pyside = types.ModuleType("PySide6")
    pyside.QtCore = pyside.QtGui = pyside.QtWidgets = qt
    sys.modules |= {"standin": standin, "PySide6": pyside}
    application, files, running, sample_data, scene = (
        importlib.import_module(f"standin.{name}")
        for name in ("application", "files", "running", "sample_data", "scene")
    )
    del sys.modules["PySide6"]
    application.install()
    sys.modules["SampleData"] = sample_data
    for module in (files, running, scene):
        public = {name: value for name, value in vars(module).items() if not name.startswith("_")}
        standin.__dict__.update(public)
    standin.GENUINE = os.environ["SLICER_BASE_PYTHON"]
    standin.press_sample = sample_data.press
    standin.reset = lambda: (slicer.app.reset(), sample_data.reset())


_install()
_parent_of_timers = sys.modules["qt"].QObject()
