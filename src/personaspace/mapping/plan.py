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
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from personaspace import json_text
from personaspace.catalog import Catalog
from personaspace.engines.chat import Chat
from personaspace.engines.prefix import unshared_length
from personaspace.engines.prompts import Design, assign, shards
from personaspace.errors import ModelError, UsageError
from personaspace.json_text import shown
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
"""Share of a device's memory that weights and KV cache may take."""
ROWS, ROWS_CPU = 256, 128
"""Replies in flight on one copy of the model, at most."""
CHARACTERS, MESSAGE = 4.5, 8
"""Characters a token, and a template's tokens a message, where there is no tokenizer to ask."""


Size = Annotated[int, Field(gt=0, lt=10**9)]


class _Sizes(BaseModel):
    model_config = ConfigDict(strict=True)
    hidden_size: Size
    num_hidden_layers: Size
    intermediate_size: Size
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    vocab_size: Size
    tie_word_embeddings: bool = False


@dataclass(frozen=True)
class ModelShape:
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
    def of(cls, config: Any) -> ModelShape:
        """From a config.json. Raises `ModelError` where it lacks a size that has no default, or has one that is none."""
        of_text = config.get("text_config", config) if isinstance(config, dict) else config
        try:
            sizes = _Sizes.model_validate(of_text)
        except ValidationError as e:
            first = e.errors()[0]
            name = ".".join(map(str, first["loc"])) or "object"
            problem = f"no {name}" if first["type"] == "missing" else f"{name}={shown(first['input'])}"
            raise ModelError(f"the model's config.json has {problem}: its shape cannot be read from it") from None
        heads = sizes.num_attention_heads
        head_dim = sizes.head_dim or max(1, sizes.hidden_size // heads)
        defaults = {"num_key_value_heads": sizes.num_key_value_heads or heads, "head_dim": head_dim}
        return cls(**{**sizes.model_dump(), **defaults})

    @property
    def in_layers(self) -> int:
        """Parameters of the decoder layers that are multiplied with every token."""
        heads = self.num_attention_heads + self.num_key_value_heads
        attention = 2 * self.hidden_size * self.head_dim * heads
        return self.num_hidden_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def lm_head(self) -> int:
        """Parameters of the lm_head."""
        return self.hidden_size * self.vocab_size

    @property
    def parameters(self) -> int:
        return self.in_layers + self.lm_head * (1 if self.tie_word_embeddings else 2)

    def attention_flops(self, context: float) -> float:
        """Of one token that looks back at so many, in all layers."""
        return 4.0 * self.num_hidden_layers * self.num_attention_heads * self.head_dim * context

    def kv_cache_bytes(self, bytes_per_value: int) -> int:
        """Bytes of one token in the KV cache."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * bytes_per_value


@dataclass(frozen=True)
class Hardware:
    """Devices of one kind. memory, bandwidth: bytes, bytes a second; flops: dense, in a dtype of `bytes_per_value` bytes."""

    name: str
    count: int
    memory: float
    bandwidth: float
    flops: float
    bytes_per_value: int = 2
    compute: float = COMPUTE
    rows: int = ROWS


@dataclass(frozen=True)
class Workload:
    """What is asked of a model. prompt_tokens: the shared prefixes of a shard counted once; longest: a prompt's tokens."""

    roles: int
    questions: int
    responses: int
    prompt_tokens: int
    longest: int
    new_tokens: int


def model_of(name: str) -> tuple[ModelShape, Chat | None]:
    """A model's shape and, where it has a tokenizer here, its template: of the table, a config.json, or a model's folder.

    Raises `ModelError` with the nearest names.
    """
    table = json.loads((_DATA / "models.json").read_text(encoding="utf-8"))
    if name in table:
        return ModelShape.of(table[name]), None
    path = Path(name)
    if path.name != "config.json":
        where = Path(loading.resolve(name))
        if not (where / "config.json").is_file():
            near = difflib.get_close_matches(name, table, 3, 0.3) or list(table)
            raise ModelError(f"{name}: its shape is not known here; give its config.json or one of {', '.join(near)}")
        path = where / "config.json"
    try:
        shape = ModelShape.of(json_text.parse(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as e:
        raise ModelError(f"{path}: cannot be read: {e}") from None
    if not (path.parent / "tokenizer.json").is_file():
        return shape, None
    return shape, Chat(loading.load_tokenizer(path.parent, name), frozenset())


def hardware_of(name: str) -> Hardware:
    """`8xH100`, or `this`: the machine's CPU, its peaks measured for a second. Raises `UsageError`."""
    if name == "this":
        return this_machine()
    specs = json.loads((_DATA / "accelerators.json").read_text(encoding="utf-8"))
    count, _, kind = name.rpartition("x")
    if kind not in specs or not (count or "1").isdigit() or int(count or "1") < 1:
        raise UsageError(f"--on {name}: expected this, or a number and one of {', '.join(specs)}, as in 8xH100")
    spec = specs[kind]
    figures = (spec["memory_gb"] * 1e9, spec["bandwidth_gb"] * 1e9, spec["tflops"] * 1e12)
    return Hardware(name, int(count or "1"), *figures)


def this_machine(rows: int = ROWS_CPU) -> Hardware:
    """This machine's CPU as it is now: products of so many rows and a copy, each timed for some tenths of a second."""
    source = torch.randn(1 << 25)
    target = torch.empty_like(source)
    copy_seconds = _timed(lambda: target.copy_(source))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Hardware("this", 1, memory, 8 * len(source) / copy_seconds, products(rows), 4, COMPUTE_CPU, rows)


def products(rows: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """Operations a second as a step of decoding makes them: so many rows times matrices that no cache holds."""
    size, matrices = 1024, 64
    weights = [torch.randn(size, size, device=device, dtype=dtype) for _ in range(matrices)]
    x = torch.randn(rows, size, device=device, dtype=dtype)

    def call() -> None:
        for matrix in weights:
            product = x @ matrix
        product[0, 0].item()

    return 2 * rows * size * size * matrices / _timed(call)


def workload_of(catalog: Catalog, design: Design, new_tokens: int, seed: int, chat: Chat | None = None) -> Workload:
    """What a map's first round asks. Lengths are of the tokens of some shards, or guessed from their characters."""
    prompts = assign(catalog, [design.first_round(catalog)], seed, design.complete)[0]
    all_shards = shards(prompts, SHARD, seed)
    sampled_shards = all_shards[:: max(1, len(all_shards) // 16)]
    longest, unshared, prompt_count = 0, 0, 0
    for shard in sampled_shards:
        # Token ids, or characters where there is no chat template.
        texts = ("".join(m["content"] for m in p.messages) for p in shard)
        all_tokens: list[Any] = [chat.prompt_ids(p.messages) for p in shard] if chat else list(texts)
        longest = max(longest, *map(len, all_tokens))
        unshared += unshared_length(all_tokens)
        prompt_count += len(shard)
    share = 1.0 if chat else 1 / CHARACTERS
    per_response = unshared / prompt_count * share + (0 if chat else MESSAGE)
    length = int(longest * share) + (0 if chat else 2 * MESSAGE)
    return Workload(
        1 + len(catalog.roles),
        len(catalog.questions),
        len(prompts),
        int(per_response * len(prompts)),
        length,
        new_tokens * len(prompts),
    )


def predict(shape: ModelShape, hardware: Hardware, workload: Workload) -> dict[str, Any]:
    """Hours, memory and disk of a map, with as many devices to a copy of the model as are fastest. `fits` is False where not
    even all of them hold it; hours are None then."""
    copy_sizes = [devices for devices in (1, 2, 4, 8, 16, 32, 64) if devices <= hardware.count]
    layouts = [layout for devices in copy_sizes if (layout := _device_layout(shape, hardware, workload, devices))]
    model_facts: dict[str, Any] = {"fits": bool(layouts), "parameters": shape.parameters, "hours": None}
    return {
        **model_facts,
        "disk_gb": disk(shape, workload),
        **min(layouts, key=lambda layout: layout["hours"], default={}),
    }


def _device_layout(
    shape: ModelShape, hardware: Hardware, workload: Workload, devices_each: int
) -> dict[str, Any] | None:
    """The prediction with so many devices to a copy of the model; None where a copy does not fit."""
    reply_tokens = workload.new_tokens / workload.responses
    weights, kv_bytes = shape.parameters * hardware.bytes_per_value, shape.kv_cache_bytes(hardware.bytes_per_value)
    context = workload.longest + reply_tokens
    rows = min(
        hardware.rows,
        workload.responses,
        int((MEMORY * hardware.memory * devices_each - weights) // (context * kv_bytes)),
    )
    if rows < 1:
        return None
    flops, bandwidth = hardware.flops * devices_each * hardware.compute, hardware.bandwidth * devices_each * BANDWIDTH
    prompt_seconds = (
        workload.prompt_tokens * (2 * shape.in_layers + shape.attention_flops(workload.longest / 2)) / flops
    )
    mean_context = workload.longest + reply_tokens / 2
    step_seconds = max(
        (weights + rows * mean_context * kv_bytes) / bandwidth,
        rows * (2 * (shape.in_layers + shape.lm_head) + shape.attention_flops(mean_context)) / flops,
    )
    reply_seconds = workload.new_tokens / rows * step_seconds
    copies = hardware.count // devices_each
    return {
        "devices_each": devices_each,
        "copies": copies,
        "rows": rows,
        "hours": (prompt_seconds + reply_seconds) / copies / 3600,
        "share_of_prompts": prompt_seconds / (prompt_seconds + reply_seconds),
        "memory_gb": {"weights": weights / 1e9, "keys_and_values": rows * context * kv_bytes / 1e9},
    }


def disk(shape: ModelShape, workload: Workload, blocks: int = BLOCKS) -> dict[str, float]:
    """GB on the disk: replies; activations in fp32; sums, if every score occurs in every block; the most on the way."""
    layers, hidden = shape.num_hidden_layers, shape.hidden_size
    replies = 6 * workload.new_tokens / 1e9
    activations = workload.responses * 4 * layers * (hidden + 1) / 1e9
    cells = min(ALL * workload.roles * min(blocks, workload.questions), workload.responses) + ALL * workload.questions
    sums = layers * hidden * (8 * cells + 4 * min(2 * SAMPLE, workload.responses)) / 1e9
    waiting = min(activations, max(sums, 1.0))
    return {
        "replies": replies,
        "all": replies + activations,
        "sums": replies + sums,
        "most": replies + 2 * sums + waiting,
    }


def assumptions(hardware: Hardware, shape: ModelShape) -> list[str]:
    """What a prediction rests on, in sentences."""
    flops = f"{hardware.flops / 1e12:.3g} TFLOP/s in {'fp32' if hardware.bytes_per_value == 4 else 'bf16'}"
    return [
        f"{hardware.name}: {hardware.count} of {hardware.memory / 1e9:.0f} GB, {hardware.bandwidth / 1e9:.0f} GB/s and {flops} "
        f"each, of which {BANDWIDTH:.0%} and {hardware.compute:.0%} are assumed; at most {hardware.rows} replies in "
        f"{MEMORY:.0%} of the memory",
        f"{shape.parameters / 1e9:.1f}e9 parameters; a forward pass is 2 operations a parameter and token, and attention; "
        "reading is free",
        "every reply is as long as it may be; beginnings that neighbours share are computed once; no time for the judge",
        f"activations in fp32; sums in fp64 by {BLOCKS} blocks, as if all had every score, with a sample of {2 * SAMPLE}",
    ]


def lines(name: str, hardware: Hardware, workload: Workload, shape: ModelShape, reading: str = "reply") -> list[str]:
    """A prediction for people."""
    prediction, disk_gb = predict(shape, hardware, workload), disk(shape, workload)
    units = "prompts" if reading == "prompt" else "responses"
    size = f"{name} on {hardware.name}: {workload.responses:,} {units}, {workload.prompt_tokens:,} prompt tokens, "
    size_line = size + (f"at most {workload.new_tokens:,} new ones" if workload.new_tokens else "nothing generated")
    if prediction["hours"] is None:
        time_line = f"does not fit: {shape.parameters * hardware.bytes_per_value / 1e9:.0f} GB of weights"
    else:
        memory = prediction["memory_gb"]
        time_line = (
            f"about {duration(3600 * prediction['hours'])}, {prediction['share_of_prompts']:.0%} of it prompts; "
            f"{prediction['copies']} copies on {prediction['devices_each']} devices each, {prediction['rows']} replies at once"
            f"\nmemory of a copy: {memory['weights']:.3g} GB of weights, {memory['keys_and_values']:.3g} GB of keys and values"
        )
    disk_line = "disk: {all:,.3g} GB; with --keep sums {sums:,.3g} GB, at most {most:,.3g} GB on the way".format(
        **disk_gb
    )
    assumed_lines = (
        [f"assumed: {assumption}" for assumption in assumptions(hardware, shape)] if workload.new_tokens else []
    )
    return [size_line, time_line, disk_line, *assumed_lines]


def as_json(name: str, hardware: Hardware, workload: Workload, shape: ModelShape) -> dict[str, Any]:
    """A prediction for machines."""
    return {
        "model": name,
        # The JSON has always called a value's bytes "number".
        "on": {"number" if k == "bytes_per_value" else k: v for k, v in asdict(hardware).items()},
        **asdict(workload),
        **predict(shape, hardware, workload),
        "assumptions": assumptions(hardware, shape),
    }


def bytes_per_response(layers: int, hidden: int, new_tokens: int) -> int:
    """What a response takes on the disk: its activation and norms in fp32, and its text."""
    return 4 * layers * (hidden + 1) + 6 * new_tokens


def _timed(call: Any, seconds: float = 0.3) -> float:
    """Seconds that a call takes when nothing else is in its way: the shortest of some tenths of a second of calls."""
    best, ends = float("inf"), time.monotonic() + seconds
    while time.monotonic() < ends:
        began = time.monotonic()
        call()
        best = min(best, time.monotonic() - began)
    return best
