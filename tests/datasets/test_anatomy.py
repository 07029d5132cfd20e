"""Names, colours and codes of organs: each code is a SNOMED CT identifier, each organ of the data sets has one."""

from __future__ import annotations

import pytest

from sgan_datasets import btcv, chaos
from sgan_datasets.anatomy import _STRUCTURES, named_label

# The dihedral group of order 10 and its permutation: Verhoeff's check digit, by which SNOMED CT identifiers end.
_TIMES = [
    [(a + b) % 5 + 5 * (b > 4) if a < 5 else (a - b) % 5 + 5 * (b < 5) for b in range(10)] for a in range(10)
]
_TURN = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)


def verhoeff(digits: str) -> int:
    """0 for digits that end with their check digit."""
    check = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit)
        for _ in range(place):
            value = _TURN[value]
        check = _TIMES[check][value]
    return check


def test_the_check_digit_is_verhoeffs() -> None:
    assert verhoeff("2363") == 0  # the usual example: 236 and its check digit 3
    assert verhoeff("2633") != 0


@pytest.mark.parametrize("name", _STRUCTURES)
def test_codes_are_identifiers_of_concepts(name: str) -> None:
    code = named_label(1, name).code
    assert verhoeff(code) == 0
    assert code[-3:-1] == "00"  # a concept of the international edition; 01 would be a description


def test_no_code_means_two_things() -> None:
    codes = [code for _, code in _STRUCTURES.values()]
    assert len(set(codes)) == len(codes)


def test_every_organ_has_a_colour_and_a_code() -> None:
    assert len(btcv.ORGANS) == 13
    for organ in (*btcv.ORGANS, *chaos.ORGANS):
        assert organ in _STRUCTURES
