"""Runs a server until it is told to stop; what runs then is finished within a limit, and what is not is told so."""

from __future__ import annotations

import asyncio
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from personaspace.serve.scheduler import Worker

MARGIN = 5
"""Seconds beyond the limit for a step that is being computed, and for clients to take what they are sent."""


def run(application: FastAPI, listening: socket.socket, grace: int) -> None:
    """Serves on a socket until SIGTERM or Ctrl-C, and for at most `grace` seconds after it; a second one ends what runs at
    once. Returns as from any other work: the signal was the user's way of saying that it is done."""
    worker: Worker = application.state.worker
    config = uvicorn.Config(
        _Quiet(application, worker),
        log_level="warning",
        timeout_graceful_shutdown=grace + MARGIN,
        server_header=False,
        h11_max_incomplete_event_size=65536,
    )
    _Server(config, worker, grace).run(sockets=[listening])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, worker: Worker, grace: int) -> None:
        super().__init__(config)
        self.worker, self.grace = worker, grace

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.worker.drain(0 if self.should_exit else self.grace)
        self.should_exit = True


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
