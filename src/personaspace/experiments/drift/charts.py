"""The figures and tables of an experiment on drift, as a page takes them; it knows nothing of how they were found."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from personaspace.experiments.drift.findings import Course, Ordinary, ending
from personaspace.experiments.drift.messages import PREDICTORS, Cluster, Prediction
from personaspace.experiments.kit.trials import PLAIN
from personaspace.report.charts import COLOURS, axis, dots, line
from personaspace.report.page import FAR, NEAR, SOFT, Block
from personaspace.space import PersonaSpace
from personaspace.stats.intervals import Estimate

WORDS = {"nature": "the AI's nature"}
"""A domain in words, where its name alone does not say it."""
STUDY_R2 = (0.53, 0.77)
STD = "in the default's standard deviations"
LONGEST = 140
"""Characters of a message that stands as an example."""
ZERO = {"zeroline": True, "zerolinecolor": SOFT, "zerolinewidth": 1.5}


def word(domain: str) -> str:
    """A domain in words."""
    return WORDS.get(domain, domain)


def _colours(names: Sequence[str]) -> dict[str, str]:
    """Plain in the far end's colour, what is done to the model in the others."""
    others = [NEAR, *COLOURS[2:]]
    return {n: FAR if n == PLAIN.name else others[(k - 1) % len(others)] for k, n in enumerate(names)}


def course_blocks(
    space: PersonaSpace, courses: Mapping[str, Mapping[str, Course]], names: Sequence[str]
) -> list[Block]:
    """The courses turn by turn, as the plain model reads them and as they went on, and how far they drift."""
    colours, conditioned = _colours(names), [n for n in names if n != PLAIN.name]
    turns = len(next(iter(courses.values()))[PLAIN.name].read)
    read = {d: [t for n in names for t in _line(n, by[n].read, colours[n])] for d, by in courses.items()}
    went = {
        d: [
            t
            for n in conditioned
            for t in (
                *_line(f"{n}, read by the plain model", by[n].read, colours[n]),
                *_line(f"{n}, as it went on", by[n].went, SOFT, "dot"),
            )
        ]
        for d, by in courses.items()
    }
    blocks = [
        Block(
            "Turn by turn, read by the plain model",
            "Mean projection of the replies, with 95% intervals over conversations; up is Assistant. What was said under a cap "
            "or steering is read by the model without it, so that all lines can be compared. The blue band is where the "
            "default's replies to single questions lay: their mean, and a standard deviation to either side.",
            _panels(space, read),
            640,
        ),
        Block(
            "The same replies while they were made",
            "Dotted: with what was done to the model, so that a cap holds it up by construction. The words alone, read by the "
            "plain model, tell how far the replies themselves were held.",
            _panels(space, went),
            640,
        ),
        Block(
            "Drift over a conversation",
            f"Drift in {ending(turns)} less that in the first, {STD}. Above 0, it has moved away from the Assistant.",
            _by_domain(courses, colours, "drift"),
            360,
        ),
        Block(
            "How far away the whole conversation lies",
            f"The mean drift of all turns, {STD}. Above 0, the replies lie further from the Assistant than the default's to "
            "single questions.",
            _by_domain(courses, colours, "level"),
            360,
        ),
    ]
    return blocks if conditioned else [b for b in blocks if b.figure is not blocks[1].figure]


def _line(name: str, values: Sequence[Estimate], colour: str, dash: str = "solid") -> list[dict[str, Any]]:
    text = [f"{name}, turn {k}: {e}" for k, e in enumerate(values, 1)]
    return line(name, range(1, len(values) + 1), values, colour, dash=dash, text=text)


