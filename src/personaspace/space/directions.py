"""A space's named directions: the axis, roles, traits and vectors of one's own; what lies along them, and steering by them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from personaspace.errors import SpaceError
from personaspace.model.interventions import Add, Where
from personaspace.space.contents import SpaceContents

AXIS, ROLE, TRAIT, OWN = "axis", "role", "trait", "own"
KINDS = (ROLE, TRAIT, OWN)
"""A direction but the axis may be called by its kind and its name, as `trait:sarcastic`, or by its name alone."""


@dataclass(frozen=True)
class Direction:
    """What replies' means are projected on beside the axis. unit: `[hidden]`, of unit length, at the space's layer. mean and
    std: of the default's replies' projections on it, None where the space does not know how they spread."""

    name: str
    kind: str
    unit: Tensor = field(repr=False)
    mean: float | None = None
    std: float | None = None

    def read(self, activation: Tensor) -> Along:
        """Where a mean activation `[hidden]` lies along it."""
        projection = float(activation.float().cpu() @ self.unit)
        return Along(projection, None if self.mean is None or not self.std else (projection - self.mean) / self.std)


@dataclass(frozen=True)
class Along:
    """A mean on a direction. projection: nothing subtracted; shift: how far above the default's mean, in its standard
    deviations: positive is towards what the direction is named after; None where the space does not know them."""

    projection: float
    shift: float | None


@dataclass(frozen=True)
class SpaceDirections(SpaceContents):
    """A space's vectors at a layer, and its directions by name."""

    @property
    def traits(self) -> list[str]:
        """Names of traits, in the order of `trait_vectors`."""
        return list(self.meta.get("traits", []))

    @property
    def own(self) -> list[str]:
        """Names of vectors of one's own, in the order of `own_vectors`."""
        return list(self.meta.get("own", []))

    @property
    def directions(self) -> list[str]:
        """Every direction's name as `direction` takes it: `axis`, `role:…`, `trait:…`, `own:…`."""
        named = ((ROLE, self.roles), (TRAIT, self.traits), (OWN, self.own))
        return [AXIS, *(f"{kind}:{name}" for kind, names in named for name in names)]

    def axis_at(self, layer: int | None = None) -> Tensor:
        """The axis `[hidden]` as a unit vector; up is Assistant."""
        axis = self.tensors["axis"][self._layer(layer)]
        unit: Tensor = axis / axis.norm()
        return unit

    def role_vectors_at(self, layer: int | None = None) -> Tensor:
        """Role vectors `[roles, hidden]` at a layer. Raises `SpaceError` where the space does not hold them."""
        return self._stored_at("role_vectors", layer)

    def trait_vectors_at(self, layer: int | None = None) -> Tensor:
        """Trait vectors `[traits, hidden]` at a layer, each what brings the trait out less what suppresses it. Raises
        `SpaceError` where the space does not hold them."""
        return self._stored_at("trait_vectors", layer)

    def _stored_at(self, name: str, layer: int | None) -> Tensor:
        vectors, chosen_layer, available = self._tensor(name), self._layer(layer), self.meta.get("role_layers")
        # Compact spaces of before version 0.2 have traits at every layer.
        if available is None or (vectors.shape[1] != len(available) and vectors.shape[1] == len(self.tensors["axis"])):
            return vectors[:, chosen_layer]
        if chosen_layer not in available:
            raise SpaceError(
                f"layer {chosen_layer}: this compact space holds {name.replace('_', ' ')} at layer {available[0]} only; "
                "map the model"
            )
        return vectors[:, available.index(chosen_layer)]

    def centred(self, layer: int | None = None) -> tuple[Tensor, Tensor]:
        """Role vectors `[roles, hidden]` at a layer less their mean, and the mean `[hidden]`."""
        vectors = self.role_vectors_at(layer)
        mean = vectors.mean(0)
        return vectors - mean, mean

    def direction(self, name: str, layer: int | None = None) -> Tensor:
        """A direction `[hidden]`, of unit length, by its name: `axis`; a role, less the mean role; a trait; a vector of one's
        own. Where a role and a trait share a name, it is the role's; `trait:NAME` is the other. Raises `SpaceError`."""
        kind, plain_name = self.named(name)
        if kind == AXIS:
            return self.axis_at(layer)
        if kind == ROLE:
            vector = self.centred(layer)[0][self.roles.index(plain_name)]
        elif kind == TRAIT:
            vector = self.trait_vectors_at(layer)[self.traits.index(plain_name)]
        elif self._layer(layer) != self.layer:
            raise SpaceError(f"{name}: a vector of one's own lies at the space's layer, {self.layer}, alone")
        else:
            vector = self.tensors["own_vectors"][self.own.index(plain_name)]
        unit: Tensor = vector.float() / vector.float().norm()
        return unit

    def along(self, names: Sequence[str]) -> list[Direction]:
        """Directions at the space's layer by name, with how the default's replies lie on them. Raises `SpaceError`.

        >>> (reply,) = engine.respond(prompts[:1], sampling, read=[space.layer])
        >>> shifts = [d.read(reply.activation[0]).shift for d in space.along(["axis", "ghost"])]
        """
        directions = []
        for name in names:
            kind, plain_name = self.named(name)
            unit = self.direction(name)
            mean, std = self.moments_along(unit) or (None, None)
            if kind == AXIS and self.knows_default:
                mean, std = self.default_moments()
            directions.append(Direction(AXIS if kind == AXIS else f"{kind}:{plain_name}", kind, unit, mean, std))
        return directions

    def moments_along(self, unit: Tensor) -> tuple[float, float] | None:
        """Mean and standard deviation of the default's replies' projections on a unit vector `[hidden]` at the space's layer,
        from what the space keeps of their covariance; None where it keeps nothing."""
        if "reply_mean" not in self.tensors:
            return None
        factor, rest = self.tensors["reply_factor"].float(), float(self.tensors["reply_rest"])
        on_factor = factor @ unit
        # What the factor leaves out is spread evenly over the directions that it does not hold.
        outside = max(1.0 - float((torch.nn.functional.normalize(factor, dim=-1) @ unit).square().sum()), 0.0)
        variance = float(on_factor.square().sum()) + rest * outside
        return float(self.tensors["reply_mean"].float() @ unit), variance**0.5

    def with_own(self, vectors: Mapping[str, Tensor]) -> Self:
        """The same space with vectors of one's own, by name: each `[hidden]`, or `[layers, hidden]`, of which the space's
        layer's is taken. Raises `SpaceError` for another shape, a vector that is zero or not finite, or a name with a colon."""
        layers, hidden = self.tensors["axis"].shape
        by_name = dict(zip(self.own, self.tensors["own_vectors"], strict=True)) if self.own else {}
        for name, vector in vectors.items():
            if not name or ":" in name or name == AXIS:
                raise SpaceError(f"a vector named {name!r}: expected a name without a colon that is not 'axis'")
            if vector.shape not in ((hidden,), (layers, hidden)):
                raise SpaceError(
                    f"the vector {name} has the shape {list(vector.shape)}; expected [{hidden}], or [{layers}, {hidden}]"
                )
            at_layer = vector.float() if vector.dim() == 1 else vector[self.layer].float()
            if not bool(at_layer.isfinite().all()) or not bool(at_layer.any()):
                raise SpaceError(f"the vector {name} is zero, or has NaN or Inf in it; expected a direction")
            by_name[name] = at_layer
        meta = {**self.meta, "own": list(by_name)}
        return replace(self, meta=meta, tensors={**self.tensors, "own_vectors": torch.stack(list(by_name.values()))})

    def steer(self, alpha: float, direction: str = AXIS, layer: int | None = None, where: Where = "all") -> Add:
        """Steering along the axis (positive is towards the Assistant) or towards another direction, α in units of the layer's
        mean residual norm (the paper's section on steering). Raises `SpaceError`."""
        norm = float(self._tensor("residual_norm")[self._layer(layer)])
        return Add(self.direction(direction, layer), self._layer(layer), alpha, norm=norm, where=where)

    def named(self, name: str) -> tuple[str, str]:
        """A direction's kind (`axis`, `role`, `trait`, `own`) and its name in that kind. Raises `SpaceError`, with near
        names."""
        if name == AXIS:
            return AXIS, AXIS
        by_kind = {ROLE: self.roles, TRAIT: self.traits, OWN: self.own}
        kind, colon, plain_name = name.partition(":")
        candidates = [(kind, plain_name)] if colon and kind in KINDS else [(k, name) for k in KINDS]
        for candidate, wanted_name in candidates:
            if wanted_name in by_kind[candidate]:
                return candidate, wanted_name
        every = [n for k in dict(candidates) for n in by_kind[k]]
        close = difflib.get_close_matches(candidates[0][1], dict.fromkeys(every), 3)
        hint = f"; nearest: {', '.join(close)}" if close else ""
        if len(candidates) == 1 and not every:
            hint = f", which has no {kind} vectors" + (
                "; one that is mapped with traits has them" if kind == TRAIT else ""
            )
        counts = [f"{len(self.roles)} roles"] + [f"{len(by_kind[k])} {k} vectors" for k in (TRAIT, OWN) if by_kind[k]]
        kind_of_name = f"{kind} {plain_name!r}" if len(candidates) == 1 else f"role {name!r}"
        raise SpaceError(f"no {kind_of_name} in this space of {' and '.join(counts)}{hint}")
