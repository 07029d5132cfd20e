"""A training run: its folder, its stages in order, the bundle at the end."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from sgan_core import __version__
from sgan_core.bundle import GENERATOR, load_bundle, save_bundle
from sgan_core.cohort import BUILT_IN, Cohort, labelled_patients
from sgan_core.config import SCANS, TrainConfig
from sgan_core.curvature import measure_curvature
from sgan_core.device import describe
from sgan_core.errors import Cancelled, InputError
from sgan_core.files import replacing
from sgan_core.networks.discriminators import ImageDiscriminator, PairDiscriminator
from sgan_core.networks.generator import Generator
from sgan_core.networks.perceptual import Perceptual, make_perceptual
from sgan_core.networks.segmenter import make_student
from sgan_core.pieces import ONE_PIECE, in_one_piece
from sgan_core.terms import FREE, Terms
from sgan_core.training import evaluate, records
from sgan_core.training.calibrate import trust_facts
from sgan_core.training.data import CACHE_FOLDER, SliceStore, slices_of_model
from sgan_core.training.encoder import EncoderTrainer, fingerprint, make_encoder
from sgan_core.training.gan import GanTrainer
from sgan_core.training.loop import Limits, RunLog, fit, load_checkpoint, save_checkpoint
from sgan_core.training.origin import Origin, adopt, adopt_student, keep_terms, take_over, terms_of_run
from sgan_core.training.parallel import rank, world_size
from sgan_core.training.student import StudentTrainer

logger = logging.getLogger(__name__)

OnProgress = Callable[[int, int, str], None]
STAGES = ("student", "gan", "encoder")  # the student needs no generator, and is of use while that learns
LABEL_TIE = 0.02  # agreement with the judge moves by that much between neighbouring evaluations, by chance
_COHORT_BYTES = 1 << 16
_COHORT = "cohort.json"  # in the run's folder: name and fingerprint of the cohort it learns from
JUDGE_IMAGES = 24_000  # seen by the judge of generated labels
_FEW_EMPTY = 0.05  # of a scan's slices: fewer without the organ teach little
_JUDGE_SHARE = 0.1  # of stage 1's time, at most


@dataclass(frozen=True)
class Run:
    """Where a run writes, what ends it, whom it tells."""

    folder: Path
    device: torch.device
    max_minutes: float | None = None
    origin: Origin | None = None  # weights to begin with
    perceptual_weights: Path | None = None
    cache: Path | None = None  # prepared slices; the cohort's if it has some, else inside the folder
    on_progress: OnProgress = lambda done, total, message: None
    on_stage: Callable[[str, float | None], None] = lambda name, ends: (
        None
    )  # ends: time.monotonic() of its end
    on_event: Callable[..., None] = lambda name, **facts: None  # those of sgan-train --json-progress
    should_stop: Callable[[], bool] = lambda: False

    @property
    def checkpoints(self) -> Path:
        """The folder of the resumable states."""
        return self.folder / "checkpoints"


@contextmanager
def claimed(run: Run) -> Iterator[None]:
    """Keep processes other than those of the same torchrun out of a run's folder.

    Raises InputError when one is in, and for a folder that cannot be written.
    """

    def taken() -> None:
        raise InputError(
            f"{run.folder}: another sgan-train is at work there. Wait for it, stop it, or choose another --output."
        )

    if rank():
        yield
        return
    with ExitStack() as held:
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(records.alone(run.folder, taken))
        except OSError as error:
            raise _not_writable(run.folder, error) from error
        yield


def _not_writable(folder: Path, error: OSError) -> InputError:
    return InputError(f"{folder}: cannot write there ({error.strerror}). Choose another --output.")


def start(run: Run, config: TrainConfig, cohort: Cohort, *, resume: bool) -> TrainConfig:
    """Claim the run's folder and write its config; on resume, read it back and take over the new limits only.

    Raises InputError for a folder that holds another run, and on resume for another cohort than the run's.
    """
    file = run.folder / "config.yaml"
    if resume and file.is_file():
        stored = read_config(file)
        _require_cohort(run.folder, cohort)
        gan = replace(stored.gan, max_images=config.gan.max_images)
        encoder = replace(stored.encoder_train, max_images=config.encoder_train.max_images)
        student = replace(stored.student_train, max_images=config.student_train.max_images)
        return replace(stored, gan=gan, encoder_train=encoder, student_train=student)
    if not resume and run.checkpoints.is_dir() and any(run.checkpoints.iterdir()):
        raise InputError(
            f"{run.folder}: holds a training run. Pass --resume to continue it, or another --output."
        )
    if rank() == 0:
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
            with replacing(file) as part:
                part.write_text(yaml.safe_dump(config.to_dict(), sort_keys=False), encoding="utf-8")
            with replacing(run.folder / _COHORT) as part:
                part.write_text(json.dumps(_identity(cohort), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise _not_writable(run.folder, error) from error
    return config


def _require_cohort(folder: Path, cohort: Cohort) -> None:
    """Raises InputError when the run in a folder was started with another cohort."""
    file = folder / _COHORT
    if not file.exists():  # a run of an earlier version
        return
    try:
        if not file.is_file() or file.stat().st_size > _COHORT_BYTES:
            raise ValueError("no such small file as is written there")
        stored = json.loads(file.read_text(encoding="utf-8"))
        name, digest = str(stored["name"])[:100], stored["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{file}: damaged ({error}). Choose another --output.") from error
    if digest == _identity(cohort)["sha256"]:
        return
    what = f"{cohort.name!r} is another"
    if name == cohort.name:
        what = f"this {name!r} has other cases, patients, splits or labels"
    raise InputError(
        f"{folder}: this run was started with the cohort {name!r}, {what}. Resume with the run's own --data, or "
        "choose another --output."
    )


def _identity(cohort: Cohort) -> dict[str, str]:
    """Name and fingerprint of a cohort: what is learned from whom, wherever the files lie.

    Pixels do not enter, but names and sizes of the files do: hospitals number their patients alike.
    """
    cases = [
        (
            case.id,
            case.patient,
            case.split,
            case.labelled_rank,
            case.empty,
            _file(case.image),
            _file(case.label),
        )
        for case in cohort.cases
    ]
    labels = [(label.value, label.name, label.stored) for label in cohort.labels]
    facts = [cohort.name, cohort.modality, asdict(cohort.intensity), cohort.squash, labels, cases]
    return {"name": cohort.name, "sha256": hashlib.sha256(json.dumps(facts).encode()).hexdigest()}


def _file(file: str | None) -> tuple[str, int] | None:
    """Name and size in bytes; 0 for a folder of slices, a built-in patient, and a file that is not there."""
    if file is None:
        return None
    path = Path(file)
    return path.name, path.stat().st_size if path.is_file() else 0


def read_config(file: Path) -> TrainConfig:
    """Read a config.yaml. Raises InputError when it is damaged or has unknown settings."""
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file}: not a readable config ({error})") from error
    if not isinstance(values, dict):
        raise InputError(f"{file}: expected a table of settings")
    return TrainConfig.from_dict(values)


def train(
    run: Run,
    config: TrainConfig,
    cohort: Cohort,
    *,
    stages: tuple[str, ...] = STAGES,
    resumed: bool = False,
) -> Path:
    """Train the stages and write ``bundle/``; returns its folder, or the run's while it would be empty.

    The bundle is a student alone from the end of that stage on, and the whole model once there is an encoder. The
    time limit is divided between the stages in the config's proportions. Raises Cancelled when the user stopped
    (everything is saved), InputError for what the user can mend.
    """
    labelled_patients(cohort, config.labelled)  # an error now, not after the slices have been prepared
    run.on_stage("prepare", None)
    store = slices_of_model(
        cohort,
        config,
        run.cache or _cache_of(cohort) or run.folder / CACHE_FOLDER,
        on_progress=_stoppable(run, "stopped while preparing slices; the next call goes on from there"),
    )
    run.on_event(
        "start",
        output=str(run.folder.absolute()),
        stages=[stage for stage in STAGES if stage in stages],
        device=describe(run.device),
        size=config.generator.size,
        labelled=config.labelled,
        images=len(store.images),
        resumed=resumed,
    )
    if rank() == 0:
        if "student" in stages:
            _warn_of_few_empty_slices(store, config)
        keep_terms(run.folder, _terms_of_data(cohort), run.origin)
        if run.origin:
            adopt(run.origin, config, run.checkpoints)
            if "student" not in stages:
                adopt_student(run.origin, config, run.checkpoints)
    began = time.monotonic()  # with the slices at hand: preparing them is no training
    log = RunLog(run.folder, partial(run.on_event, "log"))
    trainings = {"student": _train_student, "gan": _train_gan, "encoder": _train_encoder}
    sizes = {"student": config.student_size}
    taught, whole = (run.checkpoints / f"{stage}_best.pt" for stage in ("student", "encoder"))
    used = 0.0
    for stage, share in _shares(config, stages).items():
        used += share
        deadline = None if run.max_minutes is None else began + used * run.max_minutes * 60.0
        run.on_stage(stage, deadline)
        trainings[stage](run, config, store.at(sizes.get(stage, config.generator.size)), log, deadline)
        if stage == "student" and not whole.exists():
            _write_bundle(run, config, store)  # to be used while the GAN learns
    if not (taught.exists() or whole.exists()):
        return run.folder
    return _write_bundle(run, config, store)


def _shares(config: TrainConfig, stages: tuple[str, ...]) -> dict[str, float]:
    """The part of the time that each of the asked stages has, in their order; together 1."""
    left = max(0.0, 1.0 - config.gan_share - config.encoder_share)
    shares = {"student": left, "gan": config.gan_share, "encoder": config.encoder_share}
    asked = {stage: shares[stage] for stage in STAGES if stage in stages}
    whole = sum(asked.values())
    return {stage: share / whole if whole else 1.0 / len(asked) for stage, share in asked.items()}


def _cache_of(cohort: Cohort) -> Path | None:
    """Where `sgan-data prepare --cache` has put the cohort's slices."""
    folder = cohort.root and cohort.root / CACHE_FOLDER
    return folder if folder and folder.is_dir() else None


