"""The shared prefix of two sequences; it knows nothing of what they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def shared_prefix_length(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many tokens, or characters, the shared prefix of two sequences has."""
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
