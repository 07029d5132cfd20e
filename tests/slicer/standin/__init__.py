"""Runs a 3D Slicer scripted module without the Slicer application.

Real here: the MRML scene, nodes and module logics and ``slicer.util`` (package slicer-core), Qt (PySide6).
Stand-ins here: PythonQt's manners, the qMRML and ctk widgets, ``slicer.app`` and the dialogs, the subject hierarchy's
plugins, SampleData, and the base classes and ``parameterNodeWrapper`` of scripted modules. With the environment
variable SLICER_BASE_PYTHON=<Slicer source>/Base/Python/slicer the last two are Slicer's own ("genuine mode").
A passed test does NOT mean that the module ran in Slicer.

Not as in Slicer, as far as known:
- ``widget.sizeHint`` and ``minimumSizeHint`` are methods here, properties there; items, icons and other classes that
  are no QObject have PySide6's manners, which are mostly PythonQt's.
- No views, no main window, no worker threads; dialogs of slicer.util answer at once, Qt's own (QFileDialog, exec())
  must be replaced by the test.
- Segments have no items in the subject hierarchy; the terminology knows two organs; colour files are missing.
- What a stand-in lacks may exist in Slicer; what it has is written after Slicer's source (5.13), not tried in it.

Errors in slots and observers are printed only, as in Slicer; they are also kept in ``slicer.app.uncaught``.

Importing this package installs it into the process, once and for good.

    import standin
    scene = standin.new_scene()
    module, panel, meta = standin.load_module("SemanticGANSlicer/SemanticGANSlicer.py")
    standin.pump(lambda: panel.ui.statusLabel.text == "Done", seconds=20)
    standin.unload(panel)
"""

from __future__ import annotations

import os
import sys
import types

import slicer
import slicer.util  # slicer-core's: real

from . import application, pythonqt

# The QApplication first: widgets need it, and the manners must be there before the first widget is made.
_qt_application = pythonqt.application()
pythonqt.adopt_manners()

from . import sample_data, ui_loader, widgets  # noqa: E402

GENUINE = os.environ.get("SLICER_BASE_PYTHON") or None


def _install() -> None:
    qt = pythonqt.make_qt_module()
    qt.QUiLoader = ui_loader.QUiLoader
    ctk = types.ModuleType("ctk", "Stand-in for CTK.")
    for name, cls in widgets.CLASSES.items():
        setattr(ctk if name.startswith("ctk") else slicer, name, cls)
    sys.modules |= {"qt": qt, "ctk": ctk}
    slicer.modules, slicer.moduleNames = types.SimpleNamespace(), types.SimpleNamespace()
    application.install()
    sys.modules["SampleData"] = sample_data
    if GENUINE:
        slicer.__path__.append(GENUINE)  # slicer.ScriptedLoadableModule, .parameterNodeWrapper, .i18n
    else:
        _install_own_bases()


def _install_own_bases() -> None:
    from . import bases, parameter_node

    i18n = types.ModuleType("slicer.i18n")
    i18n.tr, i18n.translate = bases.tr, bases.translate
    for name, module in (
        ("i18n", i18n),
        ("ScriptedLoadableModule", bases),
        ("parameterNodeWrapper", parameter_node),
    ):
        sys.modules[f"slicer.{name}"] = module
        setattr(slicer, name, module)


_install()

from .files import read_mrb  # noqa: E402
from .running import (  # noqa: E402
    EventLoopProbe,
    ModuleMeta,
    enter_module,
    exit_module,
    load_module,
    pump,
    unload,
)
from .sample_data import press as press_sample  # noqa: E402
from .scene import TERMINOLOGY, leaves, new_scene  # noqa: E402

__all__ = [
    "GENUINE",
    "TERMINOLOGY",
    "EventLoopProbe",
    "ModuleMeta",
    "enter_module",
    "exit_module",
    "leaves",
    "load_module",
    "new_scene",
    "press_sample",
    "pump",
    "read_mrb",
    "reset",
    "unload",
]


def reset() -> None:
    """Forget settings, recorded dialogs, answers, translations, registered samples. The scene stays."""
    slicer.app.reset()
    sample_data.reset()
