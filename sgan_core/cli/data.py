"""sgan-data: data sets as cohorts to train on."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgan_core.cli import app
from sgan_core.cohort import MODALITIES, SPLITS, Cohort, save_cohort

if TYPE_CHECKING:
    from sgan_core.evaluation.tables import Table

log = logging.getLogger(__name__)

DESCRIPTION = """\
List the data sets that can be prepared, and write the cohort file (cohort.json) that training reads.
Nothing is copied or downloaded: a cohort file names images, labels, patients and splits."""
EXAMPLES = """\
  sgan-data list
  sgan-data prepare custom scans --images "*/ct.nii.gz" --labels "*/liver.nii.gz" \\
      --patient "([^/]+)/" --modality ct --label 1=liver --output cohort
  sgan-data prepare phantom --output phantom-ct
"""
CUSTOM_DESCRIPTION = """\
Make a cohort of your own images: PNG, JPEG, BMP or TIFF pictures or slices, NIfTI, NRRD or MetaImage volumes.

An image and a label file belong together when the * parts of their paths agree. An image without a label file
is unlabelled: training uses it all the same. A patient's images always stay in one split."""
CUSTOM_EXAMPLES = r"""
  PNG slices scans/images/P07_slice12.png with masks scans/masks/P07_slice12.png that hold 0 and 255:
    sgan-data prepare custom scans --images "images/*.png" --labels "masks/*.png" --patient "images/(P\d+)_" \
        --modality ct --intensity-range -160,240 --label 255=liver --output cohort

  volumes; 1 is liver, 2 is a tumour inside it, other values are organs that are not wanted:
    sgan-data prepare custom scans --images "**/ct.nii.gz" --labels "**/seg.nii.gz" --patient "([^/]+)/ct" \
        --modality ct --label 1,2=liver 3,4=background --validation P03,P12 --output cohort
"""
PHANTOM_DESCRIPTION = """\
Write phantom patients as NIfTI files with their cohort: abdomens made on the spot, with true labels.
Takes about a second a patient and 5 MB on disk. (sgan-train --data phantom needs no files.)"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    return app.run(_call, _parser(), _with_negative_ranges(arguments))


def _call(options: argparse.Namespace) -> None:
    options.command(options)


# --- options ---


def _parser() -> app.Parser:
    parser = app.Parser("sgan-data", description=DESCRIPTION, examples=EXAMPLES)
    commands = _subcommands(parser, "COMMAND")
    _add(commands, "list", list_sources, "show the data sets", description="Show the data sets.")
    summary = "write the cohort of a data set"
    sources = _subcommands(commands.add_parser("prepare", help=summary, description=DESCRIPTION), "NAME")
    texts = {"description": CUSTOM_DESCRIPTION, "examples": CUSTOM_EXAMPLES}
    _custom_options(_add(sources, "custom", prepare_custom, "your own folder", **texts))
    texts = {"description": PHANTOM_DESCRIPTION}
    _phantom_options(_add(sources, "phantom", prepare_phantom, "the built-in phantom patients", **texts))
    return parser


def _subcommands(parser: argparse.ArgumentParser, metavar: str) -> Any:
    return parser.add_subparsers(metavar=metavar, required=True, parser_class=_Subparser)


class _Subparser(app.Parser):
    """The parser of a subcommand; argparse hands it display options of its own, more with each Python."""

    def __init__(self, prog: str, *, description: str, examples: str = "", **_: object) -> None:
        super().__init__(prog, description=description, examples=examples)


def _add(
    commands: Any, name: str, command: Callable[[argparse.Namespace], None], summary: str, **texts: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, **texts)
    parser.set_defaults(command=command)
    return parser


def _add_debug(parser: argparse.ArgumentParser) -> None:
    """The frame adds this to the subcommands, not to theirs."""
    parser.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,
        help="on an error, show where in the code it happened",
    )


def _custom_options(parser: argparse.ArgumentParser) -> None:
    _add_debug(parser)
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="folder that the globs are relative to")
    add("--images", required=True, metavar="GLOB", help="image files; *, ?, [ab] and **/ are wildcards")
    add("--labels", metavar="GLOB", help="label files, with the same number of wildcards")
    add(
        "--patient",
        required=True,
        metavar="REGEX",
        help="finds the patient in an image's path inside DIR (group 1, or the whole match)",
    )
    add("--modality", required=True, choices=MODALITIES, help="kind of image")
    add("--output", required=True, type=Path, metavar="DIR", help="folder that gets the cohort.json")
    add("--name", default="", help="name of the cohort (default: that of the folder)")
    add(
        "--intensity-range",
        type=_range,
        metavar="LOW,HIGH",
        help="what becomes black and white: HU for ct (default -160,240; 8-bit pictures are taken to show "
        "this range), stored values for others (default: 0.5 and 99.5 percentile of each image)",
    )
    add(
        "--label",
        type=_label_rule,
        nargs="+",
        action="extend",
        default=[],
        metavar="VALUE[,VALUE]=NAME",
        help="values of the label files that make one class; the name background ignores them "
        "(default: each value found is a class, label_1, label_2, ...)",
    )
    add(
        "--missing-label-is-empty",
        action="store_true",
        help="an image without label file holds no label (default: it is unlabelled)",
    )
    add(
        "--same-patient",
        type=_names,
        action="append",
        default=[],
        metavar="A,B,C",
        help="names that are one person, e.g. follow-up scans; may be repeated",
    )
    add(
        "--validation",
        type=_names,
        metavar="P,Q",
        help="validation patients (default: a fifth of the labelled ones when there are 5 or more)",
    )
    add(
        "--seed",
        type=int,
        default=0,
        help="draws validation patients and the order of labelled ones (default 0)",
    )


def _phantom_options(parser: argparse.ArgumentParser) -> None:
    _add_debug(parser)
    add = parser.add_argument
    add("--output", required=True, type=Path, metavar="DIR", help="folder for images/, labels/, cohort.json")
    add("--patients", type=_count, default=16, metavar="N", help="training patients (default 16)")
    add("--labelled", type=_count, default=8, metavar="N", help="of them with a label file (default 8)")
    add("--validation", type=_count, default=4, metavar="N", help="validation patients (default 4)")
    add("--test", type=_count, default=0, metavar="N", help="test patients (default 0)")
    add(
        "--domain",
        choices=("ct", "t1_in", "t1_out"),
        default="ct",
        help="CT or MRI in or out of phase (default ct)",
    )


def _with_negative_ranges(arguments: Sequence[str]) -> list[str]:
    """Join ``--intensity-range -40,160``: argparse would take the value for an option."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] == "--intensity-range" and re.match(r"-[\d.]", argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not LOW,HIGH, e.g. -160,240") from None
    if not low < high:
        raise argparse.ArgumentTypeError(f"{text!r}: LOW must be below HIGH")
    return low, high


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of patients, e.g. P3,P12")
    return names


