"""Stand-ins for the ctk and qMRML widgets of Slicer, drawn with plain Qt over the real MRML scene.

They follow the C++ sources (Slicer 5.13, CTK): what is written as a Qt property, method or signal has the same name
and effect there. What is not written here does not exist here, although Slicer may have it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import shiboken6
import slicer
import vtk
from PySide6 import QtCore, QtGui, QtWidgets

from . import pythonqt

CLASSES: dict[str, type[QtWidgets.QWidget]] = {}  # class name -> class, for the .ui loader

_UID = QtCore.Qt.ItemDataRole.UserRole
_ACTION = QtCore.Qt.ItemDataRole.UserRole + 1


def _register(cls: type[QtWidgets.QWidget]) -> type[QtWidgets.QWidget]:
    CLASSES[cls.__name__] = cls
    return cls


def _qt_properties(**declared: tuple[Any, Any]) -> dict[str, Any]:
    """Class members for Qt properties ``name=(type, default)``: the property and its ``setName``.

    A change calls ``_property_changed(name)`` of the widget, if it has one.
    """
    members: dict[str, Any] = {}
    for name, (kind, default) in declared.items():

        def read(self: Any, name: str = name, default: Any = default) -> Any:
            return self.__dict__.get("_qt_values", {}).get(name, default)

        def write(self: Any, value: Any, name: str = name, kind: Any = kind) -> None:
            value = tuple(item for item in value if item) if kind == "QStringList" else kind(value)
            if getattr(self, name) != value:
                self.__dict__.setdefault("_qt_values", {})[name] = value
                getattr(self, "_property_changed", lambda name: None)(name)

        members[name] = QtCore.Property(kind, read, write)
        members["set" + name[0].upper() + name[1:]] = write
    return members


class _Observations:
    """VTK observers of a widget, which end with the widget."""

    def __init__(self, widget: QtWidgets.QWidget) -> None:
        self._widget = weakref.ref(widget)
        self._tags: list[tuple[Any, int]] = []

    def add(self, observed: Any, event: Any, method: str, with_data: bool = False) -> None:
        """Call ``widget.method(call_data)`` at each event."""
        widget_reference = self._widget

        def relay(_caller: Any, _event: str, data: Any = None) -> None:
            widget = widget_reference()
            if widget is not None and shiboken6.isValid(widget):
                getattr(widget, method)(data)

        if with_data:
            relay.CallDataType = vtk.VTK_OBJECT
        self._tags.append((observed, observed.AddObserver(event, relay)))

    def clear(self, observed: Any = None) -> None:
        """Remove all observers, or those of one object."""
        for target, tag in self._tags:
            if observed is None or target is observed:
                target.RemoveObserver(tag)
        self._tags = [] if observed is None else [(t, tag) for t, tag in self._tags if t is not observed]


# --- MRML widgets ---


@_register
class qMRMLWidget(QtWidgets.QWidget):
    """A widget that knows a scene and tells it to what the .ui file connects."""

    mrmlSceneChanged = QtCore.Signal(object)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._scene: Any = None

    def mrmlScene(self) -> Any:
        """The scene or None."""
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        """Change the scene."""
        if scene is not self._scene:
            self._scene = scene
            self.mrmlSceneChanged.emit(scene)


@_register
class qMRMLNodeComboBox(qMRMLWidget):
    """Chooses a node of the scene.

    The rows live in a real QComboBox in the order of Slicer's (None, nodes, actions), which decides by itself, as in
    Slicer, what is current after a row came or went: it takes the first node that arrives when there is neither a
    None nor an action row, and otherwise stays without a node.
    """

    currentNodeChanged = QtCore.Signal(object)
    currentNodeIDChanged = QtCore.Signal(str)
    nodeActivated = QtCore.Signal(object)
    nodeAdded = QtCore.Signal(object)
    nodeAddedByUser = QtCore.Signal(object)

    locals().update(
        _qt_properties(
            nodeTypes=("QStringList", ()),
            hideChildNodeTypes=("QStringList", ()),
            noneEnabled=(bool, False),
            noneDisplay=(str, "None"),
            addEnabled=(bool, True),
            removeEnabled=(bool, True),
            editEnabled=(bool, False),
            renameEnabled=(bool, False),
            showHidden=(bool, False),
            showChildNodeTypes=(bool, True),
            selectNodeUponCreation=(bool, True),
            baseName=(str, ""),
            interactionNodeSingletonTag=(str, "Singleton"),
        )
    )
    currentNodeID = QtCore.Property(
        str, lambda self: self._node_id(self.currentNode()), lambda self, value: self.setCurrentNodeID(value)
    )

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._switching_scene = False
        self._requested_id = ""
        self._attributes: dict[str, tuple[str, str | None]] = {}
        self._observations = _Observations(self)
        self._watched: dict[str, Any] = {}
        self._model = QtGui.QStandardItemModel(0, 1, self)
        self._box = QtWidgets.QComboBox(self)
        self._box.setModel(self._model)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._box)
        self.setSizePolicy(QtWidgets.QSizePolicy.Policy.Preferred, QtWidgets.QSizePolicy.Policy.Fixed)
        # By text, as in Slicer: a second node of the same name makes no signal, a new name of the current one does.
        self._box.currentTextChanged.connect(self._emit_current_node)
        self._box.activated.connect(self._activate)
        self.setEnabled(False)  # until there is a scene

    # what a module calls

    def currentNode(self) -> Any:
        """The chosen node or None."""
        return self._node_at(self._box.currentIndex)

    def setCurrentNode(self, node: Any) -> None:
        """Choose a node; None, or one that is not in the list, chooses nothing."""
        self.setCurrentNodeID(self._node_id(node))

    def setCurrentNodeID(self, node_id: str) -> None:
        """Choose a node by its ID. Before there is a scene, it is kept until there is one."""
        if self._scene is None:
            self._requested_id = node_id or ""
        row = self._row_of(node_id) if node_id else -1
        self._box.setCurrentIndex(row if row >= 0 else (0 if self.noneEnabled else -1))

    def setCurrentNodeIndex(self, index: int) -> None:
        """Choose a node by its place among the nodes."""
        index = -1 if index >= self.nodeCount() else index
        self._box.setCurrentIndex(index + 1 if self.noneEnabled else index)

    def nodeCount(self) -> int:
        """How many nodes can be chosen."""
        return len(self._listed_ids())

    def nodeFromIndex(self, index: int) -> Any:
        """The node at a place among the nodes."""
        return self._node_at(index + 1 if self.noneEnabled else index)

    def nodes(self) -> list[Any]:
        """The nodes that can be chosen."""
        return [self.nodeFromIndex(index) for index in range(self.nodeCount())]

    def comboBox(self) -> QtWidgets.QComboBox:
        """The box inside."""
        return self._box

    def addAttribute(self, node_type: str, name: str, value: str | None = None) -> None:
        """Show nodes of this type only with this attribute."""
        self._attributes[node_type] = (name, value)
        self._synchronise()

    def addNode(self, node_type: str = "") -> Any:
        """Make a node as the row "Create new" does."""
        node_type = node_type or (self.nodeTypes[0] if self.nodeTypes else "")
        if node_type not in self.nodeTypes:
            return None
        base = self.baseName or self._type_label(node_type)
        node = self._scene.AddNewNodeByClass(node_type, self._scene.GenerateUniqueName(base))
        if self.selectNodeUponCreation:
            self.setCurrentNode(node)
        self.nodeAddedByUser.emit(node)
        return node

    def removeCurrentNode(self) -> None:
        """Remove the chosen node from the scene."""
        self._scene.RemoveNode(self.currentNode())

    def setMRMLScene(self, scene: Any) -> None:
        """Follow a scene."""
        if scene is self._scene:
            return
        old_id, had_nodes = self.currentNodeID, self.nodeCount() > 0
        self._observations.clear()
        self._watched.clear()
        self._switching_scene = True
        super().setMRMLScene(scene)
        self._observe()
        self._synchronise()
        self._box.setCurrentIndex(-1)
        self._switching_scene = False
        self.setCurrentNodeID(old_id if had_nodes else self._requested_id)
        self._requested_id = ""
        self.setEnabled(scene is not None)

    def connect(self, signature: str, callback: Callable[..., Any]) -> bool:
        """As PythonQt; ``currentNodeChanged(bool)`` tells whether there is a node."""
        if signature.replace(" ", "") == "currentNodeChanged(bool)":
            self.currentNodeChanged.connect(lambda node: callback(node is not None))
            return True
        return pythonqt.connect(self, signature, callback)

    # following the scene

    def _observe(self) -> None:
        scene = self._scene
        if scene is None:
            return
        self._observations.add(scene, scene.NodeAddedEvent, "_node_added", with_data=True)
        self._observations.add(scene, scene.NodeRemovedEvent, "_synchronise")
        for event in (scene.EndCloseEvent, scene.EndImportEvent, scene.EndBatchProcessEvent):
            self._observations.add(scene, event, "_synchronise")

    def _node_added(self, node: Any) -> None:
        self._synchronise()
        if node is not None and self._row_of(node.GetID()) >= 0:
            self.nodeAdded.emit(node)

    def _watch(self, nodes: list[Any]) -> None:
        """Names and flags of nodes may change later."""
        current = {node.GetID(): node for node in nodes}
        for node_id in list(self._watched):
            if current.get(node_id) is not self._watched[node_id]:
                self._observations.clear(self._watched.pop(node_id))
        for node_id, node in current.items():
            if node_id not in self._watched:
                self._watched[node_id] = node
                self._observations.add(node, vtk.vtkCommand.ModifiedEvent, "_synchronise")

    def _property_changed(self, _name: str) -> None:
        current = self._box.currentIndex
        had_none = bool(self._model.rowCount()) and self._is_none_row(0)
        self._synchronise()
        if self.noneEnabled and not had_none and current == -1:
            self._box.setCurrentIndex(0)

    def _synchronise(self, _data: Any = None) -> None:
        """Make the rows None, nodes, actions by inserting and removing single rows."""
        scene = self._scene
        of_type = [node for node in _nodes_of(scene) if self._has_type(node)]
        self._watch(of_type)
        shown = [node for node in of_type if self._is_shown(node)]
        self._synchronise_none()
        offset = int(self.noneEnabled and scene is not None)
        wanted = [node.GetID() for node in shown]
        for row in reversed(range(self._model.rowCount())):
            node_id = self._model.item(row).data(_UID)
            if node_id and node_id not in wanted:
                self._model.removeRow(row)
        for place, node in enumerate(shown):
            row = self._row_of(node.GetID())
            if row < 0:
                item = QtGui.QStandardItem(node.GetName())
                item.setData(node.GetID(), _UID)
                self._model.insertRow(place + offset, item)
            elif self._model.item(row).text() != node.GetName():
                self._model.item(row).setText(node.GetName())
        self._synchronise_actions()
        if self._scene is not None and self.currentNode() is None:
            self.setCurrentNodeID("")  # refreshIfCurrentNodeHidden

    def _synchronise_none(self) -> None:
        has = self._model.rowCount() > 0 and self._is_none_row(0)
        wants = self.noneEnabled and self._scene is not None
        if wants and not has:
            self._model.insertRow(0, QtGui.QStandardItem(self.noneDisplay))
        elif has and not wants:
            self._model.removeRow(0)
        elif has and self._model.item(0).text() != self.noneDisplay:
            self._model.item(0).setText(self.noneDisplay)

    def _synchronise_actions(self) -> None:
        present = [
            self._model.item(row).data(_ACTION)
            for row in range(self._model.rowCount())
            if self._model.item(row).data(_ACTION)
        ]
        wanted = self._actions() if self._scene is not None else {}
        if present == list(wanted):
            return
        current = self._box.currentIndex
        for row in reversed(range(self._model.rowCount())):
            if self._model.item(row).data(_ACTION):
                self._model.removeRow(row)
        for action, text in wanted.items():
            item = QtGui.QStandardItem(text)
            item.setData(action, _ACTION)
            if action == "SEPARATOR":
                item.setFlags(QtCore.Qt.ItemFlag.NoItemFlags)
            self._model.appendRow(item)
        self._box.setCurrentIndex(current)

    def _actions(self) -> dict[str, str]:
        label = self._type_label(self.nodeTypes[0]) if len(self.nodeTypes) == 1 else "node"
        actions = {}
        if self.renameEnabled:
            actions["RENAME"] = f"Rename current {label}"
        if self.editEnabled:
            actions["EDIT"] = f"Edit current {label}"
        if self.addEnabled:
            for kind in self.nodeTypes:
                actions[f"CREATE/{kind}"] = f"Create new {self._type_label(kind)}"
        if self.removeEnabled:
            actions["DELETE"] = f"Delete current {label}"
        return {"SEPARATOR": "", **actions} if actions or self.addEnabled else {}

    def _activate(self, row: int) -> None:
        """A person chose a row."""
        action = self._model.item(row).data(_ACTION) if row >= 0 else None
        if not action:
            self.nodeActivated.emit(self._node_at(row))
        elif action.startswith("CREATE/"):
            self.addNode(action.partition("/")[2])

    def _emit_current_node(self, _text: str = "") -> None:
        if self._switching_scene:
            return
        node, row = self.currentNode(), self._box.currentIndex
        if node is None and row != (0 if self.noneEnabled else -1):
            last = self.nodeFromIndex(self.nodeCount() - 1)  # Qt moved to an action row
            if last is not None:
                self.setCurrentNode(last)
            return
        self.currentNodeChanged.emit(node)
        self.currentNodeIDChanged.emit(self._node_id(node))

    # which nodes

    def _has_type(self, node: Any) -> bool:
        if not self.nodeTypes:
            return True
        for kind in self.nodeTypes:
            if not node.IsA(kind) or (not self.showChildNodeTypes and node.GetClassName() != kind):
                continue
            return not any(node.IsA(hidden) for hidden in self.hideChildNodeTypes)
        return False

    def _is_shown(self, node: Any) -> bool:
        if node.GetHideFromEditors() and not self.showHidden:
            return False
        for kind, (name, value) in self._attributes.items():
            if node.IsA(kind):
                found = node.GetAttribute(name)
                if found is None or (value is not None and found != value):
                    return False
        return True

    # rows

    def _is_none_row(self, row: int) -> bool:
        item = self._model.item(row)
        return not item.data(_UID) and not item.data(_ACTION)

    def _row_of(self, node_id: str) -> int:
        for row in range(self._model.rowCount()):
            if self._model.item(row).data(_UID) == node_id:
                return row
        return -1

    def _listed_ids(self) -> list[str]:
        ids = [self._model.item(row).data(_UID) for row in range(self._model.rowCount())]
        return [node_id for node_id in ids if node_id]

    def _node_at(self, row: int) -> Any:
        item = self._model.item(row) if row >= 0 else None
        node_id = item.data(_UID) if item is not None else None
        return self._scene.GetNodeByID(node_id) if node_id and self._scene is not None else None

    @staticmethod
    def _node_id(node: Any) -> str:
        return (node.GetID() or "") if node is not None else ""

    def _type_label(self, node_type: str) -> str:
        label = self._scene.GetTypeDisplayNameByClassName(node_type) if self._scene is not None else ""
        return label or "node"


def _nodes_of(scene: Any) -> list[Any]:
    if scene is None:
        return []
    return [scene.GetNthNode(index) for index in range(scene.GetNumberOfNodes())]


@_register
class qMRMLSegmentationShow3DButton(QtWidgets.QPushButton):
    """Makes the closed surface of a segmentation, or removes it."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._segmentation_node: Any = None
        self._observations = _Observations(self)
        self.setText("Show 3D")
        self.setCheckable(True)
        self.setEnabled(False)
        self.toggled.connect(self._on_toggled)

    def segmentationNode(self) -> Any:
        """The segmentation or None."""
        return self._segmentation_node

    def setSegmentationNode(self, node: Any) -> None:
        """Work on a segmentation; None turns the button off."""
        self._observations.clear()
        self._segmentation_node = node if node is not None and node.IsA("vtkMRMLSegmentationNode") else None
        if self._segmentation_node is not None:
            segmentation = slicer.vtkSegmentation
            for event in (
                vtk.vtkCommand.ModifiedEvent,
                segmentation.SegmentAdded,
                segmentation.SegmentRemoved,
                segmentation.ContainedRepresentationNamesModified,
            ):
                self._observations.add(self._segmentation_node, event, "_update")
        self._update()

    def _update(self, _data: Any = None) -> None:
        node = self._segmentation_node
        segmentation = node.GetSegmentation() if node is not None else None
        self.setEnabled(segmentation is not None and segmentation.GetNumberOfSegments() > 0)
        if segmentation is not None:
            blocked = self.blockSignals(True)
            self.setChecked(segmentation.ContainsRepresentation("Closed surface"))
            self.blockSignals(blocked)

    def _on_toggled(self, on: bool) -> None:
        node = self._segmentation_node
        if node is None:
            return
        if on:
            node.GetSegmentation().CreateRepresentation("Closed surface")
            if node.GetDisplayNode():
                node.GetDisplayNode().SetPreferredDisplayRepresentationName3D("Closed surface")
        else:
            node.GetSegmentation().RemoveRepresentation("Closed surface")


