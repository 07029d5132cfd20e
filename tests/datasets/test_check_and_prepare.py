"""A small data set with every kind of fault, checked, prepared, and through the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sgan_datasets
from sgan_core.cli.data import main
from sgan_core.cohort import Case, Cohort, Intensity, Label, load_cohort
from sgan_core.errors import InputError
from sgan_core.imaging.readers import read_image, read_labels
from sgan_datasets.check import check
from sgan_datasets.prepare import prepare
from sgan_datasets.source import About, DataSet, Problem, Scan

ABOUT = About("faulty", "xray", "made up", "6 pictures", "nowhere", "none", layout="images/, masks/")
LUNG = Label(1, "lung", (197, 165, 145), stored_values=(128, 255))


def scan(root: Path) -> Scan:
    files = sorted((root / "images").glob("*.png")) if (root / "images").is_dir() else []
    if not files:
        raise InputError(f"{root}: no images/ folder with pictures in it.")
    cases, problems = [], []
    for file in files:
        mask = root / "masks" / file.name
        if not mask.exists():
            problems.append(Problem("missing", f"{file.name} has no mask"))
        cases.append(
            Case(
                f"faulty-{file.stem}",
                patient=f"faulty-{file.stem[0]}",
                image=str(file),
                label=str(mask) if mask.exists() else None,
                split="test" if file.stem.endswith("t") else "train",
            )
        )
    cohort = Cohort("faulty", "xray", Intensity(percentiles=(0.5, 99.5)), (LUNG,), tuple(cases))
    return Scan(cohort, tuple(problems))


def read_half_grey_mask(case: Case) -> np.ndarray:
    """Classes of a mask with grey edges."""
    return (np.asarray(Image.open(str(case.label)).convert("L")) > 100).astype(np.uint8)


PLAIN = DataSet(ABOUT, scan)
CONVERTED = DataSet(ABOUT, scan, read_label=read_half_grey_mask)


def write(root: Path, name: str, seed: int, *, mask: int | None = 255, mask_size: int = 16) -> None:
    rng = np.random.default_rng(seed)
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (16, 16)).astype(np.uint8)).save(root / "images" / f"{name}.png")
    if mask is not None:
        pixels = np.zeros((mask_size, mask_size), np.uint8)
        pixels[4:9, 4:9] = mask
        Image.fromarray(pixels).save(root / "masks" / f"{name}.png")


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    for number, name in enumerate("abcdef"):
        write(tmp_path / "set", name, number)
    return tmp_path / "set"


def kinds(root: Path) -> list[tuple[str, str]]:
    return [(problem.kind, problem.text) for problem in check(PLAIN, root).problems]


def test_clean_set_has_no_problem(clean: Path) -> None:
    found = check(PLAIN, clean)
    assert found.problems == ()
    assert found.label_values == {0: 6, 255: 6}
    assert found.sizes == {(16, 16): 6}


def test_missing_mask(clean: Path) -> None:
    (clean / "masks" / "c.png").unlink()
    assert kinds(clean) == [("missing", "c.png has no mask")]


def test_unexpected_value(clean: Path) -> None:
    write(clean, "b", 1, mask=77)
    ((kind, text),) = kinds(clean)
    assert kind == "value"
    assert "77" in text
    assert "b.png" in text


def test_mask_of_another_size(clean: Path) -> None:
    write(clean, "b", 1, mask_size=12)
    ((kind, text),) = kinds(clean)
    assert kind == "size"
    assert "12 x 12 against 16 x 16" in text


def test_damaged_picture(clean: Path) -> None:
    file = clean / "images" / "e.png"
    file.write_bytes(file.read_bytes()[:60])
    ((kind, text),) = kinds(clean)
    assert kind == "unreadable"
    assert "e.png" in text


def test_same_picture_twice_and_across_splits(clean: Path) -> None:
    write(clean, "g", 1)
    write(clean, "ht", 2)
    assert kinds(clean) == [
        ("duplicate", "the same image: faulty-b, faulty-g"),
        ("leak", "the same image in test and in train: faulty-c, faulty-ht"),
    ]


def test_patient_in_two_splits(clean: Path) -> None:
    write(clean, "at", 77)
    assert kinds(clean) == [("leak", "patient faulty-a is in test and in train")]


def test_masks_that_cover_most_of_most_images_are_questioned(clean: Path) -> None:
    for name in "abcd":
        path = clean / "masks" / f"{name}.png"
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    ((kind, text),) = kinds(clean)
    assert kind == "inverted?"
    assert "more than half of most images" in text
    path = clean / "masks" / "a.png"
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    assert kinds(clean) == []  # three of six


def test_masks_with_grey_edges_are_remarked(clean: Path) -> None:
    one_label = replace(LUNG, stored_values=(255,))
    data_set = replace(PLAIN, scan=lambda root: replace_labels(scan(root), (one_label,)))
    mask = np.zeros((16, 16), np.uint8)
    mask[4:9, 4:9], mask[4, 4:9], mask[8, 4:9] = 255, 100, 200
    Image.fromarray(mask).save(clean / "masks" / "a.png")
    found = check(data_set, clean)
    assert found.problems == ()
    assert "a.png: a mask with 10 grey pixels" in found.remarks[0]


def replace_labels(found: Scan, labels: tuple[Label, ...]) -> Scan:
    return replace(found, cohort=replace(found.cohort, labels=labels))


def test_prepared_files_stay_where_they_are(clean: Path, tmp_path: Path) -> None:
    prepared = prepare(PLAIN, clean, tmp_path / "out", seed=1)
    assert not (tmp_path / "out").exists()
    splits = [case.split for case in prepared.cohort.cases]
    assert splits.count("validation") == 1
    assert splits.count("train") == 5
    ranks = sorted(c.labelled_rank for c in prepared.cohort.cases if c.labelled_rank is not None)
    assert ranks == list(range(5))
    (source,) = prepared.cohort.sources
    assert (source.name, source.licence, source.address) == ("faulty", ABOUT.licence, ABOUT.source)


def test_prepared_masks_are_classes(clean: Path, tmp_path: Path) -> None:
    write(clean, "b", 1, mask=128)
    cohort = prepare(CONVERTED, clean, tmp_path / "out").cohort
    assert cohort.labels[0].stored_values == ()
    for case in cohort.cases:
        label = read_labels(str(case.label), values={1})
        assert np.array_equal(
            np.asarray(label), read_half_grey_mask(Case("x", "x", "x", case.image.replace("images", "masks")))
        )
        assert Path(case.image).parent == clean / "images"
        read_image(case.image)


def test_every_case_in_one_split(clean: Path, tmp_path: Path) -> None:
    cohort = prepare(PLAIN, clean, tmp_path, split="test").cohort
    assert {case.split for case in cohort.cases} == {"test"}


def test_one_person_under_two_names(clean: Path, tmp_path: Path) -> None:
    cohort = prepare(PLAIN, clean, tmp_path, same_patient=[("faulty-a", "faulty-d")]).cohort
    assert len({case.patient for case in cohort.cases}) == 5


# --- through the command ---------------------------------------------------------------------------


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The made-up set under the name of a real one."""
    monkeypatch.setattr("sgan_core.cli.data.data_set", lambda name: PLAIN)
    monkeypatch.setattr("sgan_core.cli.data.about", lambda name: ABOUT)


