"""Vectors of one's own, from whatever file they were kept in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from personaspace import json_text
from personaspace.errors import SpaceError
from personaspace.files import first_line
from personaspace.formats.gguf import read_control_vector
from personaspace.formats.tensor_files import load_tensor_file
from personaspace.space import PersonaSpace

NOT_READ = (
    ValueError,
    OSError,
    EOFError,
    TypeError,
    OverflowError,
    MemoryError,
    RecursionError,
    SyntaxError,
    TokenError,
)
"""What numpy raises for a file that is no array's: its header is read as Python's own notation is."""

SUFFIXES = (".safetensors", ".pt", ".npy", ".gguf")


def read_vectors(path: str | Path, layers: int, hidden: int) -> dict[str, Tensor]:
    """Vectors by name, each `[hidden]` or `[layers, hidden]`: of a safetensors file (its tensors by their names, or `vectors`
    with their names in its metadata, as `experiment traits` writes them), a `.pt` (a tensor, or a dict of some), a `.npy` or a
    control vector for llama.cpp (`.gguf`). A vector that stands alone is called as its file
    is. Raises `SpaceError` for anything else.

    >>> space = space.with_own(read_vectors("sycophancy.pt", layers=30, hidden=576))
    """
    file = Path(path)
    if file.suffix not in SUFFIXES:
        raise SpaceError(f"{file}: expected vectors in a file that ends in {', '.join(SUFFIXES)}")
    if not file.is_file():
        raise SpaceError(f"{file}: no such file; expected vectors")
    if file.suffix == ".safetensors":
        vectors = _safetensors(file)
    elif file.suffix == ".pt":
        vectors = _torch_file(file)
    elif file.suffix == ".npy":
        try:
            # Mapped, a file whose header says more than it holds is refused before anything is allocated.
            vectors = {file.stem: torch.from_numpy(np.array(np.load(file, mmap_mode="r", allow_pickle=False)))}
        except NOT_READ as e:
            reason = first_line(e)
            raise SpaceError(f"{file}: not a whole .npy file of numbers ({reason[:200]})") from None
    else:
        by_layer = read_control_vector(file)
        every = torch.zeros(layers, hidden)
        for layer, direction in by_layer.items():
            if layer >= layers or len(direction) != hidden:
                raise SpaceError(
                    f"{file}: direction.{layer} of {len(direction)} numbers; the space has layers 0 to {layers - 1} of {hidden}"
                )
            every[layer] = direction
        vectors = {file.stem: every}
    named: dict[str, Tensor] = {}
    for name, vector in vectors.items():
        if not vector.is_floating_point() or vector.shape not in ((hidden,), (1, hidden), (layers, hidden)):
            raise SpaceError(
                f"{file}: {name} has the shape {list(vector.shape)} ({str(vector.dtype).removeprefix('torch.')}); expected "
                f"real numbers, [{hidden}] or [{layers}, {hidden}]"
            )
        named[name] = vector[0] if vector.shape == (1, hidden) and layers != 1 else vector
    return named


def with_vectors(space: PersonaSpace, files: Sequence[str | Path]) -> tuple[PersonaSpace, list[str]]:
    """The space with vectors of one's own from files, and what they are called in it. Raises `SpaceError`.

    >>> space, names = with_vectors(space, ["sycophancy.pt"])
    """
    names = []
    for file in files:
        vectors = read_vectors(file, *space.tensors["axis"].shape)
        space = space.with_own(vectors)
        names += [f"own:{name}" for name in vectors]
    return space, names


def directions_of(space: PersonaSpace, called: str) -> tuple[PersonaSpace, list[str]]:
    """Directions by what a user calls them, separated by commas: names of the space (`axis`, `ghost`, `trait:formal`), or
    files of vectors, all of which become the space's own. The space that knows them, and their names. Raises `SpaceError`.

    >>> space, names = directions_of(space, "ghost,sycophancy.pt")
    >>> names
    ['role:ghost', 'own:sycophancy']
    """
    names: list[str] = []
    for part in filter(None, (part.strip() for part in called.split(","))):
        if Path(part).suffix in SUFFIXES:
            space, added = with_vectors(space, [part])
            names += added
        else:
            names.append(part)
    if not names:
        raise SpaceError(
            f"directions {called!r}: expected names of the space, or files of vectors, separated by commas"
        )
    return space, list(dict.fromkeys(direction.name for direction in space.along(names)))


def _safetensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            header = (opened.metadata() or {}).get("personaspace", "null")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
        about = json_text.parse(header)
    except (OSError, SafetensorError, ValueError) as e:
        raise SpaceError(f"{file}: not a whole safetensors file ({e})") from None
    names = about.get("traits") if isinstance(about, dict) else None
    if isinstance(names, list) and set(tensors) == {"vectors"} and tensors["vectors"].shape[:1] == (len(names),):
        return {str(name): vector for name, vector in zip(names, tensors["vectors"], strict=True)}
    return {file.stem if len(tensors) == 1 else name: vector for name, vector in tensors.items()}


def _torch_file(file: Path) -> dict[str, Tensor]:
    loaded = load_tensor_file(file)
    if isinstance(loaded, Tensor):
        return {file.stem: loaded}
    if isinstance(loaded, dict):
        if isinstance(loaded.get("vector"), Tensor):
            return {file.stem: loaded["vector"]}
        if tensors := {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}:
            return tensors
    raise SpaceError(f"{file}: expected a tensor, or a dict of some, found {type(loaded).__name__}")
