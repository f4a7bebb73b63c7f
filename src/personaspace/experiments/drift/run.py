"""How far conversations drift along the axis, by what they are about, capped and not; and which messages move them.

The paper's sections on persona drift and its causes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from personaspace.catalog import Catalog
from personaspace.engines.prompts import Message, Sampling
from personaspace.experiments import data
from personaspace.experiments.drift.findings import steps_of
from personaspace.experiments.drift.messages import embed
from personaspace.experiments.drift.page import evaluate
from personaspace.experiments.drift.users import Scene, Users, keep_scenes, scenes
from personaspace.experiments.kit.conversations import Dialogue, converse, match_displacement, together
from personaspace.experiments.kit.experiment import Experiment
from personaspace.experiments.kit.options import Cost, Names, Numbers, Options, option
from personaspace.experiments.kit.results import Result
from personaspace.experiments.kit.trials import PLAIN, Ask, Condition, Given, Trials, beside_axis, beside_plain
from personaspace.space import PersonaSpace

SCRIPTED_TOKENS = 48
"""About what a scripted message takes, the template's own tokens included."""


class DriftOptions(Options):
    """See the fields."""

    conversations: int = option(6, "Conversations in each domain.", ge=1)
    turns: int = option(6, "Turns of each.", ge=2)
    user: str = option(
        "scripted", "Who plays the user: scripted, local (a model here), or an OpenAI-compatible endpoint."
    )
    user_model: str = option("", "The playing model: another local one, or the endpoint's.")
    user_tokens: int = option(64, "At most that many tokens a message of a playing model.", ge=1)
    users: str = option("", "Users of your own, one a line: scripted conversations, or personas with topics.")
    caps: Names = option(("capped",), "Caps of the space, or ways of holding by one: capped+mirror, …")
    alphas: Numbers = option((), "Steering strengths, in units of the residual norm.")
    max_new_tokens: int = option(48, "At most that many tokens a reply.", ge=1)
    controls: int = option(
        20, "Random directions, along which the model is displaced as far; 0: none.", ge=0, later=True
    )
    control_conversations: int = option(1, "Conversations in each domain that are held along them.", ge=1, later=True)
    ordinary: int = option(32, "Messages of ordinary talk, as a default beside the space's.", ge=0, le=32, later=True)
    clusters: int = option(8, "How many kinds of message to tell apart.", ge=2, later=True)
    embedder: str = option("", "What embeds messages: a Hub id or a folder.", later=True)


PUBLISHED = DriftOptions(
    conversations=20, turns=15, user="https://api.openai.com/v1", user_tokens=256, max_new_tokens=512
)


def chosen(options: DriftOptions) -> list[Scene]:
    """Who is to talk. Raises `UsageError`, or `CatalogError` for a user's file that is wrong."""
    return scenes(options.user, options.users, options.conversations, options.turns)


def control_conditions(options: DriftOptions) -> list[Condition]:
    """Random directions and a shuffled axis beside each cap and each strength."""
    return beside_axis(beside_plain(options.alphas, options.caps)[1:], options.controls)


def controlled(options: DriftOptions, scenes_asked: Sequence[Scene]) -> list[Scene]:
    """The first conversations of each domain, as many as are held along other directions."""
    by_domain: dict[str, list[Scene]] = {}
    for scene in scenes_asked:
        by_domain.setdefault(scene.domain, []).append(scene)
    return [scene for of_domain in by_domain.values() for scene in of_domain[: options.control_conversations]]


def cost(options: DriftOptions, catalog: Catalog) -> Cost:
    """What that asks of the engine: every turn's history is read again, and what was said under a condition once
    more by the plain model; every later message is an opening, too."""
    scenes_asked, conditions = chosen(options), beside_plain(options.alphas, options.caps)
    n = len(scenes_asked)
    # Conversations that are held in some way: what is said in them is read again by the plain model.
    n_held = n * (len(conditions) - 1) + len(controlled(options, scenes_asked)) * len(control_conditions(options))
    message = SCRIPTED_TOKENS if options.user == "scripted" else options.user_tokens
    exchange, turns = message + options.max_new_tokens, options.turns
    read_tokens = (n + n_held) * exchange * turns * (turns + 1) // 2
    played = read_tokens if options.user == "local" else 0
    alone = n * (turns - 1) + options.ordinary
    replies = (n + n_held) * turns
    return Cost(
        replies + alone,
        read_tokens + played + n_held * exchange * turns + alone * exchange,
        (replies + alone) * options.max_new_tokens + (replies * message if played else 0),
        turns,
    )


def run(trials: Trials[DriftOptions]) -> Result:
    """Talks, reads what was said under caps and steering with the plain model, and looks into the messages. Raises
    `PersonaSpaceError`."""
    options = trials.options
    trials.space.drift(0.0)  # says it now where the space does not know the default's deviation
    scenes_asked = chosen(options)
    keep_scenes(trials.folder, scenes_asked)
    users = Users(trials, scenes_asked, options.user, options.user_model, options.user_tokens)
    dialogues = [Dialogue(c, s.name) for c in beside_plain(options.alphas, options.caps) for s in scenes_asked]
    sampling = Sampling(max_new_tokens=options.max_new_tokens)
    converse(trials, dialogues, users.say, options.turns, sampling)
    names = {s.name for s in controlled(options, scenes_asked)}
    aside = [Dialogue(c, name) for c in control_conditions(options) for name in sorted(names)]
    if aside:
        match_displacement(trials, [d for d in dialogues if d.name in names], options.turns)
        converse(trials, aside, users.say, options.turns, sampling)
    if users.problems:
        trials.watcher.note(
            f"{len(users.problems)} messages of the user did not come ({users.problems[0]}); their conversations end there, "
            "and the same command goes on with them"
        )
    openings = as_openings(trials, dialogues, sampling)
    table_rows = rows(trials.space, options.turns, users.scenes, dialogues, read_plainly(trials, dialogues), openings)
    read_aside = read_plainly(trials, aside, "read-controls")
    control_rows = rows(trials.space, options.turns, users.scenes, aside, read_aside, {})
    steps = steps_of(table_rows)
    vectors = embed(steps.texts, options.embedder)
    if isinstance(vectors, str):
        trials.watcher.note(vectors)
    ordinary = ordinary_talk(trials, options.ordinary, sampling)
    return evaluate(
        trials.space,
        options.user,
        table_rows,
        steps,
        vectors,
        options.clusters,
        options.seed,
        ordinary,
        control_rows,
    )


