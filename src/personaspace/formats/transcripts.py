"""Reads conversations from files, whoever wrote them; it knows nothing of models.

OpenAI message lists (JSON, or JSONL with a conversation or a message a line), ShareGPT, plain "User: … Assistant: …" text,
and the study's transcripts (an object with a list of messages under `conversation` or `turns`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personaspace.engines.prompts import Message
from personaspace.errors import UsageError

LISTS = ("messages", "conversation", "turns", "conversations")
NAMES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "bot": "assistant",
}
_LINE = re.compile(r"^\s*(System|User|Human|Assistant|AI|Bot)\s*:[ \t]*", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Transcript:
    """A conversation and where it comes from."""

    name: str
    messages: tuple[Message, ...]


def read_transcripts(path: str | Path) -> list[Transcript]:
    """The conversations in a file. Raises `UsageError` that says which file, which conversation and which message."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(
            f"{path}: cannot be read as text: {e.strerror if isinstance(e, OSError) else e.reason}"
        ) from None
    try:
        value: Any = json.loads(text)
    except ValueError:
        value = _lines(text)
    conversations = _plain(text) if value is None else _conversations(value)
    if not conversations:
        raise UsageError(
            f"{path}: no conversation in it; expected OpenAI messages, JSONL, ShareGPT or lines of User: and Assistant:"
        )
    names = [path.stem] if len(conversations) == 1 else [f"{path.stem} {k + 1}" for k in range(len(conversations))]
    return [
        Transcript(n, _messages(f"{path}, conversation {k + 1}", m))
        for k, (n, m) in enumerate(zip(names, conversations, strict=True))
    ]


def _lines(text: str) -> list[Any] | None:
    """The values of a JSONL file; None where it is not one. A line that is cut off makes it none."""
    lines = [line for line in text.splitlines() if line.strip()]
    try:
        values = [json.loads(line) for line in lines]
    except ValueError:
        return None
    return values if values and all(isinstance(v, (dict, list)) for v in values) else None


def _conversations(value: Any) -> list[list[Any]]:
    if isinstance(value, dict):
        inner = next((value[k] for k in LISTS if isinstance(value.get(k), list)), None)
        return [] if inner is None else [inner] if _is_message_list(inner) else _conversations(inner)
    if not isinstance(value, list) or not value:
        return []
    if _is_message_list(value):
        return [value]
    return [c for v in value for c in _conversations(v)]


def _is_message_list(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(m, dict) and ("role" in m or "from" in m) for m in value)


def _plain(text: str) -> list[list[Any]]:
    marks = list(_LINE.finditer(text))
    if not marks:
        return []
    ends = [m.start() for m in marks[1:]] + [len(text)]
    turns = [{"role": m[1], "content": text[m.end() : end].strip()} for m, end in zip(marks, ends, strict=True)]
    return [turns]


def _messages(where: str, raw: Iterable[Any]) -> tuple[Message, ...]:
    messages = []
    for k, m in enumerate(raw, 1):
        speaker = str(m.get("role", m.get("from")))
        role = NAMES.get(speaker.lower())
        if role is None:
            raise UsageError(f"{where}, message {k}: found role {speaker!r}, expected system, user or assistant")
        messages.append({"role": role, "content": _content(f"{where}, message {k}", m.get("content", m.get("value")))})
    if not any(m["role"] == "assistant" for m in messages):
        raise UsageError(f"{where}: no assistant turn in it; there is nothing to project")
    return tuple(messages)


def _content(where: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in value):
        value = "".join(p["text"] for p in value)
    if not isinstance(value, str):
        raise UsageError(f"{where}: found content of type {type(value).__name__}, expected text")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON's escapes can spell it; no tokenizer takes it
        raise UsageError(f"{where}: found half of a surrogate pair, expected text") from None
    return value
