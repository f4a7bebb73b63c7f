"""One decode loop for everything: rows with their own sampling, seed and interventions that join and leave between steps.

It knows nothing of text. The KV cache stands in one buffer a layer, `[rows, heads, columns, head size]`: every row ends
at the same column, so a step writes one slice and reads one view, without the copies of a cache that grows. A row that
joins is computed apart, up to its last token, and copied in so that it ends at that column; a row that leaves is replaced
by the last one. See docs/decisions/0001-decode-loop.md for what else was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from personaspace.engines.transformers.batching import NOT_FINITE, Row, by_interventions, by_shared_prefix, chunks
from personaspace.engines.transformers.sampling import draw
from personaspace.errors import ModelError
from personaspace.model.residual import Intervening, RunningMeans, Sink, reading

SLACK = 64
"""Columns beyond the longest row, so that rows need to be moved to the left only every so many steps."""

COLUMNS = 256
"""Columns that are there from the start: more come as rows get longer, so that short ones never pay for the longest."""


@dataclass(frozen=True)
class Done:
    """A row that is done, and what was read of it: means `[layers, hidden]` and mean norms `[layers]`."""

    row: Row
    mean: Tensor | None = None
    norms: Tensor | None = None
    before: Tensor | None = None


@dataclass
class _Window:
    """Which part of the buffers a step works on: rows [0, rows), columns [start, column]; `columns` is how many there are."""

    columns: int
    rows: int = 0
    start: int = 0
    column: int = 0


class _Buffer(CacheLayerMixin):  # type: ignore[misc]
    """A layer's KV cache, in place: no layer forgets, a sliding window is left to the mask."""

    is_sliding = False

    def __init__(self, window: _Window, rows: int) -> None:
        super().__init__()
        self.window, self.rows = window, rows

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, columns = self.rows, self.window.columns
        # Zeros, here and wherever a row leaves or moves: a masked column has no weight, but 0 × NaN is NaN, and what one
        # request wrote would come out in another's reply.
        self.keys = key_states.new_zeros(rows, key_states.shape[1], columns, key_states.shape[-1])
        self.values = value_states.new_zeros(rows, value_states.shape[1], columns, value_states.shape[-1])
        self.is_initialized = True

    def widen(self, rows: int, columns: int) -> None:
        """Makes room for so many columns; what the first rows hold stays."""
        if self.is_initialized:
            old = self.keys, self.values
            self.keys, self.values = (o.new_zeros(*o.shape[:2], columns, o.shape[-1]) for o in old)
            for new, o in zip((self.keys, self.values), old, strict=True):
                new[:rows, :, : o.shape[2]] = o[:rows]

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
    """Rows in flight, at most `rows` of at most `columns` tokens each, and what is read of the layers in `read`. What they take
    grows with the longest row that there was since the loop was last empty, in steps of a factor of two.

    before: also reads them as they were before the interventions. along: directions of unit length, `[layers read, hidden]`, on
    which every token is projected.
    """

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
        before: bool = False,
        along: Tensor | None = None,
    ) -> None:
        self.model, self.layers, self.read, self.end_ids = model, layers, tuple(read), end_ids
        self.device = next(model.parameters()).device
        self.size, self.columns, self.prefill_tokens = rows, columns + SLACK, prefill_tokens
        self.window = _Window(min(COLUMNS, self.columns))
        self.buffers = [_Buffer(self.window, rows) for _ in layers]
        self.cache = Cache(layers=self.buffers)
        self.mask = torch.zeros(rows, self.window.columns, dtype=torch.bool, device=self.device)
        self.means = RunningMeans(rows, len(self.read), hidden, self.device)
        self.before = RunningMeans(rows, len(self.read), hidden, self.device) if before else None
        self.along = None if along is None else along.to(self.device, torch.float32)
        self.read_means = [m for m in (self.means, self.before) if m is not None]
        self.applied = Intervening()
        self.rows: list[Row] = []
        self._decoding = False

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        """While it lasts, the layers' hooks are on: never between steps, where somebody else may use the model. A layer's
        run in this order: read, intervene, read again."""
        with ExitStack() as stack:
            if self.before:
                stack.enter_context(reading(self.layers, self.read, self._sink(self.before)))
            stack.enter_context(self.applied.on(self.layers))
            if self.read:
                stack.enter_context(reading(self.layers, self.read, self._sink(self.means)))
            yield

    def _sink(self, means: RunningMeans) -> Sink:
        def sink(k: int, hidden: Tensor) -> None:
            if self._decoding:
                means(k, hidden)

        return sink

    @property
    def free(self) -> int:
        return self.size - len(self.rows)

    # -- joining ---------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def join(self, rows: Sequence[Row]) -> None:
        """Takes rows in: their prompts' tokens but the last are computed now, the last one by the next step."""
        first, longest = len(self.rows), max(len(r.ids) for r in rows) - 1
        if not self.rows:
            self._empty()
        self._make_room(longest)
        if not self.rows:
            self.window.column = longest
        elif longest > self.window.column:
            self._align(longest)
        self.mask[first : first + len(rows)] = False
        for means in self.read_means:
            means.clear(slice(first, first + len(rows)))
        slots = {r.key: first + k for k, r in enumerate(rows)}
        self.applied.touched = None
        for matching_rows in by_interventions(rows).values():
            self.applied.groups = [(None, matching_rows[0].applied)] if matching_rows[0].applied else []
            with self._hooks():
                for prefix, group in by_shared_prefix(matching_rows):
                    for chunk in chunks(group, prefix, self.prefill_tokens):
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
        for buffer, computed in zip(self.buffers, cache.layers, strict=False):
            if not isinstance(getattr(computed, "keys", None), Tensor):
                raise ModelError(
                    f"{type(self.model).__name__} keeps a state that is not keys and values; it is not supported"
                )
            if not buffer.is_initialized:
                buffer.lazy_initialization(computed.keys, computed.values)
            for r, (row, length) in enumerate(zip(rows, lengths, strict=True)):
                target = (slots[row.key], slice(None), slice(column - length, column))
                buffer.keys[target] = computed.keys[r, :, :length]
                buffer.values[target] = computed.values[r, :, :length]
        for row, length in zip(rows, lengths, strict=True):
            self.mask[slots[row.key], column - length : column] = True

    def _forward(self, ids: list[list[int]], cache: DynamicCache) -> None:
        past = cache.get_seq_length()
        tokens = torch.tensor(ids, device=self.device)
        positions = torch.arange(past, past + tokens.shape[1], device=self.device)[None]
        self.model.base_model(
            input_ids=tokens, past_key_values=cache, position_ids=positions.expand(len(ids), -1), use_cache=True
        )

    def _empty(self) -> None:
        """Gives back what longer rows have taken, where nothing is in flight."""
        columns = min(COLUMNS, self.columns)
        if self.window.columns > columns:
            self.window.columns = columns
            self.buffers[:] = [_Buffer(self.window, self.size) for _ in self.layers]
            self.cache = Cache(layers=self.buffers)
            self.mask = self.mask.new_zeros(self.size, columns)

    def _make_room(self, length: int) -> None:
        """Has columns for rows of so many tokens, and some to move on."""
        needed, columns = min(length + SLACK, self.columns), self.window.columns
        if needed <= columns:
            return
        while columns < needed:
            columns = min(2 * columns, self.columns)
        n = len(self.rows)
        for buffer in self.buffers:
            buffer.widen(n, columns)
        old, self.mask = self.mask, self.mask.new_zeros(self.size, columns)
        self.mask[:n, : old.shape[1]] = old[:n]
        self.window.columns = columns

    def _align(self, column: int) -> None:
        """Moves the rows in flight so that they end at `column`."""
        w, n = self.window, len(self.rows)
        width = max(r.length for r in self.rows)
        old, new = slice(w.column - width, w.column), slice(column - width, column)
        for buffer in self.buffers:
            if buffer.is_initialized:
                for cached in (buffer.keys, buffer.values):
                    moved_columns = cached[:n, :, old].clone()
                    cached[:n, :, old] = 0
                    cached[:n, :, new] = moved_columns
        moved = self.mask[:n, old].clone()
        self.mask[:n] = False
        self.mask[:n, new] = moved
        w.column = column

    # -- stepping --------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self, watch: Callable[[int, Row], None] | None = None) -> list[Done]:
        """One token for every row; returns the rows that are done. watch: is told each row and its place in `means` before
        those that are done leave."""
        n, w = len(self.rows), self.window
        longest = max(r.length for r in self.rows)
        if w.column == w.columns:
            self._make_room(longest)
        if w.column == w.columns:
            self._align(longest)
        w.rows, w.start = n, w.column - longest
        self.mask[:n, w.column] = True
        with self._hooks():
            drawn = self._next_tokens(n)
        w.column += 1
        done = []
        for k, row in enumerate(self.rows):
            row.length += 1
            token = drawn[k]
            if row.full:  # its last token was fed for the sake of reading it
                row.finish = "length"
            elif token is None:
                row.finish = NOT_FINITE
            elif token in (self.end_ids if row.end_ids is None else row.end_ids):
                row.finish, row.end = "stop", token
            else:
                row.out.append(token)
                if row.full and not self.read:
                    row.finish = "length"
            if watch:
                watch(k, row)
            if row.finish:
                done.append(k)
        finished = [self._done(k) for k in done]
        self._leave(done)
        return finished

    def _done(self, k: int) -> Done:
        if not self.read:
            return Done(self.rows[k])
        if self.rows[k].finish == NOT_FINITE:  # not the mean before it, but the token at which it went wrong
            token = self.means.last[:, k].cpu()
            return Done(self.rows[k], token, token.norm(dim=-1))
        return Done(self.rows[k], *self.means.mean(k), self.before.mean(k)[0] if self.before else None)

    def _next_tokens(self, n: int) -> list[int | None]:
        """The token drawn for each row; None where its logits are NaN or Inf."""
        rows, w = self.rows, self.window
        ids = torch.tensor([[r.next_token] for r in rows], device=self.device)
        positions = torch.tensor([[r.length] for r in rows], device=self.device)
        counting = [float(bool(r.out)) for r in rows]
        for means in self.read_means:
            means.counting = None if all(counting) else torch.tensor(counting, device=self.device)
        self._intervene()
        needs_logits = not all(r.full for r in rows)
        self._decoding = True
        try:
            # Where no row wants another token, the lm_head is left out.
            output = (self.model if needs_logits else self.model.base_model)(
                input_ids=ids,
                attention_mask=self.mask[:n, w.start : w.column + 1],
                position_ids=positions,
                past_key_values=self.cache,
                use_cache=True,
            )
        finally:
            self._decoding = False
        for means in self.read_means:
            means.step(n)
        if self.along is not None:
            projected = torch.einsum("lrh,lh->rl", self.means.last[:, :n], self.along).cpu()
            for row, values in zip(rows, projected, strict=True):
                if row.out:
                    row.projections.append(values)
        if self.applied.touched is not None:
            for row, touched in zip(rows, self.applied.touched[:, 0].tolist(), strict=True):
                row.touched += touched and bool(row.out)
        if not needs_logits:
            return [-1] * n
        draw_indices = [min(len(r.out), r.sampling.max_new_tokens - 1) for r in rows]
        settings = torch.tensor(
            [
                [r.sampling.temperature, r.sampling.top_p, float(r.random[k])]
                for r, k in zip(rows, draw_indices, strict=True)
            ],
            device=self.device,
        )
        logits = output.logits[:, -1]
        chosen: list[int] = draw(logits, settings[:, 0], settings[:, 1], settings[:, 2]).tolist()
        self._keep_logprobs(logits, chosen)
        finite = torch.isfinite(logits.amax(-1)).tolist()
        return [token if sound else None for token, sound in zip(chosen, finite, strict=True)]

    def _keep_logprobs(self, logits: Tensor, chosen: Sequence[int]) -> None:
        """The log-probabilities, without temperature, of the tokens that were drawn and of the most probable ones."""
        for k, row in enumerate(self.rows):
            if row.logprobs is not None and not row.full:
                logprobs = logits[k].float().log_softmax(-1)
                best = logprobs.topk(row.logprobs)
                row.logs.append(
                    (float(logprobs[chosen[k]]), list(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
                )

    def _intervene(self) -> None:
        """Sets what is done to each row's next token."""
        slots = {id(row): k for k, row in enumerate(self.rows)}
        groups = by_interventions(self.rows)
        self.applied.groups = []
        for matching_rows in groups.values():
            if matching_rows[0].applied:
                row_indices = (
                    torch.tensor([slots[id(r)] for r in matching_rows], device=self.device) if len(groups) > 1 else None
                )
                self.applied.groups.append((row_indices, matching_rows[0].applied))
        any_applied = bool(self.applied.groups)
        self.applied.touched = (
            torch.zeros(len(self.rows), 1, dtype=torch.bool, device=self.device) if any_applied else None
        )

    def _leave(self, done: Sequence[int]) -> None:
        """Puts the last rows in the places of those that are done."""
        leaving, remaining = set(done), len(self.rows) - len(done)
        target = [k for k in done if k < remaining]
        source = [k for k in range(remaining, len(self.rows)) if k not in leaving]
        seen = slice(self.window.start, self.window.column)
        for buffer in self.buffers if leaving else ():
            for cached in (buffer.keys, buffer.values):
                if source:
                    cached[target, :, seen] = cached[source, :, seen]
                cached[remaining : len(self.rows), :, seen] = 0
        if source:
            self.mask[target] = self.mask[source]
            for means in self.read_means:
                means.move(source, target)
            for src, dst in zip(source, target, strict=True):
                self.rows[dst] = self.rows[src]
        del self.rows[remaining:]
