"""From sums of activations to role vectors and the axis, with what they are worth; it knows nothing of files or models.

The two-way additive model: activation = role effect + question effect + error, by least squares weighted by responses.
Question effects sum to zero, a role's vector holds the grand mean, the default is one more level of the role factor. Where
everybody was asked everything, role effects are the plain means. All of it follows from each role's sums by block of
questions, each question's sums, and how often each role answered each question: nothing here grows with the number of
responses. A block is what is left out or weighted as one; unless told otherwise, every question is a block of its own.
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


def blocks_of(questions: int, blocks: int, seed: int) -> Ints:
    """Each question's block, `[questions]`: as many questions to each as can be, at random."""
    return np.random.default_rng(seed).permutation(np.arange(questions) % min(blocks, questions))


@dataclass(frozen=True)
class Cells:
    """Which role answered which question how often, among the responses that count. Role 0 is the default.

    names: of the roles whose vectors are wanted, `shown` their rows in n `[roles, questions]`; the others are levels of the
    model like them, so what they tell of the questions is not lost. block_of: `[questions]`. role, block, count: `[cells]`,
    the pairs of role and block that have responses, in order. of, asked: `[responses]`, each one's cell and question, where
    responses were given. Sums by cell are `[cells + questions, …]`: those of the cells, then those of the questions.
    """

    names: tuple[str, ...]
    shown: Ints
    n: Ints
    block_of: Ints
    blocks: int
    role: Ints
    block: Ints
    count: Ints
    of: Ints
    asked: Ints

    @classmethod
    def counted(
        cls, names: Sequence[str], n: Ints, block_of: Ints | None = None, shown: Sequence[int] | None = None
    ) -> Cells:
        """From how often each role answered each question, `[roles, questions]`. block_of None: a block to each question
        that somebody answered."""
        if block_of is None:
            answered = np.flatnonzero(n.sum(0))
            block_of = np.zeros(n.shape[1], dtype=np.int64)
            block_of[answered] = np.arange(len(answered))
        blocks = int(block_of.max()) + 1
        by_block = n @ np.eye(blocks, dtype=np.int64)[block_of]
        role, block = np.nonzero(by_block)
        rows = np.arange(len(names)) if shown is None else np.asarray(shown)
        none = np.zeros(0, dtype=np.int64)
        return cls(tuple(names), rows, n, block_of, blocks, role, block, by_block[role, block], none, none)

    @classmethod
    def build(cls, names: Sequence[str], role: Ints, question: Ints) -> Cells:
        """From each response's role and question, `[responses]`, of roles that are all wanted."""
        n = np.zeros((len(names), int(question.max()) + 1), dtype=np.int64)
        np.add.at(n, (role, question), 1)
        return cls.counted(names, n).placing(role, question)

    def placing(self, role: Ints, question: Ints) -> Cells:
        """The same cells, for responses of these roles and questions, `[responses]`."""
        of = self.place(role, self.block_of[question])
        return Cells(**{**vars(self), "of": of, "asked": question})

    def place(self, role: Ints, block: Ints) -> Ints:
        """The cells of pairs of role and block."""
        found: Ints = np.searchsorted(self.role * self.blocks + self.block, role * self.blocks + block)
        return found

    def per_role(self) -> Ints:
        """Responses of each role that is wanted, `[roles]`."""
        result: Ints = self.n[self.shown].sum(1)
        return result


def add_to(total: Tensor, cells: Cells, activations: Tensor, rows: slice = slice(None)) -> None:
    """Adds activations `[n, …]` of the responses in `rows` to sums by cell, `[cells + questions, …]` in fp64."""
    activations = activations.double()
    total.index_add_(0, torch.from_numpy(cells.of[rows]), activations)
    total.index_add_(0, torch.from_numpy(cells.asked[rows]) + len(cells.count), activations)


