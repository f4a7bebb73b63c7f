"""How every bench measures: calls made in turn, and their figures as median, least and most."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any


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
