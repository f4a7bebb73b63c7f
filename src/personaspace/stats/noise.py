"""What role vectors err by: the covariance of their noise under the mixed model, from a sample of responses and the design.

It knows nothing of signal. Residuals of the model with questions fixed hold no question effects, whatever those are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from personaspace.stats.vectors import Fit, Floats, Ints

MOST_LEVERAGE = 0.95
"""A response that decides its own fit has no residual to learn from: others of its kind stand in for it."""


@dataclass(frozen=True)
class Sample:
    """Responses whose activations are at hand: role (0 is the default) and question, `[n]`, activations `[n, hidden]`."""

    role: Ints
    question: Ints
    activations: Floats


class Noise:
    """What role vectors err by under the mixed model: activation = role + question + error, questions random.

    Errors' covariance is learnt from residuals of the model with questions fixed; questions' own from how much more they
    explain than errors would (Henderson's third method, as matrices). Both are unbiased entry by entry. A role's vector errs
    by its responses' errors and by what is left of questions' effects after shrinkage; the latter are shared by the roles that
    were asked the same.

    residuals: `[sample, hidden]`, each divided by √(1 − leverage), and weight: `[sample]`, what a response's error adds to the
    variance over roles; of_questions: `[asked, hidden]`, whose squares, less errors' share, are questions' covariance.
    """

    def __init__(self, fit: Fit, totals: Floats, ratio: float, sample: Sample) -> None:
        n = fit.counts[:, fit.asked]
        levels, per_role = len(n), np.maximum(n.sum(1), 1e-12)
        solution = fit.solution(ratio)
        self.of_role, self.of_question = solution[:, :levels], solution[:, levels:]
        self.n, share = n, n / per_role[:, None]
        # How the effects of questions, one unit each, come out as errors of role vectors, `[roles + 1, asked]`.
        self.questions = self.of_role @ n + self.of_question * n.sum(0)
        if np.isfinite(ratio):
            within = np.diag(n.sum(0)) - n.T @ share
            inverse = np.linalg.pinv(within, hermitian=True)
            values, vectors = np.linalg.eigh(inverse)
            rest = totals[levels:] - share.T @ totals[:levels]
            effects = inverse @ rest
            both = share @ inverse
            beyond = (both * share).sum(1)[:, None] - 2 * both + np.diag(inverse)
            self.rank, self.trace = int((values > 1e-9 * values.max()).sum()), float(np.trace(within))
            self.squares_of = (vectors * np.sqrt(np.maximum(values, 0))).T @ rest
        else:
            # Questions add nothing, or the design cannot tell: then they are part of the errors.
            self.questions = np.zeros_like(self.questions)
            effects, beyond = np.zeros_like(totals[levels:]), np.zeros_like(n)
            self.rank, self.trace, self.squares_of = 0, 1.0, effects
        roles = (totals[:levels] - n @ effects) / per_role[:, None]
        leverage = 1 / per_role[:, None] + beyond
        place = np.searchsorted(fit.asked, sample.question)
        cell = (sample.role, place)
        # A residual is smaller than its error by its leverage: divided by √(1 − leverage), it is as large again.
        informative = leverage[cell] < MOST_LEVERAGE
        self.at = (sample.role[informative], place[informative])
        freedom = 1 - leverage[self.at]
        raw = sample.activations[informative] - roles[self.at[0]] - effects[self.at[1]]
        self.residuals = raw / np.sqrt(freedom)[:, None]
        self.freedom = freedom
        # What one response of a role to a question adds to the variance over roles, `[levels, asked]`, errors of variance 1.
        a, b = centred(self.of_role[1:]), centred(self.of_question[1:])
        weight: Floats = ((a**2).sum(0)[:, None] + 2 * a.T @ b + (b**2).sum(0)) / (len(a) - 1)
        self.through_questions = float((centred(self.questions[1:]) ** 2).sum() / (len(solution) - 2))
        self.weight = self._of_all(weight)
        self.beyond = self._of_all(beyond)

    def _of_all(self, weight: Floats) -> Floats:
        """Weights by role and question `[levels, asked]`, for those of the sample, which stand for all responses: of the
        default and of roles, each kind's by as much as it is larger than its sample."""
        sampled_weights = weight[self.at]
        result = np.zeros(len(sampled_weights))
        for kind, rows in ((self.at[0] == 0, slice(0, 1)), (self.at[0] > 0, slice(1, None))):
            if kind.any() and abs(sampled_weights[kind].sum()) > 1e-12:
                result[kind] = sampled_weights[kind] * (weight[rows] * self.n[rows]).sum() / sampled_weights[kind].sum()
        return result

    def covariance(self, basis: Floats | None = None) -> tuple[Floats, Floats, Floats]:
        """Of role vectors' errors over roles, of a response's error, and of question effects, `[k, k]` each, in an orthonormal
        basis `[hidden, k]`."""
        residuals = self.residuals if basis is None else self.residuals @ basis
        squares = self.squares_of if basis is None else self.squares_of @ basis
        question = (squares.T @ squares - residuals.T @ (residuals * self.beyond[:, None])) / self.trace
        errors = residuals.T @ (residuals * self.weight[:, None])
        return errors + self.through_questions * question, errors / self.weight.sum(), question

    def total(self) -> float:
        """The trace of role vectors' error covariance."""
        squares = (self.residuals**2).sum(1)
        question = ((self.squares_of**2).sum() - squares @ self.beyond) / self.trace
        return float(squares @ self.weight + self.through_questions * question)

    def by_role(self) -> Floats:
        """How large errors are by level, relative to their mean over roles, `[levels]`; few residuals count as little."""
        squares = (self.residuals**2).sum(1)
        roles = self.at[0] > 0
        mean = np.average(squares[roles], weights=self.freedom[roles])
        total, count = np.zeros(len(self.n)), np.zeros(len(self.n))
        np.add.at(total, self.at[0], squares / mean * self.freedom)
        np.add.at(count, self.at[0], self.freedom)
        relative: Floats = (total + 1) / (count + 1)
        relative /= float(np.average(relative[1:], weights=self.n.sum(1)[1:]))
        return relative

    def roots(self) -> Floats:
        """The matrix `[roles + 1, roles + 1]` that takes independent errors to those of role vectors, questions' aside."""
        n = self.n * self.by_role()[:, None]
        mixed = self.of_role @ n @ self.of_question.T
        covariance = (self.of_role * n.sum(1)) @ self.of_role.T + mixed + mixed.T
        covariance += (self.of_question * n.sum(0)) @ self.of_question.T
        result: Floats = root(covariance)
        return result


def centred(values: Floats) -> Floats:
    """Less the mean over rows."""
    result: Floats = values - values.mean(0)
    return result


def root(covariance: Floats) -> Floats:
    """A symmetric root; what is negative by chance counts as nothing."""
    values, vectors = np.linalg.eigh(covariance)
    result: Floats = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return result


def wishart(size: int, freedom: float, rng: np.random.Generator) -> Floats:
    """By how much a covariance estimated with so many degrees of freedom is off from the identity."""
    rows = int(np.clip(freedom, 1, 512))
    z = rng.normal(size=(rows, size))
    result: Floats = (z.T @ z / rows - np.eye(size)) * np.sqrt(rows / max(freedom, 1))
    return result
