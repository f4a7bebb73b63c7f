"""What the commands have in common: the app, where they print, and how a space and its model are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from personaspace.cli.terminal import Terminal
from personaspace.engines.registry import DEFAULT_ENGINE
from personaspace.errors import UsageError
from personaspace.judges.registry import JUDGES, JUDGES_HELP, check_judge, read_options
from personaspace.model.dtypes import DTYPES_HELP

if TYPE_CHECKING:
    from personaspace.engines import Engine, LocalEngine
    from personaspace.space import PersonaSpace

app = typer.Typer(
    name="personaspace",
    help="Map the characters inside a chat model, and find its Assistant Axis.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
out = Terminal()
err = Terminal(stderr=True)

# Typer carries its own copy of click, or uses the installed one: the root of its errors is reached through it.
WrongUse: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
SpaceArg = Annotated[
    str, typer.Argument(metavar="SPACE", help="A run's folder, a space.safetensors, hf://owner/name, or smollm2.")
]


ModelArg = Annotated[str | None, typer.Option("--model", help="The model to run; the space's own unless given.")]
AdapterArg = Annotated[
    list[str] | None,
    typer.Option("--adapter", help="A LoRA adapter on the model, a folder or Hub id; several times, merged in order."),
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, mps, …; auto: layers over all GPUs; a GPU where there is one.")
]
VllmArg = Annotated[
    list[str] | None, typer.Option("--vllm", help="With vllm: an option of its own, as --x=y; several times.")
]
JudgeArg = Annotated[str, typer.Option(help=JUDGES_HELP)]
JudgeModel = Annotated[str | None, typer.Option(help="The judging model: another local one, or the endpoint's.")]
JudgeUrl = Annotated[str | None, typer.Option(help="An OpenAI-compatible endpoint.")]
JudgeOption = Annotated[
    list[str] | None,
    typer.Option(
        help="NAME=VALUE of every request to the endpoint, as JSON or text: temperature=1, reasoning_effort=low; null leaves "
        "one out. May be repeated."
    ),
]
JudgeKeyEnv = Annotated[
    str | None, typer.Option(help="The environment variable with the endpoint's key; OPENAI_API_KEY.")
]
Dtype = Annotated[str | None, typer.Option(help=DTYPES_HELP)]


def check_unused(owner: str, **options: object) -> None:
    """Raises `UsageError` for an option that was given and does nothing, since it is only read with another one, its owner."""
    for name, value in options.items():
        if value is not None:
            first = value[0] if isinstance(value, list) else value
            raise UsageError(
                f"--{name.replace('_', '-')} {first}: it does nothing without {owner}; add that, or leave it out"
            )


def check_judge_options(
    judge: str,
    model: str | None,
    url: str | None,
    option: list[str] | None,
    key_env: str | None,
    prefix: str = "judge",
) -> dict[str, Any]:
    """The fields of each request of a judge. prefix: what its options begin with. Raises `UsageError` for a name that is no
    judge's, and for options that the judge of that name does not read."""
    check_judge(judge)
    entries = {f"--{prefix} {name}": entry for name, entry in JUDGES.items()}
    elsewhere = [name for name, entry in entries.items() if entry.by_endpoint]
    by_model = [name for name, entry in entries.items() if entry.by_endpoint or entry.by_model]
    if f"--{prefix} {judge}" not in elsewhere:
        of_endpoint = {f"{prefix}_url": url, f"{prefix}_option": option, f"{prefix}_key_env": key_env}
        check_unused(" or ".join(elsewhere), **of_endpoint)
    if f"--{prefix} {judge}" not in by_model:
        check_unused(" or ".join(by_model), **{f"{prefix}_model": model})
    return read_options(option or ())


def space_and_engine(
    source: str,
    model: str | None,
    device: str | None = None,
    dtype: str | None = None,
    adapters: list[str] | None = None,
    span: str | None = "answer",
) -> tuple[PersonaSpace, LocalEngine]:
    """A space and the model it is of, loaded with adapters on it, which thinks as it did while it was mapped; one warning
    where the weights are a variant's, or another part of replies is read than was mapped (span; None for that part)."""
    from personaspace.engines.transformers.engine import TransformersEngine
    from personaspace.space import PersonaSpace

    space = PersonaSpace.load(source)
    name = model or str(space.meta["model"]["id"])
    engine = TransformersEngine.load(
        name, device=device, dtype=dtype, adapters=adapters or (), **space.thinking_options
    )
    if warning := space.check_model(engine.info, span or space.span):
        err.print(f"warning: {warning}")
    return space, engine


def judges_here(judge: str) -> bool:
    """Whether a model that is loaded here does the judging."""
    return judge in JUDGES and JUDGES[judge].by_model


def judging_engine(
    judge: str, judge_model: str | None, engine: Engine, device: str | None, dtype: str | None
) -> Engine:
    """Who judges where a model here does: the engine at hand, or another that is loaded for it."""
    # A judge reads probabilities, which only this engine gives: beside any other, the model is loaded here for it.
    if not (judges_here(judge) and (judge_model or not hasattr(engine, "model"))):
        return engine
    from personaspace.engines.registry import load_engine

    return load_engine(DEFAULT_ENGINE, judge_model or engine.info.id, device=device, dtype=dtype)
