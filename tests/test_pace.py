"""Forecasts of time, on an engine whose clock is planted: what is measured is what was planted; no number where nothing was."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from personaspace.catalog import load_catalog
from personaspace.cli import progress
from personaspace.cli.progress import Bar
from personaspace.engines import Response
from personaspace.engines.prefix import unshared_length
from personaspace.engines.prompts import Design, Prompt, Sampling, assign
from personaspace.engines.transformers.decode_loop import DecodeLoop
from personaspace.errors import ActivationError
from personaspace.experiments.kit.options import Cost
from personaspace.mapping import pace
from personaspace.mapping.mapper import Mapper
from personaspace.mapping.options import MapOptions
from personaspace.watcher import Plan, Watcher
from planted import PlantedChat


class Clocked:
    """A decode loop that only passes the time: `token` seconds a prompt's token, neighbours' shared beginnings once, and `step`
    seconds for a token of each row in flight; the first pass takes `cold` seconds more. ends: a reply's length at most."""

    def __init__(self, token: float, step: float, rows: int = 64, cold: float = 0.0, ends: int = 10**6) -> None:
        self.token, self.step, self.rows, self.cold, self.ends = token, step, rows, cold, ends
        self.now, self.asked, self.columns, self.padding = 0.0, [], [], 1
        self.info = SimpleNamespace(layers=3, hidden=8, context=4096, id="clocked")
        self.chat, self.projects_tokens = PlantedWords(), False

    def clock(self) -> float:
        return self.now

    def rows_in_flight(self, columns: int) -> int:
        self.columns.append(columns)
        return self.rows

    def joining_tokens(self, prompts) -> int:
        return unshared_length(prompts) * self.padding

    def _prefill(self, prompts, times: int = 1) -> None:
        self.asked.append(list(prompts))
        tokens = unshared_length(self.chat.prompt_ids(p.messages) for p in prompts)
        self.now += self.cold + self.token * tokens * times
        self.cold = 0.0

    def onsets(self, prompts, *, read, interventions=()):
        self._prefill(prompts)
        for p in prompts:
            yield Response(p, "", (0,), "onset")

    def respond(self, prompts, sampling, *, read=None, interventions=()):
        assert len(prompts) <= self.rows, "more than are in flight would wait for one another"
        self._prefill(prompts, self.padding)
        left = {k: min((p.sampling or sampling).max_new_tokens, self.ends) for k, p in enumerate(prompts)}
        steps = 0
        while left:
            self.now += self.step
            steps += 1
            for k in [k for k, n in left.items() if n + 1 == steps]:
                yield Response(prompts[k], "", tuple(range(left.pop(k))), "length")


class PlantedWords(PlantedChat):
    """Words are its tokens, each with its own id."""

    def prompt_ids(self, messages):
        return [hash(word) for m in messages for word in m["content"].split()]


def neighbours(n: int = 64, words: int = 20) -> list[Prompt]:
    system = " ".join(f"rule{k}" for k in range(words))
    return [
        Prompt(
            ({"role": "system", "content": system}, {"role": "user", "content": f"what is {k} to you"}), "r", index=k
        )
        for k in range(n)
    ]


def measured(engine: Clocked, n: int = 64, new_tokens: int | None = 100, **more) -> pace.Pace | None:
    sampling = None if new_tokens is None else Sampling(max_new_tokens=new_tokens)
    return pace.measure(engine, neighbours(n), sampling, together=n, clock=engine.clock, **more)


@pytest.mark.parametrize("token", [0.00001, 0.004, 3.0])
@pytest.mark.parametrize("step", [0.002, 0.3, 20.0])
@pytest.mark.parametrize("rows", [1, 3, 5, 64])
def test_what_was_planted_is_measured_whatever_the_model_and_machine(token, step, rows):
    engine = Clocked(token, step, rows, cold=7.0)
    found = measured(engine)
    # What those have in common that never begin together is computed again.
    ids = sorted(engine.chat.prompt_ids(p.messages) for p in neighbours())
    again = sum(unshared_length(ids[k : k + rows]) for k in range(0, 64, rows)) / unshared_length(ids)
    assert found.prompt_token == pytest.approx(token * again, rel=1e-4)
    assert found.step == pytest.approx(step, rel=1e-6)
    assert found.rows == rows


