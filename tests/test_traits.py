"""The experiment on traits: finds planted cosines, none where a trait does nothing, and runs on the model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from personaspace.catalog import load_catalog, load_traits
from personaspace.errors import CatalogError, RunError, UsageError
from personaspace.experiments.kit.trials import Given, Trials
from personaspace.experiments.traits.findings import balanced_signs, by_chance, contrast, interval, measure
from personaspace.experiments.traits.run import EXPERIMENT, TraitsOptions, asks, chosen, evaluate
from personaspace.space import PersonaSpace
from planted import HIDDEN, PlantedEngine, planted_space

CATALOG = load_catalog()
TRAITS = load_traits()


class Traited(PlantedEngine):
    """Its replies move by `reach` along a direction of each trait's own, whose cosine with the axis is planted."""

    def __init__(self, cosines: dict[str, float], reach: float = 14.0) -> None:
        super().__init__(lambda messages, rng: rng.normal())
        self.effect = {}
        for trait in TRAITS:
            c = cosines.get(trait.trait, 0.0)
            direction = torch.zeros(HIDDEN)
            direction[0], direction[1] = c, (1 - c * c) ** 0.5
            for side, texts in ((1, trait.bring_out), (-1, trait.suppress)):
                self.effect |= dict.fromkeys(texts, side * reach / 2 * direction)

    def respond(self, prompts, sampling, **more):
        for r in super().respond(prompts, sampling, **more):
            yield replace(r, activation=r.activation + self.effect[r.prompt.messages[0]["content"]])


def conducted(folder, engine, options, **more):
    trials = Trials(engine, planted_space(), folder, "traits", options, catalog=CATALOG, **more)
    return EXPERIMENT.conduct(trials)


def test_planted_cosines_are_found_within_their_intervals(tmp_path):
    names = [t.trait for t in TRAITS[:12]]
    planted = dict(zip(names, np.linspace(-0.9, 0.9, 12).tolist(), strict=True))
    result = conducted(tmp_path, Traited(planted), TraitsOptions(traits=",".join(names), questions=12))
    found = result.figures["cosines"]
    assert list(found) == names[::-1], "the most Assistant-like first"
    assert all(abs(found[t]["value"] - planted[t]) < 0.12 for t in names)
    assert sum(found[t]["low"] - 0.03 < planted[t] < found[t]["high"] + 0.03 for t in names) >= 10
    assert {t for t in names if abs(planted[t]) > 0.5} <= set(result.figures["stand_out"])
    assert result.figures["reliability"].low > 0.9
    assert f"Towards the Assistant: {names[-1].replace('_', ' ')}" in result.headline
    with safe_open(tmp_path / "traits.safetensors", framework="pt") as f:
        assert sorted(json.loads(f.metadata()["personaspace"])["traits"]) == sorted(names)
        assert f.get_tensor("vectors").shape == (12, HIDDEN)
    assert (tmp_path / "report.html").stat().st_size > 1_000_000
    # Prompts have the same traits planted, and are read with questions that no reply answers.
    for agreed in result.figures["prompts_agree"].values():
        assert abs(agreed.value - 1) < 0.1
        assert agreed.low <= 1.05
    assert "Prompts, read before the first word, give the same vectors to" in result.headline


def test_traits_that_do_nothing_do_not_stand_out(tmp_path):
    result = conducted(tmp_path, Traited({}, reach=0.0), TraitsOptions(traits="80"))
    assert len(result.figures["stand_out"]) <= 10
    assert "no trait can be told from none" in result.headline
    assert result.figures["reliability"].low < 0.2


def test_traits_across_the_axis_do_not_stand_out(tmp_path):
    result = conducted(tmp_path, Traited({}), TraitsOptions(traits="80"))
    assert not result.figures["stand_out"], "they turn away from the axis what chance would turn towards it"


def test_both_sides_of_a_trait_are_asked_the_same_questions_and_the_next_trait_others():
    options = TraitsOptions(questions=4)
    wanted = asks(options, CATALOG, TRAITS[:3])
    assert len({a.item for a in wanted}) == len(wanted) == 24
    put = [a.messages[1]["content"] for a in wanted]
    assert put[0::2] == put[1::2]
    assert len(set(put)) == 12
    told = [a.messages[0]["content"] for a in wanted[:8]]
    assert told[0::2] == list(TRAITS[0].bring_out) * 2
    assert told[1::2] == list(TRAITS[0].suppress) * 2


