"""What a comparison of spaces found, in a sentence and as a page; it compares nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from personaspace.experiments.compare.findings import DIMENSIONS, MOVED, Pair, Places, aligned, shared_roles
from personaspace.report import words
from personaspace.report.charts import COLOURS, axis
from personaspace.report.page import SOFT, Block, Figure, write_figures
from personaspace.space import PersonaSpace
from personaspace.stats.forecast import KNOWN


def headline(pairs: Sequence[Pair]) -> str:
    """What was found, beside the published figure."""
    lowest = min(pairs, key=lambda p: p.pc1.value)
    sentence = f"correlation of the roles' PC1 loadings {lowest.pc1} between {lowest.first} and {lowest.second}"
    if len(pairs) > 1:
        sentence = f"the lowest {sentence}"
    # The ceiling is that of places on the axis, and says nothing of loadings on PC1.
    most = (
        ""
        if lowest.ceiling is None
        else f", at most {lowest.ceiling:.2f} for two maps this noisy of the same characters"
    )
    clean = "" if lowest.without_noise is None else f"; with the noise of both taken out {lowest.without_noise}"
    return (
        f"{sentence[0].upper()}{sentence[1:]}. The study: above 0.92 between any two of its three models. "
        f"These two on the axis: {lowest.axis}{most}{clean}." + (f" {doubt}" if (doubt := doubts(pairs)) else "")
    )


def doubts(pairs: Sequence[Pair]) -> str:
    """Which orders are not known, and what follows; empty where all are."""
    names = list(dict.fromkeys(name for p in pairs for name in p.unknown))
    if not names:
        return ""
    return (
        f"The order of the roles in {' and '.join(names)} is not known (reliability under {KNOWN}): neither the ranking nor "
        "which roles moved says anything there."
    )


def write_comparison(path: str | Path, spaces: Sequence[tuple[str, PersonaSpace]], pairs: Sequence[Pair]) -> Path:
    """Draws the comparison as one HTML page, and returns its path."""
    names = [name for name, _ in spaces]
    layers = [f"{n} at {s.layer} of {s.tensors['axis'].shape[0]}, from {words.noun(s.reading)}" for n, s in spaces]
    lead = f"Each at its own layer: {'; '.join(layers)}."
    blocks = [_sure(spaces), *(_map(spaces, names[0], second, space) for second, space in spaces[1:])]
    if cosines := _cosines(pairs):
        blocks.append(cosines)
    blocks += [_table(pairs), *(_moved(p) for p in pairs)]
    first = pairs[0]
    key = [
        Figure(
            "PC1 loadings",
            f"{first.pc1.value:.2f}",
            f"95%: {first.pc1.low:.2f} to {first.pc1.high:.2f}; the study: > 0.92",
        ),
        Figure(
            "places on the axis",
            f"{first.axis.value:.2f}",
            f"95%: {first.axis.low:.2f} to {first.axis.high:.2f}"
            + (f"; {first.ceiling:.2f} is the most that maps this noisy would show" if first.ceiling else ""),
        ),
        *(
            [
                Figure(
                    "noise taken out",
                    f"{first.without_noise.value:.2f}",
                    f"places on the axis; {first.without_noise.span('.2f')}",
                )
            ]
            if first.without_noise
            else []
        ),
        Figure("the ranking", f"{first.ranking.value:.2f}", "Spearman's rank correlation"),
        Figure("the same ends", f"{100 * first.ends:.0f}%", "of the first tenth and the last"),
    ]
    if first.unknown:
        note = f"the order in {' and '.join(first.unknown)} is not known"
        key[-2:] = [Figure(figure.name, "not known", note) for figure in key[-2:]]
    title = f"{names[0]} beside {' and '.join(names[1:])}"
    return write_figures(path, title, lead, blocks, said=headline(pairs), key=key)


def _sure(spaces: Sequence[tuple[str, PersonaSpace]]) -> Block:
    rows = []
    for name, space in spaces:
        for worth in (space.of(reading).worth() for reading in space.readings):
            three = words.reliabilities(worth)
            values = [f"{r.shown}{', not known' if r.known is False else ''}" for r in three]
            # Axis and order are told by their figures; the map's is a share of noise.
            meanings = [f"{r.meaning if r.name == 'map' else ''} {r.takes}".strip() for r in three]
            in_words = " ".join(
                f"{r.name.capitalize()}: {text}" for r, text in zip(three, meanings, strict=True) if text
            )
            rows.append([name, worth["reading"], str(worth["layer"]), *values, in_words])
    return Block(
        "How sure is each map?",
        f"{words.INTRODUCTION} {words.SOURCE}",
        head=["space", "read from", "layer", "axis", "order", "map", "in words"],
        rows=rows,
    )


def _map(spaces: Sequence[tuple[str, PersonaSpace]], first: str, second: str, second_space: PersonaSpace) -> Block:
    here, second_places = Places.of(spaces[0][1]), Places.of(second_space)
    roles = shared_roles(here, second_places, (first, second))
    x, y, disparity = aligned(here.at(roles)[1], second_places.at(roles)[1])
    far = np.linalg.norm(x[:, :2] - y[:, :2], axis=1)
    named = set(np.argsort(-far)[:MOVED].tolist())
    between: dict[str, list[Any]] = {"x": [], "y": []}
    for a, b in zip(x, y, strict=True):
        between["x"] += [a[0], b[0], None]
        between["y"] += [a[1], b[1], None]
    lines = {"type": "scatter", "mode": "lines", **between, "line": {"color": SOFT, "width": 0.6}, "hoverinfo": "skip"}
    data: list[dict[str, Any]] = [{**lines, "showlegend": False, "opacity": 0.5}]
    for places, name, colour in ((x, first, COLOURS[0]), (y, second, COLOURS[1])):
        data.append(
            {
                "type": "scatter",
                "mode": "markers+text" if places is y else "markers",
                "name": name,
                "x": places[:, 0].tolist(),
                "y": places[:, 1].tolist(),
                "text": [r if places is y and k in named else "" for k, r in enumerate(roles)],
                "textposition": "top center",
                "hovertext": [f"{r}, {name}" for r in roles],
                "hoverinfo": "text",
                "marker": {"color": colour, "size": 7, "opacity": 0.8},
            }
        )
    layout = {
        "xaxis": axis("PC1 of the first, up is Assistant"),
        "yaxis": axis("PC2 of the first"),
        "hovermode": "closest",
    }
    text = (
        f"The map of {second} turned onto that of {first} over {DIMENSIONS} components (Procrustes); "
        f"{100 * (1 - disparity):.0f}% of its variance is explained. Lines join a role's two places; the {len(named)} that lie "
        "furthest apart are named."
    )
    return Block(f"{second} on the map of {first}", text, {"data": data, "layout": layout}, 620)


def _cosines(pairs: Sequence[Pair]) -> Block | None:
    data = [
        {
            "type": "scatter",
            "name": f"{p.first} and {p.second}",
            "y": p.axis_cosine,
            "line": {"color": COLOURS[k % len(COLOURS)]},
        }
        for k, p in enumerate(pairs)
        if p.axis_cosine
    ]
    layout = {"xaxis": axis("layer"), "yaxis": axis("cosine of the axes", range=[-1, 1])}
    text = "Only of models of the same shape: elsewhere a cosine means nothing."
    return Block("Do the axes point the same way?", text, {"data": data, "layout": layout}) if data else None


def _table(pairs: Sequence[Pair]) -> Block:
    head = [
        "pair",
        "shared roles",
        "PC1 loadings",
        "on the axis",
        "at most",
        "noise taken out",
        "ranking",
        "same ends",
        "map left unexplained",
        "shuffled",
    ]
    rows = [
        [
            f"{p.first} / {p.second}",
            str(p.shared),
            str(p.pc1),
            str(p.axis),
            "" if p.ceiling is None else f"{p.ceiling:.2f}",
            "" if p.without_noise is None else str(p.without_noise),
            *(("not known", "not known") if p.unknown else (str(p.ranking), f"{100 * p.ends:.0f}%")),
            f"{p.disparity:.2f}",
            f"{p.shuffled:.2f}",
        ]
        for p in pairs
    ]
    return Block(
        "In figures",
        "Correlations with 95% intervals over roles; at most: what two maps this noisy of the same characters would show; "
        "noise taken out: the correlation on the axis with the errors of either taken out, but for those that maps from the "
        "same prompts share.",
        head=head,
        rows=rows,
    )


def _moved(p: Pair) -> Block:
    if p.unknown:
        return Block(f"Moved most: {p.first} to {p.second}", doubts([p]))
    rows = [[role, f"{a:+.2f}", f"{b:+.2f}", f"{b - a:+.2f}"] for role, a, b in p.moved]
    text = (
        "Places on the axis, in standard deviations over the roles that both have; positive is towards the Assistant."
    )
    return Block(f"Moved most: {p.first} to {p.second}", text, head=["role", p.first, p.second, "moved"], rows=rows)
