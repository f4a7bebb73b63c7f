"""Adapters on a model: loaded by their own name or laid on a model that is named, merged, and refused where they do not fit."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("peft")
from peft import LoraConfig, PrefixTuningConfig, get_peft_model

from conftest import make_model, make_tokenizer
from personaspace.engines.prompts import Prompt, Sampling
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.errors import ModelError, UsageError
from personaspace.mapping.plan import model_of
from personaspace.model import adapters, loading, sources
from test_cli import MAP, run
from test_gguf_models import Hub

ASK = Prompt(({"role": "user", "content": "Who are you?"},))


def trained(folder: Path, base: Path | str, seed: int, family: str = "llama", **options: object) -> Path:
    """A LoRA adapter of a small random model, as its trainer would have saved it."""
    model = make_model(family)
    model.name_or_path = str(base)
    torch.manual_seed(seed)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], **options))
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.3)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PERSONASPACE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def adapter(tmp_path, tiny_folder) -> Path:
    return trained(tmp_path / "lora", tiny_folder, 1)


def change_by(folder: Path, name: str) -> torch.Tensor:
    """What a LoRA adapter adds to a weight: B·A, in units of alpha over the rank."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.{name.removesuffix('.weight')}.lora_{x}.weight"] for x in "AB")
    return config["lora_alpha"] / config["r"] * (b @ a)


def test_an_adapters_folder_is_its_model_with_the_change_in_the_weights(adapter, tiny_folder):
    base, engine = TransformersEngine.load(str(tiny_folder)), TransformersEngine.load(str(adapter))
    assert type(engine.model) is type(base.model)
    for name, weight in base.model.state_dict().items():
        changed = any(part in name for part in ("q_proj", "down_proj"))
        expected = weight + change_by(adapter, name) if changed else weight
        assert torch.allclose(engine.model.state_dict()[name], expected, atol=1e-6), name
    assert engine.info.id == str(adapter)
    assert engine.info.fingerprint != base.info.fingerprint
    replies = [
        next(iter(e.respond([ASK], Sampling(temperature=0, max_new_tokens=4), read=[2]))) for e in (base, engine)
    ]
    assert not torch.equal(replies[0].activation, replies[1].activation)


def test_adapters_are_laid_on_a_named_model_in_order_under_one_name(tmp_path, adapter, tiny_folder):
    second = trained(tmp_path / "second", "nowhere", 2)
    engine = TransformersEngine.load(str(tiny_folder), adapters=[str(adapter), str(second)])
    assert engine.info.id == f"{tiny_folder} + {adapter} + {second}"
    assert TransformersEngine.load(engine.info.id).info.fingerprint == engine.info.fingerprint
    on_its_own = TransformersEngine.load(f"{adapter} + {second}")
    assert on_its_own.info.fingerprint == engine.info.fingerprint
    name = "model.layers.1.mlp.down_proj.weight"
    base = TransformersEngine.load(str(tiny_folder)).model.state_dict()[name]
    expected = base + change_by(adapter, name) + change_by(second, name)
    assert torch.allclose(engine.model.state_dict()[name], expected, atol=1e-6)


def test_an_adapter_beside_weights_that_cannot_take_it_reads_as_when_it_is_merged(adapter, tiny_folder, monkeypatch):
    merged = TransformersEngine.load(str(adapter))
    monkeypatch.setattr(adapters, "is_quantized", lambda _: True)
    beside = TransformersEngine.load(str(adapter))
    assert any("lora_" in name for name, _ in beside.model.named_parameters())
    a, b = (next(iter(e.respond([ASK], Sampling(temperature=0, max_new_tokens=4), read=[2]))) for e in (merged, beside))
    assert a.token_ids == b.token_ids
    assert torch.allclose(a.activation, b.activation, atol=1e-4)


def test_who_reads_files_gets_a_merged_copy_that_is_kept(adapter, tiny_folder):
    folder = loading.whole_folder(str(adapter))
    assert TransformersEngine.load(folder).info.fingerprint == TransformersEngine.load(str(adapter)).info.fingerprint
    assert loading.whole_folder(str(adapter)) == folder
    assert loading.whole_folder(str(tiny_folder)) == str(tiny_folder)
    assert model_of(str(adapter))[0].num_hidden_layers == 3


def test_a_merged_copy_is_made_anew_where_the_base_was_written_anew(tmp_path, tiny_folder):
    base = tmp_path / "base"
    shutil.copytree(tiny_folder, base)
    adapter = trained(tmp_path / "lora", str(base), 1)
    before = loading.whole_folder(str(adapter))
    torch.manual_seed(5)
    make_model("llama").apply(
        lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None
    ).save_pretrained(base)
    after = loading.whole_folder(str(adapter))
    assert after != before
    assert TransformersEngine.load(after).info.fingerprint == TransformersEngine.load(str(adapter)).info.fingerprint


def test_an_adapter_brings_its_own_tokenizer_and_its_base_is_found_beside_it(tmp_path, tiny_folder):
    adapter = trained(tmp_path / "lora", "base", 1)
    (adapter / "base").symlink_to(tiny_folder)
    make_tokenizer("{{ messages[0]['content'] }}").save_pretrained(adapter)
    engine = TransformersEngine.load(str(adapter))
    assert engine.tokenizer.chat_template == "{{ messages[0]['content'] }}"


