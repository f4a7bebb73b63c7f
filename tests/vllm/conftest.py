"""Opens models in vLLM. These tests have an environment of their own: `make test-vllm`."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tiny import save_model

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # one process: its engine can be looked at, and it starts sooner
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    made: dict[str, str] = {}

    def folder(family: str) -> str:
        if family not in made:
            made[family] = save_model(family, tmp_path_factory.mktemp(family))
        return made[family]

    return folder


def open_engine(folder: str, **options: Any) -> Any:
    from personaspace.engines.vllm.engine import VllmEngine

    defaults = {
        "dtype": "fp32",
        "enforce_eager": True,
        "max_model_len": 256,
        "max_num_seqs": 8,
        "kv_cache_memory_bytes": 32 << 20,
    }
    return VllmEngine.load(folder, **{**defaults, **options})


@pytest.fixture(scope="module")
def opened() -> Iterator[Callable[..., Any]]:
    """Opens engines, one at a time; the last one is closed."""
    last: list[Any] = []

    def open_one(folder: str, **options: Any) -> Any:
        close()
        last.append(open_engine(folder, **options))
        return last[0]

    def close() -> None:
        if last:
            last.pop().close()
            gc.collect()

    yield open_one
    close()
