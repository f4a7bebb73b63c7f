"""Texts that experiments come with, one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from personaspace.errors import CatalogError

FOLDER = Path(__file__).parent
Row = TypeVar("Row", bound=BaseModel)


def lines(name: str | Path) -> list[dict[str, Any]]:
    """The objects of a file, one a line: of the package's by its name, or of a user's by its path. Raises `CatalogError` with
    file and line."""
    return [row for _, row in _numbered(name)]


def records(name: str | Path, kind: type[Row]) -> list[Row]:
    """The same as objects of a pydantic kind. Raises `CatalogError` with file and line where one is not of that kind."""
    found = []
    for number, row in _numbered(name):
        try:
            found.append(kind.model_validate(row))
        except ValidationError as e:
            first = e.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise CatalogError(f"{FOLDER / name}:{number}: {where}: {first['msg'].lower()}") from None
    return found


def _numbered(name: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    path = FOLDER / name
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise CatalogError(f"{path}: cannot be read: {e}") from None
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as e:
                raise CatalogError(f"{path}:{number}: not JSON: {e.msg} at column {e.colno}") from None
            if not isinstance(row, dict):
                raise CatalogError(f"{path}:{number}: expected a JSON object, found {line.strip()[:40]}")
            yield number, row
