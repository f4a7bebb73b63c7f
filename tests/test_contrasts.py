"""Mean differences of pairs: against plain loops, and that intervals hold what was planted."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personaspace.stats.contrasts import Contrast, agreement, cosines_with, tells
from personaspace.stats.forecast import spearman_brown

HIDDEN = 12


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(0, 2**32))
def test_the_reliability_is_what_all_halvings_agree_on_taken_to_the_whole(half, seed):
    rng = np.random.default_rng(seed)
    pairs = rng.normal(size=(2 * half, 5)) + 1
    products, squares = [], []
    for chosen in itertools.combinations(range(2 * half), half):
        rest = [k for k in range(2 * half) if k not in chosen]
        a, b = pairs[list(chosen)].mean(0), pairs[rest].mean(0)
        products.append(a @ b)
        squares.append(a @ a)
    expected = float(spearman_brown(np.mean(products) / np.mean(squares)))
    assert Contrast(pairs, np.zeros(2 * half, int)).reliability() == pytest.approx(min(expected, 1))


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 4), st.integers(0, 2**32))
def test_by_wording_only_pairs_that_share_no_wording_are_set_against_each_other(wordings, seed):
    rng = np.random.default_rng(seed)
    wording = np.arange(3 * wordings) % wordings
    pairs = rng.normal(size=(len(wording), 5)) + 1
    means = [np.mean([p for p, w in zip(pairs, wording, strict=True) if w == k], 0) for k in range(wordings)]
    shared = np.mean([a @ b for a, b in itertools.permutations(means, 2)])
    expected = min(max(shared / (pairs.mean(0) @ pairs.mean(0)), 0), 1)
    assert Contrast(pairs, wording).reliability_by_wording() == pytest.approx(expected)


def test_one_pair_or_one_wording_says_nothing_of_itself():
    assert math.isnan(Contrast(np.ones((1, 3)), np.zeros(1, int)).reliability())
    assert math.isnan(Contrast(np.ones((4, 3)), np.zeros(4, int)).reliability_by_wording())
    alone = cosines_with([Contrast(np.ones((1, 3)), np.zeros(1, int))], np.ones(3), np.zeros((0, 3)), 1.0)
    assert math.isnan(alone.cosine[0].value)
    assert not alone.clear[0]


def planted(rng, cosines, *, pairs=8, noise=1.0, wording=0.0, axis_noise=0.0):
    """Contrasts of length 3 with planted cosines, and an axis that was read with noise."""
    axis = 10 * np.eye(HIDDEN)[0]
    contrasts = []
    for cosine in cosines:
        off = rng.normal(size=HIDDEN - 1)
        vector = 3 * np.concatenate([[cosine], off * (1 - cosine**2) ** 0.5 / np.linalg.norm(off)])
        words = np.arange(pairs) % 2
        differences = vector + wording * rng.normal(size=(2, HIDDEN))[words] + noise * rng.normal(size=(pairs, HIDDEN))
        contrasts.append(Contrast(differences, words))
    read = axis + axis_noise * rng.normal(size=HIDDEN)
    reliability = float(axis @ axis / (axis @ axis + HIDDEN * axis_noise**2))
    return contrasts, read, axis_noise * rng.normal(size=(20, HIDDEN)), reliability


@pytest.mark.parametrize(
    "noisy", [{"noise": 1.5}, {"noise": 3.0}, {"noise": 1.5, "axis_noise": 1.0}, {"noise": 1.0, "wording": 0.7}]
)
def test_planted_cosines_come_back_without_bias_and_within_their_intervals(noisy):
    rng, cosines = np.random.default_rng(1), np.linspace(-0.8, 0.8, 24)
    values, inside = [], []
    for _ in range(50):
        found = cosines_with(*planted(rng, cosines, **noisy))
        assert found.over == "wordings"
        values.append([e.value for e in found.cosine])
        # Of one that is lost in noise nothing is said.
        inside += [e.low <= c <= e.high for e, c in zip(found.cosine, cosines, strict=True) if e.value == e.value]
    slope = float(np.polyfit(cosines, np.nanmean(values, 0), 1)[0])
    # Where the instructions lead off by themselves, a vector is of its texts, whose cosine is nearer 0; the interval knows.
    least = 0.8 if "wording" in noisy else 0.9
    assert least < slope < 1.1
    assert np.mean(inside) > 0.9


def test_of_contrasts_across_the_direction_none_stands_out_in_19_of_20_draws():
    rng = np.random.default_rng(2)
    false = [cosines_with(*planted(rng, np.zeros(40), noise=2.0, axis_noise=0.5)).clear.any() for _ in range(100)]
    assert np.mean(false) <= 0.1
    assert cosines_with(*planted(rng, np.full(40, 0.7), noise=1.0)).clear.all()


def test_few_contrasts_are_known_by_their_questions():
    found = cosines_with(*planted(np.random.default_rng(3), [0.6, -0.6]))
    assert found.over == "questions"
    assert found.cosine[0].low < 0.6 < found.cosine[0].high


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 8), st.integers(0, 2**32))
def test_the_area_under_the_curve_is_the_share_of_comparisons_that_are_won(n, seed):
    rng = np.random.default_rng(seed)
    above, below = rng.integers(0, 6, n).astype(float), rng.integers(0, 5, n).astype(float)
    won = [1.0 if a > b else 0.5 if a == b else 0.0 for a in above for b in below]
    found = tells(above, below, range(n))
    assert found.value == pytest.approx(np.mean(won))
    assert math.isnan(found.low) or found.low <= found.value <= found.high


def test_sides_that_lie_apart_altogether_are_not_said_to_be_sure():
    few, many = (tells(np.ones(n) + np.arange(n), -np.arange(n), range(n)) for n in (5, 40))
    assert few.value == many.value == 1
    assert few.low < 0.8 < many.low < 1


def test_two_readings_of_the_same_vectors_agree_whatever_their_noise_and_two_of_others_do_not():
    rng = np.random.default_rng(4)
    vectors = [3 * np.eye(HIDDEN)[k % HIDDEN] for k in range(40)]

    def read(noise, of):
        words = np.arange(6) % 2
        return [
            Contrast(v + 0.5 * rng.normal(size=(2, HIDDEN))[words] + noise * rng.normal(size=(6, HIDDEN)), words)
            for v in of
        ]

    same = agreement(read(1.0, vectors), read(0.5, vectors))
    assert same.low <= 1 <= same.high + 0.05
    assert abs(same.value - 1) < 0.15
    other = agreement(read(2.0, vectors), read(1.0, vectors[1:] + vectors[:1]))
    assert other.low <= 0 <= other.high
    assert math.isnan(agreement(*[[Contrast(np.ones((4, 3)), np.zeros(4, int))]] * 2).value), "one wording"
