"""What it costs to begin: processor time of commands that need no model, as a ratio to importing numpy, each in a process."""

from __future__ import annotations

import resource
import subprocess
import sys
from functools import partial
from typing import Any

from personaspace.bench.measure import in_turn, ratios, rounds, summary

PEER = ("-c", "import numpy")
COMMAND = "import sys; from personaspace.cli import main; sys.argv = ['personaspace', *sys.argv[1:]]; main()"
PROGRAMS = {
    "import personaspace": ("-c", "import personaspace"),
    "personaspace --help": ("-c", COMMAND, "--help"),
    "personaspace experiment --help": ("-c", COMMAND, "experiment", "--help"),
    "personaspace show smollm2": ("-c", COMMAND, "show", "smollm2"),
}
"""What is measured → Python's arguments; the first is `ours`."""


def processor_seconds(arguments: tuple[str, ...]) -> float:
    """Of a Python process with these arguments, on all cores together."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(repeats: int) -> dict[str, Any]:
    """`ours`, `peers`, `ratio` and `limit`, as every bench has them: how many times the peer each takes."""
    every = {**PROGRAMS, "python -c 'import numpy'": PEER}
    figures = in_turn(repeats, *(partial(processor_seconds, arguments) for arguments in every.values()))
    rows = {name: summary(values, "s of processor time") for name, values in zip(every, figures, strict=True)}
    *ours, peer = rows
    first = ours[0]
    return {
        "ours": rows[first],
        "peers": {name: rows[name] for name in (*ours[1:], peer)},
        **ratios({name: rounds(values, figures[-1]) for name, values in zip(ours, figures[:-1], strict=True)}),
        "limit": {first: 0.5, ours[1]: 3.0},
    }
