"""What a judge is: it scores items by a rubric, from 0 up, and says what it could not score; it knows of no activations."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from personaspace.errors import JudgeError

if TYPE_CHECKING:
    from personaspace.catalog import Role


@dataclass(frozen=True)
class Item:
    """A reply to score: who was asked to be whom, what was asked, what was answered."""

    role: Role
    question: str
    reply: str


@dataclass(frozen=True)
class Score:
    """The most probable score and the expected one; both None where it could not be scored, with the reason."""

    score: int | None
    expected: float | None = None
    problem: str = ""


class Judge(Protocol):
    """Scores replies, in order. A reply that cannot be scored is said so, never dropped."""

    name: str

    def score(self, items: Iterable[Any]) -> Iterator[Score]: ...


@dataclass(frozen=True)
class Rubric:
    """What a judge is asked of an item, and the highest of the scores that it may give: 0 to `top`, one digit."""

    text: Callable[[Any], str]
    top: int


def score_all(judge: Judge, items: Sequence[Item], batch: int = 64) -> Iterator[list[Score]]:
    """Scores in batches, so that what is scored can be kept as it comes. Raises `JudgeError` where nothing of a first
    batch could be scored: an endpoint that refuses would refuse the rest as well."""
    started = time.monotonic()
    for k in range(0, len(items), batch):
        scores = list(judge.score(items[k : k + batch]))
        if k == 0 and scores and all(s.score is None for s in scores):
            took = time.monotonic() - started
            raise JudgeError(
                f"the judge {judge.name} could score none of the first {len(scores)} responses in {took:.0f} s "
                f"({scores[0].problem}); the responses are kept: mend it and run the same command"
            )
        yield scores
