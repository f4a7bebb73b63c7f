"""Every bench's ratios stand beside the least and the most of their rounds, and say how sure these make them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from personaspace.bench.measure import EXACT, ONCE, ratios, rounds
from test_cli import run


def test_a_ratio_is_the_median_of_its_rounds_with_the_least_and_the_most_of_them():
    measured = ratios(
        {"peer": rounds([2.0, 3.0, 8.0], [1.0, 2.0, 2.0])}, {"memory": (9.0, ONCE), "padding": (0.5, EXACT)}
    )
    assert measured["ratio"] == {"peer": 2.0, "memory": 9.0, "padding": 0.5}
    assert measured["ratio_interval"] == {"peer": [1.5, 4.0], "memory": "one run", "padding": "exact"}
    assert (measured["rounds"], measured["confidence"]) == (3, 0.75)


@pytest.mark.parametrize("n", [2, 3, 6])
def test_least_and_most_hold_the_true_median_as_often_as_they_say_also_of_skewed_rounds(n):
    drawn = np.random.default_rng(n).lognormal(sigma=0.5, size=(4000, n))
    measured = [ratios({"peer": row}) for row in drawn.tolist()]
    held = [low <= 1.0 <= high for m in measured for low, high in m["ratio_interval"].values()]
    assert np.mean(held) == pytest.approx(measured[0]["confidence"], abs=0.03)


def test_the_command_prints_each_ratio_with_its_interval_and_how_sure_that_is(tiny_folder):
    small = ("bench", "overhead", "--model", tiny_folder, "--prompts", "2", "--tokens", "2", "--repeats", "2")
    text = " ".join(run(*small).stdout.split())
    assert "is the median of 2 rounds" in text
    assert "in 50% of such runs" in text
    measured = json.loads(run(*small, "--json").stdout)
    assert sorted(measured["ratio"]) == ["capping 2 layers", "reading every layer"]
    for name, ratio in measured["ratio"].items():
        low, high = measured["ratio_interval"][name]
        assert low <= ratio <= high


@pytest.mark.parametrize("option", ["--repeats", "--prompts", "--tokens", "--words"])
def test_a_bench_of_nothing_is_refused(option):
    assert "Traceback" not in run("bench", "generate", option, "0", expect=2).stderr
