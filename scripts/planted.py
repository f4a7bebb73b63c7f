"""Figures without noise against planted spaces whose spectrum and cosine are known: bias, and how often 95% intervals hold.

    python scripts/planted.py [--draws 50] [--hidden 120] [--roles 275] [--out table.md]

A draw: roles' vectors with a geometric or a power spectrum, directions that lean towards those of noise; noise and questions
with a spectrum of 1/(k + 3); the design of the quickstart (4 replies a role, 500 of the default, map reliability 0.3) or of
prompts (12 a role, 500, map 0.8), 120 questions, whose variance is 1.5 times the errors'. Truth is what these roles are, noise
left out. One thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from personaspace.stats import corrected, mixed, planting, reliability, vectors
from personaspace.stats.noise import Sample
from personaspace.stats.vectors import Cells, Fit

LEVELS = {"reply": (4, 0.3), "prompt": (12, 0.8)}
QUESTIONS, DEFAULT, OF_QUESTIONS, SPLITS = 120, 500, 1.5, 10
FIGURES = (
    "components_for_70pct_corrected",
    "axis_pc1_cosine_corrected",
    "spectrum_corrected",
    "default_on_pc1_corrected",
    "axis_share",
    "effective_dimension",
)


@dataclass(frozen=True)
class Space:
    """A planted space, and responses drawn from it: role, question `[n]`, activations `[n, hidden]`. truth: the figures by
    name; cosines: the roles' with the axis, `[roles]`."""

    cells: Cells
    role: np.ndarray
    question: np.ndarray
    activations: np.ndarray
    truth: dict[str, float]
    cosines: np.ndarray


def planted(
    rng: np.random.Generator,
    components: float,
    cosine: float,
    level: str = "reply",
    *,
    roles: int = 275,
    hidden: int = 120,
    default: int = DEFAULT,
    questions: int = QUESTIONS,
    power: float | None = None,
) -> Space:
    """A geometric spectrum that has 70% in so many components, or the one of that power."""
    each, reliable = LEVELS[level]
    k = np.arange(min(hidden, roles - 1))
    shares = 0.3 ** (k / components) if power is None else (k + 1.0) ** -power
    shares /= shares.sum()
    spread = 1 / (np.arange(hidden) + 3.0)
    root = np.sqrt(spread / spread.sum())[:, None] * np.linalg.qr(rng.normal(size=(hidden, hidden)))[0]
    directions = np.linalg.qr((rng.normal(size=(len(k), hidden)) * spread**-0.25 @ root).T)[0].T
    a = (rng.normal(size=(roles, len(k))) * np.sqrt(shares)) @ directions
    a -= a.mean(0)
    _, singular, own = np.linalg.svd(a, full_matrices=False)
    singular, own = singular[: len(k)], own[: len(k)]
    beside = rng.normal(size=len(k)) * singular
    beside[0] = 0
    unit = cosine * own[0] + np.sqrt(1 - cosine**2) * (beside / np.linalg.norm(beside)) @ own
    axis = unit * np.sqrt((singular**2).sum() / (roles - 1))
    role = np.concatenate([np.zeros(default, dtype=int), np.repeat(np.arange(1, roles + 1), each)])
    asked = [rng.permutation(questions)[:each] for _ in range(roles)]
    question = np.concatenate([np.arange(default) % questions, *asked])
    cells = Cells.build(["default", *(f"role{i}" for i in range(roles))], role, question)
    total = (singular**2).sum() / (roles - 1)
    size = np.sqrt(total * (1 - reliable) / reliable / Fit(cells).error(1 / OF_QUESTIONS)[1:].mean())
    of_questions = np.sqrt(OF_QUESTIONS) * size * rng.normal(size=(questions, hidden)) @ root
    errors = size * rng.normal(size=(len(role), hidden)) @ root
    activations = np.vstack([axis, a])[role] + of_questions[question] + errors + 3.0
    own_shares = singular**2 / (singular**2).sum()
    scores, at = a @ own[0], float(axis @ own[0])
    high, low = max(scores.max(), at), min(scores.min(), at)
    truth = {
        "components_for_70pct_corrected": planting.seventy(own_shares),
        "axis_pc1_cosine_corrected": cosine,
        "spectrum_corrected": float(own_shares[0]),
        "default_on_pc1_corrected": (high - at) / (high - low),
        "axis_share": float(((a @ unit) ** 2).sum() / (singular**2).sum()),
        "effective_dimension": planting.dimension_of(own_shares),
    }
    return Space(cells, role, question, activations, truth, a @ unit / np.linalg.norm(a, axis=1))


