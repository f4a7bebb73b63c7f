"""Correlations of two columns, and what they are where one of the two never varies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def pearson(x: Any, y: Any, constant: float = math.nan) -> float:
    """Pearson's correlation of two columns, `[values]`. constant: what it is where one of the two never varies, or there are
    fewer than two values. Not known, as a rule; 0 where the one was set and the other was free to follow, and did not.

    >>> round(pearson([1, 2, 4], [1, 3, 2]), 2), pearson([1, 2, 4], [1, 1, 1]), pearson([1, 2, 4], [1, 1, 1], constant=0.0)
    (0.33, nan, 0.0)
    """
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return constant
    return float(np.corrcoef(a, b)[0, 1])


def spearman(x: Any, y: Any, constant: float = math.nan) -> float:
    """Spearman's rank correlation of two columns, equal values sharing their mean rank. constant: as of `pearson`.

    >>> spearman([1, 2, 4], [0, 1, 100])
    1.0
    """
    from scipy.stats import rankdata

    return pearson(rankdata(x), rankdata(y), constant)
