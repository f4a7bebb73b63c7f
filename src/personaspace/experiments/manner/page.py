"""Who speaks and how as sentences, figures, a chart and tables; it knows nothing of how prompts were made or read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from personaspace.catalog import DEFAULT
from personaspace.experiments.kit.results import Result
from personaspace.experiments.manner import findings as manner
from personaspace.experiments.manner.findings import FAR, GROUPS, MANNERS, NEAR, POINTS, VERSE, MannerFindings, Table
from personaspace.report import page as colours
from personaspace.report import words
from personaspace.report.charts import chart, dots, points
from personaspace.report.page import Chart, Page
from personaspace.space import PersonaSpace
from personaspace.space.readings import PROMPT, REPLY
from personaspace.stats.intervals import Estimate, shares_of

Row = Mapping[str, Any]

SHAPES = ("points", "lines", "prose")
WHEN = {PROMPT: "Before the first word", REPLY: "In replies"}
TITLE = {PROMPT: "Prompts, before the first word", REPLY: "Replies"}
COLOUR = {NEAR: colours.NEAR, FAR: colours.FAR, DEFAULT: colours.SOFT}
CALLED = {NEAR: "near roles", FAR: "far roles", DEFAULT: "the default"}
LANE = {NEAR: -0.22, DEFAULT: 0.0, FAR: 0.22}
"""Where in a manner's row a group's dots are drawn."""
SHOWN = 2
"""Roles of each end whose replies are shown."""

STUDY = "No published figure exists: the study did not cross who speaks with how."
LEAD = (
    "{near} roles of the Assistant's end, {far} of the far end and the default of {model} are asked the same {questions} "
    "questions in {manners} manners: {prompts:,} prompts, read before the first word at layer {layer}{replies}. A place is in "
    "standard deviations of the default (of its prompts as they are; of the space's default replies), and up is the "
    "Assistant. Intervals are 95%, for other roles and other questions. In the space itself, of {roles} roles from the "
    "Assistant's end, the near ones stand at place {near_rank:.0f} in the mean, the far ones at {far_rank:.0f}."
)
CHART = (
    "A dot is a role in a manner, a diamond the mean of an end with its 95% interval. If the axis told who speaks alone, the "
    "rows would be alike; if it told how alone, the colours would lie on one another."
)
CONTRASTS = (
    "In standard deviations of the default, with 95% intervals. The neutral sentence asks for no manner: what it does, any "
    "added sentence does. The default as it is has no system prompt, or what the model's template puts in its place; so its "
    "manners are best set against its neutral sentence. Many contrasts are shown: of those that are nothing, one in twenty "
    "has an interval without 0; the crossed one was chosen beforehand. A role's instruction stays as it is written: what its "
    "own words suggest is counted as who."
)
VARIANCE = (
    "Shares of the variance of cells, everybody in every manner, with the noise of questions taken off. “Both together” is "
    "what a manner does to one and not to another."
)
LOOK = (
    "By the look of the replies alone: numbers or bullets, short lines, or neither. Where points and verse look alike, the "
    "manner was asked for and not kept, and contrasts of replies say what the sentence does, not what the manner does."
)


def page(space: PersonaSpace, tables: Mapping[str, Table], rows: Sequence[Row]) -> Result:
    """The result of the readings' tables, prompts first: what was found, every cell drawn, all contrasts, replies."""
    by_reading = {reading: manner.findings(table) for reading, table in tables.items()}
    each, titles = list(by_reading.values()), [TITLE[reading] for reading in by_reading]
    table, members = tables[PROMPT], {group: table_members(tables[PROMPT], group) for group in GROUPS}
    ranks = {group: mean_rank(space, members[group]) for group in (NEAR, FAR)}
    answered = [r for r in rows if r["reading"] == REPLY]
    lead = LEAD.format(
        near=len(members[NEAR]),
        far=len(members[FAR]),
        model=space.meta["model"]["id"],
        questions=table.places.shape[2],
        manners=len(MANNERS),
        prompts=table.places.size,
        layer=space.layer,
        replies=f", and {len(answered):,} replies" if answered else "",
        roles=len(space.roles),
        near_rank=ranks[NEAR],
        far_rank=ranks[FAR],
    )
    result_page = Page("Does the axis tell who speaks, or only how?", lead)
    for reading, f in by_reading.items():
        noun = words.noun(reading)
        result_page.figure(f"{noun}: far in points − near in verse", f.crossed, "below 0: who")
        dealt = f"ends dealt by lot: within ±{f.by_lot:.2f} in 95 of 100"
        result_page.figure(f"{noun}: far − near, same manner", f.who_overall, dealt)
        result_page.figure(f"{noun}: points − verse, same roles", f.how_overall)
    for reading, f in by_reading.items():
        result_page.section(TITLE[reading], CHART, _chart(tables[reading], f))
    result_page.section("All contrasts", CONTRASTS, head=["", *titles], rows=_contrasts(each))
    shares = [[name, *(f"{f.shares[name]:.0%}" for f in each)] for name in (manner.WHO, manner.HOW, manner.BOTH)]
    result_page.section("Whose is the variance?", VARIANCE, head=["", *titles], rows=shares)
    shapes = {m: shares_of([r["shape"] for r in answered if r["manner"] == m], SHAPES) for m in MANNERS}
    if answered:
        looks = [[m, *(f"{shapes[m][s]:.0%}" for s in SHAPES)] for m in MANNERS]
        result_page.section("Was the manner kept?", LOOK, head=["asked for", *SHAPES], rows=looks)
        first = [r for r in answered if r["question"] == 0]
        text = f"To “{first[0]['user']}”, the place before each."
        result_page.section("A few replies", text, head=["who", *MANNERS], rows=_replies(first))
    figures = {
        # In JSON a pair of manners is one name.
        "readings": {
            reading: {**vars(f), "how": {f"{a} − {b}": estimates for (a, b), estimates in f.how.items()}}
            for reading, f in by_reading.items()
        },
        "cells": {reading: _cell_means(table) for reading, table in tables.items()},
        "mean_rank_in_the_space": ranks,
        "shapes": shapes,
        "empty_replies": sum(math.isnan(r["projection"]) for r in answered),
    }
    headline = " ".join([*(_sentences(reading, f) for reading, f in by_reading.items()), STUDY])
    return Result(result_page, headline, figures, rows)


