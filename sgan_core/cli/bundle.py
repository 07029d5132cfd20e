"""sgan-bundle: what a trained model is, whether it is whole, how far to trust its masks."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sgan_core.cli import app
from sgan_core.errors import InputError

DESCRIPTION = """\
Show what a trained model is and was trained on, check its files against their hashes (SHA-256), or calibrate anew
how far its masks are to be trusted.

BUNDLE is a folder (such as the folder "bundle" that sgan-train writes), a .zip of one, or the name of a
bundled model."""
EXAMPLES = """\
  sgan-bundle info phantom-ct-liver
  sgan-bundle info runs/liver/bundle --json
  sgan-bundle verify liver.zip
      exit code 0 when the model is whole, 2 (with the reasons) when it is not
  sgan-bundle calibrate runs/liver/bundle --data prepared --output liver
"""
CALIBRATE = """\
Calibrate trust: show the model slices of the cohort's labelled validation patients, as they are and made to fail,
and fit how likely a mask is wrong or a picture foreign, for each way of segmenting that gets a figure (the student's
masks at every quality, the encoder's). Training ends with the same; this is for models of older versions. Writes the
model to DIR with other facts, its weights bit for bit as they were. Takes minutes on a CPU; slices that no run
has prepared are prepared first."""
CALIBRATE_EXAMPLES = """\
  sgan-bundle calibrate runs/liver/bundle --data prepared --output liver
  sgan-bundle calibrate phantom-ct-liver --data phantom --output phantom-ct-liver
"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = app.Parser("sgan-bundle", description=DESCRIPTION, examples=EXAMPLES)
    commands = p.add_subparsers(metavar="COMMAND", required=True, parser_class=app.Subparser)
    one = _add(commands, "info", lambda args: info(args.bundle, as_json=args.json), "what a model is")
    one.add_argument("--json", action="store_true", help="as JSON")
    _add(commands, "verify", lambda args: verify(args.bundle), "whether a model is whole")
    text = {"description": CALIBRATE, "examples": CALIBRATE_EXAMPLES}
    one = _add(commands, "calibrate", calibrate, "calibrate trust in a model's masks anew", **text)
    one.add_argument(
        "--data", required=True, metavar="SRC", help="cohort.json, a prepared folder, or 'phantom'"
    )
    one.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="for the model; may be BUNDLE itself"
    )
    one.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: auto")
    return p


def _add(
    commands: Any, name: str, call: Callable[[argparse.Namespace], None], summary: str, **texts: str
) -> argparse.ArgumentParser:
    added: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, **{"description": f"Say {summary}.", **texts}
    )
    added.add_argument("bundle", metavar="BUNDLE", help="folder, .zip or name of a model")
    added.set_defaults(call=call)
    return added


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    return app.run(lambda args: args.call(args), parser(), argv)


def calibrate(args: argparse.Namespace) -> None:
    """Calibrate trust anew and print where the model is."""
    from sgan_core.bundle import load_bundle, require_replaceable, save_with_facts
    from sgan_core.cli.progress import Progress
    from sgan_core.cohort import load_cohort
    from sgan_core.device import choose_device
    from sgan_core.phantom import phantom_cohort
    from sgan_core.training.calibrate import trust_facts_of

    require_replaceable(args.output)  # before the long work
    bundle = load_bundle(args.bundle, choose_device(args.device))
    bundle.require_inverter()
    if bundle.student is None:
        raise InputError(f"{args.bundle}: has no student, so there is nothing to judge its masks by.")
    cohort = phantom_cohort() if args.data == "phantom" else load_cohort(args.data)
    with Progress() as progress:
        found = trust_facts_of(bundle, cohort, on_progress=progress)
    kept = {name: value for name, value in bundle.facts.items() if not name.startswith("trust")}
    print(save_with_facts(args.output, bundle, kept | found))


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
    yield "The model", described["can"]
    yield "Perceptual term", described["config"]["perceptual"]
    for key, value in _flat(described["facts"]):
        yield key.replace("_", " ").capitalize(), f"{value:.4g}" if isinstance(value, float) else str(value)


def _flat(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key} ")
        else:
            yield prefix + key, value