def _panels(space: PersonaSpace, traces: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """A panel a domain, two beside each other, all on the same scale, with the default's band."""
    middle, std = space.tensors["default_moments"][:, space.layer].tolist()
    layout: dict[str, Any] = {
        "grid": {"rows": math.ceil(len(traces) / 2), "columns": 2, "pattern": "independent", "xgap": 0.1, "ygap": 0.28},
        "annotations": [],
        "shapes": [],
        "margin": {"l": 56, "r": 16, "t": 70, "b": 48},
        "legend": {"orientation": "h", "x": 0, "y": 1.06, "yanchor": "bottom"},
    }
    data = []
    for k, (domain, domain_traces) in enumerate(traces.items()):
        suffix = str(k + 1) if k else ""
        for t in domain_traces:
            shown = not k and t.get("showlegend", True)
            data.append({**t, "xaxis": f"x{suffix}", "yaxis": f"y{suffix}", "showlegend": shown})
        layout[f"xaxis{suffix}"] = axis(
            "turn" if k >= len(traces) - 2 else "", dtick=1, **({"matches": "x"} if k else {})
        )
        layout[f"yaxis{suffix}"] = axis("" if k % 2 else "projection", **({"matches": "y"} if k else {}))
        title = {"text": f"<b>{word(domain)}</b>", "x": 0, "y": 1, "yanchor": "bottom", "showarrow": False}
        layout["annotations"].append({"xref": f"x{suffix} domain", "yref": f"y{suffix} domain", **title})
        band = {"type": "rect", "xref": f"x{suffix} domain", "yref": f"y{suffix}", "x0": 0, "x1": 1, "layer": "below"}
        band |= {"y0": middle - std, "y1": middle + std, "fillcolor": NEAR, "opacity": 0.12, "line": {"width": 0}}
        layout["shapes"].append(band)
    return {"data": data, "layout": layout}


def _by_domain(courses: Mapping[str, Mapping[str, Course]], colours: Mapping[str, str], column: str) -> dict[str, Any]:
    domains = [word(d) for d in courses]
    data = [dots(n, domains, [getattr(by[n], column) for by in courses.values()], c) for n, c in colours.items()]
    for trace in data:
        trace["offsetgroup"] = trace["name"]
    layout = {"scattermode": "group", "scattergap": 0.7, "xaxis": axis("", type="category")}
    return {"data": data, "layout": {**layout, "yaxis": axis("standard deviations", **ZERO)}}


def _sideways(names: Sequence[str], series: Mapping[str, tuple[Sequence[Estimate], str]], title: str) -> dict[str, Any]:
    """Estimates as dots beside their names, from the top down; series: values and colour by what they are of."""
    data = []
    for name, (values, colour) in list(series.items())[::-1]:
        trace = dots(name, names[::-1], values[::-1], colour, sideways=True)
        data.append({**trace, "offsetgroup": name, "orientation": "h"})
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "reversed"}
    layout = {"scattermode": "group", "legend": legend, "xaxis": axis(title, **ZERO)}
    return {"data": data, "layout": {**layout, "yaxis": axis("", type="category")}}


def message_blocks(prediction: Prediction | None, groups: Sequence[Cluster], vectors: np.ndarray | str) -> list[Block]:
    """What messages tell of the next reply, and their kinds; or why that is not known."""
    if prediction is None:
        why = f"{vectors}." if isinstance(vectors, str) else "There are too few conversations to tell."
        return [Block("Does the user's message tell where the next reply lies?", why)]
    chart = _sideways(
        PREDICTORS,
        {
            "the projection": ([prediction.projection[n] for n in PREDICTORS], NEAR),
            "its change since the turn before": ([prediction.change[n] for n in PREDICTORS], FAR),
        },
        "R² on conversations that the regression has not seen",
    )
    study = {"type": "rect", "xref": "x", "yref": "paper", "x0": STUDY_R2[0], "x1": STUDY_R2[1], "y0": 0, "y1": 1}
    chart["layout"]["shapes"] = [{**study, "fillcolor": SOFT, "opacity": 0.14, "line": {"width": 0}, "layer": "below"}]
    text = (
        f"Ridge regression on {prediction.replies} replies of {prediction.conversations} plain conversations, from the second "
        "turn on; 0 is what their mean alone would tell. Grey: the study's 0.53 to 0.77 for the message. Messages shuffled in "
        "their domain still tell which domain it is: only what the message tells beyond them is its own. The message less "
        f"the position before: {prediction.over_before:+.2f}; less the domain: {prediction.over_domain:+.2f}."
    )
    return [Block("Does the user's message tell where the next reply lies?", text, chart, 440), *_kinds(groups)]


