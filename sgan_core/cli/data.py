"""sgan-data: data sets as cohorts to train on."""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgan_core.cli import app
from sgan_core.cohort import MODALITIES, SPLITS, Cohort, load_cohort, save_cohort
from sgan_datasets import NAMES, about, data_set

if TYPE_CHECKING:
    from sgan_core.evaluation.tables import Table
    from sgan_datasets.source import DataSet, Problem

log = logging.getLogger(__name__)

DESCRIPTION = """\
List the data sets that can be prepared, check their files, and write the cohort file (cohort.json) that training
reads: it names images, labels, patients and splits. Nothing is downloaded. Files stay where they are; only those
in a format of their own are converted."""
EXAMPLES = """\
  sgan-data list
  sgan-data list wingspan                          terms, how to get it, official layout
  sgan-data check wingspan Wingspan                are all files there, readable and as they should be?
  sgan-data prepare wingspan Wingspan --output lungs
  sgan-data prepare cxr14 ChestX-ray14 --output more
  sgan-data merge lungs more --output cohort       labelled and unlabelled X-rays together
  sgan-data prepare custom scans --images "*/ct.nii.gz" --labels "*/liver.nii.gz" \\
      --patient "([^/]+)/" --modality ct --label 1=liver --output cohort
  sgan-data prepare phantom --output phantom-ct
"""
LIST_DESCRIPTION = """\
Show the data sets; with NAME, all about one: size, terms, how to get it, citation, official layout."""
CHECK_DESCRIPTION = """\
Open every image and label below DIR, which holds the data set as it was published, and say what is wrong: missing
pairs, unreadable files, labels of another size than their image, unexpected label values, images that occur twice,
patients or images in two splits, labels that cover more than half of most images. Exit code 0: nothing found;
1: something found."""
PUBLIC_DESCRIPTION = """\
Write the cohort of the data set {name}.

DIR holds it as it was published; `sgan-data list {name}` shows its terms, how to get it and its layout."""
MERGE_DESCRIPTION = """\
Join prepared cohorts of one modality whose classes have the same names: labelled images of one source, unlabelled
ones of another. A case in two cohorts counts once; a patient in two splits goes to the strictest."""
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
    return app.run(_call, _parser(), app.with_negative_values(argv, "--intensity-range"))


def _call(options: argparse.Namespace) -> int | None:
    exit_code: int | None = options.command(options)
    return exit_code


# --- options ---


def _parser() -> app.Parser:
    parser = app.Parser("sgan-data", description=DESCRIPTION, examples=EXAMPLES)
    commands = _subcommands(parser, "COMMAND")
    listing = _add(commands, "list", list_sources, "show the data sets", description=LIST_DESCRIPTION)
    listing.add_argument(
        "name", nargs="?", choices=(*NAMES, "phantom"), metavar="NAME", help="show all about one"
    )
    checking = _add(
        commands, "check", check_source, "check the files of a data set", description=CHECK_DESCRIPTION
    )
    checking.add_argument("name", choices=NAMES, metavar="NAME", help="as `sgan-data list` shows it")
    checking.add_argument("folder", type=Path, metavar="DIR", help="the data set as published")
    _add_json(checking)
    summary = "write the cohort of a data set"
    sources = _subcommands(commands.add_parser("prepare", help=summary, description=DESCRIPTION), "NAME")
    for name in NAMES:
        texts = {"description": PUBLIC_DESCRIPTION.format(name=name)}
        _public_options(_add(sources, name, prepare_public, f"see `sgan-data list {name}`", **texts), name)
    merging = _add(commands, "merge", merge_prepared, "join prepared cohorts", description=MERGE_DESCRIPTION)
    merging.add_argument("cohorts", nargs="+", type=Path, metavar="COHORT", help="folder or cohort.json")
    merging.add_argument("--output", required=True, type=Path, metavar="DIR", help=_OUTPUT_HELP)
    merging.add_argument("--name", default="", help="name of the cohort (default: that of the folder)")
    merging.add_argument(
        "--seed", type=int, default=0, help="draws the order of labelled patients (default 0)"
    )
    texts = {"description": CUSTOM_DESCRIPTION, "examples": CUSTOM_EXAMPLES}
    _custom_options(_add(sources, "custom", prepare_custom, "your own folder", **texts))
    texts = {"description": PHANTOM_DESCRIPTION}
    _phantom_options(_add(sources, "phantom", prepare_phantom, "the built-in phantom patients", **texts))
    return parser


