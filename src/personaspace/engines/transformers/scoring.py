"""How probable a text's own tokens are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from personaspace.engines.transformers.cache import CacheLayout
from personaspace.engines.transformers.sampling import logprobs_after
from personaspace.model.interventions import Intervention
from personaspace.model.residual import Intervening, input_device

SCORED_TOKENS = 256


def scores_of(
    model: Any,
    layers: nn.ModuleList,
    layout: CacheLayout,
    ids: Sequence[int],
    top: int,
    interventions: Sequence[Intervention],
) -> list[tuple[float, list[tuple[int, float]]]]:
    """From the second token on: each one's log-probability, and the `top` most probable tokens in its place with theirs."""
    applied = Intervening()
    applied.groups = [(None, tuple(i for i in interventions if i.where == "all"))]
    scores: list[tuple[float, list[tuple[int, float]]]] = []
    # Some tokens at a time: the vocabulary's logits of a long text would not fit. All of them where a state cannot be gone on
    # with by several tokens at once.
    piecewise = layout.goes_on
    size = SCORED_TOKENS if piecewise else len(ids)
    past = {layout.name: layout.empty(), "use_cache": True} if piecewise else {"use_cache": False}
    with torch.inference_mode(), applied.on(layers):
        for k in range(0, len(ids) - 1, size):
            fed = torch.tensor([ids[k : min(k + size, len(ids) - 1)]], device=input_device(model))
            logits = model(input_ids=fed, **past).logits
            scores.extend(logprobs_after(logits[0], ids[k + 1 :], top))
    return scores
