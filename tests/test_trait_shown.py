"""What a space says of traits on its page and in the terminal, and conversations read along them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from rich.console import Console

from personaspace import api
from personaspace.cli.chat import ChatSession, along_gauges
from personaspace.engines.prompts import Sampling
from personaspace.errors import SpaceError
from personaspace.formats import export_space
from personaspace.formats.transcripts import Transcript
from personaspace.formats.vectors import directions_of
from personaspace.holding.trajectories import along_cells, write_trajectories
from personaspace.report import traits as words
from personaspace.report.map import page_data, render
from personaspace.space import PersonaSpace
from personaspace.space.layout import FORMAT
from personaspace.space.traits import with_traits

LAYERS, HIDDEN = 3, 32
TALK = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "Nobody."},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "Somebody <b>else</b>."},
]


@pytest.fixture(scope="module")
def space(tiny) -> PersonaSpace:
    rng = torch.Generator().manual_seed(0)
    default, roles = torch.randn(LAYERS, HIDDEN, generator=rng), torch.randn(4, LAYERS, HIDDEN, generator=rng)
    meta = {
        "format": FORMAT,
        "model": {"id": "tiny", "fingerprint": tiny.info.fingerprint},
        "layer": 1,
        "roles": ["bard", "ghost", "clerk", "judge"],
    }
    tensors = {
        "role_vectors": roles,
        "default_vector": default,
        "axis": default - roles.mean(0),
        "reply_mean": torch.zeros(HIDDEN),
        "reply_factor": torch.eye(HIDDEN)[:4],
        "reply_rest": torch.ones(1),
    }
    figures = {
        "trait_reliability": torch.tensor([0.9, 0.8, 0.4]),
        "trait_reliability_by_wording": torch.tensor([0.7, 0.6, float("nan")]),
        "trait_cosine": torch.tensor([[0.5, 0.3, 0.7], [-0.4, -0.6, -0.2], [0.1, -0.3, 0.5]]),
    }
    names = ["formal", "sarcastic", "open_minded"]
    records = {n: {"clear": n != "open_minded", "description": f"<i>{n}</i>"} for n in names}
    vectors = torch.randn(3, LAYERS, HIDDEN, generator=rng)
    return with_traits(PersonaSpace(meta, tensors), names, vectors, figures, records)


def test_what_is_told_of_traits_is_what_their_figures_bear(space, tmp_path):
    rows = space.summary()["traits"]
    assert [row["measured"] for row in rows] == sorted((row["measured"] for row in rows), reverse=True)
    rows = sorted(rows, key=lambda row: -row["cosine"])
    assert [row["name"] for row in rows] == ["formal", "open_minded", "sarcastic"]
    line = words.headline(rows)
    assert "Of 3 traits, 1 can't be told from nothing" in line
    assert "Towards the Assistant: formal. Away from it: sarcastic." in line
    assert "reliability is 0.80 by questions and 0.65 with other wordings" in line
    assert words.cells(rows[1])[-1] == "not told from nothing"
    assert words.cells(rows[1])[5] == "–"
    # What was imported has vectors alone.
    bare = PersonaSpace(
        {**space.meta, "trait_records": {}}, {k: t for k, t in space.tensors.items() if k[:7] != "trait_c"}
    )
    assert all(row["cosine"] is None and row["clear"] is None for row in bare.summary()["traits"])
    assert "this space does not say" in words.headline(bare.summary()["traits"])
    space.save(tmp_path / "space.safetensors")
    rows = space.summary()["traits"]
    assert PersonaSpace.load(tmp_path / "space.safetensors").summary()["traits"] == rows
    space.compact().save(tmp_path / "small.safetensors")
    small = PersonaSpace.load(tmp_path / "small.safetensors").summary()["traits"]
    assert [row["measured"] for row in small] == pytest.approx([row["measured"] for row in rows], abs=1e-3)


def trait_row(over, read_with, origin=None):
    row = dict.fromkeys(("name", "description"), "t") | dict.fromkeys(("cosine", "measured", "reliability"), 0.5)
    rest = {"interval": [0.1, 0.9], "reliability_by_wording": None, "clear": True}
    return {**row, **rest, "interval_over": over, "read_with": read_with, "from": origin}


def test_it_is_said_over_what_each_interval_is():
    of_map, described = trait_row("wordings", 2), trait_row("questions", 1, "a description")
    assert "the interval holds how traits differ between their wordings, too." in words.meaning([of_map, of_map])
    assert "the interval is over questions alone, so that other wordings" in words.meaning([described])
    mixed = words.meaning([of_map, of_map, described])
    assert "that of 2 traits holds how" in mixed
    assert "that of 1 trait is over questions alone" in mixed
    assert "this space does not say" in words.meaning([trait_row(None, None)])
    assert "no interval of it is known" in words.meaning([{**of_map, "interval": None}])


def test_only_traits_that_were_read_at_once_are_said_to_be_corrected_together():
    of_map, described = trait_row("wordings", 2), trait_row("questions", 1, "a description")
    assert "(5% for all of them together)" in words.headline([of_map, of_map])
    assert "(5% for each by itself)" in words.headline([described, described])
    mixed = words.headline([of_map, of_map, described])
    assert "(5% for 2 that were read at once together, and for the other one by itself)" in mixed
    assert "for the other 2 each by itself)" in words.headline([of_map, of_map, described, described])


def test_a_spaces_traits_say_over_what_their_intervals_are_and_how_many_were_read_at_once(space):
    records = {n: {"clear": True, "interval_over": "questions", "of": 1} for n in space.traits}
    rows = PersonaSpace({**space.meta, "trait_records": records}, space.tensors).summary()["traits"]
    assert {(row["interval_over"], row["read_with"]) for row in rows} == {("questions", 1)}
    assert "over questions alone" in render(PersonaSpace({**space.meta, "trait_records": records}, space.tensors))


def test_the_report_draws_traits_and_shows_their_texts_as_text(space):
    page = render(space)
    assert '<section id="traits">' in page
    assert "&lt;i&gt;formal&lt;/i&gt;" in page
    assert "<i>formal</i>" not in page
    assert page_data(space, space.summary())["traits"] == space.summary()["traits"]
    without = PersonaSpace({**space.meta, "traits": []}, space.tensors)
    assert '<section id="traits">' not in render(without)


def test_a_trait_of_the_same_name_takes_the_earlier_ones_place_and_others_stay(space):
    vector = torch.ones(1, LAYERS, HIDDEN)
    again = with_traits(space, ["formal"], vector, {"trait_reliability": torch.tensor([0.5])}, {})
    assert again.traits == ["sarcastic", "open_minded", "formal"]
    assert torch.equal(again.tensors["trait_vectors"][2], vector[0])
    assert again.tensors["trait_reliability"].tolist() == pytest.approx([0.8, 0.4, 0.5])
    assert again.tensors["trait_cosine"][2].isnan().all()
    compact = with_traits(space.compact(), ["new"], vector, {}, {})
    assert compact.tensors["trait_vectors"].shape == (4, 1, HIDDEN)


def test_turns_are_read_along_directions_as_a_plain_projection_says(space, tiny, tmp_path):
    np.save(tmp_path / "mine.npy", np.arange(HIDDEN, dtype=np.float32))
    own, names = directions_of(space, f"sarcastic, ghost,{tmp_path / 'mine.npy'},sarcastic")
    assert names == ["trait:sarcastic", "role:ghost", "own:mine"]
    (talk,), _ = api.project(own, Transcript("talk", TALK), engine=tiny, along=names)
    (turns,) = tiny.replay([TALK], read=[1])
    for turn, reading in zip(turns, talk.turns, strict=True):
        assert list(reading.along) == names
        for name in names:
            (direction,) = own.along([name])
            projection = float(turn.activation[0] @ own.direction(name))
            assert reading.along[name].projection == pytest.approx(projection, abs=1e-4)
            shift = (projection - direction.mean) / direction.std
            assert reading.along[name].shift == pytest.approx(shift, abs=1e-3)
        as_json = json.loads(json.dumps(reading.to_dict()))["along"]
        assert set(as_json["own:mine"]) == {"projection", "shift"}
        assert along_cells(reading, names)[0] == f"{reading.along[names[0]].shift:+.2f}"
    (plain,), _ = api.project(space, Transcript("talk", TALK), engine=tiny)
    assert "along" not in plain.turns[0].to_dict()
    unknown = PersonaSpace(space.meta, {k: t for k, t in space.tensors.items() if not k.startswith("reply_")})
    (talk_without,), _ = api.project(unknown, Transcript("talk", TALK), engine=tiny, along=["sarcastic"])
    assert along_cells(talk_without.turns[0], ["trait:sarcastic"])[0].startswith("=")
    for trajectory, path in ((talk, "a.html"), (talk_without, "b.html")):
        page = write_trajectories(tmp_path / path, own, [("talk", trajectory.turns)]).read_text()
        assert "Along trait:sarcastic" in page


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [("sarcstic", "nearest: sarcastic"), ("missing.pt", "no such file"), (" , ", "expected names of the space")],
)
def test_a_direction_that_is_not_there_is_told_in_one_line(space, wanted, problem):
    with pytest.raises(SpaceError, match=problem) as refused:
        directions_of(space, wanted)
    assert "\n" not in str(refused.value)


def test_a_chat_shows_a_gauge_for_each_direction_until_it_is_let_go(space, tiny, tmp_path):
    console = Console(record=True, width=120)
    session = ChatSession(tiny, space, Sampling(max_new_tokens=6, temperature=0), console)
    session.command("/along sarcastic ghost")
    session.say("Hello")
    shown = console.export_text()
    assert "along: trait:sarcastic, role:ghost" in shown
    assert shown.count("●") == 2
    assert list(session.monitor.readings[0].along) == ["trait:sarcastic", "role:ghost"]
    session.command("/role off")
    assert len(session.monitor.along) == 2, "a new conversation is read along them as well"
    session.command("/along off")
    session.say("And now?")
    assert session.monitor.readings[-1].along == {}
    with pytest.raises(SpaceError, match="nearest"):
        session.command("/along sarcstic")
    (place,) = along_gauges(
        replace(
            session.monitor.readings[-1], along={"far": space.along(["formal"])[0].read(torch.full((HIDDEN,), 99.0))}
        )
    )
    assert "far" in place.plain


def test_a_trait_is_written_for_llama_cpp_at_every_layer_in_its_own_length(space, tmp_path):
    export_space(space, "gguf", tmp_path / "t.gguf", "trait:sarcastic", scale=2.0)
    tensors = {t.name: t.data for t in GGUFReader(tmp_path / "t.gguf").tensors}
    assert set(tensors) == {"direction.1", "direction.2"}
    np.testing.assert_allclose(tensors["direction.2"], 2 * space.tensors["trait_vectors"][1, 2].numpy(), rtol=1e-6)
    own = space.with_own({"mine": torch.arange(HIDDEN).float()})
    export_space(own, "gguf", tmp_path / "o.gguf", "mine")
    assert [t.name for t in GGUFReader(tmp_path / "o.gguf").tensors] == ["direction.1"]
    with pytest.raises(SpaceError, match="nearest: sarcastic"):
        export_space(space, "gguf", tmp_path / "n.gguf", "trait:sarcstic")
