"""Figures with the noise taken out, beside what shuffled role labels give; everything at one layer, from arrays.

Noise makes role vectors vary in more directions than roles do, and turns PC1 away from where it would lie. Spectrum, components
for 70%, effective dimension, the axis' cosine with PC1 and the default's place on it come by indirect inference
(`planting.py`); the axis' share and roles' cosines are quotients of products across halves, whose noise is independent. All are
of these roles, not of a population. What the data cannot tell is None, and `reason` says why.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import coo_array
from torch import Tensor

from personaspace.stats import planting
from personaspace.stats.noise import Noise, Sample, centred
from personaspace.stats.reliability import Products
from personaspace.stats.vectors import Fit, Floats

DIRECTIONS = 576
"""Directions of the residual stream that are worked in, those that vary most; how much of the roles' variance lies beyond is
known, and intervals are wider by it."""

FEWEST, BEYOND, TOO_FAR = 96, 0.01, 0.15
"""As many directions at least; the share of the roles' variance that need not be in them, and the one that must not be out."""

LEAST_ROLES, LEAST_FREEDOM = 12, 24
"""Fewer roles have no spectrum, and fewer degrees of freedom of residuals do not tell what noise is like."""

SHOWN, SHUFFLES = 16, 12
WIDEST = 0.5
"""A cosine whose interval is wider is not named: two estimates could say anything."""

REFITTED, UNKNOWN = 1.3, 0.08
"""What intervals are wider by than linear steps about the fit say, measured on whole refits; and the error, as a logarithm and
for roles that are all noise, of not knowing in which directions weak components lie (docs/decisions/0010-what-is-sure.md)."""

NAMES = (
    "axis_pc1_cosine_corrected",
    "components_for_70pct_corrected",
    "spectrum_corrected",
    "default_on_pc1_corrected",
    "axis_share",
    "effective_dimension",
    "null",
    "corrected_interval",
)


