"""A model behind an OpenAI-compatible endpoint, asked some conversations at a time. Talks to the network.

Whatever comes back is an `Answer`: a text, or one line that says why there is none. Size, time and waits are bounded.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import math
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from personaspace.engines.prompts import Message
from personaspace.errors import UsageError
from personaspace.judges.background import as_they_come
from personaspace.judges.bounded import TooLarge, read_within
from personaspace.judges.verdicts import shortened, tidy

T = TypeVar("T")

MODEL = "gpt-4.1-mini"
KEY_ENV = "OPENAI_API_KEY"
"""The environment variable that holds the key, unless another is named."""
LONGEST_WAIT = 120.0
"""Seconds that an endpoint may ask to be left alone for (Retry-After); a longer wait is named and not waited for."""
SMALL_ROOM = 512
"""Tokens in which an answer without thoughts ends."""
LIMITS = ("max_tokens", "max_completion_tokens")
"""The names under which an endpoint takes the most tokens."""
URL_ENV = "OPENAI_BASE_URL"
"""The environment variable that holds the address where none is given, as the client has it."""
AGAIN = (408, 409, 425, 429)
REFUSED = (400, 404, 422)
TOO_LONG = ("context", "too large", "too long", "at most", "exceed", "less than", "maximum")


@dataclass(frozen=True)
class Answer:
    """What was answered, or why nothing was. cut: it ended for want of room."""

    text: str | None
    problem: str = ""
    cut: bool = False


@dataclass(frozen=True)
class Dialect:
    """How an endpoint takes what it is asked with: under which name the most tokens (None: not at all), and whether it takes
    a temperature."""

    limit: str | None = "max_tokens"
    temperature: bool = True

    def without(self, complaint: str, body: Mapping[str, Any]) -> Dialect | None:
        """The next one to try after an endpoint has refused a request in these words; None where they are about neither."""
        if self.limit in body and ("max_tokens" in complaint or "max_completion_tokens" in complaint):
            return replace(self, limit="max_completion_tokens" if self.limit == "max_tokens" else None)
        if self.temperature and "temperature" in body and "temperature" in complaint:
            return replace(self, temperature=False)
        return None


class Endpoint:
    """A model by its name, at an address or at OpenAI's. Waits and tries again on 429, 5xx and lost connections.

    who: the option that asked for it, for messages. timeout: seconds for an answer, from the first byte sent to the last one
    read (four times that with room for thoughts). key_env: the environment variable that holds the key; `OPENAI_API_KEY`.
    options: fields of the request that stand over ours; one that is None is left out. Raises `UsageError` without the package
    or the key's variable, or for an address that is none.
    """

    def __init__(
        self,
        model: str,
        url: str | None,
        who: str,
        *,
        concurrency: int = 8,
        tries: int = 5,
        timeout: float = 60,
        key_env: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            import openai
        except ImportError:
            raise UsageError(f"{who} needs the openai package: pip install 'personaspace[judge]'") from None
        key = os.environ.get(key_env or KEY_ENV, "").strip()
        if key_env and not key:
            raise UsageError(f"{who}: the environment variable {key_env} is not set; it should hold the endpoint's key")
        if not (key.isascii() and key.isprintable()):
            raise UsageError(f"{who}: {key_env or KEY_ENV} holds characters that no key has")
        if url is not None and not url.startswith(("http://", "https://")):
            raise UsageError(f"{who}: {url!r} is no address; expected http://… or https://…, as a rule ending in /v1")
        self.openai = openai
        self.model, self.url, self.key = model, url, key or "none"
        self.concurrency, self.tries, self.timeout = concurrency, tries, timeout
        self.options = dict(options or {})
        self.dialect = Dialect()
        self.answered = False

    # -- asking ------------------------------------------------------------------------------------------------------

    def ask(self, conversations: Sequence[Sequence[Message]], *, max_tokens: int) -> Iterator[Answer]:
        """An answer a conversation, in order."""
        jobs = [partial(self.reply, messages=c, room=max_tokens) for c in conversations]
        yield from in_order(self.run(jobs))

    def run(self, jobs: Sequence[Callable[[Any], Awaitable[T]]]) -> Iterator[tuple[int, T]]:
        """Each job's place and result as they come; a job is given the client that `reply` needs. Until the endpoint has
        answered once, one job goes alone: what it refuses is learnt once, not by all that are under way."""
        yield from as_they_come(self._client, jobs, self.concurrency, first_alone=not self.answered)

    def _client(self) -> Any:
        http_client = self.openai.DefaultAsyncHttpxClient(
            timeout=4 * self.timeout, event_hooks={"response": [read_within]}, headers={"Accept-Encoding": "identity"}
        )
        return self.openai.AsyncOpenAI(base_url=self.url, api_key=self.key, max_retries=0, http_client=http_client)

    async def reply(
        self, client: Any, messages: Sequence[Message], room: int, temperature: float | None = None
    ) -> Answer:
        """What the model answers within so many tokens, tried again where that may help. temperature: the endpoint's own
        default where None."""
        room, is_set = self._room(room), bool(set(LIMITS) & set(self.options))
        most_seconds = self.timeout * (4 if room > SMALL_ROOM else 1)
        deadline = time.monotonic() + most_seconds + LONGEST_WAIT + 2 * self.timeout
        dialect, retries, timeouts = self.dialect, 0, 0
        while True:
            body = self._body(dialect, room, temperature)
            pause: float | None = None
            try:
                async with asyncio.timeout(max(0.01, min(most_seconds, deadline - time.monotonic()))):
                    response = await client.chat.completions.with_raw_response.create(
                        model=self.model, messages=[dict(m) for m in messages], extra_body=body
                    )
                # Remembered once it has worked: a refusal may name a parameter that is not to blame.
                self.dialect, self.answered = dialect, True
                return answer_of(response.content)
            except TooLarge as e:
                return Answer(None, str(e))
            except (TimeoutError, self.openai.APITimeoutError):
                problem, timeouts = f"no whole answer within {most_seconds:g} s", timeouts + 1
                if timeouts > 1:
                    return Answer(None, f"{problem}, twice")
            except self.openai.APIStatusError as e:
                problem, complaint = _line(e), e.response.text[:4000].lower()
                if e.status_code in REFUSED:
                    shortens = dialect.limit in body and room > SMALL_ROOM and not is_set
                    if shortens and any(words in complaint for words in TOO_LONG):
                        room //= 2
                        continue
                    adapted = dialect.without(complaint, body)
                    if adapted is None:
                        return Answer(None, problem)
                    dialect = adapted
                    continue
                if "insufficient_quota" in complaint or not (e.status_code in AGAIN or e.status_code >= 500):
                    return Answer(None, problem)
                pause = retry_after(e.response.headers)
            except self.openai.OpenAIError as e:
                problem = _line(e)
            if pause is not None and pause > min(LONGEST_WAIT, deadline - time.monotonic()):
                asks = f"it asks to be left alone for {pause:,.0f} s (Retry-After), and {LONGEST_WAIT:.0f} s are waited at most"
                return Answer(None, f"{problem}; {asks}")
            retries += 1
            if retries > self.tries or time.monotonic() > deadline:
                return Answer(None, problem)
            await asyncio.sleep(min(0.5 * 2 ** (retries - 1), 8) * random.uniform(0.75, 1) if pause is None else pause)

    def _room(self, room: int) -> int:
        """Tokens that an answer may have: an option's limit stands over ours, and one that is left out is a large one."""
        limits = [self.options[name] for name in LIMITS if name in self.options]
        numbers = [int(limit) for limit in limits if isinstance(limit, int | float) and math.isfinite(limit)]
        return max(numbers, default=max(room, SMALL_ROOM + 1)) if limits else room

    def _body(self, dialect: Dialect, room: int, temperature: float | None) -> dict[str, Any]:
        """What stands in a request beside model and messages."""
        ours: dict[str, Any] = {}
        if dialect.limit and not set(LIMITS) & set(self.options):
            ours[dialect.limit] = room
        if dialect.temperature and temperature is not None:
            ours["temperature"] = temperature
        return {name: value for name, value in {**ours, **self.options}.items() if value is not None}