def cell_sums(cells: Cells, blocks: Iterable[Tensor]) -> Tensor:
    """Sums by cell, `[cells + questions, …]` in fp64, of activations that come in blocks `[n, …]` in the responses' order."""
    total: Tensor | None = None
    at = 0
    for block in blocks:
        if total is None:
            total = torch.zeros(len(cells.count) + cells.n.shape[1], *block.shape[1:], dtype=torch.float64)
        add_to(total, cells, block, slice(at, at + len(block)))
        at += len(block)
    if total is None or at != len(cells.of):
        raise DesignError(f"expected the activations of {len(cells.of)} responses, found {at}")
    return total


def merge_into(total: Tensor, cells: Cells, other: Tensor, others: Cells) -> None:
    """Adds other sums, whose cells are among these and whose questions are the same, to sums by cell."""
    size = len(others.count)
    total.index_add_(0, torch.from_numpy(cells.place(others.role, others.block)), other[:size])
    total[len(cells.count) :] += other[size:]


def role_operator(cells: Cells, weight: Floats | None = None, *, partly: bool = False) -> Floats:
    """The matrix `[roles, cells + questions]` that takes sums to role effects; weight: `[blocks]`, 0 leaves one out.

    A role without a response under these weights gets a row of NaN, with `partly` also one that no question connects with the
    first. Raises `DesignError` where roles and questions fall apart into groups that nothing connects.
    """
    w = np.ones(cells.blocks) if weight is None else weight
    of_question = w[cells.block_of]
    n = _connected(cells, cells.n * of_question, partly)
    total, asked = n.sum(1), np.flatnonzero(n.sum(0))
    n = n[:, asked]
    with np.errstate(divide="ignore"):
        inverse = np.where(total > 0, 1 / total, 0.0)
    size = len(cells.count)
    to_role = np.zeros((len(n), size + len(cells.block_of)))
    to_role[cells.role, np.arange(size)] = w[cells.block]
    to_question = np.zeros((len(asked), size + len(cells.block_of)))
    to_question[np.arange(len(asked)), size + asked] = of_question[asked]
    shared = n * inverse[:, None]
    # Singular along the constant, which the constraint Σ = 0 takes out: adding 1·1ᵀ solves for exactly that solution.
    normal = np.diag(n.sum(0)) - n.T @ shared + 1.0
    effects = np.linalg.solve(normal, to_question - shared.T @ to_role)
    operator: Floats = inverse[cells.shown, None] * (to_role[cells.shown] - n[cells.shown] @ effects)
    operator[total[cells.shown] == 0] = np.nan
    return operator


def _connected(cells: Cells, n: Floats, partly: bool) -> Floats:
    """The counts `[roles, questions]` of what is connected with the roles that are wanted; raises where those are not."""
    there = n[cells.shown].sum(1) > 0
    if not there.any():
        raise DesignError("no response is left to compute vectors from")
    roles, questions = np.nonzero(n)
    size = n.shape[0] + n.shape[1]
    graph = coo_array((np.ones(len(roles)), (roles, n.shape[0] + questions)), shape=(size, size))
    _, label = connected_components(graph, directed=False)
    mine, first = label[cells.shown], int(there.argmax())
    other = [cells.names[k] for k in np.flatnonzero(there & (mine != mine[first]))]
    if other and not partly:
        raise DesignError(
            f"{len(other)} roles ({', '.join(other[:3])}, …) share no question with {cells.names[first]}; "
            "their vectors cannot be compared: ask more questions in common, or more default responses"
        )
    result: Floats = np.where((label[: n.shape[0]] == mine[first])[:, None], n, 0.0)
    return result


def axis_weights(operator: Floats) -> Floats:
    """The row `[cells + questions]` that takes sums to the axis: default − mean of the roles that are there."""
    weights: Floats = operator[0] - np.nanmean(operator[1:], axis=0)
    return weights


