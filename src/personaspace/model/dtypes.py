"""The formats of numbers that a model is loaded in, under every name that they go by; it loads no torch."""

from __future__ import annotations

from typing import NamedTuple

from personaspace.errors import UsageError


class DtypeNames(NamedTuple):
    """What PyTorch, and vLLM with it, calls a format, and what a safetensors file does."""

    torch: str
    safetensors: str


DTYPES = {
    "fp32": DtypeNames("float32", "F32"),
    "bf16": DtypeNames("bfloat16", "BF16"),
    "fp16": DtypeNames("float16", "F16"),
}
"""By the name that an option takes."""

DTYPES_HELP = f"{', '.join(list(DTYPES)[:-1])} or {list(DTYPES)[-1]}; fp32 on a CPU, bf16 on a GPU."
"""Every format in a help text's words."""


def torch_name(dtype: str) -> str:
    """PyTorch's name of the format that the option names. Raises `UsageError` for a name that is none.

    >>> torch_name("bf16")
    'bfloat16'
    """
    if dtype not in DTYPES:
        raise UsageError(f"dtype={dtype}: expected one of {', '.join(DTYPES)}")
    return DTYPES[dtype].torch
