"""The commands that take other formats in and give them out: import, export, push."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from personaspace.cli.common import Device, Dtype, Json, ModelArg, SpaceArg, app, check_unused, err, out
from personaspace.errors import UsageError

if TYPE_CHECKING:
    from personaspace.space import PersonaSpace


@app.command(
    "import",
    epilog="Example: personaspace import hf://datasets/lu-christina/assistant-axis-vectors/qwen-3-32b --model Qwen/Qwen3-32B",
)
def import_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A folder of the study's files, here or hf://datasets/OWNER/NAME/FOLDER."
        ),
    ],
    out_path: Annotated[
        Path | None,
        typer.Option(
            "--out", help="The space's file, or a folder for its space.safetensors; SOURCE's last name unless given."
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="The Hub id of the model that the files are of.")] = "unknown",
    layer: Annotated[int | None, typer.Option(help="The layer of the space, from 0; the middle one.")] = None,
    as_json: Json = False,
) -> None:
    """Read the study's files, published or of its pipeline, running nothing that is in them, and write them as one space."""
    from personaspace.formats import import_space, unknown

    path = _space_path(source, out_path)
    space = import_space(source, model, layer)
    space.save(path)
    lacking = unknown(space)
    if as_json:
        facts = {"space": str(path), "n_roles": len(space.roles), "layer": space.layer, "caps": list(space.caps)}
        out.print(json.dumps({**facts, "n_traits": len(space.meta["traits"]), "unknown": lacking}))
        return
    traits = f", {len(space.meta['traits'])} traits" if space.meta["traits"] else ""
    lines = [f"space: {path}", f"{len(space.roles)} roles{traits}, layer {space.layer} of {len(space.tensors['axis'])}"]
    names = [name for name, cap in space.caps.items() if "is" not in cap]
    recommended = space.caps.get("capped", {})
    chosen = f"capped is {recommended['is']}: {recommended['why']['because']}" if "is" in recommended else ""
    if not recommended:
        chosen = f"none is called capped, so name one: {', '.join(names[:6])}" + ", …" * (len(names) > 6)
    lines.append(f"caps: {len(names)}" + f"; {chosen}" * bool(chosen and names))
    experiments = space.meta["reference"].get("capping_config", {}).get("experiments", [])
    if others := [e["id"] for e in experiments if e["id"] not in names]:
        lines.append(f"kept for export, but no caps here, as they aren't along the axis: {len(others)}, as {others[0]}")
    if lacking:
        name = "MODEL" if model == "unknown" else model
        lines.append(
            f"not known from vectors alone: {', '.join(lacking)}; `personaspace map {name}` and `calibrate` measure them, with "
            "a few hundred prompts, in a space of their own"
        )
    out.print("\n".join(lines))


def _space_path(source: str, out_path: Path | None) -> Path:
    """Where an imported space is written. Raises `UsageError` where nobody named the place and a space is there already."""
    if out_path is not None:
        return out_path / "space.safetensors" if out_path.is_dir() else out_path
    name = source.rstrip("/").rsplit("/", 1)[-1] if source.startswith("hf://") else Path(source).resolve().name
    path = Path(f"{name}.safetensors")
    if path.exists():
        raise UsageError(f"{path}: is there already; `--out {path}` writes it anew, another name one beside it")
    return path


