"""An endpoint as a judge: what it refuses is learnt, what it answers wrongly unscored in a line, what was paid for stays."""

from __future__ import annotations

import gzip
import json
import os
import signal
import threading
import time
from dataclasses import replace

import pytest

from forked import begin_program
from personaspace.catalog import Role, load_catalog
from personaspace.errors import JudgeError, RunMismatch, UsageError
from personaspace.judges import Item, OpenAIJudge, make_judge, read_options, score_all
from personaspace.judges.endpoint import answer_of, retry_after
from personaspace.mapping.mapper import Mapper
from personaspace.mapping.options import MapOptions
from personaspace.runs import Run
from test_cli import run as command
from wild import answering, bomb, completion, content, drip, hang, in_turn, raw, status

GHOST = Role(role="ghost", description="A ghost.", instructions=("Be a ghost.",))
THINKS = "<think>\nOkay, there are 2 things to"


def items(n: int, role: Role = GHOST) -> list[Item]:
    return [Item(role, "Who are you?", f"Boo {k}.") for k in range(n)]


def scored(says, n: int = 1, **options):
    """What a judge makes of an endpoint that answers so, and the requests."""
    with answering(says) as (url, kind):
        judge = OpenAIJudge("m", url, **{"tries": 1, "timeout": 5, **options})
        return list(judge.score(items(n))), kind.asked


# -- what is asked -----------------------------------------------------------------------------------------------------


def test_json_is_asked_for_and_the_reason_comes_with_the_score():
    (score,), (request,) = scored(content('{"score": 2, "reason": "It says that it is an AI."}'))
    assert (score.score, score.reason) == (2, "It says that it is an AI.")
    assert '{"score": …, "reason": "one short sentence"}' in request["messages"][0]["content"]
    assert "number alone" not in request["messages"][0]["content"]


def test_a_roles_own_rubric_is_asked_as_it_stands():
    text = "Is {answer} a ghost's answer to {question}? Respond only with the number 0, 1, 2 or 3."
    role = GHOST.model_copy(update={"eval_prompt": text})
    with answering(content("3")) as (url, kind):
        (score,) = OpenAIJudge("m", url).score([Item(role, "{answer}?", "Boo.")])
    assert score.score == 3
    expected = "Is Boo. a ghost's answer to {answer}?? Respond only with the number 0, 1, 2 or 3."
    assert kind.asked[0]["messages"][0]["content"] == expected


def test_a_roles_own_rubric_that_asks_for_no_number_is_asked_for_one():
    role = GHOST.model_copy(update={"eval_prompt": "Does this sound like a ghost? {answer}"})
    with answering(content("2")) as (url, kind):
        (score,) = OpenAIJudge("m", url).score([Item(role, "?", "Boo.")])
    assert score.score == 2
    assert '"score"' in kind.asked[0]["messages"][0]["content"]


def test_thoughts_are_tried_again_with_more_room_and_that_is_remembered():
    says = in_turn(THINKS, '<think>hm</think>{"score": 1}')
    scores, asked = scored(says, 3, concurrency=1)
    assert [s.score for s in scores] == [1, 1, 1]
    assert [a["max_tokens"] for a in asked] == [512, 4096, 4096, 4096]


def test_thoughts_that_never_end_are_unscored_and_say_what_to_do():
    (score,), asked = scored(content(THINKS, finish_reason="length"))
    assert score.score is None
    assert "--judge-option max_tokens" in score.problem
    assert len(asked) == 2


def test_thoughts_that_stand_apart_and_leave_nothing_to_say_are_tried_with_more_room():
    silent = lambda handler, _: handler.send(completion(None, "length", reasoning_content="There are 2"))  # noqa: E731
    (score,), asked = scored(in_turn(silent, "3"))
    assert score.score == 3
    assert len(asked) == 2


def fussy(handler, body):
    """As today's reasoning models have it."""
    if "max_tokens" in body:
        message = (
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        )
        return status(400, message)(handler, body)
    if body.get("temperature", 1) != 1:
        message = (
            "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) is supported."
        )
        return status(400, message)(handler, body)
    return handler.send(completion("3"))


def test_what_an_endpoint_refuses_is_left_out_from_then_on():
    scores, asked = scored(fussy, 20)
    assert [s.score for s in scores] == [3] * 20
    assert len(asked) == 22  # each refusal once, though eight are asked at a time
    assert "max_completion_tokens" in asked[-1]
    assert "temperature" not in asked[-1]


