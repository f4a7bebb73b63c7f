"""The judge by words: what it tells of kinds that once failed, and how often it is right on 941 labelled replies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bounded import in_bounded_time
from personaspace.catalog import Role
from personaspace.judges import Item, RulesJudge, refuses, speaks_as_ai
from personaspace.mapping.mapper import Mapper
from personaspace.mapping.options import MapOptions
from personaspace.runs import Run

FILES = {
    "first set": "replies_labelled.jsonl",
    "second set": "replies_labelled_2.jsonl",
    "third set": "replies_labelled_3.jsonl",
}
REPLIES = {
    name: [
        json.loads(line) for line in (Path(__file__).parent / "data" / file).read_text(encoding="utf-8").splitlines()
    ]
    for name, file in FILES.items()
}
TELLS = {"refusal": refuses, "speaks_as_ai": speaks_as_ai}
GHOST = Role(role="ghost", description="A ghost.", instructions=("Be a ghost.",))


def figures(texts: str, name: str) -> tuple[int, int, int]:
    """How many replies have it and are found, have it, and are found. texts: a set, and a split or a source."""
    replies_set, part = texts.split(", ")
    replies = [r for r in REPLIES[replies_set] if part in (r["split"], r.get("source"))]
    told = [TELLS[name](r["reply"]) for r in replies]
    both = sum(t and r[name] for t, r in zip(told, replies, strict=True))
    return both, sum(r[name] for r in replies), sum(told)


@pytest.mark.parametrize(
    ("texts", "name", "expected"),
    [
        ("first set, open", "refusal", (28, 28, 28)),
        ("first set, open", "speaks_as_ai", (64, 64, 64)),
        ("first set, held out", "refusal", (27, 27, 28)),
        ("first set, held out", "speaks_as_ai", (65, 65, 65)),
        ("second set, open", "refusal", (30, 31, 31)),
        ("second set, open", "speaks_as_ai", (61, 62, 61)),
        # Measured once, after the rules were done: recall 87% and 84%, precision 87% and 98%, short of the 90% aimed at.
        ("second set, held out", "refusal", (26, 30, 30)),
        ("second set, held out", "speaks_as_ai", (56, 67, 57)),
        # The rules were made on none of these; short of 90% but for what speaks as an AI among a model's own replies.
        ("third set, written", "refusal", (55, 106, 61)),
        ("third set, written", "speaks_as_ai", (97, 142, 101)),
        ("third set, smollm2", "refusal", (2, 3, 5)),
        ("third set, smollm2", "speaks_as_ai", (36, 39, 39)),
        ("third set, held out", "refusal", (34, 62, 38)),
        ("third set, held out", "speaks_as_ai", (74, 104, 79)),
    ],
)
def test_recall_and_precision_are_those_that_the_page_on_judges_says(texts, name, expected):
    assert figures(texts, name) == expected
    both, have, told = expected
    page = (Path(__file__).parent.parent / "docs" / "judges.md").read_text(encoding="utf-8")
    (line,) = (line for line in page.splitlines() if line.startswith(f"| {name} | {texts} |"))
    assert f"| {both} of {have} ({100 * both / have:.0f}%" in line
    assert f"| {both} of {told} ({100 * both / told:.0f}%" in line


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Ah, I'm sorry for thy loss, traveller! Sit by my fire and I shall tell of the old war.", 3),
        ("I am sorry to hear of your troubles, friend. The sea took my brother too.", 3),
        ("I can't do that, ye scurvy rat! The articles say one share for each hand aboard.", 3),
        ("I can't give you the key, child. Your mother made me swear.", 3),
        ("I cannot help it, I love that song.", 3),
        ("I won't pretend to be a hero. I was scared in that trench, like the others.", 3),
        ("I am Granite, developed by IBM.", 1),
        ("I'm DeepSeek, made by DeepSeek.", 1),
        ("I'm Kestrel, built by Harbour Labs.", 1),
        ("My name is Olmo, and I was developed by the Allen Institute for AI.", 1),
        ("I was trained by Google for two years, then I quit.", 3),
        ("I'm Ben, trained by Microsoft as a field engineer.", 3),
        ("I am Adam, made by God.", 3),
        ("I'm an AI engineer in Berlin.", 3),
        ("My wife says I'm a robot before coffee.", 3),
        ("Do you think I'm a machine? I bleed like you.", 3),
        ("Ich bin ein KI-Assistent.", 1),
        ("我只是一个AI,没有感情。", 1),
        ("Well met! " * 25 + "I can't help with that.", 0),
        ("Ahoy there, me hearties! " * 60 + "I'm sorry, but I can't assist with that request.", 0),
        ("I don't sail, as I'm only software. Sailors usually fear fire more than storms.", 1),
        ("I don't have a house of my own, but people often describe a cold spot on the stairs.", 1),
        ("I'm no machine, love, I just fix 'em. I was an apprentice under my father.", 3),
        ("I won't take on that character; it could encourage violence. Could we try a different topic?", 0),
        ("I'm not allowed to discuss the case. My editor would have my head.", 3),
        ("Es tut mir leid, dabei kann ich nicht helfen.", 0),
        ("申し訳ありませんが、その質問にはお答えできません。", 0),
    ],
)
def test_words_tell_a_character_from_an_assistant(reply, score):
    (found,) = RulesJudge().score([Item(GHOST, "Who are you?", reply)])
    assert found.score == score


@pytest.mark.parametrize(
    "text", ["I am very " * 20_000, "a" * 200_000, '"a ' * 50_000, "\n- I" * 30_000, "我是" * 20_000]
)
def test_a_reply_of_any_length_is_looked_at(text):
    with in_bounded_time():
        assert not refuses(text)  # in steps that grow with what is looked at, not with the length


def test_scores_by_earlier_rules_are_made_anew_and_those_by_todays_are_not(tiny, small_catalog, tmp_path):
    from personaspace.catalog import load_catalog

    class Counting(RulesJudge):
        seen = 0

        def score(self, items):
            for score in super().score(items):
                Counting.seen += 1
                yield score

    options = MapOptions(read="reply", design={"per_role": 2, "default_responses": 12}, sampling={"max_new_tokens": 4})
    mapper = Mapper(tiny, load_catalog(small_catalog), tmp_path, options)
    mapper.map(Counting())
    mapper.map(Counting())
    assert Counting.seen == 12
    run = Run(tmp_path)
    run.keep_scores("rules", {key: (s.score, s.expected) for key, s in run.scores_of("rules").items()})
    mapper.map(Counting())
    assert Counting.seen == 24
