"""Conversations from files, whoever wrote them."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bounded import in_bounded_time
from personaspace.errors import UsageError
from personaspace.formats.registry import EXPECTED, TRANSCRIPT_FORMATS, TRANSCRIPTS_HELP, TranscriptFormat
from personaspace.formats.transcripts import read_transcripts

PLAIN = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
KEYS = (
    *("messages", "conversations", "conversation", "turns", "mapping", "current_node", "parent", "message", "author"),
    *("role", "from", "content", "value", "parts", "type", "text", "chat_messages", "sender", "uuid", "samples", "new"),
    *(
        "current_leaf_message_uuid",
        "parent_message_uuid",
        "arguments",
        "resps",
        "replies",
        "tool_calls",
        "metadata",
        "data",
    ),
)
LOADED = {"type": "text", "text": "hi"}
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
    (found,) = read_transcripts(tmp_path / "talk.any").conversations
    assert list(found.messages) == PLAIN
    assert found.name == "talk"


def test_a_file_of_lines_holds_a_conversation_a_line_or_a_message_a_line(tmp_path):
    (tmp_path / "many.jsonl").write_text("\n".join(json.dumps({"messages": PLAIN}) for _ in range(3)))
    assert [t.name for t in read_transcripts(tmp_path / "many.jsonl").conversations] == ["many 1", "many 2", "many 3"]
    (tmp_path / "one.jsonl").write_text("\n".join(map(json.dumps, PLAIN)))
    (found,) = read_transcripts(tmp_path / "one.jsonl").conversations
    assert list(found.messages) == PLAIN


def test_plain_text_keeps_the_lines_of_a_turn(tmp_path):
    (tmp_path / "t.txt").write_text("System: be kind\nUser: one\ntwo: three\nAssistant: a\n\nb")
    (found,) = read_transcripts(tmp_path / "t.txt").conversations
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


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe\x00\xd8", "cannot be read as text"),
        (None, "no such file or folder; expected"),
        (b" \n", "is empty; exp"),
    ],
)
def test_a_file_that_is_not_text_not_there_or_empty_is_named_with_what_was_expected(tmp_path, content, said):
    if content is not None:
        (tmp_path / "b").write_bytes(content)
    with pytest.raises(UsageError, match=rf"/b: .*{said}"):
        read_transcripts(tmp_path / "b")


def test_ten_megabytes_are_read(tmp_path):
    (tmp_path / "big").write_text(json.dumps([PLAIN[0], {"role": "assistant", "content": "word " * 2_000_000}]))
    (found,) = read_transcripts(tmp_path / "big").conversations
    assert len(found.messages[1]["content"]) == 10_000_000


def written(path, *values, lines: bool = False):
    """A file with a value as JSON, or with one a line (a text as it is)."""
    texts = [value if lines and isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values]
    path.write_text("\n".join(texts), encoding="utf-8")
    return path


def node(parent, children, role=None, *parts, kind="text", **about):
    """A node of the tree in ChatGPT's export."""
    content = {"content_type": kind, "parts": list(parts)}
    message = None if role is None else {"author": {"role": role}, "content": content, **about}
    return {"parent": parent, "children": children, "message": message}


def tree(**more):
    """A conversation of ChatGPT's export whose first answer was asked for again."""
    mapping = {
        "root": node(None, ["s"]),
        "s": node("root", ["u"], "system", ""),
        "u": node("s", ["old", "new"], "user", "hi"),
        "old": node("u", [], "assistant", "hm"),
        "new": node("u", [], "assistant", "hello"),
    }
    return {"title": "greeting", "current_node": "new", "mapping": mapping, **more}


def sender(name, text, **more):
    """A message of Claude's export."""
    return {"sender": name, "text": text, "attachments": [], "files": [], **more}


EXPORTS = {
    "served": {"model": "m", "messages": PLAIN[:1], "replies": [{"text": "hello", "persona": None}]},
    "openai": {"messages": PLAIN},
    "sharegpt": {"conversations": SHAREGPT},
    "study": {"role": "ghost", "conversation": PLAIN},
    "chatgpt": tree(),
    "claude": {"name": "greeting", "chat_messages": [sender("human", "hi"), sender("assistant", "hello")]},
    "inspect": {"version": 2, "status": "success", "samples": [{"id": 1, "messages": PLAIN}]},
    "lm-eval": {"doc_id": 0, "arguments": {"gen_args_0": {"arg_0": json.dumps(PLAIN[:1])}}, "resps": [["hello"]]},
    "text": "User: hi\nAssistant: hello",
}