def test_replies_that_the_judge_does_not_keep_are_said_to_be_missing():
    options, some = TraitsOptions(questions=3), TRAITS[:4]
    wanted = asks(options, CATALOG, some)
    rng = np.random.default_rng(0)
    replies = [
        Given("plain", a.item, "It is so.", 3, "stop", 0.0, 0, torch.from_numpy(rng.normal(size=HIDDEN)).float())
        for a in wanted
    ]
    scores: list[int | None] = [9, 0] * 12
    scores[0], scores[6], scores[8] = None, 2, 4  # the first trait loses one, the second two that bring it out
    result, vectors = evaluate(planted_space(), options, some, wanted, replies, scores, "local")
    names = [t.trait for t in some]
    assert list(vectors) == [names[0], *names[2:]]
    assert (result.figures["cosines"][names[0]]["n"], result.figures["cosines"][names[0]]["missing"]) == (2, 1)
    assert result.figures["without_vector"] == [names[1]]
    assert "2, 1 replies missing" in [r[4] for r in result.blocks[-1].rows]
    assert f"whose replies are kept on both sides: {names[1]}" in result.blocks[-1].text.lower()
    with pytest.raises(RunError, match="0 of 4 traits have two questions whose replies the judge local keeps"):
        evaluate(planted_space(), options, some, wanted, replies, [0] * 24, "local")


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 7), st.integers(0, 2**32))
def test_a_contrast_is_the_difference_of_the_means_of_those_labelled_either_way(pairs, seed):
    rng = np.random.default_rng(seed)
    activations, signs = rng.normal(size=(pairs, 2, 5)), balanced_signs(pairs, rng)[:3]
    assert not signs.sum(1).any()
    contrasts = contrast(activations[:, 0] - activations[:, 1], signs)
    for d in range(3):
        sides: dict[int, list[np.ndarray]] = {1: [], -1: []}
        for p in np.flatnonzero(signs[d]):
            for s, sign in enumerate((1, -1)):
                sides[int(sign * signs[d, p])].append(activations[p, s])
        assert contrasts[d] == pytest.approx(np.mean(sides[1], 0) - np.mean(sides[-1], 0))


def test_a_trait_without_two_whole_pairs_has_no_vector():
    kept = np.array([[True, True], [True, False], [False, True], [False, True]])
    assert measure(np.ones((4, 2, 3)), kept, np.ones(3), [0]) is None


def test_replies_whose_pair_is_not_whole_do_not_move_a_contrast():
    rng = np.random.default_rng(0)
    activations, kept = rng.normal(size=(4, 2, 6)), np.array([[True, True]] * 3 + [[True, False]])
    activations[3] += 100
    measured = measure(activations, kept, np.ones(6), [0])
    assert measured.vector == pytest.approx((activations[:3, 0] - activations[:3, 1]).mean(0))
    assert (measured.pairs, measured.missing) == (3, 1)


def planted_pairs(rng, pairs, reach, cosine, hidden=200):
    """Pairs `[pairs, 2, hidden]` of a trait and the direction that it has that cosine with."""
    vector = reach * np.concatenate([[cosine, (1 - cosine**2) ** 0.5], np.zeros(hidden - 2)])
    return rng.normal(size=(pairs, 2, hidden)) + np.stack([vector / 2, -vector / 2]), np.eye(hidden)[0]


def test_a_large_trait_cancels_in_what_chance_gives_for_an_odd_number_of_pairs_as_for_an_even_one():
    edges = {}
    for pairs in (3, 4):
        rng = np.random.default_rng(0)
        worlds = [planted_pairs(rng, pairs, 200.0, 0.7) for _ in range(40)]
        measured = [measure(a, np.ones((pairs, 2), dtype=bool), unit, [0, k]) for k, (a, unit) in enumerate(worlds)]
        edges[pairs] = np.quantile(np.abs(by_chance(measured)), 0.95)
    assert edges[3] == pytest.approx(edges[4], rel=0.25)


