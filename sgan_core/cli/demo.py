"""sgan-demo: see the method work on built-in patients."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sgan_core.cli import app

_EXAMPLES = """\
  sgan-demo
  sgan-demo --output demo-out --patients 4 --device cuda

Makes phantom patients that the bundled model never saw, as CT and as T1-weighted MRI in and out of phase,
segments the liver by a generator that was trained on CT only, and scores it per patient. Then open
OUTPUT/report.html in a browser.
"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    about = "Segment phantom CT and MRI with the bundled model."
    p = app.Parser("sgan-demo", description=about, examples=_EXAMPLES)
    add = p.add_argument
    add("--output", type=Path, default=Path("demo-out"), metavar="DIR", help="default: demo-out")
    add("--model", default="phantom-ct-liver", metavar="BUNDLE", help="default: phantom-ct-liver")
    add("--patients", type=int, default=2, metavar="N", help="patients, each in three domains (default: 2)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: auto")
    return p


def command(args: argparse.Namespace) -> int:
    """Run the demo as the options say."""
    from sgan_core.bundle import load_bundle
    from sgan_core.cli.progress import Progress
    from sgan_core.demo import run_demo
    from sgan_core.device import choose_device
    from sgan_core.errors import InputError
    from sgan_core.evaluation.tables import dice_table, print_table

    if args.patients < 1:
        raise InputError(f"--patients {args.patients}: expected 1 or more")
    bundle = load_bundle(args.model, choose_device(args.device))
    with Progress() as progress:
        demo = run_demo(bundle, args.output, patients=args.patients, on_progress=progress)
    print_table(dice_table(demo.rows))
    sys.stdout.write(f"Report: {demo.report}\n")
    return app.DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of sgan-demo."""
    return app.run(command, parser(), argv)


if __name__ == "__main__":
    raise SystemExit(main())
