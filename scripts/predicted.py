"""What `map --dry-run --on this` says of a map, beside what asking it takes; the peaks are measured between shards, so that
what a shared machine gives to others is taken from both. With --measured: what `map` itself announces, from a second or two of
its own loop, beside what each reading takes; --processor counts this process' own seconds in both, so that what others do on
the machine is left out.

python scripts/predicted.py [MODEL] [--roles 40] [--per-role 2] [--default-responses 40] [--max-new-tokens 24] [--measured]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from personaspace.catalog import load_catalog
from personaspace.engines import load_engine
from personaspace.engines.prompts import Design, Sampling, assign, shards
from personaspace.mapping import pace, plan, stages
from personaspace.mapping.ask import ShardTask, answer
from personaspace.mapping.mapper import Mapper
from personaspace.mapping.options import MapOptions
from personaspace.watcher import Plan

SHARD = 40


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="smollm2")
    for name, value in (("roles", 40), ("per-role", 2), ("default-responses", 40), ("max-new-tokens", 24)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--measured", action="store_true")
    parser.add_argument("--processor", action="store_true")
    given = parser.parse_args()
    catalog = load_catalog().select(str(given.roles))
    design = Design(per_role=given.per_role, default_responses=given.default_responses)
    if given.measured:
        sampling = Sampling(max_new_tokens=given.max_new_tokens)
        prompts = Design(per_role=8 * given.per_role)
        options = MapOptions(design=design, prompts=prompts, sampling=sampling)
        announced(given.model, catalog, options, time.process_time if given.processor else time.monotonic)
        return
    shape, chat = plan.model_of(given.model)
    asked = plan.workload_of(catalog, design, given.max_new_tokens, 0, chat)
    engine = load_engine("transformers", given.model, device="cpu")
    prompts = assign(catalog, [design.first_round(catalog)], 0)[0]
    sampling = Sampling(max_new_tokens=given.max_new_tokens)
    on, took = plan.this_machine(SHARD), 0.0
    peaks = [on.flops]
    with tempfile.TemporaryDirectory() as folder:
        for k, shard in enumerate(shards(prompts, SHARD, 0)):
            began = time.monotonic()
            answer(engine, ShardTask(k, shard, sampling, folder))
            took += time.monotonic() - began
            peaks.append(plan.products(SHARD))
        wrote = sum(p.stat().st_size for p in Path(folder).rglob("part-*"))
    on = replace(on, flops=statistics.mean(peaks))
    said = plan.predict(shape, on, asked)
    print("\n".join(plan.lines(given.model, on, asked, shape)))
    print(
        f"{torch.get_num_threads()} threads; products at {', '.join(f'{p / 1e9:.0f}' for p in peaks)} GFLOP/s"
        f"\ntime: {said['hours'] * 3600:.1f} s predicted, {took:.1f} s measured, ratio {said['hours'] * 3600 / took:.2f}"
        f"\ndisk: {said['disk_gb']['all'] * 1e3:.1f} MB predicted, {wrote / 1e6:.1f} MB measured"
    )


class Announced(stages.Watcher):
    """Keeps what is announced, and when the last response of it was there."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.plans: list[tuple[Plan, float, float]] = []

    def planned(self, plan: Plan) -> None:
        self.plans.append((plan, self.clock(), 0.0))

    def progress(self, done: int, total: int) -> None:
        announced_plan, began, _ = self.plans[-1]
        self.plans[-1] = (announced_plan, began, self.clock() - began)


def announced(model: str, catalog: Any, options: MapOptions, clock: Callable[[], float]) -> None:
    """What a map announces, beside what it takes."""
    measuring: list[float] = []

    def measure(*arguments: Any, **keywords: Any) -> pace.Pace | None:
        began = clock()
        measured = partial(pace.measure, clock=clock)(*arguments, **keywords)
        measuring.append(clock() - began)
        return measured

    stages.measure = measure
    watcher = Announced(clock)
    with tempfile.TemporaryDirectory() as folder:
        Mapper(load_engine("transformers", model, device="cpu"), catalog, folder, options, watcher).map(None)
    for (said, _, took), spent in zip(watcher.plans, measuring, strict=True):
        print(
            f"{said.responses} {said.what}, {said.prompt_tokens:,} prompt tokens, {said.new_tokens:,} new: announced "
            f"{said.seconds:.1f} s (measured for {spent:.1f} s), took {took:.1f} s, ratio {said.seconds / took:.2f}"
        )


if __name__ == "__main__":
    main()
