"""What the command line does, as one call each: map, calibrate, project, experiment, compare."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from personaspace.catalog import Catalog, load_catalog
from personaspace.engines import Engine, load_engine
from personaspace.engines.prompts import Sampling
from personaspace.engines.thoughts import PARTS, Part
from personaspace.errors import RunError, UsageError, invalid_reason
from personaspace.experiments.compare import findings as comparison
from personaspace.experiments.compare.sources import spaces_of
from personaspace.experiments.kit.results import Result
from personaspace.experiments.kit.trials import Judges, Trials
from personaspace.experiments.registry import find
from personaspace.experiments.watch import run as watching
from personaspace.formats.transcripts import Transcript, read_transcripts
from personaspace.holding import calibrate as calibration
from personaspace.holding import kept, monitor, sweep, tradeoff
from personaspace.holding.monitor import AlertRule, TurnReading
from personaspace.holding.outcomes import CapOutcome
from personaspace.judges import KEPT, Agreement, Judge, agreement_of, make_judge
from personaspace.mapping.ask import score_replies
from personaspace.mapping.mapper import Mapper
from personaspace.mapping.options import MapOptions
from personaspace.mapping.questions import catalog_of
from personaspace.report import tables
from personaspace.runs import KeptScore, Run
from personaspace.space import PersonaSpace
from personaspace.watcher import Watcher

M = TypeVar("M", bound=BaseModel)


def map(
    model: str | Engine,
    out: str | Path,
    *,
    read: str = "both",
    roles: str | None = None,
    questions: int | None = None,
    prompts_per_role: int | None = None,
    default_prompts: int | None = None,
    per_role: int | None = None,
    default_responses: int | None = None,
    complete: bool | None = None,
    max_new_tokens: int | None = None,
    judge: str | Judge = "rules",
    catalog: str | Path | None = None,
    watcher: Watcher | None = None,
    **options: Any,
) -> PersonaSpace:
    """Maps a model into a run's folder and returns its space; the same call goes on where an earlier one stopped.

    model: `smollm2`, a Hub id, a folder, a GGUF file, or an engine; judge: by its name, or one that `make_judge` made; the
    rest as `personaspace map --help` says.
    Raises `PersonaSpaceError`.

    >>> space = ps.map("smollm2", "runs/small", roles="ghost,bard,pirate", questions=8, read="prompt")
    >>> space.roles, space.axis_at().shape
    (['ghost', 'bard', 'pirate'], torch.Size([576]))
    """
    engine = load_engine("transformers", model) if isinstance(model, str) else model
    map_options = options_of(
        read=read,
        design=_known(per_role=per_role, default_responses=default_responses, complete=complete),
        prompts=_known(per_role=prompts_per_role, default_responses=default_prompts),
        sampling=_known(max_new_tokens=max_new_tokens),
        **options,
    )
    chosen = catalog_of(out, map_options, catalog, roles, questions)
    scorer = make_judge(judge, engine=engine) if isinstance(judge, str) else judge
    return Mapper(engine, chosen, out, map_options, watcher).map(scorer)


@dataclass(frozen=True)
class Calibration:
    """A space with caps, what each cap that was tried does (empty without a sweep), and the page that draws it."""

    space: PersonaSpace
    outcomes: Sequence[CapOutcome] = ()
    page: Path | None = None


def calibrate(
    run: str | Path,
    *,
    of: str = "default",
    percentile: int = 25,
    layers: range | None = None,
    try_caps: bool = False,
    prompts: int = 24,
    tasks: Sequence[sweep.CapabilityTask] = (),
    judge: Callable[[Engine], Judge | None] = lambda _: make_judge("rules"),
    controls: int = sweep.CONTROLS,
    engine: Callable[[], Engine] | None = None,
    seed: int = 0,
    why: str = "it was asked for",
    watcher: Watcher | None = None,
) -> Calibration:
    """Sets caps' floors from how a run's tokens lie on the axis, and writes them into its space (the paper's section on
    activation capping).

    of, percentile: whose tokens, and which floor is recommended as `capped`; why: what is noted beside it. layers: from 60% to
    87% of the depth unless given. try_caps: tries ranges and percentiles on so many role prompts, and takes the best; stopped,
    it goes on from there; judge: made from the engine, it says whether replies are in role. engine: loads the model, where
    replies are replayed. Raises `UsageError`, `DesignError`, `RunError` where the run is not what was written, `RunLocked`.

    >>> ps.calibrate("runs/smollm2").space.cap("capped").layers
    (18, 19, 20, 21, 22, 23, 24, 25)
    """
    folder, watcher = Path(run), watcher or Watcher()
    if not (run_folder := Run(folder)).exists:
        raise UsageError(f"{run}: calibration replays a run's replies; give the folder of a map (it holds run.json)")
    calibration.check_kind(of, percentile)
    for shard in run_folder.lost():
        raise RunError(f"{run_folder.fault(shard)}; the map's command does it again")
    space = PersonaSpace.load(run_folder.space_file)
    axis = space.tensors["axis"]
    layer_range = layers or calibration.default_range(len(axis))
    calibration.check_range(layer_range, len(axis))
    unit = axis / axis.norm(dim=-1, keepdim=True)
    default_projections, role_projections, role_names = calibration.projections_while_mapping(run_folder, unit)
    model = None
    if try_caps or min(len(default_projections), len(role_projections)) < calibration.LEAST:
        model = engine() if engine else load_engine("transformers", space.meta["model"]["id"], **space.thinking_options)
        space.check_model(model.info)
    with run_folder.locked():
        if model:
            sample = calibration.draw_sample(run_folder, seed=seed)
            watcher.note(f"replaying {len(sample.default)} default and {len(sample.roles)} role replies")
            calibrated = calibration.calibrate(model, space, sample, layer_range)
        else:
            n_default, n_role = len(default_projections), len(role_projections)
            watcher.note(f"{n_default} default and {n_role} role replies were projected while they were given")
            calibrated = calibration.with_caps(space, default_projections, role_projections, layer_range, role_names)
        name, cap = calibration.named_cap(calibrated, of, percentile, layer_range)
        calibrated.meta["caps"][name] = cap
        outcomes: list[CapOutcome] = []
        if model and try_caps:
            ranges = [layers] if layers else sweep.candidates(model.info.layers)
            watcher.note(f"trying {len(ranges) * len(sweep.CHOICES)} caps on {prompts} role prompts")
            calibrated, outcomes = sweep.sweep(
                model,
                calibrated,
                sample,
                ranges,
                judge=judge(model),
                prompts=prompts,
                tasks=tasks,
                seed=seed,
                random=controls,
                folder=folder / "sweep",
                watcher=watcher,
            )
        else:
            calibrated = calibration.recommended(calibrated, name, {"because": why})
        calibrated.save(run_folder.space_file)
        page = tradeoff.write_tradeoff(folder / "calibration.html", calibrated, outcomes) if try_caps else None
        if try_caps:
            kept.forget(folder / "sweep")
    return Calibration(calibrated, outcomes, page)


@dataclass(frozen=True)
class Trajectory:
    """A conversation's assistant turns as they lie on the axis. problem: what of it did not fit the model."""

    name: str
    turns: Sequence[TurnReading]
    problem: str | None = None
    _repr_html_ = tables.of_trajectory


