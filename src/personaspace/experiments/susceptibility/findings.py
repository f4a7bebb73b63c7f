"""What steering and capping do to who speaks in replies, beside as long a step along random directions. It asks nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from personaspace.experiments.kit.beside import rank_correlation, set_beside
from personaspace.experiments.kit.conditions import PLAIN, Condition
from personaspace.experiments.kit.speakers import KINDS, TELLING, UNTOLD
from personaspace.experiments.kit.trials import Ask, Given
from personaspace.holding.controls import BesideControls
from personaspace.stats.intervals import Estimate, mean, mean_difference, share, shares_of, trend

Row = dict[str, Any]
NO_ROLE, ROLE = "no role", "a role"
UNDER = {ROLE: "Under a role", NO_ROLE: "With no role at all"}
ASSISTANT, BROKEN = "the Assistant", "incoherent"
CHARACTERS = ("a human with a past", "a nonhuman character", "theatrical or mystical", "another AI")
AWAY, TOWARDS = "steered away", "steered towards"
RANDOM = "random directions"


@dataclass(frozen=True)
class SpeakerShift:
    """How what is done to the model moves the share of replies that are the Assistant's, of those that tell: a rank correlation
    with α, or for a cap a difference to plain, its interval over roles. beside: the same of the strengths and questions that
    were asked along other directions as well; None where nothing was set beside it."""

    axis: Estimate
    beside: BesideControls | None = None

    @property
    def direction(self) -> int:
        """1 or −1 where the axis does something that random directions do not, the way that it does it; else 0."""
        way = self.axis.direction()
        return way if self.beside and self.beside.is_the_axis and self.beside.effect * way > 0 else 0


@dataclass(frozen=True)
class SusceptibilityFindings:
    """names: of conditions, in order. shares: under a role or none, by condition, of the replies that tell who is speaking;
    shares_of_all: of all judged ones, those that do not tell included; telling: how many tell. telling_trend: whether that
    changes with α; telling_of_all: how many do under a role, whatever is done along the axis; the interval is over roles.
    effects: on being the Assistant, by what is done; broken: of steering away on being incoherent, where it is asked for.
    control_shares, control_telling: by condition, of its random directions."""

    names: Sequence[str]
    ends: Sequence[str]
    shares: Mapping[str, Mapping[str, Mapping[str, Estimate]]]
    shares_of_all: Mapping[str, Mapping[str, Mapping[str, Estimate]]]
    telling: Mapping[str, Mapping[str, Estimate]]
    assistant_trend: Estimate
    persona_trend: Estimate
    telling_trend: Estimate
    telling_of_all: Estimate
    effects: Mapping[str, SpeakerShift]
    broken: SpeakerShift | None
    control_shares: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    control_telling: Mapping[str, Estimate] = field(default_factory=dict)


def table_row(ask: Ask, reply: Given, kind: int | None) -> Row:
    """A reply as it stands in the table."""
    who, probe = reply.item.split("/")
    return {
        "condition": reply.condition,
        "alpha": ask.condition.alpha,
        "cap": ask.condition.cap,
        "control": ask.condition.control,
        "role": NO_ROLE if who.startswith(NO_ROLE) else who,
        "item": reply.item,
        "probe": probe,
        "question": ask.messages[-1]["content"],
        "text": reply.text,
        "projection": reply.projection,
        "kind": None if kind is None else KINDS[kind],
    }


def findings(conditions: Sequence[Condition], rows: Sequence[Row]) -> SusceptibilityFindings:
    """Shares of kinds under each condition, and what steering and capping do under a role."""
    replies = (
        pd.DataFrame(list(rows))
        .fillna({"cap": "", "kind": ""})
        .assign(random=lambda f: f.control.notna(), control=lambda f: f.control.astype(float))
    )
    under_role = replies[(replies.role != NO_ROLE) & (replies.kind != "")]
    steering = under_role[~under_role.random & (under_role.cap == "")]
    names, alphas = [c.name for c in conditions], [c.alpha for c in conditions if not c.cap]
    ends = [next(c.name for c in conditions if not c.cap and c.alpha == end) for end in (min(alphas), 0.0, max(alphas))]
    cells = {
        under: {
            n: replies.kind[(replies.condition == n) & ((replies.role == NO_ROLE) == (under == NO_ROLE))] for n in names
        }
        for under in UNDER
    }
    random = {
        c.name: under_role.kind[
            (under_role.control >= 0) & (under_role.alpha == c.alpha) & (under_role.cap == (c.cap or ""))
        ]
        for c in conditions
    }
    random = {name: kinds for name, kinds in random.items() if len(kinds)}
    effects = {AWAY: _steering_effect(under_role, -1), TOWARDS: _steering_effect(under_role, 1)}
    capping = {c.name: _cap_effect(under_role, c.cap) for c in conditions if c.cap}
    return SusceptibilityFindings(
        names=names,
        ends=list(dict.fromkeys(ends)),
        shares={under: {n: _of_telling(kinds) for n, kinds in by.items()} for under, by in cells.items()},
        shares_of_all={
            under: {n: shares_of([k or None for k in kinds], KINDS) for n, kinds in by.items()}
            for under, by in cells.items()
        },
        telling={under: {n: _telling(kinds) for n, kinds in by.items()} for under, by in cells.items()},
        telling_of_all=mean(
            (under_role[~under_role.random].kind != UNTOLD).tolist(), under_role[~under_role.random].role.tolist()
        ),
        assistant_trend=_trend(steering, ASSISTANT),
        persona_trend=_trend(steering, *CHARACTERS),
        telling_trend=trend(steering.alpha, steering.kind != UNTOLD, list(steering.role)),
        effects={**{name: effect for name, effect in effects.items() if effect}, **capping},
        broken=_steering_effect(under_role, -1, BROKEN),
        control_shares={n: _of_telling(kinds) for n, kinds in random.items()},
        control_telling={n: _telling(kinds) for n, kinds in random.items()},
    )


def _of_telling(kinds: pd.Series) -> dict[str, Estimate]:
    return shares_of([None if k in ("", UNTOLD) else k for k in kinds], TELLING)


def _telling(kinds: pd.Series) -> Estimate:
    return share([None if k == "" else k != UNTOLD for k in kinds])


def _trend(replies: pd.DataFrame, *kinds: str) -> Estimate:
    """The rank correlation of α with being one of the kinds, over replies that tell; over roles, since what one says to its
    questions is alike."""
    telling = replies[replies.kind != UNTOLD]
    return trend(telling.alpha, telling.kind.isin(kinds), list(telling.role))


def _steering_effect(replies: pd.DataFrame, sign: int, kind: str = ASSISTANT) -> SpeakerShift | None:
    """Of steering on one side of plain alone, since what happens towards the Assistant says nothing of the other side; None
    where that side was not asked for."""
    steering = replies[(replies.cap == "") & (replies.alpha * sign >= 0)]
    axis, random = steering[~steering.random], steering[steering.random]
    if (axis.alpha == 0).all():
        return None

    def correlation(of: pd.DataFrame) -> float:
        telling = of[of.kind != UNTOLD]
        return rank_correlation(telling.alpha, telling.kind == kind)

    return SpeakerShift(_trend(axis, kind), set_beside(axis, random, correlation))


def _cap_effect(replies: pd.DataFrame, cap: str | None) -> SpeakerShift:
    telling = replies[replies.kind != UNTOLD]
    plain, capped = telling[telling.condition == PLAIN.name], telling[telling.cap == cap]
    axis, random = capped[~capped.random], capped[capped.random]
    both = pd.concat([axis.assign(side=1), plain.assign(side=-1)])

    def more(of: pd.DataFrame) -> float:
        is_so, is_plain = of.kind == ASSISTANT, of.condition == PLAIN.name
        return float(is_so[~is_plain].mean() - is_so[is_plain].mean())

    estimate = mean_difference(both.kind == ASSISTANT, list(both.role), both.side)
    return SpeakerShift(estimate, set_beside(pd.concat([plain, axis]), random, more))
