"""How every bench measures: calls made in turn, their figures as median, least and most, and ratios round by round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

EXACT, ONCE = "exact", "one run"
"""What stands for a ratio's interval where it was counted, and where it was measured once."""


def summary(values: Sequence[float], unit: str) -> dict[str, Any]:
    """A figure that was measured several times, in its unit."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "unit": unit}


def in_turn(repeats: int, *calls: Callable[[], float]) -> list[list[float]]:
    """Each call's figures, the calls made in turn, so that a machine that slows down slows them all."""
    figures: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for of_one, call in zip(figures, calls, strict=True):
            of_one.append(call())
    return figures


def rounds(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """The ratio of each round, both measured in turn in it."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def ratios(
    by_name: Mapping[str, Sequence[float]], others: Mapping[str, tuple[float, str]] | None = None
) -> dict[str, Any]:
    """`ratio`: the median of each ratio's rounds, by name; `ratio_interval`: the least and the most of them; `confidence`: how
    likely these two hold the median that ever more rounds would come to, whatever the rounds' distribution: each of n rounds
    lies above it as likely as below, so that all lie on one side in 2 of 2ⁿ. others: ratios that have no rounds, with `EXACT`
    or `ONCE` for their interval.

    >>> ratios({"reading": [1.00, 0.98, 0.99]})
    {'ratio': {'reading': 0.99}, 'ratio_interval': {'reading': [0.98, 1.0]}, 'rounds': 3, 'confidence': 0.75}
    """
    alone = others or {}
    n = min(map(len, by_name.values()))
    return {
        "ratio": {
            **{name: statistics.median(values) for name, values in by_name.items()},
            **{name: value for name, (value, _) in alone.items()},
        },
        "ratio_interval": {
            **{name: [min(values), max(values)] for name, values in by_name.items()},
            **{name: standing for name, (_, standing) in alone.items()},
        },
        "rounds": n,
        "confidence": 1 - 2.0 ** (1 - n),
    }
