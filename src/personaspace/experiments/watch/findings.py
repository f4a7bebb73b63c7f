"""What has moved of a variant's default: along the axis, traits and roles, against noise, an effect size and a null."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from personaspace.experiments.watch.readings import Floats, Looks, ModelReading
from personaspace.report import tables
from personaspace.space.directions import AXIS, ROLE, TRAIT
from personaspace.stats.intervals import LEVEL, Estimate, holm

EFFECT = 0.5
"""How far the default must have moved to count unless told otherwise, in standard deviations of its prompts."""

KINDS = (AXIS, TRAIT, ROLE)
DIMENSIONS = 10
"""Components of the roles that stand for their space; on the first two a page shows where defaults lie."""
NAMED = 5


@dataclass(frozen=True)
class Look:
    """A change along one direction. shift: how far the default's mean has moved, in standard deviations of the base's default
    over prompts, with its 95% interval over the questions, paired; cosine: of the whole move with the direction, which says how
    much of it lies there; beyond: what a shift of this sign had to lie beyond, the effect size and what the null shows; p: that
    it lies no further, or that as much of a random move of its length would lie along the direction, Holm's over all looks;
    moved: p < 5%.
    """

    name: str
    shift: Estimate
    cosine: float
    beyond: float
    p: float
    moved: bool

    @property
    def plain_name(self) -> str:
        """Its name without its kind, as people read it."""
        return self.name.partition(":")[2].replace("_", " ") or self.name


@dataclass(frozen=True)
class Change:
    """A variant set against its base. looks: in the order of `Looks`; is_null: whether it was named as a neutral one, of which
    nothing is asked. length: of the move, in root mean squares of how far the base's default prompts lie from their mean;
    share: of its squared length, in the space of the roles' first components; contrast: how much is left of the
    distance on the axis between default and roles (1: all); place, base_place: the defaults' means on the first two
    of them, the mean role taken off. other_texts: whether its template makes other prompts of the same messages."""

    name: str
    looks: Sequence[Look]
    is_null: bool
    length: float
    share: float
    contrast: float
    place: tuple[float, float]
    base_place: tuple[float, float]
    other_texts: bool

    @property
    def axis(self) -> Look:
        """How the default has moved on the axis; positive is towards the Assistant."""
        return self.looks[0]

    def nearest(self, kind: str, least: int = 0) -> list[Look]:
        """The traits, or the roles, that it moved along, and where these are fewer, as many more as make `least`; those first
        on which most of the move lies. Roles are those that it moved towards; a trait's other end is one as well."""
        looks = [k for k in self.looks if k.name.startswith(f"{kind}:") and (kind != ROLE or k.cosine > 0)]
        looks.sort(key=lambda k: -abs(k.cosine))
        moved = [k for k in looks if k.moved]
        return moved + [k for k in looks if not k.moved][: max(0, least - len(moved))]

    @property
    def moved(self) -> bool:
        """Whether anything did."""
        return any(look.moved for look in self.looks)

    def _repr_html_(self) -> str:
        """A small table of what the move lies along."""
        looks = [self.axis, *self.nearest(TRAIT, NAMED)[:NAMED], *self.nearest(ROLE, NAMED)[:NAMED]]
        rows = [[k.name, f"{k.shift:+.2f}", f"{k.cosine:+.2f}", "yes" if k.moved else "no"] for k in looks]
        return tables.table(self.name, ["", "shift", "cosine", "counts"], rows, [])


def shifts(base: ModelReading, variant: ModelReading, looks: Looks) -> tuple[Floats, Floats]:
    """How far the default's mean has moved along each look, and that mean's error, paired by prompt: `[looks]` each, in
    standard deviations of the base's default over its prompts. Along a direction on which it does not spread, nothing."""
    spread = (base.default @ looks.units.T).std(0, ddof=1)
    moves = (variant.default - base.default) @ looks.units.T / np.where(spread > 0, spread, np.inf)
    return moves.mean(0), moves.std(0, ddof=1) / math.sqrt(len(moves))


