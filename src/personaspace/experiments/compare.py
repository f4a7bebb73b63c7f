"""Sets spaces of several models, or versions of one, side by side: do they order the same roles in the same way?"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from personaspace import saying
from personaspace.errors import UsageError
from personaspace.experiments.drawing import COLOURS, axis
from personaspace.experiments.statistics import Estimate, bootstrap
from personaspace.reliability import KNOWN
from personaspace.report.figures import SOFT, Block, Figure, write_figures
from personaspace.space import PersonaSpace

FEWEST = 5
"""Roles that two spaces must share: fewer say nothing of agreement."""
DIMENSIONS = 3
"""Components on which maps are aligned."""
MOVED = 12
"""Roles that moved most, as many as are named."""
SHUFFLES = 200


@dataclass(frozen=True)
class Pair:
    """Two spaces, over the roles that both have.

    pc1, axis: Pearson's correlation of the roles' places on the first component and on the axis, with 95% intervals over
    roles; ranking: Spearman's on the axis; ends: the share of the first's 10% at either end that is also the second's.
    ceiling: the correlation on the axis that two maps this noisy would show of the very same characters, from the roles'
    intervals; None where a space has none. moved: roles that moved most, as (role, place in the first, in the second), in
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
    there = set(b.roles)
    found = [r for r in a.roles if r in there]
    if len(found) < FEWEST:
        raise UsageError(
            f"{names[0]} and {names[1]} share {len(found)} roles; {FEWEST} at least are needed to compare them"
        )
    return found


def _pair(a: tuple[str, PersonaSpace], b: tuple[str, PersonaSpace], seed: int) -> Pair:
    (first, space), (second, other) = a, b
    here, there = Places.of(space), Places.of(other)
    roles = shared_roles(here, there, (first, second))
    (x, at_x), (y, at_y) = here.at(roles), there.at(roles)
    zx, zy = standardised(x), standardised(y)
    order = np.argsort(-np.abs(zx - zy))[:MOVED]
    disparity, shuffled = agreement(at_x, at_y, seed)
    return Pair(
        first,
        second,
        len(roles),
        correlation(roles, at_x[:, 0], at_y[:, 0], pearson, seed),
        correlation(roles, x, y, pearson, seed),
        correlation(roles, x, y, spearman, seed),
        _ends(x, y),
        _ceiling(repeatability(space, roles), repeatability(other, roles)),
        [(roles[k], float(zx[k]), float(zy[k])) for k in order],
        _axis_cosine(space, other),
        disparity,
        shuffled,
        (space.reading, other.reading),
        (space.worth()["reliability"], other.worth()["reliability"]),
    )


def correlation(
    roles: Sequence[str], x: np.ndarray, y: np.ndarray, of: Callable[[np.ndarray, np.ndarray], float], seed: int = 0
) -> Estimate:
    """A correlation over roles, with its interval by drawing roles."""
    return bootstrap(list(roles), lambda at: of(x[at], y[at]), seed, draws=1000)


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's correlation; NaN where one of the two does not vary."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation."""
    from scipy.stats import rankdata

    return pearson(rankdata(x), rankdata(y))


def standardised(x: np.ndarray) -> np.ndarray:
    """Less the mean, in standard deviations."""
    return np.asarray((x - x.mean(0)) / np.maximum(x.std(0), 1e-12))


def repeatability(space: PersonaSpace, roles: Sequence[str]) -> float | None:
    """The share of the variance of these roles' places on the axis that is not error: one minus the mean squared standard
    error, from their 95% intervals, over the variance. In spaces whose intervals are not yet pooled over roles, a bootstrap
    with random weights over n questions has (n − 1)/(n + 1) of the variance, which is made good where counts are known."""
    if "role_interval" not in space.tensors:
        return None
    rows = [space.roles.index(r) for r in roles]
    low, high = space.tensors["role_interval"][rows].double().T
    error = ((high - low) / (2 * 1.96)) ** 2
    if "counts" in space.tensors and space.meta.get("role_interval") != "pooled":
        n = space.tensors["counts"][rows].double()
        error = error * (n + 1) / (n - 1).clamp(min=1)
    return max(
        0.0, 1 - float(error.mean()) / float((space.centred()[0] @ space.axis_at())[rows].double().var(correction=0))
    )


