"""Whatever is sent, the server answers, as its OpenAPI document says, and never with a failure of its own."""

from __future__ import annotations

from collections import Counter

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from personaspace.serve import hash_key
from served import engine, serving, space

HELLO = [{"role": "user", "content": "hello"}]
QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


@pytest.fixture(scope="module")
def server(space, engine):
    with serving(space, engine, rows=8, max_tokens=24) as (address, _):
        yield address


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
SOUND = {
    "/v1/chat/completions": {"messages": HELLO, "max_tokens": 2},
    "/v1/completions": {"prompt": "x", "max_tokens": 2},
    "/v1/responses": {"input": "x", "max_output_tokens": 2},
    "/v1/persona/project": {"messages": HELLO},
}
FIELDS = [
    "model",
    "messages",
    "prompt",
    "n",
    "stop",
    "stream",
    "seed",
    "max_tokens",
    "persona",
    "logprobs",
    "tools",
    "tool_choice",
    "echo",
    "input",
    "logit_bias",
    "top_k",
    "stop_token_ids",
    "continue_final_message",
]


@pytest.mark.long
@settings(max_examples=150, **QUIET)
@given(
    path=st.sampled_from(list(SOUND)),
    body=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=5),
    sound=st.booleans(),
)
def test_no_body_makes_the_server_fail_or_hang(server, path, body, sound):
    if sound:
        body = {"model": "tiny", **SOUND[path], **body}
    answer = httpx.post(server + path, json=body, timeout=30)
    assert answer.status_code < 500
    if answer.status_code >= 400:
        assert answer.json()["error"]["message"]


@pytest.fixture(scope="module")
def operations(server):
    schema = schemathesis.openapi.from_url(f"{server}/openapi.json")
    return {found.ok().label: found.ok() for found in schema.get_all_operations()}


POSTS = ["POST /v1/chat/completions", "POST /v1/completions", "POST /v1/responses", "POST /v1/persona/project"]
GETS = ["GET /health", "GET /healthz", "GET /readyz", "GET /v1/models", "GET /v1/persona/space", "GET /metrics"]


@pytest.mark.long
@pytest.mark.parametrize("label", [*POSTS, "GET /v1/models/{name}"])
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["sound", "broken"])
def test_answers_are_what_the_document_says_they_are(operations, label, mode):
    if "{name}" in label and mode == GenerationMode.NEGATIVE:
        pytest.skip("any text may be a name")
    seen: Counter[int] = Counter()

    @settings(max_examples=60, **QUIET)
    @given(case=operations[label].as_strategy(generation_mode=mode))
    def check(case):
        answer = case.call(timeout=30)
        seen[answer.status_code] += 1
        # A document cannot say that a prompt must fit the context, or two fields each other: that is answered 400.
        case.validate_response(answer, excluded_checks=[positive_data_acceptance])

    check()
    if label in POSTS:
        refused = sum(count for status, count in seen.items() if 400 <= status < 500)
        # Of sound conversations few end so that a reply in them can be read.
        least = 1 if "project" in label else 6
        assert (seen[200] if mode == GenerationMode.POSITIVE else refused) >= least, seen


def test_the_document_names_every_route_and_each_answers_as_it_says(operations):
    assert set(operations) == {*POSTS, *GETS, "GET /v1/models/{name}"}
    for label in GETS:
        operations[label].Case().call_and_validate(timeout=30)


def test_the_document_knows_this_servers_models_caps_roles_limits_and_key(space, engine, server):
    with serving(space, engine, max_n=3, keys=(hash_key("secret"),)) as (address, _):
        assert httpx.get(f"{address}/openapi.json").status_code == 401
        locked = httpx.get(f"{address}/openapi.json", headers={"authorization": "Bearer secret"}).json()
    schemas = locked["components"]["schemas"]
    assert schemas["ChatCompletion"]["properties"]["n"]["anyOf"][0]["maximum"] == 3
    assert "tiny:capped" in schemas["TextCompletion"]["properties"]["model"]["enum"]
    assert "capped" in schemas["Persona"]["properties"]["cap"]["anyOf"][0]["enum"]
    assert "ghost" in schemas["Steer"]["properties"]["direction"]["enum"]
    assert locked["paths"]["/v1/chat/completions"]["post"]["security"] == [{"key": []}]
    assert "security" not in httpx.get(f"{server}/openapi.json").json()["paths"]["/v1/models"]["get"]


HALF = "\\ud800"  # half of a surrogate pair, as JSON spells it: no text
HOSTILE = [
    f'{{"model": "tiny", "prompt": "{HALF}"}}',
    f'{{"model": "tiny", "prompt": ["{HALF}"]}}',
    f'{{"model": "{HALF}", "prompt": "x"}}',
    f'{{"model": "tiny", "prompt": "x", "{HALF}": 1}}',
    f'{{"model": "tiny", "prompt": "x", "stop": "{HALF}"}}',
    f'{{"model": "tiny", "prompt": "x", "persona": {{"cap": "{HALF}"}}}}',
    f'{{"model": "tiny", "prompt": "x", "persona": {{"steer": [{{"alpha": 1, "{HALF}": 1}}]}}}}',
    f'{{"model": "tiny", "messages": [{{"role": "user", "content": "{HALF}"}}]}}',
    f'{{"model": "tiny", "messages": [{{"role": "user", "content": [{{"type": "text", "text": "{HALF}"}}]}}]}}',
    f'{{"model": "tiny", "messages": [{{"role": "{HALF}", "content": "x"}}]}}',
    '{"model": "tiny", "messages": [{"role": "assistant", "content": ""}]}',
    '{"model": "tiny", "prompt": "x", "temperature": NaN}',
    '{"model": "tiny", "prompt": "x", "persona": {"steer": [{"alpha": Infinity}]}}',
    '{"model": "tiny", "prompt": "x", "persona": {"history": [1e308, 1e308, NaN, Infinity]}}',
    '{"model": "tiny", "prompt": "x", "max_tokens": 1e400}',
    '{"model": "tiny", "prompt": [1e400]}',
    '{"model": "tiny", "prompt": "x", "seed": ' + "9" * 4000 + "}",
    '{"model": "tiny", "prompt": "x", "seed": ' + "9" * 5000 + "}",
    "[" * 100_000,
    '{"a":' * 50_000,
    "null",
    "",
]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/persona/project"])
def test_no_body_that_is_odd_json_makes_the_server_fail(server, path):
    for body in HOSTILE:
        answer = httpx.post(server + path, content=body, headers={"content-type": "application/json"}, timeout=30)
        assert answer.status_code < 500, body[:100]
        if answer.status_code >= 400:
            assert answer.json()["error"]["message"]
