"""`/v1/responses`, in the part that clients of a chat use: a request of it is a chat completion's, told in its own shape."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from personaspace.engines.tool_calls import CalledTool
from personaspace.serve.messages import (
    CalledFunction,
    ChatMessage,
    Content,
    Nullable,
    OfferedFunction,
    Text,
    ToolCall,
    Whole,
    plain_json,
)
from personaspace.serve.replies import CompletedReply, ReplyStep, sse, usage
from personaspace.serve.thinking import Effort
from personaspace.serve.types import ChatCompletion, NamedFunction, Persona, as_taken, what_matters

REASONING_TEXT = "reasoning_text"
ItemType = Literal["reasoning", "message"]
PARTS: dict[ItemType, str] = {"reasoning": REASONING_TEXT, "message": "output_text"}
"""The types of a response's items, and of the one part that each has."""

INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Why a response is not whole, by how its reply ended."""

PLAIN_TEXT = {"format": {"type": "text"}}
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    # Thoughts are told as they are, and nothing of them is hidden.
    "include": ([], ["reasoning.encrypted_content"]),
    "stream_options": ({}, {"include_obfuscation": False}, {"include_obfuscation": True}),
    "text": ({}, PLAIN_TEXT, {"verbosity": "medium"}, {**PLAIN_TEXT, "verbosity": "medium"}),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
    "max_tool_calls": tuple(range(1, 129)),
}
"""Fields that are not supported, and the values beside null with which they ask for nothing."""


class InputItem(Nullable):
    """A message, a tool's call or result, or thoughts of an earlier turn, which are left out, as a chat's are."""

    model_config = ConfigDict(extra="ignore")
    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Content = ""
    call_id: Text = ""
    name: Text = ""
    arguments: Text = ""
    output: Content = ""

    @model_validator(mode="before")
    @classmethod
    def _without_thoughts(cls, values: Any) -> Any:
        return {"type": "reasoning"} if isinstance(values, dict) and values.get("type") == "reasoning" else values

    @model_validator(mode="after")
    def _what_its_type_takes(self) -> InputItem:
        needed = {"message": "role", "function_call": "name", "function_call_output": "call_id"}.get(self.type)
        if needed and not getattr(self, needed):
            raise ValueError(f"an item of type {self.type} has a {needed}; there is none")
        return self


class Reasoning(Nullable):
    """How hard the model may think before it answers. Its thoughts come as they are: there is no summary of them."""

    effort: Effort | None = None
    summary: Literal["auto"] | None = None
    generate_summary: Literal["auto"] | None = None
    context: Literal["auto"] | None = None
    mode: Literal["standard"] | None = None


class OfferedFunctionTool(OfferedFunction):
    """A function that the model may call, as this API writes it: without an object around it."""

    type: Literal["function"]


class NamedFunctionTool(NamedFunction):
    """The tool that is to be called, as this API writes it."""

    type: Literal["function"]


def _input(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


def _as_taken(schema: dict[str, Any]) -> None:
    as_taken(schema, NEUTRAL)
    items = schema["properties"]["input"]
    schema["properties"]["input"] = {"title": items.pop("title"), "anyOf": [{"type": "string"}, items]}


class ResponseRequest(Nullable):
    """`/v1/responses`. Nothing is stored: previous_response_id and conversation are refused."""

    model_config = ConfigDict(json_schema_extra=_as_taken)
    model: Text
    input: Annotated[list[InputItem], Field(min_length=1), BeforeValidator(_input)]
    instructions: Text = ""
    max_output_tokens: Whole | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=0, le=1)
    stream: bool = False
    reasoning: Reasoning = Reasoning()
    tools: list[Annotated[OfferedFunctionTool, BeforeValidator(plain_json)]] = Field(default=[], max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedFunctionTool = "auto"
    parallel_tool_calls: bool = True
    persona: Persona = Persona()

    @field_validator("input")
    @classmethod
    def _something_is_asked(cls, value: list[InputItem]) -> list[InputItem]:
        if all(item.type == "reasoning" for item in value):
            raise ValueError("there is nothing to answer in it, but thoughts")
        return value

    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_asks_for_nothing(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        present = {
            k: {name: v for name, v in value.items() if v is not None} if isinstance(value, dict) else value
            for k, value in values.items()
        }
        return what_matters(present, cls.model_fields, NEUTRAL)

    def chat(self) -> ChatCompletion:
        """The same as a chat completion."""
        return ChatCompletion.model_validate(self.chat_body())

    def chat_body(self) -> dict[str, Any]:
        """The same as a chat completion's fields."""
        messages = [ChatMessage(role="system", content=self.instructions)] if self.instructions else []
        for item in self.input:
            if item.type == "function_call":
                call = ToolCall(id=item.call_id, function=CalledFunction(name=item.name, arguments=item.arguments))
                if not messages or messages[-1].role != "assistant":
                    messages.append(ChatMessage(role="assistant"))
                messages[-1].tool_calls = [*messages[-1].tool_calls, call]  # of one turn, as a chat has them
            elif item.type == "function_call_output":
                messages.append(ChatMessage(role="tool", content=item.output, tool_call_id=item.call_id))
            elif item.role:
                messages.append(ChatMessage(role=item.role, content=item.content))
        functions = [t.model_dump(exclude_unset=True, exclude={"type", "strict"}) for t in self.tools]
        return {
            "model": self.model,
            "messages": messages,
            "max_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stream": self.stream,
            "reasoning_effort": self.reasoning.effort,
            "tools": [{"type": "function", "function": function} for function in functions],
            "tool_choice": self.tool_choice
            if isinstance(self.tool_choice, str)
            else {"type": "function", "function": {"name": self.tool_choice.name}},
            "parallel_tool_calls": self.parallel_tool_calls,
            "persona": self.persona,
        }


