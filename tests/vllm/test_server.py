"""vLLM's own server with the `persona` extension, started as a user starts it, on the embedded model and its space."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from personaspace.engines.vllm.wire import pack
from personaspace.serve.vllm import Endpoints, VllmPersona
from personaspace.space import PersonaSpace
from vllm_server import vllm_served


@pytest.fixture(scope="module")
def server() -> Iterator[httpx.Client]:
    with vllm_served("smollm2") as address, httpx.Client(base_url=address, timeout=120) as client:
        yield client


def ask(**more: Any) -> dict[str, Any]:
    question = {"role": "user", "content": "Who are you?"}
    return {"model": "smollm2", "messages": [question], "temperature": 0, "max_tokens": 24, **more}


def test_a_reply_tells_its_persona(server: httpx.Client) -> None:
    answer = server.post("/v1/chat/completions", json=ask()).json()
    persona = answer["persona"]
    assert persona["tokens_read"] in (answer["usage"]["completion_tokens"] - 1, answer["usage"]["completion_tokens"])
    assert persona["capped_tokens"] == 0
    assert persona["nearest"]


def test_requests_at_once_are_held_each_in_its_own_way(server: httpx.Client) -> None:
    ways = [{}, {"persona": {"cap": "capped"}}, {"persona": {"steer": [{"alpha": -0.4}]}}, {"model": "smollm2:capped"}]
    with ThreadPoolExecutor(4) as pool:
        plain, held, steered, named = pool.map(
            lambda more: server.post("/v1/chat/completions", json=ask(**more)).json(), ways
        )
    assert plain["persona"]["capped_tokens"] == 0
    assert held["persona"]["capped_tokens"] > 0
    assert held["choices"][0]["message"]["content"] == named["choices"][0]["message"]["content"]
    assert steered["persona"]["projection"] < plain["persona"]["projection"]
    again = server.post("/v1/chat/completions", json=ask()).json()
    assert again["choices"][0]["message"]["content"] == plain["choices"][0]["message"]["content"]


def test_a_stream_ends_with_the_persona(server: httpx.Client) -> None:
    with server.stream("POST", "/v1/chat/completions", json=ask(stream=True)) as response:
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["persona"]["tokens_read"] > 0
    assert all(json.loads(event)["choices"] for event in events[:-1])  # counts come where they are asked for


def test_each_token_tells_where_it_stands(server: httpx.Client) -> None:
    way = {"persona": {"cap": "capped", "report": "token"}}
    whole = server.post("/v1/chat/completions", json=ask(**way)).json()["persona"]
    mean = sum(t["projection"] for t in whole["tokens"]) / len(whole["tokens"])
    assert len(whole["tokens"]) == whole["tokens_read"]
    assert mean == pytest.approx(whole["projection"], rel=1e-4)
    assert sum(t["capped"] for t in whole["tokens"]) == whole["capped_tokens"] > 0
    with server.stream("POST", "/v1/chat/completions", json=ask(stream=True, **way)) as response:
        events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
    told = [t for e in events for t in (e.get("persona") or {}).get("tokens", [])]
    assert sum(bool((e.get("persona") or {}).get("tokens")) for e in events[:-1]) > 1  # they come while it is written
    assert [t["index"] for t in told] == [t["index"] for t in whole["tokens"]]
    assert [t["projection"] for t in told] == pytest.approx([t["projection"] for t in whole["tokens"]], rel=1e-3)
    assert events[-1]["persona"]["projection"] == pytest.approx(whole["projection"], rel=1e-3)
    assert events[-1]["persona"]["capped_tokens"] == whole["capped_tokens"]


def test_a_wrong_persona_is_refused(server: httpx.Client) -> None:
    for wrong in ({"cap": "none of them"}, {"cup": 1}, {"steer": [{"alpha": 99}]}):
        assert server.post("/v1/chat/completions", json=ask(persona=wrong)).status_code == 400


def test_a_capped_name_is_never_answered_without_the_cap(server: httpx.Client) -> None:
    names = {m["id"] for m in server.get("/v1/models").json()["data"]}
    assert {"smollm2", "smollm2:capped"} <= names
    capped = {"model": "smollm2:capped"}
    told = server.post("/v1/chat/completions", json=ask(**capped)).json()
    assert told["model"] == "smollm2:capped"
    assert told["persona"]["capped_tokens"] > 0
    text = {"prompt": "The tide", "max_tokens": 8, "temperature": 0}
    held = server.post("/v1/completions", json={**capped, **text}).json()
    assert held["model"] == "smollm2:capped"
    assert held["persona"]["capped_tokens"] > 0
    several = server.post("/v1/completions", json={**capped, **text, "prompt": ["The tide", "The moon"]}).json()
    assert (several["choices"][0]["text"], several["persona"]) == (held["choices"][0]["text"], None)
    assert server.post("/v1/chat/completions", json=ask(**capped, use_beam_search=True, n=2)).status_code == 400
    assert server.post("/v1/chat/completions", json=ask(**capped, n=2, temperature=1)).status_code == 400
    several = server.post("/v1/chat/completions", json=ask(n=2, temperature=1)).json()
    assert len(several["choices"]) == 2
    assert several["persona"] is None


def test_what_is_no_request_is_refused(server: httpx.Client) -> None:
    for body in ([1], "x", {**ask(), "vllm_xargs": "x"}):
        assert server.post("/v1/chat/completions", json=body).status_code == 400


def test_a_client_that_hangs_up_leaves_the_server_as_it_was(server: httpx.Client) -> None:
    long = ask(max_tokens=400, ignore_eos=True)
    with pytest.raises(httpx.ReadTimeout):
        server.post("/v1/chat/completions", json=long, timeout=0.3)
    with server.stream("POST", "/v1/chat/completions", json={**long, "stream": True}) as response:
        next(response.iter_lines())
    for _ in range(100):
        if "vllm:num_requests_running" in (text := server.get("/metrics").text):
            running = [line for line in text.splitlines() if line.startswith("vllm:num_requests_running")]
            if all(line.endswith(" 0.0") for line in running):
                break
        time.sleep(0.1)
    else:
        pytest.fail("what nobody waits for goes on")
    assert server.post("/v1/chat/completions", json=ask()).json()["persona"]["tokens_read"] > 0


def test_metrics_stand_beside_vllms(server: httpx.Client) -> None:
    server.post("/v1/chat/completions", json=ask())
    text = server.get("/metrics").text
    assert "personaspace_projection_count" in text
    assert "vllm:" in text


def test_text_completions_take_the_plain_way(server: httpx.Client) -> None:
    ways = json.dumps({"read": "all"})
    body = {"model": "smollm2", "prompt": "The tide", "max_tokens": 4, "vllm_xargs": {"personaspace": ways}}
    assert server.post("/v1/completions", json=body).status_code == 200
    body["vllm_xargs"] = {"personaspace": "{"}
    assert server.post("/v1/completions", json=body).status_code == 400
    several = {**body, "vllm_xargs": None, "prompt": ["The tide", "The moon"], "persona": {"read": ["ghost"]}}
    refused = server.post("/v1/completions", json=several)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "persona"


def test_the_space_is_described(server: httpx.Client) -> None:
    assert server.get("/v1/persona/space").json()["model"] == "smollm2"


class Workers:
    """Notes what the workers are asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    async def collective_rpc(self, name: str, args: tuple[Any, ...] = ()) -> list[bytes]:
        self.calls.append((name, args))
        return [pack({})]


def test_of_clients_that_leave_only_what_was_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.entrypoints.openai.chat_completion import api_router

    async def gone(*_: Any, **__: Any) -> None:
        """vLLM's answer where the client is gone."""

    monkeypatch.setattr(api_router, "create_chat_completion", gone)
    workers = Workers()
    app = FastAPI()
    app.state.personaspace = VllmPersona(PersonaSpace.load("smollm2"), "smollm2", workers)
    Endpoints().attach_router(app)
    client = TestClient(app)
    for more, dropped in (({"n": 2, "temperature": 1}, []), ({}, [1])):
        assert client.post("/v1/chat/completions", json=ask(**more)).status_code == 499
        taken = [args[0] for name, args in workers.calls if name == "personaspace_take"]
        assert [len(keys) for keys in taken] == dropped
        assert all(key for keys in taken for key in keys)
