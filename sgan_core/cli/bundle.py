"""sgan-bundle: what a trained model is, and whether it is whole."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from sgan_core.cli import app
from sgan_core.errors import InputError

DESCRIPTION = """\
Show what a trained model is and was trained on, or check its files against their hashes (SHA-256).

BUNDLE is a folder (such as the folder "bundle" that sgan-train writes), a .zip of one, or the name of a
bundled model."""
EXAMPLES = """\
  sgan-bundle info phantom-ct-liver
  sgan-bundle info runs/liver/bundle --json
  sgan-bundle verify liver.zip
      exit code 0 when the model is whole, 2 (with the reasons) when it is not
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    parser = app.Parser("sgan-bundle", description=DESCRIPTION, examples=EXAMPLES)
    parser.add_argument("action", choices=("info", "verify"), help="what to do")
    parser.add_argument("bundle", metavar="BUNDLE", help="folder, .zip or name of a model")
    parser.add_argument("--json", action="store_true", help="info as JSON")
    return app.run(_call, parser, argv)


def _call(options: argparse.Namespace) -> None:
    if options.action == "info":
        info(options.bundle, as_json=options.json)
    else:
        verify(options.bundle)


def info(reference: str, *, as_json: bool) -> None:
    """Print what a model is."""
    from sgan_core.bundle import describe

    described = describe(reference)
    if as_json:
        print(json.dumps(described, indent=2))
        return

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(described["name"]), show_header=False, title_justify="left")
    for heading, value in _rows(described):
        table.add_row(Text(heading), Text(value, overflow="fold"))
    Console().print(table)


def verify(reference: str) -> None:
    """Check a model. Raises InputError with every reason why it cannot be trusted."""
    from sgan_core.bundle import bundle_hash, find_bundle, verify_bundle

    folder = find_bundle(reference)
    if problems := verify_bundle(folder):
        raise InputError(f"{reference} is not whole: {' '.join(problems)}")
    print(f"{reference}: whole, hash {bundle_hash(folder)}")


def _rows(described: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "Hash", described["hash"]
    yield "Folder", described["folder"]
    yield "Size on disk", f"{described['bytes'] / 1e6:.1f} MB"
    yield "Modality", described["modality"]
    yield "Image", f"{described['size_px']} x {described['size_px']} px"
    labels = [f"{label['value']} {label['name']}" for label in described["labels"]]
    yield "Labels", ", ".join(labels) or "not named"
    yield "Perceptual term", described["config"]["perceptual"]
    for key, value in _flat(described["facts"]):
        yield key.replace("_", " ").capitalize(), f"{value:.4g}" if isinstance(value, float) else str(value)


def _flat(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key} ")
        else:
            yield prefix + key, value
