"""Calibration, the sweep, the monitor and the chat, on a small random model and on planted figures."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

import personaspace as ps
from conftest import make_model, make_tokenizer
from personaspace.cli.chat import ChatSession, converse
from personaspace.engines.prompts import Sampling
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.errors import DesignError, ModelError, SpaceError, UsageError
from personaspace.holding import calibrate, controls, kept, monitor, outcomes, sweep, tradeoff
from personaspace.holding.monitor import AlertRule, Monitor
from personaspace.judges import make_judge
from personaspace.runs import Run
from personaspace.watcher import Watcher
from planted import planted_space


@pytest.fixture(scope="module")
def engine():
    return TransformersEngine(make_model("llama"), make_tokenizer(), id="tiny", rows=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, engine, small_catalog):
    out = tmp_path_factory.mktemp("held")
    ps.map(engine, out, catalog=small_catalog, per_role=6, default_responses=60, max_new_tokens=9, layer=1)
    return out


@pytest.fixture(scope="module")
def sample(folder):
    return calibrate.draw_sample(Run(folder), default=24, roles=24, held_out=24)


@pytest.fixture(scope="module")
def space(folder, engine, sample):
    return calibrate.calibrate(engine, ps.PersonaSpace.load(folder), sample, range(1, 3))


def planted(shift: float = 2.0, n: int = 400, correlation: float | None = None) -> ps.PersonaSpace:
    """A space of one number a token: default projections around 10, a role's `shift` deviations below, deviation 2."""
    rng = np.random.default_rng(0)
    tensors = {
        "role_vectors": torch.tensor([[[-1.0, 0.5]], [[-1.0, -0.5]]]),
        "default_vector": torch.tensor([[10.0, 0.0]]),
        "axis": torch.tensor([[11.0, 0.0]]),
        "default_moments": torch.tensor([[10.0], [2.0]]),
        "beginnings_default": torch.tensor(rng.normal(10, 2, (1, n))).float(),
        "beginnings_roles": torch.tensor(rng.normal(10 - 2 * shift, 2, (1, n))).float(),
    }
    if correlation is not None:
        tensors["variance_ratio"] = torch.tensor([1 / correlation - 1])
    calibration = {"lengths": [4], "roles": [f"role {k % 20}" for k in range(n)]}
    model = {"id": "planted", "fingerprint": "x"}
    meta = {"format": 1, "model": model, "layer": 0, "roles": ["a", "b"], "caps": {}, "calibration": calibration}
    return ps.PersonaSpace(meta, tensors)


# -- calibration -----------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_floors_are_the_percentiles_of_tokens_read_one_reply_at_a_time_by_a_plain_loop(space, sample, engine):
    projections = {"default": [], "all": []}
    for reply in (*sample.default, *sample.roles):
        ids = [*engine.chat.prompt_ids(reply.messages), *reply.token_ids]
        with torch.inference_mode():
            states = engine.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        # The last of them has the final norm in it; layer 1 is the one before.
        on = states[2][0, -len(reply.token_ids) :] @ space.axis_at(1)
        projections["all"].append(on)
        if reply.role == "default":
            projections["default"].append(on)
    for kind, percentile in (("default", 25), ("default", 1), ("all", 50), ("all", 75)):
        expected = np.percentile(torch.cat(projections[kind]).numpy(), percentile)
        cap = space.meta["caps"][f"{kind}-p{percentile}@1:3"]
        assert cap["layers"] == [1, 2]
        assert cap["floors"][0] == pytest.approx(expected, abs=1e-3)


def test_a_named_cap_holds_every_reply_and_survives_the_disk(space, engine, sample, tmp_path):
    space.save(tmp_path / "space.safetensors")
    again = ps.PersonaSpace.load(tmp_path / "space.safetensors")
    cap = again.cap("all-p75@1:3")
    spans = [r.span(engine.chat.prompt_ids(r.messages)) for r in sample.roles]
    for (turn,) in engine.replay(spans, read=range(3), interventions=[cap], each=True):
        for layer, floor in zip(cap.layers, cap.floor, strict=True):
            under = floor - turn.each[:, layer] @ again.axis_at(layer)
            assert (under <= 1e-3 * turn.each[:, layer].norm(dim=-1)).all()
    with pytest.raises(SpaceError, match="all-p75@1:3"):
        again.cap("capped")


