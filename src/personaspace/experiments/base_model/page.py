"""How a base model's axis and its completions are told and drawn; it knows nothing of how they were found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan, nan
from typing import Any

from personaspace.experiments.base_model.axis import Likeness
from personaspace.experiments.base_model.people import HELPING, PEOPLE, SPIRITUAL
from personaspace.experiments.compare.findings import Pair
from personaspace.experiments.kit.beside import beside_in_words, tell_beside
from personaspace.experiments.kit.results import Result
from personaspace.holding.controls import BesideControls
from personaspace.report.charts import across, axis, chart, line, points, stacked, wrapped
from personaspace.report.page import EXACT, FAR, NEAR, SOFT, Chart, Page
from personaspace.stats.intervals import Estimate

NAMED = 6
"""Roles that are named at either end, and of those that moved most."""

LEAD = (
    "The axis of {base}, taken by the same roles and questions in a plain transcript (layer {base_layer}), beside that of "
    "{ours} (layer {layer})."
)
STANDIN_LEAD = " No base model was given: the chat model without its template stands in for one everywhere below."
STANDIN = "This only says what is left of the axis without the chat template, not what was there before post-training. "
STUDY = (
    "The study: a base model's axis is very similar to its instruct model's, and steering towards the Assistant makes "
    "completions therapists, consultants and coaches, and fewer spiritual or religious people."
)
ROLES = (
    "Each role's projection on each model's own axis, in standard deviations over the roles; up and right is the Assistant. "
    "Correlation {pair.axis}, by rank {pair.ranking}; named are the ends and those that moved most."
)
COSINES = (
    "The band: 95%, the questions of the base model's map drawn anew. Few replies make an axis noisy: the dashed line is what "
    "two measurements of one axis would show, given the reliability of both. Dotted: the layer that is read."
)
COMPLETIONS = (
    "{base} goes on with openings such as “My job is to”, steered along the axis of {ours}; sorted {how}. Point at a part for "
    "its share and a completion."
)
NOT_STEERED = "Left out: a direction of one shape cannot be added to a residual stream of another."
PEOPLE_TITLE = "Whose words does the steered base model find?"
PEOPLE_TABLE = "Shares with 95% intervals (Wilson); correlations with intervals over openings."
CORRELATION = "rank correlation with α"
BESIDE = "At the strengths, and of the openings' first completions, that were asked along all of them."
BY_LOT = "; with a role in the Assistant's place, under {:.2f} for 95% of the roles"
TOO_FEW = "not known: too few replies a role to halve them"


@dataclass(frozen=True)
class BaseModelFindings:
    """What the page tells. names: of the space's model and of the base; standin: whether the base is the same model without
    its template; layers: the two that are compared; pair, like: the likeness of the maps; ceiling: the correlation of roles'
    places that maps this noisy would show at most; places: roles' places on both, in standard deviations; shares, trends: of
    kinds of people, where the base was steered; judge: who told them apart; beside: trends beside those along random
    directions; by_lot: see `axis.by_lot`."""

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
    beside: Mapping[str, BesideControls] = field(default_factory=dict)
    by_lot: float = nan

    @property
    def cosine(self) -> Estimate | None:
        """Of the two axes at the base's layer, where their shapes are the same."""
        return self.like.cosines[self.layers[1]] if self.like.cosines else None

    @property
    def axis_ceiling(self) -> float | None:
        """What that cosine would be at most."""
        return self.like.ceiling[self.layers[1]] if self.like.ceiling else None


def page(findings: BaseModelFindings, rows: Sequence[Mapping[str, Any]]) -> Result:
    """The result: roles on both axes, the axes' cosines, the people in the completions."""
    (ours, base), pair, like = findings.names, findings.pair, findings.like
    lead = LEAD.format(base=base, ours=ours, layer=findings.layers[0], base_layer=findings.layers[1])
    result_page = Page("Is the axis there before post-training?", lead + (STANDIN_LEAD if findings.standin else ""))
    _figures(result_page, findings)
    result_page.section("Roles on both axes", ROLES.format(pair=pair), _scatter(findings))
    if like.cosines:
        result_page.section("Do the axes point the same way?", COSINES, _by_layer(findings, like.cosines))
    if findings.shares and findings.trends:
        names, shares, trends = list(findings.shares), findings.shares, findings.trends
        examples: dict[tuple[str, str], str] = {}
        for r in rows:
            hover = f"<br><i>{wrapped(r['opening'] or '')}</i> {wrapped(r['text'] or '')}"
            examples.setdefault((r["condition"], r["kind"]), hover)
        how = "by their words alone" if findings.judge == "rules" else f"by {findings.judge}"
        drawing = stacked(names, PEOPLE, shares, examples, "steering, from away to towards the Assistant", 460)
        result_page.section(PEOPLE_TITLE, COMPLETIONS.format(base=base, ours=ours, how=how), drawing)
        table = [[kind, *(f"{shares[n][kind]:.0%}" for n in names), f"{trends[kind]}"] for kind in PEOPLE]
        head = ["people", *names, "rank correlation with α"]
        result_page.section("People in figures", PEOPLE_TABLE, head=head, rows=table)
        tell_beside(result_page, findings.beside, CORRELATION, BESIDE)
    else:
        result_page.section(PEOPLE_TITLE, NOT_STEERED)
    table = [
        ["roles that both have", str(pair.shared), ""],
        ["places on the axis, correlation", f"{pair.axis}", ""],
        ["places on the axis, rank correlation", f"{pair.ranking}", ""],
        ["PC1 loadings, correlation", f"{pair.pc1}", "above 0.92 between any two of three chat models"],
        ["correlation that maps this noisy show at most", _known(findings.ceiling), ""],
        ["places' correlation with a second such map of the base", _known(like.again), ""],
    ]
    if findings.cosine:
        table.append(["cosine of the axes", f"{findings.cosine}", "axes very similar"])
        table.append(["cosine that axes this noisy show at most", _known(findings.axis_ceiling), ""])
        table.append(["cosine that 95% of roles in the Assistant's place stay under", _known(findings.by_lot), ""])
    text = "Correlations with 95% intervals over roles."
    result_page.section("Likeness in figures", text, head=["what", "here", "the study"], rows=table)
    figures = {
        "standin": findings.standin,
        "layers": findings.layers,
        "on_axis": pair.axis,
        "ranking": pair.ranking,
        "pc1": pair.pc1,
        "shared": pair.shared,
        "ceiling": findings.ceiling,
        "base_repeats": like.again,
        "axis_cosine": findings.cosine,
        "axis_ceiling": findings.axis_ceiling,
        "axis_cosine_by_layer": like.cosines,
        "shares": findings.shares,
        "trends": findings.trends,
        "beside": findings.beside,
        "axis_cosine_by_lot": findings.by_lot,
        "judge": findings.judge,
    }
    return Result(result_page, _headline(findings), figures, rows)


