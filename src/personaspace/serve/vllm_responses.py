"""`/v1/responses` of vLLM's server: the answer to the chat completion that it is, in its own shape."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

from fastapi.responses import JSONResponse, Response, StreamingResponse

from personaspace.engines.tool_calls import CalledTool
from personaspace.serve.replies import CompletedReply, ReplyStep
from personaspace.serve.responses import ResponseFormat, ResponseRequest


async def as_response(asked: ResponseRequest, answer: Response) -> Response:
    """The answer to a chat completion as one to a response; one that refuses stays as it is. A stream's answer has an event in
    each of its pieces."""
    shape = ResponseFormat(asked)
    if isinstance(answer, StreamingResponse):
        answer.body_iterator = _events(answer.body_iterator, shape)
        return answer
    if answer.status_code != 200:
        return answer
    body = bytes(answer.body)
    if asked.stream:  # a conversation that an alert ended comes as a whole
        pieces = [piece + b"\n\n" for piece in body.split(b"\n\n") if piece]
        lines = [line async for line in _events(_each(pieces), shape)]
        return Response("".join(lines), media_type="text/event-stream")
    payload = json.loads(body)
    reply = CompletedReply(0, [])
    _take(reply, payload)
    (choice,) = payload["choices"]
    message = choice["message"]
    reply.text, reply.thinking = message.get("content") or "", _thoughts(message)
    reply.calls = _calls(message.get("tool_calls") or ())
    return JSONResponse(shape.completion([reply]))


async def _each(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def _events(chunks: Any, shape: ResponseFormat) -> AsyncGenerator[str, None]:
    """A chat's chunks as a response's events; comments go through."""
    reply, calls = CompletedReply(0, []), dict[int, dict[str, str]]()
    for line in shape.opening([reply]):
        yield line
    async for chunk in chunks:
        line = chunk if isinstance(chunk, str) else bytes(chunk).decode()
        if not line.startswith("data: {"):
            if line.startswith("data: [DONE]"):
                reply.calls = tuple(CalledTool(c["name"], c["arguments"], c["id"]) for c in calls.values())
                for event in shape.closing([reply], False):
                    yield event
            elif not line.startswith("data: "):
                yield line
            continue
        completion = json.loads(line.removeprefix("data: "))
        if error := completion.get("error"):
            yield shape.lost(error["message"], error.get("param"), str(error.get("code")))
            return
        _take(reply, completion)
        for choice in completion["choices"]:
            delta = choice["delta"]
            step = ReplyStep(delta.get("content") or "", _thoughts(delta), completion.get("persona"), False, slice(0))
            reply.text, reply.thinking = reply.text + step.text, reply.thinking + step.thinking
            for part in delta.get("tool_calls") or ():
                call = calls.setdefault(part["index"], {"name": "", "arguments": "", "id": ""})
                call["id"] = part.get("id") or call["id"]
                for name in ("name", "arguments"):
                    call[name] += part["function"].get(name) or ""
            for event in shape.step(reply, step):
                yield event


def _take(reply: CompletedReply, completion: Mapping[str, Any]) -> None:
    """What an answer, or a chunk of it, says of the reply as a whole."""
    if counts := completion.get("usage"):
        reply.ids, reply.counted = [0] * counts["prompt_tokens"], counts["completion_tokens"]
        reply.thoughts_counted = (counts.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    reply.persona = completion.get("persona") or reply.persona
    for choice in completion["choices"]:
        reply.finish = choice.get("finish_reason") or reply.finish
        reply.note = (choice.get("message") or choice.get("delta") or {}).get("refusal") or reply.note


def _thoughts(message: Mapping[str, Any]) -> str:
    return str(message.get("reasoning") or message.get("reasoning_content") or "")


def _calls(calls: Any) -> tuple[CalledTool, ...]:
    return tuple(CalledTool(c["function"]["name"], c["function"]["arguments"], c["id"]) for c in calls)
