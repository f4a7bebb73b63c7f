"""Measures a map's throughput against the number of Ray workers, and against the number of responses; draws docs/workers.svg.

    python scripts/workers.py [MODEL] [--workers 1,2] [--responses 64,128,256]

Each worker has one thread. Workers are loaded before the clock starts; judge and space are not in it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import psutil

from personaspace.catalog import DEFAULT, load_catalog
from personaspace.engines import load_engine
from personaspace.engines.prompts import Sampling, assign, shards
from personaspace.mapping.ask import ShardTask, answer

PICTURE = Path(__file__).parent.parent / "docs" / "workers.svg"
SHARD, TOKENS = 16, 16


def throughput(engine, responses: int) -> tuple[float, float]:
    """Responses a second, written shard by shard, and responses a second of the processors' time that workers were given:
    on a machine that others use, the second tells what spreading costs."""
    catalog = load_catalog()
    each = {r.role: 1 for r in catalog.roles[: responses // 2]}
    prompts = assign(catalog, [{DEFAULT: responses - len(each), **each}], 0)[0]
    with tempfile.TemporaryDirectory() as folder:
        sampling = Sampling(max_new_tokens=TOKENS)
        tasks = [ShardTask(k, s, sampling, folder) for k, s in enumerate(shards(prompts, SHARD, 0))]
        began, used = time.monotonic(), processor_time(engine)
        done = sum(n for _, n in engine.spread(answer, tasks))
        if done != responses:
            raise SystemExit(f"{done} replies came back of {responses}")
        return done / (time.monotonic() - began), done / (processor_time(engine) - used)


def processor_time(engine) -> float:
    """Seconds of processors that the workers have used, all of them together."""
    times = [psutil.Process(hand.where[1]).cpu_times() for hand in engine.hands if hand.where]
    return sum(t.user + t.system for t in times)


def drawn(title: str, series: dict[str, list[tuple[float, float]]]) -> str:
    """Lines over points, as an SVG."""
    xs = [x for points in series.values() for x, _ in points]
    top = 1.15 * max(y for points in series.values() for _, y in points)

    def at(x: float, y: float) -> tuple[float, float]:
        return 60 + 480 * x / max(xs), 260 - 220 * y / top

    parts = [f'<text x="60" y="20">{title}</text>', '<path d="M60 40V260H560" fill="none" stroke="#888"/>']
    parts += [f'<text x="{at(x, 0)[0]:.0f}" y="278" text-anchor="middle">{x:g}</text>' for x in sorted(set(xs))]
    highest = max(points[-1][1] for points in series.values())
    for color, (name, points) in zip(("#06c", "#c50", "#393", "#939"), series.items(), strict=False):
        off = -8 if points[-1][1] == highest else 18  # numbers of the highest line above it, of others below
        places = [at(x, y) for x, y in points]
        path = "M" + "L".join(f"{x:.0f} {y:.0f}" for x, y in places)
        parts.append(f'<path d="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        for (x, y), (_, value) in zip(places, points, strict=True):
            parts.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="4" fill="{color}"/>')
            parts.append(f'<text x="{x:.0f}" y="{y + off:.0f}" text-anchor="middle" fill="{color}">{value:.2f}</text>')
        last = places[-1]
        parts.append(f'<text x="{last[0] + 8:.0f}" y="{last[1] + 4:.0f}" fill="{color}">{name}</text>')
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--responses", default="64,128,256")
    given = parser.parse_args()
    workers, responses = ([int(x) for x in text.split(",")] for text in (given.workers, given.responses))
    found: dict[tuple[int, int], tuple[float, float]] = {}
    for w in workers:
        engine = load_engine("ray", given.model, workers=w)
        engine.wait_for(w)
        for n in responses:
            found[w, n] = throughput(engine, n)
            each, by_processor = found[w, n]
            print(
                f"{w} workers, {n} responses: {each:.2f} responses/s, {by_processor:.2f} a processor's second",
                flush=True,
            )
        engine.close()
    most = responses[-1]
    by_workers = {
        name: [(w, found[w, most][k]) for w in workers] for k, name in enumerate(("a second", "a processor's second"))
    }
    by_responses = {f"{w} worker{'s' * (w > 1)}": [(n, found[w, n][0]) for n in responses] for w in workers}
    note = f"{given.model}, {TOKENS} tokens, {os.cpu_count()} cores, one thread a worker"
    first = drawn(f"{most} responses against workers ({note})", by_workers)
    second = drawn("responses/s against responses", by_responses)
    PICTURE.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="680" height="600" font-family="sans-serif" font-size="13">\n'
        f'<rect width="680" height="600" fill="#fff"/>\n{first}\n<g transform="translate(0 300)">\n{second}\n</g>\n</svg>\n',
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
