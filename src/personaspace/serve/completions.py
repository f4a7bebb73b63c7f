"""From a request to jobs, and from what the scheduler brings to replies."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from personaspace.engines.chat import ReplyText
from personaspace.engines.prompts import Sampling
from personaspace.engines.transformers.batching import NOT_FINITE, Row
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.engines.transformers.sampling import check_bias, uniforms
from personaspace.errors import UsageError
from personaspace.model.interventions import Intervention
from personaspace.serve.messages import ChatMessage
from personaspace.serve.metrics import Metrics
from personaspace.serve.persona import Reader, is_finite, tokens_of
from personaspace.serve.record import Record
from personaspace.serve.refusals import BadRequest
from personaspace.serve.replies import AnswerFormat, CompletedReply, Logged, ReplyFormat, ReplyStep
from personaspace.serve.scheduler import OUT_OF_MEMORY, Ended, Event, Job, Worker
from personaspace.serve.settings import Settings
from personaspace.serve.texts import Texts, texts_of
from personaspace.serve.tools import OfferedTools
from personaspace.serve.types import ChatCompletion, Completion, TextCompletion
from personaspace.serve.watch import STOPPED, Act, WatchedReply
from personaspace.serve.webhook import teller

LOST = {
    "error": ("Decoding failed; the server's log says why", None, "server_error", 500),
    "stopping": ("The server is stopping and had no more time for this reply", None, "server_stopping", 503),
    "ended": ("Decoding has ended; the server's log says why", None, "server_error", 503),
    OUT_OF_MEMORY: (
        "There was no memory for this reply; ask for a shorter one, with a shorter prompt, or again when fewer are made",
        None,
        "out_of_memory",
        503,
    ),
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
    answer: AnswerFormat
    replies: list[CompletedReply]
    events: asyncio.Queue[tuple[int, Event]]
    began: float = field(default_factory=time.monotonic)
    messages: list[dict[str, Any]] | None = None
    act: Act | None = None

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
        self.texts = Texts(engine.chat, context, worker.queue)
        self.record = Record(settings.record)
        self.tell_alerts = teller(reader.watch, metrics)

    @property
    def limits(self) -> dict[str, int]:
        """What a request may ask for."""
        s = self.settings
        return {"max_tokens": s.max_tokens, "messages": s.max_messages, "n": s.max_n, "context": self.context}

    def check_messages(self, messages: Sequence[ChatMessage]) -> None:
        """Raises `BadRequest` for more messages than are allowed."""
        if len(messages) > self.settings.max_messages:
            raise BadRequest(f"{len(messages)} messages; at most {self.settings.max_messages} are taken", "messages")

    async def begin(self, body: Completion, answer: AnswerFormat | None = None) -> Pending:
        """Puts a request's replies in the queue. answer: how they are told; None for the body's own endpoint's way. Raises
        `BadRequest`, `QueueFull`."""
        tools = OfferedTools.of(body, self.engine.chat)
        prompts, messages = await self._prompts(body, tools)
        n = body.n * len(prompts)
        if n > self.settings.max_n:
            raise BadRequest(f"{n} replies in one request; at most {self.settings.max_n} are made", "n")
        if n > self.worker.queue:
            raise BadRequest(f"{n} replies in one request; the queue has {self.worker.queue} places", "n")
        interventions, act = self.reader.treatment(body.model, body.persona)
        chat = self.engine.chat
        is_chat = isinstance(body, ChatCompletion)
        answer = answer or ReplyFormat(is_chat, body.model, chat.decode, self._name, chat.token_bytes)
        self.metrics.act(body.model, act)
        pending = Pending(body, answer, [], asyncio.Queue(), messages=messages, act=act)
        # A prompt that is too long is refused before anything is computed.
        samplings = [self._sampling(body, len(ids)) for ids in prompts]
        echoes = await self._echoes(body, prompts, interventions)
        loop = asyncio.get_running_loop()
        seed = body.seed if body.seed is not None else secrets.randbits(62)
        goes_on = isinstance(body, ChatCompletion) and body.continued
        continued_text = messages[-1]["content"] if messages and goes_on else ""
        for ids, sampling in zip(prompts, samplings, strict=True):
            for k in range(body.n):
                random = uniforms(abs(seed) + k, sampling.max_new_tokens)
                # A text that is gone on with may have blank lines, at which a transcript's reply ends.
                ends = chat.end_ids if is_chat else chat.text_end_ids
                ends = frozenset() if body.ignore_eos else ends
                reply = CompletedReply(len(pending.replies), ids, echo=echoes.get(tuple(ids)))
                reply.alternatives = self._alternatives(body)
                if reply.echo is not None:
                    reply.prompt = self._written(ids)
                pending.replies.append(reply)
                if act == "stop":
                    reply.note = STOPPED
                    pending.take(reply.index, Event(finish="content_filter"))
                    continue
                if self._limit(body) == 0:
                    pending.take(reply.index, Event(finish="length"))
                    continue
                row = Row(0, ids, sampling, random, interventions, logprobs=reply.alternatives)
                row.end_ids = ends | frozenset(body.stop_token_ids)
                emit = _emitter(loop, pending, reply.index)
                follow = body.stream and body.persona.report == "token"
                splitter = chat.splitter(ids, continued_text) if is_chat else None
                text = tools.reply_text(splitter) if is_chat else ReplyText(chat.decode)
                row.answered = splitter.answered if splitter else None
                reply.job = Job(row, emit, text, tuple(body.stop), body.stream, follow)
        try:
            self.worker.submit([r.job for r in pending.replies if r.job])
        except Ended:
            raise BadRequest(*LOST["ended"]) from None
        return pending

    def _name(self, token: int) -> str:
        return str(self.engine.tokenizer.decode([token]))

    def _written(self, ids: list[int]) -> str:
        return str(self.engine.tokenizer.decode(ids, skip_special_tokens=False))

    @property
    def _vocabulary(self) -> int:
        return int(self.engine.model.get_input_embeddings().num_embeddings)

    async def _prompts(
        self, body: Completion, tools: OfferedTools
    ) -> tuple[list[list[int]], list[dict[str, Any]] | None]:
        chat = self.engine.chat
        if isinstance(body, ChatCompletion):
            self.check_messages(body.messages)
            messages = [m.plain() for m in body.messages]
            ids = await self.texts.tokens(
                texts_of(messages, tools.offered),
                lambda: chat.prompt_ids(messages, tools.offered, body.continued, body.thinking),
                "messages",
            )
            return [tools.after(ids)], messages
        assert isinstance(body, TextCompletion)
        vocabulary = self._vocabulary
        prompts = []
        for prompt in body.prompts:
            if isinstance(prompt, str):
                ids = await self.texts.tokens(prompt, partial(chat.text_ids, prompt), "prompt")
            else:
                ids = prompt
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
            echoes = {tuple(ids): await asyncio.to_thread(score, ids) for ids in prompts}
        if any(math.isnan(logprob) for echo in echoes.values() for logprob, _ in echo):
            raise BadRequest(*LOST[NOT_FINITE])
        return echoes

    def _sampling(self, body: Completion, length: int) -> Sampling:
        room = self.context - length
        if room < 1:
            raise BadRequest(
                f"This model's context is {self.context} tokens; the prompt has {length}",
                "prompt" if isinstance(body, TextCompletion) else "messages",
                "context_length_exceeded",
            )
        # What does not fit is cut, as other servers do: clients ask for as much as a model of any size could say.
        most = min(self.settings.max_tokens, room)
        limit = self._limit(body)
        sampling = Sampling(
            # No token but the most probable one is within a nucleus of nothing.
            temperature=body.temperature if body.top_p > 0 else 0,
            top_p=body.top_p or 1,
            max_new_tokens=most if limit is None else max(1, min(limit, most)),
            top_k=max(0, body.top_k),
            min_p=body.min_p,
            frequency_penalty=body.frequency_penalty,
            presence_penalty=body.presence_penalty,
            repetition_penalty=body.repetition_penalty,
            logit_bias=tuple((int(token), bias) for token, bias in body.logit_bias.items()),
        )
        try:
            check_bias(sampling, self._vocabulary)
        except UsageError as e:
            raise BadRequest(str(e), "logit_bias") from None
        return sampling

    @staticmethod
    def _limit(body: Completion) -> int | None:
        return body.limit if isinstance(body, ChatCompletion | TextCompletion) else None

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
        return pending.answer.completion(pending.replies)

    async def stream(self, pending: Pending, body: Completion) -> AsyncGenerator[str, None]:
        """Lines of server-sent events, to the end; where the client goes away, the replies are given up."""
        begun: set[int] = set()
        logged: dict[int, int] = {}
        answer = pending.answer
        try:
            for line in answer.opening(pending.replies):
                yield line
            async for reply, event in self._events(pending):
                if reply.finish in LOST:
                    message, param, code, status = LOST[reply.finish]
                    self._answered(pending, status)
                    yield answer.lost(message, param, code)
                    return
                persona = self._persona(reply, event, body)
                first = reply.index not in begun
                if event.text or event.thinking or persona or reply.finish or first:
                    begun.add(reply.index)
                    new = slice(logged.get(reply.index, 0), event.token_count)
                    for line in answer.step(reply, ReplyStep(event.text, event.thinking, persona, first, new)):
                        yield line
                    logged[reply.index] = event.token_count
            self._finished(pending)
            for line in answer.closing(pending.replies, body.stream_options.include_usage):
                yield line
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
                if job is None:
                    self._count(pending, reply, None)
                elif event.finish not in LOST:
                    turn = self.reader.turn(event.mean, job.tokens_read, job.touched, pending.body.persona, pending.act)
                    if job.reply.calls and (calls := job.reply.calls.calls):
                        is_one = isinstance(pending.body, ChatCompletion) and not pending.body.parallel_tool_calls
                        reply.calls = calls[:1] if is_one else calls
                        reply.finish = "tool_calls" if reply.finish == "stop" else reply.finish
                    if turn is None or is_finite(turn.persona):
                        reply.persona = turn.persona if turn else None
                        self._count(pending, reply, turn)
                    else:
                        reply.finish = NOT_FINITE
            yield reply, event

    def _count(self, pending: Pending, reply: CompletedReply, turn: WatchedReply | None) -> None:
        m, model = self.metrics, pending.body.model
        is_first = reply.index % pending.body.n == 0  # of a prompt's replies, which is counted once, as in `usage`
        m.tokens.labels(model, "prompt").inc(len(reply.ids) if is_first else 0)
        m.tokens.labels(model, "completion").inc(reply.tokens)
        m.reply(model, turn)
        self.tell_alerts(model, pending.answer.request_id, turn, pending.body.persona)

    def _answered(self, pending: Pending, status: int) -> None:
        self.metrics.requests.labels(pending.body.model, pending.answer.endpoint, status).inc()

    def _finished(self, pending: Pending) -> None:
        self._answered(pending, 200)
        if pending.messages is not None:
            replies = [
                {
                    "text": r.text,
                    "persona": r.persona,
                    **({"thinking": r.thinking} if r.thinking else {}),
                    **({"tool_calls": [vars(call) for call in r.calls]} if r.calls else {}),
                }
                for r in pending.replies
            ]
            self.record.add(pending.body.model, pending.messages, replies)


def _emitter(loop: asyncio.AbstractEventLoop, pending: Pending, index: int) -> Callable[[Event], None]:
    def emit(event: Event) -> None:
        # Where the loop is closed already, nobody waits.
        if not loop.is_closed():
            loop.call_soon_threadsafe(pending.take, index, event)

    return emit
