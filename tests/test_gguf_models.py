"""GGUF files of models: a split one is loaded whole, and one that is not whole is refused and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HTTPError

from conftest import make_model, make_tokenizer
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.errors import ModelError
from personaspace.files import fetching
from personaspace.model import sources
from personaspace.model.gguf_files import kept_folder
from small_gguf import write_gguf, write_split
from test_cli import run


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of the test's own."""
    monkeypatch.setenv("PERSONASPACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def kept(cache: Path) -> list[str]:
    """What is in the cache, hidden leftovers too."""
    return sorted(p.name for p in cache.iterdir()) if cache.exists() else []


def test_a_gguf_file_has_the_models_weights(tmp_path):
    model = make_model("llama")
    loaded = TransformersEngine.load(str(write_gguf(tmp_path / "tiny.gguf", model, make_tokenizer()))).model
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


def test_a_gguf_file_without_some_blocks_is_refused_and_nothing_is_cached(tmp_path, cache):
    path = write_gguf(
        tmp_path / "cut.gguf", make_model("llama"), make_tokenizer(), lambda n: not n.startswith("blk.1.")
    )
    told = run("map", path, "--out", tmp_path / "run", expect=1).stderr
    assert "9 tensors (model.layers.1.input_layernorm.weight, " in told
    assert kept(cache) == []


@pytest.mark.parametrize("part", [0, 2])
def test_a_split_gguf_is_loaded_whole_by_any_of_its_parts_and_by_its_folder(tmp_path, cache, part):
    model = make_model("llama")
    parts = write_split(tmp_path, model, make_tokenizer())
    by_part = TransformersEngine.load(str(parts[part])).model
    for name, weight in model.state_dict().items():
        assert torch.equal(by_part.state_dict()[name], weight), name
    TransformersEngine.load(str(tmp_path))
    assert not list(cache.rglob("*.gguf"))


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_split_gguf_that_lacks_a_part_is_refused_by_the_parts_name(tmp_path, cache, missing):
    parts = write_split(tmp_path, make_model("llama"), make_tokenizer())
    parts[missing].unlink()
    with pytest.raises(
        ModelError, match=f"part {missing + 1} of 3 is missing: expected tiny-0000{missing + 1}-of-00003"
    ):
        TransformersEngine.load(str(parts[missing - 1]))
    assert kept(cache) == []


def test_a_part_under_another_name_is_refused_and_told_the_names_of_the_parts(tmp_path, cache):
    parts = write_split(tmp_path, make_model("llama"), make_tokenizer())
    shutil.copy(parts[0], tmp_path / "other.gguf")
    with pytest.raises(ModelError, match=r"part 1 of 3 .* expected other-00002-of-00003\.gguf"):
        TransformersEngine.load(str(tmp_path / "other.gguf"))
    assert kept(cache) == []


def test_parts_that_hold_fewer_tensors_than_they_say_are_refused(tmp_path, cache):
    model, tokenizer = make_model("llama"), make_tokenizer()
    for k in range(2):
        path = tmp_path / f"x-0000{k + 1}-of-00002.gguf"
        write_gguf(path, model, tokenizer, lambda n, k=k: ("blk" in n) == bool(k), (k, 2), 99, settings=k == 0)
    with pytest.raises(ModelError, match="hold 30 tensors together, expected 99"):
        TransformersEngine.load(str(tmp_path / "x-00001-of-00002.gguf"))
    assert kept(cache) == []


class Hub:
    """Stands in for the Hub, which tests cannot reach: repositories' files, in folders here."""

    def __init__(self, monkeypatch, folder: Path) -> None:
        self.folder, self.fetched = folder, []
        monkeypatch.setattr(huggingface_hub, "model_info", self.model_info)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.hf_hub_download)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)

    def model_info(self, repository: str) -> SimpleNamespace:
        files = (p.relative_to(self.folder / repository) for p in sorted((self.folder / repository).rglob("*.*")))
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=p.as_posix()) for p in files])

    def hf_hub_download(self, repository: str, name: str) -> str:
        self.fetched.append(name)
        return str(self.folder / repository / name)

    def snapshot_download(self, repository: str, **_: object) -> str:
        return str(self.folder / repository)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Hub:
    """A repository `owner/tiny` with one quantised model in one file, and one in three parts in a folder."""
    folder = tmp_path / "hub" / "owner" / "tiny"
    (folder / "Q8_0").mkdir(parents=True)
    write_gguf(folder / "tiny.Q4_K_M.gguf", make_model("llama", 1), make_tokenizer())
    write_split(folder / "Q8_0", make_model("llama", 2), make_tokenizer(), "tiny-Q8_0")
    (folder / "mmproj-tiny.Q4_K_M.gguf").write_bytes(b"GGUF")
    return Hub(monkeypatch, tmp_path / "hub")


