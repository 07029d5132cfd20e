"""The cardiothoracic ratio: shapes whose ratio is known, what must not set it, when there is none, real masks."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sgan_core import batch
from sgan_core.batch import BatchConfig, run_batch
from sgan_core.cardiothoracic import (
    HOW_TO_READ,
    Width,
    bracket,
    cardiothoracic_ratio,
    measures_chests,
    ratio_text,
)
from sgan_core.cohort import Intensity, Label
from sgan_core.imaging.grid import Grid
from sgan_core.imaging.image import Picture, Volume
from sgan_core.imaging.slices import labels_to_model, to_model
from sgan_core.imaging.writers import write_volume
from sgan_core.inputs import find_inputs
from sgan_core.segment import Segmentation
from sgan_core.trust import Trust

LABELS = (
    Label(1, "left lung", (1, 2, 3), "44029006"),
    Label(2, "right lung", (4, 5, 6), "3341006"),
    Label(3, "heart", (7, 8, 9), "80891009"),
)


def chest() -> np.ndarray:
    """(60, 80): lungs from column 10 to 70, the heart from 30 to 54: 24 / 60 = 0.4."""
    labelmap = np.zeros((60, 80), np.uint8)
    labelmap[10:50, 46:70] = 1  # the patient's left is on the right of the picture
    labelmap[12:48, 10:32] = 2
    labelmap[30:44, 30:54] = 3
    return labelmap


def ellipse(
    labelmap: np.ndarray, value: int, centre: tuple[float, float], radii: tuple[float, float]
) -> None:
    """Paint an ellipse; centre and radii in rows and columns."""
    rows, columns = np.indices(labelmap.shape)
    inside = ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 < 1
    labelmap[inside] = value


def ratio(labelmap: np.ndarray) -> float | None:
    return cardiothoracic_ratio(labelmap, LABELS).ratio


# --- shapes ----------------------------------------------------------------------------------------


def test_rectangles_have_the_ratio_of_their_widths() -> None:
    found = cardiothoracic_ratio(chest(), LABELS)
    assert found.ratio == pytest.approx(0.4)
    assert found.heart == Width(30, 54, 37.0, 37.0)
    assert found.thorax == Width(10, 70, 30.0, 30.0)
    assert (found.reason, found.warnings) == (None, ())


@pytest.mark.parametrize("heart_radius", [40.0, 55.5, 71.0])
def test_ellipses_have_the_ratio_of_their_axes(heart_radius: float) -> None:
    labelmap = np.zeros((300, 400), np.uint8)
    ellipse(labelmap, 1, (140, 290), (110, 70))  # to column 360
    ellipse(labelmap, 2, (150, 110), (100, 75))  # from column 35
    ellipse(labelmap, 3, (190, 215), (60, heart_radius))
    assert ratio(labelmap) == pytest.approx(2 * heart_radius / 325, abs=2 / 325)


def test_borders_of_the_heart_are_taken_at_different_heights() -> None:
    """As the greatest distances from the midline are: no single row is as wide as that."""
    labelmap = chest()
    labelmap[20:30, 26:32] = 3  # to the right further up, 4 columns more
    found = cardiothoracic_ratio(labelmap, LABELS)
    assert found.heart == Width(26, 54, 25.0, 37.0)
    assert found.ratio == pytest.approx(28 / 60)
    assert bracket(found.heart) == [(26, 25.0), (26, 31.0), (54, 31.0), (54, 37.0)]


def test_lungs_are_taken_at_different_heights() -> None:
    labelmap = chest()
    labelmap[40:46, 70:74] = 1
    labelmap[14:20, 6:10] = 2
    found = cardiothoracic_ratio(labelmap, LABELS)
    assert found.thorax == Width(6, 74, 17.0, 43.0)
    assert found.ratio == pytest.approx(24 / 68)


def test_sides_make_no_difference() -> None:
    mirrored = np.fliplr(chest())
    assert ratio(mirrored) == pytest.approx(0.4)
    swapped = np.array([0, 2, 1, 3], np.uint8)[mirrored]  # as with another view of left and right
    assert ratio(swapped) == pytest.approx(0.4)
    assert ratio(np.flipud(chest())) == pytest.approx(0.4)


def test_labels_are_known_by_code_not_by_name_or_value() -> None:
    others = (
        Label(1, "lung", (1, 2, 3), "80891009"),
        Label(2, "Herz", (1, 2, 3), "44029006"),
        Label(4, "x", (1, 2, 3), "3341006"),
        Label(5, "heart", (1, 2, 3), "15825003"),
    )
    labelmap = np.array([0, 2, 4, 1], np.uint8)[chest()]
    labelmap[20:22, 2:78] = 5
    labelmap[20:22, 10:32], labelmap[20:22, 46:70] = 4, 2
    assert cardiothoracic_ratio(labelmap, others).ratio == pytest.approx(0.4)
    assert measures_chests(others)
    assert not measures_chests(others[1:])
    assert not measures_chests([Label(1, "heart", (1, 2, 3)), Label(2, "left lung", (1, 2, 3))])


@st.composite
def chests(draw: st.DrawFn) -> np.ndarray:
    """Three rectangles as in a frontal view, with two rows and columns of background around."""
    numbers = st.integers(3, 12)
    right, gap, left, top = (draw(numbers) for _ in range(4))
    width, height = right + gap + left, draw(st.integers(6, 14))
    labelmap = np.zeros((height + 4, width + 4), np.uint8)
    labelmap[2 : 2 + height, 2 : 2 + right] = 2
    labelmap[2 : 2 + height, 2 + right + gap : 2 + width] = 1
    over = draw(st.tuples(st.integers(0, right // 3), st.integers(0, left // 3)))
    low = min(2 + top // 3, height)
    labelmap[low : low + 2, 2 + right - over[0] : 2 + right + gap + over[1]] = 3
    return labelmap


@given(chests(), st.integers(1, 4), st.integers(1, 4), st.tuples(*[st.integers(0, 9)] * 4))
def test_scale_and_place_change_nothing(
    labelmap: np.ndarray, across: int, down: int, around: tuple[int, int, int, int]
) -> None:
    before = cardiothoracic_ratio(labelmap, LABELS)
    larger = np.pad(labelmap.repeat(down, axis=0), (around[:2], around[2:])).repeat(across, axis=1)
    after = cardiothoracic_ratio(larger, LABELS)
    if before.ratio is None:
        assert after.ratio is None or down < across  # squashed, the lungs may lie side by side again
        return
    if after.ratio is None:
        assert "side by side" in (after.reason or "")
        assert down > across  # stretched until they lie above each other
        return
    assert after.ratio == pytest.approx(before.ratio)
    assert 0 < after.ratio < 1
    assert after.heart is not None
    assert before.heart is not None
    assert after.heart.left == (before.heart.left + around[2]) * across
    assert after.heart.left_row == pytest.approx(before.heart.left_row * down + around[0])


# --- what must not set a width ---------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, 2, 3])
def test_small_islands_set_no_width(value: int) -> None:
    labelmap = chest()
    labelmap[3:6, 2:4] = labelmap[50:53, 76:78] = value
    found = cardiothoracic_ratio(labelmap, LABELS)
    assert found.ratio == pytest.approx(0.4)
    assert found.warnings == ()


def test_islands_at_the_border_do_not_cut_the_thorax_off() -> None:
    labelmap = chest()
    labelmap[0, 0] = 3
    labelmap[-1, -1] = 1
    assert ratio(labelmap) == pytest.approx(0.4)


def test_a_mask_in_pieces_is_said() -> None:
    labelmap = chest()
    labelmap[3:9, 2:22] = 3  # 120 of 456 pixels
    found = cardiothoracic_ratio(labelmap, LABELS)
    assert found.ratio == pytest.approx(0.4)
    (said,) = found.warnings
    assert "26% of the mask of the heart" in said


# --- when there is none ----------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "name"), [(1, "left lung"), (2, "right lung"), (3, "heart")])
def test_without_an_organ_there_is_none(value: int, name: str) -> None:
    labelmap = chest()
    labelmap[labelmap == value] = 0
    found = cardiothoracic_ratio(labelmap, LABELS)
    assert (found.ratio, found.heart, found.thorax) == (None, None, None)
    assert found.reason == f"no {name} was found"
    assert found.warnings == (f"no cardiothoracic ratio: no {name} was found",)


def test_an_empty_mask_has_none() -> None:
    assert ratio(np.zeros((5, 4), np.uint8)) is None


@pytest.mark.parametrize(
    ("cut", "name", "border"),
    [
        (np.s_[:, :69], "left lung", "right"),
        (np.s_[:, 12:], "right lung", "left"),
        (np.s_[10:], "left lung", "upper"),
        (np.s_[:50], "left lung", "lower"),
    ],
)
def test_a_thorax_that_is_cut_off_has_none(cut: Any, name: str, border: str) -> None:
    found = cardiothoracic_ratio(chest()[cut], LABELS)
    assert found.ratio is None
    assert found.reason == f"the {name} reaches the {border} border of the picture, so the thorax is cut off"
    assert "cut off" in found.warnings[0]


def test_a_heart_at_the_border_has_none() -> None:
    labelmap = chest()
    labelmap[40:, 36:40] = 3
    assert "the heart reaches the lower border" in (cardiothoracic_ratio(labelmap, LABELS).reason or "")


def wide_heart() -> np.ndarray:
    labelmap = chest()
    labelmap[30:44, 8:72] = 3
    return labelmap


def heart_beside() -> np.ndarray:
    labelmap = chest()
    labelmap[labelmap == 3] = 0
    labelmap[30:44, 60:70] = 3
    return labelmap


def one_fleck_of_a_lung() -> np.ndarray:
    labelmap = chest()
    labelmap[labelmap == 2] = 0
    labelmap[30:34, 20:24] = 2
    return labelmap


@pytest.mark.parametrize(
    ("labelmap", "reason"),
    [
        (wide_heart(), "the heart reaches beyond the lungs"),
        (heart_beside(), "the heart does not lie between the lungs"),
        (chest().T, "the lungs do not lie side by side"),
        (one_fleck_of_a_lung(), "the right lung is less than 20% as large as the other lung"),
    ],
)
def test_no_frontal_view_has_none(labelmap: np.ndarray, reason: str) -> None:
    found = cardiothoracic_ratio(labelmap, LABELS)
    assert found.ratio is None
    assert found.reason == f"{reason}, so this is no plausible frontal view"


@pytest.mark.parametrize("trust", ["ok", "review"])
def test_the_number_never_stands_alone(trust: str) -> None:
    record = cardiothoracic_ratio(chest(), LABELS).record(trust)
    assert ratio_text(record) == f"0.40 (trust: {trust})"
    assert record["trust"] == trust
    none = cardiothoracic_ratio(np.zeros((5, 4), np.uint8), LABELS).record(trust)
    assert ratio_text(none) == "none"


# --- real masks ------------------------------------------------------------------------------------


def _load_benchmark() -> ModuleType:
    """It is a script, not a package."""
    file = Path(__file__).parents[1] / "benchmarks" / "cardiothoracic_ratio.py"
    spec = importlib.util.spec_from_file_location("cardiothoracic_ratio_benchmark", file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


benchmark = _load_benchmark()


def agrees(row: dict[str, Any]) -> bool:
    """To about a pixel: the thorax of a picture of 512 is 430 pixels wide, so one of the heart's is 0.0023."""
    return (
        row["mean_absolute_difference"] < 0.002
        and row["largest_difference"] < 0.006
        and abs(row["bias"]) < 0.0005
    )


