"""What reading and holding cost on vLLM on the device at hand, graphs on, beside hooks in eager `transformers`; one command:

    python scripts/accelerator.py [MODEL] [--prompts 256] [--tokens 256] [--ranks 1] [--repeats 3] [--out docs/results]

The model is a Llama of MODEL's sizes (of the plan's table, a folder or a config.json) with random weights, good for speed.
Each way has a process of its own, one after another; plain vLLM comes first and last, which tells how steady the device is.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from personaspace.bench.overhead import idle_cap, tokens_per_second
from personaspace.catalog import load_catalog
from personaspace.engines import Engine
from personaspace.engines.prompts import Prompt, Sampling, assign
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.mapping import plan
from personaspace.model import loading

WAYS = {
    "plain": "vLLM as it is",
    "nothing": "with the plugin, nothing asked",
    "read": "every layer read",
    "cap": "8 layers capped",
    "both": "both",
    "eager": "both, with graphs and compilation off",
    "hooks": "both, hooks in eager transformers",
    "again": "vLLM as it is, again",
}
PLUGIN = ("nothing", "read", "cap", "both")
PROCESSES = (("plain",), PLUGIN, ("eager",), ("hooks",), ("again",))


def made(model: str, folder: Path) -> None:
    """A Llama of the model's sizes in a folder: a configuration and a tokenizer, no weights."""
    shape, _ = plan.model_of(model)
    tokenizer = AutoTokenizer.from_pretrained(loading.resolve("smollm2"), trust_remote_code=False)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(**asdict(shape), max_position_embeddings=2048, eos_token_id=tokenizer.eos_token_id)
    config.architectures, config.dtype = ["LlamaForCausalLM"], "float32" if device() == "cpu" else "bfloat16"
    config.save_pretrained(folder)


def device() -> str:
    """cuda, or cpu where there is none."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def loaded(way: str, folder: str, rows: int, ranks: int) -> Engine:
    """The engine that a way runs on."""
    if way == "hooks":
        config = LlamaConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device(device()):
            network = AutoModelForCausalLM.from_config(config, dtype=config.dtype).eval()
        return TransformersEngine(network, AutoTokenizer.from_pretrained(folder, trust_remote_code=False), rows=rows)
    from personaspace.engines.vllm.engine import VllmEngine

    options: dict[str, Any] = {"load_format": "dummy", "max_model_len": 1024, "tensor_parallel_size": ranks}
    if device() == "cpu":
        options["kv_cache_memory_bytes"] = 1 << 30
    return VllmEngine.load(folder, rows=rows, enforce_eager=way == "eager", **options)


def measured(ways: Sequence[str], folder: str, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The ways of one process, in turn: tokens a second of each round."""
    engine = loaded(ways[0], folder, given.prompts, given.ranks)
    catalog = load_catalog()
    asked = assign(catalog, [{r.role: 1 for r in catalog.roles}], 0)[0]
    prompts = [Prompt(asked[k % len(asked)].messages, question=k) for k in range(given.prompts)]
    sampling = Sampling(temperature=0, max_new_tokens=given.tokens)
    cap, both = idle_cap(engine), ("both", "eager", "hooks")

    def rate(way: str) -> float:
        held = [cap] if way in ("cap", *both) else []
        return tokens_per_second(engine, prompts, sampling, way in ("read", *both), held)

    rate(ways[0])  # memory is touched, and what compiles late compiles
    rates = [{way: rate(way) for way in ways} for _ in range(given.repeats)]
    compiled = engine.info.notes.get("compiled", "eager")
    if hasattr(engine, "close"):
        engine.close()
    for way in ways:
        yield {"way": way, "tokens_per_second": [r[way] for r in rates], "compiled": compiled}


def table(found: dict[str, dict[str, Any]], given: argparse.Namespace) -> str:
    """The results as a page of Markdown."""
    base = statistics.median(found["plain"]["tokens_per_second"])
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    lines = [
        f"# Reading and holding on {name}",
        "",
        f"`python scripts/accelerator.py {given.model} --prompts {given.prompts} --tokens {given.tokens} --ranks {given.ranks} "
        f"--repeats {given.repeats}`, {datetime.date.today():%d %B %Y}, torch {torch.__version__}. A Llama of the sizes of "
        f"{given.model}, random weights. Tokens a second: the median of {given.repeats} rounds (the least to the most).",
        "",
        "| | tokens/s | over plain vLLM's |",
        "| --- | --- | --- |",
    ]
    for way, row in found.items():
        rates = row["tokens_per_second"]
        middle = statistics.median(rates)
        lines.append(f"| {WAYS[way]} | {middle:,.0f} ({min(rates):,.0f} to {max(rates):,.0f}) | {middle / base:.3f} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="meta-llama/Llama-3.1-8B-Instruct")
    for name, value in (("prompts", 256), ("tokens", 256), ("ranks", 1), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs" / "results")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        folder, *ways = given.one.split(",")
        for row in measured(ways, folder, given):
            print("\n" + json.dumps(row), flush=True)
        return
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        made(given.model, Path(folder))
        for ways in PROCESSES:
            print(f"== {', '.join(WAYS[w] for w in ways)}", flush=True)
            line = [sys.executable, __file__, *sys.argv[1:], "--one", ",".join([folder, *ways])]
            plugins = {} if ways[0] in (*PLUGIN, "eager") else {"VLLM_PLUGINS": ""}
            # A fork would have the plugin in plain vLLM, too, and cannot use a device that was asked about before it.
            environment = {**os.environ, "VLLM_WORKER_MULTIPROC_METHOD": "spawn", **plugins}
            done = subprocess.run(line, env=environment, stdout=subprocess.PIPE, text=True)
            rows = [json.loads(x) for x in done.stdout.splitlines() if x.startswith('{"way"')]
            if done.returncode or not rows:
                print(f"   did not run (exit {done.returncode}); the others go on", flush=True)
            found.update({row["way"]: row for row in rows})
            if "plain" not in found:
                sys.exit("plain vLLM did not run: there is nothing to compare with")
    text = table(found, given)
    name = f"{datetime.date.today()}-accelerator-{given.model.rpartition('/')[2]}"
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / f"{name}.md").write_text(text, encoding="utf-8")
    (given.out / f"{name}.json").write_text(json.dumps(list(found.values()), indent=1), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