@pytest.mark.parametrize(("name", "seed", "files"), [("owner/tiny:q4_k_m", 1, 1), ("owner/tiny:Q8_0", 2, 3)])
def test_a_quantised_model_of_the_hub_is_picked_by_its_name(hub, name, seed, files):
    loaded = TransformersEngine.load(name)
    assert torch.equal(loaded.model.lm_head.weight, make_model("llama", seed).lm_head.weight)
    assert len(hub.fetched) == files
    assert loaded.info.id == name


def test_a_quantisation_that_the_hub_does_not_have_is_refused_with_those_that_it_has(hub):
    with pytest.raises(ModelError, match=r"no GGUF file of Q5_0; expected one of: Q4_K_M, Q8_0$"):
        TransformersEngine.load("owner/tiny:Q5_0")
    with pytest.raises(ModelError, match=r"2 models are GGUF files; .* owner/tiny:Q8_0"):
        TransformersEngine.load("owner/tiny")


def test_without_the_hub_a_cached_model_is_loaded_and_another_is_one_line(hub, monkeypatch, tmp_path, tiny_folder):
    def unreachable(*_: object, **__: object) -> None:
        raise HTTPError("no route")

    monkeypatch.setattr(huggingface_hub, "model_info", unreachable)
    assert TransformersEngine.load("owner/tiny:Q4_K_M").info.layers == 3
    shutil.copytree(tiny_folder, hub.folder / "owner" / "plain")
    assert TransformersEngine.load("owner/plain").info.layers == 3

    def not_cached(*_: object, **__: object) -> None:
        raise FileNotFoundError("not in the cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", not_cached)
    for name in ("owner/tiny:Q4_K_M", "owner/plain"):
        told = run("map", name, "--out", tmp_path / "run", expect=1).stderr
        assert (
            "the Hub cannot be reached, and it is not in the cache: no route); expected a folder, a .gguf file" in told
        )


def test_names_of_the_hub_that_are_none_are_refused():
    for name in ("a/b/c:Q4_0", "a/b:"):
        with pytest.raises(ModelError, match="not a model: expected a folder"):
            sources.find(name)


def test_a_gguf_models_settings_are_those_of_its_first_part(tmp_path):
    parts = write_split(tmp_path, make_model("llama"), make_tokenizer())
    where = Path(sources.resolve(str(parts[1])))
    config = json.loads((where / "config.json").read_text())
    assert (config["num_hidden_layers"], config["hidden_size"], config["max_position_embeddings"]) == (3, 32, 512)


def test_a_cache_that_cannot_be_written_or_holds_something_else_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("PERSONASPACE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="cannot be written: Not a directory"):
        kept_folder("tiny", 0, lambda folder: None)
    monkeypatch.setenv("PERSONASPACE_CACHE", str(tmp_path))
    kept = kept_folder("tiny", 0, lambda folder: (folder / "config.json").write_text("{}"))
    assert kept_folder("tiny", 0, lambda folder: pytest.fail("it is there")) == kept
    (kept / "config.json").rename(kept / "other.json")
    with pytest.raises(ModelError, match="cannot be written: Directory not empty"):
        kept_folder("tiny", 0, lambda folder: (folder / "config.json").write_text("{}"))


@pytest.mark.parametrize("error", [HTTPError("the host\nis away"), OSError(), ValueError("no such thing")])
def test_whatever_the_hub_fails_with_is_one_line(error):
    with (
        pytest.raises(ModelError, match=r"^x: cannot be fetched \(.+\)$"),
        fetching("x: cannot be fetched", ModelError),
    ):
        raise error