def _limits(config: TrainConfig, max_images: int, deadline: float | None, evaluate_images: int) -> Limits:
    return Limits(max_images, deadline, config.checkpoint_minutes * 60.0, evaluate_images)


def _train_gan(run: Run, config: TrainConfig, store: SliceStore, log: RunLog, deadline: float | None) -> None:
    checkpoint, best_file = run.checkpoints / "gan.pt", run.checkpoints / "gan_best.pt"
    state = load_checkpoint(checkpoint) if checkpoint.exists() else None
    start = run.origin.gan if state is None and run.origin else None
    grown = bool(state["grown"]) if state else start is not None and _is_smaller(start, config)
    trainer = GanTrainer(config, store, run.device, grown=grown)
    if state is not None:
        trainer.load_state_dict(state)
    elif start is not None:
        trainer.init_from(start)
    watch: evaluate.GanWatch | None = None
    judged = -1

    def judge() -> dict[str, float]:
        nonlocal watch, judged
        if rank():
            return {}
        watch = watch or evaluate.GanWatch(config, store, run.device, run.folder / "samples", judging)
        found = watch(trainer.ema, trainer.images)
        _tell_picture(run, "gan", "samples", trainer.images)
        judged = trainer.images
        if trainer.fade >= 1.0:
            best.offer(trainer.ema, trainer.images, found)
        return found

    judging = _label_judge(run, config, store, deadline)
    best = _BestGenerator(best_file, fingerprint(judging))
    limits = _limits(config, config.gan.max_images, deadline, config.evaluate_images)
    progress = _named(run.on_progress, "gan")
    reason = fit(
        trainer, checkpoint, limits, log, evaluate=judge, should_stop=run.should_stop, on_progress=progress
    )
    if reason == "stopped":
        raise Cancelled(f"stopped after {trainer.images} images; continue with --resume")
    if judged != trainer.images:
        log.write("gan", trainer.images, judge())


