"""A request's body: whole in memory before a route sees it, within so many bytes and seconds, whatever its header says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from personaspace.serve.guard import has_body
from personaspace.serve.refusals import drain, refuse


class _TooLarge(Exception):
    """More bytes than are taken; `unread` where more of them are to come."""

    def __init__(self, unread: bool) -> None:
        super().__init__()
        self.unread = unread


class _Gone(Exception):
    """The client hung up."""


class BodyLimit:
    """Middleware: answers 413 where a request's body is over `most` bytes, 408 where it takes over so many seconds to come.
    refused: is told the path and the status."""

    def __init__(
        self, app: ASGIApp, most: int, seconds: float, refused: Callable[[str, int], None] | None = None
    ) -> None:
        self.app, self.most, self.seconds, self.refused = app, most, seconds, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not has_body(scope):
            await self.app(scope, receive, send)
            return
        status, message, code = 408, f"The body did not come within {self.seconds:g} seconds", "body_too_slow"
        try:
            async with asyncio.timeout(self.seconds):
                try:
                    body = await self._read(scope, receive)
                except _TooLarge as e:
                    status, message, code = 413, f"The body is over {self.most} bytes", "body_too_large"
                    if e.unread:
                        await drain(receive)
                else:
                    status = 0
        except TimeoutError:
            pass
        except _Gone:
            return
        if status:
            if self.refused is not None:
                self.refused(scope["path"], status)
            with suppress(OSError):
                await refuse(send, status, message, code)
            return
        ready: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def read_before() -> Message:
            return ready.pop() if ready else await receive()

        await self.app(scope, read_before, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self.most:
            raise _TooLarge(unread=True)
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.most:
                raise _TooLarge(unread=more)
        return bytes(body)
