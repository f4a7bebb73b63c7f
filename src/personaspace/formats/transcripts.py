"""Reads conversations from files, whoever wrote them; it knows nothing of models, and of formats what `registry` says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from personaspace import json_text
from personaspace.engines.prompts import Message
from personaspace.errors import UsageError
from personaspace.formats.messages import CARRIERS, RawConversation, counted, is_message, plain_messages
from personaspace.formats.registry import EXPECTED, TRANSCRIPT_FORMATS

NOTHING = "no conversation in it"
MOST_NAMED = 5
"""Conversations of a file that cannot be read and are named, a line each; of more the number is said."""


@dataclass(frozen=True)
class Transcript:
    """A conversation and where it comes from."""

    name: str
    messages: tuple[Message, ...]


class TranscriptFile(NamedTuple):
    """A file's conversations, and what of it was not read: a sentence each."""

    conversations: list[Transcript]
    notes: list[str]


class _Piece(NamedTuple):
    """What stands at a place of a file (`line 3`): a conversation, or why there is none."""

    place: str
    content: RawConversation | str


def read_transcripts(path: str | Path) -> TranscriptFile:
    """The conversations in a file of any format of `registry`. Those that cannot be read are named in the notes, as is what was
    left out of others (tools' messages, images). Raises `UsageError` that says which file, which conversation and which message
    where none can be read.

    >>> read_transcripts("talk.jsonl").conversations[0].messages[0]
    {'role': 'user', 'content': 'hi'}
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(
            f"{path}: there is no such file or folder; expected a file with conversations, or a folder of them"
        ) from None
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(
            f"{path}: cannot be read as text: {e.strerror if isinstance(e, OSError) else e.reason}"
        ) from None
    if not text.strip():
        raise UsageError(f"{path}: {NOTHING}, the file is empty; expected {EXPECTED}")
    pieces = _pieces(path, text)
    total = sum(isinstance(piece.content, RawConversation) for piece in pieces)
    transcripts: list[Transcript] = []
    problems: list[str] = []
    left_out: Counter[str] = Counter()
    number = 0
    for place, content in pieces:
        where = f" ({place})" if place else ""
        if isinstance(content, str):
            problems.append(f"{path}{where}: {content}")
            continue
        number += 1
        try:
            messages, nouns = plain_messages(f"{path}, conversation {number}{where}", content)
        except UsageError as e:
            problems.append(str(e))
            continue
        transcripts.append(Transcript(path.stem if total == 1 else f"{path.stem} {number}", messages))
        left_out += nouns
    if not transcripts:
        problem = next((p for p in problems if not p.endswith(NOTHING)), f"{path}: {NOTHING}; expected {EXPECTED}")
        raise UsageError(problem)
    notes = [f"{problem}; not read" for problem in problems[:MOST_NAMED]]
    if len(problems) > MOST_NAMED:
        notes.append(f"{path}: {len(problems) - MOST_NAMED:,} more were not read")
    if left_out:
        notes.append(f"{path}: left out {counted(left_out)}")
    return TranscriptFile(transcripts, notes)


def _pieces(path: Path, text: str) -> list[_Piece]:
    """All that stands in a file, in its order. Raises `UsageError` for one that is broken as a whole."""
    try:
        return list(_walk("", json_text.parse(text)))
    except ValueError as e:
        reason = str(e)
    if lines := _lines(path, text):
        return lines
    conversations = _first_told(text, by_text=True)
    if conversations is None and text.lstrip()[:1] in ("{", "["):
        raise UsageError(f"{path}: {NOTHING}, {reason}")
    return [_Piece("", conversation) for conversation in conversations or ()]


def _walk(place: str, value: Any) -> Iterator[_Piece]:
    """The conversations in a JSON value: of one format's, or a list of such values, also under a key of an object."""
    try:
        conversations = _first_told(value) if isinstance(value, (dict, list)) else None
    except ValueError as e:
        yield _Piece(place, str(e))
        return
    inner: Any = value
    if isinstance(value, dict):
        inner = next((value[key] for key in (*CARRIERS, "data") if isinstance(value.get(key), list)), None)
    if conversations is not None:
        yield from (_Piece(place, conversation) for conversation in conversations)
    elif isinstance(inner, list) and any(isinstance(item, (dict, list)) for item in inner):
        for number, item in enumerate(inner, 1):
            yield from _walk(f"{place}, item {number}".removeprefix(", "), item)
    else:
        yield _Piece(place, NOTHING)


def _lines(path: Path, text: str) -> list[_Piece]:
    """What stands in a JSONL file, a conversation or a message a line; nothing where it is none. Raises `UsageError` for a
    broken line among messages: what is said after it answers something that is not there."""
    lines = list(json_text.lines(text))
    if 2 * sum(line.lstrip()[0] in "{[" for _, line in lines) < len(lines):
        return []  # a conversation as plain text may have a line of JSON in it
    values: dict[int, Any] = {}
    broken: dict[int, str] = {}
    for number, line in lines:
        try:
            values[number] = json_text.parse(line)
        except ValueError as e:
            broken[number] = str(e)
    pieces = [piece for number, value in values.items() for piece in _walk(f"line {number}", value)]
    messages = [value for value in values.values() if is_message(value)]
    if messages and not any(isinstance(piece.content, RawConversation) for piece in pieces):
        if broken:
            number, reason = next(iter(broken.items()))
            raise UsageError(f"{path}, line {number}: {reason}; expected a message a line")
        others = [_Piece(f"line {number}", "no message") for number, value in values.items() if not is_message(value)]
        return [_Piece("", RawConversation(messages)), *others]
    if not values:
        return []
    ordered = [*pieces, *(_Piece(f"line {number}", reason) for number, reason in broken.items())]
    return sorted(ordered, key=lambda piece: int(piece.place.removeprefix("line ").partition(",")[0]))


def _first_told(value: Any, by_text: bool = False) -> Sequence[RawConversation] | None:
    """The conversations in a value, read by the first format that knows it."""
    for format in TRANSCRIPT_FORMATS.values():
        if format.by_text == by_text and (conversations := format.reader(value)) is not None:
            return conversations
    return None
