"""JSON that anybody may have written, read so that whatever is wrong with it is one line; it knows nothing of what it means.

Python's own reader answers some texts with another error than "not JSON": one that nests 100,000 deep ends in a
`RecursionError`, an integer of 5,000 digits in a bare `ValueError`. What nests less deep than that passes it, and fails
whoever walks it next. Here all of it is a `ValueError` of one line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

DEEPEST = 100
"""Levels of lists and objects; what people write has a dozen."""

LONGEST = 40
"""Digits of an integer: a seed of 64 bits has 20, one of 128 has 39."""


def parse(text: str, *, finite: bool = False) -> Any:
    """The value of a JSON text. finite: NaN, Infinity and numbers too large for a float are refused, too, as JSON has none of
    them. Raises `ValueError` that says in one line what is wrong with it, and where.

    >>> parse('{"a": [1, 2]}')
    {'a': [1, 2]}
    """
    try:
        numbers: dict[str, Any] = {"parse_float": _finite, "parse_constant": _finite} if finite else {}
        value = json.loads(text, parse_int=_integer, **numbers)
    except json.JSONDecodeError as e:
        line = f"line {e.lineno}, " if e.lineno > 1 else ""
        raise ValueError(f"not JSON: {e.msg.removesuffix(' starting at')} at {line}column {e.colno}") from None
    except RecursionError:
        raise ValueError(f"not read: it nests deeper than {DEEPEST} levels") from None
    if is_deeper(value, DEEPEST):
        raise ValueError(f"not read: it nests deeper than {DEEPEST} levels")
    return value


def shown(value: object, most: int = 40) -> str:
    """A value from a file as a message of one line may show it: its beginning, with escapes for what is not printed.

    >>> shown("a name\\nof two lines", 12)
    'a name\\\\nof t…'
    """
    text = str(value)
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:most])
    return line if len(line) <= most and len(text) <= most else f"{line[:most]}…"


def lines(text: str) -> Iterator[tuple[int, str]]:
    r"""The lines that hold something, and their numbers from 1. They end at `\n` alone: `str.splitlines` also ends them at
    characters that JSON allows inside a text (U+2028, U+2029, U+0085)."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line


def is_deeper(value: Any, deepest: int, most: float = float("inf")) -> bool:
    """Whether lists and dicts nest deeper than that, or are more than so many, each counted wherever it stands."""
    level, count = [value], 0
    for _ in range(deepest):
        level_below: list[Any] = []
        for outer in level:
            members = outer.values() if isinstance(outer, dict) else outer if isinstance(outer, (list, tuple)) else ()
            inside = [member for member in members if isinstance(member, (dict, list, tuple))]
            count += len(inside)
            if count > most:
                return True
            level_below += inside
        if not level_below:
            return False
        level = level_below
    return True


def _integer(digits: str) -> int:
    if len(digits) > LONGEST:
        raise ValueError(f"not read: a number of {len(digits)} digits")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"not JSON: the number {digits[:LONGEST]}")
    return number
