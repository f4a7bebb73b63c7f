"""Calls of tools in replies: told apart from the text, in each known form, streamed and not, and by real clients."""

from __future__ import annotations

import json
from functools import lru_cache
from types import SimpleNamespace

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calling import (
    ANSWER,
    FORMS,
    HERMES,
    RESULT,
    SPELT,
    TOOL,
    calling_engine,
    calling_model,
    form_tokenizer,
    said,
)
from personaspace.engines.thoughts import ReplyText
from personaspace.engines.tool_calls import CallForm
from served import engine, serving, space
from test_clients import in_javascript

TWO = [("add", {"a": 2}), ("add", {"a": 3})]


@lru_cache
def form_of(name):
    mentioned, _, _ = FORMS[name]
    tokenizer = form_tokenizer(name)
    return tokenizer, CallForm.of(
        tokenizer, lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True), mentioned
    )


def read(name, text, pieces=None, tools=(TOOL,)):
    """The text and the calls of a reply that comes in so many tokens at a time."""
    tokenizer, form = form_of(name)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    reply = ReplyText(form.decode, None, form.reader(tools))
    ends = range(pieces, len(ids), pieces) if pieces else ()
    told = "".join([*(reply.add(ids[:end]) for end in ends), reply.add(ids, final=True)])
    return told, [(call.name, json.loads(call.arguments)) for call in reply.calls.calls]


# -- forms -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("pieces", [1, 7, None])
def test_calls_in_each_known_form_are_read_whole_and_in_pieces(name, pieces):
    text, calls = read(name, FORMS[name][2], pieces)
    assert calls == (TWO if name == "hermes" else TWO[:1])
    assert text == ("Let me see.\n" if name == "hermes" else "")


@pytest.mark.parametrize("name", FORMS)
def test_a_reply_that_calls_nothing_is_the_text_it_is(name):
    for text in ("Good day.", "", "\n\n", "a < b, <tool, [TOOL_ and {", '{"name": "other", "parameters": {}}'):
        assert read(name, text, 1) == (text, [])


@pytest.mark.parametrize(
    "inside",
    [
        '{"name": "add", "argu',
        "[]",
        "null",
        '{"name": 3, "arguments": {}}',
        '{"arguments": {}}',
        '{"name": "add", "arguments": [1]}',
        '{"name": "add", "arguments": "two"}',
        '{"name": "add", "arguments": {"a": NaN}}',
        '{"name": "\\ud800", "arguments": {}}',
        '{"name": "add", "arguments": {"a": ' + "9" * 5000 + "}}",
        "[" * 5000,
    ],
)
@pytest.mark.parametrize("name", ["hermes", "list"])
def test_what_cannot_be_read_as_a_call_stays_text(name, inside):
    text = f"So: <tool_call>{inside}</tool_call> and on"
    assert read(name, text) == (text, [])
    good = '<tool_call>{"name": "add", "arguments": {}}</tool_call>'
    assert read(name, good + text) == (good + text, [])


def test_a_marker_that_is_a_token_is_none_where_it_is_spelt():
    tokenizer, form = form_of("hermes")
    spelt = form_tokenizer("list")(SPELT, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(spelt) == SPELT
    for before in ("", "\U000f0004"):
        reader = form.reader([TOOL])
        text = form.decode([*tokenizer(before, add_special_tokens=False)["input_ids"], *spelt])
        assert (reader.add(text, final=True), reader.calls) == (SPELT, ())


def test_a_tokenizers_own_form_is_taken_first():
    tokenizer = form_tokenizer("hermes")
    field = {
        "open_pattern": r"<\|tool_call>call:(?P<name>\w+)",
        "close": "<tool_call|>",
        "repeats": True,
        "content": "json",
        "content_args": {"unquoted_keys": True, "string_delims": [['<|"|>', '<|"|>']]},
        "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
    }
    tokenizer.response_template = {
        "start_anchor": "model\n",
        "fields": {"tool_calls": field, "content": {"close": "x"}},
    }
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool_call>", "<tool_call|>", '<|"|>']})
    form = CallForm.of(tokenizer, lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True), "<tool_call>")
    ids = tokenizer('Well <|tool_call>call:add{a: <|"|>t}wo<|"|>}<tool_call|>', add_special_tokens=False)["input_ids"]
    reader = form.reader([TOOL])
    assert reader.add(form.decode(ids), final=True) == "Well "
    assert [(c.name, json.loads(c.arguments)) for c in reader.calls] == [("add", {"a": "t}wo"})]
    tokenizer.response_template = {"version": 99, "fields": {"tool_calls": {"open": "", "later": 1}}}
    assert CallForm.of(tokenizer, tokenizer.decode, "") is None


