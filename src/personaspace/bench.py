"""Measures speed and memory against a peer on the same inputs, in turn, in one run; prints ratios, not absolutes."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from personaspace.catalog import DEFAULT, load_catalog
from personaspace.engines import Span
from personaspace.engines.transformers import TransformersEngine
from personaspace.prompts import Prompt, Sampling, assign

BENCHES = ("generate", "extract", "overhead")
BATCHES = (16, 32, 48, 64, 128)


def run_bench(what: str, model: str, *, prompts: int, tokens: int | None, repeats: int) -> dict[str, Any]:
    """The design's form: `bench`, `ours`, `peers`, `ratio`, `limit`, each with median, min, max and unit."""
    engine = TransformersEngine.load(model)
    catalog = load_catalog()
    asked = assign(catalog, [{DEFAULT: 1, **{r.role: 1 for r in catalog.roles}}], 0)[0]
    chosen = [p for p in asked if p.role != DEFAULT][:prompts]
    measure = {"generate": _generate, "extract": _extract, "overhead": _overhead}[what]
    return {"bench": what, "prompts": len(chosen), **measure(engine, chosen, tokens, repeats)}


def _row(values: Sequence[float], unit: str) -> dict[str, Any]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "unit": unit}


def _in_turn(repeats: int, *calls: Callable[[], float]) -> list[list[float]]:
    """Each call's figures, the calls made in turn, so that a machine that slows down slows them all."""
    found: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for figures, call in zip(found, calls, strict=True):
            figures.append(call())
    return found


def _respond(engine: TransformersEngine, prompts: Sequence[Prompt], sampling: Sampling, read: bool) -> float:
    began = time.monotonic()
    layers = range(engine.model.layers) if read else None
    tokens = sum(len(r.token_ids) for r in engine.respond(prompts, sampling, read=layers))
    return tokens / (time.monotonic() - began)


def _hf_generate(engine: TransformersEngine, ids: Sequence[list[int]], sampling: Sampling, batch: int) -> float:
    tokenizer, done = engine.tokenizer, 0
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    began = time.monotonic()
    for k in range(0, len(ids), batch):
        rows = ids[k : k + batch]
        longest = max(map(len, rows))
        tokens = torch.tensor([[pad] * (longest - len(r)) + r for r in rows], device=engine.device)
        mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows], device=engine.device)
        made = engine.network.generate(
            input_ids=tokens,
            attention_mask=mask,
            do_sample=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=0,
            max_new_tokens=sampling.max_new_tokens,
            pad_token_id=pad,
            eos_token_id=sorted(engine.chat.end_ids),
        )[:, longest:]
        for row in made.tolist():
            done += next((k for k, t in enumerate(row) if t in engine.chat.end_ids), len(row))
    return done / (time.monotonic() - began)


def _generate(
    engine: TransformersEngine, prompts: Sequence[Prompt], tokens: int | None, repeats: int
) -> dict[str, Any]:
    """`respond` with reading on against `generate` with nothing read, at its best batch size."""
    sampling = Sampling(max_new_tokens=tokens or 32)
    ids = [engine.chat.prompt_ids(p.messages) for p in prompts]
    trial = {b: _hf_generate(engine, ids[: max(BATCHES)], sampling, b) for b in BATCHES}
    best = max(trial, key=lambda b: trial[b])
    ours, theirs = _in_turn(
        repeats,
        lambda: _respond(engine, prompts, sampling, True),
        lambda: _hf_generate(engine, ids, sampling, best),
    )
    name = f"transformers generate, {best} rows"
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    return {
        "ours": _row(ours, "tokens/s"),
        "peers": {name: _row(theirs, "tokens/s")},
        "ratio": {name: ratio},
        "limit": {name: 2.0},
    }


def _overhead(
    engine: TransformersEngine, prompts: Sequence[Prompt], tokens: int | None, repeats: int
) -> dict[str, Any]:
    """Speed with reading over speed without."""
    sampling, some = Sampling(max_new_tokens=tokens or 128), prompts[:64]
    with_reading, without = _in_turn(
        repeats, lambda: _respond(engine, some, sampling, True), lambda: _respond(engine, some, sampling, False)
    )
    ratio = statistics.median(a / b for a, b in zip(with_reading, without, strict=True))
    return {
        "ours": _row(with_reading, "tokens/s"),
        "peers": {"without reading": _row(without, "tokens/s")},
        "ratio": {"without reading": ratio},
        "limit": {"without reading": 0.97},
    }


def _extract(engine: TransformersEngine, prompts: Sequence[Prompt], tokens: int | None, repeats: int) -> dict[str, Any]:
    """`replay` against a forward pass that keeps all hidden states and slices them: speed, and share of the GEMM peak."""
    answers = list(engine.respond(prompts[:96], Sampling(max_new_tokens=tokens or 64)))
    spans = []
    for r in answers:
        start = len(ids := engine.chat.prompt_ids(r.prompt.messages))
        spans.append(Span((*ids, *r.token_ids), ((start, start + len(r.token_ids)),)))
    real = sum(len(s.token_ids) for s in spans)

    def ours() -> float:
        began = time.monotonic()
        for _ in engine.replay(spans, read=range(engine.model.layers)):
            pass
        return real / (time.monotonic() - began)

    def peer() -> float:
        began = time.monotonic()
        for k in range(0, len(spans), 16):
            batch = spans[k : k + 16]
            longest = max(len(s.token_ids) for s in batch)
            rows = [[*s.token_ids, *[0] * (longest - len(s.token_ids))] for s in batch]
            mask = [[1] * len(s.token_ids) + [0] * (longest - len(s.token_ids)) for s in batch]
            with torch.inference_mode():
                states = engine.network(
                    torch.tensor(rows, device=engine.device),
                    attention_mask=torch.tensor(mask, device=engine.device),
                    output_hidden_states=True,
                    use_cache=False,
                ).hidden_states
            for row, s in enumerate(batch):
                a, b = s.spans[0]
                torch.stack([h[row, a:b].mean(0) for h in states[1:]])
        return real / (time.monotonic() - began)

    peak_before = _peak_memory()
    mine, theirs = _in_turn(repeats, ours, peer)
    share = statistics.median(mine) * _flops_per_token(engine) / _gemm_peak(engine)
    name = "forward pass with all hidden states"
    return {
        "ours": _row(mine, "tokens/s"),
        "peers": {name: _row(theirs, "tokens/s")},
        "ratio": {
            name: statistics.median(a / b for a, b in zip(mine, theirs, strict=True)),
            "share of the GEMM peak": share,
        },
        "limit": {name: 2.2, "share of the GEMM peak": 0.7},
        "peak_memory_mb": {"before": peak_before, "after": _peak_memory()},
    }


def _flops_per_token(engine: TransformersEngine) -> float:
    return 2.0 * sum(p.numel() for layer in engine.layers for p in layer.parameters())


def _gemm_peak(engine: TransformersEngine) -> float:
    a = torch.randn(2048, 2048, device=engine.device, dtype=engine.network.dtype)
    best = 0.0
    for _ in range(8):
        began = time.monotonic()
        (a @ a)[0, 0].item()
        best = max(best, 2 * 2048**3 / (time.monotonic() - began))
    return best


def _peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