def _is_smaller(start: dict[str, Any], config: TrainConfig) -> bool:
    """Whether weights are of a generator without this one's highest resolution, which D_r is to fade in."""
    block = f"synthesis.blocks.{config.generator.size}."
    return config.gan.fade_images > 0 and not any(name.startswith(block) for name in start["ema"])


def _label_judge(run: Run, config: TrainConfig, store: SliceStore, deadline: float | None) -> nn.Module:
    """A small segmenter taught by the labelled slices alone; kept in the run, so it is trained once.

    A call with little time leaves it half taught, and the next one goes on.
    """
    file = run.checkpoints / "judge.pt"
    images = min(JUDGE_IMAGES, config.student_train.max_images)
    small: dict[str, Any] = {
        "size": None,
        "growth": {},
        "network": "residual",
    }  # it reads what the generator draws
    taught = replace(config.student_train, max_images=images, negative_share=0.0, **small)
    trainer = _student_trainer(run, replace(config, student_train=taught), store)
    if file.exists():
        state = load_checkpoint(file)
        if "judge" in state:  # a run of an earlier version kept no more than its weights
            trainer.average.load_state_dict(state["judge"])
            return trainer.average
        trainer.load_state_dict(state)
    first = trainer.images

    def save() -> None:
        if rank() == 0 and trainer.images > first:
            save_checkpoint(trainer.state_dict(), file)

    now = time.monotonic()
    # Several processes must stop at the same step, so their judge is not cut short.
    limited = deadline is not None and world_size() == 1
    limit = now + _JUDGE_SHARE * (deadline - now) if limited and deadline is not None else math.inf
    while trainer.images < images and (moment := time.monotonic()) < limit:
        if limited:
            trainer.schedule.time_share = (moment - now) / (limit - now)
        if run.should_stop():
            save()
            raise Cancelled("stopped while the judge of generated labels learned; continue with --resume")
        trainer.step()
        run.on_progress(trainer.images, images, "a judge of generated labels learns")
    save()
    return trainer.average


