"""How traits set against the axis are told and drawn; it knows nothing of how they were found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from personaspace.catalog import Trait
from personaspace.experiments.kit.results import Result
from personaspace.experiments.traits.findings import ENOUGH, Ranking
from personaspace.report.charts import axis, band, chart, dots, wrapped
from personaspace.report.page import EXACT, FAR, NEAR, Chart, Page
from personaspace.space import PersonaSpace
from personaspace.stats.intervals import Estimate

SHOWN = 20
"""Traits of either end that are drawn."""
NAMED = 6
RELIABLE = 0.8
SIDES = ("brought out", "suppressed")

LEAD = (
    "{model} is asked to show each of {n} traits, and to suppress it. The mean difference of its activations at layer {layer} "
    "is the trait's vector; its cosine with the axis says how far the trait is the Assistant's."
)
STUDY = "The study ranks its traits by the same cosine; there is no published figure here to set beside it."
BY_CHANCE = (
    "By chance: the same replies with the labels of half of each trait's questions swapped, so that what the trait does "
    "cancels and its noise is left."
)
BAND = "The grey band holds 95% of the cosines that chance gives."
OF_CHANCE = "So few questions give no trait an interval of its own: all are as wide as chance makes cosines."
OVER_QUESTIONS = "Intervals: 95%, over each trait's questions."
OF_SOME = " {n} of {of} traits have fewer than {enough} pairs, and intervals as wide as chance makes cosines{names}."
TABLE = (
    "“Chance below”: how much of what chance gives lies lower. Pairs: questions answered with the trait and without it."
)
HEAD = ("trait", "cosine", "95%", "chance below", "pairs", "what it is")


def listed(names: Sequence[str]) -> str:
    """Traits' names, for people."""
    return ", ".join(n.replace("_", " ") for n in names)


def page(
    space: PersonaSpace, traits: Sequence[Trait], ranking: Ranking, rows: Sequence[dict[str, Any]], judge: str
) -> Result:
    """The result: what was found, the two ends, all beside chance, and the whole ranking."""
    cosines, again, outside = ranking.cosines, ranking.reliability, ranking.outside
    model = space.meta["model"]["id"]
    result_page = Page("Which traits does the axis carry?", LEAD.format(model=model, n=len(traits), layer=space.layer))
    expected = f"{ranking.expected:.0f} expected"
    result_page.figure(
        "traits that stand out", str(len(outside)), f"of {len(cosines)}; {expected} by chance", interval=EXACT
    )
    result_page.figure("the ranking's reliability", again, spec=".2f")
    strongest = max(cosines, key=lambda t: abs(cosines[t].value))
    edge = f"{listed([strongest])}; 95% of chance's: within ±{ranking.edge:.2f}"
    result_page.figure("strongest cosine", cosines[strongest], edge)
    who = "none judged" if judge in ("rules", "none") else f"judged by {judge}"
    unkept = sum(not r["kept"] for r in rows)
    result_page.figure("replies", f"{len(rows):,}", f"{who}, {unkept} left out", interval=EXACT)
    text = f"{BAND} {_intervals(cosines)} Point at a dot for a pair of replies."
    result_page.section("The two ends", text, _ends(ranking, rows))
    if len(ranking.chance):
        result_page.section("All traits beside chance", BY_CHANCE, _histogram(ranking))
    without = [t.trait for t in traits if t.trait not in cosines]
    left_out = (
        f" Left out, with fewer than two questions whose replies are kept on both sides: {listed(without)}."
        if without
        else ""
    )
    definitions = {t.trait: t.definition for t in traits}
    table = [
        [
            listed([t]),
            f"{e.value:+.2f}",
            f"{e.low:+.2f} to {e.high:+.2f}",
            f"{100 * ranking.quantile(t):.1f}%",
            f"{e.n}, {e.missing} replies missing" if e.missing else str(e.n),
            definitions[t],
        ]
        for t, e in cosines.items()
    ]
    result_page.section("The whole ranking", TABLE + left_out, head=HEAD, rows=table)
    figures = {
        "reliability": again,
        "stand_out": list(outside),
        "expected_by_chance": ranking.expected,
        "edge_of_chance": ranking.edge,
        "without_vector": without,
        "cosines": {t: {**vars(e), "among_chance": ranking.quantile(t)} for t, e in cosines.items()},
        "judge": judge,
    }
    return Result(result_page, f"{_headline(ranking, rows)} {STUDY}", figures, rows)


