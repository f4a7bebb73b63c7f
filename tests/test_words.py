"""What figures mean, in words: nothing is rounded into being known, and what is not known is said to be so."""

from __future__ import annotations

import re

import pytest
import torch

import personaspace as ps
from personaspace.report import words
from planted import LAYERS, planted_space


def whole(axis: float | None = 0.97, order: float | None = 0.8, map_: float | None = 0.85, **meta) -> ps.PersonaSpace:
    """A planted space of these reliabilities, of 500 replies and 4 a role in 100 s, at every layer."""
    plain = planted_space()
    tensors = dict(plain.tensors)
    for name, value in (("axis", axis), ("order", order), ("map", map_)):
        if value is not None:
            tensors[f"{name}_split_half"] = torch.full((LAYERS,), value / (2 - value))
    asked = {"default": 468, **dict.fromkeys(plain.roles, 4)}
    return ps.PersonaSpace(
        {**plain.meta, "n_responses": 500, "asked": asked, "seconds": {"responses": 100.0}, **meta}, tensors
    )


def by_name(space: ps.PersonaSpace) -> dict[str, words.Reliability]:
    return {r.name: r for r in words.reliabilities(space.worth())}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.69999, "0.69"),
        (0.7, "0.70"),
        (0.8999, "0.89"),
        (0.29, "0.29"),
        (0.9968, "0.996"),
        (0.99999, "0.999"),
        (None, "–"),
    ],
)
def test_a_reliability_under_a_mark_is_never_printed_as_the_mark(value, shown):
    assert words.number(value) == shown


def test_the_maps_reliability_is_told_as_the_noise_in_squared_distances():
    told = by_name(whole(map_=0.85))["map"]
    assert told.meaning == "Of the roles' squared distances, 15% is noise."
    assert told.known


def test_what_is_under_the_mark_is_called_not_known_and_what_was_not_measured_untold():
    told = by_name(whole(axis=0.6, order=0.31, map_=None))
    assert told["axis"].meaning.startswith("Not known: mapped again, the axis would point another way")
    assert told["order"].meaning.startswith("Not known: mapped again, the roles would stand in another order")
    assert (told["order"].known, told["map"].known) == (False, None)
    assert told["map"].meaning == words.UNTOLD
    assert told["map"].takes == ""


def test_what_nine_tenths_would_take_is_told_in_replies_by_role_and_in_minutes_where_they_are_known():
    told = by_name(whole(order=0.75))["order"]
    assert told.takes == (
        "0.9 would take 3.0 times the data: about 1,500 replies, 12 a role; 3 min more on the machine that made this."
    )
    silent = by_name(whole(order=0.75, seconds={}))["order"]
    assert silent.takes == "0.9 would take 3.0 times the data: about 1,500 replies, 12 a role."
    prompts = by_name(whole(order=0.75, reading="prompt", n_responses=None, asked={}, seconds={}))["order"]
    assert prompts.takes == "0.9 would take 3.0 times the data."


def test_nothing_is_forecast_where_it_is_reached_or_where_nothing_repeats():
    told = by_name(whole(axis=0.97, order=0.0))
    assert told["axis"].takes == ""
    assert told["order"].takes.startswith("Nothing repeats yet")


def test_the_forecast_in_json_keeps_its_keys_and_has_the_seconds_beside_them():
    forecast = whole(order=0.75).summary()["forecast"]["order"]
    assert forecast["target"] == 0.9
    assert forecast["times"] == pytest.approx(3)
    assert forecast["responses"] in (1500, 1501)
    assert forecast["seconds"] == pytest.approx(200)


def test_an_interval_of_which_an_end_is_not_known_says_so():
    space = whole(order=0.8, map_=0.85, reliability_interval={"order": [0.75, None], "map": [0.8, None]})
    assert "(95%: 0.75 to –)" in by_name(space)["order"].meaning
    assert "(95%: – to 20%)" in by_name(space)["map"].meaning


def test_intervals_are_told_as_shares_of_noise_from_the_lower_to_the_higher():
    space = whole(order=0.8, map_=0.85, reliability_interval={"order": [0.75, 0.84], "map": [0.8, 0.9]})
    assert "(95%: 0.75 to 0.84)" in by_name(space)["order"].meaning
    assert by_name(space)["map"].meaning == "Of the roles' squared distances, 15% is noise (95%: 10% to 20%)."


def test_a_list_of_roles_says_how_sure_its_order_is():
    assert words.order(whole(order=0.31).summary()).startswith("The order is not known (reliability 0.31)")
    assert words.order(whole(order=0.8).summary()).startswith("The order is known to 0.80")
    assert "the space does not say" in words.order(whole(order=None).summary())


def test_measured_corrected_and_shuffled_figures_stand_beside_the_studys_without_a_judgement():
    corrected = {
        "axis_pc1_cosine_corrected": 0.84,
        "components_for_70pct_corrected": 4.6,
        "default_on_pc1_corrected": 0.04,
        "axis_share": 0.257,
        "effective_dimension": 5.1,
        "null": {"axis_pc1_cosine": {"mean": 0.38, "p95": 0.45}, "components_for_70pct": {"mean": 39.0, "p95": 44.0}},
        "corrected_interval": {"axis_pc1_cosine_corrected": [0.71, 0.95]},
    }
    summary = whole(corrected=corrected).summary()
    cosine, components, place, share, dimension = words.beside(summary)
    assert (cosine.corrected, cosine.corrected_interval) == ("0.84", "0.71 to 0.95")
    assert cosine.shuffled == "0.38, in 95% under 0.45"
    assert cosine.study == summary["published"]["axis_pc1_cosine"]
    assert (components.corrected, components.shuffled) == ("4.6", "39, in 95% under 44")
    assert (place.corrected, place.shuffled) == ("0.04", "")
    assert (share.measured, share.corrected) == ("", "26%")
    assert dimension.corrected == "5.1"
    bare = words.beside(whole().summary())
    assert [row.corrected + row.shuffled for row in bare] == ["", "", ""], "nothing is made up where it is not known"


def test_the_readings_agreement_is_told_where_it_was_measured_alone():
    assert words.agreement(whole().summary()) == ""
    told = words.agreement(whole(readings_agree={"order": 0.96, "interval": [0.9, 1.0]}).summary())
    assert "0.96 (95%: 0.90 to 1.00)" in told


def test_whether_readings_agree_on_an_order_that_is_not_known_has_no_figure():
    summary = whole(order=0.31, readings_agree={"order": 0.4, "interval": [-0.78, 4.27]}).summary()
    told = words.agreement(summary)
    assert "not known" in told
    assert not re.search(r"\d", told)


def test_terminal_lines_lead_with_the_three_and_fit_the_width():
    lines = words.lines(whole(order=0.31).summary(), 80)
    text = "\n".join(lines)
    assert text.index("How sure is this map?") < text.index("Figures that noise moves")
    assert [line.split()[0] for line in lines if line[:2] == "  " and line[2:3].strip()][1:4] == [
        "axis",
        "order",
        "map",
    ]
    assert max(map(len, lines)) <= 80
