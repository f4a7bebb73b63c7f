"""Tells by program alone whether a reply does what was asked; it knows nothing of models.

A check is `{"kind": …}` with the kind's own values, as it stands in the data files.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

Check = Mapping[str, Any]

_NUMBER = r"(?<![\w.,])[-−]?\$?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?![0-9])"
_ALONE = re.compile(rf"\W*?({_NUMBER})(?: \w+)?\W*")
_ANSWER = re.compile(rf"(?:=|\b(?:is|equals|makes|answer|total of)\b:?)[\s*(]*({_NUMBER})", re.IGNORECASE)
_CLOSING = r"[\"'”’)*\]]*\s+"
# Three dots end a sentence where a capital follows.
_ENDS = re.compile(rf"(?<=[.!?])(?<!\.\.){_CLOSING}|(?:(?<=\.\.)|(?<=…)){_CLOSING}(?![a-z])")
_ABBREVIATED = re.compile(r"(?:^|[\s(])(?:(?i:mr|mrs|ms|dr|prof|st|vs|approx|e\.g|i\.e)|[A-HJ-Z])\.$")
_MARKER = re.compile(r"^\s*(?:[-*•–+]\s+|\(?\d{1,2}[.)]\s+|#+\s*)")
_BULLET = re.compile(r"^\s*(?:[-*•–+]\s*)(?=\S)")
_QUOTES = "\"'“”‘’*_ \n\t"


def passes(check: Check, reply: str) -> bool:
    """Whether a reply passes. Letters' case never counts, except where it is what was asked for."""
    return _KINDS[check["kind"]](check, reply)


def words(text: str) -> int:
    """How many words a text has; what is joined by a hyphen or an apostrophe is one."""
    return len(re.findall(r"\w+(?:[-'’]\w+)*", text))


def sentences(text: str) -> int:
    """How many sentences a text has. A line's end ends one, too, so that the entries of a list count."""
    return sum(_in_line(_MARKER.sub("", line)) for line in text.splitlines())


def _in_line(line: str) -> int:
    count, open_ = 0, ""
    for part in _ENDS.split(line.strip()):
        open_ += part
        if _ABBREVIATED.search(open_):
            open_ += " "
        elif re.search(r"\w", open_):
            count, open_ = count + 1, ""
    return count + bool(re.search(r"\w", open_))


def number(reply: str) -> float | None:
    """The number that a reply gives: one that stands alone on the first line, else the last that is said to be the
    answer ("=", "is"), else the last of all. None where it holds none."""
    if match := _ALONE.fullmatch(reply.strip().partition("\n")[0]):
        return _value(match[1])
    found_all = _ANSWER.findall(reply) or re.findall(_NUMBER, reply)
    return _value(found_all[-1]) if found_all else None


def _value(text: str) -> float:
    return float(text.replace(",", "").replace("−", "-").replace("$", ""))


def objects(reply: str) -> list[dict[str, Any]]:
    """The JSON objects of a reply, wherever they stand in it: alone, between words, in a fence."""
    parsed, start, decoder = [], reply.find("{"), json.JSONDecoder()
    while start >= 0:
        try:
            value, end = decoder.raw_decode(reply, start)
        except (json.JSONDecodeError, RecursionError):
            end = start + 1
        else:
            parsed.append(value)
        start = reply.find("{", end)
    return parsed


def _between(check: Check, n: int) -> bool:
    return bool(check.get("min", 0) <= n <= check.get("max", math.inf))


def _holds(reply: str, text: str) -> bool:
    return text.lower() in reply.lower()


def _equals(check: Check, reply: str) -> bool:
    value = number(reply)
    return value is not None and math.isclose(value, float(check["equals"]), abs_tol=1e-9)


_KINDS: dict[str, Callable[[Check, str], bool]] = {
    "contains": lambda check, reply: all(_holds(reply, text) for text in check["all"]),
    "excludes": lambda check, reply: not any(_holds(reply, text) for text in check["any"]),
    "starts": lambda check, reply: reply.lstrip(_QUOTES).lower().startswith(check["with"].lower()),
    "ends": lambda check, reply: reply.rstrip(_QUOTES).lower().endswith(check["with"].rstrip(_QUOTES).lower()),
    "words": lambda check, reply: _between(check, words(reply)),
    "sentences": lambda check, reply: _between(check, sentences(reply)),
    "lower": lambda check, reply: reply.islower(),
    "upper": lambda check, reply: reply.isupper(),
    "lines": lambda check, reply: _between(check, sum(bool(line.strip()) for line in reply.splitlines())),
    "bullets": lambda check, reply: _between(check, sum(bool(_BULLET.match(line)) for line in reply.splitlines())),
    "json": lambda check, reply: any(all(k in o for k in check["keys"]) for o in objects(reply)),
    "number": _equals,
}
