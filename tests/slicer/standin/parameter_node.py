"""Own slicer.parameterNodeWrapper: typed parameters in a vtkMRMLScriptedModuleNode, bound to widgets.

Written from the behaviour of Slicer 5.13's: what is stored, when it is checked, who wins when a panel is connected
(the node). Here are str, int, float, bool, pathlib.Path and node references; no lists, packs, enums or colours.
"""

from __future__ import annotations

import abc
import logging
import pathlib
import types
import typing
from collections.abc import Callable
from typing import Any

import slicer
import vtk
from PySide6 import QtWidgets

from . import widgets

__all__ = [
    "Choice",
    "Decimals",
    "Default",
    "Exclude",
    "Maximum",
    "Minimum",
    "NotNone",
    "SingleStep",
    "SlicerParameterNamePropertyName",
    "Validator",
    "WithinRange",
    "isParameterNodeWrapper",
    "parameterNodeWrapper",
]

SlicerParameterNamePropertyName = "SlicerParameterName"


# --- annotations ---


class Default:
    """The value of a parameter that is not yet in the node."""

    def __init__(self, value: Any = None, *, generator: Callable[[], Any] | None = None) -> None:
        self._value, self._generator = value, generator

    @property
    def value(self) -> Any:
        """The value, made anew by the generator if there is one."""
        return self._generator() if self._generator else self._value


class Decimals:
    """Digits that a spin box shows."""

    def __init__(self, value: int) -> None:
        self.value = value


class SingleStep:
    """Step of a spin box."""

    def __init__(self, value: float) -> None:
        self.value = value


class Validator(abc.ABC):
    """Refuses values when they are written."""

    @abc.abstractmethod
    def validate(self, value: Any) -> None:
        """Raise ValueError for a value that may not be."""


class NotNone(Validator):
    """Anything but None."""

    def validate(self, value: Any) -> None:
        """Raise ValueError for None."""
        if value is None:
            raise ValueError("Value must not be None")


class _IsInstance(Validator):
    def __init__(self, kind: Any) -> None:
        self.kind = kind

    def validate(self, value: Any) -> None:
        if value is not None and not isinstance(value, self.kind):
            raise TypeError(f"Value must be of type {self.kind}, is {type(value)} {value!r}")


class WithinRange(Validator):
    """minimum <= value <= maximum."""

    def __init__(self, minimum: float, maximum: float) -> None:
        self.minimum, self.maximum = minimum, maximum

    def validate(self, value: Any) -> None:
        """Raise ValueError outside."""
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"Value must be within [{self.minimum}, {self.maximum}], is {value}")


class Minimum(Validator):
    """minimum <= value."""

    def __init__(self, minimum: float) -> None:
        self.minimum = minimum

    def validate(self, value: Any) -> None:
        """Raise ValueError below."""
        if value < self.minimum:
            raise ValueError(f"Value must be at least {self.minimum}, is {value}")


class Maximum(Validator):
    """value <= maximum."""

    def __init__(self, maximum: float) -> None:
        self.maximum = maximum

    def validate(self, value: Any) -> None:
        """Raise ValueError above."""
        if value > self.maximum:
            raise ValueError(f"Value must be at most {self.maximum}, is {value}")


class Choice(Validator):
    """One of a list."""

    def __init__(self, choices: typing.Sequence[Any]) -> None:
        self.choices = choices

    def validate(self, value: Any) -> None:
        """Raise ValueError for others."""
        if value not in self.choices:
            raise ValueError(f"Value is {value!r}, but must be one of {self.choices}")


class Exclude(Validator):
    """None of a list."""

    def __init__(self, excludedValues: typing.Sequence[Any]) -> None:
        self.excludedValues = excludedValues

    def validate(self, value: Any) -> None:
        """Raise ValueError for these."""
        if value in self.excludedValues:
            raise ValueError(f"Value is {value!r}, but must not be one of {self.excludedValues}")


# --- one parameter ---


def _split(annotated: Any) -> tuple[Any, tuple[Any, ...]]:
    if typing.get_origin(annotated) is typing.Annotated:
        kind, *annotations = typing.get_args(annotated)
        return kind, tuple(annotations)
    return annotated, ()


