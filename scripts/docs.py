"""Writes docs/commands.md from the program's own help texts, and the table of docs/scale.md, so that they cannot be stale."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from personaspace.catalog import load_catalog
from personaspace.cli import app
from personaspace.engines.prompts import Design
from personaspace.experiments.registry import EXPERIMENTS
from personaspace.mapping import plan

DOCS = Path(__file__).parent.parent / "docs"
TARGET, SCALE = DOCS / "commands.md", DOCS / "scale.md"
MODELS = ("google/gemma-2-27b-it", "Qwen/Qwen3-32B", "meta-llama/Llama-3.3-70B-Instruct")
DESIGNS = {
    "prompts alone: 16 a role and 250 of the default, nothing generated": (
        Design(per_role=16, default_responses=250),
        0,
    ),
    "4 a role and 550 of the default, 128 tokens": (Design(), 128),
    "as published: 1,200 a role, 512 tokens": (Design(complete=True), 512),
}


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
    for name in EXPERIMENTS:
        parts += [f"### experiment {name}", f"```\n{help_of('experiment', name)}\n```"]
    return "\n\n".join(parts) + "\n"


def table() -> str:
    """What `map MODEL --dry-run --on HARDWARE` says of the study's models, as a table."""
    rows = [
        "| what | model | on | copies | responses | prompt tokens | new tokens | time | disk: all | sums | at most |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for what, (design, tokens) in DESIGNS.items():
        asked = plan.workload_of(load_catalog(), design, tokens, 0)
        for model in MODELS:
            for on in ("8xH100", "4xL40S", "1xA100"):
                shape = plan.model_of(model)[0]
                p = plan.predict(shape, plan.hardware_of(on), asked)
                d = p["disk_gb"]
                of = (
                    [f"{p['copies']} × {p['devices_each']}", plan.duration(3600 * p["hours"])]
                    if p["fits"]
                    else ["–", "does not fit"]
                )
                tokens_of = [f"{n:,}" for n in (asked.responses, asked.prompt_tokens, asked.new_tokens)]
                disk = [f"{d[k]:,.0f} GB" for k in ("all", "sums", "most")]
                rows.append("| " + " | ".join([what, model.split("/")[1], on, of[0], *tokens_of, of[1], *disk]) + " |")
    return "\n".join(rows) + "\n"


def with_table(page: str) -> str:
    """The page with the table, and what it assumes, as they are now."""
    shape = plan.model_of(MODELS[2])[0]
    assumed = "".join(f"- {a}\n" for a in plan.assumptions(plan.hardware_of("8xH100"), shape))
    for name, text in (("table", table()), ("assumptions", assumed)):
        begin = f"<!-- {name} -->\n"
        end = f"<!-- end of the {name} -->\n"
        before, rest = page.split(begin)
        page = before + begin + text + end + rest.split(end)[1]
    return page


if __name__ == "__main__":
    SCALE.write_text(with_table(SCALE.read_text(encoding="utf-8")), encoding="utf-8")
    TARGET.write_text(commands(), encoding="utf-8")