def _intervals(cosines: Mapping[str, Estimate]) -> str:
    """Over what the traits' intervals are."""
    few = [name for name, e in cosines.items() if e.n < ENOUGH]
    if len(few) == len(cosines):
        return OF_CHANCE
    names = f": {listed(few)}" if len(few) <= NAMED else ""
    return OVER_QUESTIONS + (OF_SOME.format(n=len(few), of=len(cosines), enough=ENOUGH, names=names) if few else "")


def _headline(ranking: Ranking, rows: Sequence[dict[str, Any]]) -> str:
    cosines, outside, again = ranking.cosines, ranking.outside, ranking.reliability
    beyond = "lie further along the axis than 95% of what chance gives"
    counted = f"{len(outside)} of {len(cosines)} traits {beyond} ({ranking.expected:.0f} expected)"
    if len(outside) <= ranking.most:
        return f"{counted}: no more than chance may give, so that no trait can be told from none here."
    near = [t for t in outside if cosines[t].value > 0][:NAMED]
    far = [t for t in reversed(outside) if cosines[t].value < 0][:NAMED]
    ends = f"Towards the Assistant: {listed(near) or 'none'}; away from it: {listed(far) or 'none'}."
    surer = ""
    if 0 < again.value < RELIABLE:
        # How many questions would make the ranking reliable (Spearman–Brown).
        times = RELIABLE / (1 - RELIABLE) * (1 - again.value) / again.value
        surer = f"; {RELIABLE} would take some {round(times * (1 + max(r['pair'] for r in rows)))} questions a trait"
    return f"{counted}. {ends} The ranking's reliability is {again}{surer}."


def _ends(ranking: Ranking, rows: Sequence[dict[str, Any]]) -> Chart:
    names = list(ranking.cosines)
    half = min(SHOWN, len(names) // 2)
    data = []
    for title, traits, colour in (("towards the Assistant", names[:half], NEAR), ("away from it", names[-half:], FAR)):
        cosines = [ranking.cosines[t] for t in traits]
        trace = dots(title, [listed([t]) for t in traits], cosines, colour, sideways=True)
        data.append({**trace, "text": [_example(t, ranking, rows) for t in traits]})
    places = [place for trace in data for place in trace["y"]]
    by_name = {"type": "category", "categoryarray": places[::-1], "dtick": 1}
    edge = band(x=(-ranking.edge, ranking.edge))
    height = 120 + 21 * len(places)
    return chart(data, "cosine with the axis", by_name, height, hovermode="closest", shapes=[edge])


def _example(trait: str, ranking: Ranking, rows: Sequence[dict[str, Any]]) -> str:
    pair = [r for r in rows if r["trait"] == trait and r["pair"] == 0]
    replies = "".join(f"<br><b>{r['side']}:</b> {wrapped(r['text'])}" for r in pair)
    return f"<b>{listed([trait])}</b> {ranking.cosines[trait]}<br><i>{wrapped(pair[0]['question'])}</i>{replies}"


def _histogram(ranking: Ranking) -> Chart:
    values = [e.value for e in ranking.cosines.values()]
    reach = 1.05 * float(np.max(np.abs([*values, *np.quantile(ranking.chance, [0.001, 0.999])])))
    edges = np.linspace(-reach, reach, 26)
    middles = ((edges[1:] + edges[:-1]) / 2).tolist()
    expected = np.histogram(ranking.chance, edges)[0] * len(values) / len(ranking.chance)
    bars = {
        "type": "bar",
        "name": "traits",
        "x": middles,
        "y": np.histogram(values, edges)[0].tolist(),
        "marker": {"color": NEAR, "opacity": 0.75},
        "hovertemplate": "%{y} at %{x:+.2f}<extra></extra>",
    }
    curve = {
        "type": "scatter",
        "mode": "lines",
        "name": "as many by chance",
        "x": middles,
        "y": expected.tolist(),
        "line": {"color": FAR, "width": 2.5, "shape": "hvh"},
        "hovertemplate": "%{y:.1f} by chance at %{x:+.2f}<extra></extra>",
    }
    x, edge = axis("cosine with the axis", range=[-reach, reach]), band(x=(-ranking.edge, ranking.edge))
    return chart([bars, curve], x, "traits", 400, bargap=0.05, shapes=[edge])
