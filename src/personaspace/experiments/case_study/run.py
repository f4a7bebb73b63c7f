"""Conversations that drifted, as they were, and again with the model plain and capped.

The user's turns are given to it again (the paper's case studies).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pandas as pd

from personaspace.catalog import Catalog
from personaspace.engines.prompts import Message, Sampling
from personaspace.errors import UsageError
from personaspace.experiments import data
from personaspace.experiments.kit.beside import beside_in_words, tell_beside
from personaspace.experiments.kit.conditions import compared
from personaspace.experiments.kit.conversations import Dialogue, match_displacement, said_again
from personaspace.experiments.kit.experiment import Experiment
from personaspace.experiments.kit.options import Cost, Names, Options, option
from personaspace.experiments.kit.results import Result
from personaspace.experiments.kit.trials import PLAIN, Condition, Reading, Trials, beside_axis, capped
from personaspace.formats.transcript_folders import read_transcript_folder
from personaspace.formats.transcripts import Transcript, read_transcripts
from personaspace.holding.monitor import alert_rule
from personaspace.holding.trajectories import default_band
from personaspace.report.charts import COLOURS, axis, chart
from personaspace.report.page import Chart, Page
from personaspace.space import PersonaSpace
from personaspace.stats.intervals import mean

AS_IT_WAS = "as it was"
LEAD = (
    "{n} conversations that drift, read by {model} at layer {layer}; then the user's turns given again to the model, {ways}. "
    "What was said is read by the plain model throughout, so that all can be compared."
)
HEADLINE = (
    "Mean drift over the last half of the turns, in the default's standard deviations (intervals over turns): {endings}. "
    "{caveat}. The study: each of its cases drifts, and each is held by capping."
)
TABLE = (
    "Drift in the default's standard deviations, with 95% intervals: at the end over the turns of these conversations, the "
    "rise over conversations."
)

TAKEN_BACK = "taken back over the last half of the turns"
BESIDE = "How much less far away the last half of the turns lies than the plain model's, in the same conversations."


class CaseStudyOptions(Options):
    """See the fields."""

    transcripts: Names = option(
        (), "Files of conversations, or folders (unsteered ones), as `project` reads them; the three that come along."
    )
    caps: Names = option(("capped",), "Caps of the space, or ways of holding by one: capped+mirror, …")
    controls: int = option(
        20, "Random directions beside each cap, along which the model is displaced as far; 0: none.", ge=0, later=True
    )
    max_new_tokens: int = option(64, "At most that many tokens a reply.", ge=1)

    def determining(self) -> dict[str, Any]:
        """A user's files by what is said in them too: another text under the same name is another experiment. Raises
        `UsageError`."""
        options = super().determining()
        if self.transcripts:
            texts = json.dumps([(t.name, t.messages) for t in transcripts(self)])
            options["transcripts_digest"] = hashlib.sha256(texts.encode()).hexdigest()[:16]
        return options


PUBLISHED = CaseStudyOptions(max_new_tokens=2048)


def transcripts(options: CaseStudyOptions) -> list[Transcript]:
    """The conversations: the user's files', or those that come along. Raises `UsageError` where two have one name."""
    if not options.transcripts:
        return [Transcript(r["title"], tuple(r["messages"])) for r in data.lines("case_studies.jsonl")]
    conversations = [t for path in options.transcripts for t in _read(path)[0]]
    names = [t.name for t in conversations]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise UsageError(f"--transcripts: two conversations are called {twice!r}; give the files different names")
    return conversations


def _read(path: str) -> tuple[list[Transcript], Sequence[str]]:
    """The conversations in a file, or those in a folder in which the model was not held; and what was not read of it."""
    if not Path(path).is_dir():
        return read_transcripts(path)
    folder = read_transcript_folder(path)
    free = [place.transcript for place in folder.conversations if not place.is_held]
    if not free:
        raise UsageError(
            f"{path}: by its name the model was held in every conversation; expected some in which it was not"
        )
    return free, folder.notes


def conditions(options: CaseStudyOptions) -> list[Condition]:
    """Plain, then the caps."""
    return [PLAIN, *capped(options.caps)]


def cost(options: CaseStudyOptions, catalog: Catalog) -> Cost:
    """What that asks of the engine; what was said before is gone through again at each turn."""
    turns = [sum(m["role"] == "user" for m in t.messages) for t in transcripts(options)]
    arms = len(conditions(options)) + len(beside_axis(capped(options.caps), options.controls))
    n = sum(turns) * arms
    history = sum(k * (k + 1) // 2 for k in turns) * arms
    new_tokens = n * options.max_new_tokens
    return Cost(n, new_tokens + history * (options.max_new_tokens + 60), new_tokens, max(turns, default=1))


def run(trials: Trials[CaseStudyOptions]) -> Result:
    """Reads the conversations as they were, gives the user's turns again, and reads what came of it through the plain model.
    Raises `PersonaSpaceError`."""
    options, space, conversations = trials.options, trials.space, transcripts(trials.options)
    for path in options.transcripts:
        for note in _read(path)[1]:
            trials.watcher.note(note)
    texts = {t.name: t.messages for t in conversations}
    read = {(AS_IT_WAS, name): readings for name, readings in trials.read(texts, part="as-it-was").items()}
    sampling = Sampling(max_new_tokens=options.max_new_tokens)
    again = said_again(trials, texts, conditions(options), sampling)
    if pushed := beside_axis(capped(options.caps), options.controls):
        match_displacement(trials, again)
        again += said_again(trials, texts, pushed, sampling)
    for condition in [*conditions(options), *pushed]:
        of_condition = {d.name: d.messages for d in again if d.condition == condition}
        talks = trials.read(of_condition, part=f"read-{condition.name}")
        read |= {(condition.name, n): readings for n, readings in talks.items()}

    names = [c.name for c in conditions(options)]
    rows = _rows(space, conversations, again, read, [*names, *(c.name for c in pushed)])
    arms = {AS_IT_WAS: AS_IT_WAS, **{name: f"again, {name}" for name in names}}
    table = pd.DataFrame(rows)
    table["late"] = table.turn >= table.turns / 2
    ends = {arm: mean(list(table.drift[(table.arm == arm) & table.late])) for arm in arms}
    rise = {arm: mean(_risen(table[table.arm == arm])) for arm in arms}
    controls = {c.name: c for c in pushed}
    back = {
        n: ends[PLAIN.name].value - float(table.drift[(table.arm == n) & table.late].mean())
        for n in (*names, *controls)
    }
    beside = {n: b for n in names[1:] if (b := compared(n, back[n], back)).random}
    these = "this one conversation" if len(conversations) == 1 else f"these {len(conversations)} conversations"
    if names[-1] == PLAIN.name:
        caveat = f"Of {these}, so few turns say nothing of others"
    elif ends[names[-1]].high < ends[PLAIN.name].low:
        caveat = f"Given again, in {these} the cap holds it; the turns of so few say nothing of others"
        if (last := beside.get(names[-1])) and not last.is_the_axis:
            caveat = (
                f"Given again, in {these} it drifts less under the cap, which cannot be told from what any push does"
            )
    else:
        effect = "the cap makes no difference that so few turns can tell"
        caveat = f"Given again, in {these} {effect}; the turns of so few say nothing of others"
    endings = "; ".join(f"{arm} {e}" for arm, e in ends.items())
    if sentences := beside_in_words(beside, TAKEN_BACK, names[1:]).rstrip("."):
        caveat += f". {sentences}"
    model, ways = space.meta["model"]["id"], "plain and capped" if len(names) > 1 else "plain"
    lead = LEAD.format(n=len(conversations), model=model, layer=space.layer, ways=ways)
    page = Page("Case studies, again", lead)
    for arm, title in arms.items():
        page.figure(title, ends[arm], "drift at the end, standard deviations; over turns")
    rule = alert_rule(space) if space.calibrated else None
    line = "; the dotted line the alert's." if rule else "."
    for t in conversations:
        by_arm = {arm: [r for r in rows if r["conversation"] == t.name and r["arm"] == arm] for arm in arms}
        drawing = _turns(by_arm, arms, default_band(space, rule))
        page.section(t.name, f"The band is the default's mean and one standard deviation{line}", drawing)
        said = [_said(list(turn)) for turn in zip_longest(*by_arm.values())]
        page.section("", "Turn by turn, the drift before each reply.", head=["user", *arms.values()], rows=said)
    head = ["", "drift over the last half", "risen since the first two turns"]
    page.section("In figures", TABLE, head=head, rows=[[arm, f"{ends[arm]}", f"{rise[arm]}"] for arm in arms])
    tell_beside(page, beside, TAKEN_BACK, BESIDE)
    figures = {"drift_at_the_end": ends, "rise": rise, "beside": beside}
    return Result(page, HEADLINE.format(endings=endings, caveat=caveat), figures, rows)


def _rows(
    space: PersonaSpace,
    conversations: Sequence[Transcript],
    again: Sequence[Dialogue],
    read: Mapping[tuple[str, str], Sequence[Reading]],
    names: Sequence[str],
) -> list[dict[str, Any]]:
    talks: dict[tuple[str, str], Sequence[Message]] = {(d.condition.name, d.name): d.messages for d in again}
    rows = []
    for t in conversations:
        for arm in (AS_IT_WAS, *names):
            messages = t.messages if arm == AS_IT_WAS else talks[arm, t.name]
            replies = [k for k, m in enumerate(messages) if m["role"] == "assistant"]
            for turn, (k, r) in enumerate(zip(replies, read[arm, t.name], strict=True)):
                user_message = messages[k - 1]["content"] if k and messages[k - 1]["role"] == "user" else ""
                drift = space.drift(r.projection) if space.knows_default and r.tokens else math.nan
                place = {"conversation": t.name, "arm": arm, "turn": turn, "turns": len(replies)}
                rows.append(
                    {
                        **place,
                        "user": user_message,
                        "reply": messages[k]["content"],
                        "projection": r.projection,
                        "drift": drift,
                    }
                )
    return rows


def _risen(turns: pd.DataFrame) -> list[float]:
    """How much further away the last half lies than the first two turns, by conversation."""
    conversations = turns.groupby("conversation", sort=False)
    return [float(talk.drift[talk.late].mean() - talk.drift.iloc[:2].mean()) for _, talk in conversations]


def _turns(
    by_arm: Mapping[str, Sequence[Mapping[str, Any]]], arms: Mapping[str, str], shapes: Sequence[dict[str, Any]]
) -> Chart:
    """Where the replies lie, turn by turn, a line an arm."""
    colours = (COLOURS[6], COLOURS[1], COLOURS[0], *COLOURS[2:6])
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": arms[arm],
            "x": [r["turn"] + 1 for r in turns],
            "y": [None if math.isnan(r["projection"]) else r["projection"] for r in turns],
            "line": {"color": colour, "width": 2.5, "dash": "dot" if arm == AS_IT_WAS else "solid"},
            "marker": {"size": 8},
        }
        for (arm, turns), colour in zip(by_arm.items(), colours, strict=False)
    ]
    return chart(data, axis("turn", dtick=1), "projection on the axis (up is Assistant)", 400, shapes=shapes)


def _said(turn: Sequence[Mapping[str, Any] | None]) -> list[str]:
    """A turn of all arms: what the user says, and each reply behind its drift."""
    drifts = ["" if r is None or math.isnan(r["drift"]) else f"{r['drift']:+.1f}" for r in turn]
    replies = [f"{drift or 'n/a'} · {r['reply'].strip()}" if r else "" for drift, r in zip(drifts, turn, strict=True)]
    return [next(r["user"] for r in turn if r), *replies]


EXPERIMENT = Experiment("case-study", PUBLISHED, cost, run, "--transcripts talk.json")
