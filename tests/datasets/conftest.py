"""What tests of several data sets ask for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest


@pytest.fixture(scope="session")
def organs_in_place() -> Callable[[np.ndarray], None]:
    """Asserts that a patient's liver, kidneys and spleen lie where a radiologist expects them.

    labels: (slice, row, column), slices from the feet, 192 columns; 1 liver, 2 right and 3 left kidney, 4 spleen.
    """
    liver, right_kidney, left_kidney, spleen = range(1, 5)

    def check(labels: np.ndarray) -> None:
        height, row, column = (
            {value: float(np.nonzero(labels == value)[axis].mean()) for value in range(1, 5)}
            for axis in range(3)
        )
        assert column[liver] < 96 < column[spleen]
        assert column[right_kidney] < column[left_kidney]
        assert row[right_kidney] > row[liver]
        assert height[liver] > height[right_kidney]

    return check
