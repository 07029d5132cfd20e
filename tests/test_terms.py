"""What a model says about its use, and what of it is believed."""

from __future__ import annotations

from typing import Any

import pytest

from sgan_core.errors import InputError
from sgan_core.terms import Source, Terms, joined_sources, one_line, read_sources, terms_of

LITS = Source("lits", "CC BY-NC-SA 4.0", "https://example.org", "Bilic et al.")


def test_terms_come_from_the_facts() -> None:
    use = {"restriction": "research only", "sources": [vars(LITS)]}
    found = terms_of({"licence": "CC BY-NC-SA 4.0", "use": use})
    assert (found.licence, found.restriction, found.sources) == ("CC BY-NC-SA 4.0", "research only", (LITS,))
    assert found.notice == "research only (licence of the weights: CC BY-NC-SA 4.0)"


def test_a_data_set_that_a_cohort_may_name_is_kept_whole() -> None:
    source = vars(LITS) | {"citation": "Bilic " * 333}
    (kept,) = terms_of({"use": {"sources": [source]}}).sources
    assert kept.citation == source["citation"].strip()


def test_a_model_without_restriction_has_no_notice() -> None:
    assert terms_of({"licence": "Apache-2.0"}).notice == ""
    assert terms_of({"use": {"sources": [vars(LITS)]}}).notice == ""


@pytest.mark.parametrize(
    "use",
    [
        None,
        7,
        [],
        "text",
        {"restriction": {"a": 1}, "sources": "lits"},
        {"sources": [7, None, {"name": 3}, {}]},
    ],
)
def test_what_is_not_as_it_should_be_counts_as_not_stated(use: Any) -> None:
    found = terms_of({"licence": ["x"], "use": use})
    assert (found.licence, found.restriction, found.sources) == ("", "", ())


def test_hostile_texts_are_short_and_steer_no_terminal() -> None:
    hostile = "\x1b[2J\r\n\u202efree\u2028for all" + "x" * 100_000
    found = terms_of({"use": {"restriction": hostile, "sources": [{"name": hostile}] * 1000}})
    for text, most in ((found.restriction, 300), (found.sources[0].name, 2000)):
        assert text.startswith("[2J free for all")
        assert len(text) == most
        assert text.isprintable()
    assert len(found.sources) == 50


def test_one_line_keeps_what_can_be_read() -> None:
    assert one_line("Größe  7\tmm") == "Größe 7 mm"
    assert one_line(None) == ""


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({}, "a list of at most 50"),
        ([{"name": "a"}] * 51, "a list of at most 50"),
        (["lits"], r"sources\[0\]: an object with a name"),
        ([{"name": "a"}, {"licence": "x"}], r"sources\[1\]: an object with a name"),
        ([{"name": "a", "colour": "red"}], "an object with a name"),
        ([{"name": 7}], "'name' is a text of at most 2000"),
        ([{"name": "a", "licence": "x" * 2001}], "'licence' is a text of at most 2000"),
    ],
)
def test_sources_in_a_file_are_checked(entry: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_sources(entry, "sources")


def test_each_data_set_is_named_once() -> None:
    other = Source("chaos-ct")
    assert joined_sources([(LITS,), (), (other, LITS)]) == (LITS, other)


@pytest.mark.parametrize(
    ("data", "first", "licence"),
    [
        ("Apache-2.0", "Apache-2.0", "Apache-2.0"),
        ("Apache-2.0", "CC BY-NC-SA 4.0", "CC BY-NC-SA 4.0"),
        ("Apache-2.0", "", ""),
        ("", "", ""),
        ("", "CC0", "not stated; of the weights that the training began with: CC0"),
        ("MIT", "MIT", "MIT"),
        ("MIT", "Apache-2.0", "MIT"),
        ("MIT", "CC BY-NC-SA 4.0", "MIT; and of the weights it began with: CC BY-NC-SA 4.0"),
        ("MIT", "", "MIT; and of the weights it began with: not stated"),
    ],
)
def test_weights_are_never_freer_than_those_they_began_with(data: str, first: str, licence: str) -> None:
    found = Terms(data, "", (LITS,)).after(Terms(first, "research only", (Source("chaos-ct"), LITS)))
    assert (found.licence, found.restriction) == (licence, "research only")
    assert [source.name for source in found.sources] == ["chaos-ct", "lits"]
    assert found.after(found) == found


def test_facts_of_terms_are_read_back() -> None:
    for terms in (Terms("CC0", "research only", (LITS,)), Terms("", "", ())):
        assert terms_of(terms.facts()) == terms
    assert Terms("", "", ()).facts() == {}
