"""The documentation runs: what the README shows in Python, and what it says of the commands."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from personaspace.space import PersonaSpace
from served import serving

ROOT = Path(__file__).parent.parent
EVERY = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
BLOCKS = [block for block in EVERY if "OpenAI(" not in block]
CLIENTS = [block for block in EVERY if "OpenAI(" in block]
SMALLER = {
    "per_role=1, default_responses=300, max_new_tokens=32": (
        'roles="ghost,hermit,evaluator,analyst", prompts_per_role=4, default_prompts=12, per_role=2, questions=6, '
        "default_responses=12, max_new_tokens=4"
    )
}


@pytest.mark.long
@pytest.mark.parametrize("block", BLOCKS, ids=[f"block{k}" for k in range(len(BLOCKS))])
def test_the_readmes_python_runs_as_it_stands_but_for_the_maps_size(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for size, less in SMALLER.items():
        block = block.replace(size, less)
    exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_the_readme_has_no_gap_left():
    assert "@@" not in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_page_of_commands_is_what_the_program_prints():
    spec = importlib.util.spec_from_file_location("docs", ROOT / "scripts" / "docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "commands.md").read_text(encoding="utf-8") == module.commands(), "run `make docs`"


@pytest.mark.long
def test_the_readmes_client_runs_against_a_server_of_the_model_that_comes_along(smollm2, capsys):
    (block,) = CLIENTS
    with serving(PersonaSpace.load("smollm2"), smollm2, max_tokens=16) as (address, _):
        exec(compile(block.replace("http://127.0.0.1:8000", address), "README.md", "exec"), {})
    printed = capsys.readouterr().out
    # What it said, its drift in default deviations, and the five roles that it lies nearest to.
    assert re.fullmatch(r".+ -?\d+\.\d+ \[(\['[\w ]+', -?\d+\.\d+\](, )?){5}\]\n", printed, re.S), printed
