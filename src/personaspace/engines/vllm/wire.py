"""What was read, as one safetensors blob, and back: the form in which it leaves a worker. Nothing is ever unpickled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from safetensors.torch import load, save
from torch import Tensor

from personaspace.engines.vllm.readout import ReadSums


@dataclass(frozen=True)
class ReadMeans:
    """A request's means. layers: which; activation: `[parts, layers, hidden]`, fp32; norms: `[parts, layers]`; tokens,
    touched: `[parts]`, how many were read, and how many of them an intervention changed. Zeros where no token was read.
    each: where asked for, every token's projection, and 1 where an intervention changed it, `[2, tokens]`, part after part."""

    layers: tuple[int, ...]
    activation: Tensor
    norms: Tensor
    tokens: Tensor
    touched: Tensor
    each: Tensor | None = None


def pack(results: Mapping[str, ReadSums | None]) -> bytes:
    """Results by key → a blob; those that are None are left out."""
    tensors: dict[str, Tensor] = {}
    for key, result in results.items():
        if result is None:
            continue
        count = torch.stack([part.count for part in result.sums])
        divisor = count.clamp(min=1)
        tensors[f"{key}\n/activation"] = torch.stack([part.stream for part in result.sums]) / divisor[:, None, None]
        tensors[f"{key}\n/norms"] = torch.stack([part.norm for part in result.sums]) / divisor[:, None]
        tensors[f"{key}\n/tokens"] = count.long()
        tensors[f"{key}\n/touched"] = torch.stack([part.touched for part in result.sums]).long()
        tensors[f"{key}\n/layers"] = torch.tensor(result.layers, dtype=torch.long)
        if result.token_values is not None:
            tensors[f"{key}\n/each"] = result.token_values.contiguous()
    return bytes(save(tensors))


def gathered(blobs: Iterable[bytes]) -> dict[str, ReadMeans]:
    """Readings by key, from what each worker answered: one of those that hold the same has them."""
    return unpack(next(blob for blob in blobs if blob))


def unpack(blob: bytes) -> dict[str, ReadMeans]:
    """A blob → readings by key."""
    tensors = load(blob)
    readings = {}
    for key in dict.fromkeys(name.rpartition("\n/")[0] for name in tensors):
        activation, norms, tokens, touched = (
            tensors[f"{key}\n/{name}"] for name in ("activation", "norms", "tokens", "touched")
        )
        layers = tuple(tensors[f"{key}\n/layers"].tolist())
        readings[key] = ReadMeans(layers, activation, norms, tokens, touched, tensors.get(f"{key}\n/each"))
    return readings
