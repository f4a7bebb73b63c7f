"""The experiment on susceptibility: finds a planted response to steering, none where there is none, and runs on the model."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from personaspace.catalog import load_catalog
from personaspace.experiments.kit.conditions import SHUFFLED_AXIS
from personaspace.experiments.kit.speakers import KINDS, UNTOLD, kind
from personaspace.experiments.kit.trials import Given, Trials
from personaspace.experiments.susceptibility.findings import NO_ROLE, findings, table_row
from personaspace.experiments.susceptibility.run import (
    EXPERIMENT,
    SusceptibilityOptions,
    asks,
    conditions,
    control_asks,
    spread,
)
from personaspace.experiments.susceptibility.sorting import confusion, sorting
from personaspace.space import PersonaSpace
from personaspace.stats.intervals import share
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
    effects = result.figures["effects"]
    assert [effects[n].direction for n in ("steered away", "steered towards")] == [1, 1]
    assert "Steered away, replies are the Assistant less often, and more so than" in result.headline
    assert "Steered towards, replies are the Assistant more often, and more so than" in result.headline
    assert (tmp_path / "report.html").stat().st_size > 1_000_000


def test_where_steering_does_nothing_none_is_found(tmp_path):
    def chance(at, messages):
        return speak(np.random.default_rng(zlib.crc32(str(at).encode())).normal(), messages)

    result = conducted(tmp_path, PlantedEngine(lambda messages, rng: rng.normal(), chance))
    assert result.figures["assistant_trend"].low < 0 < result.figures["assistant_trend"].high


@pytest.mark.long
def test_where_nothing_does_anything_an_effect_is_claimed_in_5_of_100_at_most():
    """Whether a reply is the Assistant's depends on its role, and on nothing that is done to the model."""
    rng = np.random.default_rng(0)
    options = SusceptibilityOptions()
    wanted = asks(options, load_catalog()) + control_asks(options, load_catalog())
    wanted = [a for a in wanted if not a.item.startswith(NO_ROLE)]
    replies = [Given(a.condition.name, a.item, "", 1, "stop", 0.0, 0) for a in wanted]
    claims: Counter[str] = Counter()
    for _ in range(100):
        shares = {role: rng.uniform(0.2, 0.8) for role in {a.item.split("/")[0] for a in wanted}}
        kinds = [0 if rng.random() < shares[a.item.split("/")[0]] else int(rng.choice([2, 5, 6])) for a in wanted]
        rows = [table_row(a, g, k) for a, g, k in zip(wanted, replies, kinds, strict=True)]
        found = findings(conditions(options), rows)
        claims.update(name for name, effect in found.effects.items() if effect.direction)
    assert max(claims.values(), default=0) <= 8, claims


def test_a_response_the_other_way_round_is_said_to_be_one(tmp_path):
    result = conducted(tmp_path, PlantedEngine(lambda m, rng: rng.normal(), lambda at, m: speak(-at, m)))
    assert result.figures["assistant_trend"].high < 0
    assert "Steered away, replies are the Assistant more often, and more so than" in result.headline


def test_what_any_displacement_does_alike_is_not_claimed_for_the_axis(tmp_path):
    """The trend is as strong as where the axis alone does it; its control says that it is not the axis'."""
    engine = PlantedEngine(lambda messages, rng: rng.normal(), speak, any_direction=True)
    result = conducted(tmp_path, engine)
    assert result.figures["assistant_trend"].low > 0.5
    assert {e.direction for e in result.figures["effects"].values()} == {0}
    assert "more so" not in result.headline
    assert "not apart from what random directions do" in result.headline


def test_without_random_directions_nothing_is_claimed(tmp_path):
    engine = PlantedEngine(lambda messages, rng: rng.normal(), speak)
    result = conducted(tmp_path, engine, SMALL.model_copy(update={"controls": 0}))
    assert result.figures["assistant_trend"].low > 0.5
    assert "no random direction was set beside it, so nothing is claimed" in result.headline
    assert "more so" not in result.headline


def test_a_cap_that_makes_the_assistant_is_told_apart_from_as_long_a_random_step(tmp_path):
    """Its floor holds replies where the planted model speaks as the Assistant; without it none lies there."""
    for name, any_direction, direction in (("axis", False, 1), ("any", True, 0)):
        engine = PlantedEngine(lambda messages, rng: -3 + 0.1 * rng.normal(), speak, any_direction=any_direction)
        trials = Trials(engine, planted_space(1.0), tmp_path / name, "susceptibility", SMALL, catalog=load_catalog())
        effect = EXPERIMENT.conduct(trials).figures["effects"]["capped"]
        assert (effect.axis.value, effect.direction) == (1, direction)
        measured = json.loads((tmp_path / name / "displacements.json").read_text())["capped"]
        assert measured == pytest.approx([4.0], abs=0.1)