def read_plainly(
    trials: Trials[DriftOptions], dialogues: Sequence[Dialogue], part: str = "read"
) -> dict[str, list[float]]:
    """What was said under a condition, as the plain model reads it: projections by dialogue, each reply with the
    history that it was given after. The plain model's own replies are read while it gives them. part: see `Trials.read`."""
    pieces: dict[str, list[Message]] = {}
    piece_of: dict[str, tuple[str, int]] = {}
    for d in (d for d in dialogues if d.condition != PLAIN):
        for begin, same_cut in groupby(range(len(d.left_out)), key=lambda k, d=d: d.left_out[k]):  # type: ignore[misc]
            turns = list(same_cut)
            piece = f"{d.key}/{begin}"
            pieces[piece] = d.messages[begin : 2 * turns[-1] + 2]
            piece_of[piece] = (d.key, len(turns))
    projections = {d.key: [g.projection for g in d.given] for d in dialogues if d.condition == PLAIN}
    for piece, read in trials.read(pieces, part=part).items():
        name, n = piece_of[piece]
        projections.setdefault(name, []).extend(r.projection for r in read[-n:])
    return projections


def as_openings(
    trials: Trials[DriftOptions], dialogues: Sequence[Dialogue], sampling: Sampling
) -> dict[tuple[str, int], float]:
    """The plain model's projection where a later turn's message is the first of a new conversation, by conversation
    and turn, counted from 1: what such a message moves without the history that it was said after."""
    asks = {
        f"{d.name}/{k + 1}": Ask(PLAIN, f"{d.name}/{k + 1}", (d.messages[2 * k],))
        for d in dialogues
        if d.condition == PLAIN
        for k in range(1, len(d.given))
    }
    projections = {}
    # In groups, so that a conversation that a later call goes on with leaves what was asked before as it is.
    for k, group in enumerate(together(trials.responses / "asked-openings.json", list(asks))):
        part = "openings" + (f"-{k}" if k else "")
        replies = trials.ask([asks[n] for n in group], sampling, part=part, seeds="openings")
        for key, reply in zip(group, replies, strict=True):
            name, _, turn = key.rpartition("/")
            projections[name, int(turn)] = reply.projection
    return projections


def ordinary_talk(trials: Trials[DriftOptions], messages: int, sampling: Sampling) -> list[float]:
    """Where the plain model's replies to so many messages of ordinary talk lie, as drift from the space's default,
    which was asked for its opinions, memories and fears."""
    texts = [line["text"] for line in data.lines("ordinary.jsonl")][:messages]
    asks = [Ask(PLAIN, f"ordinary {k}", ({"role": "user", "content": t},)) for k, t in enumerate(texts)]
    replies = trials.ask(asks, sampling, part=f"ordinary-{messages}", seeds="ordinary") if asks else []
    return [trials.space.drift(g.projection) for g in replies]


def rows(
    space: PersonaSpace,
    turns: int,
    of: Mapping[str, Scene],
    dialogues: Sequence[Dialogue],
    read: Mapping[str, Sequence[float]],
    openings: Mapping[tuple[str, int], float],
) -> list[dict[str, Any]]:
    """A row for each turn of each conversation; one that did not come has no message and no projection. openings:
    where a plain turn's message lies as the first of a new conversation; that of a first turn it is already."""
    nothing = Given("", "", "", 0, "", math.nan, 0)
    table = []
    for d in dialogues:
        for k in range(turns):
            present = k < len(d.given)
            reply = d.given[k] if present else nothing
            projection = read[d.key][k] if present else math.nan
            opening = openings.get((d.name, k + 1), projection if present and k == 0 else None)
            alone = space.drift(opening) if opening is not None and d.condition == PLAIN else None
            row = {
                "condition": d.condition.name,
                "alpha": d.condition.alpha,
                "cap": d.condition.cap,
                "control": d.condition.control,
                "domain": of[d.name].domain,
                "persona": of[d.name].persona,
                "topic": of[d.name].topic,
                "conversation": d.name,
                "turn": k + 1,
                "message": d.messages[2 * k]["content"] if present else None,
                "reply": reply.text if present else None,
                "tokens": reply.tokens,
                "touched": reply.touched,
                "left_out": d.left_out[k] if present else 0,
                "projection": projection,
                "projection_as_it_went": reply.projection,
                "drift": space.drift(projection),
                "drift_as_opening": alone,
                "drift_of_history": None if alone is None else space.drift(projection) - alone,
            }
            table.append(row)
    return table


EXPERIMENT = Experiment("drift", PUBLISHED, cost, run)