def test_tokens_that_the_loop_computes_besides_cost_as_much():
    engine = Clocked(0.004, 0.3)
    engine.padding = 2
    assert measured(engine).prompt_token == pytest.approx(0.008)


def test_tokens_that_are_computed_are_those_of_the_decode_loop(tiny, monkeypatch):
    """Counted where they are computed, for prompts that share a beginning and prompts that don't."""
    passed = []
    forward = DecodeLoop._forward
    monkeypatch.setattr(
        DecodeLoop, "_forward", lambda self, ids, *more: passed.append(sum(map(len, ids))) or forward(self, ids, *more)
    )
    prompts = [*neighbours(5, words=8), *(Prompt(({"role": "user", "content": "hm " * k},)) for k in (1, 9, 20))]
    list(tiny.respond(prompts, Sampling(max_new_tokens=1), read=range(3)))
    assert tiny.joining_tokens([tiny.chat.prompt_ids(p.messages) for p in prompts]) == sum(passed)


def test_a_first_slow_pass_over_prompts_is_not_counted():
    assert measured(Clocked(0.004, 0.3, cold=50.0), new_tokens=None) == pace.Pace(pytest.approx(0.004))


@pytest.mark.parametrize("slow", [1, 2, 3])
def test_a_pass_that_something_else_slowed_down_is_not_counted(slow):
    """Pages of weights that come from the disk, another program's burst: they made of five minutes a forecast of 12.9 hours."""
    engine = Clocked(0.004, 0.3)
    prefill = engine._prefill

    def stalled(prompts, times=1):
        prefill(prompts, times)
        if len(engine.asked) == slow:
            engine.now += 10.0

    engine._prefill = stalled
    assert measured(engine, new_tokens=None).prompt_token == pytest.approx(0.004)


def test_time_is_tokens_times_what_each_takes():
    found = pace.Pace(0.01, step=0.5, rows=100)
    assert found.seconds(2_000, 10_000) == pytest.approx(2_000 * 0.01 + 10_000 / 100 * 0.5)
    assert found.seconds(2_000) == pytest.approx(20)


def test_measuring_takes_a_few_steps_and_prompts_however_long_the_run():
    engine = Clocked(0.004, 0.3)
    measured(engine, n=64, new_tokens=4000)
    # A prompt as long as half a reply, and some steps; then a few prompts twice, each time with some steps.
    assert engine.now < 2_100 * 0.004 + 25 * 0.3
    slow = Clocked(5.0, 60.0)
    measured(slow, new_tokens=24)
    assert slow.now < 8 * 60 + 5.0 * (3 * 40)


def test_fast_engines_are_given_as_many_prompts_as_there_are():
    engine = Clocked(1e-6, 1e-5)
    measured(engine, n=60)
    assert max(map(len, engine.asked[1:])) == 60
    engine = Clocked(0.1, 0.1)
    measured(engine, n=60, new_tokens=None)
    assert max(map(len, engine.asked)) == 2


def test_as_many_replies_are_in_flight_as_in_the_run_and_look_back_as_far():
    engine = Clocked(0.001, 0.1, rows=40)
    measured(engine, new_tokens=100)
    copies, length = engine.asked[0], 20 + 5
    assert engine.columns == [length + 100]
    assert len(copies) == 40
    context = len(engine.chat.prompt_ids(copies[0].messages))
    assert context == pytest.approx(length + 50, abs=5)
    # None is longer than the longest of the run: the engine makes room for as many.
    assert max(context + p.sampling.max_new_tokens for p in copies) == length + 100


def test_a_measured_prompt_stays_within_the_models_context():
    engine = Clocked(0.001, 0.1)
    engine.info.context = 60
    measured(engine, new_tokens=512)
    assert len(engine.chat.prompt_ids(engine.asked[0][0].messages)) <= 60 - pace.STEPS


