"""One call that maps a model: what the command line's `map` does, for Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from personaspace.catalog import EARLIER, Catalog, earlier, load_catalog
from personaspace.engines import Engine, load_engine
from personaspace.engines.prompts import Sampling
from personaspace.errors import PersonaSpaceError, UsageError
from personaspace.judges import make_judge
from personaspace.mapping.mapper import MapOptions, Mapper, named
from personaspace.mapping.stages import Watcher
from personaspace.runs import Run
from personaspace.space import PersonaSpace

M = TypeVar("M", bound=BaseModel)


def map(
    model: str | Engine,
    out: str | Path,
    *,
    read: str = "both",
    roles: str | None = None,
    questions: int | None = None,
    prompts_per_role: int | None = None,
    default_prompts: int | None = None,
    per_role: int | None = None,
    default_responses: int | None = None,
    complete: bool | None = None,
    max_new_tokens: int | None = None,
    judge: str = "rules",
    catalog: str | Path | None = None,
    watcher: Watcher | None = None,
    **options: Any,
) -> PersonaSpace:
    """Maps a model into a run's folder and returns its space; the same call goes on where an earlier one stopped.

    model: `smollm2`, a Hub id, a folder, a GGUF file, or an engine; the rest as `personaspace map --help` says.
    Raises `PersonaSpaceError`.
    """
    engine = load_engine("transformers", model) if isinstance(model, str) else model
    map_options = options_of(
        read=read,
        design=_known(per_role=per_role, default_responses=default_responses, complete=complete),
        prompts=_known(per_role=prompts_per_role, default_responses=default_prompts),
        sampling=_known(max_new_tokens=max_new_tokens),
        **options,
    )
    chosen = catalog_of(out, map_options, catalog, roles, questions)
    return Mapper(engine, chosen, out, map_options, watcher).map(make_judge(judge, engine=engine))


def catalog_of(
    out: str | Path,
    options: MapOptions,
    folder: str | Path | None,
    roles: str | None = None,
    questions: int | None = None,
) -> Catalog:
    """The part of a catalogue that a map asks: what is not given is as in the run that is there, or all roles and as many
    questions as what is read of them bears. A run that was begun on the texts of an earlier version goes on with those."""
    catalog, run = load_catalog(folder), Run(out)
    if not run.exists:
        chosen = catalog.select(roles or "all", questions)
        resolved = options.resolved(None, chosen)
        design = resolved.design if options.read == "reply" else resolved.prompts
        return chosen if questions else chosen.select("all", design.questions(chosen))
    begun_with = run.manifest()["config"]["catalog"]
    role_names, n = ",".join(begun_with["roles"]), questions or begun_with["questions"]
    candidates = [catalog, *(load_catalog(EARLIER / name) for name in earlier() if folder is None)]
    for candidate in candidates:
        try:
            chosen = candidate.select(roles or role_names, n)
        except PersonaSpaceError:
            continue
        model = run.manifest()["config"]["model"]["id"]
        if named(chosen, model).fingerprint == begun_with["fingerprint"]:
            return chosen
    return catalog.select(roles or "all", n)


def _known(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def options_of(**values: Any) -> MapOptions:
    """A map's options from plain values. Raises `UsageError` that names the first one that makes no sense."""
    return _made(MapOptions, values)


def sampling_of(**values: Any) -> Sampling:
    """A sampling from plain values. Raises `UsageError` that names the first one that makes no sense."""
    return _made(Sampling, values)


def _made(kind: type[M], values: dict[str, Any]) -> M:
    try:
        return kind(**values)
    except ValidationError as e:
        first = e.errors()[0]
        name = str(first["loc"][-1]).replace("_", "-")
        raise UsageError(f"--{name} {first['input']}: {first['msg']}") from None
