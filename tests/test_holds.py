"""Gentler ways of holding: set, mirrored, decaying, on answers alone; each against a plain loop, and by its name."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, OpenAIGPTConfig

import personaspace as ps
from conftest import make_tokenizer
from personaspace.engines.prompts import Prompt, Sampling
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.errors import SpaceError, UsageError
from personaspace.model.interventions import Add, Cap, Decaying, Mirror, SetTo, from_dict
from personaspace.space.holds import Hold
from planted import planted_space
from test_thinking import ALWAYS, thinking_engine

GREEDY = Sampling(temperature=0, max_new_tokens=8)


def vector(seed: int = 0, n: int = 32) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def ask(k: int, **own) -> Prompt:
    return Prompt(({"role": "user", "content": "why? " * (k % 4) + f"thing {k}"},), index=k, seed=k, **own)


def kinds(where: str = "generated") -> list:
    return [
        SetTo(vector(1), (0, 2), target=(0.5, -1.5), where=where),
        Mirror(torch.stack([vector(2), vector(3)]), (1, 2), floor=2.0, where=where),
        Decaying(Cap(vector(4), (1,), floor=5.0, where=where), 2.0),
        Decaying(Add(vector(5), 0, 6.0, relative=False, where=where), 3.0),
    ]


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    bound=st.floats(-50, 50),
    spread=st.sampled_from([0.1, 1.0, 100.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_set_and_mirrored_projections_are_a_plain_loops_and_nothing_else_moves(seed, bound, spread, dtype):
    g = torch.Generator().manual_seed(seed)
    hidden = (torch.randn(6, 48, generator=g) * spread).to(dtype)
    direction = torch.randn(48, generator=g)
    unit = direction.double() / direction.double().norm()
    for intervention, expected in (
        (SetTo(direction, (3,), target=bound), lambda p: bound),
        (Mirror(direction, (3,), floor=bound), lambda p: 2 * bound - p if p < bound else p),
    ):
        after = intervention.apply(hidden, 3)
        assert after.dtype == dtype
        for before_row, row in zip(hidden.double(), after.double(), strict=True):
            p, q = float(before_row @ unit), float(row @ unit)
            near = {torch.float32: 1e-5, torch.bfloat16: 6e-2, torch.float16: 6e-3}[dtype] * (1 + float(row.norm()))
            assert abs(q - expected(p)) <= near
            across = (row - q * unit) - (before_row - p * unit)
            assert float(across.norm()) <= near
            if isinstance(intervention, Mirror) and p > bound + near:
                assert torch.equal(row, before_row)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), half_life=st.floats(0.1, 100), places=st.lists(st.integers(0, 40), min_size=1))
def test_what_decays_has_half_of_its_strength_after_each_half_life(seed, half_life, places):
    hidden = torch.randn(len(places), 32, generator=torch.Generator().manual_seed(seed))
    inner = Cap(vector(7), (0,), floor=9.0, where="generated")
    full = inner.apply(hidden, 0)
    left = Decaying(inner, half_life).weakened(hidden, full, torch.tensor(places))
    for k, n in enumerate(places):
        torch.testing.assert_close(
            left[k], hidden[k] + 2 ** (-n / half_life) * (full[k] - hidden[k]), rtol=1e-4, atol=1e-4
        )


def test_each_comes_back_from_json_equal_and_those_that_differ_have_other_keys():
    every = [*kinds(), *kinds("answer"), Decaying(kinds()[0], 2.0), Decaying(kinds()[0], 3.0)]
    for i in every:
        assert from_dict(json.loads(json.dumps(i.to_dict()))) == i
    assert len({i.key for i in every}) == len(every)


def by_hand(engine, prompt: Prompt, interventions) -> list[int]:
    """A greedy reply by whole passes over ids, each layer's output changed token by token."""
    ids: list[int] = engine.chat.prompt_ids(prompt.messages)
    out: list[int] = []

    def hook(layer):
        def run(_, __, output):
            hidden = output if isinstance(output, torch.Tensor) else output[0]
            for k in range(hidden.shape[1]):
                n = k - len(ids)
                for i in interventions:
                    if layer not in i.layers_touched() or n < 0:
                        continue
                    h = hidden[0, k]
                    inner = i.of if isinstance(i, Decaying) else i
                    after = inner.apply(h[None], layer)[0]
                    strength = 2 ** (-n / i.half_life) if isinstance(i, Decaying) else 1.0
                    hidden[0, k] = h + strength * (after - h)

        return run

    handles = [layer.register_forward_hook(hook(k)) for k, layer in enumerate(engine.layers)]
    try:
        while len(out) < GREEDY.max_new_tokens:
            with torch.no_grad():
                token = int(engine.model(torch.tensor([ids + out])).logits[0, -1].argmax())
            if token in engine.chat.end_ids:
                break
            out.append(token)
    finally:
        for handle in handles:
            handle.remove()
    return out


def test_replies_beside_each_other_alone_streamed_and_replayed_are_a_plain_loops(tiny):
    chosen = [(i,) for i in kinds()] + [(kinds()[1], kinds()[3]), ()]
    prompts = [ask(k, interventions=chosen[k % len(chosen)]) for k in range(2 * len(chosen))]
    for r in tiny.respond(prompts, GREEDY, read=range(3)):
        expected = by_hand(tiny, r.prompt, r.prompt.interventions)
        assert list(r.token_ids) == expected
        streamed = [t.id for t in tiny.stream(r.prompt, GREEDY) if t.id is not None]
        assert streamed == expected
        ids = tiny.chat.prompt_ids(r.prompt.messages)
        span = ps.Span((*ids, *r.token_ids), ((len(ids), len(ids) + len(r.token_ids)),))
        ((turn,),) = tiny.replay([span], read=range(3), interventions=r.prompt.interventions)
        torch.testing.assert_close(turn.activation, r.activation, rtol=1e-3, atol=1e-3)
        assert turn.touched == r.touched


