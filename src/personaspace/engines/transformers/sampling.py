"""Draws next tokens from logits, each row with its own settings and its own random numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import log

import numpy as np
import torch
from torch import Tensor

from personaspace.engines.prompts import Sampling
from personaspace.engines.transformers.batching import Row
from personaspace.errors import UsageError

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


def check_bias(sampling: Sampling, vocabulary: int) -> None:
    """Raises `UsageError` where a token is given a bias that the vocabulary does not have."""
    unknown = next((token for token, _ in sampling.logit_bias if not 0 <= token < vocabulary), None)
    if unknown is not None:
        raise UsageError(f"logit_bias for token {unknown}: expected one from 0 to {vocabulary - 1}")


def adjust(logits: Tensor, rows: Sequence[Row], settings: Tensor) -> Tensor:
    """Logits with each row's bias, penalties, top_k and min_p, in the order of `transformers`; these very logits where no row
    has any. logits: `[rows, vocabulary]`, left as they are; settings: `[rows, 3]`, temperature, top_p and random number, whose
    top_p becomes 1 where it is seen to here (min_p comes after it).
    """
    if not any(row.adjusted for row in rows):
        return logits
    logits = logits.float().clone()
    for k, row in enumerate(rows):
        if row.adjusted:
            _penalise(logits[k], row)
            if row.sampling.temperature > 0:
                _narrow(logits[k], row, settings[k])
    return logits


def _penalise(logits: Tensor, row: Row) -> None:
    """Bias and penalties, in place. logits: `[vocabulary]`."""
    sampling = row.sampling
    if sampling.logit_bias:
        biased, values = zip(*sampling.logit_bias, strict=True)
        logits.index_add_(0, _ids(biased, logits), torch.tensor(values, device=logits.device))
    if sampling.repetition_penalty != 1:
        if row.prompt_tokens is None:
            row.prompt_tokens = _ids(sorted(set(row.ids)), logits)
        seen = torch.cat([row.prompt_tokens, _ids(row.out, logits)])
        before = logits[seen]
        penalty = sampling.repetition_penalty
        logits[seen] = torch.where(before < 0, before * penalty, before / penalty)
    if row.out and (sampling.frequency_penalty or sampling.presence_penalty):
        counts = Counter(row.out)
        times = torch.tensor([*counts.values()], device=logits.device)
        logits[_ids([*counts], logits)] -= sampling.frequency_penalty * times + sampling.presence_penalty


def _narrow(logits: Tensor, row: Row, settings: Tensor) -> None:
    """Leaves, in place, what top_k, top_p and min_p let through. logits: `[vocabulary]`; settings: `[3]`."""
    sampling = row.sampling
    if 0 < sampling.top_k < len(logits):
        logits[logits < logits.topk(sampling.top_k).values[-1]] = -torch.inf
    if sampling.min_p > 0:
        scaled = logits / max(sampling.temperature, 1e-4)
        # The most probable token stays, also where it is as probable as the bound and rounding decides.
        allowed = scaled >= scaled.max() + min(log(sampling.min_p), -1e-6)
        if sampling.top_p < 1:
            ranked, order = scaled.sort(descending=True)
            probabilities = ranked.softmax(-1)
            allowed &= torch.empty_like(allowed).scatter_(
                0, order, probabilities.cumsum(-1) - probabilities < sampling.top_p
            )
            settings[1] = 1
        logits[~allowed & ~logits.isnan()] = -torch.inf


def _ids(token_ids: Sequence[int], logits: Tensor) -> Tensor:
    return torch.tensor(token_ids, dtype=torch.long, device=logits.device)


def logprobs_after(logits: Tensor, ids: Sequence[int], top: int) -> list[tuple[float, list[tuple[int, float]]]]:
    """Of the token after each place, and of the `top` most probable ones there. logits: `[tokens, vocabulary]`."""
    logprobs = logits.float().log_softmax(-1)
    best = logprobs.topk(top)
    scored = torch.tensor(list(ids[: len(logprobs)]), device=logprobs.device)
    token_logprobs = logprobs.gather(1, scored[:, None])[:, 0].tolist()
    pairs = [list(zip(i, v, strict=True)) for i, v in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
    return list(zip(token_logprobs, pairs, strict=True))