def changes(
    base: ModelReading,
    variants: Mapping[str, ModelReading],
    nulls: Mapping[str, ModelReading],
    looks: Looks,
    components: Floats,
    centre: Floats,
    effect: float = EFFECT,
) -> list[Change]:
    """What has moved of each variant, the nulls after them. components: of the roles, `[k, hidden]`; centre: the
    mean role, `[hidden]`.

    A look counts where the shift lies beyond the effect size, added to what the nulls show (`null_edges`); and where more of
    the move lies along the direction than of a random move of the same length; both at 5% for all looks of all variants
    together (Holm). Raises `UsageError` where a variant replies to too few prompts.
    """
    pairs = {name: base.beside(reading, name) for name, reading in {**variants, **nulls}.items()}
    edges = np.zeros((2, len(looks.names)))
    if nulls:
        edges = null_edges(np.stack([shifts(*pairs[name], looks)[0] for name in nulls]), looks)
    beyond = edges + effect
    rows = {name: _row(*pair, looks, beyond) for name, pair in pairs.items()}
    tested = np.concatenate([rows[name][3] for name in variants]) if variants else np.zeros(0)
    corrected = holm(tested).reshape(len(variants), len(looks.names))
    from scipy.stats import t

    results = []
    for number, (name, (base, reading)) in enumerate(pairs.items()):
        reach = float(t.ppf((1 + LEVEL) / 2, len(base.default) - 1))
        size = math.sqrt(float(((base.default - base.default.mean(0)) ** 2).sum(1).mean()))
        shift, error, cosine, _ = rows[name]
        is_null = name in nulls
        ps = np.full(len(shift), math.nan) if is_null else corrected[number]
        move = reading.default.mean(0) - base.default.mean(0)
        length = float(np.linalg.norm(move))
        axis = looks.units[0]
        gap, base_gap = (float((r.default.mean(0) - r.roles.mean(0)) @ axis) for r in (reading, base))
        each = [
            Look(
                looks.names[k],
                Estimate(
                    float(shift[k]),
                    float(shift[k] - reach * error[k]),
                    float(shift[k] + reach * error[k]),
                    len(base.default),
                ),
                float(cosine[k]),
                float(beyond[int(shift[k] < 0), k]),
                float(ps[k]),
                bool(ps[k] < 1 - LEVEL),
            )
            for k in range(len(shift))
        ]
        results.append(
            Change(
                name,
                each,
                is_null,
                length / size if size else math.nan,
                float(((components @ move) ** 2).sum()) / length**2 if length else 0.0,
                gap / base_gap if base_gap else math.nan,
                _on(components, reading.default.mean(0) - centre),
                _on(components, base.default.mean(0) - centre),
                reading.texts != base.texts,
            )
        )
    return results


def null_edges(of_nulls: Floats, looks: Looks) -> Floats:
    """How far up and down each look the nulls reach, `[2, looks]`, of their shifts `[nulls, looks]`, in the same direction
    along that look: what neutral training does, it does along some directions and not along others.

    To that comes how far one null goes beyond all others along any look of its kind: another would
    go further beyond these in one case of nulls + 1 at most, for each kind. Nothing is added where there is one null alone.
    """
    both = np.maximum(np.stack([of_nulls, -of_nulls]), 0)
    edges: Floats = both.max(1)
    if len(of_nulls) > 1:
        for kind in KINDS:
            if places := looks.of_kind(kind):
                of_kind = both[:, :, places]
                without = [np.delete(of_kind, k, 1).max(1) for k in range(len(of_nulls))]
                edges[:, places] += max(float((of_kind[:, k] - rest).max()) for k, rest in enumerate(without))
    return edges


def _row(
    base: ModelReading, variant: ModelReading, looks: Looks, beyond: Floats
) -> tuple[Floats, Floats, Floats, Floats]:
    """Shifts, their errors, cosines of the move, and p's before they are corrected, `[looks]` each. beyond: up and down,
    `[2, looks]`."""
    from scipy.stats import t

    shift, error = shifts(base, variant, looks)
    move = variant.default.mean(0) - base.default.mean(0)
    length, freedom = float(np.linalg.norm(move)), looks.units.shape[1] - 1
    cosine = looks.units @ move / length if length else np.zeros(len(shift))
    with np.errstate(divide="ignore", invalid="ignore"):
        # Of a shift that lies just at the edge; both tails, so that without an effect size it is the plain paired t-test.
        edge = np.where(shift < 0, beyond[1], beyond[0])
        past, far = (np.abs(shift) - edge) / error, (np.abs(shift) + beyond.min(0)) / error
        of_noise = t.sf(past, len(base.default) - 1) + t.sf(far, len(base.default) - 1)
        # A random direction's cosine with a fixed one, of so many dimensions.
        along = np.abs(cosine) * np.sqrt(freedom / np.maximum(1 - cosine**2, 1e-12))
    of_noise = np.where(error > 0, of_noise, np.where(np.abs(shift) > edge, 0.0, 1.0))
    return shift, error, cosine, np.maximum(of_noise, 2 * t.sf(along, freedom))


def _on(components: Floats, point: Floats) -> tuple[float, float]:
    x, y = components[:2] @ point
    return float(x), float(y)
