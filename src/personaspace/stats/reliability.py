"""What vectors are worth: reliabilities from halves of the data, and the spread over questions; it computes no vectors itself.

Three reliabilities (the method's "Three reliabilities"), each a figure of halves that share no question, averaged over splits
and taken to the whole by Spearman–Brown. Axis: the cosine of the halves' axes. Order: the correlation over roles of their
projections, each half on its own axis, so that the halves share no noise. Map: Σ⟨a_r, b_r⟩ / √(Σ‖a_r‖² Σ‖b_r‖²) over the
halves' role vectors, their mean taken off, which is the signal's share of squared distances. Roles that were asked little
have uneven halves: what the whole is worth more goes by the noise that the design leaves in either (`SplitHalf.factor`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from torch import Tensor

from personaspace.errors import DesignError
from personaspace.stats.forecast import spearman_brown
from personaspace.stats.vectors import Cells, Fit, Floats, Ints, blocks_of, cosine, first_component

Pair = tuple[Fit, Fit]


def halves(cells: Cells, rng: np.random.Generator) -> NDArray[np.bool_]:
    """A split of the blocks, `[blocks]`, in which every role asked in two or more has responses on both sides."""
    asks = np.zeros((len(cells.n), cells.blocks))
    asks[cells.role, cells.block] = 1
    asks = asks[cells.shown]
    asks = asks[asks.sum(1) > 1]
    total = asks.sum(1)
    side = rng.permutation(np.arange(cells.blocks) % 2 == 0)
    for _ in range(50 * len(asks) + 50):
        answered = asks @ side
        bad = np.flatnonzero((answered == 0) | (answered == total))
        if not len(bad):
            return side
        # Turn over the block of a broken role that leaves the fewest roles broken.
        candidates = np.flatnonzero(asks[rng.choice(bad)])
        turned = answered[:, None] + asks[:, candidates] * np.where(side[candidates], -1, 1)
        costs = ((turned == 0) | (turned == total[:, None])).sum(0)
        best = candidates[rng.choice(np.flatnonzero(costs == costs.min()))]
        side[best] = ~side[best]
    raise DesignError("no split of the blocks of questions gives every role responses in both halves")


def split_fits(cells: Cells, splits: int, seed: int) -> list[Pair]:
    """The model of both halves of each split of the questions. Where few questions leave no split that every role has responses
    on both sides of, roles that lie on one side alone are left out of what is compared."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(splits):
        try:
            side = halves(cells, rng)
        except DesignError:
            side = rng.permutation(np.arange(cells.blocks) % 2 == 0)
        pairs.append((Fit(cells, side.astype(float)), Fit(cells, (~side).astype(float))))
    return [pair for pair in pairs if all(_has_axis(fit) for fit in pair)]


def without_questions(pairs: Sequence[Pair], groups: int, seed: int) -> list[list[Pair]]:
    """The same halves without one group of the questions' blocks, for each of so many groups: what the jackknife asks for."""
    if not pairs:
        return []
    cells = pairs[0][0].cells
    group = blocks_of(cells.blocks, groups, seed)
    kept = [(group != k).astype(float) for k in range(min(groups, cells.blocks))]
    without = [[(Fit(cells, a.weight * keep), Fit(cells, b.weight * keep)) for a, b in pairs] for keep in kept]
    return [[pair for pair in remaining if all(_has_axis(fit) for fit in pair)] for remaining in without]


def _has_axis(fit: Fit) -> bool:
    responses = fit.counts[fit.cells.shown].sum(1)
    return bool(responses[0] and responses[1:].any())


