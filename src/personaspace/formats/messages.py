"""From messages as others write them to a role and a text each; what is no text, and what no template takes, is left out and
counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from personaspace.engines.prompts import Message
from personaspace.errors import UsageError

TOOL = "tool"
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "bot": "assistant",
    "tool": TOOL,
    "function": TOOL,
    "function_call": TOOL,
    "function_response": TOOL,
    "tool_call": TOOL,
    "tool_response": TOOL,
    "tool_result": TOOL,
    "observation": TOOL,
    "ipython": TOOL,
    "environment": TOOL,
}
"""A speaker's name in lower case → system, user, assistant or tool."""

CARRIERS = ("messages", "conversation", "turns", "conversations", "mapping", "chat_messages", "samples")
"""Where objects that are no messages themselves have theirs."""

_NOUNS = {
    "image": "image",
    "audio": "audio part",
    "video": "video part",
    "think": "thought",
    "thought": "thought",
    "reason": "thought",
    "tool": "tool call",
    "function": "tool call",
    "file": "file",
    "document": "file",
}
"""What the type of a part of a message has in it → what such a part is called."""


@dataclass(frozen=True)
class RawConversation:
    """A conversation as a file has it: objects with `role` and `content` (or `from` and `value`); left_out: what its reader
    passed over, a noun each."""

    messages: Sequence[Any]
    left_out: Sequence[str] = ()


def is_message(value: Any) -> bool:
    """Whether it is an object that says who speaks, and holds no conversation itself: there `role` means something else."""
    if not isinstance(value, dict) or not ("role" in value or "from" in value):
        return False
    return not any(isinstance(value.get(key), (list, dict)) for key in CARRIERS)


def plain_messages(where: str, raw: RawConversation) -> tuple[tuple[Message, ...], Counter[str]]:
    """A conversation's messages, each with the role system, user or assistant and a text; and how many of what were left out.
    What the assistant says before and after a tool's message is one turn. Raises `UsageError` that names the message.

    >>> plain_messages("talk.json", RawConversation([{"from": "gpt", "value": "hi"}]))
    (({'role': 'assistant', 'content': 'hi'},), Counter())
    """
    messages: list[dict[str, str]] = []
    left_out, gap = Counter(raw.left_out), False
    for number, message in enumerate(raw.messages, 1):
        place = f"{where}, message {number}"
        if not isinstance(message, dict):
            raise UsageError(f"{place}: found {type(message).__name__}, expected an object with role and content")
        speaker = message.get("role", message.get("from"))
        role = ROLES.get(str(speaker).lower().replace("-", "_"))
        if role is None:
            raise UsageError(f"{place}: found role {str(speaker)[:40]!r}, expected system, user, assistant or tool")
        content = message.get("content", message.get("value", message.get("parts")))
        text, parts_left_out = _text(place, content)
        # A tool's answer is a message of its own here, and a user's message of nothing else there.
        if role == TOOL or (role == "user" and not text and set(parts_left_out) == {"tool call"}):
            left_out["tool message"] += 1
            gap = True
            continue
        calls = message.get("tool_calls") or message.get("function_call") or ()
        left_out += parts_left_out + Counter({"tool call": len(calls) if isinstance(calls, list) else int(bool(calls))})
        if role == "assistant" and messages and messages[-1]["role"] == role and (gap or not messages[-1]["content"]):
            messages[-1]["content"] = "\n\n".join(said for said in (messages[-1]["content"], text) if said)
        else:
            messages.append({"role": role, "content": text})
        gap = False
    if not any(m["role"] == "assistant" and m["content"].strip() for m in messages):
        raise UsageError(f"{where}: no assistant turn with any text in it; there is nothing to project")
    return tuple(messages), left_out


def counted(nouns: Counter[str]) -> str:
    """`1 image, 3 tool messages`."""
    return ", ".join(f"{n:,} {noun}{'s' * (n > 1)}" for noun, n in sorted(nouns.items()))


def _text(place: str, content: Any) -> tuple[str, Counter[str]]:
    """The text of a message's content, and how many parts of what are left out of it."""
    stretches, left_out = [""], Counter[str]()  # a new stretch begins where something is left out
    for part in content if isinstance(content, list) else [] if content is None else [content]:
        text = _text_of_part(part) if isinstance(part, dict) else part
        if text is None and part is not None:
            left_out[_noun(part)] += 1
            stretches.append("")
        elif isinstance(text, str):
            stretches[-1] += text
        elif text is not None:
            raise UsageError(f"{place}: found content of type {type(text).__name__}, expected text")
    whole_text = "\n\n".join(stretch for stretch in stretches if stretch)
    try:
        whole_text.encode()
    except UnicodeEncodeError:  # JSON's escapes can spell it; no tokenizer takes it
        raise UsageError(f"{place}: found half of a surrogate pair, expected text") from None
    return whole_text, left_out


def _text_of_part(part: dict[str, Any]) -> str | None:
    text = part.get("text", part.get("refusal"))
    if isinstance(text, dict):
        text = text.get("value")
    return text if isinstance(text, str) and _noun(part) != "thought" else None


def _noun(part: dict[str, Any]) -> str:
    kind = str(part.get("type", part.get("content_type", "other")))
    return next((noun for word, noun in _NOUNS.items() if word in kind), f"{kind[:30]!r} part")
