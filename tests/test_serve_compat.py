"""Whatever OpenAI's own types let a client send is taken, done, or refused by name."""

from __future__ import annotations

import json
import re
from typing import get_type_hints

import httpx
import openai
import pytest
import torch
from openai.types import completion_create_params as text_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params as response_params

import personaspace as ps
from conftest import make_tokenizer
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.errors import UsageError
from personaspace.serve import Settings, create_app
from served import engine, serving, space

HELLO = [{"role": "user", "content": "hello"}]
TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
AGENT = [
    *HELLO,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "four"}]},
]
TOOL_TEMPLATE = (
    "{% for t in tools or [] %}[{{ t.function.name }} {{ t.function.parameters | tojson }}]\n{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for c in m.tool_calls or [] %}(call {{ c.function.name }} {{ c.function.arguments | tojson }}){% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ALTERNATING = (
    "{% for m in messages %}{% if m.role != ['user', 'assistant'][loop.index0 % 2] %}{{ raise_exception('turns') }}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def with_template(engine, template):
    return TransformersEngine(engine.model, make_tokenizer(template), id="me/tiny", rows=8)


@pytest.fixture(scope="module")
def server(space, engine):
    with serving(space, engine, rows=8, max_tokens=64) as (address, _):
        yield address


@pytest.fixture(scope="module")
def tools_server(space, engine):
    with serving(space, with_template(engine, TOOL_TEMPLATE), max_tokens=64) as (address, _):
        yield address


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)


def sent(server, path, body, status=200):
    answer = httpx.post(f"{server}/v1/{path}", json={"model": "tiny", **body}, timeout=30)
    assert answer.status_code == status, answer.text
    return answer.json()


def chat(server, status=200, **body):
    return sent(server, "chat/completions", {"messages": HELLO, "max_tokens": 6, "temperature": 0, **body}, status)


def text(server, status=200, **body):
    return sent(server, "completions", {"prompt": "Once upon", "max_tokens": 6, "temperature": 0, **body}, status)


# -- every field of OpenAI's -------------------------------------------------------------------------------------------

