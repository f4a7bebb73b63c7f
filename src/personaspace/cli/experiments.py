"""The commands that run the study's experiments: each is made from its options' fields, so that it cannot lag behind them."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic.fields import FieldInfo
from typer.core import TyperGroup

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
    ModelArg,
    SpaceArg,
    app,
    check_judge_options,
    err,
    judging_engine,
    out,
    space_and_engine,
)
from personaspace.errors import CatalogError, UsageError
from personaspace.experiments.registry import EXPERIMENTS, find
from personaspace.judges.registry import DEFAULT_JUDGE

if TYPE_CHECKING:
    from personaspace.experiments.kit.experiment import Experiment
    from personaspace.experiments.kit.options import Options


class ExperimentGroup(TyperGroup):
    """Commands that are made when they are asked for: what an experiment needs is read for its own command alone."""

    def list_commands(self, _: Any) -> list[str]:
        """Their names, in the order of the paper."""
        return list(EXPERIMENTS)

    def get_command(self, _: Any, name: str) -> Any:
        """A command, made from its options; None for a name that is none."""
        return command_of(name) if name in EXPERIMENTS else None

    def format_commands(self, _: Any, formatter: Any) -> None:
        """The list of help, from the registry alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in EXPERIMENTS.items()])


group = typer.Typer(
    cls=ExperimentGroup, help="Run one of the study's experiments, and set its figure beside the published one."
)
group.callback()(lambda: None)
app.add_typer(group, name="experiment")

COMMON: dict[str, Any] = {
    "space": SpaceArg,
    "out_folder": Annotated[
        Path, typer.Option("--out", help="The experiment's folder; the same command goes on with it.")
    ],
    "published": Annotated[
        bool, typer.Option("--published", help="Start from the published setting, not the small one.")
    ],
    "judge": JudgeArg,
    "judge_model": JudgeModel,
    "judge_url": JudgeUrl,
    "judge_option": JudgeOption,
    "judge_key_env": JudgeKeyEnv,
    "catalog": Annotated[Path | None, typer.Option(help="A catalogue's folder of your own.")],
    "model": ModelArg,
    "adapter": AdapterArg,
    "device": Device,
    "dtype": Dtype,
    "dry_run": Annotated[
        bool, typer.Option("--dry-run", help="Print what it would take, and what the published setting would.")
    ],
    "as_json": Json,
}
DEFAULTS: dict[str, Any] = {"published": False, "judge": DEFAULT_JUDGE, "dry_run": False, "as_json": False}
NEEDED = ("space", "out_folder")


def _default_text(default: Any) -> str:
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _option(name: str, field: FieldInfo) -> Any:
    """A field as an option: what holds several values is text here, and is read by the field itself."""
    kind = field.annotation if field.annotation in (int, float, bool) else str
    default_note = "" if field.default in (None, "", ()) else f"  [default: {_default_text(field.default)}]"
    flag = "--" + name.replace("_", "-")
    return Annotated[kind | None, typer.Option(flag, help=f"{field.description}{default_note}", show_default=False)]


def command_of(name: str) -> Any:
    """An experiment's command: the common options, and one for each field of its own."""
    experiment = find(name)
    experiment_options = {k: _option(k, f) for k, f in experiment.options.model_fields.items()}

    def command(**arguments: Any) -> None:
        options = {k: arguments.pop(k) for k in experiment_options}
        _run(experiment, {k: v for k, v in options.items() if v is not None}, **arguments)

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(k, keyword, annotation=COMMON[k]) for k in NEEDED]
    parameters += [inspect.Parameter(k, keyword, annotation=a, default=None) for k, a in experiment_options.items()]
    parameters += [
        inspect.Parameter(k, keyword, annotation=a, default=DEFAULTS.get(k))
        for k, a in COMMON.items()
        if k not in NEEDED
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = EXPERIMENTS[name].summary
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    alone.command(name, epilog=f"Example: {experiment.example}" if experiment.example else None)(command)
    return typer.main.get_command(alone)


def _run(
    experiment: Experiment,
    overrides: dict[str, Any],
    *,
    space: str,
    out_folder: Path,
    published: bool,
    judge: str,
    judge_model: str | None,
    judge_url: str | None,
    judge_option: list[str] | None,
    judge_key_env: str | None,
    catalog: Path | None,
    model: str | None,
    adapter: list[str] | None,
    device: str | None,
    dtype: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    from personaspace import api
    from personaspace.catalog import load_catalog
    from personaspace.cli.progress import Bar
    from personaspace.engines import load_engine
    from personaspace.experiments.kit.trials import Judges

    request_options = check_judge_options(judge, judge_model, judge_url, judge_option, judge_key_env)
    options = experiment.read_options(overrides, published)
    texts = load_catalog(catalog)
    loaded, engine = space_and_engine(space, model, device, dtype, adapter)

    def load(name: str, **options: Any) -> Any:
        return load_engine("transformers", name, device=device, dtype=dtype, **options)

    if dry_run:
        _costs(experiment, options, texts, engine, as_json)
        return
    judge_engine = judging_engine(judge, judge_model, engine, device, dtype)
    bar = Bar(err)
    with bar:
        result = api.experiment(
            experiment.name,
            loaded,
            out_folder,
            engine=engine,
            published=published,
            judges=Judges(judge, judge_engine, judge_model, judge_url, request_options, judge_key_env),
            catalog=texts,
            load=load,
            watcher=bar,
            **overrides,
        )
    if as_json:
        out.print_json((out_folder / "results.json").read_text(encoding="utf-8"))
        return
    for figure in result.key:
        out.print(f"{figure.name + ':':<34} {figure.value}" + (f"   {figure.note}" if figure.note else ""))
    out.print(
        f"\n{result.headline}\n\ndata:   {out_folder / 'results.parquet'}\nreport: {out_folder / 'report.html'}",
        markup=False,
    )


def _costs(experiment: Experiment, options: Options, texts: Any, engine: Any, as_json: bool) -> None:
    from personaspace.report.words import duration

    costs = {"this": experiment.cost(options, texts)}
    try:
        costs["published"] = experiment.cost(experiment.published, texts)
    except (UsageError, CatalogError) as e:  # a user's own catalogue may lack what the published setting asks for
        err.print(f"the published setting is not one for this catalogue: {e}")
    seconds = {k: c.seconds(engine, texts) for k, c in costs.items()}
    if as_json:
        out.print_json(json.dumps({k: {**vars(c), "seconds": seconds[k]} for k, c in costs.items()}))
        return
    for name, c in costs.items():
        # What is not known is not said to be 0 s.
        forecast = seconds[name]
        duration_note = (
            "for a time that shows once it runs" if forecast is None else f"about {duration(max(1.0, forecast))}"
        )
        out.print(
            f"{name + ' setting:':<19} {c.replies:,} replies, at most {c.tokens:,} tokens, {duration_note} with "
            f"{engine.info.id} on this machine"
        )
