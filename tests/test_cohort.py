"""Cohort files, their rules, and splits that never divide a patient."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgan_core.cohort import (
    Case,
    Cohort,
    Intensity,
    Label,
    assign_splits,
    labelled_patients,
    load_cohort,
    rank_labelled,
    require_files,
    save_cohort,
    validate,
)
from sgan_core.errors import InputError
from sgan_core.phantom import phantom_cohort
from sgan_core.terms import Source

LIVER = Label(1, "liver", (221, 130, 101), "10200004")


def make_cohort(cases: tuple[Case, ...], **changes: Any) -> Cohort:
    plain = Cohort("test", "ct", Intensity(-160, 240, "HU"), (LIVER,), cases)
    return replace(plain, **changes)


def entry(**changes: Any) -> dict[str, Any]:
    """A cohort.json that holds a labelled and an unlabelled case, with changes."""
    return {
        "name": "two",
        "modality": "ct",
        "intensity": {"unit": "HU", "low": -160, "high": 240},
        "labels": [{"value": 1, "name": "liver", "rgb": [1, 2, 3], "code": "10200004"}],
        "cases": [
            {"id": "a", "patient": "p1", "image": "a.png", "label": "a_mask.png", "split": "train"},
            {"id": "b", "patient": "p2", "image": "b.png", "label": None, "split": "train"},
        ],
        **changes,
    }


def with_cases(*changes: dict[str, Any]) -> dict[str, Any]:
    plain = entry()
    plain["cases"] = [{**plain["cases"][0], "id": str(n), **change} for n, change in enumerate(changes)]
    return plain


def write(folder: Path, content: Any) -> Path:
    path = folder / "cohort.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


# --- files ---


def test_data_sets_that_a_cohort_is_of_come_back(tmp_path: Path) -> None:
    source = Source("lits", "non-commercial", "https://example.org/ü", "Bilic et al.")
    cohort = make_cohort((Case("a", "p1", "phantom:ct:0", "phantom:ct:0"),), sources=(source,))
    assert load_cohort(save_cohort(replace(cohort, cases=rank_labelled(cohort.cases)), tmp_path)).sources == (
        source,
    )
    assert load_cohort(write(tmp_path, entry())).sources == ()  # files of older versions
    assert "sources" not in save_cohort(make_cohort(phantom_cohort().cases), tmp_path).read_text()


def test_hostile_data_sets_of_a_cohort_are_refused(tmp_path: Path) -> None:
    for hostile in ("lits", [{"name": "x" * 2001}], [{"name": "a", "__class__": "b"}], [{}] * 9, {"a": 1}):
        with pytest.raises(InputError, match=r"cohort\.json: sources"):
            load_cohort(write(tmp_path, entry(sources=hostile)))


def test_saved_cohort_is_read_back_equal(tmp_path: Path) -> None:
    cases = (
        Case("a", "p1", str(tmp_path / "in/a.png"), str(tmp_path / "in/a_mask.png"), labelled_rank=0),
        Case("b", "p2", str(tmp_path / "b ü.png"), split="validation", domain="ct"),
        Case("c", "p3", "phantom:ct:7", "phantom:ct:7", split="test"),
        Case("d", "p1", str(tmp_path / "in/d.png"), empty=True, labelled_rank=0),
    )
    labels = (replace(LIVER, stored_values=(1, 2)), Label(2, "spleen", (0, 0, 255), stored_values=(7,)))
    cohort = make_cohort(cases, labels=labels, ignored_values=(9,))
    path = save_cohort(cohort, tmp_path / "out" / "cohort.json")
    assert load_cohort(path) == replace(cohort, root=path.parent.resolve())
    assert load_cohort(path.parent) == load_cohort(path)


def test_percentiles_are_read_back(tmp_path: Path) -> None:
    cohort = phantom_cohort(patients=3, labelled=1, validation=1, domain="t1_in")
    loaded = load_cohort(save_cohort(cohort, tmp_path))
    assert loaded.intensity == cohort.intensity
    assert loaded.cases == cohort.cases


@pytest.mark.parametrize(
    ("modality", "changes"),
    [
        ("mr", {"bias_correction": True}),
        ("xray", {"equalise": True, "central": 0.7}),
        ("dermoscopy", {"colour_constancy": True}),
    ],
)
def test_corrections_and_squash_are_read_back(tmp_path: Path, modality: str, changes: dict[str, Any]) -> None:
    intensity = Intensity(percentiles=(0.5, 99.5), **changes)
    case = Case("a", "p", str(tmp_path / "a.png"), str(tmp_path / "b.png"), labelled_rank=0)
    cohort = make_cohort((case,), modality=modality, intensity=intensity, squash=True)
    path = save_cohort(cohort, tmp_path)
    loaded = load_cohort(path)
    assert (loaded.intensity, loaded.squash) == (intensity, True)
    assert json.loads(path.read_text())["squash"] is True
    assert json.loads(path.read_text())["intensity"].items() >= changes.items()


def test_what_is_off_is_not_in_the_file(tmp_path: Path) -> None:
    """Files of cohorts that use none of it stay as they were before there was any."""
    case = Case("a", "p", str(tmp_path / "a.png"), str(tmp_path / "b.png"), labelled_rank=0)
    intensity = Intensity(low=0.0, high=255.0)
    stored = json.loads(save_cohort(make_cohort((case,), intensity=intensity), tmp_path).read_text())
    assert stored["intensity"] == {"low": 0.0, "high": 255.0, "unit": ""}
    assert list(stored) == ["name", "modality", "intensity", "labels", "cases"]


def test_paths_in_the_file_are_relative_to_it(tmp_path: Path) -> None:
    case = Case("a", "p", str(tmp_path / "in/a.png"), str(tmp_path / "out/a.png"), labelled_rank=0)
    path = save_cohort(make_cohort((case,)), tmp_path / "out" / "cohort.json")
    stored = json.loads(path.read_text(encoding="utf-8"))["cases"][0]
    assert (stored["image"], stored["label"]) == ("../in/a.png", "a.png")


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
def test_output_folder_behind_a_link_still_finds_the_images(tmp_path: Path) -> None:
    (tmp_path / "deep/down/out").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep/down/out")
    (tmp_path / "a.png").touch()
    case = Case("a", "p", str(tmp_path / "a.png"), str(tmp_path / "a.png"), labelled_rank=0)
    save_cohort(make_cohort((case,)), tmp_path / "link")
    require_files(load_cohort(tmp_path / "link"))
    require_files(load_cohort(tmp_path / "deep/down/out"))


def test_failed_save_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, entry())

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", disk_full)
    with pytest.raises(InputError, match="No space left"):
        save_cohort(load_cohort(path), path)
    assert os.listdir(tmp_path) == ["cohort.json"]
    assert json.loads(path.read_text()) == entry()


def test_missing_files_are_named_when_asked(tmp_path: Path) -> None:
    cohort = load_cohort(write(tmp_path, entry()))
    (tmp_path / "a.png").touch()
    with pytest.raises(InputError, match=r"a_mask\.png does not exist \(and 1 more\)"):
        require_files(cohort)


def test_unranked_file_gets_an_order(tmp_path: Path) -> None:
    assert [case.labelled_rank for case in load_cohort(write(tmp_path, entry())).cases] == [0, None]


# --- rules ---

WRONG = {
    "missing comma": ('{"name": "x"\n "modality": "ct"}', "line 2, column 2"),
    "not an object": ([1], "JSON object"),
    "unknown key": (entry(patients=[]), "unknown key 'patients'"),
    "unknown key of a case": (with_cases({}, {"patinet": "x"}), r"cases\[1\].*patinet"),
    "missing key": ({k: v for k, v in entry().items() if k != "labels"}, "'labels' is missing"),
    "missing key of a case": (entry(cases=[{"id": "a", "patient": "p"}]), r'cases\[0\].*"image"'),
    "number as patient": (with_cases({"patient": 3}), r'cases\[0\].*"patient"'),
    "only empty cases": (with_cases({"label": None, "empty": True}), "no labelled case"),
    "no case": (entry(cases=[]), "no case;"),
    "id that leads elsewhere": (with_cases({"id": "../../a"}), "is not a plain name"),
    "id with a separator": (with_cases({"id": "a/b"}), "is not a plain name"),
    "id of Windows with a drive": (with_cases({"id": "C:a"}), "is not a plain name"),
    "hidden id": (with_cases({"id": ".a"}), "is not a plain name"),
    "id like an option": (with_cases({"id": "-a"}), "is not a plain name"),
    "id with a line break": (with_cases({"id": "a\n"}), "is not a plain name"),
    "patient in two splits": (
        with_cases({"patient": "p7"}, {"patient": "p7", "split": "test"}),
        "patient p7 is in train and in test",
    ),
    "duplicate id": (with_cases({"id": "same"}, {"id": "same"}), "two cases have the id 'same'"),
    "unknown split": (with_cases({"split": "val"}), "split 'val'"),
    "empty with a label": (with_cases({"empty": True}), "is empty and has a label"),
    "unknown modality": (entry(modality="pet"), "modality 'pet'"),
    "no intensity": (entry(intensity={}), "needs low and high"),
    "intensity backwards": (entry(intensity={"low": 5, "high": 5}), "not low < high"),
    "percentiles too high": (entry(intensity={"percentiles": [1, 101]}), "percentiles"),
    "range and percentiles": (
        entry(intensity={"low": 0, "high": 1, "percentiles": [1, 99]}),
        "keep one of them",
    ),
    "central without percentiles": (
        entry(intensity={"low": 0, "high": 1, "central": 0.7}),
        "'central' but no percentiles",
    ),
    "central too large": (entry(intensity={"percentiles": [1, 99], "central": 1.5}), "share <= 1"),
    "bias correction of CT": (
        entry(intensity={"low": 0, "high": 1, "bias_correction": True}),
        "bias_correction is for mr images, the modality is ct",
    ),
    "colour constancy of X-rays": (
        entry(modality="xray", intensity={"percentiles": [1, 99], "colour_constancy": True}),
        "colour_constancy is for dermoscopy and face images",
    ),
    "equalised MR": (
        entry(modality="mr", intensity={"percentiles": [1, 99], "equalise": True}),
        "equalise is for xray",
    ),
    "correction that is no switch": (
        entry(modality="mr", intensity={"percentiles": [1, 99], "bias_correction": "yes"}),
        "intensity: wrong value type",
    ),
    "squash that is no switch": (entry(squash=1), "'squash' is true or false"),
    "label value twice": (entry(labels=entry()["labels"] * 2), "two labels have the value 1"),
    "label value 0": (entry(labels=[{**entry()["labels"][0], "value": 0}]), "without gaps"),
    "gap in label values": (entry(labels=[{**entry()["labels"][0], "value": 63}]), "stored_values"),
    "no labels": (entry(labels=[]), "no label, but labelled cases"),
    "colour": (entry(labels=[{**entry()["labels"][0], "rgb": [0, 0, 256]}]), "colour"),
    "stored value twice": (entry(ignored_values=[1]), "stored value 1 means two"),
    "stored value too high": (
        entry(labels=[{**entry()["labels"][0], "stored_values": [256]}]),
        "stored value 256",
    ),
    "two ranks in a patient": (
        with_cases({"labelled_rank": 0}, {"labelled_rank": 1}),
        "different labelled_rank",
    ),
    "rank twice": (
        with_cases({"labelled_rank": 0}, {"labelled_rank": 0, "patient": "p2"}),
        "two patients have the labelled_rank 0",
    ),
    "rank forgotten": (with_cases({"labelled_rank": 0}, {"patient": "p2"}), "patient p2 lacks"),
    "rank of a test patient": (
        with_cases({"labelled_rank": 0}, {"patient": "p2", "split": "test", "labelled_rank": 1}),
        "patient p2 has",
    ),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_file_is_refused_with_its_name_and_the_reason(
    tmp_path: Path, content: Any, message: str
) -> None:
    path = write(tmp_path, content)
    with pytest.raises(InputError, match=message) as error:
        load_cohort(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cohort.json"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match="UTF-8"):
        load_cohort(path)


def test_missing_file_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "cohort.json")) + ".*sgan-data prepare"):
        load_cohort(tmp_path)


def test_built_in_cohorts_obey_the_rules() -> None:
    validate(phantom_cohort(test=3), source="phantom")


def test_stored_values_are_of_all_labels_and_the_ignored() -> None:
    cohort = make_cohort((), labels=(replace(LIVER, stored_values=(1, 2)),), ignored_values=(7,))
    assert cohort.stored_values == {1, 2, 7}


# --- splits ---


@st.composite
def some_cases(draw: st.DrawFn) -> list[Case]:
    """Up to 40 patients with one to three cases, in mixed order; some labelled, some empty, some in test."""
    cases = []
    for patient in range(draw(st.integers(1, 40))):
        split = draw(st.sampled_from(["train", "train", "test"]))
        for number, kind in enumerate(
            draw(st.lists(st.sampled_from(["label", "empty", ""]), min_size=1, max_size=3))
        ):
            name = f"{patient}-{number}"
            label = f"{name}.png" if kind == "label" else None
            cases.append(Case(name, f"p{patient}", name, label, empty=kind == "empty", split=split))
    return draw(st.permutations(cases))


@given(some_cases(), st.floats(0, 1), st.integers(0, 5))
def test_splits_never_divide_a_patient(cases: list[Case], share: float, seed: int) -> None:
    divided = assign_splits(cases, validation=share, seed=seed)
    assert [case.id for case in divided] == [case.id for case in cases]
    splits: dict[str, set[str]] = {}
    for before, after in zip(cases, divided, strict=True):
        splits.setdefault(after.patient, set()).add(after.split)
        assert (before.split == "test") == (after.split == "test")
    assert all(len(found) == 1 for found in splits.values())


@given(some_cases(), st.integers(0, 5))
def test_first_labelled_patients_are_inside_the_first_more(cases: list[Case], seed: int) -> None:
    ranked = rank_labelled(cases, seed=seed)
    cohort = make_cohort(ranked)
    labelled = {case.patient for case in cases if case.labelled and case.split == "train"}
    sets = [labelled_patients(cohort, n) for n in range(1, len(labelled) + 1)]
    assert [len(chosen) for chosen in sets] == list(range(1, len(labelled) + 1))
    assert all(fewer < more for fewer, more in zip(sets, sets[1:], strict=False))
    assert not sets or sets[-1] == labelled == labelled_patients(cohort)


def labelled_cases(count: int) -> list[Case]:
    return [Case(str(n), f"p{n}", f"{n}.png", f"{n}_mask.png") for n in range(count)]


def test_first_8_are_inside_the_first_20_and_the_seed_decides() -> None:
    cohort = make_cohort(rank_labelled(labelled_cases(30), seed=1))
    assert labelled_patients(cohort, 8) < labelled_patients(cohort, 20)
    assert labelled_patients(cohort, 8) != labelled_patients(
        make_cohort(rank_labelled(labelled_cases(30), seed=2)), 8
    )


def test_first_labelled_patients_are_those_of_the_lowest_ranks() -> None:
    ranks = {"a": 2, "b": 0, "c": 3, "d": 1}
    cohort = make_cohort(
        tuple(Case(p, p, f"{p}.png", f"{p}_mask.png", labelled_rank=r) for p, r in ranks.items())
    )
    assert [labelled_patients(cohort, count) for count in (1, 2, 3)] == [{"b"}, {"b", "d"}, {"a", "b", "d"}]


def test_order_survives_new_patients() -> None:
    few, many = (rank_labelled(labelled_cases(count)) for count in (20, 30))
    rank = {case.patient: case.labelled_rank for case in many}
    by_few = sorted(few, key=lambda case: case.labelled_rank or 0)
    assert sorted(by_few, key=lambda case: rank[case.patient] or 0) == by_few


def test_share_is_of_the_labelled_patients() -> None:
    unlabelled = [Case(f"u{n}", f"u{n}", f"u{n}.png") for n in range(40)]
    divided = assign_splits(labelled_cases(20) + unlabelled, validation=0.2)
    chosen = [case for case in divided if case.split == "validation"]
    assert len(chosen) == 4
    assert all(case.labelled for case in chosen)


def test_test_patients_are_neither_counted_nor_chosen_for_validation() -> None:
    tested = [
        replace(case, id=f"t{n}", patient=f"t{n}", split="test") for n, case in enumerate(labelled_cases(30))
    ]
    divided = assign_splits(labelled_cases(10) + tested, validation=0.2)
    assert sum(case.split == "validation" for case in divided) == 2
    with pytest.raises(InputError, match="'t3' is not among the 10 patients"):
        assign_splits(labelled_cases(10) + tested, validation=["t3"])


def test_named_patients_become_validation() -> None:
    divided = assign_splits(labelled_cases(4), validation=["p1", "p3"])
    assert [case.split for case in divided] == ["train", "validation"] * 2
    assert make_cohort(divided).select("validation") == (divided[1], divided[3])


def test_unknown_validation_patient_is_refused() -> None:
    with pytest.raises(InputError, match="'p9' is not among the 4 patients"):
        assign_splits(labelled_cases(4), validation=["p1", "p9"])


@pytest.mark.parametrize(("count", "message"), [(5, "has 4"), (0, "at least 1")])
def test_impossible_number_of_labelled_patients_is_refused(count: int, message: str) -> None:
    cohort = make_cohort(rank_labelled(labelled_cases(4)))
    with pytest.raises(InputError, match=message):
        labelled_patients(cohort, count)


def test_cohort_may_be_unlabelled(tmp_path: Path) -> None:
    cases = tuple(replace(case, label=None) for case in labelled_cases(3))
    loaded = load_cohort(save_cohort(make_cohort(cases, labels=()), tmp_path))
    assert [case.labelled for case in loaded.cases] == [False] * 3
    assert loaded.labels == ()


def test_training_without_labelled_case_is_refused() -> None:
    cases = tuple(replace(case, split="test") for case in labelled_cases(3))
    with pytest.raises(InputError, match="no labelled case in the split train"):
        labelled_patients(make_cohort(cases))
