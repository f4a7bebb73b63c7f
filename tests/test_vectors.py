"""The two-way model, the rotation and the reliabilities, against plain arithmetic and planted effects."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from personaspace.catalog import DEFAULT, Catalog, Question, Role
from personaspace.engines.prompts import Design, assign, next_round, rotation, shards
from personaspace.errors import DesignError
from personaspace.stats import mixed, reliability, vectors
from personaspace.stats.forecast import spearman_brown
from personaspace.stats.vectors import Cells

ROLES, QUESTIONS, HIDDEN = 6, 8, 5


def catalog(roles: int = 12, questions: int = 10, instructions: int = 5) -> Catalog:
    texts = tuple(f"Be it, {k}." for k in range(instructions))
    made = tuple(Role(role=f"role{k}", instructions=texts) for k in range(roles))
    return Catalog("test", made, tuple(Question(id=k, question=f"q{k}?") for k in range(questions)), (None, "Be."))


def effects(cells: Cells, values: np.ndarray) -> np.ndarray:
    sums = vectors.cell_sums(cells, [torch.from_numpy(values)])
    return vectors.role_operator(cells) @ sums.numpy()


def planted(noise: float, drop: float, repeat: int = 1, seed: int = 0, questions: int = QUESTIONS):
    """Responses of known role and question effects (questions' sum to zero), some of them missing."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(ROLES, HIDDEN)), rng.normal(size=(questions, HIDDEN))
    b -= b.mean(0)
    role, question = (np.repeat(x.ravel(), repeat) for x in np.meshgrid(range(ROLES), range(questions), indexing="ij"))
    keep = rng.random(len(role)) >= drop
    role, question = role[keep], question[keep]
    y = a[role] + b[question] + noise * rng.normal(size=(len(role), HIDDEN))
    return Cells.build([DEFAULT, *(f"r{k}" for k in range(1, ROLES))], role, question), y, role, question, a


def test_complete_data_gives_the_plain_means():
    cells, y, role, _, _ = planted(noise=1.0, drop=0)
    means = np.stack([y[role == r].mean(0) for r in range(ROLES)])
    assert np.allclose(effects(cells, y), means)


def test_planted_effects_come_back_exactly_without_noise_though_responses_are_missing():
    cells, y, _, _, a = planted(noise=0, drop=0.5, repeat=2)
    assert np.allclose(effects(cells, y), a)


def test_planted_effects_come_back_within_their_error_with_noise_and_gaps():
    cells, y, role, _, a = planted(noise=0.5, drop=0.3, repeat=30)
    error = 0.5 / np.sqrt(np.bincount(role))
    assert (np.abs(effects(cells, y) - a) < 6 * error[:, None]).all()


def test_effects_are_those_of_plain_least_squares():
    cells, y, role, question, _ = planted(noise=1.0, drop=0.4, repeat=2)
    design = np.zeros((len(y) + 1, ROLES + QUESTIONS))
    design[np.arange(len(y)), role] = 1
    design[np.arange(len(y)), ROLES + question] = 1
    design[-1, ROLES:] = 1  # the constraint, as one more equation that is met exactly
    solved = np.linalg.lstsq(design, np.vstack([y, np.zeros(HIDDEN)]), rcond=None)[0][:ROLES]
    assert np.allclose(effects(cells, y), solved)


def test_roles_and_questions_that_fall_apart_are_refused_by_name():
    cells = Cells.build([DEFAULT, "ghost", "pilot"], np.array([0, 1, 2]), np.array([0, 0, 1]))
    with pytest.raises(DesignError, match="pilot"):
        vectors.role_operator(cells)


def test_a_role_without_responses_under_the_weights_is_nan_and_leaves_the_axis_whole():
    cells = Cells.build([DEFAULT, "ghost", "pilot"], np.array([0, 0, 1, 2]), np.array([0, 1, 0, 1]))
    operator = vectors.role_operator(cells, np.array([1.0, 0.0]))
    assert np.isnan(operator[2]).all()
    assert not np.isnan(vectors.axis_weights(operator)).any()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 400), st.integers(1, 40), st.integers(1, 7))
