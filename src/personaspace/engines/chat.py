"""Turns messages into token ids, and finds where the replies are in them; it knows nothing of models' weights.

Spans come from the character offsets of the rendered chat template, so a new model family needs no code.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any

import jinja2

from personaspace.engines.control import ControlTokens
from personaspace.engines.prefix import shared_prefix_length
from personaspace.engines.probes import PROBE, probed_ranges
from personaspace.engines.prompts import Message
from personaspace.engines.thoughts import (
    ChannelReplySplitter,
    MarkedReplySplitter,
    Part,
    ReplyParts,
    ReplySplitter,
    speaks_harmony,
    split_text,
    thought_markers,
)
from personaspace.engines.thoughts import ReplyText as ReplyText
from personaspace.engines.tool_calls import CallForm
from personaspace.engines.tools import ToolForms, joined, uses_tools
from personaspace.errors import ModelError


@dataclass(frozen=True)
class Span:
    """A conversation as token ids, with the half-open token ranges to read. notes: what was done to it so that it could be
    read, a sentence each."""

    token_ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    notes: tuple[str, ...] = ()


Thinking = bool | str
"""Whether a model may think before it answers, or how hard (`low`, `medium`, `high`), which only some templates heed."""

NEUTRAL_BEGINNING = "Hello."
"""What a user says before a conversation that begins with a reply, where a template wants a user first."""

# A template that prints today's date would make the same run differ from day to day.
FIXED_DATE = datetime(2025, 1, 1)
_ENOUGH = 16
"""Tokens that an opening marker and the space behind it take at most."""
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PRINTED = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_ALPHABET = {chr(b): b for b in _PRINTED} | {
    chr(0x100 + k): b for k, b in enumerate(b for b in range(256) if b not in _PRINTED)
}
"""How byte-level vocabularies write bytes: GPT-2's way, in characters that can be seen."""


