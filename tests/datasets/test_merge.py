"""Cohorts joined: who counts once, who goes where, what does not fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sgan_core.cohort import Case, Cohort, Intensity, Label
from sgan_core.errors import InputError
from sgan_core.terms import Source
from sgan_datasets.merge import merge_cohorts

LUNG = Label(1, "lung", (197, 165, 145), "39607008")


def case(name: str, *, labelled: bool = False, **changes: Any) -> Case:
    return Case(
        name,
        changes.pop("patient", name),
        f"/x/{name}.png",
        f"/y/{name}.png" if labelled else None,
        **changes,
    )


def cohort(name: str, *cases: Case, **changes: Any) -> Cohort:
    fields: dict[str, Any] = {
        "modality": "xray",
        "intensity": Intensity(percentiles=(0.5, 99.5)),
        "labels": (LUNG,),
    }
    return Cohort(name=name, cases=cases, **(fields | changes))


def test_labelled_and_unlabelled_pictures_together() -> None:
    labelled = cohort("jsrt", case("a", labelled=True), case("b", labelled=True))
    unlabelled = cohort("cxr14", case("c"), case("d"), labels=())
    merged, warnings = merge_cohorts([unlabelled, labelled], name="both")
    assert [one.id for one in merged.cases] == ["c", "d", "a", "b"]
    assert merged.labels == (LUNG,)
    assert {one.id for one in merged.cases if one.labelled_rank is not None} == {"a", "b"}
    assert warnings == ()


def test_the_data_sets_of_all_are_named_once() -> None:
    jsrt, cxr14 = Source("jsrt", "for research"), Source("cxr14")
    first = cohort("one", case("a", labelled=True), sources=(jsrt,))
    second = cohort("two", case("b", labelled=True), sources=(cxr14, jsrt))
    assert merge_cohorts([first, second, cohort("own", case("c"))], name="x")[0].sources == (jsrt, cxr14)


def test_order_of_labelled_patients_stays_nested_when_a_cohort_joins() -> None:
    few = cohort("one", *(case(f"p{n}", labelled=True) for n in range(9)))
    more = cohort("two", *(case(f"q{n}", labelled=True) for n in range(9)))
    alone, _ = merge_cohorts([few], name="x", seed=3)
    joined, _ = merge_cohorts([few, more], name="x", seed=3)

    def order(merged: Cohort) -> list[str]:
        ranked = [one for one in merged.cases if one.labelled_rank is not None]
        ranked.sort(key=lambda one: one.labelled_rank or 0)
        return [one.patient for one in ranked if one.patient.startswith("p")]

    assert order(joined) == order(alone)


def test_same_picture_counts_once_and_with_its_label() -> None:
    merged, warnings = merge_cohorts(
        [cohort("all", case("a"), case("b")), cohort("masks", case("a", labelled=True))], name="x"
    )
    assert [(one.id, one.labelled) for one in merged.cases] == [("a", True), ("b", False)]
    assert warnings == ("1 cases are in several cohorts; each counts once.",)


def test_patient_tested_in_one_cohort_trains_in_none() -> None:
    train = cohort("train", case("a1", patient="a", labelled=True), case("b1", patient="b", labelled=True))
    test = cohort("test", case("a2", patient="a", labelled=True, split="test"))
    merged, warnings = merge_cohorts([train, test], name="x")
    assert {one.id: one.split for one in merged.cases} == {"a1": "test", "a2": "test", "b1": "train"}
    assert "strictest" in warnings[0]


def test_case_tested_in_one_cohort_is_tested_however_the_other_has_it() -> None:
    train = cohort("train", case("a", labelled=True), case("a2", patient="a", labelled=True))
    test = cohort("test", case("a", labelled=True, split="test"))
    for order in ([train, test], [test, train]):
        merged, warnings = merge_cohorts(order, name="x")
        assert {one.id: one.split for one in merged.cases} == {"a": "test", "a2": "test"}
        assert warnings[-1].startswith("1 patients are in several splits")


def test_stored_values_of_both_are_kept() -> None:
    white = replace(LUNG, stored_values=(255,))
    merged, _ = merge_cohorts(
        [cohort("a", case("a", labelled=True)), cohort("b", case("b", labelled=True), labels=(white,))],
        name="x",
    )
    assert merged.labels[0].stored == (1, 255)


def test_squashed_release_squashes_all() -> None:
    merged, warnings = merge_cohorts(
        [cohort("a", case("a", labelled=True), squash=True), cohort("b", case("b"))], name="x"
    )
    assert merged.squash
    assert warnings == ("a was released squashed to a square; all images will be seen that way.",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modality": "ct"}, "differ in modality"),
        ({"intensity": Intensity(0.0, 255.0)}, "differ in intensity"),
        ({"labels": (Label(1, "heart", (1, 2, 3)),)}, "different things: lung against heart"),
        ({"cases": (case("a", patient="somebody else"),)}, "belongs to patient a"),
        ({"ignored_values": (1,)}, "means two labels"),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], message: str) -> None:
    first = cohort("one", case("a", labelled=True))
    second = replace(cohort("two", case("b", labelled=True)), **changes)
    with pytest.raises(InputError, match=message):
        merge_cohorts([first, second], name="x")
