"""What all experiments share: the loop that resumes, judges that fail, intervals; and the command line."""

from __future__ import annotations

import importlib
import json
import math
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import personaspace as ps
from forked import begin_program, finish
from personaspace.catalog import load_catalog
from personaspace.cli import app
from personaspace.errors import RunMismatch, SpaceError, UsageError
from personaspace.experiments.kit.options import Options
from personaspace.experiments.kit.trials import PLAIN, Ask, Condition, Judges, Trials, capped, controls, steered
from personaspace.experiments.registry import EXPERIMENTS, find
from personaspace.judges import Score
from personaspace.stats.intervals import Estimate, bootstrap, estimate, mean, paired, share, trend
from planted import PlantedEngine, planted_space

SAMPLING = ps.Sampling(max_new_tokens=8)


def trials(folder: Path, engine=None, **more) -> Trials:
    made = engine or PlantedEngine(lambda messages, rng: rng.normal())
    return Trials(made, planted_space(), folder, "test", Options(seed=3), catalog=load_catalog(), **more)


def some(n: int, condition: Condition = PLAIN) -> list[Ask]:
    return [Ask(condition, f"item {k}", ({"role": "user", "content": f"thing {k}"},)) for k in range(n)]


def test_conditions_steer_and_cap_what_the_engine_reads(tmp_path):
    made = trials(tmp_path, PlantedEngine(lambda messages, rng: -3.0))
    with made.open(3):
        conditions = [*steered([-0.2, 0.0]), *capped(["capped"])]
        got = made.ask([a for c in conditions for a in some(1, c)], SAMPLING)
    assert [g.condition for g in got] == ["α -0.20", "plain", "capped"]
    assert [g.projection for g in got] == pytest.approx([-5.0, -3.0, 0.0])
    assert [g.touched for g in got] == [8, 0, 8]


def test_a_control_is_as_long_a_step_at_right_angles_to_the_axis_and_another_number_another_direction():
    space = planted_space()
    both = controls([PLAIN, *steered([-0.2]), *capped(["capped"])], directions=2, first=5)
    assert [(c.name, c.control) for c in both] == [
        ("α -0.20 random 1", 5),
        ("α -0.20 random 2", 6),
        ("capped random 1", 5),
        ("capped random 2", 6),
    ]
    (axis,) = Condition("axis", alpha=-0.2).interventions(space)
    steps = [c.interventions(space, {"capped": [0.7]})[0].step for c in both]
    unit = space.axis_at()
    assert [float(step.norm()) for step in steps] == pytest.approx([float(axis.step.norm())] * 2 + [0.7] * 2, rel=1e-5)
    assert [float(step @ unit) for step in steps] == pytest.approx([0.0] * 4, abs=1e-5)
    first, second = steps[:2]
    assert abs(float(first @ second)) < 0.9 * float(first.norm() * second.norm())
    assert both[0].interventions(space)[0].step.equal(first), "the same number, the same direction"


def test_the_control_of_a_cap_moves_tokens_as_far_in_the_mean_and_is_measured_once(tmp_path):
    made = trials(tmp_path, PlantedEngine(lambda messages, rng: -3.0))
    (control,) = controls(capped(["capped"]), directions=1)
    with made.open(2):
        (reply,) = made.ask(some(1, control), SAMPLING)
        assert reply.projection == pytest.approx(-3.0, abs=1e-4), "the axis is left alone"
        assert made.displacement("capped", [some(1)[0].messages]) == pytest.approx([3.0])
        (held,) = made._interventions(control, [])
        assert float(held.step.norm()) == pytest.approx(3.0)
        talk = {"one": [*some(1)[0].messages, {"role": "assistant", "content": "b <-4.0>"}]}
        assert made.read(talk, part="read", condition=control)["one"][0].projection == pytest.approx(-4.0, abs=1e-4)


