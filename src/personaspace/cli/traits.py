"""The command that makes a trait of one's own from a description."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from personaspace.cli.common import (
    Device,
    Dtype,
    Json,
    JudgeKeyEnv,
    ModelArg,
    app,
    check_unused,
    err,
    out,
    space_and_engine,
)
from personaspace.errors import UsageError

WRITERS = ("model", "openai", "templates")


@app.command(
    "trait",
    epilog='Example: personaspace trait pedantic --describe "Corrects what does not matter." --space runs/smollm2',
)
def trait_command(
    name: Annotated[str, typer.Argument(help="What the trait is to be called.")],
    space: Annotated[str, typer.Option("--space", help="Where it is kept: a run's folder or a space's file.")],
    describe: Annotated[str, typer.Option(help="What somebody with the trait is like, in a sentence or two.")] = "",
    instructions: Annotated[
        Path | None, typer.Option(help='Instructions of your own, JSON: {"bring_out": […], "suppress": […]}.')
    ] = None,
    writer: Annotated[
        str, typer.Option(help="Who writes instructions: model (the space's own), openai (an endpoint) or templates.")
    ] = "model",
    writer_model: Annotated[str | None, typer.Option(help="The endpoint's model.")] = None,
    writer_url: Annotated[str | None, typer.Option(help="An OpenAI-compatible endpoint.")] = None,
    writer_key_env: JudgeKeyEnv = None,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="Write the space with the trait there, and leave SPACE as it is.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Keep it though it does not tell, or the name is taken.")
    ] = False,
    catalog: Annotated[Path | None, typer.Option(help="A catalogue's folder of your own, for the questions.")] = None,
    model: ModelArg = None,
    device: Device = None,
    dtype: Dtype = None,
    seed: Annotated[int, typer.Option(help="Which questions are held out.")] = 0,
    as_json: Json = False,
) -> None:
    """Make a direction of a trait from its description, see on held-out questions whether it tells, and keep it."""
    from personaspace.catalog import load_catalog
    from personaspace.engines.prompts import Prompt, Sampling
    from personaspace.files import plain
    from personaspace.judges.endpoint import MODEL, SMALL_ROOM, Endpoint
    from personaspace.mapping import describe as describing
    from personaspace.runs import Run
    from personaspace.space import PersonaSpace

    if writer not in WRITERS:
        raise UsageError(f"--writer {writer}: expected one of {', '.join(WRITERS)}")
    if writer != "openai":
        check_unused("--writer openai", writer_model=writer_model, writer_url=writer_url, writer_key_env=writer_key_env)
    if not describe and not instructions:
        raise UsageError("trait: expected --describe with what it is, or --instructions with a file")
    path = Path(space) / "space.safetensors" if Path(space).is_dir() else Path(space)
    target = out_file or (path if path.is_file() else None)
    if name in PersonaSpace.load(space).traits and not force:
        raise UsageError(f"{name}: a trait of that name is in the space already; another name, or --force")
    written = describing.from_file(name, describe, instructions) if instructions else None
    loaded, engine = space_and_engine(space, model, device, dtype)

    def by_model(text: str) -> str:
        prompt = Prompt(({"role": "user", "content": text},), seed=seed)
        return next(iter(engine.respond([prompt], Sampling(temperature=0, max_new_tokens=SMALL_ROOM)))).text

    def by_endpoint(text: str) -> str:
        endpoint = Endpoint(writer_model or MODEL, writer_url, who="--writer openai", key_env=writer_key_env)
        answer = next(endpoint.ask([({"role": "user", "content": text},)], max_tokens=SMALL_ROOM))
        if answer.text is None:
            raise UsageError(f"--writer openai: {answer.problem}; --writer templates needs no model")
        return answer.text

    if written is None and writer == "templates":
        written = describing.from_templates(name, describe)
    elif written is None:
        by = engine.info.id if writer == "model" else writer_model or MODEL
        written = describing.from_writer(name, describe, by_model if writer == "model" else by_endpoint, by)
    described = describing.describe(engine, loaded, load_catalog(catalog), written, seed)
    keeping = target is not None and (described.telling.enough or force)
    if keeping and target is not None:
        with Run(path.parent).locked() if target == path and Run(path.parent).exists else nullcontext():
            # Whatever was added to the space meanwhile stays.
            described.kept_in(PersonaSpace.load(space)).save(target)
    if as_json:
        values = {"trait": written.trait.model_dump(), "written_by": written.by, "problem": written.problem}
        result = {**values, "telling": plain(described.telling), "kept": str(target) if keeping else None}
        out.print_json(json.dumps(result))
    else:
        for line in describing.lines(described):
            out.print(line, markup=False)
    if keeping:
        if not as_json:
            out.print(f"kept as trait:{name} in {target}", markup=False)
    elif target is None:
        err.print(f"not kept: {space} is no file here; --out FILE writes a space with it")
    else:
        err.print(f"not kept: {described.telling.problem()}; other instructions may tell more, --force keeps it")
        raise typer.Exit(1)
