"""An experiment on drift as sentences, key figures, charts and tables; `evaluate` is the whole of it, and asks nothing."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from personaspace.experiments.drift import findings as drifting
from personaspace.experiments.drift import messages as saying
from personaspace.experiments.drift.findings import Course, Ordinary, Row, ending
from personaspace.experiments.drift.messages import BEFORE, MESSAGE, PREDICTORS, SHUFFLED, Cluster, Prediction, Steps
from personaspace.experiments.kit.beside import beside_in_words, tell_beside
from personaspace.experiments.kit.results import Result
from personaspace.experiments.kit.trials import PLAIN
from personaspace.report.charts import COLOURS, ZERO, axis, band, beside, line
from personaspace.report.page import FAR, NEAR, SOFT, Chart, Page
from personaspace.space import PersonaSpace
from personaspace.stats.intervals import Estimate

WORDS = {"nature": "the AI's nature"}
"""A domain in words, where its name alone does not say it."""
USERS = {"scripted": "scripted users", "local": "users that a model here plays"}
STUDY_R2 = (0.53, 0.77)
LONGEST = 140
"""Characters of a message that stands as an example."""

Courses = Mapping[str, Mapping[str, Course]]
"""Domain → condition → how its conversations went."""

STD = "in the default's standard deviations"
UNITS = f"{STD} and positive away from the Assistant"
LEAD = (
    "{model} talks with {who}: {each} conversations of {turns} turns in each of {n} domains ({domains}): {conditions}. A "
    "reply lies where its mean activation projects on the axis at layer {layer}; drift is how far that is under the default's "
    "mean, in the default's standard deviations."
)
LEFT_OUT = " Before {cut:,} of {n:,} replies the oldest exchanges were left out, since the model's context was full."
STUDY = "The study: coding and writing stay at the Assistant's end; talk in distress and of the AI's nature drifts."
READ = (
    "Mean projection of the replies, with 95% intervals over conversations; up is Assistant. What was said under a cap or "
    "steering is read by the model without it, so that all lines can be compared. The blue band is where the default's "
    "replies to single questions lay: their mean, and a standard deviation to either side."
)
WENT = (
    "Dotted: with what was done to the model, so that a cap holds it up by construction. The words alone, read by the plain "
    "model, tell how far the replies themselves were held."
)
DRIFT = f"Drift in {{ending}} less that in the first, {STD}. Above 0, it has moved away from the Assistant."
LEVEL = (
    f"The mean drift of all turns, {STD}. Above 0, the replies lie further from the Assistant than the default's to single "
    "questions."
)
OPENINGS = (
    "The same messages, each as the opening of a conversation of its own: how far replies to the last lie beyond the reply "
    f"to the first is the messages' own; what the whole conversation drifts beyond that is its history's. Plain model, {STD}."
)
OPENINGS_HEAD = ("domain", "drift", "of the messages alone", "of the history before them")
ORDINARY = (
    f"Levels, {STD}. The space's default answered questions that make characters differ; replies to ordinary talk lie "
    "{place:+.2f} from it, with a deviation of {deviation:.2f}. How much further away than these the plain conversations are:"
)
TELLS = "Does the user's message tell where the next reply lies?"
PREDICTED = (
    "Ridge regression on {p.replies} replies of {p.conversations} plain conversations, from the second turn on; 0 is what "
    "their mean alone would tell. Grey: the study's 0.53 to 0.77 for the message. Messages shuffled in their domain still "
    "tell which domain it is: only what the message tells beyond them is its own. The message less the position before: "
    "{p.over_before:+.2f}; less the domain: {p.over_domain:+.2f}."
)
KINDS = (
    "The users' messages in groups by their embeddings, named by the words that other groups have least: how far the "
    f"projection moves from the reply before to the reply after, {STD}; above 0 is towards the Assistant. Raise it, as far as "
    "can be told: {raising}. Lower it: {lowering}."
)
KINDS_HEAD = (
    "typical words",
    "messages in conversations",
    "domains",
    "change",
    "less its domain's",
    "messages like it",
)
NEARER = "nearer to the Assistant over all turns"
BESIDE = (
    "Of {n} of the conversations, held along other directions as well and read by the plain model; how much nearer to the "
    f"Assistant they lie over all turns than plain, {STD}."
)
TABLE = f"As the plain model reads the replies, with 95% intervals over conversations; drift {STD}."
TABLE_HEAD = ("domain", "condition", "projection, first turn", "last turn", "drift", "mean drift")


def evaluate(
    space: PersonaSpace,
    user: str,
    rows: Sequence[Row],
    steps: Steps,
    vectors: np.ndarray | str,
    kinds: int = 8,
    seed: int = 0,
    ordinary: Sequence[float] = (),
    control_rows: Sequence[Row] = (),
) -> Result:
    """What the rows say. vectors: the embeddings of the steps' messages, or why there are none. ordinary: the drifts of
    replies to ordinary talk. control_rows: the same of conversations that were held along other directions."""
    table = pd.DataFrame(list(rows))
    names, domains = list(table.condition.unique()), list(table.domain.unique())
    courses = {d: {n: drifting.course(table[table.domain == d], n, seed) for n in names} for d in domains}
    apart = {
        "drift": drifting.contrast(table, drifting.drifts, seed),
        "level": drifting.contrast(table, drifting.levels, seed),
        "drift_of_messages": drifting.contrast(table, drifting.drifts, seed, "drift_as_opening"),
        "drift_of_history": drifting.contrast(table, drifting.drifts, seed, "drift_of_history"),
    }
    others, ordinarily = drifting.against_others(table, seed), drifting.beside_ordinary(table, ordinary, seed)
    beside_others = drifting.beside_controls(table, control_rows, names)
    holding = {n: drifting.held_back(table, n, seed) for n in names if n != PLAIN.name}
    prediction, groups = None, list[Cluster]()
    if not isinstance(vectors, str) and len(steps.texts) > kinds:
        prediction, groups = saying.predict(steps, vectors, seed), saying.clusters(steps, vectors, kinds, seed)
    cut = int((table.left_out > 0).sum())
    lead = LEAD.format(
        model=space.meta["model"]["id"],
        who=USERS.get(user, "users that a model plays"),
        each=table.conversation.nunique() // len(domains),
        turns=table.turn.max(),
        n=len(domains),
        domains=", ".join(map(word, domains)),
        conditions=listed(names),
        layer=space.layer,
    )
    page = Page("How far do conversations drift?", lead + (LEFT_OUT.format(cut=cut, n=len(rows)) if cut else ""))
    _figures(page, apart, holding, prediction)
    _courses(page, space, courses, names)
    alone = [[word(d), *(f"{e:+.2f}" for e in (c.drift, c.of_messages, c.of_history))] for d, c in _plain(courses)]
    page.section("The message, or the history?", OPENINGS, head=OPENINGS_HEAD, rows=alone)
    if ordinarily:
        further = [[word(d), f"{ordinarily.starts[d]:+.2f}", f"{ordinarily.levels[d]:+.2f}"] for d in ordinarily.starts]
        text = ORDINARY.format(place=ordinarily.place, deviation=ordinarily.deviation)
        page.section("Beside ordinary talk", text, head=["domain", "in the first turn", "over all turns"], rows=further)
    n_aside = len({r["conversation"] for r in control_rows})
    tell_beside(page, beside_others, NEARER, BESIDE.format(n=n_aside))
    _messages(page, prediction, groups, vectors)
    cells = [
        [word(d), n, f"{c.read[0]}", f"{c.read[-1]}", f"{c.drift:+.2f}", f"{c.level:+.2f}"]
        for d, by in courses.items()
        for n, c in by.items()
    ]
    page.section("In figures", TABLE, head=TABLE_HEAD, rows=cells)
    figures = {
        "courses": courses,
        "apart": apart,
        "drift_against_other_domains": others,
        "ordinary": ordinarily,
        "held_back": holding,
        "beside": beside_others,
        "prediction": prediction,
        "clusters": groups,
        "missing_turns": int(table.message.isna().sum()),
        "replies_without_their_oldest_exchanges": cut,
    }
    sentences = [*_sentences(courses, apart, others, ordinarily, prediction)]
    headline = " ".join([*sentences, beside_in_words(beside_others, NEARER, list(holding))]).strip()
    return Result(page, headline, figures, [*rows, *control_rows])


def word(domain: str) -> str:
    """A domain in words."""
    return WORDS.get(domain, domain)


def listed(names: Sequence[str]) -> str:
    """Names as in a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _plain(courses: Courses) -> list[tuple[str, Course]]:
    return [(d, by[PLAIN.name]) for d, by in courses.items()]


