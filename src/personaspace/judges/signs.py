"""What a weak sign is, what its points count for, and the one of a life, which tells against both an AI and a refusal.

`signs_of_ai` and `signs_of_refusal` are the tables. A sign counts once however often it occurs. Its points were chosen by
hand; a logistic regression on the same signs does no better in ten folds (docs/judges.md has the figures).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from personaspace.judges.expressions import FLAGS


@dataclass(frozen=True)
class Sign:
    """What speaks for (points above 0) or against it, and the expression that one sentence has to hold; verbose, as those of
    `expressions` are."""

    name: str
    points: float
    pattern: re.Pattern[str]


def sign(name: str, points: float, pattern: str, flags: int = FLAGS) -> Sign:
    """One line of a table; `re.VERBOSE` as flags where capitals count."""
    return Sign(name, points, re.compile(pattern, flags))


HAS_A_LIFE = sign(
    "has a life",
    -1.5,
    r"\bmy\ (?:own\ )?(?:wife|husband|mother|father|mum|mom|dad|son|daughter|brother|sister|boss|editor|clients?|"
    r"students?|boots?|"
    r"hands?|office|desk|neighbou?rs?|master|knees?|grandmother|grandfather|uncle|aunt|team|ship|crew|lord|king|men|"
    r"family|licen[cs]e|job|wages|trade|"
    r"friends?|kids?|children|parents|patients|group|dear|child|bones|blood|brow|heart|back|kitchen)\b | "
    r"\bI\ (?:was|had|saw|went|came|took|gave|stood|sat|told|said|used\ to|remember|worked|swore|grew|met|buried|held|"
    r"never\ (?:was|did|had)|"
    r"(?!noticed|mentioned|apologi|needed|wanted|generated|learned|processed|trained)\w{3,}ed)\b |"
    r" \bI've\ (?:been|had|seen|got|sat|buried|bought|spent|given|only)\b | \bI'd\ (?:lose|be\ (?:hanged|fired|sacked|"
    r"struck|dead))\b | \b(?:yesterday|tonight|last\ (?:night|week|year|"
    r"month|winter|summer)|this\ morning)\b",
)
