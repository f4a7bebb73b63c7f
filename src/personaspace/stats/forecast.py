"""What a reliability says: of a whole from its halves, and how many more data another would take (Spearman–Brown)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TARGET, KNOWN = 0.9, 0.7
"""The reliability that forecasts are made for, and the one below which order and neighbours do not count as known."""

NAMES = ("axis", "order", "map")

Floats = NDArray[np.float64]


def spearman_brown(half: Floats | float, factor: Floats | float = 2.0) -> Floats:
    """The whole's reliability from that of halves, averaged over splits; a negative one counts as 0. factor: how many times
    the noise of the whole a half has.

    >>> round(float(spearman_brown(0.6)), 2)
    0.75
    """
    r = np.maximum(half, 0.0)
    result: Floats = np.asarray(factor * r / (1 + (factor - 1) * r))
    return result


def forecast(reliability: float, target: float = TARGET) -> float | None:
    """How many times the data would give the target reliability (Spearman–Brown); None where nothing is reliable yet.

    >>> forecast(0.8)  # from 0.8 to 0.9 takes 2.25 times the data
    2.25
    """
    if not reliability > 0:
        return None
    return target / (1 - target) * (1 - reliability) / reliability
