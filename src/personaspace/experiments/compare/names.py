"""Which of what is to be compared is a model; it loads nothing."""

from __future__ import annotations

from pathlib import Path

from personaspace.model.sources import ADAPTER


def is_model(source: str | Path) -> bool:
    """Whether a name is a model's and not a space's; `smollm2` is the space that comes with the package."""
    name, path = str(source), Path(source).expanduser()
    if path.is_dir():
        of_a_run = any((path / file).is_file() for file in ("run.json", "space.safetensors"))
        of_a_model = any((path / file).is_file() for file in ("config.json", ADAPTER)) or any(path.glob("*.gguf"))
        return of_a_model and not of_a_run
    if path.exists():
        return path.suffix == ".gguf"
    return name != "smollm2" and not name.startswith("hf://") and path.suffix != ".safetensors"