def test_every_beginning_of_the_rotation_is_balanced_to_one(n, questions, instructions):
    pairs = rotation(n, questions, instructions)
    for counts in (
        np.bincount(pairs[:, 0], minlength=questions),
        np.bincount(pairs[:, 1], minlength=instructions),
        np.bincount(pairs[:, 0] * instructions + pairs[:, 1], minlength=questions * instructions),
    ):
        assert counts.max() - counts.min() <= 1


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 30), st.integers(4, 40), st.integers(1, 4), st.integers(0, 99))
def test_a_run_is_balanced_and_asks_no_role_a_question_twice(roles, questions, per_role, seed):
    c = catalog(roles, questions)
    prompts = assign(c, [{DEFAULT: questions, **{r.role: per_role for r in c.roles}}], seed)[0]
    mine = [p for p in prompts if p.role != DEFAULT]
    counts = np.bincount([p.question for p in mine], minlength=questions)
    assert counts.max() - counts.min() <= 1
    used = np.bincount([p.instruction for p in mine], minlength=5)
    assert used.max() - used.min() <= 1
    if questions >= 4 * per_role:
        assert len({(p.role, p.question) for p in mine}) == len(mine)


def test_a_further_round_leaves_the_earlier_ones_as_they_are():
    c = catalog()
    first = {DEFAULT: 20, **{r.role: 2 for r in c.roles}}
    alone = assign(c, [first], 0)
    both = assign(c, [first, {DEFAULT: 5, "role3": 2}], 0)
    assert both[0] == alone[0]
    assert [p.index for p in both[1] if p.role == "role3"] == [2, 3]


def test_the_next_responses_go_where_the_axis_error_falls_most():
    given = next_round({DEFAULT: 10, **{f"r{k}": 4 for k in range(10)}}, 20)
    assert given == {DEFAULT: 20}
    assert next_round({DEFAULT: 1000, "a": 1, "b": 5}, 3) == {"a": 3}


def test_the_number_of_questions_follows_the_design_and_a_sparse_one_is_said():
    few = catalog(roles=42, questions=240)
    assert Design(per_role=4).questions(few) == 16
    assert Design(per_role=10).questions(catalog(275, 240)) == 240
    assert Design(per_role=4).questions(catalog(275, 240)) == 110
    assert Design(complete=True).questions(few) == 240
    assert Design(per_role=40).questions(catalog(2, 60)) == 40
    assert "questions=16" in Design(per_role=4).sparseness(few)
    assert Design(per_role=4).sparseness(catalog(42, 16)) is None


def test_shards_hold_every_prompt_once():
    c = catalog()
    prompts = assign(c, [{DEFAULT: 20, **{r.role: 3 for r in c.roles}}], 0)[0]
    cut = shards(prompts, 7, 0)
    assert sorted((p.role, p.index) for s in cut for p in s) == sorted((p.role, p.index) for p in prompts)
    assert max(map(len, cut)) == 7


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000))
def test_halves_give_every_role_responses_on_both_sides(seed):
    rng = np.random.default_rng(seed)
    asked = [(r, q) for r in range(60) for q in rng.choice(40, 4, replace=False)]
    cells = Cells.build([DEFAULT, *(f"r{k}" for k in range(1, 60))], *np.array(asked).T)
    side = reliability.halves(cells, rng)
    for r in range(60):
        mine = side[cells.block[cells.role == r]]
        assert mine.any()
        assert not mine.all()


def test_reliability_is_near_one_without_noise_and_low_for_noise_alone():
    good, y, *_ = planted(noise=0.01, drop=0, repeat=2)
    bad, z, *_ = planted(noise=0, drop=0, repeat=2)
    z = np.random.default_rng(1).normal(size=(len(z), 200))
    for cells, values, low, high in ((good, y, 0.99, 1.0), (bad, z, 0.0, 0.5)):
        sums = vectors.cell_sums(cells, [torch.from_numpy(values[:, None])])
        half = reliability.split_half(reliability.split_fits(cells, 10, 0), sums, np.zeros(1)).axis
        assert low <= spearman_brown(half)[0] <= high


def test_intervals_hold_the_estimate_and_shrink_with_more_questions():
    widths = []
    for questions in (8, 80):
        cells, y, *_ = planted(noise=1.0, drop=0, questions=questions)
        sums = vectors.cell_sums(cells, [torch.from_numpy(y)])
        found = vectors.role_operator(cells) @ sums.numpy()
        axis = found[0] - found[1:].mean(0)
        intervals = reliability.bootstrap(cells, sums, axis, 100, 0)
        on = found[1:] @ (axis / np.linalg.norm(axis))
        assert ((intervals.projection[:, 0] <= on) & (on <= intervals.projection[:, 1])).all()
        widths.append(np.ptp(intervals.projection, axis=1).mean())
    assert widths[1] < 0.5 * widths[0]


