"""Writes figures and tables as one HTML page that works with the network off; it knows nothing of what they show."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from personaspace.files import write_whole

_FOLDER = Path(__file__).parent

NEAR, FAR, SOFT = "#3a7bc8", "#c2603c", "#8d8981"
"""Colours that hold on light and dark: the Assistant's end, the far end, what stands beside."""


@dataclass(frozen=True)
class Block:
    """A section of a page: a title, a sentence, and a figure (`data` and `layout` as plotly has them) or a table."""

    title: str
    text: str = ""
    figure: Mapping[str, Any] | None = None
    height: int = 420
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class Figure:
    """A number that stands large at a page's head: what it is, its value, and a line beside it (the study's, say)."""

    name: str
    value: str
    note: str = ""


def write_figures(
    path: str | Path, title: str, lead: str, blocks: Sequence[Block], *, said: str = "", key: Sequence[Figure] = ()
) -> Path:
    """Writes the page, whole or not at all, and returns its path. said: what was found, under the lead.

    >>> blocks = [Block("All of them", head=["role", "place"], rows=[["ghost", "-9.9"]])]
    >>> write_figures("page.html", "Roles", "Where each lies.", blocks, key=[Figure("roles", "1")])
    PosixPath('page.html')
    """
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, trim_blocks=True)
    figures = {f"figure{k}": b.figure for k, b in enumerate(blocks) if b.figure}
    page = environment.get_template("experiment.html").render(
        title=title,
        lead=lead,
        said=said,
        key=key,
        blocks=blocks,
        # "</" inside a script would end it.
        figures=json.dumps(figures).replace("</", "<\\/"),
        plotly=get_plotlyjs(),
        style=(_FOLDER / "page.css").read_text(encoding="utf-8"),
        made=f"Made by personaspace {version('personaspace')}.",
    )
    path = Path(path)
    write_whole(path, page.encode())
    return path
