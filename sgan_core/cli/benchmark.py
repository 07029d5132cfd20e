"""sgan-benchmark: how fast this machine does the parts of the work."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgan_core.cli import app

if TYPE_CHECKING:
    from sgan_core.cohort import Cohort
    from sgan_core.evaluation.tables import Table

DESCRIPTION = "Measure how fast this machine does the parts of the work."
EXAMPLES = """\
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

    from sgan_core.cli.progress import Progress
    from sgan_core.device import choose_device
    from sgan_core.errors import InputError
    from sgan_core.evaluation.tables import json_text, markdown, write_text
    from sgan_core.training.throughput import LoaderPlan, measure_loader
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
    from sgan_core.cohort import load_cohort, require_files
    from sgan_core.training.throughput import first_cases, make_pictures

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


def _call(args: argparse.Namespace) -> int:
    return int(args.command(args))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of sgan-benchmark."""
    return app.run(_call, parser(), argv)


if __name__ == "__main__":
    raise SystemExit(main())