@pytest.mark.long
def test_on_the_embedded_model_a_caps_control_moves_tokens_as_far_at_each_of_its_layers(tmp_path, smollm2):
    space = ps.PersonaSpace.load("smollm2")
    made = Trials(smollm2, space, tmp_path, "test", Options(), catalog=load_catalog())
    (control,) = controls(capped(["capped"]), directions=1)
    clamp = space.cap("capped")
    messages = ({"role": "system", "content": "You are a ghost."}, {"role": "user", "content": "Who are you?"})
    with made.open(0):
        held = made._interventions(control, [messages])
        expected = made.displacement("capped", [messages])
    (reply,) = smollm2.respond([ps.Prompt(messages)], SAMPLING, read=clamp.layers, interventions=held, before=True)
    moved = (reply.activation - reply.before).norm(dim=-1)
    assert min(expected) >= 0
    assert max(expected) > 1
    assert moved.tolist() == pytest.approx(expected, rel=0.02, abs=0.02)


def test_the_same_item_has_the_same_draw_under_every_condition(tmp_path):
    made = trials(tmp_path)
    with made.open(20):
        plain = made.ask(some(10), SAMPLING, part="a")
        moved = made.ask(some(10, Condition("up", alpha=0.1)), SAMPLING, part="a2")
        again = made.ask(some(10, Condition("up", alpha=0.1)) + some(10), SAMPLING, part="a3")
    assert len({g.projection for g in plain}) == 10
    assert [g.projection for g in again[:10]] == pytest.approx([g.projection + 1 for g in again[10:]])
    assert [g.projection for g in moved] != pytest.approx([g.projection + 1 for g in plain]), (
        "another part, another draw"
    )


def test_a_stopped_experiment_goes_on_and_asks_nothing_twice(tmp_path):
    whole, asked = trials(tmp_path / "whole"), some(300)
    with whole.open(300):
        expected = whole.ask(asked, SAMPLING)
    engine = PlantedEngine(lambda messages, rng: rng.normal())
    limited = trials(tmp_path / "cut", engine)
    engine.where = lambda messages, rng: rng.normal() if engine.asked <= 200 else 1 / 0
    with limited.open(300), pytest.raises(ZeroDivisionError):
        limited.ask(asked, SAMPLING)
    engine.where, engine.asked = (lambda messages, rng: rng.normal()), 0
    with limited.open(300):
        assert limited.ask(asked, SAMPLING) == expected
    assert engine.asked == 300 - 128


def test_a_folder_of_other_options_is_refused_with_the_difference(tmp_path):
    made = trials(tmp_path)
    with made.open(3):
        made.ask(some(3), SAMPLING)
    other = Trials(made.engine, made.space, tmp_path, "test", Options(seed=4), catalog=load_catalog())
    with pytest.raises(RunMismatch, match="seed"), other.open(3):
        pass


def asked_of(name: str, text: str, condition: Condition = PLAIN) -> Ask:
    return Ask(condition, name, ({"role": "user", "content": text},))


@pytest.mark.parametrize(
    "otherwise",
    [
        lambda made: made.ask([asked_of("one", "a <-7.0>")], SAMPLING),
        lambda made: made.ask([asked_of("one", "a <1.0>", Condition("plain", alpha=0.1))], SAMPLING),
        lambda made: made.ask([asked_of("one", "a <1.0>")], ps.Sampling(max_new_tokens=4)),
        lambda made: made.ask([asked_of("one", "a <1.0>")], SAMPLING, seeds="another"),
    ],
    ids=["text", "condition of the same name", "sampling", "seed"],
)
def test_a_reply_is_never_taken_for_one_to_something_else_under_the_same_name(tmp_path, otherwise):
    engine = PlantedEngine(lambda messages, rng: float(messages[-1]["content"].split("<")[1][:-1]))
    made = trials(tmp_path, engine)
    with made.open(2):
        both = made.ask([asked_of("one", "a <1.0>"), asked_of("two", "b <2.0>")], SAMPLING)
        engine.asked = 0
        assert made.ask([asked_of("one", "a <1.0>"), asked_of("two", "b <2.0>")], SAMPLING) == both
        assert engine.asked == 0, "the same is not asked again"
        otherwise(made)
        assert engine.asked == 1


def test_of_a_part_that_changed_only_what_is_new_is_asked(tmp_path):
    engine = PlantedEngine(lambda messages, rng: rng.normal())
    made = trials(tmp_path, engine)
    with made.open(4):
        first = made.ask(some(3), SAMPLING)
        engine.asked = 0
        assert made.ask(some(4), SAMPLING)[:3] == first
    assert engine.asked == 1


