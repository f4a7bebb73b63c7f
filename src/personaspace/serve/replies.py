"""Puts replies in OpenAI's shapes, whole and as chunks; it knows nothing of models."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol

from personaspace.engines.tool_calls import CalledTool
from personaspace.serve.refusals import error_body
from personaspace.serve.scheduler import Job

Logged = tuple[float, list[tuple[int, float]]]
"""A token's log-probability, and the most probable tokens in its place with theirs."""


LEAST = -9999.0
"""What stands for the log-probability of a token that cannot come, as at OpenAI: JSON has no infinity."""


@dataclass
class CompletedReply:
    """One of a request's replies, complete once it has a `finish`. ids: its prompt's; job: None where no token is wanted, or
    another server made it, of which `counted` says how many tokens it has, and `thoughts_counted` how many of them are
    thoughts; alternatives: how many tokens' log-probabilities are
    told in each one's place, None for none at all. echo: where the prompt is given back, the log-probabilities of its tokens
    from the second one on; prompt: its text then. calls: the tools that it calls, known at its end. note: why it was not made,
    where an alert ended the conversation."""

    index: int
    ids: list[int]
    job: Job | None = None
    counted: int | None = None
    thoughts_counted: int = 0
    alternatives: int | None = None
    text: str = ""
    thinking: str = ""
    finish: str = ""
    persona: dict[str, Any] | None = None
    echo: list[Logged] | None = None
    prompt: str = ""
    calls: tuple[CalledTool, ...] = ()
    note: str | None = None

    @property
    def tokens(self) -> int:
        """How many were made, the one that ended it as well, as other servers count them."""
        if self.job is None:
            return self.counted or 0
        return len(self.job.row.out) + (self.job.row.end is not None)

    @property
    def thought_tokens(self) -> int:
        """How many of its tokens are thoughts, their markers not among them."""
        if self.job is None:
            return self.thoughts_counted
        splitter = self.job.reply.splitter
        return splitter.parts.thought_tokens if splitter else 0


@dataclass(frozen=True)
class ReplyStep:
    """What a step brought a reply: text and thoughts, and the `persona` where tokens are told of. first: nothing of it was
    told before; logged: which of its tokens' log-probabilities to tell."""

    text: str
    thinking: str
    persona: Mapping[str, Any] | None
    first: bool
    logged: slice


class AnswerFormat(Protocol):
    """How a request is answered: at once, or as lines of server-sent events."""

    @property
    def endpoint(self) -> str: ...

    @property
    def request_id(self) -> str:
        """By which an answer is known."""
        ...

    def completion(self, replies: Sequence[CompletedReply]) -> dict[str, Any]:
        """All of a request's replies at once."""
        ...

    def opening(self, replies: Sequence[CompletedReply]) -> Iterator[str]:
        """What a stream begins with."""
        ...

    def step(self, r: CompletedReply, step: ReplyStep) -> Iterator[str]:
        """What a step brought a reply."""
        ...

    def closing(self, replies: Sequence[CompletedReply], told_usage: bool) -> Iterator[str]:
        """What a stream ends with."""
        ...

    def lost(self, message: str, param: str | None, code: str) -> str:
        """What it ends with where a reply is given up."""
        ...


