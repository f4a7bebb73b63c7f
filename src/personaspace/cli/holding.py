"""The commands that watch a model and hold it: calibrate, project, chat."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    ModelArg,
    SpaceArg,
    app,
    check_judge_options,
    check_unused,
    err,
    judging_engine,
    out,
    space_and_engine,
)
from personaspace.cli.tables import print_uncut
from personaspace.engines.thoughts import PARTS
from personaspace.errors import UsageError
from personaspace.formats.registry import TRANSCRIPTS_HELP
from personaspace.judges.registry import DEFAULT_JUDGE, make_judge

if TYPE_CHECKING:
    from personaspace.holding.monitor import AlertRule


@app.command(epilog="Example: personaspace calibrate runs/smollm2 --sweep")
def calibrate(
    space: SpaceArg,
    of: Annotated[str | None, typer.Option(help="Whose tokens' percentile: default or all.")] = None,
    percentile: Annotated[
        int | None, typer.Option(help="Which percentile is the floor; a sweep chooses it itself.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="A:B, half-open; from 60% to 87% of the depth unless given.")
    ] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Try ranges and percentiles, and draw the trade-off.")] = False,
    prompts: Annotated[
        int | None, typer.Option(min=1, help="Role prompts of the sweep, 24; three times as many try the best again.")
    ] = None,
    capability: Annotated[Path | None, typer.Option(help='Tasks for the sweep, JSONL: {"prompt", "answer"}.')] = None,
    judge: JudgeArg = DEFAULT_JUDGE,
    judge_model: JudgeModel = None,
    judge_url: JudgeUrl = None,
    judge_option: JudgeOption = None,
    judge_key_env: JudgeKeyEnv = None,
    controls: Annotated[
        int | None,
        typer.Option(
            min=3, max=20, help="Random directions that the sweep's cap is compared with, displaced as far; 3."
        ),
    ] = None,
    model: ModelArg = None,
    adapter: AdapterArg = None,
    device: Device = None,
    dtype: Dtype = None,
    seed: Annotated[int, typer.Option(help="Which replies are drawn.")] = 0,
    as_json: Json = False,
) -> None:
    """Set caps' floors from how a run's tokens lie on the axis, and store them in its space."""
    from personaspace import api
    from personaspace.cli.progress import Bar
    from personaspace.holding import calibrate as calibration
    from personaspace.holding import sweep as sweeping
    from personaspace.holding import tradeoff
    from personaspace.holding.monitor import detection

    request_options = check_judge_options(judge, judge_model, judge_url, judge_option, judge_key_env)
    if not sweep:
        asked_judge = None if judge == DEFAULT_JUDGE else judge
        check_unused("--sweep", prompts=prompts, capability=capability, judge=asked_judge, controls=controls)
    elif of or percentile is not None:
        option = f"--of {of}" if of else f"--percentile {percentile}"
        raise UsageError(f"{option}: a sweep chooses whose percentile is the floor itself; leave out one of the two")
    folder = Path(space).parent if Path(space).is_file() else Path(space)
    made = api.calibrate(
        folder,
        of=of or "default",
        percentile=25 if percentile is None else percentile,
        layers=calibration.parse_range(layers) if layers else None,
        try_caps=sweep,
        tasks=sweeping.read_tasks(capability) if capability else [],
        judge=lambda engine: make_judge(
            judge,
            engine=judging_engine(judge, judge_model, engine, device, dtype),
            model=judge_model,
            url=judge_url,
            options=request_options,
            key_env=judge_key_env,
        ),
        **{name: n for name, n in (("prompts", prompts), ("controls", controls)) if n is not None},
        engine=lambda: space_and_engine(space, model, device, dtype, adapter, span=None)[1],
        seed=seed,
        why="it was asked for" if of or percentile is not None or layers else "no sweep was made",
        watcher=Bar(err),
    )
    calibrated, outcomes, page = made.space, made.outcomes, made.page
    space_file = folder / "space.safetensors"
    capped = calibrated.caps["capped"]
    rules = detection(calibrated)
    if as_json:
        result = {
            "caps": calibrated.caps,
            "sweep": [o.to_dict() for o in outcomes],
            "alerts": [vars(r) for r in rules],
        }
        out.print_json(json.dumps({**result, "space": str(space_file), "page": str(page) if page else None}))
        return
    if outcomes:
        head, rows = tradeoff.table(outcomes)
        print_uncut(head, rows)
    out.print(f"\ncapped = {capped['is']}: {capped['why']['because']}. {tradeoff.again(capped)}")
    if controls_summary := capped["why"].get("controls"):
        print_uncut(*tradeoff.controls_table(controls_summary))
        out.print(controls_summary["because"])
    correlation = (
        f"{rules[0].correlation:.2f}" if rules and rules[0].correlation is not None else "not known: any holds"
    )
    of = (rules[0].rate_of if rules else None) or "conversations"
    out.print(f"\nHow sure an alert is that 1% of the default's {of} raise (turns' correlation: {correlation}):")
    print_uncut(*_alerts(rules))
    out.print(f"\nspace: {space_file}" + (f"\npage:  {page}" if page else ""))


@app.command(epilog="Example: personaspace project smollm2 talk.json --plot talk.html")
def project(
    space: SpaceArg,
    transcripts: Annotated[list[Path], typer.Argument(help=TRANSCRIPTS_HELP)],
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw the trajectories as an HTML page; of a folder, FOLDER.html here unless given."),
    ] = None,
    false_alarms: Annotated[float, typer.Option(help="How often default conversations may raise the alert.")] = 0.01,
    alert_turns: Annotated[int, typer.Option(help="Over how many turns the alert looks.")] = 2,
    tokens: Annotated[bool, typer.Option("--tokens", help="With --json: every token's projection, too.")] = False,
    span: Annotated[str, typer.Option(help="What of a turn is read: answer, thinking or all.")] = "answer",
    along: Annotated[
        str | None, typer.Option(help="Also read along these: traits, roles, files of vectors; separated by commas.")
    ] = None,
    model: ModelArg = None,
    adapter: AdapterArg = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Read where a conversation's assistant turns lie on the axis, and along other directions."""
    from personaspace import api
    from personaspace.formats.transcript_folders import read_transcript_folder
    from personaspace.formats.transcripts import read_transcripts
    from personaspace.formats.vectors import directions_of
    from personaspace.holding.trajectories import along_cells, of_thoughts, write_trajectories
    from personaspace.space import PersonaSpace

    if span not in PARTS:
        raise UsageError(f"--span {span}: expected one of {', '.join(PARTS)}")
    if alert_turns < 1:
        raise UsageError(f"--alert-turns {alert_turns}: expected 1 or more")
    if any(Path(path).is_dir() for path in transcripts):
        if len(transcripts) > 1:
            raise UsageError(f"{len(transcripts)} files and folders: expected several files, or one folder by itself")
        if along:
            raise UsageError("--along reads files, not a folder; give the folder's files")
        from personaspace.cli.transcript_folders import print_folder

        folder = read_transcript_folder(transcripts[0])
        loaded, engine = space_and_engine(space, model, device, dtype, adapter, span)
        with warnings.catch_warnings(action="ignore"):  # what there is to warn of was told with the model
            print_folder(
                transcripts[0],
                folder,
                loaded,
                engine,
                plot=plot,
                false_alarms=false_alarms,
                alert_turns=alert_turns,
                span=span,
                tokens=tokens,
                as_json=as_json,
            )
        return
    files = [read_transcripts(path) for path in transcripts]
    parsed_transcripts = [transcript for file in files for transcript in file.conversations]
    notes = [note for file in files for note in file.notes]
    for note in notes:
        err.print(note)
    if along:  # names are looked at before a model is loaded
        directions_of(PersonaSpace.load(space), along)
    loaded, engine = space_and_engine(space, model, device, dtype, adapter, span)
    loaded, directions = directions_of(loaded, along) if along else (loaded, [])
    with warnings.catch_warnings(action="ignore"):  # what there is to warn of was told with the model
        trajectories, rule = api.project(
            loaded,
            *parsed_transcripts,
            engine=engine,
            false_alarms=false_alarms,
            alert_turns=alert_turns,
            span=span,
            along=directions,
        )
    for t in trajectories:
        if t.problem:
            err.print(f"warning: {t.name}: {t.problem}")
    conversations = [(t.name, list(t.turns)) for t in trajectories]
    page = write_trajectories(plot, loaded, conversations, rule) if plot else None
    if as_json:
        values = [{"name": n, "turns": [r.to_dict(tokens) for r in rs]} for n, rs in conversations]
        trajectory_fields = {"turns": values[0]["turns"]} if len(values) == 1 else {"transcripts": values}
        alert = vars(rule) if rule else None
        out.print_json(json.dumps({"layer": loaded.layer, "alert_rule": alert, "notes": notes, **trajectory_fields}))
        return
    for name, readings in conversations:
        any_thoughts = any(r.thinking for r in readings)
        rows = [
            [
                str(r.index),
                str(r.tokens),
                f"{r.projection:.1f}",
                "" if r.drift is None else f"{r.drift:+.2f}",
                *(of_thoughts(r)[1:] if any_thoughts else ()),
                *along_cells(r, directions),
                ", ".join(n for n, _ in r.nearest[:3]),
                "ALERT" if r.alert else "",
            ]
            for r in readings
        ]
        thoughts = ["drift of thoughts"] if any_thoughts else []
        print_uncut([name, "tokens", "projection", "drift", *thoughts, *directions, "nearest", ""], rows)
    if directions:
        out.print(
            "\nalong a direction: how far above the default's mean, in its standard deviations; =: its projection"
        )
    uncalibrated = "no alert: this space is not calibrated (personaspace calibrate)"
    out.print(f"\n{uncalibrated}" if rule is None else f"\nalert: {rule}")
    if page:
        out.print(f"page: {page}")