def test_an_endpoint_that_takes_neither_name_is_asked_without_a_limit():
    def says(handler, body):
        named = {"max_tokens", "max_completion_tokens"} & set(body)
        (status(422, f"extra fields not permitted: {named}") if named else content("2"))(handler, body)

    (score,), _ = scored(says)
    assert score.score == 2


def test_options_stand_over_ours_and_null_leaves_one_out():
    options = read_options(["temperature=1", "max_tokens=null", "reasoning_effort=low", 'more={"a": [1]}'])
    _, (request,) = scored(content("3"), options=options)
    del request["messages"]
    assert request == {"model": "m", "temperature": 1, "reasoning_effort": "low", "more": {"a": [1]}}


@pytest.mark.parametrize("text", ["temperature", "=1", "model=x", "stream=true"])
def test_an_option_that_makes_no_sense_is_refused(text):
    with pytest.raises(UsageError, match="--judge-option"):
        read_options([text])


def test_a_map_names_a_wrong_option_before_a_model_is_loaded(tmp_path):
    wrong = ("--judge", "openai", "--judge-url", "http://127.0.0.1:1/v1", "--judge-option", "temperature")
    assert "NAME=VALUE" in command("map", "no/such-model", "--out", tmp_path / "run", *wrong, expect=2).stderr


def test_another_way_of_asking_is_another_judge_and_more_room_is_not():
    names = [
        OpenAIJudge("m", "http://x/v1", options=o).name for o in (None, {"max_tokens": 9}, {"seed": 1}, {"seed": 2})
    ]
    assert names[0] == names[1]
    assert len(set(names)) == 3


@pytest.mark.parametrize("limit", [{"max_tokens": 4096}, {"max_completion_tokens": 4096}, {"max_tokens": None}])
def test_an_option_that_gives_more_room_gives_more_time_too(limit):
    def slowly(handler, _):
        time.sleep(0.8)
        handler.send(completion("3"))

    (score,), asked = scored(slowly, options=limit, timeout=0.5)
    assert (score.score, len(asked)) == (3, 1)
    (score,), _ = scored(slowly, options={"max_tokens": 9}, timeout=0.5)
    assert "no whole answer within 0.5 s" in score.problem


def test_a_limit_that_an_option_sets_is_not_asked_for_again_where_it_does_not_fit():
    (score,), asked = scored(status(400, "maximum context length exceeded"), options={"max_tokens": 4096})
    assert score.score is None
    assert len(asked) == 1


def test_an_address_by_the_clients_variable_is_in_the_name(monkeypatch):
    names = [OpenAIJudge("m", url).name for url in ("http://x/v1", "http://y/v1")]
    for url in ("http://x/v1", "http://y/v1"):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        names.append(OpenAIJudge("m").name)
    assert names[:2] == names[2:]
    assert len(set(names)) == 2


def test_each_endpoint_has_the_key_that_its_variable_holds(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "ours")
    monkeypatch.setenv("OTHER_KEY", "theirs\n")
    with answering(content("3")) as (url, kind):
        for key_env in (None, "OTHER_KEY"):
            list(OpenAIJudge("m", url, key_env=key_env).score(items(1)))
        assert kind.keys == ["Bearer ours", "Bearer theirs"]
    with pytest.raises(UsageError, match="NO_SUCH_KEY is not set"):
        OpenAIJudge("m", url, key_env="NO_SUCH_KEY")
    with pytest.raises(UsageError, match="no address"):
        make_judge("openai", url="localhost:8000")


# -- what comes back ---------------------------------------------------------------------------------------------------

WRONG = {
    "null": content(None),
    "a number": content(3),
    "a list": content([{"type": "text", "text": "3"}]),
    "an object": content({"score": 3}),
    "no message": raw(b'{"choices": [{"index": 0}]}'),
    "no choices": raw(b'{"choices": []}'),
    "choices are a number": raw(b'{"choices": 3}'),
    "a choice is a number": raw(b'{"choices": [3]}'),
    "body null": raw(b"null"),
    "body a number": raw(b"3"),
    "body a list": raw(b"[3]"),
    "nothing": raw(b""),
    "a page": raw(b"<html>3</html>", Content_Type="text/html"),
    "no UTF-8": raw(completion("\u00e9 3").replace(b"\\u00e9", b"\xe9")),
    "too deep": raw(b"[" * 500_000),
    "a bomb": raw(bomb(200), Content_Encoding="gzip"),
    "a bomb as an error": raw(bomb(200), 500, Content_Encoding="gzip"),
    "packed unasked": raw(b"3", Content_Encoding="br"),
    "no gzip": raw(b"3", Content_Encoding="gzip"),
    "too much": raw(b" " * (5 * 2**20)),
    "an error that is no text": raw(b"\xff\xfe", 401),
    "nowhere": raw(b"", 302, Location="http://127.0.0.1:1/"),
}


