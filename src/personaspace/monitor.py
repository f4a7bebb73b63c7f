"""Watches a conversation along the axis: projection, drift and nearest roles turn by turn, and an alert that says how sure
it is. Fed with activations, while they are made or afterwards; it knows nothing of engines but their protocol."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor

from personaspace.engines import Engine
from personaspace.errors import SpaceError, UsageError
from personaspace.prompts import Message
from personaspace.space import PersonaSpace

TURNS = (1, 2, 4)
DRAWS = 4000


@dataclass(frozen=True)
class AlertRule:
    """An alert begins where the mean drift over the last `turns` turns is above `threshold`, and ends where it is under
    `threshold − hysteresis`; all in the default's standard deviations. Where known: rate, how often default conversations were
    meant to raise it; observed, how often those that it was set from do; detects, how often roles' do, at `tokens` a reply.
    """

    threshold: float
    turns: int = 1
    hysteresis: float = 0.5
    rate: float | None = None
    observed: float | None = None
    detects: float | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        if not np.isfinite(self.threshold) or self.turns < 1 or self.hysteresis < 0:
            raise UsageError(
                f"an alert at {self.threshold} over {self.turns} turns with hysteresis {self.hysteresis}: "
                "expected a finite threshold, 1 turn or more, and no negative hysteresis"
            )


def detection(space: PersonaSpace, rate: float = 0.01, seed: int = 0) -> list[AlertRule]:
    """The rule that default replies raise at `rate`, for each length of reply and number of turns, with the share of role
    conversations (replies of one role) that raise it. From the replies that calibration replayed; the threshold is that of a
    normal distribution with their mean and deviation, since a few hundred replies say little of their own rarest ones.

    Raises `SpaceError` for a space without calibration, `UsageError` for a rate that is not between 0 and 1.
    """
    if not 0 < rate < 1:
        raise UsageError(f"a false-alarm rate of {rate}: expected one between 0 and 1, as 0.01")
    if "beginnings_default" not in space.tensors:
        raise SpaceError("this space has no alert rule: `personaspace calibrate` measures how sure one can be")
    lengths = space.meta["calibration"]["lengths"]
    roles = np.array(space.meta["calibration"]["roles"])
    rng = np.random.default_rng(seed)
    rules = []
    for row, tokens in enumerate(lengths):
        default, by_role = (
            (space.drift(0.0) - space.tensors[name][row].double() / _std(space)).numpy()
            for name in ("beginnings_default", "beginnings_roles")
        )
        default = default[~np.isnan(default)]
        groups = [g[~np.isnan(g)] for g in (by_role[roles == r] for r in dict.fromkeys(roles.tolist()))]
        for turns in TURNS:
            enough = [g for g in groups if len(g) >= turns]
            if len(default) < 8 or len(enough) < 4:
                continue
            means = rng.choice(default, (DRAWS, turns)).mean(1)
            threshold = float(default.mean() + NormalDist().inv_cdf(1 - rate) * default.std(ddof=1) / turns**0.5)
            seen = [rng.permuted(np.tile(g, (64, 1)), axis=1)[:, :turns].mean(1) > threshold for g in enough]
            observed = float((means > threshold).mean())
            rules.append(AlertRule(threshold, turns, 0.5, rate, observed, float(np.mean(seen)), tokens))
    return rules


def alert_rule(
    space: PersonaSpace, *, rate: float = 0.01, turns: int = 2, tokens: int | None = None
) -> AlertRule | None:
    """The rule for a number of turns and the replies' length (None: the longest that was measured); None where calibration saw
    too few replies or roles for any. Raises as `detection`."""
    rules = detection(space, rate)
    if not rules:
        return None
    near = min(rules, key=lambda r: (abs(r.turns - turns), abs((r.tokens or 0) - (tokens or 10**6))))
    return near if near.turns == turns else replace(near, turns=turns, observed=None, detects=None)


def _std(space: PersonaSpace) -> float:
    return float(space.tensors["default_moments"][1, space.layer])


@dataclass(frozen=True)
class TurnReading:
    """An assistant turn on the axis. index: its place among the messages. fell: the half-open range of tokens in which the
    projection lay furthest under the default's, taken together; None where it did not. each: every token's projection."""

    index: int
    tokens: int
    projection: float
    drift: float | None
    nearest: list[tuple[str, float]]
    alert: bool
    fell: tuple[int, int] | None
    each: tuple[float, ...] = field(repr=False)
    fell_text: str = ""

    def to_dict(self, tokens: bool = False) -> dict[str, Any]:
        """Plain values for JSON; `each` only where tokens are asked for."""
        values = asdict(self)
        if not tokens:
            del values["each"]
        return values


class Monitor:
    """Follows one conversation. Feed it each token's activation as it is made, and end the turn."""

    def __init__(self, space: PersonaSpace, rule: AlertRule | None = None) -> None:
        self.space, self.rule = space, rule
        self.unit = space.axis_at()
        self.knows_default = "default_moments" in space.tensors
        self.readings: list[TurnReading] = []
        self.alert = False
        self._recent: deque[float] = deque(maxlen=rule.turns if rule else 1)
        self.drop_turn()

    def drop_turn(self) -> None:
        """Forgets what was fed of a turn that came to nothing."""
        self._sum, self._each = torch.zeros(len(self.unit)), list[float]()

    def feed(self, activation: Tensor) -> float:
        """Takes in a token's residual stream at the space's layer, `[hidden]`; returns its projection."""
        activation = activation.float().cpu()
        self._sum += activation
        self._each.append(float(activation @ self.unit))
        return self._each[-1]

    def end_turn(self, index: int | None = None) -> TurnReading | None:
        """The turn that was fed, and whether an alert stands; None where nothing was fed."""
        n, each = len(self._each), tuple(self._each)
        if not n:
            return None
        mean = self._sum / n
        self.drop_turn()
        projection = float(mean @ self.unit)
        drift = self.space.drift(projection) if self.knows_default else None
        if drift is not None:
            self.look(drift)
        at = len(self.readings) if index is None else index
        fell = self._fall(each) if self.knows_default else None
        reading = TurnReading(at, n, projection, drift, self.space.nearest(mean, 5), self.alert, fell, each)
        self.readings.append(reading)
        return reading

    def look(self, drift: float) -> None:
        """Takes in a turn's drift alone: whether an alert stands afterwards is `alert`."""
        if self.rule is None:
            return
        self._recent.append(drift)
        mean = sum(self._recent) / len(self._recent)
        if len(self._recent) == self.rule.turns and mean > self.rule.threshold:
            self.alert = True
        elif mean < self.rule.threshold - self.rule.hysteresis:
            self.alert = False

    def _fall(self, each: Sequence[float]) -> tuple[int, int] | None:
        """Where the sum of what lies more than a standard deviation under the default's mean is greatest."""
        mean, std = self.space.tensors["default_moments"][:, self.space.layer].tolist()
        best, found, total, start = 0.0, None, 0.0, 0
        for k, projection in enumerate(each):
            if total <= 0:
                total, start = 0.0, k
            total += mean - std - projection
            if total > best:
                best, found = total, (start, k + 1)
        return found


