"""Reads a model or a variant of it, all on the same prompts, before the first word or in short replies, and makes the
directions to look along."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from personaspace.catalog import DEFAULT, Catalog, Trait
from personaspace.engines import Engine
from personaspace.engines.prompts import Prompt, Sampling, assign
from personaspace.errors import UsageError
from personaspace.mapping.traits import chosen_traits, read_traits
from personaspace.space import PersonaSpace
from personaspace.space.directions import AXIS, ROLE, TRAIT
from personaspace.space.readings import PROMPT, REPLY
from personaspace.watcher import Watcher

Floats = NDArray[np.float64]

PROMPTS = 120
"""The default's prompts unless told otherwise, each another question."""

FEWEST = 8
"""Fewer of the default's prompts say nothing of how they spread."""

PROMPTS_A_ROLE = 4

REPLY_TOKENS = 24
"""Tokens of a reply that is read, at most: a voice shows in its first words."""


@dataclass(frozen=True)
class Looks:
    """Directions that a change is looked at along. names: `axis`, `trait:…`, `role:…`; units: `[looks, hidden]`, of unit
    length, the base's own at the space's layer."""

    names: tuple[str, ...]
    units: Floats

    def of_kind(self, kind: str) -> list[int]:
        """Places of those of a kind: `axis`, `trait` or `role`."""
        return [k for k, name in enumerate(self.names) if name.partition(":")[0] == kind]


def looks_of(space: PersonaSpace, traits: Mapping[str, Tensor]) -> Looks:
    """The axis, traits by their vectors `[hidden]`, and the space's roles, less the mean role."""
    named = {AXIS: space.axis_at()}
    named |= {f"{TRAIT}:{name}": vector for name, vector in traits.items()}
    named |= {f"{ROLE}:{name}": vector for name, vector in zip(space.roles, space.centred()[0], strict=True)}
    units = torch.nn.functional.normalize(torch.stack([vector.double() for vector in named.values()]), dim=-1)
    return Looks(tuple(named), units.numpy())


def traits_of(space: PersonaSpace, catalog: Catalog, selection: str | None) -> tuple[list[str], dict[int, Trait]]:
    """Names of the traits to look along, and those, by their places in the catalogue, that the space lacks. selection: `none`,
    or as `chosen_traits` has it; None: those that the space holds, or all where it holds none. Raises `UsageError`,
    `CatalogError`."""
    if selection == "none":
        return [], {}
    if selection is None and space.traits:
        return space.traits, {}
    chosen = chosen_traits(selection or "all", catalog)
    names = [trait.trait for trait in chosen.values()]
    return names, {place: trait for place, trait in chosen.items() if trait.trait not in space.traits}


def trait_vectors(
    engine: Engine,
    space: PersonaSpace,
    catalog: Catalog,
    selection: str | None,
    questions: int,
    seed: int,
    watcher: Watcher,
) -> dict[str, Tensor]:
    """Traits' vectors `[hidden]` at the space's layer: the space's own, and those that it lacks as the engine's model shows
    them under so many questions. Raises as `traits_of` does, and `UsageError`."""
    names, missing = traits_of(space, catalog, selection)
    vectors = dict(zip(space.traits, space.trait_vectors_at(), strict=True)) if space.traits else {}
    if missing:
        watcher.note(f"{len(missing)} traits are read of {engine.info.id}; a space mapped with traits has them")
        readings = read_traits(
            engine, missing, catalog, questions=questions, layers=[space.layer], seed=seed, watcher=watcher
        )
        vectors |= dict(zip(readings.names, readings.vectors()[:, 0], strict=True))
    return {name: vectors[name] for name in names}


def watched_prompts(catalog: Catalog, roles: str, prompts: int, seed: int) -> list[Prompt]:
    """The default's prompts, each another question, and some of roles. roles: as `Catalog.select` has it. Raises `UsageError`,
    `CatalogError`."""
    if not FEWEST <= prompts <= len(catalog.questions):
        raise UsageError(
            f"prompts={prompts}: expected {FEWEST} to {len(catalog.questions)}, the questions that the default can be asked"
        )
    chosen = catalog.select(roles)
    counts = {DEFAULT: prompts, **dict.fromkeys((role.role for role in chosen.roles), PROMPTS_A_ROLE)}
    return assign(chosen, [counts], seed)[0]


@dataclass(frozen=True)
class ModelReading:
    """What was read of one model at the space's layer. default: `[prompts, hidden]`, NaN where a reply has no token; roles:
    `[prompts, hidden]`, of all roles, in the prompts' order, those with a token; texts: the first prompt's token ids, by which
    another template shows."""

    default: Floats
    roles: Floats
    texts: tuple[int, ...]

    def beside(self, other: ModelReading, name: str = "the variant") -> tuple[ModelReading, ModelReading]:
        """This one's and another's, with the default's prompts to which both have said something. Raises `UsageError` where
        these are too few. name: of the other."""
        both = np.isfinite(np.concatenate([self.default, other.default], 1)).all(1)
        if both.sum() < FEWEST:
            raise UsageError(
                f"{name}: {both.sum()} of the default's {len(self.default)} prompts have a reply by it and by the base; "
                f"expected {FEWEST} at least"
            )
        return replace(self, default=self.default[both]), replace(other, default=other.default[both])


def read_model(
    engine: Engine, prompts: Sequence[Prompt], layer: int, watcher: Watcher, reading: str = PROMPT
) -> ModelReading:
    """Reads the prompts before the first word, or the beginnings of what is replied to them at temperature 0. Raises
    `ActivationError` where NaN or Inf is read."""
    by_prompt: dict[tuple[str, int], Tensor] = {}
    if reading == REPLY:
        responses = engine.respond(prompts, Sampling(temperature=0, max_new_tokens=REPLY_TOKENS), read=[layer])
    else:
        responses = engine.onsets(prompts, read=[layer])
    for count, response in enumerate(responses, 1):
        assert response.activation is not None, f"{reading}s are read at layers"
        mean = response.activation[0].double().cpu()
        is_empty = reading == REPLY and not response.token_ids
        by_prompt[response.prompt.role, response.prompt.index] = (
            mean.new_full(mean.shape, math.nan) if is_empty else mean
        )
        watcher.progress(count, len(prompts))
    default = [by_prompt[p.role, p.index] for p in prompts if p.role == DEFAULT]
    roles = [by_prompt[p.role, p.index] for p in prompts if p.role != DEFAULT]
    texts = tuple(engine.chat.prompt_ids(prompts[0].messages))
    of_roles = torch.stack(roles).numpy()
    return ModelReading(torch.stack(default).numpy(), of_roles[np.isfinite(of_roles).all(1)], texts)
