"""Sets spaces of several models, or versions of one, side by side: do they order the same roles in the same way?"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from personaspace.errors import UsageError
from personaspace.report import tables
from personaspace.space import PersonaSpace
from personaspace.stats.correlation import pearson, spearman
from personaspace.stats.forecast import KNOWN
from personaspace.stats.intervals import Estimate, bootstrap

FEWEST = 5
"""Roles that two spaces must share: fewer say nothing of agreement."""
DIMENSIONS = 3
"""Components on which maps are aligned."""
MOVED = 12
"""Roles that moved most, as many as are named."""
NAMED = 5
"""Of these, as many as stand in a notebook's table."""
SHUFFLES = 200
LEAST_REPEATABLE = 0.2
"""Places of which less than that is more than error say nothing once it is taken out."""


@dataclass(frozen=True)
class Pair:
    """Two spaces, over the roles that both have.

    pc1, axis: Pearson's correlation of the roles' places on the first component and on the axis, with 95% intervals over
    roles; ranking: Spearman's on the axis; ends: the share of the first's 10% at either end that is also the second's.
    ceiling: the correlation on the axis that two maps this noisy would show of the very same characters, from the roles'
    intervals; without_noise: the correlation on the axis with the errors of either taken out; None where a space has no
    intervals. moved: roles that moved most, as (role, place in the first, in the second), in
    standard deviations over the shared roles. axis_cosine: by layer, where both models have the same shape. disparity: the
    share of one map's variance that Procrustes leaves unexplained by the other, 0 to 1; shuffled: the same with roles' names
    shuffled, on average. readings, reliability: which reading either space is of, and its reliability of axis, order and map.
    """

    first: str
    second: str
    shared: int
    pc1: Estimate
    axis: Estimate
    ranking: Estimate
    ends: float
    ceiling: float | None
    without_noise: Estimate | None
    moved: list[tuple[str, float, float]]
    axis_cosine: list[float] | None
    disparity: float
    shuffled: float
    readings: tuple[str, str]
    reliability: tuple[dict[str, float | None], dict[str, float | None]]

    @property
    def unknown(self) -> list[str]:
        """Those of the two whose order is not known: how far they agree on it is not known then, either."""
        both = zip((self.first, self.second), self.reliability, strict=True)
        return [name for name, r in both if r["order"] is not None and r["order"] < KNOWN]

    def _repr_html_(self) -> str:
        """A small table; the roles that moved only where both orders are known."""
        rows = [["places on the axis", f"{self.axis}"], ["PC1 loadings", f"{self.pc1}"]]
        if self.ceiling is not None:
            rows.insert(1, ["at most, for maps this noisy of the same characters", f"{self.ceiling:.2f}"])
        if self.without_noise is not None:
            rows.insert(2, ["with the noise of both taken out", f"{self.without_noise}"])
        moved = ", ".join(f"{role} {b - a:+.1f}" for role, a, b in self.moved[:NAMED])
        note = f"Moved most, in standard deviations: {moved}."
        if self.unknown:
            note = f"The order in {' and '.join(self.unknown)} is not known, and so not who moved."
        return tables.table(
            f"{self.first} and {self.second}: {self.shared} roles", ["correlation of", "95%"], rows, [note]
        )


