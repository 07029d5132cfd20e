"""The cross-modal benchmark: what it counts where nothing should be labelled, in closed form, and its tables."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sgan_core.bundle import Bundle
from sgan_core.cohort import Case, Cohort, Intensity
from sgan_core.errors import InputError
from sgan_core.evaluation.tables import MethodRow, json_text, table_json, write_text
from sgan_core.imaging.grid import Grid
from sgan_core.imaging.image import Picture, Volume
from sgan_core.imaging.slices import SliceStack, to_model
from sgan_core.phantom import phantom_cohort
from sgan_datasets.anatomy import named_label


def _load_benchmark():
    """It is a script, not a package."""
    file = Path(__file__).parents[2] / "benchmarks" / "cross_modal.py"
    spec = importlib.util.spec_from_file_location("cross_modal", file)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


benchmark = _load_benchmark()

LIVER = 1
# Seen as (slice, row, column); a pixel has 2 x 3 mm2, a voxel 42 mm3.
SHAPE, SPACING_MM = (6, 10, 12), (7.0, 2.0, 3.0)
TOWARDS = {"S": (0, 0, 1), "P": (0, -1, 0), "L": (-1, 0, 0), "I": (0, 0, -1), "A": (0, 1, 0), "R": (1, 0, 0)}
# Where the axes of the file run, and which of (slice, row, column) each is.
FILES = {"SPL": (0, 1, 2), "LPS": (2, 1, 0), "RIA": (2, 0, 1), "ALS": (1, 2, 0)}


def stack_of(grid: Grid) -> SliceStack:
    ramp = np.arange(math.prod(grid.shape), dtype=np.float32).reshape(grid.shape)
    return to_model(Volume(ramp, grid), size=16, intensity=Intensity(percentiles=(0.0, 100.0)))


def patient(*volumes: tuple[np.ndarray, np.ndarray], axes: str = "SPL"):
    """(prediction, truth) pairs, each (slice, row, column), as label maps and a patient of files that run so."""
    order = FILES[axes]
    affine = np.eye(4)
    for axis, (name, seen) in enumerate(zip(axes, order, strict=True)):
        affine[:3, axis] = np.multiply(TOWARDS[name], SPACING_MM[seen])
    pairs = [tuple(mask.transpose(order).astype(np.uint8) for mask in pair) for pair in volumes]
    stacks = tuple(stack_of(Grid(truth.shape, affine)) for _, truth in pairs)
    labelmaps = [prediction for prediction, _ in pairs]
    return labelmaps, benchmark.Patient("p", stacks, tuple(truth for _, truth in pairs), None)


def empty() -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)


@pytest.mark.parametrize("axes", FILES)
def test_slices_are_those_that_the_model_is_given(axes: str) -> None:
    _, someone = patient(empty(), axes=axes)
    (stack,) = someone.stacks
    assert stack.grid.shape[benchmark.slice_axis(stack.grid)] == len(stack.images) == SHAPE[0]


@pytest.mark.parametrize("axes", FILES)
def test_false_positive_area_is_the_mean_over_the_empty_slices(axes: str) -> None:
    prediction, truth = empty()
    truth[1:3, 2:6, 2:6] = True  # slices 0, 3, 4 and 5 are empty
    prediction[1:3] = True  # too large, but not on an empty slice
    prediction[3, :4, :5] = True  # 20 pixels of 6 mm2
    prediction[5, :2, 0] = True  # 2 pixels
    labelmaps, someone = patient((prediction, truth), axes=axes)
    assert benchmark.false_positive_mm2(labelmaps, someone, LIVER) == pytest.approx((120 + 12) / 4)


def test_false_positive_area_pools_the_empty_slices_of_all_files() -> None:
    first, second = empty(), empty()
    first[1][:5] = True  # one empty slice of 120 pixels, all labelled; the second file has six without any
    first[0][:] = True
    labelmaps, someone = patient(first, second)
    assert benchmark.false_positive_mm2(labelmaps, someone, LIVER) == pytest.approx(120 * 6 / 7)


def test_false_positive_area_needs_an_empty_slice() -> None:
    prediction, truth = empty()
    truth[:, 3, 3] = True
    prediction[:] = True
    assert math.isnan(benchmark.false_positive_mm2(*patient((prediction, truth)), LIVER))


@pytest.mark.parametrize("axes", FILES)
def test_isolated_pieces_lie_on_one_slice_alone(axes: str) -> None:
    prediction, truth = empty()
    prediction[0:3, 0:4, 0:4] = True  # three slices thick
    prediction[1, 6:9, 6:10] = True  # 12 voxels on one slice
    prediction[2, 4, 4] = True  # touches the first piece by an edge only: 6-connected pieces part here
    prediction[5, 9, 0:5] = True  # 5 voxels on the last slice
    prediction[3:5, 9, 11] = True  # two slices, one voxel in the plane
    labelmaps, someone = patient((prediction, truth), axes=axes)
    assert benchmark.isolated_ml(labelmaps, someone, LIVER) == pytest.approx((12 + 1 + 5) * 0.042)


def test_isolated_pieces_add_up_over_volumes_and_slices_alone_do_not_count() -> None:
    first, second, single = empty(), empty(), (np.ones((1, 4, 4), bool), np.zeros((1, 4, 4), bool))
    first[0][2, 0, 0:3] = True
    second[0][4, 0, 0:4] = True
    labelmaps, someone = patient(first, second, single)
    assert benchmark.isolated_ml(labelmaps, someone, LIVER) == pytest.approx(7 * 0.042)
    assert math.isnan(benchmark.isolated_ml(*patient(single), LIVER))
    assert benchmark.isolated_ml(*patient(empty()), LIVER) == 0.0


def test_other_labels_do_not_count() -> None:
    prediction, truth = empty()
    prediction[3, :2, :2] = True
    labelmaps, someone = patient((prediction * 2, truth))
    assert benchmark.false_positive_mm2(labelmaps, someone, LIVER) == 0.0
    assert benchmark.false_positive_mm2(labelmaps, someone, 2) == pytest.approx(4 * 6 / 6)
    assert benchmark.isolated_ml(labelmaps, someone, 2) == pytest.approx(4 * 0.042)


def test_a_piece_within_another_counts_once() -> None:
    prediction, truth = empty()
    prediction[2, 0:5, 0:5] = True
    prediction[2, 1:4, 1:4] = False
    prediction[2, 2, 2] = True  # a speck in a ring of 16 voxels
    labelmaps, someone = patient((prediction, truth))
    assert benchmark.isolated_ml(labelmaps, someone, LIVER) == pytest.approx(17 * 0.042)


def test_a_neighbour_of_another_label_is_no_neighbour() -> None:
    prediction, truth = empty()
    prediction[2, :2, :2] = True
    labelmaps, someone = patient((prediction, truth))
    labelmaps[0][3:5, :2, :2] = 2
    assert benchmark.isolated_ml(labelmaps, someone, LIVER) == pytest.approx(4 * 0.042)
    assert benchmark.isolated_ml(labelmaps, someone, 2) == 0.0


def test_pictures_have_no_millimetres_and_leave_the_volumes_theirs() -> None:
    picture = Picture(np.arange(64, dtype=np.uint8).reshape(1, 8, 8))
    stack = to_model(picture, size=16, intensity=Intensity(low=0, high=255))
    everywhere, nowhere = np.ones((8, 8), np.uint8), np.zeros((8, 8), np.uint8)
    alone = benchmark.Patient("p", (stack,), (nowhere,), None)
    assert math.isnan(benchmark.false_positive_mm2([everywhere], alone, LIVER))
    assert math.isnan(benchmark.isolated_ml([everywhere], alone, LIVER))

    prediction, truth = empty()
    prediction[3, :2, :2] = True
    labelmaps, someone = patient((prediction, truth))
    mixed = replace(someone, stacks=(stack, *someone.stacks), truths=(nowhere, *someone.truths))
    assert benchmark.false_positive_mm2([everywhere, *labelmaps], mixed, LIVER) == pytest.approx(4 * 6 / 6)
    assert benchmark.isolated_ml([everywhere, *labelmaps], mixed, LIVER) == pytest.approx(4 * 0.042)


# --- tables ------------------------------------------------------------------------------------------


def rows_of(method: str, figures: dict[str, dict[str, float]], seed: int = 0) -> list[MethodRow]:
    return [MethodRow(method, 8, seed, "t1_in", metric, patients) for metric, patients in figures.items()]


OLD = rows_of("encoder", {"dice": {"a": 0.8}, "jaccard": {"a": 0.7}})
NEW = rows_of(
    "student",
    {
        "dice": {"a": 0.9, "b": 0.7},
        "jaccard": {"a": 0.8, "b": 0.6},
        "false_positive_mm2": {"a": 12.0, "b": math.nan},
        "isolated_ml": {"a": 0.5, "b": 1.5},
    },
)


def test_the_second_table_leaves_out_undefined_patients_and_shows_old_rows_as_dashes() -> None:
    overlap, stray = benchmark.main_tables(NEW + OLD)
    assert overlap.header == ("method", "labelled", "t1_in dice", "t1_in jaccard")
    assert stray.header[2:] == ("t1_in FP, mm² a slice (n = 1)", "t1_in isolated, mL (n = 2)")
    assert stray.rows == (("student", "8", "12.00", "1.00"), ("encoder", "8", "–", "–"))
    assert benchmark.without_stray(NEW + OLD) == "encoder (0)"


def test_a_figure_that_no_patient_has_is_stored_as_null_and_read_again(tmp_path: Path) -> None:
    head = {"scale": "64 px", "model": "abc"}
    rows = [*OLD, *rows_of("student", {"false_positive_mm2": {"a": math.nan}})]
    file = tmp_path / "table.json"
    write_text(file, json_text(table_json("cross_modal", "64 px", rows) | head))
    assert json.loads(file.read_text())["rows"][-1]["mean"] is None
    read = benchmark.stored_rows(file, head)
    assert read[:2] == OLD
    assert math.isnan(read[2].patients["a"])


# --- several organs ----------------------------------------------------------------------------------


def organs_cohort(tmp_path: Path) -> Cohort:
    """A picture with liver and spleen, of a patient who lacks the right kidney."""
    truth = np.zeros((32, 32), np.uint8)
    truth[4:12, 4:12], truth[16:24, 16:24] = 1, 3
    Image.fromarray(np.add.outer(np.arange(32) * 4, np.arange(32)).astype(np.uint8)).save(
        tmp_path / "image.png"
    )
    Image.fromarray(truth).save(tmp_path / "label.png")
    labels = tuple(
        named_label(n, organ) for n, organ in enumerate(("liver", "right kidney", "spleen"), start=1)
    )
    case = Case("a", "a", str(tmp_path / "image.png"), str(tmp_path / "label.png"), split="test")
    return Cohort("organs", "ct", Intensity(0.0, 255.0), labels, (case,))


def bundle_of(cohort: Cohort) -> Bundle:
    config = SimpleNamespace(
        student_size=32,
        generator=SimpleNamespace(size=32, image_channels=1, num_classes=len(cohort.labels) + 1),
        intensity=cohort.intensity,
        squash=False,
        body=False,
        labels=cohort.labels,
        labelled=8,
        seed=3,
    )
    return SimpleNamespace(config=config, name="a model")  # type: ignore[return-value]


def test_an_organ_that_a_patient_lacks_does_not_take_the_others_along(tmp_path: Path) -> None:
    cohort = organs_cohort(tmp_path)
    bundle = bundle_of(cohort)

    def drawn(someone) -> np.ndarray:
        probs = benchmark.ceiling(someone, bundle)
        probs[0, 3, 16:20] = 0.0  # the upper half of the spleen is missed
        probs[0, 0, 16:20] = 1.0
        return probs

    rows = {
        row.metric: row.patients
        for row in benchmark.score("student", drawn, "t2", cohort, bundle, SimpleNamespace(seed=0))
    }
    assert rows["dice"] == {"a": pytest.approx((1 + 2 / 3) / 2)}
    assert rows["jaccard"] == {"a": pytest.approx((1 + 1 / 2) / 2)}


def test_classes_of_another_order_or_number_are_refused(tmp_path: Path) -> None:
    cohort = organs_cohort(tmp_path)
    benchmark.require_same_classes(cohort, bundle_of(cohort))
    liver, kidney, spleen = cohort.labels
    for labels in ((liver,), (liver, kidney), (replace(spleen, value=1), kidney, replace(liver, value=3))):
        with pytest.raises(
            InputError, match="cohort organs labels 1 liver, 2 right kidney, 3 spleen"
        ) as caught:
            benchmark.require_same_classes(cohort, bundle_of(replace(cohort, labels=labels)))
        assert "\n" not in str(caught.value)


def test_every_metric_is_scored_on_the_grid_of_the_image() -> None:
    """A method that labels everything: known without the method."""
    cohort = phantom_cohort(patients=1, labelled=1, validation=0)
    cohort = replace(cohort, cases=cohort.cases[:1])
    labels = cohort.labels
    config = SimpleNamespace(
        student_size=32,
        generator=SimpleNamespace(size=32, image_channels=1),
        intensity=cohort.intensity,
        squash=False,
        body=False,
        labels=labels,
        labelled=8,
        seed=3,
    )
    bundle: Bundle = SimpleNamespace(config=config)  # type: ignore[assignment]

    def everywhere(someone) -> np.ndarray:
        probs = np.zeros((len(someone.images), 2, 32, 32), np.float32)
        probs[:, 1] = 1.0
        return probs

    rows = benchmark.score("student", everywhere, "ct", cohort, bundle, SimpleNamespace(seed=0))
    found = {row.metric: row for row in rows}
    assert list(found) == ["dice", "jaccard", "false_positive_mm2", "isolated_ml"]
    assert all((row.method, row.labelled, row.seed, row.domain) == ("student", 8, 3, "ct") for row in rows)
    (someone,) = benchmark.read_patients(cohort, bundle)
    (stack,) = someone.stacks
    rows_mm, columns_mm, _ = stack.grid.spacing_mm * stack.shape
    assert found["false_positive_mm2"].mean == pytest.approx(rows_mm * columns_mm)
    assert found["isolated_ml"].mean == 0.0
    share = np.count_nonzero(someone.truths[0]) / someone.truths[0].size
    assert found["jaccard"].mean == pytest.approx(share)
