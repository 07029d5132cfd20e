"""Loads a scripted module as Slicer does, and runs Qt's event loop for a test."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import slicer
from PySide6 import QtCore, QtWidgets


class ModuleMeta:
    """The ``parent`` of a module class: the module as Slicer's module manager sees it."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, str(path)
        self.title, self.helpText, self.acknowledgementText = "", "", ""
        self.categories: list[str] = []
        self.dependencies: list[str] = []
        self.contributors: list[str] = []
        self.hidden = False
        self.icon: Any = None
        self.widget: Any = None

    def widgetRepresentation(self) -> Any:
        """The widget that holds the panel."""
        return self.widget.parent if self.widget is not None else None


def load_module(path: str | Path, *, enter: bool = True) -> tuple[ModuleType, Any, ModuleMeta]:
    """Import ``<Name>.py``, construct ``Name(meta)`` and ``NameWidget(parent)``, call ``setup()`` and ``enter()``.

    Returns the Python module, the panel and the meta object. ``unload(panel)`` ends it.
    """
    path = Path(path).resolve()
    name = path.stem
    module = _import(name, path)
    meta = ModuleMeta(name, path)
    setattr(slicer.modules, name.lower(), meta)
    setattr(slicer.moduleNames, name, name)
    setattr(slicer.modules, f"{name}Instance", getattr(module, name)(meta))
    parent = slicer.qMRMLWidget()
    parent.setLayout(QtWidgets.QVBoxLayout())
    parent.isEntered = False
    parent.setMRMLScene(slicer.mrmlScene)

    def reload() -> None:
        """Of qSlicerScriptedLoadableModuleWidget: make the panel of the module's file as it is now."""
        meta.widget = getattr(sys.modules[name], f"{name}Widget")(parent)
        setattr(slicer.modules, f"{name}Widget", meta.widget)
        meta.widget.setup()

    parent.reload = reload
    reload()
    if enter:
        enter_module(meta.widget)
    return module, meta.widget, meta


def _import(name: str, path: Path) -> ModuleType:
    folder = str(path.parent)
    if folder in sys.path:
        sys.path.remove(folder)
    sys.path.insert(0, folder)
    known = sys.modules.get(name)
    if known is not None and Path(known.__file__ or "").resolve() != path:
        del sys.modules[name]
    importlib.invalidate_caches()
    return importlib.import_module(name)


def enter_module(widget: Any) -> None:
    """The person opens the panel."""
    widget.parent.isEntered = True
    getattr(widget, "enter", lambda: None)()


def exit_module(widget: Any) -> None:
    """The person opens another module."""
    widget.parent.isEntered = False
    getattr(widget, "exit", lambda: None)()


def unload(widget: Any) -> None:
    """Slicer closes: ``cleanup()``, then the panel is deleted."""
    name = widget.moduleName
    widget._onModuleAboutToBeUnloaded(name)
    for attribute in (f"{name}Instance", f"{name}Widget", name.lower()):
        vars(slicer.modules).pop(attribute, None)
    vars(slicer.moduleNames).pop(name, None)
    widget.parent.deleteLater()
    QtCore.QCoreApplication.sendPostedEvents(None, QtCore.QEvent.Type.DeferredDelete)
    QtWidgets.QApplication.processEvents()


def pump(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    """Run the event loop until the condition holds; an AssertionError when it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not reached in {seconds} s"
        QtWidgets.QApplication.processEvents(QtCore.QEventLoop.ProcessEventsFlag.AllEvents, 20)
        # deleteLater waits for a loop that exec() started, as Slicer's is.
        QtCore.QCoreApplication.sendPostedEvents(None, QtCore.QEvent.Type.DeferredDelete)
        time.sleep(0.001)


class EventLoopProbe:
    """Measures how long the event loop did not turn: the freezes that a person would see.

    ``with EventLoopProbe() as probe: pump(...)``, then ``probe.max_gap_ms``. The time between the last tick and the
    end counts too, so code that never lets Qt work is seen as one gap.
    """

    PERIOD_MS = 5

    def __init__(self) -> None:
        self.max_gap_ms = 0.0
        self.ticks = 0
        self._last = 0.0
        self._timer = QtCore.QTimer()
        self._timer.setTimerType(QtCore.Qt.TimerType.PreciseTimer)
        self._timer.setInterval(self.PERIOD_MS)
        self._timer.timeout.connect(self._tick)

    def __enter__(self) -> EventLoopProbe:
        self.max_gap_ms, self.ticks, self._last = 0.0, 0, time.perf_counter()
        self._timer.start()
        return self

    def __exit__(self, *_exception: Any) -> None:
        self._timer.stop()
        self._measure()

    def _tick(self) -> None:
        self.ticks += 1
        self._measure()

    def _measure(self) -> None:
        now = time.perf_counter()
        self.max_gap_ms = max(self.max_gap_ms, 1000 * (now - self._last))
        self._last = now
