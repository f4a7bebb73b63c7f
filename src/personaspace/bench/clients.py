"""Clients for `personaspace bench scale`: plain HTTP against a server of one's own."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
import uvicorn

from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.serve.app import create_app
from personaspace.serve.settings import Settings
from personaspace.space import PersonaSpace
from personaspace.space.layout import FORMAT


@contextmanager
def served(engine: TransformersEngine, rows: int) -> Iterator[int]:
    """A server of the engine on a free port, with a space that is only there to be read along."""
    shape = (engine.info.layers, engine.info.hidden)
    vectors = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    tensors = {"role_vectors": vectors, "default_vector": vectors[0], "axis": vectors[0] - vectors.mean(0)}
    model = {"id": engine.info.id, "fingerprint": engine.info.fingerprint}
    names = ["a", "b", "c", "d"]
    meta = {
        "format": FORMAT,
        "model": model,
        "layer": shape[0] // 2,
        "roles": names,
        "caps": {},
        "axis_pc1": [0.0] * shape[0],
    }
    application = create_app(PersonaSpace(meta, tensors), engine, Settings(rows=rows))
    # The socket is ours before the server starts, so that its port is known and nobody else's.
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(application, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the server to measure did not start")
            time.sleep(0.02)
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def throughput(
    port: int, model: str, conversations: Sequence[list[dict[str, str]]], tokens: int, clients: int
) -> float:
    """Tokens a second that so many clients get together, each asking for one of the conversations at a time."""

    def ask(messages: list[dict[str, str]]) -> int:
        answer = _post(
            port, {"model": model, "messages": messages, "max_tokens": tokens, "temperature": 0.7, "seed": 1}
        )
        token_count: int = json.loads(answer.read())["usage"]["completion_tokens"]
        return token_count

    began = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        token_count = sum(pool.map(ask, conversations))
    return token_count / (time.monotonic() - began)


def first_token(port: int, model: str) -> float:
    """Seconds until a short prompt's first text."""
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    began = time.monotonic()
    answer = _post(port, {"model": model, "messages": messages, "max_tokens": 4, "temperature": 0, "stream": True})
    while line := answer.readline():
        if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
            break
    waited = time.monotonic() - began
    answer.read()  # the rest, so that the next one meets an idle server
    return waited


def _post(port: int, body: dict[str, object]) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    return connection.getresponse()
