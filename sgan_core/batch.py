"""One input or a folder of them: read, segment, write, record."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sgan_core import __version__
from sgan_core.bundle import Bundle
from sgan_core.device import describe
from sgan_core.errors import InputError
from sgan_core.evaluation.tables import json_text, write_text
from sgan_core.imaging.dicom import (
    Series,
    choose_series,
    find_series,
    is_dicom,
    read_series,
)
from sgan_core.imaging.grid import Grid
from sgan_core.imaging.readers import PICTURE_SUFFIXES, VOLUME_SUFFIXES, image_suffix, read_image
from sgan_core.imaging.slices import images_to_volume
from sgan_core.imaging.writers import write_labels, write_mask_png, write_volume
from sgan_core.labelling import OnProgress, SegmentConfig
from sgan_core.report import LabelVolume, ReportCase, write_report
from sgan_core.segment import Segmentation, label_volumes, part_of, segment_volume

SCHEMA = 1  # of run.json
_SUFFIX = {"nifti": ".nii.gz", "nrrd": ".nrrd", "dicom-seg": ".nii.gz"}  # of probability maps too


@dataclass(frozen=True)
class BatchConfig:
    """How to segment, what to write besides the label maps."""

    segment: SegmentConfig = field(default_factory=SegmentConfig)
    format: str = "nifti"  # "nifti" | "nrrd" | "dicom-seg", of volumes; pictures become PNG
    series: str | None = None  # which one of a DICOM folder with several: number, description or UID
    resample_gaps: bool = False  # mend missing slices and gantry tilt of DICOM series
    probabilities: bool = False
    report: bool = True


@dataclass(frozen=True, eq=False)
class BatchResult:
    """What run.json holds, and the segmentations for a caller that goes on with them."""

    record: dict[str, Any]
    failed: int


@dataclass(frozen=True)
class Input:
    """One image to segment: a file, or what was found in a DICOM folder."""

    name: str  # what its results are called
    path: Path
    found: tuple[Series, ...] = ()  # DICOM series, one of which is wanted
    problem: str = ""  # why it cannot be read, when the search has seen that already


def find_inputs(paths: Sequence[Path]) -> list[Input]:
    """The images among files and folders.

    A folder holds image files (not recursive, sorted by name), or is a DICOM folder, or holds DICOM folders:
    one study below it, in whatever folders, is one input; several studies in folders of their own are one
    input a folder, and DICOM pictures (X-rays, photographs) one input a file.
    In a folder, the results of an earlier run (``X_seg.*``) are no inputs; named one by one they are.
    Raises InputError for a missing path, for a folder without an image and for two inputs of one name.
    """
    found: list[Input] = []
    for path in paths:
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.is_file() and _is_input(file))
            inside = [Input(case_name(file), file) for file in files] + _dicom_inputs(path)
            if not inside:
                known = ", ".join(VOLUME_SUFFIXES + PICTURE_SUFFIXES)
                raise InputError(f"{path}: no image in this folder. Supported are DICOM, {known}.")
            found += inside
        elif not path.exists():
            raise InputError(f"{path}: no such file or folder. Check the path.")
        elif is_dicom(path):
            found.append(Input(case_name(path), path, tuple(find_series(path))))
        else:
            found.append(Input(case_name(path), path))
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"two inputs are named {name!r}: one result would overwrite the other. Rename one."
            )
    return found


def _dicom_inputs(folder: Path) -> list[Input]:
    try:
        series = find_series(folder)
    except InputError as error:
        return _one_by_one(folder, error)
    if series and all(_is_picture(one) for one in series):
        return [Input(case_name(one.files[0]), one.files[0], (one,)) for one in series]
    inside: dict[Path, list[Series]] = {}
    for one in series:
        inside.setdefault(_top_folder(one.files[0], folder), []).append(one)
    if folder in inside or len({one.study_uid for one in series}) < 2:
        return [Input(folder.resolve().name, folder, tuple(series))] if series else []
    return [Input(child.name, child, tuple(inside[child])) for child in sorted(inside)]


def _one_by_one(folder: Path, error: InputError) -> list[Input]:
    """The DICOM folders of a folder, each on its own: a damaged one does not stop the others.

    Raises the error when there is nothing else to segment.
    """
    inputs = []
    for child in sorted(path for path in folder.iterdir() if path.is_dir()):
        try:
            found = find_series(child)
        except InputError as fault:
            inputs.append(Input(child.name, child, problem=str(fault)))
        else:
            inputs += [Input(child.name, child, tuple(found))] if found else []
    if not any(one.found for one in inputs):
        raise error
    return inputs


def _is_picture(series: Series) -> bool:
    return series.slices == 1 and series.spacing_mm is None


def _top_folder(file: Path, folder: Path) -> Path:
    """The folder directly inside ``folder`` that holds the file, or ``folder`` itself."""
    below = file.relative_to(folder).parts
    return folder / below[0] if len(below) > 1 else folder


def _is_input(path: Path) -> bool:
    hidden, result = path.name.startswith("."), case_name(path).endswith(("_seg", "_seg.seg"))
    return image_suffix(path) in VOLUME_SUFFIXES + PICTURE_SUFFIXES and not hidden and not result


def case_name(path: Path) -> str:
    """The file's name without its (double) suffix."""
    return path.name[: len(path.name) - len(image_suffix(path))] or path.name


