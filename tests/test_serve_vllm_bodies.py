"""What vLLM's server is sent so that a body asks it for what it asks our own for, as far as it can be seen without vLLM."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from conftest import NO_SYSTEM, TEMPLATE, make_tokenizer
from personaspace.engines.chat import Chat
from personaspace.serve.messages import ChatMessage
from personaspace.serve.types import NEUTRAL
from personaspace.serve.vllm_bodies import as_rendered_here, as_vllm_takes, cut_to_fit
from test_serve_compat import AGENT, ALTERNATING, HELLO, TOOL_TEMPLATE

TEMPLATES = {"plain": TEMPLATE, "no system": NO_SYSTEM, "tools": TOOL_TEMPLATE, "alternating": ALTERNATING}
CONVERSATIONS = {
    "agent": AGENT,
    "developer": [{"role": "developer", "content": "Be brief."}, *HELLO],
    "no content": [*HELLO, {"role": "assistant", "content": None}, *HELLO],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}],
    "older calls": [
        *HELLO,
        {"role": "assistant", "function_call": {"name": "add", "arguments": "{}"}},
        {"role": "function", "name": "add", "content": "four"},
    ],
    "refusal": [*HELLO, {"role": "assistant", "refusal": "No."}, *HELLO],
}


@pytest.fixture(scope="module", params=TEMPLATES)
def chat(request):
    return Chat(make_tokenizer(TEMPLATES[request.param]))


def rendered_by_vllm(body, chat):
    """As vLLM renders it: the messages and the switches as they are, a call's arguments read from their JSON."""
    messages = [dict(m) for m in body["messages"]]
    for message in messages:
        message["tool_calls"] = [
            {**c, "function": {**c["function"], "arguments": json.loads(c["function"]["arguments"])}}
            for c in message.get("tool_calls", ())
        ]
    text = chat.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, **body["chat_template_kwargs"]
    )
    return chat.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_vllm_renders_the_token_ids_that_our_own_server_does(chat, name):
    messages = CONVERSATIONS[name]
    expected = chat.prompt_ids([ChatMessage.model_validate(m).plain() for m in messages])
    assert rendered_by_vllm(as_rendered_here({"messages": messages}, chat), chat) == expected


def test_what_vllm_alone_takes_is_left_to_it(chat):
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}]
    assert as_rendered_here({"messages": image}, chat)["messages"] == image


def test_what_asks_for_nothing_is_left_out_and_what_means_something_there_stays():
    asked = {"messages": HELLO, "temperature": 0.5}
    neutral = {name: values[0] for name, values in NEUTRAL.items() if name not in ("parallel_tool_calls",)}
    nothing = {"stop": None, "new": None, "n": None}
    assert as_vllm_takes({**asked, **neutral, **nothing, "include_reasoning": False}) == {
        **asked,
        "include_reasoning": False,
    }
    assert as_vllm_takes({**asked, "tools": [{}], "tool_choice": "none"}) == asked
    offered = {**asked, "tools": [{}], "tool_choice": "auto", "parallel_tool_calls": False, "user": "me"}
    assert as_vllm_takes(offered) == offered
    assert as_vllm_takes({**asked, "min_tokens": 3})["min_tokens"] == 3


@pytest.mark.parametrize("way", [{"continue_final_message": True}, {"add_generation_prompt": False}])
def test_a_message_is_gone_on_with_in_the_way_that_vllm_knows(way):
    begun = [*AGENT, {"role": "assistant", "content": "It is"}]
    told = as_vllm_takes({"messages": begun, **way})
    assert (told["continue_final_message"], told["add_generation_prompt"]) == (True, False)
    with pytest.raises(ValidationError, match="goes on with an assistant's message; the last one is of role tool"):
        as_vllm_takes({"messages": AGENT, **way})
    with pytest.raises(ValidationError, match="begins a new one"):
        as_vllm_takes({"messages": begun, "continue_final_message": True, "add_generation_prompt": True})


@given(
    limit=st.integers(1, 600), length=st.integers(1, 200), name=st.sampled_from(["max_tokens", "max_completion_tokens"])
)
def test_no_more_tokens_are_asked_for_than_fit_and_no_fewer_than_wanted_where_they_do(limit, length, name):
    chat, context = Chat(make_tokenizer()), 256
    messages = [{"role": "user", "content": "x" * length}]
    body = {"messages": messages, name: limit}
    told = cut_to_fit(body, chat, context, len(json.dumps(body)))
    assert told[name] == min(limit, max(1, context - len(chat.prompt_ids(messages))))
    text = cut_to_fit({"prompt": ["x" * length, "x"], name: limit}, chat, context, 2 * length)
    assert text[name] == min(limit, context - length)


@pytest.mark.parametrize("prompt", [{}, 3, [], [[]], [None], [{}], ""])
def test_a_prompt_that_is_none_is_vllms_to_refuse(prompt):
    assert cut_to_fit({"prompt": prompt, "max_tokens": 999}, Chat(make_tokenizer()), 256, 10)["prompt"] == prompt
