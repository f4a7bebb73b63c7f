"""Calls of tools in a reply: how a model writes them, and what of a reply's text they are. `tools` has history's side.

How calls look is said by a field of `transformers`' response templates: a tokenizer's own where it has one, else one of those
below, by what the chat template tells the model. A marker that is a token counts as that token alone: a reply that quotes
somebody's `[TOOL_CALLS]` calls nothing.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from personaspace.engines.control import in_texts

Field = Mapping[str, Any]
"""A response template's `tool_calls`."""

MARKED = "\U000f0004"
"""What stands before a marker that is a token, in text that is looked at and not told."""

NAMES = "NAMES"
"""What stands for the names of the tools that are offered, in a form without a marker of its own."""

_NAMED = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}


@dataclass(frozen=True)
class KnownForm:
    """mentioned: what a chat template says of it; beginning: a call as far as its arguments."""

    mentioned: str
    field: Field
    beginning: str


KNOWN_FORMS = (
    # Qwen 3.5 and Qwen3 Coder.
    KnownForm(
        "<function=",
        {
            "open_pattern": r"<tool_call>\s*<function=(?P<name>[^>\n]+)>",
            "close_pattern": r"</function>\s*</tool_call>",
            "repeats": True,
            "content": "xml-inline",
            "content_args": {"tag_pattern": r"<parameter=(?P<key>[^>\n]+)>\s*(?P<value>.*?)\s*</parameter>"},
            "transform": _NAMED,
        },
        "<tool_call>\n<function=NAME>",
    ),
    # Hermes, Qwen 2.5 and 3, SmolLM2 (a list of calls between the markers) and SmolLM3.
    KnownForm(
        "<tool_call>",
        {"open": "<tool_call>", "close": "</tool_call>", "repeats": True, "content": "json"},
        '<tool_call>\n{"name": "NAME", "arguments":',
    ),
    # Mistral from the end of 2025 on, then before.
    KnownForm(
        "[ARGS]",
        {
            "open_pattern": r"\[TOOL_CALLS\]\s*(?P<name>[^\[\s{]+)(?:\[CALL_ID\][^\[]*)?\[ARGS\]",
            "close_pattern": r"(?=\[TOOL_CALLS\])",
            "repeats": True,
            "content": "json",
            "transform": _NAMED,
        },
        "[TOOL_CALLS]NAME[ARGS]",
    ),
    KnownForm(
        "[TOOL_CALLS]", {"open": "[TOOL_CALLS]", "content": "json"}, '[TOOL_CALLS] [{"name": "NAME", "arguments":'
    ),
    # Llama 3.1 on: JSON, and nothing else, with or without a marker before it.
    KnownForm(
        '{"name": function name, "parameters"',
        {
            "open_pattern": r"\A\s*(?:<\|python_tag\|>\s*)?"
            r'(?=\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*"(?:NAMES)")',
            "content": "json",
        },
        '{"name": "NAME", "parameters":',
    ),
)


@dataclass(frozen=True)
class CalledTool:
    """A call; arguments: JSON, as text. The id has as many characters as Mistral's templates want."""

    name: str
    arguments: str
    id: str