def project(
    space: PersonaSpace | str | Path,
    *transcripts: Transcript | str | Path,
    engine: Engine | None = None,
    false_alarms: float = 0.01,
    alert_turns: int = 2,
    span: Part = "answer",
    along: Sequence[str] = (),
) -> tuple[list[Trajectory], AlertRule | None]:
    """Reads where the assistant turns of conversations, or of those in files, lie on the axis; and the rule that alerts went by
    (None for a space that was never calibrated). span: of each turn its answer, its thoughts where it has any, or all. along:
    further directions that turns are read on, by their names in the space (`PersonaSpace.along`). Warns of what of a file is
    not read, and of a model or a span that is not the space's. Raises `UsageError` that names file,
    conversation and message.

    >>> (talk,), rule = ps.project("smollm2", "talk.json")
    >>> [f"{turn.drift:+.1f}" for turn in talk.turns]
    ['-1.8', '+1.3']
    """
    if alert_turns < 1:
        raise UsageError(f"alert_turns={alert_turns}: expected 1 or more")
    if span not in PARTS:
        raise UsageError(f"span={span}: expected one of {', '.join(PARTS)}")
    conversations: list[Transcript] = []
    for source in transcripts:
        if isinstance(source, Transcript):
            conversations.append(source)
            continue
        file = read_transcripts(source)
        conversations += file.conversations
        for note in file.notes:
            warnings.warn(note, stacklevel=2)
    loaded = space if isinstance(space, PersonaSpace) else PersonaSpace.load(space)
    model = engine or load_engine("transformers", loaded.meta["model"]["id"], **loaded.thinking_options)
    if warning := loaded.check_model(model.info, span):
        warnings.warn(warning, stacklevel=2)
    rule = monitor.alert_rule(loaded, rate=false_alarms, turns=alert_turns) if loaded.calibrated else None
    directions = loaded.along(along)
    return [
        Trajectory(t.name, *monitor.project(model, loaded, t.messages, rule, part=span, along=directions))
        for t in conversations
    ], rule


