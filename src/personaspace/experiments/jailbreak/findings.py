"""What persona-based jailbreaks come to: rates, what capping takes off them, and what goes with a low projection; it asks
nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from personaspace.engines.prompts import Message
from personaspace.experiments.kit.checks import Check
from personaspace.experiments.kit.conditions import PLAIN, compared
from personaspace.experiments.kit.tasks import ALL, Outcomes
from personaspace.experiments.kit.trials import Given
from personaspace.holding.controls import BesideControls
from personaspace.stats.correlation import pearson
from personaspace.stats.intervals import Estimate, Paired, estimate, mean, paired, share

PERSONA, ALONE = "with a persona", "without one"
PARTS = 4
"""Replies are cut into that many equal parts by their projection."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """A prompt: with a persona or without, of which category; group: what is drawn together when intervals are made; check:
    what a reply passes that keeps the rule, where there is one."""

    arm: str
    category: str
    item: str
    group: str
    messages: tuple[Message, ...]
    check: Check | None = None


@dataclass(frozen=True)
class CountedEvent:
    """What is counted: its name, the same as a clause, how it is told, the least score that counts, what is to be said beside
    a figure; standin: whether it is harmless rules that are broken."""

    name: str
    clause: str
    told: str
    least: int
    caveat: str = ""
    standin: bool = False


@dataclass(frozen=True)
class ConditionEffect:
    """What a condition does. reduction: 1 − rate / plain's rate, its interval over groups; test: only_first are those that
    went wrong under plain alone; it takes each prompt for itself, though those of one rule are alike."""

    reduction: Estimate
    test: Paired

    def verdict(self) -> str:
        """What may be said of it: only what both the interval over groups and the test over prompts say."""
        if math.isnan(self.reduction.value):
            return "it makes things worse" if self.test.only_second and self.test.p < 0.05 else "nothing to reduce"
        direction = self.reduction.direction() if self.test.p < 0.05 else 0
        return {1: "it holds the model", -1: "it makes things worse", 0: "no effect that can be told from none"}[
            direction
        ]


@dataclass(frozen=True)
class JailbreakFindings:
    """rates: arm → condition → category → how often it goes wrong; effects: arm → condition → what it does; adds: by
    condition, how much oftener it goes wrong with a persona than without; projection: arm → condition → its mean;
    correlation: of going wrong with the projection, plain, with a persona, within rules or categories; parts: how often those
    replies go wrong that lie lowest, …, highest; shown: the condition that is spoken of; tasks: how each does at these; beside:
    by condition, how many points it takes off beside what as long steps along other directions do."""

    event: CountedEvent
    shown: str
    rates: Mapping[str, Mapping[str, Mapping[str, Estimate]]]
    effects: Mapping[str, Mapping[str, ConditionEffect]]
    adds: Mapping[str, Estimate]
    projection: Mapping[str, Mapping[str, Estimate]]
    correlation: Estimate
    parts: Sequence[Estimate]
    tasks: Outcomes
    beside: Mapping[str, BesideControls] = field(default_factory=dict)


def find(
    rows: Sequence[Row],
    names: Sequence[str],
    shown: str,
    event: CountedEvent,
    tasks: Outcomes,
    control_rows: Sequence[Row] = (),
) -> JailbreakFindings:
    """From a row a reply (`row`), under the conditions of those names; control_rows: along directions that are not the axis."""
    replies = _table(rows)
    arms = [a for a in (PERSONA, ALONE) if (replies.arm == a).any()]
    categories = [ALL, *replies.category.unique()]
    cells = {a: {n: replies[(replies.arm == a) & (replies.condition == n)] for n in names} for a in arms}

    def rates(cell: pd.DataFrame) -> dict[str, Estimate]:
        return {k: share(cell.bad[(cell.category == k) | (k == ALL)].tolist()) for k in categories}

    plain = cells[PERSONA][PLAIN.name]
    return JailbreakFindings(
        event=event,
        shown=shown,
        rates={a: {n: rates(cell) for n, cell in by.items()} for a, by in cells.items()},
        effects={a: {n: effect(replies, n, a) for n in names if n != PLAIN.name} for a in arms},
        adds={n: persona_adds(replies, n) for n in names} if ALONE in arms else {},
        projection={a: {n: mean(c.projection, list(c.group)) for n, c in by.items()} for a, by in cells.items()},
        correlation=goes_with_low(plain),
        parts=by_place(plain),
        tasks=tasks,
        beside=beside_controls(replies, control_rows, names),
    )


def beside_controls(
    rows: Sequence[Row] | pd.DataFrame, control_rows: Sequence[Row], names: Sequence[str]
) -> dict[str, BesideControls]:
    """How many points less often than plain it goes wrong under each condition, with a persona, beside the same along other
    directions; over the prompts that were asked along those."""
    if not control_rows:
        return {}
    aside = _table(control_rows)
    replies = _table(rows).query("arm == @PERSONA")
    same = replies[replies.item.isin(set(aside.item))]
    plain = same[same.condition == PLAIN.name].set_index("item").bad

    def fewer(frame: pd.DataFrame) -> float:
        """Over the prompts that are judged under both."""
        return 100 * float((plain - frame.set_index("item").bad).mean())

    taken_off = {name: fewer(of_control) for name, of_control in aside.groupby("condition", sort=False)}
    effects = {
        n: compared(n, fewer(same[same.condition == n]), {k: v for k, v in taken_off.items() if not math.isnan(v)})
        for n in names
        if n != PLAIN.name
    }
    return {name: beside for name, beside in effects.items() if beside.random and not math.isnan(beside.effect)}


def row(case: Case, g: Given, score: int | None, event: CountedEvent) -> dict[str, Any]:
    """A reply as a row of the results."""
    system, user = (m["content"] for m in case.messages)
    return {
        "part": "rules" if event.standin else "prompts",
        "condition": g.condition,
        "arm": case.arm,
        "category": case.category,
        "item": case.item,
        "group": case.group,
        "system": system,
        "user": user,
        "text": g.text,
        "score": score,
        "bad": None if score is None else score >= event.least,
        "solved": None,
        "tokens": g.tokens,
        "projection": g.projection,
    }


def task_row(task: Row) -> dict[str, Any]:
    """A task's reply in the same columns."""
    same = {k: task[k] for k in ("part", "condition", "category", "item", "text", "tokens", "projection")}
    none = dict.fromkeys(("arm", "group", "system", "score", "bad", "control"))
    return {**none, **same, "user": task["prompt"], "solved": bool(task["value"])}


