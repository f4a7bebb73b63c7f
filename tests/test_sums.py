"""A run too big to keep: the same space from sums as from activations, in any order of shards, killed at any moment."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from conftest import make_model, make_tokenizer
from personaspace.api import options_of
from personaspace.catalog import load_catalog
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.errors import RunMismatch, UsageError
from personaspace.judges import Item, Score
from personaspace.mapping.mapper import Mapper
from personaspace.mapping.sums import FromSums, Responses, Sums
from personaspace.runs import Run
from personaspace.space import PersonaSpace
from personaspace.stats.vectors import blocks_of

OPTIONS = {
    "read": "reply",
    "design": {"per_role": 10, "default_responses": 40},
    "sampling": {"max_new_tokens": 6},
    "blocks": 5,
    "min_responses": 4,
}
ROLES = ["ghost", "hermit", "clerk", "auditor", "whale", "pilot"]


class Uneven:
    """A judge by rote: all scores occur, and the hermit has too few of 3."""

    name = "uneven"

    def score(self, items: Iterable[Item]) -> Iterator[Score]:
        for item in items:
            n = len(item.reply) + len(item.question)
            value = n % 3 if item.role.role == "hermit" else 3 if n % 7 else n % 3
            yield Score(value, float(value))


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return TransformersEngine(make_model("llama"), make_tokenizer(), id="tiny", rows=16)


@pytest.fixture(scope="module")
def map_in_small_shards(engine, small_catalog):
    """Maps in small shards, summed as they come."""

    def map_(folder, judge=None, **options) -> PersonaSpace:
        chosen = options_of(**{**OPTIONS, **options})
        return Mapper(engine, load_catalog(small_catalog), folder, chosen).map(judge or Uneven())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("personaspace.mapping.stages.SHARD", 16)
        patch.setattr("personaspace.mapping.stages.FOLD", 1)
        patch.setattr("personaspace.mapping.sums.SAMPLE", 30)
        yield map_


@pytest.fixture
def mapped(map_in_small_shards):
    """See `map_in_small_shards`."""
    return map_in_small_shards


@pytest.fixture(scope="module")
def finished(tmp_path_factory, map_in_small_shards) -> dict[str, tuple[Path, PersonaSpace]]:
    """A finished run that keeps all, and one that keeps sums, for tests that only read them: folders and spaces."""
    folder = tmp_path_factory.mktemp("finished")
    return {keep: (folder / keep, map_in_small_shards(folder / keep, keep=keep)) for keep in ("all", "sums")}


def same(a: PersonaSpace, b: PersonaSpace, within: float = 1e-5) -> None:
    for name, tensor in a.tensors.items():
        other = b.tensors[name]
        scale = tensor.double().nan_to_num().abs().max()
        assert torch.allclose(tensor.double(), other.double(), rtol=0, atol=within * scale, equal_nan=True), name
    for name in ("layer", "roles", "left_out", "n_kept", "n_default"):
        assert a.meta[name] == b.meta[name], name


@pytest.mark.long
def test_the_space_from_sums_is_that_from_activations_under_the_same_blocks(finished):
    (_, kept), (folder, summed) = finished["all"], finished["sums"]
    same(kept, summed)
    assert list(summed.meta["left_out"]) == ["hermit"]
    assert PersonaSpace.load(folder).summary()["left_out"] == summed.meta["left_out"]  # it can be read again
    assert np.allclose(kept.meta["axis_pc1_interval"], summed.meta["axis_pc1_interval"], atol=1e-5)
    assert kept.meta["histogram"]["default"] == summed.meta["histogram"]["default"]
    assert sum(summed.meta["histogram"]["default"]) == 30  # the sample, of 40 responses
    assert Run(folder).whole() == []
    assert len(Run(folder).done()) == 7
    generations = {p.name.split("-")[0] for p in (folder / "sums").glob("*-*")}
    assert len(generations) == 1
    assert generations != {"00001"}  # summed some shards at a time


def test_blocks_of_one_question_each_give_what_no_blocks_give(tmp_path, mapped, monkeypatch):
    monkeypatch.setattr("personaspace.mapping.sums.SAMPLE", 1000)
    whole, by_blocks = mapped(tmp_path, blocks=None), mapped(tmp_path, blocks=12)
    for name in ("axis", "role_vectors", "default_vector", "residual_norm", "quantiles_roles", "default_moments"):
        assert torch.allclose(whole.tensors[name], by_blocks.tensors[name], atol=1e-5), name


@pytest.mark.long
def test_without_a_judge_all_responses_are_one_class(tmp_path, engine, mapped, small_catalog):
    for keep in ("all", "sums"):
        mapper = Mapper(engine, load_catalog(small_catalog), tmp_path / keep, options_of(**OPTIONS, keep=keep))
        mapper.map(None)
    same(*(PersonaSpace.load(tmp_path / k) for k in ("all", "sums")))
    assert np.flatnonzero(
        Sums(Run(tmp_path / "sums"), tmp_path / "sums" / "sums", 7, blocks_of(12, 5, 0)).state().n.sum((1, 2))
    ).tolist() == [4]


def test_shards_are_added_in_any_order_and_by_many_hands(tmp_path, finished):
    run_folder, _ = finished["all"]
    run = Run(run_folder)
    scores = run.scores_of("uneven")
    found = []
    for order in ([[0, 1, 2, 3, 4, 5, 6]], [[6], [4, 5], [1, 3], [0], [2]]):
        copy = tmp_path / f"order{len(order)}"
        copy.mkdir()
        os.symlink(run_folder / "responses", copy / "responses")
        os.symlink(run_folder / "activations", copy / "activations")
        sums = Sums(Run(copy), copy / "sums", 7, blocks_of(12, 5, 0), kept_layers=range(3))
        for shards in order:
            sums.fold(Responses.read(run, shards, ROLES, scores, 0), shards)
        found.append(sums)
    a, b = (s.state() for s in found)
    assert (a.n == b.n).all()
    assert (a.tokens == b.tokens).all()
    assert np.allclose(a.norms, b.norms, rtol=1e-12)
    assert sorted(map(tuple, a.sample)) == sorted(map(tuple, b.sample))
    assert set(np.flatnonzero(a.n.sum((1, 2))).tolist()) == {0, 1, 2, 3, 4}
    for layer in range(3):
        one, other = (s._layer(s.state(), layer) for s in found)
        for c in ("0", "1", "2", "3", "4"):
            assert torch.allclose(one[c], other[c], rtol=1e-12)


@pytest.mark.long
def test_sums_are_those_of_a_plain_loop(finished):
    (folder, _), (summed, _) = finished["all"], finished["sums"]
    run, block_of = Run(folder), blocks_of(12, 5, 0)
    responses = Responses.read(run, run.done(), ROLES, run.scores_of("uneven"), 0)
    plain: dict[tuple[int, int], torch.Tensor] = {}
    for k in np.flatnonzero(responses.score >= 3):
        h = run.tensors(int(responses.shard[k]), "activations")[int(responses.row[k])].double()
        for key in ((int(responses.role[k]), int(block_of[responses.question[k]])), (-1, int(responses.question[k]))):
            plain[key] = plain.get(key, torch.zeros_like(h)) + h
    source = FromSums(Sums(Run(summed), summed / "sums", 7, block_of))
    from personaspace.stats.vectors import Cells

    cells = Cells.counted((), source.n, block_of)
    sums = source.sums(cells, slice(0, 3))
    for k, (role, block) in enumerate(zip(cells.role.tolist(), cells.block.tolist(), strict=True)):
        assert torch.allclose(sums[k], plain.pop((role, block)))
    for question in range(12):
        assert torch.allclose(sums[len(cells.role) + question], plain.pop((-1, question)))
    assert not plain


class Killed(BaseException):
    """What a killed process looks like from inside: nothing tidies up."""


@pytest.mark.long
def test_stopped_before_any_file_is_put_in_place_a_run_of_sums_ends_as_one_left_alone(
    tmp_path, mapped, finished, monkeypatch
):
    _, alone = finished["sums"]
    real, left = os.replace, [0]

    def replace(a, b):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        real(a, b)

    monkeypatch.setattr("personaspace.files.os.replace", replace)
    stops, steps = 0, (1, 2, 3, 5, 7, 4, 6, 8, 9, 10)
    while True:
        left[0] = steps[stops % len(steps)]
        try:
            killed = mapped(tmp_path / "killed", keep="sums")
            break
        except Killed:
            stops += 1
    assert stops >= 8
    same(alone, killed, within=1e-9)
    assert Run(tmp_path / "killed").whole() == []


@pytest.mark.long
def test_kept_layers_stay_beside_the_sums(tmp_path, mapped, finished):
    (folder, whole), (_, sums) = finished["all"], finished["sums"]
    layers = mapped(tmp_path / "layers", keep="layers:1:3")
    same(sums, layers)
    run, all_run = Run(tmp_path / "layers"), Run(folder)
    assert whole.meta["n_kept"] == layers.meta["n_kept"]
    assert run.whole() == run.done()
    for shard in run.done():
        assert torch.equal(run.tensors(shard, "activations"), all_run.tensors(shard, "activations")[:, 1:3])
    with pytest.raises(UsageError, match="layers 0 to 2"):
        mapped(tmp_path / "none", keep="layers:2:9")


def test_what_is_kept_and_by_whose_scores_is_the_runs(tmp_path, mapped):
    mapped(tmp_path, keep="sums")
    other = Uneven()
    other.name = "another"
    with pytest.raises(RunMismatch, match="judge: uneven → another"):
        mapped(tmp_path, judge=other, keep="sums")
    with pytest.raises(RunMismatch, match="keep"):
        mapped(tmp_path)
    with pytest.raises(RunMismatch, match="blocks: 5 → 6"):
        mapped(tmp_path, keep="sums", blocks=6)


@pytest.mark.long
def test_until_goes_on_in_rounds_from_sums_as_it_does_from_activations(tmp_path, mapped):
    aim = {"until": 0.999, "budget": 140}
    kept = mapped(tmp_path / "all", **aim)
    summed = mapped(tmp_path / "sums", keep="sums", **aim)
    assert [h["responses"] for h in kept.meta["history"]] == [h["responses"] for h in summed.meta["history"]]
    assert len(summed.meta["history"]) > 1
    same(kept, summed)
    again = mapped(tmp_path / "sums", keep="sums", until=0.999, budget=150)
    assert [h["responses"] for h in again.meta["history"]][-1] == 150
    assert again.meta["history"][: len(summed.meta["history"])] == summed.meta["history"]


@pytest.fixture(scope="module")
def s3() -> Iterator[None]:
    """A server on this machine that speaks S3's protocol, and a bucket in it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("ENDPOINT_URL", endpoint),
            ("ACCESS_KEY_ID", "a"),
            ("SECRET_ACCESS_KEY", "b"),
            ("REGION", "us-east-1"),
        ):
            patch.setenv(f"AWS_{name}", value)
        httpx.put(f"{endpoint}/bucket").raise_for_status()
        yield
    server.stop()


@pytest.mark.long
@pytest.mark.parametrize("address", ["file://{folder}", "memory://{name}", "s3://bucket/{name}"])
def test_shards_lie_at_an_address_and_are_gone_on_with_from_another_folder(tmp_path, mapped, finished, s3, address):
    address = address.format(folder=tmp_path / "far", name=tmp_path.name)
    folder, here = finished["all"]
    shutil.copytree(folder, tmp_path / "here")
    for keep in ("all", "sums"):
        there = mapped(tmp_path / keep, keep=keep, shards=address)
        same(here, there)
        assert len(Run(tmp_path / keep).done()) == 7
        assert not list((tmp_path / keep).rglob("part-*"))
    again = mapped(tmp_path / "again", shards=address)
    assert "seconds" in again.meta
    assert again.meta["seconds"]["responses"] == 0  # nothing was asked again
    with pytest.raises(RunMismatch, match="give the same place for shards"):
        mapped(tmp_path / "all", shards=address + "2")
    with pytest.raises(RunMismatch, match="its shards lie in"):
        mapped(tmp_path / "here", shards=address)
