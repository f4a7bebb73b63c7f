"""What loading a model does, and never does: no code of a model's own folder is run, and no weight is made up."""

from __future__ import annotations

import ast
import importlib.util
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, Phi3Config

from conftest import FAMILIES, make_model, make_tokenizer
from personaspace import PersonaSpace
from personaspace.engines import load_engine
from personaspace.engines.prompts import Prompt, Sampling
from personaspace.errors import ModelError
from personaspace.mapping.plan import model_of
from personaspace.model.interventions import Cap
from personaspace.model.loading import context_of, pick_device, pick_dtype
from test_cli import checked, run

ASK = Prompt(({"role": "user", "content": "Who are you?"},))

SOURCE = Path(__file__).parent.parent / "src" / "personaspace"
CODE = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import LlamaConfig as Config, LlamaForCausalLM as Model, PreTrainedTokenizerFast as Tokenizer
"""


def strangers_folder(folder: Path, tiny_folder: Path, model_type: str) -> Path:
    """A model whose configuration, network and tokenizer name code of the folder's own; returns the mark it would leave."""
    shutil.copytree(tiny_folder, folder)
    mark = folder.parent / f"{folder.name}-ran"
    (folder / "code_of_mine.py").write_text(CODE.format(mark=str(mark)))
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "Config", "AutoModelForCausalLM": "Model"}
    config |= {"model_type": model_type, "auto_map": {k: f"code_of_mine.{v}" for k, v in names.items()}}
    (folder / "config.json").write_text(json.dumps(config))
    about = json.loads((folder / "tokenizer_config.json").read_text())
    about |= {"tokenizer_class": "Tokenizer", "auto_map": {"AutoTokenizer": [None, "code_of_mine.Tokenizer"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return mark


@pytest.mark.parametrize("load", [lambda name: load_engine("transformers", name), model_of])
def test_a_folder_with_code_of_its_own_is_refused_and_its_code_is_not_run(tmp_path, tiny_folder, load):
    mark = strangers_folder(tmp_path / "model", tiny_folder, "strange")
    with pytest.raises(ModelError):
        load(str(tmp_path / "model"))
    assert not mark.exists()


def test_a_family_that_is_known_loads_without_the_code_that_its_folder_names(tmp_path, tiny_folder):
    mark = strangers_folder(tmp_path / "model", tiny_folder, "llama")
    about = json.loads((tiny_folder / "tokenizer_config.json").read_text())
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(about))
    assert load_engine("transformers", str(tmp_path / "model")).info.layers == 3
    assert not mark.exists()


@pytest.mark.long
@pytest.mark.parametrize("answers", ["1\n1\n1\n", "y\ny\ny\n", "yes\n"])
def test_nothing_piped_into_chat_is_taken_for_leave_to_run_it(tmp_path, tiny_folder, answers, monkeypatch):
    mark = strangers_folder(tmp_path / "model", tiny_folder, "strange")
    space = PersonaSpace.load("smollm2")
    meta = {**space.meta, "model": {**space.meta["model"], "id": str(tmp_path / "model")}}
    PersonaSpace(meta, space.tensors).save(tmp_path / "space.safetensors")
    command = ["chat", str(tmp_path / "space.safetensors")]
    if answers.startswith("1"):  # of a pipe
        program = [sys.executable, "-c", "from personaspace.cli import main; main()", *command]
        ended = subprocess.run(program, input=answers, capture_output=True, text=True, timeout=120, check=False)
        assert checked(ended, 1).stderr.count("Python code of their own") == 1
    else:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(answers.encode()), encoding="utf-8"))
        assert "Python code of their own" in run(*command, expect=1).stderr
    assert not mark.exists()


def test_every_loader_is_told_to_run_no_code():
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in ("from_pretrained", "SentenceTransformer"):
                told = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert told.get("trust_remote_code") == "False", f"{path}:{node.lineno}"


# -- whole or not at all --------------------------------------------------------------------------------------------


