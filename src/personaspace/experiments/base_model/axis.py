"""How much of another model's axis a map of few replies can show: the cosine of the axes with its interval, and how sure its
roles' places are; it reads the map's run, and knows nothing of who the models are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from personaspace.mapping.estimate import IncludedResponses, variance_ratios
from personaspace.space import PersonaSpace
from personaspace.stats.correlation import pearson
from personaspace.stats.forecast import spearman_brown
from personaspace.stats.intervals import Estimate
from personaspace.stats.reliability import split_fits
from personaspace.stats.vectors import Fit, cosine

DRAWS, SPLITS = 200, 20


@dataclass(frozen=True)
class Likeness:
    """cosines: of a map's axis with the other's, by layer, None where their shapes differ; ceiling: what they would be at most,
    by layer, were the axes the same one, given how reliable both are (NaN where that is not known). again: the correlation of
    the roles' places on the map's own axis with those that a second such map would give."""

    cosines: list[Estimate] | None
    ceiling: list[float]
    again: float


def likeness(included: IncludedResponses, mapped: PersonaSpace, reference: PersonaSpace, seed: int = 0) -> Likeness:
    """Sets a map's axis beside another's."""
    same = mapped.tensors["axis"].shape == reference.tensors["axis"].shape
    if not same:
        return Likeness(None, [], _again(included, mapped, seed))
    ceiling = [math.nan] * len(mapped.tensors["axis"])
    if mapped.knows_axis_reliability and reference.knows_axis_reliability:
        both = zip(mapped.axis_reliability(), reference.axis_reliability(), strict=True)
        ceiling = [math.sqrt(a * b) for a, b in both]
    return Likeness(_cosines(included, mapped, reference, seed), ceiling, _again(included, mapped, seed))


def by_lot(mapped: PersonaSpace, reference: PersonaSpace) -> float:
    """Under what cosine with a map's axis 95% of the other's roles stay, each put in the Assistant's place: what an axis would
    show if who is the Assistant were drawn by lot. Of the other's own layer; their shapes are the same."""
    vectors = reference.centred()[0].double()
    cosines = cosine(vectors.numpy(), mapped.tensors["axis"][reference.layer].double().numpy())
    return float(np.quantile(cosines, 0.95))


def _cosines(included: IncludedResponses, mapped: PersonaSpace, reference: PersonaSpace, seed: int) -> list[Estimate]:
    """The other's axis is held still; the map's is drawn by question, with random weights as `reliability.bootstrap` does. The
    interval is ± 1.96 standard deviations of that: noise turns an axis away, so that the draws themselves lie too low."""
    rng, cells = np.random.default_rng(seed), included.cells
    fits = [Fit(cells, rng.exponential(size=cells.blocks)) for _ in range(DRAWS)]
    estimates = []
    for layer in range(mapped.tensors["axis"].shape[0]):
        one_layer = slice(layer, layer + 1)
        sums, ratio = included.source.sums(cells, one_layer), variance_ratios(included, one_layer)
        theirs = reference.tensors["axis"][layer].double().numpy()
        measured = float(cosine(mapped.tensors["axis"][layer].double().numpy(), theirs))
        draws = np.stack([fit.axis(sums, ratio)[0].numpy() for fit in fits])
        reach = 1.96 * float(np.std(cosine(draws, theirs)))
        estimates.append(Estimate(measured, max(measured - reach, -1.0), min(measured + reach, 1.0), cells.blocks))
    return estimates


def _again(included: IncludedResponses, mapped: PersonaSpace, seed: int) -> float:
    one_layer = slice(mapped.layer, mapped.layer + 1)
    sums, ratio = included.source.sums(included.cells, one_layer), variance_ratios(included, one_layer)
    axis, halves = mapped.axis_at().double(), []
    for pair in split_fits(included.cells, SPLITS, seed):
        a, b = ((fit.effects(sums, ratio)[1:, 0] @ axis).numpy() for fit in pair)
        both = ~np.isnan(a) & ~np.isnan(b)
        if both.sum() > 2:
            halves.append(pearson(a[both], b[both]))
    return float(spearman_brown(float(np.mean(halves)))) if halves else math.nan