def figures(
    fit: Fit, sums: Tensor, ratio: float, sample: Sample, products: Products, seed: int
) -> tuple[dict[str, Any], Floats | None]:
    """The figures by name, and each role's cosine with the axis, `[roles]`; sums: `[cells + questions, hidden]`.

    axis_share: of the roles' variance, how much lies along the axis. effective_dimension: how many components of equal variance
    are as far spread, (Σs)²/Σs². spectrum_corrected: shares of the first components.
    corrected_interval: 95%; that of `spectrum_corrected` is of its first share. null: of raw figures, role labels shuffled.
    """
    result: dict[str, Any] = {**dict.fromkeys(NAMES), "reason": None}
    roles = len(fit.cells.shown) - 1
    if roles < LEAST_ROLES:
        return {**result, "reason": f"{roles} roles; {LEAST_ROLES} have a spectrum"}, None
    totals = fit.totals(sums).numpy()
    effects = fit.solution(ratio) @ totals
    noise = Noise(fit, totals, ratio, sample)
    if noise.freedom[noise.at[0] > 0].sum() < LEAST_FREEDOM:
        return {**result, "reason": "too few responses of a role tell what its noise is like"}, None
    rng = np.random.default_rng(seed)
    # 1) What chance alone gives: the same figures with role labels shuffled.
    result["null"] = shuffled(fit, totals, ratio, sample, rng)
    vectors = centred(effects[1:])
    axis = effects[0] - effects[1:].mean(0)
    # 2) Ŝ: how roles vary among the directions that matter, less what noise varies there.
    basis = _basis(noise, vectors, rng)
    covariance, _, _ = noise.covariance(basis)
    signal = (vectors @ basis).T @ (vectors @ basis) / (roles - 1) - covariance
    result["axis_share"] = axis_share(products)
    cosines = role_cosines(products, noise, signal, covariance)
    values, components = np.linalg.eigh(signal)
    observed, basis = values[::-1], basis @ components[:, ::-1]
    total = float(observed.sum())
    if total <= 0:
        return {**result, "reason": "roles vary no more than their noise"}, cosines
    roles_variance = float((vectors**2).sum()) / (roles - 1) - noise.total()
    beyond = (
        min(max(1 - total / roles_variance, 0.0), 1.0)
        if roles_variance > 0 and basis.shape[1] < vectors.shape[1]
        else 0.0
    )
    if beyond > TOO_FAR:
        return {
            **result,
            "reason": f"{beyond:.0%} of the roles' variance lies beyond the {DIRECTIONS} directions worked in",
        }, cosines
    # 3) Spectra are planted until Ŝ comes out as seen; on fresh draws of noise, what was fitted is tried like the data.
    world = planting.World(noise, basis, observed, planting.FITTING, rng)
    parameters, gain = planting.fit_spectrum(world, observed)
    again = planting.World(noise, basis, observed, planting.TESTING, rng)
    # The axis is noisy, too: its own length is what is left once the noise's is taken off.
    seen = axis @ basis
    cosine_seen = abs(seen[0]) / np.linalg.norm(seen)
    noisy = float(np.mean([off @ off for off in again.axis]))
    length = float(np.sqrt(max(seen @ seen - noisy, 0.1 * seen @ seen)))
    tested = planting.tested(again, parameters, gain, total, seen * length / np.linalg.norm(seen), rng)
    if total < 2 * tested.total.std(ddof=1):
        return {**result, "reason": "roles' variance is not told from noise"}, cosines
    # 4) Each figure of the planted spectrum, its interval as wide as the trials erred.
    shares = planting.shape(parameters, world.planted)
    unknown = beyond + UNKNOWN * float(np.trace(covariance)) / (float(np.trace(covariance)) + total)

    def about(value: float, errors: Floats) -> list[float]:
        half = 1.96 * np.hypot(REFITTED * errors.std(ddof=1), unknown)
        return [float(value * np.exp(-half)), float(value * np.exp(half))]

    cosine, able = planting.planted_cosine(float(cosine_seen), tested)
    seventy = planting.seventy(shares)
    spectrum = about(float(shares[0]), tested.first)
    scores = centred(vectors @ basis[:, 0]) * np.sign(seen[0])
    scores *= np.sqrt(shares[0] * total / max(scores.var(ddof=1), 1e-30))
    # An axis that may be square to PC1 may as well point to its other end.
    ends = (scores, -scores) if able[0] == 0 else (scores,)
    places = [
        _place(end * np.sqrt(share / shares[0]), c * length)
        for end in ends[::-1]
        for share in (*spectrum, shares[0])
        for c in (*able, cosine)
    ]
    # The outermost roles are as uncertain as any; what scaling left of their noise moves the ends that the place is between.
    along = float(np.diag(again.noise)[0])
    loose = np.sqrt(along * shares[0] * total / (along + shares[0] * total)) / np.ptp(scores)
    loose *= 1.96 * float(np.hypot(places[-1], 1 - places[-1]))
    interval = {
        "axis_pc1_cosine_corrected": able,
        "components_for_70pct_corrected": about(seventy, tested.components),
        "spectrum_corrected": [spectrum[0], min(spectrum[1], 1.0)],
        "default_on_pc1_corrected": [max(min(places) - loose, 0.0), min(max(places) + loose, 1.0)],
        "effective_dimension": about(planting.dimension_of(shares), tested.dimension),
    }
    if result["axis_share"] is not None:
        half = 1.96 * np.hypot(REFITTED * float(tested.share.std(ddof=1)), unknown * result["axis_share"])
        interval["axis_share"] = np.clip([result["axis_share"] - half, result["axis_share"] + half], 0, 1).tolist()
    named = able[1] - able[0] <= WIDEST
    result |= {
        "axis_pc1_cosine_corrected": cosine if named else None,
        "components_for_70pct_corrected": seventy,
        "spectrum_corrected": shares[:SHOWN].tolist(),
        "default_on_pc1_corrected": places[-1] if named else None,
        "effective_dimension": planting.dimension_of(shares),
        "corrected_interval": interval,
        "reason": None if named else "PC1 is not told from the components next to it",
    }
    return result, cosines


def _basis(noise: Noise, vectors: Floats, rng: np.random.Generator) -> Floats:
    """Orthonormal directions `[hidden, k]` in which residuals vary most, by a randomised range finder: as few as hold all but
    `BEYOND` of the roles' own variance. Role vectors have no say, since directions that their noise had chosen would show more
    of it than is taken off."""
    roles, rows = vectors / np.sqrt(len(vectors) - 1), noise.residuals
    directions = np.eye(vectors.shape[1])
    if len(directions) > DIRECTIONS:
        directions = rows.T @ rng.normal(size=(len(rows), DIRECTIONS))
        for _ in range(2):
            directions = np.linalg.qr(rows.T @ (rows @ directions))[0]
    on = rows @ directions
    basis: Floats = directions @ np.linalg.eigh(on.T @ on)[1][:, ::-1]
    signal = ((roles @ basis) ** 2).sum(0) - np.diag(noise.covariance(basis)[0])
    beyond = 1 - signal.cumsum() / max(float((roles**2).sum()) - noise.total(), 1e-30)
    enough = np.flatnonzero(np.abs(beyond) < BEYOND)
    least = max(int(enough[0]) + 1, FEWEST) if len(enough) else len(signal)
    return basis[:, :least]