def saved(folder: Path, model: Any, **options: Any) -> Path:
    """A model's folder as its owner would have saved it."""
    model.save_pretrained(folder, **options)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_loads_what_it_saved_with_and_without_tied_embeddings(tmp_path, family):
    for tied in (False, True):
        model = make_model(family)
        model.config.tie_word_embeddings = tied
        model = type(model)(model.config)
        loaded = load_engine("transformers", str(saved(tmp_path / f"{tied}", model))).model
        assert loaded.state_dict().keys() == model.state_dict().keys()
        for name, weight in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], weight), name


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Changes what is in a folder's one file of weights."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda t: t.pop("model.layers.1.mlp.up_proj.weight"),
            "the tensor model.layers.1.mlp.up_proj.weight is missing",
        ),
        (lambda t: t.pop("lm_head.weight"), "the tensor lm_head.weight is missing"),
        (lambda t: t.update({"model.norm.weight": torch.ones(7)}), r"model.norm.weight is \[7\], expected \[32\]"),
    ],
)
def test_a_folder_without_some_tensor_or_with_one_of_another_shape_is_refused(tmp_path, change, text):
    folder = saved(tmp_path / "model", make_model("llama"))
    change_tensors(folder, change)
    with pytest.raises(ModelError, match=text):
        load_engine("transformers", str(folder))


def test_a_folder_that_lacks_one_of_its_files_is_refused_in_one_line(tmp_path):
    folder = saved(tmp_path / "model", make_model("llama"), max_shard_size="40KB")
    lost = sorted(folder.glob("model-*.safetensors"))[1]
    lost.unlink()
    assert lost.name in run("map", folder, "--out", tmp_path / "run", expect=1).stderr
    half = saved(tmp_path / "half", make_model("llama")) / "model.safetensors"
    half.write_bytes(half.read_bytes()[:5000])
    assert "cannot load the model" in run("map", half.parent, "--out", tmp_path / "run", expect=1).stderr


def test_tensors_that_a_model_has_no_place_for_are_left_out_with_one_line(tmp_path, caplog):
    folder = saved(tmp_path / "model", make_model("llama"))
    change_tensors(folder, lambda t: t.update({"mtp.weight": torch.ones(2), "mtp.bias": torch.ones(2)}))
    with caplog.at_level("WARNING", logger="personaspace"):
        load_engine("transformers", str(folder))
    assert [r.getMessage() for r in caplog.records] == [
        f"warning: {folder}: 2 tensors (mtp.bias, mtp.weight) are left out: the model has no place for that"
    ]


# -- quantised weights ----------------------------------------------------------------------------------------------