def table_members(table: Table, group: str) -> list[str]:
    """The names in a group of a table."""
    return [table.who[k] for k in table.members(group).tolist()]


def mean_rank(space: PersonaSpace, names: Sequence[str]) -> float:
    """At which place from the Assistant's end these roles stand in the space itself, in the mean; 1 is the nearest."""
    order = (-(space.role_vectors_at() @ space.axis_at())).argsort().tolist()
    ranks = {space.roles[role_index]: k + 1 for k, role_index in enumerate(order)}
    return float(np.mean([ranks[name] for name in names]))


def verdict(crossed: Estimate) -> str:
    """What the crossed contrast allows to be said."""
    if math.isnan(crossed.low):
        return "whether far roles in points or near roles in verse lie further away cannot be told of so few"
    return {
        -1: "far roles in points still lie further from the Assistant than near roles in verse",
        1: "it turns round: far roles in points lie nearer to the Assistant than near roles in verse",
        0: "whether far roles in points or near roles in verse lie further from the Assistant cannot be told",
    }[crossed.direction()]


def within_manners(who: Mapping[str, Estimate]) -> str:
    """In how many manners the ends are told apart, everybody writing alike."""
    away, towards = (sum(e.direction() == way for e in who.values()) for way in (-1, 1))
    if away == len(who):
        return "in every manner the axis tells who speaks"
    if not away and not towards:
        return "in no manner can it be told that the axis tells who speaks"
    parts = [f"in {away} of {len(who)} manners the axis tells who speaks"] if away else []
    parts += [f"in {towards} of {len(who)} far roles lie nearer to the Assistant"] if towards else []
    return "; ".join([*parts, *(["in the others that cannot be told"] if away + towards < len(who) else [])])