@pytest.mark.parametrize("says", WRONG.values(), ids=WRONG)
def test_an_answer_that_is_none_is_unscored_in_one_line(says):
    (score, _), _ = scored(says, 2)
    assert score.score is None
    assert score.problem.isprintable()
    assert 0 < len(score.problem) < 300


def test_an_answer_that_is_packed_is_read():
    (score,), _ = scored(raw(gzip.compress(completion("2")), Content_Encoding="gzip"))
    assert score.score == 2


@pytest.mark.parametrize("says", [drip, hang], ids=["a byte now and then", "nothing"])
def test_an_answer_that_never_ends_is_waited_for_within_a_limit(says):
    (score,), asked = scored(says, timeout=0.5)
    assert "no whole answer within 0.5 s" in score.problem
    assert len(asked) == 2


def test_a_half_character_is_no_text_for_a_file():
    answer = answer_of(b'{"choices": [{"message": {"content": "{\\"score\\": 3, \\"reason\\": \\"\\ud800\\"}"}}]}')
    assert answer.text is not None
    (score,), _ = scored(
        raw(b'{"choices": [{"message": {"content": "{\\"score\\": 3, \\"reason\\": \\"a\\ud800\\"}"}}]}')
    )
    assert score.reason.encode() == b"a"


# -- waiting and being stopped -----------------------------------------------------------------------------------------


def test_a_wait_within_the_limit_is_waited_and_a_longer_one_named():
    (score,), asked = scored(in_turn(status(429, Retry_After="1"), "3"))
    assert (score.score, len(asked)) == (3, 2)
    (score,), asked = scored(status(429, Retry_After="3600"))
    assert "3,600 s (Retry-After)" in score.problem
    assert len(asked) == 1


def test_retry_after_is_seconds_or_a_date():
    date = {"retry-after": "Wed, 21 Oct 2015 07:28:10 GMT"}
    assert retry_after(date, now=1445412480.0) == 10
    values = {"2": 2.0, "-3": 0.0, "soon": None, "": None, "nan": None}
    assert {text: retry_after({"retry-after": text}) for text in values} == values
    assert retry_after({"retry-after-ms": "1500"}) == 1.5


def test_scores_come_as_they_are_there_and_in_order_where_that_is_asked_for():
    others = [threading.Event(), threading.Event(), threading.Event()]

    def says(handler, body):
        text = body["messages"][0]["content"]
        if "Boo 1." in text:
            assert all(other.wait(30) for other in others)
            content("1")(handler, body)
            return
        content("3")(handler, body)
        others[{"0": 0, "2": 1, "3": 2}[text.split("Boo ")[1][0]]].set()

    with answering(says) as (url, _):
        judge = OpenAIJudge("m", url)
        places = [place for place, _ in score_all(judge, items(4))]
        assert sorted(places) == [0, 1, 2, 3]
        assert places.index(1) > 0
        assert [s.score for s in judge.score(items(4))] == [3, 1, 3, 3]


def test_an_error_of_our_own_in_a_job_is_raised_where_the_scores_are_waited_for():
    with answering(content("3")) as (url, _):
        judge = OpenAIJudge("m", url)
        with pytest.raises(AttributeError):
            list(judge.score([None]))


def test_an_endpoint_that_breaks_down_on_the_way_is_asked_no_more():
    says = in_turn(*["3"] * 5, status(401))
    with answering(says) as (url, kind):
        scores = []
        with pytest.raises(JudgeError, match="none of 16 in a row"):
            scores.extend(score_all(OpenAIJudge("m", url), items(500)))
    assert sum(s.score is not None for _, s in scores) == 5
    assert len(kind.asked) < 60


@pytest.fixture
def mapping(tiny, small_catalog, tmp_path):
    """From a judge to a map of twelve replies, each judged."""

    def map_(judge, catalog=None, **options):
        chosen = catalog or load_catalog(small_catalog)
        design = {"design": {"per_role": 2, "default_responses": 12}, "sampling": {"max_new_tokens": 4}}
        return Mapper(tiny, chosen, tmp_path, MapOptions(read="reply", **design, **options)).map(judge)

    return map_