def test_calibration_says_how_many_replies_it_needs(tmp_path, engine, small_catalog):
    ps.map(engine, tmp_path, catalog=small_catalog, per_role=4, default_responses=12, max_new_tokens=4, judge="none")
    with pytest.raises(DesignError, match=r"replies of the default and .* calibration needs 32 and 16"):
        calibrate.draw_sample(Run(tmp_path))


def test_the_sample_keeps_back_replies_of_the_default_and_takes_few_of_each_role(sample, folder):
    assert len(sample.held_out) == 24
    assert not {id(r) for r in sample.held_out} & {id(r) for r in sample.default}
    assert "default" not in {r.role for r in sample.roles}
    assert max(np.unique([r.role for r in sample.roles], return_counts=True)[1]) == calibrate.A_ROLE


@pytest.mark.parametrize("text", ["18", "a:b", "9:3", "4:4", ":3", "-1:3"])
def test_a_range_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="expected A:B"):
        calibrate.parse_range(text)


def test_a_range_beyond_the_model_is_refused(space):
    with pytest.raises(UsageError, match=r"1:4: the model has layers 0 to 2"):
        calibrate.named_cap(space, "default", 25, range(1, 4))


# -- the sweep -------------------------------------------------------------------------------------------------------


def outcome(
    name: str, way: float, cost: float, dearest: float | None = None, touched: float = 0.0
) -> outcomes.CapOutcome:
    interval = None if dearest is None else (2 * cost - dearest, dearest)
    return outcomes.CapOutcome(name, way, 0.0, None, cost, touched, cost_interval=interval)


def test_the_front_holds_what_no_other_beats_and_the_choice_goes_furthest_within_the_cost():
    tried = [outcome("none", 0, 1), outcome("a", 0.5, 1.02), outcome("b", 0.4, 1.03), outcome("c", 0.9, 1.2)]
    assert [o.name for o in outcomes.pareto(tried) if o.front] == ["none", "a", "c"]
    assert outcomes.choose(tried)[0].name == "a"


def test_a_cap_is_chosen_by_the_upper_end_of_its_cost_and_by_the_default_tokens_it_touches():
    tried = [
        outcome("none", 0, 1),
        outcome("unsure", 0.9, 1.01, dearest=1.05, touched=0.3),
        outcome("clamp", 0.8, 1.0, dearest=1.01, touched=0.76),
        outcome("sure", 0.5, 1.02, dearest=1.029, touched=0.49),
        outcome("gentle", 0.2, 1.0, dearest=1.001, touched=0.1),
    ]
    best, why = outcomes.choose(tried)
    assert best.name == "sure"
    for words in ("at most 3% perplexity at the upper end", "50% of the default's own tokens", "1.029", "49%"):
        assert words in why


def test_where_no_cap_is_within_bounds_the_gentlest_is_taken_and_that_is_said():
    costly, clamp = outcome("costly", 0.9, 1.1, dearest=1.2), outcome("clamp", 0.8, 1.0, dearest=1.01, touched=0.8)
    best, why = outcomes.choose([outcome("none", 0, 1), costly, clamp])
    assert best.name == "clamp", "1.6 times its bound, where the other's logarithm is 6 times"
    assert "no cap is within bounds" in why
    assert "the gentlest" in why
    assert "80% of the default's tokens touched" in why


