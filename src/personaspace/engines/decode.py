"""One decode loop for everything: rows with their own sampling and seed that join and leave between steps.

It knows nothing of text. Keys and values stand in one buffer a layer, `[rows, heads, columns, head size]`: every row ends
at the same column, so a step writes one slice and reads one view, without the copies of a cache that grows. A row that
joins is computed apart, up to its last token, and copied in so that it ends at that column; a row that leaves is replaced
by the last one. See docs/decisions/0001-decode-loop.md for what else was measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from personaspace.engines.sampling import draw
from personaspace.errors import ModelError
from personaspace.prompts import Sampling
from personaspace.residual import RunningMeans, reading

SLACK = 64
"""Columns beyond the longest row, so that rows need to be moved to the left only every so many steps."""

SHARED_TOKENS = 64
"""A shared beginning is computed apart where it saves at least that many tokens."""


@dataclass
class Row:
    """One reply in the making. `ids` are the prompt's; `random` holds a number for each token it may get."""

    key: int
    ids: list[int]
    sampling: Sampling
    random: np.ndarray
    out: list[int] = field(default_factory=list)
    length: int = 0  # tokens in the cache
    finish: str = ""

    @property
    def next_token(self) -> int:
        return self.out[-1] if self.out else self.ids[-1]

    @property
    def full(self) -> bool:
        return len(self.out) >= self.sampling.max_new_tokens


@dataclass
class _Window:
    """Which part of the buffers a step works on: rows [0, rows), columns [start, column]."""

    rows: int = 0
    start: int = 0
    column: int = 0


