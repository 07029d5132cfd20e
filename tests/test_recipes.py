"""Recipes: each fits the programs that it names, and what is no recipe is refused."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from sgan_core.cli import train
from sgan_core.cli.data import _parser as data_parser
from sgan_core.config import preset
from sgan_core.errors import InputError
from sgan_core.recipes import NOT_MEASURED, load_recipe, recipe_files
from sgan_datasets import NAMES

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted(recipe_files())


def test_the_recipes_of_the_repository_are_found() -> None:
    assert recipe_files() == {file.stem: file for file in (ROOT / "recipes").glob("*.yaml")}
    assert {"lits-liver", "btcv-abdomen", "jsrt-lungs", "wingspan-thorax", "isic2017"} < set(RECIPES)
    assert "phantom-ct-liver" in RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_settings_apply_to_the_preset(name: str) -> None:
    recipe = load_recipe(name)
    config = recipe.settings()
    assert (config.preset, config.modality, config.labelled) == (
        recipe.preset,
        recipe.modality,
        recipe.labelled,
    )
    assert config.generator.num_classes == 1 + len(recipe.labels)
    assert config.gan.max_images == recipe.config["gan"]["max_images"]
    plain = preset(recipe.preset, modality=recipe.modality, num_classes=1 + len(recipe.labels))
    assert config.generator == plain.generator


@pytest.mark.parametrize("name", RECIPES)
def test_commands_are_those_of_the_programs(name: str) -> None:
    recipe = load_recipe(name)
    if missing := {one for one in recipe.data_sets if one not in NAMES} - {"phantom"}:
        pytest.skip(f"data set {missing} is not there yet")
    made = []
    for line in (*recipe.prepare, *recipe.test):
        program, *options = shlex.split(line)
        assert program == "sgan-data"
        made.append(str(data_parser().parse_args(options).output))
    prepared = made[: len(recipe.prepare)]
    outputs = []
    for line in recipe.train:
        program, *options = shlex.split(line)
        assert program == "sgan-train"
        args = train.parser().parse_args(options)
        assert args.recipe == name
        assert args.data == (prepared[-1] if prepared else None)
        assert args.init_from is None or str(args.init_from) == outputs[-1]
        outputs.append(str(args.output))


@pytest.mark.parametrize("name", RECIPES)
def test_figures_are_those_that_were_measured(name: str) -> None:
    """A number in a recipe stands in the file that it is said to come from."""
    recipe = load_recipe(name)
    for one, style in (*((figure, ".3f") for figure in recipe.figures), (recipe.hours, "g")):
        if one.value is not None:
            text = (ROOT / one.source).read_text(encoding="utf-8")
            assert re.search(rf"\b{re.escape(format(one.value, style))}\b", text), one


def test_a_file_of_ones_own_is_a_recipe(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_bytes(recipe_files()["lits-liver"].read_bytes())
    assert load_recipe(str(own)).settings() == load_recipe("lits-liver").settings()
    assert load_recipe(str(own)).name == "own"


def changed(**changes: Any) -> str:
    table = yaml.safe_load(recipe_files()["lits-liver"].read_text(encoding="utf-8"))
    return yaml.safe_dump({key: value for key, value in (table | changes).items() if value is not None})


FIGURE = {"what": "x", "value": 0.5, "source": "docs/results.md"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[", "not readable YAML"),
        ("!!python/object/apply:os.system [id]", "not readable YAML"),
        ("liver", "expected a table"),
        (changed(colour="blue"), "colour"),
        (changed(name="liver"), "its name is that of the file"),
        (changed(title=None), "title"),
        (changed(labelled="eight"), "labelled"),
        (changed(modality="pet"), "modality 'pet', expected one of"),
        (changed(preset="huge"), "preset is 'huge'"),
        (changed(config={"gan": {"max_imagse": 1}}), "max_imagse"),
        (changed(config={"gan": {"batch": 1}}), "batch is 1"),
        (changed(labels=[]), "labels, data_sets and train need an entry"),
        (changed(prepare=[]), "prepare is for data sets with files"),
        (changed(data_sets=["phantom"]), "prepare is for data sets with files"),
        (changed(figures=[FIGURE | {"value": None}]), "needs a value and where it was measured"),
        (changed(figures=[FIGURE | {"source": NOT_MEASURED}]), "needs a value and where it was measured"),
        (changed(figures=[FIGURE | {"value": 91.8}]), "expected a DICE of 0 to 1"),
        (changed(figures=[FIGURE | {"kind": 1}]), "kind"),
        (changed(hours=FIGURE | {"value": float("nan")}), "expected hours above 0"),
        (changed(hours=FIGURE | {"value": -1.0}), "expected hours above 0"),
        (changed(labelled=-5), "labelled is -5"),
        (changed(config={"student_train": {"growth": {0: 0.5}}}), "size is 0"),
        (changed(config={"student_train": {"growth": {float("inf"): 0.5}}}), "infinity"),
        (changed() + "day: 2001-99-99\n", "not readable YAML"),
    ],
)
def test_what_is_no_recipe_is_refused_with_its_file(content: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(words)) as raised:
        load_recipe(str(file))
    assert raised.value.message.startswith(f"{file}: ")


def test_unknown_recipe_lists_those_that_there_are() -> None:
    with pytest.raises(InputError, match="no such recipe. There are .*lits-liver"):
        load_recipe("../recipes/lits-liver")
