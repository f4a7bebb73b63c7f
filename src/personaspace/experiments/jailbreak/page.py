"""The page of the experiment on jailbreaks: a headline, key figures, figures and tables; it asks and computes nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle
from typing import Any

from personaspace.experiments.jailbreak.findings import ALONE, PERSONA, JailbreakFindings, Row
from personaspace.experiments.kit.tasks import ALL, HEAD, drawn, side_by_side, table
from personaspace.experiments.kit.trials import PLAIN
from personaspace.report.charts import COLOURS, axis, dots
from personaspace.report.page import Block, Figure
from personaspace.stats.intervals import NO_INTERVAL, Estimate

QUARTERS = ("lowest quarter", "second", "third", "highest quarter")


def headline(f: JailbreakFindings) -> str:
    """What was found, beside what the study found."""
    plain = f.rates[PERSONA][PLAIN.name][ALL]
    if not plain.n:
        return "No reply was judged, so that nothing is said of them but where they lie on the axis."
    sentence = f"Plain, {f.event.clause} in {plain:.0%} of {plain.n} replies"
    if f.adds:
        sentence += f"; without one, in {f.rates[ALONE][PLAIN.name][ALL]:.0%}. {_persona(f.adds[PLAIN.name])}"
    sentence += ". "
    if e := f.effects[PERSONA].get(f.shown):
        sentence += f"Under “{f.shown}” it is {f.rates[PERSONA][f.shown][ALL]:.0%}"
        fewer = "" if math.isnan(e.reduction.value) else f"{_fewer(e.reduction)}, p over prompts {e.test.p:.2f}, "
        sentence += f": {fewer}{e.verdict()}. "
        if (o := f.tasks[f.shown][ALL]).change:
            sentence += f"Small tasks solved: {o.moved()}, of {o.value.n}. "
    sentence += "The study: 65.3–88.5% of the replies are harmful without steering, and capping takes off about 60%, "
    sentence += "at no loss."
    return f"{sentence} {f.event.caveat}".strip()


def _persona(added: Estimate) -> str:
    sentence = f"The persona's effect is {added.points()} points"
    return (
        sentence
        + {
            1: "",
            -1: ", which is less, not more: there is nothing of its own for capping to take off",
            0: ", not to be told from none: there may be nothing of its own for capping to take off",
        }[added.direction()]
    )


def _fewer(e: Estimate) -> str:
    """A relative reduction in words."""
    more = e.value < 0
    value, low, high = (round(100 * abs(e.value)), *((-e.high, -e.low) if more else (e.low, e.high)))
    inside = NO_INTERVAL if math.isnan(low) else f"{100 * low:.0f} to {100 * high:.0f}"
    return f"{value}% {'more' if more else 'fewer'} ({inside})".replace("-", "−")


def _reduction(e: Estimate) -> str:
    if math.isnan(e.value):
        return "–"
    inside = NO_INTERVAL if math.isnan(e.low) else f"{100 * e.low:.0f} to {100 * e.high:.0f}"
    return f"{100 * e.value:.0f}% ({inside})".replace("-", "−")


def key_figures(f: JailbreakFindings) -> list[Figure]:
    """The few that stand large."""
    plain = f.rates[PERSONA][PLAIN.name][ALL]
    if not plain.n:
        return [Figure("replies", f"{plain.missing:,}", "not judged")]
    published = f"published{', harmful replies' if f.event.caveat else ''}: 65.3–88.5%"
    key = [Figure(f"{f.event.name}, plain", f"{100 * plain.value:.0f}%", published)]
    if f.adds:
        beside = f"plain; “{f.shown}”: {f.adds[f.shown].points()}"
        key.append(_split("the persona's effect, points", f.adds[PLAIN.name].points(), beside))
    if e := f.effects[PERSONA].get(f.shown):
        key.append(_split(f"taken off by “{f.shown}”", _reduction(e.reduction), "published: about 60%"))
        if (o := f.tasks[f.shown][ALL]).change:
            key.append(_split("tasks solved, points", o.change.points(), "published: no loss"))
    return key


def _split(name: str, figure_text: str, note: str) -> Figure:
    """A figure whose interval stands in its note."""
    value, _, interval = figure_text.partition(" ")
    return Figure(name, value, "; ".join(t for t in (f"95%: {interval.strip('()')}" if interval else "", note) if t))


def blocks(rows: Sequence[Row], f: JailbreakFindings) -> list[Block]:
    """Rates, what holding takes off, projections, tasks, and for rules some replies side by side."""
    drawing, height = drawn(f.tasks)
    text = "The small tasks of the capability experiment, under the same conditions."
    page_blocks = [
        *_rates(f),
        *_taken_off(f),
        *_places(f),
        Block("What it costs", text, drawing, height, HEAD, table(f.tasks)),
    ]
    if f.event.standin and f.shown != PLAIN.name and (pairs := side_by_side(_compared(rows), f.shown)):
        text = f"Some of the prompts {PERSONA} at which only one of the two keeps the rule (✓)."
        page_blocks.append(
            Block(f"Where plain and “{f.shown}” differ", text, head=["prompt", PLAIN.name, f.shown], rows=pairs)
        )
    return page_blocks


def _rates(f: JailbreakFindings) -> list[Block]:
    if not f.rates[PERSONA][PLAIN.name][ALL].n:
        return []
    series = [(arm, name) for arm in f.rates for name in f.rates[arm]]
    labels = {(arm, name): f"{name}, {arm}" if len(f.rates) > 1 else name for arm, name in series}
    colours = dict(zip(f.rates[PERSONA], cycle(COLOURS), strict=False))
    categories = list(f.rates[PERSONA][PLAIN.name])
    data = []
    for arm, name in series:
        estimates = [f.rates[arm][name][k] for k in categories]
        trace = dots(labels[arm, name], categories, estimates, colours[name], percent=True, sideways=True)
        marker = {
            **trace["marker"],
            "symbol": "circle" if arm == PERSONA else "circle-open",
            "line": {"width": 2, "color": colours[name]},
        }
        data.append({**trace, "marker": marker, "orientation": "h"})
    layout = {
        "scattermode": "group",
        "scattergap": 0.4,
        "xaxis": axis(f"share of {f.event.name}", tickformat=".0%", range=[-0.02, 1.02]),
        "yaxis": axis("", type="category", autorange="reversed"),
    }
    each = 20 if len(categories) < 8 else 12
    text = f"{f.event.told} Shares with 95% intervals (Wilson)."
    cells = [[k, *(f"{f.rates[arm][name][k]:.0%}" for arm, name in series)] for k in categories]
    drawing = {"data": data, "layout": layout}
    height = 130 + each * len(categories) * len(series)
    return [Block(f.event.name.capitalize(), text, drawing, height, ["", *labels.values()], cells)]


def _taken_off(f: JailbreakFindings) -> list[Block]:
    rows = []
    for arm, by_condition in f.effects.items():
        for name, e in by_condition.items():
            test = [str(e.test.only_first), str(e.test.only_second), f"{e.test.p:.2f}"]
            rows.append([name, arm, _reduction(e.reduction), *test])
    units = "rules" if f.event.standin else "prompts"
    text = (
        f"Against the plain model: the relative reduction with an interval over {units}, how many prompts go wrong under plain "
        "alone and under this condition alone, and McNemar's exact p over prompts, as if each stood for itself."
    )
    head = ["condition", "prompts", "relative reduction", "plain only", "this only", "p"]
    judged = f.rates[PERSONA][PLAIN.name][ALL].n
    page_blocks = [Block("What holding takes off", text, head=head, rows=rows)] if rows and judged else []
    if f.adds:
        text = "How much oftener a rule is broken with a persona than without, in points; the interval is over rules."
        persona_rows = [[name, added.points()] for name, added in f.adds.items()]
        page_blocks.append(Block("What the persona does", text, head=["condition", "points"], rows=persona_rows))
    return page_blocks


def _places(f: JailbreakFindings) -> list[Block]:
    data = [
        dots(arm, list(by), list(by.values()), colour)
        for (arm, by), colour in zip(f.projection.items(), cycle(COLOURS), strict=False)
    ]
    layout = {
        "xaxis": axis("", type="category"),
        "yaxis": axis("mean projection"),
        "scattermode": "group",
        "scattergap": 0.8,
    }
    text = "Projection of the replies, what is done to the model included; up is the Assistant. Intervals over prompts."
    page_blocks = [Block("Where the replies lie", text, {"data": data, "layout": layout}, 360)]
    if f.correlation.n:
        c, within = f.correlation, "rules" if f.event.standin else "categories"
        which = "lower" if c.value < 0 else "higher"
        verdict = f"{which} replies go wrong more often" if c.direction() else "no relation that can be told from none"
        text = (
            f"Plain, {PERSONA}, within {within}. Correlation of going wrong with the projection: {c:+.2f}, {verdict}."
        )
        layout = {
            "xaxis": axis("projection", type="category"),
            "yaxis": axis(f.event.name, tickformat=".0%", range=[-0.02, 1.02]),
        }
        drawing = {"data": [dots("", QUARTERS, f.parts, COLOURS[0], percent=True)], "layout": layout}
        page_blocks.append(Block("Does it go wrong where the projection is low?", text, drawing, 340))
    return page_blocks


def _compared(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The replies with a persona, as `side_by_side` takes them."""
    return [
        {
            **r,
            "prompt": "{}, {}: {}".format(*r["item"].split("/")[:2], r["user"].splitlines()[-1]),
            "value": not r["bad"],
        }
        for r in rows
        if r["arm"] == PERSONA
    ]
