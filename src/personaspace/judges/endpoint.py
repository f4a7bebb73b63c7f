"""A model behind an OpenAI-compatible endpoint, asked some conversations at a time, and as a judge. Talks to the network."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from personaspace.engines.prompts import Message
from personaspace.errors import JudgeError, UsageError
from personaspace.judges.rules import ADHERENCE
from personaspace.judges.score import Item, Judge, Rubric, Score

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


class OpenAIJudge:
    """A model behind an OpenAI-compatible endpoint, asked some at a time; 429 and 5xx are tried again, ever later."""

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        *,
        concurrency: int = 8,
        tries: int = 5,
        timeout: float = 60,
        rubric: Rubric = ADHERENCE,
    ) -> None:
        if not os.environ.get("OPENAI_API_KEY") and not base_url:
            raise JudgeError(
                "--judge openai: OPENAI_API_KEY is not set; set it, or give --judge-url for an endpoint of your own"
            )
        # Scores are kept under the name: another model, or another endpoint, is another judge.
        where = f"-{hashlib.sha256(base_url.encode()).hexdigest()[:6]}" if base_url else ""
        self.name = f"openai-{re.sub(r'[^A-Za-z0-9._-]+', '_', model)}{where}"
        who = "--judge openai"
        self.endpoint = Endpoint(model, base_url, who, concurrency=concurrency, tries=tries, timeout=timeout)
        self.rubric = rubric

    def score(self, items: Iterable[Item]) -> Iterator[Score]:
        conversations = [({"role": "user", "content": self.rubric.text(item)},) for item in items]
        yield from map(self._score, self.endpoint.ask(conversations, temperature=0, max_tokens=16))

    def _score(self, answer: Answer) -> Score:
        if answer.text is None:
            return Score(None, problem=answer.problem)
        digit = re.search(rf"(?<!\d)(?<!\d\.)[0-{self.rubric.top}](?!\d|\.\d)", answer.text)
        if not digit:
            return Score(None, problem=f"no score of 0–{self.rubric.top} in the answer {json.dumps(answer.text[:60])}")
        return Score(int(digit[0]), float(digit[0]))


def openai_judge(*, model: str | None = None, url: str | None = None, rubric: Rubric, **_: Any) -> Judge:
    """The registry's `openai`."""
    return OpenAIJudge(model or MODEL, url, rubric=rubric)
