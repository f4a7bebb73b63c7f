"""A page in the making, of key figures, prose, tables and charts, and its way to one HTML file that works with the network
off; it knows nothing of what they show."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from personaspace._version import __version__
from personaspace.files import plain, write_whole
from personaspace.report import words
from personaspace.stats.intervals import Estimate

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
    """A number that stands large at a page's head: what it is, its value as text, and what stands beside it.

    interval: the 95% interval as text, or what stands for it (`EXACT` for a count). study: the study's figure. estimate: the
    value and its interval as numbers, where it is one."""

    name: str
    value: str
    note: str = ""
    interval: str = ""
    study: str = ""
    estimate: Estimate | None = None

    @property
    def beside(self) -> str:
        """All of that in one line, the interval first."""
        level = "95%: " if self.estimate and self.estimate.low == self.estimate.low else ""
        study = self.study and f"the study: {self.study}"
        return "; ".join(part for part in (self.interval and level + self.interval, self.note, study) if part)


EXACT = "exact"
"""Stands for the interval of what was counted, and drawn from nothing."""


@dataclass(frozen=True)
class Chart:
    """A drawing: `data` and `layout` as plotly has them, and its height in pixels."""

    data: Sequence[dict[str, Any]]
    layout: Mapping[str, Any]
    height: int = 420


class Page:
    """A page to which key figures and sections are added in the order in which they are read.

    >>> page = Page("Do conversations drift?", "smollm2 talks with scripted users.")
    >>> page.figure("drift", Estimate(0.4, 0.3, 0.5, 20), "standard deviations")
    >>> page.section("In figures", "With 95% intervals.", head=["domain", "drift"], rows=[["coding", "+0.40"]])
    >>> page.write("report.html", said="They drift.")
    PosixPath('report.html')
    """

    def __init__(self, title: str, lead: str) -> None:
        self.title, self.lead = title, lead
        self.key: list[Figure] = []
        self.blocks: list[Block] = []

    def figure(
        self,
        name: str,
        value: Estimate | str,
        note: str = "",
        spec: str = "+.2f",
        *,
        interval: str = "",
        study: str = "",
    ) -> None:
        """A key figure. An estimate stands by its value and its interval, as `spec` says; interval: what stands for that of
        any other (`EXACT`)."""
        if not isinstance(value, Estimate):
            self.key.append(Figure(name, value, note, interval, study))
            return
        shown = "not known" if math.isnan(value.value) else f"{value.value:{spec}}"
        self.key.append(Figure(name, shown, note, value.ends(spec), study, value))

    def section(
        self,
        title: str,
        text: str = "",
        chart: Chart | None = None,
        head: Sequence[str] = (),
        rows: Sequence[Sequence[str]] = (),
    ) -> None:
        """A title and prose, and below them a chart, a table with its `head`, both or neither."""
        drawing = {"data": chart.data, "layout": chart.layout} if chart else None
        self.blocks.append(Block(title, text, drawing, chart.height if chart else 0, head, rows))

    def write(self, path: str | Path, said: str = "") -> Path:
        """Writes the page, whole or not at all, and returns its path. said: what was found, under the lead."""
        return write_figures(path, self.title, self.lead, self.blocks, said=said, key=self.key)


_MARKUP = re.compile(r"<(?!/?(?:b|i|br|sup|sub|extra)>)")
"""What begins a tag in a figure's text, but for those that the figures are written with."""


def embedded(value: Any) -> str:
    """A value as JSON that may stand in a page's script, whatever texts are in it: a `<` would be able to end the script
    (`</script>`) or to begin what hides its end (`<!--<script>`). NaN is null.

    >>> embedded({"name": "</script>"})
    '{"name": "\\\\u003c/script>"}'
    """
    return json.dumps(plain(value)).replace("<", "\\u003c")


def _as_text(figure: Any) -> Any:
    """A figure whose texts hold no links or other markup: plotly takes some, also from a name."""
    if isinstance(figure, Mapping):
        return {key: _as_text(value) for key, value in figure.items()}
    if isinstance(figure, (list, tuple)):
        return [_as_text(value) for value in figure]
    return _MARKUP.sub("&lt;", figure) if isinstance(figure, str) else figure


@cache
def template(name: str) -> jinja2.Template:
    """A page's template of this folder; compiled once, since that takes longer than filling it in."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, trim_blocks=True)
    environment.filters["number"] = words.number
    return environment.get_template(name)


def write_figures(
    path: str | Path, title: str, lead: str, blocks: Sequence[Block], *, said: str = "", key: Sequence[Figure] = ()
) -> Path:
    """Writes the page, whole or not at all, and returns its path. said: what was found, under the lead.

    >>> blocks = [Block("All of them", head=["role", "place"], rows=[["ghost", "-9.9"]])]
    >>> write_figures("page.html", "Roles", "Where each lies.", blocks, key=[Figure("roles", "1")])
    PosixPath('page.html')
    """
    figures = {f"figure{k}": b.figure for k, b in enumerate(blocks) if b.figure}
    page = template("experiment.html").render(
        title=title,
        lead=lead,
        said=said,
        key=key,
        blocks=blocks,
        figures=embedded({name: _as_text(figure) for name, figure in figures.items()}),
        plotly=get_plotlyjs(),
        style=(_FOLDER / "page.css").read_text(encoding="utf-8"),
        made=f"Made by personaspace {__version__}.",
    )
    path = Path(path)
    write_whole(path, page.encode())
    return path
