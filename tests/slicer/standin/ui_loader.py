"""Loads Qt Designer files whose widgets and connections are Slicer's."""

from __future__ import annotations

import logging
import re
import xml.etree.ElementTree as ElementTree
from typing import Any, NamedTuple

from PySide6 import QtCore, QtUiTools, QtWidgets

from . import pythonqt, widgets


class _Connection(NamedTuple):
    sender: str
    signal: str
    receiver: str
    slot: str


class QUiLoader(QtUiTools.QUiLoader):
    """As Slicer's: knows qMRML and ctk widgets, connects signals that carry MRML objects.

    PySide6 cannot declare a signal ``mrmlSceneChanged(vtkMRMLScene*)``. Such connections are taken out of the file
    and made in Python; one that is missing in the file is therefore missing here too, as in Slicer.
    """

    def load(self, device: QtCore.QIODevice, parent: QtWidgets.QWidget | None = None) -> QtWidgets.QWidget:
        """The widget described by an open device."""
        root = ElementTree.fromstring(bytes(device.readAll().data()))
        connections = _take_mrml_connections(root)
        _replace_flags(root)
        for cls in widgets.CLASSES.values():
            self.registerCustomWidget(cls)
        buffer = QtCore.QBuffer()
        buffer.setData(ElementTree.tostring(root))
        buffer.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
        widget = super().load(buffer, parent)
        for connection in connections:
            _connect(widget, connection)
        return widget


def _take_mrml_connections(root: ElementTree.Element) -> list[_Connection]:
    taken = []
    parent = root.find("connections")
    for element in list(parent if parent is not None else ()):
        connection = _Connection(*(element.findtext(field) or "" for field in _Connection._fields))
        if "vtk" in connection.signal + connection.slot:
            taken.append(connection)
            parent.remove(element)
    return taken


def _replace_flags(root: ElementTree.Element) -> None:
    """``<set>ctkPathLineEdit::Dirs|...</set>`` -> ``<number>``: Qt does not know the flags of a Python class."""
    for element in root.iter("property"):
        flags = element.find("set")
        if flags is None or not (flags.text or "").startswith("ctk"):
            continue
        value = 0
        for flag in re.split(r"\s*\|\s*", flags.text.strip()):
            cls, _, name = flag.partition("::")
            value |= int(getattr(widgets.CLASSES[cls], name))
        flags.tag, flags.text = "number", str(value)


def _connect(root: QtWidgets.QWidget, connection: _Connection) -> None:
    signal = _member(root, connection.sender, connection.signal)
    slot = _member(root, connection.receiver, connection.slot)
    if signal is None or slot is None:
        logging.warning("Connection in the .ui file cannot be made: %s", connection)  # as QUiLoader does
        return
    signal.connect(slot)


def _member(root: QtWidgets.QWidget, name: str, signature: str) -> Any:
    widget = root if root.objectName == name else root.findChild(QtCore.QObject, name)
    return getattr(widget, pythonqt.parse_signature(signature)[0], None)
