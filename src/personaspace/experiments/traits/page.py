"""How traits set against the axis are told and drawn; it knows nothing of how they were found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from personaspace.catalog import Trait
from personaspace.experiments.kit.results import Result
from personaspace.experiments.traits.findings import ENOUGH, Ranking
from personaspace.report.charts import axis, dots, wrapped
from personaspace.report.page import FAR, NEAR, SOFT, Block, Figure
from personaspace.space import PersonaSpace

SHOWN = 20
"""Traits of either end that are drawn."""
NAMED = 6
RELIABLE = 0.8
SIDES = ("brought out", "suppressed")
STUDY = "The study ranks its traits by the same cosine; there is no published figure here to set beside it."


def told(names: Sequence[str]) -> str:
    """Traits' names, for people."""
    return ", ".join(n.replace("_", " ") for n in names)


def page(
    space: PersonaSpace, traits: Sequence[Trait], ranking: Ranking, rows: Sequence[dict[str, Any]], judge: str
) -> Result:
    """The result: what was found, the two ends, all beside chance, and the whole ranking."""
    cosines, n, again = ranking.cosines, len(ranking.cosines), ranking.reliability
    out = list(ranking.outside)
    beyond = "lie further along the axis than 95% of what chance gives"
    counted = f"{len(out)} of {n} traits {beyond} ({ranking.expected:.0f} expected)"
    if len(out) > ranking.most:
        near = [t for t in out if cosines[t].value > 0][:NAMED]
        far = [t for t in reversed(out) if cosines[t].value < 0][:NAMED]
        ends = f"Towards the Assistant: {told(near) or 'none'}; away from it: {told(far) or 'none'}."
        sentence = f"{counted}. {ends} The ranking's reliability is {again}{_surer(again.value, rows)}."
    else:
        sentence = f"{counted}: no more than chance may give, so that no trait can be told from none here."
    strongest = max(cosines, key=lambda t: abs(cosines[t].value))
    left_out = sum(not r["kept"] for r in rows)
    who = "none judged" if judge in ("rules", "none") else f"judged by {judge}"
    key = [
        Figure("traits that stand out", str(len(out)), f"of {n}; {ranking.expected:.0f} expected by chance"),
        Figure("the ranking's reliability", f"{again.value:.2f}", f"95%: {again.low:.2f} to {again.high:.2f}"),
        Figure(
            "strongest cosine",
            f"{cosines[strongest].value:+.2f}",
            f"{told([strongest])}; 95% of chance's: within ±{ranking.edge:.2f}",
        ),
        Figure("replies", f"{len(rows):,}", f"{who}, {left_out} left out"),
    ]
    lead = (
        f"{space.meta['model']['id']} is asked to show each of {len(traits)} traits, and to suppress it. The mean difference "
        f"of its activations at layer {space.layer} is the trait's vector; its cosine with the axis says how far the trait "
        "is the Assistant's."
    )
    figures = {
        "reliability": again,
        "stand_out": out,
        "expected_by_chance": ranking.expected,
        "edge_of_chance": ranking.edge,
        "without_vector": [t.trait for t in traits if t.trait not in cosines],
        "cosines": {t: {**vars(e), "among_chance": ranking.quantile(t)} for t, e in cosines.items()},
        "judge": judge,
    }
    blocks = [_ends(ranking, rows), *([_histogram(ranking)] if len(ranking.chance) else []), _table(traits, ranking)]
    return Result("Which traits does the axis carry?", lead, f"{sentence} {STUDY}", figures, rows, blocks, key)


def _surer(reliability: float, rows: Sequence[dict[str, Any]]) -> str:
    """How many questions would make the ranking reliable (Spearman–Brown)."""
    if not 0 < reliability < RELIABLE:
        return ""
    times = RELIABLE / (1 - RELIABLE) * (1 - reliability) / reliability
    return f"; {RELIABLE} would take some {round(times * (1 + max(r['pair'] for r in rows)))} questions a trait"


