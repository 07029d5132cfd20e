"""docs/method.md has every setting of the presets as it is, with its origin."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest


def _load_benchmark():
    """It is a script, not a package."""
    file = Path(__file__).parents[1] / "benchmarks" / "preset_table.py"
    spec = importlib.util.spec_from_file_location("preset_table", file)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = _load_benchmark()
VALUES = {name: script.settings(name) for name in script.PRESETS}


def _elsewhere(setting: str) -> bool:
    return setting.startswith(script.ELSEWHERE)


def test_the_document_has_the_presets_values():
    """Else run: python benchmarks/preset_table.py."""
    document = script.DOCUMENT.read_text(encoding="utf-8")
    assert script.written(document) == document


def test_every_setting_has_an_origin():
    assert set(script.ORIGINS) == {setting for setting in VALUES["paper"] if not _elsewhere(setting)}


@pytest.mark.parametrize("setting", script.ORIGINS)
def test_an_origin_is_a_source_or_a_reason(setting):
    for origin in script.origins(setting):
        assert origin.startswith(script.KINDS)
        assert origin.removeprefix("ours: ")


@pytest.mark.parametrize("setting", script.ORIGINS)
def test_different_values_have_different_origins(setting):
    paper, official, own = script.origins(setting)
    value = {name: values[setting] for name, values in VALUES.items()}
    if value["paper"] != value["official"]:
        assert paper != official
    for name in ("tiny", "small"):
        assert own not in {
            o for p, o in (("paper", paper), ("official", official)) if value[p] != value[name]
        }


def test_presets_agree_on_what_is_decided_elsewhere():
    for setting in filter(_elsewhere, VALUES["paper"]):
        assert setting == "preset" or len({str(values[setting]) for values in VALUES.values()}) == 1, setting
