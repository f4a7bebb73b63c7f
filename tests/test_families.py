"""Every causal language model that `transformers` can build: its replies, readings and caps against plain passes.

What is left out stands in LEFT_OUT with its reason, which a test holds as well; docs/families.md is the table of both.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch

import personaspace as ps
from conftest import make_tokenizer
from families import KINDS, LEFT_OUT, WORKING, kept_by, make_family, table
from personaspace.engines.prompts import Prompt, Sampling
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.errors import ModelError
from personaspace.holding import calibrate
from personaspace.model.interventions import Cap
from personaspace.runs import Run
from served import serving
from test_engine import close

pytestmark = pytest.mark.long
GREEDY = Sampling(temperature=0, max_new_tokens=6)
kept: dict[str, str] = {}
"""What each family was seen to keep between tokens, by the tests above the table's."""


def prompts() -> list[Prompt]:
    """Of unequal lengths, two of them with a beginning in common."""
    long = (
        "A beginning that is long enough to be worth a pass of its own, which rows after it look back at, all of them."
    )
    texts = ["?", "why? " * 3, long + " one", long + " and two", "why is that so? " * 2]
    return [Prompt(({"role": "user", "content": text},), index=k, seed=k) for k, text in enumerate(texts)]


def streams(engine: TransformersEngine, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a plain pass, unpadded and without a cache: every layer's residual stream `[layers, tokens, hidden]`, and logits."""
    seen: list[torch.Tensor] = []
    handles = [
        layer.register_forward_hook(lambda _, __, out: seen.append(out if isinstance(out, torch.Tensor) else out[0]))
        for layer in engine.layers
    ]
    with torch.inference_mode():
        logits = engine.model(torch.tensor([ids]), use_cache=False).logits[0]
    for handle in handles:
        handle.remove()
    return torch.stack([hidden[0] for hidden in seen]), logits


@pytest.mark.parametrize("kind", WORKING)
def test_replies_readings_and_caps_of_a_family_are_those_of_plain_passes(kind):
    engine = TransformersEngine(make_family(kind), make_tokenizer(), rows=3)
    kept[kind] = kept_by(engine)
    read = range(engine.info.layers)
    answers = {r.prompt.index: r for r in engine.respond(prompts(), GREEDY, read=read)}
    assert len(answers) == 5
    onsets = {r.prompt.index: r for r in engine.onsets(prompts(), read=read)}
    # All in one call, so that they are read several at once.
    conversations = [[*r.prompt.messages, {"role": "assistant", "content": "It is so."}] for r in answers.values()]
    replayed = dict(zip(answers, engine.replay(conversations, read=read), strict=True))
    for k, reply in answers.items():
        ids = engine.chat.prompt_ids(reply.prompt.messages)
        plain, logits = streams(engine, [*ids, *reply.token_ids])
        ended = [] if reply.finish_reason == "length" else [sorted(engine.chat.end_ids)[0]]
        for token, scores in zip([*reply.token_ids, *ended], logits[len(ids) - 1 :], strict=False):
            assert float(scores.max() - scores[token]) < 1e-3  # the most probable, where the best two are apart
        if reply.token_ids:
            assert close(reply.activation, plain[:, len(ids) :].mean(1))
        assert close(onsets[k].activation, plain[:, len(ids) - 1])
        conversation = [*reply.prompt.messages, {"role": "assistant", "content": "It is so."}]
        span, _ = engine.chat.spans(conversation)
        ((a, b),) = span.spans
        assert close(replayed[k][0].activation, streams(engine, list(span.token_ids))[0][:, a:b].mean(1))
    # A cap far above where replies lie: every token is held at its floor.
    axis = torch.nn.functional.normalize(
        torch.randn(engine.info.hidden, generator=torch.Generator().manual_seed(1)), dim=0
    )
    floor = 5 * max(float(r.norms[1]) for r in answers.values()) + 1
    for reply in engine.respond(prompts(), GREEDY, read=[1], interventions=[Cap(axis, (1,), floor=floor)]):
        if reply.token_ids:
            assert float(reply.activation[0] @ axis) == pytest.approx(floor, rel=1e-3)
            assert reply.touched == len(reply.token_ids)


@pytest.mark.parametrize("kind", ["qwen3_5_text", "gemma4_text", "mamba", "jamba", "bart", "rwkv", "openai-gpt"])
def test_a_family_is_mapped_and_served_capped_and_not_several_at_once(kind, small_catalog, tmp_path):
    engine = TransformersEngine(make_family(kind), make_tokenizer(), id="tiny", rows=4)
    few = {"per_role": 3, "default_responses": 40, "max_new_tokens": 4}
    space = ps.map(engine, tmp_path, catalog=small_catalog, layer=1, **few)
    space = calibrate.calibrate(engine, space, calibrate.draw_sample(Run(tmp_path)), range(1, 3))
    space = calibrate.recommended(space, "all-p75@1:3", {"because": "a test"})
    bodies = [
        {"model": model, "messages": [{"role": "user", "content": "why? " * n}], "max_tokens": 5, "temperature": 0}
        for model in ("tiny", "tiny:capped")
        for n in (1, 4, 9)
    ]
    with serving(space, engine, rows=4) as (address, _):

        def ask(body):
            return httpx.post(f"{address}/v1/chat/completions", json=body, timeout=120).json()

        alone = [ask(body) for body in bodies]
        with ThreadPoolExecutor(6) as pool:
            together = list(pool.map(ask, bodies))
    texts = [[reply["choices"][0]["message"]["content"] for reply in replies] for replies in (alone, together)]
    assert texts[0] == texts[1]
    greedy = Sampling(temperature=0, max_new_tokens=5)
    for k, applied in ((2, ()), (5, (space.cap(),))):
        (expected,) = engine.respond([Prompt(tuple(bodies[k]["messages"]))], greedy, interventions=applied)
        assert texts[0][k] == expected.text
    assert all("projection" in json.dumps(reply["persona"]) for reply in alone)


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_a_family_that_is_left_out_is_left_out_for_the_reason_that_is_said(kind):
    if refused := LEFT_OUT[kind].refused:  # by us, in one line
        with pytest.raises(ModelError, match=refused):
            TransformersEngine(make_family(kind), make_tokenizer())
    else:  # transformers itself does not get so far
        with pytest.raises((AttributeError, RuntimeError, ValueError)):
            make_family(kind).generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2, do_sample=False)


@pytest.mark.parametrize("kind", [kind for kind, left in LEFT_OUT.items() if left.contradicts])
def test_what_generate_says_of_a_family_is_not_what_it_says_without_its_cache(kind):
    model, ids = make_family(kind), torch.tensor([[4, 5, 6, 7, 8]])
    how = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    assert not torch.equal(model.generate(ids, use_cache=True, **how), model.generate(ids, use_cache=False, **how))


def test_no_family_is_missing_and_the_table_in_the_docs_is_what_was_seen(request):
    assert {*WORKING, *LEFT_OUT} == {*KINDS}
    if kept.keys() != {*WORKING}:
        pytest.skip("some families were not tried")
    assert (request.config.rootpath / "docs/families.md").read_text(encoding="utf-8") == table(kept)
