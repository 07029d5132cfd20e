"""Gives PySide6 the manners of PythonQt, the Qt binding inside Slicer.

PySide6 asks ``label.text()``, PythonQt ``label.text``; PythonQt writes ``button.enabled = False`` and connects
with ``button.connect("clicked()", callback)``. A module written for Slicer needs the second kind. The change is
made on the PySide6 classes themselves, for the whole process, so nothing else there can use PySide6's own manners.
"""

from __future__ import annotations

import contextlib
import os
import types
import weakref
from collections.abc import Callable
from typing import Any, ClassVar

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import shiboken6
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
    QtCore.QObject.connect, QtCore.QObject.disconnect = connect, _disconnect
    for module in _MODULES:
        for candidate in (getattr(module, name) for name in dir(module)):
            if not isinstance(candidate, type) or not issubclass(candidate, QtCore.QObject):
                continue
            if "__getattribute__" in vars(
                candidate
            ):  # QObject, and those with several bases, such as QProcess
                candidate.__getattribute__ = _finder(candidate.__getattribute__)


def _finder(pyside6_find: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    def find(self: QtCore.QObject, name: str) -> Any:
        if name not in ("connect", "disconnect"):
            found = pyside6_find(self, name)
            return Signal(self, found) if isinstance(found, QtCore.SignalInstance) else found
        own = next((vars(cls)[name] for cls in type(self).__mro__ if name in vars(cls)), None)

        def dispatch(*arguments: Any) -> Any:
            if len(arguments) == 2 and isinstance(arguments[0], str):
                return own(self, *arguments)
            return pyside6_find(self, name)(*arguments)  # PySide6 itself uses its own forms

        return dispatch

    return find


class Signal:
    """A signal of an object. What is connected is kept alive as long as the object lives, as PythonQt does.

    PySide6 forgets a method together with its owner, and Python sees through a circle of the two. Nobody sees through
    the table here.
    """

    _kept: ClassVar[dict[int, list[tuple[str, Callable[..., Any]]]]] = {}  # by the address of the C++ object

    def __init__(self, sender: QtCore.QObject, signal: Any) -> None:
        self._sender, self._signal = sender, signal
        self._name = str(signal).split()[1]  # "<PySide6.QtCore.SignalInstance timeout() at 0x..>"

    def __getitem__(self, kinds: Any) -> Signal:
        return Signal(self._sender, self._signal[kinds])

    def _targets(self) -> list[tuple[str, Callable[..., Any]]]:
        (address,) = shiboken6.getCppPointer(self._sender)
        if address not in self._kept:
            targets = self._kept[address] = []
            # Deleted by Qt, or with its Python object: PySide6 tells of the first only.
            object.__getattribute__(self._sender, "destroyed").connect(
                lambda *unused: Signal._forget(address, targets)
            )
            weakref.finalize(self._sender, Signal._forget, address, targets)
        return self._kept[address]

    @classmethod
    def _forget(cls, address: int, targets: list[tuple[str, Callable[..., Any]]]) -> None:
        targets.clear()
        if cls._kept.get(address) is targets:  # else another object lies there by now
            del cls._kept[address]

    def connect(self, callback: Callable[..., Any], *options: Any) -> Any:
        """Call back at each emission."""
        self._targets().append((self._name, callback))
        return self._signal.connect(callback, *options)

    def disconnect(self, *callbacks: Callable[..., Any]) -> Any:
        """Call back no more."""
        for callback in callbacks:
            with contextlib.suppress(ValueError):
                self._targets().remove((self._name, callback))
        return self._signal.disconnect(*callbacks)

    def emit(self, *values: Any) -> None:
        """Call all that are connected."""
        self._signal.emit(*values)

    __call__ = emit


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
