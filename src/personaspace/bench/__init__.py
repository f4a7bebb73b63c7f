"""Measures speed and memory against a peer on the same inputs, in turn, in one run; prints ratios, not absolutes."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from personaspace.bench import startup
from personaspace.bench.measure import EXACT, ONCE, in_turn, ratios, rounds, summary
from personaspace.bench.overhead import overhead, overhead_vllm, tokens_per_second
from personaspace.catalog import DEFAULT, load_catalog
from personaspace.engines import Span
from personaspace.engines.prompts import Prompt, Sampling, assign, shards
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.engines.transformers.onset import shared_prefixes
from personaspace.mapping.plan import ONSET_SHARD

BENCHES = ("generate", "extract", "prefill", "overhead", "scale", "startup")
PREFILL_A_ROLE = 12
"""As a map asks them, so that as many share a beginning."""
BATCHES = (16, 32, 48, 64, 128)


def run_bench(
    bench: str,
    model: str,
    *,
    prompts: int,
    tokens: int | None,
    repeats: int,
    engine: str = "transformers",
    arguments: Sequence[str] = (),
) -> dict[str, Any]:
    """The design's form: `bench`, `ours`, `peers`, each with median, min, max and unit, `limit`, and of `ratio` what
    `measure.ratios` says. arguments: vLLM's own options.

    >>> measured = run_bench("overhead", "smollm2", prompts=8, tokens=16, repeats=3)
    >>> list(measured["ratio"])
    ['reading every layer', ...]
    """
    if bench == "startup":
        return {"bench": bench, **startup.measure(repeats)}
    catalog = load_catalog()
    per_role = PREFILL_A_ROLE if bench == "prefill" else 1
    assigned = assign(catalog, [{DEFAULT: 1, **{r.role: per_role for r in catalog.roles}}], 0)[0]
    chosen = [p for p in assigned if p.role != DEFAULT]
    chosen = (
        [p for shard in shards(chosen, ONSET_SHARD, 0) for p in shard][:prompts]
        if bench == "prefill"
        else chosen[:prompts]
    )
    # vLLM has its own bench of overhead alone: the other ones are about the decode loop and the replay of this package.
    if engine == "vllm":
        return {"bench": bench, "engine": engine, **overhead_vllm(model, chosen[:64], tokens, repeats, arguments)}
    loaded = TransformersEngine.load(model)
    measure = {
        "generate": _generate,
        "extract": _extract,
        "prefill": _prefill,
        "overhead": overhead,
        "scale": _scale,
    }[bench]
    return {"bench": bench, "prompts": len(chosen), **measure(loaded, chosen, tokens, repeats)}


def _hf_generate(engine: TransformersEngine, ids: Sequence[list[int]], sampling: Sampling, batch: int) -> float:
    tokenizer, token_count = engine.tokenizer, 0
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    began = time.monotonic()
    for k in range(0, len(ids), batch):
        rows = ids[k : k + batch]
        longest = max(map(len, rows))
        # Padded on the left, as `generate` wants it, so that replies begin in one column.
        tokens = torch.tensor([[pad] * (longest - len(r)) + r for r in rows], device=engine.device)
        mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows], device=engine.device)
        generated = engine.model.generate(
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
        # What comes after a reply's end is padding, and no token that anybody asked for.
        for row in generated.tolist():
            token_count += next((k for k, t in enumerate(row) if t in engine.chat.end_ids), len(row))
    return token_count / (time.monotonic() - began)


def _generate(
    engine: TransformersEngine, prompts: Sequence[Prompt], tokens: int | None, repeats: int
) -> dict[str, Any]:
    """`respond` with reading on against `generate` with nothing read, at its best batch size."""
    sampling = Sampling(max_new_tokens=tokens or 32)
    ids = [engine.chat.prompt_ids(p.messages) for p in prompts]
    # The peer is to be at its best: which batch size that is depends on the machine.
    speeds = {b: _hf_generate(engine, ids[: max(BATCHES)], sampling, b) for b in BATCHES}
    best_batch = max(speeds, key=lambda b: speeds[b])
    ours, theirs = in_turn(
        repeats,
        lambda: tokens_per_second(engine, prompts, sampling, True),
        lambda: _hf_generate(engine, ids, sampling, best_batch),
    )
    name = f"transformers generate, {best_batch} rows"
    return {
        "ours": summary(ours, "tokens/s"),
        "peers": {name: summary(theirs, "tokens/s")},
        **ratios({name: rounds(ours, theirs)}),
        "limit": {name: 2.0},
    }


def _extract(engine: TransformersEngine, prompts: Sequence[Prompt], tokens: int | None, repeats: int) -> dict[str, Any]:
    """`replay` against a forward pass that keeps all hidden states and slices them: speed, and share of the GEMM peak."""
    # Replies from 8 tokens to the longest, as real transcripts are: their lengths' logarithms are evenly spread.
    longest_reply, asked_prompts = tokens or 256, prompts[:64]
    lengths = [int(8 * (longest_reply / 8) ** (k / max(1, len(asked_prompts) - 1))) for k in range(len(asked_prompts))]
    with_lengths = [
        replace(p, sampling=Sampling(max_new_tokens=n)) for p, n in zip(asked_prompts, lengths, strict=True)
    ]
    in_order = []
    for r in engine.respond(with_lengths, Sampling()):
        start = len(ids := engine.chat.prompt_ids(r.prompt.messages))
        in_order.append(Span((*ids, *r.token_ids), ((start, start + len(r.token_ids)),)))
    # Shuffled: replies come back shortest first, which would do the sorting for either.
    spans = [in_order[k] for k in torch.randperm(len(in_order), generator=torch.Generator().manual_seed(0)).tolist()]
    token_count = sum(len(s.token_ids) for s in spans)

    def replay_speed() -> float:
        began = time.monotonic()
        for _ in engine.replay(spans, read=range(engine.info.layers)):
            pass
        return token_count / (time.monotonic() - began)

    def peer_speed() -> float:
        began = time.monotonic()
        for k in range(0, len(spans), 16):
            batch = spans[k : k + 16]
            longest = max(len(s.token_ids) for s in batch)
            rows = [[*s.token_ids, *[0] * (longest - len(s.token_ids))] for s in batch]
            mask = [[1] * len(s.token_ids) + [0] * (longest - len(s.token_ids)) for s in batch]
            with torch.inference_mode():
                states = engine.model(
                    torch.tensor(rows, device=engine.device),
                    attention_mask=torch.tensor(mask, device=engine.device),
                    output_hidden_states=True,
                    use_cache=False,
                ).hidden_states
            for row, s in enumerate(batch):
                start, end = s.spans[0]
                torch.stack([h[row, start:end].mean(0) for h in states[1:]])
        return token_count / (time.monotonic() - began)

    # The machine's own matrix product is measured in each round too: its speed is not one number from minute to minute.
    our_speeds, peer_speeds, peaks = in_turn(repeats, replay_speed, peer_speed, lambda: _gemm_peak(engine))
    flops_per_token = _flops_per_token(engine)
    memory = [_memory_of(engine, call) for call in (replay_speed, peer_speed)]
    name = "forward pass with all hidden states"
    return {
        "ours": summary(our_speeds, "tokens/s"),
        "peers": {name: summary(peer_speeds, "tokens/s")},
        **ratios(
            {
                name: rounds(our_speeds, peer_speeds),
                "share of the GEMM peak": rounds([speed * flops_per_token for speed in our_speeds], peaks),
            },
            {"memory": (memory[1] / max(memory[0], 1), ONCE)},
        ),
        "limit": {name: 2.2, "share of the GEMM peak": 0.7, "memory": 3.0},
        "memory_mb": {"ours": memory[0] / 2**20, name: memory[1] / 2**20},
    }


def _prefill(engine: TransformersEngine, prompts: Sequence[Prompt], tokens: int | None, repeats: int) -> dict[str, Any]:
    """Prompts read at their last token, as a map reads them, against `output_hidden_states` of the same prompts, sorted by
    length and padded; share of the GEMM peak on the tokens that are computed, and how many of those are padding."""
    ids = sorted((engine.chat.prompt_ids(p.messages) for p in prompts), key=len)
    computed: list[int] = []

    def onset_speed() -> float:
        computed.clear()
        base = engine.model.base_model
        hook = base.register_forward_pre_hook(
            lambda module, args, kwargs: computed.append(kwargs["input_ids"].numel()), with_kwargs=True
        )
        began = time.monotonic()
        try:
            for k in range(0, len(prompts), ONSET_SHARD):
                for _ in engine.onsets(prompts[k : k + ONSET_SHARD], read=range(engine.info.layers)):
                    pass
        finally:
            hook.remove()
        return len(ids) / (time.monotonic() - began)

    def peer_speed() -> float:
        began = time.monotonic()
        for k in range(0, len(ids), 16):
            batch = ids[k : k + 16]
            longest = len(batch[-1])
            rows = torch.tensor([[0] * (longest - len(row)) + row for row in batch], device=engine.device)
            mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in batch], device=engine.device)
            with torch.inference_mode():
                states = engine.model(
                    rows, attention_mask=mask, output_hidden_states=True, use_cache=False, logits_to_keep=1
                ).hidden_states
            torch.stack([h[:, -1] for h in states[1:]])
        return len(ids) / (time.monotonic() - began)

    our_speeds, peer_speeds, peaks = in_turn(repeats, onset_speed, peer_speed, lambda: _gemm_peak(engine))
    # A beginning that prompts of a shard share is computed once; anything else that was computed is padding.
    needed_tokens = 0
    for k in range(0, len(prompts), ONSET_SHARD):
        rows = [engine.chat.prompt_ids(p.messages) for p in prompts[k : k + ONSET_SHARD]]
        needed_tokens += sum(p.length + sum(len(rows[m]) - p.length for m in p.members) for p in shared_prefixes(rows))
    flops_per_prompt = needed_tokens / len(prompts) * _flops_per_token(engine)
    name = "output_hidden_states"
    return {
        "ours": summary(our_speeds, "prompts/s"),
        "peers": {name: summary(peer_speeds, "prompts/s")},
        **ratios(
            {
                name: rounds(our_speeds, peer_speeds),
                "share of the GEMM peak": rounds([speed * flops_per_prompt for speed in our_speeds], peaks),
            },
            {
                "computed tokens that are real": (needed_tokens / sum(computed), EXACT),
                "tokens of the prompts that are computed": (needed_tokens / sum(map(len, ids)), EXACT),
            },
        ),
        "limit": {name: 2.0, "share of the GEMM peak": 0.7, "computed tokens that are real": 0.9},
    }


def _memory_of(engine: TransformersEngine, call: Callable[[], float]) -> int:
    """Bytes that a call needs beyond what is there before it: on a GPU as torch counts them, else the process' peak."""
    if engine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is there now
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024


