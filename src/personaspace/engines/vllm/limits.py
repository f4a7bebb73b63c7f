"""What a worker of vLLM has places for, from the environment, and its model's shape. It imports nothing of vLLM."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from personaspace.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """How much can be in flight at once: clamps a layer, and directions a layer; they are sizes in the compiled pass.
    project: the layer at which tokens can be projected, where there is one."""

    clamps: int = 1
    directions: int = 16
    project: int | None = None

    @classmethod
    def from_environment(cls) -> Limits:
        """PERSONASPACE_VLLM_MOVES, _DIRECTIONS and _PROJECT. Raises `UsageError`."""
        clamps, directions = _setting("MOVES", 1), _setting("DIRECTIONS", 1)
        return cls(clamps or cls.clamps, directions or cls.directions, _setting("PROJECT", 0))


def _setting(name: str, least: int) -> int | None:
    text = os.environ.get(f"PERSONASPACE_VLLM_{name}")
    if text is not None and (not text.isdigit() or int(text) < least):
        raise UsageError(f"PERSONASPACE_VLLM_{name}={text}: expected a number from {least} on")
    return None if text is None else int(text)


@dataclass(frozen=True)
class VllmModelShape:
    """A model's layers and hidden size, as the configuration says them."""

    layers: int
    hidden: int

    @classmethod
    def of(cls, vllm_config: Any) -> VllmModelShape:
        config = vllm_config.model_config.hf_text_config
        return cls(int(config.num_hidden_layers), int(vllm_config.model_config.get_hidden_size()))
