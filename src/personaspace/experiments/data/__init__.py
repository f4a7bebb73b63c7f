"""Texts that experiments come with, one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from personaspace.errors import CatalogError

FOLDER = Path(__file__).parent


def lines(name: str | Path) -> list[dict[str, Any]]:
    """The objects of a file, one a line: of the package's by its name, or of a user's by its path. Raises `CatalogError` with
    file and line."""
    path = FOLDER / name
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise CatalogError(f"{path}: cannot be read: {e}") from None
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as e:
                raise CatalogError(f"{path}:{number}: not JSON: {e.msg} at column {e.colno}") from None
            if not isinstance(row, dict):
                raise CatalogError(f"{path}:{number}: expected a JSON object, found {line.strip()[:40]}")
            found.append(row)
    return found
