"""What ways of holding do to conversations, in numbers with intervals over conversations. It asks nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from personaspace.experiments.kit.conditions import PLAIN, compared
from personaspace.experiments.kit.conversations import turns_both_ways
from personaspace.experiments.kit.tasks import ALL, Outcome, Outcomes
from personaspace.holding.controls import BesideControls
from personaspace.stats.intervals import Estimate, estimate, mean

ROLE_TALK, DEFAULT_TALK = "role", "default"
NEVER = PLAIN.name
Row = Mapping[str, Any]


@dataclass(frozen=True)
class HoldOutcome:
    """What a way of holding does.

    drift: of roles' replies, read by the plain model, in the default's standard deviations; by turn, too. taken_back: how much
    less that is than unheld; share: of what it is unheld. touched: the share of the default's tokens that it changes.
    perplexity: the plain model's, as a factor on that of its own replies, in conversations of the default and of roles.
    distinct: see `distinct_pairs`; more_distinct: the difference to unheld. tasks: how it does at small ones. beside: what is
    taken back over the first turns beside random directions.
    """

    drift: Estimate
    by_turn: tuple[Estimate, ...]
    taken_back: Estimate
    share: Estimate
    touched: Estimate
    perplexity: Mapping[str, Estimate]
    distinct: Estimate
    more_distinct: Estimate
    tasks: Outcome
    beside: BesideControls | None = None

    @property
    def changed_nothing(self) -> bool:
        """Whether every reply is what it is unheld, which is no finding about a way that waits for an alert."""
        return self.touched.value == 0 == self.taken_back.low == self.taken_back.high


def findings(
    holds: Sequence[str], rows: Sequence[Row], control_rows: Sequence[Row], solved: Outcomes
) -> dict[str, HoldOutcome]:
    """By condition, unheld first."""
    table = pd.DataFrame([dict(r) for r in rows])
    beside = _beside(holds, table, pd.DataFrame([dict(r) for r in control_rows]))
    return {name: _outcome(table, name, solved[name][ALL], beside.get(name)) for name in dict.fromkeys([NEVER, *holds])}


def _outcome(table: pd.DataFrame, name: str, tasks: Outcome, beside: BesideControls | None) -> HoldOutcome:
    held, unheld = (table[table.condition == n] for n in (name, NEVER))
    in_role, plain_role = held[held.kind == ROLE_TALK], unheld[unheld.kind == ROLE_TALK]
    default = held[held.kind == DEFAULT_TALK]
    by_talk = turns_both_ways(plain_role, in_role).groupby("conversation", sort=False)[["unheld", "less"]].mean()
    less, whole, talk_names = by_talk.less.to_numpy(), by_talk.unheld.to_numpy(), list(by_talk.index)
    distinct, plain_distinct = (
        f.groupby("conversation", sort=False).text.agg(lambda texts: distinct_pairs(list(texts)))
        for f in (held, unheld)
    )
    return HoldOutcome(
        drift=mean(in_role.drift.tolist(), in_role.conversation.tolist()),
        by_turn=tuple(mean(turn.drift.tolist()) for _, turn in in_role.groupby("turn")),
        taken_back=mean(less.tolist()),
        share=estimate(talk_names, lambda rows: _ratio(less[rows].sum(), whole[rows].sum())),
        touched=estimate(
            default.conversation.tolist(),
            lambda rows: _ratio(default.touched.to_numpy()[rows].sum(), default.tokens.to_numpy()[rows].sum()),
            within=(0, 1),
        ),
        perplexity={
            kind: factor(held[held.kind == kind], unheld[unheld.kind == kind]) for kind in (DEFAULT_TALK, ROLE_TALK)
        },
        distinct=mean(distinct.tolist()),
        more_distinct=mean((distinct - plain_distinct).tolist()),
        tasks=tasks,
        beside=beside,
    )


def factor(held: pd.DataFrame, unheld: pd.DataFrame) -> Estimate:
    """How much larger the plain model's perplexity of replies that were held is than of those that were not, over tokens; its
    interval over conversations, which are the same on both sides."""
    conversations = list(dict.fromkeys(unheld.conversation))
    sums = []
    for frame in (held, unheld):
        spoken = frame[frame.tokens > 0]
        nats = (
            (spoken.logprob * spoken.tokens).groupby(spoken.conversation).sum().reindex(conversations, fill_value=0.0)
        )
        tokens = spoken.tokens.groupby(spoken.conversation).sum().reindex(conversations, fill_value=0)
        sums.append((nats.to_numpy(), tokens.to_numpy(dtype=float)))
    (nats, n), (plain_nats, plain_n) = sums

    def statistic(rows: np.ndarray) -> float:
        if not n[rows].sum() or not plain_n[rows].sum():
            return math.nan
        return math.exp(plain_nats[rows].sum() / plain_n[rows].sum() - nats[rows].sum() / n[rows].sum())

    return estimate(conversations, statistic, within=(0, math.inf))


def distinct_pairs(texts: Sequence[str]) -> float:
    """The share of neighbouring pairs of words in a conversation's replies that are different ones (distinct-2).

    >>> distinct_pairs(["a b a b"])
    0.6666666666666666
    """
    pairs = [pair for text in texts for pair in pairwise(text.lower().split())]
    return len(set(pairs)) / len(pairs) if pairs else math.nan


def _beside(holds: Sequence[str], table: pd.DataFrame, controls: pd.DataFrame) -> dict[str, BesideControls]:
    """What is taken back in the roles' conversations over as many turns as the controls have, by hold."""
    if controls.empty:
        return {}
    first = table[(table.turn <= controls.turn.max()) & (table.kind == ROLE_TALK)]
    unheld = first[first.condition == NEVER]
    beside = {}
    for name in holds:
        own = controls[controls.condition.str.startswith(f"{name} ")]
        taken = {str(c): float(turns_both_ways(unheld, f).less.mean()) for c, f in own.groupby("condition", sort=False)}
        if taken:
            held = turns_both_ways(unheld, first[first.condition == name])
            beside[name] = compared(
                name, float(held.less.mean()), {c: v for c, v in taken.items() if not math.isnan(v)}
            )
    return beside


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan
