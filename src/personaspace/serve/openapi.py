"""What the OpenAPI document says that the routes' code does not: replies' shapes, refusals, keys, and this server's own names
and limits. Nothing here takes part in answering."""

from __future__ import annotations

import re
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from personaspace.serve.persona import Reader
from personaspace.serve.settings import Settings
from personaspace.serve.watch import RECOMMENDED


class ErrorTold(BaseModel):
    """What went wrong, in OpenAI's shape."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every refusal."""

    error: ErrorTold


class AlongTold(BaseModel):
    """Where a reply lies along a direction: its projection, and how far above the default's mean that is, in its standard
    deviations (null where the space does not know them)."""

    projection: float
    shift: float | None


class PersonaTold(BaseModel):
    """Where a reply lies: projection on the axis, drift in the default's standard deviations (null for a space that does not
    know them), the nearest roles with their cosines, and its place on the map's first two components. along: on the directions
    that were asked for, by name; alerts: whether each of the server's alerts stands, where it has any beside the axis'; acted:
    what was done since one was raised before."""

    layer: int
    projection: float
    drift: float | None
    nearest: list[tuple[str, float]]
    capped_tokens: int
    tokens_read: int
    alert: bool | None
    place: list[float]
    along: dict[str, AlongTold] = {}
    alerts: dict[str, bool] = {}
    acted: Literal["cap"] | None = None


class ThoughtsCounted(BaseModel):
    """Of a reply with thoughts, how many tokens they are."""

    reasoning_tokens: int


class Usage(BaseModel):
    """Counts of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: ThoughtsCounted | None = None


class CalledFunctionTold(BaseModel):
    """A function that the model calls; arguments: JSON, as text."""

    name: str
    arguments: str


class CallTold(BaseModel):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: CalledFunctionTold


class MessageTold(BaseModel):
    """A reply's text, null where it only calls tools; reasoning_content: what was thought before it, where anything was;
    refusal: why there is none, where an alert ended the conversation."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    reasoning_content: str = ""
    tool_calls: list[CallTold] = []


class TokenTold(BaseModel):
    """A token with its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class LoggedToken(TokenTold):
    """The same, with the most probable tokens in its place."""

    top_logprobs: list[TokenTold]


class ChatLogprobs(BaseModel):
    """A chat reply's tokens."""

    content: list[LoggedToken]
    refusal: None


class TextLogprobs(BaseModel):
    """A text completion's tokens, as lists side by side; an echoed prompt's first token has no probability."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class _Choice(BaseModel):
    index: int


class ChatChoice(_Choice):
    """One of a chat's replies."""

    finish_reason: Literal["stop", "length", "tool_calls", "content_filter"]

    message: MessageTold
    logprobs: ChatLogprobs | None


class TextChoice(_Choice):
    """One of a text completion's replies."""

    finish_reason: Literal["stop", "length", "content_filter"]
    text: str
    logprobs: TextLogprobs | None


class _Told(BaseModel):
    id: str
    created: int
    model: str
    usage: Usage
    persona: PersonaTold | None
    personas: list[PersonaTold | None] = []


class ChatReply(_Told):
    """`/v1/chat/completions`; `persona` is the first reply's, null for an empty one; `personas` are those of several."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class TextReply(_Told):
    """`/v1/completions`."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


class OutputText(BaseModel):
    """A part of a response's message."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Any]


class OutputMessage(BaseModel):
    """What a response says."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: Literal["completed", "incomplete"]
    content: list[OutputText]


class ReasoningText(BaseModel):
    """A part of a response's thoughts."""

    type: Literal["reasoning_text"]
    text: str


class OutputReasoning(BaseModel):
    """What was thought before a response's message; there is no summary of it."""

    id: str
    type: Literal["reasoning"]
    summary: list[Any]
    status: Literal["completed", "incomplete"]
    content: list[ReasoningText]


class OutputCall(BaseModel):
    """A call of a tool; arguments: JSON, as text."""

    id: str
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    status: Literal["completed", "incomplete"]


class ResponseUsage(BaseModel):
    """Counts of tokens, by the Responses API's names."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class WholeResponse(BaseModel):
    """`/v1/responses`."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    model: str
    output: list[OutputReasoning | OutputMessage | OutputCall]
    usage: ResponseUsage
    persona: PersonaTold | None