def planted_losses(rng: np.random.Generator, questions: int, cost: float) -> outcomes.Losses:
    """Two replies of 30 tokens to each question; how much is lost differs by question more than by reply."""
    by_question = np.log(cost) + 0.02 * rng.normal(size=questions).repeat(2)
    lost = 30 * by_question + 0.1 * rng.normal(size=2 * questions)
    names = tuple(str(k // 2) for k in range(2 * questions))
    return outcomes.Losses(lost, np.full(2 * questions, 30.0), np.full(2 * questions, 12.0), names)


@pytest.mark.parametrize("questions", [8, 24])
def test_the_interval_of_a_cost_holds_the_planted_one_19_times_in_20(questions):
    rng, held = np.random.default_rng(0), 0
    for k in range(300):
        low, high = planted_losses(rng, questions, 1.02).interval(seed=k)
        held += low < 1.02 < high
    assert 0.92 <= held / 300 <= 0.985
    both = planted_losses(rng, 24, 1.02) + planted_losses(rng, 24, 1.02)
    assert len(both.questions) == 96
    assert outcomes.Losses(np.ones(2), np.ones(2), np.ones(2), ("a", "a")).interval() is None


def test_two_trials_of_a_cap_are_one_over_their_prompts_and_replies():
    rng = np.random.default_rng(0)
    first, second = (planted_losses(rng, 24, cost) for cost in (1.01, 1.03))
    a = replace(outcome("a", 0.2, 1.0), way_error=0.3, off_axis=-0.1, off_axis_error=0.02, losses=first)
    b = replace(outcome("a", 0.6, 1.0), way_error=0.1, off_axis=-0.2, off_axis_error=0.02, losses=second)
    both = outcomes.pooled(a, b, 24, 72)
    assert both.way == pytest.approx(0.5)
    assert both.way_error == pytest.approx(((24 * 0.3) ** 2 + (72 * 0.1) ** 2) ** 0.5 / 96)
    assert both.off_axis == pytest.approx(-0.175)
    assert both.adherence is None
    assert both.cost == pytest.approx((first.cost() * second.cost()) ** 0.5)
    assert both.touched == pytest.approx(0.4)
    low, high = both.cost_interval
    assert low < both.cost < high
    assert high - low < min(np.ptp(losses.interval()) for losses in (first, second))


def test_what_an_older_sweep_kept_is_still_said():
    found = {"way": 0.52, "way_error": 0.08, "adherence": 0.99, "cost": 1.021, "touched": 0.72}
    said = tradeoff.again({"why": {"because": "it goes furthest", "again": found, "again_prompts": 72}})
    assert said.startswith("On 72 fresh prompts it goes 0.52 ± 0.08 of the way, at × 1.021 perplexity, 72% of")


def test_a_sweep_with_no_prompts_left_says_so_and_tries_nothing_twice(engine, space, sample):
    with pytest.raises(UsageError, match="controls=0: expected 1 or more"):
        sweep.sweep(engine, space, sample, [range(1, 3)], judge=None, random=0)
    made, _ = sweep.sweep(engine, space, sample, [range(1, 3)], judge=None, prompts=len(sample.roles))
    why = made.meta["caps"]["capped"]["why"]
    assert "no prompts were left" in why["because"]
    assert tradeoff.again(made.meta["caps"]["capped"]) == ""


@pytest.mark.parametrize("prompts", [4, 1000], ids=["tried again", "no prompts left"])
def test_a_sweep_tells_of_each_reply_that_it_waits_for_and_ends_at_their_number(prompts, engine, space, sample):
    class Told(Watcher):
        def __init__(self) -> None:
            self.steps: list[tuple[int, int]] = []

        def progress(self, done: int, total: int) -> None:
            self.steps.append((done, total))

    watcher = Told()
    sweep.sweep(
        engine, space, sample, [range(1, 3)], judge=None, prompts=min(prompts, len(sample.roles)), watcher=watcher
    )
    (total,) = {total for _, total in watcher.steps}
    assert [done for done, _ in watcher.steps] == list(range(1, total + 1))


def test_a_space_calibrated_from_too_few_has_no_alert_rule(space):
    calibration = {**space.meta["calibration"], "roles": ["one"] * len(space.meta["calibration"]["roles"])}
    few = ps.PersonaSpace({**space.meta, "calibration": calibration}, space.tensors)
    assert monitor.alert_rule(few) is None


class StopsAfter:
    """An engine that is stopped once it has given so many replies, and counts them."""

    def __init__(self, engine, replies):
        self.engine, self.left, self.given = engine, replies, 0

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def respond(self, *args, **options):
        for response in self.engine.respond(*args, **options):
            if self.given == self.left:
                raise KeyboardInterrupt
            self.given += 1
            yield response


def test_a_sweep_that_was_stopped_goes_on_and_ends_as_one_left_alone(engine, space, sample, tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "BLOCK", 16)
    options = {"judge": make_judge("rules"), "prompts": 4, "tasks": [sweep.CapabilityTask("say something", ".")]}

    def swept(of, folder):
        return sweep.sweep(of, space, sample, [range(1, 3)], **options, folder=folder)

    alone = StopsAfter(engine, 10**6)
    whole, outcomes_alone = swept(alone, None)
    first = StopsAfter(engine, 36)
    with pytest.raises(KeyboardInterrupt):
        swept(first, tmp_path / "sweep")
    # Two blocks are whole. Of one of them a bit is flipped, which leaves its JSON as it was.
    files = sorted((tmp_path / "sweep").glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
    assert len(files) == 2
    content = bytearray(files[0].read_bytes())
    digit = next(k for k, byte in enumerate(content) if chr(byte).isdigit())
    content[digit] ^= 1
    files[0].write_bytes(content)
    second = StopsAfter(engine, 10**6)
    gone_on, outcomes_gone_on = swept(second, tmp_path / "sweep")
    assert second.given == alone.given - 16
    assert gone_on.meta == whole.meta
    assert outcomes_gone_on == outcomes_alone
    # With all of it there nothing is asked but what the cap displaces is measured on; what is asked otherwise is asked.
    third = StopsAfter(engine, 10**6)
    assert swept(third, tmp_path / "sweep")[1] == outcomes_alone
    assert third.given == 3 * options["prompts"]
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(StopsAfter(engine, 0), space, sample, [range(2, 3)], **options, folder=tmp_path / "sweep")
    kept.forget(tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    "content", ["", "{}", '{"replies": [{"token_ids": [-1], "text": ""}]}', '{"replies": 1e9}', "[" * 9**5]
)
def test_a_block_of_replies_that_is_none_is_asked_for_again(content, engine, tmp_path):
    answers = kept.KeptReplies(engine, tmp_path)
    ask = ps.Prompt(({"role": "user", "content": "Who are you?"},), seed=1)
    replies = list(answers.respond([ask], ps.Sampling(max_new_tokens=4)))
    (file,) = tmp_path.glob("*.json")
    file.with_suffix(".sha256").unlink()
    file.write_text(content)
    assert list(answers.respond([ask], ps.Sampling(max_new_tokens=4))) == replies
    assert list(answers.respond([ask], ps.Sampling(max_new_tokens=4))) == replies
    assert list(answers.respond([ask], ps.Sampling(max_new_tokens=3))) != replies


def test_a_sweep_measures_each_cap_names_the_best_and_draws_the_front(engine, space, sample, tmp_path):
    tasks = [sweep.CapabilityTask("say something", "."), sweep.CapabilityTask("say nothing", "^$")]
    made, tried = sweep.sweep(engine, space, sample, [range(1, 3), range(2, 3)], judge=None, prompts=8, tasks=tasks)
    assert tried[0].name == "none"
    assert (tried[0].way, tried[0].cost, tried[0].touched) == (0, 1, 0)
    assert len(tried) == 1 + 2 * len(sweep.CHOICES)
    assert len({o.name for o in tried}) == len(tried)
    by_name = {o.name: o for o in tried}
    assert by_name["all-p75@1:3"].touched > by_name["all-p25@1:3"].touched
    capped = made.meta["caps"]["capped"]
    assert capped["floors"] == made.meta["caps"][capped["is"]]["floors"]
    page = tradeoff.write_tradeoff(tmp_path / "page.html", made, tried).read_text()
    assert capped["is"] in page
    for o in tried[1:]:
        low, high = o.cost_interval
        assert low < o.cost < high
        assert o.cost == pytest.approx(o.losses.cost())
        assert o.touched == pytest.approx(o.losses.touched.sum() / o.losses.tokens.sum())
    assert "Beside other directions" in page
    assert len(capped["why"]["cost_interval"]) == len(capped["why"]["again"]["cost_interval"]) == 2
    assert "default&#39;s tokens touched" in page or "default's tokens touched" in page
    head, rows = tradeoff.table(tried)
    assert all(row[head.index("95%")] and row[head.index("default's touched")] for row in rows)
    json.dumps([o.to_dict() for o in tried])


def test_a_cap_is_tried_beside_random_directions_at_its_own_displacement_and_the_second_component(
    engine, space, sample
):
    made, _ = sweep.sweep(engine, space, sample, [range(1, 3)], judge=make_judge("rules"), prompts=8, random=4)
    capped = made.meta["caps"]["capped"]
    beside = capped["why"]["controls"]
    assert [e["name"] for e in beside["effects"]] == [
        capped["is"],
        *(f"random {k}" for k in range(1, 5)),
        "PC2",
        controls.SHUFFLED,
        controls.CONSTANT,
    ]
    assert beside["layers"] == capped["layers"]
    assert all(step >= 0 for step in beside["displacement"])
    assert all(0 <= e["adherence"] <= 1 for e in beside["effects"])
    fresh = capped["why"]["again"]
    cap = beside["effects"][0]
    for name in ("way", "way_error", "off_axis", "adherence"):
        assert cap[name] == pytest.approx(fresh[name]), "on the same prompts, the cap's own replies"
    for words in ("random directions displaced as far per token", "PC2", "all 4"):
        assert words in beside["because"]
    json.dumps(capped)


def test_a_control_moves_tokens_as_far_at_each_layer_across_the_axis(engine, space, sample):
    cap = space.cap("all-p75@1:3")
    asked = [r.messages for r in sample.roles[:6]]
    steps = controls.displacement(engine, space, cap, asked)
    assert min(steps) > 0
    for name, along in controls.directions(space, 2).items():
        adds = controls.displaced(space, cap.layers, steps, along)
        assert [a.layer for a in adds] == [1, 2]
        for add, step in zip(adds, steps, strict=True):
            assert float(add.step.norm()) == pytest.approx(step, rel=1e-5)
            on_axis = step if name == controls.CONSTANT else 0
            assert float(add.step @ space.axis_at(add.layer)) == pytest.approx(on_axis, rel=1e-5, abs=1e-4)
        prompts = [ps.Prompt(tuple(m), index=k) for k, m in enumerate(asked)]
        for r in engine.respond(prompts, Sampling(max_new_tokens=4), read=cap.layers, interventions=adds, before=True):
            assert (r.activation - r.before).norm(dim=-1).tolist() == pytest.approx(steps, rel=1e-3)


def test_what_moves_along_the_axis_is_told_from_what_takes_the_role_away_off_it():
    space, rng = planted_space(), np.random.default_rng(0)
    roles = [r for r in space.roles for _ in range(20)]
    vectors, mean = space.centred()
    own = vectors[[space.roles.index(r) for r in roles]]
    plain = mean + own + 0.1 * torch.from_numpy(rng.normal(size=own.shape)).float()
    unit = space.axis_at()
    gap = 5.0 - float((plain @ unit).mean())
    lost = 0.6 * (own - (own @ unit)[:, None] * unit)
    nobody = torch.full_like(plain, float("nan"))
    replies = {"along": plain + 0.5 * gap * unit, "off": plain - lost, "both": plain + gap * unit - 2 * lost}
    found = outcomes.effects(space, roles, {"none": (plain, 1.0), **{k: (h, None) for k, h in replies.items()}}, 5.0)
    assert (found["none"].way, found["none"].off_axis) == (0, 0)
    assert (found["along"].way, found["along"].off_axis) == pytest.approx((0.5, 0), abs=1e-5)
    assert found["off"].way == pytest.approx(0, abs=1e-5)
    assert found["off"].off_axis < -0.02
    assert found["both"].way == pytest.approx(1, abs=1e-5)
    assert found["both"].off_axis < -1, "turned round"
    unknown = outcomes.effects(space, ["nobody"] * len(roles), {"none": (plain, None), "empty": (nobody, None)}, 5.0)
    assert unknown["none"].off_axis is None


@pytest.mark.parametrize(("way", "random", "words"), [(0.5, 3, "beyond all 3"), (0.5, 20, "95th percentile of 20")])
def test_an_effect_is_held_against_the_controls_in_words(way, random, words):
    def effect(name, way):
        return {"name": name, "way": way, "way_error": 0.1, "off_axis": -0.1, "off_axis_error": 0.1, "adherence": None}

    others = [effect(f"random {k}", 0.01 * k) for k in range(random)]
    beside = {"prompts": 72, "displacement": [1.0], "effects": [effect("cap", way), *others, effect("PC2", 0.2)]}
    assert words in tradeoff.compared(beside)
    assert "not beyond" not in tradeoff.compared(beside)
    beside["effects"][0] = effect("cap", 0.005)
    assert f"not {words.split(' 95')[0] if random == 3 else 'beyond the 95th'}" in tradeoff.compared(beside)
    assert "moves no token" in tradeoff.compared({**beside, "displacement": [0.0]})


def test_a_broken_task_file_is_named_with_its_line(tmp_path):
    (tmp_path / "tasks.jsonl").write_text('{"prompt": "1+1?", "answer": "2"}\n{"prompt": "x", "answer": "("}\n')
    with pytest.raises(UsageError, match=r"tasks.jsonl, line 2"):
        sweep.read_tasks(tmp_path / "tasks.jsonl")
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    with pytest.raises(UsageError, match=r"deep.jsonl, line 1: .*nests deeper"):
        sweep.read_tasks(tmp_path / "deep.jsonl")
    line = '{"prompt": "1\u2028+1?", "answer": "2"}'
    (tmp_path / "odd.jsonl").write_text(f"\ufeff{line}\n\n{line}\n", encoding="utf-8")
    assert [task.prompt for task in sweep.read_tasks(tmp_path / "odd.jsonl")] == ["1\u2028+1?"] * 2


# -- the monitor -----------------------------------------------------------------------------------------------------


def conversations(rng: np.random.Generator, correlation: float, n: int) -> list[np.ndarray]:
    """Drifts of the default's turns by conversation; what one is about stays, and is so much of their variance."""
    found = []
    for turns in rng.integers(6, 16, n):
        found.append(correlation**0.5 * rng.normal() + (1 - correlation) ** 0.5 * rng.normal(size=turns))
    return found


def raised(talks: list[np.ndarray], threshold: float, turns: int) -> float:
    """The share of conversations in which an alert begins, by the monitor itself."""
    space, count = planted(), 0
    for talk in talks:
        watch = Monitor(space, AlertRule(threshold, turns))
        seen = []
        for drift in talk:
            watch.look(float(drift))
            seen.append(watch.alert)
        count += any(seen)
    return count / len(talks)


@pytest.mark.parametrize("correlation", [0.6, 0.2])
def test_an_alert_rule_is_raised_by_as_many_conversations_as_was_promised_where_their_turns_are_alike(correlation):
    space, talks = planted(correlation=correlation), conversations(np.random.default_rng(1), correlation, 4000)
    default = 5 - space.tensors["beginnings_default"][0].double().numpy() / 2
    for rule in monitor.detection(space, rate=0.05):
        low, high = rule.rate_interval
        assert low < 0.05 < high
        assert low - 0.01 < raised(talks, rule.threshold, rule.turns) < high + 0.01
        assert rule.correlation == pytest.approx(correlation)
        assert rule.rate_of == "conversations of 6 to 15 turns"
        windows = np.concatenate([np.convolve(t, np.ones(rule.turns) / rule.turns, "valid") for t in talks])
        assert np.mean(windows > rule.threshold) == pytest.approx(rule.window_rate, abs=0.01)
        assert rule.observed == pytest.approx(0.05, abs=0.03)
        # A threshold for turns that are drawn each by itself, and for one look at them.
        old = default.mean() + 1.645 * default.std() / rule.turns**0.5
        assert raised(talks, old, rule.turns) > high + 0.02, "promised 5%"


@pytest.mark.long
def test_of_a_space_that_does_not_know_how_alike_turns_are_the_rate_holds_for_any_and_that_is_said():
    rules = monitor.detection(planted(), rate=0.05)
    for rule in rules:
        assert rule.correlation is rule.detects_conversations is None
        assert "how alike a conversation's turns are is not known" in str(rule)
        assert f"runs of {rule.turns} turns" in str(rule) or rule.turns == 1
        for correlation in (0.0, 0.5, 1.0):
            talks = conversations(np.random.default_rng(2), correlation, 3000)
            assert raised(talks, rule.threshold, rule.turns) < rule.rate_interval[1] + 0.01
    known = monitor.detection(planted(correlation=0.6), rate=0.05)
    assert all(k.threshold <= r.threshold + 0.02 for k, r in zip(known, rules, strict=True))


def test_the_question_share_of_variance_is_that_of_replies_whatever_the_space_was_read_from():
    assert monitor.turns_correlation(planted()) is None
    space = planted(correlation=0.25)
    assert monitor.turns_correlation(space) == pytest.approx(0.25)
    endless = ps.PersonaSpace(space.meta, {**space.tensors, "variance_ratio": torch.tensor([float("inf")])})
    assert monitor.turns_correlation(endless) == 0, "questions add nothing"
    both = {**space.tensors, "variance_ratio": torch.tensor([0.1]), "reply.variance_ratio": torch.tensor([1.0])}
    of_prompts = ps.PersonaSpace({**space.meta, "reading": "prompt", "other": {"reply": {"reading": "reply"}}}, both)
    assert monitor.turns_correlation(of_prompts) == pytest.approx(0.5)
    alone = ps.PersonaSpace({**space.meta, "reading": "prompt"}, space.tensors)
    assert monitor.turns_correlation(alone) is None, "of prompts, not of replies"


def test_what_an_alert_finds_is_said_of_runs_and_of_conversations():
    space, rng = planted(shift=2.0, correlation=0.6), np.random.default_rng(3)
    (rule,) = monitor.detection(space, rate=0.05, turns=(2,))
    means = 2 + rng.normal(size=(20_000, 2)).mean(1)
    assert np.mean(means > rule.threshold) == pytest.approx(rule.detects, abs=0.08)
    talks = [2 + talk for talk in conversations(rng, 0.6, 3000)]
    assert raised(talks, rule.threshold, 2) == pytest.approx(rule.detects_conversations, abs=0.08)
    assert rule.detects_conversations > rule.detects
    (three,) = monitor.detection(space, rate=0.05, turns=(3,))
    assert monitor.alert_rule(space, rate=0.05, turns=3) == three
    assert monitor.alert_rule(space, rate=0.05, turns=20).rate_of == "conversations of 20 turns"


def test_without_calibration_there_is_no_rule_and_a_rate_must_be_one(folder):
    mapped = ps.PersonaSpace.load(folder)
    uncalibrated = {name: t for name, t in mapped.tensors.items() if not name.startswith("beginnings")}
    with pytest.raises(SpaceError, match="personaspace calibrate"):
        monitor.detection(ps.PersonaSpace(mapped.meta, uncalibrated))
    with pytest.raises(UsageError, match="between 0 and 1"):
        monitor.detection(planted(), rate=1.5)


def test_an_alert_begins_over_the_threshold_and_ends_only_under_it_less_the_hysteresis():
    watch = Monitor(planted(), AlertRule(1.0, turns=2, hysteresis=0.5))
    alerts = []
    for drift in (0, 3, 3, 0.5, 0.9, 0.0):  # means over two turns: 1.5, 3, 1.75, 0.7, 0.45
        watch.feed(torch.tensor([10.0 - 2 * drift, 0.0]))
        alerts.append(watch.end_turn().alert)
    assert alerts == [False, True, True, True, True, False]


def test_the_span_where_a_turn_fell_is_where_its_tokens_lie_low():
    watch = Monitor(planted())
    for projection in (10, 11, 2, 1, 3, 10, 11, 7):
        watch.feed(torch.tensor([float(projection), 0.0]))
    reading = watch.end_turn()
    assert reading.fell == (2, 5)
    assert reading.projection == pytest.approx(55 / 8)
    assert reading.drift == pytest.approx((10 - 55 / 8) / 2)
    assert watch.end_turn() is None


def test_projecting_a_transcript_equals_feeding_its_tokens_and_the_spaces_own_projection(engine, space):
    messages = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "good day to you"},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "more"},
    ]
    readings, problem = monitor.project(engine, space, messages)
    assert problem is None
    assert [r.index for r in readings] == [1, 3]
    (turns,) = engine.replay([messages], read=range(3))
    for reading, turn in zip(readings, turns, strict=True):
        assert reading.tokens == turn.tokens == len(reading.each)
        assert reading.projection == pytest.approx(float(space.project(turn.activation)), abs=1e-4)
        assert reading.nearest[0][0] == space.nearest(turn.activation, 1)[0][0]


