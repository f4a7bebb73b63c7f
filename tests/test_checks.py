"""Checks of replies by program: what they let pass, and what they read out of talk."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personaspace.experiments import data
from personaspace.experiments.kit.checks import number, objects, passes, sentences, words

PASSES = [
    ({"kind": "contains", "all": ["milk", "cat"]}, "The CAT drank its Milk.", "The cat drank."),
    ({"kind": "excludes", "any": ["snow"]}, "It was cold.", "A Snowman stood there."),
    ({"kind": "starts", "with": "Dear Aunt"}, '"dear aunt Ann, …"', "My dear aunt"),
    ({"kind": "ends", "with": "The end."}, '"So it was. The END."', "The end. Or not."),
    ({"kind": "words", "max": 5}, "I like the well-kept autumn", "I do like the late autumn"),
    ({"kind": "sentences", "min": 2, "max": 2}, "It rains. We stay in!", "It rains."),
    ({"kind": "lower"}, "red, green and blue.", "Red"),
    ({"kind": "upper"}, "MIND THE WET FLOOR!", "MIND the floor"),
    ({"kind": "lines", "min": 3, "max": 3}, "plum\n\npear\napple\n", "plum, pear, apple"),
    ({"kind": "bullets", "min": 2, "max": 2}, "Well:\n- drink\n* sleep", "1. drink\n2. sleep"),
    ({"kind": "json", "keys": ["city"]}, 'Sure!\n```json\n{"city": "Oslo"}\n```', '{"town": "Oslo"}'),
    ({"kind": "number", "equals": 7}, "There are 7 days in it.", "There are seven."),
]


@pytest.mark.parametrize(("check", "right", "wrong"), PASSES, ids=[c["kind"] for c, _, _ in PASSES])
def test_each_kind_tells_right_from_wrong(check, right, wrong):
    assert passes(check, right)
    assert not passes(check, wrong)


def test_every_check_of_the_tasks_is_of_a_kind_that_there_is():
    rows = data.lines("tasks.jsonl")
    assert {r["check"]["kind"] for r in rows} == {c["kind"] for c, _, _ in PASSES}
    for row in rows:
        assert passes(row["check"], "A reply, of 1 sentence.") in (True, False)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("7", 7),
        ("**7 days.**", 7),
        ("7.\n\nA week has 7 days, a year has 365.", 7),
        ("3 + 4 = 7. That is a sum of 2 numbers", 7),
        ("The answer to 3 + 4 is 7.", 7),
        ("Tom has 46 + 28 = 74 apples.\n#### 74\nThe answer is **74**.", 74),
        ("It costs $1,234.50.", 1234.5),
        ("10-5", 5),
        ("−5", -5),
        ("x=-5", -5),
        ("1, 2, 3", 3),
        ("a1b2", None),
        ("none at all", None),
        ("", None),
    ],
)
def test_a_number_is_read_out_of_a_reply(reply, expected):
    assert number(reply) == expected


@given(
    st.integers(-(10**9), 10**9), st.sampled_from(["{}", "{}.", "The answer is {}.", "12 x 3 = {}", "So:\n\n**{}**"])
)
def test_a_whole_number_is_read_in_any_setting_with_or_without_commas(n, setting):
    assert number(setting.format(n)) == number(setting.format(f"{n:,}")) == n


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
TALK = st.text(alphabet=st.characters(exclude_characters="{}", codec="utf-8"), max_size=20)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(min_size=1), JSON, min_size=1), TALK, TALK, st.sampled_from([None, 1]))
def test_json_is_found_wherever_it_stands(value, before, after, indent):
    reply = f"{before}{{ {json.dumps(value, indent=indent)}{after}"
    assert objects(reply) == [value]
    assert passes({"kind": "json", "keys": list(value)}, reply)
    assert not passes({"kind": "json", "keys": [*value, "".join(value) + "?"]}, reply)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ("One, without a stop", 1),
        ("Hi there. How are you? Fine!", 3),
        ('He said "no." Then he left.', 2),
        ("Dr. Smith saw e.g. 3.5 kg of it.", 1),
        ("So do I. You?", 2),
        ("Well... maybe so … or not.", 1),
        ("Arr... Yes.", 2),
        ("Here is how:\n1. Mix it.\n2. Bake it", 3),
        ("i like it. it is good.", 2),
        ("!!! ... ?", 0),
    ],
)
def test_sentences_are_counted_as_a_reader_would(text, expected):
    assert sentences(text) == expected


@given(
    st.lists(st.from_regex(r"[A-Z][a-z]{1,6}(?: [a-z]{2,6}){1,4}", fullmatch=True), min_size=1, max_size=6),
    st.sampled_from([".", "!", "?"]),
)
def test_as_many_sentences_as_were_put_together(parts, mark):
    assert sentences(" ".join(p + mark for p in parts)) == len(parts)
    assert words(" ".join(p + mark for p in parts)) == sum(len(p.split()) for p in parts)
