"""Which engines there are, by name. A new one is a file with a subclass of `base.BaseEngine` that has
`load(model, *, device, dtype, rows, **options)`, and a line here."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from personaspace.errors import UsageError

if TYPE_CHECKING:
    from personaspace.engines.protocol import Engine


@dataclass(frozen=True)
class EngineEntry:
    """place: `module:Class`, imported when the engine is asked for. summary: of help texts. Its class' `load(model, **options)`
    gives the engine."""

    place: str
    summary: str


ENGINES = {
    "transformers": EngineEntry(
        "personaspace.engines.transformers.engine:TransformersEngine", "a CPU, a GPU or several"
    ),
    "vllm": EngineEntry("personaspace.engines.vllm.engine:VllmEngine", "inside vLLM, for throughput"),
    "ray": EngineEntry("personaspace.engines.ray:RayEngine", "many workers"),
}
DEFAULT_ENGINE = "transformers"
ENGINES_HELP = "; ".join(f"{name}: {entry.summary}" for name, entry in ENGINES.items()) + "."
"""Every engine in a help text's words."""


def load_engine(name: str, model: str, **options: Any) -> Engine:
    """The engine of that name with a model loaded, which may be all that docs/models.md lists; options are the engine's own.

    Raises `UsageError` for a name that is none, `ModelError`.

    >>> engine = load_engine("transformers", "smollm2", dtype="fp32")
    """
    if name not in ENGINES:
        near = difflib.get_close_matches(name, ENGINES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"engine={name}: expected one of {', '.join(ENGINES)}{hint}")
    module, _, attribute = ENGINES[name].place.partition(":")
    engine: Engine = getattr(import_module(module), attribute).load(model, **options)
    return engine
