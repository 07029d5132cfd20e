"""The mean of two students' weights, for a student that was taught on from another one.

    python benchmarks/mean_of_weights.py models/ct-liver runs/liver/bundle --output runs/mean

Between weights that training led from one to the other, the mean is often as good as the better of them where they
were taught and better elsewhere (Wortsman et al., WiSE-FT, CVPR 2022). All but the weights is the second's.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sgan_core.bundle import load_bundle, save_bundle
from sgan_core.cli import app
from sgan_core.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Write the mean. Returns the exit code."""
    p = app.Parser("mean_of_weights", description=__doc__ or "")
    p.add_argument("first", metavar="MODEL", help="a student alone, which the second began with")
    p.add_argument("second", metavar="MODEL", help="a student alone")
    p.add_argument("--share", type=float, default=0.5, help="of the second (default 0.5)")
    p.add_argument("--output", required=True, type=Path, metavar="DIR", help="for the model")
    return app.run(write_mean, p, argv)


def write_mean(args: argparse.Namespace) -> None:
    """Write the model. Raises InputError for models that are no students alone, or of unlike networks."""
    first, second = load_bundle(args.first), load_bundle(args.second)
    for bundle, name in ((first, args.first), (second, args.second)):
        if bundle.student is None or bundle.inverter is not None:
            raise InputError(
                f"{name}: not a student alone. Write one with sgan-bundle describe --student-only."
            )
    assert first.student is not None
    assert second.student is not None
    own, other = second.student.state_dict(), first.student.state_dict()
    if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in other.items()}:
        raise InputError(f"{args.first}, {args.second}: their students are of unlike networks.")
    second.student.load_state_dict({name: other[name].lerp(own[name], args.share) for name in own})
    facts = {**second.facts, "mean_of": [first.hash, second.hash], "share_of_the_second": args.share}
    for of_one in ("student_dice", "student_shifted_dice", "student_images"):
        facts.pop(of_one, None)
    save_bundle(args.output, name=second.name, config=second.config, facts=facts, student=second.student)


if __name__ == "__main__":
    raise SystemExit(main())
