"""sgan-segment: segment images with a trained model."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgan_core.cli import app
from sgan_core.cli.cancel import cancelled_at_eof
from sgan_core.cli.progress import Progress, add_program_options, telling
from sgan_core.files import FINISHED, remove_unfinished

if TYPE_CHECKING:
    from sgan_core.batch import BatchResult
    from sgan_core.bundle import Bundle

log = logging.getLogger("sgan_core.cli.segment")  # __name__ is another with "python -m"

_MOST_SAID = 20  # files left out; run.json has all

_EXAMPLES = """\
  sgan-segment scan.nii.gz --model phantom-ct-liver --output out
  sgan-segment scans/ --model runs/liver/bundle --output out --quality careful
  sgan-segment study/ --model phantom-ct-liver --output out --format dicom-seg --series 4
  sgan-segment xray.png --model lungs.zip --output out --quality fast --device cpu
  sgan-segment scan.nii.gz --model phantom-ct-liver --output out --region -120,40 --largest-component

Writes OUTPUT/<case>_seg.nii.gz (_seg.seg.nrrd with --format nrrd, _seg.dcm with dicom-seg, _seg.png for
pictures), OUTPUT/run.json with volumes in mL and reconstruction errors, and OUTPUT/report.html. In a folder of
images or of DICOM folders, every one is segmented; one that cannot be read does not stop the others. Of one DICOM
study only the series named with --series is segmented. With a model of both lungs and the heart, a chest X-ray
also gets its cardiothoracic ratio. Research use only, not a medical device.

--region takes heights in mm towards the head, the third number of an entry of slice_centres_mm in run.json and the
S coordinate of 3D Slicer. The label volume still covers the whole scan, and slices are numbered from its first one
at the feet (first_slice in run.json is the first that was segmented). Scans that do not fit into memory: --batch 1,
--region. --save-reconstruction adds OUTPUT/<case>_recon.nii.gz (.nrrd with --format nrrd, .png for pictures).

Trust is calibrated for the student's masks at each --quality and for --encoder-only. With --steps or a named
--reconstruction there is no figure, and the case is to be reviewed.

--json-progress: events hello (pid, tool_version), start (labels with rgb, code and terminology; restriction, of a
model that has one), progress, warning, case (its part of run.json), then done, or error (message in one line,
details, code as below).

exit codes: 0 done, 1 some inputs failed, 2 wrong input or options, 3 cancelled, 70 our own error
"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = app.Parser(
        "sgan-segment",
        description="Segment volumes (DICOM, NIfTI, NRRD, MetaImage) or pictures (PNG, JPEG, BMP, TIFF), one by\n"
        "one or a folder of them. The model's student draws the mask, and inverting the model's generator says\n"
        "how far to trust it. A model that is a student alone segments; it cannot reconstruct nor judge.",
        examples=_EXAMPLES,
    )
    add = p.add_argument
    add(
        "input", nargs="+", type=Path, metavar="INPUT", help="image files, DICOM folders, or folders of these"
    )
    add(
        "--model",
        required=True,
        metavar="BUNDLE",
        help="a bundle folder or .zip, or a name of sgan-bundle list",
    )
    add("--output", required=True, type=Path, metavar="DIR", help="made when it does not exist")
    add(
        "--quality",
        choices=("fast", "standard", "careful"),
        default="standard",
        help="fast: one pass; standard: every mask is checked by inversion; careful: from two starts with 2.5 "
        "times the steps (default: standard)",
    )
    add("--encoder-only", action="store_true", help="the encoder's mask, the paper's \"Ours-NO\"")
    add("--steps", type=int, metavar="N", help="optimisation steps of a slice (default: the quality's)")
    add(
        "--reconstruction",
        choices=("auto", "paper", "mind", "map-mind"),
        default="auto",
        help="objective of inversion: paper = perceptual + squared error; mind = self-similarities; map-mind = the "
        "same with a free brightness curve, for another modality. Naming one gives the mask of inversion alone, "
        "as in the paper. Default: auto, chosen for each case, and the mask is the student's if there is one",
    )
    add(
        "--format",
        choices=("nifti", "nrrd", "dicom-seg"),
        default="nifti",
        help="of label volumes; dicom-seg needs DICOM input (default: nifti)",
    )
    add(
        "--series",
        metavar="ID",
        help="which series of a DICOM folder that holds several: its number, description or UID",
    )
    add(
        "--resample-gaps",
        action="store_true",
        help="interpolate missing slices and straighten gantry tilt of DICOM series instead of refusing them",
    )
    add(
        "--probabilities",
        action="store_true",
        help="also write each label's probability: volumes of 0 to 1, pictures of 0 to 255",
    )
    add(
        "--save-reconstruction",
        action="store_true",
        help="also write what the generator makes of the image, on its grid: volumes in its units (HU for CT), "
        "pictures in 8 bits",
    )
    add(
        "--region",
        type=_region,
        metavar="FROM,TO",
        help="segment only slices whose centre lies between these two, in mm towards the head, e.g. -120,40 "
        "(default: all)",
    )
    add(
        "--largest-component",
        action=argparse.BooleanOptionalAction,
        help="of each label keep only the largest connected piece; --no-largest-component: keep all pieces "
        "(default: the largest one of organs that were one piece in the patients that the model learned from)",
    )
    add("--no-report", action="store_true", help="do not write report.html")
    add(
        "--redo",
        action="store_true",
        help="compute again what is finished in OUTPUT with the same model, options and image (default: keep it)",
    )
    add("--batch", type=int, metavar="N", help="slices optimised together (default: the model's)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: auto")
    add_program_options(p)
    add("--cancel-on-eof", action="store_true", help="stop when stdin ends, for programs")
    return p


