"""A folder of conversations laid out like the study's: pairs and domains by name, their ends and slopes, alerts, the page."""

from __future__ import annotations

import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from personaspace.catalog import load_catalog
from personaspace.cli.transcript_folders import print_folder
from personaspace.engines import Span, Turn
from personaspace.errors import UsageError
from personaspace.experiments.case_study.run import EXPERIMENT, CaseStudyOptions
from personaspace.experiments.kit.trials import Trials
from personaspace.formats.transcript_folders import read_transcript_folder
from personaspace.holding.folder_page import of_alerts, sentences, table, write_folder
from personaspace.holding.transcript_folders import end_of, project_folder, slope_of, together
from personaspace.space import PersonaSpace
from personaspace.stats.intervals import sign_test
from planted import HIDDEN, MARK, PlantedChat, PlantedEngine, planted_space
from test_cli import run

CASES = ("jailbreak", "delusion", "selfharm")
MODELS = ("llama-3.3-70b", "qwen-3-32b")
SLOPES = {"coding": 0.0, "writing": 0.0, "therapy": 0.4, "philosophy": 0.3}


class SpanChat(PlantedChat):
    """A token a reply, which is where the reply lies."""

    thinks = False

    def spans(self, messages, part):
        places = [k for k, m in enumerate(messages) if m["role"] == "assistant"]
        ids = [round(1e4 * float(MARK.search(messages[k]["content"])[1])) for k in places]
        return Span(tuple(ids), tuple((k, k + 1) for k in range(len(ids)))), places

    def decode(self, ids):
        return " ".join(map(str, ids))


class ReadingEngine(PlantedEngine):
    """Reads replies where their text says that they lie."""

    def __init__(self, where=lambda messages, rng: 5.0) -> None:
        super().__init__(where)
        self.chat = SpanChat()

    def replay(self, conversations, *, read, each=False, **more):
        if not isinstance(conversations[0], Span):
            yield from super().replay(conversations, read=read, **more)
            return
        for span in conversations:
            turns = []
            for k, (start, _) in enumerate(span.spans):
                activation = torch.zeros(len(read), HIDDEN)
                activation[:, 0] = span.token_ids[start] / 1e4
                turns.append(Turn(k, 1, activation, torch.ones(len(read)), activation[None]))
            yield turns


def talk(drifts, **beside):
    """A file of the study's, whose replies lie as far from the planted default as said."""
    messages = []
    for k, drift in enumerate(drifts):
        messages += [{"role": "user", "content": f"u{k}"}, {"role": "assistant", "content": f"so <{5 - drift:.4f}>"}]
    return {"model": "somebody/else", "turns": 2 * len(drifts), "conversation": messages, **beside}


def write(root: Path, name: str, content) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def case_studies(root: Path, swapped=(), gap: float = 2.0, seed: int = 0) -> None:
    """Six pairs; the unsteered one ends `gap` further away, the capped one in the pairs that are swapped."""
    rng = np.random.default_rng(seed)
    for k, (model, case) in enumerate((m, c) for m in MODELS for c in CASES):
        for arm, slope in (("unsteered", gap / 4), ("capped", 0.0)):
            other = {"unsteered": "capped", "capped": "unsteered"}[arm] if k in swapped else arm
            drifts = 0.5 + slope * np.arange(6) + 0.1 * rng.normal(size=6)
            write(root, f"case_studies/{model}/{case}_{other}.json", talk(drifts, steering_config={}))