def test_what_was_scored_is_kept_with_its_reason_when_one_answer_is_a_page(mapping, tmp_path):
    says = in_turn(*['{"score": 3, "reason": "boo"}'] * 9, raw(b"<html>"), content("3"))
    with answering(says) as (url, _):
        judge = OpenAIJudge("m", url, concurrency=1)
        with pytest.raises(JudgeError, match="1 of 12 responses could not be scored"):
            mapping(judge)
        kept = Run(tmp_path).scores_of(judge.name)
        assert len(kept) == 11
        assert next(iter(kept.values())).reason in ("boo", "")
        assert sum(s.reason == "boo" for s in kept.values()) == 9


@pytest.mark.long
def test_ctrl_c_stops_what_is_under_way_and_keeps_what_was_scored(tiny_folder, small_catalog, tmp_path):
    def says(handler, body):
        (content("3") if len(type(handler).asked) <= 5 else hang)(handler, body)

    log = tmp_path / "log"
    options = ["--catalog", str(small_catalog), "--read", "reply", "--per-role", "2", "--max-new-tokens", "4"]
    with answering(says) as (url, kind):
        judge = ["--judge", "openai", "--judge-model", "m", "--judge-url", url]
        process = begin_program(log, "map", tiny_folder, "--out", tmp_path / "run", *options, *judge)
        while len(kind.asked) < 12:
            assert process.is_alive(), log.read_text()
            time.sleep(0.05)
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGINT)
        process.join(30)  # the endpoint would have been waited for for minutes
    assert process.exitcode == 130
    assert "Traceback" not in log.read_text()
    (name,) = [p.stem for p in (tmp_path / "run" / "scores").glob("*.parquet")]
    assert len(Run(tmp_path / "run").scores_of(name)) == 5


# -- a score is known by judge and rubric ------------------------------------------------------------------------------


def with_rubric(catalog, text: str):
    """The catalogue with another rubric for its first role."""
    first, *others = catalog.roles
    return replace(catalog, roles=(first.model_copy(update={"eval_prompt": text}), *others))


def test_replies_of_a_role_whose_rubric_changed_are_judged_anew(mapping, small_catalog):
    catalog = load_catalog(small_catalog)
    with answering(content("3")) as (url, kind):
        for text in ("Is {answer} ghostly? Give a number.", "Is {answer} dead? Give a number."):
            kind.asked.clear()
            mapping(OpenAIJudge("m", url), with_rubric(catalog, text))
            ghostly = [a for a in kind.asked if text[-20:] in a["messages"][0]["content"]]
            assert len(ghostly) == 2
        assert len(kind.asked) == 2  # and nobody else's
        kind.asked.clear()
        mapping(OpenAIJudge("m", url), with_rubric(catalog, text))
        assert not kind.asked


def test_scores_of_an_earlier_version_go_on_where_the_rubric_is_the_packages(mapping, small_catalog, tmp_path):
    with answering(content("3")) as (url, kind):
        judge = OpenAIJudge("m", url)
        mapping(judge)
        run = Run(tmp_path)
        run.keep_scores(judge.name, {key: (s.score, s.expected) for key, s in run.scores_of(judge.name).items()})
        kind.asked.clear()
        mapping(judge)
        assert not kind.asked
        mapping(judge, with_rubric(load_catalog(small_catalog), "Is {answer} ghostly? Give a number."))
        assert len(kind.asked) == 2


def test_sums_that_were_made_by_another_rubric_are_not_gone_on_with(mapping, small_catalog):
    with answering(content("3")) as (url, _):
        judge = OpenAIJudge("m", url)
        mapping(judge, keep="sums")
        changed = with_rubric(load_catalog(small_catalog), "Is {answer} ghostly? Give a number.")
        with pytest.raises(RunMismatch, match="another rubric of 1 roles"):
            mapping(judge, changed, keep="sums")


def test_a_file_of_scores_holds_reason_and_rubric(mapping, tmp_path):
    import pyarrow.parquet as pq

    with answering(content(json.dumps({"score": 3, "reason": "because"}))) as (url, _):
        judge = OpenAIJudge("m", url)
        mapping(judge)
    rows = pq.read_table(tmp_path / "scores" / f"{judge.name}.parquet").to_pylist()
    assert {row["reason"] for row in rows} == {"because"}
    assert all(len(row["rubric"]) == 16 for row in rows)
