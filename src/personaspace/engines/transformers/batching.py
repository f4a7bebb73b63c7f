"""A reply in the making, and how those of one batch are put together; it knows nothing of models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from personaspace.engines.prefix import shared_prefix_length
from personaspace.engines.prompts import Sampling
from personaspace.model.interventions import Intervention, Where

SHARED_TOKENS = 64
"""A shared prefix is computed apart where it saves at least that many tokens."""


NOT_FINITE = "not finite"
"""How a row ends whose numbers became NaN or Inf: by itself, whoever stands beside it goes on."""


@dataclass
class Row:
    """One reply in the making. `ids` are the prompt's; `random` holds a number for each token it may get.

    touched: how many of the reply's tokens an intervention changed at any layer, of those that were fed.
    logprobs: how many alternatives' log-probabilities to keep in `logs`, with each token's own; None keeps none. The stop
    token of a reply, `end`, has one too, after those of `out`. end_ids: its stop tokens; None for the loop's. answered: of
    tokens that were generated, how many are the answer's by now; None where all are.
    """

    key: int
    ids: list[int]
    sampling: Sampling
    random: np.ndarray
    interventions: tuple[Intervention, ...] = ()
    touched: int = 0
    logprobs: int | None = None
    logs: list[tuple[float, list[tuple[int, float]]]] = field(default_factory=list)
    out: list[int] = field(default_factory=list)
    length: int = 0  # tokens in the cache
    finish: str = ""
    end: int | None = None
    end_ids: frozenset[int] | None = None
    answered: Callable[[Sequence[int]], int] | None = None
    projections: list[Tensor] = field(default_factory=list)  # of its tokens that were fed, `[layers]` each
    adjusted: bool = field(init=False)  # whether its sampling changes logits
    prompt_tokens: Tensor | None = None  # the prompt's distinct ids on the model's device, once a penalty asks for them

    def __post_init__(self) -> None:
        self.adjusted = self.sampling.adjusts

    @property
    def next_token(self) -> int:
        return self.out[-1] if self.out else self.ids[-1]

    @property
    def full(self) -> bool:
        return len(self.out) >= self.sampling.max_new_tokens

    @property
    def applied(self) -> tuple[Intervention, ...]:
        """What is done to the next token: to the prompt's, only what is for all tokens."""
        return tuple(i for i in self.interventions if i.where == "all" or self.place(i.where) >= 0)

    def place(self, where: Where) -> int:
        """How many tokens of the reply, or of its answer, stand before the next one to be fed; −1 where it is none of them."""
        if where == "answer" and self.answered is not None:
            return self.answered(self.out) - 1
        return len(self.out) - 1


def by_interventions(rows: Sequence[Row]) -> dict[tuple[str, ...], list[Row]]:
    """Rows in groups to whose next token the same is done."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(i.key for i in row.applied), []).append(row)
    return groups


def by_shared_prefix(rows: Sequence[Row]) -> list[tuple[int, list[Row]]]:
    """Rows in groups, each with the length of the shared prefix that is worth computing apart."""
    groups: list[tuple[int, list[Row]]] = []
    rest: list[Row] = []
    ordered = sorted(rows, key=lambda r: r.ids)
    k = 0
    while k < len(ordered):
        prefix, size = len(ordered[k].ids) - 1, 1
        while k + size < len(ordered):
            shared = min(prefix, shared_prefix_length(ordered[k].ids[:-1], ordered[k + size].ids[:-1]))
            # A row that shares less would cost the group more than it brings.
            if shared < 8 or (size > 1 and (shared * size) < prefix * (size - 1)):
                break
            prefix, size = shared, size + 1
        if prefix * (size - 1) >= SHARED_TOKENS:
            groups.append((prefix, ordered[k : k + size]))
        else:
            rest.extend(ordered[k : k + size])
        k += size
    return [*groups, (0, rest)] if rest else groups


def chunks(rows: Sequence[Row], prefix: int, tokens: int) -> Iterator[list[Row]]:
    """Rows of like length, as many as fit the tokens of one forward pass."""
    ordered = sorted(rows, key=lambda r: len(r.ids), reverse=True)
    k = 0
    while k < len(ordered):
        fit = max(1, tokens // max(1, len(ordered[k].ids) - prefix))
        yield ordered[k : k + fit]
        k += fit


def computed_tokens(rows: Sequence[Row], tokens: int) -> int:
    """How many tokens are computed when rows join together, a shared prefix once and padding included, in forward passes of at
    most so many."""
    return sum(
        prefix + sum((len(chunk[0].ids) - 1 - prefix) * len(chunk) for chunk in chunks(group, prefix, tokens))
        for prefix, group in by_shared_prefix(rows)
    )
