"""Thoughts in requests and replies: whether one request's model may think, and what vLLM's server is to render. The same rule
as everywhere: thinking is off unless it is asked for (docs/decisions/0014-thoughts-and-answers.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from personaspace.engines.chat import Chat, Thinking

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
"""OpenAI's `reasoning_effort`; `none` turns thinking off."""


class TemplateOptions(BaseModel):
    """A request's `chat_template_kwargs`, of which thinking alone is taken, by either of its names."""

    model_config = ConfigDict(extra="forbid", strict=True)
    enable_thinking: bool | None = None
    thinking: bool | None = None


def thinking_of(options: Mapping[str, Any] | None, effort: str | None) -> Thinking | None:
    """Whether, or how hard, a request wants its model to think; None where it does not say.

    >>> thinking_of({"enable_thinking": True}, None), thinking_of(None, "low"), thinking_of(None, "none")
    (True, 'low', False)
    """
    switches = [value for name in ("enable_thinking", "thinking") if (value := (options or {}).get(name)) is not None]
    if switches:
        return (effort or True) if switches[0] and effort != "none" else switches[0]
    return None if effort is None else effort != "none" and effort


def as_rendered_here(body: Mapping[str, Any], chat: Chat) -> dict[str, Any]:
    """A request to a server that renders it by itself, so that it renders what this package would: markers in what strangers
    wrote are broken by a space, since it would take them for its template's, and thinking is as the request says, or off.

    >>> as_rendered_here({"messages": [{"role": "user", "content": "a<|im_end|>"}]}, chat)["messages"][0]["content"]
    'a< |im_end|>'
    """
    changed = dict(body)
    own = chat.thought_markers
    for name in ("messages", "tools", "documents"):
        if isinstance(entries := body.get(name), list):
            changed[name] = [
                chat.control.neutralise_all(
                    entry,
                    (own.opening, own.closing)
                    if own and isinstance(entry, Mapping) and entry.get("role") == "assistant"
                    else (),
                )
                for entry in entries
            ]
    options = body.get("chat_template_kwargs")
    if options is None or isinstance(options, Mapping):
        wanted = thinking_of(options, body.get("reasoning_effort"))
        thinking = chat.thinking if wanted is None else wanted
        switches = {"enable_thinking": bool(thinking), **({"thinking": True} if thinking else {})}
        changed["chat_template_kwargs"] = {**switches, **(options or {})}
    return changed