class PartialFit(Fit):
    """The model of some of the cells by role, instruction and question: `cells` are those of the roles, `fine` those by
    (role, instruction), `role · instructions + instruction`, and question; chosen: `[fine cells]`. Sums are those of `fine`.
    most: how many times the instructions of this half a role has; its vector is not more certain than its texts by more."""

    def __init__(self, cells: Cells, fine: Cells, question: Ints, chosen: NDArray[np.bool_]) -> None:
        super().__init__(cells)
        role = fine.role // (len(fine.n) // len(cells.n))
        self.counts = np.zeros(cells.n.shape)
        np.add.at(self.counts, (role[chosen], question[chosen]), fine.count[chosen])
        self.asked, column = np.unique(question[chosen], return_inverse=True)
        rows, columns = np.concatenate([role[chosen], len(cells.n) + column]), np.tile(np.flatnonzero(chosen), 2)
        shape = (len(cells.n) + len(self.asked), len(fine.count) + len(fine.block_of))
        self.adding = coo_array((np.ones(len(rows)), (rows, columns)), shape=shape).tocsr()
        used = [np.zeros(len(fine.n), dtype=bool) for _ in range(2)]
        used[0][fine.role], used[1][fine.role[chosen]] = True, True
        all_texts, half = (u.reshape(len(cells.n), -1).sum(1)[cells.shown][1:] for u in used)
        self.most = float(np.mean(1 / half[half > 0]) / np.mean(1 / all_texts[half > 0])) if half.any() else np.inf


def instruction_fits(cells: Cells, fine: Cells, splits: int, seed: int) -> list[Pair]:
    """As `split_fits`, but a role's halves share no instruction either: each of its instructions goes to the half in which
    it was asked more, and what it was asked in the other is left out. A role of one instruction is in neither half."""
    rng = np.random.default_rng(seed)
    instructions = len(fine.n) // len(cells.n)
    question = np.flatnonzero(fine.n.sum(0))[fine.block]
    pairs: list[Pair] = []
    for _ in range(splits):
        try:
            first = halves(cells, rng)[cells.block_of][question]
        except DesignError:
            continue
        by_text = np.zeros((2, len(fine.n)))
        np.add.at(by_text, (np.where(first, 0, 1), fine.role), fine.count)
        counts = by_text.reshape(2, -1, instructions)
        gain = counts[0] - counts[1] + rng.uniform(-0.1, 0.1, size=counts[0].shape)
        in_first, used = gain > 0, counts.sum(0) > 0
        for in_half, opposite in ((in_first, 1), (~in_first, 0)):
            # Roles whose instructions would all be on one side: the one that costs least goes over.
            able = counts[opposite] > 0
            for role in np.flatnonzero((in_half | ~used).all(1) & able.any(1) & (used.sum(1) > 1)):
                least = np.argmin(np.where(able[role], np.abs(gain[role]), np.inf))
                in_first[role, least] = not in_first[role, least]
        chosen = in_first.ravel()[fine.role]
        a, b = (PartialFit(cells, fine, question, side) for side in (chosen & first, ~chosen & ~first))
        pairs.append((a, b))
    return [pair for pair in pairs if all(_has_axis(fit) for fit in pair)]


@dataclass(frozen=True)
class SplitHalf:
    """What halves agree on, averaged over splits, `[layers]`; see above. factor: how many times the noise of the whole's role
    vectors is in a half's, by the design, `[layers]`. NaN where no split can be made."""

    axis: Floats
    order: Floats
    map: Floats
    factor: Floats


