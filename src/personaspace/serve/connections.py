"""Connections: no more than there is room for, and none that is kept open by saying nothing, or by reading nothing.

Python's event loop accepts whatever comes, until the process may open no more files; then it writes a stack trace for every
try. Here there is room for so many connections, and where one more comes, the one that has kept the server waiting longest has
to go: whoever is being answered never is.
"""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass, field
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from personaspace.serve.settings import Settings

log = logging.getLogger("personaspace.serve")

SPARE_FILES = 32
"""Files that are left for all else: connections that were accepted and are about to be refused, threads, what is recorded."""

MOST = 1000
"""Connections, however many files may be open."""

ACCEPTED = 8
"""Connections that the loop accepts at a time: they are open before any of them is counted."""

FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\nretry-after: 5\r\nconnection: close\r\n"
    b"content-length: 26\r\n\r\nToo many are asking now.\r\n"
)


def connections_that_fit() -> int:
    """How many connections this process' limit of open files leaves room for."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        open_files = len(os.listdir("/proc/self/fd"))
    except (ImportError, OSError):
        return 200
    return MOST if limit == resource.RLIM_INFINITY else max(4, min(MOST, limit - open_files - SPARE_FILES))


@dataclass
class ConnectionRoom:
    """Who is connected to a server, and how many may be."""

    settings: Settings
    connected: set[PatientProtocol] = field(default_factory=set)
    full_was_logged: bool = False

    def __post_init__(self) -> None:
        self.most = self.settings.connections or connections_that_fit()

    def enter(self, protocol: PatientProtocol) -> None:
        """Takes a connection in; where there is no room, the one that has kept the server waiting longest goes."""
        self.connected.add(protocol)
        if len(self.connected) <= self.most:
            return
        if not self.full_was_logged:
            log.warning(
                "%d connections are open, as many as there is room for: those that ask nothing are closed first, from here on "
                "without a word; ulimit -n sets how many files may be open",
                self.most,
            )
            self.full_was_logged = True
        others = [p for p in self.connected if p is not protocol and p.waits_for_client]
        if others:
            min(others, key=lambda p: p.waiting_since).drop()
        else:
            protocol.transport.write(FULL)
            protocol.drop(gently=True)

    def log_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The loop's own trouble: no file left to accept a connection with is one line, all else as it is."""
        if "out of system resource" not in context.get("message", ""):
            loop.default_exception_handler(context)
        elif not self.full_was_logged:
            log.warning("no file is left to accept a connection with: %s", context.get("exception"))
            self.full_was_logged = True


class PatientProtocol(H11Protocol):
    """A connection whose client has so long for a request's head, and for reading what it is sent."""

    def __init__(self, room: ConnectionRoom, **options: Any) -> None:
        super().__init__(**options)
        self.room = room
        self.waiting_since = self.loop.time()
        self.unread_since: float | None = None
        self.look_timer: asyncio.TimerHandle | None = None

    @property
    def waits_for_client(self) -> bool:
        """Whether it is the client's turn: to ask, or to send the rest of a body."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def connection_made(self, transport: Any) -> None:
        """A client connected."""
        super().connection_made(transport)
        self.waiting_since = self.loop.time()
        self._look_later()
        self.room.enter(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone, or was dropped."""
        self.room.connected.discard(self)
        if self.look_timer is not None:
            self.look_timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """An answer was written: from now on the next request is waited for."""
        self.waiting_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client reads more slowly than it is written to."""
        self.unread_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """It has read on."""
        self.unread_since = None
        super().resume_writing()

    def drop(self, gently: bool = False) -> None:
        """Closes the connection; unless gently, whatever is still to be sent is not."""
        self.room.connected.discard(self)
        self.transport.close() if gently else self.transport.abort()

    def _look_later(self) -> None:
        settings = self.room.settings
        seconds = min(settings.head_seconds, settings.unread_seconds) / 4
        self.look_timer = self.loop.call_later(seconds, self._look)

    def _look(self) -> None:
        now, settings = self.loop.time(), self.room.settings
        unread = self.unread_since is not None and now - self.unread_since > settings.unread_seconds
        idle = self.cycle is None or self.cycle.response_complete
        silent = idle and self.unread_since is None and now - self.waiting_since > settings.head_seconds
        if unread or silent:
            self.drop()
        else:
            self._look_later()
