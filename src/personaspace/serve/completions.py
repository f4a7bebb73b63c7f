"""From a request to jobs, and from what the scheduler brings to replies."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from personaspace.engines.chat import ReplyText
from personaspace.engines.prompts import Sampling
from personaspace.engines.transformers.batching import NOT_FINITE, Row
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.engines.transformers.sampling import uniforms
from personaspace.model.interventions import Intervention
from personaspace.serve.metrics import Metrics
from personaspace.serve.persona import BadRequest, Reader, tokens_of
from personaspace.serve.replies import CompletedReply, Logged, ReplyFormat
from personaspace.serve.scheduler import Ended, Event, Job, Worker
from personaspace.serve.settings import Settings
from personaspace.serve.types import ChatCompletion, ChatMessage, Completion, TextCompletion

log = logging.getLogger("personaspace.serve")

LOST = {
    "error": ("Decoding failed; the server's log says why", None, "server_error", 500),
    "stopping": ("The server is stopping and had no more time for this reply", None, "server_stopping", 503),
    "ended": ("Decoding has ended; the server's log says why", None, "server_error", 503),
    NOT_FINITE: (
        "The model's numbers became NaN or Inf while this reply was made; persona.steer may be too strong",
        "persona",
        "not_finite",
        500,
    ),
    "cancelled": ("The reply was given up: nobody read it", None, "not_read", 500),
}
"""How a reply ends that is given up: message, field, OpenAI's code, status."""

UNREAD = 512
"""Events of a reply that a client may be behind; one that does not read at all would have them kept without end."""


@dataclass
class Pending:
    """A request whose replies are being made."""

    body: Completion
    reply_format: ReplyFormat
    replies: list[CompletedReply]
    events: asyncio.Queue[tuple[int, Event]]
    began: float = field(default_factory=time.monotonic)
    messages: list[dict[str, str]] | None = None

    def take(self, index: int, event: Event) -> None:
        """Keeps an event until it is sent; where too many are kept, nobody reads."""
        self.events.put_nowait((index, event))
        if self.events.qsize() > UNREAD * len(self.replies):
            self.cancel()

    def cancel(self) -> None:
        """Nobody waits any more: the rows leave at the next step."""
        for r in self.replies:
            if r.job and not r.finish:
                r.job.cancelled = True


