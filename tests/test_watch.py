"""Watching a model change: what is planted in a variant is named, noise and what a null shows are not."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_rel
from transformers import Trainer, TrainingArguments

import personaspace as ps
from conftest import make_model, make_tokenizer, write_catalog
from personaspace.catalog import load_catalog
from personaspace.engines import load_engine
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.errors import SpaceError, UsageError
from personaspace.experiments.watch.findings import DIMENSIONS, changes, null_edges, shifts
from personaspace.experiments.watch.readings import (
    PROMPTS,
    Looks,
    ModelReading,
    looks_of,
    read_model,
    watched_prompts,
)
from personaspace.mapping.options import named
from personaspace.space.directions import ROLE, TRAIT
from personaspace.space.readings import READINGS, REPLY
from personaspace.stats.intervals import holm
from personaspace.watcher import Watcher
from test_cli import run
from tuning import VOICES, tuned

TRAITS = 10


def engine_of(model, name="tiny"):
    return TransformersEngine(model, make_tokenizer(), id=name, rows=8)


@pytest.fixture(scope="module")
def base():
    return make_model("gpt2")


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    return write_catalog(tmp_path_factory.mktemp("catalog"))


@pytest.fixture(scope="module")
def space(base, catalog, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    ps.map(
        engine_of(base),
        folder,
        read="prompt",
        catalog=catalog,
        prompts_per_role=6,
        traits=str(TRAITS),
        trait_questions=2,
    )
    return ps.PersonaSpace.load(folder)


def moved_by(base, space, move):
    """A variant whose stream lies elsewhere at the space's layer, by a bias, whatever it is asked."""
    model = copy.deepcopy(base)
    bias = model.transformer.h[space.layer].mlp.c_proj.bias
    bias.data += torch.as_tensor(move, dtype=bias.dtype)
    return engine_of(model, "variant")


@pytest.fixture(scope="module")
def watched(base, space, catalog):
    """Four variants at once: a role, a trait, a direction that is neither, and nothing at all."""
    size = 4.0
    rng = np.random.default_rng(5)
    noise = rng.normal(size=32)
    variants = {
        "role": moved_by(base, space, size * space.direction("role:ghost")),
        "trait": moved_by(base, space, -size * space.direction(f"trait:{space.traits[3]}")),
        "noise": moved_by(base, space, size * noise / np.linalg.norm(noise)),
        "same": engine_of(copy.deepcopy(base), "same"),
    }
    return ps.watch(engine_of(base), variants, space=space, catalog=catalog, roles="all", prompts=12)


def test_a_role_and_a_trait_that_are_planted_are_named_and_noise_is_not(watched, space):
    role, trait, noise, same = watched.variants
    assert role.nearest(ROLE)[0].name == "role:ghost"
    assert role.nearest(ROLE)[0].cosine == pytest.approx(1, abs=1e-4)
    assert trait.nearest(TRAIT)[0].name == f"trait:{space.traits[3]}"
    assert trait.nearest(TRAIT)[0].shift.high < 0
    assert [noise.moved, same.moved] == [False, False]
    assert same.length == same.axis.shift.value == 0
    assert noise.length == pytest.approx(role.length, rel=1e-4)


def test_replies_name_a_planted_role_as_prompts_do_and_one_that_is_the_same_stays(base, space, catalog):
    variants = {
        "role": moved_by(base, space, 8 * space.direction("role:ghost")),
        "same": engine_of(copy.deepcopy(base), "same"),
    }
    watched = ps.watch(engine_of(base), variants, space=space, catalog=catalog, roles="2", prompts=12, reading="reply")
    role, same = watched.variants
    assert (watched.reading, role.nearest(ROLE)[0].name) == ("reply", "role:ghost")
    assert (same.moved, same.length) == (False, 0)
    with pytest.raises(UsageError, match="read=both: expected prompt or reply"):
        ps.watch(engine_of(base), variants, space=space, catalog=catalog, reading="both")


