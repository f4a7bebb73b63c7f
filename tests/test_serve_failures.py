"""What fails in a server: one reply alone, one number that is none, or decoding for good; and stop texts, which slow nobody."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import personaspace as ps
from personaspace.engines.chat import ReplyText
from personaspace.engines.transformers.decode_loop import DecodeLoop
from personaspace.serve.persona import is_finite
from personaspace.serve.stops import StopText, StopTexts
from served import engine, serving, space

HELLO = [{"role": "user", "content": "hello"}]
ASKED = {"model": "tiny", "messages": HELLO, "max_tokens": 6, "temperature": 0}
SHORT = st.text("ab", max_size=6)


def ask(address, **more):
    return httpx.post(f"{address}/v1/chat/completions", json={**ASKED, **more}, timeout=60)


def counted(address, status):
    """How many requests the metrics say were answered so."""
    text = httpx.get(f"{address}/metrics").text
    assert "nan" not in text.lower()
    return sum(float(n) for n in re.findall(rf'personaspace_requests_total{{.*status="{status}"}} (\S+)', text))


def strict(text):
    """JSON as it is written down, which has no NaN."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in an answer"))


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_of_nan_is_one_clean_error_counted_once_and_no_metric_is_spoilt(space, engine, stream):
    norms = torch.full_like(space.tensors["residual_norm"], 3e38)
    strong = ps.PersonaSpace(space.meta, {**space.tensors, "residual_norm": norms})
    with serving(strong, engine) as (address, _):
        answer = ask(address, stream=stream, persona={"steer": [{"alpha": 1}, {"alpha": 1}], "report": "token"})
        events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith(("data", "{"))]
        errors = [event for event in map(strict, events) if "error" in event]
        assert [e["error"]["code"] for e in errors] == ["not_finite"]
        assert (counted(address, 500), counted(address, 200)) == (1, 0)
        assert ask(address).status_code == 200
        assert counted(address, 200) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_reading_that_is_no_number_is_the_same_error(space, engine, stream, monkeypatch):
    monkeypatch.setattr(type(space), "drift", lambda *_: float("nan"))
    with serving(space, engine) as (address, _):
        answer = ask(address, stream=stream)
        assert answer.text.count("not_finite") == 1
        assert "[DONE]" not in answer.text
        assert counted(address, 500) == 1
        talk = [*HELLO, {"role": "assistant", "content": "good day"}]
        projected = httpx.post(f"{address}/v1/persona/project", json={"messages": talk}, timeout=60)
        assert projected.status_code == 500
        assert projected.json()["error"]["code"] == "not_finite"


@pytest.mark.parametrize("stream", [False, True])
def test_a_token_that_cannot_come_has_a_log_probability_that_json_can_say(space, engine, stream, monkeypatch):
    whole = DecodeLoop._keep_logprobs

    def banned(self, logits, chosen):
        logits = logits.clone()
        logits[:, 5:] = -torch.inf
        whole(self, logits, [0] * len(chosen))

    monkeypatch.setattr(DecodeLoop, "_keep_logprobs", banned)
    with serving(space, engine) as (address, _):
        answer = ask(address, stream=stream, logprobs=True, top_logprobs=9)
        text = httpx.post(
            f"{address}/v1/completions",
            json={"model": "tiny", "prompt": "x", "logprobs": 9, "stream": stream},
            timeout=60,
        )
    assert answer.status_code == text.status_code == 200
    for told in (answer.text, text.text):
        assert "-9999.0" in told
        assert "Infinity" not in told


def test_a_value_is_finite_where_all_of_its_numbers_are():
    assert is_finite({"a": [1.0, ("x", 2)], "b": None})
    assert not is_finite({"a": [("x", float("nan"))]})
    assert not is_finite(float("inf"))