@dataclass
class ResponseFormat:
    """How such a request is answered: its one reply is one message, behind an item of its thoughts where there are any, and
    before its calls of tools."""

    body: ResponseRequest
    id: str = field(default_factory=lambda: f"resp_{secrets.token_hex(16)}")
    created: int = field(default_factory=lambda: int(time.time()))
    endpoint: str = "/v1/responses"

    def __post_init__(self) -> None:
        self._numbers = count()
        self._told: dict[ItemType, str] = {}  # the text of each item that a stream has begun, in that order
        self._ended: set[ItemType] = set()
        self._last_tokens: dict[str, Any] = {}

    @property
    def request_id(self) -> str:
        return self.id

    def completion(self, replies: Sequence[CompletedReply]) -> dict[str, Any]:
        """The whole response, with the reply's `persona`."""
        (reply,) = replies
        status = "incomplete" if reply.finish in INCOMPLETE else "completed"
        texts: dict[ItemType, str] = {"reasoning": reply.thinking, "message": reply.text}
        # A reply that is cut short in its thoughts says nothing.
        has_message = bool(reply.text or not reply.calls)
        types = [
            *self._told,
            *(t for t in texts if t not in self._told and (texts[t] or (t == "message" and has_message))),
        ]
        if status == "incomplete" and reply.thinking and not reply.text and "message" not in self._told:
            types = ["reasoning"]
        output = [self._item(t, texts[t], status if t == types[-1] else "completed") for t in types]
        output += [_call(call, status) for call in reply.calls]
        return {
            **self._response(status, output, replies),
            "persona": {**(reply.persona or {}), **self._last_tokens} or None,
        }

    def opening(self, replies: Sequence[CompletedReply]) -> Iterator[str]:
        """A response without output."""
        response = self._response("in_progress", [], None)
        yield self._event("response.created", response=response)
        yield self._event("response.in_progress", response=response)

    def step(self, r: CompletedReply, step: ReplyStep) -> Iterator[str]:
        """What a step added to the thoughts, and to the text, with `persona` where tokens are told of."""
        persona = {"persona": step.persona} if step.persona and not r.finish else {}
        if r.finish and step.persona:  # tokens that were read since the last event; the whole response tells them
            self._last_tokens = {name: value for name, value in step.persona.items() if name == "tokens"}
        # Thoughts behind the first word of an answer, which Harmony might hold, stand in the whole response alone.
        if step.thinking and "message" not in self._told:
            yield from self._begin("reasoning")
            self._told["reasoning"] += step.thinking
            place = self._place("reasoning")
            yield self._event("response.reasoning_text.delta", **place, delta=step.thinking)
        if step.text or persona:
            yield from self._end("reasoning", "completed")
            yield from self._begin("message")
            self._told["message"] += step.text
            place = self._place("message")
            yield self._event("response.output_text.delta", **place, delta=step.text, logprobs=[], **persona)

    def closing(self, replies: Sequence[CompletedReply], told_usage: bool) -> Iterator[str]:
        """What was not ended yet, part and item as a whole, and the whole response."""
        response = self.completion(replies)
        for index, item in enumerate(response["output"]):
            if item["type"] == "function_call":
                begun = {**item, "arguments": "", "status": "in_progress"}
                yield self._event("response.output_item.added", output_index=index, item=begun)
                place = {"item_id": item["id"], "output_index": index}
                yield self._event("response.function_call_arguments.delta", **place, delta=item["arguments"])
                arguments = {"name": item["name"], "arguments": item["arguments"]}
                yield self._event("response.function_call_arguments.done", **place, **arguments)
                yield self._event("response.output_item.done", output_index=index, item=item)
                continue
            if item["type"] not in self._told:
                yield from self._begin(item["type"])
                self._told[item["type"]] = item["content"][0]["text"]
            yield from self._end(item["type"], item["status"])
        yield self._event(f"response.{response['status']}", response=response)

    def lost(self, message: str, param: str | None, code: str) -> str:
        """An error's event."""
        return self._event("error", message=message, param=param, code=code)

    def _event(self, kind: str, **fields: Any) -> str:
        return sse({"type": kind, "sequence_number": next(self._numbers), **fields}, kind)

    def _begin(self, item_type: ItemType) -> Iterator[str]:
        """The events with which an item begins, unless it has."""
        if item_type not in self._told:
            self._told[item_type] = ""
            place, item = self._place(item_type), self._item(item_type, None, "in_progress")
            yield self._event("response.output_item.added", output_index=place["output_index"], item=item)
            yield self._event("response.content_part.added", **place, part=_part(item_type, ""))

    def _end(self, item_type: ItemType, status: str) -> Iterator[str]:
        """The events with which an item that has begun ends, unless it has."""
        if item_type in self._told and item_type not in self._ended:
            self._ended.add(item_type)
            place, text = self._place(item_type), self._told[item_type]
            logged: dict[str, Any] = {"logprobs": []} if item_type == "message" else {}
            yield self._event(f"response.{PARTS[item_type]}.done", **place, text=text, **logged)
            yield self._event("response.content_part.done", **place, part=_part(item_type, text))
            item = self._item(item_type, text, status)
            yield self._event("response.output_item.done", output_index=place["output_index"], item=item)

    def _place(self, item_type: ItemType) -> dict[str, Any]:
        index = list(self._told).index(item_type)
        return {"item_id": self._item_id(item_type), "output_index": index, "content_index": 0}

    def _item_id(self, item_type: ItemType) -> str:
        return self.id.replace("resp_", {"reasoning": "rs_", "message": "msg_"}[item_type])

    def _item(self, item_type: ItemType, text: str | None, status: str) -> dict[str, Any]:
        head: dict[str, Any] = {"summary": []} if item_type == "reasoning" else {"role": "assistant"}
        content = [] if text is None else [_part(item_type, text)]
        return {"id": self._item_id(item_type), "type": item_type, **head, "status": status, "content": content}

    def _response(
        self, status: str, output: list[dict[str, Any]], replies: Sequence[CompletedReply] | None
    ) -> dict[str, Any]:
        body = self.body
        reason = next((INCOMPLETE[r.finish] for r in replies or () if r.finish in INCOMPLETE), None)
        counts = usage(replies) if replies is not None else None
        thought_tokens = sum(r.thought_tokens for r in replies or ())
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": reason} if status == "incomplete" else None,
            "instructions": body.instructions or None,
            "max_output_tokens": body.max_output_tokens,
            "model": body.model,
            "output": output,
            "parallel_tool_calls": body.parallel_tool_calls,
            "previous_response_id": None,
            "reasoning": {"effort": body.reasoning.effort, "summary": None},
            "store": False,
            "temperature": body.temperature,
            "text": PLAIN_TEXT,
            "tool_choice": body.tool_choice if isinstance(body.tool_choice, str) else body.tool_choice.model_dump(),
            "tools": [t.model_dump(exclude_unset=True) for t in body.tools],
            "top_p": body.top_p,
            "truncation": "disabled",
            "metadata": {},
            "usage": counts
            and {
                "input_tokens": counts["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": counts["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": thought_tokens},
                "total_tokens": counts["total_tokens"],
            },
        }


def _call(call: CalledTool, status: str) -> dict[str, Any]:
    names = {"id": f"fc_{call.id}", "type": "function_call", "call_id": call.id, "name": call.name}
    return {**names, "arguments": call.arguments, "status": status}


def _part(item_type: ItemType, text: str) -> dict[str, Any]:
    more: dict[str, Any] = {"annotations": [], "logprobs": []} if item_type == "message" else {}
    return {"type": PARTS[item_type], "text": text, **more}
