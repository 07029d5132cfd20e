"""The benchmarks of students and of finished models, on discs: what is trained, kept, scored, and by which name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sgan_core.bundle import load_bundle, save_bundle
from sgan_core.cohort import Case, Cohort, Intensity, Label, load_cohort, rank_labelled, save_cohort
from sgan_core.errors import InputError
from sgan_core.metrics.per_patient import dice_from_counts
from sgan_core.networks.segmenter import make_student

LEFT, RIGHT = Label(1, "left disc", (200, 90, 60)), Label(2, "right disc", (60, 90, 200))


@pytest.fixture(scope="module")
def scripts(benchmark_script: Callable[[str], ModuleType]) -> tuple[ModuleType, ModuleType]:
    return benchmark_script("student_recipe"), benchmark_script("model_test")


def cohort_of(folder: Path, name: str, labels: tuple[Label, ...], patients: int, split: str) -> Path:
    """Pictures with two discs; the stored label is 1 for both where there is one class. Returns the prepared folder."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(len(name))
    rows, columns = np.mgrid[:48, :48]
    cases = []
    for patient in range(patients):
        mask = np.zeros((48, 48), np.uint8)
        for value, centre in ((1, 12), (2, 36)):
            row, radius = random.uniform(16, 32), random.uniform(5, 9)
            mask[(rows - row) ** 2 + (columns - centre) ** 2 < radius**2] = min(value, len(labels))
        picture = np.where(mask > 0, 190, 60) + random.normal(0, 12, mask.shape)
        image, label = folder / f"{name}{patient}.png", folder / f"{name}{patient}_label.png"
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(image)
        Image.fromarray(mask).save(label)
        own = "validation" if split == "train" and patient == 0 else split
        cases.append(Case(f"{name}{patient}", f"{name}{patient}", str(image), str(label), split=own))
    save_cohort(Cohort(name, "xray", Intensity(0.0, 255.0), labels, rank_labelled(cases)), folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("discs")
    train = cohort_of(root / "train", "train", (LEFT, RIGHT), 5, "train")
    return train, cohort_of(root / "test", "test", (Label(1, "discs", (9, 9, 9)),), 3, "test")


@pytest.fixture(scope="module")
def options(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("recipe")
    asked = ["--modality", "xray", "--train", str(folders[0]), "--labelled", "4", "--student-size", "64"]
    asked += [
        "--images",
        "32",
        "--seeds",
        "0",
        "--test",
        f"others={folders[1]}:test",
        "--labels",
        "discs=1,2",
    ]
    return [*asked, "--cache", str(root / "cache"), "--output", str(root / "table")]


def test_arms_are_trained_once_and_scored_by_patient(
    scripts: tuple[ModuleType, ModuleType], options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, _ = scripts
    arms = ["--arm", "base={}", "--arm", 'plain={"appearance": false}']
    assert recipe.main([*options, *arms]) == 0
    file = Path(options[-1]).with_suffix(".json")
    stored = json.loads(file.read_text(encoding="utf-8"))
    assert [(row["arm"], row["seed"]) for row in stored["rows"]] == [("base", 0), ("plain", 0)]
    assert stored["tests"] == {"others": 3}
    for row in stored["rows"]:
        assert row["tests"]["others"].keys() == {"test0", "test1", "test2"}
        assert all(0.0 <= labels["discs"] <= 1.0 for labels in row["tests"]["others"].values())
    assert stored["rows"][0]["student_dice"] != stored["rows"][1]["student_dice"]
    assert "| plain |" in file.with_suffix(".md").read_text(encoding="utf-8")

    monkeypatch.setattr(recipe, "_trained", lambda *_: pytest.fail("it is there already"))
    assert recipe.main([*options, *arms]) == 0


def test_patients_beyond_the_labelled_ones_are_a_test(
    scripts: tuple[ModuleType, ModuleType], options: list[str], folders: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe, _ = scripts
    file = tmp_path / "table.json"
    asked = [*options, "--arm", "base={}", "--labelled", "3", "--rest", "rest", "--output", str(file)]
    assert recipe.main(asked) == 0
    (row,) = json.loads(file.read_text(encoding="utf-8"))["rows"]
    cohort = load_cohort(folders[0])
    (last,) = (case.patient for case in cohort.cases if case.labelled_rank == 3)
    assert row["tests"]["rest"].keys() == {last}
    with pytest.raises(InputError, match="no labelled training patient beyond 4"):
        recipe._rest(cohort, 4)


def test_neighbouring_slices_are_one_scan(scripts: tuple[ModuleType, ModuleType]) -> None:
    names = ["a_slice_9", "a_slice_10", "a_slice_12", "b_slice_13", "b_slice_14", "c", "d"]
    cases = tuple(Case(name, name[0], f"{name}.png", f"{name}_label.png") for name in names)
    cohort = Cohort("slices", "ct", Intensity(0.0, 255.0), (LEFT,), cases)
    found = [[case.id for case in scan] for scan in scripts[1].scans(cohort)]
    assert found == [names[:2], names[2:3], names[3:5], ["c"], ["d"]]


def test_slices_far_apart_are_no_neighbours(scripts: tuple[ModuleType, ModuleType]) -> None:
    """Single slices of a patient, even when they lie evenly; of some volumes every second slice is there."""
    names = ["a_slice_34", "a_slice_38", "a_slice_42", "b_slice_2", "b_slice_4"]
    cases = tuple(Case(name, name[0], f"{name}.png", f"{name}_label.png") for name in names)
    cohort = Cohort("slices", "mr", Intensity(0.0, 255.0), (LEFT,), cases)
    found = [[case.id for case in scan] for scan in scripts[1].scans(cohort)]
    assert found == [names[:1], names[1:2], names[2:3], names[3:]]


def test_only_the_largest_piece_of_a_scan_counts_where_that_is_asked_for(
    scripts: tuple[ModuleType, ModuleType], folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, _ = scripts
    cohort = load_cohort(folders[1])
    truth = np.zeros((4, 8, 8), np.uint8)
    truth[:3, 1:4, 1:4] = 1
    drawn = truth.copy()
    drawn[3, 6:, 6:] = 1  # 4 beside 27
    monkeypatch.setattr(recipe, "segmented", lambda *_: (drawn, truth))
    config = SimpleNamespace(labels=(Label(1, "discs", (9, 9, 9)),))
    for one_piece, dice in (((), 54 / 58), ((1,), 1.0)):
        found = dict(recipe.scores(None, config, cohort, {}, one_piece))
        assert found["test0"]["discs"] == pytest.approx(dice)


def test_an_arm_with_a_wrong_setting_is_refused(
    scripts: tuple[ModuleType, ModuleType], options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, _ = scripts
    assert recipe.main([*options, "--arm", 'a={"looks": {"gama": 1}}']) == 2
    assert "gama" in capsys.readouterr().err
    assert recipe.main([*options, "--arm", "a={"]) == 2
    assert "not NAME=JSON" in capsys.readouterr().err


@pytest.fixture(scope="module")
def bundle(
    scripts: tuple[ModuleType, ModuleType], folders: tuple[Path, Path], tmp_path_factory: Any
) -> tuple[Any, Any]:
    """An untrained student alone, as a model, and its config."""
    recipe, _ = scripts
    parsed: dict[str, Any] = {"preset": "tiny", "modality": "xray", "student_size": 64, "labelled": 4}
    config = recipe._config(SimpleNamespace(**parsed, images=32), load_cohort(folders[0]), {})
    network = make_student(config).eval()
    folder = save_bundle(
        tmp_path_factory.mktemp("model") / "m", name="m", config=config, facts={}, student=network, half=False
    )
    return load_bundle(folder), config


def test_a_model_is_scored_as_its_student_is(
    scripts: tuple[ModuleType, ModuleType],
    folders: tuple[Path, Path],
    bundle: tuple[Any, Any],
    tmp_path: Path,
) -> None:
    """By the door of users and by the benchmark's own: the same DICE; and that of counted pixels."""
    recipe, model_test = scripts
    model, config = bundle
    cohort = load_cohort(folders[1])
    merged = {"discs": (1, 2)}
    alone = dict(recipe.scores(model.student, config, cohort, merged))
    whole = model_test.scored(model, cohort, merged, "fast", "others")
    for patient, labels in alone.items():
        assert whole[patient]["labels"]["discs"]["dice"] == pytest.approx(labels["discs"], abs=1e-4)
        assert whole[patient]["trust"] == ["review"]
    case = cohort.cases[0]
    labels, truth = recipe.segmented(model.student, config, [case], cohort)
    counted = dice_from_counts(((labels > 0) & (truth > 0)).sum(), (labels > 0).sum(), (truth > 0).sum())
    assert alone[case.patient]["discs"] == pytest.approx(counted)


def test_slices_of_a_volume_are_segmented_as_one_by_both(
    scripts: tuple[ModuleType, ModuleType], folders: tuple[Path, Path], bundle: tuple[Any, Any]
) -> None:
    recipe, model_test = scripts
    model, config = bundle
    cohort = load_cohort(folders[1])
    cases = tuple(replace(c, id=f"v_slice_{2 * k}", patient="v") for k, c in enumerate(cohort.cases))
    cohort, merged = replace(cohort, cases=cases), {"discs": (1, 2)}
    (alone,) = (labels["discs"] for _, labels in recipe.scores(model.student, config, cohort, merged))
    whole = model_test.scored(model, cohort, merged, "fast", "others")
    assert whole["v"]["labels"]["discs"]["dice"] == pytest.approx(alone, abs=1e-4)
    assert whole["v"]["trust"] == ["review"]  # of the volume, not of each slice
    assert 0.05 < alone < 0.95
    apart = dict(recipe.scores(model.student, config, replace(cohort, cases=cases[::2]), merged))
    assert apart["v"]["discs"] != pytest.approx(alone, abs=1e-4)


def test_labels_go_by_name_or_as_asked(
    scripts: tuple[ModuleType, ModuleType], folders: tuple[Path, Path], bundle: tuple[Any, Any]
) -> None:
    _, model_test = scripts
    _, config = bundle
    one, two = (load_cohort(folder) for folder in reversed(folders))
    assert model_test.asked_classes(config, two, {}) == {1: (1,), 2: (2,)}
    assert model_test.asked_classes(config, one, {"discs": (1, 2)}) == {1: (1, 2)}
    with pytest.raises(InputError, match="none of its labels"):
        model_test.asked_classes(config, one, {})
    mixed = np.array([[0, 1], [2, 3]], np.uint8)
    assert model_test.as_the_tests_call_it(mixed, {1: (1, 2)}).tolist() == [[0, 1], [1, 0]]
    other = replace(two, labels=(Label(4, "left disc", (1, 1, 1)),))
    assert model_test.as_the_tests_call_it(mixed, model_test.asked_classes(config, other, {})).max() == 4


def test_the_table_of_a_model_says_what_is_poor(scripts: tuple[ModuleType, ModuleType]) -> None:
    _, model_test = scripts
    figures = {"dice": 0.8, "jaccard": 0.4, "hd95_mm": float("nan"), "nsd": float("nan")}
    good = figures | {"dice": 1.0, "jaccard": 1.0}
    patients = {
        "a": {"trust": ["ok"], "labels": {"lung": good}},
        "b": {"trust": ["review"], "labels": {"lung": figures}},
    }
    (line,) = model_test.table({"JSRT": patients}).rows
    assert line == ("JSRT", "lung", "2", "0.900", "0.700", "50%", "50%", "0.800", "–", "50%")


def test_the_benchmark_of_a_model_writes_figures_and_pictures(
    scripts: tuple[ModuleType, ModuleType],
    folders: tuple[Path, Path],
    bundle: tuple[Any, Any],
    tmp_path: Path,
) -> None:
    """Of three patients: two rows of the worst, two of the best, each with all three pictures of 64 pixels."""
    _, model_test = scripts
    sheet = tmp_path / "sheet.png"
    options = [
        "--model",
        str(bundle[0].folder),
        "--test",
        f"others={folders[1]}:test",
        "--labels",
        "discs=1,2",
    ]
    assert model_test.main([*options, "--sheet", str(sheet), "--output", str(tmp_path / "table")]) == 0
    stored = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))
    assert (stored["model"], stored["hash"]) == ("m", bundle[0].hash)
    assert stored["tests"]["others"].keys() == {"test0", "test1", "test2"}
    assert Image.open(sheet).size == (3 * 66 - 2, 4 * 66 - 2)
    assert "| others | discs | 3 |" in (tmp_path / "table.md").read_text(encoding="utf-8")