def test_a_reply_that_cannot_be_followed_fails_alone(space, engine, monkeypatch):
    whole = ReplyText.add

    def add(self, token_ids, final=False):
        if getattr(self, "fails", False) and len(token_ids) > 2:
            raise RuntimeError("no text")
        return whole(self, token_ids, final)

    monkeypatch.setattr(ReplyText, "add", add)
    with serving(space, engine, rows=8) as (address, worker), ThreadPoolExecutor(7) as pool:
        alone = ask(address).json()["choices"][0]["message"]["content"]
        submit = worker.submit
        worker.submit = lambda jobs: (
            [setattr(j.reply, "fails", j.row.sampling.max_new_tokens == 7) for j in jobs] and submit(jobs)
        )
        with worker.model_lock.exclusive():
            replies = [pool.submit(ask, address, max_tokens=7 if k == 3 else 6) for k in range(7)]
            while len(worker.waiting) + len(worker.running) < 7:
                time.sleep(0.01)
        answers = [r.result() for r in replies]
    assert [a.status_code for a in answers] == [200, 200, 200, 500, 200, 200, 200]
    assert {a.json()["choices"][0]["message"]["content"] for a in answers if a.status_code == 200} == {alone}


def test_a_prompt_that_fails_leaves_those_beside_it_and_those_that_run(space, engine, monkeypatch):
    whole = DecodeLoop.join

    def join(self, rows):
        if any(row.sampling.max_new_tokens == 7 for row in rows):
            raise RuntimeError("no memory")
        whole(self, rows)

    monkeypatch.setattr(DecodeLoop, "join", join)
    with serving(space, engine, rows=8) as (address, worker), ThreadPoolExecutor(8) as pool:
        alone = ask(address).json()["choices"][0]["message"]["content"]
        with worker.model_lock.exclusive():
            replies = [pool.submit(ask, address, max_tokens=7 if k == 3 else 6) for k in range(7)]
            while len(worker.waiting) + len(worker.running) < 7:
                time.sleep(0.01)
        answers = [r.result() for r in replies]
    assert [a.status_code for a in answers] == [200, 200, 200, 500, 200, 200, 200]
    assert {a.json()["choices"][0]["message"]["content"] for a in answers if a.status_code == 200} == {alone}


def test_where_step_after_step_fails_the_server_says_so_and_ends(space, engine, monkeypatch):
    monkeypatch.setattr("personaspace.serve.scheduler.FAILURES", 3)

    def step(*_):
        raise RuntimeError("the device is gone")

    with serving(space, engine) as (address, worker):
        monkeypatch.setattr(DecodeLoop, "step", step)
        assert [ask(address).status_code for _ in range(3)] == [500] * 3
        worker.thread.join(20)
        health = httpx.get(f"{address}/healthz")
        assert (health.status_code, health.json()) == (503, {"status": "failed"})
        assert httpx.get(f"{address}/readyz").status_code == 503


# -- stop texts ----------------------------------------------------------------------------------------------------------


@given(st.lists(SHORT, max_size=4), st.lists(SHORT, max_size=8))
def test_stop_texts_are_found_where_a_search_of_the_whole_text_finds_them(stops, pieces):
    texts, text = StopTexts(stops), ""
    for piece in pieces:
        start = texts.feed(piece)
        text += piece
        expected = [text.find(stop) for stop in stops if stop and stop in text]
        if expected:
            assert start == min(expected)
            return
        assert start is None
        beginnings = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
        assert texts.held_back == max(beginnings, default=0)


class Counting(str):
    """A text that counts how often its characters are looked at."""

    looks = 0

    def __getitem__(self, k):
        Counting.looks += 1
        return super().__getitem__(k)


@pytest.mark.parametrize("stop", ["a" * 255 + "b", "ab" * 127 + "c", "x" * 256])
def test_a_long_stop_text_costs_a_look_or_two_for_each_new_character(stop):
    matcher = StopText(stop)
    matcher.text = Counting(stop)
    Counting.looks = 0
    for _ in range(1000):
        matcher.feed("abab" if "c" in stop else "aaab")
    assert 0 < Counting.looks <= 3 * 4000
