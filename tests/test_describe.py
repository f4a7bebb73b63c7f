"""A trait from a description: who writes its instructions, and that its direction is kept only where it tells."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

import personaspace as ps
from personaspace.catalog import Trait, load_catalog, load_traits
from personaspace.errors import CatalogError, UsageError
from personaspace.mapping.describe import (
    Written,
    describe,
    described_traits,
    from_file,
    from_templates,
    from_writer,
    lines,
    telling,
)
from personaspace.mapping.traits import disjoint_wordings, trait_prompts
from personaspace.space import PersonaSpace
from personaspace.stats.contrasts import Contrast
from planted import HIDDEN, LAYER, planted_space
from planted_traits import PlantedTraits

CATALOG = load_catalog().select("8", 60)
WRITTEN = from_templates("pedantic", "Corrects what does not matter.")
GOOD = """Here you are:
1. MORE: Correct every small slip of whoever asks.
2) **MORE**: Insist on the exact word in every sentence.
- LESS: Let every small slip pass without a word.
LESS: Speak loosely and never insist on a word.
MORE: Let no claim pass without its exact source.
LESS: Take every claim as roughly right and go on."""


def planted(cosine=0.5, **options) -> PlantedTraits:
    return PlantedTraits(CATALOG, [WRITTEN.trait], {"pedantic": cosine}, **options)


def test_a_direction_that_was_planted_tells_on_questions_and_wordings_that_it_has_not_seen():
    engine, space = planted(), planted_space()
    described = describe(engine, space, CATALOG, WRITTEN)
    assert described.telling.enough
    assert described.telling.wordings
    assert described.telling.paired.value > 0.95
    assert described.telling.shuffled < described.telling.auc.value
    assert engine.asked == 2 * (16 + 24)
    kept = described.kept_in(space)
    direction = engine.vectors["pedantic"] / np.linalg.norm(engine.vectors["pedantic"])
    assert float(kept.direction("trait:pedantic").double().numpy() @ direction) > 0.95
    record = described_traits(kept)["pedantic"]
    assert record["written_by"] == "templates"
    assert record["telling"]["auc"]["low"] >= 0.8
    assert kept.meta["layer"] == LAYER


@pytest.mark.parametrize("options", [{"reach": 0.0}, {"reach": 0.0, "wordings": 8.0}])
def test_instructions_that_bring_nothing_out_do_not_tell_however_much_their_texts_do(options):
    tellings = [describe(planted(seed=seed, **options), planted_space(), CATALOG, WRITTEN).telling for seed in range(5)]
    assert not any(t.enough for t in tellings)


def with_texts(bring_out: int, suppress: int) -> Written:
    sides = {"bring_out": ("Be so", bring_out), "suppress": ("Be not so", suppress)}
    texts = {side: tuple(f"{text}, in way {k}." for k in range(n)) for side, (text, n) in sides.items()}
    return Written(Trait(trait="pedantic", **texts), "the test")


@pytest.mark.parametrize("counts", [(1, 1), (2, 2), (4, 2), (3, 2), (3, 3), (5, 3)])
def test_where_texts_alone_lead_off_no_trait_is_kept_however_many_they_are(counts):
    written = with_texts(*counts)
    kept = 0
    for seed in range(6):
        engine = PlantedTraits(CATALOG, [written.trait], {}, reach=0.0, wordings=8.0, seed=seed)
        described = describe(engine, planted_space(), CATALOG, written)
        kept += described.telling.enough
        few = (
            f"{min(counts)} wording" in lines(described)[-1]
            and "can't tell a trait from its texts" in lines(described)[-1]
        )
        assert few == (min(counts) < 3)
    assert kept == 0


def test_what_only_some_wordings_share_by_chance_is_rarely_taken_for_a_trait():
    false, true = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        texts, trait = 8 * rng.normal(size=(2, 4, 64)) / 8, 10 * np.eye(64)[0]
        for kept, vector in ((false, 0 * trait), (true, trait)):
            sides = [
                np.stack([s * vector + texts[k, np.arange(n) % 4] for k, s in ((0, 1), (1, -1))], 1)
                + 0.5 * rng.normal(size=(n, 2, 64))
                for n in (16, 24)
            ]
            training = Contrast(sides[0][:, 0] - sides[0][:, 1], np.arange(16) % 4)
            kept.append(telling(training, sides[1], np.arange(24) % 4).enough)
    assert np.mean(false) <= 0.05
    assert np.mean(true) >= 0.9


@pytest.mark.parametrize("counts", [(4, 4), (4, 2), (2, 3), (5, 3), (1, 4)])
def test_pairs_of_different_wordings_share_no_text_and_every_text_is_read(counts):
    trait = with_texts(*counts).trait
    prompts = trait_prompts(0, trait, CATALOG, range(24), 0)
    texts = np.array([p.instruction for p in prompts]).reshape(-1, 2)
    assert set(texts.ravel().tolist()) == set(range(sum(counts)))
    wordings = disjoint_wordings(texts)
    assert len(set(wordings.tolist())) == min(counts)
    for a, b in itertools.combinations(range(24), 2):
        assert wordings[a] == wordings[b] or not set(texts[a]) & set(texts[b])


def test_swapped_labels_give_a_direction_that_tells_nothing():
    rng = np.random.default_rng(0)
    differences = 4 * np.eye(HIDDEN)[0] + rng.normal(size=(16, HIDDEN))
    held_out = np.stack([2 * np.eye(HIDDEN)[0] * side + rng.normal(size=(24, HIDDEN)) for side in (1, -1)], 1)
    right = telling(Contrast(differences, np.arange(16) % 4), held_out, np.arange(24) % 4)
    signs = np.where(np.arange(16) // 4 % 2, 1.0, -1.0)[:, None]
    swapped = telling(Contrast(signs * differences, np.arange(16) % 4), held_out, np.arange(24) % 4)
    assert right.enough
    assert not swapped.enough


def test_what_a_model_writes_is_read_and_templates_stand_in_where_it_is_nothing():
    written = from_writer("pedantic", "Corrects.", lambda text: GOOD, "m")
    assert (written.by, written.problem) == ("m", "")
    assert written.trait.bring_out == (
        *("Correct every small slip of whoever asks.", "Insist on the exact word in every sentence."),
        "Let no claim pass without its exact source.",
    )
    assert written.trait.suppress[1] == "Speak loosely and never insist on a word."
    poor = from_writer("pedantic", "Corrects.", lambda text: "MORE: Be pedantic, always and in all.\nSure!", "m")
    assert poor.by == "templates"
    assert poor.problem == "m wrote 1 that bring it out and 0 that suppress it; three of each are needed"
    assert "very pedantic" in poor.trait.bring_out[0]
    same = "\n".join(f"{side}: Be exact in all things, number {k}." for side in ("MORE", "LESS") for k in range(3))
    assert from_writer("pedantic", "Corrects.", lambda text: same, "m").by == "templates"


def test_instructions_are_read_from_a_file_and_a_wrong_one_is_named(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"bring_out": ["Be so."], "suppress": ["Be not so."]}))
    written = from_file("mine", "A thing.", path)
    assert (written.by, written.trait.bring_out, written.trait.definition) == ("the file", ("Be so.",), "A thing.")
    path.write_text(json.dumps({"bring_out": ["Be so."]}))
    with pytest.raises(CatalogError, match=r"mine.json:1: suppress"):
        from_file("mine", "A thing.", path)
    path.write_text('{\n"bring_out": ["Be so."]}')
    with pytest.raises(CatalogError, match=r"not JSON.*; expected one line, {\"bring_out\""):
        from_file("mine", "A thing.", path)
    path.write_text("")
    with pytest.raises(CatalogError, match="found 0 lines; expected one"):
        from_file("mine", "A thing.", path)


def test_too_few_questions_are_told_before_anything_is_read():
    engine = planted()
    with pytest.raises(UsageError, match="has 24 questions; 16 to make a direction from and 24 to try it on"):
        describe(engine, planted_space(), load_catalog().select("8", 24), WRITTEN)
    assert engine.asked == 0


def test_a_trait_from_a_description_stays_when_the_map_is_gone_on_with(tmp_path):
    traits = load_traits()[:3]
    engine = PlantedTraits(CATALOG, [*traits, WRITTEN.trait], {"pedantic": 0.5})
    options = {"read": "prompt", "roles": "8", "questions": 60, "prompts_per_role": 4, "layer": LAYER}
    space = ps.map(engine, tmp_path, **options)
    described = describe(engine, space, CATALOG, WRITTEN)
    described.kept_in(space).save(tmp_path / "space.safetensors")
    again = ps.map(engine, tmp_path, traits=",".join(t.trait for t in traits), **options)
    assert set(again.traits) == {"pedantic", *(t.trait for t in traits)}
    more = ps.map(engine, tmp_path, **{**options, "prompts_per_role": 6})
    assert set(more.traits) == {"pedantic", *(t.trait for t in traits)}
    assert PersonaSpace.load(tmp_path).meta["trait_records"]["pedantic"]["written_by"] == "templates"
    assert "by templates" in lines(described)[0]


@pytest.mark.parametrize(("cosine", "reach", "code"), [(0.5, 6.0, 0), (0.0, 0.0, 1)], ids=["tells", "tells nothing"])
def test_the_command_keeps_what_tells_and_refuses_what_does_not(tmp_path, monkeypatch, cosine, reach, code):
    from typer.testing import CliRunner

    from personaspace.cli import app

    path = tmp_path / "space.safetensors"
    planted_space().save(path)
    before = path.read_bytes()
    monkeypatch.setattr(
        "personaspace.cli.traits.space_and_engine", lambda *_: (PersonaSpace.load(path), planted(cosine, reach=reach))
    )
    command = ["trait", "pedantic", "--describe", "Corrects what does not matter.", "--space", str(path)]
    command += ["--writer", "templates", "--json"]
    ended = CliRunner().invoke(app, command)
    result = json.loads(ended.stdout)
    assert (ended.exit_code, result["kept"]) == (code, None if code else str(path))
    assert (result["telling"]["auc"]["low"] >= 0.8) == (code == 0)
    if code:
        assert path.read_bytes() == before
        assert CliRunner().invoke(app, [*command, "--force"]).exit_code == 0
    assert PersonaSpace.load(path).traits == ["pedantic"]
    with pytest.raises(UsageError, match="a trait of that name is in the space already"):
        CliRunner().invoke(app, command, catch_exceptions=False, standalone_mode=False)


@pytest.mark.long
def test_of_the_embedded_model_formal_lies_apart_on_what_it_has_not_seen_and_two_wordings_are_not_enough(smollm2):
    formal = next(t for t in load_traits() if t.trait == "formal")
    seen = describe(smollm2, PersonaSpace.load("smollm2"), load_catalog(), Written(formal, "the catalogue")).telling
    assert seen.auc.value > max(0.8, seen.shuffled)
    assert "2 wordings that share no text" in seen.problem()
