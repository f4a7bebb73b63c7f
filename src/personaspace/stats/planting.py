"""Indirect inference: a spectrum and a cosine are planted, noise like the data's is added, everything is computed as it was
from the data, and the planted is adjusted until what was seen comes out.

Ŝ is the roles' covariance with the noise's taken off: right entry by entry, but its largest eigenvalues are too large and their
vectors off, in planted spaces by as much as in the data. Everything here is in a basis of k directions, and of these roles, not
of a population that they might be drawn from (docs/decisions/0010-what-is-sure.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from personaspace.stats.noise import Noise, centred, root, wishart
from personaspace.stats.vectors import Floats

FITTING, TESTING = 8, 40
EDGES = (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89)
"""Eigenvalues are compared by sums over these ranks: single ones are too uncertain from some on."""

BENT = 0.5
"""How much a planted spectrum's logarithm is expected to depart from a geometric one from one edge to the next."""

LIMITS = np.array([[np.log(0.2), np.log(400.0)], *[[-12.0, 12.0]] * len(EDGES)])
COSINES = np.linspace(0, 1, 101)


class World:
    """Planted spaces with noise like the data's.

    The strongest components are planted where Ŝ has its own, as many as have larger eigenvalues than noise alone makes (which
    the negative ones show). The others' directions are not known; they are drawn anew each time, from those along which noise
    varies by as much more as Ŝ says that roles' do.

    bare: `[draws, k, k]`, what Ŝ is without signal, in a basis that begins with the planted components; across: `[draws, m,
    k]`, the noise along each planted component's places of roles; axis: `[draws, k]`, the axis' noise. noise: `[k, k]`, the
    covariance of roles' noise in Ŝ's own basis. With variances s of the components, Ŝ is bare + diag(s) + √s·across and its
    transpose, so that another spectrum costs no other noise.
    """

    def __init__(self, noise: Noise, basis: Floats, eigenvalues: Floats, draws: int, rng: np.random.Generator) -> None:
        covariance, error, question = noise.covariance(basis)
        self.noise = covariance
        size, roles = basis.shape[1], len(noise.of_role) - 1
        self.planted, self.roles = min(size, roles - 2), roles
        self.clear = max(1, min(int((eigenvalues > -eigenvalues.min()).sum()), self.planted // 2))
        on_roles, error_root, question_root = noise.roots(), root(error), root(question)
        leaning = _leaning(covariance, eigenvalues)
        scale, through = noise.weight.sum(), noise.through_questions
        freedom = noise.freedom[noise.at[0] > 0].sum()
        self.bare: list[Floats] = []
        self.across: list[Floats] = []
        self.axis: list[Floats] = []
        for _ in range(draws):
            of_questions = rng.normal(size=(noise.questions.shape[1], size)) @ question_root
            errors = on_roles @ rng.normal(size=(roles + 1, size)) @ error_root + noise.questions @ of_questions
            # The noise's own covariance is not known either, and is estimated by as many residuals as are free.
            estimated_noise = scale * error_root @ (np.eye(size) + wishart(size, freedom, rng)) @ error_root
            if through:
                drawn = centred(of_questions)
                estimated_noise += through * drawn.T @ drawn / max(len(drawn) - 1, 1)
                extra = error_root @ wishart(size, noise.rank, rng) @ error_root
                estimated_noise += through * noise.rank / noise.trace * extra
            directions = rng.normal(size=(size, size)) @ leaning
            directions[: self.clear] = np.eye(size)[: self.clear]
            turned = np.linalg.qr(directions.T)[0]
            turned[:, : self.clear] = np.eye(size)[:, : self.clear]
            on_turned = centred(errors[1:]) @ turned
            places = np.linalg.qr(centred(rng.normal(size=(roles, self.planted))))[0]
            self.bare.append(on_turned.T @ on_turned / (roles - 1) - turned.T @ estimated_noise @ turned)
            self.across.append(places.T @ on_turned / np.sqrt(roles - 1))
            self.axis.append((errors[0] - errors[1:].mean(0)) @ turned)

    def seen(self, draw: int, variance: Floats) -> Floats:
        """Ŝ `[k, k]` under a planted spectrum, `[m]`."""
        matrix: Floats = self.bare[draw].copy()
        cross = np.sqrt(variance)[:, None] * self.across[draw]
        matrix[: len(cross)] += cross
        matrix[:, : len(cross)] += cross.T
        matrix[np.arange(len(variance)), np.arange(len(variance))] += variance
        return matrix


def _leaning(covariance: Floats, eigenvalues: Floats) -> Floats:
    """The matrix that makes of random directions such along which noise, of this covariance in Ŝ's eigenbasis, varies in the
    mean as it does along Ŝ's: a power of the covariance."""
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values, 1e-9 * max(values.max(), 1e-30))
    along = float(np.diag(covariance) @ eigenvalues / eigenvalues.sum())
    powers = np.linspace(0, 2, 41)
    means = [float((values ** (1 + power)).sum() / (values**power).sum()) for power in powers]
    power = powers[int(np.argmin(np.abs(np.array(means) - along)))]
    result: Floats = (vectors * (values / values.max()) ** (power / 2)) @ vectors.T
    return result


def shape(parameters: Floats, size: int) -> Floats:
    """Shares of variance of `size` components, largest first: a geometric spectrum, exp(−k/s), bent at `EDGES`; parameters:
    the logarithm of s, and of the factors there."""
    rank = np.arange(size)
    bend = np.interp(np.log1p(rank), np.log1p(EDGES), parameters[1:])
    logarithms = bend - rank / np.exp(parameters[0])
    shares = np.sort(np.exp(logarithms - logarithms.max()))[::-1]
    result: Floats = shares / shares.sum()
    return result


def _bins(values: Floats, total: float) -> Floats:
    """Sums over ranks of eigenvalues, largest first, in units of their total."""
    edges = [e for e in EDGES if e < len(values)]
    result: Floats = np.add.reduceat(values, edges)[: len(edges) - 1] / total
    return result


def seventy(shares: Floats) -> float:
    """How many components hold 70% of the variance, with the part of the last one that it takes.

    >>> round(seventy(np.array([0.5, 0.3, 0.2])), 2)
    1.67
    """
    total = np.concatenate([[0.0], shares.cumsum()])
    first_beyond = int((total < 0.7).sum())
    return float(first_beyond - 1 + (0.7 - total[first_beyond - 1]) / (total[first_beyond] - total[first_beyond - 1]))


def fit_spectrum(world: World, observed: Floats) -> tuple[Floats, Floats]:
    """The parameters of the planted spectrum whose Ŝ has the observed eigenvalues, `[k]`, largest first; and what another
    bin's sum would change of them, `[parameters, bins]`."""
    total = observed.sum()
    target = _bins(observed, total)

    def far(parameters: Floats) -> float:
        values = np.asarray(
            np.linalg.eigvalsh(world.seen(0, shape(parameters, world.planted) * total))[::-1], np.float64
        )
        return float(np.abs(_bins(values, values.sum()) - target).sum())

    def expected(parameters: Floats, draws: int) -> tuple[Floats, Floats]:
        shares = shape(parameters, world.planted)
        steps = 0.01 * np.eye(len(parameters))
        slopes = np.array([shape(parameters + step, world.planted) - shares for step in steps]) / 0.01 * total
        roots = np.sqrt(np.maximum(shares, 1e-12) * total)[:, None]
        sums, changes = [], []
        for draw in range(draws):
            values, vectors = np.linalg.eigh(world.seen(draw, shares * total))
            values, vectors = values[::-1], vectors[:, ::-1]
            part = vectors[: world.planted]
            # What each planted variance adds to each eigenvalue.
            change = slopes @ (part**2 + part * (world.across[draw] @ vectors) / roots)
            sums.append(_bins(values, values.sum()))
            changes.append([_bins(c, values.sum()) - sums[-1] * c.sum() / values.sum() for c in change])
        return np.array(sums), np.mean(changes, axis=0).T

    # 1) Where to begin: geometric spectra of many widths, and the observed one as it is; the nearest of them.
    edges = [e for e in EDGES if e < len(observed)]
    alike = np.log(np.maximum(np.add.reduceat(observed, edges) / np.diff([*edges, len(observed)]), 1e-4 * observed[0]))
    alike = np.interp(np.log1p(EDGES), np.log1p(edges), alike - alike[0])
    starts = [np.array([np.log(scale), *[0.0] * len(EDGES)]) for scale in (1, 2, 4, 8, 16, 32, 64)]
    starts += [np.array([np.log(scale), *(alike + np.array(EDGES) / scale)]) for scale in (8, 32)]
    parameters, damping = np.clip(min(starts, key=far), *LIMITS.T), 0.1
    # Without data, bends from one edge to the next are small, PC1's less so; the precision is how small.
    centre = np.array([np.log(8), *[0.0] * len(EDGES)])
    steps = np.diff(np.eye(len(EDGES)), axis=0) / np.array([[1.0], *[[BENT]] * (len(EDGES) - 2)])
    precision = np.eye(len(EDGES) + 1) / 3**2
    precision[1:, 1:] += steps.T @ steps
    # 2) Levenberg and Marquardt's steps, over few planted worlds first: a step that does not help is tried again, shorter.
    for draws in (FITTING // 2, FITTING):
        sums, slope = expected(parameters, draws)
        # Of so few draws, what bins vary by together is uncertain: half of it is believed.
        covariance = np.cov(sums.T) * (0.5 + 0.5 * np.eye(len(target)))
        inverse = np.asarray(np.linalg.inv(covariance + np.diag(0.02 * np.diag(covariance) + 1e-7)), dtype=np.float64)

        def misfit(candidate: Floats, sums: Floats, inverse: Floats = inverse) -> float:
            gap, off = target - sums.mean(0), candidate - centre
            return float(gap @ inverse @ gap + off @ precision @ off)

        worst = misfit(parameters, sums)
        for _ in range(5):
            pull = slope.T @ inverse
            curvature = pull @ slope + precision
            towards = pull @ (target - sums.mean(0)) - precision @ (parameters - centre)
            move = np.linalg.solve(curvature + damping * np.diag(np.diag(curvature)), towards)
            tried = np.clip(parameters + move, *LIMITS.T)
            new_sums, new_slope = expected(tried, draws)
            better = misfit(tried, new_sums)
            if better > worst:
                damping = min(5 * damping, 1e4)
                continue
            gained, worst = worst - better, better
            parameters, sums, slope, damping = tried, new_sums, new_slope, damping / 5
            if gained < 0.2:
                break
    # 3) What another bin's sum would change of the parameters, linear about where they came to rest.
    pull = slope.T @ inverse
    curvature = pull @ slope + precision
    return parameters, np.asarray(np.linalg.solve(curvature, pull), dtype=np.float64)


@dataclass(frozen=True)
class Tested:
    """The fitted world drawn anew and worked out like the data: by how much it errs, and where the cosine would be seen.

    components, first, dimension: `[draws]`, logarithms of estimate over truth, for the components for 70%, PC1's share and the
    effective dimension; share: of the axis' share, estimate less truth. seen: `[draws, cosines]`, the cosine of axis and PC1
    under planted `COSINES`; turned: `[draws]`, what the cosine would be if the data's components were turned as that draw's
    were. total: `[draws]`, the trace of Ŝ.
    """

    components: Floats
    first: Floats
    dimension: Floats
    share: Floats
    seen: Floats
    turned: Floats
    total: Floats


def dimension_of(shares: Floats) -> float:
    """How many components of equal variance would be as far spread.

    >>> dimension_of(np.array([0.25, 0.25, 0.25, 0.25]))
    4.0
    """
    return float(shares.sum() ** 2 / (shares**2).sum())


def tested(
    world: World, parameters: Floats, gain: Floats, total: float, axis: Floats, rng: np.random.Generator
) -> Tested:
    """axis: `[k]`, the data's, its noise's length taken out."""
    shares = shape(parameters, world.planted)
    size, clear, length = len(axis), world.clear, float(np.linalg.norm(axis))
    first = min(abs(axis[0]) / length, 1.0)
    sums, truths, seen, turned, totals, shares_off = [], [], [], [], [], []
    for draw in range(len(world.bare)):
        # Roles are a few of many: their own spectrum is rougher than a smooth one, and that is what is asked for.
        places = centred(rng.normal(size=(world.roles, world.planted)) * np.sqrt(shares))
        spectrum = np.linalg.eigvalsh(places.T @ places)[::-1]
        spectrum = np.maximum(spectrum / spectrum.sum(), 1e-12)
        matrix = world.seen(draw, spectrum * total)
        values, vectors = np.linalg.eigh(matrix)
        sums.append(_bins(values[::-1], values.sum()))
        totals.append(values.sum())
        truths.append(spectrum)
        # Where the axis lies beside PC1 is known badly too where components of like variance were mixed: it is taken from the
        # data's clear components in every other draw, and as roles are spread for the rest, and in the others.
        beside, start = np.zeros(size), clear if draw % 2 else 1
        beside[start : world.planted] = (rng.normal(size=world.planted) * np.sqrt(spectrum))[start:]
        beside *= np.linalg.norm(axis[start:]) / max(float(np.linalg.norm(beside)), 1e-30)
        beside[1:start] = axis[1:start]
        beside /= max(float(np.linalg.norm(beside)), 1e-30)
        axes = length * (COSINES[:, None] * np.eye(size)[0] + np.sqrt(1 - COSINES**2)[:, None] * beside)
        noisy = axes + world.axis[draw]
        seen.append(np.abs(noisy @ vectors[:, -1]) / np.linalg.norm(noisy, axis=1))
        turned.append(abs(vectors[0, ::-1] @ axis) / length)
        nearest = round((len(COSINES) - 1) * first)
        estimate = noisy[nearest] @ matrix @ noisy[nearest] / (noisy[nearest] @ noisy[nearest] * values.sum())
        shares_off.append(estimate - axes[nearest, : world.planted] ** 2 @ spectrum / length**2)
    # Each draw would have been fitted by other parameters: by as much as its bins are off from the mean draw's.
    moved = (np.array(sums) - np.mean(sums, axis=0)) @ gain.T
    errors = []
    for move, spectrum in zip(moved, truths, strict=True):
        estimate = shape(np.clip(parameters + move, LIMITS[:, 0], LIMITS[:, 1]), world.planted)
        errors.append([np.log(f(estimate) / f(spectrum)) for f in (seventy, lambda p: p[0], dimension_of)])
    components, first, dimension = np.array(errors).T
    return Tested(
        components, first, dimension, np.array(shares_off), np.array(seen), np.array(turned), np.array(totals)
    )


def planted_cosine(seen: float, world: Tested) -> tuple[float, list[float]]:
    """The planted cosine under which the one seen is expected, and a 95% interval: those under which it is no rarity, and
    those that components turned like the planted ones would make of the data's."""
    # A larger planted cosine is seen as a larger one; where draws say otherwise it is chance.
    mean = np.maximum.accumulate(world.seen.mean(0))
    value = float(np.interp(seen, mean, COSINES)) if seen > mean[0] else 0.0
    below, edge = (world.seen < seen).mean(0), 1 / len(world.seen)
    able = COSINES[(below >= edge) & (below <= 1 - edge)]
    ends = [value, *able, *np.percentile(world.turned, [2.5, 97.5])]
    return value, [float(min(ends)), float(max(ends))]