@pytest.mark.parametrize("each", [2, 4])
def test_a_roles_interval_holds_its_true_place_also_after_few_questions(each):
    rng = np.random.default_rng(0)
    roles, questions, hidden, held = 60, 120, 6, []
    for _ in range(5):
        effect, of_question = rng.normal(size=(roles + 1, hidden)), rng.normal(size=(questions, hidden))
        of_question -= of_question.mean(0)
        role = np.repeat(np.arange(roles + 1), [questions, *[each] * roles])
        question = np.concatenate([np.arange(questions), *[rng.permutation(questions)[:each] for _ in range(roles)]])
        y = torch.from_numpy(effect[role] + of_question[question] + rng.normal(size=(len(role), hidden)))
        cells = Cells.build([f"r{k}" for k in range(roles + 1)], role, question)
        sums = vectors.cell_sums(cells, [y])
        operator = vectors.role_operator(cells)
        axis = vectors.axis_weights(operator) @ sums.numpy()
        low, high = reliability.bootstrap(cells, sums, axis, 100, 0).projection.T
        true = effect[1:] @ axis / np.linalg.norm(axis)
        held.append(((low <= true) & (true <= high)).mean())
    assert 0.91 <= np.mean(held) <= 0.99


@pytest.mark.parametrize("roles", [10, 40])
def test_a_design_that_holds_together_has_an_axis_of_every_fold(roles):
    asked = catalog(roles, 240)
    for seed in range(3):
        prompts = assign(asked, [Design().first_round(asked)], seed)[0]
        names = [DEFAULT, *(r.role for r in asked.roles)]
        role = np.array([names.index(p.role) for p in prompts])
        question = np.array([p.question for p in prompts])
        cells = Cells.build(names, role, question)
        sums = vectors.cell_sums(cells, [torch.from_numpy(np.random.default_rng(seed).normal(size=(len(role), 2, 5)))])
        _, axes = vectors.fold_axes(cells, sums, 10, seed, np.zeros(2))
        assert torch.isfinite(axes).all()


def test_separation_is_the_planted_difference_in_standard_deviations():
    rng = np.random.default_rng(0)
    question = np.repeat(np.arange(50), 40)
    is_default = np.tile(np.arange(40) < 15, 50)
    y = 3.0 * rng.normal(size=50)[question] + 1.5 * is_default + rng.normal(size=2000)
    assert vectors.separation(y[:, None], is_default, question)[0] == pytest.approx(1.5, abs=0.12)


def test_the_first_layer_within_a_standard_error_of_the_best_is_taken():
    by_fold = np.array([[0.0, 1.0, 1.4, 1.5], [0.0, 1.2, 1.6, 1.5], [0.0, 1.1, 1.5, 1.7]])
    assert vectors.pick_layer(by_fold) == 2


def test_where_no_split_can_be_made_every_role_has_a_reliability_and_it_is_unknown():
    cells = Cells.build(["default", *"abcde"], np.arange(6), np.zeros(6, dtype=int))
    products = reliability.Products.of([], torch.zeros(7, 1, 4), 1.0)
    assert len(products.values) == 0
    assert np.isnan(reliability.split_half([], torch.zeros(7, 1, 4), np.ones(1)).order).all()
    assert np.isnan(
        reliability.Products.of(reliability.split_fits(cells, 3, 0), torch.zeros(7, 1, 4), 1.0).role_split_half()
    ).all()


