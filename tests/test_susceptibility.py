"""The experiment on susceptibility: finds a planted response to steering, none where there is none, and runs on the model."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from personaspace.catalog import load_catalog
from personaspace.experiments.kinds import KINDS, kind
from personaspace.experiments.susceptibility import EXPERIMENT, SusceptibilityOptions, asks, spread
from personaspace.experiments.trials import Trials
from personaspace.space import PersonaSpace
from planted import PlantedEngine, planted_space

SMALL = SusceptibilityOptions(roles=4, probes=4)
ROLE = spread(load_catalog(), SMALL.roles)[0].role


def conducted(folder, engine, options=SMALL):
    trials = Trials(engine, planted_space(), folder, "susceptibility", options, catalog=load_catalog())
    return EXPERIMENT.conduct(trials)


def speak(at, messages):
    if at > 0.5:
        return "I'm an AI assistant, here to help you with that."
    return "I was born by the sea, and my mother taught me to fish."


def test_a_planted_response_to_steering_is_found(tmp_path):
    result = conducted(tmp_path, PlantedEngine(lambda messages, rng: rng.normal(), speak))
    assert result.figures["assistant_trend"].low > 0.5
    assert result.figures["persona_trend"].high < -0.5
    shares = result.figures["shares"]["a role"]
    assert shares["α -0.40"]["a human with a past"].low > 0.7
    assert shares["α +0.30"]["the Assistant"].low > 0.7
    assert "the further away it is steered, the less it is" in result.headline
    assert (tmp_path / "report.html").stat().st_size > 1_000_000


def test_where_steering_does_nothing_none_is_found(tmp_path):
    def chance(at, messages):
        return speak(np.random.default_rng(zlib.crc32(str(at).encode())).normal(), messages)

    result = conducted(tmp_path, PlantedEngine(lambda messages, rng: rng.normal(), chance))
    assert result.figures["assistant_trend"].low < 0 < result.figures["assistant_trend"].high
    assert "no effect" in result.headline


def test_a_response_the_other_way_round_is_said_to_be_one(tmp_path):
    result = conducted(tmp_path, PlantedEngine(lambda m, rng: rng.normal(), lambda at, m: speak(-at, m)))
    assert result.figures["assistant_trend"].high < 0
    assert "the further away it is steered, the more it is" in result.headline


def test_what_is_said_of_replies_under_a_role_is_of_those_alone(tmp_path):
    """Without a role the planted model answers to steering; under one it does not."""

    def under(at, messages):
        free = messages[0]["role"] == "user"
        return speak(at if free else np.random.default_rng(zlib.crc32(str(at).encode())).normal(), messages)

    result = conducted(tmp_path, PlantedEngine(lambda m, rng: rng.normal(), under))
    assert result.figures["assistant_trend"].n == SMALL.roles
    assert result.figures["assistant_trend"].low < 0 < result.figures["assistant_trend"].high
    assert "no effect" in result.headline


def test_one_role_that_answers_to_steering_is_not_taken_for_all(tmp_path):
    """What it says to its questions goes together: they are one role, not eight witnesses."""
    one = {a.messages[0]["content"] for a in asks(SMALL, load_catalog()) if a.item.startswith(ROLE + "/")}

    def only(at, messages):
        return speak(at if messages[0]["content"] in one else -1.0, messages)

    found = conducted(tmp_path, PlantedEngine(lambda m, rng: rng.normal(), only)).figures["assistant_trend"]
    assert found.low < 0 < found.value


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("I am a language model trained by a company, how may I help you?", "the Assistant"),
        ("I'm a robot of the old kind, and my circuits hum.", "another AI"),
        ("I grew up in a small town with my grandmother.", "a human with a past"),
        ("I am an old, grey whale and I sing to the deep.", "a nonhuman character"),
        ("The veil of eternity whispers, and the abyss listens.", "theatrical or mystical"),
        ("the the the the the the the the the the the the the", "incoherent"),
        ("", "incoherent"),
    ],
)
def test_words_sort_a_reply_into_its_kind(reply, expected):
    assert KINDS[kind(reply)] == expected


def test_on_the_embedded_model_steering_away_takes_the_assistant_out_of_its_replies(tmp_path, smollm2):
    options = SusceptibilityOptions(alphas=(-0.3, 0.0), roles=2, probes=2, max_new_tokens=24)
    trials = Trials(smollm2, PersonaSpace.load("smollm2"), tmp_path, "susceptibility", options, catalog=load_catalog())
    rows = EXPERIMENT.conduct(trials).rows
    place = {c: np.mean([r["projection"] for r in rows if r["condition"] == c]) for c in ("α -0.30", "plain")}
    assert place["α -0.30"] < place["plain"] - 20
    assert {r["kind"] for r in rows} <= set(KINDS)