DONE, REFUSED = "done", "refused"
SHARED = {
    "frequency_penalty": [(0, DONE), (0.5, DONE)],
    "logit_bias": [({}, DONE), ({"65": -100}, DONE)],
    "metadata": [({}, DONE), ({"run": "7"}, DONE)],
    "model": [("tiny:capped", DONE), ("gpt-6-sol", REFUSED)],
    "n": [(1, DONE), (2, DONE)],
    "parallel_tool_calls": [(True, DONE), (False, DONE)],
    "presence_penalty": [(0, DONE), (-1.5, DONE)],
    "prompt_cache_key": [("", DONE), ("a", DONE)],
    "prompt_cache_options": [({}, DONE), ({"mode": "implicit"}, DONE)],
    "prompt_cache_retention": [("in_memory", DONE), ("24h", DONE)],
    "safety_identifier": [("", DONE), ("a", DONE)],
    "seed": [(0, DONE), (2**40, DONE)],
    "service_tier": [("auto", DONE), ("flex", DONE)],
    "stop": [([], DONE), ("x", DONE)],
    "store": [(False, DONE), (True, DONE)],
    "temperature": [(1, DONE), (0.2, DONE)],
    "top_p": [(1, DONE), (0.5, DONE), (0, DONE)],
    "user": [("", DONE), ("me", DONE)],
    "moderation": [({"model": "omni"}, REFUSED)],
}
CHAT = {
    **SHARED,
    "messages": [(AGENT, DONE), ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], REFUSED)],
    "audio": [({"voice": "alloy", "format": "wav"}, REFUSED)],
    "function_call": [("none", DONE), ({"name": "add"}, REFUSED)],
    "functions": [([], DONE), ([TOOL["function"]], REFUSED)],
    "logprobs": [(False, DONE), (True, DONE)],
    "max_completion_tokens": [(5, DONE), (10**9, DONE)],
    "max_tokens": [(5, DONE), (10**9, DONE)],
    "modalities": [(["text"], DONE), (["text", "audio"], REFUSED)],
    "prediction": [({"type": "content", "content": "hello"}, DONE)],
    "reasoning_effort": [("none", DONE), ("high", DONE)],
    "response_format": [({"type": "text"}, DONE), ({"type": "json_object"}, REFUSED)],
    "stream_options": [({"include_usage": True}, DONE)],
    "tool_choice": [("none", DONE), ("auto", DONE), ("required", REFUSED)],
    "tools": [([], DONE), ([TOOL], REFUSED)],
    "top_logprobs": [(0, DONE), (3, DONE)],
    "verbosity": [("medium", DONE), ("low", REFUSED)],
    "web_search_options": [({}, REFUSED)],
}
TEXT = {
    **SHARED,
    "prompt": [("x", DONE), ([65, 66], DONE), (["x", "y"], DONE), ([[65], [66]], DONE)],
    "best_of": [(1, DONE), (3, REFUSED)],
    "echo": [(False, DONE), (True, DONE)],
    "logprobs": [(0, DONE), (5, DONE)],
    "max_tokens": [(16, DONE), (10**9, DONE)],
    "stream_options": [({"include_usage": True}, DONE)],
    "suffix": [("", DONE), ("the end", REFUSED)],
}
RESPONSES = {
    **SHARED,
    "input": [("x", DONE), ([{"role": "user", "content": [{"type": "input_image"}]}], REFUSED)],
    "access_programs": [({}, REFUSED)],
    "background": [(False, DONE), (True, REFUSED)],
    "background_options": [({}, REFUSED)],
    "context_management": [([{"type": "compaction"}], REFUSED)],
    "conversation": [("conv_1", REFUSED)],
    "image": [({}, REFUSED)],
    "include": [([], DONE), (["file_search_call.results"], REFUSED)],
    "instructions": [("", DONE), ("Be brief.", DONE)],
    "max_output_tokens": [(5, DONE), (10**9, DONE)],
    "max_tool_calls": [(5, DONE)],
    "previous_response_id": [("resp_1", REFUSED)],
    "prompt": [({"id": "pmpt_1"}, REFUSED)],
    "reasoning": [
        ({"effort": None, "summary": None}, DONE),
        ({"effort": "high", "summary": "auto"}, DONE),
        ({"effort": "loud"}, REFUSED),
        ({"summary": "detailed"}, REFUSED),
    ],
    "stream_options": [({"include_obfuscation": False}, DONE)],
    "text": [({"format": {"type": "text"}}, DONE), ({"format": {"type": "json_object"}}, REFUSED)],
    "tool_choice": [("auto", DONE), ("required", REFUSED)],
    "tools": [([], DONE), ([{"type": "web_search"}], REFUSED), ([{"type": "function", "name": "add"}], REFUSED)],
    "top_logprobs": [(0, DONE), (3, REFUSED)],
    "truncation": [("disabled", DONE), ("auto", REFUSED)],
}
BASE = {
    "chat/completions": {"messages": HELLO, "max_tokens": 2},
    "completions": {"prompt": "x", "max_tokens": 2},
    "responses": {"input": "x", "max_output_tokens": 2},
}


@pytest.mark.long
@pytest.mark.parametrize(
    ("path", "types", "values"),
    [
        ("chat/completions", chat_params, CHAT),
        ("completions", text_params, TEXT),
        ("responses", response_params, RESPONSES),
    ],
    ids=["chat", "text", "responses"],
)
def test_every_field_of_openais_types_is_taken_done_or_refused_by_name(server, path, types, values):
    base = BASE[path]
    required = {"model", next(iter(base))}
    class_name = "ResponseCreateParamsBase" if path == "responses" else "CompletionCreateParamsBase"
    fields = set(get_type_hints(getattr(types, class_name)))
    assert fields <= set(values), f"OpenAI has fields that are new: {fields - set(values)}"
    for field in fields:
        error = sent(server, path, {**base, field: None}, 400 if field in required else 200).get("error")
        assert not error or field in error["message"]
        for value, outcome in values[field]:
            status = {DONE: 200, REFUSED: 404 if field == "model" else 400}[outcome]
            answer = sent(server, path, {**base, field: value}, status)
            if outcome == REFUSED:
                assert field in answer["error"]["message"]
                assert set(answer["error"]) == {"message", "type", "param", "code"}


