"""sgan-train: train a model from a cohort."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgan_core.cli import app
from sgan_core.cli.progress import Progress, add_program_options, telling

if TYPE_CHECKING:
    import torch

    from sgan_core.cohort import Cohort
    from sgan_core.config import TrainConfig
    from sgan_core.recipes import Recipe

log = logging.getLogger("sgan_core.cli.train")  # __name__ is another with "python -m"

_EXAMPLES = """\
  sgan-train --modality ct --max-minutes 5 --output runs/first        five minutes on the built-in phantom
  sgan-train --modality ct --data prepared --labelled 8 --output runs/liver
  sgan-train --modality ct --data prepared --output runs/liver --resume
  sgan-train --modality ct --dry-run                                  what would it cost on this machine?
  sgan-train --recipe list                                            models that others have made, and how
  sgan-train --recipe lits-liver --data data/lits --output runs/liver
  torchrun --nproc-per-node 4 -m sgan_core.cli.train --modality xray --data prepared --output runs/lungs

Data come from sgan-data prepare. Training is saved every few minutes; Ctrl-C saves and exits with code 3.
The bundle for sgan-segment is OUTPUT/bundle: a student alone as soon as that has learned (it segments, but cannot
reconstruct nor judge: every case is to be reviewed), the whole model when all stages have ended. So

  sgan-train --modality ct --stage student --output runs/liver         a model to use after minutes
  sgan-train --modality ct --output runs/liver --resume                the rest, GAN, encoder and trust

--json-progress: events hello (pid, tool_version), start (output, stages, device, size, labelled: patients, images:
slices or pictures, resumed), progress (stage: prepare, student, gan, encoder or trust; done, total, message, and eta_s
of the stage), log (a line of OUTPUT/log.jsonl), validation (stage, images, dice; with labelled validation patients
only), picture (stage, images, path of a PNG; kind: samples of the GAN, or validation), bundle (path; it was written;
student_alone), then done (output, bundle), or error (message in one line, details, code as below). Progress comes at
most once a second, and when nothing else happens the last one again after ten, so that a file of these lines grows
while training lives. The first process of torchrun tells.

exit codes: 0 done, 2 wrong input or options, 3 stopped (saved; go on with --resume), 70 our own error
"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = app.Parser(
        "sgan-train",
        description="Train SemanticGAN with many images and a few labelled patients: first the student, a fast\n"
        "segmenter that learns from the labelled slices in random looks, then the GAN of images and labels,\n"
        "then the encoder that inverts it.",
        examples=_EXAMPLES,
    )
    add = p.add_argument
    add(
        "--modality",
        choices=("ct", "mr", "xray", "dermoscopy", "face"),
        help="kind of image; needed without --recipe",
    )
    add(
        "--recipe",
        metavar="NAME",
        help="data, labels and settings of a known model as defaults for what the other options leave open; without "
        "--data it says how the data are prepared; 'list' shows the recipes, FILE.yaml is one of your own",
    )
    add("--data", metavar="SRC", help="cohort.json, a prepared folder, or 'phantom' (default for ct)")
    add("--labelled", type=int, metavar="N", help="labelled patients to use (default 8, or all when fewer)")
    add("--output", type=Path, default=Path("sgan-run"), metavar="DIR", help="default: sgan-run")
    add(
        "--preset",
        choices=("tiny", "small", "paper", "official"),
        help="tiny 64 px (student 128), small 128 px (student 256), paper and official 256 px (default: tiny on a CPU, "
        "paper on a GPU)",
    )
    add(
        "--size", type=int, metavar="PX", help="the generator's image side, 32 to 512 (default: the preset's)"
    )
    add(
        "--student-size",
        type=int,
        metavar="PX",
        help="the student's image side, a multiple of --size: the resolution of masks (default: the preset's)",
    )
    add("--stage", choices=("student", "gan", "encoder", "all"), default="all", help="default: all")
    add("--max-images", type=int, metavar="N", help="real images the GAN sees in all (default: the preset's)")
    add(
        "--max-minutes",
        type=float,
        metavar="M",
        help="training time of this call, divided between the stages; preparing slices before and calibrating trust "
        "after it come on top",
    )
    add("--resume", action="store_true", help="continue the run in --output; only limits may change")
    add(
        "--init-from",
        type=Path,
        metavar="RUN|MODEL",
        help="begin with the weights of another run, e.g. at half the size, or of a model (folder, .zip or name), "
        "which also lends the networks of stages that are not trained",
    )
    add(
        "--perceptual",
        metavar="NAME",
        help="efficientnet-lite0 (default), lpips-vgg, lpips-alex, discriminator",
    )
    add("--perceptual-weights", type=Path, metavar="FILE", help="weights for lpips when offline")
    add("--seed", type=int, help="default 0")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: auto")
    add("--config", type=Path, metavar="FILE", help="YAML with settings that replace the preset's")
    add_program_options(p)
    add(
        "--stop-file",
        type=Path,
        metavar="FILE",
        help="save and stop, as by Ctrl-C, as soon as FILE exists; for programs",
    )
    add("--print-config", action="store_true", help="print all settings as YAML and stop")
    add("--dry-run", action="store_true", help="print parameters, memory and time a step, and stop")
    return p


