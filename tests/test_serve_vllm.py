"""What our routes add to vLLM's server, as far as it can be seen without vLLM."""

from __future__ import annotations

import asyncio
import json

import pytest
import torch
from fastapi import FastAPI
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.testclient import TestClient

from personaspace.engines.chat import Chat
from personaspace.engines.vllm.wire import ReadMeans, pack
from personaspace.model.interventions import Ablate
from personaspace.serve.followed import FollowedReply
from personaspace.serve.refusals import BadRequest
from personaspace.serve.responses import ResponseRequest
from personaspace.serve.types import Persona
from personaspace.serve.vllm import Endpoints, VllmPersona, _stopped, _streamed
from personaspace.serve.vllm_bodies import continued_text
from personaspace.serve.vllm_responses import as_response
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


def test_several_prompts_of_which_something_is_to_be_read_are_refused_by_name(vllm_persona):
    app = FastAPI()
    app.state.personaspace = vllm_persona
    Endpoints().attach_router(app)
    body = {"model": "smollm2", "prompt": ["The tide", "The moon"], "persona": {"read": ["ghost"]}}
    answer = TestClient(app).post("/v1/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "persona"


@pytest.mark.parametrize("asked", [([Ablate(torch.ones(576), 3)], Persona()), ([], Persona(read=["ghost"]))])
def test_a_wish_of_ones_own_never_takes_the_place_of_a_cap_in_silence(vllm_persona, asked):
    own = {"vllm_xargs": {"personaspace": '{"read": [5]}'}}
    with pytest.raises(BadRequest, match="leave out either"):
        asyncio.run(vllm_persona.request_fields(*asked, own))
    assert asyncio.run(vllm_persona.request_fields([], Persona(), own)) is None


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
        vllm_persona.reader.treatment("smollm2", Persona(read=["ghots"]))


def test_a_conversation_that_an_alert_ended_is_answered_without_vllm(vllm_persona):
    far = Persona(on_alert="stop", history=[50.0, 50.0])
    assert vllm_persona.reader.treatment("smollm2", far) == ((), "stop")
    calm = Persona(on_alert="stop", history=[0.0, 0.0])
    assert vllm_persona.reader.treatment("smollm2", calm) == ((), None)
    (choice,) = json.loads(bytes(_stopped("smollm2", {}).body))["choices"]
    assert choice["finish_reason"] == "content_filter"
    events = bytes(_stopped("smollm2", {"stream": True, "stream_options": {"include_usage": True}}).body).decode()
    first, usage, last = events.strip().split("\n\n")
    assert json.loads(first.removeprefix("data: "))["choices"][0]["delta"]["refusal"] == choice["message"]["refusal"]
    assert json.loads(usage.removeprefix("data: "))["usage"]["completion_tokens"] == 0
    assert last == "data: [DONE]"


def test_a_reply_that_is_followed_inside_a_thought_begins_with_the_rest_of_it():
    chat = Chat(thinking_tokenizer(OPENS))
    begun = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "<think>a"}]
    reply = FollowedReply(chat, continued_text=continued_text({"messages": begun, "continue_final_message": True}))
    ids = chat.tokenizer("b</think>c", add_special_tokens=False)["input_ids"]
    reply.take({"prompt_token_ids": chat.prompt_ids(begun, continued=True), "choices": [{"token_ids": ids}]})
    assert reply.answer(len(ids)) == (2, 3)


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
    counts = {"usage": {"completion_tokens": len(ids)}}
    reply.take(counts)
    assert counts["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}
    assert [t["index"] for t in told] == [start, start + 1]
    assert reply.answer(len(ids)) == (start, start + 2)
    assert reply.answer(3) == (3, 3)  # cut short in its thoughts


CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
COUNTS = {
    "prompt_tokens": 5,
    "completion_tokens": 3,
    "total_tokens": 8,
    "completion_tokens_details": {"reasoning_tokens": 2},
}
READ = {"projection": 1.5}
MESSAGES = {
    "said": {"content": "Good day."},
    "thought": {"content": "Good day.", "reasoning": "Hm."},
    "called": {"content": "Let me see.", "tool_calls": [CALL]},
}


async def in_pieces(message, ends=None):
    """A chat's stream of a message, as vLLM has it: a character at a time, the call in two pieces, the counts last."""
    chunks = [{"delta": {"role": "assistant", "content": ""}}]
    chunks += [{"delta": {"reasoning": c}} for c in message.get("reasoning", "")]
    chunks += [{"delta": {"content": c}} for c in message["content"]]
    for call in message.get("tool_calls", ()):
        head, tail = {"name": "add", "arguments": '{"a"'}, {"arguments": ": 2}"}
        chunks.append({"delta": {"tool_calls": [{"index": 0, "id": call["id"], "type": "function", "function": head}]}})
        chunks.append({"delta": {"tool_calls": [{"index": 0, "function": tail}]}})
    for chunk in chunks:
        yield f"data: {json.dumps({'choices': [{'index': 0, **chunk, 'finish_reason': None}]})}\n\n"
    yield ": keep-alive\n\n"
    if ends:
        yield f"data: {json.dumps(ends)}\n\n"
        return
    last = {"index": 0, "delta": {}, "finish_reason": "stop"}
    yield f"data: {json.dumps({'choices': [last], 'persona': READ})}\n\n"
    yield f"data: {json.dumps({'choices': [], 'usage': COUNTS})}\n\n"
    yield "data: [DONE]\n\n"


def events_of(answer):
    async def read():
        return "".join([chunk async for chunk in answer.body_iterator])

    lines = asyncio.run(read()).splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


@pytest.mark.parametrize("name", MESSAGES)
def test_a_chats_answer_becomes_a_response_streamed_and_not(name):
    message = {"role": "assistant", **MESSAGES[name]}
    told = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": COUNTS, "persona": READ}
    asked = ResponseRequest(model="smollm2", input="hello")
    whole = json.loads(bytes(asyncio.run(as_response(asked, JSONResponse(told))).body))
    texts = {item["type"]: item["content"][0]["text"] for item in whole["output"] if "content" in item}
    assert texts["message"] == message["content"]
    assert texts.get("reasoning", "") == message.get("reasoning", "")
    calls = [item["arguments"] for item in whole["output"] if item["type"] == "function_call"]
    assert calls == [call["function"]["arguments"] for call in message.get("tool_calls", ())]
    assert (whole["usage"]["input_tokens"], whole["usage"]["output_tokens"]) == (5, 3)
    assert whole["usage"]["output_tokens_details"] == {"reasoning_tokens": 2}
    assert (whole["status"], whole["persona"]) == ("completed", READ)
    asked = ResponseRequest(model="smollm2", input="hello", stream=True)
    events = events_of(asyncio.run(as_response(asked, StreamingResponse(in_pieces(message)))))
    last = events[-1]["response"]
    assert [{**i, "id": ""} for i in last["output"]] == [{**i, "id": ""} for i in whole["output"]]
    assert (last["usage"], last["persona"]) == (whole["usage"], READ)
    assert "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta") == message["content"]
    assert [e["sequence_number"] for e in events] == list(range(len(events)))


def test_a_response_that_fails_in_the_middle_ends_with_its_error():
    asked = ResponseRequest(model="smollm2", input="hello", stream=True)
    error = {"error": {"message": "lost", "type": "server_error", "param": None, "code": 500}}
    events = events_of(asyncio.run(as_response(asked, StreamingResponse(in_pieces(MESSAGES["said"], error)))))
    assert (events[-1]["type"], events[-1]["message"]) == ("error", "lost")
    refused = JSONResponse(error, 400)
    assert asyncio.run(as_response(asked, refused)) is refused


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_in_a_conversation_that_an_alert_ended_is_incomplete(stream):
    asked = ResponseRequest(model="smollm2", input="hello", stream=stream)
    body = {"stream": stream, "stream_options": {"include_usage": True}}
    told = bytes(asyncio.run(as_response(asked, _stopped("smollm2", body))).body).decode()
    response = json.loads(told.strip().rpartition("data: ")[2])["response"] if stream else json.loads(told)
    assert response["incomplete_details"] == {"reason": "content_filter"}
