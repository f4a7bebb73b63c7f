"""One thread that decodes whatever is asked for together: requests' rows join and leave between steps.

The queue is bounded; a client that goes away frees its place within a step. It knows nothing of HTTP.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from personaspace.engines.chat import ReplyText
from personaspace.engines.transformers.batching import NOT_FINITE, Row
from personaspace.engines.transformers.decode_loop import DecodeLoop, Done
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.engines.transformers.memory import free_memory, is_out_of_memory
from personaspace.engines.transformers.prefill import Prefill
from personaspace.serve.lock import ModelLock, QueueFull
from personaspace.serve.stops import StopTexts

log = logging.getLogger("personaspace.serve")

PIECE = 256
"""Tokens of a prompt in one pass beside replies in flight; a prompt with fewer left is computed as it joins."""

WAIT = 1.5
"""How long a prompt's pass may keep running replies, in steps: with the step itself, the gap between two of their tokens stays
under three times the usual one."""

SLICE = 0.25
"""How long it may keep those, in seconds, that come while nothing else is in flight."""

LONG, APART = 1024, 2
"""Tokens that a prompt has at the least for its reply to be decoded apart from shorter ones, and how many may be: a pass for
each takes as long as a step of a few rows, while together every row looks at as many columns as the longest has."""

OUT_OF_MEMORY = "memory"

FAILURES = 8
"""Steps that may fail one after the other before decoding is given up."""


class Ended(Exception):
    """Nothing is decoded any more."""


@dataclass(frozen=True)
class TokenRead:
    """A token's projection, known one step after it."""

    index: int
    text: str
    projection: float
    capped: bool


@dataclass(frozen=True)
class Event:
    """What a step brought a reply: text that is ready, tokens that were read, and at the end how it ended. mean: the mean
    activation `[hidden]` at the space's layer over the tokens that were read (None where none was), at the end and, of a job
    that is followed, at every step. token_count: how many tokens were sampled by then, at the end with the stop token: the row
    itself goes on while the event is on its way. thinking: text of its thoughts that is ready. tokens_read: how many tokens the
    mean is over: the answer's alone."""

    text: str = ""
    read: tuple[TokenRead, ...] = ()
    finish: str = ""
    mean: Tensor | None = None
    token_count: int = 0
    thinking: str = ""
    tokens_read: int = 0


@dataclass(eq=False)
class Job:
    """A reply that somebody waits for. emit is called from the worker's thread: at every step where it is `live`, else for the
    first one and the end. follow: whether the mean so far is wanted at every step as well."""

    row: Row
    emit: Callable[[Event], None]
    reply: ReplyText
    stop: tuple[str, ...] = ()
    live: bool = True
    follow: bool = False
    cancelled: bool = False
    began: float = field(default_factory=time.monotonic)
    text: str = ""
    stops: StopTexts = field(init=False)
    shown: int = 0
    seen: int = 0
    thinking_shown: int = 0
    tokens_read: int = 0  # tokens of the answer that were fed: the newest one is not, yet
    starts: list[int] = field(default_factory=list)  # where each token's text begins
    touched: int = 0
    finish: str = ""
    last: tuple[TokenRead, ...] = ()

    def __post_init__(self) -> None:
        self.stops = StopTexts(self.stop)


