"""When a device has no memory left: how that is told apart from other errors, and what is freed before less is tried."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from personaspace.errors import OutOfMemory

_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed", "bad_alloc")

LEAST_TOKENS = 64
"""Tokens of one pass under which less would not help."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the machine has no memory left, whatever backend raised it."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


def too_large(model: str, work: str) -> OutOfMemory:
    """The error that says of what there is no smaller part to try."""
    return OutOfMemory(
        f"{model}: out of memory with {work}; a shorter conversation, shorter replies (max_new_tokens), a smaller dtype, "
        "another device or several (device=auto) take less"
    )


@contextmanager
def in_one_piece(model: str, work: str) -> Iterator[None]:
    """Around what cannot be done in smaller parts. Raises `OutOfMemory` where there is no memory for it."""
    try:
        yield
    except (MemoryError, RuntimeError) as e:
        if not is_out_of_memory(e):
            raise
        error = too_large(model, work)
    else:
        return
    free_memory()  # once the traceback, which holds the tensors, is gone
    raise error


def free_memory() -> None:
    """Gives back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