def domains(root: Path, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for domain, slope in SLOPES.items():
        for k in range(5):
            write(root, f"qwen-3-32b/{domain}/{k}.json", talk(slope * np.arange(8) + 0.3 * rng.normal(size=8)))


def calibrated_space(default_at: float = 5.0) -> PersonaSpace:
    space = planted_space()
    rng = np.random.default_rng(0)
    space.tensors["beginnings_default"] = torch.tensor(rng.normal(default_at, 1, (1, 400))).float()
    space.tensors["beginnings_roles"] = torch.tensor(rng.normal(default_at - 3, 1, (1, 400))).float()
    space.meta["calibration"] = {"lengths": [4], "roles": [f"role {k % 20}" for k in range(400)]}
    return space


def read(root: Path, space=None):
    return project_folder(ReadingEngine(), space or planted_space(), read_transcript_folder(root))


def test_pairs_and_domains_are_told_by_names(tmp_path):
    case_studies(tmp_path)
    domains(tmp_path)
    write(tmp_path, "persona_drift/Coding-long.json", talk([0, 0]))
    write(tmp_path, "README.md", "not a conversation")
    write(tmp_path, ".cache/x.json", talk([0]))
    folder = read_transcript_folder(tmp_path)
    assert folder.notes == []
    pairs, alone = folder.pairs()
    assert alone == []
    assert [(p.arm, h.arm) for p, h in pairs] == [("unsteered", "capped")] * 6
    assert {h.subject for _, h in pairs} == {f"case_studies/{m}/{c}" for m in MODELS for c in CASES}
    assert all(p.transcript.name == f"{p.subject}_unsteered" for p, _ in pairs)
    by_domain = [c.domain for c in folder.conversations]
    assert {d: by_domain.count(d) for d in by_domain} == {
        **{f"case_studies/{m}": 6 for m in MODELS},
        **{f"qwen-3-32b/{d}": 5 for d in SLOPES},
        "persona_drift/coding": 1,
    }


@pytest.mark.parametrize(
    ("first", "second", "subject"),
    [
        ("unsteered/a.json", "capped/a.json", "a"),
        ("x/Unsteered-a.json", "x/Capped-a.jsonl", "x/a"),
        ("a_baseline_1.json", "a_steered_1.json", "a_1"),
        ("a.uncapped.json", "a.capped.json", "a"),
    ],
)
def test_a_pair_is_one_wherever_its_names_say_it(tmp_path, first, second, subject):
    for name in (first, second):
        write(tmp_path, name, talk([0, 1]))
    ((plain, held),) = read_transcript_folder(tmp_path).pairs()[0]
    assert (plain.subject, held.subject, plain.is_held, held.is_held) == (subject, subject, False, True)
    assert plain.domain == held.domain == ("x" if subject.startswith("x/") else tmp_path.name)


def test_a_word_inside_another_says_nothing(tmp_path):
    for name in ("recapped", "capped2", "explained-plainly", "steeredness", "a_unsteered"):
        write(tmp_path, f"{name}.json", talk([0]))
    assert [c.arm for c in read_transcript_folder(tmp_path).conversations] == ["unsteered", "", "", "", ""]


def test_what_has_no_partner_or_several_is_in_no_pair_and_named(tmp_path):
    write(tmp_path, "a_capped.json", talk([0, 1]))
    write(tmp_path, "b_unsteered.json", talk([0, 1]))
    write(tmp_path, "b_plain.json", talk([0, 1]))
    write(tmp_path, "b_capped.json", talk([0, 1]))
    pairs, alone = read_transcript_folder(tmp_path).pairs()
    assert pairs == []
    assert [note.split(":")[0] for note in alone] == ["a", "b"]
    assert alone[1].endswith("found capped, plain, unsteered")


def test_conversations_of_two_files_are_pairs_by_number_unless_one_of_them_was_not_read(tmp_path):
    def lines(*drifts):
        return "\n".join(json.dumps(talk(d)) for d in drifts)

    write(tmp_path, "a_unsteered.jsonl", lines([3, 3], [4, 4]))
    write(tmp_path, "a_capped.jsonl", lines([1, 1], [0, 0]))
    write(tmp_path, "b_unsteered.jsonl", "{broken\n" + lines([3, 3], [4, 4]))
    write(tmp_path, "b_capped.jsonl", lines([1, 1], [0, 0]))
    write(tmp_path, "c_unsteered.jsonl", lines([3, 3], [4, 4], [5, 5]))
    write(tmp_path, "c_capped.jsonl", lines([1, 1], [0, 0]))
    reading = read(tmp_path)
    assert [(p.subject, p.plain_end, p.held_end) for p in reading.pairs] == [("a 1 of 2", 3, 1), ("a 2 of 2", 4, 0)]
    assert sum("of its file some conversations were not read" in note for note in reading.notes) == 2
    assert any(note.startswith("c 1 of 2: in no pair") for note in reading.notes)


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_read(tmp_path):
    case_studies(tmp_path)
    write(tmp_path, "config.json", {"a": 1})
    folder = read_transcript_folder(tmp_path)
    assert len(folder.conversations) == 12
    (note,) = folder.notes
    assert "config.json" in note.removesuffix("; not read") != note
    write(tmp_path / "none", "config.json", {"a": 1})
    with pytest.raises(UsageError, match=r"no conversation in this folder, expected files in \.json.*config\.json"):
        read_transcript_folder(tmp_path / "none")


def test_planted_pairs_are_given_back_and_told(tmp_path):
    case_studies(tmp_path)
    reading = read(tmp_path)
    (summary,) = reading.together
    assert (summary.signs.above, summary.signs.n, summary.signs.p, summary.outcome) == (6, 6, 0.03125, 1)
    # Turns 4 to 6 of a line that rises by half a deviation a turn.
    assert summary.difference.low < 2.0 < summary.difference.high
    assert summary.difference.n == 6
    for pair in reading.pairs:
        assert pair.turns == 6
        assert pair.difference.value == pytest.approx(pair.plain_end - pair.held_end)
        assert pair.difference.low < 2.0 < pair.difference.high
    assert "In 6 of 6 pairs the unsteered one ends further away" in sentences(reading)[0]
    assert sentences(reading)[0].endswith("the capped ones lie nearer the Assistant.")


def test_shuffled_labels_are_not_told_and_swapped_ones_are_told_the_other_way(tmp_path):
    case_studies(tmp_path / "half", swapped=(0, 2, 5))
    reading = read(tmp_path / "half")
    assert (reading.together[0].signs.above, reading.together[0].outcome) == (3, 0)
    assert "no difference that can be told" in sentences(reading)[0]
    case_studies(tmp_path / "all", swapped=range(6))
    reading = read(tmp_path / "all")
    assert reading.together[0].outcome == -1
    assert "lie further from the Assistant" in sentences(reading)[0]


def test_over_all_ways_to_label_six_pairs_as_few_are_told_as_the_test_promises(tmp_path):
    case_studies(tmp_path)
    pairs = read(tmp_path).pairs
    outcomes = []
    for labels in range(2**6):
        signs = [-1 if labels >> k & 1 else 1 for k in range(6)]
        values = [replace(p.difference, value=s * p.difference.value) for s, p in zip(signs, pairs, strict=True)]
        swapped = [replace(p, difference=d) for p, d in zip(pairs, values, strict=True)]
        outcomes.append(together("capped", swapped).outcome)
    assert (outcomes.count(1), outcomes.count(-1)) == (1, 1)
    differences = [replace(p.difference, value=v) for v, p in zip([0.1] * 5 + [50], pairs, strict=True)]
    agreeing = together("capped", [replace(p, difference=d) for d, p in zip(differences, pairs, strict=True)])
    assert (agreeing.signs.p < 0.05, agreeing.outcome) == (True, 0), "one pair makes the mean, whose interval holds 0"


def test_fewer_than_six_pairs_tell_nothing_and_it_is_said(tmp_path):
    for k in range(5):
        write(tmp_path, f"{k}_unsteered.json", talk([3, 3, 3]))
        write(tmp_path, f"{k}_capped.json", talk([1, 1, 1.0 + 0.01 * k]))
    reading = read(tmp_path)
    assert (reading.together[0].signs.above, reading.together[0].outcome) == (5, 0)
    assert "fewer than 6 pairs cannot pass that test" in sentences(reading)[0]


def test_ways_of_holding_are_not_thrown_together(tmp_path):
    for arm, drift in (("unsteered", 3), ("capped", 1), ("steered", 5)):
        write(tmp_path, f"a_{arm}.json", talk([drift] * 4))
    reading = read(tmp_path)
    assert [(t.arm, t.difference.value) for t in reading.together] == [("capped", 2), ("steered", -2)]


def test_pairs_of_other_lengths_are_compared_over_the_turns_that_both_have(tmp_path):
    write(tmp_path, "a_unsteered.json", talk([0, 1, 2, 3, 9, 9]))
    write(tmp_path, "a_capped.json", talk([0, 0, 0.5, 1]))
    (pair,) = read(tmp_path).pairs
    assert (pair.turns, pair.plain_end, pair.held_end) == (4, 2.5, 0.75)
    (plain, held) = sorted(read(tmp_path).conversations, key=lambda c: c.place.is_held)
    plain.drifts[3] = np.nan
    pair = end_of(plain, held)
    assert (pair.turns, pair.plain_end, pair.held_end) == (3, 1.5, 0.25), "a turn that was not read is in neither"


def test_pairs_whose_users_begin_otherwise_are_named(tmp_path):
    write(tmp_path, "a_unsteered.json", talk([0, 1]))
    other = talk([0, 1])
    other["conversation"][0]["content"] = "something else"
    write(tmp_path, "a_capped.json", other)
    assert read(tmp_path).notes == ["a: its users begin otherwise; by its name it is a pair"]


def test_planted_slopes_are_given_back_by_domain_and_only_what_drifts_is_said_to(tmp_path):
    domains(tmp_path)
    reading = read(tmp_path)
    for course in reading.domains:
        slope = SLOPES[course.domain.split("/")[1]]
        assert course.conversations == 5
        assert course.slope.low < slope < course.slope.high
        assert course.slope.direction() == (slope > 0)
    rows = {row[0]: row for row in table(reading)[1]}
    assert rows["qwen-3-32b/therapy"][-1] == "drifts away"
    assert rows["qwen-3-32b/coding"][-1] == "no slope that can be told"


def test_a_domain_of_one_conversation_has_no_interval_and_held_ones_are_in_no_slope(tmp_path):
    write(tmp_path, "persona_drift/therapy.json", talk([0, 1, 2, 3]))
    write(tmp_path, "cases/a_unsteered.json", talk([0, 1, 2, 3]))
    write(tmp_path, "cases/a_capped.json", talk([0, -9, -9, -9]))
    courses = {d.domain: d for d in read(tmp_path).domains}
    assert courses["cases"].slope.value == pytest.approx(1)
    assert courses["cases"].conversations == 1
    assert f"{courses['persona_drift/therapy'].slope:+.2f}" == "+1.00 (too few for an interval)"


@given(st.lists(st.one_of(st.floats(-5, 5), st.just(float("nan"))), max_size=8))
def test_a_slope_is_that_of_least_squares_over_the_turns_that_were_read(drifts):
    slope = slope_of(np.array(drifts, dtype=float))
    points = [(k, d) for k, d in enumerate(drifts) if d == d]
    assert slope.n == len(points)
    if len(points) < 3:
        assert slope.value != slope.value
    else:
        assert slope.value == pytest.approx(np.polyfit(*zip(*points, strict=True), 1)[0], abs=1e-6)


@given(st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.5, float("nan")]), max_size=12))
def test_the_sign_tests_p_is_the_share_of_flips_at_least_as_uneven(differences):
    signs = sign_test(differences)
    assert (signs.above, signs.below) == (differences.count(0.5), sum(d < 0 for d in differences))
    uneven = abs(signs.above - signs.below)
    flips = [abs(2 * bin(k).count("1") - signs.n) >= uneven for k in range(2**signs.n)]
    assert signs.p == pytest.approx(np.mean(flips))


