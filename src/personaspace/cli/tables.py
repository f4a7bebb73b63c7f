"""Tables that several commands print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Column, Table

from personaspace.cli.common import out
from personaspace.cli.terminal import Terminal


def print_uncut(head: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str | None] = ()) -> None:
    """Prints a table with every cell whole, also where a pipe or a narrow terminal is taken for 80 columns: half a figure is a
    wrong one. styles: of the rows, none unless given."""
    table = Table(*(Column(h, no_wrap=True) for h in head), box=None, pad_edge=False, header_style="bold")
    for number, row in enumerate(rows):
        table.add_row(*row, style=styles[number] if styles else None)
    width = Terminal(width=100_000, soft_wrap=False).measure(table).maximum
    Terminal(file=out.file, width=max(out.width, width), soft_wrap=False).print(table)


def print_traits(rows: list[dict[str, Any]]) -> None:
    """What may be said of a space's traits, and those at both ends of the axis."""
    from personaspace.report import traits, words

    out.print()
    for line in words.wrapped(traits.headline(rows), out.width):
        out.print(line)
    out.print()
    shown = traits.ends(rows)
    styles = ["dim" if row["clear"] is False else None for row in shown]
    print_uncut(traits.HEAD, [traits.cells(row) for row in shown], styles)
    if len(shown) < len(rows):
        out.print(f"… and {len(rows) - len(shown)} in between: --json has them all")


def print_space(s: dict[str, Any], n: int = 10) -> None:
    """How sure the space is, its figures, and the roles, for people."""
    from personaspace.report import words

    for line in words.lines(s, out.width):
        out.print(line)
    out.print()
    _print_roles(s, n)
    if s["traits"]:
        print_traits(s["traits"])
    if caps := s["caps"]:
        is_ = caps.get("capped", {}).get("is")
        out.print(f"\ncaps: {', '.join(c for c in caps if c != 'capped')}" + (f"; capped is {is_}" if is_ else ""))
    judge = s["judge"]
    if judge and judge["scores"]:
        out.print(f"judge {judge['name']}: " + ", ".join(f"score {k}: {v}" for k, v in judge["scores"].items()))
    if s["left_out"]:
        out.print(f"left out, too few responses kept: {', '.join(f'{k} ({v})' for k, v in s['left_out'].items())}")


def _print_roles(s: dict[str, Any], n: int) -> None:
    """The roles at both ends; by name where their order is not known, with their intervals."""
    from personaspace.report import words

    roles = s["roles"]
    centre = sum(r["projection"] for r in roles) / len(roles)
    if s["order_known"] is False:
        table = Table("roles by name", "on the axis", "95%", box=None, pad_edge=False)
        for r in sorted(roles, key=lambda r: str(r["name"]))[: 2 * n]:
            interval = "{:+.2f} to {:+.2f}".format(*(x - centre for x in r["interval"])) if r["interval"] else ""
            table.add_row(r["name"], f"{r['projection'] - centre:+.2f}", interval, style="dim")
    else:
        table = Table("most Assistant-like", "", "least Assistant-like", "", box=None, pad_edge=False)
        n = min(n, len(roles) // 2)
        for a, b in zip(roles[:n], roles[::-1][:n], strict=True):
            cells = [a["name"], f"{a['projection'] - centre:+.2f}", b["name"], f"{b['projection'] - centre:+.2f}"]
            table.add_row(*cells)
    for line in words.wrapped(words.order(s), out.width):
        out.print(line)
    out.print()
    out.print(table)
    if s["order_known"] is False and len(roles) > 2 * n:
        out.print(f"… and {len(roles) - 2 * n} more: --json has them all")
