"""Buffers of a layer for rows side by side, behind the cache interface of `transformers`: columns of keys and values, recurrent
states, or both; they know nothing of models."""

from __future__ import annotations

import math
import mmap
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import cache_utils
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, LinearAttentionCacheLayerMixin, LinearAttentionLayer

DummyLayer: Any = getattr(cache_utils, "DummyLayer", type("DummyLayer", (), {}))
"""A layer that keeps nothing of its own; versions before 5.20 have none, nor models that would need it."""


def states_of(layer: Any) -> dict[tuple[str, int], Tensor]:
    """A layer's recurrent states, `[rows, …]`, by kind and number."""
    if not isinstance(layer, LinearAttentionCacheLayerMixin):
        return {}
    kinds = {"conv_states": layer.conv_states, "recurrent_states": layer.recurrent_states}
    return {(kind, k): s for kind, states in kinds.items() for k, s in states.items() if s is not None}


def zeros(example: Tensor, *shape: int) -> Tensor:
    """Zeros of a tensor's kind. On a CPU the system gives them a page at a time, as they are written to: of buffers for rows of
    thousands of tokens a short row takes its own part, and nobody waits while the rest is filled."""
    size = math.prod(shape) * example.element_size()
    if example.device.type != "cpu" or not size:
        return example.new_zeros(shape)
    try:
        pages = mmap.mmap(-1, size)
    except OSError as e:
        raise MemoryError(f"not enough memory for a buffer of {size / 2**20:,.0f} MB") from e
    with suppress(AttributeError, OSError):  # huge pages would be filled whole; not every system has them
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=example.dtype).view(shape)


class Prompted(DynamicLayer):  # type: ignore[misc]
    """A layer's KV cache of a prompt that comes in pieces. room: how many tokens it has: nothing is copied as they come."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.length = room, 0

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.whole = [x.new_empty(*x.shape[:2], self.room, x.shape[-1]) for x in (key_states, value_states)]
        start, self.length = self.length, self.length + key_states.shape[-2]
        for whole, new in zip(self.whole, (key_states, value_states), strict=True):
            whole[:, :, start : self.length] = new
        self.keys, self.values = (whole[:, :, : self.length] for whole in self.whole)
        return self.keys, self.values


@dataclass
class Window:
    """Which part of the buffers a step works on: rows [0, rows), columns [start, column]; `columns` is how many there are."""

    columns: int
    rows: int = 0
    start: int = 0
    column: int = 0


class Columns(CacheLayerMixin):  # type: ignore[misc]
    """A layer's KV cache, in place. Layers may differ in heads and in their size."""

    is_sliding = False

    def __init__(self, window: Window, rows: int) -> None:
        CacheLayerMixin.__init__(self)
        self.window, self.size = window, rows

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        # Zeros, here and wherever a row leaves or moves: a masked column has no weight, but 0 × NaN is NaN, and what one
        # request wrote would come out in another's reply.
        self.keys, self.values = (
            zeros(x, self.size, x.shape[1], self.window.columns, x.shape[-1]) for x in (key_states, value_states)
        )
        self.is_initialized = True

    def place(self, slot: int, computed: Any, row: int, length: int) -> None:
        """Takes a row of a prompt's pass in, so that it ends at the window's column."""
        if getattr(computed, "keys", None) is None:
            return
        if not self.is_initialized:
            Columns.lazy_initialization(self, computed.keys, computed.values)
        target = (slot, slice(None), slice(self.window.column - length, self.window.column))
        self.keys[target] = computed.keys[row, :, :length]
        self.values[target] = computed.values[row, :, :length]

    def widen(self, rows: int, columns_in_use: slice, columns: int) -> None:
        """Makes room for so many columns; what the first rows hold stays."""
        if self.is_initialized:
            old = self.keys, self.values
            self.keys, self.values = (zeros(o, *o.shape[:2], columns, o.shape[-1]) for o in old)
            for new, o in zip((self.keys, self.values), old, strict=True):
                new[:rows, :, columns_in_use] = o[:rows, :, columns_in_use]

    def shift(self, row: int, old: slice, new: slice) -> None:
        """Moves a row's columns."""
        if self.is_initialized:
            for cached in (self.keys, self.values):
                moved = cached[row, :, old].clone()
                cached[row, :, old] = 0
                cached[row, :, new] = moved

    def move(self, source: int, target: int, columns: slice) -> None:
        """Puts a row in the place of another; columns: what either holds."""
        if self.is_initialized:
            for cached in (self.keys, self.values):
                cached[target, :, columns] = cached[source, :, columns]

    def clear(self, row: int, columns: slice) -> None:
        """Empties a row's place, of which the columns are in use."""
        if self.is_initialized:
            for cached in (self.keys, self.values):
                cached[row, :, columns] = 0

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            Columns.lazy_initialization(self, key_states, value_states)
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


class States(LinearAttentionLayer):  # type: ignore[misc]
    """A layer's recurrent states, in place: a row's is a slice. example: the same layer after a pass of one row."""

    def __init__(self, window: Window, rows: int, example: Any) -> None:
        LinearAttentionLayer.__init__(self, number_of_states=example.number_of_states)
        self.window = window
        self.whole = {key: state.new_zeros(rows, *state.shape[1:]) for key, state in states_of(example).items()}
        for kind, k in self.whole:
            (self.is_conv_states_initialized if kind == "conv_states" else self.is_recurrent_states_initialized)[k] = (
                True
            )
        self.conv_kernel_size = dict(example.conv_kernel_size)
        # A row without any token yet has a state, too: zeros.
        self.has_previous_state: dict[int, bool] = dict.fromkeys(range(example.number_of_states), True)

    def view(self) -> None:
        """Shows the model the rows in flight, which it changes in place."""
        for (kind, k), state in self.whole.items():
            getattr(self, kind)[k] = state[: self.window.rows]

    def place(self, slot: int, computed: Any, row: int, length: int) -> None:
        """Takes a row of a prompt's pass in."""
        computed_states = states_of(computed)
        for key, state in self.whole.items():
            state[slot] = computed_states[key][row] if length else 0

    def widen(self, rows: int, columns_in_use: slice, columns: int) -> None:
        """States have no columns."""

    def shift(self, row: int, old: slice, new: slice) -> None:
        """States have no columns."""

    def move(self, source: int, target: int, columns: slice) -> None:
        """Puts a row in the place of another."""
        for state in self.whole.values():
            state[target] = state[source]

    def clear(self, row: int, columns: slice) -> None:
        """Empties a row's place."""
        for state in self.whole.values():
            state[row] = 0


class ColumnsAndStates(States, Columns):
    """A layer that keeps both."""

    def __init__(self, window: Window, rows: int, example: Any) -> None:
        Columns.__init__(self, window, rows)
        States.__init__(self, window, rows, example)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        Columns.lazy_initialization(self, key_states, value_states)

    def place(self, slot: int, computed: Any, row: int, length: int) -> None:
        Columns.place(self, slot, computed, row, length)
        States.place(self, slot, computed, row, length)

    def widen(self, rows: int, columns_in_use: slice, columns: int) -> None:
        Columns.widen(self, rows, columns_in_use, columns)

    def shift(self, row: int, old: slice, new: slice) -> None:
        Columns.shift(self, row, old, new)

    def move(self, source: int, target: int, columns: slice) -> None:
        Columns.move(self, source, target, columns)
        States.move(self, source, target, columns)

    def clear(self, row: int, columns: slice) -> None:
        Columns.clear(self, row, columns)
        States.clear(self, row, columns)