def beside_lot(f: MannerFindings) -> str:
    """Whether the ends lie further apart than the same roles would, dealt to two ends by lot."""
    if math.isnan(f.by_lot):
        return ""
    beyond = "beyond" if abs(f.who_overall.value) > f.by_lot else "not beyond"
    return f", {beyond} the ±{f.by_lot:.2f} within which 95 of 100 deals of the same roles by lot stay"


def _sentences(reading: str, f: MannerFindings) -> str:
    """The plain finding of a reading first, its figures after it."""
    shares = [f"{name} {e:.0%}" for name, e in f.shares.items() if not math.isnan(e.value)]
    of_variance = f" Of the cells' variance: {'; '.join(shares)}." if shares else ""
    return (
        f"{WHEN[reading]}, {within_manners(f.who)}; crossed, {verdict(f.crossed)}: {f.crossed:+.2f}. In one and the same "
        f"manner far roles lie {f.who_overall:+.2f} from near ones{beside_lot(f)}; points lie {f.how_overall:+.2f} from verse, "
        f"said by the same roles.{of_variance}"
    )


def _cell_means(table: Table) -> dict[str, dict[str, float]]:
    return {
        who: {m: table.of_rows(np.array([k])).mean(table.groups[k], m) for m in MANNERS}
        for k, who in enumerate(table.who)
    }


def _chart(table: Table, f: MannerFindings) -> Chart:
    """Every cell as a dot, the groups' means with their intervals over them."""
    means = _cell_means(table)
    heights = {m: len(MANNERS) - 1 - k for k, m in enumerate(MANNERS)}
    data = []
    for group in GROUPS:
        if group != DEFAULT:
            cells = {(who, m): means[who][m] for who in table_members(table, group) for m in MANNERS}
            hover = [f"{who}, {m}: {x:+.2f}" for (who, m), x in cells.items()]
            lanes = [heights[m] - LANE[group] for _, m in cells]
            each = points(f"{CALLED[group]}, each", list(cells.values()), lanes, hover, COLOUR[group], size=7)
            data.append({**each, "opacity": 0.55, "showlegend": False})
        of_group = f.places[group]
        lanes = [heights[m] - LANE[group] for m in MANNERS]
        mean = dots(CALLED[group], lanes, [of_group[m] for m in MANNERS], COLOUR[group], sideways=True)
        labels = [f"{CALLED[group]}, {m}: {of_group[m]:+.2f}" for m in MANNERS]
        data.append({**mean, "text": labels, "marker": {"color": COLOUR[group], "size": 12, "symbol": "diamond"}})
    x = "place on the axis, in the default's standard deviations (right is the Assistant)"
    y = {"tickvals": list(heights.values()), "ticktext": list(heights), "range": [-0.6, len(MANNERS) - 0.4]}
    return chart(data, x, y, 460, hovermode="closest")


def _contrasts(each: Sequence[MannerFindings]) -> list[list[str]]:
    """A row a contrast, a cell a reading."""
    contrasts = {f"far − near, {m}": [f.who[m] for f in each] for m in MANNERS}
    contrasts["far − near, the mean of the manners"] = [f.who_overall for f in each]
    for a, b in manner.CONTRASTS:
        contrasts |= {f"{a} − {b}, {CALLED[g]}": [f.how[a, b][g] for f in each] for g in GROUPS}
    contrasts[f"{POINTS} − {VERSE}, both ends' roles"] = [f.how_overall for f in each]
    contrasts[f"crossed: far {POINTS} − near {VERSE}"] = [f.crossed for f in each]
    return [[name, *(f"{e:+.2f}" for e in estimates)] for name, estimates in contrasts.items()]


def _replies(first: Sequence[Row]) -> list[list[str]]:
    """Some of everybody's replies to the first question, a row each, a cell a manner."""
    people = {group: list(dict.fromkeys(r["who"] for r in first if r["group"] == group))[:SHOWN] for group in GROUPS}
    cells = {
        (r["who"], r["manner"]): "nothing was said"
        if math.isnan(r["place"])
        else f"{r['place']:+.1f} · {r['text'].strip()}"
        for r in first
    }
    shown = [who for group in GROUPS for who in people[group]]
    return [[who.replace("_", " "), *(cells[who, m] for m in MANNERS)] for who in shown]
