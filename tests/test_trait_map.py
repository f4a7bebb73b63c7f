"""A map that reads traits as well: what was planted comes back, nothing that is finished is lost, and more can be added."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import personaspace as ps
from personaspace.catalog import load_catalog, load_traits
from personaspace.errors import CatalogError, RunMismatch, UsageError
from personaspace.mapping.mapper import Mapper
from personaspace.mapping.options import MapOptions
from personaspace.mapping.traits import chosen_traits, read_traits, trait_prompts
from personaspace.space.traits import roles_along
from personaspace.watcher import Watcher
from planted import HIDDEN, LAYER
from planted_traits import PlantedTraits

CATALOG = load_catalog().select("8", 24)
TRAITS = load_traits()[:24]
COSINES = dict(zip((t.trait for t in TRAITS), np.linspace(-0.8, 0.8, 24).tolist(), strict=True))
NAMES = list(COSINES)
ALL = ",".join(NAMES)
SMALL = {"read": "prompt", "roles": "8", "questions": 24, "prompts_per_role": 6, "layer": LAYER}


def mapped(folder, engine=None, traits=ALL, **more):
    return ps.map(engine or PlantedTraits(CATALOG, TRAITS, COSINES), folder, traits=traits, **{**SMALL, **more})


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    return mapped(tmp_path_factory.mktemp("traits"))


def test_planted_cosines_come_back_within_their_intervals_and_in_order(space):
    rows = {row["name"]: row for row in space.summary()["traits"]}
    inside = [rows[n]["interval"][0] <= c <= rows[n]["interval"][1] for n, c in COSINES.items()]
    assert np.mean(inside) >= 0.9
    assert np.corrcoef([rows[n]["cosine"] for n in NAMES], list(COSINES.values()))[0, 1] > 0.98
    assert all(rows[n]["clear"] for n, c in COSINES.items() if abs(c) > 0.4)
    assert not any(rows[n]["clear"] and np.sign(rows[n]["cosine"]) != np.sign(c) for n, c in COSINES.items())
    assert min(row["reliability"] for row in rows.values()) > 0.8
    measured = [row["measured"] for row in space.summary()["traits"]]
    assert measured == sorted(measured, reverse=True)


def test_a_traits_vector_is_what_was_planted_at_every_layer(space):
    engine = PlantedTraits(CATALOG, TRAITS, COSINES)
    assert space.tensors["trait_vectors"].shape == (24, 4, HIDDEN)
    for k, name in enumerate(NAMES):
        direction = torch.from_numpy(engine.vectors[name]).float()
        assert torch.cosine_similarity(space.tensors["trait_vectors"][k], direction[None], dim=-1).min() > 0.94


def test_traits_that_do_nothing_are_not_told_from_nothing(tmp_path):
    space = mapped(tmp_path, PlantedTraits(CATALOG, TRAITS, {}, reach=0.0))
    rows = space.summary()["traits"]
    assert sum(bool(row["clear"]) for row in rows) <= 1
    assert np.median([row["reliability"] for row in rows]) < 0.4


def test_instructions_that_lead_off_by_themselves_show_in_the_reliability_by_wording(tmp_path):
    engine = PlantedTraits(CATALOG, TRAITS, COSINES, wordings=6.0)
    space = mapped(tmp_path, engine)
    rows = space.summary()["traits"]
    by_question, by_wording = (
        np.median([row[name] for row in rows]) for name in ("reliability", "reliability_by_wording")
    )
    assert by_wording < by_question - 0.15
    # What is told is of these texts' vectors.
    of_texts = {
        t.trait: np.mean([engine.places[b] - engine.places[s] for b, s in zip(t.bring_out, t.suppress, strict=True)], 0)
        for t in TRAITS
    }
    cosines = {name: vector[0] / np.linalg.norm(vector) for name, vector in of_texts.items()}
    inside = [row["interval"][0] <= cosines[row["name"]] <= row["interval"][1] for row in rows]
    assert np.mean(inside) >= 0.9


def test_a_map_that_is_stopped_goes_on_and_ends_the_same(tmp_path, space):
    engine, few = PlantedTraits(CATALOG, TRAITS, COSINES), {}
    whole = engine.onsets

    def stopping(prompts, **options):
        for count, response in enumerate(whole(prompts, **options)):
            if prompts[0].role in COSINES and count == 30 and few.setdefault("stops", 0) < 1:
                few["stops"] += 1
                raise KeyboardInterrupt
            yield response

    engine.onsets = stopping
    with pytest.raises(KeyboardInterrupt):
        mapped(tmp_path, engine)
    assert not (tmp_path / "space.safetensors").exists()
    again = mapped(tmp_path, engine)
    for name in ("trait_vectors", "trait_cosine", "trait_reliability"):
        assert torch.equal(again.tensors[name], space.tensors[name])
    asked = engine.asked
    assert mapped(tmp_path, engine).meta == again.meta
    assert engine.asked == asked, "what is there is not read again"


def test_traits_are_added_to_a_finished_map_and_further_ones_to_those(tmp_path):
    engine = PlantedTraits(CATALOG, TRAITS, COSINES)
    roles = mapped(tmp_path, engine, traits=None)
    assert roles.traits == []
    asked = engine.asked
    first = mapped(tmp_path, engine, traits=",".join(NAMES[:10]), trait_questions=4)
    assert engine.asked == asked + 10 * 4 * 2, "roles are not read again"
    assert torch.equal(first.tensors["role_vectors"], roles.tensors["role_vectors"])
    second = mapped(tmp_path, engine, traits=",".join(NAMES[5:20]), trait_questions=6)
    assert engine.asked == asked + 10 * 4 * 2 + (5 * 2 + 10 * 6) * 2
    assert second.traits == NAMES[:20]
    assert {n: r["questions"] for n, r in second.meta["trait_records"].items()} == {
        n: 4 if k < 5 else 6 for k, n in enumerate(NAMES[:20])
    }
    # Without the option, a map keeps what its run has read.
    assert mapped(tmp_path, engine, traits=None).traits == NAMES[:20]
    manifest = json.loads((tmp_path / "run.json").read_text())
    assert [len(asked_round) for asked_round in manifest["trait_rounds"]] == [10, 15]
    # A broken shard is named and read again.
    (shard,) = sorted((tmp_path / "traits" / "activations").glob("*-00000.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-8])
    notes = []

    class Notes(Watcher):
        def note(self, text):
            notes.append(text)

    third = mapped(tmp_path, engine, traits=NAMES[0], trait_questions=4, watcher=Notes())
    assert any("is not what was written" in note for note in notes)
    torch.testing.assert_close(third.tensors["trait_vectors"], second.tensors["trait_vectors"])


def test_a_trait_whose_texts_have_changed_is_not_mixed_with_what_was_read(tmp_path):
    folder = tmp_path / "catalog"
    folder.mkdir()
    roles = [{"role": r.role, "instructions": r.instructions} for r in CATALOG.roles[:3]]
    (folder / "roles.jsonl").write_text("\n".join(json.dumps(r) for r in roles))
    trait = {"trait": "loud", "bring_out": ["Shout."], "suppress": ["Whisper."]}
    (folder / "traits.jsonl").write_text(json.dumps(trait))
    engine = PlantedTraits(CATALOG, TRAITS, COSINES)
    options = {"read": "prompt", "questions": 8, "prompts_per_role": 4, "layer": LAYER, "catalog": folder}
    space = ps.map(engine, tmp_path / "run", traits="loud", **options)
    assert space.summary()["traits"][0]["reliability_by_wording"] is None, "of one wording it is not known"
    (folder / "traits.jsonl").write_text(json.dumps({**trait, "bring_out": ["Yell."]}))
    with pytest.raises(RunMismatch, match="the trait loud was read with other texts"):
        ps.map(engine, tmp_path / "run", traits="all", **options)


@pytest.mark.parametrize(
    ("options", "error", "problem"),
    [
        ({"traits": "sarcastik"}, CatalogError, "no trait 'sarcastik' .* did you mean sarcastic"),
        ({"traits": "0"}, UsageError, "has 240 traits; give 1 to that"),
        ({"traits": "formal", "trait_questions": 25}, UsageError, "trait_questions=25: expected 2 to 24"),
        ({"traits": "formal", "trait_questions": 1}, UsageError, "trait_questions=1"),
    ],
)
def test_what_can_not_be_read_is_refused_before_anything_is(tmp_path, options, error, problem):
    engine = PlantedTraits(CATALOG, TRAITS, COSINES)
    with pytest.raises(error, match=problem):
        mapped(tmp_path, engine, **options)
    assert engine.asked == 0


def test_both_sides_are_asked_the_same_question_and_more_questions_leave_the_first_as_they_are():
    eight, four = (trait_prompts(3, TRAITS[3], CATALOG, range(n), 0) for n in (8, 4))
    assert eight[:8] == four
    assert [p.question for p in eight[::2]] == [p.question for p in eight[1::2]]
    assert len({p.question for p in eight}) == 8
    assert [p.messages[0]["content"] for p in eight[:4]] == [
        *(TRAITS[3].bring_out[0], TRAITS[3].suppress[0]),
        *(TRAITS[3].bring_out[1], TRAITS[3].suppress[1]),
    ]
    asked = np.bincount([p.question for k, t in enumerate(TRAITS) for p in trait_prompts(k, t, CATALOG, range(8), 0)])
    assert asked.max() - asked.min() == 0, "every question as often"


def test_traits_are_read_on_any_engine_without_a_folder(tiny):
    readings = read_traits(tiny, chosen_traits("sarcastic,formal", CATALOG), CATALOG, questions=2, layers=[1])
    assert readings.names == ["sarcastic", "formal"]
    assert readings.sides["formal"].shape == (2, 2, 1, 32)
    (place, trait) = next(iter(chosen_traits("formal", CATALOG).items()))
    for p in trait_prompts(place, trait, CATALOG, range(2), 0):
        (response,) = tiny.onsets([p], read=[1])
        torch.testing.assert_close(
            readings.sides["formal"][p.index // 2, p.index % 2], response.activation, atol=1e-4, rtol=1e-4
        )
    torch.testing.assert_close(
        readings.vectors()[1, 0], (readings.sides["formal"][:, 0, 0] - readings.sides["formal"][:, 1, 0]).mean(0)
    )


def test_roles_lie_along_a_trait_as_their_vectors_do(space):
    along = roles_along(space, NAMES[0])
    unit = space.tensors["trait_vectors"][0, LAYER] / space.tensors["trait_vectors"][0, LAYER].norm()
    for role, projection in along:
        centred = space.role_vectors_at()[space.roles.index(role)] - space.role_vectors_at().mean(0)
        assert projection == pytest.approx(float(centred @ unit), abs=1e-4)
    assert [p for _, p in along] == sorted((p for _, p in along), reverse=True)


def test_a_plan_tells_of_traits_beside_the_readings(tmp_path, tiny):
    options = MapOptions(read="prompt", traits="3", trait_questions=2, prompts={"per_role": 2})
    plans = Mapper(tiny, load_catalog().select("4", 8), tmp_path, options).plan()
    assert list(plans) == ["prompt", "traits"]
    assert (plans["traits"].responses, plans["traits"].what) == (12, "prompts of traits")
    assert plans["traits"].seconds > 0
