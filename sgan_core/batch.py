"""One input or a folder of them: read, segment, write, record."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sgan_core import __version__
from sgan_core.bundle import Bundle
from sgan_core.cardiothoracic import (
    HOW_TO_READ,
    CardiothoracicRatio,
    Width,
    bracket,
    cardiothoracic_ratio,
    measures_chests,
    ratio_text,
)
from sgan_core.device import describe
from sgan_core.errors import InputError
from sgan_core.evaluation.tables import json_text, write_text
from sgan_core.files import all_or_none
from sgan_core.finished import Finished, input_hash, stamps
from sgan_core.imaging.dicom import Series, choose_series, read_series
from sgan_core.imaging.grid import Grid
from sgan_core.imaging.image import Volume
from sgan_core.imaging.readers import read_image
from sgan_core.imaging.slices import (
    SliceStack,
    images_to_volume,
    in_input_units,
    native_slices,
    points_to_model,
    slice_centres_mm,
)
from sgan_core.imaging.writers import write_labels, write_mask_png, write_picture, write_volume
from sgan_core.inputs import Input, LeftOut
from sgan_core.inversion import out_of_memory
from sgan_core.labelling import OnProgress, SegmentConfig
from sgan_core.report import DrawnLine, LabelVolume, ReportCase, Section, render_case, write_pages
from sgan_core.segment import Segmentation, label_volumes, part_of, segment_volume
from sgan_core.terms import terms_of

SCHEMA = 1  # of run.json
_SUFFIX = {"nifti": ".nii.gz", "nrrd": ".nrrd", "dicom-seg": ".nii.gz"}  # of all volumes of a case

SegmentCase = Callable[..., Segmentation]  # with the arguments of ``segment_volume``


@dataclass(frozen=True)
class BatchConfig:
    """How to segment, what to write besides the label maps."""

    segment: SegmentConfig = field(default_factory=SegmentConfig)
    format: str = "nifti"  # "nifti" | "nrrd" | "dicom-seg", of volumes; pictures become PNG
    series: str | None = None  # which one of a DICOM folder with several: number, description or UID
    resample_gaps: bool = False  # mend missing slices and gantry tilt of DICOM series
    probabilities: bool = False
    report: bool = True
    save_reconstruction: bool = False  # also write what the generator makes of the image

    @property
    def needs_inverter(self) -> bool:
        """Whether it asks for what a student alone cannot do."""
        return self.segment.needs_inverter or self.save_reconstruction


@dataclass(frozen=True, eq=False)
class BatchResult:
    """What run.json holds, and the segmentations for a caller that goes on with them."""

    record: dict[str, Any]
    failed: int


def run_batch(
    inputs: Sequence[Input],
    bundle: Bundle,
    output: Path,
    config: BatchConfig,
    *,
    options: dict[str, Any],
    left_out: Sequence[LeftOut] = (),
    redo: bool = False,
    on_progress: OnProgress = lambda done, total, message: None,
    on_case: Callable[[dict[str, Any]], None] = lambda record: None,
    should_stop: Callable[[], bool] = lambda: False,
    segment: SegmentCase | None = None,
) -> BatchResult:
    """Segment every input and write results, run.json and report.html to ``output``.

    left_out: what ``find_inputs`` did not take, for run.json. on_case gets each case's part of it. A case that an
    earlier run into the folder finished with the same version, model, options and image is kept ("skipped" in its
    part), unless ``redo``. An input that cannot be read, or does not fit into memory, is recorded as failed and the
    others go on; with a single input its InputError is raised. segment: in place of ``segment_volume``. Raises
    InputError at once when a student alone is asked for more than it can, and Cancelled when stopped; finished cases
    are kept and recorded.
    """
    if config.needs_inverter:
        bundle.require_inverter()
    new = not output.exists()
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "tool_version": __version__,
        "bundle": {"name": bundle.name, "hash": bundle.hash} | _restriction(bundle),
        "device": describe(bundle.device),
        "seed": bundle.config.seed,
        "options": options,
        "left_out": [{"path": str(one.path), "reason": one.reason} for one in left_out],
        "cases": [],
    }
    made_by = _made_by(bundle, config)
    if segment is not None:
        made_by["segment"] = segment.__qualname__  # so that no run without it takes its results for its own
    finished = Finished(output, made_by)
    try:
        prepare_folder(output)
        finished.check_folder()
        for number, one in enumerate(inputs):
            which = f"{one.name} ({number + 1} of {len(inputs)}): " if len(inputs) > 1 else ""
            progress = part_of(on_progress, number, len(inputs), which)
            case: dict[str, Any] = {"input": str(one.path), "case": one.name}
            try:
                with _within_memory(one.path, bundle.device):
                    case |= _case(
                        one,
                        bundle,
                        output,
                        config,
                        finished,
                        segment or segment_volume,
                        redo,
                        progress,
                        should_stop,
                    )
            except InputError as error:
                if len(inputs) == 1:
                    raise
                case |= {"output": None, "status": "failed", "error": str(error), "warnings": []}
            record["cases"].append(case)
            on_case(case)
    finally:
        if record["cases"]:
            write_text(output / "run.json", json_text(record))
            if sections := _sections(record["cases"], finished) if config.report else []:
                facts = {"Model": f"{bundle.name} ({bundle.hash[:12]})", "Device": record["device"]}
                if notice := terms_of(bundle.facts).notice:
                    facts = {"Terms of use": notice} | facts
                write_pages(output, "Segmentation", sections, facts=facts)
        elif new:
            with suppress(OSError):  # it holds something after all
                output.rmdir()
    failed = sum(case["status"] == "failed" for case in record["cases"])
    return BatchResult(record, failed)


@contextmanager
def _within_memory(path: Path, device: torch.device) -> Iterator[None]:
    """Make running out of memory, which the user can mend, an InputError that names the file."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not out_of_memory(error):
            raise
        gpu = "" if device.type == "cpu" else "--device cpu (slower), "
        raise InputError(
            f"{path}: not enough memory on {describe(device)}. Try --batch 1, {gpu}--region for a part of the "
            "scan, or close other programs."
        ) from error


