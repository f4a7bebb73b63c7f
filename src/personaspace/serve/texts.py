"""Prompts as tokens, off the event loop: a long text takes a while, and others wait for nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from personaspace.engines.chat import Chat
from personaspace.serve.lock import QueueFull
from personaspace.serve.refusals import BadRequest

T = TypeVar("T")

SHORT = 4096
"""Characters that are as quickly tokenised as handed to a thread."""

CHARACTERS_A_TOKEN = 8
"""A text of more characters than that for each token of the context is looked at by its beginning first."""

MARGIN = 16
"""Tokens by which a text's beginning may be told otherwise alone than in the whole."""


def texts_of(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
    """All that a chat template may write of a conversation and its tools, without its own words: contents, calls, and the tools
    with the names of their fields.

    >>> texts_of([{"role": "user", "content": "Hi"}], [{"function": {"name": "add"}}])
    'Hi\\nfunction\\nname\\nadd'
    """
    texts = []
    for message in messages:
        texts.append(str(message["content"]))
        for call in message.get("tool_calls", ()):
            texts += [call["function"]["name"], call["function"]["arguments"]]
    return "\n".join([*texts, *_texts_in(list(tools))])


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from _texts_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts_in(inner)


class Texts:
    """Tokenises at most two long texts at a time, while at most `queue` of them wait. context: the most tokens that fit."""

    def __init__(self, chat: Chat, context: int, queue: int) -> None:
        self.chat, self.context, self.queue = chat, context, queue
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="personaspace-texts")
        self._waiting = 0

    async def tokens(self, text: str, tokenise: Callable[[], T], field: str) -> T:
        """What `tokenise` gives for the text of a field, in a thread where it is long. Raises `BadRequest` for one that is too
        long by far, after looking at its beginning alone, and `QueueFull`."""
        if len(text) <= SHORT:
            return tokenise()
        if self._waiting >= self.queue:
            raise QueueFull
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._within, text, tokenise, field)
        finally:
            self._waiting -= 1

    def _within(self, text: str, tokenise: Callable[[], T], field: str) -> T:
        most = CHARACTERS_A_TOKEN * self.context
        if len(text) > most and len(self.chat.text_ids(text[:most])) > self.context + MARGIN:
            raise BadRequest(
                f"This model's context is {self.context} tokens; the prompt has far more, in {len(text):,} characters",
                field,
                "context_length_exceeded",
            )
        return tokenise()