def test_what_does_not_fit_the_context_is_said_and_the_rest_is_read(engine, space):
    short = replace(engine.info, context=120)
    small = TransformersEngine(engine.model, engine.tokenizer, id="tiny")
    small.info = short
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "short"},
        {"role": "user", "content": "go on"},
        {"role": "assistant", "content": "long " * 40},
    ]
    readings, problem = monitor.project(small, space, messages)
    assert len(readings) == 1
    assert "message 4 reaches token" in problem
    with pytest.raises(UsageError, match="0 of 1 assistant turns"):
        monitor.project(small, space, messages[2:])
    # A turn without text lies nowhere, and fits no better than what stands before it.
    behind = [*messages, {"role": "user", "content": "so?"}, {"role": "assistant", "content": ""}]
    assert [r.index for r in monitor.project(small, space, behind)[0]] == [r.index for r in readings]


def test_a_space_of_another_model_is_refused_and_a_variant_gets_a_sentence(engine):
    with pytest.raises(SpaceError, match=r"for 1 layers of 2 numbers; tiny has 3 of 32"):
        planted().check_model(engine.info)
    other = TransformersEngine(make_model("llama", seed=5), make_tokenizer(), id="variant")
    space = ps.PersonaSpace({"model": vars(other.info)}, {"axis": torch.ones(3, 32)})
    assert space.check_model(other.info) is None
    assert "made from other weights" in space.check_model(engine.info)


