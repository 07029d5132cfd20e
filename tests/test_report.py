"""The report page: self-contained, honest about what it shows, safe with any name."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from skimage.draw import polygon2mask

from sgan_core.cohort import Label
from sgan_core.evaluation.tables import ScoreRow
from sgan_core.report import (
    MAX_SLICES,
    DrawnLine,
    LabelVolume,
    ReportCase,
    _outline,
    choose_slices,
    reconstruction_errors,
    render_report,
    write_report,
)

LIVER = Label(1, "liver", (221, 130, 101))
VOID = {"meta", "link", "br", "input", "img", "hr", "image", "path", "use", "rect"}


def report_case(**changes: Any) -> ReportCase:
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (12, 16, 16)).astype(np.float32)
    labels = np.zeros((12, 16, 16), np.uint8)
    labels[2:10, 4:10, 5:12] = 1
    fields: dict[str, Any] = {
        "name": "patient_1",
        "domain": "t1_in",
        "images": images,
        "labels": labels,
        "label_table": [LabelVolume(LIVER, 336, 1234.56)],
        "reconstructions": images * 0.9,
        "truth": np.roll(labels, 1, axis=1),
        "facts": {"seconds": "12.3"},
        "scores": {"encoder": 0.8123, "inversion": 0.9},
        "warnings": ["slice 3 looks odd"],
    }
    return ReportCase(**(fields | changes))


def page(*cases: ReportCase, **options: Any) -> str:
    return render_report("A run", cases, facts={"model": "phantom-ct-liver"}, **options)


class Outline(HTMLParser):
    """Collects tags and checks that they nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_page_nests_and_loads_nothing() -> None:
    html = page(report_case(), report_case(name="patient_2"))
    outline = Outline(html)
    assert outline.open == []
    assert "script" not in outline.tags
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in outline.links)
    assert "http://" not in html
    assert "https://" not in html
    assert "url(" not in html


def test_inner_links_have_unique_targets() -> None:
    outline = Outline(page(report_case(), report_case()))
    assert len(set(outline.ids)) == len(outline.ids)
    assert {link[1:] for link in outline.links if link.startswith("#")} <= set(outline.ids)


def test_slices_have_the_numbers_of_their_volume() -> None:
    html = page(report_case(first_slice=101))
    numbers = [int(found) for found in re.findall(r"<b>Slice (\d+)</b>", html)]
    assert numbers == [100 + int(found) for found in re.findall(r"<b>Slice (\d+)</b>", page(report_case()))]
    assert min(numbers) > 100


def test_it_says_what_it_is_for() -> None:
    assert "Research use only. Not a medical device." in page(report_case())


def test_facts_volumes_scores_and_warnings_are_shown() -> None:
    html = page(report_case())
    for expected in (
        "phantom-ct-liver",
        "12.3",
        "liver",
        "1,234.6 mL",
        "0.812",
        "0.900",
        "slice 3 looks odd",
    ):
        assert expected in html


@pytest.mark.parametrize("place", ["name", "domain", "warnings", "label", "facts"])
def test_names_cannot_inject_markup(place: str) -> None:
    evil = '"><img src=x onerror=alert(1)>'
    changes: dict[str, Any] = {
        "warnings": [evil],
        "label": [LabelVolume(Label(1, evil, (1, 2, 3)), 1)],
        "facts": {evil: evil},
    }
    key = "label_table" if place == "label" else place
    html = page(report_case(**{key: changes.get(place, evil)}))
    assert "<img" not in html
    assert "&lt;img src=x" in html


def test_inlined_pictures_are_the_slices() -> None:
    case = report_case()
    encoded = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page(case))
    assert len(encoded) == 3 * 8  # image, reconstruction, difference of each slice shown
    first = choose_slices(case.labels, reconstruction_errors(case))[0]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded[0]))))
    np.testing.assert_allclose(picture / 127.5 - 1, case.images[first], atol=0.005)


def test_colour_pictures_without_truth_or_reconstruction_or_spacing() -> None:
    case = ReportCase(
        name="lesion",
        domain="",
        images=np.zeros((1, 3, 16, 20), np.float32),
        labels=np.ones((1, 16, 20), np.uint8),
        label_table=[LabelVolume(LIVER, 320)],
    )
    html = page(case)
    figures = re.findall(r"<figcaption>(.*?)</figcaption>", html)
    assert figures == ["Image", "Segmentation"]
    assert " mL" not in html
    assert "<b>Picture</b>" in html
    assert not re.search(r"slice\b", html.split("<section")[1], flags=re.I)  # it has none
    assert "missed" not in re.sub(r"<style>.*?</style>", "", html, flags=re.S)  # no legend for what is absent