def _region(text: str) -> tuple[float, float]:
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not FROM,TO in mm, e.g. -120,40") from None
    return first, second


def command(args: argparse.Namespace) -> int:
    """Segment as the options say."""
    with telling(args) as progress:
        with cancelled_at_eof(_clearing(args.output)) if args.cancel_on_eof else nullcontext():
            result = segment(args, progress)
        progress.event("done", output=str(args.output), failed=result.failed)
    if not args.json_progress:
        with app.printing():
            _print_table(result.record["cases"])
    return app.PARTLY_FAILED if result.failed else app.DONE


def _clearing(output: Path) -> Callable[[], None]:
    """What leaves nothing half-written in a folder when the process ends at once, not the folder if it is new."""
    new = not output.exists()

    def clear() -> None:
        remove_unfinished()
        if new:
            with suppress(OSError):  # not made yet, or finished cases are in it
                (output / FINISHED).rmdir()
            with suppress(OSError):
                output.rmdir()

    return clear


def segment(args: argparse.Namespace, progress: Progress) -> BatchResult:
    """Load the model and segment the inputs, telling how it goes."""
    from sgan_core.batch import BatchConfig, run_batch
    from sgan_core.bundle import load_bundle
    from sgan_core.device import choose_device, describe
    from sgan_core.inputs import find_inputs
    from sgan_core.labelling import SegmentConfig
    from sgan_core.terms import terms_of

    found = find_inputs(args.input)
    inputs = found.inputs
    device = choose_device(args.device)
    bundle = load_bundle(args.model, device)
    config = BatchConfig(
        SegmentConfig(
            quality=args.quality,
            steps=args.steps,
            reconstruction=args.reconstruction,
            batch=args.batch,
            encoder_only=args.encoder_only,
            region=args.region,
            largest_component=args.largest_component,
        ),
        args.format,
        args.series,
        args.resample_gaps,
        probabilities=args.probabilities,
        report=not args.no_report,
        save_reconstruction=args.save_reconstruction,
    )
    progress.event("start", inputs=len(inputs), **_described(bundle))
    log.info("%s on %s", bundle.name, describe(device))
    if notice := terms_of(bundle.facts).notice:
        log.info("Terms of use of %s: %s", bundle.name, notice)
    for one in found.left_out[:_MOST_SAID]:
        log.warning("left out: %s %s", one.path, one.reason)
        progress.event("warning", case="", message=f"left out: {one.path} {one.reason}")
    if len(found.left_out) > _MOST_SAID:
        log.warning("left out: %d more, see left_out in run.json", len(found.left_out) - _MOST_SAID)
    result = run_batch(
        inputs,
        bundle,
        args.output,
        config,
        options={name: _plain(value) for name, value in vars(args).items()},
        left_out=found.left_out,
        redo=args.redo,
        on_progress=progress,
        on_case=lambda case: _tell(case, progress),
    )
    kept = sum(case.get("skipped", False) for case in result.record["cases"])
    if kept:
        log.info(
            "kept %d of %d cases, finished before with the same model, options and image; --redo computes them again",
            kept,
            len(inputs),
        )
    return result


def _described(bundle: Bundle) -> dict[str, Any]:
    from sgan_core.device import describe
    from sgan_core.imaging.terminology import slicer_terminology
    from sgan_core.terms import terms_of

    labels = [
        {
            "name": label.name,
            "value": label.value,
            "rgb": list(label.rgb),
            "code": label.code,
            "terminology": slicer_terminology(label),
        }
        for label in bundle.config.labels
    ]
    told = {"model": bundle.name, "device": describe(bundle.device), "labels": labels}
    notice = terms_of(bundle.facts).notice
    return told | {"restriction": notice} if notice else told


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _tell(case: dict[str, Any], progress: Progress) -> None:
    for warning in case["warnings"]:
        log.warning("%s: %s", case["case"], warning)
        progress.event("warning", case=case["case"], message=warning)
    if case["status"] == "failed":
        log.error("%s", case["error"])
    progress.event("case", **case)


def _print_table(cases: list[dict[str, Any]]) -> None:
    from sgan_core.cardiothoracic import ratio_text
    from sgan_core.evaluation.tables import Table, print_table

    header: tuple[str, ...] = ("case", "result", "trust", "label", "volume (mL)", "voxels", "seconds")
    ratios = [case.get("cardiothoracic_ratio") for case in cases]
    if any(ratios):
        header = (*header, "cardiothoracic ratio")
    rows: list[tuple[str, ...]] = []
    for case, ratio in zip(cases, ratios, strict=True):
        chest = (ratio_text(ratio) if ratio else "",) if any(ratios) else ()
        if case["status"] == "failed":  # why: in the error above and in run.json
            rows.append((case["case"], "failed", "", "", "", "", "", *chest))
            continue
        for label in case["labels"]:
            volume = "" if label["volume_ml"] is None else f"{label['volume_ml']:.1f}"
            figures = (volume, f"{label['voxels']:,}", f"{case['seconds']:.1f}", *chest)
            rows.append((case["case"], case["output"], case["trust"]["status"], label["name"], *figures))
    print_table(Table("", header, tuple(rows), numbers_from=4))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of sgan-segment."""
    return app.run(command, parser(), app.with_negative_values(argv, "--region"))


if __name__ == "__main__":
    raise SystemExit(main())
