"""Mean differences of pairs, and what they are worth: reliabilities, and cosines with a direction that noise is taken out of.

A pair is one question under what brings something out and under what suppresses it, so that the question's own effect cancels
in the pair's difference; a contrast's vector is the mean of its pairs' differences. Everything here follows from products of
different pairs, whose noise is independent: the mean product of two pairs is the squared length of the vector without noise.
It knows nothing of traits or models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from personaspace.stats.intervals import LEVEL, Estimate, estimate, mean

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ENOUGH_WORDINGS = 20
"""Degrees of freedom from which on the spread between wordings of one contrast, taken over all contrasts, is known."""


def shared_square(products: Floats) -> float:
    """The mean product of two different units, of their products `[units, units]`: the squared length of what they share,
    without noise. NaN of one unit."""
    n = len(products)
    return float((products.sum() - np.trace(products)) / (n * (n - 1))) if n > 1 else math.nan


@dataclass(frozen=True)
class Contrast:
    """One contrast's pairs. differences: `[pairs, hidden]`; wording: which instruction each pair was read under, `[pairs]`."""

    differences: Floats
    wording: Ints

    @property
    def vector(self) -> Floats:
        """The mean difference, `[hidden]`."""
        vector: Floats = self.differences.mean(0)
        return vector

    def reliability(self) -> float:
        """How much of the vector's squared length is not noise of the questions: what halves by question agree on, averaged
        over all halvings and taken to the whole by Spearman–Brown, which comes to the shared square over the square. Negative
        ones count as 0; NaN of a single pair."""
        return _share(shared_square(self.differences @ self.differences.T), self.vector)

    def reliability_by_wording(self) -> float:
        """The same with other instructions as well: from products of pairs that share no wording. NaN of one wording."""
        means = self.by_wording()
        return _share(shared_square(means @ means.T), self.vector)

    def by_wording(self) -> Floats:
        """Each wording's mean difference, `[wordings, hidden]`."""
        return np.stack([self.differences[self.wording == k].mean(0) for k in np.unique(self.wording)])


def _share(shared: float, vector: Floats) -> float:
    square = float(vector @ vector)
    return math.nan if math.isnan(shared) or not square else min(max(shared / square, 0.0), 1.0)


@dataclass(frozen=True)
class CosinesWithoutNoise:
    """Contrasts set against a direction. cosine: each one's, noise taken out of both, with its 95% interval; measured: as they
    are; clear: those that stand out from 0, 5% for all of them together; over: what the intervals are over, `wordings` or
    `questions`."""

    cosine: Sequence[Estimate]
    measured: Floats
    clear: NDArray[np.bool_]
    over: str


def cosines_with(
    contrasts: Sequence[Contrast], direction: Floats, noise: Floats, reliability: float
) -> CosinesWithoutNoise:
    """Cosines of contrasts with a direction `[hidden]` whose reliability is known, and draws of its noise `[draws, hidden]`
    (none: its noise is taken to lie along each contrast, the worst there is).

    A cosine is divided by the root of both reliabilities. Its interval holds how projections differ between wordings of one
    contrast, over all contrasts together (between questions of one wording, where there are too few wordings to know), what is
    not known of the contrast's own length, and the direction's noise.
    """
    unit = direction / np.linalg.norm(direction)
    length = float(np.linalg.norm(direction)) * math.sqrt(max(reliability, 0.0))
    projections = [(c.by_wording() @ unit).tolist() for c in contrasts]
    freedom = sum(len(values) - 1 for values in projections)
    over = "wordings" if freedom >= ENOUGH_WORDINGS else "questions"
    if over == "questions":
        projections = [(c.differences @ unit).tolist() for c in contrasts]
        freedom = sum(len(values) - 1 for values in projections)
    squares = sum(len(values) * float(np.var(values)) for values in projections)
    variance = squares / freedom if freedom else math.nan
    from scipy.stats import t  # half a second to import, which no other command should wait for

    reach = float(t.ppf((1 + LEVEL) / 2, freedom)) if freedom else math.nan
    reach_of_all = float(t.ppf(1 - (1 - LEVEL) / 2 / max(len(contrasts), 1), freedom)) if freedom else math.nan
    cosines, clear = [], []
    for contrast, values in zip(contrasts, projections, strict=True):
        products = contrast.differences @ contrast.differences.T
        square = shared_square(products)
        n = len(products)
        if not square > 0 or not length:
            cosines.append(Estimate(math.nan, math.nan, math.nan, n))
            clear.append(False)
            continue
        size, projection = math.sqrt(square), float(contrast.vector @ unit)
        scale = np.linalg.norm(direction) / (size * length)
        cosine = projection * scale
        on_noise = noise @ contrast.vector / (size * length) if len(noise) else np.zeros(0)
        off = float((on_noise**2).mean()) if len(noise) else 1 - reliability
        error = math.sqrt(variance / len(values) * scale**2 + off)
        # How far the length is known, by leaving each question out in turn, moves a cosine in proportion to it.
        total, each = products.sum() - np.trace(products), 2 * (products.sum(1) - np.diag(products))
        without = (total - each) / ((n - 1) * (n - 2)) if n > 2 else np.full(n, square)
        of_length = abs(cosine) * math.sqrt((n - 1) * float(np.var(without))) / (2 * square)
        half = reach * math.hypot(error, of_length)
        value, low, high = np.clip([cosine, cosine - half, cosine + half], -1, 1)
        cosines.append(Estimate(float(value), float(low), float(high), n))
        # Whether it is nothing hangs on the projection alone, not on how long the vector is.
        clear.append(bool(abs(cosine) > reach_of_all * error))
    measured = np.array([c.vector @ unit / max(float(np.linalg.norm(c.vector)), 1e-30) for c in contrasts])
    return CosinesWithoutNoise(cosines, measured, np.array(clear, dtype=bool), over)


