"""The experiment on ways of holding: planted drift is found, taken back as far as is planted, and never by a push alone."""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from personaspace.catalog import load_catalog
from personaspace.engines.prompts import Prompt, Sampling
from personaspace.errors import UsageError
from personaspace.experiments.holds import run as holding
from personaspace.experiments.holds.findings import distinct_pairs, factor, findings
from personaspace.experiments.holds.run import EXPERIMENT, HoldsOptions, talks
from personaspace.experiments.kit.conversations import alerted, turns_both_ways
from personaspace.experiments.kit.tasks import ALL, Outcome
from personaspace.experiments.kit.trials import PLAIN, Condition, Given, Trials, beside_axis, capped, controls
from personaspace.holding.controls import MANY, BesideControls, displacement
from personaspace.holding.monitor import AlertRule
from personaspace.model.interventions import Cap, SetTo
from personaspace.stats.intervals import share
from planted import LAYER, PlantedEngine, planted_space
from test_holds import vector

HOLDS = ("capped", "capped+alert", "capped+target", "capped+mirror")
SMALL = HoldsOptions(holds=HOLDS, conversations=4, turns=4, items=4, control_turns=3, controlled=("capped",))
RULE = AlertRule(3.0, turns=1)


def slipping(messages, rng):
    """Under a role it slides two standard deviations a turn away from the default, which stays where it is."""
    turns = sum(m["role"] == "user" for m in messages)
    return 5.0 - (2.0 * turns if messages[0]["role"] == "system" else 0.0) + 0.1 * rng.normal()


def conducted(folder, monkeypatch, engine, options=SMALL, floor=3.0):
    monkeypatch.setattr("personaspace.experiments.kit.conversations.alert_rule", lambda space: RULE)
    trials = Trials(engine, planted_space(floor), folder, "holds", options, catalog=load_catalog())
    return EXPERIMENT.conduct(trials)


def test_what_each_way_takes_back_is_what_was_planted(tmp_path, monkeypatch):
    outcomes = conducted(tmp_path, monkeypatch, PlantedEngine(slipping)).figures["holds"]
    # Never held: 2, 4, 6, 8 standard deviations away. The floor lies 2 down, the target is the default's mean.
    assert [e.value for e in outcomes["plain"].by_turn] == pytest.approx([2, 4, 6, 8], abs=0.2)
    assert [e.value for e in outcomes["capped"].by_turn] == pytest.approx([2, 2, 2, 2], abs=0.2)
    assert [e.value for e in outcomes["capped+target"].by_turn] == pytest.approx([0, 0, 0, 0], abs=0.2)
    # At 3 the mirrored place of 1 is 5, of −1 is 7, of −3 is 9.
    assert [e.value for e in outcomes["capped+mirror"].by_turn] == pytest.approx([2, 0, -2, -4], abs=0.2)
    # The second turn raises the alert, so that the third is the first that is held.
    assert [e.value for e in outcomes["capped+alert"].by_turn] == pytest.approx([2, 4, 2, 2], abs=0.2)
    assert outcomes["capped"].taken_back.value == pytest.approx(3.0, abs=0.2)
    assert outcomes["capped"].share.value == pytest.approx(0.6, abs=0.05)
    assert outcomes["capped"].touched.value == pytest.approx(0.0, abs=0.1)
    assert outcomes["capped+target"].touched.value == 1.0
    assert outcomes["plain"].taken_back.value == 0


def test_a_random_push_that_does_as_much_takes_the_claim_away(tmp_path, monkeypatch):
    along = conducted(tmp_path / "axis", monkeypatch, PlantedEngine(slipping))
    beside = along.figures["holds"]["capped"].beside
    assert len(beside.random) == 20
    assert beside.shuffled is not None
    assert beside.is_the_axis
    assert "beyond their 95th percentile" in along.headline
    assert re.search(r"Taken back: “capped” [\d.]+ \(", along.headline)
    assert "Nothing taken back" not in along.headline
    any_push = conducted(tmp_path / "any", monkeypatch, PlantedEngine(slipping, any_direction=True))
    assert not any_push.figures["holds"]["capped"].beside.is_the_axis
    assert "not beyond" in any_push.headline
    none = conducted(tmp_path / "none", monkeypatch, PlantedEngine(slipping), SMALL.model_copy(update={"controls": 0}))
    assert "nothing is claimed of the axis there" in none.headline


def test_controls_over_more_turns_later_are_those_of_a_folder_that_begins_with_as_many(tmp_path, monkeypatch):
    def beside(folder, turns):
        engine = PlantedEngine(slipping, any_direction=True)
        options = SMALL.model_copy(update={"control_turns": turns, "controls": 2})
        return conducted(folder, monkeypatch, engine, options).figures["holds"]["capped"].beside

    beside(tmp_path / "grown", 1)
    assert beside(tmp_path / "grown", 3) == beside(tmp_path / "fresh", 3)


