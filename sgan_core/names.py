"""The order in which people number files."""

from __future__ import annotations

import re


def natural(text: str) -> list[tuple[int, str]]:
    """A key that sorts slice_2 before slice_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]
