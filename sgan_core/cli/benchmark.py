"""sgan-benchmark: how fast this machine does the parts of the work."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgan_core.cli import app

if TYPE_CHECKING:
    from sgan_core.benchmark.inversion import SpeedPlan
    from sgan_core.cohort import Cohort
    from sgan_core.evaluation.tables import Table

DESCRIPTION = "Measure how fast this machine does the parts of the work."
EXAMPLES = """\
  sgan-benchmark inversion --output inversion.json
  sgan-benchmark loader --output loader.json
  sgan-benchmark loader --size 64 --output loader.json               half a minute, with the preset tiny
  sgan-benchmark loader --data prepared --images 2000 --output loader.json

Prints a table in Markdown and writes the figures as JSON. Run it while the machine has nothing else to do; the
JSON says whether it had.
"""
LOADER_DESCRIPTION = """\
Is loading faster than training? Prepares slices with one process and with all, reads random batches of them
and compares that with a training step of the GAN. Takes some minutes at 256 px on a CPU, and as much disk as
the slices, in the folder for temporary files."""
LOADER_EXAMPLES = """\
  sgan-benchmark loader --output loader.json                         1000 generated pictures of 512 x 512
  sgan-benchmark loader --data prepared --images 2000 --output loader.json
  sgan-benchmark loader --preset small --output loader.json          needs less memory than paper
"""
INVERSION_DESCRIPTION = """\
Is inversion faster than the procedure of the paper's authors, and as good? Runs both on the same slices, in
turns, with the same weights. The authors' one takes 200 steps a slice, one slice at a time: about a quarter of a
minute a slice at 64 px on one CPU core. With --preset there are no weights: seconds of a step are measured and
multiplied by the steps that both need on a trained model."""
INVERSION_EXAMPLES = """\
  sgan-benchmark inversion --output inversion.json                   the bundled model, 8 phantom slices
  sgan-benchmark inversion --model mymodel --data cohort.json --slices 16 --output inversion.json
  sgan-benchmark inversion --preset official --size 64 --output inversion-official.json
"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = app.Parser("sgan-benchmark", description=DESCRIPTION, examples=EXAMPLES)
    commands = p.add_subparsers(metavar="COMMAND", required=True, parser_class=app.Subparser)
    _loader_options(
        _add(
            commands,
            "loader",
            loader,
            "preparing and reading slices beside a training step",
            description=LOADER_DESCRIPTION,
            examples=LOADER_EXAMPLES,
        )
    )
    _inversion_options(
        _add(
            commands,
            "inversion",
            inversion,
            "inversion beside the procedure of the paper's authors",
            description=INVERSION_DESCRIPTION,
            examples=INVERSION_EXAMPLES,
        )
    )
    return p


def _add(
    commands: Any, name: str, command: Callable[[argparse.Namespace], int], summary: str, **texts: str
) -> argparse.ArgumentParser:
    added: argparse.ArgumentParser = commands.add_parser(name, help=summary, **texts)
    added.set_defaults(command=command)
    return added


def _loader_options(p: argparse.ArgumentParser) -> None:
    add = p.add_argument
    add("--output", required=True, type=Path, metavar="FILE.json", help="gets the figures")
    add("--data", metavar="SRC", help="cohort.json or a prepared folder (default: generated pictures)")
    add("--images", type=int, default=1000, metavar="N", help="pictures, or cases of --data (default 1000)")
    add("--size", type=int, default=256, metavar="PX", help="image side, 32 to 512 (default 256)")
    add("--batch", type=int, default=16, metavar="N", help="images read at a time (default 16)")
    add(
        "--preset",
        choices=("tiny", "small", "paper", "official"),
        help="of the training step (default: tiny up to 64 px, else paper)",
    )
    add("--step-batch", type=int, metavar="N", help="images of a step (default: 4 on a CPU, else --batch)")
    add("--processes", type=int, metavar="N", help="that prepare slices (default: one for each core)")
    add("--repeats", type=int, default=3, metavar="N", help="figures are medians of as many (default 3)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: auto")


def loader(args: argparse.Namespace) -> int:
    """Measure as the options say."""
    import tempfile

    from sgan_core.benchmark.throughput import LoaderPlan, measure_loader
    from sgan_core.cli.progress import Progress
    from sgan_core.device import choose_device
    from sgan_core.errors import InputError
    from sgan_core.evaluation.tables import json_text, markdown, write_text
    from sgan_core.training.workers import available_cores

    if args.images < 2:
        raise InputError(f"--images {args.images}: give at least 2")
    device = choose_device(args.device)
    plan = LoaderPlan(
        size=args.size,
        batch=args.batch,
        preset=args.preset or ("tiny" if args.size <= 64 else "paper"),
        step_batch=(4 if device.type == "cpu" else args.batch)
        if args.step_batch is None
        else args.step_batch,
        processes=available_cores() if args.processes is None else args.processes,
        repeats=args.repeats,
    )
    with tempfile.TemporaryDirectory(prefix="sgan-benchmark-") as folder, Progress() as progress:
        cohort = _cohort(args, Path(folder))
        found = measure_loader(cohort, Path(folder) / "slices", plan, device, progress)
    write_text(args.output, json_text(found))
    sys.stdout.write(markdown(_table(found)))
    return app.DONE


def _cohort(args: argparse.Namespace, folder: Path) -> Cohort:
    from sgan_core.benchmark.throughput import first_cases, make_pictures
    from sgan_core.cohort import load_cohort, require_files

    if args.data is None:
        return make_pictures(folder / "pictures", args.images)
    cohort = load_cohort(args.data)
    require_files(cohort)
    return first_cases(cohort, args.images)


