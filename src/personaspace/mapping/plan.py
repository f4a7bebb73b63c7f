"""What a map takes, before anything is asked: tokens, hours, memory and disk, from a model's shape and the hardware's figures.

Reads the two small tables beside the package's data, a model's config.json and tokenizer where they are there; no weights.
"""

from __future__ import annotations

import difflib
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from personaspace.catalog import Catalog
from personaspace.engines import Engine
from personaspace.engines.chat import Chat
from personaspace.engines.prefix import shared_prefix_length
from personaspace.engines.prompts import Design, Prompt, assign, shards
from personaspace.errors import ModelError, UsageError
from personaspace.mapping.sums import ALL, BLOCKS, SAMPLE
from personaspace.model import loading
from personaspace.report.words import duration

_DATA = Path(__file__).parent.parent / "data"

SHARD = 256
"""Responses a shard: what a killed run may have to do again."""
ONSET_SHARD = 512
"""Prompts a shard, where nothing is generated: the more are read together, the more tokens are shared and the fewer padded."""

COMPUTE = 0.35
"""Share of the peak in matrix products that a GPU reaches over a whole forward pass."""
COMPUTE_CPU = 0.75
"""Share of what products of so many rows get on a CPU, measured on two cores; the rest goes to attention and between them."""
BANDWIDTH = 0.6
"""Share of the memory's bandwidth that a step of decoding reaches."""
MEMORY = 0.9
"""Share of a device's memory that weights, keys and values may take."""
ROWS, ROWS_CPU = 256, 128
"""Replies in flight on one copy of the model, at most."""
CHARACTERS, MESSAGE = 4.5, 8
"""Characters a token, and a template's tokens a message, where there is no tokenizer to ask."""


@dataclass(frozen=True)
class Plan:
    """What reading a map's prompts or its replies will take. seconds and bytes are estimates; done counts what is there
    already. what: `prompts` or `responses`."""

    what: str
    responses: int
    done: int
    prompt_tokens: int
    new_tokens: int
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Shape:
    """A model's sizes, as in its config.json; a dense decoder with a gated MLP."""

    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool = False

    @classmethod
    def of(cls, config: dict[str, Any]) -> Shape:
        """From a config.json. Raises `ModelError` where it lacks one that has no default."""
        config = config.get("text_config", config)
        try:
            heads = config["num_attention_heads"]
            return cls(
                config["hidden_size"],
                config["num_hidden_layers"],
                config["intermediate_size"],
                heads,
                config.get("num_key_value_heads") or heads,
                config.get("head_dim") or config["hidden_size"] // heads,
                config["vocab_size"],
                bool(config.get("tie_word_embeddings", False)),
            )
        except KeyError as e:
            raise ModelError(f"the model's config.json has no {e.args[0]}: its shape cannot be read from it") from None

    @property
    def in_layers(self) -> int:
        """Parameters of the decoder layers that are multiplied with every token."""
        heads = self.num_attention_heads + self.num_key_value_heads
        attention = 2 * self.hidden_size * self.head_dim * heads
        return self.num_hidden_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def head(self) -> int:
        """Parameters of the vocabulary's projection."""
        return self.hidden_size * self.vocab_size

    @property
    def parameters(self) -> int:
        return self.in_layers + self.head * (1 if self.tie_word_embeddings else 2)

    def attention_flops(self, context: float) -> float:
        """Of one token that looks back at so many, in all layers."""
        return 4.0 * self.num_hidden_layers * self.num_attention_heads * self.head_dim * context

    def cached(self, number: int) -> int:
        """Bytes of one token's keys and values, at so many bytes a number."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * number


@dataclass(frozen=True)
class Hardware:
    """Devices of one kind. memory, bandwidth: bytes, bytes a second; flops: dense, in the dtype of `number` bytes."""

    name: str
    count: int
    memory: float
    bandwidth: float
    flops: float
    number: int = 2
    compute: float = COMPUTE
    rows: int = ROWS


@dataclass(frozen=True)
class Asked:
    """What is asked of a model. prompt_tokens: without beginnings that neighbours in a shard share; longest: a prompt's."""

    roles: int
    questions: int
    responses: int
    prompt_tokens: int
    longest: int
    new_tokens: int


def model_of(name: str) -> tuple[Shape, Chat | None]:
    """A model's shape and, where it has a tokenizer here, its template: of the table, a config.json, or a model's folder.

    Raises `ModelError` with the nearest names.
    """
    table = json.loads((_DATA / "models.json").read_text(encoding="utf-8"))
    if name in table:
        return Shape.of(table[name]), None
    path = Path(name)
    if path.name != "config.json":
        where = Path(loading.resolve(name))
        if not (where / "config.json").is_file():
            near = difflib.get_close_matches(name, table, 3, 0.3) or list(table)
            raise ModelError(f"{name}: its shape is not known here; give its config.json or one of {', '.join(near)}")
        path = where / "config.json"
    try:
        shape = Shape.of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as e:
        raise ModelError(f"{path}: cannot be read: {e}") from None
    if not (path.parent / "tokenizer.json").is_file():
        return shape, None
    return shape, Chat(loading.load_tokenizer(path.parent, name), frozenset())