def test_the_users_own_generate_decays_as_respond_does(tiny):
    ids = tiny.chat.prompt_ids(ask(3).messages)
    (ours,) = tiny.respond([ask(3)], GREEDY, interventions=kinds())
    with ps.attach(tiny.model, *kinds()):
        made = tiny.model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=8, eos_token_id=2)
    assert tuple(t for t in made[0, len(ids) :].tolist() if t != 2) == ours.token_ids
    with pytest.raises(UsageError, match="tell thoughts"), ps.attach(tiny.model, *kinds("answer")):
        pass


def test_a_model_that_keeps_nothing_and_is_fed_whole_each_step_is_held_all_the_same():
    config = OpenAIGPTConfig(n_layer=3, n_embd=32, n_head=2, vocab_size=300, n_positions=128, initializer_range=0.2)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    engine = TransformersEngine(model, make_tokenizer())
    assert not engine.layout.name
    for r in engine.respond([ask(k) for k in range(2)], GREEDY, interventions=kinds()):
        assert list(r.token_ids) == by_hand(engine, r.prompt, kinds())


@pytest.mark.long
def test_on_answers_alone_thoughts_and_prompt_are_left_as_they_are():
    engine = thinking_engine(ALWAYS, thinking=True)
    sampling = Sampling(temperature=1, top_p=1, max_new_tokens=24)
    prompts = [Prompt(({"role": "user", "content": f"why {k}?"},), index=k, seed=k) for k in range(12)]
    plain = {r.prompt.index: r for r in engine.respond(prompts, sampling, read=range(3))}
    hold = SetTo(vector(8), (1,), target=40.0, where="answer")
    n_answers = 0
    for r in engine.respond(prompts, sampling, read=range(3), interventions=[hold]):
        before, (start, _) = plain[r.prompt.index], r.answer
        # Up to the answer's second token nothing has been done that could change what is drawn.
        assert r.token_ids[: start + 1] == before.token_ids[: start + 1]
        assert r.touched == r.tokens
        if r.tokens:
            n_answers += 1
            unit = vector(8) / vector(8).norm()
            assert float(r.activation[1] @ unit) == pytest.approx(40.0, abs=1e-2)
        streamed = list(engine.stream(r.prompt, sampling, read=range(3), interventions=[hold]))
        assert tuple(t.id for t in streamed if t.id is not None) == r.token_ids
    assert n_answers >= 3
    (thoughts,) = engine.respond(prompts[:1], sampling, read=range(3), interventions=[hold], span="thinking")
    (thoughts_before,) = engine.respond(prompts[:1], sampling, read=range(3), span="thinking")
    torch.testing.assert_close(thoughts.activation, thoughts_before.activation, rtol=1e-4, atol=1e-4)
    assert thoughts.touched == 0
    with pytest.raises(UsageError, match="span=answer"):
        engine.replay([prompts[0].messages], read=[0], interventions=[hold], span="all")


def test_a_name_says_what_is_done_and_a_caps_own_name_comes_first():
    space = planted_space()
    cap = space.cap("capped")
    means = tuple(space.default_moments(layer)[0] for layer in cap.layers)
    assert space.hold("capped") == cap
    assert space.hold("capped+target") == SetTo(cap.vector, cap.layers, means)
    assert space.hold("capped+mirror+answer") == Mirror(cap.vector, cap.layers, cap.floor, "answer")
    assert space.hold("capped+generated") == space.cap("capped", "generated")
    assert space.hold("capped+half-life=8") == Decaying(space.cap("capped", "generated"), 8.0)
    assert space.hold("capped+answer+half-life=8") == Decaying(space.cap("capped", "answer"), 8.0)
    assert space.interventions("capped+mirror", 0.2)[1] == space.hold("capped+mirror")
    assert Hold.parse("a+b+mirror", ["a", "a+b"]) == Hold("a+b", "mirror")
    assert Hold.parse("a+mirror", ["a", "a+mirror"]) == Hold("a+mirror")


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("capped+loud", UsageError, "'loud': expected target, mirror, generated, answer, half-life=TOKENS"),
        ("capped+mirror+target", UsageError, "'target': expected"),
        ("capped+half-life=soon", UsageError, "a number over 0"),
        ("capped+half-life=nan", UsageError, "a number over 0"),
        ("nobody+mirror", SpaceError, "no cap 'nobody'"),
    ],
)
def test_a_name_that_says_nothing_is_refused_in_a_line(name, error, said):
    with pytest.raises(error, match=said):
        planted_space().hold(name)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SetTo(vector(), (0, 1), target=(1.0,)), "1 values of target for 2 layers"),
        (lambda: SetTo(vector(), (0,), target=math.inf), "target is inf"),
        (lambda: Mirror(vector(), (0,), floor=math.nan), "floor is nan"),
        (lambda: Decaying(Cap(vector(), (0,), floor=1.0), 4.0), "where=generated"),
        (lambda: Decaying(kinds()[0], 0.0), "more than 0 tokens"),
        (lambda: from_dict({"kind": "decaying", "half_life": 2.0}), "of"),
        (lambda: from_dict({"kind": "decaying", "of": 3, "half_life": 2.0}), "kind decaying"),
        (lambda: Cap(vector(), (0,), floor=1.0, where="prompt"), "expected all, generated or answer"),
    ],
)
def test_one_that_makes_no_sense_is_refused_in_words(make, said):
    with pytest.raises(UsageError, match=said):
        make()
