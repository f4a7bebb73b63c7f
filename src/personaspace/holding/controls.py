"""What an intervention along the axis is compared with: a step as long along a direction that is not the axis.

How long a cap's steps are is measured here, too, so that all who compare (a sweep, an experiment) go by the same
arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from personaspace.engines import Engine
from personaspace.engines.chat import Span
from personaspace.engines.prompts import Message, Prompt, Sampling
from personaspace.errors import RunError
from personaspace.model.interventions import Add, Cap, Decaying, Intervention, SetTo, Where
from personaspace.space import PersonaSpace

MEASURED_ON = 16
"""Prompts on which it is measured how far a cap moves a token, and tokens of a reply to each."""

MANY = 20
"""Random directions from which on an effect is held against their 95th percentile: of fewer it is not known."""

SECOND = 1
"""The index of the second component."""

RANDOM, PC2, SHUFFLED, CONSTANT = "random", "PC2", "shuffled roles", "the axis at every token"
"""Names of what a cap is compared with."""

Direction = Callable[[PersonaSpace, int], Tensor]
"""From a space and a layer to a direction `[hidden]` of unit length."""


def random_direction(space: PersonaSpace, layer: int, number: int) -> Tensor:
    """The direction `[hidden]` of that number at a layer, of unit length: the same normal draw at every layer, less
    what of it lies along the layer's axis."""
    draw = torch.randn(space.tensors["axis"].shape[1], generator=torch.Generator().manual_seed(number))
    return _across(draw, space.axis_at(layer))


def second_component(space: PersonaSpace, layer: int) -> Tensor:
    """The role vectors' second component `[hidden]` at a layer, less what of it lies along the layer's axis, of unit
    length."""
    return _across(space.tensors["components"][layer, SECOND], space.axis_at(layer))


def between_halves(space: PersonaSpace, layer: int) -> Tensor:
    """From the mean of one half of the roles, drawn at random, to that of the other `[hidden]` at a layer, less what of it lies
    along the layer's axis, of unit length: an axis as it would be if who is the Assistant had been drawn by lot. A compact
    space has roles at one layer only: there it is that layer's everywhere, less each layer's axis."""
    vectors, _ = space.centred(space.layer if space.is_compact else layer)
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))
    half = len(order) // 2
    return _across(vectors[order[:half]].mean(0) - vectors[order[half:]].mean(0), space.axis_at(layer))


def _across(direction: Tensor, axis: Tensor) -> Tensor:
    across = direction - (direction @ axis) * axis
    unit: Tensor = across / across.norm()
    return unit


def directions(space: PersonaSpace, random: int, first: int = 0) -> dict[str, Direction]:
    """What a cap is compared with, by name: so many random directions, numbered from `first`; the second component and a
    shuffled axis where the space has what they are made of at every layer; and the axis itself, along which every token is
    moved as far, whether it needs it or not."""

    def numbered(number: int) -> Direction:
        return lambda space, layer: random_direction(space, layer, number)

    by_name = {f"{RANDOM} {k + 1}": numbered(first + k) for k in range(random)}
    if space.stored_components > SECOND:
        by_name[PC2] = second_component
    if not space.is_compact:
        by_name[SHUFFLED] = between_halves
    return {**by_name, CONSTANT: lambda space, layer: space.axis_at(layer)}


def displaced(
    space: PersonaSpace,
    layers: Sequence[int],
    steps: Sequence[float],
    along: Direction,
    hold: Intervention | None = None,
) -> tuple[Add | Decaying, ...]:
    """Steps of those lengths along a direction, one at each layer; none where a length is 0. At every token, or at those that a
    hold acts on, weakening as it does.

    >>> cap = space.cap("capped")
    >>> steps = displacement(engine, space, cap, conversations)
    >>> with engine.intervening(*displaced(space, cap.layers, steps, directions(space, random=1)["random 1"])):
    ...     replies = list(engine.respond(prompts, sampling))
    """
    where: Where = "all" if hold is None else hold.where
    adds = [
        Add(along(space, layer), layer, step, relative=False, where=where)
        for layer, step in zip(layers, steps, strict=True)
        if step
    ]
    return tuple(Decaying(add, hold.half_life) for add in adds) if isinstance(hold, Decaying) else tuple(adds)


