"""Gives PySide6 the manners of PythonQt, the Qt binding inside Slicer.

PySide6 asks ``label.text()``, PythonQt ``label.text``; PythonQt writes ``button.enabled = False`` and connects
with ``button.connect("clicked()", callback)``. A module written for Slicer needs the second kind. The change is
made on the PySide6 classes themselves, for the whole process, so nothing else there can use PySide6's own manners.
"""

from __future__ import annotations

import contextlib
import os
import types
from collections.abc import Callable
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from PySide6 import QtCore, QtGui, QtWidgets

_MODULES = (QtCore, QtGui, QtWidgets)
# Both a property and a method. QTimer: Slicer keeps the method (slicerqt.py). QWidget: Qt itself asks a Python class
# for these methods, and asking a property that asks Qt would never end.
_STAYS_A_METHOD = {("QTimer", "singleShot"), ("QWidget", "sizeHint"), ("QWidget", "minimumSizeHint")}


def application() -> QtWidgets.QApplication:
    """The one QApplication of this process."""
    return QtWidgets.QApplication.instance() or QtWidgets.QApplication(["standin"])


def adopt_manners() -> None:
    """Turn Qt properties into Python attributes, add ``name``, ``connect`` and ``disconnect``."""
    for module in _MODULES:
        # dir(), not vars(): PySide6 6.12 fills its modules when a name is asked for.
        for candidate in (getattr(module, name) for name in dir(module)):
            if isinstance(candidate, type) and issubclass(candidate, QtCore.QObject):
                _adopt_properties(candidate)
    QtCore.QObject.name = _attribute("objectName")
    _adopt_connect()
    QtCore.QObject.className = lambda self: self.metaObject().className()
    for cls in (QtWidgets.QDialog, QtCore.QEventLoop):
        cls.exec_ = cls.exec  # PythonQt's name, of which PySide6 warns


def _adopt_properties(cls: type[QtCore.QObject]) -> None:
    meta = cls.staticMetaObject
    for index in range(meta.propertyOffset(), meta.propertyCount()):
        name = meta.property(index).name()
        if (cls.__name__, name) not in _STAYS_A_METHOD:
            setattr(cls, name, _attribute(name))


def _attribute(name: str) -> property:
    def read(self: QtCore.QObject) -> Any:
        return QtCore.QObject.property(self, name)

    def write(self: QtCore.QObject, value: Any) -> None:
        QtCore.QObject.setProperty(self, name, value)

    return property(read, write)


def _adopt_connect() -> None:
    """Put our ``connect`` before PySide6's, which it finds before any attribute of the class."""
    pyside6_find = QtCore.QObject.__getattribute__

    def find(self: QtCore.QObject, name: str) -> Any:
        if name not in ("connect", "disconnect"):
            return pyside6_find(self, name)
        own = next((vars(cls)[name] for cls in type(self).__mro__ if name in vars(cls)), None)

        def dispatch(*arguments: Any) -> Any:
            if len(arguments) == 2 and isinstance(arguments[0], str):
                return own(self, *arguments)
            return pyside6_find(self, name)(*arguments)  # PySide6 itself uses its own forms

        return dispatch

    QtCore.QObject.__getattribute__ = find
    QtCore.QObject.connect, QtCore.QObject.disconnect = connect, _disconnect


def connect(self: QtCore.QObject, signature: str, callback: Callable[..., Any]) -> bool:
    """``connect("clicked()", f)``: f gets the arguments that the signature names."""
    name, wanted = parse_signature(signature)

    def relay(*values: Any) -> None:  # PySide6 chooses by what the callback takes; it sees no difference here
        callback(*values)

    links = self.__dict__.setdefault("_pythonqt_links", [])
    links.append((signature, callback, relay))
    _overload(getattr(self, name), wanted).connect(relay)
    return True


def _disconnect(self: QtCore.QObject, signature: str, callback: Callable[..., Any]) -> bool:
    links = self.__dict__.get("_pythonqt_links", [])
    for link in links:
        if link[:2] == (signature, callback):
            name, wanted = parse_signature(signature)
            _overload(getattr(self, name), wanted).disconnect(link[2])
            links.remove(link)
            return True
    return False


def _overload(signal: Any, wanted: list[str]) -> Any:
    """The variant of a signal with these arguments: ``clicked`` exists with a bool and without."""
    kinds = {"bool": bool, "int": int, "double": float, "QString": str}
    if wanted and all(kind in kinds for kind in wanted):
        with contextlib.suppress(KeyError, IndexError):
            return signal[tuple(kinds[kind] for kind in wanted)]
    return signal


def parse_signature(signature: str) -> tuple[str, list[str]]:
    """``"moved(int,QString)"`` -> ``("moved", ["int", "QString"])``."""
    name, _, rest = signature.partition("(")
    return name, [kind.strip() for kind in rest.rstrip(")").split(",") if kind.strip()]


def make_qt_module() -> types.ModuleType:
    """The module ``qt`` of Slicer: every Qt class under one name."""
    module = types.ModuleType("qt", "Stand-in for PythonQt's qt module, over PySide6.")
    for source in _MODULES:
        module.__dict__.update(
            {name: getattr(source, name) for name in dir(source) if not name.startswith("_")}
        )
    return module
