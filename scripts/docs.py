"""Writes docs/commands.md from the program's own help texts, so that it cannot be stale."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from personaspace.cli import app

TARGET = Path(__file__).parent.parent / "docs" / "commands.md"


def commands() -> str:
    """Every command's help, as one page."""
    runner = CliRunner(env={"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1"})

    def help_of(*names: str) -> str:
        return runner.invoke(app, [*names, "--help"], prog_name="personaspace").output.strip()

    names = [c.name or getattr(c.callback, "__name__", "") for c in app.registered_commands]
    parts = ["# Commands", "Made by `make docs` from the program's help texts."]
    parts += [f"```\n{help_of()}\n```"]
    for name in names:
        parts += [f"## {name}", f"```\n{help_of(name)}\n```"]
    for group in app.registered_groups:
        parts += [f"## {group.name}", f"```\n{help_of(str(group.name))}\n```"]
        for c in group.typer_instance.registered_commands if group.typer_instance else []:
            parts += [f"### {group.name} {c.name}", f"```\n{help_of(str(group.name), str(c.name))}\n```"]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    TARGET.write_text(commands(), encoding="utf-8")
