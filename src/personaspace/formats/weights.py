"""A model's weights with a direction of its space taken out, as a folder that `transformers` loads."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch

from personaspace.errors import UsageError
from personaspace.files import new_folder
from personaspace.model import loading
from personaspace.model.ablated import AblatedWeights, ablate_weights
from personaspace.space import PersonaSpace

ABOUT = "ablated.json"
"""The file beside the weights that says what was taken out, and of which model."""


def export_weights(
    space: PersonaSpace, direction: str, folder: str | Path, model: str | None = None, dtype: str | None = None
) -> AblatedWeights:
    """Writes the model that a space is of, without a direction of its: the axis, or a role, at the space's layer. folder: a new
    one, there whole or not at all; model: another one of the same shapes; dtype: as the model's files have it unless given.

    Raises `UsageError` where the folder is there already, `SpaceError`, `ModelError` (see `ablate_weights`), `RunError`
    where the folder can't be written.
    """
    target, name = Path(folder), model or str(space.meta["model"]["id"])
    if target.exists():
        raise UsageError(f"{target}: is there already; expected a new folder")
    vector = space.direction(direction)
    chosen = "auto" if dtype is None else loading.pick_dtype(dtype, torch.device("cpu"))
    network, tokenizer, _ = loading.load(name, torch.device("cpu"), chosen)  # type: ignore[arg-type]
    ablated = ablate_weights(network, vector)
    with new_folder(target) as new:
        network.save_pretrained(new)
        tokenizer.save_pretrained(new)
        about = {"model": name, "direction": direction, "layer": space.layer, **asdict(ablated)}
        (new / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
    return ablated
