"""Messages and tools as a request has them, and what all of a request's parts have in common."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, WithJsonSchema, model_validator

DEEPEST = 32
"""How deep a tool's description or a call's arguments may nest."""


def _encodable(value: str) -> str:
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise ValueError("half of a surrogate pair is no text")
    return value


Text = Annotated[str, AfterValidator(_encodable)]
"""JSON's escapes may spell what is no text: no tokenizer takes it, and no reply could say it."""


def _integral(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_integral)]
"""A whole number, also written 16.0; never text, and never true."""


def nullable(schema: dict[str, Any]) -> None:
    """Has a JSON Schema say that null is as good as nothing, for fields that nobody knows as well."""
    for name, field in schema["properties"].items():
        if "default" in field and {"type": "null"} not in field.get("anyOf", ()):
            annotations = {k: field.pop(k) for k in ("default", "title") if k in field}
            single_text = [{"type": "string", "maxLength": LONGEST_STOP}] if name == "stop" else []
            schema["properties"][name] = {**annotations, "anyOf": [field, *single_text, {"type": "null"}]}
    if schema.get("additionalProperties") is False:
        schema["additionalProperties"] = {"type": "null"}


class Nullable(BaseModel):
    """Whose fields are as absent where they are null."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=nullable)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_null(cls, values: Any) -> Any:
        return {k: v for k, v in values.items() if v is not None} if isinstance(values, dict) else values


LONGEST_STOP = 256
"""Characters of a stop text; OpenAI takes four texts, some clients send a list of names."""

TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Types of a message's parts that are read, and the field that has their text; the middle two are the Responses API's."""


def _text(value: Any) -> Any:
    """A message's text, also where it comes in parts."""
    if not isinstance(value, list):
        return "" if value is None else value
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get(TEXT_PARTS[kind]) if isinstance(kind, str) and kind in TEXT_PARTS else None
        if not isinstance(text, str):
            shown = (
                f"one of type {kind[:40]!r}" if isinstance(kind, str) and kind not in TEXT_PARTS else "something else"
            )
            raise ValueError(f"of a message's parts, only those of text are taken; there is {shown}")
        texts.append(text)
    return "".join(texts)


_PARTS = [
    {"type": "object", "properties": {"type": {"const": kind}, name: {"type": "string"}}, "required": ["type", name]}
    for kind, name in TEXT_PARTS.items()
]
_CONTENT = {"anyOf": [{"type": "string"}, {"type": "null"}, {"type": "array", "items": {"anyOf": _PARTS}}]}
Content = Annotated[Text, BeforeValidator(_text), WithJsonSchema(_CONTENT)]
"""A text, whole or in parts."""


def plain_json(value: Any, depth: int = 0) -> Any:
    """A value of JSON as it is. Raises `ValueError` where it nests too deep, or has what is no text in it."""
    if depth > DEEPEST:
        raise ValueError(f"it nests deeper than {DEEPEST}")
    if isinstance(value, dict):
        for key, inner in value.items():
            _encodable(key)
            plain_json(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            plain_json(inner, depth + 1)
    elif isinstance(value, str):
        _encodable(value)
    return value


class OfferedFunction(Nullable):
    """A function that the model may call; `parameters` is a JSON Schema."""

    model_config = ConfigDict(extra="allow")
    name: Text


class OfferedTool(Nullable):
    """What the model may call; functions are known."""

    model_config = ConfigDict(extra="ignore")
    type: Literal["function"] = "function"
    function: Annotated[OfferedFunction, BeforeValidator(plain_json)]


def _arguments(value: Any) -> Any:
    return json.dumps(plain_json(value), ensure_ascii=False) if isinstance(value, dict) else value


_ARGUMENTS = {"anyOf": [{"type": "string"}, {"type": "object"}]}


class CalledFunction(Nullable):
    """A function that was called, with its arguments as JSON in a text; an object is taken as well."""

    model_config = ConfigDict(extra="ignore")
    name: Text
    arguments: Annotated[Text, BeforeValidator(_arguments), WithJsonSchema(_ARGUMENTS)] = ""


class ToolCall(Nullable):
    """A call in an assistant's message."""

    model_config = ConfigDict(extra="ignore")
    id: Text = ""
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(Nullable):
    """A message. An assistant's may have called tools, whose results are messages of role `tool` (`function`, with OpenAI's
    older way); `name` is told of those alone."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content = ""
    refusal: Text = ""
    name: Text = ""
    tool_calls: list[ToolCall] = []
    function_call: CalledFunction | None = None
    tool_call_id: Text = ""

    @property
    def calls(self) -> list[ToolCall]:
        """The tools that it called, in whichever way that is written."""
        older = [ToolCall(function=self.function_call)] if self.function_call else []
        return [*self.tool_calls, *older] if self.role == "assistant" else []

    def plain(self) -> dict[str, Any]:
        """The message as an engine takes it."""
        role = {"developer": "system", "function": "tool"}.get(self.role, self.role)
        message: dict[str, Any] = {
            "role": role,
            "content": self.content or (self.refusal if role == "assistant" else ""),
        }
        if self.calls:
            message["tool_calls"] = [call.model_dump() for call in self.calls]
        if role == "tool":
            message |= {k: v for k, v in (("tool_call_id", self.tool_call_id), ("name", self.name)) if v}
        return message
