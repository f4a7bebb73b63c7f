"""The command line: parses, calls the library, prints. One line for an error; exit 2 for wrong use, 1 for failure."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from personaspace.cli.common import WrongUse, app, err, out
from personaspace.errors import PersonaSpaceError, UsageError

# isort: off
# The help lists the commands in the order in which their modules are read.
from personaspace.cli import maps
from personaspace.cli import holding
from personaspace.cli import serving
from personaspace.cli import formats
from personaspace.cli import experiments
# isort: on

__all__ = ["app", "experiments", "formats", "holding", "main", "maps", "serving"]


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Map the characters inside a chat model, and find its Assistant Axis."""
    if version:
        from importlib.metadata import version as installed

        out.print(f"personaspace {installed('personaspace')}")
    elif context.invoked_subcommand is None:
        out.print(context.get_help())


def main() -> None:
    """The entry point: no stack trace reaches a user."""
    try:
        code = app(standalone_mode=False)
    except UsageError as e:
        code = _fail(as_typed(str(e), sys.argv), 2)
    except PersonaSpaceError as e:
        code = _fail(str(e), 1)
    except WrongUse as e:
        code = _fail(f"{e.format_message()} (see personaspace --help)", 2)
    except (KeyboardInterrupt, typer.Abort):
        code = _fail("stopped; what was finished is kept, the same command goes on from there", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code or 0)


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
