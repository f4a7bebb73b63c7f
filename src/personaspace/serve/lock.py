"""Who has the model: a thread that decodes step by step, and guests with a pass of their own. They take turns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class QueueFull(Exception):
    """No place is left to wait in."""


class Turns:
    """One model, used by one at a time: after a guest comes a step where one is wanted, after a step a guest where one waits.

    guests: how many were let in, at most `most`; `asking` of them wait for the model right now.
    """

    def __init__(self, most: int) -> None:
        self.most, self.guests, self.asking = most, 0, 0
        self.changed = threading.Condition()
        self.taken = self.stepping = False
        self.due = False  # a guest was the last one

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place among the guests, while it lasts. Raises `QueueFull`."""
        with self.changed:
            if self.guests >= self.most:
                raise QueueFull
            self.guests += 1
        try:
            yield
        finally:
            with self.changed:
                self.guests -= 1

    @contextmanager
    def guest(self) -> Iterator[None]:
        """The model to oneself, between two steps."""
        with self.changed:
            self.asking += 1
            try:
                self.changed.wait_for(lambda: not self.taken and not (self.stepping and self.due))
                self.taken = True
            finally:
                self.asking -= 1
        try:
            yield
        finally:
            self._leave(due=True)

    @contextmanager
    def step(self, over: Callable[[], bool]) -> Iterator[bool]:
        """The model for a step; false, and no model, where it is `over` before guests let it go."""
        with self.changed:
            self.stepping = True
            while (busy := self.taken or (self.asking > 0 and not self.due)) and not over():
                self.changed.wait(0.1)
            self.stepping = False
            if not busy:
                self.taken = True
            self.changed.notify_all()
        try:
            yield not busy
        finally:
            if not busy:
                self._leave(due=False)

    def _leave(self, due: bool) -> None:
        with self.changed:
            self.taken, self.due = False, due
            self.changed.notify_all()
