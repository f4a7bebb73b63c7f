"""A terminal that shows texts as they are: names come from strangers' files, and neither style nor steer what is printed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What moves a cursor, colours, rings, turns a line around or cannot be printed: control characters but tab and line feed,
marks of direction, halves of characters."""


def visible(text: str) -> str:
    r"""A text in which each such character is written out, as JSON writes it: `\u001b`. Lines of Windows end as others do.

    >>> print(visible("gh\x1b[31most"))
    gh\u001b[31most
    """
    return _UNSEEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text.replace("\r\n", "\n"))


class Terminal(Console):
    """A console on which only what the program itself styles is styled: no markup, no emoji codes, no terminal escapes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, "soft_wrap": True, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        """A text before it is measured, so that what is written out has its place in a table."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Whatever else is printed: styled texts, JSON, help."""
        for segment in super().render(renderable, options):
            if segment.control or not _UNSEEN.search(segment.text):
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)
