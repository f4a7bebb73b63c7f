"""The two readings of a model, and how a space holds both: it knows tensors and metadata, and nothing of what they mean.

`prompt` is the residual stream at the last token of the rendered prompt, before anything is generated; `reply` is the study's,
the mean over the reply's tokens. A space is of one of them; the other's tensors lie beside its own under its name
(`reply.axis`), and what its metadata say otherwise, under `other`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

PROMPT, REPLY = "prompt", "reply"
READINGS = (PROMPT, REPLY)

OF_REPLIES = (
    *("residual_norm", "quantiles_default", "quantiles_roles", "default_moments"),
    *("reply_mean", "reply_factor", "reply_rest"),
)
"""Tensors that are always of replies, projected on the axis that the space's own reading found: what holding goes by."""

Meta = dict[str, Any]


def joined(main: tuple[Meta, Mapping[str, Tensor]], second: tuple[Meta, Mapping[str, Tensor]]) -> tuple[Meta, Meta]:
    """Metadata and tensors of a space of two readings."""
    meta, tensors = main
    reading = second[0]["reading"]
    differing = {k: v for k, v in second[0].items() if meta.get(k) != v}
    return {**meta, "other": {reading: differing}}, {
        **tensors,
        **{f"{reading}.{name}": t for name, t in second[1].items()},
    }


def part(meta: Meta, tensors: Mapping[str, Tensor], reading: str) -> tuple[Meta, dict[str, Tensor]]:
    """What such a space holds of its other reading. Raises `KeyError` where it has none of that name."""
    shared = {k: v for k, v in meta.items() if k not in ("other", "caps", "calibration")}
    start = f"{reading}."
    reading_tensors = {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}
    return {**shared, **meta["other"][reading]}, reading_tensors
