"""A prompt's pass in pieces, between the steps of rows in flight, and what earlier rows that began alike have left for it.

It knows nothing of text. Only models whose keys and values are all that they keep can go on from a prefix with several tokens
at once; prompts of others are computed whole, as they join.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers.cache_utils import Cache

from personaspace.engines.transformers.batching import Row
from personaspace.engines.transformers.cache import CacheLayout, prompt_cache

SHORTEST = 32
"""Tokens that a prompt must share with an earlier row for what that has left to be worth copying."""

Advance = Callable[[Row, Sequence[int], int, Cache], Any]
"""One pass of a row's tokens behind so many others, whose keys and values the cache has."""


class KeptPrefixes:
    """What rows that are done have left: keys and values by token ids and interventions, at most so many bytes of them, the
    longest unused dropped first. What was computed under one set of interventions is never used under another."""

    def __init__(self, layout: CacheLayout, limit: int) -> None:
        self.layout, self.limit, self.bytes = layout, limit, 0
        self._kept: OrderedDict[int, tuple[tuple[str, ...], NDArray[np.int64], Cache]] = OrderedDict()
        self._number = 0

    def keep(self, row: Row, copy: Callable[[int], Cache]) -> None:
        """Keeps what can be gone on with of a row. copy: hands out the row's first so many tokens' keys and values."""
        fed = [*row.ids, *row.out][: row.length]
        if any(i.where != "all" for i in row.interventions):
            # As a part of the next turn's prompt, the reply is not intervened in.
            fed = fed[: len(row.ids)]
        size = len(fed) * self.layout.per_token
        if len(fed) < SHORTEST or size > self.limit:
            return
        key, ids = _key(row), np.array(fed)
        # What is a prefix of this one is of no more use.
        for number, (other_key, other_ids, _) in list(self._kept.items()):
            if other_key == key and len(other_ids) <= len(ids) and np.array_equal(other_ids, ids[: len(other_ids)]):
                self._drop(number)
        while self.bytes + size > self.limit:
            self._drop(next(iter(self._kept)))
        self._number += 1
        self._kept[self._number] = (key, ids, copy(len(fed)))
        self.bytes += size

    def longest(self, row: Row) -> tuple[int, Cache | None]:
        """How many of a row's prompt's tokens but the last are there already, and the cache that begins with them."""
        key, ids = _key(row), np.array(row.ids[:-1])
        best, best_number = SHORTEST - 1, 0
        for number, (other_key, other_ids, _) in self._kept.items():
            if other_key == key:
                n = min(len(ids), len(other_ids))
                differ = np.flatnonzero(ids[:n] != other_ids[:n])
                if (shared := int(differ[0]) if len(differ) else n) > best:
                    best, best_number = shared, number
        if not best_number:
            return 0, None
        self._kept.move_to_end(best_number)
        return best, self._kept[best_number][2]

    def _drop(self, number: int) -> None:
        _, ids, _ = self._kept.pop(number)
        self.bytes -= len(ids) * self.layout.per_token


class Prefill:
    """A row on its way into a decode loop: its prompt's tokens but the last, as far as they are computed."""

    def __init__(self, row: Row, layout: CacheLayout, kept: KeptPrefixes | None, forward: Advance) -> None:
        self.row, self._forward = row, forward
        self.done, beginning = kept.longest(row) if kept else (0, None)
        self.computed = prompt_cache(layout, len(row.ids), beginning, self.done)

    @property
    def remaining(self) -> int:
        """Tokens that are still to be computed."""
        return len(self.row.ids) - 1 - self.done

    def advance(self, tokens: int) -> None:
        """Computes at most so many more."""
        piece = self.row.ids[:-1][self.done : self.done + tokens]
        if piece:
            self._forward(self.row, piece, self.done, self.computed)
            self.done += len(piece)


def _key(row: Row) -> tuple[str, ...]:
    return tuple(i.key for i in row.interventions if i.where == "all")
