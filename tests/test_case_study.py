"""Case studies: read as they were, given again plain and capped, and held; the user's own files as well."""

from __future__ import annotations

import json

import pytest

from personaspace.catalog import load_catalog
from personaspace.errors import RunMismatch, UsageError
from personaspace.experiments.case_study.run import EXPERIMENT, CaseStudyOptions, transcripts
from personaspace.experiments.kit.conversations import fitted
from personaspace.experiments.kit.trials import Trials
from personaspace.holding.monitor import AlertRule
from personaspace.space import PersonaSpace
from planted import PlantedEngine, planted_space


def slipping(messages, rng):
    """A model that slides a standard deviation a turn away from where the default lies."""
    return 5.0 - sum(m["role"] == "user" for m in messages) + 0.2 * rng.normal()


def conducted(folder, engine, floor=3.0, options=None):
    chosen = options or CaseStudyOptions()
    trials = Trials(engine, planted_space(floor), folder, "case-study", chosen, catalog=load_catalog())
    return EXPERIMENT.conduct(trials)


def test_a_model_that_slides_is_seen_to_and_the_cap_is_seen_to_hold_it(tmp_path):
    result = conducted(tmp_path, PlantedEngine(slipping))
    ends, rise = result.figures["drift_at_the_end"], result.figures["rise"]
    assert ends["plain"].low < 6.5 < ends["plain"].high, "turns 5 to 8 of 8"
    assert ends["capped"].value == pytest.approx(2.0, abs=0.05), "the floor lies two standard deviations down"
    assert rise["plain"].value == pytest.approx(5.0, abs=0.3)
    assert rise["plain"].n == 3
    assert "in these 3 conversations the cap holds it; the turns of so few say nothing of others" in result.headline
    pushed = {r["arm"] for r in result.rows} - {"as it was", "plain", "capped"}
    assert pushed == {*(f"capped random {k + 1}" for k in range(20)), "capped shuffled axis"}
    assert result.figures["beside"]["capped"].is_the_axis
    assert "beyond their 95th percentile" in result.headline


def test_a_cap_that_does_what_any_push_does_is_not_said_to_hold(tmp_path):
    options = CaseStudyOptions(controls=20)
    result = conducted(tmp_path, PlantedEngine(slipping, any_direction=True), options=options)
    assert result.figures["drift_at_the_end"]["capped"].high < result.figures["drift_at_the_end"]["plain"].low
    assert not result.figures["beside"]["capped"].is_the_axis
    assert "the cap holds it" not in result.headline
    assert "cannot be told from what any push does" in result.headline


def test_a_cap_that_waits_for_an_alert_stands_beside_one_that_has_controls(tmp_path, monkeypatch):
    monkeypatch.setattr("personaspace.experiments.kit.conversations.alert_rule", lambda space: AlertRule(3.0, turns=1))
    options = CaseStudyOptions(caps=("capped", "capped+alert"))
    result = conducted(tmp_path, PlantedEngine(slipping), options=options)
    assert list(result.figures["beside"]) == ["capped"]
    assert "Beside capped+alert no random direction was set: nothing is claimed of the axis there" in result.headline


def test_where_nothing_slides_the_cap_is_not_said_to_help(tmp_path):
    result = conducted(tmp_path, PlantedEngine(lambda messages, rng: 5 + rng.normal()))
    assert "no difference" in result.headline


def test_without_caps_nothing_is_said_of_a_cap(tmp_path):
    result = conducted(tmp_path, PlantedEngine(slipping), options=CaseStudyOptions(caps=()))
    assert {r["arm"] for r in result.rows} == {"as it was", "plain"}
    assert "the cap" not in result.headline + result.lead
    assert "capped" not in result.lead


def test_a_users_own_transcripts_are_read_and_two_of_one_name_are_refused(tmp_path):
    talk = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b <-9.0>"}] * 2
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "talk.json").write_text(json.dumps(talk))
    result = conducted(
        tmp_path / "out",
        PlantedEngine(slipping),
        options=CaseStudyOptions(transcripts=(str(tmp_path / "x/talk.json"),)),
    )
    assert "in this one conversation" in result.headline
    assert str(result.figures["rise"]["plain"]).endswith("(too few for an interval)")
    was = [r for r in result.rows if r["arm"] == "as it was"]
    assert [(r["conversation"], r["projection"], r["user"]) for r in was] == [("talk", -9.0, "a?")] * 2
    with pytest.raises(UsageError, match="two conversations are called 'talk'"):
        transcripts(CaseStudyOptions(transcripts=tuple(str(tmp_path / f / "talk.json") for f in ("x", "y"))))


def test_a_file_that_was_edited_is_not_taken_for_the_one_that_was_read(tmp_path):
    talk = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b <-9.0>"}] * 2
    file = tmp_path / "talk.json"
    options = CaseStudyOptions(transcripts=(str(file),))
    file.write_text(json.dumps(talk))
    engine = PlantedEngine(slipping)
    first = conducted(tmp_path / "out", engine, options=options)
    file.write_text(json.dumps(talk, indent=2))
    asked = engine.asked
    assert conducted(tmp_path / "out", engine, options=options).rows == first.rows
    assert engine.asked == asked, "the same words, written otherwise, go on"
    for edited in ([{**talk[0], "content": "another?"}, *talk[1:]], talk[:2]):
        file.write_text(json.dumps(edited))
        with pytest.raises(RunMismatch, match="transcripts_digest"):
            conducted(tmp_path / "out", engine, options=options)


def test_the_three_that_come_along_are_whole_conversations():
    found = transcripts(CaseStudyOptions())
    assert len(found) == 3
    for t in found:
        assert [m["role"] for m in t.messages] == ["user", "assistant"] * 8


def test_a_conversation_that_has_grown_too_long_loses_its_oldest_exchanges_and_keeps_its_system_prompt():
    engine = PlantedEngine(slipping)
    system = {"role": "system", "content": "one two"}
    talk = [system]
    for k in range(5):
        talk += [{"role": "user", "content": f"u{k} word"}, {"role": "assistant", "content": f"a{k} word"}]
    talk.append({"role": "user", "content": "last one"})
    object.__setattr__(engine.info, "context", 20)
    kept = fitted(engine, talk, 8)
    assert kept == [system, *talk[-5:]]
    assert fitted(engine, talk, 0) == [system, *talk[-9:]]
    with pytest.raises(UsageError, match="do not fit"):
        fitted(engine, talk, 17)


@pytest.mark.long
def test_on_the_embedded_model_the_transcripts_drift_and_its_own_replies_are_read(tmp_path, smollm2):
    talk = transcripts(CaseStudyOptions())[2]
    (tmp_path / "spirit.json").write_text(json.dumps([dict(m) for m in talk.messages[:8]]))
    options = CaseStudyOptions(transcripts=(str(tmp_path / "spirit.json"),), max_new_tokens=12, controls=1)
    space = PersonaSpace.load("smollm2")
    trials = Trials(smollm2, space, tmp_path / "out", "case-study", options, catalog=load_catalog())
    rows = EXPERIMENT.conduct(trials).rows
    was = [r["projection"] for r in rows if r["arm"] == "as it was"]
    _, deviation = space.tensors["default_moments"][:, space.layer].tolist()
    assert was[-1] < was[0] - deviation
    assert len([r for r in rows if r["arm"] == "capped" and r["reply"]]) == 4