def test_arguments_are_of_the_types_that_the_tool_has_said():
    (call,) = read("xml", FORMS["xml"][2])[1]
    assert call == ("add", {"a": 2})
    texts = {**TOOL, "function": {**TOOL["function"], "parameters": {"properties": {"a": {"type": "string"}}}}}
    assert read("xml", FORMS["xml"][2], tools=[texts])[1] == [("add", {"a": "2"})]


PARTS = st.sampled_from(["<tool_call>", "</tool_call>", '{"name": "add", "arguments": {}}', "\n", "<", "{", "é", "x "])


@settings(deadline=None, max_examples=60)
@given(st.lists(PARTS, max_size=8).map("".join), st.integers(1, 9))
def test_however_a_reply_comes_in_pieces_it_is_read_the_same_and_nothing_is_lost(text, pieces):
    for name in ("hermes", "list"):
        told, calls = read(name, text, pieces)
        assert (told, calls) == read(name, text)
        if not calls:
            assert told == text


# -- the server --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(space, calling_model):
    with serving(space, calling_engine(calling_model), max_tokens=200) as (address, _):
        yield address


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)


def ask(client, text, **more):
    messages = text if isinstance(text, list) else said(text)
    return client.chat.completions.create(model="tiny", messages=messages, tools=[TOOL], temperature=0, **more)


def calls_of(message):
    return [(c.function.name, json.loads(c.function.arguments)) for c in message.tool_calls or ()]


def streamed(client, text, **more):
    """A stream's text, calls and ends, put together as a client does."""
    text_parts, calls, ends = [], {}, []
    for chunk in ask(client, text, stream=True, **more):
        (choice,) = chunk.choices
        text_parts.append(choice.delta.content or "")
        for call in choice.delta.tool_calls or ():
            known = calls.setdefault(call.index, SimpleNamespace(id=call.id, function=call.function))
            assert known.id == call.id
        ends += [choice.finish_reason] if choice.finish_reason else []
    return "".join(text_parts), calls_of(SimpleNamespace(tool_calls=list(calls.values()))), ends


def test_a_call_is_told_as_one_streamed_and_not(client, space, server):
    (choice,) = ask(client, "hermes").choices
    assert (choice.message.content, choice.finish_reason) == ("Let me see.\n", "tool_calls")
    assert calls_of(choice.message) == TWO
    assert len({c.id for c in choice.message.tool_calls}) == 2
    assert streamed(client, "hermes") == ("Let me see.\n", TWO, ["tool_calls"])
    assert len(calls_of(ask(client, "hermes", parallel_tool_calls=False).choices[0].message)) == 1


def test_what_is_read_of_a_reply_are_all_its_tokens_calls_as_well(client):
    made = ask(client, "hermes")
    assert made.persona["tokens_read"] in (made.usage.completion_tokens, made.usage.completion_tokens - 1)


def test_text_alone_what_is_no_call_and_what_quotes_one_are_text(client):
    for text, answer in HERMES.items():
        (choice,) = ask(client, text).choices
        assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (answer, None, "stop")
        assert streamed(client, text) == (answer, [], ["stop"])


def test_where_no_tools_are_offered_a_call_is_the_text_it_is(client, calling_model):
    (choice,) = ask(client, "hermes", tool_choice="none").choices
    assert choice.message.tool_calls is None
    assert choice.finish_reason in ("stop", "length")


def test_a_reply_that_is_cut_short_in_a_call_is_text(client):
    (choice,) = ask(client, "hermes", max_tokens=30).choices
    assert choice.finish_reason == "length"
    assert choice.message.tool_calls is None
    assert choice.message.content.startswith("Let me see.\n<tool_call>")


def test_an_agent_loop_goes_round(client):
    """Call, result, answer, with what the server has sent given back as it came."""
    message = ask(client, "hermes", parallel_tool_calls=False).choices[0].message
    results = [{"role": "tool", "tool_call_id": c.id, "content": "four"} for c in message.tool_calls]
    history = [*said("hermes"), message.model_dump(exclude_unset=True), *results]
    assert ask(client, history).choices[0].message.content == ANSWER
    assert ask(client, RESULT).choices[0].message.content == ANSWER


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_a_call_that_is_asked_for_is_begun(client, choice):
    (made,) = ask(client, "plain", tool_choice=choice).choices
    assert (made.message.content, calls_of(made.message), made.finish_reason) == (
        None,
        [("add", {"a": 7})],
        "tool_calls",
    )
    assert streamed(client, "plain", tool_choice=choice) == ("", [("add", {"a": 7})], ["tool_calls"])