@pytest.mark.parametrize("name", TRANSCRIPT_FORMATS)
def test_every_format_of_the_registry_is_read_alone_in_a_list_and_a_line_each(tmp_path, name):
    value = EXPORTS[name]
    if TRANSCRIPT_FORMATS[name].by_text:
        (tmp_path / "talk").write_text(value)
        assert list(read_transcripts(tmp_path / "talk").conversations[0].messages) == PLAIN
        return
    several = [
        written(tmp_path / "list.json", [value, value]),
        written(tmp_path / "lines.jsonl", value, value, lines=True),
        written(tmp_path / "mixed.jsonl", value, EXPORTS["openai"], lines=True),
        written(tmp_path / "under.json", {"conversations": [value, value]}),
    ]
    for path in (written(tmp_path / "alone.json", value), *several):
        conversations, notes = read_transcripts(path)
        assert [list(t.messages) for t in conversations] == [PLAIN] * (1 if path.stem == "alone" else 2), path
        assert notes == []


def test_the_first_format_that_knows_a_value_is_the_one_it_is_of():
    for name, value in EXPORTS.items():
        knows = [other for other, f in TRANSCRIPT_FORMATS.items() if f.reader(value) is not None]
        assert knows[0] == name


def test_help_and_errors_name_every_format_of_the_registry():
    for entry in TRANSCRIPT_FORMATS.values():
        assert entry.summary in TRANSCRIPTS_HELP
        assert f"{entry.summary} ({entry.told_by})" in EXPECTED


def test_a_new_format_is_a_function_and_a_line(tmp_path, monkeypatch):
    entry = TranscriptFormat(f"{__name__}:pairs", "pairs", "`q` and `a`")
    monkeypatch.setitem(TRANSCRIPT_FORMATS, "pairs", entry)
    path = written(tmp_path / "pairs.jsonl", {"q": "hi", "a": "hello"}, {"q": "hi", "a": "hello"}, lines=True)
    assert [list(t.messages) for t in read_transcripts(path).conversations] == [PLAIN] * 2


def pairs(value):
    """A format of this test's."""
    from personaspace.formats.messages import RawConversation

    if not isinstance(value, dict) or "q" not in value:
        return None
    return [RawConversation([{"role": "user", "content": value["q"]}, {"role": "assistant", "content": value["a"]}])]


