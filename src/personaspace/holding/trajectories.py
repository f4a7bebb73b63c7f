"""Draws what was read of conversations: trajectories side by side, and their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from personaspace.holding.monitor import AlertRule, TurnReading
from personaspace.report.page import FAR, NEAR, SOFT, Block, write_figures
from personaspace.space import PersonaSpace

COLOURS = (NEAR, FAR, "#4f9d69", "#9a6fc0", "#c79a2b", "#5aa7a7")


def write_trajectories(
    path: str | Path,
    space: PersonaSpace,
    conversations: Sequence[tuple[str, Sequence[TurnReading]]],
    rule: AlertRule | None = None,
) -> Path:
    """Several conversations in one page: projections by turn with the default's band and the alert's line, each turn's figures,
    and every token's projection.

    >>> (talk,), rule = ps.project("smollm2", "talk.json")
    >>> write_trajectories("talk.html", ps.PersonaSpace.load("smollm2"), [(talk.name, talk.turns)], rule)
    PosixPath('talk.html')
    """
    names = [name for name, _ in conversations]
    layout = {
        "xaxis": {"title": {"text": "assistant turn"}, "dtick": 1},
        "yaxis": {"title": {"text": "projection on the axis (up is Assistant)"}},
        "shapes": default_band(space, rule),
    }
    turns, tokens = [], []
    for k, (name, readings) in enumerate(conversations):
        colour = COLOURS[k % len(COLOURS)]
        turns.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": name,
                "x": list(range(1, len(readings) + 1)),
                "y": [r.projection for r in readings],
                "text": [
                    f"{name}, turn {i}: {r.projection:.1f}<br>near {', '.join(role for role, _ in r.nearest[:3])}"
                    for i, r in enumerate(readings, 1)
                ],
                "hoverinfo": "text",
                "line": {"color": colour, "width": 3},
                "marker": {"size": 9, "symbol": ["x" if r.alert else "circle" for r in readings]},
            }
        )
        token_values = [p for r in readings for p in r.each]
        line = {"color": colour, "width": 1.2}
        tokens.append({"type": "scatter", "mode": "lines", "name": name, "y": token_values, "line": line})
    directions = list(dict.fromkeys(name for _, readings in conversations for r in readings for name in r.along))
    blocks = [
        Block(
            "Turn by turn",
            "The band is the default's mean and one standard deviation; the dotted line is where the alert stands.",
            {"data": turns, "layout": layout},
            460,
        )
    ]
    blocks.append(
        Block(
            "Token by token",
            "Replies one after another; tokens spread wider than turns do.",
            {
                "data": tokens,
                "layout": {"xaxis": {"title": {"text": "token"}}, "yaxis": {"title": {"text": "projection"}}},
            },
        )
    )
    blocks += [_along(name, conversations) for name in directions]
    any_thoughts = any(r.thinking for _, readings in conversations for r in readings)
    thought_head = ["tokens of thoughts", "drift of thoughts"] if any_thoughts else []
    head = [
        "turn",
        "tokens",
        "projection",
        "drift",
        *thought_head,
        *directions,
        "nearest roles",
        "where it fell",
        "alert",
    ]
    for name, readings in conversations:
        rows = [
            [
                str(turn),
                str(r.tokens),
                f"{r.projection:.1f}",
                "" if r.drift is None else f"{r.drift:+.2f}",
                *(of_thoughts(r) if any_thoughts else ()),
                *along_cells(r, directions),
                ", ".join(f"{role} {cosine:.2f}" for role, cosine in r.nearest[:3]),
                "" if r.fell is None else f"{r.fell[0]}–{r.fell[1]}: {r.fell_text}",
                "alert" if r.alert else "",
            ]
            for turn, r in enumerate(readings, 1)
        ]
        blocks.append(Block(name, head=head, rows=rows))
    model = space.meta["model"]["id"]
    lead = f"Assistant turns of {model} at layer {space.layer}. Drift is in the default's standard deviations."
    return write_figures(path, " and ".join(names) if len(names) < 4 else f"{len(names)} conversations", lead, blocks)


def _along(name: str, conversations: Sequence[tuple[str, Sequence[TurnReading]]]) -> Block:
    """A further direction turn by turn: shifts, or projections where the space does not know how the default's replies lie."""
    shifts_known = all(r.along[name].shift is not None for _, readings in conversations for r in readings)
    lines = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": talk,
            "x": list(range(1, len(readings) + 1)),
            "y": [r.along[name].shift if shifts_known else r.along[name].projection for r in readings],
            "line": {"color": COLOURS[k % len(COLOURS)], "width": 2.5},
        }
        for k, (talk, readings) in enumerate(conversations)
    ]
    title = "above the default's mean, in its deviations" if shifts_known else "projection"
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": "assistant turn"}, "dtick": 1},
        "yaxis": {"title": {"text": title}, "zeroline": shifts_known},
    }
    return Block(
        f"Along {name}", "Up is towards what the direction is named after.", {"data": lines, "layout": layout}, 360
    )


def along_cells(reading: TurnReading, directions: Sequence[str]) -> list[str]:
    """A turn on further directions in a table: its shift, or with a `=` its projection where no shift is known."""
    places = [reading.along[name] for name in directions]
    return [f"={p.projection:.1f}" if p.shift is None else f"{p.shift:+.2f}" for p in places]


def of_thoughts(reading: TurnReading) -> tuple[str, str]:
    """A turn's thoughts in a table: how many tokens, and how far they have drifted; empty where it has none."""
    thinking = reading.thinking
    if thinking is None:
        return "", ""
    return str(thinking.tokens), "" if thinking.drift is None else f"{thinking.drift:+.2f}"


def default_band(space: PersonaSpace, rule: AlertRule | None = None) -> list[dict[str, Any]]:
    """The default's mean and one standard deviation, and where the alert stands, as shapes across a plot."""
    if not space.knows_default:
        return []
    mean, std = space.default_moments()
    across = {"xref": "paper", "x0": 0, "x1": 1}
    band = {"type": "rect", **across, "y0": mean - std, "y1": mean + std, "fillcolor": NEAR, "opacity": 0.12}
    shapes: list[dict[str, Any]] = [{**band, "line": {"width": 0}, "layer": "below"}]
    if rule:
        alert_level = mean - rule.threshold * std
        shapes.append(
            {"type": "line", **across, "y0": alert_level, "y1": alert_level, "line": {"color": SOFT, "dash": "dot"}}
        )
    return shapes