def test_all_roles_are_asked_the_same_questions_along_every_direction():
    wanted = control_asks(SMALL, load_catalog())
    by_direction = {}
    for a in wanted:
        by_direction.setdefault((a.condition.control, a.condition.alpha), []).append(a.item)
    assert {n for n, _ in by_direction} == {SHUFFLED_AXIS, *range(20)}
    assert {alpha for _, alpha in by_direction} == {0.0, *SMALL.control_alphas}
    (items,) = {tuple(items) for items in by_direction.values()}
    roles = [r.role for r in spread(load_catalog(), SMALL.roles)]
    assert items == tuple(f"{role}/{kind}" for role in roles for kind in ("who 0", "past 4"))
    # They are the questions of the axis itself, word for word.
    own = {a.item: a.messages for a in asks(SMALL, load_catalog())}
    assert all(own[a.item] == a.messages for a in wanted)


def test_an_effect_as_far_as_the_farthest_directions_of_twenty_is_not_the_axis():
    """Beyond the 95th percentile of the others it is; where two of twenty do as much, it is not."""
    wanted = [a for a in [*asks(SMALL, load_catalog()), *control_asks(SMALL, load_catalog())] if NO_ROLE not in a.item]
    for strong, direction in ((0, 1), (2, 0)):
        rows = []
        for k, a in enumerate(wanted):
            number = a.condition.control
            does = a.condition.alpha < 0 and (number is None or 0 <= number < strong)
            assistant = k % 16 == 0 if does else k % 16 != 0
            given = Given(a.condition.name, a.item, "", 1, "stop", 0.0, 0)
            rows.append(table_row(a, given, KINDS.index("the Assistant" if assistant else "a human with a past")))
        effect = findings(conditions(SMALL), rows).effects["steered away"]
        assert len(effect.beside.random) == 20
        assert effect.axis.direction() == 1
        assert effect.direction == direction


def test_replies_that_tell_nothing_are_missing_and_their_share_is_shown(tmp_path):
    """The planted model gives advice unless it lies far to one side: its shares are of the others alone."""

    def advise(at, messages):
        return speak(at, messages) if at > 1 else "First boil the water, then pour it over the leaves."

    result = conducted(tmp_path, PlantedEngine(lambda messages, rng: rng.normal(), advise))
    shares, telling = result.figures["shares"]["a role"], result.figures["telling"]["a role"]
    assert telling["α -0.40"].value == 0
    assert shares["α -0.40"]["the Assistant"].n == 0
    assert shares["α -0.40"]["the Assistant"].missing == telling["α -0.40"].n
    assert telling["α +0.30"].value > 0.8
    assert shares["α +0.30"]["the Assistant"].value == 1
    assert result.figures["telling_trend"].low > 0
    assert result.figures["telling_of_all"].n == SMALL.roles  # the same roles under each condition, and no more for it
    assert "shares of different replies" in result.headline


def test_a_folder_of_before_there_were_controls_is_gone_on_with(tmp_path):
    engine = PlantedEngine(lambda messages, rng: rng.normal(), speak)
    conducted(tmp_path, engine, SMALL.model_copy(update={"controls": 0}))
    engine.asked = 0
    result = conducted(tmp_path, engine)
    assert engine.asked == len(control_asks(SMALL, load_catalog())) + 8, (
        "those of the controls, and the eight different prompts of one, on which the cap is measured"
    )
    assert result.figures["effects"]["steered away"].direction == 1


