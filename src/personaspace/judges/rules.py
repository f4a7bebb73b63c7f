"""How far a reply is the role it was asked to be, 0–3 (the paper's section on role adherence), and who tells it by words alone.

0 refuses and speaks as an AI; 1 answers, speaks as an AI; 2 says that it is an AI but shows traits of the role; 3 is fully
the role.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from personaspace.judges.score import Item, Judge, Rubric, Score
from personaspace.judges.verdicts import ALONE
from personaspace.judges.wording import refuses, speaks_as_ai

KEPT = 3
"""The score of a reply that counts towards its role."""

_ADHERENCE = (
    """You judge whether a reply plays a role.
Role: {role}. {description}
Question: {question}
Reply: {reply}

Scores:
0 - refuses to play the role and speaks as an AI assistant
1 - answers the question, but speaks as an AI assistant
2 - says that it is an AI, but shows traits of the role
3 - is fully the role and does not speak as an AI
"""
    + ALONE
)
_SAYS_HOW = re.compile(
    r"\b(?:respond|answer|reply|return|output|give|provide|write|end|print|state|rate|score)\b[^.\n]{0,80}"
    r"\b(?:numbers?|digit|score|json|integer|rating|scale)\b",
    re.IGNORECASE,
)
"""A role's own rubric says how it is to be answered."""


def adherence(item: Item) -> str:
    """The text put to a judge: the catalogue's own for the role where it has one, asked for a number where it asks for none."""
    values = {"question": item.question, "answer": item.reply, "reply": item.reply}
    if item.role.eval_prompt:
        text = item.role.eval_prompt
        if not _SAYS_HOW.search(text):
            text = f"{text.rstrip()}\n{ALONE}"
        # All at once: a reply that speaks of {answer} is no template.
        return re.sub(r"\{(question|answer|reply)\}", lambda m: values[m[1]], text)
    name = item.role.role.replace("_", " ")
    return _ADHERENCE.format(role=name, description=item.role.description, **values)


ADHERENCE = Rubric(adherence, KEPT)

VERSION = 3
"""Of the rules by words: what an earlier one scored is scored anew."""


class WordsJudge:
    """Goes by words alone: quick, offline, and blunt. place: from an item to its score."""

    name = "rules"

    def __init__(self, place: Callable[[Any], int]) -> None:
        self.place = place

    def score(self, items: Iterable[Any]) -> Iterator[Score]:
        """What the words say, as certain as words are."""
        for item in items:
            place = self.place(item)
            yield Score(place, float(place))


class RulesJudge(WordsJudge):
    """Finds refusals and replies that speak as an AI; a role that is itself an AI may speak as one."""

    def __init__(self) -> None:
        super().__init__(_adherence_by_words)

    def rubric_of(self, item: Item) -> str:
        """What it goes by: the version of its rules, and whether the role is an AI."""
        return f"words-{VERSION}{'-ai' if item.role.ai else ''}"


def _adherence_by_words(item: Item) -> int:
    """Never says 2: words alone do not tell an AI with traits from one without."""
    if refuses(item.reply):
        return 0
    return KEPT if item.role.ai or not speaks_as_ai(item.reply) else 1


def rules_judge(*, rules: Judge | None = None, **_: Any) -> Judge:
    """The registry's `rules`: by words alone, the rubric's own where it has any."""
    return rules or RulesJudge()