CALLS = [{"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@pytest.mark.parametrize(
    ("messages", "expected", "left_out"),
    [
        (
            [
                PLAIN[0],
                {"role": "assistant", "content": "let me look", "tool_calls": CALLS},
                {"role": "tool", "content": "42", "tool_call_id": "1"},
                {"role": "assistant", "content": "hello"},
            ],
            [PLAIN[0], {"role": "assistant", "content": "let me look\n\nhello"}],
            "1 tool call, 1 tool message",
        ),
        (
            [
                PLAIN[0],
                {"role": "assistant", "content": None, "tool_calls": CALLS * 2},
                {"role": "tool", "content": "42"},
                {"role": "tool", "content": None},
                {"role": "assistant", "content": [LOADED]},
            ],
            [PLAIN[0], {"role": "assistant", "content": "hi"}],
            "2 tool calls, 2 tool messages",
        ),
        (
            [
                {"from": "human", "value": "hi"},
                {"from": "function_call", "value": "{}"},
                {"from": "observation", "value": "42"},
                {"from": "gpt", "value": "hello"},
            ],
            PLAIN,
            "2 tool messages",
        ),
        (
            [
                PLAIN[0],
                {
                    "role": "assistant",
                    "content": [{"type": "text", "text": "so"}, {"type": "tool_use", "name": "look"}],
                },
                {"role": "user", "content": [{"type": "tool_result", "content": "42"}]},
                {"role": "assistant", "content": "hello"},
            ],
            [PLAIN[0], {"role": "assistant", "content": "so\n\nhello"}],
            "1 tool call, 1 tool message",
        ),
        (
            [{"role": "user", "content": [LOADED, IMAGE, {"type": "input_image"}]}, PLAIN[1]],
            PLAIN,
            "2 images",
        ),
        (
            [{"role": "user", "content": [IMAGE]}, PLAIN[1]],
            [{"role": "user", "content": ""}, PLAIN[1]],
            "1 image",
        ),
        (
            [
                PLAIN[0],
                {
                    "role": "assistant",
                    "content": [{"type": "thinking", "thinking": "x"}, {"type": "text", "text": "hello"}],
                },
            ],
            PLAIN,
            "1 thought",
        ),
        (
            [
                PLAIN[0],
                {
                    "role": "assistant",
                    "content": [{"type": "refusal", "refusal": "hello"}, {"type": "new\x1b[1m", "a": 1}],
                },
            ],
            PLAIN,
            r"1 'new\x1b[1m' part",
        ),
        (
            [{"role": "developer", "content": "be kind"}, *PLAIN],
            [{"role": "system", "content": "be kind"}, *PLAIN],
            None,
        ),
        ([{"role": "user", "content": "hi"}, {"role": "model", "parts": [{"text": "hello"}]}], PLAIN, None),
        ([{"role": "user", "content": None}, PLAIN[1]], [{"role": "user", "content": ""}, PLAIN[1]], None),
        ([{"role": "user", "content": ["h", "i"]}, PLAIN[1]], PLAIN, None),
        ([{"role": "user", "content": {"type": "text", "text": {"value": "hi"}}}, PLAIN[1]], PLAIN, None),
    ],
)
def test_what_is_no_text_is_left_out_and_told_in_one_line(tmp_path, messages, expected, left_out):
    conversations, notes = read_transcripts(written(tmp_path / "talk.json", messages))
    assert list(conversations[0].messages) == expected
    assert notes == ([f"{tmp_path / 'talk.json'}: left out {left_out}"] if left_out else [])


def test_a_system_prompt_beside_the_messages_is_read_once(tmp_path):
    system = {"role": "system", "content": "be kind"}
    inside = [{"role": "user", "content": "be kind\n\nhi"}, PLAIN[1]]
    for value, expected in (
        ({"system_prompt": "be kind", "conversation": PLAIN}, [system, *PLAIN]),
        ({"system": "be kind", "messages": PLAIN}, [system, *PLAIN]),
        ({"system_prompt": "be kind", "conversation": [system, *PLAIN]}, [system, *PLAIN]),
        ({"system_prompt": "be kind", "conversation": inside}, inside),
        ({"system_prompt": "", "conversation": PLAIN}, PLAIN),
    ):
        (found,) = read_transcripts(written(tmp_path / "t.json", value)).conversations
        assert list(found.messages) == expected


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (
            {"messages": [{"role": "narrator", "content": "x"}]},
            "conversation 2 (line 2), message 1: found role 'narrator'",
        ),
        ({"messages": [PLAIN[0], None, PLAIN[1]]}, "conversation 2 (line 2), message 2: found NoneType"),
        ({"messages": [PLAIN[0]]}, "conversation 2 (line 2): no assistant turn"),
        (
            {"messages": [PLAIN[0], {"role": "assistant", "content": {"a": 1}}]},
            "conversation 2 (line 2): no assistant turn",
        ),
        ({"meta": 1}, "(line 2): no conversation in it"),
        ('{"messages": [{"role": "us', "(line 2): not JSON: Unterminated string"),
        ("[" * 100_000, "(line 2): not read: it nests deeper"),
        ('{"n": ' + "9" * 5_000 + "}", "(line 2): not read: a number of 5000 digits"),
        ("not JSON at all", "(line 2): not JSON"),
        (tree(mapping={"a": node("b", ["b"], "user", "x"), "b": node("a", ["a"])}), "(line 2): its tree"),
        ({"chat_messages": ["hi"]}, "(line 2): found str among its messages"),
        ({"arguments": [["Q: 1+1?"]], "resps": [["2"]]}, "(line 2): a sample of lm-eval's whose prompt is no list"),
        ({"arguments": [], "resps": []}, "(line 2): a sample of lm-eval's without a prompt"),
    ],
)
def test_one_bad_conversation_among_good_ones_is_named_and_the_others_are_read(tmp_path, bad, told):
    good = {"messages": PLAIN}
    path = written(tmp_path / "many.jsonl", good, bad, good, lines=True)
    conversations, notes = read_transcripts(path)
    assert [list(t.messages) for t in conversations] == [PLAIN] * 2
    assert len({t.name for t in conversations}) == 2
    (note,) = [note for note in notes if "not read" in note]
    assert note.startswith(f"{path}"), note
    assert told in note
    assert "\n" not in "".join(notes)


def test_where_no_conversation_can_be_read_the_first_is_named(tmp_path):
    bad = {"messages": [PLAIN[0], {"role": "narrator", "content": "x"}]}
    path = written(tmp_path / "many.jsonl", {"meta": 1}, bad, bad, lines=True)
    with pytest.raises(UsageError, match=r"conversation 1 \(line 2\), message 2: found role 'narrator'"):
        read_transcripts(path)


def test_of_many_bad_conversations_the_first_are_named_and_the_rest_counted(tmp_path):
    values = [{"messages": PLAIN}, *({"messages": [{"role": str(k), "content": ""}]} for k in range(1_200))]
    notes = read_transcripts(written(tmp_path / "many.jsonl", *values, lines=True)).notes
    assert len(notes) == 6
    assert notes[-1].endswith("1,195 more were not read")