def split_half(pairs: Sequence[Pair], sums: Tensor, ratios: Floats) -> SplitHalf:
    """sums: `[cells + questions, layers, hidden]`, in any precision; ratios: `[layers]`.

    >>> from personaspace.stats.vectors import cell_sums
    >>> role, question = np.divmod(np.arange(160), 40)  # each of four roles was asked each of forty questions
    >>> cells = Cells.build(["default", "ghost", "bard", "pirate"], role, question)
    >>> activations = torch.randn(160, 2, 8) + 3 * torch.randn(4, 2, 8).repeat_interleave(40, 0)
    >>> sums, ratios = cell_sums(cells, [activations]), np.zeros(2)  # a variance ratio a layer
    >>> halves = split_half(split_fits(cells, splits=20, seed=0), sums, ratios)
    >>> axis, order = spearman_brown(halves.axis), spearman_brown(halves.order, halves.factor)  # of the whole
    >>> axis.shape
    (2,)
    """
    figures = np.full((4, 1, sums.shape[1]), np.nan)
    values: list[list[Tensor]] = []
    for pair in pairs:
        has_responses: list[NDArray[np.bool_]] = [fit.counts[fit.cells.shown][1:].sum(1) > 0 for fit in pair]
        shared = np.logical_and(*has_responses)
        if not all(present.any() for present in has_responses):
            continue
        if shared.sum() < 2:
            # Roles that were asked once are in one of the two: the axes are known, and nothing of roles.
            axis = _cosine(pair[0].axis(sums, ratios), pair[1].axis(sums, ratios), (1,))
            unknown = torch.full_like(axis, torch.nan)
            values.append([axis, unknown, unknown, unknown])
            continue
        a, b = (fit.effects(sums, ratios) for fit in pair)
        axes = [
            e[0] - e[1:][torch.from_numpy(present)].mean(0) for e, present in zip((a, b), has_responses, strict=True)
        ]
        axis = _cosine(axes[0], axes[1], (1,))
        # Order and map are compared over the roles that both halves have, about the mean of just those.
        projections, roles, axes = [], [], []
        for effects in (a, b):
            vectors = effects[1:] if shared.all() else effects[1:][torch.from_numpy(shared)]
            mean = vectors.mean(0)
            axes.append(effects[0] - mean)
            roles.append(vectors - mean)
            on = torch.einsum("rld,ld->rl", roles[-1], axes[-1])
            projections.append(on)
        values.append(
            [
                axis,
                _cosine(projections[0], projections[1], (0,)),
                _cosine(roles[0], roles[1], (0, 2)),
                torch.from_numpy(_factor(pair, shared, ratios)),
            ]
        )
    if values:
        figures = np.array([[figure.double().numpy() for figure in split] for split in values]).swapaxes(0, 1)
    return SplitHalf(*figures.mean(1))


def _cosine(a: Tensor, b: Tensor, over: tuple[int, ...]) -> Tensor:
    return (a * b).sum(over) / (a.square().sum(over) * b.square().sum(over)).sqrt().clamp(min=1e-30)


def _factor(pair: Pair, shared: NDArray[np.bool_], ratios: Floats) -> Floats:
    """How many times the noise of the whole's role vectors the design leaves in a half's, `[layers]`."""
    all_blocks = Fit(pair[0].cells)
    by_ratio = {}
    for ratio in set(ratios.tolist()):
        noise = [np.mean(fit.error(ratio)[1:][shared]) for fit in (all_blocks, *pair)]
        by_ratio[ratio] = min(
            (noise[1] + noise[2]) / 2 / noise[0], *(f.most for f in pair if isinstance(f, PartialFit)), np.inf
        )
    return np.array([by_ratio[ratio] for ratio in ratios.tolist()])


