"""What an effect of the axis stands beside, alike in every experiment: as long a step, and what may be said of it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personaspace.catalog import load_catalog
from personaspace.engines.prompts import Sampling
from personaspace.experiments.kit.beside import beside_in_words, tell_beside, verdict
from personaspace.experiments.kit.conversations import match_displacement, said_again
from personaspace.experiments.kit.options import Options
from personaspace.experiments.kit.trials import PLAIN, Condition, Trials, capped, controls
from personaspace.holding.controls import MANY, BesideControls
from personaspace.model.interventions import Decaying
from personaspace.report.page import Page
from planted import PlantedEngine, planted_space


@pytest.mark.parametrize(("conversations", "turns"), [(8, 4), (4, 6), (3, 8), (6, 2)])
def test_how_far_a_cap_moves_tokens_is_measured_on_each_turn_alike(tmp_path, conversations, turns):
    """A model slides a deviation a turn: measured on some turns more than on others, steps come out too short or too long."""
    engine = PlantedEngine(lambda messages, rng: 3.0 - sum(m["role"] == "user" for m in messages))
    made = Trials(engine, planted_space(3.0), tmp_path, "test", Options(), catalog=load_catalog())
    said = {
        f"c{k}": [{"role": "user", "content": f"thing {k} {turn}"} for turn in range(turns)]
        for k in range(conversations)
    }
    with made.open(1):
        dialogues = said_again(made, said, capped(["capped"]), Sampling(max_new_tokens=8))
        match_displacement(made, dialogues, turns)
        (length,) = made.displacement("capped", [])
    assert length == pytest.approx((turns + 1) / 2, rel=0.08)


@settings(max_examples=60, deadline=None)
@given(
    effect=st.floats(-3, 3),
    random=st.lists(st.floats(-3, 3), max_size=30),
)
def test_page_and_headline_say_of_an_effect_what_its_controls_allow(effect, random):
    page, beside = Page("a", "b"), BesideControls(effect, tuple(random))
    tell_beside(page, {"capped": beside}, "taken back")
    headline = beside_in_words({"capped": beside}, "taken back", ["capped"])
    if not random:
        assert (page.key, page.blocks) == ([], [])
        assert headline == "Beside capped no random direction was set: nothing is claimed of the axis there."
        return
    (figure,), (block,) = page.key, page.blocks
    assert figure.value == verdict(beside)
    assert f"beside {len(random)} random directions" in figure.name
    assert block.rows[0][-1] == ("yes" if figure.value == "beyond" else "no")
    assert ("nothing is claimed" in headline) == (figure.value == "not known") == (len(random) < MANY)
    assert ("not beyond their 95th percentile" in headline) == (figure.value == "not beyond")


def test_what_is_done_to_the_model_without_a_control_is_named():
    beside = {"capped": BesideControls(1.0, (0.0,) * MANY)}
    headline = beside_in_words(beside, "taken back", ["capped", "capped+alert", "capped+mirror"])
    assert "beyond their 95th percentile" in headline
    assert "Beside capped+alert, capped+mirror no random direction was set" in headline
    assert beside_in_words({}, "taken back", []) == ""


def test_every_condition_draws_alike_at_a_turn_whichever_call_asks(tmp_path, monkeypatch):
    """Controls come in later calls; with another draw of their own they would differ by more than what is done to the model."""
    engine = PlantedEngine(lambda messages, rng: rng.normal())
    made = Trials(engine, planted_space(3.0), tmp_path, "test", Options(), catalog=load_catalog())
    said = {f"c{k}": [{"role": "user", "content": f"thing {k} {turn}"} for turn in range(3)] for k in range(2)}
    seeds: dict[str, set[int]] = {}
    answers = engine.respond

    def respond(prompts, *options, before=False, **more):
        prompts = list(prompts)
        for p in prompts:
            if not before:  # what measures a cap's steps draws for itself
                seeds.setdefault(p.messages[-1]["content"], set()).add(p.seed)
        return answers(prompts, *options, before=before, **more)

    monkeypatch.setattr(engine, "respond", respond)
    sampling = Sampling(max_new_tokens=8)
    with made.open(1):
        match_displacement(made, said_again(made, said, [PLAIN, *capped(["capped"])], sampling), 3)
        for directions in (2, 3):
            said_again(made, said, controls(capped(["capped"]), directions), sampling)
    assert len(seeds) == 6
    assert all(len(of_message) == 1 for of_message in seeds.values())


@pytest.mark.parametrize("where", ["generated", "answer"])
def test_the_control_of_a_gentler_hold_acts_where_and_weakens_as_it_does(where):
    space = planted_space(3.0)
    for name, half_life in ((f"capped+{where}", None), (f"capped+{where}+half-life=4", 4.0)):
        (push,) = Condition("x", cap=name, control=1).interventions(space, {name: [2.0]})
        assert push.where == where
        assert isinstance(push, Decaying) == (half_life is not None)
        add = push.of if isinstance(push, Decaying) else push
        assert float(add.step.norm()) == pytest.approx(2.0)
        assert getattr(push, "half_life", None) == half_life
