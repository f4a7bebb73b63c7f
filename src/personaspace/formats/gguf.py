"""Control vectors for llama.cpp: writes an axis, a role or a trait as a GGUF file, and reads one back.

llama.cpp adds the tensor `direction.N` to the residual stream after decoder layer N, counted from 0 as ours are: our layer l
is `direction.l`. (Its loader stores `direction.N` in slot N − 1, and its adapter takes slot N − 1 for layer N.) It has no
place for layer 0 and refuses a file with `direction.0`, so layer 0 is left out. Every direction in the file is added at its
own layer, and what is added stays in the stream: `--control-vector-layer-range L L` keeps it to one layer.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from torch import Tensor

from personaspace.errors import SpaceError, UsageError
from personaspace.files import first_line, write_whole
from personaspace.model.gguf_header import check_header
from personaspace.space import PersonaSpace
from personaspace.space.directions import AXIS, OWN, TRAIT

ARCHITECTURE = "controlvector"

# What GGUFReader has been seen to raise on files that are cut or changed.
_BROKEN = (OSError, ValueError, LookupError, TypeError, OverflowError, AttributeError, MemoryError)


def write_control_vector(path: str | Path, space: PersonaSpace, direction: str = "axis", scale: float = 1.0) -> None:
    """Writes the axis, a role less the mean role, a trait or a vector of one's own, times the scale, as differences in their
    own length: at strength 1 a layer's is the whole way from the mean role to the default, or to the role, or from a trait
    suppressed to it brought out. Whole or not at all.

    Raises `SpaceError` for a direction that the space lacks and where no layer above 0 is held, `UsageError` for the scale.
    """
    if not math.isfinite(scale):
        raise UsageError(f"scale {scale}: expected a finite number")
    vectors = {layer: scale * v for layer, v in _differences(space, direction).items() if layer > 0}
    if not vectors:
        raise SpaceError("llama.cpp has no place for layer 0, and this space holds no vector above it")
    model = space.meta["model"]
    with TemporaryDirectory() as folder:
        file = Path(folder, "vector.gguf")
        writer = GGUFWriter(file, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", model.get("architecture") or model["id"])
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(vectors))
        for layer, vector in vectors.items():
            writer.add_tensor(f"direction.{layer}", vector.float().contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        write_whole(Path(path), file.read_bytes())


def read_control_vector(path: str | Path) -> dict[int, Tensor]:
    """A control vector's directions `[hidden]` by layer, counted from 0. Raises `SpaceError` for anything that llama.cpp
    would refuse."""
    if not Path(path).is_file():
        raise SpaceError(f"{path}: no such file; expected a GGUF control vector")
    try:
        check_header(Path(path))
        reader = GGUFReader(path)
        field = reader.get_field("general.architecture")
        architecture = field.contents() if field else None
        tensors = [(t.name, t.tensor_type, np.array(t.data)) for t in reader.tensors]
    except _BROKEN as e:
        raise SpaceError(f"{path}: not a whole GGUF file ({first_line(e) if str(e) else 'cut off'})") from None
    if architecture != ARCHITECTURE or not tensors:
        raise SpaceError(f"{path}: found a GGUF file of {architecture!r}, expected {ARCHITECTURE!r} with directions")
    directions: dict[int, Tensor] = {}
    for name, kind, data in tensors:
        number = re.fullmatch(r"direction\.([1-9]\d*)", name)
        if not number or kind != GGMLQuantizationType.F32 or data.shape != tensors[0][2].shape or data.ndim != 1:
            raise SpaceError(
                f"{path}: found {name!r} ({kind.name}, {list(data.shape)}), expected direction.N with N from 1, "
                "fp32, one dimension, all as long"
            )
        directions[int(number[1])] = torch.from_numpy(data)
    return directions


def _differences(space: PersonaSpace, direction: str) -> dict[int, Tensor]:
    """Difference vectors `[hidden]` by layer, at every layer at which the space holds them."""
    kind, name = space.named(direction)
    axis = space.tensors["axis"]
    if kind == AXIS:
        return dict(enumerate(axis))
    if kind == OWN:
        return {space.layer: space.tensors["own_vectors"][space.own.index(name)]}
    layers = space.meta.get("role_layers") or range(len(axis))
    if kind == TRAIT:
        return {layer: space.trait_vectors_at(layer)[space.traits.index(name)] for layer in layers}
    return {layer: space.centred(layer)[0][space.roles.index(name)] for layer in layers}
