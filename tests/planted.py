"""An engine whose residual stream is made up, so that what experiments should find is known beforehand."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from personaspace.engines import ModelInfo, Response, Span, Turn
from personaspace.errors import UsageError
from personaspace.model.interventions import Add, Cap, Mirror, SetTo
from personaspace.space import PersonaSpace
from personaspace.space.layout import FORMAT

LAYERS, HIDDEN, LAYER = 4, 24, 2
NORM = 10.0
UNIT = torch.eye(HIDDEN)[0]
MARK = re.compile(r"<(-?\d+\.\d+)>")
Messages = Sequence[dict[str, str]]


class PlantedEngine:
    """where: from the messages and a random generator to where the reply lies on the axis, before interventions. speak: from
    that place (after them) and the messages to the reply's text; the place is written behind it, where `replay` finds it.
    Steering adds α times the norm, along the axis alone unless `any_direction` moves it as well (so many times as far); a cap
    is a floor."""

    def __init__(
        self,
        where: Callable[[Messages, np.random.Generator], float],
        speak: Callable[[float, Messages], str] = lambda at, messages: "It is so.",
        logprob: Callable[[float], float] = lambda floor: -1.0,
        any_direction: float = False,
    ) -> None:
        self.any_direction = any_direction
        self.where, self.speak, self.logprob = where, speak, logprob
        self.asked = 0
        self.projects_tokens = False
        self.info = ModelInfo("planted", None, LAYERS, HIDDEN, "float32", "planted", "made up", context=4096)
        self.ambient: tuple = ()
        self.chat = PlantedChat()

    @contextmanager
    def intervening(self, *interventions):
        self.ambient = interventions
        yield
        self.ambient = ()

    def respond(self, prompts, sampling, *, read=None, interventions=(), before=False) -> Iterator[Response]:
        for p in prompts:
            self.asked += 1
            rng = np.random.default_rng(p.seed or 0)
            at = free = self.where(p.messages, rng)
            for i in p.interventions if p.interventions is not None else interventions:
                at = _held(at, i, self.any_direction)
            text = f"{self.speak(at, p.messages)} <{at:.4f}>"
            activation = _activation(at, rng).expand(len(read or ()), -1)
            moved = (at - free) * UNIT if before else None
            unmoved = activation - moved if moved is not None else None
            yield Response(p, text, tuple(range(8)), "stop", activation, None, unmoved, 8 if at != free else 0)

    def onsets(self, prompts, *, read, interventions=()) -> Iterator[Response]:
        """Before the first word it is where its reply would be."""
        yield from self.respond(prompts, None, read=read)

    def replay(self, conversations, *, read, interventions=(), each=False, logprobs=False) -> Iterator[list[Turn]]:
        if any(isinstance(messages, Span) for messages in conversations):
            raise UsageError("a made-up engine reads no token ids")
        floor = max((float(i.floor[0]) for i in interventions if isinstance(i, Cap)), default=-np.inf)
        for messages in conversations:
            turns = []
            for k, m in enumerate(messages):
                if m["role"] == "assistant":
                    found = MARK.search(m["content"])
                    at = float(found[1]) if found else 0.0
                    for i in interventions:
                        at = _held(at, i, self.any_direction)
                    activation = _activation(at, np.random.default_rng(k)).expand(len(read), -1)
                    logprob = self.logprob(floor) if logprobs else None
                    turns.append(Turn(k, 8, activation, torch.ones(len(read)), None, logprob))
            yield turns


class PlantedChat:
    """Words are its tokens."""

    def splitter(self, ids: list[int]) -> None:
        """It thinks nothing."""

    def prompt_ids(self, messages: Messages) -> list[int]:
        return [0 for m in messages for _ in m["content"].split()]


def _held(at: float, i: object, any_direction: float) -> float:
    if isinstance(i, Add):
        length = i.alpha * NORM if i.relative else float(i.step.norm())
        along = float(i.vector @ UNIT / i.vector.norm())
        return at + length * (float(any_direction) or along)
    if isinstance(i, SetTo):
        return i.target_at(LAYER)
    if isinstance(i, Mirror):
        return max(at, 2 * i.floor_at(LAYER) - at)
    assert isinstance(i, Cap)
    return max(at, float(dict(zip(i.layers, i.floor, strict=True))[LAYER]))


def _activation(at: float, rng: np.random.Generator) -> torch.Tensor:
    noise = torch.from_numpy(rng.normal(size=HIDDEN)).float()
    noise[0] = at
    return noise[None]


def planted_space(floor: float = 0.0) -> PersonaSpace:
    """A space whose axis is the first coordinate, the default at 5 ± 1, eight roles at 0 to −7, a cap at `floor`."""
    names = ["ghost", "hermit", "clerk", "auditor", "whale", "pilot", "bard", "judge"]
    roles = torch.zeros(len(names), LAYERS, HIDDEN)
    for k in range(len(names)):
        roles[k, :, 0] = -float(k)
        roles[k, :, 1 + k] = 1.0
    default = torch.zeros(LAYERS, HIDDEN)
    default[:, 0] = 5.0
    tensors = {
        "role_vectors": roles,
        "default_vector": default,
        "axis": (UNIT * 8.0).expand(LAYERS, -1).clone(),
        "residual_norm": torch.full((LAYERS,), NORM),
        "default_moments": torch.tensor([5.0, 1.0])[:, None].repeat(1, LAYERS),
    }
    meta = {
        "format": FORMAT,
        "model": {"id": "planted", "fingerprint": "planted"},
        "layer": LAYER,
        "roles": names,
        "caps": {"capped": {"layers": [LAYER], "floors": [floor], "is": "planted"}},
        "axis_pc1": [1.0] * LAYERS,
        "sampling": {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 8},
    }
    return PersonaSpace(meta, tensors)
