"""sgan-bundle: which models there are, what they are, whether they are whole; their terms and trust written anew."""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sgan_core.cli import app
from sgan_core.errors import InputError
from sgan_datasets import NAMES

log = logging.getLogger(__name__)

DESCRIPTION = """\
Show which models there are, what a trained model is and was trained on, check its files against their hashes
(SHA-256), calibrate anew how far its masks are to be trusted, or put its terms of use into it.

BUNDLE is a folder (such as the folder "bundle" that sgan-train writes), a .zip of one, or a name that
sgan-bundle list shows."""
EXAMPLES = """\
  sgan-bundle list
  sgan-bundle info phantom-ct-liver
  sgan-bundle info runs/liver/bundle --json
  sgan-bundle verify liver.zip
      exit code 0 when the model is whole, 2 (with the reasons) when it is not
  sgan-bundle calibrate runs/liver/bundle --data prepared --output liver
  sgan-bundle describe liver --student-only --licence "CC BY-NC-SA 4.0" \\
      --restriction "research only, not for commercial use" --output models/ct-liver
"""
LIST = """\
Show the models that can be given by name: what each segments, what it learned from, DICE on its own validation
patients and on these in changed looks, licence. They are looked for in the package, in the folder models/ of the
repository that the package runs from, and in the folder that the environment's SGAN_MODELS names; of two with the
same name the first counts. A folder that is no model, or a damaged one, is told on stderr."""
DESCRIBE = """\
Write a model again with other words about it: terms of use, data sets, name, card. Its weights stay bit for bit as
they were. A restriction is shown by every command and program that uses the model. With --student-only the generator,
the encoder and what is known of them are left out: a generator can draw the images that it learned, a student
cannot. What is left segments, and sends every case to review."""
DESCRIBE_EXAMPLES = """\
  sgan-bundle describe runs/liver/bundle --name ct-liver --student-only --source lits --licence "CC BY-NC-SA 4.0" \\
      --restriction "research only, not for commercial use" --card card.md --output models/ct-liver
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
    listing = commands.add_parser("list", help="the models that are there", description=LIST)
    listing.add_argument("--json", action="store_true", help="as one JSON object: models, problems")
    listing.set_defaults(call=list_models)
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
    text = {"description": DESCRIBE, "examples": DESCRIBE_EXAMPLES}
    one = _add(commands, "describe", describe, "a model's terms, data sets and card written anew", **text)
    add = one.add_argument
    add("--licence", metavar="TEXT", help='of the weights, e.g. "CC BY-NC-SA 4.0"')
    add("--restriction", metavar="TEXT", help='what users have to be told; "" takes one away')
    add(
        "--source",
        choices=NAMES,
        action="append",
        metavar="NAME",
        help="a data set that it learned from, as sgan-data list names it, in place of those it states; "
        "may be repeated",
    )
    add(
        "--one-piece",
        action="append",
        metavar="LABEL",
        help="a label that is one connected piece in every patient, in place of those it states: of its masks the "
        "largest piece is kept; may be repeated. Training finds them itself where it sees whole organs",
    )
    add("--card", type=Path, metavar="FILE.md", help="Markdown about the model, for its readme")
    add("--name", help="another name")
    add("--student-only", action="store_true", help="leave out the generator and what belongs to it")
    add("--output", required=True, type=Path, metavar="DIR", help="for the model; may be BUNDLE itself")
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


_LONGEST_CARD = 1 << 18  # bytes
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def describe(args: argparse.Namespace) -> None:
    """Write a model with other words about it and print where it is."""
    from sgan_core.bundle import load_bundle, require_replaceable, save_with_facts
    from sgan_core.pieces import ONE_PIECE
    from sgan_core.terms import terms_of
    from sgan_core.training.origin import TERMS
    from sgan_datasets import about

    if args.name is not None and not _PLAIN_NAME.fullmatch(args.name):
        raise InputError(f"--name {args.name!r}: use letters, digits, '.', '_' and '-', at most 100.")
    card = None if args.card is None else _card(args.card)
    require_replaceable(args.output)
    bundle = load_bundle(args.bundle)
    terms = terms_of(bundle.facts)
    if args.licence is not None:
        terms = replace(terms, licence=_told(args.licence, "--licence"))
    if args.restriction is not None:
        restriction = _told(args.restriction, "--restriction") if args.restriction else ""
        terms = replace(terms, restriction=restriction)
    if args.source is not None:
        terms = replace(terms, sources=tuple(about(name).as_source() for name in args.source))
    told = terms.facts()
    if args.one_piece is not None:
        names = [label.name for label in bundle.config.labels]
        if unknown := [name for name in args.one_piece if name not in names]:
            raise InputError(
                f"--one-piece {unknown[0]!r}: the model's labels are {', '.join(names) or 'none'}."
            )
        told[ONE_PIECE] = args.one_piece
    if args.licence is None:  # as it is, also a long one
        told.pop("licence", None)
    facts = {key: value for key, value in bundle.facts.items() if key != "use"} | told
    more = {"name": args.name, "card": card, "student_only": args.student_only}
    print(save_with_facts(args.output, bundle, facts, **more))
    if (args.output.absolute().parent / TERMS).is_file():
        log.warning(
            "%s belongs to a training run, which writes it anew when it goes on (--resume), without these words; "
            "give another --output to keep them",
            args.output,
        )


def _told(text: str, option: str) -> str:
    """A text that everyone is shown whole."""
    from sgan_core.terms import one_line

    if not text or one_line(text) != text:
        raise InputError(f"{option}: one line of at most 300 characters is needed.")
    return text


def _card(file: Path) -> str:
    try:
        content = file.read_bytes()
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not a readable text in UTF-8 ({error}).") from error
    if len(content) > _LONGEST_CARD:
        raise InputError(f"{file}: {len(content)} bytes; a card has at most {_LONGEST_CARD}.")
    return text


def list_models(args: argparse.Namespace) -> None:
    """Print the models that are there."""
    from sgan_core.known_models import survey

    models, problems = survey()
    for problem in problems:
        log.warning(problem)
    if args.json:
        print(json.dumps({"models": models, "problems": problems}, indent=2))
        return

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("model", "segments", "learned from", "DICE", "terms")
    table.columns[0].no_wrap = True  # it is to be copied
    for model in models:
        table.add_row(*(Text(cell, overflow="fold") for cell in _cells(model)))
    Console().print(table)
    print("sgan-bundle info MODEL shows all about one.")


_PLACES = {"bundled": "", "checkout": "\nof the repository", "user": "\nof SGAN_MODELS"}


def _cells(model: dict[str, Any]) -> Iterator[str]:
    from sgan_core.terms import one_line

    figures, trained = model["figures"], model["trained_on"]
    alone = "\na student alone" if model["student_alone"] else ""
    yield model["name"] + _PLACES[model["place"]] + alone
    labels = ", ".join(model["labels"]) or "labels not named"
    yield f"{labels}\n{model['modality']}, {model['size_px']} px"
    names = (
        ", ".join(one_line(source["name"], 60) for source in model["sources"])
        or trained["cohort"]
        or "not stated"
    )
    labelled = trained.get("labelled_patients")
    yield names + (f"\n{labelled:g} labelled patients" if labelled is not None else "")
    dice, shifted = (
        figures.get("student_dice", figures.get("validation_dice")),
        figures.get("student_shifted_dice"),
    )
    looks = f"\n{shifted:.3f} in changed looks" if shifted is not None else ""
    yield (f"{dice:.3f}" if dice is not None else "not stated") + looks
    licence = model["licence"] or "not stated"
    yield f"{licence}\n{model['restriction']}" if model["restriction"] else licence


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

    from sgan_core.terms import one_line

    table = Table(title=Text(one_line(described["name"])), show_header=False, title_justify="left")
    for heading, value in _rows(described):
        table.add_row(Text(one_line(heading)), Text(one_line(value, 2000), overflow="fold"))
    Console().print(table)


def verify(reference: str) -> None:
    """Check a model. Raises InputError with every reason why it cannot be trusted."""
    from sgan_core.bundle import bundle_hash, verify_bundle
    from sgan_core.known_models import find_bundle

    folder = find_bundle(reference)
    if problems := verify_bundle(folder):
        raise InputError(f"{reference} is not whole: {' '.join(problems)}")
    print(f"{reference}: whole, hash {bundle_hash(folder)}")


def _rows(described: dict[str, Any]) -> Iterator[tuple[str, str]]:
    from sgan_core.terms import terms_of

    yield "Hash", described["hash"]
    yield "Folder", described["folder"]
    yield "Size on disk", f"{described['bytes'] / 1e6:.1f} MB"
    yield "Modality", described["modality"]
    yield "Image", f"{described['size_px']} x {described['size_px']} px"
    labels = [f"{label['value']} {label['name']}" for label in described["labels"]]
    yield "Labels", ", ".join(labels) or "not named"
    yield "The model", described["can"]
    yield "Perceptual term", described["config"]["perceptual"]
    terms = terms_of(described["facts"])
    if terms.restriction:
        yield "Restriction", terms.restriction
    for source in terms.sources:
        licence = f"licence: {source.licence}" if source.licence else ""
        yield "Images of", "; ".join(part for part in (source.name, licence, source.address) if part)
    for key, value in _flat({key: value for key, value in described["facts"].items() if key != "use"}):
        yield key.replace("_", " ").capitalize(), f"{value:.4g}" if isinstance(value, float) else str(value)


def _flat(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key} ")
        else:
            yield prefix + key, ", ".join(map(str, value)) if isinstance(value, list) else value
