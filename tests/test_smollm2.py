"""Claims on the embedded model: it loads from its package, writes as itself and as others, and reads the same twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from personaspace.catalog import load_catalog
from personaspace.engines import Span
from personaspace.engines.prompts import Prompt, Sampling
from personaspace.holding.monitor import project
from personaspace.serve.persona import Reader
from personaspace.space import BUNDLED, PersonaSpace

NEAR = ["evaluator", "consultant", "analyst", "generalist", "reviewer", "coach"]
NEAR += ["teacher", "editor", "examiner", "supervisor", "statistician"]
FAR = [
    "ghost",
    "hermit",
    "bohemian",
    "leviathan",
    "bard",
    "jester",
    "demon",
    "pirate",
    "alien",
    "mystic",
    "poet",
    "genie",
]

ASKED = [
    (
        "You are a pirate, arr, with a cutlass, a grudge, and a map tattooed on another man's back.",
        "What would you do with a fortune?",
    ),
    ("", "How do I boil an egg?"),
    ("You are a ghost. You died in this house and nobody has heard you, until now.", "Who are you?"),
    ("", "What is the capital of France?"),
]


def prompts() -> list[Prompt]:
    made = []
    for k, (system, user) in enumerate(ASKED * 3):
        first = [{"role": "system", "content": system}] if system else []
        made.append(Prompt((*first, {"role": "user", "content": user + " " * (k // 4)}), index=k, seed=k))
    return made


@pytest.mark.long
def test_the_model_answers_in_words_and_puts_in_its_own_system_prompt(smollm2):
    answers = {r.prompt.index: r.text for r in smollm2.respond(prompts(), Sampling(temperature=0, max_new_tokens=24))}
    assert "Paris" in answers[3]
    assert "SmolLM" in smollm2.info.notes["beginning"]
    assert (smollm2.info.layers, smollm2.info.hidden) == (30, 576)


@pytest.mark.long
def test_respond_reads_what_replay_and_a_plain_loop_read(smollm2):
    answers = list(smollm2.respond(prompts(), Sampling(max_new_tokens=24), read=range(30)))
    spans = []
    for r in answers:
        ids = smollm2.chat.prompt_ids(r.prompt.messages)
        spans.append(Span((*ids, *r.token_ids), ((len(ids), len(ids) + len(r.token_ids)),)))
    for r, span, (turn,) in zip(answers, spans, smollm2.replay(spans, read=range(30)), strict=True):
        a, b = span.spans[0]
        with torch.inference_mode():
            states = smollm2.model(
                torch.tensor([span.token_ids]), output_hidden_states=True, use_cache=False
            ).hidden_states
        plain = torch.stack([h[0, a:b].mean(0) for h in states[1:-1]])  # the last of them has been through the norm
        for read in (r.activation, turn.activation):
            assert torch.cosine_similarity(read[:-1], plain, dim=-1).min() >= 0.9999
            assert ((read[:-1] - plain).norm(dim=-1) / plain.norm(dim=-1)).max() <= 1e-3
        assert torch.cosine_similarity(r.activation, turn.activation, dim=-1).min() >= 0.9999


@pytest.mark.long
def test_the_same_seed_gives_the_same_replies(smollm2):
    texts = [[r.token_ids for r in smollm2.respond(prompts(), Sampling(max_new_tokens=8))] for _ in range(2)]
    assert texts[0] == texts[1]


# -- what the space that comes along does to it ------------------------------------------------------------------------

ROLES = ["pirate", "ghost", "bard", "witch", "leviathan", "smuggler", "exile", "rogue"]
PLAIN = Sampling(max_new_tokens=24)


def played(role: str, **own) -> Prompt:
    instruction = load_catalog().role(role).instructions[0]
    messages = ({"role": "system", "content": instruction}, {"role": "user", "content": "What do you think of money?"})
    return Prompt(messages, role, seed=3, **own)


def uncapped(engine, responses) -> list[float]:
    """Where replies lie on the axis, read by the model as it is."""
    space = PersonaSpace.load("smollm2")
    spans = []
    for r in responses:
        ids = engine.chat.prompt_ids(r.prompt.messages)
        spans.append(Span((*ids, *r.token_ids), ((len(ids), len(ids) + len(r.token_ids)),)))
    return [float(turn.activation[0] @ space.axis_at()) for (turn,) in engine.replay(spans, read=[space.layer])]


def test_the_space_that_comes_along_is_of_this_very_model_and_small(smollm2):
    space = PersonaSpace.load("smollm2")
    assert space.check_model(smollm2.info) is None
    assert BUNDLED.stat().st_size < 1_000_000
    names = [r["name"] for r in space.summary()["roles"]]
    for near in ("evaluator", "consultant", "analyst", "generalist"):
        for far in ("ghost", "hermit", "bohemian", "leviathan"):
            assert names.index(near) < names.index(far)
    assert space.summary()["axis_reliability"] >= 0.95
    prompts, replies = (space.summary()["readings"][reading]["reliability"] for reading in ("prompt", "reply"))
    assert prompts["order"] >= 0.9
    assert prompts["map"] >= 0.8
    assert replies["axis"] >= 0.9
    # The study's "above 0.71" is no mark to pass; chance is.
    assert (
        space.summary()["corrected_interval"]["axis_pc1_cosine_corrected"][0]
        > space.summary()["null"]["axis_pc1_cosine"]["p95"]
    )
    places = [[names.index(r) for r in end] for end in (NEAR, FAR)]
    assert np.mean(np.less.outer(*places)) >= 0.98, "the area under the curve of the study's two ends"
    assert space.meta["caps"]["capped"]["why"]["again"]["touched"] <= 0.5


@pytest.mark.long
def test_the_servers_page_is_told_roles_from_the_mean_of_their_own_reading_and_where_replies_have_theirs():
    described = Reader.of(PersonaSpace.load("smollm2"), "smollm2").describe({}, {})
    projections = [role["projection"] for role in described["roles"]]
    assert described["reading"] == "prompt"
    assert np.mean([role["above_mean"] for role in described["roles"]]) == pytest.approx(0, abs=1e-3)
    assert np.mean(projections) > described["default"]["mean"] > described["mean_role"]  # prompts have another zero


def test_steering_moves_replies_along_the_axis_and_the_cap_moves_roles_towards_the_default(smollm2):
    space = PersonaSpace.load("smollm2")
    ways = {"away": [space.steer(-0.3)], "none": [], "towards": [space.steer(0.3)], "capped": [space.cap()]}
    prompts = [played(role, interventions=tuple(how)) for how in ways.values() for role in ROLES]
    found = {}
    for r in smollm2.respond(prompts, PLAIN):
        found.setdefault(tuple(r.prompt.interventions), []).append(r)
    mean = {name: sum(at := uncapped(smollm2, found[tuple(how)])) / len(at) for name, how in ways.items()}
    assert mean["away"] < mean["none"] < mean["towards"]
    assert mean["capped"] > mean["none"]


@pytest.mark.long
def test_under_a_cap_on_the_layer_that_is_read_no_reply_lies_below_its_floor(smollm2):
    space = PersonaSpace.load("smollm2")
    cap = space.cap("default-p50@12:27")
    floor = dict(zip(cap.layers, cap.floor, strict=True))[space.layer]

    def places(*interventions) -> list[float]:
        """Of each reply's tokens, their mean on the axis, as they are made."""
        prompts = [played(role, interventions=interventions) for role in ROLES[:4]]
        replies = smollm2.respond(prompts, Sampling(max_new_tokens=8), read=[space.layer])
        return [float(reply.activation[0] @ space.axis_at()) for reply in replies]

    assert min(places()) < floor - 1
    assert min(places(cap)) >= floor - 0.05


def test_a_pirates_tale_drifts_further_than_a_helpful_answer(smollm2):
    space = PersonaSpace.load("smollm2")
    tales = {
        "pirate": "Arr, I buried me gold beneath the black rock, and the sea swallowed every soul that dared to follow me.",
        "helpful": "To boil an egg, place it in boiling water for about ten minutes, then cool it in cold water.",
    }
    drift = {}
    for name, text in tales.items():
        messages = [{"role": "user", "content": "Tell me."}, {"role": "assistant", "content": text}]
        readings, _ = project(smollm2, space, messages)
        drift[name] = readings[0].drift
    assert drift["pirate"] > drift["helpful"] + 1
