"""Scores as tables: schemas that other programs read, text that people read."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import pytest

from sgan_core.evaluation.tables import (
    MethodRow,
    ScoreRow,
    Table,
    csv_text,
    dice_table,
    json_text,
    markdown,
    mean_dice,
    mean_text,
    method_table,
    number,
    print_table,
    scores_json,
    table_json,
    write_text,
)


def row(patient: str, domain: str, method: str, dice: float, label: str = "liver") -> ScoreRow:
    return ScoreRow(f"{patient}_{domain}", patient, domain, method, label, dice, dice / (2 - dice))


ROWS = [
    row("p1", "ct", "encoder", 0.8),
    row("p1", "ct", "inversion", 0.9),
    row("p2", "ct", "encoder", 0.6),
    row("p2", "ct", "inversion", math.nan),
    row("p1", "t1_in", "inversion", 0.7),
]


def test_mean_dice_by_domain_and_method_leaves_nan_out() -> None:
    assert mean_dice(ROWS) == {
        "ct": {"encoder": pytest.approx(0.7), "inversion": pytest.approx(0.9)},
        "t1_in": {"inversion": pytest.approx(0.7)},
    }


def test_scores_json_has_the_published_schema() -> None:
    payload = json.loads(json_text(scores_json(ROWS)))
    assert list(payload["rows"][0]) == ["case", "patient", "domain", "method", "label", "dice", "jaccard"]
    assert payload["rows"][3]["dice"] is None  # NaN is not JSON
    assert payload["mean_dice"]["ct"]["inversion"] == 0.9
    assert payload["nan_dice"]["ct"] == {"encoder": 0, "inversion": 1}


def test_dice_table_puts_methods_across_and_the_mean_below_each_domain() -> None:
    table = dice_table(ROWS)
    assert table.header == ("domain", "patient", "encoder", "inversion")
    assert table.rows == (
        ("ct", "p1", "0.800", "0.900"),
        ("ct", "p2", "0.600", "–"),
        ("ct", "mean", "0.700", "0.900 (1 NaN)"),
        ("t1_in", "p1", "–", "0.700"),
        ("t1_in", "mean", "–", "0.700"),
    )


def test_dice_table_names_the_label_when_there_are_several() -> None:
    table = dice_table([row("p1", "ct", "m", 0.5), row("p1", "ct", "m", 0.6, label="spleen")])
    assert [line[1] for line in table.rows] == ["p1 liver", "p1 spleen", "mean"]


def test_table_json_has_the_published_schema() -> None:
    rows = [MethodRow("unet", 8, 0, "t1_in", "dice", {"a": 0.5, "b": 0.7})]
    assert table_json("3", "tiny", rows) == {
        "table": "3",
        "scale": "tiny",
        "rows": [
            {
                "method": "unet",
                "labelled": 8,
                "seed": 0,
                "domain": "t1_in",
                "metric": "dice",
                "patients": {"a": 0.5, "b": 0.7},
                "mean": pytest.approx(0.6),
            }
        ],
    }


def test_method_table_gives_spread_over_seeds() -> None:
    rows = [MethodRow("unet", 8, seed, "ct", "dice", {"a": 0.5 + 0.1 * seed}) for seed in (0, 1)]
    rows.append(MethodRow("inversion", 8, 0, "ct", "dice", {"a": 0.9}))
    table = method_table("Table 3", rows)
    assert table.header == ("method", "labelled", "ct dice")
    assert table.rows == (("unet", "8", "0.550 ± 0.071"), ("inversion", "8", "0.900"))


def test_mean_text_counts_nan() -> None:
    assert mean_text([0.5, math.nan, math.nan]) == "0.500 (2 NaN)"
    assert mean_text([]) == "–"
    assert number(math.nan) == "–"


def test_markdown_escapes_bars() -> None:
    text = markdown(Table("T", ("name", "dice"), (("a|b", "0.5"),)))
    assert text == "**T**\n\n| name | dice |\n| --- | ---: |\n| a\\|b | 0.5 |\n"


def test_printed_table_is_never_cut_and_takes_text_literally() -> None:
    stream = io.StringIO()
    wide = "x" * 150
    print_table(Table("", ("a", "b"), ((wide, "[red]0.5[/red] :smile:"),)), file=stream)
    assert f"{wide}   [red]0.5[/red] :smile:" in stream.getvalue()


def test_csv_leaves_nan_empty() -> None:
    text = csv_text([{"patient": "a,b", "dice": math.nan}])
    assert list(csv.DictReader(io.StringIO(text))) == [{"patient": "a,b", "dice": ""}]


def test_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "scores.json"
    write_text(path, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sgan_core.files.os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert [p.name for p in path.parent.iterdir()] == ["scores.json"]
    assert path.read_text() == "old"
