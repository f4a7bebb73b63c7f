"""From sums of activations to role vectors and the axis; it knows nothing of files, models, or what vectors are worth.

The two-way additive model: activation = role effect + question effect + error. Roles are fixed, the default is one more level
of the role factor; questions are random, drawn like others that might have been asked, so that what is estimated of a question
is shrunk by n/(n + ratio), where ratio is the errors' variance over the questions' (`mixed.py` estimates it). Ratio 0 is plain
least squares with questions fixed, infinity the roles' plain means; where everybody was asked everything, all are the same.
Question effects sum to zero and a role's vector holds the grand mean. All of it follows from each role's sums by block of
questions, each question's sums, and how often each role answered each question: nothing here grows with the number of
responses. A block is what is left out or weighted as one; unless told otherwise, every question is a block of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh
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
        """From each response's role and question, `[responses]`, of roles that are all wanted.

        >>> role, question = np.divmod(np.arange(12), 4)  # each of three roles was asked each of four questions
        >>> Cells.build(["default", "ghost", "bard"], role, question).per_role()
        array([4, 4, 4])
        """
        n = np.zeros((len(names), int(question.max()) + 1), dtype=np.int64)
        np.add.at(n, (role, question), 1)
        return cls.counted(names, n).placing(role, question)

    def placing(self, role: Ints, question: Ints) -> Cells:
        """The same cells, for responses of these roles and questions, `[responses]`."""
        of = self.place(role, self.block_of[question])
        return Cells(**{**vars(self), "of": of, "asked": question})

    def place(self, role: Ints, block: Ints) -> Ints:
        """The cells of pairs of role and block."""
        positions: Ints = np.searchsorted(self.role * self.blocks + self.block, role * self.blocks + block)
        return positions

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
    start = 0
    for block in blocks:
        if total is None:
            total = torch.zeros(len(cells.count) + cells.n.shape[1], *block.shape[1:], dtype=torch.float64)
        add_to(total, cells, block, slice(start, start + len(block)))
        start += len(block)
    if total is None or start != len(cells.of):
        raise DesignError(f"expected the activations of {len(cells.of)} responses, found {start}")
    return total


def merge_into(total: Tensor, cells: Cells, addend: Tensor, addend_cells: Cells) -> None:
    """Adds other sums, whose cells are among these and whose questions are the same, to sums by cell."""
    size = len(addend_cells.count)
    total.index_add_(0, torch.from_numpy(cells.place(addend_cells.role, addend_cells.block)), addend[:size])
    total[len(cells.count) :] += addend[size:]


class Fit:
    """The two-way model under one set of weights: sums are added up once, and solved for each layer's variance ratio.

    weight: `[blocks]`, 0 leaves one out; a question that weighs double counts as two questions, so its shrinkage stays. With
    `partly`, roles that no question connects with the first count as absent where questions are fixed. An absent role's
    effect is NaN. Solving raises `DesignError` where no response is left, or where questions are fixed (ratio 0) and the
    graph of roles and questions falls apart; random questions are bearable there, since each is worth something by itself.

    >>> role, question = np.divmod(np.arange(12), 4)  # each of three roles was asked each of four questions
    >>> cells = Cells.build(["default", "ghost", "bard"], role, question)
    >>> sums = cell_sums(cells, [torch.randn(12, 2, 8)])  # activations `[responses, layers, hidden]`
    >>> fit, ratios = Fit(cells), np.zeros(2)  # a variance ratio a layer
    >>> fit.effects(sums, ratios).shape, fit.axis(sums, ratios).shape
    (torch.Size([3, 2, 8]), torch.Size([2, 8]))
    """

    def __init__(self, cells: Cells, weight: Floats | None = None, *, partly: bool = False) -> None:
        self.cells, self.partly = cells, partly
        self.weight = np.ones(cells.blocks) if weight is None else weight
        self.counts = cells.n * self.weight[cells.block_of]
        self.asked = np.flatnonzero(self.counts.sum(0))
        # One sparse matrix takes sums by cell to weighted totals by role, then by question that was asked.
        weights = np.concatenate([self.weight[cells.block], self.weight[cells.block_of[self.asked]]])
        rows = np.concatenate([cells.role, len(cells.n) + np.arange(len(self.asked))])
        columns = np.concatenate([np.arange(len(cells.count)), len(cells.count) + self.asked])
        shape = (len(cells.n) + len(self.asked), len(cells.count) + len(cells.block_of))
        self.adding = coo_array((weights, (rows, columns)), shape=shape).tocsr()
        self.adding.eliminate_zeros()
        self._solutions: dict[float, tuple[Floats, Floats]] = {}

    def totals(self, sums: Tensor) -> Tensor:
        """Weighted sums of every role and of every question asked, `[roles + asked, …]`, from sums by cell."""
        flat = sums.flatten(1).numpy()
        totals = self.adding.astype(flat.dtype) @ flat
        return torch.from_numpy(totals).view(-1, *sums.shape[1:])

    def solution(self, ratio: float) -> Floats:
        """The matrix `[roles, all roles + asked]` that takes totals to effects of the roles that are wanted."""
        return self._solved(ratio)[0]

    def error(self, ratio: float) -> Floats:
        """The wanted roles' variance of error in units of the responses', `[roles]`, questions' included."""
        variance: Floats = np.diagonal(self.solution(ratio)[:, self.cells.shown])
        return variance

    def leverage(self, ratio: float) -> Floats:
        """How much of a response is in its own fit, `[roles, asked]`, for the wanted roles: the variance of its residual is
        1 less that, in units of the errors' variance. NaN for absent roles."""
        solution, inverse = self._solved(ratio)
        counts = self.counts[self.cells.shown]
        total = counts.sum(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            shared = counts[:, self.asked] / total[:, None]
            both = shared @ inverse
            leverage: Floats = (1 / total + (both * shared).sum(1))[:, None] - 2 * both + np.diag(inverse)
        leverage[np.isnan(solution[:, 0])] = np.nan
        return leverage

    def _solved(self, ratio: float) -> tuple[Floats, Floats]:
        """The solution, and the inverse `[asked, asked]` of the questions' equations."""
        if ratio in self._solutions:
            return self._solutions[ratio]
        shown = self.cells.shown
        if not self.counts[shown].any():
            raise DesignError("no response is left to compute vectors from")
        counts = self.counts if ratio > 0 else _connected(self.cells, self.counts, self.partly)
        total, answered = counts.sum(1), np.flatnonzero(counts[:, self.asked].sum(0))
        n, weight = counts[:, self.asked[answered]], self.weight[self.cells.block_of[self.asked[answered]]]
        with np.errstate(divide="ignore"):
            reciprocal = np.where(total > 0, 1 / total, 0.0)
        # Without questions' effects, a role's vector is its plain mean; what questions add is taken off below.
        solution = np.zeros((len(shown), len(counts) + len(self.asked)))
        solution[np.arange(len(shown)), shown] = reciprocal[shown]
        inverse = np.zeros((len(self.asked), len(self.asked)))
        if np.isfinite(ratio):
            shared = n * reciprocal[:, None]
            # Questions that are fixed leave the equations singular along the constant, which the constraint Σ = 0 takes out:
            # adding 1·1ᵀ solves for exactly that solution. Random ones meet the constraint by themselves.
            normal = np.diag(n.sum(0)) - n.T @ shared + (np.diag(ratio * weight) if ratio > 0 else 1.0)
            inverse[np.ix_(answered, answered)] = solved = np.linalg.inv(normal)
            effects = shared[shown] @ solved
            solution[:, : len(counts)] += effects @ shared.T
            solution[:, len(counts) + answered] -= effects
        solution[total[shown] == 0] = np.nan
        self._solutions[ratio] = solution, inverse
        return self._solutions[ratio]

    def effects(self, sums: Tensor, ratios: Floats) -> Tensor:
        """Effects of the wanted roles, `[roles, layers, hidden]`, from sums `[cells + questions, layers, hidden]`, each layer
        under its own variance ratio, `[layers]`."""
        return self._apply(sums, ratios, lambda solution: solution)

    def axis(self, sums: Tensor, ratios: Floats) -> Tensor:
        """The default less the mean of the roles that are there, `[layers, hidden]`; arguments as for `effects`."""
        return self._apply(sums, ratios, lambda solution: axis_weights(solution)[None])[0]

    def _apply(self, sums: Tensor, ratios: Floats, rows: Callable[[Floats], Floats]) -> Tensor:
        totals = self.totals(sums)
        by_ratio = {
            ratio: torch.from_numpy(rows(self.solution(ratio))).to(totals.dtype) for ratio in set(ratios.tolist())
        }
        result = totals.new_empty(len(next(iter(by_ratio.values()))), *totals.shape[1:])
        for ratio, matrix in by_ratio.items():
            layers = np.flatnonzero(ratios == ratio)
            # One multiplication for all layers of a ratio, without a copy where that is all of them.
            part = totals if len(layers) == len(ratios) else totals[:, layers]
            result[:, layers] = (matrix @ part.flatten(1)).view(len(matrix), len(layers), -1)
        return result


def role_operator(cells: Cells, weight: Floats | None = None, *, ratio: float = 0.0, partly: bool = False) -> Floats:
    """The matrix `[roles, cells + questions]` that takes sums to role effects; arguments as for `Fit`.

    A role without a response under these weights gets a row of NaN.
    """
    fit = Fit(cells, weight, partly=partly)
    solution, size = fit.solution(ratio), len(cells.count)
    operator = np.zeros((len(solution), size + len(cells.block_of)))
    operator[:, :size] = solution[:, cells.role] * fit.weight[cells.block]
    operator[:, size + fit.asked] = solution[:, len(cells.n) :] * fit.weight[cells.block_of[fit.asked]]
    operator[np.isnan(solution[:, 0])] = np.nan
    return operator


def _connected(cells: Cells, n: Floats, partly: bool) -> Floats:
    """The counts `[roles, questions]` of what is connected with the roles that are wanted; raises where those are not."""
    answered = n[cells.shown].sum(1) > 0
    if not answered.any():
        raise DesignError("no response is left to compute vectors from")
    roles, questions = np.nonzero(n)
    size = n.shape[0] + n.shape[1]
    graph = coo_array((np.ones(len(roles)), (roles, n.shape[0] + questions)), shape=(size, size))
    _, label = connected_components(graph, directed=False)
    component, first = label[cells.shown], int(answered.argmax())
    unconnected = [cells.names[k] for k in np.flatnonzero(answered & (component != component[first]))]
    if unconnected and not partly:
        raise DesignError(
            f"{len(unconnected)} roles ({', '.join(unconnected[:3])}, …) share no question with {cells.names[first]}; "
            "their vectors cannot be compared: ask more questions in common, or more default responses"
        )
    result: Floats = np.where((label[: n.shape[0]] == component[first])[:, None], n, 0.0)
    return result


def axis_weights(operator: Floats) -> Floats:
    """The row `[cells + questions]` that takes sums to the axis: default − mean of the roles that are there."""
    weights: Floats = operator[0] - np.nanmean(operator[1:], axis=0)
    return weights


def cosine(a: Floats, b: Floats) -> Floats:
    """Cosines along the last dimension."""
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    result: Floats = (a * b).sum(-1) / np.maximum(norms, 1e-30)
    return result


def first_component(vectors: Floats) -> Floats:
    """PC1 of vectors `[n, hidden]`, through the smaller of their two Gram matrices."""
    centred = vectors - vectors.mean(0)
    if len(centred) < centred.shape[1]:
        first: Floats = _largest(centred @ centred.T) @ centred
    else:
        first = _largest(centred.T @ centred)
    return first


def _largest(gram: Floats) -> Floats:
    vector: Floats = eigh(gram, subset_by_index=[len(gram) - 1] * 2)[1][:, 0]
    return vector


def fold_axes(cells: Cells, sums: Tensor, folds: int, seed: int, ratios: Floats) -> tuple[Ints, Tensor]:
    """For each fold of the blocks the axis of all the others, `[folds, layers, hidden]`, and the blocks' folds."""
    fold, axes = blocks_of(cells.blocks, folds, seed), []
    for f in range(min(folds, cells.blocks)):
        # With a fold left out, a role may share no question with the default any more: the axis is that of the others.
        axes.append(Fit(cells, (fold != f).astype(float), partly=True).axis(sums, ratios))
    return fold, torch.stack(axes)


def separation(projections: Floats, is_default: NDArray[np.bool_], question: Ints) -> Floats:
    """How far default responses lie above roles', in standard deviations, questions' effects taken out, `[layers]`.

    projections: `[responses, layers]`. NaN where no question was answered by both.

    >>> projections = np.array([[1.0], [2.0], [3.1], [0.0], [0.5], [2.2]])
    >>> separation(projections, np.array([True, True, True, False, False, False]), np.array([0, 1, 2, 0, 1, 2]))
    array([4.98600191])
    """
    _, q = np.unique(question, return_inverse=True)
    n = np.bincount(q)

    def without_questions(v: Floats) -> Floats:
        means = np.zeros((len(n), v.shape[1]))
        np.add.at(means, q, v)
        result: Floats = v - (means / n[:, None])[q]
        return result

    # A regression of projections on who speaks, both without questions' means: its slope is the distance at equal questions.
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

    >>> pick_layer(np.array([[1.0, 2.0, 2.1], [1.2, 2.2, 2.1]]))  # two folds, three layers: layer 1 is as good as layer 2
    1
    """
    usable = by_fold[~np.isnan(by_fold).any(1)]
    if not len(usable):
        return int(by_fold.shape[1]) // 2
    best = int(usable.mean(0).argmax())
    behind = usable[:, [best]] - usable
    error = behind.std(0, ddof=1) / np.sqrt(len(usable)) if len(usable) > 1 else np.zeros(usable.shape[1])
    return int(np.flatnonzero(behind.mean(0) <= error).min())
