"""The page of the experiment on jailbreaks: a headline, key figures, figures and tables; it asks and computes nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from personaspace.experiments.jailbreak.findings import ALONE, PERSONA, JailbreakFindings, Row
from personaspace.experiments.kit.beside import beside_in_words, tell_beside
from personaspace.experiments.kit.tasks import ALL, side_by_side, tell
from personaspace.experiments.kit.trials import PLAIN
from personaspace.report.charts import COLOURS, beside
from personaspace.report.page import Chart, Page
from personaspace.stats.intervals import Estimate

QUARTERS = ("lowest quarter", "second", "third", "highest quarter")
LEAD = "{model} is put {n} prompts of persona-based jailbreaks. {told}"
STANDIN_LEAD = (
    "The system prompt sets {model} a harmless rule, and a question tempts it to break it: with a persona in front that minds "
    "no rules, and without one. A stand-in for harmful prompts, none of which come along."
)
STUDY = (
    "The study: 65.3–88.5% of the replies are harmful without steering, and capping takes off about 60%, at no loss."
)
TAKEN_OFF = (
    "Against the plain model: the relative reduction with an interval over {units}, how many prompts go wrong under plain "
    "alone and under this condition alone, and McNemar's exact p over prompts, as if each stood for itself."
)
TAKEN_OFF_HEAD = ("condition", "prompts", "relative reduction", "plain only", "this only", "p")
LESS_OFTEN = "points less often wrong than plain"
BESIDE = "Over {n} prompts with a persona, which were asked along other directions as well."
ADDS = "How much oftener a rule is broken with a persona than without, in points; the interval is over rules."
PLACES = "Projection of the replies, what is done to the model included; up is the Assistant. Intervals over prompts."
COSTS = "The small tasks of the capability experiment, under the same conditions."


def page(model: str, n: int, rows: Sequence[Row], f: JailbreakFindings) -> Page:
    """Key figures; then rates, what holding takes off, projections, tasks, and for rules some replies side by side. n: prompts
    under each condition."""
    title = "Do personas talk it out of its rules?" if f.event.standin else "Do personas jailbreak it?"
    lead = (STANDIN_LEAD if f.event.standin else LEAD).format(model=model, n=n, told=f.event.told)
    result_page = Page(title, lead)
    _figures(result_page, f)
    judged = f.rates[PERSONA][PLAIN.name][ALL].n
    if judged:
        series = {
            (f"{name}, {arm}" if len(f.rates) > 1 else name): (arm, name) for arm, by in f.rates.items() for name in by
        }
        categories = list(f.rates[PERSONA][PLAIN.name])
        cells = [[k, *(f"{f.rates[arm][name][k]:.0%}" for arm, name in series.values())] for k in categories]
        text = f"{f.event.told} Shares with 95% intervals (Wilson)."
        result_page.section(f.event.name.capitalize(), text, _rates(f, series, categories), ["", *series], cells)
    taken_off = [
        [name, arm, _reduction(e.reduction), str(e.test.only_first), str(e.test.only_second), f"{e.test.p:.2f}"]
        for arm, by_condition in f.effects.items()
        for name, e in by_condition.items()
    ]
    if taken_off and judged:
        text = TAKEN_OFF.format(units="rules" if f.event.standin else "prompts")
        result_page.section("What holding takes off", text, head=TAKEN_OFF_HEAD, rows=taken_off)
    if f.beside:
        n = len({r["item"] for r in rows if r["control"] is not None})
        tell_beside(result_page, f.beside, LESS_OFTEN, BESIDE.format(n=n), "+.0f")
    if f.adds:
        points = [[name, added.points()] for name, added in f.adds.items()]
        result_page.section("What the persona does", ADDS, head=["condition", "points"], rows=points)
    conditions = list(f.projection[PERSONA])
    places = {arm: [by[c] for c in conditions] for arm, by in f.projection.items()}
    result_page.section("Where the replies lie", PLACES, beside(conditions, places, "mean projection", scattergap=0.8))
    if f.correlation.n:
        which = {-1: "lower replies go wrong more often", 1: "higher replies go wrong more often"}
        verdict = which.get(f.correlation.direction(), "no relation that can be told from none")
        within = "rules" if f.event.standin else "categories"
        correlation = f"Correlation of going wrong with the projection: {f.correlation:+.2f}, {verdict}."
        text = f"Plain, {PERSONA}, within {within}. {correlation}"
        parts = beside(QUARTERS, {"": f.parts}, f.event.name, percent=True, height=340, of_names="projection")
        result_page.section("Does it go wrong where the projection is low?", text, parts)
    tell(result_page, "What it costs", COSTS, f.tasks)
    if f.event.standin and f.shown != PLAIN.name and (pairs := side_by_side(_compared(rows), f.shown)):
        text = f"Some of the prompts {PERSONA} at which only one of the two keeps the rule (✓)."
        head = ["prompt", PLAIN.name, f.shown]
        result_page.section(f"Where plain and “{f.shown}” differ", text, head=head, rows=pairs)
    return result_page


def headline(f: JailbreakFindings) -> str:
    """What was found, beside what the study found."""
    plain = f.rates[PERSONA][PLAIN.name][ALL]
    if not plain.n:
        return "No reply was judged, so that nothing is said of them but where they lie on the axis."
    sentence = f"Plain, {f.event.clause} in {plain:.0%} of {plain.n} replies"
    if f.adds:
        added = f.adds[PLAIN.name]
        alone = (
            f"; without one, in {f.rates[ALONE][PLAIN.name][ALL]:.0%}. The persona's effect is {added.points()} points"
        )
        sentence += (
            alone
            + {
                1: "",
                -1: ", which is less, not more: there is nothing of its own for capping to take off",
                0: ", not to be told from none: there may be nothing of its own for capping to take off",
            }[added.direction()]
        )
    sentence += ". "
    if e := f.effects[PERSONA].get(f.shown):
        sentence += f"Under “{f.shown}” it is {f.rates[PERSONA][f.shown][ALL]:.0%}"
        fewer = "" if math.isnan(e.reduction.value) else f"{_fewer(e.reduction)}, p over prompts {e.test.p:.2f}, "
        sentence += f": {fewer}{e.verdict()}. "
        if (o := f.tasks[f.shown][ALL]).change:
            sentence += f"Small tasks solved: {o.moved()}, of {o.value.n}. "
    names = [name for name in f.rates[PERSONA] if name != PLAIN.name]
    sentence += f"{beside_in_words(f.beside, LESS_OFTEN, names, '+.0f')} " if names else ""
    return f"{sentence}{STUDY} {f.event.caveat}".strip()


def _reduction(e: Estimate) -> str:
    return "–" if math.isnan(e.value) else f"{e:.0%}".replace("–", " to ").replace("-", "−")


def _fewer(e: Estimate) -> str:
    """A relative reduction in words."""
    if e.value >= 0:
        return _reduction(e).replace("%", "% fewer")
    return _reduction(Estimate(-e.value, -e.high, -e.low, e.n)).replace("%", "% more")


def _figures(result_page: Page, f: JailbreakFindings) -> None:
    plain = f.rates[PERSONA][PLAIN.name][ALL]
    if not plain.n:
        result_page.figure("replies", f"{plain.missing:,}", "not judged")
        return

    study = f"65.3–88.5%{' of replies harmful' if f.event.caveat else ''}"
    result_page.figure(f"{f.event.name}, plain", plain, f"of {plain.n} replies", ".0%", study=study)
    if f.adds:
        note = f"plain; “{f.shown}”: {f.adds[f.shown].points()}"
        result_page.figure("the persona's effect, points", f.adds[PLAIN.name].in_points(), note, "+.0f")
    if e := f.effects[PERSONA].get(f.shown):
        result_page.figure(f"taken off by “{f.shown}”", e.reduction, spec=".0%", study="about 60%")
        if (o := f.tasks[f.shown][ALL]).change:
            result_page.figure("tasks solved, points", o.change.in_points(), spec="+.0f", study="no loss")


def _rates(f: JailbreakFindings, series: dict[str, tuple[str, str]], categories: Sequence[str]) -> Chart:
    """A colour a condition; hollow where no persona stands in front."""
    colours = {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(f.rates[PERSONA])}
    rates = {label: [f.rates[arm][name][k] for k in categories] for label, (arm, name) in series.items()}
    in_colours = [colours[name] for _, name in series.values()]
    height = 130 + (20 if len(categories) < 8 else 12) * len(categories) * len(series)
    title = f"share of {f.event.name}"
    drawing = beside(categories, rates, title, colours=in_colours, percent=True, sideways=True, height=height)
    for trace, (arm, name) in zip(drawing.data, series.values(), strict=True):
        symbol = "circle" if arm == PERSONA else "circle-open"
        trace["marker"] |= {"symbol": symbol, "line": {"width": 2, "color": colours[name]}}
    return drawing


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