@pytest.mark.parametrize("pairs", [8, 24])
@pytest.mark.parametrize("reach", [0.0, 2.0, 6.0, 30.0])
def test_an_interval_has_its_estimate_inside_and_the_cosine_that_is_measured_in_the_mean(pairs, reach):
    rng, kept = np.random.default_rng(0), np.ones((pairs, 2), dtype=bool)
    estimates = []
    for k in range(200):
        activations, unit = planted_pairs(rng, pairs, reach, 0.7)
        estimates.append(interval(measure(activations, kept, unit, [k]), np.empty(0)))
    expected = np.mean([e.value for e in estimates])
    assert all(e.low <= e.value <= e.high for e in estimates)
    assert np.mean([e.low <= expected <= e.high for e in estimates]) >= 0.9


def test_only_traits_of_few_pairs_are_said_to_have_intervals_as_wide_as_chance():
    options, some = TraitsOptions(questions=8), TRAITS[:3]
    wanted, rng = asks(options, CATALOG, some), np.random.default_rng(0)
    replies = [
        Given("plain", a.item, "It is so.", 3, "stop", 0.0, 0, torch.from_numpy(rng.normal(size=HIDDEN)).float())
        for a in wanted
    ]
    for lost, sentence in ((0, "over each trait's questions. Point"), (1, f"makes cosines: {some[0].trait}. Point")):
        scores = [9, 0] * 24
        scores[0] = 9 - 9 * lost
        result, _ = evaluate(planted_space(), options, some, wanted, replies, scores, "local")
        text = next(b.text for b in result.blocks if b.text.startswith("The grey band"))
        assert sentence in text
        assert ("1 of 3 traits have fewer than 8 pairs" in text) == bool(lost)


def test_a_users_traits_are_read_and_a_broken_line_is_named(tmp_path):
    good = {"trait": "loud", "bring_out": ["Shout."], "suppress": ["Whisper."]}
    (tmp_path / "traits.jsonl").write_text(json.dumps(good) + "\n" + json.dumps({**good, "suppress": []}))
    with pytest.raises(CatalogError, match=r"traits\.jsonl:2: suppress"):
        load_traits(tmp_path)
    (tmp_path / "traits.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(good))
    with pytest.raises(CatalogError, match="'loud' stands there twice"):
        load_traits(tmp_path)
    (tmp_path / "traits.jsonl").write_text(json.dumps(good))
    assert [t.trait for t in load_traits(tmp_path)] == ["loud"]
    assert len(load_traits(tmp_path / "elsewhere")) == len(TRAITS) == 240


def test_traits_that_there_are_not_are_refused():
    with pytest.raises(CatalogError, match="no trait 'sardonc' in the catalogue personaspace; did you mean sardonic"):
        chosen(TraitsOptions(traits="sardonc,wry"), CATALOG)
    with pytest.raises(UsageError, match="--traits 241"):
        chosen(TraitsOptions(traits="241"), CATALOG)
    with pytest.raises(UsageError, match="has 240 questions"):
        chosen(TraitsOptions(questions=241), CATALOG)


def test_other_texts_are_asked_anew(tmp_path, small_catalog):
    folder = shutil.copytree(small_catalog, tmp_path / "catalog")

    def run(word):
        rows = [{"trait": t, "bring_out": [f"{word} {t}."], "suppress": [f"Not {t}."]} for t in ("loud", "shy", "sly")]
        (folder / "traits.jsonl").write_text("\n".join(map(json.dumps, rows)))
        engine = PlantedEngine(lambda messages, rng: rng.normal())
        options, texts = TraitsOptions(), load_catalog(folder)
        EXPERIMENT.conduct(Trials(engine, planted_space(), tmp_path / "out", "traits", options, catalog=texts))
        return engine.asked

    assert (run("Be"), run("Be"), run("Act")) == (60, 0, 60), "12 replies and 48 prompts"


@pytest.mark.long
def test_on_the_embedded_model_a_few_traits_are_ranked(tmp_path, smollm2):
    options = TraitsOptions(traits="grounded,poetic,mystical", questions=2, max_new_tokens=6)
    trials = Trials(smollm2, PersonaSpace.load("smollm2"), tmp_path, "traits", options, catalog=CATALOG)
    cosines = EXPERIMENT.conduct(trials).figures["cosines"]
    assert len(cosines) == 3
    values = [c["value"] for c in cosines.values()]
    assert values == sorted(values, reverse=True)
    assert -1 < values[-1] < values[0] < 1
