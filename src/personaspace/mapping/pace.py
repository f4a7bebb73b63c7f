"""How fast an engine is, measured for a second or two on the loop that a run goes through: what a forecast of time rests on
where a model is loaded. Without one, `plan` has arithmetic.

Nothing of a run is touched: what is said is thrown away, and replies draw from their own seeds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

from torch import Tensor

from personaspace.engines import Engine
from personaspace.engines.prefix import unshared_length
from personaspace.engines.prompts import Prompt, Sampling
from personaspace.errors import PersonaSpaceError

ENOUGH = 0.8
"""Seconds that prompts must take for their rate to be believed, half of it where replies are timed as well; below it, more
prompts are tried, as far as there are."""
STEPS, STEPS_SECONDS = 12, 0.8
"""Steps of decoding that are timed at most, and seconds after which no further one is."""
MARKS = 3
"""Replies that end one step after the other, so that steps can be timed, where the prompts are what is measured."""

Clock = Callable[[], float]


@dataclass(frozen=True)
class Pace:
    """Of one engine at one kind of work. prompt_token: seconds for a token of a prompt, what neighbours share counted once;
    step: seconds in which `rows` replies get a token each, 0 where nothing is generated.

    >>> Pace(0.01, step=0.5, rows=100).seconds(prompt_tokens=2_000, new_tokens=10_000)
    70.0
    """

    prompt_token: float
    step: float = 0.0
    rows: int = 1

    def seconds(self, prompt_tokens: float, new_tokens: float = 0) -> float:
        """How long so many tokens take."""
        return self.prompt_token * prompt_tokens + self.step * new_tokens / self.rows


def measure(
    engine: Engine,
    prompts: Sequence[Prompt],
    sampling: Sampling | None,
    *,
    together: int,
    before: float | None = None,
    along: Tensor | None = None,
    clock: Clock = time.monotonic,
) -> Pace | None:
    """An engine's pace with such prompts, neighbours in a shard; without sampling they are read before the first word. None
    where the engine does not say how many replies it has in flight (`rows_in_flight`; those that have their work done elsewhere
    don't), or nothing came of it.

    together: how many replies are asked for at once. before: tokens before a reply, in the mean; None for the prompts' own.
    """
    if not prompts or not hasattr(engine, "rows_in_flight"):
        return None
    try:
        if sampling is None:
            return _of_onsets(engine, prompts, clock)
        return _of_replies(engine, prompts, sampling, together, before, along, clock)
    except PersonaSpaceError:
        return None  # what is wrong is said by the run itself, with the prompt's own name


def _of_onsets(engine: Engine, prompts: Sequence[Prompt], clock: Clock) -> Pace:
    def seconds(sample: Sequence[Prompt]) -> float:
        began = clock()
        for _ in engine.onsets(sample, read=range(engine.info.layers)):
            pass
        return clock() - began

    def tokens(sample: Sequence[Prompt]) -> int:
        return unshared_length(engine.chat.prompt_ids(p.messages) for p in sample)

    seconds(prompts[:1])  # the first pass of all is slower than any other
    return Pace(_seconds_a_token(prompts, 2, seconds, tokens, ENOUGH))


def _of_replies(
    engine: Engine,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    together: int,
    before: float | None,
    along: Tensor | None,
    clock: Clock,
) -> Pace | None:
    lengths = [len(engine.chat.prompt_ids(p.messages)) for p in prompts]
    columns = max(lengths) + sampling.max_new_tokens
    rows = max(1, min(engine.rows_in_flight(columns), together))  # type: ignore[attr-defined]
    alone = rows <= MARKS

    def timed(sample: Sequence[Prompt], marks: int, rest: int) -> tuple[float, float] | None:
        if not alone:
            return _timed(engine, [_marked(sample, sampling, marks, rest)], sampling, along, clock)
        # Too few to end one after the other: a short reply by itself (the first time, for the sake of warmth), then a longer.
        short, longer = (_marked(sample[:1], sampling, 0, tokens) for tokens in (1, 2 * MARKS))
        return _timed(engine, [short, short, longer], sampling, along, clock)

    # As many replies as there will be at once, in the middle of what they will be: all to one prompt, so that it is computed
    # once, made so long that what attention looks back at is what it will be in the mean.
    mean_context = (sum(lengths) / len(lengths) if before is None else before) + sampling.max_new_tokens / 2
    typical = _lengthened(engine, prompts[0], mean_context)
    rest = max(STEPS + 2, columns - len(engine.chat.prompt_ids(typical.messages)))
    copies = [replace(typical, index=k, seed=k) for k in range(rows)]
    decoded = timed(copies, min(STEPS, max(MARKS, rows // 4)), rest)
    if decoded is None:
        return None

    def joining_tokens(sample: Sequence[Prompt]) -> int:
        ids = [engine.chat.prompt_ids(p.messages) for p in sample]
        return int(engine.joining_tokens(ids))  # type: ignore[attr-defined]

    def prompt_seconds(sample: Sequence[Prompt]) -> float:
        joined = timed(list(islice(cycle(sample), max(len(sample), MARKS + 1))), MARKS, STEPS + 2)
        return joined[0] if joined else 0.0

    first, joining = (1, prompts[:1]) if alone else (MARKS + 1, prompts[:rows])
    computed_token = _seconds_a_token(joining, first, prompt_seconds, joining_tokens, ENOUGH / 2)
    # More is computed than what neighbours don't share: a prefix that few have is not worth a pass, and rows are padded.
    ids = sorted(engine.chat.prompt_ids(p.messages) for p in prompts)
    computed = sum(engine.joining_tokens(ids[k : k + rows]) for k in range(0, len(ids), rows))  # type: ignore[attr-defined]
    return Pace(computed_token * computed / unshared_length(ids), decoded[1], rows)


def _seconds_a_token(
    prompts: Sequence[Prompt],
    first: int,
    seconds_of: Callable[[Sequence[Prompt]], float],
    tokens_of: Callable[[Sequence[Prompt]], int],
    enough: float,
) -> float:
    """Seconds a token of the first prompts, of as many as take long enough to tell. Of two tries the faster one counts: what
    else a machine does for a moment (weights still read from the disk, another program) only ever adds."""
    count, most = first, len(prompts)
    while True:
        sample = prompts[:count]
        seconds = seconds_of(sample)
        if seconds >= enough or count >= most:
            seconds = min(seconds, seconds_of(sample))
        if seconds >= enough or count >= most:
            return seconds / max(1, tokens_of(sample))
        count = min(most, int(count * min(8.0, max(2.0, 1.2 * enough / max(seconds, 1e-6)))))


def _marked(prompts: Sequence[Prompt], sampling: Sampling, marks: int, rest: int) -> list[Prompt]:
    """Prompts of which the first get replies of 1, 2, … tokens, so that each ends a step after the one before; the others' are
    of up to `rest`."""
    limits = [k + 1 if k < marks else rest for k in range(len(prompts))]
    return [
        replace(p, sampling=sampling.model_copy(update={"max_new_tokens": limit}))
        for p, limit in zip(prompts, limits, strict=True)
    ]


def _timed(
    engine: Engine, batches: Sequence[Sequence[Prompt]], sampling: Sampling, along: Tensor | None, clock: Clock
) -> tuple[float, float] | None:
    """Seconds until a batch's first step, and seconds a step; None where all replies ended at the same one. The replies of a
    batch begin together, and it is left once those that end one after the other have."""
    options: dict[str, Any] = {"read": range(engine.info.layers), **({} if along is None else {"along": along})}
    seconds_by_step: dict[int, float] = {}
    for batch in batches:
        began = clock()
        replies = engine.respond(batch, sampling, **options)
        marks = sum((p.sampling or sampling).max_new_tokens <= STEPS for p in batch)
        for number, reply in enumerate(replies, 1):
            # A reply of n tokens is there after n + 1 steps: in the last, its last token is read or its end drawn.
            seconds_by_step[len(reply.token_ids) + 1] = clock() - began
            timed = seconds_by_step[max(seconds_by_step)] - seconds_by_step[min(seconds_by_step)]
            if len(seconds_by_step) > 1 and (number >= marks or timed > STEPS_SECONDS):
                break
        if isinstance(replies, Generator):
            replies.close()
    if len(seconds_by_step) < 2:
        return None
    first, last = min(seconds_by_step), max(seconds_by_step)
    step = (seconds_by_step[last] - seconds_by_step[first]) / (last - first)
    return max(0.0, seconds_by_step[first] - first * step), step


def _lengthened(engine: Engine, prompt: Prompt, tokens: float) -> Prompt:
    """A prompt whose last message is said again until it has about so many tokens, as far as the model's context has room."""
    *before, last = prompt.messages

    def repeated(times: int) -> Prompt:
        return replace(prompt, messages=(*before, {**last, "content": " ".join([last["content"]] * times)}))

    room = min(tokens, (engine.info.context or 10**9) - 2 * STEPS)
    once, twice = (len(engine.chat.prompt_ids(repeated(times).messages)) for times in (1, 2))
    return repeated(1 + max(0, int((room - once) / max(1, twice - once))))