@app.command(epilog="Example: personaspace chat smollm2 --cap capped")
def chat(
    space: SpaceArg,
    cap: Annotated[str | None, typer.Option(help="A cap of the space to begin with.")] = None,
    steer: Annotated[
        float | None, typer.Option(help="Steer along the axis; positive is towards the Assistant.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="At most that many tokens a reply.")] = 256,
    temperature: Annotated[float, typer.Option(help="Sampling temperature; 0 is greedy.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="The nucleus' share of probability.")] = 0.9,
    seed: Annotated[int, typer.Option(help="The same seed gives the same replies.")] = 0,
    model: ModelArg = None,
    adapter: AdapterArg = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Talk with the model in the terminal, and see where each reply lies on the axis."""
    from personaspace.api import sampling_of
    from personaspace.catalog import load_catalog
    from personaspace.cli.chat import ChatSession, converse
    from personaspace.holding.monitor import alert_rule

    sampling = sampling_of(temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens)
    loaded, engine = space_and_engine(space, model, device, dtype, adapter)
    texts = {r.role: r.instructions[0] for r in load_catalog().roles}
    rule = alert_rule(loaded) if loaded.calibrated else None
    session = ChatSession(
        engine,
        loaded,
        sampling,
        out,
        rule,
        cap,
        (steer, "axis") if steer is not None else None,
        texts.get,
        seed=seed,
    )
    out.print(f"{engine.info.id}, read at layer {loaded.layer}; /help lists the commands, /quit ends", style="dim")
    converse(session, _line)


def _line() -> str | None:
    """What the user types next; None at the end. Raises `UsageError` for a line that is no text."""
    try:
        if sys.stdin.isatty():
            return input("\n› ")
        # Bytes: a line that is no text spoils no other.
        return sys.stdin.buffer.readline().decode() or None
    except EOFError:
        return None
    except UnicodeDecodeError as e:
        raise UsageError(f"this line is no UTF-8: {e.reason} at byte {e.start + 1}") from None


def _alerts(rules: Sequence[AlertRule]) -> tuple[list[str], list[list[str]]]:
    """The head and rows of a table of rules."""

    def share(value: float | None, digits: int = 1) -> str:
        return "" if value is None else f"{100 * value:.{digits}f}%"

    rows = [
        [
            str(r.tokens),
            str(r.turns),
            f"{r.threshold:+.2f}",
            share(r.observed),
            "" if r.rate_interval is None else "–".join(share(x) for x in r.rate_interval),
            share(r.window_rate, 2),
            share(r.detects, 0),
            share(r.detects_conversations, 0),
        ]
        for r in rules
    ]
    raised = ["raised by the default", "may be", "by its runs of turns", "by roles' runs", "by roles"]
    return ["tokens a reply", "turns", "drift over", *raised], rows