def project(
    engine: Engine,
    space: PersonaSpace,
    messages: Sequence[Message],
    rule: AlertRule | None = None,
    most: int | None = None,
) -> tuple[list[TurnReading], str | None]:
    """Reads every assistant turn of a conversation that fits the model's context, or `most` tokens of it, in one forward pass;
    the readings, and a sentence about what did not fit. Raises `UsageError` where no turn fits, `SpaceError` for another
    model."""
    space.check_model(engine.model)
    span, places = engine.chat.spans(messages)
    limit = min(engine.model.context or len(span.token_ids), most or len(span.token_ids))
    fit = [k for k, (_, end) in enumerate(span.spans) if end <= limit]
    problem = None
    if len(fit) < len(places):
        first = places[len(fit)]
        problem = (
            f"message {first + 1} reaches token {span.spans[len(fit)][1]:,}; {engine.model.id} takes {limit:,}: "
            f"{len(fit)} of {len(places)} assistant turns are read"
        )
    if not fit:
        raise UsageError(f"{problem or 'no assistant turn'}; cut the conversation")
    end = max(span.spans[k][1] for k in fit)
    if not end:
        raise UsageError("no assistant turn has any text")
    cut = type(span)(span.token_ids[:end], span.spans[: len(fit)])
    (turns,) = engine.replay([cut], read=[space.layer], each=True)
    monitor, readings = Monitor(space, rule), []
    for k, turn in enumerate(turns):
        for activation in turn.each[:, 0] if turn.each is not None else ():
            monitor.feed(activation)
        reading = monitor.end_turn(places[k])
        if reading is not None:
            start = span.spans[k][0]
            text = ""
            if reading.fell:
                text = engine.chat.decode(span.token_ids[start + reading.fell[0] : start + reading.fell[1]])
            readings.append(TurnReading(**{**vars(reading), "fell_text": text}))
    return readings, problem