class CallForm:
    """How a model writes calls. plain: from token ids to text, without special tokens."""

    def __init__(
        self, tokenizer: Any, plain: Callable[[Sequence[int]], str], field: Field, beginning: str | None
    ) -> None:
        self.plain, self.beginning = plain, beginning
        written = "".join(_strings(field))
        added = {token: k for token, k in tokenizer.added_tokens_encoder.items() if len(token.strip()) > 1}
        # A pattern has its markers with backslashes in them.
        patterns = {token: "".join(rf"\\?{re.escape(c)}" for c in token) for token in added}
        self.markers = {k: token for token, k in added.items() if re.search(patterns[token], written)}
        longest_first = sorted(self.markers.values(), key=len, reverse=True)
        self._pattern = re.compile("|".join(patterns[token] for token in longest_first) or "(?!)")
        self.field: Field = in_texts(field, self._marked)

    @classmethod
    def of(cls, tokenizer: Any, plain: Callable[[Sequence[int]], str], template: str) -> CallForm | None:
        """A model's, by its tokenizer or its chat template; None where it is not known."""
        response_template = getattr(tokenizer, "response_template", None)
        if isinstance(response_template, Mapping) and "tool_calls" in (response_template.get("fields") or {}):
            field, beginning = response_template["fields"]["tool_calls"], None
        else:
            known_form = next((form for form in KNOWN_FORMS if form.mentioned in template), None)
            if known_form is None:
                return None
            field, beginning = known_form.field, known_form.beginning
        form = cls(tokenizer, plain, field, beginning)
        try:
            form.reader([])
        except (ValueError, TypeError):  # a tokenizer's own may be of another version
            return None
        return form

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids as the text that a `CallReader` reads."""
        pieces, start = [], 0
        for k, token in enumerate(ids):
            if token in self.markers:
                pieces += [self._text(ids[start:k]), MARKED + self.markers[token]]
                start = k + 1
        return "".join([*pieces, self._text(ids[start:])])

    def reader(self, tools: Sequence[Mapping[str, Any]], begun: str = "") -> CallReader:
        """Who reads one reply. tools: those that are offered; begun: a call that the prompt has begun."""
        # Names are long before they are dear; a form without a marker is none where nothing is offered.
        names = "|".join(re.escape(tool["function"]["name"]) for tool in tools) or "(?!)"
        field = in_texts(self.field, lambda text: text.replace(NAMES, names))
        return CallReader(field, tools, self._marked(begun))

    def _text(self, ids: Sequence[int]) -> str:
        return self.plain(ids).replace(MARKED, "")

    def _marked(self, text: str) -> str:
        return self._pattern.sub(lambda m: MARKED + m[0], text)


class CallReader:
    """Follows a reply's text while it is made. What stands before the first call is told as it comes; from there on it is read
    at the end: it is calls, and what stands behind them, or where one of them cannot be read, the text that it is.

    calls: the reply's, at its end.
    """

    def __init__(self, field: Field, tools: Sequence[Mapping[str, Any]], begun: str = "") -> None:
        from transformers.utils.chat_parsing import ResponseParser

        fields = {"tool_calls": {**field, "optional": True}, "content": {"content": "text"}}
        template = {"start_anchor": MARKED, "fields": fields}
        self.calls: tuple[CalledTool, ...] = ()
        self._parser = ResponseParser(template, prefix="", tools=list(tools))
        self._read: list[CalledTool] = []
        self._text = self._behind = ""
        self._before = self._told = 0  # characters before the first call, and those that were told
        self._has_begun = self._is_text = False
        self.add(begun)

    def add(self, text: str, final: bool = False) -> str:
        """What is ready to be told once the text has come."""
        self._text += text
        try:
            if not self._is_text:
                self._follow(text, final)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            self._is_text = True
        is_text = self._is_text or (final and not self._read)
        end, ready = len(self._text) if is_text else self._before, ""
        # Blank lines before a call are not told.
        if is_text or self._text[self._told : end].strip() or self._told:
            ready, self._told = self._text[self._told : end], end
        if final and not is_text:
            self.calls = tuple(self._read)
            ready += self._behind if self._behind.strip() else ""
        return ready.replace(MARKED, "")

    def _follow(self, text: str, final: bool) -> None:
        events = self._parser.feed(text)
        if final:
            events += self._parser.finalize()[1]
        for event in events:
            if event["field"] == "tool_calls":
                self._has_begun = True
                if event["type"] == "region_close":
                    calls = list(_calls(event["value"]))
                    self._is_text |= not calls
                    self._read += calls
            elif event["type"] == "region_chunk" and self._has_begun:
                self._behind += event["text"]
            elif event["type"] == "region_chunk":
                self._before += len(event["text"])


def _calls(value: Any) -> Iterator[CalledTool]:
    """The calls in what stood between two markers: one, or a list. Raises `ValueError` and its like for what is none."""
    if isinstance(value, list):
        for inner in value:
            yield from _calls(inner)
        return
    function = value.get("function", value)
    name, arguments = function["name"], function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(name, str) or not name.strip() or not isinstance(arguments, dict):
        raise ValueError("a call has a name, and an object of arguments")
    written = [text.replace(MARKED, "") for text in (name, json.dumps(arguments, ensure_ascii=False, allow_nan=False))]
    "".join(written).encode()  # half of a surrogate pair is no text
    yield CalledTool(written[0].strip(), written[1], secrets.token_hex(5)[:9])


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(inner)
