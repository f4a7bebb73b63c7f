"""One decode loop for everything: rows with their own sampling, seed and interventions that join and leave between steps.

It knows nothing of text. What the model keeps of each row is in `cache`: a row that joins is computed apart, up to its last
token, and copied in; a row that leaves is replaced by the last one. See docs/decisions/0001-decode-loop.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from personaspace.engines.transformers.batching import NOT_FINITE, Row, by_interventions, by_shared_prefix
from personaspace.engines.transformers.cache import Alone, CacheLayout, RowsCache, SideBySide
from personaspace.engines.transformers.prefill import KeptPrefixes, Prefill
from personaspace.engines.transformers.sampling import adjust, draw
from personaspace.model.interventions import Decaying, Where
from personaspace.model.residual import Intervening, RunningMeans, Sink, base_model, input_device, reading

REPLY_PARTS: tuple[Where, ...] = ("generated", "answer")


@dataclass(frozen=True)
class Done:
    """A row that is done, and what was read of it: means `[layers, hidden]` and mean norms `[layers]`."""

    row: Row
    mean: Tensor | None = None
    norms: Tensor | None = None
    before: Tensor | None = None


class DecodeLoop:
    """Rows in flight, at most `rows` of at most `columns` tokens each, and what is read of the layers in `read`. What they take
    grows with the longest row that there was since the loop was last empty, in steps of a factor of two. layout: what the model
    keeps of a row; one that cannot stand beside others takes a loop of one row.

    before: also reads them as they were before the interventions. along: directions of unit length, `[layers read, hidden]`, on
    which every token is projected. keep: bytes of what rows that are done leave for prompts that come in pieces.
    """

    def __init__(
        self,
        model: Any,
        layers: nn.ModuleList,
        layout: CacheLayout,
        *,
        rows: int,
        columns: int,
        hidden: int,
        read: Sequence[int] = (),
        end_ids: frozenset[int] = frozenset(),
        prefill_tokens: int = 1024,
        before: bool = False,
        along: Tensor | None = None,
        keep: int = 0,
    ) -> None:
        self.model, self.layers, self.read, self.end_ids = model, layers, tuple(read), end_ids
        self.base_model = base_model(model)
        self.device = input_device(model)
        self.size, self.prefill_tokens, self.layout = rows, prefill_tokens, layout
        self.cache: RowsCache = SideBySide(layout, rows, columns, self.device) if layout.side_by_side else Alone(layout)
        self.means = RunningMeans(rows, len(self.read), hidden, self.device)
        self.before = RunningMeans(rows, len(self.read), hidden, self.device) if before else None
        self.along = None if along is None else along.to(self.device, torch.float32)
        self.read_means = [m for m in (self.means, self.before) if m is not None]
        self.applied = Intervening()
        self.kept = KeptPrefixes(layout, keep) if keep and layout.goes_on else None
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
        first = len(self.rows)
        if not self.rows:
            self.cache.reset()
        self.cache.join(self.rows, rows)
        for means in self.read_means:
            means.clear(slice(first, first + len(rows)))
        slots = {r.key: first + k for k, r in enumerate(rows)}
        self.applied.touched, self.applied.places = None, {}
        for matching_rows in by_interventions(rows).values():
            self.applied.groups = [(None, matching_rows[0].applied)] if matching_rows[0].applied else []
            # A recurrent state of a prefix cannot be gone on with in every family: such rows are computed whole.
            groups = [(0, matching_rows)] if self.layout.recurrent else by_shared_prefix(matching_rows)
            with self._hooks():
                for prefix, group in groups:
                    self.cache.prefill(group, prefix, slots, self.prefill_tokens, self._forward)
        self.rows.extend(rows)

    def begin(self, row: Row) -> Prefill:
        """A row whose prompt comes in pieces, on what earlier rows have left; it joins by `join_computed` when whole. Only
        where the layout says that a prefix can be gone on with."""
        return Prefill(row, self.layout, self.kept, self._forward_piece, self._prompt_hooks)

    @torch.inference_mode()
    def join_computed(self, prefill: Prefill) -> None:
        """Takes in a row whose prompt is computed."""
        row, slot = prefill.row, len(self.rows)
        assert isinstance(self.cache, SideBySide)
        if not self.rows:
            self.cache.reset()
        self.cache.join(self.rows, [row])
        for means in self.read_means:
            means.clear(slice(slot, slot + 1))
        row.length = len(row.ids) - 1
        self.cache.place([row], {row.key: slot}, prefill.computed)
        self.rows.append(row)

    def apart(self, prefill: Prefill) -> DecodeLoop:
        """A loop of its own for a row whose prompt is computed, in the buffers that it was computed in: nothing is copied, and
        rows that are far shorter do not look at as many columns."""
        row = prefill.row
        row.length = len(row.ids) - 1
        alone = DecodeLoop(
            self.model,
            self.layers,
            self.layout,
            rows=1,
            columns=len(row.ids) + row.sampling.max_new_tokens,
            hidden=self.means.sums.shape[-1],
            read=self.read,
            end_ids=self.end_ids,
            before=self.before is not None,
            along=self.along,
        )
        assert isinstance(alone.cache, SideBySide)
        alone.kept = self.kept
        alone.cache.adopt(row, prefill.computed)
        alone.rows.append(row)
        return alone

    @contextmanager
    def _prompt_hooks(self, row: Row, before_layer: Callable[..., None]) -> Iterator[None]:
        """While it lasts, passes are of a row's prompt."""
        self.applied.touched, self.applied.places = None, {}
        self.applied.groups = [(None, row.applied)] if row.applied else []
        handles = [layer.register_forward_pre_hook(before_layer) for layer in self.layers]
        try:
            with self._hooks():
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _forward_piece(self, ids: Sequence[int], past: int, computed: Cache) -> Any:
        return self._forward([list(ids)], past, {self.layout.name: computed})

    def _forward(self, ids: list[list[int]], past: int, inputs: dict[str, Any]) -> Any:
        tokens = torch.tensor(ids, device=self.device)
        positions = torch.arange(past, past + tokens.shape[1], device=self.device)[None].expand(len(ids), -1)
        return self.base_model(input_ids=tokens, **self._positions(positions), **inputs, use_cache=True)

    def _positions(self, positions: Tensor) -> dict[str, Tensor]:
        return {"position_ids": positions} if self.layout.placed else {}

    # -- stepping --------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self, watch: Callable[[int, Row], None] | None = None) -> list[Done]:
        """One token for every row; returns the rows that are done. watch: is told each row and its place in `means` before
        those that are done leave."""
        with self._hooks():
            drawn = self._next_tokens(len(self.rows))
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
        rows = self.rows
        fed, inputs = self.cache.inputs(rows)
        ids = torch.tensor(fed, device=self.device)
        first = 1 - ids.shape[1]  # a model that keeps nothing is fed what it was fed before, too
        positions = torch.tensor([[*range(r.length + first, r.length + 1)] for r in rows], device=self.device)
        counting = [float(bool(r.out)) for r in rows]
        for means in self.read_means:
            means.counting = None if all(counting) else torch.tensor(counting, device=self.device)
        self._intervene(ids.shape[1])
        needs_logits = not all(r.full for r in rows)
        self._decoding = True
        try:
            # Where no row wants another token, the lm_head is left out.
            model = self.model if needs_logits else self.base_model
            output = model(input_ids=ids, **self._positions(positions), **inputs, use_cache=True)
            self.cache.stepped(output)
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
            for row, touched in zip(rows, self.applied.touched[:, -1].tolist(), strict=True):
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
        chosen: list[int] = draw(adjust(logits, rows, settings), *settings.unbind(-1)).tolist()
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

    def _intervene(self, tokens: int) -> None:
        """Sets what is done to each row's next token, the last of so many that are fed."""
        if tokens > 1:  # one row, fed whole: what is for generated tokens alone is done to those
            (row,) = self.rows
            self.applied.groups = [(None, row.interventions)] if row.interventions else []
            # Its newest token is the answer's where any is, and none behind the answer's first one is not.
            behind = torch.arange(tokens, device=self.device)[None] - (tokens - 1)
            self.applied.places = {w: (behind + row.place(w)).clamp(min=-1) for w in REPLY_PARTS}
            self.applied.touched = torch.zeros(1, tokens, dtype=torch.bool, device=self.device)
            return
        slots = {id(row): k for k, row in enumerate(self.rows)}
        groups = by_interventions(self.rows)
        self.applied.groups = []
        for matching_rows in groups.values():
            if matching_rows[0].applied:
                row_indices = (
                    torch.tensor([slots[id(r)] for r in matching_rows], device=self.device) if len(groups) > 1 else None
                )
                self.applied.groups.append((row_indices, matching_rows[0].applied))
        decaying = any(isinstance(i, Decaying) for _, interventions in self.applied.groups for i in interventions)
        self.applied.places = {}
        if decaying:
            places = {w: [[r.place(w)] for r in self.rows] for w in REPLY_PARTS}
            self.applied.places = {w: torch.tensor(of_rows, device=self.device) for w, of_rows in places.items()}
        any_applied = bool(self.applied.groups)
        self.applied.touched = (
            torch.zeros(len(self.rows), 1, dtype=torch.bool, device=self.device) if any_applied else None
        )

    def _leave(self, done: Sequence[int]) -> None:
        """Puts the last rows in the places of those that are done."""
        leaving, remaining = set(done), len(self.rows) - len(done)
        target = [k for k in done if k < remaining]
        source = [k for k in range(remaining, len(self.rows)) if k not in leaving]
        for k in done:
            row = self.rows[k]
            if self.kept is not None and isinstance(self.cache, SideBySide) and row.finish != NOT_FINITE:
                self.kept.keep(row, partial(self.cache.copy, k, row.length))
        if leaving:
            self.cache.leave(self.rows, source, target, remaining)
        if source:
            for means in self.read_means:
                means.move(source, target)
            for src, dst in zip(source, target, strict=True):
                self.rows[dst] = self.rows[src]
        del self.rows[remaining:]
