"""Whether two readings of a model tell the same order of roles, what noise hides taken out; it reads no files."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from personaspace.errors import DesignError
from personaspace.mapping.estimate import Counted, variance_ratios
from personaspace.stats.reliability import halves
from personaspace.stats.vectors import Fit, Floats

SPLITS, DRAWS = 20, 200

LEAST_RELIABLE = 0.1
"""A half's reliability under which dividing by it says nothing."""


def of_orders(prompts: Counted, replies: Counted, layer: int, seed: int) -> dict[str, Any] | None:
    """The correlation over roles of their places on each reading's own axis, at a layer, both reliabilities taken out: prompts
    of one half of the questions against replies of the other, since readings of the same prompts err together. interval: 95%,
    over the roles that might have been drawn, by random weights. None where a reading's order is not reliable at all, or where
    no split can be made.

    Roles that a half has no response of are left out of what is compared with that half.
    """
    names = [name for name in prompts.cells.names[1:] if name in replies.cells.names]
    rng = np.random.default_rng(seed)
    parts = [_Part(counted, layer, names) for counted in (prompts, replies)]
    crossed: list[Floats] = []
    own: list[list[Floats]] = [[], []]
    weights = np.vstack([np.ones(len(names)), rng.exponential(size=(DRAWS, len(names)))])
    for _ in range(SPLITS):
        try:
            side = halves(replies.cells, rng)[replies.cells.block_of]
        except DesignError:
            continue
        on = [[part.places(mask) for mask in (side, ~side)] for part in parts]
        if any(places is None for reading in on for places in reading):
            continue
        crossed += [_correlations(weights, on[0][k], on[1][1 - k]) for k in (0, 1)]
        for reading in (0, 1):
            own[reading].append(_correlations(weights, on[reading][0], on[reading][1]))
    if not crossed:
        return None
    # A role with one response is in one half alone: a reading of which all roles have one has no reliability.
    if any(np.isnan(values).all() for values in own):
        return None
    reliabilities = [np.nanmean(values, axis=0) for values in own]
    if min(float(r[0]) for r in reliabilities) < LEAST_RELIABLE:
        return None
    with np.errstate(invalid="ignore"):
        agree = np.nanmean(crossed, axis=0) / np.sqrt(
            np.maximum(reliabilities[0] * reliabilities[1], LEAST_RELIABLE**2)
        )
    low, high = np.nanpercentile(agree[1:], [2.5, 97.5])
    return {
        "order": float(agree[0]),
        "interval": [float(low), float(high)],
        "raw": float(np.nanmean(crossed, axis=0)[0]),
    }


class _Part:
    """A reading's sums at a layer, of which halves are asked."""

    def __init__(self, counted: Counted, layer: int, names: list[str]) -> None:
        layers = slice(layer, layer + 1)
        self.cells = counted.cells
        self.sums: Tensor = counted.source.sums(counted.cells, layers)
        self.ratios = variance_ratios(counted, layers)
        self.rows = [counted.cells.names.index(name) for name in names]

    def places(self, questions: np.ndarray) -> Floats | None:
        """Roles' projections on the axis of some questions `[questions]`, NaN for roles that none of them was asked."""
        weight = np.zeros(self.cells.blocks)
        np.maximum.at(weight, self.cells.block_of, questions.astype(float))
        effects = Fit(self.cells, weight).effects(self.sums, self.ratios)[:, 0].numpy()
        roles = effects[self.rows]
        there = ~np.isnan(roles[:, 0])
        if np.isnan(effects[0, 0]) or there.sum() < 3:
            return None
        axis = effects[0] - roles[there].mean(0)
        places: Floats = (roles - roles[there].mean(0)) @ axis / np.linalg.norm(axis)
        return places


def _correlations(weights: Floats, a: Floats | None, b: Floats | None) -> Floats:
    """Weighted correlations `[draws]` over the roles that both have, weights `[draws, roles]`."""
    assert a is not None
    assert b is not None
    there = ~np.isnan(a) & ~np.isnan(b)
    if there.sum() < 3:
        return np.full(len(weights), np.nan)
    w = weights[:, there] / weights[:, there].sum(1, keepdims=True)
    x, y = a[there], b[there]
    x, y = x - (w @ x)[:, None], y - (w @ y)[:, None]
    result: Floats = (w * x * y).sum(1) / np.sqrt((w * x * x).sum(1) * (w * y * y).sum(1))
    return result
