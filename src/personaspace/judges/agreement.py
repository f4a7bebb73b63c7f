"""How far two judges agree on the same replies: Cohen's kappa, the table of their scores, and where they differ. Arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from personaspace.stats.intervals import Estimate, estimate

ReplyKey = tuple[str, int]
"""A reply in a run: its role, and its index among the role's."""


@dataclass(frozen=True)
class Agreement:
    """Two judges on the replies that both have scored.

    n: how many; missing: how many only one of them has scored; same: the share with the same score; kappa: Cohen's, the
    agreement beyond chance; weighted: with quadratic weights, by which far apart is worse than near; kept: kappa of whether
    a reply counts (the highest score) or not; each with a 95% interval over roles, which are drawn whole, and NaN where
    both judges give one and the same score throughout. table: `[scores of the first, of the second]`; differ: the replies
    they differ on, those furthest apart first.
    """

    n: int
    missing: int
    same: float
    kappa: Estimate
    weighted: Estimate
    kept: Estimate
    table: Sequence[Sequence[int]]
    differ: Sequence[ReplyKey]


def kappa(table: np.ndarray, weights: str | None = None) -> float:
    """Cohen's kappa of a table of counts `[k, k]`; weights None: every difference counts the same, `quadratic`: by its square.
    NaN where agreement by chance is certain, or nothing was counted."""
    k, n = len(table), table.sum()
    if not n:
        return math.nan
    places = np.arange(k)
    apart = (places[:, None] - places) ** 2 if weights == "quadratic" else places[:, None] != places
    by_chance = float((apart * np.outer(table.sum(1), table.sum(0))).sum()) / n
    return math.nan if by_chance == 0 else 1 - float((apart * table).sum()) / by_chance


def agreement_of(first: Mapping[ReplyKey, int], second: Mapping[ReplyKey, int], top: int, seed: int = 0) -> Agreement:
    """Compares the scores, 0 to `top`, that two judges gave to replies.

    >>> agreement_of({("ghost", 0): 3, ("ghost", 1): 0}, {("ghost", 0): 3, ("ghost", 1): 1}, top=3).differ
    [('ghost', 1)]
    """
    keys = sorted(first.keys() & second.keys())
    a = np.array([first[key] for key in keys], dtype=int)
    b = np.array([second[key] for key in keys], dtype=int)
    size = top + 1

    def table(draw: np.ndarray) -> np.ndarray:
        return np.bincount(a[draw] * size + b[draw], minlength=size * size).reshape(size, size)

    def kept(draw: np.ndarray) -> float:
        counts = table(draw)
        both = counts[top, top]
        return kappa(np.array([[counts[:top, :top].sum(), counts[:top, top].sum()], [counts[top, :top].sum(), both]]))

    roles = [role for role, _ in keys]
    whole = table(np.arange(len(keys)))
    apart = np.abs(a - b)
    return Agreement(
        n=len(keys),
        missing=len(first.keys() | second.keys()) - len(keys),
        same=float((a == b).mean()) if keys else math.nan,
        kappa=estimate(roles, lambda draw: kappa(table(draw)), seed, within=(-1, 1)),
        weighted=estimate(roles, lambda draw: kappa(table(draw), "quadratic"), seed, within=(-1, 1)),
        kept=estimate(roles, kept, seed, within=(-1, 1)),
        table=whole.tolist(),
        differ=[keys[int(k)] for k in np.argsort(-apart, kind="stable") if apart[k]],
    )
