"""Judges: rules on sentences, a local model's probabilities, and an endpoint that answers, refuses and talks nonsense."""

from __future__ import annotations

import pytest
import torch

from endpoint import Endpoint
from personaspace.catalog import Role, load_catalog
from personaspace.errors import JudgeError
from personaspace.judges import Item, LocalJudge, OpenAIJudge, RulesJudge, make_judge, score_all
from personaspace.mapping.mapper import Mapper
from personaspace.mapping.options import MapOptions
from personaspace.runs import Run
from test_thinking import ALWAYS, thinking_engine

GHOST = Role(role="ghost", description="A ghost.", instructions=("Be a ghost.",))
ROBOT = Role(role="robot", description="A robot.", ai=True, instructions=("Be a robot.",))


def item(reply: str, role: Role = GHOST) -> Item:
    return Item(role, "Who are you?", reply)


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("I drift through these halls, cold and forgotten.", 3),
        ("The painting was made by an AI, they say; I only haunt it.", 3),
        ("I was created by grief.", 3),
        ("As an AI language model, I would say that death is the end of life.", 1),
        ("I'm an artificial intelligence and I find hills pleasant.", 1),
        ("I don't have personal feelings, but hills are nice.", 1),
        ("I'm SmolLM, and I can help.", 1),
        ("I'm sorry, but I can't pretend to be a ghost.", 0),
        ("I cannot help with that.", 0),
    ],
)
def test_rules_find_refusals_and_replies_that_speak_as_an_ai(reply, score):
    (found,) = RulesJudge().score([item(reply)])
    assert found.score == score


def test_rules_let_a_role_that_is_an_ai_speak_as_one():
    (found,) = RulesJudge().score([item("I am an artificial intelligence of steel.", ROBOT)])
    assert found.score == 3


def test_the_local_judge_keeps_most_probable_and_expected_score(tiny):
    items = [item(f"{text} number {k}.") for k in range(4) for text in ("Boo", "I can help you with thing")]
    judge = LocalJudge(tiny)
    scores = list(judge.score(items))
    for asked, score in zip(items, scores, strict=True):
        ids = tiny.chat.prompt_ids([{"role": "user", "content": judge.rubric.text(asked)}])
        with torch.inference_mode():
            logits = tiny.model(torch.tensor([ids])).logits[0, -1]
        probabilities = logits[[tiny.tokenizer.convert_tokens_to_ids(digit) for digit in "0123"]].softmax(-1).tolist()
        assert score.score == max(range(4), key=lambda k: probabilities[k])
        assert score.expected == pytest.approx(sum(k * p for k, p in enumerate(probabilities)), abs=1e-4)
    assert len({score.expected for score in scores}) == len(items), "no constant would pass"


def test_the_local_judge_scores_alike_on_an_engine_that_thinks_and_on_one_that_does_not():
    items = [item("Boo."), item("I can help you with that.")]
    quiet, thinks = (list(LocalJudge(thinking_engine(thinking=t, id="tiny")).score(items)) for t in (False, True))
    assert thinks == quiet
    assert None not in {score.score for score in quiet}


def test_a_model_that_always_thinks_is_no_local_judge():
    with pytest.raises(JudgeError, match="tiny thinks before every answer"):
        LocalJudge(thinking_engine(ALWAYS, id="tiny"))


def test_numbers_that_are_not_finite_are_unscored():
    engine = thinking_engine(id="tiny")
    judge = LocalJudge(engine)
    engine.model.lm_head.register_forward_hook(lambda _, __, logits: logits * float("nan"))
    (score,) = judge.score([item("Boo.")])
    assert (score.score, score.expected) == (None, None)
    assert "not finite" in score.problem


def test_an_endpoint_is_asked_again_on_429_and_5xx(endpoint):
    Endpoint.plan = ["429", "503", "2"]
    (found,) = OpenAIJudge("m", endpoint).score([item("Boo.")])
    assert found.score == 2
    assert len(Endpoint.asked) == 3
    assert "Boo." in Endpoint.asked[0]


def test_nonsense_is_named_and_not_taken_for_a_score(endpoint):
    Endpoint.plan = ["17", "I would rather not."]
    found = list(OpenAIJudge("m", endpoint, concurrency=1).score([item("a"), item("b")]))
    assert [f.score for f in found] == [None, None]
    assert "I would rather not" in found[1].problem


def test_an_endpoint_that_refuses_everything_stops_the_judging_in_one_line(endpoint):
    Endpoint.plan = ["401"] * 9
    with pytest.raises(JudgeError, match=r"could score none of the first 3 .*AuthenticationError"):
        list(score_all(OpenAIJudge("m", endpoint), [item(c) for c in "abc"]))


def test_what_could_not_be_scored_is_tried_again_by_the_next_call(endpoint, tmp_path, tiny, small_catalog):
    judge = OpenAIJudge("m", endpoint, concurrency=1)
    Endpoint.plan = ["3", "what?", *["3"] * 10]
    options = MapOptions(read="reply", design={"per_role": 2, "default_responses": 12}, sampling={"max_new_tokens": 4})
    mapper = Mapper(tiny, load_catalog(small_catalog), tmp_path, options)
    with pytest.raises(JudgeError, match="1 of 12 responses could not be scored"):
        mapper.map(judge)
    assert len(Run(tmp_path).scores_of(judge.name)) == 11
    mapper.map(judge)
    assert len(Endpoint.asked) == 13


def test_a_score_may_end_a_sentence(endpoint):
    Endpoint.plan = ["3.", "The score is 2.", "about 2.3", "Score: 12"]
    found = list(OpenAIJudge("m", endpoint, concurrency=1).score([item(c) for c in "abcd"]))
    assert [f.score for f in found] == [3, 2, None, None]


def test_scores_of_one_judging_model_are_never_taken_for_anothers(endpoint, tiny):
    names = {OpenAIJudge(m, url).name for m in ("a/b", "a/c") for url in (endpoint, "http://elsewhere/v1")}
    assert len(names) == 4
    assert all("/" not in name for name in names)
    assert LocalJudge(tiny).name.endswith(tiny.info.fingerprint[:8])


def test_an_endpoint_without_key_or_address_is_refused(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(JudgeError, match="OPENAI_API_KEY"):
        make_judge("openai")
