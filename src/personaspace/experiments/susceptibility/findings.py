"""What steering and capping do to who speaks in replies, beside as long a step along random directions. It asks nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from personaspace.experiments.kit.conditions import PLAIN, Condition
from personaspace.experiments.kit.speakers import KINDS, TELLING, UNTOLD
from personaspace.experiments.kit.trials import Ask, Given
from personaspace.stats.intervals import Estimate, mean_difference, share, shares_of, trend, trend_difference

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
    with α, or for a cap a difference to plain. control: the same along random directions, as far; difference: of the two, over
    roles. None where nothing was set beside it."""

    axis: Estimate
    control: Estimate | None = None
    difference: Estimate | None = None

    @property
    def direction(self) -> int:
        """1 or −1 where the axis does something that random directions do not, the way that it does it; else 0."""
        if self.difference is None or self.axis.direction() != self.difference.direction():
            return 0
        return self.axis.direction()


@dataclass(frozen=True)
class SusceptibilityFindings:
    """names: of conditions, in order. shares: under a role or none, by condition, of the replies that tell who is speaking;
    shares_of_all: of all judged ones, those that do not tell included; telling: how many tell. telling_trend: whether that
    changes with α. effects: on being the Assistant, by what is done; broken: of steering away on being incoherent, where it is
    asked for. control_shares, control_telling: by condition, of its random directions."""

    names: Sequence[str]
    ends: Sequence[str]
    shares: Mapping[str, Mapping[str, Mapping[str, Estimate]]]
    shares_of_all: Mapping[str, Mapping[str, Mapping[str, Estimate]]]
    telling: Mapping[str, Mapping[str, Estimate]]
    assistant_trend: Estimate
    persona_trend: Estimate
    telling_trend: Estimate
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


def rows_of(rows: Sequence[Row], condition: str, under: str) -> list[Row]:
    """The replies under a condition, with a role or without."""
    return [r for r in rows if r["condition"] == condition and (r["role"] == NO_ROLE) == (under == NO_ROLE)]


def findings(conditions: Sequence[Condition], rows: Sequence[Row]) -> SusceptibilityFindings:
    """Shares of kinds under each condition, and what steering and capping do under a role."""
    names = [c.name for c in conditions]
    under_role = [r for r in rows if r["role"] != NO_ROLE and r["kind"] is not None]
    along_axis = [r for r in under_role if r["control"] is None]
    steering = [r for r in along_axis if r["cap"] is None]
    random = {c.name: [r for r in under_role if r["control"] is not None and _is_of(r, c)] for c in conditions}
    random = {name: members for name, members in random.items() if members}
    alphas = [c.alpha for c in conditions if not c.cap]
    ends = [next(c.name for c in conditions if not c.cap and c.alpha == end) for end in (min(alphas), 0.0, max(alphas))]
    effects = {AWAY: _steering_effect(under_role, -1), TOWARDS: _steering_effect(under_role, 1)}
    capping = {c.name: _cap_effect(under_role, c.cap) for c in conditions if c.cap}
    by = {under: {n: rows_of(rows, n, under) for n in names} for under in UNDER}
    return SusceptibilityFindings(
        names=names,
        ends=list(dict.fromkeys(ends)),
        shares={u: {n: _shares_of_telling(members) for n, members in cells.items()} for u, cells in by.items()},
        shares_of_all={
            u: {n: shares_of([r["kind"] for r in members], KINDS) for n, members in cells.items()}
            for u, cells in by.items()
        },
        telling={u: {n: _telling(members) for n, members in cells.items()} for u, cells in by.items()},
        assistant_trend=_trend(steering, ASSISTANT),
        persona_trend=_trend(steering, *CHARACTERS),
        telling_trend=trend(
            [r["alpha"] for r in steering], [r["kind"] != UNTOLD for r in steering], [r["role"] for r in steering]
        ),
        effects={**{name: effect for name, effect in effects.items() if effect}, **capping},
        broken=_steering_effect(under_role, -1, BROKEN),
        control_shares={n: _shares_of_telling(members) for n, members in random.items()},
        control_telling={n: _telling(members) for n, members in random.items()},
    )


def _is_of(row: Row, condition: Condition) -> bool:
    return bool((row["alpha"], row["cap"]) == (condition.alpha, condition.cap))


def _shares_of_telling(rows: Sequence[Row]) -> dict[str, Estimate]:
    return shares_of([None if r["kind"] == UNTOLD else r["kind"] for r in rows], TELLING)


def _telling(rows: Sequence[Row]) -> Estimate:
    return share([None if r["kind"] is None else r["kind"] != UNTOLD for r in rows])


def _trend(rows: Sequence[Row], *kinds: str) -> Estimate:
    """The rank correlation of α with being one of the kinds, over replies that tell; over roles, since what one says to its
    questions is alike."""
    telling = [r for r in rows if r["kind"] != UNTOLD]
    return trend([r["alpha"] for r in telling], [r["kind"] in kinds for r in telling], [r["role"] for r in telling])


def _steering_effect(rows: Sequence[Row], sign: int, kind: str = ASSISTANT) -> SpeakerShift | None:
    """Of steering on one side of plain alone, since what happens towards the Assistant says nothing of the other side; None
    where that side was not asked for."""
    steering = [r for r in rows if r["cap"] is None and r["alpha"] * sign >= 0]
    axis = [r for r in steering if r["control"] is None]
    random = [r for r in steering if r["control"] is not None]
    if all(r["alpha"] == 0 for r in axis):
        return None
    if not random:
        return SpeakerShift(_trend(axis, kind))
    # Compared at the strengths that both have. Plain belongs to either; beside several directions it counts as often as each
    # of them, since a rank correlation depends on how many replies there are of each strength.
    strengths = {r["alpha"] for r in random}
    plain = [r for r in axis if r["alpha"] == 0]
    directions = len({r["condition"] for r in random}) // len(strengths)
    control = [*random, *plain * directions]
    sides = [(1, r) for r in axis if r["alpha"] == 0 or r["alpha"] in strengths] + [(-1, r) for r in control]
    telling = [(side, r) for side, r in sides if r["kind"] != UNTOLD]
    difference = trend_difference(
        [r["alpha"] for _, r in telling],
        [r["kind"] == kind for _, r in telling],
        [r["role"] for _, r in telling],
        [side for side, _ in telling],
    )
    return SpeakerShift(_trend(axis, kind), _trend(control, kind), difference)


def _cap_effect(rows: Sequence[Row], cap: str | None) -> SpeakerShift:
    telling = [r for r in rows if r["kind"] != UNTOLD]
    plain = [r for r in telling if r["condition"] == PLAIN.name]
    axis = [r for r in telling if r["cap"] == cap and r["control"] is None]
    random = [r for r in telling if r["cap"] == cap and r["control"] is not None]

    def more(first: Sequence[Row], second: Sequence[Row]) -> Estimate:
        both = [*first, *second]
        return mean_difference(
            [r["kind"] == ASSISTANT for r in both],
            [r["role"] for r in both],
            [1] * len(first) + [-1] * len(second),
        )

    return (
        SpeakerShift(more(axis, plain), more(random, plain), more(axis, random))
        if random
        else SpeakerShift(more(axis, plain))
    )
