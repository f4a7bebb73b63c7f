"""The commands that make a map and look at it: map, show, report."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from personaspace.cli.common import (
    AdapterArg,
    Device,
    Dtype,
    Json,
    JudgeArg,
    JudgeKeyEnv,
    JudgeModel,
    JudgeOption,
    JudgeUrl,
    SpaceArg,
    VllmArg,
    app,
    check_judge_options,
    check_unused,
    err,
    judges_here,
    judging_engine,
    out,
)
from personaspace.cli.tables import print_space
from personaspace.engines.registry import DEFAULT_ENGINE, ENGINES_HELP
from personaspace.errors import UsageError
from personaspace.judges.registry import DEFAULT_JUDGE, make_judge

if TYPE_CHECKING:
    from personaspace.catalog import Catalog
    from personaspace.mapping.options import MapOptions


PUBLISHED_LEAST = 50
"""Kept replies that a role needs in the study."""


@app.command("map", epilog="Example: personaspace map smollm2 --out runs/smollm2 --questions 120 --max-new-tokens 32")
def map_command(
    model: Annotated[str, typer.Argument(help="smollm2, a Hub id, owner/name:Q4_K_M, a folder, or a GGUF file.")],
    out_folder: Annotated[Path, typer.Option("--out", help="The run's folder; the same command goes on with it.")],
    read: Annotated[
        str, typer.Option(help="prompt: before the first word; reply: as in the study; both: the map from prompts.")
    ] = "both",
    published: Annotated[
        bool, typer.Option("--published", help="The study's way: replies, every role asked everything.")
    ] = (False),
    roles: Annotated[
        str | None, typer.Option(help="all, a number of roles, or names separated by commas; all unless given.")
    ] = None,
    questions: Annotated[
        int | None, typer.Option(help="How many questions; unless given, so many that each is asked of ten roles.")
    ] = None,
    prompts_per_role: Annotated[int | None, typer.Option(help="Prompts a role, in rotation; 16.", min=1)] = None,
    default_prompts: Annotated[
        int | None, typer.Option(help="Prompts of the default; half the roles' total, at most 250.", min=2)
    ] = None,
    per_role: Annotated[
        int | None, typer.Option(help="Replies a role, questions and instructions in rotation; 2, without prompts 4.")
    ] = None,
    complete: Annotated[bool, typer.Option("--complete", help="Ask for every role's replies to everything.")] = False,
    default_responses: Annotated[
        int | None, typer.Option(help="Replies of the default; half the roles' total.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="At most that many tokens a reply; 512.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature; 0.7, and 0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(help="The nucleus' share of probability; 0.9.")] = None,
    judge: JudgeArg = DEFAULT_JUDGE,
    judge_model: JudgeModel = None,
    judge_url: JudgeUrl = None,
    judge_option: JudgeOption = None,
    judge_key_env: JudgeKeyEnv = None,
    min_responses: Annotated[
        int | None, typer.Option(help="Kept responses a role needs; half of what was asked.")
    ] = None,
    layer: Annotated[str, typer.Option(help="auto, or a layer counted from 0.")] = "auto",
    until: Annotated[
        str | None, typer.Option(help="Go on in rounds until it is that reliable: axis:0.95,order:0.9,map:0.8.")
    ] = None,
    budget: Annotated[
        int | None, typer.Option(help="Replies that --until may spend; four times what is asked for.")
    ] = None,
    prompt_budget: Annotated[
        int | None, typer.Option(help="Prompts that --until may read; four times what is asked for.")
    ] = None,
    keep: Annotated[
        str,
        typer.Option(help="all activations; sums, for a run too big to keep them; layers:A:B, sums and those layers'."),
    ] = "all",
    blocks: Annotated[
        int | None, typer.Option(help="Blocks of questions that sums are made by; 20, without sums each question.")
    ] = None,
    shards: Annotated[
        str | None, typer.Option(help="Where replies and activations go: s3://…, gs://…, …; the run's folder.")
    ] = None,
    traits: Annotated[str | None, typer.Option(help="Read traits, too: all, a number of them, or names.")] = None,
    trait_questions: Annotated[int | None, typer.Option(help="Questions a trait, each asked twice; 8.", min=2)] = None,
    catalog: Annotated[Path | None, typer.Option(help="A catalogue's folder of your own.")] = None,
    engine: Annotated[str, typer.Option(help=ENGINES_HELP)] = DEFAULT_ENGINE,
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster (auto, host:port); ray starts one here.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="How many; as many as the cluster has room for.", min=1)] = None,
    worker_engine: Annotated[str | None, typer.Option(help="What each worker runs; transformers.")] = None,
    cpus_per_worker: Annotated[int | None, typer.Option(help="A worker's CPUs, and threads; 1.", min=1)] = None,
    gpus_per_worker: Annotated[float | None, typer.Option(help="A worker's GPUs; 0.", min=0)] = None,
    vllm: VllmArg = None,
    adapter: AdapterArg = None,
    device: Device = None,
    dtype: Dtype = None,
    rows: Annotated[int | None, typer.Option(help="Replies in flight at once; 128 on a CPU.")] = None,
    thinking: Annotated[
        bool, typer.Option("--thinking", help="Let the model think before it answers; what is read is the answer.")
    ] = False,
    span: Annotated[
        str | None,
        typer.Option(help="What of a thinking model's replies is read: answer (unless given), thinking, all."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same run.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    on: Annotated[
        str | None, typer.Option(help="Plan for 8xH100, 1xA100, 4xL40S, …, or this; the model isn't loaded.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Map MODEL: read its prompts and replies as roles and as the default, and write the space and its report."""
    from personaspace.api import options_of
    from personaspace.cli.progress import Bar
    from personaspace.engines import load_engine
    from personaspace.mapping.mapper import Mapper
    from personaspace.mapping.questions import catalog_of
    from personaspace.model.loading import with_adapters

    request_options = check_judge_options(judge, judge_model, judge_url, judge_option, judge_key_env)
    if layer != "auto" and not layer.isdigit():
        raise UsageError(f"--layer {layer}: expected auto or a number from 0")
    if published:
        if read == "prompt":
            raise UsageError("--published --read prompt: the study's way reads replies; leave one of the two out")
        read, complete, min_responses = "reply", True, min_responses or PUBLISHED_LEAST
    design = {"per_role": per_role, "default_responses": default_responses, "complete": complete or None}
    prompts = {"per_role": prompts_per_role, "default_responses": default_prompts}
    sampling = {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens}
    options = options_of(
        read=read,
        **{
            name: {k: v for k, v in values.items() if v is not None}
            for name, values in (("design", design), ("prompts", prompts), ("sampling", sampling))
        },
        seed=seed,
        layer=None if layer == "auto" else int(layer),
        min_responses=min_responses,
        until=until,
        budget=budget,
        prompt_budget=prompt_budget,
        keep=keep,
        blocks=blocks,
        shards=shards,
        span=span,
        traits=traits,
        trait_questions=trait_questions,
    )
    if engine != "ray":
        check_unused(
            "--engine ray",
            address=address,
            workers=workers,
            worker_engine=worker_engine,
            cpus_per_worker=cpus_per_worker,
            gpus_per_worker=gpus_per_worker,
        )
    if not until:
        check_unused("--until", budget=budget, prompt_budget=prompt_budget)
    chosen_catalog = catalog_of(out_folder, options, catalog, roles, questions)
    if on:
        if not dry_run:
            raise UsageError("--on: a map runs where it is; with --dry-run it says what it would take there")
        return _plan_on(model, on, chosen_catalog, options, as_json)
    bar = Bar(err)
    model = with_adapters(model, adapter)
    placement: dict[str, Any] = {"device": device, "dtype": dtype, **({"thinking": True} if thinking else {})}
    if "vllm" in (engine, worker_engine if engine == "ray" else ""):
        placement |= _for_vllm(model, chosen_catalog, options, out_folder, vllm or [], judges_here(judge))
    else:
        check_unused("--engine vllm", vllm=vllm)
    if engine == "ray":
        cluster = {"address": address, "workers": workers, "worker_engine": worker_engine}
        per_worker = {"cpus": cpus_per_worker, "gpus": gpus_per_worker}
        placement |= {name: value for name, value in {**cluster, **per_worker}.items() if value is not None}
    loaded_engine = load_engine(engine, model, **placement, rows=rows)
    mapper = Mapper(loaded_engine, chosen_catalog, out_folder, options, bar)
    if dry_run:
        plans = mapper.plan()
        if as_json:
            by_reading = {reading: vars(plan) for reading, plan in plans.items()}
            last = [plan for reading, plan in by_reading.items() if reading != "traits"][-1]
            out.print(json.dumps({**last, "readings": by_reading}))
        else:
            out.print("\n".join(bar.line(plan) for plan in plans.values()))
        return
    judge_engine = judging_engine(judge, judge_model, loaded_engine, device, dtype)
    scorer = make_judge(
        judge, engine=judge_engine, model=judge_model, url=judge_url, options=request_options, key_env=judge_key_env
    )
    with bar:
        space = mapper.map(scorer)
    summary = space.summary()
    if as_json:
        out.print_json(
            json.dumps({**summary, "report": str(mapper.run.report_file), "space": str(mapper.run.space_file)})
        )
        return
    print_space(summary)
    out.print(f"\nspace:  {mapper.run.space_file}\nreport: {mapper.run.report_file}")


