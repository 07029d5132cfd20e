"""Models by name: where they are looked for, which one counts, and what a damaged folder does."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sgan_core import known_models
from sgan_core.bundle import describe
from sgan_core.errors import InputError
from sgan_core.known_models import (
    MANIFEST,
    MODELS,
    SETTINGS,
    checkout,
    find_bundle,
    places,
    read_settings,
    survey,
)

ROOT = Path(__file__).resolve().parents[1]
Write = Callable[..., Path]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Empty known folders in place of the real ones, by place."""
    root = tmp_path / "clone"
    found = {"bundled": tmp_path / "package", "checkout": root / "models", "user": tmp_path / "mine"}
    for folder in found.values():
        folder.mkdir(parents=True)
    monkeypatch.setattr(known_models, "MODELS", found["bundled"])
    monkeypatch.setattr(known_models, "checkout", lambda: root)
    monkeypatch.setenv("SGAN_MODELS", str(found["user"]))
    return found


def settings(**changes: Any) -> dict[str, Any]:
    """The settings of the bundled model, with changes."""
    return json.loads((MODELS / "phantom-ct-liver" / SETTINGS).read_bytes()) | changes


def write(folder: Path, content: Any = None) -> Path:
    """A model as far as its settings; what is not text is written as JSON."""
    (folder / SETTINGS).parent.mkdir(parents=True)
    text = content if isinstance(content, str) else json.dumps(settings() if content is None else content)
    (folder / SETTINGS).write_text(text, encoding="utf-8")
    return folder


def test_a_checkout_has_its_own_models_after_the_bundled_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SGAN_MODELS", raising=False)
    assert checkout() == ROOT
    assert places() == [("bundled", MODELS), ("checkout", ROOT / "models")]


def test_an_installed_copy_has_no_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_models, "__file__", str(tmp_path / "sgan_core" / "known_models.py"))
    monkeypatch.delenv("SGAN_MODELS", raising=False)
    assert places() == [("bundled", MODELS)]


def test_every_place_is_searched_in_order(folders: dict[str, Path], tmp_path: Path) -> None:
    for place, folder in folders.items():
        write(folder / f"of-{place}")
        assert find_bundle(f"of-{place}") == folder / f"of-{place}"
    for place in ("user", "checkout", "bundled"):  # the last written is the first searched
        write(folders[place] / "same")
        assert find_bundle("same") == folders[place] / "same"


def test_a_folder_here_comes_before_a_known_model_and_says_so(
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    known = write(folders["user"] / "lungs")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lungs").mkdir()  # such as the results of an earlier call
    assert find_bundle("lungs") == known
    assert not caplog.text
    write(tmp_path / "lungs")
    assert find_bundle("lungs") == Path("lungs")
    assert f"for that one give {known}" in caplog.text
    caplog.clear()
    assert find_bundle("./lungs") == Path("lungs")
    monkeypatch.chdir(folders["user"])  # the known model itself
    assert find_bundle("lungs") == Path("lungs")
    assert not caplog.text


def test_unknown_name_lists_what_is_there(folders: dict[str, Path]) -> None:
    for place, folder in folders.items():
        write(folder / f"liver-{place}")
    (folders["user"] / "no-model").mkdir()
    with pytest.raises(InputError, match=r"phantom-lung: no such model") as raised:
        find_bundle("phantom-lung")
    assert "(liver-bundled, liver-checkout, liver-user)" in str(raised.value)


def test_a_name_leads_nowhere_else(folders: dict[str, Path], tmp_path: Path) -> None:
    write(tmp_path / "clone" / "secret")
    with pytest.raises(InputError, match="no such model"):
        find_bundle("../secret")


def test_models_say_what_they_are(folders: dict[str, Path]) -> None:
    facts = settings()["facts"] | {
        "licence": "CC BY-NC-SA 4.0",
        "use": {"restriction": "research only", "sources": [{"name": "lits"}]},
    }
    write(folders["user"] / "liver", settings(facts=facts, student_alone=True))
    (found,), problems = survey()
    assert not problems
    assert (found["name"], found["place"], found["labels"]) == ("liver", "user", ["liver"])
    assert found["trained_on"] == {"cohort": "phantom", "labelled_patients": 8, "slices": 14840}
    assert found["figures"]["student_dice"] == facts["student_dice"]
    assert (found["licence"], found["restriction"]) == ("CC BY-NC-SA 4.0", "research only")
    assert [source["name"] for source in found["sources"]] == ["lits"]
    assert found["student_alone"]


def test_facts_of_the_wrong_kind_are_left_out(folders: dict[str, Path]) -> None:
    facts = {"cohort": ["x"], "labelled_patients": "8", "student_dice": True, "validation_dice": 10**400}
    write(folders["user"] / "odd", settings(facts=facts))
    (found,), _ = survey()
    assert (found["trained_on"], found["figures"]) == ({"cohort": ""}, {})
    json.dumps(found)


def config_with(**changes: Any) -> dict[str, Any]:
    return settings(config=settings()["config"] | changes)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "damaged, not JSON"),
        ("[" * 100_000, "damaged, not JSON"),
        ("1" * 5000, "damaged, not JSON"),
        ("[]", "schema version None"),
        (settings(schema=99), "schema version 99"),
        (settings(name=7), "name, config or facts are missing"),
        (config_with(colour="blue"), "another version"),
        (config_with(labels=[{"value": "x"}]), "another version"),
        (config_with(generator=settings()["config"]["generator"] | {"channels": [1]}), "another version"),
        (config_with(gan_share=10**400), "another version"),
    ],
)
def test_a_damaged_model_is_named_and_stops_nothing(
    content: Any, words: str, folders: dict[str, Path]
) -> None:
    damaged = write(folders["user"] / "damaged", content)
    write(folders["user"] / "whole")
    models, problems = survey()
    assert [model["name"] for model in models] == ["whole"]
    (problem,) = problems
    assert words in problem
    assert str(damaged) in problem
    assert "\n" not in problem


