"""Reading before the first word: what is read at a prompt's last token is what a plain pass of that prompt alone gives."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import personaspace as ps
from conftest import FAMILIES, make_model, make_tokenizer
from personaspace.engines import ONSET
from personaspace.engines.protocol import ReadOptions
from personaspace.engines.transformers import onset
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.errors import ActivationError, UsageError

SYSTEMS = ["You are a ghost who haunts an old house.", "You are a clerk.", "You are a ghost who has left.", None]


def prompts(n: int = 14) -> list[ps.Prompt]:
    """Of unequal lengths, many of which share their system prompt, or its first words."""
    chance = random.Random(0)
    asked = []
    for k in range(n):
        system = SYSTEMS[k % len(SYSTEMS)]
        user = {"role": "user", "content": "Why? " * chance.randint(0, 6) + f"{k}"}
        messages = (user,) if system is None else ({"role": "system", "content": system}, user)
        asked.append(ps.Prompt(messages, role=f"role{k % 4}", index=k))
    return asked


def plainly(engine: TransformersEngine, prompt: ps.Prompt) -> torch.Tensor:
    """The last token's residual stream `[layers, hidden]` from a pass of the prompt alone that keeps all hidden states."""
    streams: list[torch.Tensor] = []
    hooks = [layer.register_forward_hook(lambda _, __, out: streams.append(out)) for layer in engine.layers]
    try:
        engine.model(input_ids=torch.tensor([engine.chat.prompt_ids(prompt.messages)]), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack([(s if isinstance(s, torch.Tensor) else s[0])[0, -1] for s in streams])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prefill_tokens", [1, 200, 4096])
def test_onsets_are_the_last_tokens_of_plain_passes_in_every_family(family, prefill_tokens):
    engine = TransformersEngine(make_model(family), make_tokenizer())
    engine.prefill_tokens = prefill_tokens
    asked = prompts()
    read = list(engine.onsets(asked, read=range(3)))
    assert sorted(r.prompt.index for r in read) == list(range(len(asked)))
    for r in read:
        plain = plainly(engine, r.prompt)
        assert torch.cosine_similarity(r.activation, plain, dim=-1).min() > 0.9999
        assert torch.allclose(r.activation, plain, rtol=1e-3, atol=1e-3)
        assert torch.allclose(r.norms, plain.norm(dim=-1), rtol=1e-3)
        assert (r.text, r.finish_reason) == ("", ONSET)
        assert r.token_ids == (engine.chat.prompt_ids(r.prompt.messages)[-1],)


def test_hidden_states_of_transformers_give_the_same_but_for_the_last_layer_that_is_normed_there(tiny):
    (read,) = tiny.onsets(prompts(1), read=range(3))
    ids = torch.tensor([tiny.chat.prompt_ids(read.prompt.messages)])
    states = tiny.model(input_ids=ids, output_hidden_states=True).hidden_states
    for layer in range(2):
        assert torch.allclose(read.activation[layer], states[layer + 1][0, -1], atol=1e-4)


def test_what_is_read_does_not_depend_on_which_prompts_stand_beside_it(tiny):
    together = {r.prompt.index: r.activation for r in tiny.onsets(prompts(), read=[1])}
    for prompt in prompts():
        (alone,) = tiny.onsets([prompt], read=[1])
        assert torch.allclose(alone.activation, together[prompt.index], atol=1e-4)


def test_interventions_hold_for_prompts_of_their_own_and_those_for_generated_tokens_change_nothing(tiny):
    direction = torch.ones(32)
    add = ps.Add(direction, layer=1, alpha=3.0, relative=False)
    later = ps.Add(direction, layer=1, alpha=3.0, relative=False, where="generated")
    (prompt,) = prompts(1)
    own = ps.Prompt(prompt.messages, index=1, interventions=(add,))
    (plain,) = tiny.onsets([prompt], read=[0, 1], interventions=[later])
    moved = {r.prompt.index: r for r in tiny.onsets([prompt, own], read=[0, 1])}
    assert torch.equal(moved[0].activation, plain.activation)
    assert torch.allclose(moved[1].activation[1] - plain.activation[1], 3.0 * direction, atol=1e-4)
    with tiny.intervening(add):
        (around,) = tiny.onsets([prompt], read=[0, 1])
    assert torch.allclose(around.activation, moved[1].activation, atol=1e-5)


def test_no_prompts_are_no_readings_and_a_wrong_layer_is_said(tiny):
    assert list(tiny.onsets([], read=[0])) == []
    with pytest.raises(UsageError, match="layers 0 to 2"):
        list(tiny.onsets(prompts(1), read=[3]))


def test_nan_names_layer_and_prompt():
    engine = TransformersEngine(make_model("llama"), make_tokenizer())
    engine.model.model.layers[1].mlp.down_proj.weight[:] = float("nan")
    with pytest.raises(ActivationError, match="layer 1 of the response of role0"):
        list(engine.onsets(prompts(1), read=range(3)))


def test_replaying_engines_read_the_same(tiny):
    ours = {r.prompt.index: r.activation for r in tiny.onsets(prompts(), read=range(3))}
    ids = [tiny.chat.prompt_ids(p.messages) for p in prompts()]
    for place, activation in super(TransformersEngine, tiny)._onsets(ids, ReadOptions((0, 1, 2))):
        assert torch.allclose(activation, ours[place], atol=1e-4)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=40), min_size=1, max_size=12))
def test_every_prompt_is_in_one_prefix_that_it_really_begins_with(ids):
    prefixes = onset.shared_prefixes(ids)
    assert sorted(m for p in prefixes for m in p.members) == list(range(len(ids)))
    for prefix in prefixes:
        assert prefix.length % onset.PREFIX_STEP == 0
        assert len({tuple(ids[m][: prefix.length]) for m in prefix.members}) == 1
        assert all(len(ids[m]) > prefix.length for m in prefix.members)
        assert prefix.length == 0 or prefix.length >= onset.SHORTEST_PREFIX
