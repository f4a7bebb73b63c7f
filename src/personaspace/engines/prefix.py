"""The shared prefixes of sequences; it knows nothing of what they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def shared_prefix_length(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many tokens, or characters, the shared prefix of two sequences has."""
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def unshared_length(sequences: Iterable[Any]) -> int:
    """How many tokens, or characters, sequences have together where what neighbours in their order share counts once."""
    in_order = sorted(sequences)
    pairs = zip([[], *in_order[:-1]], in_order, strict=True)
    return sum(len(sequence) - shared_prefix_length(before, sequence) for before, sequence in pairs)