def _restriction(bundle: Bundle) -> dict[str, str]:
    """What run.json says of a model that may not be used by everyone for everything; else nothing."""
    terms = terms_of(bundle.facts)
    return {"restriction": terms.restriction, "licence": terms.licence} if terms.restriction else {}


def _made_by(bundle: Bundle, config: BatchConfig) -> dict[str, Any]:
    """What decides what comes of an image. How many slices go together, and which series is asked for by which of its
    names, do not."""
    segment = replace(config.segment, batch=None)
    options = asdict(replace(config, segment=segment, series=None))
    return {"tool_version": __version__, "bundle": bundle.hash, "options": options}


def _sections(cases: Sequence[Mapping[str, Any]], finished: Finished) -> list[Section]:
    """The parts of the report that there are, in the order of the cases."""
    return [
        Section(case["case"], _identity(case["case"]), file, case["reconstruction_error"] is not None)
        for case in cases
        if case["status"] == "done" and (file := finished.section(case["case"])).is_file()
    ]


def _identity(name: str) -> str:
    """A case's name as letters and digits."""
    return name.encode("utf-8", "backslashreplace").hex()


def _case(
    one: Input,
    bundle: Bundle,
    output: Path,
    config: BatchConfig,
    finished: Finished,
    segment: SegmentCase,
    redo: bool,
    on_progress: OnProgress,
    should_stop: Callable[[], bool],
) -> dict[str, Any]:
    """A case's part of run.json: that of an earlier run, or a new one with the results."""
    if one.problem:
        raise InputError(one.problem)
    series = choose_series(one.found, config.series, one.path) if one.found else None
    if series is not None and series.problem:
        raise InputError(series.problem)
    before, content = _content(one, series)
    if not redo and (case := finished.find(one.name, content)):
        on_progress(1, 1, "finished before")
        return case | {"input": str(one.path), "skipped": True}
    facts = {"input": str(one.path), "case": one.name, "input_hash": content, "skipped": False}
    case, results, section, moved = _segment_case(
        one, series, bundle, output, config, finished, segment, on_progress, should_stop
    )
    case["warnings"] += moved
    if not _is_still(one, series, before):  # the hash would be that of another image
        facts["input_hash"] = None
        case["warnings"].append("the image changed while it was segmented; segment it again")
    finished.add(facts | case, results, section)
    return facts | case