def test_null_is_as_absent_for_fields_that_nobody_knows_and_in_what_stands_inside(server):
    plain = chat(server)["choices"]
    inside = {"messages": [{**HELLO[0], "name": None, "tool_calls": None, "audio": None}], "persona": {"cap": None}}
    assert chat(server, not_yet=None, stream_options=None, **inside)["choices"] == plain
    assert "not_yet" in chat(server, 400, not_yet=1)["error"]["message"]


UNHEEDED = {
    "user": "me",
    "metadata": {"run": "7"},
    "store": True,
    "service_tier": "flex",
    "safety_identifier": "a",
    "prompt_cache_key": "a",
}


@pytest.mark.parametrize("name", [*UNHEEDED, "prediction"])
def test_a_field_of_openais_that_is_taken_and_not_heeded_changes_no_reply(server, name):
    if name == "prediction":
        field = {name: {"type": "content", "content": "hello"}}
    else:
        field = {name: UNHEEDED[name]}
        assert text(server, **field)["choices"] == text(server)["choices"]
    assert chat(server, **field)["choices"] == chat(server)["choices"]


def test_what_other_servers_take_and_changes_nothing_is_taken(server):
    neutral = {
        "repetition_penalty": 1.0,
        "top_k": -1,
        "min_p": 0,
        "frequency_penalty": 0,
        "logit_bias": {},
        "chat_template_kwargs": {},
        "best_of": 1,
        "ignore_eos": False,
        "stop_token_ids": [],
        "min_tokens": 0,
        "use_beam_search": False,
        "skip_special_tokens": True,
    }
    assert chat(server, **neutral)["choices"] == chat(server)["choices"] == chat(server, top_k=0)["choices"]
    assert "chat_template_kwargs" in chat(server, 400, chat_template_kwargs={"a": 1})["error"]["message"]


# -- what is done ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        {"top_k": 2},
        {"min_p": 0.5},
        {"frequency_penalty": 1.5},
        {"presence_penalty": -2},
        {"repetition_penalty": 1.4},
        {"logit_bias": {"65": 40}},
    ],
    ids=lambda more: next(iter(more)),
)
def test_a_requests_sampling_is_the_engines(server, engine, more):
    body = {"temperature": 1.5, "seed": 3, "max_tokens": 30, **more}
    made = chat(server, **body)["choices"][0]["message"]["content"]
    fields = {"logit_bias": ((65, 40.0),)} if "logit_bias" in more else more
    sampling = ps.Sampling(temperature=1.5, top_p=1, max_new_tokens=30, **fields)
    (ours,) = engine.respond([ps.Prompt(tuple(HELLO), seed=3)], sampling)
    assert made == ours.text
    assert made != chat(server, **{**body, **dict.fromkeys(more)})["choices"][0]["message"]["content"]


def test_a_nucleus_of_nothing_is_the_most_probable_token(server):
    assert chat(server, top_p=0, temperature=2, seed=1)["choices"] == chat(server)["choices"]


def test_more_tokens_than_there_is_room_for_are_cut_to_what_fits(server):
    for name in ("max_tokens", "max_completion_tokens"):
        made = chat(server, **{name: 1280}, ignore_eos=True)
        assert made["usage"]["completion_tokens"] == 64
        assert made["choices"][0]["finish_reason"] == "length"
    long = text(server, prompt=[65] * 500, max_tokens=1280, ignore_eos=True)
    assert long["usage"]["total_tokens"] == 512


