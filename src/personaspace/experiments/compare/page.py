"""What a comparison of spaces found, in a sentence and as a page; it compares nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from personaspace.experiments.compare.findings import DIMENSIONS, MOVED, Pair, Places, aligned, shared_roles
from personaspace.report import words
from personaspace.report.charts import COLOURS, axis, chart, points
from personaspace.report.page import SOFT, Chart, Page
from personaspace.space import PersonaSpace
from personaspace.stats.forecast import KNOWN

MAP = (
    "The map of {second} turned onto that of {first} over {dimensions} components (Procrustes); {explained:.0f}% of its "
    "variance is explained. Lines join a role's two places; the {named} that lie furthest apart are named."
)
TABLE = (
    "Correlations with 95% intervals over roles; at most: what two maps this noisy of the same characters would show; noise "
    "taken out: the correlation on the axis with the errors of either taken out, but for those that maps from the same "
    "prompts share."
)
PLACES = "Places on the axis, in standard deviations over the roles that both have; positive is towards the Assistant."
DOUBTS = (
    "The order of the roles in {names} is not known (reliability under {known}): neither the ranking nor which roles moved "
    "says anything there."
)


def headline(pairs: Sequence[Pair]) -> str:
    """What was found, beside the published figure."""
    lowest = min(pairs, key=lambda p: p.pc1.value)
    subject = "The lowest correlation" if len(pairs) > 1 else "Correlation"
    # The ceiling is that of places on the axis, and says nothing of loadings on PC1.
    ceiling, clean = lowest.ceiling, lowest.without_noise
    most = "" if ceiling is None else f", at most {ceiling:.2f} for two maps this noisy of the same characters"
    less = "" if clean is None else f"; with the noise of both taken out {clean}"
    return (
        f"{subject} of the roles' PC1 loadings {lowest.pc1} between {lowest.first} and {lowest.second}. The study: above 0.92 "
        f"between any two of its three models. These two on the axis: {lowest.axis}{most}{less}. {doubts(pairs)}"
    ).strip()


def doubts(pairs: Sequence[Pair]) -> str:
    """Which orders are not known, and what follows; empty where all are."""
    names = list(dict.fromkeys(name for p in pairs for name in p.unknown))
    return DOUBTS.format(names=" and ".join(names), known=KNOWN) if names else ""


def write_comparison(path: str | Path, spaces: Sequence[tuple[str, PersonaSpace]], pairs: Sequence[Pair]) -> Path:
    """Draws the comparison as one HTML page, and returns its path."""
    names = [name for name, _ in spaces]
    layers = [f"{n} at {s.layer} of {s.tensors['axis'].shape[0]}, from {words.noun(s.reading)}" for n, s in spaces]
    page = Page(f"{names[0]} beside {' and '.join(names[1:])}", f"Each at its own layer: {'; '.join(layers)}.")
    first = pairs[0]
    page.figure("PC1 loadings", first.pc1, spec=".2f", study="> 0.92")
    most = f"{first.ceiling:.2f} is the most that maps this noisy would show" if first.ceiling else ""
    page.figure("places on the axis", first.axis, most, ".2f")
    if clean := first.without_noise:
        page.figure("noise taken out", clean, "places on the axis", ".2f")
    if first.unknown:
        for name in ("the ranking", "the same ends"):
            page.figure(name, "not known", f"the order in {' and '.join(first.unknown)} is not known")
    else:
        page.figure("the ranking", first.ranking, "Spearman's rank correlation", ".2f")
        page.figure(
            "the same ends", f"{100 * first.ends:.0f}%", "of the first tenth and the last", interval="no interval"
        )

    head = ["space", "read from", "layer", "axis", "order", "map", "in words"]
    text = f"{words.INTRODUCTION} {words.SOURCE}"
    page.section("How sure is each map?", text, head=head, rows=_sure(spaces))
    for second, space in spaces[1:]:
        drawing, text = _map(spaces[0], (second, space))
        page.section(f"{second} on the map of {names[0]}", text, drawing)
    cosines = [
        {
            "type": "scatter",
            "name": f"{p.first} and {p.second}",
            "y": p.axis_cosine,
            "line": {"color": COLOURS[k % len(COLOURS)]},
        }
        for k, p in enumerate(pairs)
        if p.axis_cosine
    ]
    if cosines:
        text = "Only of models of the same shape: elsewhere a cosine means nothing."
        drawing = chart(cosines, "layer", axis("cosine of the axes", range=[-1, 1]))
        page.section("Do the axes point the same way?", text, drawing)
    columns = {
        "pair": [f"{p.first} / {p.second}" for p in pairs],
        "shared roles": [str(p.shared) for p in pairs],
        "PC1 loadings": [f"{p.pc1}" for p in pairs],
        "on the axis": [f"{p.axis}" for p in pairs],
        "at most": ["" if p.ceiling is None else f"{p.ceiling:.2f}" for p in pairs],
        "noise taken out": ["" if p.without_noise is None else f"{p.without_noise}" for p in pairs],
        "ranking": ["not known" if p.unknown else f"{p.ranking}" for p in pairs],
        "same ends": ["not known" if p.unknown else f"{100 * p.ends:.0f}%" for p in pairs],
        "map left unexplained": [f"{p.disparity:.2f}" for p in pairs],
        "shuffled": [f"{p.shuffled:.2f}" for p in pairs],
    }
    page.section("In figures", TABLE, head=list(columns), rows=[*map(list, zip(*columns.values(), strict=True))])
    for p in pairs:
        title, moved = f"Moved most: {p.first} to {p.second}", p.moved
        if p.unknown:
            page.section(title, doubts([p]))
        else:
            rows = [[role, f"{a:+.2f}", f"{b:+.2f}", f"{b - a:+.2f}"] for role, a, b in moved]
            page.section(title, PLACES, head=["role", p.first, p.second, "moved"], rows=rows)
    return page.write(path, said=headline(pairs))


def _sure(spaces: Sequence[tuple[str, PersonaSpace]]) -> list[list[str]]:
    rows = []
    for name, space in spaces:
        for worth in (space.of(reading).worth() for reading in space.readings):
            three = words.reliabilities(worth)
            values = [f"{r.shown}{', not known' if r.known is False else ''}" for r in three]
            # Axis and order are told by their figures; the map's is a share of noise.
            meanings = {r.name: f"{r.meaning if r.name == 'map' else ''} {r.takes}".strip() for r in three}
            in_words = " ".join(f"{which.capitalize()}: {text}" for which, text in meanings.items() if text)
            rows.append([name, worth["reading"], str(worth["layer"]), *values, in_words])
    return rows


def _map(a: tuple[str, PersonaSpace], b: tuple[str, PersonaSpace]) -> tuple[Chart, str]:
    """The second's map turned onto the first's, and what stands above it."""
    (first, second), (here, turned) = (a[0], b[0]), (Places.of(a[1]), Places.of(b[1]))
    roles = shared_roles(here, turned, (first, second))
    x, y, disparity = aligned(here.at(roles)[1], turned.at(roles)[1])
    named = set(np.argsort(-np.linalg.norm(x[:, :2] - y[:, :2], axis=1))[:MOVED].tolist())
    between: dict[str, list[Any]] = {
        coordinate: [value for pair in zip(x[:, k], y[:, k], strict=True) for value in (*pair, None)]
        for k, coordinate in enumerate("xy")
    }
    look = {"line": {"color": SOFT, "width": 0.6}, "hoverinfo": "skip", "showlegend": False, "opacity": 0.5}
    data: list[dict[str, Any]] = [{"type": "scatter", "mode": "lines", **between, **look}]
    hover = [[f"{r}, {name}" for r in roles] for name in (first, second)]
    text = [r if k in named else "" for k, r in enumerate(roles)]
    data.append(points(first, x[:, 0].tolist(), x[:, 1].tolist(), hover[0], COLOURS[0], size=7))
    data.append(points(second, y[:, 0].tolist(), y[:, 1].tolist(), hover[1], COLOURS[1], size=7, text=text))
    drawing = chart(data, "PC1 of the first, up is Assistant", "PC2 of the first", 620, hovermode="closest")
    explained = 100 * (1 - disparity)
    return drawing, MAP.format(first=first, second=second, dimensions=DIMENSIONS, explained=explained, named=len(named))
