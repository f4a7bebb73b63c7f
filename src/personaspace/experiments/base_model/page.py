"""How a base model's axis and its completions are told and drawn; it knows nothing of how they were found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

from personaspace.experiments.base_model.axis import Likeness
from personaspace.experiments.base_model.people import HELPING, PEOPLE, SPIRITUAL
from personaspace.experiments.compare.findings import Pair
from personaspace.experiments.kit.results import Result
from personaspace.report.charts import axis, line, stacked, wrapped
from personaspace.report.page import FAR, NEAR, SOFT, Block, Figure
from personaspace.stats.intervals import Estimate

NAMED = 6
"""Roles that are named at either end, and of those that moved most."""


@dataclass(frozen=True)
class Found:
    """What the page tells. names: of the space's model and of the base; standin: whether the base is the same model without
    its template; layers: the two that are compared; pair, like: the likeness of the maps; ceiling: the correlation of roles'
    places that maps this noisy would show at most; places: roles' places on both, in standard deviations; shares, trends: of
    kinds of people, where the base was steered; judge: who told them apart."""

    names: tuple[str, str]
    standin: bool
    layers: tuple[int, int]
    pair: Pair
    like: Likeness
    ceiling: float
    places: Mapping[str, tuple[float, float]]
    shares: Mapping[str, Mapping[str, Estimate]] | None
    trends: Mapping[str, Estimate] | None
    judge: str


def page(found: Found, rows: Sequence[Mapping[str, Any]]) -> Result:
    """The result: roles on both axes, the axes' cosines, the people in the completions."""
    ours, base = found.names
    pair, like, cosine = found.pair, found.like, _cosine(found)
    lead = (
        f"The axis of {base}, taken by the same roles and questions in a plain transcript (layer {found.layers[1]}), beside "
        f"that of {ours} (layer {found.layers[0]})."
    )
    if found.standin:
        lead += " No base model was given: the chat model without its template stands in for one everywhere below."
    figures = {
        "standin": found.standin,
        "layers": found.layers,
        "on_axis": pair.axis,
        "ranking": pair.ranking,
        "pc1": pair.pc1,
        "shared": pair.shared,
        "ceiling": found.ceiling,
        "base_repeats": like.again,
        "axis_cosine": cosine,
        "axis_ceiling": like.ceiling[found.layers[1]] if like.ceiling else None,
        "axis_cosine_by_layer": like.cosines,
        "shares": found.shares,
        "trends": found.trends,
        "judge": found.judge,
    }
    blocks = [_scatter(found), *_by_layer(found), *_people(found, rows), _table(found)]
    return Result("Is the axis there before post-training?", lead, _headline(found), figures, rows, blocks, _key(found))


def _cosine(found: Found) -> Estimate | None:
    return found.like.cosines[found.layers[1]] if found.like.cosines else None


def _known(x: float) -> str:
    return "not known: too few replies a role to halve them" if isnan(x) else f"{x:.2f}"


def _headline(found: Found) -> str:
    pair, cosine, (ours, base) = found.pair, _cosine(found), found.names
    standin = (
        "This only says what is left of the axis without the chat template, not what was there before post-training. "
        if found.standin
        else ""
    )
    told = f"The places of {pair.shared} roles on the two axes correlate {pair.axis}"
    if not isnan(found.ceiling):
        told += f", where maps this noisy would show {found.ceiling:.2f} at most"
    told += "; "
    if cosine:
        ceiling = found.like.ceiling[found.layers[1]]
        most = "" if isnan(ceiling) else f", of at most {ceiling:.2f}"
        told += f"the axes' cosine is {cosine}{most}. "
    else:
        told += "the models' shapes differ, so that their axes have no cosine. "
    steering = f"{base} is not the base of {ours}, whose shape it does not have, and was not steered."
    if found.trends:
        parts = [f"{kind} {found.trends[kind]} ({_effect(found.trends[kind])})" for kind in (HELPING, SPIRITUAL)]
        steering = f"Rank correlation of steering towards the Assistant with completions' people: {'; '.join(parts)}."
    study = (
        "The study: a base model's axis is very similar to its instruct model's, and steering towards the Assistant makes "
        "completions therapists, consultants and coaches, and fewer spiritual or religious people."
    )
    return f"{standin}{told}{steering} {study}"


def _effect(e: Estimate) -> str:
    if e.low > 0:
        return "more of them"
    return "fewer of them" if e.high < 0 else "no effect that can be told from none"


def _key(found: Found) -> list[Figure]:
    pair, cosine = found.pair, _cosine(found)
    most = "" if isnan(found.ceiling) else f"; at most {found.ceiling:.2f} for maps this noisy"
    key = [Figure("roles on the two axes", f"{pair.axis.value:+.2f}", f"correlation, {pair.axis.span()}{most}")]
    if cosine:
        ceiling = found.like.ceiling[found.layers[1]]
        note = cosine.span() + ("" if isnan(ceiling) else f"; at most {ceiling:.2f}")
        key.append(Figure("cosine of the axes", f"{cosine.value:+.2f}", note))
    else:
        key.append(Figure("the ranking", f"{pair.ranking.value:+.2f}", f"rank correlation, {pair.ranking.span()}"))
    if found.trends:
        for kind in (HELPING, SPIRITUAL):
            e = found.trends[kind]
            key.append(Figure(kind, f"{e.value:+.2f}", f"rank correlation with α, {e.span()}"))
    else:
        note = f"correlation, {pair.pc1.span()}; the study, between models: > 0.92"
        key.append(Figure("PC1 loadings", f"{pair.pc1.value:+.2f}", note))
        key.append(Figure("roles", str(pair.shared), "that both have"))
    return key


