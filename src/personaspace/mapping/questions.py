"""Which part of a catalogue a map asks."""

from __future__ import annotations

from pathlib import Path

from personaspace.catalog import EARLIER, Catalog, earlier, load_catalog
from personaspace.errors import PersonaSpaceError
from personaspace.mapping.options import MapOptions, named
from personaspace.runs import Run


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
