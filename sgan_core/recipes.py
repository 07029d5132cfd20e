"""Recipes: the data, labels and settings that make a model by one command, and the figures to expect."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dacite
import yaml

from sgan_core.cohort import MODALITIES
from sgan_core.config import TrainConfig, merge, preset
from sgan_core.errors import InputError
from sgan_core.known_models import checkout

NOT_MEASURED = "not measured yet"
BUILT_IN = "phantom"  # the data set that needs no files


@dataclass(frozen=True)
class Figure:
    """What to expect, and where it was measured. value None: nobody has measured it."""

    what: str
    value: float | None
    source: str


@dataclass(frozen=True)
class Recipe:
    """How a model is made.

    Commands are written as they are typed. ``prepare`` makes the cohort out of the data sets as published: the
    --output of the last one is the --data of training. ``test`` prepares what the model is tested on. ``config``
    holds settings over those of the preset, as --config has them; ``train`` are all commands of the training, where
    the recipe is one of several steps. ``figures`` are DICE per patient, 0 to 1.
    """

    name: str
    title: str
    modality: str
    preset: str
    labelled: int
    labels: tuple[str, ...]  # of the cohort, in the order of their values
    data_sets: tuple[str, ...]  # as sgan-data list names them, or ``BUILT_IN`` alone
    config: dict[str, Any]
    train: tuple[str, ...]
    figures: tuple[Figure, ...]
    hours: Figure
    prepare: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        where = f"recipe {self.name}"
        if self.modality not in MODALITIES:
            raise InputError(f"{where}: modality {self.modality!r}, expected one of {', '.join(MODALITIES)}")
        if not (self.labels and self.data_sets and self.train):
            raise InputError(f"{where}: labels, data_sets and train need an entry each")
        if bool(self.prepare) == self.built_in:
            raise InputError(f"{where}: prepare is for data sets with files, which need it")
        for one in (*self.figures, self.hours):
            if (one.value is None) != (one.source == NOT_MEASURED):
                raise InputError(
                    f"{where}: {one.what!r} needs a value and where it was measured, or {NOT_MEASURED!r}"
                )
        for one in self.figures:
            if one.value is not None and not 0.0 <= one.value <= 1.0:
                raise InputError(f"{where}: {one.what!r} is {one.value}, expected a DICE of 0 to 1")
        if self.hours.value is not None and not 0.0 < self.hours.value < 1e6:
            raise InputError(f"{where}: {self.hours.what!r} is {self.hours.value}, expected hours above 0")
        if self.labelled < 1:
            raise InputError(f"{where}: labelled is {self.labelled}, expected 1 patient or more")
        self.settings()

    @property
    def built_in(self) -> bool:
        """Whether the phantom is what it learns from, which needs no files."""
        return self.data_sets == (BUILT_IN,)

    def defaults(self) -> dict[str, Any]:
        """What it sets where the user says nothing else, as ``TrainConfig`` names it."""
        return merge(
            self.config, {"modality": self.modality, "preset": self.preset, "labelled": self.labelled}
        )

    def settings(self) -> TrainConfig:
        """The preset with the recipe's changes. Raises InputError for a change that it does not know."""
        plain = preset(self.preset, modality=self.modality, num_classes=1 + len(self.labels))
        return TrainConfig.from_dict(merge(plain.to_dict(), self.defaults()))

    def expected(self) -> list[str]:
        """Figures and hours, a line each."""
        lines = [f"DICE {_shown(one, '.3f')}: {one.what}" for one in self.figures]
        return [*lines, f"hours {_shown(self.hours, 'g')}: {self.hours.what}"]

    def steps(self) -> str:
        """All commands in the order in which they are typed, a line each."""
        parts = (
            (
                "data as published: sgan-data list NAME says how to get " + ", ".join(self.data_sets),
                self.prepare,
            ),
            ("to test on", self.test),
            ("training", self.train),
            ("to expect", self.expected()),
        )
        lines = [
            f"{title}:\n" + "\n".join(f"  {line}" for line in commands)
            for title, commands in parts
            if commands
        ]
        return "\n".join(lines)


def _shown(one: Figure, style: str) -> str:
    return NOT_MEASURED if one.value is None else format(one.value, style)


def recipe_files() -> dict[str, Path]:
    """The recipes that come along, by name. In a wheel they lie in the package, in a checkout in ``recipes/``."""
    root = checkout()
    folder = Path(__file__).parent / "recipes" if root is None else root / "recipes"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def load_recipe(name: str) -> Recipe:
    """A recipe by its name, or from a file that ends in .yaml.

    Raises InputError: unknown, unreadable, or with a key, value or setting that no recipe has.
    """
    known = recipe_files()
    file = Path(name) if name.endswith(".yaml") else known.get(name)
    if file is None:
        raise InputError(
            f"--recipe {name}: no such recipe. There are {', '.join(known)}; or give a .yaml file."
        )
    try:
        table = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (
        OSError,
        ValueError,
        yaml.YAMLError,
        RecursionError,
    ) as error:  # ValueError: no UTF-8, no such date
        raise InputError(f"{file}: not readable YAML ({error}).") from error
    if not isinstance(table, dict) or "name" in table:
        raise InputError(
            f"{file}: expected a table of a recipe, as those in recipes/; its name is that of the file."
        )
    try:
        return dacite.from_dict(Recipe, table | {"name": file.stem}, dacite.Config(strict=True, cast=[tuple]))
    except (dacite.DaciteError, TypeError) as error:
        raise InputError(f"{file}: {error}.") from error
    except InputError as error:
        raise InputError(f"{file}: {error}.") from error