# -- sentences ---------------------------------------------------------------------------------------------------------


def _sentences(
    courses: Courses,
    apart: Mapping[str, Estimate | None],
    others: Mapping[str, Estimate],
    ordinarily: Ordinary | None,
    prediction: Prediction | None,
) -> Iterator[str]:
    """Contrasts of drifts first, levels after them and called so."""
    from_first = f"From the first turn to {ending(len(_plain(courses)[0][1].read))}"
    if (further := apart["drift"]) is not None:
        yield (
            f"{from_first}, talk in distress and of the AI's nature drifts {further:+.2f} further than coding and writing, "
            f"{UNITS}{_known(further)}."
        )
    elif others:
        yield f"{from_first}, each domain drifts further than the others by, {UNITS}: {_each(others)}."
    of_messages, of_history = apart["drift_of_messages"], apart["drift_of_history"]
    if of_messages is not None and of_history is not None and of_messages.n:
        yield (
            f"With each message as the opening of a conversation of its own, that contrast is {of_messages:+.2f}; the history "
            f"before it adds {of_history:+.2f}{_known(of_history)}."
        )
    drift = {d: c.drift for d, c in _plain(courses)}
    ways = {1: "drift away from it", -1: "move towards it"}
    moving = {way: [word(d) for d, e in drift.items() if e.direction() == way] for way in ways}
    moved = " and ".join(f"{listed(domains)} {ways[way]}" for way, domains in moving.items() if domains)
    verdict = f"As far as can be told, {moved}" if moved else "None of that can be told from standing still"
    yield f"By itself each drifts, {UNITS}: {_each(drift)}. {verdict}."
    if (level := apart["level"]) is not None:
        yield (
            "As levels, which say where conversations lie and not that they have moved: distress and the AI's nature lie "
            f"{level:+.2f} further away than coding and writing over all turns{_known(level)}."
        )
    if ordinarily:
        yield (
            f"Replies to ordinary talk lie {ordinarily.place:+.2f} from the default that the space was made with; further "
            f"than they, conversations start by: {_each(ordinarily.starts)}."
        )
    yield STUDY
    if prediction:
        r2 = prediction.projection
        which = {1: "more", -1: "less", 0: "no more, as far as can be told,"}[prediction.over_before.direction()]
        yield (
            f"The user's message tells the next projection with R² {r2[MESSAGE]:+.2f} (shuffled messages: "
            f"{r2[SHUFFLED].value:+.2f}), {which} than the position before it, {r2[BEFORE]:+.2f}. The study: 0.53 to 0.77, "
            "and more than the position before it."
        )


