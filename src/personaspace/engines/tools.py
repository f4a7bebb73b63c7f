"""Tools in a conversation: what a model's chat template does not write of them is put into messages' texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from personaspace.engines.prompts import Message
from personaspace.errors import ModelError

_NAME, _ARGUMENT, _RESULT = "probed_tool", "probed_argument", "probed_result"
_CALL = {"id": "probed000", "type": "function", "function": {"name": _NAME, "arguments": {_ARGUMENT: 1}}}
_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "A tool",
        "parameters": {"type": "object", "properties": {_ARGUMENT: {"type": "integer", "description": "A number"}}},
    },
}

Template = Callable[[Sequence[Message], Sequence[Mapping[str, Any]]], str]
"""Messages and the tools that the model may call, as text. Raises `ModelError`."""


@dataclass(frozen=True)
class ToolForms:
    """What a chat template writes by itself: the tools that are offered, calls of them in an assistant's message, and results,
    messages of role `tool`."""

    offered: bool = False
    calls: bool = False
    results: bool = False

    @classmethod
    def of(cls, template: Template) -> ToolForms:
        """Tried out on short conversations: a template may leave out without a word what it does not know."""
        user = {"role": "user", "content": "?"}
        call = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
        result = {"role": "tool", "tool_call_id": "probed000", "name": _NAME, "content": _RESULT}
        calls = _writes(template, [user, call], (), _NAME, _ARGUMENT)
        before = call if calls else {"role": "assistant", "content": "!"}
        return cls(
            offered=_writes(template, [user], [_TOOL], _NAME, _ARGUMENT),
            calls=calls,
            results=_writes(template, [user, before, result], (), _RESULT),
        )

    def written(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """As many messages, with what the template does not write of tools as text: calls at the end of the assistant's own,
        results as the user's (with `of_tool`, see `joined`). A call's arguments are an object, where they are one as JSON."""
        return [self._message(m) for m in messages]

    def _message(self, message: Message) -> dict[str, Any]:
        if message["role"] == "tool" and not self.results:
            return {"role": "user", "content": _tagged("tool_response", message["content"]), "of_tool": True}
        if not message.get("tool_calls"):
            return {k: v for k, v in message.items() if k != "tool_calls"}
        calls = [_with_arguments(call) for call in message["tool_calls"]]
        if self.calls:
            return {**message, "tool_calls": calls}
        texts = [_tagged("tool_call", json.dumps(call["function"], ensure_ascii=False)) for call in calls]
        return {"role": message["role"], "content": "\n".join(filter(None, [message["content"], *texts]))}


def uses_tools(messages: Sequence[Message]) -> bool:
    """Whether a conversation has a tool's call or result."""
    return any(m["role"] == "tool" or m.get("tool_calls") for m in messages)


def joined(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Results that became the user's messages, together with the user's own beside them: many templates want user and assistant
    to take turns."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        content = {k: v for k, v in message.items() if k != "of_tool"}
        last = turns[-1] if turns else {}
        if message["role"] == last.get("role") == "user" and (message.get("of_tool") or last.get("of_tool")):
            last["content"] += "\n\n" + content["content"]
        else:
            turns.append({**content, "of_tool": bool(message.get("of_tool"))})
    return [{k: v for k, v in turn.items() if k != "of_tool"} for turn in turns]


def _writes(template: Template, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], *texts: str) -> bool:
    try:
        rendered = template(messages, tools)
    except ModelError:
        return False
    return all(text in rendered for text in texts)


def _tagged(tag: str, text: str) -> str:
    return f"<{tag}>\n{text}\n</{tag}>"


def _with_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call whose arguments are what their JSON says: templates write them as JSON themselves."""
    function = call["function"]
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
            json.dumps(parsed, ensure_ascii=False).encode()  # half of a surrogate pair is no text
        except (ValueError, RecursionError):
            parsed = arguments
        arguments = parsed if isinstance(parsed, dict) else arguments
    return {**call, "function": {**function, "arguments": arguments}}