def test_a_folder_of_version_0_1_0_goes_on_by_its_names(tmp_path):
    engine = PlantedEngine(lambda messages, rng: rng.normal())
    made = trials(tmp_path, engine)
    talk = {"one": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b <-4.0>"}]}
    with made.open(3):
        replies, readings = made.ask(some(3), SAMPLING), made.read(talk, part="read", logprobs=True)
        made.judge(Moody(), ["1", "2"], "mood")
        for path in made.responses.glob("*.parquet"):  # as that version wrote them
            pq.write_table(pq.read_table(path).drop_columns(["asked"]), path)
        made.keep_scores("mood-moody", {("", 0): (1, 1.0), ("", 1): (0, 0.0)})
        engine.asked, engine.replay, judge = 0, None, Moody()
        assert (made.ask(some(3), SAMPLING), made.read(talk, part="read", logprobs=True)) == (replies, readings)
        assert made.judge(judge, ["1", "2"], "mood") == [1, 0]
    assert engine.asked == 0
    assert not judge.seen


def test_a_cap_that_the_space_lacks_is_named(tmp_path):
    made = trials(tmp_path)
    with made.open(1), pytest.raises(SpaceError, match="no cap 'lid'"):
        made.ask(some(1, Condition("lid", cap="lid")), SAMPLING)


def test_text_is_read_under_a_condition_and_kept(tmp_path):
    engine = PlantedEngine(lambda messages, rng: 0.0, logprob=lambda floor: -2.0 if floor > -9 else -1.0)
    made = trials(tmp_path, engine)
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b <-4.0>"}]
    with made.open(0):
        plain = made.read({"one": talk, "two": talk * 2}, part="plain", logprobs=True)
        held = made.read({"one": talk}, part="held", condition=Condition("capped", cap="capped"), logprobs=True)
        assert [r.projection for r in plain["two"]] == [-4.0, -4.0]
        assert (plain["one"][0].logprob, held["one"][0].logprob) == (-1.0, -2.0)
        assert held["one"][0].projection == 0.0
        replay, engine.replay = engine.replay, None  # what was read is not read again
        assert made.read({"one": talk, "two": talk * 2}, part="plain", logprobs=True) == plain
        engine.replay = replay
        other = [talk[0], {"role": "assistant", "content": "b <-6.0>"}]
        assert made.read({"one": other, "two": talk * 2}, part="plain", logprobs=True)["one"][0].projection == -6.0


class Moody:
    """A judge that cannot score every third item."""

    name = "moody"

    def __init__(self) -> None:
        self.seen: list[str] = []

    def score(self, items):
        for item in items:
            self.seen.append(item)
            yield Score(None, problem="no answer") if int(item) % 3 == 0 else Score(1, 1.0)


def test_what_a_judge_cannot_score_is_missing_and_tried_again(tmp_path):
    made, judge, notes = trials(tmp_path), Moody(), []
    made.watcher.note = notes.append
    items = [str(k) for k in range(7)]
    with made.open(0):
        assert made.judge(judge, items, "mood") == [None, 1, 1, None, 1, 1, None]
        judge.seen.clear()
        made.judge(judge, items, "mood")
    assert judge.seen == ["0", "3", "6"]
    assert "3 of 7 replies could not be judged (no answer)" in notes[0]


def test_a_score_belongs_to_what_was_judged_and_not_to_its_place(tmp_path):
    made, judge = trials(tmp_path), Moody()
    with made.open(0):
        made.judge(judge, ["1", "2"], "mood")
        judge.seen.clear()
        assert made.judge(judge, ["4", "1", "3"], "mood") == [1, 1, None]
    assert judge.seen == ["4", "3"]


# -- intervals ---------------------------------------------------------------------------------------------------------


def test_a_share_is_wilsons_and_counts_what_is_missing():
    found = share([True, False, None, True])
    z, p, n = 1.959964, 2 / 3, 3
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (found.value, found.n, found.missing) == (pytest.approx(2 / 3), 3, 1)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=1e-4)
    assert f"{share([None, None]):.0%}" == "none judged (2 missing)"


