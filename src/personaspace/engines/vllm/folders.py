"""The folder of files that vLLM loads a model from, and what it says of a reply's end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from personaspace.engines.base import end_ids
from personaspace.errors import ModelError
from personaspace.files import fetching
from personaspace.model import loading


def folder_of(name: str) -> Path:
    """The folder that holds a model's files, fetched from the Hub where it must be, adapters merged. Raises `ModelError`."""
    location = loading.whole_folder(name)
    if Path(location).is_dir():
        return Path(location)
    from huggingface_hub import snapshot_download

    with fetching(f"cannot load the model {name!r}", ModelError):
        return Path(
            snapshot_download(location, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"])
        )


def end_ids_of(folder: Path, tokenizer: Any, config: Any) -> frozenset[int]:
    """A reply's stop tokens, from the generation settings, the configuration and the tokenizer."""
    settings: Mapping[str, Any] = {}
    if (folder / "generation_config.json").is_file():
        settings = json.loads((folder / "generation_config.json").read_text())
    configured = settings.get("eos_token_id", getattr(config, "eos_token_id", None))
    return end_ids(configured, tokenizer)
