"""Conversations that drifted, read as they were, and the user's turns given again to the model, plain and capped (the paper's
case studies)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from personaspace.catalog import Catalog
from personaspace.engines.prompts import Message, Sampling
from personaspace.errors import UsageError
from personaspace.experiments import data
from personaspace.experiments.kit.conversations import Dialogue, said_again
from personaspace.experiments.kit.experiment import Experiment
from personaspace.experiments.kit.options import Cost, Names, Options
from personaspace.experiments.kit.results import Result, _old
from personaspace.experiments.kit.trials import PLAIN, Condition, Reading, Trials, capped
from personaspace.formats.transcripts import Transcript, read_transcripts
from personaspace.holding.monitor import AlertRule, alert_rule
from personaspace.holding.trajectories import default_band
from personaspace.report.charts import COLOURS, axis
from personaspace.report.page import Block, Figure
from personaspace.space import PersonaSpace
from personaspace.stats.intervals import Estimate, mean

AS_IT_WAS = "as it was"


class CaseStudyOptions(Options):
    """See the fields."""

    transcripts: Names = Field(
        (), description="Files of conversations, as `project` reads them; the three that come along."
    )
    caps: Names = Field(("capped",), description="Caps of the space.")
    max_new_tokens: int = Field(64, ge=1, description="At most that many tokens a reply.")

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
    conversations = [t for path in options.transcripts for t in read_transcripts(Path(path))]
    names = [t.name for t in conversations]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise UsageError(f"--transcripts: two conversations are called {twice!r}; give the files different names")
    return conversations


def conditions(options: CaseStudyOptions) -> list[Condition]:
    """Plain, then the caps."""
    return [PLAIN, *capped(options.caps)]


def cost(options: CaseStudyOptions, catalog: Catalog) -> Cost:
    """What that asks of the engine; what was said before is gone through again at each turn."""
    turns = [sum(m["role"] == "user" for m in t.messages) for t in transcripts(options)]
    n = sum(turns) * len(conditions(options))
    history = sum(k * (k + 1) // 2 for k in turns) * len(conditions(options))
    return Cost(n, n * options.max_new_tokens + history * (options.max_new_tokens + 60))


def run(trials: Trials[CaseStudyOptions]) -> Result:
    """Reads the conversations as they were, gives the user's turns again, and reads what came of it through the plain model.
    Raises `PersonaSpaceError`."""
    options, conversations = trials.options, transcripts(trials.options)
    texts = {t.name: t.messages for t in conversations}
    read = {(AS_IT_WAS, name): readings for name, readings in trials.read(texts, part="as-it-was").items()}
    again = said_again(trials, texts, conditions(options), Sampling(max_new_tokens=options.max_new_tokens))
    for condition in conditions(options):
        of_condition = {d.name: d.messages for d in again if d.condition == condition}
        talks = trials.read(of_condition, part=f"read-{condition.name}")
        read |= {(condition.name, n): readings for n, readings in talks.items()}
    return evaluate(trials.space, conversations, again, read, [c.name for c in conditions(options)])


def evaluate(
    space: PersonaSpace,
    conversations: Sequence[Transcript],
    again: Sequence[Dialogue],
    read: Mapping[tuple[str, str], Sequence[Reading]],
    names: Sequence[str],
) -> Result:
    """How far each conversation drifted, as it was and again; all read by the plain model. It asks nothing."""
    rows = _rows(space, conversations, again, read, names)
    arms = [AS_IT_WAS, *names]
    ends = {arm: _end(rows, arm) for arm in arms}
    rise = {arm: _rise(rows, arm) for arm in arms}
    endings = "; ".join(f"{arm} {ends[arm]}" for arm in arms)
    these = "this one conversation" if len(conversations) == 1 else f"these {len(conversations)} conversations"
    if names[-1] == PLAIN.name:
        caveat = f"Of {these}, so few turns say nothing of others"
    elif ends[names[-1]].high < ends[PLAIN.name].low:
        caveat = f"Given again, in {these} the cap holds it; the turns of so few say nothing of others"
    else:
        caveat = (
            f"Given again, in {these} the cap makes no difference that so few turns can tell; the turns of so few say nothing "
            "of others"
        )
    headline = (
        f"Mean drift over the last half of the turns, in the default's standard deviations (intervals over turns): {endings}. "
        f"{caveat}. The study: each of its cases drifts, and each is held by capping."
    )
    key = [
        Figure(
            arm if arm == AS_IT_WAS else f"again, {arm}",
            f"{ends[arm].value:+.2f}",
            f"drift at the end, {ends[arm].span()}",
        )
        for arm in arms
    ]
    ways = "plain and capped" if len(names) > 1 else "plain"
    lead = (
        f"{len(conversations)} conversations that drift, read by {space.meta['model']['id']} at layer {space.layer}; then the "
        f"user's turns given again to the model, {ways}. What was said is read by the plain model throughout, so that all can "
        "be compared."
    )
    rule = alert_rule(space) if "beginnings_default" in space.tensors else None
    blocks = [b for t in conversations for b in _blocks(space, t.name, rows, arms, rule)]
    figures = {"drift_at_the_end": ends, "rise": rise}
    return _old("Case studies, again", lead, headline, figures, rows, [*blocks, _table(arms, ends, rise)], key)


def _rows(
    space: PersonaSpace,
    conversations: Sequence[Transcript],
    again: Sequence[Dialogue],
    read: Mapping[tuple[str, str], Sequence[Reading]],
    names: Sequence[str],
) -> list[dict[str, Any]]:
    knows = "default_moments" in space.tensors
    talks: dict[tuple[str, str], Sequence[Message]] = {(d.condition.name, d.name): d.messages for d in again}
    rows = []
    for t in conversations:
        for arm in (AS_IT_WAS, *names):
            messages = t.messages if arm == AS_IT_WAS else talks[arm, t.name]
            replies = [k for k, m in enumerate(messages) if m["role"] == "assistant"]
            for turn, (k, r) in enumerate(zip(replies, read[arm, t.name], strict=True)):
                user_message = messages[k - 1]["content"] if k and messages[k - 1]["role"] == "user" else ""
                drift = space.drift(r.projection) if knows and r.tokens else math.nan
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


def _end(rows: Sequence[Mapping[str, Any]], arm: str) -> Estimate:
    """The mean drift over the last half of the turns, with an interval over turns: it is of these conversations only."""
    return mean([r["drift"] for r in rows if r["arm"] == arm and r["turn"] >= r["turns"] / 2])


def _rise(rows: Sequence[Mapping[str, Any]], arm: str) -> Estimate:
    """How much further away the last half lies than the first two turns, by conversation."""
    by: dict[str, list[Mapping[str, Any]]] = {}
    for r in rows:
        if r["arm"] == arm:
            by.setdefault(r["conversation"], []).append(r)
    risen = []
    for turns in by.values():
        first, last = [r["drift"] for r in turns[:2]], [r["drift"] for r in turns if r["turn"] >= r["turns"] / 2]
        risen.append(_plain_mean(last) - _plain_mean(first))
    return mean(risen)


def _plain_mean(values: Sequence[float]) -> float:
    present = [v for v in values if not math.isnan(v)]
    return sum(present) / len(present) if present else math.nan


def _blocks(
    space: PersonaSpace, name: str, rows: Sequence[Mapping[str, Any]], arms: Sequence[str], rule: AlertRule | None
) -> list[Block]:
    by_arm = {arm: [r for r in rows if r["conversation"] == name and r["arm"] == arm] for arm in arms}
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": arm if arm == AS_IT_WAS else f"again, {arm}",
            "x": [r["turn"] + 1 for r in by_arm[arm]],
            "y": [None if math.isnan(r["projection"]) else r["projection"] for r in by_arm[arm]],
            "line": {"color": colour, "width": 2.5, "dash": "dot" if arm == AS_IT_WAS else "solid"},
            "marker": {"size": 8},
        }
        for arm, colour in zip(arms, (COLOURS[6], COLOURS[1], COLOURS[0], *COLOURS[2:6]), strict=False)
    ]
    layout = {
        "xaxis": axis("turn", dtick=1),
        "yaxis": axis("projection on the axis (up is Assistant)"),
        "shapes": default_band(space, rule),
    }
    lines = max(len(m) for m in by_arm.values())
    head = ["user", *(a if a == AS_IT_WAS else f"again, {a}" for a in arms)]
    table = []
    for turn in range(lines):
        turn_rows = [by_arm[arm][turn] if turn < len(by_arm[arm]) else None for arm in arms]
        user_message = next((r["user"] for r in turn_rows if r), "")
        table.append([user_message, *(f"{_signed(r['drift'])} · {r['reply'].strip()}" if r else "" for r in turn_rows)])
    band = "The band is the default's mean and one standard deviation" + (
        "; the dotted line the alert's." if rule else "."
    )
    return [
        Block(name, band, {"data": data, "layout": layout}, 400),
        Block("", "Turn by turn, the drift before each reply.", head=head, rows=table),
    ]


def _signed(x: float) -> str:
    return "n/a" if math.isnan(x) else f"{x:+.1f}"


def _table(arms: Sequence[str], ends: Mapping[str, Estimate], rise: Mapping[str, Estimate]) -> Block:
    rows = [[arm, str(ends[arm]), str(rise[arm])] for arm in arms]
    text = (
        "Drift in the default's standard deviations, with 95% intervals: at the end over the turns of these conversations, "
        "the rise over conversations."
    )
    return Block(
        "In figures", text, head=["", "drift over the last half", "risen since the first two turns"], rows=rows
    )


EXPERIMENT = Experiment(
    "case-study",
    CaseStudyOptions,
    PUBLISHED,
    cost,
    run,
    "personaspace experiment case-study smollm2 --out runs/case-study --transcripts talk.json",
)
