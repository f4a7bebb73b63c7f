"""The experiment on capability: finds a planted loss and no other, and asks lm-eval's tasks of a server once."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personaspace.catalog import load_catalog
from personaspace.errors import RunError, UsageError
from personaspace.experiments.capability import lm_eval as harness
from personaspace.experiments.capability.run import EXPERIMENT, CapabilityOptions, surprise, through_server
from personaspace.experiments.kit import tasks as solving
from personaspace.experiments.kit.checks import passes
from personaspace.experiments.kit.tasks import outcomes, sums, tasks
from personaspace.experiments.kit.trials import PLAIN, Condition, Reading, Trials
from personaspace.space import PersonaSpace
from personaspace.stats.intervals import change
from planted import PlantedEngine, planted_space
from served import serving

ROOT = Path(__file__).parent.parent
SMALL = CapabilityOptions(replies=12, items=12, alphas=(-0.4,), max_new_tokens=8)
CHECKS = {t.prompt: t.check for t in tasks(40, SMALL.seed)}


def conducted(folder, engine, options=SMALL, space=None):
    trials = Trials(engine, space or planted_space(), folder, "capability", options, catalog=load_catalog())
    return EXPERIMENT.conduct(trials)


def solve(at, messages):
    """Right above 0 on the axis, wrong below."""
    check = CHECKS.get(messages[-1]["content"], {})
    said = " ".join(check.get("all", [])) if "all" in check else f"The answer is {check.get('equals', 0)}."
    return said if at > -0.5 else "I do not know"


def test_a_planted_loss_is_found_and_a_cap_that_takes_nothing_loses_nothing(tmp_path):
    engine = PlantedEngine(lambda messages, rng: 2.0, solve, lambda floor: -1.1 if floor > -9 else -1.0)
    result = conducted(tmp_path, engine)
    own = result.figures["tasks"]
    for kind in ("fact", "arithmetic"):
        assert own["plain"][kind].value.value == 1.0
        assert own["α -0.40"][kind].change.high < -0.5
        assert own["capped"][kind].change.value == 0
    assert own["α -0.40"]["all"].verdict() == "a loss"
    assert own["α -0.40"]["all"].p < 0.001
    assert own["capped"]["all"].verdict().startswith("no change that can be told from none")
    found = result.figures["perplexity"]
    assert found["capped"]["factor"].value == pytest.approx(math.exp(0.1))
    assert found["α -0.40"]["factor"].value == pytest.approx(1.0)
    assert "× 1.105" in result.headline
    assert (tmp_path / "report.html").stat().st_size > 1_000_000
    assert json.loads((tmp_path / "results.json").read_text())["figures"]["shown"] == "capped"
    # Only a floor costs anything here: no random direction does.
    beside = result.figures["beside"]["capped"]
    assert (len(beside.random), set(beside.random), beside.is_the_axis) == (20, {0.0}, True)
    assert "beyond their 95th percentile" in result.headline
    assert len(result.figures["beside"]["α -0.40"].random) == 20
    assert [f.value for f in result.key if "20 random directions" in f.name] == ["not beyond", "beyond"]


def reading(name, tokens, logprob):
    return Reading(name, 0, tokens, 0.0, logprob, 0)


@pytest.mark.long
@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.floats(-5, -0.1), st.floats(-5, -0.1)), min_size=2, max_size=6))
def test_perplexity_weighs_tokens_and_its_factor_is_that_of_the_two(values):
    plain = [reading(f"{k}", n, a) for k, (n, a, _) in enumerate(values)]
    other = [reading(f"{k}", n, b) for k, (n, _, b) in enumerate(values)]
    (before, _), (after, factor) = surprise(plain, plain), surprise(plain, other)
    total = sum(n for n, _, _ in values)
    assert after.value == pytest.approx(math.exp(-sum(n * b for n, _, b in values) / total))
    assert factor.value == pytest.approx(after.value / before.value)
    assert factor.low <= factor.value + 1e-9
    assert factor.high >= factor.value - 1e-9


# -- the tasks ---------------------------------------------------------------------------------------------------------


def test_sums_are_right_differ_and_come_again_with_the_seed():
    made = sums(200, 3)
    assert made == sums(200, 3) != sums(200, 4)
    assert len({t.prompt for t in made}) == len({t.name for t in made}) == 200
    for task in made:
        a, b = (int(x) for x in "".join(c if c.isdigit() else " " for c in task.prompt).split())
        assert task.check["equals"] in (a + b, a - b, a * b)
        assert passes(task.check, f"It is {task.check['equals']}.")


def test_tasks_are_as_many_of_each_kind_as_there_are():
    some = tasks(48, 0)
    assert [sum(t.category == c for t in some) for c in solving.CATEGORIES] == [48, 40, 48]
    assert len({t.name for t in tasks(5, 0)}) == 15


def test_an_empty_reply_solves_nothing():
    task = solving.Task("instruction", "a", "Do not say snow.", {"kind": "excludes", "any": ["snow"]})
    trial = solving.Given("plain", "a", "  ", 0, "stop", math.nan, 0)
    assert solving.marked([task], [trial])[0] == {"plain": [False]}


# -- changes -----------------------------------------------------------------------------------------------------------


def test_the_interval_of_a_change_is_newcombes():
    """The example of his paper on paired shares (1998): 36, 12, 2 and 0 of 50."""
    first, second = [True] * 36 + [False] * 12 + [True] * 2, [True] * 48 + [False] * 2
    found = change(first, second)
    assert found.value == pytest.approx(0.20)
    assert (found.low, found.high) == pytest.approx((0.0569, 0.3404), abs=1e-4)


def test_the_interval_of_a_change_holds_the_truth_as_often_as_it_says():
    rng, held = np.random.default_rng(0), 0
    for _ in range(300):
        first = rng.random(60) < 0.5
        second = np.where(rng.random(60) < 0.8, first, rng.random(60) < 0.2)
        found = change(first.tolist(), second.tolist())
        held += found.low <= -0.06 <= found.high
    assert held / 300 > 0.92


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
@settings(max_examples=40, deadline=None)
def test_a_change_turned_round_is_its_own_mirror(pairs):
    first, second = (list(x) for x in zip(*pairs, strict=True))
    found, back = change(first, second), change(second, first)
    assert (found.low, found.value, found.high) == pytest.approx((-back.high, -back.value, -back.low))
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high


def test_scores_that_are_no_shares_are_compared_as_such():
    rng = np.random.default_rng(1)
    plain = rng.normal(60, 10, 40).tolist()
    found = outcomes({"plain": plain, "capped": [x - 5 + e for x, e in zip(plain, rng.normal(size=40), strict=True)]})
    o = found["capped"]["all"]
    assert o.scored
    assert o.change.low < -5 < o.change.high < -4
    assert (o.lost, o.verdict()) == (40, "a loss")
    assert found["plain"]["all"].change is None


def test_a_task_put_to_a_server_is_compared_over_the_items_that_all_have():
    rows = [
        {"part": "quiz", "condition": c, "measure": "acc", "item": f"{k}", "value": float(v)}
        for c, values in {"plain": [1, 1, 0], "capped": [0, 1]}.items()
        for k, v in enumerate(values)
    ]
    found = through_server(rows)["quiz (acc)"]["capped"]
    assert (found.value.n, found.lost, found.gained) == (2, 1, 0)


# -- lm-eval -----------------------------------------------------------------------------------------------------------

CAPPED = [PLAIN, Condition("α +0.10", alpha=0.1), Condition("capped", cap="capped")]
OWN = str(ROOT / "tests" / "data")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.chdir(ROOT)  # the task's file names its data from there


def test_without_lm_eval_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(UsageError, match=r"pip install 'personaspace\[eval\]'"):
        harness.ready(["gsm8k"], "http://x", "", CAPPED, "planted")


def test_a_models_name_says_which_cap_and_steering_is_not_asked_of_a_server(offline):
    found = harness.ready(["capitals_said"], "http://127.0.0.1:1/", OWN, CAPPED, "me/model")
    assert found.models == {"plain": "model", "capped": "model:capped"}
    assert found.url == "http://127.0.0.1:1/v1"


def test_a_task_that_is_none_is_said_with_the_nearest(monkeypatch):
    class Manager:
        all_tasks = ("gsm8k", "ifeval")

        def __init__(self, include_path, include_defaults=True):
            assert include_path is None

    monkeypatch.setattr("lm_eval.tasks.TaskManager", Manager)
    with pytest.raises(UsageError, match="--tasks gsm8kk: lm-eval has no such task; nearest: gsm8k"):
        harness.ready(["gsm8kk"], "http://x", "", CAPPED, "planted")


def test_a_server_that_is_not_there_is_said_in_a_line(offline, tmp_path, smollm2):
    options = SMALL.model_copy(update={"tasks": ("capitals_said",), "include_path": OWN})
    space = PersonaSpace.load("smollm2")
    with pytest.raises(UsageError, match="--tasks needs --url"):
        conducted(tmp_path / "a", smollm2, options, space)
    with pytest.raises(RunError, match="no server that lists its models answers"):
        conducted(tmp_path / "b", smollm2, options.model_copy(update={"url": "http://127.0.0.1:1"}), space)


@pytest.mark.long
def test_lm_evals_tasks_are_asked_plain_and_capped_and_not_again(offline, tmp_path, smollm2, monkeypatch):
    space = PersonaSpace.load("smollm2")
    small = {"replies": 2, "items": 1, "alphas": (), "max_new_tokens": 4, "include_path": OWN, "limit": 2}
    with serving(space, smollm2, max_tokens=64) as (address, _):
        options = CapabilityOptions(**small, tasks=("capitals_said", "capitals_chosen"), url=address)
        result = conducted(tmp_path / "run", smollm2, options, space)
    put = result.figures["lm_eval"]
    assert set(put) == {"capitals_said (exact_match, named)", "capitals_chosen (acc)", "capitals_chosen (acc_norm)"}
    assert put["capitals_chosen (acc)"]["capped"].value.value == 1.0
    assert all(by["capped"].value.n == 2 for by in put.values())
    assert "capitals_chosen (acc): 100%" in result.headline
    monkeypatch.setattr(harness.Harness, "_ask", None)  # the server is gone, and what was answered is kept
    again = conducted(tmp_path / "run", smollm2, options, space)
    assert again.figures["lm_eval"] == put
    assert {r["part"] for r in again.rows} == {"tasks", "default", "capitals_said", "capitals_chosen"}
