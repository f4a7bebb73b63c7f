"""What can be done to the residual stream: add, ablate, cap. Frozen dataclasses, and their arithmetic on a tensor.

It knows nothing of models: `residual` applies them to one.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from personaspace.errors import UsageError

Where = Literal["all", "generated"]
"""Which tokens: all of them, the prompt's too, or those that were generated."""


@dataclass(frozen=True, eq=False)
class _Intervention:
    """What all have in common: two that say the same are equal, and have the same `key`."""

    def layers_touched(self) -> tuple[int, ...]:
        """The layers at which it acts."""
        raise NotImplementedError

    def apply(self, hidden: Tensor, layer: int) -> Tensor:
        """The residual stream `[…, hidden]` after it, at a layer that it touches; same shape and dtype."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` is the way back."""
        raise NotImplementedError

    @cached_property
    def key(self) -> str:
        """A digest of what it does. Keys and values computed under one key are never reused under another."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Intervention) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@dataclass(frozen=True, eq=False)
class Add(_Intervention):
    """Steering: h ← h + α·n·v/‖v‖ at one layer (the paper's section on steering).

    vector: `[hidden]`. relative: n is `norm`, the layer's mean residual norm, so that α is in its units; otherwise
    h ← h + α·v as it stands. `PersonaSpace.steer` fills the norm in. Raises `UsageError`.
    """

    vector: Tensor = field(repr=False)
    layer: int
    alpha: float
    relative: bool = True
    norm: float | None = None
    where: Where = "all"

    def __post_init__(self) -> None:
        _check_vector("Add", self.vector, 1)
        _check_layers("Add", (self.layer,))
        _check_numbers("Add: alpha", [self.alpha])
        _check_where(self.where)
        if self.relative:
            if self.norm is None:
                raise UsageError("Add: α relative to the residual norm needs norm=…; PersonaSpace.steer fills it in")
            _check_numbers("Add: norm", [self.norm])

    @cached_property
    def step(self) -> Tensor:
        """What is added, `[hidden]`."""
        vector: Tensor = self.vector.float()
        scale = self.alpha * (self.norm or 0) / float(vector.norm()) if self.relative else self.alpha
        return vector * scale

    def layers_touched(self) -> tuple[int, ...]:
        return (self.layer,)

    def apply(self, hidden: Tensor, layer: int) -> Tensor:
        return hidden + self.step.to(hidden)

    def to_dict(self) -> dict[str, Any]:
        plain = {k: getattr(self, k) for k in ("layer", "alpha", "relative", "norm", "where")}
        return {"kind": "add", "vector": self.vector.tolist(), **plain}


@dataclass(frozen=True, eq=False)
class Ablate(_Intervention):
    """Takes a direction out: h ← h − ⟨h, v⟩·v at one layer, v of unit length. vector: `[hidden]`. Raises `UsageError`."""

    vector: Tensor = field(repr=False)
    layer: int
    where: Where = "all"

    def __post_init__(self) -> None:
        _check_vector("Ablate", self.vector, 1)
        _check_layers("Ablate", (self.layer,))
        _check_where(self.where)

    @cached_property
    def unit(self) -> Tensor:
        """The direction `[hidden]`, of unit length."""
        vector = self.vector.float()
        unit: Tensor = vector / vector.norm()
        return unit

    def layers_touched(self) -> tuple[int, ...]:
        return (self.layer,)

    def apply(self, hidden: Tensor, layer: int) -> Tensor:
        unit = self.unit.to(hidden.device)
        wide = hidden.float()
        return (wide - (wide @ unit)[..., None] * unit).to(hidden.dtype)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "ablate", "vector": self.vector.tolist(), "layer": self.layer, "where": self.where}


@dataclass(frozen=True, eq=False)
class Cap(_Intervention):
    """Activation capping: h ← h − v·min(⟨h, v⟩ − τ, 0) at each layer (the paper's section on activation capping).

    vector: `[hidden]`, or one a layer `[layers, hidden]`; floor, ceiling: numbers, or one a layer; None does not hold that
    side. Only activations whose projection is under the floor (over the ceiling) are changed. Raises `UsageError`.
    """

    vector: Tensor = field(repr=False)
    layers: tuple[int, ...]
    floor: float | tuple[float, ...] | None = None
    ceiling: float | tuple[float, ...] | None = None
    where: Where = "all"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        _check_layers("Cap", self.layers)
        _check_vector("Cap", self.vector, 2 if self.vector.dim() == 2 else 1)
        if self.vector.dim() == 2 and len(self.vector) != len(self.layers):
            raise UsageError(f"Cap: {len(self.vector)} vectors for {len(self.layers)} layers")
        _check_where(self.where)
        if self.floor is None and self.ceiling is None:
            raise UsageError("Cap: neither a floor nor a ceiling is given")
        for name in ("floor", "ceiling"):
            bound = getattr(self, name)
            if bound is None:
                continue
            each = tuple(bound) if isinstance(bound, Sequence) else (bound,) * len(self.layers)
            if len(each) != len(self.layers):
                raise UsageError(f"Cap: {len(each)} values of {name} for {len(self.layers)} layers")
            _check_numbers(f"Cap: {name}", each)
            object.__setattr__(self, name, tuple(float(x) for x in each))
        if self.floor is not None and self.ceiling is not None:
            for layer, low, high in zip(self.layers, self._values("floor"), self._values("ceiling"), strict=True):
                if low > high:
                    raise UsageError(f"Cap: at layer {layer} the floor {low:g} is above the ceiling {high:g}")

    def _values(self, name: str) -> tuple[float, ...]:
        bounds: tuple[float, ...] = getattr(self, name)
        return bounds

    @cached_property
    def _at(self) -> dict[int, tuple[Tensor, float, float]]:
        vectors = self.vector.float().expand(len(self.layers), -1)
        units = vectors / vectors.norm(dim=-1, keepdim=True)
        floors = self._values("floor") if self.floor is not None else (-math.inf,) * len(self.layers)
        ceilings = self._values("ceiling") if self.ceiling is not None else (math.inf,) * len(self.layers)
        return dict(zip(self.layers, zip(units, floors, ceilings, strict=True), strict=True))

    def layers_touched(self) -> tuple[int, ...]:
        return self.layers

    def at(self, layer: int) -> tuple[Tensor, float, float]:
        """At a layer: the direction `[hidden]`, of unit length, with the least and the greatest projection allowed."""
        return self._at[layer]

    def apply(self, hidden: Tensor, layer: int) -> Tensor:
        unit, floor, ceiling = self._at[layer]
        unit = unit.to(hidden.device)
        wide = hidden.float()
        on = wide @ unit
        # Nothing is added where the projection is inside, so that such an activation is unchanged bit for bit.
        clamped = torch.addcmul(wide, (on.clamp(floor, ceiling) - on)[..., None], unit)
        return clamped if hidden.dtype == torch.float32 else _rounded(clamped, hidden, unit, floor, ceiling)

    def to_dict(self) -> dict[str, Any]:
        plain = {k: getattr(self, k) for k in ("layers", "floor", "ceiling", "where")}
        return {
            "kind": "cap",
            "vector": self.vector.tolist(),
            **{k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()},
        }


Intervention = Add | Ablate | Cap


def from_dict(values: Mapping[str, Any]) -> Intervention:
    """The intervention that `to_dict` wrote. Raises `UsageError` for anything else."""
    kinds: dict[str, type[Add] | type[Ablate] | type[Cap]] = {"add": Add, "ablate": Ablate, "cap": Cap}
    rest = dict(values)
    kind = rest.pop("kind", None)
    if kind not in kinds:
        raise UsageError(f"intervention of kind {kind!r}: expected one of {', '.join(kinds)}")
    try:
        return kinds[kind](**{**rest, "vector": torch.tensor(rest["vector"])})
    except (KeyError, TypeError, ValueError) as e:
        raise UsageError(f"intervention of kind {kind}: {e}") from None


def _rounded(exact: Tensor, hidden: Tensor, unit: Tensor, floor: float, ceiling: float) -> Tensor:
    """`held` in the dtype of `hidden`. Where rounding to nearest leaves the range by more than a rounding of the whole
    vector should, each number is rounded towards the range instead."""
    near = exact.to(hidden.dtype)
    on = near.float() @ unit
    allowed = 2.5e-4 * exact.norm(dim=-1)
    for outside, towards in ((floor - on > allowed, unit), (on - ceiling > allowed, -unit)):
        wrong = outside[..., None] & ((near.float() - exact) * towards < 0)
        end = (towards.sign() * math.inf).to(near.dtype).expand_as(near)
        near = torch.where(wrong, torch.nextafter(near, end), near)
    return near


def _check_vector(owner: str, vector: Tensor, dims: int) -> None:
    if vector.dim() != dims or not torch.isfinite(vector).all() or not (vector.float().norm(dim=-1) > 0).all():
        raise UsageError(f"{owner}: expected a finite vector that is not zero, found one of shape {list(vector.shape)}")


def _check_layers(owner: str, layers: Sequence[int]) -> None:
    if not layers or any(layer < 0 for layer in layers) or len(set(layers)) != len(layers):
        raise UsageError(f"{owner}: expected layers counted from 0, each once, found {list(layers)}")


def _check_numbers(owner: str, numbers: Sequence[float]) -> None:
    bad = [x for x in numbers if not math.isfinite(x)]
    if bad:
        raise UsageError(f"{owner} is {bad[0]}: expected a finite number")


def _check_where(where: str) -> None:
    if where not in ("all", "generated"):
        raise UsageError(f"where={where!r}: expected all or generated")
