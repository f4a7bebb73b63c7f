"""Writes a space as one HTML page that works with the network off; it computes nothing that the space does not hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from personaspace.catalog import DEFAULT
from personaspace.files import write_whole
from personaspace.report import traits, words
from personaspace.report.page import embedded, template
from personaspace.space import PersonaSpace, certainty
from personaspace.space.traits import roles_along

_FOLDER = Path(__file__).parent

HIGHEST = 3
"""Roles that are named of those highest on a trait."""

SIMILAR = 6
"""How many of a role's nearest are looked at."""


def write_report(space: PersonaSpace, path: str | Path) -> Path:
    """Writes the page, whole or not at all, and returns its path.

    >>> ps.write_report(ps.PersonaSpace.load("smollm2"), "report.html")
    PosixPath('report.html')
    """
    path = Path(path)
    write_whole(path, render(space).encode())
    return path


def render(space: PersonaSpace) -> str:
    """The page as HTML text, the plotting library inside it."""
    summary = space.summary()
    return template("map.html").render(
        s=summary,
        meta=space.meta,
        words=words,
        traits=traits if summary["traits"] else None,
        highest=highest_on_traits(space, summary),
        three=list(zip(*(words.reliabilities(worth) for worth in summary["readings"].values()), strict=True)),
        rows=words.beside(summary),
        ends=ends(summary),
        data=embedded(page_data(space, summary)),
        plotly=get_plotlyjs(),
        style=(_FOLDER / "page.css").read_text(encoding="utf-8"),
        script=(_FOLDER / "page.js").read_text(encoding="utf-8"),
        minutes=round(space.meta.get("seconds", {}).get("responses", 0) / 60, 1),
    )


def page_data(space: PersonaSpace, summary: dict[str, Any]) -> dict[str, Any]:
    """What the page's figures and search are drawn from; None for a figure that the space does not hold."""
    layer = space.layer
    centred, mean = space.centred()
    directions = space.components_at()[0][:3]
    places = (centred @ directions.T).tolist()
    axis_mean = float(mean @ space.axis_at())
    by_name = {r["name"]: r for r in summary["roles"]}
    descriptions, samples = space.meta.get("descriptions", {}), space.meta.get("samples", {})
    roles = [
        {
            **by_name[name],
            # A space of fewer than three components lies flat.
            "place": places[i] + [0.0] * (3 - len(places[i])),
            "description": descriptions.get(name, ""),
            "samples": samples.get(name, []),
            **_similar(space, summary, name),
        }
        for i, name in enumerate(space.roles)
    ]
    default = (space.tensors["default_vector"][layer] - mean) @ directions.T
    neighbours_known = summary["order_known"] is not False and summary["neighbours_known"] is not False
    nearest = space.nearest(space.tensors["default_vector"], SIMILAR, reading=space.reading) if neighbours_known else []
    return {
        "roles": roles,
        "default": {
            "name": DEFAULT,
            "place": default.tolist() + [0.0] * (3 - len(default)),
            "projection": float(space.project(space.tensors["default_vector"])),
            "samples": samples.get(DEFAULT, []),
            "similar": [{"name": name, "cosine": cosine} for name, cosine in nearest],
            "unclear": None,
        },
        "meanProjection": axis_mean,
        "variance": summary["variance_explained"][:30],
        "spectrum": summary["spectrum_corrected"],
        "orderKnown": summary["order_known"],
        "neighboursKnown": summary["neighbours_known"],
        "likeness": words.likeness(summary),
        "pc1": {
            "corrected": summary["axis_pc1_cosine_corrected"],
            "interval": (summary["corrected_interval"] or {}).get("axis_pc1_cosine_corrected"),
            "null": (summary["null"] or {}).get("axis_pc1_cosine"),
        },
        # Figures of each reading at every layer, `[layers]` each; None for those that the space lacks.
        "layers": [
            {
                "reading": of_reading.reading,
                "chosen": of_reading.layer,
                **certainty.by_layer(of_reading.tensors),
                "cosine": of_reading.axis_pc1() if of_reading.knows_pc1 else None,
                "separation": of_reading.figure_by_layer("separation"),
            }
            for of_reading in map(space.of, space.readings)
        ],
        "histogram": space.meta.get("histogram"),
        "traits": summary["traits"],
    }


def highest_on_traits(space: PersonaSpace, summary: dict[str, Any]) -> dict[str, list[str]]:
    """Of each trait the roles that lie highest on its direction; none where the roles' vectors are mostly noise."""
    order_known = summary["neighbours_known"] is not False
    return {t: [role for role, _ in roles_along(space, t)[:HIGHEST]] if order_known else [] for t in space.traits}


def _similar(space: PersonaSpace, summary: dict[str, Any], role: str) -> dict[str, Any]:
    """A role's most similar ones that stand out from noise, and how many of the nearest do not; none where the map is not
    known, and as they are, with None for how many, where the space does not say how sure they are."""
    if summary["neighbours_known"] is False:
        return {"similar": [], "unclear": None}
    if summary["neighbours_known"] is None or not space.knows_cosine_errors:
        return {"similar": [{"name": n, "cosine": c} for n, c in space.similar(role, SIMILAR)], "unclear": None}
    clear, unclear = space.neighbours(role, SIMILAR)
    return {"similar": [{"name": n, "cosine": c, "interval": i} for n, c, i in clear], "unclear": unclear}


def ends(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Which roles lie at either end here and in the study, and where the study's lie here. Not told
    where the order is not known."""
    published, names = summary["published"], [r["name"] for r in summary["roles"]]
    if summary["order_known"] is False:
        unknown = f"not known: the order's reliability is {words.number(summary['reliability']['order'])}"
        return [
            ("Assistant end", unknown, ", ".join(published["assistant_end"])),
            ("Far end", unknown, ", ".join(published["far_end"])),
        ]

    def ranks(study_roles: list[str]) -> str:
        return ", ".join(f"{w} ({names.index(w) + 1})" for w in study_roles if w in names) or "not among the roles"

    return [
        ("Assistant end", ", ".join(names[:5]), ", ".join(published["assistant_end"])),
        (f"… where the study's lie here (rank of {len(names)})", ranks(published["assistant_end"]), ""),
        ("Far end", ", ".join(names[:-6:-1]), ", ".join(published["far_end"])),
        (f"… where the study's lie here (rank of {len(names)})", ranks(published["far_end"]), ""),
    ]