def _recipe(args: argparse.Namespace) -> Recipe | None:
    """The recipe asked for; it gives the modality that the user left open."""
    from sgan_core.errors import InputError
    from sgan_core.recipes import load_recipe

    recipe = None if args.recipe is None else load_recipe(args.recipe)
    if recipe is not None:
        args.modality = args.modality or recipe.modality
        if args.data is None and not recipe.built_in:
            raise InputError(
                f"--recipe {args.recipe} needs --data, prepared like this:", details=recipe.steps()
            )
    if args.modality is None:
        raise InputError("--modality is needed (ct, mr, xray, dermoscopy or face), or a --recipe.")
    return recipe


def _list_recipes() -> None:
    from sgan_core.recipes import load_recipe, recipe_files

    for recipe in map(load_recipe, recipe_files()):
        settings = f"{recipe.modality}, {recipe.preset}, {recipe.labelled} labelled patients"
        sys.stdout.write(f"{recipe.name}\n  {recipe.title}\n  {', '.join(recipe.data_sets)}: {settings}\n")
        sys.stdout.writelines(f"  {line}\n" for line in recipe.expected())
    sys.stdout.write("sgan-train --recipe NAME says how its data are prepared.\n")


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


def _settings_asked_for(args: argparse.Namespace, defaults: dict[str, Any]) -> dict[str, Any]:
    """What the user said: the YAML file with the options laid over it, both over the ``defaults`` of a recipe."""
    import yaml

    from sgan_core.config import merge
    from sgan_core.errors import InputError

    settings: dict[str, Any] = {}
    if args.config is not None:
        try:
            settings = yaml.safe_load(args.config.read_text(encoding="utf-8")) or {}
        except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
            raise InputError(f"{args.config}: not readable YAML ({error})") from error
        if not isinstance(settings, dict):
            raise InputError(f"{args.config}: expected a table of settings, as --print-config prints it")
    options: dict[str, Any] = {"modality": args.modality}
    for name in ("preset", "labelled", "seed", "perceptual"):
        if getattr(args, name) is not None:
            options[name] = getattr(args, name)
    if args.size is not None:
        options["generator"] = {"size": args.size}
    if args.student_size is not None:
        options["student_train"] = {"size": args.student_size}
    if args.max_images is not None:
        options["gan"] = {"max_images": args.max_images}
    return merge(merge(defaults, settings), options)