def _node_classes(kind: Any) -> tuple[type, ...]:
    """The node classes of ``Node`` or ``NodeA | NodeB | None``, empty for other types."""
    options = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    classes = tuple(option for option in options if option is not type(None))
    is_node = all(isinstance(option, type) and issubclass(option, slicer.vtkMRMLNode) for option in classes)
    return classes if is_node else ()


class _Parameter:
    """Reads and writes one parameter of a node."""

    _text: dict[Any, tuple[Any, Callable[[str], Any]]] = {  # default, how to read
        str: ("", str),
        int: (0, int),
        float: (0.0, float),
        bool: (False, lambda text: text == "True"),
        pathlib.Path: (pathlib.Path(), pathlib.Path),
        pathlib.PurePath: (pathlib.PurePath(), pathlib.PurePath),
    }

    def __init__(self, name: str, annotated: Any, owner: type) -> None:
        self.name, self.annotated = name, annotated
        self.kind, annotations = _split(annotated)
        self.node_classes = _node_classes(self.kind)
        if not self.node_classes and self.kind not in self._text:
            raise Exception(f"Unable to create serializer for {owner} member {name}: {self.kind}")
        given = [annotation for annotation in annotations if isinstance(annotation, Validator)]
        self.validators = [*self._own_validators(), *given]
        self.default = self._find_default(owner, annotations)
        known = (Validator, Default, Decimals, SingleStep)
        unused = [annotation for annotation in annotations if not isinstance(annotation, known)]
        if unused:
            logging.warning("Unused annotations: %s", unused)

    def _own_validators(self) -> list[Validator]:
        if self.node_classes:
            return [_IsInstance(self.node_classes)]
        return [NotNone(), _IsInstance((int, float) if self.kind is float else self.kind)]

    def _find_default(self, owner: type, annotations: tuple[Any, ...]) -> Default:
        if self.name in vars(owner):
            return Default(vars(owner)[self.name])
        for annotation in annotations:
            if isinstance(annotation, Default):
                return annotation
        return Default(None if self.node_classes else self._text[self.kind][0])

    def is_in(self, node: Any) -> bool:
        return node.HasParameter(self.name)

    def write(self, node: Any, value: Any) -> None:
        for validator in self.validators:
            validator.validate(value)
        with slicer.util.NodeModify(node):
            if self.node_classes:
                node.SetParameter(self.name, "")  # tells None from never set
                node.SetNodeReferenceID(self.name, value.GetID() if value is not None else None)
            else:
                node.SetParameter(self.name, str(value))

    def read(self, node: Any) -> Any:
        if not self.is_in(node):
            self.write(node, self.default.value)
        if self.node_classes:
            return node.GetNodeReference(self.name)
        return self._text[self.kind][1](node.GetParameter(self.name))


# --- the wrapper ---


def parameterNodeWrapper(classtype: type | None = None) -> Any:
    """Decorator: the annotations of the class become parameters of a node."""
    if classtype is None:
        return parameterNodeWrapper
    hints = typing.get_type_hints(classtype, include_extras=True)
    parameters = {name: _Parameter(name, hint, classtype) for name, hint in hints.items()}
    for name, parameter in parameters.items():
        setattr(classtype, name, _property(parameter))
    members = {name: value for name, value in vars(_Wrapper).items() if not name.startswith("__")}
    for name, value in {"allParameters": parameters, **members}.items():
        if hasattr(classtype, name):
            raise ValueError(f"Cannot use reserved name '{name}' in a parameterNodeWrapper")
        setattr(classtype, name, value)
    classtype.__init__ = _initialise
    return classtype


def isParameterNodeWrapper(classOrObj: Any) -> bool:
    """Whether the decorator was used."""
    return getattr(classOrObj, "_is_parameter_node_wrapper", False)


def _property(parameter: _Parameter) -> property:
    return property(
        lambda self: parameter.read(self.parameterNode),
        lambda self, value: parameter.write(self.parameterNode, value),
    )


def _initialise(self: Any, parameterNode: Any, prefix: str | None = None) -> None:
    self.parameterNode = parameterNode
    self._links: dict[int, tuple[dict[str, _Connector], int]] = {}
    self._next_tag = 0
    self._updating_gui = False
    for parameter in self.allParameters.values():
        if not parameter.is_in(parameterNode):
            parameter.write(parameterNode, parameter.default.value)


