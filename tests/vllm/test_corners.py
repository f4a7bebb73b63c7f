"""The engine's corners: chunks, caches, requests that are put off, that end early, that ask for what cannot be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_numbers import GREEDY, alike, direction, in_order, kinds, load_reference, prompts, replayed

from personaspace.engines.prompts import Prompt, Sampling
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.errors import UsageError
from personaspace.model.interventions import Add, Cap

LAYERS = (0, 1, 2)


@pytest.fixture(scope="module")
def reference(folders: Callable[[str], str]) -> TransformersEngine:
    return load_reference(folders("llama"))


def readout(engine: Any) -> Any:
    return engine.core.engine_core.engine_core.model_executor.driver_worker.worker.personaspace.readout


def nothing_is_held(engine: Any) -> bool:
    """No request, slot or row is in use once another step has told the worker who ended."""
    list(engine.respond(prompts(1), Sampling(temperature=0, max_new_tokens=1)))
    engine.core.step()
    t = readout(engine)
    free = sorted(t._free) == list(range(t.sums.slots))
    return not t.live and free and not any(t.rows._used.values())


@pytest.mark.parametrize("tokens", [16, 24])
def test_prompts_in_chunks(
    tokens: int, folders: Callable[[str], str], reference: TransformersEngine, opened: Callable[..., Any]
) -> None:
    engine = opened(folders("llama"), max_num_batched_tokens=tokens, max_num_seqs=4)
    for given in ((), (kinds(128)[1],), (kinds(128)[0],)):
        for r in engine.respond(prompts(7), GREEDY, read=LAYERS, interventions=given):
            assert alike(r.activation, replayed(reference, r, given)) >= 0.9999
    assert nothing_is_held(engine)


def test_a_cached_beginning_belongs_to_its_intervention(
    folders: Callable[[str], str], reference: TransformersEngine, opened: Callable[..., Any]
) -> None:
    engine = opened(folders("llama"), block_size=32)
    long = Prompt(({"role": "user", "content": "A long question, the same each time, of several blocks. " * 3},))
    u = direction(128)
    ways = [
        (),
        (Cap(u, LAYERS, floor=4.0),),
        (Add(u, 0, 4.0, relative=False),),
        (Cap(u, LAYERS, floor=4.0, where="generated"),),
    ]
    for given in [*ways, *ways]:
        (a,) = engine.respond([long], GREEDY, read=LAYERS, interventions=given)
        (b,) = reference.respond([long], GREEDY, read=LAYERS, interventions=given)
        assert a.token_ids == b.token_ids
        assert alike(a.activation, b.activation) >= 0.9999
    stats = engine.core.engine_core.engine_core.scheduler.kv_cache_manager
    assert stats.enable_caching


def test_a_replay_that_reads_no_layer_still_tells_probabilities_and_what_was_touched(
    folders: Callable[[str], str], reference: TransformersEngine, opened: Callable[..., Any]
) -> None:
    engine = opened(folders("llama"))
    talk = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A light in the marsh."}]
    cap = Cap(direction(128), LAYERS, floor=4.0)
    for given in ((), (cap,)):
        ((ours,),) = engine.replay([talk], read=[], interventions=given, logprobs=True)
        ((theirs,),) = reference.replay([talk], read=[], interventions=given, logprobs=True)
        assert (ours.activation.shape, ours.norms.shape) == (theirs.activation.shape, theirs.norms.shape)
        assert (ours.tokens, ours.touched) == (theirs.tokens, theirs.touched)
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-3)


def test_a_reply_that_becomes_a_prompt_is_computed_anew_where_it_was_treated_otherwise(
    folders: Callable[[str], str], reference: TransformersEngine, opened: Callable[..., Any]
) -> None:
    engine = opened(folders("llama"), block_size=32)
    cap = Cap(direction(128), LAYERS, floor=4.0, where="generated")
    first = Prompt(({"role": "text", "content": "Once upon a time there was"},))
    many = Sampling(temperature=0, max_new_tokens=40)
    (r,) = engine.respond([first], many, interventions=[cap])
    ids = [*engine.chat.prompt_ids(first.messages), *r.token_ids]
    again = engine._send(ids, Sampling(temperature=0, max_new_tokens=6), None, LAYERS, [cap])
    while again not in engine._arrived or not engine._arrived[again].finished:
        engine._step()
    reply = tuple(engine._arrived.pop(again).outputs[0].token_ids)[:6]
    reading = engine._take([again])[again]
    from personaspace.engines import Span

    span = Span((*ids, *reply), ((len(ids), len(ids) + len(reply)),))
    (turn,) = next(iter(reference.replay([span], read=LAYERS, interventions=[cap])))
    assert alike(reading.activation[0], turn.activation) >= 0.9999


def test_requests_that_are_put_off_count_every_token_once(
    folders: Callable[[str], str], reference: TransformersEngine, opened: Callable[..., Any]
) -> None:
    # Room for about two of the replies: the others are put off in the middle, and computed again.
    engine = opened(
        folders("llama"), block_size=32, num_gpu_blocks_override=14, max_model_len=200, enable_prefix_caching=True
    )
    scheduler = engine.core.engine_core.engine_core.scheduler
    put_off: list[str] = []
    original = scheduler._preempt_request
    scheduler._preempt_request = lambda request, *a, **k: (
        put_off.append(request.request_id),
        original(request, *a, **k),
    )[1]
    many = Sampling(temperature=0, max_new_tokens=90)
    for given in ((), (kinds(128)[1],)):
        for r in engine.respond(prompts(6), many, read=LAYERS, interventions=given):
            assert alike(r.activation, replayed(reference, r, given)) >= 0.9999
            expected = replayed(reference, r, given)
            assert torch.allclose(r.activation, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max()))
    assert put_off
    assert nothing_is_held(engine)


def test_more_ranges_than_places_are_put_aside_and_brought_back(
    folders: Callable[[str], str], reference: TransformersEngine, opened: Callable[..., Any]
) -> None:
    engine = opened(folders("llama"), max_num_seqs=4)
    t = readout(engine)
    took = t._free[2:]
    del t._free[2:]  # two places for four requests at a time, which take turns
    asked = prompts(4)
    ids = [engine._send(engine.chat.prompt_ids(p.messages), GREEDY, None, LAYERS, ()) for p in asked]
    while not all(i in engine._arrived and engine._arrived[i].finished for i in ids):
        engine._step()
    readings = engine._take(ids)
    # All four were in one step, so two had no place: they are said to be lost, and the others are whole.
    assert len(readings) == 2
    assert all(int(r.tokens[0]) == 12 for r in readings.values())
    t._free += took
    for i in ids:
        engine._arrived.pop(i)
    assert nothing_is_held(engine)


def test_a_request_that_is_given_up_leaves_nothing(folders: Callable[[str], str], opened: Callable[..., Any]) -> None:
    engine = opened(folders("llama"))
    many = Sampling(temperature=0, max_new_tokens=100)
    replies = engine.respond(prompts(5), many, read=LAYERS, interventions=[kinds(128)[0]])
    asked = prompts(5)
    short = [
        Prompt(p.messages, question=k, sampling=Sampling(temperature=0, max_new_tokens=3 if k == 0 else 100))
        for k, p in enumerate(asked)
    ]
    replies = engine.respond(short, many, read=LAYERS, interventions=[kinds(128)[0]])
    next(replies)
    assert readout(engine).live
    replies.close()
    assert nothing_is_held(engine)
    assert len(in_order(engine.respond(prompts(5), GREEDY, read=LAYERS))) == 5


def test_what_the_compiled_pass_has_no_place_for_is_refused(
    folders: Callable[[str], str], opened: Callable[..., Any]
) -> None:
    engine = opened(folders("llama"))
    two = [kinds(128)[1], Cap(direction(128, 5), (2,), floor=0.0)]
    with pytest.raises(UsageError, match="PERSONASPACE_VLLM_MOVES=2"):
        list(engine.respond(prompts(1), GREEDY, interventions=two))
    for id in list(engine._arrived):
        engine._arrived.pop(id)
    many = [
        Prompt(p.messages, question=k, interventions=(Cap(direction(128, k), (0,), floor=0.0),))
        for k, p in enumerate(prompts(8))
    ]
    in_flight = engine.core.engine_core.engine_core.scheduler.personaspace_in_flight
    in_flight.max_directions = 5
    with pytest.raises(UsageError, match="5 different directions"):
        list(engine.respond(many, GREEDY))
    in_flight.max_directions = 16
    assert len(list(engine.respond(many, GREEDY))) == 8
    assert nothing_is_held(engine)
    assert not in_flight.uses


def test_a_reply_that_ends_by_itself_does_not_count_its_end(
    folders: Callable[[str], str], reference: TransformersEngine, opened: Callable[..., Any]
) -> None:
    engine = opened(folders("llama"))
    many = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=150)
    asked = [Prompt(p.messages, question=k, seed=k) for k, p in enumerate(prompts(24))]
    replies = list(engine.respond(asked, many, read=LAYERS))
    ended = [r for r in replies if r.finish_reason == "stop"]
    assert ended
    for r in ended:
        assert not engine.chat.end_ids & set(r.token_ids)
        if r.token_ids:
            assert alike(r.activation, replayed(reference, r)) >= 0.9999


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        ({"read": [99]}, "layers from 0 to 2"),
        ({"reed": "all"}, "reed"),
        ({"interventions": ["unheard of"]}, "unheard of"),
        ({"interventions": [{"kind": "cap", "vector": [1.0], "layers": [0], "floor": 1.0}]}, "a vector of 1"),
        ({"spans": [[0, 10_000]]}, "spans"),
        ("{", "not JSON"),
        ([], "expected an object"),
    ],
)
def test_a_wrong_ask_is_refused_alone(
    ask: Any, said: str, folders: Callable[[str], str], opened: Callable[..., Any]
) -> None:
    from vllm.exceptions import VLLMValidationError

    from vllm import SamplingParams

    engine = _shared(opened, folders)
    with pytest.raises(VLLMValidationError, match=said):
        engine.core.add_request("x", {"prompt_token_ids": [5, 6, 7]}, SamplingParams(extra_args={"personaspace": ask}))
    assert len(list(engine.respond(prompts(2), GREEDY))) == 2


_OPEN: dict[str, Any] = {}


def _shared(opened: Callable[..., Any], folders: Callable[[str], str]) -> Any:
    if "engine" not in _OPEN:
        _OPEN["engine"] = opened(folders("llama"))
    return _OPEN["engine"]


def test_plain_vllm_hands_out_what_a_request_asked_for(
    folders: Callable[[str], str], opened: Callable[..., Any]
) -> None:
    import vllm
    from personaspace.engines.vllm import unpack

    opened(folders("llama"), max_model_len=64)  # closes what was open before
    cap = Cap(direction(128), (1, 2), floor=4.0)
    llm = vllm.LLM(
        folders("llama"),
        dtype="float32",
        enforce_eager=True,
        max_model_len=128,
        max_num_seqs=4,
        kv_cache_memory_bytes=32 << 20,
    )
    asks = [{"read": "all", "interventions": [cap.to_dict()]}, {"read": [1]}, None]
    params = [
        vllm.SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, extra_args={"personaspace": a} if a else None)
        for a in asks
    ]
    replies = llm.generate([{"prompt_token_ids": [5, 6, 7]}] * 3, params, use_tqdm=False)
    readings = unpack(llm.collective_rpc("personaspace_take", args=([r.request_id for r in replies],))[0])
    capped, plain = (readings[r.request_id] for r in replies[:2])
    assert len(readings) == 2
    assert (capped.layers, plain.layers) == ((0, 1, 2), (1,))
    assert capped.tokens.tolist() == plain.tokens.tolist() == [7]
    assert (capped.activation[0, 1:] @ (direction(128) / direction(128).norm()) > 3.99).all()
    assert int(capped.touched[0]) > 0
    assert replies[1].outputs[0].token_ids == replies[2].outputs[0].token_ids
    llm.llm_engine.engine_core.shutdown()
