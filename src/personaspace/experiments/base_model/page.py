"""How a base model's axis and its completions are told and drawn; it knows nothing of how they were found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

from personaspace.experiments.base_model.axis import Likeness
from personaspace.experiments.base_model.people import HELPING, PEOPLE, SPIRITUAL
from personaspace.experiments.compare.findings import Pair
from personaspace.experiments.kit.results import Result, _old
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


def page(findings: Found, rows: Sequence[Mapping[str, Any]]) -> Result:
    """The result: roles on both axes, the axes' cosines, the people in the completions."""
    ours, base = findings.names
    pair, like, cosine = findings.pair, findings.like, _cosine(findings)
    lead = (
        f"The axis of {base}, taken by the same roles and questions in a plain transcript (layer {findings.layers[1]}), "
        f"beside that of {ours} (layer {findings.layers[0]})."
    )
    if findings.standin:
        lead += " No base model was given: the chat model without its template stands in for one everywhere below."
    figures = {
        "standin": findings.standin,
        "layers": findings.layers,
        "on_axis": pair.axis,
        "ranking": pair.ranking,
        "pc1": pair.pc1,
        "shared": pair.shared,
        "ceiling": findings.ceiling,
        "base_repeats": like.again,
        "axis_cosine": cosine,
        "axis_ceiling": like.ceiling[findings.layers[1]] if like.ceiling else None,
        "axis_cosine_by_layer": like.cosines,
        "shares": findings.shares,
        "trends": findings.trends,
        "judge": findings.judge,
    }
    blocks = [_scatter(findings), *_by_layer(findings), *_people(findings, rows), _table(findings)]
    return _old(
        "Is the axis there before post-training?", lead, _headline(findings), figures, rows, blocks, _key(findings)
    )


def _cosine(findings: Found) -> Estimate | None:
    return findings.like.cosines[findings.layers[1]] if findings.like.cosines else None


def _known(x: float) -> str:
    return "not known: too few replies a role to halve them" if isnan(x) else f"{x:.2f}"


def _headline(findings: Found) -> str:
    pair, cosine, (ours, base) = findings.pair, _cosine(findings), findings.names
    standin = (
        "This only says what is left of the axis without the chat template, not what was there before post-training. "
        if findings.standin
        else ""
    )
    sentence = f"The places of {pair.shared} roles on the two axes correlate {pair.axis}"
    if not isnan(findings.ceiling):
        sentence += f", where maps this noisy would show {findings.ceiling:.2f} at most"
    sentence += "; "
    if cosine:
        ceiling = findings.like.ceiling[findings.layers[1]]
        most = "" if isnan(ceiling) else f", of at most {ceiling:.2f}"
        sentence += f"the axes' cosine is {cosine}{most}. "
    else:
        sentence += "the models' shapes differ, so that their axes have no cosine. "
    steering = f"{base} is not the base of {ours}, whose shape it does not have, and was not steered."
    if findings.trends:
        parts = [f"{kind} {findings.trends[kind]} ({_effect(findings.trends[kind])})" for kind in (HELPING, SPIRITUAL)]
        steering = f"Rank correlation of steering towards the Assistant with completions' people: {'; '.join(parts)}."
    study = (
        "The study: a base model's axis is very similar to its instruct model's, and steering towards the Assistant makes "
        "completions therapists, consultants and coaches, and fewer spiritual or religious people."
    )
    return f"{standin}{sentence}{steering} {study}"


def _effect(e: Estimate) -> str:
    return {1: "more of them", -1: "fewer of them", 0: "no effect that can be told from none"}[e.direction()]


def _key(findings: Found) -> list[Figure]:
    pair, cosine = findings.pair, _cosine(findings)
    most = "" if isnan(findings.ceiling) else f"; at most {findings.ceiling:.2f} for maps this noisy"
    key = [Figure("roles on the two axes", f"{pair.axis.value:+.2f}", f"correlation, {pair.axis.span()}{most}")]
    if cosine:
        ceiling = findings.like.ceiling[findings.layers[1]]
        note = cosine.span() + ("" if isnan(ceiling) else f"; at most {ceiling:.2f}")
        key.append(Figure("cosine of the axes", f"{cosine.value:+.2f}", note))
    else:
        key.append(Figure("the ranking", f"{pair.ranking.value:+.2f}", f"rank correlation, {pair.ranking.span()}"))
    if findings.trends:
        for kind in (HELPING, SPIRITUAL):
            e = findings.trends[kind]
            key.append(Figure(kind, f"{e.value:+.2f}", f"rank correlation with α, {e.span()}"))
    else:
        note = f"correlation, {pair.pc1.span()}; the study, between models: > 0.92"
        key.append(Figure("PC1 loadings", f"{pair.pc1.value:+.2f}", note))
        key.append(Figure("roles", str(pair.shared), "that both have"))
    return key


