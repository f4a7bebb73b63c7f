"""Loads a `.pt` file that anybody may have written: tensors and plain values only, and nothing larger than the file itself.

A few bytes of pickle can name a tensor of 400 TB (one number, seen 10^14 times), numbers that are not in the file, or a list
whose copies double at every level. So the file is loaded twice: at first without its numbers, which shows what it would become.
"""

from __future__ import annotations

import math
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from personaspace.errors import SpaceError

DEEPEST = 20
"""Levels of dicts and lists."""

MOST = 1_000_000
"""Values in all, each counted wherever it stands; 64 characters of a text count as one."""

# What torch.load has been seen to raise on files that are cut or changed.
_BROKEN = (
    EOFError,
    RuntimeError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    MemoryError,
    OverflowError,
    struct.error,
    zipfile.BadZipFile,
)


def load_tensor_file(path: Path) -> Any:
    """What a `.pt` file holds, on the CPU. Nothing that its pickle asks for is run. Raises `SpaceError` for what is broken,
    asks to be run, is no dense tensor of numbers in the file, or nests and repeats beyond all use.

    >>> load_tensor_file(Path("vectors/ghost.pt"))["vector"].shape
    torch.Size([64, 5120])
    """
    try:
        size = path.stat().st_size
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > size:
                raise SpaceError(
                    f"{path}: refused, it unpacks to {unpacked:,} bytes from {size:,}; expected a file of torch.save"
                )
        for tensor in _tensors(path, _load(path, "meta")):
            _check_size(path, tensor, size)
        loaded = _load(path, "cpu")
    except pickle.UnpicklingError as e:
        wanted_global = re.search(r"GLOBAL ([\w.]+)", str(e))
        reason = f"asks to run {wanted_global[1]}" if wanted_global else "is broken, or asks for something else"
        raise SpaceError(f"{path}: refused, its pickle {reason}; expected tensors and plain values only") from None
    except OSError as e:
        raise SpaceError(f"{path}: cannot be read: {e.strerror or e}") from None
    except _BROKEN:
        raise SpaceError(f"{path}: not a whole .pt file of tensors; fetch it again") from None
    for tensor in _tensors(path, loaded):
        if tensor.device.type != "cpu":
            raise SpaceError(
                f"{path}: refused, it holds a {tensor.device.type} tensor, which has no numbers in the file"
            )
    return loaded


def _load(path: Path, device: str) -> Any:
    with warnings.catch_warnings(action="ignore"):
        return torch.load(path, map_location=device, weights_only=True)


def _check_size(path: Path, tensor: Tensor, size: int) -> None:
    """Raises `SpaceError` for a tensor whose numbers are not all in a file of so many bytes. It is on `meta`."""
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized:
        raise SpaceError(f"{path}: refused, it holds a tensor that is sparse, nested or quantised; expected dense ones")
    needed, stored = math.prod(tensor.shape) * tensor.element_size(), tensor.untyped_storage().nbytes()
    if needed > stored or stored > size:
        raise SpaceError(
            f"{path}: refused, it holds a tensor of shape {list(tensor.shape)}, {needed:,} bytes, in a file of {size:,}; "
            "expected tensors with all of their numbers in the file (.clone() before torch.save)"
        )


def _tensors(path: Path, loaded: Any) -> Iterator[Tensor]:
    """The tensors in what was loaded. Raises `SpaceError` where it nests or repeats too much to be walked."""
    level, count = [loaded], 0
    for _ in range(DEEPEST):
        level_below: list[Any] = []
        for value in level:
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, str):
                count += len(value) // 64
            elif isinstance(value, (dict, list, tuple, set, frozenset)):
                if isinstance(value, dict) and not all(isinstance(key, (str, int)) for key in value):
                    raise SpaceError(f"{path}: refused, a dict in it has keys that are neither texts nor numbers")
                count += len(value)
                if count <= MOST:
                    level_below += value.values() if isinstance(value, dict) else value
            if count > MOST:
                raise SpaceError(
                    f"{path}: refused, it holds more than {MOST:,} values; expected vectors and what they are of"
                )
        if not level_below:
            return
        level = level_below
    raise SpaceError(f"{path}: refused, it nests deeper than {DEEPEST} levels; expected vectors and what they are of")