def raw(vectors_: np.ndarray) -> dict[str, float]:
    """The figures as they are without a correction, from effects `[roles + 1, hidden]`."""
    centred, axis = vectors_[1:] - vectors_[1:].mean(0), vectors_[0] - vectors_[1:].mean(0)
    _, singular, own = np.linalg.svd(centred, full_matrices=False)
    shares = singular**2 / (singular**2).sum()
    unit = axis / np.linalg.norm(axis)
    on, at = centred @ own[0] * np.sign(own[0] @ unit), abs(float(axis @ own[0]))
    return {
        "components_for_70pct_corrected": planting.seventy(shares),
        "axis_pc1_cosine_corrected": abs(float(unit @ own[0])),
        "spectrum_corrected": float(shares[0]),
        "default_on_pc1_corrected": (max(on.max(), at) - at) / (max(on.max(), at) - min(on.min(), at)),
        "axis_share": float(((centred @ unit) ** 2).sum() / (singular**2).sum()),
        "effective_dimension": planting.dimension_of(shares),
    }


def estimated(space: Space, seed: int) -> tuple[dict[str, Any], np.ndarray | None, dict[str, float]]:
    """The figures, roles' cosines, and the raw figures."""
    y = torch.from_numpy(space.activations)[:, None]
    sums = vectors.cell_sums(space.cells, [y])
    ratio = float(mixed.variance_ratio(mixed.Moments.of(space.role, space.question, [y]))[0])
    products = reliability.Products.of(reliability.split_fits(space.cells, SPLITS, seed), sums, ratio)
    some = np.random.default_rng(seed).permutation(len(y))[:2560]
    sample = Sample(space.role[some], space.question[some], space.activations[some])
    fit = Fit(space.cells)
    figures, cosines = corrected.figures(fit, sums[:, 0], ratio, sample, products, seed)
    return figures, cosines, raw(fit.effects(sums, np.array([ratio]))[:, 0].numpy())


@dataclass(frozen=True)
class Row:
    """What came of one figure in one setting; named: in how many draws there was an estimate at all."""

    setting: str
    figure: str
    truth: float
    raw: float
    mean: float
    deviation: float
    held: float
    width: float
    named: float

    @property
    def bias(self) -> float:
        """Relative; of a truth near nothing, absolute."""
        return (self.mean - self.truth) / (self.truth if abs(self.truth) > 0.1 else 1.0)


def study(components: float, cosine: float, level: str, draws: int, **sizes: Any) -> list[Row]:
    """One setting; a draw's seed is its number."""
    found: dict[str, list[list[float]]] = {name: [] for name in FIGURES}
    for draw in range(draws):
        space = planted(np.random.default_rng(draw), components, cosine, level, **sizes)
        figures, _, plain = estimated(space, draw)
        for name in FIGURES:
            value = figures[name][0] if name == "spectrum_corrected" and figures[name] else figures[name]
            low, high = (figures["corrected_interval"] or {}).get(name) or (np.nan, np.nan)
            found[name].append([space.truth[name], plain[name], np.nan if value is None else value, low, high])
    rows = []
    spectrum = "geometric" if sizes.get("power") is None else f"power {sizes['power']}"
    setting = f"{level}, {spectrum}, {components:g} components, cosine {cosine:g}"
    for name, values in found.items():
        truth, plain_, value, low, high = np.array(values).T
        told = ~np.isnan(value)
        held = (low <= truth) & (truth <= high)
        some = value[told] if told.any() else np.array([np.nan])
        means = (truth[told].mean() if told.any() else truth.mean(), plain_.mean(), some.mean(), some.std())
        rows.append(Row(setting, name, *map(float, means), held.mean(), float(np.nanmean(high - low)), told.mean()))
    return rows


SETTINGS = [(c, cosine, level) for level in LEVELS for c in (3, 8, 20) for cosine in (0.8, 0.0)]


def lines(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        name = row.figure.removesuffix("_corrected")
        numbers = (row.truth, row.raw, row.mean, row.deviation, row.bias)
        told = " | ".join(f"{x:.2f}" for x in numbers)
        yield f"| {row.setting} | {name} | {told} | {row.held:.0%} | {row.width:.2f} | {row.named:.0%} |"


HEAD = (
    "| setting | figure | truth | raw | corrected | its deviation | bias | 95% held | width | named |\n"
    + "| --- " * 10
    + "|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--hidden", type=int, default=120)
    parser.add_argument("--roles", type=int, default=275)
    parser.add_argument("--only", choices=list(LEVELS))
    parser.add_argument("--power", type=float, help="a spectrum of this power in place of geometric ones")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    told = [HEAD]
    print(HEAD, flush=True)
    for components, cosine, level in SETTINGS:
        if asked.only not in (None, level) or (asked.power and (components != 8 or not cosine)):
            continue
        start = time.perf_counter()
        sizes = {"roles": asked.roles, "hidden": asked.hidden, "power": asked.power}
        for line in lines(study(components, cosine, level, asked.draws, **sizes)):
            told.append(line)
            print(line, flush=True)
        print(f"{(time.perf_counter() - start) / asked.draws:.1f} s a draw", flush=True)
    if asked.out:
        asked.out.write_text("\n".join(told) + "\n")


if __name__ == "__main__":
    main()
