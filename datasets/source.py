"""What a person wants to know about a data set before getting it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """One row of `sgan-data list`."""

    name: str  # the NAME of `sgan-data prepare NAME`
    modality: str
    about: str
    source: str  # where it comes from
    licence: str