# --- ctk widgets ---


@_register
class ctkCollapsibleButton(QtWidgets.QWidget):
    """A titled box whose contents a click on the title hides."""

    contentsCollapsed = QtCore.Signal(bool)
    clicked = QtCore.Signal(bool)
    toggled = QtCore.Signal(bool)

    locals().update(
        _qt_properties(
            text=(str, ""),
            collapsed=(bool, False),
            collapsedHeight=(int, 0),
            flat=(bool, False),
            checkable=(bool, True),
        )
    )
    checked = QtCore.Property(
        bool, lambda self: not self.collapsed, lambda self, value: self.setCollapsed(not value)
    )

    def __init__(self, text: str | QtWidgets.QWidget = "", parent: QtWidgets.QWidget | None = None) -> None:
        if isinstance(text, QtWidgets.QWidget):
            text, parent = "", text
        super().__init__(parent)
        self._forcing = False
        self._title_height = self.fontMetrics().height() + 10
        self.setContentsMargins(0, self._title_height, 0, 0)
        self.setText(text or "")

    def click(self) -> None:
        """As a click on the title."""
        self.setCollapsed(not self.collapsed)
        self.clicked.emit(not self.collapsed)

    def _property_changed(self, name: str) -> None:
        if name == "collapsed":
            for child in self.findChildren(
                QtWidgets.QWidget, options=QtCore.Qt.FindChildOption.FindDirectChildrenOnly
            ):
                self._show_or_hide(child)
            self.contentsCollapsed.emit(self.collapsed)
            self.toggled.emit(not self.collapsed)
        self.setMinimumWidth(self.fontMetrics().horizontalAdvance(self.text) + 40)
        self.update()

    def _show_or_hide(self, child: QtWidgets.QWidget) -> None:
        self._forcing = True
        wanted = child.property("visibilityToParent")
        child.setVisible((wanted is None or bool(wanted)) and not self.collapsed)
        self._forcing = False

    def childEvent(self, event: QtCore.QChildEvent) -> None:
        """Contents that come later follow the title too."""
        child = event.child()
        if event.type() == QtCore.QEvent.Type.ChildAdded and isinstance(child, QtWidgets.QWidget):
            child.installEventFilter(self)
            if self.collapsed:
                self._show_or_hide(child)
        super().childEvent(event)

    def eventFilter(self, child: QtCore.QObject, event: QtCore.QEvent) -> bool:
        """Remember what the module wants to show, and keep it hidden while collapsed."""
        shows = event.type() == QtCore.QEvent.Type.ShowToParent
        if (shows or event.type() == QtCore.QEvent.Type.HideToParent) and not self._forcing:
            child.setProperty("visibilityToParent", shows)
            if shows and self.collapsed:
                self._show_or_hide(child)
        return False

    def mousePressEvent(self, event: QtGui.QMouseEvent) -> None:
        """A click on the title."""
        if event.position().y() < self._title_height:
            self.click()

    def paintEvent(self, _event: QtGui.QPaintEvent) -> None:
        """The title with its arrow."""
        option = QtWidgets.QStyleOptionButton()
        option.initFrom(self)
        option.rect = QtCore.QRect(0, 0, self.width, self._title_height)
        painter = QtGui.QPainter(self)
        self.style().drawControl(QtWidgets.QStyle.ControlElement.CE_PushButtonBevel, option, painter, self)
        arrow = (
            "\N{BLACK RIGHT-POINTING SMALL TRIANGLE}"
            if self.collapsed
            else "\N{BLACK DOWN-POINTING SMALL TRIANGLE}"
        )
        painter.drawText(
            option.rect.adjusted(8, 0, 0, 0), QtCore.Qt.AlignmentFlag.AlignVCenter, f"{arrow} {self.text}"
        )
        painter.end()