def _subcommands(parser: argparse.ArgumentParser, metavar: str) -> Any:
    return parser.add_subparsers(metavar=metavar, required=True, parser_class=app.Subparser)


def _add(
    commands: Any, name: str, command: Callable[[argparse.Namespace], int | None], summary: str, **texts: str
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
        "--window",
        metavar="NAME",
        help="for ct instead of --intensity-range: abdomen (the default), liver, lung, mediastinum, bone or "
        "brain, as radiologists look at them",
    )
    _add_corrections(parser)
    add(
        "--squash",
        action="store_true",
        help="the pictures were squashed to a square by whoever released them: later images are seen that way "
        "too (default: the aspect is kept and the rest is black)",
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
    _add_patient_options(parser)
    _add_json(parser)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        action="store_true",
        help="for programs: open every image and label, and print one JSON object, of splits, of cases with size, "
        "intensities, label voxels and problems, and of problems of the whole set",
    )


_OUTPUT_HELP = "folder that gets the cohort.json"


def _public_options(parser: argparse.ArgumentParser, name: str) -> None:
    _add_debug(parser)
    parser.set_defaults(name=name)
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="the data set as published")
    add("--output", required=True, type=Path, metavar="DIR", help=_OUTPUT_HELP)
    add(
        "--split",
        choices=SPLITS,
        help="put every case there, e.g. test for a set that a model is only tested on (default: the official "
        "splits; without official validation patients a fifth of the labelled training patients validates)",
    )
    add(
        "--test-domain",
        type=_names,
        default=(),
        metavar="A,B",
        help="domains, as the cohort calls devices and hospitals, whose cases all go to test",
    )
    _add_patient_options(parser)
    _add_corrections(parser)
    add(
        "--cache",
        type=int,
        metavar="PX",
        help="also prepare the slices for training at this size, in DIR/cache, where sgan-train finds them",
    )


def _add_corrections(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--bias-correction",
        dest="corrections",
        action="append_const",
        const="bias_correction",
        default=[],
        help="for mr: even out the smooth shading of the coils in each image (N4); a few seconds a volume",
    )
    add(
        "--equalise",
        dest="corrections",
        action="append_const",
        const="equalise",
        default=[],
        help="for xray: raise the local contrast of each image (CLAHE), for lungs that show hardly any",
    )
    add(
        "--colour-constancy",
        dest="corrections",
        action="append_const",
        const="colour_constancy",
        default=[],
        help="for dermoscopy and face: take the colour of the light out of each picture (shades of grey)",
    )


def _add_patient_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
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
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of names, e.g. P3,P12")
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
    """Print what can be prepared, or all about one data set."""
    from sgan_core.evaluation.tables import Table, print_table

    if options.name:
        for title, text in vars(about(options.name)).items():
            print(f"{title}:".ljust(10), text.strip().replace("\n", "\n" + " " * 11))
        return
    described = [about(name) for name in (*NAMES, "phantom", "custom")]
    rows = tuple((one.name, one.modality, one.what, one.size, one.licence) for one in described)
    header = ("NAME", "modality", "what", "size", "licence")
    print_table(Table("Data sets", header, rows, numbers_from=len(header)), file=sys.stdout, wrap_at=140)
    print("sgan-data list NAME shows how to get one, its citation and its layout.")


