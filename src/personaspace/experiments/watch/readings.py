"""Reads a model or a variant of it before the first word, all on the same prompts, and makes the directions to look along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from personaspace.catalog import DEFAULT, Catalog, Trait
from personaspace.engines import Engine
from personaspace.engines.prompts import Prompt, assign
from personaspace.errors import UsageError
from personaspace.mapping.traits import chosen_traits, read_traits
from personaspace.space import PersonaSpace
from personaspace.space.directions import AXIS, ROLE, TRAIT
from personaspace.watcher import Watcher

Floats = NDArray[np.float64]

PROMPTS = 120
"""The default's prompts unless told otherwise, each another question."""

FEWEST = 8
"""Fewer of the default's prompts say nothing of how they spread."""

PROMPTS_A_ROLE = 4


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
    """What was read of one model at the space's layer. default: `[prompts, hidden]`; roles: `[prompts, hidden]`, of all roles,
    in the prompts' order; texts: the first prompt's token ids, by which another template shows."""

    default: Floats
    roles: Floats
    texts: tuple[int, ...]


def read_model(engine: Engine, prompts: Sequence[Prompt], layer: int, watcher: Watcher) -> ModelReading:
    """Reads the prompts. Raises `ActivationError` where NaN or Inf is read."""
    by_prompt: dict[tuple[str, int], Tensor] = {}
    for count, response in enumerate(engine.onsets(prompts, read=[layer]), 1):
        assert response.activation is not None, "onsets are read at layers"
        by_prompt[response.prompt.role, response.prompt.index] = response.activation[0].double().cpu()
        watcher.progress(count, len(prompts))
    default = [by_prompt[p.role, p.index] for p in prompts if p.role == DEFAULT]
    roles = [by_prompt[p.role, p.index] for p in prompts if p.role != DEFAULT]
    texts = tuple(engine.chat.prompt_ids(prompts[0].messages))
    return ModelReading(torch.stack(default).numpy(), torch.stack(roles).numpy(), texts)
