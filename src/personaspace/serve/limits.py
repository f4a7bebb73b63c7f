"""Refuses bodies that are too large before they are held in memory, whatever their header says."""

from __future__ import annotations

import json

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

DRAINED = 64 << 20
"""Bytes of a refused body that are read and thrown away: a client that is still sending would not see the answer."""


async def _drain(receive: Receive) -> None:
    seen = 0
    while seen < DRAINED:
        message = await receive()
        seen += len(message.get("body", b""))
        if not message.get("more_body"):
            return


class BodyLimit:
    """Middleware: answers 413 where a request's body is over `most` bytes."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        content_length = dict(scope["headers"]).get(b"content-length", b"0")
        if content_length.isdigit() and int(content_length) > self.most:
            await _drain(receive)
            await self._refuse(send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.most:
                if message.get("more_body"):
                    await _drain(receive)
                raise HTTPException(413, f"The body is over {self.most} bytes")
            return message

        await self.app(scope, counted, send)

    async def _refuse(self, send: Send) -> None:
        message = f"The body is over {self.most} bytes"
        body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": "body_too_large"}}
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(body).encode()})
