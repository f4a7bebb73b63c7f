"""Shares, means and their 95% intervals; it knows nothing of experiments."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
DRAWS = 2000


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval, over n units; missing: how many units had no value."""

    value: float
    low: float
    high: float
    n: int
    missing: int = 0

    def __str__(self) -> str:
        missing = f", {self.missing} missing" if self.missing else ""
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f}{missing})"

    def signed(self) -> str:
        """The same with a sign; without an interval where too few units were seen for one."""
        missing = f", {self.missing} missing" if self.missing else ""
        if not self.n:
            return f"none ({self.missing} missing)"
        inside = "too few for an interval" if math.isnan(self.low) else f"{self.low:+.2f} to {self.high:+.2f}"
        return f"{self.value:+.2f} ({inside}{missing})"

    def span(self) -> str:
        """The interval alone, with signs."""
        return f"95%: {self.low:+.2f} to {self.high:+.2f}"

    def points(self) -> str:
        """A difference of shares, in percentage points."""
        if not self.n:
            return "not known"
        value, low, high = (f"{round(100 * x):+d}" if x == x else "?" for x in (self.value, self.low, self.high))
        return f"{value} ({low} to {high})".replace("-", "−")

    def percent(self) -> str:
        """The same as per cent."""
        if not self.n:
            return f"none judged ({self.missing} missing)"
        missing = f", {self.missing} missing" if self.missing else ""
        return f"{100 * self.value:.0f}% ({100 * self.low:.0f}–{100 * self.high:.0f}{missing})"


def share(hits: Sequence[bool | None]) -> Estimate:
    """How often something is so, with Wilson's interval. None counts as missing."""
    known = [bool(h) for h in hits if h is not None]
    missing = len(hits) - len(known)
    if not known:
        return Estimate(math.nan, math.nan, math.nan, 0, missing)
    from scipy.stats import binomtest  # half a second to import, which no other command should wait for

    found = binomtest(sum(known), len(known)).proportion_ci(LEVEL, method="wilson")
    return Estimate(sum(known) / len(known), float(found.low), float(found.high), len(known), missing)


def shares_of(found: Sequence[str | None], kinds: Sequence[str]) -> dict[str, Estimate]:
    """How often each kind was found; None counts as missing."""
    return {kind: share([None if f is None else f == kind for f in found]) for kind in kinds}


def bootstrap(
    groups: Sequence[Hashable], statistic: Callable[[np.ndarray], float], seed: int = 0, draws: int = DRAWS
) -> Estimate:
    """A figure with the percentile interval of a bootstrap over groups (conversations, items), which are drawn whole.

    statistic: from the indices of observations `[n]` to the figure; draws for which it is NaN are left out.
    """
    members: dict[Hashable, list[int]] = {}
    for k, group in enumerate(groups):
        members.setdefault(group, []).append(k)
    parts = [np.array(m, dtype=int) for m in members.values()]
    value = statistic(np.arange(len(groups))) if parts else math.nan
    if len(parts) < 2:
        return Estimate(value, math.nan, math.nan, len(parts))
    rng = np.random.default_rng(seed)
    drawn = [
        statistic(np.concatenate([parts[k] for k in rng.integers(len(parts), size=len(parts))])) for _ in range(draws)
    ]
    if np.isnan(drawn).all():
        return Estimate(value, math.nan, math.nan, len(parts))
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(value), float(low), float(high), len(parts))


def mean(values: Sequence[float], groups: Sequence[Hashable] | None = None, seed: int = 0) -> Estimate:
    """The mean of the values that are not NaN, with a bootstrap interval over groups (over the values unless given)."""
    array = np.asarray(values, dtype=float)
    known = np.flatnonzero(~np.isnan(array))
    named: list[Hashable] = [groups[int(k)] if groups is not None else int(k) for k in known]
    found = bootstrap(named, lambda at: float(array[known[at]].mean()), seed)
    return Estimate(found.value, found.low, found.high, found.n, len(array) - len(known))


@dataclass(frozen=True)
class Paired:
    """The same items under two conditions: how many only the first solves, only the second, and the exact two-sided p of
    McNemar's test that the two do equally well."""

    only_first: int
    only_second: int
    n: int
    p: float


def paired(first: Sequence[bool | None], second: Sequence[bool | None]) -> Paired:
    """McNemar's exact test. Items that either lacks are left out."""
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    only_first, only_second = sum(a and not b for a, b in both), sum(b and not a for a, b in both)
    different = only_first + only_second
    from scipy.stats import binomtest

    p = float(binomtest(only_first, different).pvalue) if different else 1.0
    return Paired(only_first, only_second, len(both), p)


def change(first: Sequence[bool], second: Sequence[bool]) -> Estimate:
    """How much more often something is so of the same items the second time, with Newcombe's interval for paired shares
    (his method 10, continuity-corrected): unlike a bootstrap's, it does not shrink to nothing where no item differs."""
    a, b = share(first), share(second)
    n, p, q = a.n, a.value, b.value
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0)
    both = sum(x and y for x, y in zip(first, second, strict=True))
    neither = sum(not x and not y for x, y in zip(first, second, strict=True))
    cross = both * neither - (n * p - both) * (n * q - both)
    if cross > 0:
        cross = max(cross - n / 2, 0.0)
    spread = n * n * math.sqrt(p * (1 - p) * q * (1 - q))
    phi = cross / spread if spread else 0.0

    def reach(x: float, y: float) -> float:
        return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))

    low, high = reach(q - b.low, a.high - p), reach(b.high - q, p - a.low)
    return Estimate(q - p, max(q - p - low, -1.0), min(q - p + high, 1.0), n)


def trend(strength: Sequence[float], is_so: Sequence[bool], groups: Sequence[Hashable]) -> Estimate:
    """The rank correlation of a strength with something being so, drawn by group; 0 where one of the two never varies."""
    from scipy.stats import spearmanr

    x, y = np.asarray(strength, dtype=float), np.asarray(is_so, dtype=float)

    def correlation(at: np.ndarray) -> float:
        if np.ptp(x[at]) == 0 or np.ptp(y[at]) == 0:
            return 0.0
        return float(spearmanr(x[at], y[at]).statistic)

    return bootstrap(groups, correlation, draws=500) if len(x) else Estimate(math.nan, math.nan, math.nan, 0)