def _table(found: dict[str, Any]) -> Table:
    from sgan_core.evaluation.tables import Table

    one, everything = found["prepare"]["one"], found["prepare"]["all"]
    read, step = found["read"], found["train_step"]
    cold = read["cold_images_per_s"]
    rows = [
        ("prepare, 1 process", f"{one['images_per_s']:.0f} images/s"),
        (f"prepare, {everything['processes']} processes", f"{everything['images_per_s']:.0f} images/s"),
        (f"read batches of {found['batch']}", f"{read['warm_images_per_s']:.0f} images/s"),
        ("the same from the disk", f"{cold:.0f} images/s" if cold else "not measured"),
        (f"training step, {step['preset']}, {step['batch']} images", f"{step['seconds']:.3g} s"),
        ("reading's share of a step", _percent(found["ratio"])),
        ("the same from the disk", _percent(found["ratio_cold"]) if cold else "not measured"),
    ]
    if everything["processes"] == 1:
        del rows[1]
    busy = ", busy with other work" if found["busy"] else ""
    title = f"Loader, {found['size']} px, {found['cores']} cores, {found['device']}{busy}"
    return Table(title, ("part", "speed"), tuple(rows))


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _inversion_options(p: argparse.ArgumentParser) -> None:
    add = p.add_argument
    add("--output", required=True, type=Path, metavar="FILE.json", help="gets the figures")
    add("--model", default="phantom-ct-liver", metavar="BUNDLE", help="default: phantom-ct-liver")
    add("--data", metavar="SRC", help="cohort.json with labels (default: phantom CT patients)")
    add("--split", choices=("validation", "test"), default="validation", help="default: validation")
    add("--slices", type=int, default=8, metavar="N", help="that hold a label (default 8)")
    add("--repeats", type=int, default=1, metavar="N", help="of the whole measurement (default 1)")
    add("--steps", type=int, metavar="N", help="of ours (default: those of the model's preset)")
    add("--reference-steps", type=int, metavar="N", help="of the authors' procedure (default 200)")
    add("--preset", choices=("tiny", "small", "paper", "official"), help="random weights instead of --model")
    add("--size", type=int, metavar="PX", help="image side for --preset (default: the preset's)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: auto")


def inversion(args: argparse.Namespace) -> int:
    """Measure, or calculate for a preset without weights, and say plainly what is worse."""
    from sgan_core.benchmark.inversion import complaints, table_rows
    from sgan_core.errors import InputError
    from sgan_core.evaluation.tables import Table, json_text, markdown, write_text

    if args.size is not None and args.preset is None:
        raise InputError("--size goes with --preset: a model has its own size")
    found = _calculated(args) if args.preset else _measured(args)
    write_text(args.output, json_text(found))
    busy = ", busy with other work" if found["busy"] else ""
    title = (
        f"Inversion, {found['size']} px, {found['slices']} slices, {found['model']}, {found['device']}{busy}"
    )
    sys.stdout.write(
        markdown(Table(title, ("figure", "the authors' procedure", "ours"), tuple(table_rows(found))))
    )
    kind = (
        "CALCULATED from seconds a step and the steps of a trained model"
        if found["calculated"]
        else "measured"
    )
    print(f"\nRatio of seconds a slice, {kind}: {found['ratio']:.3g}")
    if not found["calculated"]:
        worse = complaints(found)
        print("\n".join(worse) if worse else "Loss and DICE are at least as good as the reference's.")
    return app.DONE


def _measured(args: argparse.Namespace) -> dict[str, Any]:
    import tempfile

    from sgan_core.benchmark.inversion import cohort_slices, measure_inversion, phantom_slices
    from sgan_core.bundle import load_bundle
    from sgan_core.cli.progress import Progress
    from sgan_core.cohort import load_cohort, require_files
    from sgan_core.device import choose_device

    bundle = load_bundle(args.model, choose_device(args.device))
    bundle.require_inverter()
    config = bundle.config
    plan = _plan(args, config.preset, config.generator.size)
    with tempfile.TemporaryDirectory(prefix="sgan-benchmark-") as folder, Progress() as progress:
        if args.data is None:
            slices = phantom_slices(config, Path(folder), args.slices, split=args.split)
        else:
            cohort = load_cohort(args.data)
            require_files(cohort)
            slices = cohort_slices(cohort, config, Path(folder), args.slices, split=args.split)
        return measure_inversion(bundle, slices, plan, progress)


def _calculated(args: argparse.Namespace) -> dict[str, Any]:
    from sgan_core.benchmark.inversion import calculate_inversion
    from sgan_core.bundle import load_bundle
    from sgan_core.config import preset
    from sgan_core.device import choose_device

    device = choose_device(args.device)
    perceptual = load_bundle(args.model, device).perceptual
    size = args.size or preset(args.preset, modality="ct", num_classes=2).generator.size
    return calculate_inversion(args.preset, size, _plan(args, "tiny", None), device, perceptual)


def _plan(args: argparse.Namespace, name: str, size: int | None) -> SpeedPlan:
    """Ours as the preset of this version has it, also for a model that an older version wrote."""
    from dataclasses import replace

    from sgan_core.benchmark.authors_inversion import AUTHORS
    from sgan_core.benchmark.inversion import SpeedPlan
    from sgan_core.config import preset

    ours = preset(name, modality="ct", num_classes=2, size=size).inversion
    ours = ours if args.steps is None else replace(ours, steps=args.steps)
    reference = AUTHORS if args.reference_steps is None else replace(AUTHORS, steps=args.reference_steps)
    return SpeedPlan(ours, reference, slices=args.slices, repeats=args.repeats)


def _call(args: argparse.Namespace) -> int:
    return int(args.command(args))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of sgan-benchmark."""
    return app.run(_call, parser(), argv)


if __name__ == "__main__":
    raise SystemExit(main())