def _ceiling(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else (a * b) ** 0.5


def _ends(x: np.ndarray, y: np.ndarray) -> float:
    n = max(1, len(x) // 10)
    a, b = np.argsort(x), np.argsort(y)
    same = len(set(a[:n]) & set(b[:n])) + len(set(a[-n:]) & set(b[-n:]))
    return same / (2 * n)


def aligned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Procrustes: both maps `[roles, k]` centred and scaled, the second turned onto the first, and what is left."""
    from scipy.spatial import procrustes

    a, b, left = procrustes(x, y)
    return a, b, float(left)


def agreement(x: np.ndarray, y: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The disparity of two maps, and its mean where the second's roles are shuffled."""
    rng = np.random.default_rng(seed)
    by_chance = [aligned(x, rng.permutation(y))[2] for _ in range(SHUFFLES)]
    return aligned(x, y)[2], float(np.mean(by_chance))


def _axis_cosine(a: PersonaSpace, b: PersonaSpace) -> list[float] | None:
    x, y = a.tensors["axis"], b.tensors["axis"]
    return torch.cosine_similarity(x, y, dim=-1).tolist() if x.shape == y.shape else None


# -- for people ----------------------------------------------------------------------------------------------------------


def headline(pairs: Sequence[Pair]) -> str:
    """What was found, beside the published figure."""
    lowest = min(pairs, key=lambda p: p.pc1.value)
    told = f"correlation of the roles' PC1 loadings {lowest.pc1} between {lowest.first} and {lowest.second}"
    if len(pairs) > 1:
        told = f"the lowest {told}"
    # The ceiling is that of places on the axis, and says nothing of loadings on PC1.
    most = (
        ""
        if lowest.ceiling is None
        else f", at most {lowest.ceiling:.2f} for two maps this noisy of the same characters"
    )
    return (
        f"{told[0].upper()}{told[1:]}. The study: above 0.92 between any two of its three models. "
        f"These two on the axis: {lowest.axis}{most}." + (f" {doubt}" if (doubt := doubts(pairs)) else "")
    )


def doubts(pairs: Sequence[Pair]) -> str:
    """Which orders are not known, and what follows; empty where all are."""
    names = list(dict.fromkeys(name for p in pairs for name in p.unknown))
    if not names:
        return ""
    return (
        f"The order of the roles in {' and '.join(names)} is not known (reliability under {KNOWN}): neither the ranking nor "
        "which roles moved says anything there."
    )


def write_comparison(path: str | Path, spaces: Sequence[tuple[str, PersonaSpace]], pairs: Sequence[Pair]) -> Path:
    """Draws the comparison as one HTML page, and returns its path."""
    names = [name for name, _ in spaces]
    layers = [f"{n} at {s.layer} of {s.tensors['axis'].shape[0]}, from {saying.noun(s.reading)}" for n, s in spaces]
    lead = f"Each at its own layer: {'; '.join(layers)}."
    blocks = [_sure(spaces), *(_map(spaces, names[0], other, space) for other, space in spaces[1:])]
    if cosines := _cosines(pairs):
        blocks.append(cosines)
    blocks += [_table(pairs), *(_moved(p) for p in pairs)]
    first = pairs[0]
    key = [
        Figure(
            "PC1 loadings",
            f"{first.pc1.value:.2f}",
            f"95%: {first.pc1.low:.2f} to {first.pc1.high:.2f}; the study: > 0.92",
        ),
        Figure(
            "places on the axis",
            f"{first.axis.value:.2f}",
            f"95%: {first.axis.low:.2f} to {first.axis.high:.2f}"
            + (f"; {first.ceiling:.2f} is the most that maps this noisy would show" if first.ceiling else ""),
        ),
        Figure("the ranking", f"{first.ranking.value:.2f}", "Spearman's rank correlation"),
        Figure("the same ends", f"{100 * first.ends:.0f}%", "of the first tenth and the last"),
    ]
    if first.unknown:
        note = f"the order in {' and '.join(first.unknown)} is not known"
        key[2:] = [Figure(figure.name, "not known", note) for figure in key[2:]]
    title = f"{names[0]} beside {' and '.join(names[1:])}"
    return write_figures(path, title, lead, blocks, said=headline(pairs), key=key)


def _sure(spaces: Sequence[tuple[str, PersonaSpace]]) -> Block:
    rows = []
    for name, space in spaces:
        for worth in (space.of(reading).worth() for reading in space.readings):
            three = saying.reliabilities(worth)
            values = [f"{r.shown}{', not known' if r.known is False else ''}" for r in three]
            # Axis and order are told by their figures; the map's is a share of noise.
            words = [f"{r.meaning if r.name == 'map' else ''} {r.takes}".strip() for r in three]
            told = " ".join(f"{r.name.capitalize()}: {text}" for r, text in zip(three, words, strict=True) if text)
            rows.append([name, worth["reading"], str(worth["layer"]), *values, told])
    return Block(
        "How sure is each map?",
        f"{saying.INTRODUCTION} {saying.SOURCE}",
        head=["space", "read from", "layer", "axis", "order", "map", "in words"],
        rows=rows,
    )


def _map(spaces: Sequence[tuple[str, PersonaSpace]], first: str, second: str, other: PersonaSpace) -> Block:
    here, there = Places.of(spaces[0][1]), Places.of(other)
    roles = shared_roles(here, there, (first, second))
    x, y, left = aligned(here.at(roles)[1], there.at(roles)[1])
    far = np.linalg.norm(x[:, :2] - y[:, :2], axis=1)
    named = set(np.argsort(-far)[:MOVED].tolist())
    between: dict[str, list[Any]] = {"x": [], "y": []}
    for a, b in zip(x, y, strict=True):
        between["x"] += [a[0], b[0], None]
        between["y"] += [a[1], b[1], None]
    lines = {"type": "scatter", "mode": "lines", **between, "line": {"color": SOFT, "width": 0.6}, "hoverinfo": "skip"}
    data: list[dict[str, Any]] = [{**lines, "showlegend": False, "opacity": 0.5}]
    for at, name, colour in ((x, first, COLOURS[0]), (y, second, COLOURS[1])):
        data.append(
            {
                "type": "scatter",
                "mode": "markers+text" if at is y else "markers",
                "name": name,
                "x": at[:, 0].tolist(),
                "y": at[:, 1].tolist(),
                "text": [r if at is y and k in named else "" for k, r in enumerate(roles)],
                "textposition": "top center",
                "hovertext": [f"{r}, {name}" for r in roles],
                "hoverinfo": "text",
                "marker": {"color": colour, "size": 7, "opacity": 0.8},
            }
        )
    layout = {
        "xaxis": axis("PC1 of the first, up is Assistant"),
        "yaxis": axis("PC2 of the first"),
        "hovermode": "closest",
    }
    text = (
        f"The map of {second} turned onto that of {first} over {DIMENSIONS} components (Procrustes); "
        f"{100 * (1 - left):.0f}% of its variance is explained. Lines join a role's two places; the {len(named)} that lie "
        "furthest apart are named."
    )
    return Block(f"{second} on the map of {first}", text, {"data": data, "layout": layout}, 620)


def _cosines(pairs: Sequence[Pair]) -> Block | None:
    data = [
        {
            "type": "scatter",
            "name": f"{p.first} and {p.second}",
            "y": p.axis_cosine,
            "line": {"color": COLOURS[k % len(COLOURS)]},
        }
        for k, p in enumerate(pairs)
        if p.axis_cosine
    ]
    layout = {"xaxis": axis("layer"), "yaxis": axis("cosine of the axes", range=[-1, 1])}
    text = "Only of models of the same shape: elsewhere a cosine means nothing."
    return Block("Do the axes point the same way?", text, {"data": data, "layout": layout}) if data else None


def _table(pairs: Sequence[Pair]) -> Block:
    head = [
        "pair",
        "shared roles",
        "PC1 loadings",
        "on the axis",
        "at most",
        "ranking",
        "same ends",
        "map left unexplained",
        "shuffled",
    ]
    rows = [
        [
            f"{p.first} / {p.second}",
            str(p.shared),
            str(p.pc1),
            str(p.axis),
            "" if p.ceiling is None else f"{p.ceiling:.2f}",
            str(p.ranking),
            f"{100 * p.ends:.0f}%",
            f"{p.disparity:.2f}",
            f"{p.shuffled:.2f}",
        ]
        for p in pairs
    ]
    return Block(
        "In figures",
        "Correlations with 95% intervals over roles; at most: what two maps this noisy of the same characters would show.",
        head=head,
        rows=rows,
    )


def _moved(p: Pair) -> Block:
    if p.unknown:
        return Block(f"Moved most: {p.first} to {p.second}", doubts([p]))
    rows = [[role, f"{a:+.2f}", f"{b:+.2f}", f"{b - a:+.2f}"] for role, a, b in p.moved]
    text = (
        "Places on the axis, in standard deviations over the roles that both have; positive is towards the Assistant."
    )
    return Block(f"Moved most: {p.first} to {p.second}", text, head=["role", p.first, p.second, "moved"], rows=rows)
