"""Who may come in: the names that a server goes by, its keys, and bodies that a foreign page could not have sent.

It stands before every route, also of vLLM's server, and looks at a request's head alone. Why each: SECURITY.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from starlette.types import ASGIApp, Receive, Scope, Send

from personaspace.serve.refusals import drain, refuse
from personaspace.serve.settings import Settings, host_name

READ_ONLY = ("GET", "HEAD", "OPTIONS")


class Guard:
    """Middleware: answers 400 for a Host that is not the server's, 401 without a key, 415 for a body that is not JSON.

    is_open: whether a path is answered without a key, being nobody's secret (whether the server is alive, the page's own
    files). any_type: with keys on, bodies of other types pass; a foreign page cannot add a key. refused: is told the path and
    the status.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        is_open: Callable[[str], bool],
        *,
        any_type: bool = False,
        refused: Callable[[str, int], None] | None = None,
    ) -> None:
        self.app, self.settings, self.is_open, self.refused = app, settings, is_open, refused
        self.any_type = any_type and bool(settings.keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        reason = self._reason(scope)
        if reason is None:
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": reason[1]})
            return
        if has_body(scope):
            with suppress(TimeoutError):
                await asyncio.wait_for(drain(receive), self.settings.body_seconds)
        if self.refused is not None:
            self.refused(scope["path"], reason[0])
        await refuse(send, *reason)

    def _reason(self, scope: Scope) -> tuple[int, str, str] | None:
        """Status, message and code of a refusal; None where it may come in."""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        method = scope.get("method", "GET")
        if not self.settings.goes_by(name := headers.get(b"host", b"").decode("latin-1")):
            message = f"Host {host_name(name)!r} is not a name of this server's; serve --allowed-hosts adds one"
            return 400, message, "unknown_host"
        # A browser asks beforehand without a key; what it may then do is said by the answer's CORS headers.
        if self.settings.keys and method != "OPTIONS" and not self.is_open(scope["path"]):
            scheme, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
            if scheme.lower() != "bearer" or not self.settings.allows(key.strip()):
                return 401, "Incorrect API key provided", "invalid_api_key"
        if scope["type"] == "websocket":
            # Browsers ask nobody before they open one to another site: only its Origin says where it comes from.
            origin = headers.get(b"origin", b"").decode("latin-1")
            if origin and not self.settings.keys and origin not in self.settings.origins:
                return 403, f"Origin {origin!r} may not call; serve --cors allows one", "unknown_origin"
            return None
        kind = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
        if method not in READ_ONLY and not self.any_type and not _is_json(kind):
            message = f"Content-Type {kind or 'is missing'}: expected application/json"
            return 415, message, "unsupported_content_type"
        return None


def _is_json(kind: str) -> bool:
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def has_body(scope: Scope) -> bool:
    """Whether a request says that a body comes."""
    headers = dict(scope["headers"])
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