class _BestGenerator:
    """The generator to keep, in ``gan_best.pt``: label quality decides, realism where labels tie.

    A generator whose agreement with the judge lies within ``LABEL_TIE`` of the highest ever seen takes the place of
    one with a higher Frechet distance. The tie is measured from the highest, not from the one that is kept: a
    chain of ties would lead from good labels to bad ones. Figures of another ``judge`` do not compare: they are
    forgotten, and the next generator is kept.
    """

    def __init__(self, file: Path, judge: str) -> None:
        self.file, self.judge = file, judge
        state = load_checkpoint(file) if file.exists() else {}
        if state.get("judge", judge) != judge:  # earlier versions did not say whose
            state = {}
        self.figures: dict[str, float] | None = state.get("figures")
        self.highest = float(state.get("highest", _agreement(self.figures or {})))

    def offer(self, generator: nn.Module, images: int, figures: dict[str, float]) -> None:
        """Keep a generator, with its figures of ``GanWatch``, when it is better than the one that is kept."""
        highest = max(self.highest, _agreement(figures))
        if self.figures is None or self._better(figures, self.figures, highest):
            self.figures = figures
            kept = {"generator": generator.state_dict(), "images": images, "figures": figures}
        elif highest > self.highest:
            kept = load_checkpoint(self.file)
        else:
            return
        self.highest = highest
        save_checkpoint(kept | {"highest": highest, "judge": self.judge}, self.file)

    @staticmethod
    def _better(found: dict[str, float], best: dict[str, float], highest: float) -> bool:
        if _agreement(found) < highest - LABEL_TIE:
            return False
        return _agreement(best) < highest - LABEL_TIE or found["frechet"] < best["frechet"]


def _agreement(figures: dict[str, float]) -> float:
    return figures.get("label_agreement", 0.0)


def trained_generator(run: Run, config: TrainConfig) -> tuple[Generator, dict[str, Any]]:
    """The best generator of stage 1 so far, or the last one, with ``images`` it saw and its ``figures``."""
    best_file, last_file = run.checkpoints / "gan_best.pt", run.checkpoints / "gan.pt"
    generator = Generator(config.generator)
    if best_file.exists():
        state = load_checkpoint(best_file)
        facts = {"images": int(state["images"]), "figures": state["figures"]}
        generator.load_state_dict(state["generator"])
    else:
        state = load_checkpoint(last_file)
        facts = {"images": int(state["step"]) * config.gan.batch, "figures": {}}
        generator.load_state_dict(state["ema"])
    generator.update_mean_w(seed=config.seed)
    return generator.eval().requires_grad_(False), facts


