"""What watching a model's variants found, in a sentence, as rows and as a page; it compares nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from personaspace.experiments.watch.findings import DIMENSIONS, NAMED, Change, Look
from personaspace.experiments.watch.readings import REPLY_TOKENS
from personaspace.experiments.watch.run import Watched
from personaspace.report.charts import COLOURS, ZERO, axis, chart, dots, line, points
from personaspace.report.page import FAR, SOFT, Page
from personaspace.space.directions import ROLE, TRAIT
from personaspace.space.readings import PROMPT, REPLY

HEAD = ("variant", "on the axis", "the move", "in roles' space", "contrast left", "traits", "roles")
TABLE = (
    "On the axis: how far the default has moved, in standard deviations of the base's default over its prompts; positive is "
    "towards the Assistant; a star: it counts. The move: its length, in root mean squares of how far the base's prompts lie "
    "from their mean. In roles' space: how much of its squared length lies on the roles' first {dimensions} components; "
    "of a random move {chance:.0%} would. Contrast left: of the distance on the axis "
    "between default and roles. Traits, roles: those that it "
    "moved along and that count, with the cosine of the move; none where nothing did."
)
RULE = (
    "A look counts where the shift lies more than {beyond}, and where more of the move lies along the direction than of a "
    "random move as long, both at 5% for all {looks:,} looks together (Holm, paired over {prompts} prompts)."
)
READ = {PROMPT: "read before the first word", REPLY: f"read in replies of up to {REPLY_TOKENS} tokens"}
MAP = (
    "Where the default lies among the roles, on their first two components, PC1 up; a line leads from the base to each "
    "variant. Roles that a variant moved towards, and that count, are named."
)
ORDER = "In the order in which the variants were named. Bands and bars are 95% intervals over the questions."


def rule(watched: Watched) -> str:
    """What a change had to be to count."""
    beyond = f"{watched.effect:g} standard deviations of the default"
    if (several := len(watched.nulls)) > 1:
        beyond += (
            f" beyond what {several} neutral fine-tunes reach along it, and as far again as one of them goes beyond the others "
            "along any direction of its kind"
        )
    elif several:
        beyond += " beyond what the neutral fine-tune reaches along it"
    looks = len(watched.looks.names) * len(watched.variants)
    return RULE.format(beyond=beyond, looks=looks, prompts=watched.prompts)


def said(change: Change) -> str:
    """A variant's change in a sentence."""
    if not change.moved:
        return f"{change.name}: nothing moved that counts; on the axis {change.axis.shift:+.2f}."
    parts = []
    for kind in (ROLE, TRAIT):
        if looks := [k for k in change.nearest(kind) if k.moved]:
            parts.append(f"{'towards' if kind == ROLE else 'along'} the {kind}s {names_of(looks)}")
    on_axis = "" if change.axis.moved else ", which does not count"
    moves = f"moved most {', and '.join(parts)} (cosines); " if parts else ""
    return f"{change.name}: {moves}on the axis {change.axis.shift:+.2f} deviations{on_axis}."


def headline(watched: Watched) -> str:
    """What was found, of each variant."""
    return " ".join(said(change) for change in watched.variants)


def names_of(looks: Sequence[Look], most: int = NAMED) -> str:
    """The looks that moved, those first on which most of the move lies."""
    moved = [look for look in looks if look.moved]
    more = f", {len(moved) - most} more" if len(moved) > most else ""
    return ", ".join(f"{look.plain_name} {look.cosine:+.2f}" for look in moved[:most]) + more or "none"


def cells(change: Change) -> list[str]:
    """A change as a row of `HEAD`."""
    named = ["a null", "a null"] if change.is_null else [names_of(change.nearest(kind)) for kind in (TRAIT, ROLE)]
    on_axis = f"{change.axis.shift:+.2f}" + (" *" if change.axis.moved else "")
    return [change.name, on_axis, f"{change.length:.2f}", f"{change.share:.0%}", f"{change.contrast:.0%}", *named]


