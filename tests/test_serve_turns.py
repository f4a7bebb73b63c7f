"""Who gets the model, and a place to wait for it: replies, requests with a pass of their own, and those that went away."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch

import personaspace as ps
from personaspace.engines.chat import ReplyText
from personaspace.engines.prompts import Sampling
from personaspace.engines.transformers.batching import Row
from personaspace.engines.transformers.decode_loop import DecodeLoop
from personaspace.engines.transformers.prefill import Prefill
from personaspace.engines.transformers.sampling import uniforms
from personaspace.serve import scheduler
from personaspace.serve.lock import ModelLock, QueueFull
from personaspace.serve.scheduler import Ended, Job, Worker
from served import engine, serving, space, until

HELLO = [{"role": "user", "content": "hello"}]
TALK = {"messages": [*HELLO, {"role": "assistant", "content": "good day"}]}
ASKED = {"model": "tiny", "messages": HELLO, "max_tokens": 5}


def test_a_step_comes_after_each_exclusive_use_and_exclusive_use_after_each_step():
    lock, order, done = ModelLock(8), [], threading.Event()

    def visit():
        while not done.is_set():
            with lock.exclusive():
                order.append("exclusive")
                time.sleep(0.001)

    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            pool.submit(visit)
        until(lambda: lock.waiting)
        for _ in range(50):
            with lock.step(lambda: False) as ours:
                assert ours
                order.append("step")
        done.set()
    runs = "".join(o[0] for o in order).split("s")[1:-1]
    assert all(len(run) <= 3 for run in runs)
    assert sum(len(run) > 0 for run in runs) > 30


def test_a_step_is_not_waited_for_longer_than_there_is_time():
    lock, began = ModelLock(1), time.monotonic()
    with lock.exclusive():
        with lock.step(lambda: time.monotonic() > began + 0.2) as ours:
            assert not ours
        assert lock.in_use
    with lock.step(lambda: True) as ours:
        assert ours
    assert not lock.in_use


@pytest.mark.long
def test_clients_that_keep_projecting_do_not_stop_a_reply(space, engine):
    with serving(space, engine) as (address, worker), ThreadPoolExecutor(4) as pool:
        done = threading.Event()

        def keep():
            while not done.is_set():
                assert httpx.post(f"{address}/v1/persona/project", json=TALK, timeout=30).status_code == 200

        clients = [pool.submit(keep) for _ in range(4)]
        until(lambda: worker.model_lock.admitted)
        try:
            answer = httpx.post(f"{address}/v1/chat/completions", json={**ASKED, "max_tokens": 40}, timeout=20)
        finally:
            done.set()
        assert answer.status_code == 200
        assert [c.result() for c in clients] == [None] * 4
        assert worker.model_lock.admitted == worker.model_lock.waiting == 0


def test_more_requests_for_the_model_than_may_wait_are_answered_429(space, engine):
    with serving(space, engine, queue=1) as (address, worker), ThreadPoolExecutor(1) as pool:
        with worker.model_lock.exclusive():
            first = pool.submit(httpx.post, f"{address}/v1/persona/project", json=TALK, timeout=30)
            until(lambda: worker.model_lock.admitted)
            echo = {"model": "tiny", "prompt": "hello", "max_tokens": 1, "echo": True, "logprobs": 0}
            for path, body in (("persona/project", TALK), ("completions", echo)):
                refused = httpx.post(f"{address}/v1/{path}", json=body, timeout=30)
                assert refused.status_code == 429
                assert int(refused.headers["retry-after"]) >= 1
        assert first.result().status_code == 200


def test_a_conversation_is_projected_as_far_as_the_server_takes_one(space, engine, monkeypatch):
    monkeypatch.setattr(engine, "columns_that_fit", lambda rows: 40)
    long = [*TALK["messages"], {"role": "user", "content": "more"}, {"role": "assistant", "content": "word " * 20}]
    with serving(space, engine) as (address, _):
        told = httpx.post(f"{address}/v1/persona/project", json={"messages": long}, timeout=30).json()
    assert [t["index"] for t in told["turns"]] == [1]
    assert "takes 40: 1 of 2 assistant turns are read" in told["problem"]


def job():
    return Job(Row(0, [5, 6], Sampling(max_new_tokens=4), uniforms(0, 4)), lambda event: None, ReplyText(str))


def test_a_reply_that_nobody_waits_for_any_more_gives_its_place_to_another(space, engine):
    worker = Worker(engine, space.layer, space.axis_at(), rows=1, queue=1, columns=64)
    first, second, told = job(), job(), []
    first.emit = told.append
    worker.submit([first])
    with pytest.raises(QueueFull):
        worker.submit([second])
    first.cancelled = True
    worker.submit([second])
    assert [e.finish for e in told] == ["cancelled"]
    assert list(worker.waiting) == [second]


def test_more_replies_than_the_queue_has_places_are_refused_for_good(space, engine):
    with serving(space, engine, queue=2) as (address, _):
        answer = httpx.post(f"{address}/v1/chat/completions", json={**ASKED, "n": 3}, timeout=30)
    assert answer.status_code == 400
    assert "the queue has 2 places" in answer.json()["error"]["message"]


def test_where_decoding_ends_for_good_everybody_is_told(space, engine):
    with serving(space, engine, rows=1) as (address, worker), ThreadPoolExecutor(2) as pool:

        def fail(*_):
            raise RuntimeError("the device has failed")

        worker._watch = worker._fresh = fail
        url = f"{address}/v1/chat/completions"
        with worker.model_lock.exclusive():
            waiting = [pool.submit(httpx.post, url, json=ASKED, timeout=20) for _ in range(2)]
            until(lambda: len(worker.running) + len(worker.waiting) == 2)
        assert [w.result().status_code for w in waiting] == [500, 500]
        until(lambda: not worker.thread.is_alive())
        refused = httpx.post(url, json=ASKED, timeout=20)
        assert refused.status_code == 503
        assert "Decoding has ended" in refused.json()["error"]["message"]
        assert httpx.get(f"{address}/readyz").status_code == 503
        with pytest.raises(Ended):
            worker.submit([job()])


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_whose_numbers_overflow_gets_an_error_and_nobody_else_does(space, engine, stream):
    norms = torch.full_like(space.tensors["residual_norm"], 3e38)
    strong = ps.PersonaSpace(space.meta, {**space.tensors, "residual_norm": norms})
    honest = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "temperature": 0, "max_tokens": 12}
    poison = {**honest, "stream": stream, "persona": {"steer": [{"alpha": 1}, {"alpha": 1}]}}
    with serving(strong, engine, rows=4) as (address, _), ThreadPoolExecutor(6) as pool:

        def ask(body: dict) -> httpx.Response:
            return httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60)

        alone = ask(honest).json()["choices"][0]["message"]["content"]
        replies = list(pool.map(ask, [poison, honest, poison, honest, honest, poison]))
        after = ask(honest)
    for body, reply in zip([poison, honest, poison, honest, honest, poison], replies, strict=True):
        if body is honest:
            assert reply.json()["choices"][0]["message"]["content"] == alone
        else:
            assert reply.status_code == (200 if stream else 500)
            assert "not_finite" in reply.text
            assert "[DONE]" not in reply.text
    assert after.json()["choices"][0]["message"]["content"] == alone


def test_a_long_prompt_is_computed_in_pieces_between_the_steps_of_the_replies_in_flight(space, engine, monkeypatch):
    happened: list[int] = []  # 0: a step; else how many tokens of a prompt were asked for
    step, advance = DecodeLoop.step, Prefill.advance
    monkeypatch.setattr(scheduler, "PIECE", 32)
    monkeypatch.setattr(scheduler, "WAIT", 1e-6)  # one layer at a time
    monkeypatch.setattr(DecodeLoop, "step", lambda loop, *more: (happened.append(0), step(loop, *more))[1])
    monkeypatch.setattr(
        Prefill, "advance", lambda p, tokens, seconds: (happened.append(tokens), advance(p, tokens, seconds))[1]
    )
    with serving(space, engine) as (address, _):
        say = {"model": "tiny", "max_tokens": 400, "ignore_eos": True, "messages": TALK["messages"][:1]}
        with httpx.stream(
            "POST", f"{address}/v1/chat/completions", json={**say, "stream": True}, timeout=60
        ) as running:
            lines = running.iter_lines()
            next(lines)
            text = "why is that so? " * 20  # the model's context is 512 tokens
            long = {**say, "max_tokens": 1, "messages": [{"role": "user", "content": text}]}
            assert httpx.post(f"{address}/v1/chat/completions", json=long, timeout=60).status_code == 200
    pieces = [k for k, tokens in enumerate(happened) if tokens]
    passes = -(-len(text.split()) // 32)
    assert len(pieces) > 2 * passes  # of which each stopped between layers
    assert all(0 in happened[a:b] for a, b in itertools.pairwise(pieces))


def test_a_reply_that_is_decoded_apart_beside_shorter_ones_is_what_it_is_alone(space, engine, monkeypatch):
    apart: list[int] = []
    real = DecodeLoop.apart
    monkeypatch.setattr(DecodeLoop, "apart", lambda loop, p: (apart.append(p.row.key), real(loop, p))[1])
    say = {"model": "tiny", "max_tokens": 12, "ignore_eos": True, "temperature": 0}
    long = {**say, "messages": [{"role": "user", "content": "why is that so? " * 20}]}
    with serving(space, engine) as (address, worker):
        url = f"{address}/v1/chat/completions"
        alone = httpx.post(url, json=long, timeout=60).json()
        assert not apart
        monkeypatch.setattr(scheduler, "LONG", 64)
        with httpx.stream(
            "POST", url, json={**say, "max_tokens": 400, "messages": HELLO, "stream": True}, timeout=60
        ) as running:
            next(running.iter_lines())
            beside = httpx.post(url, json=long, timeout=60).json()
        until(lambda: not worker.apart and not worker.running)
    assert len(apart) == 1
    assert beside["choices"][0]["message"]["content"] == alone["choices"][0]["message"]["content"]
    assert beside["persona"]["projection"] == pytest.approx(alone["persona"]["projection"], abs=1e-3)


def test_the_next_turn_of_a_conversation_is_not_computed_from_its_beginning(space, engine, monkeypatch):
    begun: list[tuple[int, int]] = []
    begin = DecodeLoop.begin

    def beginning(loop, row):
        prefill = begin(loop, row)
        begun.append((len(row.ids), prefill.remaining))
        return prefill

    monkeypatch.setattr(DecodeLoop, "begin", beginning)
    talk = [{"role": "user", "content": "Tell me of the sea, and of those who live beside it."}]
    with serving(space, engine) as (address, _):
        for turn in range(4):
            body = {"model": "tiny", "max_tokens": 12, "messages": talk, "temperature": 0}
            reply = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60).json()
            talk += [reply["choices"][0]["message"], {"role": "user", "content": f"And then, {turn}?"}]
    assert [computed < length - 40 for length, computed in begun] == [False, True, True, True]
