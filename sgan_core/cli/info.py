"""sgan-info: what is installed here, and what it would compute on."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from typing import Any

from sgan_core import __version__
from sgan_core.cli import app
from sgan_core.errors import InputError

DESCRIPTION = """\
Show what is installed: versions, the processor that --device auto takes, all that can be asked for, and the names
of the models that are there (sgan-bundle list says more)."""
EXAMPLES = """\
  sgan-info
  sgan-info --json      one object, for programs; memory in GB (10^9 bytes), null where it is the computer's own
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    parser = app.Parser("sgan-info", description=DESCRIPTION, examples=EXAMPLES)
    parser.add_argument("--json", action="store_true", help="as JSON")
    return app.run(_call, parser, argv)


def _call(options: argparse.Namespace) -> None:
    found = installed()
    print(json.dumps(found, indent=2) if options.json else _in_words(found))


def installed() -> dict[str, Any]:
    """What ``--json`` prints."""
    import torch

    from sgan_core.device import choose_device, describe, memory_gb, usable_devices
    from sgan_core.known_models import known_models

    auto = choose_device("auto")
    return {
        "tool_version": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "auto": {"name": auto.type, "description": describe(auto)},
        "devices": [
            {"name": device.type, "description": describe(device), "memory_gb": memory_gb(device)}
            for device in usable_devices()
        ],
        "models": list(known_models()),
    }


def _in_words(found: dict[str, Any]) -> str:
    lines = [
        f"semanticgan  {found['tool_version']}",
        f"Python       {found['python']}",
        f"PyTorch      {found['torch']}",
    ]
    for device in found["devices"]:
        memory = "" if device["memory_gb"] is None else f", {device['memory_gb']:.1f} GB"
        auto = " (auto)" if device["name"] == found["auto"]["name"] else ""
        lines.append(f"--device {device['name']:<4}{auto}  {device['description']}{memory}")
    models = [_model(name) for name in found["models"]] or ["none"]
    return "\n".join([*lines, *(f"{'' if at else 'models':<13}{model}" for at, model in enumerate(models))])


def _model(name: str) -> str:
    from sgan_core.bundle import describe
    from sgan_core.terms import one_line, terms_of

    try:
        model = describe(name)
        terms = f"; {notice}" if (notice := terms_of(model["facts"]).notice) else ""
        return f"{one_line(name)} ({model['can']}{terms})"
    except InputError:
        return f"{one_line(name)} (damaged, see sgan-bundle list)"


if __name__ == "__main__":
    raise SystemExit(main())