def check_source(options: argparse.Namespace) -> int:
    """Print what is wrong with the files of a data set."""
    from sgan_core.cli.progress import Progress
    from sgan_core.evaluation.tables import print_table
    from sgan_datasets.check import check

    with Progress() as progress:
        found = check(data_set(options.name), options.folder, on_progress=progress)
    if options.json:
        more = [f"{problem.kind}: {problem.text}" for problem in found.problems]
        _print_survey(found.cohort, data_set(options.name), None, more)
        return app.PARTLY_FAILED if found.problems else app.DONE
    print_table(_summary(found.cohort), file=sys.stdout)
    print(f"official size: {about(options.name).size}")
    sizes = sorted(found.sizes.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{' x '.join(map(str, size))} ({count})" for size, count in sizes[:_SHOWN])
    print(f"image sizes: {shown}{_more(len(sizes))}")
    if found.label_values:
        values = ", ".join(f"{value} ({count})" for value, count in found.label_values.items())
        print(f"label values (in how many label maps): {values}")
    if found.remarks:
        print(f"remarks: {len(found.remarks)}, e.g. {found.remarks[0]}")
    _print_problems(found.problems)
    print(f"{len(found.problems)} problems found" if found.problems else "no problems found")
    return app.PARTLY_FAILED if found.problems else app.DONE


_SHOWN = 8  # of a kind; thousands of equal lines help nobody


def _more(count: int) -> str:
    return f", ... ({count - _SHOWN} more)" if count > _SHOWN else ""


def _print_problems(problems: Sequence[Problem]) -> None:
    for kind in dict.fromkeys(problem.kind for problem in problems):
        texts = [problem.text for problem in problems if problem.kind == kind]
        print(f"{kind}: {len(texts)}")
        for text in texts[:_SHOWN]:
            print(f"  {text}")
        if len(texts) > _SHOWN:
            print(f"  ... and {len(texts) - _SHOWN} more")


def prepare_public(options: argparse.Namespace) -> None:
    """Write the cohort of a public data set."""
    from sgan_core.cli.progress import Progress
    from sgan_datasets.prepare import prepare

    options.output.mkdir(parents=True, exist_ok=True)
    with Progress() as progress:
        prepared = prepare(
            data_set(options.name),
            options.folder,
            options.output,
            split=options.split,
            test_domains=options.test_domain,
            validation=options.validation,
            same_patient=options.same_patient,
            corrections=options.corrections,
            seed=options.seed,
            on_progress=progress,
        )
    _print_problems(prepared.problems)
    for warning in prepared.warnings:
        log.warning(warning)
    _save(prepared.cohort, options.output)
    if options.cache:
        _fill_cache(options.output, options.cache)


def _fill_cache(folder: Path, size: int) -> None:
    """Prepare the slices of a cohort where training looks for them."""
    from sgan_core.cli.progress import Progress
    from sgan_core.training.data import CACHE_FOLDER, open_store

    cohort = load_cohort(folder)
    usual = MODALITIES[cohort.modality]
    with Progress() as progress:
        store = open_store(
            cohort,
            folder / CACHE_FOLDER,
            size=size,
            channels=usual["image_channels"],
            body=usual["body"],
            on_progress=progress,
        )
    print(f"{len(store.images)} slices of {size} x {size} in {folder / CACHE_FOLDER}")


def merge_prepared(options: argparse.Namespace) -> None:
    """Join prepared cohorts."""
    from sgan_datasets.merge import merge_cohorts

    cohorts = [load_cohort(path) for path in options.cohorts]
    name = options.name or options.output.resolve().name
    merged, warnings = merge_cohorts(cohorts, name=name, seed=options.seed)
    for warning in warnings:
        log.warning(warning)
    _save(merged, options.output)


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
            window=options.window,
            corrections=options.corrections,
            squash=options.squash,
            missing_label_is_empty=options.missing_label_is_empty,
            same_patient=options.same_patient,
            validation=options.validation,
            label_rules=[LabelRule(values, name) for values, name in options.label],
            seed=options.seed,
            on_progress=progress,
        )
    for warning in prepared.warnings:
        log.warning(warning)
    if options.json:
        options.output.mkdir(parents=True, exist_ok=True)
        file = save_cohort(prepared.cohort, options.output)
        _print_survey(prepared.cohort, None, str(file.absolute()), prepared.warnings)
        return
    _save(prepared.cohort, options.output)


def _print_survey(cohort: Cohort, source: DataSet | None, file: str | None, more: Sequence[str]) -> None:
    """Look at every case of a cohort and print what was found as JSON."""
    from sgan_core.cli.progress import Progress
    from sgan_datasets.survey import survey, to_table

    with Progress() as progress:
        found = survey(cohort, source, on_progress=progress)
    print(json.dumps(to_table(cohort, found, file=file, more=more)))


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