def _known(x: float | None) -> str:
    return TOO_FEW if x is None or isnan(x) else f"{x:.2f}"


def _most(text: str, ceiling: float | None) -> str:
    """A clause on what noise would let be seen at most, where that is known."""
    return "" if ceiling is None or isnan(ceiling) else text.format(ceiling)


def _headline(findings: BaseModelFindings) -> str:
    (ours, base), pair, cosine = findings.names, findings.pair, findings.cosine
    most = _most(", where maps this noisy would show {:.2f} at most", findings.ceiling)
    sentence = f"The places of {pair.shared} roles on the two axes correlate {pair.axis}{most}; "
    if cosine:
        sentence += f"the axes' cosine is {cosine}{_most(', of at most {:.2f}', findings.axis_ceiling)}"
        sentence += f"{_most(BY_LOT, findings.by_lot)}. "
    else:
        sentence += "the models' shapes differ, so that their axes have no cosine. "
    steering = f"{base} is not the base of {ours}, whose shape it does not have, and was not steered."
    if findings.trends:
        effects = {1: "more of them", -1: "fewer of them", 0: "no effect that can be told from none"}
        trends = [(kind, findings.trends[kind]) for kind in (HELPING, SPIRITUAL)]
        parts = "; ".join(f"{kind} {e} ({effects[e.direction()]})" for kind, e in trends)
        steering = f"Rank correlation of steering towards the Assistant with completions' people: {parts}. "
        steering += beside_in_words(
            findings.beside, CORRELATION, [f"steering, {kind}" for kind in (HELPING, SPIRITUAL)]
        )
    return f"{STANDIN if findings.standin else ''}{sentence}{steering} {STUDY}"


def _figures(result_page: Page, findings: BaseModelFindings) -> None:
    pair, cosine = findings.pair, findings.cosine

    most = _most("; at most {:.2f} for maps this noisy", findings.ceiling)
    result_page.figure("roles on the two axes", pair.axis, f"correlation{most}", study="very similar axes")
    if cosine:
        result_page.figure("cosine of the axes", cosine, _most("at most {:.2f}", findings.axis_ceiling))
    else:
        result_page.figure("the ranking", pair.ranking, "rank correlation")
    if findings.trends:
        for kind in (HELPING, SPIRITUAL):
            study = {HELPING: "more of them", SPIRITUAL: "fewer of them"}[kind]
            result_page.figure(kind, findings.trends[kind], "rank correlation with α", study=study)
    else:
        result_page.figure("PC1 loadings", pair.pc1, "correlation", study="> 0.92, between chat models")
        result_page.figure("roles", str(pair.shared), "that both have", interval=EXACT)


def _scatter(findings: BaseModelFindings) -> Chart:
    places = findings.places
    order = sorted(places, key=lambda r: places[r][0])
    moved = sorted(places, key=lambda r: -abs(places[r][0] - places[r][1]))[:NAMED]
    named = {*order[:NAMED], *order[-NAMED:], *moved}
    x, y = ([place[k] for place in places.values()] for k in (0, 1))
    names = [r.replace("_", " ") for r in places]
    hover = [f"{name}: {a:+.2f}, {b:+.2f}" for name, a, b in zip(names, x, y, strict=True)]
    text = [name if r in named else "" for r, name in zip(places, names, strict=True)]
    ends = [min(*x, *y), max(*x, *y)]
    dotted = {"color": SOFT, "width": 1, "dash": "dot"}
    diagonal = {"type": "scatter", "mode": "lines", "x": ends, "y": ends, "line": dotted, "hoverinfo": "skip"}
    roles = points("roles", x, y, hover, NEAR, text=text, textfont={"size": 11})
    axes = [f"{name}, layer {layer}" for name, layer in zip(findings.names, findings.layers, strict=True)]
    return chart([diagonal, roles], axes[0], axes[1], 560, showlegend=False, hovermode="closest")


def _by_layer(findings: BaseModelFindings, cosines: Sequence[Estimate]) -> Chart:
    layers, ceiling = list(range(len(cosines))), findings.like.ceiling
    data = line("cosine of the axes", layers, cosines, NEAR)
    if not all(map(isnan, ceiling)):
        most = {"type": "scatter", "mode": "lines", "name": "at most, were they the same", "x": layers}
        values = [None if isnan(c) else c for c in ceiling]
        data.append({**most, "y": values, "line": {"color": SOFT, "width": 1.5, "dash": "dash"}})
    layer_read = across(x=findings.layers[1], colour=FAR)
    return chart(data, "layer", axis("cosine", rangemode="tozero"), 380, shapes=[layer_read])
