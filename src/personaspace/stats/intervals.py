"""Shares, means and their 95% intervals; it knows nothing of experiments."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from personaspace.stats.correlation import spearman

LEVEL = 0.95
DRAWS = 2000
FEWEST, FEW = 3, 20
"""Groups under which no interval is told, and under which a bootstrap over them is too narrow: over six it misses the truth
in 15 of 100, where a t-interval about the estimate misses it in 5."""
NO_INTERVAL = "too few for an interval"


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval, over n units; missing: how many units had no value.

    It says itself: a format is the value's, and the interval's ends follow it.

    >>> f"{Estimate(0.4, 0.3, 0.5, 20):+.2f}"
    '+0.40 (+0.30 to +0.50)'
    >>> f"{Estimate(0.4, 0.3, 0.5, 20):.0%}"
    '40% (30–50)'
    """

    value: float
    low: float
    high: float
    n: int
    missing: int = 0

    def direction(self) -> int:
        """What may be said of it: 1 where its whole interval lies above 0, −1 where it lies below, and 0 where neither can be
        told."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0

    def __format__(self, spec: str) -> str:
        """The value with its interval, how many units are missing, and in words what there is no figure for."""
        missing, share = f", {self.missing} missing" if self.missing else "", spec.endswith("%")
        if not self.n:
            return f"none{' judged' if share else ''} ({self.missing} missing)"
        if math.isnan(self.value):
            return f"not known{f' ({self.missing} missing)' if self.missing else ''}"
        ends = [f"{end:{spec or '.2f'}}".rstrip("%") for end in (self.low, self.high)]
        inside = NO_INTERVAL if math.isnan(self.low) else ("–" if share and self.low >= 0 else " to ").join(ends)
        return f"{self.value:{spec or '.2f'}} ({inside}{missing})"

    def __str__(self) -> str:
        return format(self, ".2f")

    def ends(self, spec: str = "+.2f") -> str:
        """The interval's two ends, or that there are too few units for one."""
        return NO_INTERVAL if math.isnan(self.low) else f"{self.low:{spec}} to {self.high:{spec}}"

    def span(self, spec: str = "+.2f") -> str:
        """The interval alone, with its level."""
        return NO_INTERVAL if math.isnan(self.low) else f"95%: {self.ends(spec)}"

    def in_points(self) -> Estimate:
        """A share, or a difference of two, in whole percentage points."""
        value, low, high = (round(100 * x) if x == x else math.nan for x in (self.value, self.low, self.high))
        return Estimate(value, low, high, self.n, self.missing)

    def points(self) -> str:
        """A difference of shares, in percentage points."""
        if not self.n:
            return "not known"
        value, low, high = (f"{round(100 * x):+d}" if x == x else "?" for x in (self.value, self.low, self.high))
        return f"{value} ({low} to {high})".replace("-", "−")


def share(hits: Sequence[bool | None]) -> Estimate:
    """How often something is so, with Wilson's interval. None counts as missing, as does NaN.

    >>> f"{share([True, True, False, None]):.0%}"
    '67% (21–94, 1 missing)'
    """
    judged = [bool(h) for h in hits if h is not None and h == h]
    missing = len(hits) - len(judged)
    if not judged:
        return Estimate(math.nan, math.nan, math.nan, 0, missing)
    from scipy.stats import binomtest  # half a second to import, which no other command should wait for

    interval = binomtest(sum(judged), len(judged)).proportion_ci(LEVEL, method="wilson")
    return Estimate(sum(judged) / len(judged), float(interval.low), float(interval.high), len(judged), missing)


def shares_of(labels: Sequence[str | None], kinds: Sequence[str]) -> dict[str, Estimate]:
    """How often each kind was found; None and NaN count as missing."""
    return {kind: share([None if f is None or f != f else f == kind for f in labels]) for kind in kinds}