def hardware_of(name: str) -> Hardware:
    """`8xH100`, or `this`: the machine's CPU, its peaks measured for a second. Raises `UsageError`."""
    if name == "this":
        return this_machine()
    table = json.loads((_DATA / "accelerators.json").read_text(encoding="utf-8"))
    count, _, kind = name.rpartition("x")
    if kind not in table or not (count or "1").isdigit() or int(count or "1") < 1:
        raise UsageError(f"--on {name}: expected this, or a number and one of {', '.join(table)}, as in 8xH100")
    found = table[kind]
    figures = (found["memory_gb"] * 1e9, found["bandwidth_gb"] * 1e9, found["tflops"] * 1e12)
    return Hardware(name, int(count or "1"), *figures)


def this_machine(rows: int = ROWS_CPU) -> Hardware:
    """This machine's CPU as it is now: products of so many rows and a copy, each timed for some tenths of a second."""
    big = torch.randn(1 << 25)
    other = torch.empty_like(big)
    copy = _timed(lambda: other.copy_(big))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Hardware("this", 1, memory, 8 * len(big) / copy, products(rows), 4, COMPUTE_CPU, rows)


def products(rows: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """Operations a second as a step of decoding makes them: so many rows times matrices that no cache holds."""
    n, many = 1024, 64
    weights = [torch.randn(n, n, device=device, dtype=dtype) for _ in range(many)]
    x = torch.randn(rows, n, device=device, dtype=dtype)

    def call() -> None:
        for w in weights:
            y = x @ w
        y[0, 0].item()

    return 2 * rows * n * n * many / _timed(call)


def asked_of(catalog: Catalog, design: Design, new_tokens: int, seed: int, chat: Chat | None = None) -> Asked:
    """What a map's first round asks. Lengths are of the tokens of some shards, or guessed from their characters."""
    prompts = assign(catalog, [design.first_round(catalog)], seed, design.complete)[0]
    cut = shards(prompts, SHARD, seed)
    some = cut[:: max(1, len(cut) // 16)]
    longest, own, n = 0, 0, 0
    for shard in some:
        each = sorted(_tokens(p, chat) for p in shard)
        longest = max(longest, *map(len, each))
        own += sum(len(b) - shared_prefix_length(a, b) for a, b in zip(["", *each[:-1]], each, strict=True))
        n += len(shard)
    share = 1.0 if chat else 1 / CHARACTERS
    per_response = own / n * share + (0 if chat else MESSAGE)
    length = int(longest * share) + (0 if chat else 2 * MESSAGE)
    return Asked(
        1 + len(catalog.roles),
        len(catalog.questions),
        len(prompts),
        int(per_response * len(prompts)),
        length,
        new_tokens * len(prompts),
    )


def predict(shape: Shape, on: Hardware, asked: Asked) -> dict[str, Any]:
    """Hours, memory and disk of a map, with as many devices to a copy of the model as are fastest. `fits` is False where not
    even all of them hold it; hours are None then."""
    sizes = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= on.count]
    ways = [way for n in sizes if (way := _way(shape, on, asked, n))]
    found: dict[str, Any] = {"fits": bool(ways), "parameters": shape.parameters, "hours": None}
    return {**found, "disk_gb": disk(shape, asked), **min(ways, key=lambda w: w["hours"], default={})}


def _way(shape: Shape, on: Hardware, asked: Asked, each: int) -> dict[str, Any] | None:
    """With so many devices to a copy; None where a copy does not fit."""
    new = asked.new_tokens / asked.responses
    weights, cached = shape.parameters * on.number, shape.cached(on.number)
    context = asked.longest + new
    rows = min(on.rows, asked.responses, int((MEMORY * on.memory * each - weights) // (context * cached)))
    if rows < 1:
        return None
    flops, bandwidth = on.flops * each * on.compute, on.bandwidth * each * BANDWIDTH
    prompts = asked.prompt_tokens * (2 * shape.in_layers + shape.attention_flops(asked.longest / 2)) / flops
    back = asked.longest + new / 2
    step = max(
        (weights + rows * back * cached) / bandwidth,
        rows * (2 * (shape.in_layers + shape.head) + shape.attention_flops(back)) / flops,
    )
    replies = asked.new_tokens / rows * step
    copies = on.count // each
    return {
        "devices_each": each,
        "copies": copies,
        "rows": rows,
        "hours": (prompts + replies) / copies / 3600,
        "share_of_prompts": prompts / (prompts + replies),
        "memory_gb": {"weights": weights / 1e9, "keys_and_values": rows * context * cached / 1e9},
    }


def disk(shape: Shape, asked: Asked, blocks: int = BLOCKS) -> dict[str, float]:
    """GB on the disk: replies; activations in fp32; sums, if every score occurs in every block; the most on the way."""
    layers, hidden = shape.num_hidden_layers, shape.hidden_size
    replies = 6 * asked.new_tokens / 1e9
    activations = asked.responses * 4 * layers * (hidden + 1) / 1e9
    cells = min(ALL * asked.roles * min(blocks, asked.questions), asked.responses) + ALL * asked.questions
    sums = layers * hidden * (8 * cells + 4 * min(2 * SAMPLE, asked.responses)) / 1e9
    waiting = min(activations, max(sums, 1.0))
    return {
        "replies": replies,
        "all": replies + activations,
        "sums": replies + sums,
        "most": replies + 2 * sums + waiting,
    }


def assumptions(on: Hardware, shape: Shape) -> list[str]:
    """What a prediction rests on, in sentences."""
    flops = f"{on.flops / 1e12:.3g} TFLOP/s in {'fp32' if on.number == 4 else 'bf16'}"
    return [
        f"{on.name}: {on.count} of {on.memory / 1e9:.0f} GB, {on.bandwidth / 1e9:.0f} GB/s and {flops} each, of which "
        f"{BANDWIDTH:.0%} and {on.compute:.0%} are assumed; at most {on.rows} replies in {MEMORY:.0%} of the memory",
        f"{shape.parameters / 1e9:.1f}e9 parameters; a forward pass is 2 operations a parameter and token, and attention; "
        "reading is free",
        "every reply is as long as it may be; beginnings that neighbours share are computed once; no time for the judge",
        f"activations in fp32; sums in fp64 by {BLOCKS} blocks, as if all had every score, with a sample of {2 * SAMPLE}",
    ]


def lines(name: str, on: Hardware, asked: Asked, shape: Shape, reading: str = "reply") -> list[str]:
    """A prediction for people."""
    p, disks = predict(shape, on, asked), disk(shape, asked)
    what = "prompts" if reading == "prompt" else "responses"
    where = f"{name} on {on.name}: {asked.responses:,} {what}, {asked.prompt_tokens:,} prompt tokens, "
    first = where + (f"at most {asked.new_tokens:,} new ones" if asked.new_tokens else "nothing generated")
    if p["hours"] is None:
        time_of = f"does not fit: {shape.parameters * on.number / 1e9:.0f} GB of weights"
    else:
        memory = p["memory_gb"]
        time_of = (
            f"about {duration(3600 * p['hours'])}, {p['share_of_prompts']:.0%} of it prompts; {p['copies']} copies on "
            f"{p['devices_each']} devices each, {p['rows']} replies at once\nmemory of a copy: {memory['weights']:.3g} GB of "
            f"weights, {memory['keys_and_values']:.3g} GB of keys and values"
        )
    kept = "disk: {all:,.3g} GB; with --keep sums {sums:,.3g} GB, at most {most:,.3g} GB on the way".format(**disks)
    assumed = [f"assumed: {a}" for a in assumptions(on, shape)] if asked.new_tokens else []
    return [first, time_of, kept, *assumed]


def as_json(name: str, on: Hardware, asked: Asked, shape: Shape) -> dict[str, Any]:
    """A prediction for machines."""
    found = {"model": name, "on": asdict(on), **asdict(asked), **predict(shape, on, asked)}
    return {**found, "assumptions": assumptions(on, shape)}


def bytes_per_response(layers: int, hidden: int, new_tokens: int) -> int:
    """What a response takes on the disk: its activation and norms in fp32, and its text."""
    return 4 * layers * (hidden + 1) + 6 * new_tokens


def seconds_per_token(engine: Engine) -> float:
    """An estimate from the model's size and matrix products timed for some tenths of a second on its device."""
    network = getattr(engine, "network", None)
    if network is None:
        return 0.0
    p = next(network.parameters())
    rows = ROWS_CPU if p.device.type == "cpu" else ROWS
    parameters: int = sum(q.numel() for q in network.parameters())
    return 2 * parameters / (COMPUTE_CPU * products(rows, p.device, p.dtype))


def _timed(call: Any, seconds: float = 0.3) -> float:
    """Seconds that a call takes when nothing else is in its way: the shortest of some tenths of a second of calls."""
    best, ends = float("inf"), time.monotonic() + seconds
    while time.monotonic() < ends:
        began = time.monotonic()
        call()
        best = min(best, time.monotonic() - began)
    return best


def _tokens(prompt: Prompt, chat: Chat | None) -> Any:
    """A prompt's token ids, or its characters."""
    return chat.prompt_ids(prompt.messages) if chat else "".join(m["content"] for m in prompt.messages)
