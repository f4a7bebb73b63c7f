"""A request's body as vLLM's server takes it, so that the same body asks either engine's server for the same."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from personaspace.engines.chat import Chat, system_into_user
from personaspace.engines.tools import joined
from personaspace.errors import ModelError
from personaspace.serve.messages import ChatMessage
from personaspace.serve.thinking import thinking_of
from personaspace.serve.types import IGNORED, NEUTRAL, Continuable, what_matters

MEANT = frozenset({"tool_choice", "parallel_tool_calls", "include_reasoning", *IGNORED})
"""Fields that are neutral with any value in our own server, and mean something in vLLM's."""

LIMITS = ("max_tokens", "max_completion_tokens")
TEMPLATE_TOKENS = 512
"""So many tokens at most a chat template is taken to add to a conversation of which only its bytes are known."""


def as_vllm_takes(body: Mapping[str, Any]) -> dict[str, Any]:
    """A body without what asks for nothing, and with what vLLM's server refuses written as it takes it. Raises pydantic's
    `ValidationError` for a message that cannot be gone on with.

    >>> as_vllm_takes({"prompt": "x", "suffix": "", "top_p": 0})
    {'prompt': 'x', 'top_p': 1.0, 'temperature': 0.0}
    """
    neutral = {**NEUTRAL, "best_of": (1, body.get("n")), "logit_bias": ({},), "stop": ([],)}
    changed = what_matters(body, MEANT, neutral)
    if changed.get("top_p") == 0:  # no token but the most probable one is within a nucleus of nothing
        changed |= {"top_p": 1.0, "temperature": 0.0}
    if not changed.get("tools") or changed.get("tool_choice") == "none":
        changed = {name: value for name, value in changed.items() if name not in ("tools", "tool_choice")}
    switches = ("continue_final_message", "add_generation_prompt")
    if changed.get(switches[0]) is True or changed.get(switches[1]) is False:
        if isinstance(messages := changed.get("messages"), list):
            Continuable.model_validate({"messages": messages[-1:], **{s: changed[s] for s in switches if s in changed}})
        changed |= dict(zip(switches, (True, False), strict=True))
    return changed


def cut_to_fit(body: Mapping[str, Any], chat: Chat, context: int, size: int) -> dict[str, Any]:
    """A body that asks for no more tokens than fit behind its prompt, where it is so long that it might: vLLM refuses what our
    own server cuts. size: the body's bytes, of which each may be a token. Raises `ModelError`."""
    wanted = {name: body[name] for name in LIMITS if isinstance(body.get(name), int)}
    if not wanted or max(wanted.values()) + size + TEMPLATE_TOKENS <= context:
        return dict(body)
    room = max(1, context - _prompt_length(body, chat))
    return {**body, **{name: min(limit, room) for name, limit in wanted.items()}}


def _prompt_length(body: Mapping[str, Any], chat: Chat) -> int:
    """Tokens of the longest prompt; of what is none, which vLLM refuses, 0."""
    messages, prompt = body.get("messages"), body.get("prompt")
    if isinstance(messages, list):
        try:
            plain = [ChatMessage.model_validate(m).plain() for m in messages]
        except ValidationError:
            return 0
        options = body.get("chat_template_kwargs")
        wanted = thinking_of(options if isinstance(options, Mapping) else None, body.get("reasoning_effort"))
        return len(chat.prompt_ids(plain, body.get("tools") or (), bool(body.get("continue_final_message")), wanted))
    texts_or_ids = (p for p in prompts_of(prompt) if isinstance(p, str | list))
    return max((len(chat.text_ids(p)) if isinstance(p, str) else len(p) for p in texts_or_ids), default=0)


def continued_text(body: Mapping[str, Any]) -> str:
    """The message that the reply goes on with; empty where it begins one of its own.

    >>> continued_text({"messages": [{"role": "assistant", "content": "<think>a"}], "continue_final_message": True})
    '<think>a'
    """
    messages = body.get("messages")
    if not body.get("continue_final_message") or not isinstance(messages, list) or not messages:
        return ""
    try:
        return str(ChatMessage.model_validate(messages[-1]).plain()["content"])
    except ValidationError:
        return ""


def prompts_of(prompt: Any) -> list[Any]:
    """A text completion's prompts, one a reply, whatever stands in their place: a list of token ids is one.

    >>> prompts_of([1, 2]), prompts_of(["a", "b"])
    ([[1, 2]], ['a', 'b'])
    """
    return prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else [prompt]


def as_rendered_here(body: Mapping[str, Any], chat: Chat) -> dict[str, Any]:
    """A request to a server that renders it by itself, so that it renders what this package would: what the template does not
    write of tools is text, markers in what strangers wrote are broken by a space, since it would take them for its template's,
    and thinking is as the request says, or off.

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
                for entry in (_as_written(entries, chat) if name == "messages" else entries)
            ]
    options = body.get("chat_template_kwargs")
    if options is None or isinstance(options, Mapping):
        wanted = thinking_of(options, body.get("reasoning_effort"))
        thinking = chat.thinking if wanted is None else wanted
        switches = {"enable_thinking": bool(thinking), **({"thinking": True} if thinking else {})}
        changed["chat_template_kwargs"] = {**switches, **(options or {})}
    return changed


def _as_written(messages: Sequence[Any], chat: Chat) -> Sequence[Any]:
    """The messages as our own server gives them to the template; as they are where they hold what vLLM alone takes."""
    try:
        turns = joined(chat.readable([ChatMessage.model_validate(m).plain() for m in messages]))
    except (ValidationError, ModelError):
        return messages
    for turn in turns:
        for call in turn.get("tool_calls", ()):
            function = call["function"]
            if not isinstance(function["arguments"], str):  # vLLM reads them from JSON by itself
                function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return turns if chat.takes_system else system_into_user(turns)
