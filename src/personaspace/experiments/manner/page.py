"""Who speaks and how as sentences, figures, a chart and tables; it knows nothing of how prompts were made or read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from personaspace.catalog import DEFAULT
from personaspace.experiments.kit.results import Result
from personaspace.experiments.manner.findings import (
    BOTH,
    CONTRASTS,
    FAR,
    GROUPS,
    HOW,
    MANNERS,
    NEAR,
    POINTS,
    VERSE,
    WHO,
    MannerFindings,
    Table,
    findings,
)
from personaspace.report import page as colours
from personaspace.report import words
from personaspace.report.charts import axis, dots
from personaspace.report.page import Block, Figure
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


def page(space: PersonaSpace, tables: Mapping[str, Table], rows: Sequence[Row]) -> Result:
    """The result of the readings' tables, prompts first: what was found, every cell drawn, all contrasts, replies."""
    by_reading = {reading: findings(table) for reading, table in tables.items()}
    ranks = {group: mean_rank(space, table_members(tables[PROMPT], group)) for group in (NEAR, FAR)}
    headline = " ".join([*(_sentences(reading, f) for reading, f in by_reading.items()), STUDY])
    blocks = [_chart(reading, tables[reading], f) for reading, f in by_reading.items()]
    blocks += [_contrasts(by_reading), _shares(by_reading)]
    answered = [r for r in rows if r["reading"] == REPLY]
    if answered:
        blocks += [_shapes(answered), _replies(answered)]
    figures = {
        "readings": {reading: _plain(f) for reading, f in by_reading.items()},
        "cells": {reading: _cell_means(table) for reading, table in tables.items()},
        "mean_rank_in_the_space": ranks,
        "shapes": {m: shares_of([r["shape"] for r in answered if r["manner"] == m], SHAPES) for m in MANNERS},
        "empty_replies": sum(math.isnan(r["projection"]) for r in answered),
    }
    lead = _lead(space, tables, ranks, len(answered))
    return Result(
        "Does the axis tell who speaks, or only how?", lead, headline, figures, rows, blocks, _key(by_reading)
    )


def table_members(table: Table, group: str) -> list[str]:
    """The names in a group of a table."""
    return [table.who[k] for k in table.members(group).tolist()]


def mean_rank(space: PersonaSpace, names: Sequence[str]) -> float:
    """At which place from the Assistant's end these roles stand in the space itself, in the mean; 1 is the nearest."""
    order = (-space.project(space.role_vectors_at())).argsort().tolist()
    ranks = {space.roles[role_index]: k + 1 for k, role_index in enumerate(order)}
    return float(np.mean([ranks[name] for name in names]))


def verdict(crossed: Estimate) -> str:
    """What the crossed contrast allows to be said."""
    if crossed.direction() < 0:
        return "far roles in points still lie further from the Assistant than near roles in verse"
    if crossed.direction() > 0:
        return "it turns round: far roles in points lie nearer to the Assistant than near roles in verse"
    if math.isnan(crossed.low):
        return "whether far roles in points or near roles in verse lie further away cannot be told of so few"
    return "whether far roles in points or near roles in verse lie further from the Assistant cannot be told"


def within_manners(who: Mapping[str, Estimate]) -> str:
    """In how many manners the ends are told apart, everybody writing alike."""
    away, towards = ([m for m, e in who.items() if e.direction() == way] for way in (-1, 1))
    if len(away) == len(who):
        return "in every manner the axis tells who speaks"
    if not away and not towards:
        return "in no manner can it be told that the axis tells who speaks"
    parts = [f"in {len(away)} of {len(who)} manners the axis tells who speaks"] if away else []
    parts += [f"in {len(towards)} of {len(who)} far roles lie nearer to the Assistant"] if towards else []
    return (
        f"{'; '.join(parts)}; in the others that cannot be told" if len(away + towards) < len(who) else "; ".join(parts)
    )