def experiment(
    name: str,
    space: PersonaSpace | str | Path,
    out: str | Path,
    *,
    engine: Engine | None = None,
    published: bool = False,
    judges: Judges | None = None,
    catalog: Catalog | None = None,
    load: Callable[..., Engine] | None = None,
    watcher: Watcher | None = None,
    **options: Any,
) -> Result:
    """Runs one of the study's experiments into a folder, or goes on with what is there; the options are its command's.

    judges: who judges replies, by words unless given. load: loads another model by its name, where an experiment needs one.
    Raises `PersonaSpaceError`.

    >>> ps.experiment("susceptibility", "smollm2", "runs/susceptibility", roles=5).headline
    "Under a role, of the replies that tell who is speaking, the Assistant's are: ..."
    """
    chosen = find(name)
    loaded = space if isinstance(space, PersonaSpace) else PersonaSpace.load(space)
    model = engine or load_engine("transformers", loaded.meta["model"]["id"], **loaded.thinking_options)

    trials = Trials(
        model,
        loaded,
        out,
        name,
        chosen.read_options(options, published),
        catalog=catalog or load_catalog(),
        judges=judges,
        load=load or partial(load_engine, "transformers"),
        watcher=watcher,
    )
    return chosen.conduct(trials)


def compare(
    spaces: Mapping[str, PersonaSpace | str | Path],
    seed: int = 0,
    *,
    out: str | Path | None = None,
    roles: str = "all",
    prompts_per_role: int | None = None,
    catalog: str | Path | None = None,
    watcher: Watcher | None = None,
) -> list[comparison.Pair]:
    """Sets spaces of several models, or versions of one, side by side, each two of them by the names given. A model's name, a
    folder, `BASE + ADAPTER` in a space's place is mapped before its first word, all on the same prompts, into a folder of
    `out`; the same call goes on there. The other options are a map's. Raises `UsageError` where two share too few roles,
    and what a map raises.

    >>> round(ps.compare({"before": "smollm2", "after": "space.safetensors"})[0].axis.value, 2)
    1.0
    """
    options = options_of(read="prompt", prompts=_known(per_role=prompts_per_role), seed=seed)
    loaded = spaces_of(spaces, out, load_catalog(catalog).select(roles), options, watcher=watcher)
    return comparison.compare(list(loaded.items()), seed)


def watch(
    base: str | Engine,
    variants: watching.Variants | Sequence[str],
    *,
    null: watching.Variants | Sequence[str] = (),
    space: PersonaSpace | str | Path | None = None,
    catalog: str | Path | None = None,
    watcher: Watcher | None = None,
    **options: Any,
) -> watching.Watched:
    """Says how far variants of a model (checkpoints, `BASE + ADAPTER`, quantisations) have moved from it. null: neutral ones,
    whose largest moves are what an effect must lie beyond. space: the base's; its own where the base is `smollm2` or a run.
    The rest, and what is raised, as `experiments.watch.run.watch` says.

    >>> ps.watch("smollm2", {"tuned": "smollm2 + ./my-lora"}).variants[0].nearest("role")
    """
    loaded, name = watching.space_of(base if isinstance(base, str) else base.info.id, space)
    changed, neutral = (s if isinstance(s, Mapping) else {source: source for source in s} for s in (variants, null))
    model = name if isinstance(base, str) else base
    return watching.watch(model, loaded, changed, neutral, load_catalog(catalog), watcher=watcher, **options)