def test_turns_that_never_came_and_empty_replies_are_on_neither_side():
    def talk(name, drifts):
        return pd.DataFrame({"conversation": name, "turn": range(1, len(drifts) + 1), "drift": drifts})

    unheld = pd.concat([talk("a", [1.0, 2.0, 6.0]), talk("b", [2.0, 2.0, 2.0])])
    ended = pd.concat([talk("a", [1.0, 2.0]), talk("b", [math.nan] * 3)])
    pairs = turns_both_ways(unheld, ended)
    assert list(pairs.less) == [0.0, 0.0]
    assert list(pairs.unheld) == [1.0, 2.0]


def test_a_cap_on_alert_leaves_a_conversation_alone_that_raises_none(tmp_path, monkeypatch):
    engine = PlantedEngine(lambda messages, rng: 5.0 + 0.1 * rng.normal())
    result = conducted(tmp_path, monkeypatch, engine, floor=8.0)
    rows = pd.DataFrame([r for r in result.rows if r["kind"] != "task"])
    texts = {name: list(of.text) for name, of in rows.groupby("condition")}
    assert texts["capped+alert"] == texts["plain"]
    assert texts["capped"] != texts["plain"]
    # That is no finding of what it takes back.
    assert "“capped+alert” held no reply: in these conversations no alert came." in result.headline
    assert "“capped” held no reply" not in result.headline


@settings(max_examples=60, deadline=None)
@given(drifts=st.lists(st.floats(-3, 6), max_size=12), turns=st.integers(1, 3))
def test_an_alert_is_not_taken_back_for_the_rest_of_a_conversation(drifts, turns):
    space, rule = planted_space(), AlertRule(2.0, turns=turns)
    given_replies = [Given("", "", "", 8, "stop", 5.0 - d, 0) for d in drifts]
    by_turn = [alerted(space, rule, given_replies[:k]) for k in range(len(drifts) + 1)]
    expected = [
        any(sum(drifts[j - turns : j]) / turns > 2.0 + 1e-9 for j in range(turns, k + 1))
        for k in range(len(drifts) + 1)
    ]
    if all(abs(sum(drifts[j - turns : j]) / turns - 2.0) > 1e-6 for j in range(turns, len(drifts) + 1)):
        assert by_turn == expected
    assert by_turn == sorted(by_turn)
    assert not alerted(space, None, given_replies)


def test_a_condition_on_alert_is_plain_until_then_and_has_no_control():
    (waiting,) = capped(["capped+mirror+alert"])
    space = planted_space()
    assert waiting.waits
    assert waiting.interventions(space) == ()
    assert waiting.during(False).interventions(space) == ()
    assert waiting.during(True).interventions(space) == (space.hold("capped+mirror"),)
    assert waiting.during(True).name == waiting.name
    assert PLAIN.during(True) == PLAIN
    assert controls([waiting], 3) == []
    names = [c.name for c in beside_axis([Condition("capped", cap="capped"), waiting], 2)]
    assert names == ["capped random 1", "capped random 2", "capped shuffled axis"]


@settings(max_examples=100, deadline=None)
@given(
    effect=st.floats(-3, 3),
    random=st.lists(st.floats(-3, 3), max_size=40),
)
def test_an_effect_is_the_axis_own_beyond_the_95th_percentile_of_twenty_or_more(effect, random):
    beside = BesideControls(effect, tuple(random))
    if len(random) < MANY:
        assert not beside.is_the_axis
    else:
        side = np.sign(effect) or 1.0
        limit = max(float(np.quantile(side * np.array(random), 0.95, method="weibull")), 0.0)
        assert beside.is_the_axis == (side * effect > limit and effect != 0)
    assert ("nothing is claimed" in beside.told()) == (len(random) < MANY)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("ab ", max_size=12), max_size=5))
def test_distinct_pairs_are_counted_by_a_plain_loop(texts):
    seen, n = set(), 0
    for text in texts:
        words = text.lower().split()
        for k in range(len(words) - 1):
            seen.add((words[k], words[k + 1]))
            n += 1
    assert distinct_pairs(texts) == len(seen) / n if n else math.isnan(distinct_pairs(texts))


def test_the_factor_on_perplexity_weighs_tokens():
    def frame(logprobs, tokens):
        return pd.DataFrame({"conversation": list("aabbccdd"), "logprob": logprobs, "tokens": tokens})

    held = frame([-1.0, -2.0, -1.5, -1.0, -2.0, -2.5, -1.0, math.nan], [4, 2, 3, 5, 2, 1, 7, 0])
    unheld = frame([-1.0] * 8, [3] * 8)
    nats = (4 * 1 + 2 * 2 + 3 * 1.5 + 5 + 4 + 2.5 + 7) / 24
    assert factor(held, unheld).value == pytest.approx(math.exp(nats - 1.0))
    assert factor(unheld, unheld).value == 1.0