def _scatter(findings: Found) -> Block:
    roles = list(findings.places)
    order = sorted(roles, key=lambda r: findings.places[r][0])
    moved = sorted(roles, key=lambda r: -abs(findings.places[r][0] - findings.places[r][1]))[:NAMED]
    named = {*order[:NAMED], *order[-NAMED:], *moved}
    ends = [min(min(p) for p in findings.places.values()), max(max(p) for p in findings.places.values())]
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
            "x": [findings.places[r][0] for r in roles],
            "y": [findings.places[r][1] for r in roles],
            "text": [_name(r) if r in named else "" for r in roles],
            "textposition": "top center",
            "textfont": {"size": 11},
            "hovertext": [f"{_name(r)}: {findings.places[r][0]:+.2f}, {findings.places[r][1]:+.2f}" for r in roles],
            "hoverinfo": "text",
            "marker": {"color": NEAR, "size": 8, "opacity": 0.8},
        },
    ]
    layout = {
        "showlegend": False,
        "hovermode": "closest",
        "xaxis": axis(f"{findings.names[0]}, layer {findings.layers[0]}"),
        "yaxis": axis(f"{findings.names[1]}, layer {findings.layers[1]}"),
    }
    text = (
        "Each role's projection on each model's own axis, in standard deviations over the roles; up and right is the "
        f"Assistant. Correlation {findings.pair.axis}, by rank {findings.pair.ranking}; named are the ends and those that "
        "moved most."
    )
    return Block("Roles on both axes", text, {"data": data, "layout": layout}, 560)


def _name(role: str) -> str:
    return role.replace("_", " ")


def _by_layer(findings: Found) -> list[Block]:
    if not findings.like.cosines:
        return []
    layers = list(range(len(findings.like.cosines)))
    data = line("cosine of the axes", layers, findings.like.cosines, NEAR)
    if not all(map(isnan, findings.like.ceiling)):
        most = {"type": "scatter", "mode": "lines", "name": "at most, were they the same", "x": layers}
        values = [None if isnan(c) else c for c in findings.like.ceiling]
        data.append({**most, "y": values, "line": {"color": SOFT, "width": 1.5, "dash": "dash"}})
    marker = {"xref": "x", "yref": "paper", "x0": findings.layers[1], "x1": findings.layers[1], "y0": 0, "y1": 1}
    layout = {
        "xaxis": axis("layer"),
        "yaxis": axis("cosine", rangemode="tozero"),
        "shapes": [{"type": "line", **marker, "line": {"color": FAR, "width": 1, "dash": "dot"}}],
    }
    text = (
        "The band: 95%, the questions of the base model's map drawn anew. Few replies make an axis noisy: the dashed line is "
        "what two measurements of one axis would show, given the reliability of both. Dotted: the layer that is read."
    )
    return [Block("Do the axes point the same way?", text, {"data": data, "layout": layout}, 380)]


def _people(findings: Found, rows: Sequence[Mapping[str, Any]]) -> list[Block]:
    if not findings.shares or not findings.trends:
        text = "Left out: a direction of one shape cannot be added to a residual stream of another."
        return [Block("Whose words does the steered base model find?", text)]
    names = list(findings.shares)
    examples = {
        (n, kind): f"<br><i>{wrapped(r['opening'])}</i> {wrapped(r['text'])}"
        for n in names
        for kind in PEOPLE
        if (r := next((r for r in rows if r["condition"] == n and r["kind"] == kind), None))
    }
    figure = stacked(names, PEOPLE, findings.shares, examples, "steering, from away to towards the Assistant", 460)
    how = "by their words alone" if findings.judge == "rules" else f"by {findings.judge}"
    text = (
        f"{findings.names[1]} goes on with openings such as “My job is to”, steered along the axis of {findings.names[0]}; "
        f"sorted {how}. Point at a part for its share and a completion."
    )
    table = [[kind, *(f"{findings.shares[n][kind]:.0%}" for n in names), str(findings.trends[kind])] for kind in PEOPLE]
    head = ["people", *names, "rank correlation with α"]
    caption = "Shares with 95% intervals (Wilson); correlations with intervals over openings."
    return [
        Block(
            "Whose words does the steered base model find?", text, {"data": figure.data, "layout": figure.layout}, 460
        ),
        Block("People in figures", caption, head=head, rows=table),
    ]


def _table(findings: Found) -> Block:
    pair, cosine, like = findings.pair, _cosine(findings), findings.like
    rows = [
        ["roles that both have", str(pair.shared), ""],
        ["places on the axis, correlation", str(pair.axis), ""],
        ["places on the axis, rank correlation", str(pair.ranking), ""],
        ["PC1 loadings, correlation", str(pair.pc1), "above 0.92 between any two of three chat models"],
        ["correlation that maps this noisy show at most", _known(findings.ceiling), ""],
        ["places' correlation with a second such map of the base", _known(like.again), ""],
    ]
    if cosine:
        rows.append(["cosine of the axes", str(cosine), "axes very similar"])
        rows.append(["cosine that axes this noisy show at most", _known(like.ceiling[findings.layers[1]]), ""])
    text = "Correlations with 95% intervals over roles."
    return Block("Likeness in figures", text, head=["what", "here", "the study"], rows=rows)