# -- the chat --------------------------------------------------------------------------------------------------------


def talk(engine, space, lines: list[str]) -> tuple[ChatSession, str]:
    out = io.StringIO()
    console = Console(file=out, width=200)
    conversation = ChatSession(
        engine, space, Sampling(max_new_tokens=6), console, instruction={"ghost": "You are a ghost."}.get
    )
    pending = iter(lines)
    converse(conversation, lambda: next(pending, None))
    return conversation, out.getvalue()


def test_a_chat_answers_caps_steers_compares_saves_and_goes_on_after_a_mistake(engine, space, tmp_path):
    made = calibrate.recommended(space, "all-p75@1:3", {"because": "a test"})
    file = tmp_path / "talk.json"
    lines = ["hello", "/cap", "again", "/cap nothing", "/steer much", "/steer 0.5 ghost", "/steer 1 nobody", "/dance"]
    conversation, said = talk(engine, made, [*lines, "/compare", "third", f"/save {file}", "/quit", "never"])
    assert said.count("drift") == 4
    assert "tokens held" in said
    assert "no cap 'nothing'" in said
    assert "expected a number" in said
    assert "no role 'nobody'" in said
    assert "/dance: no such command" in said
    assert "[as it is]" in said
    assert conversation.steer == (0.5, "ghost")
    saved = json.loads(file.read_text())
    assert [m["role"] for m in saved["messages"]] == ["user", "assistant"] * 3
    assert len(saved["turns"]) == 3
    assert "never" not in str(conversation.messages)


def test_a_role_begins_a_new_conversation_under_its_instruction(engine, space):
    conversation, _ = talk(engine, space, ["hello", "/role ghost", "boo"])
    assert conversation.messages[0] == {"role": "system", "content": "You are a ghost."}
    assert len(conversation.messages) == 3
    conversation, _ = talk(engine, space, ["/role You are a lamp.", "/role off", "hello"])
    assert conversation.messages[0]["role"] == "user"


def test_a_message_that_got_no_reply_is_not_part_of_the_conversation(engine, space, monkeypatch):
    conversation, _ = talk(engine, space, ["hello"])
    stream, whole = engine.stream, len(conversation.messages)

    def broken(*asked, **options):
        made = stream(*asked, **options)
        yield next(made)
        yield next(made)
        raise ModelError("it broke")

    monkeypatch.setattr(engine, "stream", broken)
    pending = iter(["are you there?"])
    converse(conversation, lambda: next(pending, None))
    assert "it broke" in conversation.console.file.getvalue()
    assert len(conversation.messages) == whole
    assert conversation.monitor.end_turn() is None