def _label_rule(text: str) -> tuple[tuple[int, ...], str]:
    match = re.fullmatch(r"\s*(\d{1,3}(?:\s*,\s*\d{1,3})*)\s*=\s*(\S.*)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not VALUE=NAME, e.g. 1=liver or 1,2=liver")
    return tuple(int(value) for value in match[1].split(",")), match[2].strip()


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of patients")
    return int(text)


# --- commands ---


def list_sources(options: argparse.Namespace) -> None:
    """Print what can be prepared."""
    from sgan_core.evaluation.tables import Table, print_table
    from sgan_datasets import SOURCES

    rows = tuple((s.name, s.modality, s.about, s.source, s.licence) for s in SOURCES)
    header = ("NAME", "modality", "what", "source", "licence")
    print_table(Table("Data sets", header, rows, numbers_from=len(header)), file=sys.stdout)


def prepare_custom(options: argparse.Namespace) -> None:
    """Write the cohort of one's own folder."""
    from sgan_core.cli.progress import Progress
    from sgan_datasets.custom import LabelRule, prepare_custom

    with Progress() as progress:
        prepared = prepare_custom(
            options.folder,
            images=options.images,
            labels=options.labels,
            patient=options.patient,
            modality=options.modality,
            name=options.name,
            intensity_range=options.intensity_range,
            missing_label_is_empty=options.missing_label_is_empty,
            same_patient=options.same_patient,
            validation=options.validation,
            label_rules=[LabelRule(values, name) for values, name in options.label],
            seed=options.seed,
            on_progress=progress,
        )
    for warning in prepared.warnings:
        log.warning(warning)
    _save(prepared.cohort, options.output)


def prepare_phantom(options: argparse.Namespace) -> None:
    """Write phantom patients with their cohort."""
    from sgan_core.cli.progress import Progress
    from sgan_datasets.phantom import prepare_phantom

    with Progress() as progress:
        cohort = prepare_phantom(
            options.output,
            patients=options.patients,
            labelled=options.labelled,
            validation=options.validation,
            test=options.test,
            domain=options.domain,
            on_progress=progress,
        )
    _save(cohort, options.output)


def _save(cohort: Cohort, folder: Path) -> None:
    from sgan_core.evaluation.tables import print_table

    folder.mkdir(parents=True, exist_ok=True)
    file = save_cohort(cohort, folder)
    print_table(_summary(cohort), file=sys.stdout)
    for label in cohort.labels:
        stored = ", ".join(map(str, label.stored))
        print(f"class {label.value}: {label.name} (in the label files: {stored})")
    print(f"wrote {file}")


def _summary(cohort: Cohort) -> Table:
    from sgan_core.evaluation.tables import Table

    rows = []
    for split in SPLITS:
        cases = cohort.select(split)
        figures = (
            len({case.patient for case in cases}),
            len({case.patient for case in cases if case.labelled}),
            len(cases),
            sum(case.label is not None for case in cases),
            sum(case.empty for case in cases),
        )
        if cases:
            rows.append((split, *map(str, figures)))
    header = ("split", "patients", "labelled patients", "images", "with label file", "known empty")
    return Table(f"Cohort {cohort.name} ({cohort.modality})", header, tuple(rows))


if __name__ == "__main__":
    sys.exit(main())