@pytest.mark.parametrize(
    ("more", "said_of_it"),
    [
        ({"tools": []}, "found 0"),
        ({"tools": [TOOL, {**TOOL, "function": {"name": "b"}}]}, "found 2"),
        ({"tool_choice": {"type": "function", "function": {"name": "b"}}}, "tools has not"),
        ({"continue_final_message": True}, "goes on with no message"),
    ],
)
def test_a_call_that_cannot_be_begun_is_refused_in_a_line(server, more, said_of_it):
    body = {"model": "tiny", "messages": [*said("x"), {"role": "assistant", "content": "y"}], "tools": [TOOL]}
    answer = httpx.post(f"{server}/v1/chat/completions", json={**body, "tool_choice": "required", **more}, timeout=30)
    message = answer.json()["error"]["message"]
    assert answer.status_code == 400
    assert "tool_choice" in message
    assert said_of_it in message
    assert "\n" not in message


FUNCTION = {"type": "function", **TOOL["function"]}


@pytest.mark.parametrize(
    ("text", "more", "told"),
    [
        ("hermes", {}, (TWO, "Let me see.\n")),
        ("hermes", {"parallel_tool_calls": False}, (TWO[:1], "Let me see.\n")),
        ("plain", {}, ([], "Good day.")),
        ("plain", {"tool_choice": "required"}, ([("add", {"a": 7})], "")),
        ("plain", {"tool_choice": {"type": "function", "name": "add"}}, ([("add", {"a": 7})], "")),
    ],
)
def test_a_responses_calls_are_items_streamed_and_not(client, text, more, told):
    asked = {"model": "tiny", "input": text, "tools": [FUNCTION], "temperature": 0, **more}
    with client.responses.stream(**asked) as stream:
        events = list(stream)
        final = stream.get_final_response()
    for made in (client.responses.create(**asked), final):
        calls = [(i.name, json.loads(i.arguments)) for i in made.output if i.type == "function_call"]
        assert (calls, made.output_text) == told
        assert [i.type for i in made.output] == ["message"] * bool(told[1]) + ["function_call"] * len(told[0])
    assert [e.sequence_number for e in events] == list(range(len(events)))
    done = [e for e in events if e.type == "response.function_call_arguments.done"]
    assert [(e.name, json.loads(e.arguments)) for e in done] == told[0]
    assert [e.output_index for e in done] == [k for k, i in enumerate(final.output) if i.type == "function_call"]


def test_a_response_goes_round_an_agents_loop(client):
    asked = {"model": "tiny", "tools": [FUNCTION], "temperature": 0}
    made = client.responses.create(input="hermes", parallel_tool_calls=False, **asked)
    (call,) = (i for i in made.output if i.type == "function_call")
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "four"}
    items = [*said("hermes"), *(item.model_dump() for item in made.output), output]
    assert client.responses.create(input=items, **asked).output_text == ANSWER


@pytest.mark.long
def test_openais_client_in_javascript_chats_streams_and_calls_tools(server):
    told = in_javascript(server, "tiny", "hermes", TOOL)
    calls = [{"name": name, "arguments": arguments} for name, arguments in TWO]
    assert told["models"][:2] == ["tiny", "tiny:capped"]
    for way in ("whole", "streamed", "final", "response", "response_streamed"):
        assert told[way] == {"text": "Let me see.\n", "calls": calls}, way
    assert told["persona"] > 0
    assert told["loop"] == ANSWER
    assert (told["refused"]["status"], "logit_bias" in told["refused"]["message"]) == (400, True)


@pytest.mark.long
@pytest.mark.parametrize("name", FORMS)
def test_each_form_is_served(space, calling_model, name):
    with serving(space, calling_engine(calling_model, name), max_tokens=200) as (address, _):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        (choice,) = ask(client, name).choices
        assert calls_of(choice.message) == (TWO if name == "hermes" else TWO[:1])
        assert streamed(client, name)[1:] == (calls_of(choice.message), ["tool_calls"])