def _sentences(reading: str, f: MannerFindings) -> str:
    """The plain finding of a reading first, its figures after it."""
    shares = [f"{name} {_share(e)}" for name, e in f.shares.items() if not math.isnan(e.value)]
    of_variance = f" Of the cells' variance: {'; '.join(shares)}." if shares else ""
    return (
        f"{WHEN[reading]}, {within_manners(f.who)}; crossed, {verdict(f.crossed)}: {f.crossed:+.2f}. "
        f"In one and the same manner far roles lie {f.who_overall:+.2f} from near ones; points lie "
        f"{f.how_overall:+.2f} from verse, said by the same roles.{of_variance}"
    )


def _lead(space: PersonaSpace, tables: Mapping[str, Table], ranks: Mapping[str, float], replies: int) -> str:
    table = tables[PROMPT]
    near, far = (len(table.members(group)) for group in (NEAR, FAR))
    both = f", and {replies:,} replies" if replies else ""
    return (
        f"{near} roles of the Assistant's end, {far} of the far end and the default of {space.meta['model']['id']} are "
        f"asked the same {table.places.shape[2]} questions in {len(MANNERS)} manners: {table.places.size:,} prompts, "
        f"read before the first word at layer {space.layer}{both}. A place is in standard deviations of the default "
        "(of its prompts as they are; of the space's default replies), and up is the Assistant. Intervals are 95%, for "
        f"other roles and other questions. In the space itself, of {len(space.roles)} roles from the Assistant's end, "
        f"the near ones stand at place {ranks[NEAR]:.0f} in the mean, the far ones at {ranks[FAR]:.0f}."
    )


def _key(by_reading: Mapping[str, MannerFindings]) -> list[Figure]:
    key = []
    for reading, f in by_reading.items():
        where = words.noun(reading)
        key.append(
            Figure(
                f"{where}: far in points − near in verse",
                f"{f.crossed.value:+.2f}",
                f"{f.crossed.span()}; below 0: who",
            )
        )
        key.append(Figure(f"{where}: far − near, same manner", f"{f.who_overall.value:+.2f}", f.who_overall.span()))
        key.append(Figure(f"{where}: points − verse, same roles", f"{f.how_overall.value:+.2f}", f.how_overall.span()))
    return key


def _plain(f: MannerFindings) -> dict[str, Any]:
    """MannerFindings as JSON has them: a pair of manners is one name."""
    return {**vars(f), "how": {f"{a} − {b}": estimates for (a, b), estimates in f.how.items()}}


def _cell_means(table: Table) -> dict[str, dict[str, float]]:
    return {
        who: {m: table.of_rows(np.array([k])).mean(table.groups[k], m) for m in MANNERS}
        for k, who in enumerate(table.who)
    }


def _chart(reading: str, table: Table, f: MannerFindings) -> Block:
    """Every cell as a dot, the groups' means with their intervals over them."""
    means = _cell_means(table)
    rows = {manner: len(MANNERS) - 1 - k for k, manner in enumerate(MANNERS)}
    data = []
    for group in GROUPS:
        heights = [rows[m] - LANE[group] for m in MANNERS]
        if group != DEFAULT:
            dotted = [(who, m) for who in table_members(table, group) for m in MANNERS]
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": f"{CALLED[group]}, each",
                    "x": [means[who][m] for who, m in dotted],
                    "y": [rows[m] - LANE[group] for _, m in dotted],
                    "marker": {"color": COLOUR[group], "size": 7, "opacity": 0.45},
                    "text": [f"{who}, {m}: {means[who][m]:+.2f}" for who, m in dotted],
                    "hovertemplate": "%{text}<extra></extra>",
                    "showlegend": False,
                }
            )
        mean = dots(CALLED[group], heights, [f.places[group][m] for m in MANNERS], COLOUR[group], sideways=True)
        labels = [f"{CALLED[group]}, {m}: {f.places[group][m]:+.2f}" for m in MANNERS]
        data.append({**mean, "text": labels, "marker": {"color": COLOUR[group], "size": 12, "symbol": "diamond"}})
    layout = {
        "xaxis": axis("place on the axis, in the default's standard deviations (right is the Assistant)"),
        "yaxis": {"tickvals": list(rows.values()), "ticktext": list(rows), "range": [-0.6, len(MANNERS) - 0.4]},
        "hovermode": "closest",
    }
    text = (
        "A dot is a role in a manner, a diamond the mean of an end with its 95% interval. If the axis told who speaks "
        "alone, the rows would be alike; if it told how alone, the colours would lie on one another."
    )
    return Block(TITLE[reading], text, {"data": data, "layout": layout}, 460)


