"""Differences of means against a direction: their cosines, intervals, reliability, and what chance alone would give.

It knows nothing of traits or models: pairs of activations come in, brought out first, suppressed second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from personaspace.stats.forecast import spearman_brown
from personaspace.stats.intervals import LEVEL, Estimate, bootstrap
from personaspace.stats.vectors import cosine

FLIPS, SPLITS = 64, 20
FEWEST, ENOUGH = 2, 8
"""Whole pairs under which there is no contrast, and those from which on the spread between them is to be trusted: of two it is
right half the time."""


@dataclass(frozen=True)
class Measured:
    """A contrast of whole pairs. vector: `[hidden]`; cosine: with the direction; pairs: how many are whole; missing: replies
    not kept.

    flipped: its cosines where half of the pairs have their labels swapped, `[FLIPS]`; error: the cosine's standard error, NaN
    of fewer than `ENOUGH` pairs; halves: cosines of halves of the pairs, `[SPLITS, 2]`.
    """

    vector: np.ndarray
    cosine: float
    pairs: int
    missing: int
    flipped: np.ndarray
    error: float
    halves: np.ndarray


def contrast(differences: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean differences `[draws, hidden]` of pairs' differences `[pairs, hidden]`. weights: of pairs, `[draws, pairs]`; below 0
    where a pair's labels are swapped."""
    contrasts: np.ndarray = weights @ differences / np.abs(weights).sum(1, keepdims=True)
    return contrasts


def balanced_signs(pairs: int, rng: np.random.Generator) -> np.ndarray:
    """Random signs of pairs, `[FLIPS, pairs]`, as many of either, so that what pairs share cancels; of an odd number of pairs
    one has 0 and is left out."""
    half = pairs // 2
    signs = np.repeat([-1.0, 1.0, 0.0], [half, half, pairs % 2])
    return rng.permuted(np.tile(signs, (FLIPS, 1)), axis=1)


def measure(
    activations: np.ndarray, counted: np.ndarray, direction: np.ndarray, seed: Sequence[int]
) -> Measured | None:
    """A contrast, of `[pairs, 2, hidden]` and who is kept `[pairs, 2]`; None of fewer than two pairs of which both are kept.

    A reply whose pair is not whole is left out: with it, its question's own effect would not cancel.
    """
    complete = counted.all(1)
    n = int(complete.sum())
    if n < FEWEST:
        return None
    rng = np.random.default_rng(seed)
    differences = activations[complete, 0] - activations[complete, 1]

    def cosines(weights: np.ndarray) -> np.ndarray:
        return cosine(contrast(differences, weights), direction)

    flipped = cosines(balanced_signs(n, rng))
    first = rng.permuted(np.tile((np.arange(n) < n // 2).astype(float), (SPLITS, 1)), axis=1)
    halves = np.stack([cosines(half) for half in (first, 1 - first)], axis=1)
    # By leaving each pair out in turn: pairs drawn again would have more noise than the pairs themselves, which shrinks
    # cosines and their spread.
    error = math.sqrt((n - 1) * float(cosines(1 - np.eye(n)).var())) if n >= ENOUGH else math.nan
    vector = contrast(differences, np.ones((1, n)))[0]
    return Measured(vector, float(cosine(vector, direction)), n, int((~counted).sum()), flipped, error, halves)


def by_chance(measured: Sequence[Measured]) -> np.ndarray:
    """The cosines that chance alone gives, over all contrasts; either sign is as likely."""
    flipped = np.concatenate([m.flipped for m in measured]) if measured else np.empty(0)
    return np.concatenate([flipped, -flipped])


def interval(m: Measured, chance: np.ndarray) -> Estimate:
    """A contrast's cosine with its 95% interval: a t-interval over its pairs, and where they are too few for one, as wide as
    chance makes cosines (rather too wide: noise alone turns a vector further than noise beside a trait does)."""
    low = high = math.nan
    if not math.isnan(m.error):
        from scipy.stats import t  # half a second to import, which no other command should wait for

        reach = float(t.ppf((1 + LEVEL) / 2, m.pairs - 1)) * m.error
        low, high = np.clip([m.cosine - reach, m.cosine + reach], -1, 1)
    elif len(chance):
        low, high = np.clip(m.cosine + np.quantile(chance, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]), -1, 1)
    return Estimate(m.cosine, float(low), float(high), m.pairs, m.missing)


def reliability(measured: Sequence[Measured], seed: int = 0) -> Estimate:
    """How far the contrasts' cosines would come out the same again: correlation between halves of the pairs over the
    contrasts, Spearman–Brown for the whole, with an interval by drawing contrasts. NaN where fewer than three can be halved."""
    usable = [m.halves for m in measured if not np.isnan(m.halves).any()]
    if len(usable) < 3:
        return Estimate(math.nan, math.nan, math.nan, len(usable))
    halves = np.stack(usable)  # [contrasts, splits, 2]

    def whole(draw: np.ndarray) -> float:
        centred = halves[draw] - halves[draw].mean(0)
        a, b = centred[..., 0], centred[..., 1]
        spread = np.sqrt((a * a).sum(0) * (b * b).sum(0))
        half = ((a * b).sum(0) / np.maximum(spread, 1e-30)).mean()
        return float(spearman_brown(float(half)))

    return bootstrap(range(len(halves)), whole, seed, draws=500)


@dataclass(frozen=True)
class Ranking:
    """Contrasts by their cosine with the direction, the highest first. chance: cosines that chance alone gives; edge: what
    95% of those stay within; outside: contrasts beyond it; expected, most: how many chance puts there, and at most (97.5%)."""

    cosines: dict[str, Estimate]
    chance: np.ndarray
    reliability: Estimate
    edge: float
    outside: tuple[str, ...]
    expected: float
    most: int

    @classmethod
    def of(cls, measured: dict[str, Measured], seed: int) -> Ranking:
        """From each contrast's measurements."""
        from scipy.stats import binom

        chance = by_chance(list(measured.values()))
        order = sorted(measured, key=lambda name: -measured[name].cosine)
        cosines = {name: interval(measured[name], chance) for name in order}
        edge = float(np.quantile(np.abs(chance), 0.95)) if len(chance) else float("nan")
        outside = tuple(name for name in order if abs(cosines[name].value) > edge)
        most = int(binom.ppf(0.975, len(order), 0.05))
        return cls(cosines, chance, reliability(list(measured.values()), seed), edge, outside, 0.05 * len(order), most)

    def quantile(self, name: str) -> float:
        """Where a contrast's cosine lies among those that chance gives, 0 to 1."""
        return float((self.chance <= self.cosines[name].value).mean()) if len(self.chance) else float("nan")
