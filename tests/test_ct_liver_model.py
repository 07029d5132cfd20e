"""The liver model of the repository on a real CT that it never saw, and what it says of its terms."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sgan_core.bundle import Bundle, load_bundle
from sgan_core.cli import data, segment
from sgan_core.cohort import load_cohort
from sgan_core.known_models import checkout, known_models
from sgan_core.metrics.per_patient import dice_from_counts
from sgan_core.terms import terms_of
from sgan_core.training.data import read_case

RESTRICTION = "research only, not for commercial use"


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle("ct-liver")


def test_a_ct_of_another_hospital(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CHAOS, patient 3: as good as in its card; the person is told the terms, and to review."""
    chaos = shared / "data" / "CHAOS"
    assert data.main(["prepare", "chaos-ct", str(chaos), "--output", str(tmp_path / "truth")]) == 0
    cohort = load_cohort(tmp_path / "truth")
    _, truth = read_case(cohort.cases[0], cohort)
    capsys.readouterr()

    scan = chaos / "Train_Sets" / "CT" / "3" / "DICOM_anon"
    out = tmp_path / "out"
    assert segment.main([str(scan), "--model", "ct-liver", "--quality", "fast", "--output", str(out)]) == 0
    assert RESTRICTION in " ".join(capsys.readouterr().err.split())
    run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    (case,) = run["cases"]
    assert case["trust"]["status"] == "review"  # nothing judges a student alone
    assert RESTRICTION in json.dumps(run["bundle"])
    assert RESTRICTION in (out / "report.html").read_text(encoding="utf-8")
    (file,) = out.glob("*_seg.nii.gz")
    drawn = np.asarray(nib.load(file).dataobj) == 1
    assert truth is not None
    assert drawn.shape == truth.shape
    assert dice_from_counts((drawn & (truth == 1)).sum(), drawn.sum(), (truth == 1).sum()) > 0.94
    (label,) = case["labels"]
    assert label["name"] == "liver"
    assert label["volume_ml"] == pytest.approx(
        drawn.sum() * np.prod(nib.load(file).header.get_zooms()) / 1000, rel=1e-3
    )


def test_it_says_on_what_terms_it_goes_round(bundle: Bundle) -> None:
    terms = terms_of(bundle.facts)
    assert (terms.licence, terms.restriction) == ("CC BY-NC-SA 4.0", RESTRICTION)
    assert [source.name for source in terms.sources] == ["lits-slices"]
    card = (bundle.folder / "docs" / "README.md").read_text(encoding="utf-8")
    assert "not for commercial use" in card
    assert "CC BY-NC-SA 4.0" in (bundle.folder / "LICENSE").read_text(encoding="utf-8")


def test_it_cannot_draw_a_patient_again(bundle: Bundle) -> None:
    """A student alone: no generator, encoder or discriminator in any file; and small."""
    assert bundle.inverter is None
    assert {file.name for file in (bundle.folder / "models").iterdir()} == {"student.safetensors"}
    assert sum(file.stat().st_size for file in bundle.folder.rglob("*") if file.is_file()) < 15e6


def test_its_liver_is_one_piece(bundle: Bundle) -> None:
    assert bundle.one_piece == (1,)


def test_it_is_the_repositorys_not_the_packages() -> None:
    model = known_models()["ct-liver"]
    assert model.place == "checkout"
    assert model.folder == checkout() / "models" / "ct-liver"
