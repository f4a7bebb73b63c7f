"""What our routes add to vLLM's server, as far as it can be seen without vLLM."""

from __future__ import annotations

import asyncio
import json

import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient

from personaspace.engines.chat import Chat
from personaspace.engines.vllm.wire import ReadMeans, pack
from personaspace.serve.followed import FollowedReply
from personaspace.serve.refusals import BadRequest
from personaspace.serve.types import Persona
from personaspace.serve.vllm import Endpoints, VllmPersona, _stopped, _streamed
from personaspace.space import PersonaSpace
from test_thinking import OPENS, thinking_tokenizer


class ReadNothing:
    """Workers that have read no token."""

    async def collective_rpc(self, name, args=()):
        return [pack({})]


@pytest.fixture(scope="module")  # its metrics are registered once a process
def vllm_persona():
    return VllmPersona(PersonaSpace.load("smollm2"), "smollm2", ReadNothing())


def streamed(vllm_persona, usage):
    """The objects of a stream's events, and its last line."""
    head = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "smollm2"}
    choices = [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]
    ended = [{"index": 0, "delta": {"content": "b"}, "finish_reason": "stop"}]
    events = [{**head, "choices": choices}, {**head, "choices": ended}]
    events += [{**head, "choices": [], "usage": {"total_tokens": 3}}] if usage else []

    async def lines():
        for line in (*map(json.dumps, events), "[DONE]"):
            yield f"data: {line}\n\n"

    async def collected():
        return [line async for line in _streamed(lines(), vllm_persona, "smollm2:capped", {"key": "key"}, Persona())]

    *sent, last = asyncio.run(collected())
    return [json.loads(line.removeprefix("data: ")) for line in sent], last


def test_a_streams_last_choice_tells_the_persona_and_nothing_comes_that_nobody_asked_for(vllm_persona):
    events, last = streamed(vllm_persona, usage=False)
    assert ["persona" in e for e in events] == [False, True]
    assert all(e["choices"] for e in events)
    assert {e["model"] for e in events} == {"smollm2:capped"}
    assert last == "data: [DONE]\n\n"
    counted, _ = streamed(vllm_persona, usage=True)
    assert ["persona" in e for e in counted] == [False, True, False]
    assert counted[-1]["usage"] == {"total_tokens": 3}


def test_a_text_completion_with_a_persona_is_refused_by_name(vllm_persona):
    app = FastAPI()
    app.state.personaspace = vllm_persona
    Endpoints().attach_router(app)
    body = {"model": "smollm2", "prompt": "The tide", "persona": {"cap": "capped"}}
    answer = TestClient(app).post("/v1/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "persona"


def means_of(activation):
    return ReadMeans((16,), activation[None, None], torch.ones(1, 1), torch.tensor([3]), torch.tensor([0]))


def test_a_reply_of_vllms_is_read_along_directions_by_the_same_reader(vllm_persona):
    space = vllm_persona.reader.space
    mean = space.tensors["role_vectors"][4, 0]
    persona = vllm_persona.turn("smollm2", means_of(mean), Persona(read=["axis", "ghost"]), "chatcmpl-1")
    assert persona is not None
    along = persona["along"]
    assert along["role:ghost"]["projection"] == pytest.approx(float(mean @ space.direction("ghost")), rel=1e-4)
    assert along["axis"]["shift"] == pytest.approx(-persona["drift"], rel=1e-4)
    with pytest.raises(BadRequest, match="nearest: ghost"):
        vllm_persona.reader.interventions("smollm2", Persona(read=["ghots"]))


def test_a_conversation_that_an_alert_ended_is_answered_without_vllm(vllm_persona):
    far = Persona(on_alert="stop", history=[50.0, 50.0])
    assert vllm_persona.reader.act("smollm2", far) == "stop"
    assert vllm_persona.reader.act("smollm2", Persona(on_alert="stop", history=[0.0, 0.0])) is None
    (choice,) = json.loads(bytes(_stopped("smollm2", {}).body))["choices"]
    assert choice["finish_reason"] == "content_filter"
    events = bytes(_stopped("smollm2", {"stream": True, "stream_options": {"include_usage": True}}).body).decode()
    first, usage, last = events.strip().split("\n\n")
    assert json.loads(first.removeprefix("data: "))["choices"][0]["delta"]["refusal"] == choice["message"]["refusal"]
    assert json.loads(usage.removeprefix("data: "))["usage"]["completion_tokens"] == 0
    assert last == "data: [DONE]"


@pytest.mark.parametrize("kept", [False, True])
def test_a_reply_that_is_followed_shows_the_answers_tokens_alone_and_no_ids_that_nobody_asked_for(kept):
    chat = Chat(thinking_tokenizer(OPENS), thinking=True)
    prompt = chat.prompt_ids([{"role": "user", "content": "?"}])
    ids = chat.tokenizer("ab</think>\n\ncd", add_special_tokens=False)["input_ids"]
    start = len(ids) - 2
    reply, told = FollowedReply(chat, kept), []
    for place, token in enumerate(ids):
        event = {"choices": [{"index": 0, "token_ids": [token]}], **({"prompt_token_ids": prompt} if not place else {})}
        reply.take(event)
        assert ("token_ids" in event["choices"][0]) == kept
        assert ("prompt_token_ids" in event) == (kept and not place)
        # What is read may be ahead of what has come: it waits.
        read = [{"index": 2 * place}, {"index": 2 * place + 1}] if 2 * place < len(ids) else []
        told += reply.tokens(read)
    told += reply.tokens([], final=True)
    assert [t["index"] for t in told] == [start, start + 1]
    assert reply.answer(len(ids)) == (start, start + 2)
    assert reply.answer(3) == (3, 3)  # cut short in its thoughts
