"""An OpenAI-compatible endpoint on loopback that answers each request as a function of the test's says, however wrong."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Says = Callable[["Wild", dict[str, Any]], None]


class Wild(BaseHTTPRequestHandler):
    """`says` is given the handler and the request's body; `asked` is every body, `keys` every Authorization header."""

    says: Says
    asked: list[dict[str, Any]]
    keys: list[str]
    closed: threading.Event

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked.append(body)
        type(self).keys.append(self.headers.get("Authorization", ""))
        type(self).says(self, body)

    def send(self, data: bytes, status: int = 200, **headers: str) -> None:
        """These bytes, as a body."""
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Quiet."""


def completion(content: Any = "3", finish_reason: str = "stop", **message: Any) -> bytes:
    """A chat completion's body."""
    inner = {"role": "assistant", "content": content, **message}
    choice = {"index": 0, "finish_reason": finish_reason, "message": inner}
    return json.dumps(
        {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    ).encode()


def content(text: Any, **how: Any) -> Says:
    """Always this content."""
    return lambda handler, _: handler.send(completion(text, **how))


def in_turn(*says: Says | str) -> Says:
    """Each request gets the next; the last one stays."""
    left = [content(s) if isinstance(s, str) else s for s in says]
    return lambda handler, body: (left.pop(0) if len(left) > 1 else left[0])(handler, body)


def status(code: int, message: str = "no", **headers: str) -> Says:
    """An error in OpenAI's shape."""
    body = json.dumps({"error": {"message": message, "type": "invalid_request_error"}}).encode()
    return lambda handler, _: handler.send(body, code, **headers)


def raw(body: bytes, code: int = 200, **headers: str) -> Says:
    """These bytes."""
    return lambda handler, _: handler.send(body, code, **headers)


def bomb(megabytes: int) -> bytes:
    """So many zeros, packed."""
    return gzip.compress(bytes(megabytes * 2**20), compresslevel=9)


def drip(handler: Wild, _: dict[str, Any]) -> None:
    """A byte now and then, without an end."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    try:
        while not type(handler).closed.wait(0.1):
            handler.wfile.write(b" ")
    except OSError:
        return


def hang(handler: Wild, _: dict[str, Any]) -> None:
    """Nothing at all, until the test is over."""
    type(handler).closed.wait(60)


@contextmanager
def answering(says: Says) -> Iterator[tuple[str, type[Wild]]]:
    """The endpoint's address, and its handler with what it was asked."""
    kind = type("Answers", (Wild,), {"says": staticmethod(says), "asked": [], "keys": [], "closed": threading.Event()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", kind
    finally:
        kind.closed.set()
        server.shutdown()
        server.server_close()
