"""A server whose memory is full: 503 for what does not fit, and whoever asks for less is answered."""

from __future__ import annotations

import httpx
import pytest
import torch

from personaspace.engines.transformers.decode_loop import DecodeLoop
from served import engine, serving, space
from test_memory import ABSURD, room

TALK = [{"role": "user", "content": "hello"}]
LONG = [{"role": "user", "content": "hello " * 30}, {"role": "assistant", "content": "good day " * 10}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", {"model": "tiny", "messages": LONG, "max_tokens": 4}),
        ("chat/completions", {"model": "tiny", "messages": LONG, "max_tokens": 4, "stream": True}),
        ("completions", {"model": "tiny", "prompt": "x" * 200, "max_tokens": 4, "echo": True, "logprobs": 1}),
        ("persona/project", {"messages": LONG}),
    ],
    ids=["whole", "stream", "echo", "project"],
)
def test_a_server_without_memory_for_a_request_answers_503_and_goes_on(space, engine, room, path, body):
    with serving(space, engine) as (address, worker):
        room["tokens"] = 60
        refused = httpx.post(f"{address}/v1/{path}", json=body, timeout=60)
        assert refused.status_code == (200 if body.get("stream") else 503)
        assert refused.text.count('"out_of_memory"') == 1
        short = {"model": "tiny", "messages": TALK, "max_tokens": 4}
        assert httpx.post(f"{address}/v1/chat/completions", json=short, timeout=60).status_code == 200
        assert not worker.ended


def test_a_step_without_memory_gives_up_its_replies_with_503_and_fewer_are_made_together(space, engine, monkeypatch):
    real = DecodeLoop.step

    def short(self, *rest):
        if len(self.rows) > 2:
            torch.empty(ABSURD)
        return real(self, *rest)

    monkeypatch.setattr(DecodeLoop, "step", short)
    with serving(space, engine, rows=8) as (address, worker):
        ask = {"model": "tiny", "messages": TALK, "max_tokens": 20, "n": 5}
        for _ in range(10):  # more often than steps may fail for other reasons
            answer = httpx.post(f"{address}/v1/chat/completions", json=ask, timeout=60)
            if answer.status_code == 200:
                break
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "out_of_memory")
        assert answer.status_code == 200
        assert worker.rows == 2
