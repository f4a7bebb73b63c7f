"""The three reliabilities, intervals and neighbours, against planted spaces that are drawn a second time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from personaspace.space.certainty import Alike
from personaspace.stats import mixed, reliability, vectors
from personaspace.stats.forecast import forecast, spearman_brown
from personaspace.stats.vectors import Cells, Fit

ROLES, EACH, QUESTIONS, DEFAULT, HIDDEN = 120, 6, 60, 240, 80


def design(rng: np.random.Generator, texts: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Role, question and instruction of each response."""
    role = np.concatenate([np.zeros(DEFAULT, dtype=int), np.repeat(np.arange(1, ROLES + 1), EACH)])
    asked = [rng.permutation(QUESTIONS)[:EACH] for _ in range(ROLES)]
    return role, np.concatenate([np.arange(DEFAULT) % QUESTIONS, *asked]), rng.permutation(len(role)) % texts


def effects(rng: np.random.Generator, signal: float) -> np.ndarray:
    """Of the default and the roles, spread over ten directions, the axis along the first."""
    a = np.zeros((ROLES + 1, HIDDEN))
    a[:, :10] = signal * rng.normal(size=(ROLES + 1, 10))
    a[0] = 0
    a[0, 0] = 3 * signal
    return a


def drawn(rng, a, role, question, instruction, of_text=0.0) -> torch.Tensor:
    y = a[role] + 0.7 * rng.normal(size=(QUESTIONS, HIDDEN))[question] + rng.normal(size=(len(role), HIDDEN))
    y += of_text * rng.normal(size=(ROLES + 1, instruction.max() + 1, HIDDEN))[role, instruction]
    return torch.from_numpy(y)[:, None]


