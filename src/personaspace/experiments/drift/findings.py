"""What the rows of an experiment on drift say, in numbers with intervals; it asks nothing and draws nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from personaspace.experiments.drift.messages import Steps
from personaspace.experiments.kit.conditions import PLAIN, compared
from personaspace.experiments.kit.conversations import turns_both_ways
from personaspace.holding.controls import BesideControls
from personaspace.stats.intervals import Estimate, estimate, mean

Row = Mapping[str, Any]
STAY, DRIFT = ("coding", "writing"), ("distress", "nature")
"""The domains that stay at the Assistant's end in the study, and those that drift."""


Of = Callable[[np.ndarray], np.ndarray]
"""From drifts `[conversations, turns]` to a figure a conversation: `drifts`, `levels` or `starts`."""


def difference(far: np.ndarray, near: np.ndarray, seed: int) -> Estimate:
    """How much higher the mean of some is than that of others; NaN are left out."""
    y = np.concatenate([far, near])
    present = np.flatnonzero(~np.isnan(y))
    is_far = present < len(far)

    def apart(draw: np.ndarray) -> float:
        far_values, others = y[present[draw][is_far[draw]]], y[present[draw][~is_far[draw]]]
        return float(far_values.mean() - others.mean()) if len(far_values) and len(others) else math.nan

    gap = estimate(present.tolist(), apart, seed)
    return Estimate(gap.value, gap.low, gap.high, gap.n, len(y) - len(present))


@dataclass(frozen=True)
class Course:
    """Conversations of a domain under a condition. read: the projection turn by turn as the plain model reads the
    replies; went: as the model went on with them. drift: that of the last quarter of turns less that of the first;
    level: the mean drift of all turns, and start: that of the first; all in the default's standard deviations,
    positive away from the Assistant. of_messages: the drift where each message opens a conversation of its own, and
    of_history: what the history makes of it beyond that; the plain model's alone."""

    read: list[Estimate]
    went: list[Estimate]
    drift: Estimate
    level: Estimate
    start: Estimate
    of_messages: Estimate
    of_history: Estimate


@dataclass(frozen=True)
class Ordinary:
    """The default of ordinary talk: where its replies lie from the space's default, and their standard deviation, in
    the space's default's; by domain, how much further than it the plain conversations start, and lie over all turns."""

    place: Estimate
    deviation: float
    starts: dict[str, Estimate]
    levels: dict[str, Estimate]


def grid(rows: pd.DataFrame, column: str = "drift", condition: str = PLAIN.name) -> np.ndarray:
    """A column as `[conversations, turns]`, NaN where a turn is missing; the plain model's unless a condition is named."""
    conversations = rows[rows.condition == condition].groupby("conversation", sort=False)[column].agg(list)
    return np.array(conversations.tolist(), dtype=float)


def by_domain(rows: pd.DataFrame, of: Of, column: str = "drift") -> dict[str, np.ndarray]:
    """A figure of the plain model's conversations, `[conversations]` by domain."""
    return {domain: of(grid(members, column)) for domain, members in rows.groupby("domain", sort=False)}


def last_quarter(turns: int) -> int:
    """How many turns that is; one at least."""
    return math.ceil(turns / 4)


def ending(turns: int) -> str:
    """Those turns in words."""
    n = last_quarter(turns)
    return "the last turn" if n == 1 else f"the last {n} of {turns} turns"


def drifts(drift: np.ndarray) -> np.ndarray:
    """From each turn's drift `[conversations, turns]` to how much further it is in the last quarter than in the
    first turn."""
    return np.asarray(drift[:, -last_quarter(drift.shape[1]) :].mean(1) - drift[:, 0])


def levels(drift: np.ndarray) -> np.ndarray:
    """The mean drift of the turns that are there, `[conversations]`."""
    present = ~np.isnan(drift)
    n = present.sum(1)
    return np.where(n > 0, np.where(present, drift, 0).sum(1) / np.maximum(n, 1), np.nan)


def starts(drift: np.ndarray) -> np.ndarray:
    """The drift of the first turn, `[conversations]`."""
    return drift[:, 0]


