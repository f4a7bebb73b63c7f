"""A cluster on this machine: workers that are killed, a node that comes later, and the same numbers as one process."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from personaspace.api import options_of
from personaspace.catalog import load_catalog
from personaspace.engines import Span, load_engine
from personaspace.engines.prompts import Prompt, Sampling
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.errors import ModelError, UsageError
from personaspace.judges import RulesJudge
from personaspace.mapping.mapper import Mapper
from personaspace.model.interventions import Ablate
from personaspace.runs import Run
from personaspace.space import PersonaSpace
from personaspace.watcher import Watcher

ray = pytest.importorskip("ray")
OPTIONS = {"design": {"per_role": 16, "default_responses": 32}, "sampling": {"max_new_tokens": 100}}


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    """A cluster of one node of one CPU, to begin with."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100 << 20})
    yield made
    ray.shutdown()
    made.shutdown()


def mapped(engine, folder: Path, catalog: Path, watcher=None, **options) -> PersonaSpace:
    return Mapper(engine, load_catalog(catalog), folder, options_of(**OPTIONS, **options), watcher).map(RulesJudge())


class Grows(Watcher):
    """Adds a node once the first shard is there."""

    def __init__(self, cluster) -> None:
        self.cluster = cluster

    def progress(self, done: int, total: int) -> None:
        if self.cluster:
            self.cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
        self.cluster = None


def texts(folder: Path) -> list[tuple]:
    run = Run(folder)
    rows = [r for s in run.done() for r in run.read(s).to_pylist()]
    return sorted((r["role"], r["index"], tuple(r["token_ids"])) for r in rows)


class Killer(threading.Thread):
    """Kills a worker that has work in hand every now and then."""

    def __init__(self, engine, folder: Path, kills: int) -> None:
        super().__init__(daemon=True)
        self.engine, self.folder, self.left = engine, folder, kills
        self.there: dict[Path, int] = {}
        self.nodes: set[str] = set()
        self.stop = False

    def run(self) -> None:
        rng = random.Random(0)
        while not self.stop:
            time.sleep(0.05 + 0.4 * rng.random())
            busy = [h for h in self.engine.hands if h.where and h.tasks]
            self.nodes |= {h.where[0] for h in busy}
            if self.left and busy and len(list(self.folder.glob("responses/part-*"))) > len(self.there):
                self.there |= {p: p.stat().st_mtime_ns for p in self.folder.glob("responses/part-*")}
                os.kill(rng.choice(busy).where[1], signal.SIGKILL)
                self.left -= 1


@pytest.mark.long
def test_with_workers_killed_and_a_node_that_comes_later_nothing_is_lost_or_done_twice(
    tmp_path, cluster, tiny_folder, small_catalog, monkeypatch
):
    monkeypatch.setattr("personaspace.mapping.stages.SHARD", 4)
    monkeypatch.setattr("personaspace.mapping.stages.FOLD", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = mapped(TransformersEngine.load(str(tiny_folder), rows=4), tmp_path / "alone", small_catalog, blocks=4)
    torch.set_num_threads(threads)
    engine = load_engine("ray", str(tiny_folder), address=cluster.address, rows=4)
    killer = Killer(engine, tmp_path / "spread", kills=3)
    killer.start()
    spread = mapped(engine, tmp_path / "spread", small_catalog, Grows(cluster), keep="sums", blocks=4)
    killer.stop = True
    killer.join()
    engine.close()
    assert killer.left == 0
    assert len(killer.nodes) == 2
    assert {p: p.stat().st_mtime_ns for p in killer.there} == killer.there  # what was finished was not done again
    assert texts(tmp_path / "spread") == texts(tmp_path / "alone")
    assert len(texts(tmp_path / "spread")) == 6 * 16 + 32
    assert not list(tmp_path.rglob("*.tmp"))
    assert spread.readings == ("prompt", "reply")
    assert spread.meta["caps"].keys() == alone.meta["caps"].keys() != set()
    for name in ("axis", "role_vectors", "default_vector", "reply.axis", "reply.role_vectors"):
        cosine = torch.cosine_similarity(alone.tensors[name], spread.tensors[name], dim=-1)
        assert cosine.min() >= 1 - 1e-5


@pytest.mark.long
def test_a_cluster_answers_and_reads_as_one_engine_does(cluster, tiny_folder):
    one = TransformersEngine.load(str(tiny_folder))
    many = load_engine("ray", str(tiny_folder), address=cluster.address, workers=1)
    assert many.info == one.info
    prompts = [Prompt(({"role": "user", "content": f"What is {k}?"},), index=k, seed=k) for k in range(5)]
    found = [
        {r.prompt.index: r for r in e.respond(prompts, Sampling(max_new_tokens=5), read=range(3))} for e in (one, many)
    ]
    for k in range(5):
        assert found[0][k].token_ids == found[1][k].token_ids
        assert torch.allclose(found[0][k].activation, found[1][k].activation, atol=1e-5)
    read = [{r.prompt.index: r.activation for r in e.onsets(prompts, read=range(3))} for e in (one, many)]
    assert all(torch.allclose(read[0][k], read[1][k], atol=1e-5) for k in range(5))
    spans = [Span((5, 6, 7, 8 + k), ((1, 4),)) for k in range(3)]
    for (a,), (b,) in zip(one.replay(spans, read=[1]), many.replay(spans, read=[1]), strict=True):
        assert torch.allclose(a.activation, b.activation, atol=1e-5)
    with pytest.raises(UsageError, match="token by token"):
        many.stream(prompts[0], Sampling())
    many.close()


@pytest.mark.long
def test_a_call_that_was_left_or_failed_leaves_nothing_for_the_next(cluster, tiny_folder):
    many = load_engine("ray", str(tiny_folder), address=cluster.address, workers=1)

    def asked(numbers):
        return [Prompt(({"role": "user", "content": f"{k}?"},), index=k) for k in numbers]

    once = Sampling(max_new_tokens=1)
    left = many.respond(asked(range(300)), once)
    next(left)
    left.close()
    assert {r.prompt.index for r in many.respond(asked(range(1000, 1200)), once)} == set(range(1000, 1200))
    with pytest.raises(UsageError, match="Ablate"):
        list(many.respond(asked([1]), once, interventions=[Ablate(torch.ones(3), 0)]))
    assert [r.prompt.index for r in many.respond(asked([7]), once)] == [7]
    many.close()


@pytest.mark.long
def test_what_goes_wrong_in_a_worker_is_told_in_one_line(cluster, tiny_folder, tmp_path):
    with pytest.raises(UsageError, match="engine=oracle"):
        load_engine("ray", str(tiny_folder), address=cluster.address, worker_engine="oracle")
    with pytest.raises(UsageError, match="expected transformers or vllm"):
        load_engine("ray", str(tiny_folder), worker_engine="ray")
    with pytest.raises(ModelError, match=r"neither config\.json"):
        load_engine("ray", str(tmp_path), address=cluster.address)
    with pytest.raises(ModelError, match="no such GGUF"):
        load_engine("ray", "none.gguf")


LOCAL = """
import psutil
from personaspace.engines.ray import _connect
_connect(None)
for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
    for connection in process.net_connections(kind="inet"):
        if connection.status == "LISTEN":
            print(connection.laddr.ip)
"""


def test_a_cluster_that_is_started_here_listens_to_this_machine_alone() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run([sys.executable, "-c", LOCAL], capture_output=True, text=True, check=True, env=environment)
    addresses = {line.removeprefix("::ffff:") for line in done.stdout.split()}
    assert addresses == {"127.0.0.1"}