def quantised(folder: Path, settings: dict[str, Any]) -> Path:
    """A folder whose configuration says that its weights are quantised."""
    saved(folder, make_model("llama"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return folder


@pytest.mark.parametrize(
    ("settings", "package", "install"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "optimum", "pip install optimum gptqmodel"),
        ({"quant_method": "awq", "bits": 4, "group_size": 32}, "gptqmodel", "pip install gptqmodel"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes", "pip install bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes", "pip install bitsandbytes"),
        ({"quant_method": "torchao", "quant_type": "int8_weight_only"}, "torchao", "pip install torchao"),
        ({"quant_method": "compressed-tensors"}, "compressed_tensors", "pip install compressed-tensors"),
    ],
)
def test_quantised_weights_whose_package_is_missing_are_one_line_that_names_it(tmp_path, settings, package, install):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    told = run("map", quantised(tmp_path / "model", settings), "--out", tmp_path / "run", expect=1).stderr
    assert told.strip().endswith(install)


def test_weights_quantised_in_a_way_that_nobody_here_knows_are_refused(tmp_path):
    with pytest.raises(ModelError, match="quantised by modelopt, which transformers does not know"):
        load_engine("transformers", str(quantised(tmp_path / "model", {"quant_method": "modelopt"})))


def test_fp8_weights_are_loaded_as_transformers_loads_them(tmp_path):
    """Weights in 8 bits with a scale a block; on a CPU they are unpacked."""
    folder = quantised(tmp_path / "model", {"quant_method": "fp8", "weight_block_size": [16, 16]})
    original = load_file(folder / "model.safetensors")

    def pack(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if "_proj" in n]:
            weight = tensors[name]
            blocks = weight.reshape(len(weight) // 16, 16, -1, 16)
            scales = blocks.abs().amax((1, 3)) / 448
            packed = (blocks / scales[:, None, :, None]).reshape(weight.shape)
            tensors |= {name: packed.to(torch.float8_e4m3fn), f"{name}_scale_inv": scales}

    change_tensors(folder, pack)
    engine = load_engine("transformers", str(folder))
    for name, weight in original.items():
        loaded = engine.model.state_dict()[name].float()
        assert torch.allclose(loaded, weight, rtol=0.07, atol=0.02), name
    (reply,) = engine.respond([ASK], Sampling(max_new_tokens=3, temperature=0), read=range(3))
    assert reply.activation is not None
    assert torch.isfinite(reply.activation).all()


# -- several devices ------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_model_whose_layers_lie_elsewhere_replies_reads_and_is_held_as_in_one_place(tmp_path):
    """The first and last layers in memory, the middle one on the disk, from which it is fetched when it is its turn."""
    folder = saved(tmp_path / "model", make_model("llama"))
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{k}": "disk" if k == 1 else "cpu" for k in range(3)}
    one, spread = load_engine("transformers", str(folder)), load_engine("transformers", str(folder), device=places)
    assert {p.device.type for p in spread.model.parameters()} == {"cpu", "meta"}
    assert spread.info.fingerprint == one.info.fingerprint
    cap = Cap(torch.randn(32, generator=torch.Generator().manual_seed(0)), (1,), floor=2.0)
    asked = [ASK, Prompt(({"role": "user", "content": "And you, who are you?"},))]
    for held in ((), (cap,)):
        replies = [
            sorted(
                e.respond(asked, Sampling(max_new_tokens=5, temperature=0), read=range(3), interventions=held), key=str
            )
            for e in (one, spread)
        ]
        for a, b in zip(*replies, strict=True):
            assert a.token_ids == b.token_ids
            assert torch.equal(a.activation, b.activation)
            assert a.touched == b.touched
        talk = [[*ASK.messages, {"role": "assistant", "content": "I am it."}]]
        (a,), (b,) = (list(e.replay(talk, read=range(3), interventions=held, logprobs=True)) for e in (one, spread))
        assert torch.equal(a[0].activation, b[0].activation)
        assert (a[0].logprob, a[0].touched) == (b[0].logprob, b[0].touched)
        (a,), (b,) = (list(e.onsets([ASK], read=range(3), interventions=held)) for e in (one, spread))
        assert torch.equal(a.activation, b.activation)
    scores = [[logprob for logprob, _ in e.score(range(5, 25), 0, [cap])] for e in (one, spread)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_auto_lays_a_model_over_what_there_is(tiny_folder):
    engine = load_engine("transformers", str(tiny_folder), device="auto")
    assert engine.info.fingerprint == load_engine("transformers", str(tiny_folder), device="cpu").info.fingerprint
    assert engine.info.dtype == ("float32" if pick_device(None) == torch.device("cpu") else "bfloat16")


def test_a_mac_has_its_gpu_taken_and_bf16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device(None) == torch.device("mps")
    assert pick_dtype(None, pick_device(None)) == torch.bfloat16


def test_a_model_that_turns_to_other_rotary_frequencies_has_no_more_context_than_before_it_does():
    factors = {"rope_theta": 10000.0, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0}
    longrope = Phi3Config(
        **sizes, original_max_position_embeddings=16, rope_parameters={"rope_type": "longrope", **factors}
    )
    assert context_of(longrope) == 16
    assert context_of(LlamaConfig(**sizes)) == 128
    by_layer = {
        "full": {"rope_type": "default", "rope_theta": 1.0},
        "sliding": {"rope_type": "default", "rope_theta": 1.0},
    }
    assert context_of(SimpleNamespace(max_position_embeddings=64, rope_parameters=by_layer)) == 64
    assert context_of(SimpleNamespace()) is None