def test_prompts_to_which_one_of_both_replies_nothing_are_left_out_of_both():
    rng, base, looks = sets(6)
    silent = base.default + 4 * looks.units[5] + rng.normal(size=base.default.shape) / 5
    silent[3] = np.nan
    without = [np.delete(rows, 3, 0) for rows in (base.default, silent)]
    (change,) = found_in(base, {"a": reading_of(silent)}, {"n": reading_of(silent)}, looks)[:1]
    (same,) = found_in(reading_of(without[0]), {"a": reading_of(without[1])}, {"n": reading_of(without[1])}, looks)[:1]
    assert [k.shift for k in change.looks] == [k.shift for k in same.looks]
    assert (change.length, change.place) == (same.length, same.place)
    silent[8:] = np.nan
    with pytest.raises(
        UsageError, match="a: 7 of the default's 40 prompts have a reply by it and by the base; expected 8"
    ):
        found_in(base, {"a": reading_of(silent)}, {}, looks)


def reading_of(default, roles=None):
    return ModelReading(default, default[:2] if roles is None else roles, (1,))


def sets(seed, looks=30, prompts=40, hidden=32):
    """A base's reading, and directions that have nothing to do with it."""
    rng = np.random.default_rng(seed)
    units = rng.normal(size=(looks, hidden))
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    names = ("axis", *(f"trait:t{k}" for k in range(looks - 11)), *(f"role:r{k}" for k in range(10)))
    default = rng.normal(size=(prompts, hidden)) * np.linspace(3, 0.3, hidden)
    return rng, reading_of(default), Looks(names, units)


def found_in(base, variants, nulls, looks, effect=0.5):
    hidden = looks.units.shape[1]
    return changes(base, variants, nulls, looks, np.eye(hidden)[:10], np.zeros(hidden), effect)


def test_random_moves_are_taken_for_a_character_in_few_cases():
    named = 0
    for seed in range(200):
        rng, base, looks = sets(seed)
        move = rng.normal(size=32)
        variant = reading_of(base.default + 5 * move / np.linalg.norm(move) + rng.normal(size=base.default.shape) / 5)
        (change,) = found_in(base, {"random": variant}, {}, looks)
        named += change.moved
    assert named <= 16  # 5% for all looks together, and three standard deviations


def test_a_planted_look_counts_in_nearly_all_cases():
    hits = 0
    for seed in range(50):
        rng, base, looks = sets(seed)
        move = 5 * looks.units[7] + rng.normal(size=32) / 5
        variant = reading_of(base.default + move + rng.normal(size=base.default.shape) / 5)
        (change,) = found_in(base, {"planted": variant}, {}, looks)
        hits += [k.name for k in change.looks if k.moved][:1] == ["trait:t6"]
    assert hits >= 45


def test_a_shift_is_the_mean_difference_in_deviations_and_p_the_paired_test():
    rng, base, looks = sets(1)
    variant = reading_of(base.default + 0.05 * looks.units[3] + rng.normal(size=base.default.shape) / 4)
    shift, error = shifts(base, variant, looks)
    for k, unit in enumerate(looks.units):
        before, after = ([float(row @ unit) for row in r.default] for r in (base, variant))
        spread = np.std(before, ddof=1)
        assert shift[k] == pytest.approx((np.mean(after) - np.mean(before)) / spread)
        assert shift[k] / error[k] == pytest.approx(ttest_rel(after, before).statistic)
    (change,) = found_in(base, {"one": variant}, {}, looks, effect=0.0)
    ps_of_noise = holm(np.array([ttest_rel(variant.default @ u, base.default @ u).pvalue for u in looks.units]))
    assert all(look.p >= p - 1e-9 for look, p in zip(change.looks, ps_of_noise, strict=True))


