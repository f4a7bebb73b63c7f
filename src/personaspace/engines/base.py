"""What engines of one loaded model have in common, whatever runs it: checks, interventions around calls, and the words for
what went wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from personaspace.engines.chat import Chat, Span
from personaspace.engines.prompts import Prompt
from personaspace.engines.protocol import ONSET, Conversation, Layers, ModelInfo, Response, Turn
from personaspace.errors import ActivationError, UsageError
from personaspace.model.interventions import Intervention
from personaspace.model.residual import check_interventions


class BaseEngine:
    """What such an engine builds on. info, chat: as in `Engine`; set before anything here is called."""

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

    def _layers(self, read: Layers | None) -> tuple[int, ...]:
        layers = tuple(read or ())
        if any(not 0 <= layer < self.info.layers for layer in layers):
            raise UsageError(f"layers {list(layers)}: the model has layers 0 to {self.info.layers - 1}")
        return layers

    def replay(
        self,
        conversations: Sequence[Conversation],
        *,
        read: Layers,
        interventions: Sequence[Intervention] = (),
        each: bool = False,
        logprobs: bool = False,
    ) -> Iterator[list[Turn]]:
        """See `Engine.replay`."""
        raise NotImplementedError

    def onsets(
        self, prompts: Iterable[Prompt], *, read: Layers, interventions: Sequence[Intervention] = ()
    ) -> Iterator[Response]:
        """See `Engine.onsets`. Raises `ActivationError` where NaN or Inf is read, naming layer and prompt."""
        layers = self._layers(read)
        groups: dict[tuple[str, ...], tuple[list[Prompt], list[Intervention]]] = {}
        for prompt in prompts:
            prompt_interventions = interventions if prompt.interventions is None else prompt.interventions
            # Nothing is generated: what is for generated tokens alone changes nothing.
            applied = [i for i in prompt_interventions if i.where == "all"]
            groups.setdefault(tuple(i.key for i in applied), ([], applied))[0].append(prompt)
        for group, applied in groups.values():
            ids = [self.chat.prompt_ids(p.messages) for p in group]
            for place, activation in self._onsets(ids, layers, applied):
                check_finite(activation, layers, group[place])
                norms = torch.linalg.vector_norm(activation, dim=-1)
                yield Response(group[place], "", (ids[place][-1],), ONSET, activation, norms)

    def _onsets(
        self, ids: Sequence[list[int]], layers: Layers, interventions: Sequence[Intervention]
    ) -> Iterator[tuple[int, Tensor]]:
        """Each prompt's place and its activation `[layers, hidden]` at the last token, in any order."""
        spans = [Span(tuple(row), ((len(row) - 1, len(row)),)) for row in ids]
        for place, (turn,) in enumerate(self.replay(spans, read=layers, interventions=interventions)):
            yield place, turn.activation

    def _spans(self, conversations: Sequence[Conversation]) -> tuple[list[Span], list[list[int]]]:
        """Each conversation as token ids with what is to be read, and the places of its turns: a `Span` as it stands,
        messages rendered and tokenised once."""
        spans, places = [], []
        for conversation in conversations:
            span, turn_places = (
                (conversation, list(range(len(conversation.spans))))
                if isinstance(conversation, Span)
                else self.chat.spans(conversation)
            )
            spans.append(span)
            places.append(turn_places)
        return spans, places


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
        f"(instruction {prompt.instruction}); try --dtype fp32, or weaker steering"
    )
