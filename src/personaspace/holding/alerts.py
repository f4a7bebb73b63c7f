"""Alerts by name: on any of a space's directions, as `monitor`'s rule is one on the axis. There, how the default's replies lie
was measured by calibration; along another direction their mean and deviation alone are known, and they are taken as normal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np

from personaspace.errors import UsageError
from personaspace.holding.monitor import (
    CORRELATIONS,
    MOST_SIMULATED,
    SIMULATED,
    AlertRule,
    Monitor,
    alert_rule,
    conversation_lengths,
    highest,
    rate_bounds,
    simulated,
)
from personaspace.space import PersonaSpace
from personaspace.space.directions import AXIS, Direction
from personaspace.space.readings import REPLY

SAMPLED = 2048
"""So many of the default's replies at most a map keeps each of, to know how they lie."""

_ALERT = re.compile(r"(?P<name>.+?)(?:\s*(?P<side>[<>])\s*(?P<deviations>[-+]?\d+(?:\.\d+)?))?", re.DOTALL)


@dataclass(frozen=True)
class NamedAlert:
    """An alert on a direction. Its rule is for shifts in the default's standard deviations, or, with `below`, for shifts the
    other way; on the axis that is the drift."""

    direction: Direction
    rule: AlertRule
    below: bool = False

    @property
    def name(self) -> str:
        """The direction's."""
        return self.direction.name

    def standing(self, space: PersonaSpace, shifts: Sequence[float]) -> Iterator[bool]:
        """Whether it stands after each turn, of turns that were so far above the default's mean."""
        watch = Monitor(space, self.rule)
        for shift in shifts:
            watch.look(-shift if self.below else shift)
            yield watch.alert

    def __str__(self) -> str:
        """In words: how often the default raises it, and what that rests on."""
        if self.rule.rate is None or self.rule.observed is not None:
            return f"{self.name}: {self.rule}"
        turns, rate = self.rule.turns, self.rule.rate
        side, threshold = ("below", -self.rule.threshold) if self.below else ("above", self.rule.threshold)
        interval = ""
        if self.rule.rate_interval:
            interval = " ({:.2g} to {:.2g}%)".format(*(100 * x for x in self.rule.rate_interval))
        return (
            f"{self.name}: mean shift over {turns} turn{'s' * (turns > 1)} {side} {threshold:+.2f}, which at most "
            f"{100 * rate:.2g}%{interval} of the default's {self.rule.rate_of} raise, if its replies are normal along it and "
            "as long as the map's; how alike a conversation's turns are is not known, and the rate holds for any"
        )


@cache
def _highest_means(turns: int, conversations: int) -> tuple[np.ndarray, ...]:
    """The highest means over so many turns of default conversations, sorted, for each of the `CORRELATIONS`."""
    return tuple(np.sort(highest(*simulated(rho, turns, conversations))) for rho in CORRELATIONS)


def direction_rule(
    space: PersonaSpace, *, threshold: float | None = None, rate: float = 0.01, turns: int = 2, seed: int = 0
) -> AlertRule:
    """The rule for shifts along a direction on which the default's mean and deviation are known: the threshold that its
    conversations of 6 to 15 turns exceed at `rate`, or how often they do one that is set. Their replies are taken as normal,
    turns as alike as makes alarms most frequent. Raises `UsageError` for a rate that is not between 0 and 1.
    """
    if not 0 < rate < 1:
        raise UsageError(f"a false-alarm rate of {rate}: expected one between 0 and 1, as 0.01")
    every = _highest_means(turns, int(min(max(SIMULATED, 40 / rate), MOST_SIMULATED)))
    if threshold is None:
        threshold = max(float(np.quantile(tops, 1 - rate)) for tops in every)
    else:
        rate = max(_exceeding(tops, threshold) for tops in every)
    worst = max(range(len(every)), key=lambda k: _exceeding(every[k], threshold))
    of_replies = space.of(REPLY) if REPLY in space.readings else space  # the map's own may be of prompts
    replies = min(int(of_replies.meta.get("n_default") or 0), SAMPLED)
    rng = np.random.default_rng(seed)
    bounds = rate_bounds(space, every[worst], threshold, replies, CORRELATIONS[worst], rng) if replies > 1 else None
    spread = ((1 + (turns - 1) * CORRELATIONS[worst]) / turns) ** 0.5
    return AlertRule(
        threshold,
        turns,
        rate=rate,
        rate_of=conversation_lengths(turns),
        rate_interval=bounds,
        window_rate=1 - NormalDist().cdf(threshold / spread),
    )


def _exceeding(sorted_tops: np.ndarray, threshold: float) -> float:
    return 1 - float(np.searchsorted(sorted_tops, threshold, side="right")) / len(sorted_tops)


def parse_alerts(space: PersonaSpace, texts: Sequence[str], *, rate: float = 0.01, turns: int = 2) -> list[NamedAlert]:
    """Alerts as a user writes them: `NAME` (as often as `rate` says, above the default), `NAME>2.5` or `NAME<-2.5` (in its
    standard deviations). The axis' is of drift away from the Assistant, `axis<-2.5`; alone it is what calibration found, and
    where the space was calibrated it is there even if it is not named; it comes first. Raises `SpaceError` for a name that the
    space lacks, `UsageError` for what cannot be known there.
    """
    alerts: dict[str, NamedAlert] = {}
    if space.calibrated and (rule := alert_rule(space, rate=rate, turns=turns)):
        (axis,) = space.along([AXIS])
        alerts[AXIS] = NamedAlert(axis, rule, below=True)
    named = set()
    for text in texts:
        parsed = _ALERT.fullmatch(text.strip())
        if parsed is None:
            raise UsageError(f"an alert {text!r}: expected NAME, NAME>2.5 or NAME<-2.5")
        (direction,) = space.along([parsed["name"]])
        name, below = direction.name, parsed["side"] == "<"
        threshold = float(parsed["deviations"]) if parsed["side"] else None
        if name in named:
            raise UsageError(f"an alert {text!r}: there is one of {name} already")
        named.add(name)
        if not direction.std:
            raise UsageError(
                f"an alert of {name}: this space does not know how the default's replies lie along it; map the model again"
            )
        if name == AXIS:
            if threshold is None and AXIS in alerts:
                continue
            if threshold is not None and not below:
                raise UsageError(
                    f"an alert {text!r}: the axis' is of drift away from the Assistant; expected axis<-2.5"
                )
            below = True
        reach = threshold if threshold is None or not below else -threshold
        alerts[name] = NamedAlert(direction, direction_rule(space, threshold=reach, rate=rate, turns=turns), below)
    return sorted(alerts.values(), key=lambda alert: alert.name != AXIS)