def talked(rng, conversations, turns=4, factor_of_held=1.2):
    """Rows of conversations, each as improbable and as repetitive as drawn for it; held, the same ones are more of both."""
    rows = []
    for kind in ("role", "default"):
        for k in range(conversations):
            nats, words = 1.2 + 0.3 * rng.normal(), rng.uniform(8, 30)
            for name, more, fewer in (("plain", 0.0, 1.0), ("capped", math.log(factor_of_held), rng.uniform(0.5, 1.0))):
                more += 0.1 * rng.normal() if more else 0.0
                for turn in range(turns):
                    tokens = int(rng.integers(2, 25))
                    text = " ".join(f"w{j}" for j in rng.integers(0, max(2, int(words * fewer)), tokens))
                    logprob = -(nats + more + 0.4 * rng.normal())
                    rows.append(
                        {
                            "condition": name, "kind": kind, "conversation": f"{kind}/{k}", "turn": turn + 1, "text": text,
                            "tokens": tokens, "touched": 0, "drift": 0.0, "logprob": logprob,
                        }
                    )  # fmt: skip
    return rows


@pytest.mark.slow
@pytest.mark.parametrize(("conversations", "draws"), [(3, 200), (6, 200), (12, 200), (20, 60)])
def test_intervals_of_perplexity_and_repetition_hold_what_was_planted(conversations, draws):
    """At 90%, less three standard deviations of so many draws. Twenty have a bootstrap, fewer a t-interval by leaving out. The
    share of different pairs is skewed: of 1,500 draws 90.3% (3), 90.8% (6) and 92.5% (12) held it, most others lay above."""
    solved = {name: {ALL: Outcome(share([True]))} for name in ("plain", "capped")}
    rng = np.random.default_rng(conversations)
    many = pd.DataFrame(talked(np.random.default_rng(99), 1500))
    by_talk = many.groupby(["condition", "conversation"]).text.agg(lambda texts: distinct_pairs(list(texts)))
    repetitive = by_talk["capped"].mean()
    truth = {"factor": 1.2, "distinct": repetitive, "change": repetitive - by_talk["plain"].mean()}
    covered = dict.fromkeys(truth, 0)
    for _ in range(draws):
        capped_outcome = findings(["capped"], talked(rng, conversations), [], solved)["capped"]
        estimates = {
            "factor": capped_outcome.perplexity["default"],
            "distinct": capped_outcome.distinct,
            "change": capped_outcome.more_distinct,
        }
        for name, e in estimates.items():
            covered[name] += e.low <= truth[name] <= e.high
    print(conversations, {name: n / draws for name, n in covered.items()})
    least = 0.9 - 3 * math.sqrt(0.9 * 0.1 / draws)
    assert all(n / draws >= least for n in covered.values()), covered


def test_conversations_do_not_begin_alike_and_too_many_are_refused():
    said = talks(HoldsOptions(conversations=10), load_catalog())
    assert len(said) == 20
    assert len({talk[-1]["content"] + talk[0]["content"] for talk in said.values()}) == 20
    assert all(sum(m["role"] == "user" for m in talk) == 8 for talk in said.values())
    with pytest.raises(UsageError, match="--conversations 4000"):
        talks(HoldsOptions(conversations=4000), load_catalog())
    assert holding.control_conditions(HoldsOptions(controls=0)) == []


def test_how_far_a_set_projection_moves_tokens_is_a_plain_loops(tiny):
    """Both ways, so that the mean of what was added would say too little."""
    hold = SetTo(vector(1), (0, 2), target=(0.0, 1.0))
    prompts = [[{"role": "user", "content": f"thing {k}"}] for k in range(4)]
    measured = displacement(tiny, planted_space(), hold, prompts)
    asked = [Prompt(tuple(p), index=k, seed=k) for k, p in enumerate(prompts)]
    lengths = {0: [], 2: []}

    def counting(layer):
        unit = vector(1) / vector(1).norm()

        def hook(_, __, output):
            hidden = output[0] if isinstance(output, tuple) else output
            after = hold.apply(hidden, layer)
            steps[layer] = (hold.target_at(layer) - hidden[0] @ unit).abs()
            return (after, *output[1:]) if isinstance(output, tuple) else after

        return hook

    for r in tiny.respond(asked, Sampling(max_new_tokens=16), interventions=(hold,)):
        ids, steps = tiny.chat.prompt_ids(r.prompt.messages), {}
        handles = [tiny.layers[layer].register_forward_hook(counting(layer)) for layer in hold.layers]
        with torch.no_grad():
            tiny.model(torch.tensor([[*ids, *r.token_ids]]))
        for handle in handles:
            handle.remove()
        for layer in hold.layers:
            lengths[layer] += steps[layer][len(ids) :].tolist()
    assert measured == pytest.approx([sum(lengths[layer]) / len(lengths[layer]) for layer in hold.layers], rel=1e-3)
    assert Cap(vector(1), (LAYER,), floor=1.0).below(LAYER) is None