class _Wrapper:
    """The methods that a decorated class gets."""

    _is_parameter_node_wrapper = True

    def StartModify(self) -> int:
        return self.parameterNode.StartModify()

    def EndModify(self, was_modified: int) -> int:
        return self.parameterNode.EndModify(was_modified)

    def Modified(self) -> None:
        self.parameterNode.Modified()

    def AddObserver(self, event: Any, callback: Any, priority: float = 0.0) -> int:
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag: int) -> None:
        self.parameterNode.RemoveObserver(tag)

    def default(self, name: str) -> Default:
        return self._parameter(name).default

    def dataType(self, name: str) -> Any:
        return self._parameter(name).annotated

    def getValue(self, name: str) -> Any:
        return self._parameter(name).read(self.parameterNode)

    def setValue(self, name: str, value: Any) -> None:
        self._parameter(name).write(self.parameterNode, value)

    def _parameter(self, name: str) -> _Parameter:
        if name not in self.allParameters:
            raise ValueError(
                f"Cannot find a param with the name {name}; there are {sorted(self.allParameters)}"
            )
        return self.allParameters[name]

    def connectGui(self, gui: Any) -> int:
        """Bind all widgets that have the property SlicerParameterName."""
        is_widget = isinstance(gui, QtWidgets.QWidget)
        candidates = gui.findChildren(QtWidgets.QWidget) if is_widget else vars(gui).values()
        named = ((widget.property(SlicerParameterNamePropertyName), widget) for widget in candidates)
        return self.connectParametersToGui({name: widget for name, widget in named if name})

    def connectParametersToGui(self, mapping: dict[str, Any]) -> int:
        """Bind widgets by parameter; the widgets take the values of the node."""
        connectors = {name: _connector(widget, self._parameter(name)) for name, widget in mapping.items()}
        tag = self._next_tag
        self._next_tag += 1
        for name, connector in connectors.items():
            connector.write(self.getValue(name))
            connector.connect(lambda name=name, connector=connector: self._take_from_gui(name, connector))
        observer = self.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self._update_gui())
        self._links[tag] = (connectors, observer)
        return tag

    def disconnectGui(self, tag: int) -> None:
        """End what connectGui began."""
        connectors, observer = self._links.pop(tag, ({}, None))
        for connector in connectors.values():
            connector.disconnect()
        if observer is not None:
            self.RemoveObserver(observer)

    def _take_from_gui(self, name: str, connector: _Connector) -> None:
        if not self._updating_gui:
            with slicer.util.NodeModify(self):
                self.setValue(name, connector.read())

    def _update_gui(self) -> None:
        if self._updating_gui:
            return
        self._updating_gui = True
        try:
            with slicer.util.NodeModify(self):
                for connectors, _ in list(self._links.values()):
                    for name, connector in connectors.items():
                        connector.write(self.getValue(name))
        finally:
            self._updating_gui = False


# --- widgets ---


