"""Reads what a model is about to be: the residual stream at a prompt's last token, before anything is generated.

It knows nothing of messages, only of token ids. Prompts that begin alike (a role's system prompt) have their shared prefix
computed once: a pass over the distinct prefixes, then a pass over what follows each, which looks back at its prefix's KV cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from personaspace.engines.prefix import shared_prefix_length
from personaspace.engines.transformers.cache import CacheLayout, rows_of
from personaspace.model.interventions import Intervention
from personaspace.model.residual import Intervening, Sink, reading

SHORTEST_PREFIX = 8
"""Tokens that two prompts must begin with in common for a prefix to be worth a pass of its own."""

PREFIX_STEP = 2
"""Prefixes are cut to multiples of that many tokens, so that many are of one length and pass together without padding; the
tokens that are cut off are computed with what follows them."""

MOST_SHARING = 256
"""Prompts that one prefix is computed for, at most: more would gain nothing and be looked through for long."""


@dataclass(frozen=True)
class Prefix:
    """Prompts, by their places, that share their first `length` tokens."""

    length: int
    members: tuple[int, ...]


def shared_prefixes(prompts: Sequence[Sequence[int]]) -> list[Prefix]:
    """Every prompt in exactly one prefix, of length 0 where it shares none, so that as few tokens as possible are computed. The
    last token is never a part of one: it is read, so that each prompt's own pass has at least that. prompts: token ids."""
    order = sorted(range(len(prompts)), key=lambda k: tuple(prompts[k]))
    ids = [prompts[k] for k in order]
    # Neighbours in this order share the most, so that every group worth having is a stretch of it. Of the first k prompts:
    # how many tokens the best grouping saves, and where its last group begins and how long that one's prefix is.
    shared = [shared_prefix_length(a, b) for a, b in itertools.pairwise(ids)]
    saved = [0]
    last: list[tuple[int, int]] = []
    for end in range(1, len(ids) + 1):
        best, group = saved[-1], (end - 1, 0)
        longest = len(ids[end - 1]) - 1
        for start in range(end - 2, -1, -1):
            longest = min(longest, shared[start], len(ids[start]) - 1)
            length = longest // PREFIX_STEP * PREFIX_STEP
            if length < SHORTEST_PREFIX or end - start > MOST_SHARING:
                break
            if (gain := saved[start] + (end - start - 1) * length) > best:
                best, group = gain, (start, length)
        saved.append(best)
        last.append(group)
    prefixes: list[Prefix] = []
    end = len(ids)
    while end:
        start, length = last[end - 1]
        prefixes.append(Prefix(length, tuple(order[start:end])))
        end = start
    return prefixes


def passes(prompts: Sequence[Sequence[int]], tokens: int) -> list[tuple[int, list[Prefix]]]:
    """Prefixes of one length each, at most `tokens` of them all together, with what follows them enough for a pass of its own
    where there is that much: prefixes that are too few are cut to the next shorter length and go with those."""
    by_length: dict[int, list[Prefix]] = {}
    for prefix in shared_prefixes(prompts):
        by_length.setdefault(prefix.length, []).append(prefix)
    result: list[tuple[int, list[Prefix]]] = []
    waiting: list[Prefix] = []
    for length in sorted(by_length, reverse=True):
        waiting += by_length[length]
        if length and length > min(by_length):
            follows = sum(len(prompts[place]) - length for p in waiting for place in p.members)
            if follows < tokens:
                continue
        if not length:
            result.append((0, waiting))
        else:
            parts = -(-len(waiting) * length // tokens)
            each = -(-len(waiting) // parts)
            result += [(length, waiting[k : k + each]) for k in range(0, len(waiting), each)]
        waiting = []
    return result


@dataclass(frozen=True)
class OnsetReader:
    """What to read of prompts, and under which interventions. base_model: without its lm_head; device: where it takes tokens;
    layout: what it keeps; tokens: of one forward pass, at the most."""

    base_model: Any
    device: torch.device
    layers: nn.ModuleList
    layout: CacheLayout
    read: tuple[int, ...]
    tokens: int
    interventions: tuple[Intervention, ...] = ()

    def onsets(self, prompts: Sequence[Sequence[int]]) -> Iterator[tuple[int, Tensor]]:
        """Each prompt's place and its residual stream `[layers, hidden]` at the last token, in fp32, in no set order."""
        # What follows a prefix looks back at keys and values; a model that keeps another state computes every prompt whole.
        if self.layout.goes_on:
            planned = passes(prompts, self.tokens)
        else:
            planned = [(0, [Prefix(0, tuple(range(len(prompts))))])] if prompts else []
        for length, prefixes in planned:
            yield from self._onsets_after(length, prefixes, prompts)

    def _onsets_after(
        self, length: int, prefixes: Sequence[Prefix], prompts: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, Tensor]]:
        """Those of prompts whose prefixes are of one length: the prefixes in one pass, then what follows, the longest first."""
        cache = None
        if length:
            cache = self.layout.empty()
            self._forward([prompts[p.members[0]][:length] for p in prefixes], cache)
        waiting = [(place, row) for row, p in enumerate(prefixes) for place in p.members]
        waiting.sort(key=lambda pair: len(prompts[pair[0]]))
        # As many passes as that takes, of about as many tokens each: a small one at the end would cost like a large one.
        cumulative_tokens = np.cumsum([len(prompts[place]) - length for place, _ in waiting])
        parts = -(-int(cumulative_tokens[-1]) // self.tokens)
        ends = np.searchsorted(cumulative_tokens, cumulative_tokens[-1] / parts * np.arange(1, parts + 1) - 0.5) + 1
        for start, end in reversed(list(itertools.pairwise([0, *np.unique(ends).tolist()]))):
            batch = waiting[start:end]
            places = [place for place, _ in batch]
            ids = [list(prompts[place][length:]) for place in places]
            prefix_cache = rows_of(cache, [row for _, row in batch]) if cache is not None else None
            yield from zip(places, self._last_tokens(ids, prefix_cache), strict=True)

    def _last_tokens(self, ids: Sequence[Sequence[int]], cache: Cache | None) -> Tensor:
        """The residual stream `[rows, layers, hidden]` at each row's last token."""
        device = self.device
        rows = torch.arange(len(ids), device=device)
        last = torch.tensor([len(row) - 1 for row in ids], device=device)
        activations: list[Tensor] = [torch.empty(0)] * len(self.read)

        def keep(k: int, hidden: Tensor) -> None:
            activations[k] = hidden[rows.to(hidden.device), last.to(hidden.device)].float().cpu()

        self._forward(ids, cache, keep)
        return torch.stack(activations, 1)

    def _forward(self, ids: Sequence[Sequence[int]], cache: Cache | None, sink: Sink | None = None) -> None:
        """One pass without the lm_head; what is computed is added to the cache where there is one, and read by the sink."""
        device = self.device
        longest = max(map(len, ids))
        past = cache.get_seq_length() if cache is not None else 0
        # Padded on the right: no real token sees the padding, so causal attention needs no mask.
        tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in ids], device=device)
        positions = torch.arange(past, past + longest, device=device).expand(len(ids), -1)
        applied = Intervening()
        applied.groups = [(None, self.interventions)] if self.interventions else []
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(applied.on(self.layers))
            if sink is not None:  # entered last, so that it reads what the interventions have left
                stack.enter_context(reading(self.layers, self.read, sink))
            inputs: dict[str, Any] = {"position_ids": positions} if self.layout.placed else {}
            if cache is not None:
                inputs[self.layout.name] = cache
            self.base_model(input_ids=tokens, use_cache=cache is not None, **inputs)
