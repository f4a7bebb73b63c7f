"""What reading and holding cost: tokens a second with them over tokens a second without, in this process and inside vLLM."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from personaspace.bench.measure import in_turn, ratios, rounds, summary
from personaspace.engines import Engine
from personaspace.engines.prompts import Prompt, Sampling
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.model.interventions import Cap, Intervention


def idle_cap(engine: Engine) -> Cap:
    """Eight layers' floors that nothing is under: the arithmetic of a cap, and the same replies to compare the time of."""
    first = engine.info.layers // 2
    direction = torch.randn(engine.info.hidden, generator=torch.Generator().manual_seed(0))
    return Cap(direction, tuple(range(first, min(first + 8, engine.info.layers))), floor=-1e9)


def tokens_per_second(
    engine: Engine,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    read: bool,
    interventions: Sequence[Intervention] = (),
) -> float:
    """Of `respond`, with every layer read or none."""
    began = time.monotonic()
    layers = range(engine.info.layers) if read else None
    responses = engine.respond(prompts, sampling, read=layers, interventions=interventions)
    tokens = sum(len(r.token_ids) for r in responses)
    return tokens / (time.monotonic() - began)


def overhead(engine: TransformersEngine, prompts: Sequence[Prompt], tokens: int | None, repeats: int) -> dict[str, Any]:
    """Speed with reading, and with eight layers capped, over speed with neither."""
    sampling, first_prompts = Sampling(max_new_tokens=tokens or 128), prompts[:64]
    cap = idle_cap(engine)
    plain, reading, capping = in_turn(
        repeats,
        lambda: tokens_per_second(engine, first_prompts, sampling, False),
        lambda: tokens_per_second(engine, first_prompts, sampling, True),
        lambda: tokens_per_second(engine, first_prompts, sampling, False, [cap]),
    )
    peers = {"reading every layer": reading, f"capping {len(cap.layers)} layers": capping}
    return {
        "ours": summary(plain, "tokens/s"),
        "peers": {name: summary(figures, "tokens/s") for name, figures in peers.items()},
        **ratios({name: rounds(figures, plain) for name, figures in peers.items()}),
        "limit": dict.fromkeys(peers, 0.97),
    }


def overhead_vllm(
    model: str, prompts: Sequence[Prompt], tokens: int | None, repeats: int, arguments: Sequence[str] = ()
) -> dict[str, Any]:
    """vLLM as it is, compiled, against vLLM with the plugin: with nothing asked, every layer read, eight layers capped, both.

    Both are loaded, each in processes of its own, and measured in turn: what the plugin costs while it does nothing shows, too.
    """
    from personaspace.engines.vllm.engine import VllmEngine

    sampling = Sampling(temperature=0, max_new_tokens=tokens or 64)
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # a fork would have the plugin in the plain one, too
    os.environ.setdefault("VLLM_SLEEP_WHEN_IDLE", "1")  # the one that is not measured leaves the processor alone
    options: dict[str, Any] = {"max_model_len": 1024, "rows": len(prompts), "kv_cache_memory_bytes": 2 << 30}
    with contextlib.ExitStack() as engines:
        ours = engines.enter_context(contextlib.closing(VllmEngine.load(model, arguments=arguments, **options)))
        with _without_plugins():
            plain = engines.enter_context(contextlib.closing(VllmEngine.load(model, arguments=arguments, **options)))
        return _overhead_vllm(ours, plain, prompts, sampling, repeats)


@contextlib.contextmanager
def _without_plugins() -> Iterator[None]:
    allowed_plugins = os.environ.get("VLLM_PLUGINS")
    os.environ["VLLM_PLUGINS"] = ""
    try:
        yield
    finally:
        del os.environ["VLLM_PLUGINS"]
        if allowed_plugins is not None:
            os.environ["VLLM_PLUGINS"] = allowed_plugins


def _overhead_vllm(
    ours: Engine, plain: Engine, prompts: Sequence[Prompt], sampling: Sampling, repeats: int
) -> dict[str, Any]:
    cap = idle_cap(ours)
    names = ("nothing asked", "reading every layer", f"capping {len(cap.layers)} layers", "both")
    settings: list[tuple[bool, Sequence[Intervention]]] = [(False, ()), (True, ()), (False, [cap]), (True, [cap])]
    cpu_seconds: dict[str, list[float]] = {name: [] for name in ("plain", *names)}

    def measured(name: str, engine: Engine, read: bool, interventions: Sequence[Intervention]) -> float:
        before = _processor_seconds()
        rate = tokens_per_second(engine, prompts, sampling, read, interventions)
        cpu_seconds[name].append(_processor_seconds() - before)
        return rate

    for engine in (plain, ours):
        tokens_per_second(engine, prompts, sampling, False)  # memory is touched for the first time
    without_plugin, *with_plugin = in_turn(
        repeats,
        functools.partial(measured, "plain", plain, False, ()),
        *(functools.partial(measured, name, ours, *setting) for name, setting in zip(names, settings, strict=True)),
    )

    # By the processor's time, which others on the machine disturb less: the same tokens are made each way.
    by_processor = ratios({name: rounds(cpu_seconds["plain"], cpu_seconds[name]) for name in names})
    return {
        "prompts": len(prompts),
        "tokens": sampling.max_new_tokens,
        "ours": summary(without_plugin, "tokens/s"),
        "peers": {name: summary(figures, "tokens/s") for name, figures in zip(names, with_plugin, strict=True)},
        **ratios({name: rounds(row, without_plugin) for name, row in zip(names, with_plugin, strict=True)}),
        "processor_ratio": by_processor["ratio"],
        "processor_ratio_interval": by_processor["ratio_interval"],
        "limit": dict.fromkeys(names, 0.95),
    }


def _processor_seconds() -> float:
    """What this process and those that it started have used so far."""
    import psutil

    me = psutil.Process()
    times = [p.cpu_times() for p in (me, *me.children(recursive=True))]
    return float(sum(t.user + t.system for t in times))
