"""`/v1/responses`, in the part that clients of a chat use: a request of it is a chat completion's, told in its own shape."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from personaspace.serve.messages import (
    CalledFunction,
    ChatMessage,
    Content,
    Nullable,
    OfferedFunction,
    Text,
    ToolCall,
    Whole,
)
from personaspace.serve.replies import CompletedReply, ReplyStep, sse, usage
from personaspace.serve.types import ChatCompletion, Persona, as_taken, what_matters

PLAIN_TEXT = {"format": {"type": "text"}}
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    # Of a model that is made to answer without thinking aloud there is nothing to include.
    "include": ([], ["reasoning.encrypted_content"]),
    "parallel_tool_calls": (True, False),
    "reasoning": ({}, {"effort": "none"}),
    "stream_options": ({}, {"include_obfuscation": False}, {"include_obfuscation": True}),
    "text": ({}, PLAIN_TEXT, {"verbosity": "medium"}, {**PLAIN_TEXT, "verbosity": "medium"}),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
    "max_tool_calls": tuple(range(1, 129)),
}
"""Fields that are not supported, and the values beside null with which they ask for nothing."""


class InputItem(Nullable):
    """A message, or a tool's call or result."""

    model_config = ConfigDict(extra="ignore")
    type: Literal["message", "function_call", "function_call_output"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Content = ""
    call_id: Text = ""
    name: Text = ""
    arguments: Text = ""
    output: Content = ""

    @model_validator(mode="after")
    def _what_its_type_takes(self) -> InputItem:
        needed = {"message": "role", "function_call": "name", "function_call_output": "call_id"}[self.type]
        if not getattr(self, needed):
            raise ValueError(f"an item of type {self.type} has a {needed}; there is none")
        return self


class OfferedFunctionTool(OfferedFunction):
    """A function that the model may call, as this API writes it: without an object around it."""

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
    tools: list[OfferedFunctionTool] = Field(default=[], max_length=128)
    tool_choice: Literal["none", "auto"] = "auto"
    persona: Persona = Persona()

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
        body = {
            "model": self.model,
            "messages": messages,
            "max_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stream": self.stream,
            "tools": [{"type": "function", "function": function} for function in functions],
            "tool_choice": self.tool_choice,
            "persona": self.persona,
        }
        return ChatCompletion.model_validate(body)


@dataclass
class ResponseFormat:
    """How such a request is answered; its one reply is one message."""

    body: ResponseRequest
    id: str = field(default_factory=lambda: f"resp_{secrets.token_hex(16)}")
    created: int = field(default_factory=lambda: int(time.time()))
    endpoint: str = "/v1/responses"

    def __post_init__(self) -> None:
        self._numbers = count()

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self.id.replace("resp_", "msg_"), "output_index": 0, "content_index": 0}

    def completion(self, replies: Sequence[CompletedReply]) -> dict[str, Any]:
        """The whole response, with the reply's `persona`."""
        (reply,) = replies
        status = "incomplete" if reply.finish == "length" else "completed"
        return {**self._response(status, [self._message(reply.text, status)], replies), "persona": reply.persona}

    def opening(self, replies: Sequence[CompletedReply]) -> Iterator[str]:
        """A response without output, and then a message without text."""
        response = self._response("in_progress", [], None)
        yield self._event("response.created", response=response)
        yield self._event("response.in_progress", response=response)
        item = self._message(None, "in_progress")
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._event("response.content_part.added", **self._place, part=_part(""))

    def step(self, r: CompletedReply, step: ReplyStep) -> Iterator[str]:
        """What a step added to the text, with `persona` where tokens are told of; thoughts are not told here."""
        told = {"persona": step.persona} if step.persona and not r.finish else {}
        if step.text or told:
            yield self._event("response.output_text.delta", **self._place, delta=step.text, logprobs=[], **told)

    def closing(self, replies: Sequence[CompletedReply], told_usage: bool) -> Iterator[str]:
        """Text, part and message as a whole, and the whole response."""
        (reply,) = replies
        response = self.completion(replies)
        yield self._event("response.output_text.done", **self._place, text=reply.text, logprobs=[])
        yield self._event("response.content_part.done", **self._place, part=_part(reply.text))
        yield self._event("response.output_item.done", output_index=0, item=response["output"][0])
        yield self._event(f"response.{response['status']}", response=response)

    def lost(self, message: str, param: str | None, code: str) -> str:
        """An error's event."""
        return self._event("error", message=message, param=param, code=code)

    def _event(self, kind: str, **fields: Any) -> str:
        return sse({"type": kind, "sequence_number": next(self._numbers), **fields}, kind)

    def _message(self, text: str | None, status: str) -> dict[str, Any]:
        content = [] if text is None else [_part(text)]
        head = {"id": self._place["item_id"], "type": "message", "role": "assistant"}
        return {**head, "status": status, "content": content}

    def _response(
        self, status: str, output: list[dict[str, Any]], replies: Sequence[CompletedReply] | None
    ) -> dict[str, Any]:
        body = self.body
        counts = usage(replies) if replies is not None else None
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions or None,
            "max_output_tokens": body.max_output_tokens,
            "model": body.model,
            "output": output,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": body.temperature,
            "text": PLAIN_TEXT,
            "tool_choice": body.tool_choice,
            "tools": [t.model_dump(exclude_unset=True) for t in body.tools],
            "top_p": body.top_p,
            "truncation": "disabled",
            "metadata": {},
            "usage": counts
            and {
                "input_tokens": counts["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": counts["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": counts["total_tokens"],
            },
        }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
