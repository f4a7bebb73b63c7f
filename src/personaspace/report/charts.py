"""Figures that experiments have in common, as plotly takes them; it knows nothing of what they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from personaspace.report.page import FAR, NEAR, SOFT
from personaspace.stats.intervals import Estimate

COLOURS = (NEAR, FAR, "#4f9d69", "#9a6fc0", "#c79a2b", "#5aa7a7", SOFT, "#b0577f", "#6f7fc0", "#7d9440")
"""Series' colours, in order; they hold on light and dark."""

LAST = SOFT
"""What is left over: unsorted, incoherent."""


def wrapped(text: str, width: int = 70, most: int = 280) -> str:
    """A text in short lines, for a hover; what could be markup is taken out."""
    clean = " ".join(text.replace("<", "‹").replace(">", "›").split())[:most]
    lines, line = [], ""
    for word in clean.split():
        if len(line) + len(word) > width:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    return "<br>".join([*lines, line])


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis with its title."""
    return {"title": {"text": title}, **more}


def stacked(
    names: Sequence[str],
    kinds: Sequence[str],
    shares: Mapping[str, Mapping[str, Estimate]],
    examples: Mapping[tuple[str, str], str],
    title: str,
) -> dict[str, Any]:
    """Shares of kinds as stacked bars, one bar a name; `examples` by (name, kind) are shown on hover. The last kind is what is
    left over, and stands hatched in grey."""
    colours = [*COLOURS[: len(kinds) - 1], LAST]
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
        for kind, colour in zip(kinds, colours, strict=True)
    ]
    layout = {
        "barmode": "stack",
        "bargap": 0.08,
        "xaxis": axis(title, type="category"),
        "yaxis": axis("share of replies", tickformat=".0%", range=[0, 1]),
    }
    return {"data": data, "layout": layout}


def line(
    name: str, x: Sequence[Any], y: Sequence[Estimate], colour: str, *, dash: str = "solid", text: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Estimates as a line with the band of their intervals."""
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
) -> dict[str, Any]:
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
