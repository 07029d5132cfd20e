"""sgan-info: what is installed, for people and for programs."""

from __future__ import annotations

import json
import platform
from types import SimpleNamespace

import pytest
import torch

from sgan_core import __version__
from sgan_core.cli.info import main

Output = pytest.CaptureFixture[str]


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def with_gpu(without_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Example 9000")
    facts = SimpleNamespace(total_memory=25_400_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)


@pytest.mark.usefixtures("without_gpu")
def test_one_object_for_programs(capsys: Output) -> None:
    assert main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    cpu = {"name": "cpu", "description": "CPU, 1 thread"}
    assert found == {
        "tool_version": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "auto": cpu,
        "devices": [cpu | {"memory_gb": None}],
        "models": ["chest-xray-thorax", "phantom-ct-liver", "skin-lesion", "ct-liver"],
    }


@pytest.mark.usefixtures("with_gpu")
def test_gpu_is_what_auto_takes_and_has_its_memory(capsys: Output) -> None:
    assert main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["auto"] == {"name": "cuda", "description": "CUDA GPU Example 9000"}
    assert [(device["name"], device["memory_gb"]) for device in found["devices"]] == [
        ("cpu", None),
        ("cuda", 25.4),
    ]


@pytest.mark.usefixtures("with_gpu")
def test_the_same_in_words(capsys: Output) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    model = "phantom-ct-liver (segments, reconstructs; judges its masks)"
    for words in (__version__, torch.__version__, "CUDA GPU Example 9000, 25.4 GB", model):
        assert words in printed
    (restricted,) = (line for line in printed.splitlines() if "ct-liver (segments; " in line)
    assert "research only, not for commercial use" in restricted
    assert all(f" {name} (" in printed for name in ("chest-xray-thorax", "skin-lesion"))
    (auto,) = (line for line in printed.splitlines() if "(auto)" in line)
    assert auto.startswith("--device cuda")