def test_an_estimate_says_itself_with_its_interval_and_what_is_missing():
    known, empty, wide = (
        Estimate(-0.4, -0.5, -0.3, 20, 2),
        Estimate(math.nan, math.nan, math.nan, 0, 3),
        Estimate(0.5, -1, 2, 9),
    )
    assert f"{known:+.1f}" == "-0.4 (-0.5 to -0.3, 2 missing)"
    assert f"{wide} {wide:.0%}" == "0.50 (-1.00 to 2.00) 50% (-100 to 200)"
    assert (f"{empty:+.2f}", f"{empty:.0%}") == ("none (3 missing)", "none judged (3 missing)")
    assert f"{Estimate(0.5, math.nan, math.nan, 2):.0%}" == "50% (too few for an interval)"
    assert f"{Estimate(math.nan, math.nan, math.nan, 2):.0%}" == "not known"


def test_an_estimate_says_a_direction_only_where_its_whole_interval_lies_on_one_side():
    intervals = [(0.1, 0.3), (-0.3, -0.1), (-0.1, 0.1), (0.0, 0.2), (math.nan, math.nan)]
    assert [Estimate(0.0, low, high, 9).direction() for low, high in intervals] == [1, -1, 0, 0, 0]


def test_a_bootstrap_over_groups_is_as_wide_as_the_groups_are_few():
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=20), 50)
    apart, together = mean(values), mean(values, np.repeat(np.arange(20), 50).tolist())
    assert together.n == 20
    assert (together.high - together.low) > 3 * (apart.high - apart.low)
    expected = values[::50].std() / np.sqrt(20) * 2 * 1.96
    assert together.high - together.low == pytest.approx(expected, rel=0.25)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_a_paired_test_counts_what_differs_and_does_not_care_about_the_order(pairs):
    first, second = zip(*pairs, strict=True)
    found, back = paired(first, second), paired(second, first)
    assert found.only_first == sum(a and not b for a, b in pairs) == back.only_second
    assert 0 <= found.p <= 1
    assert found.p == pytest.approx(back.p)
    if found.only_first == found.only_second:
        assert found.p == 1


def test_an_interval_needs_two_groups_and_a_mean_of_a_few_three():
    assert np.isnan(bootstrap(["a", "a"], lambda at: 1.0).low)
    few = mean([1.0, 2.0])
    assert (few.value, few.n, str(few)) == (1.5, 2, "1.50 (too few for an interval)")
    assert few.span() == "too few for an interval"
    assert np.isnan([few.low, few.high]).all()


@pytest.mark.parametrize("n", [3, 6, 12])
def test_where_there_is_nothing_a_handful_of_groups_is_said_to_move_in_5_of_100(n):
    rng = np.random.default_rng(0)
    found = [mean(rng.normal(size=n)) for _ in range(2000)]
    assert 0.035 < np.mean([e.low > 0 or e.high < 0 for e in found]) < 0.065


def test_a_mean_over_few_groups_has_the_t_interval_and_one_over_unequal_groups_says_what_it_should():
    from scipy.stats import t

    x = np.random.default_rng(0).normal(size=6)
    found, reach = mean(np.repeat(x, 4), np.repeat(np.arange(6), 4).tolist()), t.ppf(0.975, 5) * x.std(ddof=1) / 6**0.5
    assert (found.low, found.high) == pytest.approx((x.mean() - reach, x.mean() + reach))
    rng, sizes, missed = np.random.default_rng(1), [1, 2, 3, 4, 5, 6, 7, 8], 0
    names = np.repeat(np.arange(8), sizes)
    for _ in range(1000):
        e = mean(rng.normal(size=8)[names] + rng.normal(size=len(names)), names.tolist())
        missed += e.low > 0 or e.high < 0
    assert missed < 100


def test_a_trend_over_few_groups_that_differ_is_not_claimed_where_there_is_none():
    """Each group has a slope of its own, and they cancel."""
    rng, missed = np.random.default_rng(0), 0
    strength, groups = np.tile(np.linspace(-1, 1, 8), 24), np.repeat(np.arange(6), 32)
    for _ in range(400):
        so = rng.normal(size=6)[groups] * strength + rng.normal(size=len(groups)) > 0
        e = trend(strength, so, groups.tolist())
        missed += e.low > 0 or e.high < 0
    assert missed < 40, "a bootstrap over six claims some 56 of 400"