@pytest.mark.long
def test_false_alarms_are_said_as_known_from_the_space_and_as_seen_on_first_turns(tmp_path):
    rng = np.random.default_rng(3)
    for k in range(40):
        write(tmp_path, f"near/{k}.json", talk(rng.normal(size=6)))
        write(tmp_path, f"far/{k}.json", talk(4 + rng.normal(size=6)))
    near = read(tmp_path / "near", calibrated_space())
    assert near.false_alarms.holds
    lines = of_alerts(near)
    assert "measured on replies of the model that reads" in lines[0]
    assert "1% (" in lines[0]
    assert "as far as 40 first turns can tell; rates up to 8.8% would look like this" in lines[2]
    far = read(tmp_path / "far", calibrated_space())
    assert far.false_alarms.holds is False
    assert near.false_alarms.raised.value < 0.1 < 0.9 < far.false_alarms.raised.value
    assert "the rate of false alarms does not hold for them" in of_alerts(far)[2]
    assert "not calibrated" in of_alerts(read(tmp_path / "near"))[0]


@pytest.mark.long
def test_a_folder_ends_in_one_page_one_table_and_json(tmp_path, monkeypatch):
    case_studies(tmp_path / "transcripts")
    domains(tmp_path / "transcripts")
    write(tmp_path, "transcripts/config.json", {"a": 1})
    monkeypatch.chdir(tmp_path)
    folder = read_transcript_folder("transcripts")
    options = {"plot": None, "false_alarms": 0.01, "alert_turns": 2, "span": "answer", "tokens": False}

    def printed(as_json):
        shown, wrong = StringIO(), StringIO()
        with redirect_stdout(shown), redirect_stderr(wrong):
            print_folder(Path("transcripts"), folder, calibrated_space(), ReadingEngine(), as_json=as_json, **options)
        return shown.getvalue(), wrong.getvalue()

    values = json.loads(printed(True)[0])
    assert values["together"][0]["signs"] == {"above": 6, "below": 0, "n": 6, "p": 0.03125}
    assert len(values["pairs"]) == 6
    assert {d["domain"] for d in values["domains"]} >= {f"qwen-3-32b/{d}" for d in SLOPES}
    assert len(values["transcripts"]) == 12 + 20
    assert values["page"] == "transcripts.html"
    text, wrong = printed(False)
    assert "all, capped" in text
    assert "unsteered further away in 6 of 6, p = 0.031" in text
    assert "config.json" in wrong
    page = Path("transcripts.html").read_text(encoding="utf-8")
    assert "case_studies/llama-3.3-70b/jailbreak" in page
    assert "In 6 of 6 pairs the unsteered one ends further away" in page
    assert "config.json" in page