@dataclass(frozen=True)
class JudgedReply:
    """A reply of a run, with the score and the reason of each judge that scored it, by its name."""

    role: str
    index: int
    question: str
    reply: str
    scores: Mapping[str, int]
    reasons: Mapping[str, str]


@dataclass(frozen=True)
class Judged:
    """What judges say of a run's replies. counts: by judge, how often each score; problems: why replies could not be scored;
    agreement: of the first two; differ: the replies that these differ on, furthest apart first."""

    counts: Mapping[str, Mapping[int, int]]
    problems: Mapping[str, Sequence[str]]
    agreement: Agreement | None
    differ: Sequence[JudgedReply]


def judge(run: str | Path, *judges: Judge, catalog: str | Path | None = None, show: int = 10, seed: int = 0) -> Judged:
    """Has a map's replies scored by one judge, or by two, and says how far these agree. What is scored already is not asked
    again, and what is scored here a later map finds. show: how many of the replies that they differ on are returned.

    Raises `UsageError`, `RunLocked`, `JudgeError` where a judge scores nothing at all.

    >>> judged = ps.judge("runs/smollm2", make_judge("rules"), make_judge("openai", model="gpt-4.1-mini"))
    """
    run_folder = Run(run)
    if not run_folder.exists:
        raise UsageError(f"{run}: expected the folder of a map (it holds run.json)")
    names = [judge.name for judge in judges]
    if not 1 <= len(names) <= 2 or len(set(names)) < len(names):
        raise UsageError(f"judges {', '.join(names) or 'none'}: expected one, or two that differ")
    chosen = catalog_of(run, MapOptions(), catalog)
    scores: dict[str, dict[tuple[str, int], KeptScore]] = {}
    problems: dict[str, list[str]] = {}
    with run_folder.locked():
        for judge in judges:
            every, problems[judge.name], _ = score_replies(run_folder, chosen, judge, run_folder.done())
            scores[judge.name] = every
        texts = {
            (row["role"], row["index"]): (row["user"], row["text"])
            for shard in run_folder.done()
            for row in run_folder.read(shard, ["role", "index", "user", "text"]).to_pylist()
        }
    of_replies = {name: {key: s for key, s in every.items() if key in texts} for name, every in scores.items()}
    comparison_of_two = None
    if len(names) == 2:
        first, second = ({key: s.score for key, s in of_replies[name].items()} for name in names)
        comparison_of_two = agreement_of(first, second, KEPT, seed)
    differ = [
        JudgedReply(
            *key,
            *texts[key],
            {name: of_replies[name][key].score for name in names},
            {name: of_replies[name][key].reason for name in names},
        )
        for key in (comparison_of_two.differ[:show] if comparison_of_two else ())
    ]
    counts = {
        name: {score: sum(s.score == score for s in every.values()) for score in range(KEPT + 1)}
        for name, every in of_replies.items()
    }
    return Judged(counts, problems, comparison_of_two, differ)


def _known(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def options_of(**values: Any) -> MapOptions:
    """A map's options from plain values. Raises `UsageError` that names the first one that makes no sense."""
    return _made(MapOptions, values)


def sampling_of(**values: Any) -> Sampling:
    """A sampling from plain values. Raises `UsageError` that names the first one that makes no sense."""
    return _made(Sampling, values)


def _made(kind: type[M], values: dict[str, Any]) -> M:
    try:
        return kind(**values)
    except ValidationError as e:
        first = e.errors()[0]
        raise UsageError(f"{first['loc'][-1]}={first['input']}: {invalid_reason(first)}") from None