class Requests:
    """Begins requests and follows them to their end."""

    def __init__(
        self,
        engine: TransformersEngine,
        reader: Reader,
        worker: Worker,
        metrics: Metrics,
        settings: Settings,
        context: int,
    ) -> None:
        self.engine, self.reader, self.worker = engine, reader, worker
        self.metrics, self.settings, self.context = metrics, settings, context
        self._unwritten = False

    @property
    def limits(self) -> dict[str, int]:
        """What a request may ask for."""
        s = self.settings
        return {"max_tokens": s.max_tokens, "messages": s.max_messages, "n": s.max_n, "context": self.context}

    def check_messages(self, messages: Sequence[ChatMessage]) -> None:
        """Raises `BadRequest` for more messages than are allowed."""
        if len(messages) > self.settings.max_messages:
            raise BadRequest(f"{len(messages)} messages; at most {self.settings.max_messages} are taken", "messages")

    async def begin(self, body: Completion) -> Pending:
        """Puts a request's replies in the queue. Raises `BadRequest`, `QueueFull`."""
        prompts, messages = self._prompts(body)
        n = body.n * len(prompts)
        if n > self.settings.max_n:
            raise BadRequest(f"{n} replies in one request; at most {self.settings.max_n} are made", "n")
        if n > self.worker.queue:
            raise BadRequest(f"{n} replies in one request; the queue has {self.worker.queue} places", "n")
        interventions = self.reader.interventions(body.model, body.persona)
        chat = self.engine.chat
        reply_format = ReplyFormat(
            isinstance(body, ChatCompletion), body.model, chat.decode, self._name, chat.token_bytes
        )
        pending = Pending(body, reply_format, [], asyncio.Queue(), messages=messages)
        # A prompt that is too long is refused before anything is computed.
        samplings = [self._sampling(body, len(ids)) for ids in prompts]
        echoes = await self._echoes(body, prompts, interventions)
        loop = asyncio.get_running_loop()
        seed = body.seed if body.seed is not None else secrets.randbits(62)
        for ids, sampling in zip(prompts, samplings, strict=True):
            for k in range(body.n):
                random = uniforms(abs(seed) + k, sampling.max_new_tokens)
                # A text that is gone on with may have blank lines, at which a transcript's reply ends.
                ends = None if reply_format.chat else chat.text_end_ids
                row = Row(0, ids, sampling, random, interventions, logprobs=self._alternatives(body), end_ids=ends)
                reply = CompletedReply(len(pending.replies), len(ids), echo=echoes.get(tuple(ids)))
                if reply.echo is not None:
                    reply.prompt = self._written(ids)
                emit = _emitter(loop, pending, reply.index)
                follow = body.stream and body.persona.report == "token"
                text = ReplyText(chat.decode, chat.splitter(ids) if reply_format.chat else None)
                reply.job = Job(row, emit, text, tuple(body.stop), body.stream, follow)
                pending.replies.append(reply)
        try:
            self.worker.submit([r.job for r in pending.replies if r.job])
        except Ended:
            raise BadRequest(*LOST["ended"]) from None
        return pending

    def _name(self, token: int) -> str:
        return str(self.engine.tokenizer.decode([token]))

    def _written(self, ids: list[int]) -> str:
        return str(self.engine.tokenizer.decode(ids, skip_special_tokens=False))

    def _prompts(self, body: Completion) -> tuple[list[list[int]], list[dict[str, str]] | None]:
        chat = self.engine.chat
        if isinstance(body, ChatCompletion):
            self.check_messages(body.messages)
            messages = [m.plain() for m in body.messages]
            return [chat.prompt_ids(messages, body.thinking)], messages
        assert isinstance(body, TextCompletion)
        vocabulary = self.engine.model.get_input_embeddings().num_embeddings
        prompts = []
        for prompt in body.prompts:
            ids = chat.text_ids(prompt) if isinstance(prompt, str) else prompt
            if not ids or any(not 0 <= t < vocabulary for t in ids):
                raise BadRequest(
                    f"a prompt without tokens, or with one that is not from 0 to {vocabulary - 1}", "prompt"
                )
            prompts.append(ids)
        if not prompts:
            raise BadRequest("no prompt", "prompt")
        return prompts, None

    async def _echoes(
        self, body: Completion, prompts: Sequence[list[int]], interventions: Sequence[Intervention]
    ) -> dict[tuple[int, ...], list[Logged]]:
        """Where the prompts are to be echoed, how probable their tokens are."""
        if not isinstance(body, TextCompletion) or not body.echo:
            return {}
        top = body.logprobs
        if top is None:
            return {tuple(ids): [] for ids in prompts}

        def score(ids: list[int]) -> list[Logged]:
            with self.worker.model_lock.exclusive():
                return list(self.engine.score(ids, top, interventions))

        with self.worker.model_lock.place():
            return {tuple(ids): await asyncio.to_thread(score, ids) for ids in prompts}

    def _sampling(self, body: Completion, length: int) -> Sampling:
        assert isinstance(body, ChatCompletion | TextCompletion)
        room = self.context - length
        if room < 1:
            raise BadRequest(
                f"This model's context is {self.context} tokens; the prompt has {length}",
                "messages",
                "context_length_exceeded",
            )
        max_tokens = body.limit
        if max_tokens is not None and max_tokens > self.settings.max_tokens:
            raise BadRequest(f"max_tokens {max_tokens}: at most {self.settings.max_tokens} are made", "max_tokens")
        max_new_tokens = min(max_tokens or self.settings.max_tokens, room)
        return Sampling(temperature=body.temperature, top_p=body.top_p, max_new_tokens=max_new_tokens)

    @staticmethod
    def _alternatives(body: Completion) -> int | None:
        return body.alternatives if isinstance(body, ChatCompletion | TextCompletion) else None

    # -- following -------------------------------------------------------------------------------------------------

    async def complete(self, pending: Pending) -> dict[str, Any]:
        """Waits for all replies. Raises `BadRequest` where decoding failed."""
        async for reply, _ in self._events(pending):
            if reply.finish in LOST:
                raise BadRequest(*LOST[reply.finish])
        self._finished(pending)
        return pending.reply_format.completion(pending.replies)

    async def stream(self, pending: Pending, body: Completion) -> AsyncIterator[str]:
        """Lines of server-sent events, to the end; where the client goes away, the replies are given up."""
        begun: set[int] = set()
        logged: dict[int, int] = {}
        try:
            async for reply, event in self._events(pending):
                if reply.finish in LOST:
                    message, param, code, _ = LOST[reply.finish]
                    yield _sse({"error": {"message": message, "type": "server_error", "param": param, "code": code}})
                    return
                persona = self._persona(reply, event, body)
                first = reply.index not in begun
                if event.text or event.thinking or persona or reply.finish or first:
                    begun.add(reply.index)
                    new = slice(logged.get(reply.index, 0), event.token_count)
                    yield _sse(pending.reply_format.chunk(reply, event.text, persona, first, new, event.thinking))
                    logged[reply.index] = event.token_count
            if body.stream_options.include_usage:
                yield _sse(pending.reply_format.usage_chunk(pending.replies))
            self._finished(pending)
            yield _sse("[DONE]")
        finally:
            pending.cancel()

    def _persona(self, reply: CompletedReply, event: Event, body: Completion) -> dict[str, Any]:
        """A chunk's `persona`: at the end how the reply lies; before it, where tokens were asked for, how it lies so far."""
        tokens = tokens_of(event.read) if event.read and body.persona.report == "token" else {}
        if reply.finish:
            return {**(reply.persona or {}), **tokens}
        if event.mean is None or reply.job is None:
            return tokens
        return {**self.reader.reading(event.mean, event.tokens_read), **tokens}

    async def _events(self, pending: Pending) -> AsyncIterator[tuple[CompletedReply, Event]]:
        unfinished = len(pending.replies)
        waiting_for_first = {r.index for r in pending.replies}
        while unfinished:
            index, event = await pending.events.get()
            reply = pending.replies[index]
            if index in waiting_for_first:
                waiting_for_first.discard(index)
                self.metrics.first.labels(pending.body.model).observe(time.monotonic() - pending.began)
            reply.text += event.text
            reply.thinking += event.thinking
            if event.finish:
                unfinished -= 1
                reply.finish = event.finish
                job = reply.job
                if job and event.finish not in LOST:
                    reply.persona = self.reader.turn(
                        event.mean, job.tokens_read, job.touched, pending.body.persona.history
                    )
                    self._count(pending.body.model, reply)
            yield reply, event

    def _count(self, model: str, reply: CompletedReply) -> None:
        m = self.metrics
        m.tokens.labels(model, "prompt").inc(reply.prompt_tokens)
        m.tokens.labels(model, "completion").inc(reply.tokens)
        m.reply(model, reply.persona)

    def _finished(self, pending: Pending) -> None:
        endpoint = "/v1/chat/completions" if pending.reply_format.chat else "/v1/completions"
        self.metrics.requests.labels(pending.body.model, endpoint, 200).inc()
        if self.settings.record and pending.messages is not None:
            replies = [
                {"text": r.text, "persona": r.persona, **({"thinking": r.thinking} if r.thinking else {})}
                for r in pending.replies
            ]
            line = json.dumps({"model": pending.body.model, "messages": pending.messages, "replies": replies})
            try:
                with self.settings.record.open("a", encoding="utf-8") as f:
                    f.write(line + "\n")
            except OSError as e:  # the reply is made: who asked for it gets it
                if not self._unwritten:
                    log.error("%s: conversations are not written: %s", self.settings.record, e.strerror)
                self._unwritten = True


def _emitter(loop: asyncio.AbstractEventLoop, pending: Pending, index: int) -> Callable[[Event], None]:
    def emit(event: Event) -> None:
        # Where the loop is closed already, nobody waits.
        if not loop.is_closed():
            loop.call_soon_threadsafe(pending.take, index, event)

    return emit


def _sse(value: dict[str, Any] | str) -> str:
    return f"data: {value if isinstance(value, str) else json.dumps(value)}\n\n"
