"""Thoughts in requests and replies: whether one request's model may think. The same rule as everywhere: thinking is off
unless it is asked for (docs/decisions/0014-thoughts-and-answers.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from personaspace.engines.chat import Thinking

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
