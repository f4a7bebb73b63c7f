"""What a role or a trait may be called, and what any text of a catalogue may hold: decided here, for every catalogue.

A name becomes a file's name, a word among others on a command line, a column's value and a label. What means something else in
one of those places is refused where it is read, with the reason, and is not found out later.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated

from pydantic import AfterValidator

DEFAULT = "default"
"""The name under which the default Assistant stands beside the roles."""

RESERVED = {
    DEFAULT: "the model without a role has that name",
    "axis": "the Assistant Axis has that name",
    "all": "it stands for every name of a catalogue",
    ".": "it is a folder's",
    "..": "it is a folder's",
}
"""Names that mean something else, in whatever case."""

LONGEST = 120
"""Bytes of a name: a file's name has at most 255, and this one stands in those with more around it."""

NO_TEXT = re.compile(r"[\x00\ud800-\udfff]")
"""NUL, and halves of characters that are written in two."""

SEPARATORS = {",": "commas separate names", "/": "slashes separate folders", "\\": "slashes separate folders"}


def why_no_name(name: str) -> str | None:
    """Why something cannot be a role's or a trait's name; None where it can.

    >>> why_no_name("ghost") is None, why_no_name("a,b")
    (True, 'it has a "," in it, and commas separate names')
    """
    if not name:
        return "it is empty"
    if reason := RESERVED.get(name.casefold()):
        return f"{name!r} cannot be a name here: {reason}"
    for character in name:
        if reason := SEPARATORS.get(character):
            return f'it has a "{character}" in it, and {reason}'
        if character.isspace():
            return "it has a blank in it; write _ in its place"
        if unicodedata.category(character) in ("Cc", "Cf", "Cs"):
            return f"it has a character in it that cannot be seen (U+{ord(character):04X})"
    if name.lstrip("-+").isnumeric():
        return "it is a number, which stands for how many names are chosen"
    if name[0] in "-.":
        return f'it begins with "{name[0]}", as an option or a hidden file does'
    if (size := len(name.encode())) > LONGEST:
        return f"it is {size} bytes long, {LONGEST} at most fit into a file's name"
    return None


def _checked_name(name: str) -> str:
    if reason := why_no_name(name):
        raise ValueError(reason)
    return name


def _checked_text(text: str) -> str:
    if not text.strip():
        raise ValueError("it is empty")
    if unfit := NO_TEXT.search(text):
        raise ValueError(f"it has U+{ord(unfit[0]):04X} in it, which is no character of a text")
    return text


def same_name(name: str) -> str:
    """What names share that a file system or a reader takes for one: case, and how accents are written."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


Name = Annotated[str, AfterValidator(_checked_name)]
Text = Annotated[str, AfterValidator(_checked_text)]
