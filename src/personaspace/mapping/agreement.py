"""Whether two readings of a model tell the same order of roles, what noise hides taken out; it reads no files."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from personaspace.errors import DesignError
from personaspace.mapping.estimate import IncludedResponses, variance_ratios
from personaspace.stats.reliability import halves
from personaspace.stats.vectors import Fit, Floats

SPLITS, DRAWS = 20, 200

LEAST_RELIABLE = 0.1
"""A half's reliability under which dividing by it says nothing."""


def of_orders(prompts: IncludedResponses, replies: IncludedResponses, layer: int, seed: int) -> dict[str, Any] | None:
    """The correlation over roles of their places on each reading's own axis, at a layer, both reliabilities taken out: prompts
    of one half of the questions against replies of the other, since readings of the same prompts err together. interval: 95%,
    over the roles that might have been drawn, by random weights. None where a reading's order is not reliable at all, or where
    no split can be made.

    Roles that a half has no response of are left out of what is compared with that half.
    """
    names = [name for name in prompts.cells.names[1:] if name in replies.cells.names]
    rng = np.random.default_rng(seed)
    readings = [_ReadingAtLayer(included, layer, names) for included in (prompts, replies)]
    across: list[Floats] = []
    within: list[list[Floats]] = [[], []]
    weights = np.vstack([np.ones(len(names)), rng.exponential(size=(DRAWS, len(names)))])
    for _ in range(SPLITS):
        try:
            in_first_half = halves(replies.cells, rng)[replies.cells.block_of]
        except DesignError:
            continue
        places_by_half = [[reading.places(mask) for mask in (in_first_half, ~in_first_half)] for reading in readings]
        if any(places is None for by_half in places_by_half for places in by_half):
            continue
        # Prompts of one half against replies of the other, both ways; and each reading's halves against one another.
        across += [_correlations(weights, places_by_half[0][k], places_by_half[1][1 - k]) for k in (0, 1)]
        for k in (0, 1):
            within[k].append(_correlations(weights, places_by_half[k][0], places_by_half[k][1]))
    if not across:
        return None
    # A role with one response is in one half alone: a reading of which all roles have one has no reliability.
    if any(np.isnan(values).all() for values in within):
        return None
    reliabilities = [np.nanmean(values, axis=0) for values in within]
    if min(float(r[0]) for r in reliabilities) < LEAST_RELIABLE:
        return None
    # A correlation of two noisy orders is smaller by the root of both reliabilities.
    with np.errstate(invalid="ignore"):
        agreement = np.nanmean(across, axis=0) / np.sqrt(
            np.maximum(reliabilities[0] * reliabilities[1], LEAST_RELIABLE**2)
        )
    low, high = np.nanpercentile(agreement[1:], [2.5, 97.5])
    return {
        "order": float(agreement[0]),
        "interval": [float(low), float(high)],
        "raw": float(np.nanmean(across, axis=0)[0]),
    }


class _ReadingAtLayer:
    """A reading's sums at a layer, from which halves are fitted."""

    def __init__(self, included: IncludedResponses, layer: int, names: list[str]) -> None:
        layers = slice(layer, layer + 1)
        self.cells = included.cells
        self.sums: Tensor = included.source.sums(included.cells, layers)
        self.ratios = variance_ratios(included, layers)
        self.rows = [included.cells.names.index(name) for name in names]

    def places(self, questions: np.ndarray) -> Floats | None:
        """Roles' projections on the axis of some questions `[questions]`, NaN for roles that none of them was asked."""
        weight = np.zeros(self.cells.blocks)
        np.maximum.at(weight, self.cells.block_of, questions.astype(float))
        effects = Fit(self.cells, weight).effects(self.sums, self.ratios)[:, 0].numpy()
        roles = effects[self.rows]
        present = ~np.isnan(roles[:, 0])
        if np.isnan(effects[0, 0]) or present.sum() < 3:
            return None
        axis = effects[0] - roles[present].mean(0)
        places: Floats = (roles - roles[present].mean(0)) @ axis / np.linalg.norm(axis)
        return places


def _correlations(weights: Floats, a: Floats | None, b: Floats | None) -> Floats:
    """Weighted correlations `[draws]` over the roles that both have, weights `[draws, roles]`."""
    assert a is not None
    assert b is not None
    shared = ~np.isnan(a) & ~np.isnan(b)
    if shared.sum() < 3:
        return np.full(len(weights), np.nan)
    w = weights[:, shared] / weights[:, shared].sum(1, keepdims=True)
    x, y = a[shared], b[shared]
    x, y = x - (w @ x)[:, None], y - (w @ y)[:, None]
    correlations: Floats = (w * x * y).sum(1) / np.sqrt((w * x * x).sum(1) * (w * y * y).sum(1))
    return correlations
