"""What engines of one loaded model have in common, whatever runs it: checks, interventions around calls, and the words for
what went wrong."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from personaspace.engines.chat import Chat, Span
from personaspace.engines.prompts import Prompt, Sampling
from personaspace.engines.protocol import ONSET, Conversation, Layers, ModelInfo, ReadOptions, Response, Token, Turn
from personaspace.engines.thoughts import PARTS, Part
from personaspace.errors import ActivationError, UsageError
from personaspace.model.interventions import Intervention
from personaspace.model.residual import check_interventions


class BaseEngine(ABC):
    """What an engine builds on: it has the signatures of `Engine`, checks what is asked, and hands it on in one piece.

    info, chat: as in `Engine`; set before anything here is called. An engine of one's own has `_respond` and `_replay`, and
    `_stream` where a reply can be followed.
    """

    info: ModelInfo
    chat: Chat
    projects_tokens = True
    """Whether `respond` takes `along`."""

    def __init__(self) -> None:
        self._ambient: tuple[Intervention, ...] = ()

    @contextmanager
    def intervening(self, *interventions: Intervention) -> Iterator[None]:
        """While it lasts, every row gets the interventions, before its own. Raises `UsageError`."""
        check_interventions(interventions, self.info.layers, self.info.hidden)
        enclosing = self._ambient
        self._ambient = (*enclosing, *interventions)
        try:
            yield
        finally:
            self._ambient = enclosing

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
        """See `Engine.respond`. Raises `UsageError`; `ActivationError` where NaN or Inf is read, naming layer and response."""
        _check_span(span)
        if before and span == "thinking":
            raise UsageError("before=True: of thoughts alone it is not known how they were before the interventions")
        layers, applied = self._layers(read), tuple(interventions)
        options = ReadOptions(layers, applied, self._ambient, before=before, along=along, span=span)
        prompt_list = list(prompts)
        for prompt in prompt_list:
            self._check(options.interventions_of(prompt))
        return self._respond(prompt_list, sampling, options)

    def onsets(
        self, prompts: Iterable[Prompt], *, read: Layers, interventions: Sequence[Intervention] = ()
    ) -> Iterator[Response]:
        """See `Engine.onsets`. Raises `ActivationError` where NaN or Inf is read, naming layer and prompt."""
        options = ReadOptions(self._layers(read), tuple(interventions), self._ambient)
        groups: dict[tuple[str, ...], tuple[list[Prompt], tuple[Intervention, ...]]] = {}
        for prompt in prompts:
            # Nothing is generated: what is for generated tokens alone changes nothing.
            applied = tuple(i for i in options.interventions_of(prompt) if i.where == "all")
            self._check(applied)
            groups.setdefault(tuple(i.key for i in applied), ([], applied))[0].append(prompt)
        for group, applied in groups.values():
            ids = [self.chat.prompt_ids(p.messages) for p in group]
            for place, activation in self._onsets(ids, replace(options, interventions=applied)):
                check_finite(activation, options.layers, group[place])
                norms = torch.linalg.vector_norm(activation, dim=-1)
                yield Response(group[place], "", (ids[place][-1],), ONSET, activation, norms)

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
        """See `Engine.replay`. A `Span` is read as it stands; messages are rendered and tokenised once. Raises `UsageError`."""
        _check_span(span)
        applied = (*self._ambient, *interventions)
        if span != "answer" and any(i.where == "answer" for i in applied):
            raise UsageError(f"span={span}: what acts on answers alone is replayed with span=answer")
        self._check(applied)
        options = ReadOptions(self._layers(read), applied, each=each, logprobs=logprobs, span=span)
        return self._replay(conversations, options)

    def stream(
        self,
        prompt: Prompt,
        sampling: Sampling,
        *,
        read: Layers | None = None,
        interventions: Sequence[Intervention] = (),
    ) -> Iterator[Token]:
        """See `LocalEngine.stream`. Raises `UsageError`."""
        options = ReadOptions(self._layers(read), tuple(interventions), self._ambient)
        self._check(options.interventions_of(prompt))
        return self._stream(prompt, prompt.sampling or sampling, options)

    # -- what an engine has of its own -----------------------------------------------------------------------------

    @abstractmethod
    def _respond(self, prompts: Sequence[Prompt], sampling: Sampling, options: ReadOptions) -> Iterator[Response]: ...

    @abstractmethod
    def _replay(self, conversations: Sequence[Conversation], options: ReadOptions) -> Iterator[list[Turn]]: ...

    def _stream(self, prompt: Prompt, sampling: Sampling, options: ReadOptions) -> Iterator[Token]:
        raise UsageError(f"{type(self).__name__} cannot follow a reply token by token; an engine of one machine can")

    def _onsets(self, ids: Sequence[list[int]], options: ReadOptions) -> Iterator[tuple[int, Tensor]]:
        """Each prompt's place and its activation `[layers, hidden]` at the last token, in any order."""
        spans = [Span(tuple(row), ((len(row) - 1, len(row)),)) for row in ids]
        for place, (turn,) in enumerate(self._replay(spans, options)):
            yield place, turn.activation

    # -- checks ----------------------------------------------------------------------------------------------------

    def _layers(self, read: Layers | None) -> tuple[int, ...]:
        layers = tuple(read or ())
        if any(not 0 <= layer < self.info.layers for layer in layers):
            raise UsageError(f"layers {list(layers)}: the model has layers 0 to {self.info.layers - 1}")
        return layers

    def _check(self, interventions: Sequence[Intervention]) -> None:
        check_interventions(interventions, self.info.layers, self.info.hidden)

    def _spans(self, conversations: Sequence[Conversation], part: Part) -> tuple[list[Span], list[list[int]]]:
        """Each conversation as token ids with what is to be read, and the places of its turns: a `Span` as it stands,
        messages rendered and tokenised once."""
        spans, places = [], []
        for conversation in conversations:
            span, turn_places = (
                (conversation, list(range(len(conversation.spans))))
                if isinstance(conversation, Span)
                else self.chat.spans(conversation, part)
            )
            spans.append(span)
            places.append(turn_places)
        return spans, places


def _check_span(span: str) -> None:
    if span not in PARTS:
        raise UsageError(f"span={span}: expected one of {', '.join(PARTS)}")


def end_ids(configured: Any, tokenizer: Any) -> frozenset[int]:
    """A reply's stop tokens. configured: the settings' end-of-text, one id, several or None."""
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)


def check_finite(mean: Tensor, layers: Sequence[int], prompt: Prompt) -> None:
    """Of a response's activation `[layers, hidden]`. Raises `ActivationError` that names layer and response."""
    bad = (~torch.isfinite(mean)).any(-1).nonzero()
    if len(bad):
        raise not_finite(f"layer {layers[int(bad[0])]}", prompt)


def not_finite(where: str, prompt: Prompt) -> ActivationError:
    """The error that names where a prompt's numbers became NaN or Inf."""
    return ActivationError(
        f"NaN or Inf in {where} of the response of {prompt.role or 'the model'} to question {prompt.question} "
        f"(instruction {prompt.instruction}); try dtype=fp32 (a map: into a new "
        "folder, since its numbers are others), or weaker steering"
    )
