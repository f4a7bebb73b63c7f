"""How much of what responses vary by is the question's: the variance ratio of the two-way model with random questions.

Henderson's third method: the sums of squares that the model with questions explains, beyond roles alone, are compared with
what errors would explain by chance. Unbiased, without iterations, and pooled over the hidden dimensions by their traces.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from personaspace.stats.vectors import Floats, Ints

LEAST, MOST = -6, 10
"""Powers of two between which a ratio is rounded to the nearest: by then estimates differ by less than rounding's 0.1% of
efficiency from those of the ends, and layers share the solutions of the model's equations."""


@dataclass(frozen=True)
class Moments:
    """What the method needs of responses: sums by role `[roles, layers, hidden]` and by question, squared norms `[layers]`,
    and how often each role answered each question, `[roles, questions]`."""

    by_role: Tensor
    by_question: Tensor
    squares: Tensor
    n: Floats

    @classmethod
    def of(cls, role: Ints, question: Ints, activations: Iterable[Tensor]) -> Moments:
        """From each response's role and question, `[responses]`, and their activations in blocks `[n, layers, hidden]`."""
        (roles, row), (questions, column) = (np.unique(x, return_inverse=True) for x in (role, question))
        n = np.zeros((len(roles), len(questions)))
        np.add.at(n, (row, column), 1)
        start, offset = 0, None
        for block in activations:
            block = block.double()
            if offset is None:
                # Squared norms of the residual stream are mostly its mean's: without it, less is lost by rounding.
                offset = block.mean(0)
                by_role, by_question = (block.new_zeros(size, *offset.shape) for size in n.shape)
                squares = block.new_zeros(len(offset))
            block = block - offset
            rows = slice(start, start + len(block))
            by_role.index_add_(0, torch.from_numpy(row[rows]), block)
            by_question.index_add_(0, torch.from_numpy(column[rows]), block)
            squares += block.square().sum((0, 2))
            start += len(block)
        return cls(by_role, by_question, squares, n)


def variance_ratio(moments: Moments) -> Floats:
    """Errors' variance over questions', `[layers]`, as a power of two; infinite where questions add nothing, or where the
    design cannot tell.

    >>> role, question = np.divmod(np.arange(12), 4)  # three roles, four questions, each asked once
    >>> activations = torch.randn(12, 2, 8) + torch.randn(4, 2, 8).repeat(3, 1, 1)  # a question moves all who answer it
    >>> variance_ratio(Moments.of(role, question, [activations])).shape
    (2,)
    """
    n, per_role = moments.n, moments.n.sum(1)
    share = n / per_role[:, None]
    # Within roles: what is left of questions once every role's mean is taken off.
    within = np.diag(n.sum(0)) - n.T @ share
    inverse = np.linalg.pinv(within, hermitian=True)
    rank = np.linalg.matrix_rank(within, hermitian=True)
    # What neither roles nor questions take up is left to tell errors by.
    freedom = n.sum() - len(n) - rank
    layers = len(moments.squares)
    if rank < 1 or freedom < 1:
        return np.full(layers, np.inf)
    by_role, by_question = moments.by_role.flatten(1), moments.by_question.flatten(1)
    rest = by_question - torch.from_numpy(share.T) @ by_role
    explained = (rest * (torch.from_numpy(inverse) @ rest)).view(len(rest), layers, -1).sum((0, 2)).numpy()
    roles = (by_role.square() / torch.from_numpy(per_role)[:, None]).view(len(n), layers, -1).sum((0, 2)).numpy()
    errors = (moments.squares.numpy() - roles - explained) / freedom
    # Of what questions explain, errors would explain one share for each degree of freedom by chance.
    questions = (explained - rank * errors) / np.trace(within)
    ratio = np.full(layers, np.inf)
    positive = questions > 0
    ratio[positive] = errors[positive] / questions[positive]
    with np.errstate(divide="ignore"):
        power = np.round(np.log2(ratio))
    return np.where(power > MOST, np.inf, 2.0 ** np.maximum(power, LEAST))
