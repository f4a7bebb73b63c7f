"""Writes a space as one HTML page that works with the network off; it computes nothing that the space does not hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from personaspace.catalog import DEFAULT
from personaspace.places import write_whole
from personaspace.space import PersonaSpace

_FOLDER = Path(__file__).parent


def write_report(space: PersonaSpace, path: str | Path) -> Path:
    """Writes the page, whole or not at all, and returns its path."""
    path = Path(path)
    write_whole(path, render(space).encode())
    return path


def render(space: PersonaSpace) -> str:
    """The page as HTML text, the plotting library inside it."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, trim_blocks=True)
    summary = space.summary()
    # "</" inside a script would end it.
    data = json.dumps(page_data(space, summary)).replace("</", "<\\/")
    return environment.get_template("page.html").render(
        s=summary,
        meta=space.meta,
        rows=comparison(summary),
        data=data,
        plotly=get_plotlyjs(),
        style=(_FOLDER / "page.css").read_text(encoding="utf-8"),
        script=(_FOLDER / "page.js").read_text(encoding="utf-8"),
        minutes=round(space.meta.get("seconds", {}).get("responses", 0) / 60, 1),
    )


def page_data(space: PersonaSpace, summary: dict[str, Any]) -> dict[str, Any]:
    """What the page's figures and search are drawn from; None for a figure that the space does not hold."""
    layer, tensors = space.layer, space.tensors
    centred, mean = space.centred()
    directions = space.components_at()[0][:3]
    places = (centred @ directions.T).tolist()
    axis_mean = float(mean @ space.axis_at())
    by_name = {r["name"]: r for r in summary["roles"]}
    descriptions, samples = space.meta.get("descriptions", {}), space.meta.get("samples", {})
    roles = [
        {
            **by_name[name],
            "place": places[i] + [0.0] * (3 - len(places[i])),
            "description": descriptions.get(name, ""),
            "samples": samples.get(name, []),
            "similar": space.similar(name, 6),
        }
        for i, name in enumerate(space.roles)
    ]
    default = (space.tensors["default_vector"][layer] - mean) @ directions.T
    return {
        "roles": roles,
        "default": {
            "name": DEFAULT,
            "place": default.tolist() + [0.0] * (3 - len(default)),
            "projection": float(space.project(space.tensors["default_vector"])),
            "samples": samples.get(DEFAULT, []),
            "similar": space.nearest(space.tensors["default_vector"], 6, reading=space.reading),
        },
        "meanProjection": axis_mean,
        "variance": summary["variance_explained"][:30],
        "layers": {
            "chosen": layer,
            "cosine": space.axis_pc1() if "components" in tensors or space.meta.get("axis_pc1") else None,
            "reliability": _numbers(space.axis_reliability()) if "axis_split_half" in tensors else None,
            "separation": _numbers(tensors["separation"].tolist()) if "separation" in tensors else None,
        },
        "histogram": space.meta.get("histogram"),
    }


def _numbers(values: list[float]) -> list[float | None]:
    return [None if x != x else x for x in values]


def comparison(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What was measured, here, and in the study: the rows of the page's table."""
    published = summary["published"]
    names = [r["name"] for r in summary["roles"]]
    ends = published["components_for_70pct"]
    n = len(names)

    def ranks(wanted: list[str]) -> str:
        return ", ".join(f"{w} ({names.index(w) + 1})" for w in wanted if w in names) or "not among the roles"

    return [
        ("Cosine of axis and PC1", f"{summary['axis_pc1_cosine']:.2f}", published["axis_pc1_cosine"]),
        (
            "Components for 70% of the variance",
            str(summary["components_for_70pct"]),
            ", ".join(f"{v} ({k})" for k, v in ends.items()),
        ),
        (
            "The default's place on PC1, of a range of 1",
            f"{summary['default_on_pc1']:.2f}",
            published["default_on_pc1"],
        ),
        ("Assistant end", ", ".join(names[:5]), ", ".join(published["assistant_end"])),
        (f"… where the study's lie here (rank of {n})", ranks(published["assistant_end"]), ""),
        ("Far end", ", ".join(names[:-6:-1]), ", ".join(published["far_end"])),
        (f"… where the study's lie here (rank of {n})", ranks(published["far_end"]), ""),
    ]
