"""Shares, means and what is drawn about them, by plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personaspace.stats import intervals
from personaspace.stats.intervals import Estimate


def test_a_bootstrap_is_the_percentiles_of_the_figure_over_groups_drawn_whole():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(25), rng.integers(1, 4, 25))
    values = rng.normal(size=len(groups))
    told = intervals.bootstrap(groups.tolist(), lambda rows: float(np.median(values[rows])), seed=4, draws=300)
    parts = [np.flatnonzero(groups == k) for k in range(25)]
    drawing, figures = np.random.default_rng(4), []
    for _ in range(300):
        rows = [row for k in drawing.integers(25, size=25) for row in parts[k]]
        figures.append(np.median(values[rows]))
    assert (told.low, told.high) == pytest.approx(np.quantile(figures, [0.025, 0.975]).tolist())
    assert (told.value, told.n) == (pytest.approx(np.median(values)), 25)


def test_draws_without_a_figure_are_left_out_and_none_leaves_no_interval():
    flags = np.array([1.0] * 3 + [0.0] * 27)
    ratio = intervals.bootstrap(range(30), lambda rows: 1 / flags[rows].sum() if flags[rows].any() else math.nan)
    assert math.isfinite(ratio.low)
    assert ratio.value == pytest.approx(1 / 3)
    never = intervals.bootstrap(range(30), lambda rows: math.nan)
    assert math.isnan(never.low)
    assert never.n == 30
    empty = intervals.bootstrap([], lambda rows: 1.0)
    assert (math.isnan(empty.value), empty.n) == (True, 0)
    assert math.isfinite(intervals.bootstrap(["a", "b"], lambda rows: float(rows.mean())).low)


@pytest.mark.parametrize("n", [3, 7, 19])
def test_under_twenty_groups_the_interval_is_students_about_the_jackknifes_error(n):
    from scipy.stats import t

    rng = np.random.default_rng(n)
    groups, values = np.repeat(np.arange(n), 2), rng.normal(size=2 * n)
    told = intervals.estimate(groups.tolist(), lambda rows: float(np.exp(values[rows]).mean()))
    without = [np.exp(values[groups != k]).mean() for k in range(n)]
    error = math.sqrt((n - 1) / n * sum((w - np.mean(without)) ** 2 for w in without))
    reach = t.ppf(0.975, n - 1) * error
    assert (told.low, told.high) == pytest.approx((told.value - reach, told.value + reach))
    assert told.n == n


def test_from_twenty_groups_on_it_is_a_bootstrap():
    values = np.random.default_rng(1).normal(size=20)

    def figure(rows: np.ndarray) -> float:
        return float(values[rows].mean())

    assert intervals.estimate(range(20), figure, 3, 200) == intervals.bootstrap(range(20), figure, 3, 200)
    assert math.isnan(intervals.estimate([], figure).value)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.floats(-5, 5), st.just(math.nan)), min_size=1, max_size=12))
def test_a_mean_is_of_what_is_there_and_says_how_many_are_not(values):
    told, there = intervals.mean(values), [v for v in values if v == v]
    assert told.missing == len(values) - len(there)
    assert told.n == len(there)
    if there:
        assert told.value == pytest.approx(sum(there) / len(there), abs=1e-9)


def test_kinds_are_counted_among_what_was_judged():
    told = intervals.shares_of(["a", "b", None, "a", math.nan], ["a", "b", "c"])
    assert {k: (e.value, e.n, e.missing) for k, e in told.items()} == {
        "a": (pytest.approx(2 / 3), 3, 2),
        "b": (pytest.approx(1 / 3), 3, 2),
        "c": (0.0, 3, 2),
    }


def test_where_nothing_was_judged_there_is_no_share_and_that_is_said():
    nothing = intervals.share([None, math.nan])
    assert (nothing.n, nothing.missing, math.isnan(nothing.value)) == (0, 2, True)
    assert (f"{nothing:.0%}", f"{nothing:.2f}") == ("none judged (2 missing)", "none (2 missing)")


def test_holms_p_is_the_smallest_times_as_many_as_are_left_and_never_falls():
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 9):
        p = rng.random(n) ** 2
        expected, so_far = np.empty(n), 0.0
        for k, place in enumerate(sorted(range(n), key=lambda i: p[i])):
            so_far = max(so_far, min(p[place] * (n - k), 1.0))
            expected[place] = so_far
        assert intervals.holm(p).tolist() == pytest.approx(expected.tolist())


def test_signs_are_counted_without_those_that_are_nothing():
    told = intervals.sign_test([1.0, 2.0, -0.5, 0.0, math.nan, 3.0])
    assert (told.above, told.below, told.n) == (3, 1, 4)
    assert told.p == pytest.approx(2 * (1 + 4) / 16)
    assert intervals.sign_test([0.0, math.nan]).p == 1.0


def test_items_that_either_lacks_are_left_out_of_a_paired_test():
    told = intervals.paired([True, True, None, False, True, True], [False, False, True, None, True, False])
    assert (told.only_first, told.only_second, told.n, told.p) == (3, 0, 4, pytest.approx(0.25))
    assert intervals.paired([True], [True]).p == 1.0


def test_a_change_is_newcombes_tenth_method():
    rng = np.random.default_rng(0)
    for n in (5, 24, 80):
        for likeness in (0.0, 0.6, 1.0):
            first = rng.random(n) < 0.5
            second = np.where(rng.random(n) < likeness, first, rng.random(n) < 0.7)
            a, b = intervals.share(first.tolist()), intervals.share(second.tolist())
            both, only_a = sum(first & second), sum(first & ~second)
            only_b, neither = sum(~first & second), sum(~first & ~second)
            cross = both * neither - only_a * only_b
            under = math.sqrt((both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither))
            phi = (max(cross - n / 2, 0) if cross > 0 else cross) / under if under else 0.0
            low_a, high_a, low_b, high_b = a.value - a.low, a.high - a.value, b.value - b.low, b.high - b.value
            below = math.sqrt(max(low_b**2 - 2 * phi * low_b * high_a + high_a**2, 0))
            above = math.sqrt(max(high_b**2 - 2 * phi * high_b * low_a + low_a**2, 0))
            told = intervals.change(first.tolist(), second.tolist())
            difference = b.value - a.value
            assert told.value == pytest.approx(difference)
            assert (told.low, told.high) == pytest.approx(
                (max(difference - below, -1), min(difference + above, 1)), abs=1e-9
            )
    assert math.isnan(intervals.change([], []).value)


def by_rank(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's by plain loops, ties sharing their mean rank."""

    def ranks(values: np.ndarray) -> list[float]:
        return [sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values]

    if len(set(x.tolist())) < 2 or len(set(y.tolist())) < 2:
        return 0.0
    return float(np.corrcoef(ranks(x), ranks(y))[0, 1])


