"""Work that is killed at random instants, and what it leaves, set beside what it leaves where nobody disturbs it.

Each piece of work is one call that goes on from what an earlier one left; processes are forked from a server that has
imported everything, so that kills meet the work and not its imports, and a thousand of them take minutes.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

# Most of these are for the server alone: what work would import at its start, seconds of it in each process.
import pandas  # noqa: F401
import pyarrow.parquet as pq
import torch
import transformers.models.llama.modeling_llama  # noqa: F401

import personaspace as ps
import personaspace.experiments.kit.trials
import personaspace.experiments.susceptibility.page
import personaspace.experiments.susceptibility.run
import personaspace.judges.score
import personaspace.mapping.stages
import personaspace.report.map
from conftest import make_model, make_tokenizer
from forked import finish, forked
from personaspace.catalog import load_catalog
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.judges.local import LocalJudge
from personaspace.space import PersonaSpace

MAPPED = {"prompts_per_role": 12, "default_prompts": 40, "per_role": 8, "default_responses": 40, "max_new_tokens": 6}
ASKED = {"roles": 2, "probes": 2, "alphas": (-0.2, 0.0, 0.2), "controls": 1, "max_new_tokens": 6}


def engine() -> TransformersEngine:
    return TransformersEngine(make_model("llama"), make_tokenizer(), id="tiny", rows=16)


def map_with(options: dict[str, Any], folder: Path, catalog: Path) -> None:
    ps.map(engine(), folder, catalog=catalog, **options)


map_both = partial(map_with, MAPPED)
map_replies = partial(map_with, {"read": "reply", "per_role": 8, "default_responses": 40, "max_new_tokens": 6})


def calibrate(folder: Path, catalog: Path) -> None:
    ps.calibrate(folder, engine=engine, percentile=50)


def judge(folder: Path, catalog: Path) -> None:
    ps.judge(folder, LocalJudge(engine()), catalog=catalog)


def experiment(folder: Path, catalog: Path) -> None:
    options = {"engine": engine(), "catalog": load_catalog(catalog), **ASKED}
    ps.experiment("susceptibility", folder.parent / "mapped", folder, **options)


WORK: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "map": (map_both, ""),
    "calibrate": (calibrate, "replies"),
    "judge": (judge, "mapped"),
    "experiment": (experiment, ""),
}
"""By name: the call, and which finished run it begins with."""


def work(call: Callable[[Path, Path], None], folder: str, catalog: str) -> None:
    """What a process does: little at a time is kept, so that instants differ."""
    torch.set_num_threads(1)
    personaspace.mapping.stages.SHARD = personaspace.mapping.stages.ONSET_SHARD = 8
    personaspace.experiments.kit.trials.SHARD = 8
    personaspace.judges.score.SCORES_EVERY = 0.01
    call(Path(folder), Path(catalog))


def begin(call: Callable[[Path, Path], None], folder: Path, catalog: Path) -> Any:
    """A process that does it."""
    return forked(work, call, str(folder), str(catalog))


def contents(folder: Path) -> dict[str, Any]:
    """What a folder holds, by file: shards, digests, scores and pages by their bytes, but for what says when and how long."""
    held: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if path.name == "space.safetensors":
            space = PersonaSpace.load(path)
            held[name] = {n: hashlib.sha256(t.numpy().tobytes()).hexdigest() for n, t in space.tensors.items()}
            held[f"{name} says"] = _timeless(json.loads(json.dumps(space.meta)))
        elif path.suffix == ".json":
            held[name] = _timeless(json.loads(path.read_text(encoding="utf-8")))
        elif path.parent.name == "scores" and path.suffix == ".sha256":
            # Scores that are written anew stand in their list as they were and as they are.
            held[name] = hashlib.sha256(path.with_suffix(".parquet").read_bytes()).hexdigest() in path.read_text()
        elif path.suffix != ".html" and path.name != ".lock":
            held[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            held[name] = bool(path.stat().st_size) or path.name == ".lock"
    return held


TIMES = {"seconds", "onset_seconds", "estimates", "done_again", "made_from"}


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(inner) for name, inner in value.items() if name not in TIMES}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def safe_replies(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Replies that are safe, as when they were written and their bytes: whatever is killed next must leave them as they are,
    and not write the same again."""
    paths = folder.rglob("responses/*.parquet")
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in paths}


def safe_scores(folder: Path) -> set[str]:
    """Scores that are safe, each with its judge and its reply: their file is written anew with others, they stay in it."""
    paths = folder.glob("scores/*.parquet")
    return {json.dumps([path.stem, row], sort_keys=True) for path in paths for row in pq.read_table(path).to_pylist()}


class Torture:
    """Kills work in a folder, with a catalogue. kills: how many so far, by the work's name."""

    def __init__(self, folder: Path, catalog: Path, seed: int = 0) -> None:
        self.folder, self.catalog, self.random = folder, catalog, random.Random(seed)
        self.kills = dict.fromkeys(WORK, 0)
        for name, call in (("mapped", map_both), ("replies", map_replies)):
            finish(begin(call, folder / name, catalog))
        self.alone: dict[str, dict[str, Any]] = {}
        self.lasts: dict[str, float] = {}

    def _fresh(self, name: str) -> Path:
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        if begun := WORK[name][1]:
            shutil.copytree(self.folder / begun, folder)
        return folder

    def once(self, name: str, most: int) -> None:
        """Does a piece of work, killed at up to `most` instants anywhere between its start and its end, and begun again each
        time; then compares what it left."""
        call, _ = WORK[name]
        if name not in self.alone:
            began = time.monotonic()
            folder = self._fresh(name)
            finish(begin(call, folder, self.catalog))
            self.lasts[name], self.alone[name] = time.monotonic() - began, contents(folder)
        folder = self._fresh(name)
        for _ in range(most):
            replies, scores = safe_replies(folder), safe_scores(folder)
            process = begin(call, folder, self.catalog)
            process.join(self.random.random() * self.lasts[name])
            if process.is_alive():
                process.kill()
            process.join()
            assert replies.items() <= safe_replies(folder).items(), f"{name}: replies were lost, or written again"
            assert scores <= safe_scores(folder), f"{name}: scores were lost"
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL, f"{name} ended with exit code {process.exitcode}"
            self.kills[name] += 1
        finish(begin(call, folder, self.catalog))
        alone, left = self.alone[name], contents(folder)
        differ = sorted(path for path in {*alone, *left} if alone.get(path) != left.get(path))
        assert not differ, f"{name}: other than where nobody disturbed it: {', '.join(differ)}"