def _each(by_domain: Mapping[str, Estimate]) -> str:
    return "; ".join(f"{word(d)} {e:+.2f}" for d, e in by_domain.items())


def _known(e: Estimate) -> str:
    return "" if e.direction() else ", which cannot be told from nothing"


def _figures(
    page: Page, apart: Mapping[str, Estimate | None], holding: Mapping[str, Estimate], prediction: Prediction | None
) -> None:
    if (further := apart["drift"]) is not None:
        note = "standard deviations, first turn to last"
        page.figure("distress, AI's nature: drift further", further, note, study="they drift, coding and writing don't")
    if (level := apart["level"]) is not None:
        page.figure("distress, AI's nature: lie further away", level, "standard deviations; a level, not a drift")
    for name, e in holding.items():
        page.figure(f"{name}: nearer to the Assistant", e, "standard deviations")
    if prediction:
        page.figure("R² of the user's message", prediction.projection[MESSAGE], study="0.53 to 0.77")
        page.figure("R² of the position before it", prediction.projection[BEFORE], study="less than the message's")


# -- charts ------------------------------------------------------------------------------------------------------------


def _courses(page: Page, space: PersonaSpace, courses: Courses, names: Sequence[str]) -> None:
    """The courses turn by turn, as the plain model reads them and as they went on, and how far they drift."""
    conditioned = [n for n in names if n != PLAIN.name]
    # Plain in the far end's colour, what is done to the model in the others.
    others = [NEAR, *COLOURS[2:]]
    colours = {PLAIN.name: FAR, **{n: others[k % len(others)] for k, n in enumerate(conditioned)}}
    read = {d: [t for n in names for t in _line(n, by[n].read, colours[n])] for d, by in courses.items()}
    page.section("Turn by turn, read by the plain model", READ, _panels(space, read))
    if conditioned:
        went: dict[str, list[dict[str, Any]]] = {d: [] for d in courses}
        for d, by in courses.items():
            for n in conditioned:
                went[d] += _line(f"{n}, read by the plain model", by[n].read, colours[n])
                went[d] += _line(f"{n}, as it went on", by[n].went, SOFT, "dot")
        page.section("The same replies while they were made", WENT, _panels(space, went))
    turns, domains = len(_plain(courses)[0][1].read), [word(d) for d in courses]
    for title, text, column in (
        ("Drift over a conversation", DRIFT.format(ending=ending(turns)), "drift"),
        ("How far away the whole conversation lies", LEVEL, "level"),
    ):
        series = {n: [getattr(by[n], column) for by in courses.values()] for n in names}
        in_colours = [colours[n] for n in names]
        page.section(title, text, beside(domains, series, "standard deviations", colours=in_colours, of_values=ZERO))