def _is_still(one: Input, series: Series | None, before: list[tuple[int, int]]) -> bool:
    """Whether an image's files are there as they were."""
    try:
        return stamps(one, series) == before
    except (OSError, InputError):
        return False


def _content(one: Input, series: Series | None) -> tuple[list[tuple[int, int]], str | None]:
    """The stamps and the hash of an image's files."""
    try:
        content = input_hash(one, series)
        return stamps(one, series), content
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{error.filename or one.path}: cannot be read ({reason}). Check it.") from error


def _segment_case(
    one: Input,
    series: Series | None,
    bundle: Bundle,
    output: Path,
    config: BatchConfig,
    finished: Finished,
    segment: SegmentCase,
    on_progress: OnProgress,
    should_stop: Callable[[], bool],
) -> tuple[dict[str, Any], list[Path], str | None, list[str]]:
    """A new case's part of run.json, its files, its section of the report, and what became of former results."""
    if series is None and config.format == "dicom-seg":
        raise InputError(
            f"{one.path}: not DICOM, so a DICOM segmentation has nothing to refer to. Use --format nifti or nrrd."
        )
    gaps = config.resample_gaps
    image = read_series(series, resample_gaps=gaps) if series else read_image(one.path)
    if series is not None and config.format == "dicom-seg":
        from sgan_core.imaging.dicom.seg import check_dicom_seg  # highdicom takes a while to load

        where = image.grid if isinstance(image, Volume) else _pixel_grid(*image.array.shape[1:])
        facts = _seg_facts(bundle)
        check_dicom_seg(where, bundle.config.labels, series.files, frames=series.frames, **facts)
    found = segment(image, bundle, config.segment, on_progress=on_progress, should_stop=should_stop)
    volumes, ratio = label_volumes(found, bundle), measured_ratio(found, bundle)
    section = None
    if config.report:
        section = render_case(report_case(found, bundle, one.name, ratio=ratio), _identity(one.name))
    probabilities: list[Path] = []
    with finished.writing(one.name, _result_names(one.name, bundle)) as moved, all_or_none() as together:
        stem = output / one.name
        reconstruction = _write_reconstruction(found, stem, image.array.dtype, config)
        if reconstruction:
            together(reconstruction)
        if config.probabilities:
            for path in _write_probabilities(found, bundle, stem, config):
                together(path)
                probabilities.append(path)
        target = _write_labels(found, bundle, stem, config, series)  # the last: with it the case is complete
    grid = found.stack.grid
    case = {
        "output": str(target),
        "reconstruction_output": None if reconstruction is None else str(reconstruction),
        "probability_outputs": [str(path) for path in probabilities],
        "status": "done",
        "grid": {
            "shape": list(found.labels.shape),
            "spacing_mm": None if grid is None else [round(float(mm), 6) for mm in grid.spacing_mm],
        },
        "seconds": round(found.seconds, 3),
        "method": found.method,
        "reconstruction": asdict(found.reconstruction) if found.reconstruction else None,
        "steps": found.steps,
        "labels": [asdict(volume) for volume in volumes],
        "reconstruction_error": None
        if found.slice_errors is None
        else {"case": found.error, "slices": found.slice_errors.tolist()},
        "first_slice": found.stack.first_slice,
        "slice_centres_mm": None if grid is None else _rounded(slice_centres_mm(found.stack)),
        "trust": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(found.trust).items()},
        "soft_dice_confidence": None
        if found.soft_dice_confidence is None
        else round(found.soft_dice_confidence, 4),
        "cardiothoracic_ratio": None if ratio is None else ratio.record(found.trust.status),
        "warnings": [*found.warnings, *(ratio.warnings if ratio else ())],
    }
    results = [*([reconstruction] if reconstruction else []), *probabilities, target]
    return case, results, section, moved


