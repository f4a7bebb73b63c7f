"""A fingerprint of a model's weights from its files, equal to what `loading.fingerprint` says of the loaded model: vLLM keeps
the weights fused and under other names. Reads the disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from personaspace.errors import ModelError
from personaspace.model.dtypes import DTYPES

STORED_DTYPES = {names.safetensors: getattr(torch, names.torch) for names in DTYPES.values()}
SAMPLES = 64


def of_config(vllm_config: Any, folder: Path) -> str:
    """The fingerprint of what vLLM loaded from a folder. Raises `ModelError`."""
    config = vllm_config.model_config
    if vllm_config.load_config.load_format == "dummy":
        return "random"
    return fingerprint(folder, config.dtype, bool(config.hf_config.tie_word_embeddings))


def fingerprint(folder: Path, dtype: torch.dtype, tied: bool) -> str:
    """Of a folder of safetensors files, as loaded in `dtype`; tied: the output's weights are the input's. Raises
    `ModelError`. A few numbers of each tensor are read, whatever its size."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder}: no safetensors files, whose weights to know the model by")
    samples: dict[str, tuple[tuple[int, ...], torch.Tensor]] = {}
    for file in files:
        with file.open("rb") as f:
            size = int.from_bytes(f.read(8), "little")
            header = json.loads(f.read(size))
        data = np.memmap(file, dtype=np.uint8, mode="r", offset=8 + size)
        for name, entry in header.items():
            if name == "__metadata__" or entry["dtype"] not in STORED_DTYPES or (tied and name == "lm_head.weight"):
                continue
            begin, end = entry["data_offsets"]
            samples[name] = tuple(entry["shape"]), _sample(data[begin:end], STORED_DTYPES[entry["dtype"]])
    digest = hashlib.sha256()
    for name, (shape, sample) in sorted(samples.items()):
        digest.update(f"{name}{shape}".encode() + sample.to(dtype).float().numpy().tobytes())
    return digest.hexdigest()[:16]


def _sample(raw: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """Evenly spread numbers of a tensor's bytes."""
    wide = raw.reshape(-1, dtype.itemsize)
    few = np.ascontiguousarray(wide[:: max(1, len(wide) // SAMPLES)][:SAMPLES])
    return torch.frombuffer(bytearray(few.tobytes()), dtype=dtype)
