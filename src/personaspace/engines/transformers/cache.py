"""What a model keeps of the tokens that it has seen, for rows that join, move and leave; it knows nothing of text or sampling.

A model's own first pass says what that is. Keys and values stand in columns: one buffer a layer, `[rows, heads, columns, head
size]`, in which every row ends at the same column, so that a step writes one slice and reads one view. A recurrent state (of a
convolution, of linear attention) has no columns: it is a slice of its buffer, whatever the row's length. What fits neither is
kept as the model itself returns it, a row at a time. See docs/decisions/0001-decode-loop.md and 0013-what-a-model-keeps.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from personaspace.engines.transformers.batching import Row, chunks
from personaspace.engines.transformers.cache_layers import (
    Columns,
    ColumnsAndStates,
    DummyLayer,
    Prompted,
    States,
    Window,
    states_of,
)
from personaspace.model.residual import hidden_of, parameters

SLACK = 64
"""Columns beyond the longest row, so that rows need to be moved to the left only every so many steps."""

COLUMNS = 256
"""Columns that are there from the start: more come as rows get longer, so that short ones never pay for the longest."""

PLAIN = {
    DynamicLayer: DynamicLayer,
    DynamicSlidingWindowLayer: DynamicLayer,  # no layer forgets: a sliding window is left to the mask
    LinearAttentionLayer: LinearAttentionLayer,
    LinearAttentionAndFullAttentionLayer: LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer: LinearAttentionAndFullAttentionLayer,
    DummyLayer: DummyLayer,
}
"""The kinds of layers that rows can share a buffer of, and as what a prompt's pass computes each."""

Forward = Callable[[list[list[int]], int, dict[str, Any]], Any]
"""One pass: rows of token ids of one length, how many tokens stand before them, and what is handed to the model besides."""


@dataclass(frozen=True)
class CacheLayout:
    """What a model keeps, as a pass of some tokens left it. name: of what it returns and takes again; example: that, of one
    row; per_token, per_row: bytes that a token, and a row of any length, take. placed: tokens may be told their places, counted
    from 0. mixes: rows beside each other would not get what each gets alone."""

    name: str
    example: Any
    per_token: int
    per_row: int
    placed: bool
    mixes: bool = False

    @classmethod
    def of(cls, base_model: Any, device: torch.device, vocabulary: int) -> CacheLayout:
        """Of a model without its lm_head, which takes tokens on that device."""
        ids = torch.arange(4, 8, device=device)[None] % vocabulary
        placed = "position_ids" in parameters(base_model)
        with torch.inference_mode():
            output = base_model(input_ids=ids, use_cache=True)
            if placed:  # some count their places from elsewhere, or in several dimensions
                with_positions = base_model(
                    input_ids=ids, position_ids=torch.arange(4, device=ids.device)[None], use_cache=True
                )
                placed = torch.allclose(hidden_of(output), hidden_of(with_positions), rtol=1e-2, atol=1e-2)
        names = [n for n in ("past_key_values", *parameters(base_model)) if output.get(n) is not None]
        name, example = (names[0], output[names[0]]) if names else ("", None)
        layers = getattr(example, "layers", [])
        cached = [t for layer in layers for t in (getattr(layer, "keys", None), getattr(layer, "values", None))]
        states = [state for layer in layers for state in states_of(layer).values()]
        return cls(
            name,
            example,
            sum(t.nbytes // t.shape[-2] for t in cached if t is not None and t.numel()),
            sum(state.nbytes for state in states),
            placed,
        )

    @property
    def side_by_side(self) -> bool:
        """Whether rows can share buffers: every layer's kind is known."""
        known = type(self.example) is DynamicCache and not self.mixes
        return known and all(type(layer) in PLAIN for layer in self.example.layers)

    @property
    def recurrent(self) -> bool:
        """Whether some layer keeps a state that a token of padding would change."""
        return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in getattr(self.example, "layers", ()))

    @property
    def goes_on(self) -> bool:
        """Whether several tokens at once can go on from a prefix."""
        return self.side_by_side and not self.recurrent

    @property
    def attends(self) -> bool:
        """Whether some layer looks back at keys and values."""
        return any(isinstance(layer, CacheLayerMixin) for layer in getattr(self.example, "layers", ()))

    def empty(self) -> Cache:
        """A cache for the passes of prompts, which grows as they come."""
        return Cache(layers=[_plain(layer) for layer in self.example.layers])


def _plain(layer: Any) -> Any:
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        return PLAIN[type(layer)](number_of_states=layer.number_of_states)
    return PLAIN[type(layer)]()


def rows_of(cache: Cache, rows: Sequence[int]) -> Cache:
    """A cache of its own with these rows of one that keeps keys and values alone, some of them several times."""
    copied: list[Any] = []
    for layer in cache.layers:
        copied.append(type(layer)())
        if getattr(layer, "keys", None) is not None:
            chosen = torch.tensor(rows, device=layer.keys.device)
            copied[-1].update(layer.keys[chosen], layer.values[chosen])
    return Cache(layers=copied)