def _new_config(asked: dict[str, Any], cohort: Cohort, device: str) -> TrainConfig:
    """The preset, what the cohort says about itself, and over both what the user asked for."""
    from dataclasses import asdict

    from sgan_core.cohort import labelled_patients
    from sgan_core.config import TrainConfig, merge, preset

    name = asked.get("preset")
    if name is None:
        name = "tiny" if device == "cpu" else "paper"
        if name == "tiny":
            log.warning(
                "No GPU and no --preset: using 'tiny' (64 px, student 128 px), made for a CPU. Good quality takes "
                "hours, see --dry-run."
            )
    sizes = [part.get("size") if isinstance(part := asked.get(key), dict) else None for key in _SIZED]
    classes = 1 + max((label.value for label in cohort.labels), default=1)
    config = preset(
        name, modality=asked["modality"], num_classes=classes, size=sizes[0], student_size=sizes[1]
    )
    available = len(labelled_patients(cohort))
    of_cohort = {
        "labels": [asdict(label) for label in cohort.labels],
        "intensity": asdict(cohort.intensity),
        "squash": cohort.squash,
        "labelled": min(8, available),
    }
    return TrainConfig.from_dict(merge(merge(config.to_dict(), of_cohort), asked))


_SIZED = ("generator", "student_train")


def _resumed_config(asked: dict[str, Any], cohort: Cohort, file: Path) -> TrainConfig:
    """The run's own config with new limits. Raises InputError when something else is to change."""
    from sgan_core.config import TrainConfig, merge
    from sgan_core.errors import InputError
    from sgan_core.training.run import read_config

    stored = read_config(file)
    if {label.value for label in stored.labels} != {label.value for label in cohort.labels}:
        names = [
            "/".join(label.name for label in labels) or "none" for labels in (stored.labels, cohort.labels)
        ]
        raise InputError(
            f"{file.parent}: this run learns {names[0]}, the cohort has {names[1]}. Resume with the run's own --data."
        )
    wanted = merge(stored.to_dict(), asked)
    changed = [name for name in _differences(stored.to_dict(), wanted) if name not in _LIMITS]
    if changed:
        raise InputError(
            f"{file.parent}: {changed[0]} differs from the run's config.yaml; on --resume only limits may change. "
            "Leave it out, or choose another --output."
        )
    return TrainConfig.from_dict(wanted)


_LIMITS = ("gan.max_images", "encoder_train.max_images", "student_train.max_images")


def _differences(first: Any, second: Any, name: str = "") -> list[str]:
    """Dotted names of the settings that differ; YAML's lists and keys count as what they stand for."""
    if isinstance(first, dict) and isinstance(second, dict):
        one, other = ({str(key): value for key, value in table.items()} for table in (first, second))
        parts = [_differences(one.get(key), other.get(key), f"{name}.{key}") for key in one | other]
        return [found for part in parts for found in part]
    if isinstance(first, list | tuple) and isinstance(second, list | tuple) and len(first) == len(second):
        return [found for pair in zip(first, second, strict=True) for found in _differences(*pair, name)]
    return [] if first == second else [name.lstrip(".")]