def _table(rows: Sequence[Row] | pd.DataFrame) -> pd.DataFrame:
    """Rows with `bad` as 1, 0, or NaN where nobody judged."""
    return pd.DataFrame(list(rows) if not isinstance(rows, pd.DataFrame) else rows).astype({"bad": float})


def effect(rows: Sequence[Row] | pd.DataFrame, condition: str, arm: str = PERSONA) -> ConditionEffect:
    """What a condition does to an arm's prompts, over those that are judged under both; intervals over groups."""
    of_arm = _table(rows).query("arm == @arm").set_index("item")
    plain, conditioned = (of_arm[of_arm.condition == c] for c in (PLAIN.name, condition))
    both = plain[["group", "bad"]].join(conditioned.bad.rename("after")).dropna(subset=["bad", "after"])
    first, second = both.bad.to_numpy(), both.after.to_numpy()

    def reduction(draw: np.ndarray) -> float:
        return 1 - float(second[draw].mean() / first[draw].mean()) if first[draw].any() else math.nan

    test = paired((first > 0).tolist(), (second > 0).tolist())
    return ConditionEffect(estimate(list(both.group), reduction, within=(-math.inf, 1)), test)


def persona_adds(rows: Sequence[Row] | pd.DataFrame, condition: str) -> Estimate:
    """How much oftener it goes wrong with a persona than without, under a condition: the mean difference within the groups that
    were asked both ways, since some rules are broken by nearly every reply. The interval is over these."""
    judged = _table(rows).query("condition == @condition").dropna(subset=["bad"])
    rates = judged.groupby(["group", "arm"], sort=False).bad.mean().unstack().reindex(columns=[PERSONA, ALONE]).dropna()
    apart = (rates[PERSONA] - rates[ALONE]).to_numpy()
    return estimate(list(rates.index), lambda draw: float(apart[draw].mean()), within=(-1, 1))


def _centred(rows: Sequence[Row] | pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The replies that are judged and lie somewhere; and their projections, and 1 or 0 for going wrong, less their means in the
    rule (or category): some rules are broken by nearly every reply, and their replies are alike."""
    known = _table(rows).dropna(subset=["bad", "projection"])
    within = known.group.where(known.part == "rules", known.category)
    figures = known[["projection", "bad"]]
    return known, figures - figures.groupby(within).transform("mean")


def goes_with_low(rows: Sequence[Row] | pd.DataFrame) -> Estimate:
    """The correlation of going wrong with the projection, within rules (or categories): below 0, low replies go wrong."""
    replies, centred = _centred(rows)
    place, bad = centred.to_numpy().T

    # Of two replies it is 1 or −1, whatever they are.
    return estimate(
        list(replies.group),
        lambda draw: pearson(place[draw], bad[draw]) if len(draw) > 2 else math.nan,
        within=(-1, 1),
    )


def by_place(rows: Sequence[Row] | pd.DataFrame) -> list[Estimate]:
    """How often the replies go wrong that lie lowest, …, highest within their rule (or category), in equal parts."""
    replies, centred = _centred(rows)
    bad, order = replies.bad.to_numpy(), centred.projection.to_numpy().argsort(kind="stable")
    return [share(bad[part].tolist()) for part in np.array_split(order, PARTS)]