def run_batch(
    inputs: Sequence[Input],
    bundle: Bundle,
    output: Path,
    config: BatchConfig,
    *,
    options: dict[str, Any],
    on_progress: OnProgress = lambda done, total, message: None,
    on_case: Callable[[dict[str, Any]], None] = lambda record: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> BatchResult:
    """Segment every input and write results, run.json and report.html to ``output``.

    on_case gets each case's part of run.json. An input that cannot be read is recorded as failed and the
    others go on; with a single input its InputError is raised. Raises Cancelled when stopped; finished cases
    are kept and recorded.
    """
    made = prepare_folder(output)
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "tool_version": __version__,
        "bundle": {"name": bundle.name, "hash": bundle.hash},
        "device": describe(bundle.device),
        "seed": bundle.config.seed,
        "options": options,
        "cases": [],
    }
    report: list[ReportCase] = []
    try:
        for number, one in enumerate(inputs):
            which = f"{one.name} ({number + 1} of {len(inputs)}): " if len(inputs) > 1 else ""
            progress = part_of(on_progress, number, len(inputs), which)
            case: dict[str, Any] = {"input": str(one.path), "case": one.name}
            try:
                case |= _segment_case(one, bundle, output, config, report, progress, should_stop)
            except InputError as error:
                if len(inputs) == 1:
                    raise
                case |= {"output": None, "status": "failed", "error": str(error), "warnings": []}
            record["cases"].append(case)
            on_case(case)
    finally:
        if record["cases"]:
            write_text(output / "run.json", json_text(record))
            if report:
                facts = {"Model": f"{bundle.name} ({bundle.hash[:12]})", "Device": record["device"]}
                write_report(output / "report.html", "Segmentation", report, facts=facts)
        elif made:
            with suppress(OSError):  # it holds something after all
                output.rmdir()
    failed = sum(case["status"] == "failed" for case in record["cases"])
    return BatchResult(record, failed)


def _segment_case(
    one: Input,
    bundle: Bundle,
    output: Path,
    config: BatchConfig,
    report: list[ReportCase],
    on_progress: OnProgress,
    should_stop: Callable[[], bool],
) -> dict[str, Any]:
    if one.problem:
        raise InputError(one.problem)
    series = choose_series(one.found, config.series, one.path) if one.found else None
    if series is None and config.format == "dicom-seg":
        raise InputError(
            f"{one.path}: not DICOM, so a DICOM segmentation has nothing to refer to. Use --format nifti or nrrd."
        )
    gaps = config.resample_gaps
    image = read_series(series, resample_gaps=gaps) if series else read_image(one.path)
    found = segment_volume(image, bundle, config.segment, on_progress=on_progress, should_stop=should_stop)
    target = _write(found, bundle, output, one.name, config, series)
    volumes = label_volumes(found, bundle)
    grid = found.stack.grid
    if config.report:
        report.append(report_case(found, bundle, one.name))
    return {
        "output": str(target),
        "status": "done",
        "grid": {
            "shape": list(found.labels.shape),
            "spacing_mm": None if grid is None else [round(float(mm), 6) for mm in grid.spacing_mm],
        },
        "seconds": round(found.seconds, 3),
        "method": found.method,
        "reconstruction": asdict(found.reconstruction),
        "steps": found.steps,
        "labels": [asdict(volume) for volume in volumes],
        "reconstruction_error": {"case": found.error, "slices": [float(e) for e in found.slice_errors]},
        "trust": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(found.trust).items()},
        "warnings": list(found.warnings),
    }


