"""Asks a run's shards and has them judged: what is there already is left as it is. Reads and writes the run's files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from personaspace.catalog import DEFAULT, Catalog, Role
from personaspace.engines import Engine
from personaspace.engines.prompts import Prompt, Sampling
from personaspace.engines.thoughts import Part
from personaspace.errors import JudgeError, RunMismatch
from personaspace.files import Place
from personaspace.judges import Item, Judge, Score, WordsJudge, rubric_of, score_kept
from personaspace.judges.agreement import ReplyKey
from personaspace.runs import KeptScore, Run, Shards

PROJECTED_DEFAULT, PROJECTED_ROLE = 512, 4
"""Replies of the default, and of each role, whose tokens' projections are kept: enough for percentiles and caps, and in a run
of the published size some 300 MB."""


@dataclass(frozen=True)
class ShardTask:
    """A shard to ask, and where to write it. sampling None: it is read before the first word, and nothing is said. along: the
    directions `[layers, hidden]` that the replies' tokens are projected on. span: which part of the replies is read."""

    number: int
    prompts: Sequence[Prompt]
    sampling: Sampling | None
    place: str
    along: Tensor | None = None
    span: Part = "answer"


def answer(engine: Engine, task: ShardTask, tell: Callable[[], None] = lambda: None) -> tuple[int, int]:
    """Asks a shard, writes it, and returns its number and size: what a worker does, wherever it is. A shard that is there is
    left as it is: a worker may be lost between its last file and its answer."""
    shards = Shards(Place(task.place))
    if shards.has(task.number):
        return task.number, len(task.prompts)
    responses = []
    layers = range(engine.info.layers)
    # An engine need not know of what nobody asks for.
    keywords: dict[str, Any] = {} if task.along is None else {"along": task.along}
    if task.span != "answer":
        keywords["span"] = task.span
    if task.sampling is None:
        stream = engine.onsets(task.prompts, read=layers)
    else:
        stream = engine.respond(task.prompts, task.sampling, read=layers, **keywords)
    for response in stream:
        projected_replies = PROJECTED_DEFAULT if response.prompt.role == DEFAULT else PROJECTED_ROLE
        responses.append(response if response.prompt.index < projected_replies else replace(response, projections=None))
        tell()
    # An engine answers in the order it gets done: shards are stored in the order they were asked in.
    order = {(p.role, p.index): i for i, p in enumerate(task.prompts)}
    responses.sort(key=lambda r: order[r.prompt.role, r.prompt.index])
    shards.write(task.number, responses, task.along)
    return task.number, len(responses)


def judged(run: Run, catalog: Catalog, judge: Judge, numbers: Sequence[int]) -> dict[ReplyKey, KeptScore]:
    """Scores what is not scored yet in these shards, and returns all scores.

    Raises `JudgeError` where some could not be scored; what was is kept.
    """
    scores, problems, missing = score_replies(run, catalog, judge, numbers)
    if problems:
        raise JudgeError(
            f"{len(problems)} of {missing} responses could not be scored ({problems[0]}); what was scored is kept: "
            "run the same command to try the others again"
        )
    return scores


def score_replies(
    run: Run, catalog: Catalog, judge: Judge, numbers: Sequence[int]
) -> tuple[dict[ReplyKey, KeptScore], list[str], int]:
    """All scores of a judge, those that are missing in these shards asked for and kept as they come; what is wrong with each
    that could not be had; and how many were missing. A score by another rubric than today's is missing, too.

    Raises `JudgeError` where the judge scores nothing at all.
    """
    scores = run.scores_of(judge.name)
    rubrics = {r.role: rubric_of(judge, Item(r, "", "")) for r in catalog.roles}
    keys, items = [], []
    for shard in numbers:
        for row in run.read(shard, ["role", "index", "user", "text"]).to_pylist():
            key = (row["role"], row["index"])
            if row["role"] == DEFAULT:
                continue
            role = catalog.role(row["role"])
            if key not in scores or not _holds(scores[key], rubrics[role.role], role, judge):
                scores.pop(key, None)
                keys.append(key)
                items.append(Item(role, row["user"], row["text"]))

    def take(place: int, score: Score) -> None:
        key = keys[place]
        scores[key] = KeptScore(score.score or 0, float(score.expected or 0), score.reason, rubrics[key[0]])

    problems = score_kept(judge, items, take, lambda: run.keep_scores(judge.name, scores))
    return scores, [f"{keys[place][0]} {keys[place][1]}: {problem}" for place, problem in problems], len(items)


def _holds(score: KeptScore, rubric: str, role: Role, judge: Judge) -> bool:
    """Whether a score is by today's rubric. Earlier versions did not note it: those went by the package's rubric, which is
    the same, or by the role's own, which may have changed since, or by words, which have."""
    if score.rubric is None:
        return not rubric or not (role.eval_prompt or isinstance(judge, WordsJudge))
    return score.rubric == rubric


def check_summed(run: Run, catalog: Catalog, judge: Judge) -> None:
    """Raises `RunMismatch` where scores that are in a run's sums already are by another rubric: they can't be judged anew."""
    rubrics = {r.role: rubric_of(judge, Item(r, "", "")) for r in catalog.roles}
    scores = run.scores_of(judge.name).items()
    changed = sorted(
        {role for (role, _), s in scores if s.rubric is not None and s.rubric != rubrics.get(role, s.rubric)}
    )
    if changed:
        raise RunMismatch(
            f"{run.folder}: its sums were made by another rubric of {len(changed)} roles ({changed[0]}, …), and the "
            "activations are gone; give the same catalogue, or another folder"
        )
