"""sgan-sample: draw synthetic image + label pairs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sgan_core.cli import app

_EXAMPLES = """\
  sgan-sample --model phantom-ct-liver -n 20 --output samples
  sgan-sample --model runs/liver/bundle -n 1000 --truncation 0.7 --seed 3 --output samples

Writes OUTPUT/images/*.png (8-bit over the model's intensity range), OUTPUT/labels/*.png and OUTPUT/sheet.png.
"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    about = "Draw synthetic image + label pairs from a model."
    p = app.Parser("sgan-sample", description=about, examples=_EXAMPLES)
    add = p.add_argument
    add("--model", required=True, metavar="BUNDLE", help="a bundle folder or .zip, or a bundled model's name")
    add("-n", "--number", type=int, default=20, metavar="N", help="pairs to draw (default: 20)")
    add("--output", required=True, type=Path, metavar="DIR", help="made when it does not exist")
    add(
        "--truncation",
        type=float,
        default=1.0,
        metavar="PSI",
        help="0 (always the mean) to 1 (full variety; the default); 0.7 gives typical, cleaner pairs",
    )
    add("--seed", type=int, default=0, help="the same seed draws the same pairs (default: 0)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: auto")
    return p


def command(args: argparse.Namespace) -> int:
    """Draw as the options say."""
    from sgan_core.bundle import load_bundle
    from sgan_core.device import choose_device
    from sgan_core.errors import InputError
    from sgan_core.sample import write_pairs

    if args.number < 1:
        raise InputError(f"-n {args.number}: expected 1 or more")
    if not 0.0 <= args.truncation <= 1.5:
        raise InputError(f"--truncation {args.truncation}: expected 0 to 1.5")
    bundle = load_bundle(args.model, choose_device(args.device))
    sheet = write_pairs(bundle, args.output, args.number, truncation=args.truncation, seed=args.seed)
    sys.stdout.write(f"{sheet}\n")
    return app.DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of sgan-sample."""
    return app.run(command, parser(), argv)


if __name__ == "__main__":
    raise SystemExit(main())