def _place(scores: Floats, default: float) -> float:
    """How far the default is from the Assistant's end of PC1, of a range of 1 (`space.place_on_pc`)."""
    high, low = max(float(scores.max()), default), min(float(scores.min()), default)
    return (high - default) / max(high - low, 1e-30)


def axis_share(products: Products) -> float | None:
    """How much of the roles' variance lies along the axis, from products across halves; None where halves agree on nothing."""
    p = products.values
    if not len(p):
        return None
    total = float(np.trace(p[:, 0, 1, :-1, :-1], axis1=1, axis2=2).mean())
    axis = float(p[:, 0, 1, -1, -1].mean())
    if total <= 0 or axis <= 0:
        return None
    along = (p[:, 0, 1, :-1, -1] * p[:, 1, 0, :-1, -1]).sum(1).mean()
    return float(np.clip(along / (total * axis), 0, 1))


def role_cosines(products: Products, noise: Noise, signal: Floats, covariance: Floats) -> Floats | None:
    """Each role's cosine with the axis, `[roles]`: products across halves, over lengths from such as well. A single role's
    length is uncertain, so that it is shrunk towards all roles' by what lengths vary by beyond their errors; signal and
    covariance: `[k, k]`, the roles' and their noise's. None where halves agree on nothing."""
    if not len(products.values):
        return None
    p = products.values
    count = np.maximum(products.shared.sum(0), 1)
    squared = np.diagonal(p[:, 0, 1], axis1=1, axis2=2)[:, :-1].sum(0) / count
    along = (p[:, 0, 1, :-1, -1] + p[:, 1, 0, :-1, -1]).sum(0) / 2 / count
    axis, mean = float(p[:, 0, 1, -1, -1].mean()), float(squared.mean())
    if axis <= 0 or mean <= 0:
        return None
    relative = (noise.roots() ** 2).sum(1)[1:]
    relative /= relative.mean()
    # The variance of a product of two noisy vectors: noise along the vector, twice, and noise with noise.
    error = 4 * relative * max(float((signal * covariance).sum()), 0) + 3 * relative**2 * float((covariance**2).sum())
    varies = max(float(squared.var(ddof=1) - error.mean()), 0.0)
    trust = varies / np.maximum(varies + error, 1e-30)
    lengths = np.maximum(trust * squared + (1 - trust) * mean, 0.05 * mean)
    cosines: Floats = np.clip(along / np.sqrt(lengths * axis), -1, 1)
    return np.where(products.shared.any(0), cosines, np.nan)


def shuffled(fit: Fit, totals: Floats, ratio: float, sample: Sample, rng: np.random.Generator) -> dict[str, Any]:
    """The raw cosine of axis and PC1 and the raw number of components for 70% where role labels are shuffled among the roles'
    responses to each question: their mean and 95th percentile.

    Where the sample holds all of a question's, its responses change places; otherwise each is drawn from those that it holds,
    of any question where it holds none.
    """
    n = np.rint(fit.counts[:, fit.asked]).astype(np.int64)
    n[0] = 0
    role, column = np.nonzero(n)
    role, column = (np.repeat(x, n[role, column]) for x in (role, column))
    order = np.argsort(column, kind="stable")
    role, column = role[order], fit.asked[column[order]]
    of_roles = np.flatnonzero(sample.role > 0)
    pool = {q: of_roles[sample.question[of_roles] == q] for q in np.unique(column)}
    slots = {q: int((column == q).sum()) for q in pool}
    solution, levels = fit.solution(ratio), len(n)
    activations = sample.activations
    cosines, counts = [], []
    for _ in range(SHUFFLES):
        drawn = []
        for q, candidates in pool.items():
            if len(candidates) == slots[q]:
                drawn.append(rng.permutation(candidates))
            else:
                drawn.append(rng.choice(candidates if len(candidates) else of_roles, slots[q]))
        shape = (levels, len(activations))
        adding = coo_array((np.ones(len(role)), (role, np.concatenate(drawn))), shape=shape).tocsr()
        new = np.vstack([adding @ activations, totals[levels:]])
        new[0] = totals[0]
        effects = solution @ new
        vectors, axis = centred(effects[1:]), effects[0] - effects[1:].mean(0)
        values, turned = np.linalg.eigh(vectors @ vectors.T)
        first = turned[:, -1] @ vectors
        cosines.append(abs(first @ axis) / max(np.linalg.norm(first) * np.linalg.norm(axis), 1e-30))
        variances = np.maximum(values[::-1], 0)
        counts.append(int((variances.cumsum() / variances.sum() < 0.7).sum()) + 1)
    both = {"axis_pc1_cosine": cosines, "components_for_70pct": counts}
    return {k: {"mean": float(np.mean(v)), "p95": float(np.percentile(v, 95))} for k, v in both.items()}