def whole(cells: Cells, y: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Axis and roles' vectors less their mean, at the true ratio."""
    v = Fit(cells).effects(vectors.cell_sums(cells, [y]), np.array([2.0]))[:, 0].numpy()
    mean = v[1:].mean(0)
    return v[0] - mean, v[1:] - mean


@pytest.mark.parametrize("signal", [0.25, 0.5, 1.0])
def test_reliabilities_are_what_a_second_run_agrees_to(signal):
    told, again = [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        a, runs = effects(rng, signal), []
        for _ in range(2):
            role, question, instruction = design(rng)
            cells = Cells.build([f"r{k}" for k in range(ROLES + 1)], role, question)
            y = drawn(rng, a, role, question, instruction)
            runs.append(whole(cells, y))
            half = reliability.split_half(
                reliability.split_fits(cells, 8, seed), vectors.cell_sums(cells, [y]), np.array([2.0])
            )
            told.append(
                [
                    spearman_brown(half.axis)[0],
                    spearman_brown(half.order, half.factor)[0],
                    spearman_brown(half.map, half.factor)[0],
                ]
            )
        (axis, roles), (axis2, roles2) = runs
        products = (roles * roles2).sum() / np.sqrt((roles**2).sum() * (roles2**2).sum())
        again.append([vectors.cosine(axis, axis2), np.corrcoef(roles @ axis, roles2 @ axis2)[0, 1], products])
    (axis, order, map_), (axis2, order2, map2) = np.mean(told, axis=0), np.mean(again, axis=0)
    assert axis == pytest.approx(axis2, abs=0.05)
    assert map_ == pytest.approx(map2, abs=0.04)
    # An own axis to each half is noise upon noise, which Spearman–Brown does not count on: too little is said, never too much.
    assert order2 - 0.12 < order < order2 + 0.04


def test_texts_that_differ_lower_what_is_known_by_instruction_alone():
    rng = np.random.default_rng(0)
    a = effects(rng, 0.7)
    figures = {}
    for of_text in (0.0, 1.5):
        role, question, instruction = design(rng)
        y = drawn(rng, a, role, question, instruction, of_text)
        cells = Cells.build([f"r{k}" for k in range(ROLES + 1)], role, question)
        n = np.zeros((5 * (ROLES + 1), QUESTIONS), dtype=np.int64)
        np.add.at(n, (5 * role + instruction, question), 1)
        fine = Cells.counted((), n)
        pairs = reliability.instruction_fits(cells, fine, 10, 0)
        for fits in pairs:
            assert ((fits[0].counts > 0) & (fits[1].counts > 0)).sum() == 0
        by_text = reliability.split_half(
            pairs, vectors.cell_sums(fine.placing(5 * role + instruction, question), [y]), np.array([2.0])
        )
        by_question = reliability.split_half(
            reliability.split_fits(cells, 10, 0), vectors.cell_sums(cells, [y]), np.array([2.0])
        )
        figures[of_text] = [float(spearman_brown(f.map, f.factor)[0]) for f in (by_question, by_text)]
    assert figures[0.0][1] == pytest.approx(figures[0.0][0], abs=0.08)
    assert figures[1.5][1] < figures[1.5][0] - 0.1


def test_a_role_without_signal_has_no_reliability():
    rng = np.random.default_rng(0)
    role, question, instruction = design(rng)
    cells = Cells.build([f"r{k}" for k in range(ROLES + 1)], role, question)
    sums = vectors.cell_sums(cells, [drawn(rng, effects(rng, 0.0), role, question, instruction)])
    products = reliability.Products.of(reliability.split_fits(cells, 10, 0), sums, 2.0)
    assert abs(np.mean(products.role_split_half())) < 0.02
    assert products.intervals(2.0, 100, 0)["map"][0] < 0.05


def test_the_error_of_roles_cosines_is_their_spread_over_runs():
    rng = np.random.default_rng(0)
    a = effects(rng, 0.5)
    cosines, told = [], []
    for seed in range(8):
        role, question, instruction = design(rng)
        cells = Cells.build([f"r{k}" for k in range(ROLES + 1)], role, question)
        y = drawn(rng, a, role, question, instruction)
        roles = whole(cells, y)[1]
        units = roles / np.linalg.norm(roles, axis=1, keepdims=True)
        cosines.append(units @ units.T)
        pairs = reliability.split_fits(cells, 10, seed)
        told.append(reliability.Products.of(pairs, vectors.cell_sums(cells, [y]), 2.0).cosine_error())
    off = ~np.eye(ROLES, dtype=bool)
    spread = np.sqrt(np.var(cosines, axis=0, ddof=1)[off].mean())
    assert np.sqrt(np.mean(np.square(told))) == pytest.approx(spread, rel=0.25)


@pytest.mark.parametrize("each", [3, 8])
def test_a_roles_interval_holds_at_its_rate_under_random_questions(each):
    held = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        role = np.concatenate([np.zeros(150, dtype=int), np.repeat(np.arange(1, 61), each)])
        asked = [rng.permutation(50)[:each] for _ in range(60)]
        question = np.concatenate([np.arange(150) % 50, *asked])
        a = rng.normal(size=(61, 20))
        y = torch.from_numpy(a[role] + rng.normal(size=(50, 20))[question] + rng.normal(size=(len(role), 20)))
        cells = Cells.build([f"r{k}" for k in range(61)], role, question)
        sums = vectors.cell_sums(cells, [y])
        ratio = mixed.variance_ratio(mixed.Moments.of(role, question, [y[:, None]]))[0]
        v = vectors.role_operator(cells, ratio=ratio) @ sums.numpy()
        axis = v[0] - v[1:].mean(0)
        low, high = reliability.bootstrap(cells, sums, axis, 60, seed, ratio).projection.T
        unit = axis / np.linalg.norm(axis)
        centre = (v[1:] - a[1:]).mean(0) @ unit
        true = a[1:] @ unit + centre
        held.append(((low <= true) & (true <= high)).mean())
    assert 0.925 <= np.mean(held) <= 0.98


def test_the_forecast_is_spearman_browns():
    assert forecast(0.9) == pytest.approx(1)
    assert forecast(0.5) == pytest.approx(9)
    assert forecast(0.0) is None


def test_neighbours_that_stand_out_are_truly_alike_and_noise_has_none():
    rng = np.random.default_rng(0)
    clear = {}
    for signal in (0.0, 1.5):
        role, question, instruction = design(rng)
        a = effects(rng, signal)
        a[2::2] = a[1:-1:2]  # roles in pairs
        cells = Cells.build([f"r{k}" for k in range(ROLES + 1)], role, question)
        y = drawn(rng, a, role, question, instruction)
        pairs = reliability.split_fits(cells, 10, 0)
        error = reliability.Products.of(pairs, vectors.cell_sums(cells, [y]), 2.0).cosine_error()
        alike = Alike.of(torch.from_numpy(whole(cells, y)[1]), torch.from_numpy(error))
        clear[signal] = alike.clear.sum(1).mean()
        if signal:
            other = np.arange(ROLES) ^ 1
            assert alike.clear[np.arange(ROLES), other].mean() > 0.7
            raw = vectors.cosine(whole(cells, y)[1], whole(cells, y)[1][other])
            assert (alike.cosine[np.arange(ROLES), other] < raw).all()
            true = a[1:] - a[1:].mean(0)
            true /= np.linalg.norm(true, axis=1, keepdims=True)
            assert ((true @ true.T)[alike.clear] > 0).mean() > 0.98
            assert clear[signal] < ROLES / 4
    assert clear[0.0] < 0.05
