"""Tells a reply's thoughts from its answer, token by token; it knows nothing of templates and weights.

Two ways of writing thoughts are known: between two markers before the answer (`<think>…</think>` and its kin), and in channels
(Harmony's `<|channel|>analysis<|message|>…<|end|>`), where the final channel is the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from personaspace.engines.tool_calls import CallReader

Part = Literal["answer", "thinking", "all"]
PARTS: tuple[Part, ...] = ("answer", "thinking", "all")
"""What of a reply is read: its answer, its thoughts, or all that was generated, markers as well."""


@dataclass(frozen=True)
class ThoughtMarkers:
    """What stands before a thought and behind it."""

    opening: str
    closing: str

    def open_at_end(self, text: str) -> bool:
        """Whether a prompt ends inside a thought that it has opened itself."""
        return text.rstrip().endswith(self.opening)

    def open_in(self, message: str) -> bool:
        """Whether a message that is to be gone on with ends inside a thought: not where its answer names a marker."""
        start, end = split_text(message, self).answer
        return start == end and message.rfind(self.opening) > message.rfind(self.closing)


THOUGHT_MARKERS = tuple(
    ThoughtMarkers(opening, closing)
    for opening, closing in (
        ("<think>", "</think>"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("[THINK]", "[/THINK]"),
        ("<seed:think>", "</seed:think>"),
        ("<thought>", "</thought>"),
        ("<thinking>", "</thinking>"),
        ("<reasoning>", "</reasoning>"),
        ("<|begin_of_thought|>", "<|end_of_thought|>"),
        ("<|inner_prefix|>", "<|inner_suffix|>"),
        ("◁think▷", "◁/think▷"),
    )
)
"""Of models' families: Qwen, DeepSeek, GLM and many others; Cohere; Mistral; Seed; EXAONE; …"""

CHANNEL, MESSAGE, END, START = "<|channel|>", "<|message|>", "<|end|>", "<|start|>"
"""Harmony's, which `gpt-oss` speaks."""
FINAL = "final"


@dataclass(frozen=True)
class ReplyParts:
    """Where a reply's parts are: half-open ranges of tokens, or of characters. answer: from its first word on, empty where
    there is none (yet); thinking: its thoughts, without markers."""

    answer: tuple[int, int]
    thinking: tuple[tuple[int, int], ...] = ()

    @property
    def thought_tokens(self) -> int:
        """How many tokens are thoughts, their markers not among them."""
        return sum(end - start for start, end in self.thinking)

    def range_of(self, part: Part, length: int) -> tuple[int, int]:
        """Where a part of a reply of that length is: its answer, its thoughts from the first to the last, or all of it."""
        thoughts = self.thinking or ((0, 0),)
        return {"answer": self.answer, "thinking": (thoughts[0][0], thoughts[-1][1]), "all": (0, length)}[part]


def thought_markers(template: str, vocabulary: Any) -> ThoughtMarkers | None:
    """Those that a template mentions or a vocabulary has as tokens; None where a model knows none."""
    mentioned = (markers for markers in THOUGHT_MARKERS if markers.closing in template)
    as_tokens = (m for m in THOUGHT_MARKERS if m.opening in vocabulary and m.closing in vocabulary)
    return next(mentioned, None) or next(as_tokens, None)


def speaks_harmony(template: str, vocabulary: Any) -> bool:
    """Whether replies come in channels."""
    return CHANNEL in template and all(m in vocabulary for m in (CHANNEL, MESSAGE, END, START))


def split_text(text: str, markers: ThoughtMarkers | None, harmony: bool = False) -> ReplyParts:
    """The parts of a reply that somebody has written down, in characters, without the space around them. A closing marker
    without an opening one ends a thought that the prompt had opened.

    >>> split_text("<think>hmm</think>Hi", THOUGHT_MARKERS[0])
    ReplyParts(answer=(18, 20), thinking=((7, 10),))
    """
    thoughts: list[tuple[int, int]] = []
    start = 0
    if harmony and CHANNEL in text and MESSAGE in text:
        return _split_channels(text)
    if markers is not None:
        rest = text.lstrip()
        if markers.closing in text and not rest.startswith(markers.opening):
            end = text.index(markers.closing)
            thoughts, start = [(0, end)], end + len(markers.closing)
        while (opening := _past_space(text, start)) < len(text) and text.startswith(markers.opening, opening):
            begin = opening + len(markers.opening)
            end = text.find(markers.closing, begin)
            thoughts.append((begin, len(text) if end < 0 else end))
            start = len(text) if end < 0 else end + len(markers.closing)
    stripped = (_stripped(text, a, b) for a, b in thoughts)
    return ReplyParts(_stripped(text, start, len(text)), tuple(r for r in stripped if r[1] > r[0]))