def in_order(results: Iterator[tuple[int, T]]) -> Iterator[T]:
    """What comes by its place in any order, in order."""
    early: dict[int, T] = {}
    place = 0
    for k, result in results:
        early[k] = result
        while place in early:
            yield early.pop(place)
            place += 1


# -- what comes back ---------------------------------------------------------------------------------------------------


def answer_of(body: bytes) -> Answer:
    """The text in the body of a chat completion, or what is wrong with it in one line, whatever it is."""
    try:
        completion = json.loads(body)
    except (ValueError, RecursionError):
        return Answer(None, f"the answer is no JSON: {shortened(body[:200].decode('utf-8', 'replace'))}")
    if not isinstance(completion, dict):
        return Answer(None, f"the answer is no chat completion but {_kind(completion)}")
    choices = completion.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        error = completion.get("error")
        return Answer(None, f"the answer has no choices{f': {shortened(json.dumps(error))}' if error else ''}")
    message, cut = choices[0].get("message"), choices[0].get("finish_reason") == "length"
    if not isinstance(message, dict):
        return Answer(None, "the answer has no message")
    content = message.get("content")
    if isinstance(content, str):
        return Answer(content, cut=cut)
    refusal = message.get("refusal")
    why = f"; it refuses: {shortened(refusal)}" if isinstance(refusal, str) else ""
    return Answer(None, f"the answer's content is {_kind(content)} and no text{why}", cut=cut)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    kinds: dict[type, str] = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return kinds.get(type(value), "a number")


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds for which an endpoint asks to be left alone, as a number or as a date; None where it doesn't say. now: the
    time, in seconds since 1970."""
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            seconds = float(headers.get(name, "")) / unit
        except ValueError:
            continue
        return max(0.0, seconds) if not math.isnan(seconds) else None
    try:
        date = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    return max(0.0, date.timestamp() - (time.time() if now is None else now))


def _line(error: Exception) -> str:
    """An error of the client's in one line, with what is behind a lost connection."""
    cause = f" ({tidy(str(error.__cause__)[:200])})" if error.__cause__ and str(error.__cause__) else ""
    return f"{type(error).__name__}: {tidy(str(error)[:400])[:160]}{cause[:120]}"
