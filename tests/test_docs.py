"""The documentation runs: what the README shows in Python, and what it says of the commands."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import typer

from personaspace.cli import app
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
    assert "nearest" not in capsys.readouterr().err


PAGES = [ROOT / "README.md", *(p for p in sorted((ROOT / "docs").rglob("*.md")) if "results" not in p.parts)]
FENCED = re.compile(r"^```(?:bash|console|sh)?\n(.*?)^```|((?:^    .*\n)+)", re.M | re.S)
LINE = re.compile(r"^ *(?:\$ )?(?:\.venv/bin/)?(personaspace [a-z].*(?:\\\n.*)*)$", re.M)
INLINE = re.compile(r"`(?:\.venv/bin/)?(personaspace [a-z][^`]* --[^`]*)`")


def commands_on(page: Path) -> set[str]:
    """Each command of ours on a page, without those that leave something out."""
    text = page.read_text(encoding="utf-8")
    blocks = "\n".join(fenced or indented for fenced, indented in FENCED.findall(text))
    every = {*LINE.findall(blocks), *(" ".join(line.split()) for line in INLINE.findall(text))}
    return {command.replace("\\\n", " ") for command in every if "…" not in command and "..." not in command}


def commands_of_help() -> set[str]:
    """Each command's example, of its own help."""
    groups = [typer.main.get_command(app)]
    groups.append(groups[0].get_command(groups[0].make_context("", ["experiment"]), "experiment"))
    commands = (
        group.get_command(group.make_context("", [name]), name)
        for group in groups
        for name in group.list_commands(group.make_context("", ["show"]))
    )
    return {command.epilog.removeprefix("Example: ") for command in commands if command.epilog}


TYPED = sorted(
    {("help", command) for command in commands_of_help()}
    | {(page.relative_to(ROOT).as_posix(), command) for page in PAGES for command in commands_on(page)}
)


def test_commands_are_found_on_the_pages():
    assert len(TYPED) > 90
    assert len({page for page, _ in TYPED}) > 15


@pytest.mark.parametrize(("page", "command"), TYPED, ids=[f"{page}: {command}" for page, command in TYPED])
def test_every_command_on_the_pages_is_one_that_the_program_takes(page, command):
    words = shlex.split(command, comments=True)[1:]
    for operator in ("&&", "|", ">", "&"):
        words = words[: words.index(operator)] if operator in words else words
    parser = typer.main.get_command(app)
    while hasattr(parser, "get_command"):
        name = words.pop(0)
        parser = parser.get_command(parser.make_context("personaspace", [name]), name)
        assert parser is not None, f"no command {name}"
    parser.make_context(command, words)