def _rounded(points_mm: np.ndarray) -> list[list[float]]:
    return [[round(mm, 3) for mm in point] for point in points_mm.tolist()]


def measured_ratio(found: Segmentation, bundle: Bundle) -> CardiothoracicRatio | None:
    """The cardiothoracic ratio of a picture; None for a volume of several slices and for models of other things.

    A volume of one slice, as which 3D Slicer keeps a grey picture, is one too; so the model has to be of X-rays: the
    same labels across a slice of CT are no frontal view.
    """
    if bundle.config.modality != "xray":
        return None
    slices = native_slices(found.labels, found.stack)  # (N, H, W)
    if len(slices) != 1 or slices.size != found.labels.size or not measures_chests(bundle.config.labels):
        return None
    return cardiothoracic_ratio(slices[0], bundle.config.labels)


def _drawn(name: str, width: Width, stack: SliceStack) -> DrawnLine:
    points = points_to_model(np.array(bracket(width)), stack)
    return DrawnLine(name, [(float(x), float(y)) for x, y in points])


def report_case(
    found: Segmentation,
    bundle: Bundle,
    name: str,
    *,
    domain: str = "",
    truth: np.ndarray | None = None,
    scores: Mapping[str, float] | None = None,
    ratio: CardiothoracicRatio | None = None,
) -> ReportCase:
    """A segmentation as a section of the report.

    truth: (N, S, S) labels; scores: DICE by method; ratio: of ``measured_ratio``.
    """
    facts = {"Mask": f"by the {found.method}" if found.method != "inversion" else "by inversion"}
    if found.reconstruction:
        facts["Inversion"] = (
            f"{found.steps} steps, {found.reconstruction.name}: {found.reconstruction.reason}"
        )
    facts["Time"] = f"{found.seconds:.1f} s for {len(found.label_probs)} slices"
    if found.error is not None:
        facts["Reconstruction error"] = f"{found.error:.3f}"
    facts["Trust"] = f"{found.trust.status}: {found.trust.reason}"
    lines: list[DrawnLine] = []
    if ratio is not None:
        facts["Cardiothoracic ratio"] = ratio_text(ratio.record(found.trust.status))
        widths = {"width of the heart": ratio.heart, "width of the thorax": ratio.thorax}
        lines = [_drawn(what, width, found.stack) for what, width in widths.items() if width is not None]
    rows = [
        LabelVolume(label, volume.voxels, volume.volume_ml)
        for label, volume in zip(bundle.config.labels, label_volumes(found, bundle), strict=True)
    ]
    return ReportCase(
        name=name,
        domain=domain,
        # The report of a batch keeps all of them until its end.
        images=found.stack.images.astype(np.float16),
        reconstructions=None if found.reconstructions is None else found.reconstructions.astype(np.float16),
        labels=found.model_labels,
        facts=facts,
        label_table=rows,
        warnings=[*found.warnings, *(ratio.warnings if ratio else ())],
        truth=truth,
        scores=scores or {},
        first_slice=found.stack.first_slice,
        lines=lines,
        notes=[HOW_TO_READ] if lines else [],
    )


def _write_reconstruction(
    found: Segmentation, stem: Path, dtype: np.dtype, config: BatchConfig
) -> Path | None:
    """Write what the generator makes of the image, if asked for: volumes in its units and type, pictures in 8 bits.

    stem: folder and name of the case. dtype: of the image. Returns the file.
    """
    if not config.save_reconstruction or found.reconstructions is None:
        return None
    grid, values = found.stack.grid, images_to_volume(found.reconstructions, found.stack)
    target = _beside(stem, "recon", grid, config)
    if grid is None:
        write_picture(target, ((values + 1.0) * 127.5).round().clip(0, 255).astype(np.uint8))
    else:
        write_volume(target, in_input_units(values, found.stack, dtype), grid)
    return target