def test_scores_are_averaged_by_domain_and_method() -> None:
    rows = [
        ScoreRow("a", "a", "ct", "encoder", "liver", 0.5, 0.33),
        ScoreRow("b", "b", "ct", "encoder", "liver", 0.7, 0.54),
        ScoreRow("c", "c", "ct", "encoder", "liver", float("nan"), float("nan")),
    ]
    html = page(report_case(), scores_table=rows)
    assert "0.600 (1 NaN)" in html
    assert "width: 60.0%" in html
    assert "3 patients" in html


def test_write_replaces_whole_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out" / "report.html"
    write_report(path, "First", [report_case()], facts={})
    assert path.read_text(encoding="utf-8").endswith("</html>\n")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sgan_core.files.os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(path, "Second", [report_case()], facts={})
    assert "<h1>First</h1>" in path.read_text(encoding="utf-8")
    assert list(path.parent.iterdir()) == [path]


# --- which slices ----------------------------------------------------------------------------------


def test_slices_spread_over_the_label_and_include_the_worst() -> None:
    labels = np.zeros((100, 4, 4), np.uint8)
    labels[20:80, 1, 1] = 1
    errors = np.zeros(100)
    errors[95] = 1.0
    chosen = choose_slices(labels, errors)
    assert len(chosen) == MAX_SLICES
    assert chosen[-1] == 95
    assert all(20 <= n < 80 for n in chosen[:-1])
    assert np.ptp(np.diff(chosen[:-1])) <= 1


@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 30), st.just(2), st.just(2)), elements=st.integers(0, 1)),
    st.booleans(),
)
def test_chosen_slices_are_valid_sorted_and_few(labels: np.ndarray, with_errors: bool) -> None:
    errors = np.full(len(labels), np.nan) if with_errors else None
    chosen = choose_slices(labels, errors)
    assert 1 <= len(chosen) <= MAX_SLICES
    assert chosen == sorted(set(chosen))
    assert chosen[0] >= 0
    assert chosen[-1] < len(labels)


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="truth"):
        report_case(truth=np.zeros((12, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="reconstructions"):
        report_case(reconstructions=np.zeros((11, 16, 16), np.float32))


# --- lines ---


def test_lines_are_drawn_on_the_first_slice_alone_and_their_notes_told() -> None:
    """As many slices as are all shown: the first is among them."""
    case = report_case()
    parts = {name: getattr(case, name)[2:5] for name in ("images", "labels", "reconstructions", "truth")}
    line = DrawnLine("<width>", [(1.0, 2.5), (9.25, 2.5)])
    html = page(report_case(**parts, lines=[line], notes=["above <1> it is wide"]))
    assert Outline(html).open == []
    drawn = '<path class="line" d="M1 2.5L9.25 2.5"><title>&lt;width&gt;</title></path>'
    assert html.count('class="line"') == html.count(drawn) == 1
    first, _, others = html.partition("<b>Slice 2</b>")
    assert drawn in first.partition("<figcaption>Image</figcaption>")[2]
    assert others
    assert "above &lt;1&gt; it is wide" in first


# --- outlines --------------------------------------------------------------------------------------


def test_outline_runs_around_the_mask_in_picture_coordinates() -> None:
    mask = np.zeros((20, 30), bool)
    mask[0:8, 5:25] = True  # touches the upper edge
    mask[3:5, 10:15] = False  # a hole
    filled = np.zeros((200, 300), int)
    for contour in _outline(mask).strip("MZ").split("ZM"):
        points = np.array([[float(value) for value in point.split()] for point in contour.split("L")])
        filled += polygon2mask(
            filled.shape, points[:, ::-1] * 10 - 0.5
        )  # (x, y) -> (row, column), ten a pixel
    magnified = mask.repeat(10, axis=0).repeat(10, axis=1)
    assert np.mean((filled % 2 == 1) != magnified) < 0.005  # corners are cut


def test_empty_mask_has_no_outline() -> None:
    assert _outline(np.zeros((5, 5), bool)) == ""


def test_a_smaller_generator_is_judged_by_what_it_was_shown() -> None:
    """Detail finer than its pixels is no error of its reconstruction: the error is that of the averages."""
    fine = np.tile(np.array([[-0.5, 0.5], [0.5, -0.5]], np.float32), (8, 8))
    images = np.zeros((12, 16, 16), np.float32) + fine
    drawn = np.zeros((12, 8, 8), np.float32)
    drawn[7] = 0.2
    case = report_case(images=images, reconstructions=drawn)
    errors = reconstruction_errors(case)
    assert errors is not None
    np.testing.assert_allclose(errors, [0.2 if n == 7 else 0.0 for n in range(12)], atol=1e-6)
    assert "reconstruction error 10.0%" in page(case)
    with pytest.raises(ValueError, match="reconstructions"):
        report_case(reconstructions=drawn[:, :7, :7])
