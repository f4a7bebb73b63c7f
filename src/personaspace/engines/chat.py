"""Turns messages into token ids, and finds where the replies are in them; it knows nothing of models' weights.

Spans come from the character offsets of the rendered chat template, so a new model family needs no code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2

from personaspace.engines.prefix import shared_prefix_length
from personaspace.engines.prompts import Message
from personaspace.engines.tools import ToolForms, joined, uses_tools
from personaspace.errors import ModelError


@dataclass(frozen=True)
class Span:
    """A conversation as token ids, with the half-open token ranges to read."""

    token_ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]


# A template that prints today's date would make the same run differ from day to day.
FIXED_DATE = datetime(2025, 1, 1)
_PROBE = "\u2042probe\u2042"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PRINTED = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_ALPHABET = {chr(b): b for b in _PRINTED} | {
    chr(0x100 + k): b for k, b in enumerate(b for b in range(256) if b not in _PRINTED)
}
"""How byte-level vocabularies write bytes: GPT-2's way, in characters that can be seen."""


class Chat:
    """A model's way of writing a conversation: its own template, or a plain transcript for a base model; template: False
    writes a transcript whatever the tokenizer has. end_ids: the stop tokens of a reply; text_end_ids: of any text."""

    def __init__(self, tokenizer: Any, end_ids: Iterable[int] = (), template: bool = True) -> None:
        self.tokenizer = tokenizer
        self.has_template = template and bool(tokenizer.chat_template)
        self.takes_system = self.has_template and self._takes_system()
        self.tool_forms = ToolForms()
        if self.has_template:
            self.tool_forms = ToolForms.of(lambda messages, tools: self._template(messages, False, tools))
        self.text_end_ids = frozenset(end_ids)
        self.end_of_turn = ""  # what the template writes after a reply
        self.end_ids = self.text_end_ids | self._end_of_turn()

    @property
    def kind(self) -> str:
        """How messages become text, in words for `run.json`."""
        if not self.has_template:
            reason = "chat template left aside" if self.tokenizer.chat_template else "no chat template"
            return f"plain transcript ({reason})"
        return (
            "chat template"
            if self.takes_system
            else "chat template without a system role (instruction before the user's text)"
        )

    def beginning(self) -> str:
        """What stands before the user's text when no system prompt is given: a template may put one in by itself."""
        return self.render([{"role": "user", "content": _PROBE}]).split(_PROBE)[0]

    def render(
        self,
        messages: Sequence[Message],
        reply: bool = True,
        tools: Sequence[Mapping[str, Any]] = (),
        continued: bool = False,
    ) -> str:
        """The conversation as text; with `reply`, up to where the next reply begins, and where it is `continued`, up to the end
        of the last message, which is gone on with. tools: what the model may call, in OpenAI's shape, for a template that
        takes them (`tool_forms.offered`). Raises `ModelError`."""
        written = joined(self.readable(messages))
        if not self.has_template:
            names = {"user": "User", "assistant": "Assistant"}
            parts = [f"{names[m['role']]}: {m['content']}" if m["role"] in names else m["content"] for m in written]
            return "\n\n".join(parts) + ("\n\nAssistant:" if reply and not continued else "")
        if not self.takes_system:
            written = _system_into_user(written)
        return self._template(written, reply, tools, continued)

    def readable(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """As many messages, with what the template cannot write of tools as text."""
        if not uses_tools(messages):
            return [dict(m) for m in messages]
        written = self.tool_forms.written(messages)
        if self.tool_forms.calls or self.tool_forms.results:
            try:  # a template may take tools, and not these ones: ids of another form, say
                self._template(joined(written if self.takes_system else _system_into_user(written)), False)
            except ModelError:
                return ToolForms().written(messages)
        return written

    def _template(
        self,
        messages: Sequence[Message],
        reply: bool,
        tools: Sequence[Mapping[str, Any]] = (),
        continued: bool = False,
    ) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    tokenize=False,
                    tools=list(tools) or None,
                    add_generation_prompt=reply and not continued,
                    continue_final_message=continued,
                    enable_thinking=False,
                    date_string=FIXED_DATE.strftime("%d %b %Y"),
                    strftime_now=FIXED_DATE.strftime,
                )
            )
        except (jinja2.TemplateError, ValueError, TypeError, RecursionError) as e:
            raise ModelError(f"the model's chat template refuses the conversation: {e}") from None

    def _takes_system(self) -> bool:
        try:
            shown = self._template([{"role": "system", "content": _PROBE}, {"role": "user", "content": "?"}], True)
        except ModelError:
            return False
        return _PROBE in shown

    def _end_of_turn(self) -> frozenset[int]:
        """The special token that the template writes right after a reply, where it writes one; in a transcript the tokens that
        hold a blank line, since a base model goes on with the user's next turn (a vocabulary that has none runs on)."""
        if not self.has_template:
            blank = ("\n\n", "\u010a\u010a")  # byte-level vocabularies write a line break as U+010A
            return frozenset(i for token, i in self.tokenizer.get_vocab().items() if any(b in token for b in blank))
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _PROBE}]
        self.end_of_turn = after = self.render(messages, reply=False).rpartition(_PROBE)[2]
        ids = self.tokenizer(after.lstrip(), add_special_tokens=False)["input_ids"][:1]
        return frozenset(i for i in ids if self.tokenizer.added_tokens_decoder.get(i) is not None)

    def prompt_ids(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), continued: bool = False
    ) -> list[int]:
        """The token ids of a conversation up to where the reply begins, or goes on where it is `continued`; of a single
        message of role `text`, what is to be gone on with as it stands. tools: see `render`."""
        if len(messages) == 1 and messages[0]["role"] == "text":
            return self.text_ids(messages[0]["content"])
        # A template writes its own beginning-of-text token; a plain transcript leaves it to the tokenizer.
        text = self.render(messages, tools=tools, continued=continued)
        return list(self.tokenizer(text, add_special_tokens=not self.has_template)["input_ids"])

    def text_ids(self, text: str) -> list[int]:
        """The token ids of a text that is to be gone on with, as the tokenizer begins one."""
        return list(self.tokenizer(text)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a reply."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def token_bytes(self, token: int) -> bytes:
        """A token's own bytes, also of one that is only a part of a character."""
        text = str(self.tokenizer.decode([token]))
        written = self.tokenizer.convert_ids_to_tokens(token) if "\ufffd" in text else None
        if written and (byte := _BYTE.fullmatch(written)):
            return bytes([int(byte[1], 16)])
        if written and all(c in _ALPHABET for c in written):
            return bytes(_ALPHABET[c] for c in written)
        return text.encode()

    def spans(self, messages: Sequence[Message]) -> tuple[Span, list[int]]:
        """A whole conversation as token ids, with the tokens of each assistant message, and those messages' places."""
        messages = self.readable(messages)
        text = self.render(messages, reply=False)
        places = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        ranges = [self._characters(text, messages, i) for i in places]
        encoded = self.tokenizer(text, add_special_tokens=not self.has_template, return_offsets_mapping=True)
        offsets = encoded["offset_mapping"]
        spans = []
        for start, end in ranges:
            inside = [t for t, (a, b) in enumerate(offsets) if a < end and b > start and b > a]
            spans.append((inside[0], inside[-1] + 1) if inside else (0, 0))
        return Span(tuple(encoded["input_ids"]), tuple(spans)), places

    def _characters(self, text: str, messages: Sequence[Message], i: int) -> tuple[int, int]:
        if i:
            before = self.render(messages[:i])
        else:  # no template writes a conversation of no messages: what stands before a reply that one begins with
            before = self.render([{"role": "assistant", "content": _PROBE}], reply=False).split(_PROBE)[0]
        content = messages[i]["content"].strip()
        start = shared_prefix_length(before, text)
        if messages[i].get("tool_calls"):  # all that the template writes of the turn, but its end
            turn = text[start : shared_prefix_length(self.render(messages[: i + 1], reply=False), text)]
            return start, start + len(turn.removesuffix(self.end_of_turn).rstrip())
        start = text.find(content, start)
        if start < 0:
            raise ModelError(
                f"message {i} does not stand in the rendered conversation; the chat template changes replies"
            )
        return start, start + len(content)


class ReplyText:
    """A reply's text while it is made. decode: from a reply's token ids to its text.

    A character's bytes may be spread over tokens: it is a part of the text once it is whole, or the reply is at its end.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self.decode, self.text = decode, ""

    def add(self, token_ids: Sequence[int], final: bool = False) -> str:
        """What the tokens, all that there are by now, add to the text."""
        decoded = self.decode(token_ids)
        shown = len(self.text)
        # What was shown once is never taken back, also where a tokenizer would now write less.
        self.text = max(self.text, decoded if final else decoded.rstrip("\ufffd"), key=len)
        return self.text[shown:]


def _system_into_user(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not messages or messages[0]["role"] != "system":
        return messages
    system, rest = messages[0]["content"], messages[1:]
    if not rest or rest[0]["role"] != "user":
        return [{"role": "user", "content": system}, *rest]
    return [{"role": "user", "content": f"{system}\n\n{rest[0]['content']}"}, *rest[1:]]
