"""What a command loads: help needs no torch, and what looks at a space needs no model library. Each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "transformers", "plotly", "scipy", "pandas", "sklearn", "vllm", "ray", "fastapi", "numpy", "pyarrow"}
RUN = """
import json, sys
from personaspace.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["personaspace", *arguments]
    try:
        main()
    except SystemExit as e:
        assert not e.code, (arguments, e.code)
print("\\n" + json.dumps(sorted({m.partition(".")[0] for m in sys.modules})))
"""


def loaded(program: str, *arguments: str) -> set[str]:
    """The packages that a program loads, of those that take long."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return HEAVY & set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_loads_nothing_heavy():
    program = "import json, sys, personaspace; print(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    assert loaded(program) == set()


def test_help_loads_nothing_heavy():
    """All in one process: what one of them loaded would stay."""
    commands = [["--help"], ["--version"], ["map", "--help"], ["serve", "--help"], ["experiment", "--help"]]
    assert loaded(RUN, json.dumps(commands)) == set()


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["show", "smollm2"], {"torch", "numpy"}),
        (["report", "smollm2", "--out", "page.html"], {"torch", "numpy", "plotly"}),
        (["compare", "smollm2", "smollm2", "--out", "page.html"], {"torch", "numpy", "plotly", "scipy"}),
    ],
    ids=["show", "report", "compare"],
)
def test_what_looks_at_a_space_loads_no_model_library(arguments, needed, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert loaded(RUN, json.dumps([arguments])) <= needed


def test_every_public_name_is_there_and_nothing_else_is():
    import personaspace

    assert all(getattr(personaspace, name) is not None for name in personaspace.__all__)
    assert set(personaspace.__all__) <= set(dir(personaspace))
    with pytest.raises(AttributeError, match="no attribute 'mop'"):
        personaspace.mop  # noqa: B018
