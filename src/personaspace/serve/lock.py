"""Who has the model: a thread that decodes step by step, and requests with a forward pass of their own. They take turns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class QueueFull(Exception):
    """No place is left to wait in."""


class ModelLock:
    """One model, used by one at a time: after exclusive use comes a step where one is waited for, and after a step exclusive
    use where somebody waits for it.

    admitted: how many have a place for exclusive use, at most `limit`; `waiting` of them wait for the model right now.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.admitted, self.waiting = limit, 0, 0
        self.changed = threading.Condition()
        self.in_use = self.stepping = False
        self.step_due = False  # the last use was an exclusive one

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place among those who may wait for exclusive use, while it lasts. Raises `QueueFull`."""
        with self.changed:
            if self.admitted >= self.limit:
                raise QueueFull
            self.admitted += 1
        try:
            yield
        finally:
            with self.changed:
                self.admitted -= 1

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """The model to oneself, between two steps: for a pass of one's own."""
        with self.changed:
            self.waiting += 1
            try:
                self.changed.wait_for(lambda: not self.in_use and not (self.stepping and self.step_due))
                self.in_use = True
            finally:
                self.waiting -= 1
        try:
            yield
        finally:
            self._release(step_due=True)

    @contextmanager
    def step(self, over: Callable[[], bool]) -> Iterator[bool]:
        """The model for a step; false, and no model, where it is `over` before exclusive use ends."""
        with self.changed:
            self.stepping = True
            while (busy := self.in_use or (self.waiting > 0 and not self.step_due)) and not over():
                self.changed.wait(0.1)
            self.stepping = False
            if not busy:
                self.in_use = True
            self.changed.notify_all()
        try:
            yield not busy
        finally:
            if not busy:
                self._release(step_due=False)

    def _release(self, step_due: bool) -> None:
        with self.changed:
            self.in_use, self.step_due = False, step_due
            self.changed.notify_all()
