"""What can be done to the residual stream: add, ablate, cap, set, mirror. Frozen dataclasses, and their arithmetic on a tensor.

It knows nothing of models: `residual` applies them to one.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal, Self

import torch
from torch import Tensor

from personaspace.errors import UsageError

Where = Literal["all", "generated", "answer"]
"""Which tokens: all of them, the prompt's too; those that were generated; or of those the answer's, without its thoughts."""
WHERE: tuple[Where, ...] = ("all", "generated", "answer")


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
class _AtLayers(_Intervention):
    """What acts along one direction, or along one a layer, at several layers."""

    vector: Tensor = field(repr=False)
    layers: tuple[int, ...]

    def _check(self) -> None:
        name = type(self).__name__
        object.__setattr__(self, "layers", tuple(self.layers))
        _check_layers(name, self.layers)
        _check_vector(name, self.vector, 2 if self.vector.dim() == 2 else 1)
        if self.vector.dim() == 2 and len(self.vector) != len(self.layers):
            raise UsageError(f"{name}: {len(self.vector)} vectors for {len(self.layers)} layers")

    def _set_by_layer(self, name: str) -> None:
        """Has a field hold a number a layer, also where it was one number for all."""
        bound, owner = getattr(self, name), type(self).__name__
        each = tuple(bound) if isinstance(bound, Sequence) else (bound,) * len(self.layers)
        if len(each) != len(self.layers):
            raise UsageError(f"{owner}: {len(each)} values of {name} for {len(self.layers)} layers")
        _check_numbers(f"{owner}: {name}", each)
        object.__setattr__(self, name, tuple(float(x) for x in each))

    @cached_property
    def _units(self) -> dict[int, Tensor]:
        vectors = self.vector.float().expand(len(self.layers), -1)
        return dict(zip(self.layers, vectors / vectors.norm(dim=-1, keepdim=True), strict=True))

    def unit_at(self, layer: int) -> Tensor:
        """The direction at a layer `[hidden]`, of unit length."""
        return self._units[layer]

    def _number_at(self, name: str, layer: int) -> float:
        value: float = getattr(self, name)[self.layers.index(layer)]
        return value

    def layers_touched(self) -> tuple[int, ...]:
        return self.layers

    def below(self, layer: int) -> Self | None:
        """The same at those of its layers alone that lie under another; None where there are none."""
        rows = [k for k, own in enumerate(self.layers) if own < layer]
        numbers = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("vector", "where")}
        cut = {name: tuple(v[k] for k in rows) for name, v in numbers.items() if isinstance(v, tuple)}
        vector = self.vector[rows] if self.vector.dim() == 2 else self.vector
        return replace(self, vector=vector, **cut) if rows else None

    def _plain(self, kind: str, *names: str) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in ("layers", *names)}
        return {
            "kind": kind,
            "vector": self.vector.tolist(),
            **{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()},
        }


@dataclass(frozen=True, eq=False)
class Cap(_AtLayers):
    """Activation capping: h ← h − v·min(⟨h, v⟩ − τ, 0) at each layer (the paper's section on activation capping).

    vector: `[hidden]`, or one a layer `[layers, hidden]`; floor, ceiling: numbers, or one a layer; None does not hold that
    side. Only activations whose projection is under the floor (over the ceiling) are changed. Raises `UsageError`.
    """

    floor: float | tuple[float, ...] | None = None
    ceiling: float | tuple[float, ...] | None = None
    where: Where = "all"

    def __post_init__(self) -> None:
        self._check()
        _check_where(self.where)
        if self.floor is None and self.ceiling is None:
            raise UsageError("Cap: neither a floor nor a ceiling is given")
        for name in ("floor", "ceiling"):
            if getattr(self, name) is not None:
                self._set_by_layer(name)
        for layer in self.layers:
            _, low, high = self.at(layer)
            if low > high:
                raise UsageError(f"Cap: at layer {layer} the floor {low:g} is above the ceiling {high:g}")

    def at(self, layer: int) -> tuple[Tensor, float, float]:
        """At a layer: the direction `[hidden]`, of unit length, with the least and the greatest projection allowed."""
        low = -math.inf if self.floor is None else self._number_at("floor", layer)
        high = math.inf if self.ceiling is None else self._number_at("ceiling", layer)
        return self.unit_at(layer), low, high

    def apply(self, hidden: Tensor, layer: int) -> Tensor:
        unit, floor, ceiling = self.at(layer)
        unit = unit.to(hidden.device)
        wide = hidden.float()
        on = wide @ unit
        # Nothing is added where the projection is inside, so that such an activation is unchanged bit for bit.
        clamped = torch.addcmul(wide, (on.clamp(floor, ceiling) - on)[..., None], unit)
        return clamped if hidden.dtype == torch.float32 else _rounded(clamped, hidden, unit, floor, ceiling)

    def to_dict(self) -> dict[str, Any]:
        return self._plain("cap", "floor", "ceiling", "where")


@dataclass(frozen=True, eq=False)
class SetTo(_AtLayers):
    """Sets the projection instead of adding to it: h ← h + (τ − ⟨h, v⟩)·v at each layer, v of unit length.

    vector: `[hidden]`, or one a layer `[layers, hidden]`; target: τ, a number, or one a layer. Whatever the projection was,
    afterwards it is τ; what lies across the direction stays. Raises `UsageError`.
    """

    target: float | tuple[float, ...]
    where: Where = "all"

    def __post_init__(self) -> None:
        self._check()
        _check_where(self.where)
        self._set_by_layer("target")

    def target_at(self, layer: int) -> float:
        """What the projection becomes at a layer."""
        return self._number_at("target", layer)

    def apply(self, hidden: Tensor, layer: int) -> Tensor:
        unit, target = self.unit_at(layer).to(hidden.device), self.target_at(layer)
        wide = hidden.float()
        return torch.addcmul(wide, (target - wide @ unit)[..., None], unit).to(hidden.dtype)

    def to_dict(self) -> dict[str, Any]:
        return self._plain("set-to", "target", "where")


@dataclass(frozen=True, eq=False)
class Mirror(_AtLayers):
    """Mirrors what is under a floor to as far above it: h ← h − 2·v·min(⟨h, v⟩ − τ, 0) at each layer, v of unit length.

    vector: `[hidden]`, or one a layer `[layers, hidden]`; floor: τ, a number, or one a layer. A projection p becomes
    max(p, 2τ − p): no two tokens that differed under the floor become alike, as they do under a cap. Raises `UsageError`.
    """

    floor: float | tuple[float, ...]
    where: Where = "all"

    def __post_init__(self) -> None:
        self._check()
        _check_where(self.where)
        self._set_by_layer("floor")

    def floor_at(self, layer: int) -> float:
        """What projections at a layer are mirrored about."""
        return self._number_at("floor", layer)

    def apply(self, hidden: Tensor, layer: int) -> Tensor:
        unit, floor = self.unit_at(layer).to(hidden.device), self.floor_at(layer)
        wide = hidden.float()
        under = (wide @ unit - floor).clamp(max=0)
        # As with a cap, nothing is added above the floor.
        return torch.addcmul(wide, -2 * under[..., None], unit).to(hidden.dtype)

    def to_dict(self) -> dict[str, Any]:
        return self._plain("mirror", "floor", "where")


@dataclass(frozen=True, eq=False)
class Decaying(_Intervention):
    """An intervention that weakens as a reply goes on: h ← h + 2^(−n/half_life)·(f(h) − h), f what `of` does.

    n: how many of the tokens that it acts on stand before this one in the reply: the first gets all of it, the one after
    `half_life` tokens half. `of` must be for generated tokens or the answer's; a prompt has no beginning to decay from. Raises
    `UsageError`.
    """

    of: Add | Ablate | Cap | SetTo | Mirror
    half_life: float

    def __post_init__(self) -> None:
        _check_numbers("Decaying: half_life", [self.half_life])
        if self.half_life <= 0:
            raise UsageError(f"Decaying: half_life is {self.half_life:g}: expected more than 0 tokens")
        if self.of.where == "all":
            raise UsageError("Decaying: what decays acts on generated tokens: where=generated, or answer")

    @property
    def vector(self) -> Tensor:
        """That of what decays."""
        return self.of.vector

    @property
    def where(self) -> Where:
        """That of what decays."""
        return self.of.where

    def layers_touched(self) -> tuple[int, ...]:
        return self.of.layers_touched()

    def apply(self, hidden: Tensor, layer: int) -> Tensor:
        """What it does at full strength, to a first token; `weakened` has the rest."""
        return self.of.apply(hidden, layer)

    def strength(self, places: Tensor) -> Tensor:
        """How much of it a token gets, from 1 at the first on; places: each n."""
        return 0.5 ** (places.float() / self.half_life)

    def weakened(self, hidden: Tensor, applied: Tensor, places: Tensor) -> Tensor:
        """What is left of it. hidden, applied: the residual stream before and after `apply`, `[…, hidden]`; places: each n."""
        strength = self.strength(places)[..., None]
        return torch.lerp(hidden.float(), applied.float(), strength).to(hidden.dtype)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "decaying", "of": self.of.to_dict(), "half_life": self.half_life}


Intervention = Add | Ablate | Cap | SetTo | Mirror | Decaying


def from_dict(values: Mapping[str, Any]) -> Intervention:
    """The intervention that `to_dict` wrote. Raises `UsageError` for anything else."""
    kinds: dict[str, Any] = {
        "add": Add,
        "ablate": Ablate,
        "cap": Cap,
        "set-to": SetTo,
        "mirror": Mirror,
        "decaying": Decaying,
    }
    rest = dict(values)
    kind = rest.pop("kind", None)
    if kind not in kinds:
        raise UsageError(f"intervention of kind {kind!r}: expected one of {', '.join(kinds)}")
    try:
        if kind == "decaying":
            return Decaying(**{**rest, "of": from_dict(rest["of"])})
        intervention: Intervention = kinds[kind](**{**rest, "vector": torch.tensor(rest["vector"])})
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise UsageError(f"intervention of kind {kind}: {e}") from None
    return intervention


def _rounded(exact: Tensor, hidden: Tensor, unit: Tensor, floor: float, ceiling: float) -> Tensor:
    """`exact` in the dtype of `hidden`. Where rounding to nearest leaves the range by more than a rounding of the whole
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
    if where not in WHERE:
        raise UsageError(f"where={where!r}: expected {', '.join(WHERE[:-1])} or {WHERE[-1]}")