@pytest.mark.usefixtures("listed")
def test_command_checks(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "wingspan", str(clean)]) == 0
    assert "no problems found" in capsys.readouterr().out
    (clean / "masks" / "c.png").unlink()
    assert main(["check", "wingspan", str(clean)]) == 1
    output = capsys.readouterr().out
    assert "missing: 1\n  c.png has no mask" in output
    assert "1 problems found" in output


@pytest.mark.usefixtures("listed")
def test_command_checks_for_programs(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (clean / "masks" / "c.png").unlink()
    (clean / "images" / "b.png").write_bytes(b"none")
    assert main(["check", "wingspan", str(clean), "--json"]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    table = json.loads(line)
    assert table["cohort"] is None
    assert "missing: c.png has no mask" in [problem["text"] for problem in table["problems"]]
    cases = {case["name"]: case for case in table["cases"]}
    assert cases["faulty-a"]["label_voxels"]["lung"] > 0
    assert cases["faulty-c"]["label_voxels"] is None
    assert [problem["severity"] for problem in cases["faulty-b"]["problems"]] == ["error"]


@pytest.mark.usefixtures("listed")
def test_command_prepares_and_merges(clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["prepare", "wingspan", str(clean), "--output", str(out), "--cache", "32"]) == 0
    assert "6 slices of 32 x 32" in capsys.readouterr().out
    assert len(load_cohort(out).cases) == 6
    assert main(["merge", str(out), str(out), "--output", str(tmp_path / "two")]) == 0
    assert len(load_cohort(tmp_path / "two").cases) == 6


@pytest.mark.usefixtures("listed")
def test_wrong_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("check wingspan {}", "prepare wingspan {} --output {}/out"):
        assert main(command.format(tmp_path, tmp_path).split()) == 2
        assert "no images/ folder" in capsys.readouterr().err
    assert not (tmp_path / "out" / "cohort.json").exists()


@pytest.mark.parametrize("name", sgan_datasets.NAMES)
def test_every_set_says_what_it_is(name: str) -> None:
    facts = sgan_datasets.about(name)
    assert facts.name == name
    assert all(str(text).strip() for text in vars(facts).values())


@pytest.mark.parametrize("name", sgan_datasets.NAMES)
def test_empty_folder_is_no_data_set(name: str, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match=str(folder.name)):
            sgan_datasets.data_set(name).load(folder)