def test_settings_of_any_size_are_not_read(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    write(folders["user"] / "big")
    monkeypatch.setattr(known_models, "_MOST_BYTES", 1000)
    assert survey()[0] == []
    with pytest.raises(InputError, match="damaged, not JSON .more than"):
        read_settings(folders["user"] / "big")


def test_a_folder_that_is_no_model_and_a_hidden_one_are_told(folders: dict[str, Path]) -> None:
    (folders["user"] / "holiday").mkdir()
    (folders["user"] / "README.md").write_text("mine")
    (folders["user"] / ".liver.partial").mkdir()
    write(folders["bundled"] / "liver")
    write(folders["user"] / "liver")
    models, problems = survey()
    assert [(model["name"], model["place"]) for model in models] == [("liver", "bundled")]
    assert len(problems) == 2
    assert any(str(folders["user"] / "holiday") in text and "not a model" in text for text in problems)
    assert any(str(folders["user"] / "liver") in text and "hidden by" in text for text in problems)


def test_names_that_steer_a_terminal_are_shown_harmless(folders: dict[str, Path]) -> None:
    try:
        (folders["user"] / "liver\x1b[2J\n").mkdir()
    except OSError:
        pytest.skip("this system has no such names")
    models, (problem,) = survey()
    assert not models
    assert problem.isprintable()


def test_a_folder_of_the_user_that_is_missing_is_told(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(folders["user"])
    assert survey() == (
        [],
        [f"{folders['user']}: no such folder; SGAN_MODELS names it. Make it, or unset SGAN_MODELS."],
    )


def test_one_folder_under_two_names_counts_once(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folders["checkout"] / "liver")
    monkeypatch.setenv("SGAN_MODELS", os.path.join(str(folders["checkout"]), "..", "models"))
    models, problems = survey()
    assert [(model["name"], model["place"]) for model in models] == [("liver", "checkout")]
    assert not problems


def test_the_list_and_the_model_say_the_same_size(folders: dict[str, Path]) -> None:
    """That of the masks, which is the student's where it has one of its own."""
    large = settings()
    large["config"]["student_train"] |= {"size": 128, "growth": {}}
    folder = write(folders["user"] / "large", large)
    shutil.copyfile(MODELS / "phantom-ct-liver" / MANIFEST, folder / MANIFEST)
    (found,), _ = survey()
    assert found["size_px"] == describe("large")["size_px"] == 128
