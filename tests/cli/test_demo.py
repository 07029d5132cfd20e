"""sgan-demo: the files it promises, with scores that mean something."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from sgan_core.bundle import load_bundle
from sgan_core.cli.demo import main
from sgan_core.demo import run_demo
from sgan_core.errors import Cancelled, InputError
from sgan_core.metrics.per_patient import label_scores
from sgan_core.phantom import DOMAINS, TEST_SEEDS

CASES = [f"phantom-{TEST_SEEDS}_{domain}" for domain in DOMAINS]


def scores(output: Path) -> dict[str, Any]:
    return json.loads((output / "scores.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def toured(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the demo with one patient and an untrained model."""
    output = tmp_path_factory.mktemp("demo") / "out"
    assert main(["--model", str(tiny_bundle), "--patients", "1", "--output", str(output)]) == 0
    return output


def test_files_of_the_demo(toured: Path) -> None:
    wanted = {"scores.json", "report.html"}
    for name in CASES:
        wanted |= {f"volumes/{name}.nii.gz", f"references/{name}.nii.gz", f"segmentations/{name}_seg.nii.gz"}
    found = {path.relative_to(toured).as_posix() for path in toured.rglob("*") if path.is_file()}
    assert found == wanted


@pytest.mark.parametrize("case", CASES)
def test_segmentation_and_reference_lie_on_the_volume(case: str, toured: Path) -> None:
    volume = nib.load(toured / "volumes" / f"{case}.nii.gz")
    for other in (f"references/{case}.nii.gz", f"segmentations/{case}_seg.nii.gz"):
        image = nib.load(toured / other)
        assert image.shape == volume.shape
        np.testing.assert_allclose(image.affine, volume.affine, atol=1e-5)
    assert (np.asarray(nib.load(toured / "references" / f"{case}.nii.gz").dataobj) == 1).sum() > 1000


def test_scores_are_those_of_the_files(toured: Path) -> None:
    table = scores(toured)
    assert table.keys() >= {"rows", "mean_dice"}
    rows = {(row["case"], row["method"]): row for row in table["rows"]}
    assert rows.keys() == {(case, method) for case in CASES for method in ("encoder", "inversion")}
    for case in CASES:
        row = rows[case, "inversion"]
        keys = {"case", "patient", "domain", "method", "label", "dice", "jaccard"}
        assert row.keys() == keys
        assert (row["patient"], row["label"]) == (f"phantom-{TEST_SEEDS}", "liver")
        found, truth = (
            np.asarray(nib.load(toured / path).dataobj)
            for path in (f"segmentations/{case}_seg.nii.gz", f"references/{case}.nii.gz")
        )
        assert row["dice"] == pytest.approx(label_scores(found, truth).dice)
        assert table["mean_dice"][row["domain"]]["inversion"] == pytest.approx(row["dice"])
    assert table["mean_dice"].keys() == set(DOMAINS)


def test_report_shows_every_case(toured: Path) -> None:
    page = (toured / "report.html").read_text(encoding="utf-8")
    assert all(case in page for case in CASES)
    assert "tiny-ct-liver" in page


def test_table_and_report_are_named(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", str(tiny_bundle), "--patients", "1", "--output", str(tmp_path / "out")]
    assert main(options) == 0
    printed = capsys.readouterr().out
    assert f"Report: {tmp_path / 'out' / 'report.html'}" in printed
    assert all(word in printed for word in (*DOMAINS, "encoder", "inversion", "mean"))


def test_no_patients_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    assert main(["--model", str(tiny_bundle), "--patients", "0", "--output", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def test_model_without_a_liver_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    labels = (dataclasses.replace(bundle.config.labels[0], name="lung"),)
    bundle = dataclasses.replace(bundle, config=dataclasses.replace(bundle.config, labels=labels))
    with pytest.raises(InputError, match="needs a model with the label 'liver'; this one has: lung"):
        run_demo(bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_progress_rises_to_its_total(tiny_bundle: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def stop_in_the_second_case() -> bool:
        return bool(seen) and 1000 * len(DOMAINS) * seen[-1][0] > 1200 * seen[-1][1]

    with pytest.raises(Cancelled):
        run_demo(
            load_bundle(tiny_bundle),
            tmp_path,
            patients=1,
            on_progress=lambda done, total, message: seen.append((done, total)),
            should_stop=stop_in_the_second_case,
        )
    assert seen == sorted(seen)
    assert not (tmp_path / "scores.json").exists()
    assert (tmp_path / "segmentations" / f"{CASES[0]}_seg.nii.gz").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("all_threads")
def test_bundled_model_finds_the_liver(tmp_path: Path) -> None:
    assert main(["--patients", "1", "--output", str(tmp_path / "out")]) == 0
    mean = scores(tmp_path / "out")["mean_dice"]
    assert mean["ct"]["inversion"] > 0.5  # all background gives 0, a disc in the right place less than 0.5
    assert all(not math.isnan(dice) for methods in mean.values() for dice in methods.values())
