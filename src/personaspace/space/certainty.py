"""How sure a space is of what it shows, from its tensors and metadata; it estimates nothing, and a space that lacks them is
simply silent about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from personaspace.stats.forecast import KNOWN, NAMES, TARGET, forecast, spearman_brown

CORRECTED = (
    "axis_pc1_cosine_corrected",
    "components_for_70pct_corrected",
    "spectrum_corrected",
    "default_on_pc1_corrected",
    "axis_share",
    "effective_dimension",
    "null",
    "corrected_interval",
)
"""Figures that `corrected.py` makes, and that stand in the metadata under `corrected`."""


def figures(meta: Mapping[str, Any], tensors: Mapping[str, Tensor], layer: int) -> dict[str, Any]:
    """What `summary` says of certainty; None for what the space does not know.

    reliability: of axis, order and map at the layer, the whole's; below 0.7 order and neighbours are not known. forecast: how
    many times the data would give 0.9, how many responses that is in all, and how many seconds more where the map was made.
    noise_share: how much of the roles' squared distances is noise.
    """
    reliability = {name: _whole(tensors, name, "split_half", layer) for name in NAMES}
    by_text = {name: _whole(tensors, name, "split_half_by_instruction", layer) for name in NAMES}
    n, spent = meta.get("n_responses"), meta.get("seconds", {}).get("responses")
    corrected = meta.get("corrected") or {}
    return {
        "reading": meta.get("reading", "reply"),
        "reliability": reliability,
        "reliability_interval": {**dict.fromkeys(NAMES), **meta.get("reliability_interval", {})},
        "reliability_by_instruction": by_text if any(v is not None for v in by_text.values()) else None,
        "forecast": {name: _forecast(value, n, spent) for name, value in reliability.items() if value is not None},
        "order_known": _known(tensors, "order", reliability["order"]),
        "neighbours_known": _known(tensors, "map", reliability["map"]),
        "noise_share": None if reliability["map"] is None else 1 - reliability["map"],
        **{name: corrected.get(name) for name in CORRECTED},
    }


def by_layer(tensors: Mapping[str, Tensor], split: str = "split_half") -> dict[str, list[float | None] | None]:
    """The three reliabilities of the whole, each `[layers]`; None for one that the tensors lack, and where it is undefined."""
    return {name: _layers(tensors, name, split) for name in NAMES}


def _layers(tensors: Mapping[str, Tensor], figure: str, split: str) -> list[float | None] | None:
    name = f"{figure}_{split}"
    if name not in tensors:
        return None
    # The axis' halves are as large as each other; those of roles that were asked little are not.
    uneven = figure != "axis" and f"{split}_factor" in tensors
    factor = tensors[f"{split}_factor"].double().numpy() if uneven else 2.0
    values = spearman_brown(tensors[name].double().numpy(), factor)
    return [None if np.isnan(value) else float(value) for value in values]


def _known(tensors: Mapping[str, Tensor], figure: str, reliability: float | None) -> bool | None:
    """None for a space that never looked; False, too, where halves of what it has share too few roles to tell."""
    return (reliability or 0.0) >= KNOWN if f"{figure}_split_half" in tensors else None


def _whole(tensors: Mapping[str, Tensor], figure: str, split: str, layer: int) -> float | None:
    values = _layers(tensors, figure, split)
    return None if values is None else values[layer]


def _forecast(reliability: float, responses: int | None, spent: float | None) -> dict[str, Any]:
    times = forecast(reliability)
    return {
        "target": TARGET,
        "times": times,
        "responses": None if times is None or responses is None else int(np.ceil(times * responses)),
        "seconds": None if times is None or spent is None else max(times - 1, 0.0) * spent,
    }


@dataclass(frozen=True)
class Alike:
    """Roles' cosines with each other, `[roles, roles]`, −∞ with themselves: shrunk by κ = τ²/(τ² + error²), where τ² is what
    the cosines vary by beyond their errors; half: of their 95% intervals; clear: which stand out from noise. Without errors,
    cosines are as they are, and nothing is clear."""

    cosine: NDArray[np.float64]
    half: NDArray[np.float64]
    clear: NDArray[np.bool_]

    @classmethod
    def of(cls, centred: Tensor, error: Tensor | None) -> Alike:
        """From role vectors less their mean, `[roles, hidden]`, and their cosines' standard errors, `[roles]`."""
        vectors = centred.double().numpy()
        units = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
        cosine = units @ units.T
        off = ~np.eye(len(cosine), dtype=bool)
        half, clear = np.zeros_like(cosine), np.zeros_like(off)
        if error is not None and not error.isnan().any():
            variance = error.double().numpy() ** 2
            variance = (variance[:, None] + variance[None]) / 2
            signal = max(float(cosine[off].var() - variance[off].mean()), 0.0)
            shrink = signal / (signal + variance) if signal else np.zeros_like(cosine)
            beyond = NormalDist().inv_cdf(1 - 0.05 / max(len(cosine) - 1, 2))
            clear = off & (shrink > 0) & (cosine > beyond * np.sqrt(variance))
            cosine, half = cosine * shrink, 1.96 * np.sqrt(shrink * variance)
        return cls(np.where(off, cosine, -np.inf), half, clear)
