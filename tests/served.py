"""A real server of a small random model, for tests of the API and of the page."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager

import pytest

import personaspace as ps
from conftest import make_model, make_tokenizer
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.holding import calibrate
from personaspace.runs import Run
from personaspace.serve import Settings, create_app
from personaspace.serve.server import PersonaServer, ServerConfig


@pytest.fixture(scope="module")
def engine():
    return TransformersEngine(make_model("llama"), make_tokenizer(), id="me/tiny", rows=32)


@pytest.fixture(scope="module")
def space(tmp_path_factory, engine, small_catalog):
    out = tmp_path_factory.mktemp("served")
    made = ps.map(engine, out, catalog=small_catalog, per_role=6, default_responses=60, max_new_tokens=9, layer=1)
    made = calibrate.calibrate(engine, made, calibrate.draw_sample(Run(out)), range(1, 3))
    return calibrate.recommended(made, "all-p75@1:3", {"because": "a test"})


@contextmanager
def serving(space, engine, **options):
    """A server on a free port; yields its address and the application's worker."""
    app = create_app(space, engine, Settings(**options))
    listening = socket.create_server(("127.0.0.1", 0))
    server = PersonaServer(ServerConfig(app, 0), app.state.worker, 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    for _ in range(200):
        if server.started:
            break
        time.sleep(0.02)
    try:
        yield address, app.state.worker
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
        assert not thread.is_alive()


def until(true, seconds=5, every=0.01):
    """Waits for it, so many seconds at most; looks so often."""
    for _ in range(int(seconds / every)):
        if true():
            return
        time.sleep(every)
    raise AssertionError("it never came true")
