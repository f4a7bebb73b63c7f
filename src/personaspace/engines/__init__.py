"""What every engine does, as one protocol; it knows nothing of how any of them does it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from personaspace.errors import UsageError
from personaspace.prompts import Message, Prompt, Sampling

Layers = Sequence[int]


@dataclass(frozen=True)
class ModelInfo:
    """Which model it is. `fingerprint` is of the weights; `template` says how messages become text."""

    id: str
    revision: str | None
    layers: int
    hidden: int
    dtype: str
    fingerprint: str
    template: str
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Response:
    """A prompt's reply. activation: `[layers, hidden]`, fp32, the mean over the reply's tokens, the end-of-turn marker
    not among them; norms: `[layers]`, the mean ‖h‖ over them. Both None where nothing was read, zeros for an empty reply."""

    prompt: Prompt
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    activation: Tensor | None = None
    norms: Tensor | None = None


@dataclass(frozen=True)
class Span:
    """A conversation as token ids, with the half-open token ranges to read."""

    token_ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Turn:
    """An assistant turn of a replayed conversation: its place among the messages, and what was read of its tokens."""

    index: int
    tokens: int
    activation: Tensor  # [layers, hidden]
    norms: Tensor  # [layers]


Conversation = Sequence[Message] | Span


class Engine(Protocol):
    """Answers prompts and reads the residual stream while it does (the paper's sections on rollouts and activations)."""

    @property
    def model(self) -> ModelInfo: ...

    def respond(
        self, prompts: Iterable[Prompt], sampling: Sampling, *, read: Layers | None = None
    ) -> Iterator[Response]:
        """Yields each response as it finishes, with the mean activation of the layers in `read`."""
        ...

    def replay(self, conversations: Sequence[Conversation], *, read: Layers) -> Iterator[list[Turn]]:
        """Reads the assistant turns of text that already exists, one list a conversation, in order."""
        ...


def load_engine(name: str, model: str, **options: Any) -> Engine:
    """The engine of that name with a model loaded. Raises `UsageError` for a name that is none, `ModelError`."""
    if name != "transformers":
        raise UsageError(f"--engine {name}: expected transformers")
    from personaspace.engines.transformers import TransformersEngine

    return TransformersEngine.load(model, **options)
