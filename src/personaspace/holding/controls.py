"""What an intervention along the axis is compared with: a step as long along a direction that is not the axis.

How long a cap's steps are is measured here, too, so that all who compare (a sweep, an experiment) go by the same
arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from personaspace.engines import Engine
from personaspace.engines.prompts import Message, Prompt, Sampling
from personaspace.errors import RunError
from personaspace.model.interventions import Add, Cap
from personaspace.space import PersonaSpace

MEASURED_ON = 16
"""Prompts on which it is measured how far a cap moves a token, and tokens of a reply to each."""

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
    along the layer's axis, of unit length: an axis as it would be if who is the Assistant had been drawn by lot."""
    vectors, _ = space.centred(layer)
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


def displaced(space: PersonaSpace, layers: Sequence[int], steps: Sequence[float], along: Direction) -> tuple[Add, ...]:
    """Steps of those lengths along a direction, one at each layer, at every token; none where a length is 0.

    >>> steps = displacement(engine, space, cap, conversations)
    >>> with engine.intervening(*displaced(space, cap.layers, steps, directions(space, random=1)["random 1"])):
    ...     replies = list(engine.respond(prompts, sampling))
    """
    return tuple(
        Add(along(space, layer), layer, step, relative=False) for layer, step in zip(layers, steps, strict=True) if step
    )


def displacement(engine: Engine, space: PersonaSpace, cap: Cap, prompts: Sequence[Sequence[Message]]) -> list[float]:
    """How far a cap moves a reply's token in the mean at each of its layers, ‖h after − h before‖, given what it did
    at the layers below; on the first of the prompts. Raises `RunError` for an engine that does not read what a cap
    changes."""
    measured_prompts = [Prompt(tuple(p), index=k, seed=k) for k, p in enumerate(prompts[:MEASURED_ON])]
    axis = torch.stack([space.axis_at(layer) for layer in cap.layers])
    steps, tokens = torch.zeros(len(cap.layers)), 0
    sampling = Sampling(max_new_tokens=MEASURED_ON)
    for r in engine.respond(measured_prompts, sampling, read=cap.layers, interventions=(cap,), before=True):
        if r.activation is not None and r.before is not None and r.tokens:
            # Every step of a floor points the same way, up the axis: the means' difference is the mean of the lengths.
            steps += r.tokens * ((r.activation - r.before).float().cpu() * axis).sum(-1)
            tokens += r.tokens
    if not tokens:
        raise RunError("the engine does not read what a cap changes, so that it has no control")
    return (steps / tokens).clamp(min=0).tolist()
