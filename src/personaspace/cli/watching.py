"""The command that watches a model change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from personaspace.cli.common import Device, Dtype, Json, app, err, out


@app.command("watch", epilog="Example: personaspace watch smollm2 'smollm2 + ./my-lora' --null 'smollm2 + ./neutral'")
def watch_command(
    base: Annotated[str, typer.Argument(help="The model as it was, or the folder of its map.")],
    variants: Annotated[
        list[str],
        typer.Argument(metavar="VARIANT ...", help="Checkpoints' folders, 'BASE + ADAPTER', GGUF files, in order."),
    ],
    null: Annotated[
        list[str] | None,
        typer.Option("--null", help="A neutral fine-tune, which an effect must lie beyond; several times."),
    ] = None,
    space: Annotated[str | None, typer.Option("--space", help="The base's space; its own unless given.")] = None,
    out_file: Annotated[Path, typer.Option("--out", help="The page.")] = Path("watch.html"),
    effect: Annotated[
        float, typer.Option(help="How far the default must have moved to count, in its standard deviations.")
    ] = 0.5,
    traits: Annotated[
        str | None, typer.Option(help="all, none, a number or names; those of the space, or all, unless given.")
    ] = None,
    trait_questions: Annotated[int, typer.Option(help="Of a trait that the space lacks.", min=2)] = 2,
    roles: Annotated[str, typer.Option(help="Roles that are read beside the default: all, a number, or names.")] = "24",
    read: Annotated[
        str, typer.Option(help="prompt: before the first word; reply: 24 tokens of each, which name a voice better.")
    ] = "prompt",
    prompts: Annotated[int, typer.Option(help="Prompts of the default, each another question.")] = 120,
    catalog: Annotated[Path | None, typer.Option(help="A catalogue's folder of your own.")] = None,
    device: Device = None,
    dtype: Dtype = None,
    seed: Annotated[int, typer.Option(help="Which question goes with which default prompt.")] = 0,
    as_json: Json = False,
) -> None:
    """Say how variants of one model have moved: on the axis, along traits, and towards which roles."""
    from personaspace import api
    from personaspace.cli.progress import Bar
    from personaspace.engines import Engine, load_engine
    from personaspace.experiments.watch import page
    from personaspace.experiments.watch.run import space_of
    from personaspace.files import plain
    from personaspace.model.sources import resolve
    from personaspace.report import words

    loaded, _ = space_of(base, space)
    for name in (*variants, *(null or ())):
        resolve(name)  # one that was mistyped is told before any model is read

    def load(name: str) -> Engine:
        return load_engine("transformers", name, device=device, dtype=dtype, **loaded.thinking_options)

    with Bar(err) as bar:
        watched = api.watch(
            base,
            variants,
            null=null or (),
            space=loaded,
            catalog=catalog,
            watcher=bar,
            load=load,
            effect=effect,
            traits=traits,
            trait_questions=trait_questions,
            roles=roles,
            prompts=prompts,
            reading=read,
            seed=seed,
        )
    written = page.write_watched(out_file, watched)
    if as_json:
        out.print_json(json.dumps(plain({**page.plain_changes(watched), "page": str(written)})))
        return
    for note in watched.notes:
        err.print(f"note: {note}")
    for change in watched.changes:
        for text in words.wrapped(page.said(change), out.width):
            out.print(text, markup=False)
    out.print(f"\n{page.rule(watched)}\npage: {written}", markup=False)
