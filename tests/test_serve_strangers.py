"""What strangers may send a server, and what becomes of it: names, keys, types, bodies, silence (see SECURITY.md)."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from personaspace.engines.vllm.admission import CLIENT
from personaspace.errors import UsageError
from personaspace.serve import Settings, hash_key, read_keys
from personaspace.serve.bodies import read_body
from personaspace.serve.refusals import BadRequest
from personaspace.serve.settings import EMPTY, host_name, settings_of
from personaspace.serve.texts import texts_of
from personaspace.serve.vllm import VllmGuard, command
from served import engine, serving, space

HELLO = [{"role": "user", "content": "hello"}]
ASKED = {"model": "tiny", "messages": HELLO, "max_tokens": 3}
JSON = {"content-type": "application/json"}
MANY = {
    "prompts": '{"model": "tiny", "prompt": [' + ",".join(['"a"'] * 250_000) + "]}",
    "objects": '{"model": "tiny", "messages": [' + ",".join(["{}"] * 340_000) + "]}",
    "objects elsewhere": '{"model": "tiny", "prompt": "x", "metadata": [' + ",".join(["{}"] * 340_000) + "]}",
    "numbers": '{"model": "tiny", "prompt": [' + ",".join(["1"] * 500_000) + "]}",
    "lists of numbers": '{"model": "tiny", "prompt": [' + ",".join(["[1]"] * 250_000) + "]}",
    "mixed": '{"model": "tiny", "prompt": [[' + ",".join(["1,true"] * 100_000) + "]]}",
    "names": "{" + ",".join(f'"{k}":1' for k in range(90_000)) + "}",
    "depth": '{"model": "tiny", "prompt": ' + "[" * 500_000,
    "a text without an end": '{"model": "tiny", "prompt": "' + '\\"' * 300_000 + "[" * 30_000,
    "parts": '{"model": "tiny", "messages": [{"role": "user", "content": ['
    + ",".join(['{"type":"text","text":""}'] * 30_000)
    + "]}]}",
}


@pytest.fixture(scope="module")
def server(space, engine):
    with serving(space, engine, rows=4, max_tokens=64) as (address, _):
        yield address


# -- bodies --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MANY)
def test_a_body_of_far_too_many_things_is_refused_by_counting_them(kind, monkeypatch):
    monkeypatch.setattr("pydantic.main.BaseModel.__init__", None)  # nothing is built
    with pytest.raises(BadRequest) as refusal:
        read_body(MANY[kind].encode(), Settings(), 512)
    assert refusal.value.status == 400
    assert len(str(refusal.value)) < 200


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 50])
def test_a_number_that_json_does_not_have_is_refused(number):
    with pytest.raises(BadRequest, match=r"JSON|digits"):
        read_body(f'{{"model": "tiny", "temperature": {number}}}'.encode(), Settings(), 512)


def test_what_fits_the_limits_is_read_as_it_stands():
    body = {"model": "tiny", "prompt": [[1, 2.0], [3]], "stop": ["x"], "note": "é" * 1000 + "{[,"}
    assert read_body(json.dumps(body).encode(), Settings(), 512) == body
    assert read_body(b"null", Settings(), 512) is None


@pytest.mark.long
def test_the_server_answers_others_while_it_refuses_floods_and_long_texts(server):
    bodies = [*MANY.values(), *(json.dumps({"model": "tiny", "prompt": "word " * 200_000}) for _ in range(4))]
    with ThreadPoolExecutor(len(bodies)) as pool:
        url = f"{server}/v1/completions"
        answers = [pool.submit(httpx.post, url, content=b, headers=JSON, timeout=60) for b in bodies]
        slowest = 0.0
        while not all(a.done() for a in answers):
            began = time.monotonic()
            assert httpx.get(f"{server}/healthz", timeout=30).status_code == 200
            slowest = max(slowest, time.monotonic() - began)
    assert {a.result().status_code for a in answers} == {400}
    assert slowest < 10  # it stood for as long as all of it took to build


def test_a_long_text_is_tokenised_beside_the_event_loop_and_only_so_many_wait(space, engine, monkeypatch):
    begun, done = threading.Semaphore(0), threading.Event()
    whole = engine.chat.text_ids

    def slow(text):
        if len(text) >= 4096:
            begun.release()
            done.wait(20)
        return whole(text)

    monkeypatch.setattr(engine.chat, "text_ids", slow)
    long = {"model": "tiny", "prompt": "word " * 1000, "max_tokens": 1}
    with serving(space, engine, queue=2) as (address, _), ThreadPoolExecutor(2) as pool:
        url = f"{address}/v1/completions"
        waiting = [pool.submit(httpx.post, url, json=long, timeout=30) for _ in range(2)]
        assert all(begun.acquire(timeout=20) for _ in waiting)
        assert httpx.get(f"{address}/healthz", timeout=10).status_code == 200
        assert httpx.post(url, json={**long, "prompt": "short"}, timeout=30).status_code == 200
        assert httpx.post(url, json=long, timeout=30).status_code == 429
        done.set()
        assert {w.result().status_code for w in waiting} == {400}


def test_of_a_text_that_is_far_too_long_only_the_beginning_is_tokenised(space, engine, monkeypatch):
    whole, lengths = engine.chat.text_ids, []
    monkeypatch.setattr(engine.chat, "text_ids", lambda text: lengths.append(len(text)) or whole(text))
    monkeypatch.setattr(engine.chat, "prompt_ids", None)
    content = {"messages": [{"role": "user", "content": "word " * 100_000}]}
    with serving(space, engine) as (address, _):
        answer = httpx.post(f"{address}/v1/chat/completions", json={**ASKED, **content}, timeout=30)
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        projected = httpx.post(f"{address}/v1/persona/project", json=content, timeout=30)
        assert projected.json()["error"]["code"] == "context_length_exceeded"
    assert max(lengths) <= 8 * 512


def test_what_a_call_holds_is_text_as_what_a_message_says(space, engine, monkeypatch):
    whole, lengths = engine.chat.text_ids, []
    monkeypatch.setattr(engine.chat, "text_ids", lambda text: lengths.append(len(text)) or whole(text))
    monkeypatch.setattr(engine.chat, "prompt_ids", None)
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "word " * 100_000}}
    said = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "2"},
    ]
    with serving(space, engine) as (address, _):
        for route in ("chat/completions", "persona/project"):
            body = {"messages": said} if route == "persona/project" else {**ASKED, "messages": said}
            answer = httpx.post(f"{address}/v1/{route}", json=body, timeout=30)
            assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert max(lengths) <= 8 * 512


def test_all_texts_of_tools_count_names_of_fields_too():
    tool = {"type": "function", "function": {"name": "add", "parameters": {"x" * 5000: [{"enum": ["y" * 5000, 1]}]}}}
    assert len(texts_of([{"role": "user", "content": "hi"}], [tool])) > 10_000


def test_stop_texts_are_few_and_short(server):
    for stop in (["x"] * 17, "x" * 257, ["x" * 257]):
        answer = httpx.post(f"{server}/v1/chat/completions", json={**ASKED, "stop": stop}, timeout=30)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"].startswith("stop")


# -- names, keys, types --------------------------------------------------------------------------------------------------


def test_a_page_that_leads_a_name_of_its_own_here_is_refused(server):
    port = server.rpartition(":")[2]
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "[::2]", ""):
        answer = httpx.get(f"{server}/v1/models", headers={"host": host})
        assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "unknown_host"
    for host in ("localhost", f"LOCALHOST:{port}", f"[::1]:{port}", "127.0.0.1"):
        assert httpx.get(f"{server}/v1/models", headers={"host": host}).status_code == 200


def test_only_json_is_taken_so_that_no_foreign_form_can_ask(server):
    body = json.dumps(ASKED)
    for kind in ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain", "", None):
        headers = {} if kind is None else {"content-type": kind}
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/persona/project"):
            answer = httpx.post(server + path, content=body, headers=headers)
            assert answer.status_code == 415
            assert answer.json()["error"]["code"] == "unsupported_content_type"
    for kind in ("application/json", "Application/JSON; charset=utf-8"):
        answer = httpx.post(f"{server}/v1/chat/completions", content=body, headers={"content-type": kind}, timeout=30)
        assert answer.status_code == 200


def test_no_other_origin_is_allowed_unless_it_was_asked_for(server):
    asking = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    for answer in (
        httpx.options(f"{server}/v1/chat/completions", headers=asking),
        httpx.get(f"{server}/v1/models", headers=asking),
    ):
        assert not any(name.startswith("access-control") for name in answer.headers)


def test_with_keys_on_the_document_too_needs_one_and_the_page_and_the_states_do_not(space, engine):
    with serving(space, engine, keys=(hash_key("secret"),)) as (address, _):
        for path in ("/openapi.json", "/docs", "/metrics", "/v1/models", "/v1/persona/space", "/nowhere", "/pages"):
            answer = httpx.get(address + path)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/", "/page/app.js", "/healthz", "/readyz"):
            assert httpx.get(address + path).status_code == 200
        refused = httpx.post(f"{address}/v1/chat/completions", content=b"x" * 500_000, headers=JSON)
        assert refused.status_code == 401
        headers = {"authorization": "Bearer secret", "host": "models.example"}  # a key says enough
        assert httpx.get(f"{address}/openapi.json", headers=headers).status_code == 200
        counted = httpx.get(f"{address}/metrics", headers={"authorization": "Bearer secret"}).text
    assert 'personaspace_requests_total{endpoint="",model="",status="401"} 3.0' in counted


def test_a_key_that_is_empty_is_refused_at_the_start_and_never_let_in(tmp_path, monkeypatch):
    for key in ("", " ", "\n"):
        with pytest.raises(UsageError, match="--api-key is empty"):
            settings_of("127.0.0.1", key, None, (), ())
        monkeypatch.setenv("PERSONASPACE_API_KEY", key)
        with pytest.raises(UsageError, match="PERSONASPACE_API_KEY is empty"):
            settings_of("127.0.0.1", None, None, (), ())
        monkeypatch.delenv("PERSONASPACE_API_KEY")
    for nothing in ("", "\n"):  # printf %s "$UNSET" | sha256sum, and the same with echo
        (tmp_path / "keys").write_text(f"{hash_key('a')}  -\n{hash_key(nothing)}  -\n")
        with pytest.raises(UsageError, match="line 2: the digest of an empty key"):
            read_keys(tmp_path / "keys")
    assert not any(Settings(keys=tuple(EMPTY)).allows(key) for key in ("", " ", "\n"))
    (tmp_path / "keys").write_text(f"{hash_key('a')}  -\n")
    assert read_keys(tmp_path / "keys") == (hash_key("a"),)


def test_a_server_goes_by_the_address_that_it_listens_on_and_by_names_that_are_allowed():
    assert settings_of("127.0.0.2", None, None, (), ()).goes_by("127.0.0.2:8000")
    assert settings_of("::1", None, None, (), ()).goes_by("[::1]:8000")
    mine = settings_of("127.0.0.1", None, None, (), ("Models.example",))
    assert mine.goes_by("models.EXAMPLE:80")
    assert not mine.goes_by("example")
    keyed = settings_of("0.0.0.0", "secret", None, (), ())
    assert keyed.goes_by("anything.example")
    assert not settings_of("0.0.0.0", "secret", None, (), ("models.example",)).goes_by("anything.example")
    assert [host_name(h) for h in ("a:1", "[::1]", "", "b.")] == ["a", "[::1]", "", "b"]


def test_nothing_that_a_stranger_writes_is_a_metrics_label_or_a_line_in_the_log(server, caplog):
    evil = 'evil"} 1\n'
    httpx.post(f"{server}/v1/chat/completions", json={**ASKED, "model": evil})
    httpx.post(f"{server}/v1/chat/completions", json={**ASKED, evil: 1})
    httpx.get(f"{server}/v1/models/evil%22%0A")
    httpx.get(f"{server}/v1/evil%22%0A", headers={"host": "evil.example"})
    httpx.request("EVIL", f"{server}/v1/models", headers=JSON)
    counted = httpx.get(f"{server}/metrics").text
    assert 'personaspace_requests_total{endpoint="/v1/chat/completions",model="",status="404"}' in counted
    logged = [r.getMessage() for r in caplog.records if r.name.startswith(("personaspace", "uvicorn"))]
    assert "evil" not in counted.lower()
    assert not logged


def test_a_foreign_page_may_not_show_the_page_in_a_frame_unless_its_origin_was_named(server, space, engine):
    def ancestors(address, path):
        return httpx.get(address + path).headers["content-security-policy"].partition("frame-ancestors ")[2]

    assert {ancestors(server, path) for path in ("/", "/page/app.js", "/page/plotly.js")} == {"'none'"}
    origins = ("https://huggingface.co", "http://*.mine.example:8080")
    settings = settings_of("127.0.0.1", None, None, (), (), origins)
    with serving(space, engine, framed_by=settings.framed_by) as (address, _):
        assert ancestors(address, "/") == " ".join(origins)
    for other in ("*", "'self'", "https:", "https://a; script-src *", "https://a https://b", "https://a/b", ""):
        with pytest.raises(UsageError, match=r"--framed-by .*expected an origin"):
            settings_of("127.0.0.1", None, None, (), (), (other,))


# -- silence -------------------------------------------------------------------------------------------------------------


def connect(address):
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def is_closed(client):
    """Whether the other side has closed the connection, waiting some seconds for it."""
    client.settimeout(10)
    with client:
        try:
            return client.recv(1) == b""
        except ConnectionResetError:
            return True


def is_reset(client):
    """Whether the other side has cut the connection, without reading what it sent before."""
    try:
        client.send(b"G")
    except OSError:
        return True
    return False


def head(length, path="/v1/chat/completions"):
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    )


def test_a_body_that_does_not_come_is_not_waited_for(space, engine):
    with serving(space, engine, body_seconds=0.3) as (address, _), connect(address) as client:
        client.sendall(head(100).encode() + b"{")
        answer = client.makefile("rb").read()  # to the connection's end
        counted = httpx.get(f"{address}/metrics").text
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"body_too_slow" in answer
    assert 'status="408"} 1.0' in counted


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nG"])
def test_a_connection_that_says_nothing_or_half_a_request_is_dropped(space, engine, sent):
    with serving(space, engine, head_seconds=0.3) as (address, _), connect(address) as client:
        client.sendall(sent)
        try:
            assert client.makefile("rb").read().count(b"HTTP/1.1 200") == sent.count(b"healthz")
        except ConnectionResetError:
            assert not sent.count(b"healthz")


def test_who_keeps_the_server_waiting_longest_makes_room_and_who_is_answered_stays(space, engine):
    with serving(space, engine, connections=3, rows=2) as (address, worker), ThreadPoolExecutor(1) as pool:
        with worker.model_lock.exclusive():
            answered = pool.submit(httpx.post, f"{address}/v1/chat/completions", json=ASKED, timeout=60)
            while not worker.running and not worker.waiting:
                time.sleep(0.01)
            silent = [connect(address) for _ in range(2)]
            for _ in range(3):
                assert httpx.get(f"{address}/healthz", timeout=10).status_code == 200
            assert is_closed(silent[0])
            with silent[1] as later:
                later.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                assert later.makefile("rb").read().startswith(b"HTTP/1.1 200")
        assert answered.result().status_code == 200


def test_a_client_that_reads_nothing_of_its_answer_is_dropped(space, engine):
    with serving(space, engine, unread_seconds=0.3) as (address, _), socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = address.removeprefix("http://").split(":")
        client.connect((host, int(port)))
        asked = b"GET /page/plotly.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
        client.sendall(asked)
        deadline = time.monotonic() + 20
        while not is_reset(client) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert is_reset(client)


def test_a_stream_that_waits_says_that_it_is_alive(space, engine):
    with serving(space, engine, keep_alive_seconds=0.05) as (address, worker):
        with (
            worker.model_lock.exclusive(),
            httpx.Client(timeout=30) as client,
            client.stream("POST", f"{address}/v1/chat/completions", json={**ASKED, "stream": True}) as answer,
        ):
            lines = answer.iter_lines()
            assert [next(lines) for _ in range(4)] == [": keep-alive", "", ": keep-alive", ""]
        with httpx.stream(
            "POST", f"{address}/v1/chat/completions", json={**ASKED, "stream": True}, timeout=30
        ) as whole:
            assert list(whole.iter_lines())[-2] == "data: [DONE]"
        for _ in range(200):
            if not worker.running and not worker.waiting:
                break
            time.sleep(0.02)
        assert not worker.running


# -- vLLM's server -------------------------------------------------------------------------------------------------------


def guarded(monkeypatch, **outside):
    """An application with routes as vLLM's has, behind the guard that vLLM is told of by name."""
    monkeypatch.setenv("PERSONASPACE_OUTSIDE", json.dumps({"keys": [], "hosts": [], "origins": [], **outside}))
    app, clients = FastAPI(), []
    app.add_middleware(VllmGuard)

    @app.api_route("/{path:path}", methods=["GET", "POST", "OPTIONS"])
    async def anything(path: str):
        clients.append(CLIENT.get())
        return {"path": path}

    @app.websocket("/v1/realtime")
    async def realtime(websocket):
        raise AssertionError("it was let in")

    return TestClient(app, base_url="http://localhost"), clients