def test_a_space_that_does_not_know_its_defaults_spread_is_read_in_projections(tmp_path):
    case_studies(tmp_path)
    space = planted_space()
    del space.tensors["default_moments"]
    reading = read(tmp_path, space)
    assert not reading.in_deviations
    assert reading.together[0].outcome == 1
    page = write_folder(tmp_path / "page.html", "transcripts", space, reading)
    assert "as minus the projection" in page.read_text(encoding="utf-8")


def test_a_folder_beside_others_along_a_direction_or_with_nothing_in_it_is_refused_in_one_line(tmp_path):
    for arguments, problem in (
        ((tmp_path, tmp_path), "expected several files, or one folder by itself"),
        ((tmp_path, "--along", "ghost"), "--along reads files, not a folder"),
        ((tmp_path,), "no conversation in this folder"),
    ):
        (line,) = run("project", "smollm2", *arguments, expect=2).stderr.splitlines()
        assert problem in line


def test_the_case_study_takes_the_folders_conversations_in_which_the_model_was_not_held(tmp_path):
    write(tmp_path, "t/a_unsteered.json", talk([0, 1, 2, 3]))
    write(tmp_path, "t/a_capped.json", talk([0, 0, 0, 0]))
    options = CaseStudyOptions(transcripts=(str(tmp_path / "t"),))
    engine = ReadingEngine(lambda messages, rng: 5.0 - sum(m["role"] == "user" for m in messages))
    trials = Trials(engine, planted_space(3.0), tmp_path / "out", "case-study", options, catalog=load_catalog())
    result = EXPERIMENT.conduct(trials)
    was = [r for r in result.rows if r["arm"] == "as it was"]
    assert {r["conversation"] for r in was} == {"a_unsteered"}
    assert [r["drift"] for r in was] == pytest.approx([0, 1, 2, 3], abs=1e-3)
    write(tmp_path, "only/a_capped.json", talk([0, 1]))
    with pytest.raises(UsageError, match="held in every conversation"):
        CaseStudyOptions(transcripts=(str(tmp_path / "only"),)).determining()