def bootstrap(
    groups: Sequence[Hashable], statistic: Callable[[np.ndarray], float], seed: int = 0, draws: int = DRAWS
) -> Estimate:
    """A figure with the percentile interval of a bootstrap over groups (conversations, items), which are drawn whole.

    statistic: from the indices of observations `[n]` to the figure; draws for which it is NaN are left out.

    >>> conversation = np.repeat(np.arange(20), 2).tolist()  # two turns each
    >>> drift = np.array([1.0, 2.0, 3.0, 5.0] * 10)
    >>> print(bootstrap(conversation, lambda rows: float(np.median(drift[rows]))))
    2.50 (2.00 to 3.00)
    """
    parts = _members(groups)
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


def _members(groups: Sequence[Hashable]) -> list[np.ndarray]:
    members: dict[Hashable, list[int]] = {}
    for k, group in enumerate(groups):
        members.setdefault(group, []).append(k)
    return [np.array(m, dtype=int) for m in members.values()]


def estimate(
    groups: Sequence[Hashable],
    statistic: Callable[[np.ndarray], float],
    seed: int = 0,
    draws: int = DRAWS,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """A figure with an interval that holds what it says over a handful of groups as well: under `FEW` a t-interval about the
    estimate, its standard error by leaving each group out in turn (of a mean over equal groups, the usual one); from there on
    a bootstrap. NaN bounds under `FEWEST`, or where a group's absence leaves no figure. within: what bounds can be.

    >>> drift = np.array([1.0, 2.0, 3.0, 4.0])
    >>> print(estimate(["a", "a", "b", "c"], lambda rows: float(drift[rows].mean())))
    2.50 (-1.41 to 6.41)
    """
    parts = _members(groups)
    if len(parts) >= FEW:
        return bootstrap(groups, statistic, seed, draws)
    n, everything = len(parts), np.arange(len(groups))
    value = statistic(everything) if n else math.nan
    if n < FEWEST:
        return Estimate(value, math.nan, math.nan, n)
    from scipy.stats import t

    # The jackknife: how much the figure moves as each group is left out tells how much it would over other groups.
    without = np.array([statistic(np.setdiff1d(everything, part)) for part in parts])
    error = math.sqrt((n - 1) * float(without.var()))
    reach = float(t.ppf((1 + LEVEL) / 2, n - 1)) * error
    low, high = np.clip([value - reach, value + reach], *within)
    return Estimate(value, float(low), float(high), n)


def mean(values: Sequence[float], groups: Sequence[Hashable] | None = None, seed: int = 0) -> Estimate:
    """The mean of the values that are not NaN, with its interval over groups (over the values unless given); see `estimate`.

    >>> print(mean([1.0, 2.0, 3.0, float("nan")]))
    2.00 (-0.48 to 4.48, 1 missing)
    """
    array = np.asarray(values, dtype=float)
    present = np.flatnonzero(~np.isnan(array))
    named: list[Hashable] = [groups[int(k)] if groups is not None else int(k) for k in present]
    without_missing = estimate(named, lambda draw: float(array[present[draw]].mean()), seed)
    return Estimate(
        without_missing.value, without_missing.low, without_missing.high, without_missing.n, len(array) - len(present)
    )


@dataclass(frozen=True)
class Paired:
    """The same items under two conditions: how many only the first solves, only the second, and the exact two-sided p of
    McNemar's test that the two do equally well."""

    only_first: int
    only_second: int
    n: int
    p: float


def paired(first: Sequence[bool | None], second: Sequence[bool | None]) -> Paired:
    """McNemar's exact test. Items that either lacks are left out.

    >>> paired([True, True, False, True], [True, False, False, False])
    Paired(only_first=2, only_second=0, n=4, p=0.5)
    """
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    only_first, only_second = sum(a and not b for a, b in both), sum(b and not a for a, b in both)
    different = only_first + only_second
    from scipy.stats import binomtest

    p = float(binomtest(only_first, different).pvalue) if different else 1.0
    return Paired(only_first, only_second, len(both), p)


@dataclass(frozen=True)
class Signs:
    """How many of n differences lie above 0, and below; and the exact two-sided p of the sign test that either is as likely.
    n leaves out those that are 0 and those that are NaN."""

    above: int
    below: int
    n: int
    p: float


def sign_test(differences: Sequence[float]) -> Signs:
    """The sign test. It takes six that all agree to come under 0.05.

    >>> sign_test([0.5, 0.1, 2.0, 0.3, 0.2, 1.0, 0.0])
    Signs(above=6, below=0, n=6, p=0.03125)
    """
    above, below = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    from scipy.stats import binomtest

    p = float(binomtest(above, above + below).pvalue) if above + below else 1.0
    return Signs(above, below, above + below, p)


def change(first: Sequence[bool], second: Sequence[bool]) -> Estimate:
    """How much more often something is so of the same items the second time, with Newcombe's interval for paired shares
    (his method 10, continuity-corrected): unlike a bootstrap's, it does not shrink to nothing where no item differs.

    >>> print(change([False] * 8 + [True] * 2, [True] * 6 + [False] * 2 + [True] * 2))
    0.60 (0.16 to 0.80)
    """
    a, b = share(first), share(second)
    n, p, q = a.n, a.value, b.value
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0)
    both = sum(x and y for x, y in zip(first, second, strict=True))
    neither = sum(not x and not y for x, y in zip(first, second, strict=True))
    # How far the two go together narrows the interval: the same items are seen twice.
    cross = both * neither - (n * p - both) * (n * q - both)
    if cross > 0:
        cross = max(cross - n / 2, 0.0)
    spread = n * n * math.sqrt(p * (1 - p) * q * (1 - q))
    phi = cross / spread if spread else 0.0

    def reach(x: float, y: float) -> float:
        return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))

    low, high = reach(q - b.low, a.high - p), reach(b.high - q, p - a.low)
    return Estimate(q - p, max(q - p - low, -1.0), min(q - p + high, 1.0), n)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's p of several looks, `[looks]`: those under 5% are at most 5% likely to hold a single false one, whatever the looks
    have to do with each other.

    >>> holm(np.array([0.01, 0.04, 0.03])).round(2).tolist()
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p)
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate(np.minimum(p[order] * np.arange(len(p), 0, -1), 1.0))
    return corrected


