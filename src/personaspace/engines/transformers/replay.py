"""Reads text that already exists in one forward pass; it knows nothing of messages, only of token ids and spans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from personaspace.engines.chat import Span
from personaspace.model.interventions import Intervention, Where
from personaspace.model.residual import Intervening, SpanMeans, base_model, input_device, reading


@dataclass(frozen=True)
class Read:
    """What was read of a span; see `Turn` for the shapes."""

    tokens: int
    activation: Tensor
    norms: Tensor
    each: Tensor | None
    logprob: float | None
    touched: int


def pooled(reads: Sequence[Read], example: Read) -> Read:
    """Several stretches as one; of none the means are zeros, of the example's shapes."""
    tokens = sum(r.tokens for r in reads)
    activation, norms = torch.zeros_like(example.activation), torch.zeros_like(example.norms)
    for r in reads:
        activation += r.activation * (r.tokens / max(1, tokens))
        norms += r.norms * (r.tokens / max(1, tokens))
    return Read(tokens, activation, norms, None, None, sum(r.touched for r in reads))


@dataclass(frozen=True)
class Replayer:
    """What to read of a model's spans, and under which interventions.

    each: every token's residual stream is kept too; logprobs: how probable the model finds the spans' tokens. begins: where the
    tokens of a `where` begin; unless given, what is read is taken for what was generated, and for its answer.
    """

    model: Any
    layers: nn.ModuleList
    read: tuple[int, ...]
    hidden: int
    interventions: tuple[Intervention, ...] = ()
    each: bool = False
    logprobs: bool = False
    begins: Mapping[Where, int] | None = None

    def batches(self, spans: Sequence[Span], tokens: int) -> Iterator[tuple[list[int], list[list[Read]]]]:
        """Spans of like length together, as many as fit `tokens`, the longest first: their places and what was read."""
        order = sorted(range(len(spans)), key=lambda k: len(spans[k].token_ids))
        while order:
            fit = max(1, tokens // max(1, len(spans[order[-1]].token_ids)))
            batch, order = order[-fit:], order[:-fit]
            yield batch, self.batch([spans[k] for k in batch])

    def batch(self, batch: Sequence[Span]) -> list[list[Read]]:
        """What was read of each conversation's spans, from one forward pass."""
        device = input_device(self.model)
        longest = max(len(s.token_ids) for s in batch)
        # Padded on the right: no real token sees the padding, so causal attention needs no mask.
        ids = torch.tensor([[*s.token_ids, *[0] * (longest - len(s.token_ids))] for s in batch], device=device)
        ranges = [(row, a, b) for row, s in enumerate(batch) for a, b in s.spans]
        weights = torch.zeros(len(ranges), longest, device=device)
        places = torch.full(ids.shape, -1, device=device)
        for k, (row, a, b) in enumerate(ranges):
            weights[k, a:b] = 1 / max(1, b - a)
            places[row, a:b] = torch.arange(b - a, device=device)
        rows = torch.tensor([row for row, _, _ in ranges], dtype=torch.long, device=device)
        sink = SpanMeans(weights, rows, len(self.read), self.hidden, ranges if self.each else None)
        applied = Intervening()
        if self.interventions:
            applied.groups, applied.places = [(None, self.interventions)], {"generated": places, "answer": places}
            for where, begin in (self.begins or {}).items():
                applied.places[where] = (torch.arange(longest, device=device) - begin).clamp(min=-1).expand(ids.shape)
            applied.touched = torch.zeros_like(places, dtype=torch.bool)
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(applied.on(self.layers))
            stack.enter_context(reading(self.layers, self.read, sink))
            logprob_means = self._forward(ids, ranges)
        turns: list[list[Read]] = [[] for _ in batch]
        for k, (row, a, b) in enumerate(ranges):
            each = torch.stack(sink.each[k], 1).cpu() if self.each else None
            touched = int(applied.touched[row, a:b].sum()) if applied.touched is not None else 0
            turns[row].append(Read(b - a, sink.means[k].cpu(), sink.norms[k].cpu(), each, logprob_means[k], touched))
        return turns

    def _forward(self, ids: Tensor, ranges: Sequence[tuple[int, int, int]]) -> Sequence[float | None]:
        """The pass; the mean log-probability of each span's tokens where that is asked for."""
        if not self.logprobs:
            base_model(self.model)(input_ids=ids, use_cache=False)
            return [None] * len(ranges)
        logit_positions = sorted({t - 1 for _, a, b in ranges for t in range(max(a, 1), b)})
        logit_index = {t: k for k, t in enumerate(logit_positions)}
        logits = self.model(
            input_ids=ids, use_cache=False, logits_to_keep=torch.tensor(logit_positions or [0], device=ids.device)
        ).logits
        means: list[float | None] = []
        for row, a, b in ranges:
            positions = range(max(a, 1), b)
            if not positions:
                means.append(None)
                continue
            logprobs = logits[row, [logit_index[t - 1] for t in positions]].float().log_softmax(-1)
            means.append(float(logprobs.gather(1, ids[row, positions.start : positions.stop, None]).mean()))
        return means