def _contrasts(by_reading: Mapping[str, MannerFindings]) -> Block:
    def line(name: str, of: Sequence[Estimate]) -> list[str]:
        return [name, *(f"{e:+.2f}" for e in of)]

    each = list(by_reading.values())
    rows = [line(f"far − near, {m}", [f.who[m] for f in each]) for m in MANNERS]
    rows.append(line("far − near, the mean of the manners", [f.who_overall for f in each]))
    for pair in CONTRASTS:
        rows += [line(f"{pair[0]} − {pair[1]}, {CALLED[g]}", [f.how[pair][g] for f in each]) for g in GROUPS]
    rows.append(line(f"{POINTS} − {VERSE}, both ends' roles", [f.how_overall for f in each]))
    rows.append(line(f"crossed: far {POINTS} − near {VERSE}", [f.crossed for f in each]))
    text = (
        "In standard deviations of the default, with 95% intervals. The neutral sentence asks for no manner: what it "
        "does, any added sentence does. The default as it is has no system prompt, or what the model's template puts "
        "in its place; so its manners are best set against its neutral sentence. Many contrasts are shown: of those "
        "that are nothing, one in twenty has an interval without 0; the crossed one was chosen beforehand. A role's "
        "instruction stays as it is written: what its own words suggest is counted as who."
    )
    return Block("All contrasts", text, head=["", *(TITLE[r] for r in by_reading)], rows=rows)


def _shares(by_reading: Mapping[str, MannerFindings]) -> Block:
    rows = [[name, *(_share(f.shares[name]) for f in by_reading.values())] for name in (WHO, HOW, BOTH)]
    text = (
        "Shares of the variance of cells, everybody in every manner, with the noise of questions taken off. “Both "
        "together” is what a manner does to one and not to another."
    )
    return Block("Whose is the variance?", text, head=["", *(TITLE[r] for r in by_reading)], rows=rows)


def _share(e: Estimate) -> str:
    return f"{e:.0%}"


def _shapes(rows: Sequence[Row]) -> Block:
    """Whether the manner was kept, by the look of the replies."""
    by_manner = {m: shares_of([r["shape"] for r in rows if r["manner"] == m], SHAPES) for m in MANNERS}
    table = [[m, *(f"{by_manner[m][s]:.0%}" for s in SHAPES)] for m in MANNERS]
    text = (
        "By the look of the replies alone: numbers or bullets, short lines, or neither. Where points and verse look "
        "alike, the manner was asked for and not kept, and contrasts of replies say what the sentence does, not what "
        "the manner does."
    )
    return Block("Was the manner kept?", text, head=["asked for", *SHAPES], rows=table)


def _replies(rows: Sequence[Row]) -> Block:
    first = [r for r in rows if r["question"] == 0]
    people = {group: list(dict.fromkeys(r["who"] for r in first if r["group"] == group)) for group in GROUPS}
    shown = [who for group in GROUPS for who in people[group][:SHOWN]]
    reply_of = {(r["who"], r["manner"]): r for r in first}
    table = [[who.replace("_", " "), *(_reply(reply_of[who, m]) for m in MANNERS)] for who in shown]
    text = f"To “{first[0]['user']}”, the place before each."
    return Block("A few replies", text, head=["who", *MANNERS], rows=table)


def _reply(row: Row) -> str:
    return "nothing was said" if math.isnan(row["place"]) else f"{row['place']:+.1f} · {row['text'].strip()}"
