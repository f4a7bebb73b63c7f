"""What the rows of an experiment on drift say, in numbers with intervals; it asks nothing and draws nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from personaspace.experiments.drift_messages import Steps
from personaspace.experiments.statistics import Estimate, estimate, mean
from personaspace.experiments.trials import PLAIN

Row = Mapping[str, Any]
STAY, DRIFT = ("coding", "writing"), ("distress", "nature")
"""The domains that stay at the Assistant's end in the study, and those that drift."""


@dataclass(frozen=True)
class Course:
    """Conversations of a domain under a condition. read: the projection turn by turn as the plain model reads the replies;
    went: as the model went on with them. drift: that of the last quarter of turns less that of the first, and level: the mean
    drift of all turns, both in the default's standard deviations, positive away from the Assistant."""

    read: list[Estimate]
    went: list[Estimate]
    drift: Estimate
    level: Estimate


def grid(rows: Sequence[Row], domain: str, condition: str, column: str) -> np.ndarray:
    """A column as `[conversations, turns]`, NaN where a turn is missing."""
    values: dict[str, list[float]] = {}
    for r in rows:
        if r["domain"] == domain and r["condition"] == condition:
            values.setdefault(r["conversation"], []).append(r[column])
    return np.array(list(values.values()), dtype=float)


def last_quarter(turns: int) -> int:
    """How many turns that is; one at least."""
    return math.ceil(turns / 4)


def ending(turns: int) -> str:
    """Those turns in words."""
    n = last_quarter(turns)
    return "the last turn" if n == 1 else f"the last {n} of {turns} turns"


def drifts(drift: np.ndarray) -> np.ndarray:
    """From each turn's drift `[conversations, turns]` to how much further it is in the last quarter than in the first turn."""
    return np.asarray(drift[:, -last_quarter(drift.shape[1]) :].mean(1) - drift[:, 0])


def levels(drift: np.ndarray) -> np.ndarray:
    """The mean drift of the turns that are there, `[conversations]`."""
    known = ~np.isnan(drift)
    n = known.sum(1)
    return np.where(n > 0, np.where(known, drift, 0).sum(1) / np.maximum(n, 1), np.nan)


def steps_of(rows: Sequence[Row]) -> Steps:
    """The plain replies from the second turn on, whose place and whose predecessor's are known; places are in the default's
    standard deviations, up is Assistant."""
    plain = [r for r in rows if r["condition"] == PLAIN.name]
    pairs = [
        (a, b)
        for a, b in pairwise(plain)
        if a["conversation"] == b["conversation"] and not math.isnan(a["drift"] + b["drift"])
    ]
    return Steps(
        [b["message"] for _, b in pairs],
        np.array([-a["drift"] for a, _ in pairs]),
        np.array([-b["drift"] for _, b in pairs]),
        [b["domain"] for _, b in pairs],
        [b["conversation"] for _, b in pairs],
    )


def course(rows: Sequence[Row], domain: str, condition: str, seed: int) -> Course:
    """See `Course`."""
    read, went, drift = (grid(rows, domain, condition, c) for c in ("projection", "projection_as_it_went", "drift"))
    return Course(
        [mean(turn.tolist(), seed=seed) for turn in read.T],
        [mean(turn.tolist(), seed=seed) for turn in went.T],
        mean(drifts(drift).tolist(), seed=seed),
        mean(levels(drift).tolist(), seed=seed),
    )


def contrast(rows: Sequence[Row], of: Callable[[np.ndarray], np.ndarray], seed: int) -> Estimate | None:
    """How much higher `drifts` or `levels` is in the domains that drift in the study than in those that stay; of the plain
    model. None where the users' domains are others."""
    values = {d: of(grid(rows, d, PLAIN.name, "drift")) for d in dict.fromkeys(r["domain"] for r in rows)}
    if set(values) != {*STAY, *DRIFT}:
        return None
    y = np.concatenate(list(values.values()))
    away = np.concatenate([np.full(len(v), d in DRIFT) for d, v in values.items()])

    def difference(at: np.ndarray) -> float:
        far, near = y[at][away[at]], y[at][~away[at]]
        far, near = far[~np.isnan(far)], near[~np.isnan(near)]
        return float(far.mean() - near.mean()) if len(far) and len(near) else math.nan

    return estimate(list(range(len(y))), difference, seed)


def held_back(rows: Sequence[Row], condition: str, seed: int) -> Estimate:
    """How much nearer to the Assistant the same conversations lie under a condition, in their mean drift."""
    domains = dict.fromkeys(r["domain"] for r in rows)
    plain, held = (
        np.concatenate([levels(grid(rows, d, c, "drift")) for d in domains]) for c in (PLAIN.name, condition)
    )
    return mean((plain - held).tolist(), seed=seed)
