"""A model behind an OpenAI-compatible endpoint as a judge. Talks to the network."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from personaspace.errors import JudgeError
from personaspace.judges.endpoint import KEY_ENV, LIMITS, MODEL, SMALL_ROOM, URL_ENV, Endpoint, in_order
from personaspace.judges.rules import ADHERENCE
from personaspace.judges.score import Judge, Rubric, Score
from personaspace.judges.verdicts import Verdict, read_verdict

MORE_ROOM = 8
"""How many times as much an answer gets that was cut before its verdict: thoughts are long."""


class OpenAIJudge:
    """A model behind an OpenAI-compatible endpoint, asked some replies at a time for `{"score": …, "reason": …}`; roles' own
    rubrics are asked as they stand.

    timeout: seconds for an answer in all. options: fields of the request that stand over ours (`{"temperature": 1}`; None drops
    one). key_env: the environment variable that holds the key. Raises `UsageError`, `JudgeError` without key or address.

    >>> judge = OpenAIJudge("qwen3", "http://127.0.0.1:8000/v1", options={"reasoning_effort": "low"})
    >>> from personaspace.judges import Item
    >>> ghost = ps.load_catalog().role("ghost")
    >>> [score.score for score in judge.score([Item(ghost, "Who are you?", "I haunt this house.")])]
    [3]
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        *,
        concurrency: int = 8,
        tries: int = 5,
        timeout: float = 60,
        rubric: Rubric = ADHERENCE,
        options: Mapping[str, Any] | None = None,
        key_env: str | None = None,
    ) -> None:
        # As the client does, so that an address by the variable is in the name as well.
        base_url = base_url or os.environ.get(URL_ENV) or None
        if not base_url and not os.environ.get(key_env or KEY_ENV):
            raise JudgeError(
                f"--judge openai: {key_env or KEY_ENV} is not set; set it, or give --judge-url for an endpoint of your own"
            )
        # Scores are kept under the name: another model, endpoint or way of asking is another judge. More room is not.
        where = f"-{_digest(base_url)}" if base_url else ""
        asking = {name: value for name, value in sorted((options or {}).items()) if name not in LIMITS}
        how = f"-{_digest(json.dumps(asking, sort_keys=True))}" if asking else ""
        self.name = f"openai-{re.sub(r'[^A-Za-z0-9._-]+', '_', model)}{where}{how}"
        self.endpoint = Endpoint(
            model,
            base_url,
            "--judge openai",
            concurrency=concurrency,
            tries=tries,
            timeout=timeout,
            key_env=key_env,
            options=options,
        )
        self.rubric, self.room = rubric, SMALL_ROOM

    def rubric_of(self, item: Any) -> str:
        """A digest of what this judge goes by for an item."""
        return self.rubric.digest(item)

    def score(self, items: Iterable[Any]) -> Iterator[Score]:
        """The scores, in order."""
        yield from in_order(self.as_they_come(items))

    def as_they_come(self, items: Iterable[Any]) -> Iterator[tuple[int, Score]]:
        """Each item's place and score, as soon as it is answered."""
        yield from self.endpoint.run([partial(self._one, item=item) for item in items])

    async def _one(self, client: Any, item: Any) -> Score:
        messages = ({"role": "user", "content": self.rubric.for_endpoint(item)},)
        room = self.room
        verdict = await self._verdict(client, messages, room)
        if verdict.score is None and verdict.cut and not set(LIMITS) & set(self.endpoint.options):
            verdict = await self._verdict(client, messages, room * MORE_ROOM)
            if verdict.score is not None:
                # A model that thinks thinks about every reply: what is cut short is paid for as well.
                self.room = max(self.room, SMALL_ROOM * MORE_ROOM)
        if verdict.score is None:
            hint = "; --judge-option max_tokens=… gives it more room" if verdict.cut else ""
            return Score(None, problem=f"{verdict.problem}{hint}")
        return Score(verdict.score, float(verdict.score), reason=verdict.reason)

    async def _verdict(self, client: Any, messages: Any, room: int) -> Verdict:
        answer = await self.endpoint.reply(client, messages, room, temperature=0)
        if answer.text is None:
            return Verdict(None, problem=answer.problem, cut=answer.cut)
        return read_verdict(answer.text, self.rubric.top, cut=answer.cut)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def openai_judge(
    *,
    model: str | None = None,
    url: str | None = None,
    rubric: Rubric,
    options: Mapping[str, Any] | None = None,
    key_env: str | None = None,
    **_: Any,
) -> Judge:
    """The registry's `openai`."""
    return OpenAIJudge(model or MODEL, url, rubric=rubric, options=options, key_env=key_env)