def scattered(rng: np.random.Generator, roles: int, each: int, questions: int) -> tuple[np.ndarray, np.ndarray]:
    """Role and question of a default that answers half as much as all roles, and of roles asked questions at random."""
    default = np.arange(max(2, roles * each // 2))
    role = np.concatenate([np.zeros(len(default), dtype=int), np.repeat(np.arange(1, roles + 1), each)])
    asked = [rng.permutation(questions)[:each] for _ in range(roles)]
    return role, np.concatenate([default % questions, *asked])


@pytest.mark.parametrize(("roles", "each", "questions"), [(42, 4, 120), (42, 4, 24), (275, 12, 240)])
@pytest.mark.parametrize("spread", [0.05, 0.5, 2.0])
def test_random_questions_are_never_worse_than_the_better_of_plain_means_and_fixed_questions(
    roles, each, questions, spread
):
    errors = {"fixed": [], "plain": [], "random": []}
    for seed in range(5):
        rng = np.random.default_rng(seed)
        role, question = scattered(rng, roles, each, questions)
        a, b = rng.normal(size=(roles + 1, 40)), spread * rng.normal(size=(questions, 40))
        y = torch.from_numpy(a[role] + b[question] + rng.normal(size=(len(role), 40)))[:, None]
        cells = Cells.build([f"r{k}" for k in range(roles + 1)], role, question)
        fit, sums = vectors.Fit(cells), vectors.cell_sums(cells, [y])
        ratio = mixed.variance_ratio(mixed.Moments.of(role, question, [y]))
        for name, ratios in (("fixed", np.zeros(1)), ("plain", np.full(1, np.inf)), ("random", ratio)):
            off = fit.effects(sums, ratios)[1:, 0].numpy() - a[1:]
            errors[name].append(((off - off.mean(0)) ** 2).mean())
    mean = {name: np.mean(values) for name, values in errors.items()}
    assert mean["random"] <= 1.05 * min(mean["fixed"], mean["plain"])


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([0.0, 0.1, 1.0, 30.0, np.inf]), st.integers(1, 3))
def test_complete_data_give_plain_means_at_any_ratio(ratio, repeat):
    cells, y, role, _, _ = planted(noise=1.0, drop=0, repeat=repeat)
    sums = vectors.cell_sums(cells, [torch.from_numpy(y)])
    means = np.stack([y[role == r].mean(0) for r in range(ROLES)])
    assert np.allclose(vectors.role_operator(cells, ratio=ratio) @ sums.numpy(), means)


def test_the_mixed_model_is_generalised_least_squares_and_its_leverage_and_error_are_those_of_plain_matrices():
    cells, y, role, question, _ = planted(noise=1.0, drop=0.4, repeat=2)
    roles, questions = np.eye(ROLES)[role], np.eye(QUESTIONS)[question]
    for ratio in (0.25, 3.0):
        weight = np.linalg.inv(np.eye(len(y)) + questions @ questions.T / ratio)
        solved = np.linalg.solve(roles.T @ weight @ roles, roles.T @ weight @ y)
        sums = vectors.cell_sums(cells, [torch.from_numpy(y)])
        assert np.allclose(vectors.role_operator(cells, ratio=ratio) @ sums.numpy(), solved)
        design, penalty = np.hstack([roles, questions]), np.diag([0.0] * ROLES + [ratio] * QUESTIONS)
        inverse = np.linalg.inv(design.T @ design + penalty)
        fit = vectors.Fit(cells)
        assert np.allclose(fit.error(ratio), np.diag(inverse)[:ROLES])
        hat = np.diag(design @ inverse @ design.T)
        assert np.allclose(fit.leverage(ratio)[role, question], hat)


def test_the_variance_ratio_is_the_planted_one_as_a_power_of_two():
    rng = np.random.default_rng(0)
    role, question = scattered(rng, 100, 6, 60)
    errors = rng.normal(size=(len(role), 3, 200))
    scale = np.array([0.0, 0.5, 2.0])[:, None]
    y = torch.from_numpy(1000 + errors + (scale * rng.normal(size=(60, 3, 200)))[question])
    ratio = mixed.variance_ratio(mixed.Moments.of(role, question, y.split(100)))
    assert ratio[0] >= 256
    assert ratio[1:].tolist() == [4.0, 0.25]


def test_fixed_questions_pull_the_axis_to_the_first_component_and_random_ones_do_not():
    cosines = {"fixed": [], "plain": [], "random": []}
    for seed in range(6):
        rng = np.random.default_rng(seed)
        role, question = scattered(rng, 42, 4, 120)
        # Noise is large in few directions: the default's and the roles' shared errors in questions' effects line up there.
        y = rng.normal(size=(len(role), 300)) + 0.3 * rng.normal(size=(120, 300))[question]
        y *= 3 / np.arange(1, 301)
        y[:, 100] += 0.5 * rng.normal(size=43)[role] * (role > 0)
        y[:, 101] += 0.5 * (role == 0)
        cells = Cells.build([f"r{k}" for k in range(43)], role, question)
        values = torch.from_numpy(y)[:, None]
        sums, ratio = vectors.cell_sums(cells, [values]), mixed.Moments.of(role, question, [values])
        for name, ratios in (("fixed", 0.0), ("plain", np.inf), ("random", mixed.variance_ratio(ratio)[0])):
            v = vectors.role_operator(cells, ratio=ratios) @ sums[:, 0].numpy()
            cosines[name].append(abs(vectors.cosine(v[0] - v[1:].mean(0), vectors.first_component(v[1:]))))
    mean = {name: np.mean(values) for name, values in cosines.items()}
    assert mean["fixed"] > mean["plain"] + 0.1
    assert mean["random"] <= mean["plain"] + 0.03


def test_random_questions_bear_a_design_that_falls_apart():
    cells = Cells.build([DEFAULT, "ghost", "pilot"], np.array([0, 1, 2]), np.array([0, 0, 1]))
    assert np.isfinite(vectors.role_operator(cells, ratio=1.0)).all()
