"""sgan-segment: segment images with a trained model."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sgan_core.cli import app

log = logging.getLogger(__name__)

_EXAMPLES = """\
  sgan-segment scan.nii.gz --model phantom-ct-liver --output out
  sgan-segment scans/ --model runs/liver/bundle --output out --quality careful
  sgan-segment xray.png --model lungs.zip --output out --quality fast --device cpu

Writes OUTPUT/<case>_seg.nii.gz (_seg.seg.nrrd with --format nrrd, _seg.png for pictures), OUTPUT/run.json with
volumes in mL and reconstruction errors, and OUTPUT/report.html. Research use only, not a medical device.
exit codes: 0 done, 1 some inputs failed, 2 wrong input or options, 3 cancelled, 70 our own error
"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = app.Parser(
        "sgan-segment",
        description="Segment volumes (NIfTI, NRRD) or pictures (PNG, JPEG, TIFF), one by one or a folder of them,\n"
        "by inverting the model's generator.",
        examples=_EXAMPLES,
    )
    p.add_argument("input", nargs="+", type=Path, metavar="INPUT", help="image files, or folders of them")
    p.add_argument(
        "--model", required=True, metavar="BUNDLE", help="a bundle folder or .zip, or a bundled model's name"
    )
    p.add_argument("--output", required=True, type=Path, metavar="DIR", help="made when it does not exist")
    p.add_argument(
        "--quality",
        choices=("fast", "standard", "careful"),
        default="standard",
        help="fast: one pass of the encoder; standard: inversion; careful: more starts and steps (default: standard)",
    )
    p.add_argument("--encoder-only", action="store_true", help="the encoder's answer without optimisation")
    p.add_argument("--steps", type=int, metavar="N", help="optimisation steps (default: the model's)")
    p.add_argument(
        "--reconstruction",
        choices=("auto", "paper"),
        default="auto",
        help="objective of inversion: paper = perceptual + squared error (default: auto, the model's choice)",
    )
    p.add_argument(
        "--format", choices=("nifti", "nrrd"), default="nifti", help="of label volumes (default: nifti)"
    )
    p.add_argument(
        "--probabilities", action="store_true", help="write a probability volume (0 to 1) for each label too"
    )
    p.add_argument("--no-report", action="store_true", help="do not write report.html")
    p.add_argument("--batch", type=int, metavar="N", help="slices optimised together (default: the model's)")
    p.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: auto")
    p.add_argument(
        "--json-progress", action="store_true", help="one JSON object a line on stdout, for programs"
    )
    p.add_argument("--cancel-on-eof", action="store_true", help="stop when stdin ends, for programs")
    return p


def stop_on_eof() -> Callable[[], bool]:
    """Becomes true when stdin ends, as it does when the program that started us dies."""
    ended = threading.Event()

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        ended.set()

    threading.Thread(target=watch, daemon=True).start()
    return ended.is_set


def command(args: argparse.Namespace) -> int:
    """Segment as the options say."""
    from sgan_core.batch import BatchConfig, find_inputs, run_batch
    from sgan_core.bundle import load_bundle
    from sgan_core.cli.progress import Progress
    from sgan_core.device import choose_device, describe
    from sgan_core.errors import Cancelled, InputError
    from sgan_core.segment import SegmentConfig

    if args.batch is not None and args.batch < 1:
        raise InputError(f"--batch {args.batch}: expected 1 or more")
    should_stop = stop_on_eof() if args.cancel_on_eof else lambda: False
    with Progress(as_json=args.json_progress) as progress:
        try:
            inputs = find_inputs(args.input)
            device = choose_device(args.device)
            bundle = load_bundle(args.model, device)
            segment = SegmentConfig(
                quality="fast" if args.encoder_only else args.quality,
                steps=0 if args.encoder_only else args.steps,
                reconstruction=args.reconstruction,
                batch=args.batch,
            )
            config = BatchConfig(segment, args.format, args.probabilities, not args.no_report)
            labels = [
                {"name": x.name, "value": x.value, "rgb": list(x.rgb), "code": x.code}
                for x in bundle.config.labels
            ]
            progress.event(
                "start", model=bundle.name, device=describe(device), inputs=len(inputs), labels=labels
            )
            log.info("%s on %s", bundle.name, describe(device))
            result = run_batch(
                inputs,
                bundle,
                args.output,
                config,
                options={name: _plain(value) for name, value in vars(args).items()},
                on_progress=progress,
                on_case=lambda case: _tell(case, progress),
                should_stop=should_stop,
            )
        except (InputError, Cancelled) as error:
            progress.event("error", message=str(error) or "cancelled")
            raise
        progress.event("done", output=str(args.output), failed=result.failed)
    if not args.json_progress:
        _print_table(result.record["cases"])
    return app.PARTLY_FAILED if result.failed else app.DONE


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _tell(case: dict[str, Any], progress: Any) -> None:
    for warning in case["warnings"]:
        log.warning("%s: %s", case["case"], warning)
        progress.event("warning", case=case["case"], message=warning)
    if case["status"] == "failed":
        log.error("%s", case["error"])
    progress.event("case", **case)


def _print_table(cases: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for heading in ("case", "label", "volume (mL)", "trust", "seconds", "result"):
        table.add_column(heading, justify="right" if heading in ("volume (mL)", "seconds") else "left")
    for case in cases:
        if case["status"] == "failed":
            table.add_row(case["case"], "", "", "failed", "", case["error"])
            continue
        for label in case["labels"]:
            volume = "" if label["volume_ml"] is None else f"{label['volume_ml']:.1f}"
            seconds = f"{case['seconds']:.1f}"
            table.add_row(
                case["case"], label["name"], volume, case["trust"]["status"], seconds, case["output"]
            )
    Console().print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of sgan-segment."""
    return app.run(command, parser(), argv)


if __name__ == "__main__":
    raise SystemExit(main())
