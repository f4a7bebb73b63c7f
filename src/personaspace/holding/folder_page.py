"""One table and one page of a folder of conversations: pairs' ends, domains' slopes, and what an alert of them says."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from personaspace.holding.transcript_folders import FolderReading, PairsTogether
from personaspace.report.charts import COLOURS, Trace, axis, beside, chart
from personaspace.report.page import Chart, Page
from personaspace.space import PersonaSpace
from personaspace.stats.intervals import Estimate

HEAD = ("", "of", "unsteered", "held", "difference, or slope a turn", "")
FEWEST_PAIRS = 6
"""Pairs under which no sign test comes under 0.05."""
OF_PAIRS = (
    "The mean over the last half of the turns that both have. A pair's interval is over these turns, which are alike within a "
    "conversation, so that it may be too narrow; of other conversations only the line over all pairs says anything, and that "
    "takes pairs as independent, which the same user's messages to two models are not quite."
)
OF_DOMAINS = (
    "A slope is how much further a turn lies than the one before it, in conversations in which the model was not held; "
    "intervals are over conversations, each counting once, and of 95% for each domain by itself: of twenty domains that "
    "stay where they are, one leaves out 0 by chance."
)


def table(reading: FolderReading) -> tuple[list[str], list[list[str]]]:
    """Pairs, what they say together, and domains, a line each, below `HEAD`."""
    rows = []
    for summary in reading.together:
        for pair in (p for p in reading.pairs if p.arm == summary.arm):
            ends = [_figure(pair.plain_end), _figure(pair.held_end)]
            rows.append([pair.subject, _counted(pair.turns, "turn"), *ends, f"{pair.difference:+.2f}", ""])
        signs = summary.signs
        counts = f"unsteered further away in {signs.above} of {signs.n}, p = {signs.p:.2g}"
        pairs = _counted(summary.difference.n, "pair")
        rows.append([f"all, {summary.arm}", pairs, "", "", f"{summary.difference:+.2f}", counts])
    for domain in reading.domains:
        conversations = _counted(domain.conversations, "conversation")
        rows.append([domain.domain, conversations, "", "", f"{domain.slope:+.2f}", _course(domain.slope)])
    return list(HEAD), rows


def sentences(reading: FolderReading) -> list[str]:
    """What may be said of the folder: of its pairs, and of alerts."""
    return [*(_of_pairs(t) for t in reading.together), *of_alerts(reading)]


def _of_pairs(summary: PairsTogether) -> str:
    signs = summary.signs
    counts = (
        f"In {signs.above} of {signs.n} pairs the unsteered one ends further away than the {summary.arm} one "
        f"(sign test, two-sided: p = {signs.p:.2g}), on average by {summary.difference:+.2f}"
    )
    if summary.outcome > 0:
        return f"{counts}: the {summary.arm} ones lie nearer the Assistant."
    if summary.outcome < 0:
        return f"{counts}: the {summary.arm} ones lie further from the Assistant."
    few = f"; fewer than {FEWEST_PAIRS} pairs cannot pass that test" if signs.n < FEWEST_PAIRS else ""
    return f"{counts}: no difference that can be told{few}."


def of_alerts(reading: FolderReading) -> list[str]:
    """How sure an alert is on these conversations, whoever wrote them."""
    alarms = reading.false_alarms
    if reading.rule is None or alarms is None:
        return ["No alert: this space is not calibrated, so how often one would be false is not known."]
    n_first, n_conversations = alarms.first.n, alarms.raised.n
    lines = [
        f"Alert: {reading.rule}. That is measured on replies of the model that reads, not on another's.",
        f"Here {alarms.raised:.0%} of {_counted(n_conversations, 'conversation')} in which the model was not held raise it. Of "
        f"their first turns, {alarms.first:.0%} of {n_first} lie above the threshold for one turn, which "
        f"{100 * alarms.expected:.2g}% of the default's turns do.",
    ]
    if alarms.holds is False:
        lines.append(
            "So these replies lie further away from the start, and the rate of false alarms does not hold for them: go by "
            "differences within conversations, which the start is no part of, not by the alert."
        )
    elif alarms.holds:
        least = f"; rates up to {100 * alarms.first.high:.2g}% would look like this"
        lines.append(f"That is no more than the default's, as far as {n_first} first turns can tell{least}.")
    return lines


def write_folder(path: str | Path, name: str, space: PersonaSpace, reading: FolderReading) -> Path:
    """The page of a folder that is called `name`.

    >>> from personaspace.formats.transcript_folders import read_transcript_folder
    >>> from personaspace.holding.transcript_folders import project_folder
    >>> reading = project_folder(engine, space, read_transcript_folder("transcripts"))
    >>> write_folder("transcripts.html", "transcripts", space, reading)
    PosixPath('transcripts.html')
    """
    model = space.meta["model"]["id"]
    conversations = _counted(len(reading.conversations), "conversation")
    unit = (
        "in the default's standard deviations"
        if reading.in_deviations
        else "as minus the projection, since this space does not know how the default's replies spread"
    )
    lead = (
        f"{conversations}, read by {model} at layer {space.layer} along its own axis, whoever wrote the replies. Drift is "
        f"how far from the Assistant a turn lies, {unit}."
    )
    page = Page(f"Transcripts: {name}", lead)
    for summary in reading.together:
        signs = summary.signs
        page.figure(f"unsteered further away than {summary.arm}", f"{signs.above} of {signs.n}", f"p = {signs.p:.2g}")
        page.figure(f"by how much, {summary.arm}", summary.difference, "over pairs")
    if reading.false_alarms:
        page.figure("alerts, not held", reading.false_alarms.raised, "of conversations", ".0%")
    head, rows = table(reading)
    page.section("In one table", f"{OF_PAIRS if reading.pairs else ''} {OF_DOMAINS}".strip(), head=head, rows=rows)
    if reading.pairs:
        subjects = [p.subject if len(reading.together) == 1 else f"{p.subject}, {p.arm}" for p in reading.pairs]
        ends = {"further away": [p.difference for p in reading.pairs]}
        height = 140 + 34 * len(subjects)
        page.section(
            "Pairs",
            "How much further away the unsteered one ends; intervals over turns.",
            beside(subjects, ends, "drift, unsteered less held", sideways=True, height=height, showlegend=False),
        )
    names = [d.domain for d in reading.domains]
    slopes = beside(
        names,
        {"slope": [d.slope for d in reading.domains]},
        "drift a turn",
        sideways=True,
        height=140 + 34 * len(names),
        showlegend=False,
    )
    page.section(
        "Domains", "Drift a turn, over conversations; without an interval where there are under three.", slopes
    )
    page.section("Turn by turn", "A line a conversation: dotted where the model was held.", _turns(reading))
    page.section("An alert, and how sure it is", " ".join(of_alerts(reading)))
    listed = [
        [
            c.place.transcript.name,
            c.place.domain,
            str(len(c.turns)),
            f"{c.slope:+.2f}",
            ", ".join(
                str(k + 1) for k, turn in zip(np.flatnonzero(~np.isnan(c.drifts)), c.turns, strict=True) if turn.alert
            ),
        ]
        for c in reading.conversations
    ]
    page.section(
        "Every conversation",
        "The slope's interval is over the conversation's own turns, taken as independent about their line: it says nothing of "
        "other conversations.",
        head=["", "domain", "turns", "drift a turn", "turns at which an alert stands"],
        rows=listed,
    )
    if reading.notes:
        page.section("Not read, or not as it stands", head=[""], rows=[[note] for note in reading.notes])
    return page.write(path, " ".join(_of_pairs(t) for t in reading.together))


def _turns(reading: FolderReading) -> Chart:
    domains = list(dict.fromkeys(c.place.domain for c in reading.conversations))
    data: list[Trace] = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": c.place.transcript.name,
            "x": list(range(1, len(c.drifts) + 1)),
            "y": [None if np.isnan(drift) else float(drift) for drift in c.drifts],
            "line": {
                "color": COLOURS[domains.index(c.place.domain) % len(COLOURS)],
                "dash": "dot" if c.place.is_held else "solid",
            },
        }
        for c in reading.conversations
    ]
    return chart(data, axis("assistant turn", dtick=1), "drift (up is away from the Assistant)", 460)


def _course(slope: Estimate) -> str:
    if math.isnan(slope.low):
        return "one conversation" if slope.n == 1 else ""
    return {1: "drifts away", -1: "comes nearer", 0: "no slope that can be told"}[slope.direction()]


def _figure(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:+.2f}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