def halves(cells: Cells, rng: np.random.Generator) -> NDArray[np.bool_]:
    """A split of the blocks, `[blocks]`, in which every role asked in two or more has responses on both sides."""
    asks = np.zeros((len(cells.n), cells.blocks))
    asks[cells.role, cells.block] = 1
    asks = asks[cells.shown]
    asks = asks[asks.sum(1) > 1]
    total = asks.sum(1)
    side = rng.permutation(np.arange(cells.blocks) % 2 == 0)
    for _ in range(50 * len(asks) + 50):
        there = asks @ side
        bad = np.flatnonzero((there == 0) | (there == total))
        if not len(bad):
            return side
        # Turn over the block of a broken role that leaves the fewest roles broken.
        candidates = np.flatnonzero(asks[rng.choice(bad)])
        turned = there[:, None] + asks[:, candidates] * np.where(side[candidates], -1, 1)
        costs = ((turned == 0) | (turned == total[:, None])).sum(0)
        best = candidates[rng.choice(np.flatnonzero(costs == costs.min()))]
        side[best] = ~side[best]
    raise DesignError("no split of the blocks of questions gives every role responses in both halves")


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
    """Cosine of the axis between halves, averaged over splits, `[layers]`; sums: `[cells + questions, layers, hidden]`."""
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

    sums: `[cells + questions, hidden]`. NaN where a role was asked in one block alone, or no split can be made.
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
    """95% intervals about the estimates, from the spread of a bootstrap over blocks of questions (random weights, mean 1, in
    place of resampling, so that a role asked four questions stays in). axis_pc1: `[2]`; the draws themselves lie lower, since
    each adds noise to the estimate's own. projection: `[roles, 2]`, on the whole's axis; a role's few questions say little of
    their spread, so that it is pooled over roles. NaN where no role was asked in two blocks."""

    axis_pc1: Floats
    projection: Floats


def bootstrap(cells: Cells, sums: Tensor, axis: Floats, rounds: int, seed: int) -> Intervals:
    """sums: `[cells + questions, hidden]`, axis: `[hidden]`, both of one layer."""
    rng = np.random.default_rng(seed)
    unit = axis / np.linalg.norm(axis)
    y = sums.numpy()
    cosines, projections = [], []
    for k in range(rounds + 1):
        vectors = role_operator(cells, rng.exponential(size=cells.blocks) if k else None) @ y
        roles = vectors[1:]
        cosines.append(abs(cosine(vectors[0] - roles.mean(0), first_component(roles))))
        projections.append(roles @ unit)
    both = np.array([-1.96, 1.96])
    pc1 = np.clip(cosines[0] + both * np.std(cosines[1:], ddof=1), 0, 1)
    half = _pooled_error(np.var(projections[1:], axis=0, ddof=1), _blocks_asked(cells)[1:])
    return Intervals(pc1, projections[0][:, None] + both * half[:, None])


def _blocks_asked(cells: Cells) -> Ints:
    """In how many blocks each wanted role was asked, `[roles]`."""
    found: Ints = np.bincount(cells.role, minlength=len(cells.n))[cells.shown]
    return found


def _pooled_error(variance: Floats, n: Ints) -> Floats:
    """Standard errors `[roles]` of means over n blocks, from what random weights made of each. Those have (n − 1)/(n + 1) of
    the variance of a mean; what a single block varies by is taken to be the same for all roles."""
    some = n > 1
    if not some.any():
        return np.full(len(n), np.nan)
    single = variance[some] * (n[some] + 1) / (n[some] - 1) * n[some]
    error: Floats = np.sqrt(np.average(single, weights=n[some] - 1) / n)
    return error


def first_component(vectors: Floats) -> Floats:
    """PC1 of vectors `[n, hidden]`, through the smaller of their two Gram matrices."""
    centred = vectors - vectors.mean(0)
    if len(centred) < centred.shape[1]:
        first: Floats = np.linalg.eigh(centred @ centred.T)[1][:, -1] @ centred
    else:
        first = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    return first


def fold_axes(cells: Cells, sums: Tensor, folds: int, seed: int) -> tuple[Ints, Tensor]:
    """For each fold of the blocks the axis of all the others, `[folds, layers, hidden]`, and the blocks' folds."""
    folds = min(folds, cells.blocks)
    fold = np.random.default_rng(seed).permutation(np.arange(cells.blocks) % folds)
    axes = []
    for f in range(folds):
        # With a fold left out, a role may share no question with the default any more: the axis is that of the others.
        weights = axis_weights(role_operator(cells, (fold != f).astype(float), partly=True))
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