@app.command("export", epilog="Example: personaspace export runs/smollm2 --format gguf --out axis.gguf")
def export_command(
    space: SpaceArg,
    to: Annotated[
        str, typer.Option("--format", help="gguf (llama.cpp), reference (the study's files), compact or weights.")
    ],
    out_path: Annotated[Path, typer.Option("--out", help="The file, or for reference and weights a new folder.")],
    direction: Annotated[str | None, typer.Option(help="gguf: axis, unless a role, trait:NAME, ….")] = None,
    scale: Annotated[float | None, typer.Option(help="gguf: what to multiply the vectors with; 1.")] = None,
    ablate: Annotated[
        str | None, typer.Option(help="weights: what to take out of the model's weights, axis or a role.")
    ] = None,
    model: ModelArg = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Write SPACE for other programs: a control vector, files laid out like the study's, a small space, or its model's weights
    without a direction."""
    from personaspace.formats import export_space
    from personaspace.space import PersonaSpace

    if to != "gguf":
        check_unused("--format gguf", direction=direction, scale=scale)
    if to == "weights":
        _export_weights(space, out_path, ablate, model, dtype, as_json)
        return
    check_unused("--format weights", ablate=ablate, model=model, dtype=dtype)
    export_space(PersonaSpace.load(space), to, out_path, direction or "axis", 1.0 if scale is None else scale)
    out.print(json.dumps({"out": str(out_path)}) if as_json else f"{to}: {out_path}")


def _export_weights(
    space: str, folder: Path, ablate: str | None, model: str | None, dtype: str | None, as_json: bool
) -> None:
    from personaspace.files import plain
    from personaspace.formats import export_weights
    from personaspace.space import PersonaSpace

    if ablate is None:
        raise UsageError("--format weights: --ablate says what to take out of them: axis, or a role")
    ablated = export_weights(PersonaSpace.load(space), ablate, folder, model, dtype)
    if as_json:
        out.print(json.dumps({"out": str(folder), **plain(ablated)}))
        return
    untied = "; the lm_head, which was the embedding, is a matrix of its own now" if ablated.untied else ""
    out.print(
        f"weights: {folder}\n{ablate} is out of {len(ablated.names)} tensors: of the residual stream at most "
        f"{ablated.before:.1%} lay along it, now {ablated.after:.1e}{untied}"
    )


@app.command(epilog="Example: personaspace push runs/smollm2 hf://owner/smollm2-space --private")
def push(
    space: SpaceArg,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="owner/name or hf://owner/name.")],
    private: Annotated[bool, typer.Option("--private", help="Not to be seen by others.")] = False,
    as_json: Json = False,
) -> None:
    """Publish SPACE on the Hugging Face Hub, with a card drawn from its figures."""
    from personaspace.formats import push as upload
    from personaspace.space import PersonaSpace

    url = upload(PersonaSpace.load(space), target, private=private)
    out.print(json.dumps({"url": url}) if as_json else f"pushed: {url}")


@app.command(
    "compare", epilog="Example: personaspace compare Qwen/Qwen3-0.6B 'Qwen/Qwen3-0.6B + ./my-lora' --out tuned"
)
def compare_command(
    spaces: Annotated[
        list[str],
        typer.Argument(
            metavar="SPACE SPACE ...", help="Two spaces or more; or models, 'MODEL + ADAPTER', which are mapped first."
        ),
    ],
    out_path: Annotated[
        Path, typer.Option("--out", help="The page; models' maps lie in the folder of that name, or here if it is one.")
    ] = Path("compare.html"),
    roles: Annotated[
        str | None, typer.Option(help="With models: all, a number of roles, or names separated by commas.")
    ] = None,
    prompts_per_role: Annotated[int | None, typer.Option(help="With models: prompts a role; 16.", min=1)] = None,
    catalog: Annotated[Path | None, typer.Option(help="With models: a catalogue's folder of your own.")] = None,
    device: Device = None,
    dtype: Dtype = None,
    seed: Annotated[int, typer.Option(help="Of the draws behind the intervals, and of maps.")] = 0,
    as_json: Json = False,
) -> None:
    """Set spaces of several models, or versions of one, side by side; a base and its fine-tune are mapped for that."""
    from personaspace.experiments.compare.findings import compare
    from personaspace.experiments.compare.names import is_model
    from personaspace.experiments.compare.page import headline, write_comparison
    from personaspace.files import plain
    from personaspace.report import words
    from personaspace.space import PersonaSpace

    is_page = out_path.suffix == ".html"
    folder, out_file = (out_path.with_suffix(""), out_path) if is_page else (out_path, out_path / "compare.html")
    if any(map(is_model, spaces)):
        from personaspace.api import options_of
        from personaspace.catalog import load_catalog
        from personaspace.cli.progress import Bar
        from personaspace.engines import Engine, load_engine
        from personaspace.experiments.compare.sources import spaces_of

        def load(name: str) -> Engine:
            err.print(f"{name}:")
            return load_engine("transformers", name, device=device, dtype=dtype)

        prompts = {} if prompts_per_role is None else {"per_role": prompts_per_role}
        options = options_of(read="prompt", prompts=prompts, seed=seed)
        with Bar(err) as bar:
            mapped = spaces_of(
                dict(zip(spaces, spaces, strict=True)),
                folder,
                load_catalog(catalog).select(roles or "all"),
                options,
                load,
                bar,
            )
        loaded = named([(source, mapped[source]) for source in spaces])
    else:
        check_unused(
            "a model to map",
            roles=roles,
            prompts_per_role=prompts_per_role,
            catalog=catalog,
            device=device,
            dtype=dtype,
        )
        loaded = named([(source, PersonaSpace.load(source)) for source in spaces])
    pairs = compare(loaded, seed)
    out_file.parent.mkdir(parents=True, exist_ok=True)
    page = write_comparison(out_file, loaded, pairs)
    if as_json:
        out.print_json(json.dumps({"pairs": plain(pairs), "page": str(page)}))
        return
    for name, space in loaded:
        for reading in space.readings:
            out.print(f"{name}, from {words.noun(reading)}: {words.brief(space.of(reading).worth())}")
    out.print()
    for p in pairs:
        moved, ranking = ", ".join(f"{role} {b - a:+.1f}" for role, a, b in p.moved[:6]), str(p.ranking)
        clean = "" if p.without_noise is None else f" (noise taken out {p.without_noise})"
        if p.unknown:
            ranking = "not known"
            moved = f"not known, as is the order in {' and '.join(p.unknown)}"
        out.print(
            f"{p.first} and {p.second}, {p.shared} roles: PC1 loadings {p.pc1}, on the axis {p.axis}{clean}, "
            f"ranking {ranking}\n"
            f"  moved most: {moved}",
        )
    out.print(f"\n{headline(pairs)}\n\npage: {page}")


def named(spaces: list[tuple[str, PersonaSpace]]) -> list[tuple[str, PersonaSpace]]:
    """Spaces under their models' names, or as they were given where two are of the same model."""
    models = [space.meta["model"]["id"].rsplit("/", 1)[-1] for _, space in spaces]
    return [
        (model if models.count(model) == 1 else source, space)
        for model, (source, space) in zip(models, spaces, strict=True)
    ]
