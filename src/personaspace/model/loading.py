"""Turns a name into a loaded model and tokenizer on a device: what every engine begins with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from personaspace.errors import ModelError, UsageError
from personaspace.files import first_line
from personaspace.model.adapters import merged
from personaspace.model.dtypes import torch_name
from personaspace.model.gguf_files import kept_folder
from personaspace.model.sources import find, resolve, with_adapters
from personaspace.model.weights import in_one_line, load_tokenizer, quantization_of, read_weights

__all__ = [
    "AUTO",
    "Placement",
    "find",
    "fingerprint",
    "load",
    "load_tokenizer",
    "pick_device",
    "pick_dtype",
    "resolve",
    "whole_folder",
    "with_adapters",
]

AUTO = "auto"

Placement = torch.device | str | Mapping[str, Any]
"""One device; `auto`, the layers over all that there are; or a map from modules' names to devices, as accelerate takes it."""


def pick_device(device: str | Mapping[str, Any] | None) -> Placement:
    """The device asked for, else a GPU where there is one, else the CPU. Raises `UsageError` for one that is not there."""
    if device is None:
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    if device == AUTO or not isinstance(device, str):
        return device
    try:
        where = torch.device(device)
        torch.empty(1, device=where)
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        raise UsageError(
            f"device={device}: not a device of this machine's PyTorch, as cpu is ({first_line(e)})"
        ) from None
    return where


def pick_dtype(dtype: str | None, device: Placement) -> torch.dtype:
    """The dtype asked for, else fp32 on a CPU and bf16 on a GPU."""
    if dtype is None:
        device = device if isinstance(device, torch.device) else torch.device(str(pick_device(None)))
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    chosen: torch.dtype = getattr(torch, torch_name(dtype))
    return chosen


def load(name: str, device: Placement, dtype: torch.dtype) -> tuple[Any, Any, str]:
    """Model, tokenizer and where they came from; adapters are merged into the weights. Raises `ModelError` with the nearest
    known names, `UsageError`."""
    source = find(name)
    tokenizer = load_tokenizer(source.tokenizer, name)
    if not tokenizer.is_fast:
        raise ModelError(
            f"{name}: its tokenizer gives no character offsets; a fast tokenizer (tokenizer.json) is needed"
        )
    with in_one_line(name):
        quantized = quantization_of(source.where) is not None
    if len(source.adapters) > 1 and quantized:
        raise UsageError(
            f"{name}: several adapters on quantised weights cannot be added up; expected one, or whole weights"
        )
    # What is packed cannot be moved, and what is merged afterwards is merged on the CPU, so that it is the same everywhere.
    placed_by_reader = (quantized or not isinstance(device, torch.device)) and (quantized or not source.adapters)
    options: dict[str, Any] = {"device_map": _device_map(device)} if placed_by_reader else {}
    model = read_weights(source.where, name, dtype=dtype, **options)
    for adapter in source.adapters:
        model = merged(model, adapter, name)
    if not placed_by_reader:
        model = model.to(device) if isinstance(device, torch.device) else _dispatched(model, device)
    return model.eval().requires_grad_(False), tokenizer, source.where


def whole_folder(name: str) -> str:
    """The folder or Hub id of the weights that result, for who reads files and lays on no adapters: with them, a merged copy
    that is kept in the cache. Raises `ModelError`."""
    source = find(name)
    if not source.adapters:
        return source.where
    # Those of the base as well: one that was written anew is another model under the same name.
    folders = [*source.adapters, *(Path(p) for p in sorted({source.where, source.tokenizer}) if Path(p).is_dir())]
    files = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for f in folders for p in sorted(f.iterdir())]

    def write(folder: Path) -> None:
        with in_one_line(name):
            if quantization_of(source.where):
                raise UsageError(f"{name}: an adapter cannot be merged into quantised weights; expected whole ones")
            model = read_weights(source.where, name, dtype="auto")
            for adapter in source.adapters:
                model = merged(model, adapter, name)
            model.save_pretrained(folder)
            load_tokenizer(source.tokenizer, name).save_pretrained(folder)

    return str(kept_folder(f"{Path(source.adapters[-1]).name}-merged", [source.where, files], write))


def context_of(config: Any) -> int | None:
    """How many tokens a text may have. Of a model that turns to other rotary frequencies in longer texts (longrope), no more
    than before it does: rows beside each other, and a prompt in pieces, would have keys of both kinds."""
    longest: int | None = getattr(config, "max_position_embeddings", None)
    rotary = getattr(config, "rope_parameters", None) or {}
    of_kinds = rotary.values() if all(isinstance(kind, dict) for kind in rotary.values()) else [rotary]
    for kind in of_kinds:
        first = kind.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        if kind.get("rope_type") == "longrope" and first:
            longest = min(longest or first, int(first))
    return longest


def fingerprint(model: torch.nn.Module) -> str:
    """A hash of every parameter's name, shape, and 64 values spread over it: told apart from a fine-tune, in
    milliseconds."""
    from accelerate.utils import align_module_device

    digest = hashlib.sha256()
    tensors: dict[str, torch.Tensor] = dict(model.named_parameters())
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    if getattr(model, "hf_quantizer", None) is not None:
        # Packed weights are buffers in some of these layers.
        tensors |= {name: b for name, b in model.named_buffers() if "rotary" not in name}
    for name, p in sorted(tensors.items()):
        if p.device.type == "meta" and name in tied:
            continue  # a second name of a tensor that is hashed under its first
        owner, _, leaf = name.rpartition(".")
        with align_module_device(model.get_submodule(owner)):
            flat = getattr(model.get_submodule(owner), leaf).detach().reshape(-1)
            sample = flat[:: max(1, flat.numel() // 64)][:64].float().cpu().numpy()
        digest.update(f"{name}{tuple(p.shape)}".encode() + sample.tobytes())
    return digest.hexdigest()[:16]


def _device_map(device: Placement) -> Any:
    return {"": device} if isinstance(device, torch.device) else device if device == AUTO else dict(device)  # type: ignore[arg-type]


def _dispatched(model: Any, device: Placement) -> Any:
    """A model in memory with its layers laid over devices, as `from_pretrained` would have laid them."""
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    device_map = device
    if device == AUTO:
        options = {"no_split_module_classes": sorted(model._no_split_modules or ()), "dtype": model.dtype}
        device_map = infer_auto_device_map(model, max_memory=get_balanced_memory(model, **options), **options)
    # What goes to the disk lies there for as long as the model does.
    model.offloaded = TemporaryDirectory(prefix="personaspace-")
    placement: dict[str, Any] = dict(device_map)  # type: ignore[arg-type]
    return dispatch_model(
        model, placement, offload_dir=model.offloaded.name, skip_keys=model._skip_keys_device_placement
    )
