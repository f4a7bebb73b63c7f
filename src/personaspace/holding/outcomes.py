"""What a cap does and what it costs, in numbers, and which of several to take; it tries nothing and draws nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from personaspace.space import PersonaSpace

MAX_COST = 1.03
"""The factor on the perplexity of default replies that a recommended cap may have, 0.03 nats a token. It bounds the
upper end of the cost's 95% interval: a bound on the estimate would favour what was measured on few replies."""

MAX_TOUCHED = 0.5
"""The share of the default's own tokens that a recommended cap may change, at any of its layers: one that changes most
of what the default says guards against nothing that it does not say; it is a constant push."""

CERTAIN, DRAWS = 0.95, 4000
"""How sure the interval of a cost is, and over how many draws of questions."""


@dataclass(frozen=True)
class Losses:
    """What a cap costs each held-out default reply, `[replies]`. lost: by how many nats its tokens together are less
    probable; tokens: how many they are; touched: how many of them it changes; questions: what each replies to."""

    lost: np.ndarray
    tokens: np.ndarray
    touched: np.ndarray
    questions: tuple[str, ...]

    def cost(self) -> float:
        """The factor on the perplexity of all tokens."""
        return math.exp(self.lost.sum() / self.tokens.sum())

    def interval(self, seed: int = 0) -> tuple[float, float] | None:
        """The cost's interval by a paired bootstrap over questions: both models read the same draws of replies. None
        where all reply to one question."""
        _, question = np.unique(self.questions, return_inverse=True)
        n = int(question.max()) + 1
        if n < 2:
            return None
        lost, tokens = (np.bincount(question, x, n) for x in (self.lost, self.tokens))
        times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), DRAWS)
        # A percentile interval of few is too narrow: its tails are thinned as a t-interval is wider than a normal one.
        from scipy.stats import norm, t

        tail = norm.cdf(-math.sqrt(n / (n - 1)) * t.ppf((1 + CERTAIN) / 2, n - 1))
        low, high = np.quantile((times @ lost) / (times @ tokens), [tail, 1 - tail])
        return math.exp(low), math.exp(high)

    def __add__(self, addend: Losses) -> Losses:
        return Losses(
            np.concatenate([self.lost, addend.lost]),
            np.concatenate([self.tokens, addend.tokens]),
            np.concatenate([self.touched, addend.touched]),
            self.questions + addend.questions,
        )


@dataclass(frozen=True)
class CapEffect:
    """What is done to role replies, by a cap or by what it is compared with.

    way: how far of the way along the axis from plain role replies to default ones they lie, replayed through the model
    as it is, at the space's layer. off_axis: how much their cosine with their own role's vector changes, both taken
    from the mean role and without what lies along the axis: what else of the role is lost (under 0). Both with standard
    errors over prompts; None where no role has a vector. adherence: the share that the judge takes for the role.
    """

    name: str
    way: float
    way_error: float
    adherence: float | None = None
    off_axis: float | None = None
    off_axis_error: float | None = None


def effects(
    space: PersonaSpace,
    roles: Sequence[str],
    replies: Mapping[str, tuple[Tensor, float | None]],
    default: float,
) -> dict[str, CapEffect]:
    """The effects by name. roles: whose each reply is; replies: by name their mean activations `[replies, hidden]`
    as the model reads them without anything, NaN for an empty one, and the share in role; plain ones are called
    `none`. default: the mean projection of default replies."""
    unit = space.axis_at()
    # Of a space of prompts, role vectors point from the mean prompt; replies lie about their own mean.
    (vectors, _), centre = space.centred(), space.centre()
    rows = {role: k for k, role in enumerate(space.roles)}
    own_vectors = torch.stack([vectors[rows[r]] if r in rows else torch.full_like(unit, math.nan) for r in roles])

    def across(x: Tensor) -> Tensor:
        return x - (x @ unit)[:, None] * unit

    along = {name: (h @ unit).numpy() for name, (h, _) in replies.items()}
    cosines = {
        name: torch.cosine_similarity(across(h - centre), across(own_vectors), dim=-1).numpy()
        for name, (h, _) in replies.items()
    }
    # The whole way is the one from where plain role replies lie to where the default's do.
    gap = default - float(np.nanmean(along["none"]))
    by_name = {}
    for name, (_, in_role) in replies.items():
        way, way_error = _mean((along[name] - along["none"]) / gap)
        off_axis, off_axis_error = _mean(cosines[name] - cosines["none"])
        if math.isnan(off_axis):
            by_name[name] = CapEffect(name, way, way_error, in_role)
        else:
            by_name[name] = CapEffect(name, way, way_error, in_role, off_axis, off_axis_error)
    return by_name