def tells(above: Floats, below: Floats, groups: Sequence[int], seed: int = 0) -> Estimate:
    """How often what is above lies higher than what is below, of all that could be set against each other (the area under the
    curve), of `[n]` values each. Its interval is the wider of two: one over groups, which have both their sides (see
    `stats.intervals.estimate`; not known of fewer than three), and Newcombe's (his method 5), which does not shrink to nothing
    where the two lie apart altogether.

    >>> print(tells(np.arange(10.0, 20.0), np.arange(10.0), range(10)))
    1.00 (0.80 to 1.00)
    """

    def area(rows: NDArray[np.int64]) -> float:
        higher = above[rows][:, None] - below[rows][None]
        return float((higher > 0).mean() + (higher == 0).mean() / 2)

    drawn = estimate(list(groups), area, seed, within=(0.0, 1.0))
    if math.isnan(drawn.low):
        return drawn
    n, z, places = len(above), 1.96, np.linspace(0, 1, 10_001)
    variance = places * (1 - places) * (1 + (n - 1) * ((1 - places) / (2 - places) + places / (1 + places))) / n**2
    within = places[np.abs(places - drawn.value) <= z * np.sqrt(variance) + 1e-12]
    low, high = min(drawn.low, float(within.min())), max(drawn.high, float(within.max()))
    return Estimate(drawn.value, low, high, drawn.n)


def shared_between_wordings(first: Contrast, second: Contrast) -> Estimate:
    """The mean product of two different wordings' mean differences, one of either reading: above 0 where wordings share more
    than chance gives. Its interval is over couples of wordings, and not known of fewer than three couples.

    Where every wording leads off by itself alone, the products are as often below 0 as above.
    """
    both = np.intersect1d(first.wording, second.wording)
    of_first, of_second = (np.stack([c.differences[c.wording == k].mean(0) for k in both]) for c in (first, second))
    products = of_first @ of_second.T
    return mean(((products + products.T) / 2)[np.triu_indices(len(both), 1)].tolist())


def agreement(first: Sequence[Contrast], second: Sequence[Contrast], seed: int = 0) -> Estimate:
    """How far two readings of the same contrasts have the same vectors, noise taken out of both: their products over the roots
    of both shared squares, summed over contrasts, with an interval by drawing those. Only products of different wordings are
    taken, so that a text that leads off does so in neither; contrasts of one wording are left out. NaN where nothing is
    shared."""
    sums = []
    for a, b in zip(first, second, strict=True):
        both = np.intersect1d(a.wording, b.wording)
        if len(both) < 2:
            continue
        of_a, of_b = (np.stack([c.differences[c.wording == k].mean(0) for k in both]) for c in (a, b))
        n, across = len(both), of_a @ of_b.T
        shared = (across.sum() - np.trace(across)) / (n * (n - 1))
        sums.append((shared, shared_square(of_a @ of_a.T), shared_square(of_b @ of_b.T)))
    products = np.array(sums).reshape(-1, 3)

    def ratio(rows: NDArray[np.int64]) -> float:
        across, of_first, of_second = products[rows].sum(0)
        return float(across / math.sqrt(of_first * of_second)) if min(of_first, of_second) > 0 else math.nan

    return estimate(range(len(products)), ratio, seed)