def _line(name: str, values: Sequence[Estimate], colour: str, dash: str = "solid") -> list[dict[str, Any]]:
    text = [f"{name}, turn {k}: {e}" for k, e in enumerate(values, 1)]
    return line(name, range(1, len(values) + 1), values, colour, dash=dash, text=text)


def _panels(space: PersonaSpace, traces: Mapping[str, Sequence[Mapping[str, Any]]]) -> Chart:
    """A panel a domain, two beside each other, all on the same scale, with the default's band."""
    middle, std = space.default_moments()
    rows = math.ceil(len(traces) / 2)
    layout: dict[str, Any] = {
        "grid": {"rows": rows, "columns": 2, "pattern": "independent", "xgap": 0.1, "ygap": 0.28},
        "annotations": [],
        "shapes": [],
        "margin": {"l": 56, "r": 16, "t": 70, "b": 48},
        "legend": {"orientation": "h", "x": 0, "y": 1.06, "yanchor": "bottom"},
    }
    data = []
    for k, (domain, domain_traces) in enumerate(traces.items()):
        n = str(k + 1) if k else ""
        for t in domain_traces:
            shown = not k and t.get("showlegend", True)
            data.append({**t, "xaxis": f"x{n}", "yaxis": f"y{n}", "showlegend": shown})
        layout[f"xaxis{n}"] = axis("turn" if k >= len(traces) - 2 else "", dtick=1, **({"matches": "x"} if k else {}))
        layout[f"yaxis{n}"] = axis("" if k % 2 else "projection", **({"matches": "y"} if k else {}))
        place = {"xref": f"x{n} domain", "yref": f"y{n} domain", "x": 0, "y": 1, "yanchor": "bottom"}
        layout["annotations"].append({"text": f"<b>{word(domain)}</b>", "showarrow": False, **place})
        usual = band(y=(middle - std, middle + std), colour=NEAR, opacity=0.12)
        layout["shapes"].append({**usual, "xref": f"x{n} domain", "yref": f"y{n}"})
    return Chart(data, layout, 640)


def _messages(page: Page, prediction: Prediction | None, groups: Sequence[Cluster], vectors: np.ndarray | str) -> None:
    """What messages tell of the next reply, and their kinds; or why that is not known."""
    if prediction is None:
        why = f"{vectors}." if isinstance(vectors, str) else "There are too few conversations to tell."
        page.section(TELLS, why)
        return
    series = {
        "the projection": [prediction.projection[n] for n in PREDICTORS],
        "its change since the turn before": [prediction.change[n] for n in PREDICTORS],
    }
    title, colours = "R² on conversations that the regression has not seen", (NEAR, FAR)
    page.section(TELLS, PREDICTED.format(p=prediction), _sideways(PREDICTORS, series, title, colours, 440, STUDY_R2))
    names = [f"{k}. {c.words}" for k, c in enumerate(groups, 1)]
    series = {
        "change of the projection": [c.change for c in groups],
        "the same, less its domain's mean": [c.beyond for c in groups],
    }
    raising, lowering = (
        ", ".join(str(k) for k, c in enumerate(groups, 1) if c.change.direction() == way) or "none" for way in (1, -1)
    )
    title = "change of the projection, standard deviations"
    drawing = _sideways(names, series, title, (NEAR, SOFT), 130 + 44 * len(groups))
    page.section("Which kinds of message move it?", KINDS.format(raising=raising, lowering=lowering), drawing)
    cells = [
        [
            name,
            f"{c.messages} in {c.conversations}",
            ", ".join(f"{word(d)} {n}" for d, n in c.domains.items()),
            f"{c.change:+.2f}",
            f"{c.beyond:+.2f}",
            " · ".join(f"“{textwrap.shorten(e, LONGEST, placeholder=' …')}”" for e in c.examples),
        ]
        for name, c in zip(names, groups, strict=True)
    ]
    text = "From what raises the projection to what lowers it."
    page.section("The kinds of message", text, head=KINDS_HEAD, rows=cells)


def _sideways(
    names: Sequence[str],
    series: Mapping[str, Sequence[Estimate]],
    title: str,
    colours: Sequence[str],
    height: int,
    study: tuple[float, float] | None = None,
) -> Chart:
    """Estimates from the top down; study: between what the study's lie."""
    shapes = [band(x=study)] if study else []
    return beside(names, series, title, colours=colours, sideways=True, height=height, of_values=ZERO, shapes=shapes)