def _split_channels(text: str) -> ReplyParts:
    answer, thoughts, place = (len(text), len(text)), [], 0
    while (message := text.find(MESSAGE, place)) >= 0:
        header = text[max(text.rfind(CHANNEL, place, message), place) : message].removeprefix(CHANNEL)
        begin = message + len(MESSAGE)
        ends = [k for k in (text.find(m, begin) for m in (END, START, CHANNEL, "<|return|>", "<|call|>")) if k >= 0]
        place = min(ends, default=len(text))
        stretch = _stripped(text, begin, place)
        if header.split()[:1] == [FINAL]:
            answer = stretch
        elif stretch[1] > stretch[0]:
            thoughts.append(stretch)
    return ReplyParts(answer, tuple(thoughts))


def _past_space(text: str, start: int) -> int:
    return start + len(text[start:]) - len(text[start:].lstrip())


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    stripped = text[start:end].strip()
    begin = text.index(stripped, start) if stripped else end
    return begin, begin + len(stripped)


class ReplySplitter:
    """Follows a reply while it is made: fed with its token ids, all that there are by now, it says where the parts are. Blank
    tokens around a thought are of neither part. This one is of a model that knows no thoughts: all is answer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.parts = ReplyParts((0, 0))
        self.is_open = False  # whether it cannot be told yet what the newest tokens are
        self._seen = 0
        self._thoughts: list[tuple[int, int]] = []

    def follow(self, ids: Sequence[int]) -> ReplyParts:
        """The parts by now."""
        for place in range(self._seen, len(ids)):
            self._take(ids, place)
        self._seen = len(ids)
        self.parts = self._parts(len(ids))
        return self.parts

    def answered(self, ids: Sequence[int]) -> int:
        """How many tokens of the answer there are by now; 0 while the reply thinks, and while it cannot be told."""
        start, end = self.follow(ids).answer
        return 0 if self.is_open or end < len(ids) else end - start

    def without_marker(self, thinking: str) -> str:
        """The thoughts' text by now, less what may be the beginning of a marker."""
        return thinking

    def _take(self, ids: Sequence[int], place: int) -> None:
        """What the token at a place changes."""

    def _parts(self, end: int) -> ReplyParts:
        return ReplyParts((0, end))

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def _is_blank(self, token: int) -> bool:
        return not self._text([token]).strip()


class MarkedReplySplitter(ReplySplitter):
    """Of a reply that may begin with thoughts between two markers. inside: whether the prompt has opened a thought."""

    def __init__(self, tokenizer: Any, markers: ThoughtMarkers, inside: bool) -> None:
        super().__init__(tokenizer)
        self.markers = markers
        ids = tokenizer(markers.closing, add_special_tokens=False)["input_ids"]
        # A marker that is several tokens may be written in others than the tokenizer's: it is looked for in their text.
        self._closing = ids[0] if len(ids) == 1 else None
        self._state: Literal["before", "thinking", "answer"] = "thinking" if inside else "before"
        self._start = 0
        self._ended = False  # whether a thought has, an empty one, too: the answer then begins with its first word
        self.is_open = not inside

    def without_marker(self, thinking: str) -> str:
        if self._state != "thinking":
            return thinking
        lengths = range(min(len(self.markers.closing) - 1, len(thinking)), 0, -1)
        overlap = next((n for n in lengths if self.markers.closing.startswith(thinking[-n:])), 0)
        return thinking[: len(thinking) - overlap].rstrip()

    def _take(self, ids: Sequence[int], place: int) -> None:
        if self._state == "thinking":
            self._take_thought(ids, place)
        elif self._state == "before":
            text = self._text(ids[self._start : place + 1]).lstrip()
            if text.startswith(self.markers.opening):
                self._state, self._start = "thinking", place + 1
            elif not text and self._ended:
                self._start = place + 1
            elif not self.markers.opening.startswith(text):
                self._state = "answer"
        self.is_open = self._state == "before"

    def _take_thought(self, ids: Sequence[int], place: int) -> None:
        start, closing = self._start, self.markers.closing
        if self._closing is None:
            # A token is a character at least, or a part of one.
            nearby = range(place, max(start, place - 4 * len(closing)) - 1, -1)
            behind = next((k for k in nearby if closing in self._text(ids[k : place + 1])), None)
        else:
            behind = place if ids[place] == self._closing else None
        if behind is not None:
            end = behind
            while end > start and self._is_blank(ids[end - 1]):
                end -= 1
            if end > start:
                self._thoughts.append((start, end))
            self._state, self._start, self._ended = "before", place + 1, True
        elif start == place and self._is_blank(ids[place]):
            self._start = place + 1

    def _parts(self, end: int) -> ReplyParts:
        if self._state == "thinking":
            return ReplyParts((end, end), (*self._thoughts, *([(self._start, end)] if end > self._start else ())))
        # What no thought stands before is answer from the first token on, however blank that is.
        return ReplyParts((self._start, end), tuple(self._thoughts))