def test_a_broken_line_among_messages_a_line_each_is_an_error_with_its_line(tmp_path):
    path = written(tmp_path / "one.jsonl", PLAIN[0], '{"role": "assist', PLAIN[1], lines=True)
    with pytest.raises(UsageError, match=r"one\.jsonl, line 2: not JSON: .*; expected a message a line"):
        read_transcripts(path)
    path = written(tmp_path / "meta.jsonl", {"session": 1}, *PLAIN, lines=True)
    conversations, notes = read_transcripts(path)
    assert list(conversations[0].messages) == PLAIN
    assert notes == [f"{path} (line 1): no message; not read"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_lines_end_at_line_feeds_alone_and_a_byte_order_mark_is_skipped(tmp_path, end, mark):
    odd = "one\u2028two\u2029three\u0085four\x1cfive"
    talk = [{"role": "user", "content": odd}, PLAIN[1]]
    text = mark + end.join(json.dumps({"messages": talk}, ensure_ascii=False) for _ in "ab")
    (tmp_path / "t.jsonl").write_bytes((text + end).encode())
    assert [list(t.messages) for t in read_transcripts(tmp_path / "t.jsonl").conversations] == [talk] * 2


@pytest.mark.parametrize(
    "text", ["\n" * 20_000, " \n" * 20_000, " " * 20_000, "\u2028\n\t" * 20_000, "User\n" * 20_000]
)
def test_a_file_of_blank_lines_holds_no_conversation(tmp_path, text):
    """Each took the square of its length."""
    (tmp_path / "blank").write_text(text * 20, encoding="utf-8")
    with in_bounded_time(), pytest.raises(UsageError, match=r"no conversation in it.*; expected"):
        read_transcripts(tmp_path / "blank")


def test_of_a_chatgpt_tree_the_branch_is_read_that_was_shown_last(tmp_path):
    branches = [tree(), tree(current_node="old"), tree(current_node="gone"), tree(current_node=None)]
    texts = [t.messages[1]["content"] for t in read_transcripts(written(tmp_path / "x.json", branches)).conversations]
    assert texts == ["hello", "hm", "hello", "hello"]


def test_what_a_chatgpt_export_holds_beside_talk_is_left_out_and_told(tmp_path):
    picture = {"content_type": "image_asset_pointer", "asset_pointer": "file-service://x"}
    mapping = {
        "root": node(None, ["c"]),
        "c": node("root", ["u"], "user", "my profile", metadata={"is_visually_hidden_from_conversation": True}),
        "u": node("c", ["t"], "user", "hi", picture, kind="multimodal_text"),
        "t": {
            "parent": "u",
            "message": {"author": {"role": "assistant"}, "content": {"content_type": "thoughts", "thoughts": []}},
        },
        "call": node("t", ["r"], "assistant", "search()", recipient="browser"),
        "r": node("call", ["a"], "tool", "a page"),
        "a": node("r", [], "assistant", "hello", recipient="all"),
    }
    conversations, notes = read_transcripts(written(tmp_path / "x.json", [{"mapping": mapping, "current_node": "a"}]))
    assert list(conversations[0].messages) == PLAIN
    assert notes == [
        f"{tmp_path / 'x.json'}: left out 1 hidden message, 1 image, 1 thought, 1 tool call, 1 tool message"
    ]


def test_of_claudes_export_parts_or_text_are_read_and_of_a_tree_the_branch_shown_last(tmp_path):
    parts = [{"type": "tool_use"}, {"type": "tool_result"}, {"type": "text", "text": "hello"}]
    talk = [
        sender("human", "hi", uuid="u", parent_message_uuid="0", attachments=[{"file_name": "a.txt"}]),
        sender("assistant", "hm", uuid="old", parent_message_uuid="u"),
        sender("assistant", "", uuid="new", parent_message_uuid="u", content=parts),
    ]
    path = written(tmp_path / "c.json", [{"chat_messages": talk, "current_leaf_message_uuid": "new"}])
    conversations, notes = read_transcripts(path)
    assert list(conversations[0].messages) == PLAIN
    assert notes == [f"{path}: left out 1 attachment, 2 tool calls"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.recursive(
        st.none() | st.integers(0, 3) | st.sampled_from(["user", "assistant", "new", "hello"]),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
        max_leaves=25,
    )
)
def test_whatever_json_it_is_given_it_reads_or_refuses_in_one_line(tmp_path, value):
    for path in (written(tmp_path / "a.json", value), written(tmp_path / "b.jsonl", value, value, lines=True)):
        try:
            conversations, notes = read_transcripts(path)
        except UsageError as refusal:
            notes = [str(refusal)]
        else:
            assert conversations
        assert all(len(note.splitlines()) == 1 for note in notes), notes
