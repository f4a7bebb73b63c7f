"""A prompt's pass in pieces, between the steps of rows in flight, and what earlier rows that began alike have left for it.

It knows nothing of text. Only models whose keys and values are all that they keep can go on from a prefix with several tokens
at once; prompts of others are computed whole, as they join.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.cache_utils import Cache

from personaspace.engines.transformers.batching import Row
from personaspace.engines.transformers.cache import CacheLayout, columns_for, prompt_cache

SHORTEST = 32
"""Tokens that a prompt must share with an earlier row for what that has left to be worth copying."""

Forward = Callable[[Sequence[int], int, Cache], Any]
"""One pass of a prompt's tokens behind so many others, whose keys and values the cache has."""

Around = Callable[[Row, Callable[..., None]], AbstractContextManager[None]]
"""While it lasts, a row's interventions are on, and each layer calls what is handed in before it runs."""


class KeptPrefixes:
    """What rows that are done have left: keys and values by token ids and interventions, at most so many bytes of them, the
    longest unused dropped first. What was computed under one set of interventions is never used under another."""

    def __init__(self, layout: CacheLayout, limit: int) -> None:
        self.layout, self.limit, self.bytes = layout, limit, 0
        self._kept: OrderedDict[int, tuple[tuple[str, ...], NDArray[np.int64], Cache]] = OrderedDict()
        self._number = 0

    def keep(self, row: Row, copy: Callable[[int], Cache]) -> None:
        """Keeps what can be gone on with of a row. copy: hands out the row's first so many tokens' keys and values."""
        fed = [*row.ids, *row.out][: row.length]
        if any(i.where != "all" for i in row.interventions):
            # As a part of the next turn's prompt, the reply is not intervened in.
            fed = fed[: len(row.ids)]
        size = len(fed) * self.layout.per_token
        if len(fed) < SHORTEST or size > self.limit:
            return
        key, ids = _key(row), np.array(fed)
        # What is a prefix of this one is of no more use.
        for number, (other_key, other_ids, _) in list(self._kept.items()):
            if other_key == key and len(other_ids) <= len(ids) and np.array_equal(other_ids, ids[: len(other_ids)]):
                self._drop(number)
        while self.bytes + size > self.limit:
            self._drop(next(iter(self._kept)))
        self._number += 1
        self._kept[self._number] = (key, ids, copy(len(fed)))
        self.bytes += size

    def longest(self, row: Row) -> tuple[int, Cache | None]:
        """How many of a row's prompt's tokens but the last are there already, and the cache that begins with them."""
        key, ids = _key(row), np.array(row.ids[:-1])
        best, best_number = SHORTEST - 1, 0
        for number, (other_key, other_ids, _) in self._kept.items():
            if other_key == key:
                n = min(len(ids), len(other_ids))
                differ = np.flatnonzero(ids[:n] != other_ids[:n])
                if (shared := int(differ[0]) if len(differ) else n) > best:
                    best, best_number = shared, number
        if not best_number:
            return 0, None
        self._kept.move_to_end(best_number)
        return best, self._kept[best_number][2]

    def _drop(self, number: int) -> None:
        _, ids, _ = self._kept.pop(number)
        self.bytes -= len(ids) * self.layout.per_token


class Dropped(BaseException):
    """Raised in a pass that nobody wants to go on with."""


class InterruptedPass:
    """A forward pass that stops between two layers when its time is over, and goes on when it is asked to. It has a thread of
    its own, which runs only while who asks waits for it. A pass of few tokens behind thousands takes nearly as long as one of
    many, so that pieces small enough to keep nobody waiting would never come to an end."""

    def __init__(self, forward: Callable[[], Any]) -> None:
        self._forward = forward
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name="personaspace-prompt", daemon=True)
        self._until = self._last_layer = 0.0
        self._done = self._dropped = False
        self._error: Exception | None = None

    def go_on(self, seconds: float) -> bool:
        """Runs for about so long, one layer at the least; returns whether it is done. Raises what the pass raises."""
        self._last_layer = time.monotonic()
        self._until = self._last_layer + seconds
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.release()
        self._stopped.acquire()
        if self._error is not None:
            raise self._error
        return self._done

    def drop(self) -> None:
        """Ends it where it stands."""
        if self._thread.is_alive():
            self._dropped = True
            self._go.release()
            self._thread.join()

    def before_layer(self, *_: Any) -> None:
        """Stops where one more layer, as long as the last one, would take too long."""
        now = time.monotonic()
        last, self._last_layer = now - self._last_layer, now
        if now + last > self._until:
            self._stopped.release()
            self._go.acquire()
            if self._dropped:
                raise Dropped

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                self._forward()
        except Dropped:
            pass
        except Exception as e:  # noqa: BLE001 - raised where it was asked for
            self._error = e
        self._done = True
        self._stopped.release()


class Prefill:
    """A row on its way into a decode loop: its prompt's tokens but the last, as far as they are computed."""

    def __init__(
        self, row: Row, layout: CacheLayout, kept: KeptPrefixes | None, forward: Forward, around: Around
    ) -> None:
        self.row, self._forward, self._around = row, forward, around
        self.done, beginning = kept.longest(row) if kept else (0, None)
        self.computed = prompt_cache(layout, columns_for(row), beginning, self.done)
        self._pass: InterruptedPass | None = None
        self._piece = 0  # tokens of that pass

    @property
    def remaining(self) -> int:
        """Tokens that are still to be computed."""
        return len(self.row.ids) - 1 - self.done

    def advance(self, tokens: int, seconds: float = math.inf) -> None:
        """Computes at most so many more, for about so long: a pass that is not done by then is gone on with next time."""
        if self._pass is None:
            piece = self.row.ids[:-1][self.done : self.done + tokens]
            if not piece:
                return
            self._piece = len(piece)
            self._pass = InterruptedPass(partial(self._forward, piece, self.done, self.computed))
        with self._around(self.row, self._pass.before_layer):
            done = self._pass.go_on(seconds)
        if done:
            self.done, self._pass = self.done + self._piece, None

    def drop(self) -> None:
        """Gives the row up."""
        if self._pass is not None:
            self._pass.drop()


def _key(row: Row) -> tuple[str, ...]:
    return tuple(i.key for i in row.interventions if i.where == "all")