class _Buffer(CacheLayerMixin):  # type: ignore[misc]
    """A layer's keys and values, in place: no layer forgets, a sliding window is left to the mask."""

    is_sliding = False

    def __init__(self, window: _Window, rows: int, columns: int) -> None:
        super().__init__()
        self.window, self.size = window, (rows, columns)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, columns = self.size
        # Zeros: a masked column has no weight, but NaN in memory that was never written would go through.
        self.keys = key_states.new_zeros(rows, key_states.shape[1], columns, key_states.shape[-1])
        self.values = value_states.new_zeros(rows, value_states.shape[1], columns, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        w = self.window
        self.keys[: w.rows, :, w.column] = key_states[:, :, 0]
        self.values[: w.rows, :, w.column] = value_states[:, :, 0]
        seen = (slice(w.rows), slice(None), slice(w.start, w.column + 1))
        return self.keys[seen], self.values[seen]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self.window.column - self.window.start

    def get_max_length(self) -> int:
        return -1


class DecodeLoop:
    """Rows in flight, at most `rows` of at most `columns` tokens each, and what is read of the layers in `read`."""

    def __init__(
        self,
        model: Any,
        layers: nn.ModuleList,
        *,
        rows: int,
        columns: int,
        hidden: int,
        read: Sequence[int] = (),
        end_ids: frozenset[int] = frozenset(),
        prefill_tokens: int = 1024,
    ) -> None:
        self.model, self.layers, self.read, self.end_ids = model, layers, tuple(read), end_ids
        self.device = next(model.parameters()).device
        self.size, self.columns, self.prefill_tokens = rows, columns + SLACK, prefill_tokens
        self.window = _Window()
        self.buffers = [_Buffer(self.window, rows, self.columns) for _ in layers]
        self.cache = Cache(layers=self.buffers)
        self.mask = torch.zeros(rows, self.columns, dtype=torch.bool, device=self.device)
        self.means = RunningMeans(rows, len(self.read), hidden, self.device)
        self.rows: list[Row] = []
        self._decoding = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """While it lasts, the layers' hooks are on."""
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if self.read:
                stack.enter_context(reading(self.layers, self.read, self._sink))
            yield

    def _sink(self, k: int, hidden: Tensor) -> None:
        if self._decoding:
            self.means(k, hidden)

    @property
    def free(self) -> int:
        return self.size - len(self.rows)

    # -- joining ---------------------------------------------------------------------------------------------------

    def join(self, rows: Sequence[Row]) -> None:
        """Takes rows in: their prompts' tokens but the last are computed now, the last one by the next step."""
        first, known = len(self.rows), max(len(r.ids) for r in rows) - 1
        if not self.rows:
            self.window.column = known
        elif known > self.window.column:
            self._align(known)
        self.mask[first : first + len(rows)] = False
        self.means.clear(slice(first, first + len(rows)))
        slots = {r.key: first + k for k, r in enumerate(rows)}
        for prefix, group in _by_beginning(rows):
            for chunk in _chunks(group, prefix, self.prefill_tokens):
                self._prefill(chunk, prefix, slots)
        self.rows.extend(rows)

    def _prefill(self, rows: Sequence[Row], prefix: int, slots: dict[int, int]) -> None:
        lengths = [len(r.ids) - 1 for r in rows]
        longest = max(lengths)
        for row, length in zip(rows, lengths, strict=True):
            row.length = length
        if longest == 0:
            return
        cache = DynamicCache()
        if prefix:
            self._forward([rows[0].ids[:prefix]], cache)
            cache.batch_repeat_interleave(len(rows))
        if longest > prefix:
            # Padded on the right: no real token sees the padding, so causal attention needs no mask.
            self._forward([(r.ids[:-1] + [0] * longest)[prefix:longest] for r in rows], cache)
        column = self.window.column
        for buffer, made in zip(self.buffers, cache.layers, strict=False):
            if not isinstance(getattr(made, "keys", None), Tensor):
                raise ModelError(
                    f"{type(self.model).__name__} keeps a state that is not keys and values; it is not supported"
                )
            if not buffer.is_initialized:
                buffer.lazy_initialization(made.keys, made.values)
            for r, (row, length) in enumerate(zip(rows, lengths, strict=True)):
                at = (slots[row.key], slice(None), slice(column - length, column))
                buffer.keys[at] = made.keys[r, :, :length]
                buffer.values[at] = made.values[r, :, :length]
        for row, length in zip(rows, lengths, strict=True):
            self.mask[slots[row.key], column - length : column] = True

    def _forward(self, ids: list[list[int]], cache: DynamicCache) -> None:
        past = cache.get_seq_length()
        tokens = torch.tensor(ids, device=self.device)
        positions = torch.arange(past, past + tokens.shape[1], device=self.device)[None]
        self.model.base_model(
            input_ids=tokens, past_key_values=cache, position_ids=positions.expand(len(ids), -1), use_cache=True
        )

    def _align(self, column: int) -> None:
        """Moves the rows in flight so that they end at `column`."""
        w, n = self.window, len(self.rows)
        width = max(r.length for r in self.rows)
        old, new = slice(w.column - width, w.column), slice(column - width, column)
        for buffer in self.buffers:
            if buffer.is_initialized:
                buffer.keys[:n, :, new] = buffer.keys[:n, :, old].clone()
                buffer.values[:n, :, new] = buffer.values[:n, :, old].clone()
        moved = self.mask[:n, old].clone()
        self.mask[:n] = False
        self.mask[:n, new] = moved
        w.column = column

    # -- stepping --------------------------------------------------------------------------------------------------

    def step(self) -> list[tuple[Row, Tensor | None, Tensor | None]]:
        """One token for every row; returns the rows that are done, with mean activation and mean norm where read."""
        n, w = len(self.rows), self.window
        longest = max(r.length for r in self.rows)
        if w.column == self.columns:
            self._align(longest)
        w.rows, w.start = n, w.column - longest
        self.mask[:n, w.column] = True
        drawn = self._next_tokens(n)
        w.column += 1
        done = []
        for k, row in enumerate(self.rows):
            row.length += 1
            if row.full:  # its last token was fed for the sake of reading it
                row.finish = "length"
            elif drawn[k] in self.end_ids:
                row.finish = "stop"
            else:
                row.out.append(drawn[k])
                if row.full and not self.read:
                    row.finish = "length"
            if row.finish:
                done.append(k)
        finished = [(self.rows[k], *(self.means.mean(k) if self.read else (None, None))) for k in done]
        self._leave(done)
        return finished

    def _next_tokens(self, n: int) -> list[int]:
        rows, w = self.rows, self.window
        ids = torch.tensor([[r.next_token] for r in rows], device=self.device)
        positions = torch.tensor([[r.length] for r in rows], device=self.device)
        counting = [float(bool(r.out)) for r in rows]
        self.means.counting = None if all(counting) else torch.tensor(counting, device=self.device)
        wanted = not all(r.full for r in rows)
        self._decoding = True
        try:
            # Where no row wants another token, the vocabulary's projection is left out.
            output = (self.model if wanted else self.model.base_model)(
                input_ids=ids,
                attention_mask=self.mask[:n, w.start : w.column + 1],
                position_ids=positions,
                past_key_values=self.cache,
                use_cache=True,
            )
        finally:
            self._decoding = False
        self.means.step(n)
        if not wanted:
            return [-1] * n
        at = [min(len(r.out), r.sampling.max_new_tokens - 1) for r in rows]
        settings = torch.tensor(
            [[r.sampling.temperature, r.sampling.top_p, float(r.random[k])] for r, k in zip(rows, at, strict=True)],
            device=self.device,
        )
        chosen: list[int] = draw(output.logits[:, -1], settings[:, 0], settings[:, 1], settings[:, 2]).tolist()
        return chosen

    def _leave(self, done: Sequence[int]) -> None:
        """Puts the last rows in the places of those that are done."""
        gone, left = set(done), len(self.rows) - len(done)
        target = [k for k in done if k < left]
        source = [k for k in range(left, len(self.rows)) if k not in gone]
        if source:
            seen = slice(self.window.start, self.window.column)
            for buffer in self.buffers:
                buffer.keys[target, :, seen] = buffer.keys[source, :, seen]
                buffer.values[target, :, seen] = buffer.values[source, :, seen]
            self.mask[target] = self.mask[source]
            self.means.move(source, target)
            for s, t in zip(source, target, strict=True):
                self.rows[t] = self.rows[s]
        del self.rows[left:]


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n


def _by_beginning(rows: Sequence[Row]) -> list[tuple[int, list[Row]]]:
    """Rows in groups, each with the length of the beginning that its rows share and that is worth computing apart."""
    groups: list[tuple[int, list[Row]]] = []
    rest: list[Row] = []
    ordered = sorted(rows, key=lambda r: r.ids)
    k = 0
    while k < len(ordered):
        prefix, size = len(ordered[k].ids) - 1, 1
        while k + size < len(ordered):
            common = min(prefix, _shared(ordered[k].ids[:-1], ordered[k + size].ids[:-1]))
            # A row that shares less would cost the group more than it brings.
            if common < 8 or (size > 1 and (common * size) < prefix * (size - 1)):
                break
            prefix, size = common, size + 1
        if prefix * (size - 1) >= SHARED_TOKENS:
            groups.append((prefix, ordered[k : k + size]))
        else:
            rest.extend(ordered[k : k + size])
        k += size
    return [*groups, (0, rest)] if rest else groups


def _chunks(rows: Sequence[Row], prefix: int, tokens: int) -> Iterator[list[Row]]:
    """Rows of like length, as many as fit the tokens of one forward pass."""
    ordered = sorted(rows, key=lambda r: len(r.ids), reverse=True)
    k = 0
    while k < len(ordered):
        fit = max(1, tokens // max(1, len(ordered[k].ids) - prefix))
        yield ordered[k : k + fit]
        k += fit
