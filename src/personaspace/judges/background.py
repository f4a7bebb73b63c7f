"""Runs coroutines in a thread of its own and hands over their results as they come: also in a notebook, and stopped at once."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

T = TypeVar("T")
C = TypeVar("C")

STOPPING = 0.5
"""Seconds in which what runs may end once nobody waits for it: Ctrl-C is to be felt."""


def as_they_come(
    connect: Callable[[], AbstractAsyncContextManager[C]],
    jobs: Sequence[Callable[[C], Awaitable[T]]],
    at_once: int,
    *,
    first_alone: bool = False,
) -> Iterator[tuple[int, T]]:
    """Each job's place and result, in the order in which they end, `at_once` of them at a time.

    connect: makes what the jobs share, open while they run. first_alone: nothing else is begun before the first has ended.
    When the caller stops (an error, Ctrl-C, no interest in the rest), what is still running is cancelled. An error
    in a job is raised here.
    """
    ended: queue.SimpleQueue[tuple[int, T] | BaseException | None] = queue.SimpleQueue()
    loop = asyncio.new_event_loop()

    async def work() -> None:
        places = iter(range(len(jobs)))

        async def worker(connection: C, how_many: int) -> None:
            for _, place in zip(range(how_many), places, strict=False):
                ended.put((place, await jobs[place](connection)))

        async with connect() as connection:
            if first_alone:
                await worker(connection, 1)
            async with asyncio.TaskGroup() as group:
                for _ in range(at_once):
                    group.create_task(worker(connection, len(jobs)))

    task = loop.create_task(work())

    def run() -> None:
        error: BaseException | None = None
        try:
            loop.run_until_complete(task)
        except BaseExceptionGroup as group:
            error = group.exceptions[0]
        except BaseException as e:  # noqa: BLE001 - handed over, and raised where somebody waits
            error = e
        finally:
            ended.put(error)
            loop.close()

    thread = threading.Thread(target=run, name="judging", daemon=True)
    thread.start()
    try:
        while isinstance(result := ended.get(), tuple):
            yield result
        if result is not None:
            raise result
    finally:
        with contextlib.suppress(RuntimeError):  # it has just ended by itself
            loop.call_soon_threadsafe(task.cancel)
        thread.join(STOPPING)
