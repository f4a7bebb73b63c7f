"""The webhook of alerts, to real receivers: what is sent and how it is signed, and that a receiver that fails, refuses or hangs
keeps nobody waiting."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from personaspace.errors import UsageError
from personaspace.serve import webhook
from personaspace.serve.webhook import Signer, Webhook
from served import until

SECRET = "a secret of a test"


@contextmanager
def receiver(statuses=(), location=None):
    """A receiver that answers with these statuses, one after the other, and then with 204; yields its address and what came."""
    came, left = [], list(statuses)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            came.append((dict(self.headers), body))
            self.send_response(left.pop(0) if left else 204)
            if location:
                self.send_header("Location", location)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/alerts", came
    finally:
        server.shutdown()
        server.server_close()


def test_a_message_is_signed_so_that_its_receiver_can_tell_it_from_any_other():
    outcomes = Counter()
    with receiver() as (address, came):
        Webhook(address, SECRET, lambda outcome: outcomes.update([outcome])).tell("alert.begun", {"id": "x", "turn": 3})
        until(lambda: outcomes["sent"])
    ((headers, body),) = came
    assert json.loads(body)["data"] == {"id": "x", "turn": 3}
    signed = f"{headers['Webhook-Id']}.{headers['Webhook-Timestamp']}.".encode() + body
    digest = hmac.new(SECRET.encode(), signed, hashlib.sha256).digest()
    assert headers["Webhook-Signature"] == f"v1,{base64.b64encode(digest).decode()}"
    assert abs(int(headers["Webhook-Timestamp"]) - time.time()) < 60


def test_a_secret_as_others_write_it_is_its_bytes_in_base64_behind_whsec():
    assert Signer.of(f"whsec_{base64.b64encode(b'12345').decode()}") == Signer(b"12345")


def test_a_receiver_that_fails_is_asked_again_and_one_that_refuses_is_not(monkeypatch):
    monkeypatch.setattr(webhook, "WAITS", (0.01, 0.01))
    outcomes = Counter()
    with receiver([500, 429, 200, 400, 503, 503, 503]) as (address, came):
        hook = Webhook(address, SECRET, lambda outcome: outcomes.update([outcome]))
        for _ in range(3):
            hook.tell("alert.begun", {})
        until(lambda: outcomes.total() == 3)
    assert outcomes == {"sent": 1, "failed": 2}
    ids = [headers["Webhook-Id"] for headers, _ in came]
    assert [ids.count(i) for i in dict.fromkeys(ids)] == [3, 1, 3]


def test_a_redirect_is_not_followed():
    outcomes = Counter()
    with receiver() as (elsewhere, never), receiver([307], elsewhere) as (address, came):
        Webhook(address, SECRET, lambda outcome: outcomes.update([outcome])).tell("alert.begun", {})
        until(lambda: outcomes["failed"])
    assert len(came) == 1
    assert never == []


def test_a_receiver_that_hangs_keeps_nobody_waiting_and_what_is_too_much_is_dropped_and_counted(monkeypatch):
    monkeypatch.setattr(webhook, "WAITS", ())
    monkeypatch.setattr(webhook, "TIMEOUT", 0.2)
    outcomes, most = Counter(), webhook.QUEUE + 20
    with socket.create_server(("127.0.0.1", 0)) as listening:  # accepts, and never answers
        hook = Webhook(
            f"http://127.0.0.1:{listening.getsockname()[1]}/", SECRET, lambda outcome: outcomes.update([outcome])
        )
        for k in range(most):
            hook.tell("alert.begun", {"k": k})
        # The queue was full before the receiver's time was up even once.
        assert outcomes["dropped"] >= most - webhook.QUEUE - 2
        assert hook.messages.qsize() <= webhook.QUEUE
        until(lambda: outcomes["failed"])
        assert outcomes["sent"] == 0


@pytest.mark.parametrize(
    "url", ["ftp://x/", "file:///etc/passwd", "x", "http://", "http://[::1", "http://x/ y", "http://x:0/"]
)
def test_what_is_no_receivers_address_is_refused(url):
    with pytest.raises(UsageError, match="expected http"):
        Webhook(url, SECRET, lambda _: None)


@pytest.mark.parametrize("secret", ["", "  ", "whsec_no base64", "whsec_"])
def test_a_webhook_without_a_secret_is_refused(secret):
    with pytest.raises(UsageError, match="PERSONASPACE_WEBHOOK_SECRET"):
        Webhook("http://127.0.0.1/", secret, lambda _: None)
