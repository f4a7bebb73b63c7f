"""Watches a conversation along the axis: projection, drift and nearest roles turn by turn, and an alert that says how sure it
is. Fed with activations, while they are made or afterwards; it knows nothing of engines but their protocol."""

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
from personaspace.engines.prompts import Message
from personaspace.engines.thoughts import Part
from personaspace.errors import SpaceError, UsageError
from personaspace.report import tables
from personaspace.space import PersonaSpace
from personaspace.space.directions import Along, Direction
from personaspace.space.readings import REPLY

TURNS = (1, 2, 4)
CONVERSATION = (6, 15)
"""Turns of a conversation, the fewest and the most, every number as likely: what a rate per conversation is of."""
SIMULATED, MOST_SIMULATED = 40_000, 400_000
"""Conversations that a rate is estimated from, and as many as a very small rate takes at most."""
CORRELATIONS = tuple(k / 8 for k in range(9))
"""How alike turns may be where the space does not say it."""
DRAWS = 4000
LEAST_REPLIES, LEAST_ROLES = 8, 4
"""Without which there is no rule."""


@dataclass(frozen=True)
class AlertRule:
    """An alert begins where the mean drift over the last `turns` turns is above `threshold`, and ends where it is
    under `threshold − hysteresis`; all in the default's standard deviations. Where known: rate, how often default
    conversations were meant to raise it, and of what conversations that is (rate_of), with what it may be instead
    since the default's mean and deviation are of a sample (rate_interval, 95%); window_rate, how often a single mean
    over so many turns does; observed, how often conversations do whose turns are spread as the sampled replies are,
    not as a normal distribution; detects, how often as many replies of one role do, at `tokens` a reply, and
    detects_conversations, how often conversations do that a role holds from first to last; correlation, that of a
    conversation's turns, None where the space does not know it: the rate then holds for any.
    """

    threshold: float
    turns: int = 1
    hysteresis: float = 0.5
    rate: float | None = None
    observed: float | None = None
    detects: float | None = None
    tokens: int | None = None
    rate_of: str | None = None
    rate_interval: tuple[float, float] | None = None
    window_rate: float | None = None
    correlation: float | None = None
    detects_conversations: float | None = None

    def __post_init__(self) -> None:
        if not np.isfinite(self.threshold) or self.turns < 1 or self.hysteresis < 0:
            raise UsageError(
                f"an alert at {self.threshold} over {self.turns} turns with hysteresis {self.hysteresis}: "
                "expected a finite threshold, 1 turn or more, and no negative hysteresis"
            )

    def __str__(self) -> str:
        """The rule in words: which rate it keeps, and what it finds."""
        parts = [f"mean drift over {self.turns} turn{'s' * (self.turns > 1)} above {self.threshold:+.2f}"]
        if self.rate is not None:
            conversations = self.rate_of or "conversations"
            inside = ""
            if self.rate_interval:
                low, high = (f"{100 * x:.2g}" for x in self.rate_interval)
                inside = f" ({low} to {high}%)"
            parts.append(f", which {100 * self.rate:.3g}%{inside} of the default's {conversations} raise")
        if self.window_rate is not None:
            window = "turns" if self.turns == 1 else f"runs of {self.turns} turns"
            parts.append(f", and {100 * self.window_rate:.2g}% of its single {window}")
        if self.rate is not None:
            parts.append(
                "; how alike a conversation's turns are is not known, and the rate holds for any"
                if self.correlation is None
                else f"; turns of a conversation are taken to correlate by {self.correlation:.2f}"
            )
        if self.detects is not None:
            conversation_share = (
                f" and {100 * self.detects_conversations:.0f}% of such conversations"
                if self.detects_conversations
                else ""
            )
            parts.append(
                f"; so do {100 * self.detects:.0f}% of roles' runs{conversation_share} at {self.tokens} tokens a reply"
            )
        return "".join(parts)


def turns_correlation(space: PersonaSpace) -> float | None:
    """How a conversation's turns correlate on the axis: the question's share of the variance of replies, since what a
    conversation is about stays. None where the space does not know errors' variance over questions'."""
    if REPLY not in space.readings or not (replies := space.of(REPLY)).knows_question_variance:
        return None
    return 1 / (1 + float(replies.tensors["variance_ratio"][space.layer]))


