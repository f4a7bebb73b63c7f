"""Which formats of transcripts there are. A new one is a function that reads it, and a line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from personaspace.formats.messages import RawConversation


@dataclass(frozen=True)
class TranscriptFormat:
    """place: `module:function`, imported when a file is read. summary: of help texts and errors. told_by: what a file of it has
    that no other has. The function gives the conversations in a value of a JSON file, or of a line of JSONL, and None where it
    has another format; it raises `ValueError` for what cannot be read. by_text: it is given a file's text that is no JSON."""

    place: str
    summary: str
    told_by: str
    by_text: bool = False

    @cached_property
    def reader(self) -> Callable[[Any], Sequence[RawConversation] | None]:
        """The function that reads it."""
        module, _, function = self.place.partition(":")
        reader: Callable[[Any], Sequence[RawConversation] | None] = getattr(import_module(module), function)
        return reader


_HERE = "personaspace.formats.conversations"
TRANSCRIPT_FORMATS = {
    "served": TranscriptFormat(f"{_HERE}:served", "what `serve --record` writes", "`messages` with `replies`"),
    "openai": TranscriptFormat(f"{_HERE}:openai", "OpenAI messages", "`messages`, or a list of `role` and `content`"),
    "sharegpt": TranscriptFormat(f"{_HERE}:sharegpt", "ShareGPT", "`conversations` of `from` and `value`"),
    "study": TranscriptFormat(f"{_HERE}:study", "the study's transcripts", "`conversation` or `turns`"),
    "chatgpt": TranscriptFormat(f"{_HERE}:chatgpt", "ChatGPT's export", "`mapping`, a tree of messages"),
    "claude": TranscriptFormat(f"{_HERE}:claude", "Claude's export", "`chat_messages` with `sender`"),
    "inspect": TranscriptFormat(f"{_HERE}:inspect_log", "Inspect's logs", "`samples` with `messages`"),
    "lm-eval": TranscriptFormat(f"{_HERE}:lm_eval_sample", "lm-eval's samples of chats", "`arguments` and `resps`"),
    "text": TranscriptFormat(f"{_HERE}:plain_text", "plain text", "lines of `User:` and `Assistant:`", by_text=True),
}
"""By name; where two could read a value, the first does."""

TRANSCRIPTS_HELP = (
    f"Conversations, as JSON or JSONL: {', '.join(f.summary for f in TRANSCRIPT_FORMATS.values() if not f.by_text)}; "
    f"or {', '.join(f.summary for f in TRANSCRIPT_FORMATS.values() if f.by_text)}. Several files, "
    "or one folder: pairs whose names differ by unsteered and capped, domains by folders' names."
)
"""Every format in a help text's words."""

EXPECTED = "; ".join(f"{f.summary} ({f.told_by})" for f in TRANSCRIPT_FORMATS.values())
"""Every format, and how it is told, in an error's words."""
