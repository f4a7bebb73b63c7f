"""What `map --dry-run --on this` says of a map, beside what asking it takes; the peaks are measured between shards, so that
what a shared machine gives to others is taken from both.

python scripts/predicted.py [MODEL] [--roles 40] [--per-role 2] [--default-responses 40] [--max-new-tokens 24]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from personaspace.catalog import load_catalog
from personaspace.engines import load_engine
from personaspace.engines.prompts import Design, Sampling, assign, shards
from personaspace.mapping import plan
from personaspace.mapping.ask import ShardTask, answer

SHARD = 40


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="smollm2")
    for name, value in (("roles", 40), ("per-role", 2), ("default-responses", 40), ("max-new-tokens", 24)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    catalog = load_catalog().select(str(given.roles))
    design = Design(per_role=given.per_role, default_responses=given.default_responses)
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


if __name__ == "__main__":
    main()
