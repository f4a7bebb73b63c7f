"""Watches a model change: reads a base and its variants, one after the other, and says what has moved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from personaspace.catalog import Catalog
from personaspace.engines import Engine, load_engine
from personaspace.errors import UsageError
from personaspace.experiments.compare.names import is_model
from personaspace.experiments.watch.findings import DIMENSIONS, EFFECT, Change, changes
from personaspace.experiments.watch.readings import (
    PROMPTS,
    Looks,
    ModelReading,
    looks_of,
    read_model,
    trait_vectors,
    traits_of,
    watched_prompts,
)
from personaspace.mapping.options import named
from personaspace.model.sources import resolve
from personaspace.space import PersonaSpace
from personaspace.space.readings import PROMPT, READINGS, REPLY
from personaspace.watcher import Overall, Watcher

ROLES = "24"
QUESTIONS = 2
"""Of a trait that the space lacks: a quarter of a map's, since they are read of the base each time."""

Variants = Mapping[str, str | Engine]


@dataclass(frozen=True)
class Watched:
    """What was looked at, and what has moved. changes: of the variants in their order, the nulls after them; looks: how many
    directions each was looked at along; prompts: of the default; reading: of these, `prompt` or `reply`; notes: what to keep in
    mind."""

    base: str
    changes: Sequence[Change]
    space: PersonaSpace
    looks: Looks
    prompts: int
    effect: float
    reading: str
    notes: Sequence[str]

    @property
    def variants(self) -> list[Change]:
        """Those that were asked about."""
        return [change for change in self.changes if not change.is_null]

    @property
    def nulls(self) -> list[Change]:
        """The neutral ones."""
        return [change for change in self.changes if change.is_null]


def space_of(base: str, space: PersonaSpace | str | Path | None) -> tuple[PersonaSpace, str]:
    """The base's space, and the base's name: a space or a run in the base's place stands for its model. Raises `UsageError`
    where there is none."""
    if isinstance(space, PersonaSpace):
        loaded = space
    elif space is not None:
        loaded = PersonaSpace.load(space)
    elif base == "smollm2" or not is_model(base):
        loaded = PersonaSpace.load(base)
    else:
        raise UsageError(
            f"{base}: watching needs the base's space (space=…): a run's folder or a file; "
            f"map it with read=prompt and traits=all, which takes minutes"
        )
    return loaded, base if is_model(base) else str(loaded.meta["model"]["id"])


def watch(
    base: str | Engine,
    space: PersonaSpace,
    variants: Variants,
    nulls: Variants,
    catalog: Catalog,
    *,
    roles: str = ROLES,
    traits: str | None = None,
    trait_questions: int = QUESTIONS,
    prompts: int = PROMPTS,
    effect: float = EFFECT,
    reading: str = PROMPT,
    seed: int = 0,
    load: Callable[[str], Engine] | None = None,
    watcher: Watcher | None = None,
) -> Watched:
    """Reads the base and each variant on the same prompts, one model in memory at a time, and sets them side by side; see
    `changes`. reading: before the first word, in seconds, or `reply`: of 24 tokens of each reply, which names better whom a
    variant has become. Raises `UsageError`, `CatalogError`, `ModelError`, `SpaceError` for a model of another shape."""
    if not variants:
        raise UsageError("watch: expected a base and one variant at least")
    if effect < 0:
        raise UsageError(f"effect={effect}: expected 0 or more, in standard deviations of the default")
    if reading not in READINGS:
        raise UsageError(f"read={reading}: expected {' or '.join(READINGS)}")
    if both := sorted(set(variants) & set(nulls)):
        raise UsageError(f"{both[0]}: it cannot be watched and be the null of that")
    for source in (base, *variants.values(), *nulls.values()):
        if isinstance(source, str) and not load:
            resolve(source)  # a name that was mistyped is told before any model is read
    base_name = base if isinstance(base, str) else base.info.id
    asked_catalog = named(catalog, base_name)
    work = watched_prompts(asked_catalog, roles, prompts, seed)
    models = 1 + len(variants) + len(nulls)
    of_traits = 2 * trait_questions * len(traits_of(space, asked_catalog, traits)[1])
    watcher = Overall(watcher or Watcher(), models * len(work) + of_traits)

    def loaded(source: str | Engine) -> Engine:
        if not isinstance(source, str):
            return source
        watcher.note(f"{source}:")
        return load(source) if load else load_engine("transformers", source, **space.thinking_options)

    notes = []
    engine = loaded(base)
    if warning := space.check_model(engine.info, space.span):
        notes.append(f"{base_name}: {warning}")
    if space.reading == REPLY and reading == PROMPT:
        notes.append(
            "the space was read from replies, and prompts are set on its axis; a map with read=prompt is of both"
        )
    vectors = trait_vectors(engine, space, asked_catalog, traits, trait_questions, seed, watcher)
    looks = looks_of(space, vectors)
    of_base = read_model(engine, work, space.layer, watcher, reading)
    readings: dict[str, ModelReading] = {}
    for name, source in {**variants, **nulls}.items():
        del engine  # one model in memory at a time
        engine = loaded(source)
        space.check_model(engine.info)
        readings[name] = read_model(engine, work, space.layer, watcher, reading)
        if silent := int(np.isnan([of_base.default, readings[name].default]).any((0, 2)).sum()):
            notes.append(
                f"{name}: {silent} of the default's prompts have no reply by it or by the base, and are left out"
            )
        if readings[name].texts != of_base.texts:
            notes.append(f"{name}: its template makes other prompts than the base's; a part of the move may be that")
    if len(nulls) == 1:
        notes.append("one neutral fine-tune says nothing of how far two of them differ; three or more do")
    if not nulls:
        notes.append(
            "no neutral fine-tune to set it beside (option `null`): any training moves a model, whatever it is trained on"
        )
    set_beside = changes(
        of_base,
        {name: readings[name] for name in variants},
        {name: readings[name] for name in nulls},
        looks,
        space.components_at()[0][:DIMENSIONS].double().numpy(),
        space.centre(reading=reading).double().numpy(),
        effect,
    )
    return Watched(base_name, set_beside, space, looks, prompts, effect, reading, notes)