class ChannelReplySplitter(ReplySplitter):
    """Of a reply in Harmony's channels, whose first header the prompt has begun."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        names = (CHANNEL, MESSAGE, END, START)
        self._channel, self._message, self._end, self._start_token = tokenizer.convert_tokens_to_ids(list(names))
        self._header: int | None = 0  # where a header begins, while there is one
        self._stretch: tuple[int, bool] | None = None  # where what is said begins, and whether it is the answer
        self._answer: tuple[int, int] | None = None

    def _take(self, ids: Sequence[int], place: int) -> None:
        token = ids[place]
        if token in (self._channel, self._start_token, self._end):
            self._close(place)
            self._header = place + 1
        elif token == self._message:
            header = self._text(ids[self._header or 0 : place])
            self._close(place)
            self._header, self._stretch = None, (place + 1, header.split()[:1] == [FINAL])
        elif place == 0:  # the prompt, or nobody, has begun a channel: an answer
            self._header, self._stretch = None, (0, True)

    def _close(self, place: int) -> None:
        if self._stretch is not None:
            start, is_answer = self._stretch
            if is_answer:
                self._answer = (start, place)
            elif place > start:
                self._thoughts.append((start, place))
        self._stretch = None

    def _parts(self, end: int) -> ReplyParts:
        answer, thoughts = self._answer or (end, end), tuple(self._thoughts)
        if self._stretch is not None:
            start, is_answer = self._stretch
            if is_answer:
                answer = (start, end)
            elif end > start:
                thoughts = (*thoughts, (start, end))
        return ReplyParts(answer, thoughts)


class ReplyText:
    """A reply's answer and its thoughts as text while they are made. decode: from token ids to text; splitter: who tells them
    apart (None: all is answer); calls: who tells calls of tools from the answer's text (None: they are text).

    A character's bytes may be spread over tokens: it is a part of the text once it is whole, or the reply is at its end.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        splitter: ReplySplitter | None = None,
        calls: CallReader | None = None,
    ) -> None:
        self.decode, self.splitter, self.calls = decode, splitter, calls
        self.text = self.thinking = ""

    def add(self, token_ids: Sequence[int], final: bool = False) -> str:
        """What the tokens, all that there are by now, add to the answer's text."""
        added = self._added(token_ids, final)
        return self.calls.add(added, final) if self.calls else added

    def _added(self, token_ids: Sequence[int], final: bool) -> str:
        shown = len(self.text)
        if self.splitter is None:
            self.text = self._longer(self.text, self.decode(token_ids), final)
            return self.text[shown:]
        parts = self.splitter.follow(token_ids)
        if self.splitter.is_open and not final:
            return ""
        answer, thinking = texts(self.decode, token_ids, parts)
        self.text = self._longer(self.text, answer, final)
        shown_thinking = thinking if final else self.splitter.without_marker(thinking)
        self.thinking = self._longer(self.thinking, shown_thinking, final or bool(answer))
        return self.text[shown:]

    @staticmethod
    def _longer(shown: str, decoded: str, final: bool) -> str:
        # What was shown once is never taken back, also where a tokenizer would now write less.
        return max(shown, decoded if final else decoded.rstrip("\ufffd"), key=len)


def texts(decode: Callable[[Sequence[int]], str], ids: Sequence[int], parts: ReplyParts) -> tuple[str, str]:
    """The answer's text and the thoughts'."""
    answer = decode(ids[parts.answer[0] : parts.answer[1]])
    thinking = "\n\n".join(decode(ids[a:b]).strip() for a, b in parts.thinking)
    return (answer.lstrip() if parts.answer[0] else answer), thinking