PATHS = ["/v1/models", "/invocations", "/tokenize", "/metrics", "/ping", "/version", "/openapi.json", "/pause", "/"]


@pytest.mark.parametrize("path", PATHS)
def test_every_route_of_vllms_server_needs_the_key(path, monkeypatch):
    client, clients = guarded(monkeypatch, keys=[hash_key("secret")])
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer "}):
        assert client.get(path, headers=headers).status_code == 401
        assert client.post(path, headers=headers, json={}).status_code == 401
    key = {"authorization": "Bearer secret"}
    assert client.get(path, headers=key).status_code == 200
    assert client.post(path, headers=key, files={"file": b"sound"}).status_code == 200
    assert client.get("/health").status_code == 200
    assert clients[0]
    assert "secret" not in clients[0]
    with pytest.raises(WebSocketDisconnect) as refusal, client.websocket_connect("/v1/realtime"):
        pass
    assert refusal.value.code == 1008


def test_vllms_server_without_a_key_takes_nothing_from_a_foreign_page(monkeypatch):
    client, clients = guarded(monkeypatch, hosts=["localhost", "127.0.0.1"])
    assert client.post("/v1/completions", json={}).status_code == 200
    assert clients == ["testclient"]
    assert client.post("/v1/completions", content="{}", headers={"content-type": "text/plain"}).status_code == 415
    assert client.post("/sleep").status_code == 415
    assert client.get("/metrics", headers={"host": "evil.example"}).status_code == 400
    foreign = {"origin": "https://evil.example"}
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/v1/realtime", headers=foreign):
        pass


def test_vllms_server_is_started_with_the_guard_and_without_the_key(monkeypatch):
    monkeypatch.setenv("PERSONASPACE_API_KEY", "secret")
    program, environment = command(
        "smollm2", 1, "/model", "m", ["--port=1"], settings_of("127.0.0.1", "secret", None, (), ())
    )
    assert "--middleware=personaspace.serve.vllm.VllmGuard" in program
    assert "secret" not in json.dumps([program, environment])
    assert json.loads(environment["PERSONASPACE_OUTSIDE"])["keys"] == [hash_key("secret")]


def test_vllms_server_draws_by_openais_defaults_unless_it_is_told_otherwise():
    outside = settings_of("127.0.0.1", None, None, (), ())
    for options, expected in (((), "vllm"), (("--generation-config=auto",), "auto")):
        program, _ = command("smollm2", 1, "/model", "m", options, outside)
        assert [o for o in program if o.startswith("--generation-config")] == [f"--generation-config={expected}"]