class _Connector:
    """Reads, writes and watches one widget. ``widget_types`` are compared exactly, as Slicer does."""

    widget_types: tuple[type, ...] = ()
    kinds: tuple[Any, ...] = ()
    signal = ""
    attribute = ""

    def __init__(self, widget: Any, parameter: _Parameter) -> None:
        self.widget, self.parameter = widget, parameter
        self._callback: Callable[[], None] | None = None
        self.prepare()

    @classmethod
    def fits(cls, widget: Any, parameter: _Parameter) -> bool:
        return type(widget) in cls.widget_types and parameter.kind in cls.kinds

    def prepare(self) -> None:
        """Put ranges and choices into the widget."""

    def read(self) -> Any:
        return self.parameter.kind(getattr(self.widget, self.attribute))

    def write(self, value: Any) -> None:
        setattr(self.widget, self.attribute, value)

    def connect(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        if self.signal:
            getattr(self.widget, self.signal).connect(self._changed)

    def disconnect(self) -> None:
        if self.signal:
            getattr(self.widget, self.signal).disconnect(self._changed)
        self._callback = None

    def _changed(self) -> None:
        if self._callback:
            self._callback()

    def _annotation(self, kind: type) -> Any:
        found = (a for a in _split(self.parameter.annotated)[1] if isinstance(a, kind))
        return next(found, None)

    def _bounds(self, lowest: float, highest: float) -> tuple[float, float, bool]:
        """Minimum, maximum, and whether both were given."""
        both = self._annotation(WithinRange)
        low = both or self._annotation(Minimum)
        high = both or self._annotation(Maximum)
        return (
            low.minimum if low else lowest,
            high.maximum if high else highest,
            low is not None and high is not None,
        )


class _Switch(_Connector):
    widget_types = (QtWidgets.QCheckBox, widgets.CLASSES["ctkCheckBox"], QtWidgets.QPushButton)
    kinds, signal, attribute = (bool,), "toggled", "checked"

    def prepare(self) -> None:
        self.widget.checkable = True


class _WholeNumber(_Connector):
    widget_types = (QtWidgets.QSpinBox, QtWidgets.QSlider)
    kinds, signal, attribute = (int,), "valueChanged", "value"

    def prepare(self) -> None:
        low, high, bounded = self._bounds(-(2**31), 2**31 - 1)
        if isinstance(self.widget, QtWidgets.QSlider) and not bounded:
            raise RuntimeError("Cannot have a connection to QSlider where the int type is unbounded.")
        self.widget.setRange(low, high)
        if step := self._annotation(SingleStep):
            self.widget.singleStep = step.value


class _Number(_Connector):
    widget_types = (
        QtWidgets.QDoubleSpinBox,
        *(widgets.CLASSES[name] for name in ("ctkSliderWidget", "ctkDoubleSpinBox", "ctkDoubleSlider")),
        *(widgets.CLASSES[name] for name in ("qMRMLSliderWidget", "qMRMLSpinBox")),
    )
    kinds, signal, attribute = (float, int), "valueChanged", "value"

    def prepare(self) -> None:
        if decimals := self._annotation(Decimals):
            self.widget.decimals = decimals.value
        if self.parameter.kind is int:
            self.widget.decimals = 0
        if step := self._annotation(SingleStep):
            self.widget.singleStep = step.value
        low, high, bounded = self._bounds(float("-inf"), float("inf"))
        if type(self.widget).__name__ in ("ctkSliderWidget", "qMRMLSliderWidget") and not bounded:
            raise RuntimeError("Cannot have a connection to ctkSliderWidget where the float is unbounded.")
        self.widget.minimum, self.widget.maximum = low, high


class _Box(_Connector):
    widget_types = (QtWidgets.QComboBox, widgets.CLASSES["ctkComboBox"])
    kinds, signal = (str, int, float, bool), "currentIndexChanged"

    def prepare(self) -> None:
        choice = self._annotation(Choice)
        if choice is None:
            raise RuntimeError("ComboBoxToStringableConnector requires the Choice annotation to be used.")
        self.choices = list(choice.choices)
        self.widget.clear()
        self.widget.addItems([str(value) for value in self.choices])

    def read(self) -> Any:
        return self.choices[self.widget.currentIndex]

    def write(self, value: Any) -> None:
        self.widget.currentIndex = self.choices.index(value)


class _Line(_Connector):
    widget_types = (QtWidgets.QLineEdit,)
    kinds, signal, attribute = (str,), "textChanged", "text"

    def write(self, value: Any) -> None:
        if value != self.widget.text:  # writing moves the cursor
            self.widget.text = value


class _Label(_Connector):
    widget_types = (QtWidgets.QLabel,)
    kinds, attribute = (str,), "text"


class _Path(_Connector):
    widget_types = (widgets.ctkPathLineEdit,)
    kinds, signal, attribute = (pathlib.Path, pathlib.PurePath), "currentPathChanged", "currentPath"

    def write(self, value: Any) -> None:
        self.widget.currentPath = str(value)


class _Node(_Connector):
    signal = "currentNodeChanged"

    @classmethod
    def fits(cls, widget: Any, parameter: _Parameter) -> bool:
        return type(widget) is widgets.qMRMLNodeComboBox and bool(parameter.node_classes)

    def prepare(self) -> None:
        self.widget.nodeTypes = [cls().GetClassName() for cls in self.parameter.node_classes]

    def read(self) -> Any:
        return self.widget.currentNode()

    def write(self, value: Any) -> None:
        self.widget.setCurrentNode(value)


def _connector(widget: Any, parameter: _Parameter) -> _Connector:
    for cls in (_Switch, _WholeNumber, _Number, _Box, _Line, _Label, _Path, _Node):
        if cls.fits(widget, parameter):
            return cls(widget, parameter)
    raise RuntimeError(
        f"Unable to create GUI connector from datatype '{parameter.annotated}' to widget type '{type(widget)}'."
    )
