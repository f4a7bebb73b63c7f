"""A space's file: what it holds, and how it is read and written; it knows nothing of what the tensors mean."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from personaspace import json_text
from personaspace.errors import SpaceError
from personaspace.files import first_line
from personaspace.space import schema
from personaspace.space.readings import READINGS

FORMAT, IN_HALVES = 1, 2
"""A file's format; the second is a compact space's, whose role vectors are in half precision."""

DIGEST = "sha256"

BUNDLED = Path(__file__).parent.parent / "data" / "smollm2.safetensors"

ONE_LAYER = ("role_vectors", "trait_vectors", "components", "variance")
"""What a compact space leaves out, or has at its own layer alone."""

OF_ROLES = ("counts", "role_reliability", "role_interval", "cosine_error", "cosine_corrected")
SPREAD = ("quantiles_default", "quantiles_roles", "default_moments", "reply_mean", "reply_factor", "reply_rest")
"""What a compact space leaves out of its other reading: what has roles in it, and how responses lie on that one's axis."""

REPLIES_KEPT, REPLIES_COMPACT = 256, 48
"""Of how the default's replies spread: the most directions that a space keeps, and that a compact one does."""

HALVES = 30_000.0
"""In half precision role vectors are stored so that their largest number is that: models' own numbers may not fit."""


def compact(names: Mapping[str, Tensor]) -> list[str]:
    """Which of a space's tensors a compact one keeps as they are."""
    unchanged = []
    for name in names:
        reading, dot, plain = name.rpartition(".")
        if plain not in ONE_LAYER and not (dot and reading in READINGS and plain in (*OF_ROLES, *SPREAD)):
            unchanged.append(name)
    return unchanged


def fewer(factor: Tensor, rest: Tensor, most: int = REPLIES_COMPACT) -> dict[str, Tensor]:
    """`reply_factor [k, hidden]` (each row a direction times its standard deviation, greatest first) and `reply_rest` (the
    variance in any direction that it does not hold), with at most so many rows."""
    kept_rows, dropped = factor[:most], factor[most:]
    outside = max(factor.shape[1] - len(kept_rows), 1)
    variance = float(rest) * max(factor.shape[1] - len(factor), 0) + float(dropped.double().square().sum())
    return {"reply_factor": kept_rows.clone(), "reply_rest": torch.tensor([variance / outside])}


def written(meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """The file's bytes. A compact space's role vectors are in half precision, in units of `role_unit`."""
    stored, meta = {name: t.contiguous() for name, t in tensors.items()}, dict(meta)
    if "role_layers" in meta:
        meta["format"] = IN_HALVES
        meta["role_unit"] = max(float(stored["role_vectors"].abs().max()), 1e-30) / HALVES
        stored["role_vectors"] = (stored["role_vectors"] / meta["role_unit"]).half()
    # One entry of metadata: of several, safetensors writes the order anew each time, and one space must be the same bytes.
    data: bytes = save(stored, {"personaspace": json.dumps({**meta, DIGEST: digest_of(meta, stored)})})
    return data


def digest_of(meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of what a file holds: its metadata, and of each tensor, in order of names, name, kind, shape and bytes."""
    digest = hashlib.sha256(json.dumps(meta).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and tensors of a file. Raises `SpaceError` for anything that is not a space's."""
    try:
        with safe_open(path, framework="pt") as f:
            header = (f.metadata() or {}).get("personaspace", "null")
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError, ValueError) as e:
        raise SpaceError(
            f"{path}: not a whole safetensors file ({first_line(e)}); map the model again, or fetch the file again"
        ) from None
    try:
        meta = json_text.parse(header)
    except ValueError as e:
        raise SpaceError(f"{path}: its metadata is {e}; map the model again, or fetch the file again") from None
    if not isinstance(meta, dict) or "format" not in meta:
        raise SpaceError(f"{path}: a safetensors file, but not a persona space: no 'personaspace' in its metadata")
    if meta["format"] not in (FORMAT, IN_HALVES):
        raise SpaceError(
            f"{path}: found format {json_text.shown(meta['format'])}, expected {FORMAT} or {IN_HALVES}; written by another "
            "version?"
        )
    # A space of an earlier version has no digest.
    if DIGEST in meta and meta.pop(DIGEST) != digest_of(meta, tensors):
        raise SpaceError(f"{path}: found other content than was written; map the model again, or fetch the file again")
    if problem := schema.wrong(meta, tensors):
        raise SpaceError(f"{path}: {problem}; map the model again, or fetch the file again")
    if meta["format"] == IN_HALVES:
        tensors["role_vectors"] = tensors["role_vectors"].float() * meta.pop("role_unit", 1.0)
    return meta, tensors
