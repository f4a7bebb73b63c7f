"""A direction taken out of a model's weights: what it then says is what hooks on every writer make it say."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from conftest import FAMILIES, make_model
from personaspace.errors import ModelError, RunError, SpaceError, UsageError
from personaspace.formats.weights import export_weights
from personaspace.model.ablated import ablate_weights
from personaspace.model.attach import attach
from personaspace.model.interventions import Ablate
from personaspace.model.residual import find_layers
from personaspace.space import FORMAT, PersonaSpace
from test_cli import run

IDS = torch.arange(4, 24)[None]
BEHIND_A_NORM = ("gemma2", "gemma3", "olmo2")


def vector(n: int = 32) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(3))


def without(hidden: torch.Tensor) -> torch.Tensor:
    unit = vector() / vector().norm()
    return hidden - (hidden @ unit)[..., None] * unit


def under_hooks(model) -> torch.Tensor:
    """Logits while whatever the embeddings, each layer's attention and its MLP give has the direction taken out."""

    def hook(_, __, output):
        return (without(output[0]), *output[1:]) if isinstance(output, tuple) else without(output)

    embeddings = [m for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    writers = [
        m
        for layer in find_layers(model)
        for name, m in layer.named_children()
        if name in ("self_attn", "attn", "attention", "mlp", "block_sparse_moe")
    ]
    assert len(writers) == 6
    handles = [m.register_forward_hook(hook) for m in (*embeddings, *writers)]
    with torch.no_grad():
        logits = model(IDS).logits
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in BEHIND_A_NORM])
def test_the_exported_model_says_what_hooks_on_every_writer_make_it_say(family, tmp_path):
    model = make_model(family)
    plain, expected = model(IDS).logits, under_hooks(model)
    ablated = ablate_weights(model, vector())
    torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, plain, atol=1e-2)
    assert ablated.before > 0.05
    assert ablated.after < 1e-5
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    # Nothing is left for `Ablate` at every layer to take out.
    with attach(model, *(Ablate(vector(), layer) for layer in range(3))):
        torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_where_attention_and_mlp_read_the_same_stream_it_is_ablate_at_every_layer_and_in_the_embedding():
    """Elsewhere an MLP reads what its layer's attention has written before `Ablate` takes the direction out."""
    model, exported = make_model("gpt_neox"), make_model("gpt_neox")
    assert model.config.use_parallel_residual
    ablate_weights(exported, vector())
    embedding = model.get_input_embeddings().weight
    embedding.copy_(without(embedding))
    with attach(model, *(Ablate(vector(), layer) for layer in range(3))):
        torch.testing.assert_close(exported(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)


def test_a_tied_lm_head_becomes_a_copy_of_what_it_was(tmp_path):
    model = make_model("gpt2")
    before = model.lm_head.weight.clone()
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert ablate_weights(model, vector()).untied
    assert torch.equal(model.lm_head.weight, before)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight, before)
    torch.testing.assert_close(again.get_input_embeddings().weight.data, without(before))


@pytest.mark.parametrize("family", BEHIND_A_NORM)
def test_a_family_whose_layers_put_it_back_is_refused_in_a_line(family):
    model = make_model(family)
    for layer in find_layers(model):
        for name, weight in layer.named_parameters():
            if "norm" in name:  # as trained ones are: not all alike
                weight.copy_(1 + 0.5 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    with pytest.raises(ModelError, match="a norm of their own"):
        ablate_weights(model, vector())


def test_half_precision_leaves_what_rounding_leaves():
    model = make_model("llama").to(torch.bfloat16)
    assert 0 < ablate_weights(model, vector()).after < 2e-2


@pytest.mark.parametrize("wrong", [vector(16), torch.zeros(32), vector() * float("nan")])
def test_a_vector_of_another_model_is_refused(wrong):
    with pytest.raises(UsageError, match="32 numbers"):
        ablate_weights(make_model("llama"), wrong)


@pytest.fixture
def space_file(tmp_path):
    """A space of three roles for models of three layers of 32 numbers."""
    vectors = torch.randn(3, 3, 32, generator=torch.Generator().manual_seed(5))
    axis = torch.randn(3, 32, generator=torch.Generator().manual_seed(6))
    names = ["ghost", "hermit", "clerk"]
    meta = {"format": FORMAT, "model": {"id": "tiny", "fingerprint": "other"}, "layer": 1, "roles": names, "caps": {}}
    tensors = {"role_vectors": vectors, "default_vector": vectors.mean(0) + axis, "axis": axis}
    path = tmp_path / "space.safetensors"
    PersonaSpace({**meta, "axis_pc1": [1.0] * 3}, tensors).save(path)
    return path


def test_the_command_writes_a_folder_that_transformers_loads_and_says_what_it_did(space_file, tiny_folder, tmp_path):
    out = tmp_path / "without"
    line = ["export", space_file, "--format", "weights", "--ablate", "axis", "--model", tiny_folder, "--out", out]
    assert f"weights: {out}" in run(*line).stdout
    about = json.loads((out / "ablated.json").read_text())
    assert about["direction"] == "axis"
    assert about["after"] < 1e-4 < about["before"]
    space = PersonaSpace.load(space_file)
    model = AutoModelForCausalLM.from_pretrained(out)
    expected = AutoModelForCausalLM.from_pretrained(tiny_folder)
    ablate_weights(expected, space.direction("axis"))
    assert torch.equal(model(IDS).logits, expected(IDS).logits)
    assert "is there already" in run(*line, expect=2).stderr


def test_a_direction_that_the_space_lacks_leaves_nothing_behind(space_file, tiny_folder, tmp_path):
    with pytest.raises(SpaceError, match="gost"):
        export_weights(PersonaSpace.load(space_file), "gost", tmp_path / "out", str(tiny_folder))
    assert [path.name for path in tmp_path.iterdir()] == [space_file.name]


def test_a_place_that_cannot_be_written_is_one_line(space_file, tiny_folder, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RunError, match="out: cannot be written: File exists"):
        export_weights(PersonaSpace.load(space_file), "axis", tmp_path / "file" / "out", str(tiny_folder))