def _perceptual(run: Run, config: TrainConfig) -> Perceptual:
    discriminator = None
    if config.perceptual == "discriminator":
        state = _last_gan(run)
        discriminator = ImageDiscriminator(
            config.image_discriminator,
            image_channels=config.generator.image_channels,
            grown=bool(state.get("grown")),
        )
        discriminator.load_state_dict(state["image_d"])
    return make_perceptual(
        config.perceptual, weights=run.perceptual_weights, image_discriminator=discriminator
    )


def _train_encoder(
    run: Run, config: TrainConfig, store: SliceStore, log: RunLog, deadline: float | None
) -> None:
    generator, _ = trained_generator(run, config)
    if _trained_encoder(run, config) is None and rank() == 0:  # one of another generator
        (run.checkpoints / "encoder_best.pt").unlink(missing_ok=True)
    trainer = EncoderTrainer(config, store, run.device, generator, _perceptual(run, config))
    if run.origin and run.origin.encoder is not None:
        take_over(trainer.encoder, run.origin.encoder, f"{run.origin.name}, encoder")
        if config.encoder.from_mean_w:  # of this generator
            trainer.encoder.mean_w.copy_(generator.mean_w)

    def quality() -> dict[str, float]:
        sheet = _sheet(run, "encoder", trainer.images)
        evaluate.write_reconstructions(sheet, config, store, run.device, trainer.encoder, trainer.generator)
        _tell_picture(run, "encoder", "validation", trainer.images)
        return evaluate.encoder_quality(config, store, run.device, trainer.encoder, trainer.generator)

    best = _Best("validation_dice", "validation_dice", quality, lambda: trainer.encoder)
    limits = _limits(config, config.encoder_train.max_images, deadline, max(1, config.evaluate_images // 2))
    _train_on(run, trainer, best, limits, log)


def _train_student(
    run: Run, config: TrainConfig, store: SliceStore, log: RunLog, deadline: float | None
) -> None:
    trainer = _student_trainer(run, config, store)
    adopted = run.checkpoints / "student_best.pt"
    goes_on = adopted.exists() and not (run.checkpoints / "student.pt").exists()
    if goes_on:
        for network in (trainer.net, trainer.average):
            network.load_state_dict(load_checkpoint(adopted)["student"])
    elif run.origin and run.origin.student is not None:
        for network in (trainer.net, trainer.average):
            take_over(network, run.origin.student, f"{run.origin.name}, student")
    validation = evaluate.StudentWatch(store, config.generator.num_classes, config.student_train.looks)

    def quality() -> dict[str, float]:
        evaluate.write_segmentations(_sheet(run, "student", trainer.images), config, store, trainer.average)
        _tell_picture(run, "student", "validation", trainer.images)
        return validation(trainer.average)

    if goes_on and rank() == 0:
        _judge_adopted(adopted, validation(trainer.average))
    best = _Best("student_shifted_dice", "student_dice", quality, lambda: trainer.average)
    limits = _limits(config, config.student_train.max_images, deadline, max(1, config.evaluate_images // 2))
    _train_on(run, trainer, best, limits, log)


def _judge_adopted(file: Path, found: dict[str, float]) -> None:
    """Give an adopted student this run's own figures: what is learned takes its place only where it is better."""
    if math.isfinite(found["student_shifted_dice"]):  # there are validation patients
        figures = {"quality": found["student_shifted_dice"], "figures": found}
        save_checkpoint(load_checkpoint(file) | figures, file)


def _student_trainer(run: Run, config: TrainConfig, store: SliceStore) -> StudentTrainer:
    return StudentTrainer(
        config.student_train,
        store,
        run.device,
        labelled=config.labelled,
        num_classes=config.generator.num_classes,
        seed=config.seed,
        amp=config.amp,
    )


@dataclass(frozen=True)
class _Best:
    """What decides which weights of a stage are kept."""

    figure: str  # of the figures, higher is better
    dice: str  # of the figures, the DICE of validation patients
    quality: Callable[[], dict[str, float]]
    network: Callable[[], nn.Module]


def _train_on(
    run: Run,
    trainer: EncoderTrainer | StudentTrainer,
    best: _Best,
    limits: Limits,
    log: RunLog,
) -> None:
    """Run a stage other than the GAN; its best weights so far are in ``<stage>_best.pt``."""
    stage = trainer.name
    checkpoint, best_file = run.checkpoints / f"{stage}.pt", run.checkpoints / f"{stage}_best.pt"
    if checkpoint.exists():
        trainer.load_state_dict(load_checkpoint(checkpoint))
        if trainer.images == 0:  # begun anew, for another generator
            best_file.unlink(missing_ok=True)
    highest = float(load_checkpoint(best_file)["quality"]) if best_file.exists() else -1.0

    def judge() -> dict[str, float]:
        nonlocal highest
        if rank():
            return {}
        found = best.quality()
        if math.isfinite(found[best.dice]):  # there are validation patients
            run.on_event("validation", stage=stage, images=trainer.images, dice=found[best.dice])
        if not found[best.figure] <= highest:  # NaN without validation patients: the last one is kept
            highest = found[best.figure]
            kept = {stage: best.network().state_dict(), "images": trainer.images, "quality": highest}
            if isinstance(trainer, EncoderTrainer):
                kept["generator"] = trainer.of
            save_checkpoint(kept | {"figures": found}, best_file)
        return found

    progress = _named(run.on_progress, stage)
    reason = fit(
        trainer, checkpoint, limits, log, evaluate=judge, should_stop=run.should_stop, on_progress=progress
    )
    if reason == "stopped":
        raise Cancelled(f"stopped after {trainer.images} images of the {stage}; continue with --resume")
    log.write(stage, trainer.images, judge())


def _true_labels(store: SliceStore, patients: int) -> Iterator[np.ndarray]:
    """The labels (N, S, S) of each case that is learned from."""
    index = store.labelled(patients)
    for case in np.unique(store.case[index]):
        yield store.label_batch(index[store.case[index] == case]).numpy().astype(np.uint8)


def _write_bundle(run: Run, config: TrainConfig, store: SliceStore) -> Path:
    """Put the best networks of all stages into ``bundle/``; the student alone while there is no encoder."""
    folder = run.folder / "bundle"
    if rank():
        return folder
    facts = {
        "tool_version": __version__,
        "cohort": store.cohort.name,
        "labelled_patients": config.labelled,
        "slices": len(store.images),
        "labelled_slices": len(store.labelled(config.labelled)),
    }
    facts[ONE_PIECE] = in_one_piece(_true_labels(store, config.labelled), config.labels)
    facts |= terms_of_run(run.folder).facts()
    student = None
    if (run.checkpoints / "student_best.pt").exists():
        taught = load_checkpoint(run.checkpoints / "student_best.pt")
        student = make_student(config)
        student.load_state_dict(taught["student"])
        facts |= {"student_images": int(taught["images"]), **taught["figures"]}
        if "of" in taught:  # adopted: its figures are of other patients
            facts |= {"student_of": taught["of"]}
    name = f"{store.cohort.name}-{config.modality}-{'-'.join(label.name for label in config.labels)}"
    named = partial(save_bundle, folder, name=name.lower().replace(" ", "-"), config=config, student=student)

    def save(facts: dict[str, Any], **networks: Any) -> Path:
        named(facts=facts, **networks)
        run.on_event("bundle", path=str(folder.absolute()), student_alone=not networks)
        return folder

    trained = _trained_encoder(run, config)
    if trained is None:
        if (folder / GENERATOR).exists():
            logger.warning("The bundle stays as it was until the encoder has learned today's generator.")
            return folder
        return save(facts) if student is not None else run.folder
    run.on_stage("trust", None)
    generator, gan = trained_generator(run, config)
    encoder = make_encoder(config, generator.mean_w)
    encoder.load_state_dict(trained["encoder"])
    facts |= {
        "gan_images": gan["images"],
        "gan_figures": gan["figures"],
        "encoder_images": int(trained["images"]),
        **trained["figures"],
    }
    perceptual = _perceptual(run, config)
    curvature = None
    measuring = _stoppable(run, "stopped while the bundle was made; continue with --resume")
    if config.inversion.optimizer == "lbfgs":
        curvature = measure_curvature(
            generator.to(run.device),
            perceptual.to(run.device),
            mse_weight=config.inversion.mse_weight,
            seed=config.seed,
            on_progress=lambda done, total: measuring(done, total, "measuring how codes change images"),
        ).cpu()
    networks = {
        "generator": generator.cpu(),
        "encoder": encoder.eval(),
        "perceptual": perceptual.cpu(),
        "curvature": curvature,
        **_discriminators(run, config),
    }
    save(facts, **networks)
    if student is not None:
        calibrating = _stoppable(
            run, "stopped while trust was calibrated; the bundle is there, without trust"
        )
        facts |= trust_facts(load_bundle(folder, run.device), store, on_progress=calibrating)
        save(facts, **networks)
    return folder


def _warn_of_few_empty_slices(store: SliceStore, config: TrainConfig) -> None:
    """Scans reach further than the organ: a student that hardly saw a slice without it draws it there."""
    if config.modality not in SCANS:
        return
    known = store.labelled(config.labelled)
    enough = math.ceil(_FEW_EMPTY * len(known))
    found = (one for one in known if not store.labels[one].any())
    empty = sum(1 for _ in itertools.islice(found, enough))  # reads no more than it must
    if empty < enough:
        logger.warning(
            "%d of %d labelled slices hold no label, so the student hardly learns what a slice without one looks like, "
            "and may draw masks beyond the organs. Give whole scans; a slice without an organ has an empty label file.",
            empty,
            len(known),
        )


def _terms_of_data(cohort: Cohort) -> Terms:
    """What a cohort says of its data; where they are no one's images, the weights are as free as the program."""
    free = all(case.image.startswith(BUILT_IN) for case in cohort.cases)
    return Terms(FREE if free else "", "", cohort.sources)


def _last_gan(run: Run) -> dict[str, Any]:
    """Stage 1 as its last step left it, or what was adopted in its place."""
    last, adopted = run.checkpoints / "gan.pt", run.checkpoints / "gan_best.pt"
    return load_checkpoint(adopted if adopted.exists() and not last.exists() else last)


def _discriminators(run: Run, config: TrainConfig) -> dict[str, nn.Module]:
    """D_r and D_m as the last step of stage 1 left them, or as the model had them that the run began with."""
    trained = _last_gan(run)
    if not {"image_d", "pair_d"} <= trained.keys():  # adopted from a model that has none
        return {}
    channels, classes = config.generator.image_channels, config.generator.num_classes
    found: dict[str, nn.Module] = {
        "image_d": ImageDiscriminator(
            config.image_discriminator, image_channels=channels, grown=bool(trained.get("grown"))
        ),
        "pair_d": PairDiscriminator(config.pair_discriminator, image_channels=channels, num_classes=classes),
    }
    for name, network in found.items():
        network.load_state_dict(trained[name])
    return found


def _trained_encoder(run: Run, config: TrainConfig) -> dict[str, Any] | None:
    """The best encoder's checkpoint; None when there is none for the generator that stage 1 has now."""
    file = run.checkpoints / "encoder_best.pt"
    if not file.exists():
        return None
    state = load_checkpoint(file)
    today = fingerprint(trained_generator(run, config)[0])
    return state if state.get("generator", today) == today else None  # earlier versions did not say whose


def _sheet(run: Run, stage: str, images: int) -> Path:
    """The file of a stage's pictures after so many images."""
    return run.folder / "samples" / f"{stage}_{images:08d}.png"


def _tell_picture(run: Run, stage: str, kind: str, images: int) -> None:
    path = str(_sheet(run, stage, images).absolute())
    run.on_event("picture", stage=stage, kind=kind, images=images, path=path)


def _stoppable(run: Run, words: str) -> OnProgress:
    """The run's progress, which ends work that has no checkpoints with these words when the user asks for it."""

    def on_progress(done: int, total: int, message: str) -> None:
        if run.should_stop():
            raise Cancelled(words)
        run.on_progress(done, total, message)

    return on_progress


def _named(on_progress: OnProgress, stage: str) -> OnProgress:
    return lambda done, total, message: on_progress(done, total, f"{stage} {message}")