def prompt_cache(layout: CacheLayout, room: int, beginning: Cache | None = None, tokens: int = 0) -> Cache:
    """A cache for a prompt that comes in pieces, with room for so many tokens, of a model that keeps keys and values alone;
    beginning: whose first tokens are there already, so many of them."""
    layers = [DummyLayer() if isinstance(layer, DummyLayer) else Prompted(room) for layer in layout.example.layers]
    for layer, begun in zip(layers, beginning.layers if beginning else (), strict=False):
        if getattr(begun, "keys", None) is not None:
            layer.update(begun.keys[:, :, :tokens], begun.values[:, :, :tokens])
    return Cache(layers=layers)


def columns_for(row: Row) -> int:
    """How many columns a row's prompt and reply may take, and those to move on."""
    return len(row.ids) + row.sampling.max_new_tokens + SLACK


class RowsCache(Protocol):
    """What a decode loop asks of either kind of cache."""

    def reset(self) -> None:
        """Nothing is in flight: gives back what longer rows have taken."""

    def join(self, present: Sequence[Row], rows: Sequence[Row]) -> None:
        """Has room for rows that come beside those that are present."""

    def prefill(self, rows: Sequence[Row], prefix: int, slots: dict[int, int], tokens: int, forward: Forward) -> None:
        """Computes the prompts' tokens but the last, of rows that share a prefix, at most so many tokens a pass."""

    def inputs(self, rows: Sequence[Row]) -> tuple[list[list[int]], dict[str, Any]]:
        """What the model takes for the rows' next token: its id, and what it looks back at."""

    def stepped(self, output: Any) -> None:
        """The token was fed; what the model returned."""

    def leave(self, rows: Sequence[Row], source: Sequence[int], target: Sequence[int], remaining: int) -> None:
        """Of rows in flight so many remain, some in the places of others."""


