"""What every data set offers: facts, a cohort, a check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sgan_core.cohort import Case, Cohort
from sgan_core.imaging.image import Picture, Volume
from sgan_core.terms import Source


@dataclass(frozen=True)
class Problem:
    """Something about the files that their owner should know."""

    kind: str  # "missing" | "size" | "value" | "duplicate" | "leak" | "unreadable" | "layout"
    text: str  # names the file or case, what was found, what was expected


@dataclass(frozen=True)
class Scan:
    """What lies in a data set's folder: its cohort, as far as it can be made from names and tables.

    Images and labels have not been opened. Splits are the official ones; without official ones every case
    is in "train" with no ``labelled_rank``.
    """

    cohort: Cohort
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class About:
    """What a person wants to know about a data set before getting it."""

    name: str  # the NAME of `sgan-data prepare NAME`
    modality: str
    what: str  # one line
    size: str  # of the official release
    source: str  # address of its page
    licence: str  # licence and terms, and who states them
    get: str = ""  # how to get it, in words
    citation: str = ""
    layout: str = ""  # the official tree, with its quirks

    def as_source(self) -> Source:
        """What a cohort, and a model trained on it, keep of this."""
        return Source(self.name, licence=self.licence, address=self.source, citation=self.citation)


@dataclass(frozen=True)
class DataSet:
    """One data set and how its official layout becomes a cohort.

    scan(root) reads names and tables below the folder and raises InputError when it is not this data set.
    read_image, read_label: for files that ``sgan_core.imaging.readers`` does not know (raw pixels, coloured
    or grey-edged masks, masks in several files). Labels are classes 0..K, uint8, of the image's shape.
    """

    about: About
    scan: Callable[[Path], Scan]
    read_image: Callable[[Case], Volume | Picture] | None = None
    read_label: Callable[[Case], Volume | np.ndarray] | None = None

    def load(self, root: str | Path) -> Cohort:
        """The cohort of a folder in the official layout: patients, domains, labels, official splits.

        Raises InputError when the folder is not this data set.
        """
        return self.scan(Path(root)).cohort
