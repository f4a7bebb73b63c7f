"""The tools of a request: whether its model can be told of them, has to call one, and who reads the calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from personaspace.engines.chat import Chat, ReplyText
from personaspace.engines.thoughts import ReplySplitter
from personaspace.serve.refusals import BadRequest
from personaspace.serve.types import ChatCompletion, Completion


@dataclass(frozen=True)
class OfferedTools:
    """offered: what the model is told that it may call, in OpenAI's shape; begun: the beginning of a call that its reply has to
    go on with."""

    chat: Chat
    offered: Sequence[dict[str, Any]] = ()
    begun: str = ""

    @classmethod
    def of(cls, body: Completion, chat: Chat) -> OfferedTools:
        """A request's. Raises `BadRequest`."""
        name = _to_call(body) if isinstance(body, ChatCompletion) else None
        if not isinstance(body, ChatCompletion) or not body.tools or body.tool_choice == "none":
            return cls(chat)
        if not chat.tool_forms.offered:
            message = "Unsupported parameter: 'tools': the model's chat template tells it of none"
            raise BadRequest(message, "tools", "unsupported_parameter")
        offered = [tool.model_dump(exclude_unset=True) for tool in body.tools]
        form = chat.call_form
        if name is None:
            return cls(chat, offered)
        if form is None or form.beginning is None or chat.control.gives_token(name):
            raise _not_begun("how this model begins a call is not known")
        return cls(chat, offered, form.beginning.replace("NAME", name))

    def after(self, ids: list[int]) -> list[int]:
        """A prompt's token ids, and the beginning of a call behind them. Raises `BadRequest`."""
        if not self.begun:
            return ids
        splitter = self.chat.splitter(ids)
        if splitter is not None and not splitter.is_open:
            raise _not_begun("this model thinks before it calls a tool")
        return [*ids, *self.chat.tokenizer(self.begun, add_special_tokens=False)["input_ids"]]

    def reply_text(self, splitter: ReplySplitter | None) -> ReplyText:
        """Who tells calls, thoughts and answer of one reply apart."""
        form = self.chat.call_form if self.offered else None
        if form is None:
            return ReplyText(self.chat.decode, splitter)
        return ReplyText(form.decode, splitter, form.reader(self.offered, self.begun))


def _to_call(body: ChatCompletion) -> str | None:
    """The name of the tool that the reply has to call. Raises `BadRequest`."""
    if isinstance(body.tool_choice, str) and body.tool_choice != "required":
        return None
    names = [tool.function.name for tool in body.tools]
    if body.tool_choice == "required" and len(names) != 1:
        raise _not_begun(f"'required' is done of a single tool, found {len(names)}; name the one to call")
    name = names[0] if isinstance(body.tool_choice, str) else body.tool_choice.function.name
    if name not in names:
        raise _not_begun(f"it names {name[:64]!r}, which tools has not")
    if body.continued:
        raise _not_begun("a reply that begins with a call goes on with no message")
    return name


def _not_begun(why: str) -> BadRequest:
    return BadRequest(f"tool_choice: {why}; 'auto' and 'none' are taken", "tool_choice", "unsupported_value")