def test_what_neutral_fine_tunes_show_is_no_effect_and_what_lies_beyond_it_is():
    _, base, looks = sets(2)
    towards = looks.units[looks.names.index("role:r4")]
    moved = {size: reading_of(base.default + size * towards) for size in (6.0, 7.0, 30.0)}
    (alone,) = found_in(base, {"a": moved[7.0]}, {}, looks)
    assert [k.name for k in alone.nearest(ROLE) if k.moved][:1] == ["role:r4"]
    small, large, null = found_in(base, {"a": moved[7.0], "b": moved[30.0]}, {"n": moved[6.0]}, looks)
    assert [small.moved, large.moved, null.moved, null.is_null] == [False, True, False, True]
    assert large.nearest(ROLE)[0].name == "role:r4"
    of_null = next(k.shift.value for k in null.looks if k.name == "role:r4")
    assert large.nearest(ROLE)[0].beyond == pytest.approx(0.5 + of_null)
    # What a null does along one direction excuses nothing along another, nor the other way.
    back = reading_of(base.default - 7 * towards)
    (away, _) = found_in(base, {"back": back}, {"n": moved[6.0]}, looks)
    back_look = next(k for k in away.looks if k.name == "role:r4")
    assert back_look.moved
    assert back_look.beyond == pytest.approx(0.5)
    assert back_look not in away.nearest(ROLE)


def test_another_neutral_fine_tune_is_seldom_taken_for_one_that_moved():
    """They share a move, and each has one of its own: of k + 1 alike, one goes beyond the others in a 1/(k + 1) at most."""
    moved = 0
    for seed in range(100):
        rng, base, looks = sets(seed)
        shared = 5 * rng.normal(size=32)
        five = {f"n{k}": reading_of(base.default + shared + rng.normal(size=32)) for k in range(5)}
        last = five.pop("n4")
        moved += found_in(base, {"last": last}, five, looks, effect=0.0)[0].moved
    assert moved <= 32  # 1 in 5, and three standard deviations


def test_nulls_reach_as_far_as_a_plain_loop_says():
    rng, _, looks = sets(3)
    of_nulls = rng.normal(size=(3, len(looks.names)))
    edges = null_edges(of_nulls, looks)
    for sign, reach in ((1, edges[0]), (-1, edges[1])):
        for place, name in enumerate(looks.names):
            kind, furthest = name.partition(":")[0], 0.0
            for alone in range(3):
                for other, other_name in enumerate(looks.names):
                    if other_name.partition(":")[0] == kind:
                        for way in (1, -1):
                            rest = max(0.0, *(way * of_nulls[k, other] for k in range(3) if k != alone))
                            furthest = max(furthest, max(0.0, way * of_nulls[alone, other]) - rest)
            assert reach[place] == pytest.approx(max(0.0, *(sign * row[place] for row in of_nulls)) + furthest)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 50), st.floats(0.01, 100))
def test_neither_the_models_scale_nor_the_order_of_prompts_changes_what_is_said(seed, size, scale):
    rng, base, looks = sets(seed, looks=14, prompts=12)
    variant = reading_of(base.default + size * looks.units[2] + rng.normal(size=base.default.shape))
    order = rng.permutation(12)
    other = [reading_of(scale * r.default[order]) for r in (base, variant)]
    (one,), (two,) = found_in(base, {"v": variant}, {}, looks), found_in(other[0], {"v": other[1]}, {}, looks)
    assert [k.shift.value for k in one.looks] == pytest.approx([k.shift.value for k in two.looks])
    assert [k.p for k in one.looks] == pytest.approx([k.p for k in two.looks])
    assert one.share == pytest.approx(two.share)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holms_p_are_those_of_a_plain_loop(values):
    expected, largest = {}, 0.0
    for rank, k in enumerate(sorted(range(len(values)), key=lambda k: values[k])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[k]))
        expected[k] = largest
    assert holm(np.array(values)).tolist() == pytest.approx([expected[k] for k in range(len(values))])