def simulated(correlation: float, turns: int, conversations: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Turns of conversations `[conversations, turns]`, normal, of variance 1 and correlated within each, and which
    of the means over `turns` turns in a row lie within their conversation, whose length is drawn, `[conversations,
    windows]`."""
    rng = np.random.default_rng(seed)
    fewest, most = (max(n, turns) for n in CONVERSATION)
    lengths = rng.integers(fewest, most + 1, conversations)
    shared_part, turn_part = rng.normal(size=(conversations, 1)), rng.normal(size=(conversations, most))
    drifts = correlation**0.5 * shared_part + (1 - correlation) ** 0.5 * turn_part
    return drifts, np.arange(most - turns + 1) <= (lengths - turns)[:, None]


def conversation_lengths(turns: int) -> str:
    """The conversations of `simulated` in words."""
    fewest, most = (max(n, turns) for n in CONVERSATION)
    return f"conversations of {fewest} to {most} turns" if fewest < most else f"conversations of {most} turns"


def highest(drifts: np.ndarray, within: np.ndarray) -> np.ndarray:
    """The highest mean over turns in a row of each conversation, `[conversations]`; see `simulated`."""
    turns = drifts.shape[1] - within.shape[1] + 1
    sums = np.pad(drifts.cumsum(1), ((0, 0), (1, 0)))
    highest_means: np.ndarray = np.where(within, (sums[:, turns:] - sums[:, :-turns]) / turns, -np.inf).max(1)
    return highest_means


def detection(space: PersonaSpace, rate: float = 0.01, seed: int = 0, turns: Sequence[int] = TURNS) -> list[AlertRule]:
    """The rule that default conversations of 6 to 15 turns raise at `rate`, for each length of reply and number of
    turns, with the share of role conversations (replies of one role) that raise it. From the replies that
    calibration replayed: their mean and deviation are those of a normal distribution, since a few hundred replies
    say little of their own rarest ones, and conversations of it are simulated, whose turns are as alike as the
    question makes replies.

    Raises `SpaceError` for a space without calibration, `UsageError` for a rate that is not between 0 and 1.
    """
    if not 0 < rate < 1:
        raise UsageError(f"a false-alarm rate of {rate}: expected one between 0 and 1, as 0.01")
    if not space.calibrated:
        raise SpaceError("this space has no alert rule: `personaspace calibrate` measures how sure one can be")
    lengths = space.meta["calibration"]["lengths"]
    roles = np.array(space.meta["calibration"]["roles"])
    correlation = turns_correlation(space)
    conversations = int(min(max(SIMULATED, 40 / rate), MOST_SIMULATED))
    rng = np.random.default_rng(seed)
    rules = []
    for count in turns:
        # Where it is not known how alike turns are, the highest threshold of all is taken: a mean over alike turns
        # spreads further, but differing ones give more chances, so that neither end is the careful one by itself.
        thresholds = []
        for rho in CORRELATIONS if correlation is None else (correlation,):
            drifts, within = simulated(rho, count, conversations, seed)
            thresholds.append((float(np.quantile(highest(drifts, within), 1 - rate)), rho))
        reach, rho = max(thresholds)
        drifts, within = simulated(rho, count, conversations, seed)
        tops = np.sort(highest(drifts, within))
        spread = 1.0 if correlation is None else ((1 + (count - 1) * correlation) / count) ** 0.5
        window_rate = 1 - NormalDist().cdf(reach / spread)
        ranks = torch.special.ndtr(torch.from_numpy(drifts)).numpy()
        for row, tokens in enumerate(lengths):
            default, by_role = (
                (space.drift(0.0) - space.tensors[name][row].double() / space.default_moments()[1]).numpy()
                for name in ("beginnings_default", "beginnings_roles")
            )
            default = np.sort(default[~np.isnan(default)])
            groups = [g[~np.isnan(g)] for g in (by_role[roles == r] for r in dict.fromkeys(roles.tolist()))]
            groups = [g for g in groups if len(g)]
            if len(default) < LEAST_REPLIES or len(groups) < LEAST_ROLES:
                continue
            threshold = float(default.mean() + reach * default.std(ddof=1))
            long_enough = [g for g in groups if len(g) >= count]
            alerts = [rng.permuted(np.tile(g, (64, 1)), axis=1)[:, :count].mean(1) > threshold for g in long_enough]
            as_sampled = np.interp(ranks, np.linspace(0, 1, len(default)), default)
            rule = AlertRule(
                threshold,
                count,
                0.5,
                rate,
                observed=float((highest(as_sampled, within) > threshold).mean()),
                detects=float(np.mean(alerts)) if len(long_enough) >= LEAST_ROLES else None,
                # How often a whole conversation is found hangs on how alike its turns are, which no bound stands in for.
                detects_conversations=None if correlation is None else _raised_by_roles(groups, tops, threshold, rng),
                tokens=tokens,
                rate_of=conversation_lengths(count),
                rate_interval=rate_bounds(space, tops, reach, len(default), rho, rng),
                window_rate=window_rate,
                correlation=correlation,
            )
            rules.append(rule)
    return sorted(rules, key=lambda r: ((r.tokens or 0), r.turns))


def rate_bounds(
    space: PersonaSpace, tops: np.ndarray, reach: float, replies: int, correlation: float, rng: np.random.Generator
) -> tuple[float, float]:
    """What a rate may be, since the default's mean and deviation are estimated from so many replies. tops:
    conversations' highest means, sorted; reach: the threshold among them."""
    # Replies to the same question say less than as many to questions of their own.
    questions = space.meta.get("catalog", {}).get("questions") or replies
    n = max(replies / (1 + max(replies / questions - 1, 0) * correlation), 2.0)
    mean = rng.normal(size=DRAWS) / n**0.5
    deviation = np.sqrt(rng.chisquare(n - 1, DRAWS) / (n - 1))
    rates = 1 - np.searchsorted(tops, mean + reach * deviation) / len(tops)
    low, high = np.quantile(rates, [0.025, 0.975])
    return float(low), float(high)


def _raised_by_roles(
    groups: Sequence[np.ndarray], tops: np.ndarray, threshold: float, rng: np.random.Generator
) -> float | None:
    """The share of conversations that raise an alert when a role holds them from first to last: roles' means are
    normal about their own, with the variance that is not their replies', and a role's turns about its mean as the
    default's are about its. groups: the drifts of each role's replies. None where no role has two."""
    several = [g for g in groups if len(g) > 1]
    if len(several) < LEAST_ROLES:
        return None
    freedom = [len(g) - 1 for g in several]
    within = float(np.average([g.var(ddof=1) for g in several], weights=freedom))
    means = np.array([g.mean() for g in several])
    noise = float(np.mean([within / len(g) for g in several]))
    between = max(float(means.var(ddof=1)) - noise, 0.0)
    if not within:
        return None
    drawn = means.mean() + between**0.5 * rng.normal(size=DRAWS)
    return float(1 - np.searchsorted(tops, (threshold - drawn) / within**0.5).mean() / len(tops))


def alert_rule(
    space: PersonaSpace, *, rate: float = 0.01, turns: int = 2, tokens: int | None = None
) -> AlertRule | None:
    """The rule for a number of turns and the replies' length (None: the longest that was measured); None where
    calibration saw too few replies or roles for any. Raises as `detection`."""
    rules = detection(space, rate, turns=(turns,))
    return min(rules, key=lambda r: abs((r.tokens or 0) - (tokens or 10**6)), default=None)


@dataclass(frozen=True)
class ThoughtReading:
    """What was thought before an answer, on the axis."""

    tokens: int
    projection: float
    drift: float | None


@dataclass(frozen=True)
class TurnReading:
    """An assistant turn on the axis. index: its place among the messages. fell: the half-open range of tokens in which the
    projection lay furthest under the default's, taken together; None where it did not. each: every token's projection.
    thinking: where its thoughts lie, where the answer is what is read. along: where it lies on further directions, by name."""

    index: int
    tokens: int
    projection: float
    drift: float | None
    nearest: list[tuple[str, float]]
    alert: bool
    fell: tuple[int, int] | None
    each: tuple[float, ...] = field(repr=False)
    fell_text: str = ""
    thinking: ThoughtReading | None = None
    along: dict[str, Along] = field(default_factory=dict)

    def _repr_html_(self) -> str:
        return tables.of_turns("An assistant turn on the axis", [self])

    def to_dict(self, tokens: bool = False) -> dict[str, Any]:
        """Plain values for JSON; `each` only where tokens are asked for, `thinking` and `along` where there is any."""
        values = asdict(self)
        for name in ("thinking", "along"):
            if not values[name]:
                del values[name]
        if not tokens:
            del values["each"]
        return values


class Monitor:
    """Follows one conversation. Feed it each token's activation as it is made, and end the turn. along: further directions
    that turns are read on (`PersonaSpace.along`); they may change from turn to turn."""

    def __init__(self, space: PersonaSpace, rule: AlertRule | None = None, along: Sequence[Direction] = ()) -> None:
        self.space, self.rule, self.along = space, rule, along
        self.unit = space.axis_at()
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
        location = self.space.read(mean)
        if location.drift is not None:
            self.look(location.drift)
        fell = self._fall(each) if self.space.knows_default else None
        along = {direction.name: direction.read(mean) for direction in self.along}
        turn_index = len(self.readings) if index is None else index
        reading = TurnReading(turn_index, n, **vars(location), alert=self.alert, fell=fell, each=each, along=along)
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

    def _fall(self, projections: Sequence[float]) -> tuple[int, int] | None:
        """Where the sum of what lies more than a standard deviation under the default's mean is greatest."""
        mean, std = self.space.default_moments()
        best, steepest, total, start = 0.0, None, 0.0, 0
        for k, projection in enumerate(projections):
            if total <= 0:
                total, start = 0.0, k
            total += mean - std - projection
            if total > best:
                best, steepest = total, (start, k + 1)
        return steepest


def project(
    engine: Engine,
    space: PersonaSpace,
    messages: Sequence[Message],
    rule: AlertRule | None = None,
    most: int | None = None,
    part: Part = "answer",
    along: Sequence[Direction] = (),
) -> tuple[list[TurnReading], str | None]:
    """Reads every assistant turn of a conversation that fits the model's context, or `most` tokens of it, in one
    forward pass; the readings, and a sentence about what did not fit, or was read otherwise than it stands. part: of each
    turn its answer, with what its thoughts read beside it, its thoughts, or both. along: as in `Monitor`. Raises
    `UsageError` where no turn fits, `SpaceError` for another model."""
    space.check_model(engine.info)
    span, places = engine.chat.spans(messages, part)
    limit = min(engine.info.context or len(span.token_ids), most or len(span.token_ids))
    fit = [k for k, (_, end) in enumerate(span.spans) if end <= limit]
    problem = None
    if len(fit) < len(places):
        first = places[len(fit)]
        problem = (
            f"message {first + 1} reaches token {span.spans[len(fit)][1]:,}; {engine.info.id} takes {limit:,}: "
            f"{len(fit)} of {len(places)} assistant turns are read"
        )
    if not fit:
        raise UsageError(f"{problem or 'no assistant turn'}; cut the conversation")
    end = max(span.spans[k][1] for k in fit)
    if not end:
        raise UsageError("no assistant turn has any text")
    thoughts: dict[int, tuple[int, int]] = {}
    if part == "answer" and engine.chat.thinks:
        thought_span, thought_places = engine.chat.spans(messages, "thinking")
        pairs = zip(thought_places, thought_span.spans, strict=True)
        thoughts = {place: tokens for place, tokens in pairs if place in places[: len(fit)] and tokens[1] <= end}
    cut = type(span)(span.token_ids[:end], (*span.spans[: len(fit)], *thoughts.values()))
    (turns,) = engine.replay([cut], read=[space.layer], each=True)
    thought_readings: dict[int, ThoughtReading] = {}
    for place, turn in zip(thoughts, turns[len(fit) :], strict=True):
        location = space.read(turn.activation)
        thought_readings[place] = ThoughtReading(turn.tokens, location.projection, location.drift)
    monitor, readings = Monitor(space, rule, along), []
    for k, turn in enumerate(turns[: len(fit)]):
        for activation in turn.each[:, 0] if turn.each is not None else ():
            monitor.feed(activation)
        reading = monitor.end_turn(places[k])
        if reading is not None:
            start = span.spans[k][0]
            text = ""
            if reading.fell:
                text = engine.chat.decode(span.token_ids[start + reading.fell[0] : start + reading.fell[1]])
            thinking = thought_readings.get(places[k])
            readings.append(replace(reading, fell_text=text, thinking=thinking))
    return readings, "; ".join(filter(None, [*span.notes, problem])) or None