def test_an_adapter_with_tokens_of_its_own_makes_room_for_them(tmp_path, tiny_folder):
    model = make_model("llama")
    model.resize_token_embeddings(310, mean_resizing=False)
    model.name_or_path = str(tiny_folder)
    adapted = get_peft_model(
        model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    )
    adapted.save_pretrained(tmp_path / "lora")
    loaded = TransformersEngine.load(str(tmp_path / "lora")).model
    assert torch.equal(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_an_adapter_that_is_not_whole_or_for_another_model_is_refused(tmp_path, adapter, tiny_folder):
    file = adapter / "adapter_model.safetensors"
    whole = load_file(file)
    name = next(n for n in whole if "q_proj.lora_B" in n)
    save_file({n: t for n, t in whole.items() if n != name}, file)
    with pytest.raises(ModelError, match=r"1 of the 12 tensors of the adapter .* are missing"):
        TransformersEngine.load(str(adapter))
    save_file({**whole, name.replace("layers.0", "layers.7"): whole[name].clone()}, file)
    with pytest.raises(ModelError, match=r"no place for 1 of the 13 tensors .*: it is for another model"):
        TransformersEngine.load(str(adapter))
    save_file({**whole, name: torch.zeros(99, 2)}, file)
    with pytest.raises(ModelError, match=r"size mismatch|shape"):
        TransformersEngine.load(str(adapter))
    with pytest.raises(ModelError, match=r"not an adapter: expected a folder or a Hub id with adapter_config.json"):
        TransformersEngine.load(str(tiny_folder), adapters=[str(tiny_folder)])
    nameless = trained(tmp_path / "nameless", "", 1)
    with pytest.raises(ModelError, match=r"names no model .* as an adapter on it"):
        TransformersEngine.load(str(nameless))
    circle = trained(tmp_path / "circle", tmp_path / "circle", 1)
    with pytest.raises(ModelError, match="names itself"):
        TransformersEngine.load(str(circle))


def test_an_adapter_that_changes_no_weights_is_refused(tmp_path, tiny_folder):
    model = make_model("llama")
    model.name_or_path = str(tiny_folder)
    get_peft_model(model, PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")).save_pretrained(
        tmp_path / "p"
    )
    with pytest.raises(ModelError, match="PREFIX_TUNING, which changes no weights"):
        TransformersEngine.load(str(tmp_path / "p"))


def test_without_peft_an_adapter_is_one_line_that_says_what_to_install(adapter, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UsageError, match=r"pip install 'personaspace\[adapters\]'"):
        TransformersEngine.load(str(adapter))
    # What watch asks of each variant before it reads any.
    with pytest.raises(UsageError, match="an adapter needs peft"):
        sources.resolve(str(adapter))


def test_an_adapter_of_the_hub_is_fetched_and_laid_on_its_model(tmp_path, tiny_folder, monkeypatch):
    """The Hub is stood in for, since tests cannot reach it."""
    adapter = trained(tmp_path / "hub" / "owner" / "lora", tiny_folder, 1)
    Hub(monkeypatch, tmp_path / "hub")
    by_id = TransformersEngine.load("owner/lora")
    assert by_id.info.fingerprint == TransformersEngine.load(str(adapter)).info.fingerprint
    laid_on = TransformersEngine.load(str(tiny_folder), adapters=["owner/lora"])
    assert laid_on.info.fingerprint == by_id.info.fingerprint


def test_no_code_that_an_adapter_names_is_run(tmp_path, adapter, monkeypatch):
    mark = tmp_path / "ran"
    (tmp_path / "code_of_mine.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()")
    monkeypatch.syspath_prepend(tmp_path)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config |= {"megatron_config": {"x": 1}, "megatron_core": "code_of_mine"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="code_of_mine"):
        TransformersEngine.load(str(adapter))
    assert not mark.exists()


def test_a_merged_model_is_laid_over_devices_as_it_is_in_one_place(adapter):
    one, auto = TransformersEngine.load(str(adapter)), TransformersEngine.load(str(adapter), device="auto")
    places = dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head", "model.layers.0"), "cpu")
    spread = TransformersEngine.load(str(adapter), device=places | {"model.layers.1": "disk", "model.layers.2": "cpu"})
    assert "meta" in {p.device.type for p in spread.model.parameters()}
    assert one.info.fingerprint == auto.info.fingerprint == spread.info.fingerprint
    a, b = (next(iter(e.onsets([ASK], read=[2]))) for e in (one, spread))
    assert torch.equal(a.activation, b.activation)


@pytest.mark.long
def test_a_model_and_its_fine_tune_are_mapped_and_compared(tmp_path, adapter, tiny_folder, small_catalog):
    here = ("--catalog", small_catalog, *MAP[2:])
    run("map", tiny_folder, "--out", tmp_path / "base", *here)
    run("map", tiny_folder, "--adapter", adapter, "--out", tmp_path / "tuned", *here)
    told = json.loads(
        run("compare", tmp_path / "base", tmp_path / "tuned", "--out", tmp_path / "c.html", "--json").stdout
    )
    assert len(told["pairs"]) == 1
    talk = tmp_path / "talk.json"
    talk.write_text(json.dumps([*ASK.messages, {"role": "assistant", "content": "I am it."}]))
    own = run("project", tmp_path / "tuned", talk, "--json")
    assert "warning" not in own.stderr  # the space's model has the adapter in it
    with_it = run("project", tmp_path / "base", talk, "--json", "--adapter", adapter)
    assert "warning" in with_it.stderr
    assert (
        json.loads(with_it.stdout)["turns"]
        != json.loads(run("project", tmp_path / "base", talk, "--json").stdout)["turns"]
    )


def test_a_models_name_for_other_places_has_all_its_folders_from_the_root(tmp_path, monkeypatch):
    (tmp_path / "base + more").mkdir()
    (tmp_path / "lora").mkdir()
    monkeypatch.chdir(tmp_path)
    assert sources.from_root("base + more") == str(tmp_path / "base + more")
    assert sources.from_root("smollm2 + lora + owner/other") == f"smollm2 + {tmp_path / 'lora'} + owner/other"
