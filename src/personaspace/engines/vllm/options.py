"""vLLM's own options as they stand on its command line, read as its engine's arguments. It imports nothing of vLLM."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from personaspace.errors import UsageError

ROUND = 128
"""A longest conversation is rounded up to that many tokens."""

BESIDE_A_JUDGE = 0.5
"""The share of a GPU's memory that vLLM takes where a judge is loaded beside it; by itself it takes nine tenths."""


def read_options(arguments: Sequence[str], known: Collection[str] | None = None) -> dict[str, Any]:
    """`--max-model-len=4096` as `max_model_len: 4096`; `--enforce-eager` as True, `--no-…` as False, `--a.b=1` as a part of
    `a`. known: the engine's arguments, where anything else is to be refused. Raises `UsageError`.

    >>> read_options(["--tensor-parallel-size=2", "--enforce-eager"])
    {'tensor_parallel_size': 2, 'enforce_eager': True}
    """
    options: dict[str, Any] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not name.startswith("--") or not name.strip("-"):
            raise UsageError(f"vllm={argument}: expected an option of vLLM's, as --x=y or --x")
        first, *deeper = name.removeprefix("--").replace("-", "_").split(".")
        value: Any = True
        if equals:
            try:
                value = json.loads(text)
            except ValueError:
                value = {"True": True, "False": False}.get(text, text)
        elif first.startswith("no_") and (known is None or first not in known):
            first, value = first.removeprefix("no_"), False
        if first == "trust_remote_code" and value:
            raise UsageError(f"vllm={argument}: code of a model's own is never run")
        if known is not None and first not in known:
            near = [n.replace("_", "-") for n in difflib.get_close_matches(first, known, 3)]
            hint = f"; did you mean --{', --'.join(near)}?" if near else ""
            raise UsageError(f"vllm={argument}: vLLM's engine has no such option{hint}")
        for part in reversed(deeper):
            value = {part: value}
        earlier = options.get(first)
        options[first] = {**earlier, **value} if isinstance(earlier, dict) and isinstance(value, dict) else value
    return options


def model_length(tokens: int, folder: Path) -> int:
    """How long vLLM lets a conversation become that takes so many tokens, rounded up, but no longer than the model takes."""
    rounded = -(-tokens // ROUND) * ROUND
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return rounded
    most = config.get("text_config", config).get("max_position_embeddings")
    return min(rounded, most) if isinstance(most, int) else rounded