def test_bounds_stay_where_the_figure_can_be_and_a_figure_that_one_group_makes_has_none():
    values = np.array([1.0, 1.0, 0.9, 0.2])
    assert estimate(list(range(4)), lambda at: float(values[at].mean()), within=(0, 1)).high == 1
    assert np.isnan(estimate(list(range(4)), lambda at: 1.0 if 0 in at else float("nan")).low)


# -- the command line --------------------------------------------------------------------------------------------------

RUNNER = CliRunner(env={"COLUMNS": "120", "NO_COLOR": "1"})


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_option_of_an_experiment_is_on_the_command_line_with_its_help(name):
    told = RUNNER.invoke(app, ["experiment", name, "--help"]).output
    experiment = find(name)
    for field, info in experiment.options.model_fields.items():
        assert "--" + field.replace("_", "-") in told
        assert info.description
    assert experiment.example.split(" --")[0] in " ".join(told.split())


def test_an_experiments_summary_is_the_first_paragraph_of_its_docstring_and_its_example_its_own_command():
    for name, entry in EXPERIMENTS.items():
        experiment = find(name)
        docstring = importlib.import_module(experiment.run.__module__).__doc__ or ""
        assert " ".join(docstring.split()).startswith(entry.summary)
        assert entry.summary.endswith(".")
        assert experiment.example.startswith(f"personaspace experiment {name} smollm2 --out runs/{name}")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_published_setting_costs_more_than_the_small_one(name):
    experiment, catalog = find(name), load_catalog()
    small, published = (experiment.cost(o, catalog) for o in (experiment.options(), experiment.published))
    assert published.tokens > 5 * small.tokens
    assert published.replies >= small.replies > 0


def test_options_that_make_no_sense_are_said_by_their_names():
    with pytest.raises(UsageError, match="--roles 0: input should be greater"):
        find("susceptibility").read_options({"roles": 0}, False)
    with pytest.raises(UsageError, match=r"--alphas .*x"):
        find("susceptibility").read_options({"alphas": "-0.2,x"}, False)
    with pytest.raises(UsageError, match="expected one of susceptibility"):
        find("susceptible")


@pytest.mark.long
def test_an_experiment_that_is_killed_and_started_again_ends_as_one_that_was_not(tmp_path, smollm2):
    """On the embedded model: `smollm2` is only asked for so that its weights are converted before the clock runs."""
    line = ["experiment", "susceptibility", "smollm2", "--alphas=-0.3,0,0.3"]
    line += ["--roles", "5", "--probes", "2", "--max-new-tokens", "4", "--controls", "1", "--out"]
    finish(begin_program(tmp_path / "log", *line, tmp_path / "whole"))
    rng, parts = np.random.default_rng(0), lambda: len(list((tmp_path / "cut" / "responses").glob("part-*.parquet")))
    kills = 0
    for _ in range(10):
        before, waited = parts(), rng.uniform(0, 0.3)
        process = begin_program(tmp_path / "log", *line, tmp_path / "cut")
        while process.is_alive() and parts() == before:
            time.sleep(0.05)
        time.sleep(waited)
        if not process.is_alive():
            assert process.exitcode == 0
            break
        process.kill()
        process.join()
        kills += 1
    assert kills > 0
    finish(begin_program(tmp_path / "log", *line, tmp_path / "cut"))
    a, b = ((tmp_path / n / "results.json") for n in ("whole", "cut"))
    assert json.loads(a.read_text()) == json.loads(b.read_text())
    assert pq.read_table(a.with_suffix(".parquet")).equals(pq.read_table(b.with_suffix(".parquet")))


def test_judges_are_made_with_the_experiments_own_rubric():
    from personaspace.experiments.kit.speakers import BY_WORDS, KINDS, WHO, Said

    assert WHO.top == KINDS.index("untold"), "a judge can say that nothing tells"
    assert f"{WHO.top} - untold" in WHO.text(Said("Who are you?", "Boil the water."))
    assert Judges("rules").make(WHO, BY_WORDS) is BY_WORDS
    assert Judges("none").make(WHO) is None