class SideBySide:
    """Rows that share buffers, at most `rows` of at most `columns` tokens."""

    def __init__(self, layout: CacheLayout, rows: int, columns: int, device: torch.device) -> None:
        self.layout, self.rows, self.columns = layout, rows, columns + SLACK
        self.window = Window(min(COLUMNS, self.columns))
        self.adopted = False
        self.mask = torch.zeros(rows, self.window.columns, dtype=torch.bool, device=device)
        self._allocate()

    def _allocate(self) -> None:
        self.layers: list[Any] = []
        for example in self.layout.example.layers:
            if isinstance(example, DummyLayer):
                self.layers.append(DummyLayer())
            elif not isinstance(example, LinearAttentionCacheLayerMixin):
                self.layers.append(Columns(self.window, self.rows))
            else:
                both = isinstance(example, CacheLayerMixin)
                self.layers.append((ColumnsAndStates if both else States)(self.window, self.rows, example))
        self.cache = Cache(layers=self.layers)

    @property
    def _held(self) -> Iterator[Any]:
        return (layer for layer in self.layers if not isinstance(layer, DummyLayer))

    def reset(self) -> None:
        columns = min(COLUMNS, self.columns)
        self.window.column = 0
        if self.window.columns > columns:
            self.window.columns = columns
            self.mask = self.mask.new_zeros(self.rows, columns)
            self._allocate()

    def join(self, present: Sequence[Row], rows: Sequence[Row]) -> None:
        first, longest = len(present), max(len(r.ids) for r in rows) - 1
        self._make_room(longest, present)
        if not present:
            self.window.column = longest
        elif longest > self.window.column:
            self._align(present, longest)
        self.mask[first : first + len(rows)] = False

    def prefill(self, rows: Sequence[Row], prefix: int, slots: dict[int, int], tokens: int, forward: Forward) -> None:
        for row in rows:
            row.length = len(row.ids) - 1
        if self.layout.recurrent:  # padding would be a part of the state: rows of one length go together, in one piece
            ordered = sorted(rows, key=lambda r: r.length)
            for _, group in itertools.groupby(ordered, key=lambda r: r.length):
                for chunk in chunks(list(group), 0, tokens):
                    self._prefill(chunk, 0, slots, forward)
        else:
            for chunk in chunks(rows, prefix, tokens):
                self._prefill(chunk, prefix, slots, forward)

    def _prefill(self, rows: Sequence[Row], prefix: int, slots: dict[int, int], forward: Forward) -> None:
        longest = max(r.length for r in rows)
        computed = self.layout.empty()
        past = {self.layout.name: computed}
        if prefix:
            forward([rows[0].ids[:prefix]], 0, past)
            for layer in computed.layers:
                if getattr(layer, "keys", None) is not None:
                    layer.batch_repeat_interleave(len(rows))
        if longest > prefix:
            # Padded on the right: no real token sees the padding, so causal attention needs no mask.
            forward([(r.ids[:-1] + [0] * longest)[prefix:longest] for r in rows], prefix, past)
        self.place(rows, slots, computed)

    def place(self, rows: Sequence[Row], slots: dict[int, int], computed: Cache) -> None:
        """Takes in what a prompt's pass has computed, for rows that have room."""
        for layer, computed_layer in zip(self.layers, computed.layers, strict=True):
            if not isinstance(layer, DummyLayer):
                for k, row in enumerate(rows):
                    layer.place(slots[row.key], computed_layer, k, row.length)
        for row in rows:
            self.mask[slots[row.key], self._columns_of(row.length)] = True

    def adopt(self, row: Row, computed: Cache) -> None:
        """Goes on in the very buffers in which a row's prompt was computed, for that row alone."""
        self.adopted, self.window.columns, self.window.column = True, self.columns, row.length
        self.mask = self.mask.new_zeros(self.rows, self.columns)
        self.mask[0, : row.length] = True
        for layer, computed_layer in zip(self.layers, computed.layers, strict=True):
            if getattr(computed_layer, "keys", None) is not None:
                (layer.keys, layer.values), layer.is_initialized = computed_layer.whole, True

    def copy(self, slot: int, length: int, tokens: int) -> Cache:
        """A cache of its own with the first tokens of a row of that length. What was adopted ends with its row, and is not
        copied where it fills half of its buffers, which would stay for as long as it does."""
        copied = self.layout.empty()
        first = self.window.column - length
        for layer, source in zip(copied.layers, self.layers, strict=True):
            if getattr(source, "keys", None) is not None:
                columns = (slice(slot, slot + 1), slice(None), slice(first, first + tokens))
                if self.adopted and 2 * tokens >= self.window.columns:
                    layer.keys, layer.values = source.keys[columns], source.values[columns]
                else:
                    layer.update(source.keys[columns], source.values[columns])  # which copies them
        return copied

    def inputs(self, rows: Sequence[Row]) -> tuple[list[list[int]], dict[str, Any]]:
        n, w = len(rows), self.window
        longest = max(r.length for r in rows)
        if w.column == w.columns:
            self._make_room(longest, rows)
        if w.column == w.columns:
            self._align(rows, longest)
        w.rows, w.start = n, w.column - longest
        self.mask[:n, w.column] = True
        for layer in self.layers:
            if isinstance(layer, States):
                layer.view()
        mask = {"attention_mask": self.mask[:n, w.start : w.column + 1]} if self.layout.attends else {}
        return [[r.next_token] for r in rows], {**mask, self.layout.name: self.cache}

    def stepped(self, output: Any) -> None:
        self.window.column += 1

    def leave(self, rows: Sequence[Row], source: Sequence[int], target: Sequence[int], remaining: int) -> None:
        if self.adopted:  # nobody else comes
            return
        # No more than what a row has: to touch as many columns as the longest has would stop the others.
        for src, dst in zip(source, target, strict=True):
            both = self._columns_of(max(rows[src].length, rows[dst].length))
            for layer in self._held:
                layer.move(src, dst, both)
            self.mask[dst] = self.mask[src]
        for k in range(remaining, len(rows)):
            for layer in self._held:
                layer.clear(k, self._columns_of(rows[k].length))

    def _columns_of(self, length: int) -> slice:
        return slice(self.window.column - length, self.window.column)

    def _make_room(self, length: int, rows: Sequence[Row]) -> None:
        """Has columns for rows of so many tokens, and some to move on; rows: who has something in theirs."""
        needed, columns = min(length + SLACK, self.columns), self.window.columns
        if needed <= columns:
            return
        while columns < needed:
            columns = min(2 * columns, self.columns)
        in_use = self._columns_of(max((r.length for r in rows), default=0))
        for layer in self._held:
            layer.widen(len(rows), in_use, columns)
        old, self.mask = self.mask, self.mask.new_zeros(self.rows, columns)
        self.mask[: len(rows), in_use] = old[: len(rows), in_use]
        self.window.columns = columns

    def _align(self, rows: Sequence[Row], column: int) -> None:
        """Moves the rows in flight so that they end at `column`."""
        for k, row in enumerate(rows):
            old, new = self._columns_of(row.length), slice(column - row.length, column)
            for layer in self._held:
                layer.shift(k, old, new)
            self.mask[k] = False
            self.mask[k, new] = True
        self.window.column = column


class Alone:
    """One row, whose state is kept as the model itself returns it; a model that keeps none is given the whole row each time."""

    def __init__(self, layout: CacheLayout) -> None:
        self.layout = layout
        self.state: dict[str, Any] = {}

    def reset(self) -> None:
        self.state = {}

    def join(self, present: Sequence[Row], rows: Sequence[Row]) -> None:
        self.state = {}

    def prefill(self, rows: Sequence[Row], prefix: int, slots: dict[int, int], tokens: int, forward: Forward) -> None:
        (row,) = rows
        row.length = len(row.ids) - 1
        if row.length and self.layout.name:
            self.stepped(forward([row.ids[:-1]], 0, {}))

    def inputs(self, rows: Sequence[Row]) -> tuple[list[list[int]], dict[str, Any]]:
        (row,) = rows
        return [[row.next_token] if self.layout.name else [*row.ids, *row.out]], self.state

    def stepped(self, output: Any) -> None:
        if self.layout.name:
            self.state = {self.layout.name: output[self.layout.name]}

    def leave(self, rows: Sequence[Row], source: Sequence[int], target: Sequence[int], remaining: int) -> None:
        self.state = {}
