"""Conversations from files, whoever wrote them."""

from __future__ import annotations

import json

import pytest

from personaspace.errors import UsageError
from personaspace.formats.transcripts import read_transcripts

PLAIN = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
SHAREGPT = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(PLAIN),
        json.dumps({"messages": PLAIN}),
        json.dumps({"conversation": PLAIN, "model": "x"}),
        json.dumps({"turns": PLAIN}),
        json.dumps([{"conversations": SHAREGPT, "id": "1"}]),
        "\n".join(json.dumps(m) for m in PLAIN) and json.dumps({"messages": PLAIN}) + "\n",
        "User: hi\nAssistant: hello\n",
        "Human: hi\n\nAI: hello",
        json.dumps([{"role": "user", "content": [{"type": "text", "text": "hi"}]}, PLAIN[1]]),
        "\ufeff" + json.dumps(PLAIN),
    ],
)
def test_every_format_gives_the_same_conversation(tmp_path, text):
    (tmp_path / "talk.any").write_text(text, encoding="utf-8")
    (found,) = read_transcripts(tmp_path / "talk.any")
    assert list(found.messages) == PLAIN
    assert found.name == "talk"


def test_a_file_of_lines_holds_a_conversation_a_line_or_a_message_a_line(tmp_path):
    (tmp_path / "many.jsonl").write_text("\n".join(json.dumps({"messages": PLAIN}) for _ in range(3)))
    assert [t.name for t in read_transcripts(tmp_path / "many.jsonl")] == ["many 1", "many 2", "many 3"]
    (tmp_path / "one.jsonl").write_text("\n".join(map(json.dumps, PLAIN)))
    (found,) = read_transcripts(tmp_path / "one.jsonl")
    assert list(found.messages) == PLAIN


def test_plain_text_keeps_the_lines_of_a_turn(tmp_path):
    (tmp_path / "t.txt").write_text("System: be kind\nUser: one\ntwo: three\nAssistant: a\n\nb")
    (found,) = read_transcripts(tmp_path / "t.txt")
    assert [m["content"] for m in found.messages] == ["be kind", "one\ntwo: three", "a\n\nb"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (json.dumps([PLAIN[0]]), "no assistant turn"),
        (json.dumps([PLAIN[0], {"role": "narrator", "content": "x"}]), "message 2: found role 'narrator'"),
        (json.dumps([PLAIN[0], {"role": "assistant", "content": 5}]), "content of type int"),
        (json.dumps([PLAIN[0], {"role": "assistant", "content": "so \ud83d"}]), "message 2: found half of a surrogate"),
        ("nothing of the kind", "no conversation in it"),
        ("", "no conversation in it"),
        ("{}", "no conversation in it"),
        ('{"messages": [', "no conversation in it"),
    ],
)
def test_what_is_no_conversation_is_said_in_one_line(tmp_path, text, said):
    (tmp_path / "t").write_text(text)
    with pytest.raises(UsageError, match=said) as problem:
        read_transcripts(tmp_path / "t")
    assert "\n" not in str(problem.value)


def test_a_file_that_is_not_text_or_not_there_is_named(tmp_path):
    (tmp_path / "b").write_bytes(b"\xff\xfe\x00\xd8")
    for name in ("b", "missing"):
        with pytest.raises(UsageError, match="cannot be read as text"):
            read_transcripts(tmp_path / name)


def test_ten_megabytes_are_read(tmp_path):
    (tmp_path / "big").write_text(json.dumps([PLAIN[0], {"role": "assistant", "content": "word " * 2_000_000}]))
    (found,) = read_transcripts(tmp_path / "big")
    assert len(found.messages[1]["content"]) == 10_000_000
