"""What a page of documentation shows: its code blocks, and its shell commands one by one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import typer

from personaspace.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md", "deploy/README.md")),
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if "results" not in p.parts),
]
EXAMPLES = sorted(p for part in ("tutorial", "howto") for p in (ROOT / "docs" / part).glob("*.md"))
"""Pages whose examples are run, from the first to the last."""
SHELL = ("", "bash", "console")
FENCE = re.compile(r"^( *)```(\w*)([^\n]*)\n(.*?)^\1```$", re.M | re.S)
INDENTED = re.compile(r"(?:^ {4}(?! *[-*] ).*\n|^\n(?= {4}))+", re.M)
INLINE = re.compile(r"`((?:\.venv/bin/)?personaspace [a-z][^`…]* --[^`…]*)`")


@dataclass(frozen=True)
class CodeBlock:
    """language: as the fence says, empty for none; title: the file that it is, where it says so."""

    language: str
    title: str
    text: str


def blocks(page: Path) -> list[CodeBlock]:
    """The fenced blocks of a page, in order."""
    texts = []
    for indent, language, rest, text in FENCE.findall(page.read_text(encoding="utf-8")):
        title = re.search(r'title="([^"]+)"', rest)
        texts.append(CodeBlock(language, title[1] if title else "", re.sub(rf"(?m)^{indent}", "", text)))
    return texts


def shell_lines(text: str) -> Iterator[str]:
    """A block's commands: continued lines joined, comments left off, output (of `$` blocks) left out."""
    prompted = any(line.startswith("$ ") for line in text.splitlines())
    for line in text.replace("\\\n", " ").splitlines():
        line = line.strip() if not prompted else line.removeprefix("$ ") if line.startswith("$ ") else ""
        if line and not line.startswith("#"):
            yield line


def commands(page: Path) -> list[str]:
    """All commands of ours that a page shows, in fenced or indented blocks, and with options in its text, without a venv's
    folder before them."""
    text = page.read_text(encoding="utf-8")
    of_fences = [b.text for b in blocks(page) if b.language in SHELL]
    of_indents = INDENTED.findall(FENCE.sub("", text))
    lines = [line for block in of_fences + of_indents for line in shell_lines(block)]
    lines += [" ".join(line.split()) for line in INLINE.findall(FENCE.sub("", text))]
    ours = re.compile(r"^(?:\.venv/bin/)?(personaspace .*)$")
    return [match[1] for match in map(ours.match, lines) if match]


def arguments_of(command: str) -> list[str]:
    """A command's arguments as a shell would give them, without its name, its comment, and what it is piped to."""
    return shlex.split(re.split(r" [|>] ", command)[0], comments=True)[1:]


@cache
def program() -> Any:
    """The command line as one command."""
    return typer.main.get_command(app)


def check_arguments(arguments: list[str]) -> None:
    """Has the program's own parser read them, running nothing. Raises its error for an option that is not there."""
    command: Any = program()
    context = command.make_context("personaspace", list(arguments))
    while hasattr(command, "resolve_command"):
        rest = [*getattr(context, "_protected_args", ()), *context.args]
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)
