"""What the site's pages show runs: every command is one that the program takes, every example runs from first to last.

Where an example maps or loads SmolLM2, a small random model stands in for it here, and sizes are cut to it (`smaller`). What
needs a GPU, the Hub, vLLM or a cluster is not run: the program's own parser reads it, and `NOT_RUN` says why.
"""

from __future__ import annotations

import io
import re
import shutil
import sys
import tomllib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

import personaspace as ps
from personaspace.cli.common import WrongUse
from personaspace.engines.transformers.engine import TransformersEngine
from personaspace.formats.registry import TRANSCRIPT_FORMATS
from personaspace.serve.app import OPEN_PATHS
from personaspace.serve.settings import Settings
from personaspace.serve.types import MOST_READ
from served import serving
from shown import EXAMPLES, PAGES, ROOT, arguments_of, blocks, check_arguments, commands, program, shell_lines
from test_cli import run

NOT_RUN = {
    r"hf://|\bQwen/|\bpush\b|--engine vllm": "the Hub or vLLM is needed",
    r"--engine ray": "a cluster is needed; tests/test_ray.py starts one",
    r"--judge(-model)? openai|--tasks": "an endpoint or a data set is needed",
    r"\bcheckpoints/": "a training's checkpoints; tests/test_watch.py makes such",
    r"\.gguf\b|\./my-lora": "files that are not here; tests/test_gguf_models.py and test_adapters.py make such",
}
OTHER_PROGRAMS = (
    ".",
    "pip",
    "curl",
    "make",
    "python",
    "docker",
    "kubectl",
    "sudo",
    "printf",
    "marimo",
    "inspect",
    "lm_eval",
)
"""What a page may show beside our own commands; not run here. Targets of make, extras of pip and files are looked up."""
SMALL_MAP = (
    "--prompts-per-role 6 --default-prompts 24 --per-role 6 --default-responses 60 --max-new-tokens 9 --rows 32 "
    "--layer 1"
)
SMALL = {
    "map": SMALL_MAP,
    "calibrate": "--prompts 2 --layers 1:3 --controls 3",
    "experiment": "--max-new-tokens 4",
    "chat": "--max-new-tokens 4",
}
"""Options that cut a command to a small random model of three layers; they stand in place of a page's own."""
FEWER = "ghost,hermit,evaluator,analyst,bard,consultant"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_command_of_a_page_is_one_that_the_program_takes(page):
    for command in commands(page):
        check_arguments(arguments_of(command))


def test_every_example_of_a_commands_help_is_one_that_the_program_takes():
    examples = {
        command.name: command.epilog or ""
        for group in groups()
        for command in subcommands(group)
        if not hasattr(command, "list_commands")
    }
    assert len(examples) > 20
    for name, example in examples.items():
        assert example.startswith("Example: personaspace "), name
        check_arguments(arguments_of(example.removeprefix("Example: ")))


def groups() -> list[Any]:
    """The program, and its command that has commands of its own."""
    top = program()
    return [top, *(command for command in subcommands(top) if hasattr(command, "list_commands"))]


def subcommands(group: Any) -> list[Any]:
    context = group.make_context("", ["--no-such-command"], resilient_parsing=True)
    return [group.get_command(context, name) for name in group.list_commands(context)]


def test_commands_are_found_in_blocks_and_in_the_text_of_pages():
    of_pages = {page.relative_to(ROOT).as_posix(): commands(page) for page in PAGES}
    assert sum(map(len, of_pages.values())) > 90
    assert "personaspace export SPACE --format gguf --out axis.gguf" in of_pages["docs/faq.md"]


def test_a_command_with_an_option_that_is_not_there_is_noticed():
    with pytest.raises(WrongUse):
        check_arguments(arguments_of("personaspace serve smollm2 --no-such-option 3"))
    with pytest.raises(WrongUse):
        check_arguments(arguments_of("personaspace experiment jailbrake smollm2 --out x"))


def test_what_pages_install_and_make_is_there():
    """Extras of `pip install`, targets of make, scripts and other files that a page's commands name."""
    extras = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    )
    targets = set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text().replace("\\\n", " "), re.M)[1].split())
    for page in PAGES:
        for block in blocks(page):
            if block.language != "bash":
                continue
            for line in shell_lines(block.text):
                if asked := re.search(r"personaspace\[([\w,]+)\]", line):
                    assert set(asked[1].split(",")) <= extras, (page.name, line)
                if made := re.match(r"make ([\w-]+)", line):
                    assert made[1] in targets, (page.name, line)
                for name in re.findall(r"(?<![\w/])((?:deploy|scripts|docs)/[\w./-]+)", line):
                    assert (ROOT / name).exists(), (page.name, line)


def test_the_pages_name_every_extra_and_every_format_of_transcripts():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    install = (ROOT / "docs" / "howto" / "install.md").read_text(encoding="utf-8")
    assert all(f"`{extra}`" in install for extra in settings["project"]["optional-dependencies"])
    transcripts = (ROOT / "docs" / "howto" / "transcripts.md").read_text(encoding="utf-8")
    assert all(f"| {form.summary} | {form.told_by} |" in transcripts for form in TRANSCRIPT_FORMATS.values())


