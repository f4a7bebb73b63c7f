"""A made-up model whose activations are as large as a real one's, and the memory that a map of it takes at its peak."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

import personaspace as ps
import personaspace.mapping.stages
from personaspace.engines import Response
from planted import PlantedEngine

LAYERS, HIDDEN = 12, 2048
RESPONSE = LAYERS * HIDDEN * 4
"""Bytes of a response's activations."""


class WideEngine(PlantedEngine):
    """Reads activations `[12, 2048]` of noise."""

    def __init__(self) -> None:
        super().__init__(lambda messages, rng: 0.0)
        self.info = replace(self.info, layers=LAYERS, hidden=HIDDEN)

    def respond(self, prompts, sampling, *, read=None, **more) -> Iterator[Response]:
        for k, prompt in enumerate(prompts):
            noise = torch.randn(len(read), HIDDEN, generator=torch.Generator().manual_seed(k))
            norms = torch.linalg.vector_norm(noise, dim=-1)
            yield Response(prompt, "It is so.", tuple(range(8)), "stop", noise, norms)


def map_and_measure(folder: str, catalog: str, per_role: int) -> None:
    """Maps with so many replies a role and 120 or more of the default; writes the bytes it took at most beside the folder."""
    torch.set_num_threads(1)
    personaspace.mapping.stages.SHARD = 64
    ps.map(
        WideEngine(),
        folder,
        catalog=catalog,
        read="reply",
        per_role=per_role,
        default_responses=max(120, per_role),
        judge="none",
        layer=6,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    Path(f"{folder}.peak").write_text(str(peak))
