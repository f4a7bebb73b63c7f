"""Who speaks and how, taken apart: contrasts and shares of a table of places, who by how by question; it asks
nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from personaspace.catalog import DEFAULT
from personaspace.stats.intervals import FEW, Estimate, estimate

NEAR, FAR = "near", "far"
"""The axis' two ends: roles of the Assistant's, and of the other. The default Assistant stands beside them, as
`DEFAULT`."""
GROUPS = (NEAR, FAR, DEFAULT)

AS_IT_IS, POINTS, VERSE, NEUTRAL = "as it is", "in points", "in verse", "neutral sentence"
MANNERS = (AS_IT_IS, POINTS, VERSE, NEUTRAL)
CONTRASTS = ((POINTS, VERSE), (POINTS, NEUTRAL), (VERSE, NEUTRAL), (AS_IT_IS, NEUTRAL))
"""Manners that are set against each other: the first less the second."""
WHO, HOW, BOTH = "who", "how", "both together"

DEALS = 1000

Extent = tuple[float, float]


@dataclass(frozen=True)
class Table:
    """Where everybody lies in every manner with every question.

    who: names. groups: each one's of `GROUPS`. places: `[who, manners, questions]`, the manners in the order of
    `MANNERS`, in standard deviations; up is the Assistant. NaN: nothing was read.
    """

    who: tuple[str, ...]
    groups: tuple[str, ...]
    places: np.ndarray

    def members(self, group: str) -> np.ndarray:
        """The rows of a group `[members]`."""
        return np.flatnonzero(np.array(self.groups) == group)

    def of_rows(self, rows: np.ndarray) -> Table:
        """The table with these rows alone."""
        selected = rows.tolist()
        return Table(
            tuple(self.who[k] for k in selected), tuple(self.groups[k] for k in selected), self.places[selected]
        )

    def of_questions(self, questions: np.ndarray) -> Table:
        """The table with these questions alone."""
        return Table(self.who, self.groups, self.places[:, :, questions])

    def mean(self, group: str, manner: str) -> float:
        """The mean place of a group in a manner; NaN where nothing of it was read."""
        return _mean(self.places[self.members(group), MANNERS.index(manner)])


@dataclass(frozen=True)
class MannerFindings:
    """What a table says, in standard deviations of the default.

    places: group → manner → mean place. who: manner → far end less near end. who_overall: the mean of these. how:
    (manner, manner) → group → the first less the second. how_overall: points less verse, over the roles of both ends.
    crossed: the far end in points less the near end in verse. shares: of the variance over cells, of `WHO`, `HOW` and
    `BOTH`; 1 together. by_lot: how far apart the ends lie at most, either way, in 95 of 100 deals of the same roles to two ends
    by lot: what `who_overall` has to lie beyond.
    """

    places: Mapping[str, Mapping[str, Estimate]]
    who: Mapping[str, Estimate]
    who_overall: Estimate
    how: Mapping[tuple[str, str], Mapping[str, Estimate]]
    how_overall: Estimate
    crossed: Estimate
    shares: Mapping[str, Estimate]
    by_lot: float


def findings(table: Table) -> MannerFindings:
    """All contrasts of a table, each with its interval over the roles and the questions that it is of (`drawn`)."""
    ends = (NEAR, FAR)

    def place(group: str, manner: str) -> Estimate:
        return drawn(table, lambda t: t.mean(group, manner), (group,))

    def apart(manner: str) -> Estimate:
        return drawn(table, lambda t: t.mean(FAR, manner) - t.mean(NEAR, manner), ends)

    def change(group: str, first: str, second: str) -> Estimate:
        return drawn(table, lambda t: t.mean(group, first) - t.mean(group, second), (group,))

    def share(name: str) -> Estimate:
        return drawn(table, lambda t: shares(t)[name], ends, within=(0.0, 1.0))

    return MannerFindings(
        places={group: {manner: place(group, manner) for manner in MANNERS} for group in GROUPS},
        who={manner: apart(manner) for manner in MANNERS},
        who_overall=drawn(table, lambda t: _average([t.mean(FAR, m) - t.mean(NEAR, m) for m in MANNERS]), ends),
        how={(a, b): {group: change(group, a, b) for group in GROUPS} for a, b in CONTRASTS},
        how_overall=drawn(table, lambda t: _average([t.mean(g, POINTS) - t.mean(g, VERSE) for g in ends]), ends),
        crossed=drawn(table, lambda t: t.mean(FAR, POINTS) - t.mean(NEAR, VERSE), ends),
        shares={name: share(name) for name in (WHO, HOW, BOTH)},
        by_lot=dealt_by_lot(table),
    )


def dealt_by_lot(table: Table, seed: int = 0) -> float:
    """See `MannerFindings.by_lot`. NaN where an end has no role that was read."""
    means = np.array([_mean(table.of_rows(np.array([k])).places) for k in range(len(table.who))])
    near, far = (np.flatnonzero([g == group for g in table.groups] & ~np.isnan(means)) for group in (NEAR, FAR))
    if not len(near) or not len(far):
        return math.nan
    rng, both = np.random.default_rng(seed), means[np.concatenate([far, near])]
    deals = [rng.permutation(both) for _ in range(DEALS)]
    return float(np.quantile([abs(deal[: len(far)].mean() - deal[len(far) :].mean()) for deal in deals], 0.95))


def drawn(
    table: Table, statistic: Callable[[Table], float], groups: Sequence[str], within: Extent = (-math.inf, math.inf)
) -> Estimate:
    """A figure with the 95% interval for other roles of these groups and other questions.

    An interval for other roles and one for other questions, each by leaving out in turn (`estimate`), are put together:
    their reaches add as squares do. The noise of single readings is in both, so that the whole is a little too wide
    rather than too narrow. The default is nobody's draw: of it there are other questions only. n: roles, or questions
    where no role is drawn. NaN bounds where there are too few of either. within: what value and bounds can be.
    """
    roles = np.array([k for k, group in enumerate(table.groups) if group in groups and group != DEFAULT], dtype=int)
    others = np.setdiff1d(np.arange(len(table.who)), roles)
    questions = table.places.shape[2]

    def without_questions(draw: np.ndarray) -> float:
        return statistic(table.of_questions(draw))

    def without_roles(draw: np.ndarray) -> float:
        return statistic(table.of_rows(np.sort(np.concatenate([roles[draw], others]))))

    intervals = [estimate(_blocks(questions), without_questions)]
    if len(roles):
        intervals.append(estimate(_blocks(len(roles)), without_roles))
    value = statistic(table)
    below = math.sqrt(sum((value - e.low) ** 2 for e in intervals))
    above = math.sqrt(sum((e.high - value) ** 2 for e in intervals))
    value, low, high = np.clip([value, value - below, value + above], *within).tolist()
    return Estimate(value, low, high, len(roles) or questions)


def _blocks(n: int) -> list[int]:
    """Units in fewer blocks than `estimate` would draw a bootstrap of: a bootstrap repeats questions, and the same
    question twice looks like no noise at all to `shares`."""
    return [k % (FEW - 1) for k in range(n)]


def shares(table: Table) -> dict[str, float]:
    """How much of the cells' variance about their mean is who's, how's, and left to both together, with noise taken
    off.

    Each is the sum of squares of the effects over cells. What the same effects vary by from question to question is
    known, and the squares are less by what such a variance leaves in a mean; so a share that is 0 may come out a little
    under 0. Over the questions with which everybody was read in every manner; NaN under two.
    """
    complete = table.places[:, :, ~np.isnan(table.places).any((0, 1))]
    people, manners, questions = complete.shape
    if questions < 2:
        return dict.fromkeys((WHO, HOW, BOTH), math.nan)
    about = complete - complete.mean((0, 1))
    who, how = about.mean(1), about.mean(0)
    sizes = {
        WHO: manners * _squared(who),
        HOW: people * _squared(how),
        BOTH: _squared((about - who[:, None] - how[None]).reshape(-1, questions)),
    }
    total_size = sum(sizes.values())
    return {name: size / total_size if total_size > 0 else math.nan for name, size in sizes.items()}


def _squared(effects: np.ndarray) -> float:
    """The sum of squared effects, whose estimates `[effects, questions]` differ by noise: without the noise's own
    squares."""
    n = effects.shape[1]
    return float((effects.mean(1) ** 2).sum() - effects.var(1, ddof=1).sum() / n)


def _mean(values: np.ndarray) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else math.nan


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values)
