"""sgan-evaluate: how well segmentations agree with reference segmentations, per patient."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgan_core.cli import app
from sgan_core.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from sgan_core.evaluation.tables import Table
    from sgan_core.imaging.image import Volume
    from sgan_core.metrics.per_patient import Evaluation, PatientScores

log = logging.getLogger(__name__)

EXAMPLES = """\
  sgan-evaluate demo-out/segmentations demo-out/references
  sgan-evaluate predicted.nii.gz truth.nii.gz --output scores.json
  sgan-evaluate masks truth --patient "(P[0-9]+)_slice" --output scores.csv
      PNG slices P07_slice12.png ...: all slices of P07 are one patient
  sgan-evaluate CT_3_Segmentation CT/3/Ground --dicom CT/3/DICOM_anon
      folders of PNG slices of one DICOM series, as CHAOS keeps them: distances in mm
"""
DESCRIPTION = """\
Compare segmentations with reference segmentations: per patient and label DICE, Jaccard, HD95 and ASSD (mm),
NSD (share of the surface within 2 mm), RAVD (%) and volume error (mL, above 0 is too large).

Label maps are NIfTI, NRRD, MetaImage, DICOM SEG or pictures.
PREDICTIONS and REFERENCE are two files, or two folders (searched with their subfolders) in which X_seg.* or
X.* is paired with X.*. All files of a patient are pooled before dividing. A figure is undefined, shown as a
dash and left out of the mean, which then says how often: DICE, Jaccard and NSD when both masks are empty,
HD95 and ASSD when one is, RAVD when the reference is. Pictures have no voxel size, hence no mm and no mL,
unless --dicom names the scan whose slices they are. A surface is the voxels of a mask that touch its outside
with a face; ASSD is the mean over both surfaces of the distance to the other, in the patient."""

# (heading, metric, digits)
_COLUMNS = (
    ("DICE", "dice", 3),
    ("Jaccard", "jaccard", 3),
    ("HD95 mm", "hd95_mm", 2),
    ("ASSD mm", "assd_mm", 2),
    ("NSD", "nsd", 3),
    ("RAVD %", "ravd_percent", 2),
    ("error mL", "volume_error_ml", 2),
)


_Reader = Callable[["Pair"], "tuple[Volume | np.ndarray, Volume | np.ndarray]"]


@dataclass(frozen=True)
class Pair:
    """Two label maps of one case."""

    case: str  # relative path without ending, "/" between folders
    prediction: Path
    reference: Path


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    parser = app.Parser("sgan-evaluate", description=DESCRIPTION, examples=EXAMPLES)
    parser.add_argument("predictions", type=Path, metavar="PREDICTIONS", help="file or folder to judge")
    parser.add_argument("reference", type=Path, metavar="REFERENCE", help="file or folder that is the truth")
    parser.add_argument(
        "--patient",
        metavar="REGEX",
        help="finds the patient in the reference's path inside its folder (group 1, or the whole match); "
        "default: every file is a patient",
    )
    parser.add_argument(
        "--dicom",
        type=Path,
        metavar="DIR",
        help="PREDICTIONS and REFERENCE are folders of pictures, each a slice of this DICOM series in the order "
        "of its file names",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the scores: .json or .csv")
    return app.run(evaluate, parser, argv)


def evaluate(options: argparse.Namespace) -> None:
    """Pair the files, score them, print the table, write the file."""
    if options.output is not None and options.output.suffix.lower() not in (".json", ".csv"):
        raise InputError(f"--output {options.output}: the name must end in .json or .csv.")
    pattern = _compiled(options.patient)
    pair = pair_files if options.dicom is None else _slices_of_one_scan
    pairs, unpaired = pair(options.predictions, options.reference)
    for warning in unpaired:
        log.warning(warning)
    evaluation = _score(pairs, pattern, options.dicom)

    from sgan_core.evaluation.tables import print_table, write_text

    if options.output is not None:
        write_text(options.output, _file_text(options.output, evaluation, pairs, unpaired))
    print_table(_table(evaluation.results()), file=sys.stdout)


# --- pairing ---------------------------------------------------------------------------------------


def pair_files(predictions: Path, reference: Path) -> tuple[list[Pair], list[str]]:
    """The cases two paths have in common, sorted, with a warning for every file left over.

    Raises InputError when a path is missing, a file meets a folder, a name is ambiguous or nothing pairs.
    """
    for path in (predictions, reference):
        if not path.exists():
            raise InputError(f"{path}: no such file or folder. Check the path.")
    if predictions.is_dir() != reference.is_dir():
        raise InputError(f"{predictions} and {reference}: give two files or two folders.")
    if not predictions.is_dir():
        return [Pair(_stem(reference.name), predictions, reference)], []
    predicted, wanted = _label_files(predictions), _label_files(reference)
    pairs: dict[str, Pair] = {}
    left_over = []
    for stem, path in predicted.items():
        case = stem if stem in wanted else stem.removesuffix("_seg")
        if case not in wanted:
            left_over.append(f"{path}: no reference for it in {reference}; left out.")
        elif case in pairs:
            raise InputError(
                f"{pairs[case].prediction} and {path} both belong to {wanted[case]}. Remove one of them."
            )
        else:
            pairs[case] = Pair(case, path, wanted[case])
    left_over += [
        f"{path}: no prediction for it in {predictions}; left out."
        for case, path in wanted.items()
        if case not in pairs
    ]
    if not pairs:
        raise InputError(
            f"No file in {predictions} ({len(predicted)} label maps) belongs to one in {reference} "
            f"({len(wanted)}). A prediction is named X_seg.* or X.*, its reference X.*."
        )
    return [pairs[case] for case in sorted(pairs)], left_over


def _slices_of_one_scan(predictions: Path, reference: Path) -> tuple[list[Pair], list[str]]:
    """Two folders of slices as the one case that they are."""
    for folder in (predictions, reference):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; with --dicom, folders of pictures are compared.")
    return [Pair(reference.resolve().name, predictions, reference)], []


def _label_files(folder: Path) -> dict[str, Path]:
    """The label maps below a folder by relative path without ending."""
    from sgan_core.imaging.readers import image_suffix

    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if hidden or not image_suffix(path) or not path.is_file():
            continue
        stem = relative.with_name(_stem(path.name)).as_posix()
        if stem in found:
            raise InputError(f"{found[stem]} and {path} have one name in two formats. Remove one of them.")
        found[stem] = path
    return found


def _stem(name: str) -> str:
    """A file name without its ending: ``a.nii.gz`` -> ``a``, ``a.seg.nrrd`` -> ``a``."""
    from sgan_core.imaging.readers import image_suffix

    return name[: len(name) - len(image_suffix(name))].removesuffix(".seg")


def _compiled(pattern: str | None) -> re.Pattern[str] | None:
    try:
        return None if pattern is None else re.compile(pattern)
    except re.error as error:
        raise InputError(f"--patient {pattern!r} is not a regular expression: {error}.") from error


def _patient(case: str, pattern: re.Pattern[str] | None) -> str:
    if pattern is None:
        return case
    match = pattern.search(case)
    patient = match and (match.group(1) if pattern.groups else match.group(0))
    if not patient:
        raise InputError(f"--patient {pattern.pattern!r} finds no patient in {case!r}.")
    return patient


# --- scoring ---------------------------------------------------------------------------------------


def _score(pairs: Sequence[Pair], pattern: re.Pattern[str] | None, scan: Path | None) -> Evaluation:
    from sgan_core.imaging.image import Volume
    from sgan_core.metrics.per_patient import Evaluation

    patients = [_patient(pair.case, pattern) for pair in pairs]  # wrong expressions fail before the long work
    read = _read_pair if scan is None else _reader_of_slices(scan)
    labels, rename = _labels_in(pairs, read)
    evaluation = Evaluation(labels)
    for number, (pair, patient) in enumerate(zip(pairs, patients, strict=True), start=1):
        log.debug("%d/%d %s", number, len(pairs), pair.case)
        prediction, reference = read(pair)
        found = _array(prediction)
        for old, new in rename.items():
            found = (found == old) * found.dtype.type(new)
        grid = reference.grid if isinstance(reference, Volume) else None
        evaluation.add(
            patient,
            found,
            _array(reference),
            spacing_mm=grid.spacing_mm.tolist() if grid else None,
            voxel_ml=grid.voxel_ml if grid else None,
        )
    return evaluation


def _labels_in(pairs: Sequence[Pair], read: _Reader) -> tuple[set[int], Mapping[int, int]]:
    """The label values to score, and those of the predictions to read as others.

    Masks of one organ come as 1, 255 or whatever a tool liked: one value on either side means the same label.
    """
    import numpy as np

    predicted: set[int] = set()
    wanted: set[int] = set()
    for pair in pairs:
        prediction, reference = read(pair)
        predicted.update(np.unique(_array(prediction)).tolist())
        wanted.update(np.unique(_array(reference)).tolist())
    predicted.discard(0)
    wanted.discard(0)
    if len(predicted) == len(wanted) == 1 and predicted != wanted:
        (old,), (new,) = predicted, wanted
        log.warning("predictions use the value %d, references %d: taken for the same label.", old, new)
        return wanted, {old: new}
    if not predicted | wanted:
        raise InputError(
            "No label in any prediction or reference: every voxel is 0. Are these the right files?"
        )
    return predicted | wanted, {}


def _array(labels: Volume | np.ndarray) -> np.ndarray:
    from sgan_core.imaging.image import Volume

    return labels.array if isinstance(labels, Volume) else labels


def _reader_of_slices(scan: Path) -> _Reader:
    """Reads folders of pictures as label maps on the grid of a DICOM series."""
    from sgan_core.imaging.dicom.series import choose_series, find_series
    from sgan_core.imaging.mask_slices import read_mask_slices, series_grid

    series = choose_series(find_series(scan), None, scan)
    grid = series_grid(series)
    return lambda pair: (
        read_mask_slices(pair.prediction, series, grid),
        read_mask_slices(pair.reference, series, grid),
    )


def _read(path: Path) -> Volume | np.ndarray:
    from sgan_core.imaging.dicom.seg import read_dicom_seg
    from sgan_core.imaging.readers import DICOM_SUFFIXES, image_suffix, read_labels

    dicom = image_suffix(path) in DICOM_SUFFIXES
    return read_dicom_seg(path) if dicom else read_labels(path, values=None)


def _read_pair(pair: Pair) -> tuple[Volume | np.ndarray, Volume | np.ndarray]:
    """Prediction and reference of one case, on one grid. Raises InputError when they are not."""
    from sgan_core.imaging.grid import corner_distance_mm
    from sgan_core.imaging.image import Volume
    from sgan_core.imaging.readers import GRID_TOLERANCE_MM

    prediction, reference = _read(pair.prediction), _read(pair.reference)
    mend = "Resample one onto the other, or pair the right files."
    shapes = [" x ".join(map(str, _array(labels).shape)) for labels in (prediction, reference)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"{pair.prediction} and {pair.reference} differ in shape: {shapes[0]} against {shapes[1]}. {mend}"
        )
    if isinstance(prediction, Volume) and isinstance(reference, Volume):
        distance_mm = corner_distance_mm(prediction.grid, reference.grid)
        if not distance_mm <= GRID_TOLERANCE_MM:
            raise InputError(
                f"{pair.prediction} and {pair.reference} lie {distance_mm:.4g} mm apart "
                f"(allowed: {GRID_TOLERANCE_MM:g} mm). {mend}"
            )
    return prediction, reference


# --- results ---------------------------------------------------------------------------------------


def _by_label(results: Sequence[PatientScores]) -> Iterator[tuple[int, list[PatientScores]]]:
    for label in dict.fromkeys(result.label for result in results):
        yield label, [result for result in results if result.label == label]


def _table(results: Sequence[PatientScores]) -> Table:
    from sgan_core.evaluation.tables import Table, mean_text, number
    from sgan_core.metrics.per_patient import mean_iou, mean_without_nan

    rows = []
    for label, group in _by_label(results):
        for result in group:
            scores = result.scores.as_dict()
            rows.append(
                (result.patient, str(label), *(number(scores[name], digits) for _, name, digits in _COLUMNS))
            )
        columns = [[getattr(result.scores, name) for result in group] for _, name, _ in _COLUMNS]
        means = [
            # A column that is undefined for everyone (no voxel size) needs no count.
            mean_text(column, digits) if mean_without_nan(column)[1] < len(column) else number(float("nan"))
            for column, (_, _, digits) in zip(columns, _COLUMNS, strict=True)
        ]
        rows.append(("mean", str(label), *means))
    title = "Agreement per patient"
    if len({result.label for result in results}) > 1:
        title += f" (mIoU without background {mean_text(mean_iou(results).values())})"
    header = ("patient", "label", *(heading for heading, _, _ in _COLUMNS))
    return Table(title, header, tuple(rows), numbers_from=1)


def _file_text(path: Path, evaluation: Evaluation, pairs: Sequence[Pair], unpaired: Sequence[str]) -> str:
    from sgan_core.evaluation.tables import csv_text, json_text
    from sgan_core.metrics.per_patient import METRICS, mean_iou, mean_without_nan

    results = evaluation.results()
    rows: list[dict[str, Any]] = [
        {"patient": result.patient, "label": result.label, "cases": result.cases, **asdict(result.scores)}
        for result in results
    ]
    if path.suffix.lower() == ".csv":
        return csv_text(rows)
    means: dict[str, dict[str, float]] = {}
    left_out: dict[str, dict[str, int]] = {}
    for label, group in _by_label(results):
        summary = {name: mean_without_nan(getattr(r.scores, name) for r in group) for name in METRICS}
        means[str(label)] = {name: mean for name, (mean, _) in summary.items()}
        left_out[str(label)] = {name: count for name, (_, count) in summary.items()}
    return json_text(
        {
            "version": 1,
            "nsd_tolerance_mm": evaluation.nsd_tolerance_mm,
            "rows": rows,
            "mean": means,
            "nan": left_out,
            "mean_iou": mean_iou(results),
            "pairs": [
                {"case": p.case, "prediction": str(p.prediction), "reference": str(p.reference)}
                for p in pairs
            ],
            "warnings": list(unpaired),
        }
    )


if __name__ == "__main__":
    sys.exit(main())