def test_a_trend_and_its_difference_between_sides_are_rank_correlations():
    rng = np.random.default_rng(0)
    strength, is_so = rng.integers(0, 5, 48).astype(float), rng.random(48) < 0.4
    groups, side = (np.arange(48) // 6).tolist(), np.tile([1, -1], 24)
    assert intervals.trend(strength, is_so, groups).value == pytest.approx(by_rank(strength, is_so * 1.0))
    on = [by_rank(strength[side == s], is_so[side == s] * 1.0) for s in (1, -1)]
    assert intervals.trend_difference(strength, is_so, groups, side).value == pytest.approx(on[0] - on[1])
    more = is_so[side > 0].mean() - is_so[side < 0].mean()
    assert intervals.mean_difference(is_so, groups, side).value == pytest.approx(more)
    assert intervals.trend(np.ones(48), is_so, groups).value == 0
    assert intervals.trend(strength, np.zeros(48, dtype=bool), groups).value == 0
    assert math.isnan(intervals.mean_difference(is_so, groups, np.ones(48, dtype=int)).value)
    perfect = intervals.trend(np.arange(48.0), np.arange(48) >= 24, groups)
    assert perfect.high <= 1


def test_an_estimate_is_said_in_points_with_its_sign():
    assert Estimate(-0.125, -0.31, 0.04, 20).points() == "−12 (−31 to +4)"
    assert Estimate(0.2, math.nan, math.nan, 2).points() == "+20 (? to ?)"
    assert Estimate(math.nan, math.nan, math.nan, 0).points() == "not known"
    assert Estimate(0.5, 0.25, 0.75, 9).span() == "95%: +0.25 to +0.75"
    assert Estimate(0.5, 0.25, 0.75, 9).span(".1f") == "95%: 0.2 to 0.8"
    assert f"{Estimate(math.nan, math.nan, math.nan, 5, 1):.0%}" == "not known (1 missing)"
    assert f"{Estimate(0.0, 0.0, 0.5, 5):.0%}" == "0% (0–50)"