def _kinds(groups: Sequence[Cluster]) -> list[Block]:
    names = [f"{k}. {c.words}" for k, c in enumerate(groups, 1)]
    series = {
        "change of the projection": ([c.change for c in groups], NEAR),
        "the same, less its domain's mean": ([c.beyond for c in groups], SOFT),
    }
    rows = [
        [
            name,
            f"{c.messages} in {c.conversations}",
            ", ".join(f"{word(d)} {n}" for d, n in c.domains.items()),
            f"{c.change:+.2f}",
            f"{c.beyond:+.2f}",
            " · ".join(f"“{textwrap.shorten(e, LONGEST, placeholder=' …')}”" for e in c.examples),
        ]
        for name, c in zip(names, groups, strict=True)
    ]
    raising, lowering = ([str(k) for k, c in enumerate(groups, 1) if c.change.direction() == way] for way in (1, -1))
    text = (
        "The users' messages in groups by their embeddings, named by the words that other groups have least: how far the "
        f"projection moves from the reply before to the reply after, {STD}; above 0 is towards the Assistant. Raise it, as far "
        f"as can be told: {', '.join(raising) or 'none'}. Lower it: {', '.join(lowering) or 'none'}."
    )
    head = ["typical words", "messages in conversations", "domains", "change", "less its domain's", "messages like it"]
    return [
        Block(
            "Which kinds of message move it?",
            text,
            _sideways(names, series, "change of the projection, standard deviations"),
            130 + 44 * len(groups),
        ),
        Block("The kinds of message", "From what raises the projection to what lowers it.", head=head, rows=rows),
    ]


def openings_block(courses: Mapping[str, Mapping[str, Course]]) -> Block:
    """What of the plain model's drift is the messages' own, and what their history's."""
    rows = [
        [
            word(d),
            f"{by[PLAIN.name].drift:+.2f}",
            f"{by[PLAIN.name].of_messages:+.2f}",
            f"{by[PLAIN.name].of_history:+.2f}",
        ]
        for d, by in courses.items()
    ]
    text = (
        "The same messages, each as the opening of a conversation of its own: how far replies to the last lie beyond the "
        "reply to the first is the messages' own; what the whole conversation drifts beyond that is its history's. Plain "
        f"model, {STD}."
    )
    head = ["domain", "drift", "of the messages alone", "of the history before them"]
    return Block("The message, or the history?", text, head=head, rows=rows)


def ordinary_block(ordinary: Ordinary) -> Block:
    """Where conversations start and lie beside ordinary talk."""
    rows = [[word(d), f"{ordinary.starts[d]:+.2f}", f"{ordinary.levels[d]:+.2f}"] for d in ordinary.starts]
    text = (
        f"Levels, {STD}. The space's default answered questions that make characters differ; replies to ordinary talk "
        f"lie {ordinary.place:+.2f} from it, with a deviation of {ordinary.deviation:.2f}. How much further away than "
        "these the plain conversations are:"
    )
    return Block("Beside ordinary talk", text, head=["domain", "in the first turn", "over all turns"], rows=rows)


def table(courses: Mapping[str, Mapping[str, Course]], names: Sequence[str]) -> Block:
    """The figures in numbers."""
    rows = [
        [word(d), n, f"{by[n].read[0]}", f"{by[n].read[-1]}", f"{by[n].drift:+.2f}", f"{by[n].level:+.2f}"]
        for d, by in courses.items()
        for n in names
    ]
    head = ["domain", "condition", "projection, first turn", "last turn", "drift", "mean drift"]
    text = f"As the plain model reads the replies, with 95% intervals over conversations; drift {STD}."
    return Block("In figures", text, head=head, rows=rows)