def write_watched(path: str | Path, watched: Watched) -> Path:
    """Draws it as one HTML page, and returns its path."""
    variants = watched.variants
    count = f"{len(variants)} variant{'s' * (len(variants) > 1)}"
    page = Page(
        f"What moved of {watched.base}",
        f"{count} on the same {watched.prompts} prompts of the default, {READ[watched.reading]} at layer "
        f"{watched.space.layer} of {len(watched.space.tensors['axis'])}.",
    )
    for change in variants[:4]:
        page.figure(
            change.name, change.axis.shift, "on the axis" + ("" if change.axis.moved else ", which does not count")
        )
    hidden = watched.looks.units.shape[1]
    text = f"{TABLE.format(dimensions=DIMENSIONS, chance=min(DIMENSIONS / hidden, 1))} {rule(watched)}"
    page.section("In figures", text, head=HEAD, rows=[cells(change) for change in watched.changes])
    for note in watched.notes:
        page.section("To keep in mind", note)
    names = [change.name for change in variants]
    for kind in (TRAIT, ROLE):
        followed = list(dict.fromkeys(k.name for c in variants for k in c.nearest(kind)[:NAMED] if k.moved))[
            : len(COLOURS) - 1
        ]
        if not followed:
            continue
        series = {
            variants[0].looks[place].plain_name: [change.looks[place].shift for change in variants]
            for place in map(watched.looks.names.index, ["axis", *followed])
        }
        data: list[dict[str, Any]] = []
        for colour, (name, shifts) in zip(COLOURS, series.items(), strict=False):
            # A line needs two ends.
            data += line(name, names, shifts, colour) if len(names) > 1 else [dots(name, names, shifts, colour)]
        drawing = chart(
            data,
            axis("", type="category"),
            axis("shift, in deviations of the default", **ZERO),
            scattermode="overlay" if len(names) > 1 else "group",
        )
        page.section(f"The axis and {kind}s over the variants", ORDER, drawing)
    page.section("Among the roles", MAP, _map(watched))
    for change in variants:
        looks = [*change.nearest(ROLE, NAMED)[: 2 * NAMED], *change.nearest(TRAIT, NAMED)[: 2 * NAMED]]
        rows = [
            [
                look.name.replace("_", " "),
                f"{look.shift:+.2f}",
                f"{look.cosine:+.2f}",
                f"{look.beyond:.2f}",
                f"{look.p:.2g}",
                "yes" if look.moved else "no",
            ]
            for look in looks
        ]
        head = ["direction", "shift", "cosine of the move", "had to be beyond", "p (Holm)", "counts"]
        page.section(f"Most of the move: {change.name}", said(change), head=head, rows=rows)
    return page.write(path, said=headline(watched))


def _map(watched: Watched) -> Any:
    """Roles and defaults on the roles' first two components."""
    space = watched.space
    components = space.components_at()[0][:2].double()
    x, y = (space.centred()[0].double() @ components.T).T.numpy()
    named = {k.name.partition(":")[2] for c in watched.variants for k in c.nearest(ROLE)[:NAMED] if k.moved}
    text = [role.replace("_", " ") if role in named else "" for role in space.roles]
    data = [points("roles", y.tolist(), x.tolist(), space.roles, SOFT, size=6, text=text)]
    base = watched.changes[0].base_place
    for k, change in enumerate(watched.changes):
        colour = SOFT if change.is_null else COLOURS[k % len(COLOURS)]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": change.name,
                "x": [base[1], change.place[1]],
                "y": [base[0], change.place[0]],
                "line": {"color": colour, "width": 2, "dash": "dot" if change.is_null else "solid"},
                "marker": {"size": [1, 10]},
            }
        )
    data.append(points(f"{watched.base}, its default", [base[1]], [base[0]], [watched.base], FAR, size=12))
    return chart(data, "PC2", "PC1, up is Assistant", 620, hovermode="closest")


def plain_changes(watched: Watched) -> dict[str, Any]:
    """All of it as JSON has it."""
    return {
        "base": watched.base,
        "reading": watched.reading,
        "rule": rule(watched),
        "notes": list(watched.notes),
        "variants": [
            {
                "name": c.name,
                "null": c.is_null,
                "moved": c.moved,
                "axis": _plain(c.axis),
                "length": c.length,
                "share_in_roles": c.share,
                "contrast": c.contrast,
                "other_texts": c.other_texts,
                **{
                    f"{kind}s": [_plain(k) for k in by_cosine if k.name.startswith(f"{kind}:")]
                    for kind in (TRAIT, ROLE)
                },
            }
            for c in watched.changes
            for by_cosine in [sorted(c.looks, key=lambda k: -k.cosine)]
        ],
    }


def _plain(look: Look) -> dict[str, Any]:
    p = None if np.isnan(look.p) else look.p
    e = look.shift
    interval = [e.low, e.high]
    return {
        "name": look.name,
        "shift": e.value,
        "interval": interval,
        "cosine": look.cosine,
        "beyond": look.beyond,
        "p": p,
        "moved": look.moved,
    }