def test_nothing_measured_gives_no_pace():
    assert pace.measure(Clocked(1, 1), [], None, together=1) is None
    elsewhere = SimpleNamespace(chat=PlantedWords())
    assert pace.measure(elsewhere, neighbours(), None, together=1) is None
    assert measured(Clocked(0.001, 0.1, ends=0)) is None  # every reply ended at the same step


def test_what_goes_wrong_while_measuring_is_left_for_the_run_to_say():
    engine = Clocked(0.001, 0.1)

    def broken(*_, **__):
        raise ActivationError("NaN")
        yield

    engine.respond = engine.onsets = broken
    assert measured(engine) is None
    assert measured(engine, new_tokens=None) is None


# -- a map's -----------------------------------------------------------------------------------------------------------


class Plans(Watcher):
    """Keeps what is announced."""

    def __init__(self) -> None:
        self.plans: list[Plan] = []

    def planned(self, plan: Plan) -> None:
        self.plans.append(plan)


OPTIONS = MapOptions(
    design=Design(per_role=2, default_responses=8),
    prompts=Design(per_role=2, default_responses=8),
    sampling=Sampling(max_new_tokens=6),
)


def test_a_maps_plan_is_the_measured_pace_times_its_tokens(monkeypatch, tiny, small_catalog, tmp_path):
    at_rates = {None: pace.Pace(0.5), 6: pace.Pace(0.25, step=2.0, rows=4)}
    monkeypatch.setattr(
        "personaspace.mapping.stages.measure",
        lambda engine, prompts, sampling, **_: at_rates[sampling and sampling.max_new_tokens],
    )
    plans = Mapper(tiny, load_catalog(small_catalog), tmp_path / "r", OPTIONS).plan()
    prompts, replies = plans["prompt"], plans["reply"]
    assert prompts.seconds == pytest.approx(0.5 * prompts.prompt_tokens, rel=0.01)
    assert replies.seconds == pytest.approx(0.25 * replies.prompt_tokens + 20 * 6 / 4 * 2.0, rel=0.01)


def test_a_run_that_goes_on_expects_replies_as_long_as_those_it_has(monkeypatch, tiny, small_catalog, tmp_path):
    monkeypatch.setattr("personaspace.mapping.stages.SHARD", 5)
    mapper = Mapper(tiny, load_catalog(small_catalog), tmp_path / "r", OPTIONS.model_copy(update={"read": "reply"}))
    mapper.map(None)
    run = mapper.run
    lengths = [row["tokens"] for shard in (0, 1, 2) for row in run.read(shard, ["tokens"]).to_pylist()]
    (run.folder / "responses" / "part-00003.parquet").unlink()
    monkeypatch.setattr("personaspace.mapping.stages.measure", lambda *_, **__: pace.Pace(0.0, step=1.0, rows=1))
    (plan,) = mapper.plan().values()
    assert (plan.done, plan.responses) == (15, 20)
    assert plan.seconds == pytest.approx(5 * sum(lengths) / len(lengths))


def test_measuring_changes_nothing_of_a_run(tiny, small_catalog, tmp_path):
    watcher = Plans()
    for name, listener in (("measured", watcher), ("not", None)):
        Mapper(tiny, load_catalog(small_catalog), tmp_path / name, OPTIONS, listener).map(None)
    assert [p.what for p in watcher.plans] == ["prompts", "responses"]
    assert all(p.seconds > 0 for p in watcher.plans)
    files = sorted(p.relative_to(tmp_path / "not") for p in (tmp_path / "not").rglob("part-*"))
    assert len(files) >= 4
    for path in files:
        assert (tmp_path / "not" / path).read_bytes() == (tmp_path / "measured" / path).read_bytes()


def test_a_map_on_an_engine_that_is_not_timed_has_no_number(tiny, small_catalog, tmp_path, monkeypatch):
    monkeypatch.setattr("personaspace.mapping.stages.measure", lambda *_, **__: None)
    plans = Mapper(tiny, load_catalog(small_catalog), tmp_path / "r", OPTIONS).plan()
    assert [p.seconds for p in plans.values()] == [None, None]


