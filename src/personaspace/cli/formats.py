"""The commands that take other formats in and give them out: import, export, push."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from personaspace.cli.common import Json, SpaceArg, app, out


@app.command(
    "import",
    epilog="Example: personaspace import published/qwen-3-32b --model Qwen/Qwen3-32B --out qwen-3-32b.safetensors",
)
def import_command(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A folder of the study's published files.")],
    out_path: Annotated[Path, typer.Option("--out", help="The space's file, or a folder for its space.safetensors.")],
    model: Annotated[str, typer.Option(help="The Hub id of the model that the files are of.")] = "unknown",
    layer: Annotated[int | None, typer.Option(help="The layer of the space, from 0; the middle one.")] = None,
    as_json: Json = False,
) -> None:
    """Read the study's published files, running nothing that is in them, and write them as one space."""
    from personaspace.interop import import_space

    space = import_space(source, model, layer)
    path = out_path / "space.safetensors" if out_path.is_dir() else out_path
    space.save(path)
    facts = {"space": str(path), "n_roles": len(space.roles), "layer": space.layer, "caps": list(space.meta["caps"])}
    out.print(json.dumps(facts) if as_json else f"space: {path}", markup=False)


@app.command("export", epilog="Example: personaspace export runs/smollm2 --format gguf --out axis.gguf")
def export_command(
    space: SpaceArg,
    to: Annotated[str, typer.Option("--format", help="gguf (llama.cpp), reference (the study's files) or compact.")],
    out_path: Annotated[Path, typer.Option("--out", help="The file, or for reference a new folder.")],
    direction: Annotated[str, typer.Option(help="gguf: axis, or a role.")] = "axis",
    scale: Annotated[float, typer.Option(help="gguf: what to multiply the vectors with.")] = 1.0,
    as_json: Json = False,
) -> None:
    """Write SPACE for other programs: a control vector, files laid out like the study's, or a small space."""
    from personaspace.interop import export_space
    from personaspace.space import PersonaSpace

    export_space(PersonaSpace.load(space), to, out_path, direction, scale)
    out.print(json.dumps({"out": str(out_path)}) if as_json else f"{to}: {out_path}", markup=False)


@app.command(epilog="Example: personaspace push runs/smollm2 hf://owner/smollm2-space --private")
def push(
    space: SpaceArg,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="owner/name or hf://owner/name.")],
    private: Annotated[bool, typer.Option("--private", help="Not to be seen by others.")] = False,
    as_json: Json = False,
) -> None:
    """Publish SPACE on the Hugging Face Hub, with a card drawn from its figures."""
    from personaspace.interop import push as upload
    from personaspace.space import PersonaSpace

    url = upload(PersonaSpace.load(space), target, private=private)
    out.print(json.dumps({"url": url}) if as_json else f"pushed: {url}", markup=False)