def displacement(
    engine: Engine, space: PersonaSpace, hold: Intervention, prompts: Sequence[Sequence[Message]]
) -> list[float]:
    """How far a cap, or what else holds along the axis, moves a reply's token in the mean at each of its layers,
    ‖h after − h before‖, given what it did at the layers below; on the first of the prompts. Of one that decays it is how far
    it would at full strength, so that a step that decays as it does goes as far. Raises `RunError` for an engine that does not
    read what a cap changes."""
    measured_prompts = [Prompt(tuple(p), index=k, seed=k) for k, p in enumerate(prompts[:MEASURED_ON])]
    layers = hold.layers_touched()
    sampling = Sampling(max_new_tokens=MEASURED_ON)
    inner = hold.of if isinstance(hold, Decaying) else hold
    if isinstance(inner, SetTo) or (isinstance(inner, Cap) and inner.ceiling is not None):
        return _token_by_token(engine, hold, inner, measured_prompts, sampling)
    axis = torch.stack([space.axis_at(layer) for layer in layers])
    steps, strength = torch.zeros(len(layers)), 0.0
    for r in engine.respond(measured_prompts, sampling, read=layers, interventions=(hold,), before=True):
        if r.activation is not None and r.before is not None and r.tokens:
            # Every step of a floor points the same way, up the axis: the means' difference is the mean of the lengths.
            steps += r.tokens * ((r.activation - r.before).float().cpu() * axis).sum(-1)
            strength += _strength(hold, r.tokens)
    if not strength:
        raise RunError("the engine does not read what a cap changes, so that it has no control")
    return (steps / strength).clamp(min=0).tolist()


def _strength(hold: Intervention, tokens: int) -> float:
    """The sum of a hold's strengths over a reply's first so many tokens: their number, but for one that decays."""
    return float(hold.strength(torch.arange(tokens)).sum()) if isinstance(hold, Decaying) else float(tokens)


def _token_by_token(
    engine: Engine,
    hold: Intervention,
    inner: SetTo | Cap,
    prompts: Sequence[Prompt],
    sampling: Sampling,
) -> list[float]:
    """The same of what moves tokens both ways, whose steps cancel in a mean: each reply is read again once for every layer,
    held at the layers under it alone. inner: the hold itself, or what decays in it."""
    spans = []
    for r in engine.respond(prompts, sampling, interventions=(hold,)):
        ids = engine.chat.prompt_ids(r.prompt.messages)
        if r.token_ids:
            spans.append(Span((*ids, *r.token_ids), ((len(ids), len(ids) + len(r.token_ids)),)))
    lengths = []
    for layer in inner.layers:
        below = inner.below(layer)
        under = () if below is None else (Decaying(below, hold.half_life) if isinstance(hold, Decaying) else below,)
        moved, strength = 0.0, 0.0
        for (turn,) in engine.replay(spans, read=[layer], interventions=under, each=True):
            assert turn.each is not None
            stream = turn.each[:, 0].float().cpu()
            after = inner.apply(stream, layer)
            if isinstance(hold, Decaying):
                after = hold.weakened(stream, after, torch.arange(len(stream)))
            moved += float((after - stream).norm(dim=-1).sum())
            strength += _strength(hold, len(stream))
        lengths.append(moved / strength if strength else 0.0)
    return lengths


@dataclass(frozen=True)
class BesideControls:
    """An effect of the axis beside those of as long steps along random directions, and along a shuffled axis where there was
    one. It is the axis' own where it lies beyond the 95th percentile of at least `MANY` random ones, the way that it goes: of
    random directions themselves one in ten would, on one side or the other."""

    effect: float
    random: tuple[float, ...]
    shuffled: float | None = None

    @property
    def limit(self) -> float | None:
        """The random directions' 95th percentile, or 5th for an effect under 0; the farthest of fewer than `MANY`; None without
        any."""
        if not self.random:
            return None
        sign = -1.0 if self.effect < 0 else 1.0
        return sign * farthest([sign * value for value in self.random])

    @property
    def is_the_axis(self) -> bool:
        """Whether it may be said to be the axis' own."""
        limit = self.limit
        if limit is None or len(self.random) < MANY:
            return False
        return self.effect > max(limit, 0.0) if self.effect > 0 else self.effect < min(limit, 0.0)

    def told(self, spec: str = "+.2f") -> str:
        """It beside them, in words."""
        if not self.random:
            return "no random direction was set beside it, so nothing is claimed of the axis"
        n, shuffled = len(self.random), "" if self.shuffled is None else f", a shuffled axis {self.shuffled:{spec}}"
        between = (
            f"{n} random directions displaced as far {min(self.random):{spec}} to {max(self.random):{spec}}{shuffled}"
        )
        if n < MANY:
            return f"{between}: fewer than {MANY}, so nothing is claimed of the axis"
        return (
            f"{between}: {'beyond' if self.is_the_axis else 'not beyond'} their 95th percentile ({self.limit:{spec}})"
        )


def farthest(values: Sequence[float]) -> float:
    """The 95th percentile of random directions' effects; of fewer than `MANY` the greatest.

    Another such direction lies beyond it once in 20, as it does not beyond a percentile that is looked up by numpy's default
    method: of 20 values that is near the second greatest, which twice as many lie beyond.
    """
    return float(np.quantile(values, 0.95, method="weibull")) if len(values) >= MANY else max(values)