def _distributed(device: str, config: TrainConfig) -> None:
    """Join the other processes of torchrun."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        import torch

        from sgan_core.errors import InputError

        # Every process takes an equal part; of the encoder's batch, of its labelled half and of the rest.
        for name, batch, parts in (
            ("gan.batch", config.gan.batch, processes),
            ("encoder_train.batch", config.encoder_train.batch, 2 * processes),
            ("student_train.batch", config.student_train.batch, processes),
        ):
            if batch % parts:
                raise InputError(
                    f"{name}: {batch} images cannot be divided between {processes} processes, a multiple of "
                    f"{parts} can. Set it with --config, or start another number of processes."
                )
        torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo")
        if device == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


def command(args: argparse.Namespace) -> int:
    """Train as the options say."""
    from sgan_core.errors import InputError

    if args.recipe == "list":
        _list_recipes()
        return app.DONE
    if args.json_progress and (args.print_config or args.dry_run):
        raise InputError(
            "--json-progress: leave it out with --print-config and --dry-run, which print JSON or YAML"
        )
    if int(os.environ.get("RANK", "0")):  # of torchrun; the first process tells
        args.json_progress = False
    with telling(args, paced=True) as progress:
        return train(args, progress)


def train(args: argparse.Namespace, progress: Progress) -> int:
    """Train, or print what was asked for instead."""
    import torch
    import yaml

    from sgan_core.device import choose_device, describe
    from sgan_core.errors import InputError
    from sgan_core.terms import terms_of
    from sgan_core.training import run as training
    from sgan_core.training.loop import StopSignal
    from sgan_core.training.origin import read_origin
    from sgan_core.training.parallel import rank

    stop = StopSignal(args.stop_file)
    progress.stage("prepare")
    device = choose_device(args.device)
    recipe = _recipe(args)
    cohort = _cohort(args)
    if cohort.modality != args.modality:
        log.warning("the cohort is %s, --modality says %s.", cohort.modality, args.modality)
    stored = args.output / "config.yaml"
    # A stage may be trained for the first time in a run that other stages have begun.
    begun = {file.stem for file in (args.output / "checkpoints").glob("*.pt")}
    again = args.stage != "all" and bool(begun) and args.stage not in begun
    resume = (args.resume or again) and stored.is_file()
    # A run that goes on has its recipe in its own settings.
    asked = _settings_asked_for(args, {} if resume or recipe is None else recipe.defaults())
    if recipe is not None and recipe.labels != (found := tuple(label.name for label in cohort.labels)):
        names = ", ".join(found) or "no labels"
        log.warning("the recipe is for %s, the cohort has %s.", ", ".join(recipe.labels), names)
    config = _resumed_config(asked, cohort, stored) if resume else _new_config(asked, cohort, device.type)
    if args.print_config:
        sys.stdout.write(yaml.safe_dump(config.to_dict(), sort_keys=False))
        return app.DONE
    if args.dry_run:
        sys.stdout.write(json.dumps(_cost(config, device), indent=2) + "\n")
        return app.DONE
    if args.max_minutes is not None and args.max_minutes <= 0:
        raise InputError(f"--max-minutes {args.max_minutes}: give a positive number of minutes")
    _distributed(device.type, config)
    told: dict[str, Any] = {"on_progress": progress, "on_stage": progress.stage, "on_event": progress.event}
    origin = read_origin(args.init_from) if args.init_from else None
    if origin is not None and (notice := terms_of(origin.facts).notice):
        log.warning("%s: %s.", origin.name, notice)
    run = training.Run(
        args.output,
        device,
        max_minutes=args.max_minutes,
        origin=origin,
        perceptual_weights=args.perceptual_weights,
        should_stop=lambda: bool(stop),
        **(told if rank() == 0 else {}),
    )
    with stop.listening(), training.claimed(run):
        config = training.start(run, config, cohort, resume=resume)
        px = f"{config.generator.size} px (student {config.student_size} px)"
        log.info("Training %s at %s on %s into %s", config.preset, px, describe(device), args.output)
        stages = training.STAGES if args.stage == "all" else (args.stage,)
        result = training.train(run, config, cohort, stages=stages, resumed=resume)
    bundle = None if result == args.output else str(result.absolute())
    progress.event("done", output=str(args.output.absolute()), bundle=bundle)
    if rank() == 0 and not args.json_progress:
        sys.stdout.write(f"{result}\n")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return app.DONE


def _cost(config: TrainConfig, device: torch.device) -> dict[str, float | None]:
    from sgan_core.training.cost import cost

    found = cost(config, device)
    gan, encoder, student = config.gan, config.encoder_train, config.student_train
    steps = {
        "gan": gan.max_images / gan.batch,
        "encoder": encoder.max_images / encoder.batch,
        "student": student.max_images / student.batch,
    }
    found |= {f"{name}_hours": n * found[f"{name}_seconds_per_step"] / 3600 for name, n in steps.items()}
    # JSON has no NaN: what cannot be measured here is null.
    return {name: float(f"{value:.4g}") if math.isfinite(value) else None for name, value in found.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of sgan-train."""
    return app.run(command, parser(), argv)


if __name__ == "__main__":
    raise SystemExit(main())