def report_case(
    found: Segmentation,
    bundle: Bundle,
    name: str,
    *,
    domain: str = "",
    truth: np.ndarray | None = None,
    scores: Mapping[str, float] | None = None,
) -> ReportCase:
    """A segmentation as a section of the report. truth: (N, S, S) labels; scores: DICE by method."""
    facts = {
        "Mask": f"by the {found.method}" if found.method != "inversion" else "by inversion",
        "Inversion": f"{found.steps} steps, {found.reconstruction.name}: {found.reconstruction.reason}",
        "Time": f"{found.seconds:.1f} s for {len(found.slice_errors)} slices",
        "Reconstruction error": f"{found.error:.3f}",
        "Trust": f"{found.trust.status}: {found.trust.reason}",
    }
    rows = [
        LabelVolume(label, volume.voxels, volume.volume_ml)
        for label, volume in zip(bundle.config.labels, label_volumes(found, bundle), strict=True)
    ]
    return ReportCase(
        name=name,
        domain=domain,
        # The report of a batch keeps all of them until its end.
        images=found.stack.images.astype(np.float16),
        reconstructions=found.reconstructions.astype(np.float16),
        labels=found.label_probs.argmax(axis=1).astype(np.uint8),
        facts=facts,
        label_table=rows,
        warnings=list(found.warnings),
        truth=truth,
        scores=scores or {},
    )


def _write(
    found: Segmentation,
    bundle: Bundle,
    output: Path,
    name: str,
    config: BatchConfig,
    series: Series | None,
) -> Path:
    """Write the label map, and before it what else is asked for: with the label map the case is complete."""
    labels, grid = bundle.config.labels, found.stack.grid
    if config.probabilities:
        for label in labels:
            probability = images_to_volume(found.label_probs[:, [label.value]], found.stack)
            stem = output / f"{name}_{re.sub(r'[^A-Za-z0-9]+', '-', label.name)}_prob"
            if grid is None:
                write_mask_png(stem.with_name(stem.name + ".png"), (probability[0] * 255).round())
            else:
                write_volume(stem.with_name(f"{stem.name}{_SUFFIX[config.format]}"), probability, grid)
    if config.format == "dicom-seg" and series is not None:
        target = output / f"{name}_seg.dcm"
        from sgan_core.imaging.dicom_seg import write_dicom_seg  # highdicom takes a while to load

        # A picture (H, W) is one slice (I, J, 1) that lies nowhere in particular.
        labelmap = found.labels.T[..., None] if grid is None else found.labels
        where = Grid((*found.labels.T.shape, 1), np.eye(4)) if grid is None else grid
        facts: dict[str, Any] = {"model_name": bundle.name, "seed": bundle.config.seed}
        write_dicom_seg(target, labelmap, where, labels, series.files, **facts)
    elif grid is None:
        target = output / f"{name}_seg.png"
        write_mask_png(target, found.labels, labels)
    else:
        target = output / f"{name}_seg{'.seg' if config.format == 'nrrd' else ''}{_SUFFIX[config.format]}"
        write_labels(target, found.labels, grid, labels)
    return target


def prepare_folder(folder: Path) -> bool:
    """Make a folder for results, before the long work starts; returns whether it is new.

    Raises InputError when it cannot be made or written to.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{folder}: cannot write there ({reason}). Choose another --output.") from error
    return made
