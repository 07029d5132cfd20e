"""sgan-train: train a model from a cohort."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgan_core.cli import app

if TYPE_CHECKING:
    from sgan_core.cohort import Cohort
    from sgan_core.config import TrainConfig

log = logging.getLogger(__name__)

_EXAMPLES = """\
  sgan-train --modality ct --max-minutes 5 --output runs/first        five minutes on the built-in phantom
  sgan-train --modality ct --data prepared --labelled 8 --output runs/liver
  sgan-train --modality ct --data prepared --output runs/liver --resume
  sgan-train --modality ct --dry-run                                  what would it cost on this machine?
  torchrun --nproc-per-node 4 -m sgan_core.cli.train --modality xray --data prepared --output runs/lungs

Data come from sgan-data prepare. Training is saved every few minutes; Ctrl-C saves and exits with code 3.
The bundle for sgan-segment is OUTPUT/bundle.
"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = app.Parser(
        "sgan-train",
        description="Train SemanticGAN with many images and a few labelled patients: first the GAN of images and\n"
        "labels, then the encoder that inverts it.",
        examples=_EXAMPLES,
    )
    p.add_argument("--modality", required=True, choices=("ct", "xray", "dermoscopy", "face"))
    p.add_argument(
        "--data", metavar="SRC", help="cohort.json, a prepared folder, or 'phantom' (default for ct)"
    )
    p.add_argument(
        "--labelled", type=int, metavar="N", help="labelled patients to use (default 8, or all when fewer)"
    )
    p.add_argument("--output", type=Path, default=Path("sgan-run"), metavar="DIR", help="default: sgan-run")
    p.add_argument(
        "--preset",
        choices=("tiny", "small", "paper", "official"),
        help="tiny 64 px, small 128 px, paper and official 256 px (default: tiny on a CPU, paper on a GPU)",
    )
    p.add_argument("--size", type=int, metavar="PX", help="image side, 32 to 512 (default: the preset's)")
    p.add_argument("--stage", choices=("gan", "encoder", "all"), default="all", help="default: all")
    p.add_argument(
        "--max-images", type=int, metavar="N", help="real images the GAN sees in all (default: the preset's)"
    )
    p.add_argument(
        "--max-minutes", type=float, metavar="M", help="wall time of this call, divided between the stages"
    )
    p.add_argument("--resume", action="store_true", help="continue the run in --output")
    p.add_argument("--init-from", type=Path, metavar="DIR", help="start from a run at half the size")
    p.add_argument(
        "--perceptual",
        metavar="NAME",
        help="efficientnet-lite0 (default), lpips-vgg, lpips-alex, discriminator",
    )
    p.add_argument("--perceptual-weights", type=Path, metavar="FILE", help="weights for lpips when offline")
    p.add_argument("--seed", type=int, help="default 0")
    p.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: auto")
    p.add_argument("--config", type=Path, metavar="FILE", help="YAML with settings that replace the preset's")
    p.add_argument("--print-config", action="store_true", help="print all settings as YAML and stop")
    p.add_argument(
        "--dry-run", action="store_true", help="print parameters, memory and time a step, and stop"
    )
    return p


def _cohort(args: argparse.Namespace) -> Cohort:
    from sgan_core.cohort import load_cohort
    from sgan_core.errors import InputError
    from sgan_core.phantom import phantom_cohort

    if args.data is None and args.modality != "ct":
        raise InputError(
            f"--modality {args.modality} needs --data. 'sgan-data list' shows the public data sets, "
            "'sgan-data prepare custom --help' how to use your own images."
        )
    if args.data is None:
        log.info("No --data: training on the built-in phantom patients.")
    if args.data in (None, "phantom"):
        return phantom_cohort(labelled=max(8, args.labelled or 0))
    return load_cohort(args.data)


def _config(args: argparse.Namespace, cohort: Cohort, device: str) -> TrainConfig:
    from dataclasses import asdict

    import yaml

    from sgan_core.config import TrainConfig, merge, preset
    from sgan_core.errors import InputError

    name = args.preset
    if name is None:
        name = "tiny" if device == "cpu" else "paper"
        if name == "tiny":
            log.info(
                "No GPU and no --preset: using 'tiny' (64 px), made for a CPU. Quality needs hours; see docs."
            )
    classes = 1 + max((label.value for label in cohort.labels), default=0)
    config = preset(name, modality=args.modality, num_classes=max(2, classes), size=args.size)
    changes: dict[str, Any] = {"labels": [asdict(label) for label in cohort.labels]}
    changes["intensity"] = asdict(cohort.intensity)
    available = len({case.patient for case in cohort.cases if case.labelled_rank is not None})
    changes["labelled"] = args.labelled if args.labelled is not None else min(8, available)
    if args.seed is not None:
        changes["seed"] = args.seed
    if args.perceptual:
        changes["perceptual"] = args.perceptual
    if args.config is not None:
        try:
            own = yaml.safe_load(args.config.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"{args.config}: not readable YAML ({error})") from error
        if not isinstance(own, dict):
            raise InputError(f"{args.config}: expected a table of settings, as --print-config prints it")
        changes = merge(changes, own)
    if args.max_images is not None:
        changes = merge(changes, {"gan": {"max_images": args.max_images}})
    return TrainConfig.from_dict(merge(config.to_dict(), changes))


def _distributed(device: str) -> None:
    """Join the other processes of torchrun."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        import torch

        torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo")
        if device == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


def command(args: argparse.Namespace) -> int:
    """Train as the options say."""
    import torch
    import yaml

    from sgan_core.cli.progress import Progress
    from sgan_core.device import choose_device, describe
    from sgan_core.errors import InputError
    from sgan_core.training import run as training
    from sgan_core.training.loop import StopSignal

    device = choose_device(args.device)
    cohort = _cohort(args)
    if cohort.modality != args.modality:
        log.warning(f"the cohort is {cohort.modality}, --modality says {args.modality}.")
    config = _config(args, cohort, device.type)
    if args.print_config:
        sys.stdout.write(yaml.safe_dump(config.to_dict(), sort_keys=False))
        return 0
    if args.dry_run:
        sys.stdout.write(json.dumps(_cost(config, device), indent=2) + "\n")
        return 0
    if args.max_minutes is not None and args.max_minutes <= 0:
        raise InputError(f"--max-minutes {args.max_minutes}: give a positive number of minutes")
    _distributed(device.type)
    stop = StopSignal()
    with Progress() as progress, stop.listening():
        run = training.Run(
            args.output,
            device,
            max_minutes=args.max_minutes,
            init_from=args.init_from,
            perceptual_weights=args.perceptual_weights,
            on_progress=progress,
            should_stop=lambda: bool(stop),
        )
        config = training.start(run, config, resume=args.resume)
        log.info(
            f"Training {config.preset} at {config.generator.size} px on {describe(device)}; {args.output}"
        )
        stages = training.STAGES if args.stage == "all" else (args.stage,)
        result = training.train(run, config, cohort, stages=stages)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.stdout.write(f"{result}\n")
    return 0


def _cost(config: TrainConfig, device: Any) -> dict[str, float]:
    from sgan_core.training.run import cost

    found = cost(config, device)
    gan = config.gan.max_images / config.gan.batch * found["gan_seconds_per_step"]
    encoder = config.encoder_train.max_images / config.encoder_train.batch * found["encoder_seconds_per_step"]
    found |= {"gan_hours": gan / 3600, "encoder_hours": encoder / 3600}
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of sgan-train."""
    return app.run(command, parser(), argv)


if __name__ == "__main__":
    raise SystemExit(main())
