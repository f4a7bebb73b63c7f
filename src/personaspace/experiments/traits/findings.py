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

FLIPS, DRAWS, SPLITS = 64, 1000, 20
ENOUGH = 8
"""Pairs from which on a bootstrap over them is to be trusted: over two it spans the two of them, and is right half the time."""


@dataclass(frozen=True)
class Measured:
    """A contrast. vector: `[hidden]`; cosine: with the direction; pairs: how many are whole; missing: replies not kept.

    flipped: its cosines where half of the whole pairs have their labels swapped, `[FLIPS]`, or none; drawn: those of a
    bootstrap over pairs, where there are enough of them; halves: those of halves of the pairs, `[SPLITS, 2]`.
    """

    vector: np.ndarray
    cosine: float
    pairs: int
    missing: int
    flipped: np.ndarray
    drawn: np.ndarray
    halves: np.ndarray


def contrast(
    activations: np.ndarray, counted: np.ndarray, weights: np.ndarray, signs: np.ndarray | None = None
) -> np.ndarray:
    """Mean of those brought out less mean of those suppressed, `[draws, hidden]`, over the replies that are kept; NaN where a
    side has none.

    activations: `[pairs, 2, hidden]`; kept: `[pairs, 2]`; weights: of pairs, `[draws, pairs]`; signs: −1 where a pair's labels
    are swapped, `[draws, pairs]`.
    """
    label = np.array([1.0, -1.0]) * (np.ones_like(weights) if signs is None else signs)[:, :, None]
    each = (weights[:, :, None] * counted).reshape(len(weights), -1)
    above, below = (each * (label.reshape(len(weights), -1) * side > 0) for side in (1, -1))
    with np.errstate(invalid="ignore"):
        shares = above / above.sum(1, keepdims=True) - below / below.sum(1, keepdims=True)
    contrasts: np.ndarray = shares @ activations.reshape(-1, activations.shape[-1])
    return contrasts


def measure(
    activations: np.ndarray, counted: np.ndarray, direction: np.ndarray, seed: Sequence[int]
) -> Measured | None:
    """A contrast, of `[pairs, 2, hidden]` and who is kept `[pairs, 2]`; None where a side has nobody."""
    if not counted.any(0).all():
        return None
    rng, n = np.random.default_rng(seed), len(counted)
    complete = counted.all(1)
    vector = contrast(activations, counted, np.ones((1, n)))[0]
    complete_pairs = activations[complete]

    def cosines(of: np.ndarray, keep: np.ndarray, weights: np.ndarray, signs: np.ndarray | None = None) -> np.ndarray:
        return cosine(contrast(of, keep, weights, signs), direction)

    none = np.empty(0)
    flipped, drawn, halves = none, none, np.full((SPLITS, 2), math.nan)
    if (m := len(complete_pairs)) >= 2:
        # As many labels are swapped as are left: what the trait itself does cancels, and its own noise remains.
        signs = rng.permuted(np.tile(np.where(np.arange(m) < m // 2, -1.0, 1.0), (FLIPS, 1)), axis=1)
        all_counted = np.ones((m, 2))
        flipped = cosines(complete_pairs, all_counted, np.ones((FLIPS, m)), signs)
        first = rng.permuted(np.tile((np.arange(m) < m // 2).astype(float), (SPLITS, 1)), axis=1)
        halves = np.stack([cosines(complete_pairs, all_counted, half) for half in (first, 1 - first)], axis=1)
    if m >= ENOUGH:
        drawn = cosines(activations, counted, rng.multinomial(n, np.full(n, 1 / n), size=DRAWS).astype(float))
    measured = float(cosine(vector, direction))
    return Measured(vector, measured, m, int((~counted).sum()), flipped, drawn, halves)


def by_chance(measured: Sequence[Measured]) -> np.ndarray:
    """The cosines that chance alone gives, over all contrasts; either sign is as likely."""
    flipped = np.concatenate([m.flipped for m in measured]) if measured else np.empty(0)
    return np.concatenate([flipped, -flipped])


def interval(m: Measured, chance: np.ndarray) -> Estimate:
    """A contrast's cosine with its 95% interval: a bootstrap over its pairs, and where they are too few for one, as wide as
    chance makes cosines (rather too wide: noise alone turns a vector further than noise beside a trait does)."""
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    low = high = math.nan
    if len(m.drawn):
        low, high = np.nanquantile(m.drawn, ends)
    elif len(chance):
        low, high = np.clip(m.cosine + np.quantile(chance, ends), -1, 1)
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