def _mean(values: np.ndarray) -> tuple[float, float]:
    """The mean of what is there, and its standard error."""
    present = values[~np.isnan(values)]
    if not len(present):
        return math.nan, math.nan
    error = float(present.std(ddof=1)) / math.sqrt(len(present)) if len(present) > 1 else math.nan
    return float(present.mean()), error


@dataclass(frozen=True)
class CapOutcome:
    """What a cap does.

    way, off_axis, adherence: as in `CapEffect`. cost: factor on the perplexity of held-out default replies, with its 95%
    interval; losses: what both are made of. touched: share of their tokens that it changes. capability: share of tasks
    solved.
    """

    name: str
    way: float
    way_error: float
    adherence: float | None
    cost: float
    touched: float
    capability: float | None = None
    front: bool = False
    cost_interval: tuple[float, float] | None = None
    off_axis: float | None = None
    off_axis_error: float | None = None
    losses: Losses | None = field(default=None, repr=False, compare=False)

    @property
    def dearest(self) -> float:
        """The upper end of the cost's interval; the cost itself where none is known."""
        return self.cost_interval[1] if self.cost_interval else self.cost

    @property
    def beyond(self) -> float:
        """How much of its bound it takes up, on cost or on tokens touched, whichever is more; out of bounds over 1."""
        return max(math.log(self.dearest) / math.log(MAX_COST), self.touched / MAX_TOUCHED)

    def price(self) -> str:
        """What it costs, in words."""
        inside = f" ({self.cost_interval[0]:.3f} to {self.cost_interval[1]:.3f})" if self.cost_interval else ""
        return f"× {self.cost:.3f}{inside} perplexity, {percent(self.touched)} of the default's tokens touched"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {k: v for k, v in vars(self).items() if k != "losses"}
        return {**values, "cost_interval": list(self.cost_interval) if self.cost_interval else None}


def pareto(outcomes: Sequence[CapOutcome]) -> list[CapOutcome]:
    """Marks those that no other beats in both, the way and the cost."""
    return [
        replace(
            o,
            front=not any(
                (p.way >= o.way and p.cost < o.cost) or (p.way > o.way and p.cost <= o.cost) for p in outcomes
            ),
        )
        for o in outcomes
    ]


def choose(outcomes: Sequence[CapOutcome]) -> tuple[CapOutcome, str]:
    """The cap to take, and why: of those within the bounds on cost and on tokens touched the one that goes furthest,
    else the gentlest."""
    best = ranked([o for o in outcomes if o.name != "none"])[0]
    bounds = (
        f"at most {100 * (MAX_COST - 1):.0f}% perplexity at the upper end of its 95% interval and at most "
        f"{percent(MAX_TOUCHED)} of the default's own tokens touched"
    )
    if best.beyond <= 1:
        return best, f"of the caps within bounds ({bounds}) it goes furthest: {best.price()}"
    return best, f"no cap is within bounds ({bounds}); this one is the gentlest: {best.price()}"


def priced(o: CapOutcome, losses: Losses, seed: int = 0) -> CapOutcome:
    """The outcome with what the losses say of its cost."""
    touched = float(losses.touched.sum() / losses.tokens.sum())
    return replace(o, cost=losses.cost(), touched=touched, cost_interval=losses.interval(seed), losses=losses)


def percent(share: float) -> str:
    """A share in words."""
    return f"{100 * share:.0f}%"


def ranked(outcomes: Sequence[CapOutcome]) -> list[CapOutcome]:
    """Those within both bounds first, the one that goes furthest before the others; then by how far out they are."""
    return sorted(outcomes, key=lambda o: (o.beyond > 1, -o.way if o.beyond <= 1 else o.beyond))


def pooled(a: CapOutcome, b: CapOutcome, n: int, m: int) -> CapOutcome:
    """Two trials of a cap, on n and on m role prompts, and on default replies of their own, as one."""

    def both(name: str) -> float | None:
        x, y = getattr(a, name), getattr(b, name)
        if x is None or y is None:
            return None
        return math.hypot(n * x, m * y) / (n + m) if name.endswith("_error") else float(n * x + m * y) / (n + m)

    names = ("way", "way_error", "adherence", "off_axis", "off_axis_error")
    figures: dict[str, Any] = {name: both(name) for name in names}
    moved = replace(a, **figures)
    return priced(moved, a.losses + b.losses) if a.losses and b.losses else moved
