"""Asks a run's shards and has them judged: what is there already is left as it is. Reads and writes the run's files."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from personaspace.catalog import DEFAULT, Catalog
from personaspace.engines import Engine
from personaspace.engines.prompts import Prompt, Sampling
from personaspace.errors import JudgeError
from personaspace.files import Place
from personaspace.judges import Item, Judge, score_all
from personaspace.runs import Run, Shards

SCORES_EVERY = 10.0
"""Seconds between writings of scores."""

PROJECTED_DEFAULT, PROJECTED_ROLE = 512, 4
"""Replies of the default, and of each role, whose tokens' projections are kept: enough for percentiles and caps, and in a run
of the published size some 300 MB."""


@dataclass(frozen=True)
class ShardTask:
    """A shard to ask, and where to write it. sampling None: it is read before the first word, and nothing is said. along: the
    directions `[layers, hidden]` that the replies' tokens are projected on."""

    number: int
    prompts: Sequence[Prompt]
    sampling: Sampling | None
    place: str
    along: Tensor | None = None


def answer(engine: Engine, task: ShardTask, tell: Callable[[], None] = lambda: None) -> tuple[int, int]:
    """Asks a shard, writes it, and returns its number and size: what a worker does, wherever it is. A shard that is there is
    left as it is: a worker may be lost between its last file and its answer."""
    shards = Shards(Place(task.place))
    if shards.has(task.number):
        return task.number, len(task.prompts)
    responses = []
    layers = range(engine.info.layers)
    if task.sampling is None:
        stream = engine.onsets(task.prompts, read=layers)
    elif task.along is None:
        stream = engine.respond(task.prompts, task.sampling, read=layers)
    else:
        stream = engine.respond(task.prompts, task.sampling, read=layers, along=task.along)
    for response in stream:
        projected_replies = PROJECTED_DEFAULT if response.prompt.role == DEFAULT else PROJECTED_ROLE
        responses.append(response if response.prompt.index < projected_replies else replace(response, projections=None))
        tell()
    # An engine answers in the order it gets done: shards are stored in the order they were asked in.
    order = {(p.role, p.index): i for i, p in enumerate(task.prompts)}
    responses.sort(key=lambda r: order[r.prompt.role, r.prompt.index])
    shards.write(task.number, responses, task.along)
    return task.number, len(responses)


def judged(
    run: Run, catalog: Catalog, judge: Judge, numbers: Sequence[int]
) -> dict[tuple[str, int], tuple[int, float]]:
    """Scores what is not scored yet in these shards, and returns all scores: (role, index) → score, expected score.

    Raises `JudgeError` where some could not be scored; what was is kept.
    """
    scores = run.scores_of(judge.name)
    keys, items = [], []
    for shard in numbers:
        for row in run.read(shard, ["role", "index", "user", "text"]).to_pylist():
            key = (row["role"], row["index"])
            if row["role"] != DEFAULT and key not in scores:
                keys.append(key)
                items.append(Item(catalog.role(row["role"]), row["user"], row["text"]))
    problems: list[str] = []
    scored, written_at = 0, time.monotonic()
    for batch in score_all(judge, items):
        for key, score in zip(keys[scored : scored + len(batch)], batch, strict=True):
            if score.score is None:
                problems.append(f"{key[0]} {key[1]}: {score.problem}")
            else:
                scores[key] = (score.score, float(score.expected or 0))
        scored += len(batch)
        if scored == len(items) or time.monotonic() - written_at > SCORES_EVERY:
            run.keep_scores(judge.name, scores)
            written_at = time.monotonic()
    if problems:
        raise JudgeError(
            f"{len(problems)} of {len(items)} responses could not be scored ({problems[0]}); what was scored is kept: "
            "run the same command to try the others again"
        )
    return scores