def test_the_servers_limits_stand_on_its_page_as_they_are():
    page, settings = (ROOT / "docs" / "server.md").read_text(encoding="utf-8"), Settings()
    for line in (
        f"| replies decoded together | {settings.rows} |",
        f"| replies that may wait; more get 429 | {settings.queue} |",
        f"| tokens of a reply | {settings.max_tokens:,} |",
        f"| messages of a conversation; `n`, or prompts of a body | {settings.max_messages}; {settings.max_n} |",
        f"| a body | {settings.max_body >> 20} MiB, within {settings.body_seconds:g} s |",
        f"| {settings.head_seconds:g} s; {settings.unread_seconds:g} s |",
        f"| directions read for one reply | {MOST_READ} |",
    ):
        assert line in page


def test_the_probes_of_the_page_on_deploying_are_what_the_server_answers_without_a_key():
    (text,) = [b.text for b in blocks(ROOT / "docs" / "howto" / "deploy.md") if b.language == "yaml"]
    (container,) = yaml.safe_load(text)["spec"]["template"]["spec"]["containers"]
    probes = {container[kind]["httpGet"]["path"] for kind in ("readinessProbe", "livenessProbe")}
    assert probes == {"/readyz", "/healthz"} <= set(OPEN_PATHS)
    check_arguments(["serve", *container["args"]])


@pytest.fixture(scope="module")
def model(tiny_folder) -> TransformersEngine:
    return TransformersEngine.load(str(tiny_folder), device="cpu")


@pytest.fixture(scope="module")
def mapped(tmp_path_factory, tiny_folder) -> Path:
    """A calibrated run of the small model, as `runs/smollm2` is after the tutorial."""
    folder = tmp_path_factory.mktemp("pages") / "runs" / "smollm2"
    run("map", tiny_folder, "--out", folder, "--roles", FEWER, *SMALL_MAP.split())
    return folder


def smaller(arguments: list[str], tiny_folder: Path) -> list[str]:
    """The same command, on the small model and cut to its size."""
    name = arguments[0]
    options = dict(zip(*[iter(SMALL.get(name, "").split())] * 2, strict=True))
    if name == "map" and "--catalog" not in arguments and "--roles" not in arguments:
        options["--roles"] = FEWER
    if name == "calibrate" and "--sweep" not in arguments:
        options = {}
    shorter = list(arguments)
    for option in options:
        if option in shorter:
            at = shorter.index(option)
            del shorter[at : at + 2]
    if name == "experiment":
        for option, value in zip(*[iter(EXPERIMENTS[arguments[1]].split())] * 2, strict=True):
            options[option] = value
    # The run's space is of the small model, and knows it; a map is told its name.
    model_name = str(tiny_folder) if name == "map" else "runs/smollm2"
    loads = name in ("map", "calibrate", "project", "chat", "serve", "experiment")
    shorter = [model_name if loads and a in ("smollm2", "./my-model") else a for a in shorter]
    return [*shorter, *(part for option in options.items() for part in option)]


EXPERIMENTS = {
    "susceptibility": "--roles 2 --probes 1 --controls 0 --alphas -0.2,0.0,0.2",
    "manner": "--roles-near evaluator,analyst --roles-far ghost,bard --per-cell 2 --replies 0",
    "case-study": "--seed 1",
}


def python_of(text: str, tiny_folder: Path, address: str | None) -> str:
    """A block's Python, on the small model."""
    text = text.replace('load_engine("transformers", "smollm2")', f'load_engine("transformers", {str(tiny_folder)!r})')
    text = re.sub(r'ps\.map\("(?:smollm2|\./my-model)"', f"ps.map({str(tiny_folder)!r}", text)
    text = text.replace('"smollm2"', '"runs/smollm2"')
    return text.replace("http://127.0.0.1:8000", address) if address else text


@pytest.mark.long
@pytest.mark.parametrize("page", EXAMPLES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_pages_examples_run_from_first_to_last(page, mapped, model, tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Who are you?\n/quit\n")))
    if page.parent.name != "tutorial":  # which makes it
        shutil.copytree(mapped, tmp_path / "runs" / "smollm2")
    names: dict[str, object] = {}
    with ExitStack() as servers:
        address = None
        for block in blocks(page):
            if block.title:
                Path(block.title).parent.mkdir(parents=True, exist_ok=True)
                Path(block.title).write_text(block.text, encoding="utf-8")
            elif block.language == "python":
                if re.search(r"\bvllm\b|hf://|\bTrainer\(", block.text):  # test_watch.py trains
                    compile(block.text, page.name, "exec")
                    continue
                exec(compile(python_of(block.text, tiny_folder, address), page.name, "exec"), names)
            elif block.language == "bash":
                for line in shell_lines(block.text):
                    program = line.removeprefix(".venv/bin/").split()[0]
                    if program != "personaspace":
                        assert program in OTHER_PROGRAMS, f"{page.name}: {line}"
                    elif not any(re.search(kind, line) for kind in NOT_RUN):
                        arguments = smaller(arguments_of(line), tiny_folder)
                        if arguments[0] == "serve":
                            space = ps.PersonaSpace.load(arguments[1])
                            address, _ = servers.enter_context(serving(space, model, max_tokens=8))
                        else:
                            run(*arguments)
            else:
                assert block.language in ("text", "json", "yaml", ""), f"{page.name}: {block.language}"