@dataclass(frozen=True)
class Places:
    """Where a space's roles lie: names; on the axis `[roles]`; on the first components `[roles, k]`, PC1 up is Assistant."""

    roles: list[str]
    on_axis: np.ndarray
    on_components: np.ndarray

    @classmethod
    def of(cls, space: PersonaSpace) -> Places:
        vectors, _ = space.centred()
        components = space.components_at()[0][:DIMENSIONS]
        return cls(
            space.roles,
            (vectors @ space.axis_at()).numpy().astype(float),
            (vectors @ components.T).numpy().astype(float),
        )

    def at(self, roles: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The places of these roles, in their order."""
        index = {r: k for k, r in enumerate(self.roles)}
        rows = [index[r] for r in roles]
        return self.on_axis[rows], self.on_components[rows]


def compare(spaces: Sequence[tuple[str, PersonaSpace]], seed: int = 0) -> list[Pair]:
    """Every pair of the spaces, each at its own layer. Raises `UsageError` where two share fewer than five roles, or where
    there are not two spaces."""
    if len(spaces) < 2:
        raise UsageError("compare needs two spaces at least")
    return [_pair(a, b, seed) for a, b in itertools.combinations(spaces, 2)]


def shared_roles(a: Places, b: Places, names: tuple[str, str]) -> list[str]:
    """The roles of both, in the first's order. Raises `UsageError` where they are too few."""
    second_roles = set(b.roles)
    shared = [r for r in a.roles if r in second_roles]
    if len(shared) < FEWEST:
        raise UsageError(
            f"{names[0]} and {names[1]} share {len(shared)} roles; {FEWEST} at least are needed to compare them"
        )
    return shared


def _pair(a: tuple[str, PersonaSpace], b: tuple[str, PersonaSpace], seed: int) -> Pair:
    (first, space), (second, second_space) = a, b
    here, second_places = Places.of(space), Places.of(second_space)
    roles = shared_roles(here, second_places, (first, second))
    (x, at_x), (y, at_y) = here.at(roles), second_places.at(roles)
    zx, zy = standardised(x), standardised(y)
    moved = np.argsort(-np.abs(zx - zy))[:MOVED]
    n, a_order, b_order = max(1, len(x) // 10), np.argsort(x), np.argsort(y)
    same = [len(set(a_order[tenth]) & set(b_order[tenth])) for tenth in (slice(n), slice(-n, None))]
    repeats = [r for s in (space, second_space) if (r := repeatability(s, roles)) is not None]
    axes = (space.tensors["axis"], second_space.tensors["axis"])
    reliability = (space.worth()["reliability"], second_space.worth()["reliability"])
    # Taken out of an order that is not known, noise leaves figures of no meaning, correlations beyond 1 among them.
    known = all(r["order"] is None or r["order"] >= KNOWN for r in reliability)
    disparity, shuffled = agreement(at_x, at_y, seed)
    return Pair(
        first=first,
        second=second,
        shared=len(roles),
        pc1=correlation(roles, at_x[:, 0], at_y[:, 0], pearson, seed),
        axis=correlation(roles, x, y, pearson, seed),
        ranking=correlation(roles, x, y, spearman, seed),
        ends=sum(same) / (2 * n),
        ceiling=(repeats[0] * repeats[1]) ** 0.5 if len(repeats) == 2 else None,
        without_noise=without_noise(roles, (x, y), (space, second_space), seed) if known else None,
        moved=[(roles[k], float(zx[k]), float(zy[k])) for k in moved],
        axis_cosine=torch.cosine_similarity(*axes, dim=-1).tolist() if axes[0].shape == axes[1].shape else None,
        disparity=disparity,
        shuffled=shuffled,
        readings=(space.reading, second_space.reading),
        reliability=reliability,
    )


def correlation(
    roles: Sequence[str], x: np.ndarray, y: np.ndarray, of: Callable[[np.ndarray, np.ndarray], float], seed: int = 0
) -> Estimate:
    """A correlation over roles, with its interval by drawing roles."""
    return bootstrap(list(roles), lambda draw: of(x[draw], y[draw]), seed, draws=1000)


def standardised(x: np.ndarray) -> np.ndarray:
    """Less the mean, in standard deviations."""
    return np.asarray((x - x.mean(0)) / np.maximum(x.std(0), 1e-12))


def repeatability(space: PersonaSpace, roles: Sequence[str]) -> float | None:
    """The share of the variance of these roles' places on the axis that is not error; None where the space does not know it, or
    where it is too small to be told from nothing."""
    variance = _error_variance(space, roles)
    if variance is None:
        return None
    rows = [space.roles.index(r) for r in roles]
    share = _repeatable((space.centred()[0] @ space.axis_at())[rows].double().numpy(), variance)
    return share if share >= LEAST_REPEATABLE else None


def _error_variance(space: PersonaSpace, roles: Sequence[str]) -> np.ndarray | None:
    """Squared standard errors of roles' places on the axis, from their 95% intervals, `[roles]`. In spaces whose intervals are
    not yet pooled over roles, a bootstrap with random weights over n questions has (n − 1)/(n + 1) of the variance, which is
    made good where counts are known."""
    if not space.knows_role_intervals:
        return None
    rows = [space.roles.index(r) for r in roles]
    low, high = space.tensors["role_interval"][rows].double().T
    if low.isnan().any():
        return None
    error = ((high - low) / (2 * 1.96)) ** 2
    if space.knows_counts and space.meta.get("role_interval") != "pooled":
        n = space.tensors["counts"][rows].double()
        error = error * (n + 1) / (n - 1).clamp(min=1)
    return np.asarray(error.numpy())


def _repeatable(places: np.ndarray, error_variance: np.ndarray) -> float:
    """One minus the mean variance of errors over that of places."""
    return max(0.0, 1 - float(error_variance.mean()) / max(float(places.var()), 1e-30))


def without_noise(
    roles: Sequence[str], places: tuple[np.ndarray, np.ndarray], spaces: tuple[PersonaSpace, PersonaSpace], seed: int
) -> Estimate | None:
    """Pearson's correlation of roles' places on the axis, the errors of either taken out (Spearman's correction for
    attenuation); its interval by drawing roles. None where a space does not know its errors, or where most of its places are
    error. Errors that both share, as from the same prompts, stay in it."""
    errors = [e for space in spaces if (e := _error_variance(space, roles)) is not None]
    if len(errors) < 2:
        return None
    if min(_repeatable(x, e) for x, e in zip(places, errors, strict=True)) < LEAST_REPEATABLE:
        return None

    def corrected(draw: np.ndarray) -> float:
        repeatable = [max(_repeatable(x[draw], e[draw]), LEAST_REPEATABLE) for x, e in zip(places, errors, strict=True)]
        return pearson(places[0][draw], places[1][draw]) / float(np.sqrt(repeatable[0] * repeatable[1]))

    return bootstrap(list(roles), corrected, seed, draws=1000)


def aligned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Procrustes: both maps `[roles, k]` centred and scaled, the second turned onto the first, and what is left."""
    from scipy.spatial import procrustes

    a, b, disparity = procrustes(x, y)
    return a, b, float(disparity)


def agreement(x: np.ndarray, y: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The disparity of two maps, and its mean where the second's roles are shuffled."""
    rng = np.random.default_rng(seed)
    by_chance = [aligned(x, rng.permutation(y))[2] for _ in range(SHUFFLES)]
    return aligned(x, y)[2], float(np.mean(by_chance))
