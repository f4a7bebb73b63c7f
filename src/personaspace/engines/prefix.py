"""Beginnings that two sequences share; it knows nothing of what they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def common(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many tokens, or characters, two sequences begin with in common."""
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