@_register
class ctkPathLineEdit(QtWidgets.QWidget):
    """Edits the path of a file or folder."""

    currentPathChanged = QtCore.Signal(str)
    validInputChanged = QtCore.Signal(bool)

    NoFilter, Dirs, Files, Drives, NoSymLinks = 0, 0x001, 0x002, 0x004, 0x008
    Readable, Writable, Executable, Modified, Hidden, System = 0x010, 0x020, 0x040, 0x080, 0x100, 0x200
    AllEntries = Dirs | Files | Drives

    locals().update(
        _qt_properties(
            filters=(int, AllEntries | Readable),
            nameFilters=("QStringList", ()),
            label=(str, ""),
            settingKey=(str, ""),
            showBrowseButton=(bool, True),
            showHistoryButton=(bool, True),
        )
    )
    currentPath = QtCore.Property(
        str,
        lambda self: self._edit.text,
        lambda self, value: self.setCurrentPath(value),
        notify=currentPathChanged,
    )

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._edit = QtWidgets.QLineEdit(self)
        self._browse = QtWidgets.QToolButton(self)
        self._browse.setText("...")
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._edit)
        layout.addWidget(self._browse)
        self._edit.textChanged.connect(self.currentPathChanged)

    def setCurrentPath(self, path: str) -> None:
        """Change the path; the signal follows when it is another one."""
        self._edit.setText(str(path))

    def _property_changed(self, name: str) -> None:
        if name == "showBrowseButton":
            self._browse.setVisible(self.showBrowseButton)


