"""Tells a receiver of alerts as they begin, signed as Standard Webhooks has it; no reply waits for it, and nothing that anybody
said is in it. Talks to the network."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import logging
import queue
import secrets
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from personaspace.errors import UsageError
from personaspace.serve.metrics import PersonaMetrics
from personaspace.serve.settings import SECRET
from personaspace.serve.types import Persona
from personaspace.serve.watch import Watch, WatchedReply

QUEUE = 256
"""Messages that may wait; more are dropped, and counted."""

TIMEOUT = 5.0
"""Seconds that a receiver may leave a message unanswered."""

WAITS = (1.0, 4.0)
"""Seconds before it is sent a second and a third time."""

AGAIN = (408, 429)
"""Refusals after which a message is sent again, beside those of 500 and more."""

Outcome = Literal["sent", "failed", "dropped"]
log = logging.getLogger("personaspace.serve")


@dataclass(frozen=True)
class Signer:
    """Signs messages: HMAC-SHA256 of `id.timestamp.body`. key: the secret's bytes, or those behind `whsec_`, in base64."""

    key: bytes

    @classmethod
    def of(cls, secret: str) -> Signer:
        """Raises `UsageError` for a secret that is empty, or no base64 behind `whsec_`."""
        if not secret.strip():
            raise UsageError(
                f"a webhook's messages are signed: set {SECRET}, as to the output of `openssl rand -hex 32`"
            )
        if not secret.startswith("whsec_"):
            return cls(secret.encode())
        try:
            key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except binascii.Error:
            key = b""
        if not key:
            raise UsageError(f"{SECRET} begins with whsec_: expected base64 behind it")
        return cls(key)

    def headers(self, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
        """A message's id, when it was signed, and the signature: a receiver tells it from others' and from old ones."""
        digest = hmac.new(self.key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
        }


class Webhook:
    """One receiver, told from a thread of its own that begins with the first message. count: is told what became of each."""

    def __init__(self, url: str, secret: str, count: Callable[[Outcome], None]) -> None:
        """Raises `UsageError` for an address that is none, or no secret."""
        check_url(url)
        self.url, self.signer, self.count = url, Signer.of(secret), count
        self.messages: queue.Queue[tuple[str, bytes]] = queue.Queue(QUEUE)
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._thread: threading.Thread | None = None
        self._failing = False

    def tell(self, kind: str, content: Mapping[str, Any]) -> None:
        """Puts a message in the queue, and returns at once; where the queue is full, it is dropped."""
        message = {"type": kind, "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "data": content}
        try:
            self.messages.put_nowait((f"msg_{secrets.token_hex(12)}", json.dumps(message, allow_nan=False).encode()))
        except queue.Full:
            self.count("dropped")
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="personaspace-webhook", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            message_id, body = self.messages.get()
            reason = self._send(message_id, body)
            if reason and not self._failing:
                log.warning("the webhook's receiver does not take messages: %s", reason)
            self._failing = bool(reason)
            self.count("failed" if reason else "sent")

    def _send(self, message_id: str, body: bytes) -> str:
        """Sends a message, some times at most; why it was not taken, or nothing."""
        reason = ""
        for wait in (*WAITS, None):
            # Signed anew each time: a receiver refuses what is old.
            headers = {"Content-Type": "application/json", **self.signer.headers(message_id, int(time.time()), body)}
            request = urllib.request.Request(self.url, body, headers)  # noqa: S310 - its scheme was looked at
            try:
                with self._opener.open(request, timeout=TIMEOUT):
                    return ""
            except urllib.error.HTTPError as e:
                reason = f"status {e.code}"
                e.close()
                if e.code < 500 and e.code not in AGAIN:
                    return reason
            except Exception as e:  # noqa: BLE001 - whatever a receiver does, the next message is sent
                reason = type(e).__name__
            if wait is not None:
                time.sleep(wait)
        return reason


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """What is signed for one receiver is not carried to another."""

    def redirect_request(self, *_: Any) -> None:
        """None: the answer is the redirect itself."""


def check_url(url: str) -> None:
    """Raises `UsageError` for what is no address of a receiver."""
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or not url.isascii() or not url.isprintable() or " " in url:
        raise UsageError(f"a webhook at {url!r}: expected http://… or https://…")


def teller(watch: Watch, metrics: PersonaMetrics) -> Callable[[str, str, WatchedReply | None, Persona], None]:
    """Who is called with each whole reply (its model's name, its id, how it lies, what was asked), and tells the receiver of
    alerts that began with it, where there is one."""
    settings = watch.settings
    if settings.webhook is None:
        return lambda *_: None
    webhook = Webhook(settings.webhook, settings.secret, lambda outcome: metrics.webhook.labels(outcome).inc())

    def tell(model: str, request_id: str, reply: WatchedReply | None, persona: Persona) -> None:
        if reply and reply.begun:
            webhook.tell("alert.begun", {"id": request_id, "model": model, **watch.message(reply, persona)})

    return tell
