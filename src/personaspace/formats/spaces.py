"""A space from somebody else's files, and one written for somebody else's program."""

from __future__ import annotations

from pathlib import Path

from personaspace.errors import UsageError
from personaspace.formats.gguf import write_control_vector
from personaspace.formats.hub import fetch_reference
from personaspace.formats.reference import read_reference, write_reference
from personaspace.space import PersonaSpace

FORMATS = ("gguf", "reference", "compact")
"""What a space alone is written as; `formats.weights` writes its model's weights."""


def import_space(source: str | Path, model: str = "unknown", layer: int | None = None) -> PersonaSpace:
    """A space from a folder of the study's files, as published or as its pipeline writes them, here or on the Hub; layer None
    is the middle one. Its provenance says which commit it was fetched from. Raises `SpaceError`, and `UsageError` for an
    address of another kind.

    >>> space = import_space("hf://datasets/lu-christina/assistant-axis-vectors/qwen-3-32b", "Qwen/Qwen3-32B")
    >>> space.cap("capped").layers, unknown(space)
    """
    if not str(source).startswith("hf://"):
        return read_reference(source, model, layer)
    folder, commit = fetch_reference(str(source))
    space = read_reference(folder, model, layer)
    space.meta["provenance"] |= {"source": str(source), "commit": commit}
    return space


def unknown(space: PersonaSpace) -> list[str]:
    """What a space doesn't know, in words, each as what it is for: nothing for a space that was mapped and calibrated. Vectors
    alone, as they are published, don't tell it."""
    tests = {
        "drift (moments and quantiles of the default's replies)": space.knows_default,
        "alerts": space.calibrated,
        "reliabilities": space.knows_axis_reliability,
        "α of steering (the residual stream's norms)": space.can_steer,
    }
    return [name for name, is_known in tests.items() if not is_known]


def export_space(
    space: PersonaSpace, format: str, path: str | Path, direction: str = "axis", scale: float = 1.0
) -> None:
    """Writes a space as a control vector for llama.cpp (`gguf`: the axis or a role, times the scale), as a folder of files
    laid out like the study's (`reference`), or as a space with role vectors at its layer alone (`compact`).

    Raises `UsageError` for another format, `SpaceError`.
    """
    if format not in FORMATS:
        raise UsageError(f"export format {format!r}: expected one of {', '.join((*FORMATS, 'weights'))}")
    if format == "gguf":
        write_control_vector(path, space, direction, scale)
    elif format == "compact":
        space.compact().save(path)
    else:
        write_reference(space, path)