# -- an experiment's ---------------------------------------------------------------------------------------------------


def test_an_experiments_time_is_of_its_prompts_and_of_what_it_generates(monkeypatch, small_catalog):
    engine, calls = Clocked(0.001, 0.1), []

    def measure(*arguments, **options):
        calls.append(options)
        return pace.measure(*arguments, **options, clock=engine.clock)

    monkeypatch.setattr("personaspace.experiments.kit.options.measure", measure)
    catalog = load_catalog(small_catalog)
    (prompts,) = assign(catalog, [{role.role: 1 for role in catalog.roles}], 0)
    ids = [engine.chat.prompt_ids(p.messages) for p in prompts]
    share = unshared_length(ids) / sum(map(len, ids))  # neighbours' beginnings are computed once
    one = Cost(200, 200 * 124, 200 * 24)
    assert one.seconds(engine, catalog) == pytest.approx(0.001 * share * 200 * 100 + 200 * 24 / 64 * 0.1, rel=1e-3)
    # Replies that come one after the other are fewer at once, and look back at what was said.
    talk = Cost(200, 200 * 1024, 200 * 24, turns=20)
    talk.seconds(engine, catalog)
    assert calls[-1] == {"together": 10, "before": 1000}
    reading = Cost(0, 5_000, 0)
    assert reading.seconds(engine, catalog) == pytest.approx(5 * share)
    assert one.seconds(SimpleNamespace(), catalog) is None


# -- what is shown -----------------------------------------------------------------------------------------------------


def told(monkeypatch, seconds: float | None, responses: int = 1000) -> tuple[Bar, SimpleNamespace]:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    bar = Bar(Console(quiet=True))
    bar.planned(Plan("responses", responses, 0, 10_000, 24_000, seconds, 10**6))
    return bar, clock


def test_a_plan_of_which_nothing_is_left_has_no_time_left(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    bar = Bar(Console(quiet=True))
    bar.planned(Plan("responses", 10, 10, 0, 0, 5.0, 10**6))
    clock.now = 9.0
    assert bar.left() == 0


def test_the_time_left_is_the_forecast_at_first_and_then_what_really_passed(monkeypatch):
    bar, clock = told(monkeypatch, seconds=8_000.0)  # eight times too long
    clock.now = 10.0
    assert bar.left() == pytest.approx(7_990)
    for done in range(1, 101):
        clock.now = float(done)
        bar.progress(done, 1000)
    assert bar.left() == pytest.approx(900)
    bar, clock = told(monkeypatch, seconds=100.0)  # ten times too short
    for done in range(1, 101):
        clock.now = float(done)
        bar.progress(done, 1000)
    assert bar.left() == pytest.approx(900)


def test_replies_that_come_in_bursts_do_not_shake_the_time_left(monkeypatch):
    bar, clock = told(monkeypatch, seconds=900.0)
    clock.now = 125.0
    for done in range(1, 129):
        bar.progress(done, 1024)
    assert bar.left() == pytest.approx(7 * 125)
    clock.now = 240.0  # just before the next burst
    assert bar.left() == pytest.approx(8 * 125 - 240)


def test_without_a_forecast_the_time_left_is_said_once_a_rate_says_something(monkeypatch):
    bar, clock = told(monkeypatch, seconds=None)
    for done in range(1, 100):
        clock.now = float(done)
        bar.progress(done, 1000)
        assert bar.left() is None
    clock.now = 100.0
    bar.progress(100, 1000)
    assert bar.left() == pytest.approx(900)


def test_what_takes_no_second_is_not_said_to_take_none():
    plan = Plan("prompts", 10, 0, 2_000, 0, 0.01, 10**6)
    assert "about 1 s" in Bar(Console()).line(plan)
    assert "nothing left to do" in Bar(Console()).line(replace(plan, done=10, seconds=0.0))
