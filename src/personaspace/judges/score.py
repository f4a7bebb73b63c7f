"""What a judge is: it scores items by a rubric, from 0 up, and says what it could not score; it knows of no activations."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from personaspace.errors import JudgeError
from personaspace.judges.verdicts import ALONE, json_ending

if TYPE_CHECKING:
    from personaspace.catalog import Role

IN_A_ROW = 16
"""How many items one after the other a judge may fail to score before it is asked no more."""
SCORES_EVERY = 10.0
"""Seconds between writings of scores."""


@dataclass(frozen=True)
class Item:
    """A reply to score: who was asked to be whom, what was asked, what was answered."""

    role: Role
    question: str
    reply: str


@dataclass(frozen=True)
class Score:
    """The most probable score and the expected one, with the judge's reason where it gives one; both None where it could not
    be scored, with the problem."""

    score: int | None
    expected: float | None = None
    problem: str = ""
    reason: str = ""


class Judge(Protocol):
    """Scores replies, in order. A reply that cannot be scored is said so, never dropped.

    A judge may have two methods more. `rubric_of(item)`: a digest of what it goes by, without the item's own words where
    these are left empty; a reply that was scored by another is judged anew. `as_they_come(items)`: each item's place and
    score as soon as it is there, so that nothing is lost when the judging is stopped.
    """

    name: str

    def score(self, items: Iterable[Any]) -> Iterator[Score]: ...


def rubric_of(judge: Judge, item: Any) -> str:
    """A digest of what a judge goes by for an item; empty where it doesn't say."""
    method = getattr(judge, "rubric_of", None)
    return str(method(item)) if method else ""


@dataclass(frozen=True)
class Rubric:
    """What a judge is asked of an item, and the highest of the scores that it may give: 0 to `top`, one digit."""

    text: Callable[[Any], str]
    top: int

    def for_endpoint(self, item: Any) -> str:
        """The text for a model that answers freely: JSON with a reason, where the rubric itself asks for the number alone in
        our words; another's rubric stays as it is."""
        text = self.text(item)
        return text.removesuffix(ALONE) + json_ending(self.top) if text.endswith(ALONE) else text

    def digest(self, item: Any) -> str:
        """A digest of the text; of an item without a question and a reply, of the rubric itself."""
        return hashlib.sha256(f"{self.top}\n{self.text(item)}".encode("utf-8", "replace")).hexdigest()[:16]


def score_all(judge: Judge, items: Sequence[Any], in_a_row: int = IN_A_ROW) -> Iterator[tuple[int, Score]]:
    """Each item's place and score, as they come, so that what is scored can be kept. Raises `JudgeError` where none of the
    first, or none of `in_a_row` at any time, could be scored: an endpoint that refuses would refuse the rest as well."""
    started = time.monotonic()
    stream = getattr(judge, "as_they_come", None)
    scores: Iterator[tuple[int, Score]] = stream(items) if stream else enumerate(judge.score(items))
    count, first_problem, failed = 0, "", 0
    try:
        for place, score in scores:
            count += 1
            if score.score is None:
                first_problem, failed = first_problem if failed else score.problem, failed + 1
            else:
                failed = 0
            yield place, score
            if failed >= in_a_row:
                break
    finally:
        if isinstance(scores, Generator):
            scores.close()  # what is still being asked is asked no more
    if failed and (failed == count or failed >= in_a_row):
        which = f"none of the first {count}" if failed == count else f"none of {failed} in a row"
        raise JudgeError(
            f"the judge {judge.name} could score {which} responses in {time.monotonic() - started:.0f} s "
            f"({first_problem}); the responses are kept: mend it and run the same command"
        )


def score_kept(
    judge: Judge, items: Sequence[Any], take: Callable[[int, Score], None], write: Callable[[], None]
) -> list[tuple[int, str]]:
    """Scores items and keeps the scores as they come; returns the places of those that could not be scored, with the problems.

    take: is given the place and score of each that could; write: puts on the disk what was taken, every `SCORES_EVERY`
    seconds and at the end, also where the judging is stopped: it may have been paid for. Raises `JudgeError` as `score_all`.
    """
    problems: list[tuple[int, str]] = []
    written_at, unwritten = time.monotonic(), 0
    try:
        for place, score in score_all(judge, items):
            if score.score is None:
                problems.append((place, score.problem))
                continue
            take(place, score)
            unwritten += 1
            if time.monotonic() - written_at > SCORES_EVERY:
                write()
                written_at, unwritten = time.monotonic(), 0
    finally:
        if unwritten:
            write()
    return problems