class ModelCard(BaseModel):
    """A model, or the model with a cap; max_model_len: how many tokens prompt and reply may have together."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(BaseModel):
    """`/v1/models`."""

    object: Literal["list"]
    data: list[ModelCard]


class ThoughtsTold(BaseModel):
    """Where what was thought before an answer lies."""

    tokens: int
    projection: float
    drift: float | None


class TurnTold(BaseModel):
    """An assistant turn of a conversation; `fell`: the tokens in which the projection lay furthest under the default's."""

    index: int
    tokens: int
    projection: float
    drift: float | None
    nearest: list[tuple[str, float]]
    alert: bool
    fell: tuple[int, int] | None
    fell_text: str
    each: list[float]
    thinking: ThoughtsTold | None = None


class Projected(BaseModel):
    """`/v1/persona/project`; `problem` says what did not fit the model's context."""

    layer: int
    turns: list[TurnTold]
    problem: str | None


REFUSALS = {
    400: "What was asked for cannot be met; the message says why",
    401: "A key is missing or wrong",
    404: "There is no such model",
    408: "The body took too long to come",
    413: "The body is too large",
    415: "The body's Content-Type is not application/json",
    429: "The queue is full; Retry-After says when to come back",
    500: "The server failed; its log says why",
    503: "Nothing is decoded any more: the server is stopping, or its log says why",
}


def refused(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Refusals of a route, for its `responses`."""
    return {status: {"model": ErrorBody, "description": REFUSALS[status]} for status in statuses}


def answered(model: type[BaseModel], *statuses: int, streams: bool = False) -> dict[int | str, dict[str, Any]]:
    """A route's reply and refusals, for its `responses`."""
    reply: dict[str, Any] = {"model": model, "description": "The whole reply at once"}
    if streams:
        event = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
        chunks = {"schema": event, "example": "data: {…}\n\ndata: [DONE]\n\n"}
        reply["content"] = {"text/event-stream": chunks}
        reply["description"] = "The whole reply at once, or with `stream` as server-sent events of chunks"
    return {200: reply, **refused(*statuses)}


def describe(app: FastAPI, settings: Settings, reader: Reader) -> None:
    """Has the application's document say this server's models, caps, directions, limits and keys."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _as_it_is(schema)
            _named(schema["components"]["schemas"], settings, reader)
            if settings.keys:
                _locked(schema)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _as_it_is(schema: dict[str, Any]) -> None:
    """Bodies that do not hold are answered 400 here, never 422."""
    for path in schema["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        schema["components"]["schemas"].pop(name, None)


def _named(schemas: dict[str, Any], settings: Settings, reader: Reader) -> None:
    caps, watch = list(reader.space.caps), reader.watch
    directions = [*reader.space.directions, *reader.space.roles]
    for name in ("ChatCompletion", "TextCompletion", "ResponseRequest"):
        fields = schemas[name]["properties"]
        fields["model"]["enum"] = reader.models
        for option in fields.get("n", {}).get("anyOf", ()):
            if option["type"] == "integer":
                option["maximum"] = settings.max_n
    for name in ("ChatCompletion", "Conversation"):
        schemas[name]["properties"]["messages"]["maxItems"] = settings.max_messages
    fields = schemas["Persona"]["properties"]
    cap = fields["cap"]["anyOf"]
    cap[0]["enum"] = list(caps)
    if caps:
        # JavaScript's regular expressions know fewer escapes than `re.escape` writes.
        names = "|".join(re.sub(r"([.*+?^${}()|\[\]\\])", r"\\\1", name) for name in caps)
        ways = r"(\+(target|mirror))?(\+(generated|answer))?(\+half-life=[1-9][0-9]{0,3})?"
        ways += r"(\+alert)?" if watch.alerts else ""
        cap.insert(1, {"type": "string", "pattern": f"^({names}){ways}$", "maxLength": 200})
    fields["read"]["anyOf"][0]["items"]["enum"] = directions
    fields["histories"]["anyOf"][0]["propertyNames"] = {"enum": directions}
    if not watch.alerts:
        fields["on_alert"]["anyOf"][0] = {"const": "tell"}
    elif RECOMMENDED not in caps:
        fields["on_alert"]["anyOf"][0] = {"enum": ["tell", "stop"]}
    schemas["Steer"]["properties"]["direction"]["enum"] = directions


def _locked(schema: dict[str, Any]) -> None:
    schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in schema["paths"].items():
        if path.startswith("/v1/") or path in ("/metrics", "/openapi.json"):
            for operation in operations.values():
                operation["security"] = [{"key": []}]
