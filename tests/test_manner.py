"""The experiment on who and how: finds planted effects of either, none where there is none, and runs on a tiny
model."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from personaspace.catalog import DEFAULT, load_catalog
from personaspace.cli import app
from personaspace.engines import ONSET, Response
from personaspace.errors import CatalogError, RunError, SpaceError, UsageError
from personaspace.experiments.kit.trials import Trials
from personaspace.experiments.manner.findings import (
    AS_IT_IS,
    BOTH,
    CONTRASTS,
    FAR,
    GROUPS,
    HOW,
    MANNERS,
    NEAR,
    NEUTRAL,
    POINTS,
    VERSE,
    WHO,
    Table,
    dealt_by_lot,
    drawn,
    findings,
    shares,
)
from personaspace.experiments.manner.page import mean_rank
from personaspace.experiments.manner.run import (
    EXPERIMENT,
    SENTENCES,
    MannerOptions,
    asks,
    cells,
    cost,
    evaluate,
    shape,
)
from personaspace.space import PersonaSpace
from personaspace.space.layout import FORMAT
from planted import HIDDEN, PlantedEngine, planted_space

CATALOG = load_catalog()
SPACE = {"roles_near": ("auditor", "judge", "pilot"), "roles_far": ("ghost", "hermit", "bard")}
"""Roles that the planted space has."""
PEOPLE = tuple(f"near {k}" for k in range(5)) + tuple(f"far {k}" for k in range(5)) + (DEFAULT,)
ENDS = (NEAR,) * 5 + (FAR,) * 5 + (DEFAULT,)


def planted(who=(0.0, 0.0), how=(0.0, 0.0, 0.0, 0.0), noise=1.0, between=0.3, questions=12, seed=0) -> Table:
    """Places that add up: what an end (near, far) and a manner add, what a role and a question add by chance, and
    noise."""
    rng = np.random.default_rng(seed)
    end = np.array([who[(NEAR, FAR).index(g)] if g != DEFAULT else 0.0 for g in ENDS])
    places = end[:, None, None] + np.array(how)[None, :, None] + noise * rng.normal(size=(len(ENDS), 4, questions))
    places += between * rng.normal(size=(len(ENDS), 1, 1)) + rng.normal(size=questions)
    return Table(PEOPLE, ENDS, places)


@pytest.mark.parametrize("apart", [0.0, 1.0])
def test_ends_that_differ_lie_beyond_what_deals_by_lot_give_and_others_do_not(apart):
    beyond = 0
    for seed in range(40):
        f = findings_of_ends(planted((apart, -apart), between=0.3, seed=seed))
        beyond += abs(f[0]) > f[1]
    assert beyond <= 7 if not apart else beyond == 40  # 5% of 40, and three standard deviations


def findings_of_ends(table):
    """How far the ends lie apart, and what deals by lot give."""
    near, far = (table.places[[g == group for g in ENDS]].mean() for group in (NEAR, FAR))
    return far - near, dealt_by_lot(table)


# -- arithmetic --------------------------------------------------------------------------------------------------------


def test_contrasts_are_differences_of_plain_means():
    table = planted((1.0, -1.0), (0.0, 0.5, -0.5, 0.1))
    table.places[2, 1, 3] = np.nan

    def loop(group, manner):
        values = []
        for w, g in enumerate(ENDS):
            if g == group:
                for q in range(12):
                    x = table.places[w, MANNERS.index(manner), q]
                    if x == x:
                        values.append(x)
        return sum(values) / len(values)

    f = findings(table)
    for m in MANNERS:
        assert f.who[m].value == pytest.approx(loop(FAR, m) - loop(NEAR, m))
        assert all(f.places[g][m].value == pytest.approx(loop(g, m)) for g in GROUPS)
    for a, b in CONTRASTS:
        assert all(f.how[a, b][g].value == pytest.approx(loop(g, a) - loop(g, b)) for g in GROUPS)
    assert f.crossed.value == pytest.approx(loop(FAR, POINTS) - loop(NEAR, VERSE))
    assert f.who_overall.value == pytest.approx(sum(f.who[m].value for m in MANNERS) / 4)
    assert f.how_overall.value == pytest.approx(
        (f.how[POINTS, VERSE][NEAR].value + f.how[POINTS, VERSE][FAR].value) / 2
    )
    assert (f.who[POINTS].n, f.how[POINTS, VERSE][NEAR].n, f.how[POINTS, VERSE][DEFAULT].n) == (10, 5, 12)


def test_shares_are_those_of_a_two_way_table_less_what_noise_leaves_in_it():
    table = planted((1.0, -1.0), (0.0, 0.5, -0.5, 0.1))
    y = table.places
    people, manners, questions = y.shape
    size = {WHO: 0.0, HOW: 0.0, BOTH: 0.0}
    for w in range(people):
        for h in range(manners):
            effects = {WHO: [], HOW: [], BOTH: []}
            for q in range(questions):
                middle = sum(y[a, b, q] for a in range(people) for b in range(manners)) / (people * manners)
                who = sum(y[w, b, q] for b in range(manners)) / manners - middle
                how = sum(y[a, h, q] for a in range(people)) / people - middle
                effects[WHO].append(who)
                effects[HOW].append(how)
                effects[BOTH].append(y[w, h, q] - middle - who - how)
            for name, e in effects.items():
                size[name] += np.mean(e) ** 2 - np.var(e, ddof=1) / questions
    assert shares(table) == pytest.approx({name: s / sum(size.values()) for name, s in size.items()})
    assert sum(shares(table).values()) == pytest.approx(1)


def test_a_pure_effect_of_who_leaves_nothing_to_how_and_keeps_its_sign_when_crossed():
    f = findings(planted((2.0, -2.0)))
    assert f.shares[WHO].value > 0.95
    assert f.shares[HOW].value < 0.02
    assert f.shares[HOW].low == 0
    assert f.crossed.low < -4 < f.crossed.high < 0
    assert all(e.high < 0 for e in f.who.values())
    assert f.how_overall.low < 0 < f.how_overall.high


def test_a_pure_effect_of_how_leaves_nothing_to_who_and_turns_the_crossed_contrast_round():
    f = findings(planted(how=(0.0, 2.0, -2.0, 0.0), between=0.0))
    assert f.shares[HOW].value > 0.95
    assert f.shares[WHO].value < 0.02
    assert f.crossed.high > 4 > f.crossed.low > 0
    assert all(e.low < 0 < e.high for e in f.who.values())
    assert all(e.low > 0 for e in f.how[POINTS, VERSE].values())


def test_a_manner_that_does_another_thing_to_everybody_is_both_together():
    table = planted(noise=0.1, between=0.0)
    table.places[5:10, 1] += 2.0
    table.places[5:10, 2] -= 2.0
    table.places[:5, 1] -= 2.0
    table.places[:5, 2] += 2.0
    assert shares(table)[BOTH] > 0.95


def test_noise_alone_is_nobodys_and_a_table_with_gaps_goes_by_its_whole_questions():
    values = [shares(planted((1.0, -1.0), noise=1.5, between=0.0, questions=6, seed=s))[HOW] for s in range(40)]
    assert abs(np.mean(values)) < 0.05, "without the noise taken off it would be more"
    table = planted((1.0, -1.0))
    whole = table.of_questions(np.arange(10))
    table.places[0, 0, 10] = table.places[3, 2, 11] = np.nan
    assert shares(table) == pytest.approx(shares(whole))
    table.places[0, 0] = np.nan
    assert np.isnan(shares(table)[WHO])
    assert np.isnan(findings(table).shares[WHO].low)


@pytest.mark.long
@pytest.mark.parametrize("questions", [4, 24])
def test_an_effect_that_is_not_there_is_claimed_in_some_five_of_a_hundred_at_most(questions):
    wrong = {"who": 0, "how": 0, "crossed": 0, "default": 0}
    ends = (NEAR, FAR)
    for s in range(300):
        t = planted(between=0.7, questions=questions, seed=s)
        # Every role takes a manner in a way of its own, and so does every question.
        rng = np.random.default_rng(1000 + s)
        t.places[:] += 0.7 * rng.normal(size=(11, 4, 1)) + 0.7 * rng.normal(size=(1, 4, questions))
        made = {
            "who": drawn(t, lambda t: t.mean(FAR, AS_IT_IS) - t.mean(NEAR, AS_IT_IS), ends),
            "how": drawn(t, lambda t: t.mean(NEAR, POINTS) - t.mean(NEAR, VERSE), (NEAR,)),
            "crossed": drawn(t, lambda t: t.mean(FAR, POINTS) - t.mean(NEAR, VERSE), ends),
        }
        for name, e in made.items():
            wrong[name] += e.low > 0 or e.high < 0
    assert max(wrong.values()) <= 24, wrong
    assert min(wrong["crossed"], wrong["who"]) >= 1, "nor are they so wide that nothing is ever claimed"


# -- what is asked -----------------------------------------------------------------------------------------------------


def test_every_cell_is_asked_the_same_questions_under_the_same_instructions():
    options = MannerOptions()
    wanted = asks(options, CATALOG, 12)
    each = cells(options, CATALOG)
    assert len(wanted) == 12 * len(each) == 12 * 11 * 4
    by_cell = [wanted[k : k + 12] for k in range(0, len(wanted), 12)]
    questions = [[a.messages[-1]["content"] for a in cell] for cell in by_cell]
    assert all(q == questions[0] for q in questions)
    assert len(set(questions[0])) == 12
    for cell, asked in zip(each, by_cell, strict=True):
        plain = next(b for c, b in zip(each, by_cell, strict=True) if (c.who, c.manner) == (cell.who, AS_IT_IS))
        for a, p in zip(asked, plain, strict=True):
            instruction = p.messages[0]["content"] if len(p.messages) > 1 else ""
            system = a.messages[0]["content"] if len(a.messages) > 1 else ""
            assert system.removeprefix(instruction).strip() in SENTENCES[cell.manner]
            assert system.startswith(instruction)
            assert a.item == p.item, "the same item has the same seed in every manner"
    ghost = next(c for c in each if c.who == "ghost" and c.manner == VERSE)
    assert len({ghost.system(k) for k in range(15)}) == 15, "each instruction meets each wording"
    default = {c.manner: c for c in each if c.who == DEFAULT}
    assert default[AS_IT_IS].system(0) == ""
    assert default[POINTS].system(1) == SENTENCES[POINTS][1]


def test_the_neutral_sentences_are_as_long_as_those_that_ask_for_a_manner():
    for wordings in zip(*(SENTENCES[m] for m in (POINTS, VERSE, NEUTRAL)), strict=True):
        lengths = [len(w.split()) for w in wordings]
        assert max(lengths) - min(lengths) <= 1


def test_what_makes_no_sense_is_one_line():
    with pytest.raises(CatalogError, match="no role 'goast' in the catalogue personaspace; did you mean ghost"):
        cost(MannerOptions(roles_far=("goast",)), CATALOG)
    with pytest.raises(UsageError, match="--roles-near, --roles-far: ghost stands there twice"):
        cost(MannerOptions(roles_near=("ghost",)), CATALOG)
    with pytest.raises(UsageError, match="--roles-near: expected at least one"):
        cost(MannerOptions(roles_near=()), CATALOG)
    with pytest.raises(UsageError, match="--per-cell 241: the catalogue personaspace has 240 questions"):
        cost(MannerOptions(per_cell=241), CATALOG)
    with pytest.raises(UsageError, match="--replies 4: expected at most --per-cell, which is 3"):
        cost(MannerOptions(per_cell=3), CATALOG)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1. Boil it.\n2. Drink", "points"),
        ("Well:\n- boil it", "points"),
        ("O river of light,\nyou carry the night", "lines"),
        ("It is 5. Then it is not.", "prose"),
        ("A sentence that goes on for longer than any line of verse would go on.\nAnother", "prose"),
    ],
)
def test_a_replys_look_goes_by_its_lines(text, expected):
    assert shape(text) == expected


# -- the whole ---------------------------------------------------------------------------------------------------------


class Placed(PlantedEngine):
    """Its prompts and its replies lie where their system prompt puts them: `who` by a role's name, `how` by a
    sentence."""

    def __init__(self, who: float, how: float) -> None:
        signs = dict.fromkeys(SPACE["roles_near"], 1) | dict.fromkeys(SPACE["roles_far"], -1)
        of = {text: signs[name] for name in signs for text in CATALOG.role(name).instructions}
        sentences = {s: sign for m, sign in ((POINTS, 1), (VERSE, -1)) for s in SENTENCES[m]}

        def where(messages, rng):
            system = messages[0]["content"] if len(messages) > 1 else ""
            role = sum(sign for text, sign in of.items() if system.startswith(text))
            manner = sum(sign for text, sign in sentences.items() if system.endswith(text))
            return 5.0 + who * role / 2 + how * manner / 2 + 0.3 * rng.normal()

        super().__init__(where, lambda at, messages: "1. It is so.\n2. It is.")
        self.read = 0

    def onsets(self, prompts, *, read, interventions=()):
        for p in prompts:
            self.read += 1
            at = torch.zeros(len(read), HIDDEN)
            at[:, 0] = self.where(p.messages, np.random.default_rng(p.index))
            yield Response(p, "", (0,), ONSET, at)


def conducted(folder, engine, space=None, **more):
    options = MannerOptions(**{**SPACE, **more})
    return EXPERIMENT.conduct(Trials(engine, space or planted_space(), folder, "manner", options, catalog=CATALOG))


def test_an_axis_of_who_and_one_of_how_are_told_apart_and_called_so(tmp_path):
    headline = conducted(tmp_path / "who", Placed(6.0, 1.0)).headline
    assert (
        "Before the first word, in every manner the axis tells who speaks; crossed, far roles in points still lie"
        in headline
    )
    assert (
        "In replies, in every manner the axis tells who speaks; crossed, far roles in points still lie further"
        in headline
    )
    assert "No published figure exists" in headline
    headline = conducted(tmp_path / "how", Placed(0.0, 4.0)).headline
    assert "in no manner can it be told that the axis tells who speaks; crossed, it turns round" in headline
    result = conducted(tmp_path / "none", Placed(0.0, 0.0))
    assert result.headline.count("lie further from the Assistant cannot be told") == 2


def test_places_are_in_the_defaults_standard_deviations_and_what_was_read_is_in_the_table(tmp_path):
    result = conducted(tmp_path, Placed(6.0, 1.0))
    replies = result.figures["readings"]["reply"]
    assert replies["crossed"].value == pytest.approx(-5.0, abs=0.5), "the space's default spreads by 1"
    assert replies["how"][f"{POINTS} − {VERSE}"][NEAR].value == pytest.approx(1.0, abs=0.5)
    rows = pq.read_table(tmp_path / "results.parquet").to_pylist()
    prompts = [r for r in rows if r["reading"] == "prompt"]
    assert (len(prompts), len(rows)) == (7 * 4 * 12, 7 * 4 * 16)
    default = [r["place"] for r in prompts if r["who"] == DEFAULT and r["manner"] == AS_IT_IS]
    assert (np.mean(default), np.std(default, ddof=1)) == (pytest.approx(0, abs=1e-6), pytest.approx(1))
    reply = next(r for r in rows if r["reading"] == "reply")
    assert reply["place"] == pytest.approx(reply["projection"] - 5.0)
    assert result.figures["shapes"][VERSE]["points"].value == 1
    saved = json.loads((tmp_path / "results.json").read_text())["figures"]
    assert saved["cells"]["prompt"]["ghost"][POINTS] < saved["cells"]["prompt"]["judge"][POINTS]
    # In the planted space roles lie at 0, −1, … in their order, so that the ghost stands first.
    assert saved["mean_rank_in_the_space"] == {
        NEAR: pytest.approx((4 + 8 + 6) / 3),
        FAR: pytest.approx((1 + 2 + 7) / 3),
    }
    assert (tmp_path / "report.html").stat().st_size > 1_000_000


def test_it_goes_on_with_the_replies_that_are_there_and_more_prompts_ask_none_anew(tmp_path):
    engine = Placed(6.0, 1.0)
    first = conducted(tmp_path, engine)
    assert (engine.asked, engine.read) == (7 * 4 * 4, 7 * 4 * 12)
    again = conducted(tmp_path, engine, per_cell=14)
    assert engine.asked == 7 * 4 * 4
    assert again.figures["readings"]["reply"]["crossed"] == first.figures["readings"]["reply"]["crossed"]


def test_without_replies_only_prompts_are_told_of(tmp_path):
    result = conducted(tmp_path, Placed(6.0, 1.0), replies=0)
    assert list(result.figures["readings"]) == ["prompt"]
    assert "In replies" not in result.headline
    assert "A few replies" not in [b.title for b in result.blocks]


def test_roles_and_scales_that_a_space_lacks_are_said_before_anything_is_asked(tmp_path):
    engine = Placed(0.0, 0.0)
    with pytest.raises(SpaceError, match="no role 'consultant' in this space of 8"):
        conducted(tmp_path / "a", engine, roles_near=("consultant", "judge"))
    space = planted_space()
    bare = PersonaSpace(space.meta, {k: t for k, t in space.tensors.items() if k != "default_moments"})
    with pytest.raises(SpaceError, match="lacks default_moments"):
        conducted(tmp_path / "b", engine, bare)
    assert (engine.asked, engine.read) == (0, 0)


def test_empty_replies_are_missing_and_prompts_that_are_all_alike_have_no_scale():
    base = {"question": 0, "system": "", "user": "?", "text": "", "shape": None}
    rows = [
        {**base, "reading": "prompt", "who": w, "group": g, "manner": m, "question": q, "projection": float(q)}
        for w, g in (("judge", NEAR), ("ghost", FAR), (DEFAULT, DEFAULT))
        for m in MANNERS
        for q in range(3)
    ]
    replies = [{**r, "reading": "reply", "projection": math.nan} for r in rows if r["question"] == 0]
    result = evaluate(planted_space(), [*rows, *replies])
    assert result.figures["empty_replies"] == 12
    assert "nothing was said" in result.blocks[-1].rows[0]
    assert "cannot be told of so few" in result.headline
    with pytest.raises(RunError, match="the default's 3 prompts all lie at 1"):
        evaluate(planted_space(), [{**r, "projection": 1.0} for r in rows])


RUNNER = CliRunner(env={"COLUMNS": "120", "NO_COLOR": "1"})


def test_the_whole_command_runs_on_a_tiny_random_model(tmp_path, tiny_folder, small_catalog):
    torch.manual_seed(0)
    names = ["ghost", "hermit", "clerk", "auditor", "whale", "pilot"]
    tensors = {
        "role_vectors": torch.randn(6, 3, 32),
        "default_vector": torch.randn(3, 32),
        "axis": torch.randn(3, 32),
        "default_moments": torch.tensor([0.0, 1.0])[:, None].repeat(1, 3),
    }
    meta = {"format": FORMAT, "model": {"id": str(tiny_folder)}, "layer": 1, "roles": names}
    PersonaSpace(meta, tensors).save(tmp_path / "space.safetensors")
    line = ["experiment", "manner", str(tmp_path / "space.safetensors"), "--out", str(tmp_path / "out")]
    line += ["--catalog", str(small_catalog), "--roles-near", "clerk,auditor,pilot", "--device", "cpu"]
    line += ["--per-cell", "3", "--replies", "1", "--max-new-tokens", "3"]
    wrong = RUNNER.invoke(app, [*line, "--roles-far", "goast,hermit"])
    assert wrong.exit_code != 0
    assert "no role 'goast' in the catalogue" in str(wrong.exception) + wrong.output
    dry = RUNNER.invoke(app, [*line, "--roles-far", "ghost,hermit", "--dry-run", "--json"])
    assert json.loads(dry.stdout)["this"]["replies"] == 6 * 4
    assert "the published setting is not one for this catalogue: --per-cell 240" in " ".join(dry.stderr.split())
    assert not (tmp_path / "out").exists(), "a wrong name leaves no folder behind"
    done = RUNNER.invoke(app, [*line, "--roles-far", "ghost,hermit"])
    assert done.exit_code == 0, done.output
    assert "prompts: far in points − near in verse" in done.output
    rows = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert len(rows) == 6 * 4 * (3 + 1)
    assert all(math.isfinite(r["place"]) for r in rows if r["reading"] == "prompt")


def test_ranks_are_by_place_on_the_axis_also_of_as_many_roles_as_layers():
    roles, hidden = 4, 8
    names = [f"role {k}" for k in range(roles)]
    tensors = {"axis": torch.eye(roles, hidden), "role_vectors": torch.zeros(roles, roles, hidden)}
    tensors["role_vectors"][:, 2, 2] = torch.tensor([1.0, 4.0, 2.0, 3.0])
    space = PersonaSpace({"layer": 2, "roles": names, "format": 1}, tensors)
    assert mean_rank(space, ["role 1"]) == 1
    assert mean_rank(space, ["role 0", "role 2"]) == 3.5
