"""From activations to role vectors and the axis, with what they are worth; it knows nothing of files or models.

The two-way additive model: activation = role effect + question effect + error, by least squares weighted by responses.
Question effects sum to zero, a role's vector holds the grand mean, the default is one more level of the role factor. Where
everybody was asked everything, role effects are the plain means. All of it follows from the sums of the activations by
(role, question) cell, so nothing here grows with the number of responses beyond the cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from personaspace.errors import DesignError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Cells:
    """Which role answered which question how often, among kept responses. Role 0 is the default.

    role, question, count: `[cells]`; of: `[responses]`, each response's cell.
    """

    names: tuple[str, ...]
    questions: int
    role: Ints
    question: Ints
    count: Ints
    of: Ints

    @classmethod
    def build(cls, names: Sequence[str], role: Ints, question: Ints) -> Cells:
        """From each kept response's role and question, `[responses]`; questions nobody answered are left out."""
        _, question = np.unique(question, return_inverse=True)
        questions = int(question.max()) + 1
        keys, of, count = np.unique(role * questions + question, return_inverse=True, return_counts=True)
        return cls(tuple(names), questions, keys // questions, keys % questions, count, of)

    def per_role(self) -> Ints:
        """Kept responses of each role, `[roles]`."""
        return np.bincount(self.role, weights=self.count, minlength=len(self.names)).astype(np.int64)


def cell_sums(cells: Cells, blocks: Iterable[Tensor]) -> Tensor:
    """Sums by cell, `[cells, …]` in fp64, of activations that come in blocks `[n, …]` in the responses' order."""
    total: Tensor | None = None
    at = 0
    for block in blocks:
        if total is None:
            total = torch.zeros(len(cells.count), *block.shape[1:], dtype=torch.float64)
        total.index_add_(0, torch.from_numpy(cells.of[at : at + len(block)]), block.double())
        at += len(block)
    if total is None or at != len(cells.of):
        raise DesignError(f"expected the activations of {len(cells.of)} responses, found {at}")
    return total


def role_operator(cells: Cells, weight: Floats | None = None) -> Floats:
    """The matrix `[roles, cells]` that takes cells' sums to role effects; weight: `[questions]`, 0 leaves one out.

    A role without a response under these weights gets a row of NaN. Raises `DesignError` where roles and questions fall
    apart into groups that nothing connects.
    """
    w = np.ones(cells.questions) if weight is None else weight
    use = w[cells.question] > 0
    roles, asked = len(cells.names), np.flatnonzero(np.bincount(cells.question[use], minlength=cells.questions))
    column = np.zeros(cells.questions, dtype=np.int64)
    column[asked] = np.arange(len(asked))
    cell = np.flatnonzero(use)
    r, q, cw = cells.role[cell], column[cells.question[cell]], w[cells.question[cell]]
    n = np.zeros((roles, len(asked)))
    np.add.at(n, (r, q), cells.count[cell] * cw)
    _check_connected(cells, n)
    total = n.sum(1)
    with np.errstate(divide="ignore"):
        inverse = np.where(total > 0, 1 / total, 0.0)
    to_role = np.zeros((roles, len(cell)))
    to_role[r, np.arange(len(cell))] = cw
    to_question = np.zeros((len(asked), len(cell)))
    to_question[q, np.arange(len(cell))] = cw
    shared = n * inverse[:, None]
    # Singular along the constant, which the constraint Σ = 0 takes out: adding 1·1ᵀ solves for exactly that solution.
    normal = np.diag(n.sum(0)) - n.T @ shared + 1.0
    effects = np.linalg.solve(normal, to_question - shared.T @ to_role)
    operator = np.zeros((roles, len(cells.count)))
    operator[:, cell] = inverse[:, None] * (to_role - n @ effects)
    operator[total == 0] = np.nan
    return operator


def _check_connected(cells: Cells, n: Floats) -> None:
    roles, questions = np.nonzero(n)
    if not len(roles):
        raise DesignError("no response is left to compute vectors from")
    size = n.shape[0] + n.shape[1]
    graph = coo_array((np.ones(len(roles)), (roles, n.shape[0] + questions)), shape=(size, size))
    _, label = connected_components(graph, directed=False)
    present = np.unique(roles)
    if len(set(label[present])) > 1:
        other = [cells.names[k] for k in present if label[k] != label[present[0]]]
        raise DesignError(
            f"{len(other)} roles ({', '.join(other[:3])}, …) share no question with {cells.names[present[0]]}; "
            "their vectors cannot be compared: ask more questions in common, or more default responses"
        )


def axis_weights(operator: Floats) -> Floats:
    """The row `[cells]` that takes cells' sums to the axis: default − mean of the roles that are there."""
    weights: Floats = operator[0] - np.nanmean(operator[1:], axis=0)
    return weights


def halves(cells: Cells, rng: np.random.Generator) -> NDArray[np.bool_]:
    """A split of the questions, `[questions]`, in which every role asked two or more has responses on both sides."""
    asks = np.zeros((len(cells.names), cells.questions))
    asks[cells.role, cells.question] = 1
    asks = asks[asks.sum(1) > 1]
    total = asks.sum(1)
    side = rng.permutation(np.arange(cells.questions) % 2 == 0)
    for _ in range(50 * len(asks) + 50):
        there = asks @ side
        bad = np.flatnonzero((there == 0) | (there == total))
        if not len(bad):
            return side
        # Turn over the question of a broken role that leaves the fewest roles broken.
        candidates = np.flatnonzero(asks[rng.choice(bad)])
        turned = there[:, None] + asks[:, candidates] * np.where(side[candidates], -1, 1)
        costs = ((turned == 0) | (turned == total[:, None])).sum(0)
        best = candidates[rng.choice(np.flatnonzero(costs == costs.min()))]
        side[best] = ~side[best]
    raise DesignError("no split of the questions gives every role responses in both halves")


def split_operators(cells: Cells, splits: int, seed: int) -> list[tuple[Floats, Floats]]:
    """Role operators of both halves of each split; splits that cannot be made are left out."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(splits):
        try:
            side = halves(cells, rng)
            found.append((role_operator(cells, side.astype(float)), role_operator(cells, (~side).astype(float))))
        except DesignError:
            continue
    return found


def spearman_brown(half: Floats | float) -> Floats:
    """The whole's reliability from that of halves; negative cosines count as 0."""
    r = np.maximum(half, 0.0)
    result: Floats = np.asarray(2 * r / (1 + r))
    return result


def cosine(a: Floats, b: Floats) -> Floats:
    """Cosines along the last dimension."""
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    result: Floats = (a * b).sum(-1) / np.maximum(norms, 1e-30)
    return result


def axis_split_half(sums: Tensor, operators: Sequence[tuple[Floats, Floats]]) -> Floats:
    """Cosine of the axis between halves, averaged over splits, `[layers]`; sums: `[cells, layers, hidden]`."""
    if not operators:
        return np.full(sums.shape[1], np.nan)
    flat = sums.flatten(1)
    cosines = []
    for pair in operators:
        a, b = (torch.from_numpy(axis_weights(o)) @ flat for o in pair)
        cosines.append(cosine(a.view(sums.shape[1:]).numpy(), b.view(sums.shape[1:]).numpy()))
    mean: Floats = np.mean(np.maximum(cosines, 0), axis=0)
    return mean


def role_split_half(sums: Tensor, operators: Sequence[tuple[Floats, Floats]], roles: int) -> Floats:
    """Cosine of each role's vector, the mean role's taken off, between halves, `[roles]` without the default.

    sums: `[cells, hidden]`. NaN where a role was asked one question alone, or no split can be made.
    """
    cosines = [np.full(roles, np.nan)]
    for pair in operators:
        vectors = [(torch.from_numpy(np.nan_to_num(o[1:])) @ sums).numpy() for o in pair]
        there = ~np.isnan(pair[0][1:, 0]) & ~np.isnan(pair[1][1:, 0])
        if not there.any():
            continue
        centred = [v - v[there].mean(0) for v in vectors]
        cosines.append(np.where(there, np.maximum(cosine(centred[0], centred[1]), 0), np.nan))
    there = ~np.isnan(cosines)
    mean: Floats = np.where(there.any(0), np.nansum(cosines, axis=0) / np.maximum(there.sum(0), 1), np.nan)
    return mean


@dataclass(frozen=True)
class Intervals:
    """95% intervals by a bootstrap over questions (random weights, mean 1, in place of resampling, so that a role asked
    four questions stays in). axis_pc1: `[2]`; projection: `[roles, 2]`, on the whole's axis."""

    axis_pc1: Floats
    projection: Floats


def bootstrap(cells: Cells, sums: Tensor, axis: Floats, rounds: int, seed: int) -> Intervals:
    """sums: `[cells, hidden]`, axis: `[hidden]`, both of one layer."""
    rng = np.random.default_rng(seed)
    unit = axis / np.linalg.norm(axis)
    y = sums.numpy()
    cosines, projections = [], []
    for _ in range(rounds):
        vectors = role_operator(cells, rng.exponential(size=cells.questions)) @ y
        roles = vectors[1:]
        cosines.append(abs(cosine(vectors[0] - roles.mean(0), first_component(roles))))
        projections.append(roles @ unit)
    ends = [2.5, 97.5]
    return Intervals(np.percentile(cosines, ends), np.percentile(projections, ends, axis=0).T)


def first_component(vectors: Floats) -> Floats:
    """PC1 of vectors `[n, hidden]`, through the smaller of their two Gram matrices."""
    centred = vectors - vectors.mean(0)
    if len(centred) < centred.shape[1]:
        first: Floats = np.linalg.eigh(centred @ centred.T)[1][:, -1] @ centred
    else:
        first = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    return first


def fold_axes(cells: Cells, sums: Tensor, folds: int, seed: int) -> tuple[Ints, Tensor]:
    """For each fold of the questions the axis of all the others, `[folds, layers, hidden]`, and the questions' folds."""
    folds = min(folds, cells.questions)
    fold = np.random.default_rng(seed).permutation(np.arange(cells.questions) % folds)
    axes = []
    for f in range(folds):
        weights = axis_weights(role_operator(cells, (fold != f).astype(float)))
        axes.append((torch.from_numpy(weights) @ sums.flatten(1)).view(sums.shape[1:]))
    return fold, torch.stack(axes)


def separation(projections: Floats, is_default: NDArray[np.bool_], question: Ints) -> Floats:
    """How far default responses lie above roles', in standard deviations, questions' effects taken out, `[layers]`.

    projections: `[responses, layers]`. NaN where no question was answered by both.
    """
    _, q = np.unique(question, return_inverse=True)
    n = np.bincount(q)

    def without_questions(v: Floats) -> Floats:
        means = np.zeros((len(n), v.shape[1]))
        np.add.at(means, q, v)
        result: Floats = v - (means / n[:, None])[q]
        return result

    x, y = without_questions(is_default[:, None].astype(float)), without_questions(projections)
    spread = (x**2).sum()
    freedom = len(y) - len(n) - 1
    if spread < 1e-9 or freedom < 1:
        return np.full(projections.shape[1], np.nan)
    slope = (x * y).sum(0) / spread
    residual = np.sqrt(((y - x * slope) ** 2).sum(0) / freedom)
    result: Floats = slope / np.maximum(residual, 1e-30)
    return result


def pick_layer(by_fold: Floats) -> int:
    """The first layer whose separation is within a standard error of the best; by_fold: `[folds, layers]`.

    The error is that of the difference to the best layer over the same folds: how easy a fold's questions are shifts all
    layers alike, and says nothing about which is better (docs/decisions/0003-which-layer.md).
    """
    usable = by_fold[~np.isnan(by_fold).any(1)]
    if not len(usable):
        return int(by_fold.shape[1]) // 2
    best = int(usable.mean(0).argmax())
    behind = usable[:, [best]] - usable
    error = behind.std(0, ddof=1) / np.sqrt(len(usable)) if len(usable) > 1 else np.zeros(usable.shape[1])
    return int(np.flatnonzero(behind.mean(0) <= error).min())
