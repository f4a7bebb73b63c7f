"""The spaces that are compared: read where they are, and mapped where a model is named in a space's place."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from personaspace.catalog import Catalog
from personaspace.engines import Engine, load_engine
from personaspace.errors import ModelError, UsageError
from personaspace.experiments.compare.names import is_model
from personaspace.mapping.mapper import Mapper
from personaspace.mapping.options import MapOptions, named
from personaspace.space import PersonaSpace
from personaspace.watcher import Watcher

Source = PersonaSpace | str | Path


def spaces_of(
    sources: Mapping[str, Source],
    out: str | Path | None,
    catalog: Catalog,
    options: MapOptions,
    load: Callable[[str], Engine] | None = None,
    watcher: Watcher | None = None,
) -> dict[str, PersonaSpace]:
    """The spaces by their names. A model is mapped before its first word into a folder of its own in `out`, or gone on with
    there; all that are mapped have the same prompts, with the first one's name where a prompt names the model. load: loads a
    model by its name. Raises `UsageError`, and what a map raises."""
    catalog = catalog.select("all", options.resolved(None, catalog).prompts.questions(catalog))
    spaces: dict[str, PersonaSpace] = {}
    first_model = next((str(s) for s in sources.values() if not isinstance(s, PersonaSpace) and is_model(s)), None)
    if first_model is not None and out is None:
        raise UsageError(f"{first_model}: a model is mapped to be compared; give a folder for that (out=…)")
    for name, source in sources.items():
        if isinstance(source, PersonaSpace):
            spaces[name] = source
        elif not is_model(source):
            spaces[name] = PersonaSpace.load(source)
        else:
            assert first_model is not None
            assert out is not None
            try:
                engine = load(str(source)) if load else load_engine("transformers", str(source))
            except ModelError as e:
                raise UsageError(f"{source}: neither a space nor a model that can be loaded: {e}") from None
            folder = Path(out) / re.sub(r"[^\w.-]+", "-", name).strip("-.")
            spaces[name] = Mapper(engine, named(catalog, first_model), folder, options, watcher).map(None)
    return spaces
