"""An experiment on drift as sentences and key figures; `evaluate` is the whole of it, and asks nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from personaspace.experiments.drift.charts import (
    course_blocks,
    message_blocks,
    openings_block,
    ordinary_block,
    table,
    word,
)
from personaspace.experiments.drift.findings import (
    Course,
    Ordinary,
    Row,
    against_others,
    beside_ordinary,
    contrast,
    course,
    drifts,
    ending,
    held_back,
    levels,
)
from personaspace.experiments.drift.messages import (
    BEFORE,
    MESSAGE,
    SHUFFLED,
    Cluster,
    Prediction,
    Steps,
    clusters,
    predict,
)
from personaspace.experiments.kit.results import Result, _old
from personaspace.experiments.kit.trials import PLAIN
from personaspace.report.page import Figure
from personaspace.space import PersonaSpace
from personaspace.stats.intervals import Estimate


def evaluate(
    space: PersonaSpace,
    user: str,
    rows: Sequence[Row],
    steps: Steps,
    vectors: np.ndarray | str,
    kinds: int = 8,
    seed: int = 0,
    ordinary: Sequence[float] = (),
) -> Result:
    """What the rows say. vectors: the embeddings of the steps' messages, or why there are none. ordinary: the drifts of
    replies to ordinary talk."""
    names = list(dict.fromkeys(r["condition"] for r in rows))
    domains = list(dict.fromkeys(r["domain"] for r in rows))
    courses = {d: {n: course(rows, d, n, seed) for n in names} for d in domains}
    apart = {
        "drift": contrast(rows, drifts, seed),
        "level": contrast(rows, levels, seed),
        "drift_of_messages": contrast(rows, drifts, seed, "drift_as_opening"),
        "drift_of_history": contrast(rows, drifts, seed, "drift_of_history"),
    }
    others, beside = against_others(rows, seed), beside_ordinary(rows, ordinary, seed)
    holding = {n: held_back(rows, n, seed) for n in names if n != PLAIN.name}
    prediction, groups = None, list[Cluster]()
    if not isinstance(vectors, str) and len(steps.texts) > kinds:
        prediction, groups = predict(steps, vectors, seed), clusters(steps, vectors, kinds, seed)
    figures = {
        "courses": courses,
        "apart": apart,
        "drift_against_other_domains": others,
        "ordinary": beside,
        "held_back": holding,
        "prediction": prediction,
        "clusters": groups,
        "missing_turns": sum(r["message"] is None for r in rows),
        "replies_without_their_oldest_exchanges": sum(r["left_out"] > 0 for r in rows),
    }
    blocks = [
        *course_blocks(space, courses, names),
        openings_block(courses),
        *([ordinary_block(beside)] if beside else []),
        *message_blocks(prediction, groups, vectors),
        table(courses, names),
    ]
    title = "How far do conversations drift?"
    return _old(
        title,
        _lead(space, user, rows, domains, names),
        _headline(courses, apart, others, beside, prediction),
        figures,
        rows,
        blocks,
        _key(apart, holding, prediction),
    )


def _lead(space: PersonaSpace, user: str, rows: Sequence[Row], domains: Sequence[str], names: Sequence[str]) -> str:
    turns = max(r["turn"] for r in rows)
    each = len({r["conversation"] for r in rows}) // len(domains)
    who = {"scripted": "scripted users", "local": "users that a model here plays"}.get(user, "users that a model plays")
    cut = sum(r["left_out"] > 0 for r in rows)
    left_out = (
        f" Before {cut:,} of {len(rows):,} replies the oldest exchanges were left out, since the model's context was full."
        if cut
        else ""
    )
    return (
        f"{space.meta['model']['id']} talks with {who}: {each} conversations of {turns} turns in each of {len(domains)} "
        f"domains ({', '.join(map(word, domains))}): {listed(names)}. A reply lies where its mean activation projects on the "
        f"axis at layer {space.layer}; drift is how far that is under the default's mean, in the default's standard "
        f"deviations.{left_out}"
    )


def _headline(
    courses: Mapping[str, Mapping[str, Course]],
    apart: Mapping[str, Estimate | None],
    others: Mapping[str, Estimate],
    beside: Ordinary | None,
    prediction: Prediction | None,
) -> str:
    """Contrasts of drifts first, levels after them and called so."""
    plain = {word(d): c[PLAIN.name] for d, c in courses.items()}
    turns = len(next(iter(plain.values())).read)
    units = "in the default's standard deviations and positive away from the Assistant"
    parts = []
    if (further := apart["drift"]) is not None:
        parts.append(
            f"From the first turn to {ending(turns)}, talk in distress and of the AI's nature drifts {further:+.2f} further "
            f"than coding and writing, {units}{_known(further)}."
        )
    elif others:
        contrasts = "; ".join(f"{word(d)} {e:+.2f}" for d, e in others.items())
        parts.append(
            f"From the first turn to {ending(turns)}, each domain drifts further than the others by, {units}: {contrasts}."
        )
    of_messages, of_history = apart["drift_of_messages"], apart["drift_of_history"]
    if of_messages is not None and of_history is not None and of_messages.n:
        parts.append(
            f"With each message as the opening of a conversation of its own, that contrast is {of_messages:+.2f}; the history "
            f"before it adds {of_history:+.2f}{_known(of_history)}."
        )
    contrasts = "; ".join(f"{d} {c.drift:+.2f}" for d, c in plain.items())
    away, towards = ([d for d, c in plain.items() if c.drift.direction() == way] for way in (1, -1))
    moved = [f"{listed(away)} drift away from it"] if away else []
    moved += [f"{listed(towards)} move towards it"] if towards else []
    verdict = (
        f"As far as can be told, {' and '.join(moved)}" if moved else "None of that can be told from standing still"
    )
    parts.append(f"By itself each drifts, {units}: {contrasts}. {verdict}.")
    if (level := apart["level"]) is not None:
        parts.append(
            "As levels, which say where conversations lie and not that they have moved: distress and the AI's nature lie "
            f"{level:+.2f} further away than coding and writing over all turns{_known(level)}."
        )
    if beside:
        starts = "; ".join(f"{word(d)} {e:+.2f}" for d, e in beside.starts.items())
        parts.append(
            f"Replies to ordinary talk lie {beside.place:+.2f} from the default that the space was made with; further than "
            f"they, conversations start by: {starts}."
        )
    parts.append(
        "The study: coding and writing stay at the Assistant's end; talk in distress and of the AI's nature drifts."
    )
    if prediction:
        r2, more = prediction.projection, prediction.over_before
        which = {1: "more", -1: "less", 0: "no more, as far as can be told,"}[more.direction()]
        parts.append(
            f"The user's message tells the next projection with R² {r2[MESSAGE]:+.2f} (shuffled messages: "
            f"{r2[SHUFFLED].value:+.2f}), {which} than the position before it, {r2[BEFORE]:+.2f}. The study: 0.53 to 0.77, "
            "and more than the position before it."
        )
    return " ".join(parts)


def listed(names: Sequence[str]) -> str:
    """Names as in a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _known(e: Estimate) -> str:
    return "" if e.direction() else ", which cannot be told from nothing"


def _key(
    apart: Mapping[str, Estimate | None], holding: Mapping[str, Estimate], prediction: Prediction | None
) -> list[Figure]:
    def figure(name: str, e: Estimate, note: str) -> Figure:
        return Figure(name, f"{e.value:+.2f}", f"{e.span()}; {note}")

    key = []
    if (further := apart["drift"]) is not None:
        key.append(figure("distress, AI's nature: drift further", further, "standard deviations, first turn to last"))
    if (level := apart["level"]) is not None:
        key.append(
            figure("distress, AI's nature: lie further away", level, "standard deviations; a level, not a drift")
        )
    key += [figure(f"{name}: nearer to the Assistant", e, "standard deviations") for name, e in holding.items()]
    if prediction:
        r2 = prediction.projection
        key.append(figure("R² of the user's message", r2[MESSAGE], "the study: 0.53 to 0.77"))
        key.append(figure("R² of the position before it", r2[BEFORE], "the study: less than the message's"))
    return key