def test_a_prompt_is_scored_without_a_token_made(server, engine):
    ids = engine.chat.text_ids("Once upon a time")
    one = text(server, prompt=ids, max_tokens=1, echo=True, logprobs=2, ignore_eos=True)["choices"][0]
    scored = text(server, prompt=ids, max_tokens=0, echo=True, logprobs=2)
    assert scored["usage"] == {"prompt_tokens": len(ids), "completion_tokens": 0, "total_tokens": len(ids)}
    choice = scored["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("Once upon a time", "length")
    for name, values in choice["logprobs"].items():
        assert values == one["logprobs"][name][: len(ids)]
        assert len(values) == len(ids)
    assert text(server, max_tokens=0)["choices"][0]["text"] == ""
    with httpx.stream(
        "POST", f"{server}/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 0, "stream": True}
    ) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert json.loads(lines[0].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert lines[1:] == ["data: [DONE]"]


def test_stop_tokens_of_a_requests_own_end_its_reply_and_ignored_ones_do_not(server, engine):
    whole = chat(server, max_tokens=20, ignore_eos=True, logprobs=True)
    drawn = [engine.tokenizer.convert_tokens_to_ids(t["token"]) for t in whole["choices"][0]["logprobs"]["content"]]
    (ours,) = engine.respond([ps.Prompt(tuple(HELLO))], ps.Sampling(temperature=0, max_new_tokens=20))
    stop = ours.token_ids[3]
    made = chat(server, max_tokens=20, stop_token_ids=[stop])
    assert made["usage"]["completion_tokens"] == ours.token_ids.index(stop) + 1
    assert made["choices"][0]["finish_reason"] == "stop"
    assert len(drawn) == 20


@pytest.mark.parametrize("way", [{"continue_final_message": True}, {"add_generation_prompt": False}])
def test_an_assistants_last_message_is_gone_on_with_and_only_what_is_new_is_told(server, engine, way):
    begun = [*HELLO, {"role": "assistant", "content": "Good day, and"}]
    rendered = engine.chat.render(begun, reply=False)
    ids = engine.tokenizer(rendered[: rendered.rindex("<|im_end|>")], add_special_tokens=False)["input_ids"]
    made = chat(server, messages=begun, **way)
    expected = text(server, prompt=ids)
    assert made["choices"][0]["message"]["content"] == expected["choices"][0]["text"]
    assert made["usage"] == expected["usage"]
    assert made["choices"][0] != chat(server, messages=begun)["choices"][0]
    assert made["persona"]["tokens_read"] <= 6
    assert next(iter(way)) in chat(server, 400, **way)["error"]["message"]


def test_beginning_a_reply_and_going_on_with_one_do_not_go_together(server):
    begun = [*HELLO, {"role": "assistant", "content": "Good day"}]
    chat(server, 400, messages=begun, continue_final_message=True, add_generation_prompt=True)


# -- tools -------------------------------------------------------------------------------------------------------------


def test_a_template_that_knows_tools_writes_them_itself(tools_server, engine):
    written = with_template(engine, TOOL_TEMPLATE)
    assert vars(written.chat.tool_forms) == {"offered": True, "calls": True, "results": True}
    native = [HELLO[0], {**AGENT[1], "content": ""}, {"role": "tool", "tool_call_id": "call_1", "content": "four"}]
    rendered = written.chat.render(native, tools=[TOOL])
    assert rendered.startswith('[add {"type": "object"')
    assert '(call add {"a": 2})<|im_end|>' in rendered
    assert "<|im_start|>tool\nfour<|im_end|>" in rendered
    ids = written.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    made = chat(tools_server, messages=AGENT, tools=[TOOL])
    assert made["choices"][0]["message"]["content"] == text(tools_server, prompt=ids)["choices"][0]["text"]
    assert made["usage"]["prompt_tokens"] == len(ids)
    untold = chat(tools_server, messages=AGENT, tools=[TOOL], tool_choice="none")
    assert untold["usage"] == chat(tools_server, messages=AGENT)["usage"]
    assert untold["usage"]["prompt_tokens"] < len(ids)


@pytest.mark.parametrize(
    "template", [None, make_tokenizer().chat_template, ALTERNATING], ids=["none", "plain", "turns"]
)
def test_what_a_template_cannot_write_of_tools_stands_in_the_text(engine, template):
    chat_of = with_template(engine, template).chat
    messages = [HELLO[0], {**AGENT[1], "content": "Let me see."}, {"role": "tool", "content": "four"}, *HELLO]
    rendered = chat_of.render(messages)
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>'
    assert f"Let me see.\n{call}" in rendered
    assert "four" in rendered
    assert rendered.count("hello") == 2
    span, places = chat_of.spans(messages)
    (start, end), tokenizer = span.spans[0], chat_of.tokenizer
    assert places == [1]
    assert tokenizer.decode(list(span.token_ids[start:end])) == f"Let me see.\n{call}"


def test_a_call_that_the_template_writes_is_read_as_the_turn_it_is(engine):
    chat_of = with_template(engine, TOOL_TEMPLATE).chat
    native = [{**m, "content": "four" if m["role"] == "tool" else m["content"] or ""} for m in AGENT]
    span, _ = chat_of.spans([*native, {"role": "assistant", "content": "It is four."}])
    texts = [chat_of.tokenizer.decode(list(span.token_ids[a:b])) for a, b in span.spans]
    assert texts == ['(call add {"a": 2})', "It is four."]


@pytest.mark.parametrize("which", ["server", "tools_server"])
def test_an_agents_history_is_answered_and_projected(request, which):
    address = request.getfixturevalue(which)
    older = [
        *HELLO,
        {"role": "assistant", "function_call": {"name": "add", "arguments": "not JSON"}},
        {"role": "function", "name": "add", "content": "four"},
        {"role": "developer", "content": "Be brief."},
    ]
    for messages in (AGENT, older, [*AGENT, {"role": "assistant", "content": None, "refusal": "I will not."}, *HELLO]):
        made = chat(address, messages=messages)
        assert made["persona"]["tokens_read"] > 0
        told = httpx.post(f"{address}/v1/persona/project", json={"messages": messages}, timeout=30).json()
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        assert [turn["index"] for turn in told["turns"]] == turns
        assert all(turn["tokens"] > 3 for turn in told["turns"])


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "image_url"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "input_audio"),
        ({"role": "tool", "content": [{"type": "text"}]}, "something else"),
        ({"role": "assistant", "tool_calls": [{"id": "1", "type": "custom", "custom": {}}]}, "tool_calls.0"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": {"a": "\ud800"}}}]}, "surrogate"),
        ({"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}, "name"),
    ],
)
def test_messages_that_cannot_be_read_are_refused_by_name(server, message, said):
    body = json.dumps({"model": "tiny", "messages": [*HELLO, message]})
    answer = httpx.post(f"{server}/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]
    assert "messages.1" in answer.json()["error"]["message"]


@pytest.mark.parametrize("arguments", ["[" * 5000, '{"a":' * 900 + "1" + "}" * 900, '{"a": "\\ud800"}', "NaN", ""])
def test_a_calls_arguments_may_be_any_text(tools_server, arguments):
    call = {"id": "1", "type": "function", "function": {"name": "x", "arguments": arguments}}
    body = {"model": "tiny", "max_tokens": 2, "messages": [*HELLO, {"role": "assistant", "tool_calls": [call]}]}
    answer = httpx.post(f"{tools_server}/v1/chat/completions", json=body, timeout=30)
    if answer.status_code != 200:
        assert answer.status_code == 400
        assert re.search("arguments|context is 512 tokens", answer.json()["error"]["message"])


# -- context -----------------------------------------------------------------------------------------------------------


def test_the_context_is_told_where_models_are_listed_and_kept(space, engine):
    with serving(space, engine, context=40) as (address, _):
        assert {m["max_model_len"] for m in httpx.get(f"{address}/v1/models").json()["data"]} == {40}
        assert httpx.get(f"{address}/v1/models/tiny").json()["max_model_len"] == 40
        assert httpx.get(f"{address}/health").status_code == 200
        assert text(address, max_tokens=100, ignore_eos=True)["usage"]["total_tokens"] == 40
        assert "context is 40" in text(address, 400, prompt="x" * 50)["error"]["message"]


def test_a_context_that_model_or_memory_have_no_room_for_is_refused_on_start(space, engine):
    with pytest.raises(UsageError, match=r"--context 600: me/tiny takes 512"):
        create_app(space, engine, Settings(context=600))
    with pytest.raises(UsageError, match=r"memory for \d+ tokens in each of 100000000 rows; lower --rows"):
        create_app(space, engine, Settings(context=500, rows=10**8))


# -- the Responses API -------------------------------------------------------------------------------------------------


def test_a_response_says_what_a_chat_completion_says_streamed_and_not(client, server):
    asked = {"model": "tiny", "instructions": "Be brief.", "temperature": 0, "max_output_tokens": 12}
    expected = chat(server, messages=[{"role": "system", "content": "Be brief."}, *HELLO], max_tokens=12)
    text_of, counts = expected["choices"][0]["message"]["content"], expected["usage"]
    finish = {"length": "incomplete", "stop": "completed"}[expected["choices"][0]["finish_reason"]]
    for given in (
        "hello",
        HELLO,
        [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}],
    ):
        made = client.responses.create(input=given, store=True, metadata={"a": "b"}, **asked)
        assert (made.output_text, made.status) == (text_of, finish)
        assert made.usage.input_tokens == counts["prompt_tokens"]
        assert made.usage.output_tokens == counts["completion_tokens"]
        assert made.persona == expected["persona"]
    with client.responses.stream(input="hello", **asked) as stream:
        events = list(stream)
        final = stream.get_final_response() if finish == "completed" else events[-1].response
    assert [e.type for e in events[:4]] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == text_of
    assert events[-1].type == f"response.{finish}"
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert final.output_text == text_of
    assert final.usage == made.usage


def test_a_responses_items_are_a_chats_messages(server):
    items = [
        *HELLO,
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]},
        {"type": "function_call", "call_id": "1", "name": "add", "arguments": "{}", "id": "fc_1"},
        {"type": "function_call", "call_id": "2", "name": "take", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "four"},
        {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "two"}]},
    ]
    calls = [{"id": str(k + 1), "function": {"name": n, "arguments": "{}"}} for k, n in enumerate(("add", "take"))]
    messages = [
        *HELLO,
        {"role": "assistant", "content": "Let me see.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": "four"},
        {"role": "tool", "tool_call_id": "2", "content": "two"},
    ]
    made = sent(server, "responses", {"input": items, "temperature": 0, "max_output_tokens": 6})
    expected = chat(server, messages=messages)
    assert made["output"][0]["content"][0]["text"] == expected["choices"][0]["message"]["content"]
    assert made["usage"]["input_tokens"] == expected["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    "wrong", [{"parameters": json.loads('{"a":' * 40 + "1" + "}" * 40)}, {"description": "\ud800"}]
)
def test_a_response_whose_tool_is_no_tool_is_refused_as_a_chats_is(server, wrong):
    body = {"model": "tiny", "input": "hi", "tools": [{"type": "function", "name": "f", **wrong}]}
    answer = httpx.post(
        f"{server}/v1/responses", content=json.dumps(body), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("tools.0")


def test_a_response_is_capped_and_told_token_by_token(client, space):
    asked = {"model": "tiny:capped", "input": "hello", "temperature": 0, "max_output_tokens": 9}
    stream = client.responses.create(stream=True, extra_body={"persona": {"report": "token"}}, **asked)
    events = list(stream)
    projections = [
        t["projection"]
        for e in events
        for t in ((getattr(e, "persona", None) or {}).get("tokens", []) if e.type.endswith("delta") else [])
    ]
    told = events[-1].response.persona
    projections += [t["projection"] for t in told["tokens"]]  # of the tokens after the last event
    assert len(projections) == told["tokens_read"]
    assert torch.tensor(projections).min() >= dict(zip(space.cap().layers, space.cap().floor, strict=True))[1] - 1e-2
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        client.responses.create(previous_response_id="resp_1", **asked)
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.responses.create(**{**asked, "model": "gpt"})
