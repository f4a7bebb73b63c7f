"""Draws next tokens from logits, each row with its own settings and its own random numbers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

NUCLEUS = 256


def uniforms(seed: int, n: int) -> np.ndarray:
    """A row's random numbers, `[n]` in [0, 1): a counter-based generator, so they depend on the seed alone."""
    return np.random.Generator(np.random.Philox(seed)).random(n, dtype=np.float32)


def draw(logits: Tensor, temperature: Tensor, top_p: Tensor, u: Tensor) -> Tensor:
    """One token id a row. logits: `[rows, vocabulary]`; temperature, top_p, u: `[rows]`; temperature 0 is greedy.

    The nucleus is taken from the 256 most probable tokens, normalised over the whole vocabulary; a row whose nucleus is
    wider than that is sorted whole, so the result is exact. Without a nucleus (top_p 1) the whole mass is known to be 1, so
    only a row whose number points past those 256 tokens is sorted: to sort all of them took a quarter of a step.
    """
    logits = logits.float()
    k = min(NUCLEUS, logits.shape[-1])
    top, ids = logits.topk(k, dim=-1)
    divisor = temperature.clamp(min=1e-4)[:, None]
    log_mass = (logits / divisor).logsumexp(-1, keepdim=True)
    no_nucleus = top_p >= 1
    chosen = _nucleus(top, ids, divisor, log_mass, top_p, u, no_nucleus)
    covered = (top / divisor - log_mass).exp().sum(-1)
    wide_rows = torch.nonzero((covered < torch.where(no_nucleus, u, top_p)) & (temperature > 0)).flatten()
    if len(wide_rows) and k < logits.shape[-1]:
        ranked, order = logits[wide_rows].sort(dim=-1, descending=True)
        chosen[wide_rows] = _nucleus(
            ranked,
            order,
            divisor[wide_rows],
            log_mass[wide_rows],
            top_p[wide_rows],
            u[wide_rows],
            no_nucleus[wide_rows],
        )
    return torch.where(temperature > 0, chosen, ids[:, 0])


def _nucleus(
    ranked: Tensor, ids: Tensor, divisor: Tensor, log_mass: Tensor, top_p: Tensor, u: Tensor, no_nucleus: Tensor
) -> Tensor:
    probabilities = (ranked / divisor - log_mass).exp()
    mass_before = probabilities.cumsum(-1) - probabilities
    probabilities = torch.where(mass_before < top_p[:, None], probabilities, 0.0)
    cumulative = probabilities.cumsum(-1)
    mass = torch.where(no_nucleus[:, None], 1.0, cumulative[:, -1:])
    place = torch.searchsorted(cumulative, u[:, None] * mass, right=True).clamp(max=ids.shape[-1] - 1)
    # Rounding may point past the nucleus, where the probability is zero; NaN has none (and is reported by who reads).
    last = ((probabilities > 0).sum(-1, keepdim=True) - 1).clamp(min=0)
    return ids.gather(1, torch.minimum(place, last))[:, 0]
