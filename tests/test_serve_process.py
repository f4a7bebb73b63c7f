"""The server as a process: its exit code, its files, and how few of them are enough while strangers hold connections open."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import socket
import stat
import sys
import threading
import time
from functools import partial
from pathlib import Path

import httpx
import pytest

from forked import begin_program, small_server
from personaspace.serve.connections import FULL
from served import engine, space, until

spec = importlib.util.spec_from_file_location("soak", Path(__file__).parent.parent / "scripts" / "soak.py")
soak = importlib.util.module_from_spec(spec)
sys.modules["soak"] = soak  # its dataclasses look for their module
spec.loader.exec_module(soak)

ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}


@pytest.fixture(scope="module")
def starts(space, tmp_path_factory):
    """Starts the server; yields how: its process, its address and what it writes to stderr."""
    processes = []
    folder = tmp_path_factory.mktemp("started")
    space.save(folder / "space.safetensors")

    def start(*options, files=None, breaking=False, **overrides):
        log = folder / f"log{len(processes)}"
        arguments = ["serve", folder / "space.safetensors", "--port", "0", "--grace", "1", *options]
        process = begin_program(log, *arguments, before=partial(small_server, overrides, files, breaking))
        processes.append(process)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            said = log.read_text() if log.exists() else ""
            assert process.is_alive(), said
            if address := re.search(r"http://[\d.]+:\d+", said):
                try:
                    if httpx.get(f"{address.group()}/readyz").status_code == 200:
                        return process, address.group(), log
                except httpx.TransportError:
                    pass
            time.sleep(0.05)
        raise AssertionError("it did not start")

    yield start
    for process in processes:
        process.kill()
        process.join()


@pytest.fixture(scope="module")
def narrow(starts):
    """A server that may open few files, for tests that leave it running."""
    return starts(files=96, head_seconds=2.0, body_seconds=2.0)


def connections(address, count):
    host, port = address.removeprefix("http://").split(":")
    opened = []
    for _ in range(count):
        client = socket.socket()
        client.settimeout(20)
        client.connect((host, int(port)))
        opened.append(client)
    return opened


def is_closed(client):
    """Whether the server has closed a connection, waiting some seconds for it."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.long
def test_more_silent_connections_than_it_has_files_leave_a_server_that_answers_and_one_line_in_its_log(narrow):
    process, address, log = narrow
    before = log.read_text()
    silent = connections(address, 120)
    for _ in range(5):
        assert httpx.get(f"{address}/healthz", timeout=20).status_code == 200
        assert httpx.post(f"{address}/v1/chat/completions", json=ASKED, timeout=60).status_code == 200
    assert all(is_closed(client) for client in silent)
    (line,) = log.read_text().removeprefix(before).splitlines()
    assert "connections are open, as many as there is room for" in line
    assert process.is_alive()


@pytest.mark.long
def test_bodies_that_come_a_byte_at_a_time_keep_nobody_out(narrow):
    process, address, log = narrow
    before = log.read_text()
    done = threading.Event()

    def dribble():
        while not done.is_set():
            slow = connections(address, 60)
            for client in slow:
                client.send(
                    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                    b"Content-Length: 100\r\n\r\n{"
                )
            while slow and not done.is_set():
                for client in list(slow):
                    try:
                        client.send(b" ")
                    except OSError:
                        client.close()
                        slow.remove(client)
                time.sleep(0.05)

    strangers = [threading.Thread(target=dribble) for _ in range(2)]
    for stranger in strangers:
        stranger.start()
    try:
        for _ in range(20):
            assert httpx.get(f"{address}/healthz", timeout=20).status_code == 200
            assert httpx.post(f"{address}/v1/chat/completions", json=ASKED, timeout=60).status_code == 200
            time.sleep(0.2)
    finally:
        done.set()
        for stranger in strangers:
            stranger.join()
    assert process.is_alive()
    assert len(log.read_text().removeprefix(before).splitlines()) <= 1
    process.terminate()
    process.join(30)
    assert process.exitcode == 0


@pytest.mark.long
def test_a_server_that_cannot_decode_any_more_says_so_and_ends_so_that_it_is_started_again(starts):
    process, address, log = starts(breaking=True)
    assert httpx.post(f"{address}/v1/chat/completions", json=ASKED, timeout=60).status_code == 500

    def unhealthy():  # the reply is given up before it is known that no other can be decoded
        try:
            return httpx.get(f"{address}/healthz").status_code == 503
        except httpx.TransportError:
            return not process.is_alive()

    until(unhealthy)
    process.join(30)
    assert process.exitcode == 1
    assert log.read_text().splitlines()[-1] == (
        "personaspace: decoding ended and cannot go on; the log says why: start the server again"
    )


@pytest.mark.long
def test_another_address_of_this_machine_works_and_what_is_recorded_is_for_its_owner_alone(starts, tmp_path):
    os.umask(0o022)
    record = tmp_path / "record.jsonl"
    names = ("--allowed-hosts", "models.example", "--framed-by", "https://frames.example")
    _, address, _ = starts("--host", "127.0.0.2", "--record", record, *names)
    assert address.startswith("http://127.0.0.2:")
    assert httpx.post(f"{address}/v1/chat/completions", json=ASKED, timeout=60).status_code == 200
    assert httpx.get(f"{address}/v1/models", headers={"host": "models.example"}).status_code == 200
    assert httpx.get(f"{address}/v1/models", headers={"host": "evil.example"}).status_code == 400
    assert "frame-ancestors https://frames.example" in httpx.get(address).headers["content-security-policy"]
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    assert len(record.read_text().splitlines()) == 1


@pytest.mark.long
def test_a_short_soak_finds_nothing_wrong(starts):
    """64 clients for ten seconds; `make soak` is the same for ten minutes, against the model that comes along."""
    process, address, log = starts()
    wrong, figures = asyncio.run(soak.soak(address, process.pid, 10, 64))
    assert wrong == []
    assert figures["replies that such a gap may explain"] <= 2
    assert set(figures["requests"]) == {"greedy", "stream", "nulls", "response", "sampled", "refused", "hang_up"}
    assert "Traceback" not in log.read_text()


def test_the_answer_of_a_server_with_no_room_is_as_long_as_it_says():
    head, _, body = FULL.partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head.splitlines()