@_register
class ctkCollapsibleGroupBox(QtWidgets.QGroupBox):
    """A group box; here it does not collapse."""

    locals().update(_qt_properties(collapsed=(bool, False)))


def _same_as(name: str, base: type[QtWidgets.QWidget]) -> type[QtWidgets.QWidget]:
    """A widget that, for a module, is its Qt base under another name (guiConnectors compare exact types)."""
    return _register(type(name, (base,), {"__doc__": f"{base.__name__} under its Slicer name."}))


for _name in ("ctkSliderWidget", "ctkDoubleSpinBox", "ctkDoubleSlider", "qMRMLSliderWidget", "qMRMLSpinBox"):
    _same_as(_name, QtWidgets.QDoubleSpinBox)
_same_as("ctkCheckBox", QtWidgets.QCheckBox)
_same_as("ctkComboBox", QtWidgets.QComboBox)
_same_as("ctkMenuButton", QtWidgets.QPushButton)
# Only their names, for type comparisons:
for _name in (
    "ctkCheckablePushButton",
    "ctkRangeWidget",
    "ctkDoubleRangeSlider",
    "ctkColorPickerButton",
    "ctkDirectoryButton",
):
    _same_as(_name, QtWidgets.QWidget)
_same_as("qMRMLRangeWidget", QtWidgets.QWidget)