def _write_probabilities(
    found: Segmentation, bundle: Bundle, stem: Path, config: BatchConfig
) -> Iterator[Path]:
    """Write the probability of each label, file by file. stem: folder and name of the case."""
    grid = found.stack.grid
    for label, slug in zip(bundle.config.labels, _slugs(bundle), strict=True):
        probability = images_to_volume(found.label_probs[:, [label.value]], found.stack, outside=0.0)
        target = _beside(stem, f"{slug}_prob", grid, config)
        if grid is None:
            write_mask_png(target, (probability[0] * 255).round())
        else:
            write_volume(target, probability, grid)
        yield target


def _slugs(bundle: Bundle) -> list[str]:
    """The label names in file names: letters and digits, with the value where that is not enough (two in Chinese)."""
    labels = bundle.config.labels
    slugs = [re.sub(r"[^A-Za-z0-9]+", "-", label.name).strip("-") for label in labels]
    lower = [slug.lower() for slug in slugs]
    return [
        slug if slug and lower.count(slug.lower()) == 1 else f"{slug}-{label.value}".strip("-")
        for slug, label in zip(slugs, labels, strict=True)
    ]


def _result_names(name: str, bundle: Bundle) -> list[str]:
    """The files that may come of a case, in any format."""
    endings = (".nii.gz", ".nrrd", ".png")
    masks = [f"{name}_seg{ending}" for ending in (".nii.gz", ".seg.nrrd", ".dcm", ".png")]
    beside = ["recon", *(f"{slug}_prob" for slug in _slugs(bundle))]
    return masks + [f"{name}_{what}{ending}" for what in beside for ending in endings]


def _beside(stem: Path, what: str, grid: Grid | None, config: BatchConfig) -> Path:
    """The file for what lies beside a case's label map."""
    return stem.with_name(f"{stem.name}_{what}{'.png' if grid is None else _SUFFIX[config.format]}")


def _pixel_grid(rows: int, columns: int) -> Grid:
    """A picture is one slice (I, J, 1) that lies nowhere in particular."""
    return Grid((columns, rows, 1), np.eye(4))


def _seg_facts(bundle: Bundle) -> dict[str, Any]:
    restriction = terms_of(bundle.facts).restriction  # the file goes where no run.json goes with it
    told = {"description": f"SemanticGAN: {restriction}"} if restriction else {}
    return {"model_name": bundle.name, "seed": bundle.config.seed} | told


def _write_labels(
    found: Segmentation, bundle: Bundle, stem: Path, config: BatchConfig, series: Series | None
) -> Path:
    """Write the label map in the format asked for. stem: folder and name of the case.

    When a DICOM segmentation cannot be written after all, the work is kept as NIfTI or PNG; the InputError says where.
    """
    labels, grid = bundle.config.labels, found.stack.grid
    if config.format == "dicom-seg" and series is not None:
        target = stem.with_name(f"{stem.name}_seg.dcm")
        from sgan_core.imaging.dicom.seg import write_dicom_seg  # highdicom takes a while to load

        labelmap = found.labels.T[..., None] if grid is None else found.labels  # (H, W) -> (I, J, 1)
        where = _pixel_grid(*found.labels.shape) if grid is None else grid
        try:
            facts = _seg_facts(bundle)
            write_dicom_seg(target, labelmap, where, labels, series.files, frames=series.frames, **facts)
        except InputError as error:
            kept = _write_labels(found, bundle, stem, replace(config, format="nifti"), series)
            raise InputError(f"{error} The label map is kept as {kept}.") from error
    elif grid is None:
        target = stem.with_name(f"{stem.name}_seg.png")
        write_mask_png(target, found.labels, labels)
    else:
        ending = f"_seg{'.seg' if config.format == 'nrrd' else ''}{_SUFFIX[config.format]}"
        target = stem.with_name(stem.name + ending)
        write_labels(target, found.labels, grid, labels)
    return target


def prepare_folder(folder: Path) -> None:
    """Make a folder for results, before the long work starts.

    Raises InputError when it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{folder}: cannot write there ({reason}). Choose another --output.") from error
