"""What persona-based jailbreaks come to: rates, what capping takes off them, and what goes with a low projection; it asks
nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from personaspace.engines.prompts import Message
from personaspace.experiments.kit.checks import Check
from personaspace.experiments.kit.tasks import ALL, Outcome
from personaspace.experiments.kit.trials import PLAIN, Given
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
            return "nothing to reduce"
        direction = self.reduction.direction() if self.test.p < 0.05 else 0
        return {1: "it holds the model", -1: "it makes things worse", 0: "no effect that can be told from none"}[
            direction
        ]


@dataclass(frozen=True)
class JailbreakFindings:
    """rates: arm → condition → category → how often it goes wrong; effects: arm → condition → what it does; adds: by
    condition, how much oftener it goes wrong with a persona than without; projection: arm → condition → its mean;
    correlation: of going wrong with the projection, plain, with a persona, within rules or categories; parts: how often those
    replies go wrong that lie lowest, …, highest; shown: the condition that is spoken of; tasks: how each does at these."""

    event: CountedEvent
    shown: str
    rates: Mapping[str, Mapping[str, Mapping[str, Estimate]]]
    effects: Mapping[str, Mapping[str, ConditionEffect]]
    adds: Mapping[str, Estimate]
    projection: Mapping[str, Mapping[str, Estimate]]
    correlation: Estimate
    parts: Sequence[Estimate]
    tasks: Mapping[str, Mapping[str, Outcome]]


def find(
    rows: Sequence[Row],
    names: Sequence[str],
    shown: str,
    event: CountedEvent,
    tasks: Mapping[str, Mapping[str, Outcome]],
) -> JailbreakFindings:
    """From a row a reply (`row`), under the conditions of those names."""
    arms = [a for a in (PERSONA, ALONE) if any(r["arm"] == a for r in rows)]
    categories = [ALL, *dict.fromkeys(r["category"] for r in rows)]
    plain = of(rows, PLAIN.name, PERSONA)
    return JailbreakFindings(
        event,
        shown,
        {a: {n: {k: share([r["bad"] for r in of(rows, n, a, k)]) for k in categories} for n in names} for a in arms},
        {a: {n: effect(rows, n, a) for n in names if n != PLAIN.name} for a in arms},
        {n: persona_adds(rows, n) for n in names} if ALONE in arms else {},
        {a: {n: _place(of(rows, n, a)) for n in names} for a in arms},
        goes_with_low(plain),
        by_place(plain),
        tasks,
    )


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
    none = dict.fromkeys(("arm", "group", "system", "score", "bad"))
    return {**none, **same, "user": task["prompt"], "solved": bool(task["value"])}


def of(rows: Sequence[Row], condition: str, arm: str, category: str = ALL) -> list[Row]:
    return [r for r in rows if r["condition"] == condition and r["arm"] == arm and category in (ALL, r["category"])]


def _place(rows: Sequence[Row]) -> Estimate:
    return mean([r["projection"] for r in rows], [r["group"] for r in rows])


def effect(rows: Sequence[Row], condition: str, arm: str = PERSONA) -> ConditionEffect:
    """What a condition does to an arm's prompts, over those that are judged under both; intervals over groups."""
    plain = {r["item"]: r for r in of(rows, PLAIN.name, arm)}
    conditioned = {r["item"]: r for r in of(rows, condition, arm)}
    items = [i for i in plain if plain[i]["bad"] is not None and conditioned[i]["bad"] is not None]
    first, second = (np.array([by_item[i]["bad"] for i in items], dtype=float) for by_item in (plain, conditioned))

    def reduction(draw: np.ndarray) -> float:
        return 1 - float(second[draw].mean() / first[draw].mean()) if first[draw].any() else math.nan

    test = paired([plain[i]["bad"] for i in items], [conditioned[i]["bad"] for i in items])
    return ConditionEffect(estimate([plain[i]["group"] for i in items], reduction, within=(-math.inf, 1)), test)


def persona_adds(rows: Sequence[Row], condition: str) -> Estimate:
    """How much oftener it goes wrong with a persona than without, under a condition; the interval is over groups."""
    judged = [r for r in rows if r["condition"] == condition and r["bad"] is not None]
    bad = np.array([r["bad"] for r in judged], dtype=float)
    with_one = np.array([r["arm"] == PERSONA for r in judged])

    def apart(draw: np.ndarray) -> float:
        a, b = bad[draw][with_one[draw]], bad[draw][~with_one[draw]]
        return float(a.mean() - b.mean()) if len(a) and len(b) else math.nan

    return estimate([r["group"] for r in judged], apart, within=(-1, 1))


def _known(rows: Sequence[Row]) -> list[Row]:
    return [r for r in rows if r["bad"] is not None and not math.isnan(r["projection"])]


def _centred(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Projections and 1 or 0 for going wrong, less their means in the rule (or category), and the groups: some rules are
    broken by nearly every reply, and their replies are alike."""
    known_rows = _known(rows)
    place = np.array([r["projection"] for r in known_rows])
    bad = np.array([r["bad"] for r in known_rows], dtype=float)
    within = np.array([r["group"] if r["part"] == "rules" else r["category"] for r in known_rows])
    for name in set(within):
        members = within == name
        place[members] -= place[members].mean()
        bad[members] -= bad[members].mean()
    return place, bad, [r["group"] for r in known_rows]


def goes_with_low(rows: Sequence[Row]) -> Estimate:
    """The correlation of going wrong with the projection, within rules (or categories): below 0, low replies go wrong."""
    place, bad, groups = _centred(rows)

    def correlation(draw: np.ndarray) -> float:
        if len(draw) < 3 or np.ptp(place[draw]) == 0 or np.ptp(bad[draw]) == 0:
            return math.nan
        return float(np.corrcoef(place[draw], bad[draw])[0, 1])

    return estimate(groups, correlation, within=(-1, 1))


def by_place(rows: Sequence[Row]) -> list[Estimate]:
    """How often the replies go wrong that lie lowest, …, highest within their rule (or category), in equal parts."""
    place, _, _ = _centred(rows)
    bad = [r["bad"] for r in _known(rows)]
    return [share([bad[k] for k in fifth]) for fifth in np.array_split(place.argsort(kind="stable"), PARTS)]
