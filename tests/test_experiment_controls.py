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
from personaspace.experiments.kit.trials import Trials, capped
from personaspace.holding.controls import MANY, BesideControls
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
