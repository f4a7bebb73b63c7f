"""Tables that several commands print."""

from __future__ import annotations

from typing import Any

from rich.table import Column, Table

from personaspace.cli.common import out


def print_traits(rows: list[dict[str, Any]]) -> None:
    """What may be said of a space's traits, and those at both ends of the axis."""
    from personaspace.report import traits, words

    out.print()
    for line in words.wrapped(traits.headline(rows), out.width):
        out.print(line)
    out.print()
    table = Table(*(Column(h, no_wrap=True) for h in traits.HEAD), box=None, pad_edge=False)
    shown = traits.ends(rows)
    for row in shown:
        table.add_row(*traits.cells(row), style="dim" if row["clear"] is False else None)
    out.print(table)
    if len(shown) < len(rows):
        out.print(f"… and {len(rows) - len(shown)} in between: --json has them all")
