"""How far two judges agree: kappa as sklearn has it, its interval over roles, and the command that says so."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

import personaspace as ps
from personaspace.catalog import load_catalog
from personaspace.errors import UsageError
from personaspace.judges import OpenAIJudge, agreement_of, make_judge
from personaspace.mapping.mapper import Mapper
from personaspace.mapping.options import MapOptions
from personaspace.runs import Run
from test_cli import run as command
from wild import answering, content


def drawn(noise: float, roles: int = 40, each: int = 5, seed: int = 0):
    """Scores of two judges who see the same, each with so much noise of its own."""
    rng = np.random.default_rng(seed)
    keys = [(f"role{r}", k) for r in range(roles) for k in range(each)]
    truth = rng.integers(4, size=len(keys))

    def judge() -> dict:
        other = rng.random(len(keys)) < noise
        return dict(zip(keys, np.where(other, rng.integers(4, size=len(keys)), truth).tolist(), strict=True))

    return judge(), judge()


@pytest.mark.parametrize("noise", [0.1, 0.5, 1.0])
def test_kappa_is_sklearns(noise):
    first, second = drawn(noise)
    result = agreement_of(first, second, top=3)
    a, b = list(first.values()), list(second.values())
    assert result.kappa.value == pytest.approx(cohen_kappa_score(a, b))
    assert result.weighted.value == pytest.approx(cohen_kappa_score(a, b, weights="quadratic"))
    assert result.kept.value == pytest.approx(cohen_kappa_score([x == 3 for x in a], [x == 3 for x in b]))
    assert result.kappa.low < result.kappa.value < result.kappa.high
    assert np.sum(result.table) == len(first)
    assert result.table[1][2] == sum(x == 1 and y == 2 for x, y in zip(a, b, strict=True))


def test_judges_who_guess_agree_no_better_than_chance():
    low_high = [agreement_of(*drawn(1.0, seed=s), top=3).kappa for s in range(12)]
    assert sum(k.low <= 0 <= k.high for k in low_high) >= 10


def test_replies_of_one_role_are_no_independent_ones():
    first, second = drawn(0.4)
    alike = {(f"{r}", k): v for (r, _), v in first.items() for k in range(5)}
    alike_second = {(f"{r}", k): second[r, 0] for (r, _) in first for k in range(5)}
    alike = {(r, k): first[r, 0] for r, k in alike}
    wide, narrow = agreement_of(alike, alike_second, top=3).kappa, agreement_of(first, second, top=3).kappa
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_where_both_give_one_score_throughout_kappa_is_not_defined():
    same = {("a", 0): 3, ("b", 0): 3, ("c", 0): 3}
    result = agreement_of(same, same, top=3)
    assert np.isnan(result.kappa.value)
    assert result.same == 1
    assert np.isnan(agreement_of({}, {}, top=3).kappa.value)


def test_replies_that_one_judge_alone_scored_are_counted_apart_and_those_furthest_apart_come_first():
    result = agreement_of({("a", 0): 3, ("a", 1): 0, ("b", 0): 3}, {("a", 0): 2, ("a", 1): 3, ("c", 9): 1}, top=3)
    assert (result.n, result.missing) == (2, 2)
    assert list(result.differ) == [("a", 1), ("a", 0)]


@pytest.fixture(scope="module")
def mapped(tiny, small_catalog, tmp_path_factory):
    folder = tmp_path_factory.mktemp("judged")
    options = MapOptions(read="reply", design={"per_role": 4, "default_responses": 12}, sampling={"max_new_tokens": 4})
    Mapper(tiny, load_catalog(small_catalog), folder, options).map(make_judge("rules"))
    return folder


def says(handler, body):
    text = body["messages"][0]["content"]
    score = 3 if "The ghost" in text or "The whale" in text else 1
    content(json.dumps({"score": score, "reason": f"a {score}"}))(handler, body)


def test_two_judges_are_compared_by_one_command_and_asked_once(mapped, small_catalog):
    with answering(says) as (url, kind):
        arguments = ("judge", mapped, "--catalog", small_catalog, "--against", "openai", "--against-model", "m")
        arguments = (*arguments, "--against-url", url, "--show", "3")
        printed = command(*arguments).stdout
        assert "on 24 replies the same score in 33%" in printed
        assert "quadratic weights" in printed
        assert printed.count("1 by openai-m") == 3
        assert ": a 1" in printed
        assert len(kind.asked) == 24
        result = json.loads(command(*arguments, "--json").stdout)
        assert len(kind.asked) == 24
    assert result["agreement"]["n"] == 24
    assert np.sum(result["agreement"]["table"]) == 24
    assert [set(reply) for reply in result["differ"]] == [
        {"role", "index", "question", "reply", "scores", "reasons"} for _ in range(3)
    ]


def test_what_a_judge_scored_here_a_map_does_not_ask_for_again(mapped, small_catalog, tiny):
    with answering(says) as (url, kind):
        judge = OpenAIJudge("n", url)
        judged = ps.judge(mapped, judge, catalog=small_catalog)
        assert judged.agreement is None
        assert judged.counts[judge.name] == {0: 0, 1: 16, 2: 0, 3: 8}
        assert len(Run(mapped).scores_of(judge.name)) == len(kind.asked) == 24


def test_replies_that_could_not_be_scored_are_left_out_and_said(mapped, small_catalog):
    def moody(handler, body):
        (content("well") if len(type(handler).asked) % 6 == 0 else content("3"))(handler, body)

    with answering(moody) as (url, _):
        judge = OpenAIJudge("moody", url, concurrency=1)
        judged = ps.judge(mapped, make_judge("rules"), judge, catalog=small_catalog)
    assert len(judged.problems[judge.name]) == 4
    assert (judged.agreement.n, judged.agreement.missing) == (20, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--against", "rules"), "two that differ"),
        (("--against", "none"), "--against none"),
        (("--judge", "none"), "--judge none"),
    ],
)
def test_judges_that_cannot_be_compared_are_refused(mapped, small_catalog, options, message):
    done = command("judge", mapped, "--catalog", small_catalog, *options, expect=2)
    assert message in done.stderr


def test_a_folder_without_a_map_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"run\.json"):
        ps.judge(tmp_path, make_judge("rules"))
