"""The charts that pages are made of, as plotly takes them: shares stacked, estimates beside each other, lines, points, and what
stands across them. It knows nothing of what they show."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from personaspace.report.page import FAR, NEAR, SOFT, Chart
from personaspace.stats.intervals import Estimate

COLOURS = (NEAR, FAR, "#4f9d69", "#9a6fc0", "#c79a2b", "#5aa7a7", SOFT, "#b0577f", "#6f7fc0", "#7d9440")
"""Series' colours, in order; they hold on light and dark."""

LAST = SOFT
"""What is left over: unsorted, incoherent."""

PERCENT = {"tickformat": ".0%", "range": [-0.02, 1.02]}
"""An axis of shares."""
ZERO = {"zeroline": True, "zerolinecolor": SOFT, "zerolinewidth": 1.5}
"""An axis on which 0 is marked."""

Trace = dict[str, Any]


def wrapped(text: str, width: int = 70, most: int = 280) -> str:
    """A text in short lines, for a hover; what could be markup is taken out.

    >>> wrapped("I am <b>a ghost</b>, and I remember", width=20)
    'I am ‹b›a ghost‹/b›,<br>and I remember'
    """
    clean = " ".join(text.replace("<", "‹").replace(">", "›").split())[:most]
    return "<br>".join(textwrap.wrap(clean, width, break_long_words=False))


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis with its title."""
    return {"title": {"text": title}, **more}


def chart(
    data: Sequence[Trace], x: str | Mapping[str, Any], y: str | Mapping[str, Any], height: int = 420, **layout: Any
) -> Chart:
    """Traces on two axes, each a title or what `axis` makes; layout: the rest of it, as plotly has it."""
    axes = {"xaxis": axis(x) if isinstance(x, str) else x, "yaxis": axis(y) if isinstance(y, str) else y}
    return Chart(data, {**axes, **layout}, height)


def stacked(
    names: Sequence[str],
    kinds: Sequence[str],
    shares: Mapping[str, Mapping[str, Estimate]],
    examples: Mapping[tuple[str, str], str],
    title: str,
    height: int,
) -> Chart:
    """Shares of kinds as stacked bars, one bar a name; `examples` by (name, kind) are shown on hover. The last kind is what is
    left over, and stands hatched in grey."""
    data = [
        {
            "type": "bar",
            "name": kind,
            "x": list(names),
            "y": [shares[n][kind].value for n in names],
            "marker": {
                "color": colour,
                **({"pattern": {"shape": "/", "size": 6, "solidity": 0.35}} if colour == LAST else {}),
            },
            "text": [f"<b>{kind}</b>, {n}: {shares[n][kind]:.0%}" + examples.get((n, kind), "") for n in names],
            "textposition": "none",
            "hovertemplate": "%{text}<extra></extra>",
        }
        for kind, colour in zip(kinds, [*COLOURS[: len(kinds) - 1], LAST], strict=True)
    ]
    share = axis("share of replies", tickformat=".0%", range=[0, 1])
    return chart(data, axis(title, type="category"), share, height, barmode="stack", bargap=0.08)


def beside(
    names: Sequence[str],
    series: Mapping[str, Sequence[Estimate | None]],
    title: str,
    *,
    colours: Sequence[str] = COLOURS,
    percent: bool = False,
    sideways: bool = False,
    height: int = 360,
    of_names: str = "",
    of_values: Mapping[str, Any] | None = None,
    **layout: Any,
) -> Chart:
    """Estimates as dots with their intervals, side by side under each name (sideways: from the top down), a colour a series.

    series: the estimates by what they are of, as many as names; None where there is none. title, of_values: of
    the values' axis, of_names: the title of the other.
    """
    data = []
    for (name, values), colour in zip(series.items(), cycle(colours), strict=False):
        present = {n: e for n, e in zip(names, values, strict=True) if e}
        trace = dots(name, list(present), list(present.values()), colour, percent=percent, sideways=sideways)
        data.append({**trace, "offsetgroup": name, "orientation": "h" if sideways else "v"})
    values_axis = axis(title, **(PERCENT if percent else {}), **(of_values or {}))
    by_name = axis(of_names, type="category", **({"autorange": "reversed"} if sideways else {}))
    x, y = (values_axis, by_name) if sideways else (by_name, values_axis)
    return chart(data, x, y, height, **{"scattermode": "group", "scattergap": 0.6, **layout})


def line(
    name: str, x: Sequence[Any], y: Sequence[Estimate], colour: str, *, dash: str = "solid", text: Sequence[str] = ()
) -> list[Trace]:
    """Estimates as a line with the band of their intervals.

    >>> band, middle = line("drift", [1, 2], [Estimate(0.4, 0.3, 0.5, 20), Estimate(0.6, 0.4, 0.8, 20)], COLOURS[0])
    >>> middle["y"]
    [0.4, 0.6]
    """
    # There along the upper ends, back along the lower ones: one closed shape, which shares the line's place in the legend.
    band = {
        "type": "scatter",
        "mode": "lines",
        "x": [*x, *reversed(x)],
        "y": [*(e.high for e in y), *(e.low for e in reversed(y))],
        "fill": "toself",
        "fillcolor": colour,
        "opacity": 0.14,
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": name,
    }
    drawn = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "legendgroup": name,
        "x": list(x),
        "y": [e.value for e in y],
        "line": {"color": colour, "width": 2.5, "dash": dash},
        "marker": {"size": 7},
        "text": list(text) or [f"{name}: {e}" for e in y],
        "hovertemplate": "%{text}<extra></extra>",
    }
    return [band, drawn]


def dots(
    name: str, x: Sequence[Any], y: Sequence[Estimate], colour: str, *, percent: bool = False, sideways: bool = False
) -> Trace:
    """Estimates as dots with the bars of their intervals."""
    values, places = [e.value for e in y], list(x)
    error = {
        "type": "data",
        "symmetric": False,
        "array": [e.high - e.value for e in y],
        "arrayminus": [e.value - e.low for e in y],
        "thickness": 1.4,
        "width": 4,
    }
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": values if sideways else places,
        "y": places if sideways else values,
        "error_x" if sideways else "error_y": error,
        "marker": {"color": colour, "size": 10},
        "text": [f"{name}, {p}: {e:{'.0%' if percent else '.2f'}}" for p, e in zip(places, y, strict=True)],
        "hovertemplate": "%{text}<extra></extra>",
    }


def points(
    name: str, x: Sequence[float], y: Sequence[float], hover: Sequence[str], colour: str, *, size: int = 8, **more: Any
) -> Trace:
    """Single points, each with what is shown when it is pointed at; `text` among the rest names them on the chart."""
    labelled = {"mode": "markers+text", "textposition": "top center"} if "text" in more else {"mode": "markers"}
    marker = {"color": colour, "size": size, "opacity": 0.8}
    shown = {"name": name, "x": list(x), "y": list(y), "hovertext": list(hover), "hoverinfo": "text", "marker": marker}
    return {"type": "scatter", **labelled, **shown, **more}


def across(
    *, x: float | None = None, y: float | None = None, colour: str = SOFT, dash: str = "dot", width: float = 1
) -> Trace:
    """A straight line from end to end of a chart: upright at x, or level at y."""
    return {"type": "line", **_across(x, x, y, y), "line": {"color": colour, "width": width, "dash": dash}}


def band(
    *, x: tuple[float, float] | None = None, y: tuple[float, float] | None = None, colour: str = SOFT, **more: Any
) -> Trace:
    """A stripe from end to end of a chart, below what is drawn: between two x, or two y."""
    place = _across(*(x or (None, None)), *(y or (None, None)))
    shade = {"fillcolor": colour, "opacity": 0.15, "line": {"width": 0}, "layer": "below"}
    return {"type": "rect", **place, **shade, **more}


def _across(x0: float | None, x1: float | None, y0: float | None, y1: float | None) -> Trace:
    level = {"xref": "paper", "x0": 0, "x1": 1} if x0 is None else {"xref": "x", "x0": x0, "x1": x1}
    upright = {"yref": "paper", "y0": 0, "y1": 1} if y0 is None else {"yref": "y", "y0": y0, "y1": y1}
    return level | upright
