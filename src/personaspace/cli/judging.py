"""The command that has a run's replies judged, and says how far two judges agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from personaspace.cli.common import (
    Device,
    Dtype,
    Json,
    JudgeArg,
    JudgeKeyEnv,
    JudgeModel,
    JudgeOption,
    JudgeUrl,
    ModelArg,
    app,
    check_judge_options,
    check_unused,
    out,
)
from personaspace.errors import UsageError
from personaspace.judges.registry import DEFAULT_JUDGE, JUDGES, NOBODY, make_judge

if TYPE_CHECKING:
    from personaspace.api import Judged, JudgedReply
    from personaspace.judges import Judge

CUT = 300
"""Characters of a reply that are printed."""


@app.command("judge", epilog="Example: personaspace judge runs/smollm2 --judge rules --against openai --show 5")
def judge_command(
    run: Annotated[Path, typer.Argument(help="A map's folder.")],
    judge: JudgeArg = DEFAULT_JUDGE,
    judge_model: JudgeModel = None,
    judge_url: JudgeUrl = None,
    judge_option: JudgeOption = None,
    judge_key_env: JudgeKeyEnv = None,
    against: Annotated[str | None, typer.Option(help="A second judge, to compare the first with.")] = None,
    against_model: Annotated[str | None, typer.Option(help="The second judge's model.")] = None,
    against_url: Annotated[str | None, typer.Option(help="The second judge's endpoint.")] = None,
    against_option: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE of its requests. May be repeated.")
    ] = None,
    against_key_env: Annotated[str | None, typer.Option(help="The variable with its key; OPENAI_API_KEY.")] = None,
    show: Annotated[int, typer.Option(help="So many of the replies that they differ on.", min=0)] = 5,
    catalog: Annotated[Path | None, typer.Option(help="The map's catalogue, where it is one of your own.")] = None,
    model: ModelArg = None,
    device: Device = None,
    dtype: Dtype = None,
    seed: Annotated[int, typer.Option(help="Of the intervals' bootstrap.")] = 0,
    as_json: Json = False,
) -> None:
    """Have a map's replies judged, by two judges to see how far they agree; what is scored already is not asked again."""
    from personaspace import api
    from personaspace.runs import Run

    for option, name in (("--judge", judge), ("--against", against)):
        if name == NOBODY:
            raise UsageError(f"{option} {NOBODY}: expected one of {', '.join(JUDGES)}")
    first = check_judge_options(judge, judge_model, judge_url, judge_option, judge_key_env)
    if against is None:
        check_unused(
            "--against",
            against_model=against_model,
            against_url=against_url,
            against_option=against_option,
            against_key_env=against_key_env,
        )
    else:
        second = check_judge_options(
            against, against_model, against_url, against_option, against_key_env, prefix="against"
        )

    def made(
        name: str, judge_model: str | None, url: str | None, options: dict[str, Any], key_env: str | None
    ) -> Judge:
        engine = None
        if JUDGES[name].by_model:
            from personaspace.engines.registry import DEFAULT_ENGINE, load_engine

            own = model or Run(run).manifest()["config"]["model"]["id"]
            engine = load_engine(DEFAULT_ENGINE, judge_model or own, device=device, dtype=dtype)
        judge = make_judge(name, engine=engine, model=judge_model, url=url, options=options, key_env=key_env)
        assert judge is not None, "only nobody is none"
        return judge

    judges = [made(judge, judge_model, judge_url, first, judge_key_env)]
    if against is not None:
        judges.append(made(against, against_model, against_url, second, against_key_env))
    judged = api.judge(run, *judges, catalog=catalog, show=show, seed=seed)
    if as_json:
        from personaspace.files import plain

        out.print_json(json.dumps(plain(judged)))
        return
    _print(judged)


def _print(judged: Judged) -> None:
    for name, counts in judged.counts.items():
        out.print(f"judge {name}: " + ", ".join(f"score {score}: {n}" for score, n in counts.items()), markup=False)
        if problems := judged.problems[name]:
            out.print(f"  {len(problems)} not scored ({problems[0]}); the same command tries them again", markup=False)
    if (agreement := judged.agreement) is None:
        return
    first, second = judged.counts
    missing = f" ({agreement.missing} scored by one alone)" if agreement.missing else ""
    out.print(f"\non {agreement.n} replies{missing} the same score in {100 * agreement.same:.0f}%")
    for label, figure in (
        ("Cohen's kappa", agreement.kappa),
        ("  quadratic weights", agreement.weighted),
        ("  kept or not", agreement.kept),
    ):
        undefined = figure.value != figure.value
        out.print(f"{label:<20} " + ("not defined: each gives one score throughout" if undefined else str(figure)))
    table = Table(f"{first} ↓  {second} →", *map(str, range(len(agreement.table))), box=None, pad_edge=False)
    for score, row in enumerate(agreement.table):
        table.add_row(str(score), *map(str, row))
    out.print()
    out.print(table)
    for reply in judged.differ:
        _print_reply(reply)


def _print_reply(reply: JudgedReply) -> None:
    out.print(f"\n{reply.role} {reply.index}: {reply.question}", markup=False)
    out.print(f"  {' '.join(reply.reply.split())[:CUT]}", markup=False)
    for name, score in reply.scores.items():
        reason = f": {reply.reasons[name]}" if reply.reasons[name] else ""
        out.print(f"  {score} by {name}{reason}", markup=False)