def _scale(engine: TransformersEngine, prompts: Sequence[Prompt], tokens: int | None, repeats: int) -> dict[str, Any]:
    """The server's tokens a second with 16 clients at once against one, and the time to an idle server's first token."""
    from personaspace.bench.clients import first_token, served, throughput

    max_tokens, clients = tokens or 48, 16
    conversations = [[dict(m) for m in p.messages] for p in prompts[:clients]]
    with served(engine, clients) as port:
        throughput(port, engine.info.id, conversations, 4, clients)  # memory is touched for the first time
        all_clients, single_client = in_turn(
            repeats,
            lambda: throughput(port, engine.info.id, conversations, max_tokens, clients),
            lambda: throughput(port, engine.info.id, conversations[:2], max_tokens, 1),
        )
        waits = [first_token(port, engine.info.id) for _ in range(5)]
    name = "one client"
    return {
        "ours": summary(all_clients, "tokens/s"),
        "peers": {name: summary(single_client, "tokens/s"), "first token": summary(waits, "s")},
        **ratios({name: rounds(all_clients, single_client)}),
        "limit": {name: 4.0, "first token": 0.5},
    }


def _flops_per_token(engine: TransformersEngine) -> float:
    # Two operations a parameter and token.
    return 2.0 * sum(p.numel() for layer in engine.layers for p in layer.parameters())


def _gemm_peak(engine: TransformersEngine) -> float:
    # The best of eight: what the machine can do, not what others leave of it.
    a = torch.randn(2048, 2048, device=engine.device, dtype=engine.model.dtype)
    best = 0.0
    for _ in range(8):
        began = time.monotonic()
        (a @ a)[0, 0].item()
        best = max(best, 2 * 2048**3 / (time.monotonic() - began))
    return best