def test_what_is_said_of_replies_under_a_role_is_of_those_alone(tmp_path):
    """Without a role the planted model answers to steering; under one it does not."""

    def under(at, messages):
        free = messages[0]["role"] == "user"
        return speak(at if free else np.random.default_rng(zlib.crc32(str(at).encode())).normal(), messages)

    result = conducted(tmp_path, PlantedEngine(lambda m, rng: rng.normal(), under))
    assert result.figures["assistant_trend"].n == SMALL.roles
    assert result.figures["assistant_trend"].low < 0 < result.figures["assistant_trend"].high


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
        ("!!! ??? ###", "incoherent"),
        ("", "untold"),
        ("To make tea, first boil the water. Then pour it over the leaves, and wait for three minutes.", "untold"),
        ("In a world of AI-powered assistants, it is best to ask with care.", "untold"),
        ("You should tell your friend the truth.", "untold"),
        ("She was born in 1960 and became a famous painter.", "untold"),
        ("The stars are balls of gas; the universe is expanding, and the night sky is dark.", "untold"),
        ("def add(a, b):\n    return a + b", "untold"),
        ("Меня зовут Анна, и я живу в Москве.", "untold"),
        ("Arr! Ye scurvy dog, hand over yer gold!", "theatrical or mystical"),
        ("Avast! Hoist the mainsail, me hearties!", "theatrical or mystical"),
        ("Good morrow, kind sir! I prithee, tarry a while.", "theatrical or mystical"),
        ("I drift through these halls, unseen, since the night I died.", "a nonhuman character"),
        ("I'm a restless spirit bound to this house.", "a nonhuman character"),
        ("Woof! I am a dog, and I chase my tail.", "a nonhuman character"),
        ("I'm a dog person and I love long walks.", "a human with a past"),
        ("I'm a machine learning engineer from Ohio.", "a human with a past"),
        ("I'm Maria, and I teach at a small school in Leeds.", "a human with a past"),
        ("Hello, I'm Alex, a designer with ten years of experience. How can I help you?", "a human with a past"),
        ("I am ARIA, the ship's computer.", "another AI"),
        ("I'm **Dr. Elena**, a specialized AI model.", "the Assistant"),
    ],
)
def test_words_sort_a_reply_into_its_kind(reply, expected):
    assert KINDS[kind(reply)] == expected


def labelled(split):
    lines = (Path(__file__).parent / "data" / "kinds_labelled.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def test_what_the_page_says_of_how_well_words_sort_is_what_they_do_on_the_held_out_replies():
    now = sorting(confusion((r["kind"], KINDS[kind(r["reply"])]) for r in labelled("held out")))
    assert now == sorting(), "measure anew, and write it into experiments/data/kinds_measured.jsonl"


def test_words_sort_the_held_out_replies_as_well_as_was_measured_with_slack():
    measured = sorting()
    kinds = {each.kind: each for each in measured.kinds}
    assert measured.n == len(labelled("held out")) == 80
    assert measured.agreement.value > 0.65
    assert kinds["the Assistant"].recall.value > 0.85
    assert kinds["the Assistant"].precision.value > 0.85
    assert kinds["incoherent"].recall.value > 0.7
    assert kinds["a human with a past"].recall.value > 0.6
    assert kinds[UNTOLD].recall.value > 0.5


def test_a_confusion_gives_recall_and_precision_of_each_kind():
    human, nobody = "a human with a past", UNTOLD
    found = sorting(confusion([(human, human), (human, nobody), (nobody, nobody), (nobody, human), (human, human)]))
    by_kind = {each.kind: each for each in found.kinds}
    assert by_kind[human].recall == share([True, False, True])
    assert by_kind[nobody].precision == share([True, False])
    assert found.agreement == share([True, True, True, False, False])
    assert by_kind["another AI"].recall.n == 0


@pytest.mark.long
def test_on_the_embedded_model_steering_away_takes_the_assistant_out_of_its_replies(tmp_path, smollm2):
    options = SusceptibilityOptions(
        alphas=(-0.3, 0.0), roles=2, probes=2, max_new_tokens=24, control_alphas=(-0.3,), controls=1
    )
    trials = Trials(smollm2, PersonaSpace.load("smollm2"), tmp_path, "susceptibility", options, catalog=load_catalog())
    rows = EXPERIMENT.conduct(trials).rows
    place = {c: np.mean([r["projection"] for r in rows if r["condition"] == c]) for c in ("α -0.30", "plain")}
    assert place["α -0.30"] < place["plain"] - 20
    # As long a step along a random direction leaves it about where it was.
    aside = np.mean([r["projection"] for r in rows if r["condition"] == "α -0.30 random 1"])
    assert abs(aside - place["plain"]) < 15
    beside = {f"{name} {aside}" for name in ("α -0.30", "capped") for aside in ("random 1", "shuffled axis")}
    assert {r["condition"] for r in rows if r["control"] is not None} == beside
    assert {r["kind"] for r in rows} <= set(KINDS)
