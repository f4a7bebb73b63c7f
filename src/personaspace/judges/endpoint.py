"""Asks a model behind an OpenAI-compatible endpoint, some conversations at a time. Talks to the network; knows nothing of what
is asked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from personaspace.engines.prompts import Message
from personaspace.errors import UsageError

MODEL = "gpt-4.1-mini"


@dataclass(frozen=True)
class Answer:
    """What was answered, or why nothing was."""

    text: str | None
    problem: str = ""


class Endpoint:
    """A model by its name, at an address or at OpenAI's; the key is that of OPENAI_API_KEY. Its client itself waits and tries
    again on 429, 5xx and lost connections. who: the option that asked for it. Raises `UsageError` without the package."""

    def __init__(
        self, model: str, url: str | None, who: str, *, concurrency: int = 8, tries: int = 5, timeout: float = 60
    ) -> None:
        try:
            import openai
        except ImportError:
            raise UsageError(f"{who} needs the openai package: pip install 'personaspace[judge]'") from None
        key = os.environ.get("OPENAI_API_KEY", "none")
        self.client = openai.OpenAI(base_url=url, api_key=key, max_retries=tries, timeout=timeout)
        self.error: type[Exception] = openai.OpenAIError
        self.model, self.concurrency = model, concurrency

    def ask(self, conversations: Sequence[Sequence[Message]], **options: Any) -> Iterator[Answer]:
        """An answer a conversation, in order; options are the endpoint's."""
        with ThreadPoolExecutor(self.concurrency) as pool:
            yield from pool.map(lambda c: self._one(c, options), conversations)

    def _one(self, conversation: Sequence[Message], options: dict[str, Any]) -> Answer:
        messages: Any = [dict(m) for m in conversation]
        try:
            answer = self.client.chat.completions.create(model=self.model, messages=messages, **options)
        except self.error as e:
            return Answer(None, f"{type(e).__name__}: {str(e).splitlines()[0][:160]}")
        return Answer((answer.choices[0].message.content or "") if answer.choices else "")
