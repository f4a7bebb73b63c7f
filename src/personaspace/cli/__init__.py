"""The command line: parses, calls the library, prints. One line for an error; exit 2 for wrong use, 1 for failure."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer

from personaspace.cli.common import WrongUse, app, err, out
from personaspace.errors import PersonaSpaceError, UsageError

# isort: off
# The help lists the commands in the order in which their modules are read.
from personaspace.cli import maps
from personaspace.cli import measuring
from personaspace.cli import judging
from personaspace.cli import holding
from personaspace.cli import serving
from personaspace.cli import formats
from personaspace.cli import experiments
from personaspace.cli import traits
from personaspace.cli import watching
# isort: on

__all__ = [
    "app",
    "experiments",
    "formats",
    "holding",
    "judging",
    "main",
    "maps",
    "measuring",
    "serving",
    "traits",
    "watching",
]


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Map the characters inside a chat model, and find its Assistant Axis."""
    if version:
        from personaspace._version import __version__

        out.print(f"personaspace {__version__}")
    elif context.invoked_subcommand is None:
        out.print(context.get_help())


INTERRUPTED, TERMINATED = 130, 143
"""Exit codes of what Ctrl-C and SIGTERM ended, as a shell has them: 128 and the signal's number."""

GO_ON = ("map", "judge", "experiment", "compare", "calibrate")
"""Commands that keep what they have finished, and go on from there."""


def main() -> None:
    """The entry point: no stack trace reaches a user."""
    with _stopped_by_sigterm() as terminated:
        try:
            code = app(standalone_mode=False)
            if code == INTERRUPTED:  # how Typer tells of Ctrl-C
                raise KeyboardInterrupt
        except UsageError as e:
            code = _fail(as_typed(str(e), sys.argv), 2)
        except PersonaSpaceError as e:
            code = _fail(str(e), 1)
        except WrongUse as e:
            code = _fail(f"{e.format_message()} (see personaspace --help)", 2)
        except (KeyboardInterrupt, typer.Abort):
            goes_on = set(GO_ON) & set(sys.argv[1:2])
            kept = "; what was finished is kept, the same command goes on from there" if goes_on else ""
            code = _fail(f"stopped{kept}", TERMINATED if terminated else INTERRUPTED)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 0
    sys.exit(code or 0)


@contextmanager
def _stopped_by_sigterm() -> Iterator[list[int]]:
    """While it lasts, SIGTERM (a scheduler's, a container's, `kill`) ends what runs as Ctrl-C does, and is noted in the list.
    A server has its own way, and who ignores the signal already goes on doing so."""
    signals: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        signals.append(number)
        raise KeyboardInterrupt

    try:
        earlier = signal.getsignal(signal.SIGTERM)
        if earlier is not signal.SIG_IGN:
            signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: signals are somebody else's
        yield signals
        return
    try:
        yield signals
    finally:
        signal.signal(signal.SIGTERM, earlier)


def as_typed(message: str, arguments: Sequence[str]) -> str:
    """What the library says of an option's wrong value (`layer=9: …`) in the words of who gave it (`--layer 9: …`); any other
    message as it is.

    >>> as_typed("layer=9: the model has layers 0 to 3", ["map", "smollm2", "--layer", "9"])
    '--layer 9: the model has layers 0 to 3'
    """
    name, _, problem = message.partition("=")
    flag = "--" + name.replace("_", "-")
    return f"{flag} {problem}" if any(a == flag or a.startswith(f"{flag}=") for a in arguments) else message


def _fail(message: str, code: int) -> int:
    err.print(f"personaspace: {message}")
    return code
