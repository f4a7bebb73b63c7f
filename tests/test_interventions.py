"""Adding, ablating, capping: the formulas, what stays as it was, and rows that differ in one batch."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import personaspace
from conftest import FAMILIES, make_model, make_tokenizer
from personaspace.engines.prompts import Prompt, Sampling
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.errors import UsageError
from personaspace.model.interventions import Ablate, Add, Cap, from_dict

GREEDY = Sampling(temperature=0, max_new_tokens=8)


def vector(seed: int = 0, n: int = 32) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def ask(k: int, **own) -> Prompt:
    return Prompt(({"role": "user", "content": "why? " * (k % 4) + f"thing {k}"},), index=k, seed=k, **own)


def everything() -> list:
    return [
        Add(vector(1), 0, 0.5, norm=10.0),
        Add(vector(2), 1, -2.0, relative=False, where="generated"),
        Ablate(vector(3), 1),
        Cap(vector(4), (0, 2), floor=(1.5, 2.5)),
        Cap(torch.stack([vector(5), vector(6)]), (1, 2), floor=-1.0, ceiling=1.0, where="generated"),
    ]


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.sampled_from([2, 8, 64, 576]),
    spread=st.sampled_from([0.01, 1.0, 300.0]),
    outlier=st.sampled_from([0.0, 50.0]),
    floor=st.floats(-100, 100),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_no_activation_stays_under_a_floor_and_one_above_is_unchanged(seed, size, spread, outlier, floor, dtype):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(3, 5, size, generator=g) * spread
    hidden[:, 0, seed % size] += outlier * spread
    hidden, direction = hidden.to(dtype), torch.randn(size, generator=g)
    capped = Cap(direction, (0,), floor=floor).apply(hidden, 0)
    unit = direction.double() / direction.double().norm()
    before, after = hidden.double() @ unit, capped.double() @ unit
    assert capped.dtype == dtype
    assert (floor - after <= 1e-3 * capped.double().norm(dim=-1)).all()
    above = before >= floor + 1e-4 * hidden.double().norm(dim=-1)
    assert torch.equal(capped[above], hidden[above])


def test_cap_add_and_ablate_are_the_formulas_of_the_method_computed_by_a_plain_loop():
    hidden, v = torch.randn(7, 32, generator=torch.Generator().manual_seed(9)) * 3, vector()
    unit = v / v.norm()
    for h, capped, added, raw, ablated, both in zip(
        hidden,
        Cap(v, (3,), floor=0.7).apply(hidden, 3),
        Add(v, 0, 0.4, norm=12.0).apply(hidden, 0),
        Add(v, 0, 0.4, relative=False).apply(hidden, 0),
        Ablate(v, 0).apply(hidden, 0),
        Cap(v, (3,), floor=-0.2, ceiling=0.2).apply(hidden, 3),
        strict=True,
    ):
        on = sum(float(a) * float(b) for a, b in zip(h, unit, strict=True))
        torch.testing.assert_close(capped, h - unit * min(on - 0.7, 0))
        torch.testing.assert_close(added, h + 0.4 * 12.0 * unit)
        torch.testing.assert_close(raw, h + 0.4 * v)
        torch.testing.assert_close(ablated, h - on * unit)
        torch.testing.assert_close(both, h + unit * (max(-0.2, min(0.2, on)) - on))


def test_an_intervention_comes_back_from_json_equal_and_with_the_same_key():
    for i in everything():
        again = from_dict(json.loads(json.dumps(i.to_dict())))
        assert again == i
        assert again.key == i.key
    assert len({i.key for i in everything()}) == 5


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_with_different_interventions_in_one_batch_get_what_they_get_alone(family):
    engine = TransformersEngine(make_model(family), make_tokenizer(), rows=4)
    one = everything()
    chosen = [(), (one[0],), (one[3],), (one[1], one[4]), (one[2], one[0], one[3])]
    prompts = [ask(k, interventions=chosen[k % 5]) for k in range(10)]
    together = {r.prompt.index: r for r in engine.respond(prompts, GREEDY, read=range(3))}
    for p in prompts:
        (alone,) = engine.respond([p], GREEDY, read=range(3))
        assert alone.token_ids == together[p.index].token_ids
        torch.testing.assert_close(alone.activation, together[p.index].activation, rtol=1e-3, atol=1e-3)
        assert alone.touched == together[p.index].touched
    assert any(
        together[k].token_ids != next(engine.respond([ask(k)], GREEDY)).token_ids for k in range(10) if chosen[k % 5]
    )


@pytest.mark.parametrize("where", ["all", "generated"])
def test_what_is_read_is_after_the_intervention_and_in_replay_the_same(tiny, where):
    caps = [Cap(vector(7), (1,), floor=4.0, where=where), Add(vector(8), 0, 3.0, relative=False, where=where)]
    unit = vector(7) / vector(7).norm()
    for r in tiny.respond([ask(k) for k in range(6)], GREEDY, read=range(3), interventions=caps, before=True):
        if not r.token_ids:
            continue
        assert float(r.activation[1] @ unit) >= 4.0 - 1e-3 * float(r.norms[1])
        torch.testing.assert_close(r.activation[0], r.before[0] + 3.0 * vector(8), rtol=1e-4, atol=1e-4)
        ids = tiny.chat.prompt_ids(r.prompt.messages)
        span = personaspace.Span((*ids, *r.token_ids), ((len(ids), len(ids) + len(r.token_ids)),))
        ((turn,),) = tiny.replay([span], read=range(3), interventions=caps)
        torch.testing.assert_close(turn.activation, r.activation, rtol=1e-3, atol=1e-3)
        assert turn.touched == r.touched == len(r.token_ids)


def test_leaving_the_block_restores_the_model_bit_for_bit_also_after_an_exception(tiny):
    ids = torch.arange(4, 20)[None]
    before = tiny.model(ids).logits
    plain = [r.token_ids for r in tiny.respond([ask(1)], GREEDY)]
    inside = []

    def fail(block):
        with block:
            inside.append((tiny.model(ids).logits, [r.token_ids for r in tiny.respond([ask(1)], GREEDY)]))
            raise KeyError

    with pytest.raises(KeyError):
        fail(tiny.intervening(*everything()))
    with pytest.raises(KeyError):
        fail(personaspace.attach(tiny.model, *everything()))
    (_, capped), (changed, _) = inside
    assert not torch.equal(changed, before)
    assert torch.equal(tiny.model(ids).logits, before)
    assert [r.token_ids for r in tiny.respond([ask(1)], GREEDY)] == plain != capped
    stopped = tiny.respond([ask(1), ask(2)], GREEDY, read=range(3), interventions=everything())
    next(stopped)
    stopped.close()
    assert torch.equal(tiny.model(ids).logits, before)


def test_a_block_is_captured_where_respond_is_called_and_comes_before_a_rows_own(tiny):
    cap, add = everything()[3], everything()[0]
    with tiny.intervening(cap):
        pending = tiny.respond([ask(2)], GREEDY, interventions=[add])
    (inside,), (written,) = pending, tiny.respond([ask(2)], GREEDY, interventions=[cap, add])
    assert inside.token_ids == written.token_ids


def test_attach_makes_the_users_own_generate_say_what_respond_says(tiny):
    ids = tiny.chat.prompt_ids(ask(3).messages)
    some = [everything()[0], everything()[4]]
    (ours,) = tiny.respond([ask(3)], GREEDY, interventions=some)
    with personaspace.attach(tiny.model, *some):
        made = tiny.model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=8, eos_token_id=2)
    reply = made[0, len(ids) :].tolist()
    assert tuple(t for t in reply if t != 2) == ours.token_ids


def test_an_attachment_inside_another_leaves_it_as_it_was(tiny):
    ids = torch.tensor([tiny.chat.prompt_ids(ask(3).messages)])
    outer = Add(torch.linspace(-1, 1, 32), layer=1, alpha=4.0, relative=False, where="generated")
    inner = Add(torch.linspace(1, -1, 32), layer=2, alpha=2.0, relative=False)
    options = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": None, "prompt_lookup_num_tokens": 3}
    with personaspace.attach(tiny.model, outer):
        expected = tiny.model.generate(ids, **options)
        with personaspace.attach(tiny.model, inner):
            assert not torch.equal(tiny.model.generate(ids, **options), expected)
        assert torch.equal(tiny.model.generate(ids, **options), expected)
    assert "generate" not in vars(tiny.model)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("how", ["prompt lookup", "an assistant model", "a left-padded batch", "no cache"])
def test_what_is_for_generated_tokens_alone_acts_on_all_of_them_however_generate_makes_them(tiny, family, how):
    model, assistant = make_model(family), make_model("llama", seed=1)
    ids = torch.tensor([tiny.chat.prompt_ids(ask(3).messages)])
    some = [Add(torch.linspace(-1, 1, 32), layer=1, alpha=4.0, relative=False, where="generated")]
    options = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": None}
    lengths = []
    with personaspace.attach(model, *some):
        plain = model.generate(ids, **options)[0].tolist()
        counting = model.lm_head if hasattr(model, "lm_head") else model.embed_out
        handle = counting.register_forward_hook(lambda _, __, logits: lengths.append(logits.shape[1]))
        if how == "prompt lookup":
            other = model.generate(ids, prompt_lookup_num_tokens=3, **options)[0].tolist()
            assert max(lengths[1:]) > 1
        elif how == "an assistant model":
            other = model.generate(input_ids=ids, assistant_model=assistant, **options)[0].tolist()
        elif how == "no cache":
            other = model.generate(ids, use_cache=False, **options)[0].tolist()
        else:
            padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), ids], 1)
            mask = (padded > 0).long()
            other = model.generate(padded, attention_mask=mask, **options)[0, 5:].tolist()
        handle.remove()
    assert other == plain
    assert plain != model.generate(ids, **options)[0].tolist()
    assert "generate" not in vars(model)
    hooked = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert hooked == []


def test_a_prompt_of_one_token_is_no_generated_one(tiny):
    model = make_model("gpt_neox")
    some = [Add(torch.linspace(-1, 1, 32), layer=1, alpha=40.0, relative=False, where="generated")]
    options = {"do_sample": False, "max_new_tokens": 1, "pad_token_id": 0, "eos_token_id": None}
    ids = torch.tensor([[9]])
    plain = model.generate(ids, output_logits=True, return_dict_in_generate=True, **options).logits[0]
    for use_cache in (True, False):
        with personaspace.attach(model, *some):
            made = model.generate(ids, use_cache=use_cache, output_logits=True, return_dict_in_generate=True, **options)
        assert torch.equal(made.logits[0], plain)


@pytest.mark.parametrize("read", [range(3), ()])
def test_a_stream_is_the_response_token_by_token_each_tokens_activation_one_step_later(tiny, read):
    caps = [everything()[3]]
    (whole,) = tiny.respond([ask(5)], GREEDY, read=range(3), interventions=caps)
    tokens = list(tiny.stream(ask(5), GREEDY, read=read, interventions=caps))
    assert tuple(t.id for t in tokens if t.id is not None) == whole.token_ids
    assert "".join(t.text for t in tokens) == whole.text
    assert [t.finish_reason for t in tokens] == [""] * (len(tokens) - 1) + [whole.finish_reason]
    if read:
        each = torch.stack([t.activation for t in tokens if t.activation is not None])
        torch.testing.assert_close(each.mean(0), whole.activation)
        assert sum(t.touched for t in tokens) == whole.touched


def test_replays_log_probabilities_are_those_of_a_plain_pass(tiny):
    spans = [personaspace.Span(tuple(range(4, 30 + k)), ((10, 20), (22, 26 + k))) for k in range(3)]
    for span, turns in zip(spans, tiny.replay(spans, read=[0], logprobs=True, each=True), strict=True):
        logits = tiny.model(torch.tensor([span.token_ids])).logits[0].log_softmax(-1)
        for (a, b), turn in zip(span.spans, turns, strict=True):
            expected = sum(float(logits[t - 1, span.token_ids[t]]) for t in range(a, b)) / (b - a)
            assert turn.logprob == pytest.approx(expected, abs=1e-4)
            torch.testing.assert_close(turn.each.mean(0), turn.activation)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Cap(vector(), (1,), floor=float("nan")), "floor is nan"),
        (lambda: Cap(vector(), (1,)), "neither a floor nor a ceiling"),
        (lambda: Cap(vector(), (), floor=1.0), "layers"),
        (lambda: Cap(vector(), (0, 1), floor=(1.0,)), "1 values of floor for 2 layers"),
        (lambda: Cap(vector(), (0,), floor=2.0, ceiling=1.0), "above the ceiling"),
        (lambda: Cap(vector() * float("inf"), (0,), floor=2.0), "finite vector"),
        (lambda: Add(vector(), 0, 1.0), "norm"),
        (lambda: Ablate(torch.zeros(32), 0), "not zero"),
        (lambda: Add(vector(), 0, 1.0, relative=False, where="prompt"), "expected all, generated or answer"),
        (lambda: from_dict({"kind": "melt"}), "'melt'"),
        (lambda: from_dict({"kind": "cap", "vector": [1.0], "depth": 3}), "depth"),
    ],
)
def test_one_that_makes_no_sense_is_refused_in_words(make, said):
    with pytest.raises(UsageError, match=said):
        make()


def test_one_for_another_model_is_refused_before_anything_runs(tiny):
    with pytest.raises(UsageError, match=r"layers \[3\].*0 to 2"):
        tiny.respond([ask(0)], GREEDY, interventions=[Cap(vector(), (1, 3), floor=0.0)])
    with pytest.raises(UsageError, match=r"16 numbers.*32"), tiny.intervening(Ablate(vector(n=16), 0)):
        pass