@pytest.mark.long
def test_the_command_writes_a_page_and_says_what_moved(base, space, catalog, tmp_path, watched):
    space.save(tmp_path / "space.safetensors")
    folders = {}
    towards = 4.0 * space.direction("role:ghost")
    for name, engine in {"base": engine_of(base), "tuned": moved_by(base, space, towards)}.items():
        folders[name] = tmp_path / name
        engine.model.save_pretrained(folders[name])
        engine.tokenizer.save_pretrained(folders[name])
    options = ["--catalog", catalog, "--prompts", "12", "--roles", "all", "--out", tmp_path / "watch.html"]
    names = [folders["base"], folders["tuned"], "--space", tmp_path / "space.safetensors"]
    said = run("watch", *names, *options)
    assert "towards the roles ghost +" in " ".join(said.stdout.split())
    assert "no neutral fine-tune" in said.stderr
    assert "ghost" in (tmp_path / "watch.html").read_text()
    as_json = json.loads(run("watch", *names, "--json", "--null", folders["base"], *options).stdout)
    tuned, null = as_json["variants"]
    assert [tuned["null"], null["null"], null["moved"]] == [False, True, False]
    assert tuned["roles"][0]["name"] == "role:ghost"
    spoken = json.loads(run("watch", *names, "--json", "--read", "reply", *options).stdout)
    assert (spoken["reading"], len(spoken["variants"])) == ("reply", 1)
    assert "read in replies of up to 24 tokens" in (tmp_path / "watch.html").read_text()
    assert tuned["roles"][0]["shift"] == pytest.approx(watched.variants[0].nearest(ROLE)[0].shift.value, rel=0.02)


def test_mistakes_get_one_line(base, space, catalog, tmp_path, tiny_folder):
    wrong = run("watch", tiny_folder, tiny_folder, expect=2)
    assert "needs the base's space" in wrong.stderr
    space.save(tmp_path / "space.safetensors")
    names = (tiny_folder, tmp_path / "nosuch", "--space", tmp_path / "space.safetensors")
    missing = run("watch", *names, expect=1)  # one line: it is told before the base is read
    assert f"{tmp_path / 'nosuch'}: not a model" in missing.stderr
    engine = engine_of(base)
    with pytest.raises(UsageError, match="prompts=13: expected 8 to 12"):
        ps.watch(engine, {"a": engine}, space=space, catalog=catalog, roles="all", prompts=13)
    with pytest.raises(UsageError, match="one variant at least"):
        ps.watch(engine, {}, space=space, catalog=catalog)
    with pytest.raises(UsageError, match="cannot be watched and be the null"):
        ps.watch(engine, {"a": engine}, null={"a": engine}, space=space, catalog=catalog)
    with pytest.raises(UsageError, match="effect=-1"):
        ps.watch(engine, {"a": engine}, space=space, catalog=catalog, effect=-1)
    smaller = copy.deepcopy(base)
    smaller.transformer.h, smaller.config.n_layer = smaller.transformer.h[:2], 2
    shallow = engine_of(smaller)
    with pytest.raises(SpaceError, match=r"3 layers of 32 numbers; tiny has 2 of 32"):
        ps.watch(engine, {"a": shallow}, space=space, catalog=catalog, roles="all", prompts=12)


def test_a_variant_with_another_template_is_noted(base, space, catalog):
    other = TransformersEngine(copy.deepcopy(base), make_tokenizer("{{ messages[-1]['content'] }}"), id="other", rows=8)
    engine = engine_of(base)
    watched = ps.watch(engine, {"a": other}, space=space, catalog=catalog, roles="2", prompts=8, traits="none")
    assert watched.variants[0].other_texts
    assert any("template makes other prompts" in note for note in watched.notes)


class Training(torch.utils.data.Dataset):
    """Random tokens."""

    def __len__(self):
        return 16

    def __getitem__(self, k):
        ids = torch.randint(4, 260, (12,), generator=torch.Generator().manual_seed(k))
        return {"input_ids": ids, "labels": ids}


def train(base, folder, watch=None, model=None):
    """A trainer after four steps of training a copy of the model."""
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=4, per_device_train_batch_size=4, learning_rate=1e-2, logging_steps=100,
        report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True, seed=3,
    )  # fmt: skip
    model = (model or copy.deepcopy(base)).requires_grad_(True)
    trainer = Trainer(model, arguments, train_dataset=Training(), processing_class=make_tokenizer())
    if watch:
        trainer.add_callback(watch(trainer))
    trainer.train()
    return trainer


