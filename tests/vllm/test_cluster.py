"""A map whose Ray workers each run vLLM."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

from personaspace.api import options_of
from personaspace.catalog import load_catalog
from personaspace.engines import load_engine
from personaspace.judges import RulesJudge
from personaspace.mapping.mapper import Mapper
from personaspace.runs import Run
from personaspace.space import PersonaSpace

ROLES = "ghost,judge,pirate,teacher"
VLLM = {
    "dtype": "fp32",
    "enforce_eager": True,
    "max_model_len": 512,
    "rows": 8,
    "kv_cache_memory_bytes": 64 << 20,
}
OPTIONS = {
    "design": {"per_role": 8, "default_responses": 16},
    "sampling": {"max_new_tokens": 12},
}


def mapped(engine: Any, folder: Path) -> PersonaSpace:
    options = options_of(**OPTIONS, blocks=4)
    return Mapper(engine, load_catalog().select(ROLES, 8), folder, options).map(RulesJudge())


def texts(folder: Path) -> list[tuple[Any, ...]]:
    run = Run(folder)
    rows = [r for s in run.done() for r in run.read(s).to_pylist()]
    return sorted((r["role"], r["index"], tuple(r["token_ids"])) for r in rows)


def kill_one(engine: Any, folder: Path, killed: list[int]) -> None:
    """Kills a worker that has work in hand, once a shard is there."""
    for _ in range(600):
        busy = [h for h in engine.hands if h.where and h.tasks]
        if busy and list(folder.glob("responses/part-*")):
            killed.append(busy[0].where[1])
            os.kill(killed[0], signal.SIGKILL)
            return
        time.sleep(0.05)


def test_two_workers_on_vllm_of_which_one_is_killed_give_the_space_of_one_engine(
    folders: Callable[[str], str], opened: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr("personaspace.mapping.stages.SHARD", 8)
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    alone = mapped(opened(folders("llama"), **VLLM), tmp_path / "alone")
    opened(folders("llama"), max_model_len=64).close()
    gc.collect()
    many = load_engine("ray", folders("llama"), workers=2, worker_engine="vllm", **VLLM)
    killed: list[int] = []
    killer = Thread(target=kill_one, args=(many, tmp_path / "spread", killed), daemon=True)
    try:
        killer.start()
        spread = mapped(many, tmp_path / "spread")
    finally:
        many.close()
        ray.shutdown()
    killer.join()
    assert killed
    assert texts(tmp_path / "spread") == texts(tmp_path / "alone")
    assert len(texts(tmp_path / "spread")) == 4 * 8 + 16
    for name in ("axis", "role_vectors", "default_vector"):
        cosine = torch.cosine_similarity(alone.tensors[name], spread.tensors[name], dim=-1)
        assert cosine.min() >= 1 - 1e-5
