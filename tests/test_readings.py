"""A map of prompts and replies: what each is of, one added to the other, killed and gone on with, and caps at its end."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import personaspace as ps
from personaspace.api import options_of
from personaspace.catalog import DEFAULT, EARLIER, load_catalog
from personaspace.errors import RunMismatch, SpaceError, UsageError
from personaspace.holding import calibrate
from personaspace.mapping import agreement
from personaspace.mapping.estimate import IncludedResponses
from personaspace.mapping.questions import catalog_of
from personaspace.report import words
from personaspace.runs import Run
from personaspace.serve.persona import Reader
from personaspace.stats.vectors import Cells
from personaspace.watcher import Watcher
from test_map import engine, finish, start, texts

BOTH = {"prompts_per_role": 8, "default_prompts": 30, "per_role": 4, "default_responses": 30, "max_new_tokens": 6}
KILLED = {**BOTH, "prompts_per_role": 20, "default_prompts": 60, "per_role": 16, "default_responses": 40}


def prompts_of(folder: Path) -> list[tuple]:
    shards = Run(folder).onsets
    rows = [r for s in shards.done() for r in shards.read(s).to_pylist()]
    return sorted((r["role"], r["index"], r["question"], r["instruction"], tuple(r["token_ids"])) for r in rows)


@pytest.fixture(scope="module")
def mapped(tmp_path_factory, small_catalog):
    folder = tmp_path_factory.mktemp("both")
    return folder, ps.map(engine(), folder, catalog=small_catalog, **BOTH)


@pytest.mark.long
def test_a_space_of_both_says_which_reading_each_figure_is_of(mapped):
    _, space = mapped
    assert space.readings == ("prompt", "reply")
    told = space.summary()["readings"]
    assert told["prompt"]["n_responses"] == 6 * 8 + 30
    assert told["reply"]["n_responses"] == 6 * 4 + 30
    assert told["prompt"]["layer"] == told["reply"]["layer"] == space.layer
    assert set(told["reply"]["reliability"]) == {"axis", "order", "map"}
    reply = space.of("reply")
    assert reply.reading == "reply"
    assert reply.summary()["readings"]["reply"]["reliability"] == told["reply"]["reliability"]
    assert not torch.equal(reply.tensors["axis"], space.tensors["axis"])
    with pytest.raises(SpaceError, match="was read from reply, not prompt"):
        reply.of("prompt")


def test_prompts_are_read_as_the_engine_reads_them_before_the_first_word(mapped, small_catalog):
    folder, _ = mapped
    e, shards = engine(), Run(folder).onsets
    rows = shards.read(0).to_pylist()[:12]
    read = shards.tensors(0, "activations")
    for k, row in enumerate(rows):
        system = [{"role": "system", "content": row["system"]}] if row["system"] else []
        ids = e.chat.prompt_ids([*system, {"role": "user", "content": row["user"]}])
        states = e.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        assert row["token_ids"] == [ids[-1]]
        for layer in range(2):  # the last one's hidden state is given after the final norm
            assert torch.cosine_similarity(read[k, layer], states[layer + 1][0, -1], dim=0) > 0.9999


def test_what_holding_goes_by_is_of_replies_on_the_axis_of_the_space(mapped):
    folder, space = mapped
    run = Run(folder)
    rows, means = [], []
    for shard in run.done():
        rows += run.read(shard, ["role", "tokens"]).to_pylist()
        means.append(run.tensors(shard, "activations"))
    on = space.project(torch.cat(means), space.layer)
    default = torch.tensor([r["role"] == DEFAULT and r["tokens"] > 0 for r in rows])
    mean, deviation = space.tensors["default_moments"][:, space.layer].tolist()
    assert mean == pytest.approx(float(on[default].mean()), abs=1e-4)
    assert deviation == pytest.approx(float(on[default].std()), rel=1e-4)


def test_a_map_ends_with_caps_that_replaying_its_replies_gives_too(mapped):
    folder, space = mapped
    assert space.meta["caps"]["capped"]["is"].startswith("default-p25@")
    assert (
        "tiny:capped" in Reader.of(ps.PersonaSpace.load(folder), "tiny").models
    )  # what `serve RUN` serves right after
    run = Run(folder)
    places = [(s, k) for s in run.done() for k, n in enumerate(run.read(s, ["tokens"])["tokens"].to_pylist()) if n]
    replies = list(calibrate._replies(run, places).values())
    axis = space.tensors["axis"]
    default, roles, names = calibrate.projections_while_mapping(Run(folder), axis / axis.norm(dim=-1, keepdim=True))
    assert (len(default), len(roles)) == (
        sum(r.role == DEFAULT for r in replies),
        sum(r.role != DEFAULT for r in replies),
    )
    assert names == [r.role for r in replies if r.role != DEFAULT]
    replayed = calibrate.token_projections(engine(), space, [r for r in replies if r.role == DEFAULT])
    for taken, again in zip(default, replayed, strict=True):
        assert torch.allclose(taken, again, rtol=1e-3, atol=1e-4)


REPLIES = {"read": "reply", "per_role": 4, "default_responses": 40, "max_new_tokens": 6}


@pytest.mark.parametrize(
    "options",
    [
        REPLIES,
        {**REPLIES, "complete": True, "min_responses": 1, "questions": 4},
        {**REPLIES, "keep": "sums", "blocks": 4},
    ],
    ids=["reply", "published", "sums"],
)
def test_a_map_of_replies_alone_ends_with_the_caps_that_calibration_would_make(
    tmp_path, small_catalog, options, monkeypatch
):
    space = ps.map(engine(), tmp_path, catalog=small_catalog, **options)
    assert space.meta["caps"]["capped"]["is"] == "default-p25@2:3"
    assert "tiny:capped" in Reader.of(ps.PersonaSpace.load(tmp_path), "tiny").models
    calibrated = ps.calibrate(tmp_path, engine=engine).space
    for name, cap in calibrated.meta["caps"].items():
        assert space.meta["caps"][name]["floors"] == pytest.approx(cap["floors"], abs=1e-5)
    # However many are read at once.
    monkeypatch.setattr(calibrate, "EACH", 1)
    # Caps are of the default's tokens: a quarter of them lie under their floor.
    sample = calibrate.draw_sample(Run(tmp_path))
    tokens = torch.cat(calibrate.token_projections(engine(), space, sample.default))[:, 2]
    assert (tokens < space.meta["caps"]["capped"]["floors"][0]).float().mean() == pytest.approx(0.25, abs=0.02)


def test_a_map_of_too_few_replies_for_caps_says_how_many_it_takes(tmp_path, small_catalog):
    notes: list[str] = []
    watcher = Watcher()
    watcher.note = notes.append
    options = {**REPLIES, "default_responses": 20, "watcher": watcher}
    assert not ps.map(engine(), tmp_path, catalog=small_catalog, **options).caps
    (line,) = [n for n in notes if "caps" in n]
    assert line.startswith("no caps yet: ")
    assert "20 replies of the default and 24 of roles; calibration needs 32 and 16" in line


def test_projections_on_another_axis_are_not_taken_for_these(mapped):
    folder, space = mapped
    other = torch.nn.functional.normalize(space.tensors["axis"] + 0.1 * space.tensors["axis"].roll(1, -1), dim=-1)
    assert calibrate.projections_while_mapping(Run(folder), other) == ([], [], [])


def test_what_a_killed_process_left_half_written_in_any_folder_of_a_run_is_taken_away(tmp_path):
    run = Run(tmp_path)
    halves = [
        tmp_path / reading / kind / f".part-00003.{ending}.elsewhere-7.tmp"
        for reading in (".", "onsets")
        for kind, ending in (("responses", "parquet"), ("activations", "safetensors"), ("projections", "safetensors"))
    ]
    for half in halves:
        half.parent.mkdir(parents=True, exist_ok=True)
        half.write_bytes(b"half")
    with run.locked():
        assert not any(half.exists() for half in halves)


@pytest.mark.long
def test_killed_at_ten_random_moments_both_readings_end_as_ones_left_alone(tmp_path, small_catalog):
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    finish(start(alone, small_catalog, KILLED))
    rng, kills = random.Random(1), 0
    while kills < 10:
        process = start(killed, small_catalog, KILLED)
        before = len(list(killed.rglob("part-*.parquet")))
        while process.is_alive() and len(list(killed.rglob("part-*.parquet"))) == before:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.1)
        if process.is_alive():
            process.kill()
            process.join()
            kills += 1
        else:
            # It came to its end before ten kills: take the end away, and go on killing what follows.
            finish(process)
            for path in [*sorted((killed / "responses").glob("part-*"))[-6:], killed / "space.safetensors"]:
                path.unlink()
    finish(start(killed, small_catalog, KILLED))
    assert texts(killed) == texts(alone)
    assert prompts_of(killed) == prompts_of(alone)
    a, b = (ps.PersonaSpace.load(f) for f in (alone, killed))
    assert a.meta["caps"].keys() == b.meta["caps"].keys()
    for name in ("axis", "role_vectors", "reply.axis", "default_moments"):
        assert torch.cosine_similarity(a.tensors[name], b.tensors[name], dim=-1).min() >= 1 - 1e-6, name
    assert not list(killed.rglob("*.tmp"))


@pytest.mark.long
def test_a_reading_is_added_to_a_run_that_has_the_other(tmp_path, small_catalog):
    prompts = ps.map(engine(), tmp_path, catalog=small_catalog, read="prompt", prompts_per_role=8, default_prompts=30)
    assert prompts.readings == ("prompt",)
    assert prompts.summary()["default_projection"] is None
    assert "caps" not in prompts.meta
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "onsets").rglob("part-*")}
    both = ps.map(engine(), tmp_path, catalog=small_catalog, **BOTH)
    assert both.readings == ("prompt", "reply")
    assert torch.equal(both.of("prompt").tensors["counts"], prompts.tensors["counts"])
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "onsets").rglob("part-*")} == stamps
    # Whoever asks for one of them again takes nothing away.
    assert (
        ps.map(engine(), tmp_path, catalog=small_catalog, read="prompt", prompts_per_role=8).readings == both.readings
    )
    with pytest.raises(RunMismatch, match=r"design\.per_role: 4 → 5"):
        ps.map(engine(), tmp_path, catalog=small_catalog, **{**BOTH, "per_role": 5})


@pytest.mark.long
def test_prompts_are_added_to_a_run_of_replies_whose_options_need_not_be_said_again(tmp_path, small_catalog):
    only = {**{k: v for k, v in BOTH.items() if "prompt" not in k}, "default_responses": 40}
    replies = ps.map(engine(), tmp_path, catalog=small_catalog, read="reply", questions=9, **only)
    assert replies.readings == ("reply",)
    both = ps.map(engine(), tmp_path, catalog=small_catalog, prompts_per_role=8)
    assert both.summary()["readings"]["reply"]["n_responses"] == replies.summary()["n_responses"]
    assert torch.equal(both.of("reply").tensors["axis"], replies.tensors["axis"])
    # Its replies were not projected while they were given, as there was no axis yet: some are replayed.
    assert "default-p25@2:3" in both.caps


def test_more_prompts_are_asked_of_a_run_that_has_fewer(tmp_path, small_catalog):
    ps.map(engine(), tmp_path, catalog=small_catalog, read="prompt", prompts_per_role=4, default_prompts=12)
    few = prompts_of(tmp_path)
    more = ps.map(engine(), tmp_path, catalog=small_catalog, read="prompt", prompts_per_role=6, default_prompts=12)
    assert set(few) < set(prompts_of(tmp_path))
    assert more.summary()["n_responses"] == 6 * 6 + 12


@pytest.mark.long
def test_from_sums_a_space_of_both_is_that_from_activations(tmp_path, small_catalog):
    kept = ps.map(engine(), tmp_path / "all", catalog=small_catalog, blocks=4, **BOTH)
    summed = ps.map(engine(), tmp_path / "sums", catalog=small_catalog, blocks=4, keep="sums", **BOTH)
    for name in ("axis", "role_vectors", "reply.axis", "default_moments", "map_split_half"):
        assert torch.allclose(kept.tensors[name], summed.tensors[name], rtol=1e-3, atol=1e-4, equal_nan=True), name
    assert kept.meta["caps"]["capped"]["is"] == summed.meta["caps"]["capped"]["is"]
    assert not Run(tmp_path / "sums").onsets.whole()


def test_an_aim_for_the_axis_is_content_with_a_sample_of_roles(tmp_path, small_catalog):
    space = ps.map(engine(), tmp_path, catalog=small_catalog, read="prompt", until="axis:0.3")
    spent = [h["responses"] for h in space.meta["history"]]
    assert spent[0] == 12
    assert space.meta["history"][-1]["reliability"] >= 0.3
    assert space.summary()["left_out"] == {}


@pytest.mark.long
def test_an_aim_of_several_reliabilities_goes_on_until_all_are_reached_or_the_budget_is_spent(tmp_path, small_catalog):
    options = {
        "catalog": small_catalog,
        "read": "prompt",
        "prompts_per_role": 2,
        "default_prompts": 6,
        "prompt_budget": 60,
    }
    space = ps.map(engine(), tmp_path, until="order:0.9999,map:0.9999", **options)
    last = space.meta["history"][-1]
    assert {"responses", "reliability", "order", "map"} <= set(last)
    assert 18 < last["responses"] <= 60
    # A round is so many prompts, one of each role and three of the default: none more would have fitted.
    assert last["responses"] > 60 - 9 or min(last["order"], last["map"]) >= 0.9999


@pytest.mark.parametrize("until", ["axis", "axis:2", "axes:0.9", "axis:0.9;map:0.8", 1.5, ""])
def test_an_aim_that_makes_no_sense_is_refused_with_what_was_expected(until):
    with pytest.raises(UsageError, match=r"axis:0\.95,order:0\.9,map:0\.8"):
        options_of(until=until)


@pytest.mark.parametrize(
    ("until", "aim"), [(0.9, {"axis": 0.9}), ("0.9", {"axis": 0.9}), ("order:0.8", {"order": 0.8})]
)
def test_a_bare_number_is_the_axis(until, aim):
    assert options_of(until=until).until == aim


@pytest.mark.long
def test_thirty_roles_of_two_replies_end_well_and_the_page_says_that_the_order_is_not_known(tmp_path):
    asked = {"roles": "30", "per_role": 2, "default_responses": 30, "max_new_tokens": 2}
    space = ps.map(engine(), tmp_path, read="reply", judge="none", **asked)
    assert space.summary()["reliability"]["order"] < 0.7
    assert space.summary()["order_known"] is False
    assert "order is not known" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_questions_follow_the_design_unless_given(tmp_path, small_catalog):
    assert len(catalog_of(tmp_path, options_of(read="reply", design={"per_role": 4}), small_catalog).questions) == 4
    assert len(catalog_of(tmp_path, options_of(), small_catalog).questions) == 12
    assert len(catalog_of(tmp_path, options_of(), small_catalog, questions=7).questions) == 7


def test_a_compact_space_keeps_both_axes_and_what_they_are_worth(mapped, tmp_path):
    compact = mapped[1].compact()
    compact.save(tmp_path / "c.safetensors")
    loaded = ps.PersonaSpace.load(tmp_path / "c.safetensors")
    told, whole = loaded.summary()["readings"], mapped[1].summary()["readings"]
    for reading in ("prompt", "reply"):
        assert told[reading]["reliability"] == whole[reading]["reliability"]
        assert told[reading]["axis_pc1_cosine"] == pytest.approx(whole[reading]["axis_pc1_cosine"], abs=1e-6)
    assert torch.equal(loaded.of("reply").tensors["axis"], mapped[1].of("reply").tensors["axis"])
    assert "reply.role_vectors" not in loaded.tensors


def test_a_replys_nearest_roles_are_seen_from_the_middle_of_replies(mapped):
    space = mapped[1]
    towards = space.centred()[0][2]
    reply = space.centre() + towards
    assert space.nearest(reply, 1)[0][0] == space.roles[2]
    assert space.nearest(space.role_vectors_at()[2], 1, reading="prompt")[0][0] == space.roles[2]


QUESTIONS = 40


class Planted:
    """A source of activations `[responses, 1, hidden]` made up for this test."""

    def __init__(self, role, question, activations) -> None:
        self.role, self.question, self.activations = role, question, activations
        self.n = np.zeros((int(role.max()) + 1, QUESTIONS), dtype=np.int64)
        np.add.at(self.n, (role, question), 1)
        self.block_of = None
        self.norms = np.ones((len(self.n), 1))

    def sums(self, cells, layers):
        from personaspace.stats.vectors import cell_sums

        return cell_sums(cells.placing(self.role, self.question), [self.activations[:, layers]])

    def sample(self, which, layers):
        yield self.activations[torch.from_numpy(which)][:, layers]

    def by_instruction(self):
        return None


def planted(rng, vectors, each: int, noise: float) -> IncludedResponses:
    roles, hidden = vectors.shape
    role = np.repeat(np.arange(roles), each)
    role = np.concatenate([role, np.zeros(40, dtype=np.int64)])
    question = rng.integers(0, QUESTIONS, len(role))
    effects = rng.normal(size=(QUESTIONS, hidden))
    x = vectors[role] + effects[question] + noise * rng.normal(size=(len(role), hidden))
    source = Planted(role, question, torch.from_numpy(x)[:, None])
    names = [DEFAULT, *(f"r{k}" for k in range(1, roles))]
    cells = Cells.counted(names, source.n)
    return IncludedResponses(source, cells, np.ones(len(role), dtype=bool), {}, {})


@pytest.mark.parametrize("same", [True, False])
def test_readings_agree_where_the_same_order_was_planted_and_not_where_another_was(same):
    told = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        vectors = rng.normal(size=(81, 16))
        vectors[0] = 3 * np.eye(16)[0]
        others = vectors.copy()
        if not same:
            others[1:] = others[1:][rng.permutation(80)]
        agree = agreement.of_orders(planted(rng, vectors, 12, 1.0), planted(rng, others, 6, 1.5), 0, 0)
        assert agree is not None
        told.append(agree["order"])
        assert agree["raw"] < agree["order"] or not same
    assert abs(np.mean(told) - (1.0 if same else 0.0)) < 0.25


def test_noise_alone_has_no_agreement_to_tell():
    flat, above = np.zeros((31, 8)), 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        agree = agreement.of_orders(planted(rng, flat, 4, 1.0), planted(rng, flat, 4, 1.0), 0, 0)
        above += agree is not None and agree["interval"][0] > 0
    assert above <= 3


def test_a_runs_file_says_what_was_asked_of_each_reading(mapped):
    manifest = json.loads((mapped[0] / "run.json").read_text())
    assert sum(manifest["onset_rounds"][0].values()) == 6 * 8 + 30
    assert sum(manifest["rounds"][0].values()) == 6 * 4 + 30


def test_a_run_that_the_first_version_wrote_is_gone_on_with_on_its_own_texts(tmp_path):
    shutil.copytree(Path(__file__).parent / "data" / "run-0.1.0", tmp_path / "run")
    asked = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("part-*")}
    old = ps.PersonaSpace.load(tmp_path / "run")
    assert old.readings == ("reply",)
    # Nothing of what it was begun with is said again: roles, questions, replies, texts are the run's.
    space = ps.map(engine(), tmp_path / "run", prompts_per_role=6)
    assert space.readings == ("prompt", "reply")
    assert space.summary()["readings"]["reply"]["n_responses"] == 40
    assert space.roles == old.roles
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("part-*") if p in asked} == asked
    systems = {row["system"] for shard in [Run(tmp_path / "run").onsets] for row in shard.read(0).to_pylist()}
    assert systems <= {None, *(t for r in load_catalog(EARLIER / "0.1").roles for t in r.instructions)} | {
        t.replace("{model}", "tiny") for t in load_catalog(EARLIER / "0.1").defaults if t
    }


def test_replies_lie_about_the_roles_replies_on_the_map_and_not_about_their_prompts(mapped):
    _, space = mapped
    reader = Reader.of(space, "tiny")
    replies = space.of("reply").role_vectors_at(space.layer)
    places = torch.tensor([reader.place(v) for v in replies])
    assert places.mean(0).abs().max() < 0.05 * places.abs().max()
    assert torch.allclose(space.centre(), replies.mean(0), atol=1e-4)
    assert torch.allclose(space.centre(reading="prompt"), space.role_vectors_at().mean(0))


def test_how_much_a_replys_nearest_roles_say_is_counted_as_a_plain_loop_counts(mapped):
    folder, space = mapped
    run, hits, total = Run(folder), 0, 0
    for shard in run.done():
        rows = run.read(shard, ["role", "tokens"]).to_pylist()
        for row, activation in zip(rows, run.tensors(shard, "activations"), strict=True):
            if row["role"] != DEFAULT and row["tokens"]:
                total += 1
                hits += row["role"] in [name for name, _ in space.nearest(activation, 5)]
    told = space.meta["nearest"]
    assert (told["n"], told["own"]) == (total, pytest.approx(hits / total))
    assert told["chance"] == pytest.approx(5 / 6)
    assert f"{total} (by chance 83%)" in words.nearest(space.summary())


def test_a_compact_spaces_roles_are_kept_in_half_precision_whatever_their_size(mapped, tmp_path):
    for size in (1e-6, 1.0, 1e6):
        large = {
            n: t * size if n in ("role_vectors", "axis", "default_vector") else t for n, t in mapped[1].tensors.items()
        }
        compact = ps.PersonaSpace({k: v for k, v in mapped[1].meta.items() if k != "other"}, large).compact()
        compact.save(tmp_path / "c.safetensors")
        loaded = ps.PersonaSpace.load(tmp_path / "c.safetensors")
        assert torch.allclose(loaded.role_vectors_at(), compact.role_vectors_at(), rtol=1e-3, atol=1e-3 * size)
        assert torch.cosine_similarity(loaded.centred()[0], compact.centred()[0], dim=-1).min() > 0.999
        loaded.save(tmp_path / "again.safetensors")
        again = ps.PersonaSpace.load(tmp_path / "again.safetensors")
        assert torch.allclose(again.role_vectors_at(), loaded.role_vectors_at(), rtol=1e-3, atol=1e-3 * size)
