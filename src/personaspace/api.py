"""One call that maps a model: what the command line's `map` does, for Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from personaspace.catalog import load_catalog
from personaspace.engines import Engine, load_engine
from personaspace.errors import UsageError
from personaspace.judge import make_judge
from personaspace.mapping import MapOptions, Mapper, Watcher
from personaspace.prompts import Sampling
from personaspace.space import PersonaSpace

M = TypeVar("M", bound=BaseModel)


def map(
    model: str | Engine,
    out: str | Path,
    *,
    roles: str = "all",
    questions: int | None = None,
    per_role: int = 4,
    default_responses: int | None = None,
    complete: bool = False,
    max_new_tokens: int = 512,
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
    design = {"per_role": per_role, "default_responses": default_responses, "complete": complete}
    wanted = options_of(design=design, sampling={"max_new_tokens": max_new_tokens}, **options)
    chosen = load_catalog(catalog).select(roles, questions)
    return Mapper(engine, chosen, out, wanted, watcher).map(make_judge(judge, engine=engine))


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