@dataclass(frozen=True)
class ReplyFormat:
    """How a request's replies are written: as a chat's or a text completion's. decode: the text of a reply's tokens; name: of
    one token, also of one that ends a reply and is no part of its text; raw: a token's own bytes, also of a part of a
    character."""

    chat: bool
    model: str
    decode: Callable[[Sequence[int]], str]
    name: Callable[[int], str]
    raw: Callable[[int], bytes]
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def endpoint(self) -> str:
        return "/v1/chat/completions" if self.chat else "/v1/completions"

    @property
    def request_id(self) -> str:
        return f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}"

    def opening(self, replies: Sequence[CompletedReply]) -> Iterator[str]:
        """Nothing: a reply's first chunk is its own."""
        return iter(())

    def step(self, r: CompletedReply, step: ReplyStep) -> Iterator[str]:
        """A chunk."""
        yield sse(self.chunk(r, step))

    def closing(self, replies: Sequence[CompletedReply], told_usage: bool) -> Iterator[str]:
        """The counts where they are asked for, and the end."""
        if told_usage:
            yield sse(self.usage_chunk(replies))
        yield "data: [DONE]\n\n"

    def lost(self, message: str, param: str | None, code: str) -> str:
        """An error in place of a chunk."""
        return sse(error_body(message, "server_error", param, code))

    def _head(self, chunk: bool) -> dict[str, Any]:
        kind = "chat.completion" + ".chunk" * chunk if self.chat else "text_completion"
        return {"id": self.request_id, "object": kind, "created": self.created, "model": self.model}

    def completion(self, replies: Sequence[CompletedReply]) -> dict[str, Any]:
        """All of a request's replies at once; `persona` is the first one's, `personas` all of them."""
        choices = []
        for r in replies:
            text = r.prompt + r.text
            thoughts = {"reasoning_content": r.thinking} if r.thinking else {}
            calls = {"tool_calls": [_call(c) for c in r.calls]} if r.calls else {}
            # As at OpenAI, whose clients take null for nothing said.
            message = {
                "role": "assistant",
                "content": text or (None if calls else ""),
                "refusal": r.note,
                **thoughts,
                **calls,
            }
            content = {"message": message} if self.chat else {"text": text}
            choices.append({"index": r.index, **content, "logprobs": self.logprobs(r), "finish_reason": r.finish})
        personas = [r.persona for r in replies]
        extra = {"persona": personas[0]} if len(personas) == 1 else {"persona": personas[0], "personas": personas}
        return {**self._head(False), "choices": choices, "usage": usage(replies), **extra}

    def chunk(self, r: CompletedReply, step: ReplyStep) -> dict[str, Any]:
        """What a step brought a reply, and its thoughts."""
        if self.chat:
            delta: dict[str, Any] = {"role": "assistant"} if step.first else {}
            delta |= {"reasoning_content": step.thinking} if step.thinking else {}
            delta |= {"content": step.text} if step.text or step.first else {}
            delta |= {"refusal": r.note} if r.note else {}
            delta |= {"tool_calls": [{"index": k, **_call(c)} for k, c in enumerate(r.calls)]} if r.calls else {}
            content: dict[str, Any] = {"delta": delta}
        else:
            content = {"text": (r.prompt if step.first else "") + step.text}
        logprobs = self.logprobs(r, step.logged, step.first)
        choice = {"index": r.index, **content, "logprobs": logprobs, "finish_reason": r.finish or None}
        return {**self._head(True), "choices": [choice], **({"persona": step.persona} if step.persona else {})}

    def usage_chunk(self, replies: Sequence[CompletedReply]) -> dict[str, Any]:
        """The last chunk where usage is asked for: no choices, the counts."""
        return {**self._head(True), "choices": [], "usage": usage(replies)}

    def logprobs(
        self, r: CompletedReply, which: slice = slice(0, None), with_prompt: bool = True
    ) -> dict[str, Any] | None:
        """The log-probabilities of those of a reply's tokens, in the endpoint's own shape; with_prompt: and of the prompt's,
        where it is echoed."""
        if r.alternatives is None:
            return None
        tokens: list[tuple[int, float, list[tuple[int, float]]]] = []
        if r.job:
            row = r.job.row
            # Text completions list the stop token as well: who scores a prompt cuts one token off the end.
            token_ids = row.out if self.chat or row.end is None else [*row.out, row.end]
            tokens = [(t, *logged) for t, logged in list(zip(token_ids, row.logs, strict=False))[which]]
        if not self.chat:
            return self._text_logprobs(r, tokens, which.start, with_prompt)
        return {
            "content": [
                {**self._token(t, lp), "top_logprobs": [self._token(*pair) for pair in top]} for t, lp, top in tokens
            ],
            "refusal": None,
        }

    def _text_logprobs(
        self, r: CompletedReply, tokens: list[tuple[int, float, Any]], since: int, with_prompt: bool
    ) -> dict[str, Any]:
        """Lists side by side; an echoed prompt's come first, its first token without a probability."""
        echoed = r.ids if r.echo is not None else []
        ids = echoed if with_prompt else []
        logged: list[Any] = [(None, None), *(r.echo or [])] if ids else []
        every = [*((t, *logprobs) for t, logprobs in zip(ids, logged, strict=True)), *tokens]
        before = r.job.row.out[:since] if r.job else []
        texts = [self.name(t) for t, _, _ in every]
        start = len(self.decode(before)) + (0 if with_prompt else sum(len(self.name(t)) for t in echoed))
        offsets = [start, *(start + n for n in accumulate(map(len, texts[:-1])))][: len(texts)]
        return {
            "tokens": texts,
            "token_logprobs": [None if lp is None else max(LEAST, lp) for _, lp, _ in every],
            "top_logprobs": [None if top is None else self._most_probable(top) for _, _, top in every],
            "text_offset": offsets,
        }

    def _most_probable(self, top: Sequence[tuple[int, float]]) -> dict[str, float]:
        """By text: of tokens that are written alike, the most probable one counts, which stands first."""
        by_text: dict[str, float] = {}
        for token, logprob in top:
            by_text.setdefault(self.name(token), max(LEAST, logprob))
        return by_text

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": self.name(token), "logprob": max(LEAST, logprob), "bytes": list(self.raw(token))}


def _call(call: CalledTool) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def usage(replies: Sequence[CompletedReply]) -> dict[str, Any]:
    """Tokens of the prompts, counted once a prompt, and of the replies; how many of these are thoughts, where any is."""
    prompt_tokens = sum({id(r.ids): len(r.ids) for r in replies}.values())
    completion_tokens = sum(r.tokens for r in replies)
    thoughts = sum(r.thought_tokens for r in replies)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        **(thoughts_detail(thoughts) if thoughts else {}),
    }


def thoughts_detail(tokens: int) -> dict[str, Any]:
    """How many of a reply's tokens are thoughts, as `usage` tells it.

    >>> thoughts_detail(3)
    {'completion_tokens_details': {'reasoning_tokens': 3}}
    """
    return {"completion_tokens_details": {"reasoning_tokens": tokens}}


def sse(value: Mapping[str, Any], event: str = "") -> str:
    """An object as a server-sent event."""
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(value, allow_nan=False)}\n\n"