@dataclass(frozen=True)
class Products:
    """Inner products of the halves' role vectors (their mean taken off) and, last, axes, by split: `[splits, 2, 2, roles + 1,
    roles + 1]`, the halves of rows and of columns first. shared: `[splits, roles]`, which roles are in both halves; the rest
    are zero. Everything that is known of roles from halves follows from these, whatever the hidden size."""

    values: Floats
    shared: NDArray[np.bool_]

    @classmethod
    def of(cls, pairs: Sequence[Pair], sums: Tensor, ratio: float, roles: int = 0) -> Products:
        """At one layer; sums: `[cells + questions, 1, hidden]`; roles: how many there are, where no split could be made."""
        values, shares = [], []
        for pair in pairs:
            halves_ = [fit.effects(sums, np.array([ratio]))[:, 0].double().numpy() for fit in pair]
            shared = ~np.isnan(halves_[0][1:, 0]) & ~np.isnan(halves_[1][1:, 0])
            if shared.sum() < 2:
                continue
            rows = []
            for effects in halves_:
                mean = effects[1:][shared].mean(0)
                rows.append(np.vstack([np.where(shared[:, None], effects[1:] - mean, 0.0), effects[0] - mean]))
            both = np.stack(rows)
            values.append(np.einsum("hrd,ksd->hkrs", both, both, optimize=True))
            shares.append(shared)
        if not values:
            size = len(pairs[0][0].cells.shown) if pairs else roles + 1
            return cls(np.zeros((0, 2, 2, size, size)), np.zeros((0, size - 1), dtype=bool))
        return cls(np.stack(values), np.stack(shares))

    def role_split_half(self) -> Floats:
        """Cosine of each role's vector between halves, averaged over the splits that have it in both, `[roles]`."""
        squares = np.diagonal(self.values, axis1=3, axis2=4)[..., :-1]
        cosines = squares[:, 0, 1] / np.sqrt(np.maximum(squares[:, 0, 0] * squares[:, 1, 1], 1e-60))
        n = self.shared.sum(0)
        result: Floats = np.where(n > 0, (cosines * self.shared).sum(0) / np.maximum(n, 1), np.nan)
        return result

    def agreement(self, weights: Floats) -> Floats:
        """What halves agree on in the order and in the map, averaged over splits, by weights of the roles `[rounds, roles]`:
        `[2, rounds]`."""
        squares = np.diagonal(self.values, axis1=3, axis2=4)[..., :-1]
        order, map_ = [], []
        for split, shared in enumerate(self.shared):
            w = weights * shared
            w /= w.sum(1, keepdims=True)
            a, b = (self.values[split, h, h, :-1, -1] for h in (0, 1))
            mean_a, mean_b = w @ a, w @ b
            covariance = w @ (a * b) - mean_a * mean_b
            order.append(covariance / np.sqrt((w @ a**2 - mean_a**2) * (w @ b**2 - mean_b**2)))
            map_.append(w @ squares[split, 0, 1] / np.sqrt((w @ squares[split, 0, 0]) * (w @ squares[split, 1, 1])))
        return np.array([np.mean(order, axis=0), np.mean(map_, axis=0)])

    def intervals(
        self, factor: float, rounds: int, seed: int, left_out: Sequence[Products] = ()
    ) -> dict[str, list[float]]:
        """95% intervals of the whole's order and map reliability: how they vary with the roles that are drawn, by random
        weights (mean 1) on roles in place of resampling; the order's with the questions as well, by the jackknife, since an
        axis errs for all roles at once. left_out: the same halves, each time without one of as many groups of questions
        (`without_questions`)."""
        if not len(self.values):
            return {}
        roles = self.shared.shape[1]
        even = np.ones((1, roles))
        draws = self.agreement(np.random.default_rng(seed).exponential(size=(rounds, roles)))
        order, map_ = np.percentile(draws, [2.5, 97.5], axis=1).T
        groups = np.array([products.agreement(even)[0, 0] for products in left_out if len(products.values)])
        if len(groups) > 1:
            by_question = (len(groups) - 1) * groups.var()
            centre = self.agreement(even)[0]
            order = centre + (order - centre) * np.sqrt(1 + by_question / max(draws[0].var(), 1e-12))
        return {k: spearman_brown(np.clip(v, -1, 1), factor).tolist() for k, v in (("order", order), ("map", map_))}

    def cosine_error(self) -> Floats:
        """Standard error of a role's cosines with other roles, pooled over those, `[roles]`; NaN without splits.

        Half the difference of the halves' inner products has what the whole's errs by, and a second time the part that is
        noise times noise; the differences of the halves' vectors have that part alone, so it is taken off again.
        """
        if not len(self.values):
            return np.full(self.shared.shape[1], np.nan)
        p = self.values[..., :-1, :-1]
        products = (p[:, 0, 0] + p[:, 1, 1] + p[:, 0, 1] + p[:, 1, 0]) / 4
        norms = np.sqrt(np.maximum(np.diagonal(products, axis1=1, axis2=2), 1e-30))
        scale = norms[:, :, None] * norms[:, None, :]
        difference = (p[:, 0, 0] - p[:, 1, 1]) / 2 / scale
        noise = (p[:, 0, 0] + p[:, 1, 1] - p[:, 0, 1] - p[:, 1, 0]) / 4 / scale
        both = self.shared[:, :, None] & self.shared[:, None, :] & ~np.eye(p.shape[-1], dtype=bool)
        variance = ((difference**2 - noise**2) * both).sum((0, 2)) / np.maximum(both.sum((0, 2)), 1)
        floor = ((noise**2) * both).sum((0, 2)) / np.maximum(both.sum((0, 2)), 1)
        result: Floats = np.sqrt(np.maximum(variance, floor))
        return result


