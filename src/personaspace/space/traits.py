"""What a space knows of traits: their vectors, how sure they are, and where they lie on the axis. It estimates nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from personaspace.space.contents import number_or_none
from personaspace.space.directions import SpaceDirections

FIGURES = {"trait_reliability": (), "trait_reliability_by_wording": (), "trait_cosine": (3,)}
"""Tensors of figures that stand beside `trait_vectors`, and what a trait has in each: `trait_cosine` is the cosine with the
axis, noise taken out, and its 95% interval. NaN for what is not known."""

S = TypeVar("S", bound=SpaceDirections)


def with_traits(
    space: S,
    names: Sequence[str],
    vectors: Tensor,
    figures: Mapping[str, Tensor],
    records: Mapping[str, Mapping[str, Any]],
) -> S:
    """The same space with further traits, in place of those of the same names. vectors: `[traits, layers, hidden]`, of which a
    compact space has its own layer's; figures: of `FIGURES`, `[traits, …]`; records: what its metadata say of each trait."""
    layers = space.meta.get("role_layers")
    stored = vectors.float() if layers is None else vectors.float()[:, layers]
    staying = [k for k, name in enumerate(space.traits) if name not in names]
    tensors, meta = dict(space.tensors), dict(space.meta)
    if space.traits:
        earlier = tensors["trait_vectors"]
        # Compact spaces of before version 0.2 have traits at every layer.
        stored = torch.cat([(earlier if earlier.shape[1] == stored.shape[1] else earlier[:, layers])[staying], stored])
    tensors["trait_vectors"] = stored
    for name, shape in FIGURES.items():
        before = tensors.get(name, torch.full((len(space.traits), *shape), torch.nan))[staying]
        tensors[name] = torch.cat([before, figures.get(name, torch.full((len(names), *shape), torch.nan)).float()])
    meta["traits"] = [space.traits[k] for k in staying] + list(names)
    earlier_records = space.meta.get("trait_records", {})
    meta["trait_records"] = {n: earlier_records[n] for n in meta["traits"] if n in earlier_records and n not in names}
    meta["trait_records"] |= {name: dict(records[name]) for name in names if name in records}
    return type(space)(meta, tensors)


def roles_along(space: SpaceDirections, trait: str) -> list[tuple[str, float]]:
    """Roles' projections on a trait's direction at the space's layer, the mean of roles taken off, the highest first. Raises
    `SpaceError`."""
    projections = space.centred()[0] @ space.direction(f"trait:{trait}")
    return [(space.roles[k], float(projections[k])) for k in projections.argsort(descending=True).tolist()]


def ranking(space: SpaceDirections) -> list[dict[str, Any]]:
    """The traits by their cosine with the axis as it is measured, the highest first; None for what the space does not know.
    cosine, interval: with the noise taken out, the latter over wordings or over questions alone (interval_over); clear: whether
    it can be told from 0, 5% for as many traits together as were read with it (read_with), itself among them."""
    if not space.traits:
        return []
    vectors = space.trait_vectors_at().float()
    measured = torch.cosine_similarity(vectors, space.axis_at()[None], dim=-1).tolist()
    figures = {name: space.tensors.get(name) for name in FIGURES}
    records = space.meta.get("trait_records", {})

    def figure(name: str, trait: int, *place: int) -> float | None:
        tensor = figures[name]
        return None if tensor is None else number_or_none(float(tensor[(trait, *place)]))

    rows = []
    for k, name in enumerate(space.traits):
        cosine, low, high = (figure("trait_cosine", k, place) for place in range(3))
        record = records.get(name, {})
        rows.append(
            {
                "name": name,
                "cosine": cosine,
                "interval": None if low is None or high is None else [low, high],
                "measured": measured[k],
                "clear": record.get("clear"),
                "interval_over": record.get("interval_over"),
                "read_with": record.get("of"),
                "reliability": figure("trait_reliability", k),
                "reliability_by_wording": figure("trait_reliability_by_wording", k),
                "description": record.get("description", ""),
                "from": record.get("from"),
            }
        )
    # By the plain cosine: with the noise taken out, the least reliable of all would stand at the ends.
    return sorted(rows, key=lambda row: -float(row["measured"]))
