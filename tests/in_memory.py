"""A source of activations that are in memory, as `mapping.sums` has them on the disk: what a space is estimated from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from personaspace.stats import vectors
from personaspace.stats.vectors import Cells


class InMemory:
    """Responses of roles (0 is the default) to questions, `[n]` each, with activations `[n, layers, hidden]`; instruction:
    `[n]`, which of a role's, where they are told apart. A response has three tokens, whose norms are its mean's."""

    block_of = None

    def __init__(self, activations: np.ndarray, role: np.ndarray, question: np.ndarray, instruction=None) -> None:
        self.activations, self.role, self.question = torch.from_numpy(activations), role, question
        self.instruction = instruction
        self.n = np.zeros((role.max() + 1, question.max() + 1), dtype=np.int64)
        np.add.at(self.n, (role, question), 1)
        self.tokens = 3 * self.n.sum(1)
        self.norms = np.zeros((len(self.n), activations.shape[1]))
        np.add.at(self.norms, role, 3 * np.linalg.norm(activations, axis=-1))

    def sums(self, cells: Cells, layers: slice) -> torch.Tensor:
        return vectors.cell_sums(cells.placing(self.role, self.question), [self.activations[:, layers]])

    def sample(self, which: np.ndarray, layers: slice) -> Iterator[torch.Tensor]:
        """In two blocks, as from two shards."""
        yield from self.activations[torch.from_numpy(which)][:, layers].chunk(2)

    def _texts(self) -> np.ndarray:
        return self.role * (self.instruction.max() + 1) + self.instruction

    def by_instruction(self) -> Cells | None:
        if self.instruction is None:
            return None
        n = np.zeros((len(self.n) * (self.instruction.max() + 1), self.n.shape[1]), dtype=np.int64)
        np.add.at(n, (self._texts(), self.question), 1)
        return Cells.counted((), n)

    def sums_by_instruction(self, cells: Cells, layers: slice) -> torch.Tensor:
        return vectors.cell_sums(cells.placing(self._texts(), self.question), [self.activations[:, layers]])


def planted_responses(
    seed: int,
    roles: int = 7,
    questions: int = 12,
    each: int = 8,
    of_default: int = 24,
    layers: int = 4,
    hidden: int = 10,
) -> InMemory:
    """Roles that differ, the most at the third layer, questions that move whoever answers them, and errors."""
    rng = np.random.default_rng(seed)
    role = np.concatenate([np.zeros(of_default, dtype=int), np.repeat(np.arange(1, roles + 1), each)])
    asked = [rng.permutation(questions)[:each] for _ in range(roles)]
    question = np.concatenate([np.arange(of_default) % questions, *asked])
    depth = np.array([0.3, 0.8, 2.0, 1.9])[:layers, None]
    effect = depth * rng.normal(size=(roles + 1, 1, hidden))
    effect[0, :, 0] += 4 * depth[:, 0]
    moved = rng.normal(size=(questions, layers, hidden))
    activations = 5 + effect[role] + moved[question] + rng.normal(size=(len(role), layers, hidden))
    return InMemory(activations, role, question, rng.permutation(len(role)) % 3)