@dataclass(frozen=True)
class Intervals:
    """95% intervals about the estimates, from the spread of a bootstrap over blocks of questions (random weights, mean 1, in
    place of resampling, so that a role asked four questions stays in). axis_pc1: `[2]`; the draws themselves lie lower, since
    each adds noise to the estimate's own. projection: `[roles, 2]`, of places on the whole's axis relative to the mean
    role's; a role's few questions say little of their spread, so that it is pooled over roles. NaN where no role was asked in
    two blocks."""

    axis_pc1: Floats
    projection: Floats


def bootstrap(cells: Cells, sums: Tensor, axis: Floats, rounds: int, seed: int, ratio: float = 0.0) -> Intervals:
    """sums: `[cells + questions, hidden]`, axis: `[hidden]`, both of one layer.

    >>> role, question = np.divmod(np.arange(12), 4)  # each of three roles was asked each of four questions
    >>> cells = Cells.build(["default", "ghost", "bard"], role, question)
    >>> from personaspace.stats.vectors import cell_sums
    >>> sums = cell_sums(cells, [torch.randn(12, 1, 8)])
    >>> axis = Fit(cells).axis(sums, np.zeros(1))[0].numpy()
    >>> bootstrap(cells, sums[:, 0], axis, rounds=100, seed=0).projection.shape  # low and high of each role's place
    (2, 2)
    """
    rng = np.random.default_rng(seed)
    unit = axis / np.linalg.norm(axis)
    cosines, projections = [], []
    for k in range(rounds + 1):
        # The first round is the estimate itself, with all weights 1.
        fit = Fit(cells, rng.exponential(size=cells.blocks) if k else None)
        vectors = fit.effects(sums[:, None], np.array([ratio]))[:, 0].numpy()
        roles = vectors[1:]
        cosines.append(abs(cosine(vectors[0] - roles.mean(0), first_component(roles))))
        projections.append(roles @ unit)
    both = np.array([-1.96, 1.96])
    pc1 = np.clip(cosines[0] + both * np.std(cosines[1:], ddof=1), 0, 1)
    relative = np.array(projections[1:]) - np.mean(projections[1:], axis=1, keepdims=True)
    variance = np.var(relative, axis=0, ddof=1)
    # Questions' effects, fitted to the same responses, make the residuals of roles too small: their variance without them over
    # that with them (the leverage) is how much.
    fit = Fit(cells)
    n = fit.counts[cells.shown][1:][:, fit.asked]
    variance *= float((n.sum(1) - 1).sum() / max((n * (1 - fit.leverage(ratio)[1:])).sum(), 1e-9))
    # Random weights make (n − 1)/(n + 1) of the variance of a mean over n blocks; what a single block varies by is taken to be
    # the same for all roles.
    blocks: Ints = np.bincount(cells.role, minlength=len(cells.n))[cells.shown][1:]
    repeated = blocks > 1
    if not repeated.any():
        return Intervals(pc1, np.full((len(blocks), 2), np.nan))
    many = blocks[repeated]
    single = variance[repeated] * (many + 1) / (many - 1) * many
    half: Floats = np.sqrt(np.average(single, weights=many - 1) / blocks)
    return Intervals(pc1, projections[0][:, None] + both * half[:, None])
