"""Runs a server until it is told to stop; what runs then is finished within a limit, and what is not is told so."""

from __future__ import annotations

import asyncio
import socket
import time
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from personaspace.errors import ModelError
from personaspace.serve.connections import ACCEPTED, ConnectionRoom, PatientProtocol
from personaspace.serve.scheduler import Worker
from personaspace.serve.settings import Settings

MARGIN = 5
"""Seconds beyond the limit for a step that is being computed, and for clients to take what they are sent."""

BACKLOG = 1024
"""Connections that the system keeps until they are accepted."""

FAREWELL = 2.0
"""Seconds that a server which cannot go on still says so, before it ends."""


class ServerConfig(uvicorn.Config):
    """uvicorn's configuration of our server, with its limits on connections. room: who is connected."""

    def __init__(self, application: FastAPI, grace: int) -> None:
        settings: Settings = application.state.settings
        self.room = ConnectionRoom(settings)
        protocol: Any = partial(PatientProtocol, self.room)
        super().__init__(
            _Quiet(application, application.state.worker),
            http=protocol,
            ws="none",
            log_level="error",  # a warning for every request that is none would fill the disk
            backlog=ACCEPTED,
            timeout_graceful_shutdown=grace + MARGIN,
            server_header=False,
            h11_max_incomplete_event_size=65536,
        )


def run(application: FastAPI, listening: socket.socket, grace: int) -> None:
    """Serves on a socket until SIGTERM or Ctrl-C, and for at most `grace` seconds after it; a second one ends what runs at
    once. Returns as from any other work: the signal was the user's way of saying that it is done. Raises `ModelError` where
    decoding ended by itself: then a new process is needed."""
    server = PersonaServer(ServerConfig(application, grace), application.state.worker, grace)
    server.run(sockets=[listening])
    if server.failed:
        raise ModelError("decoding ended and cannot go on; the log says why: start the server again")


class PersonaServer(uvicorn.Server):
    """Ends in its own time when it is told to, and by itself where nothing can be decoded any more (`failed`)."""

    def __init__(self, config: ServerConfig, worker: Worker, grace: int) -> None:
        super().__init__(config)
        self.room, self.worker, self.grace = config.room, worker, grace
        self.failed, self._ending = False, 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On a signal."""
        self.worker.drain(0 if self.should_exit else self.grace)
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to accept: a few at a time, while the system keeps many."""
        asyncio.get_running_loop().set_exception_handler(self.room.log_loop_error)
        await super().startup(sockets)
        for listening in sockets or ():
            listening.listen(BACKLOG)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        if self.worker.ended and not self.should_exit:
            self._ending = self._ending or time.monotonic()
            if time.monotonic() - self._ending > FAREWELL:
                self.failed = self.should_exit = True
        return await super().on_tick(counter)


class _Quiet:
    """Requests that are cut off because the time is up are no failure to write a stack trace about."""

    def __init__(self, app: ASGIApp, worker: Worker) -> None:
        self.app, self.worker = app, worker

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        except asyncio.CancelledError:
            if not self.worker.overdue:
                raise
