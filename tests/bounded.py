"""What may take no longer than this, in processor time, which other work on the machine does not lengthen."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

SECONDS = 20


@contextlib.contextmanager
def in_bounded_time(seconds: float = SECONDS) -> Iterator[None]:
    """Fails what has not ended after so many seconds of the processor."""

    def stop(*_: object) -> None:
        raise AssertionError(f"it has not ended after {seconds} s of processor time")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
