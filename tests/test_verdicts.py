"""What is read from a judge model's answer: its verdict, or nothing; never a number that stands there for something else."""

from __future__ import annotations

import pytest

from personaspace.engines.thoughts import THOUGHT_MARKERS
from personaspace.judges.verdicts import read_verdict

JSON = '{"score": 2, "reason": "It says that it is an AI."}'


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        (JSON, 2),
        (f"```json\n{JSON}\n```", 2),
        (f"Here you go:\n{JSON}", 2),
        (f"{JSON}\nI hope that this helps with all 3 of them.", 2),
        ('{"score": "3"}', 3),
        ('{"score": 3.0}', 3),
        ('{"Score": 1, "reason": 3}', 1),
        ('{"score": 1, "reason": "It writes <think> in the open."}', 1),
        ('Such as {"score": 0, "reason": "…"}.\n{"score": 3, "reason": "a ghost"}', 3),
        ("On a scale of 0 to 3, I give 3", 3),
        ("On a scale from 0–3: 2", 2),
        ("3", 3),
        ("3.", 3),
        ("**3**", 3),
        ("[3]", 3),
        ("2/3", 2),
        ("\\boxed{3}", 3),
        ("Score: 2", 2),
        ("**Score: 2/3**", 2),
        ("Score (0-3): 2", 2),
        ("Score: 2 - because it says that it is an AI", 2),
        ("Reason: there are 2 issues.\nScore: 3", 3),
        ("The score is 2.", 2),
        ("I'd give it a 2.", 2),
        ("It stays in role throughout. I would rate this a 3 out of 3.", 3),
        ("3\n\nThe reply is a ghost's through and through, in 2 sentences.", 3),
        ("3 - is fully the role and does not speak as an AI", 3),
        ("Score: 0 - refuses\nScore: 1 - answers\nScore: 3", 3),
    ],
)
def test_a_verdict_is_read_from_json_or_from_a_line_that_is_one(answer, score):
    assert read_verdict(answer, 3).score == score


@pytest.mark.parametrize(
    "answer",
    [
        "", "   ", "I would rather not.", "Three", "about 2.3", "17", "Score: 12", "Score: -1", "3/10", "0-3", "1\n2\n3",
        "There are 2 things to consider", "I say there are 2", "This is reason 2.", "I give 2 reasons", "I can't give a 3",
        "I give it 2, not 3", "Score: 2 or 3", "Score: 2-3", "Score: 2 to 3", "Between 2 and 3, I'd say 2",
        "If it refused I'd give 0.", "1. First, I look at the role.\nThen at the rest", "Okay, so the user wants 3",
        "0 - refuses\n1 - answers\n2 - says\n3 - is fully", '{"score": 7}', '{"score": 2.5}', '{"score": true}',
        '{"score": null}', '{"score": [3]}', '{"score": 1}\n{"score": 3} which of them?', "Score: 1\nScore: 2\nthe end",
    ],
)  # fmt: skip
def test_a_number_that_is_no_verdict_is_none(answer):
    verdict = read_verdict(answer, 3)
    assert verdict.score is None
    assert verdict.problem
    assert "\n" not in verdict.problem


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("<think>Maybe 2. Score: 2</think>\n3", 3),
        ("so it may be a 2\n</think>\n\nScore: 1", 1),
        ('<think>{"score": 0}</think>{"score": 2}', 2),
        ("<think>a</think><think>Score: 0</think>Score: 1", 1),
        ("[THINK]2[/THINK]3", 3),
        ("<reasoning>2</reasoning>3", 3),
        ("<|channel|>analysis<|message|>2?<|end|><|start|>assistant<|channel|>final<|message|>3<|return|>", 3),
    ],
)
def test_thoughts_are_never_read_as_the_verdict(answer, score):
    assert read_verdict(answer, 3).score == score


@pytest.mark.parametrize("markers", THOUGHT_MARKERS, ids=lambda m: m.opening)
def test_a_verdict_is_read_outside_of_every_familys_thoughts(markers):
    assert read_verdict(f"{markers.opening}Score: 0{markers.closing}Score: 2", 3).score == 2
    assert read_verdict(f"{markers.opening}Score: 0", 3).cut


@pytest.mark.parametrize(
    "answer",
    [
        "<think>\nOkay, there are 2 things to",
        "Score: 3\n<think>hm",
        "<|channel|>analysis<|message|>Score: 2",
        "<THINK>Score: 3",
    ],
)
def test_thoughts_without_an_end_ask_for_more_room(answer):
    verdict = read_verdict(answer, 3)
    assert verdict.score is None
    assert verdict.cut


def test_what_was_cut_after_a_whole_score_counts_and_what_was_cut_before_does_not():
    assert read_verdict('{"score": 3, "reason": "The rep', 3, cut=True).score == 3
    assert read_verdict('{"score": 3', 3, cut=True).score is None  # 3, or the beginning of another
    assert read_verdict("At first sight I would give it a 3", 3, cut=True).cut


def test_the_reason_is_kept_in_one_line_that_any_file_bears():
    assert read_verdict(JSON, 3).reason == "It says that it is an AI."
    reason = read_verdict('{"score": 3, "reason": "a\\n\\u001b[31mb\\ud800' + "x" * 9999 + '"}', 3).reason
    assert reason.startswith("a [31mb")
    assert len(reason.encode()) <= 500


@pytest.mark.parametrize("answer", ["{" * 100_000, "[" * 300_000, "<think></think>" * 20_000 + "3", '{"a":' * 60_000])
def test_an_answer_made_to_be_slow_is_read_all_the_same(answer):
    assert read_verdict(answer, 3).score in (None, 3)  # in steps that grow with its length, not with its square