def steps_of(rows: Sequence[Row]) -> Steps:
    """The plain replies from the second turn on, whose place and whose predecessor's are known; places are in the
    default's standard deviations, up is Assistant."""
    table = pd.DataFrame(list(rows))
    plain = table[table.condition == PLAIN.name]
    before = plain.groupby("conversation", sort=False).drift.shift()
    steps = plain.assign(before=before).dropna(subset=["before", "drift"])
    places = (-steps.before.to_numpy(), -steps.drift.to_numpy())
    return Steps(list(steps.message), *places, list(steps.domain), list(steps.conversation))


def course(rows: pd.DataFrame, condition: str, seed: int) -> Course:
    """See `Course`; rows: a domain's."""

    def over(values: np.ndarray) -> Estimate:
        return mean(values.tolist(), seed=seed)

    read, went, drift, as_opening, of_history = (
        grid(rows, column, condition)
        for column in ("projection", "projection_as_it_went", "drift", "drift_as_opening", "drift_of_history")
    )
    return Course(
        read=[over(turn) for turn in read.T],
        went=[over(turn) for turn in went.T],
        drift=over(drifts(drift)),
        level=over(levels(drift)),
        start=over(starts(drift)),
        of_messages=over(drifts(as_opening)),
        of_history=over(drifts(of_history)),
    )


def contrast(rows: pd.DataFrame, of: Of, seed: int, column: str = "drift") -> Estimate | None:
    """How much higher a figure is in the domains that drift in the study than in those that stay; of the plain
    model. None where the users' domains are others."""
    values = by_domain(rows, of, column)
    if set(values) != {*STAY, *DRIFT}:
        return None
    far, near = (np.concatenate([values[d] for d in domains]) for domains in (DRIFT, STAY))
    return difference(far, near, seed)


def against_others(rows: pd.DataFrame, seed: int) -> dict[str, Estimate]:
    """How much further each domain drifts than the others together, from the first turn to the last; of the plain
    model."""
    values = by_domain(rows, drifts)
    if len(values) < 2:
        return {}
    return {d: difference(v, np.concatenate([w for e, w in values.items() if e != d]), seed) for d, v in values.items()}


def beside_ordinary(rows: pd.DataFrame, talk: Sequence[float], seed: int) -> Ordinary | None:
    """Where conversations start and lie beside ordinary talk, whose drifts are given; None without any."""
    if len(talk) < 2:
        return None
    ordinary = np.array(talk, dtype=float)
    beside = [{d: difference(v, ordinary, seed) for d, v in by_domain(rows, of).items()} for of in (starts, levels)]
    return Ordinary(mean(ordinary.tolist(), seed=seed), float(np.nanstd(ordinary, ddof=1)), *beside)


def nearer(plain: pd.DataFrame, moved: pd.DataFrame) -> np.ndarray:
    """How much nearer to the Assistant each conversation lies as it was held, `[conversations]`, in the mean drift of the turns
    that it has both ways; NaN without any."""
    by_talk = turns_both_ways(plain, moved).groupby("conversation").less.mean()
    return np.asarray(by_talk.reindex(list(dict.fromkeys(moved.conversation))))


def held_back(rows: pd.DataFrame, condition: str, seed: int) -> Estimate:
    """How much nearer to the Assistant the same conversations lie under a condition, in their mean drift."""
    plain, moved = (rows[rows.condition == name] for name in (PLAIN.name, condition))
    return mean(nearer(plain, moved).tolist(), seed=seed)


def beside_controls(rows: pd.DataFrame, controls: Sequence[Row], names: Sequence[str]) -> dict[str, BesideControls]:
    """How much nearer to the Assistant the conversations that were held along other directions as well lie under each
    condition than plain, in their mean drift, beside how much nearer they lie along those; none where there are none."""
    if not controls:
        return {}
    aside = pd.DataFrame([dict(r) for r in controls])
    same = rows[rows.conversation.isin(set(aside.conversation))]

    plain = same[same.condition == PLAIN.name]

    def effect(frame: pd.DataFrame, condition: str) -> float:
        each = nearer(plain, frame[frame.condition == condition])
        return float(np.nanmean(each)) if not np.isnan(each).all() else math.nan

    others = {name: value for name in aside.condition.unique() if not math.isnan(value := effect(aside, name))}
    effects = {name: compared(name, effect(same, name), others) for name in names if name != PLAIN.name}
    return {name: beside for name, beside in effects.items() if beside.random}