def _scatter(found: Found) -> Block:
    roles = list(found.places)
    order = sorted(roles, key=lambda r: found.places[r][0])
    moved = sorted(roles, key=lambda r: -abs(found.places[r][0] - found.places[r][1]))[:NAMED]
    named = {*order[:NAMED], *order[-NAMED:], *moved}
    ends = [min(min(p) for p in found.places.values()), max(max(p) for p in found.places.values())]
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": ends,
            "y": ends,
            "line": {"color": SOFT, "width": 1, "dash": "dot"},
            "hoverinfo": "skip",
        },
        {
            "type": "scatter",
            "mode": "markers+text",
            "x": [found.places[r][0] for r in roles],
            "y": [found.places[r][1] for r in roles],
            "text": [_name(r) if r in named else "" for r in roles],
            "textposition": "top center",
            "textfont": {"size": 11},
            "hovertext": [f"{_name(r)}: {found.places[r][0]:+.2f}, {found.places[r][1]:+.2f}" for r in roles],
            "hoverinfo": "text",
            "marker": {"color": NEAR, "size": 8, "opacity": 0.8},
        },
    ]
    layout = {
        "showlegend": False,
        "hovermode": "closest",
        "xaxis": axis(f"{found.names[0]}, layer {found.layers[0]}"),
        "yaxis": axis(f"{found.names[1]}, layer {found.layers[1]}"),
    }
    text = (
        "Each role's projection on each model's own axis, in standard deviations over the roles; up and right is the "
        f"Assistant. Correlation {found.pair.axis}, by rank {found.pair.ranking}; named are the ends and those that moved most."
    )
    return Block("Roles on both axes", text, {"data": data, "layout": layout}, 560)


def _name(role: str) -> str:
    return role.replace("_", " ")


def _by_layer(found: Found) -> list[Block]:
    if not found.like.cosines:
        return []
    layers = list(range(len(found.like.cosines)))
    data = line("cosine of the axes", layers, found.like.cosines, NEAR)
    if not all(map(isnan, found.like.ceiling)):
        most = {"type": "scatter", "mode": "lines", "name": "at most, were they the same", "x": layers}
        values = [None if isnan(c) else c for c in found.like.ceiling]
        data.append({**most, "y": values, "line": {"color": SOFT, "width": 1.5, "dash": "dash"}})
    at = {"xref": "x", "yref": "paper", "x0": found.layers[1], "x1": found.layers[1], "y0": 0, "y1": 1}
    layout = {
        "xaxis": axis("layer"),
        "yaxis": axis("cosine", rangemode="tozero"),
        "shapes": [{"type": "line", **at, "line": {"color": FAR, "width": 1, "dash": "dot"}}],
    }
    text = (
        "The band: 95%, the questions of the base model's map drawn anew. Few replies make an axis noisy: the dashed line is "
        "what two measurements of one axis would show, given the reliability of both. Dotted: the layer that is read."
    )
    return [Block("Do the axes point the same way?", text, {"data": data, "layout": layout}, 380)]


def _people(found: Found, rows: Sequence[Mapping[str, Any]]) -> list[Block]:
    if not found.shares or not found.trends:
        text = "Left out: a direction of one shape cannot be added to a residual stream of another."
        return [Block("Whose words does the steered base model find?", text)]
    names = list(found.shares)
    examples = {
        (n, kind): f"<br><i>{wrapped(r['opening'])}</i> {wrapped(r['text'])}"
        for n in names
        for kind in PEOPLE
        if (r := next((r for r in rows if r["condition"] == n and r["kind"] == kind), None))
    }
    figure = stacked(names, PEOPLE, found.shares, examples, "steering, from away to towards the Assistant")
    how = "by their words alone" if found.judge == "rules" else f"by {found.judge}"
    text = (
        f"{found.names[1]} goes on with openings such as “My job is to”, steered along the axis of {found.names[0]}; sorted "
        f"{how}. Point at a part for its share and a completion."
    )
    table = [[kind, *(found.shares[n][kind].percent() for n in names), str(found.trends[kind])] for kind in PEOPLE]
    head = ["people", *names, "rank correlation with α"]
    told = "Shares with 95% intervals (Wilson); correlations with intervals over openings."
    return [
        Block("Whose words does the steered base model find?", text, figure, 460),
        Block("People in figures", told, head=head, rows=table),
    ]


def _table(found: Found) -> Block:
    pair, cosine, like = found.pair, _cosine(found), found.like
    rows = [
        ["roles that both have", str(pair.shared), ""],
        ["places on the axis, correlation", str(pair.axis), ""],
        ["places on the axis, rank correlation", str(pair.ranking), ""],
        ["PC1 loadings, correlation", str(pair.pc1), "above 0.92 between any two of three chat models"],
        ["correlation that maps this noisy show at most", _known(found.ceiling), ""],
        ["places' correlation with a second such map of the base", _known(like.again), ""],
    ]
    if cosine:
        rows.append(["cosine of the axes", str(cosine), "axes very similar"])
        rows.append(["cosine that axes this noisy show at most", _known(like.ceiling[found.layers[1]]), ""])
    text = "Correlations with 95% intervals over roles."
    return Block("Likeness in figures", text, head=["what", "here", "the study"], rows=rows)