def test_annotators_of_wingspan_measure_the_same(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their 155 published ratios, from their own masks; no other definition agrees."""
    folder = shared / "data" / "Wingspan"
    if not folder.is_dir():
        pytest.skip("Wingspan not found")
    assert benchmark.main([str(folder), "--output", str(tmp_path / "out.json")]) == 0
    rows = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["rows"]
    ours, *others = rows.values()
    assert (ours["count"], ours["undefined"]) == (155, 0)
    assert agrees(ours)
    assert len(others) == 3
    assert not any(map(agrees, others))
    assert len(capsys.readouterr().out.splitlines()) == 2 + 4
    written = Path(__file__).parents[1] / "benchmarks" / "results" / "cardiothoracic_ratio.json"
    assert json.loads(written.read_text(encoding="utf-8"))["rows"] == rows


def test_agreement_in_closed_form() -> None:
    published = {"a": 0.5, "b": 0.4, "c": 0.6, "d": 0.5, "not measured": 0.1}
    row = benchmark.agreement({"a": 0.51, "b": 0.42, "c": 0.57, "d": None, "unpublished": 0.9}, published)
    assert (row["count"], row["undefined"]) == (3, 1)
    assert row["mean_absolute_difference"] == pytest.approx(0.02)
    assert row["largest_difference"] == pytest.approx(0.03)
    assert row["bias"] == pytest.approx(0.0, abs=1e-12)
    spread = np.sqrt((0.01**2 + 0.02**2 + 0.03**2) / 2)
    assert row["limits_of_agreement"] == pytest.approx([-1.96 * spread, 1.96 * spread], abs=1e-6)


def test_other_definitions_on_shapes() -> None:
    labelmap = chest()
    labelmap[40:46, 70:74] = 1  # further out below, in rows without the heart's upper part
    labelmap[20:30, 26:32] = 3
    masks = tuple(labelmap == value for value in (1, 2, 3))
    assert benchmark.over_widest_row(masks) == pytest.approx(28 / 64)
    assert benchmark.both_in_one_row(masks) == pytest.approx(24 / 64)
    labelmap[41:48, 16:22] = 0  # the dome
    masks = tuple(labelmap == value for value in (1, 2, 3))
    assert benchmark.over_dome_row(masks) == pytest.approx(28 / 64)
    labelmap[38:48, 16:22] = 0  # above what is further out
    masks = tuple(labelmap == value for value in (1, 2, 3))
    assert benchmark.over_dome_row(masks) == pytest.approx(28 / 60)


def test_ratios_of_a_run_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ctr_ground_truth.csv").write_text("id,ctr\n1.2.3.png,0.5\n1.2.4.png,0.4\n1.2.5.png,0.4\n")
    cases = [
        {"case": "1.2.3", "status": "done", "cardiothoracic_ratio": {"ratio": 0.52}},
        {"case": "1.2.4", "status": "done", "cardiothoracic_ratio": {"ratio": 0.4}},
        {"case": "1.2.5", "status": "done", "cardiothoracic_ratio": {"ratio": None}},
        {"case": "other", "status": "done", "cardiothoracic_ratio": None},
        {"case": "broken", "status": "failed"},
    ]
    (tmp_path / "run.json").write_text(json.dumps({"cases": cases}))
    assert benchmark.main([str(tmp_path), "--run", str(tmp_path / "run.json")]) == 0
    assert "| 2 | 1 | 0.0100 | 0.020 | +0.0100 |" in capsys.readouterr().out
    (tmp_path / "run.json").write_text('{"cases": [{"case": "a", "status": "done"}]}')
    assert benchmark.main([str(tmp_path), "--run", str(tmp_path / "run.json")]) == 2
    assert benchmark.main([str(tmp_path / "none")]) == 2
    assert "no ctr_ground_truth.csv in it" in capsys.readouterr().err


# --- in a run, with a stand-in for the model -------------------------------------------------------


class Runs:
    """Runs a batch whose model draws a given label map, as a picture or a volume of one slice."""

    def __init__(self, folder: Path, bundle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.bundle, self.monkeypatch = folder, bundle, monkeypatch
        bundle.config.labels, bundle.config.modality = LABELS, "xray"

    def __call__(
        self, labels: np.ndarray, *, trust: str = "ok", squash: bool = True, grid: Grid | None = None
    ) -> tuple[dict[str, Any], str]:
        """The case in run.json, and the report. labels: (H, W), or of the grid."""

        def segment(image: Picture | Volume, *_: Any, **__: Any) -> Segmentation:
            stack = to_model(image, size=32, intensity=Intensity(percentiles=(0.0, 100.0)), squash=squash)
            probs = np.moveaxis(
                np.eye(4)[labels_to_model(labels, stack)], -1, 1
            )  # (N, S, S, K) -> (N, K, S, S)
            judged = Trust(trust, 1.0, "made up")
            return Segmentation(
                labels, stack, None, probs, None, None, judged, "student", None, 0, 0.1, ("odd",)
            )

        self.monkeypatch.setattr(batch, "segment_volume", segment)
        ramp = np.arange(labels.size, dtype=np.uint16).reshape(labels.shape)
        file = self.folder / ("x.png" if grid is None else "x.nii.gz")
        if grid is None:
            Image.fromarray(ramp).save(file)
        else:
            write_volume(file, ramp, grid)
        output = self.folder / "out"
        run_batch(find_inputs([file]).inputs, self.bundle, output, BatchConfig(), options={}, redo=True)
        (case,) = json.loads((output / "run.json").read_text(encoding="utf-8"))["cases"]
        return case, (output / "report.html").read_text(encoding="utf-8").split("</style>")[1]


@pytest.fixture
def run(tmp_path: Path, batch_bundle: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(tmp_path, batch_bundle, monkeypatch)


def lines(report: str) -> dict[str, np.ndarray]:
    """The points (n, 2) of the lines drawn in a report, as (x, y), by name."""
    found = re.findall(r'<path class="line" d="M([^"]*)"><title>([^<]*)</title>', report)
    assert len(found) == report.count('class="line"')
    return {name: np.array([point.split() for point in path.split("L")], float) for path, name in found}


@pytest.mark.parametrize("trust", ["ok", "review"])
def test_run_json_and_report_have_the_ratio_beside_the_trust(run: Runs, trust: str) -> None:
    case, report = run(chest(), trust=trust)
    assert case["cardiothoracic_ratio"] == {
        "ratio": 0.4,
        "reason": None,
        "trust": trust,
        "heart": {"left": 30, "right": 54, "left_row": 37.0, "right_row": 37.0},
        "thorax": {"left": 10, "right": 70, "left_row": 30.0, "right_row": 30.0},
    }
    assert case["warnings"] == ["odd"]
    assert f"<dt>Cardiothoracic ratio</dt><dd>0.40 (trust: {trust})</dd>" in report
    assert f'<p class="note">{HOW_TO_READ}</p>' in report
    for word in ("0.5", "PA film", "AP and supine", "not a diagnosis"):
        assert word in HOW_TO_READ


@pytest.mark.parametrize("squash", [True, False])
def test_lines_of_the_report_end_at_the_outermost_points(run: Runs, squash: bool) -> None:
    """In pixels of the model's slice: 32 for 80 columns, and for 60 rows, or 24 of them in the middle."""
    labelmap = chest()
    labelmap[20:30, 26:32] = 3
    _, report = run(labelmap, squash=squash)
    drawn = lines(report)
    assert drawn.keys() == {"width of the heart", "width of the thorax"}
    down, above = (32 / 60, 0) if squash else (32 / 80, 4)
    for name, ends in (
        ("width of the heart", ((26, 25.0), (54, 37.0))),
        ("width of the thorax", ((10, 30.0), (70, 30.0))),
    ):
        points = drawn[name]
        expected = [(x * 32 / 80, y * down + above) for x, y in ends]
        np.testing.assert_allclose(points[[0, -1]], expected, atol=1e-3)
        assert points[1, 1] == points[2, 1]  # level
        np.testing.assert_allclose(points[1:3, 0], points[[0, -1], 0])


def test_none_is_told_with_its_reason(run: Runs) -> None:
    case, report = run(chest()[:, :69])
    found = case["cardiothoracic_ratio"]
    assert (found["ratio"], found["heart"], found["thorax"]) == (None, None, None)
    assert "cut off" in found["reason"]
    assert case["warnings"] == ["odd", f"no cardiothoracic ratio: {found['reason']}"]
    assert "<dt>Cardiothoracic ratio</dt><dd>none</dd>" in report
    assert f"<li>no cardiothoracic ratio: {found['reason']}</li>" in report
    assert lines(report) == {}
    assert HOW_TO_READ not in report


def test_models_of_other_things_are_left_alone(run: Runs) -> None:
    run.bundle.config.labels = tuple(Label(one.value, one.name, one.rgb) for one in LABELS)
    case, report = run(chest())
    assert case["cardiothoracic_ratio"] is None
    assert case["warnings"] == ["odd"]
    assert "Cardiothoracic" not in report
    assert lines(report) == {}


@pytest.mark.parametrize("axes", ["LPS", "RAS", "PLS"])
def test_a_volume_of_one_slice_is_a_picture(run: Runs, axes: str) -> None:
    """As 3D Slicer hands a grey X-ray over, in any order of the axes of its file; seen as a picture it is the chest."""
    directions = {"L": (-1, 0, 0), "R": (1, 0, 0), "P": (0, -1, 0), "A": (0, 1, 0), "S": (0, 0, 1)}
    seen = chest()
    stored = {"LPS": seen.T, "RAS": seen.T[::-1, ::-1], "PLS": seen}[axes]
    affine = np.eye(4)
    affine[:3, :3] = np.array([directions[axis] for axis in axes]).T
    case, report = run(stored[..., None], grid=Grid((*stored.shape, 1), affine))
    assert case["cardiothoracic_ratio"]["ratio"] == 0.4
    assert case["cardiothoracic_ratio"]["heart"]["left"] == 30
    np.testing.assert_allclose(lines(report)["width of the heart"][[0, -1], 0], [30 * 0.4, 54 * 0.4])


def test_a_volume_of_several_slices_has_none(run: Runs) -> None:
    case, report = run(
        np.stack([chest().T] * 3, axis=-1), grid=Grid((80, 60, 3), np.diag([-1.0, -1.0, 1.0, 1.0]))
    )
    assert case["cardiothoracic_ratio"] is None
    assert lines(report) == {}