def _ends(ranking: Ranking, rows: Sequence[dict[str, Any]]) -> Block:
    names = list(ranking.cosines)
    half = min(SHOWN, len(names) // 2)
    ends = ("towards the Assistant", names[:half], NEAR), ("away from it", names[-half:], FAR)
    data = []
    for title, end_traits, colour in ends:
        drawn = dots(
            title, [told([t]) for t in end_traits], [ranking.cosines[t] for t in end_traits], colour, sideways=True
        )
        more = {"text": [_example(t, ranking, rows) for t in end_traits], "marker": {"color": colour, "size": 8}}
        data.append({**drawn, **more})
    places = [told([t]) for _, end_traits, _ in ends for t in end_traits]
    layout = {
        "xaxis": axis("cosine with the axis"),
        "yaxis": {"type": "category", "categoryarray": places[::-1], "dtick": 1},
        "hovermode": "closest",
        "shapes": [_band(ranking.edge)],
    }
    if any(e.n < ENOUGH for e in ranking.cosines.values()):
        intervals = "So few questions give no trait an interval of its own: all are as wide as chance makes cosines."
    else:
        intervals = "Intervals: 95%, by a bootstrap over each trait's questions."
    text = (
        f"The grey band holds 95% of the cosines that chance gives. {intervals} Point at a dot for a pair of replies."
    )
    return Block("The two ends", text, {"data": data, "layout": layout}, 120 + 21 * len(places))


def _band(edge: float) -> dict[str, Any]:
    where = {"xref": "x", "yref": "paper", "x0": -edge, "x1": edge, "y0": 0, "y1": 1}
    return {"type": "rect", **where, "fillcolor": SOFT, "opacity": 0.16, "line": {"width": 0}, "layer": "below"}


def _example(trait: str, ranking: Ranking, rows: Sequence[dict[str, Any]]) -> str:
    pair = [r for r in rows if r["trait"] == trait and r["pair"] == 0]
    replies = "".join(f"<br><b>{r['side']}:</b> {wrapped(r['text'])}" for r in pair)
    return f"<b>{told([trait])}</b> {ranking.cosines[trait]}<br><i>{wrapped(pair[0]['question'])}</i>{replies}"


def _histogram(ranking: Ranking) -> Block:
    values = [e.value for e in ranking.cosines.values()]
    reach = 1.05 * float(np.max(np.abs([*values, *np.quantile(ranking.chance, [0.001, 0.999])])))
    edges = np.linspace(-reach, reach, 26)
    middles = ((edges[1:] + edges[:-1]) / 2).tolist()
    expected = np.histogram(ranking.chance, edges)[0] * len(values) / len(ranking.chance)
    bars = {"type": "bar", "name": "traits", "x": middles, "y": np.histogram(values, edges)[0].tolist()}
    curve = {"type": "scatter", "mode": "lines", "name": "as many by chance", "x": middles, "y": expected.tolist()}
    data = [
        {**bars, "marker": {"color": NEAR, "opacity": 0.75}, "hovertemplate": "%{y} at %{x:+.2f}<extra></extra>"},
        {
            **curve,
            "line": {"color": FAR, "width": 2.5, "shape": "hvh"},
            "hovertemplate": "%{y:.1f} by chance at %{x:+.2f}<extra></extra>",
        },
    ]
    layout = {
        "bargap": 0.05,
        "xaxis": axis("cosine with the axis", range=[-reach, reach]),
        "yaxis": axis("traits"),
        "shapes": [_band(ranking.edge)],
    }
    text = (
        "By chance: the same replies with the labels of half of each trait's questions swapped, so that what the trait does "
        "cancels and its noise is left."
    )
    return Block("All traits beside chance", text, {"data": data, "layout": layout}, 400)


def _table(traits: Sequence[Trait], ranking: Ranking) -> Block:
    means = {t.trait: t.definition for t in traits}
    rows = [
        [
            told([t]),
            f"{e.value:+.2f}",
            f"{e.low:+.2f} to {e.high:+.2f}",
            f"{100 * ranking.quantile(t):.1f}%",
            f"{e.n}, {e.missing} replies missing" if e.missing else str(e.n),
            means[t],
        ]
        for t, e in ranking.cosines.items()
    ]
    text = "“Chance below”: how much of what chance gives lies lower. Pairs: questions answered with the trait and without it."
    if without := [t.trait for t in traits if t.trait not in ranking.cosines]:
        text += f" Left out, without a kept reply on both sides: {told(without)}."
    return Block(
        "The whole ranking", text, head=["trait", "cosine", "95%", "chance below", "pairs", "what it is"], rows=rows
    )