class Chat:
    """A model's way of writing a conversation: its own template, or a plain transcript for a base model; template: False
    writes a transcript whatever the tokenizer has. end_ids: the stop tokens of a reply; text_end_ids: of any text."""

    def __init__(
        self, tokenizer: Any, end_ids: Iterable[int] = (), template: bool = True, thinking: Thinking = False
    ) -> None:
        self.tokenizer, self.thinking = tokenizer, thinking
        self.has_template = template and bool(tokenizer.chat_template)
        written = tokenizer.chat_template if self.has_template else ""
        text = "\n".join(written.values()) if isinstance(written, Mapping) else str(written)
        tokens = tokenizer.added_tokens_encoder if self.has_template else {}
        self.speaks_harmony = speaks_harmony(text, tokens)
        self.thought_markers = None if self.speaks_harmony else thought_markers(text, tokens)
        self.takes_system = self.has_template and self._takes_system()
        self.control, self.tool_forms = ControlTokens(tokenizer, text), ToolForms()
        if self.has_template:
            self.tool_forms = ToolForms.of(lambda messages, tools: self._template(messages, False, None, tools))
            self.control = ControlTokens(tokenizer, text, self._written_ids())
        self.call_form = CallForm.of(tokenizer, self.decode, text) if self.tool_forms.offered else None
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

    @property
    def thinks(self) -> bool:
        """Whether a reply may have thoughts that are told from its answer."""
        return self.speaks_harmony or self.thought_markers is not None

    @cached_property
    def thinking_rule(self) -> str | None:
        """How replies come to have thoughts: `off`, `on`, a template's effort, or `always` where it is off and the model thinks
        all the same; None for a model that knows no thoughts."""
        if not self.thinks:
            return None
        if self.thinking:
            return self.thinking if isinstance(self.thinking, str) else "on"
        opened = self.thought_markers is not None and self.thought_markers.open_at_end(
            self.render([{"role": "user", "content": PROBE}])
        )
        return "always" if opened or self.speaks_harmony else "off"

    def beginning(self) -> str:
        """What stands before the user's text when no system prompt is given: a template may put one in by itself."""
        return self.render([{"role": "user", "content": PROBE}]).split(PROBE)[0]

    def render(
        self,
        messages: Sequence[Message],
        reply: bool = True,
        tools: Sequence[Mapping[str, Any]] = (),
        continued: bool = False,
    ) -> str:
        """The conversation as text; with `reply`, up to where the next reply begins, and where it is `continued`, up to the end
        of the last message, which is gone on with. tools: what the model may call, in OpenAI's shape, for a template that
        takes them (`tool_forms.offered`). Raises `ModelError`.

        The text alone does not say which of its markers the template wrote: `prompt_ids` does.
        """
        return self.control.show(self._render(self._guarded(self.readable(messages))[0], reply, None, tools, continued))

    def readable(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """As many messages, with what the template cannot write of tools as text."""
        if not uses_tools(messages):
            return [dict(m) for m in messages]
        written = self.tool_forms.written(messages)
        if self.tool_forms.calls or self.tool_forms.results:
            try:  # a template may take tools, and not these ones: ids of another form, say
                self._render(written, False)
            except ModelError:
                return ToolForms().written(messages)
        return written

    def _guarded(self, messages: Sequence[Message]) -> tuple[list[dict[str, Any]], bool]:
        """The messages with control tokens in them hidden, and whether there were any. An assistant's thoughts are its own:
        they are parsed, and the template writes them."""
        kept = () if self.thought_markers is None else (self.thought_markers.opening, self.thought_markers.closing)
        guarded, is_guarded = [], False
        for message in messages:
            written, content = dict(message), message["content"]
            own = kept if message["role"] == "assistant" else ()
            if self.speaks_harmony and message["role"] == "assistant":
                parts = split_text(content, None, harmony=True)
                if parts.thinking:
                    written["thinking"] = "\n\n".join(content[a:b] for a, b in parts.thinking)
                if parts != split_text(content, None):
                    written["content"] = content[slice(*parts.answer)]
            for name, value in written.items():
                hidden = self.control.hide_all(value, own) if name != "role" else value
                if hidden != value or (isinstance(value, str) and self.control.gives_token(_without(value, own))):
                    written[name], is_guarded = hidden, True
            guarded.append(written)
        return guarded, is_guarded

    def _render(
        self,
        written: Sequence[Message],
        reply: bool,
        thinking: Thinking | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        continued: bool = False,
    ) -> str:
        turns = joined(written)
        if not self.has_template:
            names = {"user": "User", "assistant": "Assistant"}
            parts = [f"{names[m['role']]}: {m['content']}" if m["role"] in names else m["content"] for m in turns]
            return "\n\n".join(parts) + ("\n\nAssistant:" if reply and not continued else "")
        if not self.takes_system:
            turns = system_into_user(turns)
        return self._template(turns, reply, thinking, tools, continued)

    def _template(
        self,
        messages: Sequence[Message],
        reply: bool,
        thinking: Thinking | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        continued: bool = False,
    ) -> str:
        thinking = self.thinking if thinking is None else thinking
        # Templates know it by several names; what is off goes by the first alone, as it always did.
        options: dict[str, Any] = {"enable_thinking": bool(thinking), **({"thinking": True} if thinking else {})}
        if isinstance(thinking, str):
            options["reasoning_effort"] = thinking
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    tokenize=False,
                    tools=list(tools) or None,
                    add_generation_prompt=reply and not continued,
                    continue_final_message=continued,
                    date_string=FIXED_DATE.strftime("%d %b %Y"),
                    strftime_now=FIXED_DATE.strftime,
                    **options,
                )
            )
        except (jinja2.TemplateError, ValueError, TypeError, RecursionError) as e:
            raise ModelError(f"the model's chat template refuses the conversation: {e}") from None

    def _takes_system(self) -> bool:
        try:
            shown = self._template([{"role": "system", "content": PROBE}, {"role": "user", "content": "?"}], True)
        except ModelError:
            return False
        return PROBE in shown

    def _written_ids(self) -> list[int]:
        """What the template writes of a short conversation: it may put its tokens together from pieces."""
        talk = [{"role": role, "content": "?"} for role in ("user", "assistant", "user")]
        try:
            return self._encode(self._render(talk, True), False)[0]
        except ModelError:
            return []

    def _end_of_turn(self) -> frozenset[int]:
        """The special token that the template writes right after a reply, where it writes one; in a transcript the tokens that
        hold a blank line, since a base model goes on with the user's next turn (a vocabulary that has none runs on)."""
        if not self.has_template:
            blank = ("\n\n", "\u010a\u010a")  # byte-level vocabularies write a line break as U+010A
            return frozenset(i for token, i in self.tokenizer.get_vocab().items() if any(b in token for b in blank))
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE}]
        self.end_of_turn = after = self.render(messages, reply=False).rpartition(PROBE)[2]
        ids = self.tokenizer(after.lstrip(), add_special_tokens=False)["input_ids"][:1]
        return frozenset(i for i in ids if self.tokenizer.added_tokens_decoder.get(i) is not None)

    def prompt_ids(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        continued: bool = False,
        thinking: Thinking | None = None,
    ) -> list[int]:
        """The token ids of a conversation up to where the reply begins, or goes on where it is `continued`; of a single
        message of role `text`, what is to be gone on with as it stands. A marker in a message is text, and no control token.
        tools: see `render`; thinking: this once, in place of the chat's own. Raises `ModelError`."""
        if is_text(messages):
            return self.text_ids(messages[0]["content"])
        written, is_guarded = self._guarded(self.readable(messages))
        hidden_tools = self.control.hide_all(list(tools))
        text = self._render(written, True, thinking, hidden_tools, continued)
        return self._encode(text, is_guarded or hidden_tools != list(tools))[0]

    def _encode(
        self, text: str, is_guarded: bool, ranges: Sequence[tuple[int, int]] = ()
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """The token ids of a rendered conversation, and which tokens the ranges of its characters are."""
        # A template writes its own beginning-of-text token; a plain transcript leaves it to the tokenizer.
        add = not self.has_template
        if is_guarded:
            ids, offsets, places = self.control.encode(text, add, ranges)
        else:
            encoded = self.tokenizer(text, add_special_tokens=add, return_offsets_mapping=bool(ranges))
            ids, offsets, places = list(encoded["input_ids"]), encoded["offset_mapping"] if ranges else [], ranges
        token_ranges = []
        for start, end in places:
            inside = [t for t, (a, b) in enumerate(offsets) if a < end and b > start and b > a]
            token_ranges.append((inside[0], inside[-1] + 1) if inside else (0, 0))
        return ids, token_ranges

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

    def splitter(self, prompt_ids: Sequence[int], continued_text: str = "") -> ReplySplitter | None:
        """Who tells the thoughts of the reply to a prompt from its answer; None for a model that knows none.
        continued_text: the prompt's last message, where that is gone on with."""
        if self.speaks_harmony:
            return ChannelReplySplitter(self.tokenizer)
        if self.thought_markers is None:
            return None
        end = self.tokenizer.decode(list(prompt_ids[-_ENOUGH:]), skip_special_tokens=False)
        markers, inside = self.thought_markers, self.thought_markers.open_in(continued_text)
        return MarkedReplySplitter(self.tokenizer, markers, inside or markers.open_at_end(end))

    def parts(self, messages: Sequence[Message], reply_ids: Sequence[int]) -> ReplyParts:
        """Which tokens of a reply to messages are its answer, and which its thoughts."""
        splitter = None
        if self.thinks and not is_text(messages):
            splitter = self.splitter(self.prompt_ids(messages))
        return splitter.follow(reply_ids) if splitter else ReplyParts((0, len(reply_ids)))

    def spans(self, messages: Sequence[Message], part: Part = "answer") -> tuple[Span, list[int]]:
        """A whole conversation as token ids, with the tokens of each assistant message, and those messages' places. part: of
        each its answer, its thoughts, where they stand in the text, or both. A conversation that begins with a reply gets a
        neutral beginning where the template wants a user first, and a note that says so. Raises `ModelError`."""
        messages = self.readable(messages)
        try:
            return self._spans(messages, part)
        except ModelError:
            first = next((k for k, m in enumerate(messages) if m["role"] != "system"), 0)
            if not messages or messages[first]["role"] != "assistant":
                raise
            neutral = {"role": "user", "content": NEUTRAL_BEGINNING}
            span, places = self._spans([*messages[:first], neutral, *messages[first:]], part)
            note = f'the template wants a user first: read as if one had said "{NEUTRAL_BEGINNING}" before message {first + 1}'
            return replace(span, notes=(note,)), [place - 1 for place in places]

    def _spans(self, messages: Sequence[Message], part: Part) -> tuple[Span, list[int]]:
        written, is_guarded = self._guarded(messages)
        text = self._render(written, False)
        # Each answer and each thought gives way to a probe (its message, whether it is a thought, its text): it says where.
        probed = [dict(m) for m in written]
        texts: dict[str, tuple[int, bool, str]] = {}
        for place, message in enumerate(probed):
            if message["role"] != "assistant" or message.get("tool_calls"):
                continue
            parts = split_text(message["content"], self.thought_markers)
            stretches = [("content", *parts.answer, False), *(("content", a, b, True) for a, b in parts.thinking)]
            if "thinking" in message:
                stretches.append(("thinking", *split_text(message["thinking"], None).answer, True))
            for name, a, b, is_thought in sorted(stretches, key=lambda stretch: stretch[1], reverse=True):
                if b > a:
                    probe = f"{PROBE}{secrets.token_hex(8)}"
                    texts[probe] = place, is_thought, message[name][a:b]
                    message[name] = message[name][:a] + probe + message[name][b:]
        ranges = probed_ranges(self._render(probed, False), text, texts)
        if ranges is None:  # the template looks into replies: they are looked for one by one
            answers = [(place, answer) for place, is_thought, answer in texts.values() if not is_thought]
            ranges = {(place, False): self._characters(text, messages, place, answer) for place, answer in answers}
        ranges |= {(k, False): self._turn(text, written, k) for k, m in enumerate(written) if m.get("tool_calls")}
        places, read = [], []
        wanted = (True, False) if part == "all" else (part == "thinking",)
        for place in (k for k, m in enumerate(messages) if m["role"] == "assistant"):
            stretches_of = [ranges[place, is_thought] for is_thought in wanted if (place, is_thought) in ranges]
            if stretches_of or part != "thinking":
                places.append(place)
                read.append((stretches_of[0][0], stretches_of[-1][1]) if stretches_of else (0, 0))
        ids, token_ranges = self._encode(text, is_guarded, read)
        return Span(tuple(ids), tuple(token_ranges)), places

    def _turn(self, text: str, written: Sequence[Message], i: int) -> tuple[int, int]:
        """Where a turn with tools' calls is: all that the template writes of it, but its end."""
        start = shared_prefix_length(self._render(written[:i], True), text)
        turn = text[start : shared_prefix_length(self._render(written[: i + 1], False), text)]
        return start, start + len(turn.removesuffix(self.end_of_turn).rstrip())

    def _characters(self, text: str, messages: Sequence[Message], i: int, answer: str) -> tuple[int, int]:
        written = self._guarded(messages[:i])[0]
        # No template writes a conversation of no messages: there, what stands before a reply that one begins with.
        probe = [{"role": "assistant", "content": PROBE}]
        before = self._render(written, True) if i else self._render(probe, False).split(PROBE)[0]
        start = text.find(answer, shared_prefix_length(before, text))
        if start < 0:
            raise ModelError(
                f"message {i} does not stand in the rendered conversation; the chat template changes replies"
            )
        return start, start + len(answer)


def is_text(messages: Sequence[Message]) -> bool:
    """Whether it is no conversation, but a text that is to be gone on with as it stands."""
    return len(messages) == 1 and messages[0]["role"] == "text"


def _without(text: str, markers: Iterable[str]) -> str:
    for marker in markers:
        text = text.replace(marker, " ")
    return text


def system_into_user(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages for a template without a system role: the first user's text begins with the instruction."""
    if not messages or messages[0]["role"] != "system":
        return messages
    system, rest = messages[0]["content"], messages[1:]
    if not rest or rest[0]["role"] != "user":
        return [{"role": "user", "content": system}, *rest]
    return [{"role": "user", "content": f"{system}\n\n{rest[0]['content']}"}, *rest[1:]]
