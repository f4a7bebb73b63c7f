"""A space from somebody else's files, and one written for somebody else's program."""

from __future__ import annotations

from pathlib import Path

from personaspace.errors import UsageError
from personaspace.formats.gguf import write_control_vector
from personaspace.formats.reference import read_reference, write_reference
from personaspace.space import PersonaSpace

FORMATS = ("gguf", "reference", "compact")


def import_space(source: str | Path, model: str = "unknown", layer: int | None = None) -> PersonaSpace:
    """A space from a folder of the study's files, as published or as its pipeline writes them; layer None is the middle one.
    Raises `SpaceError`."""
    return read_reference(source, model, layer)


def export_space(
    space: PersonaSpace, format: str, path: str | Path, direction: str = "axis", scale: float = 1.0
) -> None:
    """Writes a space as a control vector for llama.cpp (`gguf`: the axis or a role, times the scale), as a folder of files
    laid out like the study's (`reference`), or as a space with role vectors at its layer alone (`compact`).

    Raises `UsageError` for another format, `SpaceError`.
    """
    if format not in FORMATS:
        raise UsageError(f"export format {format!r}: expected one of {', '.join(FORMATS)}")
    if format == "gguf":
        write_control_vector(path, space, direction, scale)
    elif format == "compact":
        space.compact().save(path)
    else:
        write_reference(space, path)