def test_training_logs_how_the_default_moves_and_learns_the_same(base, space, catalog, tmp_path):
    """ModelReading leaves nothing behind: with dropout and all, the weights end as without it."""

    def watch(trainer):
        return ps.WatchCallback(trainer, space, every=2, catalog=catalog, roles="2", prompts=12)

    plain, watched = train(base, tmp_path), train(base, tmp_path, watch)
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(watched.model.state_dict()[name], weight), name
    logs = [row for row in watched.state.log_history if "persona/axis" in row]
    assert [row["step"] for row in logs] == [2, 4]
    followed = [key for key in logs[0] if key.startswith(("persona/role:", "persona/trait:"))]
    assert len(followed) == 3
    assert set(followed) <= set(logs[1])
    # The figures are those that watching the saved checkpoint gives.
    variant = engine_of(watched.model.eval().requires_grad_(False))
    beside = ps.watch(
        engine_of(base, space.meta["model"]["id"]),
        {"end": variant},
        space=space,
        catalog=catalog,
        roles="2",
        prompts=12,
    )
    assert logs[1]["persona/axis"] == pytest.approx(beside.variants[0].axis.shift.value, rel=1e-4)
    assert logs[1]["persona/length"] == pytest.approx(beside.variants[0].length, rel=1e-4)


def test_an_adapter_in_training_is_read_with_its_change(base, space, catalog, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["c_proj"], fan_in_fan_out=True)
    adapted = peft.get_peft_model(copy.deepcopy(base), config)

    def watch(trainer):
        return ps.WatchCallback(trainer, space, every=4, catalog=catalog, roles="2", prompts=8)

    trainer = train(base, tmp_path, watch, model=adapted)
    (row,) = [row for row in trainer.state.log_history if "persona/axis" in row]
    assert row["persona/length"] > 0


def test_a_callback_that_cannot_read_says_so(base, space, tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    trainer = Trainer(copy.deepcopy(base), arguments)
    with pytest.raises(UsageError, match="no tokenizer"):
        ps.WatchCallback(trainer, space)
    with pytest.raises(UsageError, match="every=0"):
        ps.WatchCallback(trainer, space, every=0)


SEEDS = range(5)


@pytest.fixture(scope="module")
def fine_tunes(tmp_path_factory):
    """Adapters of the embedded model, trained here on the same questions, by their voice and their seed."""
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("tuned")
    return {(voice, k): tuned(folder / f"{voice}{k}", voice, k) for voice in VOICES for k in SEEDS}


@pytest.fixture(scope="module", params=READINGS)
def readings(request, fine_tunes):
    """By prompts and by replies: what was read of the base and of each fine-tune, and what to set them side by side with."""
    space, catalog = ps.PersonaSpace.load("smollm2"), named(load_catalog(), "smollm2")
    work = watched_prompts(catalog, "2", PROMPTS, 0)
    names = {"base": "smollm2", **fine_tunes}
    read = {
        name: read_model(load_engine("transformers", model), work, space.layer, Watcher(), request.param)
        for name, model in names.items()
    }
    components, centre = space.components_at()[0][:DIMENSIONS], space.centre(reading=request.param)
    return request.param, read, (looks_of(space, {}), components.double().numpy(), centre.double().numpy())


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_pirate_is_named_and_neutral_talk_is_not(seed, readings):
    """The neutral ones of the other seeds are the null of both. What is replied names the pirate before all 274 others; before
    the first word this small model's lies along several roles that the Assistant is not, and is among the first five."""
    reading, read, others = readings
    null = {f"null {k}": read["neutral", k] for k in SEEDS if k != seed}
    both = {voice: read[voice, seed] for voice in VOICES}
    pirate, neutral, *_ = changes(read["base"], both, null, *others)
    for change in (pirate, neutral):
        nearest = [f"{k.plain_name} {k.cosine:+.2f} {k.shift:+.1f} {k.moved}" for k in change.nearest(ROLE, 8)[:8]]
        print(reading, seed, change.name, sum(k.moved for k in change.looks), nearest)
    named_roles = [look.name for look in pirate.nearest(ROLE)[: 1 if reading == REPLY else 5] if look.moved]
    assert "role:pirate" in named_roles
    assert not neutral.moved
