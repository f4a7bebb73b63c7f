"""The same numbers as engine `transformers`, request by request, whatever stands beside a request in a batch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import FAMILIES
from torch.nn.functional import cosine_similarity

from personaspace.engines import Response, Span
from personaspace.engines.prompts import Prompt, Sampling
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.model.interventions import Ablate, Add, Cap

GREEDY = Sampling(temperature=0, max_new_tokens=12)
QUESTIONS = ["Who are you?", "What is a tide, and why does it come twice a day?", "Tell me about bread.", "Why?", "Boo"]


def prompts(n: int = 5) -> list[Prompt]:
    return [Prompt(({"role": "user", "content": QUESTIONS[k % 5] + "!" * (k // 5)},), question=k) for k in range(n)]


def direction(hidden: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(hidden, generator=torch.Generator().manual_seed(seed))


@functools.cache
def load_reference(folder: str) -> TransformersEngine:
    """The default engine, loaded once: vLLM changes classes of `transformers` that it runs itself. This one stays as it is."""
    engine = TransformersEngine.load(folder)
    vars(engine.model.base_model)["do_not_compile"] = True
    return engine


def in_order(responses: Any) -> list[Response]:
    return sorted(responses, key=lambda r: r.prompt.question)


def replayed(reference: TransformersEngine, r: Response, interventions: Any = ()) -> torch.Tensor:
    """The mean over the same token ids through `transformers`, `[layers, hidden]`."""
    ids = reference.chat.prompt_ids(r.prompt.messages)
    span = Span((*ids, *r.token_ids), ((len(ids), len(ids) + len(r.token_ids)),))
    layers = range(reference.info.layers)
    return next(iter(reference.replay([span], read=layers, interventions=interventions)))[0].activation


def alike(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(cosine_similarity(a, b, dim=-1).min())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_reads_and_caps_as_in_transformers(
    family: str, folders: Callable[[str], str], opened: Callable[..., Any]
) -> None:
    reference = load_reference(folders(family))
    engine = opened(folders(family))
    assert engine.info.layers == reference.info.layers
    assert engine.info.fingerprint == reference.info.fingerprint
    layers = range(engine.info.layers)
    u = direction(engine.info.hidden)
    for plain in in_order(engine.respond(prompts(), GREEDY, read=layers)):
        expected = replayed(reference, plain)
        assert alike(plain.activation, expected) >= 0.9999
        assert torch.allclose(plain.activation, expected, rtol=5e-3, atol=5e-3 * float(expected.abs().max()))
    floor = float(expected @ u / u.norm() if expected.dim() == 1 else (expected[1] @ u / u.norm())) + 1.0
    cap = Cap(u, (1, 2), floor=floor)
    mine, theirs = (
        in_order(e.respond(prompts(), GREEDY, read=layers, interventions=[cap])) for e in (engine, reference)
    )
    for a, b in zip(mine, theirs, strict=True):
        assert alike(a.activation, replayed(reference, a, [cap])) >= 0.9999
        assert (a.activation[1:] @ (u / u.norm()) >= floor - 1e-3 * abs(floor) - 1e-3).all()
        assert a.touched > 0
        assert a.token_ids == b.token_ids


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_of_a_family_are_read_before_the_first_word_as_in_transformers(
    family: str, folders: Callable[[str], str], opened: Callable[..., Any]
) -> None:
    reference, engine = load_reference(folders(family)), opened(folders(family))
    layers = range(engine.info.layers)
    system = {"role": "user", "content": "You are a lighthouse keeper, at home with storms and silence. "}
    shared = [
        Prompt(({**system, "content": system["content"] + p.messages[0]["content"]},), question=5 + k)
        for k, p in enumerate(prompts())
    ]
    for given in ([], [Cap(direction(engine.info.hidden), (1, 2), floor=2.0)]):
        ours, theirs = (
            in_order(e.onsets([*prompts(), *shared], read=layers, interventions=given)) for e in (engine, reference)
        )
        for a, b in zip(ours, theirs, strict=True):
            assert (a.text, a.token_ids, a.finish_reason) == ("", b.token_ids, "onset")
            assert alike(a.activation, b.activation) >= 0.9999


@pytest.fixture(scope="module")
def llama(folders: Callable[[str], str]) -> str:
    return folders("llama")


@pytest.fixture(scope="module")
def reference(llama: str) -> TransformersEngine:
    return load_reference(llama)


def kinds(hidden: int) -> list[Any]:
    u = direction(hidden)
    return [
        Cap(u, (0, 1), floor=2.0, where="generated"),
        Cap(u, (1, 2), ceiling=-1.0),
        Add(u, 1, 2.0, norm=3.0),
        Ablate(u, 2),
        Add(-u, 0, 1.5, relative=False, where="generated"),
    ]


def test_each_request_of_a_batch_gets_its_own(
    llama: str, reference: TransformersEngine, opened: Callable[..., Any]
) -> None:
    engine = opened(llama)
    own = kinds(engine.info.hidden)
    asked = [Prompt(p.messages, question=p.question, interventions=(i,)) for p, i in zip(prompts(), own, strict=True)]
    for a, b in zip(*(in_order(e.respond(asked, GREEDY, read=[0, 2])) for e in (engine, reference)), strict=True):
        assert a.token_ids == b.token_ids
        assert a.finish_reason == b.finish_reason
        assert alike(a.activation, b.activation) >= 0.9999
        assert torch.allclose(a.norms, b.norms, rtol=1e-3)
        assert a.touched == b.touched


def test_plain_requests_are_bit_equal_beside_capped_ones(llama: str, opened: Callable[..., Any]) -> None:
    engine = opened(llama, enable_prefix_caching=False, max_logprobs=300)
    from vllm import SamplingParams

    cap = engine._define([Cap(direction(engine.info.hidden), (0, 1, 2), floor=5.0)])

    def batch(capped: bool) -> list[Any]:
        for k, p in enumerate(prompts()):
            extra = {"personaspace": {"interventions": cap}} if capped and k % 2 else None
            params = SamplingParams(
                temperature=0, max_tokens=10, ignore_eos=True, logprobs=300, detokenize=False, extra_args=extra
            )
            engine.core.add_request(f"r{k}", {"prompt_token_ids": engine.chat.prompt_ids(p.messages)}, params)
        out = {}
        while engine.core.has_unfinished_requests():
            out.update({o.request_id: o for o in engine.core.step()})
        return [out[f"r{k}"].outputs[0] for k in range(5)]

    without, beside = batch(False), batch(True)
    for k in range(5):
        values = [[{i: p.logprob for i, p in step.items()} for step in o[k].logprobs] for o in (without, beside)]
        assert (values[0] == values[1]) == (k % 2 == 0)
        if k % 2 == 0:
            assert without[k].token_ids == beside[k].token_ids


def test_a_replayed_conversation_reads_as_in_transformers(
    llama: str, reference: TransformersEngine, opened: Callable[..., Any]
) -> None:
    engine = opened(llama, max_num_batched_tokens=32)
    talks = [
        [
            {"role": "user", "content": q},
            {"role": "assistant", "content": "It is so, I believe."},
            {"role": "user", "content": "More."},
            {"role": "assistant", "content": "No."},
        ]
        for q in QUESTIONS
    ]
    for given in ([], [kinds(engine.info.hidden)[0]], [kinds(engine.info.hidden)[1]]):
        ours, theirs = (
            list(e.replay(talks, read=[0, 1, 2], interventions=given, logprobs=True)) for e in (engine, reference)
        )
        for a, b in zip((t for turns in ours for t in turns), (t for turns in theirs for t in turns), strict=True):
            assert (a.index, a.tokens, a.touched) == (b.index, b.tokens, b.touched)
            assert alike(a.activation, b.activation) >= 0.9999
            assert a.logprob == pytest.approx(b.logprob, rel=1e-3)


def test_a_reply_streams_with_each_tokens_own_activation(
    llama: str, reference: TransformersEngine, opened: Callable[..., Any]
) -> None:
    engine = opened(llama, async_scheduling=False)
    cap = kinds(engine.info.hidden)[0]
    ours, theirs = (list(e.stream(prompts()[1], GREEDY, read=[1, 2], interventions=[cap])) for e in (engine, reference))
    assert [t.id for t in ours] == [t.id for t in theirs]
    assert "".join(t.text for t in ours) == "".join(t.text for t in theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.activation is None) == (b.activation is None)
        assert a.finish_reason == b.finish_reason
        if a.activation is not None:
            assert alike(a.activation, b.activation) >= 0.9999
            assert a.touched == b.touched
