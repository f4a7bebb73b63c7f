"""What every engine does, as one protocol; it knows nothing of how any of them does it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from personaspace.engines.chat import Chat, Span
from personaspace.engines.prompts import Message, Prompt, Sampling
from personaspace.engines.thoughts import Part
from personaspace.model.interventions import Intervention

Layers = Sequence[int]


@dataclass(frozen=True)
class ModelInfo:
    """Which model it is. `fingerprint` is of the weights; `template` says how messages become text; `context` is how many
    tokens it takes, where known."""

    id: str
    revision: str | None
    layers: int
    hidden: int
    dtype: str
    fingerprint: str
    template: str
    context: int | None = None
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Response:
    """A prompt's reply. text: the answer; thinking: what was thought before it. token_ids: all that was generated, the
    end-of-turn marker not among them; answer: which of them the answer is, None where all are. read: which of them were read,
    None for all: the answer's, unless its thoughts were asked for.

    activation: `[layers, hidden]`, fp32, the mean over the tokens that were read; norms: `[layers]`, the mean ‖h‖ over them.
    Both None where nothing was read, zeros where there was no such token. before: the activation as it was before the
    interventions, where that was asked for. touched: how many of those tokens an intervention changed. projections:
    `[tokens, layers]`, each one's on the directions asked for; None where none were, or where there was no such token.
    finish_reason: `stop`, `length`, or `onset` of a prompt that was only read."""

    prompt: Prompt
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    activation: Tensor | None = None
    norms: Tensor | None = None
    before: Tensor | None = None
    touched: int = 0
    projections: Tensor | None = None
    thinking: str = ""
    answer: tuple[int, int] | None = None
    read: tuple[int, int] | None = None

    @property
    def tokens(self) -> int:
        """How many tokens were read, or would have been."""
        start, end = self.read or self.answer or (0, len(self.token_ids))
        return end - start


@dataclass(frozen=True)
class Token:
    """A step of a reply in the making: the text that it adds, and what was read of the token before it.

    id: None on a last step that only says how the reply ended. activation: `[layers, hidden]` of token `index - 1`, which
    is known one step after the token; None on the first. touched: whether an intervention changed that token; is_answer:
    whether it is one of the answer's. thinking: what the step adds to the thoughts.
    """

    index: int
    id: int | None
    text: str
    activation: Tensor | None = None
    touched: bool = False
    finish_reason: str = ""
    thinking: str = ""
    is_answer: bool = True


@dataclass(frozen=True)
class Turn:
    """An assistant turn of a replayed conversation: its place among the messages, and what was read of its tokens.

    activation: `[layers, hidden]`; norms: `[layers]`; each: every token's own, `[tokens, layers, hidden]`, where asked for;
    logprob: the mean log-probability of its tokens, where asked for; touched: how many an intervention changed.
    """

    index: int
    tokens: int
    activation: Tensor
    norms: Tensor
    each: Tensor | None = None
    logprob: float | None = None
    touched: int = 0


@dataclass(frozen=True)
class ReadOptions:
    """What a call of an engine reads, and what it does to the residual stream meanwhile: the keywords of `Engine.respond`,
    `onsets`, `replay` and `stream`, which say what they mean. ambient: what `intervening` was doing when the call was made."""

    layers: tuple[int, ...] = ()
    interventions: tuple[Intervention, ...] = ()
    ambient: tuple[Intervention, ...] = ()
    before: bool = False
    along: Tensor | None = None
    each: bool = False
    logprobs: bool = False
    span: Part = "answer"

    def interventions_of(self, prompt: Prompt) -> tuple[Intervention, ...]:
        """A prompt's own where it has any, otherwise the call's; what is ambient comes first."""
        return (*self.ambient, *(self.interventions if prompt.interventions is None else prompt.interventions))


Conversation = Sequence[Message] | Span

ONSET = "onset"
"""The finish reason of what was read before a word was said."""


class Engine(Protocol):
    """Answers prompts and reads the residual stream while it does (the paper's sections on rollouts and activations)."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def chat(self) -> Chat: ...

    @property
    def projects_tokens(self) -> bool:
        """Whether `respond` takes `along`."""
        ...

    def respond(
        self,
        prompts: Iterable[Prompt],
        sampling: Sampling,
        *,
        read: Layers | None = None,
        interventions: Sequence[Intervention] = (),
        before: bool = False,
        along: Tensor | None = None,
        span: Part = "answer",
    ) -> Iterator[Response]:
        """Yields each response as it finishes, with the mean activation of the layers in `read`, after the interventions;
        with `before`, also as it was before them; with `along`, a direction of unit length for each of those layers
        `[layers, hidden]`, also each token's projection. span: whether the answer's tokens are read, the thoughts' or all."""
        ...

    def onsets(
        self, prompts: Iterable[Prompt], *, read: Layers, interventions: Sequence[Intervention] = ()
    ) -> Iterator[Response]:
        """Reads each prompt where its reply would begin, at its last token, and generates nothing.

        Yields, in no set order, a `Response` without text whose one token id is the token that was read, whose activation is
        the residual stream there, and whose finish reason is `onset`.
        """
        ...

    def replay(
        self,
        conversations: Sequence[Conversation],
        *,
        read: Layers,
        interventions: Sequence[Intervention] = (),
        each: bool = False,
        logprobs: bool = False,
        span: Part = "answer",
    ) -> Iterator[list[Turn]]:
        """Reads the assistant turns of text that already exists, one list a conversation, in order. span: of each turn its
        answer, its thoughts where it has any, or both; a `Span` says itself what is read."""
        ...


class LocalEngine(Engine, Protocol):
    """What an engine in this process can do besides: a reply is followed token by token."""

    def stream(
        self,
        prompt: Prompt,
        sampling: Sampling,
        *,
        read: Layers | None = None,
        interventions: Sequence[Intervention] = (),
    ) -> Iterator[Token]:
        """One reply, token by token."""
        ...

    def intervening(self, *interventions: Intervention) -> AbstractContextManager[None]:
        """While it lasts, every row gets the interventions, before its own."""
        ...
