"""What a notebook shows of a space, of where replies lie, and of a comparison: small HTML tables. They compute nothing. Every
text is escaped, since names and replies may come from anybody's file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Protocol

from personaspace.report import words
from personaspace.space import Location, PersonaSpace

NEAREST = 3
"""Roles that are named beside a reply."""
ENDS = 5
"""Roles that are named of either end of the axis."""
UNKNOWN = "not known"


class ReadTurn(Protocol):
    """What is shown of an assistant turn (`TurnReading` has it)."""

    @property
    def index(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def projection(self) -> float: ...
    @property
    def drift(self) -> float | None: ...
    @property
    def nearest(self) -> list[tuple[str, float]]: ...
    @property
    def alert(self) -> bool: ...


class ReadTalk(Protocol):
    """What is shown of a conversation (`Trajectory` has it)."""

    @property
    def name(self) -> str: ...
    @property
    def turns(self) -> Sequence[ReadTurn]: ...
    @property
    def problem(self) -> str | None: ...


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """A table as HTML, its texts as text whatever is in them; notes stand below it.

    >>> html = table("Roles", ["role"], [["<b>ghost</b>"]])
    >>> "<td>&lt;b&gt;ghost&lt;/b&gt;</td>" in html
    True
    """
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    below = "".join(f"<p>{escape(note)}</p>" for note in notes if note)
    return f"<table><caption>{escape(caption)}</caption><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table>{below}"


def of_space(space: PersonaSpace) -> str:
    """How sure a space is, of each reading; below, the ends of its axis, where their order is known, and its caps."""
    summary = space.summary()
    rows = [
        [reading, r.name, r.shown, _interval(r.interval), words.number(r.by_text), UNKNOWN if r.known is False else ""]
        for reading, worth in summary["readings"].items()
        for r in words.reliabilities(worth)
    ]
    names = [role["name"] for role in summary["roles"]]
    ends = (
        f"Most Assistant-like: {', '.join(names[:ENDS])}. Least: {', '.join(names[: -ENDS - 1 : -1])}."
        if summary["order_known"] is not False
        else ""
    )
    caps = f"Caps: {', '.join(space.caps)}." if space.caps else ""
    return table(
        f"{summary['model']}: layer {summary['layer']} of {summary['layers']}, {summary['n_roles']} roles",
        ["reading", "reliability of", "value", "95%", "with other instructions", ""],
        rows,
        [ends, words.order(summary), caps],
    )


def of_location(location: Location) -> str:
    """Where a reply lies."""
    return table("A reply on the axis", PLACE, [_place(location.projection, location.drift, location.nearest)], [HINT])


def of_turns(name: str, turns: Sequence[ReadTurn], problem: str | None = None) -> str:
    """A conversation's assistant turns on the axis."""
    rows = [
        [str(t.index), str(t.tokens), *_place(t.projection, t.drift, t.nearest), "alert" if t.alert else ""]
        for t in turns
    ]
    return table(name, ["message", "tokens", *PLACE, ""], rows, [problem or "", HINT])


def of_trajectory(talk: ReadTalk) -> str:
    """The same of a conversation as `ps.project` gives it."""
    return of_turns(talk.name, talk.turns, talk.problem)


PLACE = ("projection", "drift", "nearest")
HINT = "Up is Assistant; drift is away from it, in the default's standard deviations. The nearest roles are a hint."


def _place(projection: float, drift: float | None, nearest: Sequence[tuple[str, float]]) -> list[str]:
    roles = ", ".join(f"{role} {cosine:.2f}" for role, cosine in nearest[:NEAREST])
    return [f"{projection:+.1f}", UNKNOWN if drift is None else f"{drift:+.2f}", roles]


def _interval(ends: tuple[float, float] | None) -> str:
    return f"{words.number(ends[0])} to {words.number(ends[1])}" if ends else ""
