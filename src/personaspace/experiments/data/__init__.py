"""Texts that experiments come with, one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from personaspace.catalog import read_records

FOLDER = Path(__file__).parent
Row = TypeVar("Row", bound=BaseModel)


def lines(name: str) -> list[dict[str, Any]]:
    """The objects of a file of the package's."""
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


def records(name: str | Path, kind: type[Row]) -> list[Row]:
    """The objects of a file as a pydantic kind: of the package's by its name, or of a user's by its path. Raises `CatalogError`
    with file and line."""
    return list(read_records(FOLDER / name, kind))