def _for_vllm(
    model: str, catalog: Catalog, options: MapOptions, out_folder: Path, arguments: list[str], judged_here: bool
) -> dict[str, Any]:
    """What engine vllm is told of a map: how long conversations become, and to leave room where a model judges beside it. What
    the user says of either stands."""
    from personaspace.engines.chat import Chat
    from personaspace.engines.vllm.options import BESIDE_A_JUDGE, read_options
    from personaspace.mapping.lengths import longest_conversation
    from personaspace.model.loading import find, load_tokenizer
    from personaspace.runs import Run

    if importlib.util.find_spec("vllm") is None:
        return {}  # as the engine will say, before anything is fetched
    new_tokens = options.sampling.max_new_tokens if options.read != "prompt" else 1
    if (run := Run(out_folder)).exists and options.read != "prompt":
        new_tokens = max(new_tokens, run.manifest()["config"].get("sampling", {}).get("max_new_tokens", 1))
    chat = Chat(load_tokenizer(find(model).tokenizer, model))
    placement = {"tokens": longest_conversation(catalog, chat, new_tokens), "arguments": arguments}
    if judged_here and not {"gpu_memory_utilization", "kv_cache_memory_bytes"} & set(read_options(arguments)):
        placement["gpu_memory_utilization"] = BESIDE_A_JUDGE
        err.print(
            f"vLLM takes {BESIDE_A_JUDGE:.0%} of the GPU's memory: the judge is loaded beside it (--vllm "
            "--gpu-memory-utilization=… says otherwise)",
        )
    return placement


