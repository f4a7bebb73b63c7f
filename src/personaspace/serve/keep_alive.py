"""Comments in a stream of server-sent events while there is nothing to tell, so that no proxy takes the silence for the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import Any

COMMENT = ": keep-alive\n\n"
"""Clients of server-sent events read over a line that begins with a colon."""


async def with_keep_alive(events: AsyncGenerator[Any, None], seconds: float) -> AsyncIterator[Any]:
    """The events, and a comment whenever none came for so many seconds: while a request waits for its turn, while its prompt is
    read, or between two slow tokens. Closes the events when it is closed."""
    coming: asyncio.Task[Any] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(events))
            if not (await asyncio.wait({coming}, timeout=seconds))[0]:
                yield COMMENT
                continue
            try:
                event = coming.result()
            except StopAsyncIteration:
                return
            coming = None
            yield event
    finally:
        if coming is not None and not coming.done():
            coming.cancel()
            with suppress(asyncio.CancelledError, StopAsyncIteration):
                await coming
        await events.aclose()