class Worker:
    """Decodes jobs on one model, at most `rows` at a time, while at most `queue` wait."""

    def __init__(
        self, engine: TransformersEngine, layer: int, unit: Tensor, *, rows: int, queue: int, columns: int
    ) -> None:
        self.engine, self.layer, self.unit, self.queue = engine, layer, unit.to(engine.device), queue
        self.rows, self.columns = rows, columns
        self.waiting: deque[Job] = deque()
        self.running: dict[int, Job] = {}
        self.changed = threading.Condition()
        self.stopping, self.until, self.ended = False, math.inf, False
        self.failures = 0  # steps that failed since one went well
        self.model_lock = ModelLock(queue)
        self.prefills: list[Prefill] = []
        self.apart: list[DecodeLoop] = []  # each with one long row
        self.step_seconds = 0.0  # how long a step has taken lately
        self.seconds = 5.0  # how long a reply has taken lately
        self.thread = threading.Thread(target=self._run, name="personaspace-decode", daemon=True)
        self._keys = 0

    def start(self) -> None:
        """Begins to decode."""
        self.thread.start()

    def drain(self, seconds: float) -> None:
        """What is not finished after so many seconds is given up; its clients are told."""
        self.until = min(self.until, time.monotonic() + seconds)

    @property
    def draining(self) -> bool:
        return self.until < math.inf

    @property
    def overdue(self) -> bool:
        """Whether the time to finish is over."""
        return time.monotonic() >= self.until

    def stop(self, seconds: float = 10.0) -> None:
        """Finishes what runs and what waits, within a limit."""
        with self.changed:
            self.stopping = True
            self.changed.notify()
        self.thread.join(seconds)

    def submit(self, jobs: list[Job]) -> None:
        """Takes in a request's jobs, all or none. Raises `QueueFull`, `Ended`."""
        with self.changed:
            if self.ended:
                raise Ended
            for cancelled in [job for job in self.waiting if job.cancelled]:
                self.waiting.remove(cancelled)
                cancelled.emit(Event(finish="cancelled"))
            if len(self.waiting) + len(jobs) > self.queue:
                raise QueueFull
            for job in jobs:
                self._keys += 1
                job.row.key = self._keys
                self.waiting.append(job)
            self.changed.notify()

    @property
    def retry_after(self) -> int:
        """Seconds after which a place is likely to be free."""
        return max(1, round(self.seconds * (1 + len(self.waiting) / max(1, self.rows))))

    def _run(self) -> None:
        try:
            self._decode()
        except Exception:
            log.exception("decoding ended; nothing is answered any more")
        finally:
            with self.changed:
                self.ended = True
            self._give_up("error", waiting_too=True)

    def _decode(self) -> None:
        loop = self._fresh()
        while True:
            with self.changed:
                while not self.waiting and not self.running and not self.stopping:
                    self.changed.wait()
                if self.stopping and not self.waiting and not self.running:
                    return
                joining = self._next(loop.free - len(self.prefills) - len(self.apart))
            try:
                with self.model_lock.step(lambda: self.overdue) as acquired:
                    if self.overdue or not acquired:
                        self._give_up("stopping", waiting_too=True)
                        loop = self._fresh()
                        continue
                    self._join(loop, joining)
                    self._prefill(loop)
                    if stepping := [each for each in (loop, *self.apart) if each.rows]:
                        began = time.monotonic()
                        finished = [done for each in stepping for done in each.step(partial(self._watch, each))]
                        self.apart = [each for each in self.apart if each.rows]
                        took = time.monotonic() - began
                        self.step_seconds += (0.2 if self.step_seconds else 1.0) * (took - self.step_seconds)
                        for done in finished:
                            self._end(done)
                        self.failures = 0
                continue
            except Exception as e:  # a thread that dies would leave every request waiting
                finish = _why(e, f"a decoding step failed; its {len(self.running)} replies are given up")
                if finish == OUT_OF_MEMORY:  # so many together did not fit
                    self.rows = max(1, min(self.rows, len(self.running)) // 2)
                self._give_up(finish)
                self.failures += finish != OUT_OF_MEMORY
                if self.failures >= FAILURES:
                    raise
            # The exception is gone, and with it the tensors that it held. A device that has failed for good fails here too,
            # which ends the thread: only a new process can go on.
            free_memory()
            torch.ones(1, device=self.engine.device).add(1).item()
            loop = self._fresh()

    def _join(self, loop: DecodeLoop, jobs: list[Job]) -> None:
        """Replies come in: those with a short prompt at once and together, prompts that are long, or that have begun before, in
        pieces."""
        whole = jobs
        if self.engine.layout.goes_on:
            begun = [loop.begin(job.row) for job in jobs]
            self.prefills += [p for p in begun if p.done or p.remaining > PIECE]
            in_pieces = {p.row.key for p in self.prefills}
            whole = [job for job in jobs if job.row.key not in in_pieces]
        if whole:
            self._join_whole(loop, whole)

    def _join_whole(self, loop: DecodeLoop, jobs: list[Job]) -> None:
        """Takes replies in; one whose prompt fails is given up alone."""
        try:
            return loop.join([job.row for job in jobs])
        except Exception as e:  # noqa: BLE001 - told below
            if len(jobs) == 1:
                self._prompt_failed(loop, jobs[0].row, e)
                return
        for job in jobs:
            self._join_whole(loop, [job])

    def _prompt_failed(self, loop: DecodeLoop, row: Row, error: Exception) -> None:
        """Gives up the reply whose prompt raised an exception."""
        finish = _why(error, "a prompt failed; its reply is given up")
        if loop.device.type != "cpu":
            torch.ones(1, device=loop.device).add(1).item()  # a device that failed for good fails here too
        with self.changed:
            job = self.running.pop(row.key)
        job.emit(Event(finish=finish))

    def _prefill(self, loop: DecodeLoop) -> None:
        """Computes some of the prompts that come in pieces, the one with the least left first, for no longer than the rows in
        flight may wait."""
        for prefill in [p for p in self.prefills if self.running[p.row.key].cancelled]:
            self.prefills.remove(prefill)
            prefill.drop()
            self.running.pop(prefill.row.key).emit(Event(finish="cancelled"))
        # Between layers alone a pass can stop, so that its tokens are bounded as well; a GPU that serves nobody takes many.
        in_flight = loop.rows or self.apart
        tokens = PIECE if in_flight or self.engine.device.type == "cpu" else self.engine.prefill_tokens
        seconds = WAIT * self.step_seconds if in_flight else SLICE
        until = time.monotonic() + seconds
        while self.prefills and seconds > 0:
            prefill = min(self.prefills, key=lambda p: p.remaining)
            try:
                prefill.advance(tokens, seconds)
                if not prefill.remaining:
                    longest = max((row.length for row in loop.rows), default=0)
                    if len(self.apart) < APART and len(prefill.row.ids) > max(LONG, 4 * longest):
                        self.apart.append(loop.apart(prefill))
                    else:
                        loop.join_computed(prefill)
                    self.prefills.remove(prefill)
            except Exception as e:  # noqa: BLE001 - told below
                self.prefills.remove(prefill)
                self._prompt_failed(loop, prefill.row, e)
            seconds = until - time.monotonic()

    def _give_up(self, finish: str, waiting_too: bool = False) -> None:
        """Ends the jobs that run, and with `waiting_too` those that wait as well."""
        with self.changed:
            jobs = [*self.running.values(), *(self.waiting if waiting_too else ())]
            self.running.clear()
            prefills, self.prefills, self.apart = self.prefills, [], []
            if waiting_too:
                self.waiting.clear()
        for prefill in prefills:
            prefill.drop()
        for job in jobs:
            job.emit(Event(finish=finish))

    def _fresh(self) -> DecodeLoop:
        return self.engine.open_loop(self.columns, [self.layer], rows=self.rows, keep=self.engine.memory // 8)

    def _next(self, free: int) -> list[Job]:
        joining: list[Job] = []
        while self.waiting and len(joining) < free:
            job = self.waiting.popleft()
            if job.cancelled:
                job.emit(Event(finish="cancelled"))
            else:
                joining.append(job)
                self.running[job.row.key] = job
        return joining

    def _watch(self, loop: DecodeLoop, k: int, row: Row) -> None:
        """Tells a job what this step brought; what fails with one row ends that one alone."""
        try:
            self._follow(loop, k, row)
        except Exception:
            log.exception("following a reply failed; it is given up")
            row.finish = self.running[row.key].finish = "error"

    def _follow(self, loop: DecodeLoop, k: int, row: Row) -> None:
        """Tells a job what this step brought, and ends it where it stops by itself."""
        job = self.running[row.key]
        read: tuple[TokenRead, ...] = ()
        for _ in range(len(job.starts), len(row.out)):
            job.starts.append(len(job.text))
        added = job.reply.add(row.out, final=bool(row.finish))
        job.text += added
        stop_start = job.stops.feed(added)
        answer_start = job.reply.splitter.parts.answer[0] if job.reply.splitter else 0
        if job.seen:
            index = job.seen - 1
            start = job.starts[index]
            end = job.starts[index + 1] if index + 1 < len(job.starts) else len(job.text)
            projection = float(loop.means.last[0, k] @ self.unit)
            if math.isfinite(projection) and index < answer_start:
                read = ()  # a thought
            elif math.isfinite(projection):
                read = (TokenRead(index, job.text[start:end], projection, row.touched > job.touched),)
            else:
                row.finish = NOT_FINITE
        if answer_start == job.seen > 0:  # what was read by now was thought
            loop.means.clear(slice(k, k + 1))
            row.touched = 0
        job.tokens_read, job.seen, job.touched = max(0, job.seen - answer_start), len(row.out), row.touched
        if row.finish != NOT_FINITE and stop_start is not None:
            job.text, row.finish = job.text[:stop_start], "stop"
        elif job.cancelled:
            row.finish = "cancelled"
        if row.finish:
            job.finish, job.last = row.finish, read
            return
        # What may be the beginning of a stop text is held back.
        ready = job.text[job.shown : len(job.text) - job.stops.held_back]
        if job.live or not (job.shown or job.thinking_shown):
            job.shown += len(ready)
            mean = loop.means.mean(k)[0][0] if job.follow and read else None
            thinking = _new_thinking(job)
            job.emit(
                Event(ready, read, mean=mean, token_count=len(row.out), thinking=thinking, tokens_read=job.tokens_read)
            )

    def _end(self, done: Done) -> None:
        job = self.running.pop(done.row.key)
        self.seconds += 0.2 * (time.monotonic() - job.began - self.seconds)
        mean = done.mean[0] if done.mean is not None and job.tokens_read and bool(torch.any(done.mean)) else None
        token_count = len(done.row.out) + (done.row.end is not None)
        thinking = _new_thinking(job)
        job.emit(Event(job.text[job.shown :], job.last, job.finish, mean, token_count, thinking, job.tokens_read))


def _why(error: Exception, message: str) -> str:
    """How replies end that an exception ended, which the log is told."""
    if is_out_of_memory(error):
        log.warning("out of memory: %s", message)
        return OUT_OF_MEMORY
    log.error(message, exc_info=error)
    return "error"


def _new_thinking(job: Job) -> str:
    """What of a job's thoughts was not told yet."""
    thinking = job.reply.thinking[job.thinking_shown :]
    job.thinking_shown += len(thinking)
    return thinking