def _plan_on(model: str, on: str, catalog: Catalog, options: MapOptions, as_json: bool) -> None:
    from personaspace.mapping import plan

    shape, chat = plan.model_of(model)
    hardware = plan.hardware_of(on)
    options = options.resolved(None, catalog)
    workloads = {}
    if options.read != "reply":
        workloads["prompt"] = plan.workload_of(catalog, options.prompts, 0, options.seed, chat)
    if options.read != "prompt":
        workloads["reply"] = plan.workload_of(
            catalog, options.design, options.sampling.max_new_tokens, options.seed, chat
        )
    if as_json:
        by_reading = {
            reading: plan.as_json(model, hardware, workload, shape) for reading, workload in workloads.items()
        }
        out.print_json(json.dumps({**by_reading[list(workloads)[-1]], "readings": by_reading}))
    else:
        for reading, workload in workloads.items():
            out.print("\n".join(plan.lines(model, hardware, workload, shape, reading)))


@app.command(epilog="Example: personaspace show runs/smollm2")
def show(space: SpaceArg, as_json: Json = False) -> None:
    """Print a space's figures."""
    from personaspace.space import PersonaSpace

    summary = PersonaSpace.load(space).summary()
    if as_json:
        out.print_json(json.dumps(summary))
    else:
        print_space(summary)


@app.command(epilog="Example: personaspace report runs/smollm2 --out map.html")
def report(
    space: SpaceArg,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="Where to write the page; report.html beside the space.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a space as one HTML page that works with the network off."""
    from personaspace.report.map import write_report
    from personaspace.space import PersonaSpace

    source = Path(space)
    folder = source if source.is_dir() else source.parent if source.is_file() else Path()
    path = write_report(PersonaSpace.load(space), out_file or folder / "report.html")
    out.print(json.dumps({"report": str(path)}) if as_json else f"report: {path}")
