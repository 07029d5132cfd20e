"""The .ui file as Qt Designer and Slicer see it: selectors wired, parameters real, help and keyboard everywhere."""

from __future__ import annotations

import typing
import xml.etree.ElementTree as ET

from helpers import ROOT

from SemanticGANSlicerLib import parameters
from SemanticGANSlicerLib.parameters import SemanticGANSlicerParameterNode

_FOLDER = ROOT / "SemanticGANSlicer" / "Resources" / "UI"
UI = ET.parse(_FOLDER / "SemanticGANSlicer.ui").getroot()
TRAIN_UI = ET.parse(_FOLDER / "SemanticGANTrain.ui").getroot()  # a tab, in a file of its own
WIDGETS = {widget.get("name"): widget for widget in UI.iter("widget")}
TRAIN_WIDGETS = {widget.get("name"): widget for widget in TRAIN_UI.iter("widget")}
_PASSIVE = {"QFrame", "QWidget", "qMRMLWidget", "QTabWidget", "ctkCollapsibleButton"}


def text(widget: ET.Element, name: str) -> str:
    """A property of a widget as text, "" when it is not set."""
    found = widget.find(f"property[@name='{name}']")
    return "" if found is None else "".join(found.itertext()).strip()


def test_every_mrml_selector_is_connected_to_the_scene() -> None:
    top = UI.find("widget").get("name")
    connected = {
        connection.findtext("receiver")
        for connection in UI.iter("connection")
        if connection.findtext("sender") == top
        and connection.findtext("signal") == "mrmlSceneChanged(vtkMRMLScene*)"
        and connection.findtext("slot") == "setMRMLScene(vtkMRMLScene*)"
    }
    selectors = {name for name, widget in WIDGETS.items() if widget.get("class") == "qMRMLNodeComboBox"}
    assert selectors == {"inputSelector", "outputSelector"}
    assert connected == selectors


def test_parameter_names_are_those_of_the_parameter_node() -> None:
    known = typing.get_type_hints(SemanticGANSlicerParameterNode)
    named = {text(widget, "SlicerParameterName") for widget in WIDGETS.values()} - {""}
    assert named <= known.keys()
    by_hand = {"model", "batchInput", "batchOutput"}  # a list that changes; paths
    assert named | by_hand == known.keys()


def test_choices_of_the_boxes_are_those_of_the_parameters() -> None:
    for name, choices in (
        ("deviceComboBox", parameters.DEVICES),
        ("qualityComboBox", parameters.QUALITIES),
        ("reconstructionComboBox", parameters.RECONSTRUCTIONS),
        ("batchFormatComboBox", parameters.FORMATS),
    ):
        assert ["".join(item.itertext()).strip() for item in WIDGETS[name].findall("item")] == choices


def test_choices_are_those_of_the_engine() -> None:
    from sgan_core.cli.segment import parser

    known = {action.dest: list(action.choices) for action in parser()._actions if action.choices}
    assert known["device"] == parameters.DEVICES
    assert known["quality"] == parameters.QUALITIES
    assert known["reconstruction"] == parameters.RECONSTRUCTIONS
    assert known["format"] == parameters.FORMATS


def test_everything_has_a_tool_tip() -> None:
    for name, widget in (WIDGETS | TRAIN_WIDGETS).items():
        if widget.get("class") not in _PASSIVE:
            assert len(text(widget, "toolTip")) > 10, name


def test_labels_lead_to_their_fields() -> None:
    """A label with a buddy hands the keyboard over; buddies exist."""
    for name, widget in (WIDGETS | TRAIN_WIDGETS).items():
        buddy = text(widget, "buddy")
        if widget.get("class") == "QLabel" and text(widget, "text").endswith(":"):
            assert buddy in WIDGETS | TRAIN_WIDGETS or name in ("sampleLabel", "doubtfulLabel"), name


def test_custom_widgets_are_declared() -> None:
    for ui, widgets in ((UI, WIDGETS), (TRAIN_UI, TRAIN_WIDGETS)):
        declared = {one.findtext("class") for one in ui.iter("customwidget")}
        used = {widget.get("class") for widget in widgets.values() if not widget.get("class").startswith("Q")}
        assert declared == used


def test_names_of_the_two_files_differ() -> None:
    assert not WIDGETS.keys() & TRAIN_WIDGETS.keys()


def test_modalities_are_those_of_the_engine() -> None:
    from sgan_core.cli import data, train

    (choices,) = [action.choices for action in train.parser()._actions if action.dest == "modality"]
    offered = [
        "".join(item.itertext()).strip() for item in TRAIN_WIDGETS["trainModalityComboBox"].findall("item")
    ]
    assert sorted(offered) == sorted(choices) == sorted(data.MODALITIES)


def test_nothing_takes_the_keyboard_away() -> None:
    """No widget that a person works with refuses the focus; Tab goes through them in the order of the file."""
    for name, widget in (WIDGETS | TRAIN_WIDGETS).items():
        assert text(widget, "focusPolicy") != "Qt::NoFocus", name
