"""Alerts by name: what a user may write, and how often the default raises them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from personaspace.errors import SpaceError, UsageError
from personaspace.holding.alerts import direction_rule, parse_alerts
from personaspace.holding.monitor import AlertRule
from personaspace.space import PersonaSpace, layout

LAYERS, HIDDEN, LAYER = 3, 8, 1


@pytest.fixture(scope="module")
def space() -> PersonaSpace:
    rng = torch.Generator().manual_seed(2)
    roles, traits = torch.randn(3, LAYERS, HIDDEN, generator=rng), torch.randn(2, LAYERS, HIDDEN, generator=rng)
    meta = {
        "format": layout.FORMAT,
        "model": {"id": "planted", "layers": LAYERS, "hidden": HIDDEN},
        "layer": LAYER,
        "n_default": 400,
        "roles": ["bard", "ghost", "skeptic"],
        "traits": ["sarcastic", "a<b"],
    }
    default = torch.randn(LAYERS, HIDDEN, generator=rng)
    tensors = {
        "role_vectors": roles,
        "trait_vectors": traits,
        "default_vector": default,
        "axis": default - roles.mean(0),
        "reply_mean": torch.randn(HIDDEN, generator=rng),
        "reply_factor": torch.randn(3, HIDDEN, generator=rng),
        "reply_rest": torch.tensor(0.1),
        "default_moments": torch.stack([torch.zeros(LAYERS), torch.ones(LAYERS)]),
    }
    return PersonaSpace(meta, tensors)


def raised(conversations: list[list[float]], rule: AlertRule) -> float:
    """The share of conversations with a mean over so many turns in a row above the threshold, by plain loops."""
    count = 0
    for conversation in conversations:
        means = [sum(conversation[k : k + rule.turns]) / rule.turns for k in range(len(conversation) - rule.turns + 1)]
        count += any(mean > rule.threshold for mean in means)
    return count / len(conversations)


@pytest.mark.parametrize("correlation", [0.0, 0.4, 0.9])
@pytest.mark.parametrize("turns", [1, 2])
def test_no_correlation_of_turns_makes_the_default_raise_an_alert_more_often_than_its_rate(space, correlation, turns):
    rule = direction_rule(space, rate=0.05, turns=turns)
    rng = np.random.default_rng(5)
    lengths = rng.integers(6, 16, 1500)
    conversations = [
        (correlation**0.5 * rng.normal() + (1 - correlation) ** 0.5 * rng.normal(size=length)).tolist()
        for length in lengths
    ]
    rate = raised(conversations, rule)
    assert rate < 0.05 + 3 * (0.05 * 0.95 / 1500) ** 0.5
    assert rule.rate_interval
    assert rule.rate_interval[0] < 0.05 < rule.rate_interval[1]


def test_a_threshold_of_ones_own_comes_with_the_rate_that_it_has(space):
    by_rate = direction_rule(space, rate=0.02)
    assert direction_rule(space, threshold=by_rate.threshold).rate == pytest.approx(0.02, abs=5e-4)
    assert direction_rule(space, threshold=9.0).rate == 0


def test_the_rates_interval_goes_by_the_replies_that_were_read_and_not_by_a_maps_prompts():
    space = PersonaSpace.load("smollm2")
    assert space.meta["n_default"] != space.of("reply").meta["n_default"]

    def width(n_prompts: int, n_replies: int) -> float:
        meta = copy.deepcopy(dict(space.meta))
        meta["n_default"], meta["other"]["reply"]["n_default"] = n_prompts, n_replies
        low, high = direction_rule(PersonaSpace(meta, space.tensors)).rate_interval
        return high - low

    assert width(1000, 300) == width(50, 300)
    assert width(1000, 40) > 1.5 * width(1000, 300)


def test_alerts_are_written_as_names_with_and_without_a_threshold_on_either_side(space):
    texts = ["ghost", "trait:sarcastic > 2.5", "bard<-1.5", "axis<-3", "a<b"]
    alerts = {alert.name: alert for alert in parse_alerts(space, texts)}
    assert list(alerts) == ["axis", "role:ghost", "trait:sarcastic", "role:bard", "trait:a<b"]
    assert alerts["role:ghost"].rule.rate == 0.01
    assert (alerts["trait:sarcastic"].rule.threshold, alerts["trait:sarcastic"].below) == (2.5, False)
    assert (alerts["role:bard"].rule.threshold, alerts["role:bard"].below) == (1.5, True)
    assert list(alerts["role:bard"].standing(space, [-2.0, -2.0, 1.0])) == [False, True, False]
    assert list(alerts["trait:sarcastic"].standing(space, [2.0, 3.5, 3.0])) == [False, True, True]
    assert "below -1.50" in str(alerts["role:bard"])
    assert "normal along it" in str(alerts["role:ghost"])


@pytest.mark.parametrize(
    ("texts", "kind", "part"),
    [
        (["ghots"], SpaceError, "nearest: ghost"),
        (["ghost>x"], SpaceError, "no role 'ghost>x'"),
        (["ghost", "role:ghost>3"], UsageError, "one of role:ghost already"),
        (["axis>2"], UsageError, "expected axis<-2.5"),
        ([""], UsageError, "expected NAME"),
    ],
)
def test_what_is_no_alert_is_refused_in_one_line(space, texts, kind, part):
    with pytest.raises(kind) as refusal:
        parse_alerts(space, texts)
    assert part in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_space_that_does_not_know_how_replies_lie_has_no_alert_beside_its_axis(space):
    bare = PersonaSpace(space.meta, {k: v for k, v in space.tensors.items() if not k.startswith("reply_")})
    with pytest.raises(UsageError, match="does not know how the default's replies lie along it"):
        parse_alerts(bare, ["ghost"])


@settings(max_examples=40, deadline=None)
@given(shifts=st.lists(st.floats(-6, 6), max_size=12))
def test_an_alert_below_is_the_one_above_of_shifts_the_other_way(space, shifts):
    (above,), (below,) = parse_alerts(space, ["ghost>1"]), parse_alerts(space, ["ghost<-1"])
    assert list(above.standing(space, shifts)) == list(below.standing(space, [-s for s in shifts]))
