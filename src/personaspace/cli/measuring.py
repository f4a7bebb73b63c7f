"""The command that measures: bench."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from personaspace.cli.common import AdapterArg, Json, VllmArg, app, check_unused, err, out
from personaspace.errors import UsageError


@app.command(epilog="Example: personaspace bench generate --json")
def bench(
    what: Annotated[
        str, typer.Argument(help="generate, extract, prefill, overhead, scale, startup, efficiency or serve.")
    ],
    run: Annotated[
        Path | None, typer.Argument(help="Of efficiency: a map's folder, whose readings are looked at.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model to measure: smollm2; of efficiency the run's.")] = None,
    prompts: Annotated[int, typer.Option(help="How many prompts.", min=1)] = 275,
    tokens: Annotated[int | None, typer.Option(help="New tokens a prompt.", min=1)] = None,
    repeats: Annotated[int, typer.Option(help="Measurements, ours and the peer's in turn.", min=1)] = 3,
    engine: Annotated[str, typer.Option(help="transformers; of overhead also vllm.")] = "transformers",
    against: Annotated[
        list[str] | None,
        typer.Option(help="Of serve: the address of an OpenAI-compatible server to measure as well; several times."),
    ] = None,
    words: Annotated[int, typer.Option(help="Of serve: how many words the long prompt has.", min=1)] = 4200,
    vllm: VllmArg = None,
    adapter: AdapterArg = None,
    as_json: Json = False,
) -> None:
    """Measure speed and memory as ratios against a peer, in one run."""
    from personaspace.bench import BENCHES, run_bench
    from personaspace.model.loading import with_adapters

    if what == "efficiency":
        return _efficiency(run, model, adapter, as_json)
    model = with_adapters(model or "smollm2", adapter)
    if what == "serve":
        return _serving(model, tokens or 32, words, repeats, against or (), as_json)
    if against:
        raise UsageError(f"--against {against[0]}: a server to measure is an option of bench serve")
    if what not in BENCHES:
        raise UsageError(f"bench {what}: expected one of {', '.join((*BENCHES, 'efficiency', 'serve'))}")
    if engine not in ("transformers", "vllm") or (engine == "vllm" and what != "overhead"):
        raise UsageError(f"bench {what} --engine {engine}: expected transformers, or overhead with vllm")
    if engine != "vllm":
        check_unused("--engine vllm", vllm=vllm)
    result = run_bench(
        what, model, prompts=prompts, tokens=tokens, repeats=repeats, engine=engine, arguments=vllm or ()
    )
    if as_json:
        out.print_json(json.dumps(result))
        return
    table = Table("", "median", "min", "max", "unit", "ratio")

    def ratio(name: str) -> str:
        if name not in result["ratio"]:
            return ""
        interval = result["ratio_interval"][name]
        beside = interval if isinstance(interval, str) else f"{interval[0]:.2f} to {interval[1]:.2f}"
        return f"{result['ratio'][name]:.2f} ({beside})"

    for name, row in {"ours": result["ours"], **result["peers"]}.items():
        table.add_row(name, *[f"{row[k]:.4g}" for k in ("median", "min", "max")], row["unit"], ratio(name))
    for name in [n for n in result["ratio"] if n not in result["peers"]]:
        table.add_row(name, "", "", "", "", ratio(name))
    out.print(table)
    sure = (
        f"A ratio is the median of {result['rounds']} rounds, measured in turn; in brackets the least and the most of them, "
        f"which hold the median of ever more rounds in {100 * result['confidence']:.0f}% of such runs."
    )
    out.print(sure if result["rounds"] > 1 else "One round: no ratio has an interval.", markup=False)


def _efficiency(folder: Path | None, model: str | None, adapter: list[str] | None, as_json: bool) -> None:
    from personaspace.bench import efficiency
    from personaspace.engines import load_engine
    from personaspace.model.loading import with_adapters
    from personaspace.runs import Run
    from personaspace.space import PersonaSpace

    if folder is None or not Run(folder).exists:
        raise UsageError(f"bench efficiency {folder or ''}: expected the folder of a map (it holds run.json)")
    run = Run(folder)
    space = PersonaSpace.load(run.space_file)
    engine = load_engine("transformers", with_adapters(model or space.meta["model"]["id"], adapter))
    if warning := space.check_model(engine.info):
        err.print(warning, markup=False)
    points = efficiency.curves(run, engine)
    page = efficiency.write_page(folder / "efficiency.html", space.meta["model"]["id"], space.layer, points)
    if as_json:
        result = {"bench": "efficiency", "layer": space.layer, "points": [vars(p) for p in points], "page": str(page)}
        out.print_json(json.dumps(result))
        return
    table = Table("way", "a role", "default", "tokens", "seconds", "axis", "order", "map")
    for row in efficiency.rows(points):
        table.add_row(*row)
    out.print(table)
    out.print(f"page: {page}")


def _serving(space: str, tokens: int, words: int, repeats: int, against: Sequence[str], as_json: bool) -> None:
    from personaspace.bench import serving

    result = serving.measure(space, tokens, words, repeats, against)
    if as_json:
        out.print_json(json.dumps({"bench": "serve", **result}))
        return
    servers = result["servers"]
    table = Table("", *servers)
    for name in dict.fromkeys(name for measured in servers.values() for name in measured):
        cells = []
        for row in (measured.get(name) for measured in servers.values()):
            spread = f" ({row['min']:.3g} to {row['max']:.3g})" if row and row["min"] < row["max"] else ""
            cells.append(f"{row['median']:.3g}{spread} {row['unit']}".strip() if row else "")
        table.add_row(name, *cells)
    out.print(table)
    for name, reason in result["not run"].items():
        out.print(f"{name}: {reason}", markup=False)