def trend(strength: Sequence[float], is_so: Sequence[bool], groups: Sequence[Hashable]) -> Estimate:
    """The rank correlation of a strength with something being so, by group; 0 where one of the two never varies."""
    x, y = np.asarray(strength, dtype=float), np.asarray(is_so, dtype=float)
    return estimate(groups, lambda draw: spearman(x[draw], y[draw], constant=0.0), draws=500, within=(-1, 1))


def trend_difference(
    strength: Sequence[float], is_so: Sequence[bool], groups: Sequence[Hashable], side: Sequence[int]
) -> Estimate:
    """How much larger a trend is on one side than on the other, by group. side: 1 or −1."""
    x, y, sides = np.asarray(strength, dtype=float), np.asarray(is_so, dtype=float), np.asarray(side)

    def difference(draw: np.ndarray) -> float:
        first, second = draw[sides[draw] > 0], draw[sides[draw] < 0]
        return spearman(x[first], y[first], constant=0.0) - spearman(x[second], y[second], constant=0.0)

    return estimate(groups, difference, draws=500, within=(-2, 2))


def mean_difference(is_so: Sequence[bool], groups: Sequence[Hashable], side: Sequence[int]) -> Estimate:
    """How much more often something is so on side 1 than on side −1, by group."""
    y, sides = np.asarray(is_so, dtype=float), np.asarray(side)

    def difference(draw: np.ndarray) -> float:
        first, second = y[draw[sides[draw] > 0]], y[draw[sides[draw] < 0]]
        return float(first.mean() - second.mean()) if len(first) and len(second) else math.nan

    return estimate(groups, difference, draws=500, within=(-1, 1))
